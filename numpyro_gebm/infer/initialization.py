"""Where chains start."""

from functools import partial
from typing import Any

import numpyro.distributions as dist
from numpyro.infer import init_to_uniform

from gebm.validation import mapping, optional
from numpyro_gebm.gebm import GEBM, EnergyTiltedPrior

__all__ = ["base_prior", "init_to_prior"]


def init_to_prior(site: Any = None) -> Any:
    """Initialisation strategy: draw every site from its prior, and GEBM sites from their *base* prior.

    The start of a chain is then a draw of the base, and setting up a chain never runs a sampler. Use it as
    `NUTS(model, init_strategy=init_to_prior)`; the kernels of `infer` use it by default. A site whose distribution
    cannot be sampled falls back to `init_to_uniform`.

    Args:
        site: a NumPyro site; None returns the strategy itself.

    Returns:
        An initial value of the site.
    """
    if optional(mapping)("site", site) is None:
        return partial(init_to_prior)
    if site["type"] != "sample" or site["is_observed"] or site["fn"].support.is_discrete:
        return None
    if site["value"] is not None:
        return site["value"]
    try:
        return base_prior(site["fn"])(
            rng_key=site["kwargs"].get("rng_key"), sample_shape=site["kwargs"].get("sample_shape") or ()
        )
    except NotImplementedError:
        return init_to_uniform(site)


def base_prior(fn: Any) -> Any:
    """The distribution that a site of the given one would have at beta = 0, without its mask."""
    if isinstance(fn, EnergyTiltedPrior):
        return fn.gebm.latent_prior.expand(fn.batch_shape)
    if isinstance(fn, GEBM):
        return fn.base.expand(fn.batch_shape)
    if isinstance(fn, dist.ExpandedDistribution):
        return base_prior(fn.base_dist).expand(fn.batch_shape)
    if isinstance(fn, dist.Independent):
        return base_prior(fn.base_dist).to_event(fn.reinterpreted_batch_ndims)
    if isinstance(fn, dist.MaskedDistribution):
        return base_prior(fn.base_dist)
    return fn
