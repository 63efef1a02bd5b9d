"""Starts of chains at prior draws of finite energy."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import lax, random

from gebm.annealing import MAX_REDRAWS
from numpyro_gebm.dynamics.metropolis import choose

__all__ = ["finite_start"]


def finite_start(
    rng_key: jax.Array, propose: Callable[[jax.Array], tuple[jax.Array, jax.Array]]
) -> tuple[jax.Array, jax.Array, jax.Array, jax.Array]:
    """Prior draws, drawn anew, 1,000 times at most, where their log-weight is -inf.

    Args:
        rng_key: a JAX random key.
        propose: callable from a random key to a prior draw for every chain and its log-weight, shape `chains`.

    Returns:
        `(u, log_weight, finite, tried)`: draws, their log-weights, how many draws had one above -inf, and how many
        there were.
    """

    def count(log_weight, finite, tried):
        return finite + (log_weight > -jnp.inf).sum(), tried + log_weight.size

    def redraw(carry):
        i, u, log_weight, finite, tried = carry
        new_u, new_log_weight = propose(random.fold_in(rng_key, i))
        u, log_weight = choose(log_weight == -jnp.inf, (new_u, new_log_weight), (u, log_weight))
        return i + 1, u, log_weight, *count(new_log_weight, finite, tried)

    def unfinished(carry):
        i, _, log_weight, _, _ = carry
        return (i < MAX_REDRAWS) & (log_weight == -jnp.inf).any()

    u, log_weight = propose(random.fold_in(rng_key, 0))
    zero = jnp.zeros(())
    carry = 1, u, log_weight, *count(log_weight, zero, zero)
    return lax.while_loop(unfinished, redraw, carry)[1:]
