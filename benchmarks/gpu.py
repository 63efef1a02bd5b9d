"""Everything that an accelerator changes, in one table: training and sampling steps of both hosts, and precisions.

    .venv/bin/python benchmarks/gpu.py --out gpu.json                   at most ten minutes on a GPU
    .venv/bin/python benchmarks/gpu.py --device cpu --quick             the same rows on a CPU, to see that it runs

MLP: 100-512-512-784, batch 128; convolutional: 64 to 32x32 images, batch 64. A training step is an energy step with
gradient penalty and a base step; a sampling step is one of GHMC, of all chains at once. *Over bare* is over the same
gradients by hand, in the same host. TF32 and bfloat16 (`compute_dtype`) are given with the error of energies against
float64, over the standard deviation of the energies. Every row is printed and written as soon as it is there; what does
not fit into `--seconds` is left out, and said.
"""

import argparse
import json
import pathlib
import statistics
import time
from functools import partial

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as numpyro_dist
import pyro
import pyro.distributions as pyro_dist
import torch
import training

import numpyro_gebm
import pyro_gebm

#: Precisions of products: of PyTorch, of JAX, and of `nn`.
PRECISIONS = {
    "float32": ("highest", "highest", None),
    "TF32": ("high", "tensorfloat32", None),
    "bfloat16": ("highest", "highest", "bfloat16"),
}


class Table:
    """Rows, printed and written as they come, until the time is over."""

    def __init__(self, out, seconds, steps, rounds):
        self.out, self.rows, self.left_out, self.end = out, [], [], time.monotonic() + seconds
        self.steps, self.rounds = steps, rounds

    def add(self, name, make, **more):
        """Measure what is made, a function that takes `num` steps, if there is time for it."""
        if time.monotonic() > self.end:
            self.left_out.append(name)
            return None
        value = milliseconds(waiting(make()), self.steps, self.rounds)
        self.rows.append({"what": name, "ms": value} | more)
        shown = "".join(f"; {key} {number:.3g}" for key, number in more.items())
        print(f"| {name} | {value:.3f} ms{shown} |", flush=True)
        if self.out:
            self.out.write_text(json.dumps({"rows": self.rows, "left out": self.left_out}, indent=1))
        return value


def milliseconds(run, steps, rounds):
    """Median time of a step; `run(steps)` ends when its results are there."""
    run(steps)  # compiles, allocates
    times = []
    for _ in range(rounds):
        start = time.perf_counter()
        run(steps)
        times.append((time.perf_counter() - start) / steps * 1e3)
    return statistics.median(times)


def waiting(run):
    """A function that ends when PyTorch's device has."""

    def wait(num):
        run(num)
        if torch.cuda.is_available():
            torch.cuda.synchronize()

    return wait


def numpyro_model(pair, compute_dtype=None):
    """A GEBM of a pair."""
    generator, energy = training.networks(numpyro_gebm, pair, compute_dtype, rng_key=jax.random.key(0))
    prior = numpyro_dist.Normal(jnp.zeros(training.PAIRS[pair][0]), 1.0).to_event(1)
    return numpyro_gebm.GEBM(numpyro_gebm.Pushforward(prior, generator), energy)


def pyro_model(pair, compute_dtype=None):
    """A GEBM of a pair."""
    torch.manual_seed(0)
    generator, energy = training.networks(pyro_gebm, pair, compute_dtype)
    prior = pyro_dist.Normal(torch.zeros(training.PAIRS[pair][0]), 1.0).to_event(1)
    return pyro_gebm.GEBM(pyro_gebm.Pushforward(prior, generator), energy)


def numpyro_sampling(pair, num, compute_dtype=None):
    """Steps of GHMC."""
    latent = numpyro_model(pair, compute_dtype).latent
    kernel = numpyro_gebm.infer.GHMC(lambda: numpyro.sample("z", latent), step_size=0.05, num_steps=1)
    state = [kernel.init(jax.random.split(jax.random.key(1), num), 0, None, (), {})]
    loop = jax.jit(lambda n, state: jax.lax.fori_loop(0, n, lambda i, s: kernel.sample(s, (), {}), state))

    def run(steps):
        state[0] = jax.block_until_ready(loop(steps, state[0]))

    return run


def numpyro_gradients(pair, num):
    """A potential and its gradient, one after the other."""
    latent = numpyro_model(pair).latent
    arrays, static = eqx.partition(latent, eqx.is_array)

    def step(i, z, arrays):
        potential = eqx.combine(arrays, static).log_prob
        return z + 1e-3 * jax.vmap(jax.grad(potential))(z)

    loop = jax.jit(lambda n, z, a: jax.lax.fori_loop(0, n, lambda i, z: step(i, z, a), z))
    z = [jax.random.normal(jax.random.key(1), (num, *latent.event_shape))]

    def run(steps):
        z[0] = jax.block_until_ready(loop(steps, z[0], arrays))

    return run


def pyro_sampling(pair, num, compute_dtype=None):
    """Steps of GHMC."""
    latent = pyro_model(pair, compute_dtype).latent
    kernel = pyro_gebm.infer.GHMC(lambda: pyro.sample("z", latent), step_size=0.05, num_steps=1)
    kernel.setup_chains(0, num, None)

    def run(steps):
        for _ in range(steps):
            kernel.advance()

    return run


