"""Divergences between distributions, from samples or from the values of an energy on them."""

import math

import torch

__all__ = ["base_loss", "batch_log_partition", "donsker_varadhan", "kale", "mmd2"]


def batch_log_partition(energy_base):
    r"""Log-partition of a batch, $\log \frac1N \sum_i \exp(-E_i)$.

    Args:
        energy_base: energies of N base draws, shape `(N,)`.

    Returns:
        Scalar.
    """
    return torch.logsumexp(-energy_base, 0) - math.log(energy_base.shape[0])


def kale(energy_data, energy_base, log_partition):
    r"""KALE objective of an energy and a log-partition, to be maximised in both.

    .. math:: F(E, A) = -\mathbb{E}_P[E + A] - \mathbb{E}_G[\exp(-(E + A))] + 1

    a lower bound of `donsker_varadhan`, tight at $A = \log \mathbb{E}_G[\exp(-E)]$. Source: arXiv:2003.05033.

    Args:
        energy_data: energies of data, shape `(M,)`.
        energy_base: energies of base draws, shape `(N,)`.
        log_partition: A, scalar.

    Returns:
        Scalar.

    Example:
        >>> zero = torch.zeros(3)
        >>> float(kale(zero, zero, 0.0))
        0.0
    """
    return 1.0 - energy_data.mean() - log_partition - torch.exp(-energy_base - log_partition).mean()


def donsker_varadhan(energy_data, energy_base):
    r"""Donsker-Varadhan lower bound of $KL(P\|G)$: the generalized log-likelihood of an energy.

    .. math:: L(E) = -\mathbb{E}_P[E] - \log \mathbb{E}_G[\exp(-E)]

    Args:
        energy_data: energies of data, shape `(M,)`.
        energy_base: energies of base draws, shape `(N,)`.

    Returns:
        Scalar.
    """
    return -energy_data.mean() - batch_log_partition(energy_base)


def base_loss(energy_base):
    r"""The part of KALE that depends on the base, $-\log \frac1N \sum_i \exp(-E(B(z_i)))$, to be minimised.

    Its gradient in the base is $\sum_i w_i \nabla E(B(z_i))$ with self-normalised weights
    $w_i \propto \exp(-E(B(z_i)))$. Source: arXiv:2003.05033.

    Args:
        energy_base: energies of base draws, shape `(N,)`.

    Returns:
        Scalar.
    """
    return -batch_log_partition(energy_base)


def mmd2(x, y, bandwidth=None):
    r"""Unbiased estimate of the squared maximum mean discrepancy with a Gaussian kernel.

    .. math:: k(x, y) = \exp(-\|x - y\|^2 / (2 \sigma^2))

    Can be slightly negative when the laws agree. Source: Gretton et al., JMLR 13 (2012).

    Args:
        x: tensor of shape `(M, D)`, M at least 2.
        y: tensor of shape `(N, D)`, N at least 2.
        bandwidth: sigma; None is the median distance within x and y together.

    Returns:
        Scalar.

    Raises:
        ValueError: if x or y is not a matrix with at least two rows, or their columns differ.
    """
    if x.dim() != 2 or y.dim() != 2 or x.shape[1] != y.shape[1] or min(x.shape[0], y.shape[0]) < 2:
        raise ValueError(f"Expected x (M, D) and y (N, D) with M, N >= 2; got {tuple(x.shape)} and {tuple(y.shape)}.")
    m, n = x.shape[0], y.shape[0]
    joint = torch.cat([x, y])
    norms = (joint**2).sum(1)
    squared = (norms[:, None] + norms[None, :] - 2.0 * joint @ joint.T).clamp(min=0.0)
    if bandwidth is None:
        upper = squared[torch.triu_indices(m + n, m + n, 1, device=x.device).unbind()]
        bandwidth = upper.quantile(0.5).sqrt() if upper.numel() < 2**24 else upper.median().sqrt()
    kernel = torch.exp(-squared / (2.0 * bandwidth**2))
    within_x = (kernel[:m, :m].sum() - kernel[:m, :m].trace()) / (m * (m - 1))
    within_y = (kernel[m:, m:].sum() - kernel[m:, m:].trace()) / (n * (n - 1))
    return within_x + within_y - 2.0 * kernel[:m, m:].mean()
