"""Errors that both packages raise."""

from typing import Any

__all__ = ["TrainingDiverged"]


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
