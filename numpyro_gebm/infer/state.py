"""The state of a kernel, and that state as a file holds it."""

from collections import namedtuple
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree
from numpyro.util import not_jax_tracer

from gebm.langevin import PATIENCE, AdaptState, Chains, KineticState, OfChains, still_nan
from numpyro_gebm.dynamics.steps import kinetic_energy
from numpyro_gebm.infer.adaptation import on_chain_axis

__all__ = ["LangevinState", "flat", "many", "one", "restored", "saved", "unraveler"]


class _LangevinState(NamedTuple):
    i: jax.Array
    z: Any
    chains: Chains[jax.Array]
    accept_prob: jax.Array
    mean_accept_prob: jax.Array
    energy_error: jax.Array
    diverging: jax.Array
    num_steps: jax.Array
    step_size: jax.Array
    num_nan: jax.Array
    adapt_state: AdaptState[jax.Array]
    rng_key: jax.Array
    stale: jax.Array


class LangevinState(_LangevinState, OfChains):
    """State of a kernel of `infer`. Fields and properties are named as in NumPyro's HMC.

    Args:
        i: iterations so far, warm-up included.
        z: position, a pytree.
        chains: `Chains`, on flat positions.
        accept_prob: acceptance probability of the last step of the draw; of an unadjusted kernel that which a
            Metropolis test would have had.
        mean_accept_prob: its mean since the warm-up.
        energy_error: energy error of its deterministic part.
        diverging: whether a step led to a potential that is not finite, or to an energy error above 1000.
        num_steps: gradients spent on the draw.
        step_size: step size of the draw.
        num_nan: draws in a row whose last step led into NaN.
        adapt_state: `AdaptState` of the warm-up, with `step_size`, `length_scale` and `warmup_converged`.
        rng_key: random key.
        stale: whether the potential and its gradient have to be computed anew before the next step.
    """

    __slots__ = ()

    def _replace(self, **fields: Any) -> "LangevinState":  # pyright: ignore[reportIncompatibleMethodOverride]
        """A copy with other fields, the potential and its gradient among them, as of NumPyro's states.

        With another position, potential or random key the copy is `stale`: with a new key `MCMC.run` hands a state on
        (`post_warmup_state`), perhaps to other data or another model.
        """
        potential = {name: fields.pop(name) for name in ("potential_energy", "z_grad") if name in fields}
        if potential or fields.keys() & {"z", "rng_key"}:
            fields.setdefault("stale", jnp.ones_like(self.stale))
        if potential:
            fields["chains"] = self.chains._replace(kinetic=self.chains.kinetic._replace(**potential))
        return super()._replace(**fields)

    @property
    def energy(self) -> jax.Array:
        """Potential plus kinetic energy."""
        return self.potential_energy + kinetic_energy(self.v)


def _children(state):
    return tuple((jax.tree_util.GetAttrKey(name), getattr(state, name)) for name in state._fields), None


def _state(_, children):
    """A state from its parts: as it leaves a compiled program, where nothing can be raised, a failure is raised here.

    Raises:
        RuntimeError: if the potential of a chain was NaN for 100 draws in a row.
    """
    state = LangevinState(*children)
    num_nan = state.num_nan
    known = isinstance(num_nan, jax.Array) and not_jax_tracer(num_nan)
    if known and any((np.asarray(shard.data) >= PATIENCE).any() for shard in num_nan.addressable_shards):
        raise RuntimeError(still_nan("init_params"))
    return state


jax.tree_util.register_pytree_with_keys(LangevinState, _children, _state, lambda state: (tuple(state), None))


#: A `LangevinState` of many chains as a file holds it: without nesting, and with the position once.
SavedState = namedtuple(
    "SavedState",
    "i z v slice grad_point potential_energy z_grad energy accept_prob mean_accept_prob energy_error "
    "kinetic_temperature diverging num_steps step_size num_nan adapt_state rng_key",
)


def saved(state: LangevinState) -> SavedState:
    """The form in which a state is saved."""
    return SavedState(**{name: getattr(state, name) for name in SavedState._fields})


def restored(saved: SavedState) -> LangevinState:
    """The state that was saved."""
    kinetic = KineticState(flat(saved.z), saved.v, saved.grad_point, saved.potential_energy, saved.z_grad)
    same = {name: getattr(saved, name) for name in LangevinState._fields if name not in ("chains", "stale")}
    return LangevinState(chains=Chains(kinetic, saved.slice), stale=jnp.zeros_like(saved.diverging), **same)


def flat(z: Any) -> jax.Array:
    """Positions, a pytree with a leading axis of N, as an array of shape `(N, d)`."""
    return jax.vmap(lambda z: ravel_pytree(z)[0])(z)


def unraveler(z: Any) -> Callable[[jax.Array], Any]:
    """A callable from one row of `flat(z)` to the position that it stands for."""
    return ravel_pytree(jax.tree.map(lambda x: x[0], z))[1]


def many(state: LangevinState) -> LangevinState:
    """A state of one chain as one of an ensemble of one."""
    return _on_chain_axis(lambda x: x[None], state)


def one(state: LangevinState) -> LangevinState:
    """A state of an ensemble of one as one of a chain."""
    return _on_chain_axis(lambda x: x[0], state)


def _on_chain_axis(fn, state):
    mapped = jax.tree.map(fn, state._replace(adapt_state=None))
    return mapped._replace(adapt_state=on_chain_axis(fn, state.adapt_state))
