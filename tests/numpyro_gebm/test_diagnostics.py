"""Chains as ArviZ data: shapes, names, and values computed by hand."""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from numpyro import handlers
from numpyro.infer import MCMC, NUTS
from numpyro.infer.mcmc import MCMCKernel
from numpyro_cases import CASE, linear_gaussian_gebm, standard_normal

from numpyro_gebm import GEBM, LatentReparam, diagnose, to_arviz
from numpyro_gebm.infer import KineticLangevin, init_to_prior

az = pytest.importorskip("arviz")
BETA, LOG_PARTITION = 1.5, 0.3
FIELDS = ("potential_energy", "energy", "num_steps", "accept_prob", "adapt_state.step_size")


def run(kernel, **kwargs):
    mcmc = MCMC(kernel, num_warmup=10, num_samples=30, num_chains=2, chain_method="vectorized", progress_bar=False)
    mcmc.run(jax.random.key(0), **kwargs)
    return mcmc


@functools.cache
def gebm():
    return linear_gaussian_gebm(BETA, log_partition=LOG_PARTITION)


@functools.cache
def nuts():
    return run(NUTS(lambda: numpyro.sample("z", gebm().latent), init_strategy=init_to_prior), extra_fields=FIELDS)


@functools.cache
def kinetic_langevin():
    return run(
        KineticLangevin(lambda: numpyro.sample("z", gebm().latent), step_size=0.2, num_steps=3, adapt_step_size=False)
    )


def energy_by_hand(z):
    gap = z @ CASE.W.T + CASE.b - CASE.c
    return 0.5 * np.einsum("...i,ij,...j", gap, CASE.M, gap)


def log_prob_by_hand(z):
    return -0.5 * (z**2).sum(-1) - np.log(2 * np.pi) - BETA * energy_by_hand(z) - LOG_PARTITION


def normal_energy(x):
    return 0.5 * jnp.sum(x**2)


@functools.cache
def normal_gebm(dim):
    return GEBM(standard_normal(dim), normal_energy)


def all_normal(z):
    return sum(map(normal_energy, jax.tree.leaves(z)))


@functools.cache
def several_sites():
    dims = {"mu": 4, "a_latent": 2, "b_latent": 2}
    start = {name: jnp.zeros((2, dim)) for name, dim in dims.items()}
    return run(KineticLangevin(potential_fn=all_normal), init_params=start)


OURS = {
    "acceptance_rate",
    "diverging",
    "energy",
    "energy_error",
    "energy_x",
    "kinetic_temperature",
    "lp",
    "n_steps",
    "step_size",
    "warmup_converged",
}


@pytest.mark.parametrize(
    "chain, statistics",
    [
        (nuts, {"acceptance_rate", "diverging", "energy", "energy_x", "lp", "n_steps", "step_size"}),
        (kinetic_langevin, OURS),
    ],
)
def test_groups_names_and_shapes(chain, statistics):
    data = to_arviz(chain(), gebm())
    assert set(data["posterior"].data_vars) == {"z"} and data["posterior"]["z"].shape == (2, 30, 2)
    assert data["posterior"]["z"].dims[:2] == ("chain", "draw")
    assert set(data["sample_stats"].data_vars) == statistics
    for value in data["sample_stats"].data_vars.values():
        assert value.shape == (2, 30) and value.dims == ("chain", "draw")
    assert data["sample_stats"]["diverging"].dtype == bool
    assert set(to_arviz(chain())["sample_stats"].data_vars) == statistics - {"energy_x"}


@pytest.mark.parametrize("chain", [nuts, kinetic_langevin])
def test_values(chain):
    mcmc = chain()
    data = to_arviz(mcmc, gebm())
    z, statistics = data["posterior"]["z"].values, data["sample_stats"]
    np.testing.assert_array_equal(z, mcmc.get_samples(group_by_chain=True)["z"])
    np.testing.assert_allclose(statistics["energy_x"], energy_by_hand(z), rtol=1e-10, atol=1e-10)
    np.testing.assert_allclose(statistics["lp"], log_prob_by_hand(z), rtol=1e-10, atol=1e-10)
    assert (statistics["energy"] + statistics["lp"]).values.min() > 0  # the kinetic energy
    assert not statistics["diverging"].values.any()


