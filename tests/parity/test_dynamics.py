"""The pure steps of both hosts against exact laws: no sampling, float64.

A step on a quadratic potential is an affine map of position, velocity and noise; its matrices are read off by feeding
it unit vectors, with the noise replaced.
"""

import itertools

import numpy as np
import pytest

jax, jnp = pytest.importorskip("jax"), pytest.importorskip("jax.numpy")
torch = pytest.importorskip("torch")
numpyro_dynamics = pytest.importorskip("numpyro_gebm.dynamics.steps")
pyro_dynamics = pytest.importorskip("pyro_gebm.dynamics.steps")

HOSTS = {"numpyro": (numpyro_dynamics, jnp.asarray), "pyro": (pyro_dynamics, torch.tensor)}
SPLITTINGS = tuple(numpyro_dynamics.SPLITTINGS)
#: step size, frequency, friction
TRIPLES = [(0.5, 1.0, 1.0), (1.2, 1.5, 0.1), (0.1, 3.0, 20.0), (0.9, 0.7, 3.0)]


@pytest.fixture(params=HOSTS)
def host(request):
    return HOSTS[request.param]


@pytest.fixture
def random():
    return np.random.default_rng(0)


@pytest.fixture
def noises(monkeypatch):
    """The noise that the steps of both hosts take next, in order; returns the list that they are taken from."""
    queue = []
    monkeypatch.setattr(numpyro_dynamics, "standard_normal", lambda key, like: jnp.asarray(queue.pop(0)))
    monkeypatch.setattr(torch, "randn_like", lambda like: torch.tensor(queue.pop(0)))
    return queue


def step(host, z, v, potential_and_grad, *args, start=None):
    """One step from z and v, NumPy arrays of shape (N, d), and the state before it."""
    dynamics, array = host
    z, v = array(z), array(v)
    state = dynamics.KineticState(z, v, z, *potential_and_grad(z)) if start is None else start._replace(z=z, v=v)
    keys = (jax.random.key(0),) if dynamics is numpyro_dynamics else ()
    return dynamics.kinetic_step(*keys, state, potential_and_grad, *args), state


def quadratic(frequency):
    return lambda z: (0.5 * frequency**2 * (z**2).sum(-1), frequency**2 * z)


def number_of_noises(splitting):
    return sum({"O": 1, "U": 2}.get(letter, 0) for letter, _ in numpyro_dynamics.SPLITTINGS[splitting])


def affine_map(host, noises, splitting, h, frequency, friction):
    """Matrices T, R of one step: (z, v) -> T (z, v) + R noise. Rows of the batch are unit vectors."""
    num = number_of_noises(splitting)
    unit = np.eye(2 + num)
    noises[:] = [unit[:, [2 + i]] for i in range(num)]
    end, _ = step(host, unit[:, [0]], unit[:, [1]], quadratic(frequency), h, friction, splitting)
    out = np.stack([np.asarray(end.z)[:, 0], np.asarray(end.v)[:, 0]])
    return out[:, :2], out[:, 2:]


def stationary(T, R):
    """Covariance S = T S T' + R R'."""
    return np.linalg.solve(np.eye(4) - np.kron(T, T), (R @ R.T).reshape(-1)).reshape(2, 2)


@pytest.mark.parametrize("h, w, friction", TRIPLES)
@pytest.mark.parametrize("splitting", SPLITTINGS)
def test_stationary_covariance(host, noises, splitting, h, w, friction):
    S = stationary(*affine_map(host, noises, splitting, h, w, friction))
    ratio = 1 - h**2 * w**2 / 4
    if splitting == "UBU":
        T, R = exact_ubu(h, w, friction)
        np.testing.assert_allclose(S, stationary(T, R), rtol=1e-9, atol=1e-10)
        return
    expected = {"ABOBA": (1, 1 / ratio), "BAOAB": (1, ratio), "OBABO": (1 / ratio, 1)}[splitting]
    np.testing.assert_allclose(S * [[w**2, w], [w, 1]], np.diag(expected), rtol=1e-10, atol=1e-10)


def exact_ubu(h, w, friction):
    """UBU by the matrix exponential and quadrature of the noise; independent of the package's formulas."""
    from scipy.integrate import quad
    from scipy.linalg import expm

    drift = np.array([[0.0, 1.0], [0.0, -friction]])
    flow = expm(drift * h / 2)

    def noise(i, j):
        def integrand(t):
            column = expm(drift * t)[:, 1] * np.sqrt(2 * friction)
            return column[i] * column[j]

        return quad(integrand, 0, h / 2, epsabs=1e-13, epsrel=1e-13)[0]

    Q = np.array([[noise(i, j) for j in range(2)] for i in range(2)])
    kick = np.array([[1.0, 0.0], [-h * w**2, 1.0]])
    covariance = flow @ kick @ Q @ kick.T @ flow.T + Q
    return flow @ kick @ flow, np.linalg.cholesky(covariance)


