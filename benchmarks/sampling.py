"""Cost of a step of every kernel over the bare gradient, and effective draws per second, side by side.

    .venv/bin/python benchmarks/sampling.py steps            # cost of a step
    .venv/bin/python benchmarks/sampling.py ess              # smallest effective sample size per second

The same networks in both hosts, one pinned thread, its CPU time, contenders in turns, medians. `--reference DIR`, a
checkout of the authors' repository, adds their kinetic Langevin sampler to the steps.
"""

import argparse
import os
import statistics
import tempfile
import time
import warnings

os.environ["XLA_FLAGS"] = "--xla_cpu_multi_thread_eigen=false intra_op_parallelism_threads=1"

import arviz as az
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as numpyro_dist
import pyro
import reference
import torch
from numpyro.infer import MCMC, NUTS

import numpyro_gebm
import pyro_gebm
from numpyro_gebm import infer as numpyro_infer
from pyro_gebm import infer as pyro_infer

#: name: (chains, latent size, event shape, generator, energy)
SIZES = {
    "toy": (500, 2, (2,), (64, 64)),
    "toy, one chain": (1, 2, (2,), (64, 64)),
    "medium": (500, 100, (784,), (512, 512)),
    "conv": (64, 100, (3, 32, 32), (256, 128, 64)),
}
STEP_SIZE, FRICTION = 0.1, 1.0


def models(size):
    """The same GEBM in NumPyro and in Pyro; its energy has standard deviation 2 under the base."""
    _, latent, event, widths = SIZES[size]
    keys = jax.random.split(jax.random.key(0))
    if size == "conv":
        generator = numpyro_gebm.nn.ConvGenerator(latent, event, widths, rng_key=keys[0])
        energy = numpyro_gebm.nn.ConvEnergy(event, widths[::-1], rng_key=keys[1])
    else:
        generator = numpyro_gebm.nn.MLP((latent,), event, widths, "relu", rng_key=keys[0])
        energy = numpyro_gebm.nn.MLP(event, (), widths, "leaky_relu", rng_key=keys[1])
    prior = numpyro_dist.Normal(jnp.zeros(latent), 1.0).to_event(1)
    base = numpyro_gebm.Pushforward(prior, generator)
    deviation = jax.vmap(energy)(base.sample(jax.random.key(1), (2000,))).std()
    last = (
        (lambda m: (m.last.weight, m.last.bias))
        if size == "conv"
        else (lambda m: (m.layers[-1].weight, m.layers[-1].bias))
    )
    energy = eqx.tree_at(last, energy, [2 / deviation * x for x in last(energy)])
    ours = numpyro_gebm.GEBM(base, energy)
    with tempfile.TemporaryDirectory() as folder:
        numpyro_gebm.save(ours, f"{folder}/gebm.npz")
        theirs = pyro_gebm.load(f"{folder}/gebm.npz")
    return ours, theirs


def jax_gradient(gebm, z):
    """Gradient steps in one compiled loop, nothing else."""

    def potential(z):
        return -gebm.latent.log_prob(z)

    @jax.jit
    def loop(z, num):
        return jax.lax.fori_loop(0, num, lambda i, z: z - 1e-4 * jax.vmap(jax.grad(potential))(z), z)

    return lambda num: loop(z, num).block_until_ready()


