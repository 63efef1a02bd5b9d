"""Files of draws, in a process of its own where one is killed."""

import contextlib
import os
import pathlib
import random
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

from gebm import draw_file
from gebm.arviz_data import from_groups
from gebm.draw_file import DrawFile
from gebm.streaming import read_draws

az = pytest.importorskip("arviz")
h5py = pytest.importorskip("h5py")
xarray = pytest.importorskip("xarray")

ROOT = pathlib.Path(__file__).parents[2]
VARIABLES = {
    "z": ((3,), "float32", "posterior"),
    "scale": ((), "float64", "posterior"),
    "lp": ((), "float64", "sample_stats"),
    "diverging": ((), bool, "sample_stats"),
}


def chunk(start, stop, chains=2, dim=3):
    """Draws `start` to `stop`: every number says which it is."""
    draw = np.arange(start, stop) + 1000 * np.arange(chains)[:, None]
    z = draw[..., None] + np.arange(dim) / 8
    return {"z": z, "scale": draw / 2}, {"lp": -draw / 3, "diverging": draw % 3 == 0}


def assert_draws(data, num_draws):
    posterior, statistics = chunk(0, num_draws)
    for group, expected in (("posterior", posterior), ("sample_stats", statistics)):
        assert set(data[group].data_vars) == set(expected)
        for name, value in expected.items():
            stored = data[group][name]
            assert stored.dims[:2] == ("chain", "draw") and stored.dtype == np.dtype(VARIABLES[name][1])
            np.testing.assert_array_equal(stored.values, value.astype(stored.dtype))


def create(path, num_draws=20):
    return DrawFile.create(path, 2, num_draws, VARIABLES)


def test_a_full_file_opens_everywhere(tmp_path):
    path = tmp_path / "draws.nc"
    with create(path) as file:
        assert (file.num_chains, file.num_draws, file.num_draws_written) == (2, 20, 0)
        for start, stop in ((0, 7), (7, 8), (8, 20)):
            file.append(*chunk(start, stop))
            assert file.num_draws_written == stop
    assert_draws(read_draws(path), 20)
    assert_draws(az.from_netcdf(str(path)), 20)
    assert_draws({g: xarray.load_dataset(path, group=g) for g in ("posterior", "sample_stats")}, 20)
    with xarray.open_datatree(path) as tree:
        assert_draws(tree, 20)


def test_what_is_read_is_what_to_arviz_builds(tmp_path):
    with create(tmp_path / "draws.nc") as file:
        file.append(*chunk(0, 20))
    data = read_draws(tmp_path / "draws.nc")
    posterior, statistics = chunk(0, 20)
    posterior["z"] = posterior["z"].astype("f4")
    built = from_groups(posterior, statistics)
    assert type(data) is type(built)
    stored = az.from_netcdf(str(tmp_path / "draws.nc"))
    for group in ("posterior", "sample_stats"):
        for other in (built, stored):
            sizes = {dim: size for dim, size in other[group].sizes.items() if not dim.startswith("chunk")}  # the root's
            assert data[group].sizes == sizes
            assert all(data[group].coords[name].equals(other[group].coords[name]) for name in other[group].coords)


def test_a_file_is_read_and_continued_while_it_grows(tmp_path):
    path = tmp_path / "draws.nc"
    with create(path) as file:
        file.append(*chunk(0, 5))
        early = read_draws(path)
        file.append(*chunk(5, 9))
        assert_draws(early, 5)
        assert_draws(read_draws(path), 9)
    with DrawFile.open(path) as file:
        assert file.num_draws_written == 9
        file.append(*chunk(9, 20))
    assert_draws(read_draws(path), 20)


