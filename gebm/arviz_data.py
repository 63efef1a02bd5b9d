"""Draws and statistics as ArviZ data, for ArviZ 0.23 and 1.x."""

import warnings
from collections.abc import Mapping, Sequence
from typing import Any, Final

from gebm.extras import extra

__all__ = ["from_datasets", "from_groups", "latent_site", "named_statistics", "predictive_groups"]

#: Fields of the state of a kernel, as NumPyro names them, and what ArviZ calls them.
STATISTICS: Final = {
    "accept_prob": "acceptance_rate",
    "adapt_state.step_size": "step_size",
    "adapt_state.warmup_converged": "warmup_converged",
    "num_steps": "n_steps",
    "potential_energy": "lp",
}


def from_groups(
    posterior: Mapping[str, Any],
    sample_stats: Mapping[str, Any] | None = None,
    *,
    coords: Mapping[str, Any] | None = None,
    dims: Mapping[str, Any] | None = None,
    **others: Mapping[str, Any],
) -> Any:
    """Arrays of draws as ArviZ data.

    Args:
        posterior: maps the name of a site to an array of shape `(chain, draw) + shape of one draw`.
        sample_stats: the same, for the statistics of the sampler.
        coords: coordinates, handed on to ArviZ.
        dims: dimension names, handed on to ArviZ.
        others: further groups by the names that ArviZ has for them; empty ones are left out.

    Returns:
        `arviz.InferenceData` (ArviZ before 1.0) or `xarray.DataTree` (from 1.0 on).

    Raises:
        ImportError: without ArviZ, naming the extra to install.
    """
    arviz = extra("arviz", "arviz", "to_arviz")  # two generations with different signatures
    groups = {"posterior": posterior, "sample_stats": sample_stats} | others
    groups = {name: group for name, group in groups.items() if group}
    with warnings.catch_warnings():  # many short chains are no mistake here
        warnings.filterwarnings("ignore", "More chains|Found chain dimension to be longer", UserWarning)
        if int(arviz.__version__.split(".")[0]) >= 1:
            return arviz.from_dict(groups, coords=coords, dims=dims)
        return arviz.from_dict(**groups, coords=coords, dims=dims)


def from_datasets(groups: Mapping[str, Any]) -> Any:
    """Datasets of xarray as ArviZ data; what they have not read yet stays unread.

    Args:
        groups: datasets by the names of their groups.

    Returns:
        `arviz.InferenceData` (ArviZ before 1.0) or `xarray.DataTree` (from 1.0 on).

    Raises:
        ImportError: without ArviZ, naming the extra to install.
    """
    arviz = extra("arviz", "arviz", "read_draws")
    if int(arviz.__version__.split(".")[0]) >= 1:
        return extra("xarray", "arviz", "read_draws").DataTree.from_dict(dict(groups))
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "More chains|Found chain dimension to be longer", UserWarning)
        return arviz.InferenceData(**groups)


def predictive_groups(
    posterior: Mapping[str, Any],
    prior: Mapping[str, Any] | None,
    posterior_predictive: Mapping[str, Any] | None,
) -> dict[str, dict[str, Any]]:
    """The groups of draws that `Predictive` makes.

    Args:
        posterior: maps names to arrays of shape `(chain, draw) + shape of one draw`.
        prior: maps names to arrays of shape `(number,) + shape of one draw`.
        posterior_predictive: maps names to arrays with one value for each draw of the posterior: their first axis, or
            their first two, are those of the draws.

    Returns:
        `prior` (sites of the posterior), `prior_predictive` (the others) and `posterior_predictive`, by group.

    Raises:
        ValueError: if the posterior predictive has another number of draws than the posterior.

    Example:
        >>> import numpy as np
        >>> groups = predictive_groups({"z": np.zeros((2, 5))}, {"z": np.zeros(9), "y": np.zeros((9, 3))}, None)
        >>> groups["prior"]["z"].shape, groups["prior_predictive"]["y"].shape
        ((1, 9), (1, 9, 3))
    """
    grouped: dict[str, dict[str, Any]] = {"prior": {}, "prior_predictive": {}, "posterior_predictive": {}}
    for name, value in (prior or {}).items():
        grouped["prior" if name in posterior else "prior_predictive"][name] = value[None]
    chains, draws = next(iter(posterior.values())).shape[:2]
    for name, value in (posterior_predictive or {}).items():
        if value.shape[:2] != (chains, draws):
            if value.shape[:1] != (chains * draws,):
                raise ValueError(
                    f"Expected posterior_predictive[{name!r}] with one value for each of {chains} x {draws} draws; got "
                    f"shape {tuple(value.shape)}. Make it by `Predictive(model, mcmc.get_samples())`."
                )
            value = value.reshape(chains, draws, *value.shape[1:])
        grouped["posterior_predictive"][name] = value
    return grouped


def latent_site(posterior: Mapping[str, Any], event_shape: Sequence[int], site: str | None = None) -> str:
    """Name of the site whose draws are latents of a model.

    Args:
        posterior: maps names to arrays of shape `(chain, draw) + shape of one draw`.
        event_shape: shape of one latent.
        site: its name, where the caller gave one.

    Returns:
        The name.

    Raises:
        ValueError: if there is not exactly one candidate, or `site` is not among them.
    """
    shape = tuple(event_shape)
    fits = [n for n, v in posterior.items() if v.shape[v.ndim - len(shape) :] == shape and v.ndim >= 2 + len(shape)]
    if site is None:  # `x_latent` is the site, and `x` what it was decoded to
        fits = [name for name in fits if f"{name}_latent" not in fits]
    if site is None and len(fits) != 1:
        raise ValueError(f"Expected one site with latents of shape {shape}; got {sorted(posterior)}. Pass `site=`.")
    if site is not None and site not in fits:
        raise ValueError(f"Expected a site with latents of shape {shape} at site={site!r}; got sites {sorted(fits)}.")
    return fits[0] if site is None else site


def named_statistics(fields: Mapping[str, Any]) -> dict[str, Any]:
    """Fields of the state of a kernel by the names that ArviZ gives them; `lp` is minus the potential.

    Args:
        fields: maps paths in the state to arrays.

    Returns:
        The arrays by name.

    Example:
        >>> import numpy as np
        >>> named_statistics({"potential_energy": np.array([1.5]), "num_steps": np.array([10])})
        {'lp': array([-1.5]), 'n_steps': array([10])}
    """
    statistics = {STATISTICS.get(name, name): value for name, value in fields.items()}
    return statistics | ({"lp": -statistics["lp"]} if "lp" in statistics else {})
