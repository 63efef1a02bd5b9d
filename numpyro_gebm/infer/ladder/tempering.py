r"""The ladder of a GEBM, from its base to the tilted law, for all samplers on it.

On the rung t in [0, 1] the latent, in unconstrained coordinates u, has the law

.. math:: \nu_t(u) \propto \eta(u) \exp(-t\, \beta E(B(u)))

which at t = 0 is exactly the prior, and at t = 1 the tilted prior. Positions are arrays of shape `(N, d)`.
"""

import math
from typing import TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax, random
from numpyro.distributions import biject_to
from numpyro.distributions.util import sum_rightmost
from numpyro.util import not_jax_tracer

from gebm.annealing import MAX_REDRAWS
from gebm.ladder import (
    FIRST_RUNG,
    FRICTION,
    MAX_STEPS,
    NUM_HALVINGS,
    REAL_ENERGIES,
    TRAJECTORY_LENGTH,
    Points,
    batched,
    no_finite_energy,
    no_finite_start,
)
from gebm.langevin import NUM_PROBES, KineticState
from numpyro_gebm.callables import over_batch
from numpyro_gebm.dynamics.keys import standard_normal
from numpyro_gebm.dynamics.metropolis import accept_probability, choose
from numpyro_gebm.dynamics.starts import finite_start
from numpyro_gebm.dynamics.steps import PotentialAndGrad, trajectory, value_and_grad
from numpyro_gebm.gebm import EnergyTiltedPrior, neg_beta_energy

__all__ = [
    "Failures",
    "Ladder",
    "effective_fraction",
    "length_scale_of",
    "log_increment",
    "mean_of_groups",
    "move",
    "next_rung",
    "potential_at",
    "raise_failures",
    "systematic_resample",
]


#: Maps messages to whether that happened: a compiled program, which cannot raise errors, returns it with its result.
Failures: TypeAlias = dict[str, jax.Array]


class Ladder:
    """Prior and -beta E of a GEBM over unconstrained latents of shape `(N, d)`.

    Args:
        latent: an `EnergyTiltedPrior`.

    Raises:
        ValueError: if it has a batch shape.
    """

    def __init__(self, latent: EnergyTiltedPrior) -> None:
        if latent.batch_shape != ():
            raise ValueError(batched(latent.batch_shape))
        self._gebm, self._prior = latent.gebm, latent.gebm.latent_prior
        self._transform = biject_to(self._prior.support)
        self._shape = self._transform.inverse_shape(latent.event_shape)

    def sample_prior(self, rng_key: jax.Array, num: int) -> jax.Array:
        """Positions of exact draws of the prior, shape `(num, d)`."""
        return self.unconstrain(jnp.asarray(self._prior.sample(rng_key, (num,))))

    def shaped(self, u: jax.Array) -> jax.Array:
        """Positions in the unconstrained shape of a latent, with a leading axis of N."""
        return u.reshape(-1, *self._shape)

    def constrain(self, u: jax.Array) -> jax.Array:
        """Latents, shape `(N,) + event_shape`, at positions."""
        return self._transform(self.shaped(u))

    def unconstrain(self, z: jax.Array) -> jax.Array:
        """Positions at latents."""
        return self._transform.inv(z).reshape(len(z), -1)

    def log_prior(self, u: jax.Array) -> jax.Array:
        """Log density of the prior at positions, shape `(N,)`."""
        u = self.shaped(u)
        z = self._transform(u)
        jacobian = self._transform.log_abs_det_jacobian(u, z)
        return jnp.asarray(self._prior.log_prob(z)) + sum_rightmost(jacobian, jnp.ndim(jacobian) - 1)

    def decode(self, u: jax.Array) -> jax.Array:
        """Events at positions, with a leading axis of N."""
        return self._gebm.decode(self.constrain(u))

    def neg_beta_energy(self, u: jax.Array) -> jax.Array:
        """-beta E at positions, shape `(N,)`."""
        gebm = self._gebm
        energy = over_batch(gebm.energy, self.decode(u), gebm.event_dim)
        return neg_beta_energy(gebm.inverse_temperature, energy)

    def evaluate(self, u: jax.Array) -> Points:
        """`Points` at positions."""
        return Points(u, *value_and_grad(self.log_prior, u), *value_and_grad(self.neg_beta_energy, u))

    def start(self, rng_key: jax.Array, num: int) -> tuple[Points, Failures]:
        """`Points` at exact draws of the prior, and whether energies are NaN or -inf there, or all infinite."""
        points = self.evaluate(self.sample_prior(rng_key, num))
        infinite = (points.neg_beta_energy == -jnp.inf).all()
        return points, {REAL_ENERGIES: _not_real(points), no_finite_energy(num): infinite}

    def start_finite(self, rng_key: jax.Array, num: int) -> tuple[Points, Failures]:
        """`Points` at draws of the prior of finite energy, where a chain on a rung above 0 starts; and whether an
        energy is NaN or -inf there, or there were 1,000 in a row that are infinite.
        """

        def propose(key):
            u = self.sample_prior(key, num)
            return u, self.neg_beta_energy(u)

        u, *_ = finite_start(rng_key, propose)
        points = self.evaluate(u)
        infinite = (points.neg_beta_energy == -jnp.inf).any()
        return points, {REAL_ENERGIES: _not_real(points), no_finite_start(num, MAX_REDRAWS): infinite}

    def potential_and_grad(self, t: float | jax.Array) -> PotentialAndGrad:
        """A callable from positions to the potential of the rung t (a scalar, or shape `(N,)`) and its gradient."""
        return lambda u: value_and_grad(lambda u: -self.log_prior(u) - log_increment(t, self.neg_beta_energy(u)), u)


