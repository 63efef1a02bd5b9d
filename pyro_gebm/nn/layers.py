"""Layers and activations of the architectures, beside PyTorch's own."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import nn

__all__ = ["ACTIVATIONS", "check_shape", "conv3x3"]

ACTIVATIONS: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "identity": lambda x: x,
    "leaky_relu": lambda x: F.leaky_relu(x, 0.2),
    "relu": F.relu,
    "sigmoid": torch.sigmoid,
    "silu": F.silu,
    "softplus": F.softplus,
    "tanh": torch.tanh,
}


def conv3x3(channels_in: int, channels_out: int) -> nn.Conv2d:
    """3x3 convolution with padding 1."""
    return nn.Conv2d(channels_in, channels_out, 3, padding=1)


def check_shape(x: torch.Tensor, shape: tuple[int, ...]) -> torch.Tensor:
    """The batch itself, after a check of its shape.

    Raises:
        ValueError: if the shape of one is another.
    """
    if tuple(x.shape[1:]) != shape:
        raise ValueError(f"Expected a batch of inputs of shape {('N', *shape)}; got shape {tuple(x.shape)}.")
    return x
