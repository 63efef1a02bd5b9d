"""Training of an energy on draws of its own model: a population of chains that follows it."""

import copy
import math
from collections.abc import Callable, Collection
from functools import partial
from typing import Any, NamedTuple, cast

import torch
from torch.distributions import Distribution

from gebm.checkpoint_files import Checkpoints, fitting
from gebm.evaluation import Evaluation, chunk_size
from gebm.fingerprint import Fingerprint
from gebm.held_out import HeldOut, HeldOutEnergies, ValidationCurve
from gebm.ladder import Points
from gebm.refinement import (
    MAX_BACKS,
    MIN_PARENTS,
    NUM_CANDIDATES,
    RECOVERY,
    STEP_RATE,
    TARGET_ACCEPT_PROB,
    CarriedLogPartition,
    Control,
    carried,
    collapsed,
    gap_closed,
    progress,
    warn_if_few_ancestors,
)
from gebm.training import PATIENCE, drive
from gebm.weights import NUM_GROUPS, LogPartition
from pyro_gebm.base import has_density, snapshot, without_validation
from pyro_gebm.callables import copy_of_values, evaluation_mode
from pyro_gebm.dynamics.isir import isir
from pyro_gebm.dynamics.metropolis import mala_step
from pyro_gebm.gebm import GEBM
from pyro_gebm.infer.ladder.smc import SMC
from pyro_gebm.infer.ladder.tempering import Ladder, potential_at, systematic_resample
from pyro_gebm.training.checkpoints import read_latest_checkpoint, write_checkpoint
from pyro_gebm.training.guide import KALEGuide
from pyro_gebm.training.loop import Optimizer, Run

__all__ = ["Looks", "Refinement", "RefinementLosses", "RefinementResult", "refine"]


class RefinementLosses(NamedTuple):
    """KALE of the batch at A, penalty, A, effective share of weights, distinct ancestors, steps back, gradient norm.

    Scalars of a step, curves of a run. `ess_share`, `ancestors` and `backs` are of the last look at the population.
    """

    kale: torch.Tensor
    penalty: torch.Tensor
    log_partition: torch.Tensor
    ess_share: torch.Tensor
    ancestors: torch.Tensor
    backs: torch.Tensor
    energy_grad_norm: torch.Tensor


class RefinementResult(NamedTuple):
    """What `KALE.refine` returns.

    `gebm` is a snapshot in evaluation mode with the A that the population carried, `log_partition` that A with its
    error; `guide` is the trained critic. With `validation`, they are of the best state, and `gap_closed` is by how much
    held-out KALE rose, in nats. `latents` are the population at the end, draws of the model of the last state.
    """

    gebm: GEBM
    losses: RefinementLosses
    guide: KALEGuide
    validation: ValidationCurve | None
    log_partition: LogPartition
    gap_closed: Evaluation | None
    latents: torch.Tensor


