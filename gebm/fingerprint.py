"""Fingerprints: what a checkpoint says of the run that wrote it, and where a resumed run differs from it."""

import dataclasses
import functools
import hashlib
import inspect
import json
import math
import re
from collections.abc import Collection, Mapping
from typing import Any

import numpy as np

__all__ = ["NO_FINGERPRINT", "Fingerprint", "describe", "describe_stream", "one_line"]

#: Bytes of an array that are hashed, at most; of larger ones every k-th row.
MAX_HASHED = 2**22
#: Nested values beyond this depth are left out.
MAX_DEPTH = 12
#: Characters of a value in a message, around where it differs.
SHOWN = 60


@dataclasses.dataclass(frozen=True)
class Fingerprint:
    """What identifies a run, as a text for each field.

    Args:
        fields: maps the name of a field to its text, see `describe`.

    Example:
        >>> first = Fingerprint.of(batch_size=50, data=np.zeros((3, 2)))
        >>> Fingerprint.of(batch_size=60, data=np.zeros((3, 2))).check(str(first), (), "run")
        Traceback (most recent call last):
        ...
        ValueError: Expected the run that wrote the checkpoints at run; got another one, which differs in
          batch_size: expected 50; got 60.
        Resume with what the run was started with, pass allow=('batch_size',) if you mean to change it, or start a new \
run in another folder.
    """

    fields: Mapping[str, str]

    @classmethod
    def of(cls, **fields: Any) -> "Fingerprint":
        """The fingerprint of a run with these settings and data; a text stands for itself."""
        return cls({name: value if isinstance(value, str) else describe(value) for name, value in fields.items()})

    def __str__(self) -> str:
        return json.dumps(dict(self.fields))

    def check(self, saved: str | None, allow: Collection[str], source: object) -> None:
        """Check that a run goes on as what it was.

        Args:
            saved: text of the fingerprint in its checkpoint; None in files of versions that wrote none.
            allow: names of the fields that may differ.
            source: where the checkpoint is, for the message.

        Raises:
            ValueError: if another field differs, `allow` names none of the fields, or the text is damaged.
        """
        allow = {allow} if isinstance(allow, str) else set(allow)
        if unknown := sorted(allow - self.fields.keys()):
            raise ValueError(f"Expected allow to name some of {sorted(self.fields)}; got {unknown}.")
        before = self.fields if saved is None else _fields(saved, source)
        names = [n for n, text in self.fields.items() if before.get(n, text) != text and n not in allow]
        if names:
            lines = "".join(f"\n  {name}: {_difference(before[name], self.fields[name])}." for name in names)
            raise ValueError(
                f"Expected the run that wrote the checkpoints at {source}; got another one, which differs in{lines}\n"
                f"Resume with what the run was started with, pass allow={tuple(names)} if you mean to change it, or "
                "start a new run in another folder."
            )


#: Of what is compared with nothing.
NO_FINGERPRINT = Fingerprint({})


def describe(value: Any) -> str:
    """A text that is the same in every process, and differs where the value does, as far as that can be had.

    Of arrays it holds dtype, shape and a hash of their values (of at most 4 MB of them, from evenly spaced rows), of
    functions the name and the variables they enclose, though not their code; of dataclasses the fields, of other
    objects the type.

    Args:
        value: number, text, array, tensor, function, dataclass, or a container of them.

    Example:
        >>> describe({"rate": 0.1, "shape": (2, 3)})
        "{'rate': 0.1, 'shape': (2, 3)}"
        >>> describe(np.zeros(3))
        'float64 (3,) 9d908ecf'
    """
    return one_line(_described(value, 0))


def describe_stream(iterable: Any) -> str:
    """An iterable of batches: its type, and its length if it has one.

    Example:
        >>> describe_stream([1, 2, 3])
        'list of length 3'
    """
    name = type(iterable).__name__
    return f"{name} of length {len(iterable)}" if hasattr(iterable, "__len__") else name


