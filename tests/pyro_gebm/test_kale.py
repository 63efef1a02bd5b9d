"""Training as Pyro has it: in place, in evaluation mode, with flows of its own."""

import copy

import hosts
import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.distributions import transforms
from pyro.nn import AutoRegressiveNN

from pyro_gebm import GEBM, KALE, KALEGuide, Pushforward, gradient_penalty, nn

DATA = np.random.default_rng(0).normal([1.0, -0.5], 0.5, (50, 2))
HOST = hosts.get("pyro")
LINE = torch.as_tensor(DATA[:, 0])


class Affine(dist.TransformModule):
    domain = codomain = dist.constraints.real_vector
    bijective = True

    def __init__(self, size):
        super().__init__()
        self.loc, self.log_scale = (torch.nn.Parameter(torch.zeros(size)) for _ in range(2))

    def _call(self, z):
        return self.loc + z * self.log_scale.exp()

    def _inverse(self, x):
        return (x - self.loc) * (-self.log_scale).exp()

    def log_abs_det_jacobian(self, z, x):
        return self.log_scale.sum().expand(z.shape[:-1])


def decaying_adam(num_steps, rate=0.03):
    return HOST.adam(rate, b1=0.5, decay_steps=num_steps)


def adam(parameters):
    return torch.optim.Adam(parameters, 1e-2)


def networks(seed=0):
    """A generator and an energy on the plane; two energy steps per base step, three batches of 16 an epoch."""
    pyro.set_rng_seed(seed)
    base = Pushforward(HOST.normal(2), nn.MLP((2,), (2,), (8,)))
    return KALE(base, KALEGuide(nn.MLP((2,), (), (8,))), adam, adam, energy_steps=2)


def line(penalty=None, **kwargs):
    """A shift and a quadratic energy on the line."""
    shift = HOST.network(lambda shift, z: z + shift, torch.tensor(0.5))
    energy = HOST.network(lambda a, b, x: a * x + b * x**2, torch.tensor(0.3), torch.tensor(0.2))
    guide = KALEGuide(energy, log_partition=0.0, log_partition_rate=0.5, penalty=penalty)
    base = Pushforward(dist.Normal(torch.tensor(0.0), 1.0), shift)
    return KALE(base, guide, *[HOST.sgd(0.1)] * 2, **kwargs)


def train(training, num_steps, data=DATA, **kwargs):
    return training.run(num_steps, data, **{"batch_size": 16, "progress_bar": False, **kwargs})


def parameters(module):
    return [p.detach().clone() for p in module.parameters()]


def same(one, other):
    """Whether two nested states agree to the last bit."""
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(one[key], other[key]) for key in one)
    if isinstance(one, (list, tuple)):
        return len(one) == len(other) and all(same(a, b) for a, b in zip(one, other))
    return torch.equal(one, other) if isinstance(one, torch.Tensor) else one == other


def test_training_goes_on_from_a_state():
    training = networks()
    train(training, 3)
    state = copy.deepcopy(training.state_dict())
    other = networks(seed=7)
    other.load_state_dict(state)
    for kale in (training, other):
        pyro.set_rng_seed(1)
        train(kale, 4)
    assert same(training.state_dict(), other.state_dict()) and not same(state, other.state_dict())


def test_result_is_a_snapshot():
    training = networks()
    result = train(training, 3)
    kept = parameters(result.gebm.base.generator) + parameters(result.gebm.energy)
    train(training, 3)
    assert same(kept, parameters(result.gebm.base.generator) + parameters(result.gebm.energy))
    assert not same(kept[-1], parameters(training.guide.energy)[-1])
    for module in (result.gebm.base.generator, result.gebm.energy):
        assert not module.training and not any(p.requires_grad for p in module.parameters())
    assert all(p.requires_grad for p in training.guide.energy.parameters())
    assert training.guide.log_partition is None and result.guide.log_partition == result.gebm.log_partition
    assert isinstance(result.gebm, GEBM) and result.gebm.log_partition != training.log_partition
    x = torch.as_tensor(DATA[:3])
    torch.testing.assert_close(result.guide(x), -result.gebm.energy(x) - result.gebm.log_partition)


