"""Running NumPyro programs where other threads run some too: its stack of handlers is one for the whole process."""

import contextlib
import threading
from collections.abc import Iterator

from numpyro import handlers
from numpyro.primitives import _PYRO_STACK

__all__ = ["alone", "is_in_program"]

_LOCK = threading.RLock()


@contextlib.contextmanager
def alone() -> Iterator[None]:
    """Run programs: one thread at a time, and unseen by the handlers around it. Also a decorator, `@alone()`."""
    with _LOCK, handlers.block():
        yield


def is_in_program() -> bool:
    """Whether a program is being run by a handler."""
    return len(_PYRO_STACK) > 0
