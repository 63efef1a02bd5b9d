"""Seconds that a person waits: first draws, a second run, another size, the first training step, in both hosts.

    .venv/bin/python benchmarks/latency.py

Wall time of fresh processes, from their start, imports included; toy size, 64 chains, 100 draws. *Empty cache* and
*full cache* are without and with what an earlier process left in JAX's persistent compilation cache.
"""

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time

#: What is timed. A program says `mark(name)` whenever something has ended; times are since the mark before.
SETUP = """
import os, sys, time, warnings
warnings.simplefilter("ignore")
begun, compiled = float(os.environ["BEGUN"]), [0]
def mark(name):
    global begun
    now = time.time()
    print(f"{name}\t{now - begun}\t{compiled[0]}", flush=True)
    begun, compiled[0] = time.time(), 0
"""
NUMPYRO = (
    SETUP
    + """
import jax, jax.numpy as jnp, numpyro, numpyro.distributions as dist, optax
from numpyro.infer import MCMC, NUTS
from numpyro_gebm import GEBM, KALE, KALEGuide, Pushforward, infer, nn
def count(event, *_, **__):
    compiled[0] += event == "/jax/core/compile/backend_compile_duration"
jax.monitoring.register_event_duration_secs_listener(count)
prior = dist.Normal(0.0, 1.0).expand([2]).to_event(1)
def networks(seed):
    keys = jax.random.split(jax.random.key(seed))
    return nn.MLP((2,), (2,), (64, 64), rng_key=keys[0]), nn.MLP((2,), (), (64, 64), rng_key=keys[1])
def model(seed):
    generator, energy = networks(seed)
    return GEBM(Pushforward(prior, generator), energy)
def run(kernel, num_warmup=300):
    return MCMC(kernel, num_warmup=num_warmup, num_samples=100, num_chains=64, chain_method="vectorized",
                progress_bar=False)
"""
)
PYRO = (
    SETUP
    + """
import torch, pyro, pyro.distributions as dist
torch.set_num_threads(1)
from pyro.infer import MCMC, NUTS
from pyro_gebm import GEBM, KALE, KALEGuide, Pushforward, infer, nn
prior = dist.Normal(0.0, 1.0).expand([2]).to_event(1)
def networks(seed):
    torch.manual_seed(seed)
    return nn.MLP((2,), (2,), (64, 64)), nn.MLP((2,), (), (64, 64))
def model(seed):
    generator, energy = networks(seed)
    return GEBM(Pushforward(prior, generator), energy)
"""
)
PROGRAMS = {
    "numpyro": {
        "GHMC": NUMPYRO
        + """
gebm = model(0)
mcmc = run(infer.GHMC(lambda: numpyro.sample("z", gebm.latent)))
mcmc.run(jax.random.key(0)); jax.block_until_ready(mcmc.get_samples())
mark("GHMC, first 100 draws")
mcmc.run(jax.random.key(1)); jax.block_until_ready(mcmc.get_samples())
mark("GHMC, second run")
""",
        "NUTS": NUMPYRO
        + """
gebm = model(0)
mcmc = run(NUTS(lambda: numpyro.sample("z", gebm.latent), init_strategy=infer.init_to_prior))
mcmc.run(jax.random.key(0)); jax.block_until_ready(mcmc.get_samples())
mark("NumPyro's NUTS, first 100 draws")
mcmc.run(jax.random.key(1)); jax.block_until_ready(mcmc.get_samples())
mark("NumPyro's NUTS, second run")
""",
        "sample": NUMPYRO
        + """
model(0).sample(jax.random.key(0), (900,)).block_until_ready()
mark("gebm.sample, first 900 draws")
gebm = model(0)
gebm.sample(jax.random.key(0), (900,))
begun = time.time(); compiled[0] = 0
gebm.sample(jax.random.key(1), (1000,)).block_until_ready()
mark("gebm.sample, 1000 draws after 900")
model(1).sample(jax.random.key(0), (1000,)).block_until_ready()
mark("gebm.sample, a new model of this architecture")
""",
        "KALE": NUMPYRO
        + """
generator, energy = networks(0)
kale = KALE(Pushforward(prior, generator), KALEGuide(energy), optax.adam(1e-3), optax.adam(1e-3))
kale.run(jax.random.key(0), 1, jax.random.normal(jax.random.key(1), (1000, 2)), progress_bar=False)
mark("KALE, first step")
""",
    },
    "pyro": {
        "GHMC": PYRO
        + """
gebm = model(0)
mcmc = infer.VectorizedMCMC(infer.GHMC(lambda: pyro.sample("z", gebm.latent)), 100, 300, 64, disable_progbar=True)
mcmc.run()
mark("GHMC, first 100 draws")
mcmc.run()
mark("GHMC, second run")
""",
        "NUTS": PYRO
        + """
gebm = model(0)
mcmc = MCMC(NUTS(lambda: pyro.sample("z", gebm.latent), init_strategy=infer.init_to_prior, max_plate_nesting=0), 100,
            100, disable_progbar=True)
mcmc.run()
mark("Pyro's NUTS, first 100 draws of one chain")
mcmc.run()
mark("Pyro's NUTS, second run of one chain")
""",
        "sample": PYRO
        + """
model(0).sample((900,))
mark("gebm.sample, first 900 draws")
model(0).sample((1000,))
mark("gebm.sample, 1000 draws after 900")
model(1).sample((1000,))
mark("gebm.sample, a new model of this architecture")
""",
        "KALE": PYRO
        + """
generator, energy = networks(0)
adam = lambda parameters: torch.optim.Adam(parameters, 1e-3)
KALE(Pushforward(prior, generator), KALEGuide(energy), adam, adam).run(1, torch.randn(1000, 2), progress_bar=False)
mark("KALE, first step")
""",
    },
}


def timed(program, cache):
    """Seconds and compilations between the marks of a program, by name."""
    environment = {**os.environ, "BEGUN": str(time.time()), "JAX_COMPILATION_CACHE_DIR": cache,
                   "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0"}  # fmt: skip
    out = subprocess.run([sys.executable, "-c", program], env=environment, check=True, capture_output=True, text=True)
    lines = (line.split("\t") for line in out.stdout.splitlines() if "\t" in line)
    return {name: (float(seconds), int(compiled)) for name, seconds, compiled in lines}


def measure(program, rounds, cached):
    """Medians over rounds without a cache, and with a full one."""
    empty, full = [], []
    for _ in range(rounds):
        with tempfile.TemporaryDirectory() as cache:
            empty.append(timed(program, cache))
            if cached:
                full.append(timed(program, cache))
    for name, (_, compiled) in empty[0].items():
        medians = [statistics.median(run[name][0] for run in runs) if runs else None for runs in (empty, full)]
        yield name, *medians, compiled if cached else None


def main():
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--hosts", nargs="+", default=["numpyro", "pyro"], choices=["numpyro", "pyro"])
    parser.add_argument("--only", nargs="+", default=["GHMC", "NUTS", "sample", "KALE"])
    args = parser.parse_args()
    print("| host | what | seconds, empty cache | seconds, full cache | programs compiled |")
    print("|---|---|---|---|---|")
    for host in args.hosts:
        for what in args.only:
            for name, *cells in measure(PROGRAMS[host][what], args.rounds, host == "numpyro"):
                empty, full, compiled = ("" if x is None else f"{x:.2f}" if isinstance(x, float) else x for x in cells)
                print(f"| {host} | {name} | {empty} | {full} | {compiled} |", flush=True)


if __name__ == "__main__":
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    main()
