"""Fresh draws of the latent sites of a model, in unconstrained space, and their density: what global moves propose."""

import warnings
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from pyro.infer.autoguide.initialization import InitMessenger
from pyro.poutine import condition

from pyro_gebm.base import without_validation
from pyro_gebm.effects import alone
from pyro_gebm.infer.initialization import base_prior
from pyro_gebm.infer.potential import bare_latent, traced

__all__ = ["Proposal", "of_distributions", "of_prior"]


class Proposal(NamedTuple):
    """A law over the unconstrained positions of chains.

    Args:
        draw: callable from a number to so many positions, a dict of tensors with that leading axis.
        log_prob: callable from such positions to their log densities, shape `(N,)`.
    """

    draw: Callable[[int], dict[str, torch.Tensor]]
    log_prob: Callable[[dict[str, torch.Tensor]], torch.Tensor]


def of_prior(
    model: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any], transforms: dict[str, Any]
) -> Proposal:
    """The prior of the latent sites of a model, GEBM sites at their base, as `init_to_prior` draws it.

    Draws are batched by `torch.func.vmap`; a model with a distribution that PyTorch cannot draw there (Dirichlet,
    Exponential, StudentT, ...) is run once for every draw, which is slow.

    Args:
        model: a Pyro model.
        args: its arguments.
        kwargs: its keyword arguments.
        transforms: transforms from the supports of its latent sites.

    Returns:
        A `Proposal`.

    Raises:
        ValueError: for a site whose distribution cannot be sampled.
    """
    first = traced(InitMessenger(_draw_of_base_prior)(model), args, kwargs)
    if latent := bare_latent(first):
        ((name, transform),) = transforms.items()
        prior = without_validation(base_prior(latent))
        return Proposal(
            lambda num: {name: transform(prior.sample((num,)))},
            lambda u: _log_prob(prior, transform, transform.inv(u[name]), u[name], len(u[name])),
        )

    def draw_one(_):
        trace = traced(InitMessenger(_draw_of_base_prior)(model), args, kwargs)
        return {name: transform(trace.nodes[name]["value"]) for name, transform in transforms.items()}

    def log_prob_of_one(u):
        values = {name: transforms[name].inv(x) for name, x in u.items()}
        trace = traced(condition(model, data=values), args, kwargs)
        total = torch.zeros(())
        for name, transform in transforms.items():
            prior = without_validation(base_prior(trace.nodes[name]["fn"]))
            total = total + _log_prob(prior, transform, values[name], u[name], 1).squeeze(0)
        return total

    batched_log_prob = torch.func.vmap(log_prob_of_one, randomness="different")
    draw_many = torch.func.vmap(draw_one, randomness="different")

    def draw_batched(num):
        with alone(validate=False), warnings.catch_warnings():
            warnings.filterwarnings("ignore", "There is a performance drop", UserWarning)
            return draw_many(torch.zeros(num))

    def draw_in_turn(num):
        draws = [draw_one(None) for _ in range(num)]
        return {name: torch.stack([draw[name] for draw in draws]) for name in transforms}

    def log_prob(u):
        with alone(validate=False):
            return batched_log_prob(u)

    try:
        draw_batched(1)
    except RuntimeError:
        return Proposal(draw_in_turn, log_prob)
    return Proposal(draw_batched, log_prob)


def of_distributions(distributions: dict[str, Any]) -> Proposal:
    """Independent distributions of unconstrained sites.

    Args:
        distributions: dict of distributions.

    Returns:
        A `Proposal`.
    """

    def log_prob(u):
        return torch.stack([d.log_prob(u[name]).reshape(len(u[name]), -1).sum(1) for name, d in laws.items()]).sum(0)

    laws = {name: without_validation(law) for name, law in distributions.items()}
    return Proposal(lambda num: {name: law.sample((num,)) for name, law in laws.items()}, log_prob)


def _log_prob(prior, transform, value, u, num):
    """Log density of u, for a prior of values and a transform to unconstrained space; shape `(num,)`."""
    jacobian = transform.log_abs_det_jacobian(value, u)
    return prior.log_prob(value).reshape(num, -1).sum(1) - jacobian.reshape(num, -1).sum(1)


def _draw_of_base_prior(site):
    try:
        value = base_prior(site["fn"]).sample().detach()
    except NotImplementedError as error:
        raise ValueError(
            f"Expected a prior that can be drawn from at every latent site; that of site '{site['name']}' "
            f"({type(site['fn']).__name__}) cannot. Pass `proposal`."
        ) from error
    value._pyro_custom_init = False  # Pyro's own mark
    return value
