"""Batches of data: shuffled from a tensor on the device, or taken from any iterable."""

import numpy as np
import torch

__all__ = ["InMemory", "Stream", "check_shape"]


def check_shape(data, event_shape):
    """Raise ValueError unless `data` is a non-empty batch of events."""
    shape = tuple(np.shape(data))
    if len(shape) == 0 or shape[1:] != tuple(event_shape) or shape[0] == 0:
        raise ValueError(f"Expected data of shape (N,) + {tuple(event_shape)}, N >= 1; got {shape}.")


class InMemory:
    """A tensor of data, shuffled anew every epoch.

    Args:
        data: tensor or array of shape `(N,) + event_shape`.
        event_shape: shape of one event.
        batch_size: data points a step.
        like: tensor whose dtype and device the batches have.

    Raises:
        ValueError: if the shape does not fit, the batch is larger than the data, or values are not finite.
    """

    def __init__(self, data, event_shape, batch_size, like):
        check_shape(data, event_shape)
        if batch_size is None or not 1 <= batch_size <= len(data):
            raise ValueError(f"Expected 1 <= batch_size <= {len(data)} (the number of data); got {batch_size}.")
        self.data = torch.as_tensor(data, dtype=like.dtype, device=like.device)
        finite = torch.isfinite(self.data).reshape(len(data), -1).all(1)
        if not finite.all():
            rows = (~finite).nonzero().flatten()
            raise ValueError(f"Expected finite data; got NaN or inf in {len(rows)} rows, the first is {rows[0]}.")
        self.batch_size = batch_size
        self.order, self.position = None, 0

    def next(self):
        """The next batch."""
        if self.order is None or self.position + self.batch_size > len(self.data):
            self.order, self.position = torch.randperm(len(self.data), device=self.data.device), 0
        rows = self.order[self.position : self.position + self.batch_size]
        self.position += self.batch_size
        return self.data[rows]

    def state_dict(self):
        """Position in the data."""
        return {"order": self.order, "position": self.position}

    def load_state_dict(self, state):
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

    def __init__(self, iterable, event_shape, like):
        self.iterable, self.event_shape, self.like = iterable, tuple(event_shape), like
        self.iterator, self.rng_state, self.shape = None, None, None
        self.count = self.in_epoch = 0

    def next(self):
        """The next batch.

        Raises:
            ValueError: if the iterable is empty or ends for good, or a batch has another shape than the first.
        """
        if self.iterator is None:
            self._restart()
        try:
            batch = next(self.iterator)
        except StopIteration:
            self._restart()
            try:
                batch = next(self.iterator)
            except StopIteration:
                raise ValueError(
                    f"Expected more batches; got {self.count} before the data ended for good. Pass a loader that can "
                    "be iterated again (an empty one cannot be trained on), or a longer generator."
                ) from None
        batch = batch[0] if isinstance(batch, (tuple, list)) else batch
        batch = torch.as_tensor(batch, dtype=self.like.dtype, device=self.like.device)
        check_shape(batch, self.event_shape)
        self.shape = batch.shape if self.shape is None else self.shape
        if batch.shape != self.shape:
            raise ValueError(
                f"Expected batches of one shape, {tuple(self.shape)}; got {tuple(batch.shape)}. Drop the last, shorter "
                "batch (`drop_last=True`)."
            )
        self.count, self.in_epoch = self.count + 1, self.in_epoch + 1
        return batch

    def _restart(self):
        """Begin an epoch; a loader that shuffles takes its order from the random state of this moment."""
        self.rng_state, self.in_epoch = torch.get_rng_state(), 0
        self.iterator = iter(self.iterable)

    def state_dict(self):
        """Position in the data: batches of this epoch, and the random state it began with."""
        return {"rng_state": self.rng_state, "in_epoch": self.in_epoch, "count": self.count}

    def load_state_dict(self, state):
        """Pass over the batches that an interrupted run has used; the random state is left as it is."""
        if state["rng_state"] is None:
            return
        now = torch.get_rng_state()
        torch.set_rng_state(state["rng_state"])
        self._restart()
        self.count = state["count"] - state["in_epoch"]
        for _ in range(state["in_epoch"]):
            self.next()
        torch.set_rng_state(now)
