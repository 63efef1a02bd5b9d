"""The quality of samples, by their features."""

import torch

from pyro_gebm.divergences.samples import Samples, as_samples, finite_statistic

__all__ = ["frechet_distance"]


def frechet_distance(x: Samples, y: Samples) -> torch.Tensor:
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
    for a in (x, y):
        finite_statistic("mean square of the features", (a**2).mean(), "Rescale the features.")
    cov_x, cov_y = (torch.cov(a.T).reshape(a.shape[1], a.shape[1]) for a in (x, y))
    root_x = _symmetric_sqrt(cov_x)
    cross = torch.linalg.eigvalsh(root_x @ cov_y @ root_x).clamp(min=0.0).sqrt().sum()
    shift = ((x.mean(0) - y.mean(0)) ** 2).sum()
    distance = shift + cov_x.trace() + cov_y.trace() - 2.0 * cross
    return finite_statistic("Fréchet distance", distance, "Rescale the features.")


def _symmetric_sqrt(matrix):
    values, vectors = torch.linalg.eigh(matrix)
    return (vectors * values.clamp(min=0.0).sqrt()) @ vectors.T
