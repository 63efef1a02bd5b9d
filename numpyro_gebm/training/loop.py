"""What training keeps, returns and raises, and the parts of a step that know nothing of KALE."""

from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import optax
from jax import lax, random

from gebm.errors import TrainingDiverged
from numpyro_gebm.base import has_density
from numpyro_gebm.callables import array_name
from numpyro_gebm.gebm import GEBM
from numpyro_gebm.training.contrastive import Chains
from numpyro_gebm.training.guide import KALEGuide

__all__ = [
    "KALELosses",
    "KALEResult",
    "KALEState",
    "apply_if_finite",
    "check_arguments",
    "count_skipped",
    "cycles",
    "energy_bursts",
    "shown",
    "split_trained",
    "step_keys",
    "stop_if_diverged",
    "stream_key",
]

#: Most base steps that run as one compiled program between two looks at the losses; results do not depend on it.
CHUNK = 100
#: What `KALE` can optimise; the last two are baselines, for one of the two parts.
OBJECTIVES = ("kale", "donsker_varadhan", "maximum_likelihood", "contrastive_divergence")
#: Steps in a row with a loss or gradient that is not finite, after which a run stops.
PATIENCE = 10


class KALEState(NamedTuple):
    """Everything that training changes.

    `step` counts energy steps (and so the batches used) and `base_step` base steps; where one part is frozen they are
    the same. `in_cycle` counts energy steps since the last base step. `skipped` counts steps that were not applied
    because a loss or gradient was not finite, `skipped_in_row` the latest of them in a row, for energy and base.
    `base_average` is the moving average of the base, `chains` those of contrastive divergence, or None.
    """

    step: jax.Array
    base_step: jax.Array
    in_cycle: jax.Array
    skipped: jax.Array
    skipped_in_row: jax.Array
    rng_key: jax.Array
    base: Any
    energy: Any
    base_optim: Any
    energy_optim: Any
    base_average: Any
    log_partition: jax.Array
    chains: Chains | None


class KALELosses(NamedTuple):
    """KALE (higher is a better energy), penalty, log-partition, and norms of the gradients of energy and base.

    Scalars of a step (`base_grad_norm` is 0 where no base step was due), curves of a run: there one value per base
    step, the mean over its energy steps.
    """

    kale: jax.Array
    penalty: jax.Array
    log_partition: jax.Array
    energy_grad_norm: jax.Array
    base_grad_norm: jax.Array


class KALEResult(NamedTuple):
    """What `KALE.run` returns.

    `gebm` carries the settled log-partition, `state.log_partition` the raw last value; `guide` is the trained critic.
    """

    gebm: GEBM
    state: KALEState
    losses: KALELosses
    guide: KALEGuide


def energy_bursts(steps=5, *, initial=100, every=500):
    """Schedule of energy steps: `steps` per base step, but `initial` at the start and before every `every`-th.

    The defaults are the setting of arXiv:2003.05033.

    Args:
        steps: energy steps per base step.
        initial: energy steps of a burst.
        every: base steps from one burst to the next.

    Returns:
        A callable from the number of a base step to its number of energy steps.

    Example:
        >>> schedule = energy_bursts(5, initial=100, every=500)
        >>> [int(schedule(step)) for step in (0, 1, 500)]
        [100, 5, 100]
    """
    return lambda base_step: jnp.where(base_step % every == 0, initial, steps)


def check_arguments(base, objective, energy_steps, noise_factor, ema_decay, base_optim, energy_optim):
    """Check the arguments of `KALE` that do not depend on the networks; raises ValueError."""
    if objective not in OBJECTIVES:
        raise ValueError(f"Expected objective in {OBJECTIVES}; got {objective!r}.")
    if base_optim is None and energy_optim is None:
        raise ValueError("Nothing to train: expected base_optim or energy_optim; got None for both.")
    if objective == "maximum_likelihood" and (energy_optim is not None or not has_density(base)):
        raise ValueError("Expected energy_optim=None and a base with a density for maximum likelihood; got otherwise.")
    if objective == "contrastive_divergence" and base_optim is not None:
        raise ValueError("Expected base_optim=None for contrastive divergence: it trains the energy alone.")
    if (not callable(energy_steps) and energy_steps < 1) or noise_factor < 1:
        raise ValueError(f"Expected energy_steps >= 1 and noise_factor >= 1; got {energy_steps} and {noise_factor}.")
    if ema_decay is not None and not 0 <= ema_decay < 1:
        raise ValueError(f"Expected ema_decay in [0, 1) or None; got {ema_decay}.")


def stream_key(rng_key, purpose):
    """A random key of its own for each purpose, so that no two ever share random numbers."""
    return random.fold_in(rng_key, ("step", "data", "evaluate", "settle", "chains").index(purpose))


