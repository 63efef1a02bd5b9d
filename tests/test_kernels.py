"""The kernels under the hosts' MCMC: one contract, exact laws, warm-up, errors.

`KERNELS` is the table of the contract: a new kernel is one row of it. `RandomWalk` shows what one takes.
"""

import dataclasses
import inspect
import pickle
from typing import Annotated

import arviz as az
import cases
import hosts
import numpy as np
import pytest
import scipy.special
import test_default_sampler

from gebm.draw_file import DrawFile
from gebm.langevin import StepInfo
from gebm.validation import integer, probability

if not hosts.missing("numpyro"):
    from numpyro_gebm import infer as numpyro_infer
    from numpyro_gebm.dynamics import keys
    from numpyro_gebm.dynamics import metropolis as numpyro_metropolis

    @dataclasses.dataclass(kw_only=True, eq=False)
    class NumPyroRandomWalk(numpyro_infer.LangevinKernel):
        """Random-walk Metropolis."""

        target_accept_prob: Annotated[float, probability] = 0.3
        num_steps: Annotated[int, integer] = 1

        def step(self, rng_key, chains, potential_and_grad, step_size, adapt_state):
            start = chains.kinetic
            z = start.z + step_size[:, None] * adapt_state.scale * keys.standard_normal(rng_key, start.z)
            potential_energy, z_grad = potential_and_grad(z)
            end = start._replace(z=z, grad_point=z, potential_energy=potential_energy, z_grad=z_grad)
            error = potential_energy - start.potential_energy
            accept = numpyro_metropolis.accepts(keys.fold_in(rng_key, 1), error)
            kinetic = numpyro_metropolis.choose(accept, end, start)
            return chains._replace(kinetic=kinetic), StepInfo(error, numpyro_metropolis.diverges(error))


if not hosts.missing("pyro"):
    import torch

    from pyro_gebm import infer as pyro_infer
    from pyro_gebm.dynamics import metropolis as pyro_metropolis

    @dataclasses.dataclass(kw_only=True, eq=False)
    class PyroRandomWalk(pyro_infer.LangevinKernel):
        """Random-walk Metropolis."""

        target_accept_prob: Annotated[float, probability] = 0.3
        num_steps: Annotated[int, integer] = 1

        def step(self, chains, potential_and_grad, step_size, adapt_state, last):
            start = chains.kinetic
            z = start.z + step_size * adapt_state.scale * torch.randn_like(start.z)
            potential_energy, z_grad = potential_and_grad(z)
            end = start._replace(z=z, grad_point=z, potential_energy=potential_energy, z_grad=z_grad)
            error = potential_energy - start.potential_energy
            kinetic = pyro_metropolis.choose(pyro_metropolis.accepts(error), end, start)
            return chains._replace(kinetic=kinetic), StepInfo(error, pyro_metropolis.diverges(error))


KERNELS = ("ULA", "MALA", "KineticLangevin", "MALT", "GHMC", "Ex2MCMC", "RandomWalk")
ADJUSTED = ("MALA", "MALT", "GHMC", pytest.param("Ex2MCMC", marks=pytest.mark.slow), "RandomWalk")
#: Statistics that a kernel records beside those of all.
OF_ITS_OWN = {
    **{name: {"kinetic_temperature"} for name in ("KineticLangevin", "MALT", "GHMC")},
    "Ex2MCMC": {"global_accept_prob"},
}
#: Arguments that not all kernels take.
ARGUMENTS = {
    "friction": ("KineticLangevin", "MALT", "GHMC"),
    "integrator": ("KineticLangevin",),
    "num_candidates": ("Ex2MCMC",),
    "num_steps": ("ULA", "MALA", "KineticLangevin", "GHMC", "Ex2MCMC", "RandomWalk"),
    "step_size_schedule": ("ULA", "KineticLangevin"),
    "trajectory_length": ("MALT",),
}


def kernel_of(host, name):
    """A kernel of `infer`, or the one of this file."""
    own = {"numpyro": "NumPyroRandomWalk", "pyro": "PyroRandomWalk"}[host.name]
    return globals()[own] if name == "RandomWalk" else getattr(host.infer, name)


