"""Programs as bases: what is drawn, what is the latent, what is learned."""

import warnings

import cases
import numpy as np
import pytest


def schools(host, mu=0.0, tau=1.0, num=8):
    """A hierarchical generator of the results of schools, with unknown parameters."""
    if host.name == "pyro":
        host.ppl.clear_param_store()

    def model():
        mean = host.ppl.param("mu", host.array(mu))
        spread = host.ppl.param("tau", host.array(tau), constraint=host.dist.constraints.positive)
        with host.ppl.plate("schools", num):
            theta = host.ppl.sample("theta", host.dist.Normal(mean, spread))
            host.ppl.sample("y", host.dist.Normal(theta, 1.0))

    return host.Program(model, "y")


def linear_gaussian_program(host):
    """The base of `cases.linear_gaussian` as a program, its site a function of the latent."""
    W, b = (host.array(a) for a in (cases.linear_gaussian().W, cases.linear_gaussian().b))

    def model():
        z = host.ppl.sample("z", host.normal(2))
        host.ppl.deterministic("x", z @ W.T + b, **({"event_dim": 1} if host.name == "pyro" else {}))

    return host.Program(model, "x")


def quadratic(host):
    """An energy that can be the log-density ratio of two normal laws."""
    return host.network(lambda a, b, x: (a * x + b * x**2).sum(-1), 0.0, 0.0)


def test_draws_parameters_and_the_report(host):
    base = schools(host, 2.0, 0.5)
    assert tuple(base.event_shape) == (8,) and tuple(base.batch_shape) == ()
    assert repr(base) == "Program(site: y, event_shape: (8,), latents: theta, y)"
    assert {name: float(value) for name, value in base.params.items()} == pytest.approx({"mu": 2.0, "tau": 0.5})
    draws = host.numpy(host.sample(base, (2500,)))
    cases.assert_moments(draws[None], np.full(8, 2.0), 1.25 * np.eye(8))
    assert host.sample(base, (2, 3)).shape == (2, 3, 8) and host.sample(base).shape == (8,)
    assert host.sample(base, (0,)).shape == (0, 8)


def test_the_latent_prior_is_the_joint_density_on_unconstrained_space(host):
    """Of a log-normal scale, a point of a simplex and a normal value that depends on both."""
    dist, array = host.dist, host.array

    def model(num, loc=0.0):
        scale = host.ppl.sample("scale", dist.LogNormal(array(0.0), 0.5))
        weights = host.ppl.sample("weights", dist.Dirichlet(array(np.ones(3))))
        with host.ppl.plate("rows", num):
            x = host.ppl.sample("x", dist.Normal(loc + weights[..., :1].sum(-1), scale))
        host.ppl.sample("y", dist.Normal(x.sum(-1), 1.0), obs=array(0.3))  # after the site: not of the base

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # in Pyro, of draws one at a time
        base = host.Program(model, "x", (2,), {"loc": 0.4})
    latent, generator = host.module("base").decompose(base)
    assert tuple(latent.event_shape) == (5,) and tuple(base.event_shape) == (2,)
    z = np.array([[0.3, -0.2, 0.5, 0.1, 0.9], [-0.4, 1.0, 0.2, -0.3, 0.0]])
    sites = {name: host.numpy(value) for name, value in base.constrain(array(z)).items()}
    np.testing.assert_allclose(host.numpy(host.apply(generator, z)), sites["x"])
    np.testing.assert_allclose(sites["x"], z[:, 3:])
    np.testing.assert_allclose(sites["scale"], np.exp(z[:, 0]))
    normal = -0.5 * (((z[:, 3:] - 0.4 - sites["weights"][:, :1]) / sites["scale"][:, None]) ** 2) - 0.5 * np.log(
        2 * np.pi
    )
    of_scale = -0.5 * (z[:, 0] / 0.5) ** 2 - np.log(0.5) - 0.5 * np.log(2 * np.pi)
    of_weights = np.log(2.0) + np.log(sites["weights"]).sum(-1)  # stick breaking: the product of all weights
    expected = (normal - np.log(sites["scale"])[:, None]).sum(-1) + of_scale + of_weights
    np.testing.assert_allclose(host.numpy(latent.log_prob(array(z))), expected, rtol=1e-9)
    assert host.sample(latent, (3, 2)).shape == (3, 2, 5)


