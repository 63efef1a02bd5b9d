"""Flows of MMD and KALE: their steps are gradient steps, and they reach their target."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cases import THREE_RINGS_KALE, three_rings, two_samples

from numpyro_gebm import particle_flows
from numpyro_gebm.divergences import kale_rkhs, kernels, mmd2
from numpyro_gebm.particle_flows import FlowDiverged, kale_flow, mmd_flow

KERNEL = kernels.Gaussian(np.sqrt(0.05))
PARTICLES, TARGET = two_samples(20, 1.0)
QUIET = {"progress_bar": False}


def test_a_step_of_the_kale_flow_is_a_gradient_step():
    result = kale_flow(PARTICLES, TARGET, KERNEL, regularization=0.05, num_steps=1, step_size=1e-3, **QUIET)
    value_and_grad = jax.jit(jax.value_and_grad(lambda y: kale_rkhs(y, TARGET, KERNEL, 0.05).value))
    value, gradient = value_and_grad(PARTICLES)
    np.testing.assert_allclose((PARTICLES - result.particles) / 1e-3, len(PARTICLES) * gradient, rtol=1e-6, atol=1e-9)
    assert result.losses.tolist() == pytest.approx([float(value)], rel=1e-9)


def test_a_step_of_the_mmd_flow_is_a_gradient_step():
    result = mmd_flow(PARTICLES, TARGET, KERNEL, num_steps=1, step_size=1e-2, **QUIET)
    value_and_grad = jax.jit(jax.value_and_grad(lambda y: 0.5 * mmd2(y, TARGET, kernel=KERNEL, estimator="biased")))
    value, gradient = value_and_grad(PARTICLES)
    np.testing.assert_allclose((PARTICLES - result.particles) / 1e-2, len(PARTICLES) * gradient, rtol=1e-6, atol=1e-9)
    assert result.losses.tolist() == pytest.approx([float(value)], rel=1e-9)


def test_the_noise_is_inside_of_the_gradient():
    """A schedule that ends the noise after two steps; later steps are those of the flow without noise."""
    key, settings = jax.random.key(0), {"step_size": 0.1, **QUIET}
    noisy = mmd_flow(PARTICLES, TARGET, num_steps=2, noise=0.5, rng_key=key, **settings)
    calm = mmd_flow(PARTICLES, TARGET, num_steps=2, **settings)
    assert 1e-4 < abs(noisy.particles - calm.particles).max() < 0.1  # not 0.5, the size of the noise
    kernel = kernels.fit_kernel(None, jnp.asarray(PARTICLES), jnp.asarray(TARGET))
    later = mmd_flow(noisy.particles, TARGET, kernel, num_steps=3, **settings)

    def schedule(step):
        return jnp.where(step < 2, 0.5, 0.0)

    whole = mmd_flow(PARTICLES, TARGET, num_steps=5, noise=schedule, rng_key=key, **settings)
    np.testing.assert_allclose(whole.particles, later.particles, rtol=1e-9)


def test_seeds_reproduce_and_kept_particles_change_nothing():
    settings = {"regularization": 0.1, "num_steps": 7, "step_size": 0.01, "noise": 0.1, **QUIET}
    first, second = (kale_flow(PARTICLES, TARGET, rng_key=jax.random.key(0), **settings) for _ in range(2))
    assert (first.particles == second.particles).all() and (first.losses == second.losses).all()
    assert first.trajectory is None and first.losses.shape == (7,)
    kept = kale_flow(PARTICLES, TARGET, rng_key=jax.random.key(0), keep_every=3, **settings)
    np.testing.assert_allclose(kept.particles, first.particles, rtol=1e-9)
    assert kept.trajectory.shape == (3, *PARTICLES.shape)
    assert (kept.trajectory[0] == PARTICLES).all() and not np.allclose(kept.trajectory[2], kept.particles)
    other = kale_flow(PARTICLES, TARGET, rng_key=jax.random.key(1), **settings)
    assert not np.allclose(other.particles, first.particles)


def test_the_last_particles_are_kept_if_it_is_their_turn():
    result = mmd_flow(PARTICLES, TARGET, num_steps=4, step_size=0.1, keep_every=2, **QUIET)
    assert result.trajectory.shape[0] == 3 and (result.trajectory[-1] == result.particles).all()


@pytest.mark.slow
@pytest.mark.parametrize("regularization, num_steps, below", [(1e-3, 5000, 0.2)])
def test_the_three_rings(regularization, num_steps, below):
    particles, target = three_rings()
    result = kale_flow(
        particles, target, KERNEL, regularization=regularization, num_steps=num_steps, step_size=1e-4, **QUIET
    )
    assert result.losses[0] == pytest.approx(THREE_RINGS_KALE[regularization], rel=1e-2)
    assert result.losses[-1] < below
    assert (np.diff(result.losses) < 0.0).all()
    last = kale_rkhs(result.particles, target, KERNEL, regularization).value
    assert result.losses[-1] == pytest.approx(float(last), rel=1e-2)


def test_a_flow_stays_in_single_precision():
    x, y = PARTICLES.astype(np.float32), TARGET.astype(np.float32)
    result = mmd_flow(x, y, KERNEL, num_steps=3, step_size=1e-3, keep_every=1, **QUIET)
    assert {leaf.dtype for leaf in result} == {np.dtype("float32")}


def test_the_progress_bar_shows_the_divergence(capsys):
    mmd_flow(PARTICLES, TARGET, num_steps=5, step_size=0.1)
    shown = capsys.readouterr().err
    assert "5/5" in shown and "loss=" in shown


def test_a_flow_that_diverges_says_so():
    with pytest.raises(FlowDiverged, match=r"not finite any more after step [0-9]+\. Take a smaller step_size"):
        mmd_flow(PARTICLES, TARGET, lambda x, y: (x @ y.T) ** 2, num_steps=200, step_size=10.0, **QUIET)


def test_a_dual_that_is_not_solved_says_so(monkeypatch):
    def unsolved(*arguments):
        state, losses, solved = advance(*arguments)
        return state, losses, solved.at[0].set(False)

    advance = particle_flows._advance
    monkeypatch.setattr(particle_flows, "_advance", unsolved)
    with pytest.raises(FlowDiverged, match="dual of KALE could not be solved at step 0:.*larger regularization"):
        kale_flow(PARTICLES, TARGET, KERNEL, regularization=0.05, num_steps=9, step_size=1e-3, **QUIET)


@pytest.mark.parametrize("flow", [mmd_flow, kale_flow])
def test_bad_arguments_of_flows_are_refused(flow):
    settings = {"num_steps": 2, "step_size": 0.1, **QUIET}
    for name, value in {"num_steps": 0, "step_size": 0.0, "noise": -1.0, "keep_every": 0}.items():
        with pytest.raises(ValueError, match=f"Expected {name} [>=]+ [01]"):
            flow(PARTICLES, TARGET, **(settings | {name: value}))
    with pytest.raises(ValueError, match="Expected a random key for the noise"):
        flow(PARTICLES, TARGET, noise=0.1, **settings)
    with pytest.raises(ValueError, match="finite entries in x"):
        flow(PARTICLES * np.nan, TARGET, **settings)
    with pytest.raises(ValueError, match=r"Expected x \(M, D\)"):
        flow(PARTICLES[:, :1], TARGET, **settings)
    with pytest.raises(TypeError, match="Expected a kernel"):
        flow(PARTICLES, TARGET, 1.0, **settings)
    with pytest.raises(ValueError, match="Expected regularization > 0; got -1"):
        kale_flow(PARTICLES, TARGET, regularization=-1.0, **settings)
