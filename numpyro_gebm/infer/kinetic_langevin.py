"""Kinetic Langevin dynamics as a NumPyro kernel."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Annotated

import jax
import jax.numpy as jnp

from gebm.langevin import SPLITTINGS, StepInfo
from gebm.validation import callable_or_none, integer, nonnegative, one_of, optional, probability
from numpyro_gebm.dynamics.metropolis import choose, diverges
from numpyro_gebm.dynamics.steps import energy_error, kinetic_step
from numpyro_gebm.infer.kernel import LangevinKernel

__all__ = ["KineticLangevin"]

#: Friction, where it is not given, times the length scale of the law: neither z nor z^2 then decorrelates slowly.
FRICTION = 1.0


@dataclass(kw_only=True, eq=False)
class KineticLangevin(LangevinKernel):
    r"""Unadjusted kinetic (underdamped) Langevin dynamics, for `numpyro.infer.MCMC`.

    .. math:: dz = \sigma v\, dt, \qquad dv = -\sigma \nabla U(z)\, dt - \gamma v\, dt + \sqrt{2\gamma}\, dW

    One draw is `num_steps` steps of the splitting `integrator`, one gradient each. There is no Metropolis test: the
    law of the draws has a bias of second order in the step size (for BAOAB none in the positions of a Gaussian);
    `GHMC` is the adjusted twin. In the warm-up the step size follows the acceptance probability of its deterministic
    part, and stays below half the law's length scale. `kinetic_temperature` differs from 1 where the step is too large.
    Stable for a step size below 2 over the largest frequency. Source: arXiv:2003.05033 (the sampler, ABOBA),
    arXiv:1203.5428 (the splittings), arXiv:2104.09029 (UBU).

    A step that leads to a potential that is not finite is not taken; the velocity is then reversed, and the draw is
    reported as diverging. With ABOBA and UBU `potential_energy` is taken at the mid-point of the last step.

    `model` or `potential_fn` and the other arguments are those of `LangevinKernel`, as is what is raised.

    Args:
        step_size: initial h, in units of time (that of the latent over $\sigma$, as the velocity's scale is one).
        friction: $\gamma$, in units of inverse time; None is 1 over the length scale of the law, which the warm-up
            estimates; 0 is Hamiltonian dynamics.
        num_steps: steps a draw.
        integrator: one of "BAOAB", "ABOBA", "OBABO", "UBU".
        target_accept_prob: acceptance probability that a test of the deterministic part would have.
        step_size_schedule: callable from the number of draws since the warm-up to a factor of the step size, such as
            `lambda i: 0.1 ** (i // 200)`; None for none.

    Example:
        >>> import jax, numpyro, numpyro.distributions as dist
        >>> from numpyro.infer import MCMC
        >>> from numpyro_gebm import GEBM
        >>> gebm = GEBM(dist.Normal(0.0, 1.0), lambda x: 0.5 * x**2)
        >>> kernel = KineticLangevin(lambda: numpyro.sample("z", gebm.latent))
        >>> mcmc = MCMC(kernel, num_warmup=50, num_samples=20, progress_bar=False)
        >>> mcmc.run(jax.random.key(0))
        >>> mcmc.get_samples()["z"].shape
        (20,)
    """

    target_accept_prob: Annotated[float, probability] = 0.9
    friction: Annotated[float | None, optional(nonnegative)] = None
    num_steps: Annotated[int, integer] = 10
    integrator: Annotated[str, partial(one_of, choices=SPLITTINGS)] = "BAOAB"
    step_size_schedule: Annotated[Callable[[jax.Array], jax.Array] | None, callable_or_none] = None

    default_fields = (*LangevinKernel.default_fields, "kinetic_temperature")
    max_step = 0.5

    def step(self, rng_key, chains, potential_and_grad, step_size, adapt_state):
        friction = FRICTION / adapt_state.length_scale if self.friction is None else self.friction
        start, scale = chains.kinetic, adapt_state.scale
        end = kinetic_step(rng_key, start, potential_and_grad, step_size, friction, self.integrator, scale)
        error = energy_error(start, end, step_size, scale)
        kinetic = choose(end.potential_energy < jnp.inf, end, start._replace(v=-start.v))
        return chains._replace(kinetic=kinetic), StepInfo(error, diverges(error))
