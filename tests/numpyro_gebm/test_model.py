"""What the model is: exact identities, shapes, pytrees."""

import math

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from jax.scipy.stats import multivariate_normal
from marks import slow_unless
from numpyro import handlers
from numpyro.distributions import constraints
from numpyro_cases import CASE, linear_gaussian_gebm, standard_normal

from numpyro_gebm import GEBM, LatentReparam, Pushforward, divergences, nn
from numpyro_gebm.training.guide import settle_log_partition


class Quadratic(eqx.Module):
    a: jax.Array

    def __call__(self, x):
        return 0.5 * self.a * jnp.sum(x**2)


@pytest.mark.parametrize("dim", [1, 10])
@pytest.mark.parametrize("a", [1.0, 3.0, 30.0])
def test_case_4_log_partition_of_a_quadratic_energy(dim, a):
    exact = -0.5 * dim * math.log(1 + a)
    gebm = GEBM(standard_normal(dim), Quadratic(jnp.array(a)), log_partition=exact)
    expected = dist.Normal(0.0, (1 + a) ** -0.5).expand([dim]).to_event(1)
    x = np.random.normal(size=(5, dim))
    np.testing.assert_allclose(gebm.log_prob(x), expected.log_prob(x), rtol=1e-10, atol=1e-10)


def test_case_4_settled_log_partition():
    estimate = settle_log_partition(standard_normal(1), Quadratic(jnp.array(3.0)), rng_key=jax.random.key(0))
    variance = (4 / math.sqrt(7) - 1) / 200_000  # of exp(-E)/Z over base draws, divided by their number
    assert abs(estimate + 0.5 * math.log(4)) < 5 * math.sqrt(variance)


def test_case_5_base_gradient_is_exact_for_any_draw():
    theta, m = 0.7, 2.0

    def loss(t, z):
        return divergences.base_loss(-(m - theta) * (z + t))

    z = np.random.normal(size=50)
    np.testing.assert_allclose(jax.grad(loss)(theta, z), theta - m, rtol=1e-10)


@pytest.mark.parametrize("beta", [1.0, 3.7, 100.0])
def test_case_6_latent_law_of_the_linear_gaussian(beta):
    latent = linear_gaussian_gebm(beta, log_partition=CASE.log_partition(beta)).latent

    def expected(z):
        return multivariate_normal.logpdf(z, CASE.mean(beta), CASE.covariance(beta))

    for z in np.random.normal(size=(3, 2)):
        np.testing.assert_allclose(latent.log_prob(z), expected(z), rtol=1e-10, atol=1e-10)
        np.testing.assert_allclose(jax.grad(latent.log_prob)(z), jax.grad(expected)(z), rtol=1e-10, atol=1e-10)


def test_case_10_constants_cancel():
    x = np.random.normal(size=(4, 2))
    energy = Quadratic(jnp.array(2.0))
    one = GEBM(standard_normal(2), energy, log_partition=0.3)
    other = GEBM(standard_normal(2), lambda x: energy(x) + 5.0, log_partition=0.3 - 5.0)
    np.testing.assert_allclose(one.log_prob(x), other.log_prob(x), atol=1e-10)


def test_case_10_beta_zero_is_the_base():
    x = np.random.normal(size=(4, 2))
    gebm = GEBM(standard_normal(2), Quadratic(jnp.array(2.0)), inverse_temperature=0.0, log_partition=0.0)
    np.testing.assert_allclose(gebm.log_prob(x), standard_normal(2).log_prob(x), atol=1e-10)
    np.testing.assert_allclose(gebm.latent.log_prob(x), standard_normal(2).log_prob(x), atol=1e-10)


def test_case_10_zero_energy_has_log_partition_zero():
    assert settle_log_partition(
        standard_normal(2), lambda x: 0.0 * x.sum(), rng_key=jax.random.key(0)
    ) == pytest.approx(0)


@pytest.mark.parametrize("u, slack", [(0.1, 0.0051709), (0.5, 0.1487213), (1.0, 0.7182818), (-1.0, 0.3678794)])
def test_kale_lies_below_donsker_varadhan_by_the_exact_slack(u, slack):
    data, base = np.random.normal(size=30), np.random.normal(size=40)
    best = divergences.batch_log_partition(base)
    gap = divergences.donsker_varadhan(data, base) - divergences.kale(data, base, best - u)
    np.testing.assert_allclose(gap, math.exp(u) - 1 - u, atol=1e-10)
    np.testing.assert_allclose(gap, slack, atol=1e-7)


