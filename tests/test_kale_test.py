"""Criticism of a model by an energy that is trained to tell its draws from data."""

import numpy as np
import pytest

QUICK = {"progress_bar": False, "num_permutations": 99}


def normal(shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape)


@pytest.mark.parametrize("shift, scale", [(0.5, 1.0), pytest.param(0.3, 0.7, marks=pytest.mark.slow)])
@pytest.mark.slow_in("numpyro")
def test_kale_is_the_divergence_of_normals(host, shift, scale):
    data = host.array(shift + scale * normal((2000, 1)))
    found = host.call(host.kale_test, data, host.normal(1), **QUICK)
    exact = 0.5 * (scale**2 + shift**2 - 1) - np.log(scale)
    assert abs(found.kale.value - exact) < 3 * found.kale.std_error < 0.1
    assert found.p_value == 0.01


def test_a_right_model_and_what_the_report_says(host):
    found = host.call(host.kale_test, host.array(normal((400, 3), 5)), host.array(normal((900, 3), 6)), **QUICK)
    assert found.p_value > 0.05 and "No difference was found" in repr(found)
    assert found.num_training == 240 and found.num_held_out == 120 == len(found.data) and len(found.draws) == 270
    assert abs(found.kale.value) < 4 * found.kale.std_error


def test_what_carries_it_and_what_repairs_it(host):
    """The energy is one of the features as they are, on any scale, and reweights the model to the data."""
    scale, loc = np.array([100.0, 0.01]), np.array([-300.0, 5.0])
    data, draws = (loc + scale * (normal((3000, 2), seed) + shift) for seed, shift in ((0, [0.7, 0.0]), (1, 0.0)))
    found = host.call(host.kale_test, host.array(data), host.array(draws), names=("moved", "not"), **QUICK)
    of = found.importance
    assert of["moved"].value > 5 * of["moved"].std_error and of["not"].value < 0.2 * of["moved"].value
    fresh = loc + scale * normal((20_000, 2), 2)
    weight = np.exp(-host.numpy(host.apply(found.energy, fresh.tolist())).astype(float))
    repaired = (weight @ ((fresh - loc) / scale)) / weight.sum()
    np.testing.assert_allclose(repaired, [0.7, 0.0], atol=0.2)  # most of the way, from 0


def test_a_guide_of_ones_own(host):
    energy = host.call(host.nn.MLP, (2,), (), (8,), activation="tanh")
    guide = host.KALEGuide(energy, penalty=None)
    data = host.array(normal((300, 2)) + 1.0)
    found = host.call(host.kale_test, data, host.normal(2), guide, num_draws=400, num_steps=200, **QUICK)
    assert found.p_value == 0.01 and len(found.draws) == 120


def test_the_same_seed_gives_the_same_verdict(host):
    data, draws = (host.array(normal((200, 2), seed)) for seed in (0, 1))
    one, two = (repr(host.call(host.kale_test, data, draws, num_steps=20, **QUICK)) for _ in range(2))
    assert one == two


def test_columns_of_a_table_are_the_names(host):
    pandas = pytest.importorskip("pandas")
    table = pandas.DataFrame(normal((100, 2)), columns=["height", "width"])
    found = host.call(host.kale_test, table, host.array(normal((100, 2))), num_steps=5, **QUICK)
    assert list(found.importance) == ["height", "width"]


@pytest.mark.parametrize(
    "data, draws, kwargs, match",
    [
        (normal((10, 2)), normal((100, 2)), {}, "Expected at least 20 rows of data; got 10"),
        (normal((100, 2)), normal((100, 3)), {}, "shape"),
        (normal((100, 2)), np.full((100, 2), np.nan), {}, "not finite|finite"),
        (normal((100, 2)), normal((100, 2)), {"names": ("a",)}, "Expected names, one for each of 2 features"),
        (normal((100, 2)), normal((100, 2)), {"num_permutations": 5}, "Expected num_permutations >= 19; got 5"),
    ],
)
def test_what_cannot_be_tested_is_refused(host, data, draws, kwargs, match):
    with pytest.raises(ValueError, match=match):
        host.call(
            host.kale_test, host.array(data), host.array(draws), **({"num_steps": 3, "progress_bar": False} | kwargs)
        )


@pytest.mark.parametrize("model, shown", [(len, "len"), ("model", "'model'"), (None, "None")])
def test_what_is_no_model_is_refused(host, model, shown):
    with pytest.raises(TypeError, match=f"Expected model to be a distribution or draws of one; got {shown}"):
        host.call(host.kale_test, host.array(normal((100, 2))), model, **QUICK)


@pytest.mark.slow
def test_a_copula_change_is_found(host):
    """Standard normal marginals, a correlation of 0.6 between two of five that the model lacks."""
    data = normal((2000, 5))
    data[:, 1] = 0.6 * data[:, 0] + 0.8 * data[:, 1]
    found = host.call(host.kale_test, host.array(data), host.normal(5), **QUICK)
    ranked = sorted(found.importance, key=lambda name: -found.importance[name].value)
    assert found.p_value == 0.01 and set(ranked[:2]) == {"x[0]", "x[1]"}


@pytest.mark.slow
def test_the_rate_of_false_alarms(host):
    """With a trained energy, on a hundred data sets of the model itself."""
    p = []
    for seed in range(100):
        data, draws = (host.array(normal((60, 2), 2 * seed + i)) for i in (0, 1))
        p.append(host.call(host.kale_test, data, draws, num_steps=30, seed=seed, **QUICK).p_value)
    assert abs(np.mean(np.asarray(p) <= 0.1) - 0.1) < 4 * np.sqrt(0.09 / 100)
