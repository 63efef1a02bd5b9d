"""The Langevin kernels under Pyro's MCMC and VectorizedMCMC: one contract, exact laws, warm-up, errors."""

import pickle

import arviz as az
import cases
import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.distributions import transforms
from pyro.infer import MCMC, NUTS
from pyro.infer.mcmc.util import initialize_model
from pyro_cases import CASE, linear_gaussian_gebm, standard_normal

from pyro_gebm import GEBM, LatentReparam, to_arviz
from pyro_gebm.dynamics import steps
from pyro_gebm.infer import GHMC, MALA, MALT, ULA, KineticLangevin, VectorizedMCMC, init_to_prior
from pyro_gebm.infer.potential import initialize_chains

KERNELS = {kernel.__name__: kernel for kernel in (ULA, MALA, KineticLangevin, MALT, GHMC)}
ADJUSTED = ("MALA", "MALT", "GHMC")


def run(kernel, num_samples, warmup_steps, num_chains, seed=0, *args, **kwargs):
    pyro.set_rng_seed(seed)
    mcmc = VectorizedMCMC(kernel, num_samples, warmup_steps, num_chains, disable_progbar=True, **kwargs)
    mcmc.run(*args)
    return mcmc


def run_stock(kernel, num_samples, warmup_steps, num_chains, seed=0, *args, **kwargs):
    pyro.set_rng_seed(seed)
    mcmc = MCMC(kernel, num_samples, warmup_steps, num_chains=num_chains, disable_progbar=True, **kwargs)
    mcmc.run(*args)
    return mcmc


RUNNERS = {"vectorized": run, "stock": run_stock}
sequentially = pytest.mark.filterwarnings("ignore:num_chains=.* is more than available_cpu:UserWarning")


def statistic(mcmc, name):
    return np.stack([report["sample_stats"][name].numpy() for report in mcmc._diagnostics])


def model():
    a = pyro.sample("a", dist.Gamma(4.0, 2.0))
    with pyro.plate("rows", 2):
        pyro.sample("z", linear_gaussian_gebm(1.0).latent)
    pyro.sample("y", dist.Normal(a, 1.0), obs=torch.tensor(1.5))


def potential(z):
    return 0.5 * (z["z"] ** 2).sum() + torch.logsumexp(z["a"], 0)


def starts(num_chains, dtype=torch.float64):
    return {"z": torch.zeros(num_chains, 2, dtype=dtype), "a": torch.ones(num_chains, 3, dtype=dtype)}


@sequentially
@pytest.mark.parametrize("runner", RUNNERS)
@pytest.mark.parametrize("name", KERNELS)
def test_contract_on_a_model(name, runner):
    kernel = KERNELS[name](model)
    mcmc = RUNNERS[runner](kernel, 6, 8, 3)
    draws = mcmc.get_samples(group_by_chain=True)
    assert draws["a"].shape == (3, 6) and draws["z"].shape == (3, 6, 2, 2)
    assert mcmc.get_samples()["z"].shape == (18, 2, 2) and mcmc.get_samples(5)["a"].shape == (5,)
    assert (draws["a"] > 0).all() and torch.isfinite(draws["z"]).all() and not draws["z"].requires_grad
    assert len(draws["a"][:, 0].unique()) == 3
    data = to_arviz(mcmc)
    assert all(value.shape == (3, 6) for value in data["sample_stats"].values())
    expected = {"acceptance_rate", "diverging", "energy", "energy_error", "lp", "n_steps", "step_size"}
    expected |= {"warmup_converged"} | ({"kinetic_temperature"} if name not in ("ULA", "MALA") else set())
    assert set(data["sample_stats"].data_vars) == expected
    assert set(mcmc.diagnostics()) >= {"a", "z", "divergences"}
    again = RUNNERS[runner](kernel, 6, 8, 3)  # the same kernel object
    torch.testing.assert_close(draws["z"], again.get_samples(group_by_chain=True)["z"], rtol=0, atol=0)


