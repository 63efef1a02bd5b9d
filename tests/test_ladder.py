"""The ladder from the base to the tilted law: log-partitions, SMC, replica exchange, against exact values."""

import functools
import math
import re

import arviz as az
import cases
import numpy as np
import pytest

from gebm import ladder

CASE = cases.linear_gaussian()
TRACES = []


def quadratic(a, x):
    """a |x|^2 / 2; another a does not compile again."""
    TRACES.append(x.shape)
    return 0.5 * a * (x**2).sum(-1)


def half_square(x):
    return 0.5 * x**2


def quadratic_gebm(host, dim, a, **kwargs):
    """FACTS' case of a known log-partition, -d/2 log(1 + a)."""
    return host.GEBM(host.normal(dim), host.network(quadratic, a), **kwargs)


def two_modes(host):
    """Prior N(0, 9 I) tilted to 0.8 N((0, 0), I) + 0.2 N((8, 0), I): log Z = 0."""
    prior = host.normal(2, scale=3.0)

    def energy(x):
        of_modes = [
            math.log(w / (2 * math.pi)) - 0.5 * ((x[..., 0] - m) ** 2 + x[..., 1] ** 2)
            for m, w in ((0.0, 0.8), (8.0, 0.2))
        ]
        return prior.log_prob(x) - host.xp.logaddexp(*of_modes)

    return host.GEBM(prior, energy)


@functools.cache
def offset_gebm(host):
    """One object: NumPyro compiles for every new function."""
    return host.linear_gaussian(2.0)


def smc(host, gebm, seed=0, **kwargs):
    return host.call(host.infer.SMC(**kwargs).run, gebm.latent, seed=seed)


def log_z(host, gebm, method, **kwargs):
    return host.call(host.log_partition, gebm, method, **kwargs)


def exact(dim, a):
    return -0.5 * dim * math.log1p(a)


def z_scores(host, dim, a, num):
    """Of as many estimates, their ratios to the truth, and the first result."""
    gebm = quadratic_gebm(host, dim, a)
    results = [smc(host, gebm, seed) for seed in range(num)]
    estimates = [result.log_partition for result in results]
    errors = np.array([estimate.value for estimate in estimates]) - exact(dim, a)
    return errors / [estimate.std_error for estimate in estimates], np.exp(errors), results[0]


def assert_tilted(draws, **kwargs):
    cases.assert_moments(draws, CASE.mean(2.0), CASE.covariance(2.0), **kwargs)


@pytest.mark.slow_in("numpyro")
def test_smc_on_a_quadratic_energy(host):
    z, _, result = z_scores(host, 10, 3.0, 6)
    assert np.abs(z).max() <= 4 and z.std() > 0.2
    assert result.inverse_temperatures[0] == 0 and result.inverse_temperatures[-1] == 1
    assert (np.diff(result.inverse_temperatures) > 0).all() and (result.accept_probs[1:] > 0.5).all()
    t = 3.0 * result.inverse_temperatures
    np.testing.assert_allclose(result.log_partitions, -5.0 * np.log1p(t), atol=0.15)
    np.testing.assert_allclose(result.mean_energies, 15.0 / (1.0 + t), rtol=0.1)
    assert result.num_gradients >= (4096 + 1024) * 4 * (len(t) - 1)
    draws = host.numpy(result.z)
    assert draws.shape == (4096, 10)
    cases.assert_moments(draws[None], np.zeros(10), 0.25 * np.eye(10), min_ess=1000, z_max=4.5)
    assert result.log_partition.warnings == ()
    other, num_traces = quadratic_gebm(host, 10, 2.0), len(TRACES)
    other = smc(host, other, 1)
    assert abs(other.log_partition.value - exact(10, 2.0)) <= 4 * other.log_partition.std_error
    assert (len(TRACES) == num_traces > 0) == (host.name == "numpyro")  # nothing is compiled again


@pytest.mark.slow
@pytest.mark.parametrize("dim, a", [(1, 1.0), (1, 3.0), (1, 30.0), (10, 1.0), (10, 3.0), (10, 30.0), (100, 30.0)])
def test_smc_is_calibrated(host, dim, a):
    num = 50 if dim < 100 else 2  # docs/ladder.md has 50 of all
    z, ratios, _ = z_scores(host, dim, a, num)
    assert np.abs(z).max() <= 4
    if num == 50:
        assert 0.75 <= z.std(ddof=1) <= 1.33
        assert abs(ratios.mean() - 1) <= 4 * ratios.std(ddof=1) / math.sqrt(num)


