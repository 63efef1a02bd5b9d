"""A training run, whatever it trains: pace, progress bar, checkpoints, and checks of its arguments."""

import time
import warnings
from collections.abc import Callable, Mapping
from typing import Any, Literal, Protocol, TypeVar

from tqdm import tqdm

from gebm import validation
from gebm.checkpoint_files import Checkpoints
from gebm.errors import ResultFailed
from gebm.held_out import HeldOut

__all__ = [
    "ObjectiveName",
    "check_energy_steps",
    "drive",
    "energy_bursts",
    "find_objective",
    "number_of_energy_steps",
    "progress",
]

Result = TypeVar("Result")

#: Short names of the objectives that both packages have.
ObjectiveName = Literal["kale", "plain_kale", "donsker_varadhan", "maximum_likelihood", "contrastive_divergence"]
#: Most steps between two looks at the losses, which are about a second apart; results do not depend on it.
MAX_STEPS_PER_LOOK = 100
#: Energy steps before one base step, at most: more would look like a program that hangs.
MAX_ENERGY_STEPS = 1_000_000
#: Steps in a row with a loss or gradient that is not finite, after which a run stops.
PATIENCE = 10
#: What to say then, and what to do about it.
BAD_STEPS = (
    f"loss or gradient was not finite for {PATIENCE} steps in a row, or far above what was usual.",
    "Lower the learning rates, or raise the penalty.",
)


class Run(Protocol):
    """What `drive` advances: the state of a training, its data and its records."""

    @property
    def step(self) -> int:
        """Steps of this run so far."""
        ...

    @property
    def skipped(self) -> int:
        """Steps of this run that were not applied."""
        ...

    @property
    def kept(self) -> tuple[Any, str]:
        """The state of the training as it is now, and a sentence that says how to go on from it."""
        ...

    def advance(self, count: int) -> Any:
        """Take up to `count` steps; their losses, which it records as well."""


def drive(
    run: Run,
    num_steps: int,
    checkpoints: Checkpoints[Run],
    held_out: HeldOut,
    describe: Callable[[Any], Mapping[str, str]],
    finish: Callable[[], Result],
    *,
    progress_bar: bool,
) -> Result:
    """Advance a run to step `num_steps`, with a look at it about once a second, and make its result.

    Args:
        run: a `Run`.
        num_steps: steps of the whole run.
        checkpoints: when to write one of the run; that of a step knows nothing of a look at the same step.
        held_out: when to look at held-out data.
        describe: what the progress bar shows of losses.
        finish: makes the result.
        progress_bar: show it.

    Returns:
        What `finish` returns.

    Raises:
        ResultFailed: with the last state, for an error after the last step.
        ValueError: if the run was resumed beyond `num_steps`.
    """
    if run.step > num_steps:
        raise ValueError(f"Expected num_steps >= {run.step}, the step of the checkpoint; got {num_steps}.")
    count = 1
    with tqdm(
        total=num_steps,
        initial=run.step,
        disable=not validation.flag("progress_bar", progress_bar),
        desc="Training",
        unit="step",
    ) as bar:
        while (done := run.step) < num_steps:
            checkpoints.write_if_due(done, run)
            held_out.look_if_due(done)
            if held_out.exhausted:
                break
            start = time.perf_counter()
            count = int(min(count, num_steps - done, checkpoints.until_next(done), held_out.until_next(done)))
            losses = run.advance(count)
            bar.update(run.step - done)
            skipped = {"skipped": run.skipped} if run.skipped else {}
            bar.set_postfix({**describe(losses), **held_out.shown(), **skipped})
            count = max(1, min(MAX_STEPS_PER_LOOK, 2 * count, int(count / (time.perf_counter() - start))))
    if run.skipped:
        message = (
            f"{run.skipped} steps were skipped: their loss or gradient was not finite, or far above what was usual in "
            "the run."
        )
        warnings.warn(message, RuntimeWarning, stacklevel=3)
    try:
        checkpoints.write(run.step, run)
        held_out.look(run.step)
        return finish()
    except Exception as error:
        state, advice = run.kept
        raise ResultFailed(
            f"Training is over, after {run.step} steps, but its result could not be made ({type(error).__name__}: "
            f"{error}). Nothing that was trained is lost: `error.state` is the last state. {advice}",
            state,
        ) from error