@sequentially
@pytest.mark.parametrize("runner", RUNNERS)
@pytest.mark.parametrize("name", KERNELS)
def test_contract_on_a_potential(name, runner):
    kernel = KERNELS[name](potential_fn=potential)
    draws = []
    for k in (kernel, pickle.loads(pickle.dumps(kernel))):
        mcmc = RUNNERS[runner](k, 5, 4, 2, initial_params=starts(2, torch.float32))
        draws.append(mcmc.get_samples(group_by_chain=True))
    assert draws[0]["z"].shape == (2, 5, 2) and draws[0]["a"].shape == (2, 5, 3)
    assert draws[0]["z"].dtype == draws[0]["a"].dtype == torch.float32
    torch.testing.assert_close(draws[0]["z"], draws[1]["z"], rtol=0, atol=0)


@pytest.mark.parametrize("runner", RUNNERS)
@pytest.mark.parametrize("name", KERNELS)
def test_start(name, runner):
    kernel = KERNELS[name](potential_fn=potential, step_size=1e-9, adapt_step_size=False)
    start = starts(1) if runner == "vectorized" else {name: value[0] for name, value in starts(1).items()}
    draws = RUNNERS[runner](kernel, 2, 0, 1, initial_params=start).get_samples()
    torch.testing.assert_close(draws["a"], torch.ones(2, 3), rtol=0, atol=1e-4)


def settled(name, **kwargs):
    """A kernel at an acceptance that leaves its test something to correct."""
    return KERNELS[name](target_accept_prob=0.75, **({} if name == "MALT" else {"num_steps": 8}), **kwargs)


def assert_accepts(mcmc):
    accept = statistic(mcmc, "acceptance_rate").mean()
    assert 0.6 < accept < 0.9, accept


@pytest.mark.parametrize("name", ADJUSTED)
def test_a_correlated_skewed_law(name):
    law = cases.skewed()
    inverse, shift, a = (torch.tensor(x) for x in (np.linalg.inv(law.L), law.shift, law.a))

    def skewed(params):
        y = inverse @ (params["x"] - shift)
        return (y.exp() - a * y).sum()

    num = 1500 if name == "MALA" else 600
    mcmc = run(settled(name, potential_fn=skewed), num, 2000, 64, initial_params={"x": torch.zeros(64, 5)})
    assert_accepts(mcmc)
    cases.assert_moments(mcmc.get_samples(group_by_chain=True)["x"], law.mean(), law.covariance())


@pytest.mark.parametrize("name", ADJUSTED)
def test_the_latent_law_of_a_linear_gaussian_gebm(name):
    gebm = linear_gaussian_gebm(1.0)
    mcmc = run(settled(name, model=lambda: pyro.sample("z", gebm.latent)), 400, 1000, 64)
    assert_accepts(mcmc)
    cases.assert_moments(mcmc.get_samples(group_by_chain=True)["z"], CASE.mean(1.0), CASE.covariance(1.0))


def test_the_statistical_test_sees_a_wrong_acceptance_ratio(monkeypatch):
    """The authors' MALA has gamma / 4 for 1 / (4 gamma), gamma = h^2 / 2: the second moments give it away."""
    h = 1.0
    monkeypatch.setattr(steps, "kinetic_energy", lambda v: (h**2 / 2) ** 2 * 0.5 * (v**2).sum(-1))
    kernel = MALA(potential_fn=lambda z: 0.5 * (z["x"] ** 2).sum(), step_size=h, adapt_step_size=False)
    draws = run(kernel, 400, 100, 64, initial_params={"x": torch.zeros(64, 5)}).get_samples(group_by_chain=True)["x"]
    with pytest.raises(AssertionError, match="standard errors"):
        cases.assert_moments(draws, np.zeros(5), np.eye(5), z_max=8)


