"""Metropolis-adjusted Langevin trajectories as a NumPyro kernel."""

from dataclasses import dataclass
from typing import Annotated

import jax.numpy as jnp

from gebm.langevin import StepInfo
from gebm.validation import nonnegative, optional, positive, probability
from numpyro_gebm.dynamics.keys import fold_in, standard_normal
from numpyro_gebm.dynamics.metropolis import accepts, choose, diverges
from numpyro_gebm.dynamics.steps import trajectory
from numpyro_gebm.infer.kernel import LangevinKernel

__all__ = ["MALT"]

#: Friction and trajectory length, where they are not given, in units of the length scale of the law.
FRICTION, TRAJECTORY_LENGTH = 0.5, 1.57
#: Most steps of a trajectory, and most of them while the length scale is not yet known.
MAX_STEPS, MAX_STEPS_AT_FIRST = 1000, 16


@dataclass(kw_only=True, eq=False)
class MALT(LangevinKernel):
    r"""Metropolis-adjusted Langevin trajectories, for `numpyro.infer.MCMC`.

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
        >>> import jax, numpyro, numpyro.distributions as dist
        >>> from numpyro.infer import MCMC
        >>> from numpyro_gebm import GEBM
        >>> gebm = GEBM(dist.Normal(0.0, 1.0), lambda x: 0.5 * x**2)
        >>> kernel = MALT(lambda: numpyro.sample("z", gebm.latent))
        >>> mcmc = MCMC(kernel, num_warmup=50, num_samples=20, progress_bar=False)
        >>> mcmc.run(jax.random.key(0))
        >>> mcmc.get_samples()["z"].shape
        (20,)
    """

    target_accept_prob: Annotated[float, probability] = 0.65
    friction: Annotated[float | None, optional(nonnegative)] = None
    trajectory_length: Annotated[float | None, optional(positive)] = None

    default_fields = (*LangevinKernel.default_fields, "kinetic_temperature")
    first_window = 30

    def step(self, rng_key, chains, potential_and_grad, step_size, adapt_state):
        length_scale, known = adapt_state.length_scale[0], adapt_state.num_warmup_steps >= self.first_window
        friction = FRICTION / length_scale if self.friction is None else self.friction
        length = TRAJECTORY_LENGTH * length_scale if self.trajectory_length is None else self.trajectory_length
        num_steps = jnp.clip(jnp.ceil(length / step_size[0]), 1, MAX_STEPS)
        if self.trajectory_length is None:
            num_steps = jnp.where(known, num_steps, jnp.minimum(num_steps, MAX_STEPS_AT_FIRST))
            length = jnp.where(known, length, num_steps * step_size[0])
        h, num_steps = length / num_steps, num_steps.astype(int)
        keys_v, keys_test, keys = (fold_in(rng_key, i) for i in range(3))
        start = chains.kinetic._replace(v=standard_normal(keys_v, chains.kinetic.v))
        end, error = trajectory(keys, start, potential_and_grad, h, friction, num_steps, adapt_state.scale)
        kinetic = choose(accepts(keys_test, error), end, start)
        return chains._replace(kinetic=kinetic), StepInfo(error, diverges(error), num_steps)
