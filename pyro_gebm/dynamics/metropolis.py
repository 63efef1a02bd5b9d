"""The Metropolis test of many chains, and one step of MALA."""

from collections.abc import Callable
from typing import Any, TypeVar

import torch

from gebm.langevin import MAX_ENERGY_ERROR
from pyro_gebm.dynamics.steps import overdamped_move, reverse_noise

__all__ = ["accept_probability", "accepts", "choose", "diverges", "mala_step"]

Tree = TypeVar("Tree")


def accept_probability(error: torch.Tensor) -> torch.Tensor:
    """Probability min(1, exp(-error)) of a Metropolis test; 0 where the error is NaN."""
    return torch.exp(-error.nan_to_num(torch.inf, torch.inf, -torch.inf).clamp(min=0.0))


def accepts(error: torch.Tensor) -> torch.Tensor:
    """Whether the test of an energy error accepts."""
    return torch.rand_like(error).log() < -error


def diverges(error: torch.Tensor) -> torch.Tensor:
    """Whether an energy error is NaN, infinite or above 1000."""
    return ~(error < MAX_ENERGY_ERROR)


def choose(mask: torch.Tensor, new: Tree, old: Tree) -> Tree:
    """The new values of the chains where `mask` holds, the old ones elsewhere; nested tuples of tensors.

    What they share stays as it is, and what they hold twice is chosen once.
    """
    masks, chosen = {mask.dim(): mask}, {}

    def pick(a: Any, b: Any) -> Any:
        if a is b:
            return a
        if isinstance(a, tuple):
            parts = [pick(x, y) for x, y in zip(a, b)]
            return type(a)(*parts) if hasattr(a, "_fields") else tuple(parts)
        if (key := (id(a), id(b))) not in chosen:
            if (dim := a.dim()) not in masks:
                masks[dim] = mask.reshape(mask.shape + (1,) * (dim - mask.dim()))
            chosen[key] = torch.where(masks[dim], a, b)
        return chosen[key]

    return pick(new, old)


def mala_step(
    point: tuple[Any, ...],
    log_step: torch.Tensor,
    evaluate: Callable[[torch.Tensor], tuple[Any, ...]],
    log_density_and_grad: Callable[[tuple[Any, ...]], tuple[torch.Tensor, torch.Tensor]],
) -> tuple[tuple[Any, ...], torch.Tensor]:
    """One Metropolis-adjusted Langevin step of many independent chains.

    Args:
        point: tuple whose first entry is the position, of shape `chains + (...)`, with what `evaluate` adds.
        log_step: log of the step size of every chain, shape `chains`.
        evaluate: callable from a position to a point.
        log_density_and_grad: callable from a point to the log density, of shape `chains`, and its gradient.

    Returns:
        `(point, acceptance probability)`.
    """
    h = log_step.exp().reshape(log_step.shape + (1,) * (point[0].dim() - log_step.dim()))
    log_density, grad = log_density_and_grad(point)
    noise = torch.randn_like(grad)
    proposal = evaluate(overdamped_move(point[0], -grad, noise, h))
    new_log_density, new_grad = log_density_and_grad(proposal)
    back = reverse_noise(-grad, -new_grad, noise, h)
    squares = noise**2 - back**2
    log_ratio = new_log_density - log_density + 0.5 * squares.reshape(*log_step.shape, -1).sum(-1)
    accept_prob = accept_probability(-log_ratio)
    accept = torch.rand_like(accept_prob) < accept_prob
    return choose(accept, proposal, point), accept_prob
