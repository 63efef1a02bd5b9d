"""Random keys: one for all chains, or one a chain."""

from collections.abc import Callable, Iterable
from typing import Any

import jax
import jax.numpy as jnp
from jax import random
from numpyro.util import is_prng_key, not_jax_tracer

from numpyro_gebm.keys import typed

__all__ = ["as_given", "beside", "fold_in", "split", "standard_normal", "typed", "uniform"]


def as_given(keys: jax.Array, like: jax.Array) -> jax.Array:
    """Typed random keys as raw ones, if `like` is raw."""
    return keys if jnp.issubdtype(like.dtype, jax.dtypes.prng_key) else random.key_data(keys)


def fold_in(keys: jax.Array, data: jax.Array | int) -> jax.Array:
    """Fold an integer into a key, or into that of every chain."""
    return random.fold_in(keys, data) if is_prng_key(keys) else jax.vmap(lambda key: random.fold_in(key, data))(keys)


def split(keys: jax.Array, num: int = 2) -> jax.Array:
    """Split a key, or that of every chain: leading axes `(num,)` or `(num, N)`."""
    if is_prng_key(keys):
        return random.split(keys, num)
    return jnp.moveaxis(jax.vmap(lambda key: random.split(key, num))(keys), 1, 0)


def standard_normal(keys: jax.Array, like: jax.Array) -> jax.Array:
    """Independent standard normal draws of the shape and dtype of `like`; one key, or one a chain."""
    if is_prng_key(keys):
        return random.normal(keys, like.shape, like.dtype)
    return jax.vmap(lambda key: random.normal(key, like.shape[1:], like.dtype))(keys)


def uniform(keys: jax.Array, like: jax.Array, minval: float = 0.0) -> jax.Array:
    """Independent uniform draws from [minval, 1) of the shape and dtype of `like`; one key, or one a chain."""
    if is_prng_key(keys):
        return random.uniform(keys, like.shape, like.dtype, minval)
    return jax.vmap(lambda key: random.uniform(key, like.shape[1:], like.dtype, minval))(keys)


def beside(keys: jax.Array, arrays: Callable[[], Iterable[Any]]) -> jax.Array:
    """Random keys on the device of a model's arrays: where the keys of chains are, the chains are.

    Args:
        keys: random keys; bound to a device they stay there.
        arrays: returns what the model encloses; asked only where there are several devices.

    Returns:
        The keys.
    """
    if jax.device_count() == 1 or not not_jax_tracer(keys) or keys.committed:
        return keys
    bound = [x for x in arrays() if isinstance(x, jax.Array) and not_jax_tracer(x) and x.committed]
    places = {x.sharding for x in bound}
    return jax.device_put(keys, places.pop()) if len(places) == 1 else keys
