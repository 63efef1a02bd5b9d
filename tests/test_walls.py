"""Energies that are infinite on a part of the base, or as good as that: every sampler and every estimate of log Z."""

import functools
import math

import cases
import numpy as np
import pytest
from scipy.stats import truncnorm

METHODS = ["importance", "ais", "smc", "bridge"]


@functools.cache
def wall(host, bound=0.0, **kwargs):
    """N(0, I_2) where x_0 > bound; one object, as NumPyro compiles for every new function."""
    zero, infinite = host.array(0.0), host.array(np.inf)
    return host.GEBM(host.normal(2), lambda x: host.xp.where(x[..., 0] > bound, zero, infinite), **kwargs)


@functools.cache
def steep(host):
    """exp(30 x_0): a wall at about 0, of energies up to 1e50."""
    return host.GEBM(host.normal(2), lambda x: host.xp.exp(30.0 * x[..., 0]))


def log_z_of_steep():
    grid = np.linspace(-8.0, 1.0, 200_001)
    return math.log(np.trapezoid(np.exp(-0.5 * grid**2 - np.exp(30.0 * grid)), grid) / math.sqrt(2 * math.pi))


def exact_draws(bound, num_chains=4, num_draws=500):
    first = truncnorm(bound, np.inf).rvs((num_chains, num_draws), random_state=0)
    return np.stack([first, np.random.default_rng(0).normal(size=first.shape)], -1)


def assert_of_the_wall(draws, bound, min_ess=250.0):
    """Draws, shape (chain, draw, 2), of the wall's law, and none of density 0."""
    law = truncnorm(bound, np.inf)
    assert draws[..., 0].min() > bound
    mean, covariance = [law.mean(), 0.0], np.diag([law.var(), 1.0])
    cases.assert_moments(draws, mean, covariance, min_ess=min_ess)


@pytest.mark.parametrize(
    "method", [*METHODS[:1], *(pytest.param(m, marks=pytest.mark.slow_in("numpyro")) for m in METHODS[1:])]
)
def test_log_z_of_a_wall(host, method):
    """log(1/2), within its standard error, with a shape of the weights wherever one is fitted."""
    draws = {"draws": exact_draws(0.0)} if method == "bridge" else {}
    estimate = host.call(host.log_partition, wall(host), method, **draws)
    assert abs(estimate.value - math.log(0.5)) <= 4 * estimate.std_error + 1e-12 < 0.12
    assert estimate.warnings == () and estimate.ess > 500
    assert estimate.pareto_k == -math.inf or method in ("smc", "bridge")


@pytest.mark.parametrize("bound", [0.0, pytest.param(2.0, marks=pytest.mark.slow)])
@pytest.mark.slow_in("numpyro")
def test_replica_exchange_and_smc_at_a_wall(host, bound):
    """2.3 % of the base lie beyond a wall at 2."""
    gebm = wall(host, bound)
    draws = host.run(host.infer.ReplicaExchange(gebm.latent), 50, 200, 60)["z"]
    assert_of_the_wall(draws, bound)
    result = host.call(host.infer.SMC().run, gebm.latent)
    assert_of_the_wall(host.numpy(result.z)[None], bound)
    truth = truncnorm(bound, np.inf).logpdf(bound + 1.0) * -1 - 0.5 * (bound + 1.0) ** 2 - 0.5 * math.log(2 * math.pi)
    assert abs(result.log_partition.value - truth) <= 4 * result.log_partition.std_error < 0.5


@pytest.mark.slow
def test_an_energy_of_any_scale(host):
    """The ladder of exp(30 x_0) begins at 1e-50, that of an inverse temperature of 1e20 at 1e-20."""
    draws = host.run(host.infer.ReplicaExchange(steep(host).latent), 50, 400, 40)["z"]
    cases.assert_mean(draws[..., 0], -0.8109, z_max=5)
    assert np.exp(30.0 * draws[..., 0]).max() < 30.0
    cold = host.GEBM(host.normal(2), lambda x: 0.5 * ((x - 1.0) ** 2).sum(-1), inverse_temperature=1e20)
    for gebm, truth in ((steep(host), log_z_of_steep()), (cold, -math.log1p(1e20) - 1.0)):
        result = host.call(host.infer.SMC().run, gebm.latent)
        assert abs(result.log_partition.value - truth) <= 4 * result.log_partition.std_error < 0.5


@pytest.mark.slow_in("numpyro")
def test_the_curve_jumps_at_0(host):
    curve = host.call(host.log_partition_curve, wall(host))
    values = [float(curve(host.array(beta))) for beta in (0.0, 1e-6, 0.5, 1.0)]
    assert values[0] == 0.0
    np.testing.assert_allclose(values[1:], math.log(0.5), atol=0.04)


def test_a_base_of_density_0_is_an_error_that_says_so(host):
    gebm = wall(host, 50.0)
    for run in (
        lambda: host.infer.ReplicaExchange(gebm.latent),
        lambda: host.call(host.infer.SMC().run, gebm.latent),
    ):
        with pytest.raises(
            RuntimeError, match=r"inf at all \d+ of them: it is finite on less than 0.00\d+ of the base"
        ):
            run()
    with pytest.raises(ValueError, match="got inf at all 2000"):
        host.call(host.log_partition, gebm, "bridge", draws=exact_draws(50.0))
    with pytest.raises(ValueError, match="got 2000 of 2000 with infinite energy"):
        host.call(host.log_partition, wall(host), "bridge", draws=-exact_draws(0.0))


@pytest.mark.slow_in("numpyro")
def test_replica_exchange_refuses_a_start_of_density_0(host):
    kernel = host.infer.ReplicaExchange(wall(host).latent)
    with pytest.raises(ValueError, match="Expected a finite potential at `init"):
        host.mcmc(kernel, 1, 1, 2, start={"z": np.array([[1.0, 0.0], [-1.0, 0.0]])})


@pytest.mark.parametrize("bound", [2.0, 99.0])
def test_where_kernels_start_at_a_wall(host, bound):
    """At draws beyond it, or with an error that says how few of the base are."""
    gebm, start = wall(host, bound), {} if host.name == "numpyro" else {"stock": False}

    def run():
        return host.run(host.infer.GHMC(lambda: host.ppl.sample("z", gebm.latent)), 0, 1, 8, **start)["z"]

    if bound == 2.0:
        assert run()[..., 0].min() > bound
        return
    with pytest.raises(ValueError, match=r"finite potential .* Of 8000 draws of the prior 0 \(0\) have one"):
        run()
