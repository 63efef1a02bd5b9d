"""Estimates of a log-partition from weights: standard errors, tails, and what is refused."""

import importlib
import math

import arviz as az
import numpy as np
import pytest

from gebm.ladder import spaced_evenly
from gebm.pareto import pareto_k
from gebm.weights import bridge, from_log_weights


@pytest.mark.parametrize("scale, too_few", [(0.3, False), (2.5, True)])
def test_groups_of_particles_that_are_too_few(scale, too_few):
    """The standard error of lognormal weights is too small where the warning comes."""
    rng = np.random.default_rng(0)
    estimates = [from_log_weights(scale * rng.normal(size=32), num_each=128) for _ in range(2000)]
    z = [(estimate.value - 0.5 * scale**2) / estimate.std_error for estimate in estimates]
    assert (np.std(z) > 1.33) == too_few
    assert np.mean([bool(estimate.warnings) for estimate in estimates]) == pytest.approx(float(too_few), abs=0.05)


def test_bridge_sampling_is_calibrated():
    rng, z = np.random.default_rng(0), []
    for _ in range(100):
        of_base, of_draws = (-1.5 * (scale * rng.normal(size=(4, 250))) ** 2 for scale in (1.0, 0.5))
        estimate = bridge(of_base.ravel(), of_draws, np.size)
        z.append((estimate.value - -0.5 * math.log(4.0)) / estimate.std_error)
    assert 0.75 <= np.std(z) <= 1.33 and abs(np.mean(z)) <= 0.4


@pytest.mark.parametrize("shape", [0.1, 0.5, 0.9])
def test_pareto_shape(shape):
    log_weights = np.random.default_rng(0).exponential(shape, 20_000)
    assert abs(pareto_k(log_weights) - shape) < 0.15
    if hasattr(az, "psislw"):
        assert pareto_k(log_weights) == pytest.approx(float(az.psislw(log_weights.copy())[1]), abs=1e-10)
    else:  # from ArviZ 1.0 on it takes log-ratios of the other sign, and its estimate of the shape is another one
        of_arviz = importlib.import_module("arviz_stats.base").array_stats.psislw(-log_weights)[1]
        assert pareto_k(log_weights) == pytest.approx(float(of_arviz), abs=0.01)


def test_pareto_shape_of_equal_weights():
    assert pareto_k(np.zeros(1000)) == -math.inf


@pytest.mark.parametrize("weights", [[0.0, math.nan], [0.0, math.inf], [-math.inf, -math.inf]])
def test_weights_that_are_no_weights(weights):
    with pytest.raises(ValueError, match="Expected finite weights, not all 0"):
        from_log_weights(weights)


def test_bridge_over_energies_of_any_size():
    """The base meets energies up to 1e60, where the draws do not: log Z of a wall."""
    rng = np.random.default_rng(1)
    base = np.where(rng.random(4000) < 0.5, -(10.0 ** rng.uniform(5, 60, 4000)), 0.0)
    estimate = bridge(base, np.zeros((4, 500)), effective_sample_size=lambda draws: np.nan)
    assert abs(estimate.value + np.log(2.0)) < 4 * estimate.std_error < 0.1
    assert estimate.ess > 500


@pytest.mark.parametrize(
    "base, draws, match",
    [
        ([0.0, 0.0], [[0.0, -np.inf]], "Expected draws of the tilted law; got 1 of 2 with infinite energy"),
        ([-np.inf, -np.inf], [[0.0, 0.0]], "got inf at all 2"),
        ([-1e9, -2e9], [[0.0, 0.0]], "Expected a base and draws that overlap"),
    ],
)
def test_bridge_refuses(base, draws, match):
    with pytest.raises(ValueError, match=match):
        bridge(base, draws, effective_sample_size=np.size)


def test_swaps_with_infinite_energies_are_at_most_rejected():
    t, ones = np.array([0.0, 0.5, 1.0]), np.ones(3)
    for barrier in ([np.inf, 0.1, 0.1], [np.nan, 0.1, 0.1], [1e300, 0.1, 0.1]):
        rungs, _, _ = spaced_evenly(t, ones, ones, np.array(barrier))
        assert len(rungs) == 4 and rungs[0] == 0 and rungs[-1] == 1 and (np.diff(rungs) > 0).all()


@pytest.mark.parametrize("share", [0.5, 0.01, 1e-3])
def test_weights_of_0_and_1_have_no_tail(share):
    log_weights = np.where(np.random.default_rng(0).random(10_000) < share, 0.0, -np.inf)
    assert pareto_k(log_weights) < 0


def test_weights_that_one_draw_carries_have_an_infinite_shape():
    estimate = from_log_weights(-1e20 * np.random.default_rng(0).normal(size=10_000) ** 2)
    assert estimate.pareto_k == np.inf and "Pareto shape of the weights is inf" in estimate.warnings[0]
