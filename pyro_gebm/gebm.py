"""Generalized energy-based models as Pyro distributions, over x and over z."""

import copy
import math
from collections.abc import Callable
from functools import partial
from typing import Any, Protocol, cast

import pyro.distributions as dist
import torch
from pyro.distributions import constraints
from pyro.distributions.util import broadcast_shape
from pyro.poutine.runtime import am_i_wrapped
from torch._C._functorch import is_functorch_wrapped_tensor

from gebm.networks import shape_of
from gebm.programs import NOT_NORMALIZED
from gebm.validation import flag, instance, optional, real_numbers
from gebm.weights import LogPartition
from pyro_gebm.base import NO_DENSITY, check_support, decompose, is_discrete, support_of
from pyro_gebm.callables import (
    Energy,
    Generator,
    Shape,
    as_events,
    check_evaluation_mode,
    check_fixed,
    draw_quietly,
    is_learned,
    output_of,
    over_batch,
)
from pyro_gebm.dynamics.annealed_mala import AnnealedMALA

__all__ = ["GEBM", "EnergyTiltedPrior", "Sampler", "check_energy", "check_generator"]


class Sampler(Protocol):
    """Draws of the latents of a GEBM: a tensor of shape `(num_samples,) + latent.batch_shape + latent.event_shape`."""

    def __call__(self, latent: "EnergyTiltedPrior", num_samples: int, /) -> torch.Tensor: ...


class _FiniteNonnegative(constraints.Constraint):
    def check(self, value: torch.Tensor) -> torch.Tensor:
        return (value >= 0) & torch.isfinite(value)

    def __repr__(self) -> str:
        return "finite and >= 0 (it multiplies the energy)"


class _FiniteOrUnknown(constraints.Constraint):
    def check(self, value: torch.Tensor) -> torch.Tensor:
        return torch.tensor(True) if value is None or callable(value) else torch.isfinite(value)

    def __repr__(self) -> str:
        return "finite, a callable, or None"


def check_energy(base: torch.distributions.Distribution, energy: Energy) -> tuple[torch.Tensor, torch.Tensor]:
    """Check that an energy fits a base; returns a few draws of the base and their energies.

    Args:
        base: a distribution.
        energy: callable from `(N,) + base.event_shape` to `(N,)`.

    Returns:
        Eight draws (times the base's batch) and their energies.

    Raises:
        TypeError: if one of them is something else.
        ValueError: if the base is discrete, the energy cannot take an event, or it does not return shape `(N,)`.
    """
    instance("base", base, torch.distributions.Distribution, "distribution")
    if not callable(energy):
        raise TypeError(f"Expected energy to be callable, from events (N, ...) to (N,); got {energy!r}.")
    if is_discrete(base):
        raise ValueError(f"Expected a continuous base; got {type(base).__name__} (discrete).")
    events = draw_quietly(base, 8)
    energies = output_of(energy, events, "energy", "an event of the base")
    if energies.dim() != 1:
        raise ValueError(
            f"The energy must return shape (N,) for N events of shape {tuple(base.event_shape)}; got "
            f"{('N', *energies.shape[1:])}. Squeeze its last axis: `energy(x).squeeze(-1)`."
        )
    return events, energies


def check_generator(base: torch.distributions.Distribution) -> None:
    """Check that the generator of a base is one fixed function of one latent.

    Raises:
        ValueError: if it is not.
    """
    latent_prior, generator = decompose(base)
    latents = draw_quietly(latent_prior, 8)
    check_fixed(generator, latents, output_of(generator, latents, "generator", "a latent"), "generator")


def may_be_zero(inverse_temperature: torch.Tensor) -> bool:
    """Whether an inverse temperature is 0 somewhere; True within a transform of `torch.func`, where it has no value.

    Reads it from the device.
    """
    return is_functorch_wrapped_tensor(inverse_temperature) or bool((inverse_temperature == 0).any())


def neg_beta_energy(inverse_temperature: torch.Tensor, energy: torch.Tensor, may_be_zero: bool = True) -> torch.Tensor:
    r"""$-\beta E$, which at $\beta = 0$ is 0 also where the energy is infinite."""
    if not may_be_zero:
        return -inverse_temperature * energy
    return -inverse_temperature * torch.where((inverse_temperature == 0) & energy.isinf(), 0.0, energy)


