"""Pure steps of Langevin dynamics, for any number of chains at once; `gebm.langevin` has the equations."""

from collections.abc import Callable
from typing import TypeAlias

import jax
import jax.numpy as jnp
from jax import lax

from gebm.langevin import SPLITTINGS, KineticState
from numpyro_gebm.dynamics.keys import fold_in, split, standard_normal

__all__ = [
    "PerChain",
    "PotentialAndGrad",
    "energy_error",
    "kinetic_energy",
    "kinetic_step",
    "leapfrog_step",
    "overdamped_move",
    "overdamped_step",
    "refreshed",
    "reverse_noise",
    "trajectory",
    "update_slice",
    "value_and_grad",
]

#: A number, or one value a chain.
PerChain: TypeAlias = float | jax.Array
#: From positions to potentials, of shape `chains`, and their gradients.
PotentialAndGrad: TypeAlias = Callable[[jax.Array], tuple[jax.Array, jax.Array]]


def kinetic_step(
    rng_key: jax.Array,
    state: KineticState,
    potential_and_grad: PotentialAndGrad,
    step_size: PerChain,
    friction: PerChain,
    splitting: str = "BAOAB",
    scale: float | jax.Array = 1.0,
) -> KineticState:
    """One step of a splitting of kinetic Langevin dynamics; one gradient of the potential.

    Args:
        rng_key: a JAX random key, or one a chain (shape `chains`).
        state: `KineticState` of shape `chains`.
        potential_and_grad: callable from positions to potentials (shape `chains`) and their gradients.
        step_size: h, in units of time; a scalar or shape `chains`.
        friction: gamma, in units of inverse time; a scalar or shape `chains`; 0 is Hamiltonian dynamics.
        splitting: one of `SPLITTINGS`.
        scale: square root of the diagonal of the inverse mass matrix.

    Returns:
        The next `KineticState`.
    """
    z, v, grad_point, potential_energy, grad = state
    h_gamma, moved = friction * step_size, False
    for i, (letter, share) in enumerate(SPLITTINGS[splitting]):
        tau = share * _over_chains(step_size)
        if letter == "B":
            if moved:
                grad_point, (potential_energy, grad), moved = z, potential_and_grad(z), False
            v = v - tau * (scale * grad)
            continue
        if letter == "A":
            z = z + tau * (scale * v)
        elif letter == "O":
            v = refreshed(fold_in(rng_key, i), v, jnp.exp(-share * h_gamma))
        else:
            displacement, v = _drift_and_noise(fold_in(rng_key, i), v, tau, _over_chains(share * h_gamma))
            z = z + scale * displacement
        moved = moved or letter in "AU"
    return KineticState(z, v, grad_point, potential_energy, grad)


def leapfrog_step(
    state: KineticState, potential_and_grad: PotentialAndGrad, step_size: PerChain, scale: float | jax.Array = 1.0
) -> KineticState:
    """One leapfrog step, BAB: the deterministic part of OBABO.

    Args:
        state: `KineticState` of shape `chains`, its gradient taken at its position.
        potential_and_grad: callable from positions to potentials (shape `chains`) and their gradients.
        step_size: h, in units of time; a scalar or shape `chains`.
        scale: as in `kinetic_step`.

    Returns:
        The next `KineticState`.
    """
    h = _over_chains(step_size)
    v = state.v - 0.5 * h * (scale * state.z_grad)
    z = state.z + h * (scale * v)
    potential_energy, z_grad = potential_and_grad(z)
    return KineticState(z, v - 0.5 * h * (scale * z_grad), z, potential_energy, z_grad)


