"""The demonstrations of the ladder in NumPyro: models and samplers."""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
from jax import random
from numpyro.infer import MCMC, NUTS

from numpyro_gebm import GEBM, enable_compilation_cache, log_partition_curve
from numpyro_gebm.infer import SMC, ReplicaExchange, init_to_prior

enable_compilation_cache()


def two_modes(weights, distance, prior_scale):
    """A GEBM in two dimensions whose tilted law is a mixture of two normals."""
    prior = dist.Normal(jnp.zeros(2), prior_scale).to_event(1)
    centers = jnp.array([[0.0, 0.0], [distance, 0.0]])

    def energy(x):
        log_modes = jnp.log(jnp.array(weights)) + dist.Normal(centers, 1.0).to_event(1).log_prob(x)
        return prior.log_prob(x) - jax.nn.logsumexp(log_modes)

    return GEBM(prior, energy)


def nuts(gebm, seed, num_warmup, num_samples):
    """Four chains of NUTS from draws of the prior, shape `(4, num_samples, 2)`."""
    kernel = NUTS(lambda: numpyro.sample("z", gebm.latent), init_strategy=init_to_prior)
    return _draws(kernel, seed, num_warmup, num_samples, 4)["z"]


def default_sampler(gebm, seed, num_samples):
    """Draws of `gebm.sample`."""
    return np.asarray(gebm.sample(random.key(seed), (num_samples,)))


def smc(gebm, seed, num_particles):
    """Particles, and log Z."""
    result = SMC(num_particles).run(gebm.latent, rng_key=random.key(seed))
    return np.asarray(result.z), result.log_partition


def replica_exchange(gebm, seed, num_warmup, num_samples, num_chains):
    """Draws of replica exchange, shape `(num_chains, num_samples, 2)`."""
    return _draws(ReplicaExchange(gebm.latent), seed, num_warmup, num_samples, num_chains)["z"]


def curve(max_beta, seed):
    """log Z(beta) of N(0, 1) tilted by x²/2."""
    return log_partition_curve(_normal(None).temper(max_beta), rng_key=random.key(seed))


def posterior_of_beta(log_partition, x, num_warmup, num_samples):
    """Draws of beta given x, shape `(4, num_samples)`."""
    gebm = _normal(log_partition)

    def model(x):
        beta = numpyro.sample("beta", dist.LogNormal(0.0, 1.0))
        with numpyro.plate("rows", len(x)):
            numpyro.sample("x", gebm.temper(beta), obs=x)

    return _draws(NUTS(model), 0, num_warmup, num_samples, 4, jnp.asarray(x))["beta"]


def _normal(log_partition):
    return GEBM(dist.Normal(0.0, 1.0), lambda x: 0.5 * x**2, log_partition=log_partition)


def _draws(kernel, seed, num_warmup, num_samples, num_chains, *args):
    mcmc = MCMC(
        kernel,
        num_warmup=num_warmup,
        num_samples=num_samples,
        num_chains=num_chains,
        chain_method="vectorized",
        progress_bar=False,
    )
    mcmc.run(random.key(seed), *args)
    return {name: np.asarray(value) for name, value in mcmc.get_samples(group_by_chain=True).items()}
