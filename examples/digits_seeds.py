"""GEBM against its own base on held-out digits, over several seeds: the table of docs/digits.md.

python examples/digits_seeds.py --backend numpyro --seeds 5
"""

import argparse
import importlib
import time

import numpy as np
from datasets import digits
from digits import SETTINGS
from features import digit_features

__all__ = ["main"]


def main(argv=None):
    """Train and compare once per seed; print one row of a Markdown table each."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--backend", choices=("numpyro", "pyro"), default="numpyro")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--first-seed", type=int, default=10)
    parser.add_argument("--steps", type=int)
    parser.add_argument("--final-steps", type=int)
    parser.add_argument("--draws", type=int, default=4000, help="independent draws of each")
    args = parser.parse_args(argv)
    host = importlib.import_module(f"digits_{args.backend}")
    steps = host.STEPS if args.steps is None else args.steps
    final_steps = host.FINAL_STEPS if args.final_steps is None else args.final_steps
    images, held_out, labels, _ = digits()
    features = digit_features(images, labels)
    print("| seed | MMD² base | MMD² GEBM | Fréchet base | Fréchet GEBM | seconds of training |")
    print("|---|---|---|---|---|---|")
    wins = []
    for seed in range(args.first_seed, args.first_seed + args.seeds):
        start = time.perf_counter()
        gebm, _ = host.train(images, seed, SETTINGS, steps, final_steps, progress_bar=False)
        seconds = time.perf_counter() - start
        rows = [host.distances(features(x), features(held_out)) for x in host.draw(gebm, args.draws, seed)]
        (mmd2_base, frechet_base), (mmd2_gebm, frechet_gebm) = rows
        print(
            f"| {seed} | {mmd2_base:.5f} | {mmd2_gebm:.5f} | {frechet_base:.2f} | {frechet_gebm:.2f} | {seconds:.0f} |",
            flush=True,
        )
        wins.append([mmd2_gebm < mmd2_base, frechet_gebm < frechet_base])
    counts = np.sum(wins, axis=0)
    print(f"\nGEBM beats its base: MMD² {counts[0]} of {args.seeds}, Fréchet {counts[1]} of {args.seeds}.")


if __name__ == "__main__":
    main()