@pytest.mark.parametrize("runner, num_chains", [("vectorized", 32), pytest.param("stock", 1, marks=pytest.mark.slow)])
def test_a_component_of_a_model(runner, num_chains):
    """Vectorized and sequential draws of a hierarchy have its exact law."""
    case = cases.hierarchy()

    def hierarchy(y):
        mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
        with pyro.plate("rows", len(case.y)):
            x = pyro.sample("x", linear_gaussian_gebm(case.beta))
            pyro.sample("y", dist.Normal(x[:, 0] + mu, case.noise), obs=y)

    kernel = GHMC(poutine.reparam(hierarchy, config={"x": LatentReparam()}), num_steps=5)
    mcmc = RUNNERS[runner](
        kernel, 22_000 // num_chains if num_chains > 1 else 4000, 1000, num_chains, 0, torch.tensor(case.y)
    )
    draws = mcmc.get_samples(group_by_chain=True)
    joint = np.concatenate([draws["mu"][..., None], draws["x_latent"].reshape(num_chains, -1, 6)], axis=-1)
    cases.assert_moments(joint, *case.posterior(), min_ess=1000)


def scaled_model():
    """A plate, a constrained scale and a GEBM site; given the draws, scale^2 is inverse gamma."""
    scale = pyro.sample("scale", dist.InverseGamma(3.0, 2.0)) ** 0.5
    with pyro.plate("rows", 4):
        z = pyro.sample("z", linear_gaussian_gebm(1.0).latent)
        pyro.sample("y", dist.Normal(z[:, 0], scale), obs=torch.tensor([0.3, -1.0, 0.8, 2.0]))


@pytest.mark.slow
@sequentially
def test_a_plate_a_constrained_scale_and_a_gebm_site():
    """The vectorised draws have the law of Pyro's own NUTS."""
    ours = run(GHMC(scaled_model), 500, 1500, 64).get_samples(group_by_chain=True)
    nuts = run_stock(NUTS(scaled_model, init_strategy=init_to_prior, max_plate_nesting=1), 700, 300, 1)
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
    gebm = linear_gaussian_gebm(1.0)
    for program, bare in ((lambda: pyro.sample("z", gebm.latent), True), (model, False)):
        start, potential, _ = initialize_chains(program, (), {}, 5, init_to_prior)
        assert ("_of_bare_latent" in potential.__qualname__) == bare
        assert potential(start).shape == (5,)


def test_gradients_of_parameters_are_not_touched():
    energy = torch.nn.Sequential(torch.nn.Linear(2, 1), torch.nn.Flatten(0))
    gebm = GEBM(standard_normal(2), energy)
    run(GHMC(lambda: pyro.sample("z", gebm.latent)), 2, 2, 4)
    assert all(parameter.grad is None for parameter in energy.parameters())


@pytest.mark.parametrize("name", ["GHMC", "MALT"])
@pytest.mark.parametrize("law", ["rotated", "narrow"])
@pytest.mark.slow
def test_defaults_on_badly_scaled_laws(name, law):
    """100 dimensions: condition number 1000 at beta 100 in rotated axes, and an isotropic law of scale 0.1."""
    random = np.random.default_rng(0)
    Q = np.linalg.qr(random.normal(size=(100, 100)))[0] if law == "rotated" else np.eye(100)
    precision = 1 + 100 * np.geomspace(1e-3, 1.0, 100) if law == "rotated" else np.full(100, 100.0)
    mean, P = random.normal(size=100) * 0.1, torch.tensor(Q * precision @ Q.T)
    at = torch.tensor(mean)
    kernel = KERNELS[name](potential_fn=lambda z: 0.5 * (z["z"] - at) @ P @ (z["z"] - at))
    mcmc = run(kernel, 500, 3000, 64, initial_params={"z": torch.randn(64, 100)})
    state = kernel.state.adapt_state
    assert state.warmup_converged and state.num_warmup_steps < 1500
    draws = (mcmc.get_samples(group_by_chain=True)["z"].numpy() - mean) @ Q
    for i in range(100):
        cases.assert_mean(draws[..., i], 0.0, z_max=5)
        cases.assert_mean(draws[..., i] ** 2, 1 / precision[i], z_max=5)


def test_the_warm_up_finds_scale_mass_and_step():
    """Standard deviations 10, 1, .1: the length scale is the largest, with a mass all are one."""
    deviation = torch.tensor([10.0, 1.0, 0.1])

    def wide(z):
        return 0.5 * ((z["z"] / deviation) ** 2).sum()

    found = []
    for adapt_mass_matrix in (False, True):
        kernel = GHMC(potential_fn=wide, adapt_mass_matrix=adapt_mass_matrix)
        run(kernel, 10, 3000, 64, initial_params={"z": torch.randn(64, 3)})
        found.append(kernel.state.adapt_state)
    plain, massive = found
    assert 8 < plain.length_scale < 12.5 and plain.step_size < 0.2
    torch.testing.assert_close(massive.scale, deviation, rtol=0.25, atol=0)
    assert 0.8 < massive.length_scale < 1.3 and massive.step_size > 0.8
    assert massive.warmup_converged and massive.num_warmup_steps < 3000


