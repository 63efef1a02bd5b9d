"""Cost of a training step: one energy step and one base step, gradient penalty, Adam.

    .venv/bin/python benchmarks/training.py

Contenders, measured in turns (A B C A B C ...) in one run; the table has medians and ratios of medians:

- authors' style: written afresh in PyTorch; full backward through both networks, the energy on data and base draws one
  after the other, gradients squashed and checked one parameter at a time, the losses read off after every step;
- authors' code, with `--reference DIR`, a checkout of their repository: their own `Trainer.iteration`;
- Pyro: `KALE.step`; NumPyro: chunks of `KALE.run`, compiled before;
- bare gradients, per host: the same gradients and Adam steps by hand, nothing else.
"""

import argparse
import statistics
import time
from functools import partial

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as numpyro_dist
import optax
import pyro.distributions as pyro_dist
import reference
import torch

import numpyro_gebm
import pyro_gebm
from numpyro_gebm.training.loop import Run

#: name: (latent size, event shape, batch size, hidden widths or channels)
PAIRS = {"MLP": (100, (784,), 128, (512, 512)), "convolutional": (64, (1, 32, 32), 64, (32, 64))}


def networks(package, pair, compute_dtype=None, **keys):
    """Generator and energy of a pair, in a package."""
    latent, event, _, sizes = PAIRS[pair]
    key = {name: [{name: k} for k in jax.random.split(value)] for name, value in keys.items()}.get("rng_key", [{}, {}])
    first, second = ({"compute_dtype": compute_dtype} | k for k in key)
    if pair == "MLP":
        generator = package.nn.MLP((latent,), event, sizes, **first)
        return generator, package.nn.MLP(event, (), sizes, activation="leaky_relu", **second)
    generator = package.nn.ConvGenerator(latent, event, channels=sizes[::-1], **first)
    return generator, package.nn.ConvEnergy(event, channels=sizes, **second)


def authors_style(pair, data):
    """A function that takes `num` steps as the authors' training loop does."""
    latent, _, batch, _ = PAIRS[pair]
    generator, energy = networks(pyro_gebm, pair)
    constant = torch.nn.Parameter(torch.zeros(()))
    energy_parameters = [*energy.parameters(), constant]
    energy_optim = torch.optim.Adam(energy_parameters, 1e-4, betas=(0.5, 0.999))
    base_optim = torch.optim.Adam(generator.parameters(), 1e-4, betas=(0.5, 0.999))

    def squash():
        for parameter in energy_parameters:
            grad = parameter.grad
            squashed = grad / (1 - grad) if parameter is constant else 2 * grad / (1 + grad**2)
            parameter.grad = squashed if np.isfinite(squashed.norm().item()) else torch.zeros_like(grad)

    def run(num):
        for _ in range(num):
            real = data[torch.randint(len(data), (batch,))]
            energy_optim.zero_grad()
            with torch.no_grad():
                fake = generator(torch.randn(batch, latent))
            loss = energy(real).mean() + constant + torch.exp(-(energy(fake) + constant)).mean() - 1
            mix = torch.rand(batch, *[1] * (real.dim() - 1))
            points = (mix * real + (1 - mix) * fake).requires_grad_(True)
            (grads,) = torch.autograd.grad(energy(points).sum(), points, create_graph=True)
            (loss + grads.flatten(1).square().sum(1).mean()).backward()
            squash()
            energy_optim.step()
            loss.item()
            base_optim.zero_grad()
            on_fake = energy(generator(torch.randn(batch, latent)))
            base_loss = -(energy(real).mean() + torch.logsumexp(-on_fake, 0))
            base_loss.backward()
            base_optim.step()
            base_loss.item()

    return run


