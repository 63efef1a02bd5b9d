"""Two demonstrations on a curve in the plane: what the energy of a GEBM adds to its base.

    python examples/curve.py --backend numpyro --out out/curve

(a) The base has the right support and the wrong mass: it is frozen, and the energy alone is trained.
(b) The base has the wrong support and the wrong mass: both are trained, then the energy alone on the finished base.

Prints a Markdown table for each, over several seeds, and writes the figures of the first seed to the output folder.
"""

import argparse
import importlib
import math
import pathlib
import time

import matplotlib.pyplot as plt
import numpy as np

#: Everything that both packages share, but for the numbers of steps.
SETTINGS = {
    "points": 10_000,
    "hidden": (64, 64),
    "batch_size": 256,
    "noise_factor": 1,
    "rate": 1e-3,
    "base_rate": 4e-3,
    "final_rate": 2e-3,
    "energy_steps": 2,
    "penalty": 0.02,
    "final_penalty": 2e-3,
    # (b): the curve of the base at the start, the target's after a turn by 25 degrees, shrunk and shifted
    "start": ([[0.65, -0.3], [0.3, 0.65]], [0.3, -0.3]),
}
#: The target law on the curve: (weight, a, b) of Beta laws of t.
MIXTURE = ((0.2, 1, 1), (0.3, 6, 18), (0.5, 24, 8))


def curve(t, xp=np):
    """A sine wave of one and a half periods, for t in (0, 1).

    Args:
        t: array of shape `(...)`.
        xp: the module that it is an array of: NumPy, `jax.numpy` or `torch`.

    Returns:
        Array of shape `(..., 2)`.
    """
    return xp.stack([4.0 * t - 2.0, xp.sin(3.0 * math.pi * t)], -1)


def sample_target(num, seed):
    """Independent draws of the target law, shape `(num, 2)`."""
    rng = np.random.default_rng(seed)
    weights, a, b = np.array(MIXTURE).T
    component = rng.choice(len(weights), num, p=weights)
    return curve(rng.beta(a[component], b[component])).astype(np.float32)


def target_log_density(t):
    """Log-density of the target's t; that of the base of (a) is 0."""
    density = 0.0
    for weight, a, b in MIXTURE:
        log_norm = math.lgamma(a + b) - math.lgamma(a) - math.lgamma(b)
        density = density + weight * np.exp(log_norm + (a - 1) * np.log(t) + (b - 1) * np.log1p(-t))
    return np.log(density)


def main(argv=None):
    """Run both demonstrations."""
    args = _parse(argv)
    host = importlib.import_module(f"curve_{args.backend}")
    out = pathlib.Path(args.out)
    out.mkdir(parents=True, exist_ok=True)
    bandwidth = median_distance(sample_target(2000, [0]))
    seeds = range(args.first_seed, args.first_seed + args.seeds)
    for demo in "ab" if args.demo == "both" else args.demo:
        steps = [given or default for given, default in zip((args.steps, args.final_steps), host.STEPS[demo])]
        print(f"\n({demo}) {_TITLES[demo]}, {args.backend}:\n\n{_header(demo)}", flush=True)
        rows = []
        for seed in seeds:
            start = time.perf_counter()
            data = sample_target(SETTINGS["points"], [seed, 1])
            train = {"a": host.train_energy, "b": host.train_both}[demo]
            trained = train(curve, data, seed, SETTINGS, steps, not args.no_progress)
            draws = host.draw(trained, args.draws, seed)
            rows.append([*measure(host, trained, draws, bandwidth, seed), time.perf_counter() - start])
            print(_row(demo, seed, rows[-1]), flush=True)
            if seed == args.first_seed:
                plot(demo, host, trained, sample_target(args.draws, [seed, 2]), draws, out / f"curve_{demo}.png")
        print(_row(demo, "median", np.median(rows, axis=0)))
        print(f"\n{verdict(demo, *np.median(rows, axis=0)[1:5])}", flush=True)
    print(f"\nMMD² to fresh target draws, bandwidth {bandwidth:.3f}. Figures of seed {args.first_seed} in {out}/.")


_TITLES = {"a": "Right support, wrong mass", "b": "Wrong support, wrong mass"}


def verdict(demo, initial, base, model, error):
    """Whether the medians are as they should be, as text."""
    part = {"a": 5, "b": 2}[demo]
    checks = {f"MMD² of the GEBM at most 1/{part} of the base's": model <= base / part}
    if demo == "b":
        checks["base and GEBM better than the initial base"] = max(base, model) < initial
    checks["settled A within 0.05"] = error < 0.05
    return "\n".join(f"{name}: {'yes' if met else 'NO'}" for name, met in checks.items())


def _header(demo):
    laws = ["base", "GEBM"] if demo == "a" else ["initial base", "base", "GEBM"]
    columns = ["seed", "floor", *laws, "error of A, settled", "error of A, last step", "seconds"]
    return f"| {' | '.join(columns)} |\n|{'---|' * len(columns)}"


def _row(demo, name, values):
    *distances, settled, last, seconds = values
    if demo == "a":
        del distances[1]  # the base stays as it is
    distances = " | ".join(f"{value:.5f}" for value in distances)
    return f"| {name} | {distances} | {settled:.4f} | {last:.4f} | {seconds:.0f} |"


