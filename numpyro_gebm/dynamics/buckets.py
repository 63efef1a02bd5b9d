"""Sizes in buckets: programs are compiled for powers of two, and serve every size up to them."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from numpyro.util import not_jax_tracer

__all__ = ["bucket", "first_rows", "in_bucket"]


def bucket(num: int) -> int:
    """The smallest power of two that is at least `num`.

    Example:
        >>> bucket(900), bucket(1000), bucket(0)
        (1024, 1024, 1)
    """
    return 1 << max(num - 1, 0).bit_length()


def first_rows(x: jax.Array, num: int) -> jax.Array:
    """The first rows of an array; on the CPU no program is compiled for their number."""
    if len(x) == num:
        return x
    return jax.device_put(np.asarray(x)[:num], x.sharding) if _on_cpu(x) else x[:num]


def in_bucket(fn: Callable[[jax.Array], jax.Array], x: jax.Array) -> jax.Array:
    """A function of rows, of an array that is filled up with zeros to a bucket; within a trace as it is.

    Args:
        fn: compiled callable from `(N, ...)` to `(N, ...)`, row by row.
        x: array with a leading axis of rows.

    Returns:
        Its values, one for each row.
    """
    num, missing = len(x), bucket(len(x)) - len(x)
    if not not_jax_tracer(x) or not missing:
        return fn(x)
    if _on_cpu(x):
        filled: jax.Array = jnp.asarray(np.concatenate([x, np.zeros((missing, *x.shape[1:]), x.dtype)]))
    else:
        filled = jnp.concatenate([x, jnp.zeros((missing, *x.shape[1:]), x.dtype)])
    return first_rows(fn(filled), num)


def _on_cpu(x):
    return not_jax_tracer(x) and len(x.devices()) == 1 and next(iter(x.devices())).platform == "cpu"
