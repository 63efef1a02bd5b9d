"""Training of base and energy together by KALE."""

import math
from collections.abc import Callable, Collection, Iterable
from functools import partial
from os import PathLike
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax, random
from jax.sharding import Mesh
from numpyro.distributions import Distribution

from gebm.batches import check_shape, is_array, values_of
from gebm.checkpoint_files import Checkpoints, fitting
from gebm.clipping import MAX_BOUND, MAX_LOG_RATIO, MIN_STEPS, check_max_grad_norm
from gebm.evaluation import (
    LOOK_DRAWS,
    START_DRAWS,
    Evaluation,
    WeightSums,
    check_budget,
    chunk_size,
    evaluation_of,
    most_draws,
    tolerance_of,
)
from gebm.fingerprint import Fingerprint, describe, one_line
from gebm.held_out import HeldOut, HeldOutEnergies, check_evaluation, find_every
from gebm.networks import name_of
from gebm.objectives import BaseObjective, Energies, EnergyObjective
from gebm.refinement import Control
from gebm.training import ObjectiveName, check_energy_steps, drive, find_objective, number_of_energy_steps, progress
from gebm.validation import callable_or_none, instance, integer, optional, probability
from numpyro_gebm.base import check_trainable, decompose, has_density, trained_part, with_trained_part
from numpyro_gebm.callables import over_batch
from numpyro_gebm.devices import Devices
from numpyro_gebm.divergences import batch_log_partition, kale
from numpyro_gebm.gebm import GEBM, check_energy
from numpyro_gebm.keys import typed
from numpyro_gebm.training.batches import InMemory, Stream, finite_array
from numpyro_gebm.training.checkpoints import TrainingCheckpoint, read_latest_checkpoint, refuse_used, write_checkpoint
from numpyro_gebm.training.guide import (
    KALEGuide,
    decayed_rate,
    gradient_step,
    newton_step,
    settle_log_partition,
    weight_sums,
)
from numpyro_gebm.training.loop import (
    Run,
    apply_if_usual,
    count_skipped,
    cycles,
    split_trained,
    step_keys,
    stream_key,
)
from numpyro_gebm.training.objectives import OBJECTIVES, KALEObjective
from numpyro_gebm.training.refinement import Looks, Refinement, RefinementResult, refine
from numpyro_gebm.training.results import KALELosses, KALEResult, KALEState

__all__ = ["KALE"]

#: Energy steps during which the log-partition takes Newton-like steps.
LOG_PARTITION_WARMUP = 100


