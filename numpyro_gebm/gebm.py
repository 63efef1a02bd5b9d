"""Generalized energy-based models as NumPyro distributions, over x and over z."""

import math
from collections.abc import Callable
from functools import partial
from typing import Any, Protocol, TypeVar, cast

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
from jax import lax
from jax.typing import ArrayLike
from numpyro.distributions import constraints
from numpyro.distributions.batch_util import vmap_over
from numpyro.distributions.util import validate_sample
from numpyro.util import not_jax_tracer

from gebm.programs import NOT_NORMALIZED
from gebm.validation import flag, instance, optional, real_numbers
from gebm.weights import LogPartition
from numpyro_gebm.base import check_support, decompose
from numpyro_gebm.callables import (
    Energy,
    Generator,
    Partitioned,
    check_evaluation_mode,
    check_fixed,
    is_learned,
    output_of,
    over_batch,
)
from numpyro_gebm.distribution import Distribution, over_stack, sample_stack, support_of
from numpyro_gebm.dynamics.annealed_mala import AnnealedMALA
from numpyro_gebm.dynamics.buckets import in_bucket
from numpyro_gebm.effects import is_in_program

__all__ = ["GEBM", "EnergyTiltedPrior", "Sampler", "check_energy"]

LogProb = TypeVar("LogProb", bound=Callable)


class Sampler(Protocol):
    """Draws of the latents of a GEBM: an array of shape `(num_samples,) + latent.batch_shape + latent.event_shape`."""

    def __call__(self, latent: "EnergyTiltedPrior", num_samples: int, /, *, rng_key: jax.Array) -> jax.Array: ...


def _validated(log_prob: LogProb) -> LogProb:
    return cast(LogProb, validate_sample(log_prob))  # which has no types


def _known(x):
    return np.asarray(x) if not_jax_tracer(x) else x  # what is known is checked without a program


class _FiniteNonnegative(constraints.Constraint):
    def __call__(self, x: Any) -> Any:
        return (_known(x) >= 0) & (_known(x) < np.inf)


class _FiniteOrUnknown(constraints.Constraint):
    def __call__(self, x: Any) -> Any:
        return True if x is None or callable(x) else abs(_known(x)) < np.inf


def check_energy(base: dist.Distribution, energy: Energy) -> np.dtype:
    """Check that an energy fits a base; returns the dtype of its values.

    Args:
        base: a distribution.
        energy: callable from one event of the base to a scalar.

    Returns:
        A floating-point dtype.

    Raises:
        TypeError: if one of them is something else.
        ValueError: if the base is discrete, the energy cannot take an event, does not return shape `()`, or is not one
            fixed function.
    """
    instance("base", base, dist.Distribution, "distribution")
    if not callable(energy):
        raise TypeError(f"Expected energy to be callable, from one event to a scalar; got {energy!r}.")
    if base.is_discrete:
        raise ValueError(f"Expected a continuous base; got {type(base).__name__} (discrete).")
    draw = jax.eval_shape(base.sample, jax.random.key(0))
    out = output_of(energy, base.event_shape, draw.dtype, "energy", "an event of the base")
    if out.shape != ():
        raise ValueError(
            f"The energy must return a scalar, shape (), for one event of shape {base.event_shape}; got shape "
            f"{out.shape}. Squeeze its last axis: `lambda x: energy(x).squeeze()`."
        )
    check_fixed(energy, base.event_shape, draw.dtype, "energy")
    return out.dtype


def neg_beta_energy(inverse_temperature: jax.Array, energy: jax.Array) -> jax.Array:
    r"""$-\beta E$, which at $\beta = 0$ is 0 also where the energy is infinite."""
    energy = jnp.where((inverse_temperature == 0) & jnp.isinf(energy), 0.0, energy)
    return -inverse_temperature * energy


