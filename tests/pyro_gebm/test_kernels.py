"""What only Pyro's kernels have: a potential that is batched, `VectorizedMCMC`, chains under the stock MCMC."""

import arviz as az
import hosts
import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.distributions import transforms
from pyro.infer import MCMC, NUTS
from pyro.infer.mcmc.util import initialize_model

from pyro_gebm import GEBM
from pyro_gebm.infer import GHMC, ULA, VectorizedMCMC, init_to_prior
from pyro_gebm.infer.initialization import max_plate_nesting
from pyro_gebm.infer.potential import initialize_chains

HOST = hosts.get("pyro")


def run(kernel, num_samples, warmup_steps, num_chains, **kwargs):
    pyro.set_rng_seed(0)
    mcmc = VectorizedMCMC(kernel, num_samples, warmup_steps, num_chains, disable_progbar=True, **kwargs)
    mcmc.run()
    return mcmc


def model():
    a = pyro.sample("a", dist.Gamma(4.0, 2.0))
    with pyro.plate("rows", 2):
        pyro.sample("z", HOST.linear_gaussian(1.0).latent)
    pyro.sample("y", dist.Normal(a, 1.0), obs=torch.tensor(1.5))


def scaled_model():
    """A plate, a constrained scale and a GEBM site; given the draws, scale^2 is inverse gamma."""
    scale = pyro.sample("scale", dist.InverseGamma(3.0, 2.0)) ** 0.5
    with pyro.plate("rows", 4):
        z = pyro.sample("z", HOST.linear_gaussian(1.0).latent)
        pyro.sample("y", dist.Normal(z[:, 0], scale), obs=torch.tensor([0.3, -1.0, 0.8, 2.0]))


@pytest.mark.slow
def test_a_plate_a_constrained_scale_and_a_gebm_site():
    """The vectorised draws have the law of Pyro's own NUTS."""
    ours = run(GHMC(scaled_model), 500, 1500, 64).get_samples(group_by_chain=True)
    nuts = MCMC(NUTS(scaled_model, init_strategy=init_to_prior, max_plate_nesting=1), 700, 300, disable_progbar=True)
    nuts.run()
    theirs = nuts.get_samples(group_by_chain=True)
    for name in ("scale", "z"):
        for i in range(1 if name == "scale" else 2):
            a, b = ((d[name] if name == "scale" else d[name][..., 1, i]).numpy() for d in (ours, theirs))
            for f in (lambda x: x, np.square):
                errors = [f(x).std() / np.sqrt(az.ess(f(x))) for x in (a, b)]
                assert abs(f(a).mean() - f(b).mean()) < 4 * np.hypot(*errors)


def simplex():
    weights = pyro.sample("weights", dist.Dirichlet(torch.tensor([2.0, 1.0, 3.0])))
    pyro.sample("y", dist.Categorical(weights), obs=torch.tensor(1))


def cholesky():
    pyro.sample("L", dist.LKJCholesky(3, 2.0))


def flow():
    base = dist.Normal(torch.zeros(2), 1.0).to_event(1)
    affine = transforms.AffineTransform(torch.tensor([1.0, -1.0]), torch.tensor([2.0, 0.5]))
    pyro.sample("x", dist.TransformedDistribution(base, [affine]))


def masked():
    with (
        pyro.poutine.scale(scale=0.5),
        pyro.plate("rows", 3),
        pyro.poutine.mask(mask=torch.tensor([True, False, True])),
    ):
        pyro.sample("z", dist.Normal(1.0, 2.0))


@pytest.mark.parametrize("program", [model, scaled_model, simplex, cholesky, flow, masked])
def test_the_potential_of_many_chains_is_that_of_pyro(program):
    pyro.set_rng_seed(0)
    start, batched, found = initialize_chains(program, (), {}, 5, init_to_prior)
    _, stock, expected, _ = initialize_model(program, init_strategy=init_to_prior, max_plate_nesting=1)
    assert found.keys() == expected.keys()
    values = [stock({name: value[i] for name, value in start.items()}) for i in range(5)]
    torch.testing.assert_close(batched(start), torch.stack(values), rtol=1e-10, atol=1e-10)


