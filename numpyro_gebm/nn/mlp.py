"""The perceptron that exists in both packages."""

import itertools
import math
from collections.abc import Sequence
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp

from gebm.networks import LIPSCHITZ_CONSTANTS, check_bounds, check_compute_dtype, config_of, shape_of
from gebm.validation import one_of
from numpyro_gebm.keys import typed
from numpyro_gebm.nn.bounds import bounded_below, scaled_down, spectral_norm_bound
from numpyro_gebm.nn.layers import ACTIVATIONS, Linear, check_shape, initialised, lowered

__all__ = ["MLP"]


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
        compute_dtype: "bfloat16" for hidden layers whose products are of that precision, for accelerators; weights,
            the last layer and the output stay float32. None for that of the weights.
        rng_key: a JAX random key.

    Raises:
        ValueError: for an unknown activation, a Lipschitz constant that is not positive, a lower bound on something
            that is not an energy, or a Lipschitz constant of a network in lower precision.

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
    compute_dtype: str | None = eqx.field(static=True)

    def __init__(
        self,
        input_shape: Sequence[int],
        output_shape: Sequence[int],
        hidden: Sequence[int] = (256, 256),
        activation: str = "relu",
        output_activation: str = "identity",
        lipschitz: float | None = None,
        lower_bound: float | None = None,
        compute_dtype: str | None = None,
        *,
        rng_key: jax.Array,
    ):
        self.input_shape = shape_of("input_shape", input_shape)
        self.output_shape = shape_of("output_shape", output_shape)
        self.hidden = shape_of("hidden", hidden)
        self.activation = one_of("activation", activation, ACTIVATIONS)
        self.output_activation = one_of("output_activation", output_activation, ACTIVATIONS)
        self.lipschitz, self.lower_bound = lipschitz, lower_bound
        self.compute_dtype = check_compute_dtype(compute_dtype, lipschitz)
        check_bounds(lipschitz, lower_bound, self.output_shape)
        sizes = (math.prod(self.input_shape), *self.hidden, math.prod(self.output_shape))
        self.layers = initialised(typed(rng_key), tuple((Linear, a, b) for a, b in itertools.pairwise(sizes)))

    @property
    def config(self) -> dict[str, Any]:
        """Arguments that build the same architecture again."""
        return config_of(self, "input_shape output_shape hidden activation output_activation lipschitz lower_bound")

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
        for layer in lowered(layers, self.compute_dtype):
            x = ACTIVATIONS[self.activation](layer(x))
        out = ACTIVATIONS[self.output_activation](last(x)).reshape(self.output_shape)
        return bounded_below(out, self.lower_bound)