def energy_bursts(steps: int = 5, *, initial: int = 100, every: int = 500) -> Callable[[int], int]:
    """Schedule of energy steps: `steps` per base step, but `initial` at the start and before every `every`-th.

    The defaults are the setting of arXiv:2003.05033.

    Args:
        steps: energy steps per base step.
        initial: energy steps of a burst.
        every: base steps from one burst to the next.

    Returns:
        A callable from the number of a base step to its number of energy steps.

    Raises:
        ValueError: if one of them is below 1.

    Example:
        >>> schedule = energy_bursts(5, initial=100, every=500)
        >>> [schedule(step) for step in (0, 1, 500)]
        [100, 5, 100]
    """
    steps, initial = validation.integer("steps", steps), validation.integer("initial", initial)
    every = validation.integer("every", every)
    return lambda base_step: steps + (initial - steps) * (base_step % every == 0)  # of a traced number too


def number_of_energy_steps(schedule: int | Callable[[int], int], base_step: int) -> int:
    """Energy steps before a base step.

    Args:
        schedule: a number, or a callable of the base step's number.
        base_step: that number.

    Returns:
        From 1 to a million.

    Raises:
        TypeError: if the schedule returns no integer.
        ValueError: if it returns one out of that range.
    """
    return _energy_steps(f"energy_steps({base_step})", schedule(base_step)) if callable(schedule) else schedule


def check_energy_steps(energy_steps: Any) -> None:
    """Check the argument `energy_steps` of a training; what a schedule returns is checked when it is called.

    Args:
        energy_steps: what was passed.

    Raises:
        TypeError: if it is neither an integer nor callable.
        ValueError: if it is not from 1 to a million.
    """
    if not callable(energy_steps):
        _energy_steps("energy_steps", energy_steps)


def _energy_steps(name, value):
    return validation.integer(name, value, maximum=MAX_ENERGY_STEPS)


def find_objective(objective: Any, names: Mapping[str, Callable[[], Any]], base_optim: Any, energy_optim: Any) -> Any:
    """The objective of a name, or the object given, checked against the optimisers.

    Args:
        objective: one of the names, or an object with a method `energy_loss`, `base_loss`, or both.
        names: what each name stands for.
        base_optim: optimiser of the base, or None.
        energy_optim: optimiser of the energy, or None.

    Returns:
        The object.

    Raises:
        TypeError: if it is neither a name nor has one of the two methods.
        ValueError: if the name is unknown, there is no optimiser, or one for a part without a loss.
    """
    if isinstance(objective, str):
        objective = names[validation.one_of("objective", objective, names)]()
    losses = {name: getattr(objective, name, None) for name in ("energy_loss", "base_loss")}
    if not any(map(callable, losses.values())):
        raise TypeError(
            f"Expected objective to be one of {tuple(names)} or an object with a method energy_loss or base_loss; got "
            f"{type(objective).__name__}."
        )
    if base_optim is None and energy_optim is None:
        raise ValueError("Nothing to train: expected base_optim or energy_optim; got None for both.")
    for part, optim, other in (("energy", energy_optim, "base"), ("base", base_optim, "energy")):
        if optim is not None and losses[f"{part}_loss"] is None:
            name = type(objective).__name__
            raise ValueError(
                f"Expected {part}_optim=None for {name}, which trains the {other} alone; got an optimiser."
            )
    return objective


def progress(losses: Any) -> dict[str, str]:
    """What the progress bar shows of the last step.

    Args:
        losses: `KALELosses` of curves.

    Returns:
        Labels and values.
    """
    labels = {"kale": "KALE", "log_partition": "A", "penalty": "penalty", "energy_grad_norm": "|dE|"}
    labels |= {"base_grad_norm": "|dB|"} if losses.base_grad_norm.any() else {}
    return {label: f"{getattr(losses, name)[-1]:.3g}" for name, label in labels.items()}
