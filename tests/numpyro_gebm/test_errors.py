"""Bad input that only JAX knows: values that a trace does not see, Equinox's flag of training."""

import equinox as eqx
import hosts
import jax
import jax.numpy as jnp
import pytest

from numpyro_gebm import GEBM

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
