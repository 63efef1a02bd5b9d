"""Training of an energy on draws of its own model: a population of chains that follows it."""

import dataclasses
import math
from collections.abc import Callable, Collection
from functools import partial
from typing import Any, NamedTuple, cast

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax, random
from jax.scipy.special import logsumexp
from numpyro.distributions import Distribution

from gebm.checkpoint_files import Checkpoints, fitting
from gebm.evaluation import Evaluation, chunk_size
from gebm.fingerprint import Fingerprint
from gebm.held_out import HeldOut, HeldOutEnergies, ValidationCurve
from gebm.ladder import Points
from gebm.refinement import (
    MAX_BACKS,
    MIN_PARENTS,
    NUM_CANDIDATES,
    RECOVERY,
    STEP_RATE,
    TARGET_ACCEPT_PROB,
    CarriedLogPartition,
    Control,
    carried,
    collapsed,
    gap_closed,
    progress,
    warn_if_few_ancestors,
)
from gebm.training import PATIENCE, drive
from gebm.weights import NUM_GROUPS, LogPartition
from numpyro_gebm.base import has_density
from numpyro_gebm.callables import over_batch
from numpyro_gebm.dynamics.isir import isir
from numpyro_gebm.dynamics.metropolis import mala_step
from numpyro_gebm.gebm import GEBM
from numpyro_gebm.infer.ladder.smc import SMC
from numpyro_gebm.infer.ladder.tempering import Ladder, potential_at, systematic_resample
from numpyro_gebm.training.checkpoints import TrainingCheckpoint, read_latest_checkpoint, write_checkpoint
from numpyro_gebm.training.guide import KALEGuide
from numpyro_gebm.training.loop import Run, apply_if_usual, count_skipped, cycles, step_keys, stream_key

__all__ = ["Looks", "Refinement", "RefinementLosses", "RefinementResult", "refine"]


class RefinementLosses(NamedTuple):
    """KALE of the batch at A, penalty, A, effective share of weights, distinct ancestors, steps back, gradient norm.

    Curves of a run. `ess_share`, `ancestors` and `backs` are of the last look at the population.
    """

    kale: jax.Array | np.ndarray
    penalty: jax.Array | np.ndarray
    log_partition: jax.Array | np.ndarray
    ess_share: jax.Array | np.ndarray
    ancestors: jax.Array | np.ndarray
    backs: jax.Array | np.ndarray
    energy_grad_norm: jax.Array | np.ndarray


class RefinementResult(NamedTuple):
    """What `KALE.refine` returns.

    `gebm` is a snapshot in inference mode with the A that the population carried, `log_partition` that A with its
    error; `guide` is the trained critic. With `validation`, they are of the best state, and `gap_closed` is by how much
    held-out KALE rose, in nats. `latents` are the population at the end, draws of the model of the last state.
    """

    gebm: GEBM
    losses: RefinementLosses
    guide: KALEGuide
    validation: ValidationCurve | None
    log_partition: LogPartition
    gap_closed: Evaluation | None
    latents: jax.Array


class _Population(NamedTuple):
    """Chains with their density under the reference, where they come from, and A of the reference."""

    points: Points
    ancestors: jax.Array
    log_step: jax.Array
    log_partition: jax.Array


class _Good(NamedTuple):
    """What training goes back to: the state after the last update, when the energy was the reference."""

    energy: Any
    energy_optim: Any
    population: _Population


class RefinementState(NamedTuple):
    """Everything that a refinement changes; counters as in `KALEState`."""

    step: jax.Array
    base_step: jax.Array
    in_cycle: jax.Array
    skipped: jax.Array
    skipped_in_row: jax.Array
    rng_key: jax.Array
    energy: Any
    energy_optim: Any
    reference: Any
    population: _Population
    good: _Good
    start: Any  # the energy at the start
    start_log_partition: jax.Array  # and its A
    std_error: jax.Array  # of that
    log_increment: jax.Array  # log-mean weight at the last look
    ess_share: jax.Array
    backs: jax.Array
    backs_in_row: jax.Array
    rate_scale: jax.Array
    grad_norms: jax.Array


