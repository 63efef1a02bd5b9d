"""Pictures of training."""

import itertools

import numpy as np

__all__ = ["plot_losses"]


def plot_losses(*losses, labels=None, window=50):
    """Curves of one run of training, or of several, one after the other.

    KALE, the log-partition, the penalty and the norms of the two gradients against the step, as running means.

    Args:
        losses: `KALELosses` of runs (`result.losses`).
        labels: a name for every run.
        window: steps of the running mean.

    Returns:
        A Matplotlib figure.

    Raises:
        ImportError: without Matplotlib, naming the extra to install.

    Example:
        >>> from types import SimpleNamespace
        >>> names = ("kale", "penalty", "log_partition", "energy_grad_norm", "base_grad_norm")
        >>> losses = SimpleNamespace(**{name: np.ones(100) for name in names})  # `result.losses`
        >>> figure = plot_losses(losses, labels=("a run",))
        >>> [axis.get_ylabel() for axis in figure.axes][:3]
        ['KALE', 'log-partition A', 'penalty']
    """
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError('plot_losses needs Matplotlib: `pip install "gebm[examples]"`.') from error
    figure = Figure(figsize=(7, 7), layout="constrained")
    axes = figure.subplots(4, 1, sharex=True)
    starts = [0, *itertools.accumulate(len(run.kale) for run in losses)]
    for i, (start, run) in enumerate(zip(starts, losses)):
        steps = np.arange(start, start + len(run.kale))
        label = None if labels is None else labels[i]
        for axis, curve in zip(axes, (run.kale, run.log_partition, run.penalty)):
            axis.plot(steps, _running_mean(curve, window), color=f"C{i}", label=label)
        for style, curve in (("-", run.energy_grad_norm), (":", run.base_grad_norm)):
            if np.asarray(curve).any():
                axes[3].plot(steps, _running_mean(curve, window), style, color=f"C{i}")
    for axis, name in zip(axes, ("KALE", "log-partition A", "penalty", "gradient norms\n(base dotted)")):
        axis.set_ylabel(name)
    axes[3].set(yscale="log", xlabel="step")
    if labels is not None:
        axes[0].legend()
    return figure


def _running_mean(curve, window):
    """Mean over the last `window` steps; steps that are not finite are left out."""
    curve = np.asarray(curve, dtype=float)
    finite = np.isfinite(curve)
    sums = np.cumsum(np.insert(np.where(finite, curve, 0.0), 0, 0.0))
    counts = np.cumsum(np.insert(finite, 0, 0))
    last = np.arange(1, len(curve) + 1)
    first = np.maximum(last - window, 0)
    return (sums[last] - sums[first]) / np.maximum(counts[last] - counts[first], 1)
