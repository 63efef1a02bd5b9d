"""What tilting a program shares between the hosts: checks of its arguments, and resampling by weights."""

import math
import warnings
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy as np

from gebm.validation import function, integer, mapping, real_numbers, text
from gebm.weights import MAX_PARETO_K, MIN_WEIGHTS, LogPartition, from_log_weights

#: Effective share of heavy-tailed weights below which draws that are resampled by them are not to be relied on.
MIN_SHARE = 0.1

__all__ = ["check_tilt", "log_partition_at", "plate_depth", "site_missing", "systematic_rows"]


def check_tilt(
    energy: Any,
    site: Any,
    inverse_temperature: Any,
    log_partition: Any,
    convert: Callable[[Any], Any],
    value_of: Callable[[Any], np.ndarray | None],
) -> tuple[Any, str, Any, Any]:
    """The arguments of `tilt`, after a check.

    Args:
        energy: a callable.
        site: a name.
        inverse_temperature: a scalar, finite and not negative.
        log_partition: a finite scalar, an estimate, a callable, or None.
        convert: makes an array of the host.
        value_of: from such an array to its value, or to None where it is not known (of a tracer).

    Returns:
        `(energy, site, inverse_temperature, log_partition)`.

    Raises:
        TypeError: if the energy cannot be called, or the site is not a name.
        ValueError: if a number is out of its range or not a scalar.
    """
    energy, site = function("energy", energy, "callable, from an event to its energy"), text("site", site)
    beta = real_numbers("inverse_temperature", inverse_temperature, convert)
    known = value_of(beta)
    if tuple(beta.shape) != () or (known is not None and not 0.0 <= known < math.inf):
        shown = inverse_temperature if tuple(beta.shape) == () else f"shape {tuple(beta.shape)}"
        raise ValueError(f"Expected inverse_temperature to be a finite scalar >= 0; got {shown}.")
    if isinstance(log_partition, LogPartition):
        log_partition = log_partition.value
    if log_partition is not None and not callable(log_partition):
        given, log_partition = log_partition, real_numbers("log_partition", log_partition, convert)
        known = value_of(log_partition)
        if tuple(log_partition.shape) != () or (known is not None and not np.isfinite(known)):
            raise ValueError(f"Expected log_partition to be a finite scalar, a callable or None; got {given}.")
    return energy, site, beta, log_partition


def log_partition_at(log_partition: Any, inverse_temperature: Any) -> Any:
    """A at an inverse temperature; 0 where it is not known.

    Example:
        >>> log_partition_at(lambda beta: 2 * beta, 3.0), log_partition_at(None, 3.0)
        (6.0, 0.0)
    """
    if log_partition is None:
        return 0.0
    return log_partition(inverse_temperature) if callable(log_partition) else log_partition


def plate_depth(frames: Iterable[Any]) -> int:
    """How many axes, from the right, the plates around a site take.

    Args:
        frames: with the axis of each as `dim`, negative, or None for a plate that is a loop.
    """
    return max((-frame.dim for frame in frames if frame.dim is not None), default=0)


def site_missing(site: str, seen: Iterable[str]) -> ValueError:
    """The error for a program without the site that is tilted."""
    names = ", ".join(sorted(set(seen))) or "none"
    return ValueError(f"Expected a site '{site}' in the model, to tilt it there; its sites are: {names}.")


def systematic_rows(
    samples: Mapping[str, Any], log_weight: np.ndarray, num_draws: int | None, uniform: float
) -> np.ndarray:
    """Rows of weighted draws, each as often as its weight says, by systematic resampling, in order.

    Args:
        samples: arrays with the draws as their first axis.
        log_weight: shape `(N, ...)`; axes after the first are summed.
        num_draws: number of rows; None for N.
        uniform: a uniform number in [0, 1).

    Returns:
        Integers of shape `(num_draws,)`.

    Raises:
        ValueError: for log-weights that are NaN or infinite above, or all minus infinity; for arrays whose first axes
            differ.

    Warns:
        RuntimeWarning: if the weights are too uneven to rely on (Pareto k above 0.7, an effective size below a tenth).

    Example:
        >>> systematic_rows({}, np.log([0.5, 0.25, 0.25, 1e-9]), None, 0.5)
        array([0, 0, 1, 2])
    """
    if log_weight.ndim < 1 or not len(log_weight):
        raise ValueError(f"Expected log_weight of shape (N, ...), a draw each; got shape {log_weight.shape}.")
    log_weight = np.asarray(log_weight, np.float64).reshape(len(log_weight), -1).sum(1)
    if np.isnan(log_weight).any() or not -math.inf < log_weight.max() < math.inf:
        raise ValueError("Expected log_weight below inf, without NaN and not -inf everywhere; got others.")
    shapes = {name: tuple(np.shape(value)) for name, value in mapping("samples", samples).items()}
    wrong = {name: shape for name, shape in shapes.items() if shape[:1] != log_weight.shape}
    if wrong:
        raise ValueError(f"Expected arrays with {len(log_weight)} draws as their first axis; got shapes {wrong}.")
    num = len(log_weight) if num_draws is None else integer("num_draws", num_draws)
    if len(log_weight) >= MIN_WEIGHTS:
        found = from_log_weights(log_weight)
        if found.pareto_k > MAX_PARETO_K and found.ess < MIN_SHARE * len(log_weight):
            warnings.warn(
                f"The weights of {len(log_weight)} draws have a Pareto shape of {found.pareto_k:.2f} (above "
                f"{MAX_PARETO_K}) and an effective size of {found.ess:.0f}: do not rely on draws that are resampled by "
                "them. Sample the tilted program by MCMC.",
                RuntimeWarning,
                stacklevel=3,
            )
    weight = np.exp(log_weight - log_weight.max())
    ends = np.cumsum(weight) / weight.sum()
    return np.searchsorted(ends, (uniform + np.arange(num)) / num, side="right").clip(max=len(weight) - 1)
