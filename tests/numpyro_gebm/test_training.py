"""Training that survives: checkpoints, resuming, steps that are not finite, schedules, streams of data."""

import os
import signal
import subprocess
import sys
import time

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import optax
import pytest
from numpyro_cases import standard_normal

from gebm.checkpoint_files import KEEP
from numpyro_gebm import KALE, KALEGuide, Pushforward, TrainingDiverged, energy_bursts, nn

DATA = np.random.default_rng(0).normal(1.0, 1.0, size=(300, 2))


def build(width=8, **kwargs):
    keys = jax.random.split(jax.random.key(0))
    base = Pushforward(standard_normal(2), nn.MLP((2,), (2,), (width,), rng_key=keys[0]))
    adam = optax.adam(optax.exponential_decay(1e-3, 10, 0.9))
    return KALE(base, KALEGuide(nn.MLP((2,), (), (width,), rng_key=keys[1])), adam, adam, **kwargs)


def train(kale, num_steps, data=DATA, **kwargs):
    kwargs = {"batch_size": 50, **kwargs} if data is DATA else kwargs
    return kale.run(jax.random.key(1), num_steps, data, progress_bar=False, **kwargs)


def same(a, b):
    """Whether two trees are equal, bit for bit."""

    def raw(x):
        return jax.random.key_data(x) if jnp.issubdtype(x.dtype, jax.dtypes.prng_key) else x

    leaves = [jax.tree.leaves(jax.tree.map(raw, tree)) for tree in (a, b)]
    return all(np.array_equal(x, y) for x, y in zip(*leaves, strict=True))


def numbered_batches(bad=()):
    """A loader: endless when iterated once, with NaN in the batches named."""
    for i in range(10_000):
        batch = np.random.default_rng(i).normal(size=(20, 2))
        yield np.where(i in bad, np.nan, batch)


@pytest.mark.parametrize(
    "kwargs",
    [{}, {"energy_steps": energy_bursts(2, initial=9, every=5)}, {"ema_decay": 0.9}],
    ids=["plain", "bursts", "average"],
)
def test_resuming_is_bit_for_bit(kwargs, tmp_path):
    whole = train(build(**kwargs), 12)
    train(build(**kwargs), 8, checkpoint_dir=tmp_path, checkpoint_every=3)
    assert sorted(p.name for p in tmp_path.iterdir()) == [f"step-{i:09d}.npz" for i in (3, 6, 8)]
    resumed = build(**kwargs).run(jax.random.key(99), 12, DATA, batch_size=50, resume_from=tmp_path, progress_bar=False)
    assert same(whole.state, resumed.state) and same(whole.losses, resumed.losses)
    assert same(whole.gebm, resumed.gebm)


def test_resuming_a_stream(tmp_path):
    whole = train(build(), 12, numbered_batches())
    train(build(), 8, numbered_batches(), checkpoint_dir=tmp_path)
    assert same(whole.state, train(build(), 12, numbered_batches(), resume_from=tmp_path).state)


def test_a_truncated_checkpoint_falls_back_to_the_one_before(tmp_path):
    whole = train(build(), 8)
    train(build(), 6, checkpoint_dir=tmp_path, checkpoint_every=4)
    newest = tmp_path / "step-000000006.npz"
    newest.write_bytes(newest.read_bytes()[:-100])
    with pytest.warns(UserWarning, match="step-000000006.npz is damaged; falling back to the one before"):
        resumed = train(build(), 8, resume_from=tmp_path)
    assert same(whole.state, resumed.state)
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
    with pytest.raises(ValueError, match="does not fit.*same networks and optimisers"):
        train(build(width=9), 3, resume_from=tmp_path)


def test_old_checkpoints_are_removed(tmp_path):
    train(build(), 10, checkpoint_dir=tmp_path, checkpoint_every=1)
    assert len(list(tmp_path.iterdir())) == KEEP


SCRIPT = """
import sys, test_training_script as t
t.train(t.build(), 100_000, checkpoint_dir=sys.argv[1], checkpoint_every=7)
"""


def test_kill_minus_nine_and_resume(tmp_path):
    script = tmp_path / "train.py"
    with open(__file__) as source:
        (tmp_path / "test_training_script.py").write_text(source.read())
    script.write_text("import jax; jax.config.update('jax_enable_x64', True)" + SCRIPT)
    folder = tmp_path / "checkpoints"
    path = os.pathsep.join([os.path.dirname(os.path.dirname(__file__)), *sys.path])
    process = subprocess.Popen([sys.executable, script, folder], env={**os.environ, "PYTHONPATH": path})
    try:
        while not folder.exists() or len(list(folder.glob("*.npz"))) < 2:
            assert process.poll() is None
            time.sleep(0.01)
        time.sleep(np.random.default_rng().uniform(0, 0.3))
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
    done = max(int(p.stem.split("-")[1]) for p in folder.glob("step-*.npz"))
    assert done % 7 == 0
    resumed = train(build(), done + 5, resume_from=folder)
    assert same(train(build(), done + 5).state, resumed.state)


