"""Observed sites in ArviZ data: their values, their log-likelihood at draws, and what ArviZ computes from it."""

import numpy as np
import pytest

from gebm.arviz_data import from_groups, predictive_groups

az = pytest.importorskip("arviz")
Y = np.array([-1.2, -0.3, 0.1, 0.4, 0.9, 1.1, 1.6, 2.2])
#: Of the mean, whose base is N(0, 1) and whose energy is x² / 2; the data have variance 1.
PRECISION = 2.0
DRAWS = np.random.default_rng(0).normal(Y.sum() / (PRECISION + 8), (PRECISION + 8) ** -0.5, (4, 1000))


def log_normal(y, mean, variance=1.0):
    return -0.5 * ((y - mean) ** 2 / variance + np.log(2 * np.pi * variance))


def gebm(host):
    return host.GEBM(host.dist.Normal(host.array(0.0), host.array(1.0)), lambda x: 0.5 * x**2)


def gaussian(host):
    """A model of `Y`, with what is observed and yet no data: a factor and a deterministic site."""
    latent = gebm(host).latent

    def model(y=None):
        mean = host.ppl.sample("mean", latent)
        host.ppl.deterministic("twice", 2.0 * mean)
        host.ppl.factor("nothing", host.array(0.0))
        with host.ppl.plate("rows", 8):
            host.ppl.sample("y", host.dist.Normal(mean, host.array(1.0)), obs=y)

    return model


def observations(host, model, draws, *args):
    draws = {name: host.array(value) for name, value in draws.items()}
    groups = host.module("observations").observations(model, tuple(map(host.array, args)), {}, draws)
    return groups["observed_data"], groups["log_likelihood"]


def test_values_are_those_by_hand(host):
    data, log_likelihood = observations(host, gaussian(host), {"mean": DRAWS}, Y)
    assert set(data) == set(log_likelihood) == {"y"}
    np.testing.assert_array_equal(data["y"], Y)
    np.testing.assert_allclose(log_likelihood["y"], log_normal(Y, DRAWS[..., None]), rtol=1e-12)


def test_masked_rows_have_no_likelihood(host):
    mask = host.array(Y > 0)

    def model(y):
        with host.handlers.mask(mask=mask):
            gaussian(host)(y)

    _, log_likelihood = observations(host, model, {"mean": DRAWS[:, :3]}, Y)
    np.testing.assert_allclose(log_likelihood["y"], (Y > 0) * log_normal(Y, DRAWS[:, :3, None]), rtol=1e-12)


def test_latents_of_a_reparametrised_site_are_decoded(host):
    base = host.Pushforward(host.normal(2), lambda z: 3.0 * z)
    inner = host.GEBM(base, lambda x: 0.5 * (x**2).sum(-1))

    def model(y):
        x = host.ppl.sample("x", inner)
        host.ppl.sample("y", host.dist.Normal(x, host.array(1.0)).to_event(1), obs=y)

    model, z = host.handlers.reparam(model, config={"x": host.LatentReparam()}), np.random.normal(size=(2, 5, 2))
    data, log_likelihood = observations(host, model, {"x_latent": z}, Y[:2])
    assert set(data) == {"y"}
    np.testing.assert_allclose(log_likelihood["y"], log_normal(Y[:2], 3.0 * z).sum(-1), rtol=1e-12)


def test_what_the_draws_do_not_determine_has_no_likelihood(host):
    def subsampled(y):
        mean = host.ppl.sample("mean", gebm(host).latent)
        with host.ppl.plate("rows", 8, subsample_size=2) as rows:
            host.ppl.sample("y", host.dist.Normal(mean, host.array(1.0)), obs=y[rows])

    def another_latent(y):
        host.ppl.sample("coin", host.dist.Bernoulli(host.array(0.5)))
        gaussian(host)(y)

    for model in (subsampled, another_latent):
        data, log_likelihood = observations(host, model, {"mean": DRAWS[:, :3]}, Y)
        assert set(data) == {"y"} and not log_likelihood
    assert observations(host, gaussian(host), {"mean": DRAWS[:, :3]}) == ({}, {})


@pytest.mark.filterwarnings("ignore:The inplace keyword")  # ArviZ 0.23 with pandas 3.1
def test_leave_one_out_is_the_exact_one(host):
    observed, log_likelihood = observations(host, gaussian(host), {"mean": DRAWS}, Y)
    data = from_groups({"mean": DRAWS}, observed_data=observed, log_likelihood=log_likelihood)
    loo, rest = az.loo(data), PRECISION + 7
    elpd = float(loo.elpd if hasattr(loo, "elpd") else loo.elpd_loo)
    exact = log_normal(Y, (Y.sum() - Y) / rest, 1 + 1 / rest).sum()
    ratios = np.exp(-log_likelihood["y"].reshape(-1, 8))  # the importance weights of one that is left out
    error = np.sqrt((ratios / ratios.mean(0)).sum(1).var() / len(ratios))
    assert abs(elpd - exact) < 4 * error < 0.1
    worse = from_groups({"mean": DRAWS}, log_likelihood={"y": log_likelihood["y"] - 1.0})
    assert list(az.compare({"worse": worse, "right": data}).index) == ["right", "worse"]


def test_predictive_draws_of_another_run_are_refused():
    posterior = {"z": np.zeros((2, 5))}
    groups = predictive_groups(posterior, None, {"y": np.zeros((2, 5, 3))})
    assert groups["posterior_predictive"]["y"].shape == (2, 5, 3)
    with pytest.raises(ValueError, match=r"Expected posterior_predictive\['y'\] with one value .* 2 x 5 draws; got"):
        predictive_groups(posterior, None, {"y": np.zeros((9, 3))})
