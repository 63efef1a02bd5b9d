"""Draws and statistics of a chain as ArviZ data."""

from collections.abc import Mapping
from functools import partial
from typing import Any

import jax
import numpy as np
from jax import lax
from numpyro.infer.mcmc import MCMC

from gebm.arviz_data import from_groups, latent_site, named_statistics, predictive_groups
from gebm.validation import instance
from numpyro_gebm.callables import over_batch
from numpyro_gebm.devices import on_host
from numpyro_gebm.gebm import GEBM
from numpyro_gebm.observations import observations

__all__ = ["to_arviz"]


def to_arviz(
    mcmc: MCMC,
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

    `lp` is the log density in unconstrained space, log-Jacobians included. NumPyro's own kernels record what
    `mcmc.run(..., extra_fields=...)` asks for ("potential_energy", "energy", "num_steps", "accept_prob",
    "adapt_state.step_size"); the kernels of `infer` record theirs always. `az.plot_energy` and `az.bfmi` need
    "energy", `az.loo` and `az.compare` the log-likelihood.

    Args:
        mcmc: a `numpyro.infer.MCMC` that has run.
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
        TypeError: if `mcmc` is not a NumPyro `MCMC`, or `gebm` no `GEBM`.
        ValueError: if the site of the latents is not given and not unique, or does not fit the GEBM; if
            `posterior_predictive` has another number of draws than the run.

    Example:
        >>> import jax, numpyro, numpyro.distributions as dist
        >>> from numpyro.infer import MCMC, NUTS
        >>> from numpyro_gebm import GEBM
        >>> gebm = GEBM(dist.Normal(0.0, 1.0), lambda x: 0.5 * x**2)
        >>> mcmc = MCMC(NUTS(lambda: numpyro.sample("z", gebm.latent)), num_warmup=10, num_samples=20,
        ...             progress_bar=False)
        >>> mcmc.run(jax.random.key(0), extra_fields=("energy",))
        >>> sorted(to_arviz(mcmc, gebm)["sample_stats"].data_vars)
        ['diverging', 'energy', 'energy_x']
    """
    instance("mcmc", mcmc, MCMC, "numpyro.infer.MCMC")
    draws = mcmc.get_samples(group_by_chain=True)
    posterior = {name: on_host(value) for name, value in named_arrays(draws, site or "z").items()}
    fields = mcmc.get_extra_fields(group_by_chain=True)
    arrays = {name: on_host(value) for name, value in fields.items() if hasattr(value, "shape")}
    statistics = named_statistics(arrays)
    if gebm is not None:
        instance("gebm", gebm, GEBM)
        statistics["energy_x"] = energy_of_site(gebm, posterior, site)
    groups = predictive_groups(posterior, _on_host(prior), _on_host(posterior_predictive))
    model = getattr(mcmc.sampler, "model", None)
    if model is not None:
        groups |= observations(model, mcmc._args or (), mcmc._kwargs or {}, draws, log_likelihood)
    return from_groups(posterior, statistics, coords=coords, dims=dims, **groups)


def _on_host(draws: Mapping[str, Any] | None) -> dict[str, np.ndarray]:
    return {name: np.asarray(value) for name, value in (draws or {}).items()}


def named_arrays(draws: Any, name: str = "z") -> dict[str, Any]:
    """The arrays of a pytree of draws by name; a pytree that is not a dict is called `name`."""
    leaves = jax.tree_util.tree_flatten_with_path(draws if isinstance(draws, dict) else {name: draws})[0]
    return {jax.tree_util.keystr(path, simple=True, separator="."): leaf for path, leaf in leaves}


def energy_of_site(gebm: GEBM, posterior: Mapping[str, Any], site: str | None = None) -> np.ndarray:
    """E(B(z)) of all draws of the site that holds the latents of a model, 10,000 at once."""
    event_shape = gebm.latent.event_shape
    z = np.asarray(posterior[latent_site(posterior, event_shape, site)])
    flat = z.reshape(-1, *event_shape)
    return np.asarray(_energy_of_flat(gebm, flat, min(10_000, len(flat)))).reshape(z.shape[: z.ndim - len(event_shape)])


@partial(jax.jit, static_argnums=2)
def _energy_of_flat(gebm: GEBM, flat: jax.Array, batch_size: int) -> jax.Array:
    return lax.map(lambda z: over_batch(gebm.energy, gebm.decode(z), gebm.event_dim), flat, batch_size=batch_size)
