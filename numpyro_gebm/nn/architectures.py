"""The architectures that exist in both packages: perceptrons, and convolutional networks of images."""

import itertools
import math
from collections.abc import Sequence
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp

from gebm.networks import LIPSCHITZ_CONSTANTS, check_bounds, coarse_size, shape_of
from gebm.validation import integer, one_of
from numpyro_gebm.keys import typed
from numpyro_gebm.nn.bounds import bounded_below, scaled_down, spectral_norm_bound
from numpyro_gebm.nn.layers import ACTIVATIONS, Conv, Linear, check_shape, depth_to_space, initialised, space_to_depth

__all__ = ["MLP", "ConvEncoder", "ConvEnergy", "ConvGenerator"]


class MLP(eqx.Module):
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
        rng_key: a JAX random key.

    Raises:
        ValueError: for an unknown activation, a Lipschitz constant that is not positive, or a lower bound on
            something that is not an energy.

    Example:
        >>> energy = MLP((8, 8), (), hidden=(32,), activation="leaky_relu", rng_key=jax.random.key(0))
        >>> energy(jnp.zeros((8, 8))).shape
        ()
    """

    layers: tuple[Linear, ...]
    input_shape: tuple[int, ...] = eqx.field(static=True)
    output_shape: tuple[int, ...] = eqx.field(static=True)
    hidden: tuple[int, ...] = eqx.field(static=True)
    activation: str = eqx.field(static=True)
    output_activation: str = eqx.field(static=True)
    lipschitz: float | None = eqx.field(static=True)
    lower_bound: float | None = eqx.field(static=True)

    def __init__(
        self,
        input_shape: Sequence[int],
        output_shape: Sequence[int],
        hidden: Sequence[int] = (256, 256),
        activation: str = "relu",
        output_activation: str = "identity",
        lipschitz: float | None = None,
        lower_bound: float | None = None,
        *,
        rng_key: jax.Array,
    ):
        self.input_shape = shape_of("input_shape", input_shape)
        self.output_shape = shape_of("output_shape", output_shape)
        self.hidden = shape_of("hidden", hidden)
        self.activation = one_of("activation", activation, ACTIVATIONS)
        self.output_activation = one_of("output_activation", output_activation, ACTIVATIONS)
        self.lipschitz, self.lower_bound = lipschitz, lower_bound
        check_bounds(lipschitz, lower_bound, self.output_shape)
        sizes = (math.prod(self.input_shape), *self.hidden, math.prod(self.output_shape))
        self.layers = initialised(typed(rng_key), tuple((Linear, a, b) for a, b in itertools.pairwise(sizes)))

    @property
    def config(self) -> dict[str, Any]:
        """Arguments that build the same architecture again."""
        names = ("input_shape", "output_shape", "hidden", "activation", "output_activation", "lipschitz", "lower_bound")
        return {name: getattr(self, name) for name in names}

    def lipschitz_constant(self) -> jax.Array:
        """An upper bound of the network's Lipschitz constant, in the Euclidean norm."""
        return self._steepness() * jnp.prod(jnp.stack([spectral_norm_bound(layer.weight) for layer in self._layers()]))

    def _steepness(self) -> float:
        return LIPSCHITZ_CONSTANTS[self.activation] ** len(self.hidden) * LIPSCHITZ_CONSTANTS[self.output_activation]

    def _layers(self) -> Sequence[Linear]:
        if self.lipschitz is None:
            return self.layers
        bound = (self.lipschitz / self._steepness()) ** (1 / len(self.layers))
        return [scaled_down(layer, bound) for layer in self.layers]

    def __call__(self, x: jax.Array) -> jax.Array:
        x = check_shape(x, self.input_shape).reshape(-1)
        *layers, last = self._layers()
        for layer in layers:
            x = ACTIVATIONS[self.activation](layer(x))
        out = ACTIVATIONS[self.output_activation](last(x)).reshape(self.output_shape)
        return bounded_below(out, self.lower_bound)


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
        rng_key: a JAX random key.

    Raises:
        ValueError: for an unknown activation, or sizes that do not divide.

    Example:
        >>> generator = ConvGenerator(16, (1, 8, 8), channels=(32, 16), rng_key=jax.random.key(0))
        >>> generator(jnp.zeros(16)).shape
        (1, 8, 8)
    """

    project: Linear
    convs: tuple[Conv, ...]
    last: Conv
    latent_dim: int = eqx.field(static=True)
    event_shape: tuple[int, ...] = eqx.field(static=True)
    channels: tuple[int, ...] = eqx.field(static=True)
    activation: str = eqx.field(static=True)
    output_activation: str = eqx.field(static=True)

    def __init__(
        self,
        latent_dim: int,
        event_shape: Sequence[int],
        channels: Sequence[int] = (64, 32),
        activation: str = "relu",
        output_activation: str = "identity",
        *,
        rng_key: jax.Array,
    ):
        self.latent_dim = integer("latent_dim", latent_dim)
        self.event_shape = shape_of("event_shape", event_shape)
        self.channels = shape_of("channels", channels)
        self.activation = one_of("activation", activation, ACTIVATIONS)
        self.output_activation = one_of("output_activation", output_activation, ACTIVATIONS)
        height, width = coarse_size(self.event_shape, len(self.channels) - 1)
        project = Linear, self.latent_dim, self.channels[0] * height * width
        last = Conv, self.channels[-1], self.event_shape[0]
        convs = ((Conv, a, 4 * b) for a, b in itertools.pairwise(self.channels))
        self.project, self.last, *convs = initialised(typed(rng_key), (project, last, *convs))
        self.convs = tuple(convs)

    @property
    def config(self) -> dict[str, Any]:
        """Arguments that build the same architecture again."""
        names = ("latent_dim", "event_shape", "channels", "activation", "output_activation")
        return {name: getattr(self, name) for name in names}

    def __call__(self, z: jax.Array) -> jax.Array:
        activation = ACTIVATIONS[self.activation]
        size = coarse_size(self.event_shape, len(self.channels) - 1)
        x = activation(self.project(check_shape(z, (self.latent_dim,)))).reshape(self.channels[0], *size)
        for conv in self.convs:
            x = activation(depth_to_space(conv(x)))
        return ACTIVATIONS[self.output_activation](self.last(x))


class ConvEnergy(eqx.Module):
    """Convolutional energy of images: space-to-depth and 3x3 convolutions (no strides), then a linear layer.

    Args:
        event_shape: `(C, H, W)`, with H and W divisible by `2**len(channels)`.
        channels: channels from the finest map to the coarsest; each entry halves the size.
        activation: see `MLP`.
        lipschitz: see `MLP`; a 3x3 convolution counts as 3 times the spectral norm of its weight as a matrix.
        lower_bound: see `MLP`.
        rng_key: a JAX random key.

    Raises:
        ValueError: for an unknown activation, or sizes that do not divide.

    Example:
        >>> energy = ConvEnergy((1, 8, 8), channels=(16, 32), rng_key=jax.random.key(0))
        >>> energy(jnp.zeros((1, 8, 8))).shape
        ()
    """

    convs: tuple[Conv, ...]
    last: Linear
    event_shape: tuple[int, ...] = eqx.field(static=True)
    channels: tuple[int, ...] = eqx.field(static=True)
    activation: str = eqx.field(static=True)
    lipschitz: float | None = eqx.field(static=True)
    lower_bound: float | None = eqx.field(static=True)

    def __init__(
        self,
        event_shape: Sequence[int],
        channels: Sequence[int] = (32, 64),
        activation: str = "leaky_relu",
        lipschitz: float | None = None,
        lower_bound: float | None = None,
        *,
        rng_key: jax.Array,
    ):
        self.event_shape = shape_of("event_shape", event_shape)
        self.channels = shape_of("channels", channels)
        self.activation = one_of("activation", activation, ACTIVATIONS)
        self.lipschitz, self.lower_bound = lipschitz, lower_bound
        check_bounds(lipschitz, lower_bound, ())
        height, width = coarse_size(self.event_shape, len(self.channels))
        sizes = (self.event_shape[0], *self.channels)
        convs = ((Conv, 4 * a, b) for a, b in itertools.pairwise(sizes))
        self.last, *convs = initialised(typed(rng_key), ((Linear, sizes[-1] * height * width, 1), *convs))
        self.convs = tuple(convs)

    @property
    def config(self) -> dict[str, Any]:
        """Arguments that build the same architecture again."""
        names = ("event_shape", "channels", "activation", "lipschitz", "lower_bound")
        return {name: getattr(self, name) for name in names}

    def lipschitz_constant(self) -> jax.Array:
        """An upper bound of the network's Lipschitz constant, in the Euclidean norm."""
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
        for conv in convs:
            x = ACTIVATIONS[self.activation](conv(space_to_depth(x)))
        return bounded_below(last(x.reshape(-1)).reshape(()), self.lower_bound)


