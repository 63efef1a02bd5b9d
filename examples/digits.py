"""Train a GEBM on real 8x8 digits, sample it, and compare it with its own base.

    python examples/digits.py --backend numpyro --out out

Writes to the output folder: samples.png (held-out digits, base, GEBM), trace.png, training.png, draws_nuts.nc,
draws_kinetic_langevin.nc and gebm.npz.
"""

import argparse
import importlib
import pathlib
import time

import arviz as az
import matplotlib.pyplot as plt
import numpy as np
from datasets import digits
from features import digit_features

#: Everything that both packages share; only the number of steps is set per package.
#: The strong penalty keeps the joint game stable; the weak one then lets the energy see what the base has missed.
SETTINGS = {
    "latent": 16,
    "hidden": (128, 128),
    "rate": 2e-4,
    "energy_steps": 2,
    "penalty": 0.5,
    "final_penalty": 0.02,
}
#: Kinetic Langevin: units of the latent; one draw is a trajectory of `num_steps` steps.
KINETIC = {"step_size": 0.2, "friction": 1.0, "num_steps": 5}


def main(argv=None):
    """Run the example."""
    args = _parse(argv)
    host = importlib.import_module(f"digits_{args.backend}")
    out = pathlib.Path(args.out)
    out.mkdir(parents=True, exist_ok=True)
    show = not args.no_progress
    images, held_out, labels, _ = digits()
    features = digit_features(images, labels)
    start = time.perf_counter()

    print(f"Training on {len(images)} digits by KALE ({args.backend}) ...", flush=True)
    gebm, results = host.train(images, args.seed, SETTINGS, args.steps, args.final_steps, show, held_out)
    trained = time.perf_counter()
    host.save(gebm, out / "gebm.npz")
    axes = host.plot_losses(*results, labels=("base and energy", "energy alone"))
    axes[0].figure.savefig(out / "training.png", dpi=100)

    print(f"Sampling the latent law: NUTS, {args.chains} chains ...", flush=True)
    sizes = (args.seed, args.warmup, args.samples, args.chains)
    nuts = host.sample_nuts(gebm, *sizes, show)
    print("Sampling the latent law: kinetic Langevin ...", flush=True)
    kinetic = host.sample_kinetic(gebm, *sizes, KINETIC, show)
    sampled = time.perf_counter()
    nuts.to_netcdf(out / "draws_nuts.nc")
    kinetic.to_netcdf(out / "draws_kinetic_langevin.nc")
    plot_traces({"NUTS": nuts, "kinetic Langevin": kinetic}, out / "trace.png")

    for name, draws in (("NUTS", nuts), ("kinetic Langevin", kinetic)):
        print(f"\n{name}:\n{diagnostics(draws)}")
    base, model = host.draw(gebm, args.draws, args.seed)
    plot_samples({"held-out": held_out, "base": base, "GEBM": model}, out / "samples.png")
    print(f"\nDistance to the {len(held_out)} held-out digits ({args.draws} draws, classifier features):")
    print(comparison(host, features, held_out, base, model))
    print(f"\nTraining {trained - start:.0f} s, sampling {sampled - trained:.0f} s. Written to {out}/.")


def _parse(argv):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--backend", choices=("numpyro", "pyro"), default="numpyro")
    parser.add_argument("--out", default="out", help="output folder")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--steps", type=int, help="base steps of joint training")
    parser.add_argument("--final-steps", type=int, help="energy steps on the finished base")
    parser.add_argument("--chains", type=int, default=4)
    parser.add_argument("--warmup", type=int, default=300)
    parser.add_argument("--samples", type=int, default=1000, help="draws per chain")
    parser.add_argument("--draws", type=int, default=4000, help="independent draws for the comparison")
    parser.add_argument("--no-progress", action="store_true")
    args = parser.parse_args(argv)
    host = importlib.import_module(f"digits_{args.backend}")
    args.steps = host.STEPS if args.steps is None else args.steps
    args.final_steps = host.FINAL_STEPS if args.final_steps is None else args.final_steps
    return args


def diagnostics(draws):
    """ArviZ's table of the latents and of E(x), and the number of divergences."""
    latents, energy = draws["posterior"]["z"].values, draws["sample_stats"]["energy_x"].values
    table = az.summary({**{f"z[{i}]": latents[..., i] for i in range(latents.shape[-1])}, "E(x)": energy})
    return f"{table.to_string()}\ndivergences: {int(draws['sample_stats']['diverging'].values.sum())}"


def comparison(host, features, held_out, base, model):
    """The comparison of the GEBM with its own base, as text."""
    rows = [("base", base), ("GEBM", model)]
    lines = ["        MMD^2     Frechet"]
    for name, x in rows:
        mmd2, frechet = host.distances(features(x), features(held_out))
        lines.append(f"{name:5s}  {mmd2:8.5f}  {frechet:8.3f}")
    return "\n".join(lines)


def plot_traces(runs, path):
    """E(x) and the first latent along every chain."""
    figure, axes = plt.subplots(2, len(runs), figsize=(5 * len(runs), 4), squeeze=False, layout="constrained")
    for column, (name, draws) in zip(axes.T, runs.items()):
        for chain in range(draws["posterior"]["z"].shape[0]):
            column[0].plot(draws["sample_stats"]["energy_x"].values[chain], lw=0.5)
            column[1].plot(draws["posterior"]["z"].values[chain, :, 0], lw=0.5)
        column[0].set(title=name, ylabel="E(x)")
        column[1].set(ylabel="z[0]", xlabel="draw")
    figure.savefig(path, dpi=120)
    plt.close(figure)


def plot_samples(samples, path, columns=16, rows=2):
    """A grid of images, a few rows for each set of samples."""
    figure, axes = plt.subplots(len(samples), 1, figsize=(columns * 0.5, len(samples) * rows * 0.6))
    for axis, (name, images) in zip(axes, samples.items()):
        tiles = np.pad(images[: columns * rows], ((0, 0), (1, 0), (1, 0)))
        tiles = np.pad(tiles, ((0, columns * rows - len(tiles)), (0, 0), (0, 0)))
        axis.imshow(np.block([list(tiles[r * columns : (r + 1) * columns]) for r in range(rows)]), cmap="gray")
        axis.set(xticks=[], yticks=[], ylabel=name)
    figure.tight_layout(pad=0.3)
    figure.savefig(path, dpi=120)
    plt.close(figure)


if __name__ == "__main__":
    main()
