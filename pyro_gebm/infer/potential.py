"""The potential of a Pyro model for many chains at once."""

from collections.abc import Callable
from typing import Any

import pyro
import torch
from pyro import poutine
from pyro.distributions.util import scale_and_mask
from pyro.infer.autoguide.initialization import InitMessenger
from pyro.poutine.subsample_messenger import _Subsample
from torch.distributions import biject_to, constraints

from pyro_gebm.base import without_validation
from pyro_gebm.gebm import EnergyTiltedPrior

__all__ = ["initialize_chains"]

#: Draws of the initialisation strategy tried before giving up on a finite potential.
MAX_TRIES = 100


def initialize_chains(
    model: Callable[..., Any],
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    num_chains: int,
    init_strategy: Callable[..., Any],
    transforms: dict[str, Any] | None = None,
    initial_params: dict[str, torch.Tensor] | None = None,
) -> tuple[dict[str, torch.Tensor], Callable[[dict[str, torch.Tensor]], Any], dict[str, Any]]:
    r"""Start, potential and transforms of a model, as Pyro's `initialize_model` gives them, for chains as one tensor.

    The potential is $-\sum_s \log p_s - \log |J|$ over the sites of a trace, batched by `torch.func.vmap`; for a model
    that is one site of a GEBM's latent and nothing else, its own batched density is used.

    Args:
        model: a Pyro model.
        args: its arguments.
        kwargs: its keyword arguments.
        num_chains: N.
        init_strategy: callable from a site to a value.
        transforms: transforms from the support of each latent site; found from the supports where None.
        initial_params: dict of unconstrained tensors with a leading axis of N; None draws them.

    Returns:
        `(initial_params, potential, transforms)`; the potential maps a dict of tensors with a leading axis of N to
        shape `(N,)`.

    Raises:
        ValueError: for a model with a discrete latent site, with subsampling, or without latent sites, or where no
            start with a finite potential is found.
    """
    trace = _traced(InitMessenger(init_strategy)(model), args, kwargs)
    sites = _latent_sites(trace)
    if transforms is None:
        transforms = {name: biject_to(site["fn"].support).inv for name, site in sites.items()}
    if _is_bare_latent(trace):
        ((name, site),) = sites.items()
        potential = _of_bare_latent(name, site["fn"], transforms)
    else:
        potential = _vectorized(model, args, kwargs, transforms)
    if initial_params is None:
        initial_params = _draw_start(model, args, kwargs, num_chains, init_strategy, transforms, potential)
    return initial_params, potential, transforms


def _traced(model: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """A trace of a model; by Pyro's type of it, a site has nothing for sure."""
    return poutine.trace(model).get_trace(*args, **kwargs)


def _latent_sites(trace):
    sites = {}
    for name, site in trace.iter_stochastic_nodes():
        fn = site["fn"]
        if isinstance(fn, _Subsample):
            if fn.subsample_size is not None and fn.subsample_size < fn.size:
                raise ValueError(f"Expected plates without subsampling; plate '{name}' subsamples.")
            continue
        if fn.support.is_discrete:
            raise ValueError(
                f"Expected continuous latent sites; site '{name}' ({type(fn).__name__}) is discrete. Marginalise it "
                "out in the model, or use Pyro's NUTS, which enumerates."
            )
        sites[name] = site
    if not sites:
        raise ValueError("Expected a model with latent sites; got one without.")
    return sites


def _is_bare_latent(trace):
    """Whether a model is one site of a GEBM's latent and nothing else."""
    sites = [site for site in trace.nodes.values() if site["type"] == "sample"]
    site = sites[0]
    plain = site["scale"] == 1.0 and site["mask"] is None
    return len(sites) == 1 and isinstance(site["fn"], EnergyTiltedPrior) and plain


def _of_bare_latent(name, latent, transforms):
    transform, latent = transforms[name].inv, without_validation(latent)

    def potential(params):
        u = params[name]
        z = transform(u)
        log_prob = latent.log_prob(z).reshape(len(u), -1).sum(1)
        if latent.support is not constraints.real and z is not u:
            log_prob = log_prob + transform.log_abs_det_jacobian(u, z).reshape(len(u), -1).sum(1)
        return -log_prob

    return potential


def _vectorized(model, args, kwargs, transforms):
    def of_one_chain(params):
        values = {name: transforms[name].inv(u) for name, u in params.items()}
        trace = _traced(poutine.condition(model, data=values), args, kwargs)
        total = 0.0
        for site in trace.nodes.values():
            if site["type"] == "sample" and not isinstance(site["fn"], _Subsample):
                log_prob = without_validation(site["fn"]).log_prob(site["value"])
                total = total + scale_and_mask(log_prob, site["scale"], site["mask"]).sum()
        for name, u in params.items():
            total = total - transforms[name].log_abs_det_jacobian(values[name], u).sum()
        return -total

    batched = torch.func.vmap(of_one_chain, randomness="different")  # GEBMs made in the model draw to probe shapes

    def potential(params):
        with pyro.validation_enabled(False):
            return batched(params)

    return potential


def _draw_start(model, args, kwargs, num_chains, init_strategy, transforms, potential):
    """Unconstrained draws of the initialisation strategy, for every chain anew until its potential is finite."""
    start, good = None, torch.zeros(num_chains, dtype=torch.bool)
    for _ in range(MAX_TRIES):
        draws = []
        for _ in range(num_chains):
            trace = _traced(InitMessenger(init_strategy)(model), args, kwargs)
            draws.append({name: t(trace.nodes[name]["value"].detach()) for name, t in transforms.items()})
        new = {name: torch.stack([draw[name] for draw in draws]).detach() for name in transforms}
        start = new if start is None else {k: _choose(good, start[k], new[k]) for k in new}
        with torch.no_grad():
            good = torch.isfinite(potential(start)).cpu()
        if good.all():
            return start
    raise ValueError(
        f"Expected a finite potential at the initial point; found none in {MAX_TRIES} draws of the initialisation "
        "strategy. Pass `initial_params`, or check the energy for NaN."
    )


def _choose(mask, x, y):
    return torch.where(mask.to(x.device).reshape(-1, *[1] * (x.dim() - 1)), x, y)
