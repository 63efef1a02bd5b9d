"""Kill -9 training and streaming at random moments, resume, and compare the end with that of an undisturbed run.

    python benchmarks/kills.py --kills 50 --out kills.json

prints the table of docs/reliability.md. Every finished run is noted in the file: a second call goes on from there.
"""

import argparse
import json
import os
import pathlib
import random
import shutil
import subprocess
import sys
import tempfile
import time

ROOT = pathlib.Path(__file__).parents[1]
HOSTS, KINDS = ("numpyro", "pyro"), ("training", "streaming")

#: What is killed: a program of each host that says when it begins, and at its end what came out.
COMMON = """
import hashlib, json, pathlib, sys
import numpy as np
folder, kind = pathlib.Path(sys.argv[1]), sys.argv[2]
data = np.random.default_rng(0).normal(size=(500, 2)).astype("float32")
settings = dict(batch_size=50, progress_bar=False, checkpoint_dir=folder / "run", checkpoint_every=20)
if any((folder / "run").glob("step-*[!p]")):
    settings["resume_from"] = folder / "run"
stream = dict(chunk_size=20, resume=True, progress_bar=False)
"""
PROGRAMS = {
    "numpyro": COMMON
    + """
import jax, numpyro, numpyro.distributions as dist, optax
from numpyro.infer import MCMC
from numpyro_gebm import KALE, KALEGuide, Pushforward, nn
from numpyro_gebm.infer import GHMC, stream_draws
prior = dist.Normal(0.0, 1.0).expand([2]).to_event(1)
keys = jax.random.split(jax.random.key(0), 4)
if kind == "training":
    base = Pushforward(prior, nn.MLP((2,), (2,), (8,), rng_key=keys[0]))
    guide = KALEGuide(nn.MLP((2,), (), (8,), rng_key=keys[1]))
    kale = KALE(base, guide, optax.adam(1e-3), optax.adam(1e-3), energy_steps=2)
    print("begins", flush=True)
    result = kale.run(keys[2], 2000, data, **settings)
    values = [np.asarray(leaf) for leaf in jax.tree.leaves((result.state.base, result.state.energy))]
else:
    mcmc = MCMC(GHMC(lambda: numpyro.sample("z", prior)), num_warmup=200, num_samples=20_000, num_chains=4)
    mcmc.chain_method = "vectorized"
    print("begins", flush=True)
    draws = stream_draws(mcmc, folder / "draws.nc", rng_key=keys[3], **stream)
    values = [draws["posterior"]["z"].values, draws["sample_stats"]["lp"].values]
print(hashlib.sha256(b"".join(np.ascontiguousarray(v).tobytes() for v in values)).hexdigest(), flush=True)
""",
    "pyro": COMMON
    + """
import pyro, pyro.distributions as dist, torch
torch.set_num_threads(1)
from pyro_gebm import KALE, KALEGuide, Pushforward, nn
from pyro_gebm.infer import GHMC, VectorizedMCMC, stream_draws
pyro.set_rng_seed(0)
prior = dist.Normal(0.0, 1.0).expand([2]).to_event(1)
adam = lambda parameters: torch.optim.Adam(parameters, 1e-3)
if kind == "training":
    base, guide = Pushforward(prior, nn.MLP((2,), (2,), (8,))), KALEGuide(nn.MLP((2,), (), (8,)))
    print("begins", flush=True)
    KALE(base, guide, adam, adam, energy_steps=2).run(600, data, **settings)
    values = [v.numpy() for m in (base.generator, guide.energy) for v in m.state_dict().values()]
else:
    mcmc = VectorizedMCMC(GHMC(lambda: pyro.sample("z", prior)), 1000, 200, 4)
    print("begins", flush=True)
    draws = stream_draws(mcmc, folder / "draws.nc", **stream)
    values = [draws["posterior"]["z"].values, draws["sample_stats"]["lp"].values]
print(hashlib.sha256(b"".join(np.ascontiguousarray(v).tobytes() for v in values)).hexdigest(), flush=True)
""",
}


