"""Chains from the prior for a fixed number of steps."""

from functools import partial

import cases
import numpy as np
import pytest

CASE = cases.linear_gaussian()


def z_of(host, run, latent, num_chains, seed=0, **kwargs):
    found = host.call(run.run, latent, num_chains, seed=seed, progress_bar=False, **kwargs)
    return host.numpy(found.z), found.steps


def test_records_go_from_the_prior_to_the_tilted_law(host):
    run = host.infer.ShortRun(num_steps=150)
    z, steps = z_of(host, run, host.linear_gaussian(1.0).latent, 3000, record_every=75)
    assert steps.tolist() == [0, 75, 150]
    cases.assert_moments(z[:1], np.zeros(2), np.eye(2))
    cases.assert_moments(z[-1:], CASE.mean(1.0), CASE.covariance(1.0))  # BAOAB is exact for Gaussians


def test_an_adjusted_kernel_is_exact_at_another_temperature(host):
    latent = host.linear_gaussian(1.0).temper(4.0).latent
    run = host.infer.ShortRun(partial(host.infer.MALA, step_size=0.5), num_steps=100)
    z, _ = z_of(host, run, latent, 3000)
    cases.assert_moments(z[-1:], CASE.mean(4.0), CASE.covariance(4.0))


@pytest.mark.parametrize("kernel", ["ULA", "MALT", "Ex2MCMC"])
def test_any_kernel_can_be_used(host, kernel):
    run = host.infer.ShortRun(partial(getattr(host.infer, kernel), step_size=0.1), num_steps=3)
    z, _ = z_of(host, run, host.linear_gaussian(1.0).latent, 5)
    assert z.shape == (2, 5, 2)
    assert np.isfinite(z).all()
    assert (z[0] != z[1]).any()


def test_a_longer_run_goes_on_where_a_shorter_one_ends(host):
    latent = host.linear_gaussian(1.0).latent
    long, _ = z_of(host, host.infer.ShortRun(num_steps=20), latent, 7, record_every=10)
    short, _ = z_of(host, host.infer.ShortRun(num_steps=10), latent, 7)
    np.testing.assert_allclose(long[:2], short, rtol=1e-12)


def test_batches_are_independent_and_complete(host):
    latent = host.linear_gaussian(1.0).latent
    z, _ = z_of(host, host.infer.ShortRun(num_steps=5, batch_size=4), latent, 11)
    assert z.shape == (2, 11, 2)
    assert len(np.unique(z[-1, :, 0])) == 11


def test_it_is_a_sampler(host):
    gebm = host.linear_gaussian(1.0, sampler=host.infer.ShortRun("between_modes", num_steps=3))
    assert host.numpy(host.sample(gebm.latent, (7,))).shape == (7, 2)
    assert host.numpy(host.sample(gebm, (2, 3))).shape == (2, 3, *gebm.event_shape)
    assert host.numpy(host.sample(gebm.latent, (0,))).shape == (0, 2)


def test_a_batch_of_temperatures(host):
    gebm = host.GEBM(host.normal(2), lambda x: 0.5 * (x**2).sum(-1), inverse_temperature=host.array([0.0, 3.0]))
    z, _ = z_of(host, host.infer.ShortRun(num_steps=150), gebm.latent, 3000)
    for i, variance in enumerate([1.0, 0.25]):
        cases.assert_moments(z[-1:, :, i], np.zeros(2), variance * np.eye(2))


def test_a_constrained_latent_stays_within_its_support(host):
    prior = host.dist.Uniform(host.array([0.0]), host.array([1.0])).to_event(1)
    gebm = host.GEBM(prior, lambda x: 0.0 * x.sum(-1))
    z, _ = z_of(host, host.infer.ShortRun(num_steps=150), gebm.latent, 3000)
    assert (z > 0).all()
    assert (z < 1).all()
    cases.assert_moments(z[:1], np.array([0.5]), np.array([[1 / 12]]))


@pytest.mark.parametrize(
    ("settings", "error", "match"),
    [
        ({"kernel": "cold"}, ValueError, "kernel in .*got 'cold'"),
        ({"kernel": 3}, TypeError, "a callable from a model to a kernel.*got 3"),
        ({"num_steps": 0}, ValueError, "num_steps"),
        ({"batch_size": 1.5}, TypeError, "batch_size"),
    ],
)
def test_bad_settings_raise(host, settings, error, match):
    with pytest.raises(error, match=match):
        host.infer.ShortRun(**settings)


def test_bad_arguments_raise(host):
    latent, run = host.linear_gaussian(1.0).latent, host.infer.ShortRun(num_steps=10)
    with pytest.raises(ValueError, match=r"record_every.*got 11"):
        z_of(host, run, latent, 3, record_every=11)
    with pytest.raises(ValueError, match="num_chains"):
        z_of(host, run, latent, 0)
    with pytest.raises(TypeError, match="latent"):
        z_of(host, run, host.normal(2), 3)
    with pytest.raises(TypeError, match=r"make a kernel of .*got object"):
        z_of(host, host.infer.ShortRun(lambda model: object()), latent, 3)


def test_an_energy_that_is_nowhere_finite_raises(host):
    gebm = host.GEBM(host.normal(2), lambda x: x.sum(-1) * 0.0 + np.inf)
    with pytest.raises(ValueError, match="finite potential"):
        z_of(host, host.infer.ShortRun(num_steps=2), gebm.latent, 3)
