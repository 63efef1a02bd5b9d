"""What single chains cannot find and the ladder can: the weights of distant modes, and log Z as a function of beta.

    python examples/ladder.py --backend numpyro

(1) The latent law has two modes 8 standard deviations apart, of weights 0.8 and 0.2. Four chains of NUTS start from
draws of the prior. (2) The inverse temperature is a random variable of a model, with and without log Z(beta).
Prints tables, and writes figures to the output folder.
"""

import argparse
import importlib
import pathlib
import time

import arviz as az
import matplotlib.pyplot as plt
import numpy as np

#: Weights of the modes at (0, 0) and (8, 0), both of standard deviation 1.
WEIGHTS, DISTANCE = (0.8, 0.2), 8.0
#: Observations of the model of beta, and the largest beta that log Z is known for.
NUM_ROWS, MAX_BETA = 20, 50.0
FIRST, SECOND, BLACK = "#2166ac", "#b2182b", "black"


def main(argv=None):
    """Run both demonstrations."""
    args = _parse(argv)
    host = importlib.import_module(f"ladder_{args.backend}")
    out = pathlib.Path(args.out)
    out.mkdir(parents=True, exist_ok=True)
    modes(host, args, out / f"modes_{args.backend}.png")
    inverse_temperature(host, args, out / f"beta_{args.backend}.png")


def _parse(argv):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--backend", choices=("numpyro", "pyro"), default="numpyro")
    parser.add_argument("--seeds", type=int, default=5, help="seeds of the first part, the two modes")
    parser.add_argument("--prior-scale", type=float, default=3.0, help="standard deviation of its prior")
    parser.add_argument("--draws", type=int, default=1000, help="draws per chain of NUTS and of replica exchange")
    parser.add_argument("--warmup", type=int, default=500)
    parser.add_argument("--particles", type=int, default=16_384)
    parser.add_argument("--chains", type=int, default=32, help="chains of replica exchange")
    parser.add_argument("--out", default="out/ladder", help="output folder")
    return parser.parse_args(argv)


def modes(host, args, path):
    """Weights of two modes by everything there is; a table and a figure."""
    print(f"Two modes, {args.backend}: weight of the second one, {WEIGHTS[1]} in truth\n")
    print(
        "| seed | NUTS, 4 chains | its R-hat | default sampler | SMC | log Z by SMC (0) | ReplicaExchange | seconds |"
    )
    print("|---|---|---|---|---|---|---|---|")
    gebm, shown = host.two_modes(WEIGHTS, DISTANCE, args.prior_scale), False
    for seed in range(args.seeds):
        start = time.perf_counter()
        nuts = host.nuts(gebm, seed, args.warmup, args.draws)
        default = host.default_sampler(gebm, seed, args.particles)
        smc, log_partition = host.smc(gebm, seed, args.particles)
        exchange = host.replica_exchange(gebm, seed, args.warmup, args.draws, args.chains)
        rhat = max(float(az.rhat(nuts[..., i])) for i in range(2))
        weights = [f"{np.mean(z[..., 0] > DISTANCE / 2):.3f}" for z in (nuts, default, smc, exchange)]
        of_z = f"{log_partition.value:+.3f} ± {log_partition.std_error:.3f}"
        seconds = f"{time.perf_counter() - start:.0f}"
        row = [seed, weights[0], f"{rhat:.3f}", *weights[1:3], of_z, weights[3], seconds]
        print(f"| {' | '.join(map(str, row))} |", flush=True)
        if not shown and (rhat < 1.01 or seed == args.seeds - 1):
            shown = True
            _plot_modes(nuts, rhat, smc, exchange, args.prior_scale, path)


