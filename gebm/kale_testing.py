"""Criticism of a model by an energy that tells its draws from data: p-value, what carries it, report and picture."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from gebm.evaluation import Evaluation, WeightSums, evaluation_of
from gebm.extras import extra
from gebm.networks import name_of
from gebm.two_samples import MIN_ROWS
from gebm.validation import integer, names

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = [
    "HIDDEN",
    "RATE",
    "Importance",
    "KALETest",
    "bounds_of",
    "check_draws",
    "check_permutations",
    "feature_names",
    "importances",
    "most_nats",
    "num_draws_of",
    "penalty_weight",
    "permutation_p_value",
    "verdict_of",
]

#: The energy that is trained unless another is given: widths, rate of Adam, and the rows of data for which the weight
#: of its gradient penalty is 1; with more it is less, in proportion.
HIDDEN, RATE, PENALTY_ROWS = (64, 64), 1e-3, 60
#: Draws of a model for every row of data, and at most.
DRAWS_PER_ROW, MAX_DRAWS = 4, 100_000
#: Held-out draws of the model behind the largest weight that is let count.
DRAWS_PER_WEIGHT = 20
#: Evaluations of the energy that the importance of features may take, in rows.
MAX_ROWS = 2_000_000
#: Columns that the report and the picture show.
SHOWN = 5


@dataclasses.dataclass(frozen=True)
class Importance:
    """By how many nats held-out KALE falls if the values of a feature are shuffled among all rows.

    Args:
        value: the mean over shuffles.
        std_error: its standard error, from the rows and from the shuffles.
    """

    value: float
    std_error: float


@dataclasses.dataclass(frozen=True, repr=False, eq=False)
class KALETest:
    """Verdict on a model: by how much, how surely and where its draws differ from data. `repr` is the report.

    Args:
        kale: KALE(data || model) on held-out rows, in nats a row, and its standard error: a lower bound, up to this
            error, of the Kullback-Leibler divergence, which is what the model loses in log-likelihood at least.
        p_value: of the exact permutation test on the held-out rows.
        importance: of every feature, an `Importance`.
        energy: what tells them apart, within the bounds of what held-out draws can show (`bounds_of`): with it,
            `tilt(model, energy, site)` or `GEBM(base, energy)` is the model repaired.
        num_training: rows of data that it was trained on.
        num_held_out: rows of data in the verdict.
        data: held-out data, shape `(N,) + event_shape`.
        draws: held-out draws of the model.
        energy_of_data: energies of the data.
        energy_of_draws: energies of the draws.
    """

    kale: Evaluation
    p_value: float
    importance: dict[str, Importance]
    energy: Any
    num_training: int
    num_held_out: int
    data: np.ndarray
    draws: np.ndarray
    energy_of_data: np.ndarray
    energy_of_draws: np.ndarray

    def __repr__(self) -> str:
        value, error = self.kale.value, self.kale.std_error
        lines = [
            f"KALE(data || model) on {self.num_held_out} held-out rows: {value:.3f} ± {error:.3f} nats a row "
            f"(permutation test: p = {self.p_value:.3g})."
        ]
        if self.p_value > 0.05:
            lines.append(f"No difference was found by an energy trained on {self.num_training} rows.")
        else:
            lines.append(f"The model loses {max(value - 2 * error, 0.0):.3f} nats a row at least. What carries it:")
            for name in self._ranked()[:SHOWN]:
                found = self.importance[name]
                lines.append(f"    {name}: {found.value:.3f} ± {found.std_error:.3f}")
        most = most_nats(len(self.draws))
        if value > most - 1.0 and self.p_value <= 0.05:
            lines.append(
                f"{len(self.draws)} held-out draws of the model can show {most:.1f} nats at most: it may lose more. "
                "Give more draws."
            )
        return "\n".join(lines)

    def plot(self, axes: Sequence[Axes] | None = None) -> Sequence[Axes]:
        """Marginals of data, of the model and of the tilted model, and the two features that matter most by energy.

        Args:
            axes: Matplotlib axes, one for each feature that is shown and a last one for the energy; None makes them.

        Returns:
            The axes.

        Raises:
            ImportError: without Matplotlib, naming the extra to install.
            ValueError: for fewer than two axes.
        """
        axes = self._new_axes() if axes is None else axes
        shown = self._ranked()[: len(axes) - 1]
        if len(axes) < 2:
            raise ValueError(f"Expected at least 2 axes, one for a feature and one for the energy; got {len(axes)}.")
        columns = list(self.importance)
        data, draws = (rows.reshape(len(rows), -1) for rows in (self.data, self.draws))
        weight = np.exp(self.energy_of_draws.min() - self.energy_of_draws)
        for axis, name in zip(axes, shown):
            x, y = data[:, columns.index(name)], draws[:, columns.index(name)]
            bins = np.linspace(*_limits(np.concatenate([x, y])), 31).tolist()
            axis.hist(x, bins, density=True, color="0.8", label="data")
            axis.hist(y, bins, density=True, histtype="step", label="model")
            axis.hist(y, bins, weights=weight, density=True, histtype="step", label="tilted model")
            axis.set(xlabel=name, yticks=[])
        axes[0].legend(fontsize=8)
        self._scatter(axes[len(shown)], shown, columns, data, draws)
        return axes

    def _new_axes(self) -> Sequence[Axes]:
        figure, columns = extra("matplotlib.figure", "examples", "KALETest.plot"), min(SHOWN, len(self.importance) + 1)
        return figure.Figure(figsize=(3.1 * columns, 3), layout="constrained").subplots(1, columns)

    def _scatter(self, axis, shown, columns, data, draws):
        x, energy = np.concatenate([data, draws]), np.concatenate([self.energy_of_data, self.energy_of_draws])
        first = x[:, columns.index(shown[0])]
        second = x[:, columns.index(shown[1])] if len(shown) > 1 else energy
        order = np.random.default_rng(0).permutation(len(x))[:2000]
        low, high = np.quantile(energy, [0.02, 0.98])
        points = axis.scatter(first[order], second[order], c=energy[order], s=4, cmap="coolwarm", vmin=low, vmax=high)
        axis.set(xlabel=shown[0], ylabel=shown[1] if len(shown) > 1 else "energy", title="data and draws")
        axis.set(xlim=_limits(first), ylim=_limits(second))
        axis.figure.colorbar(points, ax=axis, label="energy")

    def _ranked(self):
        return sorted(self.importance, key=lambda name: -self.importance[name].value)


def _limits(values):
    """Where most values are, without a few that are far out, and a margin."""
    low, high = np.quantile(values, [0.005, 0.995])
    margin = 0.05 * (high - low) or 0.5
    return low - margin, high + margin


def permutation_p_value(of_data: np.ndarray, of_draws: np.ndarray, num_permutations: int, seed: int) -> float:
    r"""P-value of held-out KALE under shuffles of the labels: exact, as the energy did not see these rows.

    .. math:: p = \frac{1 + \#\{\text{KALE of a shuffle} \ge \text{KALE}\}}{1 + \text{shuffles}}

    Args:
        of_data: energies of held-out data, shape `(N,)`.
        of_draws: energies of held-out draws, shape `(M,)`.
        num_permutations: shuffles.
        seed: of the shuffles.

    Example:
        >>> x = np.random.default_rng(0).normal(size=200)
        >>> permutation_p_value(x - 3.0, x, 99, 0)
        0.01
    """
    rng, energies = np.random.default_rng(seed), np.concatenate([of_data, of_draws]).astype(np.float64)
    weight, num = np.exp(energies.min() - energies), len(of_data)
    total = weight.sum()

    def statistic(rows):  # KALE, but for what all shuffles have in common
        return -energies[rows].mean() - np.log(total - weight[rows].sum())

    with np.errstate(divide="ignore", invalid="ignore"):
        found = statistic(np.arange(num))
        shuffled = [statistic(rng.permutation(len(energies))[:num]) for _ in range(num_permutations)]
    return (1 + int(np.sum(np.asarray(shuffled) >= found))) / (1 + num_permutations)


def importances(
    energy: Callable[[np.ndarray], np.ndarray], data: np.ndarray, draws: np.ndarray, labels: Sequence[str], seed: int
) -> dict[str, Importance]:
    """What every feature adds to held-out KALE: how far it falls if its column is shuffled among all rows.

    Args:
        energy: from rows `(N,) + event_shape` to energies `(N,)`.
        data: held-out data.
        draws: held-out draws.
        labels: a name for every feature.
        seed: of the shuffles.

    Returns:
        An `Importance` for every name.
    """
    rng, num, shape = np.random.default_rng(seed), len(data), data.shape[1:]
    pooled = np.concatenate([data, draws]).reshape(len(data) + len(draws), -1)
    of_data, of_draws = np.split(energy(pooled.reshape(-1, *shape)), [num])
    whole = _contributions(of_data, of_draws)
    repeats = int(np.clip(MAX_ROWS // (len(labels) * len(pooled)), 2, 20))
    found = {}
    for column, label in enumerate(labels):
        falls, errors = [], []
        for _ in range(repeats):
            changed = pooled.copy()
            changed[:, column] = rng.permutation(changed[:, column])
            parts = _contributions(*np.split(energy(changed.reshape(-1, *shape)), [num]))
            differences = [a - b for a, b in zip(whole, parts)]
            falls.append(sum(float(d.mean()) for d in differences))
            errors.append(sum(float(d.var(ddof=1)) / len(d) for d in differences))
        spread = np.var(falls, ddof=1) / repeats
        found[label] = Importance(float(np.mean(falls)), math.sqrt(float(np.mean(errors)) + float(spread)))
    return found


def _contributions(of_data, of_draws):
    """Values of rows whose means add up to KALE, to first order in the deviations of log Z."""
    log_partition = WeightSums.of(of_draws).log_partition
    return -of_data - log_partition, 1.0 - np.exp(-np.asarray(of_draws, np.float64) - log_partition)


def feature_names(labels: Sequence[str] | None, event_shape: tuple[int, ...]) -> tuple[str, ...]:
    """Names of the features of an event, as given or by their place.

    Raises:
        ValueError: if there are not as many as features.

    Example:
        >>> feature_names(None, (2,)), feature_names(None, ())
        (('x[0]', 'x[1]'), ('x',))
    """
    if labels is None:
        places = np.ndindex(*event_shape)
        return tuple("x" + (f"[{', '.join(map(str, place))}]" if place else "") for place in places)
    labels = names("names", labels)
    if len(labels) != math.prod(event_shape) or len(set(labels)) != len(labels):
        raise ValueError(f"Expected names, one for each of {math.prod(event_shape)} features; got {labels}.")
    return labels


def check_permutations(num_permutations: int) -> int:
    """The number of shuffles of a test, of which a p-value of 0.05 needs 19.

    Raises:
        ValueError: for fewer.
    """
    return integer("num_permutations", num_permutations, minimum=19)


def penalty_weight(num_rows: int) -> float:
    """Weight of the gradient penalty for so many rows of standardised data.

    Example:
        >>> penalty_weight(100), penalty_weight(2400)
        (0.6, 0.025)
    """
    return min(1.0, PENALTY_ROWS / num_rows)


def check_draws(model: Any) -> None:
    """Refuse what is neither a distribution nor an array of draws, and say what to give.

    Args:
        model: what was passed as model and is no distribution.

    Raises:
        TypeError: if it is a function, a string or None.

    Example:
        >>> check_draws(len)  # doctest: +ELLIPSIS
        Traceback (most recent call last):
        ...
        TypeError: Expected model to be a distribution or draws of one; got len. Of a program give what ... returns.
    """
    if model is None or isinstance(model, str) or (callable(model) and not hasattr(model, "shape")):
        shown = name_of(model) if callable(model) else repr(model)
        raise TypeError(
            f"Expected model to be a distribution or draws of one; got {shown}. Of a program give what Predictive "
            "returns."
        )


def num_draws_of(num_draws: int | None, num_data: int) -> int:
    """Draws to take of a model that is a distribution.

    Example:
        >>> num_draws_of(None, 500), num_draws_of(30, 500)
        (2000, 30)
    """
    if num_draws is not None:
        return integer("num_draws", num_draws, minimum=MIN_ROWS)
    return max(MIN_ROWS, num_data, min(DRAWS_PER_ROW * num_data, MAX_DRAWS))


def most_nats(num_draws: int) -> float:
    """The largest log-density ratio of which draws of a model can tell how often it occurs: on the average of 20.

    Example:
        >>> round(most_nats(2000), 2)
        4.61
    """
    return max(math.log(num_draws / DRAWS_PER_WEIGHT), 1.0)


def bounds_of(of_training: np.ndarray, num_draws: int) -> tuple[float, float]:
    r"""Bounds of energies whose log-density ratio is within what held-out draws can show.

    .. math:: -c \le -(E + A) \le c, \qquad A = \log \mathbb{E} \exp(-\max(E, -A - c))

    with c of `most_nats`. KALE of any energy is a lower bound; without this its estimate is none, as the largest
    weights are those that no draw has met (arXiv:1811.04251).

    Args:
        of_training: energies of draws of the model that are not held out, shape `(N,)`.
        num_draws: held-out draws.

    Returns:
        The lowest and the highest energy.

    Example:
        >>> low, high = bounds_of(np.zeros(50), 2000)
        >>> round(low, 2), round(high, 2)
        (-4.61, 4.61)
    """
    most, weights = most_nats(num_draws), -np.asarray(of_training, np.float64)
    low, high = weights.min(), weights.max()
    for _ in range(60):
        middle = 0.5 * (low + high)
        inner = np.logaddexp.reduce(np.minimum(weights, middle + most)) - math.log(len(weights))
        low, high = (middle, high) if inner > middle else (low, middle)
    return float(-high - most), float(-high + most)


def verdict_of(
    energy_within: Callable[[float, float], Any],
    energies: Callable[[np.ndarray], np.ndarray],
    training_draws: np.ndarray,
    num_training: int,
    data: np.ndarray,
    draws: np.ndarray,
    labels: Sequence[str],
    num_permutations: int,
    seed: int,
) -> KALETest:
    """The verdict of a trained energy on held-out rows.

    Args:
        energy_within: from bounds to the energy within them, as the host has it.
        energies: from rows to energies without bounds, in NumPy.
        training_draws: draws of the model that it was trained on.
        num_training: rows that it was trained on.
        data: held-out data.
        draws: held-out draws.
        labels: names of the features.
        num_permutations: shuffles of the test.
        seed: of the shuffles.
    """
    low, high = bounds_of(energies(training_draws), len(draws))

    def clipped(rows):
        return np.clip(energies(rows), low, high)

    of_data, of_draws = np.split(clipped(np.concatenate([data, draws])), [len(data)])
    return KALETest(
        kale=evaluation_of(of_data, WeightSums.of(of_draws)),
        p_value=permutation_p_value(of_data, of_draws, num_permutations, seed),
        importance=importances(clipped, data, draws, labels, seed + 1),
        energy=energy_within(low, high),
        num_training=num_training,
        num_held_out=len(data),
        data=data,
        draws=draws,
        energy_of_data=of_data,
        energy_of_draws=of_draws,
    )
