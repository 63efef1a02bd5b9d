"""Checks of arguments that both packages share: each names the argument, what was expected, and what was got.

A value of the wrong kind is a `TypeError`, one out of its range a `ValueError`. Every check returns the value as a
plain Python object, so that constructors can store it at once.
"""

import dataclasses
import functools
import math
import operator
import os
import typing
from collections.abc import Callable, Collection, Iterable, Mapping
from typing import Any, TypeVar

import numpy as np

__all__ = [
    "OVERFLOW",
    "callable_or_none",
    "check_fields",
    "check_statistic",
    "finite",
    "flag",
    "function",
    "instance",
    "integer",
    "latent_law",
    "mapping",
    "names",
    "nonnegative",
    "one_of",
    "optional",
    "path_of",
    "positive",
    "probability",
    "real_numbers",
    "sequence",
    "text",
]

Value = TypeVar("Value")

#: The largest integer of both hosts.
LARGEST = 2**63 - 1

#: What to do if a statistic that is a sum over a kernel is not finite.
OVERFLOW = "The kernel overflows on such values: rescale the data, or choose another kernel or bandwidth."


def check_statistic(name: str, value: np.ndarray, remedy: str) -> None:
    """Check that a statistic is finite.

    Args:
        name: of the statistic.
        value: array of any shape.
        remedy: what to do, for the message.

    Raises:
        ValueError: if a value is NaN or infinite.

    Example:
        >>> check_statistic("MMD²", np.array(np.nan), "Rescale the data.")
        Traceback (most recent call last):
        ...
        ValueError: Expected a finite MMD²; got nan. Rescale the data.
    """
    bad = ~np.isfinite(value)
    if bad.any():
        among = f" among {bad.size} values" if bad.size > 1 else ""
        raise ValueError(f"Expected a finite {name}; got {value[bad][0]}{among}. {remedy}")


def integer(name: str, value: Any, *, minimum: int = 1, maximum: float = math.inf) -> int:
    """An integer of at least `minimum`; booleans and floats are not accepted.

    Args:
        name: of the argument, for the message.
        value: what was passed.
        minimum: the smallest value allowed.
        maximum: the largest value allowed.

    Returns:
        The value as an `int`.

    Raises:
        TypeError: if it is not an integer.
        ValueError: if it is below the minimum or above the maximum.

    Example:
        >>> integer("num_steps", 0)
        Traceback (most recent call last):
        ...
        ValueError: Expected num_steps >= 1; got 0.
    """
    try:
        number = None if isinstance(value, bool) else operator.index(value)
    except TypeError:
        number = None
    if number is None:
        raise TypeError(f"Expected {name} to be an integer >= {minimum}; got {_shown(value)}.")
    if number < minimum:
        raise ValueError(f"Expected {name} >= {minimum}; got {number}.")
    maximum = min(maximum, LARGEST)
    if number > maximum:
        raise ValueError(f"Expected {name} <= {maximum}; got {number}.")
    return number


def real_numbers(name: str, value: Any, convert: Callable[[Any], Value]) -> Value:
    """An array of a host, of real numbers.

    Args:
        name: of the argument, for the message.
        value: what was passed.
        convert: makes the array.

    Returns:
        The array.

    Raises:
        TypeError: for complex numbers, and for what is no array.

    Example:
        >>> real_numbers("step_size", "large", float)
        Traceback (most recent call last):
        ...
        TypeError: Expected step_size to be real numbers; got 'large' (str).
    """
    try:
        if "complex" in str(getattr(value, "dtype", type(value))):
            raise TypeError
        return convert(value)
    except (OverflowError, RuntimeError, TypeError, ValueError):
        got = f"an array of {value.dtype}" if hasattr(value, "dtype") else _shown(value)
        raise TypeError(f"Expected {name} to be real numbers; got {got}.") from None


def path_of(name: str, value: Any) -> str:
    """A path as text.

    Args:
        name: of the argument, for the message.
        value: what was passed.

    Returns:
        The path.

    Raises:
        TypeError: if it is something else.

    Example:
        >>> path_of("path", 3)
        Traceback (most recent call last):
        ...
        TypeError: Expected path to be a path; got 3 (int).
    """
    if not isinstance(value, (str, os.PathLike)):
        raise TypeError(f"Expected {name} to be a path; got {_shown(value)}.")
    return os.fspath(value)


def flag(name: str, value: Any) -> bool:
    """True or False.

    Args:
        name: of the argument, for the message.
        value: what was passed.

    Returns:
        The value as a `bool`.

    Raises:
        TypeError: if it is something else.

    Example:
        >>> flag("progress_bar", np.True_)
        True
    """
    if not isinstance(value, (bool, np.bool_)):
        raise TypeError(f"Expected {name} to be True or False; got {_shown(value)}.")
    return bool(value)


