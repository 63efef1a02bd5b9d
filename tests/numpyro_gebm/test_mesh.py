"""Several devices, virtual ones in a process of their own: KALE on a mesh, and parameters on the second."""

import json
import os
import pathlib
import subprocess
import sys

import pytest

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
