"""A GEBM as a part of a program: every way of inference that the hosts have, against the exact posterior."""

import importlib

import cases
import numpy as np
import pytest

CASE = cases.linear_gaussian()
#: One linear observation of x, its value, and its noise.
ROW, Y, NOISE = np.array([1.0, -0.5, 0.3]), 0.7, 0.5


def posterior():
    """Mean and covariance of z given y, all of it normal."""
    row = ROW @ CASE.W
    prior = np.linalg.inv(CASE.covariance(1.0))
    covariance = np.linalg.inv(prior + np.outer(row, row) / NOISE**2)
    return covariance @ (prior @ CASE.mean(1.0) + row * (Y - ROW @ CASE.b) / NOISE**2), covariance


def observed(host, tilted=False):
    """The program with the latent site `x_latent`, by `LatentReparam` or by `tilt`."""
    gebm, row = host.linear_gaussian(1.0), host.array(ROW)

    def observe(x, y):
        host.ppl.sample("y", host.dist.Normal(x @ row, NOISE), obs=None if y is None else host.array(y))

    def by_prior(y=Y):
        observe(host.ppl.sample("x", gebm), y)

    def by_tilt(y=Y):
        x = gebm.decode(host.ppl.sample("x_latent", host.normal(2)))
        observe(host.ppl.deterministic("x", x, **({"event_dim": 1} if host.name == "pyro" else {})), y)

    if tilted:
        return host.tilt(by_tilt, gebm.energy, "x")
    return host.handlers.reparam(by_prior, config={"x": host.LatentReparam()})


@pytest.mark.parametrize("tilted", [False, True])
@pytest.mark.parametrize("kernel", ["GHMC", pytest.param("NUTS", marks=pytest.mark.slow)])
def test_the_posterior_is_exact(host, kernel, tilted):
    model = observed(host, tilted)
    if kernel == "NUTS":
        draws = host.draws(host.mcmc(host.nuts(model), 300, 5000, stock=True))
    else:
        draws = host.run(host.infer.GHMC(model), 200, 250, 25)  # chains together
    cases.assert_moments(draws["x_latent"], *posterior())


def autoguide(host, name, model, num_steps=1500, rate=0.02):
    """A guide, trained; its draws of x_latent."""
    infer = host.ppl.infer
    if host.name == "numpyro":
        guide = getattr(infer.autoguide, name)(model)
        optim = host.ppl.optim.optax_to_numpyro(host.adam(rate, decay_steps=num_steps))
        svi = infer.SVI(model, guide, optim, infer.Trace_ELBO(num_particles=8))
        found = svi.run(*host.key(0), num_steps, progress_bar=False)
        return guide, found.params, guide.sample_posterior(host.key(1)[0], found.params, sample_shape=(20_000,))
    host.ppl.clear_param_store()
    host.key(0)
    guide = getattr(infer.autoguide, name)(model)
    decay = {"optimizer": host.torch.optim.Adam, "optim_args": {"lr": rate}, "gamma": 0.05 ** (1 / num_steps)}
    optim = host.ppl.optim.ExponentialLR(decay)
    svi = infer.SVI(model, guide, optim, infer.Trace_ELBO(num_particles=8, vectorize_particles=False))
    for _ in range(num_steps):
        svi.step()
        optim.step()
    draws = [guide()["x_latent"].detach() for _ in range(4000)]
    return guide, None, {"x_latent": host.torch.stack(draws)}


@pytest.mark.slow
def test_a_normal_guide_finds_a_normal_posterior(host):
    mean, covariance = posterior()
    draws = host.numpy(autoguide(host, "AutoMultivariateNormal", observed(host))[2]["x_latent"])
    np.testing.assert_allclose(draws.mean(0), mean, atol=0.04)
    np.testing.assert_allclose(np.cov(draws.T), covariance, atol=0.03)
    draws = host.numpy(autoguide(host, "AutoNormal", observed(host))[2]["x_latent"])
    np.testing.assert_allclose(draws.mean(0), mean, atol=0.04)
    np.testing.assert_allclose(
        draws.var(0), 1 / np.diag(np.linalg.inv(covariance)), atol=0.03
    )  # the best without correlation


@pytest.mark.slow
def test_nuts_after_neural_transport(host):
    model = observed(host)
    guide, params, _ = autoguide(host, "AutoMultivariateNormal", model, 300)
    reparam = importlib.import_module(f"{host.name}.infer.reparam")
    neutra = (
        reparam.NeuTraReparam(guide, params)
        if params is not None
        else reparam.NeuTraReparam(guide.requires_grad_(False))
    )
    kernel = host.ppl.infer.NUTS(neutra.reparam(model))
    draws = host.draws(host.mcmc(kernel, 200, 4000, stock=True))
    shared = host.array(next(value for name, value in draws.items() if name.endswith("shared_latent"))[0])
    found = host.numpy(neutra.transform_sample(shared)["x_latent"])
    cases.assert_moments(found[None], *posterior(), min_ess=1500)


