"""What metrics of samples return, and how large samples are cut up."""

from typing import Any, NamedTuple

__all__ = ["DensityCoverage", "FrechetRatio", "KernelDistance", "PrecisionRecall", "num_blocks"]

#: Most rows of a block of the kernel distance.
BLOCK_SIZE = 1000
#: Most entries of a matrix of distances that is held at once.
MAX_ENTRIES = 2**24


class KernelDistance(NamedTuple):
    """Squared MMD between features, and its standard error."""

    value: Any
    std_error: Any


class FrechetRatio(NamedTuple):
    """Fréchet distance of draws over that of draws of their base, and its standard error."""

    value: Any
    std_error: Any


class PrecisionRecall(NamedTuple):
    """Share of the draws that look like data, and of the data that the draws can look like."""

    precision: Any
    recall: Any


class DensityCoverage(NamedTuple):
    """How many neighbourhoods of data a draw lies in, over their expected number, and the share of the data with a draw
    in their neighbourhood.
    """

    density: Any
    coverage: Any


def num_blocks(num: int) -> int:
    """Disjoint blocks that a sample is cut into, at least two.

    Args:
        num: rows of the smaller sample, at least 4.

    Returns:
        Their number.

    Raises:
        ValueError: for fewer than four rows.

    Example:
        >>> num_blocks(100), num_blocks(10_000)
        (2, 10)
    """
    if num < 4:
        raise ValueError(f"Expected at least 4 rows of x and of y, for two blocks; got {num}.")
    return max(2, -(-num // BLOCK_SIZE))