def pyro_gradients(pair, num):
    """A potential and its gradient, one after the other."""
    gebm = pyro_model(pair)
    generator, energy = gebm.base.generator.requires_grad_(False), gebm.energy.requires_grad_(False)
    z = [torch.randn(num, training.PAIRS[pair][0])]

    def run(steps):
        for _ in range(steps):
            point = z[0].requires_grad_(True)
            (grad,) = torch.autograd.grad((energy(generator(point)) + 0.5 * point.square().sum(1)).sum(), point)
            z[0] = point.detach() - 1e-3 * grad

    return run


@eqx.filter_jit
def numpyro_energies(gebm, z):
    """Energies of decoded latents."""
    return jax.vmap(lambda z: gebm.energy(gebm.base.generator(z)))(z)


def energy_errors(pair):
    """Of each precision and host, the error of energies: root mean square and mean, over their standard deviation."""
    found = {}
    z = np.random.default_rng(0).normal(size=(2048, training.PAIRS[pair][0])).astype(np.float32)
    for name, (of_torch, of_jax, dtype) in PRECISIONS.items():
        torch.set_float32_matmul_precision(of_torch)
        torch.backends.cudnn.allow_tf32 = of_torch == "high"
        with torch.no_grad():
            full, low = pyro_model(pair), pyro_model(pair, dtype)
            low.base.generator.load_state_dict(full.base.generator.state_dict())
            low.energy.load_state_dict(full.energy.state_dict())
            values = low.energy(low.base.generator(torch.as_tensor(z, device=torch.get_default_device()))).double()
            exact = pyro_model(pair)
            exact.base.generator.load_state_dict(full.base.generator.state_dict())
            exact.energy.load_state_dict(full.energy.state_dict())
            exact.base.generator.cpu().double(), exact.energy.cpu().double()
            truth = exact.energy(exact.base.generator(torch.as_tensor(z, device="cpu").double())).numpy()
        found["Pyro", name] = values.cpu().numpy(), truth
        with jax.default_matmul_precision(of_jax):
            values = np.asarray(numpyro_energies(numpyro_model(pair, dtype), z), float)
        wide = jax.tree.map(lambda x: np.asarray(x, float) if eqx.is_array(x) else x, numpyro_model(pair))
        with jax.enable_x64(True), jax.default_device(jax.devices("cpu")[0]):
            truth = np.asarray(numpyro_energies(wide, z.astype(float)))
        found["NumPyro", name] = values, truth
    return {
        key: {"error": float(np.sqrt(np.mean((a - b) ** 2)) / b.std()), "bias": float((a - b).mean() / b.std())}
        for key, (a, b) in found.items()
    }


def main(argv=None):
    """Measure, print and write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda", help="of PyTorch; JAX takes its default")
    parser.add_argument("--chains", nargs="+", type=int, default=(1, 16, 256, 4096))
    parser.add_argument("--pairs", nargs="+", choices=training.PAIRS, default=list(training.PAIRS))
    parser.add_argument("--reference", help="a checkout of the authors' repository")
    parser.add_argument("--seconds", type=float, default=540.0)
    parser.add_argument("--quick", action="store_true", help="few chains, few steps")
    parser.add_argument("--out", type=pathlib.Path)
    args = parser.parse_args(argv)
    if args.device == "cuda" and not torch.cuda.is_available():
        parser.error("PyTorch finds no GPU; see --device cpu --quick.")
    torch.set_default_device(args.device)
    chains, steps, rounds = ((1, 16), 3, 1) if args.quick else (args.chains, 50, 5)
    print(f"JAX {jax.__version__} on {jax.devices()[0]}, PyTorch {torch.__version__} on {args.device}\n")
    table = Table(args.out, args.seconds, steps, rounds)
    print("| what | a step |\n|---|---|")
    for pair in args.pairs:
        for num in chains:
            for host, sampling, gradients in (
                ("NumPyro", numpyro_sampling, numpyro_gradients),
                ("Pyro", pyro_sampling, pyro_gradients),
            ):
                what = f"{host}, {pair}, {num} chains"
                bare = table.add(f"{what}, bare gradients", partial(gradients, pair, num))
                value = table.add(f"{what}, GHMC", partial(sampling, pair, num))
                if value is not None:
                    table.rows[-1]["over bare"] = value / bare
    for pair in args.pairs:
        data = torch.rand(2000, *training.PAIRS[pair][1])
        contenders = {"authors' code": training.authors_code(args.reference)} if args.reference else {}
        for name, make in (contenders | training.CONTENDERS).items():
            table.add(f"{name}, {pair}, training", partial(make, pair, data))
    for pair in args.pairs:
        errors, data = energy_errors(pair), torch.rand(2000, *training.PAIRS[pair][1])
        for name, (of_torch, of_jax, dtype) in PRECISIONS.items():
            torch.set_float32_matmul_precision(of_torch)
            torch.backends.cudnn.allow_tf32 = of_torch == "high"
            with jax.default_matmul_precision(of_jax):
                for host, sampling, package in (
                    ("NumPyro", numpyro_sampling, training.numpyro_package),
                    ("Pyro", pyro_sampling, training.pyro_package),
                ):
                    what, num = f"{host}, {pair}, {name}", chains[-1]
                    table.add(f"{what}, {num} chains, GHMC", partial(sampling, pair, num, dtype), **errors[host, name])
                    table.add(f"{what}, training", partial(package, pair, data, compute_dtype=dtype))
    if table.left_out:
        print(f"\nLeft out, as the time was over: {', '.join(table.left_out)}.")
    return table.rows


if __name__ == "__main__":
    main()
