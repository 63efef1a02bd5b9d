"""What only Pyro's kernels have: a potential that is batched, `VectorizedMCMC`, chains under the stock MCMC."""

import itertools
import math

import arviz as az
import hosts
import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.distributions import constraints, transforms
from pyro.infer import MCMC, NUTS
from pyro.infer.mcmc.util import initialize_model
from torch.distributions import biject_to

from pyro_gebm import GEBM
from pyro_gebm.infer import GHMC, MALA, ULA, VectorizedMCMC, init_to_prior
from pyro_gebm.infer.initialization import max_plate_nesting
from pyro_gebm.infer.potential import initialize_chains

HOST = hosts.get("pyro")

COUNTER = itertools.count()
QUIET = {"disable_progbar": True}


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
    nuts = MCMC(NUTS(scaled_model, init_strategy=init_to_prior, max_plate_nesting=1), 300, 200, disable_progbar=True)
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


def of_data(y):
    """Each x given its y is N(y / 2, 1 / 2)."""
    with pyro.plate("rows", len(y)):
        x = pyro.sample("x", dist.Normal(0.0, 1.0))
        pyro.sample("y", dist.Normal(x, 1.0), obs=y)


def potential_of_data(x, y):
    return (0.5 * x**2 + 0.5 * (y - x) ** 2 + math.log(2.0 * math.pi)).sum(-1)


ONE, FIFTY, BOTH = (torch.tensor(y, dtype=torch.float64) for y in ([1.0], [50.0], [1.0, 50.0]))


def started(kernel, y, num_chains=2):
    """All proposals of so large a step are rejected: the potential is that of the position, not of a step."""
    kernel = kernel(of_data, step_size=100.0, adapt_step_size=False)
    kernel.setup_chains(0, num_chains, None, y)
    return kernel


@pytest.mark.parametrize("kernel", [MALA, GHMC])
@pytest.mark.parametrize("by", ["state", "state_dict"])
def test_a_state_that_is_handed_on_has_the_potential_of_its_new_data(kernel, by):
    old, new, same = (started(kernel, y) for y in (ONE, FIFTY, ONE))
    old.advance()
    for other in (new, same):
        if by == "state":
            other.state = old.state
        else:
            other.load_state_dict(old.state_dict())
    x = old.positions()["x"]
    assert torch.equal(same.state.potential_energy, old.state.potential_energy)
    for other, y in ((new, FIFTY), (same, ONE)):
        torch.testing.assert_close(other.state.potential_energy, potential_of_data(x, y))
        other.advance()
        assert torch.equal(other.positions()["x"], x)
        torch.testing.assert_close(other.state.potential_energy, potential_of_data(x, y))


def test_a_chain_goes_on_from_the_parameters_that_it_is_given():
    """Pyro passes them to `sample`; a sweep of several kernels changes them between two steps."""
    kernel = started(MALA, ONE, 1)
    same = kernel.sample({"x": kernel.positions()["x"][0]})
    moved = kernel.sample({"x": same["x"] + 3.0})
    assert torch.equal(moved["x"], same["x"] + 3.0)
    torch.testing.assert_close(kernel.state.potential_energy, potential_of_data(moved["x"], ONE)[None])


def test_runs_on_other_data():
    """Also of another length, with a runner of another kind, and after a run that was not ended."""
    pyro.set_rng_seed(0)
    kernel = GHMC(of_data)
    for runner, y in ((VectorizedMCMC, ONE), (MCMC, BOTH), (VectorizedMCMC, FIFTY)):
        mcmc = runner(kernel, num_samples=40, warmup_steps=100, num_chains=1, **QUIET)
        mcmc.run(y)
        assert mcmc.get_samples()["x"].shape == (40, len(y))
        torch.testing.assert_close(mcmc.get_samples()["x"].mean(0), y / 2, atol=1.0, rtol=0.0)
        mcmc.run(2.0 * y)
        torch.testing.assert_close(mcmc.get_samples()["x"].mean(0), y, atol=1.0, rtol=0.0)


