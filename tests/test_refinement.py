"""Training on draws of the model itself, in both hosts: exact where it can be, controlled, resumable."""

import math
import warnings

import hosts
import numpy as np
import pytest
from killed import killed

from gebm.errors import ResultFailed, TrainingDiverged
from gebm.refinement import CarriedLogPartition, Control, carried, gap_closed, warn_if_few_ancestors


def two_bumps(num, seed):
    """Draws of a law on the plane that a standard normal covers badly."""
    rng = np.random.default_rng(seed)
    return rng.normal(size=(num, 2)) * 0.5 + np.where(rng.random(num) < 0.7, 1.5, -1.5)[:, None]


DATA, HELD_OUT = two_bumps(4000, 0), two_bumps(2000, 1)
GRID = np.stack(np.meshgrid(*2 * [np.linspace(-7, 7, 281)]), -1).reshape(-1, 2)


def build(host, kind="plain", rate=3e-3, **kwargs):
    base = {
        "plain": lambda: host.normal(2),
        "flow": lambda: host.random_flow(dim=2, num_couplings=1, hidden=(4,)),
        "pushforward": lambda: host.Pushforward(host.normal(2), host.network(lambda a, z: a * z, np.array(1.3))),
    }[kind]()
    guide = host.KALEGuide(host.call(host.nn.MLP, (2,), (), (16, 16), seed=2), penalty=host.gradient_penalty(1e-3))
    return host.KALE(base, guide, None, host.adam(rate), **kwargs)


@hosts.compiled_once
def kale_of(host, kind):
    return build(host, kind)


def refine(host, kale, num_steps, seed=0, data=DATA, **kwargs):
    kwargs = {"batch_size": 100, "num_chains": 256, "progress_bar": False} | kwargs
    return kale.refine(*host.key(seed), num_steps, data, **kwargs)


def log_partition_by_quadrature(host, gebm):
    log_weight = -host.numpy(host.apply(gebm.energy, GRID)) - 0.5 * (GRID**2).sum(1) - math.log(2 * math.pi)
    return np.logaddexp.reduce(log_weight) + 2 * math.log(14 / 280)


def parameters(host, result):
    return [*host.parameters(result.gebm.energy), host.numpy(result.gebm.log_partition), host.numpy(result.latents)]


def same(one, other):
    return len(one) == len(other) > 0 and all(np.array_equal(a, b) for a, b in zip(one, other))


@pytest.mark.slow_in("numpyro")
def test_it_learns_the_law_and_carries_log_z_along(host):
    settings = {"num_chains": 2048, "validation": HELD_OUT, "validate_every": 100}
    result = refine(host, kale_of(host, "plain"), 400, **settings)
    found = result.log_partition
    assert abs(found.value - log_partition_by_quadrature(host, result.gebm)) < 4 * found.std_error < 0.5
    assert float(result.gebm.log_partition) == pytest.approx(found.value)
    x = host.numpy(result.gebm.decode(result.latents))
    assert abs(np.mean(x[:, 0] > 0) - 0.7) < 0.12
    curve = result.validation
    assert curve.step.tolist() == [0, 100, 200, 300, 400] and curve.best_step > 0
    rise = curve.kale.max() - curve.kale[0]
    assert abs(result.gap_closed.value - rise) < 4 * result.gap_closed.std_error and rise > 0.3
    assert np.isfinite(np.stack([host.numpy(loss) for loss in result.losses])).all()
    assert len(host.package.plot_losses(result)) == 4
    updates = np.diff(host.numpy(result.losses.ancestors)) < 0
    assert updates.any() and host.numpy(result.losses.ess_share).min() > 0.35


@pytest.mark.slow
def test_log_z_is_within_its_error_in_twenty_runs(host):
    errors = []
    for seed in range(20):
        result = refine(host, kale_of(host, "plain"), 400, seed, num_chains=2048)
        found = result.log_partition
        errors.append((found.value - log_partition_by_quadrature(host, result.gebm)) / found.std_error)
    assert np.abs(errors).max() < 3.0 and np.std(errors) > 0.2, errors


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["flow", "pushforward"])
def test_bases_of_other_kinds(host, kind):
    result = refine(host, build(host, kind), 20, num_chains=64, batch_size=20, validation=HELD_OUT[:100])
    assert np.isfinite(result.validation.kale).all() and result.latents.shape == (64, 2)
    assert np.isnan(result.validation.log_likelihood).all() == (kind == "pushforward")


