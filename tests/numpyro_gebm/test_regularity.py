"""Lipschitz and bounded energies, penalties, and what KALE does with them."""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import optax
import pytest
from numpyro_cases import standard_normal

from numpyro_gebm import KALE, KALEGuide, Pushforward, divergences, gradient_penalty, l2_penalty, nn, sum_of_penalties


def train(kale, num_steps, data, batch_size=128, seed=0):
    return kale.run(jax.random.key(seed), num_steps, data, batch_size=batch_size, progress_bar=False)


def decaying_adam(rate, num_steps):
    return optax.adam(optax.cosine_decay_schedule(rate, num_steps), b1=0.5)


def point_at_zero():
    return Pushforward(dist.Normal(0.0, 1.0), lambda z: 0.0 * z)


@pytest.mark.parametrize("shape", [(5, 5), (40, 7), (1, 6), (4, 3, 3, 3)])
def test_bound_of_the_spectral_norm(shape):
    weight = np.random.normal(size=shape)
    exact = np.linalg.norm(weight.reshape(shape[0], -1), 2)
    bound = nn.spectral_norm_bound(jnp.asarray(weight))
    assert exact * (1 - 1e-12) <= bound <= 1.02 * exact
    gradient = jax.grad(nn.spectral_norm_bound)(jnp.asarray(weight))
    left, _, right = np.linalg.svd(weight.reshape(shape[0], -1))
    np.testing.assert_allclose(gradient.reshape(shape[0], -1), np.outer(left[:, 0], right[0]), atol=0.05)
    assert float(nn.spectral_norm_bound(jnp.zeros((2, 3)))) < 1e-3


@pytest.mark.parametrize("activation", ["relu", "leaky_relu", "tanh", "silu", "softplus"])
def test_lipschitz_energy(activation):
    energy = nn.MLP((3,), (), (16, 16), activation, lipschitz=2.0, rng_key=jax.random.key(0))
    energy = jax.tree.map(lambda x: 30.0 * x, energy)
    slopes = jnp.linalg.norm(jax.vmap(jax.grad(energy))(3 * jax.random.normal(jax.random.key(1), (2000, 3))), axis=1)
    assert 0.05 < slopes.max() <= 2.0 * (1 + 1e-6)
    assert slopes.max() <= energy.lipschitz_constant() <= 2.0 * (1 + 1e-6)


def test_lipschitz_convolutional_energy():
    energy = nn.ConvEnergy((1, 8, 8), (4, 8), lipschitz=1.5, rng_key=jax.random.key(0))
    energy = jax.tree.map(lambda x: 30.0 * x, energy)
    gradients = jax.vmap(jax.grad(energy))(jax.random.normal(jax.random.key(1), (200, 1, 8, 8)))
    slopes = jnp.sqrt((gradients**2).sum((1, 2, 3)))
    assert 0.01 < slopes.max() <= energy.lipschitz_constant() <= 1.5 * (1 + 1e-6)


def test_a_slack_lipschitz_bound_changes_nothing():
    free, bounded = (nn.MLP((3,), (), (8,), lipschitz=L, rng_key=jax.random.key(0)) for L in (None, 1e6))
    x = np.random.normal(size=(5, 3))
    np.testing.assert_allclose(jax.vmap(free)(x), jax.vmap(bounded)(x), rtol=1e-12)
    assert float(free.lipschitz_constant()) == pytest.approx(float(bounded.lipschitz_constant()), rel=1e-12)


def test_lower_bound():
    free, bounded = (nn.MLP((1,), (), (), lower_bound=b, rng_key=jax.random.key(0)) for b in (None, -3.0))
    free, bounded = (jax.tree.map(lambda x: 100.0 * x, energy) for energy in (free, bounded))
    x = np.linspace(-10, 10, 101)[:, None]
    values, expected = jax.vmap(bounded)(x), jax.vmap(free)(x)
    np.testing.assert_allclose(values, -3.0 + np.logaddexp(0.0, expected + 3.0), rtol=1e-12)
    assert values.min() >= -3.0 and expected.min() < -3.0