def test_smc_of_a_latent_with_an_offset(host):
    result = smc(host, offset_gebm(host))
    error = result.log_partition.value - CASE.log_partition(2.0)
    assert abs(error) <= 4 * result.log_partition.std_error < 0.2
    assert_tilted(host.numpy(result.z)[None], min_ess=1000, z_max=4.5)


@pytest.mark.parametrize(
    "method", ["importance", pytest.param("ais", marks=pytest.mark.slow_in("numpyro")), "smc", "bridge"]
)
def test_methods(host, method):
    kwargs = {}
    if method == "bridge":
        normal = np.random.default_rng(0).normal(size=(4, 1000, 2))
        kwargs["draws"] = CASE.mean(2.0) + normal @ np.linalg.cholesky(CASE.covariance(2.0)).T
    estimate = log_z(host, offset_gebm(host), method, **kwargs)
    assert abs(estimate.value - CASE.log_partition(2.0)) <= 4 * estimate.std_error < 0.2
    assert estimate.ess > 500 and estimate.warnings == ()


def test_importance_sampling_says_when_it_fails(host):
    estimate = log_z(host, quadratic_gebm(host, 100, 3.0), "importance", num_samples=20_000)
    assert abs(estimate.value - exact(100, 3.0)) > 4 * estimate.std_error  # and it does not know
    assert estimate.pareto_k > 0.7 and estimate.ess < 100
    assert len(estimate.warnings) == 2 and "Pareto" in estimate.warnings[0] and "smc" in estimate.warnings[1]


def test_smc_says_when_it_fails(host):
    settings = {"num_particles": 128, "num_moves": 1, "effective_fraction": 0.1}
    estimate = smc(host, quadratic_gebm(host, 30, 30.0), **settings).log_partition
    assert estimate.ess < 40 and any("64 groups of particles" in warning for warning in estimate.warnings)


@pytest.mark.parametrize(
    "method, kwargs, title", [("smc", {}, "SMC"), ("importance", {"num_samples": 60}, "Draws of the base")]
)
def test_a_long_estimate_shows_a_progress_bar(host, method, kwargs, title, capsys, monkeypatch):
    for module in ("smc", "partition"):
        monkeypatch.setattr(host.module(f"infer.ladder.{module}"), "DELAY", 1e-9)
    for progress_bar in (True, False):
        log_z(host, offset_gebm(host), method, progress_bar=progress_bar, **kwargs)
        assert (title in capsys.readouterr().err) == progress_bar


def test_a_gebm_is_not_changed_by_its_own_log_partition(host):
    known, unknown = (log_z(host, host.linear_gaussian(1.0, log_partition=a), "importance") for a in (5.0, None))
    assert known.value == unknown.value


def test_bridge_sampling_refuses_nan_and_takes_constants(host):
    draws = np.zeros((4, 10, 2))
    with pytest.raises(ValueError, match="NaN or -inf at draws of the tilted law"):
        log_z(host, quadratic_gebm(host, 2, 1.0), "bridge", draws=np.where(draws == 0, np.nan, draws))
    base = log_z(host, quadratic_gebm(host, 2, 1.0, inverse_temperature=0.0), "bridge", draws=draws)
    assert base.value == pytest.approx(0.0, abs=1e-9) and base.std_error == pytest.approx(0.0, abs=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(2))
def test_two_modes(host, seed):
    gebm = two_modes(host)
    of_smc = smc(host, gebm, seed, num_particles=32_768)
    assert abs(np.mean(host.numpy(of_smc.z)[:, 0] > 4) - 0.2) <= 0.03
    assert abs(of_smc.log_partition.value) <= 4 * of_smc.log_partition.std_error < 0.1
    draws = host.run(host.infer.ReplicaExchange(gebm.latent), 200, 1000, 64, seed=seed)["z"]
    assert abs(np.mean(draws[..., 0] > 4) - 0.2) <= 0.03


@pytest.mark.slow_in("pyro")
def test_nuts_misses_a_mode_and_r_hat_is_one(host):
    latent = two_modes(host).latent
    num_warmup, num_samples, seed = (500, 500, 2) if host.name == "numpyro" else (200, 300, 1)
    kernel = host.nuts(lambda: host.ppl.sample("z", latent))
    draws = host.run(kernel, num_warmup, num_samples, 4, seed=seed)["z"]
    assert float(az.rhat(draws[..., 0])) < 1.01 and float(az.rhat(draws[..., 1])) < 1.01
    assert np.mean(draws[..., 0] > 4) == 0.0


