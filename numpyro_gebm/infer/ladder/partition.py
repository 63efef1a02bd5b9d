"""Estimates of the log-partition of a GEBM."""

from functools import partial

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import numpyro
from jax import lax, random
from numpyro.diagnostics import effective_sample_size
from tqdm import tqdm

from gebm.ladder import BATCH_SIZE, DELAY, slopes
from gebm.validation import flag, instance, latent_law, optional
from gebm.weights import LogPartition, Method, estimate
from numpyro_gebm.base import Pushforward, decompose
from numpyro_gebm.callables import Partitioned
from numpyro_gebm.gebm import GEBM
from numpyro_gebm.infer.ladder.smc import SMC
from numpyro_gebm.infer.ladder.smc import draw as smc_draw
from numpyro_gebm.infer.ladder.tempering import Ladder, raise_failures
from numpyro_gebm.keys import typed
from numpyro_gebm.nn import Applied

__all__ = ["LogPartitionCurve", "log_partition", "log_partition_curve", "normalized"]


def log_partition(
    gebm: GEBM,
    method: Method = "smc",
    *,
    rng_key: jax.Array,
    num_samples: int | None = None,
    draws: jax.Array | np.ndarray | None = None,
    progress_bar: bool = True,
) -> LogPartition:
    r"""Estimate the log-partition $A = \log \int \exp(-\beta E)\, dG$ of a GEBM, with a standard error.

    - `"importance"`: the mean of $e^{-\beta E}$ over base draws. Unbiased, but useless if base and
      model differ much: the warnings say so.
    - `"ais"`: annealed importance sampling (arXiv:physics/9803008): `SMC` without resampling.
    - `"smc"`: sequential Monte Carlo (`SMC`), the default.
    - `"bridge"`: bridge sampling between base draws and given draws of the model (`draws`), such as those of an MCMC
      run (doi:10.2307/24306045).

    The estimate does not depend on `gebm.log_partition`.

    Args:
        gebm: a `GEBM` with batch shape ().
        method: one of "importance", "ais", "smc", "bridge".
        rng_key: a JAX random key.
        num_samples: base draws, or particles ("smc" takes the next multiple of its 64 groups); None is 100,000 for
            "importance", 4,096 for "ais" and "smc", and as many as there are draws for "bridge".
        draws: latents drawn from the tilted law, of shape `(chains, draws) + event_shape`, for "bridge".
        progress_bar: whether to show one if it takes longer than two seconds.

    Returns:
        A `LogPartition`; its `warnings` say when it cannot be trusted.

    Raises:
        ValueError: for an unknown method, a GEBM with a batch shape, draws of a wrong shape, or fewer than two samples.
        RuntimeError: if the energy is NaN at a draw of the base.

    Example:
        >>> import math, jax, numpyro.distributions as dist
        >>> from numpyro_gebm import GEBM
        >>> gebm = GEBM(dist.Normal(0.0, 1.0), lambda x: 1.5 * x**2)
        >>> estimate = log_partition(gebm, "importance", rng_key=jax.random.key(0))
        >>> abs(estimate.value + 0.5 * math.log(4.0)) < 4 * estimate.std_error
        True
    """
    latent = instance("gebm", gebm, GEBM).latent

    def of_particles(num: int, num_groups: int) -> LogPartition:
        return SMC(num, num_groups).run(latent, rng_key=rng_key, progress_bar=progress_bar).log_partition

    return estimate(
        method,
        num_samples,
        None if draws is None else jnp.asarray(draws),
        latent.event_shape,
        of_base=lambda num: _log_weights_of_base(latent, rng_key, num, progress_bar),
        of_draws=lambda draws: _log_weights(latent, draws.reshape(-1, *latent.event_shape)).reshape(draws.shape[:2]),
        of_particles=of_particles,
        effective_sample_size=effective_sample_size,
    )


