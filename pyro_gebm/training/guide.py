"""The variational side of KALE: the energy, its log-partition and its penalty."""

import math
from collections.abc import Callable
from typing import TypeAlias

import torch
from torch.distributions import Distribution

from gebm import validation
from gebm.evaluation import MIN_DRAWS, TOLERANCE, WeightSums, check_budget, chunk_size
from gebm.networks import name_of
from gebm.weights import LogPartition
from pyro_gebm.callables import Energy

__all__ = [
    "KALEGuide",
    "decayed_rate",
    "gradient_penalty",
    "gradient_step",
    "l2_penalty",
    "newton_step",
    "settle_log_partition",
    "sum_of_penalties",
    "weight_sums",
]

#: Largest change of A, in units of the rate, that one batch may ask for.
CLIP = 5.0

#: `(energy, data, base_draws) -> scalar`.
Penalty: TypeAlias = Callable[[Callable, torch.Tensor, torch.Tensor], torch.Tensor]


def newton_step(log_partition: torch.Tensor, batch_estimate: torch.Tensor, rate: float | torch.Tensor) -> torch.Tensor:
    r"""Newton-like step of A towards its estimate from a batch: $A + r\,(1 - \exp(A - \tilde A))$, clipped.

    Fast from afar; its fixed point over random batches is biased, so it serves the warm-up only.

    Args:
        log_partition: A.
        batch_estimate: $\tilde A$, the log-partition of the batch.
        rate: r.

    Returns:
        The new A.
    """
    return log_partition + rate * (1.0 - torch.exp(log_partition - batch_estimate)).clamp(-CLIP, CLIP)


def gradient_step(
    log_partition: torch.Tensor, batch_estimate: torch.Tensor, rate: float | torch.Tensor
) -> torch.Tensor:
    r"""Gradient step of KALE in A: $A + r\,(\exp(\tilde A - A) - 1)$, clipped.

    Unbiased: at the true A its mean over batches is zero.

    Args:
        log_partition: A.
        batch_estimate: $\tilde A$, the log-partition of the batch.
        rate: r.

    Returns:
        The new A.
    """
    return log_partition + rate * (torch.exp(batch_estimate - log_partition) - 1.0).clamp(-CLIP, CLIP)


def decayed_rate(rate: float, step: int) -> float:
    r"""Rate of A after the warm-up, $r\, \max(0.1, 1 / (1 + t / 1000))$.

    It falls so that A averages over batches, and stays high enough to follow an energy that changes.

    Args:
        rate: r.
        step: t, energy steps since the warm-up.

    Returns:
        The rate of this step.
    """
    return rate * max(0.1, 1.0 / (1.0 + step / 1000.0))


def settle_log_partition(
    base: Distribution,
    energy: Callable[[torch.Tensor], torch.Tensor],
    *,
    tolerance: float | None = None,
    max_draws: int | None = None,
) -> torch.Tensor:
    r"""A of a fixed energy from fresh base draws: the log-mean-exp over all of them.

    The same as gradient steps in $\exp(A)$ with the decaying rate 1/t, without a rate to choose.

    Args:
        base: a distribution.
        energy: the energy, on batches of its events.
        tolerance: standard error at which to stop, in nats; None is 0.003.
        max_draws: base draws at most; None is 200,000.

    Returns:
        Scalar.

    Raises:
        ValueError: if the tolerance is not positive, or the number below 2.
    """
    sums = _tensor_sums(base, energy, *check_budget(tolerance, max_draws))
    return sums.log_sum - math.log(sums.num)


def weight_sums(
    base: Distribution, energy: Callable[[torch.Tensor], torch.Tensor], tolerance: float | None, max_draws: int
) -> WeightSums:
    """Sums over fresh base draws, until log Z is known well enough; in pieces of memory.

    Args:
        base: a distribution.
        energy: the energy, on batches of its events.
        tolerance: standard error of A at which to stop; None is 0.003.
        max_draws: base draws at most.

    Returns:
        `WeightSums`.
    """
    return WeightSums(*(float(x) for x in _tensor_sums(base, energy, tolerance, max_draws)))


