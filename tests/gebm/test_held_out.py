"""What held-out values of a training come to: their statistics, the best state, a warning where training overfits."""

import math
import warnings

import numpy as np
import pytest

from gebm.evaluation import WeightSums, check_budget, evaluation_of, most_draws
from gebm.held_out import HeldOut, HeldOutEnergies, find_every


def looking(kales, *, error=0.1, keep_best=True, has_density=False, base_is_trained=False, every=10, patience=None):
    """Looks at given values of KALE, of a standard error close to `error`."""
    spread = error * 10 * np.array([-1.0, 1.0] * 50) * math.sqrt(99 / 100)
    step = iter(range(0, every * len(kales), every))
    values = iter(kales)

    def measure():
        log_density = np.zeros(100) if has_density else None
        # base draws of energy 0 have weight 1: KALE is minus the mean energy of the data
        return HeldOutEnergies(spread - next(values), WeightSums.of(np.zeros(50)), log_density, True)

    held_out = HeldOut(
        every,
        measure,
        (lambda: "the best") if keep_best else None,
        has_density=has_density,
        base_is_trained=base_is_trained,
        patience=patience,
    )
    for _ in kales:
        held_out.look_if_due(next(step))
    return held_out


def message(held_out, training):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        held_out.warn(np.asarray(training))
    return str(caught[0].message) if caught else None


RISING = np.linspace(0.0, 2.0, 40)


def test_values_of_a_look():
    rng = np.random.default_rng(0)
    data, base, log_density = rng.normal(size=30), rng.normal(size=40), rng.normal(size=30)
    weights, sums = np.exp(-base), WeightSums.of(base)
    A, ess = math.log(weights.mean()), weights.sum() ** 2 / (weights**2).sum()
    of_weights, rest = weights.var(ddof=1) / weights.mean() ** 2 / 40, [ess / 40, A]
    kale, error = -data.mean() - A, math.sqrt(data.var(ddof=1) / 30 + of_weights)
    found = HeldOutEnergies(data, sums, None, True).values()
    np.testing.assert_allclose(found, [kale, math.nan, error, math.nan, *rest])
    of_both = math.sqrt((log_density - data).var(ddof=1) / 30 + of_weights)
    found = HeldOutEnergies(data, sums, log_density, True).values()
    np.testing.assert_allclose(found, [kale, log_density.mean() + kale, error, of_both, *rest])
    found = HeldOutEnergies(data, sums, log_density, False).values()
    np.testing.assert_allclose(found, [kale, log_density.mean(), error, log_density.std(ddof=1) / math.sqrt(30), *rest])
    evaluation = evaluation_of(data, sums)
    np.testing.assert_allclose(evaluation, [kale, error, ess, A, 40])
    assert float(evaluation) == evaluation.value


def test_sums_that_say_nothing():
    one, nothing = WeightSums.of(np.zeros(1)), WeightSums.of(np.full(5, math.inf))
    assert one.std_error == nothing.std_error == math.inf and nothing.ess == 0 and one.ess == 1
    assert nothing.log_partition == -math.inf and not math.isfinite(evaluation_of(np.zeros(3), nothing).value)


def test_budgets():
    assert check_budget(None, None) == (None, 200_000) and check_budget(0.1, 10) == (0.1, 10)
    assert [most_draws(used) for used in (0, 50_000, 10**9)] == [8000, 50_000, 200_000]
    with pytest.raises(ValueError, match="Expected tolerance > 0; got 0"):
        check_budget(0.0, None)
    with pytest.raises(ValueError, match="Expected max_draws >= 2; got 1"):
        check_budget(None, 1)


def test_patience():
    assert not looking([0.1, 0.5, 0.4], patience=2).exhausted and looking([0.1, 0.5, 0.4, 0.3], patience=2).exhausted
    assert not looking([0.1, 0.5, 0.4, 0.6], patience=1).exhausted and not looking([0.5, 0.1, 0.1]).exhausted
    with pytest.raises(ValueError, match="Expected validation data with patience=2; got validation=None"):
        HeldOut(None, None, None, has_density=False, base_is_trained=False, patience=2)
    with pytest.raises(ValueError, match="Expected patience=None while a base without a density is trained; got 2"):
        looking([0.1], base_is_trained=True, patience=2)


