"""Data in any form that people have them: what counts as data, as a batch, and as their values; checks of all."""

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from gebm import validation

__all__ = ["as_array", "check_finite", "check_same_shape", "check_shape", "find_batch_size", "is_array", "values_of"]

#: Data points a step, unless told or fewer.
BATCH_SIZE = 128


def is_array(data: Any, event_shape: Sequence[int]) -> bool:
    """Whether data are one array of data points, rather than an iterable of batches.

    Args:
        data: anything with a shape (array, tensor, DataFrame, memmap), nested lists of numbers, a dict of such, or an
            iterable of batches.
        event_shape: shape of one data point; lists of one more level are data, of two more a list of batches.

    Raises:
        TypeError: if it is neither.

    Example:
        >>> is_array([[0.0, 1.0], [2.0, 3.0]], event_shape=(2,)), is_array([np.zeros((8, 2))], event_shape=(2,))
        (True, False)
    """
    if isinstance(data, (list, tuple)):
        return _depth(data) == len(event_shape) + 1 and len(data) > 0
    if isinstance(data, (str, bytes)) or not (hasattr(data, "shape") or isinstance(data, Iterable)):
        raise TypeError(f"Expected data to be an array or an iterable of batches; got {type(data).__name__}.")
    return hasattr(data, "shape") or isinstance(data, Mapping)


def values_of(name: str, item: Any, event_shape: Sequence[int], key: str | None = None) -> Any:
    """The values of data, or of an item of a loader.

    Args:
        name: of the argument, for messages.
        item: an array or nested lists; a tuple `(data, label)`, of which the first entry is taken; or a dict.
        event_shape: shape of one data point.
        key: name of the entry of a dict; None takes the only one.

    Returns:
        What holds the numbers.

    Raises:
        ValueError: for a dict without that entry, or with several and no key; or a key and no dict.

    Example:
        >>> values_of("data", {"image": [[0.0]], "label": [1]}, (1,), key="image")
        [[0.0]]
    """
    if isinstance(item, (list, tuple)) and item and _depth(item) != len(event_shape) + 1:
        return values_of(name, item[0], event_shape, key)
    if isinstance(item, Mapping):
        if key is None and len(item) == 1:
            return next(iter(item.values()))
        if key not in item:
            raise ValueError(f"Expected key= to name the entry of {name} to take; got {key!r}, of {[*item]}.")
        return item[key]
    if key is not None:
        raise ValueError(f"Expected {name} in dicts with the entry key={key!r}; got {type(item).__name__}.")
    return item


def as_array(name: str, values: Any, dtype: Any) -> np.ndarray:
    """Real numbers of any type and form, as a writable array of floats; integers are not scaled.

    Args:
        name: of the argument, for messages.
        values: array, tensor, DataFrame, nested lists.
        dtype: of the result.

    Returns:
        The array.

    Raises:
        TypeError: if the values are not real numbers.
        ValueError: if they do not form an array.

    Example:
        >>> as_array("data", [[0, 255]], np.float32)
        array([[  0., 255.]], dtype=float32)
    """
    if isinstance(values, np.ma.MaskedArray):
        values = np.ma.filled(values.astype(float), np.nan)
    values = values.detach().cpu() if hasattr(values, "detach") else values  # a tensor of any device
    try:
        array = np.asarray(values)
    except (TypeError, ValueError) as error:  # lists of unequal length, tensors that NumPy cannot hold
        raise type(error)(f"Expected {name} that form one array; got {type(values).__name__}: {error}") from None
    if not (array.dtype.kind in "biuf" or "float" in array.dtype.name):  # bfloat16 is of a kind of its own
        raise TypeError(f"Expected {name} of real numbers; got {type(values).__name__} of dtype {array.dtype}.")
    with np.errstate(over="ignore"):  # found as infinities
        return np.require(array, dtype, "W")


def check_shape(name: str, data: Any, event_shape: Sequence[int]) -> None:
    """Raise an error unless `data` is an array of shape `(N,) + event_shape`, N at least 1."""
    try:
        shape, event_shape = tuple(np.shape(data)), tuple(event_shape)
    except (TypeError, ValueError):  # a `shape` that is a method, rows of several lengths
        raise TypeError(f"Expected {name} to be an array; got {type(data).__name__}.") from None
    if len(shape) == 0 or shape[1:] != event_shape or shape[0] == 0:
        hint = " Stack data points into batches: `DataLoader(dataset, batch_size)`." if shape == event_shape else ""
        raise ValueError(f"Expected {name} of shape (N,) + {event_shape}, N >= 1; got {shape}.{hint}")


def check_finite(name: str, finite: np.ndarray) -> None:
    """Raise ValueError unless all values are finite.

    Args:
        name: of the data, for the message.
        finite: whether each value is, of shape `(N, ...)`.
    """
    if not finite.all():
        rows = np.flatnonzero(~finite.reshape(len(finite), -1).all(1))
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


def check_same_shape(shape: Sequence[int], first: Sequence[int]) -> None:
    """Raise ValueError unless a batch has the shape of the first."""
    if tuple(shape) != tuple(first):
        raise ValueError(
            f"Expected batches of one shape, {tuple(first)}; got {tuple(shape)}. Drop the last, shorter batch "
            "(`drop_last=True`)."
        )


def _depth(data):
    """Levels of lists, and the axes of what is in them."""
    if isinstance(data, (list, tuple)):
        return 1 + (_depth(data[0]) if data else 0)
    if isinstance(data, Mapping):
        return math.inf
    return len(getattr(data, "shape", ()))