BASES = {
    "normal": lambda: dist.Normal(0.3, 2.0),
    "vector": lambda: dist.Normal(jnp.arange(3.0), 1.0).to_event(1),
    "multivariate": lambda: dist.MultivariateNormal(jnp.zeros(2), jnp.array([[2.0, 0.5], [0.5, 1.0]])),
    "gamma": lambda: dist.Gamma(2.0, 1.5),
    "lognormal": lambda: dist.LogNormal(0.2, 0.5),
    "independent lognormal": lambda: dist.LogNormal(jnp.zeros(3), 0.5).to_event(1),
    "expanded lognormal": lambda: dist.LogNormal(0.0, 0.5).expand([4]),
    "affine flow": lambda: dist.TransformedDistribution(
        standard_normal(2), [dist.transforms.AffineTransform(1.0, jnp.array([2.0, 0.5]))]
    ),
    "simplex": lambda: dist.Dirichlet(jnp.array([2.0, 3.0, 4.0])),
}


@pytest.mark.parametrize("name", slow_unless(BASES, "normal", "independent lognormal", "affine flow", "simplex"))
def test_any_base_with_a_density(name):
    base = BASES[name]()
    gebm = GEBM(base, lambda x: 0.1 * jnp.sum(x**2), inverse_temperature=1.5, log_partition=0.4)
    x = base.sample(jax.random.key(0), (5,))
    energy = 0.1 * (x**2).sum(tuple(range(x.ndim - base.event_dim, x.ndim)))
    np.testing.assert_allclose(gebm.log_prob(x), base.log_prob(x) - 1.5 * energy - 0.4, rtol=1e-10)
    draws = gebm.sample(jax.random.key(1), (6,))
    assert draws.shape == gebm.shape((6,)) == (6, *base.batch_shape, *base.event_shape)
    assert bool(jnp.all(gebm.support(draws)))
    z = gebm.latent_prior.sample(jax.random.key(2), (3,))
    expected = gebm.latent_prior.log_prob(z) + gebm.log_weight(gebm.decode(z))
    np.testing.assert_allclose(gebm.latent.log_prob(z), expected, rtol=1e-10)
    assert gebm.latent.support is not constraints.dependent and not gebm.has_rsample and not gebm.latent.has_rsample


@pytest.mark.parametrize("shape", [(), (3,), (2, 3)])
def test_expand_sample_and_log_prob_shapes(shape):
    gebm = linear_gaussian_gebm(1.0)
    for d in (gebm, gebm.latent):
        wide = d.expand(shape)
        draws = wide.sample(jax.random.key(0), (4,))
        assert draws.shape == (4, *shape, *d.event_shape)
        if d is not gebm:
            assert wide.log_prob(draws).shape == (4, *shape)
            assert wide.to_event(len(shape)).log_prob(draws).shape == (4,)


def test_batch_of_inverse_temperatures():
    gebm = linear_gaussian_gebm(jnp.array([0.0, 1.0, 10.0]))
    assert gebm.batch_shape == gebm.latent.batch_shape == (3,)
    z = gebm.latent.sample(jax.random.key(0), (5,))
    assert z.shape == (5, 3, 2)
    for i, beta in enumerate([0.0, 1.0, 10.0]):
        expected = linear_gaussian_gebm(beta).latent.log_prob(z[:, i])
        np.testing.assert_allclose(gebm.latent.log_prob(z)[:, i], expected, rtol=1e-10)


def test_temper_forgets_a_scalar_and_keeps_a_callable():
    assert linear_gaussian_gebm(1.0, log_partition=0.3).temper(2.0).log_partition is None
    gebm = linear_gaussian_gebm(1.0, log_partition=lambda beta: -beta).temper(2.0)
    z = np.zeros(2)
    np.testing.assert_allclose(gebm.latent.log_prob(z), linear_gaussian_gebm(2.0).latent.log_prob(z) + 2.0)


