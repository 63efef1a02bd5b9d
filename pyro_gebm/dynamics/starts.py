"""Starts of chains at prior draws of finite energy."""

import math
from collections.abc import Callable

import torch

from gebm.annealing import MAX_REDRAWS
from pyro_gebm.dynamics.metropolis import choose

__all__ = ["finite_start"]


def finite_start(
    propose: Callable[[], tuple[torch.Tensor, torch.Tensor]],
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, int]:
    """Prior draws, drawn anew, 1,000 times at most, where their log-weight is -inf.

    Args:
        propose: callable to a prior draw for every chain and its log-weight, shape `chains`.

    Returns:
        `(u, log_weight, finite, tried)`: draws, their log-weights, how many draws had one above -inf, and how many
        there were.
    """
    u, log_weight = propose()
    finite, tried = (log_weight > -math.inf).sum(), log_weight.numel()
    for _ in range(MAX_REDRAWS - 1):
        if not (bad := log_weight == -math.inf).any():
            break
        new_u, new_log_weight = propose()
        finite, tried = finite + (new_log_weight > -math.inf).sum(), tried + log_weight.numel()
        u, log_weight = choose(bad, (new_u, new_log_weight), (u, log_weight))
    return u, log_weight, finite, tried
