"""What the Langevin kernels share: the shell that makes a step a NumPyro kernel."""

from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from jax import lax, random
from jax.flatten_util import ravel_pytree
from numpyro import handlers
from numpyro.infer.mcmc import MCMCKernel
from numpyro.infer.util import initialize_model
from numpyro.util import identity, is_prng_key

from gebm.langevin import PATIENCE
from numpyro_gebm.dynamics.keys import as_given, standard_normal, typed
from numpyro_gebm.dynamics.metropolis import accept_probability
from numpyro_gebm.dynamics.steps import kinetic_energy
from numpyro_gebm.infer.adaptation import AdaptState, adapt, finish, init_adaptation
from numpyro_gebm.infer.initialization import init_to_prior

__all__ = [
    "Chains",
    "LangevinKernel",
    "LangevinState",
    "StepInfo",
]


class Chains(NamedTuple):
    """Positions of N chains and what a kernel keeps beside them.

    `z`, `v`, `grad_point` and `z_grad` have shape `(N, d)`, `potential_energy` and `slice` `(N,)`. `grad_point` is
    where potential and gradient were taken: `z` itself, but for the mid-point splittings.
    """

    z: jax.Array
    v: jax.Array
    slice: jax.Array
    grad_point: jax.Array
    potential_energy: jax.Array
    z_grad: jax.Array


class StepInfo(NamedTuple):
    """What a step reports, in shape `(N,)`; `num_steps` counts gradients."""

    energy_error: jax.Array
    diverging: jax.Array
    num_steps: jax.Array


class LangevinState(NamedTuple):
    """State of a kernel of `infer`; fields are named as in NumPyro's HMC.

    Args:
        i: iterations so far, warm-up included.
        z: position, a pytree.
        v: velocity in units of the mass, flat; standard normal at stationarity.
        slice: slice variable (GHMC).
        grad_point: where the gradient was last taken, flat: `z`, but for the splittings ABOBA and UBU.
        potential_energy: the potential there.
        z_grad: its gradient there, flat.
        energy: potential plus kinetic energy.
        accept_prob: acceptance probability of the last step of the draw; of an unadjusted kernel that which a
            Metropolis test would have had.
        mean_accept_prob: its mean since the warm-up.
        energy_error: energy error of its deterministic part.
        kinetic_temperature: `|v|^2 / d`; its expectation is 1 without discretisation bias.
        diverging: whether a step led to a potential that is not finite, or to an energy error above 1000.
        num_steps: gradients spent on the draw.
        step_size: step size of the draw.
        num_nan: draws in a row whose last step led into NaN.
        adapt_state: `AdaptState` of the warm-up, with `step_size`, `length_scale` and `warmup_converged`.
        rng_key: random key.
    """

    i: jax.Array
    z: object
    v: jax.Array
    slice: jax.Array
    grad_point: jax.Array
    potential_energy: jax.Array
    z_grad: jax.Array
    energy: jax.Array
    accept_prob: jax.Array
    mean_accept_prob: jax.Array
    energy_error: jax.Array
    kinetic_temperature: jax.Array
    diverging: jax.Array
    num_steps: jax.Array
    step_size: jax.Array
    num_nan: jax.Array
    adapt_state: AdaptState
    rng_key: jax.Array


