"""The ladder from the base to the tilted law: log-partitions, SMC, replica exchange, against exact values."""

import functools
import importlib
import math
import pickle
import re

import arviz as az
import cases
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from jax import random
from jax.scipy.special import gammaln
from numpyro.infer import MCMC, NUTS
from numpyro_cases import CASE, linear_gaussian_gebm, standard_normal

from gebm.pareto import pareto_k
from gebm.weights import bridge, from_log_weights
from numpyro_gebm import GEBM, LogPartitionCurve, log_partition, log_partition_curve, to_arviz
from numpyro_gebm.infer import SMC, ReplicaExchange, init_to_prior
from numpyro_gebm.infer.ladder import tempering


class Quadratic(eqx.Module):
    """a |x|^2 / 2; another a does not compile again."""

    a: jax.Array
    traces = []

    def __call__(self, x):
        self.traces.append(x.shape)
        return 0.5 * self.a * (x**2).sum()


def quadratic_gebm(dim, a, **kwargs):
    """FACTS' case of a known log-partition, -d/2 log(1 + a)."""
    return GEBM(standard_normal(dim), Quadratic(jnp.asarray(a, float)), **kwargs)


def two_modes(**kwargs):
    """Prior N(0, 9 I) tilted to 0.8 N((0, 0), I) + 0.2 N((8, 0), I): log Z = 0."""
    prior = dist.Normal(jnp.zeros(2), 3.0).to_event(1)

    def energy(x):
        of_modes = [
            math.log(w / (2 * math.pi)) - 0.5 * ((x[0] - m) ** 2 + x[1] ** 2) for m, w in ((0.0, 0.8), (8.0, 0.2))
        ]
        return prior.log_prob(x) - jnp.logaddexp(*of_modes)

    return GEBM(prior, energy, **kwargs)


@functools.cache
def offset_gebm():
    """One object: NumPyro compiles for every new function."""
    return linear_gaussian_gebm(2.0)


def smc(gebm, seed=0, **kwargs):
    return SMC(**kwargs).run(gebm.latent, rng_key=random.key(seed))


def log_z(gebm, method, seed=0, **kwargs):
    return log_partition(gebm, method, rng_key=random.key(seed), **kwargs)


def chains(kernel, num_warmup, num_samples, num_chains, seed=0, chain_method="vectorized", **kwargs):
    mcmc = MCMC(
        kernel,
        num_warmup=num_warmup,
        num_samples=num_samples,
        num_chains=num_chains,
        chain_method=chain_method,
        progress_bar=False,
    )
    mcmc.run(random.key(seed), **kwargs)
    return mcmc


def draws_of(mcmc):
    return np.asarray(mcmc.get_samples(group_by_chain=True)["z"])


def exact(dim, a):
    return -0.5 * dim * math.log1p(a)


def z_scores(dim, a, num, **kwargs):
    gebm = quadratic_gebm(dim, a)
    estimates = [smc(gebm, seed, **kwargs).log_partition for seed in range(num)]
    errors = np.array([estimate.value for estimate in estimates]) - exact(dim, a)
    return errors / [estimate.std_error for estimate in estimates], np.exp(errors)


def test_smc_on_a_quadratic_energy():
    z, _ = z_scores(10, 3.0, 6)
    assert np.abs(z).max() <= 4 and z.std() > 0.2
    result = smc(quadratic_gebm(10, 3.0))
    assert result.inverse_temperatures[0] == 0 and result.inverse_temperatures[-1] == 1
    assert (np.diff(result.inverse_temperatures) > 0).all() and (result.accept_probs[1:] > 0.5).all()
    t = 3.0 * result.inverse_temperatures
    np.testing.assert_allclose(result.log_partitions, -5.0 * np.log1p(t), atol=0.15)
    np.testing.assert_allclose(result.mean_energies, 15.0 / (1.0 + t), rtol=0.1)
    assert result.num_gradients >= (4096 + 1024) * 4 * (len(t) - 1)
    draws = np.asarray(result.z)
    assert draws.shape == (4096, 10)
    cases.assert_moments(draws[None], np.zeros(10), 0.25 * np.eye(10), min_ess=1000, z_max=4.5)
    other, num_traces = quadratic_gebm(10, 2.0), len(Quadratic.traces)
    assert smc(other, 1).log_partition.value != result.log_partition.value
    assert len(Quadratic.traces) == num_traces > 0


