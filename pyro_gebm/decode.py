"""Stored latents to draws of the model, batch by batch."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch

from gebm.decode import batches_of_rows
from gebm.validation import instance
from pyro_gebm.callables import draw_quietly
from pyro_gebm.gebm import GEBM

__all__ = ["decode"]


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


def _decoded(gebm: GEBM, batches: Iterator[np.ndarray]) -> Iterator[torch.Tensor]:
    like = draw_quietly(gebm.latent_prior, 1)
    for rows in batches:
        with torch.no_grad():  # not around `yield`: the caller's code would run without gradients
            x = gebm.decode(torch.tensor(rows, dtype=like.dtype, device=like.device))
        yield x
