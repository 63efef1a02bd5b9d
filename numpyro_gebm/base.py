"""The base of a GEBM: the law that the energy reweights."""

import copy
from collections.abc import Sequence
from typing import Any

import equinox as eqx
import jax
import numpyro.distributions as dist
from numpyro.distributions import constraints
from numpyro.distributions.batch_util import vmap_over

from gebm.networks import name_of
from gebm.validation import flag, instance, optional
from numpyro_gebm.callables import Generator, Partitioned, check_fixed, output_of, over_batch
from numpyro_gebm.distribution import Distribution, sample_stack
from numpyro_gebm.keys import typed

__all__ = [
    "Decomposable",
    "Pushforward",
    "check_support",
    "check_trainable",
    "decompose",
    "has_costly_draws",
    "has_density",
    "trained_part",
    "with_trained_part",
]


class Pushforward(Distribution):
    r"""Law of $B(z)$, $z \sim \eta$: a base that can be sampled but has no density.

    Args:
        latent_prior: distribution of one latent, `batch_shape` usually `()`; continuous.
        generator: callable pytree (an Equinox module, a closure, `nn.Applied`) from one latent of shape
            `latent_prior.event_shape` to one event; no batch axis.

    Shapes: `batch_shape` is that of `latent_prior`; `event_shape` is the shape of the generator's output.

    Raises:
        TypeError: if the latent prior is not a distribution, or the generator cannot be called.
        ValueError: if the generator cannot take a latent or is not one fixed function, or the latent prior is discrete.

    Example:
        >>> import jax, numpyro.distributions as dist
        >>> base = Pushforward(dist.Normal(0.0, 1.0).expand([2]).to_event(1), lambda z: z @ jax.numpy.ones((2, 3)))
        >>> base.event_shape, base.sample(jax.random.key(0), (5,)).shape
        ((3,), (5, 3))
    """

    arg_constraints = {}
    pytree_data_fields = ("latent_prior", "_generator")

    def __init__(self, latent_prior: dist.Distribution, generator: Generator, *, validate_args: bool | None = None):
        optional(flag)("validate_args", validate_args)
        instance("latent_prior", latent_prior, dist.Distribution, "distribution")
        if not callable(generator):
            raise TypeError(f"Expected generator to be callable, from latents to events; got {generator!r}.")
        if latent_prior.is_discrete:
            raise ValueError(f"Expected a continuous latent prior; got {type(latent_prior).__name__} (discrete).")
        latent = jax.eval_shape(latent_prior.sample, jax.random.key(0))
        out = output_of(generator, latent_prior.event_shape, latent.dtype, "generator", "a latent")
        check_fixed(generator, latent_prior.event_shape, latent.dtype, "generator")
        self.latent_prior = latent_prior
        self._generator = Partitioned(generator)
        super().__init__(latent_prior.batch_shape, out.shape, validate_args=validate_args)

    @property
    def generator(self) -> Generator:
        """The generator, latent -> event, on one example."""
        return self._generator.fn

    @property
    def has_rsample(self) -> bool:
        return self.latent_prior.has_rsample

    @property
    def support(self) -> constraints.Constraint:
        return constraints.independent(constraints.real, self.event_dim)

    @sample_stack
    def sample(self, key: jax.Array | None, sample_shape: tuple[int, ...] = ()) -> jax.Array:
        """Draw $B(z)$: array of shape `sample_shape + batch_shape + event_shape`."""
        z = self.latent_prior.sample(typed(key), sample_shape)
        return over_batch(self.generator, z, self.latent_prior.event_dim)

    def __repr__(self) -> str:
        prior, generator = type(self.latent_prior).__name__, name_of(self.generator)
        return f"Pushforward(latent_prior: {prior}, generator: {generator}, event_shape: {self.event_shape})"

    def log_prob(self, value: Any, intermediates: list[Any] | None = None) -> jax.Array:
        """Not defined: the law of a generator has no density.

        Raises:
            NotImplementedError: always.
        """
        raise NotImplementedError(
            "A Pushforward has no density in x. Work in the latent space: `gebm.latent`, or the effect handler "
            "`LatentReparam` for a site of a model."
        )


@vmap_over.register
def _vmap_over_pushforward(base: Pushforward, latent_prior=None, generator=None):
    return vmap_over.dispatch(dist.Distribution)(base, latent_prior=latent_prior, _generator=generator)


class Decomposable:
    """A base that says itself what its latent prior, its generator and its trained part are."""

    def decomposed(self) -> tuple[dist.Distribution, Generator] | None:
        """`(latent_prior, generator)`; None for itself and the identity."""
        raise NotImplementedError

    def trained_part(self) -> Any:
        """What KALE trains."""
        raise NotImplementedError

    def with_trained_part(self, part: Any) -> Any:
        """The same base with another trained part."""
        raise NotImplementedError

    def check_trainable(self) -> None:
        """Raise a `ValueError` if draws have no gradient in the trained part."""
        raise NotImplementedError


