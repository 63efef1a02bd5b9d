"""Criticism of a model: its p-value is exact, its estimate clipped, its features ranked."""

from typing import NamedTuple

import numpy as np
import pytest

from gebm.kale_testing import bounds_of, feature_names, importances, most_nats, permutation_p_value, verdict_of


class Bounds(NamedTuple):
    """What the host makes of the bounds of the energy."""

    low: float
    high: float


def test_the_permutation_test_has_its_level():
    """Energies that no training saw, of two samples of one law: also of a heavy-tailed one, and of unequal sizes."""
    rng, p = np.random.default_rng(0), []
    for i in range(1500):
        draw = rng.standard_normal if i % 2 else lambda n: rng.standard_t(2, n)
        p.append(permutation_p_value(draw(20), draw(55), 39, i))
    assert np.isin(np.asarray(p) * 40 % 1, [0.0, 1.0]).mean() > 0.4  # they are multiples of 1/40
    for level in (0.05, 0.2, 0.5):
        assert abs(np.mean(np.asarray(p) <= level) - level) < 4 * np.sqrt(level * (1 - level) / len(p))


def test_weights_beyond_what_draws_can_show_are_clipped():
    rng = np.random.default_rng(0)
    usual = rng.normal(0.0, 0.5, 3000)
    low, high = bounds_of(usual, 2000)
    assert low < usual.min() < usual.max() < high and high - low == pytest.approx(2 * most_nats(2000))
    heavy = np.append(usual, -900.0)  # the weight of one draw, that of infinitely many others
    low, _ = bounds_of(heavy, 2000)
    share = np.exp(-np.maximum(heavy, low))
    assert share.max() / share.mean() == pytest.approx(2000 / 20)


def test_draws_that_are_nowhere_near_the_data_do_not_show_more_than_they_can():
    rng = np.random.default_rng(0)
    data, draws = 50.0 + rng.normal(size=(300, 1)), rng.normal(size=(3000, 1))
    found = verdict_of(Bounds, lambda x: -40.0 * x[:, 0], draws[:1500], 700, data, draws[1500:], ("x",), 99, 0)
    most = most_nats(1500)
    assert found.p_value == 0.01 and most - 1.5 < found.kale.value < most + 1.0
    assert f"1500 held-out draws of the model can show {most:.1f} nats at most" in repr(found)


def test_features_that_tell_nothing_have_no_importance():
    rng = np.random.default_rng(0)
    data, draws = rng.normal(size=(600, 3)), rng.normal(size=(2400, 3))
    data[:, 1] += 1.0
    found = importances(lambda x: 0.5 - x[:, 1], data, draws, ("a", "b", "c"), 0)
    assert [found[name].value for name in "ac"] == [0.0, 0.0]
    assert found["b"].value > 10 * found["b"].std_error > 0


def test_the_report_names_what_carries_it_or_says_that_nothing_was_found(tmp_path):
    rng = np.random.default_rng(0)
    draws = rng.normal(size=(2000, 2))
    for shift, words in ((0.0, "No difference was found"), (1.0, "The model loses")):
        data = rng.normal(size=(400, 2)) + np.array([shift, 0.0])
        args = (Bounds, lambda x: 0.5 - x[:, 0], draws[:1000], 800, data, draws[1000:], ("one", "two"), 99, 0)
        found = verdict_of(*args)
        assert words in repr(found) and ("    one: " in repr(found)) == (shift > 0)
        pytest.importorskip("matplotlib")
        axes = found.plot()
        assert next(axis.get_xlabel() for axis in axes) == "one" and len(axes) == 3
        axes[0].figure.savefig(tmp_path / "plot.png")


@pytest.mark.parametrize("names", [("a",), ("a", "a"), ("a", "b", "c")])
def test_names_that_do_not_fit_are_refused(names):
    with pytest.raises(ValueError, match="Expected names, one for each of 2 features; got"):
        feature_names(names, (2,))


def test_names_by_place():
    assert feature_names(None, (2, 2)) == ("x[0, 0]", "x[0, 1]", "x[1, 0]", "x[1, 1]")
