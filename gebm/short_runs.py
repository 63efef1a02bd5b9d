"""Short runs of chains from the prior: settings by name, and what a run returns."""

from typing import Any, Generic, NamedTuple, TypeVar

import numpy as np

from gebm.validation import integer, one_of

__all__ = ["PRESETS", "ShortRunResult", "check_kernel", "recorded_steps"]

Array = TypeVar("Array")

#: Settings of `KineticLangevin` by name, for a standard normal prior; one gradient a step.
PRESETS: dict[str, dict[str, Any]] = {
    "kinetic": {"step_size": 0.1, "friction": 1.0, "num_steps": 1},
    "at_modes": {"step_size": 0.1, "friction": 10.0, "num_steps": 1},
    "between_modes": {"step_size": 0.1, "friction": 0.1, "num_steps": 1},
}


class ShortRunResult(NamedTuple, Generic[Array]):
    """Latents of many chains along a run.

    `z` has the shape `(num_records, num_chains) + latent.batch_shape + latent.event_shape`; `steps`, an array of shape
    `(num_records,)`, says after how many steps. The first record, after 0 steps, is of draws of the prior.
    """

    z: Array
    steps: np.ndarray


def check_kernel(name: str, kernel: Any) -> Any:
    """A kernel by name, or a callable that makes one of a model.

    Args:
        name: of the argument, for the message.
        kernel: what was passed.

    Returns:
        The kernel, as it is.

    Raises:
        TypeError: if it is neither.
        ValueError: if there is none of this name.

    Example:
        >>> check_kernel("kernel", "at_mode")
        Traceback (most recent call last):
        ...
        ValueError: Expected kernel in ('kinetic', 'at_modes', 'between_modes'); got 'at_mode'.
    """
    if isinstance(kernel, str):
        return one_of(name, kernel, PRESETS)
    if not callable(kernel):
        raise TypeError(
            f"Expected {name} to be one of {sorted(PRESETS)}, or a callable from a model to a kernel such as "
            f"`partial(infer.MALA, step_size=0.1)`; got {kernel!r}."
        )
    return kernel


def recorded_steps(num_steps: int, record_every: int | None) -> np.ndarray:
    """After how many steps a run is recorded: at the start, every so many, and at the end.

    Args:
        num_steps: steps of the run.
        record_every: steps between records; None records start and end.

    Raises:
        TypeError: if `record_every` is not an integer.
        ValueError: if it is not between 1 and `num_steps`.

    Example:
        >>> recorded_steps(25, 10)
        array([ 0, 10, 20, 25])
    """
    every = num_steps if record_every is None else integer("record_every", record_every, maximum=num_steps)
    return np.unique([*range(0, num_steps, every), num_steps])
