"""Training that survives: checkpoints, resuming, steps that are not finite, schedules, streams of data."""

import os
import signal
import subprocess
import sys
import time

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro_cases import standard_normal

from gebm.checkpoint_files import KEEP
from pyro_gebm import KALE, KALEGuide, Pushforward, TrainingDiverged, energy_bursts, nn

DATA = np.random.default_rng(0).normal(1.0, 1.0, size=(300, 2))


def adam_with_decay(parameters):
    optim = torch.optim.Adam(parameters, 1e-3)
    return optim, torch.optim.lr_scheduler.CosineAnnealingLR(optim, 50)


def build(width=8, **kwargs):
    pyro.set_rng_seed(0)
    base = Pushforward(standard_normal(2), nn.MLP((2,), (2,), (width,)))
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

    kale = KALE(standard_normal(2), KALEGuide(nn.MLP((2,), (), (8,))), None, factory)
    before = [p.clone() for p in kale.guide.energy.parameters()]
    norm = kale.step(torch.as_tensor(3.0 * DATA[:50])).energy_grad_norm
    moved = sum((p - q).square().sum() for p, q in zip(kale.guide.energy.parameters(), before)).sqrt()
    assert norm > 0.2 and moved.item() == pytest.approx(0.1, rel=1e-3)


def numbered_batches(bad=()):
    """A loader: endless when iterated once, with NaN in the batches named."""
    for i in range(10_000):
        batch = np.random.default_rng(i).normal(size=(20, 2))
        yield np.where(i in bad, np.nan, batch)


def shuffled_loader():
    data = torch.utils.data.TensorDataset(torch.as_tensor(DATA))
    return torch.utils.data.DataLoader(data, batch_size=50, shuffle=True)


@pytest.mark.parametrize(
    "kwargs",
    [{}, {"energy_steps": energy_bursts(2, initial=9, every=5)}, {"ema_decay": 0.9}],
    ids=["plain", "bursts", "average"],
)
@pytest.mark.parametrize("loader", [False, True])
def test_resuming_is_bit_for_bit(kwargs, loader, tmp_path):
    def data():
        return shuffled_loader() if loader else DATA

    kale = build(**kwargs)
    whole = train(kale, 12, data())
    train(build(**kwargs), 8, data(), checkpoint_dir=tmp_path, checkpoint_every=3)
    assert sorted(p.name for p in tmp_path.iterdir()) == [f"step-{i:09d}.pt" for i in (3, 6, 8)]
    other = build(**kwargs)
    pyro.set_rng_seed(99)
    resumed = train(other, 12, data(), resume_from=tmp_path)
    assert same(kale.state_dict(), other.state_dict()) and same(whole.losses, resumed.losses)
    assert same(whole.gebm.base.generator.state_dict(), resumed.gebm.base.generator.state_dict())
    assert torch.equal(whole.gebm.log_partition, resumed.gebm.log_partition)


def test_resuming_a_stream(tmp_path):
    kale, other = build(), build()
    pyro.set_rng_seed(1)
    train(kale, 12, numbered_batches())
    first = build()
    pyro.set_rng_seed(1)
    train(first, 8, numbered_batches(), checkpoint_dir=tmp_path)
    train(other, 12, numbered_batches(), resume_from=tmp_path)
    assert same(kale.state_dict(), other.state_dict())


def test_a_truncated_checkpoint_falls_back_to_the_one_before(tmp_path):
    kale = build()
    train(kale, 8)
    train(build(), 6, checkpoint_dir=tmp_path, checkpoint_every=4)
    newest = tmp_path / "step-000000006.pt"
    newest.write_bytes(newest.read_bytes()[:-100])
    other = build()
    with pytest.warns(UserWarning, match=r"step-000000006.pt is damaged; falling back to the one before"):
        train(other, 8, resume_from=tmp_path)
    assert same(kale.state_dict(), other.state_dict())
    for path in tmp_path.iterdir():
        path.write_bytes(b"")
    with pytest.warns(UserWarning, match="damaged"), pytest.raises(ValueError, match="Every checkpoint .* is damaged"):
        train(build(), 8, resume_from=tmp_path)


def test_checkpoint_errors(tmp_path):
    with pytest.raises(FileNotFoundError, match="Expected checkpoints .*found none"):
        train(build(), 3, resume_from=tmp_path)
    with pytest.raises(ValueError, match="checkpoint_every >= 1 with a checkpoint_dir"):
        train(build(), 3, checkpoint_every=2)
    train(build(), 1, checkpoint_dir=tmp_path)
    with pytest.raises(RuntimeError, match="size mismatch"):
        train(build(width=9), 3, resume_from=tmp_path)