class Refinement:
    r"""An energy, and a population of chains at equilibrium of an earlier state of it (the reference).

    The loss is that of Donsker and Varadhan with the model as base: with weights $w_i = e^{E_{ref}(x_i) - E(x_i)}$,

    .. math:: \mathbb{E}_P[E] + \log \tfrac1n \sum_i w_i .

    Args:
        base: a fixed base.
        guide: energy, trained in place, and its penalty.
        energy_optim: factory of its optimiser.
        parameters: those that are trained.
        control: a `Control`.
        max_grad_norm: as for `KALE`.
        noise_factor: chains per data point in a step.
        start: draws the population; without, it is one of the prior, and a checkpoint must follow.
        progress_bar: show one meanwhile.
    """

    def __init__(
        self,
        base: Distribution,
        guide: KALEGuide,
        energy_optim: Callable[[list], Any],
        parameters: list[torch.nn.Parameter],
        control: Control,
        *,
        max_grad_norm: float | None,
        noise_factor: int,
        start: bool = True,
        progress_bar: bool = False,
    ) -> None:
        self.base, self.guide, self.control, self.noise_factor = base, guide, control, noise_factor
        self.energy_optim = Optimizer("energy_optim", energy_optim, parameters, max_grad_norm)
        self.energy = cast(torch.nn.Module, guide.energy)  # it has parameters
        self.reference = copy_of_values(self.energy).eval().requires_grad_(False)
        self.has_density = has_density(base)
        self._of_reference = Ladder(GEBM(base, self.reference, validate_args=False).latent)
        self.base_steps_taken = self.num_skipped = self.backs = self.backs_in_row = 0
        num = control.num_chains
        if start:
            latent = GEBM(base, self.reference, validate_args=False).latent
            found = SMC(num_particles=-(-num // NUM_GROUPS) * NUM_GROUPS).run(latent, progress_bar=progress_bar)
            u, self.log_partition = self._of_reference.unconstrain(found.z[:num]), found.log_partition.value
            self.std_error = found.log_partition.std_error
        else:
            u, self.log_partition, self.std_error = self._of_reference.sample_prior(num), 0.0, 0.0
        self.start_log_partition = self.log_partition
        self.points: Points[torch.Tensor] = self._of_reference.evaluate(u)
        self.ancestors = torch.arange(num, device=u.device)
        self.log_step = torch.full((), math.log(0.5), dtype=u.dtype, device=u.device)
        self.log_increment, self.ess_share, self.num_ancestors = 0.0, 1.0, self._halves()[1]
        self._good = self._copy()

    # --- One step

    def take_step(self, batch: torch.Tensor) -> RefinementLosses:
        """One step of the energy on a batch, and perhaps a look at the population."""
        half = self.control.num_trained_on
        num = min(self.noise_factor * len(batch), half)
        rows = torch.randperm(half, device=batch.device)[:num]
        block = self._moved(self.points.map(lambda x: x[rows]), 1)
        self.points = self.points.map(lambda x, new: x.index_copy(0, rows, new), block)
        x = self._decoded(block.u)
        of_data, of_chains = self.energy(torch.cat([batch, x])).split([len(batch), len(x)])
        penalty = torch.zeros_like(of_data[0].detach())
        if self.guide.penalty is not None:
            penalty = self.guide.penalty(self.energy, batch, x)
        log_mean_weight = torch.logsumexp(-of_chains - block.neg_beta_energy, 0) - math.log(num)
        ok, norm, _ = self.energy_optim.apply(of_data.mean() + log_mean_weight + penalty)
        self.num_skipped += not ok
        self.base_steps_taken += 1
        if self.base_steps_taken % self.control.look_every == 0:
            self._look()
        now = self.log_partition + self.log_increment
        A, share, ancestors, backs = map(norm.new_tensor, (now, self.ess_share, self.num_ancestors, self.backs))
        return RefinementLosses(-of_data.mean().detach() - now, penalty.detach(), A, share, ancestors, backs, norm)

    @property
    def has_collapsed(self) -> bool:
        """Whether training went back too often."""
        return self.backs_in_row >= MAX_BACKS

    @property
    def skipped_in_row(self) -> int:
        """The latest steps in a row that were not applied; as many as end a run where training went back too often."""
        return PATIENCE if self.has_collapsed else self.energy_optim.skipped_in_row

    def best(self) -> dict[str, Any]:
        """A copy of what a result holds."""
        return {"energy": copy.deepcopy(self.energy.state_dict()), "carried": list(self.carried())}

    def _moved(self, points: Points[torch.Tensor], num_steps: int) -> Points[torch.Tensor]:
        """Points after MALA steps under the reference."""
        for _ in range(num_steps):
            log_step = self.log_step.expand(points.neg_beta_energy.shape)
            moved, accept_prob = mala_step(points, log_step, self._of_reference.evaluate, _log_density_and_grad)
            points = cast(Points[torch.Tensor], moved)
            self.log_step = self.log_step + STEP_RATE * (accept_prob.mean() - TARGET_ACCEPT_PROB)
        return points

    @torch.no_grad()
    def _decoded(self, u):
        return self._of_reference.decode(u)

    @torch.no_grad()
    def _energy(self, x):
        """The present energy, in evaluation mode and in pieces."""
        with evaluation_mode(self.energy):
            size = chunk_size(tuple(self.base.event_shape), len(x))
            return torch.cat([self.energy(chunk) for chunk in x.split(size)])

    def log_weights(self, rows: torch.Tensor | slice = slice(None)) -> torch.Tensor:
        """Log-weights of chains: the reference minus the present energy."""
        points = self.points.map(lambda x: x[rows])
        return -self._energy(self._decoded(points.u)) - points.neg_beta_energy

    # --- The population

    def _look(self):
        """Go on, update the population, or go back."""
        (half, rest), most = self._halves(), self.control.num_looked_at
        rows = [torch.randperm(n, device=self.points.u.device)[:most] for n in (half, rest)]
        share, increment = _share_and_mean(self.log_weights(torch.cat([rows[0], half + rows[1]])), most)
        if not share >= self.control.step_back_below:  # NaN too
            self._go_back()
        elif share < self.control.resample_below:
            self.update()
        else:
            self.log_increment, self.ess_share = increment, share

    def update(self) -> None:
        """Make the present energy the reference: resample the population, move it, carry A along; or go back."""
        self.points = self._moved(self.points, self.control.num_moves)  # away from where the energy was trained
        log_weights = self.log_weights()
        half, _ = self._halves()
        share, increment = _share_and_mean(log_weights, half)
        num = self.control.num_chains
        if not share >= self.control.step_back_below:
            return self._go_back()
        index = self._resampled(log_weights)
        if min(len(index[:half].unique()), len(index[half:].unique())) < MIN_PARENTS * half:
            return self._go_back()
        self.log_partition += increment
        self.reference.load_state_dict(self.energy.state_dict())
        self.ancestors, u = self.ancestors[index], self.points.u[index]
        restarted = torch.randperm(num, device=u.device)[: self.control.num_restarted]
        u = u.index_copy(0, restarted, self._offered_a_start(u[restarted]))
        self.points = self._of_reference.evaluate(u)
        self.log_increment, self.ess_share, self.num_ancestors = 0.0, 1.0, len(self.ancestors[half:].unique())
        self.backs_in_row = 0
        self.energy_optim.rate_scale = min(1.0, RECOVERY * self.energy_optim.rate_scale)
        self._good = self._copy()

    def _halves(self):
        """Chains that are trained on, and chains that carry log Z."""
        half = self.control.num_trained_on
        return half, self.control.num_chains - half

    def _resampled(self, log_weights):
        """Indices of chains, resampled in each half."""
        half = self.control.num_trained_on
        return torch.cat([systematic_resample(log_weights[:half]), half + systematic_resample(log_weights[half:])])

    @torch.no_grad()
    def _offered_a_start(self, u):
        """Positions after a global move to fresh draws of the prior."""
        ladder = self._of_reference

        def propose(n):
            new = ladder.sample_prior(n * len(u))
            return new.reshape(n, *u.shape), ladder.neg_beta_energy(new).reshape(n, len(u))

        return isir(u, ladder.neg_beta_energy(u), propose, NUM_CANDIDATES)[0]

    def _go_back(self):
        backs, backs_in_row, scale = self.backs + 1, self.backs_in_row + 1, self.energy_optim.rate_scale / 2.0
        taken, skipped = self.base_steps_taken, self.num_skipped
        self._restore(self._good)
        self.backs, self.backs_in_row, self.energy_optim.rate_scale = backs, backs_in_row, scale
        self.base_steps_taken, self.num_skipped = taken, skipped

    # --- Its state

    def carried(self) -> CarriedLogPartition:
        """A of the present energy."""
        half = self.control.num_trained_on
        log_weights, ancestors = (x.cpu().numpy() for x in (self.log_weights(slice(half, None)), self.ancestors[half:]))
        return carried(self.log_partition, self.std_error, log_weights, ancestors)

    def held_out(self, data: torch.Tensor) -> HeldOutEnergies:
        """What a look at held-out data sees."""
        log_density = None
        if self.has_density:
            with torch.no_grad():
                log_density = without_validation(self.base).log_prob(data.clone()).cpu().numpy()
        return HeldOutEnergies(self._energy(data).cpu().numpy(), self.carried(), log_density, True)

    def latents(self) -> torch.Tensor:
        """The population, resampled to be draws of the latent law of the present energy."""
        return self._of_reference.constrain(self.points.u[self._resampled(self.log_weights())])

    def _copy(self):
        state = {name: getattr(self, name) for name in _NUMBERS}
        state |= {"points": list(self.points), "ancestors": self.ancestors}
        parts = {"energy": self.energy, "reference": self.reference, "energy_optim": self.energy_optim}
        return state | {name: copy.deepcopy(part.state_dict()) for name, part in parts.items()}

    def _restore(self, state):
        for name in _NUMBERS:
            setattr(self, name, state[name])
        self.points, self.ancestors = Points(*state["points"]), state["ancestors"]
        self.energy.load_state_dict(state["energy"])
        self.reference.load_state_dict(state["reference"])
        self.energy_optim.load_state_dict(copy.deepcopy(state["energy_optim"]))

    def state_dict(self) -> dict[str, Any]:
        """Everything that training changes, and the state that it may go back to."""
        return {**self._copy(), "good": self._good}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go back to a state from `state_dict`.

        Args:
            state: what `state_dict` returned.
        """
        self._restore(state)
        self._good = copy.deepcopy(state["good"])


class Looks(NamedTuple):
    """When a run looks at held-out data, whether it keeps the best state, and when it stops early."""

    every: int | None
    keep_best: bool
    patience: int | None


def refine(
    training: Refinement,
    num_steps: int,
    batches: Any,
    validation: torch.Tensor | None,
    fingerprint: Fingerprint,
    looks: Looks,
    *,
    checkpoints: tuple[Any, int | None, Any, Collection[str]],
    progress_bar: bool,
    device: torch.device,
) -> RefinementResult:
    """Run a `Refinement`.

    Args:
        training: the `Refinement`.
        num_steps: of the whole run.
        batches: see `batches`.
        validation: held-out data, or None.
        fingerprint: of the run.
        looks: when to look at them.
        checkpoints: folder, steps between two, folder to resume from, and what may differ.
        progress_bar: show it.
        device: that of the training.

    Returns:
        A `RefinementResult`.
    """
    folder, every, resume_from, allow = checkpoints
    explain = lambda training: collapsed(training.backs, training.control) if training.has_collapsed else None  # noqa: E731
    advice = "The energy is trained in place; a run with `resume_from=` makes the result again."
    run = Run(training, training.take_step, batches, RefinementLosses, device, explain, advice)
    start = copy_of_values(training.energy)
    held_out = HeldOut(
        looks.every,
        lambda: training.held_out(cast(torch.Tensor, validation)),
        training.best if looks.keep_best else None,
        has_density=training.has_density,
        base_is_trained=False,
        patience=looks.patience,
    )
    if resume_from is not None:
        check = partial(fingerprint.check, allow=allow, source=resume_from)
        saved = read_latest_checkpoint(resume_from, device, check)
        with fitting(resume_from):
            start.load_state_dict(saved["start"])
            run.resume(saved)
            held_out.resume(saved.get("held_out"), saved.get("best"))

    def write(directory, step, run):
        kept = {} if looks.every is None else {"held_out": held_out.rows.tolist(), "best": held_out.best}
        write_checkpoint(directory, step, {**run.checkpoint(), "start": start.state_dict(), **kept}, fingerprint)

    def finish():
        guide, at_start = training.guide, training.start_log_partition
        energy, found = copy_of_values(training.energy).eval().requires_grad_(False), training.carried()
        if held_out.best is not None:
            energy.load_state_dict(held_out.best["energy"])
            found = CarriedLogPartition(*held_out.best["carried"])
        warn_if_few_ancestors(found, training.backs, stacklevel=5)
        closed = None
        if validation is not None:
            with torch.no_grad():
                of_start, of_end = (e(validation).cpu().numpy() for e in (start.eval(), energy))
            closed = gap_closed(of_start, of_end, at_start, found)
        A = torch.tensor(found.log_partition, dtype=training.points.u.dtype, device=device)
        gebm = GEBM(snapshot(training.base), energy, log_partition=A)
        new = KALEGuide(energy, log_partition=A, log_partition_rate=guide.log_partition_rate, penalty=guide.penalty)
        log_partition = LogPartition(found.log_partition, found.std_error, found.ess, math.nan, ())
        return RefinementResult(gebm, run.losses, new, held_out.curve(), log_partition, closed, training.latents())

    writer = Checkpoints(folder, every, write)
    result = drive(run, num_steps, writer, held_out, progress, finish, progress_bar=progress_bar)
    held_out.warn(run.losses.kale.numpy(), stacklevel=3)
    return result


#: Numbers among the state of a `Refinement`.
_NUMBERS = (
    *("base_steps_taken", "num_skipped", "backs", "backs_in_row", "log_partition", "std_error"),
    "start_log_partition",
    *("log_step", "log_increment", "ess_share", "num_ancestors"),
)


def _log_density_and_grad(points):
    potential, grad = potential_at(points, 1.0)
    return -potential, -grad


def _share_and_mean(log_weights, half):
    """The lower effective share of both halves, NaN if it is not finite, and the log of the second's mean weight."""
    shares, means = [], []
    for part in (log_weights[:half], log_weights[half:]):
        total = torch.logsumexp(part, 0)
        shares.append(torch.exp(2.0 * total - torch.logsumexp(2.0 * part, 0)) / len(part))
        means.append(total - math.log(len(part)))
    share, mean = torch.stack([torch.minimum(*shares), means[1]]).tolist()
    return share, mean
