"""The objectives that have names: see `gebm.objectives`."""

import dataclasses
import math
from collections.abc import Callable

import torch
from torch.distributions import Distribution

from gebm import objectives
from gebm.objectives import Energies
from pyro_gebm.base import has_density
from pyro_gebm.divergences import base_loss, batch_log_partition, donsker_varadhan, kale
from pyro_gebm.gebm import GEBM
from pyro_gebm.training.contrastive import PersistentChains

__all__ = [
    "OBJECTIVES",
    "ContrastiveDivergence",
    "DonskerVaradhan",
    "KALEObjective",
    "MaximumLikelihood",
    "PlainKALE",
]


@dataclasses.dataclass(frozen=True)
class KALEObjective(objectives.KALEObjective):
    r"""KALE, with a gradient of the energy that is bounded and does not change with a shift of it.

    .. math:: r\, \nabla_E \Big( \mathbb{E}_P[E] + \log \tfrac1M \sum_i e^{-E(x_i)} \Big),
        \qquad r = e^{\tilde A - A}, \quad \tilde A = \log \tfrac1M \sum_i e^{-E(x_i)}

    The weights of the base draws are self-normalised. The factor r, the partition function of the batch over the
    running one, takes away the bias of a small batch: with A = log Z the mean of this is the gradient of KALE. It is
    held within `max_ratio` and its inverse. The base's part is `divergences.base_loss`. Source: arXiv:2003.05033; the
    running partition function is that of arXiv:1801.04062.

    Args:
        max_ratio: bound of r, at least 1.
    """

    def energy_loss(self, energies: Energies[torch.Tensor]) -> torch.Tensor:
        """Minus the bound of Donsker and Varadhan, times r."""
        log_ratio = batch_log_partition(energies.base.detach()) - energies.log_partition
        limit = math.log(self.max_ratio)
        ratio = log_ratio.clamp(-limit, limit).exp()
        return -ratio * donsker_varadhan(energies.data, energies.base)

    def base_loss(self, base: Distribution, data: torch.Tensor, energies: Callable[[], torch.Tensor]) -> torch.Tensor:
        """Minus the log-partition of a batch of base draws."""
        return base_loss(energies())


@dataclasses.dataclass(frozen=True)
class PlainKALE(KALEObjective):
    """KALE with its own gradient in every batch: unbounded, and right only as far as A is."""

    def energy_loss(self, energies: Energies[torch.Tensor]) -> torch.Tensor:
        """Minus KALE."""
        return -kale(energies.data, energies.base, energies.log_partition)


@dataclasses.dataclass(frozen=True)
class DonskerVaradhan(KALEObjective):
    """As `KALEObjective`, with r = 1: biased in small batches, but A plays no part."""

    def energy_loss(self, energies: Energies[torch.Tensor]) -> torch.Tensor:
        """Minus the Donsker-Varadhan bound."""
        return -donsker_varadhan(energies.data, energies.base)


@dataclasses.dataclass(frozen=True)
class MaximumLikelihood:
    """Maximum likelihood of the base alone, which must have a density; the energy is left out."""

    def check(self, base: Distribution) -> None:
        """Raise ValueError for a base without a density."""
        if not has_density(base):
            raise ValueError(
                f"Expected a base with a density for maximum likelihood; got {type(base).__name__} without one. Use a "
                "flow whose transforms have an inverse."
            )

    def base_loss(self, base: Distribution, data: torch.Tensor, energies: Callable[[], torch.Tensor]) -> torch.Tensor:
        """Minus the mean log-density of the batch."""
        return -base.log_prob(data.clone()).mean()  # a fresh tensor: flows cache by identity


@dataclasses.dataclass(frozen=True)
class ContrastiveDivergence(objectives.ContrastiveDivergence):
    """Persistent contrastive divergence of the energy alone: MALA chains in the latent space follow the model.

    Args:
        num_chains: number of chains.
        num_steps: MALA steps of each before every energy step.
        target_accept_prob: acceptance probability that the step size is adapted to.
    """

    def start_chains(self, gebm: GEBM) -> PersistentChains:
        """Chains at exact draws of the latent prior."""
        return PersistentChains(gebm, self.num_chains, self.num_steps, self.target_accept_prob)


#: What the short names stand for.
OBJECTIVES = {
    "kale": KALEObjective,
    "plain_kale": PlainKALE,
    "donsker_varadhan": DonskerVaradhan,
    "maximum_likelihood": MaximumLikelihood,
    "contrastive_divergence": ContrastiveDivergence,
}