@pytest.mark.parametrize("runner", RUNNERS)
def test_the_warm_up_that_is_over_costs_nothing(runner):
    evaluations = []

    def counted(z):
        evaluations.append(1)
        return 0.5 * (z["z"] ** 2).sum()

    kernel = ULA(potential_fn=counted, step_size=0.2, adapt_step_size=False)
    start = {"z": torch.randn(8, 2)} if runner == "vectorized" else {"z": torch.zeros(2)}
    mcmc = RUNNERS[runner](kernel, 1, 5000, 8 if runner == "vectorized" else 1, initial_params=start)
    assert statistic(mcmc, "warmup_converged").all() and len(evaluations) < 3000


def test_a_warm_up_that_did_not_converge_says_so():
    assert not statistic(
        run(GHMC(potential_fn=potential), 3, 20, 2, initial_params=starts(2)), "warmup_converged"
    ).any()


@pytest.mark.parametrize(
    "integrator, temperature, variance", [("ABOBA", 4 / 3, 1.0), ("BAOAB", 3 / 4, 1.0), ("OBABO", 1.0, 4 / 3)]
)
def test_kinetic_temperature_shows_the_bias(integrator, temperature, variance):
    """On a Gaussian of frequency 1 at step 1; of OBABO it is the positions that are off."""
    kernel = KineticLangevin(
        potential_fn=lambda z: 0.5 * (z["z"] ** 2).sum(),
        step_size=1.0,
        friction=1.0,
        integrator=integrator,
        adapt_step_size=False,
    )
    mcmc = run(kernel, 500, 100, 16, initial_params={"z": torch.zeros(16, 4)})
    cases.assert_mean(statistic(mcmc, "kinetic_temperature"), temperature)
    cases.assert_mean(mcmc.get_samples(group_by_chain=True)["z"][..., 0].numpy() ** 2, variance)