@pytest.mark.parametrize("x64", [False, True])
def test_dtype_follows_the_host(x64):
    with jax.enable_x64(x64):
        dtype = jnp.zeros(()).dtype
        gebm = GEBM(Pushforward(standard_normal(2), lambda z: jnp.ones((3, 2)) @ z), Quadratic(jnp.array(1.0)))
        z = gebm.latent.sample(jax.random.key(0), (2,))
        assert z.dtype == gebm.latent.log_prob(z).dtype == gebm.inverse_temperature.dtype == dtype


def test_pushforward_has_pathwise_gradients():
    def mean(scale):
        base = Pushforward(standard_normal(2), lambda z: scale * z + 1.0)
        return base.sample(jax.random.key(0), (7,)).mean()

    assert jax.grad(mean)(1.0) != 0


def test_survives_jit_vmap_grad_and_map():
    gebms = [
        GEBM(standard_normal(2), Quadratic(jnp.array(a)), inverse_temperature=b) for a, b in ((1.0, 2.0), (3.0, 1))
    ]
    z = np.array([0.3, -0.2])
    expected = [g.latent.log_prob(z) for g in gebms]
    jitted = jax.jit(lambda g: g.latent.log_prob(z))
    np.testing.assert_allclose([jitted(g) for g in gebms], expected)
    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *gebms)
    np.testing.assert_allclose(jax.vmap(lambda g: g.latent.log_prob(z))(stacked), expected)
    np.testing.assert_allclose(jax.lax.map(lambda g: g.latent.log_prob(z), stacked), expected)
    gradient = jax.grad(lambda g: g.latent.log_prob(z))(gebms[0])
    np.testing.assert_allclose(gradient.energy.a, -2.0 * 0.5 * (z**2).sum())
    leaves, treedef = jax.tree.flatten(gebms[0].latent)
    np.testing.assert_allclose(treedef.unflatten(leaves).log_prob(z), expected[0])


def test_new_weights_cost_no_new_trace():
    traces = []

    class Counting(Quadratic):
        def __call__(self, x):
            traces.append(1)
            return super().__call__(x)

    evaluate = jax.jit(lambda g, z: g.latent.log_prob(z))
    gebms = [GEBM(standard_normal(2), Counting(jnp.array(a))) for a in (1.0, 2.0, 3.0)]
    traces.clear()
    for gebm in gebms:
        evaluate(gebm, jnp.zeros(2))
    assert len(traces) == 1
    traces.clear()
    for gebm in gebms:
        gebm.sample(jax.random.key(0), (3,))
    sampling = len(traces)
    gebms[0].temper(2.0).sample(jax.random.key(0), (3,))
    assert sampling <= 2 and len(traces) == sampling


def test_integer_arrays_and_apply_pairs_in_a_network():
    class Permuted(eqx.Module):
        order: jax.Array

        def __call__(self, z):
            return z[self.order]

    energy = nn.Applied(lambda params, x: params["a"] * (x**2).sum(), {"a": jnp.array(0.5)})
    gebm = GEBM(Pushforward(standard_normal(2), Permuted(jnp.array([1, 0]))), energy)
    z = np.array([1.0, 2.0])
    np.testing.assert_allclose(gebm.decode(z), z[::-1])
    np.testing.assert_allclose(jax.jit(lambda g: g.latent.log_prob(z))(gebm), gebm.latent.log_prob(z))


def test_latent_reparam_replaces_the_site_under_a_plate_and_a_mask():
    gebm = linear_gaussian_gebm(1.0)
    mask = jnp.array([True, False, True])

    def model():
        with numpyro.plate("n", 3):
            numpyro.sample("x", gebm.mask(mask))

    model = handlers.reparam(model, config={"x": LatentReparam()})
    trace = handlers.trace(handlers.seed(model, jax.random.key(0))).get_trace()
    site = trace["x_latent"]
    assert trace["x"]["type"] == "deterministic" and trace["x"]["value"].shape == (3, 3)
    np.testing.assert_allclose(trace["x"]["value"], gebm.decode(site["value"]))
    expected = jnp.where(mask, gebm.latent.log_prob(site["value"]), 0.0)
    np.testing.assert_allclose(site["fn"].log_prob(site["value"]), expected)
