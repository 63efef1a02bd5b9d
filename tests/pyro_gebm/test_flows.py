"""Real NVP: density, inverse, copies without stale caches, training, and the energy with a known log-partition."""

import copy
import io
import pickle

import numpy as np
import pyro.distributions as dist
import pytest
import torch
from pyro_cases import standard_normal

from pyro_gebm import GEBM, KALE, KALEGuide, Pushforward, nn
from pyro_gebm.base import trained_part
from pyro_gebm.flows import AffineCoupling, FlowRatioEnergy, real_nvp


def random_flow(dim=3, seed=0, scale=0.3, num_couplings=3):
    """A flow whose parameters are all random: it starts as the identity."""
    flow = real_nvp(dim, num_couplings, (5, 4))
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in trained_part(flow).parameters():
            parameter.copy_(scale * torch.randn(parameter.shape, generator=generator))
    return flow


def parameters(flow):
    return torch.cat([p.detach().flatten() for p in trained_part(flow).parameters()])


@pytest.mark.parametrize("dim", [2, 3, 6])
def test_density_is_the_change_of_variables(dim):
    flow = random_flow(dim)
    z = torch.randn(4, dim)

    def push(z):
        for transform in flow.transforms:
            z = transform(z)
        return z

    x = push(z).detach()
    assert (x - z).abs().max() > 0.1
    torch.testing.assert_close(x, torch.stack([push(row) for row in z]), rtol=0, atol=1e-12)
    jacobians = torch.stack([torch.autograd.functional.jacobian(push, row) for row in z])
    expected = standard_normal(dim).log_prob(z) - torch.linalg.slogdet(jacobians)[1]
    torch.testing.assert_close(flow.log_prob(x), expected, rtol=0, atol=1e-10)
    pulled = x
    for transform in reversed(flow.transforms):
        pulled = transform.inv(pulled)
    torch.testing.assert_close(pulled, z, rtol=0, atol=1e-10)
    log_det = flow.transforms[0].log_abs_det_jacobian(z, flow.transforms[0](z))
    torch.testing.assert_close(log_det, -flow.transforms[0].log_scale(z[:, : dim // 2]).sum(1))


@torch.no_grad()
def test_the_density_integrates_to_one():
    flow = random_flow(2, seed=3)
    side = torch.linspace(-15.0, 15.0, 600)
    grid = torch.stack(torch.meshgrid(side, side, indexing="ij"), -1)
    assert abs(flow.log_prob(grid).exp().sum() * (side[1] - side[0]) ** 2 - 1.0) < 1e-3


def test_every_coordinate_changes_in_turn():
    for swap, kept in ((False, slice(2)), (True, slice(2, None))):
        coupling = AffineCoupling(5, (4,), swap=swap)
        for parameter in coupling.parameters():
            torch.nn.init.ones_(parameter)
        x = torch.arange(5.0)
        np.testing.assert_array_equal(coupling(x) == x, np.isin(np.arange(5), np.arange(5)[kept]))


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
    flow, x = random_flow(), torch.randn(4, 3, requires_grad=True)
    flow.log_prob(x).sum().backward()
    grads = [p.grad for p in trained_part(flow).parameters()]
    assert len(grads) == 3 * 2 * 3 * 2 and all(grad.isfinite().all() and grad.any() for grad in grads)
    torch.testing.assert_close(torch.vmap(torch.func.grad(flow.log_prob))(x.detach()), x.grad)


def test_maximum_likelihood_fits_a_curved_law():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(4000, 2))
    x[:, 1] = 0.5 * x[:, 1] + x[:, 0] ** 2

    def optim(parameters):
        adam = torch.optim.Adam(parameters, 5e-3)
        return adam, torch.optim.lr_scheduler.CosineAnnealingLR(adam, 800)

    guide = KALEGuide(lambda x: 0.0 * x.sum(1))
    kale = KALE(real_nvp(2, 2, (16, 16)), guide, optim, None, objective="maximum_likelihood")
    result = kale.run(800, x[:2000], batch_size=200, progress_bar=False)
    entropy = 2 * 0.5 * np.log(2 * np.pi * np.e) + np.log(0.5)
    held_out = -result.gebm.base.log_prob(torch.tensor(x[2000:])).mean()
    assert abs(held_out - entropy) < 0.1  # two standard errors of the mean and the fit; N(0, I) gives 3.7


def test_flow_ratio_energy_is_the_flow():
    base, flow = random_flow(seed=0), random_flow(seed=5)
    energy = FlowRatioEnergy(base, flow)
    gebm = GEBM(base, energy, log_partition=energy.log_partition.item())
    x = torch.randn(6, 3)
    torch.testing.assert_close(gebm.log_prob(x), flow.log_prob(x), atol=1e-10, rtol=0)
    torch.testing.assert_close(energy.log_partition, (parameters(flow) ** 2).sum().log())


def test_priors_of_a_flow_ratio_energy_go_where_it_goes():
    energy = FlowRatioEnergy(real_nvp(3)).float()
    assert energy(torch.zeros(2, 3, dtype=torch.float32)).dtype == torch.float32
    assert energy.to("meta").q.sample().device.type == "meta"


def test_flow_ratio_energy_trains_its_flow_alone_and_learns_its_constant():
    base = random_flow(2, seed=0, scale=0.1, num_couplings=2)
    energy, before = FlowRatioEnergy(base), parameters(base)
    data = torch.randn(1000, 2) * torch.tensor([0.7, 1.3]) + torch.tensor([0.5, 0.0])
    kale = KALE(base, KALEGuide(energy, penalty=None), None, lambda p: torch.optim.Adam(p, 2e-3))
    result = kale.run(200, data, batch_size=200, progress_bar=False)
    trained = result.gebm.energy
    assert torch.equal(parameters(base), before) and not torch.equal(parameters(trained.q), before)
    assert abs(result.gebm.log_partition - trained.log_partition.detach()) < 0.01
    assert trained.q.log_prob(data).mean() > base.log_prob(data).mean() + 0.05
    copied = copy.deepcopy(trained)
    torch.nn.init.zeros_(next(copied.flow.parameters()))
    assert torch.equal(next(copied.q.transforms[0].parameters()), torch.zeros_like(next(copied.flow.parameters())))
    assert not torch.equal(copied(data), trained(data))  # the copy's density is of its own parameters


@pytest.mark.parametrize(
    "build, message",
    [
        (lambda: real_nvp(1), r"Expected dim >= 2.*got 1"),
        (lambda: real_nvp(3, 0), r"Expected num_couplings >= 1; got 0"),
        (lambda: real_nvp(3).transforms[0](torch.ones(4)), r"length 3; got shape \(4,\)"),
        (lambda: FlowRatioEnergy(dist.Normal(0.0, 1.0)), r"for base; got Normal. Use `real_nvp`"),
        (lambda: FlowRatioEnergy(random_flow(), standard_normal(3)), r"for flow; got Independent"),
        (lambda: FlowRatioEnergy(random_flow(3), random_flow(2)), r"events of shape \(3,\); got \(2,\)"),
        (lambda: FlowRatioEnergy(Pushforward(standard_normal(2), nn.MLP((2,), (2,)))), "for base; got Pushforward"),
    ],
)
def test_errors(build, message):
    with pytest.raises(ValueError, match=message):
        build()
