"""Observed sites of a model: their values, and their log-likelihood at draws."""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np
import numpyro
from numpyro.infer import log_likelihood

from numpyro_gebm.effects import alone

__all__ = ["observations"]


@alone()
def observations(
    model: Callable[..., Any],
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any],
    draws: Mapping[str, Any],
    with_log_likelihood: bool = True,
) -> dict[str, dict[str, np.ndarray]]:
    """What ArviZ calls `observed_data` and `log_likelihood`.

    There is no log-likelihood where the draws do not determine it: if a latent site is not among them, or a plate
    takes a subsample.

    Args:
        model: a NumPyro model.
        args: its arguments.
        kwargs: its keyword arguments.
        draws: maps the latent sites to arrays of shape `(chain, draw, ...)`.
        with_log_likelihood: whether to compute it.

    Returns:
        The two groups: arrays by site; those of `log_likelihood` have shape `(chain, draw) + batch shape`.

    Example:
        >>> import numpyro.distributions as dist
        >>> def model(y):
        ...     numpyro.sample("y", dist.Normal(numpyro.sample("z", dist.Normal()), 1.0), obs=y)
        >>> groups = observations(model, (np.zeros(3),), {}, {"z": np.zeros((2, 10))})
        >>> groups["observed_data"]["y"].shape, groups["log_likelihood"]["y"].shape
        ((3,), (2, 10, 3))
    """
    first = numpyro.handlers.substitute(model, data={name: value[0, 0] for name, value in draws.items()})
    trace = numpyro.handlers.trace(numpyro.handlers.seed(first, jax.random.key(0))).get_trace(*args, **kwargs)
    sites = {name: site for name, site in trace.items() if site["type"] == "sample"}
    data = {name: np.asarray(site["value"]) for name, site in sites.items() if site["is_observed"]}
    data = {name: value for name, value in data.items() if value.size}  # that of a `factor` is empty
    latent = {name for name, site in sites.items() if not site["is_observed"]}
    plates = [site["args"] for site in trace.values() if site["type"] == "plate"]
    subsampled = any(taken not in (None, size) for size, taken in plates)
    if not (data and with_log_likelihood) or latent - draws.keys() or subsampled:
        return {"observed_data": data, "log_likelihood": {}}
    values = log_likelihood(model, dict(draws), *args, batch_ndims=2, **kwargs)
    return {"observed_data": data, "log_likelihood": {name: np.asarray(values[name]) for name in data}}
