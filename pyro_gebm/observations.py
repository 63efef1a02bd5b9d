"""Observed sites of a model: their values, and their log-likelihood at draws."""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from pyro import poutine
from pyro.distributions.torch_distribution import MaskedDistribution
from pyro.distributions.util import scale_and_mask
from pyro.poutine.subsample_messenger import _Subsample

from pyro_gebm.base import without_validation
from pyro_gebm.effects import alone

__all__ = ["observations"]

#: Draws that a model is run at together.
_CHUNK = 100


@torch.no_grad()
def observations(
    model: Callable[..., Any],
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any],
    draws: Mapping[str, torch.Tensor],
    with_log_likelihood: bool = True,
) -> dict[str, dict[str, np.ndarray]]:
    """What ArviZ calls `observed_data` and `log_likelihood`.

    There is no log-likelihood where the draws do not determine it: if a latent site is not among them, or a plate
    takes a subsample. Draws are run together by `torch.func.vmap`, or one by one if the model cannot be batched.

    Args:
        model: a Pyro model.
        args: its arguments.
        kwargs: its keyword arguments.
        draws: maps the latent sites to tensors of shape `(chain, draw, ...)`.
        with_log_likelihood: whether to compute it.

    Returns:
        The two groups: arrays by site; those of `log_likelihood` have shape `(chain, draw) + batch shape`.

    Example:
        >>> import pyro, pyro.distributions as dist
        >>> def model(y):
        ...     pyro.sample("y", dist.Normal(pyro.sample("z", dist.Normal(0.0, 1.0)), 1.0), obs=y)
        >>> groups = observations(model, (torch.zeros(3),), {}, {"z": torch.zeros(2, 10)})
        >>> groups["observed_data"]["y"].shape, groups["log_likelihood"]["y"].shape
        ((3,), (2, 10, 3))
    """

    def sites(values: Mapping[str, torch.Tensor]) -> dict[str, Any]:
        with alone():
            trace: Any = poutine.trace(poutine.condition(model, data=dict(values))).get_trace(*args, **kwargs)
        return {name: site for name, site in trace.nodes.items() if site["type"] == "sample"}

    def of_one_draw(values: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        at = sites(values)
        terms = {name: without_validation(at[name]["fn"]).log_prob(at[name]["value"]) for name in data}
        return {name: scale_and_mask(term, mask=at[name]["mask"]) for name, term in terms.items()}

    first = sites({name: value[0, 0] for name, value in draws.items()})
    data = {name: site["value"] for name, site in first.items() if name not in draws and _is_data(site)}
    groups = {"observed_data": {name: value.cpu().numpy() for name, value in data.items()}, "log_likelihood": {}}
    plates = [site["fn"] for site in first.values() if isinstance(site["fn"], _Subsample)]
    latent = [site for site in first.values() if not site["is_observed"] and not isinstance(site["fn"], _Subsample)]
    subsampled = any(plate.subsample_size not in (None, plate.size) for plate in plates)
    if not (data and with_log_likelihood) or latent or subsampled:
        return groups
    shape = next(iter(draws.values())).shape[:2]
    flat = {name: value.flatten(0, 1) for name, value in draws.items()}
    with alone(validate=False):
        try:
            values = torch.func.vmap(of_one_draw, chunk_size=_CHUNK, randomness="different")(flat)
        except RuntimeError:  # such as from `.item()` in the model
            each = [of_one_draw({name: value[i] for name, value in flat.items()}) for i in range(shape.numel())]
            values = {name: torch.stack([of[name] for of in each]) for name in data}
    groups["log_likelihood"] = {name: value.unflatten(0, shape).cpu().numpy() for name, value in values.items()}
    return groups


def _is_data(site: Mapping[str, Any]) -> bool:
    """Whether a site is observed; `factor` has an empty value, and a deterministic site a density that is masked."""
    deterministic = isinstance(site["fn"], MaskedDistribution) and site["fn"]._mask is False
    return site["is_observed"] and not deterministic and site["value"].numel() > 0
