"""Training of base and energy together by KALE."""

import math
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax, random
from tqdm import tqdm

from numpyro_gebm._callables import over_batch
from numpyro_gebm.base import trained_part, with_trained_part
from numpyro_gebm.divergences import base_loss, batch_log_partition, donsker_varadhan, kale
from numpyro_gebm.gebm import GEBM, check_energy
from numpyro_gebm.guide import KALEGuide, gradient_step, newton_step, settle_log_partition

__all__ = ["KALE", "KALELosses", "KALEResult", "KALEState"]

#: Energy steps during which the log-partition takes Newton-like steps.
LOG_PARTITION_WARMUP = 100
#: Steps compiled as one program and shown as one tick of the progress bar; results do not depend on it.
CHUNK = 100


class KALEState(NamedTuple):
    """Everything that training changes; `step` counts energy steps (base steps, when the energy is frozen)."""

    step: jax.Array
    rng_key: jax.Array
    base: Any
    energy: Any
    base_optim: Any
    energy_optim: Any
    log_partition: jax.Array


class KALELosses(NamedTuple):
    """KALE estimate (higher is a better energy), penalty and log-partition; scalars of a step, curves of a run."""

    kale: jax.Array
    penalty: jax.Array
    log_partition: jax.Array


class KALEResult(NamedTuple):
    """What `KALE.run` returns.

    `gebm` carries the settled log-partition, `state.log_partition` the raw last value; `losses` has one value per
    step asked for (the mean over its energy steps); `guide` is the trained critic.
    """

    gebm: GEBM
    state: KALEState
    losses: KALELosses
    guide: KALEGuide


