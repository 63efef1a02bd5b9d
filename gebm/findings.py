"""What `diagnose` looks at, one function each: numbers, a sentence, and advice where it is needed."""

import dataclasses

import numpy as np

from gebm.modes import modes_visited

__all__ = ["CHECKS", "Finding", "check_convergence", "check_modes"]

_MAX_RHAT, _MIN_ESS, _MIN_BFMI, _MIN_ACCEPTANCE = 1.01, 400.0, 0.3, 0.4
_MAX_ROWS = 8_000  # of draws that modes are looked for in
_BLOCK = 64 * 2**20  # bytes read at once


@dataclasses.dataclass(frozen=True)
class Finding:
    """Numbers, the sentence that says what they mean, and what to do if they are bad."""

    numbers: dict
    sentence: str
    advice: str | None = None


def _scalars(name, value):
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


def _arviz():
    try:
        import arviz
    except ImportError as error:
        raise ImportError('diagnose needs ArviZ: `pip install "gebm[arviz]"`.') from error
    return arviz


def _ess(draws, method="bulk"):
    return float(_arviz().ess(draws, method=method))


def _rhat(draws):
    num_chains, num_draws = draws.shape
    if num_chains == 1:  # its halves
        draws = draws[:, : num_draws // 2 * 2].reshape(2, -1)
    with np.errstate(all="ignore"):
        rhat = float(_arviz().rhat(draws))
    return rhat if np.isfinite(rhat) else np.inf


def check_convergence(quantities, step):
    """R-hat and effective sample sizes, the worst of all scalar quantities.

    Args:
        quantities: maps names to arrays of shape (chain, draw, ...).
        step: one draw of how many they are.

    Yields:
        `Finding`s.
    """
    num_nonfinite, rows = 0, []
    for name, draws in (scalar for item in quantities.items() for scalar in _scalars(*item)):
        nonfinite = int((~np.isfinite(draws)).sum())
        num_nonfinite += nonfinite
        if not nonfinite and draws.min() < draws.max():  # a constant tells nothing
            rows.append((name, _rhat(draws), _ess(draws), _ess(draws, "tail")))
    if num_nonfinite:
        yield Finding(
            {"num_nonfinite": num_nonfinite},
            f"{num_nonfinite} values are NaN or infinite; the quantities that hold them are left out below.",
            "Look for them in the draws: the model's density or its energy is not finite there.",
        )
    if not rows:
        yield Finding({}, "No quantity with finite values varies.", "Look at the draws: the chains never moved.")
        return
    rhat, bulk, tail = max(rows, key=lambda r: r[1]), min(rows, key=lambda r: r[2]), min(rows, key=lambda r: r[3])
    numbers = {"max_rhat": rhat[1], "max_rhat_of": rhat[0]}
    says = f"R-hat is {rhat[1]:{'.3f' if rhat[1] < 1000 else '.2g'}} at most ({rhat[0]}):"
    if draws.shape[0] == 1:
        yield Finding(
            numbers,
            f"{says} the halves of the only chain {'agree' if rhat[1] <= _MAX_RHAT else 'differ'}.",
            "Run at least four chains: one cannot show that it found everything.",
        )
    elif rhat[1] > _MAX_RHAT:
        advice = "Do not use the draws as they are: run longer, and if that does not help, look at where chains differ."
        yield Finding(numbers, f"{says} chains do not agree with each other.", advice)
    else:
        yield Finding(numbers, f"{says} chains agree with each other to within {_MAX_RHAT}.")
    yield _ess_finding("bulk", bulk[0], bulk[2], step, "means")
    yield _ess_finding("tail", tail[0], tail[3], step, "5 % and 95 % quantiles")


def _ess_finding(kind, name, ess, step, what):
    numbers = {f"min_ess_{kind}": ess, f"min_ess_{kind}_of": name}
    thinned = f", counted on one draw of {step}" if step > 1 else ""
    sentence = f"The {kind} effective sample size is {ess:.0f} at least ({name}{thinned}): so many independent draws"
    if ess >= _MIN_ESS:
        return Finding(numbers, f"{sentence} would give {what} as well.")
    factor = max(2, int(np.ceil(_MIN_ESS / max(ess, 1.0))))
    return Finding(
        numbers,
        f"{sentence} would give {what} as well, fewer than {_MIN_ESS:.0f}.",
        f"Run {f'about {factor} times' if factor <= 20 else 'much'} longer, or use a kernel that moves farther.",
    )


def _divergences(diverging):
    count = int(diverging.sum())
    numbers = {"num_divergences": count}
    if not count:
        return Finding(numbers, "No divergences: the integrator followed the density everywhere it went.")
    return Finding(
        numbers,
        f"{count} divergence{'s' * (count > 1)} ({100 * diverging.mean():.2g} % of the draws): the integrator failed "
        "where the density bends most, and draws are missing there.",
        "Use a smaller step size (a higher target acceptance), or look at where they are.",
    )


def _bfmi(energy):
    energy = energy.astype(float)
    variance = energy.var(axis=1)
    bfmi = np.mean(np.diff(energy, axis=1) ** 2, axis=1) / np.where(variance > 0, variance, np.inf)
    numbers = {"bfmi": tuple(bfmi.tolist())}
    low, says = np.flatnonzero(~(bfmi >= _MIN_BFMI)), f"BFMI is {bfmi.min():.2f} at least:"
    if not len(low):
        return Finding(numbers, f"{says} fresh momenta move the chains freely across energies.")
    if _ess(energy) >= _MIN_ESS:  # of a kernel with persistent momentum
        return Finding(numbers, f"{says} energies change slowly from draw to draw, but often enough in all.")
    return Finding(
        numbers,
        f"{says} in {_chains(low)} momenta are too small to reach the high and low energies.",
        "Reparametrise the model, or run longer.",
    )


def _acceptance(rate):
    mean = float(rate.mean())
    numbers, says = {"acceptance_rate": mean}, f"The mean acceptance rate is {mean:.2f}:"
    if not mean >= _MIN_ACCEPTANCE:
        return Finding(numbers, f"{says} most moves are wasted.", "Use a smaller step size or a longer warm-up.")
    return Finding(numbers, f"{says} {'steps could be longer' if mean > 0.98 else 'steps are neither long nor short'}.")


def _temperature(temperature):
    temperature = temperature.astype(float)
    mean = float(temperature.mean())
    mcse = float(temperature.std(ddof=1) / np.sqrt(max(_ess(temperature, "mean"), 1.0)))
    numbers = {"kinetic_temperature": mean, "kinetic_temperature_mcse": mcse}
    says = f"The kinetic temperature is {mean:.3f} ± {mcse:.3f}, and 1 without discretisation bias:"
    if not abs(mean - 1) <= max(4 * mcse, 0.02):
        return Finding(
            numbers,
            f"{says} steps are too long for a kernel without accept step, and the draws are biased.",
            "Use a smaller step size, or the adjusted kernel.",
        )
    return Finding(numbers, f"{says} no bias is seen.")


def _warmup(converged):
    converged = converged.astype(bool).reshape(len(converged), -1).all(axis=1)
    numbers, failed = {"warmup_converged": tuple(converged.tolist())}, np.flatnonzero(~converged)
    if not len(failed):
        return Finding(numbers, "The warm-up of every chain stopped because it had converged.")
    return Finding(
        numbers,
        f"The warm-up of {_chains(failed)} had not converged when it ended: step size or energy were still changing.",
        "Run a longer warm-up.",
    )


def check_modes(quantities):
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


def _modes_finding(found):
    num_modes = found.shares.shape[1]
    numbers = {"num_modes": num_modes, "modes_along": found.along, "modes_visited": found.visited}
    if num_modes == 1:
        return Finding(numbers, "One mode is seen, and every chain is in it; modes that no chain found cannot be seen.")
    says = f"{num_modes} modes are seen (along {found.along});"
    missing = [chain for chain, modes in enumerate(found.missing) if modes]
    if not missing:
        return Finding(numbers, f"{says} every chain visits them as often as can be expected.")
    groups = {}
    for chain in missing:
        groups.setdefault(found.visited[chain], []).append(chain)
    listed = [
        f"{_chains(chains)} visit{'s' * (len(chains) == 1)} {_listed('mode', modes) if modes else 'none of them'}"
        for modes, chains in sorted(groups.items(), key=lambda item: len(item[1]))
    ]
    return Finding(
        numbers,
        f"{says} not every chain visits all of them: {'; '.join(listed[:8])}. How often a mode is drawn then says "
        "where chains started, not what it weighs.",
        "Run a sampler on a ladder of temperatures, which moves between modes, or much longer chains.",
    )


def _chains(indices):
    return _listed("chain", indices)


def _listed(noun, indices):
    listed = ", ".join(str(int(i)) for i in indices[:8]) + (", ..." if len(indices) > 8 else "")
    return f"{noun}{'s' * (len(indices) != 1)} {listed}"


CHECKS = {
    "warmup_converged": _warmup,
    "diverging": _divergences,
    "energy": _bfmi,
    "acceptance_rate": _acceptance,
    "kinetic_temperature": _temperature,
}
