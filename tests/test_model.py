"""What the model is: exact identities, shapes, bases, texts."""

import copy
import math

import cases
import numpy as np
import pytest
from scipy import stats

CASE = cases.linear_gaussian()


def quadratic(host, a):
    """0.5 a |x|² with a parameter a."""
    return host.network(lambda a, x: 0.5 * a * (x**2).sum(-1), np.array(a))


@pytest.mark.parametrize("dim", [1, 10])
@pytest.mark.parametrize("a", [1.0, 3.0, 30.0])
def test_case_4_log_partition_of_a_quadratic_energy(host, dim, a):
    exact = -0.5 * dim * math.log(1 + a)
    gebm = host.GEBM(host.normal(dim), quadratic(host, a), log_partition=exact)
    x = np.random.normal(size=(5, dim))
    expected = stats.norm.logpdf(x, scale=(1 + a) ** -0.5).sum(-1)
    np.testing.assert_allclose(host.numpy(gebm.log_prob(host.array(x))), expected, rtol=1e-10, atol=1e-10)


def test_case_4_settled_log_partition(host):
    settle = host.module("training.guide").settle_log_partition
    estimate = float(host.call(settle, host.normal(1), quadratic(host, 3.0)))
    variance = (4 / math.sqrt(7) - 1) / 200_000  # of exp(-E)/Z over base draws, divided by their number
    assert abs(estimate + 0.5 * math.log(4)) < 5 * math.sqrt(variance)


def test_case_5_base_gradient_is_exact_for_any_draw(host):
    theta, m, z = 0.7, 2.0, host.array(np.random.normal(size=50))
    _, (gradient,) = host.grad(lambda t: host.divergences.base_loss(-(m - theta) * (z + t)), np.array(theta))
    np.testing.assert_allclose(gradient, theta - m, rtol=1e-10)


@pytest.mark.parametrize("beta", [1.0, 3.7, 100.0])
def test_case_6_latent_law_of_the_linear_gaussian(host, beta):
    latent = host.linear_gaussian(beta, log_partition=CASE.log_partition(beta)).latent
    law = stats.multivariate_normal(CASE.mean(beta), CASE.covariance(beta))
    z = np.random.normal(size=(3, 2))
    np.testing.assert_allclose(host.numpy(latent.log_prob(host.array(z))), law.logpdf(z), rtol=1e-10, atol=1e-10)
    _, (gradient,) = host.grad(lambda z: latent.log_prob(z).sum(), z)
    expected = -(z - law.mean) @ np.linalg.inv(law.cov)
    np.testing.assert_allclose(gradient, expected, rtol=1e-10, atol=1e-10)


def test_case_10_constants_cancel(host):
    x, energy = host.array(np.random.normal(size=(4, 2))), quadratic(host, 2.0)
    one = host.GEBM(host.normal(2), energy, log_partition=0.3)
    other = host.GEBM(host.normal(2), lambda x: energy(x) + 5.0, log_partition=0.3 - 5.0)
    np.testing.assert_allclose(host.numpy(one.log_prob(x)), host.numpy(other.log_prob(x)), rtol=0, atol=1e-10)


def test_case_10_beta_zero_is_the_base(host):
    x = np.random.normal(size=(4, 2))
    gebm = host.GEBM(host.normal(2), quadratic(host, 2.0), inverse_temperature=0.0, log_partition=0.0)
    for law in (gebm, gebm.latent):
        values = host.numpy(law.log_prob(host.array(x)))
        np.testing.assert_allclose(values, stats.norm.logpdf(x).sum(-1), rtol=0, atol=1e-10)


def test_case_10_zero_energy_has_log_partition_zero(host):
    settle = host.module("training.guide").settle_log_partition
    assert float(host.call(settle, host.normal(2), lambda x: 0.0 * x.sum(-1))) == pytest.approx(0)