def authors_code(directory):
    """A contender that takes steps by the authors' own trainer, from a checkout."""

    def make(pair, data):
        latent, _, batch, _ = PAIRS[pair]
        trainer = reference.trainer_of(directory, *networks(pyro_gebm, pair), latent)

        def run(num):
            for _ in range(num):
                real = data[torch.randint(len(data), (batch,))]
                for net_type in ("discriminator", "generator"):
                    trainer.iteration(real, net_type).item()

        return run

    return make


def pyro_bare(pair, data):
    """A function that takes `num` steps in PyTorch with the gradients that are needed and nothing else."""
    latent, _, batch, _ = PAIRS[pair]
    generator, energy = networks(pyro_gebm, pair)
    parameters = [list(m.parameters()) for m in (generator, energy)]
    optims = [torch.optim.Adam(p, 1e-4, betas=(0.5, 0.999)) for p in parameters]
    penalty = pyro_gebm.gradient_penalty(1.0)

    def apply(which, loss):
        for parameter, grad in zip(parameters[which], torch.autograd.grad(loss, parameters[which])):
            parameter.grad = grad
        optims[which].step()

    def run(num):
        for _ in range(num):
            real = data[torch.randint(len(data), (batch,))]
            with torch.no_grad():
                fake = generator(torch.randn(batch, latent))
            on_real, on_fake = energy(torch.cat([real, fake])).chunk(2)
            apply(1, on_real.mean() + torch.exp(-on_fake).mean() + penalty(energy, real, fake))
            apply(0, -torch.logsumexp(-energy(generator(torch.randn(batch, latent))), 0))

    return run


def pyro_package(pair, data, fused=None, compute_dtype=None):
    """A function that takes `num` steps of `pyro_gebm.KALE`."""
    latent, _, batch, _ = PAIRS[pair]
    generator, energy = networks(pyro_gebm, pair, compute_dtype)
    base = pyro_gebm.Pushforward(pyro_dist.Normal(torch.zeros(latent), 1.0).to_event(1), generator)

    def adam(parameters):
        return torch.optim.Adam(parameters, 1e-4, betas=(0.5, 0.999), fused=fused)

    kale = pyro_gebm.KALE(base, pyro_gebm.KALEGuide(energy, log_partition=0.0), adam, adam, energy_steps=1)

    def run(num):
        for _ in range(num):
            kale.step(data[torch.randint(len(data), (batch,))])

    return run


def numpyro_bare(pair, data):
    """A function that takes `num` compiled steps in JAX with the gradients that are needed and nothing else."""
    latent, _, batch, _ = PAIRS[pair]
    parts = [eqx.partition(m, eqx.is_inexact_array) for m in networks(numpyro_gebm, pair, rng_key=jax.random.key(0))]
    (generator, static_generator), (energy, static_energy) = parts
    optim, penalty = optax.adam(1e-4, b1=0.5), numpyro_gebm.gradient_penalty(1.0)
    data = jnp.asarray(torch.as_tensor(data).cpu().numpy())

    def generate(arrays, key):
        return jax.vmap(eqx.combine(arrays, static_generator))(jax.random.normal(key, (batch, latent)))

    def step(i, carry):
        generator, energy, state_generator, state_energy = carry
        keys = jax.random.split(jax.random.fold_in(jax.random.key(1), i), 4)
        real, fake = data[jax.random.randint(keys[0], (batch,), 0, len(data))], generate(generator, keys[1])

        def energy_loss(arrays):
            fn = eqx.combine(arrays, static_energy)
            value = jax.vmap(fn)(real).mean() + jnp.exp(-jax.vmap(fn)(fake)).mean()
            return value + penalty(fn, real, fake, keys[2])

        def base_loss(arrays):
            return -jax.nn.logsumexp(-jax.vmap(eqx.combine(energy, static_energy))(generate(arrays, keys[3])))

        updates, state_energy = optim.update(jax.grad(energy_loss)(energy), state_energy)
        energy = optax.apply_updates(energy, updates)
        updates, state_generator = optim.update(jax.grad(base_loss)(generator), state_generator)
        return optax.apply_updates(generator, updates), energy, state_generator, state_energy

    loop = jax.jit(lambda num, carry: jax.lax.fori_loop(0, num, step, carry))
    carry = [generator, energy, optim.init(generator), optim.init(energy)]

    def run(num):
        carry[:] = jax.block_until_ready(loop(num, tuple(carry)))

    return run


