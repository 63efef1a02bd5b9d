"""Persistent chains of contrastive divergence."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax, random
from numpyro.distributions import Distribution, biject_to

from numpyro_gebm.base import decompose
from numpyro_gebm.dynamics.metropolis import mala_step
from numpyro_gebm.gebm import GEBM

__all__ = ["PersistentChains", "draws_of", "move_chains", "start_chains"]


class PersistentChains(NamedTuple):
    """Unconstrained latents of all chains, and the log of their common step size."""

    u: jax.Array
    log_step: jax.Array


def start_chains(base: Distribution, num_chains: int, *, rng_key: jax.Array) -> PersistentChains:
    """Chains at exact draws of the latent prior of a base."""
    latent_prior, _ = decompose(base)
    u = biject_to(latent_prior.support).inv(latent_prior.sample(rng_key, (num_chains,)))
    return PersistentChains(u, jnp.asarray(jnp.log(0.5), u.dtype))


def move_chains(
    chains: PersistentChains, gebm: GEBM, num_steps: int, target_accept_prob: float, *, rng_key: jax.Array
) -> PersistentChains:
    """Move the chains towards the tilted prior of a GEBM, by MALA.

    Args:
        chains: where they stand.
        gebm: the model, whose energy has changed since their last move.
        num_steps: MALA steps.
        target_accept_prob: acceptance probability that the step size is adapted to.
        rng_key: a JAX random key.

    Returns:
        Where they stand now.
    """
    transform = biject_to(gebm.latent_prior.support)

    def log_density(u):
        z = transform(u)
        jacobian = transform.log_abs_det_jacobian(u, z)
        return gebm.latent.log_prob(z) + jacobian.reshape(len(u), -1).sum(1)

    def evaluate(u):
        value, pullback = jax.vjp(log_density, u)
        return u, value, pullback(jnp.ones_like(value))[0]

    def step(i, carry):
        point, log_step = carry
        steps = jnp.broadcast_to(log_step, point[1].shape)
        point, accept_prob = mala_step(random.fold_in(rng_key, i), point, steps, evaluate, lambda point: point[1:])
        return point, log_step + 0.05 * (accept_prob.mean() - target_accept_prob)

    point, log_step = lax.fori_loop(0, num_steps, step, (evaluate(chains.u), chains.log_step))
    return PersistentChains(point[0], log_step)


def draws_of(chains: PersistentChains, gebm: GEBM) -> jax.Array:
    """The chains as draws of the GEBM, over x."""
    return gebm.decode(biject_to(gebm.latent_prior.support)(chains.u))
