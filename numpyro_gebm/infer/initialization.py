"""Where chains start."""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import numpyro.distributions as dist
from numpyro import handlers
from numpyro.infer import init_to_uniform

from gebm.validation import mapping, optional
from numpyro_gebm.gebm import GEBM, EnergyTiltedPrior

__all__ = ["base_prior", "fixed_sites", "init_to_prior", "is_latent"]


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


def is_latent(site: dict[str, Any]) -> bool:
    """Whether a site of a trace is drawn and not observed."""
    return site["type"] == "sample" and not site["is_observed"]


def fixed_sites(
    model: Callable[..., Any], init_strategy: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
) -> dict[str, Any]:
    """Check that a kernel can move all latent sites of a model, without running it; values of what it does not move.

    Args:
        model: a NumPyro model.
        init_strategy: gives the sites their values.
        args: arguments of the model.
        kwargs: its keyword arguments.

    Returns:
        Values of the parameters of its modules, by name; for these alone the model is run.

    Raises:
        ValueError: for no latent site, or one that is discrete or has a delta distribution.
    """
    started = handlers.substitute(handlers.seed(model, jax.random.key(0)), substitute_fn=init_strategy)
    found = {}
    jax.eval_shape(lambda: found.update(handlers.trace(started).get_trace(*args, **kwargs)))
    for name, site in found.items():
        if is_latent(site) and site["fn"].support.is_discrete:
            raise ValueError(
                f"Expected continuous latent sites; site '{name}' ({type(site['fn']).__name__}) is discrete. "
                "Marginalise it out in the model, or use NumPyro's NUTS, which enumerates."
            )
        if is_latent(site) and isinstance(site["fn"], dist.Delta):
            raise ValueError(f"Expected a density at site '{name}'; got a Delta. Use `numpyro.deterministic`.")
    if not any(map(is_latent, found.values())):
        raise ValueError(f"Expected a model with latent sites; got {sorted(found)}.")
    kinds = ("param", "mutable")
    if not any(site["type"] in kinds for site in found.values()):
        return {}
    trace = handlers.trace(started).get_trace(*args, **kwargs)
    return {name: site["value"] for name, site in trace.items() if site["type"] in kinds}


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
