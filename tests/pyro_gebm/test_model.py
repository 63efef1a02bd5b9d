"""What the model is: exact identities, shapes, gradients."""

import copy
import math
import pickle

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro_cases import CASE, linear_gaussian_gebm, standard_normal

from pyro_gebm import GEBM, LatentReparam, Pushforward, divergences, nn
from pyro_gebm.training.guide import settle_log_partition


class Quadratic(torch.nn.Module):
    def __init__(self, a, dtype=None):
        super().__init__()
        self.a = torch.nn.Parameter(torch.tensor(a, dtype=dtype))

    def forward(self, x):
        return 0.5 * self.a * x.reshape(len(x), -1).square().sum(1)


@pytest.mark.parametrize("dim", [1, 10])
@pytest.mark.parametrize("a", [1.0, 3.0, 30.0])
def test_case_4_log_partition_of_a_quadratic_energy(dim, a):
    exact = -0.5 * dim * math.log(1 + a)
    gebm = GEBM(standard_normal(dim), Quadratic(a), log_partition=exact)
    expected = dist.Normal(0.0, (1 + a) ** -0.5).expand([dim]).to_event(1)
    x = torch.randn(5, dim)
    torch.testing.assert_close(gebm.log_prob(x), expected.log_prob(x), rtol=1e-10, atol=1e-10)


def test_case_4_settled_log_partition():
    estimate = settle_log_partition(standard_normal(1), Quadratic(3.0))
    variance = (4 / math.sqrt(7) - 1) / 200_000  # of exp(-E)/Z over base draws, divided by their number
    assert abs(estimate + 0.5 * math.log(4)) < 5 * math.sqrt(variance)


def test_case_5_base_gradient_is_exact_for_any_draw():
    theta, m = 0.7, 2.0
    t, z = torch.tensor(theta, requires_grad=True), torch.randn(50)
    divergences.base_loss(-(m - theta) * (z + t)).backward()
    torch.testing.assert_close(t.grad, torch.tensor(theta - m), rtol=1e-10, atol=0)


