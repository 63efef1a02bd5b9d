"""Does training end well? Five laws, several seeds, both hosts: held-out KALE at its best and at the end.

    GEBM_DATA=... .venv/bin/python benchmarks/robustness.py --cache out/images --out out/robustness.jsonl

Every law trains a base in some way, and then the energy alone on the finished base: KALE on held-out data is that of
this last stage. A run ends badly if its last value is below 0, or below its best by more than 0.1 and two standard
errors. Runs that are in the file already are not run again. `--objective plain_kale --max-grad-norm inf` is what
training did before its gradient was bounded.
"""

import argparse
import json
import math
import pathlib
import sys
import time
import warnings

import numpy as np
from refinement import HOSTS

sys.path.append(str(pathlib.Path(__file__).parents[1] / "examples"))


class Law:
    """Data, a base and stages of its training before the last one.

    Args:
        data: rows that are trained on.
        held_out: rows that are looked at.
        energy: sizes and settings of the energy's MLP.
        stages: settings of the stages, the last one of the energy alone: see `stage`.
        base: callable from the host and the seed to the base.
    """

    def __init__(self, data, held_out, energy, stages, base):
        self.data, self.held_out, self.energy, self.stages, self.base = data, held_out, energy, stages, base


def mlp(host, seed, *sizes, **settings):
    """A network in a host."""
    return host.energy(seed, *sizes, **settings)


def pushed(host, dim, generator):
    """A base with a standard normal latent."""
    return host.package.Pushforward(host.normal(dim, 1.0), generator)


def ring(args, seed):
    """Eight Gaussians in the plane."""
    rng = np.random.default_rng(seed)
    angle = rng.integers(0, 8, 12_000) * np.pi / 4
    x = np.stack([2 * np.cos(angle), 2 * np.sin(angle)], 1) + 0.2 * rng.normal(size=(12_000, 2))
    stages = [{"base": 5e-4, "energy": 1e-3, "penalty": 0.1, "steps": 2000}]
    stages += [{"energy": 1e-3, "penalty": 0.02, "steps": 3000}]
    base = lambda host, seed: pushed(host, 2, mlp(host, seed, (2,), (2,), (64, 64)))  # noqa: E731
    return Law(x[:10_000], x[10_000:], ((2,), (), (64, 64), "silu"), stages, base)


def curve(args, seed):
    """Curve (b) of examples/curve.py: the base has the wrong support and the wrong mass."""
    from curve import SETTINGS, sample_target
    from curve import curve as shape

    x = sample_target(12_000, [seed, 1])

    def base(host, seed):
        module = __import__(f"curve_{host.name}")
        start = map(host.array, SETTINGS["start"])
        return host.package.Pushforward(module._uniform(), module.Deformed(shape, *start))

    stages = [{"base": 4e-3, "energy": 1e-3, "penalty": 0.02, "steps": 1500, "batch": 256, "cosine": False}]
    stages += [{"energy": 2e-3, "penalty": 2e-3, "steps": 2000, "batch": 256}]
    return Law(x[:10_000], x[10_000:], ((2,), (), (64, 64), "silu"), stages, base)


def digits(args, seed):
    """The 8x8 digits of scikit-learn."""
    from datasets import digits as images

    train, test, *_ = images(seed)
    stages = [{"base": 2e-4, "energy": 2e-4, "penalty": 0.5, "steps": 1000, "cosine": False}]
    stages += [{"energy": 2e-4, "penalty": 0.02, "steps": 4000}]

    def base(host, seed):
        return pushed(host, 16, mlp(host, seed, (16,), (64,), (128, 128), output_activation="sigmoid"))

    return Law(train.reshape(-1, 64), test.reshape(-1, 64), ((64,), (), (128, 128), "leaky_relu"), stages, base)


