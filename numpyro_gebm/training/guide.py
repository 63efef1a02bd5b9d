"""The variational side of KALE: the energy, its log-partition and its penalty."""

from collections.abc import Callable
from functools import partial
from typing import TypeAlias

import equinox as eqx
import jax
import jax.numpy as jnp
from jax import lax, random
from jax.scipy.special import logsumexp
from numpyro.distributions import Distribution
from numpyro.util import not_jax_tracer

from gebm import validation
from gebm.evaluation import MIN_DRAWS, TOLERANCE, WeightSums, check_budget, chunk_size
from gebm.networks import name_of
from gebm.weights import LogPartition
from numpyro_gebm.callables import Energy, Partitioned, over_batch
from numpyro_gebm.keys import typed

__all__ = [
    "KALEGuide",
    "decayed_rate",
    "gradient_penalty",
    "gradient_step",
    "l2_penalty",
    "newton_step",
    "settle_log_partition",
    "sum_of_penalties",
    "weight_sums",
]

#: Largest change of A, in units of the rate, that one batch may ask for.
CLIP = 5.0

#: `(energy, data, base_draws, rng_key) -> scalar`.
Penalty: TypeAlias = Callable[[Callable, jax.Array, jax.Array, jax.Array], jax.Array]


def newton_step(log_partition: jax.Array, batch_estimate: jax.Array, rate: float | jax.Array) -> jax.Array:
    r"""Newton-like step of A towards its estimate from a batch: $A + r\,(1 - \exp(A - \tilde A))$, clipped.

    Fast from afar; its fixed point over random batches is biased, so it serves the warm-up only.

    Args:
        log_partition: A.
        batch_estimate: $\tilde A$, the log-partition of the batch.
        rate: r.

    Returns:
        The new A.
    """
    return log_partition + rate * jnp.clip(1.0 - jnp.exp(log_partition - batch_estimate), -CLIP, CLIP)


def gradient_step(log_partition: jax.Array, batch_estimate: jax.Array, rate: float | jax.Array) -> jax.Array:
    r"""Gradient step of KALE in A: $A + r\,(\exp(\tilde A - A) - 1)$, clipped.

    Unbiased: at the true A its mean over batches is zero.

    Args:
        log_partition: A.
        batch_estimate: $\tilde A$, the log-partition of the batch.
        rate: r.

    Returns:
        The new A.
    """
    return log_partition + rate * jnp.clip(jnp.exp(batch_estimate - log_partition) - 1.0, -CLIP, CLIP)


def decayed_rate(rate: float, step: jax.Array) -> jax.Array:
    r"""Rate of A after the warm-up, $r\, \max(0.1, 1 / (1 + t / 1000))$.

    It falls so that A averages over batches, and stays high enough to follow an energy that changes.

    Args:
        rate: r.
        step: t, energy steps since the warm-up.

    Returns:
        The rate of this step.
    """
    return rate * jnp.maximum(0.1, 1.0 / (1.0 + step / 1000.0))


def settle_log_partition(
    base: Distribution,
    energy: Callable[[jax.Array], jax.Array],
    *,
    tolerance: float | None = None,
    max_draws: int | None = None,
    rng_key: jax.Array,
) -> jax.Array:
    r"""A of a fixed energy from fresh base draws: the log-mean-exp over all of them.

    The same as gradient steps in $\exp(A)$ with the decaying rate 1/t, without a rate to choose.

    Args:
        base: a distribution.
        energy: the energy, on one of its events.
        tolerance: standard error at which to stop, in nats; None is 0.003.
        max_draws: base draws at most; None is 200,000.
        rng_key: a JAX random key.

    Returns:
        Scalar.

    Raises:
        ValueError: if the tolerance is not positive, or the number below 2.
    """
    sums = weight_sums(base, energy, *check_budget(tolerance, max_draws), rng_key=rng_key)
    return sums.log_sum - jnp.log(sums.num)


