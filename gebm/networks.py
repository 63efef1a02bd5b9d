"""What the networks of both packages share without a framework: sizes, settings, slopes of activations."""

import math
from collections.abc import Iterable, Sequence
from typing import Any

from gebm.validation import finite, integer, one_of, positive, sequence

__all__ = [
    "LIPSCHITZ_CONSTANTS",
    "check_bounds",
    "check_compute_dtype",
    "check_event",
    "check_lipschitz_layers",
    "coarse_size",
    "config_of",
    "name_of",
    "num_groups",
    "shape_of",
]

#: Lipschitz constants of the activations by name.
LIPSCHITZ_CONSTANTS = {
    "identity": 1.0,
    "leaky_relu": 1.0,
    "relu": 1.0,
    "sigmoid": 0.25,
    "silu": 1.0999,
    "softplus": 1.0,
    "tanh": 1.0,
}


def name_of(network: object) -> str:
    """What to call a network in a text: a function by its name, anything else by its class.

    Example:
        >>> name_of(len), name_of(3.0)
        ('len', 'float')
    """
    return getattr(network, "__name__", type(network).__name__)


def shape_of(name: str, value: Iterable[int], *, minimum: int = 1) -> tuple[int, ...]:
    """A shape, or widths of layers, as a tuple of integers.

    Args:
        name: of the argument, for the message.
        value: what was passed.
        minimum: the smallest entry allowed.

    Raises:
        TypeError: if it is not a sequence, such as the 8 of `(8)`.

    Example:
        >>> shape_of("hidden", 64)
        Traceback (most recent call last):
        ...
        TypeError: Expected hidden to be a sequence of integers; got 64 (int). Write (64,) for one.
    """
    hint = f" Write ({value},) for one." if isinstance(value, int) else ""
    try:
        entries = sequence(name, value)
    except TypeError as error:
        raise TypeError(f"{error}".replace("a sequence", "a sequence of integers") + hint) from None
    return tuple(integer(f"entries of {name}", entry, minimum=minimum) for entry in entries)


def check_compute_dtype(compute_dtype: str | None, lipschitz: float | None = None) -> str | None:
    """Check in what precision a network is asked to compute.

    Args:
        compute_dtype: "bfloat16", or None for that of the weights.
        lipschitz: Lipschitz constant that is asked for; None for no bound.

    Returns:
        `compute_dtype`.

    Raises:
        ValueError: if it is another one, or a bound is asked for, which rounding would break.
    """
    if compute_dtype is not None:
        one_of("compute_dtype", compute_dtype, ("bfloat16",))
        if lipschitz is not None:
            raise ValueError(
                f"Expected compute_dtype None for a bound on the Lipschitz constant; got {compute_dtype!r}."
            )
    return compute_dtype


def config_of(network: object, names: str) -> dict[str, Any]:
    """Settings of a network by name, `compute_dtype` among them where it is not that of the weights."""
    names = f"{names} compute_dtype" if getattr(network, "compute_dtype", None) is not None else names
    return {name: getattr(network, name) for name in names.split()}


def check_event(name: str, shape: Sequence[int], event_shape: Sequence[int]) -> None:
    """Check that values end in the axes of an event, or of a latent.

    Args:
        name: of the argument, for the message.
        shape: of the values.
        event_shape: shape of one event.

    Raises:
        ValueError: if they do not.

    Example:
        >>> check_event("z", (100, 3), (2,))
        Traceback (most recent call last):
        ...
        ValueError: Expected z of shape (..., 2); got (100, 3).
    """
    if tuple(shape[max(len(shape) - len(event_shape), 0) :]) != tuple(event_shape):
        expected = ", ".join(map(str, ["...", *event_shape]))
        raise ValueError(f"Expected {name} of shape ({expected}); got {tuple(shape)}.")


def check_bounds(lipschitz: float | None, lower_bound: float | None, output_shape: Sequence[int]) -> None:
    """Check the Lipschitz constant and the lower bound asked of a network.

    Args:
        lipschitz: Lipschitz constant, positive; None for no bound.
        lower_bound: lower bound of the values; None for no bound.
        output_shape: shape of the network's output, `()` for an energy.

    Raises:
        ValueError: if the constant is not positive and finite, or the bound is not finite or of no energy.
    """
    if lipschitz is not None:
        positive("lipschitz", lipschitz)
    if lower_bound is not None and (tuple(output_shape) != () or not math.isfinite(finite("lower_bound", lower_bound))):
        raise ValueError(
            f"Expected a finite lower_bound of an energy (output_shape ()); got {lower_bound} for output_shape "
            f"{tuple(output_shape)}."
        )


def check_lipschitz_layers(lipschitz: float | None, residual_blocks: int, normalization: str | None) -> None:
    """Check that a network of which a Lipschitz constant is asked has only layers that can be scaled.

    Args:
        lipschitz: Lipschitz constant; None for no bound.
        residual_blocks: residual blocks at every size.
        normalization: name of a normalisation, or None.

    Raises:
        ValueError: if there are others.
    """
    if lipschitz is not None and (residual_blocks or normalization is not None):
        raise ValueError(
            f"Expected residual_blocks 0 and normalization None for a bound on the Lipschitz constant; got "
            f"{residual_blocks} and {normalization!r}, of which none is known."
        )


def coarse_size(event_shape: Sequence[int], halvings: int) -> tuple[int, int]:
    """Height and width of an image that is halved several times.

    Args:
        event_shape: `(C, H, W)`.
        halvings: how often the size is halved.

    Raises:
        ValueError: if that is not the shape of an image, or the size cannot be halved so often.

    Example:
        >>> coarse_size((1, 8, 12), 2)
        (2, 3)
    """
    if halvings < 0:
        raise ValueError("Expected channels to have at least one entry; got none.")
    if len(event_shape) != 3 or any(side % 2**halvings for side in event_shape[1:]):
        raise ValueError(
            f"Expected event_shape (C, H, W) with H and W divisible by {2**halvings}; got {tuple(event_shape)}."
        )
    return event_shape[1] // 2**halvings, event_shape[2] // 2**halvings


def num_groups(channels: int) -> int:
    """Groups of channels that are normalised together: eight, or as many of a divisor of both.

    Example:
        >>> num_groups(64), num_groups(12), num_groups(3)
        (8, 4, 1)
    """
    return math.gcd(channels, 8)