def test_replica_exchange(host):
    kernel = host.infer.ReplicaExchange(offset_gebm(host).latent, num_rungs=4)
    mcmc = host.mcmc(kernel, 100, 400, 16)
    assert_tilted(host.draws(mcmc)["z"])
    data = host.to_arviz(mcmc, offset_gebm(host))["sample_stats"]
    assert data["swap_accept_prob"].shape == (16, 400, 3) and data["energy_x"].shape == (16, 400)
    rates = data["swap_accept_prob"].values.mean((0, 1))
    assert np.ptp(rates) < 0.1 and 0.5 < rates.mean() < 1  # evenly spaced
    trips = data["round_trips"].values
    assert (np.diff(trips) >= 0).all() and (trips[:, -1] > 50).all()
    beta = np.asarray(kernel.inverse_temperatures)
    assert beta.shape == (4,) and beta[0] == 0 and beta[-1] == 2 and (np.diff(beta) > 0).all()


@pytest.mark.slow_in("numpyro")
def test_replica_exchange_finds_its_number_of_rungs(host):
    latents = [quadratic_gebm(host, dim, 3.0).latent for dim in (1, 30)]
    num = [len(host.infer.ReplicaExchange(latent).inverse_temperatures) for latent in latents]
    assert num[0] <= 4 < 6 <= num[1] <= 10


def test_bad_arguments(host):
    gebm, SMC, ReplicaExchange = quadratic_gebm(host, 2, 1.0), host.infer.SMC, host.infer.ReplicaExchange
    for kwargs in ({"num_groups": 1}, {"num_particles": 8}, {"num_moves": 0}, {"num_particles": 4095}):
        with pytest.raises(ValueError, match="Expected"):
            SMC(**kwargs)
    with pytest.raises(ValueError, match="Expected effective_fraction in"):
        SMC(effective_fraction=1.0)
    for kwargs in ({"num_rungs": 1}, {"num_moves": 0}):
        with pytest.raises(ValueError, match="Expected num_"):
            ReplicaExchange(gebm.latent, **kwargs)
    with pytest.raises(TypeError, match="gebm.latent"):
        ReplicaExchange(host.normal(2))
    with pytest.raises(ValueError, match="Expected `draws` with method='bridge'"):
        log_z(host, gebm, "bridge")
    with pytest.raises(ValueError, match="Expected draws of shape"):
        log_z(host, gebm, "bridge", draws=np.zeros((10, 2)))
    with pytest.raises(ValueError, match="Expected num_samples >= 2 or None; got 1"):
        log_z(host, gebm, "importance", num_samples=1)
    with pytest.raises(ValueError, match="Expected method"):
        log_z(host, gebm, "harmonic mean")


def test_a_gebm_with_a_batch(host):
    gebm = quadratic_gebm(host, 2, 1.0, inverse_temperature=host.array([1.0, 2.0]))
    with pytest.raises(ValueError, match=r"Expected a GEBM with batch_shape \(\); got \(2,\)"):
        smc(host, gebm)


def test_nan_is_an_error(host):
    gebm = host.GEBM(host.normal(2), lambda x: host.xp.where(x[..., 0] > 2.5, math.nan, 0.5 * (x**2).sum(-1)))
    with pytest.raises(RuntimeError, match="NaN"):
        smc(host, gebm)
    with pytest.raises(RuntimeError, match="NaN"):
        host.infer.ReplicaExchange(gebm.latent)
    with pytest.raises(RuntimeError, match="NaN at"):
        log_z(host, gebm, "importance")


def test_smc_as_the_sampler_of_a_gebm(host):
    base, energy = offset_gebm(host).base, offset_gebm(host).energy
    latent = host.GEBM(base, energy, inverse_temperature=2.0, sampler=host.infer.SMC()).latent
    z, same = (host.numpy(host.sample(latent, (4096,))) for _ in range(2))
    assert_tilted(z[None], min_ess=1000, z_max=4.5)
    np.testing.assert_array_equal(z, same)


