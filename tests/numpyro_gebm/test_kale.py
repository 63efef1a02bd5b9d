"""Training: exact values of KALE, its steps and its gradients, and what a run promises."""

import functools
import math

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import optax
import pytest
from numpyro.distributions import transforms
from numpyro_cases import standard_normal

import gebm.training
from numpyro_gebm import GEBM, KALE, KALEGuide, Pushforward, divergences, gradient_penalty, nn
from numpyro_gebm.training.guide import CLIP, gradient_step, newton_step

SGD = optax.sgd(0.1)
DATA = np.random.default_rng(0).normal([1.0, -0.5], 0.5, (50, 2))


class Quadratic(eqx.Module):
    """Sufficient for the ratio of two Gaussians on the line."""

    linear: jax.Array
    square: jax.Array

    def __init__(self, linear=0.0, square=0.0):
        self.linear, self.square = jnp.array(linear, float), jnp.array(square, float)

    def __call__(self, x):
        return self.linear * x + self.square * x**2

    def log_partition(self, mean, times=1.0):
        """log E exp(-times * E(x)), x ~ N(mean, 1)."""
        b, a = times * float(self.linear), times * float(self.square)
        return -b * mean - a * mean**2 + (b + 2 * a * mean) ** 2 / (2 * (1 + 2 * a)) - 0.5 * math.log(1 + 2 * a)


class Linear(eqx.Module):
    slope: jax.Array

    def __call__(self, x):
        return jnp.sum(self.slope * x)


class Constant(eqx.Module):
    value: jax.Array

    def __call__(self, x):
        return self.value


class Shift(eqx.Module):
    shift: jax.Array

    def __call__(self, z):
        return z + self.shift


def decaying_adam(num_steps, rate=0.03):
    return optax.adam(optax.cosine_decay_schedule(rate, num_steps), b1=0.5)


def build():
    """A generator and an energy on the plane; two energy steps per base step, three batches of 16 an epoch."""
    base = Pushforward(standard_normal(2), nn.MLP((2,), (2,), (8,), rng_key=jax.random.key(1)))
    guide = KALEGuide(nn.MLP((2,), (), (8,), rng_key=jax.random.key(2)))
    return KALE(base, guide, optax.adam(1e-2), optax.adam(1e-2), energy_steps=2)


networks = functools.cache(build)  # compiled once for many tests


def line(prior=None, base_optim=SGD, energy_optim=SGD, penalty=None, **kwargs):
    """A shift and a quadratic energy on the line, quick to compile."""
    base = Pushforward(prior or dist.Normal(0.0, 1.0), Shift(jnp.array(0.5, float)))
    guide = KALEGuide(Quadratic(0.3, 0.2), log_partition=0.0, log_partition_rate=0.5, penalty=penalty)
    return KALE(base, guide, base_optim, energy_optim, **kwargs)


def train(training, num_steps, data=DATA, seed=0, **kwargs):
    return training.run(jax.random.key(seed), num_steps, data, **{"batch_size": 16, "progress_bar": False, **kwargs})


def arrays(tree):
    """Copies of the arrays of a tree, on the host."""
    leaves = [leaf for leaf in jax.tree.leaves(tree) if eqx.is_array(leaf)]
    return [np.array(jax.random.key_data(x) if jnp.issubdtype(x.dtype, jax.dtypes.prng_key) else x) for x in leaves]


def same(one, other):
    """Whether two trees agree to the last bit."""
    one, other = arrays(one), arrays(other)
    return len(one) == len(other) > 0 and all(a.dtype == b.dtype and np.array_equal(a, b) for a, b in zip(one, other))


def assert_close(one, other, **kwargs):
    for value, expected in zip(arrays(one), arrays(other), strict=True):
        np.testing.assert_allclose(value, expected, **kwargs)


