"""The Pareto shape of weights: whether their mean can be trusted."""

import math

import numpy as np
from numpy.typing import ArrayLike

__all__ = ["pareto_k"]


def pareto_k(log_weights: ArrayLike) -> float:
    """Shape of a generalised Pareto law fitted to the largest weights (doi:10.1198/TECH.2009.08017, arXiv:1507.02646).

    Args:
        log_weights: array of shape `(N,)`, N at least 25.

    Returns:
        The shape k; moments of the weights of an order above 1/k are infinite. It is -inf for weights without a tail,
        as equal ones, and inf where fewer than five carry most of their sum.

    Example:
        >>> import numpy as np
        >>> weights = np.random.default_rng(0).pareto(1.25, size=100_000)  # shape 0.8
        >>> bool(abs(pareto_k(np.log(weights)) - 0.8) < 0.1)
        True
    """
    ordered = np.sort(np.asarray(log_weights, np.float64))
    num_tail = math.ceil(min(len(ordered) / 5, 3 * math.sqrt(len(ordered))))
    largest, threshold = ordered[-1], ordered[-num_tail - 1]
    excess = np.exp(ordered[-num_tail:] - largest) - np.exp(threshold - largest)
    if not excess[0] > 0:  # ties, or weights that are all alike: no tail
        excess = excess[excess > 0]
        if len(excess) < 5:
            return math.inf if excess.sum() > 0.5 * np.exp(ordered - largest).sum() else -math.inf
    num, quartile = len(excess), excess[int(len(excess) / 4 + 0.5) - 1]
    num_grid = 30 + int(math.sqrt(num))
    theta = 1 / excess[-1] + (1 - np.sqrt(num_grid / (np.arange(num_grid) + 0.5))) / (3 * quartile)
    k = np.log1p(-theta[:, None] * excess).mean(1)
    rate = np.divide(-theta, k, out=np.full_like(k, 1 / excess.mean()), where=k != 0)  # its limit as theta goes to 0
    log_likelihood = num * (np.log(rate) - k - 1)
    posterior = np.exp(log_likelihood - log_likelihood.max())
    theta = float((theta * posterior).sum() / posterior.sum())
    shape = float(np.log1p(-theta * excess).mean())
    return (num * shape + 5) / (num + 10)  # a weak prior at 1/2