@pytest.mark.slow
@pytest.mark.parametrize("a", [1.0, 3.0, 30.0])
@pytest.mark.parametrize("dim", [1, 10, 100])
def test_smc_is_calibrated(dim, a):
    num = 50 if dim < 100 else 4  # docs/ladder.md has 50 of all
    z, ratios = z_scores(dim, a, num)
    assert np.abs(z).max() <= 4
    assert 0.75 <= z.std(ddof=1) <= 1.33 or num < 50
    assert abs(ratios.mean() - 1) <= 4 * ratios.std(ddof=1) / math.sqrt(num)


def test_smc_of_a_latent_with_an_offset():
    result = smc(offset_gebm())
    error = result.log_partition.value - CASE.log_partition(2.0)
    assert abs(error) <= 4 * result.log_partition.std_error < 0.2
    cases.assert_moments(np.asarray(result.z)[None], CASE.mean(2.0), CASE.covariance(2.0), min_ess=1000, z_max=4.5)


@pytest.mark.parametrize("method", ["importance", pytest.param("ais", marks=pytest.mark.slow), "smc", "bridge"])
def test_methods(method):
    kwargs = {}
    if method == "bridge":
        normal = np.random.default_rng(0).normal(size=(4, 1000, 2))
        kwargs["draws"] = CASE.mean(2.0) + normal @ np.linalg.cholesky(CASE.covariance(2.0)).T
    estimate = log_z(offset_gebm(), method, **kwargs)
    assert abs(estimate.value - CASE.log_partition(2.0)) <= 4 * estimate.std_error < 0.2
    assert estimate.ess > 500 and estimate.warnings == ()


def test_importance_sampling_says_when_it_fails():
    estimate = log_z(quadratic_gebm(100, 3.0), "importance", num_samples=20_000)
    assert abs(estimate.value - exact(100, 3.0)) > 4 * estimate.std_error  # and it does not know
    assert estimate.pareto_k > 0.7 and estimate.ess < 100
    assert len(estimate.warnings) == 2 and "Pareto" in estimate.warnings[0] and "smc" in estimate.warnings[1]


def test_smc_says_when_it_fails():
    estimate = smc(quadratic_gebm(30, 30.0), num_particles=128, num_moves=1, effective_fraction=0.1).log_partition
    assert estimate.ess < 40 and any("64 groups of particles" in warning for warning in estimate.warnings)
    with_defaults = smc(quadratic_gebm(10, 3.0)).log_partition
    assert with_defaults.warnings == ()


@pytest.mark.parametrize("scale, too_few", [(0.3, False), (2.5, True)])
def test_groups_of_particles_that_are_too_few(scale, too_few):
    """The standard error of lognormal weights is too small where the warning comes."""
    rng = np.random.default_rng(0)
    estimates = [from_log_weights(scale * rng.normal(size=32), num_each=128) for _ in range(2000)]
    z = [(estimate.value - 0.5 * scale**2) / estimate.std_error for estimate in estimates]
    assert (np.std(z) > 1.33) == too_few
    assert np.mean([bool(estimate.warnings) for estimate in estimates]) == pytest.approx(float(too_few), abs=0.05)


@pytest.mark.parametrize("method", ["smc", "importance"])
def test_a_long_estimate_shows_a_progress_bar(method, capsys, monkeypatch):
    from numpyro_gebm.infer.ladder import partition
    from numpyro_gebm.infer.ladder import smc as smc_module

    monkeypatch.setattr(smc_module, "DELAY", 1e-9)
    monkeypatch.setattr(partition, "DELAY", 1e-9)
    for progress_bar in (True, False):
        log_z(quadratic_gebm(2, 1.0), method, num_samples=60, progress_bar=progress_bar)
        shown = capsys.readouterr().err
        assert ({"smc": "SMC", "importance": "Draws of the base"}[method] in shown) == progress_bar


