"""The base of a GEBM: the law that the energy reweights."""

import copy
from collections.abc import Sequence
from typing import Any, TypeVar, cast

import pyro.distributions as dist
import torch
from pyro.distributions import constraints
from pyro.distributions.torch_distribution import ExpandedDistribution
from torch.distributions import biject_to

from gebm.networks import name_of, shape_of
from gebm.validation import flag, instance, optional
from pyro_gebm.callables import (
    Generator,
    Shape,
    copy_of_values,
    draw_quietly,
    evaluation_mode,
    output_of,
    over_batch,
    quietly,
)

__all__ = [
    "NO_DENSITY",
    "Decomposable",
    "Pushforward",
    "check_support",
    "check_trainable",
    "decompose",
    "has_costly_draws",
    "has_density",
    "is_discrete",
    "snapshot",
    "support_of",
    "trained_part",
    "without_validation",
]

#: What `log_prob` raises where there is no density; a transform of Pyro without an inverse raises a `KeyError`.
NO_DENSITY = (NotImplementedError, KeyError)

Law = TypeVar("Law", bound=torch.distributions.Distribution)


class Pushforward(dist.TorchDistribution):
    r"""Law of $B(z)$, $z \sim \eta$: a base that can be sampled but has no density.

    Args:
        latent_prior: distribution of one latent, `batch_shape` usually `()`; continuous.
        generator: `torch.nn.Module` or callable from latents of shape `(N,) + latent_prior.event_shape` to events
            `(N,) + event_shape`.

    Shapes: `batch_shape` is that of `latent_prior`; `event_shape` is the shape of the generator's output.

    Raises:
        TypeError: if the latent prior is not a distribution, or the generator cannot be called.
        ValueError: if the generator cannot take a latent, or the latent prior is discrete.

    Example:
        >>> import torch, pyro.distributions as dist
        >>> base = Pushforward(dist.Normal(0.0, 1.0).expand([2]).to_event(1), lambda z: z @ torch.ones(2, 3))
        >>> tuple(base.event_shape), tuple(base.sample((5,)).shape)
        ((3,), (5, 3))
    """

    arg_constraints = {}  # pyright: ignore[reportIncompatibleMethodOverride, reportAssignmentType]  # as in PyTorch

    def __init__(
        self,
        latent_prior: torch.distributions.Distribution,
        generator: Generator,
        *,
        validate_args: bool | None = None,
    ):
        optional(flag)("validate_args", validate_args)
        instance("latent_prior", latent_prior, torch.distributions.Distribution, "distribution")
        if not callable(generator):
            raise TypeError(f"Expected generator to be callable, from latents to events; got {generator!r}.")
        if is_discrete(latent_prior):
            raise ValueError(f"Expected a continuous latent prior; got {type(latent_prior).__name__} (discrete).")
        out = output_of(generator, draw_quietly(latent_prior, 2), "generator", "a latent")
        self.latent_prior = latent_prior
        self.generator = generator
        super().__init__(latent_prior.batch_shape, out.shape[1:], validate_args=validate_args)

    def expand(self, batch_shape: Shape, _instance: Any = None) -> "Pushforward":
        new = cast(Pushforward, self._get_checked_instance(Pushforward, _instance))
        new.latent_prior = self.latent_prior.expand(batch_shape)
        new.generator = self.generator
        super(Pushforward, new).__init__(torch.Size(batch_shape), self.event_shape, validate_args=False)
        new._validate_args = self._validate_args
        return new

    @property
    def has_rsample(self) -> bool:
        return self.latent_prior.has_rsample

    @property
    def support(self) -> constraints.Constraint:
        return constraints.independent(constraints.real, len(self.event_shape))

    def sample(self, sample_shape: Shape = torch.Size()) -> torch.Tensor:
        """Draw $B(z)$, detached: tensor of shape `sample_shape + batch_shape + event_shape`."""
        with torch.no_grad():
            return self._decode(self.latent_prior.sample(torch.Size(shape_of("sample_shape", sample_shape, minimum=0))))

    def rsample(self, sample_shape: Shape = torch.Size()) -> torch.Tensor:
        """As `sample`, with gradients to the generator's parameters."""
        return self._decode(self.latent_prior.rsample(torch.Size(shape_of("sample_shape", sample_shape, minimum=0))))

    def _decode(self, z):
        return over_batch(self.generator, z, len(self.latent_prior.event_shape))

    def __repr__(self) -> str:
        prior, generator = type(self.latent_prior).__name__, name_of(self.generator)
        return f"Pushforward(latent_prior: {prior}, generator: {generator}, event_shape: {tuple(self.event_shape)})"

    def log_prob(self, value: torch.Tensor) -> torch.Tensor:
        """Not defined: the law of a generator has no density.

        Raises:
            NotImplementedError: always.
        """
        raise NotImplementedError(
            "A Pushforward has no density in x. Work in the latent space: `gebm.latent`, or the effect handler "
            "`LatentReparam` for a site of a model."
        )


class Decomposable:
    """A base that says itself what its latent prior, its generator and its trained part are."""

    def decomposed(self) -> tuple[torch.distributions.Distribution, Generator] | None:
        """`(latent_prior, generator)`; None for itself and the identity."""
        raise NotImplementedError

    def trained_part(self) -> torch.nn.Module | None:
        """What KALE trains."""
        raise NotImplementedError

    def check_trainable(self) -> None:
        """Raise a `ValueError` if draws have no gradient in the trained part."""
        raise NotImplementedError


