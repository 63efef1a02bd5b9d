"""The quality of samples, by their features."""

import jax
import jax.numpy as jnp

from numpyro_gebm.divergences.samples import Samples, as_samples, finite_statistic

__all__ = ["frechet_distance"]


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
    cov_x, cov_y = (jnp.atleast_2d(jnp.cov(a, rowvar=False)) for a in (x, y))
    root_x = _symmetric_sqrt(cov_x)
    cross = jnp.sqrt(jnp.maximum(jnp.linalg.eigvalsh(root_x @ cov_y @ root_x), 0.0)).sum()
    shift = jnp.sum((x.mean(axis=0) - y.mean(axis=0)) ** 2)
    distance = shift + jnp.trace(cov_x) + jnp.trace(cov_y) - 2.0 * cross
    return finite_statistic("Fréchet distance", distance, "Rescale the features.")


def _symmetric_sqrt(matrix):
    values, vectors = jnp.linalg.eigh(matrix)
    return (vectors * jnp.sqrt(jnp.maximum(values, 0.0))) @ vectors.T
