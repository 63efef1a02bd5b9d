"""Draws in a Zarr store of many writers."""

import os
import pathlib
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from marks import slow_unless

pytest.importorskip("zarr")
pytest.importorskip("arviz")

from gebm.streaming import read_draws
from gebm.zarr import DrawStore

VARIABLES = {
    "z": ((2, 3), "float32", "posterior"),
    "lp": ((), "float64", "sample_stats"),
    "diverging": ((), "bool", "sample_stats"),
    "n_steps": ((), "int64", "sample_stats"),
}


def chunk(chains, start, stop):
    """Draws that say which they are."""
    z = np.arange(start, stop, dtype=np.float32)[None, :, None, None] + 1000.0 * np.asarray(chains)[:, None, None, None]
    z = np.broadcast_to(z, (len(chains), stop - start, 2, 3)).astype(np.float32)
    lp = -z[..., 0, 0].astype(np.float64)
    return {"z": z}, {"lp": lp, "diverging": z[..., 0, 0] % 2 == 0, "n_steps": z[..., 0, 0].astype(np.int64)}


def create(path, num_chains=4, num_draws=20, **kwargs):
    DrawStore.create(path, num_chains, num_draws, VARIABLES, **{"num_writers": 2, "chunk_size": 7} | kwargs)


def assert_draws(data, num_draws, num_chains=4):
    posterior, statistics = chunk(range(num_chains), 0, num_draws)
    np.testing.assert_array_equal(data["posterior"]["z"].values, posterior["z"])
    for name, value in statistics.items():
        got = data["sample_stats"][name]
        assert got.dtype == value.dtype
        np.testing.assert_array_equal(got.values, value)


def test_two_writers_in_chunks_of_any_length(tmp_path):
    path = tmp_path / "draws.zarr"
    create(path)
    first, second = DrawStore.open(path, slice(0, 2)), DrawStore.open(path, slice(2, 4))
    for start, stop in ((0, 7), (7, 14), (14, 20)):
        first.append(*chunk([0, 1], start, stop))
        if start:
            assert_draws(read_draws(path), start)  # only what all chains have counts
        for now in range(start, stop):
            second.append(*chunk([2, 3], now, now + 1))
    data = read_draws(path)
    assert_draws(data, 20)
    assert data["posterior"]["z"].dims == ("chain", "draw", "z_dim_0", "z_dim_1")
    assert data["posterior"]["draw"].values.tolist() == list(range(20))
    assert (first.num_draws_written, second.num_draws_written) == (20, 20)
    assert "20 of 20 draws, 4 chains" in repr(first)


def test_xarray_and_arviz_open_it_and_read_what_is_asked_for(tmp_path):
    import arviz
    import xarray

    path = tmp_path / "draws.zarr"
    create(path)
    with DrawStore.open(path) as store:
        store.append(*chunk(range(4), 0, 20))
    opened = xarray.open_zarr(path, group="posterior", chunks=None, consolidated=False)
    np.testing.assert_array_equal(opened["z"][3, 5:9].values, chunk([3], 5, 9)[0]["z"][0])
    data = read_draws(path)
    assert not data["posterior"]["z"].variable._in_memory
    assert np.isfinite(arviz.ess(data["sample_stats"]["lp"].values))
    assert not data["posterior"]["z"].variable._in_memory


def test_it_goes_on_where_it_was_and_draws_are_overwritten(tmp_path):
    path = tmp_path / "draws.zarr"
    create(path)
    with DrawStore.open(path) as store:
        store.append(*chunk(range(4), 0, 9))
        store.rewind(5)
        assert store.num_draws_written == 5
    with DrawStore.open(path) as store:
        assert store.num_draws_written == 5
        store.append(*chunk(range(4), 5, 20))
    assert_draws(read_draws(path), 20)


def test_more_processes_go_on(tmp_path):
    """Sixteen chains of two processes are in chunks of one; four processes may go on, and eight."""
    path = tmp_path / "draws.zarr"
    create(path, num_chains=16)
    for writers, stop in ((2, 7), (4, 10), (8, 20)):
        for rank in range(writers):
            each = 16 // writers
            store = DrawStore.open(path, slice(rank * each, (rank + 1) * each))
            store.append(*chunk(range(rank * each, (rank + 1) * each), store.num_draws_written, stop))
    assert_draws(read_draws(path), 20, 16)


def test_processes_never_share_a_chunk(tmp_path):
    path = tmp_path / "draws.zarr"
    create(path, num_chains=64)  # in chunks of 4 chains
    DrawStore.open(path, slice(4, 8))
    with pytest.raises(ValueError, match="some of 64 that follow each other; got slice"):
        DrawStore.open(path, slice(64, 70))
    with pytest.raises(TypeError, match="chains"):
        DrawStore.open(path, 3)
    with pytest.raises(ValueError, match="multiples of 4, the chains of a chunk of .*; got 2 to 6"):
        DrawStore.open(path, slice(2, 6))