@pytest.mark.parametrize("beta", [1.0, 3.7, 100.0])
def test_case_6_latent_law_of_the_linear_gaussian(beta):
    latent = linear_gaussian_gebm(beta, log_partition=CASE.log_partition(beta)).latent
    mean, covariance = torch.as_tensor(CASE.mean(beta)), torch.as_tensor(CASE.covariance(beta))
    expected = dist.MultivariateNormal(mean, covariance)
    z = torch.randn(3, 2, requires_grad=True)
    values = latent.log_prob(z), expected.log_prob(z)
    torch.testing.assert_close(*values, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(*(torch.autograd.grad(v.sum(), z)[0] for v in values), rtol=1e-10, atol=1e-10)


def test_case_10_constants_cancel():
    x, energy = torch.randn(4, 2), Quadratic(2.0)
    one = GEBM(standard_normal(2), energy, log_partition=0.3)
    other = GEBM(standard_normal(2), lambda x: energy(x) + 5.0, log_partition=0.3 - 5.0)
    torch.testing.assert_close(one.log_prob(x), other.log_prob(x), rtol=0, atol=1e-10)


def test_case_10_beta_zero_is_the_base():
    x = torch.randn(4, 2)
    gebm = GEBM(standard_normal(2), Quadratic(2.0), inverse_temperature=0.0, log_partition=0.0)
    torch.testing.assert_close(gebm.log_prob(x), standard_normal(2).log_prob(x), rtol=0, atol=1e-10)
    torch.testing.assert_close(gebm.latent.log_prob(x), standard_normal(2).log_prob(x), rtol=0, atol=1e-10)


def test_case_10_zero_energy_has_log_partition_zero():
    assert settle_log_partition(standard_normal(2), lambda x: 0.0 * x.sum(-1)).item() == pytest.approx(0)


@pytest.mark.parametrize("u, slack", [(0.1, 0.0051709), (0.5, 0.1487213), (1.0, 0.7182818), (-1.0, 0.3678794)])
def test_kale_lies_below_donsker_varadhan_by_the_exact_slack(u, slack):
    data, base = torch.randn(30), torch.randn(40)
    best = divergences.batch_log_partition(base)
    gap = divergences.donsker_varadhan(data, base) - divergences.kale(data, base, best - u)
    np.testing.assert_allclose(gap, math.exp(u) - 1 - u, atol=1e-10)
    np.testing.assert_allclose(gap, slack, atol=1e-7)


BASES = {
    "normal": lambda: dist.Normal(0.3, 2.0),
    "vector": lambda: dist.Normal(torch.arange(3.0), 1.0).to_event(1),
    "multivariate": lambda: dist.MultivariateNormal(torch.zeros(2), torch.tensor([[2.0, 0.5], [0.5, 1.0]])),
    "gamma": lambda: dist.Gamma(2.0, 1.5),
    "lognormal": lambda: dist.LogNormal(0.2, 0.5),
    "independent lognormal": lambda: dist.LogNormal(torch.zeros(3), 0.5).to_event(1),
    "expanded lognormal": lambda: dist.LogNormal(0.0, 0.5).expand([4]),
    "affine flow": lambda: dist.TransformedDistribution(
        standard_normal(2), [dist.transforms.AffineTransform(torch.tensor(1.0), torch.tensor([2.0, 0.5]), event_dim=1)]
    ),
    "simplex": lambda: dist.Dirichlet(torch.tensor([2.0, 3.0, 4.0])),
}


@pytest.mark.parametrize("name", BASES)
def test_any_base_with_a_density(name):
    base = BASES[name]()
    gebm = GEBM(base, lambda x: 0.1 * x.reshape(len(x), -1).square().sum(1), inverse_temperature=1.5, log_partition=0.4)
    x = base.sample((5,))
    energy = (
        0.1 * x.square().sum(tuple(range(x.dim() - len(base.event_shape), x.dim())))
        if base.event_shape
        else (0.1 * x**2)
    )
    torch.testing.assert_close(gebm.log_prob(x), base.log_prob(x) - 1.5 * energy - 0.4, rtol=1e-10, atol=1e-10)
    draws = gebm.sample((6,))
    assert draws.shape == gebm.shape((6,)) == (6, *base.batch_shape, *base.event_shape)
    assert gebm.support.check(draws).all()
    z = gebm.latent_prior.sample((3,))
    expected = gebm.latent_prior.log_prob(z) + gebm.log_weight(gebm.decode(z))
    torch.testing.assert_close(gebm.latent.log_prob(z), expected, rtol=1e-10, atol=1e-10)
    assert not gebm.has_rsample and not gebm.latent.has_rsample


@pytest.mark.parametrize("shape", [(), (3,), (2, 3)])
def test_expand_sample_and_log_prob_shapes(shape):
    gebm = linear_gaussian_gebm(1.0)
    for d in (gebm, gebm.latent):
        wide = d.expand(shape)
        assert type(wide) is type(d)
        draws = wide.sample((4,))
        assert draws.shape == (4, *shape, *d.event_shape) and not draws.requires_grad
        if d is not gebm:
            assert wide.log_prob(draws).shape == (4, *shape)
            assert wide.to_event(len(shape)).log_prob(draws).shape == (4,)


def test_batch_of_inverse_temperatures():
    gebm = linear_gaussian_gebm(torch.tensor([0.0, 1.0, 10.0]))
    assert gebm.batch_shape == gebm.latent.batch_shape == (3,)
    z = gebm.latent.sample((5,))
    assert z.shape == (5, 3, 2)
    for i, beta in enumerate([0.0, 1.0, 10.0]):
        expected = linear_gaussian_gebm(beta).latent.log_prob(z[:, i])
        torch.testing.assert_close(gebm.latent.log_prob(z)[:, i], expected)


def test_temper_forgets_a_scalar_and_keeps_a_callable():
    assert linear_gaussian_gebm(1.0, log_partition=0.3).temper(2.0).log_partition is None
    gebm = linear_gaussian_gebm(1.0, log_partition=lambda beta: -beta).temper(2.0)
    z = torch.zeros(2)
    torch.testing.assert_close(gebm.latent.log_prob(z), linear_gaussian_gebm(2.0).latent.log_prob(z) + 2.0)


def test_dtype_follows_the_parameters():
    prior = standard_normal(2, torch.float32)
    W = torch.ones(3, 2, dtype=torch.float32)
    gebm = GEBM(Pushforward(prior, lambda z: z @ W.T), Quadratic(1.0, torch.float32))
    z = gebm.latent.sample((2,))
    assert z.dtype == gebm.latent.log_prob(z).dtype == gebm.inverse_temperature.dtype == torch.float32


def test_pushforward_has_pathwise_gradients():
    scale = torch.tensor(1.0, requires_grad=True)
    base = Pushforward(standard_normal(2), lambda z: scale * z + 1.0)
    base.rsample((7,)).mean().backward()
    assert scale.grad != 0 and not base.sample((7,)).requires_grad


def test_gradients_reach_energy_and_generator():
    gebm = GEBM(Pushforward(standard_normal(2), nn.MLP((2,), (3,), (4,))), nn.MLP((3,), (), (4,)))
    gebm.latent.log_prob(torch.randn(3, 2)).sum().backward()
    parameters = [*gebm.generator.parameters(), *gebm.energy.parameters()]
    assert all(p.grad is not None for p in parameters)


def test_survives_pickle_and_deepcopy():
    gebm = GEBM(Pushforward(standard_normal(2), nn.MLP((2,), (3,), (4,))), nn.MLP((3,), (), (4,)))
    z = torch.randn(2)
    for twin in (pickle.loads(pickle.dumps(gebm)), copy.deepcopy(gebm)):
        torch.testing.assert_close(twin.latent.log_prob(z), gebm.latent.log_prob(z))


def test_construction_leaves_the_random_state_alone():
    state = torch.get_rng_state()
    linear_gaussian_gebm(1.0)
    assert torch.equal(state, torch.get_rng_state())


def test_flow_densities_are_not_stale_after_an_update():
    flow = dist.TransformedDistribution(standard_normal(2), [dist.transforms.affine_coupling(2)])
    gebm = GEBM(flow, lambda x: 0.0 * x.sum(-1))
    with torch.no_grad():
        x = flow.rsample((3,))
        for parameter in flow.transforms[0].parameters():
            parameter.mul_(0.5)
        assert not torch.allclose(flow.log_prob(x), flow.log_prob(x.clone()))  # what the host's cache does
        torch.testing.assert_close(gebm.log_prob(x), flow.log_prob(x.clone()))


def test_latent_reparam_replaces_the_site_under_a_plate_and_a_mask():
    gebm = linear_gaussian_gebm(1.0)
    mask = torch.tensor([True, False, True])

    def model():
        with pyro.plate("n", 3):
            pyro.sample("x", gebm.mask(mask))

    model = poutine.reparam(model, config={"x": LatentReparam()})
    trace = poutine.trace(model).get_trace()
    trace.compute_log_prob()
    site = trace.nodes["x_latent"]
    assert trace.nodes["x"]["value"].shape == (3, 3)
    torch.testing.assert_close(trace.nodes["x"]["value"], gebm.decode(site["value"]))
    expected = torch.where(mask, gebm.latent.log_prob(site["value"]), 0.0)
    torch.testing.assert_close(site["log_prob"], expected)
    assert trace.nodes["x"]["log_prob_sum"] == 0
