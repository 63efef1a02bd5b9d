"""How near to the data chains are, against the gradients they took: kernels and inverse temperatures.

    .venv/bin/python benchmarks/image_curves.py --out out/image_curves

Chains start at draws of the prior and have no warm-up: step size 0.1 / sqrt(beta), twice that of overdamped kernels,
friction 1. "SMC" are draws of `infer.SMC`, "importance" are 50,000 draws of the prior resampled by their weights; both
are shown at the right end. "descent" is ULA without its noise. Rows that are in the folder are not computed again.
"""

import argparse
import json
import pathlib
import time
from functools import partial

import matplotlib.pyplot as plt
import numpy as np
import pyro
import torch

from pyro_gebm import infer, load_features, load_pretrained, metrics
from pyro_gebm.dynamics.steps import overdamped_move, value_and_grad

#: Numbers of gradients at which chains are looked at.
LOOKS = (0, 5, 10, 20, 40, 70, 100, 200, 400, 700, 1000)
#: Gradients of a draw, and what makes the kernel of a step size.
KERNELS = {
    "ULA": (1, lambda h: partial(infer.ULA, step_size=2 * h)),
    "kinetic Langevin": (1, lambda h: partial(infer.KineticLangevin, step_size=h, friction=1.0, num_steps=1)),
    "GHMC": (1, lambda h: partial(infer.GHMC, step_size=h, friction=1.0, num_steps=1)),
    "MALT": (5, lambda h: partial(infer.MALT, step_size=h, friction=1.0, trajectory_length=5 * h)),
    "Ex2MCMC": (1, lambda h: partial(infer.Ex2MCMC, step_size=2 * h)),
}
METHODS = (*KERNELS, "descent", "SMC", "importance")


def chains(gebm, name, num, looks):
    """Latents at every look, shape `(looks, num, 32)`."""
    beta, latent = float(gebm.inverse_temperature), gebm.latent
    h = 0.1 / max(beta, 1.0) ** 0.5
    if name == "descent":
        return descent(latent, 2 * h, num, looks)
    gradients, make = KERNELS[name]
    run = infer.ShortRun(make(h), num_steps=looks[-1] // gradients)
    z, steps = run.run(latent, num, record_every=5 // gradients, progress_bar=False)
    return z[np.searchsorted(steps * gradients, looks)]


def descent(latent, h, num, looks):
    """Gradient descent on the potential from draws of the prior."""
    z, found = latent.gebm.latent_prior.sample((num,)), []
    for step in range(looks[-1] + 1):
        if step in looks:
            found.append(z)
        _, grad = value_and_grad(lambda z: -latent.log_prob(z), z)
        z = overdamped_move(z, grad, torch.zeros_like(z), h)
    return torch.stack(found)


def importance(gebm, num):
    """Draws of the prior resampled by their weights, and the weights' effective sample size."""
    z = gebm.latent_prior.sample((50_000,))
    log_weight = torch.cat([gebm.log_weight(gebm.decode(part)) for part in z.split(5000)]).double()
    weight = (log_weight - log_weight.max()).exp()
    return z[torch.multinomial(weight, num, True)], float(weight.sum() ** 2 / (weight**2).sum())


@torch.no_grad()
def row(gebm, features, name, num, looks):
    """Distances at every look."""
    start, found = time.perf_counter(), {"ess": None}
    if name == "SMC":
        z = infer.SMC(4096).run(gebm.latent, progress_bar=False).z[:num][None]
    elif name == "importance":
        z, found["ess"] = importance(gebm, num)
        z = z[None]
    else:
        z = chains(gebm, name, num, looks)
    found["seconds"], reference = time.perf_counter() - start, features.reference[:num].double()
    for key in ("frechet", "kernel", "kernel_error", "precision", "recall", "coverage"):
        found[key] = []
    for part in z:
        x = features.network(gebm.decode(part)).double()
        found["frechet"].append(float(metrics.frechet_distance(x, reference)))
        kernel, near = metrics.kernel_distance(x, reference), metrics.precision_recall(x, reference)
        values = (*kernel, *near, metrics.density_coverage(x, reference).coverage)
        for key, value in zip(("kernel", "kernel_error", "precision", "recall", "coverage"), values):
            found[key].append(float(value))
    return found


def plot(rows, betas, looks, path):
    """Fréchet distance and recall against gradients."""
    figure, axes = plt.subplots(2, len(betas), figsize=(3.2 * len(betas), 5), sharex=True, sharey="row", squeeze=False)
    for column, beta in zip(axes.T, betas):
        for i, name in enumerate(METHODS):
            found = rows.get((name, beta))
            if found is None:
                continue
            for axis, key in zip(column, ("frechet", "recall")):
                if len(found[key]) > 1:
                    axis.plot(looks, found[key], label=name, color=f"C{i}", lw=1.3)
                else:
                    axis.plot(looks[-1] * 1.3, found[key][0], "*<"[name == "SMC"], label=name, color=f"C{i}")
        column[0].set(title=f"β = {beta:g}", xscale="symlog", yscale="log")
        column[1].set(xlabel="gradients a chain", ylim=(0, 1))
    axes[0, 0].set_ylabel("Fréchet distance")
    axes[1, 0].set_ylabel("recall")
    handles, labels = axes[0, 0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="lower center", ncols=4, fontsize=8, frameon=False)
    figure.tight_layout(rect=(0, 0.09, 1, 1))
    figure.savefig(path, dpi=90)
    plt.close(figure)


def main(argv=None):
    """Run what is missing, print the table and draw the picture."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=pathlib.Path, default=pathlib.Path("out/image_curves"))
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=METHODS)
    parser.add_argument("--betas", type=float, nargs="+", default=[1.0, 3.0, 10.0])
    parser.add_argument("--chains", type=int, default=1000)
    parser.add_argument("--gradients", type=int, default=LOOKS[-1])
    args = parser.parse_args(argv)
    looks = [look for look in LOOKS if look <= args.gradients]
    args.out.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(1)
    features, rows = load_features("fashion_mnist"), {}
    for beta in args.betas:
        for name in args.methods:
            path = args.out / f"{name.replace(' ', '_')}-{beta:g}-{args.chains}-{looks[-1]}.json"
            if not path.exists():
                pyro.set_rng_seed(0)
                gebm = load_pretrained("fashion_mnist").temper(beta)
                path.write_text(json.dumps(row(gebm, features, name, args.chains, looks)))
            rows[name, beta] = found = json.loads(path.read_text())
            distances = " ".join(f"{value:.1f}" for value in found["frechet"])
            print(
                f"| {beta:g} | {name} | {distances} | {found['recall'][-1]:.2f} | {found['seconds']:.0f} |", flush=True
            )
    plot(rows, args.betas, looks, args.out / "image_curves.png")


if __name__ == "__main__":
    main()
