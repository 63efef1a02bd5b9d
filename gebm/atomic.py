"""Atomic writes: a file is written whole or not at all."""

import contextlib
import os
import pathlib
import secrets
from collections.abc import Iterator

__all__ = ["replacing"]


@contextlib.contextmanager
def replacing(path: str | os.PathLike[str]) -> Iterator[pathlib.Path]:
    """A temporary file beside `path` that replaces it if the block ends without an error.

    The content reaches the disk before the name does: a process that is killed, or a machine that stops, leaves the
    old file or the new one. After an error the old file is as it was and the temporary one is gone. Processes that
    write the same file do not mix their contents; the last one wins.

    Args:
        path: the file to be written.

    Yields:
        The path to write to. Nothing is there yet.

    Example:
        >>> import tempfile
        >>> path = pathlib.Path(tempfile.mkdtemp()) / "numbers.txt"
        >>> with replacing(path) as temporary:
        ...     _ = temporary.write_text("1 2 3")
        >>> [file.name for file in path.parent.iterdir()]
        ['numbers.txt']
    """
    path = pathlib.Path(path)
    temporary = path.with_name(f"{path.name}.{secrets.token_hex(4)}.tmp")
    try:
        yield temporary
        _to_disk(temporary, os.O_RDWR)  # Windows does not sync what is open for reading only
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    with contextlib.suppress(OSError):  # not every system syncs folders
        _to_disk(path.parent, os.O_RDONLY)


def _to_disk(path: pathlib.Path, flags: int) -> None:
    handle = os.open(path, flags)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