def test_values_of_each_kernel():
    fields = nuts().get_extra_fields(group_by_chain=True)
    statistics = to_arviz(nuts())["sample_stats"]
    for field, name in (("num_steps", "n_steps"), ("accept_prob", "acceptance_rate"), ("energy", "energy")):
        np.testing.assert_array_equal(statistics[name], fields[field])
    np.testing.assert_array_equal(statistics["step_size"], fields["adapt_state.step_size"])
    statistics = to_arviz(kinetic_langevin())["sample_stats"]
    assert (statistics["n_steps"] == 3).all() and np.allclose(statistics["step_size"], 0.2)


def test_lp_of_a_constrained_latent_is_the_density_of_the_unconstrained_one():
    exponential = GEBM(dist.Exponential(2.0), lambda x: 0.7 * x)
    data = to_arviz(run(KineticLangevin(lambda: numpyro.sample("z", exponential.latent))), exponential)
    z = data["posterior"]["z"].values
    log_density = np.log(2.0) - 2.0 * z - 0.7 * z
    np.testing.assert_allclose(data["sample_stats"]["lp"], log_density + np.log(z), rtol=1e-10, atol=1e-10)
    np.testing.assert_allclose(data["sample_stats"]["energy_x"], 0.7 * z, rtol=1e-10)


def wall(z):
    return jnp.where(z["z"] > 1.0, jnp.nan, 0.5 * z["z"] ** 2).sum()


def test_divergences_are_reported_where_they_are():
    mcmc = run(
        KineticLangevin(potential_fn=wall, step_size=0.5, num_steps=4), init_params={"z": jnp.array([[0.9], [0.5]])}
    )
    diverging = to_arviz(mcmc)["sample_stats"]["diverging"].values
    assert 0 < diverging.sum() < diverging.size
    np.testing.assert_array_equal(diverging, mcmc.get_extra_fields(group_by_chain=True)["diverging"])


def test_several_candidates_need_a_name():
    with pytest.raises(ValueError, match=r"Expected one site .*'a_latent', 'b_latent', 'mu'.* Pass `site=`"):
        to_arviz(several_sites(), normal_gebm(2))
    for site in ("a_latent", "b_latent"):
        data = to_arviz(several_sites(), normal_gebm(2), site=site)
        expected = 0.5 * (data["posterior"][site].values ** 2).sum(-1)
        np.testing.assert_allclose(data["sample_stats"]["energy_x"], expected, rtol=1e-10)


def test_the_site_of_the_latents_is_found_by_its_shape():
    data = to_arviz(several_sites(), normal_gebm(4))
    expected = 0.5 * (data["posterior"]["mu"].values ** 2).sum(-1)
    np.testing.assert_allclose(data["sample_stats"]["energy_x"], expected, rtol=1e-10)


def test_the_site_of_latent_reparam_is_found_by_its_name():
    def model():
        with numpyro.plate("rows", 3):
            numpyro.sample("x", normal_gebm(2))

    data = to_arviz(run(KineticLangevin(handlers.reparam(model, config={"x": LatentReparam()}))), normal_gebm(2))
    assert {"x", "x_latent"} == set(data["posterior"].data_vars)
    assert data["sample_stats"]["energy_x"].shape == (2, 30, 3)
    expected = 0.5 * (data["posterior"]["x_latent"].values ** 2).sum(-1)
    np.testing.assert_allclose(data["sample_stats"]["energy_x"], expected, rtol=1e-10)


@pytest.mark.parametrize("kind", ["array", "tuple"])
def test_a_chain_on_a_potential_of_any_tree(kind):
    start = jnp.zeros((2, 2)) if kind == "array" else (jnp.zeros((2, 2)), jnp.ones((2, 2)))
    data = to_arviz(run(KineticLangevin(potential_fn=all_normal), init_params=start))
    values = list(data["posterior"].data_vars.values())
    assert [value.shape for value in values] == [(2, 30, 2)] * len(jax.tree.leaves(start))
    lp = sum(-0.5 * (value.values**2).sum(-1) for value in values)
    np.testing.assert_allclose(data["sample_stats"]["lp"], lp, rtol=1e-10)