class KALE:
    r"""Train the base and the energy of a GEBM with one objective; the counterpart of `SVI`.

    .. math:: \min_G \max_{E, A}\; -\mathbb{E}_P[E + A] - \mathbb{E}_G[\exp(-(E + A))] + 1

    `energy_steps` steps of the energy (and of A) alternate with one step of the base, whose gradient uses
    self-normalised weights. Source: arXiv:2003.05033.

    Args:
        base: a `Pushforward`, a `TransformedDistribution`, or with `base_optim=None` any continuous distribution.
        guide: a `KALEGuide`.
        base_optim: an Optax optimiser, or None to freeze the base.
        energy_optim: an Optax optimiser, or None to freeze the energy.
        objective: "kale" or "donsker_varadhan".
        energy_steps: energy steps per base step.
        noise_factor: base draws per data point.
        ema_decay: not implemented yet.
        trainable: not implemented yet.

    Raises:
        ValueError: if both optimisers are None, or `base_optim` is given for a base without parameters.
        TypeError: if an optimiser is not an Optax one.
        NotImplementedError: for an argument that is not implemented yet, by name.

    Example:
        >>> import jax, numpyro.distributions as dist, optax
        >>> from numpyro_gebm import nn
        >>> guide = KALEGuide(nn.MLP((), (), hidden=(8,), key=jax.random.key(2)))
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
        _not_yet(ema_decay=ema_decay, trainable=trainable)
        if objective in ("maximum_likelihood", "contrastive_divergence"):
            raise NotImplementedError(f"KALE(objective={objective!r}) is not implemented yet.")
        if objective not in ("kale", "donsker_varadhan"):
            raise ValueError(f'Expected objective "kale" or "donsker_varadhan"; got {objective!r}.')
        if base_optim is None and energy_optim is None:
            raise ValueError("Nothing to train: expected base_optim or energy_optim; got None for both.")
        for name, optim in (("base_optim", base_optim), ("energy_optim", energy_optim)):
            if optim is not None and not isinstance(optim, optax.GradientTransformation):
                raise TypeError(
                    f"Expected an Optax optimiser or None for {name}; got {type(optim).__name__}. "
                    "Write `optax.adam(1e-4)`."
                )
        if energy_steps < 1 or noise_factor < 1:
            raise ValueError(
                f"Expected energy_steps >= 1 and noise_factor >= 1; got {energy_steps} and {noise_factor}."
            )
        if energy_optim is not None and not jax.tree.leaves(eqx.filter(guide.energy, eqx.is_inexact_array)):
            raise ValueError("The energy has no parameters to train: pass energy_optim=None, or a callable pytree.")
        part = trained_part(base)
        if base_optim is not None and not jax.tree.leaves(eqx.filter(part, eqx.is_inexact_array)):
            raise ValueError(
                f"The base ({type(base).__name__}) has no parameters to train: pass base_optim=None, or a "
                "Pushforward or flow whose parameters are arrays."
            )
        self._dtype = check_energy(base, guide.energy)
        self.base, self.guide = base, guide
        self.base_optim, self.energy_optim = base_optim, energy_optim
        self.objective, self.noise_factor = objective, noise_factor
        self.energy_steps = 1 if energy_optim is None or base_optim is None else energy_steps
        self._base_arrays, self._base_static = eqx.partition(part, eqx.is_inexact_array)
        self._energy_arrays, self._energy_static = eqx.partition(guide.energy, eqx.is_inexact_array)
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
        _check_data(data, self.base)
        key_start, rng_key = random.split(rng_key)
        log_partition = self.guide.log_partition
        if log_partition is None:
            log_partition = settle_log_partition(self.base, self.guide.energy, key_start, num_batches=1)
        return KALEState(
            step=jnp.array(0),
            rng_key=rng_key,
            base=self._base_arrays,
            energy=self._energy_arrays,
            base_optim=None if self.base_optim is None else self.base_optim.init(self._base_arrays),
            energy_optim=None if self.energy_optim is None else self.energy_optim.init(self._energy_arrays),
            log_partition=jnp.asarray(log_partition, self._dtype),
        )

    def update(self, state, batch):
        """One energy step on a batch and, after every `energy_steps` of them, one base step; compiled once.

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
        _check_data(data, self.base)
        return self._evaluate(state, jnp.asarray(data))

    def run(
        self,
        rng_key,
        num_steps,
        data,
        *,
        batch_size,
        init_state=None,
        progress_bar=True,
        checkpoint_dir=None,
        checkpoint_every=None,
        resume_from=None,
    ):
        """Train for `num_steps` base steps (energy steps, when the base is frozen).

        Args:
            rng_key: a JAX random key; ignored when `init_state` is given.
            num_steps: number of base steps.
            data: array of shape `(N,) + event_shape`, reshuffled every epoch.
            batch_size: data points a step, at most N.
            init_state: a `KALEState` to go on from.
            progress_bar: show KALE, A and the penalty while training.
            checkpoint_dir: not implemented yet.
            checkpoint_every: not implemented yet.
            resume_from: not implemented yet.

        Returns:
            A `KALEResult`.

        Raises:
            ValueError: if the data do not fit the base or are fewer than a batch, or contain values that are not
                finite.
            FloatingPointError: if KALE stops being finite.
            NotImplementedError: for an argument that is not implemented yet, by name.
        """
        _not_yet(checkpoint_dir=checkpoint_dir, checkpoint_every=checkpoint_every, resume_from=resume_from)
        if not hasattr(data, "shape"):
            raise NotImplementedError("KALE.run(data=<iterable of batches>) is not implemented yet: pass an array.")
        _check_data(data, self.base)
        if not 1 <= batch_size <= len(data):
            raise ValueError(f"Expected 1 <= batch_size <= {len(data)} (the number of data); got {batch_size}.")
        data = jnp.asarray(data, self._dtype)
        if not bool(jnp.isfinite(data).all()):
            rows = np.flatnonzero(~np.isfinite(np.asarray(data)).reshape(len(data), -1).all(axis=1))
            raise ValueError(f"Expected finite data; got NaN or inf in {len(rows)} rows, the first is {rows[0]}.")
        state = self.init(rng_key, data) if init_state is None else init_state
        curves = []
        with tqdm(total=num_steps, disable=not progress_bar, desc="KALE", unit="step") as bar:
            for start in range(0, num_steps, CHUNK):
                count = min(CHUNK, num_steps - start)
                state, losses = self._run_chunk(state, data, jnp.zeros(batch_size), jnp.array(count))
                losses = KALELosses(*(np.asarray(curve)[:count] for curve in losses))
                curves.append(losses)
                if not np.isfinite(losses.kale).all():
                    raise FloatingPointError(
                        f"KALE stopped being finite after {start + int(np.isfinite(losses.kale).sum())} steps. "
                        "Lower the energy's learning rate, or raise the penalty."
                    )
                bar.update(count)
                bar.set_postfix({name: f"{curve[-1]:.3f}" for name, curve in losses._asdict().items()})
        losses = KALELosses(*(np.concatenate(parts) for parts in zip(*curves))) if curves else None
        return self._result(state, losses)

    def _result(self, state, losses):
        energy = eqx.nn.inference_mode(self._energy_of(state.energy))
        base = with_trained_part(self.base, eqx.nn.inference_mode(self._part_of(state.base)))
        settled = settle_log_partition(base, energy, _stream(state, "settle"))
        guide = KALEGuide(
            energy,
            log_partition=settled,
            log_partition_rate=self.guide.log_partition_rate,
            penalty=self.guide.penalty,
        )
        return KALEResult(GEBM(base, energy, log_partition=settled), state, losses, guide)

    def _energy_of(self, arrays):
        return eqx.combine(arrays, self._energy_static)

    def _part_of(self, arrays):
        return eqx.combine(arrays, self._base_static)

    def _energies(self, arrays, x):
        return over_batch(self._energy_of(arrays), x, self.base.event_dim)

    def _base_draws(self, arrays, rng_key, num):
        return with_trained_part(self.base, self._part_of(arrays)).sample(rng_key, (num,))

    def _energy_step(self, state, batch):
        key_base, key_penalty, _ = random.split(random.fold_in(_stream(state, "step"), state.step), 3)
        draws = self._base_draws(state.base, key_base, self.noise_factor * len(batch))

        def loss(arrays):
            energy_data, energy_base = self._energies(arrays, batch), self._energies(arrays, draws)
            value = kale(energy_data, energy_base, state.log_partition)
            objective = value if self.objective == "kale" else donsker_varadhan(energy_data, energy_base)
            penalty = jnp.zeros(())
            if self.guide.penalty is not None:
                penalty = self.guide.penalty(self._energy_of(arrays), batch, draws, key_penalty)
            return penalty - objective, (value, penalty, batch_log_partition(energy_base))

        energy, optim = state.energy, state.energy_optim
        if self.energy_optim is None:
            _, (value, penalty, estimate) = loss(energy)
        else:
            (_, (value, penalty, estimate)), grads = jax.value_and_grad(loss, has_aux=True)(energy)
            updates, optim = self.energy_optim.update(grads, optim, energy)
            energy = optax.apply_updates(energy, updates)
        rate = self.guide.log_partition_rate
        log_partition = jnp.where(
            state.step < LOG_PARTITION_WARMUP,
            newton_step(state.log_partition, estimate, rate),
            gradient_step(state.log_partition, estimate, rate),
        )
        state = state._replace(step=state.step + 1, energy=energy, energy_optim=optim, log_partition=log_partition)
        return state, KALELosses(value, penalty.astype(value.dtype), log_partition)

    def _base_step(self, state, num):
        if self.base_optim is None:
            return state
        # `_energy_step` has already advanced the counter: the third key of its step is this one's.
        key = random.split(random.fold_in(_stream(state, "step"), state.step - 1), 3)[2]

        def loss(arrays):
            return base_loss(self._energies(state.energy, self._base_draws(arrays, key, num)))

        updates, optim = self.base_optim.update(jax.grad(loss)(state.base), state.base_optim, state.base)
        return state._replace(base=optax.apply_updates(state.base, updates), base_optim=optim)

    def _one_update(self, state, batch):
        num = self.noise_factor * len(batch)
        state, losses = self._energy_step(state, batch)
        due = state.step % self.energy_steps == 0
        return lax.cond(due, lambda s: self._base_step(s, num), lambda s: s, state), losses

    def _chunk(self, state, data, like_batch, count):
        """`count` base steps, each after its energy steps; losses are written to arrays of length `CHUNK`."""
        batch_size = len(like_batch)
        per_epoch = len(data) // batch_size
        key_data = _stream(state, "data")

        def permutation(epoch):
            return random.permutation(random.fold_in(key_data, epoch), len(data))

        def energy_step(_, carry):
            state, order, total = carry
            epoch, position = state.step // per_epoch, state.step % per_epoch
            order = lax.cond(position == 0, lambda: permutation(epoch), lambda: order)
            batch = data[lax.dynamic_slice(order, (position * batch_size,), (batch_size,))]
            state, losses = self._energy_step(state, batch)
            return state, order, jax.tree.map(jnp.add, total, losses)

        def outer(i, carry):
            state, order, curves = carry
            total = KALELosses(*(jnp.zeros((), curve.dtype) for curve in curves))
            state, order, total = lax.fori_loop(0, self.energy_steps, energy_step, (state, order, total))
            state = self._base_step(state, self.noise_factor * batch_size)
            curves = jax.tree.map(lambda curve, x: curve.at[i].set(x / self.energy_steps), curves, total)
            return state, order, curves

        curves = KALELosses(*(jnp.zeros(CHUNK, state.log_partition.dtype) for _ in KALELosses._fields))
        state, _, curves = lax.fori_loop(0, count, outer, (state, permutation(state.step // per_epoch), curves))
        return state, curves

    def _kale_on(self, state, data):
        size = min(len(data), 1000)
        key = random.fold_in(_stream(state, "evaluate"), state.step)
        energy = self._energy_of(state.energy)
        energy_data = lax.map(energy, data, batch_size=size)

        def chunk(i):
            return self._energies(state.energy, self._base_draws(state.base, random.fold_in(key, i), size))

        energy_base = lax.map(chunk, jnp.arange(math.ceil(len(data) / size))).reshape(-1)
        return kale(energy_data, energy_base, state.log_partition)


def _stream(state, purpose):
    """A random key of its own for each purpose, so that no two ever share random numbers."""
    return random.fold_in(state.rng_key, ("step", "data", "evaluate", "settle").index(purpose))


def _not_yet(**arguments):
    for name, value in arguments.items():
        if value is not None:
            raise NotImplementedError(f"The argument `{name}` of KALE is not implemented yet; leave it at None.")


def _check_data(data, base):
    shape = tuple(np.shape(data))
    if len(shape) == 0 or shape[1:] != tuple(base.event_shape) or shape[0] == 0:
        raise ValueError(f"Expected data of shape (N,) + {tuple(base.event_shape)}, N >= 1; got {shape}.")
