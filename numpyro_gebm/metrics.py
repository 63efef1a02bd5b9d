"""The quality of samples, by their features."""

import math
from functools import partial

import jax
import jax.numpy as jnp
from jax import lax, random

from gebm.inception import inception_features
from gebm.metrics import MAX_ENTRIES, DensityCoverage, FrechetRatio, KernelDistance, PrecisionRecall, num_blocks
from gebm.validation import integer
from numpyro_gebm.divergences.samples import Samples, as_samples, finite_statistic
from numpyro_gebm.keys import typed

__all__ = [
    "density_coverage",
    "frechet_distance",
    "frechet_ratio",
    "inception_features",
    "kernel_distance",
    "precision_recall",
]


def frechet_distance(x: Samples, y: Samples) -> jax.Array:
    r"""Fréchet distance between Gaussians fitted to two samples of features.

    .. math:: \|\mu_x - \mu_y\|^2 + \mathrm{tr}(\Sigma_x + \Sigma_y - 2 (\Sigma_x \Sigma_y)^{1/2})

    Biased upwards by an amount that depends on the sample size: compare equal sizes. Source: arXiv:1706.08500.

    Args:
        x: features of shape `(M, D)`, M at least 2.
        y: features of shape `(N, D)`, N at least 2.

    Returns:
        Scalar.

    Raises:
        TypeError: if x or y is complex.
        ValueError: if x or y is not a matrix of finite numbers with at least two rows, or their columns differ; if the
            distance is not finite.
    """
    x, y = as_samples(x, y)
    return finite_statistic("Fréchet distance", _frechet_distance(x, y), "Rescale the features.")


def _frechet_distance(x, y):
    cov_x, cov_y = (jnp.atleast_2d(jnp.cov(a, rowvar=False)) for a in (x, y))
    root_x = _symmetric_sqrt(cov_x)
    cross = jnp.sqrt(jnp.maximum(jnp.linalg.eigvalsh(root_x @ cov_y @ root_x), 0.0)).sum()
    shift = jnp.sum((x.mean(axis=0) - y.mean(axis=0)) ** 2)
    return shift + jnp.trace(cov_x) + jnp.trace(cov_y) - 2.0 * cross


def _symmetric_sqrt(matrix):
    values, vectors = jnp.linalg.eigh(matrix)
    return (vectors * jnp.sqrt(jnp.maximum(values, 0.0))) @ vectors.T


def frechet_ratio(
    x: Samples, base: Samples, y: Samples, *, num_resamples: int = 100, rng_key: jax.Array
) -> FrechetRatio:
    r"""Fréchet distance of draws to data, over that of draws of their base: below 1, the energy improves on the base.

    .. math:: d(x, y) / d(b, y)

    The error is that of the bootstrap: rows of all three samples are drawn again with replacement, and each of these
    adds the bias of a sample of its size to both distances. A weak base flatters the ratio: give `frechet_distance`
    beside it. Source: arXiv:2003.05033 (the comparison), arXiv:1706.08500 (the distance).

    Args:
        x: features of draws, shape `(M, D)`.
        base: features of as many draws of the base.
        y: features of data, shape `(N, D)`.
        num_resamples: of the bootstrap, at least 2.
        rng_key: a JAX random key.

    Returns:
        A `FrechetRatio`.

    Raises:
        TypeError: if one of them is complex, or the number is not an integer.
        ValueError: if one is not a matrix of finite numbers with at least two rows, x and base differ in shape, their
            columns differ from those of y, or the base's distance is 0.
    """
    x, base = as_samples(x, base)
    num_resamples = integer("num_resamples", num_resamples, minimum=2)
    if x.shape != base.shape:
        raise ValueError(f"Expected as many draws of x as of base; got shapes {x.shape} and {base.shape}.")
    x, y = as_samples(x, y)
    of_base = frechet_distance(base, y)
    if not of_base > 0:
        raise ValueError(f"Expected a base whose Fréchet distance is above 0; got {float(of_base)}.")
    ratios = _resampled_ratios(random.split(typed(rng_key), num_resamples), x, base, y)
    return FrechetRatio(frechet_distance(x, y) / of_base, ratios.std(ddof=1))


@jax.jit
def _resampled_ratios(keys, x, base, y):
    def ratio(key):
        rows = (a[random.randint(k, (len(a),), 0, len(a))] for k, a in zip(random.split(key, 3), (x, base, y)))
        x_rows, base_rows, y_rows = rows
        return _frechet_distance(x_rows, y_rows) / _frechet_distance(base_rows, y_rows)

    return lax.map(ratio, keys)


