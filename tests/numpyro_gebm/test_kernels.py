"""The Langevin kernels: one contract, exact laws, warm-up, errors."""

import os
import pickle
import subprocess
import sys

import arviz as az
import cases
import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from jax.scipy.special import logsumexp
from marks import slow_unless
from numpyro import handlers
from numpyro.infer import MCMC
from numpyro_cases import CASE, linear_gaussian_gebm, standard_normal

from numpyro_gebm import GEBM, LatentReparam, to_arviz
from numpyro_gebm.dynamics import steps
from numpyro_gebm.infer import GHMC, MALA, MALT, ULA, KineticLangevin

KERNELS = {kernel.__name__: kernel for kernel in (ULA, MALA, KineticLangevin, MALT, GHMC)}
ADJUSTED = ("MALA", "MALT", "GHMC")


def run(kernel, num_samples, num_warmup, num_chains, chain_method="vectorized", key=0, **kwargs):
    mcmc = MCMC(
        kernel,
        num_warmup=num_warmup,
        num_samples=num_samples,
        num_chains=num_chains,
        chain_method=chain_method,
        progress_bar=False,
    )
    mcmc.run(jax.random.key(key), **kwargs)
    return mcmc


def model():
    a = numpyro.sample("a", dist.Gamma(4.0, 2.0))
    with numpyro.plate("rows", 2):
        numpyro.sample("z", linear_gaussian_gebm(1.0).latent)
    numpyro.sample("y", dist.Normal(a, 1.0), obs=1.5)


def potential(z):
    return 0.5 * jnp.sum(z["z"] ** 2) + logsumexp(z["a"])


def starts(num_chains, dtype=jnp.float64):
    shape = () if num_chains == 1 else (num_chains,)
    return {"z": jnp.zeros((*shape, 2), dtype), "a": jnp.ones((*shape, 3), dtype)}


def contract(chain_methods, *fast):
    """Every kernel with every chain method, all slow but `fast`, as they compile for long.

    A chain method of one's own is the same shell around every kernel: GHMC stands for all.
    """
    return [
        pytest.param(
            name,
            method,
            id=f"{name}-{label}",
            marks=[pytest.mark.slow] * ((name, label) not in fast),
        )
        for name in KERNELS
        for label, method in chain_methods.items()
        if label != "vmap" or name == "GHMC"
    ]


@pytest.mark.filterwarnings("ignore:Some donated buffers were not usable")  # of NumPyro's loop under `jax.vmap`
@pytest.mark.parametrize(
    "name, chain_method",
    contract(
        {"sequential": "sequential", "vectorized": "vectorized", "vmap": jax.vmap},
        *(("GHMC", "vmap"), ("GHMC", "vectorized"), ("MALT", "vectorized"), ("KineticLangevin", "vectorized")),
    ),
)
def test_contract_on_a_model(name, chain_method):
    kernel = KERNELS[name](model)
    mcmc = run(kernel, 6, 8, 3, chain_method)
    draws = mcmc.get_samples(group_by_chain=True)
    assert draws["a"].shape == (3, 6) and draws["z"].shape == (3, 6, 2, 2)
    assert (draws["a"] > 0).all() and np.isfinite(draws["z"]).all()
    assert len(np.unique(draws["a"][:, 0])) == 3
    data = to_arviz(mcmc)
    assert all(value.shape == (3, 6) for value in data["sample_stats"].values())
    expected = {"acceptance_rate", "diverging", "energy", "energy_error", "lp", "n_steps", "step_size"}
    expected |= {"warmup_converged"} | ({"kinetic_temperature"} if name not in ("ULA", "MALA") else set())
    assert set(data["sample_stats"].data_vars) == expected
    again = run(kernel, 6, 8, 3, chain_method)  # the same kernel object
    np.testing.assert_array_equal(draws["z"], again.get_samples(group_by_chain=True)["z"])


