"""Batches of data: shuffled from a tensor on the device, or taken from any iterable."""

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import torch

from gebm.batches import check_rows, check_same_shape, check_shape, find_batch_size, without_labels

__all__ = ["InMemory", "Stream", "finite_tensor"]


def finite_tensor(name: str, data: Any, event_shape: Sequence[int], like: torch.Tensor) -> torch.Tensor:
    """Data as a tensor on the device.

    Args:
        name: of the argument, for messages.
        data: tensor or array of shape `(N,) + event_shape`.
        event_shape: shape of one event.
        like: tensor whose dtype and device it has.

    Returns:
        The tensor.

    Raises:
        ValueError: if the shape does not fit, or values are not finite.
    """
    check_shape(name, data, event_shape)
    data = torch.as_tensor(data, dtype=like.dtype, device=like.device)
    check_rows(name, torch.isfinite(data).reshape(len(data), -1).all(1).cpu().numpy())
    return data


class InMemory:
    """A tensor of data, reshuffled every epoch.

    Args:
        data: tensor or array of shape `(N,) + event_shape`.
        event_shape: shape of one event.
        batch_size: data points a step; None takes `min(128, N)`.
        like: tensor whose dtype and device the batches have.

    Raises:
        TypeError: if the batch size is not an integer.
        ValueError: if the shape does not fit, the batch is larger than the data, or values are not finite.
    """

    def __init__(self, data: Any, event_shape: Sequence[int], batch_size: int | None, like: torch.Tensor) -> None:
        self.data = finite_tensor("data", data, event_shape, like)
        self.batch_size = find_batch_size(batch_size, len(self.data))
        self.order, self.position = None, 0

    def next(self) -> torch.Tensor:
        """The next batch."""
        if self.order is None or self.position + self.batch_size > len(self.data):
            self.order, self.position = torch.randperm(len(self.data), device=self.data.device), 0
        rows = self.order[self.position : self.position + self.batch_size]
        self.position += self.batch_size
        return self.data[rows]

    def state_dict(self) -> dict[str, Any]:
        """Position in the data."""
        return {"order": self.order, "position": self.position}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go back to a position from `state_dict`."""
        self.order, self.position = state["order"], state["position"]


class Stream:
    """Batches from an iterable: a loader is iterated again when it ends, a generator once.

    Args:
        iterable: yields tensors or arrays of shape `(N,) + event_shape`, all of one shape; a tuple's first entry is
            taken (loaders that yield `(data, label)`).
        event_shape: shape of one event.
        like: tensor whose dtype and device the batches have.
    """

    def __init__(self, iterable: Iterable[Any], event_shape: Sequence[int], like: torch.Tensor) -> None:
        self.iterable, self.event_shape, self.like = iterable, tuple(event_shape), like
        self.iterator: Iterator[Any] | None = None
        self.rng_state, self.shape = None, None
        self.count = self.in_epoch = 0

    def next(self) -> torch.Tensor:
        """The next batch.

        Raises:
            ValueError: if the iterable is empty or ends for good, or a batch has another shape than the first.
        """
        try:
            batch = next(self._restart() if self.iterator is None else self.iterator)
        except StopIteration:
            try:
                batch = next(self._restart())
            except StopIteration:
                raise ValueError(
                    f"Expected more batches; the iterable ended for good after {self.count}. Pass a loader that is not "
                    "empty and can be iterated again, or a longer generator."
                ) from None
        batch = torch.as_tensor(without_labels(batch), dtype=self.like.dtype, device=self.like.device)
        check_shape("data", batch, self.event_shape)
        self.shape = batch.shape if self.shape is None else self.shape
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
