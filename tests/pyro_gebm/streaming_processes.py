"""Run by test_processes.py, alone or as one of several processes: chains, in memory and into a Zarr store."""

import argparse
import datetime
import json
import os

import numpy as np
import pyro
import pyro.distributions as dist
import torch
import torch.distributed as distributed

from pyro_gebm import GEBM, DrawStore, infer, read_draws, to_arviz
from pyro_gebm.infer import VectorizedMCMC, stream_draws


def main():
    """Run the chains, and print what this process saw."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--store")
    parser.add_argument("--kernel", default="GHMC")
    parser.add_argument("--draws", type=int, default=400)
    parser.add_argument("--chains", type=int, default=32)
    parser.add_argument("--resume", action="store_true")
    parser.add_argument("--die-at", type=int, help="the second process ends itself once it wrote so many draws")
    parser.add_argument("--other-data", action="store_true", help="the second process has other data")
    parser.add_argument("--no-group", action="store_true", help="as a program that forgot its process_group")
    args = parser.parse_args()
    torch.set_num_threads(1)
    torch.set_default_dtype(torch.float64)
    size, group = int(os.environ["WORLD_SIZE"]), None
    if size > 1:
        distributed.init_process_group("gloo", timeout=datetime.timedelta(seconds=30))
        group = None if args.no_group else distributed.group.WORLD
    pyro.set_rng_seed(0)
    gebm = GEBM(dist.Normal(torch.zeros(3), 1.0).to_event(1), lambda x: 1.5 * x.square().sum(-1))
    exchange = args.kernel == "ReplicaExchange"

    def model(*data):
        return pyro.sample("z", gebm.latent)

    target = gebm.latent if exchange else model
    kernel = getattr(infer, args.kernel)(target)
    mcmc = VectorizedMCMC(kernel, args.draws, 300, args.chains, disable_progbar=True, process_group=group)
    if args.die_at and int(os.environ["RANK"]) == 1:
        append = DrawStore.append

        def die(self, *groups):
            append(self, *groups)
            if self.num_draws_written >= args.die_at:
                os._exit(9)

        DrawStore.append = die
    if args.store:
        stream_draws(mcmc, args.store, chunk_size=50, resume=args.resume, progress_bar=False)
        draws = read_draws(args.store)
    else:
        mcmc.run(*([torch.ones(3 + int(os.environ["RANK"]))] if args.other_data else []))
        draws = to_arviz(mcmc, gebm)
    z = draws["posterior"]["z"].values
    step_size = None if exchange else float(kernel.state.step_size)
    own = z[mcmc.own_chains]
    starts = np.unique(z[:, 0, 0]).size
    report = {"shape": z.shape, "step_size": step_size, "chains": len(own), "starts": starts}
    print(json.dumps(report | {"mean": float(z.mean()), "variance": float(z.var(axis=(0, 1)).mean())}))
    if size > 1:
        distributed.destroy_process_group()


if __name__ == "__main__":
    main()
