"""Training in both hosts: held-out data, own objectives, schedules, checkpoints, what is refused."""

import functools
import math
import warnings

import numpy as np
import pytest

DATA = np.random.default_rng(0).normal(1.0, 1.0, size=(300, 2))
HELD_OUT = np.random.default_rng(1).normal(1.0, 1.0, size=(200, 2))


def build(host, width=8, base=None, base_optim=True, **kwargs):
    """A generator and an energy on the plane."""
    if base is None:
        base = host.Pushforward(host.normal(2), host.call(host.nn.MLP, (2,), (2,), (width,), seed=1))
    guide = host.KALEGuide(host.call(host.nn.MLP, (2,), (), (width,), seed=2))
    adam = host.adam(1e-3, decay_steps=50)
    return host.KALE(base, guide, adam if base_optim else None, adam, **kwargs)


def train(host, kale, num_steps, data=DATA, **kwargs):
    kwargs = {"batch_size": 50, **kwargs} if data is DATA else kwargs
    return host.train(kale, num_steps, data, **kwargs)


def model(host, result):
    """Parameters of the model that a result holds, and its log-partition."""
    gebm = result.gebm
    return [*host.parameters(gebm.base), *host.parameters(gebm.energy), host.numpy(gebm.log_partition)]


def same(one, other):
    """Whether two lists of arrays agree to the last bit."""
    return len(one) == len(other) > 0 and all(np.array_equal(a, b) for a, b in zip(one, other))


def curves(host, result):
    return [host.numpy(curve) for curve in result.losses]


# --- Held-out data


KINDS = {
    "joint": lambda host: build(host, energy_steps=2),
    "energy alone": lambda host: build(host, base=host.normal(2), base_optim=False),
    "flow": lambda host: build(host, base=host.random_flow(dim=2, num_couplings=1, hidden=(4,)), energy_steps=2),
    "average": lambda host: build(host, base=host.random_flow(dim=2, num_couplings=1, hidden=(4,)), ema_decay=0.9),
    "overfitting": lambda host: host.KALE(
        host.normal(2),
        host.KALEGuide(host.call(host.nn.MLP, (2,), (), (32,), seed=2), penalty=None),
        None,
        host.adam(3e-2),
    ),
}


def kale_of(host, kind):
    """A training of a kind, as new; NumPyro's has no state and is compiled once."""
    return _compiled(host, kind) if host.name == "numpyro" else KINDS[kind](host)


@functools.cache
def _compiled(host, kind):
    return KINDS[kind](host)


@pytest.mark.parametrize("kind", ["joint", "average"])
def test_training_is_the_same_with_and_without_held_out_data(host, kind):
    kales = [kale_of(host, kind) for _ in range(2)]
    without, looking = (
        train(host, kale, 8, **kwargs)
        for kale, kwargs in zip(kales, ({}, {"validation": HELD_OUT, "validate_every": 3}))
    )
    assert same(host.state(kales[0], without), host.state(kales[1], looking))
    assert same(curves(host, without), curves(host, looking))
    assert without.validation is None and looking.validation.step.tolist() == [0, 3, 6, 8]
    assert np.isfinite(looking.validation.kale).all() and len(set(looking.validation.kale)) == 4


def test_values_on_held_out_data_are_exact_for_a_constant_energy(host):
    energy = host.network(lambda c, x: c + 0.0 * x.sum(-1), np.array(0.7))
    base, guide = host.normal(2), host.KALEGuide(energy, log_partition=0.4, penalty=None)
    result = train(host, host.KALE(base, guide, None, host.sgd(0.0)), 6, validation=HELD_OUT, validate_every=2)
    A = np.array([0.4, *host.numpy(result.losses.log_partition)])[[0, 2, 4, 6]]
    kale = 1 - 0.7 - A - np.exp(-0.7 - A)
    log_density = host.numpy(base.log_prob(host.array(HELD_OUT)))
    np.testing.assert_allclose(result.validation.kale, kale, rtol=1e-10)
    np.testing.assert_allclose(result.validation.log_likelihood, kale + log_density.mean(), rtol=1e-10)
    np.testing.assert_allclose(result.validation.error, log_density.std(ddof=1) / math.sqrt(200), rtol=1e-10)


