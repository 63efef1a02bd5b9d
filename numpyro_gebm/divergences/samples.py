"""Samples, and values on samples, as arguments and results of divergences."""

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike
from numpyro.util import not_jax_tracer

from gebm.validation import OVERFLOW, check_statistic, real_numbers

__all__ = ["Samples", "as_floats", "as_points", "as_samples", "as_vector", "finite_statistic"]

#: What samples are given as.
Samples = ArrayLike


def as_samples(x: Samples, y: Samples, names: tuple[str, str] = ("x", "y")) -> tuple[jax.Array, jax.Array]:
    """Two samples as floating-point arrays of one dtype.

    Args:
        x: array of shape `(M, D)`, M at least 2.
        y: array of shape `(N, D)`, N at least 2.
        names: of the arguments, for messages.

    Returns:
        x and y.

    Raises:
        TypeError: for complex numbers.
        ValueError: for other shapes, or entries that are not finite.

    Example:
        >>> x, y = as_samples(jnp.zeros((2, 1), int), jnp.ones((3, 1), int))
        >>> x.shape, y.shape, x.dtype == y.dtype == jnp.result_type(float)
        ((2, 1), (3, 1), True)
    """
    x, y = (real_numbers(name, z, jnp.asarray) for name, z in zip(names, (x, y)))
    if x.ndim != 2 or y.ndim != 2 or x.shape[1:] != y.shape[1:] or min(len(x), len(y)) < 2 or x.shape[1] == 0:
        expected = f"Expected {names[0]} (M, D) and {names[1]} (N, D) with M, N >= 2 and D >= 1"
        raise ValueError(f"{expected}; got {x.shape} and {y.shape}.")
    for name, z in zip(names, (x, y)):
        if not_jax_tracer(z) and not np.isfinite(z).all():
            rows = int((~np.isfinite(z)).any(axis=1).sum())
            raise ValueError(f"Expected finite entries in {name}; got NaN or infinity in {rows} rows. Remove them.")
    dtype = jnp.result_type(x, y)
    dtype = dtype if jnp.issubdtype(dtype, jnp.floating) else jnp.result_type(float)
    return x.astype(dtype), y.astype(dtype)


def as_points(name: str, value: ArrayLike, dim: int | None = None) -> jax.Array:
    """Points as a floating-point array of shape `(N, D)`.

    Args:
        name: of the argument, for the message.
        value: what was passed.
        dim: D; None for any from 1 on.

    Returns:
        The points.

    Raises:
        TypeError: for what is not real numbers.
        ValueError: for another shape.
    """
    points = as_floats(name, value)
    if points.ndim != 2 or points.shape[1] == 0 or dim not in (None, points.shape[1]):
        shape = "(N, D) with D >= 1" if dim is None else f"(N, {dim})"
        raise ValueError(f"Expected {name} of shape {shape}; got {points.shape}.")
    return points


def as_vector(name: str, value: ArrayLike) -> jax.Array:
    """Values of a function, one for each point of a sample: a floating-point array of shape `(N,)`.

    Args:
        name: of the argument, for the message.
        value: what was passed.

    Returns:
        The values.

    Raises:
        TypeError: for what is not real numbers.
        ValueError: for another shape, or no values.

    Example:
        >>> as_vector("energy_data", jnp.zeros((3, 1)))
        Traceback (most recent call last):
        ...
        ValueError: Expected energy_data of shape (N,) with N >= 1; got (3, 1). Squeeze the last axis of its network.
    """
    values = as_floats(name, value)
    if values.ndim != 1 or len(values) == 0:
        hint = " Squeeze the last axis of its network." if values.ndim == 2 else ""
        raise ValueError(f"Expected {name} of shape (N,) with N >= 1; got {values.shape}.{hint}")
    return values


def as_floats(name: str, value: ArrayLike) -> jax.Array:
    """Real numbers of any shape as a floating-point array.

    Args:
        name: of the argument, for the message.
        value: what was passed.

    Returns:
        The array.

    Raises:
        TypeError: for what is not real numbers.
    """
    values = real_numbers(name, value, jnp.asarray)
    return values if jnp.issubdtype(values.dtype, jnp.floating) else values.astype(jnp.result_type(float))


def finite_statistic(name: str, value: jax.Array, remedy: str = OVERFLOW) -> jax.Array:
    """A statistic, which must be finite; not looked at within a trace.

    Args:
        name: of the statistic.
        value: array of any shape.
        remedy: what to do, for the message.

    Returns:
        The value.

    Raises:
        ValueError: if a value is NaN or infinite.
    """
    if not_jax_tracer(value):
        check_statistic(name, np.asarray(value), remedy)
    return value
