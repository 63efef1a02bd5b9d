"""Chains as ArviZ data: shapes, names, and values computed by hand."""

import functools

import cases
import numpy as np
import pytest

from gebm.arviz_data import latent_site

az = pytest.importorskip("arviz")
pytestmark = pytest.mark.filterwarnings("ignore:num_chains=2 is more than available_cpu:UserWarning")
ROWS = np.arange(6.0).reshape(3, 2)
BETA, LOG_PARTITION, CASE = 1.5, 0.3, cases.linear_gaussian()
#: What NumPyro's kernels record on request; Pyro's record divergences only.
FIELDS = ("potential_energy", "energy", "num_steps", "accept_prob", "adapt_state.step_size")
#: Their names, and those of ours, in ArviZ.
OF_ARVIZ = {
    **{"num_steps": "n_steps", "accept_prob": "acceptance_rate", "energy": "energy", "diverging": "diverging"},
    **{"adapt_state.step_size": "step_size", "adapt_state.warmup_converged": "warmup_converged"},
    **{name: name for name in ("energy_error", "kinetic_temperature", "step_size", "warmup_converged")},
}
OURS = {
    *("acceptance_rate", "diverging", "energy", "energy_error", "energy_x", "kinetic_temperature", "lp", "n_steps"),
    *("step_size", "warmup_converged"),
}
STATISTICS = {
    ("nuts", "numpyro"): {"acceptance_rate", "diverging", "energy", "energy_x", "lp", "n_steps", "step_size"},
    ("nuts", "pyro"): {"diverging", "energy_x"},
    ("langevin", "numpyro"): OURS,
    ("langevin", "pyro"): OURS,
}


def run(host, kernel, start=None, **kwargs):
    """Two chains of 30 draws in the host's own MCMC."""
    start = start and {name: host.array(value) for name, value in start.items()}
    if host.name == "pyro":
        mcmc = host.ppl.infer.MCMC(kernel, 30, 10, num_chains=2, initial_params=start, disable_progbar=True)
        mcmc.run()
        return mcmc
    settings = {"num_chains": 2, "chain_method": "vectorized", "progress_bar": False}
    mcmc = host.ppl.infer.MCMC(kernel, num_warmup=10, num_samples=30, **settings)
    mcmc.run(host.jax.random.key(0), init_params=start, **kwargs)
    return mcmc


@functools.cache
def gebm(host):
    return host.linear_gaussian(BETA, log_partition=LOG_PARTITION)


@functools.cache
def chain(host, name):
    latent = gebm(host).latent
    model = lambda: host.ppl.sample("z", latent)  # noqa: E731
    if name == "langevin":
        return run(host, host.infer.KineticLangevin(model, step_size=0.2, num_steps=3, adapt_step_size=False))
    extra = {"max_plate_nesting": 0} if host.name == "pyro" else {}
    kernel = host.ppl.infer.NUTS(model, init_strategy=host.infer.init_to_prior, **extra)
    return run(host, kernel, **({"extra_fields": FIELDS} if host.name == "numpyro" else {}))


def energy_by_hand(z):
    gap = z @ CASE.W.T + CASE.b - CASE.c
    return 0.5 * np.einsum("...i,ij,...j", gap, CASE.M, gap)


def log_prob_by_hand(z):
    return -0.5 * (z**2).sum(-1) - np.log(2 * np.pi) - BETA * energy_by_hand(z) - LOG_PARTITION


@functools.cache
def normal_gebm(host, dim):
    return host.GEBM(host.normal(dim), lambda x: 0.5 * (x**2).sum(-1))


@functools.cache
def several_sites(host):
    start = {name: np.zeros((2, dim)) for name, dim in {"mu": 4, "a_latent": 2, "b_latent": 2}.items()}
    potential = lambda z: sum(0.5 * (value**2).sum() for value in z.values())  # noqa: E731
    return run(host, host.infer.KineticLangevin(potential_fn=potential), start)


@pytest.mark.parametrize("name", ["nuts", "langevin"])
def test_groups_names_and_shapes(host, name):
    mcmc, statistics = chain(host, name), STATISTICS[name, host.name]
    data = host.to_arviz(mcmc, gebm(host))
    assert set(data["posterior"].data_vars) == {"z"} and data["posterior"]["z"].shape == (2, 30, 2)
    assert data["posterior"]["z"].dims[:2] == ("chain", "draw")
    assert set(data["sample_stats"].data_vars) == statistics
    for value in data["sample_stats"].data_vars.values():
        assert value.shape == (2, 30) and value.dims == ("chain", "draw")
    assert data["sample_stats"]["diverging"].dtype == bool
    assert set(host.to_arviz(mcmc)["sample_stats"].data_vars) == statistics - {"energy_x"}