def overfitting(host, num_steps=60, **kwargs):
    """A run on 30 points by a network without a penalty."""
    kale = kale_of(host, "overfitting")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return kale, train(host, kale, num_steps, DATA[:30], batch_size=30, **kwargs)


def test_the_best_state_is_the_result(host):
    _, result = overfitting(host, validation=HELD_OUT, validate_every=5)
    curve = result.validation
    best = curve.step[curve.kale.argmax()]
    assert curve.best_step == best and 0 < best < 60
    _, stopped = overfitting(host, num_steps=int(best))
    assert same(host.parameters(result.gebm.energy), host.parameters(stopped.gebm.energy))
    assert same(host.parameters(result.guide.energy), host.parameters(stopped.gebm.energy))
    np.testing.assert_allclose(result.gebm.log_partition, stopped.gebm.log_partition, atol=0.05)
    kale, last = overfitting(host, validation=HELD_OUT, validate_every=5, keep_best=False)
    assert last.validation.best_step is None and np.array_equal(last.validation.kale, curve.kale)
    _, plain = overfitting(host)
    assert same(host.parameters(last.gebm.energy), host.parameters(plain.gebm.energy))
    np.testing.assert_allclose(curve.kale[-1], host.evaluate(kale, last, HELD_OUT), atol=5 * curve.error[-1])


def test_a_trained_base_without_a_density_has_no_best_state(host):
    result = train(host, kale_of(host, "joint"), 6, validation=HELD_OUT)
    plain = train(host, kale_of(host, "joint"), 6)
    assert result.validation.best_step is None and np.isnan(result.validation.log_likelihood).all()
    assert result.validation.step.tolist() == [0, 1, 2, 3, 4, 5, 6]
    assert same(host.parameters(result.gebm.base), host.parameters(plain.gebm.base))


def test_a_trained_flow_is_compared_by_its_log_likelihood(host):
    flow = host.random_flow(dim=2, num_couplings=1, hidden=(4,))
    start = host.numpy(flow.log_prob(host.array(HELD_OUT))).mean()
    guide = host.KALEGuide(host.call(host.nn.MLP, (2,), (), (8,), seed=2))
    kale = host.KALE(flow, guide, host.adam(0.05), None, objective="maximum_likelihood", ema_decay=0.5)
    result = train(host, kale, 20, validation=HELD_OUT, validate_every=4)
    curve = result.validation
    np.testing.assert_allclose(curve.log_likelihood[0], start, rtol=1e-10)
    assert curve.best_step == curve.step[curve.log_likelihood.argmax()] > 0
    best = host.numpy(result.gebm.base.log_prob(host.array(HELD_OUT)))
    np.testing.assert_allclose(best.mean(), curve.log_likelihood.max(), rtol=1e-10)
    np.testing.assert_allclose(
        best.std(ddof=1) / math.sqrt(200), curve.error[curve.log_likelihood.argmax()], rtol=1e-10
    )


def test_a_stream_is_trained_on_with_held_out_data(host):
    loader = [(DATA[i : i + 20], np.zeros(20)) for i in range(0, 100, 20)]
    result = train(host, kale_of(host, "energy alone"), 7, loader, validation=HELD_OUT, validate_every=5)
    assert result.validation.step.tolist() == [0, 5, 7]


@pytest.mark.parametrize("kind", ["energy alone", "average"])
def test_held_out_values_and_the_best_state_are_resumed(host, kind, tmp_path):
    looks = {"validation": HELD_OUT, "validate_every": 4}
    kale = kale_of(host, kind)
    whole = train(host, kale, 12, **looks)
    train(host, kale_of(host, kind), 7, checkpoint_dir=tmp_path, checkpoint_every=3, **looks)
    other = kale_of(host, kind)
    resumed = train(host, other, 12, seed=99, resume_from=tmp_path, **looks)
    assert same(host.state(kale, whole), host.state(other, resumed)) and same(
        curves(host, whole), curves(host, resumed)
    )
    assert same(whole.validation[:4], resumed.validation[:4])
    assert whole.validation.best_step == resumed.validation.best_step is not None
    assert same(model(host, whole), model(host, resumed))
    first = train(host, kale_of(host, kind), 12, seed=99, resume_from=tmp_path)
    assert first.validation is None and same(curves(host, whole), curves(host, first))


