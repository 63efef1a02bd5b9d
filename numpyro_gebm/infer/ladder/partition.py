"""The log-partition of a GEBM, estimated."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax import random
from numpyro.diagnostics import effective_sample_size
from tqdm import tqdm

from gebm.weights import bridge, from_log_weights
from numpyro_gebm.infer.ladder.smc import DELAY, SMC
from numpyro_gebm.infer.ladder.tempering import Ladder

__all__ = ["LogPartitionCurve", "log_partition", "log_partition_curve"]

#: Base draws whose energies are computed at once.
BATCH_SIZE = 4096


def log_partition(gebm, method="smc", *, rng_key, num_samples=None, draws=None, progress_bar=True):
    r"""Estimate the log-partition $A = \log \int \exp(-\beta E)\, dG$ of a GEBM, with a standard error.

    - `"importance"`: the mean of $e^{-\beta E}$ over base draws. Without bias, and useless where base and model
      differ by much: the warnings say so.
    - `"ais"`: annealed importance sampling (arXiv:physics/9803008): `SMC` without resampling.
    - `"smc"`: sequential Monte Carlo (`SMC`), the default.
    - `"bridge"`: bridge sampling between base draws and draws of the model at hand (`draws`), such as an MCMC run has
      left (doi:10.2307/24306045).

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
        A `LogPartition`; its `warnings` say in words where it cannot be trusted.

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
    if num_samples is not None and num_samples < 2:
        raise ValueError(f"Expected num_samples >= 2 or None; got {num_samples}.")
    if (draws is not None) != (method == "bridge"):
        raise ValueError(f"Expected draws of the tilted law with method='bridge' and only there; got {method!r}.")
    if method == "importance":
        return from_log_weights(_base_tilts(gebm.latent, rng_key, num_samples or 100_000, progress_bar))
    if method in ("ais", "smc"):
        num = num_samples or SMC.num_particles
        num_groups = num if method == "ais" else SMC.num_groups
        smc = SMC(-(-num // num_groups) * num_groups, num_groups)
        return smc.run(gebm.latent, rng_key=rng_key, progress_bar=progress_bar).log_partition
    if method == "bridge":
        draws = _checked(draws, gebm.latent.event_shape)
        num = num_samples or draws.shape[0] * draws.shape[1]
        on_draws = _tilts(gebm.latent, draws.reshape(-1, *draws.shape[2:])).reshape(draws.shape[:2])
        return bridge(_base_tilts(gebm.latent, rng_key, num, progress_bar), on_draws, effective_sample_size)
    raise ValueError(f"Expected method 'importance', 'ais', 'smc' or 'bridge'; got {method!r}.")


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

    def __call__(self, inverse_temperature):
        x, y, slope = self.inverse_temperatures, self.values, self.slopes
        beta = jnp.asarray(inverse_temperature, y.dtype)
        i = jnp.clip(jnp.searchsorted(x, beta, side="right") - 1, 0, len(x) - 2)
        width, rise = x[i + 1] - x[i], y[i + 1] - y[i]
        left, right = jnp.maximum(rise - width * slope[i], 0.0), jnp.maximum(width * slope[i + 1] - rise, 0.0)
        left, right = jnp.minimum(left, 2 * right), jnp.minimum(right, 2 * left)  # convex between the rungs
        u = (beta - x[i]) / width
        inside = y[i] + u * rise - u * (1 - u) * ((1 - u) * left + u * right)
        return jnp.where(beta > x[-1], jnp.inf, inside)


def log_partition_curve(gebm, smc=None, *, rng_key, progress_bar=True):
    r"""$\log Z(\beta)$ from 0 to the inverse temperature of a GEBM, as a function to give to it as `log_partition`.

    The inverse temperature can then be a random variable of a model: `gebm.temper(beta)` stays normalised.

    Args:
        gebm: a `GEBM` with batch shape (), at the largest inverse temperature that will be needed.
        smc: an `SMC`; None is one of 16,384 particles with `effective_fraction=0.9`, whose rungs lie close together.
        rng_key: a JAX random key.
        progress_bar: whether to show one if it takes longer than two seconds.

    Returns:
        A `LogPartitionCurve`.

    Raises:
        ValueError: for a GEBM with a batch shape or inverse temperature 0, or energies that are infinite.

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
    if not gebm.inverse_temperature.max() > 0:
        raise ValueError(f"Expected an inverse temperature above 0, up to which to go; got {gebm.inverse_temperature}.")
    result = (smc or SMC(16_384, effective_fraction=0.9)).run(gebm.latent, rng_key=rng_key, progress_bar=progress_bar)
    dtype = gebm.inverse_temperature.dtype
    values = (result.inverse_temperatures, result.log_partitions, -result.mean_energies)
    if not np.isfinite(values[2]).all():
        raise ValueError(
            "Expected finite energies on the ladder; their mean is infinite. log Z(beta) has no slope there."
        )
    return LogPartitionCurve(*(jnp.asarray(x, dtype) for x in values))


@jax.jit
def _base_draws(latent, rng_key):
    return latent.gebm.latent_prior.sample(rng_key, (BATCH_SIZE,))


@jax.jit
def _tilts(latent, z):
    ladder = Ladder(latent)
    return ladder.neg_beta_energy(ladder.unconstrain(z))


def _base_tilts(latent, rng_key, num, progress_bar):
    keys = random.split(rng_key, -(-num // BATCH_SIZE))
    keys = tqdm(keys, "Draws of the base", unit="batch", delay=DELAY, disable=not progress_bar)
    tilts = np.concatenate([np.asarray(_tilts(latent, _base_draws(latent, key))) for key in keys])[:num]
    if np.isnan(tilts).any():
        raise RuntimeError(f"Expected real energies; got NaN at {int(np.isnan(tilts).sum())} draws of the base.")
    return tilts


def _checked(draws, event_shape):
    draws = jnp.asarray(draws)
    if draws.ndim != 2 + len(event_shape) or draws.shape[2:] != event_shape:
        raise ValueError(
            f"Expected draws of shape (chains, draws) + {event_shape}; got {draws.shape}. Use "
            "`mcmc.get_samples(group_by_chain=True)`."
        )
    return draws
