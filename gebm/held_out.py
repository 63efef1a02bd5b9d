"""KALE on held-out data during training, and the best state by it."""

import math
import warnings
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from gebm import validation
from gebm.evaluation import MIN_ESS_SHARE, Evaluation, PartitionEstimate, evaluation_of, standard_error

__all__ = ["HeldOut", "HeldOutEnergies", "ValidationCurve", "check_evaluation", "find_every"]

#: Looks at the held-out data in a run, unless told.
NUM_LOOKS = 25
#: Training overfits if the mean of the last looks, at most so many, is below the best by so many standard errors.
NUM_LAST, NUM_ERRORS = 5, 3.0
#: Columns of a look: its step, and `HeldOutEnergies.values`.
NUM_COLUMNS = 7
#: The energy is higher on data than on base draws, if by more than so many standard errors.
MAX_ERRORS = 5.0


def check_evaluation(found: Evaluation, of_data: np.ndarray, weights: Any, *, stacklevel: int = 3) -> None:
    """Check an estimate of KALE, and warn if the energy may have the wrong sign.

    Args:
        found: the estimate.
        of_data: energies of data, shape `(N,)`.
        weights: sums over the base draws.
        stacklevel: of the warning.

    Raises:
        ValueError: if KALE is not finite.

    Warns:
        UserWarning: if the energy is higher on data than on base draws, by more than five standard errors.
    """
    validation.check_statistic(
        "KALE", np.asarray(found.value), "Look at the energies: infinite on data, or not finite on draws of the base?"
    )
    data, (base, error) = np.asarray(of_data, np.float64), weights.mean_energy
    noise = MAX_ERRORS * math.hypot(standard_error(data), error) + 1e-6 * abs(base)  # and rounding
    if data.mean() - base > noise:
        warnings.warn(
            f"The mean energy is higher on data ({data.mean():.4g}) than on draws of the base ({base:.4g}): the "
            "GEBM gives the data less weight than its base does. An energy is low where data is; negate one that comes "
            "from the logits of a critic, which are high there. Otherwise it is not trained, or it overfits.",
            stacklevel=stacklevel,
        )


class ValidationCurve(NamedTuple):
    r"""Held-out values during a run, one for every look.

    `step` counts steps of the run. `kale` is KALE at the best A, which is `log_partition`. `log_likelihood` is NaN for
    a base g without a density, else the mean of $\log g(x)$ plus KALE: a lower bound of the mean log-density of the
    GEBM (for maximum likelihood, which leaves the energy out, the mean of $\log g(x)$). `error` is the standard error
    of what states are compared by: `log_likelihood` while a base with a density is trained, else `kale`. `ess_share` is
    the effective sample size of the weights of the base draws over their number. `best_step` is the step whose state
    the result holds, None if that is the last.
    """

    step: np.ndarray
    kale: np.ndarray
    log_likelihood: np.ndarray
    error: np.ndarray
    best_step: int | None
    log_partition: np.ndarray
    ess_share: np.ndarray


