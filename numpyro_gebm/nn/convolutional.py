"""Convolutional networks of images that exist in both packages."""

import itertools
import math
from collections.abc import Sequence
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp

from gebm.networks import (
    LIPSCHITZ_CONSTANTS,
    check_bounds,
    check_compute_dtype,
    check_lipschitz_layers,
    coarse_size,
    config_of,
    shape_of,
)
from gebm.validation import integer, one_of
from numpyro_gebm.keys import typed
from numpyro_gebm.nn.bounds import bounded_below, scaled_down, spectral_norm_bound
from numpyro_gebm.nn.layers import (
    ACTIVATIONS,
    NORMALIZATIONS,
    Conv,
    Linear,
    Residual,
    block_layers,
    check_shape,
    depth_to_space,
    initialised,
    lowered,
    normalized_activation,
    space_to_depth,
    split_blocks,
    through,
)

__all__ = ["ConvEncoder", "ConvEnergy", "ConvGenerator"]


class ConvGenerator(eqx.Module):
    """Convolutional generator of images, by sub-pixel upsampling (no transposed convolutions).

    A linear layer makes `channels[0]` maps of size `(H, W) / 2**n`, n = `len(channels) - 1`; each further entry
    doubles the size by a 3x3 convolution and a pixel shuffle; a last 3x3 convolution makes the image.

    Args:
        latent_dim: length of the latent vector.
        event_shape: `(C, H, W)`, with H and W divisible by `2**n`.
        channels: channels from the coarsest map to the finest.
        activation: see `MLP`.
        output_activation: see `MLP`.
        residual_blocks: residual blocks (arXiv:1512.03385), of two convolutions each, at every size.
        normalization: before activations, of each image alone and without weights: "group" (eight groups of channels,
            arXiv:1803.08494), "pixel" (channels of a pixel, to mean square 1, arXiv:1710.10196), or None.
        compute_dtype: see `MLP`.
        rng_key: a JAX random key.

    Raises:
        ValueError: for an unknown activation or normalisation, or sizes that do not divide.

    Example:
        >>> generator = ConvGenerator(16, (1, 8, 8), channels=(32, 16), rng_key=jax.random.key(0))
        >>> generator(jnp.zeros(16)).shape
        (1, 8, 8)
    """

    project: Linear
    convs: tuple[Conv, ...]
    last: Conv
    blocks: tuple[Residual, ...]
    latent_dim: int = eqx.field(static=True)
    event_shape: tuple[int, ...] = eqx.field(static=True)
    channels: tuple[int, ...] = eqx.field(static=True)
    activation: str = eqx.field(static=True)
    output_activation: str = eqx.field(static=True)
    residual_blocks: int = eqx.field(static=True)
    normalization: str | None = eqx.field(static=True)
    compute_dtype: str | None = eqx.field(static=True)

    def __init__(
        self,
        latent_dim: int,
        event_shape: Sequence[int],
        channels: Sequence[int] = (64, 32),
        activation: str = "relu",
        output_activation: str = "identity",
        residual_blocks: int = 0,
        normalization: str | None = None,
        compute_dtype: str | None = None,
        *,
        rng_key: jax.Array,
    ):
        self.latent_dim = integer("latent_dim", latent_dim)
        self.event_shape = shape_of("event_shape", event_shape)
        self.channels = shape_of("channels", channels)
        self.activation = one_of("activation", activation, ACTIVATIONS)
        self.output_activation = one_of("output_activation", output_activation, ACTIVATIONS)
        self.residual_blocks = integer("residual_blocks", residual_blocks, minimum=0)
        self.normalization = None if normalization is None else one_of("normalization", normalization, NORMALIZATIONS)
        self.compute_dtype = check_compute_dtype(compute_dtype)
        height, width = coarse_size(self.event_shape, len(self.channels) - 1)
        project = Linear, self.latent_dim, self.channels[0] * height * width
        last = Conv, self.channels[-1], self.event_shape[0]
        convs = ((Conv, a, 4 * b) for a, b in itertools.pairwise(self.channels))
        self.project, self.last, *convs = initialised(
            typed(rng_key), (project, last, *convs, *block_layers(self.channels, self.residual_blocks))
        )
        self.convs, self.blocks = split_blocks(convs, len(self.channels) - 1)

    @property
    def config(self) -> dict[str, Any]:
        """Arguments that build the same architecture again."""
        return config_of(
            self, "latent_dim event_shape channels activation output_activation residual_blocks normalization"
        )

    def __call__(self, z: jax.Array) -> jax.Array:
        project, convs, blocks = lowered((self.project, self.convs, self.blocks), self.compute_dtype)
        activation, blocks = normalized_activation(self.normalization, self.activation), iter(blocks)
        size = coarse_size(self.event_shape, len(self.channels) - 1)
        x = activation(project(check_shape(z, (self.latent_dim,))).reshape(self.channels[0], *size))
        x = through(itertools.islice(blocks, self.residual_blocks), x, activation)
        for conv in convs:
            x = activation(depth_to_space(conv(x)))
            x = through(itertools.islice(blocks, self.residual_blocks), x, activation)
        return ACTIVATIONS[self.output_activation](self.last(x))


