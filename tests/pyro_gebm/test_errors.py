"""Bad input that only PyTorch knows: weights changed in place, modules in training mode, optimisers."""

import hosts
import pyro
import pytest
import torch

from pyro_gebm import GEBM, KALE, KALEGuide, Pushforward, nn

PRIOR = hosts.get("pyro").normal(2)


def adam(parameters):
    return torch.optim.Adam(parameters, 1e-3)


def mlp(shape_in, shape_out):
    return nn.MLP(shape_in, shape_out, (4,)).double()


def test_nan_energy_when_sampling():
    network = mlp((2,), ())
    gebm = GEBM(PRIOR, network)
    with torch.no_grad():
        network.layers[0].bias.fill_(torch.nan)
    with pytest.raises(RuntimeError, match="Expected an energy without NaN and -inf; got them at base draws"):
        gebm.sample((3,))


@pytest.mark.parametrize("layer", [torch.nn.Dropout(0.5), torch.nn.BatchNorm1d(2, dtype=torch.float64)])
def test_module_in_training_mode(layer):
    network = torch.nn.Sequential(layer, mlp((2,), ()))
    name = type(layer).__name__
    with pytest.raises(ValueError, match=rf"energy must be in evaluation mode.*got {name} in training mode.*eval\(\)"):
        GEBM(PRIOR, network)
    generator = torch.nn.Sequential(layer, mlp((2,), (3,)))
    with pytest.raises(ValueError, match="generator must be in evaluation mode"):
        GEBM(Pushforward(PRIOR, generator), mlp((3,), ()))
    KALE(Pushforward(PRIOR, generator), KALEGuide(mlp((3,), ())), adam, adam)
    assert layer.training
    GEBM(PRIOR, network.eval())
    layer.train()


@pytest.mark.parametrize(
    "optims, match",
    [
        ({"energy_optim": pyro.optim.Adam({"lr": 1e-3})}, r"energy_optim; got pyro\.optim.*PyroOptim.*lambda"),
        ({"base_optim": adam(mlp((2,), ()).parameters())}, r"got torch\.optim.*Adam"),
    ],
)
def test_optimisers_that_are_no_factories(optims, match):
    base, guide = Pushforward(PRIOR, mlp((2,), (3,))), KALEGuide(mlp((3,), ()))
    with pytest.raises(TypeError, match=match):
        KALE(base, guide, **{"base_optim": adam, "energy_optim": adam} | optims)