def test_a_gebm_over_a_program_is_the_one_over_its_pushforward(host):
    beta, expected = 1.0, cases.linear_gaussian()
    model = host.linear_gaussian(beta)
    gebm = host.GEBM(linear_gaussian_program(host), model.energy, inverse_temperature=beta)
    z = np.random.default_rng(0).normal(size=(5, 2))
    ours, theirs = (host.numpy(g.latent.log_prob(host.array(z))) for g in (gebm, model))
    np.testing.assert_allclose(ours, theirs, rtol=1e-10)
    draws = host.numpy(host.sample(gebm.latent, (2500,)))
    cases.assert_moments(draws[None], expected.mean(beta), expected.covariance(beta))
    found = host.call(host.log_partition, gebm, "importance", num_samples=20_000, progress_bar=False)
    assert abs(found.value - expected.log_partition(beta)) < 4 * found.std_error


@pytest.mark.slow_in("numpyro")
def test_kale_finds_the_parameters_of_a_hierarchy(host):
    """As maximum likelihood does, which is exact here: marginally y ~ N(mu, tau² + 1)."""
    data = 2.0 + np.sqrt(1.49) * np.random.default_rng(3).normal(size=(400, 8))
    best, mu_error = (data.mean(), np.sqrt(data.var() - 1)), np.sqrt(data.var() / data.size)
    tau_error = data.var() * np.sqrt(2 / data.size) / (2 * best[1])
    num, guide = 500, host.KALEGuide(quadratic(host))  # its penalty, and no momentum: the two players do not circle
    optims = (host.adam(2e-2, 0.0, steps) for steps in (num, 5 * num))
    training = host.KALE(schools(host), guide, *optims, noise_factor=4)
    result = host.train(training, num, host.array(data), batch_size=400)
    found = {name: float(value) for name, value in result.gebm.base.params.items()}
    assert abs(found["mu"] - best[0]) < mu_error and abs(found["tau"] - best[1]) < tau_error
    assert abs(found["mu"] - 2.0) < 4 * mu_error and abs(found["tau"] - 0.7) < 4 * tau_error
    if host.name == "pyro":  # in place
        assert float(host.ppl.param("mu").detach()) == pytest.approx(found["mu"])


def discrete(host):
    def model():
        k = host.ppl.sample("k", host.dist.Bernoulli(host.array(0.5)))
        return host.ppl.sample("x", host.dist.Normal(4.0 * k - 2.0, 0.5))

    return host.Program(model, "x")


def test_a_simulator_with_a_discrete_site_trains_the_energy_alone(host):
    """Its tilted program has the data's weights of the modes, .8 and .2, in the place of even ones."""
    rng, base = np.random.default_rng(1), discrete(host)
    data = host.array(np.where(rng.uniform(size=1000) < 0.8, 2.0, -2.0) + 0.5 * rng.normal(size=1000))
    energy = host.network(lambda a, x: -a * host.xp.tanh(x), 0.0)
    guide = host.KALEGuide(energy, penalty=None)
    with pytest.raises(ValueError, match=r"can be differentiated.*site 'k' \(discrete\).*base_optim=None"):
        host.KALE(base, guide, host.adam(1e-2), host.adam(1e-2))
    result = host.train(host.KALE(base, guide, None, host.adam(2e-2)), 300, data, batch_size=500)
    predict = host.ppl.infer.Predictive(result.program, num_samples=4000)
    draws = predict(*host.key(0))
    new = host.call(host.resample, draws, draws["x_log_weight"])
    assert abs(float(host.numpy(new["k"]).mean()) - 0.8) < 0.03
    with pytest.raises(NotImplementedError, match=r"discrete sites before 'x' \('k'\).*result.program"):
        host.sample(result.gebm, (2,))


