"""The objectives that have names: see `gebm.objectives`."""

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp
from numpyro.distributions import Distribution

from gebm import objectives
from gebm.objectives import Energies
from numpyro_gebm.base import has_density
from numpyro_gebm.divergences import base_loss, donsker_varadhan, kale
from numpyro_gebm.gebm import GEBM
from numpyro_gebm.training.contrastive import PersistentChains, draws_of, move_chains, start_chains

__all__ = [
    "OBJECTIVES",
    "ContrastiveDivergence",
    "DonskerVaradhan",
    "KALEObjective",
    "MaximumLikelihood",
]


@dataclasses.dataclass(frozen=True)
class KALEObjective:
    """KALE of energy and log-partition, and for the base its part that depends on it (`divergences.base_loss`)."""

    def energy_loss(self, energies: Energies[jax.Array]) -> jax.Array:
        """Minus KALE."""
        return -kale(energies.data, energies.base, energies.log_partition)

    def base_loss(self, base: Distribution, data: jax.Array, energies: Callable[[], jax.Array]) -> jax.Array:
        """Minus the log-partition of a batch of base draws."""
        return base_loss(energies())


@dataclasses.dataclass(frozen=True)
class DonskerVaradhan(KALEObjective):
    """As `KALEObjective`, with the log-mean-exp of the batch in place of A: biased, but A never lags behind."""

    def energy_loss(self, energies: Energies[jax.Array]) -> jax.Array:
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

    def base_loss(self, base: Distribution, data: jax.Array, energies: Callable[[], jax.Array]) -> jax.Array:
        """Minus the mean log-density of the batch."""
        return -jnp.mean(base.log_prob(data))


@dataclasses.dataclass(frozen=True)
class ContrastiveDivergence(objectives.ContrastiveDivergence):
    """Persistent contrastive divergence of the energy alone: MALA chains in the latent space follow the model.

    Args:
        num_chains: number of chains.
        num_steps: MALA steps of each before every energy step.
        target_accept_prob: acceptance probability that the step size is adapted to.
    """

    def start_chains(self, base: Distribution, rng_key: jax.Array) -> PersistentChains:
        """Chains at exact draws of the latent prior."""
        return start_chains(base, self.num_chains, rng_key=rng_key)

    def move_chains(
        self, chains: PersistentChains, gebm: GEBM, rng_key: jax.Array
    ) -> tuple[PersistentChains, jax.Array]:
        """The chains after their steps, and their positions in x."""
        moved = move_chains(chains, gebm, self.num_steps, self.target_accept_prob, rng_key=rng_key)
        return moved, draws_of(moved, gebm)


#: What the short names stand for.
OBJECTIVES = {
    "kale": KALEObjective,
    "donsker_varadhan": DonskerVaradhan,
    "maximum_likelihood": MaximumLikelihood,
    "contrastive_divergence": ContrastiveDivergence,
}