def test_draws_of_a_file_are_not_copied(tmp_path):
    with create(tmp_path / "draws.nc") as file:
        file.append(*chunk(0, 5))
        z = read_draws(tmp_path / "draws.nc")["posterior"]["z"].values
        np.testing.assert_array_equal(z[0, 0], chunk(0, 1)[0]["z"][0, 0])
        with h5py.File(tmp_path / "draws.nc", "r", locking=False) as stored:
            offset = stored["posterior/z"].id.get_offset()
        with open(tmp_path / "draws.nc", "r+b") as other:  # what the array shows is the file
            other.seek(offset)
            other.write(np.float32(7).tobytes())
        assert z[0, 0, 0] == 7


def test_appending_touches_values_only(tmp_path):
    """All bytes that describe the file are the same before and after, so that no moment to be killed is bad."""
    path = tmp_path / "draws.nc"
    create(path).close()
    with h5py.File(path, "r") as stored:
        names = [f"{group}/{name}" for name, (_, _, group) in VARIABLES.items()]
        names += ["chunk_length_and_crc32", "num_draws_written"]
        extents = [(stored[n].id.get_offset(), stored[n].id.get_storage_size()) for n in names]
        assert all(stored[name].chunks is None for name in names)
    assert extents[-1][0] % 8 == 0  # never across two pages: written whole or not at all
    before = np.frombuffer(path.read_bytes(), np.uint8)
    with DrawFile.open(path) as file:
        file.append(*chunk(0, 20))
    after = np.frombuffer(path.read_bytes(), np.uint8)
    assert len(before) == len(after)
    changed, allowed = np.flatnonzero(before != after), np.zeros(len(after), bool)
    for offset, size in extents:
        allowed[offset : offset + size] = True
    assert len(changed) > 100 and allowed[changed].all() and not allowed.all()


def test_the_count_comes_after_the_values_and_both_reach_the_disk(tmp_path, monkeypatch):
    events, module = [], draw_file
    write, fsync = module.write, os.fsync
    with create(tmp_path / "draws.nc") as file:
        monkeypatch.setattr(module, "write", lambda f, offset, v: (events.append(offset), write(f, offset, v)))
        monkeypatch.setattr(os, "fsync", lambda fd: (events.append("sync"), fsync(fd)))
        file.append(*chunk(0, 5))
        count = file._count_offset
    assert events[-3:] == ["sync", count, "sync"]
    assert count not in events[:-3] and "sync" not in events[:-3] and len(events) == 2 * 4 + 3


def test_a_chunk_whose_write_fails_does_not_count(tmp_path, monkeypatch):
    module = draw_file
    with create(tmp_path / "draws.nc") as file:
        file.append(*chunk(0, 5))
        write, calls = module.write, []

        def fails(*args):
            calls.append(args)
            if len(calls) == 3:
                raise OSError(28, "No space left on device")
            write(*args)

        monkeypatch.setattr(module, "write", fails)
        with pytest.raises(OSError, match="No space"):
            file.append(*chunk(5, 9))
        monkeypatch.undo()
        assert file.num_draws_written == 5
        assert_draws(read_draws(tmp_path / "draws.nc"), 5)
        file.append(*chunk(5, 20))
    assert_draws(read_draws(tmp_path / "draws.nc"), 20)


def test_creation_killed_half_way_leaves_nothing_at_the_path(tmp_path, monkeypatch):
    module = draw_file

    def fails(*args):
        pathlib.Path(args[0]).write_bytes(b"half a file")
        raise KeyboardInterrupt

    monkeypatch.setattr(module, "allocate", fails)
    with pytest.raises(KeyboardInterrupt):
        create(tmp_path / "draws.nc")
    assert not list(tmp_path.iterdir())


