"""The ladder is the same in both hosts."""

import inspect

import numpy as np
import pytest

jax, jnp = pytest.importorskip("jax"), pytest.importorskip("jax.numpy")
torch = pytest.importorskip("torch")
numpyro_gebm, pyro_gebm = pytest.importorskip("numpyro_gebm"), pytest.importorskip("pyro_gebm")
numpyro_dist, pyro_dist = pytest.importorskip("numpyro.distributions"), pytest.importorskip("pyro.distributions")
numpyro_infer, pyro_infer = numpyro_gebm.infer, pyro_gebm.infer
numpyro_pilot = pytest.importorskip("numpyro_gebm.infer.ladder.pilot")
pyro_pilot = pytest.importorskip("pyro_gebm.infer.ladder.pilot")
numpyro_tempering = pytest.importorskip("numpyro_gebm.infer.ladder.tempering")
pyro_tempering = pytest.importorskip("pyro_gebm.infer.ladder.tempering")
numpyro_weights = pytest.importorskip("gebm.weights")
pyro_weights = pytest.importorskip("gebm.weights")
numpyro_pareto = pytest.importorskip("gebm.pareto")
pyro_pareto = pytest.importorskip("gebm.pareto")

U = np.random.default_rng(0).normal(size=(11, 2))


def gebms():
    ours = numpyro_gebm.GEBM(numpyro_dist.Dirichlet(jnp.array([1.0, 2.0, 3.0])), lambda x: x[0] ** 2 - x[2], **MODEL)
    prior = pyro_dist.Dirichlet(torch.tensor([1.0, 2.0, 3.0]))
    return ours, pyro_gebm.GEBM(prior, lambda x: x[..., 0] ** 2 - x[..., 2], **MODEL)


MODEL = {"inverse_temperature": 1.7}


def test_points_of_a_constrained_latent():
    ours, theirs = (g.latent for g in gebms())
    ours, theirs = numpyro_tempering.Ladder(ours), pyro_tempering.Ladder(theirs)
    points = ours.evaluate(jnp.asarray(U)), theirs.evaluate(torch.tensor(U))
    for a, b in zip(*points):
        np.testing.assert_allclose(a, b, rtol=1e-10, atol=1e-12)
    for t in (0.3, np.linspace(0.0, 1.0, 11)):
        potentials = (
            numpyro_tempering.potential_at(points[0], jnp.asarray(t)),
            pyro_tempering.potential_at(points[1], torch.as_tensor(t)),
        )
        for a, b in zip(*potentials):
            np.testing.assert_allclose(a, b, rtol=1e-10, atol=1e-12)
    np.testing.assert_allclose(ours.constrain(points[0].u), theirs.constrain(points[1].u), rtol=1e-10)


def test_a_trajectory_without_friction(monkeypatch):
    monkeypatch.setattr(numpyro_tempering, "FRICTION", 0.0)
    monkeypatch.setattr(pyro_tempering, "FRICTION", 0.0)
    monkeypatch.setattr(numpyro_tempering, "standard_normal", lambda key, like: jnp.asarray(U[::-1]))
    monkeypatch.setattr(torch, "randn_like", lambda like: torch.tensor(U[::-1].copy()))
    monkeypatch.setattr(jax.random, "uniform", lambda *args: 0.5)
    monkeypatch.setattr(torch, "rand_like", lambda like: 0.5)
    ours, theirs = (g.latent for g in gebms())
    ours, theirs = numpyro_tempering.Ladder(ours), pyro_tempering.Ladder(theirs)
    t, scale = np.linspace(0.0, 1.0, 11), np.linspace(0.2, 4.0, 11)
    start = ours.evaluate(jnp.asarray(U)), theirs.evaluate(torch.tensor(U))
    a = numpyro_tempering.move(jax.random.key(0), start[0], ours, jnp.asarray(t), 0.8, jnp.asarray(scale), 1)
    b = pyro_tempering.move(start[1], theirs, torch.tensor(t), 0.8, torch.tensor(scale), 1)
    np.testing.assert_allclose(a[1], b[1], rtol=1e-8)
    assert 0 < b[1].min() < 0.5 < b[1].max() <= 1 and a[2] == b[2] == 3  # some are turned down
    for x, y in zip(a[0], b[0]):
        np.testing.assert_allclose(x, y, rtol=1e-8, atol=1e-10)