def test_the_program_of_a_result_has_its_parameters_and_needs_a_program(host):
    training = host.KALE(schools(host, 0.3), host.KALEGuide(quadratic(host)), None, host.adam(1e-2))
    result = host.train(training, 3, host.array(np.random.default_rng(0).normal(size=(50, 8))))
    draws = host.ppl.infer.Predictive(result.program, num_samples=5)(*host.key(0))
    weight = host.numpy(result.gebm.log_weight(draws["y"]))
    np.testing.assert_allclose(host.numpy(draws["y_event_log_weight"]).reshape(5, -1).sum(1), weight, rtol=1e-6)
    other = host.KALE(host.normal(8), host.KALEGuide(quadratic(host)), None, host.adam(1e-2))
    with pytest.raises(TypeError, match="Program"):
        _ = host.train(other, 1, host.array(np.zeros((10, 8)))).program


@pytest.mark.slow
def test_kale_test_of_a_program(host):
    data = host.array(1.0 + np.sqrt(2.0) * np.random.default_rng(0).normal(size=(400, 8)))
    found = host.call(host.kale_test, data, schools(host), num_permutations=99, num_steps=150, progress_bar=False)
    assert found.p_value == 0.01


def test_a_program_as_the_prior_of_a_model(host):
    """An observed noisy sum of a tilted program's draw: exact, since all is normal."""
    expected, model = cases.linear_gaussian(), host.linear_gaussian(1.0)
    gebm = host.GEBM(linear_gaussian_program(host), model.energy)

    def observed():
        x = host.ppl.sample("x", gebm)
        host.ppl.sample("y", host.dist.Normal(x[..., 0], 0.5), obs=host.array(0.7))

    program = host.handlers.reparam(observed, config={"x": host.LatentReparam()})
    row = expected.W[0]
    precision = np.linalg.inv(expected.covariance(1.0)) + np.outer(row, row) / 0.25
    covariance = np.linalg.inv(precision)
    shift = np.linalg.solve(expected.covariance(1.0), expected.mean(1.0)) + row * (0.7 - expected.b[0]) / 0.25
    draws = host.run(host.infer.GHMC(program), 200, 200, 25)
    cases.assert_moments(draws["x_latent"], covariance @ shift, covariance)


def bad_programs(host):
    dist, sample = host.dist, host.ppl.sample

    def observed(at):
        def model():
            z = sample("z", dist.Normal(host.array(0.0), 1.0), **({"obs": host.array(1.0)} if at == "z" else {}))
            sample("x", dist.Normal(z, 1.0), **({"obs": host.array(1.0)} if at == "x" else {}))

        return model

    def subsampled():
        with host.ppl.plate("rows", 10, subsample_size=2):
            sample("x", dist.Normal(host.array(0.0), 1.0))

    return [
        (lambda: host.Program(observed("x"), "x"), ValueError, "is observed. Call the model without"),
        (lambda: host.Program(observed("z"), "x"), ValueError, "site 'z' is observed"),
        (lambda: host.Program(observed("z"), "y"), ValueError, "Expected a site 'y' in the model.*x, z"),
        (lambda: host.Program(subsampled, "x"), ValueError, "plate 'rows' subsamples"),
        (lambda: host.Program(lambda: sample("x", dist.Bernoulli(host.array(0.5))), "x", ()), ValueError, "floating"),
        (lambda: host.Program(3, "x"), TypeError, "model"),
        (lambda: host.Program(observed(None), 3), TypeError, "site"),
        (lambda: host.Program(observed(None), "x", 3), TypeError, "args to be a tuple"),
        (lambda: host.Program(observed(None), "x", (), [3]), TypeError, "kwargs to be a dict"),
        (lambda: host.Program(observed(None), "x").log_prob(host.array(0.0)), NotImplementedError, "integral"),
    ]


@pytest.mark.parametrize("case", range(10))
def test_what_is_no_base(host, case):
    make, error, message = bad_programs(host)[case]
    if case == 4 and host.name == "pyro":
        make = lambda: host.Program(  # noqa: E731  # its draws are floating-point numbers
            lambda: host.ppl.sample("x", host.dist.Categorical(host.array(np.full(2, 0.5)))), "x"
        )
    with pytest.raises(error, match=message):
        make()