@contextlib.contextmanager
def writer(path, num_draws):
    """A process that opens or makes the file and appends chunks of 1, 2, 3, 1, ... draws, saying when it begins."""
    code = f"""
import pathlib, sys
sys.path[:0] = [{str(ROOT)!r}, {str(pathlib.Path(__file__).parent)!r}]
from test_draw_file import DrawFile, chunk, create
path = pathlib.Path({str(path)!r})
with DrawFile.open(path) if path.exists() else create(path, {num_draws}) as file:
    print("begins", flush=True)
    while file.num_draws_written < {num_draws}:
        start = file.num_draws_written
        file.append(*chunk(start, min(start + 1 + start % 3, {num_draws})))
"""
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout.readline() == "begins\n"
            yield process
        finally:
            process.kill()


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="needs kill -9")
def test_a_killed_writer_leaves_a_file_that_opens_and_is_continued(tmp_path):
    path, num_draws, written = tmp_path / "draws.nc", 200_000, 0
    for _ in range(2):
        with writer(path, num_draws) as process:
            with pytest.raises(BlockingIOError, match="another process or handle is writing it"):
                DrawFile.open(path)
            while committed(path) < written + 5:
                assert process.poll() is None
            growing = read_draws(path)
            assert_draws(growing, growing["posterior"].sizes["draw"])
            time.sleep(0.2 * random.random())
            process.send_signal(signal.SIGKILL)
            assert process.wait() == -signal.SIGKILL
        with DrawFile.open(path) as file:
            assert written + 5 <= file.num_draws_written < num_draws
            written = file.num_draws_written
        assert_draws(read_draws(path), written)
    with DrawFile.open(path) as file:
        file.append(*chunk(written, num_draws))
    assert_draws(az.from_netcdf(str(path)), num_draws)


def committed(path):
    with h5py.File(path, "r", locking=False) as file:
        return int(file["num_draws_written"][()])


def test_two_writers_are_kept_apart(tmp_path):
    with create(tmp_path / "draws.nc") as file:
        with pytest.raises(BlockingIOError, match="another process or handle"):
            DrawFile.open(tmp_path / "draws.nc")
        file.append(*chunk(0, 5))
    DrawFile.open(tmp_path / "draws.nc").close()


def test_a_file_that_another_library_has_open_is_read_all_the_same(tmp_path):
    fcntl = pytest.importorskip("fcntl")
    with create(tmp_path / "draws.nc") as file:
        file.append(*chunk(0, 5))
    with h5py.File(tmp_path / "draws.nc", "r"):
        assert_draws(read_draws(tmp_path / "draws.nc"), 5)
    with open(tmp_path / "draws.nc", "rb") as file:
        fcntl.flock(file.fileno(), fcntl.LOCK_EX)
        assert_draws(read_draws(tmp_path / "draws.nc"), 5)


@pytest.mark.parametrize("framework", ["jax", "torch"])
def test_draws_can_be_tensors_of_a_framework(tmp_path, framework):
    library, (posterior, statistics) = pytest.importorskip(framework), chunk(0, 4)
    if framework == "torch":
        convert, dtype = lambda value: library.tensor(value).requires_grad_(value.dtype.kind == "f"), library.float64
    else:
        convert, dtype = library.numpy.asarray, library.numpy.float64
    variables = {**VARIABLES, "lp": ((), dtype, "sample_stats")}
    with DrawFile.create(tmp_path / "draws.nc", 2, 9, variables) as file:
        file.append(*({name: convert(value) for name, value in g.items()} for g in (posterior, statistics)))
    assert_draws(read_draws(tmp_path / "draws.nc"), 4)


