"""Layers and activations of the architectures, beside PyTorch's own."""

import contextlib
from collections.abc import Callable, Iterable

import torch
import torch.nn.functional as F
from torch import nn

from gebm.networks import num_groups

__all__ = [
    "ACTIVATIONS",
    "NORMALIZATIONS",
    "Residual",
    "check_shape",
    "conv3x3",
    "lowered",
    "normalized_activation",
    "through",
]

ACTIVATIONS: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "identity": lambda x: x,
    "leaky_relu": lambda x: F.leaky_relu(x, 0.2),
    "relu": F.relu,
    "sigmoid": torch.sigmoid,
    "silu": F.silu,
    "softplus": F.softplus,
    "tanh": torch.tanh,
}


#: Normalisations of each image, without weights.
NORMALIZATIONS: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "group": lambda x: F.group_norm(x, num_groups(x.shape[1]), eps=1e-5),
    "pixel": lambda x: x * torch.rsqrt(x.square().mean(1, keepdim=True) + 1e-5),
}


def normalized_activation(normalization: str | None, activation: str) -> Callable[[torch.Tensor], torch.Tensor]:
    """An activation on `(N, C, H, W)`, after a normalisation where there is one."""
    return lambda x: ACTIVATIONS[activation](x if normalization is None else NORMALIZATIONS[normalization](x))


def lowered(x: torch.Tensor, compute_dtype: str | None) -> contextlib.AbstractContextManager:
    """A block in which layers compute float32 in another dtype; nothing changes for None."""
    if compute_dtype is None:
        return contextlib.nullcontext()
    return torch.autocast(x.device.type, getattr(torch, compute_dtype), cache_enabled=False)


def conv3x3(channels_in: int, channels_out: int) -> nn.Conv2d:
    """3x3 convolution with padding 1."""
    return nn.Conv2d(channels_in, channels_out, 3, padding=1)


class Residual(nn.Module):
    """`x + f(x)` on `(N, C, H, W)`, f two convolutions after normalisation and activation each."""

    def __init__(self, channels: int):
        super().__init__()
        self.convs = nn.ModuleList(conv3x3(channels, channels) for _ in range(2))

    def forward(self, x: torch.Tensor, normalized: Callable[[torch.Tensor], torch.Tensor]) -> torch.Tensor:
        first, second = self.convs
        return x + second(normalized(first(normalized(x))))


def through(
    blocks: Iterable[nn.Module], x: torch.Tensor, normalized: Callable[[torch.Tensor], torch.Tensor]
) -> torch.Tensor:
    """What comes out of residual blocks one after another."""
    for block in blocks:
        x = block(x, normalized)
    return x


def check_shape(x: torch.Tensor, shape: tuple[int, ...]) -> torch.Tensor:
    """The batch itself, after a check of its shape.

    Raises:
        ValueError: if the shape of one is another.
    """
    if tuple(x.shape[1:]) != shape:
        raise ValueError(f"Expected a batch of inputs of shape {('N', *shape)}; got shape {tuple(x.shape)}.")
    return x
