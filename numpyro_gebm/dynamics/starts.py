"""Starts of chains: draws of finite log-weight."""

from collections.abc import Callable
from typing import TypeVar

import jax
import jax.numpy as jnp
from jax import lax

from gebm.annealing import MAX_REDRAWS
from numpyro_gebm.dynamics.keys import fold_in
from numpyro_gebm.dynamics.metropolis import choose

__all__ = ["finite_start"]

Point = TypeVar("Point")


def finite_start(
    rng_key: jax.Array, propose: Callable[[jax.Array], tuple[Point, jax.Array]]
) -> tuple[Point, jax.Array, jax.Array, jax.Array]:
    """Draws of many chains, drawn anew, 1,000 times at most, where their log-weight is -inf.

    Args:
        rng_key: a JAX random key, or one a chain.
        propose: callable from such a key to a draw for every chain, a pytree with leading axes `chains`, and its
            log-weight, shape `chains`.

    Returns:
        `(draw, log_weight, finite, tried)`: draws, their log-weights, how many draws had one above -inf, and how many
        there were.
    """

    def redraw(carry):
        i, point, log_weight, finite, tried = carry
        new_point, new = propose(fold_in(rng_key, i))
        finite, tried = finite + (new > -jnp.inf).sum(), tried + new.size
        return i + 1, *choose(log_weight == -jnp.inf, (new_point, new), (point, log_weight)), finite, tried

    def unfinished(carry):
        i, _, log_weight, _, _ = carry
        return (i < MAX_REDRAWS) & (log_weight == -jnp.inf).any()

    shapes = jax.eval_shape(propose, rng_key)  # nothing is drawn yet: the program has `propose` once
    point, log_weight = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)
    zero = jnp.zeros(())
    return lax.while_loop(unfinished, redraw, (0, point, jnp.full_like(log_weight, -jnp.inf), zero, zero))[1:]