class _Transforms(eqx.Module):
    """The transforms of a `TransformedDistribution` as a generator."""

    transforms: Sequence[Any]

    def __call__(self, z: jax.Array) -> jax.Array:
        for transform in self.transforms:
            z = transform(z)
        return z


class _Batched(eqx.Module):
    """A generator whose event gained leading axes through `to_event`."""

    generator: Generator
    event_dim: int = eqx.field(static=True)

    def __call__(self, z: jax.Array) -> jax.Array:
        return over_batch(self.generator, z, self.event_dim)


def _is_gebm(base: Any) -> bool:
    """Whether a base is a GEBM, a class that is built on this module."""
    return hasattr(base, "latent") and hasattr(base, "generator")


def check_support(name: str, law: dist.Distribution) -> None:
    """Check that NUTS and our kernels can move in the support of a distribution.

    Args:
        name: of the argument, for the message.
        law: a distribution.

    Raises:
        ValueError: if there is no transform of its support to unconstrained space.
    """
    try:
        dist.biject_to(law.support)
    except NotImplementedError:
        raise ValueError(
            f"Expected {name} to have a support that can be unconstrained; got {type(law).__name__} with support "
            f"{law.support}. Use a prior on another space and a generator that maps it there."
        ) from None


def decompose(base: dist.Distribution) -> tuple[dist.Distribution, Generator]:
    """Write any base as a latent prior and a generator.

    A `Pushforward` gives its own, a `TransformedDistribution` its base distribution and its transforms, a GEBM its
    latent law and its generator, any other distribution itself and the identity; `Independent` and
    `ExpandedDistribution` are looked through.

    Args:
        base: a NumPyro distribution.

    Returns:
        `(latent_prior, generator)`, with `latent_prior.batch_shape == base.batch_shape`.
    """
    if isinstance(base, Pushforward):
        return base.latent_prior, base.generator
    if isinstance(base, Decomposable):
        return base.decomposed() or (base, _Transforms([]))
    if _is_gebm(base):
        gebm: Any = base
        return gebm.latent, gebm.generator
    if isinstance(base, dist.TransformedDistribution):
        return base.base_dist, _Transforms(base.transforms)
    if isinstance(base, dist.ExpandedDistribution):
        latent_prior, generator = decompose(base.base_dist)
        return latent_prior.expand(base.batch_shape), generator
    if isinstance(base, dist.Independent):
        latent_prior, generator = decompose(base.base_dist)
        generator = _Batched(generator, latent_prior.event_dim)
        return latent_prior.to_event(base.reinterpreted_batch_ndims), generator
    return base, _Transforms([])


def _unwrap(base):
    while isinstance(base, (dist.Independent, dist.ExpandedDistribution)):
        base = base.base_dist
    return base


def has_costly_draws(latent_prior: dist.Distribution) -> bool:
    """Whether a draw of a latent prior takes a Markov chain, as that of the latent law of a GEBM does."""
    return hasattr(_unwrap(latent_prior), "gebm")


def has_density(base: dist.Distribution) -> bool:
    """Whether `base.log_prob` exists: not for a `Pushforward`, nor for a flow with a transform without an inverse."""
    try:
        jax.eval_shape(lambda key: base.log_prob(base.sample(key)), jax.random.key(0))
    except NotImplementedError:
        return False
    return True


def trained_part(base: dist.Distribution) -> Any:
    """What KALE trains in a base: the generator, or the list of transforms; None for a plain distribution."""
    inner = _unwrap(base)
    if isinstance(inner, Pushforward):
        return inner.generator
    if isinstance(inner, Decomposable):
        return inner.trained_part()
    if isinstance(inner, dist.TransformedDistribution):
        return inner.transforms
    return None


def check_trainable(base: dist.Distribution) -> None:
    """Refuse to train a base whose draws have no gradient in its parameters.

    Raises:
        ValueError: for a `Program` with such sites.
    """
    inner = _unwrap(base)
    if isinstance(inner, Decomposable):
        inner.check_trainable()


def with_trained_part(base: dist.Distribution, part: Any) -> dist.Distribution:
    """The same base with another generator or other transforms (the inverse of `trained_part`)."""
    if isinstance(base, Pushforward):
        return base.replaced(_generator=Partitioned(part))
    if isinstance(base, Decomposable):
        return base.with_trained_part(part)
    if isinstance(base, dist.TransformedDistribution):
        new = copy.copy(base)
        new.transforms = list(part)
        return new
    if isinstance(base, dist.ExpandedDistribution):
        return with_trained_part(base.base_dist, part).expand(base.batch_shape)
    if isinstance(base, dist.Independent):
        return with_trained_part(base.base_dist, part).to_event(base.reinterpreted_batch_ndims)
    return base
