"""Sampling: the host's NUTS, the kernel and the default sampler, against exact laws."""

import pickle

import cases
import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer import MCMC, NUTS, Predictive
from pyro_cases import CASE, linear_gaussian_gebm, standard_normal

from pyro_gebm import GEBM, LatentReparam, Pushforward
from pyro_gebm.infer import AnnealedMALA, KineticLangevin, init_to_prior
from pyro_gebm.infer.initialization import max_plate_nesting

pytestmark = pytest.mark.filterwarnings("ignore:num_chains=2 is more than available_cpu:UserWarning")


def run(kernel, num_samples=1200, warmup_steps=200, num_chains=2, model_args=(), **kwargs):
    mcmc = MCMC(kernel, num_samples, warmup_steps, num_chains=num_chains, disable_progbar=True, **kwargs)
    mcmc.run(*model_args)
    return mcmc.get_samples(group_by_chain=True)


def latent_model(gebm):
    return lambda: pyro.sample("z", gebm.latent)


def normal_energy(x):
    return 0.5 * x.square().sum(-1)


def normal_potential(z):
    return 0.5 * z["z"].square().sum()


@pytest.mark.parametrize("beta", [1.0, 100.0])
def test_nuts_on_the_latent_law(beta):
    kernel = NUTS(latent_model(linear_gaussian_gebm(beta)), init_strategy=init_to_prior, max_plate_nesting=0)
    cases.assert_moments(run(kernel)["z"], CASE.mean(beta), CASE.covariance(beta), min_ess=1000)


@pytest.mark.parametrize("beta", [0.0, 1.0, 100.0])
def test_default_sampler(beta):
    draws = linear_gaussian_gebm(beta).latent.sample((5000,))
    cases.assert_moments(draws[None], CASE.mean(beta), CASE.covariance(beta))


