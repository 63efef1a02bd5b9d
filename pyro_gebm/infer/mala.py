"""Metropolis-adjusted Langevin algorithm as a Pyro kernel."""

from dataclasses import dataclass
from typing import Annotated

from gebm.langevin import StepInfo
from gebm.validation import integer, probability
from pyro_gebm.dynamics.metropolis import accepts, choose, diverges
from pyro_gebm.dynamics.steps import overdamped_step
from pyro_gebm.infer.kernel import LangevinKernel

__all__ = ["MALA"]


@dataclass(kw_only=True, eq=False)
class MALA(LangevinKernel):
    r"""Metropolis-adjusted (overdamped) Langevin algorithm, for `pyro.infer.MCMC` and `infer.VectorizedMCMC`.

    Proposes

    .. math:: z' = z - \tfrac{h^2}{2} \sigma^2 \nabla U(z) + h\, \sigma\, \xi, \qquad \xi \sim N(0, I)

    and accepts it with probability $\min(1, \exp(U(z) - U(z') + \tfrac12 |\xi|^2 - \tfrac12 |\xi'|^2))$, where
    $\xi' = \xi - \tfrac{h}{2} \sigma (\nabla U(z) + \nabla U(z'))$ is the noise of the reverse move. One gradient a
    step. The exact twin of `ULA`. Source: doi:10.1111/1467-9868.00123.

    `model` or `potential_fn` and the other arguments are those of `LangevinKernel`, as is what is raised.

    Args:
        step_size: initial h, in units of the latent over $\sigma$.
        target_accept_prob: mean acceptance probability that the warm-up adapts the step size to.
        num_steps: steps a draw.

    Example:
        >>> import pyro, pyro.distributions as dist
        >>> from pyro.infer import MCMC
        >>> from pyro_gebm import GEBM
        >>> gebm = GEBM(dist.Normal(0.0, 1.0), lambda x: 0.5 * x**2)
        >>> kernel = MALA(lambda: pyro.sample("z", gebm.latent))
        >>> mcmc = MCMC(kernel, num_samples=20, warmup_steps=50, disable_progbar=True)
        >>> mcmc.run()
        >>> tuple(mcmc.get_samples()["z"].shape)
        (20,)
    """

    target_accept_prob: Annotated[float, probability] = 0.574
    num_steps: Annotated[int, integer] = 1

    def step(self, chains, potential_and_grad, step_size, adapt_state, last):
        end, error = overdamped_step(chains.kinetic, potential_and_grad, step_size, adapt_state.scale)
        kinetic = choose(accepts(error), end, chains.kinetic)
        return chains._replace(kinetic=kinetic), StepInfo(error, diverges(error))
