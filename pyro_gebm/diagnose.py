"""A verdict in words on a run of a sampler."""

import dataclasses
import textwrap

import numpy as np

from gebm.arviz_data import latent_site
from gebm.findings import CHECKS, check_convergence, check_modes
from pyro_gebm.to_arviz import _energy_of_latents, to_arviz

__all__ = ["Diagnosis", "diagnose"]

_MAX_VALUES = 400_000  # of one scalar quantity: more are thinned for R-hat and ESS


@dataclasses.dataclass(frozen=True)
class Diagnosis:
    """What `diagnose` found; None stands for a number whose statistic was not recorded.

    Attributes:
        num_chains: number of chains.
        num_draws: draws of each chain.
        max_rhat: largest R-hat over all scalar quantities, that of `max_rhat_of`.
        min_ess_bulk: smallest bulk effective sample size, that of `min_ess_bulk_of`.
        min_ess_tail: smallest tail effective sample size, that of `min_ess_tail_of`.
        num_nonfinite: draws of scalar quantities that are not finite.
        num_divergences: draws that ended a diverging trajectory.
        bfmi: Bayesian fraction of missing information of each chain.
        acceptance_rate: mean acceptance rate.
        kinetic_temperature: mean of |v|²/d, 1 for a sampler without bias.
        kinetic_temperature_mcse: its Monte Carlo standard error.
        warmup_converged: for each chain, whether its warm-up stopped on its rule.
        num_modes: number of modes seen along `modes_along`.
        modes_along: the direction that modes are reported for.
        modes_visited: for each chain, the modes where it spent at least 1 % of its draws.
        warnings: a sentence for everything that is wrong, and what to do.
        report: what was printed.
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
    bfmi: tuple | None = None
    acceptance_rate: float | None = None
    kinetic_temperature: float | None = None
    kinetic_temperature_mcse: float | None = None
    warmup_converged: tuple | None = None
    num_modes: int | None = None
    modes_along: str | None = None
    modes_visited: tuple | None = None
    warnings: list = dataclasses.field(default_factory=list)
    report: str = dataclasses.field(default="", repr=False)


def diagnose(data, *, gebm=None, site=None, print_report=True):
    """Say in words whether the draws of a run can be trusted, and what to do if not.

    R-hat and effective sample size of every scalar quantity of the posterior and of `energy_x` and `lp`; divergences,
    BFMI, acceptance, bias of unadjusted kernels, warm-up, and the modes that each chain visited. A statistic that was
    not recorded is left out.

    R-hat and effective sample sizes are those of every k-th draw where there are more than 400,000 draws in all (the
    report says so), and modes are looked for in some 8,000 of them.

    Args:
        data: an MCMC object that `to_arviz` takes, or what `to_arviz` or `read_draws` returned.
        gebm: adds `energy_x` = E(B(z)), if it is not in the data.
        site: name of the site that holds the latents of `gebm`; found by itself where there is only one candidate.
        print_report: whether to print the report.

    Returns:
        A `Diagnosis`: the numbers, and a list of warnings that is empty when nothing is wrong.

    Raises:
        ImportError: without ArviZ, naming the extra to install.
        TypeError: if `data` is neither an MCMC object nor ArviZ data.
        ValueError: if there is no posterior, or fewer than 8 draws of each chain.

    Example:
        >>> from gebm.arviz_data import from_groups
        >>> data = from_groups({"z": np.random.default_rng(0).normal(size=(4, 500, 2))})
        >>> found = diagnose(data, print_report=False)
        >>> found.num_modes, found.warnings
        (1, [])
    """
    if not hasattr(data, "groups"):
        data = to_arviz(data, gebm, site)
    posterior, statistics = _group(data, "posterior"), _group(data, "sample_stats")
    if not posterior:
        raise ValueError("Expected data with a posterior; got none. Pass what `to_arviz` or `read_draws` returned.")
    num_chains, num_draws = next(iter(posterior.values())).shape[:2]
    if num_draws < 8:
        raise ValueError(f"Expected at least 8 draws of each chain; got {num_draws}. Draw more.")
    step = -(-num_chains * num_draws // _MAX_VALUES)
    quantities = {name: value[:, ::step] for name, value in posterior.items()}
    if gebm is not None and "energy_x" not in statistics:
        z = quantities[latent_site(quantities, gebm.latent.event_shape, site)]
        quantities["energy_x"] = _energy_of_latents(gebm, np.asarray(z))
    quantities |= {name: statistics[name][:, ::step] for name in ("energy_x", "lp") if name in statistics}
    findings = [
        *check_convergence(quantities, step),
        *(check(np.asarray(statistics[name])) for name, check in CHECKS.items() if name in statistics),
        *check_modes(quantities),
    ]
    return _diagnosis(num_chains, num_draws, findings, print_report)


def _diagnosis(num_chains, num_draws, findings, print_report):
    numbers = {name: value for finding in findings for name, value in finding.numbers.items()}
    warnings = [f"{finding.sentence} {finding.advice}" for finding in findings if finding.advice]
    verdict = f"{len(warnings)} warning{'s' * (len(warnings) != 1)}" if warnings else "nothing wrong found"
    lines = [f"{num_chains} chain{'s' * (num_chains != 1)} of {num_draws} draws: {verdict}."]
    for finding in findings:
        mark, text = ("!! ", f"{finding.sentence} {finding.advice}") if finding.advice else ("ok ", finding.sentence)
        lines.append(textwrap.fill(text, 100, initial_indent=mark, subsequent_indent="   "))
    report = "\n".join(lines)
    if print_report:
        print(report)
    return Diagnosis(num_chains, num_draws, **numbers, warnings=warnings, report=report)


def _group(data, name):
    """Arrays of a group of `InferenceData` or `DataTree`, read when they are indexed."""
    try:
        return {key: value.variable for key, value in data[name].data_vars.items()}
    except KeyError:
        return {}
