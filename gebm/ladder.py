"""The ladder from a base to its tilted law: spacing, settings, warnings and messages of the samplers on it."""

from collections.abc import Callable
from typing import Any, Final, Generic, NamedTuple, TypeVar

import numpy as np

from gebm.weights import LogPartition

__all__ = [
    "BATCH_SIZE",
    "DELAY",
    "FIRST_RUNG",
    "FRICTION",
    "MAX_RUNGS",
    "MAX_STEPS",
    "MIN_ACCEPT_PROB",
    "NUM_FIRST_MOVES",
    "NUM_HALVINGS",
    "NUM_PILOT",
    "NUM_PILOT_MOVES",
    "PILOT_FRACTION",
    "REAL_ENERGIES",
    "TARGET_ACCEPT_PROB",
    "TOO_MANY_RUNGS",
    "TRAJECTORY_LENGTH",
    "Points",
    "SMCResult",
    "batched",
    "check_groups",
    "no_finite_energy",
    "no_finite_start",
    "slopes",
    "spaced_evenly",
    "with_warning",
]

Array = TypeVar("Array")

#: Friction and length of a trajectory in units of the length scale of the law, and the most steps it takes.
FRICTION: Final = 0.5
TRAJECTORY_LENGTH: Final = 1.57
MAX_STEPS: Final = 64
#: The lowest rung above 0, on which only infinite energies count, and the shortest way from one rung to the next.
FIRST_RUNG: Final = 1e-30
#: Halvings of the interval in which the next rung lies.
NUM_HALVINGS: Final = 40
#: Most rungs of a ladder.
MAX_RUNGS: Final = 1000
#: Acceptance that step sizes are adapted to, and trajectories on the prior that find the first of them.
TARGET_ACCEPT_PROB: Final = 0.8
NUM_FIRST_MOVES: Final = 20
#: Particles of a pilot run, at most.
NUM_PILOT: Final = 1024
#: Of the pilot run of replica exchange: trajectories on each rung, effective sample size of its weights over their
#: number.
NUM_PILOT_MOVES: Final = 4
PILOT_FRACTION: Final = 0.7
#: Base draws whose energies are computed at once.
BATCH_SIZE: Final = 4096
#: Seconds after which a progress bar is shown.
DELAY: Final = 2.0
#: Acceptance of the moves on a rung below which an estimate comes with a warning.
MIN_ACCEPT_PROB: Final = 0.1

REAL_ENERGIES: Final = "Expected energies above -inf; got NaN or -inf at a draw of the base."
TOO_MANY_RUNGS: Final = (
    f"The ladder needs more than {MAX_RUNGS} rungs. Lower the inverse temperature or effective_fraction."
)


class Points(NamedTuple, Generic[Array]):
    """Positions `u` on the ladder, shape `(N, d)`, with log prior, -beta E (shape `(N,)`), gradients."""

    u: Array
    log_prior: Array
    log_prior_grad: Array
    neg_beta_energy: Array
    neg_beta_energy_grad: Array

    def map(self, fn: Callable[..., Any], *others: "Points[Array]") -> "Points[Array]":
        """Apply a function to every array, as `jax.tree.map` does."""
        return Points(*map(fn, self, *others))


class SMCResult(NamedTuple, Generic[Array]):
    """Result of `SMC.run`.

    Args:
        z: particles of the tilted law, all of the same weight, shape `(num_particles,) + event_shape`.
        log_partition: `LogPartition` of the whole ladder, log Z with its standard error.
        inverse_temperatures: the ladder, from 0 to the GEBM's, shape `(K,)`.
        log_partitions: log Z at each of them, shape `(K,)`.
        mean_energies: mean energy at each of them, shape `(K,)`: minus the derivative of log Z.
        step_sizes: of the trajectories, shape `(K,)`.
        accept_probs: mean acceptance probability, shape `(K,)`.
        num_gradients: gradients of the energy that it took, those of the pilot run included.
    """

    z: Array
    log_partition: LogPartition
    inverse_temperatures: np.ndarray
    log_partitions: np.ndarray
    mean_energies: np.ndarray
    step_sizes: np.ndarray
    accept_probs: np.ndarray
    num_gradients: int


def no_finite_energy(num: int) -> str:
    """The message for energies that are infinite at all draws of the base."""
    return (
        f"Expected finite energies at some draws of the base; got inf at all {num} of them: it is finite on less than "
        f"{1 / num:.2g} of the base. Widen the base, or soften the constraint."
    )


