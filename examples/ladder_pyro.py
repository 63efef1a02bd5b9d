"""The demonstrations of the ladder in Pyro: models and samplers."""

import warnings

import pyro
import pyro.distributions as dist
import torch
from pyro.infer import MCMC, NUTS

from pyro_gebm import GEBM, log_partition_curve
from pyro_gebm.infer import SMC, ReplicaExchange, VectorizedMCMC, init_to_prior


def two_modes(weights, distance, prior_scale):
    """A GEBM in two dimensions whose tilted law is a mixture of two normals."""
    prior = dist.Normal(torch.zeros(2), prior_scale).to_event(1)
    centers = torch.tensor([[0.0, 0.0], [distance, 0.0]])

    def energy(x):
        log_modes = torch.tensor(weights).log() + dist.Normal(centers, 1.0).to_event(1).log_prob(x[:, None])
        return prior.log_prob(x) - log_modes.logsumexp(-1)

    return GEBM(prior, energy)


def nuts(gebm, seed, num_warmup, num_samples):
    """Four chains of NUTS from draws of the prior, shape `(4, num_samples, 2)`."""
    kernel = NUTS(lambda: pyro.sample("z", gebm.latent), init_strategy=init_to_prior, max_plate_nesting=0)
    return _chains_in_turn(kernel, seed, num_warmup, num_samples)["z"]


def default_sampler(gebm, seed, num_samples):
    """Draws of `gebm.sample`."""
    pyro.set_rng_seed(seed)
    return gebm.sample((num_samples,)).numpy()


def smc(gebm, seed, num_particles):
    """Particles, and log Z."""
    pyro.set_rng_seed(seed)
    result = SMC(num_particles).run(gebm.latent)
    return result.z.numpy(), result.log_partition


def replica_exchange(gebm, seed, num_warmup, num_samples, num_chains):
    """Draws of replica exchange, shape `(num_chains, num_samples, 2)`."""
    pyro.set_rng_seed(seed)
    mcmc = VectorizedMCMC(ReplicaExchange(gebm.latent), num_samples, num_warmup, num_chains, disable_progbar=True)
    mcmc.run()
    return mcmc.get_samples(group_by_chain=True)["z"].numpy()


def curve(max_beta, seed):
    """log Z(beta) of N(0, 1) tilted by x²/2."""
    pyro.set_rng_seed(seed)
    return log_partition_curve(_normal(None).temper(max_beta))


def posterior_of_beta(log_partition, x, num_warmup, num_samples):
    """Draws of beta given x, shape `(4, num_samples)`."""
    gebm = _normal(log_partition)

    def model(x):
        beta = pyro.sample("beta", dist.LogNormal(0.0, 1.0))
        with pyro.plate("rows", len(x)):
            pyro.sample("x", gebm.temper(beta), obs=x)

    return _chains_in_turn(NUTS(model), 0, num_warmup, num_samples, torch.as_tensor(x, dtype=torch.float32))["beta"]


def _normal(log_partition):
    return GEBM(dist.Normal(0.0, 1.0), lambda x: 0.5 * x**2, log_partition=log_partition)


def _chains_in_turn(kernel, seed, num_warmup, num_samples, *args):
    pyro.set_rng_seed(seed)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "num_chains=", UserWarning)  # more chains than cores
        mcmc = MCMC(kernel, num_samples, num_warmup, num_chains=4, mp_context="spawn", disable_progbar=True)
        mcmc.run(*args)
    return {name: value.numpy() for name, value in mcmc.get_samples(group_by_chain=True).items()}
