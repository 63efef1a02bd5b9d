"""Files: what JAX and Equinox add."""

import equinox as eqx
import hosts
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from numpyro_gebm import GEBM, Pushforward, load, nn, save

HOST = hosts.get("numpyro")


class Affine(eqx.Module):
    parameters: dict
    order: jax.Array

    def __call__(self, z):
        return self.parameters["W"] @ z[self.order] + self.parameters["b"]


class Quadratic(eqx.Module):
    weight: jax.Array
    power: int = 2

    def __call__(self, x):
        return jnp.sum(self.weight * x**self.power)


class Dropped(eqx.Module):
    linear: eqx.nn.Linear
    dropout: eqx.nn.Dropout

    def __init__(self, size_in, size_out, seed):
        self.linear = eqx.nn.Linear(size_in, size_out, key=jax.random.key(seed))
        self.dropout = eqx.nn.Dropout(0.5, inference=True)

    def __call__(self, x):
        return self.dropout(self.linear(x))


def affine(scale):
    return Affine({"W": scale * jnp.arange(1.0, 7.0).reshape(3, 2), "b": scale * jnp.ones(3)}, jnp.array([1, 0]))


def round_trip(gebm, tmp_path, **templates):
    save(gebm, tmp_path / "gebm.npz")
    return load(tmp_path / "gebm.npz", **templates)


@jax.jit
def values(gebm, z):
    return gebm.latent_prior.log_prob(z), gebm.decode(z), gebm.latent.log_prob(z)


def assert_same(loaded, gebm):
    z = np.random.uniform(0.5, 0.9, (4, *gebm.latent.event_shape))
    for new, old in zip(values(loaded, z), values(gebm, z), strict=True):
        np.testing.assert_allclose(new, old, rtol=1e-12, atol=1e-12)


def test_modules_of_the_user(tmp_path):
    gebm = GEBM(Pushforward(HOST.normal(2), affine(1.0)), Quadratic(jnp.arange(3.0)), log_partition=0.2)
    template = Pushforward(HOST.normal(2), affine(0.0))
    loaded = round_trip(gebm, tmp_path, base=template, energy=Quadratic(jnp.zeros(3)))
    assert_same(loaded, gebm)
    assert loaded.generator.order.dtype == jnp.array([1, 0]).dtype
    np.testing.assert_array_equal(template.generator.parameters["b"], 0.0)


def test_numpy_arrays_are_arrays(tmp_path):
    gebm = GEBM(HOST.normal(2), Quadratic(np.array([1.0, 2.0])))
    assert_same(round_trip(gebm, tmp_path, base=HOST.normal(2), energy=Quadratic(np.zeros(2))), gebm)


@pytest.mark.parametrize("part", ["base", "energy"])
def test_modules_come_back_in_evaluation_mode(part, tmp_path):
    if part == "base":
        generator = Dropped(2, 3, seed=0)
        gebm = GEBM(Pushforward(HOST.normal(2), generator), nn.MLP((3,), (), (4,), rng_key=jax.random.key(1)))
        template = Pushforward(HOST.normal(2), Dropped(2, 3, seed=1))
        loaded = round_trip(gebm, tmp_path, base=template)
        module = loaded.generator
    else:
        gebm = GEBM(HOST.normal(2), Dropped(2, "scalar", seed=0))
        template = eqx.nn.inference_mode(Dropped(2, "scalar", seed=1), value=False)
        loaded = round_trip(gebm, tmp_path, base=HOST.normal(2), energy=template)
        module = loaded.energy
    assert module.dropout.inference is True
    assert_same(loaded, gebm)
