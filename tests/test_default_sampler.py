"""The default sampler of a GEBM: walls, steep energies, modes far apart, and what it says of itself."""

import warnings

import cases
import numpy as np
import pytest


def two_modes(host):
    """Two unit modes 8 apart of weights .8 and .2, over a prior N(0, 9 I)."""
    centers, weights = host.array([[-4.0, 0.0], [4.0, 0.0]]), (0.8, 0.2)

    def energy(x):
        a, b = (np.log(w) - 0.5 * ((x - c) ** 2).sum(-1) for w, c in zip(weights, centers))
        return -host.xp.logaddexp(a, b) - (x**2).sum(-1) / 18.0

    return host.GEBM(host.normal(2, scale=3.0), energy)


def where(host, condition, dim=2, **kwargs):
    """A GEBM whose energy is 0 where the condition on x[..., 0] holds, and infinite elsewhere."""
    zero, infinite = host.array(0.0), host.array(np.inf)
    return host.GEBM(host.normal(dim), lambda x: host.xp.where(condition(x[..., 0]), zero, infinite), **kwargs)


@pytest.mark.parametrize("seed", [0, *(pytest.param(seed, marks=pytest.mark.slow) for seed in range(1, 10))])
def test_modes_far_apart_have_their_weights(host, seed):
    draws = host.numpy(host.sample(two_modes(host), (4000,), seed))
    assert abs((draws[:, 0] > 0).mean() - 0.2) < 0.03
    cases.assert_mean(draws[None, :, 1] ** 2, 1.0)


@pytest.mark.parametrize("bound", [0.0, 2.0])
def test_a_wall_is_never_crossed(host, bound):
    from scipy.stats import truncnorm

    draws = host.numpy(host.sample(where(host, lambda x: x > bound), (4000,)))
    law = truncnorm(bound, np.inf)
    assert draws[:, 0].min() > bound
    cases.assert_mean(draws[None, :, 0], law.mean())
    cases.assert_mean((draws[None, :, 0] - law.mean()) ** 2, law.var())
    cases.assert_moments(draws[None, :, 1:], [0.0], [[1.0]])


def test_a_steep_energy(host):
    draws = host.numpy(host.sample(host.GEBM(host.normal(2), lambda x: host.xp.exp(30.0 * x[..., 0])), (4000,)))
    grid = np.linspace(-8.0, 1.0, 200_001)
    density = np.exp(-0.5 * grid**2 - np.exp(30.0 * grid))
    mean = (grid * density).sum() / density.sum()
    cases.assert_mean(draws[None, :, 0], mean)
    assert np.exp(30.0 * draws[:, 0]).max() < 30.0


def test_a_law_far_narrower_than_its_base(host):
    gebm = host.GEBM(host.normal(2), lambda x: 0.5 * ((x - 1.0) ** 2).sum(-1), inverse_temperature=1e20)
    with pytest.warns(UserWarning, match="gave up global moves"):
        draws = host.numpy(host.sample(gebm, (500,)))
    assert np.abs(draws - 1.0).max() < 1e-5


def test_a_base_off_the_support_is_an_error(host):
    with pytest.raises(RuntimeError, match=r"5\d\d chains found none in 1000 draws each. The energy is finite on 0 of"):
        host.sample(where(host, lambda x: x > 50.0), (500,))


def test_energies_that_are_no_numbers_are_an_error(host):
    for bad in (np.nan, -np.inf):
        energy = lambda x, bad=bad: host.xp.where(x[..., 0] > 0, host.array(0.0), host.array(bad))  # noqa: E731
        with pytest.raises((RuntimeError, ValueError), match="Expected an energy without NaN"):
            host.sample(host.GEBM(host.normal(2), energy, validate_args=False), (50,))


def test_global_moves_are_given_up_where_the_base_is_hopeless(host):
    gebm = host.GEBM(host.normal(50), lambda x: 0.5 * (x**2).sum(-1), inverse_temperature=20.0)
    with pytest.warns(UserWarning, match=r"gave up global moves: 20 draws.*infer.SMC"):
        draws = host.numpy(host.sample(gebm, (200,)))
    cases.assert_mean(draws.reshape(1, -1) ** 2, 1 / 21)
    without = host.GEBM(gebm.base, gebm.energy, sampler=host.infer.AnnealedMALA(num_candidates=0))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        host.sample(without, (10,))


@pytest.mark.parametrize("num_candidates", [1, 2, 16])
def test_isir_leaves_the_law_invariant(host, num_candidates):
    """Chains that start at exact draws of N(1, .5²) under candidates of N(0, 1)."""
    isir, start = host.module("dynamics.isir").isir, np.random.default_rng(0).normal(1.0, 0.5, 40_000)

    def log_weight(u):
        return -0.5 * ((u - 1.0) / 0.5) ** 2 + 0.5 * u**2

    u = host.array(start)
    if host.name == "numpyro":
        propose = lambda key: (v := host.jax.random.normal(key, u.shape), log_weight(v))  # noqa: E731
        new, moved, accept_prob = isir(host.jax.random.key(0), u, log_weight(u), propose, num_candidates)
    else:
        propose = lambda n: (v := host.xp.randn(n, *u.shape), log_weight(v))  # noqa: E731
        new, moved, accept_prob = isir(u, log_weight(u), propose, num_candidates, at_once=3)
    new, moved, accept_prob = (host.numpy(x) for x in (new, moved, accept_prob))
    np.testing.assert_array_equal(new != start, moved)
    cases.assert_mean((moved - accept_prob)[None], 0.0)
    cases.assert_moments(new[None, :, None], [1.0], [[0.25]])


def test_at_inverse_temperature_0_the_model_is_its_base(host):
    gebm, x = where(host, lambda x: x > 0), host.array([[-1.0, 0.0], [1.0, 0.0]])
    base = host.numpy(gebm.base.log_prob(x))
    np.testing.assert_allclose(host.numpy(gebm.temper(0.0).log_prob(x)), base)
    np.testing.assert_array_equal(host.numpy(gebm.temper(0.0).latent.log_prob(x)), base)
    assert host.numpy(gebm.log_prob(x))[0] == -np.inf
