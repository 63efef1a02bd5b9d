"""Sums over kernels, in blocks that never hold the whole kernel matrix, and functions that are such sums."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.typing import ArrayLike
from numpyro.util import not_jax_tracer

from gebm.validation import OVERFLOW, check_statistic, real_numbers
from numpyro_gebm.divergences.kernels import FiniteRank, Kernel

__all__ = ["Samples", "Witness", "as_samples", "finite_statistic", "kernel_matvec"]

#: What samples are given as.
Samples = ArrayLike
#: Bytes of a kernel matrix that are in memory at once.
BLOCK = 16 * 2**20


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


@eqx.filter_jit
def kernel_matvec(
    kernel: Kernel, x: jax.Array, y: jax.Array, weights: jax.Array, *, exclude_diagonal: bool = False
) -> jax.Array:
    r"""Sums $\sum_j k(x_i, y_j) w_j$, in blocks of rows; gradients compute the blocks again.

    Args:
        kernel: a kernel, see `divergences.kernels`.
        x: points, shape `(M, D)`.
        y: points, shape `(N, D)`.
        weights: w, shape `(N,)` or `(N, K)`.
        exclude_diagonal: leave out the terms with i = j.

    Returns:
        Array of shape `(M,)` or `(M, K)`.

    Example:
        >>> from numpyro_gebm.divergences.kernels import Gaussian
        >>> kernel_matvec(Gaussian(1.0), jnp.zeros((2, 1)), jnp.zeros((3, 1)), jnp.ones(3)).tolist()
        [3.0, 3.0]
    """
    if isinstance(kernel, FiniteRank):
        left, right = kernel.features(x), kernel.features(y)
        sums = left @ (right.T @ weights)
        return sums - ((left * right).sum(axis=1) * weights.T).T if exclude_diagonal else sums

    def block(index_and_rows):
        index, rows = index_and_rows
        matrix = kernel(rows, y)
        return jnp.where(index[:, None] == columns, 0.0, matrix) @ weights if exclude_diagonal else matrix @ weights

    columns, size = jnp.arange(len(y)), max(1, BLOCK // (y.dtype.itemsize * len(y)))
    if len(x) <= size:
        return block((jnp.arange(len(x)), x))
    full = len(x) // size * size
    sums = lax.map(jax.checkpoint(block), (jnp.arange(full).reshape(-1, size), x[:full].reshape(-1, size, x.shape[1])))
    rest = block((jnp.arange(full, len(x)), x[full:]))
    return jnp.concatenate([sums.reshape(full, *weights.shape[1:]), rest])


class Witness(eqx.Module):
    r"""A function of an RKHS, $f(t) = \sum_i w_i k(c_i, t)$: where two laws differ most.

    Args:
        kernel: k.
        centers: the $c_i$, shape `(N, D)`.
        weights: the $w_i$, shape `(N,)`.

    Example:
        >>> from numpyro_gebm.divergences.kernels import Gaussian
        >>> witness = Witness(Gaussian(1.0), jnp.zeros((2, 1)), jnp.array([1.0, -0.5]))
        >>> witness(jnp.zeros((3, 1))).tolist()
        [0.5, 0.5, 0.5]
    """

    kernel: Kernel
    centers: jax.Array
    weights: jax.Array

    def __call__(self, points: jax.Array) -> jax.Array:
        """Values of the function at points of shape `(M, D)`, shape `(M,)`."""
        return kernel_matvec(self.kernel, points, self.centers, self.weights)