class LangevinKernel(MCMCKernel):
    """Base of the kernels: start, warm-up, statistics and many chains around the step of a subclass.

    With `chain_method="vectorized"` all chains are stepped, and adapted, together. During the warm-up an iteration is
    one step, so that the chains adapt often; afterwards a draw is `num_steps` of them. Once the warm-up has converged,
    what is left of it costs nothing.

    A subclass defines `_step`, one step of all chains, in which a step that fails is already turned down, and
    `_max_step`, the largest step size in units of the length scale.
    """

    sample_field = "z"
    default_fields = (
        "z",
        "potential_energy",
        "energy",
        "accept_prob",
        "energy_error",
        "kinetic_temperature",
        "num_steps",
        "diverging",
        "step_size",
        "adapt_state.warmup_converged",
    )
    _first_window = 50
    _max_step = float("inf")

    def __init__(
        self,
        model=None,
        potential_fn=None,
        *,
        step_size,
        adapt_step_size,
        target_accept_prob,
        adapt_mass_matrix,
        num_steps,
        step_size_schedule=None,
        init_strategy=init_to_prior,
    ):
        if (model is None) == (potential_fn is None):
            raise ValueError("Only one of `model` or `potential_fn` must be specified.")
        if not step_size > 0:
            raise ValueError(f"Expected step_size > 0; got {step_size}.")
        if not 0 < target_accept_prob < 1:
            raise ValueError(f"Expected target_accept_prob in (0, 1); got {target_accept_prob}.")
        if not num_steps >= 1:
            raise ValueError(f"Expected num_steps >= 1; got {num_steps}.")
        self._model, self._potential_fn = model, potential_fn
        self._step_size, self._adapt_step_size = step_size, adapt_step_size
        self._target_accept_prob, self._adapt_mass_matrix = target_accept_prob, adapt_mass_matrix
        self._num_steps, self._step_size_schedule = num_steps, step_size_schedule
        self._init_strategy = init_strategy
        self._num_warmup = 0
        self._potential_fn_gen = self._postprocess_fn = self._sample_fn = None

    @property
    def model(self):
        """The model, or None."""
        return self._model

    def _step(self, rng_key, chains, potential_and_grad, step_size, adapt_state):
        """Step keys, `Chains`, a potential, step sizes, all of shape `(N,)`, to `(Chains, StepInfo)`."""
        raise NotImplementedError

    def _potential(self, model_args, model_kwargs):
        if self._potential_fn_gen is None:
            return self._potential_fn
        return self._potential_fn_gen(*model_args, **model_kwargs)

    def init(self, rng_key, num_warmup, init_params=None, model_args=(), model_kwargs=None):
        model_kwargs = {} if model_kwargs is None else model_kwargs
        single = is_prng_key(rng_key)
        keys = typed(rng_key)
        keys, init_keys = random.split(keys) if single else jnp.swapaxes(jax.vmap(random.split)(keys), 0, 1)
        info = None
        if self._model is not None:
            self._check_sites(init_keys if single else init_keys[0], model_args, model_kwargs)
            info, self._potential_fn_gen, self._postprocess_fn, _ = initialize_model(
                init_keys,
                self._model,
                init_strategy=self._init_strategy,
                dynamic_args=True,
                model_args=model_args,
                model_kwargs=model_kwargs,
            )
            info = info if init_params is None else None
        elif init_params is None:
            raise ValueError("Expected `init_params` with `potential_fn`; got None. Pass them to `MCMC.run`.")
        self._num_warmup = num_warmup

        def ensemble(state, model_args, model_kwargs):
            return self._draw(state, self._potential(model_args, model_kwargs))

        def single_chain(state, model_args, model_kwargs):
            return _one(ensemble(_many(state), model_args, model_kwargs))

        self._sample_fn = single_chain if single else ensemble
        if info is None:
            init_params = jax.tree.map(jnp.asarray, init_params)
            potential_and_grad = jax.value_and_grad(self._potential(model_args, model_kwargs))
            potential_and_grad = potential_and_grad if single else jax.vmap(potential_and_grad)
            info = (init_params, *potential_and_grad(init_params))
        info = jax.tree.map(lambda x: x[None], tuple(info)) if single else info
        state = self._start(keys[None] if single else keys, *info)
        state = state._replace(rng_key=as_given(state.rng_key, rng_key if single else rng_key[0]))
        return _one(state) if single else state

    def _check_sites(self, rng_key, model_args, model_kwargs):
        model = handlers.substitute(handlers.seed(self._model, rng_key), substitute_fn=self._init_strategy)
        for name, site in handlers.trace(model).get_trace(*model_args, **model_kwargs).items():
            if site["type"] == "sample" and not site["is_observed"] and site["fn"].support.is_discrete:
                raise ValueError(
                    f"Expected continuous latent sites; site '{name}' ({type(site['fn']).__name__}) is discrete. "
                    "Marginalise it out in the model, or use NumPyro's NUTS, which enumerates."
                )

    def _start(self, keys, z, potential_energy, z_grad):
        flat, z_grad = _flat(z), _flat(z_grad)
        finite = jnp.isfinite(potential_energy)
        if not isinstance(finite, jax.core.Tracer) and not finite.all():
            raise ValueError(
                "Expected a finite potential at the initial point; got "
                f"{potential_energy}. Pass `init_params`, or check the energy for NaN."
            )
        keys, keys_v, keys_slice = jnp.moveaxis(jax.vmap(lambda key: random.split(key, 3))(keys), 1, 0)
        v = standard_normal(keys_v, flat)
        uniform = jax.vmap(lambda key: random.uniform(key, (), flat.dtype, -1.0, 1.0))(keys_slice)
        zero, count = jnp.zeros(len(flat), flat.dtype), jnp.zeros(len(flat), int)
        return LangevinState(
            i=count,
            z=z,
            v=v,
            slice=uniform,
            grad_point=flat,
            potential_energy=potential_energy,
            z_grad=z_grad,
            energy=potential_energy + kinetic_energy(v),
            accept_prob=zero,
            mean_accept_prob=zero,
            energy_error=zero,
            kinetic_temperature=zero,
            diverging=jnp.zeros(len(flat), bool),
            num_steps=count,
            step_size=jnp.full_like(zero, self._step_size),
            num_nan=count,
            adapt_state=init_adaptation(flat, potential_energy, self._step_size, self._first_window),
            rng_key=keys,
        )

    def sample(self, state, model_args, model_kwargs):
        return self._sample_fn(state, model_args, model_kwargs)

    def warmup_converged(self, state):
        """Whether the warm-up of all chains has converged."""
        return bool(state.adapt_state.warmup_converged.all())

    def _draw(self, state, potential):
        """The next draw of an ensemble, or one step of its warm-up."""
        warming = state.i[0] < self._num_warmup
        idle = warming & state.adapt_state.warmup_converged[0]
        return lax.cond(idle, lambda s: s._replace(i=s.i + 1), lambda s: self._advance(s, potential, warming), state)

    def _advance(self, state, potential, warming):
        flat, potential_and_grad, unravel = _flattened(state.z, potential)
        keys = jax.vmap(random.split)(typed(state.rng_key))
        chains = Chains(flat, *(getattr(state, name) for name in Chains._fields[1:]))
        step_size = state.adapt_state.step_size
        if self._step_size_schedule is not None:
            factor = self._step_size_schedule(jnp.maximum(state.i[0] - self._num_warmup, 0))
            step_size = jnp.where(warming, step_size, (step_size * factor).astype(step_size.dtype))

        def body(j, carry):
            chains, before = carry
            step_keys = jax.vmap(lambda key: random.fold_in(key, j))(keys[:, 1])
            chains, info = self._step(step_keys, chains, potential_and_grad, step_size, state.adapt_state)
            diverging, num_steps = before.diverging | info.diverging, before.num_steps + info.num_steps
            return chains, StepInfo(info.energy_error, diverging, num_steps)

        nothing = (jnp.zeros_like(x) for x in (state.potential_energy, state.diverging, state.num_steps))
        num = jnp.where(warming, 1, self._num_steps)
        chains, (error, diverging, num_steps) = lax.fori_loop(0, num, body, (chains, StepInfo(*nothing)))
        accept_prob = accept_probability(error)
        num_nan = jnp.where(jnp.isnan(error), state.num_nan + 1, 0)
        num_nan = eqx.error_if(
            num_nan,
            (num_nan >= PATIENCE).any(),
            f"The potential was NaN {PATIENCE} draws in a row: check the energy, or start elsewhere (`init_params`).",
        )
        count = jnp.where(warming, 1, state.i - self._num_warmup + 1)
        return state._replace(
            i=state.i + 1,
            z=unravel(chains.z),
            **{name: value for name, value in chains._asdict().items() if name != "z"},
            energy=chains.potential_energy + kinetic_energy(chains.v),
            accept_prob=accept_prob,
            mean_accept_prob=state.mean_accept_prob + (accept_prob - state.mean_accept_prob) / count,
            energy_error=jnp.where(jnp.isfinite(error), error, 0.0),
            kinetic_temperature=jnp.mean(chains.v**2, -1),
            diverging=diverging,
            num_steps=num_steps,
            step_size=step_size,
            num_nan=num_nan,
            adapt_state=lax.cond(warming, lambda: self._adapted(state, chains, accept_prob), lambda: state.adapt_state),
            rng_key=as_given(keys[:, 0], state.rng_key[0]),
        )

    def _adapted(self, state, chains, accept_prob):
        new = adapt(
            state.adapt_state,
            chains.z,
            chains.potential_energy,
            accept_prob,
            self._target_accept_prob,
            step_size=self._adapt_step_size,
            mass=self._adapt_mass_matrix,
        )
        if not self._adapt_step_size:
            return new
        new = lax.cond(state.i[0] + 1 == self._num_warmup, finish, lambda s: s, new)
        return new._replace(step_size=jnp.minimum(new.step_size, self._max_step * new.length_scale))

    def postprocess_fn(self, model_args, model_kwargs):
        if self._postprocess_fn is None:
            return identity
        return self._postprocess_fn(*model_args, **model_kwargs)

    def get_diagnostics_str(self, state):
        return (
            f"step size {float(state.step_size):.2e}, potential {float(state.potential_energy):.2f}, "
            f"acc. prob={float(state.mean_accept_prob):.2f}"
        )

    def __getstate__(self):
        return {**self.__dict__, "_sample_fn": None, "_potential_fn_gen": None, "_postprocess_fn": None}


def _flattened(z, potential):
    """Positions as an array `(N, d)`, potential and gradient of such arrays, and the way back."""
    _, unravel = ravel_pytree(jax.tree.map(lambda x: x[0], z))
    return _flat(z), jax.vmap(jax.value_and_grad(lambda x: potential(unravel(x)))), jax.vmap(unravel)


def _flat(z):
    return jax.vmap(lambda z: ravel_pytree(z)[0])(z)


def _many(state):
    """A state of one chain as one of an ensemble of one; the warm-up's estimates are of all chains already."""
    return _on_chain_axis(lambda x: x[None], state)


def _one(state):
    return _on_chain_axis(lambda x: x[0], state)


def _on_chain_axis(fn, state):
    per_chain = {name: fn(getattr(state.adapt_state, name)) for name in AdaptState._fields[:3]}
    mapped = jax.tree.map(fn, state._replace(adapt_state=None))
    return mapped._replace(adapt_state=state.adapt_state._replace(**per_chain))
