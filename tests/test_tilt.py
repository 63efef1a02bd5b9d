"""Programs reweighted by an energy at a site."""

import importlib

import cases
import numpy as np
import pytest

SITES = {"mu": 0.3, "x": np.array([[0.5, -1.0], [1.5, 0.2], [-0.7, 0.1]])}


def energy(x):
    return 0.5 * (x**2).sum(-1) + x[..., 0]


def log_joint(host, model, sites):
    """Log-density of a model at values of its latent sites."""
    sites = {name: host.array(np.asarray(value, float)) for name, value in sites.items()}
    if host.name == "numpyro":
        util = importlib.import_module("numpyro.infer.util")
        return float(util.log_density(host.handlers.seed(model, host.key(0)[0]), (), {}, sites)[0])
    return float(host.handlers.trace(host.handlers.condition(model, sites)).get_trace().log_prob_sum())


def rows(host, mask=None, scale=1.0):
    """Three points in a plate, around an unknown mean."""

    def model():
        mu = host.ppl.sample("mu", host.dist.Normal(host.array(0.0), 1.0))
        with host.ppl.plate("rows", 3), host.handlers.scale(scale=scale):
            x = host.dist.Normal(mu + host.array(np.zeros((3, 2))), 1.0).to_event(1)
            host.ppl.sample("x", x if mask is None else x.mask(host.array(mask)))

    return model


def test_a_tilted_site_is_a_gebm(host):
    """To rounding: the same model with the GEBM in the place of its base."""

    def model(law):
        mu = host.ppl.sample("mu", host.dist.Normal(host.array(0.0), 1.0))
        x = host.ppl.sample("x", law)
        host.ppl.sample("y", host.dist.Normal(x.sum(-1) + mu, 0.5), obs=host.array(0.7))

    base, sites = host.normal(2, 0.4, 1.3), {"mu": 0.3, "x": SITES["x"][0]}
    for beta, log_partition in ((1.0, None), (1.7, 0.4), (0.0, 0.0)):
        gebm = host.GEBM(base, energy, inverse_temperature=beta, log_partition=log_partition)
        tilted = host.tilt(lambda: model(base), energy, "x", beta, log_partition)
        expected = log_joint(host, lambda gebm=gebm: model(gebm), sites)
        assert log_joint(host, tilted, sites) == pytest.approx(expected, rel=1e-13)


def test_a_tilted_function_of_a_latent_is_a_gebm_over_it(host):
    gebm = host.linear_gaussian(1.3, log_partition=0.2)
    z, latent = np.array([0.4, -0.9]), host.normal(2)

    def model():
        z = host.ppl.sample("x_latent", latent)
        host.ppl.deterministic("x", gebm.decode(z))

    tilted = host.tilt(model, gebm.energy, "x", 1.3, 0.2)
    reparam = host.handlers.reparam(lambda: host.ppl.sample("x", gebm), config={"x": host.LatentReparam()})
    ours, theirs = (log_joint(host, m, {"x_latent": z}) for m in (tilted, reparam))
    assert ours == pytest.approx(theirs, rel=1e-12)


@pytest.mark.parametrize("mask", [None, np.array([True, False, True])])
def test_plates_masks_and_scales_act_on_the_factor(host, mask):
    plain = rows(host, mask, 2.5)
    found = log_joint(host, host.tilt(plain, energy, "x", 0.8, 0.1), SITES) - log_joint(host, plain, SITES)
    expected = -0.8 * energy(SITES["x"]) - 0.1
    assert found == pytest.approx(2.5 * expected[slice(None) if mask is None else mask].sum())


@pytest.mark.parametrize("outside", [True, False])
def test_a_handler_that_masks_acts_on_the_factor(host, outside):
    mask, tilted = host.array(np.array([True, False, True])), host.tilt(rows(host), energy, "x")

    def model():
        mu = host.ppl.sample("mu", host.dist.Normal(host.array(0.0), 1.0))
        with host.ppl.plate("rows", 3), host.handlers.mask(mask=mask):
            host.ppl.sample("x", host.dist.Normal(mu + host.array(np.zeros((3, 2))), 1.0).to_event(1))

    if outside:
        tilted = host.handlers.mask(tilted, mask=mask)
        expected = -energy(SITES["x"])[[0, 2]].sum()
        got = log_joint(host, tilted, SITES) - log_joint(host, host.handlers.mask(rows(host), mask=mask), SITES)
        assert got == pytest.approx(expected)
        return
    got = log_joint(host, host.tilt(model, energy, "x"), SITES) - log_joint(host, model, SITES)
    assert got == pytest.approx(-energy(SITES["x"])[[0, 2]].sum())


