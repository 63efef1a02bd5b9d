"""Generalized Hamiltonian Monte Carlo as a Pyro kernel."""

import math
from dataclasses import dataclass
from typing import Annotated

import torch

from gebm.langevin import Chains, StepInfo
from gebm.validation import integer, nonnegative, optional
from pyro_gebm.dynamics.metropolis import choose, diverges
from pyro_gebm.dynamics.steps import energy_error, leapfrog_step, refreshed, update_slice
from pyro_gebm.infer.kernel import LangevinKernel

__all__ = ["GHMC"]

#: Friction, where it is not given, times the length scale of the law.
FRICTION = 0.7


@dataclass(kw_only=True, eq=False)
class GHMC(LangevinKernel):
    r"""Generalized Hamiltonian Monte Carlo: kinetic Langevin steps, each with a Metropolis test.

    One step partly refreshes the velocity, $v \leftarrow \rho v + \sqrt{1 - \rho^2}\, \xi$ with $\rho = e^{-\gamma h}$,
    takes one leapfrog step of size h, and accepts it against a slice variable that persists from step to step
    (arXiv:2001.11950); on rejection the velocity is reversed. One gradient a step, no bias: the exact twin of
    `KineticLangevin`, and the default choice among these kernels. The velocity persists over a time of
    $1 / \gamma$. Source: doi:10.1016/0370-2693(91)91575-8; arXiv:2110.11576 for setting friction and step size from
    many chains.

    `model` or `potential_fn` and the other arguments are those of `LangevinKernel`, as is what is raised.

    Args:
        step_size: initial h, in units of time (that of the latent over $\sigma$, as the velocity's scale is one).
        friction: $\gamma$, in units of inverse time; None is 0.7 over the length scale of the law, which the warm-up
            estimates; 0 is Hamiltonian dynamics.
        num_steps: steps a draw.
        target_accept_prob: mean acceptance probability that the warm-up adapts the step size to.

    Example:
        >>> import pyro, pyro.distributions as dist
        >>> from pyro.infer import MCMC
        >>> from pyro_gebm import GEBM
        >>> gebm = GEBM(dist.Normal(0.0, 1.0), lambda x: 0.5 * x**2)
        >>> kernel = GHMC(lambda: pyro.sample("z", gebm.latent))
        >>> mcmc = MCMC(kernel, num_samples=20, warmup_steps=50, disable_progbar=True)
        >>> mcmc.run()
        >>> tuple(mcmc.get_samples()["z"].shape)
        (20,)
    """

    friction: Annotated[float | None, optional(nonnegative)] = None
    num_steps: Annotated[int, integer] = 5

    default_fields = (*LangevinKernel.default_fields, "kinetic_temperature")

    def step(self, chains, potential_and_grad, step_size, adapt_state, last):
        friction = FRICTION / adapt_state.length_scale if self.friction is None else self.friction
        rate = -friction * step_size
        persistence = rate.exp() if isinstance(rate, torch.Tensor) else math.exp(rate)
        start = chains.kinetic._replace(v=refreshed(chains.kinetic.v, persistence))
        end = leapfrog_step(start, potential_and_grad, step_size, adapt_state.scale)
        error = energy_error(start, end, step_size, adapt_state.scale)
        accept, u = update_slice(chains.slice, error, persistence)
        stay = start._replace(v=-start.v)
        return choose(accept, Chains(end, u), Chains(stay, u)), StepInfo(error, diverges(error))