@pytest.mark.parametrize("u, slack", [(0.1, 0.0051709), (0.5, 0.1487213), (1.0, 0.7182818), (-1.0, 0.3678794)])
def test_kale_lies_below_donsker_varadhan_by_the_exact_slack(host, u, slack):
    data, base = host.array(np.random.normal(size=30)), host.array(np.random.normal(size=40))
    best = host.divergences.batch_log_partition(base)
    gap = host.divergences.donsker_varadhan(data, base) - host.divergences.kale(data, base, best - u)
    np.testing.assert_allclose(host.numpy(gap), math.exp(u) - 1 - u, atol=1e-10)
    np.testing.assert_allclose(host.numpy(gap), slack, atol=1e-7)


BASES = {
    "normal": lambda dist, array: dist.Normal(array(0.3), array(2.0)),
    "vector": lambda dist, array: dist.Normal(array([0.0, 1.0, 2.0]), array(1.0)).to_event(1),
    "multivariate": lambda dist, array: dist.MultivariateNormal(array([0.0, 0.0]), array([[2.0, 0.5], [0.5, 1.0]])),
    "gamma": lambda dist, array: dist.Gamma(array(2.0), array(1.5)),
    "lognormal": lambda dist, array: dist.LogNormal(array(0.2), array(0.5)),
    "independent lognormal": lambda dist, array: dist.LogNormal(array([0.0] * 3), array(0.5)).to_event(1),
    "expanded lognormal": lambda dist, array: dist.LogNormal(array(0.0), array(0.5)).expand([4]),
    "simplex": lambda dist, array: dist.Dirichlet(array([2.0, 3.0, 4.0])),
}
QUICK = ("normal", "independent lognormal", "affine flow", "simplex")
AFFINE = {"numpyro": {}, "pyro": {"event_dim": 1}}


def base_of(host, name):
    if name == "affine flow":
        affine = host.dist.transforms.AffineTransform
        transform = affine(host.array(1.0), host.array([2.0, 0.5]), **AFFINE[host.name])
        return host.dist.TransformedDistribution(host.normal(2), [transform])
    return BASES[name](host.dist, host.array)


@pytest.mark.parametrize(
    "name",
    [
        name if name in QUICK else pytest.param(name, marks=pytest.mark.slow_in("numpyro"))
        for name in (*BASES, "affine flow")
    ],
)
def test_any_base_with_a_density(host, name):
    base = base_of(host, name)
    axes = tuple(range(-len(base.event_shape), 0))

    def energy(x):  # of one example, or of a batch
        return 0.1 * (x**2).sum(axes) if axes else 0.1 * x**2

    gebm = host.GEBM(base, energy, inverse_temperature=1.5, log_partition=0.4)
    x = host.sample(base, (5,))
    expected = host.numpy(base.log_prob(x)) - 1.5 * host.numpy(energy(x)) - 0.4
    np.testing.assert_allclose(host.numpy(gebm.log_prob(x)), expected, rtol=1e-10, atol=1e-10)
    draws = host.sample(gebm, (6,), seed=1)
    assert draws.shape == gebm.shape((6,)) == (6, *base.batch_shape, *base.event_shape)
    check = gebm.support if host.name == "numpyro" else gebm.support.check
    assert bool(check(draws).all())
    z = host.sample(gebm.latent_prior, (3,), seed=2)
    expected = gebm.latent_prior.log_prob(z) + gebm.log_weight(gebm.decode(z))
    np.testing.assert_allclose(host.numpy(gebm.latent.log_prob(z)), host.numpy(expected), rtol=1e-10, atol=1e-10)
    assert gebm.latent.support is not host.dist.constraints.dependent
    assert not gebm.has_rsample and not gebm.latent.has_rsample