def test_old_checkpoints_are_removed(tmp_path):
    train(build(), 10, checkpoint_dir=tmp_path, checkpoint_every=1)
    assert len(list(tmp_path.iterdir())) == KEEP


SCRIPT = """
import sys, torch
torch.set_default_dtype(torch.float64)
torch.set_num_threads(1)
import test_training_script as t
t.train(t.build(), 100_000, checkpoint_dir=sys.argv[1], checkpoint_every=7)
"""


def test_kill_minus_nine_and_resume(tmp_path):
    with open(__file__) as source:
        (tmp_path / "test_training_script.py").write_text(source.read())
    script = tmp_path / "train.py"
    script.write_text(SCRIPT)
    folder = tmp_path / "checkpoints"
    path = os.pathsep.join([os.path.dirname(os.path.dirname(__file__)), *sys.path])
    process = subprocess.Popen([sys.executable, script, folder], env={**os.environ, "PYTHONPATH": path})
    try:
        while not folder.exists() or len(list(folder.glob("*.pt"))) < 2:
            assert process.poll() is None
            time.sleep(0.01)
        time.sleep(np.random.default_rng().uniform(0, 0.3))
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
    done = max(int(p.stem.split("-")[1]) for p in folder.glob("step-*.pt"))
    assert done % 7 == 0
    kale, resumed = build(), build()
    train(resumed, done + 5, resume_from=folder)
    pyro.set_rng_seed(0)
    kale = build()
    train(kale, done + 5)
    assert same(kale.state_dict(), resumed.state_dict())


def test_steps_that_are_not_finite_are_skipped_and_counted():
    kale = build(energy_steps=1)
    with pytest.warns(RuntimeWarning, match="2 steps were skipped"):
        result = train(kale, 6, numbered_batches(bad=(2, 4)))
    assert kale.num_skipped == 2 and kale.num_steps_taken == 6
    assert torch.isnan(result.losses.kale[[2, 4]]).all() and torch.isfinite(result.losses.kale[[0, 1, 3, 5]]).all()
    assert all(torch.isfinite(p).all() for p in kale.guide.energy.parameters())
    assert torch.isfinite(result.losses.log_partition).all()


def test_a_step_that_is_not_finite_changes_nothing():
    kale = build()
    kale.step(torch.as_tensor(DATA[:20]))
    before = {key: torch.clone(value) for key, value in kale.guide.energy.state_dict().items()}
    log_partition = kale.log_partition
    losses = kale.step(torch.full((20, 2), torch.nan))
    assert torch.isnan(losses.kale) and kale.num_skipped == 1
    assert same(before, dict(kale.guide.energy.state_dict())) and torch.equal(log_partition, kale.log_partition)


def test_many_bad_steps_in_a_row_stop_the_run_with_a_good_state():
    kale, good = build(energy_steps=1), build(energy_steps=1)
    pyro.set_rng_seed(1)
    with pytest.raises(TrainingDiverged, match="at base step 15: .*10 steps in a row.* is restored.*Lower") as caught:
        train(kale, 100, numbered_batches(bad=range(5, 10_000)))
    done = kale.base_steps_taken  # that of the last look, whenever it was
    assert 1 <= done <= 5
    pyro.set_rng_seed(1)
    train(good, done, numbered_batches())
    assert same(good.state_dict(), caught.value.state) and same(good.state_dict(), kale.state_dict())


