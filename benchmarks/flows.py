"""Speed of the KALE flow of the three rings, and memory of MMD² between 10,000 and 10,000 points.

    .venv/bin/python benchmarks/flows.py --reference DIR

DIR is a checkout of https://github.com/pierreglaser/kale-flow, the code of arXiv:2106.08929, and can be left out. The
contenders take the same steps in turns (A B C A B C ...) from the same start, 240 particles and 240 points of the
target, regularization 1e-3, step 1e-4; the table has medians and ratios of medians. Theirs is in single precision.
"""

import argparse
import logging
import pathlib
import statistics
import subprocess
import sys
import time

import jax
import numpy as np
import torch

import numpyro_gebm
import pyro_gebm

REGULARIZATION, STEP_SIZE, SQUARED_BANDWIDTH = 1e-3, 1e-4, 0.05

#: Prints the memory of a process in MB, before and after the MMD² of two samples of 10,000 points.
MEMORY = """
import re, numpy as np
from {package}.divergences import kernels, mmd2
def peak():
    return int(re.search(r"VmHWM:\\s+([0-9]+) kB", open("/proc/self/status").read())[1]) // 1024
x, y = np.random.default_rng(0).normal(size=(2, 10_000, {dim})).astype({dtype!r})
mmd2(x[:100], y[:100])
before = peak()
mmd2(x, y, kernel={kernel})
print(before, peak())
"""


def three_rings():
    """Particles near (0, -.3), and the target: 80 points on each of three circles."""
    angle = np.linspace(0.0, 2.0 * np.pi, 80, endpoint=False)
    circle = 0.3 * np.stack([np.cos(angle), np.sin(angle)], 1)
    target = np.concatenate([circle + centre for centre in ([0.0, 0.0], [0.0, -0.75], [0.0, -1.5])])
    return np.array([0.0, -0.3]) + 0.01 * np.random.default_rng(0).normal(size=(240, 2)), target


def authors(directory):
    """The flow of a checkout of their code, with the settings of their notebook; their own warm starts."""
    sys.path.insert(0, str(pathlib.Path(directory) / "kernel-wasserstein-flows"))
    from kernel_wasserstein_flows import config, gradient_flow, kale, kernels

    config.LOG_LEVELS["gradient_flow"] = logging.ERROR
    particles, target = (torch.from_numpy(z).float() for z in three_rings())
    newton = {"inner_max_iter": 800, "inner_tol": 1e-6, "inner_a": 0.4, "inner_b": 0.8, "optimization_method": "newton"}

    def run(num):
        _, _, (_, records, _) = gradient_flow.gradient_flow(
            max_iter=num,
            lr=STEP_SIZE,
            random_seed=0,
            noise_level_callback=lambda step: 1e-10,
            num_noisy_averages=1,
            generator=lambda: (target, particles.clone()),
            generator_kwargs={},
            kernel=kernels.gaussian_kernel,
            kernel_kwargs={"sigma": 2.0 * SQUARED_BANDWIDTH},
            loss=kale.kale_penalized,
            loss_kwargs={
                "lambda_": REGULARIZATION,
                "inplace": False,
                "input_check": True,
                "dual_gap_tol": 1e-2,
                **newton,
            },
            loss_first_variation=kale.kale_penalized_first_variation,
        )
        return records[-1]["loss"]

    return run


def ours(package, convert):
    """The flow of one of our packages, on arrays made by `convert`."""
    particles, target = map(convert, three_rings())
    kernel = package.divergences.kernels.Gaussian(SQUARED_BANDWIDTH**0.5)

    def run(num):
        settings = {"regularization": REGULARIZATION, "num_steps": num, "step_size": STEP_SIZE, "progress_bar": False}
        return float(package.particle_flows.kale_flow(particles, target, kernel, **settings).losses[-1])

    return run


def memory(package, dim, dtype, kernel):
    """Largest resident memory of a process in MB, before and after MMD² of 10,000 points (Linux)."""
    code = MEMORY.format(package=package, dim=dim, dtype=dtype, kernel=kernel)
    return map(
        int, subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    )


def main():
    """Print both tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=200, help="steps per round, from the start")
    parser.add_argument("--reference", help="a checkout of pierreglaser/kale-flow")
    args = parser.parse_args()
    jax.config.update("jax_enable_x64", True)
    runs = {"authors' code": authors(args.reference)} if args.reference else {}
    for bits in (32, 64):
        runs[f"NumPyro, {bits} bits"] = ours(numpyro_gebm, lambda z, bits=bits: jax.numpy.asarray(z, f"float{bits}"))
        runs[f"Pyro, {bits} bits"] = ours(pyro_gebm, lambda z, bits=bits: torch.tensor(z.astype(f"float{bits}")))
    losses = {name: run(args.steps) for name, run in runs.items()}  # compiles as well
    times = {name: [] for name in runs}
    for _ in range(args.rounds):
        for name, run in runs.items():
            start = time.perf_counter()
            run(args.steps)
            times[name].append(args.steps / (time.perf_counter() - start))
    first = next(iter(runs))
    print(f"\nThree rings, {args.rounds} rounds of {args.steps} steps, {torch.get_num_threads()} threads\n")
    print(f"| contender | steps a second | least to most | times {first} | KALE before step {args.steps} |")
    print("|---|---|---|---|---|")
    for name, values in times.items():
        ratio = statistics.median(values) / statistics.median(times[first])
        spread = f"{min(values):.0f} to {max(values):.0f}"
        print(f"| {name} | {statistics.median(values):.0f} | {spread} | {ratio:.1f} | {losses[name]:.4f} |")
    print("\n| MMD² of 10,000 and 10,000 points | resident MB before | at most |\n|---|---|---|")
    for package in ("numpyro_gebm", "pyro_gebm"):
        for dim, dtype, kernel in ((2, "float64", "kernels.Gaussian()"), (64, "float32", "kernels.Laplace()")):
            before, most = memory(package, dim, dtype, kernel)
            print(
                f"| `{package}`, {kernel.split('.')[1][:-2]}, {dim} coordinates, {dtype} | {before} | {most} |",
                flush=True,
            )


if __name__ == "__main__":
    main()