@pytest.mark.parametrize("shape", [(), (3,), (2, 3)])
def test_expand_sample_and_log_prob_shapes(host, shape):
    gebm = host.linear_gaussian(1.0)
    for d in (gebm, gebm.latent):
        wide = d.expand(shape)
        draws = host.sample(wide, (4,))
        assert draws.shape == (4, *shape, *d.event_shape)
        assert host.name == "numpyro" or (type(wide) is type(d) and not draws.requires_grad)
        if d is not gebm:
            assert wide.log_prob(draws).shape == (4, *shape)
            assert wide.to_event(len(shape)).log_prob(draws).shape == (4,)


def test_batch_of_inverse_temperatures(host):
    gebm = host.linear_gaussian(host.array([0.0, 1.0, 10.0]))
    assert gebm.batch_shape == gebm.latent.batch_shape == (3,)
    z = host.sample(gebm.latent, (5,))
    assert z.shape == (5, 3, 2)
    values = host.numpy(gebm.latent.log_prob(z))
    for i, beta in enumerate([0.0, 1.0, 10.0]):
        expected = host.linear_gaussian(beta).latent.log_prob(z[:, i])
        np.testing.assert_allclose(values[:, i], host.numpy(expected), rtol=1e-10)


def test_temper_forgets_a_scalar_and_keeps_a_callable(host):
    known, z = host.linear_gaussian(1.0, log_partition=0.3), host.array(np.zeros(2))
    assert known.temper(2.0).log_partition is None and float(known.log_partition) == 0.3
    gebm = host.linear_gaussian(1.0, log_partition=lambda beta: -beta).temper(2.0)
    expected = host.numpy(host.linear_gaussian(2.0).latent.log_prob(z)) + 2.0
    np.testing.assert_allclose(host.numpy(gebm.latent.log_prob(z)), expected)


def test_the_estimate_of_a_log_partition_is_one(host):
    x, energy = host.array(np.zeros((2, 2))), quadratic(host, 1.0)
    unknown = host.GEBM(host.normal(2), energy)
    estimate = host.call(host.log_partition, unknown, method="importance", num_samples=1000, progress_bar=False)
    known = host.GEBM(host.normal(2), energy, log_partition=estimate)
    assert float(known.log_partition) == pytest.approx(estimate.value)
    expected = host.numpy(unknown.log_prob(x)) - estimate.value
    np.testing.assert_allclose(host.numpy(known.log_prob(x)), expected, rtol=1e-6)


def test_a_copy_is_the_same_model(host):
    gebm, z = host.linear_gaussian(1.0, log_partition=0.3), host.array(np.ones(2))
    for twin in (copy.copy(gebm), copy.deepcopy(gebm)):
        np.testing.assert_array_equal(host.numpy(twin.latent.log_prob(z)), host.numpy(gebm.latent.log_prob(z)))
    assert gebm.log_partition is not None


def test_texts(host):
    base = host.Pushforward(host.normal(2), host.call(host.nn.MLP, (2,), (3,), (4,)))
    gebm = host.GEBM(base, lambda x: x.sum(-1), inverse_temperature=0.5)
    assert repr(base) == "Pushforward(latent_prior: Independent, generator: MLP, event_shape: (3,))"
    assert repr(gebm) == "GEBM(base: Pushforward, inverse_temperature: 0.5, log_partition: unknown)"
    assert repr(gebm.latent) == f"EnergyTiltedPrior({gebm!r})"
    energy = host.call(host.nn.MLP, (3,), (), (4,))
    guide = host.KALEGuide(energy, log_partition=0.5)
    assert repr(guide) == "KALEGuide(energy: MLP, log_partition: 0.5)"
    kale = host.KALE(base, guide, host.adam(1e-3), host.adam(1e-3))
    assert repr(kale) == "KALE(base: Pushforward, energy: MLP, objective: KALEObjective)"
    flow = host.call(host.flows.real_nvp, 3, 1, (4,))
    assert repr(flow.transforms[0]) == "AffineCoupling(dim=3, hidden=(4,), swap=False)"
    many = host.GEBM(base, lambda x: x.sum(-1), inverse_temperature=host.array(np.ones(3)), log_partition=0.0)
    assert repr(many) == "GEBM(base: Pushforward, inverse_temperature: of shape (3,), log_partition: known)"


