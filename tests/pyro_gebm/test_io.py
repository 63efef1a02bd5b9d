"""Files: what PyTorch adds."""

import hosts
import pytest
import torch

from pyro_gebm import GEBM, Pushforward, load, nn, save

HOST = hosts.get("pyro")


class Affine(torch.nn.Module):
    def __init__(self, scale):
        super().__init__()
        self.W = torch.nn.Parameter(scale * torch.arange(1.0, 7.0).reshape(3, 2))
        self.register_buffer("b", scale * torch.ones(3))
        self.register_buffer("order", torch.tensor([1, 0]))

    def forward(self, z):
        return z[:, self.order] @ self.W.T + self.b


class Quadratic(torch.nn.Module):
    def __init__(self, weight):
        super().__init__()
        self.weight = torch.nn.Parameter(weight)

    def forward(self, x):
        return (self.weight * x**2).sum(-1)


def dropped(size_in, size_out):
    return torch.nn.Sequential(
        torch.nn.Linear(size_in, 4), torch.nn.BatchNorm1d(4), torch.nn.Dropout(0.5), torch.nn.Linear(4, size_out)
    )


def small_gebm(**kwargs):
    generator = nn.MLP((2,), (3,), (4,))
    return GEBM(Pushforward(HOST.normal(2), generator), nn.MLP((3,), (), (4,)), **kwargs)


def round_trip(gebm, tmp_path, **templates):
    save(gebm, tmp_path / "gebm.npz")
    return load(tmp_path / "gebm.npz", **templates)


def assert_same(loaded, gebm):
    with torch.no_grad():
        z = gebm.latent_prior.sample((4,))
        for value in (lambda g: g.latent_prior.log_prob(z), lambda g: g.decode(z), lambda g: g.latent.log_prob(z)):
            torch.testing.assert_close(value(loaded), value(gebm), rtol=1e-12, atol=1e-12)


def test_modules_of_the_user(tmp_path):
    gebm = GEBM(Pushforward(HOST.normal(2), Affine(1.0)), Quadratic(torch.arange(3.0)), log_partition=0.2)
    template = Pushforward(HOST.normal(2), Affine(0.0))
    loaded = round_trip(gebm, tmp_path, base=template, energy=Quadratic(torch.zeros(3)))
    assert_same(loaded, gebm)
    assert loaded.generator.order.dtype == torch.int64


@pytest.mark.parametrize("part", ["base", "energy"])
def test_modules_come_back_in_evaluation_mode(part, tmp_path):
    if part == "base":
        generator, template = dropped(2, 3), dropped(2, 3)
        generator(torch.randn(50, 2))  # moves the running statistics
        gebm = GEBM(Pushforward(HOST.normal(2), generator.eval()), nn.MLP((3,), (), (4,)))
        loaded = round_trip(gebm, tmp_path, base=Pushforward(HOST.normal(2), template))
        module = loaded.generator
    else:
        critic, template = (torch.nn.Sequential(dropped(2, 1), torch.nn.Flatten(0)) for _ in range(2))
        critic(torch.randn(50, 2))
        gebm = GEBM(HOST.normal(2), critic.eval())
        loaded = round_trip(gebm, tmp_path, base=HOST.normal(2), energy=template)
        module = loaded.energy
    assert not any(m.training for m in module.modules())
    assert not any(p.requires_grad for p in module.parameters())
    assert_same(loaded, gebm)


def test_networks_of_nn_come_back_in_evaluation_mode(tmp_path):
    loaded = round_trip(small_gebm(), tmp_path)
    for network in (loaded.generator, loaded.energy):
        assert not any(m.training for m in network.modules())
        assert not any(p.requires_grad for p in network.parameters())
