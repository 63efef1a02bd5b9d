"""Sums over kernels, in blocks that never hold the whole kernel matrix, and functions that are such sums."""

import dataclasses

import torch
from torch.utils.checkpoint import checkpoint

from pyro_gebm.divergences.kernels import FiniteRank, Kernel
from pyro_gebm.divergences.samples import Samples, as_points

__all__ = ["Witness", "kernel_matvec"]

#: Bytes of a kernel matrix that are in memory at once. Over 32 MB: blocks of that size go back to the system as soon as
#: they are free, smaller ones stay behind in glibc's heap, which grew to 1.2 GB for 10,000 by 10,000 points.
BLOCK = 40 * 2**20


def kernel_matvec(
    kernel: Kernel, x: torch.Tensor, y: torch.Tensor, weights: torch.Tensor, *, exclude_diagonal: bool = False
) -> torch.Tensor:
    r"""Sums $\sum_j k(x_i, y_j) w_j$, in blocks of rows; gradients compute the blocks again.

    Args:
        kernel: a kernel, see `divergences.kernels`.
        x: points, shape `(M, D)`.
        y: points, shape `(N, D)`.
        weights: w, shape `(N,)` or `(N, K)`.
        exclude_diagonal: leave out the terms with i = j.

    Returns:
        Tensor of shape `(M,)` or `(M, K)`.

    Example:
        >>> from pyro_gebm.divergences.kernels import Gaussian
        >>> kernel_matvec(Gaussian(1.0), torch.zeros(2, 1), torch.zeros(3, 1), torch.ones(3)).tolist()
        [3.0, 3.0]
    """
    if isinstance(kernel, FiniteRank):
        left, right = kernel.features(x), kernel.features(y)
        sums = left @ (right.T @ weights)
        return sums - ((left * right).sum(1) * weights.T).T if exclude_diagonal else sums

    columns, size = torch.arange(len(y), device=y.device), max(1, BLOCK // (y.element_size() * len(y)))

    def block(rows, first):
        matrix = kernel(rows, y)
        if exclude_diagonal:
            index = torch.arange(first, first + len(rows), device=y.device)
            matrix = torch.where(index[:, None] == columns, 0.0, matrix)
        return matrix @ weights

    if len(x) <= size:
        return block(x, 0)
    starts = range(0, len(x), size)
    return torch.cat([checkpoint(block, x[i : i + size], i, use_reentrant=False) for i in starts])


@dataclasses.dataclass(frozen=True, eq=False)
class Witness:
    r"""A function of an RKHS, $f(t) = \sum_i w_i k(c_i, t)$: where two laws differ most.

    Args:
        kernel: k.
        centers: the $c_i$, shape `(N, D)`.
        weights: the $w_i$, shape `(N,)`.

    Example:
        >>> from pyro_gebm.divergences.kernels import Gaussian
        >>> witness = Witness(Gaussian(1.0), torch.zeros(2, 1), torch.tensor([1.0, -0.5]))
        >>> witness(torch.zeros(3, 1)).tolist()
        [0.5, 0.5, 0.5]
    """

    kernel: Kernel
    centers: torch.Tensor
    weights: torch.Tensor

    def __call__(self, points: Samples) -> torch.Tensor:
        """Values of the function at points of shape `(M, D)`, shape `(M,)`."""
        points = as_points("points", points, self.centers.shape[1]).to(self.centers)
        return kernel_matvec(self.kernel, points, self.centers, self.weights)
