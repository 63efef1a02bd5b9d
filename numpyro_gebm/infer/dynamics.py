r"""Pure steps of kinetic Langevin dynamics, by splitting.

The dynamics, with potential $U$, friction $\gamma$ and unit mass, in time $t$:

.. math:: dz = v\, dt, \qquad dv = -\nabla U(z)\, dt - \gamma v\, dt + \sqrt{2\gamma}\, dW

A step of size h (in units of time) is a palindrome of exact sub-steps (arXiv:1203.5428):

- A, drift: $z \leftarrow z + \tau v$
- B, kick: $v \leftarrow v - \tau \nabla U(z)$
- O, Ornstein-Uhlenbeck: $v \leftarrow e^{-\gamma\tau} v + \sqrt{1 - e^{-2\gamma\tau}}\, \xi$

where each letter that occurs n times in the name takes $\tau = h/n$.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import random

__all__ = ["SPLITTINGS", "KineticState", "kinetic_step"]

#: Splittings that begin and end with the gradient at the current position, so that it is evaluated once a step.
SPLITTINGS = ("BAOAB", "OBABO")


class KineticState(NamedTuple):
    """Position, velocity, and the potential and its gradient at the position; z, v, z_grad share one structure."""

    z: object
    v: object
    potential_energy: jax.Array
    z_grad: object


def kinetic_step(rng_key, state, potential_and_grad, step_size, friction, splitting="BAOAB"):
    """One step of a splitting of kinetic Langevin dynamics; one gradient of the potential.

    Args:
        rng_key: a JAX random key.
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
            z = jax.tree.map(lambda z, v, tau=tau: z + tau * v, z, v)
            if "A" not in splitting[i + 1 :]:  # the last move of this step: the gradient serves the next step too
                potential_energy, grad = potential_and_grad(z)
        elif letter == "B":
            v = jax.tree.map(lambda v, g, tau=tau: v - tau * g, v, grad)
        else:
            decay = jnp.exp(-friction * tau)
            noise = standard_normal_like(random.fold_in(rng_key, i), v)
            v = jax.tree.map(lambda v, n, c=decay: c * v + jnp.sqrt(1 - c**2) * n, v, noise)
    return KineticState(z, v, potential_energy, grad)


def standard_normal_like(rng_key, tree):
    """A tree of independent standard normal draws, of the shapes and dtypes of `tree`."""
    leaves, treedef = jax.tree.flatten(tree)
    keys = random.split(rng_key, len(leaves))
    return treedef.unflatten([random.normal(k, jnp.shape(x), x.dtype) for k, x in zip(keys, leaves, strict=True)])


def kinetic_energy(v):
    """Half the squared norm of a velocity tree."""
    return 0.5 * sum(jnp.sum(x**2) for x in jax.tree.leaves(v))
