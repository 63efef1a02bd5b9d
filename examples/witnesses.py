"""Divergences and their witnesses in pictures: f-divergences, MMD, and KALE over an RKHS between the two.

    python examples/witnesses.py --backend numpyro --out out/witnesses

One figure for each idea: the witness of the MMD; divergences of two points and of two rings that move apart; the
witness of KALE from the MMD's to the log-ratio of the KL; KALE of a collapsed and of a spread model; KALE of laws that
converge weakly. Prints the two limits of KALE as a table.
"""

import argparse
import importlib
import math
import pathlib

import matplotlib.pyplot as plt
import numpy as np


def main(argv=None):
    """Draw all figures and print the table."""
    args = _parse(argv)
    divergences = load(args.backend).divergences
    out = pathlib.Path(args.out)
    out.mkdir(parents=True, exist_ok=True)
    for name, draw in FIGURES.items():
        figure = draw(divergences, args.samples)
        figure.savefig(out / f"{name}.png", dpi=90)
        plt.close(figure)
        print(f"{out / name}.png", flush=True)
    print(f"\nKALE of N(1, 1) and N(0, 1), {args.backend}:\n")
    print(limits(divergences, args.limit_samples))


def load(backend):
    """The package of a backend; JAX in double precision, which small regularizations need."""
    if backend == "numpyro":
        importlib.import_module("jax").config.update("jax_enable_x64", True)
    return importlib.import_module(f"{backend}_gebm")


def _parse(argv):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--backend", choices=("numpyro", "pyro"), default="numpyro")
    parser.add_argument("--samples", type=int, default=300, help="points of each sample in the figures")
    parser.add_argument("--limit-samples", type=int, nargs="+", default=[100, 500, 2000], help="points in the table")
    parser.add_argument("--out", default="out/witnesses", help="output folder")
    return parser.parse_args(argv)


def quantiles(num, mean=0.0, scale=1.0):
    """An even sample of a normal law, shape `(num, 1)`: its quantiles."""
    from statistics import NormalDist

    law = NormalDist(mean, scale)
    return np.array([[law.inv_cdf((i + 0.5) / num)] for i in range(num)])


def ring(num, shift=0.0):
    """Points of a circle of radius 0.3, moved to the right."""
    angle = 2.0 * np.pi * np.arange(num) / num
    return np.stack([0.3 * np.cos(angle) + shift, 0.3 * np.sin(angle)], 1)


def density(x, mean=0.0, scale=1.0):
    """Density of a normal law."""
    return np.exp(-0.5 * ((x - mean) / scale) ** 2) / (scale * math.sqrt(2.0 * math.pi))


def curve(fn, grid):
    """Values of a witness of one coordinate on a grid, as a NumPy array."""
    return np.asarray(fn(grid[:, None]))


def plot_witness(divergences, num):
    """The witness of the MMD of two samples, where one has more mass than the other."""
    rng = np.random.default_rng(0)
    x = np.where(rng.random((num, 1)) < 0.5, rng.normal(-1.5, 0.4, (num, 1)), rng.normal(1.0, 0.7, (num, 1)))
    y = rng.normal(0.0, 1.0, (num, 1))
    grid = np.linspace(-4.0, 4.0, 400)
    figure, axis = plt.subplots(figsize=(7, 3.6), layout="constrained")
    for sample, name, colour in ((x, "P", "tab:blue"), (y, "Q", "tab:orange")):
        axis.hist(sample[:, 0], np.linspace(-4, 4, 41), density=True, alpha=0.35, color=colour, label=name)
    values = curve(divergences.mmd_witness(x, y, 0.5), grid)
    axis.plot(grid, values, color="black", label=r"witness $\mu_P - \mu_Q$")
    axis.axhline(0.0, color="0.5", lw=0.5)
    value = float(divergences.mmd2(x, y, 0.5))
    axis.set(xlabel="x", title=f"Witness of the MMD, Gaussian kernel of bandwidth 0.5 (MMD² {value:.3f})")
    axis.legend(frameon=False)
    return figure


