"""Bad input that only JAX knows: values that a trace does not see, Equinox's flag of training."""

from collections.abc import Callable

import equinox as eqx
import hosts
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from numpyro_gebm import GEBM, KALE, KALEGuide, Pushforward
from numpyro_gebm.nn import Applied

PRIOR = hosts.get("numpyro").normal(2)


def energy(x):
    return 0.5 * jnp.sum(x**2)


def test_nan_energy_when_sampling_under_jit():
    gebm = GEBM(PRIOR, energy)
    broken = jax.tree.map(lambda x: x * jnp.nan, gebm)
    with pytest.raises(Exception, match="Expected an energy without NaN and -inf; got them at base draws"):
        broken.sample(jax.random.key(0), (3,))


def test_module_in_training_mode():
    class Dropped(eqx.Module):
        dropout: eqx.nn.Dropout = eqx.nn.Dropout(0.5)

        def __call__(self, x):
            return energy(self.dropout(x))

    with pytest.raises(ValueError, match=r"energy must be in evaluation mode.*got Dropout.*inference_mode"):
        GEBM(PRIOR, Dropped())
    GEBM(PRIOR, eqx.nn.inference_mode(Dropped()))


class Noisy:
    """Keeps its key, as modules that are no pytrees do."""

    def __init__(self):
        self.key = jax.random.key(0)

    def __call__(self, x):
        self.key, key = jax.random.split(self.key)
        return x + jax.random.normal(key, x.shape)


class Summed(eqx.Module):
    linear: eqx.nn.Linear
    layer: Callable = eqx.field(static=True)

    def __call__(self, x):
        return self.layer(self.linear(x)).sum()


class Scaled:
    """Draws a number of NumPy."""

    def __call__(self, x):
        return x * np.random.normal()


@pytest.mark.parametrize("make", [Noisy, Scaled])
def test_networks_that_are_not_fixed(make):
    network = make()
    with pytest.raises(ValueError, match="Expected the energy to be one fixed function"):
        GEBM(PRIOR, lambda x: energy(network(x)))
    with pytest.raises(ValueError, match="Expected the energy to be one fixed function"):
        KALE(PRIOR, KALEGuide(Summed(eqx.nn.Linear(2, 2, key=jax.random.key(0)), make())), None, optax.adam(1e-3))
    with pytest.raises(ValueError, match="Expected the generator to be one fixed function"):
        Pushforward(PRIOR, make())
    GEBM(PRIOR, lambda x: energy(x + jax.random.normal(jax.random.key(1), x.shape)))  # a fixed key: a fixed function


def test_flax_modules_in_training_mode():
    nnx = pytest.importorskip("flax.nnx")

    class Network(nnx.Module):
        def __init__(self, layer, rngs):
            self.linear, self.layer = nnx.Linear(2, 2, rngs=rngs), layer

        def __call__(self, x):
            return self.layer(self.linear(x)).sum()

    def applied(network):
        graph, params = nnx.split(network)
        return Applied(lambda params, x: nnx.merge(graph, params)(x), params)

    for layer in (nnx.Dropout(0.5, rngs=nnx.Rngs(0)), nnx.BatchNorm(2, rngs=nnx.Rngs(0))):
        network = Network(layer, nnx.Rngs(0))
        for form in (network, applied(network)):
            with pytest.raises(ValueError, match="energy must be in evaluation mode"):
                GEBM(PRIOR, form)
        network.eval()
        gebm = GEBM(PRIOR, applied(network))
        assert gebm.log_prob(jnp.ones(2)) == gebm.log_prob(jnp.ones((3, 2)))[0]
