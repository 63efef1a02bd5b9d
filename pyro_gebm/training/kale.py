"""Training of base and energy together by KALE."""

import contextlib
import copy
import math
from collections.abc import Callable, Collection, Iterable
from functools import partial
from os import PathLike
from typing import Any, cast

import torch
from torch.distributions import Distribution

from gebm.batches import is_array
from gebm.checkpoint_files import Checkpoints, fitting
from gebm.clipping import MAX_BOUND, MAX_LOG_RATIO, MIN_STEPS, check_max_grad_norm
from gebm.evaluation import (
    LOOK_DRAWS,
    START_DRAWS,
    Evaluation,
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
from pyro_gebm.base import check_trainable, decompose, has_density, snapshot, trained_part, without_validation
from pyro_gebm.callables import PrivateRandomness, check_fixed, copy_of_values, evaluation_mode, over_batch
from pyro_gebm.divergences import batch_log_partition, kale
from pyro_gebm.gebm import GEBM, check_energy, check_generator
from pyro_gebm.processes import Processes
from pyro_gebm.training.batches import InMemory, Stream, finite_tensor
from pyro_gebm.training.checkpoints import (
    get_rng_state,
    read_latest_checkpoint,
    refuse_used,
    set_rng_state,
    write_checkpoint,
)
from pyro_gebm.training.guide import (
    KALEGuide,
    decayed_rate,
    gradient_step,
    newton_step,
    settle_log_partition,
    weight_sums,
)
from pyro_gebm.training.loop import Optimizer, Run, is_frozen, random_stream, trained_parameters
from pyro_gebm.training.objectives import OBJECTIVES, KALEObjective
from pyro_gebm.training.refinement import Looks, Refinement, RefinementResult, refine
from pyro_gebm.training.results import KALELosses, KALEResult

__all__ = ["KALE"]

#: Energy steps during which the log-partition takes Newton-like steps.
LOG_PARTITION_WARMUP = 100


class KALE:
    r"""Train the base and the energy of a GEBM with one objective; the counterpart of `SVI`.

    .. math:: \min_G \max_{E, A}\; -\mathbb{E}_P[E + A] - \mathbb{E}_G[\exp(-(E + A))] + 1

    `energy_steps` steps of the energy (and of A) alternate with one step of the base, whose gradient uses
    self-normalised weights. Gradients are clipped. A step whose loss or gradient is not finite, or far above what was
    usual in the run, is skipped. The modules are trained in
    place, but for those of a result or a file, of which no parameter requires a gradient: they are copied. A part
    without an optimiser is in evaluation mode. Source: arXiv:2003.05033.

    Args:
        base: a `Pushforward`, a `TransformedDistribution`, or with `base_optim=None` any continuous distribution.
        guide: a `KALEGuide`.
        base_optim: factory from parameters to a `torch.optim.Optimizer`, or to a pair of it and a learning-rate
            scheduler that is stepped after every step; None freezes the base.
        energy_optim: the same for the energy; None freezes it.
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
        process_group: of `torch.distributed`, to share every batch between its processes: the objective is that of the
            whole batch, energies of all processes in one log-sum-exp. Every process calls `run` with the same array, or
            with an iterable of its own parts of the batches; the first one writes checkpoints, and a run can be resumed
            with another number of processes. Objectives of the KALE family only.
        trainable: callable from the name of a parameter (`base.layers.0.weight`, `energy.layers.1.bias`, as in a
            saved file) to whether it is trained; None trains every one that requires a gradient.

    Raises:
        ValueError: if both optimisers are None, or one is given for a part without parameters or without a loss.
        TypeError: if an optimiser is not a factory (a `pyro.optim` object, or a built optimiser), or another argument
            is of the wrong kind.

    Example:
        >>> import pyro.distributions as dist, torch
        >>> from pyro_gebm import nn
        >>> guide = KALEGuide(nn.MLP((), (), hidden=(8,)))
        >>> training = KALE(dist.Normal(0.0, 1.0), guide, None, lambda p: torch.optim.Adam(p, 1e-3))
        >>> result = training.run(10, 1.0 + torch.randn(64), batch_size=32, progress_bar=False)
        >>> tuple(result.losses.kale.shape)
        (10,)
    """

    def __init__(
        self,
        base: Distribution,
        guide: KALEGuide,
        base_optim: Callable[[list], Any] | None,
        energy_optim: Callable[[list], Any] | None,
        *,
        objective: ObjectiveName | EnergyObjective[torch.Tensor] | BaseObjective[torch.Tensor] = "kale",
        energy_steps: int | Callable[[int], int] = 5,
        noise_factor: int = 1,
        ema_decay: float | None = None,
        max_grad_norm: float | None = None,
        trainable: Callable[[str], bool] | None = None,
        process_group: Any = None,
    ) -> None:
        instance("base", base, Distribution)
        instance("guide", guide, KALEGuide)
        self.base = base if base_optim is None or not is_frozen(trained_part(base)) else _unfrozen(base)
        self.guide = guide
        if energy_optim is not None and is_frozen(guide.energy):
            self.guide = copy.copy(guide)
            self.guide.energy = _unfrozen(guide.energy)
        base, guide = self.base, self.guide
        self.objective = find_objective(objective, OBJECTIVES, base_optim, energy_optim)
        getattr(self.objective, "check", lambda base: None)(base)
        self.noise_factor = integer("noise_factor", noise_factor)
        self.ema_decay = None if ema_decay is None else probability("ema_decay", ema_decay, zero=True)
        self.max_grad_norm = check_max_grad_norm(max_grad_norm)
        check_energy_steps(energy_steps)
        if base_optim is not None:
            check_trainable(base)
        self.energy_steps = 1 if energy_optim is None or base_optim is None else energy_steps
        self._processes = Processes.given(process_group)
        if self._processes.size > 1 and not isinstance(self.objective, KALEObjective):
            raise ValueError(
                f"Expected an objective of the KALE family over several processes; got {type(self.objective).__name__}."
            )
        callable_or_none("trainable", trainable)
        with evaluation_mode(trained_part(base), guide.energy):
            events, energies = check_energy(base, guide.energy)
            check_fixed(guide.energy, events, energies, "energy")
            check_generator(base)
        base_parameters = trained_parameters("base", trained_part(base), trainable)
        energy_parameters = trained_parameters("energy", guide.energy, trainable)
        if base_optim is not None and not base_parameters:
            raise ValueError(
                f"The base ({type(base).__name__}) has no parameters to train: pass base_optim=None, or a "
                "Pushforward or flow that is a torch.nn.Module."
            )
        if energy_optim is not None and not energy_parameters:
            raise ValueError("The energy has no parameters to train: pass energy_optim=None, or a torch.nn.Module.")
        self.base_optim = (
            None
            if base_optim is None
            else Optimizer("base_optim", base_optim, base_parameters, max_grad_norm, self._processes)
        )
        self._energy_factory = energy_optim
        self.energy_optim = (
            None
            if energy_optim is None
            else Optimizer("energy_optim", energy_optim, energy_parameters, max_grad_norm, self._processes)
        )
        self._frozen = [
            part
            for part, optim in ((trained_part(base), base_optim), (guide.energy, energy_optim))
            if optim is None and isinstance(part, torch.nn.Module)
        ]
        self.num_steps_taken = self.base_steps_taken = self.in_cycle = self.num_skipped = 0
        start_chains = getattr(self.objective, "start_chains", None)
        self._chains = None if start_chains is None else start_chains(GEBM(base, guide.energy, validate_args=False))
        self._processes.take_over([*_parameters(base), *_energy_parameters(guide.energy)])
        self._base_average = None if ema_decay is None else [p.detach().clone() for p in base_parameters]
        log_partition = guide.log_partition
        if log_partition is None:
            with evaluation_mode(trained_part(base), guide.energy), PrivateRandomness():
                log_partition = settle_log_partition(base, guide.energy, max_draws=START_DRAWS)
        self.log_partition = torch.as_tensor(log_partition, dtype=energies.dtype, device=energies.device)
        self._processes.take_over([self.log_partition])

    def __repr__(self) -> str:
        base, objective = type(self.base).__name__, type(self.objective).__name__
        return f"KALE(base: {base}, energy: {name_of(self.guide.energy)}, objective: {objective})"

    def step(self, batch: torch.Tensor) -> KALELosses:
        """One energy step on a batch and, after `energy_steps` of them, one base step.

        Args:
            batch: data of shape `(N,) + event_shape`, in any form that `run` takes.

        Returns:
            `KALELosses` of scalars.

        Raises:
            TypeError: if they are not real numbers.
            ValueError: if the shape does not fit, or values are not finite.
        """
        return self._take_step(self._as_data("batch", batch))

    def _take_step(self, batch):
        with evaluation_mode(*self._frozen):
            return self._steps_on(batch)

    def _steps_on(self, batch):
        losses = self._energy_step(batch)
        if self.in_cycle >= number_of_energy_steps(self.energy_steps, self.base_steps_taken):
            losses = losses._replace(base_grad_norm=self._base_step(batch))
        return losses

    def evaluate(self, data: Any, *, tolerance: float | None = None, max_draws: int | None = None) -> Evaluation:
        """KALE on `data` with its standard error, at the best A for them, from fresh base draws.

        Args:
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
        tolerance, max_draws = check_budget(tolerance, max_draws)
        data = self._as_data("data", data)
        with evaluation_mode(trained_part(self.base), self.guide.energy):
            energies = self._energies_on(self.base, data, tolerance, max_draws)
        found = evaluation_of(energies.data, energies.weights)
        check_evaluation(found, energies.data, energies.weights)
        return found

    def run(
        self,
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
        progress_bar: bool = True,
        checkpoint_dir: str | PathLike[str] | None = None,
        checkpoint_every: int | None = None,
        resume_from: str | PathLike[str] | None = None,
        allow: Collection[str] = (),
    ) -> KALEResult:
        """Train for `num_steps` base steps (energy steps, when the base is frozen).

        Args:
            num_steps: number of base steps; with `resume_from` those of the interrupted run are among them.
            data: array of shape `(N,) + event_shape`, reshuffled every epoch: a tensor, NumPy array, DataFrame, memory
                map or nested lists. Or an iterable of batches of one shape: a `DataLoader` is iterated again when it
                ends; of a tuple the first entry is taken, of a dict that of `key`. Integers are cast, not scaled.
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
            progress_bar: show KALE, A, the penalty and the gradient norms while training.
            checkpoint_dir: folder for checkpoints: parameters, optimisers, random state and position in the data.
                They are written atomically and the last three are kept.
            checkpoint_every: base steps between checkpoints; one is written at the start and one at the end as well.
            resume_from: folder (or file) to resume from, on the CPU bit for bit as if there had been no interruption.
                A damaged newest checkpoint is skipped with a warning.
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
        if self._processes.rank > 0:  # the first process writes
            checkpoint_dir, checkpoint_every, progress_bar = None, None, False
        refuse_used(checkpoint_dir, resume_from=resume_from)
        self._share_randomness()
        run = Run(self, self._take_step, self._batches(data, batch_size, key), KALELosses, self.log_partition.device)
        held_out = self._held_out(run, validation, every, keep_best, patience)
        fingerprint = self._fingerprint(run.batches)
        if resume_from is not None:
            check = partial(fingerprint.check, allow=allow, source=resume_from)
            saved = read_latest_checkpoint(resume_from, self.log_partition.device, check)
            with fitting(resume_from):
                run.resume(saved)
                held_out.resume(saved.get("held_out"), saved.get("best"))

        def write(directory, step, run):
            looks = {} if every is None else {"held_out": held_out.rows.tolist(), "best": held_out.best}
            write_checkpoint(directory, step, {**run.checkpoint(), **looks}, fingerprint)

        checkpoints = Checkpoints(checkpoint_dir, checkpoint_every, write)
        finish = partial(self._result, run, held_out, settle_draws)
        result = drive(run, num_steps, checkpoints, held_out, progress, finish, progress_bar=progress_bar)
        held_out.warn(run.losses.kale.numpy())
        return result

    def refine(
        self,
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
        r"""Go on training the energy, in place, on draws of its own model instead of the base.

        An energy that saw draws of the base alone is wrong where the base hardly goes, and its model goes there. Here a
        population of chains is at equilibrium of a reference, an earlier state of the energy; see `training.Control`
        for what keeps the two together. It starts as that of `infer.SMC`, carries log Z along, and at every update a
        tenth of it is offered a fresh start from the prior by i-SIR. The loss is

        .. math:: \mathbb{E}_P[E] + \log \tfrac1n \sum_i w_i, \qquad w_i = e^{E_{ref}(x_i) - E(x_i)} .

        The base stays as it is. The energy is that of the guide, and its optimiser starts anew. On images, a rate of
        3e-4 with a cosine to 0 and a penalty of 0.1 went well. Source: arXiv:2305.19414; arXiv:2111.02702 (i-SIR).

        Args:
            num_steps: number of steps of the energy; with `resume_from` those of the interrupted run are among them.
            data: as for `run`.
            batch_size: data points, and chains, a step. See `run`.
            key: as for `run`.
            num_chains: chains of the population; this and the next four make a `training.Control`.
            look_every: see there.
            resample_below: see there.
            step_back_below: see there.
            num_moves: see there.
            validation: held-out data, as for `run`. A is the one that the population carries.
            validate_every: steps between two looks at them; None takes 25 in a run.
            keep_best: whether the result holds the state of the best look.
            patience: looks at held-out data in a row without a better value after which training stops.
            progress_bar: show KALE, A, the effective share, distinct ancestors and steps back.
            checkpoint_dir: folder for checkpoints, as for `run`.
            checkpoint_every: steps between checkpoints.
            resume_from: folder (or file) to resume from, as for `run`.
            allow: what may differ, as for `run`.

        Returns:
            A `RefinementResult`.

        Raises:
            TypeError: if an argument is of the wrong kind.
            ValueError: as `run`; or without an optimiser of the energy, or for numbers out of their range.
            TrainingDiverged: if the population collapses, or ten steps in a row are bad; the energy is put back.
            RuntimeError: if the energy is not finite at draws of the prior.

        Warns:
            RuntimeWarning: as `run`; and if the population descends from few of the chains at the start.
        """
        num_steps = integer("num_steps", num_steps, minimum=0)
        control = Control(num_chains, look_every, resample_below, step_back_below, num_moves)
        if self._processes.size > 1:
            raise ValueError("Expected one process to refine; got a process_group. Refine the result in one of them.")
        if self._energy_factory is None or self.energy_optim is None:
            raise ValueError("Nothing to refine: expected energy_optim; got None for it.")
        every = find_every(validate_every, validation is not None, num_steps)
        refuse_used(checkpoint_dir, resume_from=resume_from)
        batches, device = self._batches(data, batch_size, key), self.log_partition.device
        with evaluation_mode(trained_part(self.base)):
            training = Refinement(
                self.base,
                self.guide,
                self._energy_factory,
                self.energy_optim.parameters,
                control,
                max_grad_norm=self.max_grad_norm,
                noise_factor=self.noise_factor,
                start=resume_from is None,
                progress_bar=progress_bar,
            )
            return refine(
                training,
                num_steps,
                batches,
                None if every is None else self._as_data("validation data", validation),
                self._fingerprint(batches, control=control),
                Looks(every, keep_best, patience),
                checkpoints=(checkpoint_dir, checkpoint_every, resume_from, allow),
                progress_bar=progress_bar,
                device=device,
            )

    def _batches(self, data: Any, batch_size: int | None, key: str | None) -> InMemory | Stream:
        def as_batch(name, item):
            return self._as_data(name, item, key)

        if is_array(data, self.base.event_shape):
            data = as_batch("data", data)
            self._processes.check_same("the data's shape", tuple(data.shape))
            return InMemory(data, batch_size, self._processes)
        return Stream(data, as_batch, self._processes)

    def _share_randomness(self):
        """The first process's random numbers in all of them: each takes its own rows of what is drawn."""
        if self._processes.size > 1:
            device = self.log_partition.device
            set_rng_state(self._processes.of_first(get_rng_state(device)), device)
            self._processes.check_same("the seed of PyTorch", torch.initial_seed())

    def _draws(self, num, method):
        """Base draws of this process, `num` of those of all processes."""
        if self._processes.size == 1:
            return getattr(self.base, method)((num,))
        latent_prior, generator = decompose(self.base)
        z = self._processes.rows(getattr(latent_prior, method)((num * self._processes.size,)))
        return over_batch(generator, z, len(latent_prior.event_shape))

    def _as_data(self, name, data, key=None):
        return finite_tensor(name, data, self.base.event_shape, self.log_partition, key)

    def _fingerprint(self, batches, **more):
        return Fingerprint.of(
            **batches.described,
            **more,
            seed=torch.initial_seed(),
            base=f"{type(self.base).__name__} {tuple(self.base.event_shape)} {_network(trained_part(self.base))}",
            energy=_network(self.guide.energy),
            base_optim=None if self.base_optim is None else self.base_optim.description,
            energy_optim=None if self.energy_optim is None else self.energy_optim.description,
            objective=self.objective,
            energy_steps=self.energy_steps,
            noise_factor=self.noise_factor,
            ema_decay=self.ema_decay,
            max_grad_norm=self.max_grad_norm,
            penalty=self.guide.penalty,
            log_partition_rate=self.guide.log_partition_rate,
        )

    @property
    def skipped_in_row(self) -> int:
        """The latest bad steps in a row, of the energy or of the base."""
        return max(optim.skipped_in_row for optim in (self.base_optim, self.energy_optim) if optim is not None)

    def state_dict(self) -> dict[str, Any]:
        """Parameters, optimisers, log-partition and counters, as for a `torch.nn.Module`."""
        return {
            **{name: None if part is None else part.state_dict() for name, part in self._parts().items()},
            "base_average": self._base_average,
            "log_partition": self.log_partition,
            **{name: getattr(self, name) for name in _COUNTERS},
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go back to a state from `state_dict`.

        Args:
            state: what `state_dict` returned.
        """
        for name, part in self._parts().items():
            if part is not None:
                part.load_state_dict(state[name])
        if self._base_average is not None:
            self._base_average = [average.clone() for average in state["base_average"]]
        self.log_partition = state["log_partition"].to(self.log_partition)
        for name in _COUNTERS:
            setattr(self, name, state[name])

    def _parts(self):
        energy = self.guide.energy if isinstance(self.guide.energy, torch.nn.Module) else None
        return {
            "base": trained_part(self.base),
            "energy": energy,
            "base_optim": self.base_optim,
            "energy_optim": self.energy_optim,
            "chains": self._chains,
        }

    def _held_out(self, run, data, every, keep_best, patience):
        if every is not None:
            data = self._as_data("validation data", data)
        return HeldOut(
            every,
            lambda: self._held_out_energies(data),
            self._best if keep_best else None,
            has_density=has_density(self.base),
            base_is_trained=self.base_optim is not None,
            energy_is_trained=self.energy_optim is not None,
            patience=patience,
        )

    def _held_out_energies(self, data):
        """What a look at held-out data sees, with the averaged base."""
        with evaluation_mode(self.guide.energy), random_stream(self.num_steps_taken, data.device):
            return self._energies_on(self._averaged_base(), data, None, LOOK_DRAWS)

    @torch.no_grad()
    def _energies_on(self, base, data, tolerance, max_draws):
        energy, size = self.guide.energy, chunk_size(tuple(base.event_shape), len(data))
        of_data = torch.cat([energy(chunk) for chunk in data.split(size)]).cpu().numpy()
        log_density = without_validation(base).log_prob(data.clone()).cpu().numpy() if has_density(base) else None
        weights = weight_sums(base, energy, tolerance_of(tolerance, of_data), max_draws)
        counts = callable(getattr(self.objective, "energy_loss", None))
        return HeldOutEnergies(of_data, weights, log_density, counts)

    def _averaged_base(self):
        """A copy of the base, as a result holds it."""
        base = snapshot(self.base)
        if self._base_average is not None:
            with torch.no_grad():
                for new, old, average in zip(_parameters(base), _parameters(self.base), self._averages()):
                    new.copy_(old if average is None else average)
        return base

    def _best(self):
        """A copy of what a result holds, as state dictionaries."""
        parts = {"base": trained_part(self._averaged_base()), "energy": copy_of_values(self._parts()["energy"])}
        return {name: None if part is None else part.state_dict() for name, part in parts.items()}

    def _result(self, run, held_out, settle_draws):
        base, energy = self._averaged_base(), copy_of_values(self.guide.energy)
        if isinstance(energy, torch.nn.Module):
            energy.eval().requires_grad_(False)
        for name, part in (("base", trained_part(base)), ("energy", energy)):
            if held_out.best is not None and held_out.best[name] is not None:
                cast(torch.nn.Module, part).load_state_dict(held_out.best[name])
        if settle_draws == 0:
            log_partition = self.log_partition.clone()
        else:
            used = self.num_steps_taken * run.batches.batch_size * self.noise_factor
            log_partition = settle_log_partition(base, energy, max_draws=settle_draws or most_draws(used))
        guide = KALEGuide(
            energy,
            log_partition=log_partition,
            log_partition_rate=self.guide.log_partition_rate,
            penalty=self.guide.penalty,
        )
        return KALEResult(GEBM(base, energy, log_partition=log_partition), run.losses, guide, held_out.curve())

    def _averages(self):
        """The moving average of every parameter of the base, None for one that is not trained."""
        trained = () if self.base_optim is None else self.base_optim.parameters
        averages = {id(p): a for p, a in zip(trained, self._base_average or ())}
        return [averages.get(id(p)) for p in _parameters(self.base)]

    def _energy_step(self, batch):
        energy = self.guide.energy
        with torch.no_grad():
            draws = self._draws(self.noise_factor * len(batch), "sample")
        with torch.set_grad_enabled(self.energy_optim is not None):
            own = energy(torch.cat([batch, draws])).split([len(batch), len(draws)])
            energy_data, energy_base = map(self._processes.gather, own)
            value = kale(energy_data.detach(), energy_base.detach(), self.log_partition)
            estimate = batch_log_partition(energy_base.detach())
            penalty, norm, outlier = torch.zeros_like(value), torch.zeros_like(value), False
            if self.energy_optim is None:
                ok = bool(torch.isfinite(value))
            else:
                if self.guide.penalty is not None:
                    with self._own_randomness():
                        penalty = self.guide.penalty(energy, batch, draws) / self._processes.size
                of_chains = None if self._chains is None else energy(self._chains.move())
                energies = Energies(energy_data, energy_base, of_chains, self.log_partition)
                loss = penalty + self.objective.energy_loss(energies)
                ok, norm, outlier = self.energy_optim.apply(loss, *self._watched(energy_data.detach().mean(), estimate))
        if ok:
            rate, since = self.guide.log_partition_rate, self.num_steps_taken - LOG_PARTITION_WARMUP
            if outlier:  # that was applied
                self.log_partition = estimate
            elif since < 0:
                self.log_partition = newton_step(self.log_partition, estimate, rate)
            else:
                self.log_partition = gradient_step(self.log_partition, estimate, decayed_rate(rate, since))
        self.num_skipped += not ok
        self.num_steps_taken += 1
        self.in_cycle += 1
        (penalty,) = self._processes.sum([penalty.detach()])
        return KALELosses(value, penalty, self.log_partition, norm, torch.zeros_like(norm))

    def _own_randomness(self):
        """Random numbers of this process and this step; one process alone takes those that there are."""
        if self._processes.size == 1:
            return contextlib.nullcontext()
        return random_stream(
            -1 - self.num_steps_taken * self._processes.size - self._processes.rank, self.log_partition.device
        )

    def _watched(self, of_data, estimate) -> tuple[tuple[torch.Tensor, ...], Callable[..., tuple[bool, bool]]]:
        """What tells that the energy has run away, and that a batch puts log Z far above A; of objectives like KALE."""
        if self.max_grad_norm == math.inf or not isinstance(self.objective, KALEObjective):
            return (), lambda: (False, False)

        def judge(bound, log_ratio):
            return abs(bound) > MAX_BOUND, self.num_steps_taken >= MIN_STEPS and log_ratio > MAX_LOG_RATIO

        return (of_data + estimate, estimate - self.log_partition), judge

    def _base_step(self, batch):
        """A base step; the norm of its gradient."""
        self.base_steps_taken += 1
        self.in_cycle = 0
        if self.base_optim is None:
            return torch.zeros_like(self.log_partition)
        num = self.noise_factor * len(batch)
        loss = self.objective.base_loss(
            self.base, batch, lambda: self._processes.gather(self.guide.energy(self._draws(num, "rsample")))
        )
        ok, norm, _ = self.base_optim.apply(loss)
        self.num_skipped += not ok
        if self._base_average is not None and self.ema_decay is not None:
            parameters = [p.detach() for p in self.base_optim.parameters]
            weight = 1.0 - self.ema_decay
            torch._foreach_lerp_(self._base_average, parameters, weight)  # pyright: ignore[reportPrivateImportUsage]
        return norm


#: What `KALE.state_dict` holds besides the parts.
_COUNTERS = ("num_steps_taken", "base_steps_taken", "in_cycle", "num_skipped")


def _unfrozen(part):
    """A copy of a base or a network whose parameters can be trained."""
    new = copy_of_values(part)
    module = new if isinstance(new, torch.nn.Module) else trained_part(new)
    assert module is not None  # it has parameters
    module.train().requires_grad_(True)
    return new


def _network(network):
    """A network in a fingerprint: its settings, and names and shapes of its arrays."""
    if not isinstance(network, torch.nn.Module):
        return describe(network)
    shapes = {name: tuple(value.shape) for name, value in network.state_dict().items()}
    return one_line(f"{getattr(network, 'config', '')} {network} {shapes}")


def _energy_parameters(energy):
    return list(energy.parameters()) if isinstance(energy, torch.nn.Module) else []


def _parameters(base):
    part = trained_part(base)
    return [] if part is None else list(part.parameters())
