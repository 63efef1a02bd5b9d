"""Running Pyro programs where other threads run some too: its stack of handlers is one for the whole process."""

import contextlib
import threading
from collections.abc import Iterator

import pyro
from pyro import poutine

__all__ = ["alone"]

_LOCK = threading.RLock()


@contextlib.contextmanager
def alone(validate: bool = True) -> Iterator[None]:
    """Run programs: one thread at a time, and unseen by the handlers around it.

    Args:
        validate: False turns Pyro's validation off within the block.
    """
    with _LOCK, poutine.block(), contextlib.nullcontext() if validate else pyro.validation_enabled(False):
        yield
