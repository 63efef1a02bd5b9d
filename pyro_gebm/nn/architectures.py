"""The architectures that exist in both packages: perceptrons, and convolutional networks of images."""

import itertools
import math
from collections.abc import Sequence
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import nn

from gebm.networks import LIPSCHITZ_CONSTANTS, check_bounds, coarse_size, shape_of
from gebm.validation import integer, one_of
from pyro_gebm.nn.bounds import bounded_below, scaled_down, spectral_norm_bound
from pyro_gebm.nn.layers import ACTIVATIONS, check_shape, conv3x3

__all__ = ["MLP", "ConvEncoder", "ConvEnergy", "ConvGenerator"]


class MLP(nn.Module):
    """Multilayer perceptron between any two shapes: a generator, or with `output_shape=()` an energy.

    Args:
        input_shape: shape of one example.
        output_shape: shape of one output; `()` for an energy.
        hidden: widths of the hidden layers.
        activation: "relu", "leaky_relu" (slope 0.2), "tanh", "silu", "softplus", "sigmoid" or "identity".
        output_activation: the same names.
        lipschitz: L; the weights of every layer are then scaled down (spectral normalisation, see
            `spectral_norm_bound`) so that the network is L-Lipschitz in the Euclidean norm; None for no bound.
        lower_bound: b; an energy only. The output e becomes `b + softplus(e - b) >= b`; None for no bound.

    Raises:
        ValueError: for an unknown activation, a Lipschitz constant that is not positive, or a lower bound on
            something that is not an energy.

    Example:
        >>> energy = MLP((8, 8), (), hidden=(32,), activation="leaky_relu")
        >>> tuple(energy(torch.zeros(5, 8, 8)).shape)
        (5,)
    """

    def __init__(
        self,
        input_shape: Sequence[int],
        output_shape: Sequence[int],
        hidden: Sequence[int] = (256, 256),
        activation: str = "relu",
        output_activation: str = "identity",
        lipschitz: float | None = None,
        lower_bound: float | None = None,
    ):
        super().__init__()
        self.input_shape = shape_of("input_shape", input_shape)
        self.output_shape = shape_of("output_shape", output_shape)
        self.hidden = shape_of("hidden", hidden)
        self.activation = one_of("activation", activation, ACTIVATIONS)
        self.output_activation = one_of("output_activation", output_activation, ACTIVATIONS)
        self.lipschitz, self.lower_bound = lipschitz, lower_bound
        check_bounds(lipschitz, lower_bound, self.output_shape)
        sizes = (math.prod(self.input_shape), *self.hidden, math.prod(self.output_shape))
        self.layers = nn.ModuleList(nn.Linear(a, b) for a, b in itertools.pairwise(sizes))

    @property
    def config(self) -> dict[str, Any]:
        """Arguments that build the same architecture again."""
        names = ("input_shape", "output_shape", "hidden", "activation", "output_activation", "lipschitz", "lower_bound")
        return {name: getattr(self, name) for name in names}

    @torch.no_grad()
    def lipschitz_constant(self) -> torch.Tensor:
        """An upper bound of the network's Lipschitz constant, in the Euclidean norm."""
        return self._steepness() * torch.stack([spectral_norm_bound(weight) for weight in self._weights()]).prod()

    def _steepness(self) -> float:
        return LIPSCHITZ_CONSTANTS[self.activation] ** len(self.hidden) * LIPSCHITZ_CONSTANTS[self.output_activation]

    def _layers(self) -> list[nn.Linear]:
        return cast("list[nn.Linear]", list(self.layers))

    def _weights(self) -> list[torch.Tensor]:
        bound = None
        if self.lipschitz is not None:
            bound = (self.lipschitz / self._steepness()) ** (1 / len(self.layers))
        return [scaled_down(layer.weight, bound) for layer in self._layers()]

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x, activation = check_shape(x, self.input_shape).reshape(len(x), -1), ACTIVATIONS[self.activation]
        layers = self._layers()
        weights = self._weights() if self.lipschitz is not None else [layer.weight for layer in layers]
        for layer, weight in zip(layers[:-1], weights):
            x = activation(F.linear(x, weight, layer.bias))
        out = ACTIVATIONS[self.output_activation](F.linear(x, weights[-1], layers[-1].bias))
        out = out.squeeze(1) if self.output_shape == () else out.unflatten(1, self.output_shape)
        return bounded_below(out, self.lower_bound)


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

    Raises:
        ValueError: for an unknown activation, or sizes that do not divide.

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
    ):
        super().__init__()
        self.latent_dim = integer("latent_dim", latent_dim)
        self.event_shape = shape_of("event_shape", event_shape)
        self.channels = shape_of("channels", channels)
        self.activation = one_of("activation", activation, ACTIVATIONS)
        self.output_activation = one_of("output_activation", output_activation, ACTIVATIONS)
        height, width = coarse_size(self.event_shape, len(self.channels) - 1)
        self.project = nn.Linear(self.latent_dim, self.channels[0] * height * width)
        self.convs = nn.ModuleList(conv3x3(a, 4 * b) for a, b in zip(self.channels, self.channels[1:]))
        self.last = conv3x3(self.channels[-1], self.event_shape[0])

    @property
    def config(self) -> dict[str, Any]:
        """Arguments that build the same architecture again."""
        names = ("latent_dim", "event_shape", "channels", "activation", "output_activation")
        return {name: getattr(self, name) for name in names}

    def forward(self, z: torch.Tensor) -> torch.Tensor:
        activation = ACTIVATIONS[self.activation]
        size = coarse_size(self.event_shape, len(self.channels) - 1)
        x = activation(self.project(check_shape(z, (self.latent_dim,)))).reshape(len(z), self.channels[0], *size)
        for conv in self.convs:
            x = activation(F.pixel_shuffle(conv(x), 2))
        return ACTIVATIONS[self.output_activation](self.last(x))


