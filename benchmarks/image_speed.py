"""Images a second: the shipped model, 100 kinetic Langevin steps from the prior, both hosts and the authors' sampler.

    .venv/bin/python benchmarks/image_speed.py --reference DIR

DIR is a checkout of the authors' repository; without it theirs is left out. The same weights, one pinned thread, its
CPU time, contenders in turns, medians; compilation left out.
"""

import argparse
import os
import statistics
import time

os.environ["XLA_FLAGS"] = "--xla_cpu_multi_thread_eigen=false intra_op_parallelism_threads=1"

import jax
import numpy as np
import reference
import torch

import numpyro_gebm
import pyro_gebm

STEP_SIZE, FRICTION = 0.1, 1.0
AUTHORS = "authors' sampler"


def contenders(num, num_steps, directory):
    """Functions that make images, by name."""
    ours, theirs = (package.load_pretrained("fashion_mnist") for package in (numpyro_gebm, pyro_gebm))
    run = numpyro_gebm.infer.ShortRun(num_steps=num_steps)
    decode = jax.jit(ours.decode)

    def numpyro_images():
        return np.asarray(decode(run.run(ours.latent, num, progress_bar=False, rng_key=jax.random.key(0)).z[-1]))

    @torch.no_grad()
    def pyro_images():
        z, _ = pyro_gebm.infer.ShortRun(num_steps=num_steps).run(theirs.latent, num, progress_bar=False)
        return theirs.decode(z[-1]).numpy()

    found = {"NumPyro, `ShortRun`": numpyro_images, "Pyro, `ShortRun`": pyro_images}
    if directory:
        generator, energy = theirs.generator, theirs.energy
        for network in (generator, energy):  # as in their code
            network.requires_grad_(True)
        prior = theirs.latent_prior
        sampler = reference.kinetic_langevin_of(directory, generator, energy, prior, STEP_SIZE, FRICTION)

        def authors_images():
            z = prior.sample((num,))
            end, _ = sampler(z, torch.randn_like(z), num_steps)
            with torch.no_grad():
                return generator(torch.as_tensor(end)).numpy()

        found[AUTHORS] = authors_images
    return found


def main(argv=None):
    """Measure and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--reference", help="a checkout of the authors' repository")
    parser.add_argument("--images", type=int, default=1000)
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--rounds", type=int, default=5)
    args = parser.parse_args(argv)
    torch.set_num_threads(1)
    found = contenders(args.images, args.steps, args.reference)
    seconds = {name: [] for name in found}
    for turn in range(args.rounds + 1):
        for name, images in found.items():
            start = time.process_time()
            assert np.isfinite(images()).all()
            if turn:  # the first compiles
                seconds[name].append(time.process_time() - start)
    print("| contender | images a second | over the authors' |\n|---|---|---|")
    rates = {name: args.images / statistics.median(values) for name, values in seconds.items()}
    for name, rate in rates.items():
        ratio = f"{rate / rates[AUTHORS]:.2f}" if args.reference else ""
        print(f"| {name} | {rate:.0f} | {ratio} |")


if __name__ == "__main__":
    main()
