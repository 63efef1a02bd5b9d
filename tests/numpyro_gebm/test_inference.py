"""Sampling: the host's NUTS, the kernel and the default sampler, against exact laws."""

import pickle

import cases
import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from marks import slow_unless
from numpyro import handlers
from numpyro.infer import MCMC, NUTS, Predictive
from numpyro_cases import CASE, linear_gaussian_gebm, standard_normal

from numpyro_gebm import GEBM, LatentReparam, Pushforward, nn
from numpyro_gebm.infer import AnnealedMALA, KineticLangevin, init_to_prior


def run(kernel, num_samples=1000, num_warmup=300, num_chains=4, chain_method="vectorized", **kwargs):
    mcmc = MCMC(
        kernel,
        num_warmup=num_warmup,
        num_samples=num_samples,
        num_chains=num_chains,
        chain_method=chain_method,
        progress_bar=False,
    )
    mcmc.run(jax.random.key(0), **kwargs)
    return mcmc.get_samples(group_by_chain=True)


def latent_model(gebm):
    return lambda: numpyro.sample("z", gebm.latent)


def normal_potential(z):
    return 0.5 * jnp.sum(z["z"] ** 2)


@pytest.mark.parametrize("beta", [1.0, 100.0])
def test_nuts_on_the_latent_law(beta):
    draws = run(NUTS(latent_model(linear_gaussian_gebm(beta)), init_strategy=init_to_prior), 1500)["z"]
    cases.assert_moments(draws, CASE.mean(beta), CASE.covariance(beta))


@pytest.mark.parametrize("beta", [0.0, 1.0, 100.0])
def test_default_sampler(beta):
    draws = linear_gaussian_gebm(beta).latent.sample(jax.random.key(0), (5000,))
    cases.assert_moments(draws[None], CASE.mean(beta), CASE.covariance(beta))


