"""Errors that both packages raise."""

from typing import Any

__all__ = ["ResultFailed", "TrainingDiverged"]


class ResultFailed(RuntimeError):
    """Training came to its end, but its result could not be made; the error behind it is the `__cause__`.

    Args:
        message: what happened, and where the trained parts are.
        state: the last state of the training.

    Attributes:
        state: the last state: in Pyro a state dictionary, in NumPyro a `KALEState`.
    """

    def __init__(self, message: str, state: Any) -> None:
        super().__init__(message)
        self.state = state


class TrainingDiverged(FloatingPointError):
    """Losses or gradients were not finite in several steps in a row.

    Args:
        message: what happened.
        state: the last good state of the training.

    Attributes:
        state: the last good state: in Pyro a state dictionary, in NumPyro a `KALEState`.
    """

    def __init__(self, message: str, state: Any) -> None:
        super().__init__(message)
        self.state = state