def test_a_file_without_statistics(tmp_path):
    with DrawFile.create(tmp_path / "draws.nc", 2, 5, {"z": ((), "f8", "posterior")}) as file:
        file.append({"z": np.ones((2, 5))})
    assert read_draws(tmp_path / "draws.nc")["posterior"]["z"].shape == (2, 5)


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda p, s: p.pop("scale"), r"Expected posterior with the names \['scale', 'z'\]; got \['z'\]"),
        (lambda p, s: s.update(more=s["lp"]), r"Expected sample_stats with the names .*; got .*'more'"),
        (lambda p, s: p.update(z=p["z"][:1]), r"'z' of shape \(chains, draws, ...\) = \(2, 4, 3\); got \(1, 4, 3\)"),
        (lambda p, s: p.update(z=p["z"][..., :2]), r"'z' of shape .* = \(2, 4, 3\); got \(2, 4, 2\)"),
        (lambda p, s: s.update(lp=s["lp"][:, :3]), r"'lp' of shape .* = \(2, 4\); got \(2, 3\)"),
        (lambda p, s: p.update(z=p["z"] + 0j), "Expected 'z' of dtype float32; got complex128"),
        (lambda p, s: s.update(diverging=s["lp"]), "Expected 'diverging' of dtype bool; got float64"),
    ],
)
def test_chunks_that_do_not_fit_are_refused_before_anything_is_written(tmp_path, change, message):
    with create(tmp_path / "draws.nc") as file:
        file.append(*chunk(0, 5))
        before = (tmp_path / "draws.nc").read_bytes()
        posterior, statistics = chunk(5, 9)
        change(posterior, statistics)
        with pytest.raises(ValueError, match=message):
            file.append(posterior, statistics)
        assert file.num_draws_written == 5 and (tmp_path / "draws.nc").read_bytes() == before


def test_a_full_and_a_closed_file_say_so(tmp_path):
    file = create(tmp_path / "draws.nc")
    file.append(*chunk(0, 15))
    with pytest.raises(ValueError, match="Expected at most 5 more draws; got 6. The file has room for 20 and holds 15"):
        file.append(*chunk(15, 21))
    assert "15 of 20 draws, 2 chains" in repr(file)
    file.close()
    file.close()
    with pytest.raises(ValueError, match=r"Continue it with `DrawFile.open`"):
        file.append(*chunk(15, 20))


@pytest.mark.parametrize(
    "arguments, message",
    [
        ((0, 5, VARIABLES), "Expected num_chains >= 1; got 0"),
        ((2, 5, {"z": ((), "f8", "prior")}), "group of 'z' to be one of .*; got 'prior'"),
        ((2, 5, {"z": ((), "float16", "posterior")}), "'z' with a dtype in .*; got float16"),
        ((2, 5, {"z": ((), "no", "posterior")}), "'z' with a dtype in .*; got no"),
        ((2, 5, {"z": ((3, 0), "f8", "posterior")}), r"axes of length >= 1; got shape \(3, 0\)"),
        ((2, 5, {"a/z": ((), "f8", "posterior")}), "names without '/'.*; got 'a/z'"),
        ((2, 5, {"draw": ((), "f8", "posterior")}), "got 'draw'"),
        ((2, 5, {"lp": ((), "f8", "sample_stats")}), 'Expected variables with at least one in the group "posterior"'),
    ],
)
def test_what_cannot_be_stored_is_refused(tmp_path, arguments, message):
    with pytest.raises(ValueError, match=message):
        DrawFile.create(tmp_path / "draws.nc", *arguments)
    with pytest.raises(TypeError, match=r"Expected num_draws to be an integer >= 1; got 5.0"):
        DrawFile.create(tmp_path / "draws.nc", 2, 5.0, VARIABLES)
    assert not list(tmp_path.iterdir())


def test_files_that_are_missing_there_or_of_another_kind(tmp_path):
    path = tmp_path / "draws.nc"
    for use in (DrawFile.open, read_draws):
        with pytest.raises(FileNotFoundError, match=r"there is none. Make it with `DrawFile.create`"):
            use(path)
    with create(path), pytest.raises(FileExistsError, match=r"Continue it with `DrawFile.open`"):
        create(path)
    with pytest.raises(ValueError, match="has none yet"):
        read_draws(path)
    (tmp_path / "text").write_text("no file of draws")
    xarray.Dataset({"z": ("x", np.zeros(3))}).to_netcdf(tmp_path / "other.nc", engine="h5netcdf")
    for name in ("text", "other.nc"):
        with pytest.raises(ValueError, match=r"Expected a file that `DrawFile.create` has made"):
            read_draws(tmp_path / name)


