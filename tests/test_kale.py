"""KALE in both hosts: exact values, steps and gradients."""

import math
import warnings

import hosts
import numpy as np
import pytest

import gebm.training
from gebm.training import energy_bursts

DATA = np.random.default_rng(0).normal([1.0, -0.5], 0.5, (50, 2))
LINE = DATA[:, 0]


def quadratic(host, linear=0.0, square=0.0):
    """Sufficient for the ratio of two Gaussians on the line."""
    return host.network(lambda a, b, x: a * x + b * x**2, np.array(linear), np.array(square))


def log_partition_of(energy, mean, times=1.0):
    """log E exp(-times * E(x)), x ~ N(mean, 1), of a quadratic with these parameters."""
    b, a = (times * float(parameter) for parameter in energy)
    return -b * mean - a * mean**2 + (b + 2 * a * mean) ** 2 / (2 * (1 + 2 * a)) - 0.5 * math.log(1 + 2 * a)


def linear(host, slope):
    return host.network(lambda slope, x: (slope * x).sum(-1), np.array(slope))


def shifted(host, prior, shift):
    """A base that is a prior and a shift."""
    return host.Pushforward(prior, host.network(lambda shift, z: z + shift, np.array(shift)))


def on_the_line(host, value=0.0, scale=1.0):
    return host.dist.Normal(host.array(value), scale)


@hosts.compiled_once
def networks(host):
    """A generator and an energy on the plane; two energy steps per base step, three batches of 16 an epoch."""
    base = host.Pushforward(host.normal(2), host.call(host.nn.MLP, (2,), (2,), (8,), seed=1))
    guide = host.KALEGuide(host.call(host.nn.MLP, (2,), (), (8,), seed=2))
    return host.KALE(base, guide, host.adam(1e-2), host.adam(1e-2), energy_steps=2)


@hosts.compiled_once
def line(host, base_optim=True, penalty=None, **kwargs):
    """A shift and a quadratic energy on the line."""
    base, energy = shifted(host, on_the_line(host), 0.5), quadratic(host, 0.3, 0.2)
    guide = host.KALEGuide(energy, log_partition=0.0, log_partition_rate=0.5, penalty=penalty)
    return host.KALE(base, guide, host.sgd(0.1) if base_optim else None, host.sgd(0.1), **kwargs)


def train(host, kale, num_steps, data=DATA, **kwargs):
    return host.train(kale, num_steps, data, **{"batch_size": 16, **kwargs})


def curves(host, result):
    return np.array([host.numpy(curve) for curve in result.losses])


def same(one, other):
    """Whether two lists of arrays agree to the last bit."""
    return len(one) == len(other) > 0 and all(a.dtype == b.dtype and np.array_equal(a, b) for a, b in zip(one, other))


@pytest.mark.parametrize(
    "data_mean, data_std, base_mean, kl",
    [(0.0, 1.0, 1.0, 0.5), (0.0, 0.5, 0.0, 0.31814718), (1.0, 0.5, 0.0, 0.81814718)],
)
def test_case_1_kale_reaches_the_kl(host, data_mean, data_std, base_mean, kl):
    data, fresh = data_mean + data_std * np.random.normal(size=(2, 100_000))
    base, guide = on_the_line(host, base_mean), host.KALEGuide(quadratic(host), penalty=None)
    kale = host.KALE(base, guide, None, host.adam(0.03, b1=0.5, decay_steps=1000))
    result = train(host, kale, 1000, data, batch_size=1000)
    energy, settled = result.gebm.energy, result.gebm.log_partition
    parameters = host.parameters(energy)
    exact = log_partition_of(parameters, base_mean)
    variance = math.exp(log_partition_of(parameters, base_mean, 2.0) - 2 * exact) - 1  # of exp(-E)/Z over base draws
    assert abs(settled - exact) < 5 * math.sqrt(variance / 200_000)
    assert abs(host.steps(kale, after=result).log_partition - host.numpy(settled)) < 0.05
    assert abs(host.evaluate(kale, result, fresh) - kl) < 0.02
    energies = [host.apply(energy, x, 0) for x in (fresh, host.sample(base, (100_000,), seed=1))]
    assert abs(host.divergences.donsker_varadhan(*energies) - kl) < 0.02
    assert abs(result.losses.kale[-200:].mean() - kl) < 0.02
    x = np.linspace(data_mean - data_std, data_mean + data_std, 5)
    ratio = on_the_line(host, data_mean, data_std).log_prob(host.array(x)) - base.log_prob(host.array(x))
    np.testing.assert_allclose(host.numpy(host.apply(result.guide, x, 0)), ratio, atol=0.1)


