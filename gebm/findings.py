"""The checks of `diagnose`, one function each: numbers, a sentence, and advice if it is needed."""

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from gebm.extras import extra
from gebm.modes import Modes, modes_visited

__all__ = ["CHECKS", "Finding", "check_convergence", "check_modes"]

_TAILS = (0.05, 0.95)  # quantiles whose effective sample size is that of the tails
_MAX_RHAT, _MIN_ESS, _MIN_BFMI, _MIN_ACCEPTANCE = 1.01, 400.0, 0.3, 0.4
_MAX_ROWS = 8_000  # of draws that modes are looked for in
_BLOCK = 64 * 2**20  # bytes read at once


@dataclasses.dataclass(frozen=True)
class Finding:
    """Numbers, the sentence that says what they mean, and what to do if they are bad."""

    numbers: dict[str, Any]
    sentence: str
    advice: str | None = None


def _scalars(name: str, value: Any) -> Iterator[tuple[str, np.ndarray]]:
    """Names and arrays (chain, draw) of all scalar quantities of an array (chain, draw, ...)."""
    shape = value.shape[2:]
    if not shape:
        yield name, np.asarray(value, float)
        return
    lead = int(np.prod(shape[1:]))
    rows = max(1, _BLOCK // (8 * value.shape[0] * value.shape[1] * lead))
    for first in range(0, shape[0], rows):
        block = np.asarray(value[:, :, first : first + rows])
        for index in np.ndindex(block.shape[2:]):
            full = (first + index[0], *index[1:])
            yield f"{name}[{', '.join(map(str, full))}]", np.asarray(block[(..., *index)], float)


def _arviz() -> Any:
    return extra("arviz", "arviz", "diagnose")


def _ess(draws: np.ndarray, method: str = "bulk", **kwargs: Any) -> float:
    return float(_arviz().ess(draws, method=method, **kwargs))


def _rhat(draws: np.ndarray) -> float:
    num_chains, num_draws = draws.shape
    if num_chains == 1:  # its halves
        draws = draws[:, : num_draws // 2 * 2].reshape(2, -1)
    with np.errstate(all="ignore"):
        rhat = float(_arviz().rhat(draws))
    return rhat if np.isfinite(rhat) else np.inf


def check_convergence(quantities: Mapping[str, Any], step: int) -> Iterator[Finding]:
    """R-hat and effective sample sizes, the worst of all scalar quantities.

    Args:
        quantities: maps names to arrays of shape (chain, draw, ...).
        step: the arrays hold every `step`-th draw of the run.

    Yields:
        `Finding`s.
    """
    num_nonfinite, rows, num_chains = 0, [], 0
    for name, draws in (scalar for item in quantities.items() for scalar in _scalars(*item)):
        nonfinite = int((~np.isfinite(draws)).sum())
        num_nonfinite, num_chains = num_nonfinite + nonfinite, len(draws)
        if not nonfinite and draws.min() < draws.max():  # a constant tells nothing
            rows.append((name, _rhat(draws), _ess(draws), _ess(draws, "tail", prob=_TAILS)))
    if num_nonfinite:
        yield Finding(
            {"num_nonfinite": num_nonfinite},
            f"{num_nonfinite} values are NaN or infinite; the quantities that contain them are left out below.",
            "Look at these draws: the log density or the energy is not finite there.",
        )
    if not rows:
        advice = "The chains never moved: reduce the step size and check the initial points."
        yield Finding({}, "No quantity with finite values varies.", advice)
        return
    rhat, bulk, tail = max(rows, key=lambda r: r[1]), min(rows, key=lambda r: r[2]), min(rows, key=lambda r: r[3])
    yield _rhat_finding(rhat[0], rhat[1], num_chains)
    yield _ess_finding("bulk", bulk[0], bulk[2], step)
    yield _ess_finding("tail", tail[0], tail[3], step)


def _rhat_finding(name: str, rhat: float, num_chains: int) -> Finding:
    numbers = {"max_rhat": rhat, "max_rhat_of": name}
    shown, good = f"{rhat:{'.3f' if rhat < 1000 else '.2g'}} ({name})", rhat <= _MAX_RHAT
    if num_chains == 1:
        return Finding(
            numbers,
            f"Largest R-hat is {shown}: the halves of the only chain {'agree' if good else 'disagree'}.",
            "Run at least four chains: one cannot show what it missed.",
        )
    if good:
        return Finding(numbers, f"Largest R-hat is {shown}; at most {_MAX_RHAT} is recommended.")
    return Finding(
        numbers,
        f"Largest R-hat is {shown}; at most {_MAX_RHAT} is recommended: the chains disagree.",
        "Do not use these draws. Run longer; if R-hat stays high, look at where the chains differ.",
    )


def _ess_finding(kind: str, name: str, ess: float, step: int) -> Finding:
    numbers = {f"min_ess_{kind}": ess, f"min_ess_{kind}_of": name}
    thinned = f", from one draw in {step}" if step > 1 else ""
    sentence = f"Smallest {kind} ESS is {ess:.0f} ({name}{thinned}); at least {_MIN_ESS:.0f} is recommended."
    if ess >= _MIN_ESS:
        return Finding(numbers, sentence)
    factor = max(2, int(np.ceil(_MIN_ESS / max(ess, 1.0))))
    longer = f"about {factor} times" if factor <= 20 else "much"
    return Finding(numbers, sentence, f"Run {longer} longer, or use a kernel that mixes faster.")


def _divergences(diverging: np.ndarray) -> Finding:
    count = int(diverging.sum())
    numbers = {"num_divergences": count}
    if not count:
        return Finding(numbers, "No divergent transitions.")
    return Finding(
        numbers,
        f"{count} divergent transition{'s' * (count > 1)} ({100 * diverging.mean():.2g}% of the draws): the integrator "
        "fails where the curvature is high, and the draws miss that region.",
        "Use a smaller step size (a higher target acceptance rate), or reparametrise the model.",
    )


def _bfmi(energy: np.ndarray) -> Finding:
    energy = energy.astype(float)
    variance = energy.var(axis=1)
    bfmi = np.mean(np.diff(energy, axis=1) ** 2, axis=1) / np.where(variance > 0, variance, np.inf)
    numbers = {"bfmi": tuple(bfmi.tolist())}
    low, says = np.flatnonzero(~(bfmi >= _MIN_BFMI)), f"Smallest BFMI is {bfmi.min():.2f};"
    if not len(low):
        return Finding(numbers, f"{says} at least {_MIN_BFMI} is recommended.")
    ess = _ess(energy)
    if ess >= _MIN_ESS:  # of a kernel with persistent momentum
        return Finding(numbers, f"{says} low, but the energies are well explored: their bulk ESS is {ess:.0f}.")
    return Finding(
        numbers,
        f"{says} at least {_MIN_BFMI} is recommended: fresh momenta do not reach the tails of the energy in "
        f"{_chains(low)}.",
        "Reparametrise the model, or run longer.",
    )


def _acceptance(rate: np.ndarray) -> Finding:
    mean = float(rate.mean())
    numbers, says = {"acceptance_rate": mean}, f"Mean acceptance rate is {mean:.2f}"
    if not mean >= _MIN_ACCEPTANCE:
        sentence = f"{says}; at least {_MIN_ACCEPTANCE} is recommended."
        return Finding(numbers, sentence, "Use a smaller step size, or a longer warm-up.")
    return Finding(numbers, f"{says}{'; larger steps would be more efficient' if mean > 0.98 else ''}.")


def _temperature(temperature: np.ndarray) -> Finding:
    temperature = temperature.astype(float)
    mean = float(temperature.mean())
    mcse = float(temperature.std(ddof=1) / np.sqrt(max(_ess(temperature, "mean"), 1.0)))
    numbers = {"kinetic_temperature": mean, "kinetic_temperature_mcse": mcse}
    says = f"Kinetic temperature is {mean:.3f} ± {mcse:.3f} (exact: 1):"
    if not abs(mean - 1) <= max(4 * mcse, 0.02):
        return Finding(
            numbers,
            f"{says} the draws are biased by the discretisation.",
            "Use a smaller step size, or the Metropolis-adjusted kernel.",
        )
    return Finding(numbers, f"{says} no discretisation bias detected.")


def _warmup(converged: np.ndarray) -> Finding:
    converged = np.asarray(converged.astype(bool).reshape(len(converged), -1).all(axis=1))
    numbers, failed = {"warmup_converged": tuple(converged.tolist())}, np.flatnonzero(~converged)
    if not len(failed):
        return Finding(numbers, "Warm-up converged in every chain.")
    return Finding(
        numbers,
        f"Warm-up did not converge in {_chains(failed)}: the step size or the energy was still drifting at its end.",
        "Run a longer warm-up.",
    )


def check_modes(quantities: Mapping[str, Any]) -> Iterator[Finding]:
    """Modes that each chain visited.

    Args:
        quantities: maps names to arrays of shape (chain, draw, ...).

    Yields:
        A `Finding`, or none if nothing that is finite varies.
    """
    num_chains, num_rows = next(iter(quantities.values())).shape[:2]
    step = -(-num_rows // max(_MAX_ROWS // num_chains, 50))
    sites, scalars = [], {}
    for name, value in quantities.items():
        value = np.asarray(value[:, ::step], float)
        flat = value.reshape(*value.shape[:2], -1)
        flat = flat[..., np.isfinite(flat).all((0, 1)) & (flat.min((0, 1)) < flat.max((0, 1)))]
        if name not in ("energy_x", "lp"):
            sites.append(flat / np.sqrt(flat.var((0, 1)).sum() / max(flat.shape[2], 1)))  # one scale for a site
        elif flat.shape[2] == 1:
            scalars[name] = flat[..., 0]
    draws = np.concatenate(sites, axis=2)
    if draws.shape[2] or scalars:
        yield _modes_finding(modes_visited(draws, scalars, _ess))


def _modes_finding(found: Modes) -> Finding:
    num_modes = found.shares.shape[1]
    numbers = {"num_modes": num_modes, "modes_along": found.along, "modes_visited": found.visited}
    if num_modes == 1:
        unseen = "A mode that no chain found cannot be detected."
        return Finding(numbers, f"One mode found, visited by every chain. {unseen}")
    says = f"{num_modes} modes found (along {found.along})"
    missing = [chain for chain, modes in enumerate(found.missing) if modes]
    if not missing:
        return Finding(numbers, f"{says}; no chain missed one that it should have visited.")
    groups: dict[tuple[int, ...], list[int]] = {}
    for chain in missing:
        groups.setdefault(found.visited[chain], []).append(chain)
    listed = [
        f"{_chains(chains)} visited {_listed('mode', modes) if modes else 'none'}"
        for modes, chains in sorted(groups.items(), key=lambda item: len(item[1]))
    ]
    return Finding(
        numbers,
        f"{says}, not all visited by every chain: {'; '.join(listed[:8])}. The share of draws in a mode reflects where "
        "the chains started, not its probability.",
        "Use a tempered sampler (`infer.ReplicaExchange` or `infer.SMC`), or far longer chains.",
    )


def _chains(indices: Sequence[int] | np.ndarray) -> str:
    return _listed("chain", indices)


def _listed(noun: str, indices: Sequence[int] | np.ndarray) -> str:
    listed = ", ".join(str(int(i)) for i in indices[:8]) + (", ..." if len(indices) > 8 else "")
    return f"{noun}{'s' * (len(indices) != 1)} {listed}"


CHECKS: dict[str, Callable[[np.ndarray], Finding]] = {
    "warmup_converged": _warmup,
    "diverging": _divergences,
    "energy": _bfmi,
    "acceptance_rate": _acceptance,
    "kinetic_temperature": _temperature,
}