@pytest.mark.slow_in("numpyro")
def test_it_goes_on_from_a_finished_run_and_leaves_it_alone(host):
    first = host.train(kale_of(host, "plain"), 20, DATA)
    before = host.parameters(first.gebm.energy)
    guide = host.KALEGuide(first.guide.energy, penalty=None)
    second = refine(host, host.KALE(first.gebm.base, guide, None, host.adam(1e-2)), 10)
    assert same(before, host.parameters(first.gebm.energy)) and not same(before, host.parameters(second.gebm.energy))


@pytest.mark.slow_in("numpyro")
def test_a_refinement_is_resumed_bit_for_bit(host, tmp_path):
    looks = {"validation": HELD_OUT, "validate_every": 7}
    whole = refine(host, kale_of(host, "plain"), 30, **looks)
    settings = {"checkpoint_dir": tmp_path, "checkpoint_every": 4} | looks
    refine(host, kale_of(host, "plain"), 13, **settings)
    resumed = refine(host, build(host), 30, seed=0, resume_from=tmp_path, **settings)
    assert same(parameters(host, whole), parameters(host, resumed))
    assert same([host.numpy(x) for x in whole.losses], [host.numpy(x) for x in resumed.losses])
    assert np.array_equal(whole.validation.kale, resumed.validation.kale) and whole.gap_closed == resumed.gap_closed


REFINEMENT = """
import test_refinement as t
t.refine(host, t.build(host), 100_000, checkpoint_dir=folder, checkpoint_every=7)
"""


@pytest.mark.slow
def test_kill_minus_nine_and_resume(host, tmp_path):
    folder = tmp_path / "checkpoints"
    done = killed(host, REFINEMENT, folder)
    whole = refine(host, kale_of(host, "plain"), done + 9)
    resumed = refine(host, kale_of(host, "plain"), done + 9, resume_from=folder)
    assert same(parameters(host, whole), parameters(host, resumed))
    assert same([host.numpy(x) for x in whole.losses], [host.numpy(x) for x in resumed.losses])


@pytest.mark.slow
def test_runs_are_reproducible(host):
    one, other = (refine(host, build(host), 12, seed=3) for _ in range(2))
    assert same(parameters(host, one), parameters(host, other))


@pytest.mark.slow
def test_a_rate_that_is_too_large_is_halved(host):
    kale = build(host, rate=0.3)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        result = refine(host, kale, 200)
    assert host.numpy(result.losses.backs)[-1] > 0
    assert abs(result.log_partition.value - log_partition_by_quadrature(host, result.gebm)) < 1.0


def test_a_population_that_collapses_is_an_error(host):
    with pytest.raises(TrainingDiverged, match="the population collapsed: after 10 steps back in a row.*good state"):
        refine(host, build(host, rate=1e6), 500)


@pytest.mark.parametrize(
    "kwargs, error, match",
    [
        ({"num_chains": 3}, ValueError, "Expected num_chains >= 4; got 3"),
        ({"look_every": 0}, ValueError, "Expected look_every >= 1; got 0"),
        ({"resample_below": 0.3}, ValueError, "Expected step_back_below < resample_below; got 0.35 and 0.3"),
        ({"num_moves": 1.5}, TypeError, "Expected num_moves to be an integer"),
        ({"patience": 3}, ValueError, "Expected validation data with patience=3; got validation=None"),
        ({"data": np.full((200, 2), np.nan)}, ValueError, "Expected finite data"),
        ({"data": np.zeros((200, 3))}, ValueError, "Expected data of shape"),
    ],
)
def test_arguments(host, kwargs, error, match):
    with pytest.raises(error, match=match):
        refine(host, kale_of(host, "plain"), 1, **kwargs)


def test_it_needs_an_optimiser_of_the_energy(host):
    base = host.Pushforward(host.normal(2), host.call(host.nn.MLP, (2,), (2,), (4,)))
    kale = host.KALE(base, host.KALEGuide(host.call(host.nn.MLP, (2,), (), (4,))), host.adam(1e-3), None)
    with pytest.raises(ValueError, match="Nothing to refine: expected energy_optim; got None"):
        refine(host, kale, 1)