def one_line(text: str) -> str:
    """A text without line breaks and addresses in memory."""
    return re.sub(r"\s+", " ", re.sub(r" at 0x[0-9a-f]+", "", text))


def _described(value: Any, depth: int) -> str:
    if depth > MAX_DEPTH:
        return "..."
    deeper = functools.partial(_described, depth=depth + 1)
    value = value.item() if isinstance(value, np.generic) else value
    if isinstance(value, float) and value.is_integer():
        return repr(int(value))  # 50 and 50.0 are one setting; Optax turns one into the other
    if value is None or isinstance(value, (bool, int, float, complex, str, bytes)):
        return repr(value)
    if isinstance(value, type):
        return value.__qualname__
    if inspect.ismodule(value):
        return value.__name__
    if isinstance(getattr(value, "shape", None), tuple) and hasattr(value, "dtype"):
        return _described_array(value)
    if isinstance(value, Mapping):
        return f"{{{', '.join(f'{key!r}: {deeper(entry)}' for key, entry in value.items())}}}"
    if isinstance(value, (tuple, list)):
        return f"({', '.join(map(deeper, value))}{',' * (len(value) == 1)})"
    if isinstance(value, (set, frozenset)):
        return f"{{{', '.join(sorted(map(deeper, value)))}}}"
    if isinstance(value, functools.partial):
        return f"partial{deeper((value.func, value.args, value.keywords))}"
    if inspect.ismethod(value):
        return f"{deeper(value.__self__)}.{value.__name__}"
    if inspect.isfunction(value):
        return _call(value.__qualname__.replace(".<locals>", ""), _enclosed(value), deeper)
    if dataclasses.is_dataclass(value):
        fields = {field.name: getattr(value, field.name, None) for field in dataclasses.fields(value)}
        return _call(type(value).__name__, fields, deeper)
    return getattr(value, "__qualname__", type(value).__name__)


def _call(name, arguments, deeper):
    return f"{name}({', '.join(f'{key}={deeper(value)}' for key, value in arguments.items())})"


def _enclosed(function):
    """Variables of an enclosing scope that a function uses, and defaults of its arguments."""
    named = {}
    for name, cell in zip(function.__code__.co_freevars, function.__closure__ or ()):
        try:
            named[name] = cell.cell_contents
        except ValueError:  # not yet assigned
            continue
    return named | ({"defaults": function.__defaults__} if function.__defaults__ else {})


def _described_array(array):
    shape = tuple(array.shape)
    text = f"{str(array.dtype).removeprefix('torch.')} {shape}"
    try:
        size = math.prod(shape) * array.dtype.itemsize
        rows = array[:: -(-size // MAX_HASHED)] if shape and size else array
        rows = np.asarray(rows.detach().cpu() if hasattr(rows, "detach") else rows)
    except (AttributeError, TypeError, ValueError):  # no numbers that NumPy knows
        return text
    return f"{text} {hashlib.sha256(np.ascontiguousarray(rows).tobytes()).hexdigest()[:8]}"


def _fields(saved, source):
    try:
        return dict(json.loads(saved))
    except (TypeError, ValueError, RecursionError) as error:
        raise ValueError(f"Expected a fingerprint in the checkpoints at {source}; it is damaged: {error}.") from error


def _difference(expected, got):
    """The two texts, of long ones what is around the first difference."""
    start = next((i for i, pair in enumerate(zip(expected, got)) if len(set(pair)) > 1), min(len(expected), len(got)))
    return "; ".join(f"{name} {_around(text, start)}" for name, text in (("expected", expected), ("got", got)))


def _around(text, position):
    if len(text) <= SHOWN:
        return text
    start = max(0, min(position - SHOWN // 3, len(text) - SHOWN))
    return f"{'...' * (start > 0)}{text[start : start + SHOWN]}{'...' * (start + SHOWN < len(text))}"
