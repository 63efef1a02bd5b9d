"""Metropolis-adjusted Langevin trajectories as a Pyro kernel."""

import math
from dataclasses import dataclass
from typing import Annotated

import torch

from gebm.langevin import StepInfo
from gebm.validation import nonnegative, optional, positive, probability
from pyro_gebm.dynamics.metropolis import accepts, choose, diverges
from pyro_gebm.dynamics.steps import trajectory
from pyro_gebm.infer.kernel import LangevinKernel

__all__ = ["MALT"]

#: Friction and trajectory length, where they are not given, in units of the length scale of the law.
FRICTION, TRAJECTORY_LENGTH = 0.5, 1.57
#: Most steps of a trajectory, and most of them while the length scale is not yet known.
MAX_STEPS, MAX_STEPS_AT_FIRST = 1000, 16


@dataclass(kw_only=True, eq=False)
class MALT(LangevinKernel):
    r"""Metropolis-adjusted Langevin trajectories, for `pyro.infer.MCMC` and `infer.VectorizedMCMC`.

    A draw is a trajectory of time T of kinetic Langevin dynamics (`KineticLangevin` with the splitting OBABO), of
    $L = \lceil T / h \rceil$ steps of size $T / L$ from a fresh velocity, with one Metropolis test for all of it:

    .. math:: \log \text{accept} = -\sum_{i=1}^{L} \left[ U(z_i) - U(z_{i-1})
              + \tfrac12 |v_i'|^2 - \tfrac12 |v_{i-1}'|^2 \right]

    summed over the deterministic (BAB) parts. No velocity is ever reversed. All chains take the same number of steps.
    Source: arXiv:2202.13230.

    `model` or `potential_fn` and the other arguments are those of `LangevinKernel`, as is what is raised.

    Args:
        step_size: initial h, in units of time (that of the latent over $\sigma$, as the velocity's scale is one).
        friction: $\gamma$, in units of inverse time; None is 0.5 over the length scale of the law, which the warm-up
            estimates; 0 is Hamiltonian dynamics.
        trajectory_length: T, in units of time; None is 1.57 times the length scale of the law.
        target_accept_prob: mean acceptance probability that the warm-up adapts the step size to.

    Example:
        >>> import pyro, pyro.distributions as dist
        >>> from pyro.infer import MCMC
        >>> from pyro_gebm import GEBM
        >>> gebm = GEBM(dist.Normal(0.0, 1.0), lambda x: 0.5 * x**2)
        >>> kernel = MALT(lambda: pyro.sample("z", gebm.latent))
        >>> mcmc = MCMC(kernel, num_samples=20, warmup_steps=50, disable_progbar=True)
        >>> mcmc.run()
        >>> tuple(mcmc.get_samples()["z"].shape)
        (20,)
    """

    target_accept_prob: Annotated[float, probability] = 0.65
    friction: Annotated[float | None, optional(nonnegative)] = None
    trajectory_length: Annotated[float | None, optional(positive)] = None

    default_fields = (*LangevinKernel.default_fields, "kinetic_temperature")
    first_window = 30

    def step(self, chains, potential_and_grad, step_size, adapt_state, last):
        step_size, length_scale = float(step_size), adapt_state.length_scale
        friction = FRICTION / length_scale if self.friction is None else self.friction
        length = TRAJECTORY_LENGTH * length_scale if self.trajectory_length is None else self.trajectory_length
        num_steps = min(max(1, math.ceil(length / step_size)), MAX_STEPS)
        if self.trajectory_length is None and adapt_state.num_warmup_steps < self.first_window:
            num_steps = min(num_steps, MAX_STEPS_AT_FIRST)
            length = num_steps * step_size
        h = length / num_steps
        start = chains.kinetic._replace(v=torch.randn_like(chains.kinetic.v))
        end, error = trajectory(start, potential_and_grad, h, friction, num_steps, adapt_state.scale)
        kinetic = choose(accepts(error), end, start)
        return chains._replace(kinetic=kinetic), StepInfo(error, diverges(error), num_steps)