def numpyro_package(pair, data, compute_dtype=None):
    """A function that takes `num` compiled steps of `numpyro_gebm.KALE`."""
    latent, _, batch, _ = PAIRS[pair]
    generator, energy = networks(numpyro_gebm, pair, compute_dtype, rng_key=jax.random.key(0))
    base = numpyro_gebm.Pushforward(numpyro_dist.Normal(0.0, 1.0).expand([latent]).to_event(1), generator)
    optim = optax.adam(1e-4, b1=0.5)
    kale = numpyro_gebm.KALE(base, numpyro_gebm.KALEGuide(energy, log_partition=0.0), optim, optim, energy_steps=1)
    data = np.asarray(torch.as_tensor(data).cpu())
    state = kale.init(jax.random.key(0), data)
    batches = kale._batches(data, batch, None)  # what `run` does, without its last settling of A
    training = Run(kale._run_chunk, kale._energy_steps_at, batches, state, kale._no_losses())

    def run(num):
        training.advance(num)

    return run


CONTENDERS = {
    "authors' style": authors_style,
    "PyTorch, bare gradients": pyro_bare,
    "Pyro, `KALE`": pyro_package,
    "Pyro, `KALE`, `Adam(fused=True)`": partial(pyro_package, fused=True),
    "JAX, bare gradients": numpyro_bare,
    "NumPyro, `KALE`": numpyro_package,
}


def main():
    """Measure every contender in turns and print one table a pair."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pairs", nargs="+", choices=PAIRS, default=list(PAIRS))
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--steps", type=int, default=20, help="steps a round")
    parser.add_argument("--threads", type=int, help="PyTorch's threads")
    parser.add_argument("--reference", help="a checkout of the authors' repository")
    args = parser.parse_args()
    if args.threads:
        torch.set_num_threads(args.threads)
    for pair in args.pairs:
        data = torch.rand(2000, *PAIRS[pair][1])
        contenders = {"authors' code": authors_code(args.reference)} if args.reference else {}
        contenders.update(CONTENDERS)
        runs = {name: make(pair, data) for name, make in contenders.items()}
        times = {name: [] for name in runs}
        for run in runs.values():
            run(args.steps)  # compile, allocate
        for _ in range(args.rounds):
            for name, run in runs.items():
                start = time.perf_counter()
                run(args.steps)
                times[name].append((time.perf_counter() - start) / args.steps * 1e3)
        median = {name: statistics.median(values) for name, values in times.items()}
        print(
            f"\n{pair}: {PAIRS[pair]}, {args.rounds} rounds of {args.steps} steps, {torch.get_num_threads()} threads\n"
        )
        yardsticks = [name for name in median if name.startswith("authors'")]
        columns = ["contender", "ms a step", "least to most", "over bare gradients"]
        print(f"| {' | '.join(columns + [f'times the {name}' for name in yardsticks])} |")
        print("|" + "---|" * (len(columns) + len(yardsticks)))
        for name, value in median.items():
            bare = {"Pyro": "PyTorch, bare gradients", "NumPyro": "JAX, bare gradients"}.get(name.split(",")[0])
            over = "" if bare is None else f"{100 * (value / median[bare] - 1):+.0f} %"
            spread = f"{min(times[name]):.1f} to {max(times[name]):.1f}"
            ratios = [f"{median[yardstick] / value:.2f}" for yardstick in yardsticks]
            print(f"| {' | '.join([name, f'{value:.1f}', spread, over, *ratios])} |")


if __name__ == "__main__":
    main()
