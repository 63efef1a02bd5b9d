"""Lipschitz and bounded energies, penalties, and what KALE does with them."""

import numpy as np
import pytest


def magnified(host, network, factor=30.0):
    return host.with_parameters(network, [factor * parameter for parameter in host.parameters(network)])


@pytest.mark.parametrize("shape", [(5, 5), (40, 7), (1, 6), (4, 3, 3, 3)])
def test_bound_of_the_spectral_norm(host, shape):
    weight = np.random.normal(size=shape)
    exact = np.linalg.norm(weight.reshape(shape[0], -1), 2)
    bound, (gradient,) = host.grad(host.nn.spectral_norm_bound, weight)
    assert exact * (1 - 1e-12) <= bound <= 1.02 * exact
    left, _, right = np.linalg.svd(weight.reshape(shape[0], -1))
    np.testing.assert_allclose(gradient.reshape(shape[0], -1), np.outer(left[:, 0], right[0]), atol=0.05)


def test_bound_of_the_spectral_norm_of_zeros(host):
    assert float(host.nn.spectral_norm_bound(host.array(np.zeros((2, 3))))) < 1e-3


@pytest.mark.parametrize("activation", ["relu", "leaky_relu", "tanh", "silu", "softplus"])
def test_lipschitz_energy(host, activation):
    energy = magnified(host, host.call(host.nn.MLP, (3,), (), (16, 16), activation, lipschitz=2.0, seed=1))
    slopes = np.linalg.norm(host.slope(energy, 3 * np.random.normal(size=(2000, 3))), axis=1)
    assert 0.05 < slopes.max() <= float(host.numpy(energy.lipschitz_constant())) <= 2.0 * (1 + 1e-6)


def test_lipschitz_convolutional_energy(host):
    energy = magnified(host, host.call(host.nn.ConvEnergy, (1, 8, 8), (4, 8), lipschitz=1.5))
    gradients = host.slope(energy, np.random.normal(size=(200, 1, 8, 8)), event_dim=3)
    slopes = np.linalg.norm(gradients.reshape(200, -1), axis=1)
    assert 0.01 < slopes.max() <= float(host.numpy(energy.lipschitz_constant())) <= 1.5 * (1 + 1e-6)


def test_a_slack_lipschitz_bound_changes_nothing(host):
    free, bounded = (host.call(host.nn.MLP, (3,), (), (8,), lipschitz=L) for L in (None, 1e6))
    values, constants = [], []
    for energy in (free, bounded):
        values.append(host.numpy(host.apply(energy, np.random.default_rng(0).normal(size=(5, 3)))))
        constants.append(float(host.numpy(energy.lipschitz_constant())))
    np.testing.assert_allclose(*values, rtol=1e-12)
    assert constants[0] == pytest.approx(constants[1], rel=1e-12)


def test_lower_bound(host):
    energies = (host.call(host.nn.MLP, (1,), (), (), lower_bound=b) for b in (None, -3.0))
    x = np.linspace(-10, 10, 101)[:, None]
    expected, values = (host.numpy(host.apply(magnified(host, energy, 100.0), x)) for energy in energies)
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
def test_bad_bounds(host, kwargs, match):
    with pytest.raises(ValueError, match=match):
        host.call(host.nn.MLP, (2,), (), **kwargs)
    with pytest.raises(ValueError, match="lower_bound of an energy"):
        host.call(host.nn.MLP, (2,), (2,), lower_bound=-1.0)


def test_penalties(host):
    energy, ones = host.call(host.nn.MLP, (2,), (), (4,)), host.array(np.ones((5, 2)))
    squares = sum((parameter**2).sum() for parameter in host.parameters(energy))

    def value(penalty):
        return host.numpy(host.call(penalty, energy, ones, ones))

    np.testing.assert_allclose(value(host.l2_penalty(0.3)), 0.3 * squares, rtol=1e-12)
    total = value(host.sum_of_penalties(host.l2_penalty(0.3), host.gradient_penalty(2.0)))
    slope = host.slope(energy, np.ones((1, 2)))  # data and draws agree: there is one interpolate
    np.testing.assert_allclose(total, 0.3 * squares + 2.0 * (slope**2).sum(), rtol=1e-12)
    with pytest.raises(ValueError, match="weight >= 0; got -1"):
        host.l2_penalty(-1.0)


@pytest.mark.slow_in("pyro")
@pytest.mark.parametrize("lipschitz, distance", [pytest.param(1.0, 0.5, marks=pytest.mark.slow), (2.0, 1.5)])
def test_case_2_diracs(host, lipschitz, distance):
    energy = host.call(host.nn.MLP, (), (), (16,), lipschitz=lipschitz)
    point_at_zero = host.Pushforward(host.dist.Normal(host.array(0.0), 1.0), lambda z: 0.0 * z)
    kale = host.KALE(point_at_zero, host.KALEGuide(energy, penalty=None), None, host.adam(1e-2, 0.5, decay_steps=1500))
    data = np.full(256, distance)
    value = host.evaluate(kale, host.train(kale, 1500, data, batch_size=128), data)
    assert lipschitz * distance - 0.03 <= value <= lipschitz * distance + 1e-6