@pytest.mark.parametrize(
    "data_mean, data_std, base_mean, kl",
    [(0.0, 1.0, 1.0, 0.5), (0.0, 0.5, 0.0, 0.31814718), (1.0, 0.5, 0.0, 0.81814718)],
)
def test_case_1_kale_reaches_the_kl(data_mean, data_std, base_mean, kl):
    data, fresh = data_mean + data_std * np.random.normal(size=(2, 100_000))
    base = dist.Normal(base_mean, 1.0)
    training = KALE(base, KALEGuide(Quadratic(), penalty=None), None, decaying_adam(1000))
    result = train(training, 1000, data, batch_size=1000)
    energy, settled = result.gebm.energy, result.gebm.log_partition
    exact = energy.log_partition(base_mean)
    variance = math.exp(energy.log_partition(base_mean, 2.0) - 2 * exact) - 1  # of exp(-E)/Z over base draws
    assert abs(settled - exact) < 5 * math.sqrt(variance / 200_000)
    assert abs(result.state.log_partition - settled) < 0.05
    assert abs(training.evaluate(result.state, fresh) - kl) < 0.02
    draws = base.sample(jax.random.key(1), (100_000,))
    assert abs(divergences.donsker_varadhan(energy(fresh), energy(draws)) - kl) < 0.02
    assert abs(result.losses.kale[-200:].mean() - kl) < 0.02
    x = np.linspace(data_mean - data_std, data_mean + data_std, 5)
    ratio = dist.Normal(data_mean, data_std).log_prob(x) - base.log_prob(x)
    np.testing.assert_allclose(jax.vmap(result.guide)(x), ratio, atol=0.1)


def test_base_moves_to_the_data():
    data = np.random.normal([2.0, -1.0], 1.0, (5000, 2))
    base, guide = Pushforward(standard_normal(2), Shift(jnp.zeros(2))), KALEGuide(Linear(jnp.zeros(2)), penalty=None)
    training = KALE(base, guide, decaying_adam(400), decaying_adam(2000), energy_steps=5)
    result = train(training, 400, data, batch_size=256)
    np.testing.assert_allclose(result.gebm.base.generator.shift, data.mean(0), atol=0.02)  # seeds: at most 0.006
    assert abs(result.losses.kale[-50:].mean()) < 0.001 and result.losses.kale.max() > 1


def test_runs_are_reproducible():
    one, other, third = (train(networks(), 8, seed=seed) for seed in (0, 0, 1))
    assert same(one.state, other.state) and same(one.gebm, other.gebm)
    np.testing.assert_array_equal(one.losses, other.losses)
    assert not same(one.state.energy, third.state.energy) and not same(one.state.base, third.state.base)
    assert np.shape(one.losses) == (5, 8)


def test_results_do_not_depend_on_the_chunk(monkeypatch):
    expected = train(networks(), 16)
    monkeypatch.setattr(gebm.training, "MAX_STEPS_PER_LOOK", 3)
    result = train(build(), 16)
    assert same(result.state, expected.state) and same(result.gebm, expected.gebm)
    np.testing.assert_array_equal(result.losses, expected.losses)


def test_training_goes_on_from_a_state():
    expected, first = train(networks(), 10), train(networks(), 5)  # in the middle of an epoch
    second = train(networks(), 5, seed=1, init_state=first.state)
    assert same(second.state, expected.state) and same(second.gebm, expected.gebm)
    np.testing.assert_array_equal(np.hstack([first.losses, second.losses]), expected.losses)


def test_update_follows_the_schedule_of_run():
    data = DATA[:, 0]
    training = line(energy_steps=3)
    state, losses = training.init(jax.random.key(0), data), []
    for step in range(1, 10):
        before = state
        state, loss = training.update(state, data)
        losses.append(loss)
        assert state.step == step and same(before.rng_key, state.rng_key)
        assert not same(before.energy, state.energy) and before.log_partition != state.log_partition
        assert same(before.base, state.base) == (step % 3 != 0)
    result = train(training, 3, data, batch_size=len(data))  # every batch has all the data, in another order
    assert_close(result.state, state, rtol=1e-10)
    means = np.reshape(losses, (3, 3, 5)).mean(1).T
    means[-1] *= 3  # one base step, not a mean
    np.testing.assert_allclose(result.losses, means, rtol=1e-10)


def test_update_compiles_once():
    traces = []

    class Traced(Linear):
        def __call__(self, x):
            traces.append(1)
            return super().__call__(x)

    base = Pushforward(dist.Normal(0.0, 1.0), Shift(jnp.array(0.5)))
    training = KALE(base, KALEGuide(Traced(jnp.array(0.3)), penalty=None), optax.adam(1e-2), optax.adam(1e-2))
    state, _ = training.update(training.init(jax.random.key(0), DATA[:, 0]), DATA[:, 0])
    traces.clear()
    training.update(state, DATA[:, 0])
    assert not traces


