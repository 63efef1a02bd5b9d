"""Unadjusted Langevin algorithm as a Pyro kernel."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated

import torch

from gebm.langevin import StepInfo
from gebm.validation import callable_or_none, integer, probability
from pyro_gebm.dynamics.metropolis import choose, diverges
from pyro_gebm.dynamics.steps import overdamped_step
from pyro_gebm.infer.kernel import LangevinKernel

__all__ = ["ULA"]


@dataclass(kw_only=True, eq=False)
class ULA(LangevinKernel):
    r"""Unadjusted (overdamped) Langevin algorithm, for `pyro.infer.MCMC` and `infer.VectorizedMCMC`.

    .. math:: z' = z - \tfrac{h^2}{2} \sigma^2 \nabla U(z) + h\, \sigma\, \xi, \qquad \xi \sim N(0, I)

    One gradient a step and no Metropolis test: the law of the draws has a bias of order $h^2$ (a Gaussian of standard
    deviation s gets the variance $s^2 / (1 - h^2 / 4 s^2)$); `MALA` is the adjusted twin. In the warm-up h follows the
    acceptance probability that a test would have had, and stays below 0.3 of the law's length scale. Source:
    arXiv:2003.05033 (with step $h^2$).

    `model` or `potential_fn` and the other arguments are those of `LangevinKernel`, as is what is raised.

    Args:
        step_size: initial h, in units of the latent over $\sigma$.
        target_accept_prob: acceptance probability, as if there were a test, that the warm-up adapts it to.
        num_steps: steps a draw.
        step_size_schedule: callable from the number of draws since the warm-up to a factor of the step size, such as
            `lambda i: 0.1 ** (i // 200)`; None for none.

    Example:
        >>> import pyro, pyro.distributions as dist
        >>> from pyro.infer import MCMC
        >>> from pyro_gebm import GEBM
        >>> gebm = GEBM(dist.Normal(0.0, 1.0), lambda x: 0.5 * x**2)
        >>> kernel = ULA(lambda: pyro.sample("z", gebm.latent))
        >>> mcmc = MCMC(kernel, num_samples=20, warmup_steps=50, disable_progbar=True)
        >>> mcmc.run()
        >>> tuple(mcmc.get_samples()["z"].shape)
        (20,)
    """

    target_accept_prob: Annotated[float, probability] = 0.95
    num_steps: Annotated[int, integer] = 1
    step_size_schedule: Annotated[Callable[[int], float] | None, callable_or_none] = None

    max_step = 0.3

    def step(self, chains, potential_and_grad, step_size, adapt_state, last):
        end, error = overdamped_step(chains.kinetic, potential_and_grad, step_size, adapt_state.scale)
        kinetic = choose(end.potential_energy < torch.inf, end, chains.kinetic)
        return chains._replace(kinetic=kinetic), StepInfo(error, diverges(error))
