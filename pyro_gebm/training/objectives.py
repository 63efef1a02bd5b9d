"""What training optimises: objects with a loss for the energy, a loss for the base, or both."""

import dataclasses
from collections.abc import Callable
from typing import NamedTuple, Protocol

import torch
from torch.distributions import Distribution

from gebm import validation
from pyro_gebm.base import has_density
from pyro_gebm.divergences import base_loss, donsker_varadhan, kale
from pyro_gebm.gebm import GEBM
from pyro_gebm.training.contrastive import PersistentChains

__all__ = [
    "OBJECTIVES",
    "BaseObjective",
    "ContrastiveDivergence",
    "DonskerVaradhan",
    "Energies",
    "EnergyObjective",
    "KALEObjective",
    "MaximumLikelihood",
    "Objective",
]


class Energies(NamedTuple):
    """Energies of an energy step, and the log-partition A.

    `data` `(N,)` are of the batch, `base` `(M,)` of fresh base draws, `chains` `(C,)` of the draws that the
    objective's own chains stand at, None without chains.
    """

    data: torch.Tensor
    base: torch.Tensor
    chains: torch.Tensor | None
    log_partition: torch.Tensor


class EnergyObjective(Protocol):
    """An objective of the energy."""

    def energy_loss(self, energies: Energies) -> torch.Tensor:
        """The loss of the energy, a scalar."""
        ...


class BaseObjective(Protocol):
    """An objective of the base."""

    def base_loss(self, base: Distribution, data: torch.Tensor, energies: Callable[[], torch.Tensor]) -> torch.Tensor:
        """The loss of the base, a scalar.

        Args:
            base: the base, of the parameters that are trained.
            data: a batch.
            energies: returns the energies of fresh base draws, `(M,)`, differentiable in the base.
        """
        ...


class Objective(EnergyObjective, BaseObjective, Protocol):
    """What `KALE(objective=...)` takes: an object with `energy_loss`, `base_loss`, or both.

    A part without a loss cannot be trained: its optimiser must then be None. Both losses are minimised; the guide's
    penalty is added to that of the energy. Two more methods are optional: `check(base)` raises a ValueError for a base
    that will not do; `start_chains(gebm)` returns chains that follow the model: an object with `move()`, which is
    called before every energy step and returns draws of the model `(C,) + event_shape`, and with `state_dict()` and
    `load_state_dict(state)`.

    Example:
        >>> class SquaredHinge:
        ...     def energy_loss(self, energies):
        ...         return ((1 + energies.data).relu() ** 2).mean() + ((1 - energies.base).relu() ** 2).mean()
        ...
        ...     def base_loss(self, base, data, energies):
        ...         return energies().mean()
    """


@dataclasses.dataclass(frozen=True)
class KALEObjective:
    """KALE of energy and log-partition, and for the base its part that depends on it (`divergences.base_loss`)."""

    def energy_loss(self, energies: Energies) -> torch.Tensor:
        """Minus KALE."""
        return -kale(energies.data, energies.base, energies.log_partition)

    def base_loss(self, base: Distribution, data: torch.Tensor, energies: Callable[[], torch.Tensor]) -> torch.Tensor:
        """Minus the log-partition of a batch of base draws."""
        return base_loss(energies())


@dataclasses.dataclass(frozen=True)
class DonskerVaradhan(KALEObjective):
    """As `KALEObjective`, with the log-mean-exp of the batch in place of A: biased, but A never lags behind."""

    def energy_loss(self, energies: Energies) -> torch.Tensor:
        """Minus the Donsker-Varadhan bound."""
        return -donsker_varadhan(energies.data, energies.base)


@dataclasses.dataclass(frozen=True)
class MaximumLikelihood:
    """Maximum likelihood of the base alone, which must have a density; the energy is left out."""

    def check(self, base: Distribution) -> None:
        """Raise ValueError for a base without a density."""
        if not has_density(base):
            raise ValueError(f"Expected a base with a density for maximum likelihood; got {type(base).__name__}.")

    def base_loss(self, base: Distribution, data: torch.Tensor, energies: Callable[[], torch.Tensor]) -> torch.Tensor:
        """Minus the mean log-density of the batch."""
        return -base.log_prob(data.clone()).mean()  # a fresh tensor: flows cache by identity


@dataclasses.dataclass(frozen=True)
class ContrastiveDivergence:
    """Persistent contrastive divergence of the energy alone: MALA chains in the latent space follow the model.

    Args:
        num_chains: number of chains.
        num_steps: MALA steps of each before every energy step.
        target_accept_prob: acceptance probability that the step size is adapted to.
    """

    num_chains: int = 128
    num_steps: int = 10
    target_accept_prob: float = 0.65

    def __post_init__(self) -> None:
        validation.integer("num_chains", self.num_chains)
        validation.integer("num_steps", self.num_steps)
        validation.probability("target_accept_prob", self.target_accept_prob)

    def start_chains(self, gebm: GEBM) -> PersistentChains:
        """Chains at exact draws of the latent prior."""
        return PersistentChains(gebm, self.num_chains, self.num_steps, self.target_accept_prob)

    def energy_loss(self, energies: Energies) -> torch.Tensor:
        """Mean energy of data minus that of the chains."""
        assert energies.chains is not None  # it starts them
        return energies.data.mean() - energies.chains.mean()


#: What the short names stand for.
OBJECTIVES = {
    "kale": KALEObjective,
    "donsker_varadhan": DonskerVaradhan,
    "maximum_likelihood": MaximumLikelihood,
    "contrastive_divergence": ContrastiveDivergence,
}