def test_a_gebm_is_not_changed_by_its_own_log_partition():
    known, unknown = (log_z(linear_gaussian_gebm(1.0, log_partition=a), "importance") for a in (5.0, None))
    assert known.value == unknown.value


def test_bridge_sampling_is_calibrated():
    rng, z = np.random.default_rng(0), []
    for _ in range(100):
        of_base, of_draws = (-1.5 * (scale * rng.normal(size=(4, 250))) ** 2 for scale in (1.0, 0.5))
        estimate = bridge(of_base.ravel(), of_draws, np.size)
        z.append((estimate.value - exact(1, 3.0)) / estimate.std_error)
    assert 0.75 <= np.std(z) <= 1.33 and abs(np.mean(z)) <= 0.4


@pytest.mark.filterwarnings("ignore:invalid value:RuntimeWarning")  # NumPyro's ESS of a constant
def test_bridge_sampling_refuses_nan_and_takes_constants():
    draws = np.zeros((4, 10, 2))
    with pytest.raises(ValueError, match="NaN or -inf at draws of the tilted law"):
        log_z(quadratic_gebm(2, 1.0), "bridge", draws=np.where(draws == 0, np.nan, draws))
    base = log_z(quadratic_gebm(2, 1.0, inverse_temperature=0.0), "bridge", draws=draws)
    assert base.value == pytest.approx(0.0, abs=1e-9) and base.std_error == pytest.approx(0.0, abs=1e-6)


@pytest.mark.parametrize("shape", [0.1, 0.5, 0.9])
def test_pareto_shape(shape):
    log_weights = np.random.default_rng(0).exponential(shape, 20_000)
    assert abs(pareto_k(log_weights) - shape) < 0.15
    if hasattr(az, "psislw"):
        assert pareto_k(log_weights) == pytest.approx(float(az.psislw(log_weights.copy())[1]), abs=1e-10)


def test_pareto_shape_of_equal_weights():
    assert pareto_k(np.zeros(1000)) == -math.inf


@pytest.mark.parametrize("weights", [[0.0, math.nan], [0.0, math.inf], [-math.inf, -math.inf]])
def test_weights_that_are_no_weights(weights):
    with pytest.raises(ValueError, match="Expected finite weights, not all of them 0"):
        from_log_weights(weights)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(2))
def test_two_modes(seed):
    of_smc = smc(two_modes(), seed, num_particles=32_768)
    assert abs(np.mean(np.asarray(of_smc.z)[:, 0] > 4) - 0.2) <= 0.03
    assert abs(of_smc.log_partition.value) <= 4 * of_smc.log_partition.std_error < 0.1
    mcmc = chains(ReplicaExchange(two_modes().latent), 200, 1000, 64, seed)
    assert abs(np.mean(draws_of(mcmc)[..., 0] > 4) - 0.2) <= 0.03


def test_nuts_misses_a_mode_and_r_hat_is_one():
    draws = nuts_on_two_modes()
    assert float(az.rhat(draws[..., 0])) < 1.01 and float(az.rhat(draws[..., 1])) < 1.01
    assert np.mean(draws[..., 0] > 4) == 0.0


def test_replica_exchange():
    kernel = ReplicaExchange(offset_gebm().latent, num_rungs=4)
    mcmc = chains(kernel, 100, 400, 16)
    cases.assert_moments(draws_of(mcmc), CASE.mean(2.0), CASE.covariance(2.0))
    data = to_arviz(mcmc, offset_gebm())["sample_stats"]
    assert data["swap_accept_prob"].shape == (16, 400, 3) and data["energy_x"].shape == (16, 400)
    rates = data["swap_accept_prob"].values.mean((0, 1))
    assert np.ptp(rates) < 0.1 and 0.5 < rates.mean() < 1  # evenly spaced
    trips = data["round_trips"].values
    assert (np.diff(trips) >= 0).all() and (trips[:, -1] > 50).all()
    beta = np.asarray(kernel.inverse_temperatures)
    assert beta.shape == (4,) and beta[0] == 0 and beta[-1] == 2 and (np.diff(beta) > 0).all()