def test_an_energy_that_makes_things_worse_is_warned_of():
    assert message(looking([-0.3, -0.6, -0.5], keep_best=False), RISING[20:0:-1]).startswith(
        "Held-out KALE of the result is below 0: -0.5, with a standard error of 0.1."
    )
    assert message(looking([-0.3, -0.1, 0.0], keep_best=False), RISING[20:0:-1]) is None


def test_weights_that_rest_on_few_draws_are_warned_of():
    sums = WeightSums.of(np.array([-10.0] + [0.0] * 199))
    held_out = HeldOut(
        1, lambda: HeldOutEnergies(-9.0 * np.ones(9), sums, None, True), None, has_density=False, base_is_trained=False
    )
    held_out.look(1)
    assert message(held_out, RISING[:1]).startswith("The effective sample size of the weights is 0.51 % of the base")


def test_points_where_the_base_has_density_0_leave_kale_as_it_is():
    held_out = HeldOut(
        1,
        lambda: HeldOutEnergies(np.zeros(3), WeightSums.of(np.zeros(3)), np.array([0.0, -math.inf, 0.0]), True),
        lambda: "the best",
        has_density=True,
        base_is_trained=False,
    )
    held_out.look(0)
    assert held_out.curve().log_likelihood == -math.inf and held_out.curve().best_step == 0


def test_an_energy_that_overflows_is_never_the_best():
    held_out = looking([0.2, -math.inf, math.nan])
    assert held_out.curve().best_step == 0 and held_out.best == "the best"
    nothing = looking([-math.inf, math.nan])
    assert nothing.curve().best_step is None and nothing.best is None and message(nothing, RISING[:10]) is None
    with np.errstate(all="raise"):
        kale, *_ = HeldOutEnergies(np.zeros(3), WeightSums.of(np.full(3, -1e4)), None, True).values()
    assert kale == -1e4


def test_the_first_of_equal_values_is_the_best():
    assert looking([0.1, 0.5, 0.5, 0.2]).curve().best_step == 10


def test_overfitting_is_warned_of():
    found = message(looking([0.1, 2.0, 0.4, 0.2]), RISING[:30])
    assert found == (
        "Held-out KALE fell from 2 at step 10 to 0.3 (mean of 2 looks), while KALE in training rose from 0.231 to "
        "1.26: the energy overfits. The result holds the state of step 10. Try a stronger penalty, a lower rate, a "
        "smaller network, fewer steps, or more data."
    )
    assert "Pass `keep_best=True`." in message(looking([0.1, 2.0, 0.2], keep_best=False), RISING[:20])
    found = message(looking([0.1, 2.0, 0.2], has_density=True, base_is_trained=True), RISING[:20])
    assert found.startswith("Held-out log-likelihood fell from 2 at step 10 to 0.2: the model overfits, or training")
    found = message(looking([0.1, 2.0, 0.2]), RISING[20:0:-1])
    assert found.startswith("Held-out KALE fell from 2 at step 10 to 0.2: training is unstable. The result holds")


def test_the_warning_names_the_line_that_called():
    with pytest.warns(RuntimeWarning, match="overfits") as caught:
        looking([0.1, 2.0, 0.2]).warn(RISING[:20], stacklevel=1)
    assert caught[0].filename == __file__


@pytest.mark.parametrize(
    "held_out, training",
    [
        (looking([0.1, 2.0, 1.9]), RISING[:20]),
        (looking([0.1, 2.0, 0.2], error=1.0), RISING[:20]),
        (looking([0.1, 0.5, 2.0]), RISING[:20]),
        (looking([0.1, 2.0, 0.2], base_is_trained=True), RISING[:20]),
        (HeldOut(None, None, None, has_density=False, base_is_trained=False), RISING),
    ],
    ids=["a little lower", "within the noise", "rising", "a base that is trained", "no looks"],
)
def test_nothing_is_warned_of(held_out, training):
    assert message(held_out, training) is None


@pytest.mark.parametrize("asked, num_steps, every", [(None, 20_000, 800), (None, 10, 1), (None, 0, 1), (7, 20_000, 7)])
def test_steps_between_looks(asked, num_steps, every):
    assert find_every(asked, True, num_steps) == every


def test_no_looks_without_data():
    assert find_every(None, False, 100) is None
    with pytest.raises(ValueError, match="Expected validation data with validate_every=5; got validation=None"):
        find_every(5, False, 100)