def test_a_run_without_held_out_data_is_resumed_with_them(host, tmp_path):
    train(host, kale_of(host, "energy alone"), 7, checkpoint_dir=tmp_path)
    result = train(host, kale_of(host, "energy alone"), 12, resume_from=tmp_path, validation=HELD_OUT, validate_every=4)
    assert result.validation.step.tolist() == [8, 12] and result.validation.best_step in (8, 12)


@pytest.mark.parametrize(
    "kwargs, error, match",
    [
        (
            {"validation": np.zeros((5, 3))},
            ValueError,
            r"Expected validation data of shape \(N,\) \+ \(2,\).*got \(5, 3\)",
        ),
        (
            {"validation": np.full((5, 2), np.nan)},
            ValueError,
            "Expected finite validation data.* 5 rows, the first is 0",
        ),
        ({"validate_every": 3}, ValueError, "Expected validation data with validate_every=3; got validation=None"),
        ({"validation": HELD_OUT, "validate_every": 0}, ValueError, "Expected validate_every >= 1; got 0"),
        ({"validation": HELD_OUT, "validate_every": 1.5}, TypeError, "Expected validate_every to be an integer"),
        ({"batch_size": 2.5}, TypeError, "Expected batch_size to be an integer"),
        ({"batch_size": 301}, ValueError, "Expected 1 <= batch_size <= 300"),
    ],
)
def test_arguments_of_a_run(host, kwargs, error, match):
    with pytest.raises(error, match=match):
        train(host, kale_of(host, "energy alone"), 3, **kwargs)


def test_batches_have_128_points_or_all_unless_told(host):
    sizes = []

    def penalty(energy, data, draws, *key):
        sizes.append(len(data))
        return 0.0 * energy(data[0] if key else data).sum()

    for num in (300, 40):
        energy = host.network(lambda c, x: c * x.sum(-1), np.array(0.1))
        kale = host.KALE(host.normal(2), host.KALEGuide(energy, penalty=penalty), None, host.sgd(0.1))
        host.train(kale, 1, DATA[:num])
    assert sorted(set(sizes)) == [40, 128]


def test_progress_shows_held_out_kale(host, capsys):
    train(host, kale_of(host, "energy alone"), 3, validation=HELD_OUT, progress_bar=True)
    assert "held-out=" in capsys.readouterr().err


# --- Schedules


@pytest.mark.parametrize("bad", [0, -1, math.nan, math.inf, 2.5, None])
def test_a_schedule_must_give_positive_integers(host, bad):
    kale = build(host, energy_steps=lambda step: bad if step == 1 else 2)
    with pytest.raises((TypeError, ValueError), match=r"Expected energy_steps\(1\)"):
        train(host, kale, 3)


# --- Objectives


class SquaredHinge:
    """An energy that is below -1 on data and above 1 on base draws."""

    def energy_loss(self, energies):
        return ((1 + energies.data).clip(0) ** 2).mean() + ((1 - energies.base).clip(0) ** 2).mean()

    def base_loss(self, base, data, energies):
        return energies().mean()


def line(host, objective, base_optim=True, energy_optim=True):
    """A shift and a quadratic energy on the line, on a base whose draws are all 0.5."""
    prior = host.dist.Normal(host.array(0.2), 1e-200)
    base = host.Pushforward(prior, host.network(lambda shift, z: z + shift, np.array(0.3)))
    energy = host.network(lambda a, b, x: a * x + b * x**2, np.array(0.3), np.array(0.2))
    guide = host.KALEGuide(energy, log_partition=0.1, penalty=None)
    optims = [host.sgd(0.1) if given else None for given in (base_optim, energy_optim)]
    return host.KALE(
        base, guide, *optims, objective=objective, energy_steps=2 if all((base_optim, energy_optim)) else 1
    )


