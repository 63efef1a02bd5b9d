"""Training of base and energy together by KALE."""

import math
import time
import warnings

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax, random
from tqdm import tqdm

from gebm.checkpoint_files import Checkpoints
from numpyro_gebm.base import trained_part, with_trained_part
from numpyro_gebm.callables import over_batch
from numpyro_gebm.divergences import base_loss, batch_log_partition, donsker_varadhan, kale
from numpyro_gebm.gebm import GEBM, check_energy
from numpyro_gebm.training.batches import InMemory, Stream, check_shape
from numpyro_gebm.training.checkpoints import TrainingCheckpoint, read_latest_checkpoint, write_checkpoint
from numpyro_gebm.training.contrastive import draws_of, move_chains, start_chains
from numpyro_gebm.training.guide import KALEGuide, decayed_rate, gradient_step, newton_step, settle_log_partition
from numpyro_gebm.training.loop import (
    CHUNK,
    KALELosses,
    KALEResult,
    KALEState,
    apply_if_finite,
    check_arguments,
    count_skipped,
    cycles,
    shown,
    split_trained,
    step_keys,
    stop_if_diverged,
    stream_key,
)

__all__ = ["KALE"]

#: Energy steps during which the log-partition takes Newton-like steps.
LOG_PARTITION_WARMUP = 100


