"""Draws to a file while sampling, in both hosts: killed, resumed, and in little memory."""

import os
import pathlib
import re
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from marks import slow_unless

PROGRAMS = {
    "numpyro": """
import jax, jax.numpy as jnp, numpyro, numpyro.distributions as dist
from numpyro.infer import MCMC
from numpyro_gebm import GEBM
from numpyro_gebm.infer import GHMC, KineticLangevin, ReplicaExchange, stream_draws
def run(path, num_samples, chunk_size, resume, kernel=GHMC, chains=4, dim=3, warmup=100, site="z", **kwargs):
    model = lambda: numpyro.sample(site, dist.Normal(jnp.zeros(dim), 1.0).to_event(1))
    mcmc = MCMC(kernel(model, **kwargs), num_warmup=warmup, num_samples=num_samples, num_chains=chains,
                chain_method="vectorized", progress_bar=False)
    return stream_draws(mcmc, path, rng_key=jax.random.key(0), chunk_size=chunk_size, resume=resume, progress_bar=False)
def run_exchange(path, num_samples, chunk_size, resume, seed=0):
    gebm = GEBM(dist.Normal(jnp.zeros(2), 1.0).to_event(1), lambda x: 2.0 * (x**2).sum())
    mcmc = MCMC(ReplicaExchange(gebm.latent), num_warmup=20, num_samples=num_samples, num_chains=4,
                chain_method="vectorized", progress_bar=False)
    key = jax.random.key(seed)
    return stream_draws(mcmc, path, rng_key=key, chunk_size=chunk_size, resume=resume, progress_bar=False)
""",
    "pyro": """
import pyro, pyro.distributions as dist, torch
from pyro_gebm import GEBM
from pyro_gebm.infer import GHMC, KineticLangevin, ReplicaExchange, VectorizedMCMC, stream_draws
def run(path, num_samples, chunk_size, resume, kernel=GHMC, chains=4, dim=3, warmup=100, site="z", **kwargs):
    pyro.set_rng_seed(0)
    model = lambda: pyro.sample(site, dist.Normal(torch.zeros(dim), 1.0).to_event(1))
    mcmc = VectorizedMCMC(kernel(model, **kwargs), num_samples, warmup, chains)
    return stream_draws(mcmc, path, chunk_size=chunk_size, resume=resume, progress_bar=False)
def run_exchange(path, num_samples, chunk_size, resume, seed=0):
    pyro.set_rng_seed(seed)
    gebm = GEBM(dist.Normal(torch.zeros(2), 1.0).to_event(1), lambda x: 2.0 * x.square().sum(-1))
    mcmc = VectorizedMCMC(ReplicaExchange(gebm.latent), num_samples, 20, 4)
    return stream_draws(mcmc, path, chunk_size=chunk_size, resume=resume, progress_bar=False)
""",
}
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(pathlib.Path(__file__).parents[1])}


#: Both hosts, that whose programs compile long among the slow tests.
COMPILED_SLOWLY = slow_unless(list(PROGRAMS), "pyro")


@pytest.fixture(params=PROGRAMS)
def host(request):
    pytest.importorskip(f"{request.param}_gebm")
    return request.param


def run(host, *args, program="run", **kwargs):
    names = {}
    exec(PROGRAMS[host], names)
    return names[program](*args, **kwargs)


def command(host, call):
    return [sys.executable, "-c", PROGRAMS[host] + call]


def test_the_file_holds_the_draws_of_the_kernel(host, tmp_path):
    data = run(host, tmp_path / "draws.nc", 50, 20, False)
    assert data["posterior"]["z"].shape == (4, 50, 3) and np.isfinite(data["posterior"]["z"].values).all()
    assert {"lp", "acceptance_rate", "step_size", "warmup_converged"} <= set(data["sample_stats"].data_vars)
    np.testing.assert_allclose(
        data["sample_stats"]["lp"],
        -0.5 * (data["posterior"]["z"].values ** 2).sum(-1) - 1.5 * np.log(2 * np.pi),
        rtol=1e-4,
    )