def subsampled():
    with pyro.plate("rows", 10, subsample_size=3):
        pyro.sample("z", dist.Normal(0.0, 1.0))


def observed():
    pyro.sample("z", dist.Normal(0.0, 1.0), obs=torch.tensor(0.0))


def of_a_moving_interval():
    pyro.sample("u", dist.Uniform(0.0, pyro.sample("a", dist.Uniform(1.0, 3.0))))


def of_a_moving_interval_in_plates():
    a = pyro.sample("a", dist.LogNormal(0.0, 1.0))
    with pyro.plate("rows", 3):
        pyro.sample("u", dist.Beta(2.0, 2.0).expand_by([3]).mask(True))
        pyro.sample("v", dist.Pareto(a, 1.0))


def of_a_moving_gebm():
    a = pyro.sample("a", dist.Uniform(1.0, 3.0))
    pyro.sample("z", GEBM(dist.Uniform(0.0, a), lambda x: x).latent)


def of_other_sites():
    pyro.sample("ab"[next(COUNTER) % 2], dist.Normal(0.0, 1.0))


REFUSED = [
    (subsampled, "plate 'rows' subsamples"),
    (observed, "model with latent"),
    (of_a_moving_interval, r"support of every latent site; that of site 'u' \(Uniform\) changes.*`u = a \* v`"),
    (of_a_moving_interval_in_plates, r"site 'v' \(Pareto\)"),
    (of_a_moving_gebm, r"site 'z' \(EnergyTiltedPrior\)"),
    (of_other_sites, r"the same latent sites in every trace.*: \['a', 'b'\]"),
]


@pytest.mark.parametrize("program, match", REFUSED)
def test_models_that_are_refused(program, match):
    with pytest.raises(ValueError, match=match):
        run(GHMC(program), 2, 2, 1)


def test_transforms_of_some_sites():
    """The others are found; a support with a transform of one's own may move."""
    ours = {"u": biject_to(constraints.interval(0.0, 3.0)).inv}
    a, u = run(GHMC(of_a_moving_interval, transforms=ours), 50, 50, 5).get_samples().values()
    assert (u < a).all() and (u > 0.0).all() and (a > 1.0).all()
    with pytest.raises(ValueError, match=r"transforms of the latent sites \['a', 'u'\]; got some of \['w'\]"):
        run(GHMC(of_a_moving_interval, transforms={"w": None}), 2, 2, 1)


def test_runners_that_are_refused():
    with pytest.raises(TypeError, match="or another ChainKernel; got NUTS. Use Pyro's `MCMC` for it"):
        VectorizedMCMC(NUTS(model), 10)
    for argument in ("num_samples", "num_chains", "thinning"):
        with pytest.raises(ValueError, match=f"Expected {argument} >= 1; got 0"):
            VectorizedMCMC(GHMC(model), **{"num_samples": 1, argument: 0})
    with pytest.raises(ValueError, match=r"leading axis of 3; got \(2,\)"):
        run(GHMC(potential_fn=lambda z: z["z"] ** 2), 2, 2, 3, initial_params={"z": torch.ones(2)})


def test_thinning_and_summary(capsys):
    long = run(GHMC(model, adapt_step_size=False), 12, 0, 3).get_samples(group_by_chain=True)["a"]
    mcmc = run(GHMC(model, adapt_step_size=False), 4, 0, 3, thinning=3)
    torch.testing.assert_close(mcmc.get_samples(group_by_chain=True)["a"], long[:, 2::3], rtol=0, atol=0)
    assert mcmc.get_samples().keys() == {"a", "z"} and mcmc.get_samples(5)["a"].shape == (5,)
    assert set(mcmc.diagnostics()) >= {"a", "z", "divergences"}
    mcmc.summary()
    assert "n_eff" in capsys.readouterr().out