def compiles(values, *fast):
    """Parameters of a test; as they compile for long, those of NumPyro are slow but the ones named."""
    params = [value if isinstance(value, tuple) else (value,) for value in values]
    slow = pytest.mark.slow_in("numpyro")
    return [pytest.param(*value, id="-".join(value), marks=[slow] * ("-".join(value) not in fast)) for value in params]


#: Every kernel with all chains together (`VectorizedMCMC`, `chain_method="vectorized"`) and one after the other.
RUNS = [(name, how) for name in KERNELS for how in ("together", "in turn")]


def model_of(host):
    """A positive site and two latents of a GEBM."""

    def model():
        a = host.ppl.sample("a", host.dist.Gamma(host.array(4.0), host.array(2.0)))
        with host.ppl.plate("rows", 2):
            host.ppl.sample("z", host.linear_gaussian(1.0).latent)
        host.ppl.sample("y", host.dist.Normal(a, 1.0), obs=host.array(1.5))

    return model


def potential(z):
    return 0.5 * (z["z"] ** 2).sum(-1) + 0.25 * (z["a"] ** 4).sum(-1)


def normal_potential(z):
    return 0.5 * (z["z"] ** 2).sum(-1)


def on_potential(host, name, potential_fn, like, scale=1.0, **kwargs):
    """A kernel on a potential; what draws from a prior gets normal laws of the shapes of `like`."""
    if name == "Ex2MCMC":
        kwargs["proposal"] = {
            site: host.dist.Normal(*(host.array(np.full(x.shape[1:], y, x.dtype)) for y in (0.0, scale)))
            for site, x in like.items()
        }
    return kernel_of(host, name)(potential_fn=potential_fn, **kwargs)


def starts(num_chains, dtype=np.float64):
    return {"z": np.zeros((num_chains, 2), dtype), "a": np.ones((num_chains, 3), dtype)}


def statistics(host, mcmc):
    return host.to_arviz(mcmc)["sample_stats"]


def warm_up_of(host, mcmc):
    return mcmc.last_state.adapt_state if host.name == "numpyro" else mcmc.kernel.state.adapt_state


def test_a_kernel_is_a_dataclass(host):
    kernel = host.infer.GHMC(normal_potential, friction=2)
    first, second, *rest = inspect.signature(host.infer.GHMC).parameters.values()
    assert [first.name, second.name] == ["model", "potential_fn"]
    assert first.kind == second.kind == inspect.Parameter.POSITIONAL_OR_KEYWORD
    assert all(parameter.kind == inspect.Parameter.KEYWORD_ONLY for parameter in rest)
    defaults = {parameter.name: parameter.default for parameter in rest}
    assert defaults["step_size"] == 0.1 and defaults["target_accept_prob"] == 0.8 and defaults["num_steps"] == 5
    assert isinstance(kernel, host.infer.ChainKernel)
    assert repr(kernel).startswith("GHMC(model=") and "friction=2.0" in repr(kernel)
    assert dataclasses.replace(kernel, friction=None).friction is None


@pytest.mark.parametrize(
    "name, how",
    compiles(RUNS, "GHMC-together", "MALT-together", "KineticLangevin-together", "RandomWalk-together"),
)
def test_contract_on_a_model(host, name, how):
    kernel = kernel_of(host, name)(model_of(host))
    mcmc = host.mcmc(kernel, 8, 6, 3, stock=how == "in turn")
    draws = host.draws(mcmc)
    assert draws["a"].shape == (3, 6) and draws["z"].shape == (3, 6, 2, 2)
    assert (draws["a"] > 0).all() and np.isfinite(draws["z"]).all()
    assert len(np.unique(draws["a"][:, 0])) == 3
    found = statistics(host, mcmc)
    assert all(value.shape == (3, 6) for value in found.values())
    expected = {"acceptance_rate", "diverging", "energy", "energy_error", "lp", "n_steps", "step_size"}
    assert set(found.data_vars) == expected | {"warmup_converged"} | OF_ITS_OWN.get(name, set())
    again = host.mcmc(kernel, 8, 6, 3, stock=how == "in turn")  # the same kernel object
    np.testing.assert_array_equal(draws["z"], host.draws(again)["z"])