def test_base_moves_to_the_data(host):
    data = np.random.normal([2.0, -1.0], 1.0, (5000, 2))
    base = shifted(host, host.normal(2), [0.0, 0.0])
    guide = host.KALEGuide(linear(host, [0.0, 0.0]), penalty=None)
    optims = [host.adam(0.03, b1=0.5, decay_steps=num) for num in (400, 2000)]
    result = train(host, host.KALE(base, guide, *optims, energy_steps=5), 400, data, batch_size=256)
    (shift,) = host.parameters(result.gebm.base)
    np.testing.assert_allclose(shift, data.mean(0), atol=0.02)  # seeds: at most 0.006
    assert abs(result.losses.kale[-50:].mean()) < 0.001 and result.losses.kale.max() > 1


def test_runs_are_reproducible(host):
    ends = []
    for seed in (0, 0, 1):
        kale = networks(host)
        result = train(host, kale, 8, seed=seed)
        steps = host.steps(kale, after=result)
        ends.append((host.leaves(steps.state), curves(host, result), steps.energy, steps.base, result))
    one, other, third = ends
    assert same(one[0], other[0]) and np.array_equal(one[1], other[1])
    assert same(*(host.parameters(end[-1].gebm.energy) for end in (one, other)))
    assert not same(one[2], third[2]) and not same(one[3], third[3])
    assert one[1].shape == (5, 8)


def test_results_do_not_depend_on_the_chunk(host, monkeypatch):
    ends = []
    for _ in range(2):
        kale = networks(host)
        result = train(host, kale, 16)
        ends.append((host.leaves(host.steps(kale, after=result).state), curves(host, result)))
        monkeypatch.setattr(gebm.training, "MAX_STEPS_PER_LOOK", 3)
    assert same(ends[0][0], ends[1][0]) and np.array_equal(ends[0][1], ends[1][1])


def test_steps_follow_the_schedule_of_a_run(host):
    steps, losses = host.steps(line(host, energy_steps=3)), []
    for step in range(1, 10):
        energy, base, log_partition = steps.energy, steps.base, steps.log_partition
        losses.append(steps.step(LINE))
        assert steps.num_steps == step and steps.base_steps == step // 3
        assert not same(energy, steps.energy) and log_partition != steps.log_partition
        assert same(base, steps.base) == (step % 3 != 0)
    kale = line(host, energy_steps=3)
    result = host.train(kale, 3, iter([LINE] * 9))  # a stream draws nothing, so the run meets the same noise
    for found, expected in zip(
        host.leaves(host.steps(kale, after=result).state), host.leaves(steps.state), strict=True
    ):
        np.testing.assert_allclose(found, expected, rtol=1e-10)
    means = np.reshape(losses, (3, 3, 5)).mean(1).T
    means[-1] *= 3  # one base step, not a mean
    np.testing.assert_allclose(curves(host, result), means, rtol=1e-10)


def test_every_row_comes_once_an_epoch(host):
    # Base and energy leave only the data in KALE: minus the mean of the batch, whose rows are the bits of its sum.
    energy = host.network(lambda slope, x: slope * x, np.array(1.0))
    guide = host.KALEGuide(energy, log_partition=0.0, log_partition_rate=1e-300, penalty=None)
    kale = host.KALE(on_the_line(host, scale=1e-200), guide, None, host.sgd(0.0))
    losses = host.numpy(train(host, kale, 9, 2.0 ** np.arange(12), batch_size=4).losses.kale)
    rows = np.array([[int(total) >> row & 1 for row in range(12)] for total in np.round(-4 * losses)])
    assert (rows.sum(1) == 4).all() and (rows.reshape(3, 3, 12).sum(1) == 1).all()
    assert len(np.unique(rows, axis=0)) > 3


def test_frozen_base(host):
    kale = line(host, base_optim=False, energy_steps=3)
    base, energy = (host.parameters(part) for part in (kale.base, kale.guide.energy))
    result = train(host, kale, 5, LINE)
    steps = host.steps(kale, after=result)
    assert same(host.parameters(result.gebm.base), base) and same(steps.base, base)
    assert not same(host.parameters(result.gebm.energy), energy)
    assert steps.num_steps == 5 and curves(host, result).shape == (5, 5)


