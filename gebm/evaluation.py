"""KALE on held-out data with its error: log Z from a stream of base draws, and when to stop it."""

import math
from typing import Any, NamedTuple, Protocol

import numpy as np

from gebm import validation

__all__ = [
    "LOOK_DRAWS",
    "MAX_DRAWS",
    "MIN_DRAWS",
    "MIN_ESS_SHARE",
    "START_DRAWS",
    "TOLERANCE",
    "Evaluation",
    "PartitionEstimate",
    "WeightSums",
    "check_budget",
    "chunk_size",
    "evaluation_of",
    "most_draws",
    "standard_error",
    "tolerance_of",
]

#: Base draws of an estimate of log Z, at least and, unless told, at most.
MIN_DRAWS, MAX_DRAWS = 8_000, 200_000
#: Base draws for a look at held-out data, and for the first A of a run, at most.
LOOK_DRAWS, START_DRAWS = 10_000, 2_000
#: Unless told, an estimate of log Z stops at this standard error, or, beside data, at a third of theirs.
TOLERANCE, SHARE = 0.003, 1 / 3
#: Effective share of the base draws below which the weights are not to be trusted.
MIN_ESS_SHARE = 0.01
#: Numbers that a chunk of base draws may hold.
MAX_NUMBERS = 2**22


class PartitionEstimate(Protocol):
    """What says how well log Z is known: its value and error, and how many of `num` draws count."""

    @property
    def num(self) -> Any:
        """Number of draws."""

    @property
    def log_partition(self) -> float:
        """A."""
        ...

    @property
    def std_error(self) -> float:
        """Its standard error."""
        ...

    @property
    def ess(self) -> float:
        """Effective sample size of the weights."""
        ...


class WeightSums(NamedTuple):
    r"""Sums over base draws with energies $E_i$: what a stream of them keeps.

    Numbers, or scalars of a framework. `num` draws; `log_sum` and `log_sum_squares` are the logarithms of
    $\sum_i e^{-E_i}$ and $\sum_i e^{-2 E_i}$; `energy` and `energy_square` are the sums of $E_i$ and $E_i^2$.
    """

    num: Any
    log_sum: Any
    log_sum_squares: Any
    energy: Any
    energy_square: Any

    @classmethod
    def of(cls, energies: np.ndarray) -> "WeightSums":
        """The sums of given energies, shape `(N,)`."""
        e = np.asarray(energies, np.float64)
        with np.errstate(divide="ignore", invalid="ignore"):
            one, two = (float(np.logaddexp.reduce(-times * e)) for times in (1.0, 2.0))
            return cls(float(len(e)), one, two, float(e.sum()), float(np.square(e).sum()))

    @property
    def log_partition(self) -> float:
        """A, the log-mean-exp of -E."""
        return self.log_sum - math.log(self.num)

    @property
    def ess(self) -> float:
        """Effective sample size of the weights; 0 where all are 0."""
        return math.exp(2 * self.log_sum - self.log_sum_squares) if self.log_sum > -math.inf else 0.0

    @property
    def std_error(self) -> float:
        """Standard error of A."""
        if not (self.num > 1 and self.ess > 0):
            return math.inf
        return math.sqrt(max(self.num / self.ess - 1.0, 0.0) / (self.num - 1.0))

    @property
    def mean_energy(self) -> tuple[float, float]:
        """Mean energy of the base draws, and its standard error."""
        mean = self.energy / self.num
        variance = max(self.energy_square / self.num - mean**2, 0.0)
        return mean, math.sqrt(variance / max(self.num - 1.0, 1.0))


class Evaluation(NamedTuple):
    r"""KALE on data, $-\frac1N\sum_i E(x_i) - A$, at the best A for them; `float(evaluation)` is the value.

    Args:
        value: KALE, in nats.
        std_error: its standard error, from the data and from the base draws.
        ess: effective sample size of the weights of the base draws.
        log_partition: that A, the log-mean-exp of -E over the base draws.
        num_draws: base draws behind it.
    """

    value: float
    std_error: float
    ess: float
    log_partition: float
    num_draws: int

    def __float__(self) -> float:
        return self.value


def evaluation_of(data: np.ndarray, weights: PartitionEstimate) -> Evaluation:
    """KALE from energies of data, shape `(N,)`, and the sums of base draws."""
    data = np.asarray(data, np.float64)
    error = math.hypot(standard_error(data), weights.std_error)
    value = -float(data.mean()) - weights.log_partition
    return Evaluation(value, error, weights.ess, weights.log_partition, int(weights.num))


def standard_error(values: np.ndarray) -> float:
    """Standard error of the mean of independent values; inf for one alone."""
    with np.errstate(invalid="ignore"):  # infinite energies
        return float(values.std(ddof=1)) / math.sqrt(len(values)) if len(values) > 1 else math.inf


def tolerance_of(tolerance: float | None, data: np.ndarray) -> float:
    """Standard error of A at which its stream may stop beside data of these energies."""
    return max(SHARE * standard_error(np.asarray(data, np.float64)), 1e-4) if tolerance is None else tolerance


def check_budget(tolerance: float | None, max_draws: int | None) -> tuple[float | None, int]:
    """Check the arguments `tolerance` and `max_draws` of an estimate of log Z.

    Args:
        tolerance: standard error of A that is good enough, or None.
        max_draws: base draws at most; None is 200,000.

    Returns:
        Both.

    Raises:
        TypeError: if they are not numbers.
        ValueError: if the tolerance is not positive, or the number below 2.
    """
    tolerance = None if tolerance is None else validation.positive("tolerance", tolerance)
    return tolerance, MAX_DRAWS if max_draws is None else validation.integer("max_draws", max_draws, minimum=2)


def most_draws(used: int) -> int:
    """Base draws from which A of a result is estimated, unless told: no more than training has used, within bounds.

    A draw costs about a tenth of what it costs in training, with the gradients: so this is a tenth of the time.
    """
    return max(MIN_DRAWS, min(MAX_DRAWS, used))


def chunk_size(event_shape: tuple[int, ...], max_draws: int) -> int:
    """Base draws at once: at most 2,000, and so many that they fit into memory."""
    return max(1, min(2000, max_draws, MAX_NUMBERS // max(1, math.prod(event_shape))))
