"""Run by test_mesh.py, alone or as one of several processes: training, and chains in memory and into a Zarr store."""

import argparse
import json
import os

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import optax
from numpyro.infer import MCMC, NUTS

from numpyro_gebm import GEBM, KALE, KALEGuide, Pushforward, infer, nn, read_draws, to_arviz
from numpyro_gebm.infer import sharded, stream_draws


def train(mesh, args):
    """Curves and parameters of a short training."""
    keys = jax.random.split(jax.random.key(0), 3)
    prior = dist.Normal(0.0, 1.0).expand([2]).to_event(1)
    base = Pushforward(prior, nn.MLP((2,), (3,), (16,), rng_key=keys[0]))
    guide = KALEGuide(nn.MLP((3,), (), (16,), rng_key=keys[1]))
    kale = KALE(base, guide, optax.adam(1e-3), optax.adam(1e-3), energy_steps=2, noise_factor=2, mesh=mesh)
    data = np.random.default_rng(0).normal(size=(256, 3)) + 1.0
    how = {"checkpoint_dir": args.checkpoints, "checkpoint_every": 10} if args.checkpoints else {}
    if args.resume:
        how["resume_from"] = args.checkpoints
    result = kale.run(keys[2], args.steps, data, batch_size=64, progress_bar=False, **how)
    arrays = jax.tree.leaves([list(result.losses), result.state.base, result.state.energy, result.gebm.log_partition])
    return np.concatenate([np.ravel(array) for array in arrays])


def sample(mesh, args):
    """Draws of all chains."""
    gebm = GEBM(dist.Normal(jnp.zeros(3), 1.0).to_event(1), lambda x: 1.5 * jnp.square(x).sum())

    def model():
        return numpyro.sample("z", gebm.latent)

    targets = {"ReplicaExchange": gebm.latent, "NUTS": model}
    kernel = (NUTS if args.kernel == "NUTS" else getattr(infer, args.kernel))(targets.get(args.kernel, model))
    how = "vectorized" if mesh is None else sharded(mesh)
    mcmc = MCMC(
        kernel,
        num_warmup=300,
        num_samples=args.draws,
        num_chains=args.chains,
        chain_method=how,
        progress_bar=False,
    )
    if args.store:
        key = jax.random.key(3)
        stream_draws(mcmc, args.store, rng_key=key, chunk_size=50, resume=args.resume, progress_bar=False)
        return read_draws(args.store)
    mcmc.run(jax.random.key(3))
    return to_arviz(mcmc, gebm)


def main():
    """Train, or run the chains; save and print what this process saw."""
    parser = argparse.ArgumentParser()
    parser.add_argument("out")
    parser.add_argument("--kernel", help="sample by it; else train")
    parser.add_argument("--store")
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--draws", type=int, default=400)
    parser.add_argument("--chains", type=int, default=32)
    parser.add_argument("--checkpoints")
    parser.add_argument("--no-mesh", action="store_true", help="as a program that forgot it")
    parser.add_argument("--resume", action="store_true")
    args = parser.parse_args()
    jax.config.update("jax_enable_x64", True)
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    rank, size, mesh = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"]), None
    if size > 1:
        address = f"127.0.0.1:{os.environ['MASTER_PORT']}"
        jax.distributed.initialize(address, size, rank, heartbeat_timeout_seconds=20)
    if size > 1 or jax.device_count() > 1:
        mesh = jax.make_mesh((jax.device_count(),), ("data",))
    mesh = None if args.no_mesh else mesh
    if args.kernel is None:
        np.save(f"{args.out}-{rank}.npy", train(mesh, args))
        return
    z = sample(mesh, args)["posterior"]["z"].values
    np.save(f"{args.out}-{rank}.npy", z)
    print(json.dumps({"mean": float(z.mean()), "variance": float(z.var(axis=(0, 1)).mean())}))


if __name__ == "__main__":
    main()
