"""Train a GEBM on digits and draw from it, by as many processes as start this script, on one machine or on many.

    python examples/scale/run.py --backend numpyro                                # all devices of one process
    torchrun --nproc-per-node 2 examples/scale/run.py --backend pyro              # two processes, a device each
    sbatch examples/scale/slurm_numpyro.sh                                        # as JAX finds them on a cluster

Start it again with the same --out after a failure, with as many processes as there are then: training goes on from its
last checkpoint, and draws from the last chunk. `out/draws.zarr` has the latents, `out/x.zarr` the images.
"""

import argparse
import os
import pathlib

import numpy as np


def digits():
    """Images of 8x8 pixels in [-1, 1]."""
    from sklearn.datasets import load_digits

    return (load_digits().data / 8.0 - 1.0).astype(np.float32)


def several():
    """Whether this is one of several processes, by what torchrun, SLURM, Kubernetes or a person has set."""
    return any(int(os.environ.get(name, 1)) > 1 for name in ("WORLD_SIZE", "SLURM_NTASKS", "JAX_NUM_PROCESSES"))


def resumed(folder):
    """Arguments that let training go on from a folder."""
    how = {"checkpoint_dir": folder, "checkpoint_every": 50}
    return how | ({"resume_from": folder} if any(pathlib.Path(folder).glob("step-*")) else {})


def run_numpyro(args):
    """Train, draw and decode in NumPyro."""
    import jax
    import numpyro
    import numpyro.distributions as dist
    import optax
    from numpyro.infer import MCMC

    if several():
        if jax.config.jax_platforms == "cpu":
            jax.config.update("jax_cpu_collectives_implementation", "gloo")
        names = {"num_processes": "JAX_NUM_PROCESSES", "process_id": "JAX_PROCESS_ID"}  # where no cluster is found
        given = {name: int(os.environ[variable]) for name, variable in names.items() if variable in os.environ}
        jax.distributed.initialize(heartbeat_timeout_seconds=30, **given)
    from numpyro_gebm import KALE, KALEGuide, Pushforward, decode_to_zarr, diagnose, infer, nn

    first, mesh = jax.process_index() == 0, jax.make_mesh((jax.device_count(),), ("data",))
    keys = jax.random.split(jax.random.key(args.seed), 4)
    base = Pushforward(dist.Normal(0.0, 1.0).expand([16]).to_event(1), nn.MLP((16,), (64,), rng_key=keys[0]))
    guide = KALEGuide(nn.MLP((64,), (), activation="leaky_relu", rng_key=keys[1]))
    optim = optax.adam(1e-4, b1=0.5)
    kale = KALE(base, guide, optim, optim, mesh=mesh)
    gebm = kale.run(keys[2], args.steps, digits(), batch_size=args.batch_size, **resumed(args.out / "training")).gebm

    kernel = infer.GHMC(lambda: numpyro.sample("z", gebm.latent))
    sizes = {"num_warmup": 300, "num_samples": args.draws, "num_chains": args.chains}
    mcmc = MCMC(kernel, **sizes, chain_method=infer.sharded(mesh), progress_bar=False)
    draws = infer.stream_draws(mcmc, args.out / "draws.zarr", rng_key=keys[3], chunk_size=200, resume=True)
    if not (args.out / "x.zarr").exists():
        decode_to_zarr(gebm, draws["posterior"]["z"], args.out / "x.zarr")
    if first:
        print(diagnose(draws))


def run_pyro(args):
    """Train, draw and decode in Pyro."""
    import pyro
    import pyro.distributions as dist
    import torch
    import torch.distributed as distributed

    from pyro_gebm import KALE, KALEGuide, Pushforward, decode_to_zarr, diagnose, infer, nn

    group, gpu = None, torch.cuda.is_available()
    if gpu:
        torch.set_default_device(f"cuda:{os.environ.get('LOCAL_RANK', 0)}")
    if several():
        distributed.init_process_group("cpu:gloo,cuda:nccl" if gpu else "gloo")
        group = distributed.group.WORLD
    pyro.set_rng_seed(args.seed)
    base = Pushforward(dist.Normal(torch.zeros(16), 1.0).to_event(1), nn.MLP((16,), (64,)))
    guide = KALEGuide(nn.MLP((64,), (), activation="leaky_relu"))

    def adam(parameters):
        return torch.optim.Adam(parameters, 1e-4, betas=(0.5, 0.999))

    kale = KALE(base, guide, adam, adam, process_group=group)
    gebm = kale.run(args.steps, digits(), batch_size=args.batch_size, **resumed(args.out / "training")).gebm

    kernel = infer.GHMC(lambda: pyro.sample("z", gebm.latent))
    mcmc = infer.VectorizedMCMC(kernel, args.draws, 300, args.chains, process_group=group)
    draws = infer.stream_draws(mcmc, args.out / "draws.zarr", chunk_size=200, resume=True)
    if not (args.out / "x.zarr").exists():
        decode_to_zarr(gebm, draws["posterior"]["z"], args.out / "x.zarr", process_group=group)
    if group is None or distributed.get_rank() == 0:
        print(diagnose(draws))
    if group is not None:
        distributed.destroy_process_group()


def main():
    """Run either host."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--backend", choices=("numpyro", "pyro"), default="numpyro")
    parser.add_argument("--out", type=pathlib.Path, default=pathlib.Path("out/scale"))
    parser.add_argument("--steps", type=int, default=1000, help="base steps")
    parser.add_argument("--batch-size", type=int, default=512, help="of all processes together")
    parser.add_argument("--chains", type=int, default=64, help="of all processes together")
    parser.add_argument("--draws", type=int, default=1000, help="of each chain")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    {"numpyro": run_numpyro, "pyro": run_pyro}[args.backend](args)


if __name__ == "__main__":
    main()
