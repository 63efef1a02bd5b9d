"""KALE on held-out data during training, and the best state by it."""

import math
import warnings
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from gebm import validation

__all__ = ["HeldOut", "HeldOutEnergies", "ValidationCurve", "check_evaluation", "find_every"]

#: Looks at the held-out data in a run, unless told.
NUM_LOOKS = 25
#: Training overfits if the mean of the last looks, at most so many, is below the best by so many standard errors.
NUM_LAST, NUM_ERRORS = 5, 3.0


#: The energy is higher on data than on base draws, if by more than so many standard errors.
MAX_ERRORS = 5.0


def check_evaluation(kale: float, of_data: np.ndarray, of_base: np.ndarray, *, stacklevel: int = 3) -> None:
    """Check an estimate of KALE, and warn if the energy may have the wrong sign.

    Args:
        kale: the estimate.
        of_data: energies of data, shape `(N,)`.
        of_base: energies of base draws, shape `(M,)`.
        stacklevel: of the warning.

    Raises:
        ValueError: if KALE is not finite.

    Warns:
        UserWarning: if the energy is higher on data than on base draws, by more than five standard errors.
    """
    validation.check_statistic(
        "KALE", np.asarray(kale), "Look at the energies: infinite on data, or far below -A on draws of the base?"
    )
    data, base = np.asarray(of_data, np.float64), np.asarray(of_base, np.float64)
    with np.errstate(invalid="ignore"):  # energies of the base may be infinite
        difference, error = data.mean() - base.mean(), math.hypot(_standard_error(data), _standard_error(base))
    if difference > MAX_ERRORS * error + 1e-6 * abs(base.mean()):  # and by more than rounding
        warnings.warn(
            f"The mean energy is higher on data ({data.mean():.4g}) than on draws of the base ({base.mean():.4g}): the "
            "GEBM gives the data less weight than its base does. An energy is low where data is; negate one that comes "
            "from the logits of a critic, which are high there. Otherwise it is not trained, or it overfits.",
            stacklevel=stacklevel,
        )


class ValidationCurve(NamedTuple):
    r"""Held-out values during a run, one for every look.

    `step` counts steps of the run. `kale` is KALE. `log_likelihood` is NaN for a base g without a density, else the
    mean of $\log g(x)$ plus KALE: a lower bound of the mean log-density of the GEBM (for maximum likelihood, which
    leaves the energy out, the mean of $\log g(x)$). `error` is the standard error of what states are compared by:
    `log_likelihood` while a base with a density is trained, else `kale`. `best_step` is the step whose state the
    result holds, None if that is the last.
    """

    step: np.ndarray
    kale: np.ndarray
    log_likelihood: np.ndarray
    error: np.ndarray
    best_step: int | None


class HeldOutEnergies(NamedTuple):
    """Energies of held-out data `(N,)` and of fresh base draws `(M,)`, A, and log-densities of the data by the base.

    `log_density` is None for a base without a density; `energy_counts` is whether the energy is part of the model.
    """

    data: np.ndarray
    base: np.ndarray
    log_partition: float
    log_density: np.ndarray | None
    energy_counts: bool

    def values(self) -> tuple[float, float, float, float]:
        """KALE and the log-likelihood, and the standard errors of both."""
        data, base = np.asarray(self.data, np.float64), np.asarray(self.base, np.float64)
        with np.errstate(over="ignore", invalid="ignore"):
            critic, weights = -(data + float(self.log_partition)), np.exp(-(base + float(self.log_partition)))
            kale = 1.0 + critic.mean() - weights.mean()
            error = math.hypot(_standard_error(critic), _standard_error(weights))
            if self.log_density is None:
                return kale, math.nan, error, math.nan
            log_density = np.asarray(self.log_density, np.float64)
            if not self.energy_counts:
                return kale, log_density.mean(), error, _standard_error(log_density)
            of_both = math.hypot(_standard_error(log_density + critic), _standard_error(weights))
            return kale, log_density.mean() + kale, error, of_both


