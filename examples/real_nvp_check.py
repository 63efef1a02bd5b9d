"""Check GEBMs whose base is a real NVP, so that everything about them is known: laws, densities, log-partitions.

    python examples/real_nvp_check.py --backend numpyro --data DIR --sets RedWine --seeds 1 2 3

(i) The same GEBM is sampled by NUTS in z and pushed forward, and by NUTS in x on log g(x) - E(x): one law.
(ii) Density estimation on tables, by maximum likelihood, as a standard EBM by contrastive divergence, and as GEBMs of
two families by Donsker-Varadhan and by KALE. Nothing is chosen on the test rows.

The data folder can be given in the environment variable GEBM_DATA; `--csv FILE` takes any table of numbers.
"""

import argparse
import ast
import importlib
import pathlib
import time

import numpy as np
import uci

#: Settings of every set, chosen on the validation rows of seeds 1 to 3.
SETTINGS = {
    "couplings": 5,
    "hidden": (100, 100),
    "noise": 0.02,  # added to the training rows of flows, in units of the whitened columns
    "batch_size": 200,
    "flow_rate": 1e-3,
    "flow_steps": 1500,
    "warm_steps": 900,  # of them, for the base of the flow-ratio family
    "ratio_rate": 5e-4,
    "ratio_steps": 800,
    "energy_hidden": (256, 256),
    "bound": 4.0,
    "penalty": 0.1,
    "energy_rate": 3e-3,
    "energy_steps": 3000,
    "chain_steps": 1500,  # of contrastive divergence
    "every": 50,  # steps between two looks at the validation rows
    "validation_draws": 10_000,
    "partition_draws": 200_000,
}
#: What differs from that.
CHANGES = {
    "RedWine": {"noise": 0.2, "batch_size": 100, "flow_steps": 1000, "warm_steps": 600},
    "MiniBooNE": {"noise": 0.1, "flow_steps": 3000, "warm_steps": 1800},
    "curved": {"couplings": 3, "hidden": (32, 32), "flow_steps": 200, "warm_steps": 30, "energy_steps": 600},
}
#: Size of the check of the law: Pyro's NUTS runs one chain at a time, a draw of it takes longer.
LAW_SIZES = {
    "numpyro": {"chains": 20, "warmup": 500, "samples": 500, "thinning": 5},
    "pyro": {"chains": 10, "warmup": 300, "samples": 1000, "thinning": 1},
}
#: Number of permutations of the MMD test.
PERMUTATIONS = 9999


def main(argv=None):
    """Run both checks."""
    args = _parse(argv)
    host = importlib.import_module(f"real_nvp_check_{args.backend}")
    out = pathlib.Path(args.out)
    out.mkdir(parents=True, exist_ok=True)
    if "law" in args.checks:
        print(_report(out / f"law_{args.backend}.md", check_law(host, args)), flush=True)
    if "density" in args.checks:
        for name in [pathlib.Path(args.csv).stem] if args.csv else args.sets:
            print(_report(out / f"density_{name}_{args.backend}.md", check_density(host, name, args)), flush=True)


def _parse(argv):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--backend", choices=("numpyro", "pyro"), default="numpyro")
    parser.add_argument("--checks", nargs="+", choices=("law", "density"), default=["law", "density"])
    parser.add_argument("--data", help="folder of the tables; default: the environment variable GEBM_DATA")
    parser.add_argument("--download", action="store_true", help="fetch missing tables from the UCI archive")
    parser.add_argument("--csv", help="a table of your own instead of --sets")
    parser.add_argument("--sets", nargs="+", choices=sorted(uci.SETS), default=["RedWine", "Parkinsons"])
    parser.add_argument("--seeds", nargs="+", type=int, default=[1, 2, 3], help="seeds of splits and of training")
    parser.add_argument(
        "--set", nargs="+", default=[], metavar="NAME=VALUE", help="settings other than SETTINGS, CHANGES"
    )
    parser.add_argument("--scale-steps", type=float, default=1.0, help="factor for all numbers of training steps")
    parser.add_argument("--chains", type=int, help="chains of the check of the law, in each space; defaults: LAW_SIZES")
    parser.add_argument("--warmup", type=int)
    parser.add_argument("--samples", type=int, help="draws per chain")
    parser.add_argument("--thinning", type=int, help="draws made for each one kept")
    parser.add_argument("--out", default="out/real_nvp", help="output folder")
    parser.add_argument("--no-progress", action="store_true")
    args = parser.parse_args(argv)
    vars(args).update({name: n for name, n in LAW_SIZES[args.backend].items() if getattr(args, name) is None})
    return args