def test_coords_and_dims():
    coords, dims = {"axis": ["first", "second"]}, {"z": ["axis"]}
    data = to_arviz(kinetic_langevin(), gebm(), coords=coords, dims=dims)
    assert data["posterior"]["z"].dims == ("chain", "draw", "axis")
    first = data["posterior"]["z"].sel(axis="first").values
    np.testing.assert_array_equal(first, kinetic_langevin().get_samples(group_by_chain=True)["z"][..., 0])


def test_summary_and_file(tmp_path):
    xarray = pytest.importorskip("xarray")
    data = to_arviz(nuts(), gebm())
    assert list(az.summary(data).index) == ["z[0]", "z[1]"]
    data.to_netcdf(str(tmp_path / "draws.nc"))
    for group in ("posterior", "sample_stats"):
        with xarray.open_dataset(tmp_path / "draws.nc", group=group) as stored:
            assert set(stored.data_vars) == set(data[group].data_vars)
            for name, value in stored.data_vars.items():
                np.testing.assert_array_equal(value, data[group][name])
                assert value.dtype == data[group][name].dtype


@pytest.mark.parametrize("chain", [nuts, kinetic_langevin])
def test_a_run_is_diagnosed_as_its_data_are(chain):
    found = diagnose(chain(), gebm=gebm())
    assert (found.num_chains, found.num_draws, found.num_divergences) == (2, 30, 0)
    assert found == diagnose(to_arviz(chain(), gebm()))
    assert found == diagnose(to_arviz(chain()), gebm=gebm())
    energy = float(az.ess(energy_by_hand(to_arviz(chain())["posterior"]["z"].values)))
    assert diagnose(to_arviz(chain())).min_ess_bulk >= found.min_ess_bulk <= energy * (1 + 1e-9)


def test_what_is_no_run_is_not_diagnosed():
    with pytest.raises(TypeError, match=r"Expected mcmc to be a numpyro.infer.MCMC; got dict"):
        diagnose({"z": np.zeros((4, 100))})


def test_the_site_to_diagnose_is_named_like_that_of_to_arviz():
    with pytest.raises(ValueError, match="Pass `site=`"):
        diagnose(to_arviz(several_sites()), gebm=normal_gebm(2))
    found = diagnose(to_arviz(several_sites()), gebm=normal_gebm(2), site="b_latent")
    assert found == diagnose(several_sites(), gebm=normal_gebm(2), site="b_latent")


class Adaptation(NamedTuple):
    step_size: jax.Array
    warmup_converged: jax.Array


class State(NamedTuple):
    z: jax.Array
    adapt_state: Adaptation
    kinetic_temperature: jax.Array
    energy_error: jax.Array


class Still(MCMCKernel):
    """Statistics only."""

    sample_field = "z"

    def init(self, rng_key, num_warmup, init_params, model_args, model_kwargs):
        return State(jnp.zeros(2), Adaptation(jnp.array(0.1), jnp.array(False)), jnp.array(0.9), jnp.array(0.2))

    def sample(self, state, model_args, model_kwargs):
        return state

    def get_diagnostics_str(self, state):
        return ""

    @property
    def model(self):
        return None


def test_statistics_of_an_adaptation_keep_their_names():
    mcmc = MCMC(Still(), num_warmup=2, num_samples=9, progress_bar=False)
    fields = ("adapt_state.step_size", "adapt_state.warmup_converged", "kinetic_temperature", "energy_error")
    mcmc.run(jax.random.key(0), extra_fields=fields)
    statistics = to_arviz(mcmc)["sample_stats"]
    expected = {"step_size": 0.1, "warmup_converged": False, "kinetic_temperature": 0.9, "energy_error": 0.2}
    assert set(statistics.data_vars) == set(expected)
    for name, value in expected.items():
        np.testing.assert_allclose(statistics[name], np.full((1, 9), value))
    found = diagnose(mcmc)
    assert found.warmup_converged == (False,) and found.kinetic_temperature == pytest.approx(0.9)