class HeldOut:
    """When a run looks at held-out data, what it saw, and the best state.

    While the base is fixed, states are compared by KALE. A base that is trained brings KALE down as it improves: states
    are then compared by the log-likelihood if the base has a density, and else not at all.

    Args:
        every: steps between looks; None for no looks.
        measure: returns the `HeldOutEnergies` of the present state.
        keep: returns a copy of the present state; None to keep none.
        has_density: whether the base has a density.
        base_is_trained: whether the base is trained.
    """

    def __init__(
        self,
        every: int | None,
        measure: Callable[[], HeldOutEnergies],
        keep: Callable[[], Any] | None,
        *,
        has_density: bool,
        base_is_trained: bool,
    ) -> None:
        self.every, self._measure, self._keep = every, measure, keep
        self._by, self._base_is_trained = ("kale", "log_likelihood")[has_density and base_is_trained], base_is_trained
        self._keeps = has_density or not base_is_trained
        self.rows, self.best = np.zeros((0, 5)), None

    def until_next(self, step: int) -> float:
        """Steps from `step` to the next look."""
        return math.inf if self.every is None else self.every - step % self.every

    def look_if_due(self, step: int) -> None:
        """Look where `every` divides the step."""
        if self.every is not None and step % self.every == 0:
            self.look(step)

    def look(self, step: int) -> None:
        """Look now, unless there are no looks."""
        if self.every is None:
            return
        best = self._scores().max(initial=-math.inf)
        self.rows = np.vstack([self.rows, [step, *self._measure().values()]])
        if self._keep is not None and self._keeps and self._scores()[-1] > best:
            self.best = self._keep()

    def resume(self, rows: Any, best: Any) -> None:
        """Go on after the looks of an interrupted run."""
        if self.every is not None and rows is not None:
            self.rows = np.asarray(rows, np.float64).reshape(-1, 5)
            self.best = best if self._keep is not None and self._keeps and np.isfinite(self._scores()).any() else None

    def shown(self) -> dict[str, str]:
        """What the progress bar shows of the last look."""
        return {"held-out": f"{self.rows[-1, 1]:.3g}"} if len(self.rows) else {}

    def curve(self) -> ValidationCurve | None:
        """What was seen; None without looks."""
        if self.every is None:
            return None
        step, kale, log_likelihood, *_ = self.rows.T
        best = None if self.best is None else int(step[self._scores().argmax()])
        return ValidationCurve(step.astype(int), kale, log_likelihood, self._errors(), best)

    def warn_if_overfitting(self, training: np.ndarray, *, stacklevel: int = 2) -> None:
        """Warn if the held-out value fell well below its best while that of training went on rising.

        Args:
            training: KALE of every step of the run.
            stacklevel: as for `warnings.warn`.
        """
        scores = self._scores()
        if self.every is None or not np.isfinite(scores).any():
            return
        best = scores.argmax()
        last = slice(max(best + 1, len(scores) - NUM_LAST), None)
        start, end, num = int(self.rows[best, 0]), len(training), len(scores[last])
        errors = self._errors()[last][np.isfinite(scores[last])]
        # the looks have the data in common, which cancels, and base draws of their own, which average out
        noise = math.hypot(self._errors()[best], errors.mean() / math.sqrt(num) if len(errors) else 0.0)
        if num == 0 or scores[best] - scores[last].mean() <= NUM_ERRORS * noise:
            return
        name, looks = {"kale": "KALE", "log_likelihood": "log-likelihood"}[self._by], f" (mean of {num} looks)"
        fell = f"Held-out {name} fell from {scores[best]:.3g} at step {start} to {scores[last].mean():.3g}"
        fell += looks if num > 1 else ""
        if self._base_is_trained:
            if self._by == "kale":  # falls as the base improves
                return
            found = f"{fell}: the model overfits, or training is unstable."
        else:
            then, now = (np.nanmean(training[max(0, i - self.every) : max(i, self.every)]) for i in (start, end))
            if not now > then:
                return
            found = f"{fell}, while KALE in training rose from {then:.3g} to {now:.3g}: the energy overfits."
        kept = f"The result holds the state of step {start}." if self._keep is not None else "Pass `keep_best=True`."
        penalty = "" if self._base_is_trained else "a stronger penalty, "
        advice = f"Try {penalty}a smaller network, fewer steps, or more data."
        warnings.warn(f"{found} {kept} {advice}", RuntimeWarning, stacklevel=stacklevel + 1)

    def _scores(self):
        """What states are compared by, -inf where it is not finite."""
        scores = self.rows[:, {"kale": 1, "log_likelihood": 2}[self._by]]
        return np.where(np.isfinite(scores), scores, -math.inf)

    def _errors(self) -> np.ndarray:
        """Their standard errors."""
        return self.rows[:, {"kale": 3, "log_likelihood": 4}[self._by]]


def find_every(every: int | None, has_data: bool, num_steps: int) -> int | None:
    """Steps between looks at held-out data.

    Args:
        every: as asked for; None takes 25 looks in a run.
        has_data: whether there are held-out data.
        num_steps: steps of the run.

    Returns:
        At least 1; None without data.

    Raises:
        TypeError: if it is not an integer.
        ValueError: if it is below 1, or there are no data.
    """
    if every is not None:
        every = validation.integer("validate_every", every)
    if not has_data:
        if every is not None:
            raise ValueError(f"Expected validation data with validate_every={every}; got validation=None.")
        return None
    return max(1, num_steps // NUM_LOOKS) if every is None else every


def _standard_error(values):
    return values.std(ddof=1) / math.sqrt(len(values)) if len(values) > 1 else math.inf