class ConvEnergy(eqx.Module):
    """Convolutional energy of images: space-to-depth and 3x3 convolutions (no strides), then a linear layer.

    Args:
        event_shape: `(C, H, W)`, with H and W divisible by `2**len(channels)`.
        channels: channels from the finest map to the coarsest; each entry halves the size.
        activation: see `MLP`.
        lipschitz: see `MLP`; a 3x3 convolution counts as 3 times the spectral norm of its weight as a matrix. Without
            residual blocks and normalisation only.
        lower_bound: see `MLP`.
        residual_blocks: see `ConvGenerator`.
        normalization: see `ConvGenerator`.
        compute_dtype: see `MLP`.
        rng_key: a JAX random key.

    Raises:
        ValueError: for an unknown activation or normalisation, sizes that do not divide, or a Lipschitz constant of a
            network with residual blocks or normalisation.

    Example:
        >>> energy = ConvEnergy((1, 8, 8), channels=(16, 32), rng_key=jax.random.key(0))
        >>> energy(jnp.zeros((1, 8, 8))).shape
        ()
    """

    convs: tuple[Conv, ...]
    last: Linear
    blocks: tuple[Residual, ...]
    event_shape: tuple[int, ...] = eqx.field(static=True)
    channels: tuple[int, ...] = eqx.field(static=True)
    activation: str = eqx.field(static=True)
    lipschitz: float | None = eqx.field(static=True)
    lower_bound: float | None = eqx.field(static=True)
    residual_blocks: int = eqx.field(static=True)
    normalization: str | None = eqx.field(static=True)
    compute_dtype: str | None = eqx.field(static=True)

    def __init__(
        self,
        event_shape: Sequence[int],
        channels: Sequence[int] = (32, 64),
        activation: str = "leaky_relu",
        lipschitz: float | None = None,
        lower_bound: float | None = None,
        residual_blocks: int = 0,
        normalization: str | None = None,
        compute_dtype: str | None = None,
        *,
        rng_key: jax.Array,
    ):
        self.event_shape = shape_of("event_shape", event_shape)
        self.channels = shape_of("channels", channels)
        self.activation = one_of("activation", activation, ACTIVATIONS)
        self.lipschitz, self.lower_bound = lipschitz, lower_bound
        check_bounds(lipschitz, lower_bound, ())
        self.residual_blocks = integer("residual_blocks", residual_blocks, minimum=0)
        self.normalization = None if normalization is None else one_of("normalization", normalization, NORMALIZATIONS)
        self.compute_dtype = check_compute_dtype(compute_dtype, lipschitz)
        check_lipschitz_layers(lipschitz, self.residual_blocks, self.normalization)
        height, width = coarse_size(self.event_shape, len(self.channels))
        sizes = (self.event_shape[0], *self.channels)
        convs = ((Conv, 4 * a, b) for a, b in itertools.pairwise(sizes))
        last, blocks = (Linear, sizes[-1] * height * width, 1), block_layers(self.channels, self.residual_blocks)
        self.last, *convs = initialised(typed(rng_key), (last, *convs, *blocks))
        self.convs, self.blocks = split_blocks(convs, len(self.channels))

    @property
    def config(self) -> dict[str, Any]:
        """Arguments that build the same architecture again."""
        return config_of(self, "event_shape channels activation lipschitz lower_bound residual_blocks normalization")

    def lipschitz_constant(self) -> jax.Array:
        """An upper bound of the network's Lipschitz constant, in the Euclidean norm."""
        check_lipschitz_layers(1.0, self.residual_blocks, self.normalization)
        return self._steepness() * jnp.prod(jnp.stack([spectral_norm_bound(layer.weight) for layer in self._layers()]))

    def _steepness(self) -> float:
        return (3.0 * LIPSCHITZ_CONSTANTS[self.activation]) ** len(self.convs)

    def _layers(self) -> Sequence[Linear | Conv]:
        layers = (*self.convs, self.last)
        if self.lipschitz is None:
            return layers
        bound = (self.lipschitz / self._steepness()) ** (1 / len(layers))
        return [scaled_down(layer, bound) for layer in layers]

    def __call__(self, x: jax.Array) -> jax.Array:
        x = check_shape(x, self.event_shape)
        *convs, last = self._layers()
        convs, blocks = lowered((convs, self.blocks), self.compute_dtype)
        activation, blocks = normalized_activation(self.normalization, self.activation), iter(blocks)
        for conv in convs:
            x = activation(conv(space_to_depth(x)))
            x = through(itertools.islice(blocks, self.residual_blocks), x, activation)
        return bounded_below(last(x.reshape(-1)).reshape(()), self.lower_bound)


