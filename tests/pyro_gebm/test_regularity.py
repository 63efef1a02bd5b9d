"""Lipschitz and bounded energies, penalties, and what KALE does with them."""

import numpy as np
import pyro.distributions as dist
import pytest
import torch
from pyro_cases import standard_normal

from pyro_gebm import KALE, KALEGuide, Pushforward, divergences, gradient_penalty, l2_penalty, nn, sum_of_penalties


def train(kale, num_steps, data, batch_size=128):
    return kale.run(num_steps, data, batch_size=batch_size, progress_bar=False)


def decaying_adam(rate, num_steps):
    def factory(parameters):
        optim = torch.optim.Adam(parameters, rate, betas=(0.5, 0.999))
        return optim, torch.optim.lr_scheduler.CosineAnnealingLR(optim, num_steps)

    return factory


def adam(rate):
    return lambda parameters: torch.optim.Adam(parameters, rate, betas=(0.5, 0.999))


def point_at_zero():
    return Pushforward(dist.Normal(torch.tensor(0.0), 1.0), lambda z: 0.0 * z)


def magnified(network, factor=30.0):
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.mul_(factor)
    return network


def slopes(energy, x):
    (gradients,) = torch.autograd.grad(energy(x.requires_grad_(True)).sum(), x)
    return gradients.flatten(1).norm(dim=1)


@pytest.mark.parametrize("shape", [(5, 5), (40, 7), (1, 6), (4, 3, 3, 3)])
def test_bound_of_the_spectral_norm(shape):
    weight = torch.randn(shape, requires_grad=True)
    exact = np.linalg.norm(weight.detach().reshape(shape[0], -1), 2)
    bound = nn.spectral_norm_bound(weight)
    assert exact * (1 - 1e-12) <= bound <= 1.02 * exact
    (gradient,) = torch.autograd.grad(bound, weight)
    left, _, right = np.linalg.svd(weight.detach().reshape(shape[0], -1))
    np.testing.assert_allclose(gradient.reshape(shape[0], -1), np.outer(left[:, 0], right[0]), atol=0.05)
    assert float(nn.spectral_norm_bound(torch.zeros(2, 3))) < 1e-3


@pytest.mark.parametrize("activation", ["relu", "leaky_relu", "tanh", "silu", "softplus"])
def test_lipschitz_energy(activation):
    energy = magnified(nn.MLP((3,), (), (16, 16), activation, lipschitz=2.0))
    steepest = slopes(energy, 3 * torch.randn(2000, 3)).max()
    assert 0.05 < steepest <= energy.lipschitz_constant() <= 2.0 * (1 + 1e-6)


def test_lipschitz_convolutional_energy():
    energy = magnified(nn.ConvEnergy((1, 8, 8), (4, 8), lipschitz=1.5))
    steepest = slopes(energy, torch.randn(200, 1, 8, 8)).max()
    assert 0.01 < steepest <= energy.lipschitz_constant() <= 1.5 * (1 + 1e-6)


def test_a_slack_lipschitz_bound_changes_nothing():
    free, bounded = (nn.MLP((3,), (), (8,), lipschitz=L) for L in (None, 1e6))
    bounded.load_state_dict(free.state_dict())
    x = torch.randn(5, 3)
    torch.testing.assert_close(free(x), bounded(x), rtol=1e-12, atol=1e-12)
    assert float(free.lipschitz_constant()) == pytest.approx(float(bounded.lipschitz_constant()), rel=1e-12)


def test_lower_bound():
    free, bounded = (nn.MLP((1,), (), (), lower_bound=b) for b in (None, -3.0))
    magnified(free, 100.0)
    bounded.load_state_dict(free.state_dict())
    x = torch.linspace(-10, 10, 101)[:, None]
    values, expected = bounded(x).detach(), free(x).detach()
    np.testing.assert_allclose(values, -3.0 + np.logaddexp(0.0, expected.numpy() + 3.0), rtol=1e-12)
    assert values.min() >= -3.0 and expected.min() < -3.0


