"""Batches of data: shuffled from an array on the device, or taken from any iterable."""

from collections.abc import Iterable, Sequence
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax, random

from gebm.batches import check_rows, check_same_shape, check_shape, find_batch_size, without_labels

__all__ = ["InMemory", "Stream", "finite_array"]

#: Batches taken from an iterable at once, at least one base step's.
STREAM_BATCHES = 64


def finite_array(name: str, data: Any, event_shape: Sequence[int], dtype: Any) -> jax.Array:
    """Data as an array on the device.

    Args:
        name: of the argument, for messages.
        data: array of shape `(N,) + event_shape`.
        event_shape: shape of one event.
        dtype: of the array.

    Returns:
        The array.

    Raises:
        ValueError: if the shape does not fit, or values are not finite.
    """
    check_shape(name, data, event_shape)
    check_rows(name, np.asarray(np.isfinite(np.asarray(data)).reshape(len(data), -1).all(axis=1)))
    return jnp.asarray(data, dtype)


class InMemory:
    """An array of data, reshuffled every epoch.

    Args:
        data: array of shape `(N,) + event_shape`.
        event_shape: shape of one event.
        batch_size: data points a step; None takes `min(128, N)`.
        dtype: of the batches.

    Raises:
        TypeError: if the batch size is not an integer.
        ValueError: if the shape does not fit, the batch is larger than the data, or values are not finite.
    """

    limit = None

    def __init__(self, data: Any, event_shape: Sequence[int], batch_size: int | None, dtype: Any) -> None:
        data = finite_array("data", data, event_shape, dtype)
        self.source = _Shuffled(data, find_batch_size(batch_size, len(data)))

    def take(self, step: Any, num: int) -> Any:
        """What a compiled chunk reads its batches from."""
        return self.source

    def skip(self, num: int) -> None:
        """Nothing to do: the position in the data follows from the number of the step."""


class _Shuffled(eqx.Module):
    data: jax.Array
    batch_size: int = eqx.field(static=True)

    def start(self, step, rng_key):
        """Order of the data in the epoch of a step: it depends on the key and the epoch only."""
        epoch = step // (len(self.data) // self.batch_size)
        return random.permutation(random.fold_in(rng_key, epoch), len(self.data))

    def batch(self, step, rng_key, order):
        """The batch of a step, and the order of its epoch."""
        position = step % (len(self.data) // self.batch_size)
        order = lax.cond(position == 0, lambda: self.start(step, rng_key), lambda: order)
        return self.data[lax.dynamic_slice(order, (position * self.batch_size,), (self.batch_size,))], order


class Stream:
    """Batches from an iterable: a loader is iterated again when it ends, a generator once.

    Args:
        iterable: yields arrays of shape `(batch_size,) + event_shape`, all of one shape; a tuple's first entry is
            taken (loaders that yield `(data, label)`).
        event_shape: shape of one event.
        dtype: of the batches handed out.
    """

    limit = STREAM_BATCHES

    def __init__(self, iterable: Iterable[Any], event_shape: Sequence[int], dtype: Any) -> None:
        self.iterable, self.event_shape, self.dtype = iterable, tuple(event_shape), dtype
        self.iterator, self.shape, self.count = iter(iterable), None, 0

    def next(self) -> np.ndarray:
        """The next batch, as a NumPy array.

        Raises:
            ValueError: if the iterable is empty or ends for good, or a batch has another shape than the first.
        """
        try:
            batch = next(self.iterator)
        except StopIteration:
            self.iterator = iter(self.iterable)
            try:
                batch = next(self.iterator)
            except StopIteration:
                raise ValueError(
                    f"Expected more batches; the iterable ended for good after {self.count}. Pass a loader that is not "
                    "empty and can be iterated again, or a longer generator."
                ) from None
        batch = np.asarray(without_labels(batch), dtype=self.dtype)
        check_shape("data", batch, self.event_shape)
        self.shape = batch.shape if self.shape is None else self.shape
        check_same_shape(batch.shape, self.shape)
        self.count += 1
        return batch

    def take(self, step: Any, num: int) -> Any:
        """What a compiled chunk reads its next `num` batches from."""
        batches = [self.next() for _ in range(num)]
        batches += [np.zeros_like(batches[0])] * (self.limit - num)  # one shape, so that nothing is compiled twice
        return _Stacked(jnp.asarray(np.stack(batches)), jnp.asarray(step))

    def skip(self, num: int) -> None:
        """Skip `num` batches, which the run used before its checkpoint."""
        for _ in range(num):
            self.next()


class _Stacked(eqx.Module):
    batches: jax.Array
    first: jax.Array

    @property
    def batch_size(self):
        return self.batches.shape[1]

    def start(self, step, rng_key):
        """No position to keep."""

    def batch(self, step, rng_key, position):
        """The batch of a step."""
        return self.batches[step - self.first], None
