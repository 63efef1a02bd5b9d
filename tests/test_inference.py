"""Sampling: the host's NUTS, kinetic Langevin dynamics and the default sampler, against exact laws."""

import cases
import numpy as np
import pytest
from marks import slow_unless

CASE = cases.linear_gaussian()


def latent_model(host, gebm):
    return lambda: host.ppl.sample("z", gebm.latent)


def nuts(host, model, max_plate_nesting=0):
    """The host's NUTS, started so that no sampler runs."""
    nesting = {"max_plate_nesting": max_plate_nesting} if host.name == "pyro" else {}
    return host.ppl.infer.NUTS(model, init_strategy=host.infer.init_to_prior, **nesting)


def normal_energy(x):
    return 0.5 * (x**2).sum(-1)


@pytest.mark.slow_in("pyro")
@pytest.mark.parametrize("beta", slow_unless([1.0, 100.0], 100.0))
def test_nuts_on_the_latent_law(host, beta):
    draws = host.run(nuts(host, latent_model(host, host.linear_gaussian(beta))), 300, 1500, 2)["z"]
    cases.assert_moments(draws, CASE.mean(beta), CASE.covariance(beta), min_ess=1000)


@pytest.mark.filterwarnings("ignore:.*gave up global moves")
@pytest.mark.parametrize("beta", [0.0, 1.0, 100.0])
def test_default_sampler(host, beta):
    draws = host.sample(host.linear_gaussian(beta).latent, (5000,))
    cases.assert_moments(host.numpy(draws)[None], CASE.mean(beta), CASE.covariance(beta))


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*gave up global moves")
@pytest.mark.parametrize("dim", [1, 10, 100])
@pytest.mark.parametrize("beta", [3.7, 100.0, 1000.0])
def test_default_sampler_is_within_three_percent_in_variance(host, dim, beta):
    gebm = host.GEBM(host.normal(dim), lambda x: 0.5 * ((x - 1.0) ** 2).sum(-1), inverse_temperature=beta)
    draws = host.numpy(host.sample(gebm, (200_000 // dim,)))
    assert abs(draws.var() * (1 + beta) - 1) < 0.03
    assert abs(draws.mean() - beta / (1 + beta)) < 0.03 / np.sqrt(1 + beta)


def test_law_of_the_default_sampler_does_not_depend_on_the_batch(host):
    latent = host.linear_gaussian(1.0, sampler=host.infer.AnnealedMALA(batch_size=500)).latent
    draws = host.numpy(host.sample(latent, (3050,)))
    assert len(np.unique(draws[:, 0])) == 3050
    cases.assert_moments(draws[None], CASE.mean(1.0), CASE.covariance(1.0))


def test_default_sampler_of_a_constrained_latent(host):
    gebm = host.GEBM(host.dist.Gamma(host.array(2.0), host.array(1.5)), lambda x: 0.7 * x)  # a Gamma(2, 2.2)
    draws = host.numpy(host.sample(gebm, (5000,)))[None]
    cases.assert_mean(draws, 2 / 2.2)
    cases.assert_mean((draws - 2 / 2.2) ** 2, 2 / 2.2**2)


@pytest.mark.parametrize(
    "kwargs, match",
    [
        ({"num_steps": 0}, "Expected num_steps >= 1; got 0"),
        ({"step_size": 0.0}, "Expected step_size > 0; got 0"),
        ({"batch_size": 0}, "Expected batch_size >= 1; got 0"),
        ({"annealing": 0.0}, r"Expected annealing in \(0, 1\]; got 0"),
        ({"target_accept_prob": 1.0}, r"Expected target_accept_prob in \(0, 1\); got 1"),
    ],
)
def test_arguments_of_the_default_sampler(host, kwargs, match):
    with pytest.raises(ValueError, match=match):
        host.infer.AnnealedMALA(**kwargs)


def test_own_sampler(host):
    def sampler(latent, num_samples, rng_key=None):
        return host.array(np.full((num_samples, 2), 7.0))

    gebm = host.GEBM(host.normal(2), normal_energy, sampler=sampler)
    assert host.sample(gebm, (3,)).tolist() == [[7.0, 7.0]] * 3


@pytest.mark.slow_in("pyro")
def test_gebm_as_a_component_of_a_hierarchical_model(host):
    case = cases.hierarchy()
    gebm = host.linear_gaussian(case.beta)

    def model(y):
        mu = host.ppl.sample("mu", host.dist.Normal(0.0, 1.0))
        with host.ppl.plate("rows", len(case.y)):
            x = host.ppl.sample("x", gebm)
            host.ppl.sample("y", host.dist.Normal(x[..., 0] + mu, case.noise), obs=y)

    model = host.handlers.reparam(model, config={"x": host.LatentReparam()})
    num_chains = 4 if host.name == "numpyro" else 2
    draws = host.run(nuts(host, model, 1), 300, 1500, num_chains, host.array(case.y))
    assert draws["x_latent"].shape == (num_chains, 1500, 3, 2)
    assert host.name == "pyro" or draws["x"].shape == (num_chains, 1500, 3, 3)
    joint = np.concatenate([draws["mu"][..., None], draws["x_latent"].reshape(num_chains, 1500, -1)], -1)
    cases.assert_moments(joint, *case.posterior(), min_ess=1500 if host.name == "numpyro" else 800)


@pytest.mark.parametrize("reparametrised", [False, True])
def test_predictive_draws_from_the_tilted_law(host, reparametrised):
    gebm = host.linear_gaussian(1.0)

    def model():
        with host.ppl.plate("rows", 4000):
            host.ppl.sample("x", gebm)

    if reparametrised:
        model = host.handlers.reparam(model, config={"x": host.LatentReparam()})
    keys = (host.jax.random.key(0),) if host.name == "numpyro" else ()
    x = host.numpy(host.ppl.infer.Predictive(model, num_samples=1, return_sites=("x",))(*keys)["x"])
    covariance = CASE.W @ CASE.covariance(1.0) @ CASE.W.T
    cases.assert_moments(x, CASE.W @ CASE.mean(1.0) + CASE.b, covariance)


@pytest.mark.parametrize("kernel", ["NUTS", "KineticLangevin"])
@pytest.mark.parametrize("site", ["latent", "plate", "reparametrised", "density"])
def test_setting_up_a_chain_never_runs_the_sampler(host, kernel, site):
    calls = []

    def sampler(latent, num_samples, **keys):
        calls.append(1)
        return host.infer.AnnealedMALA(num_steps=2)(latent, num_samples, **keys)

    def plate():
        with host.ppl.plate("rows", 3):
            host.ppl.sample("z", gebm.latent)

    base = host.normal(2) if site == "density" else host.Pushforward(host.normal(2), lambda z: z)
    gebm = host.GEBM(base, normal_energy, sampler=sampler)
    observed = host.handlers.reparam(lambda: host.ppl.sample("x", gebm), config={"x": host.LatentReparam()})
    model = {
        "latent": latent_model(host, gebm),
        "plate": plate,
        "reparametrised": observed,
        "density": lambda: host.ppl.sample("x", gebm),
    }[site]
    kernel = nuts(host, model, int(site == "plate")) if kernel == "NUTS" else host.infer.KineticLangevin(model)
    host.mcmc(kernel, 2, 2, 1, stock=True)
    assert not calls
    host.sample(gebm)
    assert calls


@pytest.mark.slow_in("pyro")
def test_kinetic_langevin_on_the_latent_law(host):
    model = latent_model(host, host.linear_gaussian(1.0))
    kernel = host.infer.KineticLangevin(model, step_size=0.4, friction=2.0, num_steps=4)
    cases.assert_moments(host.run(kernel, 300, 4000, 4)["z"], CASE.mean(1.0), CASE.covariance(1.0))


@pytest.mark.parametrize(
    "integrator, variance",
    [
        pytest.param("ABOBA", 1.0, marks=pytest.mark.slow_in("pyro")),
        pytest.param("BAOAB", 1.0, marks=pytest.mark.slow_in("pyro")),
        ("OBABO", 1 / (1 - 0.25)),
    ],
)
def test_kinetic_langevin_has_the_exact_stationary_variance_of_its_splitting(host, integrator, variance):
    kernel = host.infer.KineticLangevin(
        potential_fn=lambda z: normal_energy(z["z"]),
        step_size=1.0,
        friction=2.0,
        num_steps=3,
        integrator=integrator,
        adapt_step_size=False,
    )
    draws = host.run(kernel, 300, 4000, 4, start={"z": np.zeros((4, 2))})["z"]
    cases.assert_moments(draws, [0.0, 0.0], variance * np.eye(2))


@pytest.mark.slow_in("pyro")
def test_kinetic_langevin_on_constrained_sites(host):
    def model():
        host.ppl.sample("a", host.dist.Gamma(host.array(4.0), host.array(2.0)))
        host.ppl.sample("b", host.dist.Beta(host.array(3.0), host.array(2.0)))

    draws = host.run(host.infer.KineticLangevin(model, step_size=0.2, num_steps=10), 300, 2500, 4)
    cases.assert_mean(draws["a"], 2.0, z_max=5)  # the splitting's own bias is of order h^2
    cases.assert_mean(draws["b"], 0.6, z_max=5)


@pytest.mark.parametrize("how", slow_unless(["together", "in turn"], "together"))
def test_a_step_into_a_potential_that_is_not_finite_is_not_taken_and_is_reported(host, how):
    def potential(z):
        return host.xp.where(z["z"] > 1.0, host.xp.nan, 0.5 * z["z"] ** 2).sum(-1)

    kernel = host.infer.KineticLangevin(potential_fn=potential, step_size=0.5, num_steps=1)
    mcmc = host.mcmc(kernel, 0, 500, 1, start={"z": np.zeros((1, 1))}, stock=how == "in turn")
    diverging = host.to_arviz(mcmc)["sample_stats"]["diverging"].values[0]
    z = host.draws(mcmc)["z"][0, :, 0]
    assert np.isfinite(z).all() and z.max() <= 1.0
    assert 0 < diverging.sum() < 500
    np.testing.assert_array_equal(z[1:][diverging[1:]], z[:-1][diverging[1:]])
    assert len(np.unique(z)) == 500 - diverging.sum()
    if host.name == "pyro":
        assert mcmc.diagnostics()["divergences"]["chain 0"] == np.flatnonzero(diverging).tolist()
