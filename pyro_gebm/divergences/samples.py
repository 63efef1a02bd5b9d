"""Samples, and values on samples, as arguments and results of divergences."""

import numpy as np
import torch
from torch._C._functorch import is_functorch_wrapped_tensor

from gebm.validation import OVERFLOW, check_statistic, real_numbers

__all__ = ["Samples", "as_floats", "as_points", "as_samples", "as_vector", "finite_statistic"]

#: What samples are given as.
Samples = torch.Tensor | np.ndarray


def as_samples(x: Samples, y: Samples, names: tuple[str, str] = ("x", "y")) -> tuple[torch.Tensor, torch.Tensor]:
    """Two samples as floating-point arrays of one dtype.

    Args:
        x: array of shape `(M, D)`, M at least 2.
        y: array of shape `(N, D)`, N at least 2.
        names: of the arguments, for messages.

    Returns:
        x and y.

    Raises:
        TypeError: for complex numbers.
        ValueError: for other shapes, or entries that are not finite.

    Example:
        >>> x, y = as_samples(torch.zeros(2, 1, dtype=int), torch.ones(3, 1, dtype=int))
        >>> tuple(x.shape), tuple(y.shape), x.dtype == y.dtype == torch.get_default_dtype()
        ((2, 1), (3, 1), True)
    """
    x, y = (real_numbers(name, z, torch.as_tensor) for name, z in zip(names, (x, y)))
    if x.dim() != 2 or y.dim() != 2 or x.shape[1:] != y.shape[1:] or min(len(x), len(y)) < 2 or x.shape[1] == 0:
        expected = f"Expected {names[0]} (M, D) and {names[1]} (N, D) with M, N >= 2 and D >= 1"
        raise ValueError(f"{expected}; got {tuple(x.shape)} and {tuple(y.shape)}.")
    for name, z in zip(names, (x, y)):
        if not z.isfinite().all():
            rows = int((~z.isfinite()).any(1).sum())
            raise ValueError(f"Expected finite entries in {name}; got NaN or infinity in {rows} rows. Remove them.")
    dtype = torch.promote_types(x.dtype, y.dtype)
    dtype = dtype if dtype.is_floating_point else torch.get_default_dtype()
    return x.to(dtype), y.to(dtype)


def as_points(name: str, value: Samples, dim: int | None = None) -> torch.Tensor:
    """Points as a floating-point tensor of shape `(N, D)`.

    Args:
        name: of the argument, for the message.
        value: what was passed.
        dim: D; None for any from 1 on.

    Returns:
        The points.

    Raises:
        TypeError: for what is not real numbers.
        ValueError: for another shape.
    """
    points = as_floats(name, value)
    if points.ndim != 2 or points.shape[1] == 0 or dim not in (None, points.shape[1]):
        shape = "(N, D) with D >= 1" if dim is None else f"(N, {dim})"
        raise ValueError(f"Expected {name} of shape {shape}; got {tuple(points.shape)}.")
    return points


def as_vector(name: str, value: Samples) -> torch.Tensor:
    """Values of a function, one for each point of a sample: a floating-point tensor of shape `(N,)`.

    Args:
        name: of the argument, for the message.
        value: what was passed.

    Returns:
        The values.

    Raises:
        TypeError: for what is not real numbers.
        ValueError: for another shape, or no values.

    Example:
        >>> as_vector("energy_data", torch.zeros((3, 1)))
        Traceback (most recent call last):
        ...
        ValueError: Expected energy_data of shape (N,) with N >= 1; got (3, 1). Squeeze the last axis of its network.
    """
    values = as_floats(name, value)
    if values.ndim != 1 or len(values) == 0:
        hint = " Squeeze the last axis of its network." if values.ndim == 2 else ""
        raise ValueError(f"Expected {name} of shape (N,) with N >= 1; got {tuple(values.shape)}.{hint}")
    return values


def as_floats(name: str, value: Samples | float) -> torch.Tensor:
    """Real numbers of any shape as a floating-point tensor.

    Args:
        name: of the argument, for the message.
        value: what was passed.

    Returns:
        The tensor.

    Raises:
        TypeError: for what is not real numbers.
    """
    values = real_numbers(name, value, torch.as_tensor)
    return values if values.dtype.is_floating_point else values.to(torch.get_default_dtype())


def finite_statistic(name: str, value: torch.Tensor, remedy: str = OVERFLOW) -> torch.Tensor:
    """A statistic, which must be finite; not looked at within a transform of `torch.func`.

    Args:
        name: of the statistic.
        value: tensor of any shape.
        remedy: what to do, for the message.

    Returns:
        The value.

    Raises:
        ValueError: if a value is NaN or infinite.
    """
    if not is_functorch_wrapped_tensor(value):
        check_statistic(name, value.detach().cpu().numpy(), remedy)
    return value