def test_noise_factor():
    pairs = []

    def penalty(energy, data, base_draws):
        pairs.append((len(data), len(base_draws)))
        return gradient_penalty()(energy, data, base_draws)

    training, sizes = line(noise_factor=3, penalty=penalty), []
    training.base.generator.register_forward_hook(lambda module, args, out: sizes.append(len(args[0])))
    training.energy_steps = 1
    training.step(LINE)
    assert pairs == [(50, 150)] and sizes == [150, 150]  # an energy step and a base step


def test_evaluate_leaves_training_alone():
    training, other = networks(), networks()
    for kale in (training, other):
        pyro.set_rng_seed(1)
        train(kale, 3)
    state = copy.deepcopy(training.state_dict())
    values = []
    for _ in range(2):
        pyro.set_rng_seed(2)
        values.append(training.evaluate(DATA))
    assert values[0] == values[1] and training.guide.energy.training
    assert same(state, training.state_dict())
    for kale in (training, other):
        pyro.set_rng_seed(3)
        train(kale, 3)
    assert same(training.state_dict(), other.state_dict())


def affine():
    return [Affine(2)]


def two_affines():
    return [Affine(2), transforms.Permute(torch.tensor([1, 0])), Affine(2)]


def autoregressive():
    return [transforms.AffineAutoregressive(AutoRegressiveNN(2, [8]), stable=True)]


def test_maximum_likelihood_of_a_flow():
    data = np.random.normal([1.0, -2.0], [0.5, 2.0], (2000, 2))
    base, guide = dist.TransformedDistribution(HOST.normal(2), affine()), KALEGuide(nn.MLP((2,), (), (4,)))
    kale = KALE(base, guide, HOST.adam(0.05, decay_steps=1500), None, objective="maximum_likelihood")
    (trained,) = train(kale, 1500, data, batch_size=200).gebm.base.transforms
    np.testing.assert_allclose(trained.loc, data.mean(0), atol=0.02)
    np.testing.assert_allclose(trained.log_scale.exp(), data.std(0), rtol=0.02)


@pytest.mark.parametrize("flow, rate", [(affine, 0.03), (two_affines, 0.03), (autoregressive, 0.01)])
def test_flow_base(flow, rate):
    base = dist.TransformedDistribution(HOST.normal(2), flow())
    start = base.log_prob(torch.as_tensor(DATA)).mean().item()
    guide = KALEGuide(nn.MLP((2,), (), (8,)), penalty=gradient_penalty(0.1))
    training = KALE(base, guide, decaying_adam(200, rate), decaying_adam(600, rate), energy_steps=3)
    before = [p.detach().clone() for t in base.transforms if isinstance(t, torch.nn.Module) for p in t.parameters()]
    result = train(training, 200, batch_size=50)
    trained = [p for t in result.gebm.base.transforms if isinstance(t, torch.nn.Module) for p in t.parameters()]
    assert len(before) == len(trained) > 0 and not any(map(torch.equal, before, trained))
    axis = torch.linspace(-7.0, 8.0, 200)
    x = torch.cartesian_prod(axis, axis)
    mass = result.gebm.log_prob(x).exp().sum() * (axis[1] - axis[0]) ** 2
    np.testing.assert_allclose(mass, 1.0, atol=0.01)
    assert result.gebm.log_prob(torch.as_tensor(DATA)).mean() > start + 0.7


def test_single_precision():
    torch.set_default_dtype(torch.float32)
    training = line(penalty=gradient_penalty())
    result = train(training, 4, LINE)
    values = [result.gebm.log_partition, training.log_partition, *result.losses]
    values += parameters(training.guide.energy) + parameters(training.base.generator)
    assert all(value.dtype == torch.float32 and torch.isfinite(value).all() for value in values)