class KALE:
    r"""Train the base and the energy of a GEBM with one objective; the counterpart of `SVI`.

    .. math:: \min_G \max_{E, A}\; -\mathbb{E}_P[E + A] - \mathbb{E}_G[\exp(-(E + A))] + 1

    `energy_steps` steps of the energy (and of A) alternate with one step of the base, whose gradient uses
    self-normalised weights. A step whose loss or gradient is not finite is not applied. Source: arXiv:2003.05033.

    Args:
        base: a `Pushforward`, a `TransformedDistribution`, or with `base_optim=None` any continuous distribution.
        guide: a `KALEGuide`.
        base_optim: an Optax optimiser (with its schedules), or None to freeze the base.
        energy_optim: an Optax optimiser, or None to freeze the energy.
        objective: "kale"; "donsker_varadhan"; "maximum_likelihood", of a base with a density, for the base alone; or
            "contrastive_divergence", for the energy alone, with persistent MALA chains in the latent space.
        energy_steps: energy steps per base step: a number, or a callable of the base step's number, such as
            `energy_bursts()`.
        noise_factor: base draws per data point.
        ema_decay: decay of an exponential moving average of the base, which then is the base of the result; None
            for none.
        trainable: callable from the name of an array (`base.layers.0.weight`, `energy.layers.1.bias`, as in a saved
            file) to whether it is trained; None trains every floating-point array.

    Raises:
        ValueError: if both optimisers are None, or one is given for a part without parameters.
        TypeError: if an optimiser is not an Optax one.

    Example:
        >>> import jax, numpyro.distributions as dist, optax
        >>> from numpyro_gebm import nn
        >>> guide = KALEGuide(nn.MLP((), (), hidden=(8,), rng_key=jax.random.key(2)))
        >>> training = KALE(dist.Normal(0.0, 1.0), guide, None, optax.adam(1e-3))
        >>> data = 1.0 + jax.random.normal(jax.random.key(0), (64,))
        >>> result = training.run(jax.random.key(1), 10, data, batch_size=32, progress_bar=False)
        >>> result.losses.kale.shape
        (10,)
    """

    def __init__(
        self,
        base,
        guide,
        base_optim,
        energy_optim,
        *,
        objective="kale",
        energy_steps=5,
        noise_factor=1,
        ema_decay=None,
        trainable=None,
    ):
        check_arguments(base, objective, energy_steps, noise_factor, ema_decay, base_optim, energy_optim)
        for name, optim in (("base_optim", base_optim), ("energy_optim", energy_optim)):
            if optim is not None and not isinstance(optim, optax.GradientTransformation):
                raise TypeError(
                    f"Expected an Optax optimiser or None for {name}; got {type(optim).__name__}. "
                    "Write `optax.adam(1e-4)`."
                )
        part = trained_part(base)
        self._energy_arrays, self._energy_static = split_trained("energy", guide.energy, trainable)
        self._base_arrays, self._base_static = split_trained("base", part, trainable)
        if energy_optim is not None and not jax.tree.leaves(self._energy_arrays):
            raise ValueError("The energy has no parameters to train: pass energy_optim=None, or a callable pytree.")
        if base_optim is not None and not jax.tree.leaves(self._base_arrays):
            raise ValueError(
                f"The base ({type(base).__name__}) has no parameters to train: pass base_optim=None, or a "
                "Pushforward or flow whose parameters are arrays."
            )
        self._dtype = check_energy(base, guide.energy)
        self.base, self.guide = base, guide
        self.base_optim, self.energy_optim = base_optim, energy_optim
        self.objective, self.noise_factor, self.ema_decay = objective, noise_factor, ema_decay
        self.energy_steps = 1 if energy_optim is None or base_optim is None else energy_steps
        self._has_chains = objective == "contrastive_divergence"
        self._run_chunk = jax.jit(self._chunk)
        self._update = jax.jit(self._one_update)
        self._evaluate = jax.jit(self._kale_on)

    def init(self, rng_key, data):
        """Initial state.

        Args:
            rng_key: a JAX random key.
            data: a batch or the whole data, shape `(N,) + event_shape`; only its shape is used.

        Returns:
            A `KALEState`.

        Raises:
            ValueError: if the data do not have the base's event shape.
        """
        check_shape(data, self.base.event_shape)
        return self._init(rng_key)

    def _init(self, rng_key):
        key_start, rng_key = random.split(rng_key)
        log_partition = self.guide.log_partition
        if log_partition is None:
            log_partition = settle_log_partition(self.base, self.guide.energy, num_batches=1, rng_key=key_start)
        zero = jnp.zeros((), jnp.int32)
        return KALEState(
            step=zero,
            base_step=zero,
            in_cycle=zero,
            skipped=zero,
            skipped_in_row=jnp.zeros(2, zero.dtype),
            rng_key=rng_key,
            base=self._base_arrays,
            energy=self._energy_arrays,
            base_optim=None if self.base_optim is None else self.base_optim.init(self._base_arrays),
            energy_optim=None if self.energy_optim is None else self.energy_optim.init(self._energy_arrays),
            base_average=None if self.ema_decay is None else self._base_arrays,
            log_partition=jnp.asarray(log_partition, self._dtype),
            chains=start_chains(self.base, stream_key(rng_key, "chains")) if self._has_chains else None,
        )

    def update(self, state, batch):
        """One energy step on a batch and, after `energy_steps` of them, one base step; compiled once.

        Args:
            state: a `KALEState`.
            batch: data of shape `(N,) + event_shape`.

        Returns:
            `(state, losses)`.
        """
        return self._update(state, batch)

    def evaluate(self, state, data):
        """The KALE estimate of `state` on `data`, from as many fresh base draws; its key comes from the state.

        Args:
            state: a `KALEState`.
            data: shape `(N,) + event_shape`.

        Returns:
            Scalar; not negated.
        """
        check_shape(data, self.base.event_shape)
        return self._evaluate(state, jnp.asarray(data))

    def run(
        self,
        rng_key,
        num_steps,
        data,
        *,
        batch_size=None,
        init_state=None,
        progress_bar=True,
        checkpoint_dir=None,
        checkpoint_every=None,
        resume_from=None,
    ):
        """Train for `num_steps` base steps (energy steps, when the base is frozen).

        Args:
            rng_key: a JAX random key; ignored when `init_state` or `resume_from` is given.
            num_steps: number of base steps; with `resume_from` those of the interrupted run are among them.
            data: array of shape `(N,) + event_shape`, reshuffled every epoch, or an iterable of batches of one shape
                (a loader is iterated again when it ends; of a tuple the first entry is taken).
            batch_size: data points a step, at most N; not used with an iterable.
            init_state: a `KALEState` to go on from.
            progress_bar: show KALE, A, the penalty and the gradient norms while training.
            checkpoint_dir: folder for checkpoints: parameters, optimisers, random key and position in the data. They
                are written atomically and the last three are kept.
            checkpoint_every: base steps between checkpoints; one is written at the start and one at the end as well.
            resume_from: folder (or file) to resume from, bit for bit as if there had been no interruption. A damaged
                newest checkpoint is passed over with a warning.

        Returns:
            A `KALEResult`.

        Raises:
            ValueError: if the data do not fit the base or are fewer than a batch, contain values that are not finite,
                or end too soon.
            TrainingDiverged: if losses or gradients are not finite ten steps in a row; a few of them are skipped with
                a warning.
            FileNotFoundError: if `resume_from` holds no checkpoint.
        """
        batches = self._batches(data, batch_size)
        state, first, curves = self._start(rng_key, init_state, resume_from)
        checkpoints = Checkpoints(checkpoint_dir, checkpoint_every, write_checkpoint)
        if resume_from is not None:
            batches.skip(int(state.step))
        skipped, count, good = int(state.skipped), 1, state
        with tqdm(total=num_steps, initial=int(state.base_step) - first, disable=not progress_bar, desc="KALE") as bar:
            while (done := int(state.base_step) - first) < num_steps:
                checkpoints.write_if_due(done, TrainingCheckpoint(state, np.asarray(first), curves))
                start = time.perf_counter()
                count = min(count, num_steps - done, checkpoints.until_next(done))
                state, losses = self._advance(state, batches, count)
                curves = [np.concatenate(pair) for pair in zip(curves, losses)]
                bar.update(len(losses.kale))
                bar.set_postfix(shown(losses, int(state.skipped) - skipped))
                stop_if_diverged(state, good)
                good = good if state.skipped_in_row.any() else state
                # look about once a second
                count = max(1, min(CHUNK, 2 * count, int(count / (time.perf_counter() - start))))
        checkpoints.write(num_steps, TrainingCheckpoint(state, np.asarray(first), curves))
        if int(state.skipped) > skipped:
            warnings.warn(
                f"{int(state.skipped) - skipped} steps were not applied: their loss or gradient was not finite.",
                RuntimeWarning,
                stacklevel=2,
            )
        return self._result(state, KALELosses(*curves))

    def _batches(self, data, batch_size):
        if hasattr(data, "shape"):
            return InMemory(data, self.base.event_shape, batch_size, self._dtype)
        return Stream(data, self.base.event_shape, self._dtype)

    def _start(self, rng_key, init_state, resume_from):
        """State to start from, base steps it had at the start of the run, and losses of the run so far."""
        state = self._init(rng_key) if init_state is None else init_state
        first, curves = np.asarray(int(state.base_step)), [np.zeros(0, self._dtype) for _ in KALELosses._fields]
        if resume_from is not None:
            state, first, curves = read_latest_checkpoint(resume_from, TrainingCheckpoint(state, first, curves))
        return state, int(first), curves

    def _advance(self, state, batches, count):
        """Up to `count` base steps; fewer where the batches of a stream bound them, or training diverges."""
        step, base_step = int(state.step), int(state.base_step)
        steps = [int(self._energy_steps_at(base_step + i)) for i in range(count)] if batches.limit else []
        if batches.limit:
            steps[0] -= int(state.in_cycle)
            count = max(1, int(np.sum(np.cumsum(steps) <= batches.limit)))
        state, curves, count = self._run_chunk(state, batches.take(step, sum(steps[:count])), jnp.array(count))
        return state, KALELosses(*(np.asarray(curve)[: int(count)] for curve in curves))

    def _result(self, state, losses):
        arrays = state.base if state.base_average is None else state.base_average
        energy = eqx.nn.inference_mode(self._energy_of(state.energy))
        base = with_trained_part(self.base, eqx.nn.inference_mode(self._part_of(arrays)))
        settled = settle_log_partition(base, energy, rng_key=stream_key(state.rng_key, "settle"))
        guide = KALEGuide(
            energy,
            log_partition=settled,
            log_partition_rate=self.guide.log_partition_rate,
            penalty=self.guide.penalty,
        )
        return KALEResult(GEBM(base, energy, log_partition=settled), state, losses, guide)

    def _energy_steps_at(self, base_step):
        return self.energy_steps(base_step) if callable(self.energy_steps) else self.energy_steps

    def _energy_of(self, arrays):
        return eqx.combine(arrays, self._energy_static)

    def _part_of(self, arrays):
        return eqx.combine(arrays, self._base_static)

    def _energies(self, arrays, x):
        return over_batch(self._energy_of(arrays), x, self.base.event_dim)

    def _base_draws(self, arrays, rng_key, num):
        return with_trained_part(self.base, self._part_of(arrays)).sample(rng_key, (num,))

    def _energy_step(self, state, batch):
        key_base, key_penalty, _ = step_keys(state, state.step)
        draws = self._base_draws(state.base, key_base, self.noise_factor * len(batch))

        chains, model_draws = state.chains, None
        if chains is not None:
            base = with_trained_part(self.base, self._part_of(state.base))
            gebm = GEBM(base, self._energy_of(state.energy), validate_args=False)
            chains = move_chains(chains, gebm, random.fold_in(key_base, 1))
            model_draws = draws_of(chains, gebm)

        def loss(arrays):
            energy_data, energy_base = self._energies(arrays, batch), self._energies(arrays, draws)
            value = objective = kale(energy_data, energy_base, state.log_partition)
            if self.objective == "donsker_varadhan":
                objective = donsker_varadhan(energy_data, energy_base)
            elif self.objective == "contrastive_divergence":
                objective = self._energies(arrays, model_draws).mean() - energy_data.mean()
            penalty = jnp.zeros((), value.dtype)
            if self.guide.penalty is not None:
                penalty = self.guide.penalty(self._energy_of(arrays), batch, draws, key_penalty).astype(value.dtype)
            return penalty - objective, (value, penalty, batch_log_partition(energy_base))

        if self.energy_optim is None:
            total, (value, penalty, estimate) = loss(state.energy)
            ok, norm, energy, optim = jnp.isfinite(total), jnp.zeros((), value.dtype), state.energy, None
        else:
            (total, (value, penalty, estimate)), grads = jax.value_and_grad(loss, has_aux=True)(state.energy)
            ok, norm, energy, optim = apply_if_finite(self.energy_optim, total, grads, state.energy, state.energy_optim)
        rate = self.guide.log_partition_rate
        log_partition = jnp.where(
            state.step < LOG_PARTITION_WARMUP,
            newton_step(state.log_partition, estimate, rate),
            gradient_step(state.log_partition, estimate, decayed_rate(rate, state.step - LOG_PARTITION_WARMUP)),
        )
        log_partition = jnp.where(ok & jnp.isfinite(log_partition), log_partition, state.log_partition)
        state = state._replace(
            step=state.step + 1,
            in_cycle=state.in_cycle + 1,
            energy=energy,
            energy_optim=optim,
            log_partition=log_partition,
            chains=chains,
        )
        return count_skipped(state, ok, part=0), KALELosses(value, penalty, log_partition, norm, jnp.zeros_like(norm))

    def _base_step(self, state, batch):
        """The state after a base step, and the norm of its gradient."""
        num = self.noise_factor * len(batch)
        # `_energy_step` has already advanced the counter: the third key of its step is this one's.
        key = step_keys(state, state.step - 1)[2]
        state = state._replace(base_step=state.base_step + 1, in_cycle=jnp.zeros_like(state.in_cycle))
        if self.base_optim is None:
            return state, jnp.zeros((), self._dtype)

        def loss(arrays):
            if self.objective == "maximum_likelihood":
                return -with_trained_part(self.base, self._part_of(arrays)).log_prob(batch).mean()
            return base_loss(self._energies(state.energy, self._base_draws(arrays, key, num)))

        value, grads = jax.value_and_grad(loss)(state.base)
        ok, norm, base, optim = apply_if_finite(self.base_optim, value, grads, state.base, state.base_optim)
        state = count_skipped(state._replace(base=base, base_optim=optim), ok, part=1)
        if self.ema_decay is not None:
            average = jax.tree.map(lambda a, b: a + (1 - self.ema_decay) * (b - a), state.base_average, base)
            state = state._replace(base_average=average)
        return state, norm

    def _one_update(self, state, batch):
        state, losses = self._energy_step(state, batch)
        due = state.in_cycle >= self._energy_steps_at(state.base_step)
        skipped = (state, losses.base_grad_norm)
        state, norm = lax.cond(due, lambda: self._base_step(state, batch), lambda: skipped)
        return state, losses._replace(base_grad_norm=norm)

    def _chunk(self, state, batches, count):
        return cycles(state, batches, count, self._energy_step, self._base_step, self._energy_steps_at)

    def _kale_on(self, state, data):
        size = min(len(data), 1000)
        key = random.fold_in(stream_key(state.rng_key, "evaluate"), state.step)
        energy = self._energy_of(state.energy)
        energy_data = lax.map(energy, data, batch_size=size)

        def chunk(i):
            return self._energies(state.energy, self._base_draws(state.base, random.fold_in(key, i), size))

        energy_base = lax.map(chunk, jnp.arange(math.ceil(len(data) / size))).reshape(-1)
        return kale(energy_data, energy_base, state.log_partition)