class ConvEncoder(eqx.Module):
    """Convolutional map from images to vectors, the encoder of a VAE or features: the layers of `ConvEnergy`.

    Args:
        event_shape: `(C, H, W)`, with H and W divisible by `2**len(channels)`; images may be flat, `(C H W,)`, too.
        output_dim: length of the vector.
        channels: channels from the finest map to the coarsest; each entry halves the size.
        activation: see `MLP`.
        output_activation: see `MLP`.
        residual_blocks: see `ConvGenerator`.
        normalization: see `ConvGenerator`.
        compute_dtype: see `MLP`.
        rng_key: a JAX random key.

    Raises:
        ValueError: for an unknown activation or normalisation, or sizes that do not divide.

    Example:
        >>> encoder = ConvEncoder((1, 8, 8), 5, channels=(16, 32), rng_key=jax.random.key(0))
        >>> encoder(jnp.zeros(64)).shape
        (5,)
    """

    convs: tuple[Conv, ...]
    last: Linear
    blocks: tuple[Residual, ...]
    event_shape: tuple[int, ...] = eqx.field(static=True)
    output_dim: int = eqx.field(static=True)
    channels: tuple[int, ...] = eqx.field(static=True)
    activation: str = eqx.field(static=True)
    output_activation: str = eqx.field(static=True)
    residual_blocks: int = eqx.field(static=True)
    normalization: str | None = eqx.field(static=True)
    compute_dtype: str | None = eqx.field(static=True)

    def __init__(
        self,
        event_shape: Sequence[int],
        output_dim: int,
        channels: Sequence[int] = (32, 64),
        activation: str = "relu",
        output_activation: str = "identity",
        residual_blocks: int = 0,
        normalization: str | None = None,
        compute_dtype: str | None = None,
        *,
        rng_key: jax.Array,
    ):
        self.event_shape = shape_of("event_shape", event_shape)
        self.output_dim = integer("output_dim", output_dim)
        self.channels = shape_of("channels", channels)
        self.activation = one_of("activation", activation, ACTIVATIONS)
        self.output_activation = one_of("output_activation", output_activation, ACTIVATIONS)
        self.residual_blocks = integer("residual_blocks", residual_blocks, minimum=0)
        self.normalization = None if normalization is None else one_of("normalization", normalization, NORMALIZATIONS)
        self.compute_dtype = check_compute_dtype(compute_dtype)
        height, width = coarse_size(self.event_shape, len(self.channels))
        sizes = (self.event_shape[0], *self.channels)
        convs = ((Conv, 4 * a, b) for a, b in itertools.pairwise(sizes))
        last, blocks = (Linear, sizes[-1] * height * width, self.output_dim), self.residual_blocks
        self.last, *convs = initialised(typed(rng_key), (last, *convs, *block_layers(self.channels, blocks)))
        self.convs, self.blocks = split_blocks(convs, len(self.channels))

    @property
    def config(self) -> dict[str, Any]:
        """Arguments that build the same architecture again."""
        return config_of(
            self, "event_shape output_dim channels activation output_activation residual_blocks normalization"
        )

    def __call__(self, x: jax.Array) -> jax.Array:
        x = x if x.ndim == 3 else check_shape(x, (math.prod(self.event_shape),)).reshape(self.event_shape)
        x = check_shape(x, self.event_shape)
        convs, blocks = lowered((self.convs, self.blocks), self.compute_dtype)
        activation, blocks = normalized_activation(self.normalization, self.activation), iter(blocks)
        for conv in convs:
            x = activation(conv(space_to_depth(x)))
            x = through(itertools.islice(blocks, self.residual_blocks), x, activation)
        return ACTIVATIONS[self.output_activation](self.last(x.reshape(-1)))
