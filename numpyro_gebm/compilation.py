"""Compiled programs on disk, for the next process."""

import os
import pathlib

import jax

from gebm.validation import path_of

__all__ = ["enable_compilation_cache"]


def enable_compilation_cache(directory: str | os.PathLike[str] | None = None) -> str:
    """Keep the programs that JAX compiles on disk, so that the next process, or the next run, need not compile them.

    A shorthand for settings of JAX, for the whole process: its persistent compilation cache, of programs of any size.
    Where a cache is configured already and no directory given, that one stays. Its keys are the programs and the
    versions of JAX: nothing in it goes stale, and all of it may be deleted at any time.

    Args:
        directory: where; None is `gebm/jax` in the user's folder for caches (`$XDG_CACHE_HOME`, or `~/.cache`).

    Returns:
        The directory.

    Raises:
        TypeError: if it is no path.

    Example:
        >>> import tempfile
        >>> _ = enable_compilation_cache(tempfile.mkdtemp())  # doctest: +SKIP
    """
    if directory is None:
        default = pathlib.Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "gebm" / "jax"
        directory = jax.config.values["jax_compilation_cache_dir"] or str(default)
    directory = path_of("directory", directory)
    jax.config.update("jax_compilation_cache_dir", directory)
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)
    return directory
