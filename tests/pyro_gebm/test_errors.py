"""Bad input that only PyTorch knows: weights changed in place, modules in training mode, optimisers."""

import hosts
import pyro
import pyro.distributions as dist
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


class Noisy(torch.nn.Module):
    def forward(self, x):
        return x + 0.5 * torch.randn_like(x)


class Dropped(torch.nn.Module):
    def forward(self, x):
        return torch.nn.functional.dropout(x, 0.5)


class Counted(torch.nn.Module):
    calls = 0

    def forward(self, x):
        self.calls += 1
        return x * self.calls


class DroppedInTraining(torch.nn.Module):
    def forward(self, x):
        return torch.nn.functional.dropout(x, 0.5, self.training)


class Centred(torch.nn.Module):
    def forward(self, x):
        return x - x.mean(0)


class InPairs(torch.nn.Module):
    def forward(self, x):
        return x.reshape(2, -1, 2).transpose(0, 1).reshape(-1, 2)


def batch_norm():
    return torch.nn.BatchNorm1d(2, track_running_stats=False, dtype=torch.float64).eval()


UNFIXED = {
    "noise": (Noisy, "one fixed function; got two values for the same input"),
    "dropout": (Dropped, "one fixed function.*`.*eval\\(\\)`"),
    "state": (Counted, "one fixed function"),
    "training": (DroppedInTraining, "one fixed function"),
    "mean": (Centred, "not to depend on the rest of its batch; got for the first of 8 examples"),
    "statistics": (batch_norm, "not to depend on the rest of its batch.*alone ValueError.*track_running_stats"),
    "groups": (InPairs, "not to depend on the rest of its batch.*alone RuntimeError"),
}


@pytest.mark.parametrize("layer, match", UNFIXED.values(), ids=UNFIXED)
def test_networks_that_are_not_fixed(layer, match):
    energy = torch.nn.Sequential(layer(), mlp((2,), ()))
    base, fixed = Pushforward(PRIOR, torch.nn.Sequential(layer(), mlp((2,), (3,)))), mlp((3,), ())
    with pytest.raises(ValueError, match=f"Expected the energy .*{match}"):
        GEBM(PRIOR, energy)
    with pytest.raises(ValueError, match=f"Expected the generator .*{match}"):
        GEBM(base, fixed)
    GEBM(base, fixed, validate_args=False)
    if layer is not DroppedInTraining:  # which training puts in evaluation mode where it must be fixed
        with pytest.raises(ValueError, match=f"Expected the generator .*{match}"):
            KALE(base, KALEGuide(fixed), None, adam)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_rounding_is_no_noise(dtype):
    torch.manual_seed(0)
    prior = dist.Normal(torch.zeros(64, dtype=dtype), 1.0).to_event(1)
    layers = [torch.nn.Linear(64, 512), torch.nn.ReLU(), *[torch.nn.Linear(512, 512)] * 4, torch.nn.Linear(512, 1)]
    network = torch.nn.Sequential(*layers, torch.nn.Flatten(0)).to(dtype)
    GEBM(prior, lambda x: 1000.0 * network(x))
