"""Sequential Monte Carlo from the base of a GEBM to its tilted law."""

import dataclasses
from functools import partial
from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax, random
from tqdm import tqdm

from gebm.weights import LogPartition, from_log_weights
from numpyro_gebm.infer.ladder.pilot import MAX_RUNGS, pilot
from numpyro_gebm.infer.ladder.tempering import Ladder, Points, log_increment, move, systematic_resample

__all__ = ["SMC", "SMCResult"]

#: Particles of the pilot run, at most.
NUM_PILOT = 1024
#: Seconds after which a progress bar is shown.
DELAY = 2.0
#: Acceptance of the moves on a rung below which the estimate comes with a warning.
MIN_ACCEPT_PROB = 0.1


class SMCResult(NamedTuple):
    """Result of `SMC.run`.

    Args:
        z: particles of the tilted law, all of the same weight, shape `(num_particles,) + event_shape`.
        log_partition: `LogPartition` of the whole ladder, log Z with its standard error.
        inverse_temperatures: the ladder, from 0 to the GEBM's, shape `(K,)`.
        log_partitions: log Z at each of them, shape `(K,)`.
        mean_energies: mean energy at each of them, shape `(K,)`: minus the derivative of log Z.
        step_sizes: of the trajectories, shape `(K,)`.
        accept_probs: mean acceptance probability, shape `(K,)`.
        num_gradients: gradients of the energy that it took, those of the pilot run included.
    """

    z: jax.Array
    log_partition: LogPartition
    inverse_temperatures: np.ndarray
    log_partitions: np.ndarray
    mean_energies: np.ndarray
    step_sizes: np.ndarray
    accept_probs: np.ndarray
    num_gradients: int