class GEBM(Distribution):
    r"""Generalized energy-based model: a base reweighted by an energy, as a distribution over x.

    .. math:: Q(dx) = \exp(-\beta E(x) - A)\, G(dx), \qquad A = \log \int \exp(-\beta E)\, dG

    with $G$ the base, $E$ the energy (low where data is), $\beta$ the inverse temperature, which multiplies the
    energy only and never the prior, and $A$ the log-partition. Source: arXiv:2003.05033.

    Args:
        base: a `Pushforward`, a `TransformedDistribution` (a flow), another GEBM, or any continuous distribution that
            NUTS can handle. Over a GEBM the law is that of the sum of both energies; beta and A are of the new one.
        energy: callable pytree from one event (shape `base.event_shape`, no batch axis) to a scalar of shape `()`.
        inverse_temperature: $\beta \ge 0$, finite; a scalar or an array that broadcasts with `base.batch_shape`.
        log_partition: $A$ at this $\beta$: a scalar, the estimate that `log_partition(gebm)` returns, a callable of
            $\beta$ such as that of `log_partition_curve(gebm)`, or None for "unknown".
        sampler: callable `(latent, num_samples, *, rng_key) -> z` with `z` of shape
            `(num_samples,) + latent.batch_shape + latent.event_shape`; None is `infer.AnnealedMALA()`.

    Shapes: `batch_shape` is `base.batch_shape` broadcast with the inverse temperature; `event_shape` is the base's.

    Raises:
        TypeError: if the base is not a distribution, or the energy cannot be called.
        ValueError: for an inverse temperature that is negative or not finite, an energy that does not fit the
            base's event or does not return shape `()`, an energy that is NaN on draws of the base, a module in
            training mode, or one that is not one fixed function.

    Example:
        >>> import jax, numpyro.distributions as dist
        >>> prior = dist.Normal(0.0, 1.0).expand([2]).to_event(1)
        >>> gebm = GEBM(prior, lambda x: 0.5 * (x**2).sum(), log_partition=-jax.numpy.log(2.0))
        >>> round(float(gebm.log_prob(jax.numpy.zeros(2))), 4)  # N(0, I/2) at its mean: -log(pi)
        -1.1447
    """

    arg_constraints = {"inverse_temperature": _FiniteNonnegative(), "log_partition": _FiniteOrUnknown()}
    pytree_data_fields = ("base", "_energy", "inverse_temperature", "_log_partition", "_sampler")
    pytree_aux_fields = ("_is_of_program",)

    base: dist.Distribution
    inverse_temperature: jax.Array

    def __init__(
        self,
        base: dist.Distribution,
        energy: Energy,
        *,
        inverse_temperature: ArrayLike = 1.0,
        log_partition: ArrayLike | LogPartition | Callable[[jax.Array], jax.Array] | None = None,
        sampler: Sampler | None = None,
        validate_args: bool | None = None,
    ):
        optional(flag)("validate_args", validate_args)
        check_evaluation_mode(energy, "energy")
        dtype = check_energy(base, energy)
        latent_prior, generator = decompose(base)
        check_support("the latent prior", latent_prior)
        check_evaluation_mode(generator, "generator")
        if isinstance(log_partition, LogPartition):
            log_partition = log_partition.value
        self.base = base
        self._energy = Partitioned(energy)
        as_energies = partial(jnp.asarray, dtype=dtype)
        self.inverse_temperature = real_numbers("inverse_temperature", inverse_temperature, as_energies)
        if not (log_partition is None or callable(log_partition)):
            log_partition = real_numbers("log_partition", log_partition, as_energies)
        self._log_partition: Partitioned[Any] = Partitioned(log_partition)
        self._sampler = Partitioned(sampler)
        self._is_of_program = is_in_program()
        super().__init__(self._compute_batch_shape(), base.event_shape, validate_args=validate_args)
        if self._validate_args:
            self._check_energy_on_draws()

    def _compute_batch_shape(self) -> tuple[int, ...]:
        normalizer = () if self.log_partition is None or callable(self.log_partition) else self.log_partition.shape
        return lax.broadcast_shapes(self.base.batch_shape, self.inverse_temperature.shape, normalizer)

    def validate_args(self, strict: bool = True) -> None:
        try:
            super().validate_args(strict)
        except ValueError as error:
            raise ValueError(
                f"{error} Expected a finite inverse_temperature >= 0 (it multiplies the energy) and a finite "
                f"log_partition; got inverse_temperature={self.inverse_temperature}, "
                f"log_partition={self.log_partition}."
            ) from None

    def _check_energy_on_draws(self, num_draws: int = 8) -> None:
        energies = _energy_of_base_draws(self, num_draws)
        if not_jax_tracer(energies) and np.isnan(energies).any():
            raise ValueError(
                f"Expected an energy without NaN; got NaN at {int(np.isnan(energies).sum())} of {energies.size} draws "
                "of the base. Check the weights of the generator and of the energy."
            )

    @property
    def energy(self) -> Energy:
        """The energy, event -> scalar, on one example."""
        return self._energy.fn

    @property
    def log_partition(self) -> jax.Array | Callable[[jax.Array], jax.Array] | None:
        """None, a scalar array, or a callable of the inverse temperature, as given."""
        return self._log_partition.fn

    @property
    def sampler(self) -> Sampler:
        """The sampler given, or `infer.AnnealedMALA()`."""
        return self._sampler.fn or AnnealedMALA()

    @property
    def latent_prior(self) -> dist.Distribution:
        r"""The prior $\eta$ of the latent."""
        return decompose(self.base)[0]

    @property
    def generator(self) -> Generator:
        """The generator $B$, latent -> event, on one example."""
        return decompose(self.base)[1]

    @property
    def latent(self) -> "EnergyTiltedPrior":
        """The same model over the latent z: an `EnergyTiltedPrior`."""
        return EnergyTiltedPrior(self)

    @property
    def support(self) -> constraints.Constraint | None:
        return support_of(self.base, self)

    @property
    def has_rsample(self) -> bool:
        return False

    @over_stack("event_shape")
    def log_weight(self, x: ArrayLike) -> jax.Array:
        r"""Log-weight of the base's draws, $-\beta E(x) - A$ (with $A = 0$ if it is unknown).

        Args:
            x: array of shape `sample_shape + batch_shape + event_shape`.

        Returns:
            Array of shape `sample_shape + batch_shape`.
        """
        normalizer = self.log_partition
        if normalizer is None:
            normalizer = jnp.zeros((), self.inverse_temperature.dtype)
        elif callable(normalizer):
            normalizer = normalizer(self.inverse_temperature)
        return neg_beta_energy(self.inverse_temperature, over_batch(self.energy, x, self.event_dim)) - normalizer

    @over_stack("latent_prior.event_shape")
    def decode(self, z: ArrayLike) -> jax.Array:
        """Push latents through the generator: shape `batch + latent_event_shape` to `batch + event_shape`."""
        latent_prior, generator = decompose(self.base)
        return over_batch(generator, z, latent_prior.event_dim)

    def check_normalized(self) -> None:
        """Refuse an unknown log-partition of an energy that the program around it learns.

        Raises:
            ValueError: for such.
        """
        if self._is_of_program and self.log_partition is None and is_learned(self.energy):
            raise ValueError(NOT_NORMALIZED)

    def temper(self, inverse_temperature: ArrayLike) -> "GEBM":
        """The same model at another inverse temperature; a scalar log-partition is then unknown (None).

        Args:
            inverse_temperature: finite, non-negative; may be traced.

        Returns:
            A new `GEBM`.
        """
        convert = partial(jnp.asarray, dtype=self.inverse_temperature.dtype)
        inverse_temperature = real_numbers("inverse_temperature", inverse_temperature, convert)
        new = self.replaced(
            inverse_temperature=inverse_temperature,
            _log_partition=Partitioned(self.log_partition if callable(self.log_partition) else None),
            _batch_shape=lax.broadcast_shapes(self.base.batch_shape, inverse_temperature.shape),
        )
        if new._validate_args:
            new.validate_args(strict=False)
        return new

    def sample(self, key: jax.Array | None, sample_shape: tuple[int, ...] = ()) -> jax.Array:
        """Draw from the *tilted* law (`gebm.base.sample` draws from the base).

        Args:
            key: a JAX random key.
            sample_shape: shape of the draws; the law of a draw does not depend on it.

        Returns:
            Array of shape `sample_shape + batch_shape + event_shape`.
        """
        z = self.latent.sample(key, sample_shape)
        if self.stack_shape or not not_jax_tracer(z):
            return self.decode(z)
        x = in_bucket(partial(_decode, self), z.reshape(-1, *self.latent.batch_shape, *self.latent.event_shape))
        return x.reshape(self.shape(sample_shape))

    def __repr__(self) -> str:
        base, beta = type(self.base).__name__, _shown(self.inverse_temperature)
        log_partition = "known" if self.log_partition is not None else "unknown"
        return f"GEBM(base: {base}, inverse_temperature: {beta}, log_partition: {log_partition})"

    @over_stack("event_shape")
    @_validated
    def log_prob(self, value: ArrayLike, intermediates: list[Any] | None = None) -> jax.Array:
        r"""$\log g(x) - \beta E(x) - A$, for a base with density $g$; unnormalised if `log_partition` is None.

        Args:
            value: array of shape `sample_shape + batch_shape + event_shape`.
            intermediates: not used.

        Returns:
            Array of shape `sample_shape + batch_shape`.

        Raises:
            NotImplementedError: if the base has no density: a `Pushforward`, or a flow without an inverse.
        """
        self.check_normalized()
        try:
            log_density = self.base.log_prob(value)
        except NotImplementedError as error:
            raise NotImplementedError(
                "GEBM.log_prob(x) needs a base with a density; the base here is a Pushforward, or a flow whose "
                "transforms have no inverse. Work in the latent space: `gebm.latent.log_prob(z)`, or "
                "`numpyro.handlers.reparam(model, config={'<site>': LatentReparam()})` for a site of a model."
            ) from error
        return self.log_weight(value) + log_density


