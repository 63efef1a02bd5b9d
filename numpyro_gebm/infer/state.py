"""What a kernel keeps: the chains, what a step reports, the state of a run, and that state as a file holds it."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree

from numpyro_gebm.dynamics.steps import KineticState, kinetic_energy
from numpyro_gebm.infer.adaptation import AdaptState, on_chain_axis

__all__ = ["Chains", "LangevinState", "SavedState", "StepInfo", "flat", "many", "one"]


class Chains(NamedTuple):
    """N chains: `kinetic` of shape `(N, d)`, and a slice variable (GHMC) of shape `(N,)`."""

    kinetic: KineticState
    slice: jax.Array


class StepInfo(NamedTuple):
    """What a step reports, in shape `(N,)`; `num_steps` counts gradients."""

    energy_error: jax.Array
    diverging: jax.Array
    num_steps: int | jax.Array = 1


class LangevinState(NamedTuple):
    """State of a kernel of `infer`. Fields and properties are named as in NumPyro's HMC.

    Args:
        i: iterations so far, warm-up included.
        z: position, a pytree.
        chains: `Chains`, on flat positions.
        accept_prob: acceptance probability of the last step of the draw; for an unadjusted kernel, that of
            the Metropolis test that it leaves out.
        mean_accept_prob: its mean since the warm-up.
        energy_error: energy error of its deterministic part.
        diverging: whether a step led to a potential that is not finite, or to an energy error above 1000.
        num_steps: gradients spent on the draw.
        step_size: step size of the draw.
        num_nan: draws in a row whose last step led to a NaN potential.
        adapt_state: `AdaptState` of the warm-up, with `step_size`, `length_scale` and `warmup_converged`.
        rng_key: random key.
    """

    i: jax.Array
    z: Any
    chains: Chains
    accept_prob: jax.Array
    mean_accept_prob: jax.Array
    energy_error: jax.Array
    diverging: jax.Array
    num_steps: jax.Array
    step_size: jax.Array
    num_nan: jax.Array
    adapt_state: AdaptState
    rng_key: jax.Array

    @property
    def v(self) -> jax.Array:
        """Velocity in units of the mass, flat; standard normal at stationarity."""
        return self.chains.kinetic.v

    @property
    def slice(self) -> jax.Array:
        """Slice variable (GHMC)."""
        return self.chains.slice

    @property
    def grad_point(self) -> jax.Array:
        """Where the gradient was last taken, flat: `z`, except with the splittings ABOBA and UBU."""
        return self.chains.kinetic.grad_point

    @property
    def potential_energy(self) -> jax.Array:
        """The potential there."""
        return self.chains.kinetic.potential_energy

    @property
    def z_grad(self) -> jax.Array:
        """Its gradient there, flat."""
        return self.chains.kinetic.z_grad

    @property
    def energy(self) -> jax.Array:
        """Potential plus kinetic energy."""
        return self.potential_energy + kinetic_energy(self.v)

    @property
    def kinetic_temperature(self) -> jax.Array:
        """`|v|^2 / d`; its expectation is 1 without discretisation bias."""
        return jnp.mean(self.v**2, -1)


class SavedState(NamedTuple):
    """A `LangevinState` of many chains as a file holds it: without nesting, and with the position once."""

    i: jax.Array
    z: Any
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

    @classmethod
    def of(cls, state: LangevinState) -> "SavedState":
        """The form in which a state is saved."""
        return cls(**{name: getattr(state, name) for name in cls._fields})

    def restored(self) -> LangevinState:
        """The state that was saved."""
        kinetic = KineticState(flat(self.z), self.v, self.grad_point, self.potential_energy, self.z_grad)
        same = {name: getattr(self, name) for name in LangevinState._fields if name != "chains"}
        return LangevinState(chains=Chains(kinetic, self.slice), **same)


def flat(z: Any) -> jax.Array:
    """Positions, a pytree with a leading axis of N, as an array of shape `(N, d)`."""
    return jax.vmap(lambda z: ravel_pytree(z)[0])(z)


def many(state: LangevinState) -> LangevinState:
    """The state of one chain, as that of an ensemble of one."""
    return _on_chain_axis(lambda x: x[None], state)


def one(state: LangevinState) -> LangevinState:
    """The state of an ensemble of one, as that of one chain."""
    return _on_chain_axis(lambda x: x[0], state)


def _on_chain_axis(fn, state):
    mapped = jax.tree.map(fn, state._replace(adapt_state=None))
    return mapped._replace(adapt_state=on_chain_axis(fn, state.adapt_state))
