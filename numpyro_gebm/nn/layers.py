"""Layers of the architectures: weights laid out and initialised as in PyTorch."""

import math
from collections.abc import Callable

import equinox as eqx
import jax
import jax.numpy as jnp
from jax import lax, random

__all__ = ["ACTIVATIONS", "Conv", "Linear", "check_shape", "depth_to_space", "space_to_depth"]

ACTIVATIONS: dict[str, Callable[[jax.Array], jax.Array]] = {
    "identity": lambda x: x,
    "leaky_relu": lambda x: jax.nn.leaky_relu(x, 0.2),
    "relu": jax.nn.relu,
    "sigmoid": jax.nn.sigmoid,
    "silu": jax.nn.silu,
    "softplus": jax.nn.softplus,
    "tanh": jnp.tanh,
}


class Linear(eqx.Module):
    """`weight @ x + bias`, both uniform in +-1/sqrt(in) at the start."""

    weight: jax.Array
    bias: jax.Array

    def __init__(self, size_in: int, size_out: int, *, rng_key: jax.Array):
        bound = 1.0 / math.sqrt(size_in)
        key_w, key_b = random.split(rng_key)
        self.weight = random.uniform(key_w, (size_out, size_in), minval=-bound, maxval=bound)
        self.bias = random.uniform(key_b, (size_out,), minval=-bound, maxval=bound)

    def __call__(self, x: jax.Array) -> jax.Array:
        return self.weight @ x + self.bias


class Conv(eqx.Module):
    """3x3 convolution with padding 1 on `(C, H, W)`."""

    weight: jax.Array
    bias: jax.Array

    def __init__(self, channels_in: int, channels_out: int, *, rng_key: jax.Array):
        bound = 1.0 / math.sqrt(9 * channels_in)
        key_w, key_b = random.split(rng_key)
        self.weight = random.uniform(key_w, (channels_out, channels_in, 3, 3), minval=-bound, maxval=bound)
        self.bias = random.uniform(key_b, (channels_out,), minval=-bound, maxval=bound)

    def __call__(self, x: jax.Array) -> jax.Array:
        out = lax.platform_dependent(self.weight, x, cpu=_convolve_as_product, default=_convolve)
        return out + self.bias[:, None, None]


def _convolve(weight, x):
    return lax.conv_general_dilated(x[None], weight, (1, 1), ((1, 1), (1, 1)))[0]


def _convolve_as_product(weight, x):
    """The same as one matrix product: XLA's gradients of convolutions inside loops are up to 50 times slower on CPU."""
    channels, height, width = x.shape
    padded = jnp.pad(x, ((0, 0), (1, 1), (1, 1)))
    taps = [padded[:, i : i + height, j : j + width] for i in range(3) for j in range(3)]
    columns = jnp.stack(taps, axis=1).reshape(9 * channels, height * width)
    return (weight.reshape(len(weight), -1) @ columns).reshape(-1, height, width)


def depth_to_space(x: jax.Array) -> jax.Array:
    """(4C, H, W) -> (C, 2H, 2W), in PyTorch's `pixel_shuffle` order."""
    c, h, w = x.shape
    return x.reshape(c // 4, 2, 2, h, w).transpose(0, 3, 1, 4, 2).reshape(c // 4, 2 * h, 2 * w)


def space_to_depth(x: jax.Array) -> jax.Array:
    """(C, 2H, 2W) -> (4C, H, W), the inverse of `depth_to_space`."""
    c, h, w = x.shape
    return x.reshape(c, h // 2, 2, w // 2, 2).transpose(0, 2, 4, 1, 3).reshape(4 * c, h // 2, w // 2)


def check_shape(x: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    """The example itself, after a check of its shape.

    Raises:
        ValueError: if its shape is another.
    """
    if jnp.shape(x) != shape:
        raise ValueError(f"Expected one input of shape {shape}, without a batch axis; got shape {jnp.shape(x)}.")
    return x
