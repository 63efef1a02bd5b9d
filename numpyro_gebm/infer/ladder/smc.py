"""Sequential Monte Carlo from the base of a GEBM to its tilted law."""

import dataclasses
from functools import partial
from typing import Annotated, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax, random
from jax.sharding import Mesh
from tqdm import tqdm

from gebm.ladder import DELAY, MAX_RUNGS, NUM_PILOT, Points, SMCResult, check_groups, with_warning
from gebm.validation import check_fields, flag, integer, latent_law, probability
from gebm.weights import NUM_GROUPS, NUM_PARTICLES, from_log_weights
from numpyro_gebm.devices import Devices, on_host
from numpyro_gebm.dynamics.buckets import bucket, first_rows
from numpyro_gebm.dynamics.keys import typed
from numpyro_gebm.gebm import EnergyTiltedPrior
from numpyro_gebm.infer.ladder.pilot import pilot
from numpyro_gebm.infer.ladder.tempering import (
    Ladder,
    log_increment,
    mean_of_groups,
    move,
    raise_failures,
    systematic_resample,
)

__all__ = ["SMC", "SMCResult", "draw"]


@dataclasses.dataclass(frozen=True)
class SMC:
    r"""Sequential Monte Carlo: particles go from the base, at beta = 0, to the tilted law.

    On each rung of a ladder $0 = t_0 < \dots < t_K = 1$ of $\nu_t \propto \eta\, e^{-t \beta E \circ B}$ particles are
    weighted by $e^{-(t_k - t_{k-1}) \beta E}$, resampled (systematically), and moved by Metropolis-adjusted Langevin
    trajectories. The product of the mean weights is an estimate of Z. Source: doi:10.1111/j.1467-9868.2006.00553.x;
    arXiv:2202.13230 (the moves).

    A pilot run of 1,024 particles at most finds the ladder (`effective_fraction`) and the step sizes; a fresh run on
    the fixed ladder then gives an unbiased estimate of Z. Its particles are divided into `num_groups` groups that never
    interact; the standard error comes from how much their estimates differ.

    As a `sampler` of a GEBM it finds the weights of modes that single chains cannot move between. Its draws come from
    one population: they are not quite independent, and their number should be large.

    Args:
        num_particles: particles of the fresh run.
        num_groups: groups that they are divided into; `num_particles` of them is annealed importance sampling.
        num_moves: trajectories on each rung.
        effective_fraction: effective sample size of the weights of a rung over the number of particles.
        mesh: devices that divide the particles of the fresh run between them.
        axis: that axis of the mesh.

    Raises:
        ValueError: for numbers out of their range, a GEBM with a batch shape, or particles that the devices cannot
            divide evenly.

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

    num_particles: Annotated[int, integer] = NUM_PARTICLES
    num_groups: Annotated[int, partial(integer, minimum=2)] = NUM_GROUPS
    num_moves: Annotated[int, integer] = 4
    effective_fraction: Annotated[float, probability] = 0.7
    mesh: Mesh | None = None
    axis: str = "data"

    def __post_init__(self):
        check_fields(self)
        check_groups(self.num_particles, self.num_groups)
        self.devices.check_divides("num_particles", self.num_particles)

    @property
    def devices(self) -> Devices:
        """`Devices` that divide the particles."""
        return Devices(self.mesh, self.axis)

    def run(self, latent: EnergyTiltedPrior, *, rng_key: jax.Array, progress_bar: bool = True) -> SMCResult:
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
        latent_law("latent", latent)
        rng_key = typed(rng_key)
        rungs, state, failures = _start(latent, rng_key, self)
        raise_failures(failures)
        num, beta = int(rungs.num), np.asarray(latent.gebm.inverse_temperature, np.float64)
        for k in tqdm(
            range(1, num + 1), "SMC", unit="rung", delay=DELAY, disable=not flag("progress_bar", progress_bar)
        ):
            state = _climb(k, state, latent, rungs, rng_key, self)
            if progress_bar:
                jax.block_until_ready(state)
        t, step_sizes = (np.asarray(x[:num], np.float64) for x in (rungs.t, rungs.step_size * rungs.length_scale))
        log_partitions, mean_neg_beta_energies, accept_probs = (on_host(x[:num]) for x in state.records)
        log_partition = from_log_weights(on_host(state.log_weight), self.num_particles // self.num_groups)
        return SMCResult(
            z=_particles(state, latent, rng_key),
            log_partition=with_warning(log_partition, beta * t, accept_probs),
            inverse_temperatures=beta * t,
            log_partitions=log_partitions,
            mean_energies=-mean_neg_beta_energies / beta if beta > 0 else np.full_like(t, np.nan),
            step_sizes=step_sizes,
            accept_probs=accept_probs,
            num_gradients=int(state.num_gradients),
        )

    def __call__(self, latent: EnergyTiltedPrior, num_samples: int, *, rng_key: jax.Array) -> jax.Array:
        """Draw latents.

        Args:
            latent: an `EnergyTiltedPrior` with batch shape ().
            num_samples: number of draws; for more than `num_particles`, the next power of two is their number.
            rng_key: a JAX random key.

        Returns:
            Array of shape `(num_samples,) + latent.event_shape`.

        Raises:
            RuntimeError: as `run`; under `jit`, where nothing can be raised, draws are NaN instead.
        """
        latent_law("latent", latent)
        num_samples = integer("num_samples", num_samples, minimum=0)
        num_particles = self.num_particles if num_samples <= self.num_particles else bucket(num_samples)
        num_each = -(-num_particles // self.num_groups)
        config = dataclasses.replace(self, num_particles=num_each * self.num_groups)
        z, _, failures = draw(latent, typed(rng_key), config)
        raise_failures(failures)
        return first_rows(z, num_samples)


class _Records(NamedTuple):
    """Of each rung so far: log Z, mean of -beta E, acceptance."""

    log_partitions: jax.Array
    mean_neg_beta_energies: jax.Array
    accept_probs: jax.Array


class _State(NamedTuple):
    """Particles on the way up, gradients spent, log-weights of groups, and what was recorded."""

    points: Points
    num_gradients: jax.Array
    log_weight: jax.Array
    records: _Records


@eqx.filter_jit
def _start(latent, rng_key, config):
    """The ladder, particles on its first rung, and what failed."""
    ladder, (key_pilot, key_start, _) = Ladder(latent), random.split(rng_key, 3)
    num_pilot = min(config.num_particles, NUM_PILOT)
    rungs, failures = pilot(ladder, key_pilot, num_pilot, config.num_moves, config.effective_fraction)
    points, failed = ladder.start(key_start, config.num_particles)
    points = config.devices.rows(points)
    nothing = jnp.zeros(MAX_RUNGS + 1, points.neg_beta_energy.dtype)
    log_weight = jnp.zeros(config.num_groups, points.neg_beta_energy.dtype)
    records = _Records(nothing, nothing.at[0].set(points.neg_beta_energy.mean()), nothing)
    state = _State(points, rungs.num_gradients + config.num_particles, log_weight, records)
    return rungs, state, failures | failed


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
    points = config.devices.rows(jax.tree.map(lambda x: x[index], state.points))
    tuning = (rungs.t[rung], rungs.step_size[rung], rungs.length_scale[rung])
    points, accept_prob, num = move(key_move, points, Ladder(latent), *tuning, config.num_moves)
    mean_neg_beta_energy = mean_of_groups(log_weight, points.neg_beta_energy.reshape(shape).mean(1))
    alive = jnp.where(log_weight == -jnp.inf, -jnp.inf, 0.0)
    accept_prob = mean_of_groups(alive, accept_prob.reshape(shape).mean(1))
    new = _Records(jax.nn.logsumexp(log_weight) - jnp.log(shape[0]), mean_neg_beta_energy, accept_prob)
    records = jax.tree.map(lambda x, y: x.at[k].set(y), state.records, new)
    return _State(points, state.num_gradients + num * config.num_particles, log_weight, records)


@jax.jit
def _particles(state, latent, rng_key):
    """Latents in random order."""
    key = random.fold_in(random.split(rng_key, 3)[2], 0)
    return random.permutation(key, Ladder(latent).constrain(state.points.u))


@partial(jax.jit, static_argnums=2)
def draw(
    latent: EnergyTiltedPrior, rng_key: jax.Array, config: SMC
) -> tuple[jax.Array, jax.Array, dict[str, jax.Array]]:
    """Latents, log Z and what failed, in one compiled program.

    Args:
        latent: an `EnergyTiltedPrior` with batch shape ().
        rng_key: a JAX random key.
        config: the `SMC`.

    Returns:
        `(z, log_partition, failures)`; with a failure both are NaN.
    """
    rungs, state, failures = _start(latent, rng_key, config)
    climb = partial(_climb, latent=latent, rungs=rungs, rng_key=rng_key, config=config)
    state = lax.fori_loop(1, rungs.num + 1, climb, state)
    log_partition = jax.nn.logsumexp(state.log_weight) - jnp.log(config.num_groups)
    failed = jnp.stack(list(failures.values())).any()
    z = _particles(state, latent, rng_key)
    return jnp.where(failed, jnp.nan, z), jnp.where(failed, jnp.nan, log_partition), failures


def _resample_groups(rng_key, log_weights):
    """Indices of particles resampled within groups, by log-weights of shape `(groups, particles of each)`."""
    num_groups, num_each = log_weights.shape
    index = jax.vmap(systematic_resample)(random.split(rng_key, num_groups), log_weights)
    return (index + num_each * jnp.arange(num_groups)[:, None]).reshape(-1)
