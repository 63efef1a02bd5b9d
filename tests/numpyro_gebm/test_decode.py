"""Stored latents to draws of the model: what JAX adds."""

import hosts
import jax
import jax.numpy as jnp
import numpy as np

from numpyro_gebm import GEBM, Pushforward, decode

HOST = hosts.get("numpyro")


def test_compiled_once_whatever_the_number_of_latents():
    traces = []

    def generator(z):
        traces.append(z.shape)
        return 2.0 * z

    gebm = GEBM(Pushforward(HOST.normal(2), generator), lambda x: x.sum())
    traces.clear()
    assert sum(len(x) for x in decode(gebm, np.zeros((3, 7, 2)), 4)) == 21
    assert sum(len(x) for x in decode(gebm, np.zeros((50, 2)), 4)) == 50
    assert traces == [(2,)]


def test_the_dtype_is_that_of_the_latents():
    sine = GEBM(Pushforward(HOST.normal(2), jnp.sin), lambda x: x.sum())
    for stored, expected in (("f4", jnp.float32), ("f8", jnp.float64), (">f8", jnp.float64), ("i4", jnp.float64)):
        (x,) = decode(sine, np.ones((5, 2), stored))
        assert isinstance(x, jax.Array) and x.dtype == expected
        np.testing.assert_allclose(x, np.sin(1.0), rtol=1e-6)
