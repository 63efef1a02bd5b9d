"""Training of base and energy together by KALE."""

import copy
from typing import NamedTuple

import numpy as np
import torch
from pyro.optim import PyroOptim
from tqdm import tqdm

from pyro_gebm._callables import evaluation_mode
from pyro_gebm.base import snapshot, trained_part
from pyro_gebm.divergences import base_loss, batch_log_partition, donsker_varadhan, kale
from pyro_gebm.gebm import GEBM, check_energy
from pyro_gebm.guide import KALEGuide, gradient_step, newton_step, settle_log_partition

__all__ = ["KALE", "KALELosses", "KALEResult"]

#: Energy steps during which the log-partition takes Newton-like steps.
LOG_PARTITION_WARMUP = 100
#: Steps between two looks at the losses (a host synchronisation); results do not depend on it.
CHUNK = 100


class KALELosses(NamedTuple):
    """KALE estimate (higher is a better energy), penalty and log-partition; scalars of a step, curves of a run."""

    kale: torch.Tensor
    penalty: torch.Tensor
    log_partition: torch.Tensor


class KALEResult(NamedTuple):
    """What `KALE.run` returns.

    `gebm` is a snapshot in evaluation mode with the settled log-partition (`KALE.log_partition` is the raw last
    value); `losses` has one value per step asked for (the mean over its energy steps); `guide` is the trained critic.
    """

    gebm: GEBM
    losses: KALELosses
    guide: KALEGuide


