"""Training of base and energy together by KALE."""

import copy
import time
import warnings

import torch
from tqdm import tqdm

from gebm.checkpoint_files import Checkpoints
from gebm.errors import TrainingDiverged
from pyro_gebm.base import snapshot, trained_part
from pyro_gebm.callables import evaluation_mode
from pyro_gebm.divergences import base_loss, batch_log_partition, donsker_varadhan, kale
from pyro_gebm.gebm import GEBM, check_energy
from pyro_gebm.training.batches import InMemory, Stream, check_shape
from pyro_gebm.training.checkpoints import get_rng_state, read_latest_checkpoint, set_rng_state, write_checkpoint
from pyro_gebm.training.contrastive import Chains
from pyro_gebm.training.guide import KALEGuide, decayed_rate, gradient_step, newton_step, settle_log_partition
from pyro_gebm.training.loop import (
    PATIENCE,
    KALELosses,
    KALEResult,
    Optimizer,
    check_arguments,
    shown,
    trained_parameters,
)

__all__ = ["KALE"]

#: Energy steps during which the log-partition takes Newton-like steps.
LOG_PARTITION_WARMUP = 100
#: Most base steps between two looks at the losses; results do not depend on it.
CHUNK = 100


class KALE:
    r"""Train the base and the energy of a GEBM with one objective; the counterpart of `SVI`.

    .. math:: \min_G \max_{E, A}\; -\mathbb{E}_P[E + A] - \mathbb{E}_G[\exp(-(E + A))] + 1

    `energy_steps` steps of the energy (and of A) alternate with one step of the base, whose gradient uses
    self-normalised weights. A step whose loss or gradient is not finite is not applied. The modules are trained in
    place. Source: arXiv:2003.05033.

    Args:
        base: a `Pushforward`, a `TransformedDistribution`, or with `base_optim=None` any continuous distribution.
        guide: a `KALEGuide`.
        base_optim: factory from parameters to a `torch.optim.Optimizer`, or to a pair of it and a learning-rate
            scheduler that is stepped after every step; None freezes the base.
        energy_optim: the same for the energy; None freezes it.
        objective: "kale"; "donsker_varadhan"; "maximum_likelihood", of a base with a density, for the base alone; or
            "contrastive_divergence", for the energy alone, with persistent MALA chains in the latent space.
        energy_steps: energy steps per base step: a number, or a callable of the base step's number, such as
            `energy_bursts()`.
        noise_factor: base draws per data point.
        ema_decay: decay of an exponential moving average of the base, which then is the base of the result; None
            for none.
        trainable: callable from the name of a parameter (`base.layers.0.weight`, `energy.layers.1.bias`, as in a
            saved file) to whether it is trained; None trains every one that requires a gradient.

    Raises:
        ValueError: if both optimisers are None, or one is given for a part without parameters.
        TypeError: if an optimiser is not a factory (a `pyro.optim` object, or a built optimiser).

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
        energies = check_energy(base, guide.energy)
        self.base, self.guide = base, guide
        self.objective, self.noise_factor, self.ema_decay = objective, noise_factor, ema_decay
        self.energy_steps = 1 if energy_optim is None or base_optim is None else energy_steps
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
        self._chains = None
        if objective == "contrastive_divergence":
            self._chains = Chains(GEBM(base, guide.energy, validate_args=False))
        self._base_average = None if ema_decay is None else [p.detach().clone() for p in base_parameters]
        log_partition = guide.log_partition
        if log_partition is None:
            with evaluation_mode(trained_part(base), guide.energy):
                log_partition = settle_log_partition(base, guide.energy, num_batches=1)
        self.log_partition = torch.as_tensor(log_partition, dtype=energies.dtype, device=energies.device)

    def step(self, batch):
        """One energy step on a batch and, after `energy_steps` of them, one base step.

        Args:
            batch: data of shape `(N,) + event_shape`.

        Returns:
            `KALELosses` of scalars.
        """
        losses = self._energy_step(batch)
        if self.in_cycle >= self._energy_steps_now():
            losses = losses._replace(base_grad_norm=self._base_step(batch))
        return losses

    @torch.no_grad()
    def evaluate(self, data):
        """The KALE estimate on `data`, from as many fresh base draws.

        Args:
            data: shape `(N,) + event_shape`.

        Returns:
            Scalar; not negated.
        """
        check_shape(data, self.base.event_shape)
        data = torch.as_tensor(data, dtype=self.log_partition.dtype, device=self.log_partition.device)
        with evaluation_mode(trained_part(self.base), self.guide.energy):
            chunks = data.split(1000)
            energy_data = torch.cat([self.guide.energy(chunk) for chunk in chunks])
            energy_base = torch.cat([self.guide.energy(self.base.sample((len(chunk),))) for chunk in chunks])
        return kale(energy_data, energy_base, self.log_partition)

    def run(
        self,
        num_steps,
        data,
        *,
        batch_size=None,
        progress_bar=True,
        checkpoint_dir=None,
        checkpoint_every=None,
        resume_from=None,
    ):
        """Train for `num_steps` base steps (energy steps, when the base is frozen).

        Args:
            num_steps: number of base steps; with `resume_from` those of the interrupted run are among them.
            data: tensor or array of shape `(N,) + event_shape`, reshuffled every epoch, or an iterable of batches of
                one shape (a `DataLoader` is iterated again when it ends; of a tuple the first entry is taken).
            batch_size: data points a step, at most N; not used with an iterable.
            progress_bar: show KALE, A, the penalty and the gradient norms while training.
            checkpoint_dir: folder for checkpoints: parameters, optimisers, random state and position in the data.
                They are written atomically and the last three are kept.
            checkpoint_every: base steps between checkpoints; one is written at the start and one at the end as well.
            resume_from: folder (or file) to resume from, on the CPU bit for bit as if there had been no interruption.
                A damaged newest checkpoint is passed over with a warning.

        Returns:
            A `KALEResult`.

        Raises:
            ValueError: if the data do not fit the base or are fewer than a batch, contain values that are not finite,
                or end too soon.
            TrainingDiverged: if losses or gradients are not finite ten steps in a row; a few of them are skipped with
                a warning.
            FileNotFoundError: if `resume_from` holds no checkpoint.
        """
        if hasattr(data, "shape"):
            batches = InMemory(data, self.base.event_shape, batch_size, self.log_partition)
        else:
            batches = Stream(data, self.base.event_shape, self.log_partition)
        checkpoints = Checkpoints(checkpoint_dir, checkpoint_every, write_checkpoint)
        first, curves = self.base_steps_taken, []
        if resume_from is not None:
            first, curves = self._resume(read_latest_checkpoint(resume_from, self.log_partition.device), batches)
        skipped, count, good = self.num_skipped, 1, copy.deepcopy(self.state_dict())

        initial = self.base_steps_taken - first
        with tqdm(total=num_steps, initial=initial, disable=not progress_bar, desc="KALE", unit="step") as bar:
            while (done := self.base_steps_taken - first) < num_steps:
                checkpoints.write_if_due(done, self._checkpoint(batches, first, curves))
                start = time.perf_counter()
                count = min(count, num_steps - done, checkpoints.until_next(done))
                chunk = torch.stack([self._cycle(batches, good) for _ in range(count)]).cpu()
                curves.append(chunk)
                good = good if self._skipped_in_row() else copy.deepcopy(self.state_dict())
                bar.update(count)
                bar.set_postfix(shown(KALELosses(*chunk.unbind(1)), self.num_skipped - skipped))
                # look about once a second
                count = max(1, min(CHUNK, 2 * count, int(count / (time.perf_counter() - start))))
        checkpoints.write(num_steps, self._checkpoint(batches, first, curves))
        if self.num_skipped > skipped:
            warnings.warn(
                f"{self.num_skipped - skipped} steps were not applied: their loss or gradient was not finite.",
                RuntimeWarning,
                stacklevel=2,
            )
        curves = torch.cat(curves) if curves else torch.zeros(0, len(KALELosses._fields))
        return self._result(KALELosses(*curves.unbind(1)))

    def state_dict(self):
        """Parameters, optimisers, log-partition and counters, as for a `torch.nn.Module`."""
        return {
            **{name: None if part is None else part.state_dict() for name, part in self._parts().items()},
            "base_average": self._base_average,
            "log_partition": self.log_partition,
            **{name: getattr(self, name) for name in _COUNTERS},
        }

    def load_state_dict(self, state):
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

    def _checkpoint(self, batches, first, curves):
        return {
            "training": self.state_dict(),
            "batches": batches.state_dict(),
            "rng": get_rng_state(self.log_partition.device),
            "first": first,
            "losses": torch.cat(curves) if curves else None,
        }

    def _resume(self, state, batches):
        """Go back to a checkpoint: base steps taken before its run, and the losses of the run so far."""
        self.load_state_dict(state["training"])
        batches.load_state_dict(state["batches"])
        set_rng_state(state["rng"], self.log_partition.device)
        return state["first"], [] if state["losses"] is None else [state["losses"].cpu()]

    def _cycle(self, batches, good):
        """One base step after its energy steps; the mean of their losses."""
        rows, before = [], self.base_steps_taken
        while self.base_steps_taken == before:
            losses = self.step(batches.next())
            rows.append(torch.stack(losses[:-1]))
            self._stop_if_diverged(good)
        return torch.cat([torch.stack(rows).mean(0), losses.base_grad_norm[None]])

    def _skipped_in_row(self):
        return max(optim.skipped_in_row for optim in (self.base_optim, self.energy_optim) if optim is not None)

    def _stop_if_diverged(self, good):
        """Go back to the good state of an earlier look and raise, if the last steps were all bad."""
        if self._skipped_in_row() >= PATIENCE:
            stopped = self.base_steps_taken
            self.load_state_dict(good)
            raise TrainingDiverged(
                f"KALE stopped at base step {stopped}: loss or gradient was not finite {PATIENCE} steps in a row. The "
                f"last good state, of base step {self.base_steps_taken}, is restored (and is `error.state`). Lower the "
                "learning rates, or raise the penalty.",
                good,
            )

    def _result(self, losses):
        base = snapshot(self.base)
        if self._base_average is not None:
            with torch.no_grad():
                for new, old, average in zip(_parameters(base), _parameters(self.base), self._averages()):
                    new.copy_(old if average is None else average)
        energy = copy.deepcopy(self.guide.energy)
        if isinstance(energy, torch.nn.Module):
            energy.eval().requires_grad_(False)
        settled = settle_log_partition(base, energy)
        guide = KALEGuide(
            energy,
            log_partition=settled,
            log_partition_rate=self.guide.log_partition_rate,
            penalty=self.guide.penalty,
        )
        return KALEResult(GEBM(base, energy, log_partition=settled), losses, guide)

    def _averages(self):
        """The moving average of every parameter of the base, None for one that is not trained."""
        averages = {id(p): a for p, a in zip(self.base_optim.parameters, self._base_average)} if self.base_optim else {}
        return [averages.get(id(p)) for p in _parameters(self.base)]

    def _energy_steps_now(self):
        return self.energy_steps(self.base_steps_taken) if callable(self.energy_steps) else self.energy_steps

    def _energy_step(self, batch):
        energy = self.guide.energy
        with torch.no_grad():
            draws = self.base.sample((self.noise_factor * len(batch),))
        with torch.set_grad_enabled(self.energy_optim is not None):
            energy_data, energy_base = energy(torch.cat([batch, draws])).split([len(batch), len(draws)])
            value = objective = kale(energy_data, energy_base, self.log_partition)
            penalty = norm = torch.zeros_like(value)
            if self.energy_optim is None:
                ok = bool(torch.isfinite(value))
            else:
                if self.guide.penalty is not None:
                    penalty = self.guide.penalty(energy, batch, draws)
                if self.objective == "donsker_varadhan":
                    objective = donsker_varadhan(energy_data, energy_base)
                elif self.objective == "contrastive_divergence":
                    objective = energy(self._chains.move()).mean() - energy_data.mean()
                ok, norm = self.energy_optim.apply(penalty - objective)
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
        return KALELosses(value.detach(), penalty.detach(), self.log_partition, norm, torch.zeros_like(norm))

    def _base_step(self, batch):
        """A base step; the norm of its gradient."""
        self.base_steps_taken += 1
        self.in_cycle = 0
        if self.base_optim is None:
            return torch.zeros_like(self.log_partition)
        if self.objective == "maximum_likelihood":
            loss = -self.base.log_prob(batch.clone()).mean()  # a fresh tensor: flows cache by identity
        else:
            loss = base_loss(self.guide.energy(self.base.rsample((self.noise_factor * len(batch),))))
        ok, norm = self.base_optim.apply(loss)
        self.num_skipped += not ok
        if self._base_average is not None:
            parameters = [p.detach() for p in self.base_optim.parameters]
            torch._foreach_lerp_(self._base_average, parameters, 1.0 - self.ema_decay)
        return norm


#: What `KALE.state_dict` holds besides the parts.
_COUNTERS = ("num_steps_taken", "base_steps_taken", "in_cycle", "num_skipped")


def _parameters(base):
    part = trained_part(base)
    return [] if part is None else list(part.parameters())