def normalized(gebm: GEBM, smc: SMC | None = None, *, rng_key: jax.Array | None = None) -> GEBM:
    r"""The same model with a log-partition whose gradient is right, for programs in which energy or base are learned.

    A fresh run of SMC estimates A, and its particles the gradient by the parameters, in base and energy:

    .. math:: \nabla A = \mathbb{E}_{\nu}[\nabla (\log \eta - \beta E \circ B)(z)]

    `SVI` with `x ~ normalized(GEBM(...))` in the model then follows the gradient of the ELBO, without bias from the
    log-partition as the number of particles grows. Source: arXiv:2003.05033.

    Args:
        gebm: a `GEBM` with batch shape ().
        smc: an `SMC`; None is one of 1,024 particles in 16 groups.
        rng_key: a JAX random key; None takes one from the program around it, `numpyro.prng_key()`.

    Returns:
        A `GEBM`.

    Raises:
        ValueError: for a GEBM with a batch shape.
        TypeError: without a key outside of a program.

    Example:
        >>> import jax, numpyro.distributions as dist
        >>> def log_partition(precision):
        ...     gebm = GEBM(dist.Normal(0.0, 1.0), lambda x: 0.5 * precision * x**2)
        ...     return normalized(gebm, rng_key=jax.random.key(0)).log_partition
        >>> value, slope = jax.value_and_grad(log_partition)(3.0)  # -log(1 + precision) / 2
        >>> bool(abs(value + jax.numpy.log(4.0) / 2) < 0.1), bool(abs(slope + 1 / 8) < 0.05)
        (True, True)
    """
    instance("gebm", gebm, GEBM)
    rng_key = numpyro.prng_key() if rng_key is None else rng_key
    latent_prior, generator = decompose(gebm.base)
    latent_law("latent", gebm.latent)
    z = jax.eval_shape(latent_prior.sample, random.key(0))
    x = jax.eval_shape(generator, z)
    fixed = GEBM(
        Pushforward(_fixed(latent_prior), _fixed_fn(generator, z)),
        _fixed_fn(gebm.energy, x),
        inverse_temperature=lax.stop_gradient(gebm.inverse_temperature),
        validate_args=False,
    )
    config = SMC(1024, 16) if smc is None else instance("smc", smc, SMC)
    draws, value, failures = smc_draw(fixed.latent, typed(rng_key), config)
    raise_failures(failures)
    unnormalized = gebm.replaced(_log_partition=Partitioned(0.0))
    score = jnp.mean(unnormalized.latent.log_prob(lax.stop_gradient(draws)))
    log_partition = lax.stop_gradient(value) + score - lax.stop_gradient(score)
    return gebm.replaced(_log_partition=Partitioned(log_partition))


def _fixed(tree):
    return jax.tree.map(lambda x: lax.stop_gradient(x) if eqx.is_inexact_array(x) else x, tree)


def _fixed_fn(fn, example):
    """A network without derivatives by its arrays, also by those that it encloses."""
    pure, enclosed = jax.closure_convert(lambda x: fn(x), example)  # a function can be hashed, a network need not be
    return Applied(lambda arrays, x: pure(x, *arrays), tuple(map(lax.stop_gradient, enclosed)))


