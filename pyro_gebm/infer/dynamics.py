r"""Pure steps of kinetic Langevin dynamics, by splitting.

The dynamics, with potential $U$, friction $\gamma$ and unit mass, in time $t$:

.. math:: dz = v\, dt, \qquad dv = -\nabla U(z)\, dt - \gamma v\, dt + \sqrt{2\gamma}\, dW

A step of size h (in units of time) is a palindrome of exact sub-steps (arXiv:1203.5428):

- A, drift: $z \leftarrow z + \tau v$
- B, kick: $v \leftarrow v - \tau \nabla U(z)$
- O, Ornstein-Uhlenbeck: $v \leftarrow e^{-\gamma\tau} v + \sqrt{1 - e^{-2\gamma\tau}}\, \xi$

where each letter that occurs n times in the name takes $\tau = h/n$.
"""

import math
from typing import NamedTuple

import torch

__all__ = ["SPLITTINGS", "KineticState", "kinetic_step"]

#: Splittings that begin and end with the gradient at the current position, so that it is evaluated once a step.
SPLITTINGS = ("BAOAB", "OBABO")


class KineticState(NamedTuple):
    """Position, velocity, and the potential and its gradient at the position; z, v, z_grad are dicts of tensors."""

    z: dict
    v: dict
    potential_energy: torch.Tensor
    z_grad: dict


def kinetic_step(state, potential_and_grad, step_size, friction, splitting="BAOAB"):
    """One step of a splitting of kinetic Langevin dynamics; one gradient of the potential.

    Args:
        state: `KineticState` of one chain.
        potential_and_grad: callable from a position to the scalar potential and its gradient.
        step_size: h, in units of time.
        friction: gamma, in units of inverse time; 0 is Hamiltonian dynamics.
        splitting: one of `SPLITTINGS`.

    Returns:
        The next `KineticState`.
    """
    z, v, potential_energy, grad = state
    for i, letter in enumerate(splitting):
        tau = step_size / splitting.count(letter)
        if letter == "A":
            z = {name: z[name] + tau * v[name] for name in z}
            if "A" not in splitting[i + 1 :]:  # the last move of this step: the gradient serves the next step too
                potential_energy, grad = potential_and_grad(z)
        elif letter == "B":
            v = {name: v[name] - tau * grad[name] for name in v}
        else:
            decay = math.exp(-friction * tau)
            noise = standard_normal_like(v)
            v = {name: decay * v[name] + math.sqrt(1 - decay**2) * noise[name] for name in v}
    return KineticState(z, v, potential_energy, grad)


def standard_normal_like(tensors):
    """Independent standard normal draws, of the shapes, dtypes and devices of a dict of tensors."""
    return {name: torch.randn_like(x) for name, x in tensors.items()}


def kinetic_energy(v):
    """Half the squared norm of a dict of velocities."""
    return 0.5 * sum((x**2).sum() for x in v.values())
