"""The perceptron that exists in both packages."""

import itertools
import math
from collections.abc import Sequence
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import nn

from gebm.networks import LIPSCHITZ_CONSTANTS, check_bounds, check_compute_dtype, config_of, shape_of
from gebm.validation import one_of
from pyro_gebm.nn.bounds import bounded_below, scaled_down, spectral_norm_bound
from pyro_gebm.nn.layers import ACTIVATIONS, check_shape, lowered

__all__ = ["MLP"]


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
        compute_dtype: "bfloat16" for hidden layers whose products are of that precision, for accelerators; weights,
            the last layer and the output stay float32. None for that of the weights.

    Raises:
        ValueError: for an unknown activation, a Lipschitz constant that is not positive, a lower bound on something
            that is not an energy, or a Lipschitz constant of a network in lower precision.

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
        compute_dtype: str | None = None,
    ):
        super().__init__()
        self.input_shape = shape_of("input_shape", input_shape)
        self.output_shape = shape_of("output_shape", output_shape)
        self.hidden = shape_of("hidden", hidden)
        self.activation = one_of("activation", activation, ACTIVATIONS)
        self.output_activation = one_of("output_activation", output_activation, ACTIVATIONS)
        self.lipschitz, self.lower_bound = lipschitz, lower_bound
        self.compute_dtype = check_compute_dtype(compute_dtype, lipschitz)
        check_bounds(lipschitz, lower_bound, self.output_shape)
        sizes = (math.prod(self.input_shape), *self.hidden, math.prod(self.output_shape))
        self.layers = nn.ModuleList(nn.Linear(a, b) for a, b in itertools.pairwise(sizes))

    @property
    def config(self) -> dict[str, Any]:
        """Arguments that build the same architecture again."""
        return config_of(self, "input_shape output_shape hidden activation output_activation lipschitz lower_bound")

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
        with lowered(x, self.compute_dtype):
            for layer, weight in zip(layers[:-1], weights):
                x = activation(F.linear(x, weight, layer.bias))
        x = x if self.compute_dtype is None else x.to(weights[-1].dtype)
        out = ACTIVATIONS[self.output_activation](F.linear(x, weights[-1], layers[-1].bias))
        out = out.squeeze(1) if self.output_shape == () else out.unflatten(1, self.output_shape)
        return bounded_below(out, self.lower_bound)
