"""Training of base and energy together by KALE."""

from collections.abc import Callable, Collection, Iterable
from functools import partial
from os import PathLike
from typing import Any, cast

import torch
from torch.distributions import Distribution

from gebm.batches import is_array
from gebm.checkpoint_files import Checkpoints, fitting
from gebm.fingerprint import Fingerprint, describe, one_line
from gebm.held_out import HeldOut, HeldOutEnergies, check_evaluation, find_every
from gebm.networks import name_of
from gebm.objectives import BaseObjective, Energies, EnergyObjective
from gebm.training import ObjectiveName, check_energy_steps, drive, find_objective, number_of_energy_steps, progress
from gebm.validation import callable_or_none, instance, integer, probability
from pyro_gebm.base import has_density, snapshot, trained_part, without_validation
from pyro_gebm.callables import PrivateRandomness, check_fixed, copy_of_values, evaluation_mode
from pyro_gebm.divergences import batch_log_partition, kale
from pyro_gebm.gebm import GEBM, check_energy, check_generator
from pyro_gebm.training.batches import InMemory, Stream, finite_tensor
from pyro_gebm.training.checkpoints import read_latest_checkpoint, refuse_used, write_checkpoint
from pyro_gebm.training.guide import KALEGuide, decayed_rate, gradient_step, newton_step, settle_log_partition
from pyro_gebm.training.loop import Optimizer, Run, random_stream, trained_parameters
from pyro_gebm.training.objectives import OBJECTIVES
from pyro_gebm.training.results import KALELosses, KALEResult

__all__ = ["KALE"]

#: Energy steps during which the log-partition takes Newton-like steps.
LOG_PARTITION_WARMUP = 100


