"""Two processes against one: training, sampling, and draws on disk; each process on a core of its own.

    .venv/bin/python benchmarks/scale.py train               ratios of both hosts; nothing else should run
    .venv/bin/python benchmarks/scale.py train --batch-size 4096
    .venv/bin/python benchmarks/scale.py sample              128 chains of GHMC
    .venv/bin/python benchmarks/scale.py store               64 chains x 20,000 draws x 100 latents, one Zarr store
    .venv/bin/python benchmarks/scale.py exchange            sums of 4 bytes to 16 MB between two processes

Energy steps a second of `KALE` with the same global batch, and draws a second of all chains after the warm-up; base
100-512-512-784, energy 784-512-512-1. In one process on the first core, then in two, each on one of the first two
cores, which exchange by gloo. The runs alternate. `store` prints seconds, megabytes on disk, and the largest resident
memory of each process and of one that opens the store and diagnoses it.
"""

import argparse
import json
import os
import pathlib
import resource
import socket
import statistics
import subprocess
import sys
import tempfile
import time

import numpy as np

DIM, LATENT = 784, 100
#: Bytes that are exchanged.
SIZES = (4, 1 << 16, 1 << 20, 1 << 22, 1 << 24)


def numpyro_networks(args):
    """Base, energy, and the mesh of all processes, None for one."""
    import jax

    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    rank, size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    if size > 1:
        jax.distributed.initialize(f"127.0.0.1:{os.environ['MASTER_PORT']}", size, rank)
    import numpyro.distributions as dist

    from numpyro_gebm import Pushforward, nn

    keys = jax.random.split(jax.random.key(0))
    prior = dist.Normal(0.0, 1.0).expand([LATENT]).to_event(1)
    base = Pushforward(prior, nn.MLP((LATENT,), (DIM,), args.hidden, rng_key=keys[0]))
    energy = nn.MLP((DIM,), (), args.hidden, rng_key=keys[1])
    return base, energy, jax.make_mesh((size,), ("data",)) if size > 1 else None


def pyro_networks(args):
    """Base, energy, and the group of all processes, None for one."""
    import pyro
    import pyro.distributions as dist
    import torch
    import torch.distributed as distributed

    from pyro_gebm import Pushforward, nn

    torch.set_num_threads(1)
    pyro.set_rng_seed(0)
    group = None
    if int(os.environ["WORLD_SIZE"]) > 1:
        distributed.init_process_group("gloo")
        group = distributed.group.WORLD
    prior = dist.Normal(torch.zeros(LATENT), 1.0).to_event(1)
    base = Pushforward(prior, nn.MLP((LATENT,), (DIM,), args.hidden))
    return base, nn.MLP((DIM,), (), args.hidden), group


def numpyro_train(args):
    """Energy steps a second in NumPyro."""
    import jax
    import optax

    from numpyro_gebm import KALE, KALEGuide

    base, energy, mesh = numpyro_networks(args)
    kale = KALE(base, KALEGuide(energy, penalty=None), optax.adam(1e-4), optax.adam(1e-4), mesh=mesh)
    return timed(lambda steps: kale.run(jax.random.key(1), steps, data(), **settings(args)), args)


def pyro_train(args):
    """Energy steps a second in Pyro."""
    import torch

    from pyro_gebm import KALE, KALEGuide

    base, energy, group = pyro_networks(args)

    def adam(parameters):
        return torch.optim.Adam(parameters, 1e-4)

    kale = KALE(base, KALEGuide(energy, penalty=None), adam, adam, process_group=group)
    return timed(lambda steps: kale.run(steps, data(), **settings(args)), args)


def numpyro_sample(args):
    """Draws a second of all chains in NumPyro; not by `MCMC.run`, which compiles its loop anew every time."""
    import jax
    import numpyro

    from numpyro_gebm import GEBM, infer
    from numpyro_gebm.devices import Devices

    base, energy, mesh = numpyro_networks(args)
    latent = GEBM(base, energy).latent
    kernel = infer.GHMC(lambda: numpyro.sample("z", latent))
    keys = Devices(mesh).placed_rows(jax.random.split(jax.random.key(1), args.chains))
    state = kernel.init(keys, 50, None, (), {})
    loop = jax.jit(lambda num, state: jax.lax.fori_loop(0, num, lambda i, s: kernel.sample(s, (), {}), state))
    state = [kernel.end_warmup(loop(50, state))]

    def run(steps):
        state[0] = jax.block_until_ready(loop(steps, state[0]))

    return timed(run, args) / 5 * args.chains