@torch.no_grad()
def _tensor_sums(base, energy, tolerance, max_draws):
    chunk, tolerance = chunk_size(tuple(base.event_shape), max_draws), TOLERANCE if tolerance is None else tolerance
    least, most, rows = -(-MIN_DRAWS // chunk), max_draws // chunk, []
    look = least
    while len(rows) < most:
        e = energy(base.sample((chunk,)))
        rows.append(torch.stack([torch.logsumexp(-e, 0), torch.logsumexp(-2.0 * e, 0), e.sum(), e.square().sum()]))
        if len(rows) >= look:  # rarely, since it waits for the device
            spread = _total(rows, chunk)
            if float(torch.exp(spread.log_sum_squares - 2.0 * spread.log_sum)) - 1.0 / spread.num <= tolerance**2:
                break
            look = math.ceil(1.25 * look)
    return _total(rows, chunk)


def _total(rows, chunk):
    logs, sums = torch.stack(rows).split(2, 1)
    one, two = torch.logsumexp(logs, 0)
    energy, energy_square = sums.sum(0)
    return WeightSums(float(chunk * len(rows)), one, two, energy, energy_square)


def gradient_penalty(weight: float = 1.0) -> Penalty:
    r"""Zero-centred gradient penalty, $w\, \mathbb{E}\|\nabla_x E(\tilde x)\|^2$, on interpolates of data and base.

    Args:
        weight: w, non-negative.

    Returns:
        A penalty: callable `(energy, data, base_draws) -> scalar`. With more base draws than data the data are
        repeated.

    Raises:
        ValueError: for a weight that is negative or not finite.
    """
    weight = validation.nonnegative("weight", weight)

    def penalty(energy, data, base_draws):
        if len(data) != len(base_draws):
            data = data.repeat(-(-len(base_draws) // len(data)), *[1] * (data.dim() - 1))[: len(base_draws)]
        mix = torch.rand(len(data), *[1] * (data.dim() - 1), dtype=data.dtype, device=data.device)
        points = torch.lerp(base_draws, data, mix).requires_grad_(True)
        (grads,) = torch.autograd.grad(energy(points).sum(), points, create_graph=True)
        return weight * grads.reshape(len(grads), -1).square().sum(1).mean()

    return penalty


def l2_penalty(weight: float) -> Penalty:
    r"""Squared norm of the energy's parameters, $w\, \|\psi\|^2$.

    Args:
        weight: w, non-negative.

    Returns:
        A penalty, see `gradient_penalty`.

    Raises:
        ValueError: for a weight that is negative or not finite.
    """
    weight = validation.nonnegative("weight", weight)

    def penalty(energy, data, base_draws):
        return torch.as_tensor(weight * sum(parameter.square().sum() for parameter in energy.parameters()))

    return penalty


def sum_of_penalties(*penalties: Penalty) -> Penalty:
    """The sum of several penalties.

    Args:
        penalties: penalties, see `gradient_penalty`.

    Returns:
        A penalty.

    Example:
        >>> both = sum_of_penalties(gradient_penalty(1.0), l2_penalty(1e-4))
        >>> guide = KALEGuide(torch.nn.Linear(3, 1), penalty=both)
    """

    def penalty(energy, data, base_draws):
        return torch.as_tensor(sum(p(energy, data, base_draws) for p in penalties))

    return penalty


class KALEGuide:
    r"""Energy and log-partition of KALE, with their regulariser. Not a program: it has no sample sites.

    Calling it gives the critic (witness) $h(x) = -(E(x) + A)$. At the optimum $h = \log dP/dG$.

    Args:
        energy: `torch.nn.Module` or callable from events `(N,) + event_shape` to `(N,)`.
        log_partition: initial A, a number or the estimate that `log_partition(gebm)` returns; None starts it by Monte
            Carlo.
        log_partition_rate: rate of the steps of A, which is not among the energy optimiser's parameters; it decays
            (`decayed_rate`).
        penalty: callable `(energy, data, base_draws) -> scalar` added to the energy's loss, or None.

    Raises:
        TypeError: if the energy or the penalty is not callable.
        ValueError: if the rate is not positive, or the log-partition not finite.

    Example:
        >>> guide = KALEGuide(lambda x: (x**2).sum(-1), log_partition=0.5)
        >>> guide(torch.ones(1, 2)).tolist()
        [-2.5]
    """

    def __init__(
        self,
        energy: Energy,
        *,
        log_partition: torch.Tensor | float | LogPartition | None = None,
        log_partition_rate: float = 0.1,
        penalty: Penalty | None = gradient_penalty(1.0),
    ) -> None:
        if not callable(energy):
            raise TypeError(f"Expected energy to be callable; got {type(energy).__name__}.")
        self.energy = energy
        log_partition = log_partition.value if isinstance(log_partition, LogPartition) else log_partition
        if log_partition is not None:
            validation.finite("log_partition", log_partition)
        self.log_partition = log_partition
        self.log_partition_rate = validation.positive("log_partition_rate", log_partition_rate)
        self.penalty = validation.callable_or_none("penalty", penalty)

    def __repr__(self) -> str:
        log_partition = "unknown" if self.log_partition is None else f"{float(self.log_partition):g}"
        return f"KALEGuide(energy: {name_of(self.energy)}, log_partition: {log_partition})"

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """The critic at events x of shape `(N,) + event_shape`.

        Raises:
            ValueError: while the log-partition is unknown (before training).
        """
        if self.log_partition is None:
            raise ValueError(
                "The log-partition is unknown before training: use `result.guide`, or pass `log_partition=`."
            )
        return -(self.energy(x) + self.log_partition)