def test_a_subsampled_plate_scales_the_factor(host):
    data = host.array(np.arange(8.0))

    def model():
        with host.ppl.plate("rows", 8, subsample_size=2) as i:
            host.ppl.sample("x", host.dist.Normal(0.0 * data[i], 1.0))

    sites = {"x": np.array([0.5, -1.0])}
    found = log_joint(host, host.seeded(host.tilt(model, lambda x: x**2, "x")), sites)
    assert found - log_joint(host, host.seeded(model), sites) == pytest.approx(-4.0 * 1.25)


def test_the_axes_of_plates_around_a_deterministic_site_are_a_batch(host):
    def model():
        with host.ppl.plate("rows", 3):
            z = host.ppl.sample("z", host.normal(2))
            host.ppl.deterministic("x", 2.0 * z, **({"event_dim": 1} if host.name == "pyro" else {}))

    sites = {"z": SITES["x"]}
    found = log_joint(host, host.tilt(model, energy, "x"), sites) - log_joint(host, model, sites)
    assert found == pytest.approx(-energy(2.0 * SITES["x"]).sum())


def test_two_sites_are_tilted(host):
    def model():
        a = host.ppl.sample("a", host.normal(2))
        host.ppl.sample("b", host.normal(2, 1.0))
        return a

    sites = {"a": SITES["x"][0], "b": SITES["x"][1]}
    tilted = host.tilt(host.tilt(model, energy, "a"), lambda x: 3.0 * energy(x), "b", 2.0)
    found = log_joint(host, tilted, sites) - log_joint(host, model, sites)
    assert found == pytest.approx(-energy(sites["a"]) - 6.0 * energy(sites["b"]))


def test_a_conditioned_site_keeps_its_factor(host):
    value, plain = {"x": host.array(SITES["x"])}, rows(host)
    tilted = host.tilt(plain, energy, "x")
    before = log_joint(host, host.handlers.condition(plain, data=value), {"mu": 0.3})
    inside = host.tilt(host.handlers.condition(plain, data=value), energy, "x")
    for model in (host.handlers.condition(tilted, data=value), inside):
        assert log_joint(host, model, {"mu": 0.3}) - before == pytest.approx(-energy(SITES["x"]).sum())


def test_what_follows_from_a_site_that_was_set_sees_the_value_set(host):
    """`do` leaves the site as it was, with its factor, and replaces its value in what follows."""

    def model():
        x = host.ppl.sample("x", host.normal(2))
        return host.ppl.deterministic("y", 2.0 * x)

    tilted = host.handlers.do(host.tilt(model, energy, "x"), data={"x": host.array(np.ones(2))})
    np.testing.assert_allclose(host.numpy(host.seeded(tilted)()), 2.0)


def predictive(host, model, num):
    infer = importlib.import_module(f"{host.name}.infer")
    if host.name == "numpyro":
        return infer.Predictive(model, num_samples=num)(host.key(0)[0])
    host.ppl.set_rng_seed(0)
    return infer.Predictive(model, num_samples=num)()


def test_draws_of_predictive_are_weighted_and_can_be_resampled(host):
    """N(0, 1) tilted by x² / 2 - x is N(1/2, 1/2), at x and for what follows from it."""

    def model():
        x = host.ppl.sample("x", host.dist.Normal(host.array(0.0), 1.0))
        host.ppl.sample("y", host.dist.Normal(2.0 * x, 0.1))

    drawn = predictive(host, host.tilt(model, lambda x: 0.5 * x**2 - x, "x"), 8000)
    x, log_weight = host.numpy(drawn["x"]), host.numpy(drawn["x_log_weight"])
    np.testing.assert_allclose(log_weight, x - 0.5 * x**2, atol=1e-12)
    new = host.call(host.resample, {"x": drawn["x"], "y": drawn["y"]}, drawn["x_log_weight"], 6000)
    weight = np.exp(log_weight)
    ess = weight.sum() ** 2 / (weight**2).sum()
    for name, mean, variance in (("x", 0.5, 0.5), ("y", 1.0, 2.01)):
        values = host.numpy(new[name])
        assert values.shape == (6000,)
        assert abs(values.mean() - mean) < 4 * np.sqrt(variance / ess)
        assert abs(values.var() - variance) < 4 * variance * np.sqrt(2 / ess)
    assert len(np.unique(host.numpy(new["x"])[:100])) > 90  # in random order


