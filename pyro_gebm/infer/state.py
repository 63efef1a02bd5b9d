"""What a kernel keeps: the chains, what a step reports, and the state of a run."""

from typing import NamedTuple

import torch

from pyro_gebm.dynamics.steps import KineticState, kinetic_energy
from pyro_gebm.infer.adaptation import AdaptState

__all__ = ["Chains", "LangevinState", "StepInfo"]


class Chains(NamedTuple):
    """N chains: `kinetic` of shape `(N, d)`, and a slice variable (GHMC) of shape `(N,)`."""

    kinetic: KineticState
    slice: torch.Tensor


class StepInfo(NamedTuple):
    """What a step reports, in shape `(N,)`; `num_steps` counts gradients.

    `energy_error` may be None for a step that is not the last of its draw.
    """

    energy_error: torch.Tensor | None
    diverging: torch.Tensor
    num_steps: int = 1


class LangevinState(NamedTuple):
    """State of a kernel of `infer`, of N chains. Fields and properties are named as in NumPyro's HMC.

    Args:
        i: iterations so far, warm-up included.
        chains: `Chains`, on flat positions.
        accept_prob: acceptance probability of the last step of the draw; for an unadjusted kernel, that of
            the Metropolis test that it leaves out.
        energy_error: energy error of its deterministic part.
        diverging: whether a step led to a potential that is not finite, or to an energy error above 1000.
        num_steps: gradients spent on the draw.
        step_size: step size of the draw.
        num_nan: draws in a row whose last step led to a NaN potential.
        adapt_state: `AdaptState` of the warm-up, with `step_size`, `length_scale` and `warmup_converged`.
    """

    i: int
    chains: Chains
    accept_prob: torch.Tensor
    energy_error: torch.Tensor
    diverging: torch.Tensor
    num_steps: int
    step_size: float | torch.Tensor
    num_nan: torch.Tensor
    adapt_state: AdaptState

    @property
    def v(self) -> torch.Tensor:
        """Velocity in units of the mass; standard normal at stationarity."""
        return self.chains.kinetic.v

    @property
    def slice(self) -> torch.Tensor:
        """Slice variable (GHMC)."""
        return self.chains.slice

    @property
    def grad_point(self) -> torch.Tensor:
        """Where the gradient was last taken: the position, except with the splittings ABOBA and UBU."""
        return self.chains.kinetic.grad_point

    @property
    def potential_energy(self) -> torch.Tensor:
        """The potential there."""
        return self.chains.kinetic.potential_energy

    @property
    def z_grad(self) -> torch.Tensor:
        """Its gradient there."""
        return self.chains.kinetic.z_grad

    @property
    def energy(self) -> torch.Tensor:
        """Potential plus kinetic energy."""
        return self.potential_energy + kinetic_energy(self.v)

    @property
    def kinetic_temperature(self) -> torch.Tensor:
        """`|v|^2 / d`; its expectation is 1 without discretisation bias."""
        return self.v.square().mean(1)
