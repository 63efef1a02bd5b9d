r"""Estimates of a log-partition from importance weights, and whether they can be trusted."""

import math
import typing
from collections.abc import Callable
from functools import partial
from typing import Any, Final, Literal, NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from gebm.pareto import pareto_k
from gebm.validation import integer, one_of, optional

__all__ = ["METHODS", "NUM_GROUPS", "NUM_PARTICLES", "LogPartition", "Method", "bridge", "estimate", "from_log_weights"]

#: Ways to estimate a log-partition.
Method = Literal["importance", "ais", "smc", "bridge"]
METHODS: Final = typing.get_args(Method)
#: Draws of the base, particles, and groups that they are cut into, where their number is not given.
NUM_BASE_DRAWS: Final = 100_000
NUM_PARTICLES: Final = 4096
NUM_GROUPS: Final = 64
#: Pareto shape above which an importance sampling estimate is not to be trusted (arXiv:1507.02646).
MAX_PARETO_K = 0.7
#: Fewest effective samples for which a standard error is.
MIN_ESS = 100
#: Fewest weights to which the shape is fitted.
MIN_WEIGHTS = 100
#: Fewest groups of particles, counted by their weight, for which a standard error from their differences is; and the
#: least share of them.
MIN_GROUPS, MIN_SHARE = 10, 1 / 3


class LogPartition(NamedTuple):
    """Estimate of a log-partition.

    Args:
        value: of A = log Z.
        std_error: its Monte Carlo standard error.
        ess: effective sample size of the weights behind it.
        pareto_k: shape of the Pareto tail of the weights; above 0.7, mean and standard error mislead. NaN if there are
            fewer than 100 weights (such as those of the 64 groups of particles), and for "bridge".
        warnings: what is wrong, in words; empty if nothing is.
    """

    value: float
    std_error: float
    ess: float
    pareto_k: float
    warnings: tuple[str, ...]


