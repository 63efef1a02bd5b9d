"""Draws and statistics as ArviZ data, for ArviZ 0.23 and 1.x."""

import warnings
from collections.abc import Mapping, Sequence
from typing import Any, Final

__all__ = ["from_groups", "latent_site", "named_statistics"]

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
) -> Any:
    """Arrays of draws as ArviZ data.

    Args:
        posterior: maps the name of a site to an array of shape `(chain, draw) + shape of one draw`.
        sample_stats: the same, for the statistics of the sampler.
        coords: coordinates, handed on to ArviZ.
        dims: dimension names, handed on to ArviZ.

    Returns:
        `arviz.InferenceData` (ArviZ before 1.0) or `xarray.DataTree` (from 1.0 on).

    Raises:
        ImportError: without ArviZ, naming the extra to install.
    """
    arviz: Any  # two generations with different signatures
    try:
        import arviz
    except ImportError as error:
        raise ImportError('to_arviz needs ArviZ: `pip install "gebm[arviz]"`.') from error
    groups = {"posterior": posterior, **({"sample_stats": sample_stats} if sample_stats else {})}
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "More chains", UserWarning)  # many short chains are no mistake here
        if int(arviz.__version__.split(".")[0]) >= 1:
            return arviz.from_dict(groups, coords=coords, dims=dims)
        return arviz.from_dict(**groups, coords=coords, dims=dims)


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