@pytest.mark.parametrize(
    "name, chain_method",
    contract({"sequential": "sequential", "vectorized": "vectorized"}, ("GHMC", "vectorized"), ("ULA", "vectorized")),
)
def test_contract_on_a_potential(name, chain_method):
    kernel = KERNELS[name](potential_fn=potential)
    mcmc = run(kernel, 5, 4, 2, chain_method, init_params=starts(2, jnp.float32))
    draws = mcmc.get_samples(group_by_chain=True)
    assert draws["z"].shape == (2, 5, 2) and draws["a"].shape == (2, 5, 3)
    assert draws["z"].dtype == draws["a"].dtype == jnp.float32
    assert mcmc.last_state.potential_energy.dtype == mcmc.last_state.adapt_state.step_size.dtype == jnp.float32
    mcmc.post_warmup_state = pickle.loads(pickle.dumps(jax.tree.map(np.asarray, _without_key(mcmc.last_state))))
    mcmc.post_warmup_state = mcmc.post_warmup_state._replace(rng_key=mcmc.last_state.rng_key)
    mcmc.run(jax.random.key(1))
    assert int(np.max(mcmc.last_state.i)) == 14  # resumed, without another warm-up
    copy = pickle.loads(pickle.dumps(kernel))
    twin = run(copy, 5, 4, 2, chain_method, init_params=starts(2, jnp.float32))
    np.testing.assert_array_equal(draws["z"], twin.get_samples(group_by_chain=True)["z"])


def _without_key(state):
    return state._replace(rng_key=jnp.zeros(()))


@pytest.mark.slow
def test_chains_in_parallel():
    """On two devices, in a process of its own."""
    code = """
import jax, numpyro, numpyro.distributions as dist
from numpyro.infer import MCMC
from numpyro_gebm import infer
for name in ("ULA", "MALA", "KineticLangevin", "MALT", "GHMC"):
    kernel = getattr(infer, name)(lambda: numpyro.sample("z", dist.Normal(0.0, 1.0)))
    mcmc = MCMC(kernel, num_warmup=8, num_samples=5, num_chains=2, chain_method="parallel", progress_bar=False)
    mcmc.run(jax.random.key(0))
    z = mcmc.get_samples(group_by_chain=True)["z"]
    assert z.shape == (2, 5) and float(abs(z[0] - z[1]).min()) > 0
print("done")
"""
    env = {**os.environ, "XLA_FLAGS": "--xla_force_host_platform_device_count=2"}
    done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True)
    assert done.stdout.strip() == "done", done.stderr[-2000:]


@pytest.mark.parametrize("name", slow_unless(KERNELS, "GHMC", "ULA"))
def test_start_and_raw_keys(name):
    kernel = KERNELS[name](potential_fn=potential, step_size=1e-9, adapt_step_size=False)
    mcmc = MCMC(kernel, num_warmup=0, num_samples=2, progress_bar=False)
    mcmc.run(jax.random.PRNGKey(0), init_params=starts(1))
    np.testing.assert_allclose(mcmc.get_samples()["a"], 1.0, atol=1e-4)


@pytest.mark.parametrize("name", slow_unless(KERNELS, "GHMC", "MALT"))
def test_number_of_traces_does_not_depend_on_the_number_of_draws(name):
    counts = []
    for num_samples in (20, 200):
        traces = []
        gebm = GEBM(standard_normal(2), lambda x, traces=traces: traces.append(1) or 0.5 * jnp.sum(x**2))
        traces.clear()
        run(KERNELS[name](lambda gebm=gebm: numpyro.sample("z", gebm.latent)), num_samples, 20, 2)
        counts.append(len(traces))
    assert counts[0] == counts[1] <= 8


def settled(name, **kwargs):
    """A kernel at an acceptance that leaves its test something to correct."""
    return KERNELS[name](target_accept_prob=0.75, **({} if name == "MALT" else {"num_steps": 8}), **kwargs)


def assert_accepts(mcmc):
    accept = np.asarray(mcmc.get_extra_fields()["accept_prob"]).mean()
    assert 0.6 < accept < 0.9, accept


@pytest.mark.parametrize("name", ADJUSTED)
def test_a_correlated_skewed_law(name):
    law = cases.skewed()
    inverse, shift, a = jnp.asarray(np.linalg.inv(law.L)), jnp.asarray(law.shift), jnp.asarray(law.a)

    def skewed(x):
        y = inverse @ (x - shift)
        return jnp.sum(jnp.exp(y) - a * y)

    start = jax.random.normal(jax.random.key(1), (64, 5))
    mcmc = run(settled(name, potential_fn=skewed), 1500 if name == "MALA" else 600, 2000, 64, init_params=start)
    assert_accepts(mcmc)
    cases.assert_moments(mcmc.get_samples(group_by_chain=True), law.mean(), law.covariance())


@pytest.mark.parametrize("name", ADJUSTED)
def test_the_latent_law_of_a_linear_gaussian_gebm(name):
    gebm = linear_gaussian_gebm(1.0)
    mcmc = run(settled(name, model=lambda: numpyro.sample("z", gebm.latent)), 400, 1000, 64)
    assert_accepts(mcmc)
    cases.assert_moments(mcmc.get_samples(group_by_chain=True)["z"], CASE.mean(1.0), CASE.covariance(1.0))