class ConvEnergy(nn.Module):
    """Convolutional energy of images: space-to-depth and 3x3 convolutions (no strides), then a linear layer.

    Args:
        event_shape: `(C, H, W)`, with H and W divisible by `2**len(channels)`.
        channels: channels from the finest map to the coarsest; each entry halves the size.
        activation: see `MLP`.
        lipschitz: see `MLP`; a 3x3 convolution counts as 3 times the spectral norm of its weight as a matrix.
        lower_bound: see `MLP`.

    Raises:
        ValueError: for an unknown activation, or sizes that do not divide.

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
    ):
        super().__init__()
        self.event_shape = shape_of("event_shape", event_shape)
        self.channels = shape_of("channels", channels)
        self.activation = one_of("activation", activation, ACTIVATIONS)
        self.lipschitz, self.lower_bound = lipschitz, lower_bound
        check_bounds(lipschitz, lower_bound, ())
        height, width = coarse_size(self.event_shape, len(self.channels))
        sizes = (self.event_shape[0], *self.channels)
        self.convs = nn.ModuleList(conv3x3(4 * a, b) for a, b in itertools.pairwise(sizes))
        self.last = nn.Linear(sizes[-1] * height * width, 1)

    @property
    def config(self) -> dict[str, Any]:
        """Arguments that build the same architecture again."""
        names = ("event_shape", "channels", "activation", "lipschitz", "lower_bound")
        return {name: getattr(self, name) for name in names}

    @torch.no_grad()
    def lipschitz_constant(self) -> torch.Tensor:
        """An upper bound of the network's Lipschitz constant, in the Euclidean norm."""
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
        for weight, conv in zip(weights, self._convs()):
            x = ACTIVATIONS[self.activation](F.conv2d(F.pixel_unshuffle(x, 2), weight, conv.bias, padding=1))
        return bounded_below(F.linear(x.flatten(1), last, self.last.bias).squeeze(-1), self.lower_bound)


class ConvEncoder(nn.Module):
    """Convolutional map from images to vectors, the encoder of a VAE or features: the layers of `ConvEnergy`.

    Args:
        event_shape: `(C, H, W)`, with H and W divisible by `2**len(channels)`; images may be flat, `(C H W,)`, too.
        output_dim: length of the vector.
        channels: channels from the finest map to the coarsest; each entry halves the size.
        activation: see `MLP`.
        output_activation: see `MLP`.

    Raises:
        ValueError: for an unknown activation, or sizes that do not divide.

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
    ):
        super().__init__()
        self.event_shape = shape_of("event_shape", event_shape)
        self.output_dim = integer("output_dim", output_dim)
        self.channels = shape_of("channels", channels)
        self.activation = one_of("activation", activation, ACTIVATIONS)
        self.output_activation = one_of("output_activation", output_activation, ACTIVATIONS)
        height, width = coarse_size(self.event_shape, len(self.channels))
        sizes = (self.event_shape[0], *self.channels)
        self.convs = nn.ModuleList(conv3x3(4 * a, b) for a, b in itertools.pairwise(sizes))
        self.last = nn.Linear(sizes[-1] * height * width, self.output_dim)

    @property
    def config(self) -> dict[str, Any]:
        """Arguments that build the same architecture again."""
        names = ("event_shape", "output_dim", "channels", "activation", "output_activation")
        return {name: getattr(self, name) for name in names}

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x if x.dim() == 4 else check_shape(x, (math.prod(self.event_shape),)).unflatten(1, self.event_shape)
        x = check_shape(x, self.event_shape)
        for conv in self.convs:
            x = ACTIVATIONS[self.activation](conv(F.pixel_unshuffle(x, 2)))
        return ACTIVATIONS[self.output_activation](self.last(x.flatten(1)))
