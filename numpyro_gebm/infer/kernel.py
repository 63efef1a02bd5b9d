"""What the Langevin kernels share: the shell that makes a step a NumPyro kernel."""

import math
from abc import abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Annotated, Any, ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
from jax import lax, random
from numpyro import handlers
from numpyro.distributions import biject_to
from numpyro.infer import util as programs
from numpyro.infer.mcmc import MCMCKernel
from numpyro.util import identity, is_prng_key, not_jax_tracer

from gebm.langevin import STATISTICS, AdaptState, Chains, KineticState, StepInfo, no_finite_potential
from gebm.validation import callable_or_none, check_fields, flag, function, positive, probability, real_numbers
from numpyro_gebm.devices import on_host
from numpyro_gebm.dynamics.keys import as_given, beside, fold_in, split, standard_normal, typed, uniform
from numpyro_gebm.dynamics.metropolis import accept_probability
from numpyro_gebm.dynamics.starts import finite_start
from numpyro_gebm.dynamics.steps import PotentialAndGrad
from numpyro_gebm.effects import alone
from numpyro_gebm.infer.adaptation import adapt, finish, init_adaptation
from numpyro_gebm.infer.initialization import fixed_sites, init_to_prior, is_latent
from numpyro_gebm.infer.state import LangevinState, SavedState, flat, many, one, restored, saved, unraveler

__all__ = ["LangevinKernel"]


