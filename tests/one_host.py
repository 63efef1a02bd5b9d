"""Run pytest as if the other host were not installed: `python tests/one_host.py numpyro tests -m "not slow"`."""

import pathlib
import sys
from importlib.machinery import PathFinder

sys.path.insert(0, str(pathlib.Path(__file__).parents[1]))  # before `tests`, whose folders bear the packages' names

import hosts
import pytest


class OneHost(PathFinder):
    """Finds everything but what the other hosts need."""

    absent = frozenset()

    @classmethod
    def find_spec(cls, name, path=None, target=None):
        """As that of the other modules."""
        return None if name in cls.absent else super().find_spec(name, path, target)


if __name__ == "__main__":
    name, *arguments = sys.argv[1:]
    OneHost.absent = frozenset().union(*(host.needs for host in hosts.HOSTS.values() if host.name != name))
    sys.meta_path[:] = [OneHost if finder is PathFinder else finder for finder in sys.meta_path]
    sys.exit(pytest.main(arguments))
