"""Estimates of a log-partition from weights: standard errors, tails, and what is refused."""

import math

import arviz as az
import numpy as np
import pytest

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


def test_pareto_shape_of_equal_weights():
    assert pareto_k(np.zeros(1000)) == -math.inf


@pytest.mark.parametrize("weights", [[0.0, math.nan], [0.0, math.inf], [-math.inf, -math.inf]])
def test_weights_that_are_no_weights(weights):
    with pytest.raises(ValueError, match="Expected finite weights, not all 0"):
        from_log_weights(weights)