@pytest.mark.parametrize("name, how", compiles(RUNS, "GHMC-together", "ULA-together", "RandomWalk-together"))
def test_contract_on_a_potential(host, name, how):
    kernel = on_potential(host, name, potential, starts(2, np.float32))
    draws = []
    for k in (kernel, pickle.loads(pickle.dumps(kernel))):
        draws.append(host.run(k, 4, 5, 2, start=starts(2, np.float32), stock=how == "in turn"))
    assert draws[0]["z"].shape == (2, 5, 2) and draws[0]["a"].shape == (2, 5, 3)
    assert draws[0]["z"].dtype == draws[0]["a"].dtype == np.float32
    np.testing.assert_array_equal(draws[0]["z"], draws[1]["z"])


@pytest.mark.parametrize("name", compiles(KERNELS, "RandomWalk"))
def test_contract_of_streams(host, name, tmp_path, monkeypatch):
    """A run that was stopped goes on, and ends with the draws of one that was not."""

    def stream(path, **kwargs):
        kernel = kernel_of(host, name)(model_of(host))
        return host.stream(kernel, path, 20, 12, 2, chunk_size=4, **kwargs)

    whole, append = stream(tmp_path / "whole.nc"), DrawFile.append

    def stop(self, *args):
        append(self, *args)
        if self.num_draws_written == 8:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(DrawFile, "append", stop)
        stream(tmp_path / "draws.nc")
    again = stream(tmp_path / "draws.nc", resume=True)
    for group in ("posterior", "sample_stats"):
        for variable in whole[group].data_vars:
            np.testing.assert_array_equal(whole[group][variable].values, again[group][variable].values)


@pytest.mark.parametrize(
    "name, how", compiles([run for run in RUNS if run[0] != "Ex2MCMC"], "GHMC-in turn", "ULA-in turn")
)
def test_start(host, name, how):
    kernel = kernel_of(host, name)(potential_fn=potential, step_size=1e-9, adapt_step_size=False)
    draws = host.run(kernel, 0, 2, 1, start=starts(1), stock=how == "in turn")
    np.testing.assert_allclose(draws["a"], 1.0, atol=1e-4)


def settled(host, name, **kwargs):
    """A kernel at an acceptance that leaves its test something to correct."""
    accept = 0.4 if name == "RandomWalk" else 0.75
    if name != "MALT":
        kwargs["num_steps"] = 8
    if name == "Ex2MCMC":
        kwargs["num_candidates"] = 8
    return kernel_of(host, name)(target_accept_prob=accept, **kwargs)


def assert_accepts(host, mcmc, name):
    accept = statistics(host, mcmc)["acceptance_rate"].values.mean()
    assert (0.25 if name == "RandomWalk" else 0.6) < accept < (0.55 if name == "RandomWalk" else 0.9), accept


@pytest.mark.parametrize("name", [*ADJUSTED[:-1], pytest.param("RandomWalk", marks=pytest.mark.slow)])
def test_a_correlated_skewed_law(host, name):
    law = cases.skewed()
    inverse, shift, a = (host.array(x) for x in (np.linalg.inv(law.L), law.shift, law.a))

    def skewed(z):
        y = inverse @ (z["x"] - shift)
        return (host.xp.exp(y) - a * y).sum(-1)

    start = np.random.default_rng(1).normal(size=(64, 5))
    num = {"MALA": 1500, "RandomWalk": 3000, "Ex2MCMC": 300}.get(name, 600)
    kwargs = {"potential_fn": skewed}
    if name == "Ex2MCMC":
        wide = host.dist.Normal(*(host.array(a) for a in (law.mean(), 1.5 * np.sqrt(np.diag(law.covariance())))))
        kwargs["proposal"] = {"x": wide}
    mcmc = host.mcmc(settled(host, name, **kwargs), 2000, num, 64, start={"x": start})
    assert_accepts(host, mcmc, name)
    cases.assert_moments(host.draws(mcmc)["x"], law.mean(), law.covariance())


