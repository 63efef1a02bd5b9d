"""Long runs: draws to a file, or to a store of many processes, while sampling."""

import os
import pathlib
import shutil
from collections.abc import Mapping
from typing import Any, Protocol, TypeAlias

from tqdm import tqdm

from gebm.draw_file import DrawFile, check_file, read_file, refuse_existing
from gebm.validation import flag, integer, path_of
from gebm.zarr import DrawStore, read_store

__all__ = ["Chains", "read_draws", "stream"]

#: Ending of the name of a Zarr store.
STORE = ".zarr"
#: By name, of the posterior and of the statistics.
Groups: TypeAlias = tuple[Mapping[str, Any], Mapping[str, Any]]


class Chains(Protocol):
    """Chains of a kernel, some of which this process has.

    Attributes:
        num_chains: chains of all processes.
        num_draws: draws of each chain, in all.
        own_chains: the chains of this process.
        rank: number of this process.
        num_processes: number of processes.
    """

    num_chains: int
    num_draws: int
    own_chains: slice
    rank: int
    num_processes: int

    def variables(self) -> dict[str, tuple[tuple[int, ...], Any, str]]:
        """Shape of one draw, dtype and group of everything that is recorded, by name."""
        ...

    def warm_up(self) -> None:
        """Run the warm-up."""
        ...

    def draw(self, num: int) -> Groups:
        """The next draws of the chains of this process, as arrays of shape `(own chains, num, ...)`."""
        ...

    def save(self, folder: pathlib.Path, num_draws: int) -> None:
        """Write the state of all chains; when it returns, every process has come so far."""
        ...

    def load(self, folder: pathlib.Path) -> int:
        """Go back to the last state that was written, and return its number of draws."""
        ...

    def forget(self, folder: pathlib.Path) -> None:
        """Delete the states of an earlier run."""
        ...

    def wait(self) -> None:
        """Wait until every process has come so far."""
        ...


def stream(path: str | os.PathLike[str], start: Any, *, chunk_size: int, resume: bool, progress_bar: bool) -> Any:
    """Run chains and write their draws as they come; see `stream_draws` of either host.

    Args:
        path: a NetCDF file, or a Zarr store, whose name ends in ".zarr".
        start: returns the `Chains`, once arguments are checked.
        chunk_size: draws of each chain that are in memory at once.
        resume: whether to go on with what is at the path, if there is something.
        progress_bar: whether to show one.

    Returns:
        The draws, as `read_draws` returns them.

    Raises:
        FileExistsError: if there is something at the path, without `resume`.
        ValueError: for several processes and no store, or a run of another length.
    """
    path, chunk_size = pathlib.Path(path_of("path", path)), integer("chunk_size", chunk_size)
    resume, progress_bar = flag("resume", resume) and path.exists(), flag("progress_bar", progress_bar)
    if not resume:
        refuse_existing(path)
    chains: Chains = start()
    folder, total, first = path.with_name(f"{path.name}.state"), chains.num_draws, chains.rank == 0
    if chains.num_processes > 1 and path.suffix != STORE:
        raise ValueError(
            f"Expected a path that ends in '{STORE}' with {chains.num_processes} processes, as a NetCDF file has one "
            f"writer; got {path}."
        )
    chains.wait()  # nobody looks for the file any more
    if not resume and first:
        chains.forget(folder)
        _check(path, chains)
    with tqdm(total=total, disable=not progress_bar or not first, unit="draw") as bar:
        if resume:
            num_draws = chains.load(folder)
        else:
            num_draws = 0
            bar.set_description("Warmup")
            chains.warm_up()
            chains.save(folder, 0)
            if first:
                _create(path, chains, chunk_size)
            chains.wait()
        with _open(path, chains) as file:
            if total != file.num_draws:
                raise ValueError(
                    f"Expected a run of {file.num_draws} draws a chain, for which {path} was made "
                    f"({file.num_draws_written} are written); got {total}. Ask for as many, or start a new file."
                )
            file.rewind(num_draws)
            bar.set_description("Sample")
            bar.update(num_draws)
            while (left := total - file.num_draws_written) > 0:
                file.append(*chains.draw(min(chunk_size, left)))
                chains.save(folder, file.num_draws_written)
                bar.update(min(chunk_size, left))
    return read_draws(path)


def read_draws(path: str | os.PathLike[str]) -> Any:
    """The complete draws of a `DrawFile` or a `DrawStore`, as `to_arviz` returns them; also while it is being written.

    Nothing is held in memory: values are read from the disk when they are used. Those of a file are compared with their
    checksums first, those of a store when they are read.

    Args:
        path: the file, or the folder of a store, whose name ends in ".zarr".

    Returns:
        `arviz.InferenceData` (ArviZ before 1.0) or `xarray.DataTree` (from 1.0 on), with groups `posterior` and
        `sample_stats`.

    Raises:
        FileNotFoundError: if there is none.
        ImportError: without ArviZ, or h5netcdf or zarr, naming the extra to install.
        ValueError: if it is of another kind, has no complete draw yet, or holds other values than were written.
    """
    path = pathlib.Path(path_of("path", path))
    return read_store(path) if path.suffix == STORE else read_file(path)


def _check(path, chains):
    """Find out before the warm-up whether the file can be made."""
    if path.suffix == STORE:
        _create(path, chains, 1)
        shutil.rmtree(path)
    else:
        check_file(path, chains.num_chains, chains.num_draws, chains.variables())


def _create(path, chains, chunk_size):
    size = (path, chains.num_chains, chains.num_draws, chains.variables())
    if path.suffix == STORE:
        DrawStore.create(*size, num_writers=chains.num_processes, chunk_size=chunk_size)
    else:
        DrawFile.create(*size).close()


def _open(path, chains):
    return DrawStore.open(path, chains.own_chains) if path.suffix == STORE else DrawFile.open(path)
