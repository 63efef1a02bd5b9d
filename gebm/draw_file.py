"""Draws in a NetCDF file that is written while sampling, and stays readable if the process is killed.

The HDF5 library makes the file once, with its final shape and every variable contiguous, and is then closed. From there
on only the values change, written to where the library says they lie: nothing that it needs to open the file is ever
touched. How many draws are complete stands in the file, and is written after them.
"""

import os
import pathlib
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from gebm.arviz_data import from_groups
from gebm.atomic import replacing
from gebm.netcdf import (
    Variable,
    allocate,
    checked_variable,
    checksum,
    layout,
    lock,
    read_chunk,
    read_count,
    reserve,
    verify,
    write,
    write_chunk,
)
from gebm.validation import instance, integer, path_of

__all__ = ["DrawFile", "check_file", "checked_arrays", "checked_variables", "read_file", "refuse_existing"]


class DrawFile:
    """A NetCDF-4 file of draws and statistics that grows by chunks of draws, at constant memory.

    Opens in ArviZ and xarray like any other (groups `posterior` and `sample_stats`, dimensions chain, draw). A process
    that is killed while writing leaves a file that opens and can be continued: a chunk counts when it is on the disk.
    While it is being written, look at it with `read_file`. Made by `DrawFile.create` and `DrawFile.open`.

    Attributes:
        path: the file.
        num_chains: number of chains.
        num_draws: draws of each chain when the file is full.
        num_draws_written: draws of each chain that are complete.

    Example:
        >>> import tempfile
        >>> path = tempfile.mkdtemp() + "/draws.nc"
        >>> variables = {"z": ((3,), "float32", "posterior"), "lp": ((), "float64", "sample_stats")}
        >>> with DrawFile.create(path, num_chains=2, num_draws=100, variables=variables) as file:
        ...     file.append({"z": np.zeros((2, 40, 3))}, {"lp": np.zeros((2, 40))})
        >>> with DrawFile.open(path) as file:
        ...     file.num_draws_written
        40
        >>> read_file(path)["posterior"]["z"].shape
        (2, 40, 3)
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = pathlib.Path(path_of("path", path))
        self._layout = layout(self.path)
        self._slabs, self._count_offset = self._layout.slabs, self._layout.count_offset
        self.num_chains, self.num_draws = next(iter(self._slabs["posterior"].values())).shape[:2]
        self._file = open(self.path, "r+b", buffering=0)  # noqa: SIM115
        try:
            lock(self._file, self.path)
            self.num_draws_written = read_count(self._file, self._count_offset)
            verify(self.path, self._file, self._layout, self.num_draws_written)
            self._end_chunk_at(self.num_draws_written)
        except BaseException:
            self._file.close()
            raise

    @classmethod
    def create(
        cls,
        path: str | os.PathLike[str],
        num_chains: int,
        num_draws: int,
        variables: Mapping[str, tuple[Iterable[int], Any, str]],
    ) -> "DrawFile":
        """Create an empty file of its final size (on most systems it takes disk space only as it fills).

        Args:
            path: where; nothing may be there yet.
            num_chains: number of chains.
            num_draws: draws of each chain, in all.
            variables: maps a name to `(shape of one draw, dtype, group)`, group `"posterior"` or `"sample_stats"`.

        Returns:
            A `DrawFile`, open.

        Raises:
            FileExistsError: if there is a file at `path`.
            ImportError: without h5netcdf, naming the extra to install.
            OSError: if there is no room for it, or no folder.
            TypeError: for a number that is not an integer.
            ValueError: for a number below one, an unknown group or dtype, or no variable in the group "posterior".
        """
        path = pathlib.Path(path_of("path", path))
        refuse_existing(path)
        num_chains, num_draws = integer("num_chains", num_chains), integer("num_draws", num_draws)
        variables = checked_variables(variables)
        with replacing(path) as temporary:
            reserve(temporary, num_chains, num_draws, variables)
            allocate(temporary, num_chains, num_draws, variables)
        return cls(path)

    @classmethod
    def open(cls, path: str | os.PathLike[str]) -> "DrawFile":
        """Open a file that `DrawFile.create` has made, to continue after its last complete draw.

        Args:
            path: the file.

        Returns:
            A `DrawFile`.

        Raises:
            BlockingIOError: if another `DrawFile` is writing it.
            FileNotFoundError: if there is none.
            ValueError: if the file is of another kind.
        """
        return cls(path)

    def append(self, posterior: Mapping[str, Any], sample_stats: Mapping[str, Any] | None = None) -> None:
        """Write the next draws; they count once they are on disk.

        Args:
            posterior: maps the name of a site to an array of shape `(num_chains, draws) + shape of one draw`.
            sample_stats: the same, for the statistics.

        Raises:
            ValueError: for names, shapes or dtypes that do not fit, more draws than the file has room for, or a file
                that is closed. Nothing is written then.
        """
        if self._file.closed:
            raise ValueError(f"Expected an open file; {self.path} is closed. Continue it with `DrawFile.open`.")
        groups = {"posterior": posterior, "sample_stats": sample_stats or {}}
        chunks = checked_arrays(self._slabs, groups, self.num_chains, self.num_draws - self.num_draws_written)
        num_new = chunks[0][1].shape[1]
        for slab, values in chunks:
            row_size = int(np.prod(slab.shape[2:])) * slab.dtype.itemsize
            for chain, rows in enumerate(values):
                row = chain * self.num_draws + self.num_draws_written
                write(self._file, slab.offset + row * row_size, np.ascontiguousarray(rows, slab.dtype))
        if self._layout.chunks is not None and num_new:
            crc = checksum(self._file, self._layout, self.num_draws_written, self.num_draws_written + num_new)
            write_chunk(self._file, self._layout, self.num_draws_written, num_new, crc)
        os.fsync(self._file.fileno())
        count = self.num_draws_written + num_new
        write(self._file, self._count_offset, np.array(count, "<i8"))
        os.fsync(self._file.fileno())
        self.num_draws_written = count

    def rewind(self, num_draws: int) -> None:
        """Drop the draws after the first `num_draws` of each chain; the next `append` overwrites them.

        Args:
            num_draws: draws that stay.

        Raises:
            ValueError: if there are fewer.
        """
        if not 0 <= num_draws <= self.num_draws_written:
            raise ValueError(f"Expected num_draws <= {self.num_draws_written}, the number written; got {num_draws}.")
        write(self._file, self._count_offset, np.array(num_draws, "<i8"))
        os.fsync(self._file.fileno())
        self.num_draws_written = num_draws
        self._end_chunk_at(num_draws)

    def _end_chunk_at(self, num_draws: int) -> None:
        """Let the last chunk that counts end where the draws end: it may have been cut in two."""
        start = 0
        while self._layout.chunks is not None and start < num_draws:
            length, _ = read_chunk(self._file, self._layout, start)
            if start + length > num_draws:
                crc = checksum(self._file, self._layout, start, num_draws)
                write_chunk(self._file, self._layout, start, num_draws - start, crc)
                os.fsync(self._file.fileno())
            start += length

    def close(self) -> None:
        """Close the file; closing twice does no harm."""
        self._file.close()

    def __enter__(self) -> "DrawFile":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __repr__(self) -> str:
        written = f"{self.num_draws_written} of {self.num_draws} draws, {self.num_chains} chains"
        return f"DrawFile({str(self.path)!r}, {written})"


def check_file(
    path: pathlib.Path, num_chains: int, num_draws: int, variables: Mapping[str, tuple[Iterable[int], Any, str]]
) -> None:
    """Check, before a long run, that `DrawFile.create` will be able to make its file: makes it, and deletes it.

    Args:
        path: where it is to be.
        num_chains: number of chains.
        num_draws: draws of each chain.
        variables: as `DrawFile.create` takes them.

    Raises:
        FileExistsError: if there is a file at `path`.
        OSError: if none can be made there.
        ValueError: for what a file cannot hold.
    """
    DrawFile.create(path, num_chains, num_draws, variables).close()
    path.unlink()


def checked_variables(variables: Mapping[str, tuple[Iterable[int], Any, str]]) -> dict[str, Variable]:
    """Shapes, NumPy dtypes and groups of variables.

    Raises:
        TypeError: if it is no mapping.
        ValueError: for an unknown group or dtype, or no variable in the group "posterior".
    """
    instance("variables", variables, Mapping, "mapping of names to (shape, dtype, group)")
    checked = {name: checked_variable(name, *spec) for name, spec in variables.items()}
    if "posterior" not in {group for _, _, group in checked.values()}:
        raise ValueError(f'Expected variables with at least one in the group "posterior"; got {checked}.')
    return checked


def checked_arrays(
    room: Mapping[str, Mapping[str, Any]], groups: Mapping[str, Mapping[str, Any]], num_chains: int, num_left: int
) -> list[tuple[Any, np.ndarray]]:
    """Pairs of where new values go and the values, all of them checked.

    Args:
        room: by group and name, what has the `shape` of all draws and their `dtype`.
        groups: by group and name, new values.
        num_chains: their chains.
        num_left: draws that there is room for.

    Raises:
        ValueError: for names, shapes or dtypes that do not fit, or too many draws.
    """
    chunks = []
    for group, values in groups.items():
        if room[group].keys() != values.keys():
            raise ValueError(f"Expected {group} with the names {sorted(room[group])}; got {sorted(values)}.")
        chunks += [(name, room[group][name], _as_numpy(value)) for name, value in values.items()]
    num_new = chunks[0][2].shape[1] if chunks[0][2].ndim > 1 else 0
    for name, place, value in chunks:
        expected = (num_chains, num_new, *place.shape[2:])
        if value.shape != expected:
            raise ValueError(
                f"Expected {name!r} of shape (chains, draws, ...) = {expected}; got {value.shape}. Every array of "
                "a chunk has the same chains and draws."
            )
        if not np.can_cast(value.dtype, place.dtype, "same_kind"):
            raise ValueError(f"Expected {name!r} of dtype {place.dtype}; got {value.dtype}.")
    if num_new > num_left:
        size = chunks[0][1].shape[1]
        raise ValueError(
            f"Expected at most {num_left} more draws; got {num_new}. The file has room for {size} and holds "
            f"{size - num_left}."
        )
    return [(place, value) for _, place, value in chunks]


def refuse_existing(
    path: pathlib.Path, remedy: str = "Continue it with `DrawFile.open` (or `resume=True`), or delete it."
) -> None:
    """Raise an error if a file of draws would be overwritten.

    Args:
        path: where it is to be.
        remedy: what to do, for the message.

    Raises:
        FileExistsError: if there is one.
    """
    if path.exists():
        raise FileExistsError(f"Expected no file at {path}. {remedy}")


def read_file(path: str | os.PathLike[str]) -> Any:
    """The complete draws of a `DrawFile`, as `to_arviz` returns them; also while another process is writing.

    Every value is read once, and compared with the checksum of its chunk. Values are then mapped from the file, and
    read from the disk when they are used.

    Args:
        path: the file.

    Returns:
        `arviz.InferenceData` (ArviZ before 1.0) or `xarray.DataTree` (from 1.0 on), with groups `posterior` and
        `sample_stats`.

    Raises:
        FileNotFoundError: if there is no file.
        ImportError: without ArviZ or h5netcdf, naming the extra to install.
        ValueError: if the file is of another kind, has no complete draw yet, or holds other values than were written.
    """
    found = layout(path_of("path", path))
    with open(path, "rb") as file:
        count = read_count(file, found.count_offset)
        verify(path, file, found, count)
    if count == 0:
        raise ValueError(f"Expected a file with draws; {path} has none yet. Wait for its first chunk.")
    posterior, statistics = (
        {name: np.memmap(path, slab.dtype, "r", slab.offset, slab.shape)[:, :count] for name, slab in group.items()}
        for group in found.slabs.values()
    )
    return from_groups(posterior, statistics)


def _as_numpy(value: Any) -> np.ndarray:
    return value.detach().cpu().numpy() if hasattr(value, "detach") else np.asarray(value)  # a tensor of any device