def test_energies_that_are_infinite(host):
    energy = lambda x: host.xp.where(x > 0, x, math.inf)  # noqa: E731
    gebm = host.GEBM(host.dist.Normal(0.0, 1.0), energy)  # Z = exp(1/2) P(z > 1)
    truth = 0.5 + math.log(0.5 * math.erfc(1 / math.sqrt(2)))
    for estimate in (smc(host, gebm).log_partition, log_z(host, gebm, "importance")):
        assert abs(estimate.value - truth) <= 4 * estimate.std_error < 0.1


@pytest.mark.slow_in("numpyro")
def test_walls(host):
    """A half plane, and a slope that is as good as one: no draw where the density is 0, and log Z = log(1/2)."""
    energies = {
        "wall": lambda x: host.xp.where(x[..., 0] > 0, 0.0, math.inf),
        "slope": lambda x: host.xp.exp(200.0 * x[..., 0]),
    }
    for name, energy in energies.items():
        gebm, sign = host.GEBM(host.normal(2), energy), 1 if name == "wall" else -1
        mcmc = host.mcmc(host.infer.ReplicaExchange(gebm.latent), 50, 400, 16)
        draws = host.draws(mcmc)["z"]
        assert (sign * draws[..., 0] > -0.03).all()
        cases.assert_mean(sign * draws[..., 0], math.sqrt(2 / math.pi))
        for method, given in (("ais", None), ("bridge", draws)):
            estimate = log_z(host, gebm, method, draws=given)
            assert abs(estimate.value + math.log(2.0)) <= 4 * estimate.std_error < 0.2
    gebm = host.GEBM(host.normal(2), energies["wall"])
    first = host.run(host.infer.ReplicaExchange(gebm.latent), 0, 1, 64)["z"]
    assert (first[..., 0] > 0).all()


@pytest.mark.slow_in("numpyro")
@pytest.mark.parametrize(
    "energy, dim, truth",
    [
        (lambda xp, x: 0.5 * (x[..., 0] / 0.005) ** 2, 2, -0.5 * math.log1p(0.005**-2)),
        (lambda xp, x: xp.zeros(x.shape[:-1]), 1, 0.0),
        (lambda xp, x: 30.0 * ((x**2 - 1.0) ** 2).sum(-1), 1, -2.534317),  # by quadrature
    ],
    ids=["narrow", "zero", "walls"],
)
def test_energies_that_moves_find_hard(host, energy, dim, truth):
    result = smc(host, host.GEBM(host.normal(dim), functools.partial(energy, host.xp)))
    assert abs(result.log_partition.value - truth) <= 4 * result.log_partition.std_error + 1e-9 < 0.2
    assert result.accept_probs[1:].min() > 0.5 and result.log_partition.warnings == ()


def test_particles_that_hardly_move_bring_a_warning(host, monkeypatch):
    monkeypatch.setattr(ladder, "MIN_ACCEPT_PROB", 0.999)
    (warning,) = smc(host, offset_gebm(host)).log_partition.warnings
    assert re.search(r"At beta = \S+, only \S+ % of the moves were accepted", warning)


@pytest.mark.slow_in("numpyro")
def test_a_constrained_latent(host):
    gebm = host.GEBM(host.dist.Gamma(3.0, 2.0), lambda x: 1.5 * x)  # tilted to Gamma(3, 3.5)
    result = smc(host, gebm)
    assert abs(result.log_partition.value - 3.0 * math.log(2.0 / 3.5)) <= 4 * result.log_partition.std_error
    mcmc = host.mcmc(host.infer.ReplicaExchange(gebm.latent), 100, 500, 16)
    draws = host.draws(mcmc)["z"]
    assert (draws > 0).all()
    cases.assert_mean(draws, 3.0 / 3.5)
    u = np.log(draws)
    lp = 3.0 * math.log(2.0) - math.lgamma(3.0) + 3.0 * u - 3.5 * draws
    np.testing.assert_allclose(host.to_arviz(mcmc)["sample_stats"]["lp"], lp, rtol=1e-6)


def curve_up_to(host, beta):
    gebm = host.GEBM(host.dist.Normal(0.0, 1.0), half_square, inverse_temperature=beta)
    return host.call(host.log_partition_curve, gebm)


def test_curve_of_the_log_partition(host):
    curve = curve_up_to(host, 10.0)
    beta = np.linspace(0.0, 10.0, 101)
    np.testing.assert_allclose([float(curve(b)) for b in beta], -0.5 * np.log1p(beta), atol=0.02)
    assert float(curve(10.1)) == math.inf  # nothing is known there
    with pytest.raises(ValueError, match="Expected inverse_temperature > 0"):
        curve_up_to(host, 0.0)