def fashion(args, seed):
    """Fashion-MNIST: a VAE, three joint stages, and the energy alone."""
    import image_bases
    import torch

    data = image_bases.load(args.data)[0]

    def base(host, seed):
        import pyro_gebm

        decoder = image_bases.vae(args.cache, data, seed)
        path = pathlib.Path(args.cache) / f"robustness-{host.name}-{seed}.npz"
        torch.manual_seed(seed)
        pyro_gebm.save(pyro_gebm.GEBM(image_bases.base_of(decoder), image_bases.energy().eval()), path)
        return host.package.load(path).base

    stages = [{"energy": 2e-4, "penalty": 0.02, "steps": 2000, "batch": 64, "cosine": False}]
    joint = {"base": 5e-5, "energy": 5e-4, "penalty": 0.1, "average": 0.99, "steps": 500, "batch": 64, "cosine": False}
    stages += [joint] * 3 + [{"energy": 2e-4, "penalty": 0.02, "steps": 4000, "batch": 64}]
    return Law(data[:55_000], data[55_000:], ((784,), (), (512, 256), "leaky_relu"), stages, base)


def redwine(args, seed):
    """RedWine with a real NVP, trained by maximum likelihood."""
    from uci import load, split

    parts = split(load("RedWine", args.data), seed, rounded=True)

    def base(host, seed):
        if host.name == "pyro":
            host.pyro.set_rng_seed(seed)
            from pyro_gebm.flows import real_nvp

            return real_nvp(parts.train.shape[1], 5, (100, 100))
        from numpyro_gebm.flows import real_nvp

        return real_nvp(parts.train.shape[1], 5, (100, 100), rng_key=host.jax.random.key(seed))

    stages = [{"base": 1e-3, "objective": "maximum_likelihood", "penalty": 0.1, "steps": 1000, "batch": 100}]
    stages += [{"energy": 1e-3, "penalty": 0.1, "steps": 3000, "batch": 100}]
    energy = ((parts.train.shape[1],), (), (256, 256), "leaky_relu")
    return Law(parts.train, np.concatenate([parts.validation, parts.test]), energy, stages, base)


LAWS = {"ring": ring, "curve": curve, "digits": digits, "fashion": fashion, "redwine": redwine}


def train(args, law, host, seed):
    """Train a base and an energy on a law, stage by stage.

    Returns:
        The result of the last stage, and how many steps were skipped in all.
    """
    base, (shape, out, hidden, activation) = law.base(host, seed), law.energy
    energy, skipped, result = host.energy(seed + 50, shape, out, hidden, activation=activation), 0, None
    for i, s in enumerate(law.stages):
        package, steps = host.package, max(2, int(args.fraction * s["steps"]))
        length = steps if s.get("cosine", True) else 100 * steps
        rates = [s.get("base"), s.get("energy")]
        optims = [None if rate is None else host.adam(rate, length, 0.5) for rate in rates]
        settings = {"energy_steps": 2, "ema_decay": s.get("average")}
        if "objective" in s or args.objective:
            settings["objective"] = s.get("objective", args.objective)
        if args.max_grad_norm != "auto":
            settings["max_grad_norm"] = float(args.max_grad_norm)
        guide = package.KALEGuide(energy, penalty=package.gradient_penalty(s["penalty"]))
        kale = package.KALE(base, guide, *optims, **settings)
        last = s is law.stages[-1]
        looks = {"validation": law.held_out} if last or "objective" in s else {}
        result = host.run(
            kale.run, seed + i, steps, law.data, batch_size=s.get("batch", 128), progress_bar=False, **looks
        )
        skipped += int(kale.num_skipped if host.name == "pyro" else result.state.skipped)
        base, energy = result.gebm.base, result.guide.energy
    return result, skipped


