"""What an objective of training is: an object with a loss for the energy, a loss for the base, or both."""

import dataclasses
from collections.abc import Callable
from typing import Any, Generic, NamedTuple, Protocol, TypeVar

from gebm import validation

__all__ = ["BaseObjective", "ContrastiveDivergence", "Energies", "EnergyObjective", "KALEObjective", "Objective"]

Array = TypeVar("Array")


class Energies(NamedTuple, Generic[Array]):
    """Energies of an energy step, and the log-partition A.

    `data` `(N,)` are of the batch, `base` `(M,)` of fresh base draws, `chains` `(C,)` of the positions of the
    objective's own chains, None without chains.
    """

    data: Array
    base: Array
    chains: Array | None
    log_partition: Array


class EnergyObjective(Protocol[Array]):
    """An objective that trains the energy."""

    def energy_loss(self, energies: Energies[Array]) -> Array:
        """The loss of the energy, a scalar."""
        ...


class BaseObjective(Protocol[Array]):
    """An objective that trains the base."""

    def base_loss(self, base: Any, data: Array, energies: Callable[[], Array]) -> Array:
        """The loss of the base, a scalar.

        Args:
            base: the base, with the parameters that are trained.
            data: a batch.
            energies: returns the energies of fresh base draws, `(M,)`, differentiable in the base.
        """
        ...


class Objective(EnergyObjective[Array], BaseObjective[Array], Protocol[Array]):
    """What `KALE(objective=...)` takes: an object with `energy_loss`, `base_loss`, or both.

    A part without a loss cannot be trained: its optimiser must then be None. Both losses are minimised; the guide's
    penalty is added to that of the energy.

    Two more things are optional. `check(base)` raises a ValueError for a base that will not do. Chains that follow the
    model are, in Pyro, what `start_chains(gebm)` returns: an object with `move()`, called before every energy step,
    which returns draws of the model `(C,) + event_shape`, and with `state_dict()` and `load_state_dict(state)`. In
    NumPyro `start_chains(base, rng_key)` returns their start, any pytree, and `move_chains(chains, gebm, rng_key)`
    returns `(chains, draws)`.

    Example:
        >>> class SquaredHinge:
        ...     def energy_loss(self, energies):
        ...         return ((1 + energies.data).clip(0) ** 2).mean() + ((1 - energies.base).clip(0) ** 2).mean()
        ...
        ...     def base_loss(self, base, data, energies):
        ...         return energies().mean()
    """


@dataclasses.dataclass(frozen=True)
class KALEObjective:
    """The part of KALE that needs no framework: its one number."""

    max_ratio: float = 10.0

    def __post_init__(self) -> None:
        if validation.positive("max_ratio", self.max_ratio) < 1.0:
            raise ValueError(f"Expected max_ratio >= 1; got {self.max_ratio}.")


@dataclasses.dataclass(frozen=True)
class ContrastiveDivergence:
    """The part of contrastive divergence that needs no framework: its numbers and its loss."""

    num_chains: int = 128
    num_steps: int = 10
    target_accept_prob: float = 0.65

    def __post_init__(self) -> None:
        validation.integer("num_chains", self.num_chains)
        validation.integer("num_steps", self.num_steps)
        validation.probability("target_accept_prob", self.target_accept_prob)

    def energy_loss(self, energies: Energies[Any]) -> Any:
        """Mean energy of data minus that of the chains."""
        assert energies.chains is not None  # it starts them
        return energies.data.mean() - energies.chains.mean()
