"""Stored latents to draws of the model, batch by batch."""

import os
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np

from gebm.decode import batches_of_rows, write_decoded
from gebm.validation import instance
from numpyro_gebm.devices import wait
from numpyro_gebm.gebm import GEBM

__all__ = ["decode", "decode_to_zarr"]


def decode(gebm: GEBM, z: Any, batch_size: int = 1000) -> Iterator[jax.Array]:
    """Draws x = B(z) of stored latents, one batch at a time.

    Nothing is read or computed before it is needed: `z` may be larger than the memory. Compiled once, since the
    last batch is padded; in the dtype of `z`.

    Args:
        gebm: the model whose generator is used.
        z: latents of shape `batch + latent_event_shape`: an array, an xarray `DataArray`, or an h5py or h5netcdf
            variable, whose rows are read when they are needed. Leading axes, such as (chain, draw), are flattened
            in C order.
        batch_size: number of latents decoded at once.

    Returns:
        An iterator over arrays of shape `(batch_size,) + event_shape`; the last one may be shorter.

    Raises:
        TypeError: if `z` is not one array, or `batch_size` not an integer.
        ValueError: if the last axes of `z` are not those of a latent, or `batch_size` is below 1.

    Example:
        >>> import numpyro.distributions as dist
        >>> from numpyro_gebm import GEBM, Pushforward
        >>> base = Pushforward(dist.Normal(0.0, 1.0).expand([2]).to_event(1), lambda z: z @ np.ones((2, 3)))
        >>> gebm = GEBM(base, lambda x: 0.5 * (x**2).sum())
        >>> [x.shape for x in decode(gebm, np.zeros((2, 25, 2)), batch_size=20)]
        [(20, 3), (20, 3), (10, 3)]
    """
    instance("gebm", gebm, GEBM)
    z = np.asarray(z) if isinstance(z, jax.Array) else z
    return _decoded(gebm, batches_of_rows(z, gebm.latent.event_shape, batch_size))


def decode_to_zarr(
    gebm: GEBM, z: Any, path: str | os.PathLike[str], batch_size: int = 1000, *, progress_bar: bool = True
) -> Any:
    """Draws x = B(z) of stored latents into a Zarr store, whose chunks are decoded by many processes in parallel.

    Under `jax.distributed` all processes call this alike, with parameters of their own.

    Args:
        gebm: the model whose generator is used.
        z: latents of shape `batch + latent_event_shape`, with at least one axis before the latent's, such as
            (chain, draw); read batch by batch, as by `decode`.
        path: the store to be made, which all processes must see; it has its name once it is whole.
        batch_size: number of latents decoded at once, and of a chunk.
        progress_bar: whether to show one.

    Returns:
        The `zarr.Array` x, of shape `batch + event_shape`; `xarray.open_zarr(path)` opens it too.

    Raises:
        FileExistsError: if there is something at `path`.
        ImportError: without zarr, naming the extra to install.
        TypeError: if `z` is not one array, or `batch_size` not an integer.
        ValueError: if the last axes of `z` are not those of a latent, there are none before them, or `batch_size` is
            below 1.

    Example:
        >>> import tempfile, numpyro.distributions as dist
        >>> from numpyro_gebm import GEBM, Pushforward
        >>> base = Pushforward(dist.Normal(0.0, 1.0).expand([2]).to_event(1), lambda z: z @ np.ones((2, 3)))
        >>> gebm = GEBM(base, lambda x: 0.5 * (x**2).sum())
        >>> decode_to_zarr(gebm, np.zeros((2, 25, 2)), tempfile.mkdtemp() + "/x.zarr", progress_bar=False).shape
        (2, 25, 3)
    """
    instance("gebm", gebm, GEBM)

    def decoded(rows):
        return np.concatenate([np.asarray(x) for x in decode(gebm, rows, batch_size)])

    z, shape = np.asarray(z) if isinstance(z, jax.Array) else z, gebm.latent.event_shape
    among = {"rank": jax.process_index(), "num_processes": jax.process_count(), "wait": wait}
    return write_decoded(decoded, z, shape, path, batch_size, **among, progress_bar=progress_bar)


def _decoded(gebm: GEBM, batches: Iterator[np.ndarray]) -> Iterator[jax.Array]:
    size = 0
    for rows in batches:
        size = max(size, len(rows))
        padded = np.zeros((size, *rows.shape[1:]), np.promote_types(rows.dtype, np.float16))  # a floating dtype
        padded[: len(rows)] = rows
        yield _decode(gebm, padded)[: len(rows)]


@jax.jit
def _decode(gebm: GEBM, z: jax.Array) -> jax.Array:
    return gebm.decode(z)