@pytest.mark.parametrize("splitting", SPLITTINGS)
def test_weak_order_is_two(host, noises, splitting):
    """Error in the covariance at time 1, from a point, on a quadratic: quarters when the step is halved."""
    w, friction = 1.3, 0.8
    A = np.array([[0.0, 1.0], [-(w**2), -friction]])
    exact = lyapunov_at_one(A, 2 * friction)
    errors = []
    for num in (20, 40, 80):
        T, R = affine_map(host, noises, splitting, 1.0 / num, w, friction)
        S, mean = np.zeros((2, 2)), np.array([1.0, -0.5])
        for _ in range(num):
            S, mean = T @ S @ T.T + R @ R.T, T @ mean
        errors.append([np.abs(S - exact[0]).max(), np.abs(mean - exact[1]).max()])
    slopes = -np.diff(np.log2(errors), axis=0)
    assert np.all(np.abs(slopes - 2.0) < 0.1), slopes


def lyapunov_at_one(A, noise):
    from scipy.linalg import expm

    n = len(A)
    block = np.zeros((2 * n, 2 * n))
    block[:n, :n], block[:n, n:], block[n:, n:] = -A, np.diag([0.0, noise]), A.T
    e = expm(block)
    transition = e[n:, n:].T
    return transition @ e[:n, n:], transition @ np.array([1.0, -0.5])


def curved(z):
    """A potential with a gradient that is not linear, in three dimensions."""
    lib = torch if isinstance(z, torch.Tensor) else jnp
    x, y = z[..., 0], z[..., 1]
    value = lib.cos(x) + 0.25 * x**4 + x * y**2 + 0.5 * (z**2).sum(-1)
    rest = 0 * z[..., 2]
    return value, z + lib.stack([-lib.sin(x) + x**3 + y**2, 2 * x * y, rest], -1)


@pytest.mark.parametrize("splitting", SPLITTINGS)
def test_the_deterministic_part_is_reversible(host, noises, splitting, random):
    z, v = random.normal(size=(2, 5, 3))
    noises[:] = [np.zeros((5, 3))] * (2 * number_of_noises(splitting))
    there, _ = step(host, z, v, curved, 0.3, 0.0, splitting)
    back, _ = step(host, np.asarray(there.z), -np.asarray(there.v), curved, 0.3, 0.0, splitting)
    np.testing.assert_allclose(np.asarray(back.z), z, atol=1e-12)
    np.testing.assert_allclose(-np.asarray(back.v), v, atol=1e-12)


@pytest.mark.parametrize("scale", [1.0, np.array([0.5, 2.0, 1.3])], ids=["unit", "diagonal"])
def test_energy_error_is_that_of_the_leapfrog_step(host, noises, scale, random):
    dynamics, array = host
    z, v = random.normal(size=(2, 5, 3))
    noises[:] = [np.zeros((5, 3))] * 2
    scale = scale if np.isscalar(scale) else array(scale)
    end, start = step(host, z, v, curved, 0.3, 0.0, "OBABO", scale)
    total = [np.asarray(s.potential_energy) + 0.5 * (np.asarray(s.v) ** 2).sum(-1) for s in (start, end)]
    error = np.asarray(dynamics.energy_error(start, end, 0.3, scale))
    assert np.abs(error).max() > 1e-3
    np.testing.assert_allclose(error, total[1] - total[0], atol=1e-12)


@pytest.mark.parametrize("splitting", ["ABOBA", "OBABO"])
def test_energy_error_of_a_step_with_friction(host, noises, splitting, random):
    """The error is what potential and kinetic energy gain in the drifts and kicks, counted by hand."""
    dynamics, _ = host
    h, friction = 0.3, 1.1
    z, v = random.normal(size=(2, 5, 3))
    draws = list(random.normal(size=(2 * number_of_noises(splitting), 5, 3)))
    noises[:] = list(draws)
    middle, _ = step(host, z, v, curved, h, friction, splitting)
    end, start = step(host, np.asarray(middle.z), np.asarray(middle.v), curved, h, friction, splitting, start=middle)
    share = 1.0 if splitting == "ABOBA" else 0.5
    noise = draws[number_of_noises(splitting) - (1 if splitting == "ABOBA" else 0)]
    if splitting == "ABOBA":  # from the middle of the first step to that of the second, after and before their noise
        after = np.asarray(middle.v) + h / 2 * np.asarray(middle.z_grad)
    else:
        after = np.exp(-friction * h * share) * np.asarray(middle.v)
        after = after + np.sqrt(1 - np.exp(-2 * friction * h * share)) * noise
    kicked = after - h / 2 * np.asarray(start.z_grad) - h / 2 * np.asarray(end.z_grad)
    gained = 0.5 * (kicked**2 - after**2).sum(-1)
    expected = np.asarray(end.potential_energy) - np.asarray(start.potential_energy) + gained
    np.testing.assert_allclose(np.asarray(dynamics.energy_error(start, end, h)), expected, atol=1e-12)