def plot_apart(divergences, num):
    """KL, JS, MMD and KALE of two points, and of two rings, against their distance."""
    kernel, distances = divergences.kernels.Gaussian(1.0), np.linspace(0.0, 4.0, 25)
    figure, axes = plt.subplots(1, 2, figsize=(9.5, 3.8), layout="constrained")
    for axis, title in zip(axes, ("two points", "two rings of radius 0.3")):
        pair = (lambda d: (np.zeros((num, 1)), np.full((num, 1), d))) if title == "two points" else None
        pair = pair or (lambda d: (ring(num), ring(num, d)))
        for regularization in (0.1, 1.0, 10.0):
            values = [float(divergences.kale_rkhs(*pair(d), kernel, regularization).value) for d in distances]
            axis.plot(distances, values, label=f"KALE, λ = {regularization:g}")
        values = [0.5 * float(divergences.mmd2(*pair(d), kernel=kernel, estimator="biased")) for d in distances]
        axis.plot(distances, values, "--", color="black", label="½ MMD²")
        axis.axhline(math.log(2.0), color="tab:purple", ls=":", label="JS (log 2 for d > 0)")
        axis.plot(distances[1:], np.full(24, 4.6), color="tab:red", ls=":", label="KL (infinite for d > 0)")
        axis.plot(distances[1::5], np.full(5, 4.6), "^", color="tab:red")
        axis.set(xlabel="distance d", title=title, ylim=(-0.1, 4.9))
    axes[0].legend(fontsize=8, frameon=False, ncols=2, loc="upper left", bbox_to_anchor=(0.0, 0.92))
    return figure


def plot_smoothie(divergences, num):
    """The witness of KALE, from the MMD's to the log-ratio."""
    x, y = quantiles(num, 1.0), quantiles(num)
    grid, kernel = np.linspace(-3.0, 4.0, 400), divergences.kernels.Gaussian(0.7)
    figure, axis = plt.subplots(figsize=(7, 4), layout="constrained")
    axis.plot(grid, grid - 0.5, "--", color="black", label="log dP/dQ, witness of the KL")
    colours = plt.get_cmap("viridis")(np.linspace(0.05, 0.95, 6))
    for regularization, colour in zip((1e-4, 1e-3, 1e-2, 0.1, 1.0, 100.0), colours):
        result = divergences.kale_rkhs(x, y, kernel, regularization)
        values = (1.0 + regularization) * curve(result.witness, grid)
        axis.plot(grid, values, color=colour, label=f"λ = {regularization:g}, KALE {float(result.value):.3f}")
    values = curve(divergences.mmd_witness(x, y, kernel=kernel), grid)
    axis.plot(grid, values, ":", color="tab:red", lw=2, label="witness of the MMD")
    axis.fill_between(grid, density(grid, 1.0), color="tab:blue", alpha=0.2, lw=0)
    axis.fill_between(grid, density(grid), color="tab:orange", alpha=0.2, lw=0)
    axis.set(xlabel="x", title="(1 + λ) h of P = N(1, 1) (blue) and Q = N(0, 1) (orange)", ylim=(-3.7, 3.7))
    axis.legend(fontsize=8, frameon=False, loc="lower right")
    return figure


