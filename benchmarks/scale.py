"""Training over two processes against one: the same global batch, each process on a core of its own.

    .venv/bin/python benchmarks/scale.py                     ratios of both hosts; nothing else should run
    .venv/bin/python benchmarks/scale.py --hidden 512 512 --batch-size 2048

Energy steps a second of `KALE`; base 100-512-512-784, energy 784-512-512-1. In one process on the first core, then in
two, each on one of the first two cores, which exchange energies and gradients by gloo. The runs alternate.
"""

import argparse
import os
import pathlib
import socket
import statistics
import subprocess
import sys
import time

import numpy as np

DIM, LATENT = 784, 100


def numpyro_rate(args):
    """Energy steps a second in NumPyro."""
    import jax

    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    rank, size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    if size > 1:
        jax.distributed.initialize(f"127.0.0.1:{os.environ['MASTER_PORT']}", size, rank)
    import numpyro.distributions as dist
    import optax

    from numpyro_gebm import KALE, KALEGuide, Pushforward, nn

    keys = jax.random.split(jax.random.key(0), 3)
    prior = dist.Normal(0.0, 1.0).expand([LATENT]).to_event(1)
    base = Pushforward(prior, nn.MLP((LATENT,), (DIM,), args.hidden, rng_key=keys[0]))
    guide = KALEGuide(nn.MLP((DIM,), (), args.hidden, rng_key=keys[1]), penalty=None)
    how = {"mesh": jax.make_mesh((size,), ("data",))} if size > 1 else {}
    kale = KALE(base, guide, optax.adam(1e-4), optax.adam(1e-4), **how)
    return timed(lambda steps: kale.run(keys[2], steps, data(), **settings(args)), args)


def pyro_rate(args):
    """Energy steps a second in Pyro."""
    import pyro.distributions as dist
    import torch
    import torch.distributed as distributed

    from pyro_gebm import KALE, KALEGuide, Pushforward, nn

    torch.set_num_threads(1)
    group = None
    if int(os.environ["WORLD_SIZE"]) > 1:
        distributed.init_process_group("gloo")
        group = distributed.group.WORLD
    prior = dist.Normal(torch.zeros(LATENT), 1.0).to_event(1)
    base = Pushforward(prior, nn.MLP((LATENT,), (DIM,), args.hidden))
    guide = KALEGuide(nn.MLP((DIM,), (), args.hidden), penalty=None)

    def adam(parameters):
        return torch.optim.Adam(parameters, 1e-4)

    kale = KALE(base, guide, adam, adam, process_group=group)
    return timed(lambda steps: kale.run(steps, data(), **settings(args)), args)


def data():
    """Points in many dimensions."""
    return np.random.default_rng(0).normal(size=(4096, DIM)).astype(np.float32)


def settings(args):
    """How every run is made."""
    return {"batch_size": args.batch_size, "progress_bar": False, "settle_draws": 0}


def timed(run, args):
    """Energy steps a second of a run, after one that compiles: five of them for each base step."""
    run(args.steps)
    start = time.perf_counter()
    run(args.steps)
    return 5 * args.steps / (time.perf_counter() - start)


def launch(host, num, rest):
    """The rate in `num` processes."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    flags = "--xla_cpu_multi_thread_eigen=false intra_op_parallelism_threads=1"
    place = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "WORLD_SIZE": str(num), "XLA_FLAGS": flags}
    place |= {"OMP_NUM_THREADS": "1", "JAX_PLATFORMS": "cpu"}
    processes = [
        subprocess.Popen(
            [sys.executable, __file__, "--worker", host, *rest],
            env=os.environ | place | {"RANK": str(rank)},
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            cwd=pathlib.Path(__file__).parents[1],
        )
        for rank in range(num)
    ]
    return float(processes[0].communicate()[0].split()[-1])


def main():
    """Print the ratios."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--hosts", nargs="+", choices=("numpyro", "pyro"), default=("pyro", "numpyro"))
    parser.add_argument("--hidden", nargs="+", type=int, default=(512, 512))
    parser.add_argument("--batch-size", type=int, default=512)
    parser.add_argument("--steps", type=int, default=40, help="base steps that are timed")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--worker", choices=("numpyro", "pyro"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.worker:
        os.sched_setaffinity(0, {sorted(os.sched_getaffinity(0))[int(os.environ["RANK"])]})
        print({"numpyro": numpyro_rate, "pyro": pyro_rate}[args.worker](args))
        return
    rest = [*("--hidden", *map(str, args.hidden)), "--batch-size", str(args.batch_size), "--steps", str(args.steps)]
    print(f"KALE, {args.hidden} hidden units, a batch of {args.batch_size}: energy steps a second\n")
    print("| host | one process | two processes | ratio |\n|---|---|---|---|")
    for host in args.hosts:
        pairs = [[launch(host, num, rest) for num in (1, 2)] for _ in range(args.repeats)]
        one, two = (statistics.median(rates) for rates in zip(*pairs))
        ratio = statistics.median(b / a for a, b in pairs)
        print(f"| {host} | {one:.0f} | {two:.0f} | {ratio:.2f} |", flush=True)


if __name__ == "__main__":
    main()
