"""The baselines of KALE: maximum likelihood of the base, contrastive divergence of the energy."""

import numpy as np
import pyro
import pyro.distributions as dist
import pyro.distributions.transforms as T
import torch
from pyro_cases import standard_normal

from pyro_gebm import KALE, KALEGuide, Pushforward


class Quadratic(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = torch.nn.Parameter(torch.tensor(0.0))
        self.square = torch.nn.Parameter(torch.tensor(0.0))

    def forward(self, x):
        return (self.linear * x + self.square * x**2).reshape(len(x), -1).sum(1)


class Affine(T.AffineTransform, torch.nn.Module):
    def __init__(self, dim):
        torch.nn.Module.__init__(self)
        T.AffineTransform.__init__(self, torch.zeros(dim), torch.ones(dim), event_dim=1)
        self.loc, self.scale = torch.nn.Parameter(self.loc), torch.nn.Parameter(self.scale)

    __hash__ = torch.nn.Module.__hash__


def train(kale, num_steps, data, **kwargs):
    return kale.run(num_steps, data, batch_size=200, progress_bar=False, **kwargs)


def decaying_adam(rate, num_steps, **kwargs):
    def factory(parameters):
        optim = torch.optim.Adam(parameters, rate, **kwargs)
        return optim, torch.optim.lr_scheduler.CosineAnnealingLR(optim, num_steps)

    return factory


def test_maximum_likelihood_of_a_flow():
    data = np.random.normal([1.0, -2.0], [0.5, 2.0], (2000, 2))
    base = dist.TransformedDistribution(standard_normal(2), [Affine(2)])
    kale = KALE(base, KALEGuide(Quadratic()), decaying_adam(0.05, 1500), None, objective="maximum_likelihood")
    (affine,) = train(kale, 1500, data).gebm.base.transforms
    np.testing.assert_allclose(affine.loc, data.mean(0), atol=0.02)
    np.testing.assert_allclose(affine.scale.abs(), data.std(0), rtol=0.02)


def test_contrastive_divergence_finds_the_density_ratio():
    data = np.random.normal(0.5, 0.5, 20_000)
    base, guide = dist.Normal(torch.tensor(0.0), 1.0), KALEGuide(Quadratic(), penalty=None)
    optim = decaying_adam(0.05, 1000, betas=(0.5, 0.999))
    kale = KALE(base, guide, None, optim, objective="contrastive_divergence")
    result = train(kale, 1000, data)  # exactly: E = -2 x + 1.5 x^2
    energy = result.gebm.energy
    np.testing.assert_allclose([energy.linear.item(), energy.square.item()], [-2.0, 1.5], atol=0.15)
    exact = energy(torch.randn(200_000)).neg().exp().mean().log()
    assert abs(result.gebm.log_partition - exact) < 0.02
    assert abs(kale.state_dict()["chains"]["u"].mean() - 0.5) < 4 * 0.5 / np.sqrt(128)


def test_chains_move_to_constrained_latents_and_resume(tmp_path):
    def build():
        pyro.set_rng_seed(0)
        base = Pushforward(dist.Exponential(torch.tensor(1.0)), lambda z: z)
        guide = KALEGuide(Quadratic())
        return KALE(base, guide, None, lambda p: torch.optim.Adam(p, 1e-2), objective="contrastive_divergence")

    data = np.random.exponential(0.5, 500)
    whole = build()
    train(whole, 12, data)
    train(build(), 7, data, checkpoint_dir=tmp_path)
    resumed = build()
    train(resumed, 12, data, resume_from=tmp_path)
    one, other = whole.state_dict()["chains"], resumed.state_dict()["chains"]
    assert torch.equal(one["u"], other["u"]) and torch.equal(one["log_step"], other["log_step"])
    assert torch.isfinite(one["u"]).all() and whole.guide.energy.linear > 0
