"""Everything follows the device of the parameters: on `meta`, where a tensor made anywhere else raises an error."""

import hosts
import pytest
import torch

from pyro_gebm import GEBM, Pushforward, divergences, gradient_penalty, l2_penalty, nn
from pyro_gebm.base import without_validation
from pyro_gebm.divergences import kernels
from pyro_gebm.dynamics import steps
from pyro_gebm.training.objectives import OBJECTIVES, Energies

HOST = hosts.get("pyro")
X = torch.ones(6, 3, device="meta")


def model(**kwargs):
    """A small GEBM, made and then moved."""
    base = Pushforward(HOST.normal(2), nn.MLP((2,), (3,), (4,)))
    gebm = GEBM(base, nn.MLP((3,), (), (4,)), validate_args=False, **kwargs)
    base.generator.to("meta")
    gebm.energy.to("meta")
    inner = base.latent_prior.base_dist
    inner.loc, inner.scale = inner.loc.to("meta"), inner.scale.to("meta")
    gebm.inverse_temperature = gebm.inverse_temperature.to("meta")
    return gebm


def test_densities_and_draws_of_a_base():
    gebm = model()
    latent = without_validation(gebm.latent)  # whose checks read values
    z = gebm.latent_prior.sample((5,))
    for value in (z, gebm.decode(z), latent.log_prob(z), gebm.log_weight(gebm.decode(z)), gebm.base.rsample((4,))):
        assert value.device.type == "meta"


@pytest.mark.parametrize("penalty", [gradient_penalty(1.0), l2_penalty(0.1)])
def test_penalties(penalty):
    assert penalty(model().energy, X, X + 1.0).device.type == "meta"


@pytest.mark.parametrize("name", ["kale", "plain_kale", "donsker_varadhan"])
def test_objectives(name):
    energies = Energies(X[:, 0], X[:, 1], None, torch.zeros((), device="meta"))
    assert OBJECTIVES[name]().energy_loss(energies).device.type == "meta"


@pytest.mark.parametrize("kernel", [kernels.Gaussian(1.0), kernels.Laplace(1.0), kernels.InverseMultiquadric(1.0)])
def test_divergences(kernel):
    assert kernel(X, X).device.type == "meta"
    assert divergences.batch_log_partition(X[:, 0]).device.type == "meta"


def test_networks():
    image = torch.ones(2, 1, 8, 8, device="meta")
    for network, value in (
        (nn.ConvEnergy((1, 8, 8), (4,)), image),
        (nn.ConvEncoder((1, 8, 8), 3, (4,)), image),
        (nn.ConvGenerator(3, (1, 8, 8), (4,)), torch.ones(2, 3, device="meta")),
    ):
        assert network.to("meta")(value).device.type == "meta"


def test_steps_of_the_dynamics():
    velocity = steps.refreshed(X, 0.5)
    assert velocity.device.type == "meta"
