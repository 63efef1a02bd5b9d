"""Flows of MMD and KALE: their steps are gradient steps, and they reach their target."""

import numpy as np
import pytest
from cases import THREE_RINGS_KALE, three_rings, two_samples

PARTICLES, TARGET = two_samples(20, 1.0)
QUIET = {"progress_bar": False}


@pytest.fixture
def kernel(host):
    return host.divergences.kernels.Gaussian(np.sqrt(0.05))


def flow(host, name, particles, target, *args, seed=None, **kwargs):
    """A flow of that name, with a seed if it takes noise; what it returns as NumPy arrays."""
    function = getattr(host.module("particle_flows"), name)
    args, kwargs = (host.array(particles), host.array(target), *args), QUIET | kwargs
    result = function(*args, **kwargs) if seed is None else host.call(function, *args, seed=seed, **kwargs)
    return type(result)(*(part if part is None else host.numpy(part) for part in result))


def assert_gradient_step(host, result, step_size, divergence):
    value, (gradient,) = host.grad(divergence, PARTICLES)
    step = (PARTICLES - result.particles) / step_size
    np.testing.assert_allclose(step, len(PARTICLES) * gradient, rtol=1e-6, atol=1e-9)
    assert result.losses.tolist() == pytest.approx([float(value)], rel=1e-9)


def test_a_step_of_the_kale_flow_is_a_gradient_step(host, kernel):
    result = flow(host, "kale_flow", PARTICLES, TARGET, kernel, regularization=0.05, num_steps=1, step_size=1e-3)
    target = host.array(TARGET)
    assert_gradient_step(host, result, 1e-3, lambda y: host.divergences.kale_rkhs(y, target, kernel, 0.05).value)


def test_a_step_of_the_mmd_flow_is_a_gradient_step(host, kernel):
    result = flow(host, "mmd_flow", PARTICLES, TARGET, kernel, num_steps=1, step_size=1e-2)
    mmd2, target = host.divergences.mmd2, host.array(TARGET)
    assert_gradient_step(host, result, 1e-2, lambda y: 0.5 * mmd2(y, target, kernel=kernel, estimator="biased"))


def test_the_noise_is_inside_of_the_gradient(host):
    """A schedule that ends the noise after two steps; later steps are those of the flow without noise."""
    settings = {"step_size": 0.1}
    noisy = flow(host, "mmd_flow", PARTICLES, TARGET, num_steps=2, noise=0.5, seed=0, **settings)
    calm = flow(host, "mmd_flow", PARTICLES, TARGET, num_steps=2, **settings)
    assert 1e-4 < abs(noisy.particles - calm.particles).max() < 0.1  # not 0.5, the size of the noise
    kernel = host.divergences.kernels.fit_kernel(None, host.array(PARTICLES), host.array(TARGET))
    later = flow(host, "mmd_flow", noisy.particles, TARGET, kernel, num_steps=3, **settings)

    def schedule(step):
        return 0.5 * (step < 2)

    whole = flow(host, "mmd_flow", PARTICLES, TARGET, num_steps=5, noise=schedule, seed=0, **settings)
    np.testing.assert_allclose(whole.particles, later.particles, rtol=1e-9)


def test_seeds_reproduce_and_kept_particles_change_nothing(host):
    settings = {"regularization": 0.1, "num_steps": 7, "step_size": 0.01, "noise": 0.1}
    first, second, other = (flow(host, "kale_flow", PARTICLES, TARGET, seed=seed, **settings) for seed in (0, 0, 1))
    assert (first.particles == second.particles).all() and (first.losses == second.losses).all()
    assert first.trajectory is None and first.losses.shape == (7,)
    kept = flow(host, "kale_flow", PARTICLES, TARGET, keep_every=3, seed=0, **settings)
    np.testing.assert_allclose(kept.particles, first.particles, rtol=1e-9)
    assert kept.trajectory.shape == (3, *PARTICLES.shape)
    assert (kept.trajectory[0] == PARTICLES).all() and not np.allclose(kept.trajectory[2], kept.particles)
    assert not np.allclose(other.particles, first.particles)


def test_the_last_particles_are_kept_if_it_is_their_turn(host):
    result = flow(host, "mmd_flow", PARTICLES, TARGET, num_steps=4, step_size=0.1, keep_every=2)
    assert result.trajectory.shape[0] == 3 and (result.trajectory[-1] == result.particles).all()


@pytest.mark.slow
@pytest.mark.parametrize("regularization, num_steps, below", [(1e-3, 5000, 0.2)])
def test_the_three_rings(host, kernel, regularization, num_steps, below):
    particles, target = three_rings()
    settings = {"regularization": regularization, "num_steps": num_steps, "step_size": 1e-4}
    result = flow(host, "kale_flow", particles, target, kernel, **settings)
    assert result.losses[0] == pytest.approx(THREE_RINGS_KALE[regularization], rel=1e-2)
    assert result.losses[-1] < below
    assert (np.diff(result.losses) < 0.0).all()
    last = host.divergences.kale_rkhs(result.particles, target, kernel, regularization).value
    assert result.losses[-1] == pytest.approx(float(last), rel=1e-2)


@pytest.mark.parametrize("name", ["mmd_flow", pytest.param("kale_flow", marks=pytest.mark.slow_in("numpyro"))])
def test_a_flow_stays_in_single_precision(host, kernel, name):
    x, y = PARTICLES.astype(np.float32), TARGET.astype(np.float32)
    result = flow(host, name, x, y, kernel, num_steps=3, step_size=1e-3, keep_every=1)
    assert {part.dtype for part in result} == {np.dtype("float32")}


def test_the_progress_bar_shows_the_divergence(host, capsys):
    flow(host, "mmd_flow", PARTICLES, TARGET, num_steps=5, step_size=0.1, progress_bar=True)
    shown = capsys.readouterr().err
    assert "5/5" in shown and "loss=" in shown


def test_a_flow_that_diverges_says_so(host):
    diverged = host.module("particle_flows").FlowDiverged
    with pytest.raises(diverged, match=r"The particles are not finite after step [0-9]+\. Use a smaller step_size"):
        flow(host, "mmd_flow", PARTICLES, TARGET, lambda x, y: (x @ y.T) ** 2, num_steps=200, step_size=10.0)


@pytest.mark.parametrize("name", ["mmd_flow", "kale_flow"])
def test_bad_arguments_of_flows_are_refused(host, name):
    settings = {"num_steps": 2, "step_size": 0.1}
    for argument, value in {"num_steps": 0, "step_size": 0.0, "noise": -1.0, "keep_every": 0}.items():
        with pytest.raises(ValueError, match=f"Expected {argument} [>=]+ [01]"):
            flow(host, name, PARTICLES, TARGET, **(settings | {argument: value}))
    with pytest.raises(ValueError, match="finite entries in particles"):
        flow(host, name, PARTICLES * np.nan, TARGET, **settings)
    with pytest.raises(ValueError, match=r"Expected particles \(M, D\)"):
        flow(host, name, PARTICLES[:, :1], TARGET, **settings)
    with pytest.raises(TypeError, match="Expected a kernel"):
        flow(host, name, PARTICLES, TARGET, 1.0, **settings)
    with pytest.raises(ValueError, match="Expected regularization > 0; got -1"):
        flow(host, "kale_flow", PARTICLES, TARGET, regularization=-1.0, **settings)
