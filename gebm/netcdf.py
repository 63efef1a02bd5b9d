"""The NetCDF file behind `DrawFile`: made once by the HDF5 library, then written in place."""

import contextlib
import os
import pathlib
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple, TypeAlias

import numpy as np

__all__ = ["COUNT", "GROUPS", "Slab", "allocate", "checked_variable", "layout", "lock", "read_count", "write"]

#: Groups of a file, as ArviZ names them.
GROUPS = ("posterior", "sample_stats")

#: Name of the number of draws that are complete.
COUNT = "num_draws_written"

#: What NetCDF-4 can store; booleans as bytes.
_DTYPES = {np.dtype(name) for name in ("bool", "i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8", "f4", "f8")}


#: Shape of one draw, dtype and group of a variable.
Variable: TypeAlias = tuple[tuple[int, ...], np.dtype, str]


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


def allocate(path: pathlib.Path, num_chains: int, num_draws: int, variables: Mapping[str, Variable]) -> None:
    """An empty file: dimensions and coordinates as ArviZ names them, every variable contiguous and allocated."""
    h5netcdf, _ = _hdf5()
    # Aligned objects: the count never straddles two pages, so that it is written whole or not at all.
    with h5netcdf.File(path, "w", alignment_threshold=1, alignment_interval=64) as file:
        file.create_variable(COUNT, (), "<i8")[...] = 0
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


def layout(path: str | os.PathLike[str]) -> tuple[dict[str, dict[str, Slab]], int]:
    """Slabs of every variable by group, and the offset of the count."""
    _, h5py = _hdf5()
    if not pathlib.Path(path).exists():
        raise FileNotFoundError(f"Expected a file of draws at {path}; there is none. Make it with `DrawFile.create`.")
    with _open_unlocked(h5py, path) as file:
        if COUNT not in file or not set(GROUPS) <= set(file):
            raise ValueError(f"Expected a file that `DrawFile.create` has made; got {path} with {sorted(file)}.")
        slabs: dict[str, dict[str, Slab]] = {group: {} for group in GROUPS}
        for group, name, variable in ((g, n, v) for g in GROUPS for n, v in file[g].items()):
            if not variable.is_scale:
                dtype = np.dtype(variable.attrs.get("dtype", variable.dtype))
                slabs[group][name] = Slab(variable.id.get_offset(), variable.shape, dtype)
        return slabs, file[COUNT].id.get_offset()


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
    try:
        import h5netcdf
        import h5py
    except ImportError as error:
        raise ImportError('A file of draws needs h5netcdf: `pip install "gebm[arviz]"`.') from error
    return h5netcdf, h5py
