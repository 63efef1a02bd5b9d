"""Sums over kernels, in blocks that never hold the whole kernel matrix, and functions that are such sums."""

import equinox as eqx
import jax
import jax.numpy as jnp
from jax import lax
from jax.typing import ArrayLike

from numpyro_gebm.divergences.kernels import FiniteRank, Kernel
from numpyro_gebm.divergences.samples import as_points

__all__ = ["Witness", "kernel_matvec"]

#: What samples are given as.
Samples = ArrayLike
#: Bytes of a kernel matrix that are in memory at once.
BLOCK = 16 * 2**20


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

    def __call__(self, points: ArrayLike) -> jax.Array:
        """Values of the function at points of shape `(M, D)`, shape `(M,)`."""
        points = as_points("points", points, self.centers.shape[1])
        return kernel_matvec(self.kernel, points, self.centers, self.weights)
