"""The pilot run: it finds a ladder from the base of a GEBM to its tilted law, and tunes samplers on it."""

import math
from typing import NamedTuple

import torch

from gebm.ladder import MAX_RUNGS, NUM_FIRST_MOVES, TARGET_ACCEPT_PROB, TOO_MANY_RUNGS
from pyro_gebm.infer.ladder.tempering import (
    Ladder,
    length_scale_of,
    log_increment,
    move,
    next_rung,
    systematic_resample,
)

__all__ = ["Rungs", "pilot"]


class Rungs(NamedTuple):
    r"""A ladder: lists of numbers.

    Args:
        t: rungs, increasing from 0 to 1.
        step_size: of the trajectories, in units of the length scale.
        length_scale: of the law of the rung.
        barrier: rate at which swaps with the rung are rejected, per unit of t (arXiv:1905.02939):
            $\tfrac12 \mathbb{E}|V - V'|$ for independent finite values V, V' of $\beta E$ there.
        num_gradients: gradients of the energy that the start and every move took.
    """

    t: list[float]
    step_size: list[float]
    length_scale: list[float]
    barrier: list[float]
    num_gradients: list[int]


def pilot(ladder: Ladder, num_particles: int, num_moves: int, fraction: float) -> Rungs:
    """A ladder whose rungs are as far apart as the weights of particles allow, with step sizes adapted along the way.

    Args:
        ladder: `Ladder`.
        num_particles: number of particles.
        num_moves: trajectories on each rung.
        fraction: effective sample size of the weights of a rung over the number of particles.

    Returns:
        `Rungs`.

    Raises:
        RuntimeError: if the energy is NaN or -inf at a draw of the prior, or infinite at all of them, or there would be
            more than 1,000 rungs.
    """
    points = ladder.start(num_particles)
    rungs, step_size, t = Rungs([], [], [], [], [num_particles]), 0.5, 0.0
    while not rungs.t or t < 1.0:
        if len(rungs.t) == MAX_RUNGS:
            raise RuntimeError(TOO_MANY_RUNGS)
        new = next_rung(t, points.neg_beta_energy, fraction) if rungs.t else 0.0
        index = systematic_resample(log_increment(new - t, points.neg_beta_energy))
        points = points.map(lambda x, index=index: x[index])
        t, scale = new, length_scale_of(points.u)
        for i in range(num_moves if rungs.t else NUM_FIRST_MOVES):
            points, accept_prob, num = move(points, ladder, t, step_size, scale, 1)
            rungs.num_gradients.append(num * num_particles)
            step_size *= math.exp((float(accept_prob.mean()) - TARGET_ACCEPT_PROB) / math.sqrt(1.0 + i))
        found = (t, step_size, scale, _half_mean_difference(points.neg_beta_energy))
        for column, value in zip((rungs.t, rungs.step_size, rungs.length_scale, rungs.barrier), found):
            column.append(value)
    return rungs


def _half_mean_difference(x):
    x = x[x.isfinite()].double()
    order = 2.0 * torch.arange(len(x), dtype=x.dtype, device=x.device) - len(x) + 1
    return float(order / len(x) ** 2 @ x.sort().values)