@pytest.mark.slow
def test_replica_exchange_finds_its_number_of_rungs():
    num = [len(ReplicaExchange(quadratic_gebm(dim, 3.0).latent).inverse_temperatures) for dim in (1, 30)]
    assert num[0] <= 4 < 6 <= num[1] <= 10


def test_bad_arguments():
    latent = quadratic_gebm(2, 1.0).latent
    for kwargs in ({"num_groups": 1}, {"num_particles": 8}, {"num_moves": 0}, {"num_particles": 4095}):
        with pytest.raises(ValueError, match="Expected"):
            SMC(**kwargs)
    with pytest.raises(ValueError, match="Expected effective_fraction in"):
        SMC(effective_fraction=1.0)
    for kwargs in ({"num_rungs": 1}, {"num_moves": 0}):
        with pytest.raises(ValueError, match="Expected num_"):
            ReplicaExchange(latent, **kwargs)
    with pytest.raises(TypeError, match="gebm.latent"):
        ReplicaExchange(standard_normal(2))
    with pytest.raises(ValueError, match="Expected draws of the tilted law with method='bridge'"):
        log_z(quadratic_gebm(2, 1.0), "bridge")
    with pytest.raises(ValueError, match="Expected draws of shape"):
        log_z(quadratic_gebm(2, 1.0), "bridge", draws=np.zeros((10, 2)))
    with pytest.raises(ValueError, match="Expected num_samples >= 2 or None; got 1"):
        log_z(quadratic_gebm(2, 1.0), "importance", num_samples=1)
    with pytest.raises(ValueError, match="Expected method"):
        log_z(quadratic_gebm(2, 1.0), "harmonic mean")


def test_a_gebm_with_a_batch():
    gebm = quadratic_gebm(2, 1.0, inverse_temperature=jnp.array([1.0, 2.0]))
    with pytest.raises(ValueError, match=r"Expected a GEBM with batch_shape \(\); got \(2,\)"):
        SMC().run(gebm.latent, rng_key=random.key(0))


def test_nan_is_an_error():
    gebm = GEBM(standard_normal(2), lambda x: jnp.where(x[0] > 2.5, jnp.nan, 0.5 * (x**2).sum()))
    with pytest.raises(RuntimeError, match="NaN"):
        SMC().run(gebm.latent, rng_key=random.key(0))
    with pytest.raises(RuntimeError, match="NaN"):
        ReplicaExchange(gebm.latent)
    with pytest.raises(RuntimeError, match="NaN at"):
        log_z(gebm, "importance")


def test_smc_as_the_sampler_of_a_gebm():
    gebm = GEBM(offset_gebm().base, offset_gebm().energy, inverse_temperature=2.0, sampler=SMC())
    z = gebm.latent.sample(random.key(0), (4096,))
    cases.assert_moments(np.asarray(z)[None], CASE.mean(2.0), CASE.covariance(2.0), min_ess=1000, z_max=4.5)
    np.testing.assert_array_equal(z, gebm.latent.sample(random.key(0), (4096,)))


def test_energies_that_are_infinite():
    gebm = GEBM(dist.Normal(0.0, 1.0), lambda x: jnp.where(x > 0, x, jnp.inf))  # Z = exp(1/2) P(z > 1)
    truth = 0.5 + math.log(0.5 * math.erfc(1 / math.sqrt(2)))
    for estimate in (smc(gebm).log_partition, log_z(gebm, "importance")):
        assert abs(estimate.value - truth) <= 4 * estimate.std_error < 0.1


@pytest.mark.slow  # each compiles
@pytest.mark.parametrize(
    "energy, dim, truth",
    [
        (lambda x: 0.5 * (x[0] / 0.005) ** 2, 2, -0.5 * math.log1p(0.005**-2)),
        (lambda x: jnp.zeros(()), 1, 0.0),
        (lambda x: 30.0 * ((x**2 - 1.0) ** 2).sum(), 1, -2.534317),  # by quadrature
    ],
    ids=["narrow", "zero", "walls"],
)
def test_energies_that_moves_find_hard(energy, dim, truth):
    result = smc(GEBM(standard_normal(dim), energy))
    assert abs(result.log_partition.value - truth) <= 4 * result.log_partition.std_error + 1e-9 < 0.2
    assert result.accept_probs[1:].min() > 0.5 and result.log_partition.warnings == ()