class HeldOutEnergies(NamedTuple):
    """Energies of held-out data `(N,)`, sums over fresh base draws, and log-densities of the data by the base.

    `log_density` is None for a base without a density; `energy_counts` is whether the energy is part of the model.
    """

    data: np.ndarray
    weights: PartitionEstimate
    log_density: np.ndarray | None
    energy_counts: bool

    def values(self) -> tuple[float, float, float, float, float, float]:
        """KALE and the log-likelihood, the standard errors of both, the effective share of the weights, and A."""
        found = evaluation_of(self.data, self.weights)
        of_weights = self.weights.ess / self.weights.num, self.weights.log_partition
        if self.log_density is None:
            return found.value, math.nan, found.std_error, math.nan, *of_weights
        log_density = np.asarray(self.log_density, np.float64)
        if not self.energy_counts:
            return found.value, log_density.mean(), found.std_error, standard_error(log_density), *of_weights
        with np.errstate(invalid="ignore"):  # both may be infinite
            of_both = standard_error(log_density - np.asarray(self.data, np.float64))
        error = math.hypot(of_both, self.weights.std_error)
        return found.value, log_density.mean() + found.value, found.std_error, error, *of_weights


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
        energy_is_trained: whether the energy is trained, by an objective that KALE may judge.
        patience: looks in a row without a better value after which the run may stop; None for no such stop.

    Raises:
        ValueError: for patience without looks, or where states cannot be compared.
    """

    def __init__(
        self,
        every: int | None,
        measure: Callable[[], HeldOutEnergies],
        keep: Callable[[], Any] | None,
        *,
        has_density: bool,
        base_is_trained: bool,
        energy_is_trained: bool = True,
        patience: int | None = None,
    ) -> None:
        self.every, self._measure, self._keep = every, measure, keep
        self._by, self._base_is_trained = ("kale", "log_likelihood")[has_density and base_is_trained], base_is_trained
        self._keeps, self._energy_is_trained = has_density or not base_is_trained, energy_is_trained
        self.rows, self.best = np.zeros((0, NUM_COLUMNS)), None
        self.patience = validation.optional(validation.integer)("patience", patience)
        if patience is not None and every is None:
            raise ValueError(f"Expected validation data with patience={patience}; got validation=None.")
        if patience is not None and not self._keeps:
            raise ValueError(
                f"Expected patience=None while a base without a density is trained; got {patience}. KALE falls as that "
                "base improves, so no look is better than another."
            )

    @property
    def exhausted(self) -> bool:
        """Whether the last `patience` looks were none of them better than one before them."""
        scores = self._scores()
        return (
            self.patience is not None and len(scores) - 1 - int(scores.argmax()) >= self.patience
            if len(scores)
            else False
        )

    def until_next(self, step: int) -> float:
        """Steps from `step` to the next look."""
        return math.inf if self.every is None else self.every - step % self.every

    def look_if_due(self, step: int) -> None:
        """Look where `every` divides the step."""
        if self.every is not None and step % self.every == 0:
            self.look(step)

    def look(self, step: int) -> None:
        """Look now, unless there are no looks, or the last one was at this step."""
        if self.every is None or (len(self.rows) and self.rows[-1, 0] == step):
            return
        best = self._scores().max(initial=-math.inf)
        self.rows = np.vstack([self.rows, [step, *self._measure().values()]])
        if self._keep is not None and self._keeps and self._scores()[-1] > best:
            self.best = self._keep()

    def resume(self, rows: Any, best: Any) -> None:
        """Go on after the looks of an interrupted run."""
        if self.every is not None and rows is not None:
            rows = np.asarray(rows, np.float64)
            if rows.size and rows.shape[1] < NUM_COLUMNS:  # an older file
                rows = np.hstack([rows, np.full((len(rows), NUM_COLUMNS - rows.shape[1]), math.nan)])
            self.rows = rows.reshape(-1, NUM_COLUMNS)
            self.best = best if self._keep is not None and self._keeps and np.isfinite(self._scores()).any() else None

    def shown(self) -> dict[str, str]:
        """What the progress bar shows of the last look."""
        return {"held-out": f"{self.rows[-1, 1]:.3g}"} if len(self.rows) else {}

    def curve(self) -> ValidationCurve | None:
        """What was seen; None without looks."""
        if self.every is None:
            return None
        step, kale, log_likelihood, _, _, ess_share, log_partition = self.rows.T
        best = None if self.best is None else int(step[self._scores().argmax()])
        return ValidationCurve(step.astype(int), kale, log_likelihood, self._errors(), best, log_partition, ess_share)

    def warn(self, training: np.ndarray, *, stacklevel: int = 2) -> None:
        """Warn of what the looks say against the result.

        That is: the held-out value fell well below its best; KALE of the energy that was trained is below 0; the
        weights rest on few base draws.

        Args:
            training: KALE of every step of the run.
            stacklevel: as for `warnings.warn`.
        """
        if self.every is None or not np.isfinite(self._scores()).any():
            return
        for message in (self._fell(training), *self._of_result()):
            if message is not None:
                warnings.warn(message, RuntimeWarning, stacklevel=stacklevel + 1)

    def _fell(self, training):
        """A sentence if the last looks are below the best."""
        scores = self._scores()
        best = scores.argmax()
        last = slice(max(best + 1, len(scores) - NUM_LAST), None)
        start, end, num = int(self.rows[best, 0]), len(training), len(scores[last])
        errors = self._errors()[last][np.isfinite(scores[last])]
        # the looks have the data in common, which cancels, and base draws of their own, which average out
        noise = math.hypot(self._errors()[best], errors.mean() / math.sqrt(num) if len(errors) else 0.0)
        if num == 0 or scores[best] - scores[last].mean() <= NUM_ERRORS * noise:
            return None
        name, looks = {"kale": "KALE", "log_likelihood": "log-likelihood"}[self._by], f" (mean of {num} looks)"
        found = f"Held-out {name} fell from {scores[best]:.3g} at step {start} to {scores[last].mean():.3g}"
        found += looks if num > 1 else ""
        if self._base_is_trained:
            if self._by == "kale":  # falls as the base improves
                return None
            found += ": the model overfits, or training is unstable."
        else:
            every = self.every or 1
            then, now = (np.nanmean(training[max(0, i - every) : max(i, every)]) for i in (start, end))
            if now > then:
                found += f", while KALE in training rose from {then:.3g} to {now:.3g}: the energy overfits."
            else:
                found += ": training is unstable."
        kept = f"The result holds the state of step {start}." if self._keep is not None else "Pass `keep_best=True`."
        penalty = "" if self._base_is_trained else "a stronger penalty, "
        return f"{found} {kept} Try {penalty}a lower rate, a smaller network, fewer steps, or more data."

    def _of_result(self):
        """Sentences about the state that the result holds."""
        row = self.rows[-1 if self.best is None else self._scores().argmax()]
        if not self._energy_is_trained or self.rows[-1, 0] == 0:
            return
        kale, error, ess_share = row[1], row[3], row[5]
        if kale < -NUM_ERRORS * error - 1e-6:  # and rounding
            yield (
                f"Held-out KALE of the result is below 0: {kale:.3g}, with a standard error of {error:.2g}. The energy "
                "makes the model worse than its base alone. Train the energy longer on the finished base, at a lower "
                "rate or with a stronger penalty."
            )
        if ess_share < MIN_ESS_SHARE:
            yield (
                f"The effective sample size of the weights is {100 * ess_share:.2g} % of the base draws: log Z, and "
                "KALE with it, rest on few of them, and the energy was hardly trained where its model is. Go on with "
                "`refine`, which trains it on draws of the model."
            )

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
