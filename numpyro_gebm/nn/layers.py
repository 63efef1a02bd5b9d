"""Layers of the architectures: weights laid out and initialised as in PyTorch."""

import itertools
import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any, TypeVar

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax, random
from numpyro.util import not_jax_tracer

from gebm.networks import num_groups
from numpyro_gebm.nn.convolution import conv3x3

__all__ = [
    "ACTIVATIONS",
    "NORMALIZATIONS",
    "Conv",
    "Linear",
    "Residual",
    "block_layers",
    "check_shape",
    "depth_to_space",
    "initialised",
    "lowered",
    "normalized_activation",
    "space_to_depth",
    "split_blocks",
    "through",
]

Layers = TypeVar("Layers")

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
        return self.weight @ _as_low(x, self.weight) + self.bias


class Conv(eqx.Module):
    """3x3 convolution with padding 1 on `(C, H, W)`."""

    weight: jax.Array
    bias: jax.Array

    @staticmethod
    def shapes(channels_in: int, channels_out: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """Shapes of weight and bias."""
        return (channels_out, channels_in, 3, 3), (channels_out,)

    def __call__(self, x: jax.Array) -> jax.Array:
        return conv3x3(_as_low(x, self.weight), self.weight) + self.bias[:, None, None]


class Residual(eqx.Module):
    """`x + f(x)` on `(C, H, W)`, f two convolutions after normalisation and activation each."""

    convs: tuple[Conv, Conv]

    def __call__(self, x: jax.Array, normalized: Callable[[jax.Array], jax.Array]) -> jax.Array:
        first, second = self.convs
        return x + second(normalized(first(normalized(x))))


def lowered(layers: Layers, compute_dtype: str | None) -> Layers:
    """Layers with float32 weights in another dtype, in which they then compute; the same ones for None."""
    if compute_dtype is None:
        return layers
    return jax.tree.map(lambda x: x.astype(compute_dtype) if x.dtype == jnp.float32 else x, layers)


def _as_low(x, weight):
    """The input of a layer, in the lower precision that its weight may have."""
    return x.astype(weight.dtype) if weight.dtype == jnp.bfloat16 else x


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


def through(blocks: Iterable[Residual], x: jax.Array, normalized: Callable[[jax.Array], jax.Array]) -> jax.Array:
    """What comes out of residual blocks one after another."""
    for block in blocks:
        x = block(x, normalized)
    return x


def block_layers(channels: Sequence[int], residual_blocks: int) -> list[tuple[type, int, int]]:
    """The convolutions of all residual blocks, for `initialised`."""
    return [(Conv, c, c) for c in channels for _ in range(2 * residual_blocks)]


def split_blocks(convs: Sequence[Conv], num: int) -> tuple[tuple[Conv, ...], tuple[Residual, ...]]:
    """The first `num` convolutions, and blocks of the others."""
    return tuple(convs[:num]), tuple(map(Residual, zip(convs[num::2], convs[num + 1 :: 2])))


def normalized_activation(normalization: str | None, activation: str) -> Callable[[jax.Array], jax.Array]:
    """An activation on `(C, H, W)`, after a normalisation where there is one."""
    return lambda x: ACTIVATIONS[activation](x if normalization is None else NORMALIZATIONS[normalization](x))


def _group_norm(x):
    groups = x.reshape(num_groups(len(x)), -1)
    centered = groups - groups.mean(-1, keepdims=True)
    return (centered * lax.rsqrt(jnp.mean(centered**2, -1, keepdims=True) + 1e-5)).reshape(x.shape)


#: Normalisations of one image, without weights.
NORMALIZATIONS: dict[str, Callable[[jax.Array], jax.Array]] = {
    "group": _group_norm,
    "pixel": lambda x: x * lax.rsqrt(jnp.mean(x**2, 0) + 1e-5),
}


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