def test_frozen_energy(host):
    # The gradient in the shift of -log E exp(s (z + shift)) is -s for any draws.
    slope, rate = np.array([0.7, -0.2]), 0.1
    base, energy = shifted(host, host.normal(2), [0.3, 0.4]), linear(host, -slope)
    kale = host.KALE(base, host.KALEGuide(energy, penalty=None), host.sgd(rate), None, energy_steps=3)
    result = train(host, kale, 7)
    steps = host.steps(kale, after=result)
    np.testing.assert_array_equal(host.parameters(result.gebm.energy), [-slope])
    np.testing.assert_array_equal(steps.energy, [-slope])
    assert steps.num_steps == steps.base_steps == 7
    np.testing.assert_allclose(host.parameters(result.gebm.base), [[0.3, 0.4] + 7 * rate * slope], rtol=1e-10)


# --- The penalty


@pytest.mark.parametrize(
    "weight, shape, noise_factor", [(2.5, (), 1), (0.7, (1, 2, 2), 2), (1.5, (3,), 3), (0.0, (3,), 1)]
)
def test_gradient_penalty_of_a_linear_energy(host, weight, shape, noise_factor):
    slope = np.random.normal(size=shape)
    data, draws = (host.array(np.random.normal(size=(num, *shape))) for num in (5, 5 * noise_factor))

    def penalty(slope):
        def energy(x):
            x = slope * x
            for _ in shape:
                x = x.sum(-1)
            return x

        return host.call(host.gradient_penalty(weight), energy, data, draws)

    value, (gradient,) = host.grad(penalty, slope)
    np.testing.assert_allclose(value, weight * np.sum(slope**2), rtol=1e-10)
    np.testing.assert_allclose(gradient, 2 * weight * slope, rtol=1e-10)


def test_gradient_penalty_interpolates_row_by_row(host):
    def penalty(data, draws):
        energy = lambda x: 0.5 * (x**2).sum(-1)  # noqa: E731
        return host.numpy(host.call(host.gradient_penalty(), energy, host.array(data), host.array(draws)))

    data = np.random.normal(size=(4, 2))
    np.testing.assert_allclose(penalty(data, np.concatenate([data, data])), (data**2).sum(1).mean(), rtol=1e-10)
    num = 100_000  # between (0, 0) and (1, 1): twice the mean square of a uniform
    assert abs(penalty(np.zeros((num, 2)), np.ones((num, 2))) - 2 / 3) < 5 * 2 * math.sqrt(4 / 45 / num)


# --- The log-partition


def test_a_guide_takes_an_estimate_of_the_log_partition(host):
    estimate = host.call(
        host.log_partition, host.linear_gaussian(1.0), "importance", num_samples=1000, progress_bar=False
    )
    guide = host.KALEGuide(lambda x: 0.0 * x.sum(-1), log_partition=estimate)
    assert guide.log_partition == estimate.value and float(guide(host.array(np.ones(2)))) == -estimate.value
    for bad in (math.nan, math.inf):
        with pytest.raises(ValueError, match="log_partition to be finite"):
            host.KALEGuide(lambda x: 0.0 * x.sum(-1), log_partition=bad)


def log_partition_step(host, name, *args):
    return host.numpy(getattr(host.module("training.guide"), name)(*map(host.array, args[:2]), *args[2:]))


@pytest.mark.parametrize("step", ["newton_step", "gradient_step"])
def test_steps_of_the_log_partition_stop_at_the_estimate(host, step):
    estimate = np.array([-7.0, 0.0, 3.5])
    np.testing.assert_array_equal(log_partition_step(host, step, estimate, estimate, 0.1), estimate)
    for value in (estimate - 5, estimate + 5):
        for _ in range(300):
            value = log_partition_step(host, step, value, estimate, 0.1)
        np.testing.assert_allclose(value, estimate, rtol=0, atol=1e-6)


def test_steps_of_the_log_partition_are_exact_and_clipped(host):
    clip = host.module("training.guide").CLIP
    for step, start, estimate, expected in (
        ("newton_step", 1.0, 0.5, 1.0 + 0.1 * (1 - math.exp(0.5))),
        ("gradient_step", 1.0, 0.5, 1.0 + 0.1 * (math.exp(-0.5) - 1)),
        ("newton_step", 1000.0, 0.0, 1000.0 - 0.1 * clip),
        ("newton_step", -1000.0, 0.0, -1000.0 + 0.1),
        ("gradient_step", -1000.0, 0.0, -1000.0 + 0.1 * clip),
        ("gradient_step", 1000.0, 0.0, 1000.0 - 0.1),
    ):
        np.testing.assert_allclose(log_partition_step(host, step, start, estimate, 0.1), expected, rtol=1e-12)


