"""The convolution's own derivatives are those of JAX's, of every order and under every transformation."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from numpyro_gebm.nn.convolution import conv3x3

KEYS = jax.random.split(jax.random.key(0), 4)


def reference(x, weight):
    return lax.conv_general_dilated(x[None], weight, (1, 1), ((1, 1), (1, 1)))[0]


@pytest.fixture
def arrays():
    return [jax.random.normal(key, shape) for key, shape in zip(KEYS, ((5, 2, 4, 6), (3, 2, 3, 3)))]


def nonlinear(convolve, x, weight):
    """Convolutions of images with one kernel, then something whose derivatives of all orders are at hand."""
    return jnp.sum(jnp.tanh(jax.vmap(convolve, (0, None))(x, weight)) ** 3)


TRANSFORMATIONS = {
    "value": lambda f: jax.vmap(f, (0, None)),
    "kernel for each": lambda f: lambda x, w: jax.vmap(f)(x, w * jnp.arange(1.0, 6.0)[:, None, None, None, None]),
    "one image, many kernels": lambda f: lambda x, w: jax.vmap(f, (None, 0))(x[0], jnp.stack([w, 2 * w])),
    "gradients": lambda f: jax.grad(lambda x, w: nonlinear(f, x, w), (0, 1)),
    "forward": lambda f: lambda x, w: jax.jvp(lambda x, w: nonlinear(f, x, w), (x, w), (x**2, w**2)),
    "gradient for each": lambda f: (
        lambda x, w: jax.vmap(jax.grad(lambda x, w: nonlinear(f, x[None], w), 1), (0, None))(x, w)
    ),
    "penalty": lambda f: jax.grad(lambda x, w: jnp.sum(jax.grad(lambda x: nonlinear(f, x, w))(x) ** 2), (0, 1)),
    "hessian": lambda f: lambda x, w: jax.hessian(lambda w: nonlinear(f, x, w))(w),
    "reverse over reverse": lambda f: lambda x, w: jax.jacrev(jax.grad(lambda w: nonlinear(f, x, w)))(w),
    "third order": lambda f: (
        lambda x, w: jax.grad(lambda w: jnp.sum(jax.hessian(lambda x: nonlinear(f, x[None], w))(x[0]) ** 2))(w)
    ),
    "remat in a loop": lambda f: (
        lambda x, w: jax.grad(
            lambda w: lax.scan(jax.checkpoint(lambda c, x: (c + nonlinear(f, x[None], w), None)), 0.0, x)[0]
        )(w)
    ),
}


@pytest.mark.parametrize("name", TRANSFORMATIONS)
def test_convolution_is_that_of_jax(arrays, name):
    x, weight = arrays
    ours, theirs = (jax.jit(TRANSFORMATIONS[name](f))(x, weight) for f in (conv3x3, reference))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-9), ours, theirs)


def test_convolution_without_jit_and_in_low_precision(arrays):
    x, weight = arrays
    np.testing.assert_allclose(conv3x3(x[0], weight), reference(x[0], weight), rtol=1e-12)
    half = conv3x3(x[0].astype(jnp.bfloat16), weight.astype(jnp.bfloat16))
    assert half.dtype == jnp.bfloat16
    np.testing.assert_allclose(half.astype(float), reference(x[0], weight), atol=0.1)


def test_arrays_of_two_precisions(arrays):
    x, weight = arrays
    mixed = conv3x3(x[0], weight.astype(jnp.float32))
    assert mixed.dtype == jnp.float64
    np.testing.assert_allclose(mixed, reference(x[0], weight), atol=1e-5)
