r"""Estimates of a log-partition from importance weights, with what says whether they can be trusted."""

import math
from typing import NamedTuple

import numpy as np

__all__ = ["LogPartition", "bridge", "from_log_weights", "pareto_k"]

#: Pareto shape above which an importance sampling estimate is not to be trusted (arXiv:1507.02646).
MAX_PARETO_K = 0.7
#: Fewest effective samples for which a standard error is.
MIN_ESS = 100
#: Fewest weights to which the shape is fitted.
MIN_WEIGHTS = 100


class LogPartition(NamedTuple):
    """Estimate of a log-partition.

    Args:
        value: of A = log Z.
        std_error: its Monte Carlo standard error.
        ess: effective sample size of the weights behind it.
        pareto_k: shape of the Pareto tail of the weights; above 0.7 mean and standard error mislead. NaN where there
            are fewer than 100 weights.
        warnings: what is wrong, in words; empty if nothing is.
    """

    value: float
    std_error: float
    ess: float
    pareto_k: float
    warnings: tuple


def from_log_weights(log_weights, num_each=1):
    r"""Logarithm of a mean of weights, $\log \frac1N \sum_i w_i$, as an estimate of a log-partition.

    Args:
        log_weights: array of shape `(N,)`; each weight is an unbiased estimate of Z.
        num_each: particles behind each weight.

    Returns:
        A `LogPartition`.

    Raises:
        ValueError: for a weight that is NaN or infinite, or if all are 0.

    Example:
        >>> import numpy as np
        >>> estimate = from_log_weights(np.log([1.0, 2.0, 3.0, 2.0]))
        >>> round(estimate.value, 4), round(estimate.std_error, 4), round(estimate.ess, 2)
        (0.6931, 0.2041, 3.56)
    """
    log_weights = np.asarray(log_weights, np.float64)
    largest = log_weights.max()
    if not math.isfinite(largest):
        raise ValueError(f"Expected finite weights, not all of them 0; the largest log-weight is {largest}.")
    weights = np.exp(log_weights - largest)
    num, mean = len(weights), weights.mean()
    std_error = weights.std(ddof=1) / mean / math.sqrt(num)
    shape = pareto_k(log_weights) if num >= MIN_WEIGHTS else math.nan
    return _estimate(largest + math.log(mean), std_error, num_each * num * _effective_fraction(weights), shape)


def bridge(base_tilts, draw_tilts, effective_sample_size):
    r"""Bridge sampling between a base and the law tilted by weights w, with the optimal bridge.

    .. math:: \hat Z = \frac{E_0[w\, b]}{E_1[b]}, \qquad b \propto \frac{1}{n_0 + n_1 w / Z}

    Source: doi:10.2307/24306045; the standard error is that of doi:10.1111/j.1368-423X.2004.00125.x.

    Args:
        base_tilts: log w at independent draws of the base, shape `(n_0,)`.
        draw_tilts: log w at draws of the tilted law, shape `(chains, draws)`.
        effective_sample_size: callable from an array of that shape to its effective sample size.

    Returns:
        A `LogPartition`.

    Example:
        >>> import numpy as np
        >>> rng = np.random.default_rng(0)
        >>> tilts = -1.5 * rng.normal(size=4000) ** 2, -1.5 * (0.5 * rng.normal(size=(4, 1000))) ** 2
        >>> estimate = bridge(*tilts, effective_sample_size=np.size)
        >>> bool(abs(estimate.value + 0.5 * np.log(4.0)) < 4 * estimate.std_error < 0.1)
        True
    """
    base_tilts, draw_tilts = np.asarray(base_tilts, np.float64), np.asarray(draw_tilts, np.float64)
    num_base, num_draws = base_tilts.size, draw_tilts.size
    share = num_draws / (num_base + num_draws)
    finite = np.concatenate([base_tilts[np.isfinite(base_tilts)], draw_tilts.ravel()])
    low, high = finite.min() - 50.0, finite.max() + 50.0
    for _ in range(100):  # the equation that Z solves is monotone
        value = 0.5 * (low + high)
        of_base, of_draws = _bridged(base_tilts - value, draw_tilts - value, share)
        low, high = (value, high) if of_base.mean() > of_draws.mean() else (low, value)
    fraction = _effective_fraction(of_base)
    num_effective = min(float(effective_sample_size(of_draws)), num_draws)
    ess = min(num_base * fraction, num_effective * _effective_fraction(of_draws))
    variance = (1 / fraction - 1) / num_base + (of_draws.std() / of_draws.mean()) ** 2 / num_effective
    return _estimate(value, math.sqrt(variance), ess, math.nan)


def _bridged(log_ratio_base, log_ratio_draws, share):
    """Density of the tilted law over the mixture of both, at draws of the base; of the base, at its own draws."""
    with np.errstate(over="ignore"):
        of_base = 1 / (share + (1 - share) * np.exp(-log_ratio_base))
        return of_base, 1 / (1 - share + share * np.exp(log_ratio_draws))


def _effective_fraction(weights):
    return weights.sum() ** 2 / (weights**2).sum() / weights.size


def _estimate(value, std_error, ess, shape):
    warnings = []
    if shape > MAX_PARETO_K:
        warnings.append(
            f"The Pareto shape of the weights is {shape:.2f}, above {MAX_PARETO_K}: a few draws carry the estimate, "
            "and its standard error is too small. Use method='smc', or more particles."
        )
    if ess < MIN_ESS:
        warnings.append(
            f"The effective sample size of the weights is {ess:.1f}, fewer than {MIN_ESS}: the estimate is off by more "
            "than its standard error says. Use method='smc', or more particles."
        )
    return LogPartition(float(value), float(std_error), float(ess), float(shape), tuple(warnings))


def pareto_k(log_weights):
    """Shape of a generalised Pareto law fitted to the largest weights (doi:10.1198/TECH.2009.08017, arXiv:1507.02646).

    Args:
        log_weights: array of shape `(N,)`, N at least 25.

    Returns:
        The shape k; moments of the weights of an order above 1/k are infinite.

    Example:
        >>> import numpy as np
        >>> weights = np.random.default_rng(0).pareto(1.25, size=100_000)  # shape 0.8
        >>> bool(abs(pareto_k(np.log(weights)) - 0.8) < 0.1)
        True
    """
    log_weights = np.sort(np.asarray(log_weights, np.float64))
    num_tail = math.ceil(min(len(log_weights) / 5, 3 * math.sqrt(len(log_weights))))
    largest, threshold = log_weights[-1], log_weights[-num_tail - 1]
    excess = np.exp(log_weights[-num_tail:] - largest) - np.exp(threshold - largest)
    if not excess[0] > 0:  # ties, or weights that are all alike: no tail
        excess = excess[excess > 0]
        if len(excess) < 5:
            return -math.inf
    num, quartile = len(excess), excess[int(len(excess) / 4 + 0.5) - 1]
    num_grid = 30 + int(math.sqrt(num))
    theta = 1 / excess[-1] + (1 - np.sqrt(num_grid / (np.arange(num_grid) + 0.5))) / (3 * quartile)
    k = np.log1p(-theta[:, None] * excess).mean(1)
    log_likelihood = num * (np.log(-theta / k) - k - 1)
    posterior = np.exp(log_likelihood - log_likelihood.max())
    theta = float((theta * posterior).sum() / posterior.sum())
    shape = float(np.log1p(-theta * excess).mean())
    return (num * shape + 5) / (num + 10)  # a weak prior at 1/2
