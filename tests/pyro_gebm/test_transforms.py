"""Every transform that Pyro ships can be trained, or at least stand in a base, and ends in a result."""

import inspect

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.distributions import transforms

from pyro_gebm import GEBM, KALE, KALEGuide, nn
from pyro_gebm.base import has_density, snapshot

LEARNT = {
    "affine_autoregressive": lambda: transforms.affine_autoregressive(2),
    "affine_coupling": lambda: transforms.affine_coupling(2),
    "batchnorm": lambda: transforms.batchnorm(2),
    "block_autoregressive": lambda: transforms.block_autoregressive(2),
    "generalized_channel_permute": lambda: transforms.generalized_channel_permute(channels=2),
    "householder": lambda: transforms.householder(2),
    "iterated": lambda: transforms.iterated(2, transforms.spline, 2, count_bins=4),
    "matrix_exponential": lambda: transforms.matrix_exponential(2),
    "neural_autoregressive": lambda: transforms.neural_autoregressive(2),
    "planar": lambda: transforms.planar(2),
    "polynomial": lambda: transforms.polynomial(2),
    "radial": lambda: transforms.radial(2),
    "spline": lambda: transforms.spline(2, count_bins=4),
    "spline_autoregressive": lambda: transforms.spline_autoregressive(2, count_bins=4),
    "spline_coupling": lambda: transforms.spline_coupling(2, count_bins=4),
    "sylvester": lambda: transforms.sylvester(2),
}
WITHOUT_INVERSE = (
    "block_autoregressive",
    "conditional_neural_autoregressive",
    "conditional_planar",
    "conditional_radial",
    "neural_autoregressive",
    "planar",
    "polynomial",
    "radial",
    "sylvester",
)
CONDITIONAL = {
    name: getattr(transforms, name)
    for name in transforms.__all__
    if name.startswith("conditional_") and name != "conditional_generalized_channel_permute"
}
CONSTANT = {
    "AffineTransform": lambda: transforms.AffineTransform(0.5, 2.0),
    "ComposeTransform": lambda: transforms.ComposeTransform([transforms.spline(2, count_bins=4)]),
    "CumulativeDistributionTransform": lambda: transforms.CumulativeDistributionTransform(dist.Normal(0.0, 1.0)),
    "DiscreteCosineTransform": lambda: transforms.DiscreteCosineTransform(),
    "ExpTransform": lambda: transforms.ExpTransform(),
    "HaarTransform": lambda: transforms.HaarTransform(),
    "LowerCholeskyAffine": lambda: transforms.LowerCholeskyAffine(torch.zeros(2), torch.eye(2)),
    "OrderedTransform": lambda: transforms.OrderedTransform(),
    "SoftplusTransform": lambda: transforms.SoftplusTransform(),
    "StickBreakingTransform": lambda: transforms.StickBreakingTransform(),
    "elu": lambda: transforms.elu(),
    "inverse": lambda: transforms.affine_autoregressive(2).inv,
    "leaky_relu": lambda: transforms.leaky_relu(),
    "permute": lambda: transforms.permute(2),
}


def conditioned(name):
    kwargs = {"count_bins": 4} if "count_bins" in inspect.signature(CONDITIONAL[name]).parameters else {}
    return CONDITIONAL[name](2, 3, **kwargs).condition(torch.ones(3))


def adam(parameters):
    return torch.optim.Adam(parameters, 1e-3)


@pytest.mark.filterwarnings("ignore:(Held-out KALE|The effective sample size)")  # after two steps
@pytest.mark.parametrize("name", [*LEARNT, *CONDITIONAL, *CONSTANT])
def test_a_base_of_any_transform_ends_in_a_result(name):
    pyro.set_rng_seed(0)
    transform = conditioned(name) if name in CONDITIONAL else {**LEARNT, **CONSTANT}[name]()
    shape = (2, 3, 3) if "channel" in name else (2,)
    prior = dist.Normal(torch.zeros(shape), 1.0).to_event(len(shape))
    base = dist.TransformedDistribution(prior, [transform])
    data = base.sample((32,)).detach()
    kale = KALE(base, KALEGuide(nn.MLP(data[0].shape, (), (4,))), adam if name in LEARNT else None, adam)
    gebm = kale.run(2, data, batch_size=16, validation=data, validate_every=1, progress_bar=False).gebm
    assert kale.base_steps_taken == 2
    assert has_density(gebm.base) == (name not in WITHOUT_INVERSE)
    assert gebm.latent.log_prob(torch.zeros(1, *shape)).shape == (1,)
    if name in WITHOUT_INVERSE:
        with pytest.raises(NotImplementedError, match="a flow whose transforms have no inverse"):
            gebm.log_prob(data)


@pytest.mark.parametrize("name", ["affine_autoregressive", "spline", "iterated"])
def test_a_snapshot_is_the_same_law_after_every_use(name):
    flow = dist.TransformedDistribution(dist.Normal(torch.zeros(2), 1.0).to_event(1), [LEARNT[name]()])
    x = torch.randn(4, 2)
    uses = {
        "rsample": lambda: flow.rsample((2,)),
        "log_prob": lambda: flow.log_prob(flow.rsample((2,))),
        "func.grad": lambda: torch.func.grad(lambda x: flow.log_prob(x).sum())(x),
    }
    if name == "affine_autoregressive":  # a spline indexes by masks, which `vmap` cannot follow
        uses["vmap"] = lambda: torch.vmap(flow.log_prob)(x)
    for use, call in uses.items():
        call()
        copied = snapshot(flow)
        assert torch.equal(copied.log_prob(x), flow.log_prob(x.clone())), use


def test_a_flow_without_inverse_is_refused_for_maximum_likelihood():
    base = dist.TransformedDistribution(dist.Normal(torch.zeros(2), 1.0).to_event(1), [transforms.planar(2)])
    with pytest.raises(ValueError, match="Expected a base with a density for maximum likelihood"):
        KALE(base, KALEGuide(nn.MLP((2,), ())), adam, None, objective="maximum_likelihood")


def test_weights_that_are_computed_can_be_copied():
    energy = torch.nn.Sequential(torch.nn.Linear(2, 3), torch.nn.Tanh(), torch.nn.Linear(3, 1), torch.nn.Flatten(0))
    with pytest.warns(FutureWarning, match="weight_norm"):
        torch.nn.utils.weight_norm(energy[0])
    prior, data = dist.Normal(torch.zeros(2), 1.0).to_event(1), torch.randn(32, 2)
    gebm = KALE(prior, KALEGuide(energy), None, adam).run(2, data, batch_size=16, progress_bar=False).gebm
    assert isinstance(gebm, GEBM)
    torch.testing.assert_close(gebm.energy(data), energy(data))
