"""What training returns and raises, and the parts of a step that know nothing of KALE."""

from typing import NamedTuple

import torch
from pyro.optim import PyroOptim

from pyro_gebm.base import has_density
from pyro_gebm.gebm import GEBM
from pyro_gebm.training.guide import KALEGuide

__all__ = [
    "KALELosses",
    "KALEResult",
    "Optimizer",
    "check_arguments",
    "energy_bursts",
    "shown",
    "trained_parameters",
]

#: What `KALE` can optimise; the last two are baselines, for one of the two parts.
OBJECTIVES = ("kale", "donsker_varadhan", "maximum_likelihood", "contrastive_divergence")
#: Steps in a row with a loss or gradient that is not finite, after which a run stops.
PATIENCE = 10


class KALELosses(NamedTuple):
    """KALE (higher is a better energy), penalty, log-partition, and norms of the gradients of energy and base.

    Scalars of a step (`base_grad_norm` is 0 where no base step was due), curves of a run: there one value per base
    step, the mean over its energy steps.
    """

    kale: torch.Tensor
    penalty: torch.Tensor
    log_partition: torch.Tensor
    energy_grad_norm: torch.Tensor
    base_grad_norm: torch.Tensor


class KALEResult(NamedTuple):
    """What `KALE.run` returns.

    `gebm` is a snapshot in evaluation mode with the settled log-partition (`KALE.log_partition` is the raw last
    value); `guide` is the trained critic.
    """

    gebm: GEBM
    losses: KALELosses
    guide: KALEGuide


def energy_bursts(steps=5, *, initial=100, every=500):
    """Schedule of energy steps: `steps` per base step, but `initial` at the start and before every `every`-th.

    The defaults are the setting of arXiv:2003.05033.

    Args:
        steps: energy steps per base step.
        initial: energy steps of a burst.
        every: base steps from one burst to the next.

    Returns:
        A callable from the number of a base step to its number of energy steps.

    Example:
        >>> schedule = energy_bursts(5, initial=100, every=500)
        >>> [schedule(step) for step in (0, 1, 500)]
        [100, 5, 100]
    """
    return lambda base_step: initial if base_step % every == 0 else steps


def check_arguments(base, objective, energy_steps, noise_factor, ema_decay, base_optim, energy_optim):
    """Check the arguments of `KALE` that do not depend on the networks; raises ValueError."""
    if objective not in OBJECTIVES:
        raise ValueError(f"Expected objective in {OBJECTIVES}; got {objective!r}.")
    if base_optim is None and energy_optim is None:
        raise ValueError("Nothing to train: expected base_optim or energy_optim; got None for both.")
    if objective == "maximum_likelihood" and (energy_optim is not None or not has_density(base)):
        raise ValueError("Expected energy_optim=None and a base with a density for maximum likelihood; got otherwise.")
    if objective == "contrastive_divergence" and base_optim is not None:
        raise ValueError("Expected base_optim=None for contrastive divergence: it trains the energy alone.")
    if (not callable(energy_steps) and energy_steps < 1) or noise_factor < 1:
        raise ValueError(f"Expected energy_steps >= 1 and noise_factor >= 1; got {energy_steps} and {noise_factor}.")
    if ema_decay is not None and not 0 <= ema_decay < 1:
        raise ValueError(f"Expected ema_decay in [0, 1) or None; got {ema_decay}.")


def trained_parameters(prefix, module, trainable):
    """Parameters that are trained, by the rule `trainable(name)`."""
    if not isinstance(module, torch.nn.Module):
        return []
    named = ((f"{prefix}.{name}", p) for name, p in module.named_parameters() if p.requires_grad)
    return [p for name, p in named if trainable is None or trainable(name)]


class Optimizer:
    """An optimiser from a factory, with its learning-rate schedule, that leaves out steps that are not finite.

    Args:
        name: of the argument, for messages.
        factory: callable from a list of parameters to a `torch.optim.Optimizer`, or to a pair of it and a scheduler,
            which is then stepped after every step.
        parameters: the parameters.

    Raises:
        TypeError: if it is not a factory (a `pyro.optim` object, or a built optimiser).
    """

    def __init__(self, name, factory, parameters):
        if isinstance(factory, (PyroOptim, torch.optim.Optimizer)) or not callable(factory):
            kind = f"{type(factory).__module__.rsplit('.', 1)[0]}.{type(factory).__name__}"
            raise TypeError(
                f"Expected a factory or None for {name}; got {kind}. "
                "Write `lambda parameters: torch.optim.Adam(parameters, 1e-4)`."
            )
        built = factory(parameters)
        self.parameters = parameters
        self.optim, self.scheduler = built if isinstance(built, tuple) else (built, None)
        self.skipped_in_row = 0

    def apply(self, loss):
        """One step unless loss or gradient is not finite: `(applied, gradient norm)`.

        Only the gradients of the parameters are computed.
        """
        grads = torch.autograd.grad(loss, self.parameters, allow_unused=True)
        norm = torch.stack(torch._foreach_norm([g for g in grads if g is not None])).norm()
        ok = bool(torch.isfinite(loss) & torch.isfinite(norm))
        self.skipped_in_row = 0 if ok else self.skipped_in_row + 1
        if ok:
            for parameter, grad in zip(self.parameters, grads):
                parameter.grad = grad
            self.optim.step()
            self.optim.zero_grad()
            if self.scheduler is not None:
                self.scheduler.step()
        return ok, norm

    def state_dict(self):
        """State of optimiser and scheduler."""
        scheduler = None if self.scheduler is None else self.scheduler.state_dict()
        return {"optim": self.optim.state_dict(), "scheduler": scheduler, "skipped_in_row": self.skipped_in_row}

    def load_state_dict(self, state):
        """Go back to a state from `state_dict`."""
        self.optim.load_state_dict(state["optim"])
        if self.scheduler is not None:
            self.scheduler.load_state_dict(state["scheduler"])
        self.skipped_in_row = state["skipped_in_row"]


def shown(losses, skipped):
    """What the progress bar shows of the last step."""
    names = {"kale": "KALE", "log_partition": "A", "penalty": "penalty", "energy_grad_norm": "|dE|"}
    values = {label: f"{getattr(losses, name)[-1]:.3g}" for name, label in names.items()}
    if losses.base_grad_norm.any():
        values["|dB|"] = f"{losses.base_grad_norm[-1]:.3g}"
    return {**values, **({"skipped": skipped} if skipped else {})}
