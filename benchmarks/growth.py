"""Time of a step of `GHMC` and largest memory of its process, as chains and latents grow, in both hosts.

    .venv/bin/python benchmarks/growth.py

Latent d, generator d-256-256-784, energy 784-256-256-1, ten steps a draw at a fixed step size, one pinned thread, its
CPU time without compilation. A cell is a process of its own; its memory is above that of a process that has only
imported the package.
"""

import argparse
import os
import resource
import subprocess
import sys
import time
from pathlib import Path

CHAINS, LATENTS = (1, 16, 256, 4096), (2, 50, 400)
WIDTHS, EVENT = (256, 256), (784,)
SETTINGS = {"step_size": 0.05, "adapt_step_size": False, "friction": 1.0, "num_steps": 10}


def peak():
    """Largest resident memory of this process so far, MB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def numpyro_steps(num_chains, latent):
    """Steps of NumPyro's `GHMC` in one compiled loop."""
    import jax
    import jax.numpy as jnp
    import numpyro
    import numpyro.distributions as dist

    from numpyro_gebm import GEBM, Pushforward, infer, nn

    before, keys = peak(), jax.random.split(jax.random.key(0))
    base = Pushforward(
        dist.Normal(jnp.zeros(latent), 1.0).to_event(1), nn.MLP((latent,), EVENT, WIDTHS, rng_key=keys[0])
    )
    gebm = GEBM(base, nn.MLP(EVENT, (), WIDTHS, "leaky_relu", rng_key=keys[1]))
    chain = infer.GHMC(lambda: numpyro.sample("z", gebm.latent), **SETTINGS)
    state = chain.init(jax.random.split(jax.random.key(0), num_chains), 0)
    loop = jax.jit(lambda state, num: jax.lax.fori_loop(0, num, lambda _, s: chain.sample(s, (), {}), state))
    return before, lambda num: loop(state, num // chain.num_steps).z["z"].block_until_ready()


def pyro_steps(num_chains, latent):
    """Steps of Pyro's `GHMC`."""
    import pyro
    import pyro.distributions as dist
    import torch

    from pyro_gebm import GEBM, Pushforward, infer, nn

    torch.set_num_threads(1)
    before = peak()
    pyro.set_rng_seed(0)
    base = Pushforward(dist.Normal(torch.zeros(latent), 1.0).to_event(1), nn.MLP((latent,), EVENT, WIDTHS))
    gebm = GEBM(base, nn.MLP(EVENT, (), WIDTHS, "leaky_relu"))
    for parameter in [*gebm.generator.parameters(), *gebm.energy.parameters()]:
        parameter.requires_grad_(False)
    chain = infer.GHMC(lambda: pyro.sample("z", gebm.latent), **SETTINGS)
    chain.setup_chains(0, num_chains, None)
    return before, lambda num: [chain.advance() for _ in range(num // chain.num_steps)]


def work(host, num_chains, latent):
    """Print milliseconds a step and megabytes."""
    before, run = {"numpyro": numpyro_steps, "pyro": pyro_steps}[host](num_chains, latent)
    run(10)
    num, seconds = 10, 0.0
    while seconds < 1.0:
        start = time.process_time()
        run(num)
        seconds, num = time.process_time() - start, 2 * num
    print(2e3 * seconds / num, peak() - before)


def main():
    """Print one table a host."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--worker", nargs=3, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.worker:
        return work(args.worker[0], int(args.worker[1]), int(args.worker[2]))
    environment = {**os.environ, "XLA_FLAGS": "--xla_cpu_multi_thread_eigen=false intra_op_parallelism_threads=1"}
    environment["PYTHONPATH"] = str(Path(__file__).resolve().parents[1])
    for host in ("numpyro", "pyro"):
        print(f"\n{host}: milliseconds a step (MB)\n")
        print("| chains |" + "".join(f" latent {latent} |" for latent in LATENTS) + "\n|---|" + "---|" * len(LATENTS))
        for num_chains in CHAINS:
            cells = []
            for latent in LATENTS:
                command = [sys.executable, "-W", "ignore", __file__, "--worker", host, str(num_chains), str(latent)]
                done = subprocess.run(command, env=environment, check=True, capture_output=True, text=True)
                ms, megabytes = map(float, done.stdout.split()[-2:])
                cells.append(f" {ms:.3g} ({megabytes:.0f}) |")
            print(f"| {num_chains} |" + "".join(cells), flush=True)


if __name__ == "__main__":
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    main()
