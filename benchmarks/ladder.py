"""SMC against independent long chains, by gradient evaluations: errors of log Z and of the weight of a mode.

    .venv/bin/python benchmarks/ladder.py

NumPyro. Two modes in d dimensions, 8 standard deviations apart, of weights 0.8 and 0.2 (log Z = 0). `SMC` with N
particles; `ReplicaExchange` with 32 chains; 64 independent chains of `MALT` from prior draws. log Z of chains is
estimated by bridge sampling. Root mean square errors over seeds, and gradients of the energy, those of warm-up and
pilot run included.
"""

import argparse

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
from numpyro.infer import MCMC

from numpyro_gebm import GEBM, log_partition
from numpyro_gebm.infer import MALT, SMC, ReplicaExchange

WEIGHT, DISTANCE, PRIOR_SCALE = 0.2, 8.0, 3.0


def two_modes(dim):
    """The prior N(0, 9 I) tilted to a mixture of two normals."""
    prior = dist.Normal(jnp.zeros(dim), PRIOR_SCALE).to_event(1)
    centers = jnp.zeros((2, dim)).at[1, 0].set(DISTANCE)

    def energy(x):
        log_modes = jnp.log(jnp.array([1 - WEIGHT, WEIGHT])) + dist.Normal(centers, 1.0).to_event(1).log_prob(x)
        return prior.log_prob(x) - jax.nn.logsumexp(log_modes)

    return GEBM(prior, energy)


def smc(num_particles):
    """Particles of SMC."""

    def run(gebm, seed):
        result = SMC(num_particles).run(gebm.latent, rng_key=jax.random.key(seed), progress_bar=False)
        return np.asarray(result.z), result.log_partition.value, result.num_gradients

    return run


def chains(make_kernel, num_warmup, num_samples, num_chains):
    """Chains, and log Z by bridge sampling from their draws."""

    def run(gebm, seed):
        kernel = make_kernel(gebm)
        mcmc = MCMC(
            kernel,
            num_warmup=num_warmup,
            num_samples=num_samples,
            num_chains=num_chains,
            chain_method="vectorized",
            progress_bar=False,
        )
        key = jax.random.key(seed)
        mcmc.warmup(key, collect_warmup=True, extra_fields=("num_steps",))
        gradients = getattr(kernel, "num_pilot_gradients", 0) + float(mcmc.get_extra_fields()["num_steps"].sum())
        mcmc.run(mcmc.post_warmup_state.rng_key, extra_fields=("num_steps",))
        gradients += float(mcmc.get_extra_fields()["num_steps"].sum())
        z = mcmc.get_samples(group_by_chain=True)["z"]
        estimate = log_partition(gebm, "bridge", rng_key=jax.random.fold_in(key, 1), draws=z)
        return np.asarray(z).reshape(-1, z.shape[-1]), estimate.value, gradients

    return run


def contenders(scale):
    """Runs of about the same cost, by name; `scale` multiplies their length."""

    def malt(gebm):
        return MALT(lambda: numpyro.sample("z", gebm.latent))

    def replica_exchange(gebm):
        return ReplicaExchange(gebm.latent)

    return {
        f"`SMC`, {4096 * scale} particles": smc(4096 * scale),
        f"`ReplicaExchange`, 32 chains of 100 + {200 * scale}": chains(replica_exchange, 100, 200 * scale, 32),
        f"`MALT`, 64 chains of at most 500 + {500 * scale}": chains(malt, 500, 500 * scale, 64),
    }


def main():
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--dims", nargs="+", type=int, default=[2, 20])
    parser.add_argument("--scales", nargs="+", type=int, default=[1, 4])
    parser.add_argument("--seeds", type=int, default=10)
    args = parser.parse_args()
    for dim in args.dims:
        gebm = two_modes(dim)
        print(f"\n{dim} dimensions, {args.seeds} seeds\n")
        print("| sampler | gradients, millions | error of log Z | its error · sqrt(millions) | error of the weight |")
        print("|---|---|---|---|---|")
        for scale in args.scales:
            for name, run in contenders(scale).items():
                jax.clear_caches()  # every chain compiles anew
                rows = [run(gebm, seed) for seed in range(args.seeds)]
                of_weight = np.array([(z[:, 0] > DISTANCE / 2).mean() for z, *_ in rows]) - WEIGHT
                of_z, millions = np.array([row[1] for row in rows]), np.mean([row[2] for row in rows]) / 1e6
                error = np.sqrt(np.mean(of_z**2))
                per_cost = error * np.sqrt(millions)
                weight = np.sqrt(np.mean(of_weight**2))
                print(f"| {name} | {millions:.2f} | {error:.3f} | {per_cost:.3f} | {weight:.3f} |", flush=True)


if __name__ == "__main__":
    main()