def trajectory(
    rng_key: jax.Array,
    state: KineticState,
    potential_and_grad: PotentialAndGrad,
    step_size: PerChain,
    friction: PerChain,
    num_steps: int | jax.Array,
    scale: float | jax.Array = 1.0,
) -> tuple[KineticState, jax.Array]:
    """A trajectory of the splitting OBABO, and the energy error of its deterministic parts.

    Args:
        rng_key: a JAX random key, or one a chain (shape `chains`).
        state: `KineticState` of shape `chains`, its gradient taken at its position.
        potential_and_grad: callable from positions to potentials (shape `chains`) and their gradients.
        step_size: h, in units of time; a scalar or shape `chains`.
        friction: gamma, in units of inverse time; a scalar or shape `chains`.
        num_steps: steps, an integer that may be traced.
        scale: as in `kinetic_step`.

    Returns:
        The `KineticState` at the end, and the energy error of shape `chains`: the negative logarithm of the
        acceptance ratio of the whole (arXiv:2202.13230).
    """

    def body(i, carry):
        before, error = carry
        after = kinetic_step(fold_in(rng_key, i), before, potential_and_grad, step_size, friction, "OBABO", scale)
        return after, error + energy_error(before, after, step_size, scale)

    return lax.fori_loop(0, num_steps, body, (state, jnp.zeros_like(state.potential_energy)))


def refreshed(rng_key: jax.Array, v: jax.Array, persistence: PerChain) -> jax.Array:
    r"""Partly refreshed velocity: $\rho v + \sqrt{1 - \rho^2}\, \xi$.

    Args:
        rng_key: a JAX random key, or one a chain.
        v: velocities.
        persistence: $\rho$ in [0, 1]; a scalar or shape `chains`.

    Returns:
        Velocities.
    """
    persistence = _over_chains(persistence)
    return persistence * v + jnp.sqrt(1 - persistence**2) * standard_normal(rng_key, v)


def _drift_and_noise(rng_key, v, tau, a):
    r"""Exact y and v at time tau of $dy = v dt$, $dv = -\gamma v dt + \sqrt{2\gamma} dW$ from y = 0.

    $a = \gamma\tau$.
    """
    small = a < 0.05  # the closed forms cancel there: series to relative 1e-8 instead
    safe = jnp.where(small, 1.0, a)
    drift = jnp.where(small, 1 - a / 2 + a**2 / 6 - a**3 / 24 + a**4 / 120, -jnp.expm1(-safe) / safe)
    third = jnp.where(
        small,
        2 / 3 - a / 2 + 7 * a**2 / 30 - a**3 / 12 + 31 * a**4 / 1260,
        (2 * safe - 3 + 4 * jnp.exp(-safe) - jnp.exp(-2 * safe)) / safe**3,
    )
    variance_v, variance_y = -jnp.expm1(-2 * a), third * a * tau**2
    covariance = a * tau * drift**2
    key_v, key_y = split(rng_key)
    noise_v, noise_y = standard_normal(key_v, v), standard_normal(key_y, v)
    on_v = covariance / jnp.sqrt(jnp.where(a > 0, variance_v, 1.0))
    rest = jnp.sqrt(jnp.maximum(variance_y - on_v**2, 0.0))
    return tau * drift * v + on_v * noise_v + rest * noise_y, jnp.exp(-a) * v + jnp.sqrt(variance_v) * noise_v


def energy_error(
    start: KineticState, end: KineticState, step_size: PerChain, scale: float | jax.Array = 1.0
) -> jax.Array:
    r"""Energy error of the leapfrog step that leads from one gradient point to the next.

    .. math:: \Delta = U_1 - U_0 - \tfrac12 (m_1 - m_0) \cdot (g_1 + g_0)
              + \tfrac{h^2}{8} (|\sigma g_1|^2 - |\sigma g_0|^2)

    For friction 0, and for ABOBA and OBABO at any, it is the energy error of the deterministic part of the step: the
    potential plus the kinetic energy gained in the kicks. Its mean over the stationary law of the exact dynamics is
    of order h^6 per dimension.

    Args:
        start: `KineticState` before.
        end: `KineticState` after.
        step_size: h, a scalar or shape `chains`.
        scale: as in `kinetic_step`.

    Returns:
        Shape `chains`.
    """
    total = end.z_grad + start.z_grad
    move = end.grad_point - start.grad_point
    inner = 0.25 * _over_chains(step_size) ** 2 * (scale**2 * (end.z_grad - start.z_grad)) - move
    return end.potential_energy - start.potential_energy + 0.5 * jnp.sum(total * inner, -1)