class KALE:
    r"""Train the base and the energy of a GEBM with one objective; the counterpart of `SVI`.

    .. math:: \min_G \max_{E, A}\; -\mathbb{E}_P[E + A] - \mathbb{E}_G[\exp(-(E + A))] + 1

    `energy_steps` steps of the energy (and of A) alternate with one step of the base, whose gradient uses
    self-normalised weights. Gradients are clipped. A step whose loss or gradient is not finite, or far above what was
    usual in the run, is skipped. A part without an optimiser is in inference mode. Source: arXiv:2003.05033.

    Args:
        base: a `Pushforward`, a `TransformedDistribution`, or with `base_optim=None` any continuous distribution.
        guide: a `KALEGuide`.
        base_optim: an Optax optimiser (with its schedules), or None to freeze the base.
        energy_optim: an Optax optimiser, or None to freeze the energy.
        objective: "kale"; "plain_kale" and "donsker_varadhan", the same with other gradients of the energy, see
            `training.objectives`; "maximum_likelihood", of a base with a density, for the base alone;
            "contrastive_divergence", for the energy alone, with persistent MALA chains in the latent space; or an
            object, see `training.Objective`.
        energy_steps: energy steps per base step: a number, or a callable of the base step's number, such as
            `energy_bursts()`.
        noise_factor: base draws per data point.
        ema_decay: decay of an exponential moving average of the base, which then is the base of the result; None
            for none.
        max_grad_norm: norm at which gradients are clipped, those of the energy and those of the base; None for twice a
            running 90 % quantile of each. A gradient of 100 times that quantile, and an energy step whose batch puts
            log Z more than log 1000 above A, are not applied, unless three before it were not (and after 100 steps).
            KALE beyond a million nats counts as not finite. inf for none of this.
        mesh: devices to share every batch and its base draws between, parameters on each of them: the objective is that
            of the whole batch, and the result that of one device up to rounding.
        axis: that axis of the mesh.
        trainable: callable from the name of an array (`base.layers.0.weight`, `energy.layers.1.bias`, as in a saved
            file) to whether it is trained; None trains every floating-point array.

    Raises:
        ValueError: if both optimisers are None, or one is given for a part without parameters or without a loss.
        TypeError: if an optimiser is not an Optax one, or another argument of the wrong kind.

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
        base: Distribution,
        guide: KALEGuide,
        base_optim: optax.GradientTransformation | None,
        energy_optim: optax.GradientTransformation | None,
        *,
        objective: ObjectiveName | EnergyObjective[jax.Array] | BaseObjective[jax.Array] = "kale",
        energy_steps: int | Callable[[int], int] = 5,
        noise_factor: int = 1,
        ema_decay: float | None = None,
        max_grad_norm: float | None = None,
        trainable: Callable[[str], bool] | None = None,
        mesh: Mesh | None = None,
        axis: str = "data",
    ) -> None:
        self.base = instance("base", base, Distribution)
        self.guide = instance("guide", guide, KALEGuide)
        self.base_optim = _optimiser("base_optim", base_optim)
        self.energy_optim = _optimiser("energy_optim", energy_optim)
        self.objective = find_objective(objective, OBJECTIVES, base_optim, energy_optim)
        getattr(self.objective, "check", lambda base: None)(base)
        self.noise_factor = integer("noise_factor", noise_factor)
        self.ema_decay = None if ema_decay is None else probability("ema_decay", ema_decay, zero=True)
        self.max_grad_norm = check_max_grad_norm(max_grad_norm)
        check_energy_steps(energy_steps)
        if base_optim is not None:
            check_trainable(base)
        self.energy_steps = 1 if energy_optim is None or base_optim is None else energy_steps
        callable_or_none("trainable", trainable)
        self._devices = Devices.given(mesh, axis)
        energy, part = guide.energy, trained_part(base)
        if energy_optim is None:
            energy = eqx.nn.inference_mode(energy)
        if base_optim is None:
            part = eqx.nn.inference_mode(part)
        self._energy_arrays, self._energy_static = split_trained("energy", energy, trainable)
        self._base_arrays, self._base_static = split_trained("base", part, trainable)
        if energy_optim is not None and not jax.tree.leaves(self._energy_arrays):
            raise ValueError("The energy has no parameters to train: pass energy_optim=None, or a callable pytree.")
        if base_optim is not None and not jax.tree.leaves(self._base_arrays):
            raise ValueError(
                f"The base ({type(base).__name__}) has no parameters to train: pass base_optim=None, or a "
                "Pushforward or flow whose parameters are arrays."
            )
        self._dtype = check_energy(base, guide.energy)
        self._run_chunk = jax.jit(self._chunk)
        self._refinements: dict[Control, Refinement] = {}
        self._update = jax.jit(self._one_update)
        self._of_data = jax.jit(self._energies_of_data)
        self._energy_counts = callable(getattr(self.objective, "energy_loss", None))

    def __repr__(self) -> str:
        base, objective = type(self.base).__name__, type(self.objective).__name__
        return f"KALE(base: {base}, energy: {name_of(self.guide.energy)}, objective: {objective})"

    def init(self, rng_key: jax.Array, data: Any) -> KALEState:
        """Initial state.

        Args:
            rng_key: a JAX random key.
            data: a batch or the whole data, shape `(N,) + event_shape`; only its shape is used.

        Returns:
            A `KALEState`.

        Raises:
            ValueError: if the data do not have the base's event shape.
        """
        shape = self.base.event_shape
        check_shape("data", values_of("data", data, shape), shape)
        return self._init(rng_key)

    def _init(self, rng_key):
        key_start, rng_key = random.split(typed(rng_key))
        log_partition = self.guide.log_partition
        if log_partition is None:
            log_partition = settle_log_partition(self.base, self.guide.energy, max_draws=START_DRAWS, rng_key=key_start)
        zero = jnp.zeros((), jnp.int32)
        state = KALEState(
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
            chains=self._start_chains(stream_key(rng_key, "chains")),
            grad_norms=jnp.zeros((2, 2), self._dtype),
        )
        return self._devices.everywhere(state)

    def update(self, state: KALEState, batch: Any) -> tuple[KALEState, KALELosses]:
        """One energy step on a batch and, after `energy_steps` of them, one base step; compiled once.

        Args:
            state: a `KALEState`.
            batch: data of shape `(N,) + event_shape`, in any form that `run` takes.

        Returns:
            `(state, losses)`.

        Raises:
            TypeError: if they are not real numbers.
            ValueError: if the shape does not fit, or values are not finite.
        """
        instance("state", state, KALEState)
        return self._update(state, self._as_data("batch", batch))

    def evaluate(
        self, state: KALEState, data: Any, *, tolerance: float | None = None, max_draws: int | None = None
    ) -> Evaluation:
        """KALE of `state` on `data` with its standard error, at the best A for them.

        Base draws come from the key of the state, until the standard error of A is at the tolerance.

        Args:
            state: a `KALEState`.
            data: shape `(N,) + event_shape`, in any form that `run` takes.
            tolerance: standard error of A at which to stop, in nats; None is a third of that of the data.
            max_draws: base draws at most; None is 200,000.

        Returns:
            An `Evaluation`; its value is not negated.

        Raises:
            TypeError: if they are not real numbers.
            ValueError: if the shape does not fit, or values are not finite, or KALE is not.

        Warns:
            UserWarning: if the energy is higher on data than on base draws, as it is with the wrong sign.
        """
        instance("state", state, KALEState)
        tolerance, max_draws = check_budget(tolerance, max_draws)
        key = random.fold_in(stream_key(state.rng_key, "evaluate"), state.step)
        energies = self._energies_on(state.base, state.energy, self._as_data("data", data), key, tolerance, max_draws)
        found = evaluation_of(energies.data, energies.weights)
        check_evaluation(found, energies.data, energies.weights)
        return found

    def run(
        self,
        rng_key: jax.Array | None,
        num_steps: int,
        data: Any | Iterable[Any],
        *,
        batch_size: int | None = None,
        key: str | None = None,
        validation: Any = None,
        validate_every: int | None = None,
        keep_best: bool = True,
        patience: int | None = None,
        settle_draws: int | None = None,
        init_state: KALEState | None = None,
        progress_bar: bool = True,
        checkpoint_dir: str | PathLike[str] | None = None,
        checkpoint_every: int | None = None,
        resume_from: str | PathLike[str] | None = None,
        allow: Collection[str] = (),
    ) -> KALEResult:
        """Train for `num_steps` base steps (energy steps, when the base is frozen).

        Args:
            rng_key: a JAX random key; None with `init_state`. With `resume_from` that of the interrupted run.
            num_steps: number of base steps; with `resume_from` those of the interrupted run are among them.
            data: array of shape `(N,) + event_shape`, reshuffled every epoch: a JAX or NumPy array, DataFrame, memory
                map or nested lists. Or an iterable of batches of one shape: a loader is iterated again when it ends; of
                a tuple the first entry is taken, of a dict that of `key`. Integers are cast, not scaled.
            batch_size: data points a step, at most N; None takes `min(128, N)`. Not used with an iterable.
            key: name of the data in batches that are dicts.
            validation: held-out data, an array like `data`. KALE is computed on them during training, from 10,000 base
                draws at most and a random stream of its own, so that training is the same with and without them. See
                `ValidationCurve`.
            validate_every: base steps between two such evaluations, the first at step 0; None takes 25 in a run.
            keep_best: whether `gebm` and `guide` of the result are those of the best value: of KALE, or, while a
                base with a density is trained, of the log-likelihood. While a base without a density is trained, KALE
                falls as it improves: no state counts as best, and the last one is kept.
            patience: looks in a row without a better value after which training stops; None for no such stop.
            settle_draws: base draws, at most, from which A of the result is estimated at the end; None for 200,000, but
                no more than training has used; 0 keeps A of training. It stops at a standard error of 0.003.
            init_state: a `KALEState` to continue from.
            progress_bar: show KALE, A, the penalty and the gradient norms while training.
            checkpoint_dir: folder for checkpoints: parameters, optimisers, random key and position in the data. They
                are written atomically and the last three are kept.
            checkpoint_every: base steps between checkpoints; one is written at the start and one at the end as well.
            resume_from: folder (or file) to resume from, bit for bit as if there had been no interruption. A damaged
                newest checkpoint is skipped with a warning.
            allow: what may differ from the run that wrote the checkpoints, such as `("batch_size",)`. Else data (by
                shape and a hash), seed, batch size, networks, optimisers and objective are compared with theirs, and
                the error names what differs. `num_steps` and the held-out data are free.

        Returns:
            A `KALEResult`.

        Raises:
            TypeError: if the data are neither an array nor an iterable, or not of real numbers.
            ValueError: if the data do not fit the base or are fewer than a batch, contain values that are not finite,
                or end too soon; if the run is not the one that wrote the checkpoints.
            TrainingDiverged: if losses or gradients are not finite, or far above what was usual, for ten steps in a
                row; fewer are skipped with a warning.
            ResultFailed: for any error after the last step; its `state` is that of the trained parts.
            FileExistsError: if `checkpoint_dir` has checkpoints, and the run does not go on from them.
            FileNotFoundError: if `resume_from` holds no checkpoint.

        Warns:
            RuntimeWarning: if held-out KALE ends below its best or below 0, or if the weights of the base draws have an
                effective sample size below 1 %.
        """
        num_steps = integer("num_steps", num_steps, minimum=0)
        settle_draws = optional(partial(integer, minimum=0))("settle_draws", settle_draws)
        every = find_every(validate_every, validation is not None, num_steps)
        if self._devices.rank > 0:  # the first process writes
            checkpoint_dir, checkpoint_every, progress_bar = None, None, False
        refuse_used(checkpoint_dir, resume_from=resume_from)
        batches = self._batches(data, batch_size, key)
        state = self._init(rng_key) if init_state is None else init_state
        run = Run(self._run_chunk, self._energy_steps_at, batches, state, self._no_losses())
        held_out = self._held_out(run, validation, every, keep_best, patience)
        fingerprint = self._fingerprint(batches, state)
        if resume_from is not None:
            like = _checkpoint(run, held_out)._replace(best=None if every is None else _parts(state))
            check = partial(fingerprint.check, allow=allow, source=resume_from)
            saved = read_latest_checkpoint(resume_from, like, ("held_out", "best", "grad_norms"), check)
            with fitting(resume_from):
                run.resume(saved.state, int(saved.first), KALELosses(*saved.losses))
                held_out.resume(saved.held_out, saved.best)
        checkpoints = Checkpoints(
            checkpoint_dir,
            checkpoint_every,
            lambda directory, step, run: write_checkpoint(directory, step, _checkpoint(run, held_out), fingerprint),
        )
        finish = partial(self._result, run, held_out, settle_draws)
        result = drive(run, num_steps, checkpoints, held_out, progress, finish, progress_bar=progress_bar)
        held_out.warn(run.losses.kale)
        return result

    def refine(
        self,
        rng_key: jax.Array,
        num_steps: int,
        data: Any | Iterable[Any],
        *,
        batch_size: int | None = None,
        key: str | None = None,
        num_chains: int = 2048,
        look_every: int = 5,
        resample_below: float = 0.7,
        step_back_below: float = 0.35,
        num_moves: int = 4,
        validation: Any = None,
        validate_every: int | None = None,
        keep_best: bool = True,
        patience: int | None = None,
        progress_bar: bool = True,
        checkpoint_dir: str | PathLike[str] | None = None,
        checkpoint_every: int | None = None,
        resume_from: str | PathLike[str] | None = None,
        allow: Collection[str] = (),
    ) -> RefinementResult:
        r"""Go on training the energy, on draws of its own model instead of the base.

        An energy that saw draws of the base alone is wrong where the base hardly goes, and its model goes there. Here a
        population of chains is at equilibrium of a reference, an earlier state of the energy; see `training.Control`
        for what keeps the two together. It starts as that of `infer.SMC`, carries log Z along, and at every update a
        tenth of it is offered a fresh start from the prior by i-SIR. The loss is

        .. math:: \mathbb{E}_P[E] + \log \tfrac1n \sum_i w_i, \qquad w_i = e^{E_{ref}(x_i) - E(x_i)} .

        The base stays as it is. The energy is that of the guide, and its optimiser starts anew. On images, a rate of
        3e-4 with a cosine to 0 and a penalty of 0.1 went well. Source: arXiv:2305.19414; arXiv:2111.02702 (i-SIR).

        Args:
            rng_key: a JAX random key; with `resume_from` that of the interrupted run.
            num_steps: number of steps of the energy; with `resume_from` those of the interrupted run are among them.
            data: as for `run`.
            batch_size: data points, and chains, a step. See `run`.
            key: as for `run`.
            num_chains: chains of the population; this and the next four make a `training.Control`.
            look_every: steps between two looks at their weights.
            resample_below: effective share of the weights below which the population follows the energy.
            step_back_below: share below which training goes back.
            num_moves: MALA steps of all chains at every update.
            validation: held-out data, as for `run`; KALE on them is with the A that the population carries.
            validate_every: steps between two such evaluations; None takes 25 in a run.
            keep_best: whether `gebm` and `guide` of the result are those of the best held-out value.
            patience: looks at held-out data in a row without a better value after which training stops.
            progress_bar: show KALE, A, the effective share, distinct ancestors and steps back.
            checkpoint_dir: folder for checkpoints, as for `run`.
            checkpoint_every: steps between checkpoints.
            resume_from: folder (or file) to resume from.
            allow: what may differ from the run that wrote the checkpoints.

        Returns:
            A `RefinementResult`.

        Raises:
            TypeError: if an argument is of the wrong kind.
            ValueError: as `run`; or without an optimiser of the energy, or for numbers out of their range.
            TrainingDiverged: if the population collapses, or ten steps in a row are bad; `state` is the last good one.
            RuntimeError: if the energy is not finite at draws of the prior.

        Warns:
            RuntimeWarning: as `run`; and if the population descends from few of the chains at the start.
        """
        num_steps = integer("num_steps", num_steps, minimum=0)
        control = Control(num_chains, look_every, resample_below, step_back_below, num_moves)
        if self.energy_optim is None:
            raise ValueError("Nothing to refine: expected energy_optim; got None for it.")
        every = find_every(validate_every, validation is not None, num_steps)
        refuse_used(checkpoint_dir, resume_from=resume_from)
        batches = self._batches(data, batch_size, key)
        if control not in self._refinements:  # so that a second run compiles nothing
            part = eqx.combine(self._base_arrays, self._base_static)
            self._refinements[control] = Refinement(
                with_trained_part(self.base, eqx.nn.inference_mode(part)),
                self.guide,
                self._energy_arrays,
                self._energy_static,
                self.energy_optim,
                control,
                self.max_grad_norm,
                self.noise_factor,
                self._dtype,
            )
        return refine(
            self._refinements[control],
            typed(rng_key),
            num_steps,
            batches,
            None if every is None else jnp.asarray(self._as_data("validation data", validation)),
            lambda state: self._fingerprint(batches, state, control=control),
            Looks(every, keep_best, patience),
            checkpoints=(checkpoint_dir, checkpoint_every, resume_from, allow),
            progress_bar=progress_bar,
        )

    def _batches(self, data: Any, batch_size: int | None, key: str | None) -> InMemory | Stream:
        def as_batch(name, item):
            return self._as_data(name, item, key)

        if is_array(data, self.base.event_shape):
            batches = InMemory(self._devices.everywhere(as_batch("data", data)), batch_size)
            self._devices.check_divides("batch_size", batches.batch_size)
            return batches
        return Stream(data, as_batch)

    def _draws(self, base, rng_key, num):
        """Base draws; the devices of the mesh divide the latents, and so what the generator computes."""
        if self._devices.mesh is None:
            return jnp.asarray(base.sample(rng_key, (num,)))
        latent_prior, generator = decompose(base)
        z = self._shared(latent_prior.sample(rng_key, (num,)))
        return self._shared(over_batch(generator, z, latent_prior.event_dim))

    def _shared(self, rows):
        """Rows that the devices of the mesh divide between them."""
        self._devices.check_divides("the batch", len(rows))
        return self._devices.rows(rows)

    def _as_data(self, name, data, key=None):
        return finite_array(name, data, self.base.event_shape, self._dtype, key)

    def _fingerprint(self, batches, state, **more):
        return Fingerprint.of(
            **batches.described,
            **more,
            seed=np.asarray(random.key_data(state.rng_key)).tolist(),
            base=f"{type(self.base).__name__} {self.base.event_shape} {_network(trained_part(self.base))}",
            energy=_network(self.guide.energy),
            base_optim=self.base_optim,
            energy_optim=self.energy_optim,
            objective=self.objective,
            energy_steps=self.energy_steps,
            noise_factor=self.noise_factor,
            ema_decay=self.ema_decay,
            max_grad_norm=self.max_grad_norm,
            penalty=self.guide.penalty,
            log_partition_rate=self.guide.log_partition_rate,
        )

    def _no_losses(self):
        return KALELosses(*(np.zeros(0, self._dtype) for _ in KALELosses._fields))

    def _held_out(self, run, data, every, keep_best, patience):
        if every is not None:
            data = self._as_data("validation data", data)
        return HeldOut(
            every,
            lambda: self._held_out_energies(run.state, data),
            (lambda: _parts(run.state)) if keep_best else None,
            has_density=has_density(self.base),
            base_is_trained=self.base_optim is not None,
            energy_is_trained=self.energy_optim is not None,
            patience=patience,
        )

    def _result(self, run, held_out, settle_draws):
        base, energy = _parts(run.state) if held_out.best is None else held_out.best
        energy = eqx.nn.inference_mode(self._energy_of(energy))
        base = with_trained_part(self.base, eqx.nn.inference_mode(eqx.combine(base, self._base_static)))
        if settle_draws == 0:
            log_partition = run.state.log_partition
        else:
            used = int(run.state.step) * run.batches.batch_size * self.noise_factor
            draws = settle_draws or most_draws(used)
            key = stream_key(run.state.rng_key, "settle")
            log_partition = settle_log_partition(base, energy, max_draws=draws, rng_key=key)
        guide = KALEGuide(
            energy,
            log_partition=log_partition,
            log_partition_rate=self.guide.log_partition_rate,
            penalty=self.guide.penalty,
        )
        gebm = GEBM(base, energy, log_partition=log_partition)
        return KALEResult(gebm, run.state, run.losses, guide, held_out.curve())

    def _energy_steps_at(self, base_step):
        return number_of_energy_steps(self.energy_steps, base_step)

    def _start_chains(self, rng_key):
        start = getattr(self.objective, "start_chains", None)
        return None if start is None else start(self.base, rng_key)

    def _energy_of(self, arrays):
        return eqx.combine(arrays, self._energy_static)

    def _base_of(self, arrays):
        return with_trained_part(self.base, eqx.combine(arrays, self._base_static))

    def _energies(self, arrays, x):
        return over_batch(self._energy_of(arrays), x, self.base.event_dim)

    def _energies_of_both(self, arrays, batch, draws):
        """Energies of data and of draws; on a mesh in one pass, so that devices exchange one gradient and not two."""
        if self._devices.mesh is None:
            return self._energies(arrays, batch), self._energies(arrays, draws)
        pairs = draws.reshape(len(batch), -1, *batch.shape[1:])
        energies = self._energies(arrays, jnp.concatenate([batch[:, None].astype(draws.dtype), pairs], 1))
        return energies[:, 0], energies[:, 1:].reshape(-1)

    def _energy_step(self, state, batch):
        key_base, key_penalty, _ = step_keys(state, state.step)
        batch, num = self._shared(batch), self.noise_factor * len(batch)
        draws = self._draws(self._base_of(state.base), key_base, num)
        chains = chain_draws = None
        if state.chains is not None:
            gebm = GEBM(self._base_of(state.base), self._energy_of(state.energy), validate_args=False)
            chains, chain_draws = self.objective.move_chains(state.chains, gebm, random.fold_in(key_base, 1))

        def energies(arrays):
            of_chains = None if chain_draws is None else self._energies(arrays, chain_draws)
            return Energies(*self._energies_of_both(arrays, batch, draws), of_chains, state.log_partition)

        def loss(arrays):
            values = energies(arrays)
            penalty = jnp.zeros((), values.data.dtype)
            if self.guide.penalty is not None:
                penalty = self.guide.penalty(self._energy_of(arrays), batch, draws, key_penalty).astype(penalty.dtype)
            return penalty + self.objective.energy_loss(values), (values, penalty)

        energy, optim, norms = state.energy, state.energy_optim, state.grad_norms
        if self.energy_optim is None:
            values = energies(energy)
            penalty = norm = jnp.zeros((), values.data.dtype)
            value = kale(values.data, values.base, state.log_partition)
            ok = fine = jnp.isfinite(value)
            estimate, moves, outlier = batch_log_partition(values.base), ok, False
        else:
            (total, (values, penalty)), grads = jax.value_and_grad(loss, has_aux=True)(energy)
            value = kale(values.data, values.base, state.log_partition)
            estimate = batch_log_partition(values.base)
            outlier = self._is_outlier(state, estimate)
            total = jnp.where(self._has_run_away(values.data.mean() + estimate), jnp.nan, total)
            ok, fine, norm, energy, optim, usual = apply_if_usual(
                self.energy_optim,
                total,
                grads,
                energy,
                optim,
                norms[0],
                self.max_grad_norm,
                outlier,
                state.skipped_in_row[0],
            )
            norms, moves = norms.at[0].set(usual), ok
        rate = self.guide.log_partition_rate
        log_partition = jnp.where(
            state.step < LOG_PARTITION_WARMUP,
            newton_step(state.log_partition, estimate, rate),
            gradient_step(state.log_partition, estimate, decayed_rate(rate, state.step - LOG_PARTITION_WARMUP)),
        )
        log_partition = jnp.where(outlier, estimate, log_partition)  # one that was applied
        log_partition = jnp.where(moves & jnp.isfinite(log_partition), log_partition, state.log_partition)
        state = state._replace(
            step=state.step + 1,
            in_cycle=state.in_cycle + 1,
            energy=energy,
            energy_optim=optim,
            log_partition=log_partition,
            chains=chains,
            grad_norms=norms,
        )
        return count_skipped(state, ok, fine, part=0), KALELosses(
            value, penalty, log_partition, norm, jnp.zeros_like(norm)
        )

    def _base_step(self, state, batch):
        """The state after a base step, and its losses: the norm of its gradient."""
        num = self.noise_factor * len(batch)
        # `_energy_step` has already advanced the counter: the third key of its step is this one's.
        key = step_keys(state, state.step - 1)[2]
        state = state._replace(base_step=state.base_step + 1, in_cycle=jnp.zeros_like(state.in_cycle))
        if self.base_optim is None:
            return state, {"base_grad_norm": jnp.zeros((), self._dtype)}

        def loss(arrays):
            base = self._base_of(arrays)
            return self.objective.base_loss(
                base, self._shared(batch), lambda: self._energies(state.energy, self._draws(base, key, num))
            )

        value, grads = jax.value_and_grad(loss)(state.base)
        ok, fine, norm, base, optim, usual = apply_if_usual(
            self.base_optim,
            value,
            grads,
            state.base,
            state.base_optim,
            state.grad_norms[1],
            self.max_grad_norm,
            in_row=state.skipped_in_row[1],
        )
        state = state._replace(base=base, base_optim=optim, grad_norms=state.grad_norms.at[1].set(usual))
        state = count_skipped(state, ok, fine, part=1)
        if (decay := self.ema_decay) is not None:
            average = jax.tree.map(lambda a, b: a + (1 - decay) * (b - a), state.base_average, base)
            state = state._replace(base_average=average)
        return state, {"base_grad_norm": norm}

    def _one_update(self, state, batch):
        state, losses = self._energy_step(state, batch)
        num = self.energy_steps(state.base_step) if callable(self.energy_steps) else self.energy_steps
        due = state.in_cycle >= num
        skipped = (state, {"base_grad_norm": losses.base_grad_norm})
        state, own = lax.cond(due, lambda: self._base_step(state, batch), lambda: skipped)
        return state, losses._replace(**own)

    def _chunk(self, state, batches, energy_steps, count):
        zeros = KALELosses(*(jnp.zeros((), self._dtype) for _ in KALELosses._fields))
        return cycles(state, batches, energy_steps, count, self._energy_step, self._base_step, zeros)

    @property
    def _watches(self):
        """Whether log Z of the batches is watched: for objectives of the KALE family."""
        return self.max_grad_norm != math.inf and isinstance(self.objective, KALEObjective)

    def _is_outlier(self, state, estimate):
        """Whether a batch puts log Z far above A."""
        found = (state.step >= MIN_STEPS) & (estimate - state.log_partition > MAX_LOG_RATIO)
        return found if self._watches else jnp.zeros((), bool)

    def _has_run_away(self, bound):
        """Whether the bound of a batch is out of all proportion."""
        return (jnp.abs(bound) > MAX_BOUND) if self._watches else False

    def _held_out_energies(self, state, data):
        """What a look at held-out data sees of a state, with the averaged base."""
        arrays, energy = _parts(state)
        key = random.fold_in(stream_key(state.rng_key, "validate"), state.step)
        return self._energies_on(arrays, energy, data, key, None, LOOK_DRAWS)

    def _energies_of_data(self, base, energy, data):
        """Energies of data, in pieces, and their log-densities by a base that has one."""
        energies = lax.map(self._energy_of(energy), data, batch_size=chunk_size(self.base.event_shape, len(data)))
        return energies, self._base_of(base).log_prob(data) if has_density(self.base) else None

    def _energies_on(self, base, energy, data, rng_key, tolerance, max_draws):
        of_data, log_density = jax.device_get(self._of_data(base, energy, data))
        sums = weight_sums(
            self._base_of(base),
            self._energy_of(energy),
            tolerance_of(tolerance, of_data),
            max_draws,
            rng_key=rng_key,
        )
        weights = WeightSums(*(float(x) for x in jax.device_get(sums)))
        return HeldOutEnergies(of_data, weights, log_density, self._energy_counts)


def _checkpoint(run, held_out):
    looks = (None, None) if held_out.every is None else (held_out.rows, held_out.best)
    return TrainingCheckpoint(run.state, np.asarray(run.first), list(run.losses), *looks)


def _network(network):
    """A network in a fingerprint: its settings, and names and shapes of its arrays."""
    is_function = not jax.tree.leaves(eqx.filter(network, eqx.is_array))
    if is_function:
        return describe(network)
    return one_line(eqx.tree_pformat(network)).replace(
        ", compute_dtype=None", ""
    )  # as in files of before there was one


def _parts(state):
    """Base and energy as a result holds them."""
    return state.base if state.base_average is None else state.base_average, state.energy


def _optimiser(name, optim):
    if optim is not None and not isinstance(optim, optax.GradientTransformation):
        raise TypeError(
            f"Expected an Optax optimiser or None for {name}; got {type(optim).__name__}. Write `optax.adam(1e-4)`."
        )
    return optim
