"""Packages that only some functions need."""

import importlib
from typing import Any

__all__ = ["extra"]


def extra(module: str, name: str, user: str) -> Any:
    """A module of an optional package.

    Args:
        module: its name.
        name: the extra of this distribution that installs it.
        user: what needs it.

    Returns:
        The module.

    Raises:
        ImportError: without it, with the command that installs it.

    Example:
        >>> extra("no_such_package", "examples", "plot_losses")
        Traceback (most recent call last):
            ...
        ImportError: plot_losses needs no_such_package: `pip install ".[examples]"` in the checkout of GEBM.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        package = module.partition(".")[0]
        raise ImportError(f'{user} needs {package}: `pip install ".[{name}]"` in the checkout of GEBM.') from error
