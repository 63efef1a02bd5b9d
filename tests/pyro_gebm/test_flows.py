"""Real NVP as modules: nothing cached goes stale, copies, files and gradients."""

import copy
import io
import pickle

import hosts
import torch

from pyro_gebm.base import trained_part
from pyro_gebm.flows import FlowRatioEnergy, real_nvp

random_flow = hosts.get("pyro").random_flow


def parameters(flow):
    return torch.cat([p.detach().flatten() for p in trained_part(flow).parameters()])


def test_nothing_is_stale_after_an_update():
    flow = random_flow()
    x = flow.rsample((4,))
    before = flow.log_prob(x)
    with torch.no_grad():
        for parameter in trained_part(flow).parameters():
            parameter.mul_(0.5)
    after = flow.log_prob(x)
    assert not torch.allclose(before, after)
    assert torch.equal(after, flow.log_prob(x.clone()))
    assert flow.transforms[0].with_cache() is flow.transforms[0]


def test_copies_and_files_after_every_use():
    flow, x = random_flow(), torch.randn(2, 3)
    coupling = flow.transforms[0]
    uses = {
        "log_prob": lambda: flow.log_prob(x),
        "rsample": lambda: flow.rsample((2,)),
        "inverse alone": lambda: coupling.inv(x),
        "vmap": lambda: torch.vmap(torch.func.grad(flow.log_prob))(x),
        "vmap of the inverse": lambda: torch.vmap(coupling.inv)(x),
    }
    for name, use in uses.items():
        use()
        file = io.BytesIO()
        torch.save(flow, file)
        file.seek(0)
        for copied in (copy.deepcopy(flow), pickle.loads(pickle.dumps(flow)), torch.load(file, weights_only=False)):
            assert torch.equal(copied.log_prob(x), flow.log_prob(x)), name
            assert torch.equal(parameters(copied), parameters(flow)), name


def test_gradients_reach_every_parameter_and_agree_with_vmap():
    flow, x = random_flow(num_couplings=3), torch.randn(4, 3, requires_grad=True)
    flow.log_prob(x).sum().backward()
    grads = [p.grad for p in trained_part(flow).parameters()]
    assert len(grads) == 3 * 2 * 3 * 2 and all(grad.isfinite().all() and grad.any() for grad in grads)
    torch.testing.assert_close(torch.vmap(torch.func.grad(flow.log_prob))(x.detach()), x.grad)


def test_priors_of_a_flow_ratio_energy_go_where_it_goes():
    energy = FlowRatioEnergy(real_nvp(3)).float()
    assert energy(torch.zeros(2, 3, dtype=torch.float32)).dtype == torch.float32
    assert energy.to("meta").q.sample().device.type == "meta"


def test_the_density_of_a_copy_is_of_its_own_parameters():
    energy, x = FlowRatioEnergy(random_flow(), random_flow(seed=5)), torch.randn(6, 3)
    copied = copy.deepcopy(energy)
    torch.nn.init.zeros_(next(copied.flow.parameters()))
    assert torch.equal(next(copied.q.transforms[0].parameters()), torch.zeros_like(next(copied.flow.parameters())))
    assert not torch.equal(copied(x), energy(x))
