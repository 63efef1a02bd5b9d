"""KALE over several processes, which share every batch."""

import os
import pathlib
import socket
import subprocess
import sys
import time

import numpy as np
import pytest
import torch

from pyro_gebm import KALE, KALEGuide
from pyro_gebm.processes import Processes

SCRIPT = pathlib.Path(__file__).with_name("two_processes.py")
pytestmark = pytest.mark.skipif(not torch.distributed.is_available(), reason="needs torch.distributed")


def start(num, *args):
    """The script in `num` processes, as torchrun starts them."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    place = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "WORLD_SIZE": str(num), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(SCRIPT), *map(str, args)]
    how = {"cwd": SCRIPT.parents[2], "stderr": subprocess.PIPE, "text": True}
    return [subprocess.Popen(command, env=os.environ | place | {"RANK": str(rank)}, **how) for rank in range(num)]


def run(num, *args):
    """Exit codes and what they wrote to stderr."""
    processes = start(num, *args)
    texts = [process.communicate(timeout=120)[1] for process in processes]
    return [process.returncode for process in processes], texts


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    out = tmp_path_factory.mktemp("alone") / "x"
    codes, texts = run(1, out)
    assert codes == [0], texts
    return np.load(f"{out}-0.npy")


@pytest.mark.slow
def test_two_processes_train_as_one_does(alone, tmp_path):
    """Over 100 steps, base, energy, A and KALE: one log-sum-exp, one base, one stream of random numbers."""
    codes, texts = run(2, tmp_path / "x")
    assert codes == [0, 0], texts
    both = [np.load(tmp_path / f"x-{rank}.npy") for rank in range(2)]
    np.testing.assert_array_equal(*both)
    np.testing.assert_allclose(both[0], alone, rtol=1e-8, atol=1e-8)


@pytest.mark.slow
def test_a_run_goes_on_with_another_number_of_processes(alone, tmp_path):
    for num, steps, more in ((2, 50, []), (1, 100, ["--resume"])):
        codes, texts = run(num, tmp_path / "x", "--steps", steps, "--checkpoints", tmp_path / "kept", *more)
        assert codes == [0] * num, texts
    np.testing.assert_allclose(np.load(tmp_path / "x-0.npy"), alone, rtol=1e-8, atol=1e-8)


@pytest.mark.slow
@pytest.mark.parametrize("moment", [0.5, 1.5, 3.0])
def test_the_survivor_stops_and_the_run_goes_on(moment, tmp_path):
    kept = ["--checkpoints", tmp_path / "kept", "--steps"]
    begin = time.monotonic()
    codes, texts = run(2, tmp_path / "x", "--die-at", moment, *kept, 100_000)
    assert codes[1] == 9 and codes[0] != 0 and time.monotonic() - begin < 60 + moment
    assert "RuntimeError" in texts[0] or "DistBackendError" in texts[0]
    steps = sorted(int(path.stem.split("-")[-1]) for path in (tmp_path / "kept").glob("step-*"))
    codes, texts = run(2, tmp_path / "x", "--resume", *kept, steps[-1] + 20)
    assert codes == [0, 0], texts


@pytest.mark.slow
@pytest.mark.parametrize(
    "args, message",
    [
        (["--batch-size", 63], "Expected batch_size to be a multiple of the 2 processes; got 63"),
        (["--rows", 255], "Expected the data's shape to be the same in all 2 processes; got [(255, 3), (254, 3)]"),
    ],
)
def test_what_cannot_be_shared_is_refused_by_all(args, message, tmp_path):
    codes, texts = run(2, tmp_path / "x", *args)
    assert all(codes) and all(message in text for text in texts)


def test_what_is_no_group():
    energy = torch.nn.Sequential(torch.nn.Linear(2, 1), torch.nn.Flatten(0))
    base = torch.distributions.Independent(torch.distributions.Normal(torch.zeros(2), 1.0), 1)
    with pytest.raises(TypeError, match="process_group to be a torch.distributed.ProcessGroup or None; got str"):
        KALE(base, KALEGuide(energy), None, lambda p: torch.optim.Adam(p, 1e-3), process_group="gloo")
    with pytest.raises(TypeError, match="init_process_group under torchrun"):
        Processes(3)


def test_the_mean_of_parts_is_another_objective():
    """The log-partition of a batch is not the mean of those of its halves: that is why energies are gathered."""
    energies = torch.linspace(-2.0, 3.0, 8)
    whole = torch.logsumexp(-energies, 0) - np.log(8)
    halves = torch.stack([torch.logsumexp(-half, 0) - np.log(4) for half in energies.split(4)])
    assert abs(float(whole - halves.mean())) > 0.1