def estimate(
    method: str,
    num_samples: int | None,
    draws: Any,
    event_shape: tuple[int, ...],
    *,
    of_base: Callable[[int], np.ndarray],
    of_draws: Callable[[Any], np.ndarray],
    of_particles: Callable[[int, int], LogPartition],
    effective_sample_size: Callable[[np.ndarray], Any],
) -> LogPartition:
    """Estimate a log-partition by one of `METHODS`; what depends on the host is passed in.

    Args:
        method: one of `METHODS`.
        num_samples: base draws or particles; None is the default of the method.
        draws: latents of the tilted law, shape `(chains, draws) + event_shape`, for "bridge".
        event_shape: shape of one latent.
        of_base: callable from a number of base draws to their log-weights.
        of_draws: callable from draws to their log-weights, shape `(chains, draws)`.
        of_particles: callable from numbers of particles and of groups to the estimate of `SMC`.
        effective_sample_size: callable from an array of shape `(chains, draws)`.

    Returns:
        A `LogPartition`.

    Raises:
        TypeError: if the number of samples is not an integer.
        ValueError: for an unknown method, draws of a wrong shape, or fewer than two samples.
        RuntimeError: if the energy is NaN at a draw of the base.
    """
    one_of("method", method, METHODS)
    num = optional(partial(integer, minimum=2))("num_samples", num_samples)
    if (draws is not None) != (method == "bridge"):
        raise ValueError(f"Expected `draws` with method='bridge', and with no other; got method={method!r}.")
    if method in ("ais", "smc"):
        num = num or NUM_PARTICLES
        num_groups = num if method == "ais" else NUM_GROUPS
        return of_particles(-(-num // num_groups) * num_groups, num_groups)
    if method == "bridge" and (draws.ndim < 2 or tuple(draws.shape[2:]) != tuple(event_shape)):
        raise ValueError(
            f"Expected draws of shape (chains, draws) + {tuple(event_shape)}; got {tuple(draws.shape)}. Use "
            "`mcmc.get_samples(group_by_chain=True)`."
        )
    log_weights = of_base(num or (NUM_BASE_DRAWS if draws is None else draws.shape[0] * draws.shape[1]))
    if (bad := np.isnan(log_weights)).any():
        raise RuntimeError(f"Expected an energy without NaN; got NaN at {int(bad.sum())} draws of the base.")
    return (
        from_log_weights(log_weights) if draws is None else bridge(log_weights, of_draws(draws), effective_sample_size)
    )


def from_log_weights(log_weights: ArrayLike, num_each: int = 1) -> LogPartition:
    r"""Logarithm of a mean of weights, $\log \frac1N \sum_i w_i$, as an estimate of a log-partition.

    Args:
        log_weights: array of shape `(N,)`; each weight is an unbiased estimate of Z.
        num_each: particles behind each weight; more than one make a group.

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
        raise ValueError(f"Expected finite weights, not all 0; the largest log-weight is {largest}.")
    weights = np.exp(log_weights - largest)
    num, mean = len(weights), weights.mean()
    std_error = weights.std(ddof=1) / mean / math.sqrt(num)
    shape, effective = pareto_k(log_weights) if num >= MIN_WEIGHTS else math.nan, num * _effective_fraction(weights)
    estimate = _estimate(largest + math.log(mean), std_error, num_each * effective, shape)
    needed = max(MIN_GROUPS, math.ceil(MIN_SHARE * num))
    if num_each == 1 or effective >= needed:
        return estimate
    of_groups = (
        f"The {num} groups of particles have an effective number of {effective:.1f}, fewer than {needed}: the standard "
        "error, which comes from their differences, is too small. Use more particles, num_moves or groups."
    )
    return estimate._replace(warnings=(*estimate.warnings, of_groups))


def bridge(
    base_log_weights: ArrayLike, draw_log_weights: ArrayLike, effective_sample_size: Callable[[np.ndarray], Any]
) -> LogPartition:
    r"""Bridge sampling between a base and the law tilted by weights w, with the optimal bridge.

    .. math:: \hat Z = \frac{E_0[w\, b]}{E_1[b]}, \qquad b \propto \frac{1}{n_0 + n_1 w / Z}

    Source: doi:10.2307/24306045; the standard error is that of doi:10.1111/j.1368-423X.2004.00125.x.

    Args:
        base_log_weights: log w at independent draws of the base, shape `(n_0,)`.
        draw_log_weights: log w at draws of the tilted law, shape `(chains, draws)`.
        effective_sample_size: callable from an array of that shape to its effective sample size.

    Returns:
        A `LogPartition`.

    Raises:
        ValueError: for a log-weight that is NaN or +inf, at a draw of the tilted law also -inf; or if base and draws do
            not overlap.

    Example:
        >>> import numpy as np
        >>> rng = np.random.default_rng(0)
        >>> weights = -1.5 * rng.normal(size=4000) ** 2, -1.5 * (0.5 * rng.normal(size=(4, 1000))) ** 2
        >>> estimate = bridge(*weights, effective_sample_size=np.size)
        >>> bool(abs(estimate.value + 0.5 * np.log(4.0)) < 4 * estimate.std_error < 0.1)
        True
    """
    base_log_weights = np.asarray(base_log_weights, np.float64)
    draw_log_weights = np.asarray(draw_log_weights, np.float64)
    for name, log_weights in (("base", base_log_weights), ("tilted law", draw_log_weights)):
        if not (log_weights < math.inf).all():
            raise ValueError(f"Expected energies above -inf; got NaN or -inf at draws of the {name}.")
    if (bad := np.isneginf(draw_log_weights)).any():
        raise ValueError(
            f"Expected draws of the tilted law; got {int(bad.sum())} of {bad.size} with infinite energy, where its "
            "density is 0."
        )
    if np.isneginf(base_log_weights).all():
        raise ValueError(f"Expected finite energies at some draws of the base; got inf at all {base_log_weights.size}.")
    num_base, num_draws = base_log_weights.size, draw_log_weights.size
    share = num_draws / (num_base + num_draws)
    low = min(base_log_weights.max(), draw_log_weights.min()) - 50.0
    high = max(base_log_weights.max(), draw_log_weights.max()) + 50.0
    value = 0.5 * (low + high)
    while low < value < high and high - low > 1e-12:  # the equation that Z solves is monotone
        of_base, of_draws = _bridged(base_log_weights - value, draw_log_weights - value, share)
        low, high = (value, high) if of_base.mean() > of_draws.mean() else (low, value)
        value = 0.5 * (low + high)
    of_base, of_draws = _bridged(base_log_weights - value, draw_log_weights - value, share)
    if not (of_base.mean() > 0 and of_draws.mean() > 0):
        raise ValueError(
            "Expected a base and draws that overlap; got energies of which none is met by both. Use method='smc'."
        )
    fraction = _effective_fraction(of_base)
    constant = np.ptp(of_draws) <= 1e-12 * of_draws.max()
    num_effective = num_draws if constant else np.fmin(float(effective_sample_size(of_draws)), num_draws)
    ess = min(num_base * fraction, num_effective * _effective_fraction(of_draws))
    variance = (1 / fraction - 1) / num_base + (of_draws.std() / of_draws.mean()) ** 2 / num_effective
    return _estimate(value, math.sqrt(max(variance, 0.0)), ess, math.nan)


def _bridged(log_ratio_base: np.ndarray, log_ratio_draws: np.ndarray, share: float) -> tuple[np.ndarray, np.ndarray]:
    """Density of the tilted law over the mixture of both, at draws of the base; of the base, at its own draws."""
    with np.errstate(over="ignore"):
        of_base = 1 / (share + (1 - share) * np.exp(-log_ratio_base))
        return of_base, 1 / (1 - share + share * np.exp(log_ratio_draws))


def _effective_fraction(weights: np.ndarray) -> float:
    return weights.sum() ** 2 / (weights**2).sum() / weights.size


def _estimate(value: float, std_error: float, ess: float, shape: float) -> LogPartition:
    warnings = []
    if shape > MAX_PARETO_K:
        warnings.append(
            f"The Pareto shape of the weights is {shape:.2f}, above {MAX_PARETO_K}: a few draws dominate the "
            "estimate, and its standard error is too small. Use method='smc', or more particles."
        )
    if ess < MIN_ESS:
        warnings.append(
            f"The effective sample size of the weights is {ess:.1f}, below {MIN_ESS}: the estimate may be off by "
            "more than its standard error suggests. Use method='smc', or more particles."
        )
    return LogPartition(float(value), float(std_error), float(ess), float(shape), tuple(warnings))
