"""Stored latents to draws of the model, batch by batch."""

import os
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch

from gebm.decode import batches_of_rows, write_decoded
from gebm.validation import instance
from pyro_gebm.callables import draw_quietly
from pyro_gebm.gebm import GEBM
from pyro_gebm.processes import Processes

__all__ = ["decode", "decode_to_zarr"]


def decode(gebm: GEBM, z: Any, batch_size: int = 1000) -> Iterator[torch.Tensor]:
    """Draws x = B(z) of stored latents, one batch at a time.

    Nothing is read or computed before it is needed: `z` may be larger than the memory. Runs without gradient, on
    the model's device and in its dtype.

    Args:
        gebm: the model whose generator is used.
        z: latents of shape `batch + latent_event_shape`: an array, an xarray `DataArray`, or an h5py or h5netcdf
            variable, whose rows are read when they are needed. Leading axes, such as (chain, draw), are flattened
            in C order.
        batch_size: number of latents decoded at once.

    Returns:
        An iterator over tensors of shape `(batch_size,) + event_shape`; the last one may be shorter.

    Raises:
        TypeError: if `z` is not one array, or `batch_size` not an integer.
        ValueError: if the last axes of `z` are not those of a latent, or `batch_size` is below 1.

    Example:
        >>> import pyro.distributions as dist
        >>> from pyro_gebm import GEBM, Pushforward
        >>> base = Pushforward(dist.Normal(0.0, 1.0).expand([2]).to_event(1), lambda z: z @ torch.ones(2, 3))
        >>> gebm = GEBM(base, lambda x: 0.5 * (x**2).sum(-1))
        >>> [tuple(x.shape) for x in decode(gebm, np.zeros((2, 25, 2)), batch_size=20)]
        [(20, 3), (20, 3), (10, 3)]
    """
    instance("gebm", gebm, GEBM)
    z = z.detach().cpu().numpy() if isinstance(z, torch.Tensor) else z
    return _decoded(gebm, batches_of_rows(z, gebm.latent.event_shape, batch_size))


def decode_to_zarr(
    gebm: GEBM,
    z: Any,
    path: str | os.PathLike[str],
    batch_size: int = 1000,
    *,
    process_group: Any = None,
    progress_bar: bool = True,
) -> Any:
    """Draws x = B(z) of stored latents into a Zarr store, whose chunks are decoded by many processes in parallel.

    With a process group all its processes call this alike.

    Args:
        gebm: the model whose generator is used.
        z: latents of shape `batch + latent_event_shape`, with at least one axis before the latent's, such as
            (chain, draw); read batch by batch, as by `decode`.
        path: the store to be made, which all processes must see; it has its name once it is whole.
        batch_size: number of latents decoded at once, and of a chunk.
        process_group: of `torch.distributed`, or None.
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
        >>> import tempfile, pyro.distributions as dist
        >>> from pyro_gebm import GEBM, Pushforward
        >>> base = Pushforward(dist.Normal(0.0, 1.0).expand([2]).to_event(1), lambda z: z @ torch.ones(2, 3))
        >>> gebm = GEBM(base, lambda x: 0.5 * (x**2).sum(-1))
        >>> decode_to_zarr(gebm, np.zeros((2, 25, 2)), tempfile.mkdtemp() + "/x.zarr", progress_bar=False).shape
        (2, 25, 3)
    """
    instance("gebm", gebm, GEBM)
    processes = Processes.given(process_group)

    def decoded(rows):
        return np.concatenate([x.cpu().numpy() for x in decode(gebm, rows, batch_size)])

    z, shape = z.detach().cpu().numpy() if isinstance(z, torch.Tensor) else z, gebm.latent.event_shape
    among = {"rank": processes.rank, "num_processes": processes.size, "wait": processes.wait}
    return write_decoded(decoded, z, shape, path, batch_size, **among, progress_bar=progress_bar)


def _decoded(gebm: GEBM, batches: Iterator[np.ndarray]) -> Iterator[torch.Tensor]:
    like = draw_quietly(gebm.latent_prior, 1)
    for rows in batches:
        with torch.no_grad():  # not around `yield`: the caller's code would run without gradients
            x = gebm.decode(torch.tensor(rows, dtype=like.dtype, device=like.device))
        yield x