@pytest.mark.parametrize(
    "kwargs, match",
    [
        ({"lipschitz": 0.0}, "lipschitz > 0"),
        ({"lipschitz": np.inf}, "lipschitz > 0"),
        ({"lower_bound": np.nan}, "finite"),
    ],
)
def test_bad_bounds(kwargs, match):
    with pytest.raises(ValueError, match=match):
        nn.MLP((2,), (), **kwargs, rng_key=jax.random.key(0))
    with pytest.raises(ValueError, match="lower_bound of an energy"):
        nn.MLP((2,), (2,), lower_bound=-1.0, rng_key=jax.random.key(0))


def test_penalties():
    energy = nn.MLP((2,), (), (4,), rng_key=jax.random.key(0))
    data, draws, key = np.ones((5, 2)), np.ones((5, 2)), jax.random.key(1)
    squares = sum((np.asarray(x) ** 2).sum() for x in jax.tree.leaves(energy))
    np.testing.assert_allclose(l2_penalty(0.3)(energy, data, draws, key), 0.3 * squares, rtol=1e-12)
    total = sum_of_penalties(l2_penalty(0.3), gradient_penalty(2.0))(energy, data, draws, key)
    slope = jax.grad(energy)(jnp.ones(2))  # data and draws agree: there is one interpolate
    np.testing.assert_allclose(total, 0.3 * squares + 2.0 * (slope**2).sum(), rtol=1e-12)
    with pytest.raises(ValueError, match="weight >= 0; got -1"):
        l2_penalty(-1.0)


@pytest.mark.parametrize("lipschitz, distance", [(1.0, 0.5), (2.0, 1.5)])
def test_case_2_diracs(lipschitz, distance):
    energy = nn.MLP((), (), (16,), lipschitz=lipschitz, rng_key=jax.random.key(0))
    kale = KALE(point_at_zero(), KALEGuide(energy, penalty=None), None, decaying_adam(1e-2, 1500))
    data = np.full(256, distance)
    result = train(kale, 1500, data)
    value = float(kale.evaluate(result.state, data))
    assert lipschitz * distance - 0.03 <= value <= lipschitz * distance + 1e-6


@pytest.mark.parametrize("hidden, exact", [((), 2.5), ((32,), 2.5)], ids=["linear", "network"])
def test_case_3_lipschitz_critics_of_two_normals(hidden, exact):
    energy = nn.MLP((), (), hidden, "leaky_relu", lipschitz=1.0, rng_key=jax.random.key(0))
    kale = KALE(dist.Normal(0.0, 1.0), KALEGuide(energy, penalty=None), None, decaying_adam(1e-2, 1500))
    result = train(kale, 1500, np.random.normal(3.0, 1.0, 20_000), batch_size=256)
    fresh = np.random.normal(3.0, 1.0, 100_000)
    error = 4 * np.hypot(1.0, np.sqrt(np.e - 1)) / np.sqrt(1e5)
    value = float(kale.evaluate(result.state, fresh))
    assert exact - 0.03 <= value <= 1.0 * 3.0 + error
    if not hidden:
        assert value <= exact + error


def test_two_samples_of_one_law():
    energy = nn.MLP((2,), (), (64, 64), rng_key=jax.random.key(0))
    kale = KALE(standard_normal(2), KALEGuide(energy), None, optax.adam(1e-3))
    result = train(kale, 1000, np.random.normal(size=(2000, 2)))
    assert abs(kale.evaluate(result.state, np.random.normal(size=(20_000, 2)))) < 0.03


def test_the_base_moves_where_the_kl_is_infinite():
    data = np.stack([np.full(2000, 1.5), np.random.uniform(0, 1, 2000)], 1)  # parallel segments

    def segment(shift, z):
        return jnp.array([0.0, 1.0]) * z + jnp.array([1.0, 0.0]) * shift

    base = Pushforward(dist.Uniform(0.0, 1.0), nn.Applied(segment, jnp.array(0.0)))
    energy = nn.MLP((2,), (), (32, 32), "leaky_relu", rng_key=jax.random.key(0))
    kale = KALE(base, KALEGuide(energy), optax.adam(1e-2, b1=0.5), optax.adam(1e-3, b1=0.5))
    distances, state = [], kale.init(jax.random.key(0), data)
    for _ in range(4):
        draws = kale._base_draws(state.base, jax.random.key(1), 1000)
        distances.append(float(divergences.mmd2(draws, data[:1000], bandwidth=1.0)))
        state = kale.run(None, 150, data, batch_size=128, init_state=state, progress_bar=False).state
    assert np.all(np.diff(distances) < 0) and distances[-1] < 0.1 * distances[0]