class _Transforms:
    """The transforms of a `TransformedDistribution` as a generator; their caches never see a tensor twice."""

    def __init__(self, transforms: Sequence[Any]):
        self.transforms = transforms

    def __call__(self, z: torch.Tensor) -> torch.Tensor:
        z = z.clone()
        for transform in self.transforms:
            z = transform(z)
        return z


class _Batched:
    """A generator whose event gained leading axes through `to_event`."""

    def __init__(self, generator: Generator, event_dim: int):
        self.generator, self.event_dim = generator, event_dim

    def __call__(self, z: torch.Tensor) -> torch.Tensor:
        return over_batch(self.generator, z, self.event_dim)


def _identity(z: torch.Tensor) -> torch.Tensor:
    return z


def is_discrete(law: torch.distributions.Distribution) -> bool:
    """Whether a distribution is discrete, in all or some of its components."""
    return law.support is not None and bool(law.support.is_discrete)


def _is_gebm(base: Any) -> bool:
    """Whether a base is a GEBM, a class that is built on this module."""
    return hasattr(base, "latent") and hasattr(base, "generator")


def support_of(law: torch.distributions.Distribution) -> constraints.Constraint | None:
    """The support of a distribution, that of a mixture without the constraint of its own that has no transform."""
    support = law.support
    return (
        getattr(support, "base_constraint", support)
        if type(support).__name__ == "MixtureSameFamilyConstraint"
        else support
    )


def check_support(name: str, law: torch.distributions.Distribution) -> None:
    """Check that NUTS and our kernels can move in the support of a distribution.

    Args:
        name: of the argument, for the message.
        law: a distribution.

    Raises:
        ValueError: if there is no transform of its support to unconstrained space.
    """
    try:
        biject_to(support_of(law))
    except (NotImplementedError, AttributeError):  # a support of None
        raise ValueError(
            f"Expected {name} to have a support that can be unconstrained; got {type(law).__name__} with support "
            f"{law.support}. Use a prior on another space and a generator that maps it there."
        ) from None


def decompose(base: torch.distributions.Distribution) -> tuple[torch.distributions.Distribution, Generator]:
    """Write any base as a latent prior and a generator.

    A `Pushforward` gives its own, a `TransformedDistribution` its base distribution and its transforms, a GEBM its
    latent law and its generator, any other distribution itself and the identity; `Independent` and
    `ExpandedDistribution` are looked through.

    Args:
        base: a Pyro distribution.

    Returns:
        `(latent_prior, generator)`, with `latent_prior.batch_shape == base.batch_shape`.
    """
    if isinstance(base, Pushforward):
        return base.latent_prior, base.generator
    if isinstance(base, Decomposable):
        return base.decomposed() or (base, _identity)
    if _is_gebm(base):
        gebm: Any = base
        return gebm.latent, gebm.generator
    if isinstance(base, torch.distributions.TransformedDistribution):
        return base.base_dist, _Transforms(base.transforms)
    if isinstance(base, ExpandedDistribution):
        latent_prior, generator = decompose(base.base_dist)
        return latent_prior.expand(base.batch_shape), generator
    if isinstance(base, torch.distributions.Independent):
        latent_prior, generator = decompose(base.base_dist)
        generator = _Batched(generator, len(latent_prior.event_shape))
        return dist.Independent(latent_prior, base.reinterpreted_batch_ndims), generator
    return base, _identity


def _unwrap(base):
    while isinstance(base, (torch.distributions.Independent, ExpandedDistribution)):
        base = base.base_dist
    return base


def has_costly_draws(latent_prior: torch.distributions.Distribution) -> bool:
    """Whether a draw of a latent prior takes a Markov chain, as that of the latent law of a GEBM does."""
    return hasattr(_unwrap(latent_prior), "gebm")


def has_density(base: torch.distributions.Distribution) -> bool:
    """Whether `base.log_prob` exists: not for a `Pushforward`, nor for a flow with a transform without an inverse."""
    try:
        with quietly(), evaluation_mode(trained_part(base)):
            without_validation(base).log_prob(base.sample().clone())  # a fresh tensor: flows remember their own draws
    except NO_DENSITY:
        return False
    return True


def trained_part(base: torch.distributions.Distribution) -> torch.nn.Module | None:
    """What KALE trains in a base, as one module: the generator, or the transforms by their index; else None."""
    inner = _unwrap(base)
    if isinstance(inner, Pushforward):
        return inner.generator if isinstance(inner.generator, torch.nn.Module) else None
    if isinstance(inner, Decomposable):
        return inner.trained_part()
    if isinstance(inner, torch.distributions.TransformedDistribution):
        modules = {str(i): t for i, t in enumerate(inner.transforms) if isinstance(t, torch.nn.Module)}
        return torch.nn.ModuleDict(modules) if modules else None
    return None


def check_trainable(base: torch.distributions.Distribution) -> None:
    """Refuse to train a base whose draws have no gradient in its parameters.

    Raises:
        ValueError: for a `Program` with such sites.
    """
    inner = _unwrap(base)
    if isinstance(inner, Decomposable):
        inner.check_trainable()


def without_validation(law: Law) -> Law:
    """A copy, down to nested distributions, whose log-density is NaN outside its support instead of an error."""
    new = copy.copy(law)
    inner = {name: value for name, value in vars(law).items() if isinstance(value, torch.distributions.Distribution)}
    vars(new).update({name: without_validation(value) for name, value in inner.items()}, _validate_args=False)
    return new


def snapshot(base: Law) -> Law:
    """A copy of a base that further training does not touch: evaluation mode, no gradients."""
    new = copy_of_values(base)
    part = trained_part(new)
    if part is not None:
        part.eval().requires_grad_(False)
    return new