def step_keys(state, step):
    """Keys of one energy step: base draws, penalty, and the base step after it."""
    return random.split(random.fold_in(stream_key(state.rng_key, "step"), step), 3)


def split_trained(prefix, tree, trainable):
    """Arrays that are trained, by the rule `trainable(name)`, and the rest."""

    def trained(path, leaf):
        return eqx.is_inexact_array(leaf) and (trainable is None or bool(trainable(array_name(prefix, path))))

    return eqx.partition(tree, jax.tree_util.tree_map_with_path(trained, tree))


def apply_if_finite(optim, loss, grads, arrays, optim_state):
    """One optimiser step unless loss or gradient is not finite.

    Returns:
        `(applied, gradient norm, arrays, optim_state)`.
    """
    norm = jnp.sqrt(sum(jnp.sum(jnp.square(g)) for g in jax.tree.leaves(grads)))
    ok = jnp.isfinite(loss) & jnp.isfinite(norm)

    def apply(arrays, optim_state):
        updates, optim_state = optim.update(grads, optim_state, arrays)
        return optax.apply_updates(arrays, updates), optim_state

    arrays, optim_state = lax.cond(ok, apply, lambda *same: same, arrays, optim_state)
    return ok, norm.astype(loss.dtype), arrays, optim_state


def count_skipped(state, ok, part):
    """Count a step of the energy (part 0) or the base (part 1) that was not applied."""
    bad = (~ok).astype(state.skipped.dtype)
    in_row = state.skipped_in_row.at[part].set((state.skipped_in_row[part] + bad) * bad)
    return state._replace(skipped=state.skipped + bad, skipped_in_row=in_row)


def cycles(state, batches, count, energy_step, base_step, energy_steps_at):
    """`count` base steps, each after its energy steps; ends early where training diverges. To be compiled.

    Args:
        state: a `KALEState`.
        batches: source of batches, see `batches`.
        count: number of base steps.
        energy_step: `(state, batch) -> (state, losses)`.
        base_step: `(state, batch) -> (state, gradient norm)`; its batch is the last one of the energy.
        energy_steps_at: number of energy steps before a base step, by its number.

    Returns:
        `(state, losses, done)`: losses in arrays of length `CHUNK`, of which the first `done` are filled.
    """
    key = stream_key(state.rng_key, "data")
    zeros = KALELosses(*(jnp.zeros((), state.log_partition.dtype) for _ in KALELosses._fields))

    def alive(state):
        return state.skipped_in_row.max() < PATIENCE

    def one_energy_step(carry):
        state, position, total = carry
        batch, position = batches.batch(state.step, key, position)
        state, losses = energy_step(state, batch)
        return state, position, jax.tree.map(jnp.add, total, losses)

    def one_cycle(carry):
        i, state, position, curves = carry
        num, before = energy_steps_at(state.base_step), state.step
        state, position, total = lax.while_loop(
            lambda c: (c[0].in_cycle < num) & alive(c[0]), one_energy_step, (state, position, zeros)
        )
        mean = jax.tree.map(lambda x: x / jnp.maximum(state.step - before, 1).astype(x.dtype), total)
        state, norm = base_step(state, batches.batch(state.step - 1, key, position)[0])
        curves = jax.tree.map(lambda curve, x: curve.at[i].set(x), curves, mean._replace(base_grad_norm=norm))
        return i + 1, state, position, curves

    curves = jax.tree.map(lambda x: jnp.zeros(CHUNK, x.dtype), zeros)
    start = (jnp.zeros((), jnp.int32), state, batches.start(state.step, key), curves)
    done, state, _, curves = lax.while_loop(lambda c: (c[0] < count) & alive(c[1]), one_cycle, start)
    return state, curves, done


def stop_if_diverged(state, good):
    """Raise `TrainingDiverged` with the good state of an earlier look for a run whose last steps were all bad."""
    if int(state.skipped_in_row.max()) >= PATIENCE:
        raise TrainingDiverged(
            f"KALE stopped at base step {int(state.base_step)}: loss or gradient was not finite {PATIENCE} steps in a "
            f"row. `error.state` is the last good state, of base step {int(good.base_step)}. Lower the learning rates, "
            "or raise the penalty.",
            good,
        )


def shown(losses, skipped):
    """What the progress bar shows of the last step."""
    names = {"kale": "KALE", "log_partition": "A", "penalty": "penalty", "energy_grad_norm": "|dE|"}
    values = {label: f"{getattr(losses, name)[-1]:.3g}" for name, label in names.items()}
    if losses.base_grad_norm.any():
        values["|dB|"] = f"{losses.base_grad_norm[-1]:.3g}"
    return {**values, **({"skipped": skipped} if skipped else {})}