def overdamped_step(
    rng_key: jax.Array,
    start: KineticState,
    potential_and_grad: PotentialAndGrad,
    step_size: PerChain,
    scale: float | jax.Array = 1.0,
) -> tuple[KineticState, jax.Array]:
    r"""One overdamped Langevin step and its energy error, before a Metropolis test; the velocity is unchanged.

    Args:
        rng_key: a JAX random key, or one a chain (shape `chains`).
        start: `KineticState` of shape `chains`, its gradient taken at its position.
        potential_and_grad: callable from positions to potentials (shape `chains`) and their gradients.
        step_size: h, in units of $z / \sigma$; a scalar or shape `chains`.
        scale: as in `kinetic_step`.

    Returns:
        The next `KineticState`, and minus the log acceptance ratio, shape `chains`.
    """
    h, noise = _over_chains(step_size), standard_normal(rng_key, start.z)
    z = overdamped_move(start.z, start.z_grad, noise, h, scale)
    potential_energy, z_grad = potential_and_grad(z)
    back = reverse_noise(start.z_grad, z_grad, noise, h, scale)
    error = potential_energy - start.potential_energy + kinetic_energy(back) - kinetic_energy(noise)
    return KineticState(z, start.v, z, potential_energy, z_grad), error


def overdamped_move(
    z: jax.Array, grad: jax.Array, noise: jax.Array, step_size: PerChain, scale: float | jax.Array = 1.0
) -> jax.Array:
    """The next position of an overdamped Langevin step.

    Args:
        z: positions.
        grad: gradient of the potential there.
        noise: standard normal, of the same shape.
        step_size: h, broadcast against `z`.
        scale: as in `kinetic_step`.

    Returns:
        Positions.
    """
    return z - 0.5 * step_size**2 * (scale**2 * grad) + step_size * (scale * noise)


def reverse_noise(
    grad: jax.Array, new_grad: jax.Array, noise: jax.Array, step_size: PerChain, scale: float | jax.Array = 1.0
) -> jax.Array:
    r"""Noise (up to its sign) of the reverse overdamped move.

    The log acceptance ratio of MALA is $U - U' + \tfrac12 (|\xi|^2 - |\xi'|^2)$.

    Args:
        grad: gradient of the potential at the start.
        new_grad: gradient of the potential at the end.
        noise: $\xi$, the noise of the move there.
        step_size: h, broadcast against `noise`.
        scale: as in `kinetic_step`.

    Returns:
        $\xi'$, of the shape of `noise`.
    """
    return noise - 0.5 * step_size * (scale * (grad + new_grad))


def update_slice(u: jax.Array, error: jax.Array, persistence: PerChain) -> tuple[jax.Array, jax.Array]:
    r"""Metropolis test with a slice variable that persists from step to step (arXiv:2001.11950).

    u, uniform on (-1, 1), drifts by $\tfrac12 (1 - \rho^2)$, wrapped around; the step is accepted if
    $\log |u| < -\Delta$, and u is then multiplied by $e^\Delta$. Rejections, which reverse the velocity, come in
    bunches, and between them the velocity persists for long.

    Args:
        u: the slice variable.
        error: energy error $\Delta$ of the step.
        persistence: $\rho$, the factor by which the velocity was kept.

    Returns:
        `(accept, u)`.
    """
    u = (u + 0.5 * (1 - persistence**2) + 1) % 2 - 1
    accept = jnp.log(jnp.abs(u)) < -error
    return accept, jnp.where(accept, u * jnp.exp(jnp.where(accept, error, 0.0)), u)


def kinetic_energy(v: jax.Array) -> jax.Array:
    """Half the squared norm of velocities, shape `chains`."""
    return 0.5 * jnp.sum(v**2, -1)


def value_and_grad(fn: Callable[[jax.Array], jax.Array], u: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Values of a function of independent chains, and their gradients.

    Args:
        fn: callable from positions, shape `chains + (...)`, to values of shape `chains`.
        u: positions.

    Returns:
        `(values, gradients)`.
    """
    value, vjp = jax.vjp(fn, u)
    return value, vjp(jnp.ones_like(value))[0]


def _over_chains(x):
    """A quantity of shape `chains`, or a scalar, to broadcast against positions."""
    return x if jnp.ndim(x) == 0 else x[..., None]