def test_gradient_step_is_unbiased_and_newton_step_is_not(host):
    partitions = np.array([0.5, 1.0, 3.0])  # of three equally likely batches
    exact, batches = math.log(partitions.mean()), np.log(partitions)
    np.testing.assert_allclose(log_partition_step(host, "gradient_step", exact, batches, 0.1).mean(), exact, rtol=1e-12)
    expected = exact + 0.1 * (1 - partitions.mean() * (1 / partitions).mean())
    np.testing.assert_allclose(
        log_partition_step(host, "newton_step", exact, batches, 0.1).mean(), expected, rtol=1e-12
    )


def test_decayed_rate(host):
    rates = [float(host.module("training.guide").decayed_rate(0.1, t)) for t in (0, 1000, 9000, 10**6)]
    assert rates == pytest.approx([0.1, 0.05, 0.01, 0.01])


def test_log_partition_changes_its_rule_after_the_warm_up(host):
    # A constant energy: every batch has the estimate -2.
    energy = host.network(lambda value, x: value + 0.0 * x, np.array(2.0))
    guide = host.KALEGuide(energy, log_partition=-3.0, penalty=None)
    for step, rule in ((0, "newton_step"), (99, "newton_step"), (100, "gradient_step")):
        steps = host.steps(host.KALE(on_the_line(host), guide, None, host.sgd(0.0)))
        steps.set(num_steps=step)
        steps.step(np.zeros(4))
        expected = log_partition_step(host, rule, -3.0, -2.0, 0.1)
        np.testing.assert_allclose(steps.log_partition, expected, rtol=1e-12)


@pytest.mark.slow_in("pyro")
def test_log_partition_before_settling_on_heavy_weights(host):
    energy = host.network(lambda slope, x: slope * x, np.array(3**0.5))  # log-weights of variance 3, A = 1.5
    errors = []
    for seed in range(6):
        kale = host.KALE(on_the_line(host), host.KALEGuide(energy, penalty=None), None, host.sgd(0.0))
        result = host.train(kale, 12_000, np.zeros(1000), batch_size=128, seed=seed)
        errors.append(float(host.steps(kale, after=result).log_partition) - 1.5)
        assert abs(result.gebm.log_partition - 1.5) < 0.05
    assert np.abs(np.mean(errors)) < 0.03 and np.sqrt(np.mean(np.square(errors))) < 0.05


# --- Objectives


def two_layers(w, v, x):
    """A small network, smooth in its weights."""
    hidden = x @ w
    return (hidden / (1 + hidden**2) ** 0.5) @ v


def weights(*shape):
    return np.random.normal(size=shape)


def test_donsker_varadhan_is_kale_at_the_log_partition_of_the_batch(host):
    data, base, parameters = weights(30, 2), weights(40, 2), (weights(2, 8), weights(8))
    data, base = host.array(data), host.array(base)
    best = host.numpy(host.divergences.batch_log_partition(two_layers(*map(host.array, parameters), base)))
    energies = lambda *parameters: [two_layers(*parameters, x) for x in (data, base)]  # noqa: E731
    value, kale = host.grad(lambda *p: host.divergences.kale(*energies(*p), host.array(best)), *parameters)
    bound, other = host.grad(lambda *p: host.divergences.donsker_varadhan(*energies(*p)), *parameters)
    np.testing.assert_allclose(value, bound, rtol=1e-10)
    for one, two in zip(kale, other):
        np.testing.assert_allclose(one, two, rtol=0, atol=1e-10)


def test_objective_donsker_varadhan(host):
    def step(objective, start):
        steps = host.steps(line(host, objective=objective))
        steps.set(log_partition=start)
        return steps.step(LINE), steps.energy, steps.log_partition

    losses, energy, after = step("donsker_varadhan", 0.0)
    assert same(step("donsker_varadhan", 1.0)[1], energy) and not same(step("kale", 0.0)[1], energy)
    best = -np.log1p(-after / 0.5)  # where the Newton step from 0 was going
    at_best, other, settled = step("kale", best)
    np.testing.assert_allclose(other, energy, rtol=0, atol=1e-10)
    np.testing.assert_allclose(settled, best, rtol=1e-10)
    np.testing.assert_allclose(at_best.kale - losses.kale, math.exp(best) - 1 - best, atol=1e-10)


