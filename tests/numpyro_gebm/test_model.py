"""What the model is to JAX: a pytree."""

import equinox as eqx
import hosts
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from numpyro_gebm import GEBM, Pushforward, nn

HOST = hosts.get("numpyro")


class Quadratic(eqx.Module):
    a: jax.Array

    def __call__(self, x):
        return 0.5 * self.a * jnp.sum(x**2)


@pytest.mark.parametrize("x64", [False, True])
def test_dtype_follows_the_host(x64):
    with jax.enable_x64(x64):
        dtype = jnp.zeros(()).dtype
        gebm = GEBM(Pushforward(HOST.normal(2), lambda z: jnp.ones((3, 2)) @ z), Quadratic(jnp.array(1.0)))
        z = gebm.latent.sample(jax.random.key(0), (2,))
        assert z.dtype == gebm.latent.log_prob(z).dtype == gebm.inverse_temperature.dtype == dtype


def test_pushforward_has_pathwise_gradients():
    def mean(scale):
        base = Pushforward(HOST.normal(2), lambda z: scale * z + 1.0)
        return base.sample(jax.random.key(0), (7,)).mean()

    assert jax.grad(mean)(1.0) != 0


def test_survives_jit_vmap_grad_and_map():
    gebms = [GEBM(HOST.normal(2), Quadratic(jnp.array(a)), inverse_temperature=b) for a, b in ((1.0, 2.0), (3.0, 1))]
    z = np.array([0.3, -0.2])
    expected = [g.latent.log_prob(z) for g in gebms]
    jitted = jax.jit(lambda g: g.latent.log_prob(z))
    np.testing.assert_allclose([jitted(g) for g in gebms], expected)
    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *gebms)
    np.testing.assert_allclose(jax.vmap(lambda g: g.latent.log_prob(z))(stacked), expected)
    np.testing.assert_allclose(jax.lax.map(lambda g: g.latent.log_prob(z), stacked), expected)
    gradient = jax.grad(lambda g: g.latent.log_prob(z))(gebms[0])
    np.testing.assert_allclose(gradient.energy.a, -2.0 * 0.5 * (z**2).sum())
    leaves, treedef = jax.tree.flatten(gebms[0].latent)
    np.testing.assert_allclose(treedef.unflatten(leaves).log_prob(z), expected[0])


def test_new_weights_cost_no_new_trace():
    traces = []

    class Counting(Quadratic):
        def __call__(self, x):
            traces.append(1)
            return super().__call__(x)

    evaluate = jax.jit(lambda g, z: g.latent.log_prob(z))
    gebms = [GEBM(HOST.normal(2), Counting(jnp.array(a))) for a in (1.0, 2.0, 3.0)]
    traces.clear()
    for gebm in gebms:
        evaluate(gebm, jnp.zeros(2))
    assert len(traces) == 1
    traces.clear()
    for gebm in gebms:
        gebm.sample(jax.random.key(0), (3,))
    sampling = len(traces)
    gebms[0].temper(2.0).sample(jax.random.key(0), (3,))
    assert sampling <= 2 and len(traces) == sampling


def test_integer_arrays_and_apply_pairs_in_a_network():
    class Permuted(eqx.Module):
        order: jax.Array

        def __call__(self, z):
            return z[self.order]

    energy = nn.Applied(lambda params, x: params["a"] * (x**2).sum(), {"a": jnp.array(0.5)})
    gebm = GEBM(Pushforward(HOST.normal(2), Permuted(jnp.array([1, 0]))), energy)
    z = np.array([1.0, 2.0])
    np.testing.assert_allclose(gebm.decode(z), z[::-1])
    np.testing.assert_allclose(jax.jit(lambda g: g.latent.log_prob(z))(gebm), gebm.latent.log_prob(z))