class ConvEncoder(eqx.Module):
    """Convolutional map from images to vectors, the encoder of a VAE or features: the layers of `ConvEnergy`.

    Args:
        event_shape: `(C, H, W)`, with H and W divisible by `2**len(channels)`; images may be flat, `(C H W,)`, too.
        output_dim: length of the vector.
        channels: channels from the finest map to the coarsest; each entry halves the size.
        activation: see `MLP`.
        output_activation: see `MLP`.
        rng_key: a JAX random key.

    Raises:
        ValueError: for an unknown activation, or sizes that do not divide.

    Example:
        >>> encoder = ConvEncoder((1, 8, 8), 5, channels=(16, 32), rng_key=jax.random.key(0))
        >>> encoder(jnp.zeros(64)).shape
        (5,)
    """

    convs: tuple[Conv, ...]
    last: Linear
    event_shape: tuple[int, ...] = eqx.field(static=True)
    output_dim: int = eqx.field(static=True)
    channels: tuple[int, ...] = eqx.field(static=True)
    activation: str = eqx.field(static=True)
    output_activation: str = eqx.field(static=True)

    def __init__(
        self,
        event_shape: Sequence[int],
        output_dim: int,
        channels: Sequence[int] = (32, 64),
        activation: str = "relu",
        output_activation: str = "identity",
        *,
        rng_key: jax.Array,
    ):
        self.event_shape = shape_of("event_shape", event_shape)
        self.output_dim = integer("output_dim", output_dim)
        self.channels = shape_of("channels", channels)
        self.activation = one_of("activation", activation, ACTIVATIONS)
        self.output_activation = one_of("output_activation", output_activation, ACTIVATIONS)
        height, width = coarse_size(self.event_shape, len(self.channels))
        sizes = (self.event_shape[0], *self.channels)
        convs = ((Conv, 4 * a, b) for a, b in itertools.pairwise(sizes))
        last = Linear, sizes[-1] * height * width, self.output_dim
        self.last, *convs = initialised(typed(rng_key), (last, *convs))
        self.convs = tuple(convs)

    @property
    def config(self) -> dict[str, Any]:
        """Arguments that build the same architecture again."""
        names = ("event_shape", "output_dim", "channels", "activation", "output_activation")
        return {name: getattr(self, name) for name in names}

    def __call__(self, x: jax.Array) -> jax.Array:
        x = x if x.ndim == 3 else check_shape(x, (math.prod(self.event_shape),)).reshape(self.event_shape)
        x = check_shape(x, self.event_shape)
        for conv in self.convs:
            x = ACTIVATIONS[self.activation](conv(space_to_depth(x)))
        return ACTIVATIONS[self.output_activation](self.last(x.reshape(-1)))
