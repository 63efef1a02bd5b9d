"""What gradient norm is usual in a run of training: a running quantile, the bound of clipping, what is an outlier."""

import math
from typing import Any

from gebm import validation

__all__ = [
    "LOG_OUTLIER",
    "MAX_BOUND",
    "MAX_LOG_RATIO",
    "MAX_OUTLIERS",
    "MIN_STEPS",
    "check_max_grad_norm",
    "largest_log_norm",
    "next_log_quantile",
]

#: The quantile that is followed, and the rate of its steps once it has settled.
QUANTILE, RATE = 0.9, 0.05
#: Unless told, gradients are clipped at so many times the quantile.
FACTOR = 2.0
#: A step is left out if its norm is above so many times the quantile, after so many steps.
LOG_OUTLIER, MIN_STEPS = math.log(100.0), 100
#: So is one of the energy whose batch has a log-partition that is above A by more than this.
MAX_LOG_RATIO = math.log(1000.0)
#: A bound of Donsker and Varadhan beyond this, in nats, counts as not finite: the energy has run away.
MAX_BOUND = 1e6
#: So many in a row: the next one is applied, with its gradient clipped, for it is not the batch but the energy.
MAX_OUTLIERS = 3
#: Rise of the logarithm of the quantile at an outlier.
OUTLIER_RATE = 0.5


def next_log_quantile(log_quantile: Any, count: Any, log_norm: Any) -> Any:
    r"""A step of the running quantile towards the norm g of a gradient.

    .. math:: \log q + r_t\, (1[g > q] - (1 - \tau)), \qquad \tau = 0.9, \quad r_t = 0.05 + 0.5 / (1 + t)

    and 0.5 more where g is an outlier, 100 times above q.

    Args:
        log_quantile: log q; a number, or an array of any framework.
        count: t, gradients so far, at least 1.
        log_norm: log g.

    Returns:
        The new log q.
    """
    step = (RATE + 0.5 / (1.0 + count)) * ((log_norm > log_quantile) - (1.0 - QUANTILE))
    return log_quantile + step + OUTLIER_RATE * (log_norm > log_quantile + LOG_OUTLIER)


def largest_log_norm(max_grad_norm: float | None, log_quantile: Any) -> Any:
    """Logarithm of the norm that gradients are clipped at: as asked for, or twice the running quantile."""
    return math.log(FACTOR) + log_quantile if max_grad_norm is None else math.log(max_grad_norm)


def check_max_grad_norm(value: Any) -> float | None:
    """The argument `max_grad_norm` of a training.

    Args:
        value: None, a positive number, or inf.

    Returns:
        The same.

    Raises:
        TypeError: if it is not a number.
        ValueError: if it is not positive.
    """
    if value is None or (isinstance(value, float) and value == math.inf):
        return value
    return validation.positive("max_grad_norm", value)
