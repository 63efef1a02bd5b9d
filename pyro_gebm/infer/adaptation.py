r"""The warm-up: step size, length scale of the law, mass, and when it may end.

Everything is estimated from all chains together. The step size follows the mean acceptance probability by dual
averaging, one update a step. The length scale is

.. math:: s = \sqrt{\operatorname{tr} \Sigma^2 / \operatorname{tr} \Sigma}

with $\Sigma$ the covariance of $z / \sigma$: close to the largest standard deviation (arXiv:2110.11576); friction and
trajectory length follow from it. Time is cut into windows that grow; at the end of each the scale is estimated from its
draws alone, the dual averaging starts again, and the warm-up is over once a window changed next to nothing. Only there
are numbers read off the device.
"""

import math

import torch
from pyro.ops.dual_averaging import DualAveraging

from gebm.langevin import (
    ACCEPT_TOLERANCE,
    GAMMA,
    GROWTH,
    LOG_TOLERANCE,
    NUM_PROBES,
    POTENTIAL_TOLERANCE,
    AdaptState,
    Window,
    update_window,
)
from pyro_gebm.processes import ALONE, Processes

__all__ = ["adapt", "finish", "init_adaptation", "moments", "start_window"]


def _dual_averaging(log_step_size: float) -> DualAveraging:
    return DualAveraging(log_step_size, gamma=GAMMA)  # pyright: ignore[reportArgumentType]  # Pyro's default is an int


def start_window(
    z: torch.Tensor, potential_energy: torch.Tensor, probes: torch.Tensor, processes: Processes = ALONE
) -> Window:
    """An empty `Window`, centred at positions of shape `(N, d)` and their potentials."""
    zero, zeros = torch.zeros_like(potential_energy[0]), torch.zeros_like(z[0])
    center, potential_center = processes.mean([z.mean(0), potential_energy.mean()])
    return Window(center, potential_center, probes, 0, zeros, zeros, torch.zeros_like(probes), zero, zero, zero)


def _of_all(window, processes):
    """A window with the sums of all processes."""
    names = ("total", "total_square", "total_projected", "potential", "potential_square", "accept_prob")
    sums = processes.sum([getattr(window, name) for name in names])
    return window._replace(num=window.num * processes.size, **dict(zip(names, sums)))


def moments(window: Window) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Length scale s, variances of y of shape `(d,)`, mean and standard deviation of the potential, of a window.

    The trace of the squared covariance is estimated from the covariance applied to the probes (Hutchinson).
    """
    mean = window.total / window.num
    variance = window.total_square / window.num - mean**2
    projected = window.total_projected / window.num - torch.outer(mean, mean @ window.probes)
    scale = ((projected**2).sum() / NUM_PROBES / variance.sum()).sqrt()
    potential = window.potential / window.num
    deviation = (window.potential_square / window.num - potential**2).clamp(min=0.0).sqrt()
    return scale, variance, window.potential_center + potential, deviation


def init_adaptation(
    z: torch.Tensor, potential_energy: torch.Tensor, step_size: float, first_window: int, processes: Processes = ALONE
) -> AdaptState:
    """State of the warm-up before the first step.

    Args:
        z: positions, shape `(N, d)`.
        potential_energy: their potentials, shape `(N,)`.
        step_size: initial step size.
        first_window: steps in the first window.
        processes: that each have a part of the chains.

    Returns:
        An `AdaptState`.
    """
    generator = torch.Generator().manual_seed(0)
    probes = torch.randn(z.shape[1], NUM_PROBES, generator=generator, dtype=torch.float64).to(z)
    return AdaptState(
        step_size=float(step_size),
        length_scale=1.0,
        warmup_converged=False,
        scale=1.0,
        dual_averaging=_dual_averaging(math.log(step_size)),
        window=start_window(z, potential_energy, probes, processes),
        window_length=first_window,
        window_end=first_window,
        before=(math.inf,) * 3,
        num_warmup_steps=0,
    )


def adapt(
    state: AdaptState,
    z: torch.Tensor,
    potential_energy: torch.Tensor,
    accept_prob: torch.Tensor,
    target_accept_prob: float,
    *,
    step_size: bool = True,
    mass: bool = False,
    processes: Processes = ALONE,
) -> AdaptState:
    """One update of the warm-up after a step.

    Args:
        state: `AdaptState`.
        z: positions, shape `(N, d)`.
        potential_energy: their potentials, shape `(N,)`.
        accept_prob: acceptance probabilities, shape `(N,)`.
        target_accept_prob: what their mean should be.
        step_size: whether the step size is adapted.
        mass: whether the mass is.
        processes: that each have a part of the chains, and adapt alike: a number of each is added up in every step, and
            the sums of a window at its end.

    Returns:
        The next `AdaptState`.
    """
    state = state._replace(
        window=update_window(state.window, z, potential_energy, accept_prob, state.scale),
        num_warmup_steps=state.num_warmup_steps + 1,
    )
    if step_size:
        (mean,) = processes.mean([accept_prob.mean()])
        state.dual_averaging.step(target_accept_prob - mean)
        state = state._replace(step_size=state.dual_averaging.get_state()[0].exp())
    if state.num_warmup_steps < state.window_end:
        return state
    return _end_window(state, z, potential_energy, target_accept_prob if step_size else None, mass, processes)


def finish(state: AdaptState) -> AdaptState:
    """The averaged step size, for a warm-up that ends before it has converged."""
    if state.dual_averaging._t == 0:
        return state
    return state._replace(step_size=float(state.dual_averaging.get_state()[1].exp()))


def _end_window(state, z, potential_energy, target, mass, processes):
    state = state._replace(window=_of_all(state.window, processes))
    scale, variance, potential, deviation = moments(state.window)
    scale = torch.where(scale > 0, scale, state.length_scale)  # chains that have not moved tell nothing
    state = finish(state)
    now = (math.log(state.step_size), math.log(scale), float(potential))
    changes = [abs(new - old) for new, old in zip(now, state.before)]
    converged = changes[1] < LOG_TOLERANCE and changes[2] < POTENTIAL_TOLERANCE * float(deviation)
    if target is not None:
        off_target = abs(float(state.window.accept_prob) / state.window.num - target)
        converged = converged and changes[0] < LOG_TOLERANCE and off_target < ACCEPT_TOLERANCE
    if mass:
        root = torch.where(variance > 0, variance, 1.0).sqrt()
        state, scale = state._replace(scale=state.scale * root), scale / (root**2).mean().sqrt()
    length = math.ceil(GROWTH * state.window_length)
    return state._replace(
        length_scale=float(scale),
        warmup_converged=converged,
        dual_averaging=_dual_averaging(now[0]),
        window=start_window(z, potential_energy, state.window.probes, processes),
        window_length=length,
        window_end=state.window_end + length,
        before=now,
    )