def test_two_sites(host):
    """Their sum is observed."""
    gebm, other, row = host.linear_gaussian(1.0), host.linear_gaussian(0.4), host.array(ROW)

    def model():
        a, b = host.ppl.sample("a", gebm), host.ppl.sample("b", other)
        host.ppl.sample("y", host.dist.Normal((a + b) @ row, NOISE), obs=host.array(Y))

    model = host.handlers.reparam(model, config={name: host.LatentReparam() for name in "ab"})
    draws = host.run(host.infer.GHMC(model), 200, 300, 25)
    row = np.concatenate([ROW @ CASE.W] * 2)
    prior = np.zeros((4, 4))
    prior[:2, :2], prior[2:, 2:] = (np.linalg.inv(CASE.covariance(beta)) for beta in (1.0, 0.4))
    covariance = np.linalg.inv(prior + np.outer(row, row) / NOISE**2)
    mean = covariance @ (
        prior @ np.concatenate([CASE.mean(1.0), CASE.mean(0.4)]) + row * (Y - 2 * ROW @ CASE.b) / NOISE**2
    )
    cases.assert_moments(np.concatenate([draws["a_latent"], draws["b_latent"]], -1), mean, covariance)


def test_a_scale_and_a_mask_around_a_plate(host):
    """Three rows, of which the second is masked out; the others count twice."""
    gebm, mask = host.linear_gaussian(1.0, log_partition=CASE.log_partition(1.0)), np.array([True, False, True])
    z = np.random.default_rng(0).normal(size=(3, 2))

    def model():
        with host.ppl.plate("rows", 3), host.handlers.scale(scale=2.0), host.handlers.mask(mask=host.array(mask)):
            host.ppl.sample("x", gebm)

    model = host.handlers.reparam(model, config={"x": host.LatentReparam()})
    model = host.handlers.condition(model, {"x_latent": host.array(z)})
    if host.name == "numpyro":
        util = importlib.import_module("numpyro.infer.util")
        found = util.log_density(host.seeded(model), (), {}, {})[0]
    else:
        found = host.handlers.trace(model).get_trace().log_prob_sum()
    expected = 2.0 * host.numpy(gebm.latent.log_prob(host.array(z)))[mask].sum()
    assert float(found) == pytest.approx(expected)


@pytest.mark.parametrize("intervention", [False, True])
def test_conditioned_and_intervened_sites(host, intervention):
    """Both fix what follows the latent; only `condition` leaves it in the density."""
    z, handlers = np.array([0.4, -0.3]), host.handlers
    data = {"x_latent": host.array(z)}
    model = handlers.do(observed(host), data=data) if intervention else handlers.condition(observed(host), data)
    trace = handlers.trace(host.seeded(model)).get_trace()
    sites = trace if host.name == "numpyro" else trace.nodes
    np.testing.assert_allclose(host.numpy(sites["x"]["value"]), z @ CASE.W.T + CASE.b)
    assert intervention or sites["x_latent"]["is_observed"]


@pytest.mark.parametrize("parallel", [False, True])
def test_predictive(host, parallel):
    """From the posterior, with and without `parallel`."""
    z = host.array(np.random.default_rng(0).multivariate_normal(*posterior(), size=2000))
    predict = host.ppl.infer.Predictive(observed(host), {"x_latent": z}, parallel=parallel)
    if parallel:  # the program indexes its axes from the right
        found = predict(*host.key(0), y=None)
    else:
        predict = host.ppl.infer.Predictive(observed(host), {"x_latent": z[:300]})
        found = predict(*host.key(0), y=None)
    y = host.numpy(found["y"]).reshape(-1)
    x = host.numpy(z)[: len(y)] @ CASE.W.T + CASE.b
    gap = (y - x @ ROW) / NOISE
    assert abs(gap.mean()) < 4 / np.sqrt(len(gap)) and abs(gap.std() - 1.0) < 4 / np.sqrt(2 * len(gap))


def mixed(host):
    """A discrete site beside the GEBM's, which decides the noise of another observation."""
    base = observed(host)

    def model():
        base()
        k = host.ppl.sample("k", host.dist.Bernoulli(host.array(0.3)), infer={"enumerate": "parallel"})
        host.ppl.sample("w", host.dist.Normal(host.array(0.0), 1.0 + 2.0 * k), obs=host.array(2.5))

    return model