def test_an_objective_of_the_users_own(host):
    data, steps = DATA[:, 0], host.stepping(line(host, SquaredHinge()))
    a, b, shift = 0.3, 0.2, 0.3
    for _ in range(2):
        x = 0.2 + shift
        below, above = np.clip(1 + a * data + b * data**2, 0, None), max(1 - a * x - b * x**2, 0)
        a, b = (
            a - 0.1 * (2 * (below * data).mean() - 2 * above * x),
            b - 0.1 * (2 * (below * data**2).mean() - 2 * above * x**2),
        )
        steps.step(data)
    shift -= 0.1 * (a + 2 * b * (0.2 + shift))
    np.testing.assert_allclose([*steps.energy, *steps.base], [a, b, shift], rtol=1e-10)
    result = host.train(line(host, SquaredHinge()), 5, data, batch_size=50)
    assert np.isfinite(host.numpy(result.losses.kale)).all()


class EnergyOnly:
    def energy_loss(self, energies):
        return energies.data.mean() - energies.base.mean()


def test_an_objective_trains_what_it_has_a_loss_for(host):
    with pytest.raises(ValueError, match="Expected base_optim=None for EnergyOnly, which trains the energy alone"):
        line(host, EnergyOnly())
    before = line(host, EnergyOnly(), base_optim=False)
    result = host.train(before, 4, DATA[:, 0])
    np.testing.assert_array_equal(host.parameters(result.gebm.base), [0.3])
    with pytest.raises(TypeError, match="Expected objective to be one of .*'kale'.* or an object.*got object"):
        line(host, object())


@pytest.mark.parametrize(
    "name, kwargs",
    [
        ("KALEObjective", {}),
        ("DonskerVaradhan", {}),
        ("ContrastiveDivergence", {"base_optim": False}),
    ],
)
def test_names_stand_for_objects(host, name, kwargs):
    objectives = host.module("training.objectives")
    short = next(short for short, kind in objectives.OBJECTIVES.items() if kind.__name__ == name)
    ends = [
        host.train(line(host, objective, **kwargs), 3, DATA[:, 0]) for objective in (short, getattr(objectives, name)())
    ]
    assert same(*(host.parameters(end.gebm.energy) for end in ends))


def test_chains_of_contrastive_divergence_have_arguments(host):
    objectives = host.module("training.objectives")
    objective = objectives.ContrastiveDivergence(num_chains=7, num_steps=2)
    kale = build(host, base=host.normal(2), base_optim=False, objective=objective)
    result = train(host, kale, 2)
    assert (7, 2) in [array.shape for array in host.state(kale, result)]
    with pytest.raises(ValueError, match="num_chains >= 1"):
        objectives.ContrastiveDivergence(num_chains=0)


# --- Looking


def test_plot_of_two_runs(host, tmp_path):
    pytest.importorskip("matplotlib")
    first = train(host, kale_of(host, "joint"), 4)
    second = train(host, kale_of(host, "energy alone"), 4, validation=HELD_OUT, validate_every=2)
    axes = host.plot_losses(first.losses, second, labels=("first", "second"), window=2)
    kale, *_, norms = axes
    assert [line.get_xdata().tolist() for line in kale.lines[:3]] == [[0, 1, 2, 3], [4, 5, 6, 7], [4, 6, 8]]
    curve = host.numpy(first.losses.kale)
    np.testing.assert_allclose(kale.lines[0].get_ydata(), [curve[0], *(curve[1:] + curve[:-1]) / 2], rtol=1e-6)
    np.testing.assert_array_equal(kale.lines[2].get_ydata(), second.validation.kale)
    assert kale.lines[2].get_linestyle() == "--"
    assert kale.lines[3].get_xdata().tolist() == [4 + second.validation.best_step]
    assert [text.get_text() for text in kale.get_legend().get_texts()] == ["first", "second", "second, held-out"]
    assert len(norms.lines) == 3  # energy and base, energy
    kale.figure.savefig(tmp_path / "losses.png")
    assert host.plot_losses(first, axes=axes) is axes
    with pytest.raises(ValueError, match="Expected a label for each of 1 runs; got 2"):
        host.plot_losses(first, labels=("a", "b"))
    with pytest.raises(ValueError, match="Expected 4 axes; got 1"):
        host.plot_losses(first, axes=axes[:1])
