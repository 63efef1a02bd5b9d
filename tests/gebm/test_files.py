"""How files are written: whole or not at all; folders of checkpoints; model files."""

import contextlib
import json
import os
import pathlib
import stat

import numpy as np
import pytest

from gebm import atomic
from gebm.atomic import replacing
from gebm.checkpoint_files import (
    KEEP,
    Checkpoints,
    DamagedCheckpoint,
    delete_checkpoints,
    fitting,
    read_latest_checkpoint,
    refuse_used,
    write_checkpoint,
)
from gebm.model_file import PRIORS, LatentPrior, ModelFile

# --- one atomic writer


@pytest.mark.parametrize("error", [OSError("No space left on device"), KeyboardInterrupt()], ids=["disk", "stopped"])
@pytest.mark.parametrize("old", [None, "old"])
def test_an_error_leaves_what_was_there(tmp_path, old, error):
    path = tmp_path / "file"
    if old is not None:
        path.write_text(old)
    with pytest.raises(type(error)), replacing(path) as temporary:
        temporary.write_text("half a f")
        raise error
    assert {file.name: file.read_text() for file in tmp_path.iterdir()} == ({} if old is None else {"file": old})


def test_the_content_is_on_the_disk_before_the_name(tmp_path, monkeypatch):
    events, fsync, replace = [], os.fsync, os.replace
    monkeypatch.setattr(
        os, "fsync", lambda handle: (events.append(stat.S_ISDIR(os.fstat(handle).st_mode)), fsync(handle))
    )
    monkeypatch.setattr(os, "replace", lambda *paths: (events.append("replace"), replace(*paths)))
    with replacing(tmp_path / "file") as temporary:
        temporary.write_text("new")
        assert not events
    assert events == [False, "replace", True]


def test_writers_of_one_file_do_not_mix(tmp_path):
    path = tmp_path / "file"
    with replacing(path) as first, replacing(path) as second:
        assert first != second and first.parent == second.parent == tmp_path
        first.write_text("first")
        second.write_text("second")
    assert path.read_text() == "first" and len(list(tmp_path.iterdir())) == 1


@pytest.mark.skipif(os.name != "posix", reason="permissions of POSIX")
def test_a_file_has_the_permissions_of_any_other(tmp_path):
    (tmp_path / "other").write_text("")
    with replacing(tmp_path / "file") as temporary:
        temporary.write_text("")
    assert (tmp_path / "file").stat().st_mode == (tmp_path / "other").stat().st_mode


def test_folders_that_cannot_be_synced_are_no_error(tmp_path, monkeypatch):
    to_disk = atomic._to_disk

    def refuses(path, flags):
        if path.is_dir():
            raise PermissionError
        to_disk(path, flags)

    monkeypatch.setattr(atomic, "_to_disk", refuses)
    with replacing(tmp_path / "file") as temporary:
        temporary.write_text("new")
    assert (tmp_path / "file").read_text() == "new"


# --- checkpoints


def write(folder, step, text):
    return write_checkpoint(folder, step, ".txt", lambda file: file.write(text.encode()))


def read(folder):
    def whole(file):
        text = file.read().decode()
        if not text.endswith("."):
            raise DamagedCheckpoint("It does not end.")
        return text

    path, text = read_latest_checkpoint(folder, ".txt", whole)
    return path.name, text


def test_the_newest_checkpoints_are_kept(tmp_path):
    folder = tmp_path / "new" / "folder"
    (tmp_path / "new").mkdir()
    for step in (0, 5, 10, 999_999_999, 1_000_000_000):
        assert write(folder, step, f"{step}.").name == f"step-{step:09d}.txt"
        assert read(folder)[1] == f"{step}."
    assert len(list(folder.iterdir())) == KEEP and not list(folder.glob("*-000000005*"))
    assert read(folder / "step-000000010.txt")[1] == "10."


def test_damaged_checkpoints_are_passed_over(tmp_path):
    for step, text in ((1, "one."), (2, "two."), (3, "thr")):
        write(tmp_path, step, text)
    with pytest.warns(UserWarning, match="step-000000003.txt is damaged; falling back to the one before"):
        assert read(tmp_path) == ("step-000000002.txt", "two.")
    for path in tmp_path.iterdir():
        path.write_text("")
    with pytest.warns(UserWarning, match="damaged"), pytest.raises(ValueError, match="Every checkpoint .* is damaged"):
        read(tmp_path)


def test_what_is_newer_and_damaged_does_not_push_out_what_is_written(tmp_path):
    for step in range(10, 14):
        write(tmp_path, step, "dam")
    for step in range(1, 7):
        write(tmp_path, step, f"{step}.")
        assert (tmp_path / f"step-{step:09d}.txt").exists()
    with pytest.warns(UserWarning, match="damaged"):
        assert read(tmp_path) == ("step-000000006.txt", "6.")


