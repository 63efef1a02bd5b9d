"""Energies that are learned inside a program: the gradient of the log-partition counts."""

import cases
import numpy as np
import pytest

PRECISION = 3.0  # of the energy; the model is N(0, 1 / (1 + PRECISION))


def quadratic(host, precision):
    return host.GEBM(host.dist.Normal(host.array(0.0), 1.0), lambda x: 0.5 * precision * x**2)


def svi(host, model, num_steps, rate, seed=0):
    """The parameter `precision` after SVI, and its values on the way."""
    infer, name = host.ppl.infer, "precision"
    if host.name == "numpyro":
        optim = host.ppl.optim.Adam(rate)
        guide = infer.autoguide.AutoNormal(model, init_scale=0.3)
        result = infer.SVI(model, guide, optim, infer.Trace_ELBO()).run(
            host.key(seed)[0], num_steps, progress_bar=False, stable_update=False
        )
        return float(result.params[name])
    host.ppl.clear_param_store()
    host.key(seed)
    guide = infer.autoguide.AutoNormal(model, init_scale=0.3)
    training = infer.SVI(model, guide, host.ppl.optim.Adam({"lr": rate}), infer.Trace_ELBO())
    for _ in range(num_steps):
        training.step()
    return float(host.ppl.param(name).detach())


def learner(host, y, normalize, noise=0.5):
    """y = x + noise, x ~ the GEBM, in a plate."""

    def model():
        precision = host.ppl.param("precision", host.array(1.0), constraint=host.dist.constraints.positive)
        gebm = normalize(quadratic(host, precision))
        with host.ppl.plate("rows", len(y)):
            x = host.ppl.sample("x", gebm)
            host.ppl.sample("y", host.dist.Normal(x, noise), obs=host.array(y))

    return model


def test_the_gradient_of_the_log_partition(host):
    """By beta and parameters of energy, generator and latent prior, at the linear-Gaussian case."""
    exact, M, c = cases.linear_gaussian(), *(getattr(cases.linear_gaussian(), n) for n in "Mc")

    def log_partition(scale, shift, spread):
        base = host.Pushforward(
            host.dist.Normal(host.array(np.zeros(2)), spread * host.array(np.ones(2))).to_event(1),
            lambda z: z @ host.array(exact.W).T + host.array(exact.b) + shift,
        )
        m, centre = host.array(M), host.array(c)
        gebm = host.GEBM(base, lambda x: scale * 0.5 * ((x - centre) @ m * (x - centre)).sum(-1))
        return host.call(host.normalized, gebm, host.infer.SMC(4096, 16)).log_partition

    def closed(scale, shift, spread):  # log ∫ N(x; b + shift, spread² W Wᵀ) exp(-scale/2 |x - c|²_M) dx
        W, m = spread * exact.W, scale * M
        d = exact.b + shift - c
        P = np.eye(2) + W.T @ m @ W
        return -0.5 * (d @ m @ d - d @ m @ W @ np.linalg.solve(P, W.T @ m @ d)) - 0.5 * np.linalg.slogdet(P)[1]

    at = np.array([1.2, 0.1, 0.9])
    value, slopes = host.grad(log_partition, *at)
    assert value == pytest.approx(closed(*at), abs=0.05)
    for i, slope in enumerate(slopes):
        step = 1e-5 * np.eye(3)[i]
        expected = (closed(*(at + step)) - closed(*(at - step))) / 2e-5
        assert float(slope) == pytest.approx(expected, rel=0.06), i


@pytest.mark.slow
def test_svi_finds_the_precision_of_an_energy(host):
    """Maximum likelihood of the noisy data: their variance is 1 / (1 + precision) + noise²; the guide can be exact."""
    y = np.sqrt(1 / (1 + PRECISION) + 0.25) * np.random.default_rng(0).normal(size=800)
    best = 1 / (np.mean(y**2) - 0.25) - 1
    std_error = np.sqrt(2 / len(y)) * np.mean(y**2) * (1 + best) ** 2
    found = svi(host, learner(host, y, host.normalized), 600, 0.03)
    assert abs(found - best) < std_error and abs(found - PRECISION) < 4 * std_error
    wrong = svi(host, learner(host, y, lambda gebm: host.GEBM(gebm.base, gebm.energy, log_partition=0.0)), 300, 0.03)
    assert wrong < 0.1  # without log Z a flat energy is best


def test_asked_for_without_saying_how(host):
    model = learner(host, np.zeros(3), lambda gebm: gebm)
    with pytest.raises(ValueError, match=r"normalized\(gebm\)"):
        svi(host, model, 1, 0.01)
    base = host.dist.Normal(host.array(0.0), 1.0)

    def tilted():
        precision = host.ppl.param("precision", host.array(1.0), constraint=host.dist.constraints.positive)
        program = host.tilt(lambda: host.ppl.sample("x", base), lambda x: precision * x**2, "x")
        return program()

    with pytest.raises(ValueError, match=r"normalized\(gebm\)"):
        svi(host, tilted, 1, 0.01)


def test_an_energy_that_depends_on_a_latent_is_not_sampled_without_its_log_partition(host):
    def model():
        precision = host.ppl.sample("precision", host.dist.Gamma(host.array(2.0), 1.0))
        host.ppl.sample("x", quadratic(host, precision), obs=host.array(0.3))

    with pytest.raises(ValueError, match=r"normalized\(gebm\)"):
        host.mcmc(host.nuts(model), 2, 2, stock=True)


def test_fixed_networks_are_sampled_as_before(host):
    energy = host.call(host.nn.MLP, (2,), (), (4,))
    gebm = host.GEBM(host.normal(2), energy)
    draws = host.mcmc(host.nuts(lambda: host.ppl.sample("z", gebm.latent)), 5, 5, stock=True)
    assert np.isfinite(host.draws(draws)["z"]).all()
