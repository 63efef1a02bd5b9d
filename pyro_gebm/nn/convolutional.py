"""Convolutional networks of images that exist in both packages."""

import itertools
import math
from collections.abc import Sequence
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import nn

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
from pyro_gebm.nn.bounds import bounded_below, scaled_down, spectral_norm_bound
from pyro_gebm.nn.layers import (
    ACTIVATIONS,
    NORMALIZATIONS,
    Residual,
    check_shape,
    conv3x3,
    lowered,
    normalized_activation,
    through,
)

__all__ = ["ConvEncoder", "ConvEnergy", "ConvGenerator"]


class ConvGenerator(nn.Module):
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

    Raises:
        ValueError: for an unknown activation or normalisation, or sizes that do not divide.

    Example:
        >>> generator = ConvGenerator(16, (1, 8, 8), channels=(32, 16))
        >>> tuple(generator(torch.zeros(5, 16)).shape)
        (5, 1, 8, 8)
    """

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
    ):
        super().__init__()
        self.latent_dim = integer("latent_dim", latent_dim)
        self.event_shape = shape_of("event_shape", event_shape)
        self.channels = shape_of("channels", channels)
        self.activation = one_of("activation", activation, ACTIVATIONS)
        self.output_activation = one_of("output_activation", output_activation, ACTIVATIONS)
        self.residual_blocks = integer("residual_blocks", residual_blocks, minimum=0)
        self.normalization = None if normalization is None else one_of("normalization", normalization, NORMALIZATIONS)
        self.compute_dtype = check_compute_dtype(compute_dtype)
        height, width = coarse_size(self.event_shape, len(self.channels) - 1)
        self.project = nn.Linear(self.latent_dim, self.channels[0] * height * width)
        self.convs = nn.ModuleList(conv3x3(a, 4 * b) for a, b in zip(self.channels, self.channels[1:]))
        self.last = conv3x3(self.channels[-1], self.event_shape[0])
        self.blocks = nn.ModuleList(Residual(c) for c in self.channels for _ in range(self.residual_blocks))

    @property
    def config(self) -> dict[str, Any]:
        """Arguments that build the same architecture again."""
        return config_of(
            self, "latent_dim event_shape channels activation output_activation residual_blocks normalization"
        )

    def forward(self, z: torch.Tensor) -> torch.Tensor:
        activation, blocks = normalized_activation(self.normalization, self.activation), iter(self.blocks)
        size = coarse_size(self.event_shape, len(self.channels) - 1)
        with lowered(z, self.compute_dtype):
            x = activation(self.project(check_shape(z, (self.latent_dim,))).reshape(len(z), self.channels[0], *size))
            x = through(itertools.islice(blocks, self.residual_blocks), x, activation)
            for conv in self.convs:
                x = activation(F.pixel_shuffle(conv(x), 2))
                x = through(itertools.islice(blocks, self.residual_blocks), x, activation)
        x = x if self.compute_dtype is None else x.to(self.last.weight.dtype)
        return ACTIVATIONS[self.output_activation](self.last(x))


class ConvEnergy(nn.Module):
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

    Raises:
        ValueError: for an unknown activation or normalisation, sizes that do not divide, or a Lipschitz constant of a
            network with residual blocks or normalisation.

    Example:
        >>> energy = ConvEnergy((1, 8, 8), channels=(16, 32))
        >>> tuple(energy(torch.zeros(5, 1, 8, 8)).shape)
        (5,)
    """

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
    ):
        super().__init__()
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
        self.convs = nn.ModuleList(conv3x3(4 * a, b) for a, b in itertools.pairwise(sizes))
        self.last = nn.Linear(sizes[-1] * height * width, 1)
        self.blocks = nn.ModuleList(Residual(c) for c in self.channels for _ in range(self.residual_blocks))

    @property
    def config(self) -> dict[str, Any]:
        """Arguments that build the same architecture again."""
        return config_of(self, "event_shape channels activation lipschitz lower_bound residual_blocks normalization")

    @torch.no_grad()
    def lipschitz_constant(self) -> torch.Tensor:
        """An upper bound of the network's Lipschitz constant, in the Euclidean norm."""
        check_lipschitz_layers(1.0, self.residual_blocks, self.normalization)
        return self._steepness() * torch.stack([spectral_norm_bound(weight) for weight in self._weights()]).prod()

    def _steepness(self) -> float:
        return (3.0 * LIPSCHITZ_CONSTANTS[self.activation]) ** len(self.convs)

    def _convs(self) -> list[nn.Conv2d]:
        return cast("list[nn.Conv2d]", list(self.convs))

    def _weights(self) -> list[torch.Tensor]:
        bound = None
        if self.lipschitz is not None:
            bound = (self.lipschitz / self._steepness()) ** (1 / (len(self.convs) + 1))
        return [scaled_down(layer.weight, bound) for layer in (*self._convs(), self.last)]

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = check_shape(x, self.event_shape)
        *weights, last = self._weights()
        activation, blocks = normalized_activation(self.normalization, self.activation), iter(self.blocks)
        with lowered(x, self.compute_dtype):
            for weight, conv in zip(weights, self._convs()):
                x = activation(F.conv2d(F.pixel_unshuffle(x, 2), weight, conv.bias, padding=1))
                x = through(itertools.islice(blocks, self.residual_blocks), x, activation)
        x = x if self.compute_dtype is None else x.to(last.dtype)
        return bounded_below(F.linear(x.flatten(1), last, self.last.bias).squeeze(-1), self.lower_bound)


class ConvEncoder(nn.Module):
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

    Raises:
        ValueError: for an unknown activation or normalisation, or sizes that do not divide.

    Example:
        >>> encoder = ConvEncoder((1, 8, 8), 5, channels=(16, 32))
        >>> tuple(encoder(torch.zeros(3, 64)).shape)
        (3, 5)
    """

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
    ):
        super().__init__()
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
        self.convs = nn.ModuleList(conv3x3(4 * a, b) for a, b in itertools.pairwise(sizes))
        self.last = nn.Linear(sizes[-1] * height * width, self.output_dim)
        self.blocks = nn.ModuleList(Residual(c) for c in self.channels for _ in range(self.residual_blocks))

    @property
    def config(self) -> dict[str, Any]:
        """Arguments that build the same architecture again."""
        return config_of(
            self, "event_shape output_dim channels activation output_activation residual_blocks normalization"
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x if x.dim() == 4 else check_shape(x, (math.prod(self.event_shape),)).unflatten(1, self.event_shape)
        x = check_shape(x, self.event_shape)
        activation, blocks = normalized_activation(self.normalization, self.activation), iter(self.blocks)
        with lowered(x, self.compute_dtype):
            for conv in self.convs:
                x = activation(conv(F.pixel_unshuffle(x, 2)))
                x = through(itertools.islice(blocks, self.residual_blocks), x, activation)
        x = x if self.compute_dtype is None else x.to(self.last.weight.dtype)
        return ACTIVATIONS[self.output_activation](self.last(x.flatten(1)))
