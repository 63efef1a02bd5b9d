"""What training optimises: objects with a loss for the energy, a loss for the base, or both."""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
from numpyro.distributions import Distribution

from gebm import validation
from numpyro_gebm.base import has_density
from numpyro_gebm.divergences import base_loss, donsker_varadhan, kale
from numpyro_gebm.gebm import GEBM
from numpyro_gebm.training.contrastive import PersistentChains, draws_of, move_chains, start_chains

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

    data: jax.Array
    base: jax.Array
    chains: jax.Array | None
    log_partition: jax.Array


class EnergyObjective(Protocol):
    """An objective of the energy."""

    def energy_loss(self, energies: Energies) -> jax.Array:
        """The loss of the energy, a scalar."""
        ...


class BaseObjective(Protocol):
    """An objective of the base."""

    def base_loss(self, base: Distribution, data: jax.Array, energies: Callable[[], jax.Array]) -> jax.Array:
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
    penalty is added to that of the energy. Three more methods are optional: `check(base)` raises a ValueError for a
    base that will not do; `start_chains(base, rng_key)` and `move_chains(chains, gebm, rng_key)`, together, keep
    chains that follow the model: the first returns their start, any pytree, the second moves them before every energy
    step and returns `(chains, draws)`, with draws of the model `(C,) + event_shape`.

    Example:
        >>> class SquaredHinge:
        ...     def energy_loss(self, energies):
        ...         return jnp.mean(jnp.maximum(0, 1 + energies.data) ** 2 + jnp.maximum(0, 1 - energies.base) ** 2)
        ...
        ...     def base_loss(self, base, data, energies):
        ...         return jnp.mean(energies())
    """


@dataclasses.dataclass(frozen=True)
class KALEObjective:
    """KALE of energy and log-partition, and for the base its part that depends on it (`divergences.base_loss`)."""

    def energy_loss(self, energies: Energies) -> jax.Array:
        """Minus KALE."""
        return -kale(energies.data, energies.base, energies.log_partition)

    def base_loss(self, base: Distribution, data: jax.Array, energies: Callable[[], jax.Array]) -> jax.Array:
        """Minus the log-partition of a batch of base draws."""
        return base_loss(energies())


@dataclasses.dataclass(frozen=True)
class DonskerVaradhan(KALEObjective):
    """As `KALEObjective`, with the log-mean-exp of the batch in place of A: biased, but A never lags behind."""

    def energy_loss(self, energies: Energies) -> jax.Array:
        """Minus the Donsker-Varadhan bound."""
        return -donsker_varadhan(energies.data, energies.base)


@dataclasses.dataclass(frozen=True)
class MaximumLikelihood:
    """Maximum likelihood of the base alone, which must have a density; the energy is left out."""

    def check(self, base: Distribution) -> None:
        """Raise ValueError for a base without a density."""
        if not has_density(base):
            raise ValueError(f"Expected a base with a density for maximum likelihood; got {type(base).__name__}.")

    def base_loss(self, base: Distribution, data: jax.Array, energies: Callable[[], jax.Array]) -> jax.Array:
        """Minus the mean log-density of the batch."""
        return -jnp.mean(base.log_prob(data))


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

    def start_chains(self, base: Distribution, rng_key: jax.Array) -> PersistentChains:
        """Chains at exact draws of the latent prior."""
        return start_chains(base, self.num_chains, rng_key=rng_key)

    def move_chains(self, chains: PersistentChains, gebm: GEBM, rng_key: jax.Array) -> tuple[Any, jax.Array]:
        """The chains after their steps, and their positions in x."""
        moved = move_chains(chains, gebm, self.num_steps, self.target_accept_prob, rng_key=rng_key)
        return moved, draws_of(moved, gebm)

    def energy_loss(self, energies: Energies) -> jax.Array:
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
