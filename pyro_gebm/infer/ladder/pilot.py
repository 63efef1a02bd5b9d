"""The pilot run: a ladder from the base of a GEBM to its tilted law, and what samplers on it are tuned with."""

import math
from typing import NamedTuple

import numpy as np
import torch

from pyro_gebm.infer.ladder.tempering import (
    Points,
    length_scale_of,
    log_increment,
    move,
    next_rung,
    systematic_resample,
)

__all__ = ["MAX_RUNGS", "Rungs", "pilot", "spaced_evenly"]

#: Most rungs of a ladder.
MAX_RUNGS = 1000
#: Acceptance that step sizes are adapted to, and trajectories on the prior that find the first of them.
TARGET_ACCEPT_PROB, NUM_FIRST_MOVES = 0.8, 20


class Rungs(NamedTuple):
    r"""A ladder: lists of numbers.

    Args:
        t: rungs, increasing from 0 to 1.
        step_size: of the trajectories, in units of the length scale.
        length_scale: of the law of the rung.
        barrier: $\tfrac12 \mathbb{E}|V - V'|$ for independent tilts V, V' of the rung: the rate at which swaps with it
            are rejected, per unit of t (arXiv:1905.02939).
        num_gradients: gradients of the energy that the start and every move took.
    """

    t: list
    step_size: list
    length_scale: list
    barrier: list
    num_gradients: list


def pilot(ladder, num_particles, num_moves, fraction):
    """A ladder, each rung as far up as the weights of particles allow, its step size adapted on the way.

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
            raise RuntimeError(
                f"The ladder needs more than {MAX_RUNGS} rungs. Lower the inverse temperature or effective_fraction."
            )
        new = next_rung(t, points.neg_beta_energy, fraction) if rungs.t else 0.0
        index = systematic_resample(log_increment(new - t, points.neg_beta_energy))
        points = Points(*(x[index] for x in points))
        t, scale = new, length_scale_of(points.u)
        for i in range(num_moves if rungs.t else NUM_FIRST_MOVES):
            points, accept_prob, num = move(points, ladder, t, step_size, scale, 1)
            rungs.num_gradients.append(num * num_particles)
            step_size *= math.exp((float(accept_prob.mean()) - TARGET_ACCEPT_PROB) / math.sqrt(1.0 + i))
        for found, value in zip(rungs, (t, step_size, scale, _half_mean_difference(points.neg_beta_energy))):
            found.append(value)
    return rungs


def spaced_evenly(rungs, num_rungs=None):
    r"""A ladder with the same rate of rejected swaps between all neighbours (arXiv:1905.02939).

    Args:
        rungs: `Rungs` of a pilot run.
        num_rungs: how many; None is $2 \Lambda + 1$, rounded up, at least 2; $\Lambda$ is the integral of the barrier.

    Returns:
        `(t, step size, length scale)`: arrays of NumPy, but the step size is one for all, the smallest.
    """
    t, step_size, length_scale, barrier = (np.array(x) for x in rungs[:4])
    total = np.concatenate([[0.0], np.cumsum(np.diff(t) * 0.5 * (barrier[1:] + barrier[:-1]))])
    num = max(2, int(np.ceil(2 * total[-1])) + 1) if num_rungs is None else num_rungs
    shares = np.linspace(0.0, total[-1], num)
    even = np.interp(shares, total, t) if total[-1] > 0 else np.linspace(0.0, 1.0, num)
    even[0], even[-1] = 0.0, 1.0
    return even, float(step_size.min()), np.interp(even, t, length_scale)


def _half_mean_difference(x):
    order = 2.0 * torch.arange(len(x), dtype=x.dtype, device=x.device) - len(x) + 1
    return float(order @ x.sort().values) / len(x) ** 2
