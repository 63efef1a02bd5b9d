"""What training on the model's own draws (`KALE.refine`) mends: before and after, in a table.

    .venv/bin/python benchmarks/refinement.py ring --host pyro numpyro --seeds 5
    GEBM_DATA=... .venv/bin/python benchmarks/refinement.py images --host pyro --base vae --seeds 5 --cache out/images

`ring`: eight Gaussians (radius 2, sd 0.3) in two of ten dimensions, from a base N(0, 1.5^2 I), where one energy that is
trained on draws of the base has an effective share of weights of 1e-4. Log-densities are known: the gap that is left,
KL(data || model), is exact but for log Z, which comes from `SMC` afresh, as do the draws for MMD² to the target; the
p-value is that of a permutation test. The log Z that was carried along is compared with it.

`images`: Fashion-MNIST; networks and metrics of `image_bases.py`. Every model is sampled by chains of MALA from draws
of the prior: 1,000 steps, warm-up among them. `--spoilt` starts from an energy that was blown up on purpose.

`digits`, `curve`: laws of `robustness.py`, trained as there and then refined. Before and after: KALE(data || model) of
held-out data and fresh chains of MALA, by an energy of its own (`training.kale_between`), and MMD² between them.

`redwine`: a real NVP by maximum likelihood, a bounded energy on it (examples/real_nvp_check.py), and its refinement:
negative log-likelihood of the test rows in nats, and of those without a copy among the training rows in parentheses.
"""

import argparse
import importlib
import json
import pathlib
import sys
import time
import warnings
from functools import partial

import numpy as np

RING = {
    "steps": 3000,
    "rate": 1e-3,
    "penalty": 0.02,
    "refine_steps": 8000,
    "refine_rate": 3e-3,
    "refine_batch": 512,
    "chains": 16384,
    "refine_penalty": 1e-4,
    "batch": 256,
}