def test_every_row_comes_once_an_epoch():
    # Base and energy leave only the data in KALE: minus the mean of the batch, whose rows are the bits of its sum.
    guide = KALEGuide(Linear(jnp.ones(())), log_partition=0.0, log_partition_rate=1e-300, penalty=None)
    training = KALE(dist.Normal(0.0, 1e-200), guide, None, optax.sgd(0.0))
    losses = train(training, 9, 2.0 ** np.arange(12), batch_size=4).losses.kale
    rows = np.array([[int(total) >> row & 1 for row in range(12)] for total in np.round(-4 * losses)])
    assert (rows.sum(1) == 4).all() and (rows.reshape(3, 3, 12).sum(1) == 1).all()
    assert len(np.unique(rows, axis=0)) > 3


def test_result_is_a_snapshot():
    training = networks()
    before = arrays((training.base, training.guide.energy))
    result = train(training, 3)
    kept = arrays((result.gebm, result.guide.energy, result.state))
    further = train(training, 3, init_state=result.state)
    assert same(before, (training.base, training.guide.energy))
    assert same(kept, (result.gebm, result.guide.energy, result.state)) and not same(result.gebm, further.gebm)
    assert training.guide.log_partition is None and result.guide.log_partition == result.gebm.log_partition
    assert isinstance(result.gebm, GEBM) and result.gebm.log_partition != result.state.log_partition
    x = DATA[0]
    np.testing.assert_allclose(result.guide(x), -result.gebm.energy(x) - result.gebm.log_partition, rtol=1e-10)


def test_frozen_base():
    training = line(base_optim=None, energy_steps=3)
    result = train(training, 5, DATA[:, 0])
    assert same(result.gebm.base, training.base) and same(result.state.base, training.base.generator)
    assert not same(result.gebm.energy, training.guide.energy)
    assert result.state.step == 5 and np.shape(result.losses) == (5, 5)


def test_frozen_energy():
    # The gradient in the shift of -log E exp(s (z + shift)) is -s for any draws.
    slope, rate = np.array([0.7, -0.2]), 0.1
    base, energy = Pushforward(standard_normal(2), Shift(jnp.array([0.3, 0.4]))), Linear(jnp.asarray(-slope))
    result = train(KALE(base, KALEGuide(energy, penalty=None), optax.sgd(rate), None, energy_steps=3), 7)
    assert same(result.gebm.energy, energy) and same(result.state.energy, energy) and result.state.step == 7
    np.testing.assert_allclose(result.gebm.base.generator.shift, [0.3, 0.4] + 7 * rate * slope, rtol=1e-10)


@pytest.mark.parametrize(
    "weight, shape, noise_factor", [(2.5, (), 1), (0.7, (1, 2, 2), 2), (1.5, (3,), 3), (0.0, (3,), 1)]
)
def test_gradient_penalty_of_a_linear_energy(weight, shape, noise_factor):
    slope = jnp.asarray(np.random.normal(size=shape))
    data, draws = np.random.normal(size=(5, *shape)), np.random.normal(size=(5 * noise_factor, *shape))

    def penalty(slope):
        return gradient_penalty(weight)(Linear(slope), data, draws, jax.random.key(0))

    value, gradient = jax.value_and_grad(penalty)(slope)
    np.testing.assert_allclose(value, weight * np.sum(slope**2), rtol=1e-10)
    np.testing.assert_allclose(gradient, 2 * weight * slope, rtol=1e-10)


def test_gradient_penalty_interpolates_row_by_row():
    def energy(x):
        return 0.5 * jnp.sum(x**2)

    data = np.random.normal(size=(4, 2))
    value = gradient_penalty()(energy, data, np.concatenate([data, data]), jax.random.key(0))
    np.testing.assert_allclose(value, (data**2).sum(1).mean(), rtol=1e-10)
    num = 100_000  # between (0, 0) and (1, 1): twice the mean square of a uniform
    value = gradient_penalty()(energy, np.zeros((num, 2)), np.ones((num, 2)), jax.random.key(0))
    assert abs(value - 2 / 3) < 5 * 2 * math.sqrt(4 / 45 / num)


@pytest.mark.parametrize("step", [newton_step, gradient_step])
def test_steps_of_the_log_partition_stop_at_the_estimate(step):
    estimate = jnp.array([-7.0, 0.0, 3.5])
    np.testing.assert_array_equal(step(estimate, estimate, 0.1), estimate)
    for start in (estimate - 5, estimate + 5):
        value = jax.lax.fori_loop(0, 300, lambda _, value: step(value, estimate, 0.1), start)
        np.testing.assert_allclose(value, estimate, rtol=0, atol=1e-6)


