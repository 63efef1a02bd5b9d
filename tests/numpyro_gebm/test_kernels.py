"""What only NumPyro's kernels have: chain methods, raw keys, states to go on from, few traces."""

import os
import pickle
import subprocess
import sys

import cases
import hosts
import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from marks import slow_unless
from numpyro.infer import MCMC, NUTS

from numpyro_gebm import GEBM, nn
from numpyro_gebm.infer import GHMC, MALA, MALT, KineticLangevin, ShortRun, init_to_prior

HOST = hosts.get("numpyro")

KERNELS = {kernel.__name__: kernel for kernel in (KineticLangevin, GHMC)}


def run(kernel, num_warmup, num_samples, num_chains=1, chain_method="vectorized", key=0, args=(), **kwargs):
    settings = {"num_chains": num_chains, "chain_method": chain_method, "progress_bar": False}
    mcmc = MCMC(kernel, num_warmup=num_warmup, num_samples=num_samples, **settings)
    mcmc.run(jax.random.key(key), *args, **kwargs)
    return mcmc


def latent_model():
    numpyro.sample("z", HOST.linear_gaussian(1.0).latent)


@pytest.mark.parametrize("chain_method", slow_unless(["sequential", "vectorized", "parallel", jax.vmap], "vectorized"))
@pytest.mark.filterwarnings("ignore:There are not enough devices:UserWarning")
@pytest.mark.filterwarnings("ignore:Some donated buffers were not usable")  # of NumPyro's loop under `jax.vmap`
def test_chain_methods_agree(chain_method):
    kernel = KineticLangevin(latent_model, step_size=0.3, friction=1.0, adapt_step_size=False)
    draws = run(kernel, 5, 20, 2, chain_method).get_samples(group_by_chain=True)["z"]
    reference = run(kernel, 5, 20, 2, "sequential").get_samples(group_by_chain=True)["z"]
    assert draws.shape == (2, 20, 2) and len(np.unique(draws[:, 0, 0])) == 2
    np.testing.assert_allclose(draws, reference, atol=1e-10)


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


@pytest.mark.parametrize("chain_method", slow_unless(["sequential", "vectorized"], "vectorized"))
def test_a_run_goes_on_from_its_state(chain_method):
    """Positions that are an array, raw keys, single precision, and a state that was pickled."""
    kernel = GHMC(potential_fn=lambda z: 0.5 * (z**2).sum())
    mcmc = MCMC(kernel, num_warmup=4, num_samples=5, num_chains=2, chain_method=chain_method, progress_bar=False)
    mcmc.run(jax.random.PRNGKey(0), init_params=jnp.ones((2, 3), jnp.float32))
    state = mcmc.last_state
    assert mcmc.get_samples(group_by_chain=True).shape == (2, 5, 3) and mcmc.get_samples().dtype == jnp.float32
    assert state.potential_energy.dtype == state.adapt_state.step_size.dtype == jnp.float32
    mcmc.post_warmup_state = pickle.loads(pickle.dumps(jax.tree.map(np.asarray, state)))
    mcmc.run(jax.random.PRNGKey(1))
    assert int(np.max(mcmc.last_state.i)) == 14  # without another warm-up


def observed(y):
    """Posterior N(y / 2, 1 / 2)."""
    x = numpyro.sample("x", dist.Normal(0.0, 1.0))
    numpyro.sample("y", dist.Normal(x, 1.0), obs=y)


def observed_potential(x, y):
    return 0.5 * x**2 + 0.5 * (y - x) ** 2 + jnp.log(2.0 * jnp.pi)


@pytest.mark.parametrize("kernel", slow_unless([MALA, MALT, GHMC], GHMC))
def test_a_state_that_is_handed_on_has_the_potential_of_its_new_data(kernel):
    """All proposals of so large a step are rejected: the potential is that of the position, not of a step."""
    kernel = kernel(observed, step_size=100.0, adapt_step_size=False)
    state = kernel.init(jax.random.split(jax.random.key(0), 2), 5, None, (1.0,), {})
    sample = jax.jit(kernel.sample)
    same = sample(state, (1.0,), {})
    np.testing.assert_array_equal(same.potential_energy, state.potential_energy)
    x = state.z["x"]
    for changed in (
        state._replace(rng_key=jax.random.split(jax.random.key(1), 2)),  # as `MCMC.run` does
        state._replace(potential_energy=jnp.full_like(state.potential_energy, 1e38)),  # as NumPyro's documentation does
        state._replace(z={"x": x}),
    ):
        new = sample(changed, (50.0,), {})
        np.testing.assert_array_equal(new.z["x"], x)
        np.testing.assert_allclose(new.potential_energy, observed_potential(x, 50.0))
        assert not new.stale.any()
    moved = sample(state._replace(z={"x": x + 3.0}), (1.0,), {})
    np.testing.assert_allclose(moved.z["x"], x + 3.0)
    np.testing.assert_allclose(moved.potential_energy, observed_potential(x + 3.0, 1.0))


