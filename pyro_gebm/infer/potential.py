"""The potential of a Pyro model for many chains at once."""

from collections.abc import Callable
from typing import Any

import torch
from pyro import poutine
from pyro.distributions.util import scale_and_mask
from pyro.infer.autoguide.initialization import InitMessenger
from pyro.poutine.subsample_messenger import _Subsample
from torch.distributions import biject_to, constraints

from gebm.annealing import MAX_REDRAWS
from gebm.langevin import no_finite_potential
from pyro_gebm.base import without_validation
from pyro_gebm.effects import alone
from pyro_gebm.gebm import EnergyTiltedPrior

__all__ = ["bare_latent", "initialize_chains", "traced"]


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
        transforms: transforms from the supports of latent sites; for others, or None, found from the supports.
        initial_params: dict of unconstrained tensors with a leading axis of N; None draws them.

    Returns:
        `(initial_params, potential, transforms)`; the potential maps a dict of tensors with a leading axis of N to
        shape `(N,)`.

    Raises:
        ValueError: for a model with a discrete latent site, with subsampling, without latent sites, with sites or
            supports that change with other latent sites, or where no start with a finite potential is found.
    """
    trace = traced(InitMessenger(init_strategy)(model), args, kwargs)
    sites = _latent_sites(trace)
    given = {} if transforms is None else transforms
    if unknown := sorted(given.keys() - sites.keys()):
        raise ValueError(f"Expected transforms of the latent sites {sorted(sites)}; got some of {unknown}.")
    transforms = {name: given.get(name, biject_to(site["fn"].support).inv) for name, site in sites.items()}
    _check_supports(model, args, kwargs, sites, transforms, sites.keys() - given.keys())
    if latent := bare_latent(trace):
        potential = _of_bare_latent(latent, transforms)
    else:
        potential = _vectorized(model, args, kwargs, transforms)
    if initial_params is None:
        initial_params = _draw_start(model, args, kwargs, num_chains, init_strategy, transforms, potential)
    return initial_params, potential, transforms


def traced(model: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """A trace of a model; by Pyro's type of it, a site has nothing for sure."""
    with alone():
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


def _check_supports(model, args, kwargs, sites, transforms, names):
    """Refuse sites and supports that another trace has otherwise: the transforms are those of the first."""
    with torch.no_grad():
        moved = {name: t(sites[name]["value"].detach()) + 0.5 for name, t in transforms.items()}
        values = {name: transforms[name].inv(u) for name, u in moved.items()}
        trace = traced(poutine.condition(model, data=values), args, kwargs)
        _check_names(_sampled(trace) | (trace.nodes.keys() & sites.keys()), sites.keys())
        for name in names:
            fn, value = trace.nodes[name]["fn"], values[name]
            other = biject_to(fn.support)(moved[name])
            if other.shape != value.shape or not ((other == value) | (other.isnan() & value.isnan())).all():
                raise ValueError(
                    f"Expected a fixed support of every latent site; that of site '{name}' ({type(fn).__name__}) "
                    "changes with other latent sites. Sample on a fixed support and transform: "
                    "`u = a * v` with `v ~ Uniform(0, 1)` instead of `u ~ Uniform(0, a)`."
                )


def _sampled(trace):
    return {name for name, site in trace.iter_stochastic_nodes() if not isinstance(site["fn"], _Subsample)}


def _check_names(found, expected):
    if found != expected:
        raise ValueError(
            "Expected the same latent sites in every trace of the model; got some at some values of the others only: "
            f"{sorted(found ^ expected)}."
        )


def bare_latent(trace: Any) -> EnergyTiltedPrior | None:
    """The latent of a GEBM, for a model that is one site of it and nothing else."""
    sites = [site for site in trace.nodes.values() if site["type"] == "sample"]
    plain = sites[0]["scale"] == 1.0 and sites[0]["mask"] is None
    return sites[0]["fn"] if len(sites) == 1 and isinstance(sites[0]["fn"], EnergyTiltedPrior) and plain else None


def _of_bare_latent(latent, transforms):
    ((name, transform),) = transforms.items()
    transform, latent = transform.inv, without_validation(latent)
    is_real = getattr(latent.support, "base_constraint", latent.support) is constraints.real

    def potential(params):
        u = params[name]
        if is_real:
            return -_per_chain(latent.log_prob(u))
        z = transform(u)
        return -_per_chain(latent.log_prob(z)) - _per_chain(transform.log_abs_det_jacobian(u, z))

    return potential


def _per_chain(values):
    return values if values.dim() == 1 else values.reshape(len(values), -1).sum(1)


def _vectorized(model, args, kwargs, transforms):
    def of_one_chain(params):
        values = {name: transforms[name].inv(u) for name, u in params.items()}
        trace = traced(poutine.condition(model, data=values), args, kwargs)
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
        with alone(validate=False):
            return batched(params)

    return potential


def _draw_start(model, args, kwargs, num_chains, init_strategy, transforms, potential):
    """Unconstrained draws of the initialisation strategy, for every chain anew until its potential is finite."""

    def draw():
        trace = traced(InitMessenger(init_strategy)(model), args, kwargs)
        _check_names(_sampled(trace), transforms.keys())
        return {name: t(trace.nodes[name]["value"].detach()).detach() for name, t in transforms.items()}

    start, bad, num_finite, num_tried, values = [{}] * num_chains, list(range(num_chains)), 0, 0, torch.empty(0)
    for _ in range(MAX_REDRAWS):
        for chain in bad:
            start[chain] = draw()
        new = {name: torch.stack([start[chain][name] for chain in bad]) for name in transforms}
        with torch.no_grad():
            values = potential(new)
        finite = torch.isfinite(values).tolist()
        num_finite, num_tried = num_finite + sum(finite), num_tried + len(bad)
        bad = [chain for chain, ok in zip(bad, finite) if not ok]
        if not bad:
            return {name: torch.stack([draws[name] for draws in start]) for name in transforms}
    raise ValueError(no_finite_potential(values.tolist(), "initial_params", num_finite, num_tried))