@pytest.mark.slow
@pytest.mark.parametrize("dim", [1, 10, 100])
@pytest.mark.parametrize("beta", [3.7, 100.0, 1000.0])
def test_default_sampler_is_within_three_percent_in_variance(dim, beta):
    gebm = GEBM(standard_normal(dim), lambda x: 0.5 * (x - 1.0).square().sum(-1), inverse_temperature=beta)
    draws = gebm.sample((200_000 // dim,))
    assert abs(draws.var() * (1 + beta) - 1) < 0.03
    assert abs(draws.mean() - beta / (1 + beta)) < 0.03 / np.sqrt(1 + beta)


def test_law_of_the_default_sampler_does_not_depend_on_the_batch():
    latent = linear_gaussian_gebm(1.0, sampler=AnnealedMALA(batch_size=500)).latent
    draws = latent.sample((3050,))
    assert len(np.unique(draws[:, 0])) == 3050
    cases.assert_moments(draws[None], CASE.mean(1.0), CASE.covariance(1.0))


def test_default_sampler_of_a_constrained_latent():
    gebm = GEBM(dist.Gamma(torch.tensor(2.0), 1.5), lambda x: 0.7 * x)  # a Gamma(2, 2.2)
    draws = gebm.sample((5000,))
    cases.assert_mean(draws[None], 2 / 2.2)
    cases.assert_mean((draws[None] - 2 / 2.2) ** 2, 2 / 2.2**2)


def test_own_sampler():
    gebm = GEBM(standard_normal(2), normal_energy, sampler=lambda latent, num: torch.full((num, 2), 7.0))
    assert gebm.sample((3,)).tolist() == [[7.0, 7.0]] * 3


def hierarchical_model(case, gebm):
    def model(y=None):
        mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
        with pyro.plate("rows", len(case.y)):
            x = pyro.sample("x", gebm)
            pyro.sample("y", dist.Normal(x[..., 0] + mu, case.noise), obs=y)

    return model


@pytest.mark.slow
def test_gebm_as_a_component_of_a_hierarchical_model():
    case = cases.hierarchy()
    model = hierarchical_model(case, linear_gaussian_gebm(case.beta))
    model = poutine.reparam(model, config={"x": LatentReparam()})
    kernel = NUTS(model, init_strategy=init_to_prior, max_plate_nesting=1)
    draws = run(kernel, model_args=(torch.as_tensor(case.y),))
    assert draws["x_latent"].shape == (2, 1200, 3, 2)
    joint = torch.cat([draws["mu"][..., None], draws["x_latent"].reshape(2, 1200, -1)], -1)
    cases.assert_moments(joint, *case.posterior(), min_ess=800)


@pytest.mark.parametrize("reparametrised", [False, True])
def test_predictive_draws_from_the_tilted_law(reparametrised):
    gebm = linear_gaussian_gebm(1.0, sampler=AnnealedMALA(num_steps=100))

    def model():
        with pyro.plate("rows", 4000):
            pyro.sample("x", gebm)

    if reparametrised:
        model = poutine.reparam(model, config={"x": LatentReparam()})
    x = Predictive(model, num_samples=1, return_sites=("x",))()["x"]
    covariance = CASE.W @ CASE.covariance(1.0) @ CASE.W.T
    cases.assert_moments(x, CASE.W @ CASE.mean(1.0) + CASE.b, covariance)


@pytest.mark.parametrize("kernel", [NUTS, KineticLangevin])
@pytest.mark.parametrize("site", ["latent", "plate", "reparametrised", "density"])
def test_setting_up_a_chain_never_runs_the_sampler(kernel, site):
    calls = []

    def sampler(latent, num_samples):
        calls.append(1)
        return AnnealedMALA()(latent, num_samples)

    def plate():
        with pyro.plate("rows", 3):
            pyro.sample("z", gebm.latent)

    base = standard_normal(2) if site == "density" else Pushforward(standard_normal(2), lambda z: z)
    gebm = GEBM(base, normal_energy, sampler=sampler)
    models = {
        "latent": latent_model(gebm),
        "plate": plate,
        "reparametrised": poutine.reparam(lambda: pyro.sample("x", gebm), config={"x": LatentReparam()}),
        "density": lambda: pyro.sample("x", gebm),
    }
    nesting = {"max_plate_nesting": int(site == "plate")} if kernel is NUTS else {}
    run(kernel(models[site], init_strategy=init_to_prior, **nesting), 2, 2, 1)
    assert not calls
    gebm.sample()
    assert calls


def test_max_plate_nesting():
    def model():
        with pyro.plate("a", 3, dim=-2), pyro.plate("b", 2):
            pyro.sample("x", dist.Normal(0.0, 1.0))

    assert max_plate_nesting(model, (), {}) == 2
    assert max_plate_nesting(lambda: pyro.sample("x", dist.Normal(0.0, 1.0)), (), {}) == 0


def test_kinetic_langevin_on_the_latent_law():
    kernel = KineticLangevin(latent_model(linear_gaussian_gebm(1.0)), step_size=0.6, friction=2.0, num_steps=3)
    cases.assert_moments(run(kernel, 2500)["z"], CASE.mean(1.0), CASE.covariance(1.0))


@pytest.mark.parametrize("integrator, variance", [("ABOBA", 1.0), ("BAOAB", 1.0), ("OBABO", 1 / (1 - 0.25))])
def test_kinetic_langevin_has_the_exact_stationary_variance_of_its_splitting(integrator, variance):
    kernel = KineticLangevin(
        potential_fn=normal_potential,
        step_size=1.0,
        friction=2.0,
        num_steps=2,
        integrator=integrator,
        adapt_step_size=False,
    )
    draws = run(kernel, 5000, num_chains=1, initial_params={"z": torch.zeros(2)})["z"]
    cases.assert_moments(draws, [0.0, 0.0], variance * np.eye(2))


@pytest.mark.slow
def test_kinetic_langevin_on_constrained_sites():
    def model():
        pyro.sample("a", dist.Gamma(torch.tensor(4.0), 2.0))
        pyro.sample("b", dist.Beta(torch.tensor(3.0), 2.0))

    draws = run(KineticLangevin(model, step_size=0.3, num_steps=6), 1000)
    cases.assert_mean(draws["a"], 2.0, z_max=5, min_ess=500)  # the splitting's own bias is of order h^2
    cases.assert_mean(draws["b"], 0.6, z_max=5, min_ess=500)


def test_a_kernel_can_be_reused_and_pickled():
    kernel = KineticLangevin(latent_model(linear_gaussian_gebm(1.0)), step_size=0.3)
    draws = []
    for _ in range(2):
        pyro.set_rng_seed(0)
        draws.append(run(kernel, 10, 5, 1)["z"])
    torch.testing.assert_close(*draws, rtol=0, atol=0)
    kernel = KineticLangevin(potential_fn=normal_potential, step_size=0.3)
    run(kernel, 2, 2, 1, initial_params={"z": torch.zeros(1)})
    draws = []
    for k in (kernel, pickle.loads(pickle.dumps(kernel))):
        pyro.set_rng_seed(0)
        draws.append(run(k, 5, 2, 1, initial_params={"z": torch.zeros(1)})["z"])
    torch.testing.assert_close(*draws, rtol=0, atol=0)


def test_initial_parameters_are_used():
    kernel = KineticLangevin(latent_model(linear_gaussian_gebm(1.0)), step_size=1e-9)
    draws = run(kernel, 3, 0, 1, initial_params={"z": torch.tensor([0.5, -2.0])})["z"]
    torch.testing.assert_close(draws, torch.tensor([0.5, -2.0]).expand(1, 3, 2), atol=1e-6, rtol=0)


def test_a_step_into_a_potential_that_is_not_finite_is_not_taken_and_is_reported():
    def potential(z):
        return torch.where(z["z"] > 1.0, torch.nan, 0.5 * z["z"] ** 2).sum()

    kernel = KineticLangevin(potential_fn=potential, step_size=0.5, num_steps=1)
    mcmc = MCMC(kernel, 500, 0, initial_params={"z": torch.zeros(1)}, disable_progbar=True)
    mcmc.run()
    z, diverging = mcmc.get_samples()["z"][:, 0], mcmc._diagnostics[0]["sample_stats"]["diverging"]
    assert torch.isfinite(z).all() and z.max() <= 1.0
    assert 0 < diverging.sum() < 500
    torch.testing.assert_close(z[1:][diverging[1:]], z[:-1][diverging[1:]], rtol=0, atol=0)
    assert len(z.unique()) == 500 - diverging.sum()
    assert mcmc.diagnostics()["divergences"]["chain 0"] == diverging.nonzero().flatten().tolist()