def test_a_run_goes_on_with_other_data_in_a_kernel_with_a_longer_warm_up():
    first = run(MALA(observed), 200, 50, 4, args=(1.0,))
    mcmc = MCMC(
        MALA(observed), num_warmup=1000, num_samples=500, num_chains=4, chain_method="vectorized", progress_bar=False
    )
    mcmc.post_warmup_state = first.last_state
    mcmc.run(jax.random.key(1), 50.0, extra_fields=("adapt_state.step_size",))
    draws = np.asarray(mcmc.get_samples(group_by_chain=True)["x"][:, 50:, None])
    cases.assert_moments(draws, np.array([25.0]), np.array([[0.5]]), min_ess=400)
    assert len(np.unique(mcmc.get_extra_fields()["adapt_state.step_size"])) == 1


def test_a_support_that_moves_with_another_site():
    """u ~ Uniform(0, a): the potential is that of the model at every state, and draws lie in the interval."""

    def model():
        a = numpyro.sample("a", dist.Uniform(1.0, 3.0))
        numpyro.sample("u", dist.Uniform(0.0, a))

    mcmc = run(GHMC(model), 100, 50, 10, extra_fields=("z", "potential_energy"))
    draws, fields = mcmc.get_samples(), mcmc.get_extra_fields()
    a, u = draws["a"], draws["u"]
    log_density = -jnp.log(2.0 * a) + jnp.log((a - 1.0) * (3.0 - a) / 2.0) + jnp.log(u * (a - u) / a)
    np.testing.assert_allclose(-fields["potential_energy"], log_density, rtol=1e-4, atol=1e-4)
    assert (u < a).all() and (u > 2.0).any()


def test_fields_that_hmc_has_can_be_asked_for():
    fields = ("z_grad", "v", "grad_point", "slice", "mean_accept_prob", "adapt_state.step_size", "chains.kinetic.z")
    mcmc = run(GHMC(latent_model), 4, 5, 2, extra_fields=fields)
    values = mcmc.get_extra_fields(group_by_chain=True)
    assert all(values[name].shape[:2] == (2, 5) for name in fields)
    np.testing.assert_array_equal(values["chains.kinetic.z"], mcmc.get_samples(group_by_chain=True)["z"])


@pytest.mark.parametrize("kernel", slow_unless([NUTS, KineticLangevin, GHMC], GHMC))
def test_number_of_traces_does_not_depend_on_the_number_of_draws(kernel):
    traces, counts = [], []
    for num_samples in (20, 200):
        gebm = GEBM(HOST.normal(2), lambda x: traces.append(1) or 0.5 * jnp.sum(x**2))
        traces.clear()
        run(kernel(lambda gebm=gebm: numpyro.sample("z", gebm.latent), init_strategy=init_to_prior), 20, num_samples, 2)
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

    gebms = [GEBM(HOST.normal(2), nn.Applied(energy, network)) for network in networks]
    mcmc = MCMC(KineticLangevin(model), num_warmup=5, num_samples=50, progress_bar=False)
    traces.clear()
    counts, draws = [], []
    for gebm in gebms:
        mcmc.run(jax.random.key(0), gebm)
        draws.append(mcmc.get_samples()["z"])
        counts.append(len(traces))
    assert not np.allclose(*draws)
    assert counts[1] - counts[0] <= 2  # the start of the chain is evaluated, the loop is not compiled again


def test_a_short_run_is_compiled_once_for_a_structure():
    traces = []

    def energy(scale, x):
        traces.append(None)
        return scale * (x**2).sum()

    run, prior, counts = ShortRun(num_steps=4), dist.Normal(jnp.zeros(2), 1.0).to_event(1), []
    for i in range(3):
        gebm = GEBM(prior, nn.Applied(energy, jnp.array(1.0 + i)), validate_args=False)
        traces.clear()
        run.run(gebm.latent, 5 + i, rng_key=jax.random.key(i), progress_bar=False)
        counts.append(len(traces))
    assert counts[1:] == [0, 0]
    assert counts[0] <= 8


@pytest.mark.slow
def test_a_short_run_as_sampler_works_under_jit_and_vmap():
    prior, key = dist.Normal(jnp.zeros(2), 1.0).to_event(1), jax.random.key(0)
    gebm = GEBM(prior, lambda x: 0.5 * (x**2).sum(), sampler=ShortRun(num_steps=5))
    expected = gebm.sample(key, (6,))
    np.testing.assert_allclose(jax.jit(lambda key: gebm.sample(key, (6,)))(key), expected, rtol=1e-12)
    assert jax.vmap(lambda key: gebm.sample(key, (2,)))(jax.random.split(key, 3)).shape == (3, 2, 2)
    walled = GEBM(prior, lambda x: 0.0 * x.sum() + jnp.inf, sampler=ShortRun(num_steps=2))
    assert jnp.isnan(jax.jit(lambda key: walled.sample(key, (2,)))(key)).all()
