"""Random keys as users hand them over: typed, or raw as `jax.random.PRNGKey` makes them."""

import jax
import jax.numpy as jnp
import numpy as np
from jax import random

__all__ = ["typed"]


def typed(keys: jax.Array | None) -> jax.Array:
    """Random keys, typed or raw, as typed ones.

    Raises:
        TypeError: for anything else, such as a seed.
    """
    if isinstance(keys, jax.Array) and jnp.issubdtype(keys.dtype, jax.dtypes.prng_key):
        return keys
    try:
        return random.wrap_key_data(keys)  # pyright: ignore[reportArgumentType]  # of what is no array: a TypeError
    except (TypeError, ValueError):
        got = (
            f"an array of {keys.dtype} and shape {keys.shape}"
            if isinstance(keys, (jax.Array, np.ndarray))
            else repr(keys)
        )
        raise TypeError(f"Expected rng_key to be a random key, such as jax.random.key(0); got {got}.") from None
