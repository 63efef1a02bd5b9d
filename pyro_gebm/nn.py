"""Generators and energies: the architectures that exist in both packages.

Any `torch.nn.Module` can be a generator or an energy; these are laid out so that a file saved in one package loads
in the other.
"""

import itertools
import math

import torch
import torch.nn.functional as F
from torch import nn

__all__ = ["ARCHITECTURES", "MLP", "ConvEnergy", "ConvGenerator"]

_ACTIVATIONS = {
    "identity": lambda x: x,
    "leaky_relu": lambda x: F.leaky_relu(x, 0.2),
    "relu": F.relu,
    "sigmoid": torch.sigmoid,
    "silu": F.silu,
    "softplus": F.softplus,
    "tanh": torch.tanh,
}


def _activation(name):
    if name not in _ACTIVATIONS:
        raise ValueError(f"Expected an activation in {sorted(_ACTIVATIONS)}; got {name!r}.")
    return _ACTIVATIONS[name]


def _linear(size_in, size_out):
    """A linear layer with weight and bias uniform in +-1/sqrt(in)."""
    return nn.Linear(size_in, size_out)


def _conv(channels_in, channels_out):
    """3x3 convolution with padding 1."""
    return nn.Conv2d(channels_in, channels_out, 3, padding=1)


class MLP(nn.Module):
    """Multilayer perceptron between any two shapes: a generator, or with `output_shape=()` an energy.

    Args:
        input_shape: shape of one example.
        output_shape: shape of one output; `()` for an energy.
        hidden: widths of the hidden layers.
        activation: "relu", "leaky_relu" (slope 0.2), "tanh", "silu", "softplus", "sigmoid" or "identity".
        output_activation: the same names.

    Raises:
        ValueError: for an unknown activation.

    Example:
        >>> energy = MLP((8, 8), (), hidden=(32,), activation="leaky_relu")
        >>> tuple(energy(torch.zeros(5, 8, 8)).shape)
        (5,)
    """

    def __init__(self, input_shape, output_shape, hidden=(256, 256), activation="relu", output_activation="identity"):
        super().__init__()
        self.input_shape, self.output_shape, self.hidden = tuple(input_shape), tuple(output_shape), tuple(hidden)
        self.activation, self.output_activation = activation, output_activation
        _activation(activation), _activation(output_activation)
        sizes = (math.prod(self.input_shape), *self.hidden, math.prod(self.output_shape))
        self.layers = nn.ModuleList(_linear(a, b) for a, b in itertools.pairwise(sizes))

    @property
    def config(self):
        """Arguments that build the same architecture again."""
        names = ("input_shape", "output_shape", "hidden", "activation", "output_activation")
        return {name: getattr(self, name) for name in names}

    def forward(self, x):
        x = _check_shape(x, self.input_shape).reshape(len(x), -1)
        for layer in self.layers[:-1]:
            x = _activation(self.activation)(layer(x))
        return _activation(self.output_activation)(self.layers[-1](x)).reshape(len(x), *self.output_shape)


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

    def __init__(self, latent_dim, event_shape, channels=(64, 32), activation="relu", output_activation="identity"):
        super().__init__()
        self.latent_dim, self.event_shape, self.channels = latent_dim, tuple(event_shape), tuple(channels)
        self.activation, self.output_activation = activation, output_activation
        _activation(activation), _activation(output_activation)
        height, width = _coarse_size(self.event_shape, len(self.channels) - 1)
        self.project = _linear(latent_dim, self.channels[0] * height * width)
        self.convs = nn.ModuleList(_conv(a, 4 * b) for a, b in zip(self.channels, self.channels[1:]))
        self.last = _conv(self.channels[-1], self.event_shape[0])

    @property
    def config(self):
        """Arguments that build the same architecture again."""
        names = ("latent_dim", "event_shape", "channels", "activation", "output_activation")
        return {name: getattr(self, name) for name in names}

    def forward(self, z):
        activation = _activation(self.activation)
        size = _coarse_size(self.event_shape, len(self.channels) - 1)
        x = activation(self.project(_check_shape(z, (self.latent_dim,)))).reshape(len(z), self.channels[0], *size)
        for conv in self.convs:
            x = activation(F.pixel_shuffle(conv(x), 2))
        return _activation(self.output_activation)(self.last(x))


class ConvEnergy(nn.Module):
    """Convolutional energy of images: space-to-depth and 3x3 convolutions (no strides), then a linear layer.

    Args:
        event_shape: `(C, H, W)`, with H and W divisible by `2**len(channels)`.
        channels: channels from the finest map to the coarsest; each entry halves the size.
        activation: see `MLP`.

    Raises:
        ValueError: for an unknown activation, or sizes that do not divide.

    Example:
        >>> energy = ConvEnergy((1, 8, 8), channels=(16, 32))
        >>> tuple(energy(torch.zeros(5, 1, 8, 8)).shape)
        (5,)
    """

    def __init__(self, event_shape, channels=(32, 64), activation="leaky_relu"):
        super().__init__()
        self.event_shape, self.channels, self.activation = tuple(event_shape), tuple(channels), activation
        _activation(activation)
        height, width = _coarse_size(self.event_shape, len(self.channels))
        sizes = (self.event_shape[0], *self.channels)
        self.convs = nn.ModuleList(_conv(4 * a, b) for a, b in itertools.pairwise(sizes))
        self.last = _linear(sizes[-1] * height * width, 1)

    @property
    def config(self):
        """Arguments that build the same architecture again."""
        return {name: getattr(self, name) for name in ("event_shape", "channels", "activation")}

    def forward(self, x):
        x = _check_shape(x, self.event_shape)
        for conv in self.convs:
            x = _activation(self.activation)(conv(F.pixel_unshuffle(x, 2)))
        return self.last(x.flatten(1)).squeeze(-1)


#: Architectures that `save` and `load` know by name, in both packages.
ARCHITECTURES = {"MLP": MLP, "ConvGenerator": ConvGenerator, "ConvEnergy": ConvEnergy}


def _check_shape(x, shape):
    if tuple(x.shape[1:]) != shape:
        raise ValueError(f"expected a batch of inputs of shape {('N', *shape)}; got {tuple(x.shape)}")
    return x


def _coarse_size(event_shape, halvings):
    if len(event_shape) != 3 or any(side % 2**halvings for side in event_shape[1:]):
        raise ValueError(
            f"Expected event_shape (C, H, W) with H and W divisible by {2**halvings}; got {tuple(event_shape)}."
        )
    return event_shape[1] // 2**halvings, event_shape[2] // 2**halvings
