"""Kill -9 training and streaming at random moments, resume, and compare the end with that of an undisturbed run.

    python benchmarks/kills.py --kills 50 --out kills.json
    python benchmarks/kills.py --kills 20 --processes 2 --out kills_of_two.json

print the tables of docs/reliability.md and docs/scale.md. Of several processes one is killed, and the others have to
stop by themselves. Every finished run is noted in the file: a second call goes on from there.
"""

import argparse
import json
import os
import pathlib
import random
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from functools import partial

ROOT = pathlib.Path(__file__).parents[1]
HOSTS, KINDS = ("numpyro", "pyro"), ("training", "streaming")

#: What is killed: a program of each host that says when it begins, and at its end what came out.
COMMON = """
import hashlib, json, os, pathlib, sys
import numpy as np
folder, kind = pathlib.Path(sys.argv[1]), sys.argv[2]
rank, size, port = (int(os.environ[name]) for name in ("RANK", "WORLD_SIZE", "MASTER_PORT"))
file = folder / ("draws.zarr" if size > 1 else "draws.nc")
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
from numpyro_gebm.infer import GHMC, sharded, stream_draws
mesh = None
if size > 1:
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    jax.distributed.initialize(f"127.0.0.1:{port}", size, rank, heartbeat_timeout_seconds=20)
    mesh = jax.make_mesh((size,), ("data",))
prior = dist.Normal(0.0, 1.0).expand([2]).to_event(1)
keys = jax.random.split(jax.random.key(0), 4)
if kind == "training":
    base = Pushforward(prior, nn.MLP((2,), (2,), (8,), rng_key=keys[0]))
    guide = KALEGuide(nn.MLP((2,), (), (8,), rng_key=keys[1]))
    kale = KALE(base, guide, optax.adam(1e-3), optax.adam(1e-3), energy_steps=2, mesh=mesh)
    print("begins", flush=True)
    result = kale.run(keys[2], 2000 if size == 1 else 400, data, **settings)
    values = [np.asarray(leaf) for leaf in jax.tree.leaves((result.state.base, result.state.energy))]
else:
    mcmc = MCMC(GHMC(lambda: numpyro.sample("z", prior)), num_warmup=200, num_samples=20_000 // size**2, num_chains=4)
    mcmc.chain_method = "vectorized" if mesh is None else sharded(mesh)
    print("begins", flush=True)
    draws = stream_draws(mcmc, file, rng_key=keys[3], **stream)
    values = [draws["posterior"]["z"].values, draws["sample_stats"]["lp"].values]
print(hashlib.sha256(b"".join(np.ascontiguousarray(v).tobytes() for v in values)).hexdigest(), flush=True)
""",
    "pyro": COMMON
    + """
import pyro, pyro.distributions as dist, torch
torch.set_num_threads(1)
from pyro_gebm import KALE, KALEGuide, Pushforward, nn
from pyro_gebm.infer import GHMC, VectorizedMCMC, stream_draws
group = None
if size > 1:
    import datetime
    torch.distributed.init_process_group("gloo", timeout=datetime.timedelta(seconds=30))
    group = torch.distributed.group.WORLD
pyro.set_rng_seed(0)
prior = dist.Normal(0.0, 1.0).expand([2]).to_event(1)
adam = lambda parameters: torch.optim.Adam(parameters, 1e-3)
if kind == "training":
    base, guide = Pushforward(prior, nn.MLP((2,), (2,), (8,))), KALEGuide(nn.MLP((2,), (), (8,)))
    print("begins", flush=True)
    KALE(base, guide, adam, adam, energy_steps=2, process_group=group).run(600, data, **settings)
    values = [v.numpy() for m in (base.generator, guide.energy) for v in m.state_dict().values()]
else:
    mcmc = VectorizedMCMC(GHMC(lambda: pyro.sample("z", prior)), 1000, 200, 4, process_group=group)
    print("begins", flush=True)
    draws = stream_draws(mcmc, file, **stream)
    values = [draws["posterior"]["z"].values, draws["sample_stats"]["lp"].values]
print(hashlib.sha256(b"".join(np.ascontiguousarray(v).tobytes() for v in values)).hexdigest(), flush=True)
""",
}


