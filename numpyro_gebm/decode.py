"""Stored latents to draws of the model, batch by batch."""

import jax
import numpy as np

__all__ = ["decode"]


def decode(gebm, z, batch_size=1000):
    """Draws x = B(z) of stored latents, one batch at a time.

    Nothing is read or computed before it is asked for: `z` may be larger than the memory. Compiled once, since the
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
        TypeError: if `z` is not one array.
        ValueError: if its last axes are not those of a latent, or `batch_size` is not a positive integer.

    Example:
        >>> import numpyro.distributions as dist
        >>> from numpyro_gebm import GEBM, Pushforward
        >>> base = Pushforward(dist.Normal(0.0, 1.0).expand([2]).to_event(1), lambda z: z @ np.ones((2, 3)))
        >>> gebm = GEBM(base, lambda x: 0.5 * (x**2).sum())
        >>> [x.shape for x in decode(gebm, np.zeros((2, 25, 2)), batch_size=20)]
        [(20, 3), (20, 3), (10, 3)]
    """
    z = np.asarray(z) if isinstance(z, (jax.Array, list, tuple)) else z
    event_shape = tuple(gebm.latent.event_shape)
    batch_shape = _batch_shape(z, event_shape, batch_size)
    dtype = np.promote_types(z.dtype, np.float16)  # its own, or a floating one for integers
    return _batches(gebm, z, batch_shape, event_shape, batch_size, dtype)


def _batch_shape(z, event_shape, batch_size):
    shape = getattr(z, "shape", None)
    if not isinstance(shape, tuple):
        raise TypeError(f'Expected an array of latents, such as `data["posterior"]["z"]`; got {type(z).__name__}.')
    split = len(shape) - len(event_shape)
    if split < 0 or tuple(shape[split:]) != event_shape:
        raise ValueError(f"Expected latents of shape (..., {', '.join(map(str, event_shape))}); got {tuple(shape)}.")
    if isinstance(batch_size, bool) or not isinstance(batch_size, (int, np.integer)) or batch_size < 1:
        raise ValueError(f"Expected `batch_size` to be a positive integer; got {batch_size!r}.")
    return tuple(shape[:split])


def _batches(gebm, z, batch_shape, event_shape, batch_size, dtype):
    num_rows = int(np.prod(batch_shape))
    batch_size = min(batch_size, num_rows)
    for start in range(0, num_rows, batch_size or 1):
        stop = min(start + batch_size, num_rows)
        rows = np.zeros((batch_size, *event_shape), dtype)
        _read_rows(z, batch_shape, start, stop, rows)
        yield _decode(gebm, rows)[: stop - start]


def _read_rows(z, batch_shape, start, stop, out):
    """Copy rows `start` to `stop` of the flattened leading axes into `out`, reading no others."""
    if not batch_shape:
        out[0] = z[...]
        return
    row = start
    while row < stop:
        outer, first = divmod(row, batch_shape[-1])
        last = min(batch_shape[-1], first + stop - row)
        index = tuple(int(i) for i in np.unravel_index(outer, batch_shape[:-1]))
        out[row - start : row - start + last - first] = z[(*index, slice(first, last))]
        row += last - first


@jax.jit
def _decode(gebm, z):
    return gebm.decode(z)