def test_particles_that_hardly_move_bring_a_warning(monkeypatch):
    monkeypatch.setattr(importlib.import_module("numpyro_gebm.infer.ladder.smc"), "MIN_ACCEPT_PROB", 0.999)
    (warning,) = smc(offset_gebm()).log_partition.warnings
    assert re.search(r"At beta = \S+ \S+ % of the moves were accepted", warning)


def test_a_constrained_latent():
    prior = dist.Gamma(3.0, 2.0)
    gebm = GEBM(prior, lambda x: 1.5 * x)  # tilted to Gamma(3, 3.5)
    result = smc(gebm)
    assert abs(result.log_partition.value - 3.0 * math.log(2.0 / 3.5)) <= 4 * result.log_partition.std_error
    kernel = ReplicaExchange(gebm.latent)
    start = kernel.init(random.split(random.key(0)), 0, {"z": jnp.array([-1.0, 2.0])})  # unconstrained
    np.testing.assert_allclose(start.z["z"], np.exp([-1.0, 2.0]))
    with pytest.raises(ValueError, match="Expected a real potential at `init_params`"):
        kernel.init(random.split(random.key(0)), 0, {"z": jnp.array([-1.0, jnp.nan])})
    mcmc = chains(kernel, 100, 500, 16)
    draws = draws_of(mcmc)
    assert (draws > 0).all()
    cases.assert_mean(draws, 3.0 / 3.5)
    u = np.log(draws)
    lp = 3.0 * math.log(2.0) - float(gammaln(3.0)) + 3.0 * u - 3.5 * draws
    np.testing.assert_allclose(to_arviz(mcmc)["sample_stats"]["lp"], lp, rtol=1e-6)


@pytest.mark.parametrize("chain_method", ["sequential", pytest.param("parallel", marks=pytest.mark.slow)])
@pytest.mark.filterwarnings("ignore:There are not enough devices:UserWarning")
def test_chain_methods_of_replica_exchange(chain_method):
    mcmc = chains(ReplicaExchange(offset_gebm().latent, num_rungs=3), 50, 200, 2, 0, chain_method)
    assert draws_of(mcmc).shape == (2, 200, 2)
    cases.assert_moments(draws_of(mcmc), CASE.mean(2.0), CASE.covariance(2.0), min_ess=50)


def test_start_restart_and_pickling_of_replica_exchange():
    kernel = pickle.loads(pickle.dumps(ReplicaExchange(quadratic_gebm(2, 3.0).latent, num_rungs=3, site="w")))
    state = kernel.init(random.split(random.key(0), 2), 0, {"w": jnp.full((2, 2), 7.0)})
    np.testing.assert_array_equal(state.z["w"], jnp.full((2, 2), 7.0))
    mcmc = chains(kernel, 10, 20, 2)
    assert mcmc.get_samples()["w"].shape == (40, 2)
    trips = mcmc.last_state.round_trips
    mcmc.post_warmup_state = mcmc.last_state
    mcmc.run(mcmc.post_warmup_state.rng_key)
    assert (mcmc.last_state.round_trips >= trips).all() and (mcmc.last_state.i == 50).all()


def beta_model(gebm, x):
    beta = numpyro.sample("beta", dist.LogNormal(0.0, 1.0))
    with numpyro.plate("rows", len(x)):
        numpyro.sample("x", gebm.temper(beta), obs=x)


def posterior_of_beta(log_partition, x):
    gebm = GEBM(dist.Normal(0.0, 1.0), lambda x: 0.5 * x**2, log_partition=log_partition)
    mcmc = MCMC(
        NUTS(beta_model), num_warmup=500, num_samples=1500, num_chains=4, chain_method="vectorized", progress_bar=False
    )
    mcmc.run(random.key(0), gebm, jnp.asarray(x))
    return np.asarray(mcmc.get_samples(group_by_chain=True)["beta"])