def start(host, kind, folder):
    """A process that has begun."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "JAX_COMPILATION_CACHE_DIR": str(folder.parent / "jax")}
    process = subprocess.Popen(
        [sys.executable, "-W", "ignore", "-c", PROGRAMS[host], str(folder), kind],
        stdout=subprocess.PIPE,
        text=True,
        env=environment,
    )
    assert process.stdout is not None and process.stdout.readline() == "begins\n"
    return process


def end_of(process):
    """What came out of a process that was let finish."""
    out, _ = process.communicate()
    if process.returncode:
        raise RuntimeError(f"A run that was not killed failed with exit status {process.returncode}.")
    return out.strip()


def progress(folder):
    """Steps or draws that are safe, and temporary files: a write that was cut."""
    steps = [int(path.name[5:14]) for path in folder.glob("*/step-*") if not path.name.endswith(".tmp")]
    return max(steps, default=0), len(list(folder.glob("**/*.tmp")))


def killed_run(host, kind, scratch, seconds, rng, most):
    """One run, killed at random moments until it ends or was killed often enough; what happened, and what came out."""
    folder, kills = scratch / f"{host}-{kind}", []
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    while len(kills) < most:
        process, limit = start(host, kind, folder), rng.uniform(0.0, 1.0) * seconds
        begun = time.perf_counter()
        try:
            process.wait(limit)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
            safe, cut = progress(folder)
            kills.append({"after": round(time.perf_counter() - begun, 3), "safe": safe, "cut": cut})
            continue
        break
    else:
        process = start(host, kind, folder)
    return kills, end_of(process)


def measure(host, kind, num_kills, out, rng, progress_line):
    """Runs of one program until it was killed so often; they are added to the file."""
    with tempfile.TemporaryDirectory() as scratch_name:
        scratch = pathlib.Path(scratch_name)
        for name in ("first", "reference"):  # the first compiles
            (scratch / name).mkdir()
            process, begun = start(host, kind, scratch / name), time.perf_counter()
            reference = end_of(process)
            seconds = time.perf_counter() - begun
        done = read(out)
        entry = done.setdefault(f"{host} {kind}", {"kills": [], "runs": 0, "equal": 0})
        while len(entry["kills"]) < num_kills:
            kills, result = killed_run(host, kind, scratch, seconds, rng, min(10, num_kills - len(entry["kills"])))
            entry["kills"] += kills
            entry["runs"] += 1
            entry["equal"] += result == reference
            out.write_text(json.dumps(done))
            progress_line(f"{host} {kind}: {len(entry['kills'])} of {num_kills} kills")


def read(out):
    """What was measured so far."""
    return json.loads(out.read_text()) if out.exists() else {}


def table(done):
    """The lines of a table."""
    yield "| what | kills | after the first checkpoint or chunk | in the middle of a write | runs | equal bit for bit |"
    yield "|---|---|---|---|---|---|"
    for name, entry in done.items():
        safe, cut = (sum(kill[key] > 0 for kill in entry["kills"]) for key in ("safe", "cut"))
        yield f"| {name} | {len(entry['kills'])} | {safe} | {cut} | {entry['runs']} | {entry['equal']} |"


def main(arguments=None):
    """Measure what is missing, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=50, help="of each program")
    parser.add_argument("--hosts", nargs="+", default=list(HOSTS), choices=HOSTS)
    parser.add_argument("--kinds", nargs="+", default=list(KINDS), choices=KINDS)
    parser.add_argument("--out", type=pathlib.Path, default=pathlib.Path("kills.json"))
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(arguments)
    rng = random.Random(options.seed)
    for host in options.hosts:
        for kind in options.kinds:
            measure(host, kind, options.kills, options.out, rng, lambda line: print(line, file=sys.stderr, flush=True))
    done = read(options.out)
    print("\n".join(table(done)))
    return done


if __name__ == "__main__":
    main()