def test_draws_do_not_depend_on_chunks_and_go_on_where_they_stopped(host, tmp_path):
    whole = run(host, tmp_path / "whole.nc", 60, 60, False)["posterior"]["z"].values
    chunks = run(host, tmp_path / "chunks.nc", 60, 7, False)["posterior"]["z"].values
    np.testing.assert_array_equal(whole, chunks)
    finished = run(host, tmp_path / "whole.nc", 60, 60, True)["posterior"]["z"].values
    np.testing.assert_array_equal(whole, finished)
    with pytest.raises(FileExistsError, match="Expected no file"):
        run(host, tmp_path / "whole.nc", 60, 60, False)
    np.testing.assert_array_equal(whole, run(host, tmp_path / "whole.nc", 60, 60, True)["posterior"]["z"].values)
    (tmp_path / "whole.nc").unlink()  # and not its state, which is further on
    shorter = run(host, tmp_path / "whole.nc", 20, 20, False)["posterior"]["z"].values
    np.testing.assert_array_equal(whole[:, :20], shorter)
    np.testing.assert_array_equal(shorter, run(host, tmp_path / "whole.nc", 20, 20, True)["posterior"]["z"].values)


def test_a_store_holds_what_a_file_does(host, tmp_path):
    pytest.importorskip("zarr")
    file = run(host, tmp_path / "draws.nc", 50, 20, False)
    store = run(host, tmp_path / "draws.zarr", 50, 20, False)
    again = run(host, tmp_path / "draws.zarr", 50, 20, True)
    for group in ("posterior", "sample_stats"):
        assert set(file[group].data_vars) == set(store[group].data_vars)
        for name, value in file[group].data_vars.items():
            assert value.dtype == store[group][name].dtype and value.dims == store[group][name].dims
            np.testing.assert_array_equal(value.values, store[group][name].values)
            np.testing.assert_array_equal(value.values, again[group][name].values)
    with pytest.raises(FileExistsError, match="Expected no file"):
        run(host, tmp_path / "draws.zarr", 50, 20, False)
    with pytest.raises(ValueError, match="Expected a run of 50 draws a chain"):
        run(host, tmp_path / "draws.zarr", 60, 20, True)


@pytest.mark.slow_in("numpyro")
@pytest.mark.parametrize("after", slow_unless([0.02, 0.3], 0.3))
def test_a_killed_run_goes_on_bit_for_bit(host, tmp_path, after):
    path, num = tmp_path / "draws.nc", 100_000
    process = subprocess.Popen(command(host, f"run({str(path)!r}, {num}, 10, False)"), env=ENVIRONMENT)
    folder = path.with_name("draws.nc.state")
    deadline = time.time() + 120
    while not (folder.exists() and len(list(folder.iterdir())) > 2):
        assert process.poll() is None and time.time() < deadline
        time.sleep(0.01)
    time.sleep(after)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    steps = [int(re.search(r"\d+", p.name)[0]) for p in folder.iterdir() if p.suffix != ".tmp"]
    assert 0 < max(steps) < num
    resumed = f"""
import {host}_gebm.infer.streaming as streaming
from gebm.draw_file import DrawFile
append = DrawFile.append
def stop(self, *args):
    append(self, *args)
    if self.num_draws_written >= {max(steps) + 30}:
        raise KeyboardInterrupt
DrawFile.append = stop
try:
    run({str(path)!r}, {num}, 10, True)
except KeyboardInterrupt:
    pass
"""
    subprocess.run(command(host, resumed), env=ENVIRONMENT, check=True)
    from importlib import import_module

    again = import_module(f"{host}_gebm").read_draws(path)["posterior"]["z"].values
    assert again.shape[1] >= max(steps) + 30
    script = f"""
import numpy as np
z = run({str(tmp_path / "whole.nc")!r}, {again.shape[1]}, 50, False)["posterior"]["z"].values
np.save({str(tmp_path / "whole.npy")!r}, z)
"""
    subprocess.run(command(host, script), env=ENVIRONMENT, check=True)
    np.testing.assert_array_equal(again, np.load(tmp_path / "whole.npy"))


