r"""Global moves by iterated sampling importance resampling (i-SIR, arXiv:2111.02702)."""

import math
from collections.abc import Callable

import torch

from pyro_gebm.dynamics.metropolis import choose

__all__ = ["isir"]


def isir(
    u: torch.Tensor,
    log_weight: torch.Tensor,
    propose: Callable[[int], tuple[torch.Tensor, torch.Tensor]],
    num_candidates: int,
    at_once: int = 1,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    r"""Keep one of a position and K fresh candidates, with probability proportional to its weight.

    With candidates from a law q and weights $w = \pi / q$ that leaves $\pi$ invariant for every K. A candidate whose
    weight is NaN is never kept.

    Args:
        u: positions, shape `chains + (...)`.
        log_weight: their log-weights, shape `chains`.
        propose: callable from n to n candidates for every chain and their log-weights, with a leading axis of n.
        num_candidates: K.
        at_once: largest n that is asked for.

    Returns:
        `(u, moved, accept_prob)`: new positions, whether a candidate was kept, and the probability of that (NaN where
        all candidates have weight 0).
    """
    # the largest of log-weight plus Gumbel noise is a draw in proportion to the weights
    score, moved = log_weight + _gumbel_like(log_weight), torch.zeros_like(log_weight, dtype=torch.bool)
    log_weights = []
    for start in range(0, num_candidates, at_once):
        candidates, new = propose(min(at_once, num_candidates - start))
        new = new.masked_fill(new.isnan(), -math.inf)
        log_weights.append(new)
        for candidate, new_score in zip(candidates, new + _gumbel_like(new)):
            better = new_score > score
            u, score = choose(better, (candidate, new_score), (u, score))
            moved = moved | better
    total = torch.cat(log_weights).logsumexp(0)
    return u, moved, torch.where(total > -math.inf, (total - log_weight).sigmoid(), math.nan)


def _gumbel_like(x: torch.Tensor) -> torch.Tensor:
    return -torch.empty_like(x).exponential_().log()
