"""Exact tests run in float64, every test starts from a fixed seed."""

import atexit
import importlib.util
import os
import shutil
import tempfile
from importlib import metadata

import hosts
import numpy as np
import pytest

os.environ.setdefault("MPLBACKEND", "agg")
if "PYTEST_XDIST_WORKER" in os.environ and hasattr(os, "sched_setaffinity"):
    # A worker has cores of its own: thread pools of two workers on the same cores wait for each other.
    _cores = sorted(os.sched_getaffinity(0))
    _worker, _workers = int(os.environ["PYTEST_XDIST_WORKER"][2:]), int(os.environ["PYTEST_XDIST_WORKER_COUNT"])
    os.sched_setaffinity(0, _cores[_worker % len(_cores) :: _workers])
if "JAX_COMPILATION_CACHE_DIR" not in os.environ:  # many tests compile the same program; the workers share it
    os.environ["JAX_COMPILATION_CACHE_DIR"] = tempfile.mkdtemp(prefix="gebm-tests-")
    os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0.1"
    atexit.register(shutil.rmtree, os.environ["JAX_COMPILATION_CACHE_DIR"], ignore_errors=True)

if importlib.util.find_spec("jax"):
    import jax

    jax.config.update("jax_enable_x64", True)

if importlib.util.find_spec("torch"):
    import torch

    torch.set_num_threads(1)  # on a busy machine PyTorch's threads wait for each other, 20 times slower


def _quick_to_compile():
    """Flags of XLA: it compiles in a third of the time without its optimiser, its emitters of fusions, and code cut for
    many cores.

    A flag that a jaxlib does not know ends the process.
    """
    flags = ["--xla_backend_optimization_level=0", "--xla_cpu_parallel_codegen_split_count=1"]
    if importlib.util.find_spec("jaxlib") and metadata.version("jaxlib").startswith("0.10."):
        flags.append("--xla_cpu_use_fusion_emitters=false")  # jaxlib 0.12 has no such flag
    return " ".join(flags)


def pytest_configure(config):
    """Short tests compile more than they compute."""
    if config.getoption("markexpr") != "slow":
        os.environ.setdefault("XLA_FLAGS", _quick_to_compile())


@pytest.hookimpl(tryfirst=True)  # before `-m` selects
def pytest_collection_modifyitems(items):
    """`@pytest.mark.slow_in("numpyro")`: slow in that host, mostly as it compiles for long, and fast in the other."""
    for item in items:
        for mark in item.iter_markers("slow_in"):
            if item.callspec.params["host"] in mark.args:
                item.add_marker("slow")


@pytest.fixture(scope="session", params=hosts.HOSTS)
def host(request):
    """Each host in turn: see `hosts`."""
    if absent := hosts.missing(request.param):
        pytest.skip(f"needs {', '.join(absent)}")
    return hosts.get(request.param)


@pytest.fixture(scope="session")
def both():
    """NumPyro's and Pyro's host, for tests of parity."""
    if absent := [package for name in hosts.HOSTS for package in hosts.missing(name)]:
        pytest.skip(f"needs {', '.join(absent)}")
    return tuple(map(hosts.get, hosts.HOSTS))


@pytest.fixture(autouse=True, scope="module")
def _compiled_programs():
    """Let go of what a module has compiled: a worker would keep gigabytes."""
    yield
    if importlib.util.find_spec("jax"):
        jax.clear_caches()


@pytest.fixture(autouse=True)
def _seed(monkeypatch):
    np.random.seed(0)
    if importlib.util.find_spec("pyro") is None:
        yield
        return
    import pyro
    import torch

    monkeypatch.setattr(torch.multiprocessing, "cpu_count", lambda: 1)  # chains in turn: JAX forbids forking
    default = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    pyro.set_rng_seed(0)
    pyro.clear_param_store()
    yield
    torch.set_default_dtype(default)