@pytest.mark.parametrize("name", ADJUSTED)
def test_the_latent_law_of_a_linear_gaussian_gebm(host, name):
    gebm, case = host.linear_gaussian(1.0), cases.linear_gaussian()
    mcmc = host.mcmc(settled(host, name, model=lambda: host.ppl.sample("z", gebm.latent)), 1000, 400, 64)
    assert_accepts(host, mcmc, name)
    cases.assert_moments(host.draws(mcmc)["z"], case.mean(1.0), case.covariance(1.0))


def test_the_statistical_test_sees_a_wrong_acceptance_ratio(host, monkeypatch):
    """The authors' MALA has gamma / 4 for 1 / (4 gamma), gamma = h^2 / 2: the second moments give it away."""
    h = 1.0
    wrong = lambda v: (h**2 / 2) ** 2 * 0.5 * (v**2).sum(-1)  # noqa: E731
    monkeypatch.setattr(host.module("dynamics.steps"), "kinetic_energy", wrong)
    kernel = host.infer.MALA(potential_fn=normal_potential, step_size=h, adapt_step_size=False)
    draws = host.run(kernel, 100, 400, 64, start={"z": np.zeros((64, 5))})["z"]
    with pytest.raises(AssertionError, match="standard errors"):
        cases.assert_moments(draws, np.zeros(5), np.eye(5), z_max=8)