def test_a_step_size_schedule():
    """The authors' decay, by ten every so many draws, freezes the chain."""
    kernel = ULA(
        potential_fn=potential, step_size=0.5, adapt_step_size=False, step_size_schedule=lambda i: 0.1 ** (i // 20)
    )
    steps = statistic(run(kernel, 60, 10, 2, initial_params=starts(2)), "step_size")
    np.testing.assert_allclose(steps, np.broadcast_to(0.5 * 0.1 ** (np.arange(60) // 20), (2, 60)))


def nan_beyond_three(z):
    return torch.where(z["z"].abs().sum() > 3, torch.nan, 0.5 * (z["z"] ** 2).sum())


@pytest.mark.parametrize("name", KERNELS)
def test_nan_is_never_accepted(name):
    mcmc = run(KERNELS[name](potential_fn=nan_beyond_three), 300, 300, 8, initial_params={"z": torch.zeros(8, 1)})
    assert mcmc.get_samples()["z"].abs().max() <= 3


@pytest.mark.parametrize("runner", RUNNERS)
@pytest.mark.parametrize("name", KERNELS)
def test_a_potential_that_stays_nan_stops_the_run(name, runner):
    def potential(z):
        return torch.where(z["z"].abs().sum() > 0, torch.nan, 0.0) + 0.0 * z["z"].sum()

    num_chains = 2 if runner == "vectorized" else 1
    start = torch.zeros(2, 1) if runner == "vectorized" else torch.zeros(1)
    with pytest.raises(RuntimeError, match="NaN for 100 draws in a row"):
        kernel = KERNELS[name](potential_fn=potential, adapt_step_size=False)
        RUNNERS[runner](kernel, 300, 50, num_chains, initial_params={"z": start})


@pytest.mark.parametrize("name", KERNELS)
@pytest.mark.parametrize(
    "kwargs, match",
    [
        ({"model": None}, "Only one of `model` or `potential_fn`"),
        ({"potential_fn": potential}, "Only one of `model` or `potential_fn`"),
        ({"step_size": 0.0}, "Expected step_size > 0; got 0"),
        ({"step_size": -1.0}, "Expected step_size > 0; got -1"),
        ({"target_accept_prob": 1.0}, r"Expected target_accept_prob in \(0, 1\); got 1"),
        ({"friction": -1.0}, "Expected friction >= 0 or None; got -1"),
        ({"num_steps": 0}, "Expected num_steps >= 1; got 0"),
        ({"trajectory_length": 0.0}, "Expected trajectory_length > 0 or None; got 0"),
    ],
)
def test_arguments(name, kwargs, match):
    (argument,) = kwargs
    has = {"friction": ("KineticLangevin", "GHMC", "MALT"), "trajectory_length": ("MALT",)}
    has["num_steps"] = ("ULA", "MALA", "KineticLangevin", "GHMC")
    if name not in has.get(argument, KERNELS):
        with pytest.raises(TypeError, match=argument):
            KERNELS[name](model, **kwargs)
        return
    with pytest.raises(ValueError, match=match):
        KERNELS[name](**{"model": model, **kwargs})


def discrete():
    pyro.sample("k", dist.Bernoulli(0.5))
    pyro.sample("z", dist.Normal(0.0, 1.0))


def subsampled():
    with pyro.plate("rows", 10, subsample_size=3):
        pyro.sample("z", dist.Normal(0.0, 1.0))


def observed():
    pyro.sample("z", dist.Normal(0.0, 1.0), obs=torch.tensor(0.0))


@pytest.mark.parametrize("runner", RUNNERS)
@pytest.mark.parametrize(
    "program, match",
    [(discrete, "site 'k' .* is discrete"), (subsampled, "plate 'rows' subsamples"), (observed, "model with latent")],
)
def test_models_that_are_refused(program, match, runner):
    with pytest.raises(ValueError, match=match):
        RUNNERS[runner](GHMC(program), 2, 2, 1)


def test_starts_that_are_refused():
    kernel = GHMC(potential_fn=lambda z: torch.where(z["z"] > 0, z["z"], torch.inf))
    with pytest.raises(ValueError, match="Expected a finite potential at the initial point"):
        run(kernel, 2, 2, 2, initial_params={"z": torch.tensor([1.0, -1.0])})
    with pytest.raises(ValueError, match="Expected `initial_params`"):
        run(kernel, 2, 2, 1)
    with pytest.raises(ValueError, match="must match the number of chains"):
        run(kernel, 2, 2, 3, initial_params={"z": torch.ones(2)})


def test_runners_that_are_refused():
    with pytest.raises(TypeError, match="or another ChainKernel; got NUTS. Use Pyro's"):
        VectorizedMCMC(NUTS(model), 10)
    for argument in ("num_samples", "num_chains", "thinning"):
        with pytest.raises(ValueError, match=f"Expected {argument} >= 1; got 0"):
            VectorizedMCMC(GHMC(model), **{"num_samples": 1, argument: 0})


def test_thinning_and_summary(capsys):
    long = run(GHMC(model, adapt_step_size=False), 12, 0, 3).get_samples(group_by_chain=True)["a"]
    mcmc = run(GHMC(model, adapt_step_size=False), 4, 0, 3, thinning=3)
    torch.testing.assert_close(mcmc.get_samples(group_by_chain=True)["a"], long[:, 2::3], rtol=0, atol=0)
    mcmc.summary()
    assert "n_eff" in capsys.readouterr().out


def test_effective_draws_per_gradient():
    """GHMC is not a random walk: on a standard normal in 50 dimensions ten steps make a draw nearly independent."""
    kernel = GHMC(potential_fn=lambda z: 0.5 * (z["z"] ** 2).sum())
    draws = run(kernel, 200, 1000, 32, initial_params={"z": torch.zeros(32, 50)}).get_samples(group_by_chain=True)["z"]
    assert min(az.ess(draws[..., i].numpy()) for i in range(5)) > 0.4 * 200 * 32
