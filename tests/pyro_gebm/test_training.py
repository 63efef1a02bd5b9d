"""What PyTorch has of its own in training: hooks, schedulers, loaders that shuffle."""

import hosts
import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch

from pyro_gebm import KALE, KALEGuide, Pushforward, energy_bursts, load, nn, save

HOST = hosts.get("pyro")

DATA = np.random.default_rng(0).normal(1.0, 1.0, size=(300, 2))


def adam_with_decay(parameters):
    optim = torch.optim.Adam(parameters, 1e-3)
    return optim, torch.optim.lr_scheduler.CosineAnnealingLR(optim, 50)


def build(width=8, **kwargs):
    pyro.set_rng_seed(0)
    base = Pushforward(HOST.normal(2), nn.MLP((2,), (2,), (width,)))
    return KALE(base, KALEGuide(nn.MLP((2,), (), (width,))), adam_with_decay, adam_with_decay, **kwargs)


def train(kale, num_steps, data=DATA, **kwargs):
    kwargs = {"batch_size": 50, **kwargs} if data is DATA else kwargs
    return kale.run(num_steps, data, progress_bar=False, **kwargs)


def same(a, b):
    """Whether two nested states are equal, bit for bit."""
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    if isinstance(a, (list, tuple)):
        return len(a) == len(b) and all(same(x, y) for x, y in zip(a, b))
    return torch.equal(a, b) if isinstance(a, torch.Tensor) else a == b


def test_gradients_are_clipped_by_a_hook():
    """As docs/training.md has it."""

    def factory(parameters):
        def clip(*_):
            torch.nn.utils.clip_grad_norm_(parameters, 0.1)

        sgd = torch.optim.SGD(parameters, 1.0)
        sgd.register_step_pre_hook(clip)
        return sgd

    kale = KALE(HOST.normal(2), KALEGuide(nn.MLP((2,), (), (8,))), None, factory)
    before = [p.clone() for p in kale.guide.energy.parameters()]
    norm = kale.step(torch.as_tensor(3.0 * DATA[:50])).energy_grad_norm
    moved = sum((p - q).square().sum() for p, q in zip(kale.guide.energy.parameters(), before)).sqrt()
    assert norm > 0.2 and moved.item() == pytest.approx(0.1, rel=1e-3)


def shuffled_loader():
    data = torch.utils.data.TensorDataset(torch.as_tensor(DATA))
    return torch.utils.data.DataLoader(data, batch_size=50, shuffle=True)


@pytest.mark.parametrize(
    "kwargs",
    [{}, {"energy_steps": energy_bursts(2, initial=9, every=5)}, {"ema_decay": 0.9}],
    ids=["plain", "bursts", "average"],
)
def test_resuming_with_a_loader_that_shuffles_is_bit_for_bit(kwargs, tmp_path):
    kale = build(**kwargs)
    whole = train(kale, 12, shuffled_loader())
    train(build(**kwargs), 8, shuffled_loader(), checkpoint_dir=tmp_path, checkpoint_every=3)
    assert sorted(p.name for p in tmp_path.iterdir()) == [f"step-{i:09d}.pt" for i in (3, 6, 8)]
    other = build(**kwargs)
    pyro.set_rng_seed(99)
    resumed = train(other, 12, shuffled_loader(), resume_from=tmp_path, allow=("seed",))
    assert same(kale.state_dict(), other.state_dict()) and same(whole.losses, resumed.losses)
    assert same(whole.gebm.base.generator.state_dict(), resumed.gebm.base.generator.state_dict())
    assert torch.equal(whole.gebm.log_partition, resumed.gebm.log_partition)


def test_a_scheduler_is_stepped_after_every_step():
    kale = build(energy_steps=2)
    train(kale, 5)
    assert kale.energy_optim.scheduler.last_epoch == 10 and kale.base_optim.scheduler.last_epoch == 5


class WithStatistics(torch.nn.Module):
    """A network with batch statistics and dropout."""

    def __init__(self, out):
        super().__init__()
        self.body = torch.nn.Sequential(
            torch.nn.Linear(2, 8), torch.nn.BatchNorm1d(8), torch.nn.Dropout(0.1), torch.nn.Linear(8, out)
        )

    def forward(self, x):
        return self.body(x).squeeze(-1)


def values(module):
    return [value.clone() for value in module.state_dict().values()]


@pytest.mark.parametrize("frozen", ["base", "energy"])
def test_what_is_frozen_does_not_change_by_a_bit(frozen):
    pyro.set_rng_seed(0)
    base = Pushforward(dist.Normal(torch.zeros(2), 1.0).to_event(1), WithStatistics(2).train())
    energy, part = WithStatistics(1).train(), {}
    part["base"], part["energy"] = base.generator, energy
    optims = [None if frozen == name else adam_with_decay for name in ("base", "energy")]
    before, other = values(part[frozen]), "energy" if frozen == "base" else "base"
    moving = values(part[other])
    kale = KALE(base, KALEGuide(energy), *optims)
    kale.run(20, DATA, batch_size=32, progress_bar=False)
    assert all(torch.equal(a, b) for a, b in zip(before, values(part[frozen])))
    assert not all(torch.equal(a, b) for a, b in zip(moving, values(part[other])))
    assert part[frozen].training  # as it was


def test_a_second_stage_trains_on_a_result_and_on_a_file(tmp_path):
    first = train(build(), 4)
    save(first.gebm, tmp_path / "model.npz")
    for gebm in (first.gebm, load(tmp_path / "model.npz")):
        before = values(gebm.energy), values(gebm.generator)
        kale = KALE(gebm.base, KALEGuide(gebm.energy), adam_with_decay, adam_with_decay)
        second = train(kale, 4)
        after = values(gebm.energy), values(gebm.generator)
        assert all(torch.equal(a, b) for one, other in zip(before, after) for a, b in zip(one, other))
        assert not torch.equal(values(second.gebm.energy)[0], before[0][0])
        assert not torch.equal(values(second.gebm.generator)[0], before[1][0])