@pytest.mark.slow_in("pyro")
def test_a_discrete_site_beside_it_is_enumerated(host):
    if host.name == "numpyro":
        pytest.importorskip("funsor")  # NumPyro enumerates with it
    handlers, infer = host.handlers, host.ppl.infer
    if host.name == "pyro":
        decoded = infer.infer_discrete(infer.config_enumerate(mixed(host)), first_available_dim=-1)
        host.key(0)
        k = np.array([float(handlers.trace(decoded).get_trace().nodes["k"]["value"]) for _ in range(60)])
        kernel = host.ppl.infer.NUTS(mixed(host), max_plate_nesting=0)
        draws = host.draws(host.mcmc(kernel, 5, 10, stock=True))
        assert np.isfinite(draws["x_latent"]).all() and "k" not in draws
    else:
        contrib = importlib.import_module("numpyro.contrib.funsor")
        decoded = contrib.infer_discrete(
            contrib.config_enumerate(mixed(host)), first_available_dim=-1, rng_key=host.key(0)[0]
        )
        k = np.array([float(host.seeded(decoded, i)()) for i in range(60)])
    density = [np.exp(-0.5 * (2.5 / s) ** 2) / s for s in (1.0, 3.0)]
    expected = 0.3 * density[1] / (0.3 * density[1] + 0.7 * density[0])
    assert abs(k.mean() - expected) < 4 * np.sqrt(expected * (1 - expected) / len(k))


def test_a_discrete_site_without_enumeration_is_refused(host):
    def model():
        k = host.ppl.sample("k", host.dist.Bernoulli(host.array(0.3)))
        host.ppl.sample("x_latent", host.linear_gaussian(1.0).latent)
        host.ppl.sample("w", host.dist.Normal(k, 1.0), obs=host.array(2.5))

    with pytest.raises((ValueError, RuntimeError), match="discrete"):
        host.run(host.infer.GHMC(model), 2, 2, 2)


@pytest.mark.slow
def test_simulation_based_calibration(host):
    """Draw x from a trained GEBM, simulate y, infer: ranks of four summaries are uniform. arXiv:1804.06788."""
    num, num_draws, noise = 500, 99, 0.3
    rng = np.random.default_rng(0)
    angle = rng.uniform(0, np.pi, 4000)
    data = np.stack([np.cos(angle), np.sin(angle)], 1) * 2.0 + 0.1 * rng.normal(size=(4000, 2))
    generator = host.network(lambda scale, shift, z: scale * z + shift, 1.5, np.zeros(2))
    energy = host.call(host.nn.MLP, (2,), (), (32, 32), activation="silu", seed=2)
    training = host.KALE(
        host.Pushforward(host.normal(2), generator),
        host.KALEGuide(energy, penalty=host.gradient_penalty(0.1)),
        host.adam(1e-3, 0.5),
        host.adam(3e-3, 0.5),
    )
    gebm = host.train(training, 400, host.array(data)).gebm
    z = host.sample(gebm.latent_prior, (200_000,), seed=3)
    weight = gebm.log_weight(gebm.decode(z))
    assert float(host.numpy(weight).std()) > 0.5  # there is an energy
    true = host.call(host.resample, {"z": z}, weight, num, seed=4)["z"]
    y = host.numpy(gebm.decode(true)) + noise * rng.normal(size=(num, 2))

    def model():
        with host.ppl.plate("replications", num):
            x = host.ppl.sample("x", gebm)
            host.ppl.sample("y", host.dist.Normal(x, noise).to_event(1), obs=host.array(y))

    model = host.handlers.reparam(model, config={"x": host.LatentReparam()})
    draws = host.run(host.infer.GHMC(model), 1500, num_draws * 50, 1, start={"x_latent": host.numpy(true)[None]})
    draws = draws["x_latent"][0, ::50]

    def summaries(z):
        x = gebm.decode(host.array(z))
        weight, x = (host.numpy(value) for value in (gebm.log_weight(x), x))
        return np.stack([x[..., 0], x[..., 1], weight, -((y - x) ** 2).sum(-1)], -1)

    ranks = (summaries(draws) < summaries(host.numpy(true))).sum(0)
    counts = np.stack([np.bincount(rank // 5, minlength=20) for rank in ranks.T])
    statistic = ((counts - num / 20) ** 2 / (num / 20)).sum(1)
    assert (statistic < 36.19).all(), statistic  # chi-square with 19 degrees of freedom, 1 %