class KALE:
    r"""Train the base and the energy of a GEBM with one objective; the counterpart of `SVI`.

    .. math:: \min_G \max_{E, A}\; -\mathbb{E}_P[E + A] - \mathbb{E}_G[\exp(-(E + A))] + 1

    `energy_steps` steps of the energy (and of A) alternate with one step of the base, whose gradient uses
    self-normalised weights. A step whose loss or gradient is not finite is skipped. The modules are trained in
    place. Source: arXiv:2003.05033.

    Args:
        base: a `Pushforward`, a `TransformedDistribution`, or with `base_optim=None` any continuous distribution.
        guide: a `KALEGuide`.
        base_optim: factory from parameters to a `torch.optim.Optimizer`, or to a pair of it and a learning-rate
            scheduler that is stepped after every step; None freezes the base.
        energy_optim: the same for the energy; None freezes it.
        objective: "kale"; "donsker_varadhan"; "maximum_likelihood", of a base with a density, for the base alone;
            "contrastive_divergence", for the energy alone, with persistent MALA chains in the latent space; or an
            object, see `training.Objective`.
        energy_steps: energy steps per base step: a number, or a callable of the base step's number, such as
            `energy_bursts()`.
        noise_factor: base draws per data point.
        ema_decay: decay of an exponential moving average of the base, which then is the base of the result; None
            for none.
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
        trainable: Callable[[str], bool] | None = None,
    ) -> None:
        self.base = instance("base", base, Distribution)
        self.guide = instance("guide", guide, KALEGuide)
        self.objective = find_objective(objective, OBJECTIVES, base_optim, energy_optim)
        getattr(self.objective, "check", lambda base: None)(base)
        self.noise_factor = integer("noise_factor", noise_factor)
        self.ema_decay = None if ema_decay is None else probability("ema_decay", ema_decay, zero=True)
        check_energy_steps(energy_steps)
        self.energy_steps = 1 if energy_optim is None or base_optim is None else energy_steps
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
        self.base_optim = None if base_optim is None else Optimizer("base_optim", base_optim, base_parameters)
        self.energy_optim = None if energy_optim is None else Optimizer("energy_optim", energy_optim, energy_parameters)
        self.num_steps_taken = self.base_steps_taken = self.in_cycle = self.num_skipped = 0
        start_chains = getattr(self.objective, "start_chains", None)
        self._chains = None if start_chains is None else start_chains(GEBM(base, guide.energy, validate_args=False))
        self._base_average = None if ema_decay is None else [p.detach().clone() for p in base_parameters]
        log_partition = guide.log_partition
        if log_partition is None:
            with evaluation_mode(trained_part(base), guide.energy), PrivateRandomness():
                log_partition = settle_log_partition(base, guide.energy, num_batches=1)
        self.log_partition = torch.as_tensor(log_partition, dtype=energies.dtype, device=energies.device)

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
        losses = self._energy_step(batch)
        if self.in_cycle >= number_of_energy_steps(self.energy_steps, self.base_steps_taken):
            losses = losses._replace(base_grad_norm=self._base_step(batch))
        return losses

    @torch.no_grad()
    def evaluate(self, data: Any) -> torch.Tensor:
        """The KALE estimate on `data`, from as many fresh base draws, at least 1000.

        Args:
            data: shape `(N,) + event_shape`, in any form that `run` takes.

        Returns:
            Scalar; not negated.

        Raises:
            TypeError: if they are not real numbers.
            ValueError: if the shape does not fit, or values are not finite, or KALE is not.

        Warns:
            UserWarning: if the energy is higher on data than on base draws, as it is with the wrong sign.
        """
        data = self._as_data("data", data)
        with evaluation_mode(trained_part(self.base), self.guide.energy):
            of_data, of_base = _energies_on(self.base, self.guide.energy, data)
        value = kale(of_data, of_base, self.log_partition)
        check_evaluation(float(value), of_data.cpu().numpy(), of_base.cpu().numpy(), stacklevel=4)  # past `no_grad`
        return value

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
            validation: held-out data, an array like `data`: KALE on them along training, with base draws of a
                random stream of their own, so that training is the same with and without them. See `ValidationCurve`.
            validate_every: base steps between two such evaluations, the first at step 0; None takes 25 in a run.
            keep_best: whether `gebm` and `guide` of the result are those of the best value: of KALE, or, while a
                base with a density is trained, of the log-likelihood. While a base without a density is trained, KALE
                falls as it improves: no state counts as best, and the last one is kept.
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
            TrainingDiverged: if losses or gradients are not finite for ten steps in a row; fewer are skipped with
                a warning.
            ResultFailed: for any error after the last step; its `state` is that of the trained parts.
            FileExistsError: if `checkpoint_dir` has checkpoints, and the run does not go on from them.
            FileNotFoundError: if `resume_from` holds no checkpoint.
        """
        num_steps = integer("num_steps", num_steps, minimum=0)
        every = find_every(validate_every, validation is not None, num_steps)
        refuse_used(checkpoint_dir, resume_from=resume_from)
        run = Run(self, self._take_step, self._batches(data, batch_size, key), KALELosses, self.log_partition.device)
        held_out, fingerprint = self._held_out(run, validation, every, keep_best), self._fingerprint(run.batches)
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
        finish = partial(self._result, run, held_out)
        result = drive(run, num_steps, checkpoints, held_out, progress, finish, progress_bar=progress_bar)
        held_out.warn_if_overfitting(run.losses.kale.numpy())
        return result

    def _batches(self, data: Any, batch_size: int | None, key: str | None) -> InMemory | Stream:
        def as_batch(name, item):
            return self._as_data(name, item, key)

        if is_array(data, self.base.event_shape):
            return InMemory(as_batch("data", data), batch_size)
        return Stream(data, as_batch)

    def _as_data(self, name, data, key=None):
        return finite_tensor(name, data, self.base.event_shape, self.log_partition, key)

    def _fingerprint(self, batches):
        return Fingerprint.of(
            **batches.described,
            seed=torch.initial_seed(),
            base=f"{type(self.base).__name__} {tuple(self.base.event_shape)} {_network(trained_part(self.base))}",
            energy=_network(self.guide.energy),
            base_optim=None if self.base_optim is None else self.base_optim.description,
            energy_optim=None if self.energy_optim is None else self.energy_optim.description,
            objective=self.objective,
            energy_steps=self.energy_steps,
            noise_factor=self.noise_factor,
            ema_decay=self.ema_decay,
            penalty=self.guide.penalty,
            log_partition_rate=self.guide.log_partition_rate,
        )

    @property
    def skipped_in_row(self) -> int:
        """The latest steps in a row that were not applied, of the energy or of the base."""
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

    def _held_out(self, run, data, every, keep_best):
        if every is not None:
            data = self._as_data("validation data", data)
        return HeldOut(
            every,
            lambda: self._held_out_energies(data),
            self._best if keep_best else None,
            has_density=has_density(self.base),
            base_is_trained=self.base_optim is not None,
        )

    @torch.no_grad()
    def _held_out_energies(self, data):
        base, energy = self._averaged_base(), self.guide.energy
        with evaluation_mode(energy), random_stream(self.num_steps_taken, data.device):
            log_density = without_validation(base).log_prob(data.clone()).cpu().numpy() if has_density(base) else None
            of_data, of_base = (e.cpu().numpy() for e in _energies_on(base, energy, data))
        counts = callable(getattr(self.objective, "energy_loss", None))
        return HeldOutEnergies(of_data, of_base, self.log_partition.item(), log_density, counts)

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

    def _result(self, run, held_out):
        base, energy = self._averaged_base(), copy_of_values(self.guide.energy)
        if isinstance(energy, torch.nn.Module):
            energy.eval().requires_grad_(False)
        for name, part in (("base", trained_part(base)), ("energy", energy)):
            if held_out.best is not None and held_out.best[name] is not None:
                cast(torch.nn.Module, part).load_state_dict(held_out.best[name])
        settled = settle_log_partition(base, energy)
        guide = KALEGuide(
            energy,
            log_partition=settled,
            log_partition_rate=self.guide.log_partition_rate,
            penalty=self.guide.penalty,
        )
        return KALEResult(GEBM(base, energy, log_partition=settled), run.losses, guide, held_out.curve())

    def _averages(self):
        """The moving average of every parameter of the base, None for one that is not trained."""
        trained = () if self.base_optim is None else self.base_optim.parameters
        averages = {id(p): a for p, a in zip(trained, self._base_average or ())}
        return [averages.get(id(p)) for p in _parameters(self.base)]

    def _energy_step(self, batch):
        energy = self.guide.energy
        with torch.no_grad():
            draws = self.base.sample((self.noise_factor * len(batch),))
        with torch.set_grad_enabled(self.energy_optim is not None):
            energy_data, energy_base = energy(torch.cat([batch, draws])).split([len(batch), len(draws)])
            value = kale(energy_data.detach(), energy_base.detach(), self.log_partition)
            penalty = norm = torch.zeros_like(value)
            if self.energy_optim is None:
                ok = bool(torch.isfinite(value))
            else:
                if self.guide.penalty is not None:
                    penalty = self.guide.penalty(energy, batch, draws)
                of_chains = None if self._chains is None else energy(self._chains.move())
                energies = Energies(energy_data, energy_base, of_chains, self.log_partition)
                ok, norm = self.energy_optim.apply(penalty + self.objective.energy_loss(energies))
        if ok:
            estimate = batch_log_partition(energy_base.detach())
            rate, since = self.guide.log_partition_rate, self.num_steps_taken - LOG_PARTITION_WARMUP
            if since < 0:
                self.log_partition = newton_step(self.log_partition, estimate, rate)
            else:
                self.log_partition = gradient_step(self.log_partition, estimate, decayed_rate(rate, since))
        self.num_skipped += not ok
        self.num_steps_taken += 1
        self.in_cycle += 1
        return KALELosses(value, penalty.detach(), self.log_partition, norm, torch.zeros_like(norm))

    def _base_step(self, batch):
        """A base step; the norm of its gradient."""
        self.base_steps_taken += 1
        self.in_cycle = 0
        if self.base_optim is None:
            return torch.zeros_like(self.log_partition)
        num = self.noise_factor * len(batch)
        loss = self.objective.base_loss(self.base, batch, lambda: self.guide.energy(self.base.rsample((num,))))
        ok, norm = self.base_optim.apply(loss)
        self.num_skipped += not ok
        if self._base_average is not None and self.ema_decay is not None:
            parameters = [p.detach() for p in self.base_optim.parameters]
            weight = 1.0 - self.ema_decay
            torch._foreach_lerp_(self._base_average, parameters, weight)  # pyright: ignore[reportPrivateImportUsage]
        return norm


#: What `KALE.state_dict` holds besides the parts.
_COUNTERS = ("num_steps_taken", "base_steps_taken", "in_cycle", "num_skipped")


def _energies_on(base, energy, data):
    """Energies of data and of as many base draws, at least 1000; in pieces."""
    chunks, num = data.split(1000), max(len(data), 1000)
    draws = (base.sample((min(1000, num - i),)) for i in range(0, num, 1000))
    return torch.cat([energy(chunk) for chunk in chunks]), torch.cat([energy(chunk) for chunk in draws])


def _network(network):
    """A network in a fingerprint: its settings, and names and shapes of its arrays."""
    if not isinstance(network, torch.nn.Module):
        return describe(network)
    shapes = {name: tuple(value.shape) for name, value in network.state_dict().items()}
    return one_line(f"{getattr(network, 'config', '')} {network} {shapes}")


def _parameters(base):
    part = trained_part(base)
    return [] if part is None else list(part.parameters())