def finite(name: str, value: Any) -> float:
    """A finite number.

    Args:
        name: of the argument, for the message.
        value: what was passed.

    Returns:
        The value as a `float`.

    Raises:
        TypeError: if it is not a real number.
        ValueError: if it is NaN or infinite.
    """
    number = _real(name, value)
    if not math.isfinite(number):
        raise ValueError(f"Expected {name} to be finite; got {number:g}.")
    return number


def positive(name: str, value: Any) -> float:
    """A finite number above 0.

    Args:
        name: of the argument, for the message.
        value: what was passed.

    Returns:
        The value as a `float`.

    Raises:
        TypeError: if it is not a real number.
        ValueError: if it is NaN, infinite, 0 or negative.

    Example:
        >>> positive("step_size", float("nan"))
        Traceback (most recent call last):
        ...
        ValueError: Expected step_size > 0 and finite; got nan.
    """
    number = _real(name, value)
    if not 0 < number < math.inf:
        raise ValueError(f"Expected {name} > 0{'' if number <= 0 else ' and finite'}; got {number:g}.")
    return number


def nonnegative(name: str, value: Any) -> float:
    """A finite number of at least 0.

    Args:
        name: of the argument, for the message.
        value: what was passed.

    Returns:
        The value as a `float`.

    Raises:
        TypeError: if it is not a real number.
        ValueError: if it is NaN, infinite or negative.
    """
    number = _real(name, value)
    if not 0 <= number < math.inf:
        raise ValueError(f"Expected {name} >= 0{'' if number < 0 else ' and finite'}; got {number:g}.")
    return number


def probability(name: str, value: Any, *, zero: bool = False, one: bool = False) -> float:
    """A number in (0, 1), or an end of it that is allowed.

    Args:
        name: of the argument, for the message.
        value: what was passed.
        zero: whether 0 is allowed.
        one: whether 1 is allowed.

    Returns:
        The value as a `float`.

    Raises:
        TypeError: if it is not a real number.
        ValueError: if it is outside.

    Example:
        >>> probability("ema_decay", 1.0, zero=True)
        Traceback (most recent call last):
        ...
        ValueError: Expected ema_decay in [0, 1); got 1.
    """
    number = _real(name, value)
    if not (0 < number < 1 or (zero and number == 0) or (one and number == 1)):
        raise ValueError(f"Expected {name} in {'[' if zero else '('}0, 1{']' if one else ')'}; got {number:g}.")
    return number


def one_of(name: str, value: Any, choices: Iterable[str]) -> str:
    """One of a few names.

    Args:
        name: of the argument, for the message.
        value: what was passed.
        choices: the names allowed.

    Returns:
        The value.

    Raises:
        ValueError: if it is not among them.

    Example:
        >>> one_of("integrator", "BABOA", ("BAOAB", "OBABO"))
        Traceback (most recent call last):
        ...
        ValueError: Expected integrator in ('BAOAB', 'OBABO'); got 'BABOA'.
    """
    choices = tuple(choices)
    if not isinstance(value, str) or value not in choices:
        raise ValueError(f"Expected {name} in {choices}; got {value!r}.")
    return value


def instance(
    name: str,
    value: Value,
    types: type | tuple[type, ...],
    expected: str | None = None,
    hint: str = "",
) -> Value:
    """An object of a type.

    Args:
        name: of the argument, for the message.
        value: what was passed.
        types: a type, or a tuple of them.
        expected: what to call it in the message; None takes the names of the types.
        hint: a sentence that says what to do.

    Returns:
        The value.

    Raises:
        TypeError: if it is of another type.
    """
    if not isinstance(value, types):
        if expected is None:
            expected = " or ".join(kind.__name__ for kind in (types if isinstance(types, tuple) else (types,)))
        raise TypeError(f"Expected {name} to be a {expected}; got {_shown(value)}.{' ' * bool(hint)}{hint}")
    return value


def function(name: str, value: Value, expected: str = "callable") -> Value:
    """A callable that is not a distribution, which PyTorch and NumPyro let be called.

    Args:
        name: of the argument, for the message.
        value: what was passed.
        expected: what to call it in the message.

    Returns:
        The value.

    Raises:
        TypeError: if it is something else.
    """
    if not callable(value) or (hasattr(value, "log_prob") and hasattr(value, "event_shape")):
        raise TypeError(f"Expected {name} to be {expected}; got {_shown(value)}.")
    return value