WRITER = """
import sys
sys.path.insert(0, {tests!r})
from test_zarr import DrawStore, chunk
path, rank = sys.argv[1], int(sys.argv[2])
with DrawStore.open(path, slice(2 * rank, 2 * rank + 2)) as store:
    while (start := store.num_draws_written) < 4000:
        store.append(*chunk([2 * rank, 2 * rank + 1], start, start + 20))
        print(store.num_draws_written, flush=True)
"""


@pytest.mark.parametrize("rounds", slow_unless([1, 5], 1))
def test_killed_writers_lose_nothing_that_they_reported(rounds, tmp_path):
    path = tmp_path / "draws.zarr"
    create(path, num_draws=4000, chunk_size=20)
    rng = np.random.default_rng(0)
    script, reported = WRITER.format(tests=str(pathlib.Path(__file__).parent)), [0, 0]
    folders = map(str, (pathlib.Path(__file__).parents[2], pathlib.Path(__file__).parents[1]))
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(folders)}
    for _ in range(rounds):
        writers = [
            subprocess.Popen(
                [sys.executable, "-c", script, str(path), str(rank)],
                stdout=subprocess.PIPE,
                text=True,
                env=environment,
            )
            for rank in range(2)
        ]
        for writer in writers:
            writer.stdout.readline()
        time.sleep(rng.uniform(0.1, 0.5))
        for rank, writer in enumerate(writers):
            os.kill(writer.pid, signal.SIGKILL)
            lines = [line for line in writer.communicate()[0].splitlines() if line.isdigit()]
            reported[rank] = int(lines[-1]) if lines else reported[rank]
            assert DrawStore.open(path, slice(2 * rank, 2 * rank + 2)).num_draws_written >= reported[rank]
        written = min(DrawStore.open(path, slice(2 * rank, 2 * rank + 2)).num_draws_written for rank in range(2))
        assert 0 < written < 4000
        assert_draws(read_draws(path), written)


def test_damage_is_found_when_it_is_read(tmp_path):
    path = tmp_path / "draws.zarr"
    create(path)
    with DrawStore.open(path) as store:
        store.append(*chunk(range(4), 0, 20))
    file = path / "posterior" / "z" / "c" / "0" / "0" / "0" / "0"
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 0xFF
    file.write_bytes(content)
    data = read_draws(path)
    assert np.isfinite(data["posterior"]["z"][2:].values).all()
    with pytest.raises(RuntimeError, match="decompression error|checksum"):
        data["posterior"]["z"].values  # noqa: B018


def test_what_does_not_fit_is_refused_and_nothing_is_written(tmp_path):
    path = tmp_path / "draws.zarr"
    create(path)
    store = DrawStore.open(path, slice(0, 2))
    posterior, statistics = chunk([0, 1], 0, 5)
    for bad, message in (
        ((posterior, {}), "Expected sample_stats with the names"),
        (({"z": posterior["z"][:1]}, statistics), r"Expected 'z' of shape .* = \(2, 5, 2, 3\)"),
        (({"z": posterior["z"] + 1j}, statistics), "Expected 'z' of dtype float32"),
        (chunk([0, 1], 0, 21), "Expected at most 20 more draws; got 21"),
    ):
        with pytest.raises(ValueError, match=message):
            store.append(*bad)
    assert store.num_draws_written == 0
    with pytest.raises(ValueError, match="has none yet. Wait for its first chunk"):
        read_draws(path)
    with pytest.raises(ValueError, match="Expected num_draws <= 0"):
        store.rewind(1)


@pytest.mark.parametrize(
    "kwargs, message",
    [
        ({"num_chains": 5}, "num_chains to be a multiple of 2 processes; got 5"),
        ({"num_chains": 0}, "num_chains >= 1"),
        ({"num_draws": 0}, "num_draws >= 1"),
        ({"chunk_size": 0}, "chunk_size >= 1"),
        ({"num_writers": 0}, "num_writers >= 1"),
    ],
)
def test_bad_sizes(kwargs, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        create(tmp_path / "draws.zarr", **kwargs)
    assert not list(tmp_path.iterdir())


def test_what_is_there_and_what_is_no_store(tmp_path):
    path = tmp_path / "draws.zarr"
    with pytest.raises(FileNotFoundError, match="Make it with `DrawStore.create`"):
        DrawStore.open(path)
    with pytest.raises(FileNotFoundError, match="there is none"):
        read_draws(path)
    path.mkdir()
    for use in (DrawStore.open, read_draws):
        with pytest.raises(ValueError, match="Expected a store that `DrawStore.create` has made"):
            use(path)
    with pytest.raises(FileExistsError, match="Continue it with `DrawStore.open`"):
        create(path)


def test_without_zarr_the_error_names_the_extra(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "zarr", None)
    with pytest.raises(ImportError, match=r'A store of draws needs zarr: `pip install ".\[zarr\]"`'):
        create(tmp_path / "draws.zarr")
