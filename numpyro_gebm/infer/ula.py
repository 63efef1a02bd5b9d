"""Unadjusted Langevin algorithm as a NumPyro kernel."""

import jax.numpy as jnp

from numpyro_gebm.dynamics.metropolis import choose
from numpyro_gebm.infer.initialization import init_to_prior
from numpyro_gebm.infer.kernel import LangevinKernel
from numpyro_gebm.infer.mala import overdamped_step

__all__ = ["ULA"]


class ULA(LangevinKernel):
    r"""Unadjusted (overdamped) Langevin algorithm, for `numpyro.infer.MCMC`.

    .. math:: z' = z - \tfrac{h^2}{2} \sigma^2 \nabla U(z) + h\, \sigma\, \xi, \qquad \xi \sim N(0, I)

    One gradient a step and no Metropolis test: the law of the draws has a bias of order $h^2$ (a Gaussian of standard
    deviation s gets the variance $s^2 / (1 - h^2 / 4 s^2)$); `MALA` is the adjusted twin. In the warm-up h follows the
    acceptance probability that a test would have had, and stays below 0.3 of the law's length scale. Source:
    arXiv:2003.05033 (with step $h^2$).

    Args:
        model: a NumPyro model; exactly one of `model` and `potential_fn` is given.
        potential_fn: callable from a pytree of unconstrained arrays (one chain) to a scalar; needs `init_params`.
        step_size: initial h, in units of the latent over $\sigma$.
        adapt_step_size: whether the warm-up adapts it.
        target_accept_prob: acceptance probability it is adapted to.
        adapt_mass_matrix: whether the warm-up adapts a diagonal mass, $1 / \sigma^2$; else $\sigma = 1$.
        num_steps: steps a draw.
        step_size_schedule: callable from the number of draws since the warm-up to a factor of the step size, such as
            `lambda i: 0.1 ** (i // 200)`; None for none.
        init_strategy: where chains start; a draw of every site's base prior by default.

    Raises:
        ValueError: for both or neither of model and potential_fn, an argument out of its range, or an initial point
            where the potential is not finite.
        RuntimeError: at run time, if the potential is NaN 100 draws in a row.

    Example:
        >>> import jax, numpyro, numpyro.distributions as dist
        >>> from numpyro.infer import MCMC
        >>> from numpyro_gebm import GEBM
        >>> gebm = GEBM(dist.Normal(0.0, 1.0), lambda x: 0.5 * x**2)
        >>> kernel = ULA(lambda: numpyro.sample("z", gebm.latent))
        >>> mcmc = MCMC(kernel, num_warmup=50, num_samples=20, progress_bar=False)
        >>> mcmc.run(jax.random.key(0))
        >>> mcmc.get_samples()["z"].shape
        (20,)
    """

    default_fields = tuple(name for name in LangevinKernel.default_fields if name != "kinetic_temperature")
    _max_step = 0.3

    def __init__(
        self,
        model=None,
        potential_fn=None,
        *,
        step_size=0.1,
        adapt_step_size=True,
        target_accept_prob=0.95,
        adapt_mass_matrix=False,
        num_steps=1,
        step_size_schedule=None,
        init_strategy=init_to_prior,
    ):
        super().__init__(
            model,
            potential_fn,
            step_size=step_size,
            adapt_step_size=adapt_step_size,
            target_accept_prob=target_accept_prob,
            adapt_mass_matrix=adapt_mass_matrix,
            num_steps=num_steps,
            step_size_schedule=step_size_schedule,
            init_strategy=init_strategy,
        )

    def _step(self, rng_key, chains, potential_and_grad, step_size, adapt_state):
        proposal, info = overdamped_step(rng_key, chains, potential_and_grad, step_size, adapt_state.scale)
        return choose(proposal.potential_energy < jnp.inf, proposal, chains), info
