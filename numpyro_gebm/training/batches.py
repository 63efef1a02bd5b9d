"""Batches of data: shuffled from an array on the device, or taken from any iterable."""

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax, random
from numpyro.util import not_jax_tracer

from gebm.batches import as_array, check_finite, check_same_shape, check_shape, find_batch_size, values_of
from gebm.fingerprint import describe_stream

__all__ = ["InMemory", "Stream", "finite_array"]

#: Batches taken from an iterable at once, at least one base step's.
STREAM_BATCHES = 64


def finite_array(
    name: str, data: Any, event_shape: Sequence[int], dtype: Any, key: str | None = None
) -> np.ndarray | jax.Array:
    """Data, or a batch, as an array of floats: the one door for both.

    Args:
        name: of the argument, for messages.
        data: array, tensor, DataFrame, nested lists, or a tuple or dict of them, see `gebm.batches.values_of`; of shape
            `(N,) + event_shape`, of any type of real numbers. Values of a traced array are not looked at.
        event_shape: shape of one event.
        dtype: of the array.
        key: name of the entry of a dict.

    Returns:
        The array: on its device if it was on one, else NumPy's.

    Raises:
        TypeError: if the values are not real numbers.
        ValueError: if the shape does not fit, or values are not finite.
    """
    data = values_of(name, data, event_shape, key)
    if not isinstance(data, jax.Array) or jnp.iscomplexobj(data):  # which the NumPy door refuses
        data = as_array(name, data, dtype)
    check_shape(name, data, event_shape)
    data = data.astype(dtype)
    if not_jax_tracer(data):
        check_finite(name, np.isfinite(data) if isinstance(data, np.ndarray) else np.asarray(jnp.isfinite(data)))
    return data


class InMemory:
    """An array of data, reshuffled every epoch.

    Args:
        data: from `finite_array`.
        batch_size: data points a step; None takes `min(128, N)`.

    Raises:
        TypeError: if the batch size is not an integer.
        ValueError: if the batch is larger than the data.
    """

    limit = None

    def __init__(self, data: np.ndarray | jax.Array, batch_size: int | None) -> None:
        self.source = _Shuffled(jnp.asarray(data), find_batch_size(batch_size, len(data)))

    @property
    def described(self) -> dict[str, Any]:
        """What a fingerprint says of the data."""
        return {"data": self.source.data, "batch_size": self.source.batch_size}

    @property
    def batch_size(self) -> int:
        """Data points a step."""
        return self.source.batch_size

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
        iterable: yields what `as_batch` takes, all of one shape.
        as_batch: callable from a name, for messages, and an item to an array.
    """

    limit = STREAM_BATCHES

    def __init__(self, iterable: Iterable[Any], as_batch: Callable[[str, Any], np.ndarray | jax.Array]) -> None:
        self.iterable, self.as_batch = iterable, as_batch
        self.iterator, self.shape, self.count = iter(iterable), None, 0

    @property
    def described(self) -> dict[str, Any]:
        """What a fingerprint says of the data."""
        return {"data": describe_stream(self.iterable), "batch_size": getattr(self.iterable, "batch_size", None)}

    def next(self) -> np.ndarray:
        """The next batch, as a NumPy array.

        Raises:
            ValueError: if the iterable is empty or ends for good, or a batch has another shape than the first, or
                values that are not finite.
        """
        try:
            batch = next(self.iterator)
        except StopIteration:
            self.iterator = iter(self.iterable)
            try:
                batch = next(self.iterator)
            except StopIteration:
                raise ValueError(
                    f"Expected more batches in data; the iterable ended for good after {self.count}. Pass a loader "
                    "that is not empty and can be iterated again, or a longer generator."
                ) from None
        batch = np.asarray(self.as_batch(f"data in batch {self.count}", batch))
        self.shape = batch.shape if self.shape is None else self.shape
        check_same_shape(batch.shape, self.shape)
        self.count += 1
        return batch

    @property
    def batch_size(self) -> int:
        """Data points a step; 0 before the first."""
        return 0 if self.shape is None else self.shape[0]

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