class LogPartitionCurve(eqx.Module):
    r"""$\beta \mapsto \log Z(\beta)$ between the rungs of a ladder: a cubic Hermite spline, from values and slopes.

    log Z is convex. Where a slope is so steep that the spline would not be (an energy of infinite mean at $\beta = 0$,
    or noise), it is made less so. Beyond the last rung the value is infinite, so that densities are 0 there: nothing is
    known about it.

    Args:
        inverse_temperatures: the rungs, increasing from 0, shape `(K,)`.
        values: log Z there, shape `(K,)`.
        slopes: its derivatives, minus the mean energies, shape `(K,)`.

    Example:
        >>> import jax.numpy as jnp
        >>> curve = LogPartitionCurve(jnp.array([0.0, 1.0]), jnp.array([0.0, -0.5]), jnp.array([-0.6, -0.4]))
        >>> float(curve(0.0)), float(curve(1.0))
        (0.0, -0.5)
    """

    inverse_temperatures: jax.Array
    values: jax.Array
    slopes: jax.Array

    def __call__(self, inverse_temperature: float | jax.Array) -> jax.Array:
        x, y, slope = self.inverse_temperatures, self.values, self.slopes
        beta = jnp.asarray(inverse_temperature, y.dtype)
        i = jnp.clip(jnp.searchsorted(x, beta, side="right") - 1, 0, len(x) - 2)
        width, rise = x[i + 1] - x[i], y[i + 1] - y[i]
        left, right = jnp.maximum(rise - width * slope[i], 0.0), jnp.maximum(width * slope[i + 1] - rise, 0.0)
        left, right = jnp.minimum(left, 2 * right), jnp.minimum(right, 2 * left)  # convex between the rungs
        u = (beta - x[i]) / width
        inside = y[i] + u * rise - u * (1 - u) * ((1 - u) * left + u * right)
        return jnp.where(beta > x[-1], jnp.inf, inside)


def log_partition_curve(
    gebm: GEBM, smc: SMC | None = None, *, rng_key: jax.Array, progress_bar: bool = True
) -> LogPartitionCurve:
    r"""$\log Z(\beta)$ from 0 to the inverse temperature of a GEBM, as a function, for use as its `log_partition`.

    The inverse temperature can then be a random variable of a model: `gebm.temper(beta)` stays normalised. Where the
    energy is infinite on a part of the base, log Z jumps at 0 from 0 to the logarithm of the share of the rest.

    Args:
        gebm: a `GEBM` with batch shape (), at the largest inverse temperature that will be needed.
        smc: an `SMC`; None is one of 16,384 particles with `effective_fraction=0.9`, whose rungs lie close together.
        rng_key: a JAX random key.
        progress_bar: whether to show one if it takes longer than two seconds.

    Returns:
        A `LogPartitionCurve`.

    Raises:
        ValueError: for a GEBM with a batch shape or inverse temperature 0, or an energy of infinite mean above it.

    Example:
        >>> import math, jax, numpyro.distributions as dist
        >>> from numpyro_gebm import GEBM
        >>> energy = lambda x: 0.5 * x**2
        >>> coldest = GEBM(dist.Normal(0.0, 1.0), energy, inverse_temperature=10.0)
        >>> curve = log_partition_curve(coldest, rng_key=jax.random.key(0))
        >>> gebm = GEBM(dist.Normal(0.0, 1.0), energy, log_partition=curve)
        >>> bool(abs(curve(3.0) + 0.5 * math.log(4.0)) < 0.02)
        True
    """
    instance("gebm", gebm, GEBM)
    optional(partial(instance, types=SMC))("smc", smc)
    if not gebm.inverse_temperature.max() > 0:
        raise ValueError(f"Expected inverse_temperature > 0, where the curve ends; got {gebm.inverse_temperature}.")
    result = (smc or SMC(16_384, effective_fraction=0.9)).run(gebm.latent, rng_key=rng_key, progress_bar=progress_bar)
    dtype = gebm.inverse_temperature.dtype
    values = (result.inverse_temperatures, result.log_partitions, slopes(*result[2:5]))
    return LogPartitionCurve(*(jnp.asarray(x, dtype) for x in values))


@jax.jit
def _base_draws(latent, rng_key):
    return latent.gebm.latent_prior.sample(rng_key, (BATCH_SIZE,))


@jax.jit
def _log_weights(latent, z):
    ladder = Ladder(latent)
    return ladder.neg_beta_energy(ladder.unconstrain(z))


def _log_weights_of_base(latent, rng_key, num, progress_bar):
    keys = random.split(typed(rng_key), -(-num // BATCH_SIZE))
    keys = tqdm(keys, "Draws of the base", unit="batch", delay=DELAY, disable=not flag("progress_bar", progress_bar))
    return np.concatenate([np.asarray(_log_weights(latent, _base_draws(latent, key))) for key in keys])[:num]
