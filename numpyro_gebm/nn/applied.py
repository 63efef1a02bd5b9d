"""Networks of other libraries as callable pytrees."""

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax

__all__ = ["Applied"]


class Applied(eqx.Module):
    """Any `apply(params, x)` function with its parameters as a callable pytree (Flax, Haiku, plain JAX).

    For Flax NNX: `graph, params = nnx.split(model)`, then `Applied(lambda p, x: nnx.merge(graph, p)(x), params)`.
    Build it once: a new lambda each time means a new compilation each time.

    Args:
        apply: function of `(params, x)`, on one example.
        params: pytree of arrays.

    Example:
        >>> import jax.numpy as jnp
        >>> energy = Applied(lambda params, x: params["a"] * (x**2).sum(), {"a": jnp.array(0.5)})
        >>> float(energy(jnp.ones(2)))
        1.0
    """

    apply: Callable[[Any, jax.Array], jax.Array] = eqx.field(static=True)
    params: Any

    def __call__(self, x: jax.Array) -> jax.Array:
        return self.apply(self.params, x)