def test_resampling_warns_of_few_heavy_weights(host):
    x = np.random.default_rng(0).normal(size=4000)
    with pytest.warns(RuntimeWarning, match=r"The weights of 4000 draws have a Pareto shape of .* by MCMC"):
        host.call(host.resample, {"x": host.array(x)}, host.array(2.0 * x**2))


@pytest.mark.parametrize(
    "shape, log_weight, match",
    [
        ((4,), [0.0, np.nan, 0.0, 0.0], "Expected log_weight below inf, without NaN"),
        ((4,), [-np.inf] * 4, "not -inf everywhere"),
        ((3,), [0.0] * 4, r"Expected arrays with 4 draws as their first axis; got shapes \{'x': \(3,\)\}"),
        ((4,), 0.0, r"Expected log_weight of shape \(N, ...\)"),
    ],
)
def test_weights_that_cannot_be_are_refused(host, shape, log_weight, match):
    with pytest.raises(ValueError, match=match):
        host.call(host.resample, {"x": host.array(np.zeros(shape))}, host.array(np.asarray(log_weight)))


@pytest.mark.parametrize(
    "kwargs, error, match",
    [
        ({"energy": 3.0}, TypeError, "Expected energy to be callable, from an event to its energy; got 3.0"),
        ({"site": 3}, TypeError, "Expected site to be .*; got 3"),
        ({"inverse_temperature": -1.0}, ValueError, "Expected inverse_temperature to be a finite scalar >= 0; got -1"),
        ({"inverse_temperature": np.nan}, ValueError, "Expected inverse_temperature to be a finite scalar >= 0; got n"),
        ({"inverse_temperature": [1.0, 2.0]}, ValueError, r"a finite scalar >= 0; got shape \(2,\)"),
        ({"log_partition": np.inf}, ValueError, "Expected log_partition to be a finite scalar, a callable or None"),
    ],
)
def test_arguments_that_cannot_be_are_refused(host, kwargs, error, match):
    with pytest.raises(error, match=match):
        host.tilt(rows(host), **({"energy": energy, "site": "x"} | kwargs))


def test_a_site_that_the_model_lacks_is_an_error(host):
    with pytest.raises(ValueError, match=r"Expected a site 'w' in the model, to tilt it there; its sites are: mu, x"):
        log_joint(host, host.tilt(rows(host), energy, "w"), SITES)


@pytest.mark.parametrize(
    "wrong, match",
    [
        (lambda x: x, "The energy must return .* site 'x'"),
        (lambda x: x.reshape(-1, 7).sum(-1), "The energy cannot take .* site 'x'"),
    ],
)
def test_an_energy_that_does_not_fit_is_an_error(host, wrong, match):
    with pytest.raises(ValueError, match=match):
        log_joint(host, host.tilt(rows(host), wrong, "x"), SITES)


def test_an_error_of_the_model_stays_as_it_is(host):
    def model():
        raise KeyError("mine")

    with pytest.raises(KeyError, match="mine"):
        host.tilt(model, energy, "x")()


@pytest.mark.slow
def test_beside_a_discrete_site_that_is_summed_over(host):
    """A mixture's component is summed over; the tilted site beside it is not touched by that."""

    def model():
        probs = host.array(np.array([0.3, 0.7]))
        k = host.ppl.sample("k", host.dist.Categorical(probs), infer={"enumerate": "parallel"})
        mu = host.ppl.sample("mu", host.dist.Normal(host.array(0.0), 1.0))
        means = host.array(np.array([-1.0, 2.0]))
        host.ppl.sample("y", host.dist.Normal(means[k] + mu, 1.0), obs=host.array(0.5))

    if host.name == "numpyro":
        pytest.importorskip("funsor")
    tilted = host.tilt(model, lambda x: 2.0 * x**2, "mu")  # N(0, 1/5)
    draws = host.run(host.nuts(tilted), 300, 3000)["mu"]
    grid = np.linspace(-4, 4, 4001)
    likelihood = 0.3 * np.exp(-0.5 * (0.5 + 1 - grid) ** 2) + 0.7 * np.exp(-0.5 * (0.5 - 2 - grid) ** 2)
    weight = likelihood * np.exp(-2.5 * grid**2)
    weight /= weight.sum()
    cases.assert_mean(draws, float(weight @ grid), min_ess=500)