def start(host, kind, folder, num):
    """Processes that have begun."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    place = {"PYTHONPATH": str(ROOT), "JAX_COMPILATION_CACHE_DIR": str(folder.parent / "jax"), "MASTER_PORT": port}
    place |= {"MASTER_ADDR": "127.0.0.1", "WORLD_SIZE": str(num), "OMP_NUM_THREADS": "1"}
    processes = [
        subprocess.Popen(
            [sys.executable, "-W", "ignore", "-c", PROGRAMS[host], str(folder), kind],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE if num > 1 else None,
            text=True,
            env=os.environ | place | {"RANK": str(rank)},
        )
        for rank in range(num)
    ]
    for process in processes:
        assert process.stdout is not None and "begins\n" in iter(process.stdout.readline, "")
    return processes


def end_of(processes):
    """What came out of processes that were let finish."""
    outs = [process.communicate() for process in processes]
    if any(process.returncode for process in processes):
        raise RuntimeError(f"A run that was not killed failed: {outs}.")
    return outs[0][0].split()[-1]  # after what a library says


def stopped(processes, rng):
    """Kill one; how long the others took to stop, and whether they said why, or were done."""
    one = rng.choice(processes)
    one.kill()
    killed, texts = time.perf_counter(), []
    for process in processes:
        try:
            texts.append(process.communicate(timeout=60)[1] if process is not one else "")
        except subprocess.TimeoutExpired:  # noted, and then killed
            texts.append("")
            process.kill()
        process.wait()
    said = all(
        p is one or p.returncode == 0 or "Error" in (text or "") or "terminat" in (text or "")
        for text, p in zip(texts, processes)
    )
    return {"others": round(time.perf_counter() - killed, 1), "said": said} if len(processes) > 1 else {}


def progress(folder):
    """Steps or draws that are safe, and temporary files: a write that was cut."""
    steps = [int(path.name[5:14]) for path in folder.glob("*/step-*") if not path.name.endswith(".tmp")]
    return max(steps, default=0), len(list(folder.glob("**/*.tmp")))


def killed_run(host, kind, scratch, seconds, rng, most, num):
    """One run, killed at random moments until it ends or was killed often enough; what happened, and what came out."""
    folder, kills = scratch / f"{host}-{kind}", []
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    while len(kills) < most:
        processes, limit = start(host, kind, folder, num), rng.uniform(0.0, 1.0) * seconds
        begun = time.perf_counter()
        try:
            processes[0].wait(limit)
        except subprocess.TimeoutExpired:
            after = round(time.perf_counter() - begun, 3)
            others = stopped(processes, rng)
            safe, cut = progress(folder)
            kills.append({"after": after, "safe": safe, "cut": cut} | others)
            continue
        break
    else:
        processes = start(host, kind, folder, num)
    return kills, end_of(processes)


def measure(host, kind, num_kills, num_processes, out, rng, progress_line):
    """Runs of one program until it was killed so often; they are added to the file."""
    with tempfile.TemporaryDirectory() as scratch_name:
        scratch = pathlib.Path(scratch_name)
        for name in ("first", "reference"):  # the first compiles
            (scratch / name).mkdir()
            processes, begun = start(host, kind, scratch / name, num_processes), time.perf_counter()
            reference = end_of(processes)
            seconds = time.perf_counter() - begun
        done = read(out)
        entry = done.setdefault(f"{host} {kind}", {"kills": [], "runs": 0, "equal": 0})
        while len(entry["kills"]) < num_kills:
            most = min(10, num_kills - len(entry["kills"]))
            kills, result = killed_run(host, kind, scratch, seconds, rng, most, num_processes)
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
    several = any("others" in kill for entry in done.values() for kill in entry["kills"])
    more = " others stopped after, at most | said why, or were done |" * several
    yield f"| what | kills | after the first checkpoint or chunk | cut a write | runs | equal bit for bit |{more}"
    yield "|---|---|---|---|---|---|" + "---|---|" * several
    for name, entry in done.items():
        safe, cut = (sum(kill[key] > 0 for kill in entry["kills"]) for key in ("safe", "cut"))
        line = f"| {name} | {len(entry['kills'])} | {safe} | {cut} | {entry['runs']} | {entry['equal']} |"
        if several:
            line += f" {max(kill['others'] for kill in entry['kills'])} s | {sum(k['said'] for k in entry['kills'])} |"
        yield line


def main(arguments=None):
    """Measure what is missing, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=50, help="of each program")
    parser.add_argument("--processes", type=int, default=1, help="of each run, one of which is killed")
    parser.add_argument("--hosts", nargs="+", default=list(HOSTS), choices=HOSTS)
    parser.add_argument("--kinds", nargs="+", default=list(KINDS), choices=KINDS)
    parser.add_argument("--out", type=pathlib.Path, default=pathlib.Path("kills.json"))
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(arguments)
    rng = random.Random(options.seed)
    for host in options.hosts:
        for kind in options.kinds:
            tell = partial(print, file=sys.stderr, flush=True)
            measure(host, kind, options.kills, options.processes, options.out, rng, tell)
    done = read(options.out)
    print("\n".join(table(done)))
    return done


if __name__ == "__main__":
    main()