def _not_real(points):
    return (jnp.isnan(points.neg_beta_energy) | (points.neg_beta_energy == jnp.inf)).any()


def raise_failures(failures: Failures) -> None:
    """Raise the error of a compiled program that failed; within a trace nothing is known, and nothing raised.

    Raises:
        RuntimeError: if something failed.
    """
    for message, failed in failures.items():
        if not_jax_tracer(failed) and np.asarray(failed).any():
            raise RuntimeError(message)


def potential_at(points: Points, t: float | jax.Array) -> tuple[jax.Array, jax.Array]:
    """Potential of the rung t (a scalar, or shape `(N,)`) at `Points`, and its gradient."""
    t = jnp.asarray(t)
    over_rows = t if t.ndim == 0 else t[:, None]
    grad = -points.log_prior_grad - log_increment(over_rows, points.neg_beta_energy_grad)
    return -points.log_prior - log_increment(t, points.neg_beta_energy), grad


def move(
    rng_key: jax.Array,
    points: Points,
    ladder: Ladder,
    t: float | jax.Array,
    step_size: float | jax.Array,
    length_scale: float | jax.Array,
    num_moves: int,
) -> tuple[Points, jax.Array, jax.Array]:
    """Metropolis-adjusted Langevin trajectories (arXiv:2202.13230) on one rung.

    They are 1.57 length scales long, or 64 steps where that is less.

    Args:
        rng_key: a JAX random key.
        points: `Points`.
        ladder: `Ladder`.
        t: the rung, a scalar or shape `(N,)`.
        step_size: step size of the trajectories in units of the length scale; a scalar.
        length_scale: length scale of the law; a scalar or shape `(N,)`.
        num_moves: trajectories, one test each.

    Returns:
        `(Points, acceptance probabilities, gradients)`: the probabilities are means over the moves, of shape `(N,)`,
        the gradients those spent on each point.
    """
    num_steps = jnp.clip(jnp.ceil(TRAJECTORY_LENGTH / step_size), 1, MAX_STEPS)
    h = jnp.minimum(TRAJECTORY_LENGTH / num_steps, step_size)
    scale = length_scale if jnp.ndim(length_scale) == 0 else jnp.asarray(length_scale)[:, None]
    potential_and_grad = ladder.potential_and_grad(t)

    def body(i, carry):
        state, total = carry
        keys = random.split(random.fold_in(rng_key, i), 3)
        start = state._replace(v=standard_normal(keys[0], state.z))
        end, error = trajectory(keys[1], start, potential_and_grad, h, FRICTION, num_steps.astype(int), scale)
        accept_prob = accept_probability(error)
        accept = random.uniform(keys[2], error.shape, error.dtype) < accept_prob
        return choose(accept, end, start), total + accept_prob

    start = KineticState(points.u, jnp.zeros_like(points.u), points.u, *potential_at(points, t))
    state, total = lax.fori_loop(0, num_moves, body, (start, jnp.zeros_like(points.neg_beta_energy)))
    return ladder.evaluate(state.z), total / num_moves, (num_moves * num_steps).astype(int) + 1