def test_a_used_folder_is_for_the_run_that_goes_on_from_its_newest_checkpoint(tmp_path):
    folder, other = tmp_path / "run", tmp_path / "other"
    refuse_used(None, ".txt")
    refuse_used(folder, ".txt")
    for step in (1, 2):
        write(folder, step, f"{step}.")
        write(other, step, f"{step}.")
    refuse_used(folder, ".txt", folder / ".." / "run")
    refuse_used(folder, ".txt", str(folder / "step-000000002.txt"))
    refuse_used(tmp_path, ".txt", folder)
    refuse_used(folder, ".other")
    for source in (None, other, folder / "step-000000001.txt", tmp_path / "none"):
        with pytest.raises(
            FileExistsError, match=r"got .*run with step-000000002.txt. Go on from it with resume_from="
        ):
            refuse_used(folder, ".txt", source)


@pytest.mark.parametrize(
    "error", [KeyError("training"), RuntimeError("size mismatch"), RecursionError(), MemoryError()]
)
def test_what_does_not_fit_a_run_is_a_value_error(error):
    with pytest.raises(ValueError, match=f"The checkpoint run does not fit: {type(error).__name__}"), fitting("run"):
        raise error


def test_an_error_that_is_no_damage_is_not_passed_over(tmp_path):
    write(tmp_path, 1, "one.")

    def misfit(file):
        raise ValueError("does not fit")

    with pytest.raises(ValueError, match="does not fit"):
        read_latest_checkpoint(tmp_path, ".txt", misfit)


def test_what_a_killed_writer_left_is_cleared_and_other_files_stay(tmp_path):
    for name in ("step-000000001.txt.abcd0123.tmp", "notes.txt", "step-000000007.other"):
        (tmp_path / name).write_text("")
    write(tmp_path, 2, "two.")
    names = {"notes.txt", "step-000000007.other"}
    assert {path.name for path in tmp_path.iterdir()} == {*names, "step-000000002.txt"}
    delete_checkpoints(tmp_path, ".txt")
    assert {path.name for path in tmp_path.iterdir()} == names
    delete_checkpoints(tmp_path / "none", ".txt")
    write(tmp_path / "run", 2, "two.")
    delete_checkpoints(tmp_path / "run", ".txt")
    assert not (tmp_path / "run").exists()
    for path in (tmp_path, tmp_path / "none", tmp_path / "step-000000002.txt"):
        with pytest.raises(FileNotFoundError, match=r"Expected checkpoints \(step-\*.txt\) at .*found none"):
            read(path)


def test_when_checkpoints_are_written():
    written = []
    checkpoints = Checkpoints("folder", 3, lambda *arguments: written.append(arguments))
    for step in (1, 2, 3, 5, 6):
        checkpoints.write_if_due(step, f"state {step}")
    checkpoints.write(7, "end")
    assert written == [("folder", step, f"state {step}") for step in (1, 3, 6)] + [("folder", 7, "end")]
    assert [checkpoints.until_next(step) for step in (0, 1, 3)] == [3, 2, 3]
    none = Checkpoints(None, None, lambda *arguments: written.append(arguments))
    none.write_if_due(0, "state")
    none.write(1, "state")
    assert len(written) == 4 and none.until_next(5) == np.inf


@pytest.mark.parametrize(
    "directory, every, error, message",
    [
        (None, 2, ValueError, "Expected checkpoint_every >= 1 with a checkpoint_dir; got checkpoint_every=2 without"),
        ("folder", 0, ValueError, "Expected checkpoint_every >= 1; got 0"),
        ("folder", 2.5, TypeError, r"Expected checkpoint_every to be an integer >= 1; got 2.5"),
    ],
)
def test_schedules_that_make_no_sense(directory, every, error, message):
    with pytest.raises(error, match=message):
        Checkpoints(directory, every, print)


# --- model files


def model_file(**changes):
    fields = {
        "arrays": {"base.weight": np.arange(6.0).reshape(2, 3), "energy.bias": np.float32(0.5)},
        "generator": {"class": "MLP", "config": {"hidden": [4]}},
        "energy": None,
        "latent_prior": LatentPrior("Laplace", {"loc": np.zeros(2), "scale": np.ones(2)}),
        "inverse_temperature": [0.5, 2.0],
        "log_partition": 0.25,
    }
    return ModelFile(**fields | changes)


def rewritten(path, **changes):
    """The file with other members."""
    with np.load(path) as file:
        members = {name: file[name] for name in file.files}
    with open(path, "wb") as file:
        np.savez(file, **members | changes)


