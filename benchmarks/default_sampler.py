"""Time per draw of the default sampler of `gebm.sample`, of this tree and of another commit, in turns.

    .venv/bin/python benchmarks/default_sampler.py --before 2f6a721

One pinned thread, its CPU time, compilation left out, medians; the same networks everywhere.
"""

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from pathlib import Path

#: Draws asked for at the MLP sizes of benchmarks/sampling.py.
DRAWS = {"toy": 4000, "medium": 500}
TREE = Path(__file__).resolve().parents[1]


def work(host, size):
    """Time a call of `gebm.sample` for every line of the standard input."""
    import jax
    import sampling
    import torch

    torch.set_num_threads(1)
    warnings.simplefilter("ignore")  # the chains that give up global moves say so
    gebm = dict(zip(("numpyro", "pyro"), sampling.models(size)))[host]
    num = (DRAWS[size],)
    draw = (lambda: gebm.sample(jax.random.key(0), num).block_until_ready()) if host == "numpyro" else None
    draw = draw or (lambda: gebm.sample(num))
    draw()
    for _ in sys.stdin:
        start = time.process_time()
        draw()
        print(time.process_time() - start, flush=True)


def worker(tree, host, size):
    """A process that times calls in a tree."""
    path = os.pathsep.join([str(tree), str(tree / "benchmarks")])
    command = [sys.executable, "-u", __file__, "--worker", host, size]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    return subprocess.Popen(command, env={**os.environ, "PYTHONPATH": path}, **pipes)


def timed(process):
    """CPU seconds of one call."""
    process.stdin.write("\n")
    process.stdin.flush()
    return float(process.stdout.readline())


def main():
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--before", help="a commit to compare with")
    parser.add_argument("--rounds", type=int, default=5, help="calls of each")
    parser.add_argument("--worker", nargs=2, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.worker:
        sys.path.remove(str(TREE / "benchmarks"))  # that of the tree which is timed comes next
        return work(*args.worker)
    with tempfile.TemporaryDirectory() as folder:
        trees = {"after": TREE}
        if args.before:
            archive = subprocess.run(["git", "archive", args.before], cwd=TREE, check=True, capture_output=True).stdout
            subprocess.run(["tar", "-x", "-C", folder], input=archive, check=True)
            trees = {"before": Path(folder), "after": TREE}
        print("| host | size | draws |" + "".join(f" {name}, ms a draw |" for name in trees) + " after / before |")
        print("|---|---|---|" + "---|" * (len(trees) + 1))
        for host in ("numpyro", "pyro"):
            for size, num in DRAWS.items():
                workers = {name: worker(tree, host, size) for name, tree in trees.items()}
                times = {name: [] for name in trees}
                for _ in range(args.rounds):
                    for name, process in workers.items():
                        times[name].append(1e3 * timed(process) / num)
                for process in workers.values():
                    process.stdin.close()
                    process.wait()
                medians = {name: statistics.median(x) for name, x in times.items()}
                cells = "".join(f" {x:.3f} |" for x in medians.values())
                ratio = f"{medians['after'] / medians['before']:.2f}" if args.before else ""
                print(f"| {host} | {size} | {num} |{cells} {ratio} |", flush=True)


if __name__ == "__main__":
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    main()