def test_the_batched_density_of_a_bare_latent_is_used():
    gebm = HOST.linear_gaussian(1.0)
    for program, bare in ((lambda: pyro.sample("z", gebm.latent), True), (model, False)):
        start, potential, _ = initialize_chains(program, (), {}, 5, init_to_prior)
        assert ("_of_bare_latent" in potential.__qualname__) == bare
        assert potential(start).shape == (5,)


def test_gradients_of_parameters_are_not_touched():
    energy = torch.nn.Sequential(torch.nn.Linear(2, 1), torch.nn.Flatten(0))
    gebm = GEBM(HOST.normal(2), energy)
    run(GHMC(lambda: pyro.sample("z", gebm.latent)), 2, 2, 4)
    assert all(parameter.grad is None for parameter in energy.parameters())


def test_max_plate_nesting():
    def model():
        with pyro.plate("a", 3, dim=-2), pyro.plate("b", 2):
            pyro.sample("x", dist.Normal(0.0, 1.0))

    assert max_plate_nesting(model, (), {}) == 2
    assert max_plate_nesting(lambda: pyro.sample("x", dist.Normal(0.0, 1.0)), (), {}) == 0


def test_the_warm_up_that_is_over_costs_nothing_under_the_stock_mcmc():
    evaluations = []

    def counted(z):
        evaluations.append(1)
        return 0.5 * (z["z"] ** 2).sum()

    kernel = ULA(potential_fn=counted, step_size=0.2, adapt_step_size=False)
    mcmc = MCMC(kernel, 1, 5000, initial_params={"z": torch.zeros(2)}, disable_progbar=True)
    mcmc.run()
    assert mcmc._diagnostics[0]["sample_stats"]["warmup_converged"].all() and len(evaluations) < 3000


def subsampled():
    with pyro.plate("rows", 10, subsample_size=3):
        pyro.sample("z", dist.Normal(0.0, 1.0))


def observed():
    pyro.sample("z", dist.Normal(0.0, 1.0), obs=torch.tensor(0.0))


@pytest.mark.parametrize("program, match", [(subsampled, "plate 'rows' subsamples"), (observed, "model with latent")])
def test_models_that_are_refused(program, match):
    with pytest.raises(ValueError, match=match):
        run(GHMC(program), 2, 2, 1)


def test_runners_that_are_refused():
    with pytest.raises(TypeError, match="or another ChainKernel; got NUTS. Use Pyro's `MCMC` for it"):
        VectorizedMCMC(NUTS(model), 10)
    for argument in ("num_samples", "num_chains", "thinning"):
        with pytest.raises(ValueError, match=f"Expected {argument} >= 1; got 0"):
            VectorizedMCMC(GHMC(model), **{"num_samples": 1, argument: 0})
    with pytest.raises(ValueError, match="must match the number of chains"):
        run(GHMC(potential_fn=lambda z: z["z"] ** 2), 2, 2, 3, initial_params={"z": torch.ones(2)})


def test_thinning_and_summary(capsys):
    long = run(GHMC(model, adapt_step_size=False), 12, 0, 3).get_samples(group_by_chain=True)["a"]
    mcmc = run(GHMC(model, adapt_step_size=False), 4, 0, 3, thinning=3)
    torch.testing.assert_close(mcmc.get_samples(group_by_chain=True)["a"], long[:, 2::3], rtol=0, atol=0)
    assert mcmc.get_samples().keys() == {"a", "z"} and mcmc.get_samples(5)["a"].shape == (5,)
    assert set(mcmc.diagnostics()) >= {"a", "z", "divergences"}
    mcmc.summary()
    assert "n_eff" in capsys.readouterr().out