@pytest.mark.parametrize("missing", ["h5netcdf", "h5py"])
def test_without_h5netcdf_the_extra_is_named(tmp_path, monkeypatch, missing):
    monkeypatch.setitem(sys.modules, missing, None)
    with pytest.raises(ImportError, match=r'pip install "\.\[arviz\]"'):
        create(tmp_path / "draws.nc")
    assert not list(tmp_path.iterdir())


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
def test_resident_memory_does_not_grow(tmp_path):
    """0.5 GB in 20 chunks of 64 chains x 100 latents x 1000 draws, 26 MB each.

    (`getrusage` would count the peak of the process that starts this one.)
    """
    code = f"""
import re, sys
sys.path.insert(0, {str(ROOT)!r})
import numpy as np
from gebm.draw_file import DrawFile
variables = {{"z": ((100,), "float32", "posterior"), "lp": ((), "float32", "sample_stats")}}
z, lp = np.ones((64, 1000, 100), "f4"), np.ones((64, 1000), "f4")
peak = lambda: int(re.search(r"VmHWM:\\s*(\\d+) kB", open("/proc/self/status").read())[1]) / 1024
num_chunks = 20
with DrawFile.create({str(tmp_path / "draws.nc")!r}, 64, num_chunks * 1000, variables) as file:
    file.append({{"z": z}}, {{"lp": lp}})
    before = peak()
    while file.num_draws_written < file.num_draws:
        file.append({{"z": z}}, {{"lp": lp}})
print(peak() - before)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "draws.nc").stat().st_size > 20 * 25e6
    assert float(done.stdout) < 30, done.stdout
    (tmp_path / "draws.nc").unlink()


@pytest.mark.skipif(sys.platform != "linux", reason="needs RLIMIT_FSIZE")
@pytest.mark.parametrize("limit", [1000, 2**20], ids=["no metadata", "no values"])
def test_a_disk_without_room_is_an_error_and_not_a_crash(tmp_path, limit):
    """The HDF5 library does not survive it."""
    code = f"""
import resource, sys
sys.path[:0] = [{str(ROOT)!r}]
from gebm.draw_file import DrawFile
resource.setrlimit(resource.RLIMIT_FSIZE, ({limit}, {limit}))
try:
    DrawFile.create({str(tmp_path / "draws.nc")!r}, 2, 1000, {{"z": ((1000,), "f8", "posterior")}})
except OSError as error:
    print(error)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0 and "a file of draws takes" in done.stdout, done.stderr
    assert not list(tmp_path.iterdir())


def test_values_that_changed_on_the_disk_are_not_read(tmp_path):
    """Any byte may be another one: an error, or the values written, of fewer draws if their number changed."""
    path, broken = tmp_path / "draws.nc", tmp_path / "broken.nc"
    with create(path) as file:
        for start, stop in ((0, 7), (7, 8), (8, 20)):
            file.append(*chunk(start, stop))
    whole, refused = path.read_bytes(), 0
    places = np.random.default_rng(0).choice(len(whole), 300, replace=False)
    for place in places:
        broken.write_bytes(whole[:place] + bytes([whole[place] ^ 0x55]) + whole[place + 1 :])
        try:
            data = read_draws(broken)
        except (ValueError, OSError):
            refused += 1
        else:
            assert_draws(data, data["posterior"].sizes["draw"])
        with contextlib.suppress(ValueError, OSError):
            DrawFile.open(broken).close()
    assert refused > 100


def test_draws_are_verified_after_chunks_that_were_cut(tmp_path):
    path = tmp_path / "draws.nc"
    with create(path) as file:
        file.append(*chunk(0, 9))
        file.append(*chunk(9, 15))
        file.rewind(12)
        assert_draws(read_draws(path), 12)
        file.rewind(4)
        assert_draws(read_draws(path), 4)
        file.append(*chunk(4, 20))
    assert_draws(read_draws(path), 20)
