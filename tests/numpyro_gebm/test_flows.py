"""Real NVP as a pytree: traces, equality, pickling, gradients, and NumPyro's intermediates."""

import pickle

import hosts
import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree

from numpyro_gebm import GEBM
from numpyro_gebm.base import trained_part, with_trained_part
from numpyro_gebm.flows import FlowRatioEnergy

random_flow = hosts.get("numpyro").random_flow


def test_intermediates_change_nothing():
    @jax.jit
    def log_probs(flow):
        draws, intermediates = flow.sample_with_intermediates(jax.random.key(3), (5,))
        return flow.log_prob(draws), flow.log_prob(draws, intermediates)

    np.testing.assert_allclose(*log_probs(random_flow(5)), rtol=0, atol=1e-10)


def test_new_weights_cause_no_new_trace():
    traces = []

    @jax.jit
    def value(flow, energy, x):
        traces.append(None)
        return flow.log_prob(x).sum() + GEBM(flow, energy).log_prob(x).sum()

    values = [value(random_flow(seed=s), FlowRatioEnergy(random_flow(seed=s)), jnp.ones((2, 3))) for s in range(3)]
    assert len(traces) == 1 and len({float(v) for v in values}) == 3


def test_copies_are_equal_and_pickle():
    flow = random_flow()
    copied = pickle.loads(pickle.dumps(flow))
    assert copied.transforms == flow.transforms and flow.transforms != random_flow(seed=7).transforms
    np.testing.assert_array_equal(copied.log_prob(jnp.ones(3)), flow.log_prob(jnp.ones(3)))


def test_gradients_reach_every_array():
    flow, x = random_flow(), jax.random.normal(jax.random.key(0), (20, 3))
    arrays, unravel = ravel_pytree(trained_part(flow))

    def loss(flat):
        return with_trained_part(flow, unravel(flat)).log_prob(x).sum()

    leaves = jax.tree.leaves(unravel(jax.jit(jax.grad(loss))(arrays)))
    assert all(np.isfinite(leaf).all() for leaf in leaves)
    assert sum(bool((leaf != 0).any()) for leaf in leaves) == len(leaves) == 2 * 2 * 3 * 2
