"""Layers of the architectures: weights laid out and initialised as in PyTorch."""

import itertools
import math
from collections.abc import Callable, Sequence
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax, random
from numpyro.util import not_jax_tracer

__all__ = ["ACTIVATIONS", "Conv", "Linear", "check_shape", "depth_to_space", "initialised", "space_to_depth"]

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
    """`weight @ x + bias`."""

    weight: jax.Array
    bias: jax.Array

    @staticmethod
    def shapes(size_in: int, size_out: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """Shapes of weight and bias."""
        return (size_out, size_in), (size_out,)

    def __call__(self, x: jax.Array) -> jax.Array:
        return self.weight @ x + self.bias


class Conv(eqx.Module):
    """3x3 convolution with padding 1 on `(C, H, W)`."""

    weight: jax.Array
    bias: jax.Array

    @staticmethod
    def shapes(channels_in: int, channels_out: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """Shapes of weight and bias."""
        return (channels_out, channels_in, 3, 3), (channels_out,)

    def __call__(self, x: jax.Array) -> jax.Array:
        out = lax.platform_dependent(self.weight, x, cpu=_convolve_as_product, default=_convolve)
        return out + self.bias[:, None, None]


def initialised(rng_key: jax.Array, layers: Sequence[tuple[type, int, int]]) -> tuple[Any, ...]:
    r"""Layers of `(class, size or channels in, out)` each, weight and bias uniform in $\pm 1 / \sqrt{\text{inputs}}$.

    One draw for all of them, of as many values as for other networks of about that size, as it takes long to compile.
    """
    shapes = [shape for layer, *sizes in layers for shape in layer.shapes(*sizes)]
    ends = list(itertools.accumulate(map(math.prod, shapes)))
    size = 1 << (ends[-1] - 1).bit_length()
    values = random.uniform(rng_key, (size,), minval=-1.0, maxval=1.0)
    xp = np if not_jax_tracer(values) else jnp  # cut up on the host, where that compiles nothing
    parts = xp.split(xp.asarray(values), ends)
    bounds = (1.0 / math.sqrt(math.prod(shape[1:])) for shape in shapes[::2] for _ in range(2))
    arrays = iter([jnp.asarray(bound * part.reshape(shape)) for part, shape, bound in zip(parts, shapes, bounds)])
    return tuple(layer(next(arrays), next(arrays)) for layer, *_ in layers)


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
