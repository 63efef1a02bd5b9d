"""Which cases of a test `make test` runs; `make test-slow` runs the others."""

import pytest

__all__ = ["slow_unless"]


def slow_unless(values, *fast):
    """Parameters of a test, all of them slow but the ones named."""
    return [value if value in fast else pytest.param(value, marks=pytest.mark.slow) for value in values]