@pytest.mark.parametrize("name", ["nuts", "langevin"])
def test_values(host, name):
    mcmc = chain(host, name)
    data = host.to_arviz(mcmc, gebm(host))
    z, statistics = data["posterior"]["z"].values, data["sample_stats"]
    np.testing.assert_array_equal(z, mcmc.get_samples(group_by_chain=True)["z"])
    np.testing.assert_allclose(statistics["energy_x"], energy_by_hand(z), rtol=1e-10, atol=1e-10)
    assert not statistics["diverging"].values.any()
    if "lp" in STATISTICS[name, host.name]:
        np.testing.assert_allclose(statistics["lp"], log_prob_by_hand(z), rtol=1e-10, atol=1e-10)
        assert (statistics["energy"] + statistics["lp"]).values.min() > 0  # the kinetic energy
    if name == "langevin":
        assert (statistics["n_steps"] == 3).all() and np.allclose(statistics["step_size"], 0.2)
    if host.name == "numpyro":
        fields = mcmc.get_extra_fields(group_by_chain=True)
        for field, of_arviz in OF_ARVIZ.items():
            if field in fields:
                np.testing.assert_array_equal(statistics[of_arviz], fields[field])
        assert fields.keys() - {"potential_energy"} <= OF_ARVIZ.keys()


def test_lp_of_a_constrained_latent_is_the_density_of_the_unconstrained_one(host):
    exponential = host.GEBM(host.dist.Exponential(host.array(2.0)), lambda x: 0.7 * x)
    kernel = host.infer.KineticLangevin(lambda: host.ppl.sample("z", exponential.latent))
    data = host.to_arviz(run(host, kernel), exponential)
    z = data["posterior"]["z"].values
    log_density = np.log(2.0) - 2.0 * z - 0.7 * z
    np.testing.assert_allclose(data["sample_stats"]["lp"], log_density + np.log(z), rtol=1e-10, atol=1e-10)
    np.testing.assert_allclose(data["sample_stats"]["energy_x"], 0.7 * z, rtol=1e-10)


def test_divergences_are_reported_where_they_are(host):
    wall = lambda z: host.xp.where(z["z"] > 1.0, host.xp.nan, 0.5 * z["z"] ** 2).sum()  # noqa: E731
    kernels = [host.infer.KineticLangevin(potential_fn=wall, step_size=0.5, num_steps=4)]
    if host.name == "pyro":
        kernels.append(host.ppl.infer.NUTS(potential_fn=wall, step_size=0.5, adapt_step_size=False))
    for kernel in kernels:
        mcmc = run(host, kernel, {"z": [[0.9], [0.5]]})
        diverging = host.to_arviz(mcmc)["sample_stats"]["diverging"].values
        assert 0 < diverging.sum() < diverging.size
        if host.name == "numpyro":
            np.testing.assert_array_equal(diverging, mcmc.get_extra_fields(group_by_chain=True)["diverging"])
        else:
            expected = list(mcmc.diagnostics()["divergences"].values())
            assert [np.flatnonzero(of_chain).tolist() for of_chain in diverging] == expected


@pytest.mark.parametrize("site, dim", [("a_latent", 2), ("b_latent", 2), (None, 4)])
def test_the_site_of_the_latents_is_named_or_found_by_its_shape(host, site, dim):
    data = host.to_arviz(several_sites(host), normal_gebm(host, dim), site=site)
    expected = 0.5 * (data["posterior"][site or "mu"].values ** 2).sum(-1)
    np.testing.assert_allclose(data["sample_stats"]["energy_x"], expected, rtol=1e-10)


def test_several_candidates_need_a_name(host):
    with pytest.raises(ValueError, match=r"Expected one site .*'a_latent', 'b_latent', 'mu'.* Pass `site=`"):
        host.to_arviz(several_sites(host), normal_gebm(host, 2))
    beside = {"mu": np.zeros((2, 30, 3, 2)), "x_latent": np.zeros((2, 30, 3, 2))}
    with pytest.raises(ValueError, match=r"got \['mu', 'x_latent'\]. Pass `site=`"):
        latent_site(beside, (2,))
    assert latent_site(beside, (2,), "x_latent") == "x_latent"
    with pytest.raises(ValueError, match=r"at site='x'; got sites \['mu', 'x_latent'\]"):
        latent_site(beside, (2,), "x")


@functools.cache
def observed_rows(host):
    """Rows of a site of `LatentReparam`, each observed with noise."""

    def model():
        with host.ppl.plate("rows", 3):
            x = host.ppl.sample("x", normal_gebm(host, 2))
            host.ppl.sample("y", host.dist.Normal(x, host.array(1.0)).to_event(1), obs=host.array(ROWS))

    return run(host, host.infer.KineticLangevin(host.handlers.reparam(model, config={"x": host.LatentReparam()})))


