"""Rows of stored latents, read batch by batch."""

from collections.abc import Iterator
from typing import Any

import numpy as np

from gebm.validation import integer

__all__ = ["batches_of_rows"]


def batches_of_rows(z: Any, event_shape: tuple[int, ...], batch_size: int) -> Iterator[np.ndarray]:
    """Rows of an array, `batch_size` at once; leading axes are flattened in C order.

    No row is read before its batch is asked for: `z` may be larger than the memory. What does not fit is refused at
    the call.

    Args:
        z: `batch_shape + event_shape`: an array, an xarray `DataArray`, or an h5py or h5netcdf variable.
        event_shape: shape of one row.
        batch_size: rows of a batch.

    Returns:
        An iterator over arrays of shape `(batch_size,) + event_shape`; the last one may be shorter.

    Raises:
        TypeError: if `z` is not one array, or `batch_size` not an integer.
        ValueError: if the last axes of `z` are not `event_shape`, or `batch_size` is below 1.

    Example:
        >>> [rows.shape for rows in batches_of_rows(np.zeros((2, 25, 3)), (3,), batch_size=20)]
        [(20, 3), (20, 3), (10, 3)]
    """
    z = np.asarray(z) if isinstance(z, (list, tuple)) else z
    batch_size, shape, event_shape = integer("batch_size", batch_size), getattr(z, "shape", None), tuple(event_shape)
    if not isinstance(shape, tuple):
        raise TypeError(f'Expected an array of latents, such as `data["posterior"]["z"]`; got {type(z).__name__}.')
    split = len(shape) - len(event_shape)
    if split < 0 or tuple(shape[split:]) != event_shape:
        raise ValueError(
            f"Expected z, latents, of shape (..., {', '.join(map(str, event_shape))}); got {tuple(shape)}."
        )
    batch_shape = tuple(map(int, shape[:split]))
    num_rows = int(np.prod(batch_shape))
    starts = range(0, num_rows, batch_size)
    return (_rows(z, batch_shape, start, min(start + batch_size, num_rows)) for start in starts)


def _rows(z: Any, batch_shape: tuple[int, ...], start: int, stop: int) -> np.ndarray:
    """Rows `start` to `stop` of the flattened leading axes, reading no others."""
    if not batch_shape:
        return np.asarray(z[...])[None]
    parts, row = [], start
    while row < stop:
        outer, first = divmod(row, batch_shape[-1])
        last = min(batch_shape[-1], first + stop - row)
        index = tuple(int(i) for i in np.unravel_index(outer, batch_shape[:-1]))
        parts.append(np.asarray(z[(*index, slice(first, last))]))
        row += last - first
    return parts[0] if len(parts) == 1 else np.concatenate(parts)
