"""How a sample is divided where a critic is trained on one part of it and judged on another."""

from typing import Any

__all__ = ["parts_of"]

#: Shares of a sample for training and for the choice of a state; the rest is for the verdict.
TRAINING, CHOICE = 0.6, 0.1
#: Fewest rows.
MIN_ROWS = 20


def parts_of(name: str, rows: Any) -> tuple[Any, Any, Any]:
    """Three parts of a sample whose order is random: for training, for the choice of a state, for the verdict.

    Args:
        name: of the argument, for the message.
        rows: array of shape `(N,) + event_shape`.

    Returns:
        The parts.

    Raises:
        ValueError: for fewer than 20 rows.

    Example:
        >>> import numpy as np
        >>> [len(part) for part in parts_of("data", np.zeros((100, 2)))]
        [60, 10, 30]
    """
    if len(rows) < MIN_ROWS:
        raise ValueError(f"Expected at least {MIN_ROWS} rows of {name}; got {len(rows)}.")
    first = round(TRAINING * len(rows))
    second = first + round(CHOICE * len(rows))
    return rows[:first], rows[first:second], rows[second:]
