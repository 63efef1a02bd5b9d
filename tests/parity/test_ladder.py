"""The ladder is the same in both hosts."""

import numpy as np
import pytest

from gebm.ladder import spaced_evenly

U = np.random.default_rng(0).normal(size=(11, 2))


@pytest.fixture
def ladders(both):
    """Of a Dirichlet latent, with the points U."""

    def ladder(host):
        prior = host.dist.Dirichlet(host.array([1.0, 2.0, 3.0]))
        gebm = host.GEBM(prior, lambda x: x[..., 0] ** 2 - x[..., 2], inverse_temperature=1.7)
        ladder = host.module("infer.ladder.tempering").Ladder(gebm.latent)
        return ladder, ladder.evaluate(host.array(U))

    return tuple(map(ladder, both))


def modules(both, name):
    return (host.module(f"infer.ladder.{name}") for host in both)


def test_points_of_a_constrained_latent(both, ladders):
    points = [points for _, points in ladders]
    for a, b in zip(*points):
        np.testing.assert_allclose(a, b, rtol=1e-10, atol=1e-12)
    for t in (0.3, np.linspace(0.0, 1.0, 11)):
        potentials = (
            host.module("infer.ladder.tempering").potential_at(points, host.array(t))
            for host, (_, points) in zip(both, ladders)
        )
        for a, b in zip(*potentials):
            np.testing.assert_allclose(a, b, rtol=1e-10, atol=1e-12)
    np.testing.assert_allclose(*(ladder.constrain(points.u) for ladder, points in ladders), rtol=1e-10)


def test_a_trajectory_without_friction(both, ladders, monkeypatch):
    numpyro, pyro = both
    for module in modules(both, "tempering"):
        monkeypatch.setattr(module, "FRICTION", 0.0)
    monkeypatch.setattr(
        numpyro.module("infer.ladder.tempering"), "standard_normal", lambda key, like: numpyro.array(U[::-1])
    )
    monkeypatch.setattr(pyro.torch, "randn_like", lambda like: pyro.array(U[::-1].copy()))
    monkeypatch.setattr(numpyro.jax.random, "uniform", lambda *args: 0.5)
    monkeypatch.setattr(pyro.torch, "rand_like", lambda like: 0.5)
    t, scale = np.linspace(0.0, 1.0, 11), np.linspace(0.2, 4.0, 11)
    a, b = (
        host.module("infer.ladder.tempering").move(
            *host.key(0), points, ladder, host.array(t), 0.8, host.array(scale), 1
        )
        for host, (ladder, points) in zip(both, ladders)
    )
    np.testing.assert_allclose(a[1], b[1], rtol=1e-8)
    assert 0 < b[1].min() < 0.5 < b[1].max() <= 1 and a[2] == b[2] == 3  # some are turned down
    for x, y in zip(a[0], b[0]):
        np.testing.assert_allclose(x, y, rtol=1e-8, atol=1e-10)


def test_an_evenly_spaced_ladder():
    t, barrier = np.linspace(0.0, 1.0, 6) ** 2, np.array([9.0, 5.0, 3.0, 1.0, 0.5, 0.2])
    columns = (t, np.full(6, 0.7), np.linspace(2.0, 1.0, 6), barrier)
    even, step_size, length_scale = spaced_evenly(*columns)
    assert step_size == 0.7
    np.testing.assert_allclose(length_scale, np.interp(even, t, columns[2]))
    crossed = np.interp(even, t, np.append(0.0, np.cumsum(np.diff(t) * (barrier[1:] + barrier[:-1]) / 2)))
    np.testing.assert_allclose(np.diff(crossed), crossed[-1] / (len(crossed) - 1))
    assert len(crossed) == np.ceil(2 * crossed[-1]) + 1


def test_barrier_and_rungs(both):
    neg_beta_energy = -np.random.default_rng(0).exponential(3.0, 500)
    expected = 0.5 * np.abs(neg_beta_energy[:, None] - neg_beta_energy).mean()
    for host, pilot in zip(both, modules(both, "pilot")):
        assert float(pilot._half_mean_difference(host.array(neg_beta_energy))) == pytest.approx(expected, rel=1e-12)
    for fraction in (0.5, 0.9, 0.999999):
        ours, theirs = (
            float(tempering.next_rung(np.float64(0.1), host.array(neg_beta_energy), fraction))
            for host, tempering in zip(both, modules(both, "tempering"))
        )
        assert ours == pytest.approx(theirs, rel=1e-9)


def test_the_curve_of_the_log_partition(both):
    betas, values, slopes = np.array([0.0, 0.5, 2.0]), np.array([0.0, -0.4, -1.0]), np.array([-1.0, -0.6, -0.3])
    curves = [host.LogPartitionCurve(*map(host.array, (betas, values, slopes))) for host in both]

    def value_and_slope(host, curve, beta):
        value, (slope,) = host.grad(lambda beta: curve(beta), np.float64(beta))
        return float(value), float(slope)

    for host, curve in zip(both, curves):
        for beta, value, slope in zip(betas, values, slopes):
            assert float(curve(host.array(beta))) == pytest.approx(value)
            assert value_and_slope(host, curve, beta)[1] == pytest.approx(slope, rel=1e-6)
        assert float(curve(host.array(2.1))) == np.inf
    for beta in (0.2, 0.5, 1.3, 2.0):
        ours, theirs = map(value_and_slope, both, curves, (beta, beta))
        assert ours[0] == pytest.approx(theirs[0], rel=1e-12) and ours[1] == pytest.approx(theirs[1], rel=1e-9)
    grid = [[0.2], [1.3]]
    np.testing.assert_allclose(*(curve(host.array(grid)) for host, curve in zip(both, curves)), rtol=1e-12)
