"""Run by test_processes.py, alone or as one of several processes: a short training by KALE."""

import argparse
import os
import time

import numpy as np
import pyro
import pyro.distributions as dist
import torch
import torch.distributed as distributed

from pyro_gebm import KALE, KALEGuide, Pushforward, nn


def networks(seed):
    """Base and guide; every process starts with parameters of its own."""
    pyro.set_rng_seed(seed)
    prior = dist.Normal(torch.zeros(2), 1.0).to_event(1)
    return Pushforward(prior, nn.MLP((2,), (3,), (16,))), KALEGuide(nn.MLP((3,), (), (16,)), penalty=None)


def main():
    """Train, and save curves and parameters."""
    parser = argparse.ArgumentParser()
    parser.add_argument("out")
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--rows", type=int, default=256, help="of the data; the second process has one less if odd")
    parser.add_argument("--checkpoints")
    parser.add_argument("--resume", action="store_true")
    parser.add_argument("--die-at", type=float, help="the second process ends itself after so many seconds")
    args = parser.parse_args()
    torch.set_default_dtype(torch.float64)
    torch.set_num_threads(1)
    rank, size = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
    group = None
    if size > 1:
        import datetime

        distributed.init_process_group("gloo", timeout=datetime.timedelta(seconds=30))
        group = distributed.group.WORLD
    base, guide = networks(rank)
    pyro.set_rng_seed(5 + rank)

    def adam(parameters):
        return torch.optim.Adam(parameters, 1e-3)

    kale = KALE(base, guide, adam, adam, energy_steps=2, noise_factor=2, process_group=group)
    pyro.set_rng_seed(7 + rank)
    data = np.random.default_rng(0).normal(size=(args.rows - (args.rows % 2) * rank, 3)) + 1.0
    if args.die_at is not None and rank == 1:
        import threading

        threading.Thread(target=lambda: (time.sleep(args.die_at), os._exit(9)), daemon=True).start()
    how = {"checkpoint_dir": args.checkpoints, "checkpoint_every": 10} if args.checkpoints else {}
    if args.resume:
        how["resume_from"] = args.checkpoints
    result = kale.run(args.steps, data, batch_size=args.batch_size, progress_bar=False, validation=data[:40], **how)
    own = [p.detach().flatten() for p in [*base.generator.parameters(), *guide.energy.parameters()]]
    values = torch.cat([*own, *result.losses, result.gebm.log_partition.reshape(1)])
    np.save(f"{args.out}-{rank}.npy", values.numpy())
    if group is not None:
        distributed.destroy_process_group()


if __name__ == "__main__":
    main()