@dataclass(kw_only=True, eq=False)
class LangevinKernel(MCMCKernel):
    r"""Base of the kernels: start, warm-up, statistics and many chains around the step of a subclass.

    With `chain_method="vectorized"` all chains are stepped, and adapted, together. During the warm-up an iteration is
    one step, so that the chains adapt often; afterwards a draw is `num_steps` of them. Once the warm-up has converged,
    what is left of it costs nothing. A state that is handed on (`mcmc.post_warmup_state`) brings its position and its
    tuning; the potential is computed anew, so that it can be of other data.

    A subclass defines `step`. It may declare fields, as a dataclass does (`name: Annotated[type, check]` with a check
    of `gebm.validation`), `num_steps` and `step_size_schedule` among them, and set the attributes below.

    Args:
        model: a NumPyro model; exactly one of `model` and `potential_fn` is given.
        potential_fn: callable from a pytree of unconstrained arrays (one chain) to a scalar; needs `init_params`.
        step_size: initial step size.
        adapt_step_size: whether the warm-up adapts it.
        target_accept_prob: mean acceptance probability it is adapted to.
        adapt_mass_matrix: whether the warm-up adapts a diagonal mass, $1 / \sigma^2$; else $\sigma = 1$.
        init_strategy: where chains start; a draw of every site's base prior by default.

    Attributes:
        default_fields: paths in `LangevinState` to what is recorded of every draw.
        first_window: steps in the first window of the warm-up.
        max_step: the largest step size, in units of the length scale of the law.

    Raises:
        TypeError: for an argument of a wrong type.
        ValueError: for both or neither of model and potential_fn, an argument out of its range, or an initial point
            where the potential is not finite.
        RuntimeError: at run time, if the potential is NaN for 100 draws in a row.
    """

    model: Annotated[Callable[..., Any] | None, callable_or_none] = field(default=None, kw_only=False)
    potential_fn: Annotated[Callable[[Any], jax.Array] | None, callable_or_none] = field(default=None, kw_only=False)
    step_size: Annotated[float, positive] = 0.1
    adapt_step_size: Annotated[bool, flag] = True
    target_accept_prob: Annotated[float, probability] = 0.8
    adapt_mass_matrix: Annotated[bool, flag] = False
    init_strategy: Annotated[Callable[..., Any], function] = init_to_prior

    sample_field: ClassVar[str] = "z"  # pyright: ignore[reportIncompatibleMethodOverride]  # a property of the host's
    default_fields: ClassVar[tuple[str, ...]] = (  # pyright: ignore[reportIncompatibleMethodOverride]
        "z",
        *STATISTICS,
    )
    first_window = 50
    max_step = math.inf
    num_steps = 1
    step_size_schedule = None

    def __post_init__(self):
        if (self.model is None) == (self.potential_fn is None):
            raise ValueError("Only one of `model` or `potential_fn` must be specified.")
        check_fields(self)
        self._num_warmup = 0
        self._sample_fn: Any = None
        self._start_fn: Any = None
        self._parameters: dict[str, Any] = {}

    @abstractmethod
    def step(
        self,
        rng_key: jax.Array,
        chains: Chains,
        potential_and_grad: PotentialAndGrad,
        step_size: jax.Array,
        adapt_state: AdaptState,
    ) -> tuple[Chains, StepInfo]:
        """One step of all chains, in which failed steps are already rejected.

        Args:
            rng_key: typed random keys, shape `(N,)`.
            chains: `Chains`.
            potential_and_grad: callable from positions, shape `(N, d)`, to potentials and their gradients.
            step_size: step sizes, shape `(N,)`.
            adapt_state: `AdaptState`, with `scale`, the square root of the inverse mass, and `length_scale`.

        Returns:
            `(Chains, StepInfo)`.
        """

    @alone()
    def init(
        self,
        rng_key: jax.Array,
        num_warmup: int,
        init_params: Any = None,
        model_args: tuple[Any, ...] = (),
        model_kwargs: dict[str, Any] | None = None,
    ) -> LangevinState:
        model_kwargs = {} if model_kwargs is None else model_kwargs
        single, keys = is_prng_key(rng_key), typed(rng_key)
        keys = keys[None] if single else keys
        self._num_warmup = num_warmup
        if self.model is not None:
            self._parameters = fixed_sites(self.model, self.init_strategy, model_args, model_kwargs)
        elif init_params is None:
            raise ValueError("Expected `init_params` with `potential_fn`; got None. Pass them to `MCMC.run`.")
        if init_params is not None:
            like = None if self.model is None else self._shapes(model_args, model_kwargs)
            init_params = _as_positions(init_params, like, 0 if single else len(keys))
            init_params = jax.tree.map(lambda x: x[None], init_params) if single else init_params
        keys = beside(keys, lambda: self._enclosed(init_params, model_args, model_kwargs))
        if self._start_fn is None:
            self._start_fn = eqx.filter_jit(self._start)
        start = self._start_fn if _hashable((model_args, model_kwargs)) else self._start
        state, finite, tried = start(keys, init_params, model_args, model_kwargs)
        if not_jax_tracer(finite) and not jnp.isfinite(state.potential_energy).all():
            potential_energy = on_host(state.potential_energy)
            raise ValueError(no_finite_potential(potential_energy, "init_params", int(finite), int(tried)))

        def ensemble(state, model_args, model_kwargs):
            return self._draw(state, self._target(state, model_args, model_kwargs))

        def single_chain(state, model_args, model_kwargs):
            return one(ensemble(many(state), model_args, model_kwargs))

        self._sample_fn = single_chain if single else ensemble
        state = state._replace(rng_key=as_given(state.rng_key, rng_key if single else rng_key[0]), stale=state.stale)
        return one(state) if single else state

    def _potential(self, model_args, model_kwargs) -> Any:
        if self.model is None:
            return self.potential_fn
        return partial(programs.potential_energy, self._replayed(), model_args, model_kwargs)

    def _replayed(self):
        """The model as a function of its latent sites: what else it draws, such as a subsample, is always the same."""
        return handlers.seed(self._program(), random.key(0))

    def _program(self):
        return handlers.substitute(self.model, data=self._parameters) if self._parameters else self.model

    def _drawn(self, rng_key, model_args, model_kwargs):
        """A start of one chain: unconstrained values of all sites."""
        model = handlers.substitute(handlers.seed(self._program(), rng_key), substitute_fn=self.init_strategy)
        sites = handlers.trace(model).get_trace(*model_args, **model_kwargs)
        return {name: biject_to(s["fn"].support).inv(s["value"]) for name, s in sites.items() if is_latent(s)}

    def _enclosed(self, init_params, model_args, model_kwargs):
        """Arrays that the potential encloses."""
        like = init_params if self.model is None else self._shapes(model_args, model_kwargs)
        like = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape[self.model is None :], x.dtype), like)
        potential = self._potential(model_args, model_kwargs)
        return jax.make_jaxpr(lambda z: potential(z))(like).consts

    def _shapes(self, model_args, model_kwargs):
        return jax.eval_shape(lambda key: self._drawn(key, model_args, model_kwargs), random.key(0))

    def _start(self, keys, init_params, model_args, model_kwargs):
        """A state for every chain; how many draws had a finite potential, and how many there were."""
        keys, keys_init, keys_v, keys_slice = split(keys, 4)
        potential_and_grad = jax.vmap(jax.value_and_grad(self._potential(model_args, model_kwargs)))

        def propose(keys):
            z = jax.vmap(lambda key: self._drawn(key, model_args, model_kwargs))(keys)
            potential_energy, z_grad = potential_and_grad(z)
            valid = jnp.isfinite(potential_energy) & jnp.isfinite(flat(z_grad)).all(1)
            return (z, potential_energy, z_grad), jnp.where(valid, 0.0, -jnp.inf)

        finite = tried = jnp.zeros(())
        if init_params is None:
            (z, potential_energy, z_grad), log_weight, finite, tried = finite_start(keys_init, propose)
            potential_energy = jnp.where(log_weight == 0.0, potential_energy, jnp.inf)
        else:
            z, (potential_energy, z_grad) = init_params, potential_and_grad(init_params)
        return self._first_state(keys, keys_v, keys_slice, z, potential_energy, z_grad), finite, tried

    def _first_state(self, keys, keys_v, keys_slice, z, potential_energy, z_grad):
        position, z_grad = flat(z), flat(z_grad)
        kinetic = KineticState(position, standard_normal(keys_v, position), position, potential_energy, z_grad)
        zero, count = jnp.zeros(len(position), position.dtype), jnp.zeros(len(position), int)
        return LangevinState(
            i=count,
            z=z,
            chains=Chains(kinetic, uniform(keys_slice, zero, -1.0)),
            accept_prob=zero,
            mean_accept_prob=zero,
            energy_error=zero,
            diverging=jnp.zeros(len(position), bool),
            num_steps=count,
            step_size=jnp.full_like(zero, self.step_size),
            num_nan=count,
            adapt_state=init_adaptation(position, potential_energy, self.step_size, self.first_window),
            rng_key=keys,
            stale=jnp.ones(len(position), bool),  # what the model closes over may have changed since this was compiled
        )

    @alone()
    def sample(self, state: LangevinState, model_args: Any, model_kwargs: Any) -> LangevinState:
        return self._sample_fn(state, model_args, model_kwargs)

    def _draw(self, state, potential_and_grad):
        """The next draw of an ensemble, or one step of its warm-up."""
        # A loop, as `vmap` would turn a condition into both of its branches, in every step; and a barrier, as XLA would
        # move the gradient, which is the same in every turn of the loop, out of it, into every step.
        state = lax.while_loop(
            lambda s: s.stale.any(),
            lambda s: self._refreshed(lax.optimization_barrier(s), potential_and_grad),
            state,
        )
        if self._num_warmup == 0:
            return self._advance(state, potential_and_grad, False)
        warming = state.i[0] < self._num_warmup
        idle = warming & state.adapt_state.warmup_converged[0]
        return lax.cond(
            idle, lambda s: s._replace(i=s.i + 1), lambda s: self._advance(s, potential_and_grad, warming), state
        )

    def _refreshed(self, state, potential_and_grad):
        """A state that was handed on: its potential is that of this run, and its warm-up is over."""
        position = flat(state.z)
        potential_energy, z_grad = potential_and_grad(position)
        kinetic = state.chains.kinetic._replace(
            z=position, grad_point=position, potential_energy=potential_energy, z_grad=z_grad
        )
        return state._replace(
            i=jnp.where(state.i > 0, jnp.maximum(state.i, self._num_warmup), 0),
            chains=state.chains._replace(kinetic=kinetic),
            num_nan=jnp.zeros_like(state.num_nan),
            stale=jnp.zeros_like(state.stale),
        )

    def _target(self, state, model_args, model_kwargs) -> Any:
        """The `potential_and_grad` that steps are given; a subclass may add to it."""
        potential, unravel = self._potential(model_args, model_kwargs), unraveler(state.z)
        return jax.jit(jax.vmap(jax.value_and_grad(lambda x: potential(unravel(x)))))  # traced once

    def _advance(self, state, potential_and_grad, warming):
        keys, step_keys = split(typed(state.rng_key))
        step_size = state.adapt_state.step_size
        if self.step_size_schedule is not None:
            factor = self.step_size_schedule(jnp.maximum(state.i[0] - self._num_warmup, 0))
            step_size = jnp.where(warming, step_size, (step_size * factor).astype(step_size.dtype))

        def body(j, carry):
            chains, before = carry
            chains, info = self.step(fold_in(step_keys, j), chains, potential_and_grad, step_size, state.adapt_state)
            diverging, num_steps = before.diverging | info.diverging, before.num_steps + info.num_steps
            return chains, StepInfo(info.energy_error, diverging, num_steps)

        nothing = (jnp.zeros_like(x) for x in (state.potential_energy, state.diverging, state.num_steps))
        num = jnp.where(warming, 1, self.num_steps)
        chains, (error, diverging, num_steps) = lax.fori_loop(0, num, body, (state.chains, StepInfo(*nothing)))
        accept_prob = accept_probability(error)
        num_nan = jnp.where(jnp.isnan(error), state.num_nan + 1, 0)
        count = jnp.where(warming, 1, state.i - self._num_warmup + 1)
        return LangevinState(
            i=state.i + 1,
            z=jax.vmap(unraveler(state.z))(chains.kinetic.z),
            chains=chains,
            accept_prob=accept_prob,
            mean_accept_prob=state.mean_accept_prob + (accept_prob - state.mean_accept_prob) / count,
            energy_error=jnp.where(jnp.isfinite(error), error, 0.0),
            diverging=diverging,
            num_steps=num_steps,
            step_size=step_size,
            num_nan=num_nan,
            adapt_state=self._adapted(state, chains, accept_prob, warming),
            rng_key=as_given(keys, state.rng_key[0]),
            stale=jnp.zeros_like(state.stale),
        )

    def _adapted(self, state, chains, accept_prob, warming):
        if warming is False:
            return state.adapt_state
        return lax.cond(warming, lambda: self._tuned(state, chains, accept_prob), lambda: state.adapt_state)

    def _tuned(self, state, chains, accept_prob):
        new = adapt(
            state.adapt_state,
            chains.kinetic.z,
            chains.kinetic.potential_energy,
            accept_prob,
            self.target_accept_prob,
            step_size=self.adapt_step_size,
            mass=self.adapt_mass_matrix,
        )
        if not self.adapt_step_size:
            return new
        new = lax.cond(state.i[0] + 1 == self._num_warmup, finish, lambda s: s, new)
        return new._replace(step_size=jnp.minimum(new.step_size, self.max_step * new.length_scale))

    def warmup_converged(self, state: LangevinState) -> bool:
        """Whether the warm-up of all chains has converged."""
        return bool(state.adapt_state.warmup_converged.all())

    def end_warmup(self, state: LangevinState) -> LangevinState:
        """The state from which the next step gives the first draw."""
        return state._replace(i=jnp.full_like(state.i, self._num_warmup))

    def save(self, state: LangevinState) -> SavedState:
        """What is written of a state of many chains."""
        return saved(state)

    def restore(self, saved: SavedState) -> LangevinState:
        """The state that was saved."""
        return restored(saved)

    def postprocess_fn(self, model_args: Any, model_kwargs: Any) -> Callable[..., Any]:
        if self.model is None:
            return identity
        replay = partial(programs.constrain_fn, self._replayed(), model_args, model_kwargs, return_deterministic=True)
        return alone()(replay)

    def get_diagnostics_str(self, state: LangevinState) -> str:  # pyright: ignore[reportIncompatibleMethodOverride]
        return (
            f"step size {float(state.step_size):.2e}, potential {float(state.potential_energy):.2f}, "
            f"acc. prob={float(state.mean_accept_prob):.2f}"
        )

    def __getstate__(self):
        return {**self.__dict__, "_sample_fn": None, "_start_fn": None}


def _hashable(tree):
    """Whether what is no array can be an argument of a compiled function; a DataFrame cannot."""
    try:
        return all(eqx.is_array_like(leaf) or hash(leaf) is not None for leaf in jax.tree.leaves(tree))
    except TypeError:
        return False


def _as_positions(params, like, num_chains):
    """Where chains start, as arrays; like the sites of a model, if there is one."""
    params = jax.tree.map(lambda x: real_numbers("init_params", x, jnp.asarray), params)
    lead = (num_chains,) * bool(num_chains)
    shapes = [x.shape[: len(lead)] for x in jax.tree.leaves(params)]
    if any(shape != lead for shape in shapes):
        raise ValueError(f"Expected init_params with a leading axis of {num_chains} chains; got {shapes}.")
    shapes = jax.tree.map(lambda x: x.shape[len(lead) :], params)
    if like is not None and shapes != jax.tree.map(jnp.shape, like):
        expected = jax.tree.map(jnp.shape, like)
        raise ValueError(f"Expected init_params, which are unconstrained, of shapes {expected} each; got {shapes}.")
    return params
