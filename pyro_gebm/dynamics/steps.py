"""Pure steps of Langevin dynamics, for any number of chains at once; `gebm.langevin` has the equations.

Noise is of PyTorch's global generator.
"""

import math
from collections.abc import Callable
from typing import TypeAlias

import torch

from gebm.langevin import SPLITTINGS, KineticState

__all__ = [
    "PotentialAndGrad",
    "Scalar",
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

#: A number, or a scalar.
Scalar: TypeAlias = float | torch.Tensor
#: From positions to potentials, of shape `chains`, and their gradients.
PotentialAndGrad: TypeAlias = Callable[[torch.Tensor], tuple[torch.Tensor, torch.Tensor]]


def kinetic_step(
    state: KineticState,
    potential_and_grad: PotentialAndGrad,
    step_size: Scalar,
    friction: Scalar,
    splitting: str = "BAOAB",
    scale: Scalar = 1.0,
) -> KineticState:
    """One step of a splitting of kinetic Langevin dynamics; one gradient of the potential.

    Args:
        state: `KineticState` of shape `chains`.
        potential_and_grad: callable from positions to potentials (shape `chains`) and their gradients.
        step_size: h, in units of time; a number or a scalar.
        friction: gamma, in units of inverse time; a number or a scalar; 0 is Hamiltonian dynamics.
        splitting: one of `SPLITTINGS`.
        scale: square root of the diagonal of the inverse mass matrix.

    Returns:
        The next `KineticState`.
    """
    z, v, grad_point, potential_energy, grad = state
    h_gamma, moved = friction * step_size, False
    for letter, share in SPLITTINGS[splitting]:
        tau = share * step_size
        if letter == "B":
            if moved:
                grad_point, (potential_energy, grad), moved = z, potential_and_grad(z), False
            v = _plus(v, -tau, _scaled(grad, scale))
            continue
        if letter == "A":
            z = _plus(z, tau, _scaled(v, scale))
        elif letter == "O":
            v = refreshed(v, _exp(-share * h_gamma))
        else:
            displacement, v = _drift_and_noise(v, tau, share * h_gamma)
            z = z + _scaled(displacement, scale)
        moved = moved or letter in "AU"
    return KineticState(z, v, grad_point, potential_energy, grad)


def trajectory(
    state: KineticState,
    potential_and_grad: PotentialAndGrad,
    step_size: Scalar,
    friction: Scalar,
    num_steps: int,
    scale: Scalar = 1.0,
) -> tuple[KineticState, torch.Tensor]:
    """A trajectory of the splitting OBABO, and the energy error of its deterministic parts.

    Args:
        state: `KineticState` of shape `chains`, its gradient taken at its position.
        potential_and_grad: callable from positions to potentials (shape `chains`) and their gradients.
        step_size: h, in units of time; a number or a scalar.
        friction: gamma, in units of inverse time; a number or a scalar.
        num_steps: steps.
        scale: as in `kinetic_step`.

    Returns:
        The `KineticState` at the end, and the energy error of shape `chains`: the negative logarithm of the
        acceptance ratio of the whole (arXiv:2202.13230).
    """
    error = torch.zeros_like(state.potential_energy)
    for _ in range(num_steps):
        before = state
        state = kinetic_step(before, potential_and_grad, step_size, friction, "OBABO", scale)
        error = error + energy_error(before, state, step_size, scale)
    return state, error


def leapfrog_step(
    state: KineticState, potential_and_grad: PotentialAndGrad, step_size: Scalar, scale: Scalar = 1.0
) -> KineticState:
    """One leapfrog step, BAB: the deterministic part of OBABO.

    Args:
        state: `KineticState` of shape `chains`, its gradient taken at its position.
        potential_and_grad: callable from positions to potentials (shape `chains`) and their gradients.
        step_size: h, in units of time; a number or a scalar.
        scale: as in `kinetic_step`.

    Returns:
        The next `KineticState`.
    """
    v = _plus(state.v, -0.5 * step_size, _scaled(state.z_grad, scale))
    z = _plus(state.z, step_size, _scaled(v, scale))
    potential_energy, z_grad = potential_and_grad(z)
    return KineticState(z, _plus(v, -0.5 * step_size, _scaled(z_grad, scale)), z, potential_energy, z_grad)


def refreshed(v: torch.Tensor, persistence: Scalar) -> torch.Tensor:
    r"""Partly refreshed velocity: $\rho v + \sqrt{1 - \rho^2}\, \xi$.

    Args:
        v: velocities.
        persistence: $\rho$ in [0, 1]; a number or a scalar.

    Returns:
        Velocities.
    """
    return _plus(persistence * v, (1 - persistence**2) ** 0.5, torch.randn_like(v))


def _drift_and_noise(v, tau, a):
    r"""Exact y and v at time tau of $dy = v dt$, $dv = -\gamma v dt + \sqrt{2\gamma} dW$ from y = 0.

    $a = \gamma\tau$.
    """
    a = torch.as_tensor(a, dtype=torch.float64, device=v.device)
    small = a < 0.05  # the closed forms cancel there: series to relative 1e-8 instead
    safe = torch.where(small, 1.0, a)
    drift = torch.where(small, 1 - a / 2 + a**2 / 6 - a**3 / 24 + a**4 / 120, -torch.expm1(-safe) / safe)
    third = torch.where(
        small,
        2 / 3 - a / 2 + 7 * a**2 / 30 - a**3 / 12 + 31 * a**4 / 1260,
        (2 * safe - 3 + 4 * torch.exp(-safe) - torch.exp(-2 * safe)) / safe**3,
    )
    variance_v, variance_y = -torch.expm1(-2 * a), third * a * tau**2
    covariance = a * tau * drift**2
    on_v = covariance / torch.where(a > 0, variance_v, 1.0).sqrt()
    rest = (variance_y - on_v**2).clamp(min=0.0).sqrt()
    noise_v, noise_y = torch.randn_like(v), torch.randn_like(v)
    factors = (tau * drift, on_v, rest, torch.exp(-a), variance_v.sqrt())
    drift, on_v, rest, decay, deviation = (factor.to(v.dtype) for factor in factors)
    return drift * v + on_v * noise_v + rest * noise_y, decay * v + deviation * noise_v


def energy_error(start: KineticState, end: KineticState, step_size: Scalar, scale: Scalar = 1.0) -> torch.Tensor:
    r"""Energy error of the leapfrog step that leads from one gradient point to the next.

    .. math:: \Delta = U_1 - U_0 - \tfrac12 (m_1 - m_0) \cdot (g_1 + g_0)
              + \tfrac{h^2}{8} (|\sigma g_1|^2 - |\sigma g_0|^2)

    For friction 0, and for ABOBA and OBABO at any, it is the energy error of the deterministic part of the step: the
    potential plus the kinetic energy gained in the kicks. Its mean over the stationary law of the exact dynamics is
    of order h^6 per dimension.

    Args:
        start: `KineticState` before.
        end: `KineticState` after.
        step_size: h, a number or a scalar.
        scale: as in `kinetic_step`.

    Returns:
        Shape `chains`.
    """
    total = end.z_grad + start.z_grad
    move = end.grad_point - start.grad_point
    inner = _plus(-move, 0.25 * step_size**2, _scaled(end.z_grad - start.z_grad, scale**2))
    return end.potential_energy - start.potential_energy + 0.5 * _dot(total, inner)


def overdamped_step(
    start: KineticState, potential_and_grad: PotentialAndGrad, step_size: Scalar, scale: Scalar = 1.0
) -> tuple[KineticState, torch.Tensor]:
    r"""One overdamped Langevin step and its energy error, before a Metropolis test; the velocity is unchanged.

    Args:
        start: `KineticState` of shape `chains`, its gradient taken at its position.
        potential_and_grad: callable from positions to potentials (shape `chains`) and their gradients.
        step_size: h, in units of $z / \sigma$; a number or a scalar.
        scale: as in `kinetic_step`.

    Returns:
        The next `KineticState`, and minus the log acceptance ratio, shape `chains`.
    """
    noise = torch.randn_like(start.z)
    z = overdamped_move(start.z, start.z_grad, noise, step_size, scale)
    potential_energy, z_grad = potential_and_grad(z)
    back = reverse_noise(start.z_grad, z_grad, noise, step_size, scale)
    error = potential_energy - start.potential_energy + kinetic_energy(back) - kinetic_energy(noise)
    return KineticState(z, start.v, z, potential_energy, z_grad), error


def overdamped_move(
    z: torch.Tensor, grad: torch.Tensor, noise: torch.Tensor, step_size: Scalar, scale: Scalar = 1.0
) -> torch.Tensor:
    """The next position of an overdamped Langevin step.

    Args:
        z: positions.
        grad: gradient of the potential there.
        noise: standard normal, of the same shape.
        step_size: h, a number or a tensor that broadcasts against `z`.
        scale: as in `kinetic_step`.

    Returns:
        Positions.
    """
    z = _plus(z, -0.5 * step_size**2, _scaled(grad, scale**2))
    return _plus(z, step_size, _scaled(noise, scale))


def reverse_noise(
    grad: torch.Tensor, new_grad: torch.Tensor, noise: torch.Tensor, step_size: Scalar, scale: Scalar = 1.0
) -> torch.Tensor:
    r"""Noise (up to its sign) of the reverse overdamped move.

    The log acceptance ratio of MALA is $U - U' + \tfrac12 (|\xi|^2 - |\xi'|^2)$.

    Args:
        grad: gradient of the potential at the start.
        new_grad: gradient of the potential at the end.
        noise: $\xi$, the noise of the move there.
        step_size: h, a number or a tensor that broadcasts against `noise`.
        scale: as in `kinetic_step`.

    Returns:
        $\xi'$, of the shape of `noise`.
    """
    return _plus(noise, -0.5 * step_size, _scaled(grad + new_grad, scale))


def update_slice(u: torch.Tensor, error: torch.Tensor, persistence: Scalar) -> tuple[torch.Tensor, torch.Tensor]:
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
    u = (u + (1.5 - 0.5 * persistence**2)) % 2 - 1
    accept = u.abs().log() < -error
    return accept, torch.where(accept, u * error.exp(), u)


def kinetic_energy(v: torch.Tensor) -> torch.Tensor:
    """Half the squared norm of velocities, shape `chains`."""
    return 0.5 * _dot(v, v)


def value_and_grad(fn: Callable[[torch.Tensor], torch.Tensor], u: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Values of a function of independent chains, and their gradients, detached.

    Args:
        fn: callable from positions, shape `chains + (...)`, to values of shape `chains`.
        u: positions.

    Returns:
        `(values, gradients)`; a gradient is zero where a value does not depend on u.
    """
    with torch.enable_grad():
        u = u.detach().requires_grad_(True)
        value = fn(u)
        (grad,) = torch.autograd.grad(value.sum(), u, allow_unused=True) if value.requires_grad else (None,)
    return value.detach(), torch.zeros_like(u) if grad is None else grad


def _dot(x, y):
    return torch.linalg.vecdot(x, y)


def _plus(x, factor, y):
    """x + factor y, in one pass where the factor is a number."""
    return torch.add(x, y, alpha=factor) if isinstance(factor, float) else x + factor * y


def _scaled(x, scale):
    """scale x, without a pass for the scale 1."""
    return x if isinstance(scale, float) and scale == 1.0 else scale * x


def _exp(x):
    return x.exp() if isinstance(x, torch.Tensor) else math.exp(x)
