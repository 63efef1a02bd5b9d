"""Training an energy on draws of its own model: the numbers that control it, and the error of the log Z it carries."""

import dataclasses
import math
import warnings
from collections.abc import Mapping
from functools import partial
from typing import Annotated, Any, NamedTuple

import numpy as np

from gebm.evaluation import Evaluation, standard_error
from gebm.validation import check_fields, integer, probability

__all__ = ["CarriedLogPartition", "Control", "carried", "collapsed", "gap_closed", "progress", "warn_if_few_ancestors"]

#: Chains that a look at the weights sees.
NUM_LOOKED_AT = 512
#: Share of the chains to which a fresh start from the prior is offered at every update, and candidates of each.
RESTART_SHARE, NUM_CANDIDATES = 0.1, 16
#: An update with fewer distinct parents, in shares of a half of the population, is a step back instead.
MIN_PARENTS = 0.25
#: Factor of the rate at every update, up to the rate as given: what a step back halved comes back over eight of them.
RECOVERY = 2.0**0.125
#: Steps back without an update between them, after which training stops.
MAX_BACKS = 10
#: Rate of the adaptation of the chains' step size, and its target.
STEP_RATE, TARGET_ACCEPT_PROB = 0.05, 0.574
#: Distinct ancestors of the population below which its log Z is not to be trusted.
MIN_ANCESTORS = 30


@dataclasses.dataclass(frozen=True)
class Control:
    """When the population is looked at, moved to the present energy, or training goes back.

    Args:
        num_chains: chains of the population. The first half is trained on; the other half, which the energy never sees,
            carries log Z along.
        look_every: steps between two looks at the weights.
        resample_below: effective share of the weights below which the population is resampled and moved.
        step_back_below: share below which training goes back to the last update, and its rate is halved. The rate
            comes back slowly with the updates that follow.
        num_moves: MALA steps of all chains, under the reference, before they are weighted for an update.
    """

    num_chains: Annotated[int, partial(integer, minimum=4)] = 2048
    look_every: Annotated[int, integer] = 5
    resample_below: Annotated[float, probability] = 0.7
    step_back_below: Annotated[float, partial(probability, zero=True)] = 0.35
    num_moves: Annotated[int, integer] = 4

    def __post_init__(self) -> None:
        check_fields(self)
        if not self.step_back_below < self.resample_below:
            raise ValueError(
                f"Expected step_back_below < resample_below; got {self.step_back_below} and {self.resample_below}."
            )

    @property
    def num_trained_on(self) -> int:
        """Chains of the first half."""
        return self.num_chains // 2

    @property
    def num_looked_at(self) -> int:
        """Chains of each half that a look sees."""
        return min(NUM_LOOKED_AT // 2, self.num_trained_on)

    @property
    def num_restarted(self) -> int:
        """Chains that a fresh start is offered to."""
        return math.ceil(RESTART_SHARE * self.num_chains)


class CarriedLogPartition(NamedTuple):
    """A that a population carries along, as `WeightSums` has it.

    `ess` is the effective sample size of the present weights of the `num` chains that carry it, `ancestors` the number
    of chains at the start that they descend from.
    """

    log_partition: float
    std_error: float
    ess: float
    num: float
    ancestors: int


def carried(
    log_partition: float, std_error: float, log_weights: np.ndarray, ancestors: np.ndarray
) -> CarriedLogPartition:
    r"""A of the present energy, from A of the energy that the population is at equilibrium of, and the weights.

    The variance of log Z is estimated from the genealogy, as $\sum_k V_k^2 - 1/n$ with the sum $V_k$ of the normalised
    weights of those of the n chains that descend from chain k: the estimate of arXiv:1509.00394, for a resampling that
    is systematic and so drops no chain when weights are equal.

    Args:
        log_partition: A at the start, plus the log-mean weights of all updates.
        std_error: standard error of A at the start.
        log_weights: of the present energy over that of the last update, shape `(n,)`.
        ancestors: for every chain the number of the one at the start that it descends from, shape `(n,)`.

    Returns:
        A `CarriedLogPartition`.

    Example:
        >>> at_start = carried(0.5, 0.1, np.zeros(100), np.arange(100))
        >>> at_start.log_partition, round(at_start.std_error, 3), at_start.ess
        (0.5, 0.1, 100.0)
    """
    log_weights, num = np.asarray(log_weights, np.float64), len(log_weights)
    largest = log_weights.max()
    weights = np.exp(log_weights - largest)
    share = weights / weights.sum()
    of_ancestors = np.bincount(np.asarray(ancestors, np.int64), share, minlength=num)
    variance = np.square(of_ancestors).sum() - 1.0 / num
    return CarriedLogPartition(
        float(log_partition + largest + math.log(weights.mean())),
        math.sqrt(std_error**2 + max(variance, 0.0)),
        float(1.0 / np.square(share).sum()),
        float(num),
        int(np.count_nonzero(of_ancestors)),
    )


def gap_closed(start: np.ndarray, end: np.ndarray, at_start: float, at_end: CarriedLogPartition) -> Evaluation:
    """By how much held-out KALE rose.

    Args:
        start: energies of the data by the energy at the start, shape `(N,)`.
        end: the same by that at the end.
        at_start: A at the start.
        at_end: A at the end.

    Returns:
        An `Evaluation`, whose standard error leaves out that of A at the start.
    """
    difference = np.asarray(start, np.float64) - np.asarray(end, np.float64)
    error = math.hypot(standard_error(difference), at_end.std_error)
    value = float(difference.mean() - (at_end.log_partition - at_start))
    return Evaluation(value, error, at_end.ess, at_end.log_partition, int(at_end.num))


def collapsed(backs: int, control: Control) -> tuple[str, str]:
    """What to say where training went back too often, and what to do about it."""
    return (
        f"the population collapsed: after {MAX_BACKS} steps back in a row, each with half the rate, the effective "
        f"share of its weights still falls below {control.step_back_below} between two looks ({backs} steps back in "
        "all).",
        "Use a stronger penalty or more chains, or train the energy longer on the base first.",
    )


def warn_if_few_ancestors(found: CarriedLogPartition, backs: int, *, stacklevel: int = 2) -> None:
    """Warn if the population descends from few chains.

    Args:
        found: of the population at the end.
        backs: steps back.
        stacklevel: as for `warnings.warn`.
    """
    if found.ancestors < min(MIN_ANCESTORS, found.num / 2):
        warnings.warn(
            f"The {int(found.num)} chains that carry log Z descend from {found.ancestors} of those at the start "
            f"({backs} steps back): log Z may be off by more than its standard error {found.std_error:.2g}, and modes "
            "may be lost. Use more chains, or a lower rate, and compare with `log_partition(result.gebm)`.",
            RuntimeWarning,
            stacklevel=stacklevel + 1,
        )


def progress(losses: Any) -> Mapping[str, str]:
    """What the progress bar shows of the last step."""
    labels = {"kale": "KALE", "log_partition": "A", "ess_share": "ESS", "ancestors": "ancestors", "backs": "back"}
    return {label: f"{float(getattr(losses, name)[-1]):.3g}" for name, label in labels.items()}
