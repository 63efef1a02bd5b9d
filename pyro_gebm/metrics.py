"""The quality of samples, by their features."""

import torch

__all__ = ["frechet_distance"]


def frechet_distance(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    r"""Fréchet distance between Gaussians fitted to two samples of features.

    .. math:: \|\mu_x - \mu_y\|^2 + \mathrm{tr}(\Sigma_x + \Sigma_y - 2 (\Sigma_x \Sigma_y)^{1/2})

    Biased upwards by an amount that depends on the sample size: compare equal sizes. Source: arXiv:1706.08500.

    Args:
        x: features of shape `(M, D)`, M at least 2.
        y: features of shape `(N, D)`, N at least 2.

    Returns:
        Scalar.

    Raises:
        ValueError: if x or y is not a matrix with at least two rows, or their columns differ.
    """
    if x.dim() != 2 or y.dim() != 2 or x.shape[1] != y.shape[1] or min(x.shape[0], y.shape[0]) < 2:
        raise ValueError(f"Expected x (M, D) and y (N, D) with M, N >= 2; got {tuple(x.shape)} and {tuple(y.shape)}.")
    cov_x, cov_y = (torch.cov(a.T).reshape(a.shape[1], a.shape[1]) for a in (x, y))
    root_x = _symmetric_sqrt(cov_x)
    cross = torch.linalg.eigvalsh(root_x @ cov_y @ root_x).clamp(min=0.0).sqrt().sum()
    shift = ((x.mean(0) - y.mean(0)) ** 2).sum()
    return shift + cov_x.trace() + cov_y.trace() - 2.0 * cross


def _symmetric_sqrt(matrix):
    values, vectors = torch.linalg.eigh(matrix)
    return (vectors * values.clamp(min=0.0).sqrt()) @ vectors.T