def test_log_acceptance_ratio_of_mala(host, random):
    """Against the densities of target and proposal, by SciPy."""
    from scipy.stats import norm

    dynamics, array = host
    h, scale = 0.4, np.array([0.5, 2.0, 1.3])
    z, noise = random.normal(size=(2, 5, 3))
    potential, grad = (np.asarray(x) for x in curved(array(z)))
    new = np.asarray(dynamics.overdamped_move(array(z), array(grad), array(noise), h, array(scale)))
    new_potential, new_grad = (np.asarray(x) for x in curved(array(new)))
    back = np.asarray(dynamics.reverse_noise(array(grad), array(new_grad), array(noise), h, array(scale)))
    ratio = potential - new_potential + 0.5 * (noise**2 - back**2).sum(-1)

    def log_proposal(to, at, grad):
        return norm.logpdf(to, at - h**2 / 2 * scale**2 * grad, h * scale).sum(-1)

    explicit = -new_potential + log_proposal(z, new, new_grad) + potential - log_proposal(new, z, grad)
    assert np.abs(ratio).max() > 0.1
    np.testing.assert_allclose(ratio, explicit, atol=1e-10)


def test_log_acceptance_ratio_of_a_trajectory(host, noises, random):
    """MALT's, against the densities of the path and of the path back, by SciPy (the Jacobians cancel)."""
    from scipy.stats import norm

    dynamics, array = host
    h, friction, num = 0.4, 0.9, 3
    decay = np.exp(-friction * h / 2)
    z, v = random.normal(size=(2, 5, 3))
    noises[:] = list(random.normal(size=(2 * num, 5, 3)))
    state = dynamics.KineticState(array(z), array(v), array(z), *curved(array(z)))
    path, error = [state], 0.0
    for _ in range(num):
        state, before = step(host, np.asarray(state.z), np.asarray(state.v), curved, h, friction, "OBABO", start=state)
        path.append(state)
        error = error + np.asarray(dynamics.energy_error(before, state, h))

    def log_path(points):
        """Log density of a path of (z, v, grad): the noise that each OBABO step must have had."""
        total = 0.0
        for (z, v, g), (new_z, new_v, new_g) in itertools.pairwise(points):
            first = (new_z - z) / h + h / 2 * g
            last = first - h / 2 * (g + new_g)
            total = total + norm.logpdf(first, decay * v, np.sqrt(1 - decay**2)).sum(-1)
            total = total + norm.logpdf(new_v, decay * last, np.sqrt(1 - decay**2)).sum(-1)
        return total

    forth = [tuple(np.asarray(x) for x in (s.z, s.v, s.z_grad)) for s in path]
    back = [(z, -v, g) for z, v, g in reversed(forth)]

    def log_target(state):
        return -np.asarray(state.potential_energy) - 0.5 * (np.asarray(state.v) ** 2).sum(-1)

    explicit = log_target(path[-1]) + log_path(back) - log_target(path[0]) - log_path(forth)
    assert np.abs(explicit).max() > 0.1
    np.testing.assert_allclose(-error, explicit, atol=1e-10)


def test_the_slice_stays_below_the_ratio_and_keeps_its_product(host, random):
    """After an accepted step |u| exp(-error) is what |u| was before the test, and u stays in (-1, 1)."""
    dynamics, array = host
    u, error = random.uniform(-1, 1, 2000), random.normal(size=2000)
    accept, new = (np.asarray(x) for x in dynamics.update_slice(array(u), array(error), 0.6))
    drifted = (u + 0.5 * (1 - 0.36) + 1) % 2 - 1
    np.testing.assert_array_equal(accept, np.log(np.abs(drifted)) < -error)
    np.testing.assert_allclose(new[accept], (drifted * np.exp(error))[accept], atol=1e-12)
    np.testing.assert_array_equal(new[~accept], drifted[~accept])
    assert np.abs(new).max() < 1 and 0.2 < accept.mean() < 0.9
