"""Folders of checkpoints: written atomically; the newest few are kept, and the newest undamaged one is read."""

import contextlib
import math
import os
import pathlib
import re
import warnings
from collections.abc import Callable, Iterator
from typing import BinaryIO, Generic, TypeAlias, TypeVar

from gebm.atomic import replacing
from gebm.validation import integer, path_of

__all__ = [
    "KEEP",
    "Checkpoints",
    "DamagedCheckpoint",
    "delete_checkpoints",
    "fitting",
    "read_latest_checkpoint",
    "refuse_used",
    "write_checkpoint",
]

#: Checkpoints kept in a folder.
KEEP = 3

State = TypeVar("State")
StrPath: TypeAlias = str | os.PathLike[str]


class DamagedCheckpoint(ValueError):
    """A checkpoint whose content is not what was written."""


class Checkpoints(Generic[State]):
    """When a run writes its checkpoints: at its start, every so many steps, and at its end.

    Args:
        directory: folder, or None for no checkpoints.
        every: steps between checkpoints, or None for none in between.
        write: writes one, from the folder, the step and the state.

    Raises:
        TypeError: if `every` is not an integer.
        ValueError: for `every` without a directory, or below 1.

    Example:
        >>> checkpoints = Checkpoints("run", 10, lambda directory, step, state: print(directory, step, state))
        >>> for step in (0, 7, 10):
        ...     checkpoints.write_if_due(step, {"loss": 0.1})
        run 0 {'loss': 0.1}
        run 10 {'loss': 0.1}
        >>> checkpoints.until_next(13)
        7
    """

    def __init__(
        self, directory: StrPath | None, every: int | None, write: Callable[[StrPath, int, State], object]
    ) -> None:
        self.every = None if every is None else integer("checkpoint_every", every)
        if every is not None and directory is None:
            raise ValueError(
                f"Expected checkpoint_every >= 1 with a checkpoint_dir; got checkpoint_every={every} without one."
            )
        self.directory = directory
        self._write, self._started = write, False

    def until_next(self, step: int) -> float:
        """Steps from `step` to the next checkpoint."""
        return math.inf if self.every is None else self.every - step % self.every

    def write_if_due(self, step: int, state: State) -> None:
        """Write one at the start, and where `every` divides the step."""
        if not self._started or (self.every is not None and step % self.every == 0):
            self.write(step, state)

    def write(self, step: int, state: State) -> None:
        """Write one now, if there is a folder for it."""
        if self.directory is not None:
            self._write(self.directory, step, state)
        self._started = True


def write_checkpoint(directory: StrPath, step: int, suffix: str, write: Callable[[BinaryIO], object]) -> pathlib.Path:
    """Write `directory/step-<step><suffix>` and keep the newest few up to it.

    Args:
        directory: folder, made if it is not there.
        step: number that orders the checkpoints.
        suffix: of the file, such as ".npz".
        write: puts the content into an open file.

    Returns:
        The path written.
    """
    directory = pathlib.Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    path = directory / f"step-{step:09d}{suffix}"
    with replacing(path) as temporary, open(temporary, "wb") as file:
        write(file)
    found = _checkpoints(directory, suffix)
    for old in [*found[found.index(path) + KEEP :], *_left_over(directory)]:
        old.unlink(missing_ok=True)
    return path


def read_latest_checkpoint(path: StrPath, suffix: str, read: Callable[[BinaryIO], State]) -> tuple[pathlib.Path, State]:
    """Read the newest undamaged checkpoint; damaged ones are skipped with a warning.

    Args:
        path: a folder of checkpoints, or one checkpoint.
        suffix: of the files.
        read: takes the state from an open file; raises `DamagedCheckpoint` where it is not whole.

    Returns:
        The file, and its state.

    Raises:
        FileNotFoundError: if there is no checkpoint.
        ValueError: if every checkpoint is damaged.
    """
    path = pathlib.Path(path)
    candidates = _checkpoints(path, suffix) if path.is_dir() else [path]
    if not candidates or not candidates[0].exists():
        raise FileNotFoundError(f"Expected checkpoints (step-*{suffix}) at {path}; found none.")
    for candidate in candidates:
        try:
            with open(candidate, "rb") as file:
                return candidate, read(file)
        except DamagedCheckpoint:
            warnings.warn(f"Checkpoint {candidate} is damaged; falling back to the one before.", stacklevel=3)
    raise ValueError(f"Every checkpoint at {path} is damaged. Start the run anew, without them.")


@contextlib.contextmanager
def fitting(path: StrPath) -> Iterator[None]:
    """A block that puts a run back to what a checkpoint holds; whatever does not fit is a ValueError.

    Args:
        path: where the checkpoint is, for the message.
    """
    try:
        yield
    except Exception as error:  # whatever the host and its optimisers make of it
        raise ValueError(
            f"The checkpoint {path} does not fit: {type(error).__name__}: {error}. Resume with the same networks, "
            "optimisers and data."
        ) from error


def refuse_used(directory: StrPath | None, suffix: str, resume_from: StrPath | None = None) -> None:
    """Raise an error if a run would write among the checkpoints of another one.

    Args:
        directory: folder that the run writes to; None for none.
        suffix: of the files.
        resume_from: folder or file that it goes on from.

    Raises:
        FileExistsError: if there are checkpoints in the folder, and the run does not go on from the newest.
    """
    found = [] if directory is None else _checkpoints(pathlib.Path(directory), suffix)
    goes_on = {path.resolve() for path in (found[0].parent, found[0])} if found else set()
    if found and (resume_from is None or pathlib.Path(resume_from).resolve() not in goes_on):
        raise FileExistsError(
            f"Expected a checkpoint_dir without checkpoints of another run; got {directory} with {found[0].name}. Go "
            "on from it with resume_from=checkpoint_dir, take another folder, or call "
            "delete_checkpoints(checkpoint_dir) first."
        )


def delete_checkpoints(directory: StrPath, suffix: str) -> None:
    """Delete the checkpoints of a folder, such as those of an abandoned run, and the folder if nothing else is in it.

    Args:
        directory: folder; it need not be there.
        suffix: of the files.

    Raises:
        TypeError: if it is no path.
    """
    directory = pathlib.Path(path_of("directory", directory))
    for old in [*_checkpoints(directory, suffix), *_left_over(directory)]:
        old.unlink(missing_ok=True)
    with contextlib.suppress(OSError):  # not there, or not empty
        directory.rmdir()


def _checkpoints(directory: pathlib.Path, suffix: str) -> list[pathlib.Path]:
    """Checkpoints of a folder, newest first."""
    found = _named(directory, rf"step-\d+{re.escape(suffix)}")
    return sorted(found, key=lambda path: (len(path.name), path.name), reverse=True)


def _left_over(directory: pathlib.Path) -> list[pathlib.Path]:
    """Files of a process that was killed while it wrote."""
    return _named(directory, r"step-\d+\..*\.tmp")


def _named(directory: pathlib.Path, pattern: str) -> list[pathlib.Path]:
    return [path for path in directory.glob("step-*") if re.fullmatch(pattern, path.name)]
