"""The Metropolis test of many chains, and one step of MALA."""

from collections.abc import Callable
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
from jax import random
from numpyro.distributions.util import sum_rightmost

from gebm.langevin import MAX_ENERGY_ERROR
from numpyro_gebm.dynamics.keys import uniform
from numpyro_gebm.dynamics.steps import overdamped_move, reverse_noise

__all__ = ["accept_probability", "accepts", "choose", "diverges", "mala_step"]

Tree = TypeVar("Tree")


def accept_probability(error: jax.Array) -> jax.Array:
    """Probability min(1, exp(-error)) of a Metropolis test; 0 where the error is NaN."""
    return jnp.exp(-jnp.maximum(jnp.where(jnp.isnan(error), jnp.inf, error), 0.0))


def accepts(rng_key: jax.Array, error: jax.Array) -> jax.Array:
    """Whether the test of an energy error accepts; one random key, or one a chain."""
    return jnp.log(uniform(rng_key, error)) < -error


def diverges(error: jax.Array) -> jax.Array:
    """Whether an energy error is NaN, infinite or above 1000."""
    return ~(error < MAX_ENERGY_ERROR)


def choose(mask: jax.Array, new: Tree, old: Tree) -> Tree:
    """The new values of the chains where `mask` holds, the old ones elsewhere; pytrees with leading axes `chains`."""
    return jax.tree.map(lambda a, b: jnp.where(mask.reshape(mask.shape + (1,) * (a.ndim - mask.ndim)), a, b), new, old)


def mala_step(
    rng_key: jax.Array,
    point: tuple[Any, ...],
    log_step: jax.Array,
    evaluate: Callable[[jax.Array], tuple[Any, ...]],
    log_density_and_grad: Callable[[tuple[Any, ...]], tuple[jax.Array, jax.Array]],
) -> tuple[tuple[Any, ...], jax.Array]:
    """One Metropolis-adjusted Langevin step of many independent chains.

    Args:
        rng_key: a JAX random key.
        point: tuple whose first entry is the position, of shape `chains + (...)`, with what `evaluate` adds.
        log_step: log of the step size of every chain, shape `chains`.
        evaluate: callable from a position to a point.
        log_density_and_grad: callable from a point to the log density, of shape `chains`, and its gradient.

    Returns:
        `(point, acceptance probability)`.
    """
    key_noise, key_accept = random.split(rng_key)
    h = jnp.exp(log_step).reshape(log_step.shape + (1,) * (point[0].ndim - log_step.ndim))
    log_density, grad = log_density_and_grad(point)
    noise = random.normal(key_noise, grad.shape, grad.dtype)
    proposal = evaluate(overdamped_move(point[0], -grad, noise, h))
    new_log_density, new_grad = log_density_and_grad(proposal)
    back = reverse_noise(-grad, -new_grad, noise, h)
    squares = noise**2 - back**2
    log_ratio = new_log_density - log_density + 0.5 * sum_rightmost(squares, squares.ndim - log_step.ndim)
    accept_prob = accept_probability(-log_ratio)
    accept = uniform(key_accept, accept_prob) < accept_prob
    return choose(accept, proposal, point), accept_prob