def test_steps_of_the_log_partition_are_exact_and_clipped():
    np.testing.assert_allclose(newton_step(1.0, 0.5, 0.1), 1.0 + 0.1 * (1 - math.exp(0.5)), rtol=1e-12)
    np.testing.assert_allclose(gradient_step(1.0, 0.5, 0.1), 1.0 + 0.1 * (math.exp(-0.5) - 1), rtol=1e-12)
    np.testing.assert_allclose(newton_step(1000.0, 0.0, 0.1), 1000.0 - 0.1 * CLIP, rtol=1e-12)
    np.testing.assert_allclose(newton_step(-1000.0, 0.0, 0.1), -1000.0 + 0.1, rtol=1e-12)
    np.testing.assert_allclose(gradient_step(-1000.0, 0.0, 0.1), -1000.0 + 0.1 * CLIP, rtol=1e-12)
    np.testing.assert_allclose(gradient_step(1000.0, 0.0, 0.1), 1000.0 - 0.1, rtol=1e-12)


def test_gradient_step_is_unbiased_and_newton_step_is_not():
    partitions = np.array([0.5, 1.0, 3.0])  # of three equally likely batches
    exact, batches = math.log(partitions.mean()), np.log(partitions)
    np.testing.assert_allclose(gradient_step(exact, batches, 0.1).mean(), exact, rtol=1e-12)
    expected = exact + 0.1 * (1 - partitions.mean() * (1 / partitions).mean())
    np.testing.assert_allclose(newton_step(exact, batches, 0.1).mean(), expected, rtol=1e-12)


def test_log_partition_changes_its_rule_after_the_warm_up():
    # A constant energy: every batch has the estimate -2.
    guide = KALEGuide(Constant(jnp.array(2.0)), log_partition=-3.0)
    training, data = KALE(dist.Normal(0.0, 1.0), guide, None, optax.sgd(0.0)), np.zeros(4)
    for step, rule in ((0, newton_step), (99, newton_step), (100, gradient_step)):
        state = training.init(jax.random.key(0), data)._replace(step=jnp.array(step))
        value = training.update(state, data)[0].log_partition
        np.testing.assert_allclose(value, rule(-3.0, -2.0, 0.1), rtol=1e-12)


def test_donsker_varadhan_is_kale_at_the_log_partition_of_the_batch():
    data, base = np.random.normal(size=(30, 2)), np.random.normal(size=(40, 2))
    energy = nn.MLP((2,), (), (8,), rng_key=jax.random.key(0))
    best = divergences.batch_log_partition(jax.vmap(energy)(base))

    def gradient(objective, *args):
        return eqx.filter_jit(jax.grad(lambda e: objective(jax.vmap(e)(data), jax.vmap(e)(base), *args)))(energy)

    kale, other = gradient(divergences.kale, best), gradient(divergences.donsker_varadhan)
    assert_close(kale, other, rtol=0, atol=1e-10)


def test_objective_donsker_varadhan():
    data = DATA[:, 0]
    training, kale = line(objective="donsker_varadhan"), line()
    start = training.init(jax.random.key(0), data)
    state, losses = training.update(start, data)
    assert same(training.update(start._replace(log_partition=start.log_partition + 1), data)[0].energy, state.energy)
    assert not same(kale.update(start, data)[0].energy, state.energy)
    best = -jnp.log1p(-losses.log_partition / 0.5)  # where the Newton step from 0 was going
    other, at_best = kale.update(start._replace(log_partition=best), data)
    assert_close(other.energy, state.energy, rtol=0, atol=1e-10)
    np.testing.assert_allclose(other.log_partition, best, rtol=1e-10)
    np.testing.assert_allclose(at_best.kale - losses.kale, math.exp(best) - 1 - best, atol=1e-10)


def test_base_gradient_has_self_normalised_weights():
    base, energy = (
        nn.MLP((2,), (2,), (8,), rng_key=jax.random.key(0)),
        nn.MLP((2,), (), (8,), rng_key=jax.random.key(1)),
    )
    z = np.random.normal(size=(20, 2))
    gradient = eqx.filter_jit(jax.grad(lambda b: divergences.base_loss(jax.vmap(lambda x: energy(b(x)))(z))))(base)
    each = eqx.filter_jit(jax.vmap(jax.value_and_grad(lambda b, x: energy(b(x))), (None, 0)))
    energies, each = each(base, z)
    weights = np.exp(-energies) / np.exp(-energies).sum()
    assert_close(gradient, jax.tree.map(lambda g: jnp.tensordot(weights, g, 1), each), rtol=0, atol=1e-10)


