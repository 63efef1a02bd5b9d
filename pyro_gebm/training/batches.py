"""Batches of data: shuffled from a tensor on the device, or taken from any iterable."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import numpy as np
import torch

from gebm.batches import as_array, check_finite, check_same_shape, check_shape, find_batch_size, values_of
from gebm.fingerprint import describe_stream
from pyro_gebm.processes import Processes

__all__ = ["InMemory", "Stream", "finite_tensor"]


def finite_tensor(
    name: str, data: Any, event_shape: Sequence[int], like: torch.Tensor, key: str | None = None
) -> torch.Tensor:
    """Data, or a batch, as a tensor on the device: the one door for both.

    Args:
        name: of the argument, for messages.
        data: tensor, array, DataFrame, nested lists, or a tuple or dict of them, see `gebm.batches.values_of`; of shape
            `(N,) + event_shape`, of any type of real numbers.
        event_shape: shape of one event.
        like: tensor whose dtype and device it has.
        key: name of the entry of a dict.

    Returns:
        The tensor.

    Raises:
        TypeError: if the values are not real numbers.
        ValueError: if the shape does not fit, or values are not finite.
    """
    data = values_of(name, data, event_shape, key)
    if not isinstance(data, torch.Tensor) or data.is_complex():  # which the NumPy door refuses
        dtype = np.float64 if like.dtype == torch.float64 else np.float32
        data = torch.from_numpy(as_array(name, data, dtype))
    check_shape(name, data, event_shape)
    data = data.detach().to(like)
    check_finite(name, torch.isfinite(data).cpu().numpy())
    return data


class InMemory:
    """A tensor of data, reshuffled every epoch.

    Args:
        data: from `finite_tensor`.
        batch_size: data points a step; None takes `min(128, N)`.
        processes: that share a batch.

    Raises:
        TypeError: if the batch size is not an integer.
        ValueError: if the batch is larger than the data, or the processes cannot share it evenly.
    """

    def __init__(self, data: torch.Tensor, batch_size: int | None, processes: Processes) -> None:
        self.data, self.processes = data, processes
        self.batch_size = find_batch_size(batch_size, len(self.data))
        processes.check_divides("batch_size", self.batch_size)
        self.order, self.position = None, 0

    @property
    def described(self) -> dict[str, Any]:
        """What a fingerprint says of the data."""
        return {"data": self.data, "batch_size": self.batch_size}

    def next(self) -> torch.Tensor:
        """The next batch, or this process's part of it."""
        if self.order is None or self.position + self.batch_size > len(self.data):
            self.order, self.position = torch.randperm(len(self.data), device=self.data.device), 0
        rows = self.order[self.position : self.position + self.batch_size]
        self.position += self.batch_size
        return self.data[self.processes.rows(rows)]

    def state_dict(self) -> dict[str, Any]:
        """Position in the data."""
        return {"order": self.order, "position": self.position}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go back to a position from `state_dict`; among other data an epoch begins."""
        if state["order"] is not None and len(state["order"]) == len(self.data):
            self.order, self.position = state["order"], state["position"]


class Stream:
    """Batches from an iterable: a loader is iterated again when it ends, a generator once.

    Args:
        iterable: yields what `as_batch` takes, all of one shape.
        as_batch: callable from a name, for messages, and an item to a tensor.
        processes: that each have an iterable, of their parts of the batches.
    """

    def __init__(
        self, iterable: Iterable[Any], as_batch: Callable[[str, Any], torch.Tensor], processes: Processes
    ) -> None:
        self.iterable, self.as_batch, self.processes = iterable, as_batch, processes
        self.iterator: Iterator[Any] | None = None
        self.rng_state, self.shape = None, None
        self.count = self.in_epoch = 0

    @property
    def described(self) -> dict[str, Any]:
        """What a fingerprint says of the data."""
        return {"data": describe_stream(self.iterable), "batch_size": getattr(self.iterable, "batch_size", None)}

    @property
    def batch_size(self) -> int:
        """Data points a step; 0 before the first."""
        return 0 if self.shape is None else self.shape[0] * self.processes.size

    def next(self) -> torch.Tensor:
        """The next batch.

        Raises:
            ValueError: if the iterable is empty or ends for good, or a batch has another shape than the first, or
                values that are not finite.
        """
        try:
            batch = next(self._restart() if self.iterator is None else self.iterator)
        except StopIteration:
            try:
                batch = next(self._restart())
            except StopIteration:
                raise ValueError(
                    f"Expected more batches in data; the iterable ended for good after {self.count}. Pass a loader "
                    "that is not empty and can be iterated again, or a longer generator."
                ) from None
        batch = self.as_batch(f"data in batch {self.count}", batch)
        if self.shape is None:
            self.processes.check_same("the first batch's shape", tuple(batch.shape))
            self.shape = batch.shape
        check_same_shape(batch.shape, self.shape)
        self.count, self.in_epoch = self.count + 1, self.in_epoch + 1
        return batch

    def _restart(self) -> Iterator[Any]:
        """Begin an epoch; a loader that shuffles takes its order from the random state of this moment."""
        self.rng_state, self.in_epoch = torch.get_rng_state(), 0
        self.iterator = iter(self.iterable)
        return self.iterator

    def state_dict(self) -> dict[str, Any]:
        """Position in the data: batches of this epoch, and the random state it began with."""
        return {"rng_state": self.rng_state, "in_epoch": self.in_epoch, "count": self.count}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Skip the batches that an interrupted run has used; the random state is unchanged."""
        if state["rng_state"] is None:
            return
        now = torch.get_rng_state()
        torch.set_rng_state(state["rng_state"])
        self._restart()
        self.count = state["count"] - state["in_epoch"]
        for _ in range(state["in_epoch"]):
            self.next()
        torch.set_rng_state(now)