def numpyro_kernel(kernel):
    """Steps of a NumPyro kernel in one compiled loop."""

    def make(gebm, z):
        chain = kernel(lambda: numpyro.sample("z", gebm.latent))
        start = chain.init(jax.random.split(jax.random.key(0), len(z)), 0, {"z": z})
        steps = chain.num_steps

        @jax.jit
        def loop(state, num):
            return jax.lax.fori_loop(0, num, lambda i, s: chain.sample(s, (), {}), state)

        return lambda num: loop(start, num // steps).z["z"].block_until_ready()

    return make


def torch_gradient(gebm, z):
    """Gradient steps in PyTorch, the networks frozen, nothing else."""

    def run(num):
        x = z
        for _ in range(num):
            x = x.detach().requires_grad_(True)
            (grad,) = torch.autograd.grad(-gebm.latent.log_prob(x).sum(), x)
            x = x.detach() - 1e-4 * grad

    return run


def pyro_kernel(kernel):
    """Steps of a Pyro kernel."""

    def make(gebm, z):
        chain = kernel(lambda: pyro.sample("z", gebm.latent))
        chain.setup_chains(0, len(z), {"z": z})
        steps = chain.num_steps

        def run(num):
            for _ in range(num // steps):
                chain.advance()

        return run

    return make


def settings(infer, name):
    """A kernel at a fixed step size, with ten steps a draw where it has that choice."""
    kwargs = {"step_size": STEP_SIZE, "adapt_step_size": False}
    if name in ("KineticLangevin", "GHMC"):
        kwargs.update(friction=FRICTION, num_steps=10)
    return lambda model: getattr(infer, name)(model, **kwargs)


def measure_steps(size, args):
    """One table of the cost of a step."""
    ours, theirs = models(size)
    num_chains, latent = SIZES[size][:2]
    z = np.random.default_rng(0).normal(size=(num_chains, latent)).astype(np.float32)
    runs = {"JAX, bare gradient": jax_gradient(ours, jnp.asarray(z))}
    for name in ("KineticLangevin", "MALA", "GHMC"):
        runs[f"NumPyro, `{name}`"] = numpyro_kernel(settings(numpyro_infer, name))(ours, jnp.asarray(z))
    runs["PyTorch, bare gradient"] = torch_gradient(theirs, torch.tensor(z))
    for name in ("KineticLangevin", "MALA", "GHMC"):
        runs[f"Pyro, `{name}`"] = pyro_kernel(settings(pyro_infer, name))(theirs, torch.tensor(z))
    if args.reference:
        theirs.generator.requires_grad_(True), theirs.energy.requires_grad_(True)
        authors = reference.kinetic_langevin_of(
            args.reference, theirs.generator, theirs.energy, theirs.latent_prior, STEP_SIZE, FRICTION
        )
        runs["authors' kinetic Langevin"] = lambda num: authors(torch.tensor(z), torch.zeros(z.shape), num)
    steps = args.steps or {"toy": 500, "toy, one chain": 2000, "medium": 20, "conv": 10}[size]
    steps -= steps % 10
    times = {name: [] for name in runs}
    for run in runs.values():
        run(10)  # compile, allocate
    for _ in range(args.rounds):
        for name, run in runs.items():
            start = time.process_time()
            run(steps)
            times[name].append((time.process_time() - start) / steps * 1e3)
    median = {name: statistics.median(values) for name, values in times.items()}
    print(f"\n{size}: {SIZES[size]}, {args.rounds} rounds of {steps} steps\n")
    print(
        "| contender | ms a step | least to most | over its bare gradient |" + " authors' / it |" * bool(args.reference)
    )
    print("|---|---|---|---|" + "---|" * bool(args.reference))
    for name, value in median.items():
        host = "JAX" if name.startswith(("JAX", "NumPyro")) else "PyTorch"
        over = f"{value / median[f'{host}, bare gradient']:.2f}"
        ratio = (
            f" {median[authors_name] / value:.2f} |" if (authors_name := "authors' kinetic Langevin") in median else ""
        )
        print(f"| {name} | {value:.3f} | {min(times[name]):.3f} to {max(times[name]):.3f} | {over} |{ratio}")


def smallest_ess(z, energy):
    """Smallest effective sample size over E, every z and every z^2; draws of shape (chain, draw, d)."""
    columns = [energy, *np.moveaxis(z, -1, 0), *np.moveaxis(z**2, -1, 0)]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return min(float(az.ess(np.ascontiguousarray(column, np.float64), method="mean")) for column in columns)


class CompileTime:
    """Seconds that JAX spent on tracing and compiling."""

    def __init__(self):
        self.seconds = 0.0
        jax.monitoring.register_event_duration_secs_listener(self._listen)

    def _listen(self, event, duration, **kwargs):
        if event.startswith("/jax/core/compile"):
            self.seconds += duration


def numpyro_ess(kernel, num_warmup, num_samples, num_chains):
    """ESS, seconds without compilation, seconds of compilation and gradients of a run from prior draws."""

    def run(gebm, theirs, compiling):
        latent = gebm.latent
        mcmc = MCMC(
            kernel(lambda: numpyro.sample("z", latent)),
            num_warmup=num_warmup,
            num_samples=num_samples,
            num_chains=num_chains,
            chain_method="vectorized",
            progress_bar=False,
        )
        start, before = time.process_time(), compiling.seconds
        mcmc.run(jax.random.key(0), extra_fields=("num_steps",))
        z = np.asarray(mcmc.get_samples(group_by_chain=True)["z"])
        compiled = compiling.seconds - before
        seconds = time.process_time() - start - compiled
        return z, seconds, compiled, mcmc.last_state.adapt_state

    return run


def pyro_ess(kernel, warmup_steps, num_samples, num_chains):
    """The same in Pyro, vectorized."""

    def run(ours, gebm, compiling):
        chain = kernel(lambda: pyro.sample("z", gebm.latent))
        mcmc = pyro_infer.VectorizedMCMC(chain, num_samples, warmup_steps, num_chains, disable_progbar=True)
        start = time.process_time()
        mcmc.run()
        seconds = time.process_time() - start
        return mcmc.get_samples(group_by_chain=True)["z"].numpy(), seconds, 0.0, chain.state.adapt_state

    return run


def peer_ess(name, make, num_chains, num_draws):
    """The same of a sampler of BlackJAX."""

    def run(gebm, theirs, compiling):
        program, _ = make(gebm.latent.log_prob, num_draws)[name]
        starts = gebm.latent_prior.sample(jax.random.key(1), (num_chains,))
        start, before = time.process_time(), compiling.seconds
        z = np.asarray(jax.jit(program)(jax.random.key(0), starts))
        compiled = compiling.seconds - before
        return z, time.process_time() - start - compiled, compiled, None

    return run


def pyro_nuts(seed):
    """Pyro's NUTS, one chain."""

    def run(ours, gebm, compiling):
        pyro.set_rng_seed(seed)
        kernel = pyro.infer.NUTS(
            lambda: pyro.sample("z", gebm.latent), init_strategy=pyro_infer.init_to_prior, max_plate_nesting=0
        )
        mcmc = pyro.infer.MCMC(kernel, 400, 200, disable_progbar=True)
        start = time.process_time()
        mcmc.run()
        return mcmc.get_samples(group_by_chain=True)["z"].numpy(), time.process_time() - start, 0.0, None

    return run


def measure_ess(args):
    """One table of effective draws per second for every beta."""
    compiling = CompileTime()
    ours, theirs = models("medium")
    chains = args.chains
    for beta in args.betas:
        gebms = ours.temper(beta), theirs.temper(beta)
        runs = {
            "NumPyro, NUTS 300 + 300": numpyro_ess(
                lambda m: NUTS(m, init_strategy=numpyro_infer.init_to_prior), 300, 300, chains
            ),
            "NumPyro, `GHMC`": numpyro_ess(
                lambda m: numpyro_infer.GHMC(m, num_steps=args.thin), 2000, args.draws, chains
            ),
            "NumPyro, `MALT`": numpyro_ess(numpyro_infer.MALT, 500, args.draws, chains),
            "Pyro, `GHMC`": pyro_ess(lambda m: pyro_infer.GHMC(m, num_steps=args.thin), 2000, args.draws, chains),
        }
        if args.peers:
            import peers

            runs |= {
                name: peer_ess(name, peers.peers, chains, args.draws)
                for name in peers.peers(ours.latent.log_prob, args.draws)
            }
        if args.pyro_nuts and beta == args.betas[0]:
            runs.update({f"Pyro, NUTS 200 + 400, seed {seed}": pyro_nuts(seed) for seed in range(5)})
        print(f"\nmedium, beta {beta:g}, {chains} chains from prior draws\n")
        print(
            "| sampler | smallest ESS | seconds | compilation | ESS a second | over NumPyro NUTS | mean of E | "
            "warm-up steps |"
        )
        print("|---|---|---|---|---|---|---|---|")
        baseline = None
        for name, run in runs.items():
            z, seconds, compiled, state = run(*gebms, compiling)
            flat = z.reshape(-1, z.shape[-1])
            energy = np.concatenate([_energies(ours, part) for part in np.array_split(flat, 64)]).reshape(z.shape[:2])
            rate = smallest_ess(z, energy) / seconds
            baseline = rate if baseline is None else baseline
            used = getattr(state, "num_warmup_steps", "")
            row = (
                f"{rate * seconds:.0f}",
                f"{seconds:.1f}",
                f"{compiled:.1f}",
                f"{rate:.0f}",
                f"{rate / baseline:.1f}",
                f"{energy.mean():.3f}",
            )
            print(f"| {name} | {' | '.join(row)} | {used} |", flush=True)


@eqx.filter_jit
def _energies(gebm, z):
    return jax.vmap(gebm.energy)(gebm.decode(z))


def main():
    """Measure what is asked for."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("what", choices=["steps", "ess"])
    parser.add_argument("--sizes", nargs="+", choices=SIZES, default=list(SIZES))
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--steps", type=int, help="steps a round")
    parser.add_argument("--reference", help="a checkout of the authors' repository")
    parser.add_argument("--betas", nargs="+", type=float, default=[1.0, 3.0])
    parser.add_argument("--chains", type=int, default=64)
    parser.add_argument("--draws", type=int, default=300, help="draws a chain of GHMC and MALT")
    parser.add_argument("--thin", type=int, default=5, help="steps a draw of GHMC")
    parser.add_argument("--peers", action="store_true", help="also samplers of BlackJAX: pip install blackjax")
    parser.add_argument("--pyro-nuts", action="store_true", help="also Pyro's NUTS, minutes")
    args = parser.parse_args()
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
    torch.set_num_threads(1)
    if args.what == "ess":
        measure_ess(args)
        return
    for size in args.sizes:
        measure_steps(size, args)


if __name__ == "__main__":
    main()