def run(args, name, host, seed):
    """Train on a law; what held-out KALE of the last stage was."""
    start = time.perf_counter()
    result, skipped = train(args, LAWS[name](args, seed), host, seed)
    curve, distances = result.validation, []
    if args.distance and name == "fashion":
        import image_bases

        data = image_bases.load(args.data)
        of = image_bases.features(args.cache, data)
        draws = host.run(result.gebm.base.sample, 7, (2000,)), host.chains(result.gebm, 7, 2000, 400, 10)
        distances = [image_bases.scores(of(np.asarray(x)), of(data[2])) for x in draws]
    best = int(np.nanargmax(curve.kale))
    A = float(np.asarray(result.losses.log_partition)[-1])
    return {
        "best": float(curve.kale[best]),
        "last": float(curve.kale[-1]),
        "error": float(math.hypot(curve.error[best], curve.error[-1])),
        "ess": float(curve.ess_share[-1]),
        "A": A - float(curve.log_partition[-1]),
        "skipped": skipped,
        "distances": distances,
        "seconds": time.perf_counter() - start,
    }


def ends_badly(row):
    """Whether the last value is below 0, or well below the best."""
    return not (row["last"] >= 0 and row["last"] >= row["best"] - 0.1 - 2 * row["error"])


def table(rows):
    """A line per law, host and objective."""
    print(
        "| law | host | gradient | runs | ended badly | best | last | worst fall | A - estimate, worst | skipped | s |"
    )
    print("|---|---|---|---|---|---|---|---|---|---|---|")
    names = ("law", "host", "objective", "max_grad_norm")
    keys = sorted({tuple(row["key"][k] or "" for k in names) for row in rows})
    for law, host, objective, norm in keys:
        chosen = {"law": law, "host": host, "objective": objective or None, "max_grad_norm": norm}
        of = [row["row"] for row in rows if {name: row["key"][name] for name in chosen} == chosen]
        gradient = f"{objective or 'kale'}{'' if norm == 'auto' else f', clip {norm}'}"
        best, last, seconds = (np.median([row[k] for row in of]) for k in ("best", "last", "seconds"))
        fall, off = max(row["best"] - row["last"] for row in of), max(abs(row["A"]) for row in of)
        bad, skipped = sum(map(ends_badly, of)), sum(row["skipped"] for row in of)
        print(
            f"| {law} | {host} | {gradient} | {len(of)} | {bad} | {best:.3f} | {last:.3f} | {fall:.3f} | {off:.2f} "
            f"| {skipped} | {seconds:.0f} |"
        )


def main(argv=None):
    """Run what is not in the file yet, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--laws", nargs="+", choices=LAWS, default=list(LAWS))
    parser.add_argument("--host", nargs="+", choices=HOSTS, default=list(HOSTS))
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--objective", help="of the energy; the default where it is not given")
    parser.add_argument("--max-grad-norm", default="auto")
    parser.add_argument("--distance", action="store_true", help="Fréchet distances of base and model, for fashion")
    parser.add_argument("--fraction", type=float, default=1.0, help="of all numbers of steps, for a trial")
    parser.add_argument("--data", help="folder of the data; GEBM_DATA where it is not given")
    parser.add_argument("--cache", default="out/images", help="folder for trained networks")
    parser.add_argument("--out", default="out/robustness.jsonl", help="file of finished runs, one JSON a line")
    args = parser.parse_args(argv)
    warnings.simplefilter("ignore", RuntimeWarning)
    path = pathlib.Path(args.out)
    path.parent.mkdir(parents=True, exist_ok=True)
    rows = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
    hosts = {name: HOSTS[name]() for name in args.host}
    settings = {k: getattr(args, k) for k in ("objective", "max_grad_norm", "fraction")}
    for law in args.laws:
        for name, host in hosts.items():
            for seed in range(args.seeds):
                key = {"law": law, "host": name, "seed": seed, **settings}
                if any(row["key"] == key for row in rows):
                    continue
                row = run(args, law, host, seed)
                rows.append({"key": key, "row": row})
                print(json.dumps(rows[-1]), flush=True)
                with path.open("a") as file:
                    file.write(json.dumps(rows[-1]) + "\n")
    table(rows)


if __name__ == "__main__":
    main()