def test_the_statistical_test_sees_a_wrong_acceptance_ratio(monkeypatch):
    """The authors' MALA has gamma / 4 for 1 / (4 gamma), gamma = h^2 / 2: the second moments give it away."""
    h = 1.0
    monkeypatch.setattr(steps, "kinetic_energy", lambda v: (h**2 / 2) ** 2 * 0.5 * jnp.sum(v**2, -1))
    kernel = MALA(potential_fn=lambda z: 0.5 * jnp.sum(z**2), step_size=h, adapt_step_size=False)
    draws = run(kernel, 400, 100, 64, init_params=jnp.zeros((64, 5))).get_samples(group_by_chain=True)
    with pytest.raises(AssertionError, match="standard errors"):
        cases.assert_moments(draws, np.zeros(5), np.eye(5), z_max=8)


@pytest.mark.parametrize("chain_method, num_chains", [("vectorized", 32), ("sequential", 1)])
def test_a_component_of_a_model(chain_method, num_chains):
    case = cases.hierarchy()

    def hierarchy(y):
        mu = numpyro.sample("mu", dist.Normal(0.0, 1.0))
        with numpyro.plate("rows", len(case.y)):
            x = numpyro.sample("x", linear_gaussian_gebm(case.beta))
            numpyro.sample("y", dist.Normal(x[:, 0] + mu, case.noise), obs=y)

    reparametrised = handlers.reparam(hierarchy, config={"x": LatentReparam()})
    mcmc = run(GHMC(reparametrised), 20_000 // num_chains, 1500, num_chains, chain_method, y=jnp.asarray(case.y))
    draws = mcmc.get_samples(group_by_chain=True)
    joint = np.concatenate([draws["mu"][..., None], draws["x_latent"].reshape(num_chains, -1, 6)], axis=-1)
    cases.assert_moments(joint, *case.posterior(), min_ess=1500)


@pytest.mark.parametrize("name", ["GHMC", "MALT"])
@pytest.mark.parametrize("law", ["rotated", "narrow"])
@pytest.mark.slow
def test_defaults_on_badly_scaled_laws(name, law):
    """100 dimensions: condition number 1000 at beta 100 in rotated axes, and an isotropic law of scale 0.1."""
    random = np.random.default_rng(0)
    Q = np.linalg.qr(random.normal(size=(100, 100)))[0] if law == "rotated" else np.eye(100)
    precision = 1 + 100 * np.geomspace(1e-3, 1.0, 100) if law == "rotated" else np.full(100, 100.0)
    mean, P = random.normal(size=100) * 0.1, jnp.asarray(Q * precision @ Q.T)
    start = jax.random.normal(jax.random.key(1), (64, 100))
    kernel = KERNELS[name](potential_fn=lambda z: 0.5 * (z - mean) @ P @ (z - mean))
    mcmc = run(kernel, 500, 3000, 64, init_params=start)
    state = mcmc.last_state.adapt_state
    assert state.warmup_converged.all() and int(state.num_warmup_steps) < 1500
    draws = (np.asarray(mcmc.get_samples(group_by_chain=True)) - mean) @ Q
    for i in range(100):
        cases.assert_mean(draws[..., i], 0.0, z_max=5)
        cases.assert_mean(draws[..., i] ** 2, 1 / precision[i], z_max=5)


def test_the_warm_up_finds_scale_mass_and_step():
    """Standard deviations 10, 1, .1: the length scale is the largest, with a mass all are one."""
    deviation = jnp.array([10.0, 1.0, 0.1])
    start = jax.random.normal(jax.random.key(0), (64, 3))

    def wide(z):
        return 0.5 * jnp.sum((z / deviation) ** 2)

    plain = run(GHMC(potential_fn=wide), 10, 3000, 64, init_params=start).last_state.adapt_state
    massive = run(GHMC(potential_fn=wide, adapt_mass_matrix=True), 10, 3000, 64, init_params=start)
    massive = massive.last_state.adapt_state
    assert 8 < plain.length_scale[0] < 12.5 and plain.step_size[0] < 0.2
    np.testing.assert_allclose(massive.scale, deviation, rtol=0.25)
    assert 0.8 < massive.length_scale[0] < 1.3 and massive.step_size[0] > 0.8
    assert massive.warmup_converged.all() and massive.num_warmup_steps < 3000


def test_the_warm_up_that_is_over_costs_nothing():
    evaluations = []

    def counted(z):
        jax.debug.callback(lambda: evaluations.append(1))
        return 0.5 * jnp.sum(z**2)

    mcmc = run(GHMC(potential_fn=counted), 1, 5000, 8, init_params=jnp.zeros((8, 2)))
    jax.effects_barrier()
    steps = int(mcmc.last_state.adapt_state.num_warmup_steps)
    assert mcmc.last_state.adapt_state.warmup_converged.all() and steps < 2000
    assert len(evaluations) <= 8 * (steps + 10 + 2)


def test_a_warm_up_that_did_not_converge_says_so():
    mcmc = run(GHMC(potential_fn=potential), 3, 20, 2, init_params=starts(2))
    assert not mcmc.get_extra_fields()["adapt_state.warmup_converged"].any()


@pytest.mark.parametrize(
    "integrator, temperature, variance", [("ABOBA", 4 / 3, 1.0), ("BAOAB", 3 / 4, 1.0), ("OBABO", 1.0, 4 / 3)]
)
def test_kinetic_temperature_shows_the_bias(integrator, temperature, variance):
    """On a Gaussian of frequency 1 at step 1; of OBABO it is the positions that are off."""
    kernel = KineticLangevin(
        potential_fn=lambda z: 0.5 * jnp.sum(z**2),
        step_size=1.0,
        friction=1.0,
        integrator=integrator,
        adapt_step_size=False,
    )
    mcmc = run(kernel, 500, 100, 16, init_params=jnp.zeros((16, 4)))
    cases.assert_mean(mcmc.get_extra_fields(group_by_chain=True)["kinetic_temperature"], temperature)
    cases.assert_mean(np.asarray(mcmc.get_samples(group_by_chain=True))[..., 0] ** 2, variance)


def test_a_step_size_schedule():
    """The authors' decay, by ten every 200 draws, freezes the chain."""
    schedule = ULA(
        potential_fn=potential, step_size=0.5, adapt_step_size=False, step_size_schedule=lambda i: 0.1 ** (i // 20)
    )
    mcmc = run(schedule, 60, 10, 2, init_params=starts(2))
    steps = mcmc.get_extra_fields(group_by_chain=True)["step_size"]
    np.testing.assert_allclose(steps, np.broadcast_to(0.5 * 0.1 ** (np.arange(60) // 20), (2, 60)))


def nan_beyond_three(z):
    return jnp.where(jnp.abs(z).sum() > 3, jnp.nan, 0.5 * jnp.sum(z**2))


@pytest.mark.parametrize("name", slow_unless(KERNELS, "GHMC", "KineticLangevin"))
def test_nan_is_never_accepted(name):
    mcmc = run(KERNELS[name](potential_fn=nan_beyond_three), 300, 300, 8, init_params=jnp.zeros((8, 1)))
    assert np.abs(mcmc.get_samples()).max() <= 3


@pytest.mark.parametrize("name", KERNELS)
def test_a_potential_that_stays_nan_stops_the_run(name):
    def potential(z):
        return jnp.where(jnp.abs(z).sum() > 0, jnp.nan, 0.0) + 0.0 * jnp.sum(z)

    with pytest.raises(Exception, match="NaN for 100 draws in a row"):
        kernel = KERNELS[name](potential_fn=potential, adapt_step_size=False)
        run(kernel, 300, 50, 2, init_params=jnp.zeros((2, 1)))


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


def test_a_discrete_site_is_refused():
    def discrete():
        numpyro.sample("k", dist.Bernoulli(0.5))
        numpyro.sample("z", dist.Normal(0.0, 1.0))

    with pytest.raises(ValueError, match="site 'k' .* is discrete"):
        run(GHMC(discrete), 2, 2, 1)


def test_a_start_where_the_potential_is_infinite():
    kernel = GHMC(potential_fn=lambda z: jnp.where(z > 0, z, jnp.inf))
    with pytest.raises(ValueError, match="Expected a finite potential at the initial point"):
        run(kernel, 2, 2, 2, init_params=jnp.array([1.0, -1.0]))
    with pytest.raises(ValueError, match="Expected `init_params`"):
        run(kernel, 2, 2, 1)


def test_effective_draws_per_gradient():
    """GHMC is not a random walk: on a standard normal in 50 dimensions ten steps make a draw nearly independent."""
    mcmc = run(GHMC(potential_fn=lambda z: 0.5 * jnp.sum(z**2)), 200, 1000, 32, init_params=jnp.zeros((32, 50)))
    draws = np.asarray(mcmc.get_samples(group_by_chain=True))
    assert min(az.ess(draws[..., i]) for i in range(5)) > 0.4 * 200 * 32