@pytest.mark.parametrize(
    "kwargs, match",
    [
        ({"lipschitz": 0.0}, "lipschitz > 0"),
        ({"lipschitz": np.inf}, "lipschitz > 0"),
        ({"lower_bound": np.nan}, "finite"),
    ],
)
def test_bad_bounds(kwargs, match):
    with pytest.raises(ValueError, match=match):
        nn.MLP((2,), (), **kwargs)
    with pytest.raises(ValueError, match="lower_bound of an energy"):
        nn.MLP((2,), (2,), lower_bound=-1.0)


def test_penalties():
    energy = nn.MLP((2,), (), (4,))
    data, draws = torch.ones(5, 2), torch.ones(5, 2)
    squares = sum(p.detach().square().sum() for p in energy.parameters())
    torch.testing.assert_close(l2_penalty(0.3)(energy, data, draws).detach(), 0.3 * squares)
    total = sum_of_penalties(l2_penalty(0.3), gradient_penalty(2.0))(energy, data, draws)
    slope = slopes(energy, torch.ones(1, 2))  # data and draws agree: there is one interpolate
    torch.testing.assert_close(total.detach(), 0.3 * squares + 2.0 * slope[0] ** 2)
    with pytest.raises(ValueError, match="weight >= 0; got -1"):
        l2_penalty(-1.0)


@pytest.mark.parametrize("lipschitz, distance", [(1.0, 0.5), (2.0, 1.5)])
def test_case_2_diracs(lipschitz, distance):
    energy = nn.MLP((), (), (16,), lipschitz=lipschitz)
    kale = KALE(point_at_zero(), KALEGuide(energy, penalty=None), None, decaying_adam(1e-2, 1500))
    data = np.full(256, distance)
    train(kale, 1500, data)
    value = float(kale.evaluate(data))
    assert lipschitz * distance - 0.03 <= value <= lipschitz * distance + 1e-6


@pytest.mark.parametrize("hidden, exact", [((), 2.5), ((32,), 2.5)], ids=["linear", "network"])
def test_case_3_lipschitz_critics_of_two_normals(hidden, exact):
    energy = nn.MLP((), (), hidden, "leaky_relu", lipschitz=1.0)
    prior = dist.Normal(torch.tensor(0.0), 1.0)
    kale = KALE(prior, KALEGuide(energy, penalty=None), None, decaying_adam(1e-2, 1500))
    train(kale, 1500, np.random.normal(3.0, 1.0, 20_000), batch_size=256)
    fresh = np.random.normal(3.0, 1.0, 100_000)
    error = 4 * np.hypot(1.0, np.sqrt(np.e - 1)) / np.sqrt(1e5)
    value = float(kale.evaluate(fresh))
    assert exact - 0.03 <= value <= 1.0 * 3.0 + error
    if not hidden:
        assert value <= exact + error


def test_two_samples_of_one_law():
    kale = KALE(standard_normal(2), KALEGuide(nn.MLP((2,), (), (64, 64))), None, adam(1e-3))
    train(kale, 1000, np.random.normal(size=(2000, 2)))
    assert abs(kale.evaluate(np.random.normal(size=(20_000, 2)))) < 0.03


class Segment(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.shift = torch.nn.Parameter(torch.tensor(0.0))

    def forward(self, z):
        return torch.stack([self.shift.expand(len(z)), z], 1)


def test_the_base_moves_where_the_kl_is_infinite():
    data = torch.stack([torch.full((2000,), 1.5), torch.rand(2000)], 1)  # parallel segments
    base = Pushforward(dist.Uniform(torch.tensor(0.0), 1.0), Segment())
    guide = KALEGuide(nn.MLP((2,), (), (32, 32), "leaky_relu"))
    kale = KALE(base, guide, adam(1e-2), adam(1e-3))
    distances = []
    for _ in range(4):
        distances.append(float(divergences.mmd2(base.sample((1000,)), data[:1000], bandwidth=1.0)))
        train(kale, 150, data)
    assert np.all(np.diff(distances) < 0) and distances[-1] < 0.1 * distances[0]
