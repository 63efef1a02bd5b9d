"""Replica exchange under NumPyro's MCMC: chain methods, starting points, restarts, pickling."""

import pickle

import cases
import hosts
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import pytest
from jax import random
from numpyro.infer import MCMC

from numpyro_gebm import GEBM
from numpyro_gebm.infer import ReplicaExchange

CASE = cases.linear_gaussian()
GEBM_AT_2 = hosts.get("numpyro").linear_gaussian(2.0)  # one object: NumPyro compiles for every new function


def chains(kernel, num_warmup, num_samples, chain_method):
    settings = {"num_chains": 2, "chain_method": chain_method, "progress_bar": False}
    mcmc = MCMC(kernel, num_warmup=num_warmup, num_samples=num_samples, **settings)
    mcmc.run(random.key(0))
    return mcmc


@pytest.mark.parametrize("chain_method", ["sequential", pytest.param("parallel", marks=pytest.mark.slow)])
@pytest.mark.filterwarnings("ignore:There are not enough devices:UserWarning")
def test_chain_methods_of_replica_exchange(chain_method):
    mcmc = chains(ReplicaExchange(GEBM_AT_2.latent, num_rungs=3), 50, 200, chain_method)
    draws = np.asarray(mcmc.get_samples(group_by_chain=True)["z"])
    assert draws.shape == (2, 200, 2)
    cases.assert_moments(draws, CASE.mean(2.0), CASE.covariance(2.0), min_ess=50)


def energy(x):
    return 1.5 * x


@pytest.mark.slow
def test_start_restart_and_pickling_of_replica_exchange():
    latent = GEBM(dist.Gamma(3.0, 2.0), energy).latent
    kernel = pickle.loads(pickle.dumps(ReplicaExchange(latent, num_rungs=3, site="w")))
    keys = random.split(random.key(0), 2)
    start = kernel.init(keys, 0, {"w": jnp.array([-1.0, 2.0])})  # unconstrained
    np.testing.assert_allclose(start.z["w"], np.exp([-1.0, 2.0]))
    with pytest.raises(ValueError, match="Expected a finite potential at `init_params`"):
        kernel.init(keys, 0, {"w": jnp.array([-1.0, jnp.nan])})
    mcmc = chains(kernel, 10, 20, "vectorized")
    assert mcmc.get_samples()["w"].shape == (40,)
    trips = mcmc.last_state.round_trips
    mcmc.post_warmup_state = mcmc.last_state
    mcmc.run(mcmc.post_warmup_state.rng_key)
    assert (mcmc.last_state.round_trips >= trips).all() and (mcmc.last_state.i == 50).all()
    other = ReplicaExchange(latent, num_rungs=4, site="w")
    other.init(keys, 0)
    with pytest.raises(ValueError, match="Expected a state of 4 rungs; got one of 3"):
        other.sample(mcmc.last_state, (), {})