def test_what_is_observed_is_carried(host):
    mcmc = observed_rows(host)
    prior = {"x_latent": host.array(np.zeros((7, 3, 2))), "y": host.array(np.zeros((7, 3, 2)))}
    data = host.to_arviz(mcmc, prior=prior, posterior_predictive={"y": host.array(np.zeros((60, 3, 2)))})
    x = data["posterior"]["x_latent"].values
    log_likelihood = (-0.5 * (ROWS - x) ** 2 - 0.5 * np.log(2 * np.pi)).sum(-1)
    assert set(data["log_likelihood"].data_vars) == set(data["observed_data"].data_vars) == {"y"}
    np.testing.assert_allclose(data["log_likelihood"]["y"], log_likelihood, rtol=1e-10)
    np.testing.assert_array_equal(data["observed_data"]["y"], ROWS)
    assert data["prior"]["x_latent"].shape == data["prior_predictive"]["y"].shape == (1, 7, 3, 2)
    assert data["posterior_predictive"]["y"].shape == (2, 30, 3, 2)
    without = host.to_arviz(mcmc, log_likelihood=False)
    assert "observed_data" in without and "log_likelihood" not in without


def test_arviz_computes_the_bfmi(host):
    data = host.to_arviz(chain(host, "langevin"))
    found = az.bfmi(data)  # from ArviZ 1.0 on, a dataset
    found = found["energy"] if hasattr(found, "data_vars") else found
    np.testing.assert_allclose(found, host.diagnose(data).bfmi, rtol=1 / 25)  # it divides by 29 for the variance


def test_the_site_of_latent_reparam_is_found_by_its_name(host):
    data = host.to_arviz(observed_rows(host), normal_gebm(host, 2))
    assert set(data["posterior"].data_vars) == ({"x", "x_latent"} if host.name == "numpyro" else {"x_latent"})
    assert data["sample_stats"]["energy_x"].shape == (2, 30, 3)
    expected = 0.5 * (data["posterior"]["x_latent"].values ** 2).sum(-1)
    np.testing.assert_allclose(data["sample_stats"]["energy_x"], expected, rtol=1e-10)


def test_a_chain_on_a_potential(host):
    data = host.to_arviz(several_sites(host))
    values = list(data["posterior"].data_vars.values())
    assert len(values) == 3 and all(value.shape[:2] == (2, 30) for value in values)
    lp = sum(-0.5 * (value.values.reshape(2, 30, -1) ** 2).sum(-1) for value in values)
    np.testing.assert_allclose(data["sample_stats"]["lp"], lp, rtol=1e-10)


def test_coords_and_dims(host):
    mcmc, coords, dims = chain(host, "langevin"), {"axis": ["first", "second"]}, {"z": ["axis"]}
    data = host.to_arviz(mcmc, gebm(host), coords=coords, dims=dims)
    assert data["posterior"]["z"].dims == ("chain", "draw", "axis")
    first = data["posterior"]["z"].sel(axis="first").values
    np.testing.assert_array_equal(first, mcmc.get_samples(group_by_chain=True)["z"][..., 0])


@pytest.mark.parametrize("name", ["nuts", "langevin"])
def test_summary_and_file(host, name, tmp_path):
    xarray = pytest.importorskip("xarray")
    data = host.to_arviz(chain(host, name), gebm(host))
    assert list(az.summary(data).index) == ["z[0]", "z[1]"]
    data.to_netcdf(str(tmp_path / "draws.nc"))
    for group in ("posterior", "sample_stats"):
        with xarray.open_dataset(tmp_path / "draws.nc", group=group) as stored:
            assert set(stored.data_vars) == set(data[group].data_vars)
            for variable, value in stored.data_vars.items():
                np.testing.assert_array_equal(value, data[group][variable])
                assert value.dtype == data[group][variable].dtype


@pytest.mark.parametrize("name", ["nuts", "langevin"])
def test_a_run_is_diagnosed_as_its_data_are(host, name):
    mcmc, model = chain(host, name), gebm(host)
    data, found = host.to_arviz(mcmc), host.diagnose(mcmc, gebm=model)
    assert (found.num_chains, found.num_draws, found.num_divergences) == (2, 30, 0)
    assert found == host.diagnose(host.to_arviz(mcmc, model)) == host.diagnose(data, gebm=model)
    energy = float(az.ess(energy_by_hand(data["posterior"]["z"].values)))
    assert host.diagnose(data).min_ess_bulk >= found.min_ess_bulk <= energy * (1 + 1e-9)


def test_the_site_to_diagnose_is_named_like_that_of_to_arviz(host):
    mcmc, model = several_sites(host), normal_gebm(host, 2)
    with pytest.raises(ValueError, match="Pass `site=`"):
        host.diagnose(host.to_arviz(mcmc), gebm=model)
    found = host.diagnose(host.to_arviz(mcmc), gebm=model, site="b_latent")
    assert found == host.diagnose(mcmc, gebm=model, site="b_latent")


def test_what_is_no_run_is_refused(host):
    for function in (host.to_arviz, host.diagnose):
        with pytest.raises(TypeError, match=rf"Expected (mcmc|data) to be a {host.name}.infer.MCMC.*; got dict"):
            function({"z": np.zeros((4, 100))})
