"""The NetCDF file behind `DrawFile`: made once by the HDF5 library, then written in place."""

import contextlib
import math
import os
import pathlib
import zlib
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple, TypeAlias

import numpy as np

from gebm.extras import extra

__all__ = [
    "COUNT",
    "GROUPS",
    "Layout",
    "Slab",
    "Variable",
    "allocate",
    "checked_variable",
    "checksum",
    "layout",
    "lock",
    "read_chunk",
    "read_count",
    "reserve",
    "verify",
    "write",
    "write_chunk",
]

#: Groups of a file, as ArviZ names them.
GROUPS = ("posterior", "sample_stats")

#: Name of the number of draws that are complete.
COUNT = "num_draws_written"

#: Of the chunk that begins at a draw: how many draws it has, and the checksum (CRC-32) of their values.
CHUNKS = "chunk_length_and_crc32"

#: What NetCDF-4 can store; booleans as bytes.
_DTYPES = {np.dtype(name) for name in ("bool", "i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8", "f4", "f8")}


#: Shape of one draw, dtype and group of a variable.
Variable: TypeAlias = tuple[tuple[int, ...], np.dtype, str]


class Layout(NamedTuple):
    """Where everything lies in a file.

    Args:
        slabs: of every variable, by group.
        count_offset: of the number of draws that are complete.
        chunks: of `CHUNKS`, of shape (draw, 2); None in files of before there were any.
    """

    slabs: "dict[str, dict[str, Slab]]"
    count_offset: int
    chunks: "Slab | None"


class Slab(NamedTuple):
    """Where the values of a variable lie in a file: C-ordered, `offset` bytes from its beginning."""

    offset: int
    shape: tuple[int, ...]  # (chain, draw) + shape of one draw
    dtype: np.dtype


def checked_variable(name: str, shape: Iterable[int], dtype: Any, group: str) -> Variable:
    """Shape, NumPy dtype and group of a variable.

    Raises:
        ValueError: for an unknown group or dtype, an empty axis, or a name that NetCDF or ArviZ cannot hold.
    """
    if group not in GROUPS:
        raise ValueError(f"Expected the group of {name!r} to be one of {GROUPS}; got {group!r}.")
    if "/" in name or name in ("chain", "draw"):
        raise ValueError(f"Expected names without '/' other than 'chain' and 'draw'; got {name!r}. Rename the site.")
    try:
        numpy_dtype = np.dtype(str(dtype).removeprefix("torch.") if str(dtype).startswith("torch.") else dtype)
    except TypeError:
        numpy_dtype = None
    if numpy_dtype is None or numpy_dtype not in _DTYPES:
        raise ValueError(f"Expected {name!r} with a dtype in {sorted(map(str, _DTYPES))}; got {dtype}.")
    shape = tuple(map(int, shape))
    if any(size < 1 for size in shape):
        raise ValueError(f"Expected {name!r} with axes of length >= 1; got shape {shape}.")
    return shape, numpy_dtype, group


def reserve(path: pathlib.Path, num_chains: int, num_draws: int, variables: Mapping[str, Variable]) -> None:
    """Check that the system lets a file grow to what `allocate` makes, as the HDF5 library does not survive it.

    Raises:
        OSError: if it does not: the disk is full, or files may not be that large.
    """
    coordinates = 2 * 8 * (num_chains + num_draws + sum(sum(shape) for shape, _, _ in variables.values()))
    written = coordinates + 8 * (num_draws + 2) + 2**16 + 2**13 * len(variables)
    values = sum(math.prod(shape) * dtype.itemsize for shape, dtype, _ in variables.values())
    try:
        with open(path, "wb") as file:
            file.write(bytes(written))
            file.flush()
            os.fsync(file.fileno())
            file.truncate(written + num_chains * num_draws * values)
    except OSError as error:
        raise OSError(
            error.errno,
            f"{os.strerror(error.errno or 0)}: a file of draws takes {written} bytes at once, and "
            f"{num_chains * num_draws * values} more as it fills",
            str(path),
        ) from error