def test_bad_base_steps_stop_the_run_even_while_the_energy_trains():
    class Broken(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.p = torch.nn.Parameter(torch.zeros(()))

        def forward(self, z):
            return z * self.p.sqrt()

    def sgd(parameters):
        return torch.optim.SGD(parameters, 1e-3)

    kale = KALE(Pushforward(standard_normal(2), Broken()), KALEGuide(nn.MLP((2,), (), (4,)), penalty=None), sgd, sgd)
    with pytest.raises(TrainingDiverged, match="10 steps in a row"):
        train(kale, 50)


@pytest.mark.parametrize(
    "data, match",
    [
        (lambda: [], "Expected more batches; the iterable ended for good after 0"),
        (lambda: iter([np.zeros((4, 2))] * 3), "Expected more batches; the iterable ended for good after 3"),
        (lambda: [np.zeros((4, 2)), np.zeros((3, 2))], r"batches of one shape, \(4, 2\); got \(3, 2\).*drop_last"),
        (lambda: [np.zeros((4, 3))], r"Expected data of shape \(N,\) \+ \(2,\).*got \(4, 3\)"),
    ],
    ids=["empty", "ended", "changing", "misshapen"],
)
def test_bad_loaders(data, match):
    with pytest.raises(ValueError, match=match):
        train(build(), 5, data())


def test_loaders_are_iterated_again_and_labels_left_out():
    loader = [(np.random.default_rng(i).normal(size=(20, 2)), np.zeros(20)) for i in range(4)]
    kale, other = build(), build()
    for k, data in ((kale, loader), (other, (b for b in [x for x, _ in loader] * 7))):
        pyro.set_rng_seed(1)
        train(k, 5, data)
    assert kale.num_steps_taken == 25
    assert same(kale.state_dict(), other.state_dict())


def test_energy_bursts():
    kale = build(energy_steps=energy_bursts(2, initial=7, every=4))
    train(kale, 6)
    assert kale.num_steps_taken == 7 + 2 * 3 + 7 + 2
    kale, base_steps = build(energy_steps=energy_bursts(2, initial=7, every=4)), []
    for _ in range(11):
        losses = kale.step(torch.as_tensor(DATA[:20]))
        base_steps.append((kale.base_steps_taken, bool(losses.base_grad_norm > 0)))
    assert base_steps == [(0, False)] * 6 + [(1, True), (1, False), (2, True), (2, False), (3, True)]


def test_moving_average_of_the_base():
    kale = build(ema_decay=0.75, energy_steps=1)
    weight = kale.base.generator.layers[0].weight
    average = weight.detach().clone()
    for _ in range(3):
        kale.step(torch.as_tensor(DATA[:20]))
        average = 0.75 * average + 0.25 * weight.detach()
    torch.testing.assert_close(kale.state_dict()["base_average"][0], average, rtol=1e-12, atol=1e-12)
    result = train(kale, 3)
    torch.testing.assert_close(result.gebm.base.generator.layers[0].weight, kale._base_average[0], rtol=0, atol=0)
    assert not torch.equal(weight, kale._base_average[0])


def test_trainable_names_what_is_trained():
    names = []

    def trainable(name):
        names.append(name)
        return name in ("base.layers.0.bias", "energy.layers.1.weight")

    kale = build(trainable=trainable)
    parts = {"base": kale.base.generator, "energy": kale.guide.energy}
    before = {f"{part}.{n}": p.detach().clone() for part, m in parts.items() for n, p in m.named_parameters()}
    train(kale, 2)
    after = {f"{part}.{n}": p for part, m in parts.items() for n, p in m.named_parameters()}
    assert set(names) == set(before)
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed == {"base.layers.0.bias", "energy.layers.1.weight"}


def test_a_scheduler_is_stepped_after_every_step():
    kale = build(energy_steps=2)
    train(kale, 5)
    assert kale.energy_optim.scheduler.last_epoch == 10 and kale.base_optim.scheduler.last_epoch == 5


@pytest.mark.slow
def test_log_partition_before_settling_on_heavy_weights():
    class Tilt(torch.nn.Module):  # log-weights of variance 3, A = 1.5
        def __init__(self):
            super().__init__()
            self.slope = torch.nn.Parameter(torch.tensor(3**0.5))

        def forward(self, x):
            return self.slope * x

    def still(parameters):
        return torch.optim.SGD(parameters, 0.0)

    errors = []
    for _ in range(6):
        kale = KALE(dist.Normal(torch.tensor(0.0), 1.0), KALEGuide(Tilt(), penalty=None), None, still)
        result = kale.run(12_000, np.zeros(1000), batch_size=128, progress_bar=False)
        errors.append(float(kale.log_partition) - 1.5)
        assert abs(result.gebm.log_partition - 1.5) < 0.05
    assert np.abs(np.mean(errors)) < 0.03 and np.sqrt(np.mean(np.square(errors))) < 0.05


def test_result_curves_and_progress(capsys):
    result = build().run(4, DATA, batch_size=50)
    assert {tuple(curve.shape) for curve in result.losses} == {(4,)}
    assert all(torch.isfinite(curve).all() for curve in result.losses)
    shown = capsys.readouterr().err
    assert all(word in shown for word in ("KALE=", "A=", "penalty=", "|dE|=", "|dB|="))