def no_finite_start(num: int, num_tried: int) -> str:
    """The message for chains that found no start of finite energy on the base."""
    return (
        f"Expected a finite energy somewhere on the base; {num} chains found none in {num_tried} draws each: it is "
        f"finite on less than {1 / num_tried:.2g} of the base. Widen the base, or soften the constraint."
    )


def batched(batch_shape: tuple[int, ...]) -> str:
    """The message for a GEBM with a batch shape."""
    return f"Expected a GEBM with batch_shape (); got {tuple(batch_shape)}. Use one member of the batch at a time."


def check_groups(num_particles: int, num_groups: int) -> None:
    """Check that particles can be divided into groups of equal size.

    Raises:
        ValueError: if not.
    """
    if num_particles % num_groups:
        raise ValueError(
            f"Expected num_particles to be a multiple of num_groups; got num_particles={num_particles}, "
            f"num_groups={num_groups}. Use {-(-num_particles // num_groups) * num_groups}."
        )


def spaced_evenly(
    t: np.ndarray,
    step_size: np.ndarray,
    length_scale: np.ndarray,
    barrier: np.ndarray,
    num_rungs: int | None = None,
) -> tuple[np.ndarray, float, np.ndarray]:
    r"""A ladder with the same rate of rejected swaps between all neighbours (arXiv:1905.02939).

    Args:
        t: rungs of a pilot run, increasing from 0 to 1, shape `(K,)`.
        step_size: of its trajectories, shape `(K,)`.
        length_scale: of the laws of its rungs, shape `(K,)`.
        barrier: rate at which swaps are rejected, per unit of t, shape `(K,)`. Between two rungs of the pilot run no
            more than all swaps are rejected, however large it is.
        num_rungs: how many; None is $2 \Lambda + 1$, rounded up, at least 2; $\Lambda$ is the integral of the barrier.

    Returns:
        `(t, step size, length scale)`; the step size is one for all, the smallest.
    """
    rejected = np.nan_to_num(np.diff(t) * 0.5 * (barrier[1:] + barrier[:-1]), nan=1.0)  # NaN: infinite energies
    total = np.concatenate([[0.0], np.cumsum(np.minimum(rejected, 1.0))])
    num = max(2, int(np.ceil(2 * total[-1])) + 1) if num_rungs is None else num_rungs
    shares = np.linspace(0.0, total[-1], num)
    even = np.interp(shares, total, t) if total[-1] > 0 else np.linspace(0.0, 1.0, num)
    even[0], even[-1] = 0.0, 1.0
    return even, float(step_size.min()), np.interp(even, t, length_scale)


def slopes(inverse_temperatures: np.ndarray, log_partitions: np.ndarray, mean_energies: np.ndarray) -> np.ndarray:
    """Derivatives of log Z on the rungs of a ladder: minus the mean energies.

    Args:
        inverse_temperatures: the ladder, shape `(K,)`.
        log_partitions: log Z, shape `(K,)`.
        mean_energies: shape `(K,)`; where the first is infinite, as where the energy is on a part of the base, the
            slope there is thrice that of the chord, which makes the curve as steep as it can be convex.

    Returns:
        Shape `(K,)`.

    Raises:
        ValueError: if another one is not finite.
    """
    slopes = -np.asarray(mean_energies)
    if slopes[0] == -np.inf:
        slopes[0] = 3 * (log_partitions[1] - log_partitions[0]) / (inverse_temperatures[1] - inverse_temperatures[0])
    if not np.isfinite(slopes).all():
        raise ValueError(
            "Expected finite energies on the ladder; their mean is infinite, and log Z(beta) has no slope there."
        )
    return slopes


def with_warning(
    log_partition: LogPartition, inverse_temperatures: np.ndarray, accept_probs: np.ndarray
) -> LogPartition:
    """An estimate, with a warning if particles hardly moved on some rung.

    Args:
        log_partition: the estimate.
        inverse_temperatures: the ladder, shape `(K,)`.
        accept_probs: mean acceptance probability of the moves on each rung, shape `(K,)`.

    Returns:
        The estimate.
    """
    lowest = 1 + int(np.argmin(accept_probs[1:]))
    if accept_probs[lowest] >= MIN_ACCEPT_PROB:
        return log_partition
    warning = (
        f"At beta = {inverse_temperatures[lowest]:.3g}, only {100 * accept_probs[lowest]:.1f} % of the moves were "
        "accepted: the particles are copies of a few, and the estimate cannot be trusted. If the scales of the latents "
        "are very different, rescale them."
    )
    return log_partition._replace(warnings=(*log_partition.warnings, warning))
