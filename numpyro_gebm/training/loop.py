"""A training run, whatever it trains: compiled chunks of steps, steps that are not finite, checkpoints."""

import math
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax, random

from gebm import clipping, training
from gebm.errors import TrainingDiverged
from gebm.training import BAD_STEPS, PATIENCE
from numpyro_gebm.callables import array_name

__all__ = ["Run", "apply_if_usual", "count_skipped", "cycles", "split_trained", "step_keys", "stream_key"]


def stream_key(rng_key: jax.Array, purpose: str) -> jax.Array:
    """A random key of its own for each purpose, so that no two ever share random numbers."""
    return random.fold_in(rng_key, ("step", "data", "evaluate", "settle", "chains", "validate").index(purpose))


def step_keys(state: Any, step: jax.Array) -> jax.Array:
    """Keys of one energy step: base draws, penalty, and the base step after it."""
    return random.split(random.fold_in(stream_key(state.rng_key, "step"), step), 3)


def split_trained(prefix: str, tree: Any, trainable: Callable[[str], bool] | None) -> tuple[Any, Any]:
    """Arrays that are trained, by the rule `trainable(name)`, and the rest."""

    def trained(path, leaf):
        return eqx.is_inexact_array(leaf) and (trainable is None or bool(trainable(array_name(prefix, path))))

    return eqx.partition(tree, jax.tree_util.tree_map_with_path(trained, tree))


def apply_if_usual(
    optim: optax.GradientTransformation,
    loss: jax.Array,
    grads: Any,
    arrays: Any,
    optim_state: Any,
    usual: jax.Array,
    max_grad_norm: float | None,
    outlier: jax.Array | bool = False,
    in_row: jax.Array | int = 0,
    rate_scale: jax.Array | float = 1.0,
) -> tuple[jax.Array, jax.Array, jax.Array, Any, Any, jax.Array]:
    """One optimiser step with a clipped gradient, unless loss or gradient is not finite or far above what is usual.

    Args:
        optim: the optimiser.
        loss: of the step.
        grads: its gradient.
        arrays: what is trained.
        optim_state: state of the optimiser.
        usual: log of the running quantile of the norms, and their number; see `gebm.clipping`.
        max_grad_norm: norm that gradients are clipped at; None for twice the quantile, inf for no such thing.
        outlier: whether its batch is one for another reason.
        in_row: bad steps in a row before this one; after three, an outlier is applied.
        rate_scale: a factor of the learning rate.

    Returns:
        `(applied, fine, gradient norm, arrays, optim_state, usual)`; a step is fine if it is neither an outlier nor not
        finite.
    """
    norm = jnp.sqrt(sum(jnp.sum(jnp.square(g)) for g in jax.tree.leaves(grads)))
    log_norm, (log_quantile, count) = jnp.log(norm), usual
    ok = jnp.isfinite(loss) & jnp.isfinite(norm)
    known = ok & jnp.isfinite(log_norm)
    if max_grad_norm != math.inf:
        log_quantile = jnp.where(count == 0, log_norm, log_quantile)
        outlier |= (count >= clipping.MIN_STEPS) & (log_norm > log_quantile + clipping.LOG_OUTLIER)
        bound = clipping.largest_log_norm(max_grad_norm, log_quantile)
        scale = jnp.exp(jnp.minimum(bound - log_norm, 0.0))
        scale = jnp.where(jnp.isfinite(scale), scale, 1.0)  # a gradient of 0
        grads = jax.tree.map(lambda g: g * scale.astype(g.dtype), grads)
        new = jnp.stack([clipping.next_log_quantile(log_quantile, count, log_norm), count + 1.0])
        usual = jnp.where(known, new, usual)
    fine = ok & ~jnp.asarray(outlier)
    ok &= fine | (in_row >= clipping.MAX_OUTLIERS)

    def apply(arrays, optim_state):
        updates, optim_state = optim.update(grads, optim_state, arrays)
        if not (isinstance(rate_scale, float) and rate_scale == 1.0):
            updates = jax.tree.map(lambda x: x * jnp.asarray(rate_scale, x.dtype), updates)
        return optax.apply_updates(arrays, updates), optim_state

    arrays, optim_state = lax.cond(ok, apply, lambda *same: same, arrays, optim_state)
    return ok, fine, norm.astype(loss.dtype), arrays, optim_state, usual


def count_skipped(state: Any, ok: jax.Array, fine: jax.Array, part: int) -> Any:
    """Count a step of the energy (part 0) or the base (part 1) that was not applied, or was bad."""
    bad = (~fine).astype(state.skipped.dtype)
    in_row = state.skipped_in_row.at[part].set((state.skipped_in_row[part] + bad) * bad)
    return state._replace(skipped=state.skipped + (~ok).astype(state.skipped.dtype), skipped_in_row=in_row)