def test_base_gradient_has_self_normalised_weights(host):
    generator, energy, z = (weights(2, 8), weights(8, 2)), (weights(2, 8), weights(8)), host.array(weights(20, 2))
    energies = lambda *p: two_layers(*map(host.array, energy), two_layers(*p, z))  # noqa: E731
    _, gradient = host.grad(lambda *p: host.divergences.base_loss(energies(*p)), *generator)
    values = host.numpy(energies(*map(host.array, generator)))
    share = host.array(np.exp(-values) / np.exp(-values).sum())
    _, weighted = host.grad(lambda *p: (share * energies(*p)).sum(), *generator)
    for one, other in zip(gradient, weighted):
        np.testing.assert_allclose(one, other, rtol=0, atol=1e-10)


# --- Evaluation


def test_evaluate_says_that_the_sign_may_be_wrong(host):
    data = 1.0 + np.random.normal(size=500)
    for sign in (1.0, -1.0):
        energy = host.network(lambda slope, x: slope * x, np.array(sign))
        kale = host.KALE(on_the_line(host), host.KALEGuide(energy, log_partition=0.5), None, host.sgd(1.0))
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            host.evaluate(kale, host.steps(kale), data)
        said = [str(warning.message) for warning in caught]
        assert len(said) == (sign > 0) and all("The mean energy is higher on data" in text for text in said)
        assert all(warning.filename.endswith("hosts.py") for warning in caught)


def test_evaluate_is_finite(host):
    steep = host.network(lambda slope, x: slope * abs(x), np.array(-1e4))
    kale = host.KALE(on_the_line(host), host.KALEGuide(steep, log_partition=0.0), None, host.sgd(1.0))
    with pytest.warns(UserWarning, match="The mean energy is higher on data"):
        assert host.evaluate(kale, host.steps(kale), np.zeros(10)) < -1e4
    nowhere = host.network(lambda slope, x: slope * x**2 + math.inf, np.array(1.0))
    kale = host.KALE(on_the_line(host), host.KALEGuide(nowhere, log_partition=0.0), None, host.sgd(1.0))
    with pytest.raises(ValueError, match="Expected a finite KALE; got nan. Look at the energies"):
        host.evaluate(kale, host.steps(kale), np.zeros(10))


def test_evaluate_on_held_out_data(host):
    A, c = 0.4, 0.7
    constant = host.network(lambda value, x: value + 0.0 * x, np.array(c))
    slope = host.network(lambda slope, x: slope * x, np.array(1.0))
    for energy, num in ((constant, 1500), (slope, 200_000)):
        kale = host.KALE(on_the_line(host), host.KALEGuide(energy, log_partition=A), None, host.sgd(1.0))
        data = np.random.normal(size=num)
        value = host.evaluate(kale, host.steps(kale), data)
        if energy is constant:
            np.testing.assert_allclose(value, 0.0, atol=1e-12)
        else:
            error = math.sqrt((math.e - 1) / num)
            assert 0 < abs(value - (-data.mean() - 0.5)) < 5 * error


def test_energy_bursts(host):
    schedule = energy_bursts(2, initial=7, every=4)
    kale = line(host, energy_steps=schedule)
    result = train(host, kale, 6, LINE)
    assert host.steps(kale, after=result).num_steps == 7 + 2 * 3 + 7 + 2
    steps, found = host.steps(line(host, energy_steps=schedule)), []
    for _ in range(11):
        losses = steps.step(LINE[:20])
        found.append((int(steps.base_steps), bool(losses.base_grad_norm > 0)))
    assert found == [(0, False)] * 6 + [(1, True), (1, False), (2, True), (2, False), (3, True)]


def test_training_that_blows_up_gives_back_the_state_before(host):
    # Step 1 moves the slope from 0 to about 1e200, so that step 2 meets exp(1e200).
    guide = host.KALEGuide(host.network(lambda slope, x: slope * x, np.array(0.0)), penalty=None)
    kale = host.KALE(on_the_line(host), guide, None, host.sgd(1e200), objective="plain_kale", max_grad_norm=math.inf)
    expected = r"Training stopped at base step 11: .* of base step 1\b.*Lower"
    with pytest.raises(FloatingPointError, match=expected) as caught:
        train(host, kale, 50, np.ones(16))
    state = caught.value.state
    assert (state["base_steps_taken"] if isinstance(state, dict) else state.base_step) == 1
