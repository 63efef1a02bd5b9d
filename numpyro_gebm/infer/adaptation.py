r"""The warm-up: step size, length scale of the law, mass, and when it may end.

Everything is estimated from all chains together. The step size follows the mean acceptance probability by dual
averaging, one update a step. The length scale is

.. math:: s = \sqrt{\operatorname{tr} \Sigma^2 / \operatorname{tr} \Sigma}

with $\Sigma$ the covariance of $z / \sigma$: close to the largest standard deviation (arXiv:2110.11576); friction and
trajectory length follow from it. Time is cut into windows that grow; at the end of each the scale is estimated from its
draws alone, the dual averaging starts again, and the warm-up is over once a window changed next to nothing.
"""

from collections.abc import Callable
from typing import Any, cast

import jax
import jax.numpy as jnp
from jax import lax, random
from numpyro.infer.hmc_util import dual_averaging

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

__all__ = ["adapt", "finish", "init_adaptation", "moments", "on_chain_axis", "start_window"]

_init_dual_averaging, _update_dual_averaging = cast(  # NumPyro's types are of numbers
    tuple[Callable[..., Any], Callable[..., Any]], dual_averaging(gamma=GAMMA)
)


def on_chain_axis(fn: Callable[[jax.Array], jax.Array], state: AdaptState) -> AdaptState:
    """Apply a function to the fields that have an axis of chains."""
    return state._replace(
        step_size=fn(state.step_size),
        length_scale=fn(state.length_scale),
        warmup_converged=fn(state.warmup_converged),
    )


def start_window(z: jax.Array, potential_energy: jax.Array, probes: jax.Array) -> Window:
    """An empty `Window`, centred at positions of shape `(N, d)` and their potentials."""
    zero, zeros = jnp.zeros((), z.dtype), jnp.zeros(z.shape[1], z.dtype)
    center, potential_center = z.mean(0), potential_energy.mean().astype(z.dtype)
    return Window(center, potential_center, probes, zero, zeros, zeros, jnp.zeros_like(probes), zero, zero, zero)


def moments(window: Window) -> tuple[jax.Array, jax.Array, jax.Array, jax.Array]:
    """Length scale s, variances of y of shape `(d,)`, mean and standard deviation of the potential, of a window.

    The trace of the squared covariance is estimated from the covariance applied to the probes (Hutchinson).
    """
    mean = window.total / window.num
    variance = window.total_square / window.num - mean**2
    projected = window.total_projected / window.num - jnp.outer(mean, mean @ window.probes)
    scale = jnp.sqrt(jnp.sum(projected**2) / NUM_PROBES / jnp.sum(variance))
    potential = window.potential / window.num
    deviation = jnp.sqrt(jnp.maximum(window.potential_square / window.num - potential**2, 0.0))
    return scale, variance, window.potential_center + potential, deviation


def init_adaptation(z: jax.Array, potential_energy: jax.Array, step_size: float, first_window: int) -> AdaptState:
    """State of the warm-up before the first step.

    Args:
        z: positions, shape `(N, d)`.
        potential_energy: their potentials, shape `(N,)`.
        step_size: initial step size.
        first_window: steps in the first window.

    Returns:
        An `AdaptState`.
    """
    probes = random.normal(random.key(0), (z.shape[1], NUM_PROBES), z.dtype)
    step = jnp.asarray(step_size, z.dtype)
    return AdaptState(
        step_size=jnp.full(len(z), step),
        length_scale=jnp.ones(len(z), z.dtype),
        warmup_converged=jnp.zeros(len(z), bool),
        scale=jnp.ones(z.shape[1], z.dtype),
        dual_averaging=_init_dual_averaging(jnp.log(step)),
        window=start_window(z, potential_energy, probes),
        window_length=jnp.asarray(first_window, z.dtype),
        window_end=jnp.asarray(first_window),
        before=(jnp.full((), jnp.inf, z.dtype),) * 3,
        num_warmup_steps=jnp.asarray(0),
    )


def adapt(
    state: AdaptState,
    z: jax.Array,
    potential_energy: jax.Array,
    accept_prob: jax.Array,
    target_accept_prob: float,
    *,
    step_size: bool = True,
    mass: bool = False,
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

    Returns:
        The next `AdaptState`.
    """
    state = state._replace(
        window=update_window(state.window, z, potential_energy, accept_prob, state.scale),
        num_warmup_steps=state.num_warmup_steps + 1,
    )
    if step_size:
        averaging = _update_dual_averaging(target_accept_prob - accept_prob.mean(), state.dual_averaging)
        state = state._replace(dual_averaging=averaging, step_size=_like(state.step_size, jnp.exp(averaging[0])))
    ended = state.num_warmup_steps >= state.window_end
    target = target_accept_prob if step_size else None
    return lax.cond(ended, lambda s: _end_window(s, z, potential_energy, target, mass), lambda s: s, state)


def finish(state: AdaptState) -> AdaptState:
    """The averaged step size, for a warm-up that ends before it has converged."""
    averaging = state.dual_averaging
    step_size = jnp.where(averaging[3] > 0, jnp.exp(averaging[1]), state.step_size)
    return state._replace(step_size=_like(state.step_size, step_size))


def _end_window(state, z, potential_energy, target, mass):
    scale, variance, potential, deviation = moments(state.window)
    scale = jnp.where(scale > 0, scale, state.length_scale[0])  # chains that have not moved tell nothing
    state = finish(state)
    now = (jnp.log(state.step_size[0]), jnp.log(scale), potential)
    changes = [jnp.abs(new - old) for new, old in zip(now, state.before)]
    converged = (changes[1] < LOG_TOLERANCE) & (changes[2] < POTENTIAL_TOLERANCE * deviation)
    if target is not None:
        off_target = jnp.abs(state.window.accept_prob / state.window.num - target)
        converged = converged & (changes[0] < LOG_TOLERANCE) & (off_target < ACCEPT_TOLERANCE)
    if mass:
        root = jnp.sqrt(jnp.where(variance > 0, variance, 1.0))
        state, scale = state._replace(scale=state.scale * root), scale / jnp.sqrt((root**2).mean())
    length = jnp.ceil(GROWTH * state.window_length)
    return state._replace(
        length_scale=_like(state.length_scale, scale),
        warmup_converged=jnp.full_like(state.warmup_converged, converged),
        dual_averaging=_like_tree(state.dual_averaging, _init_dual_averaging(now[0])),
        window=start_window(z, potential_energy, state.window.probes),
        window_length=length,
        window_end=state.window_end + length.astype(state.window_end.dtype),
        before=now,
    )


def _like(like, value):
    return jnp.full_like(like, value)


def _like_tree(like, tree):
    return jax.tree.map(lambda old, new: jnp.asarray(new, jnp.result_type(old)), like, tree)
