"""Draws in a Zarr store that many processes write at once, each the chunks of its own chains."""

import contextlib
import itertools
import os
import pathlib
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from gebm.arviz_data import from_datasets
from gebm.draw_file import checked_arrays, checked_variables, refuse_existing
from gebm.extras import extra
from gebm.netcdf import COUNT, GROUPS
from gebm.validation import instance, integer, path_of

__all__ = ["DrawStore", "read_store"]

#: Processes of one run may become so many times as many without sharing a chunk.
ROOM = 8


class DrawStore:
    """A Zarr store of draws and statistics that many processes write, by chunks of draws, at constant memory.

    Opens in xarray and ArviZ (groups `posterior` and `sample_stats`, dimensions chain, draw). A chunk is a file, of
    some chains: processes with other chains never write the same one. It is written whole or not at all, with a
    checksum. How many draws are complete is stored for every chain, and written after them. Made by `DrawStore.create`
    in one process, and `DrawStore.open` in all.

    Attributes:
        path: the folder.
        num_chains: number of chains.
        num_draws: draws of each chain when the store is full.
        num_draws_written: draws of each of this process's chains that are complete.

    Example:
        >>> import tempfile
        >>> path = tempfile.mkdtemp() + "/draws.zarr"
        >>> variables = {"z": ((3,), "float32", "posterior"), "lp": ((), "float64", "sample_stats")}
        >>> DrawStore.create(path, num_chains=2, num_draws=100, variables=variables, num_writers=2)
        >>> for chain in (0, 1):  # in another process each
        ...     with DrawStore.open(path, slice(chain, chain + 1)) as store:
        ...         store.append({"z": np.zeros((1, 40, 3))}, {"lp": np.zeros((1, 40))})
        >>> read_store(path)["posterior"]["z"].shape
        (2, 40, 3)
    """

    def __init__(self, path: str | os.PathLike[str], chains: slice | None = None) -> None:
        self.path = pathlib.Path(path_of("path", path))
        self._root = _opened(self.path, "r+")
        self._groups = {name: _variables(self._root[name]) for name in GROUPS}
        self._counts = self._root[COUNT]
        self.num_chains, self.num_draws = next(iter(self._groups["posterior"].values())).shape[:2]
        chains = slice(None) if chains is None else instance("chains", chains, slice)
        self._chains = slice(*chains.indices(self.num_chains)[:2])
        if chains.step not in (None, 1) or self._chains.stop <= self._chains.start:
            raise ValueError(f"Expected chains to be some of {self.num_chains} that follow each other; got {chains}.")
        each = self._counts.chunks[0]
        if self._chains.start % each or self._chains.stop % each:
            raise ValueError(
                f"Expected the chains of a process to begin and end at multiples of {each}, the chains of a chunk of "
                f"{self.path}; got {self._chains.start} to {self._chains.stop}. Go on with another number of processes."
            )
        self.num_draws_written = int(self._counts[self._chains].min())

    @classmethod
    def create(
        cls,
        path: str | os.PathLike[str],
        num_chains: int,
        num_draws: int,
        variables: Mapping[str, tuple[Iterable[int], Any, str]],
        *,
        num_writers: int = 1,
        chunk_size: int = 1000,
    ) -> None:
        """Create an empty store; one process does, the others open it then.

        Args:
            path: where; nothing may be there yet.
            num_chains: number of chains, of all processes.
            num_draws: draws of each chain, in all.
            variables: maps a name to `(shape of one draw, dtype, group)`, group `"posterior"` or `"sample_stats"`.
            num_writers: how many processes have an equal part of the chains.
            chunk_size: draws of a chunk.

        Raises:
            FileExistsError: if there is something at `path`.
            ImportError: without zarr, naming the extra to install.
            OSError: if it cannot be made there.
            TypeError: for a number that is not an integer.
            ValueError: for a number below one, chains that the processes cannot divide evenly, an unknown group or
                dtype, or no variable in the group "posterior".
        """
        zarr = extra("zarr", "zarr", "A store of draws")
        path = pathlib.Path(path_of("path", path))
        refuse_existing(path, "Continue it with `DrawStore.open` (or `resume=True`), or delete it.")
        num_chains, num_draws = integer("num_chains", num_chains), integer("num_draws", num_draws)
        num_writers, chunk_size = integer("num_writers", num_writers), integer("chunk_size", chunk_size)
        if num_chains % num_writers:
            raise ValueError(f"Expected num_chains to be a multiple of {num_writers} processes; got {num_chains}.")
        variables = checked_variables(variables)
        each = _chains_of_a_chunk(num_chains // num_writers)
        temporary = path.with_name(f"{path.name}.tmp")
        root = zarr.create_group(temporary, zarr_format=3, overwrite=True)
        root.create_array(COUNT, shape=(num_chains,), chunks=(each,), dtype="i8", dimension_names=("chain",))
        codec = zarr.codecs.ZstdCodec(level=0, checksum=True)
        for name in GROUPS:
            group = root.create_group(name)
            dimensions = {"chain": num_chains, "draw": num_draws}
            for variable, (shape, dtype, of) in variables.items():
                if of == name:
                    own = {f"{variable}_dim_{i}": size for i, size in enumerate(shape)}
                    dimensions |= own
                    group.create_array(
                        variable,
                        shape=(num_chains, num_draws, *shape),
                        chunks=(each, min(chunk_size, num_draws), *shape),
                        dtype=dtype,
                        compressors=codec,
                        dimension_names=("chain", "draw", *own),
                    )
            for dimension, size in dimensions.items():
                group.create_array(dimension, data=np.arange(size), dimension_names=(dimension,))
        os.replace(temporary, path)

    @classmethod
    def open(cls, path: str | os.PathLike[str], chains: slice | None = None) -> "DrawStore":
        """Open a store that `DrawStore.create` has made, to write some of its chains.

        Args:
            path: the folder.
            chains: those that this process writes, and no other one; None writes all.

        Returns:
            A `DrawStore`.

        Raises:
            FileNotFoundError: if there is none.
            ImportError: without zarr, naming the extra to install.
            ValueError: if it is of another kind, or another process would write the same chunks, or
                the chains are not some that follow each other.
        """
        return cls(path, chains)

    def append(self, posterior: Mapping[str, Any], sample_stats: Mapping[str, Any] | None = None) -> None:
        """Write the next draws of this process's chains; they count once they are on disk.

        Args:
            posterior: maps the name of a site to an array of shape `(own chains, draws) + shape of one draw`.
            sample_stats: the same, for the statistics.

        Raises:
            ValueError: for names, shapes or dtypes that do not fit, or more draws than the store has room for. Nothing
                is written then.
        """
        num_own = self._chains.stop - self._chains.start
        chunks = checked_arrays(
            self._groups,
            {"posterior": posterior, "sample_stats": sample_stats or {}},
            num_own,
            self.num_draws - self.num_draws_written,
        )
        start, num_new = self.num_draws_written, chunks[0][1].shape[1]
        if not num_new:
            return
        for array, values in chunks:
            array[self._chains, start : start + num_new] = values
            self._to_disk(array, range(start // array.chunks[1], -(-(start + num_new) // array.chunks[1])))
        self._count(start + num_new)

    def rewind(self, num_draws: int) -> None:
        """Drop the draws after the first `num_draws` of each own chain; the next `append` overwrites them.

        Args:
            num_draws: draws that stay.

        Raises:
            ValueError: if there are fewer.
        """
        if not 0 <= num_draws <= self.num_draws_written:
            raise ValueError(f"Expected num_draws <= {self.num_draws_written}, the number written; got {num_draws}.")
        self._count(num_draws)

    def _count(self, num_draws):
        self._counts[self._chains] = num_draws
        self._to_disk(self._counts)
        self.num_draws_written = num_draws

    def _to_disk(self, array, *chunks_of_draws):
        """Sync the files that hold own chains, of these chunks of draws."""
        each = array.chunks[0]
        own = range(self._chains.start // each, self._chains.stop // each)
        for where in itertools.product(own, *chunks_of_draws):
            key = array.metadata.encode_chunk_key((*where, *(0,) * (array.ndim - len(where))))
            with contextlib.suppress(FileNotFoundError), open(self.path / array.path / key, "rb") as file:
                os.fsync(file.fileno())  # a chunk of zeros is no file

    def close(self) -> None:
        """Nothing stays open between two calls; here for the sake of `with`."""

    def __enter__(self) -> "DrawStore":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __repr__(self) -> str:
        written = f"{self.num_draws_written} of {self.num_draws} draws, {self.num_chains} chains"
        return f"DrawStore({str(self.path)!r}, {written})"


def read_store(path: str | os.PathLike[str]) -> Any:
    """The draws of a `DrawStore` that are complete in all chains, also while processes are writing.

    Nothing is read before it is used, and then chunk by chunk.

    Args:
        path: the folder.

    Returns:
        `arviz.InferenceData` (ArviZ before 1.0) or `xarray.DataTree` (from 1.0 on), with groups `posterior` and
        `sample_stats`.

    Raises:
        FileNotFoundError: if there is none.
        ImportError: without ArviZ or zarr, naming the extra to install.
        ValueError: if it is of another kind, or has no complete draw yet.
    """
    root = _opened(path_of("path", path), "r")
    count = int(root[COUNT][:].min())
    if count == 0:
        raise ValueError(f"Expected a store with draws; {path} has none yet. Wait for its first chunk.")
    xarray = extra("xarray", "arviz", "read_draws")
    groups = {name: xarray.open_zarr(path, group=name, chunks=None, consolidated=False) for name in GROUPS}
    return from_datasets({name: group.isel(draw=slice(count)) for name, group in groups.items() if group.data_vars})


def _opened(path, mode):
    zarr = extra("zarr", "zarr", "A store of draws")
    if not pathlib.Path(path).exists():
        raise FileNotFoundError(f"Expected a store of draws at {path}; there is none. Make it with `DrawStore.create`.")
    try:
        root = zarr.open_group(path, mode=mode)
        found = {*root}
    except Exception as error:  # whatever zarr makes of it
        raise ValueError(f"Expected a store that `DrawStore.create` has made; got {path}: {error}.") from error
    if not {COUNT, *GROUPS} <= found:
        raise ValueError(f"Expected a store that `DrawStore.create` has made; got {path} with {sorted(found)}.")
    return root


def _variables(group):
    """Arrays of a group by name, without its coordinates."""
    return {name: array for name, array in group.arrays() if array.metadata.dimension_names != (name,)}


def _chains_of_a_chunk(num: int) -> int:
    """So many chains that a process's `num` are `ROOM` chunks or a few more."""
    return max(size for size in range(1, max(1, num // ROOM) + 1) if num % size == 0)