def _parse(argv):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--backend", choices=("numpyro", "pyro"), default="numpyro")
    parser.add_argument("--demo", choices=("a", "b", "both"), default="both")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--first-seed", type=int, default=10)
    parser.add_argument("--steps", type=int, help="base steps of (b)'s joint training, energy steps of (a)")
    parser.add_argument("--final-steps", type=int, help="energy steps on the finished base of (b)")
    parser.add_argument("--draws", type=int, default=2000, help="independent draws of each law")
    parser.add_argument("--out", default="out/curve", help="output folder")
    parser.add_argument("--no-progress", action="store_true")
    return parser.parse_args(argv)


def median_distance(x):
    """Median distance of the rows of x: the bandwidth of every MMD² here."""
    squared = ((x[:, None] - x[None]) ** 2).sum(-1)
    return float(np.median(np.sqrt(squared[np.triu_indices(len(x), k=1)])))


def measure(host, trained, draws, bandwidth, seed):
    """MMD² of another target sample, the initial base, the base and the GEBM, and the errors of A."""
    num = len(draws["GEBM"])
    fresh = sample_target(num, [seed, 2])
    samples = [sample_target(num, [seed, 3]), draws["initial base"], draws["base"], draws["GEBM"]]
    distances = [host.mmd2(x, fresh, bandwidth) for x in samples]
    energies = host.energy_of_base_draws(trained.gebm, 1_000_000, seed).astype(np.float64)
    estimate = np.log(np.mean(np.exp(-energies)))
    settled = float(trained.gebm.log_partition)
    return *distances, abs(settled - estimate), abs(trained.last_log_partition - estimate)


def plot(demo, host, trained, target, draws, path):
    """Target, base, energy and GEBM of one run, as a figure of four panels."""
    figure, axes = plt.subplots(2, 2, figsize=(8.4, 5.6), layout="constrained")
    samples = {"target": target, "base": draws["base"], "GEBM": draws["GEBM"]}
    for axis, (name, x) in zip((axes[0, 0], axes[0, 1], axes[1, 1]), samples.items()):
        if demo == "b" and name == "base":
            axis.scatter(*draws["initial base"][:500].T, s=1, color=_COLOURS["initial base"], label="before training")
            axis.legend(loc="upper left", frameon=False, markerscale=4, fontsize=9)
        plot_sample(axis, x, target, _COLOURS[name])
        axis.set_title(name)
    plot_energy = {"a": plot_energy_along_curve, "b": plot_energy_in_plane}[demo]
    plot_energy(axes[1, 0], host, trained.gebm, draws["base"])
    figure.suptitle(f"({demo}) {_TITLES[demo]}")
    figure.savefig(path, dpi=100)
    plt.close(figure)


_COLOURS = {"target": "black", "initial base": "0.6", "base": "tab:orange", "GEBM": "tab:green"}
_LIMITS = {"xlim": (-2.4, 2.4), "ylim": (-2.7, 1.5)}


def plot_sample(axis, x, target, colour):
    """Draws in the plane, and below them their histogram in the horizontal direction with the target's outline."""
    bins = np.linspace(*_LIMITS["xlim"], 41)
    bottom, height = _LIMITS["ylim"][0], 2.2
    axis.scatter(*x.T, s=2, color=colour, alpha=0.3, linewidths=0)
    for values, style in ((x, {"fill": True, "alpha": 0.4, "color": colour}), (target, {"color": "black"})):
        density = np.histogram(values[:, 0], bins, density=True)[0]
        axis.stairs(bottom + height * density, bins, baseline=bottom, **style)
    axis.set(xticks=[], yticks=[], **_LIMITS)


def plot_energy_along_curve(axis, host, gebm, base_draws):
    """E + A along the curve of (a), where the best one is known: minus the log-density of the target in t."""
    t = np.linspace(0.005, 0.995, 400)
    learned = host.energies(gebm, curve(t))
    axis.fill_between(
        t, learned, 0, where=learned < 0, color="tab:blue", alpha=0.5, interpolate=True, label="adds mass"
    )
    axis.fill_between(
        t, learned, 0, where=learned > 0, color="tab:red", alpha=0.5, interpolate=True, label="removes it"
    )
    axis.plot(t, learned, color="black", lw=1, label="E + A")
    axis.plot(t, -target_log_density(t), "--", color="black", lw=1, label="$-\\log\\, dP/dG$")
    axis.axhline(0, color="0.5", lw=0.5)
    axis.set(title="energy E + A along the curve", xlabel="t")
    axis.legend(fontsize=9, ncols=2, loc="upper center", frameon=False)
    axis.set_ylim(top=axis.get_ylim()[1] + 1.2)


def plot_energy_in_plane(axis, host, gebm, base_draws):
    """E + A in the plane near the curve of the base; far from it the energy was never trained."""
    x, y = np.linspace(*_LIMITS["xlim"], 160), np.linspace(-1.6, 1.6, 120)
    plane = np.stack(np.meshgrid(x, y), axis=-1).astype(np.float32).reshape(-1, 2)
    distance = np.min([((plane - point) ** 2).sum(1) for point in base_draws[:500]], axis=0) ** 0.5
    values = np.ma.masked_where(distance > 0.35, host.energies(gebm, plane)).reshape(len(y), len(x))
    levels = np.linspace(-2, 2, 17)
    image = axis.contourf(x, y, values, levels, cmap="RdBu_r", extend="both")
    along = base_draws[np.argsort(base_draws[:, 0])]
    axis.plot(*along.T, color="black", lw=1)
    axis.set(title="energy E + A around the base's curve", xticks=[], yticks=[])
    bar = axis.figure.colorbar(image, ax=axis, ticks=[-2, -1, 0, 1, 2])
    bar.set_label("blue adds mass, red removes it")


if __name__ == "__main__":
    main()
