"""A regression that is wrong in a known way: how wrong, where, repaired by an energy, and checked again.

    python examples/repair_a_model.py                      table, report and pictures under out/repair
    python examples/repair_a_model.py --backend pyro

Data: the breast cancer table that scikit-learn ships, 569 rows; the error of a tumour's area against its mean radius,
both standardised. The model is the textbook one, y ~ N(a + b x, s²), fitted by NUTS. The errors are skewed and grow
with x. A third of the rows fits the model, a third criticises it and trains the energy, a third checks.
"""

import argparse
import importlib
import pathlib

import matplotlib.pyplot as plt
import numpy as np
from sklearn.datasets import load_breast_cancer

#: What is looked at: x, and y given x.
NAMES = ("radius", "area error")


def table(seed):
    """Three parts of the table, each of rows (x, y), standardised by the first."""
    data = load_breast_cancer()
    columns = [list(data.feature_names).index(name) for name in ("mean radius", "area error")]
    rows = data.data[:, columns][np.random.default_rng(seed).permutation(len(data.data))]
    parts = np.array_split(rows, 3)
    return [(part - parts[0].mean(0)) / parts[0].std(0) for part in parts]


def main(argv=None):
    """Fit, criticise, repair, check."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--backend", choices=("numpyro", "pyro"), default="numpyro")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--draws", type=int, default=4000, help="posterior predictive draws")
    parser.add_argument("--out", type=pathlib.Path, default=pathlib.Path("out/repair"))
    parser.add_argument("--no-progress", action="store_true")
    args = parser.parse_args(argv)
    host = importlib.import_module(f"repair_a_model_{args.backend}")
    fitted, criticised, check = table(args.seed)
    model = host.fit(fitted, args.draws, args.seed, not args.no_progress)

    draws = host.draws(model, args.seed)
    test = host.criticise(criticised, draws, NAMES, args.seed, not args.no_progress)
    print(f"The model, against rows it has not seen:\n{test!r}\n")
    repaired, log_weight = host.repaired(model, test.energy, check, args.seed)
    error = log_weight.std(ddof=1) / len(check) ** 0.5
    print(f"Tilted by that energy it gains {log_weight.mean():.3f} ± {error:.3f} nats a row on the third part.\n")
    again = {"model": draws, "tilted model": repaired}
    for name, rows in again.items():
        found = host.criticise(check, rows, NAMES, args.seed + 1, not args.no_progress).kale
        print(f"A fresh energy tells the {name} from the third part by {found.value:.3f} ± {found.std_error:.3f} nats.")
    args.out.mkdir(parents=True, exist_ok=True)
    picture({"data": np.concatenate([criticised, check]), **again}, args.out / "repair.png")
    test.plot()[0].figure.savefig(args.out / "criticism.png", dpi=100)
    print(f"Written to {args.out}: repair.png, criticism.png.")


def picture(rows, path):
    """Data, draws of the model, and draws of the tilted model."""
    figure, axes = plt.subplots(1, 3, figsize=(9, 3), sharex=True, sharey=True, layout="constrained")
    limits = [np.quantile(rows["data"][:, i], [0.005, 0.995]) + np.array([-0.7, 0.7]) for i in range(2)]
    for axis, (name, x) in zip(axes, rows.items()):
        axis.scatter(*x[: len(rows["data"])].T, s=6, alpha=0.6, lw=0)
        axis.set(title=name, xlabel=NAMES[0], xlim=limits[0], ylim=limits[1])
    axes[0].set_ylabel(NAMES[1])
    figure.savefig(path, dpi=100)
    plt.close(figure)


if __name__ == "__main__":
    main()
