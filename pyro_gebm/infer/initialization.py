"""Where chains start."""

from collections.abc import Callable
from typing import Any, cast

import pyro.distributions as dist
import torch
from pyro import poutine
from pyro.distributions.torch_distribution import ExpandedDistribution, MaskedDistribution
from pyro.infer.autoguide.initialization import InitMessenger, init_to_uniform

from gebm.validation import mapping, optional
from pyro_gebm.effects import alone
from pyro_gebm.gebm import GEBM, EnergyTiltedPrior

__all__ = ["base_prior", "init_to_prior", "max_plate_nesting"]


def init_to_prior(site: Any = None) -> Any:
    """Initialisation strategy: draw every site from its prior, and GEBM sites from their *base* prior.

    The start of a chain is then a draw of the base, and setting up a chain never runs a sampler. The kernels of
    `infer` use it by default. For Pyro's own kernels write
    `NUTS(model, init_strategy=init_to_prior, max_plate_nesting=k)`, k the number of nested plates: without
    `max_plate_nesting` Pyro runs the model once, unconditioned, to find it. A site whose distribution cannot be
    sampled falls back to `init_to_uniform`.

    Args:
        site: a Pyro site; None returns the strategy itself.

    Returns:
        An initial value of the site.
    """
    if optional(mapping)("site", site) is None:
        return init_to_prior
    try:
        value = base_prior(site["fn"]).sample().detach()
    except NotImplementedError:
        return init_to_uniform(site)
    value._pyro_custom_init = False  # Pyro's own mark
    return value


def max_plate_nesting(model: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> int:
    """Number of nested plates of a model, found without running a sampler of a GEBM."""
    with alone():
        trace = cast(Any, poutine.trace(InitMessenger(init_to_prior)(model)).get_trace(*args, **kwargs))
    sites = (site for site in trace.nodes.values() if site["type"] == "sample")
    dims = [frame.dim for site in sites for frame in site["cond_indep_stack"] if frame.vectorized]
    return -min(dims, default=0)


def base_prior(fn: Any) -> Any:
    """The distribution that a site of the given one would have at beta = 0, without its mask."""
    if isinstance(fn, EnergyTiltedPrior):
        return fn.gebm.latent_prior.expand(fn.batch_shape)
    if isinstance(fn, GEBM):
        return fn.base.expand(fn.batch_shape)
    if isinstance(fn, ExpandedDistribution):
        return base_prior(fn.base_dist).expand(fn.batch_shape)
    if isinstance(fn, torch.distributions.Independent):
        return dist.Independent(base_prior(fn.base_dist), fn.reinterpreted_batch_ndims)
    if isinstance(fn, MaskedDistribution):
        return base_prior(fn.base_dist)
    return fn
