"""Draws from a tilted prior by independent annealed MALA chains: the default sampler of a GEBM."""

import dataclasses
import math
from functools import partial
from typing import Annotated, Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax, random
from jax.sharding import Mesh
from numpyro.distributions import biject_to
from numpyro.distributions.util import sum_rightmost
from numpyro.util import not_jax_tracer

from gebm.annealing import (
    ADAPTING,
    GAIN,
    MEMORY,
    MIN_ACCEPT_PROB,
    POWER,
    SHRINK,
    STUCK,
    check_draws,
    global_moves,
)
from gebm.validation import check_fields, integer, latent_law, positive, probability
from numpyro_gebm.base import has_costly_draws
from numpyro_gebm.devices import Devices
from numpyro_gebm.dynamics.buckets import bucket, first_rows
from numpyro_gebm.dynamics.isir import isir
from numpyro_gebm.dynamics.keys import typed
from numpyro_gebm.dynamics.metropolis import choose, mala_step
from numpyro_gebm.dynamics.starts import finite_start
from numpyro_gebm.dynamics.steps import value_and_grad

__all__ = ["AnnealedMALA"]

#: Up to so many draws are one batch; more are four, or as many as `batch_size` allows.
SINGLE_BATCH = 256


@dataclasses.dataclass(frozen=True)
class AnnealedMALA:
    r"""Independent MALA chains with global moves, annealed from exact prior draws to the tilted prior.

    Chain `n` runs `num_steps` Metropolis-adjusted Langevin steps on $\log \eta(z) - \beta_t E(B(z))$, with
    $\beta_t = \beta\,\min(1, t/T_a)^4$ and $T_a$ a fraction `annealing` of the steps. The proposal with step size h is

    .. math:: z' = z + \tfrac{h^2}{2} \nabla \log \nu_t(z) + h\, \xi, \qquad \xi \sim N(0, I)

    and every chain adapts its own h towards `target_accept_prob`, with a gain that falls as $t^{-1/2}$
    once the annealing is over; in the last fifth of the steps h is fixed. Five times after the annealing a chain makes
    a global move (i-SIR, arXiv:2111.02702): of its position and K fresh prior draws it keeps one, with probability
    proportional to $\exp(-\beta E)$. That gives modes far apart their right weights, and leaves the law invariant for
    every K. A chain makes no more of them once their acceptance probability falls below 1 %: where the base is
    hopeless, they cost next to nothing. Over a base that is a GEBM, whose draws take a chain each, there are none.

    Draws are independent, and their law does not depend on how many are asked for. Constrained latents are moved in
    unconstrained space. No draw has density 0: a chain starts at a prior draw of finite energy.

    The law is that of a finite chain: on a linear-Gaussian model the variance is within 3 % at beta 1000. Where a fifth
    of the chains gave up global moves, a warning says that the weights of separate modes may be wrong. Under `jit`
    nothing can be raised or warned of: a draw whose chain found no finite energy is NaN there.

    Args:
        num_steps: MALA steps, each one gradient of the energy.
        step_size: initial h, in units of the latent.
        target_accept_prob: acceptance the step size is adapted to.
        annealing: fraction of the steps during which beta rises.
        num_candidates: K, fresh prior draws of a global move, each one evaluation of the energy; 0 for no global moves.
        batch_size: chains run at once; bounds the memory.
        mesh: devices that divide the chains between them.
        axis: that axis of the mesh.

    Example:
        >>> import jax, numpyro.distributions as dist
        >>> from numpyro_gebm import GEBM
        >>> gebm = GEBM(dist.Normal(0.0, 1.0), lambda x: 0.5 * x**2, sampler=AnnealedMALA(num_steps=400))
        >>> gebm.sample(jax.random.key(0), (10,)).shape
        (10,)
    """

    num_steps: Annotated[int, integer] = 130
    step_size: Annotated[float, positive] = 0.5
    target_accept_prob: Annotated[float, probability] = 0.65
    annealing: Annotated[float, partial(probability, one=True)] = 0.65
    num_candidates: Annotated[int, partial(integer, minimum=0)] = 20
    batch_size: Annotated[int, integer] = 4096
    mesh: Mesh | None = None
    axis: str = "data"

    def __post_init__(self):
        check_fields(self)
        Devices(self.mesh, self.axis)

    def __call__(self, latent: Any, num_samples: int, *, rng_key: jax.Array) -> jax.Array:
        """Draw latents.

        Args:
            latent: an `EnergyTiltedPrior`.
            num_samples: number of independent chains, one draw each.
            rng_key: a JAX random key.

        Returns:
            Array of shape `(num_samples,) + latent.batch_shape + latent.event_shape`.

        Raises:
            RuntimeError: if the energy is NaN or -inf at a prior draw, or infinite at 1000 of them in a row.
        """
        latent_law("latent", latent)
        num_samples = integer("num_samples", num_samples, minimum=0)
        config = dataclasses.replace(self, num_candidates=0) if has_costly_draws(latent.gebm.latent_prior) else self
        z, report = _draw(latent, typed(rng_key), num_samples, bucket(num_samples), config)
        if not_jax_tracer(z):
            report = jax.device_get(report)
            finite_share = report.finite.sum() / report.tried.sum()
            check_draws(report.nan.sum(), report.infinite.sum(), finite_share, report.active, config.num_candidates)
        return first_rows(z, num_samples)