def test_an_evenly_spaced_ladder():
    t, barrier = np.linspace(0.0, 1.0, 6) ** 2, np.array([9.0, 5.0, 3.0, 1.0, 0.5, 0.2])
    columns = (t, np.full(6, 0.7), np.linspace(2.0, 1.0, 6), barrier)
    ours = numpyro_pilot.spaced_evenly(numpyro_pilot.Rungs(*(jnp.append(x, 0.0) for x in columns), 6, 0))
    theirs = pyro_pilot.spaced_evenly(pyro_pilot.Rungs(*(list(x) for x in columns), []))
    for a, b in zip(ours, theirs):
        np.testing.assert_allclose(a, b)
    crossed = np.interp(theirs[0], t, np.append(0.0, np.cumsum(np.diff(t) * (barrier[1:] + barrier[:-1]) / 2)))
    np.testing.assert_allclose(np.diff(crossed), crossed[-1] / (len(crossed) - 1))
    assert len(crossed) == np.ceil(2 * crossed[-1]) + 1


def test_barrier_and_rungs():
    tilt = -np.random.default_rng(0).exponential(3.0, 500)
    expected = 0.5 * np.abs(tilt[:, None] - tilt).mean()
    assert float(numpyro_pilot._half_mean_difference(jnp.asarray(tilt))) == pytest.approx(expected, rel=1e-12)
    assert pyro_pilot._half_mean_difference(torch.tensor(tilt)) == pytest.approx(expected, rel=1e-12)
    for fraction in (0.5, 0.9, 0.999999):
        ours = numpyro_tempering.next_rung(jnp.asarray(0.1), jnp.asarray(tilt), fraction)
        assert float(ours) == pytest.approx(pyro_tempering.next_rung(0.1, torch.tensor(tilt), fraction), rel=1e-9)


def test_the_curve_of_the_log_partition():
    rows = np.array([0.0, 0.5, 2.0]), np.array([0.0, -0.4, -1.0]), np.array([-1.0, -0.6, -0.3])
    ours, theirs = (
        numpyro_gebm.LogPartitionCurve(*map(jnp.asarray, rows)),
        pyro_gebm.LogPartitionCurve(*map(torch.tensor, rows)),
    )
    for beta, value in zip(rows[0], rows[1]):
        assert float(ours(beta)) == pytest.approx(value) and float(theirs(beta)) == pytest.approx(value)
    for beta, slope in zip(rows[0], rows[2]):
        assert float(jax.grad(ours)(beta)) == pytest.approx(slope, rel=1e-6)
    assert float(ours(2.1)) == theirs(2.1).item() == np.inf
    for beta in (0.2, 0.5, 1.3, 2.0):
        b = torch.tensor(beta, requires_grad=True)
        theirs(b).backward()
        assert float(ours(beta)) == pytest.approx(theirs(b).item(), rel=1e-12)
        assert float(jax.grad(ours)(beta)) == pytest.approx(float(b.grad), rel=1e-9)
    np.testing.assert_allclose(ours(jnp.asarray([[0.2], [1.3]])), theirs(torch.tensor([[0.2], [1.3]])), rtol=1e-12)


def test_weights_are_the_same_file():
    ours = inspect.getsource(numpyro_weights).replace("numpyro_gebm", "pyro_gebm")
    assert ours == inspect.getsource(pyro_weights)
    assert inspect.getsource(numpyro_pareto) == inspect.getsource(pyro_pareto)