def weight_sums(
    base: Distribution,
    energy: Callable[[jax.Array], jax.Array],
    tolerance: float | None,
    max_draws: int,
    *,
    rng_key: jax.Array,
) -> WeightSums:
    """Sums over fresh base draws, until log Z is known well enough; one compiled program, in pieces of memory.

    Args:
        base: a distribution.
        energy: the energy, on one of its events.
        tolerance: standard error of A at which to stop; None is 0.003.
        max_draws: base draws at most.
        rng_key: a JAX random key.

    Returns:
        `WeightSums` of scalars.
    """
    chunk = chunk_size(base.event_shape, max_draws)
    tolerance = TOLERANCE if tolerance is None else tolerance
    return _weight_sums(base, Partitioned(energy), typed(rng_key), chunk, max_draws // chunk, tolerance)


@partial(jax.jit, static_argnums=3)
def _weight_sums(base, energy, rng_key, chunk, max_chunks, tolerance):
    least = -(-MIN_DRAWS // chunk)

    def energies(t):
        x = base.sample(random.fold_in(rng_key, t), (chunk,))
        return over_batch(energy.fn, x, base.event_dim)

    def goes_on(sums):
        done = sums.num / chunk
        spread = (
            jnp.exp(sums.log_sum_squares - 2.0 * sums.log_sum) - 1.0 / sums.num
        )  # NaN, and at its end, with no weight
        good = (done >= least) & (spread <= tolerance**2)
        return (done < max_chunks) & ~good

    def add(sums):
        e = energies((sums.num / chunk).astype(jnp.int32))
        new = WeightSums(
            jnp.asarray(chunk, e.dtype), logsumexp(-e), logsumexp(-2.0 * e), jnp.sum(e), jnp.sum(jnp.square(e))
        )
        one, two = (jnp.logaddexp(sums[i], new[i]) for i in (1, 2))
        return WeightSums(
            sums.num + new.num, one, two, sums.energy + new.energy, sums.energy_square + new.energy_square
        )

    dtype = jax.eval_shape(energies, 0).dtype
    zero, nothing = jnp.zeros((), dtype), jnp.full((), -jnp.inf, dtype)
    return lax.while_loop(goes_on, add, WeightSums(zero, nothing, nothing, zero, zero))


def gradient_penalty(weight: float = 1.0) -> Penalty:
    r"""Zero-centred gradient penalty, $w\, \mathbb{E}\|\nabla_x E(\tilde x)\|^2$, on interpolates of data and base.

    Args:
        weight: w, non-negative.

    Returns:
        A penalty: callable `(energy, data, base_draws, rng_key) -> scalar`. With more base draws than data the data
        are repeated.

    Raises:
        ValueError: for a weight that is negative or not finite.
    """
    weight = validation.nonnegative("weight", weight)

    def penalty(energy, data, base_draws, rng_key):
        data = jnp.resize(data, base_draws.shape)
        mix = random.uniform(rng_key, (data.shape[0],) + (1,) * (data.ndim - 1), data.dtype)
        grads = jax.vmap(jax.grad(energy))(mix * data + (1.0 - mix) * base_draws)
        return weight * jnp.mean(jnp.sum(grads.reshape(grads.shape[0], -1) ** 2, axis=1))

    return penalty


def l2_penalty(weight: float) -> Penalty:
    r"""Squared norm of the energy's parameters, $w\, \|\psi\|^2$.

    Args:
        weight: w, non-negative.

    Returns:
        A penalty, see `gradient_penalty`.

    Raises:
        ValueError: for a weight that is negative or not finite.
    """
    weight = validation.nonnegative("weight", weight)

    def penalty(energy, data, base_draws, rng_key):
        arrays = jax.tree.leaves(eqx.filter(energy, eqx.is_inexact_array))
        return jnp.asarray(weight * sum(jnp.sum(array**2) for array in arrays))

    return penalty


def sum_of_penalties(*penalties: Penalty) -> Penalty:
    """The sum of several penalties, each with random numbers of its own.

    Args:
        penalties: penalties, see `gradient_penalty`.

    Returns:
        A penalty.

    Example:
        >>> guide = KALEGuide(lambda x: x.sum(), penalty=sum_of_penalties(gradient_penalty(1.0), l2_penalty(1e-4)))
    """

    def penalty(energy, data, base_draws, rng_key):
        keys = random.split(rng_key, len(penalties))
        return jnp.asarray(sum(p(energy, data, base_draws, key) for p, key in zip(penalties, keys, strict=True)))

    return penalty


class KALEGuide:
    r"""Energy and log-partition of KALE, with their regulariser. Not a program: it has no sample sites.

    Calling it gives the critic (witness) $h(x) = -(E(x) + A)$. At the optimum $h = \log dP/dG$.

    Args:
        energy: callable pytree from one event to a scalar of shape `()`.
        log_partition: initial A, a number or the estimate that `log_partition(gebm)` returns; None starts it by Monte
            Carlo.
        log_partition_rate: rate of the steps of A, which is not among the energy optimiser's parameters; it decays
            (`decayed_rate`).
        penalty: callable `(energy, data, base_draws, rng_key) -> scalar` added to the energy's loss, or None.

    Raises:
        TypeError: if the energy or the penalty is not callable.
        ValueError: if the rate is not positive, or the log-partition not finite.

    Example:
        >>> guide = KALEGuide(lambda x: (x**2).sum(), log_partition=0.5)
        >>> float(guide(jnp.ones(2)))
        -2.5
    """

    def __init__(
        self,
        energy: Energy,
        *,
        log_partition: jax.Array | float | LogPartition | None = None,
        log_partition_rate: float = 0.1,
        penalty: Penalty | None = gradient_penalty(1.0),
    ) -> None:
        if not callable(energy):
            raise TypeError(f"Expected energy to be callable; got {type(energy).__name__}.")
        self.energy = energy
        log_partition = log_partition.value if isinstance(log_partition, LogPartition) else log_partition
        if log_partition is not None and not_jax_tracer(log_partition):
            validation.finite("log_partition", log_partition)
        self.log_partition = log_partition
        self.log_partition_rate = validation.positive("log_partition_rate", log_partition_rate)
        self.penalty = validation.callable_or_none("penalty", penalty)

    def __repr__(self) -> str:
        log_partition = "unknown" if self.log_partition is None else str(self.log_partition)
        return f"KALEGuide(energy: {name_of(self.energy)}, log_partition: {log_partition})"

    def __call__(self, x: jax.Array) -> jax.Array:
        """The critic at one event x; `jax.vmap` it over many.

        Raises:
            ValueError: while the log-partition is unknown (before training).
        """
        if self.log_partition is None:
            raise ValueError(
                "The log-partition is unknown before training: use `result.guide`, or pass `log_partition=`."
            )
        return -(self.energy(x) + self.log_partition)