def pyro_sample(args):
    """Draws a second of all chains in Pyro."""
    import pyro

    from pyro_gebm import GEBM, infer

    base, energy, group = pyro_networks(args)
    latent = GEBM(base, energy).latent
    kernel = infer.GHMC(lambda: pyro.sample("z", latent))
    mcmc = infer.VectorizedMCMC(kernel, args.steps, 50, args.chains, process_group=group)
    mcmc.start()
    mcmc.warm_up()
    return timed(mcmc.draw, args) / 5 * args.chains


def numpyro_store(args):
    """Seconds that a stream into a store takes."""
    import jax
    import jax.numpy as jnp
    import numpyro
    import numpyro.distributions as dist
    from numpyro.infer import MCMC

    from numpyro_gebm import infer

    _, _, mesh = numpyro_networks(args)
    kernel = infer.GHMC(lambda: numpyro.sample("z", dist.Normal(jnp.zeros(LATENT), 1.0).to_event(1)))
    how = "vectorized" if mesh is None else infer.sharded(mesh)
    mcmc = MCMC(kernel, num_warmup=200, num_samples=args.draws, num_chains=64, chain_method=how)
    start = time.perf_counter()
    infer.stream_draws(mcmc, args.path, rng_key=jax.random.key(0), progress_bar=False)
    return time.perf_counter() - start


def pyro_store(args):
    """Seconds that a stream into a store takes."""
    import pyro
    import pyro.distributions as dist
    import torch

    from pyro_gebm import infer

    _, _, group = pyro_networks(args)
    kernel = infer.GHMC(lambda: pyro.sample("z", dist.Normal(torch.zeros(LATENT), 1.0).to_event(1)))
    mcmc = infer.VectorizedMCMC(kernel, args.draws, 200, 64, process_group=group)
    start = time.perf_counter()
    infer.stream_draws(mcmc, args.path, progress_bar=False)
    return time.perf_counter() - start


