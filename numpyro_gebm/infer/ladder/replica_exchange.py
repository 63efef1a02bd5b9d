"""Replica exchange (parallel tempering) on the ladder of a GEBM, as a NumPyro kernel."""

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Annotated, Any, ClassVar, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax import random
from numpyro.infer.mcmc import MCMCKernel
from numpyro.util import identity, is_prng_key, not_jax_tracer

from gebm.ladder import NUM_PILOT, NUM_PILOT_MOVES, PILOT_FRACTION, Points, spaced_evenly
from gebm.validation import check_fields, integer, latent_law, optional, text
from numpyro_gebm.dynamics.keys import as_given, beside, typed
from numpyro_gebm.gebm import EnergyTiltedPrior
from numpyro_gebm.infer.chain_kernel import ChainKernel
from numpyro_gebm.infer.ladder.pilot import pilot
from numpyro_gebm.infer.ladder.tempering import Ladder, move, potential_at, raise_failures

__all__ = ["ReplicaExchange", "ReplicaExchangeState"]


class ReplicaExchangeState(NamedTuple):
    """State of `ReplicaExchange`, of one chain of R replicas.

    Args:
        i: iterations so far, warm-up included.
        z: dict with the latent on the last rung, the draw.
        points: `Points` of all replicas, leading axis R.
        rising: whether a replica was last on the first rung, and not on the last one; shape `(R,)`.
        potential_energy: potential of the draw, log-Jacobian included.
        accept_prob: acceptance probability of the trajectories on the last rung.
        swap_accept_prob: probability of a swap between neighbours, tried or not, shape `(R - 1,)`.
        round_trips: how many replicas have come up from the first rung to the last so far.
        num_steps: gradients spent on the draw.
        diverging: whether the trajectory on the last rung was certain to be rejected, as one that meets NaN is.
        rng_key: random key.
    """

    i: jax.Array
    z: dict
    points: Points
    rising: jax.Array
    potential_energy: jax.Array
    accept_prob: jax.Array
    swap_accept_prob: jax.Array
    round_trips: jax.Array
    num_steps: jax.Array
    diverging: jax.Array
    rng_key: jax.Array