@pytest.mark.parametrize("name", ["gebm.npz", "gebm", "gebm.model"])
@pytest.mark.parametrize("kind", [str, lambda path: path], ids=["str", "path"])
def test_a_model_file_comes_back_from_any_path(tmp_path, name, kind):
    file, path = model_file(), kind(tmp_path / name)
    file.write(path)
    assert [found.name for found in tmp_path.iterdir()] == [name]
    found = ModelFile.read(path)
    for field in ("generator", "energy", "inverse_temperature", "log_partition"):
        assert getattr(found, field) == getattr(file, field)
    assert found.latent_prior.name == "Laplace" and found.latent_prior.shape == (2,)
    for new, old in ((found.arrays, file.arrays), (found.latent_prior.parameters, file.latent_prior.parameters)):
        assert new.keys() == old.keys()
        for key, value in old.items():
            np.testing.assert_array_equal(new[key], value)
            assert new[key].dtype == value.dtype and new[key].shape == value.shape


def test_a_file_of_before_0_1_is_written_again_to_the_same_header(tmp_path):
    """Bit for bit the same digest: what is written today can be read by what wrote the format first."""
    for path in (pathlib.Path(__file__).parents[1] / "fixtures" / "before_0_1").glob("*/model.npz"):
        ModelFile.read(path).write(tmp_path / "model.npz")
        with np.load(path) as old, np.load(tmp_path / "model.npz") as new:
            assert sorted(old.files) == sorted(new.files)
            assert json.loads(str(old["header"])) == json.loads(str(new["header"]))


def test_a_failed_write_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "gebm.npz"
    model_file().write(path)
    before = path.read_bytes()

    def full_disk(file, **arrays):
        file.write(b"half a file")
        raise OSError("No space left on device")

    with monkeypatch.context() as patch, pytest.raises(OSError, match="No space left"):
        patch.setattr(np, "savez", full_disk)
        model_file(log_partition=1.0).write(path)
    assert path.read_bytes() == before and [file.name for file in tmp_path.iterdir()] == ["gebm.npz"]


def truncate(path):
    path.write_bytes(path.read_bytes()[:500])


@pytest.mark.parametrize(
    "damage, message",
    [
        (truncate, r"not a readable GEBM file \(truncated\?\)"),
        (lambda path: path.write_bytes(b""), "not a readable GEBM file"),
        (lambda path: rewritten(path, header=np.array("[]")), "not a readable GEBM file"),
        (lambda path: rewritten(path, header=np.array("{}")), "of format version 1; got None None"),
        (
            lambda path: rewritten(path, header=np.array('{"format": "gebm", "format_version": 2}')),
            "Expected a GEBM file of format version 1; got 'gebm' 2. Update the package",
        ),
        (lambda path: rewritten(path, **{"energy.bias": np.float32(0.6)}), "damaged: .*checksum"),
        (lambda path: rewritten(path, more=np.zeros(2)), "damaged: its keys"),
    ],
    ids=["truncated", "empty", "no header", "foreign", "newer", "changed", "more"],
)
def test_a_damaged_model_file_is_refused(tmp_path, damage, message):
    path = tmp_path / "gebm.npz"
    model_file().write(path)
    damage(path)
    with pytest.raises(ValueError, match=message):
        ModelFile.read(path)


def test_no_code_is_read(tmp_path):
    path = tmp_path / "gebm.npz"
    model_file().write(path)
    rewritten(path, **{"energy.bias": np.array([print], object)})
    with pytest.raises(ValueError, match=r"not a readable GEBM file.*allow_pickle"):
        ModelFile.read(path)


def test_a_model_file_that_is_not_there_or_names_what_is_not_known(tmp_path):
    with pytest.raises(FileNotFoundError):
        ModelFile.read(tmp_path / "none.npz")
    with contextlib.suppress(PermissionError), pytest.raises(IsADirectoryError):
        ModelFile.read(tmp_path)
    model_file(latent_prior=LatentPrior("Cauchy", {"loc": np.zeros(2)})).write(tmp_path / "gebm.npz")
    with pytest.raises(ValueError, match=r"Expected a latent prior in \['Laplace', 'Normal', .*got 'Cauchy'"):
        ModelFile.read(tmp_path / "gebm.npz")
    assert PRIORS.keys() == {"Normal", "Uniform", "Laplace"}


def test_what_does_not_fit_says_where():
    file = model_file()
    file.check_fit("gebm.npz", {"base.weight": np.zeros((2, 3)), "energy.bias": np.zeros(())})
    with pytest.raises(ValueError, match=r"missing keys \['a'\], unexpected keys \['energy.bias'\]"):
        file.check_fit("gebm.npz", {"base.weight": np.zeros((2, 3)), "a": np.zeros(())})
    with pytest.raises(ValueError, match=r"expected base.weight of shape \(3, 2\); got \(2, 3\)"):
        file.check_fit("gebm.npz", {"base.weight": np.zeros((3, 2)), "energy.bias": np.zeros(())})
