"""The pilot run: it finds a ladder from the base of a GEBM to its tilted law, and tunes samplers on it."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax, random

from gebm.ladder import MAX_RUNGS, NUM_FIRST_MOVES, TARGET_ACCEPT_PROB, TOO_MANY_RUNGS
from numpyro_gebm.infer.ladder.tempering import (
    Failures,
    Ladder,
    length_scale_of,
    log_increment,
    move,
    next_rung,
    systematic_resample,
)

__all__ = ["Rungs", "pilot"]


class Rungs(NamedTuple):
    r"""A ladder: arrays of `MAX_RUNGS`, of which `num` are used.

    Args:
        t: rungs, increasing from 0 to 1.
        step_size: of the trajectories, in units of the length scale.
        length_scale: of the law of the rung.
        barrier: rate at which swaps with the rung are rejected, per unit of t (arXiv:1905.02939):
            $\tfrac12 \mathbb{E}|V - V'|$ for independent finite values V, V' of $\beta E$ there.
        num: how many rungs there are.
        num_gradients: gradients of the energy that the run took.
    """

    t: jax.Array
    step_size: jax.Array
    length_scale: jax.Array
    barrier: jax.Array
    num: jax.Array
    num_gradients: jax.Array


def pilot(
    ladder: Ladder, rng_key: jax.Array, num_particles: int, num_moves: int, fraction: float
) -> tuple[Rungs, Failures]:
    """A ladder whose rungs are as far apart as the weights of particles allow, with step sizes adapted along the way.

    Args:
        ladder: `Ladder`.
        rng_key: a JAX random key.
        num_particles: number of particles.
        num_moves: trajectories on each rung.
        fraction: effective sample size of the weights of a rung over the number of particles.

    Returns:
        `Rungs`, and whether the energy is NaN or -inf at a draw of the prior, or infinite at all of them, or there
        would be more than 1,000 rungs.
    """
    key_start, key = random.split(rng_key)
    points, failures = ladder.start(key_start, num_particles)
    sound = ~jnp.stack(list(failures.values())).any()

    def unfinished(carry):
        _, rungs, _ = carry
        return sound & ((rungs.num == 0) | ((rungs.t[rungs.num - 1] < 1) & (rungs.num < MAX_RUNGS)))

    def climb(carry):
        points, rungs, step_size = carry
        first, t = rungs.num == 0, rungs.t[rungs.num - 1]  # of empty rungs the last is 0
        new = jnp.where(first, 0.0, next_rung(t, points.neg_beta_energy, fraction))
        key_resample, key_move = random.split(random.fold_in(key, rungs.num))
        index = systematic_resample(key_resample, log_increment(new - t, points.neg_beta_energy))
        points = jax.tree.map(lambda x: x[index], points)
        scale = length_scale_of(points.u)

        def adapt(i, carry):
            points, step_size, num_gradients = carry
            points, accept_prob, num = move(random.fold_in(key_move, i), points, ladder, new, step_size, scale, 1)
            step_size = step_size * jnp.exp((accept_prob.mean() - TARGET_ACCEPT_PROB) / jnp.sqrt(1.0 + i))
            return points, step_size, num_gradients + num * num_particles

        num = jnp.where(first, NUM_FIRST_MOVES, num_moves)
        points, step_size, num_gradients = lax.fori_loop(0, num, adapt, (points, step_size, rungs.num_gradients))
        found = (new, step_size, scale, _half_mean_difference(points.neg_beta_energy))
        t, step_sizes, scales, barriers = (x.at[rungs.num].set(y) for x, y in zip(rungs, found))
        return points, Rungs(t, step_sizes, scales, barriers, rungs.num + 1, num_gradients), step_size

    empty = jnp.zeros(MAX_RUNGS, points.neg_beta_energy.dtype)
    start = (
        points,
        Rungs(empty, empty, empty, empty, jnp.asarray(0), jnp.asarray(num_particles)),
        jnp.asarray(0.5, empty.dtype),
    )
    _, rungs, _ = lax.while_loop(unfinished, climb, start)
    return rungs, failures | {TOO_MANY_RUNGS: (rungs.num == MAX_RUNGS) & (rungs.t[-1] < 1)}


def _half_mean_difference(x):
    finite = jnp.isfinite(x)
    x, num, i = jnp.sort(jnp.where(finite, x, jnp.inf)), finite.sum(), jnp.arange(len(x))
    return jnp.sum((2.0 * i - num + 1) / num**2 * x, where=i < num)