def latent_law(name: str, value: Value) -> Value:
    """The latent law of a GEBM of either host.

    Args:
        name: of the argument, for the message.
        value: what was passed.

    Returns:
        The value.

    Raises:
        TypeError: if it is something else.

    Example:
        >>> latent_law("latent", None)
        Traceback (most recent call last):
        ...
        TypeError: Expected latent to be the latent law of a GEBM; got None (NoneType). Pass `gebm.latent`.
    """
    if not hasattr(value, "gebm"):
        raise TypeError(f"Expected {name} to be the latent law of a GEBM; got {_shown(value)}. Pass `gebm.latent`.")
    return value


def mapping(name: str, value: Value) -> Value:
    """A dict, or another mapping.

    Args:
        name: of the argument, for the message.
        value: what was passed.

    Returns:
        The value.

    Raises:
        TypeError: if it is something else.
    """
    return instance(name, value, Mapping, "dict")


def text(name: str, value: Any) -> str:
    """A string.

    Args:
        name: of the argument, for the message.
        value: what was passed.

    Returns:
        The value.

    Raises:
        TypeError: if it is something else.
    """
    return instance(name, value, str, "string")


def names(name: str, value: Any) -> tuple[str, ...]:
    """A collection of strings; a string alone is one of them.

    Args:
        name: of the argument, for the message.
        value: what was passed.

    Returns:
        The strings.

    Raises:
        TypeError: if it is something else.

    Example:
        >>> names("allow", ["kernel", 3])
        Traceback (most recent call last):
        ...
        TypeError: Expected allow to be a collection of strings; got ['kernel', 3] (list).
    """
    entries = (value,) if isinstance(value, str) else value
    if not isinstance(entries, Collection) or not all(isinstance(entry, str) for entry in entries):
        raise TypeError(f"Expected {name} to be a collection of strings; got {_shown(value)}.")
    return tuple(entries)


def sequence(name: str, value: Any) -> tuple[Any, ...]:
    """A list, tuple or other collection, as a tuple.

    Args:
        name: of the argument, for the message.
        value: what was passed.

    Returns:
        Its entries.

    Raises:
        TypeError: if it is something else: a string, a mapping, a number.
    """
    try:
        if isinstance(value, (str, bytes, Mapping)):
            raise TypeError
        return tuple(value)
    except TypeError:
        raise TypeError(f"Expected {name} to be a sequence; got {_shown(value)}.") from None


def callable_or_none(name: str, value: Value) -> Value:
    """A callable, or None.

    Args:
        name: of the argument, for the message.
        value: what was passed.

    Returns:
        The value.

    Raises:
        TypeError: if it is neither.

    Example:
        >>> callable_or_none("penalty", 1.0)
        Traceback (most recent call last):
        ...
        TypeError: Expected penalty to be callable or None; got 1.0 (float).
    """
    return optional(function)(name, value)


def optional(check: Callable[[str, Any], Any]) -> Callable[[str, Any], Any]:
    """A check that also lets None pass.

    Args:
        check: a check of this module, from a name and a value to the value.

    Returns:
        The check.

    Example:
        >>> optional(nonnegative)("friction", -1.0)
        Traceback (most recent call last):
        ...
        ValueError: Expected friction >= 0 or None; got -1.
    """

    def checked(name, value):
        try:
            return None if value is None else check(name, value)
        except (TypeError, ValueError) as error:
            raise type(error)(str(error).replace("; got", " or None; got", 1)) from None

    return checked


def check_fields(instance: Any) -> None:
    """Check the fields of a dataclass by what their types are annotated with; call it in `__post_init__`.

    Args:
        instance: of a dataclass some of whose fields are declared as `name: Annotated[type, check]`, with a check of
            this module; the field then holds what the check returns.

    Raises:
        TypeError: for a value of the wrong kind.
        ValueError: for a value out of its range.

    Example:
        >>> @dataclasses.dataclass
        ... class Sampler:
        ...     step_size: typing.Annotated[float, positive] = 0.1
        ...
        ...     def __post_init__(self):
        ...         check_fields(self)
        >>> Sampler(step_size=0.0)
        Traceback (most recent call last):
        ...
        ValueError: Expected step_size > 0; got 0.
    """
    for name, check in _checks(type(instance)):
        object.__setattr__(instance, name, check(name, getattr(instance, name)))


@functools.cache
def _checks(cls):
    """Names of the fields of a dataclass, and their checks."""
    hints = typing.get_type_hints(cls, include_extras=True)
    return [(f.name, c) for f in dataclasses.fields(cls) for c in getattr(hints[f.name], "__metadata__", ())]


def _real(name, value):
    if not isinstance(value, (bool, str, bytes)) and hasattr(value, "__float__"):
        try:
            return float(value)
        except (TypeError, ValueError, RuntimeError):  # an array of many numbers, a complex one
            pass
    raise TypeError(f"Expected {name} to be a number; got {_shown(value)}.")


def _shown(value):
    kind, text = type(value).__name__, repr(value)
    return kind if len(text) > 60 or kind in text else f"{text} ({kind})"