@dataclass(kw_only=True, eq=False)
class ReplicaExchange(MCMCKernel, ChainKernel):
    r"""Replica exchange: R replicas on a ladder from the base to the tilted law swap places.

    Every iteration draws the replica on the first rung afresh from the prior, moves the others by a Metropolis-adjusted
    Langevin trajectory (arXiv:2202.13230), and tries swaps between neighbours with probability

    .. math:: \min(1, e^{(t_{r+1} - t_r) \beta (E(z_{r+1}) - E(z_r))})

    in even and odd iterations with neighbours above and below, so that replicas travel instead of diffusing. Draws are
    those of the last rung, and exact. Modes of any distance are visited if the ladder connects them, which
    `round_trips` shows: each brought an independent draw of the prior up to the last rung. Source: arXiv:1905.02939.

    The ladder, its length scales and its step size come from a pilot run of sequential Monte Carlo when the kernel is
    made. The warm-up of `MCMC` adapts nothing; it lets the replicas settle: 100 iterations are usually enough.

    Args:
        latent: an `EnergyTiltedPrior` with batch shape (), `gebm.latent`.
        num_rungs: R; None takes as many as swaps need: twice the communication barrier, plus 1.
        num_moves: trajectories on each rung and iteration.
        site: name of the draws.

    Attributes:
        inverse_temperatures: the ladder, shape `(R,)`.
        num_pilot_gradients: gradients of the energy that the pilot run took.

    Raises:
        TypeError: if `latent` is not an `EnergyTiltedPrior`.
        ValueError: for numbers out of their range, or a GEBM with a batch shape.
        RuntimeError: if the energy is NaN or -inf at a draw of the prior, or infinite at all of them.

    Example:
        >>> import jax, numpyro.distributions as dist
        >>> from numpyro.infer import MCMC
        >>> from numpyro_gebm import GEBM
        >>> gebm = GEBM(dist.Normal(0.0, 1.0), lambda x: 3.0 * (x**2 - 1.0) ** 2)
        >>> mcmc = MCMC(ReplicaExchange(gebm.latent), num_warmup=50, num_samples=100, progress_bar=False)
        >>> mcmc.run(jax.random.key(0))
        >>> mcmc.get_samples()["z"].shape
        (100,)
    """

    latent: Annotated[EnergyTiltedPrior, latent_law] = field(kw_only=False)
    num_rungs: Annotated[int | None, optional(partial(integer, minimum=2))] = None
    num_moves: Annotated[int, integer] = 1
    site: Annotated[str, text] = "z"

    sample_field: ClassVar[str] = "z"  # pyright: ignore[reportIncompatibleMethodOverride]  # a property of the host's
    default_fields: ClassVar[tuple[str, ...]] = (  # pyright: ignore[reportIncompatibleMethodOverride]
        "z",
        "potential_energy",
        "accept_prob",
        "swap_accept_prob",
        "round_trips",
        "num_steps",
        "diverging",
    )

    def __post_init__(self):
        check_fields(self)
        rungs, failures = _pilot(self.latent)
        raise_failures(failures)
        t, step_size, length_scale, barrier = (np.asarray(x[: int(rungs.num)], np.float64) for x in rungs[:4])
        self._t, self._step_size, self._length_scale = spaced_evenly(
            t, step_size, length_scale, barrier, self.num_rungs
        )
        self.num_pilot_gradients = int(rungs.num_gradients)
        self._sample_fn: Any = None
        self._start_fn: Any = None

    @property
    def model(self) -> None:
        """None: the kernel works on a GEBM, not on a model."""
        return None

    @property
    def inverse_temperatures(self) -> jax.Array:
        """The ladder, shape `(R,)`."""
        return self.latent.gebm.inverse_temperature * self._t

    def init(
        self,
        rng_key: jax.Array,
        num_warmup: int,
        init_params: Any = None,
        model_args: tuple[Any, ...] = (),
        model_kwargs: dict[str, Any] | None = None,
    ) -> ReplicaExchangeState:
        single = is_prng_key(rng_key)
        keys = beside(typed(rng_key), lambda: jax.tree.leaves(self.latent))
        start = init_params[self.site] if isinstance(init_params, dict) else init_params

        if self._start_fn is None:
            self._start_fn = jax.jit(self._start), jax.jit(jax.vmap(self._start))
        state, failures = self._start_fn[0 if single else 1](keys, start)
        raise_failures(failures)
        potential = state.potential_energy
        if not_jax_tracer(potential) and not jnp.isfinite(potential).all():
            raise ValueError(f"Expected a finite potential at `init_params`, which are unconstrained; got {potential}.")
        state = state._replace(rng_key=as_given(state.rng_key, rng_key if single else rng_key[0]))
        self._sample_fn = self._advance if single else jax.vmap(self._advance)
        return state

    def _start(self, key, start):
        ladder, (key, key_start), num_rungs = Ladder(self.latent), random.split(key), len(self._t)
        points, failures = ladder.start_finite(key_start, num_rungs)
        if start is not None:
            given = ladder.evaluate(jnp.broadcast_to(jnp.reshape(start, (1, -1)), points.u.shape))
            points = jax.tree.map(lambda x, y: jnp.concatenate([x[:1], y[1:]]), points, given)
        zero = jnp.zeros((), points.neg_beta_energy.dtype)
        state = ReplicaExchangeState(
            i=jnp.zeros((), int),
            z={self.site: ladder.constrain(points.u[-1:])[0]},
            points=points,
            rising=jnp.zeros(num_rungs, bool),
            potential_energy=potential_at(points, 1.0)[0][-1],
            accept_prob=zero,
            swap_accept_prob=jnp.zeros(num_rungs - 1, zero.dtype),
            round_trips=jnp.zeros((), int),
            num_steps=jnp.zeros((), int),
            diverging=jnp.zeros((), bool),
            rng_key=key,
        )
        return state, failures

    def sample(self, state: ReplicaExchangeState, model_args: Any, model_kwargs: Any) -> ReplicaExchangeState:
        if state.rising.shape[-1] != len(self._t):
            raise ValueError(
                f"Expected a state of {len(self._t)} rungs; got one of {state.rising.shape[-1]}. Hand states on only "
                "between kernels of the same `num_rungs`."
            )
        return self._sample_fn(state)

    def _advance(self, state):
        ladder, num_rungs = Ladder(self.latent), len(self._t)
        t, length_scale = (jnp.asarray(x, state.points.neg_beta_energy.dtype) for x in (self._t, self._length_scale))
        key, key_prior, key_move, key_swap = random.split(typed(state.rng_key), 4)
        others = jax.tree.map(lambda x: x[1:], state.points)
        others, accept_prob, num_steps = move(
            key_move, others, ladder, t[1:], self._step_size, length_scale[1:], self.num_moves
        )
        fresh = ladder.evaluate(ladder.sample_prior(key_prior, 1))
        points = jax.tree.map(lambda x, y: jnp.concatenate([x, y]), fresh, others)
        log_ratio = (t[1:] - t[:-1]) * (points.neg_beta_energy[:-1] - points.neg_beta_energy[1:])
        swap_accept_prob = jnp.where(jnp.isnan(log_ratio), 0.0, jnp.exp(jnp.minimum(0.0, log_ratio)))
        tried = jnp.arange(num_rungs - 1) % 2 == state.i % 2
        swapped = tried & (random.uniform(key_swap, (num_rungs - 1,), t.dtype) < swap_accept_prob)
        down, up = jnp.append(swapped, False), jnp.append(jnp.zeros(1, bool), swapped)
        index = jnp.arange(num_rungs) + down - up
        rising = state.rising.at[0].set(True)[index]
        points = jax.tree.map(lambda x: x[index], points)
        return ReplicaExchangeState(
            i=state.i + 1,
            z={self.site: ladder.constrain(points.u[-1:])[0]},
            points=points,
            rising=rising.at[-1].set(False),
            potential_energy=potential_at(points, 1.0)[0][-1],
            accept_prob=accept_prob[-1],
            swap_accept_prob=swap_accept_prob,
            round_trips=state.round_trips + rising[-1],
            num_steps=(num_rungs - 1) * num_steps + 1,
            diverging=accept_prob[-1] == 0.0,
            rng_key=as_given(key, state.rng_key),
        )

    def postprocess_fn(self, model_args: Any, model_kwargs: Any) -> Callable[..., Any]:
        return identity

    def get_diagnostics_str(  # pyright: ignore[reportIncompatibleMethodOverride]
        self, state: ReplicaExchangeState
    ) -> str:
        return f"{state.points.neg_beta_energy.shape[-1]} rungs, {int(state.round_trips)} round trips"

    def __getstate__(self):
        return {**self.__dict__, "_sample_fn": None, "_start_fn": None}


@eqx.filter_jit
def _pilot(latent):
    return pilot(Ladder(latent), random.key(0), NUM_PILOT, NUM_PILOT_MOVES, PILOT_FRACTION)
