"""Several devices, virtual ones in a process of their own, and several processes: training, chains, draws on disk."""

import json
import os
import pathlib
import shutil
import subprocess
import sys
import time

import numpy as np
import processes
import pytest

PROCESSES = pathlib.Path(__file__).with_name("two_processes.py")
pytestmark = pytest.mark.slow  # they compile in processes of their own


def run(name, num_devices):
    script = pathlib.Path(__file__).with_name(name)
    flags = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count={num_devices}"
    environment = os.environ | {"XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu"}
    how = {"cwd": script.parents[2], "env": environment, "capture_output": True, "text": True, "check": False}
    done = subprocess.run([sys.executable, str(script)], **how)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


@pytest.fixture(scope="module")
def report():
    return run("mesh_of_eight.py", 8)


def test_everything_follows_parameters_on_the_second_device():
    found = run("second_device.py", 2)
    assert len(found) > 12 and {name: [1] for name in found} == found


def test_a_mesh_trains_as_one_device_does(report):
    assert report["difference"] < 1e-8 * max(1.0, report["size"])


def test_the_batch_is_divided_and_the_parameters_are_everywhere(report):
    assert report["devices"] == 8 and report["reduces"] and report["parts"]


def test_what_does_not_fit_the_mesh_is_refused(report):
    errors = report["errors"]
    assert "Expected axis to be one of the mesh's, ('data',); got 'rows'" in errors["axis"]
    assert "Expected batch_size to be a multiple of the 8 devices of the mesh's axis 'data'; got 60" in errors["size"]


def test_chains_on_a_mesh_are_those_of_one_device():
    """And are stepped where they are; what does not fit is refused. One test, as one process compiles it all."""
    chains = run("chains_of_eight.py", 8)
    for name in ("GHMC", "Ex2MCMC", "ReplicaExchange", "NUTS", "SMC", "sample"):
        assert chains["difference"][name] < 1e-8 and chains["devices"][name] == 8, name
    assert chains["largest product"] == [8, 16]  # 64 chains in 16 dimensions, eight on every device
    errors = chains["errors"]
    assert "Expected num_chains to be a multiple of the 8 devices of the mesh's axis 'data'; got 12" in errors["chains"]
    assert "Expected num_particles to be a multiple of the 8 devices" in errors["particles"]
    assert "Expected mesh to be a jax.sharding.Mesh; got None" in errors["none"]
    assert "Expected mesh to be a jax.sharding.Mesh or None; got 8 (int)" in errors["kind"]
    assert "Expected to be called by NumPyro's MCMC" in errors["caller"]


def of_processes(num, out, *args):
    """What the processes of `two_processes.py` saved."""
    codes, texts = processes.run(PROCESSES, num, out, *args)
    assert codes == [0] * num, texts
    return [np.load(f"{out}-{rank}.npy") for rank in range(num)]


def test_two_processes_train_as_one_does(tmp_path):
    (one,), (two, same) = (of_processes(num, tmp_path / str(num)) for num in (1, 2))
    np.testing.assert_array_equal(two, same)
    np.testing.assert_allclose(two, one, rtol=1e-8, atol=1e-8)


def test_a_missing_mesh_is_an_error_in_every_process(tmp_path):
    codes, texts = processes.run(PROCESSES, 2, tmp_path / "x", "--no-mesh")
    assert all(codes) and all("Expected a mesh, as jax.distributed has 2 processes; got None" in t for t in texts)


def test_training_goes_on_with_another_number_of_processes(tmp_path):
    (whole,) = of_processes(1, tmp_path / "whole")
    kept = ["--checkpoints", tmp_path / "kept"]
    of_processes(2, tmp_path / "half", "--steps", 50, *kept)
    (one,) = of_processes(1, tmp_path / "one", *kept, "--resume")
    np.testing.assert_allclose(one, whole, rtol=1e-8, atol=1e-8)


def test_chains_of_two_processes_are_those_of_one(tmp_path):
    (one,), (two, same) = (of_processes(num, tmp_path / str(num), "--kernel", "GHMC") for num in (1, 2))
    np.testing.assert_array_equal(two, same)
    np.testing.assert_allclose(two, one, atol=1e-8)


def test_nuts_in_two_processes(tmp_path):
    """Its trees amplify what rounding makes of other programs: the law is N(0, 1/4)."""
    two, same = of_processes(2, tmp_path / "two", "--kernel", "NUTS")
    np.testing.assert_array_equal(two, same)
    assert np.unique(two[:, 0, 0]).size == 32
    assert abs(two.mean()) < 5 * 0.5 / 4000**0.5
    assert abs(two.var(axis=(0, 1)).mean() - 0.25) < 5 * 0.25 * (2 / 4000) ** 0.5


def test_a_store_of_two_processes_goes_on_with_any_number(tmp_path):
    """Killed while they write: what is left is continued by two and by one, to the same draws."""
    long = ["--kernel", "GHMC", "--draws", 1000, "--store"]
    running, begin = processes.start(PROCESSES, 2, tmp_path / "x", *long, tmp_path / "x.zarr"), time.monotonic()
    while len(list((tmp_path / "x.zarr.state").glob("*.npz"))) < 3:
        assert time.monotonic() - begin < 120 and all(process.poll() is None for process in running)
        time.sleep(0.05)
    running[1].kill()
    killed = time.monotonic()
    codes, texts = processes.finished(running)
    assert time.monotonic() - killed < 60 and codes[0] != 0 and "rror" in texts[0]
    found = {}
    for num in (1, 2):
        for ending in ("zarr", "zarr.state"):
            shutil.copytree(tmp_path / f"x.{ending}", tmp_path / f"{num}.{ending}")
        more = ["--resume", "--chains", 32]
        found[num] = of_processes(num, tmp_path / str(num), *long, tmp_path / f"{num}.zarr", *more)[0]
    assert found[1].shape == (32, 1000, 3)
    np.testing.assert_allclose(found[2], found[1], atol=1e-6)
