"""Draws from a tilted prior by independent annealed MALA chains: the default sampler of a GEBM."""

import dataclasses
from functools import partial
from typing import Annotated, Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jax import lax, random
from numpyro.distributions import biject_to
from numpyro.distributions.util import sum_rightmost

from gebm.validation import check_fields, integer, positive, probability
from numpyro_gebm.dynamics.metropolis import mala_step
from numpyro_gebm.dynamics.steps import value_and_grad

__all__ = ["AnnealedMALA"]


@dataclasses.dataclass(frozen=True)
class AnnealedMALA:
    r"""Independent MALA chains that start at exact prior draws and are annealed to the tilted prior.

    Chain `n` runs `num_steps` Metropolis-adjusted Langevin steps on $\log \eta(z) - \beta_t E(B(z))$, with
    $\beta_t = \beta\,\min(1, t/T_a)^4$ and $T_a$ a fraction `annealing` of the steps. The proposal with step size h is

    .. math:: z' = z + \tfrac{h^2}{2} \nabla \log \nu_t(z) + h\, \xi, \qquad \xi \sim N(0, I)

    and h is adapted in every chain on its own towards `target_accept_prob`, with a gain that falls as $t^{-1/2}$
    once the annealing is over. One gradient of the energy a step; no resampling, so that draws are independent and
    their law does not depend on how many are asked for. Constrained latents are moved in unconstrained space.

    The law is that of a finite chain: on a linear-Gaussian model the variance is within 3 % at beta 1000. Modes that
    the annealing separates keep the weights they had when they separated; use a longer chain (`num_steps`) or a
    sampler on the ladder where that matters.

    Args:
        num_steps: MALA steps, each one gradient of the energy.
        step_size: initial h, in units of the latent.
        target_accept_prob: acceptance the step size is adapted to.
        annealing: fraction of the steps during which beta rises.
        batch_size: chains run at once; bounds the memory.

    Example:
        >>> import jax, numpyro.distributions as dist
        >>> from numpyro_gebm import GEBM
        >>> gebm = GEBM(dist.Normal(0.0, 1.0), lambda x: 0.5 * x**2, sampler=AnnealedMALA(num_steps=400))
        >>> gebm.sample(jax.random.key(0), (10,)).shape
        (10,)
    """

    num_steps: Annotated[int, integer] = 200
    step_size: Annotated[float, positive] = 0.5
    target_accept_prob: Annotated[float, probability] = 0.65
    annealing: Annotated[float, partial(probability, one=True)] = 0.75
    batch_size: Annotated[int, integer] = 4096

    def __post_init__(self):
        check_fields(self)

    def __call__(self, latent: Any, num_samples: int, *, rng_key: jax.Array) -> jax.Array:
        """Draw latents.

        Args:
            latent: an `EnergyTiltedPrior`.
            num_samples: number of independent chains, one draw each.
            rng_key: a JAX random key.

        Returns:
            Array of shape `(num_samples,) + latent.batch_shape + latent.event_shape`.

        Raises:
            RuntimeError: at run time, if the energy is NaN at a prior draw.
        """
        return _draw(latent, rng_key, num_samples, self)


@partial(jax.jit, static_argnums=(2, 3))
def _draw(latent, rng_key, num_samples, config):
    batch = max(1, min(num_samples, config.batch_size))
    keys = random.split(rng_key, -(-num_samples // batch))
    z = lax.map(lambda key: _anneal(latent, key, batch, config), keys)
    return z.reshape((-1, *z.shape[2:]))[:num_samples]


def _anneal(latent, rng_key, num_chains, config):
    gebm, ndim = latent.gebm, 1 + len(latent.batch_shape)
    prior = gebm.latent_prior.expand(latent.batch_shape)
    transform = biject_to(prior.support)

    def log_prior(u):
        z = transform(u)
        jacobian = transform.log_abs_det_jacobian(u, z)
        return prior.log_prob(z) + sum_rightmost(jacobian, jacobian.ndim - ndim)

    def log_weight(u):
        return gebm.log_weight(gebm.decode(transform(u)))

    def evaluate(u):
        """Log-prior and log-weight, and their gradients, at each chain's position."""
        return u, *value_and_grad(log_prior, u), *value_and_grad(log_weight, u)

    def step(carry, t):
        point, log_step = carry
        progress = (t + 1) / (config.annealing * config.num_steps)
        ladder = jnp.minimum(1.0, progress) ** 4

        def log_density_and_grad(point):
            _, log_prior, log_prior_grad, log_weight, log_weight_grad = point
            return log_prior + ladder * log_weight, log_prior_grad + ladder * log_weight_grad

        key = random.fold_in(rng_key, t + 1)
        point, accept_prob = mala_step(key, point, log_step, evaluate, log_density_and_grad)
        gain = 0.1 / jnp.sqrt(jnp.maximum(1.0, t + 1 - config.annealing * config.num_steps))
        return (point, log_step + gain * (accept_prob - config.target_accept_prob)), None

    start = evaluate(transform.inv(prior.sample(random.fold_in(rng_key, 0), (num_chains,))))
    start = eqx.error_if(start, jnp.isnan(start[3]).any(), "Expected an energy without NaN; got NaN at a base draw.")
    log_step = jnp.full(start[1].shape, jnp.log(config.step_size), start[1].dtype)
    (point, _), _ = lax.scan(step, (start, log_step), jnp.arange(config.num_steps))
    return transform(point[0])
