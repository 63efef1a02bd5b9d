"""Sums over kernels, in blocks that never hold the whole kernel matrix, and functions that are such sums."""

import dataclasses

import numpy as np
import torch
from torch._C._functorch import is_functorch_wrapped_tensor
from torch.utils.checkpoint import checkpoint

from gebm.validation import OVERFLOW, check_statistic, real_numbers
from pyro_gebm.divergences.kernels import FiniteRank, Kernel

__all__ = ["Samples", "Witness", "as_samples", "finite_statistic", "kernel_matvec"]

#: What samples are given as.
Samples = torch.Tensor | np.ndarray
#: Bytes of a kernel matrix that are in memory at once. Over 32 MB: blocks of that size go back to the system as soon as
#: they are free, smaller ones stay behind in glibc's heap, which grew to 1.2 GB for 10,000 by 10,000 points.
BLOCK = 40 * 2**20


def as_samples(x: Samples, y: Samples, names: tuple[str, str] = ("x", "y")) -> tuple[torch.Tensor, torch.Tensor]:
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
        >>> x, y = as_samples(torch.zeros(2, 1, dtype=int), torch.ones(3, 1, dtype=int))
        >>> tuple(x.shape), tuple(y.shape), x.dtype == y.dtype == torch.get_default_dtype()
        ((2, 1), (3, 1), True)
    """
    x, y = (real_numbers(name, z, torch.as_tensor) for name, z in zip(names, (x, y)))
    if x.dim() != 2 or y.dim() != 2 or x.shape[1:] != y.shape[1:] or min(len(x), len(y)) < 2 or x.shape[1] == 0:
        expected = f"Expected {names[0]} (M, D) and {names[1]} (N, D) with M, N >= 2 and D >= 1"
        raise ValueError(f"{expected}; got {tuple(x.shape)} and {tuple(y.shape)}.")
    for name, z in zip(names, (x, y)):
        if not z.isfinite().all():
            rows = int((~z.isfinite()).any(1).sum())
            raise ValueError(f"Expected finite entries in {name}; got NaN or infinity in {rows} rows. Remove them.")
    dtype = torch.promote_types(x.dtype, y.dtype)
    dtype = dtype if dtype.is_floating_point else torch.get_default_dtype()
    return x.to(dtype), y.to(dtype)


def finite_statistic(name: str, value: torch.Tensor, remedy: str = OVERFLOW) -> torch.Tensor:
    """A statistic, which must be finite; not looked at within a transform of `torch.func`.

    Args:
        name: of the statistic.
        value: tensor of any shape.
        remedy: what to do, for the message.

    Returns:
        The value.

    Raises:
        ValueError: if a value is NaN or infinite.
    """
    if not is_functorch_wrapped_tensor(value):
        check_statistic(name, value.detach().cpu().numpy(), remedy)
    return value


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
        points = torch.as_tensor(points).to(self.centers)
        return kernel_matvec(self.kernel, points, self.centers, self.weights)