class GEBM(dist.TorchDistribution):
    r"""Generalized energy-based model: a base reweighted by an energy, as a distribution over x.

    .. math:: Q(dx) = \exp(-\beta E(x) - A)\, G(dx), \qquad A = \log \int \exp(-\beta E)\, dG

    with $G$ the base, $E$ the energy (low where data is), $\beta$ the inverse temperature, which multiplies the
    energy only and never the prior, and $A$ the log-partition. Source: arXiv:2003.05033.

    Args:
        base: a `Pushforward`, a `TransformedDistribution` (a flow), another GEBM, or any continuous distribution that
            NUTS can handle. Over a GEBM the law is that of the sum of both energies; beta and A are of the new one.
        energy: `torch.nn.Module` or callable from events `(N,) + base.event_shape` to `(N,)`.
        inverse_temperature: $\beta \ge 0$, finite; a scalar or a tensor that broadcasts with `base.batch_shape`.
        log_partition: $A$ at this $\beta$: a scalar, the estimate that `log_partition(gebm)` returns, a callable of
            $\beta$ such as that of `log_partition_curve(gebm)`, or None for "unknown".
        sampler: callable `(latent, num_samples) -> z` with `z` of shape
            `(num_samples,) + latent.batch_shape + latent.event_shape`; None is `infer.AnnealedMALA()`.

    Shapes: `batch_shape` is `base.batch_shape` broadcast with the inverse temperature; `event_shape` is the base's.

    Raises:
        TypeError: if the base is not a distribution, or the energy cannot be called.
        ValueError: for an inverse temperature that is negative or not finite, an energy that does not fit the
            base's event or does not return shape `(N,)`, an energy that is NaN on draws of the base, a module in
            training mode, or a network that is not one fixed function of one example: it draws noise, or depends on
            the rest of the batch (checked on eight draws; `validate_args=False` leaves this check out).

    Example:
        >>> import torch, pyro.distributions as dist
        >>> prior = dist.Normal(0.0, 1.0).expand([2]).to_event(1)
        >>> gebm = GEBM(prior, lambda x: 0.5 * (x**2).sum(-1), log_partition=-math.log(2.0))
        >>> round(float(gebm.log_prob(torch.zeros(2))), 4)  # N(0, I/2) at its mean: -log(pi)
        -1.1447
    """

    arg_constraints = {  # pyright: ignore[reportIncompatibleMethodOverride, reportAssignmentType]  # as in PyTorch
        "inverse_temperature": _FiniteNonnegative(),
        "log_partition": _FiniteOrUnknown(),
    }
    has_rsample = False

    base: torch.distributions.Distribution
    energy: Energy
    inverse_temperature: torch.Tensor
    log_partition: torch.Tensor | Callable[[torch.Tensor], torch.Tensor] | None

    def __init__(
        self,
        base: torch.distributions.Distribution,
        energy: Energy,
        *,
        inverse_temperature: torch.Tensor | float = 1.0,
        log_partition: torch.Tensor | float | LogPartition | Callable[[torch.Tensor], torch.Tensor] | None = None,
        sampler: Sampler | None = None,
        validate_args: bool | None = None,
    ):
        optional(flag)("validate_args", validate_args)
        check_evaluation_mode(energy, "energy")
        events, energies = check_energy(base, energy)
        latent_prior, generator = decompose(base)
        check_support("the latent prior", latent_prior)
        check_evaluation_mode(generator, "generator")
        as_energies = partial(torch.as_tensor, dtype=energies.dtype, device=energies.device)
        if isinstance(log_partition, LogPartition):
            log_partition = log_partition.value
        if not (log_partition is None or callable(log_partition)):
            log_partition = real_numbers("log_partition", log_partition, as_energies)
        self.base = base
        self.energy = energy
        self.inverse_temperature = real_numbers("inverse_temperature", inverse_temperature, as_energies)
        self._may_be_zero = may_be_zero(self.inverse_temperature)
        self.log_partition = log_partition
        self._sampler = sampler
        self._is_of_program = am_i_wrapped()
        super().__init__(self._compute_batch_shape(), base.event_shape, validate_args=validate_args)
        if self._validate_args and torch.isnan(energies).any():
            raise ValueError(
                f"Expected an energy without NaN; got NaN at {int(torch.isnan(energies).sum())} of {energies.numel()} "
                "draws of the base. Check the weights of the generator and of the energy."
            )
        if self._validate_args:
            check_fixed(energy, events, energies, "energy")
            check_generator(base)

    def _compute_batch_shape(self) -> torch.Size:
        normalizer = () if self.log_partition is None or callable(self.log_partition) else self.log_partition.shape
        return torch.Size(broadcast_shape(self.base.batch_shape, self.inverse_temperature.shape, normalizer))

    def expand(self, batch_shape: Shape, _instance: Any = None) -> "GEBM":
        new = cast(GEBM, self._get_checked_instance(GEBM, _instance))
        new.__dict__.update(self.__dict__)
        new.base = self.base.expand(batch_shape)
        super(GEBM, new).__init__(torch.Size(batch_shape), self.event_shape, validate_args=False)
        new._validate_args = self._validate_args
        return new

    @property
    def sampler(self) -> Sampler:
        """The sampler given, or `infer.AnnealedMALA()`."""
        return self._sampler or AnnealedMALA()

    @property
    def latent_prior(self) -> torch.distributions.Distribution:
        r"""The prior $\eta$ of the latent."""
        return decompose(self.base)[0]

    @property
    def generator(self) -> Generator:
        """The generator $B$, on a batch of latents."""
        return decompose(self.base)[1]

    @property
    def latent(self) -> "EnergyTiltedPrior":
        """The same model over the latent z: an `EnergyTiltedPrior`."""
        return EnergyTiltedPrior(self)

    @property
    def support(self) -> constraints.Constraint | None:
        return support_of(self.base)

    def log_weight(self, x: torch.Tensor) -> torch.Tensor:
        r"""Log-weight of the base's draws, $-\beta E(x) - A$ (with $A = 0$ if it is unknown).

        Args:
            x: tensor of shape `sample_shape + batch_shape + event_shape`.

        Returns:
            Tensor of shape `sample_shape + batch_shape`.
        """
        x = as_events("x", x, self.event_shape)
        energy = over_batch(self.energy, x, len(self.event_shape))
        log_weight = neg_beta_energy(self.inverse_temperature, energy, self._may_be_zero)
        if self.log_partition is None:
            return log_weight
        normalizer = self.log_partition
        return log_weight - (normalizer(self.inverse_temperature) if callable(normalizer) else normalizer)

    def decode(self, z: torch.Tensor) -> torch.Tensor:
        """Push latents through the generator: shape `batch + latent_event_shape` to `batch + event_shape`."""
        latent_prior, generator = decompose(self.base)
        z = as_events("z", z, latent_prior.event_shape)
        return over_batch(generator, z, len(latent_prior.event_shape))

    def check_normalized(self) -> None:
        """Refuse an unknown log-partition of an energy that the program around it learns.

        Raises:
            ValueError: for such.
        """
        if self._is_of_program and self.log_partition is None and is_learned(self.energy):
            raise ValueError(NOT_NORMALIZED)

    def temper(self, inverse_temperature: torch.Tensor | float) -> "GEBM":
        """The same model at another inverse temperature; a scalar log-partition is then unknown (None).

        Args:
            inverse_temperature: finite, non-negative; may carry gradients.

        Returns:
            A new `GEBM`.
        """
        new = copy.copy(self)
        beta = self.inverse_temperature
        convert = partial(torch.as_tensor, dtype=beta.dtype, device=beta.device)
        new.inverse_temperature = real_numbers("inverse_temperature", inverse_temperature, convert)
        new._may_be_zero = may_be_zero(new.inverse_temperature)
        if not callable(self.log_partition):
            new.log_partition = None
        super(GEBM, new).__init__(new._compute_batch_shape(), self.event_shape, validate_args=self._validate_args)
        return new

    def sample(self, sample_shape: Shape = torch.Size()) -> torch.Tensor:
        """Draw from the *tilted* law (`gebm.base.sample` draws from the base), detached.

        Args:
            sample_shape: shape of the draws; the law of a draw does not depend on it.

        Returns:
            Tensor of shape `sample_shape + batch_shape + event_shape`.
        """
        with torch.no_grad():
            return self.decode(self.latent.sample(sample_shape))

    def __repr__(self) -> str:
        beta, base = self.inverse_temperature, type(self.base).__name__
        log_partition = "known" if self.log_partition is not None else "unknown"
        beta = f"{beta.item():g}" if beta.dim() == 0 else f"of shape {tuple(beta.shape)}"
        return f"GEBM(base: {base}, inverse_temperature: {beta}, log_partition: {log_partition})"

    def log_prob(self, value: torch.Tensor) -> torch.Tensor:
        r"""$\log g(x) - \beta E(x) - A$, for a base with density $g$; unnormalised if `log_partition` is None.

        Args:
            value: tensor of shape `sample_shape + batch_shape + event_shape`.

        Returns:
            Tensor of shape `sample_shape + batch_shape`.

        Raises:
            NotImplementedError: if the base has no density: a `Pushforward`, or a flow without an inverse.
        """
        if self._validate_args:
            self._validate_sample(value)
        self.check_normalized()
        try:
            log_density = self.base.log_prob(value.clone())  # a fresh tensor: flows cache by identity
        except NO_DENSITY as error:
            raise NotImplementedError(
                "GEBM.log_prob(x) needs a base with a density; the base here is a Pushforward, or a flow whose "
                "transforms have no inverse. Work in the latent space: `gebm.latent.log_prob(z)`, or "
                "`pyro.poutine.reparam(model, config={'<site>': LatentReparam()})` for a site of a model."
            ) from error
        return log_density + self.log_weight(value)