def plot_collapse(divergences, num):
    """Witnesses of a model that has collapsed, and of one that is too wide: same mean, another variance."""
    grid, kernel = np.linspace(-4.0, 4.0, 400), divergences.kernels.Gaussian(0.7)
    figure, axes = plt.subplots(2, 2, figsize=(9.5, 5), layout="constrained", sharex=True, sharey="row")
    for (top, bottom), scale, title in zip(axes.T, (0.3, 2.0), ("collapsed model", "model too wide")):
        x, y = quantiles(num), quantiles(num, 0.0, scale)
        top.fill_between(grid, density(grid), color="tab:blue", alpha=0.4, label="data P = N(0, 1)")
        top.fill_between(grid, density(grid, 0.0, scale), color="tab:orange", alpha=0.4, label=f"Q = N(0, {scale:g}²)")
        for regularization in (0.01, 0.1, 1.0):
            result = divergences.kale_rkhs(x, y, kernel, regularization)
            values = (1.0 + regularization) * curve(result.witness, grid)
            bottom.plot(grid, values, label=f"λ = {regularization:g}, KALE {float(result.value):.2f}")
        value = 0.5 * float(divergences.mmd2(x, y, kernel=kernel, estimator="biased"))
        values = curve(divergences.mmd_witness(x, y, kernel=kernel), grid)
        bottom.plot(grid, values, ":", color="black", label=f"MMD, ½ MMD² {value:.3f}")
        bottom.axhline(0.0, color="0.5", lw=0.5)
        top.set(title=title)
        bottom.set(xlabel="x", ylim=(-6.0, 10.0))
        top.legend(fontsize=8, frameon=False)
        bottom.legend(fontsize=8, frameon=False, ncols=2, loc="lower center")
    axes[1, 0].set_ylabel("witness (1 + λ) h")
    return figure


def plot_weak_convergence(divergences, num):
    """KALE goes to 0 where Q_n converges weakly, though the KL divergence is infinite for every n."""
    kernel = divergences.kernels.Gaussian(0.2)
    num = max(num // 64, 1) * 64  # n atoms, each as often as the others
    uniform = ((np.arange(num) + 0.5) / num)[:, None]
    figure, axis = plt.subplots(figsize=(7, 3.8), layout="constrained")
    counts = [1, 2, 4, 8, 16, 32, 64]
    atoms = [np.repeat((np.arange(n) + 0.25) / n, num // n)[:, None] for n in counts]
    for regularization in (1e-2, 0.1, 1.0):
        values = [float(divergences.kale_rkhs(uniform, y, kernel, regularization).value) for y in atoms]
        axis.loglog(counts, values, "o-", label=f"KALE, λ = {regularization:g}")
    values = [0.5 * float(divergences.mmd2(uniform, y, kernel=kernel, estimator="biased")) for y in atoms]
    axis.loglog(counts, values, "s--", color="black", label="½ MMD²")
    axis.axhline(math.log(2.0), color="tab:purple", ls=":", label="JS = log 2")
    axis.set(xlabel="n", title="P uniform on [0, 1], Q of n equal atoms: KL(P || Q) = ∞ for every n")
    axis.legend(fontsize=8, frameon=False)
    return figure


FIGURES = {
    "mmd_witness": plot_witness,
    "apart": plot_apart,
    "smoothie": plot_smoothie,
    "collapse": plot_collapse,
    "weak_convergence": plot_weak_convergence,
}


def limits(divergences, counts):
    """KALE against regularization and number of points, as a Markdown table between its two limits."""
    kernel, rows, random = divergences.kernels.Gaussian(1.0), [], np.random.default_rng(0)
    pairs = {f"n = {n}": (quantiles(n, 1.0), quantiles(n)) for n in counts}
    pairs[f"random, n = {counts[-1]}"] = random.normal(1.0, 1.0, (counts[-1], 1)), random.normal(size=(counts[-1], 1))
    for regularization in (1e4, 100.0, 10.0, 1.0, 0.1, 1e-2, 1e-3, 1e-4):
        results = [divergences.kale_rkhs(x, y, kernel, regularization) for x, y in pairs.values()]
        gap = max(float(result.duality_gap / result.value) for result in results)
        rows.append([f"{regularization:g}", *(f"{float(result.value):.6f}" for result in results), f"{gap:.0e}"])
    half = [0.5 * float(divergences.mmd2(x, y, kernel=kernel, estimator="biased")) for x, y in pairs.values()]
    rows.insert(0, ["½ MMD²", *(f"{value:.6f}" for value in half), ""])
    rows.append(["KL of the laws", *["0.500000"] * len(pairs), ""])
    header = ["λ", *pairs, "largest gap, relative"]
    return "\n".join(f"| {' | '.join(row)} |" for row in (header, ["---"] * len(header), *rows))


if __name__ == "__main__":
    main()
