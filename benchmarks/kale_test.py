"""`kale_test` as a test: false alarms on data of the model itself, and power beside MMD and a classifier.

    .venv/bin/python benchmarks/kale_test.py --nulls 500 --repeats 100 --out out/kale_test

Standard normals in 5 dimensions; the data are shifted by 0.3 in one of them, wider by 1.25 in one, or correlated by
0.3 in two. 400 rows of each. Each test at the level 0.05, with 199 permutations. `mmd_test` takes a Gaussian kernel at
the median distance; the classifier (scikit-learn's MLP, half of the rows for training) is tested by its accuracy on the
rest (arXiv:1610.06545). Rows that are in the folder are not computed again.
"""

import argparse
import json
import math
import pathlib
import time
import warnings

import numpy as np
import pyro
import torch
from scipy.stats import binom
from sklearn.neural_network import MLPClassifier

from pyro_gebm import kale_test
from pyro_gebm.divergences import mmd_test

NUM, DIM = 400, 5
CASES = ("none", "shift", "scale", "copula")


def sample(case, seed):
    """Data of a case and draws of the model."""
    x, y = np.random.default_rng(seed).normal(size=(2, NUM, DIM))
    if case == "shift":
        x[:, 0] += 0.3
    elif case == "scale":
        x[:, 0] *= 1.25
    elif case == "copula":
        x[:, 1] = 0.3 * x[:, 0] + math.sqrt(1 - 0.09) * x[:, 1]
    return x, y


def by_kale(x, y):
    """P-value of `kale_test`."""
    return kale_test(torch.tensor(x), torch.tensor(y), num_permutations=199, progress_bar=False).p_value


def by_mmd(x, y):
    """P-value of `mmd_test`."""
    return float(mmd_test(torch.tensor(x), torch.tensor(y), num_permutations=199).p_value)


def by_classifier(x, y):
    """P-value of a classifier's accuracy on the half that it did not see."""
    half = NUM // 2
    rows, labels = np.concatenate([x[:half], y[:half]]), np.repeat([0, 1], half)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = MLPClassifier((64, 64), early_stopping=True, random_state=0, max_iter=300).fit(rows, labels)
    right = (model.predict(x[half:]) == 0).sum() + (model.predict(y[half:]) == 1).sum()
    return float(binom.sf(right - 1, 2 * (NUM - half), 0.5))


TESTS = {"kale_test": by_kale, "mmd_test": by_mmd, "classifier": by_classifier}


def main(argv=None):
    """Run what is missing and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=pathlib.Path, default=pathlib.Path("out/kale_test"))
    parser.add_argument("--nulls", type=int, default=500, help="data sets of the model itself")
    parser.add_argument("--repeats", type=int, default=100, help="data sets of each other case")
    parser.add_argument("--tests", nargs="+", choices=tuple(TESTS), default=tuple(TESTS))
    args = parser.parse_args(argv)
    args.out.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(1)
    print("| data | test | rejected at 0.05 | s a test |\n|---|---|---|---|")
    for case in CASES:
        num = args.nulls if case == "none" else args.repeats
        for name in args.tests:
            path = args.out / f"{case}-{name}.json"
            found = json.loads(path.read_text()) if path.exists() else {"p": [], "seconds": 0.0}
            while len(found["p"]) < num:
                seed, start = len(found["p"]), time.perf_counter()
                pyro.set_rng_seed(seed)
                found["p"].append(TESTS[name](*sample(case, seed)))
                found["seconds"] += time.perf_counter() - start
                if len(found["p"]) % 20 == 0 or len(found["p"]) == num:
                    path.write_text(json.dumps(found))
            rate = np.mean(np.asarray(found["p"][:num]) <= 0.05)
            error = math.sqrt(rate * (1 - rate) / num)
            print(f"| {case} | {name} | {rate:.3f} ± {error:.3f} ({num}) | {found['seconds'] / len(found['p']):.2f} |")


if __name__ == "__main__":
    main()
