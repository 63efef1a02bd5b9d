"""What the model is to PyTorch: gradients, pickles, no stale caches."""

import copy
import pickle

import hosts
import pyro.distributions as dist
import torch

from pyro_gebm import GEBM, Pushforward, nn

HOST = hosts.get("pyro")


class Quadratic(torch.nn.Module):
    def __init__(self, a, dtype=None):
        super().__init__()
        self.a = torch.nn.Parameter(torch.tensor(a, dtype=dtype))

    def forward(self, x):
        return 0.5 * self.a * x.reshape(len(x), -1).square().sum(1)


def test_dtype_follows_the_parameters():
    with HOST.float32():
        prior = HOST.normal(2)
    W = torch.ones(3, 2, dtype=torch.float32)
    gebm = GEBM(Pushforward(prior, lambda z: z @ W.T), Quadratic(1.0, torch.float32))
    z = gebm.latent.sample((2,))
    assert z.dtype == gebm.latent.log_prob(z).dtype == gebm.inverse_temperature.dtype == torch.float32


def test_pushforward_has_pathwise_gradients():
    scale = torch.tensor(1.0, requires_grad=True)
    base = Pushforward(HOST.normal(2), lambda z: scale * z + 1.0)
    base.rsample((7,)).mean().backward()
    assert scale.grad != 0 and not base.sample((7,)).requires_grad


def test_gradients_reach_energy_and_generator():
    gebm = GEBM(Pushforward(HOST.normal(2), nn.MLP((2,), (3,), (4,))), nn.MLP((3,), (), (4,)))
    gebm.latent.log_prob(torch.randn(3, 2)).sum().backward()
    parameters = [*gebm.generator.parameters(), *gebm.energy.parameters()]
    assert all(p.grad is not None for p in parameters)


def test_survives_pickle_and_deepcopy():
    gebm = GEBM(Pushforward(HOST.normal(2), nn.MLP((2,), (3,), (4,))), nn.MLP((3,), (), (4,)))
    z = torch.randn(2)
    for twin in (pickle.loads(pickle.dumps(gebm)), copy.deepcopy(gebm)):
        torch.testing.assert_close(twin.latent.log_prob(z), gebm.latent.log_prob(z))


def test_construction_leaves_the_random_state_alone():
    state = torch.get_rng_state()
    HOST.linear_gaussian(1.0)
    assert torch.equal(state, torch.get_rng_state())


def test_flow_densities_are_not_stale_after_an_update():
    flow = dist.TransformedDistribution(HOST.normal(2), [dist.transforms.affine_coupling(2)])
    gebm = GEBM(flow, lambda x: 0.0 * x.sum(-1))
    with torch.no_grad():
        x = flow.rsample((3,))
        for parameter in flow.transforms[0].parameters():
            parameter.mul_(0.5)
        assert not torch.allclose(flow.log_prob(x), flow.log_prob(x.clone()))  # what the host's cache does
        torch.testing.assert_close(gebm.log_prob(x), flow.log_prob(x.clone()))
