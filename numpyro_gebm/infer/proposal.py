"""Fresh draws of the latent sites of a model, in unconstrained space, and their density: what global moves propose."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import random
from numpyro import handlers
from numpyro.distributions import Distribution, biject_to
from numpyro.infer.util import constrain_fn

from numpyro_gebm.infer.initialization import base_prior

__all__ = ["Proposal", "of_distributions", "of_prior"]


class Proposal(NamedTuple):
    """A law over the unconstrained position of one chain.

    Args:
        draw: callable from a random key to a position, a pytree.
        log_prob: callable from a position to its log density.
    """

    draw: Callable[[jax.Array], Any]
    log_prob: Callable[[Any], jax.Array]


def of_prior(model: Callable[..., Any], model_args: tuple[Any, ...], model_kwargs: dict[str, Any]) -> Proposal:
    """The prior of the latent sites of a model, GEBM sites at their base, as `init_to_prior` draws it.

    Args:
        model: a NumPyro model.
        model_args: its arguments.
        model_kwargs: its keyword arguments.

    Returns:
        A `Proposal` over a dict of unconstrained arrays. Its `draw` raises a ValueError for a site whose distribution
        cannot be sampled.
    """

    def sites_of(model):
        trace = handlers.trace(model).get_trace(*model_args, **model_kwargs)
        return {
            name: (site["value"], base_prior(site["fn"]), biject_to(site["fn"].support))
            for name, site in trace.items()
            if site["type"] == "sample" and not site["is_observed"]
        }

    def draw(key):
        sites = sites_of(handlers.substitute(handlers.seed(model, key), substitute_fn=_draw_of_base_prior))
        return {name: transform.inv(value) for name, (value, _, transform) in sites.items()}

    def log_prob(u):
        seeded = handlers.seed(model, random.key(0))
        values = constrain_fn(seeded, model_args, model_kwargs, u)
        total = jnp.zeros(())
        for name, (value, prior, transform) in sites_of(handlers.substitute(seeded, data=values)).items():
            total += prior.log_prob(value).sum() + transform.log_abs_det_jacobian(u[name], value).sum()
        return total

    return Proposal(draw, log_prob)


def of_distributions(distributions: Any) -> Proposal:
    """Independent distributions of unconstrained sites.

    Args:
        distributions: a pytree of distributions, as the position is one of arrays.

    Returns:
        A `Proposal`.
    """
    leaves, structure = jax.tree.flatten(distributions, is_leaf=lambda x: isinstance(x, Distribution))

    def draw(key):
        keys = random.split(key, len(leaves))
        return structure.unflatten([leaf.sample(key) for leaf, key in zip(leaves, keys)])

    def log_prob(u):
        log_probs = [leaf.log_prob(x).sum() for leaf, x in zip(leaves, structure.flatten_up_to(u))]
        return jnp.stack(log_probs).sum()

    return Proposal(draw, log_prob)


def _draw_of_base_prior(site):
    if site["type"] != "sample" or site["is_observed"]:
        return None
    try:
        return base_prior(site["fn"])(
            rng_key=site["kwargs"].get("rng_key"), sample_shape=site["kwargs"].get("sample_shape") or ()
        )
    except NotImplementedError as error:
        raise ValueError(
            f"Expected a prior that can be drawn from at every latent site; that of site '{site['name']}' "
            f"({type(site['fn']).__name__}) cannot. Pass `proposal`."
        ) from error