def _plot_modes(nuts, rhat, smc, exchange, prior_scale, path):
    """The first seed at which R-hat sees nothing."""
    grid = np.linspace(-10.0, 13.0, 400)
    exact = sum(w * np.exp(-0.5 * (grid - m) ** 2) for w, m in zip(WEIGHTS, (0.0, DISTANCE))) / np.sqrt(2 * np.pi)
    prior = np.exp(-0.5 * (grid / prior_scale) ** 2) / np.sqrt(2 * np.pi) / prior_scale
    figure, axes = plt.subplots(1, 3, figsize=(10, 2.8), layout="constrained")
    for chain, color in zip(nuts[..., 0], ("#2166ac", "#4393c3", "#92c5de", "#053061")):
        axes[0].plot(chain, lw=0.3, color=color)
    axes[0].set(title="NUTS: four traces of $z_1$", xlabel="draw", ylim=(-5, 12))
    axes[0].axhline(DISTANCE, color=SECOND, ls="--", lw=1)
    axes[0].text(0.98, 0.9, f"R-hat {rhat:.3f}", transform=axes[0].transAxes, ha="right")
    for axis, draws, name in ((axes[1], nuts, "NUTS"), (axes[2], exchange, "ReplicaExchange and SMC")):
        axis.hist(draws[..., 0].ravel(), 80, range=(-10, 13), density=True, color=FIRST, alpha=0.6, label="draws")
        axis.plot(grid, exact, color=BLACK, lw=1, label="tilted law")
        axis.plot(grid, prior, color=BLACK, lw=1, ls=":", label="prior")
        axis.set(title=name, xlabel="$z_1$", yticks=[])
    axes[2].hist(smc[:, 0], 80, range=(-10, 13), density=True, histtype="step", color=SECOND, label="particles of SMC")
    axes[2].legend(fontsize=7, frameon=False)
    figure.savefig(path, dpi=110)
    plt.close(figure)


def inverse_temperature(host, args, path):
    """Posterior of beta with log Z(beta), without it, and the exact one; a table and a figure."""
    x = 0.5 * np.random.default_rng(0).normal(size=NUM_ROWS)
    grid = np.exp(np.linspace(-5.0, 4.0, 4000))
    log_density = -0.5 * np.log(grid) ** 2 + 0.5 * NUM_ROWS * np.log1p(grid) - 0.5 * grid * (x**2).sum()
    density = np.exp(log_density - log_density.max())  # of log beta
    density /= np.trapezoid(density, np.log(grid))
    exact = np.trapezoid(density * grid, np.log(grid))
    curve = host.curve(MAX_BETA, 0)
    print(f"\nbeta as a random variable, {args.backend}: posterior mean of beta\n")
    print("| model | mean | standard error |\n|---|---|---|")
    print(f"| exact (quadrature) | {exact:.3f} |  |")
    draws = {}
    for name, log_partition in (("with log Z(beta)", curve), ("without", None)):
        draws[name] = host.posterior_of_beta(log_partition, x, args.warmup, args.draws)
        error = draws[name].std() / np.sqrt(float(az.ess(draws[name], method="mean")))
        print(f"| {name} | {draws[name].mean():.3f} | {error:.3f} |", flush=True)
    figure, axes = plt.subplots(1, 2, figsize=(8, 2.8), layout="constrained")
    beta = np.linspace(0.0, MAX_BETA, 300)
    axes[0].plot(beta, -0.5 * np.log1p(beta), color=BLACK, lw=3, alpha=0.3, label="exact")
    axes[0].plot(beta, [float(curve(b)) for b in beta], color=FIRST, lw=1, label="LogPartitionCurve")
    axes[0].set(xlabel="β", title="log Z(β)")
    for (name, values), color in zip(draws.items(), (FIRST, SECOND)):
        axes[1].hist(np.log(values.ravel()), 80, range=(-5, 4), density=True, color=color, alpha=0.6, label=name)
    axes[1].plot(np.log(grid), density, color=BLACK, lw=1, label="exact")
    axes[1].set(xlabel="log β", title="Posterior", yticks=[])
    for axis in axes:
        axis.legend(fontsize=7, frameon=False)
    figure.savefig(path, dpi=110)
    plt.close(figure)


if __name__ == "__main__":
    main()
