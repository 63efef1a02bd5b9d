"""Chains as ArviZ data: shapes, names, and values computed by hand."""

import functools

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer import MCMC, NUTS
from pyro_cases import CASE, linear_gaussian_gebm, standard_normal

from pyro_gebm import GEBM, LatentReparam, diagnose, to_arviz
from pyro_gebm.infer import KineticLangevin, init_to_prior

az = pytest.importorskip("arviz")
pytestmark = pytest.mark.filterwarnings("ignore:num_chains=2 is more than available_cpu:UserWarning")
BETA, LOG_PARTITION = 1.5, 0.3


def run(kernel, **kwargs):
    mcmc = MCMC(kernel, 30, 10, num_chains=2, disable_progbar=True, **kwargs)
    mcmc.run()
    return mcmc


def gebm():
    return linear_gaussian_gebm(BETA, log_partition=LOG_PARTITION)


@functools.cache
def nuts():
    model, latent = (lambda: pyro.sample("z", latent)), gebm().latent
    return run(NUTS(model, init_strategy=init_to_prior, max_plate_nesting=0))


@functools.cache
def kinetic_langevin():
    latent = gebm().latent
    return run(KineticLangevin(lambda: pyro.sample("z", latent), step_size=0.2, num_steps=3, adapt_step_size=False))


def energy_by_hand(z):
    gap = z @ CASE.W.T + CASE.b - CASE.c
    return 0.5 * np.einsum("...i,ij,...j", gap, CASE.M, gap)


def log_prob_by_hand(z):
    return -0.5 * (z**2).sum(-1) - np.log(2 * np.pi) - BETA * energy_by_hand(z) - LOG_PARTITION


def normal_energy(x):
    return 0.5 * x.square().sum(-1)


@functools.cache
def normal_gebm(dim):
    return GEBM(standard_normal(dim), normal_energy)


def all_normal(z):
    return sum(0.5 * value.square().sum() for value in z.values())


@functools.cache
def several_sites():
    dims = {"mu": 4, "a_latent": 2, "b_latent": 2}
    start = {name: torch.zeros(2, dim) for name, dim in dims.items()}
    return run(KineticLangevin(potential_fn=all_normal), initial_params=start)


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
        (nuts, {"diverging", "energy_x"}),
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
    assert not statistics["diverging"].values.any()


def test_values_of_kinetic_langevin():
    data = to_arviz(kinetic_langevin())
    z, statistics = data["posterior"]["z"].values, data["sample_stats"]
    np.testing.assert_allclose(statistics["lp"], log_prob_by_hand(z), rtol=1e-10, atol=1e-10)
    assert (statistics["energy"] + statistics["lp"]).values.min() > 0  # the kinetic energy
    assert (statistics["n_steps"] == 3).all() and np.allclose(statistics["step_size"], 0.2)


def test_lp_of_a_constrained_latent_is_the_density_of_the_unconstrained_one():
    exponential = GEBM(dist.Exponential(torch.tensor(2.0)), lambda x: 0.7 * x)
    data = to_arviz(run(KineticLangevin(lambda: pyro.sample("z", exponential.latent))), exponential)
    z = data["posterior"]["z"].values
    log_density = np.log(2.0) - 2.0 * z - 0.7 * z
    np.testing.assert_allclose(data["sample_stats"]["lp"], log_density + np.log(z), rtol=1e-10, atol=1e-10)
    np.testing.assert_allclose(data["sample_stats"]["energy_x"], 0.7 * z, rtol=1e-10)


def wall(z):
    return torch.where(z["z"] > 1.0, torch.nan, 0.5 * z["z"] ** 2).sum()


@pytest.mark.parametrize(
    "kernel",
    [
        NUTS(potential_fn=wall, step_size=0.5, adapt_step_size=False),
        KineticLangevin(potential_fn=wall, step_size=0.5, num_steps=4),
    ],
)
def test_divergences_are_reported_where_they_are(kernel):
    mcmc = run(kernel, initial_params={"z": torch.tensor([[0.9], [0.5]])})
    diverging = to_arviz(mcmc)["sample_stats"]["diverging"].values
    assert 0 < diverging.sum() < diverging.size
    for chain, expected in enumerate(mcmc.diagnostics()["divergences"].values()):
        assert np.flatnonzero(diverging[chain]).tolist() == expected


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


def test_a_site_beside_another_of_the_same_shape_must_be_named():
    def model():
        with pyro.plate("rows", 3):
            pyro.sample("mu", dist.Normal(torch.zeros(2), 1.0).to_event(1))
            pyro.sample("x", normal_gebm(2))

    mcmc = run(KineticLangevin(poutine.reparam(model, config={"x": LatentReparam()})))
    with pytest.raises(ValueError, match=r"got \['mu', 'x_latent'\]. Pass `site=`"):
        to_arviz(mcmc, normal_gebm(2))
    data = to_arviz(mcmc, normal_gebm(2), site="x_latent")
    assert {"mu", "x_latent"} <= set(data["posterior"].data_vars)
    assert data["sample_stats"]["energy_x"].shape == (2, 30, 3)
    expected = 0.5 * (data["posterior"]["x_latent"].values ** 2).sum(-1)
    np.testing.assert_allclose(data["sample_stats"]["energy_x"], expected, rtol=1e-10)


def test_a_chain_on_a_potential():
    data = to_arviz(several_sites())
    values = list(data["posterior"].data_vars.values())
    assert len(values) == 3 and all(value.shape[:2] == (2, 30) for value in values)
    lp = sum(-0.5 * (value.values.reshape(2, 30, -1) ** 2).sum(-1) for value in values)
    np.testing.assert_allclose(data["sample_stats"]["lp"], lp, rtol=1e-10)


def test_coords_and_dims():
    coords, dims = {"axis": ["first", "second"]}, {"z": ["axis"]}
    data = to_arviz(kinetic_langevin(), gebm(), coords=coords, dims=dims)
    assert data["posterior"]["z"].dims == ("chain", "draw", "axis")
    first = data["posterior"]["z"].sel(axis="first").values
    np.testing.assert_array_equal(first, kinetic_langevin().get_samples(group_by_chain=True)["z"][..., 0])


@pytest.mark.parametrize("chain", [nuts, kinetic_langevin])
def test_summary_and_file(chain, tmp_path):
    xarray = pytest.importorskip("xarray")
    data = to_arviz(chain(), gebm())
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
    with pytest.raises(TypeError, match=r"Expected mcmc to be a pyro.infer.MCMC; got dict"):
        diagnose({"z": np.zeros((4, 100))})


def test_the_site_to_diagnose_is_named_like_that_of_to_arviz():
    with pytest.raises(ValueError, match="Pass `site=`"):
        diagnose(to_arviz(several_sites()), gebm=normal_gebm(2))
    found = diagnose(to_arviz(several_sites()), gebm=normal_gebm(2), site="b_latent")
    assert found == diagnose(several_sites(), gebm=normal_gebm(2), site="b_latent")