def test_latent_reparam_replaces_the_site_under_a_plate_and_a_mask(host):
    gebm, mask = host.linear_gaussian(1.0), host.array(np.array([True, False, True]))

    def model():
        with host.ppl.plate("n", 3):
            host.ppl.sample("x", gebm.mask(mask))

    model = host.seeded(host.handlers.reparam(model, config={"x": host.LatentReparam()}))
    trace = host.handlers.trace(model).get_trace()
    sites = trace if host.name == "numpyro" else trace.nodes
    z, x = sites["x_latent"]["value"], sites["x"]["value"]
    assert x.shape == (3, 3)
    np.testing.assert_allclose(host.numpy(x), host.numpy(gebm.decode(z)))
    expected = np.where(host.numpy(mask), host.numpy(gebm.latent.log_prob(z)), 0.0)
    np.testing.assert_allclose(host.numpy(sites["x_latent"]["fn"].log_prob(z)), expected)
    if host.name == "numpyro":
        assert sites["x"]["type"] == "deterministic"
    else:
        trace.compute_log_prob()
        assert sites["x"]["log_prob_sum"] == 0


def test_a_gebm_over_a_gebm(host):
    """The sum of two energies on one base, with and without a density; beta and A are of the outer one."""
    shift, inner, outer = np.array([[1.0, 0.5, 0.0], [0.0, -1.0, 2.0]]), 1.5, 0.7
    generator = host.network(lambda W, z: z @ W, shift)
    half = quadratic(host, 1.0)
    for base in (host.Pushforward(host.normal(2), generator), host.normal(2)):
        inside = host.GEBM(base, half, inverse_temperature=inner, log_partition=0.3)
        both = host.GEBM(inside, half, inverse_temperature=outer, log_partition=-0.2)
        once = host.GEBM(base, half, inverse_temperature=inner + outer, log_partition=0.1)
        z = host.array(np.random.normal(size=(5, 2)))
        np.testing.assert_allclose(host.numpy(both.latent.log_prob(z)), host.numpy(once.latent.log_prob(z)), rtol=1e-6)
        assert both.event_shape == once.event_shape and both.latent.event_shape == (2,)
        np.testing.assert_allclose(host.numpy(both.decode(z)), host.numpy(once.decode(z)))
        np.testing.assert_allclose(
            host.numpy(both.temper(0.0).latent.log_prob(z)), host.numpy(inside.latent.log_prob(z)), rtol=1e-6
        )
    np.testing.assert_allclose(host.numpy(both.log_prob(z)), host.numpy(once.log_prob(z)), rtol=1e-6)


@pytest.mark.slow_in("numpyro")
def test_draws_of_a_gebm_over_a_gebm(host):
    half = quadratic(host, 1.0)
    both = host.GEBM(host.GEBM(host.normal(2), half), half)
    draws = host.numpy(host.sample(both, (2000,)))
    cases.assert_moments(draws[None], np.zeros(2), np.eye(2) / 3, min_ess=500)


def test_priors_that_are_mixtures(host):
    weights, means = host.array(np.array([0.3, 0.7])), host.array(np.array([-1.0, 2.0]))
    mixture = host.dist.MixtureSameFamily(host.dist.Categorical(weights), host.dist.Normal(means, 1.0))
    draws = host.numpy(host.sample(host.GEBM(mixture, lambda x: 0.0 * x), (2000,)))
    assert abs(draws.mean() - 1.1) < 4 * draws.std() / math.sqrt(2000)


def test_supports_without_a_transform_are_refused(host):
    class Nowhere(type(host.dist.constraints.real)):
        pass

    class Odd(host.dist.Normal):
        support = Nowhere()

    with pytest.raises(ValueError, match="Expected the latent prior to have a support.*got Odd with support"):
        host.GEBM(Odd(host.array(np.array(0.0)), 1.0), lambda x: 0.0 * x)