@dataclasses.dataclass(eq=False)
class Refinement:
    r"""An energy, and a population of chains at equilibrium of an earlier state of it (the reference).

    The loss is that of Donsker and Varadhan with the model as base: with weights $w_i = e^{E_{ref}(x_i) - E(x_i)}$,

    .. math:: \mathbb{E}_P[E] + \log \tfrac1n \sum_i w_i .

    Args:
        base: a fixed base.
        guide: its penalty is used.
        arrays: the part of the energy that is trained.
        static: the rest.
        energy_optim: its optimiser.
        control: a `Control`.
        max_grad_norm: as for `KALE`.
        noise_factor: chains per data point in a step.
        dtype: of the energies.
    """

    base: Distribution
    guide: KALEGuide
    arrays: Any
    static: Any
    energy_optim: optax.GradientTransformation
    control: Control
    max_grad_norm: float | None
    noise_factor: int
    dtype: Any

    def __post_init__(self) -> None:
        self.has_density = has_density(self.base)
        self.run_chunk = jax.jit(self._chunk)
        self.log_weights = jax.jit(self._log_weights)
        self._of_data = jax.jit(self._energies_of_data)
        self._evaluate = jax.jit(lambda arrays, u: self._ladder(arrays).evaluate(u))

    def init(self, rng_key: jax.Array, *, start: bool = True, progress_bar: bool = False) -> RefinementState:
        """The state at the start; without `start` the population is one of the prior, and a checkpoint must follow."""
        num, key = self.control.num_chains, stream_key(rng_key, "chains")
        latent, log_partition, std_error = self._gebm_of(self.arrays).latent, 0.0, 0.0
        if start:
            smc = SMC(num_particles=-(-num // NUM_GROUPS) * NUM_GROUPS)
            found = smc.run(latent, rng_key=key, progress_bar=progress_bar)
            u, log_partition = Ladder(latent).unconstrain(found.z[:num]), found.log_partition.value
            std_error = found.log_partition.std_error
        else:
            u = Ladder(latent).sample_prior(key, num)
        zero, real = jnp.zeros((), jnp.int32), partial(jnp.asarray, dtype=self.dtype)
        points = self._evaluate(self.arrays, u)
        population = _Population(points, jnp.arange(num), real(math.log(0.5)), real(log_partition))
        optim = self.energy_optim.init(self.arrays)
        return RefinementState(
            step=zero,
            base_step=zero,
            in_cycle=zero,
            skipped=zero,
            skipped_in_row=jnp.zeros(2, zero.dtype),
            rng_key=rng_key,
            energy=self.arrays,
            energy_optim=optim,
            reference=self.arrays,
            population=population,
            good=_Good(self.arrays, optim, population),
            start=self.arrays,
            start_log_partition=real(log_partition),
            std_error=real(std_error),
            log_increment=real(0.0),
            ess_share=real(1.0),
            backs=zero,
            backs_in_row=zero,
            rate_scale=real(1.0),
            grad_norms=jnp.zeros(2, self.dtype),
        )

    # --- One step

    def _chunk(self, state, batches, energy_steps, count):
        zeros = RefinementLosses(*(jnp.zeros((), self.dtype) for _ in RefinementLosses._fields))
        return cycles(state, batches, energy_steps, count, self._energy_step, self._look_if_due, zeros)

    def _energy_step(self, state, batch):
        key_move, key_penalty, _ = step_keys(state, state.step)
        half = self.control.num_trained_on
        num = min(self.noise_factor * len(batch), half)
        rows = random.permutation(key_move, half)[:num]
        population = state.population
        block, log_step = self._moved(
            random.fold_in(key_move, 1),
            population.points.map(lambda x: x[rows]),
            population.log_step,
            state.reference,
            1,
        )
        points = population.points.map(lambda x, new: x.at[rows].set(new), block)
        x = lax.stop_gradient(self._ladder(state.reference).decode(block.u))

        def loss(arrays):
            energy = eqx.combine(arrays, self.static)
            of_data, of_chains = (over_batch(energy, y, self.base.event_dim) for y in (batch, x))
            penalty = jnp.zeros((), of_data.dtype)
            if self.guide.penalty is not None:
                penalty = self.guide.penalty(energy, batch, x, key_penalty).astype(penalty.dtype)
            log_mean_weight = logsumexp(-of_chains - block.neg_beta_energy) - math.log(num)
            return of_data.mean() + log_mean_weight + penalty, (of_data.mean(), penalty)

        (total, (of_data, penalty)), grads = jax.value_and_grad(loss, has_aux=True)(state.energy)
        ok, fine, norm, energy, optim, usual = apply_if_usual(
            self.energy_optim,
            total,
            grads,
            state.energy,
            state.energy_optim,
            state.grad_norms,
            self.max_grad_norm,
            in_row=state.skipped_in_row[0],
            rate_scale=state.rate_scale,
        )
        now = population.log_partition + state.log_increment
        state = state._replace(
            step=state.step + 1,
            in_cycle=state.in_cycle + 1,
            energy=energy,
            energy_optim=optim,
            population=population._replace(points=points, log_step=log_step),
            grad_norms=usual,
        )
        zero = jnp.zeros_like(norm)
        return count_skipped(state, ok, fine, part=0), RefinementLosses(
            -of_data - now, penalty, now, zero, zero, zero, norm
        )

    def _moved(self, rng_key, points, log_step, reference, num_steps):
        """Points after MALA steps under the reference, and the adapted log of the step size."""
        evaluate = self._ladder(reference).evaluate

        def one(i, carry):
            points, log_step = carry
            steps = jnp.broadcast_to(log_step, points.neg_beta_energy.shape)
            points, accept_prob = mala_step(random.fold_in(rng_key, i), points, steps, evaluate, _log_density_and_grad)
            return points, log_step + STEP_RATE * (accept_prob.mean() - TARGET_ACCEPT_PROB)

        return lax.fori_loop(0, num_steps, one, (points, log_step))

    def _gebm_of(self, arrays):
        return GEBM(self.base, eqx.nn.inference_mode(eqx.combine(arrays, self.static)), validate_args=False)

    def _ladder(self, arrays):
        return Ladder(self._gebm_of(arrays).latent)

    def _log_weights(self, energy, points):
        """Log-weights of chains: the reference minus the present energy."""
        return self._ladder(energy).neg_beta_energy(points.u) - points.neg_beta_energy

    # --- The population

    def _look_if_due(self, state, batch):
        """After a step: go on, update the population, or go back."""
        state = state._replace(base_step=state.base_step + 1, in_cycle=jnp.zeros_like(state.in_cycle))
        due = state.base_step % self.control.look_every == 0
        state = lax.cond(due, self._look, lambda state: state, state)
        population = state.population
        own = {
            "log_partition": population.log_partition + state.log_increment,
            "ess_share": state.ess_share,
            "ancestors": self._num_ancestors(population).astype(self.dtype),
            "backs": state.backs.astype(self.dtype),
        }
        return state, own

    def _look(self, state):
        key = step_keys(state, state.step - 1)[2]  # the counter has advanced already
        control = self.control
        half, keys = control.num_trained_on, random.split(key)
        sizes = (half, control.num_chains - half)
        rows = [random.permutation(key, size)[: control.num_looked_at] for key, size in zip(keys, sizes)]
        rows = jnp.concatenate([rows[0], half + rows[1]])
        points = state.population.points.map(lambda x: x[rows])
        share, increment = _share_and_mean(self._log_weights(state.energy, points), control.num_looked_at)
        good = share >= control.step_back_below  # not NaN
        choice = jnp.where(good, jnp.where(share < control.resample_below, 1, 2), 0)
        on = state._replace(log_increment=increment, ess_share=share)
        return lax.switch(choice, [_gone_back, self._updated, lambda state: on], state)

    def _updated(self, state):
        """The present energy is the reference: the population resampled and moved, A carried along; or gone back."""
        key = random.fold_in(step_keys(state, state.step - 1)[2], 1)
        key_resample, key_rows, key_isir, key_move = random.split(key, 4)
        old, control = state.population, self.control
        num, half = control.num_chains, control.num_trained_on
        # away from where the energy was trained
        points, log_step = self._moved(key_move, old.points, old.log_step, state.reference, control.num_moves)
        log_weights = self._log_weights(state.energy, points)
        share, increment = _share_and_mean(log_weights, half)
        index = self._resampled(key_resample, log_weights)
        parents = jnp.minimum(_num_distinct(index[:half], num), _num_distinct(index[half:], num))
        good = (share >= control.step_back_below) & (parents >= MIN_PARENTS * half)

        def update(state):
            ladder, u = self._ladder(state.energy), points.u[index]
            rows = random.permutation(key_rows, num)[: control.num_restarted]

            def propose(key):
                new = ladder.sample_prior(key, control.num_restarted)
                return new, ladder.neg_beta_energy(new)

            offered, *_ = isir(key_isir, u[rows], ladder.neg_beta_energy(u[rows]), propose, NUM_CANDIDATES)
            population = _Population(
                ladder.evaluate(u.at[rows].set(offered)),
                old.ancestors[index],
                log_step,
                old.log_partition + increment,
            )
            return state._replace(
                reference=state.energy,
                population=population,
                good=_Good(state.energy, state.energy_optim, population),
                log_increment=jnp.zeros_like(state.log_increment),
                ess_share=jnp.ones_like(state.ess_share),
                backs_in_row=jnp.zeros_like(state.backs_in_row),
                rate_scale=jnp.minimum(RECOVERY * state.rate_scale, 1.0),
            )

        return lax.cond(good, update, _gone_back, state)

    def _resampled(self, rng_key, log_weights):
        """Indices of chains, resampled in each half."""
        half, keys = self.control.num_trained_on, random.split(rng_key)
        first = systematic_resample(keys[0], log_weights[:half])
        return jnp.concatenate([first, half + systematic_resample(keys[1], log_weights[half:])])

    def _num_ancestors(self, population):
        """Chains at the start that those which carry log Z descend from."""
        return _num_distinct(population.ancestors[self.control.num_trained_on :], self.control.num_chains)

    # --- What a run asks

    def carried(self, state: RefinementState) -> CarriedLogPartition:
        """A of the present energy."""
        population, half = state.population, self.control.num_trained_on
        log_weights = self.log_weights(state.energy, population.points)
        at_update, error = float(population.log_partition), float(state.std_error)
        return carried(at_update, error, np.asarray(log_weights)[half:], np.asarray(population.ancestors)[half:])

    def _energies_of_data(self, arrays, data):
        energy = eqx.nn.inference_mode(eqx.combine(arrays, self.static))
        energies = lax.map(energy, data, batch_size=chunk_size(self.base.event_shape, len(data)))
        return energies, self.base.log_prob(data) if self.has_density else None

    def energies(self, arrays: Any, data: jax.Array) -> tuple[np.ndarray, np.ndarray | None]:
        """Energies of data, and their log-densities by a base that has one."""
        return jax.device_get(self._of_data(arrays, data))

    def held_out(self, state: RefinementState, data: jax.Array) -> HeldOutEnergies:
        """What a look at held-out data sees."""
        of_data, log_density = self.energies(state.energy, data)
        return HeldOutEnergies(of_data, self.carried(state), log_density, True)

    def best(self, state: RefinementState) -> Any:
        """A copy of what a result holds."""
        return {"energy": state.energy, "carried": np.array(self.carried(state), np.float64)}

    def result(self, state: RefinementState, best: Any, data: Any, losses: Any, curve: Any) -> RefinementResult:
        """The result of a run."""
        arrays, found = state.energy, self.carried(state)
        if best is not None:
            arrays, found = best["energy"], CarriedLogPartition(*best["carried"].tolist())
        warn_if_few_ancestors(found, int(state.backs), stacklevel=6)
        closed = None
        if data is not None:
            at_start, at_end = (self.energies(a, data)[0] for a in (state.start, arrays))
            closed = gap_closed(at_start, at_end, float(state.start_log_partition), found)
        energy, A = (
            eqx.nn.inference_mode(eqx.combine(arrays, self.static)),
            jnp.asarray(found.log_partition, self.dtype),
        )
        guide = KALEGuide(
            energy,
            log_partition=A,
            log_partition_rate=self.guide.log_partition_rate,
            penalty=self.guide.penalty,
        )
        log_partition = LogPartition(found.log_partition, found.std_error, found.ess, math.nan, ())
        points = state.population.points
        index = self._resampled(stream_key(state.rng_key, "settle"), self.log_weights(state.energy, points))
        latents = self._ladder(state.reference).constrain(points.u[index])
        gebm = GEBM(self.base, energy, log_partition=A)
        return RefinementResult(gebm, losses, guide, curve, log_partition, closed, latents)


class Looks(NamedTuple):
    """When a run looks at held-out data, whether it keeps the best state, and when it stops early."""

    every: int | None
    keep_best: bool
    patience: int | None


def refine(
    training: Refinement,
    rng_key: jax.Array,
    num_steps: int,
    batches: Any,
    validation: jax.Array | None,
    fingerprint: Callable[[RefinementState], Fingerprint],
    looks: Looks,
    *,
    checkpoints: tuple[Any, int | None, Any, Collection[str]],
    progress_bar: bool,
) -> RefinementResult:
    """Run a `Refinement`.

    Args:
        training: the `Refinement`.
        rng_key: a JAX random key.
        num_steps: of the whole run.
        batches: see `batches`.
        validation: held-out data, or None.
        fingerprint: of the run, from its state at the start.
        looks: when to look at them.
        checkpoints: folder, steps between two, folder to resume from, and what may differ.
        progress_bar: show it.

    Returns:
        A `RefinementResult`.
    """
    folder, every, resume_from, allow = checkpoints
    state = training.init(rng_key, start=resume_from is None, progress_bar=progress_bar)
    of_run, control = fingerprint(state), training.control

    def explain(state):
        return collapsed(int(state.backs), control) if int(state.backs_in_row) >= MAX_BACKS else None

    nothing = RefinementLosses(*(np.zeros(0, training.dtype) for _ in RefinementLosses._fields))
    advice = "`error.state.energy` is the energy; a run with `resume_from=` makes the result again."
    run = Run(training.run_chunk, lambda step: 1, batches, state, nothing, explain, advice)
    held_out = HeldOut(
        looks.every,
        lambda: training.held_out(run.state, cast(jax.Array, validation)),
        (lambda: training.best(run.state)) if looks.keep_best else None,
        has_density=training.has_density,
        base_is_trained=False,
        patience=looks.patience,
    )

    def kept():
        rows = (None, None) if looks.every is None else (held_out.rows, held_out.best)
        return TrainingCheckpoint(run.state, np.asarray(run.first), list(run.losses), *rows)

    if resume_from is not None:
        like = kept()._replace(best=None if looks.every is None else training.best(state))
        saved = read_latest_checkpoint(
            resume_from, like, ("held_out", "best"), partial(of_run.check, allow=allow, source=resume_from)
        )
        with fitting(resume_from):
            run.resume(saved.state, int(saved.first), RefinementLosses(*saved.losses))
            held_out.resume(saved.held_out, saved.best)
    writer = Checkpoints(folder, every, lambda directory, step, run: write_checkpoint(directory, step, kept(), of_run))

    def finish():
        return training.result(run.state, held_out.best, validation, run.losses, held_out.curve())

    result = drive(run, num_steps, writer, held_out, progress, finish, progress_bar=progress_bar)
    held_out.warn(run.losses.kale, stacklevel=3)
    return result


def _gone_back(state):
    """The state after the last update, with half the rate."""
    good, in_row = state.good, state.backs_in_row + 1
    skipped_in_row = state.skipped_in_row.at[1].set(jnp.where(in_row >= MAX_BACKS, PATIENCE, 0))
    return state._replace(
        energy=good.energy,
        energy_optim=good.energy_optim,
        reference=good.energy,
        population=good.population,
        log_increment=jnp.zeros_like(state.log_increment),
        ess_share=jnp.ones_like(state.ess_share),
        backs=state.backs + 1,
        backs_in_row=in_row,
        skipped_in_row=skipped_in_row,
        rate_scale=state.rate_scale / 2.0,
    )


def _log_density_and_grad(points):
    potential, grad = potential_at(points, 1.0)
    return -potential, -grad


def _num_distinct(index, num):
    return jnp.zeros(num, jnp.int32).at[index].set(1).sum()


def _share_and_mean(log_weights, half):
    """The lower effective share of both halves, NaN if it is not finite, and the log of the second's mean weight."""
    shares, means = [], []
    for part in (log_weights[:half], log_weights[half:]):
        total = logsumexp(part)
        shares.append(jnp.exp(2.0 * total - logsumexp(2.0 * part)) / len(part))
        means.append(total - math.log(len(part)))
    return jnp.minimum(*shares), means[1]
