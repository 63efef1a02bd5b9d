"""Training as NumPyro has it: states, compiled steps, pytrees, flows of its own."""

import functools

import equinox as eqx
import hosts
import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import optax
import pytest
from numpyro.distributions import transforms

from numpyro_gebm import GEBM, KALE, KALEGuide, Pushforward, gradient_penalty, nn

HOST = hosts.get("numpyro")

DATA = np.random.default_rng(0).normal([1.0, -0.5], 0.5, (50, 2))


def decaying_adam(num_steps, rate=0.03):
    return optax.adam(optax.cosine_decay_schedule(rate, num_steps), b1=0.5)


def build():
    """A generator and an energy on the plane; two energy steps per base step, three batches of 16 an epoch."""
    base = Pushforward(HOST.normal(2), nn.MLP((2,), (2,), (8,), rng_key=jax.random.key(1)))
    guide = KALEGuide(nn.MLP((2,), (), (8,), rng_key=jax.random.key(2)))
    return KALE(base, guide, optax.adam(1e-2), optax.adam(1e-2), energy_steps=2)


networks = functools.cache(build)  # compiled once for many tests


def line(prior=None, penalty=None, **kwargs):
    """A shift and a quadratic energy on the line, quick to compile."""
    shift = nn.Applied(lambda shift, z: z + shift, jnp.array(0.5, float))
    energy = nn.Applied(lambda a, x: a[0] * x + a[1] * x**2, jnp.array([0.3, 0.2], float))
    guide = KALEGuide(energy, log_partition=0.0, log_partition_rate=0.5, penalty=penalty)
    return KALE(Pushforward(prior or dist.Normal(0.0, 1.0), shift), guide, *[optax.sgd(0.1)] * 2, **kwargs)


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


def test_training_goes_on_from_a_state():
    expected, first = train(networks(), 10), train(networks(), 5)  # in the middle of an epoch
    second = train(networks(), 5, seed=1, init_state=first.state)
    assert same(second.state, expected.state) and same(second.gebm, expected.gebm)
    np.testing.assert_array_equal(np.hstack([first.losses, second.losses]), expected.losses)


def test_steps_compile_once():
    traces = []

    def penalty(energy, data, draws, rng_key):
        traces.append(1)
        return jnp.zeros(())

    training = line(penalty=penalty)
    state, _ = training.update(training.init(jax.random.key(0), DATA[:, 0]), DATA[:, 0])
    traces.clear()
    training.update(state, DATA[:, 0])
    assert not traces
    train(training, 7, DATA[:, 0])
    once = len(traces)
    train(training, 300, DATA[:, 0])
    train(training, 7, DATA[:, 0], validation=DATA[:, 0], validate_every=2)
    assert len(traces) == once > 0


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
        HOST.normal(2),
        [
            transforms.LowerCholeskyAffine(jnp.zeros(2), jnp.eye(2)),
            transforms.PermuteTransform(jnp.array([1, 0])),
            transforms.LowerCholeskyAffine(jnp.zeros(2), jnp.eye(2)),
        ],
    ),
}


def test_maximum_likelihood_of_a_flow():
    data = np.random.normal([1.0, -2.0], [0.5, 2.0], (2000, 2))
    optim = optax.adam(optax.cosine_decay_schedule(0.05, 1500))
    guide = KALEGuide(nn.Applied(lambda a, x: a * x.sum(), jnp.array(0.3)))
    base = dist.TransformedDistribution(HOST.normal(2), FLOWS["affine"]().base_dist.transforms)
    kale = KALE(base, guide, optim, None, objective="maximum_likelihood")
    (affine,) = train(kale, 1500, data, batch_size=200).gebm.base.transforms
    np.testing.assert_allclose(affine.loc, data.mean(0), atol=0.02)
    np.testing.assert_allclose(jnp.abs(affine.scale), data.std(0), rtol=0.02)


@pytest.mark.parametrize("name", FLOWS)
def test_flow_base(name):
    base = FLOWS[name]()
    guide = KALEGuide(nn.MLP((2,), (), (8,), rng_key=jax.random.key(1)), penalty=gradient_penalty(0.1))
    training = KALE(base, guide, decaying_adam(400), decaying_adam(1200), energy_steps=3)
    before = arrays(base)
    result = train(training, 400, batch_size=50)
    assert same(before, base) and not same(before, result.gebm.base)
    axis = np.linspace(-7.0, 8.0, 200)
    x = np.stack(np.meshgrid(axis, axis), -1).reshape(-1, 2)
    mass = np.exp(result.gebm.log_prob(x)).sum() * (axis[1] - axis[0]) ** 2
    np.testing.assert_allclose(mass, 1.0, atol=0.01)
    assert result.gebm.log_prob(DATA).mean() > base.log_prob(DATA).mean() + 0.7


def test_single_precision():
    with jax.enable_x64(False):
        result = train(line(penalty=gradient_penalty()), 4, DATA[:, 0])
        values = [result.gebm.log_partition, result.state.log_partition, *result.losses]
        values += jax.tree.leaves([result.state.base, result.state.energy])
        assert all(value.dtype == jnp.float32 and np.isfinite(value).all() for value in values)