@dataclasses.dataclass(frozen=True)
class SMC:
    r"""Sequential Monte Carlo: particles go from the base, at beta = 0, to the tilted law.

    On each rung of a ladder $0 = t_0 < \dots < t_K = 1$ of $\nu_t \propto \eta\, e^{-t \beta E \circ B}$ particles are
    weighted by $e^{-(t_k - t_{k-1}) \beta E}$, resampled (systematically), and moved by Metropolis-adjusted Langevin
    trajectories. The product of the mean weights is an estimate of Z. Source: doi:10.1111/j.1467-9868.2006.00553.x;
    arXiv:2202.13230 (the moves).

    A pilot run of 1,024 particles at most finds the ladder (`effective_fraction`) and the step sizes; a fresh run on
    the fixed ladder then gives an estimate of Z without bias. Its particles are cut into `num_groups` groups that never
    meet; the standard error comes from how much their estimates differ.

    As a `sampler` of a GEBM it finds the weights of modes that single chains cannot go between. Its draws come from
    one population: they are not quite independent, and their number should be large.

    Args:
        num_particles: particles of the fresh run.
        num_groups: groups that they are cut into; `num_particles` of them is annealed importance sampling.
        num_moves: trajectories on each rung.
        effective_fraction: effective sample size of the weights of a rung over the number of particles.

    Raises:
        ValueError: for numbers out of their range, or a GEBM with a batch shape.

    Example:
        >>> import math, jax, numpyro.distributions as dist
        >>> from numpyro_gebm import GEBM
        >>> gebm = GEBM(dist.Normal(0.0, 1.0), lambda x: 1.5 * x**2, sampler=SMC(num_particles=1024))
        >>> result = SMC().run(gebm.latent, rng_key=jax.random.key(0))
        >>> abs(result.log_partition.value + 0.5 * math.log(4.0)) < 5 * result.log_partition.std_error
        True
        >>> gebm.sample(jax.random.key(1), (100,)).shape
        (100,)
    """

    num_particles: int = 4096
    num_groups: int = 64
    num_moves: int = 4
    effective_fraction: float = 0.7

    def __post_init__(self):
        if not (self.num_groups >= 2 and self.num_particles >= self.num_groups and self.num_moves >= 1):
            raise ValueError(
                "Expected 2 <= num_groups <= num_particles and num_moves >= 1; got "
                f"num_particles={self.num_particles}, num_groups={self.num_groups}, num_moves={self.num_moves}."
            )
        if self.num_particles % self.num_groups:
            raise ValueError(
                "Expected num_particles to be a multiple of num_groups; got "
                f"num_particles={self.num_particles}, num_groups={self.num_groups}. Use "
                f"{-(-self.num_particles // self.num_groups) * self.num_groups}."
            )
        if not 0 < self.effective_fraction < 1:
            raise ValueError(f"Expected effective_fraction in (0, 1); got {self.effective_fraction}.")

    def run(self, latent, *, rng_key, progress_bar=True):
        """Particles of the tilted law, and log Z.

        Args:
            latent: an `EnergyTiltedPrior` with batch shape ().
            rng_key: a JAX random key.
            progress_bar: whether to show one if it takes longer than two seconds after the pilot run.

        Returns:
            An `SMCResult`.

        Raises:
            RuntimeError: if the energy is NaN or -inf at a draw of the prior, or infinite at all of them, or the ladder
                would need more than 1,000 rungs.
        """
        rungs, state = _start(latent, rng_key, self)
        num, beta = int(rungs.num), np.asarray(latent.gebm.inverse_temperature, np.float64)
        for k in tqdm(range(1, num + 1), "SMC", unit="rung", delay=DELAY, disable=not progress_bar):
            state = _climb(k, state, latent, rungs, rng_key, self)
            if progress_bar:
                jax.block_until_ready(state)
        t, tilts, accept_probs = (
            np.asarray(x[:num], np.float64) for x in (rungs.t, state.mean_neg_beta_energies, state.accept_probs)
        )
        log_partition = from_log_weights(state.log_weight, self.num_particles // self.num_groups)
        return SMCResult(
            z=_particles(state, latent, rng_key),
            log_partition=_with_warning(log_partition, beta * t, accept_probs),
            inverse_temperatures=beta * t,
            log_partitions=np.asarray(state.log_partitions[:num]),
            mean_energies=-tilts / beta if beta > 0 else np.full_like(tilts, np.nan),
            step_sizes=np.asarray(rungs.step_size * rungs.length_scale)[:num],
            accept_probs=accept_probs,
            num_gradients=int(state.num_gradients),
        )

    def __call__(self, latent, num_samples, *, rng_key):
        """Draw latents.

        Args:
            latent: an `EnergyTiltedPrior` with batch shape ().
            num_samples: number of draws; more than `num_particles` are as many particles.
            rng_key: a JAX random key.

        Returns:
            Array of shape `(num_samples,) + latent.event_shape`.
        """
        num_each = -(-max(num_samples, self.num_particles) // self.num_groups)
        return _draw(latent, rng_key, dataclasses.replace(self, num_particles=num_each * self.num_groups))[:num_samples]


class _State(NamedTuple):
    """Particles on the way up; log-weights of groups; of each rung so far log Z, mean neg_beta_energy, acceptance."""

    points: Points
    num_gradients: jax.Array
    log_weight: jax.Array
    log_partitions: jax.Array
    mean_neg_beta_energies: jax.Array
    accept_probs: jax.Array


@eqx.filter_jit
def _start(latent, rng_key, config):
    """The ladder, and particles on its first rung."""
    ladder, (key_pilot, key_start, _) = Ladder(latent), random.split(rng_key, 3)
    num_pilot = min(config.num_particles, NUM_PILOT)
    rungs = pilot(ladder, key_pilot, num_pilot, config.num_moves, config.effective_fraction)
    points = ladder.start(key_start, config.num_particles)
    nothing = jnp.zeros(MAX_RUNGS + 1, points.neg_beta_energy.dtype)
    log_weight = jnp.zeros(config.num_groups, points.neg_beta_energy.dtype)
    mean_neg_beta_energies = nothing.at[0].set(points.neg_beta_energy.mean())
    num_gradients = rungs.num_gradients + config.num_particles
    return rungs, _State(points, num_gradients, log_weight, nothing, mean_neg_beta_energies, nothing)


@partial(jax.jit, static_argnums=5)
def _climb(k, state, latent, rungs, rng_key, config):
    """On to the rung k; after the last, particles of all groups are resampled together and moved once more."""
    shape = (config.num_groups, config.num_particles // config.num_groups)
    key_resample, key_all, key_move = random.split(random.fold_in(random.split(rng_key, 3)[2], k), 3)
    rung = jnp.minimum(k, rungs.num - 1)
    increment = log_increment(rungs.t[rung] - rungs.t[k - 1], state.points.neg_beta_energy).reshape(shape)
    log_weight = state.log_weight + jax.nn.logsumexp(increment, 1) - jnp.log(shape[1])
    among_all = systematic_resample(key_all, jnp.repeat(log_weight, shape[1]))
    index = jnp.where(k < rungs.num, _resample_groups(key_resample, increment), among_all)
    points = Points(*(x[index] for x in state.points))
    tuning = (rungs.t[rung], rungs.step_size[rung], rungs.length_scale[rung])
    points, accept_prob, num = move(key_move, points, Ladder(latent), *tuning, config.num_moves)
    mean_neg_beta_energy = jax.nn.softmax(log_weight) @ points.neg_beta_energy.reshape(shape).mean(1)
    new = (jax.nn.logsumexp(log_weight) - jnp.log(shape[0]), mean_neg_beta_energy, accept_prob.mean())
    records = (x.at[k].set(y) for x, y in zip(state[3:], new))
    return _State(points, state.num_gradients + num * config.num_particles, log_weight, *records)


@jax.jit
def _particles(state, latent, rng_key):
    """Latents in random order."""
    key = random.fold_in(random.split(rng_key, 3)[2], 0)
    return random.permutation(key, Ladder(latent).constrain(state.points.u))


@partial(jax.jit, static_argnums=2)
def _draw(latent, rng_key, config):
    rungs, state = _start(latent, rng_key, config)
    climb = partial(_climb, latent=latent, rungs=rungs, rng_key=rng_key, config=config)
    return _particles(lax.fori_loop(1, rungs.num + 1, climb, state), latent, rng_key)


def _with_warning(log_partition, inverse_temperatures, accept_probs):
    """The estimate, with a warning if particles hardly moved on some rung."""
    lowest = 1 + int(np.argmin(accept_probs[1:]))
    if accept_probs[lowest] >= MIN_ACCEPT_PROB:
        return log_partition
    warning = (
        f"At beta = {inverse_temperatures[lowest]:.3g} {100 * accept_probs[lowest]:.1f} % of the moves were accepted: "
        "the particles are copies of a few, and their law is in doubt. Are the scales of the latents very different?"
    )
    return log_partition._replace(warnings=(*log_partition.warnings, warning))


def _resample_groups(rng_key, log_weights):
    """Indices of particles resampled within groups, by log-weights of shape `(groups, particles of each)`."""
    num_groups, num_each = log_weights.shape
    index = jax.vmap(systematic_resample)(random.split(rng_key, num_groups), log_weights)
    return (index + num_each * jnp.arange(num_groups)[:, None]).reshape(-1)
