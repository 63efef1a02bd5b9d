"""What a fingerprint sees and what it does not, and what it says of a run that is another one."""

import dataclasses
import functools
import subprocess
import sys

import numpy as np
import pytest

from gebm import fingerprint
from gebm.fingerprint import Fingerprint, describe, describe_stream
from gebm.training import energy_bursts


@dataclasses.dataclass
class Settings:
    rate: float
    rule: object


def scaled(scale, power=2):
    return lambda x: scale * x**power


def using(module):
    return lambda x: module.ndim(x)


PAIRS = {
    "number": (0.1, 0.2),
    "none": (None, 0),
    "text": ("kale", "maximum_likelihood"),
    "value": (np.zeros(3), np.array([0.0, 0.0, 1e-300])),
    "shape": (np.zeros((2, 3)), np.zeros((3, 2))),
    "dtype": (np.zeros(3, np.float32), np.zeros(3, np.float64)),
    "scalar": (np.array(1.0), np.array(2.0)),
    "nested": ({"a": [1, (2, 3)]}, {"a": [1, (2, 4)]}),
    "enclosed": (scaled(2.0), scaled(3.0)),
    "enclosed array": (scaled(np.ones(3)), scaled(np.zeros(3))),
    "schedule": (energy_bursts(5), energy_bursts(6)),
    "partial": (functools.partial(max, 1), functools.partial(max, 2)),
    "dataclass": (Settings(0.1, None), Settings(0.1, scaled(1.0))),
    "function": (np.sin, np.cos),
    "type": (int, float),
    "module": (using(np), using(functools)),
    "set": ({"a", "b"}, {"a"}),
}


@pytest.mark.parametrize("one, other", PAIRS.values(), ids=PAIRS)
def test_what_differs_has_another_text(one, other):
    assert describe(one) == describe(one) != describe(other)
    assert "0x" not in describe(one) and "\n" not in describe(one)


def test_what_is_the_same_has_the_same_text():
    array = np.arange(12.0).reshape(3, 4)
    assert describe(array) == describe(np.asfortranarray(array)) == describe(array[:])
    assert describe(50) == describe(50.0) == describe(np.int64(50)) == describe(np.float32(50))
    assert describe(scaled(2)) == describe(scaled(2.0))
    assert describe(object()) == "object"


def test_texts_are_those_of_any_process():
    code = "from gebm.fingerprint import describe; print(describe([{'a', 'b', 'c'}, object(), print, lambda: 0]))"
    run = functools.partial(subprocess.run, [sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run().stdout == run().stdout


def test_of_large_arrays_rows_are_hashed(monkeypatch, tmp_path):
    monkeypatch.setattr(fingerprint, "MAX_HASHED", 80)
    array = np.memmap(tmp_path / "data", "f8", "w+", shape=(100, 2))
    text = describe(array)
    array[1] = 1.0  # between two rows that are
    assert describe(array) == text
    array[-1 - 99 % 20] = 1.0
    assert describe(array) != text


def test_values_that_cannot_be_hashed():
    recursive = []
    recursive.append(recursive)
    assert describe(recursive).endswith("...,),),),),),),),),),),),),)")
    assert describe(np.array([print], object)).startswith("object (1,)")

    def later():
        return unknown  # noqa: F821

    assert describe(later)


@pytest.mark.parametrize("iterable, text", [([1, 2], "list of length 2"), ((i for i in (1, 2)), "generator")])
def test_streams(iterable, text):
    assert describe_stream(iterable) == text


def test_what_differs_is_named_with_both_values():
    saved = Fingerprint.of(batch_size=50, rate=0.1, text="x" * 200 + "a" + "y" * 200)
    now = Fingerprint.of(batch_size=60, rate=0.1, text="x" * 200 + "b" + "y" * 200)
    with pytest.raises(ValueError, match="wrote the checkpoints at run; got another one") as error:
        now.check(str(saved), (), "run")
    lines = str(error.value).splitlines()
    assert lines[1] == "  batch_size: expected 50; got 60."
    assert lines[2] == f"  text: expected ...{'x' * 20}a{'y' * 39}...; got ...{'x' * 20}b{'y' * 39}...."
    assert "allow=('batch_size', 'text')" in lines[3]
    with pytest.raises(ValueError, match=r"differs in\n  text:"):
        now.check(str(saved), "batch_size", "run")
    now.check(str(saved), {"batch_size", "text"}, "run")


def test_what_one_side_does_not_know_is_not_compared():
    now = Fingerprint.of(batch_size=60, new=1)
    now.check(None, (), "run")
    now.check(str(Fingerprint.of(batch_size=60, old=2)), (), "run")


@pytest.mark.parametrize("saved", ["", "{", "3", "[1]", 3, "[" * 100_000])
def test_damaged_fingerprints(saved):
    with pytest.raises(ValueError, match="Expected a fingerprint in the checkpoints at run; it is damaged"):
        Fingerprint.of(batch_size=60).check(saved, (), "run")


def test_fields_that_may_not_differ():
    with pytest.raises(ValueError, match=r"Expected allow to name some of \['batch_size'\]; got \['size'\]"):
        Fingerprint.of(batch_size=60).check(None, ("size",), "run")
