"""KALE over several processes, which share every batch."""

import json
import pathlib
import shutil
import time

import numpy as np
import processes
import pytest
import torch

from pyro_gebm import KALE, KALEGuide, read_draws
from pyro_gebm.processes import Processes

SCRIPT = pathlib.Path(__file__).with_name("two_processes.py")
CHAINS = pathlib.Path(__file__).with_name("streaming_processes.py")
pytestmark = pytest.mark.skipif(not torch.distributed.is_available(), reason="needs torch.distributed")


def run(num, *args, script=SCRIPT):
    return processes.run(script, num, *args)


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


def reports(num, *args):
    """What the processes of `streaming_processes.py` printed."""
    codes, texts = run(num, *args, script=CHAINS)
    assert codes == [0] * num, texts
    return [json.loads(text.splitlines()[-1]) for text in texts]


@pytest.mark.slow
@pytest.mark.parametrize("kernel", ["GHMC", "ReplicaExchange"])
def test_chains_of_two_processes(kernel):
    """One step size, all draws in both, no two chains alike, and the right law: N(0, 1/4) in three dimensions."""
    one, two = reports(2, "--kernel", kernel)
    assert one == two and one["shape"] == [32, 400, 3] and one["chains"] == 16 and one["starts"] == 32
    assert abs(one["mean"]) < 5 * 0.5 / 4000**0.5 and abs(one["variance"] - 0.25) < 5 * 0.25 * (2 / 4000) ** 0.5
    if kernel == "GHMC":  # the warm-up of one process comes to the same
        assert abs(reports(1, "--kernel", kernel)[0]["step_size"] / one["step_size"] - 1) < 0.1


@pytest.mark.slow
@pytest.mark.parametrize("kernel", ["GHMC", "ReplicaExchange"])
def test_a_store_of_two_processes_goes_on_with_any_number(kernel, tmp_path):
    whole = ["--kernel", kernel, "--store", tmp_path / "whole.zarr"]
    once = reports(2, *whole)
    codes, _ = run(2, "--kernel", kernel, "--store", tmp_path / "x.zarr", "--die-at", 200, script=CHAINS)
    assert codes[1] == 9 and codes[0] != 0
    shutil.copytree(tmp_path / "x.zarr", tmp_path / "y.zarr")
    shutil.copytree(tmp_path / "x.zarr.state", tmp_path / "y.zarr.state")
    assert reports(2, "--kernel", kernel, "--store", tmp_path / "x.zarr", "--resume") == once
    z, again = (read_draws(tmp_path / name)["posterior"]["z"].values for name in ("whole.zarr", "x.zarr"))
    np.testing.assert_array_equal(z, again)
    for num in (1, 4) if kernel == "GHMC" else (1,):
        found = reports(num, "--kernel", kernel, "--store", tmp_path / "y.zarr", "--resume", "--draws", 400)[0]
        assert found["shape"] == [32, 400, 3] and abs(found["variance"] - 0.25) < 5 * 0.25 * (2 / 4000) ** 0.5
    kept = read_draws(tmp_path / "y.zarr")["posterior"]["z"].values
    np.testing.assert_array_equal(kept[:, :150], z[:, :150])
    assert (kept[:, 250:] != z[:, 250:]).all()


@pytest.mark.slow
@pytest.mark.parametrize(
    "args, message",
    [
        (["--chains", 33], "Expected num_chains to be a multiple of the 2 processes; got 33"),
        (["--store", "x.nc"], "Expected a path that ends in '.zarr' with 2 processes"),
        (["--other-data"], "Expected the arguments of the model to be the same in all 2 processes; got"),
        (["--no-group"], "Expected process_group, as torch.distributed has 2 processes; got None"),
    ],
)
def test_chains_that_cannot_be_shared_are_refused(args, message, tmp_path):
    args = [tmp_path / arg if arg == "x.nc" else arg for arg in args]
    codes, texts = run(2, *args, script=CHAINS)
    assert all(codes) and all(message in text for text in texts)
    assert not list(tmp_path.iterdir())


def test_the_chains_of_other_processes_are_put_together():
    from pyro_gebm.infer import GHMC
    from pyro_gebm.infer.streaming import _Chains

    chains = _Chains.__new__(_Chains)
    chains.kernel, chains.num_processes, chains.own_chains = GHMC(lambda: None), 1, slice(1, 3)
    parts = [
        {"chains": {"z": torch.arange(2.0) + 2 * i}, "num_nan": torch.zeros(2), "i": 7, "rng": {"cpu": i}}
        for i in (0, 1)
    ]
    own = chains._own_part(parts)
    assert own["chains"]["z"].tolist() == [1.0, 2.0] and own["i"] == 7


def test_a_kernel_of_an_earlier_run_is_alone_again():
    from pyro_gebm.infer import GHMC, VectorizedMCMC

    kernel = GHMC(potential_fn=lambda u: 0.5 * u["z"] ** 2)
    kernel.processes = object()  # of a run over several
    mcmc = VectorizedMCMC(kernel, 2, 2, 2, initial_params={"z": torch.zeros(2)}, disable_progbar=True)
    mcmc.run()
    assert kernel.processes is mcmc.processes