def curve_up_to(beta):
    coldest = GEBM(dist.Normal(0.0, 1.0), lambda x: 0.5 * x**2, inverse_temperature=beta)
    return log_partition_curve(coldest, rng_key=random.key(0))


def nuts_on_two_modes():
    gebm = two_modes()
    kernel = NUTS(lambda: numpyro.sample("z", gebm.latent), init_strategy=init_to_prior)
    return draws_of(chains(kernel, 500, 500, 4, seed=2))


def test_curve_of_the_log_partition():
    curve = curve_up_to(10.0)
    beta = np.linspace(0.0, 10.0, 101)
    np.testing.assert_allclose([float(curve(b)) for b in beta], -0.5 * np.log1p(beta), atol=0.02)
    assert float(curve(10.1)) == math.inf  # nothing is known there
    with pytest.raises(ValueError, match="Expected an inverse temperature above 0"):
        curve_up_to(0.0)


def test_inverse_temperature_as_a_random_variable():
    x = 0.5 * np.random.default_rng(0).normal(size=20)
    grid = np.exp(np.linspace(-8.0, 8.0, 20_001))
    log_density = -0.5 * np.log(grid) ** 2 + 0.5 * len(x) * np.log1p(grid) - 0.5 * grid * (x**2).sum()
    weights = np.exp(log_density - log_density.max())
    mean = (weights * grid).sum() / weights.sum()  # in log beta, whose density has no 1 / beta
    cases.assert_mean(posterior_of_beta(curve_up_to(50.0), x), mean, min_ess=400)
    with pytest.raises(AssertionError, match="standard errors"):
        cases.assert_mean(posterior_of_beta(None, x), mean, min_ess=400)


def test_a_curve_of_steep_slopes_stays_convex():
    """As that of an energy of infinite mean: the slope at 0 is that of a finite sample."""
    x, y = jnp.array([0.0, 0.1, 1.0]), jnp.array([0.0, -0.2, -0.6])
    curve = LogPartitionCurve(x, y, jnp.array([-1e6, -1.0, -0.1]))
    grid = jnp.linspace(0.0, 1.0, 1001)
    values = np.asarray(curve(grid))
    assert (np.diff(values) < 0).all() and values.min() >= -0.6
    for low, high in ((0, 101), (100, 1001)):  # between rungs
        assert (np.diff(values[low:high], 2) > -1e-9).all()


def test_single_precision():
    with jax.enable_x64(False):
        gebm = GEBM(standard_normal(3), Quadratic(jnp.float32(3.0)))
        result = smc(gebm)
        assert result.z.dtype == jnp.float32
        assert abs(result.log_partition.value - exact(3, 3.0)) <= 4 * result.log_partition.std_error < 0.1


@pytest.mark.parametrize("t, fraction", [(0.0, 0.5), (0.2, 0.9)])
def test_the_next_rung(t, fraction):
    tilt = -np.random.default_rng(0).exponential(20.0, 5000)
    new = float(tempering.next_rung(jnp.asarray(t), jnp.asarray(tilt), fraction))
    assert t < new < 1
    assert float(tempering.effective_fraction(jnp.asarray((new - t) * tilt))) == pytest.approx(fraction, abs=1e-6)
    assert float(tempering.next_rung(jnp.asarray(t), jnp.asarray(1e-3 * tilt), fraction)) == 1.0


def test_the_length_scale():
    draws = np.random.default_rng(0).normal(size=(20_000, 50)) * np.linspace(0.1, 2.0, 50)
    variances = draws.var(0)
    expected = math.sqrt((variances**2).sum() / variances.sum())
    assert float(tempering.length_scale_of(jnp.asarray(draws))) == pytest.approx(expected, rel=0.15)


def test_systematic_resampling():
    weights = np.random.default_rng(0).dirichlet(np.ones(50))
    counts = np.stack(
        [
            np.bincount(
                np.asarray(tempering.systematic_resample(random.key(i), jnp.asarray(np.log(weights)))), minlength=50
            )
            for i in range(400)
        ]
    )
    assert (np.abs(counts - 50 * weights) < 1).all()
    np.testing.assert_allclose(counts.mean(0), 50 * weights, atol=0.12)