def length_scale_of(u: jax.Array) -> jax.Array:
    r"""Length scale $\sqrt{\operatorname{tr} \Sigma^2 / \operatorname{tr} \Sigma}$ of positions, shape `(N, d)`.

    Positions that are not finite do not count; it is 1 for positions that are all the same.
    """
    finite = jnp.isfinite(u).all(1)[:, None]
    num = finite.sum()
    y = jnp.where(finite, u - jnp.sum(u, 0, where=finite) / num, 0.0)
    probes = random.normal(random.key(0), (u.shape[1], NUM_PROBES), u.dtype)
    projected = y.T @ (y @ probes) / num
    scale = jnp.sqrt(jnp.sum(projected**2) / NUM_PROBES / jnp.sum(y**2) * num)
    return jnp.where((scale > 0) & (scale < jnp.inf), scale, 1.0)


def effective_fraction(log_weights: jax.Array) -> jax.Array:
    r"""$(\sum w)^2 / (N \sum w^2)$, the effective sample size of weights over their number; shape `(N,)` to `()`."""
    w = jnp.exp(log_weights - log_weights.max())
    return w.sum() ** 2 / (w**2).sum() / len(w)


def mean_of_groups(log_weights: jax.Array, x: jax.Array) -> jax.Array:
    """Weighted mean over groups, of which those of weight 0 do not count; shapes `(N,)` and `(N,)` to `()`."""
    return (jax.nn.softmax(log_weights) * jnp.where(log_weights == -jnp.inf, 0.0, x)).sum()


def log_increment(step: float | jax.Array, neg_beta_energy: jax.Array) -> jax.Array:
    """Log-weights of a step up the ladder, -step beta E; 0 if there is no step, even where the energy is infinite."""
    return jnp.where(step == 0, 0.0, step * neg_beta_energy)


def next_rung(t: jax.Array, neg_beta_energy: jax.Array, fraction: float) -> jax.Array:
    """The rung above t at which the weights of the step have the given effective fraction; at most 1.

    Particles of infinite energy have weight 0 on every rung above t, and do not count; where there are any at t = 0, a
    rung next to it separates them from the rest.

    Args:
        t: rung, a scalar in [0, 1).
        neg_beta_energy: -beta E of the particles on it, shape `(N,)`.
        fraction: effective sample size of the weights over their number.

    Returns:
        A scalar.
    """
    finite = jnp.isfinite(neg_beta_energy)

    def good_after(step):
        log_weights = jnp.where(finite, step * neg_beta_energy, -jnp.inf)
        return effective_fraction(log_weights) * len(neg_beta_energy) >= fraction * finite.sum()

    def halve(_, bounds):
        low, high = bounds
        middle = 0.5 * (low + high)
        good = good_after(jnp.exp(middle))
        return jnp.where(good, middle, low), jnp.where(good, high, middle)

    # of the logarithm of the step, as it can be of any scale
    bounds = jnp.full_like(t, math.log(FIRST_RUNG)), jnp.log(1.0 - t)
    low, _ = lax.fori_loop(0, NUM_HALVINGS, halve, bounds)
    new = jnp.where(good_after(1.0 - t), 1.0, t + jnp.exp(low))
    return jnp.where((t == 0) & ~finite.all(), FIRST_RUNG, new)


def systematic_resample(rng_key: jax.Array, log_weights: jax.Array) -> jax.Array:
    """Indices of as many draws as there are weights, by systematic resampling; shape `(N,)`.

    Weights that are all 0 count as equal.
    """
    num = len(log_weights)
    log_weights = jnp.where((log_weights == -jnp.inf).all(), 0.0, log_weights)
    cumulative = jnp.cumsum(jax.nn.softmax(log_weights))
    positions = (jnp.arange(num) + random.uniform(rng_key, (), log_weights.dtype)) / num
    return jnp.minimum(jnp.searchsorted(cumulative / cumulative[-1], positions, side="right"), num - 1)
