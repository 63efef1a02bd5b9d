"""Checks of arguments that both packages share: each names the argument, what was expected, and what was got.

A value of the wrong kind is a `TypeError`, one out of its range a `ValueError`. Every check returns the value as a
plain Python object, so that constructors can store it at once.
"""

import dataclasses
import functools
import math
import operator
import typing
from collections.abc import Callable, Iterable
from typing import Any, TypeVar

__all__ = [
    "callable_or_none",
    "check_fields",
    "finite",
    "instance",
    "integer",
    "nonnegative",
    "one_of",
    "optional",
    "positive",
    "probability",
]

Value = TypeVar("Value")


def integer(name: str, value: Any, *, minimum: int = 1) -> int:
    """An integer of at least `minimum`; booleans and floats are not accepted.

    Args:
        name: of the argument, for the message.
        value: what was passed.
        minimum: the smallest value allowed.

    Returns:
        The value as an `int`.

    Raises:
        TypeError: if it is not an integer.
        ValueError: if it is below the minimum.

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
    return number


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


def callable_or_none(name: str, value: Value) -> Value:
    """A callable, or None.

    Args:
        name: of the argument, for the message.
        value: what was passed.

    Returns:
        The value.

    Raises:
        TypeError: if it is neither.
    """
    if value is not None and not callable(value):
        raise TypeError(f"Expected {name} to be callable or None; got {_shown(value)}.")
    return value


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
