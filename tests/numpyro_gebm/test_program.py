"""Programs as bases, where NumPyro has its own ways."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import optax
import pytest
from numpyro import handlers
from numpyro.contrib.control_flow import scan
from numpyro.contrib.module import eqx_module

from numpyro_gebm import GEBM, KALE, KALEGuide, Program, nn


def network_program():
    net = eqx.nn.Linear(2, 3, key=jax.random.key(0))

    def model():
        apply = eqx_module("net", net)
        z = numpyro.sample("z", dist.Normal(0.0, 1.0).expand([2]).to_event(1))
        numpyro.sample("x", dist.Normal(apply(z), 0.1).to_event(1))

    return Program(model, "x")


@pytest.mark.slow
def test_a_network_is_trained_and_compiled_once():
    base = network_program()
    before = base.params["net$params"]
    guide = KALEGuide(nn.MLP((3,), (), (8,), rng_key=jax.random.key(1)))
    training = KALE(base, guide, optax.adam(1e-2), optax.adam(1e-2))
    data = np.random.default_rng(0).normal(size=(64, 3))
    result = training.run(jax.random.key(2), 20, data, progress_bar=False)
    result = training.run(None, 20, data, progress_bar=False, init_state=result.state)
    after = result.gebm.base.params["net$params"]
    assert not jnp.allclose(before.weight, after.weight)
    assert training._run_chunk._cache_size() <= 2


def test_parameters_from_svi_are_those_of_the_base():
    def model():
        loc = numpyro.param("loc", 0.0)
        numpyro.sample("x", dist.Normal(loc, 1.0))

    assert float(Program(handlers.substitute(model, data={"loc": 3.0}), "x").params["loc"]) == 3.0


def test_a_chain_of_states_is_a_base():
    """A random walk in a `scan`, its draws of the right covariance and its latent density the sum of its steps."""

    def model():
        def step(x, _):
            x = numpyro.sample("step", dist.Normal(x, 1.0))
            return x, x

        _, path = scan(step, 0.0, jnp.arange(4))
        numpyro.deterministic("path", path)

    base = Program(model, "path")
    draws = np.asarray(base.sample(jax.random.key(0), (4000,)))
    exact = np.minimum.outer(np.arange(1, 5), np.arange(1, 5))
    np.testing.assert_allclose(np.cov(draws.T), exact, atol=0.4)
    z = jnp.array([0.3, -0.2, 0.5, 1.0])
    expected = dist.Normal(jnp.array([0.0, 0.3, -0.2, 0.5]), 1.0).log_prob(z).sum()
    latent = GEBM(base, lambda x: 0.0 * x.sum()).latent
    assert float(latent.log_prob(z)) == pytest.approx(float(expected))


def test_a_program_inside_a_compiled_function():
    base = network_program()
    draw = jax.jit(lambda base, key: base.sample(key, (3,)))
    key = jax.random.key(0)
    np.testing.assert_allclose(draw(base, key), base.sample(key, (3,)), rtol=1e-6)
    assert draw(base, key).shape == (3, 3) and draw._cache_size() == 1
