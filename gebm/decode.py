"""Rows of stored latents, read batch by batch; and what they decode to, in a Zarr store that many processes write."""

import math
import os
import pathlib
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from tqdm import tqdm

from gebm.draw_file import refuse_existing
from gebm.extras import extra
from gebm.validation import flag, integer, path_of

__all__ = ["batches_of_rows", "write_decoded"]


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


def write_decoded(
    decode: Callable[[np.ndarray], np.ndarray],
    z: Any,
    event_shape: tuple[int, ...],
    path: str | os.PathLike[str],
    batch_size: int,
    *,
    rank: int,
    num_processes: int,
    wait: Callable[[], None],
    progress_bar: bool,
) -> Any:
    """Decode stored latents to a Zarr store, each process the batches that fall to it; see `decode_to_zarr`.

    Args:
        decode: callable from latents, shape `(n,) + event_shape`, to the decoded ones.
        z: `batch_shape + event_shape`, as `batches_of_rows` takes it.
        event_shape: shape of one latent.
        path: the store, which may not be there yet.
        batch_size: latents of a batch, and of a chunk of the store.
        rank: number of this process.
        num_processes: number of processes.
        wait: waits until every process has come so far.
        progress_bar: whether the first process shows one.

    Returns:
        The `zarr.Array` of all, of shape `batch_shape + shape of one`.
    """
    zarr, path = extra("zarr", "zarr", "decode_to_zarr"), pathlib.Path(path_of("path", path))
    quiet = not flag("progress_bar", progress_bar) or rank > 0
    refuse_existing(path, "Take another path, or delete it.")
    z = np.asarray(z) if isinstance(z, (list, tuple)) else z
    batches_of_rows(z, event_shape, batch_size)
    batch_shape = tuple(map(int, z.shape[: len(z.shape) - len(event_shape)]))
    if not math.prod(batch_shape) or not batch_shape:
        raise ValueError(f"Expected z, latents, with axes before {event_shape}, such as (chain, draw); got {z.shape}.")
    *outer, num = batch_shape
    first = decode(np.asarray(z[(0,) * len(outer)][:1]))
    names = [*(f"batch_dim_{i}" for i in range(len(outer) - 1)), "chain", "draw"][-len(batch_shape) :]
    temporary = path.with_name(f"{path.name}.tmp")
    wait()  # nobody looks for the store any more
    if rank == 0:
        zarr.create_group(temporary, zarr_format=3, overwrite=True).create_array(
            "x",
            shape=(*outer, num, *first.shape[1:]),
            chunks=(*(1,) * len(outer), min(batch_size, num), *first.shape[1:]),
            dtype=first.dtype,
            dimension_names=(*names, *(f"x_dim_{i}" for i in range(first.ndim - 1))),
        )
    wait()
    x = zarr.open_group(temporary, mode="r+")["x"]
    parts = [(*index, start) for index in np.ndindex(*outer) for start in range(0, num, batch_size)]
    for *index, start in tqdm(parts[rank::num_processes], "Decode", disable=quiet):
        rows = (*index, slice(start, min(start + batch_size, num)))
        x[rows] = decode(np.asarray(z[rows]))
    wait()
    if rank == 0:
        os.replace(temporary, path)  # under its name a store is whole
    wait()
    return zarr.open_group(path, mode="r")["x"]


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