@jax.jit
def _decode(gebm, z):
    return gebm.decode(z)


@vmap_over.register
def _vmap_over_gebm(gebm: GEBM, base=None, energy=None, inverse_temperature=None, log_partition=None):
    return vmap_over.dispatch(dist.Distribution)(
        gebm, base=base, _energy=energy, inverse_temperature=inverse_temperature, _log_partition=log_partition
    )


def _shown(beta):
    """A number, or the shape of many; what a transformation of JAX has put in its place, by its type."""
    if isinstance(beta, jax.Array) and not_jax_tracer(beta):
        return f"{beta.item():g}" if beta.ndim == 0 else f"of shape {beta.shape}"
    return type(beta).__name__


@jax.jit
def _probe(gebm, num):
    x = gebm.base.sample(jax.random.key(0), num.shape)
    return over_batch(gebm.energy, x, gebm.event_dim)


def _energy_of_base_draws(gebm, num_draws):
    return _probe(gebm, np.zeros(num_draws))


class EnergyTiltedPrior(Distribution):
    r"""The GEBM as a distribution over its latent z: the energy-tilted prior.

    .. math:: \log \nu(z) = \log \eta(z) - \beta E(B(z)) - A

    NUTS and the kernels of `infer` run on its negative, the potential. Pushing its draws through the generator
    gives draws of the GEBM. Unnormalised if `gebm.log_partition` is None. Source: arXiv:2003.05033.

    Args:
        gebm: the model; `gebm.latent` builds this object.

    Shapes: `batch_shape` is `gebm.batch_shape`; `event_shape` is that of the latent prior.

    Example:
        >>> import jax, numpyro.distributions as dist
        >>> gebm = GEBM(dist.Normal(0.0, 1.0), lambda x: 0.5 * x**2)
        >>> gebm.latent.sample(jax.random.key(0), (3,)).shape
        (3,)
    """

    arg_constraints = {}
    pytree_data_fields = ("gebm",)

    def __init__(self, gebm: GEBM, *, validate_args: bool | None = None):
        self.gebm = instance("gebm", gebm, GEBM)
        optional(flag)("validate_args", validate_args)
        super().__init__(gebm.batch_shape, gebm.latent_prior.event_shape, validate_args=validate_args)
        self._made_with = gebm._made_with  # its arrays are those of the GEBM, which may be a stack

    @property
    def support(self) -> constraints.Constraint | None:
        return support_of(self.gebm.latent_prior, self)

    @property
    def has_rsample(self) -> bool:
        return False

    def __repr__(self) -> str:
        return f"EnergyTiltedPrior({self.gebm!r})"

    @sample_stack
    def sample(self, key: jax.Array | None, sample_shape: tuple[int, ...] = ()) -> jax.Array:
        """Draw from the tilted prior with the GEBM's sampler (`infer.AnnealedMALA` unless another was given).

        Args:
            key: a JAX random key.
            sample_shape: shape of the draws; the law of a draw does not depend on it.

        Returns:
            Array of shape `sample_shape + batch_shape + event_shape`.
        """
        if key is None:
            raise ValueError("Expected a JAX random key; got None. Draw as `sample(jax.random.key(0), (num,))`.")
        num_samples = math.prod(sample_shape)
        z = self.gebm.sampler(self, num_samples, rng_key=key)
        expected = (num_samples, *self.batch_shape, *self.event_shape)
        if z.shape != expected:
            raise ValueError(f"The sampler must return an array of shape {expected}; got {z.shape}.")
        return z.reshape(self.shape(sample_shape))

    @over_stack("event_shape")
    @_validated
    def log_prob(self, value: ArrayLike, intermediates: list[Any] | None = None) -> jax.Array:
        r"""$\log \eta(z) - \beta E(B(z)) - A$.

        Args:
            value: array of shape `sample_shape + batch_shape + event_shape`.
            intermediates: not used.

        Returns:
            Array of shape `sample_shape + batch_shape`.
        """
        self.gebm.check_normalized()
        return self.gebm.log_weight(self.gebm.decode(value)) + self.gebm.latent_prior.log_prob(value)