def allocate(path: pathlib.Path, num_chains: int, num_draws: int, variables: Mapping[str, Variable]) -> None:
    """An empty file: dimensions and coordinates as ArviZ names them, every variable contiguous and allocated."""
    h5netcdf, _ = _hdf5()
    # Aligned objects: neither the count nor the record of a chunk straddles two pages: written whole or not at all.
    with h5netcdf.File(path, "w", alignment_threshold=1, alignment_interval=64) as file:
        file.create_variable(COUNT, (), "<i8")[...] = 0
        file.dimensions["chunk"], file.dimensions["chunk_record"] = int(num_draws), 2
        file.create_variable(CHUNKS, ("chunk", "chunk_record"), "<u4")[-1, -1] = 0
        for name in GROUPS:
            group = file.create_group(name)
            for dim, size in (("chain", num_chains), ("draw", num_draws)):
                _add_dimension(group, dim, size)
            for variable, (shape, dtype, of) in variables.items():
                if of != name:
                    continue
                dims = [f"{variable}_dim_{i}" for i in range(len(shape))]
                for dim, size in zip(dims, shape):
                    _add_dimension(group, dim, size)
                is_bool = dtype == np.dtype(bool)
                stored = "i1" if is_bool else dtype
                new = group.create_variable(variable, ("chain", "draw", *dims), stored)
                if is_bool:  # xarray's convention: NetCDF has no booleans
                    new.attrs["dtype"] = "bool"
                new[(-1,) * (2 + len(dims))] = 0  # the library allocates on the first write


def _add_dimension(group: Any, name: str, size: int) -> None:
    group.dimensions[name] = int(size)
    group.create_variable(name, (name,), "i8")[...] = np.arange(size)


def layout(path: str | os.PathLike[str]) -> Layout:
    """Where everything lies in a file.

    Raises:
        FileNotFoundError: if there is none.
        ValueError: if it is of another kind, or damaged.
    """
    _, h5py = _hdf5()
    if not pathlib.Path(path).exists():
        raise FileNotFoundError(f"Expected a file of draws at {path}; there is none. Make it with `DrawFile.create`.")
    try:
        with _open_unlocked(h5py, path) as file:
            if COUNT not in file or not set(GROUPS) <= set(file):
                raise ValueError(f"Expected a file that `DrawFile.create` has made; got {path} with {sorted(file)}.")
            found = _layout(file)
    except ValueError:
        raise
    except Exception as error:  # whatever the HDF5 library makes of damaged metadata
        raise ValueError(f"{path} is damaged: {type(error).__name__}: {error}".splitlines()[0]) from error
    _check(path, found)
    return found


def _layout(file):
    def slab(variable):
        dtype = np.dtype(variable.attrs.get("dtype", variable.dtype))
        return Slab(variable.id.get_offset(), variable.shape, dtype)

    slabs = {g: {name: slab(v) for name, v in file[g].items() if not v.is_scale} for g in GROUPS}
    return Layout(slabs, file[COUNT].id.get_offset(), slab(file[CHUNKS]) if CHUNKS in file else None)


def _check(path, found):
    """Check that all values lie within the file, and are of the same chains and draws."""
    size, slabs = pathlib.Path(path).stat().st_size, [s for group in found.slabs.values() for s in group.values()]
    shapes = {slab.shape[:2] for slab in slabs}
    fit = bool(found.slabs["posterior"]) and len(shapes) == 1 and len(next(iter(shapes))) == 2
    if fit and found.chunks is not None:
        fit = found.chunks.shape == (next(iter(shapes))[1], 2) and found.chunks.dtype == "<u4"
        slabs.append(found.chunks)
    for slab in slabs:
        fit = fit and slab.offset is not None and slab.offset + math.prod(slab.shape) * slab.dtype.itemsize <= size
    if not fit or found.count_offset is None:
        raise ValueError(f"{path} is damaged: its variables do not fit each other, or lie beyond its end.")


