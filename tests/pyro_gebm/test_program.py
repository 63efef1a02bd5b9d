"""Programs as bases, where Pyro has its own ways."""

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.nn import PyroModule, PyroParam

from pyro_gebm import GEBM, KALE, KALEGuide, Program, nn
from pyro_gebm.base import snapshot


def normal(dim):
    return dist.Normal(0.0, 1.0).expand([dim]).to_event(1)


def enclosed():
    net = torch.nn.Linear(2, 3)

    def model():
        pyro.module("net", net)
        z = pyro.sample("z", normal(2))
        pyro.sample("x", dist.Normal(net(z), 0.1).to_event(1))

    return model, net


class Decoder(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.net = torch.nn.Linear(2, 3)

    def model(self):
        pyro.module("decoder", self)
        z = pyro.sample("z", normal(2))
        pyro.sample("x", dist.Normal(self.net(z), 0.1).to_event(1))


class Model(PyroModule):
    def __init__(self):
        super().__init__()
        self.net = PyroModule[torch.nn.Linear](2, 3)
        self.scale = PyroParam(torch.tensor(0.1), constraint=dist.constraints.positive)

    def forward(self):
        z = pyro.sample("z", normal(2))
        pyro.sample("x", dist.Normal(self.net(z), self.scale).to_event(1))


def programs():
    model, net = enclosed()
    decoder, module = Decoder(), Model()
    return {"function": (model, net), "method": (decoder.model, decoder.net), "module": (module, module.net)}


@pytest.mark.parametrize("kind", ["function", "method", "module"])
def test_networks_are_trained_in_place_and_copies_keep_theirs(kind):
    pyro.clear_param_store()
    pyro.set_rng_seed(0)
    model, net = programs()[kind]
    base = Program(model, "x")
    before, copied = net.weight.detach().clone(), snapshot(base)
    guide = KALEGuide(nn.MLP((3,), (), (8,)))
    training = KALE(base, guide, lambda p: torch.optim.Adam(p, 1e-2), lambda p: torch.optim.Adam(p, 1e-2))
    result = training.run(20, np.random.default_rng(0).normal(size=(64, 3)), progress_bar=False)
    assert not torch.allclose(before, net.weight)
    trained = net.weight.detach().clone()
    with torch.no_grad():
        net.weight.zero_()
        net.bias.zero_()
    z = torch.tensor([[1.0, -0.5, 0.0, 0.0, 0.0]])
    for law, weight in ((copied, before), (result.gebm.base, trained)):
        found = law.decomposed()[0].log_prob(z)
        own = {name: value for name, value in law.params.items() if name.endswith("weight")}
        torch.testing.assert_close(next(iter(own.values())), weight)
        loc = z[:, :2] @ weight.T + next(v for n, v in law.params.items() if n.endswith("bias"))
        scale = law.params.get("scale", torch.tensor(0.1))
        expected = normal(2).log_prob(z[:, :2]) + dist.Normal(loc, scale).log_prob(z[:, 2:]).sum(-1)
        torch.testing.assert_close(found, expected)
        assert not found.requires_grad
    pyro.set_rng_seed(1)
    x = torch.stack([pyro.poutine.trace(result.program).get_trace().nodes["x"]["value"] for _ in range(200)])
    assert float(x.std()) > 0.15  # of the trained network, where the enclosed one is 0 now


def test_a_program_that_sees_one_draw_is_drawn_from_one_by_one():
    W = torch.tensor([[1.0, 2.0], [3.0, 4.0]])

    def model():
        z = pyro.sample("z", normal(2))
        pyro.sample("x", dist.Normal(W @ z, 0.1).to_event(1))

    with pytest.warns(UserWarning, match="one at a time, since with a plate around it the program raises RuntimeError"):
        base = Program(model, "x")
    pyro.set_rng_seed(0)
    covariance = W @ W.T + 0.01 * torch.eye(2)
    torch.testing.assert_close(torch.cov(base.sample((1500,)).T), covariance, rtol=0.2, atol=0.5)
    latent = GEBM(base, lambda x: 0.0 * x.sum(-1)).latent
    z = torch.randn(4, 4)
    expected = normal(2).log_prob(z[:, :2]) + dist.Normal(z[:, :2] @ W.T, 0.1).log_prob(z[:, 2:]).sum(-1)
    torch.testing.assert_close(latent.log_prob(z), expected)


def test_a_program_that_mixes_its_draws_is_found_out():
    """It runs with a plate around it, and would be wrong."""

    def model():
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        pyro.sample("x", dist.Normal(z.sum(), 1.0))

    with pytest.warns(UserWarning, match="gives other values"):
        base = Program(model, "x")
    pyro.set_rng_seed(0)
    assert abs(float(base.sample((1000,)).var()) - 2.0) < 0.4


def test_a_cleared_store_changes_nothing():
    pyro.clear_param_store()
    base = Program(lambda: pyro.sample("x", dist.Normal(pyro.param("loc", torch.tensor(5.0)), 0.01)), "x")
    pyro.clear_param_store()
    with torch.no_grad():
        base.trained_part().get_parameter("loc").add_(1.0)
    assert abs(float(base.sample()) - 6.0) < 0.1


def test_parameters_of_the_store_are_those_of_the_base():
    pyro.clear_param_store()
    pyro.get_param_store()["loc"] = torch.tensor(3.0)
    base = Program(lambda: pyro.sample("x", dist.Normal(pyro.param("loc", torch.tensor(0.0)), 1.0)), "x")
    assert float(base.params["loc"]) == 3.0


def test_making_a_program_draws_nothing_from_the_global_generator():
    before = torch.get_rng_state()
    Program(lambda: pyro.sample("x", normal(2)), "x")
    assert torch.equal(torch.get_rng_state(), before)