class EnergyTiltedPrior(dist.TorchDistribution):
    r"""The GEBM as a distribution over its latent z: the energy-tilted prior.

    .. math:: \log \nu(z) = \log \eta(z) - \beta E(B(z)) - A

    NUTS and the kernels of `infer` run on its negative, the potential. Pushing its draws through the generator
    gives draws of the GEBM. Unnormalised if `gebm.log_partition` is None. Source: arXiv:2003.05033.

    Args:
        gebm: the model; `gebm.latent` builds this object.

    Shapes: `batch_shape` is `gebm.batch_shape`; `event_shape` is that of the latent prior.

    Example:
        >>> import pyro.distributions as dist
        >>> gebm = GEBM(dist.Normal(0.0, 1.0), lambda x: 0.5 * x**2)
        >>> tuple(gebm.latent.sample((3,)).shape)
        (3,)
    """

    arg_constraints = {}  # pyright: ignore[reportIncompatibleMethodOverride, reportAssignmentType]  # as in PyTorch
    has_rsample = False

    def __init__(self, gebm: GEBM, *, validate_args: bool | None = None):
        self.gebm = instance("gebm", gebm, GEBM)
        optional(flag)("validate_args", validate_args)
        super().__init__(gebm.batch_shape, gebm.latent_prior.event_shape, validate_args=validate_args)

    def expand(self, batch_shape: Shape, _instance: Any = None) -> "EnergyTiltedPrior":
        new = cast(EnergyTiltedPrior, self._get_checked_instance(EnergyTiltedPrior, _instance))
        new.gebm = self.gebm.expand(batch_shape)
        super(EnergyTiltedPrior, new).__init__(torch.Size(batch_shape), self.event_shape, validate_args=False)
        new._validate_args = self._validate_args
        return new

    @property
    def support(self) -> constraints.Constraint | None:
        return support_of(self.gebm.latent_prior)

    def __repr__(self) -> str:
        return f"EnergyTiltedPrior({self.gebm!r})"

    def sample(self, sample_shape: Shape = torch.Size()) -> torch.Tensor:
        """Draw from the tilted prior with the GEBM's sampler (`infer.AnnealedMALA` unless another was given), detached.

        Args:
            sample_shape: shape of the draws; the law of a draw does not depend on it.

        Returns:
            Tensor of shape `sample_shape + batch_shape + event_shape`.
        """
        sample_shape = shape_of("sample_shape", sample_shape, minimum=0)
        num_samples = math.prod(sample_shape)
        z = self.gebm.sampler(self, num_samples).detach()
        expected = (num_samples, *self.batch_shape, *self.event_shape)
        if tuple(z.shape) != expected:
            raise ValueError(f"The sampler must return a tensor of shape {expected}; got {tuple(z.shape)}.")
        return z.reshape(self.shape(torch.Size(sample_shape)))

    def log_prob(self, value: torch.Tensor) -> torch.Tensor:
        r"""$\log \eta(z) - \beta E(B(z)) - A$.

        Args:
            value: tensor of shape `sample_shape + batch_shape + event_shape`.

        Returns:
            Tensor of shape `sample_shape + batch_shape`.
        """
        if self._validate_args:
            self._validate_sample(value)
        self.gebm.check_normalized()
        return self.gebm.latent_prior.log_prob(value) + self.gebm.log_weight(self.gebm.decode(value))
