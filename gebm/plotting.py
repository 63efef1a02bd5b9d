"""Pictures of training."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from gebm.extras import extra
from gebm.validation import integer, names, sequence

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["plot_losses"]


def plot_losses(
    *runs: Any, labels: Sequence[str] | None = None, window: int = 50, axes: Sequence[Axes] | None = None
) -> Sequence[Axes]:
    """Curves of one run of training, or of several, one after the other.

    KALE, the log-partition, the penalty and the norms of the two gradients against the step, as running means. KALE on
    held-out data is dashed, with a dot at the state that the result holds.

    Args:
        runs: what `KALE.run` returned, or the `KALELosses` alone.
        labels: a name for every run.
        window: steps of the running mean.
        axes: four Matplotlib axes to draw on; None makes a figure, which is `axes[0].figure`.

    Returns:
        The axes: KALE, log-partition, penalty, gradient norms.

    Raises:
        ImportError: without Matplotlib, naming the extra to install.
        TypeError: for labels or axes that are no sequences, or a window that is not an integer.
        ValueError: if there are not four axes, or not as many labels as runs.

    Example:
        >>> from types import SimpleNamespace
        >>> names = ("kale", "penalty", "log_partition", "energy_grad_norm", "base_grad_norm")
        >>> losses = SimpleNamespace(**{name: np.ones(100) for name in names})  # `result.losses`
        >>> axes = plot_losses(losses, labels=("a run",))
        >>> [axis.get_ylabel() for axis in axes][:3]
        ['KALE', 'log-partition A', 'penalty']
    """
    integer("window", window)
    labels = labels if labels is None else names("labels", labels)
    if labels is not None and len(labels) != len(runs):
        raise ValueError(f"Expected labels for each of {len(runs)} runs; got {len(labels)}.")
    axes = sequence("axes", _new_axes() if axes is None else axes)
    if len(axes) != 4:
        raise ValueError(f"Expected 4 axes; got {len(axes)}.")
    start = 0
    for i, run in enumerate(runs):
        losses, held_out = getattr(run, "losses", run), getattr(run, "validation", None)
        steps, color = np.arange(start, start + len(losses.kale)), f"C{i}"
        for axis, curve in zip(axes, (losses.kale, losses.log_partition, losses.penalty)):
            axis.plot(steps, _running_mean(curve, window), color=color, label=labels and labels[i])
        for style, curve in (("-", losses.energy_grad_norm), (":", getattr(losses, "base_grad_norm", 0.0))):
            if np.asarray(curve).any():
                axes[3].plot(steps, _running_mean(curve, window), style, color=color)
        if held_out is not None:
            axes[0].plot(
                start + held_out.step,
                held_out.kale,
                "--",
                color=color,
                label=f"{labels[i]}, held-out" if labels else "held-out",
            )
            best = held_out.step == held_out.best_step
            axes[0].plot(start + held_out.step[best], held_out.kale[best], "o", color=color)
        start += len(losses.kale)
    for axis, name in zip(axes, ("KALE", "log-partition A", "penalty", "gradient norms\n(base dotted)")):
        axis.set_ylabel(name)
    axes[3].set(yscale="log", xlabel="step")
    if axes[0].get_legend_handles_labels()[0]:
        axes[0].legend()
    return axes


def _new_axes():
    figure = extra("matplotlib.figure", "examples", "plot_losses")
    return figure.Figure(figsize=(7, 7), layout="constrained").subplots(4, 1, sharex=True)


def _running_mean(curve, window):
    """Mean over the last `window` steps; steps that are not finite are left out."""
    curve = np.asarray(curve, dtype=float)
    finite = np.isfinite(curve)
    sums = np.cumsum(np.insert(np.where(finite, curve, 0.0), 0, 0.0))
    counts = np.cumsum(np.insert(finite, 0, 0))
    last = np.arange(1, len(curve) + 1)
    first = np.maximum(last - window, 0)
    return (sums[last] - sums[first]) / np.maximum(counts[last] - counts[first], 1)
