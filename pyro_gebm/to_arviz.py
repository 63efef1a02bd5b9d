"""Draws and statistics of a chain as ArviZ data."""

from collections.abc import Mapping
from typing import Any, cast

import numpy as np
import torch
from pyro.infer.mcmc.api import AbstractMCMC

from gebm.arviz_data import from_groups, latent_site, predictive_groups
from gebm.validation import instance
from pyro_gebm.decode import decode
from pyro_gebm.gebm import GEBM
from pyro_gebm.observations import observations

__all__ = ["to_arviz"]


def to_arviz(
    mcmc: AbstractMCMC,
    gebm: GEBM | None = None,
    site: str | None = None,
    *,
    log_likelihood: bool = True,
    prior: Mapping[str, Any] | None = None,
    posterior_predictive: Mapping[str, Any] | None = None,
    coords: Mapping[str, Any] | None = None,
    dims: Mapping[str, Any] | None = None,
) -> Any:
    """Draws, every statistic the kernel recorded, E(x), and what the model observed, as ArviZ data.

    `lp` is the log density in unconstrained space, log-Jacobians included. Pyro's own kernels record divergences
    only; the kernels of `infer` record one value a draw of each statistic. `az.plot_energy` and `az.bfmi` need the
    energies that the latter record, `az.loo` and `az.compare` the log-likelihood.

    Args:
        mcmc: a `pyro.infer.MCMC` that has run.
        gebm: adds `energy_x` = E(B(z)) of its latents to the sample statistics.
        site: name of the site that holds the latents of `gebm`; by default the only one that fits.
        log_likelihood: whether to run the model at every draw for the log-likelihood of its observed sites.
        prior: draws of the prior, as `Predictive(model, num_samples=...)` returns them; added as `prior` and
            `prior_predictive`.
        posterior_predictive: one value for each draw, as `Predictive(model, mcmc.get_samples())` returns them.
        coords: coordinates, passed on to ArviZ.
        dims: dimension names, passed on to ArviZ.

    Returns:
        `arviz.InferenceData` (ArviZ before 1.0) or `xarray.DataTree` (from 1.0 on), with the groups `posterior`,
        `sample_stats`, `observed_data` and `log_likelihood` (if the model has observed sites; none if a site that it
        depends on is not among the draws), and those that are passed in.

    Raises:
        ImportError: without ArviZ, naming the extra to install.
        TypeError: if `mcmc` is not a Pyro `MCMC`, or `gebm` no `GEBM`.
        ValueError: if the site of the latents is not given and not unique, or does not fit the GEBM; if
            `posterior_predictive` has another number of draws than the run.

    Example:
        >>> import pyro, pyro.distributions as dist
        >>> from pyro.infer import MCMC, NUTS
        >>> from pyro_gebm import GEBM
        >>> gebm = GEBM(dist.Normal(0.0, 1.0), lambda x: 0.5 * x**2)
        >>> mcmc = MCMC(NUTS(lambda: pyro.sample("z", gebm.latent)), 20, 10, disable_progbar=True)
        >>> mcmc.run()
        >>> sorted(to_arviz(mcmc, gebm)["sample_stats"].data_vars)
        ['diverging', 'energy_x']
    """
    run = cast(Any, instance("mcmc", mcmc, AbstractMCMC, "pyro.infer.MCMC"))  # whose type has no draws
    draws = run.get_samples(group_by_chain=True)
    posterior = _on_host(draws)
    statistics = _statistics(run._diagnostics, next(iter(posterior.values())).shape[:2])
    if gebm is not None:
        instance("gebm", gebm, GEBM)
        statistics["energy_x"] = energy_of_site(gebm, posterior, site)
    groups = predictive_groups(posterior, _on_host(prior), _on_host(posterior_predictive))
    model = getattr(run.kernel, "model", None)
    if model is not None:
        device = getattr(run, "device", None)  # of the chains, where draws were moved to the host
        draws = {name: value.to(device) for name, value in draws.items()}
        groups |= observations(model, run._args, run._kwargs, draws, log_likelihood)
    return from_groups(posterior, statistics, coords=coords, dims=dims, **groups)


def _on_host(draws: Mapping[str, torch.Tensor] | None) -> dict[str, np.ndarray]:
    return {name: value.detach().cpu().numpy() for name, value in (draws or {}).items()}


def _statistics(diagnostics: list[dict[str, Any]], shape: tuple[int, ...]) -> dict[str, np.ndarray]:
    """Arrays of shape (chain, draw) from what each chain's kernel reported."""
    chains = [report.get("sample_stats", {}) for report in diagnostics]
    statistics = {name: np.stack([np.asarray(chain[name]) for chain in chains]) for name in chains[0]}
    if "diverging" not in statistics and "divergences" in diagnostics[0]:
        statistics["diverging"] = np.zeros(shape, bool)
        for chain, report in enumerate(diagnostics):
            statistics["diverging"][chain, report["divergences"]] = True
    return statistics


@torch.no_grad()
def energy_of_site(gebm: GEBM, posterior: Mapping[str, Any], site: str | None = None) -> np.ndarray:
    """E(B(z)) of all draws of the site that holds the latents of a model, 10,000 at once."""
    event_shape = gebm.latent.event_shape
    z = np.asarray(posterior[latent_site(posterior, event_shape, site)])
    energies = torch.cat([gebm.energy(x) for x in decode(gebm, z, 10_000)])
    return energies.reshape(z.shape[: z.ndim - len(event_shape)]).cpu().numpy()