@pytest.mark.slow
@pytest.mark.parametrize("dim", [1, 10, 100])
@pytest.mark.parametrize("beta", [3.7, 100.0, 1000.0])
def test_default_sampler_is_within_three_percent_in_variance(dim, beta):
    gebm = GEBM(standard_normal(dim), lambda x: 0.5 * jnp.sum((x - 1.0) ** 2), inverse_temperature=beta)
    draws = gebm.sample(jax.random.key(0), (200_000 // dim,))
    assert abs(draws.var() * (1 + beta) - 1) < 0.03
    assert abs(draws.mean() - beta / (1 + beta)) < 0.03 / np.sqrt(1 + beta)


def test_law_of_the_default_sampler_does_not_depend_on_the_batch():
    latent = linear_gaussian_gebm(1.0, sampler=AnnealedMALA(batch_size=100)).latent
    draws = latent.sample(jax.random.key(0), (3050,))
    assert len(np.unique(draws[:, 0])) == 3050
    cases.assert_moments(draws[None], CASE.mean(1.0), CASE.covariance(1.0))


def test_default_sampler_of_a_constrained_latent():
    gebm = GEBM(dist.Gamma(2.0, 1.5), lambda x: 0.7 * x)  # a Gamma(2, 2.2)
    draws = gebm.sample(jax.random.key(0), (5000,))
    cases.assert_mean(draws[None], 2 / 2.2)
    cases.assert_mean((draws[None] - 2 / 2.2) ** 2, 2 / 2.2**2)


def test_own_sampler():
    gebm = GEBM(standard_normal(2), normal_energy, sampler=lambda latent, num, rng_key: jnp.full((num, 2), 7.0))
    assert gebm.sample(jax.random.key(0), (3,)).tolist() == [[7.0, 7.0]] * 3


def normal_energy(x):
    return 0.5 * jnp.sum(x**2)


def hierarchical_model(case, gebm):
    def model(y=None):
        mu = numpyro.sample("mu", dist.Normal(0.0, 1.0))
        with numpyro.plate("rows", len(case.y)):
            x = numpyro.sample("x", gebm)
            numpyro.sample("y", dist.Normal(x[:, 0] + mu, case.noise), obs=y)

    return model


def test_gebm_as_a_component_of_a_hierarchical_model():
    case = cases.hierarchy()
    model = hierarchical_model(case, linear_gaussian_gebm(case.beta))
    model = handlers.reparam(model, config={"x": LatentReparam()})
    draws = run(NUTS(model, init_strategy=init_to_prior), 1500, y=jnp.asarray(case.y))
    assert draws["x"].shape == (4, 1500, 3, 3)
    joint = np.concatenate([draws["mu"][..., None], draws["x_latent"].reshape(4, 1500, -1)], axis=-1)
    cases.assert_moments(joint, *case.posterior(), min_ess=1500)


@pytest.mark.parametrize("reparametrised", [False, True])
def test_predictive_draws_from_the_tilted_law(reparametrised):
    gebm = linear_gaussian_gebm(1.0)

    def model():
        numpyro.sample("x", gebm)

    if reparametrised:
        model = handlers.reparam(model, config={"x": LatentReparam()})
    x = Predictive(model, num_samples=4000)(jax.random.key(0))["x"]
    covariance = CASE.W @ CASE.covariance(1.0) @ CASE.W.T
    cases.assert_moments(np.asarray(x)[None], CASE.W @ CASE.mean(1.0) + CASE.b, covariance)


@pytest.mark.parametrize("kernel", [NUTS, KineticLangevin])
@pytest.mark.parametrize("site", ["latent", "plate", "reparametrised", "density"])
def test_setting_up_a_chain_never_runs_the_sampler(kernel, site):
    calls = []

    def sampler(latent, num_samples, rng_key):
        calls.append(1)
        return AnnealedMALA()(latent, num_samples, rng_key=rng_key)

    def plate():
        with numpyro.plate("rows", 3):
            numpyro.sample("z", gebm.latent)

    base = standard_normal(2) if site == "density" else Pushforward(standard_normal(2), lambda z: z)
    gebm = GEBM(base, normal_energy, sampler=sampler)
    models = {
        "latent": latent_model(gebm),
        "plate": plate,
        "reparametrised": handlers.reparam(lambda: numpyro.sample("x", gebm), config={"x": LatentReparam()}),
        "density": lambda: numpyro.sample("x", gebm),
    }
    run(kernel(models[site], init_strategy=init_to_prior), 2, 2, 1)
    assert not calls
    gebm.sample(jax.random.key(0))
    assert calls


def test_kinetic_langevin_on_the_latent_law():
    kernel = KineticLangevin(latent_model(linear_gaussian_gebm(1.0)), step_size=0.4, friction=2.0, num_steps=4)
    cases.assert_moments(run(kernel, 4000)["z"], CASE.mean(1.0), CASE.covariance(1.0))


@pytest.mark.parametrize("integrator, variance", [("ABOBA", 1.0), ("BAOAB", 1.0), ("OBABO", 1 / (1 - 0.25))])
def test_kinetic_langevin_has_the_exact_stationary_variance_of_its_splitting(integrator, variance):
    kernel = KineticLangevin(
        potential_fn=normal_potential,
        step_size=1.0,
        friction=2.0,
        num_steps=3,
        integrator=integrator,
        adapt_step_size=False,
    )
    draws = run(kernel, 4000, init_params={"z": jnp.zeros((4, 1))})["z"]
    cases.assert_moments(draws, [0.0], [[variance]])


def test_kinetic_langevin_on_constrained_sites():
    def model():
        numpyro.sample("a", dist.Gamma(4.0, 2.0))
        numpyro.sample("b", dist.Beta(3.0, 2.0))

    draws = run(KineticLangevin(model, step_size=0.2, num_steps=10), 2500)
    cases.assert_mean(draws["a"], 2.0, z_max=5)  # the splitting's own bias is of order h^2
    cases.assert_mean(draws["b"], 0.6, z_max=5)


@pytest.mark.parametrize("chain_method", slow_unless(["sequential", "vectorized", "parallel"], "vectorized"))
@pytest.mark.filterwarnings("ignore:There are not enough devices:UserWarning")
def test_chain_methods_agree(chain_method):
    kernel = KineticLangevin(
        latent_model(linear_gaussian_gebm(1.0)), step_size=0.3, friction=1.0, adapt_step_size=False
    )
    draws = run(kernel, 20, 5, 2, chain_method)["z"]
    reference = run(kernel, 20, 5, 2, "sequential")["z"]
    assert draws.shape == (2, 20, 2)
    np.testing.assert_allclose(draws, reference, atol=1e-10)


def test_a_kernel_can_be_reused_resumed_and_pickled():
    kernel = KineticLangevin(latent_model(linear_gaussian_gebm(1.0)), step_size=0.3)
    mcmc = MCMC(kernel, num_warmup=5, num_samples=10, progress_bar=False)
    mcmc.run(jax.random.key(0))
    first = mcmc.get_samples()["z"]
    state = mcmc.last_state
    mcmc.post_warmup_state = state
    mcmc.run(jax.random.key(9))
    assert int(mcmc.last_state.i) == int(state.i) + 10
    again = MCMC(kernel, num_warmup=5, num_samples=10, progress_bar=False)
    again.run(jax.random.key(0))
    np.testing.assert_array_equal(first, again.get_samples()["z"])


def test_a_kernel_on_a_potential_can_be_pickled():
    kernel = KineticLangevin(potential_fn=normal_potential, step_size=0.3)
    run(kernel, 2, 2, 1, init_params={"z": jnp.zeros(1)})
    copy = pickle.loads(pickle.dumps(kernel))
    draws = [run(k, 5, 2, 1, init_params={"z": jnp.zeros(1)})["z"] for k in (kernel, copy)]
    np.testing.assert_array_equal(*draws)


def test_initial_parameters_are_used():
    kernel = KineticLangevin(latent_model(linear_gaussian_gebm(1.0)), step_size=1e-9)
    draws = run(kernel, 3, 0, 1, init_params={"z": jnp.array([0.5, -2.0])})["z"]
    np.testing.assert_allclose(draws, np.broadcast_to([0.5, -2.0], (1, 3, 2)), atol=1e-6)


def test_a_step_into_a_potential_that_is_not_finite_is_not_taken_and_is_reported():
    def potential(z):
        return jnp.where(z["z"] > 1.0, jnp.nan, 0.5 * z["z"] ** 2).sum()

    kernel = KineticLangevin(potential_fn=potential, step_size=0.5, num_steps=1)
    mcmc = MCMC(kernel, num_warmup=0, num_samples=500, progress_bar=False)
    mcmc.run(jax.random.key(0), init_params={"z": jnp.zeros(1)}, extra_fields=("diverging",))
    z, diverging = mcmc.get_samples()["z"][:, 0], mcmc.get_extra_fields()["diverging"]
    assert bool(jnp.isfinite(z).all()) and z.max() <= 1.0
    assert 0 < diverging.sum() < 500
    np.testing.assert_array_equal(z[1:][diverging[1:]], z[:-1][diverging[1:]])
    assert len(np.unique(z)) == 500 - diverging.sum()


@pytest.mark.parametrize("kernel", [NUTS, KineticLangevin])
def test_number_of_traces_does_not_depend_on_the_number_of_draws(kernel):
    traces = []

    def energy(x):
        traces.append(1)
        return normal_energy(x)

    counts = []
    for num_samples in (50, 500):
        gebm = GEBM(standard_normal(2), energy)
        traces.clear()
        run(kernel(latent_model(gebm), init_strategy=init_to_prior), num_samples, 20, 2)
        counts.append(len(traces))
    assert counts[0] == counts[1] <= 8


def test_new_weights_do_not_compile_the_chain_again():
    traces = []
    networks = [nn.MLP((2,), (), (4,), rng_key=jax.random.key(i)) for i in range(2)]

    def model(gebm):
        numpyro.sample("z", gebm.latent)

    def energy(params, x):
        traces.append(1)
        return params(x)

    gebms = [GEBM(standard_normal(2), nn.Applied(energy, network)) for network in networks]
    mcmc = MCMC(KineticLangevin(model), num_warmup=5, num_samples=50, progress_bar=False)
    traces.clear()
    counts, draws = [], []
    for gebm in gebms:
        mcmc.run(jax.random.key(0), gebm)
        draws.append(mcmc.get_samples()["z"])
        counts.append(len(traces))
    assert not np.allclose(*draws)
    assert counts[1] - counts[0] <= 2  # the start of the chain is evaluated, the loop is not compiled again
