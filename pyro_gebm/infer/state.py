"""The state of a kernel."""

from typing import NamedTuple

import torch

from gebm.langevin import AdaptState, Chains, OfChains
from pyro_gebm.dynamics.steps import kinetic_energy

__all__ = ["LangevinState"]


class _LangevinState(NamedTuple):
    i: int
    chains: Chains[torch.Tensor]
    accept_prob: torch.Tensor
    energy_error: torch.Tensor
    diverging: torch.Tensor
    num_steps: int
    step_size: float | torch.Tensor
    num_nan: torch.Tensor
    adapt_state: AdaptState[torch.Tensor]


class LangevinState(_LangevinState, OfChains):
    """State of a kernel of `infer`, of N chains. Fields and properties are named as in NumPyro's HMC.

    Args:
        i: iterations so far, warm-up included.
        chains: `Chains`, on flat positions.
        accept_prob: acceptance probability of the last step of the draw; of an unadjusted kernel that which a
            Metropolis test would have had.
        energy_error: energy error of its deterministic part.
        diverging: whether a step led to a potential that is not finite, or to an energy error above 1000.
        num_steps: gradients spent on the draw.
        step_size: step size of the draw.
        num_nan: draws in a row whose last step led into NaN.
        adapt_state: `AdaptState` of the warm-up, with `step_size`, `length_scale` and `warmup_converged`.
    """

    __slots__ = ()

    @property
    def energy(self) -> torch.Tensor:
        """Potential plus kinetic energy."""
        return self.potential_energy + kinetic_energy(self.v)