def test_noise_factor():
    draws, pairs = [], []

    class Recording(dist.Normal):
        def sample(self, key, sample_shape=()):
            draws.append(sample_shape)
            return super().sample(key, sample_shape)

    def penalty(energy, data, base_draws, rng_key):
        pairs.append((data.shape, base_draws.shape))
        return gradient_penalty()(energy, data, base_draws, rng_key)

    training = line(noise_factor=3, prior=Recording(0.0, 1.0), penalty=penalty)
    state = training.init(jax.random.key(0), DATA[:, 0])
    draws.clear()
    training.update(state, DATA[:, 0])
    assert draws == [(150,), (150,)]  # an energy step and a base step
    assert set(pairs) == {((50,), (150,))}


def test_evaluate_on_held_out_data():
    A, c = 0.4, 0.7
    for energy, num in ((Constant(jnp.array(c)), 1500), (Linear(jnp.array(1.0)), 200_000)):
        training = KALE(dist.Normal(0.0, 1.0), KALEGuide(energy, log_partition=A), None, optax.sgd(1.0))
        data = np.random.normal(size=num)
        value = training.evaluate(training.init(jax.random.key(0), data), data)
        if isinstance(energy, Constant):
            np.testing.assert_allclose(value, 1 - c - A - math.exp(-c - A), rtol=1e-10)
        else:
            error = math.exp(-A) * math.sqrt((math.exp(2) - math.e) / num)
            assert 0 < abs(value - (1 - data.mean() - A - math.exp(0.5 - A))) < 5 * error


def test_evaluate_leaves_training_alone():
    first = train(networks(), 3).state
    before = arrays(first)
    values = [networks().evaluate(first, DATA) for _ in range(2)]
    assert values[0] == values[1] and same(before, first)
    assert same(train(networks(), 3, init_state=first).state, train(networks(), 6).state)


FLOWS = {
    "affine": lambda: dist.TransformedDistribution(
        dist.Normal(jnp.zeros(2), 1.0), [transforms.AffineTransform(jnp.zeros(2), jnp.ones(2))]
    ).to_event(1),
    "cholesky": lambda: dist.TransformedDistribution(
        standard_normal(2),
        [
            transforms.LowerCholeskyAffine(jnp.zeros(2), jnp.eye(2)),
            transforms.PermuteTransform(jnp.array([1, 0])),
            transforms.LowerCholeskyAffine(jnp.zeros(2), jnp.eye(2)),
        ],
    ),
}


@pytest.mark.parametrize("name", FLOWS)
def test_flow_base(name):
    base = FLOWS[name]()
    guide = KALEGuide(nn.MLP((2,), (), (8,), rng_key=jax.random.key(0)), penalty=gradient_penalty(0.1))
    training = KALE(base, guide, decaying_adam(200), decaying_adam(600), energy_steps=3)
    before = arrays(base)
    result = train(training, 200, batch_size=50)
    assert same(before, base) and not same(before, result.gebm.base)
    axis = np.linspace(-7.0, 8.0, 200)
    x = np.stack(np.meshgrid(axis, axis), -1).reshape(-1, 2)
    mass = np.exp(result.gebm.log_prob(x)).sum() * (axis[1] - axis[0]) ** 2
    np.testing.assert_allclose(mass, 1.0, atol=0.01)
    assert result.gebm.log_prob(DATA).mean() > base.log_prob(DATA).mean() + 0.7


def test_training_that_blows_up_gives_back_the_state_before():
    # Step 1 moves the slope from 0 to about 1e200, so that step 2 meets exp(1e200).
    guide = KALEGuide(Linear(jnp.zeros(())), penalty=None)
    training = KALE(dist.Normal(0.0, 1.0), guide, None, optax.sgd(1e200))
    with pytest.raises(
        FloatingPointError, match=r"Training stopped at base step 11: .* of base step 1\. Lower"
    ) as caught:
        train(training, 50, np.ones(16))
    assert caught.value.state.base_step == 1


@pytest.mark.parametrize("shown", [True, False])
def test_progress_bar(capsys, shown):
    train(networks(), 2, progress_bar=shown)
    out, err = capsys.readouterr()
    assert out == ""
    assert ("KALE" in err and "KALE=" in err and "2/2" in err) if shown else err == ""


def test_single_precision():
    with jax.enable_x64(False):
        result = train(line(penalty=gradient_penalty()), 4, DATA[:, 0])
        values = [result.gebm.log_partition, result.state.log_partition, *result.losses]
        values += jax.tree.leaves([result.state.base, result.state.energy])
        assert all(value.dtype == jnp.float32 and np.isfinite(value).all() for value in values)