def checksum(file: Any, found: Layout, start: int, stop: int) -> int:
    """Checksum (CRC-32) of the draws from `start` to `stop`: of values, and of names, dtypes and shapes."""
    crc = 0
    for group, name, slab in ((g, n, s) for g, slabs in sorted(found.slabs.items()) for n, s in sorted(slabs.items())):
        crc = zlib.crc32(f"{group}/{name}:{slab.dtype.str}:{slab.shape}".encode(), crc)
        row_size = math.prod(slab.shape[2:]) * slab.dtype.itemsize
        for chain in range(slab.shape[0]):
            file.seek(slab.offset + (chain * slab.shape[1] + start) * row_size)
            left = (stop - start) * row_size
            while left:
                part = file.read(min(left, 2**20))
                if not part:
                    raise ValueError("The file ends too soon.")
                crc, left = zlib.crc32(part, crc), left - len(part)
    return crc


def read_chunk(file: Any, found: Layout, start: int) -> tuple[int, int]:
    """Number of draws and checksum of the chunk that begins at a draw."""
    assert found.chunks is not None
    file.seek(found.chunks.offset + 8 * start)
    length, crc = np.frombuffer(file.read(8), "<u4")
    return int(length), int(crc)


def write_chunk(file: Any, found: Layout, start: int, length: int, crc: int) -> None:
    """Note the number of draws and the checksum of the chunk that begins at a draw."""
    assert found.chunks is not None
    write(file, found.chunks.offset + 8 * start, np.array([length, crc], "<u4"))


def verify(path: str | os.PathLike[str], file: Any, found: Layout, count: int) -> None:
    """Check the values of complete draws against their checksums.

    Raises:
        ValueError: if a chunk is not what was written.
    """
    num_draws = next(iter(found.slabs["posterior"].values())).shape[1]
    if not 0 <= count <= num_draws:
        raise ValueError(f"{path} is damaged: it has room for {num_draws} draws, and says that it holds {count}.")
    start = 0
    while found.chunks is not None and start < count:
        length, crc = read_chunk(file, found, start)
        if not 0 < length <= num_draws - start or checksum(file, found, start, start + length) != crc:
            raise ValueError(f"{path} is damaged: the draws from {start} on are not those that were written.")
        start += length


def _open_unlocked(h5py: Any, path: str | os.PathLike[str]) -> Any:
    try:
        return h5py.File(path, "r", locking=False)  # a writer holds a lock
    except OSError as error:
        with contextlib.suppress(OSError):
            return h5py.File(path, "r")  # this process has it open with the library's own lock
        raise ValueError(f"Expected a file that `DrawFile.create` has made; got {path}: {error}.") from error


def lock(file: Any, path: pathlib.Path) -> None:
    """Keep a second writer out, where the system can."""
    try:
        import fcntl
    except ImportError:
        return
    try:
        fcntl.flock(file.fileno(), fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        raise BlockingIOError(
            f"Expected {path} not to be in use; another process or handle is writing it. Close that one first."
        ) from error
    except OSError:  # a file system without locks
        return


def read_count(file: Any, offset: int) -> int:
    """Draws of a file that are complete."""
    file.seek(offset)
    return int(np.frombuffer(file.read(8), "<i8")[0])


def write(file: Any, offset: int, values: np.ndarray) -> None:
    """Write a contiguous array at an offset."""
    file.seek(offset)
    rest = values.reshape(-1).view(np.uint8).data
    while rest:
        rest = rest[file.write(rest) :]


def _hdf5() -> tuple[Any, Any]:
    return extra("h5netcdf", "arviz", "A file of draws"), extra("h5py", "arviz", "A file of draws")
