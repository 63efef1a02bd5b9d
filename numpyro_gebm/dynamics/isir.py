r"""Global moves by iterated sampling importance resampling (i-SIR, arXiv:2111.02702)."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import lax, random

from numpyro_gebm.dynamics.metropolis import choose

__all__ = ["isir"]


def isir(
    rng_key: jax.Array,
    u: jax.Array,
    log_weight: jax.Array,
    propose: Callable[[jax.Array], tuple[jax.Array, jax.Array]],
    num_candidates: int,
) -> tuple[jax.Array, jax.Array, jax.Array]:
    r"""Keep one of a position and K fresh candidates, with probability proportional to its weight.

    With candidates from a law q and weights $w = \pi / q$ that leaves $\pi$ invariant for every K. A candidate whose
    weight is NaN is never kept.

    Args:
        rng_key: a JAX random key.
        u: positions, shape `chains + (...)`.
        log_weight: their log-weights, shape `chains`.
        propose: callable from a random key to a candidate for every chain and its log-weight.
        num_candidates: K.

    Returns:
        `(u, moved, accept_prob)`: new positions, whether a candidate was kept, and the probability of that (NaN where
        all candidates have weight 0).
    """

    def consider(carry, key):  # the largest of log-weight plus Gumbel noise is a draw in proportion to the weights
        u, score, moved, total = carry
        key_propose, key_noise = random.split(key)
        candidate, log_weight = propose(key_propose)
        log_weight = jnp.where(jnp.isnan(log_weight), -jnp.inf, log_weight)
        new_score = log_weight + random.gumbel(key_noise, log_weight.shape, log_weight.dtype)
        better = new_score > score
        u, score = choose(better, (candidate, new_score), (u, score))
        return (u, score, moved | better, jnp.logaddexp(total, log_weight)), None

    key_noise, key_candidates = random.split(rng_key)
    score = log_weight + random.gumbel(key_noise, log_weight.shape, log_weight.dtype)
    carry = u, score, jnp.zeros(score.shape, bool), jnp.full_like(log_weight, -jnp.inf)
    (u, _, moved, total), _ = lax.scan(consider, carry, random.split(key_candidates, num_candidates))
    return u, moved, jnp.where(total > -jnp.inf, jax.nn.sigmoid(total - log_weight), jnp.nan)