def test_steps_that_are_not_finite_are_skipped_and_counted():
    with pytest.warns(RuntimeWarning, match="2 steps were skipped"):
        result = train(build(energy_steps=1), 6, numbered_batches(bad=(2, 4)))
    assert int(result.state.skipped) == 2 and int(result.state.step) == 6
    assert np.isnan(result.losses.kale[[2, 4]]).all() and np.isfinite(result.losses.kale[[0, 1, 3, 5]]).all()
    assert all(np.isfinite(x).all() for x in jax.tree.leaves((result.state.energy, result.state.energy_optim)))
    assert np.isfinite(result.losses.log_partition).all()


def test_a_step_that_is_not_finite_changes_nothing():
    kale = build()
    state = kale.init(jax.random.key(0), DATA)
    state, _ = kale.update(state, DATA[:20])
    after, losses = kale.update(state, np.full((20, 2), np.nan))
    assert np.isnan(losses.kale) and int(after.skipped) == 1
    for name in ("energy", "energy_optim", "log_partition", "base"):
        assert same(getattr(state, name), getattr(after, name))


def test_many_bad_steps_in_a_row_stop_the_run_with_a_good_state():
    with pytest.raises(TrainingDiverged, match="at base step 15: .*10 steps in a row.*of base step .* Lower") as caught:
        train(build(energy_steps=1), 100, numbered_batches(bad=range(5, 10_000)))
    done = int(caught.value.state.base_step)  # that of the last look, whenever it was
    assert 1 <= done <= 5
    assert same(train(build(energy_steps=1), done, numbered_batches()).state, caught.value.state)


def test_bad_base_steps_stop_the_run_even_while_the_energy_trains():
    def penalty(energy, data, draws, rng_key):
        return jnp.zeros(())

    base = Pushforward(standard_normal(2), nn.Applied(lambda p, z: z * jnp.sqrt(p) * jnp.sign(z), jnp.zeros(())))
    kale = KALE(
        base, KALEGuide(nn.MLP((2,), (), (4,), rng_key=jax.random.key(0)), penalty=penalty), *[optax.sgd(1e-3)] * 2
    )
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
    result = train(build(), 5, loader)
    assert int(result.state.step) == 25
    assert same(result.state, train(build(), 5, (b for b in [x for x, _ in loader] * 7)).state)


def test_energy_bursts():
    kale = build(energy_steps=energy_bursts(2, initial=7, every=4))
    assert int(train(kale, 6).state.step) == 7 + 2 * 3 + 7 + 2
    state = kale.init(jax.random.key(0), DATA)
    base_steps = []
    for _ in range(11):
        state, losses = kale.update(state, DATA[:20])
        base_steps.append((int(state.base_step), bool(losses.base_grad_norm > 0)))
    assert base_steps == [(0, False)] * 6 + [(1, True), (1, False), (2, True), (2, False), (3, True)]


def test_moving_average_of_the_base():
    kale = build(ema_decay=0.75, energy_steps=1)
    state = kale.init(jax.random.key(0), DATA)
    average = np.asarray(state.base.layers[0].weight)
    for _ in range(3):
        state, _ = kale.update(state, DATA[:20])
        average = 0.75 * average + 0.25 * np.asarray(state.base.layers[0].weight)
    np.testing.assert_allclose(state.base_average.layers[0].weight, average, rtol=1e-12)
    result = train(kale, 3)
    np.testing.assert_array_equal(
        result.gebm.base.generator.layers[0].weight, result.state.base_average.layers[0].weight
    )
    assert not same(result.state.base, result.state.base_average)


def test_trainable_names_what_is_trained():
    names = []

    def trainable(name):
        names.append(name)
        return name in ("base.layers.0.bias", "energy.layers.1.weight")

    kale = build(trainable=trainable)
    result = train(kale, 2)
    assert {"base.layers.1.bias", "energy.layers.0.weight"} < set(names)
    pairs = [
        (kale.base.generator, result.gebm.base.generator, {(0, "bias")}),
        (kale.guide.energy, result.gebm.energy, {(1, "weight")}),
    ]
    for before, after, trained in pairs:
        for layer in (0, 1):
            for name in ("weight", "bias"):
                unchanged = same(getattr(before.layers[layer], name), getattr(after.layers[layer], name))
                assert unchanged == ((layer, name) not in trained)


def test_log_partition_before_settling_on_heavy_weights():
    energy = nn.Applied(lambda p, x: p * x, jnp.array(3**0.5))  # log-weights of variance 3, A = 1.5
    kale = KALE(dist.Normal(0.0, 1.0), KALEGuide(energy, penalty=None), None, optax.sgd(0.0))
    errors = []
    for seed in range(6):
        result = kale.run(jax.random.key(seed), 12_000, np.zeros(1000), batch_size=128, progress_bar=False)
        errors.append(float(result.state.log_partition) - 1.5)
        assert abs(result.gebm.log_partition - 1.5) < 0.05
    assert np.abs(np.mean(errors)) < 0.03 and np.sqrt(np.mean(np.square(errors))) < 0.05


def test_result_curves_and_progress(capsys):
    result = build().run(jax.random.key(0), 4, DATA, batch_size=50)
    assert {curve.shape for curve in result.losses} == {(4,)}
    assert all(np.isfinite(curve).all() for curve in result.losses)
    shown = capsys.readouterr().err
    assert all(word in shown for word in ("KALE=", "A=", "penalty=", "|dE|=", "|dB|="))
