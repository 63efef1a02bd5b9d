"""Bounds on networks: on the Lipschitz constant by spectral normalisation, and on an energy from below."""

import torch
import torch.nn.functional as F

from gebm.validation import integer, real_numbers

__all__ = ["bounded_below", "scaled_down", "spectral_norm_bound"]


def spectral_norm_bound(weight: torch.Tensor, num_iterations: int = 6) -> torch.Tensor:
    r"""Upper bound of the largest singular value of a matrix, by Gram iteration.

    .. math:: \sigma_{\max}(W) \le \|(W W^\top)^{2^n}\|_F^{1 / 2^{n+1}}

    Without state, differentiable, and never below the truth; with 6 iterations at most 2.5 % above it for rank 512.
    Source: arXiv:2305.16173.

    Args:
        weight: tensor of at least two axes; the first against all others.
        num_iterations: n.

    Returns:
        Scalar.

    Raises:
        TypeError: for a weight that is not real numbers, or a number that is not an integer.
        ValueError: for fewer than two axes, an empty one, or a negative number.

    Example:
        >>> round(float(spectral_norm_bound(torch.tensor([[3.0, 0.0], [0.0, 1.0]]))), 4)
        3.0
    """
    weight = real_numbers("weight", weight, torch.as_tensor)
    if weight.ndim < 2 or 0 in weight.shape:
        raise ValueError(f"Expected weight with at least two axes, none empty; got shape {tuple(weight.shape)}.")
    matrix = weight.reshape(weight.shape[0], -1)
    gram = matrix @ matrix.T if matrix.shape[0] <= matrix.shape[1] else matrix.T @ matrix
    log_norm = gram.new_zeros(())
    for i in range(integer("num_iterations", num_iterations, minimum=0) + 1):
        norm = torch.sqrt(torch.sum(gram**2) + torch.finfo(gram.dtype).tiny)
        log_norm = log_norm + torch.log(norm) / 2**i
        gram = gram / norm
        gram = gram @ gram
    return torch.exp(0.5 * log_norm)


def scaled_down(weight: torch.Tensor, bound: float | None) -> torch.Tensor:
    """The weight scaled so that the bound on its spectral norm is at most `bound`; None leaves it as it is."""
    return weight if bound is None else (bound / spectral_norm_bound(weight)).clamp(max=1.0) * weight


def bounded_below(energy: torch.Tensor, lower_bound: float | None) -> torch.Tensor:
    """`b + softplus(e - b)`, or the energy itself where there is no bound b."""
    return energy if lower_bound is None else lower_bound + F.softplus(energy - lower_bound)
