"""Rates of the joint game: what base and energy do to each other when they are trained together.

    GEBM_DATA=... .venv/bin/python benchmarks/joint.py --cache out/images --out out/joint.jsonl

Laws and bases of `robustness.py`. The energy is trained alone for a while, then both together, in several ways. Draws
of the base before and after are compared with held-out data: recall and coverage by five nearest neighbours.
"""

import argparse
import json
import pathlib
import sys
import warnings

import numpy as np
import robustness
from images import scores
from refinement import HOSTS

#: Rate of the energy, of the base, decay of the base's average.
WAYS = {
    "equal rates": (2e-4, 2e-4, None),
    "equal rates, averaged": (2e-4, 2e-4, 0.99),
    "energy 10 times faster": (5e-4, 5e-5, None),
    "energy 10 times faster, averaged": (5e-4, 5e-5, 0.99),
}


def run(args, host, name, seed, way):
    """Scores of the base before and after."""
    law = robustness.LAWS[name](args, seed)
    package, base = host.package, law.base(host, seed)
    (shape, out, hidden, activation), before = law.energy, law.stages[-1]
    energy = host.energy(seed + 50, shape, out, hidden, activation=activation)
    guide = package.KALEGuide(energy, penalty=package.gradient_penalty(before["penalty"]))
    how = {"batch_size": before.get("batch", 128), "progress_bar": False}
    kale = package.KALE(base, guide, None, host.adam(before["energy"], 10**6, 0.5))
    result = host.run(kale.run, seed, int(args.fraction * 1000), law.data, **how)
    x = [host.run(result.gebm.base.sample, seed, (2000,))]
    energy_rate, base_rate, decay = WAYS[way]
    guide = package.KALEGuide(result.guide.energy, penalty=package.gradient_penalty(0.1))
    optims = [host.adam(rate, 10**6, 0.5) for rate in (base_rate, energy_rate)]
    kale = package.KALE(result.gebm.base, guide, *optims, energy_steps=2, ema_decay=decay)
    result = host.run(kale.run, seed, int(args.fraction * 1500), law.data, **how, validation=law.held_out)
    x.append(host.run(result.gebm.base.sample, seed, (2000,)))
    x = [np.asarray(a, np.float32).reshape(len(a), -1) for a in (*x, np.asarray(law.held_out)[:2000])]
    found = [scores(a, x[2]) for a in x[:2]]
    return {"before": found[0], "after": found[1], "kale": float(result.validation.kale[-1])}


def main(argv=None):
    """Run what is not in the file yet, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--laws", nargs="+", choices=robustness.LAWS, default=["ring", "curve", "digits", "fashion"])
    parser.add_argument("--host", choices=HOSTS, default="pyro")
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--fraction", type=float, default=1.0, help="of all numbers of steps, for a trial")
    parser.add_argument("--data", help="folder of the data; GEBM_DATA where it is not given")
    parser.add_argument("--cache", default="out/images", help="folder for trained networks")
    parser.add_argument("--out", default="out/joint.jsonl", help="file of finished runs, one JSON a line")
    args = parser.parse_args(argv)
    warnings.simplefilter("ignore")
    path, host = pathlib.Path(args.out), HOSTS[args.host]()
    path.parent.mkdir(parents=True, exist_ok=True)
    rows = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
    print("| law | way | recall before → after | coverage before → after | held-out KALE at the end |")
    print("|---|---|---|---|---|")
    for name in args.laws:
        for way in WAYS:
            for seed in range(args.seeds):
                key = {"law": name, "way": way, "seed": seed, "host": args.host, "fraction": args.fraction}
                row = next((row["row"] for row in rows if row["key"] == key), None)
                if row is None:
                    row = run(args, host, name, seed, way)
                    with path.open("a") as file:
                        file.write(json.dumps({"key": key, "row": row}) + "\n")
                shown = (f"{row['before'][k]:.2f} → {row['after'][k]:.2f}" for k in ("recall", "coverage"))
                print(f"| {name} | {way} | {' | '.join(shown)} | {row['kale']:.3f} |", flush=True)


if __name__ == "__main__":
    sys.exit(main())