class KALE:
    r"""Train the base and the energy of a GEBM with one objective; the counterpart of `SVI`.

    .. math:: \min_G \max_{E, A}\; -\mathbb{E}_P[E + A] - \mathbb{E}_G[\exp(-(E + A))] + 1

    `energy_steps` steps of the energy (and of A) alternate with one step of the base, whose gradient uses
    self-normalised weights. The modules are trained in place. Source: arXiv:2003.05033.

    Args:
        base: a `Pushforward`, a `TransformedDistribution`, or with `base_optim=None` any continuous distribution.
        guide: a `KALEGuide`.
        base_optim: factory from parameters to a `torch.optim.Optimizer`, or None to freeze the base.
        energy_optim: factory from parameters to a `torch.optim.Optimizer`, or None to freeze the energy.
        objective: "kale" or "donsker_varadhan".
        energy_steps: energy steps per base step.
        noise_factor: base draws per data point.
        ema_decay: not implemented yet.
        trainable: not implemented yet.

    Raises:
        ValueError: if both optimisers are None, or one is given for a part without parameters.
        TypeError: if an optimiser is not a factory (a `pyro.optim` object, or a built optimiser).
        NotImplementedError: for an argument that is not implemented yet, by name.

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
        _not_yet(ema_decay=ema_decay, trainable=trainable)
        if objective in ("maximum_likelihood", "contrastive_divergence"):
            raise NotImplementedError(f"KALE(objective={objective!r}) is not implemented yet.")
        if objective not in ("kale", "donsker_varadhan"):
            raise ValueError(f'Expected objective "kale" or "donsker_varadhan"; got {objective!r}.')
        if base_optim is None and energy_optim is None:
            raise ValueError("Nothing to train: expected base_optim or energy_optim; got None for both.")
        for name, optim in (("base_optim", base_optim), ("energy_optim", energy_optim)):
            if isinstance(optim, (PyroOptim, torch.optim.Optimizer)) or not (optim is None or callable(optim)):
                kind = f"{type(optim).__module__.rsplit('.', 1)[0]}.{type(optim).__name__}"
                raise TypeError(
                    f"Expected a factory or None for {name}; got {kind}. "
                    "Write `lambda parameters: torch.optim.Adam(parameters, 1e-4)`."
                )
        if energy_steps < 1 or noise_factor < 1:
            raise ValueError(
                f"Expected energy_steps >= 1 and noise_factor >= 1; got {energy_steps} and {noise_factor}."
            )
        energies = check_energy(base, guide.energy)
        self.base, self.guide = base, guide
        self.objective, self.noise_factor = objective, noise_factor
        self.energy_steps = 1 if energy_optim is None or base_optim is None else energy_steps
        self._base_parameters = _parameters(trained_part(base))
        self._energy_parameters = _parameters(guide.energy)
        if base_optim is not None and not self._base_parameters:
            raise ValueError(
                f"The base ({type(base).__name__}) has no parameters to train: pass base_optim=None, or a "
                "Pushforward or flow that is a torch.nn.Module."
            )
        if energy_optim is not None and not self._energy_parameters:
            raise ValueError("The energy has no parameters to train: pass energy_optim=None, or a torch.nn.Module.")
        self.base_optim = None if base_optim is None else base_optim(self._base_parameters)
        self.energy_optim = None if energy_optim is None else energy_optim(self._energy_parameters)
        self.num_steps_taken = 0
        log_partition = guide.log_partition
        if log_partition is None:
            with evaluation_mode(trained_part(base), guide.energy):
                log_partition = settle_log_partition(base, guide.energy, num_batches=1)
        self.log_partition = torch.as_tensor(log_partition, dtype=energies.dtype, device=energies.device)

    def step(self, batch):
        """One energy step on a batch and, after every `energy_steps` of them, one base step.

        Args:
            batch: data of shape `(N,) + event_shape`.

        Returns:
            `KALELosses` of scalars.
        """
        losses = self._energy_step(batch)
        self.num_steps_taken += 1
        if self.num_steps_taken % self.energy_steps == 0:
            self._base_step(self.noise_factor * len(batch))
        return losses

    @torch.no_grad()
    def evaluate(self, data):
        """The KALE estimate on `data`, from as many fresh base draws.

        Args:
            data: shape `(N,) + event_shape`.

        Returns:
            Scalar; not negated.
        """
        data = self._check_data(data)
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
        batch_size,
        progress_bar=True,
        checkpoint_dir=None,
        checkpoint_every=None,
        resume_from=None,
    ):
        """Train for `num_steps` base steps (energy steps, when the base is frozen).

        Args:
            num_steps: number of base steps.
            data: tensor or array of shape `(N,) + event_shape`, reshuffled every epoch.
            batch_size: data points a step, at most N.
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
            raise NotImplementedError("KALE.run(data=<iterable of batches>) is not implemented yet: pass a tensor.")
        data = self._check_data(data)
        if not 1 <= batch_size <= len(data):
            raise ValueError(f"Expected 1 <= batch_size <= {len(data)} (the number of data); got {batch_size}.")
        finite = torch.isfinite(data).reshape(len(data), -1).all(1)
        if not finite.all():
            rows = (~finite).nonzero().flatten()
            raise ValueError(f"Expected finite data; got NaN or inf in {len(rows)} rows, the first is {rows[0]}.")
        batches = _shuffled_batches(data, batch_size)
        curves = []
        with tqdm(total=num_steps, disable=not progress_bar, desc="KALE", unit="step") as bar:
            for start in range(0, num_steps, CHUNK):
                count = min(CHUNK, num_steps - start)
                rows = [torch.stack(self.step(next(batches))) for _ in range(count * self.energy_steps)]
                chunk = torch.stack(rows).reshape(count, self.energy_steps, -1).mean(1).cpu()
                curves.append(chunk)
                if not torch.isfinite(chunk[:, 0]).all():
                    raise FloatingPointError(
                        f"KALE stopped being finite after {start + int(torch.isfinite(chunk[:, 0]).sum())} steps. "
                        "Lower the energy's learning rate, or raise the penalty."
                    )
                bar.update(count)
                last = dict(zip(KALELosses._fields, chunk[-1].tolist()))
                bar.set_postfix({name: f"{value:.3f}" for name, value in last.items()})
        losses = KALELosses(*torch.cat(curves).unbind(1)) if curves else None
        return self._result(losses)

    def state_dict(self):
        """Parameters, optimiser states, log-partition and step count, as for a `torch.nn.Module`."""
        part = trained_part(self.base)
        return {
            "base": None if part is None else part.state_dict(),
            "energy": self.guide.energy.state_dict() if isinstance(self.guide.energy, torch.nn.Module) else None,
            "base_optim": None if self.base_optim is None else self.base_optim.state_dict(),
            "energy_optim": None if self.energy_optim is None else self.energy_optim.state_dict(),
            "log_partition": self.log_partition,
            "num_steps_taken": self.num_steps_taken,
        }

    def load_state_dict(self, state):
        """Go back to a state from `state_dict`.

        Args:
            state: what `state_dict` returned.
        """
        targets = {
            "base": trained_part(self.base),
            "energy": self.guide.energy,
            "base_optim": self.base_optim,
            "energy_optim": self.energy_optim,
        }
        for name, target in targets.items():
            if state[name] is not None:
                target.load_state_dict(state[name])
        self.log_partition = state["log_partition"].to(self.log_partition)
        self.num_steps_taken = state["num_steps_taken"]

    def _result(self, losses):
        base = snapshot(self.base)
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

    def _energy_step(self, batch):
        energy = self.guide.energy
        with torch.no_grad():
            draws = self.base.sample((self.noise_factor * len(batch),))
        with torch.set_grad_enabled(self.energy_optim is not None):
            energy_data, energy_base = energy(torch.cat([batch, draws])).split([len(batch), len(draws)])
            value = kale(energy_data, energy_base, self.log_partition)
            penalty = torch.zeros_like(value)
            if self.energy_optim is not None:
                if self.guide.penalty is not None:
                    penalty = self.guide.penalty(energy, batch, draws)
                objective = value if self.objective == "kale" else donsker_varadhan(energy_data, energy_base)
                _apply(self.energy_optim, penalty - objective, self._energy_parameters)
        estimate = batch_log_partition(energy_base.detach())
        rule = newton_step if self.num_steps_taken < LOG_PARTITION_WARMUP else gradient_step
        self.log_partition = rule(self.log_partition, estimate, self.guide.log_partition_rate)
        return KALELosses(value.detach(), penalty.detach(), self.log_partition)

    def _base_step(self, num):
        if self.base_optim is not None:
            _apply(self.base_optim, base_loss(self.guide.energy(self.base.rsample((num,)))), self._base_parameters)

    def _check_data(self, data):
        shape, event_shape = tuple(np.shape(data)), tuple(self.base.event_shape)
        if len(shape) == 0 or shape[1:] != event_shape or shape[0] == 0:
            raise ValueError(f"Expected data of shape (N,) + {event_shape}, N >= 1; got {shape}.")
        return torch.as_tensor(data, dtype=self.log_partition.dtype, device=self.log_partition.device)


def _parameters(module):
    return [p for p in module.parameters() if p.requires_grad] if isinstance(module, torch.nn.Module) else []


def _apply(optim, loss, parameters):
    """One optimiser step; only the gradients of `parameters` are computed."""
    for parameter, grad in zip(parameters, torch.autograd.grad(loss, parameters, allow_unused=True)):
        parameter.grad = grad
    optim.step()
    optim.zero_grad()


def _shuffled_batches(data, batch_size):
    while True:
        order = torch.randperm(len(data), device=data.device)
        for i in range(len(data) // batch_size):
            yield data[order[i * batch_size : (i + 1) * batch_size]]


def _not_yet(**arguments):
    for name, value in arguments.items():
        if value is not None:
            raise NotImplementedError(f"The argument `{name}` of KALE is not implemented yet; leave it at None.")