class _Report(NamedTuple):
    """Chains at NaN or -inf, and at +inf; prior draws of finite energy, and tried; share that made all global moves."""

    nan: jax.Array
    infinite: jax.Array
    finite: jax.Array
    tried: jax.Array
    active: jax.Array


@partial(jax.jit, static_argnums=(3, 4))
def _draw(latent, rng_key, num_samples, size, config):
    """At least `num_samples` of `size` draws, the rest zeros, in batches of which there are as many as it takes."""
    batch = min(size if size <= SINGLE_BATCH else size // 4, config.batch_size)
    num_devices = Devices(config.mesh, config.axis).size
    batch = -(-batch // num_devices) * num_devices
    num_batches = -(-size // batch)
    keys = random.split(rng_key, num_batches)

    def draw(i, found):
        new = _anneal(latent, keys[i], batch, config)
        return jax.tree.map(lambda all, one: lax.dynamic_update_index_in_dim(all, one, i, 0), found, new)

    shapes = jax.eval_shape(lambda key: _anneal(latent, key, batch, config), keys[0])
    nothing = jax.tree.map(lambda x: jnp.zeros((num_batches, *x.shape), x.dtype), shapes)
    done = -(-num_samples // batch)
    z, report = lax.fori_loop(0, done, draw, nothing)
    return z.reshape((-1, *z.shape[2:])), report._replace(active=report.active.sum() / done)


def _anneal(latent, rng_key, num_chains, config):
    gebm, ndim = latent.gebm, 1 + len(latent.batch_shape)
    prior = gebm.latent_prior.expand(latent.batch_shape)
    transform, devices = biject_to(prior.support), Devices(config.mesh, config.axis)
    key_start, key_steps, key_moves = random.split(rng_key, 3)

    def log_prior(u):
        z = transform(u)
        jacobian = transform.log_abs_det_jacobian(u, z)
        return prior.log_prob(z) + sum_rightmost(jacobian, jacobian.ndim - ndim)

    @jax.jit  # traced once, though it is used in four places
    def log_weight(u):
        return gebm.log_weight(gebm.decode(transform(u)))

    def evaluate(u):
        """Log-prior and log-weight, and their gradients, at each chain's position."""
        return u, *value_and_grad(log_prior, u), *value_and_grad(log_weight, u)

    def propose(key):
        """A prior draw for every chain, and its log-weight."""
        u = transform.inv(prior.sample(key, (num_chains,)))
        return u, log_weight(u)

    def step(carry, t):
        point, log_step, trend, active = carry
        since = t + 1 - config.annealing * config.num_steps
        ladder = jnp.minimum(1.0, (t + 1) / (config.annealing * config.num_steps)) ** POWER

        def global_move(point, active):
            u, moved, accept_prob = isir(
                random.fold_in(key_moves, t), point[0], ladder * point[3], tempered, num_candidates
            )
            return choose(moved & active, evaluate(u), point), active & ~(accept_prob < MIN_ACCEPT_PROB)

        def tempered(key):
            u, log_weight = propose(key)
            return u, ladder * log_weight

        def log_density_and_grad(point):
            _, log_prior, log_prior_grad, log_weight, log_weight_grad = point
            return log_prior + ladder * log_weight, log_prior_grad + ladder * log_weight_grad

        def stay(point, active):
            return point, active

        point, active = lax.cond(  # two conditions: the first one is not batched by `vmap`
            jnp.isin(t, moves),
            lambda *now: lax.cond(active.any(), global_move, stay, *now),
            stay,
            point,
            active,
        )
        point, accept_prob = mala_step(random.fold_in(key_steps, t), point, log_step, evaluate, log_density_and_grad)
        gain = GAIN / jnp.sqrt(jnp.maximum(1.0, since))
        change = gain * (accept_prob - config.target_accept_prob)
        trend = MEMORY * trend + (1 - MEMORY) * accept_prob
        change = jnp.where((trend < STUCK) & (since < 0), -math.log(SHRINK), change)
        change = jnp.where(t < ADAPTING * config.num_steps, change, 0.0)
        return (devices.rows(point), log_step + change.astype(log_step.dtype), trend, active), None

    num_candidates, moves = config.num_candidates, jnp.array(global_moves(config.num_steps, config.annealing))
    u, log_weight_of_start, finite, tried = finite_start(key_start, propose)
    nan = jnp.isnan(log_weight_of_start)
    start = devices.rows(evaluate(u))
    log_step = jnp.full(start[1].shape, jnp.log(config.step_size), start[1].dtype)
    carry = start, log_step, jnp.ones_like(log_step), jnp.full(log_step.shape, num_candidates > 0)
    (point, _, _, active), _ = lax.scan(step, carry, jnp.arange(config.num_steps))
    found = jnp.isfinite(point[3]) & ~nan
    z = transform(point[0])
    z = jnp.where(found.reshape(found.shape + (1,) * (z.ndim - ndim)), z, jnp.nan)
    infinite = (point[3] == -jnp.inf) & ~nan
    return z, _Report((~found & ~infinite).sum(), infinite.sum(), finite, tried, active.mean())