@pytest.mark.parametrize(
    "hidden, exact",
    [
        pytest.param((), 2.5, id="linear"),
        pytest.param((32,), 2.5, id="network", marks=pytest.mark.slow),
    ],
)
def test_case_3_lipschitz_critics_of_two_normals(host, hidden, exact):
    energy = host.call(host.nn.MLP, (), (), hidden, "leaky_relu", lipschitz=1.0)
    guide, optim = host.KALEGuide(energy, penalty=None), host.adam(1e-2, 0.5, decay_steps=1500)
    kale = host.KALE(host.dist.Normal(host.array(0.0), 1.0), guide, None, optim)
    result = host.train(kale, 1500, np.random.normal(3.0, 1.0, 20_000), batch_size=256)
    fresh = np.random.normal(3.0, 1.0, 100_000)
    error = 4 * np.hypot(1.0, np.sqrt(np.e - 1)) / np.sqrt(1e5)
    value = host.evaluate(kale, result, fresh)
    assert exact - 0.03 <= value <= 1.0 * 3.0 + error
    if not hidden:
        assert value <= exact + error


def test_two_samples_of_one_law(host):
    guide = host.KALEGuide(host.call(host.nn.MLP, (2,), (), (64, 64)))
    kale = host.KALE(host.normal(2), guide, None, host.adam(1e-3))
    result = host.train(kale, 1000, np.random.normal(size=(2000, 2)), batch_size=128)
    assert abs(host.evaluate(kale, result, np.random.normal(size=(20_000, 2)))) < 0.03


@pytest.mark.slow_in("pyro")
def test_the_base_moves_where_the_kl_is_infinite(host):
    data = np.stack([np.full(2000, 1.5), np.random.uniform(0, 1, 2000)], 1)  # parallel segments
    along, across = host.array([0.0, 1.0]), host.array([1.0, 0.0])
    segment = host.network(lambda shift, z: along * z[..., None] + across * shift, 0.0)
    base = host.Pushforward(host.dist.Uniform(host.array(0.0), 1.0), segment)
    guide = host.KALEGuide(host.call(host.nn.MLP, (2,), (), (32, 32), "leaky_relu"))
    kale = host.KALE(base, guide, host.adam(1e-2, 0.5), host.adam(1e-3, 0.5))
    distances, result = [], None
    for _ in range(4):
        draws = host.sample(result.gebm.base if result else base, (1000,), seed=1)
        distances.append(float(host.divergences.mmd2(draws, data[:1000], bandwidth=1.0)))
        if len(distances) < 4:
            result = host.train(kale, 150, data, batch_size=128, after=result)
    assert np.all(np.diff(distances) < 0) and distances[-1] < 0.1 * distances[0]


@pytest.mark.parametrize("layers", [{"residual_blocks": 1}, {"normalization": "group"}, {"normalization": "pixel"}])
def test_a_network_without_a_known_slope_refuses_a_bound(host, layers):
    with pytest.raises(ValueError, match="Expected residual_blocks 0 and normalization None for a bound on the Lip"):
        host.call(host.nn.ConvEnergy, (1, 8, 8), (4, 8), lipschitz=1.5, **layers)
    with pytest.raises(ValueError, match="of which none is known"):
        host.call(host.nn.ConvEnergy, (1, 8, 8), (4, 8), **layers).lipschitz_constant()


def test_an_unknown_normalisation_is_refused(host):
    with pytest.raises(ValueError, match=r"Expected normalization in \('group', 'pixel'\); got 'batch'"):
        host.call(host.nn.ConvGenerator, 2, (1, 8, 8), normalization="batch")


def test_sngan_size_at_both_sizes_of_images(host):
    for event_shape, channels in (((1, 28, 28), (16, 8, 8)), ((3, 32, 32), (16, 16, 8, 8))):
        blocks = {"residual_blocks": 1, "normalization": "group"}
        generator = host.call(host.nn.ConvGenerator, 8, event_shape, channels, **blocks)
        energy = host.call(host.nn.ConvEnergy, event_shape, (8, 16), residual_blocks=2, normalization="pixel")
        z = host.array(np.random.default_rng(0).normal(size=(3, 8)))
        x = host.apply(generator, z.tolist(), 1)
        assert tuple(x.shape) == (3, *event_shape) and tuple(host.apply(energy, x.tolist(), 3).shape) == (3,)