def _settings(name, args):
    settings = {**SETTINGS, **CHANGES.get(name, {})}
    for pair in args.set:
        key, _, value = pair.partition("=")
        if key not in settings:
            raise SystemExit(f"Expected --set with names among {sorted(settings)}; got {key!r}.")
        settings[key] = ast.literal_eval(value)
    for key in settings:
        if key.endswith(("_steps", "_draws")):
            settings[key] = max(2, int(args.scale_steps * settings[key]))
    settings["every"] = min(settings["every"], *(settings[f"{k}_steps"] for k in ("flow", "ratio", "energy", "chain")))
    return settings


def _report(path, lines):
    text = "\n".join(lines)
    path.write_text(text + "\n")
    return f"\n{text}"


def curved_table(num, seed):
    """Points around a parabola, shape `(num, 2)`."""
    x, noise = np.random.default_rng(seed).normal(size=(2, num))
    return np.stack([x, 0.5 * x**2 + 0.7 * noise], 1)


def check_law(host, args):
    """Sample one GEBM in z and in x by NUTS, and compare the two laws; lines of a report."""
    show, settings, seed = not args.no_progress, _settings("curved", args), args.seeds[0]
    split = uci.split(curved_table(4000, seed), seed)
    _, base = host.maximum_likelihood(split, seed, settings, show)  # early on, so that the energy has work to do
    gebm = host.bounded(base, split, "kale", seed, settings, show)
    sizes = (seed, args.chains, args.warmup, args.samples, args.thinning, show)
    start = time.perf_counter()
    in_z, in_x = host.sample_in_z(gebm, *sizes), host.sample_in_x(gebm, *sizes)
    statistic, p_value = mmd_test(in_z, in_x, np.random.default_rng(seed))
    z_scores = moment_z_scores(in_z, in_x)
    ess = host.estimate_log_partition(gebm, settings["partition_draws"], seed, show).ess / settings["partition_draws"]
    return [
        f"The same law? NUTS in z and NUTS in x, {args.backend}, {in_z.shape[0]} chains of {in_z.shape[1]} draws each "
        f"({time.perf_counter() - start:.0f} s); ESS of the base's draws {100 * ess:.0f} %:",
        "",
        f"MMD² {statistic:.2e}, p = {p_value:.3f} (permutations of whole chains); largest difference of "
        f"{len(z_scores)} means and second moments: {np.abs(z_scores).max():.2f} standard errors.",
        f"Law is the same: {'yes' if p_value > 0.01 and np.abs(z_scores).max() <= 4 else 'NO'}",
    ]


