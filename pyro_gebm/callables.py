"""Networks inside a GEBM: applied to batches, and checked without side effects."""

import contextlib
from collections.abc import Callable, Iterator
from typing import Protocol

import torch

__all__ = [
    "Energy",
    "Generator",
    "Shape",
    "check_evaluation_mode",
    "draw_quietly",
    "evaluation_mode",
    "output_of",
    "over_batch",
]

#: Shapes as PyTorch takes them.
Shape = torch.Size | list[int] | tuple[int, ...]


class Energy(Protocol):
    """A `torch.nn.Module` or callable from a batch of events `(N, *event)` to their energies `(N,)`."""

    def __call__(self, x: torch.Tensor, /) -> torch.Tensor: ...


class Generator(Protocol):
    """A `torch.nn.Module` or callable from a batch of latents `(N, *latent)` to events `(N, *event)`."""

    def __call__(self, z: torch.Tensor, /) -> torch.Tensor: ...


def over_batch(fn: Callable[[torch.Tensor], torch.Tensor], value: torch.Tensor, event_dim: int) -> torch.Tensor:
    """Apply a batched function `(N, *event) -> (N, *output)` to a tensor with any number of leading batch axes.

    Args:
        fn: callable on tensors with exactly one batch axis.
        value: tensor of shape `batch + event`.
        event_dim: number of trailing axes that belong to one example.

    Returns:
        Tensor of shape `batch + output`.
    """
    batch = value.shape[: value.dim() - event_dim]
    out = fn(value.reshape(-1, *value.shape[len(batch) :]))
    return out.reshape(batch + out.shape[1:])


@contextlib.contextmanager
def evaluation_mode(*fns: object) -> Iterator[None]:
    """Put modules in evaluation mode within a block, then every submodule back as it was."""
    modules = [m for fn in fns if isinstance(fn, torch.nn.Module) for m in fn.modules()]
    flags = [m.training for m in modules]
    try:
        for module in modules:
            module.training = False
        yield
    finally:
        for module, flag in zip(modules, flags, strict=True):
            module.training = flag


def draw_quietly(distribution: torch.distributions.Distribution, num_draws: int) -> torch.Tensor:
    """Draws for a check: detached, and without moving the global random number generators."""
    devices = list(range(torch.cuda.device_count())) if torch.cuda.is_initialized() else []
    with torch.random.fork_rng(devices=devices), torch.no_grad():
        return distribution.sample((num_draws,)).reshape(-1, *distribution.event_shape)


def output_of(fn: Callable[[torch.Tensor], torch.Tensor], value: torch.Tensor, name: str, example: str) -> torch.Tensor:
    """`fn` of a batch of at least two examples, in evaluation mode and without a graph.

    Raises:
        ValueError: if `fn` cannot take such an input, or does not return a floating-point tensor with the same
            batch axis.
    """
    shape = tuple(value.shape[1:])
    try:
        with torch.no_grad(), evaluation_mode(fn):
            out = fn(value)
    except Exception as error:
        raise ValueError(
            f"The {name} cannot take {example} of shape {shape} (as a batch {tuple(value.shape)}, {value.dtype} on "
            f"{value.device}): {type(error).__name__}: {str(error).splitlines()[0]}. Expected a callable on "
            f"(N, *{shape}); check the {name}'s input size, dtype and device, or the latent prior's event_shape "
            "(`.to_event(1)`?)."
        ) from error
    if not isinstance(out, torch.Tensor) or not out.is_floating_point() or out.shape[:1] != value.shape[:1]:
        got = tuple(out.shape) if isinstance(out, torch.Tensor) else type(out).__name__
        raise ValueError(
            f"The {name} must return a floating-point tensor whose first axis is the batch, here {value.shape[0]}; "
            f"got {got}."
        )
    return out


def check_evaluation_mode(fn: object, name: str) -> None:
    """Refuse modules whose training mode carries state or noise (BatchNorm, dropout).

    Raises:
        ValueError: if such a submodule is in training mode.
    """
    if not isinstance(fn, torch.nn.Module):
        return
    kinds = (torch.nn.modules.batchnorm._NormBase, torch.nn.modules.dropout._DropoutNd, torch.nn.RReLU)
    found = sorted(
        {
            type(m).__name__
            for m in fn.modules()
            if m.training and (isinstance(m, kinds) or type(m).__name__ == "BatchNorm")
        }
    )
    if found:
        raise ValueError(
            f"The {name} must be in evaluation mode, so that it is one fixed function; got {', '.join(found)} in "
            f"training mode. Call `{name}.eval()`."
        )