class PyroHost:
    """Pyro's side: random state is global, networks are modules."""

    name = "pyro"

    def __init__(self):
        import pyro
        import pyro.distributions as dist
        import torch

        import pyro_gebm

        torch.set_num_threads(1)
        self.torch, self.dist, self.pyro, self.package = torch, dist, pyro, pyro_gebm

    def array(self, x):
        return self.torch.as_tensor(np.asarray(x, np.float32))

    def normal(self, dim, scale):
        return self.dist.Normal(0.0, scale).expand([dim]).to_event(1)

    def energy(self, seed, *sizes, **settings):
        self.pyro.set_rng_seed(seed)
        return self.package.nn.MLP(*sizes, **settings)

    def adam(self, rate, steps, b1=0.9):
        def factory(parameters):
            optim = self.torch.optim.Adam(parameters, rate, betas=(b1, 0.999), fused=True)
            return optim, self.torch.optim.lr_scheduler.CosineAnnealingLR(optim, steps)

        return factory

    def run(self, method, seed, *args, **settings):
        self.pyro.set_rng_seed(seed)
        return method(*args, **settings)

    def energies(self, energy, x):
        with self.torch.no_grad():
            return energy(self.array(x)).double().numpy()

    def particles(self, gebm, seed):
        self.pyro.set_rng_seed(seed)
        return self.package.infer.SMC(8192, num_moves=8).run(gebm.latent, progress_bar=False)

    def chains(self, gebm, seed, num_chains, num_warmup, num_steps):
        self.pyro.set_rng_seed(seed)
        kernel = self.package.infer.MALA(lambda: self.pyro.sample("z", gebm.latent), num_steps=num_steps)
        mcmc = self.package.infer.VectorizedMCMC(kernel, 1, num_warmup // num_steps, num_chains, disable_progbar=True)
        mcmc.run()
        return gebm.decode(mcmc.get_samples()["z"]).detach().numpy()


class NumPyroHost:
    """NumPyro's side: keys, networks as pytrees."""

    name = "numpyro"

    def __init__(self):
        import jax
        import numpyro
        import numpyro.distributions as dist
        import optax

        import numpyro_gebm

        self.jax, self.dist, self.numpyro, self.optax, self.package = jax, dist, numpyro, optax, numpyro_gebm

    def array(self, x):
        return self.jax.numpy.asarray(np.asarray(x, np.float32))

    def normal(self, dim, scale):
        return self.dist.Normal(0.0, scale).expand([dim]).to_event(1)

    def energy(self, seed, *sizes, **settings):
        return self.package.nn.MLP(*sizes, **settings, rng_key=self.jax.random.key(seed))

    def adam(self, rate, steps, b1=0.9):
        return self.optax.adam(self.optax.cosine_decay_schedule(rate, steps), b1=b1)

    def run(self, method, seed, *args, **settings):
        return method(self.jax.random.key(seed), *args, **settings)

    def energies(self, energy, x):
        return np.asarray(self.jax.vmap(energy)(self.array(x)), np.float64)

    def particles(self, gebm, seed):
        key = self.jax.random.key(seed)
        return self.package.infer.SMC(8192, num_moves=8).run(gebm.latent, rng_key=key, progress_bar=False)

    def chains(self, gebm, seed, num_chains, num_warmup, num_steps):
        kernel = self.package.infer.MALA(lambda: self.numpyro.sample("z", gebm.latent), num_steps=num_steps)
        mcmc = self.numpyro.infer.MCMC(
            kernel,
            num_warmup=num_warmup // num_steps,
            num_samples=1,
            num_chains=num_chains,
            chain_method="vectorized",
            progress_bar=False,
        )
        mcmc.run(self.jax.random.key(seed))
        return np.asarray(gebm.decode(mcmc.get_samples()["z"]))


HOSTS = {"pyro": PyroHost, "numpyro": NumPyroHost}


# --- Ring in ten dimensions


def ring(num, rng):
    """Draws of the target, shape `(num, 10)`."""
    angle = rng.integers(0, 8, num) * np.pi / 4
    x = 0.3 * rng.normal(size=(num, 10))
    x[:, 0] += 2 * np.cos(angle)
    x[:, 1] += 2 * np.sin(angle)
    return x


def ring_log_density(x):
    """Its log-density."""
    means = np.zeros((8, 10))
    means[:, 0], means[:, 1] = (2 * f(np.arange(8) * np.pi / 4) for f in (np.cos, np.sin))
    log_density = -0.5 * ((x[:, None] - means) ** 2).sum(-1) / 0.09
    return np.logaddexp.reduce(log_density, 1) - np.log(8) - 5 * np.log(2 * np.pi * 0.09)


def gap_of_ring(host, energy, log_partition, x):
    """Mean and standard error over data of their log-density minus that of the model."""
    log_base = -0.5 * (x**2).sum(1) / 2.25 - 5 * np.log(2 * np.pi * 2.25)
    gap = ring_log_density(x) - log_base + host.energies(energy, x) + float(log_partition)
    return gap.mean(), gap.std() / np.sqrt(len(gap))


def run_ring(args, host, seed):
    """One row: before and after."""
    rng, s, start = np.random.default_rng(seed), RING, time.perf_counter()
    data, held_out, fresh = ring(50_000, rng), ring(4000, rng), ring(10_000, rng)
    KALE, KALEGuide, penalty = host.package.KALE, host.package.KALEGuide, host.package.gradient_penalty
    energy = host.energy(seed + 100, (10,), (), (128, 128))
    kale = KALE(
        host.normal(10, 1.5), KALEGuide(energy, penalty=penalty(s["penalty"])), None, host.adam(s["rate"], s["steps"])
    )
    how = {"batch_size": s["batch"], "validation": held_out, "progress_bar": False}
    first = host.run(kale.run, seed, s["steps"], data, **how)
    guide = KALEGuide(first.guide.energy, penalty=penalty(s["refine_penalty"]))
    kale = KALE(host.normal(10, 1.5), guide, None, host.adam(s["refine_rate"], s["refine_steps"]))
    how["batch_size"] = s["refine_batch"]
    second = host.run(kale.refine, seed, s["refine_steps"], data, **how, num_chains=s["chains"])
    gaps, particles = [], []
    for gebm in (first.gebm, second.gebm):
        found = host.particles(gebm, seed)
        gap, error = gap_of_ring(host, gebm.energy, found.log_partition.value, fresh)
        gaps.append((gap, float(np.hypot(error, found.log_partition.std_error))))
        particles.append((np.asarray(gebm.decode(found.z))[:3000], found.log_partition))
    carried, exact = second.log_partition, particles[1][1]
    mmd2, p = mmd_to(host, particles[1][0], fresh[:3000])
    return {
        "before": gaps[0][0],
        "after": gaps[1][0],
        "error": gaps[1][1],
        "z": (carried.value - exact.value) / float(np.hypot(carried.std_error, exact.std_error)),
        "mmd2": mmd2,
        "p": p,
        "ess": float(first.validation.ess_share[-1]),
        "backs": float(np.asarray(second.losses.backs)[-1]),
        "ancestors": float(np.asarray(second.losses.ancestors)[-1]),
        "seconds": time.perf_counter() - start,
    }


def mmd_to(host, x, y):
    """Squared MMD, and the p-value of its permutation test."""
    divergences = host.package.divergences
    if host.name == "pyro":
        host.pyro.set_rng_seed(0)
        test = divergences.mmd_test(host.array(x), host.array(y), num_permutations=200)
    else:
        test = divergences.mmd_test(host.array(x), host.array(y), num_permutations=200, rng_key=host.jax.random.key(0))
    return float(test.statistic), float(test.p_value)


def show_ring(host, seed, row):
    """One line of the table."""
    print(
        f"| {host.name} | {seed} | {row['ess']:.1e} | {row['before']:.2f} | {row['after']:.3f} ± {row['error']:.3f} "
        f"| {row['mmd2']:.5f} ({row['p']:.2f}) | {row['z']:.1f} | {row['ancestors']:.0f} | {row['backs']:.0f} "
        f"| {row['seconds']:.0f} |",
        flush=True,
    )


# --- Images


def networks(host, args, images, seed):
    """Base and energy in a host, the same weights in both."""
    import pyro_gebm

    module = importlib.import_module("image_bases")
    kinds = {"vae": module.vae, "gan": module.gan, "smooth-vae": partial(module.vae, scale=1.0)}
    decoder = kinds[args.base](args.cache, images, seed)
    importlib.import_module("torch").manual_seed(seed)
    gebm = pyro_gebm.GEBM(module.base_of(decoder), module.energy().eval())
    path = pathlib.Path(args.cache) / f"start-{args.base}-{host.name}-{seed}.npz"
    pyro_gebm.save(gebm, path)
    gebm = host.package.load(path)
    return gebm.base, gebm.energy


def run_images(args, host, seed):
    """One row: base, before and after."""
    module = importlib.import_module("image_bases")
    data = module.load(args.data)
    train, held_out = data[0][:55_000], data[0][55_000:]
    of = module.features(args.cache, data)
    reference, start = of(data[2]), time.perf_counter()
    base, energy = networks(host, args, data[0], seed)
    KALE, KALEGuide, penalty = host.package.KALE, host.package.KALEGuide, host.package.gradient_penalty
    how = {"batch_size": 64, "validation": held_out, "progress_bar": False}
    steps = int(args.fraction * 5000)
    spoil = {"objective": "plain_kale", "max_grad_norm": np.inf, "noise_factor": 1} if args.spoilt else {}
    rate, weight = (2e-3, 1e-4) if args.spoilt else (2e-4, args.first_penalty)
    kale = KALE(base, KALEGuide(energy, penalty=penalty(weight)), None, host.adam(rate, steps, 0.5), **spoil)
    first = host.run(kale.run, seed, steps, train, **how, keep_best=not args.spoilt)
    row = {"first_seconds": time.perf_counter() - start, "kale": [float(first.validation.kale[-1])]}
    start, steps = time.perf_counter(), int(args.fraction * args.steps)
    guide = KALEGuide(first.guide.energy, penalty=penalty(args.penalty))
    kale = KALE(base, guide, None, host.adam(args.rate, steps, 0.5))
    how |= {"batch_size": args.batch_size}
    second = host.run(kale.refine, seed, steps, train, **how, num_chains=args.chains)
    row |= {
        "seconds": time.perf_counter() - start,
        "gap": list(second.gap_closed[:2]),
        "held_out": [float(x) for x in second.validation.kale],
        "backs": float(np.asarray(second.losses.backs)[-1]),
        "ancestors": float(np.asarray(second.losses.ancestors)[-1]),
        "updates": int((np.diff(np.asarray(second.losses.ancestors)) != 0).sum()),
    }
    print(f"{host.name} {seed}: trained, {json.dumps(row)}", flush=True)
    x = host.run(base.sample, 7, (args.draws,))
    row["base"] = module.scores(of(np.asarray(x)), reference)
    module.show(f"{host.name} {seed}: base", row["base"])
    for name, result in (("before", first), ("after", second)):
        for beta in args.betas:
            gebm = result.gebm.temper(beta)
            draws = host.chains(gebm, 11, args.draws, int(args.fraction * 1000), 10)
            row[f"{name}, beta {beta:g}"] = module.scores(of(draws), reference)
            module.show(f"{host.name} {seed}: {name}, beta {beta:g}", row[f"{name}, beta {beta:g}"], row["base"])
    return row


# --- RedWine


def run_redwine(args, host, seed):
    """Test NLL of a flow, of a bounded energy on it, and after the refinement."""
    sys.path.append(str(pathlib.Path(__file__).parents[1] / "examples"))
    check, uci = importlib.import_module("real_nvp_check"), importlib.import_module("uci")
    module = importlib.import_module(f"real_nvp_check_{host.name}")
    split = uci.split(uci.load("RedWine", args.data), seed, rounded=True)
    settings, start = {**check.SETTINGS, **check.CHANGES["RedWine"]}, time.perf_counter()
    flow, _ = module.maximum_likelihood(split, seed, settings, False)
    before = module.bounded(flow, split, "kale", seed, settings, False)
    package, steps = host.package, int(args.fraction * 3000)
    guide = package.KALEGuide(before.energy, penalty=package.gradient_penalty(settings["penalty"]))
    kale = package.KALE(flow, guide, None, host.adam(3e-4, steps))
    how = {"batch_size": settings["batch_size"], "validation": split.validation, "progress_bar": False}
    after = host.run(kale.refine, seed, steps, split.train, **how)
    row = {"seconds": time.perf_counter() - start, "gap_closed": list(after.gap_closed[:2])}
    for name, law in (("flow", flow), ("before", before), ("after", after.gebm)):
        nll = -module.log_density(law, split.test)
        if name != "flow":  # log Z afresh: the energy is bounded
            nll += module.estimate_log_partition(law, 200_000, seed, False).value - float(np.asarray(law.log_partition))
        row[name] = [float(nll.mean()), float(nll[~split.repeated].mean())]
    return row


def show_redwine(host, seed, row):
    """One line of the table."""
    cells = " | ".join(f"{row[name][0]:.3f} ({row[name][1]:.3f})" for name in ("flow", "before", "after"))
    gap = "{:.3f} ± {:.3f}".format(*row["gap_closed"])
    print(f"| {host.name} | {seed} | {cells} | {gap} | {row['seconds']:.0f} |", flush=True)


# --- Digits and the curve


def run_law(args, host, seed):
    """KALE and MMD² between held-out data and fresh chains, before and after."""
    robustness, start = importlib.import_module("robustness"), time.perf_counter()
    args.objective, args.max_grad_norm = None, "auto"
    law = robustness.LAWS[args.what](args, seed)
    before, _ = robustness.train(args, law, host, seed)
    steps, stage = int(args.fraction * 2000), law.stages[-1]
    guide = host.package.KALEGuide(before.guide.energy, penalty=host.package.gradient_penalty(stage["penalty"]))
    kale = host.package.KALE(before.gebm.base, guide, None, host.adam(args.rate, steps, 0.5))
    how = {"batch_size": 128, "validation": law.held_out, "progress_bar": False, "num_chains": args.chains}
    after = host.run(kale.refine, seed, steps, law.data, **how)
    row = {"gap_closed": list(after.gap_closed[:2]), "backs": float(np.asarray(after.losses.backs)[-1])}
    for name, result in (("before", before), ("after", after)):
        draws = host.chains(result.gebm, 11, 4 * len(law.held_out), int(args.fraction * 1000), 10)
        found = gap_between(host, seed, law, draws)
        row[name] = [found.value, found.std_error, *mmd_to(host, draws[: len(law.held_out)], law.held_out)]
    return row | {"seconds": time.perf_counter() - start}


def gap_between(host, seed, law, draws):
    """Held-out KALE of a fresh energy between held-out data and draws."""
    shape, out, hidden, activation = law.energy
    guide = host.package.KALEGuide(
        host.energy(seed + 90, shape, out, hidden, activation=activation), penalty=host.package.gradient_penalty(0.1)
    )
    if host.name == "pyro":
        host.pyro.set_rng_seed(seed)
    key = {"rng_key": host.jax.random.key(seed)} if host.name == "numpyro" else {}
    between, x = host.package.training.kale_between, (host.array(law.held_out), host.array(draws))
    return between(*x, guide, host.adam(1e-3, 2000, 0.5), progress_bar=False, **key)


def show_law(host, seed, row):
    """One line of the table."""
    cells = " | ".join("{:.3f} ± {:.3f} | {:.5f} ({:.2f})".format(*row[name]) for name in ("before", "after"))
    gap = "{:.3f} ± {:.3f}".format(*row["gap_closed"])
    print(f"| {host.name} | {seed} | {cells} | {gap} | {row['backs']:.0f} | {row['seconds']:.0f} |", flush=True)


RUNS = {"ring": run_ring, "images": run_images, "redwine": run_redwine, "digits": run_law, "curve": run_law}


def main(argv=None):
    """Run what is asked for; finished rows are kept in a file and not run again."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=RUNS)
    parser.add_argument("--host", nargs="+", choices=HOSTS, default=list(HOSTS))
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--first-seed", type=int, default=0)
    parser.add_argument("--out", help="file of finished rows, one JSON a line")
    parser.add_argument("--data", help="folder of the data; GEBM_DATA where it is not given")
    parser.add_argument("--cache", default="out/images", help="folder for trained networks")
    parser.add_argument("--base", choices=["vae", "smooth-vae", "gan"], default="vae")
    parser.add_argument("--spoilt", action="store_true", help="start from an energy that was blown up")
    parser.add_argument("--fraction", type=float, default=1.0, help="of all numbers of steps, for a trial")
    parser.add_argument("--steps", type=int, default=2500)
    parser.add_argument("--rate", type=float, default=3e-4)
    parser.add_argument("--first-penalty", type=float, default=0.02, help="of the energy on draws of the base")
    parser.add_argument("--penalty", type=float, default=0.02)
    parser.add_argument("--batch-size", type=int, default=96)
    parser.add_argument("--chains", type=int, default=2048)
    parser.add_argument("--draws", type=int, default=2000)
    parser.add_argument("--betas", type=float, nargs="+", default=[1.0, 3.0])
    args = parser.parse_args(argv)
    warnings.simplefilter("ignore", RuntimeWarning)
    path = None if args.out is None else pathlib.Path(args.out)
    done = [json.loads(line) for line in path.read_text().splitlines()] if path and path.exists() else []
    settings = {k: v for k, v in vars(args).items() if k not in ("host", "seeds", "first_seed", "out", "data", "cache")}
    if args.what == "ring":
        columns = "host | seed | ESS of the base's weights | gap before | gap left | MMD² (p) | log Z, in errors"
        print(f"| {columns} | ancestors | back | s |\n{'|---' * 10}|")
    if args.what == "redwine":
        print("| host | seed | flow | before | after | gap closed | s |\n|---|---|---|---|---|---|---|")
    if args.what in ("digits", "curve"):
        columns = "host | seed | KALE before | MMD² (p) before | KALE after | MMD² (p) after | gap closed | back | s"
        print(f"| {columns} |\n{'|---' * 9}|")
    for name in args.host:
        host = HOSTS[name]()
        for seed in range(args.first_seed, args.first_seed + args.seeds):
            key = {"host": name, "seed": seed, "settings": settings}
            row = next((row["row"] for row in done if {k: row[k] for k in key} == key), None)
            if row is None:
                row = RUNS[args.what](args, host, seed)
                if path:
                    with path.open("a") as file:
                        file.write(json.dumps({**key, "row": row}) + "\n")
            if args.what != "images":
                {"ring": show_ring, "redwine": show_redwine}.get(args.what, show_law)(host, seed, row)


if __name__ == "__main__":
    main()