# --- What needs no framework


def test_the_error_of_log_z_comes_from_the_genealogy():
    rng = np.random.default_rng(0)
    log_weights = 0.7 * rng.normal(size=500)
    found, weights = carried(1.0, 0.0, log_weights, np.arange(500)), np.exp(log_weights)
    assert found.log_partition == pytest.approx(1.0 + math.log(weights.mean()))
    relative = weights.std(ddof=1) / weights.mean() / math.sqrt(500)
    assert found.std_error == pytest.approx(relative, rel=2e-3) and found.ancestors == 500
    assert found.ess == pytest.approx(weights.sum() ** 2 / (weights**2).sum())
    families = carried(1.0, 0.3, np.zeros(500), np.arange(500) // 50)  # ten of equal size
    assert families.ancestors == 10 and families.std_error == pytest.approx(math.hypot(0.3, math.sqrt(0.1)), rel=0.05)


def test_the_error_of_log_z_covers_that_of_particles_that_are_resampled():
    """From one Gaussian to the next, each with exact moves or none: Z is known, and is 1."""
    rng, num, steps, shift = np.random.default_rng(0), 500, 5, 0.4
    for correlation, largest in ((0.0, 1.8), (0.9, 1.8)):
        estimates, errors = [], []
        for _ in range(400):
            x, ancestors, log_z = rng.normal(size=num), np.arange(num), 0.0
            for k in range(steps):
                log_weights = shift * (x - k * shift) - 0.5 * shift**2
                if k < steps - 1:
                    log_z += math.log(np.exp(log_weights).mean())
                    cumulative = np.cumsum(np.exp(log_weights) / np.exp(log_weights).sum())
                    index = np.searchsorted(cumulative, (np.arange(num) + rng.random()) / num).clip(max=num - 1)
                    x, ancestors, mean = x[index], ancestors[index], (k + 1) * shift
                    x = mean + correlation * (x - mean) + math.sqrt(1 - correlation**2) * rng.normal(size=num)
            found = carried(log_z, 0.0, log_weights, ancestors)
            estimates.append(found.log_partition)
            errors.append(found.std_error)
        assert abs(np.mean(estimates)) < 4 * np.std(estimates) / math.sqrt(400) + np.var(estimates)
        assert 0.8 < np.mean(np.square(errors)) / np.var(estimates) < largest


def test_the_gap_that_was_closed_is_exact():
    rng = np.random.default_rng(0)
    start, end = rng.normal(size=100), rng.normal(size=100)
    found = gap_closed(start, end, 0.5, CarriedLogPartition(0.8, 0.1, 90.0, 100.0, 50))
    assert found.value == pytest.approx((start - end).mean() - 0.3)
    assert found.std_error == pytest.approx(math.hypot(0.1, (start - end).std(ddof=1) / 10))


def test_few_ancestors_are_warned_of():
    with pytest.warns(
        RuntimeWarning, match=r"The 2048 chains that carry log Z descend from 7 of those at the start \(3 steps back\)"
    ):
        warn_if_few_ancestors(CarriedLogPartition(0.0, 0.3, 2000.0, 2048.0, 7), 3)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warn_if_few_ancestors(CarriedLogPartition(0.0, 0.3, 2000.0, 2048.0, 300), 3)


def test_control_counts():
    assert (Control(2048).num_trained_on, Control(2048).num_looked_at, Control(2048).num_restarted) == (1024, 256, 205)
    assert (Control(101).num_trained_on, Control(101).num_looked_at, Control(4).num_restarted) == (50, 50, 1)


def test_an_error_after_the_last_step_loses_nothing(host, monkeypatch):
    module, error = host.module("training.refinement"), RuntimeError("no memory")
    monkeypatch.setattr(module, "gap_closed", lambda *args: (_ for _ in ()).throw(error))
    with pytest.raises(ResultFailed, match="no memory.*resume_from") as caught:
        refine(host, build(host), 2, validation=HELD_OUT[:50])
    state = caught.value.state
    assert (state["base_steps_taken"] if isinstance(state, dict) else int(state.base_step)) == 2
