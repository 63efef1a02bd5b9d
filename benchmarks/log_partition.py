"""log_partition against its exact value: is the standard error right?

    .venv/bin/python benchmarks/log_partition.py --backend numpyro
    .venv/bin/python benchmarks/log_partition.py --method importance --dims 100 --a 3

The base N(0, I) in d dimensions tilted by a |x|^2 / 2, for which log Z = -d/2 log(1 + a). Of the seeded runs with
the defaults: the largest z-score (error over standard error), the standard deviation of the z-scores (1 if the
standard errors are right), the mean of the estimates of Z over Z with its standard error (1: no bias), the root mean
square error of log Z.
"""

import argparse
import math
import time

import numpy as np


def numpyro_runs(dim, a, method):
    """A function from a seed to a `LogPartition`."""
    import jax
    import jax.numpy as jnp
    import numpyro.distributions as dist

    from numpyro_gebm import GEBM, log_partition

    gebm = GEBM(dist.Normal(jnp.zeros(dim), 1.0).to_event(1), lambda x: 0.5 * a * (x**2).sum())
    return lambda seed: log_partition(gebm, method, rng_key=jax.random.key(seed), progress_bar=False)


def pyro_runs(dim, a, method):
    """A function from a seed to a `LogPartition`."""
    import pyro
    import pyro.distributions as dist
    import torch

    from pyro_gebm import GEBM, log_partition

    gebm = GEBM(dist.Normal(torch.zeros(dim), 1.0).to_event(1), lambda x: 0.5 * a * x.square().sum(-1))

    def run(seed):
        pyro.set_rng_seed(seed)
        return log_partition(gebm, method, progress_bar=False)

    return run


def main():
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--backend", choices=("numpyro", "pyro"), default="numpyro")
    parser.add_argument("--method", choices=("smc", "ais", "importance"), default="smc")
    parser.add_argument("--dims", nargs="+", type=int, default=[1, 10, 100])
    parser.add_argument("--a", nargs="+", type=float, default=[1.0, 3.0, 30.0])
    parser.add_argument("--seeds", type=int, default=50)
    args = parser.parse_args()
    make_runs = {"numpyro": numpyro_runs, "pyro": pyro_runs}[args.backend]
    print(f"{args.backend}, {args.method}, {args.seeds} seeds\n")
    print("| d | a | largest z | deviation of z | mean of Z^/Z | error of log Z | seconds a run |")
    print("|---|---|---|---|---|---|---|")
    for dim in args.dims:
        for a in args.a:
            run, start = make_runs(dim, a, args.method), time.perf_counter()
            estimates = [run(seed) for seed in range(args.seeds)]
            seconds = (time.perf_counter() - start) / args.seeds
            errors = np.array([e.value for e in estimates]) + 0.5 * dim * math.log1p(a)
            z, ratios = errors / [e.std_error for e in estimates], np.exp(errors)
            bias = f"{ratios.mean():.3f} ± {ratios.std(ddof=1) / math.sqrt(args.seeds):.3f}"
            row = [dim, f"{a:g}", f"{np.abs(z).max():.2f}", f"{z.std(ddof=1):.2f}", bias]
            row += [f"{np.sqrt(np.mean(errors**2)):.3f}", f"{seconds:.2f}"]
            print(f"| {' | '.join(map(str, row))} |", flush=True)


if __name__ == "__main__":
    main()