def numpyro_exchange(args):
    """Seconds of sums of vectors over the processes, by bytes."""
    import jax
    from jax.sharding import PartitionSpec

    _, _, mesh = numpyro_networks(args)
    rows = PartitionSpec("data")

    def sums(x):
        def body(i, x):
            return jax.lax.psum(x, "data") / 2

        return jax.lax.fori_loop(0, args.steps, body, x)

    found = {}
    for size in SIZES:
        ones = np.ones(2 * size // 4, np.float32)
        x = jax.make_array_from_callback(ones.shape, jax.sharding.NamedSharding(mesh, rows), ones.__getitem__)
        run = jax.jit(jax.shard_map(sums, mesh=mesh, in_specs=rows, out_specs=rows, check_vma=False))
        jax.block_until_ready(run(x))
        start = time.perf_counter()
        jax.block_until_ready(run(x))
        found[size] = (time.perf_counter() - start) / args.steps
    return found


def pyro_exchange(args):
    """Seconds of sums of vectors over the processes, by bytes."""
    import torch
    import torch.distributed as distributed

    pyro_networks(args)
    found = {}
    for size in SIZES:
        x = torch.ones(size // 4)
        for timed_now in (False, True):
            start = time.perf_counter()
            for _ in range(args.steps):
                distributed.all_reduce(x)
            if timed_now:
                found[size] = (time.perf_counter() - start) / args.steps
    return found


def read(args):
    """Open a store in xarray and ArviZ, ten latents at once; whether they converged."""
    import arviz
    import xarray

    opened = xarray.open_zarr(args.path, group="posterior", chunks=None, consolidated=False)["z"]
    assert opened.shape == (64, args.draws, LATENT)
    rhat = [arviz.rhat(opened[:, :, i : i + 10].to_dataset(name="z"))["z"].values for i in range(0, LATENT, 10)]
    return float(np.max(rhat))


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


def launch(work, num, rest, together=True):
    """What the processes of a piece of work print: a number, and their largest memory in megabytes.

    Unless they work together, none knows of the others.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    flags = "--xla_cpu_multi_thread_eigen=false intra_op_parallelism_threads=1"
    place = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "XLA_FLAGS": flags}
    place["WORLD_SIZE"] = str(num if together else 1)
    place |= {"OMP_NUM_THREADS": "1", "JAX_PLATFORMS": "cpu"}
    processes = [
        subprocess.Popen(
            [sys.executable, __file__, *rest, "--worker", work],
            env=os.environ | place | {"RANK": str(rank)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            cwd=pathlib.Path(__file__).parents[1],
        )
        for rank in range(num)
    ]
    outs = [process.communicate() for process in processes]
    if any(process.returncode for process in processes):
        raise RuntimeError(f"{work} failed: {outs}")
    return [json.loads(out.splitlines()[-1]) for out, _ in outs]


def compare(args, rest):
    """Print the ratios of training or sampling."""
    what = {"train": f"a batch of {args.batch_size}: energy steps", "sample": f"{args.chains} chains: draws"}
    print(f"{args.hidden} hidden units, {what[args.what]} a second\n")
    print("| host | one process | two processes | ratio | two that know nothing of each other, half each: ratio |")
    print("|---|---|---|---|---|")
    half = [*rest, "--chains", str(args.chains // 2), "--batch-size", str(args.batch_size // 2)]
    for host in args.hosts:
        work, rates = f"{host}_{args.what}", []
        for _ in range(args.repeats):
            one, two = (launch(work, num, rest)[0]["value"] for num in (1, 2))
            apart = [each["value"] for each in launch(work, 2, half, together=False)]
            rates.append((one, two, sum(apart) / (2 if args.what == "train" else 1)))
        one, two, _ = map(statistics.median, zip(*rates))
        ratio, best = (statistics.median(rate[i] / rate[0] for rate in rates) for i in (1, 2))
        print(f"| {host} | {one:.0f} | {two:.0f} | {ratio:.2f} | {best:.2f} |", flush=True)


def exchange(args, rest):
    """Print how long sums over two processes take."""
    print(f"| host | {' | '.join(f'{size} bytes' for size in SIZES)} |\n|---|{'---|' * len(SIZES)}")
    for host in args.hosts:
        seconds = launch(f"{host}_exchange", 2, rest)[0]["value"]
        print(f"| {host} | {' | '.join(f'{value * 1e3:.2f} ms' for value in seconds.values())} |", flush=True)


def store(args, rest):
    """Print what two processes and a reader take."""
    columns = ("host", "seconds", "MB on disk", "MB of each writer", "MB of a reader", "largest R-hat")
    print(f"| {' | '.join(columns)} |\n|{'---|' * len(columns)}")
    for host in args.hosts:
        with tempfile.TemporaryDirectory() as folder:
            path = pathlib.Path(folder) / "draws.zarr"
            writers = launch(f"{host}_store", 2, [*rest, "--path", str(path)])
            (reader,) = launch("read", 1, [*rest, "--path", str(path)])
            size = sum(file.stat().st_size for file in path.rglob("*") if file.is_file()) / 1e6
        memory = ", ".join(f"{writer['memory']:.0f}" for writer in writers)
        print(
            f"| {host} | {writers[0]['value']:.0f} | {size:.0f} | {memory} | {reader['memory']:.0f} | "
            f"{reader['value']:.4f} |",
            flush=True,
        )


def main():
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("train", "sample", "store", "exchange"))
    parser.add_argument("--hosts", nargs="+", choices=("numpyro", "pyro"), default=("pyro", "numpyro"))
    parser.add_argument("--hidden", nargs="+", type=int, default=(512, 512))
    parser.add_argument("--batch-size", type=int, default=512)
    parser.add_argument("--chains", type=int, default=128)
    parser.add_argument("--draws", type=int, default=20_000)
    parser.add_argument("--steps", type=int, default=40, help="base steps, or draws of each chain, that are timed")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--path", help=argparse.SUPPRESS)
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.worker:
        os.sched_setaffinity(0, {sorted(os.sched_getaffinity(0))[int(os.environ["RANK"])]})
        value = globals()[args.worker](args)
        memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3
        print(json.dumps({"value": value, "memory": memory}))
        torch = sys.modules.get("torch")
        if torch is not None and torch.distributed.is_initialized():
            torch.distributed.destroy_process_group()
        return
    names = ("batch_size", "chains", "draws", "steps")
    rest = [args.what, "--hidden", *map(str, args.hidden)]
    rest += [text for name in names for text in (f"--{name.replace('_', '-')}", str(getattr(args, name)))]
    {"store": store, "exchange": exchange}.get(args.what, compare)(args, rest)


if __name__ == "__main__":
    main()
