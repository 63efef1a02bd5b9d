"""What programs as bases share between the hosts: which sites a program may have, and what is said where it has not."""

from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

from gebm.tilting import site_missing
from gebm.validation import function, text

__all__ = [
    "NOT_NORMALIZED",
    "Site",
    "check_arguments",
    "check_differentiable",
    "check_sites",
    "no_density",
    "slow_draws",
]


#: The error for a density whose gradient would lack that of its log-partition.
NOT_NORMALIZED = (
    "The energy depends on something that is being learned or inferred, and so does its log-partition; with "
    "log_partition=None the gradient would leave that out. Use `normalized(gebm)` in the model, whose "
    "log-partition has the right gradient. If the density without it is meant, pass log_partition=0.0; freeze networks "
    "that are not to be learned."
)


class Site(NamedTuple):
    """A site of a program's trace, as the checks see it.

    Args:
        name: its name.
        is_observed: whether it is a sample site with a value given.
        is_plate: whether it is a plate.
        is_subsample: whether it is a plate that subsamples.
        is_discrete: whether it is a discrete sample site.
        has_rsample: whether draws of it can be differentiated.
    """

    name: str
    is_observed: bool = False
    is_plate: bool = False
    is_subsample: bool = False
    is_discrete: bool = False
    has_rsample: bool = True


def check_arguments(model: Any, site: Any, args: Any, kwargs: Any) -> tuple[Any, str, tuple[Any, ...], dict[str, Any]]:
    """The arguments of `Program`, after a check.

    Raises:
        TypeError: if the model cannot be called, the site is no name, or the arguments are no tuple and no dict.
    """
    function("model", model, "program")
    for name, value, kind in (("args", args, (tuple, list)), ("kwargs", kwargs, (dict, type(None)))):
        if not isinstance(value, kind):
            expected = "a tuple of the model's arguments" if name == "args" else "a dict of them, or None"
            raise TypeError(f"Expected {name} to be {expected}; got {type(value).__name__}.")
    return model, text("site", site), tuple(args), dict(kwargs or {})


def check_sites(sites: Sequence[Site], site: str, found: bool) -> None:
    """Check the sites of a program up to the one that is its draw.

    Args:
        sites: in their order, the last one the one that was asked for, if it was found.
        site: its name.
        found: whether it was.

    Raises:
        ValueError: without that site; if it, or one before it, is observed; if a plate subsamples.
    """
    if not found:
        raise site_missing(site, (s.name for s in sites))
    for s in sites:
        if s.is_observed and s.name == site:
            raise ValueError(
                f"Expected a site '{site}' that is drawn; it is observed. Call the model without its data."
            )
        if s.is_observed:
            raise ValueError(
                f"Expected no observed sites before '{site}', whose draws would not depend on them; site '{s.name}' is "
                "observed. Use draws of the posterior predictive, or observe it after the site."
            )
        if s.is_subsample:
            raise ValueError(f"Expected plates without subsampling; plate '{s.name}' subsamples.")


def check_differentiable(sites: Iterable[Site], site: str) -> None:
    """Refuse to train a program whose draws have no gradient.

    Raises:
        ValueError: if a site is discrete, or has no reparametrised draws.
    """
    bad = [f"'{s.name}' ({'discrete' if s.is_discrete else 'without rsample'})" for s in sites if not s.has_rsample]
    if bad:
        raise ValueError(
            f"Expected a program whose draws at '{site}' can be differentiated, to train its parameters; got site "
            f"{', '.join(bad)}. Pass base_optim=None to train the energy alone."
        )


def no_density(site: str, discrete: Iterable[str]) -> str:
    """Why the density of a program at a site cannot be computed, and what to do."""
    if names := ", ".join(f"'{name}'" for name in discrete):
        return (
            f"The program has discrete sites before '{site}' ({names}), so that it has no continuous latent to sample. "
            "Draw from the tilted program `result.program` with `Predictive` and `resample`."
        )
    return (
        f"The density of a program at its site '{site}' is an integral over the sites before it. Work in the latent "
        "space: `gebm.latent`, or the tilted program `result.program`."
    )


def slow_draws(site: str, reason: str) -> str:
    """The warning for a program that cannot be drawn from in parallel."""
    return (
        f"Draws of the program at '{site}' are made one at a time, since with a plate around it the program {reason}. "
        "To make it fast, index its axes from the right and declare them by `plate` or `to_event`."
    )
