"""A verdict in words on a run of a sampler."""

import dataclasses
import textwrap
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy as np

from gebm.findings import CHECKS, Finding, check_convergence, check_modes

__all__ = ["Diagnosis", "diagnose"]

_MAX_VALUES = 400_000  # of one scalar quantity: more are thinned for R-hat and ESS


@dataclasses.dataclass(frozen=True, repr=False)
class Diagnosis:
    """What `diagnose` found. Its text is the report; None stands for a statistic that was not recorded.

    Attributes:
        num_chains: number of chains.
        num_draws: draws of each chain.
        max_rhat: largest R-hat of all scalar quantities, that of `max_rhat_of`.
        min_ess_bulk: smallest bulk effective sample size, that of `min_ess_bulk_of`.
        min_ess_tail: smallest tail effective sample size, that of `min_ess_tail_of`.
        num_nonfinite: values of scalar quantities that are NaN or infinite.
        num_divergences: number of divergent transitions.
        bfmi: Bayesian fraction of missing information of each chain.
        acceptance_rate: mean acceptance rate.
        kinetic_temperature: mean of |v|²/d, 1 for a sampler without discretisation bias.
        kinetic_temperature_mcse: its Monte Carlo standard error.
        warmup_converged: for each chain, whether its warm-up met its stopping rule.
        num_modes: number of modes found along `modes_along`.
        modes_along: the direction that modes are reported for.
        modes_visited: for each chain, the modes where it spent at least 1 % of its draws.
        warnings: what is wrong, each with what to do about it; empty if nothing is.
        report: the text.
    """

    num_chains: int
    num_draws: int
    max_rhat: float = np.nan
    max_rhat_of: str = ""
    min_ess_bulk: float = np.nan
    min_ess_bulk_of: str = ""
    min_ess_tail: float = np.nan
    min_ess_tail_of: str = ""
    num_nonfinite: int = 0
    num_divergences: int | None = None
    bfmi: tuple[float, ...] | None = None
    acceptance_rate: float | None = None
    kinetic_temperature: float | None = None
    kinetic_temperature_mcse: float | None = None
    warmup_converged: tuple[bool, ...] | None = None
    num_modes: int | None = None
    modes_along: str | None = None
    modes_visited: tuple[tuple[int, ...], ...] | None = None
    warnings: list[str] = dataclasses.field(default_factory=list)
    report: str = ""

    def __repr__(self) -> str:
        return self.report


def diagnose(data: Any, energy: Callable[[Mapping[str, Any]], np.ndarray] | None = None) -> Diagnosis:
    """Whether the draws of any sampler can be trusted, in words, and what to do if not.

    Of more than 400,000 draws in all, R-hat and effective sample sizes are those of every k-th (the report says so);
    modes are looked for in some 8,000.

    Args:
        data: `arviz.InferenceData` or `xarray.DataTree` with a group `posterior`, and `sample_stats` if there are any.
        energy: makes `energy_x` of the posterior (names to arrays), if it is not in the data.

    Returns:
        A `Diagnosis`; `print` it.

    Raises:
        ImportError: without ArviZ, naming the extra to install.
        ValueError: if there is no posterior, or fewer than 8 draws of each chain.

    Example:
        >>> from gebm.arviz_data import from_groups
        >>> diagnose(from_groups({"z": np.random.default_rng(0).normal(size=(4, 500, 2))}))
        4 chains of 500 draws: no problems found.
        ok Largest R-hat is 1.001 (z[1]); at most 1.01 is recommended.
        ok Smallest bulk ESS is 1712 (z[0]); at least 400 is recommended.
        ok Smallest tail ESS is 1820 (z[0]); at least 400 is recommended.
        ok One mode found, visited by every chain. A mode that no chain found cannot be detected.
    """
    posterior, statistics = _group(data, "posterior"), _group(data, "sample_stats")
    if not posterior:
        raise ValueError("Expected data with a posterior; got none. Pass what `to_arviz` or `read_draws` returned.")
    num_chains, num_draws = next(iter(posterior.values())).shape[:2]
    if num_draws < 8:
        raise ValueError(f"Expected at least 8 draws of each chain; got {num_draws}. Draw more.")
    step = -(-num_chains * num_draws // _MAX_VALUES)
    quantities = {name: value[:, ::step] for name, value in posterior.items()}
    if energy is not None and "energy_x" not in statistics:
        quantities["energy_x"] = energy(quantities)
    quantities |= {name: statistics[name][:, ::step] for name in ("energy_x", "lp") if name in statistics}
    findings = [
        *check_convergence(quantities, step),
        *(check(np.asarray(statistics[name])) for name, check in CHECKS.items() if name in statistics),
        *check_modes(quantities),
    ]
    return _diagnosis(num_chains, num_draws, findings)


def _diagnosis(num_chains: int, num_draws: int, findings: Iterable[Finding]) -> Diagnosis:
    numbers = {name: value for finding in findings for name, value in finding.numbers.items()}
    warnings = [f"{finding.sentence} {finding.advice}" for finding in findings if finding.advice]
    verdict = f"{len(warnings)} warning{'s' * (len(warnings) != 1)}" if warnings else "no problems found"
    lines = [f"{num_chains} chain{'s' * (num_chains != 1)} of {num_draws} draws: {verdict}."]
    for finding in findings:
        mark, text = ("!! ", f"{finding.sentence} {finding.advice}") if finding.advice else ("ok ", finding.sentence)
        lines.append(textwrap.fill(text, 100, initial_indent=mark, subsequent_indent="   "))
    return Diagnosis(num_chains, num_draws, **numbers, warnings=warnings, report="\n".join(lines))


def _group(data: Any, name: str) -> dict[str, Any]:
    """Arrays of a group of `InferenceData` or `DataTree`, read when they are indexed."""
    try:
        return {key: value.variable for key, value in data[name].data_vars.items()}
    except KeyError:
        return {}