@pytest.mark.slow_in("pyro")
@pytest.mark.parametrize("num_chains", [32, 1])
def test_a_component_of_a_model(host, num_chains):
    """Draws of a hierarchy, of chains together and of one alone, have its exact law."""
    case = cases.hierarchy()

    def hierarchy(y):
        mu = host.ppl.sample("mu", host.dist.Normal(0.0, 1.0))
        with host.ppl.plate("rows", len(case.y)):
            x = host.ppl.sample("x", host.linear_gaussian(case.beta))
            host.ppl.sample("y", host.dist.Normal(x[:, 0] + mu, case.noise), obs=y)

    reparametrised = host.handlers.reparam(hierarchy, config={"x": host.LatentReparam()})
    num, num_steps = 20_000 // num_chains, 10
    if host.name == "pyro":  # a step costs more there
        num, num_steps = (22_000 // num_chains, 5) if num_chains > 1 else (1700, 10)
    kernel = host.infer.GHMC(reparametrised, num_steps=num_steps)
    draws = host.run(kernel, 1500, num, num_chains, host.array(case.y), stock=num_chains == 1)
    joint = np.concatenate([draws["mu"][..., None], draws["x_latent"].reshape(num_chains, -1, 6)], axis=-1)
    cases.assert_moments(joint, *case.posterior(), min_ess=500 if num == 1700 else 1500)


@pytest.mark.parametrize("name", ["GHMC", "MALT"])
@pytest.mark.parametrize("law", ["rotated", "narrow"])
@pytest.mark.slow
def test_defaults_on_badly_scaled_laws(host, name, law):
    """100 dimensions: condition number 1000 at beta 100 in rotated axes, and an isotropic law of scale 0.1."""
    random = np.random.default_rng(0)
    Q = np.linalg.qr(random.normal(size=(100, 100)))[0] if law == "rotated" else np.eye(100)
    precision = 1 + 100 * np.geomspace(1e-3, 1.0, 100) if law == "rotated" else np.full(100, 100.0)
    mean = random.normal(size=100) * 0.1
    at, P = host.array(mean), host.array(Q * precision @ Q.T)
    kernel = kernel_of(host, name)(potential_fn=lambda z: 0.5 * (z["z"] - at) @ P @ (z["z"] - at))
    mcmc = host.mcmc(kernel, 3000, 500, 64, start={"z": random.normal(size=(64, 100))})
    state = warm_up_of(host, mcmc)
    assert np.all(state.warmup_converged) and int(state.num_warmup_steps) < 1500
    draws = (host.draws(mcmc)["z"] - mean) @ Q
    for i in range(100):
        cases.assert_mean(draws[..., i], 0.0, z_max=5)
        cases.assert_mean(draws[..., i] ** 2, 1 / precision[i], z_max=5)


def test_the_warm_up_finds_scale_mass_and_step(host):
    """Standard deviations 10, 1, .1: the length scale is the largest, with a mass all are one."""
    deviation, start = np.array([10.0, 1.0, 0.1]), {"z": np.random.default_rng(0).normal(size=(64, 3))}
    over = host.array(1 / deviation)

    def found(**kwargs):
        kernel = host.infer.GHMC(potential_fn=lambda z: 0.5 * ((z["z"] * over) ** 2).sum(-1), **kwargs)
        state = warm_up_of(host, host.mcmc(kernel, 3000, 10, 64, start=start))
        return state, float(np.max(state.length_scale)), float(np.max(state.step_size))

    _, length_scale, step_size = found()
    assert 8 < length_scale < 12.5 and step_size < 0.2
    state, length_scale, step_size = found(adapt_mass_matrix=True)
    np.testing.assert_allclose(host.numpy(state.scale), deviation, rtol=0.25)
    assert 0.8 < length_scale < 1.3 and step_size > 0.8
    assert np.all(state.warmup_converged) and state.num_warmup_steps < 3000


def test_the_warm_up_that_is_over_costs_nothing(host):
    evaluations = []

    def counted(z):
        note = lambda: evaluations.append(1)  # noqa: E731
        note() if host.name == "pyro" else host.jax.debug.callback(note)
        return normal_potential(z)

    mcmc = host.mcmc(host.infer.GHMC(potential_fn=counted), 5000, 1, 8, start={"z": np.zeros((8, 2))})
    if host.name == "numpyro":
        host.jax.effects_barrier()
    state, batches = warm_up_of(host, mcmc), 1 if host.name == "pyro" else 8
    assert np.all(state.warmup_converged) and int(state.num_warmup_steps) < 2000
    assert statistics(host, mcmc)["warmup_converged"].values.all()
    assert len(evaluations) <= batches * (int(state.num_warmup_steps) + 10 + 2)


def test_a_warm_up_that_did_not_converge_says_so(host):
    mcmc = host.mcmc(host.infer.GHMC(potential_fn=potential), 20, 3, 2, start=starts(2))
    assert not statistics(host, mcmc)["warmup_converged"].values.any()


@pytest.mark.parametrize(
    "integrator, temperature, variance", [("ABOBA", 4 / 3, 1.0), ("BAOAB", 3 / 4, 1.0), ("OBABO", 1.0, 4 / 3)]
)
def test_kinetic_temperature_shows_the_bias(host, integrator, temperature, variance):
    """On a Gaussian of frequency 1 at step 1; of OBABO it is the positions that are off."""
    kernel = host.infer.KineticLangevin(
        potential_fn=normal_potential, step_size=1.0, friction=1.0, integrator=integrator, adapt_step_size=False
    )
    mcmc = host.mcmc(kernel, 100, 500, 16, start={"z": np.zeros((16, 4))})
    cases.assert_mean(statistics(host, mcmc)["kinetic_temperature"].values, temperature)
    cases.assert_mean(host.draws(mcmc)["z"][..., 0] ** 2, variance)


def test_a_step_size_schedule(host):
    """The authors' decay, by ten every so many draws, freezes the chain."""
    kernel = host.infer.ULA(
        potential_fn=potential, step_size=0.5, adapt_step_size=False, step_size_schedule=lambda i: 0.1 ** (i // 20)
    )
    steps = statistics(host, host.mcmc(kernel, 10, 60, 2, start=starts(2)))["step_size"]
    np.testing.assert_allclose(steps, np.broadcast_to(0.5 * 0.1 ** (np.arange(60) // 20), (2, 60)))


@pytest.mark.parametrize("name", compiles(KERNELS, "GHMC", "KineticLangevin"))
def test_nan_is_never_accepted(host, name):
    def nan_beyond_three(z):
        return host.xp.where(abs(z["z"]).sum(-1) > 3, host.xp.nan, normal_potential(z))

    kernel = on_potential(host, name, nan_beyond_three, {"z": np.zeros((1, 1))})
    assert np.abs(host.run(kernel, 300, 300, 8, start={"z": np.zeros((8, 1))})["z"]).max() <= 3


@pytest.mark.parametrize("name, how", [run for run in RUNS if run[1] == "together"] + [("GHMC", "in turn")])
def test_a_potential_that_stays_nan_stops_the_run(host, name, how):
    def nan(z):
        return host.xp.where(abs(z["z"]).sum(-1) > 0, host.xp.nan, 0.0) + 0.0 * z["z"].sum(-1)

    num_chains = 2 if how == "together" else 1
    kernel = on_potential(host, name, nan, {"z": np.zeros((1, 1))}, adapt_step_size=False)
    with pytest.raises(RuntimeError if host.name == "pyro" else Exception, match="NaN for 100 draws in a row"):
        host.mcmc(kernel, 50, 300, num_chains, start={"z": np.zeros((num_chains, 1))}, stock=how == "in turn")


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
        ({"num_candidates": 0}, "Expected num_candidates >= 1; got 0"),
        ({"num_steps": 0}, "Expected num_steps >= 1; got 0"),
        ({"trajectory_length": 0.0}, "Expected trajectory_length > 0 or None; got 0"),
        ({"integrator": "BABOA"}, "Expected integrator in .*'BAOAB'.*; got 'BABOA'"),
    ],
)
def test_arguments(host, name, kwargs, match):
    (argument,) = kwargs
    takes = name in ARGUMENTS.get(argument, KERNELS)
    with pytest.raises(ValueError if takes else TypeError, match=match if takes else argument):
        kernel_of(host, name)(**{"model": len, **kwargs})


@pytest.mark.parametrize("argument", ["model", "step_size", "friction", "num_steps", "step_size_schedule"])
def test_arguments_of_a_wrong_type(host, argument):
    with pytest.raises(TypeError, match=f"Expected {argument} to be .*; got 'ten'"):
        host.infer.KineticLangevin(**{"model": len, argument: "ten"})


def test_models_that_are_refused(host):
    def discrete():
        host.ppl.sample("k", host.dist.Bernoulli(host.array(0.5)))
        host.ppl.sample("z", host.dist.Normal(0.0, 1.0))

    for stock in (False, True):
        with pytest.raises(ValueError, match="site 'k' .* is discrete"):
            host.mcmc(host.infer.GHMC(discrete), 2, 2, 1, stock=stock)


def test_starts_that_are_refused(host):
    kernel = host.infer.GHMC(potential_fn=lambda z: host.xp.where(z["z"] > 0, z["z"], host.xp.inf).sum(-1))
    with pytest.raises(ValueError, match="Expected a finite potential at the initial point"):
        host.mcmc(kernel, 2, 2, 2, start={"z": np.array([[1.0], [-1.0]])})
    with pytest.raises(ValueError, match="Expected `init(ial)?_params`"):
        host.mcmc(kernel, 2, 2, 1)


def test_effective_draws_per_gradient(host):
    """GHMC is not a random walk: on a standard normal in 50 dimensions ten steps make a draw nearly independent."""
    kernel = host.infer.GHMC(potential_fn=normal_potential, num_steps=10)
    draws = host.run(kernel, 1000, 200, 32, start={"z": np.zeros((32, 50))})["z"]
    assert min(az.ess(draws[..., i]) for i in range(5)) > 0.4 * 200 * 32


@pytest.mark.slow_in("numpyro")
@pytest.mark.parametrize("stock", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_ex2mcmc_moves_between_modes(host, stock):
    """Modes 8 apart of weights .8 and .2, from a start in the heavier one; its acceptance is that of its weights."""
    gebm = test_default_sampler.two_modes(host)
    kernel = host.infer.Ex2MCMC(lambda: host.ppl.sample("z", gebm.latent))
    num_chains, num = (1, 4000) if stock else (64, 150)
    start = {"z": np.tile([-4.0, 0.0], (num_chains, 1))}
    mcmc = host.mcmc(kernel, 50, num, num_chains, start=start, stock=stock)
    draws = host.draws(mcmc)["z"]
    cases.assert_mean((draws[..., 0] > 0).astype(float), 0.2, min_ess=1000)
    cases.assert_mean(draws[..., 1] ** 2, 1.0, min_ess=1000)
    assert 0.5 < statistics(host, mcmc)["global_accept_prob"].values.mean() < 0.95


@pytest.mark.slow
def test_ex2mcmc_on_a_model(host):
    """A component of a hierarchy: candidates are prior draws of all sites, of the GEBM those of its base."""
    case = cases.hierarchy()

    def hierarchy(y):
        mu = host.ppl.sample("mu", host.dist.Normal(0.0, 1.0))
        with host.ppl.plate("rows", len(case.y)):
            x = host.ppl.sample("x", host.linear_gaussian(case.beta))
            host.ppl.sample("y", host.dist.Normal(x[:, 0] + mu, case.noise), obs=y)

    reparametrised = host.handlers.reparam(hierarchy, config={"x": host.LatentReparam()})
    kernel = host.infer.Ex2MCMC(reparametrised, num_candidates=8, num_steps=4)
    draws = host.run(kernel, 600, 400, 32, host.array(case.y))
    joint = np.concatenate([draws["mu"][..., None], draws["x_latent"].reshape(32, -1, 6)], axis=-1)
    cases.assert_moments(joint, *case.posterior(), min_ess=500)


@pytest.mark.parametrize("name, num_chains", [("Gamma", 32), pytest.param("Exponential", 4, marks=pytest.mark.slow)])
def test_ex2mcmc_on_a_constrained_site(host, name, num_chains):
    """A rate, whose posterior is a Gamma law; PyTorch cannot draw an Exponential in a batch."""
    prior, (a, b) = ("Gamma", (4.0, 2.0)) if name == "Gamma" else ("Exponential", (1.0, 1.0))

    def model():
        law = (
            host.dist.Gamma(host.array(a), host.array(b)) if prior == "Gamma" else host.dist.Exponential(host.array(b))
        )
        host.ppl.sample("y", host.dist.Poisson(host.ppl.sample("rate", law)), obs=host.array(3.0))

    kernel = host.infer.Ex2MCMC(model, num_candidates=4)
    draws = host.run(kernel, 50, 10_000 // num_chains, num_chains)["rate"]
    cases.assert_mean(draws, (a + 3.0) / (b + 1.0))
    cases.assert_mean(np.log(draws), scipy.special.digamma(a + 3.0) - np.log(b + 1.0))


def test_ex2mcmc_refuses(host):
    with pytest.raises(ValueError, match="Expected `proposal` with `potential_fn`"):
        host.infer.Ex2MCMC(potential_fn=normal_potential)
    wrong = {"z": host.normal(3)}
    with pytest.raises(
        ValueError, match=r"Expected `proposal` to have draws of shape {'z': \(2,\)}; got {'z': \(3,\)}"
    ):
        kernel = host.infer.Ex2MCMC(potential_fn=normal_potential, proposal=wrong)
        host.mcmc(kernel, 1, 1, 2, start={"z": np.zeros((2, 2))})

    def improper():
        flat = host.ppl.sample("flat", host.dist.ImproperUniform(host.dist.constraints.real, (), ()))
        host.ppl.sample("y", host.dist.Normal(flat, 1.0), obs=host.array(1.0))

    start = (host.ppl.infer if host.name == "numpyro" else host.ppl.infer.autoguide).init_to_value(
        values={"flat": host.array(0.0)}
    )
    with pytest.raises(ValueError, match="site 'flat' .* cannot. Pass `proposal`"):
        host.mcmc(host.infer.Ex2MCMC(improper, init_strategy=start), 1, 1, 2)