def cycles(
    state: Any,
    batches: Any,
    energy_steps: jax.Array,
    count: jax.Array,
    energy_step: Callable[[Any, jax.Array], tuple[Any, Any]],
    base_step: Callable[[Any, jax.Array], tuple[Any, dict[str, jax.Array]]],
    zeros: Any,
) -> tuple[Any, Any, jax.Array]:
    """`count` base steps, each after its energy steps; ends early where training diverges. To be compiled.

    Args:
        state: what training changes.
        batches: source of batches, see `batches`.
        energy_steps: number of energy steps before each base step; its length bounds `count`.
        count: number of base steps.
        energy_step: `(state, batch) -> (state, losses)`.
        base_step: `(state, batch) -> (state, losses by name)`; its batch is the last one of the energy, and its losses
            replace theirs.
        zeros: the losses of no step.

    Returns:
        `(state, losses, done)`: losses in arrays as long as `energy_steps`, of which the first `done` are filled.
    """
    key = stream_key(state.rng_key, "data")

    def alive(state):
        return state.skipped_in_row.max() < PATIENCE

    def one_energy_step(carry):
        state, position, total = carry
        batch, position = batches.batch(state.step, key, position)
        state, losses = energy_step(state, batch)
        return state, position, jax.tree.map(jnp.add, total, losses)

    def one_cycle(carry):
        i, state, position, curves = carry
        num, before = energy_steps[i], state.step
        state, position, total = lax.while_loop(
            lambda c: (c[0].in_cycle < num) & alive(c[0]), one_energy_step, (state, position, zeros)
        )
        mean = jax.tree.map(lambda x: x / jnp.maximum(state.step - before, 1).astype(x.dtype), total)
        state, own = base_step(state, batches.batch(state.step - 1, key, position)[0])
        curves = jax.tree.map(lambda curve, x: curve.at[i].set(x), curves, mean._replace(**own))
        return i + 1, state, position, curves

    curves = jax.tree.map(lambda x: jnp.zeros(len(energy_steps), x.dtype), zeros)
    start = (jnp.zeros((), jnp.int32), state, batches.start(state.step, key), curves)
    done, state, _, curves = lax.while_loop(lambda c: (c[0] < count) & alive(c[1]), one_cycle, start)
    return state, curves, done


class Run:
    """A run of training, as `gebm.training.drive` moves it along.

    Args:
        run_chunk: compiled `(state, batches, energy_steps, count) -> (state, losses, done)`.
        energy_steps: energy steps before a base step, by its number.
        batches: see `batches`.
        state: what training changes.
        losses: curves of no steps.
        explain: from the state, why it stopped and what to do about it; None for steps that were all bad.
        advice: how to go on where the result could not be made.
    """

    def __init__(
        self,
        run_chunk: Callable,
        energy_steps: Callable[[int], int],
        batches: Any,
        state: Any,
        losses: Any,
        explain: Callable[[Any], tuple[str, str] | None] = lambda state: None,
        advice: str = "`run(None, 0, data, init_state=error.state)` makes the result again.",
    ) -> None:
        self.explain, self.advice = explain, advice
        self.run_chunk, self.energy_steps, self.batches = run_chunk, energy_steps, batches
        self.first, self.losses = int(state.base_step), losses
        self._start(state)

    def resume(self, state: Any, first: int, losses: Any) -> None:
        """Go back to a checkpoint: its state, base steps taken before the run, curves of the run so far."""
        self.first, self.losses = first, losses
        self.batches.skip(int(state.step))
        self._start(state)

    def _start(self, state):
        self.state = self.good = state
        self.skipped_before = int(state.skipped)

    @property
    def step(self) -> int:
        return int(self.state.base_step) - self.first

    @property
    def skipped(self) -> int:
        return int(self.state.skipped) - self.skipped_before

    @property
    def kept(self) -> tuple[Any, str]:
        return self.state, self.advice

    def advance(self, count: int) -> Any:
        """Up to `count` base steps, fewer where the batches of a stream bound them; their losses.

        Raises:
            TrainingDiverged: with the good state of an earlier look, if the last steps were all bad.
        """
        base_step, step = int(self.state.base_step), int(self.state.step)
        steps = [self.energy_steps(base_step + i) for i in range(count)]
        limit, needed = self.batches.limit, np.cumsum(steps) - int(self.state.in_cycle)
        count = count if limit is None else max(1, int(np.sum(needed <= limit)))
        batches = self.batches.take(step, int(needed[count - 1]))
        padded = np.ones(training.MAX_STEPS_PER_LOOK, np.int32)
        padded[: len(steps)] = steps
        self.state, losses, done = self.run_chunk(self.state, batches, jnp.asarray(padded), jnp.array(count))
        losses = jax.tree.map(lambda curve: np.asarray(curve)[: int(done)], losses)
        self.losses = jax.tree.map(lambda *pair: np.concatenate(pair), self.losses, losses)
        if int(self.state.skipped_in_row.max()) >= PATIENCE:
            found, advice = self.explain(self.state) or BAD_STEPS
            raise TrainingDiverged(
                f"Training stopped at base step {int(self.state.base_step)}: {found} `error.state` is the last good "
                f"state, of base step {int(self.good.base_step)}. {advice}",
                self.good,
            )
        self.good = self.good if self.state.skipped_in_row.any() else self.state
        return losses