def mmd_test(x, y, rng):
    """Two-sample test by the maximum mean discrepancy, with a Gaussian kernel of the median distance.

    The chains are permuted as wholes, so that draws of one chain may depend on each other.

    Args:
        x: draws of shape `(chains, draws, D)`.
        y: draws of the same shape.
        rng: a NumPy generator.

    Returns:
        MMD² (with the diagonal) and its p-value.
    """
    chains = np.concatenate([x, y])
    thinned = chains.reshape(-1, x.shape[-1])[:: max(1, chains.shape[0] * chains.shape[1] // 1000)]
    distances = np.linalg.norm(thinned[:, None] - thinned[None], axis=-1)
    bandwidth = np.median(distances[np.triu_indices(len(thinned), 1)])
    norms = (chains**2).sum(-1)
    kernel = np.empty((len(chains), len(chains)))  # mean kernel between two chains
    for i in range(len(chains)):
        for j in range(i + 1):
            squared = norms[i][:, None] + norms[j][None] - 2.0 * chains[i] @ chains[j].T
            kernel[i, j] = kernel[j, i] = np.exp(-np.maximum(squared, 0.0) / (2.0 * bandwidth**2)).mean()

    def statistic(sign):
        return sign @ kernel @ sign / len(x) ** 2

    sign = np.repeat([1.0, -1.0], len(x))
    observed = statistic(sign)
    exceeding = sum(statistic(rng.permutation(sign)) >= observed for _ in range(PERMUTATIONS))
    return observed, (1 + exceeding) / (1 + PERMUTATIONS)


def moment_z_scores(x, y, batches=5):
    """Differences of all means and second moments, in standard errors from means of batches of every chain."""

    def batch_means(draws):
        draws = draws[:, : draws.shape[1] // batches * batches]
        draws = draws.reshape(-1, draws.shape[1] // batches, draws.shape[2])
        first, second = np.triu_indices(draws.shape[2])
        features = np.concatenate([draws, draws[..., first] * draws[..., second]], -1)
        return features.mean(1)

    x, y = batch_means(x), batch_means(y)
    return (x.mean(0) - y.mean(0)) / np.sqrt(x.var(0, ddof=1) / len(x) + y.var(0, ddof=1) / len(y))


#: Rows of the table: name, family, objective.
ROWS = (
    ("maximum likelihood", None, None),
    ("standard EBM, contrastive divergence", "bounded", "contrastive_divergence"),
    ("GEBM (i) flow ratio, Donsker-Varadhan", "flow_ratio", "donsker_varadhan"),
    ("GEBM (i) flow ratio, KALE", "flow_ratio", "kale"),
    ("GEBM (ii) bounded energy, Donsker-Varadhan", "bounded", "donsker_varadhan"),
    ("GEBM (ii) bounded energy, KALE", "bounded", "kale"),
)
_COLUMNS = ("test NLL", "without repeated rows", "A - A*", "A - log_partition", "ESS")


def check_density(host, name, args):
    """Density estimation on one table, over the seeds; lines of a report."""
    show, settings, start = not args.no_progress, _settings(name, args), time.perf_counter()
    table = uci.read_csv(args.csv) if args.csv else uci.load(name, args.data, args.download)
    results, repeated, sizes = {row[0]: [] for row in ROWS}, [], None
    for seed in args.seeds:
        split = uci.split(table, seed, rounded=name == "RedWine")
        sizes = [len(part) for part in split[:3]]
        repeated.append(int(split.repeated.sum()))
        bases = dict(zip(("bounded", "flow_ratio"), host.maximum_likelihood(split, seed, settings, show)))
        for row, family, objective in ROWS:
            if family is None:
                law = bases["bounded"]
                log_density, of_a = host.log_density(law, split.test), [np.nan] * 3
            else:
                law = getattr(host, family)(bases[family], split, objective, seed, settings, show)
                log_density, of_a = evaluate(host, law, split, settings, seed, show)
            kept = log_density[~split.repeated]
            results[row].append([-log_density.mean(), -kept.mean(), *of_a])
            of_validation = -host.log_density(law, split.validation).mean()
            line = f"{name}, seed {seed}, {row}: {_numbers(results[row][-1:])} (validation NLL {of_validation:.2f})"
            print(line, flush=True)
    return [
        f"{name}, {args.backend}: {table.shape[1]} columns, {sizes[0]} training, {sizes[1]} validation and {sizes[2]} "
        f"test rows, of which {', '.join(map(str, repeated))} repeat a training row (seeds "
        f"{', '.join(map(str, args.seeds))}; {time.perf_counter() - start:.0f} s)",
        "",
        f"| model | {' | '.join(_COLUMNS)} |",
        f"|---{'|---' * len(_COLUMNS)}|",
        *(f"| {row} | {_numbers(values)} |" for row, values in results.items()),
    ]


def evaluate(host, gebm, split, settings, seed, show):
    """Log-densities of the test rows, errors of the learned A against the truth and an estimate, and its ESS.

    The densities use the true log-partition where it is known, and else the estimate from fresh draws.
    """
    estimate = host.estimate_log_partition(gebm, settings["partition_draws"], seed, show)
    learned, truth = float(gebm.log_partition), host.true_log_partition(gebm)
    best = estimate.value if truth is None else truth
    log_density = host.log_density(gebm, split.test) + learned - best
    of_truth = np.nan if truth is None else learned - truth
    return log_density, [of_truth, learned - estimate.value, estimate.ess / settings["partition_draws"]]


def _numbers(values):
    """Mean and standard error over seeds of the NLLs; the A error that is farthest from 0; mean ESS."""
    values = np.array(values)
    mean = values.mean(0)
    error = values.std(0, ddof=1) / np.sqrt(len(values)) if len(values) > 1 else np.full(len(mean), np.nan)
    nll = [f"{m:.2f}" if np.isnan(e) else f"{m:.2f} ± {e:.2f}" for m, e in zip(mean[:2], error[:2])]
    worst = [column[np.argmax(np.abs(column))] for column in values.T[2:4]]
    of_a = ["" if np.isnan(w) else f"{w:+.3f}" for w in worst]
    return " | ".join([*nll, *of_a, "" if np.isnan(mean[4]) else f"{100 * mean[4]:.0f} %"])


if __name__ == "__main__":
    main()