def posterior_of_beta(host, log_partition, x):
    gebm = host.GEBM(host.dist.Normal(0.0, 1.0), half_square, log_partition=log_partition)

    def model(x):
        beta = host.ppl.sample("beta", host.dist.LogNormal(0.0, 1.0))
        with host.ppl.plate("rows", len(x)):
            host.ppl.sample("x", gebm.temper(beta), obs=x)

    num_warmup, num_chains = (500, 4) if host.name == "numpyro" else (300, 1)
    return host.run(host.ppl.infer.NUTS(model), num_warmup, 1500, num_chains, host.array(x))["beta"]


@pytest.mark.slow_in("pyro")
def test_inverse_temperature_as_a_random_variable(host):
    x = 0.5 * np.random.default_rng(0).normal(size=20)
    grid = np.exp(np.linspace(-8.0, 8.0, 20_001))
    log_density = -0.5 * np.log(grid) ** 2 + 0.5 * len(x) * np.log1p(grid) - 0.5 * grid * (x**2).sum()
    weights = np.exp(log_density - log_density.max())
    mean = (weights * grid).sum() / weights.sum()  # in log beta, whose density has no 1 / beta
    cases.assert_mean(posterior_of_beta(host, curve_up_to(host, 50.0), x), mean, min_ess=400)
    with pytest.raises(AssertionError, match="standard errors"):
        cases.assert_mean(posterior_of_beta(host, None, x), mean, min_ess=400)


def test_a_curve_of_steep_slopes_stays_convex(host):
    """As that of an energy of infinite mean: the slope at 0 is that of a finite sample."""
    rungs = [[0.0, 0.1, 1.0], [0.0, -0.2, -0.6], [-1e6, -1.0, -0.1]]
    curve = host.LogPartitionCurve(*map(host.array, rungs))
    values = host.numpy(host.jit(lambda beta: curve(beta))(host.array(np.linspace(0.0, 1.0, 1001))))
    assert (np.diff(values) < 0).all() and values.min() >= -0.6
    for low, high in ((0, 101), (100, 1001)):  # between rungs
        assert (np.diff(values[low:high], 2) > -1e-9).all()


def test_single_precision(host):
    with host.float32():
        gebm = quadratic_gebm(host, 3, 3.0)
        result = smc(host, gebm)
        assert host.numpy(result.z).dtype == np.float32
        assert abs(result.log_partition.value - exact(3, 3.0)) <= 4 * result.log_partition.std_error < 0.1
        draws = 0.5 * np.random.normal(size=(4, 500, 3))  # float64
        bridged = log_z(host, gebm, "bridge", draws=draws)
        assert abs(bridged.value - exact(3, 3.0)) <= 4 * bridged.std_error < 0.3


@pytest.fixture
def tempering(host):
    return host.module("infer.ladder.tempering")


@pytest.mark.parametrize("t, fraction", [(0.0, 0.5), (0.2, 0.9)])
def test_the_next_rung(host, tempering, t, fraction):
    neg_beta_energy = -np.random.default_rng(0).exponential(20.0, 5000)

    def next_rung(neg_beta_energy):
        return float(tempering.next_rung(np.float64(t), host.array(neg_beta_energy), fraction))

    new = next_rung(neg_beta_energy)
    assert t < new < 1
    reached = tempering.effective_fraction(host.array((new - t) * neg_beta_energy))
    assert float(reached) == pytest.approx(fraction, abs=1e-6)
    assert next_rung(1e-3 * neg_beta_energy) == 1.0


def test_the_length_scale(host, tempering):
    draws = np.random.default_rng(0).normal(size=(20_000, 50)) * np.linspace(0.1, 2.0, 50)
    variances = draws.var(0)
    expected = math.sqrt((variances**2).sum() / variances.sum())
    assert float(tempering.length_scale_of(host.array(draws))) == pytest.approx(expected, rel=0.15)


def test_systematic_resampling(host, tempering):
    weights = np.random.default_rng(0).dirichlet(np.ones(50))
    log_weights, resample = host.array(np.log(weights)), host.jit(tempering.systematic_resample)
    indices = [host.numpy(resample(*host.key(i), log_weights)) for i in range(400)]
    counts = np.stack([np.bincount(index, minlength=50) for index in indices])
    assert (np.abs(counts - 50 * weights) < 1).all()
    np.testing.assert_allclose(counts.mean(0), 50 * weights, atol=0.12)
