"""Modes that chains visited: peaks of one-dimensional projections of their draws."""

import itertools
from collections.abc import Callable, Mapping
from typing import NamedTuple, TypeAlias

import numpy as np

__all__ = ["Modes", "cuts_between_modes", "modes_visited"]


#: From draws of shape (chain, draw) to their effective sample size.
ESS: TypeAlias = Callable[[np.ndarray], float]


class Modes(NamedTuple):
    """Modes along the direction that says most about the chains.

    Attributes:
        along: name of the direction.
        shares: array of shape (chain, mode): which part of its draws a chain spent in each mode.
        visited: for each chain, the modes where it spent at least 1 % of its draws.
        missing: for each chain, the modes that it should have visited by now, had it mixed.
    """

    along: str
    shares: np.ndarray
    visited: tuple[tuple[int, ...], ...]
    missing: tuple[tuple[int, ...], ...]


def modes_visited(draws: np.ndarray, scalars: Mapping[str, np.ndarray], ess: ESS) -> Modes:
    """Which modes each chain visited, along the direction in which most are missed, or else the one with most modes.

    Directions are the three leading principal components, up to three directions between the means of the chains,
    and the scalars. A mean direction is found on the first half of the draws and its modes on the second, so that in
    many dimensions the noise of the means does not pass for modes.

    A chain is missing a mode if its draws, were they independent, would have avoided it with probability 1/1000.

    Args:
        draws: array of shape (chain, draw, dimension), thinned to what is enough.
        scalars: maps names to arrays of shape (chain, draw), such as `energy_x`.
        ess: function from an array of shape (chain, draw) to its effective sample size.

    Returns:
        `Modes`.
    """
    half = draws.shape[1] // 2
    flat = draws.reshape(-1, draws.shape[-1])
    components = _leading_directions(flat)
    between = _leading_directions(draws[:, :half].mean(1)) if len(draws) > 1 else components[:0]
    found = [
        *(_modes_along(f"principal component {i + 1}", draws @ d, 0, ess) for i, d in enumerate(components)),
        *(_modes_along(f"direction {i + 1} between chains", draws @ d, half, ess) for i, d in enumerate(between)),
        *(_modes_along(name, values, 0, ess) for name, values in scalars.items()),
    ]
    return max(found, key=lambda modes: (sum(map(len, modes.missing)), modes.shares.shape[1]))


def cuts_between_modes(
    values: np.ndarray, scale: float, num_effective: float, min_share: float = 0.02, depth: float = 0.5
) -> np.ndarray:
    """Where to cut a line so that every piece holds one mode of a Gaussian kernel density estimate.

    Two peaks are two modes if the valley between them is lower than `depth` times the smaller one.

    Args:
        values: array of shape (draw,).
        scale: spread within a mode, or of all values.
        num_effective: number of independent draws that the values are worth; sets the bandwidth, two
            thirds of Silverman's so that several modes stay apart.
        min_share: a mode holds at least this part of the values; fewer are counted with a neighbour.
        depth: how deep a valley is, against the smaller of its peaks.

    Returns:
        Array of shape (modes - 1,), increasing.

    Example:
        >>> values = np.concatenate([np.random.default_rng(0).normal(at, 1.0, 500) for at in (0.0, 10.0)])
        >>> len(cuts_between_modes(values, 1.0, 1000))
        1
    """
    low, high = np.quantile(values, (0.0025, 0.9975))  # a few far away neither widen the grid nor make a mode
    bandwidth = max(0.6 * scale * num_effective**-0.2, (high - low) / 1000)
    if not (np.isfinite(bandwidth) and high > low):
        return np.empty(0)
    edges = np.arange(low - 3 * bandwidth, high + 3.25 * bandwidth, bandwidth / 4)
    counts = np.histogram(values, edges)[0]
    density = np.convolve(counts, np.exp(-0.5 * (np.arange(-16, 17) / 4) ** 2), mode="same")
    rising = np.diff(density, prepend=-1, append=-1)
    peaks = np.flatnonzero((density > 0) & (rising[:-1] > 0) & (rising[1:] <= 0))
    # 0.76 of a Gaussian lies where its density is above half of its peak; a tail of few draws has peaks of one or two.
    peaks = [p for p in peaks if _draws_around(int(p), counts, density) >= 0.76 * min_share * len(values)]
    while len(peaks) > 1:
        valleys = [a + int(np.argmin(density[a:b])) for a, b in itertools.pairwise(peaks)]
        depths = [density[v] / min(density[a], density[b]) for v, a, b in zip(valleys, peaks, peaks[1:])]
        if max(depths) < depth:
            return edges[np.array(valleys) + 1]
        shallow = int(np.argmax(depths))
        peaks.pop(shallow + int(density[peaks[shallow + 1]] < density[peaks[shallow]]))
    return np.empty(0)


def _draws_around(peak: int, counts: np.ndarray, density: np.ndarray) -> int:
    """Number of draws around a peak, as far as the density is above half of it."""
    below = np.flatnonzero(density < density[peak] / 2)
    split = np.searchsorted(below, peak)
    first = below[split - 1] + 1 if split > 0 else 0
    last = below[split] if split < len(below) else len(counts)
    return counts[first:last].sum()


def _leading_directions(rows: np.ndarray, count: int = 3, max_rows: int = 2000) -> np.ndarray:
    """Unit vectors of shape (<= count, dimension): the principal components of rows, largest variance first."""
    rows = rows[:: -(-len(rows) // max_rows)]
    centred = rows - rows.mean(0)
    count = min(count, len(rows) - 1, rows.shape[1])
    if rows.shape[1] <= len(rows):
        return np.linalg.eigh(centred.T @ centred)[1].T[::-1][:count]
    directions = np.linalg.eigh(centred @ centred.T)[1].T[::-1][:count] @ centred
    return directions / np.maximum(np.linalg.norm(directions, axis=1, keepdims=True), 1e-300)


def _modes_along(name: str, values: np.ndarray, start: int, ess: ESS) -> Modes:
    """`Modes` along one direction, found on the draws from `start` on and visited at any time."""
    num_chains, seen = len(values), values[:, start:]
    spreads = np.array([_spread(chain) for chain in seen])
    scale = min(_spread(seen.ravel()), np.median(spreads[spreads > 0]) if (spreads > 0).any() else np.inf)
    min_share = min(0.02, max(0.5 / num_chains, 0.005, 40 / seen.size))  # one chain of a hundred is enough
    cuts = cuts_between_modes(seen.ravel(), scale, max(ess(seen), 4.0), min_share)
    mode = np.searchsorted(cuts, values)
    shares = np.stack([(mode == i).mean(1) for i in range(len(cuts) + 1)], axis=1)
    visited = tuple(tuple(np.flatnonzero(chain >= 0.01).tolist()) for chain in shares)
    total = shares.mean(0)
    missing = tuple(
        tuple(i for i in range(len(total)) if i not in seen_by and (1 - total[i]) ** ess(chain[None]) < 1e-3)
        for seen_by, chain in zip(visited, values)
    )
    return Modes(name, shares, visited, missing if len(cuts) else ((),) * num_chains)


def _spread(values: np.ndarray) -> float:
    """Standard deviation, or the quartiles' if that is smaller and not zero."""
    low, high = np.quantile(values, (0.25, 0.75))
    deviation = float(np.std(values))
    return min(deviation, (high - low) / 1.349) if high > low else deviation
