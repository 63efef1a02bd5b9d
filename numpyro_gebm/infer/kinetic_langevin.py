"""Kinetic Langevin dynamics as a NumPyro kernel."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import random
from numpyro.infer.mcmc import MCMCKernel
from numpyro.infer.util import initialize_model
from numpyro.util import identity, is_prng_key

from numpyro_gebm.infer.dynamics import SPLITTINGS, KineticState, kinetic_energy, kinetic_step, standard_normal_like
from numpyro_gebm.infer.initialization import init_to_prior

__all__ = ["KineticLangevin", "KineticLangevinState"]


class KineticLangevinState(NamedTuple):
    """State of one chain; fields are named as in NumPyro's HMC.

    `i` counts steps; `energy` is potential plus kinetic energy; `diverging` says that the step led to a potential
    that is not finite and was not taken (the velocity is then drawn afresh); `num_steps` is the number of gradients.
    """

    i: jax.Array
    z: object
    v: object
    potential_energy: jax.Array
    z_grad: object
    energy: jax.Array
    num_steps: jax.Array
    diverging: jax.Array
    step_size: jax.Array
    rng_key: jax.Array


class KineticLangevin(MCMCKernel):
    r"""Unadjusted kinetic (underdamped) Langevin dynamics, for `numpyro.infer.MCMC`.

    .. math:: dz = v\, dt, \qquad dv = -\nabla U(z)\, dt - \gamma v\, dt + \sqrt{2\gamma}\, dW

    One draw is `num_steps` steps of the splitting `integrator`, one gradient each. There is no Metropolis test: the
    law of the draws has a bias of second order in the step size (for BAOAB none in the positions of a Gaussian).
    Stable for a step size below 2 over the largest frequency: for a standard normal latent prior keep it under
    `1 / sqrt(1 + beta L)`, with L the largest curvature of the energy in z. Source: arXiv:2003.05033 (the sampler),
    arXiv:1203.5428 (the splittings).

    Args:
        model: a NumPyro model; exactly one of `model` and `potential_fn` is given.
        potential_fn: callable from a pytree of unconstrained arrays (one chain) to a scalar; needs `init_params`.
        step_size: h, in units of time (the latent's unit, as the mass is one).
        friction: gamma, in units of inverse time.
        num_steps: steps a draw.
        integrator: "BAOAB" or "OBABO".
        init_strategy: where chains start; a draw of every site's base prior by default.

    Raises:
        ValueError: for both or neither of model and potential_fn, a step size that is not positive, a negative
            friction, an unknown integrator, or an initial point where the potential is not finite.

    Example:
        >>> import jax, numpyro, numpyro.distributions as dist
        >>> from numpyro.infer import MCMC
        >>> from numpyro_gebm import GEBM
        >>> gebm = GEBM(dist.Normal(0.0, 1.0), lambda x: 0.5 * x**2)
        >>> kernel = KineticLangevin(lambda: numpyro.sample("z", gebm.latent), step_size=0.5)
        >>> mcmc = MCMC(kernel, num_warmup=10, num_samples=20, progress_bar=False)
        >>> mcmc.run(jax.random.key(0))
        >>> mcmc.get_samples()["z"].shape
        (20,)
    """

    sample_field = "z"
    default_fields = ("z", "potential_energy", "energy", "num_steps", "diverging", "step_size")

    def __init__(
        self,
        model=None,
        potential_fn=None,
        *,
        step_size=0.1,
        friction=1.0,
        num_steps=1,
        integrator="BAOAB",
        init_strategy=init_to_prior,
    ):
        if (model is None) == (potential_fn is None):
            raise ValueError("Only one of `model` or `potential_fn` must be specified.")
        if not step_size > 0:
            raise ValueError(f"Expected step_size > 0; got {step_size}.")
        if not friction >= 0:
            raise ValueError(f"Expected friction >= 0; got {friction}.")
        if not num_steps >= 1:
            raise ValueError(f"Expected num_steps >= 1; got {num_steps}.")
        if integrator not in SPLITTINGS:
            raise ValueError(f"Expected integrator in {SPLITTINGS}; got {integrator!r}.")
        self._model, self._potential_fn = model, potential_fn
        self._step_size, self._friction = step_size, friction
        self._num_steps, self._integrator = num_steps, integrator
        self._init_strategy = init_strategy
        self._potential_fn_gen = self._postprocess_fn = self._sample_fn = None

    @property
    def model(self):
        """The model, or None."""
        return self._model

    def _potential(self, model_args, model_kwargs):
        if self._potential_fn_gen is None:
            return self._potential_fn
        return self._potential_fn_gen(*model_args, **model_kwargs)

    def init(self, rng_key, num_warmup, init_params=None, model_args=(), model_kwargs=None):
        model_kwargs = {} if model_kwargs is None else model_kwargs
        single = is_prng_key(rng_key)
        split = random.split if single else jax.vmap(random.split)
        rng_key, key_init = split(rng_key) if single else jnp.swapaxes(split(rng_key), 0, 1)
        start = None
        if self._model is not None:
            info, self._potential_fn_gen, self._postprocess_fn, _ = initialize_model(
                key_init,
                self._model,
                init_strategy=self._init_strategy,
                dynamic_args=True,
                model_args=model_args,
                model_kwargs=model_kwargs,
            )
            start = info if init_params is None else None
        elif init_params is None:
            raise ValueError("Expected `init_params` with `potential_fn`; got None. Pass them to `MCMC.run`.")
        if start is None:
            init_params = jax.tree.map(jnp.asarray, init_params)
            potential_and_grad = jax.value_and_grad(self._potential(model_args, model_kwargs))
            potential_and_grad = potential_and_grad if single else jax.vmap(potential_and_grad)
            start = (init_params, *potential_and_grad(init_params))

        def init_one(z, potential_energy, z_grad, key):
            key, key_v = random.split(key)
            v = standard_normal_like(key_v, z)
            return KineticLangevinState(
                i=jnp.array(0),
                z=z,
                v=v,
                potential_energy=potential_energy,
                z_grad=z_grad,
                energy=potential_energy + kinetic_energy(v),
                num_steps=jnp.array(0),
                diverging=jnp.array(False),
                step_size=jnp.asarray(self._step_size, potential_energy.dtype),
                rng_key=key,
            )

        def sample_one(state, model_args, model_kwargs):
            return self._draw(state, jax.value_and_grad(self._potential(model_args, model_kwargs)))

        if single:
            self._sample_fn = sample_one
            state = init_one(*start, rng_key)
        else:
            self._sample_fn = jax.vmap(sample_one, in_axes=(0, None, None))
            state = jax.vmap(init_one)(*start, rng_key)
        self._check_start(state)
        return state

    def _check_start(self, state):
        finite = jnp.isfinite(state.potential_energy)
        if not isinstance(finite, jax.core.Tracer) and not finite.all():
            raise ValueError(
                "Expected a finite potential at the initial point; got "
                f"{state.potential_energy}. Pass `init_params`, or check the energy for NaN."
            )

    def _draw(self, state, potential_and_grad):
        rng_key, key_step, key_v = random.split(state.rng_key, 3)
        start = KineticState(state.z, state.v, state.potential_energy, state.z_grad)

        def step(j, current):
            key = random.fold_in(key_step, j)
            return kinetic_step(key, current, potential_and_grad, state.step_size, self._friction, self._integrator)

        end = jax.lax.fori_loop(0, self._num_steps, step, start)
        bad = ~jnp.isfinite(end.potential_energy)
        fallback = start._replace(v=standard_normal_like(key_v, state.v))
        end = jax.tree.map(lambda new, old: jnp.where(bad, old, new), end, fallback)
        return KineticLangevinState(
            i=state.i + 1,
            **end._asdict(),
            energy=end.potential_energy + kinetic_energy(end.v),
            num_steps=jnp.full_like(state.num_steps, self._num_steps),
            diverging=bad,
            step_size=state.step_size,
            rng_key=rng_key,
        )

    def sample(self, state, model_args, model_kwargs):
        return self._sample_fn(state, model_args, model_kwargs)

    def postprocess_fn(self, model_args, model_kwargs):
        if self._postprocess_fn is None:
            return identity
        return self._postprocess_fn(*model_args, **model_kwargs)

    def get_diagnostics_str(self, state):
        return f"step size {float(state.step_size):.2e}, potential {float(state.potential_energy):.2f}"

    def __getstate__(self):
        return {**self.__dict__, "_sample_fn": None, "_potential_fn_gen": None, "_postprocess_fn": None}
