"""Checks of data and of batches."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from gebm import validation

__all__ = ["check_rows", "check_same_shape", "check_shape", "find_batch_size", "without_labels"]

#: Data points a step, unless told or fewer.
BATCH_SIZE = 128


def check_shape(name: str, data: Any, event_shape: Sequence[int]) -> None:
    """Raise ValueError unless `data` has the shape `(N,) + event_shape`, N at least 1."""
    shape = tuple(np.shape(data))
    if len(shape) == 0 or shape[1:] != tuple(event_shape) or shape[0] == 0:
        raise ValueError(f"Expected {name} of shape (N,) + {tuple(event_shape)}, N >= 1; got {shape}.")


def check_rows(name: str, finite: np.ndarray) -> None:
    """Raise ValueError unless every row is finite.

    Args:
        name: of the data, for the message.
        finite: whether each row is, of shape `(N,)`.
    """
    if not finite.all():
        rows = np.flatnonzero(~finite)
        raise ValueError(f"Expected finite {name}; got NaN or inf in {len(rows)} rows, first in row {rows[0]}.")


def find_batch_size(batch_size: int | None, num_data: int) -> int:
    """Batch size: data points per step.

    Args:
        batch_size: as asked for; None takes `min(128, num_data)`.
        num_data: how many there are.

    Returns:
        Between 1 and `num_data`.

    Raises:
        TypeError: if it is not an integer.
        ValueError: if it is below 1 or above `num_data`.

    Example:
        >>> find_batch_size(None, 1000)
        128
    """
    if batch_size is None:
        return min(BATCH_SIZE, num_data)
    if validation.integer("batch_size", batch_size) > num_data:
        raise ValueError(f"Expected 1 <= batch_size <= {num_data} (the number of data points); got {batch_size}.")
    return batch_size


def without_labels(batch: Any) -> Any:
    """The data in an item of a loader: the first entry of a tuple `(data, label)`."""
    return batch[0] if isinstance(batch, (tuple, list)) else batch


def check_same_shape(shape: Sequence[int], first: Sequence[int]) -> None:
    """Raise ValueError unless a batch has the shape of the first."""
    if tuple(shape) != tuple(first):
        raise ValueError(
            f"Expected batches of one shape, {tuple(first)}; got {tuple(shape)}. Drop the last, shorter batch "
            "(`drop_last=True`)."
        )