def kernel_distance(x: Samples, y: Samples) -> KernelDistance:
    r"""Kernel distance (KID) between two samples of features: unbiased squared MMD, with its standard error.

    .. math:: k(a, b) = (a \cdot b / D + 1)^3

    Both samples are cut into disjoint blocks of 1,000 rows at most; the value is the mean over blocks, and the error
    that of this mean. Unlike the Fréchet distance it can be compared between samples of different sizes. Source:
    arXiv:1801.01401.

    Args:
        x: features of draws, shape `(M, D)`, in random order, M at least 4.
        y: features of data, shape `(N, D)`, in random order, N at least 4.

    Returns:
        A `KernelDistance`.

    Raises:
        TypeError: if x or y is complex.
        ValueError: if x or y is not a matrix of finite numbers with at least four rows, or their columns differ; if the
            distance is not finite.
    """
    x, y = as_samples(x, y)
    num = num_blocks(min(len(x), len(y)))
    values = _squared_mmds(*(z[: num * (len(z) // num)].reshape(num, -1, z.shape[1]) for z in (x, y)))
    value = finite_statistic("kernel distance", values.mean(), "Rescale the features.")
    return KernelDistance(value, values.std(ddof=1) / math.sqrt(num))


@jax.jit
def _squared_mmds(x, y):
    """Unbiased squared MMD of every pair of blocks."""

    def of_pair(pair):
        a, b = pair
        of_a, of_b, of_both = (_cubic(*pair) for pair in ((a, a), (b, b), (a, b)))
        within = ((k.sum() - jnp.trace(k)) / (len(k) * (len(k) - 1)) for k in (of_a, of_b))
        return sum(within) - 2.0 * of_both.mean()

    return lax.map(of_pair, (x, y))


def _cubic(x, y):
    return (x @ y.T / x.shape[1] + 1.0) ** 3


def precision_recall(x: Samples, y: Samples, *, num_neighbors: int = 5) -> PrecisionRecall:
    """Precision and recall of draws, by nearest neighbours among features.

    A draw counts as precise if it lies in the ball around some data point that reaches to this point's k-th neighbour
    among the data; a data point is recalled if it lies in such a ball around some draw. Source: arXiv:1904.06991.

    Args:
        x: features of draws, shape `(M, D)`.
        y: features of data, shape `(N, D)`.
        num_neighbors: k, below M and N.

    Returns:
        A `PrecisionRecall`.

    Raises:
        TypeError: if x or y is complex, or the number is not an integer.
        ValueError: if x or y is not a matrix of finite numbers, their columns differ, or k is not below their rows.
    """
    x, y = as_samples(x, y)
    num_neighbors = integer("num_neighbors", num_neighbors, maximum=min(len(x), len(y)) - 1)
    in_data, _ = _neighbours(x, y, _radii(y, num_neighbors))
    in_draws, _ = _neighbours(y, x, _radii(x, num_neighbors))
    return PrecisionRecall(_share(in_data > 0), _share(in_draws > 0))


def density_coverage(x: Samples, y: Samples, *, num_neighbors: int = 5) -> DensityCoverage:
    """Density and coverage of draws, by nearest neighbours among the features of the data alone.

    Density is the mean number of balls around data points that a draw lies in, over k; it may exceed 1. Coverage is the
    share of data points whose ball holds a draw. Source: arXiv:2002.09797.

    Args:
        x: features of draws, shape `(M, D)`.
        y: features of data, shape `(N, D)`.
        num_neighbors: k, below N.

    Returns:
        A `DensityCoverage`.

    Raises:
        TypeError: if x or y is complex, or the number is not an integer.
        ValueError: if x or y is not a matrix of finite numbers, their columns differ, or k is not below the rows of y.
    """
    x, y = as_samples(x, y)
    num_neighbors = integer("num_neighbors", num_neighbors, maximum=len(y) - 1)
    count, covered = _neighbours(x, y, _radii(y, num_neighbors))
    return DensityCoverage(count.mean(dtype=x.dtype) / num_neighbors, _share(covered))


def _share(found):
    return found.mean(dtype=jnp.result_type(float))


def _in_rows(fn, points, other):
    """`fn` of distances to `other`, for a few rows of points at a time."""
    return lax.map(lambda point: fn(jnp.linalg.norm(point - other, axis=-1)), points, batch_size=_at_once(other))


def _at_once(other):
    return max(1, MAX_ENTRIES // other.size)


@partial(jax.jit, static_argnums=1)
def _radii(points, num_neighbors):
    """Distance of every point to its k-th neighbour."""
    return _in_rows(lambda distances: jnp.sort(distances)[num_neighbors], points, points)


@jax.jit
def _neighbours(points, centres, radii):
    """In how many balls around centres every point lies, and whether each holds one."""
    count = _in_rows(lambda distances: (distances < radii).sum(), points, centres)
    nearest = _in_rows(jnp.min, centres, points)
    return count, nearest < radii