@pytest.mark.parametrize("host", COMPILED_SLOWLY, indirect=True)
def test_replica_exchange_goes_on_where_it_stopped(host, tmp_path, monkeypatch):
    """With the ladder of the run that was stopped, whatever the seed of the pilot run now."""
    from importlib import import_module

    whole = run(host, tmp_path / "whole.nc", 60, 60, False, program="run_exchange")
    assert {"swap_accept_prob", "round_trips"} <= set(whole["sample_stats"].data_vars)
    file = import_module("gebm.draw_file").DrawFile
    append = file.append

    def stop(self, *args):
        append(self, *args)
        if self.num_draws_written == 40:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(file, "append", stop)
        run(host, tmp_path / "draws.nc", 60, 20, False, program="run_exchange")
    again = run(host, tmp_path / "draws.nc", 60, 20, True, program="run_exchange", seed=1)
    for group, name in (("posterior", "z"), ("sample_stats", "lp"), ("sample_stats", "round_trips")):
        np.testing.assert_array_equal(whole[group][name].values, again[group][name].values)


@pytest.mark.slow
def test_memory_does_not_grow_with_the_draws(host, tmp_path):
    """20,000 draws of 64 chains with 100 latents: half a gigabyte of draws."""
    call = f"""
import resource
settings = dict(kernel=KineticLangevin, num_steps=1, adapt_step_size=False, chains=64, dim=100, warmup=0)
run({str(tmp_path / "small.nc")!r}, 1000, 500, False, **settings)
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
run({str(tmp_path / "large.nc")!r}, 20_000, 500, False, **settings)
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024)
"""
    done = subprocess.run(command(host, call), env=ENVIRONMENT, check=True, capture_output=True, text=True)
    assert float(done.stdout) < 150  # MB


def test_arguments(host, tmp_path):
    from importlib import import_module

    stream_draws = import_module(f"{host}_gebm.infer").stream_draws
    key = {"rng_key": None} if host == "numpyro" else {}
    with pytest.raises(TypeError, match=r"Expected mcmc to be a \S*MCMC; got 'mcmc'"):
        stream_draws("mcmc", tmp_path / "draws.nc", **key)
    with pytest.raises(ValueError, match="Expected chunk_size >= 1; got 0"):
        run(host, tmp_path / "draws.nc", 10, 0, False)


def test_a_resumed_run_is_the_one_that_wrote_the_file(host, tmp_path):
    path = tmp_path / "draws.nc"
    run(host, path, 20, 10, False, warmup=20)
    for num in (10, 30):
        with pytest.raises(ValueError, match=rf"Expected a run of 20 draws a chain.*\(20 are written\); got {num}"):
            run(host, path, num, 10, True, warmup=20)
    for change, name in ({"chains": 3}, "num_chains"), ({"num_steps": 3}, "kernel"):
        with pytest.raises(ValueError, match=rf"another one, which differs in\n  {name}"):
            run(host, path, 20, 10, True, **{"warmup": 20} | change)


def test_a_file_that_cannot_be_written_is_an_error_before_the_warm_up(host, tmp_path):
    with pytest.raises(ValueError, match="Expected names without '/'.*; got 'a/z'"):
        run(host, tmp_path / "draws.nc", 20, 10, False, site="a/z", warmup=10**9)
    with pytest.raises(OSError, match="No such file or directory"):
        run(host, tmp_path / "no folder" / "draws.nc", 20, 10, False, warmup=10**9)
    assert not list(tmp_path.iterdir())


def test_kernels_that_are_refused(tmp_path):
    """NumPyro's own kernels say nothing of the end of their warm-up; Pyro's `VectorizedMCMC` takes none but these."""
    numpyro = pytest.importorskip("numpyro")
    from numpyro_gebm.infer import stream_draws

    mcmc = numpyro.infer.MCMC(numpyro.infer.NUTS(lambda: None), num_warmup=1, num_samples=1)
    with pytest.raises(TypeError, match="Expected the kernel of mcmc to be a ChainKernel; got NUTS"):
        stream_draws(mcmc, tmp_path / "draws.nc", rng_key=None)
