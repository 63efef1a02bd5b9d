"""Training in both hosts: held-out data, own objectives, schedules, checkpoints, what is refused."""

import math
import warnings

import hosts
import numpy as np
import pytest
from killed import killed

from gebm.checkpoint_files import KEEP
from gebm.errors import ResultFailed, TrainingDiverged
from gebm.training import energy_bursts

DATA = np.random.default_rng(0).normal(1.0, 1.0, size=(300, 2))
HELD_OUT = np.random.default_rng(1).normal(1.0, 1.0, size=(200, 2))
LOOKS = {"validation": HELD_OUT, "validate_every": 4}


def build(host, width=8, base=None, base_optim=True, **kwargs):
    """A generator and an energy on the plane."""
    if base is None:
        base = host.Pushforward(host.normal(2), host.call(host.nn.MLP, (2,), (2,), (width,), seed=1))
    guide = host.KALEGuide(host.call(host.nn.MLP, (2,), (), (width,), seed=2))
    adam = host.adam(1e-3, decay_steps=50)
    return host.KALE(base, guide, adam if base_optim else None, adam, **kwargs)


def train(host, kale, num_steps, data=DATA, **kwargs):
    kwargs = {"batch_size": 50, **kwargs} if data is DATA else kwargs
    return host.train(kale, num_steps, data, **kwargs)


def model(host, result):
    """Parameters of the model that a result holds, and its log-partition."""
    gebm = result.gebm
    return [*host.parameters(gebm.base), *host.parameters(gebm.energy), host.numpy(gebm.log_partition)]


def same(one, other):
    """Whether two lists of arrays agree to the last bit."""
    return len(one) == len(other) > 0 and all(np.array_equal(a, b, equal_nan=True) for a, b in zip(one, other))


def state(host, kale, result):
    """Everything that training changed."""
    return host.leaves(host.steps(kale, after=result).state)


def curves(host, result):
    return [host.numpy(curve) for curve in result.losses]


# --- Held-out data


KINDS = {
    "joint": lambda host: build(host, energy_steps=2),
    "bursts": lambda host: build(host, energy_steps=energy_bursts(2, initial=9, every=5)),
    "base average": lambda host: build(host, ema_decay=0.9),
    "one energy step": lambda host: build(host, energy_steps=1),
    "wider": lambda host: build(host, width=9),
    "energy alone": lambda host: build(host, base=host.normal(2), base_optim=False),
    "fixed": lambda host: host.KALE(
        host.normal(2), host.KALEGuide(host.call(host.nn.MLP, (2,), (), (4,))), None, host.sgd(0.1)
    ),
    "flow": lambda host: build(host, base=host.random_flow(dim=2, num_couplings=1, hidden=(4,)), energy_steps=2),
    "average": lambda host: build(host, base=host.random_flow(dim=2, num_couplings=1, hidden=(4,)), ema_decay=0.9),
    "overfitting": lambda host: host.KALE(
        host.normal(2),
        host.KALEGuide(host.call(host.nn.MLP, (2,), (), (32,), seed=2), penalty=None),
        None,
        host.adam(3e-2),
    ),
}


@hosts.compiled_once
def kale_of(host, kind):
    """A training of a kind, as new."""
    return KINDS[kind](host)


@pytest.mark.parametrize("kind", ["joint", "average"])
def test_training_is_the_same_with_and_without_held_out_data(host, kind):
    kales = [kale_of(host, kind) for _ in range(2)]
    without, looking = (
        train(host, kale, 8, **kwargs)
        for kale, kwargs in zip(kales, ({}, {"validation": HELD_OUT, "validate_every": 3}))
    )
    assert same(state(host, kales[0], without), state(host, kales[1], looking))
    assert same(curves(host, without), curves(host, looking))
    assert without.validation is None and looking.validation.step.tolist() == [0, 3, 6, 8]
    assert np.isfinite(looking.validation.kale).all() and len(set(looking.validation.kale)) == 4


def test_values_on_held_out_data_are_exact_for_a_constant_energy(host):
    energy = host.network(lambda c, x: c + 0.0 * x.sum(-1), np.array(0.7))
    base, guide = host.normal(2), host.KALEGuide(energy, log_partition=0.4, penalty=None)
    result = train(host, host.KALE(base, guide, None, host.sgd(0.0)), 6, validation=HELD_OUT, validate_every=2)
    log_density = host.numpy(base.log_prob(host.array(HELD_OUT)))
    assert result.validation.step.tolist() == [0, 2, 4, 6]
    np.testing.assert_allclose(result.validation.kale, 0.0, atol=1e-12)
    np.testing.assert_allclose(result.validation.log_partition, -0.7, rtol=1e-12)
    np.testing.assert_allclose(result.validation.log_likelihood, log_density.mean(), rtol=1e-10)
    np.testing.assert_allclose(result.validation.error, 0.0, atol=1e-9)
    np.testing.assert_allclose(result.validation.ess_share, 1.0, rtol=1e-9)


def overfitting(host, num_steps=60, **kwargs):
    """A run on 30 points by a network without a penalty."""
    kale = kale_of(host, "overfitting")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return kale, train(host, kale, num_steps, DATA[:30], batch_size=30, **kwargs)


def test_the_best_state_is_the_result(host):
    _, result = overfitting(host, validation=HELD_OUT, validate_every=5)
    curve = result.validation
    best = curve.step[curve.kale.argmax()]
    assert curve.best_step == best and 0 < best < 60
    _, stopped = overfitting(host, num_steps=int(best))
    assert same(host.parameters(result.gebm.energy), host.parameters(stopped.gebm.energy))
    assert same(host.parameters(result.guide.energy), host.parameters(stopped.gebm.energy))
    np.testing.assert_allclose(result.gebm.log_partition, stopped.gebm.log_partition, atol=0.05)
    kale, last = overfitting(host, validation=HELD_OUT, validate_every=5, keep_best=False)
    assert last.validation.best_step is None and np.array_equal(last.validation.kale, curve.kale)
    _, plain = overfitting(host)
    assert same(host.parameters(last.gebm.energy), host.parameters(plain.gebm.energy))
    np.testing.assert_allclose(curve.kale[-1], host.evaluate(kale, last, HELD_OUT), atol=5 * curve.error[-1])


def test_a_trained_base_without_a_density_has_no_best_state(host):
    result = train(host, kale_of(host, "joint"), 6, validation=HELD_OUT)
    plain = train(host, kale_of(host, "joint"), 6)
    assert result.validation.best_step is None and np.isnan(result.validation.log_likelihood).all()
    assert result.validation.step.tolist() == [0, 1, 2, 3, 4, 5, 6]
    assert same(host.parameters(result.gebm.base), host.parameters(plain.gebm.base))


def test_a_trained_flow_is_compared_by_its_log_likelihood(host):
    flow = host.random_flow(dim=2, num_couplings=1, hidden=(4,))
    start = host.numpy(flow.log_prob(host.array(HELD_OUT))).mean()
    guide = host.KALEGuide(host.call(host.nn.MLP, (2,), (), (8,), seed=2))
    kale = host.KALE(flow, guide, host.adam(0.05), None, objective="maximum_likelihood", ema_decay=0.5)
    result = train(host, kale, 20, validation=HELD_OUT, validate_every=4)
    curve = result.validation
    np.testing.assert_allclose(curve.log_likelihood[0], start, rtol=1e-10)
    assert curve.best_step == curve.step[curve.log_likelihood.argmax()] > 0
    best = host.numpy(result.gebm.base.log_prob(host.array(HELD_OUT)))
    np.testing.assert_allclose(best.mean(), curve.log_likelihood.max(), rtol=1e-10)
    np.testing.assert_allclose(
        best.std(ddof=1) / math.sqrt(200), curve.error[curve.log_likelihood.argmax()], rtol=1e-10
    )


def test_held_out_points_may_lie_where_the_base_has_no_density(host):
    base = host.dist.Uniform(host.array([-1.0, -1.0]), host.array([1.0, 1.0])).to_event(1)
    result = train(host, build(host, base=base, base_optim=False), 3, **LOOKS)
    assert np.isfinite(result.validation.kale).all() and result.validation.best_step is not None


def test_a_stream_is_trained_on_with_held_out_data(host):
    loader = [(DATA[i : i + 20], np.zeros(20)) for i in range(0, 100, 20)]
    result = train(host, kale_of(host, "energy alone"), 7, loader, validation=HELD_OUT, validate_every=5)
    assert result.validation.step.tolist() == [0, 5, 7]


def test_a_run_without_held_out_data_is_resumed_with_them(host, tmp_path):
    train(host, kale_of(host, "energy alone"), 7, checkpoint_dir=tmp_path)
    result = train(host, kale_of(host, "energy alone"), 12, resume_from=tmp_path, validation=HELD_OUT, validate_every=4)
    assert result.validation.step.tolist() == [8, 12] and result.validation.best_step in (8, 12)


@pytest.mark.parametrize(
    "kwargs, error, match",
    [
        (
            {"validation": np.zeros((5, 3))},
            ValueError,
            r"Expected validation data of shape \(N,\) \+ \(2,\).*got \(5, 3\)",
        ),
        (
            {"validation": np.full((5, 2), np.nan)},
            ValueError,
            "Expected finite validation data.* 5 rows, first in row 0",
        ),
        ({"validate_every": 3}, ValueError, "Expected validation data with validate_every=3; got validation=None"),
        ({"validation": HELD_OUT, "validate_every": 0}, ValueError, "Expected validate_every >= 1; got 0"),
        ({"validation": HELD_OUT, "validate_every": 1.5}, TypeError, "Expected validate_every to be an integer"),
        ({"batch_size": 2.5}, TypeError, "Expected batch_size to be an integer"),
        ({"batch_size": 301}, ValueError, "Expected 1 <= batch_size <= 300"),
    ],
)
def test_arguments_of_a_run(host, kwargs, error, match):
    with pytest.raises(error, match=match):
        train(host, kale_of(host, "energy alone"), 3, **kwargs)


def test_batches_have_128_points_or_all_unless_told(host):
    sizes = []

    def penalty(energy, data, draws, *key):
        sizes.append(len(data))
        return 0.0 * energy(data[0] if key else data).sum()

    for num in (300, 40):
        energy = host.network(lambda c, x: c * x.sum(-1), np.array(0.1))
        kale = host.KALE(host.normal(2), host.KALEGuide(energy, penalty=penalty), None, host.sgd(0.1))
        host.train(kale, 1, DATA[:num])
    assert sorted(set(sizes)) == [40, 128]


# --- Schedules


@pytest.mark.parametrize("bad", [0, -1, math.nan, math.inf, 2.5, None, 10**30])
def test_a_schedule_must_give_positive_integers(host, bad):
    kale = build(host, energy_steps=lambda step: bad if step == 1 else 2)
    with pytest.raises((TypeError, ValueError), match=r"Expected energy_steps\(1\)"):
        train(host, kale, 3)


# --- Objectives


class SquaredHinge:
    """An energy that is below -1 on data and above 1 on base draws."""

    def energy_loss(self, energies):
        return ((1 + energies.data).clip(0) ** 2).mean() + ((1 - energies.base).clip(0) ** 2).mean()

    def base_loss(self, base, data, energies):
        return energies().mean()


def line(host, objective, base_optim=True, energy_optim=True):
    """A shift and a quadratic energy on the line, on a base whose draws are all 0.5."""
    prior = host.dist.Normal(host.array(0.2), 1e-200)
    base = host.Pushforward(prior, host.network(lambda shift, z: z + shift, np.array(0.3)))
    energy = host.network(lambda a, b, x: a * x + b * x**2, np.array(0.3), np.array(0.2))
    guide = host.KALEGuide(energy, log_partition=0.1, penalty=None)
    optims = [host.sgd(0.1) if given else None for given in (base_optim, energy_optim)]
    return host.KALE(
        base, guide, *optims, objective=objective, energy_steps=2 if all((base_optim, energy_optim)) else 1
    )


def test_an_objective_of_the_users_own(host):
    data, steps = DATA[:, 0], host.steps(line(host, SquaredHinge()))
    a, b, shift = 0.3, 0.2, 0.3
    for _ in range(2):
        x = 0.2 + shift
        below, above = np.clip(1 + a * data + b * data**2, 0, None), max(1 - a * x - b * x**2, 0)
        a, b = (
            a - 0.1 * (2 * (below * data).mean() - 2 * above * x),
            b - 0.1 * (2 * (below * data**2).mean() - 2 * above * x**2),
        )
        steps.step(data)
    shift -= 0.1 * (a + 2 * b * (0.2 + shift))
    np.testing.assert_allclose([*steps.energy, *steps.base], [a, b, shift], rtol=1e-10)
    result = host.train(line(host, SquaredHinge()), 5, data, batch_size=50)
    assert np.isfinite(host.numpy(result.losses.kale)).all()


class EnergyOnly:
    def energy_loss(self, energies):
        return energies.data.mean() - energies.base.mean()


def test_an_objective_trains_what_it_has_a_loss_for(host):
    with pytest.raises(ValueError, match="Expected base_optim=None for EnergyOnly, which trains the energy alone"):
        line(host, EnergyOnly())
    before = line(host, EnergyOnly(), base_optim=False)
    result = host.train(before, 4, DATA[:, 0])
    np.testing.assert_array_equal(host.parameters(result.gebm.base), [0.3])
    with pytest.raises(TypeError, match="Expected objective to be one of .*'kale'.* or an object.*got object"):
        line(host, object())


@pytest.mark.parametrize(
    "name, kwargs",
    [
        ("KALEObjective", {}),
        ("DonskerVaradhan", {}),
        ("ContrastiveDivergence", {"base_optim": False}),
    ],
)
def test_names_stand_for_objects(host, name, kwargs):
    objectives = host.module("training.objectives")
    short = next(short for short, kind in objectives.OBJECTIVES.items() if kind.__name__ == name)
    ends = [
        host.train(line(host, objective, **kwargs), 3, DATA[:, 0]) for objective in (short, getattr(objectives, name)())
    ]
    assert same(*(host.parameters(end.gebm.energy) for end in ends))


def test_chains_of_contrastive_divergence_have_arguments(host):
    objectives = host.module("training.objectives")
    objective = objectives.ContrastiveDivergence(num_chains=7, num_steps=2)
    kale = build(host, base=host.normal(2), base_optim=False, objective=objective)
    result = train(host, kale, 2)
    assert (7, 2) in [array.shape for array in state(host, kale, result)]
    with pytest.raises(ValueError, match="num_chains >= 1"):
        objectives.ContrastiveDivergence(num_chains=0)


# --- Checkpoints


@pytest.mark.parametrize(
    "kind, looks",
    [("joint", {}), ("bursts", {}), ("base average", LOOKS), ("energy alone", LOOKS), ("average", LOOKS)],
)
def test_resuming_is_bit_for_bit(host, kind, looks, tmp_path):
    kale, other = kale_of(host, kind), kale_of(host, kind)
    whole = train(host, kale, 12, **looks)
    train(host, kale_of(host, kind), 8, checkpoint_dir=tmp_path, checkpoint_every=3, **looks)
    assert sorted(path.stem for path in tmp_path.iterdir()) == [f"step-{i:09d}" for i in (3, 6, 8)]
    resumed = train(host, other, 12, seed=99, resume_from=tmp_path, allow=("seed",), **looks)
    assert same(state(host, kale, whole), state(host, other, resumed))
    assert same(curves(host, whole), curves(host, resumed)) and same(model(host, whole), model(host, resumed))
    if looks:
        assert same(whole.validation[:4], resumed.validation[:4])
        assert whole.validation.best_step == resumed.validation.best_step
        assert (whole.validation.best_step is None) == (kind == "base average")


def test_held_out_data_are_left_out_on_resuming(host, tmp_path):
    whole = train(host, kale_of(host, "energy alone"), 12)
    train(host, kale_of(host, "energy alone"), 7, checkpoint_dir=tmp_path, **LOOKS)
    resumed = train(host, kale_of(host, "energy alone"), 12, resume_from=tmp_path)
    assert resumed.validation is None and same(model(host, whole), model(host, resumed))


#: Finite, but not in a sum.
TOO_LARGE = 1e308


def numbered_batches(bad=()):
    """A loader: endless when iterated once, with numbers in the batches named on which the losses overflow."""
    for i in range(10_000):
        batch = np.random.default_rng(i).normal(size=(20, 2))
        yield np.where(i in bad, TOO_LARGE, batch)


def test_resuming_a_stream(host, tmp_path):
    kale, other = kale_of(host, "joint"), kale_of(host, "joint")
    whole = train(host, kale, 12, numbered_batches())
    train(host, kale_of(host, "joint"), 8, numbered_batches(), checkpoint_dir=tmp_path)
    resumed = train(host, other, 12, numbered_batches(), seed=99, resume_from=tmp_path, allow=("seed",))
    assert same(state(host, kale, whole), state(host, other, resumed))


def test_a_truncated_checkpoint_falls_back_to_the_one_before(host, tmp_path):
    kale, other = kale_of(host, "joint"), kale_of(host, "joint")
    whole = train(host, kale, 8)
    train(host, kale_of(host, "joint"), 6, checkpoint_dir=tmp_path, checkpoint_every=4)
    (newest,) = tmp_path.glob("step-000000006.*")
    newest.write_bytes(newest.read_bytes()[:-100])
    with pytest.warns(UserWarning, match=f"{newest.name} is damaged; falling back to the one before"):
        resumed = train(host, other, 8, resume_from=tmp_path)
    assert same(state(host, kale, whole), state(host, other, resumed))
    for path in tmp_path.iterdir():
        path.write_bytes(b"")
    with pytest.warns(UserWarning, match="damaged"), pytest.raises(ValueError, match="Every checkpoint .* is damaged"):
        train(host, kale_of(host, "joint"), 8, resume_from=tmp_path)


def test_checkpoint_errors(host, tmp_path):
    kale = kale_of(host, "joint")
    with pytest.raises(FileNotFoundError, match="Expected checkpoints .*found none"):
        train(host, kale, 3, resume_from=tmp_path)
    with pytest.raises(ValueError, match="checkpoint_every >= 1 with a checkpoint_dir"):
        train(host, kale, 3, checkpoint_every=2)
    train(host, kale, 1, checkpoint_dir=tmp_path)
    with pytest.raises(ValueError, match="(?s)does not fit.*same networks, optimisers and data"):
        train(host, kale_of(host, "wider"), 3, resume_from=tmp_path, allow=("base", "energy", "energy_steps"))
    with pytest.raises(ValueError, match="Expected num_steps >= 1, the step of the checkpoint; got 0"):
        train(host, kale_of(host, "joint"), 0, resume_from=tmp_path)


def energy_alone(host, width=8, rate=1e-3, objective="kale"):
    guide = host.KALEGuide(host.call(host.nn.MLP, (2,), (), (width,), seed=2))
    return host.KALE(host.normal(2), guide, None, host.adam(rate), objective=objective)


OTHERS = {
    "data": ({}, {"data": DATA + 1e-9}),
    "batch_size": ({}, {"batch_size": 60}),
    "seed": ({}, {"seed": 1}),
    "energy": ({"width": 9}, {}),
    "energy_optim": ({"rate": 2e-3}, {}),
    "objective": ({"objective": "donsker_varadhan"}, {}),
}


def test_another_run_in_a_used_folder_is_refused(host, tmp_path):
    """Its checkpoints would be deleted as they are written, and resuming would give the first run."""
    first = train(host, energy_alone(host), 3, checkpoint_dir=tmp_path)
    files = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    with pytest.raises(FileExistsError, match=r"without checkpoints of another run; got .*step-0+3.* delete_checkpoi"):
        train(host, energy_alone(host), 2, seed=1, checkpoint_dir=tmp_path)
    for name, (of_kale, of_run) in OTHERS.items():
        folders = {"checkpoint_dir": tmp_path, "resume_from": tmp_path}
        settings = {"data": DATA, "batch_size": 50, **folders, **of_run}
        with pytest.raises(
            ValueError, match=rf"differs in\n  {name}: expected .*; got .*\.\nResume .* allow=\('{name}',"
        ):
            host.train(energy_alone(host, **of_kale), 3, **settings)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == files
    same_run = train(host, energy_alone(host), 3, checkpoint_dir=tmp_path, resume_from=tmp_path)
    assert same(model(host, first), model(host, same_run))
    with pytest.raises(ValueError, match=r"Expected allow to name some of \['base', .*; got \['num_steps'\]"):
        train(host, energy_alone(host), 3, resume_from=tmp_path, allow="num_steps")
    host.training.delete_checkpoints(tmp_path)
    assert not tmp_path.exists()


def test_a_run_goes_on_with_other_data_if_that_is_meant(host, tmp_path):
    train(host, energy_alone(host), 3, checkpoint_dir=tmp_path)
    settings = {"batch_size": 60, "checkpoint_dir": tmp_path, "resume_from": tmp_path}
    result = host.train(energy_alone(host), 5, DATA[:200], **settings, allow=("data", "batch_size"))
    assert len(result.losses.kale) == 5
    assert len(host.train(energy_alone(host), 6, DATA[:200], **settings).losses.kale) == 6


def test_old_checkpoints_are_removed(host, tmp_path):
    train(host, kale_of(host, "joint"), 10, checkpoint_dir=tmp_path, checkpoint_every=1)
    assert len(list(tmp_path.iterdir())) == KEEP


TRAINING = """
import test_training as t
t.train(host, t.kale_of(host, "energy alone"), 100_000, checkpoint_dir=folder, checkpoint_every=7, **t.LOOKS)
"""


def test_kill_minus_nine_and_resume(host, tmp_path):
    folder = tmp_path / "checkpoints"
    done = killed(host, TRAINING, folder)
    assert done % 7 == 0
    kale, other = kale_of(host, "energy alone"), kale_of(host, "energy alone")
    whole = train(host, kale, done + 5, **LOOKS)
    resumed = train(host, other, done + 5, seed=99, resume_from=folder, allow=("seed",), **LOOKS)
    assert same(state(host, kale, whole), state(host, other, resumed))
    assert same(whole.validation[:4], resumed.validation[:4]) and same(model(host, whole), model(host, resumed))


# --- Steps that are not finite


def test_steps_that_are_not_finite_are_skipped_and_counted(host):
    kale = kale_of(host, "one energy step")
    with pytest.warns(RuntimeWarning, match="2 steps were skipped") as caught:
        result = train(host, kale, 6, numbered_batches(bad=(2, 4)))
    assert caught[0].filename.endswith("hosts.py")  # the line that called `run`
    steps, (values, _, log_partitions, norms, *_) = host.steps(kale, after=result), curves(host, result)
    assert steps.skipped == 2 and steps.num_steps == 6
    assert not np.isfinite(values + norms)[[2, 4]].any() and np.isfinite(values[[0, 1, 3, 5]]).all()
    assert all(np.isfinite(x).all() for x in [*steps.energy, *steps.energy_optim, *steps.base, log_partitions])


def test_a_step_that_is_not_finite_changes_nothing(host):
    steps = host.steps(kale_of(host, "wider"))

    def parts():
        optim = steps.energy_optim[: -1 if host.name == "pyro" else None]  # Pyro's last counts the steps left out
        return [*steps.energy, *steps.base, *optim, np.copy(steps.log_partition)]

    steps.step(DATA[:20])
    before = parts()
    losses = steps.step(np.full((20, 2), TOO_LARGE))
    assert not np.isfinite(losses.energy_grad_norm) and steps.skipped == 1 and same(before, parts())


def test_many_bad_steps_in_a_row_stop_the_run_with_a_good_state(host):
    kale, good = kale_of(host, "one energy step"), kale_of(host, "one energy step")
    restored = "is restored .*" if host.name == "pyro" else ""
    match = f"at base step 15: .*10 steps in a row.*of base step .*{restored}Lower"
    with pytest.raises(TrainingDiverged, match=match) as caught:
        train(host, kale, 100, numbered_batches(bad=range(5, 10_000)))
    found = caught.value.state  # that of the last look, whenever it was
    done = int(found["base_steps_taken"] if isinstance(found, dict) else found.base_step)
    assert 1 <= done <= 5
    result = train(host, good, done, numbered_batches())
    assert same(state(host, good, result), host.leaves(found))
    if host.name == "pyro":
        assert same(state(host, kale, None), host.leaves(found))


def test_bad_base_steps_stop_the_run_even_while_the_energy_trains(host):
    base = host.Pushforward(host.normal(2), host.network(lambda p, z: z * p**0.5, np.array(0.0)))
    guide = host.KALEGuide(host.call(host.nn.MLP, (2,), (), (4,)), penalty=None)
    with pytest.raises(TrainingDiverged, match="10 steps in a row"):
        train(host, host.KALE(base, guide, host.sgd(1e-3), host.sgd(1e-3)), 50)


def test_an_error_after_the_last_step_loses_nothing(host, monkeypatch):
    def fails(*args, **kwargs):
        raise MemoryError("no room")

    kale, good = kale_of(host, "one energy step"), kale_of(host, "one energy step")
    expected = train(host, good, 3)
    with monkeypatch.context() as patch, pytest.raises(ResultFailed, match="after 3 steps.*no room.* lost") as caught:
        patch.setattr(host.module("training.kale"), "KALEResult", fails)
        train(host, kale, 3)
    assert isinstance(caught.value.__cause__, MemoryError)
    result = train(host, kale, 0, after=caught.value)
    for part in ("base", "energy"):
        trained, parts = (host.parameters(getattr(r.gebm, part)) for r in (expected, result))
        assert same(trained, parts)


# --- Streams


@pytest.mark.parametrize(
    "data, match",
    [
        (lambda: [], "Expected more batches in data; the iterable ended for good after 0"),
        (lambda: iter([np.zeros((4, 2))] * 3), "Expected more batches in data; the iterable ended for good after 3"),
        (lambda: [np.zeros((4, 2)), np.zeros((3, 2))], r"batches of one shape, \(4, 2\); got \(3, 2\).*drop_last"),
        (lambda: [np.zeros((4, 3))], r"Expected data in batch 0 of shape \(N,\) \+ \(2,\).*got \(4, 3\)"),
    ],
    ids=["empty", "ended", "changing", "misshapen"],
)
def test_bad_loaders(host, data, match):
    with pytest.raises(ValueError, match=match):
        train(host, kale_of(host, "joint"), 5, data())


def test_loaders_are_iterated_again_and_labels_left_out(host):
    loader = [(np.random.default_rng(i).normal(size=(20, 2)), np.zeros(20)) for i in range(4)]
    ends = []
    for data in (loader, (batch for batch in [x for x, _ in loader] * 7)):
        kale = kale_of(host, "joint")
        steps = host.steps(kale, after=train(host, kale, 5, data))
        assert steps.num_steps == 10
        ends.append(host.leaves(steps.state))
    assert same(*ends)


# --- Data in any form


class Scaled:
    """What has a shape and gives an array when it is asked for one, as a memory map or a DataFrame does."""

    shape = DATA.shape

    def __array__(self, dtype=None, copy=None):
        return np.array(DATA, dtype)


IMAGES = np.random.default_rng(0).integers(0, 5, DATA.shape)
FORMS = {
    "float32": (lambda host: DATA.astype(np.float32), DATA.astype(np.float32)),
    "the host's": (lambda host: host.array(DATA), DATA),
    "uint8": (lambda host: host.array(IMAGES, "uint8"), IMAGES),
    "booleans": (lambda host: IMAGES > 2, IMAGES > 2),
    "lists": (lambda host: DATA.tolist(), DATA),
    "a list of rows": (lambda host: list(DATA), DATA),
    "read-only, backwards, big-endian": (
        lambda host: np.broadcast_to(DATA[::-1].astype(">f8"), DATA.shape),
        DATA[::-1],
    ),
    "a dict": (lambda host: {"x": DATA}, DATA),
    "has an array": (lambda host: Scaled(), DATA),
}


def doors(host):
    """Every way that data take into a training; each a function of data to numbers that depend on all of them."""
    kale = kale_of(host, "fixed")
    state = host.steps(kale).state
    yield lambda data: kale.evaluate(*([state] if host.name == "numpyro" else []), data)
    yield lambda data: host.steps(kale_of(host, "fixed")).step(data).kale
    yield lambda data: host.train(kale_of(host, "fixed"), 0, DATA, validation=data).validation.kale
    yield lambda data: host.train(kale_of(host, "fixed"), 2, data).losses.kale
    yield lambda data: host.train(kale_of(host, "fixed"), 2, (data for _ in range(2))).losses.kale


@pytest.mark.filterwarnings("ignore:The mean energy is higher on data")
@pytest.mark.parametrize("form", FORMS)
def test_data_of_every_form_are_the_same_data(host, form):
    given, values = FORMS[form]
    for door in doors(host):
        host.key(0)
        found = door(given(host))
        host.key(0)
        np.testing.assert_array_equal(found, door(values.astype(float)))


BATCH = DATA[:20]
BATCHES = {
    "rows": (BATCH.tolist(), None),
    "labels": ((BATCH, "label"), None),
    "lists and labels": ([BATCH.tolist(), [0] * 20], None),
    "dicts": ({"image": BATCH, "label": 3}, "image"),
    "one entry": ({"image": BATCH.tolist()}, None),
    "dicts and labels": (({"image": BATCH}, 3), "image"),
}


@pytest.mark.parametrize("form", BATCHES)
def test_batches_of_every_form(host, form):
    batch, key = BATCHES[form]
    found, right = (
        host.train(kale_of(host, "fixed"), 4, loader, **kwargs).losses.kale
        for loader, kwargs in (([batch] * 3, {"key": key}), ([BATCH], {}))
    )
    np.testing.assert_array_equal(found, right)


NOT_FINITE = DATA.copy()
NOT_FINITE[4, 1] = np.nan
BAD_DATA = {
    "complex": (DATA + 0j, TypeError, "of real numbers; got ndarray of dtype complex128"),
    "words": (DATA.astype(str), TypeError, "of real numbers; got ndarray of dtype <U"),
    "objects": (DATA.astype(object), TypeError, "of real numbers; got ndarray of dtype object"),
    "NaN": (NOT_FINITE, ValueError, "got NaN or inf in 1 rows, first in row 4"),
    "masked": (np.ma.masked_greater(DATA, 3.0), ValueError, "got NaN or inf in"),
    "misshapen": (DATA.T, ValueError, r"of shape \(N,\) \+ \(2,\), N >= 1; got \(2, 300\)"),
    "none": (DATA[:0], ValueError, r"of shape \(N,\) \+ \(2,\), N >= 1; got \(0, 2\)"),
    "one": (DATA[0], ValueError, r"got \(2,\). Stack data points into batches"),
    "ragged": ([[1.0, 2.0], [3.0]], ValueError, "that form one array; got list"),
    "several": ({"x": DATA, "y": DATA}, ValueError, r"Expected key= .*; got None, of \['x', 'y'\]"),
}


@pytest.mark.parametrize("kind", BAD_DATA)
def test_bad_data_are_refused_at_every_door(host, kind):
    data, error, match = BAD_DATA[kind]
    for door in doors(host):
        with pytest.raises(error, match=match):
            door(data)


@pytest.mark.parametrize("data", [None, 3, "data", len])
def test_what_is_no_data_at_all(host, data):
    with pytest.raises(TypeError, match="Expected data to be an array or an iterable of batches; got"):
        host.train(kale_of(host, "fixed"), 1, data)


def test_a_key_and_no_dict(host):
    with pytest.raises(ValueError, match="Expected data in batch 0 in dicts with the entry key='x'; got ndarray"):
        host.train(kale_of(host, "fixed"), 1, [DATA], key="x")


def test_nan_in_a_stream_is_named_with_its_batch(host):
    loader = [DATA[:20], NOT_FINITE[:20]]
    with pytest.raises(ValueError, match="Expected finite data in batch 1; got NaN or inf in 1 rows, first in row 4"):
        host.train(kale_of(host, "fixed"), 4, loader)


# --- What is trained


def test_moving_average_of_the_base(host):
    kale = build(host, ema_decay=0.75, energy_steps=1)
    steps = host.steps(kale)
    averages = steps.base
    for _ in range(3):
        steps.step(DATA[:20])
        averages = [0.75 * average + 0.25 * value for average, value in zip(averages, steps.base)]
    for found, average in zip(steps.base_average, averages, strict=True):
        np.testing.assert_allclose(found, average, rtol=1e-12, atol=1e-12)
    result = train(host, kale, 3)
    steps = host.steps(kale, after=result)
    assert same(host.parameters(result.gebm.base), steps.base_average)
    assert not same(steps.base, steps.base_average)


def test_trainable_names_what_is_trained(host):
    names = []

    def trainable(name):
        names.append(name)
        return name in ("base.layers.0.bias", "energy.layers.1.weight")

    kale = build(host, trainable=trainable)
    before = [host.parameters(part) for part in (kale.base, kale.guide.energy)]
    result = train(host, kale, 2)
    parts = [f"{part}.layers.{i}.{name}" for part in ("base", "energy") for i in (0, 1) for name in ("weight", "bias")]
    assert set(parts) <= set(names)
    after = [host.parameters(part) for part in (result.gebm.base, result.gebm.energy)]
    changed = [not np.array_equal(*pair) for pairs in zip(before, after) for pair in zip(*pairs, strict=True)]
    trained = {name for name, moved in zip(parts, changed, strict=True) if moved}
    assert trained == {"base.layers.0.bias", "energy.layers.1.weight"}


# --- Looking


def test_plot_of_two_runs(host, tmp_path):
    pytest.importorskip("matplotlib")
    first = train(host, kale_of(host, "joint"), 4)
    second = train(host, kale_of(host, "energy alone"), 4, validation=HELD_OUT, validate_every=2)
    axes = host.plot_losses(first.losses, second, labels=("first", "second"), window=2)
    kale, *_, norms = axes
    assert [line.get_xdata().tolist() for line in kale.lines[:3]] == [[0, 1, 2, 3], [4, 5, 6, 7], [4, 6, 8]]
    curve = host.numpy(first.losses.kale)
    np.testing.assert_allclose(kale.lines[0].get_ydata(), [curve[0], *(curve[1:] + curve[:-1]) / 2], rtol=1e-6)
    np.testing.assert_array_equal(kale.lines[2].get_ydata(), second.validation.kale)
    assert kale.lines[2].get_linestyle() == "--"
    assert kale.lines[3].get_xdata().tolist() == [4 + second.validation.best_step]
    assert [text.get_text() for text in kale.get_legend().get_texts()] == ["first", "second", "second, held-out"]
    assert len(norms.lines) == 3  # energy and base, energy
    kale.figure.savefig(tmp_path / "losses.png")
    assert host.plot_losses(first, axes=axes) is axes
    with pytest.raises(ValueError, match="Expected labels for each of 1 runs; got 2"):
        host.plot_losses(first, labels=("a", "b"))
    with pytest.raises(ValueError, match="Expected 4 axes; got 1"):
        host.plot_losses(first, axes=axes[:1])


def test_curves_and_progress(host, capsys):
    result = train(host, kale_of(host, "joint"), 4, validation=HELD_OUT, progress_bar=True)
    assert [curve.shape for curve in curves(host, result)] == [(4,)] * 5 and np.isfinite(curves(host, result)).all()
    out, shown = capsys.readouterr()
    words = ("Training", "4/4", "KALE=", "A=", "penalty=", "|dE|=", "|dB|=", "held-out=")
    assert out == "" and all(word in shown for word in words)
    train(host, kale_of(host, "joint"), 2)
    assert capsys.readouterr() == ("", "")


# --- Gradients that are far above what is usual


def on_the_line(host, **kwargs):
    """A linear energy E(x) = a x: its gradient is the mean of a batch, minus that of the weighted base draws."""
    guide = host.KALEGuide(host.network(lambda a, x: a * x[..., 0], np.array(0.1)), log_partition=0.0, penalty=None)
    return host.KALE(host.normal(1), guide, None, host.sgd(1e-3), **kwargs)


def batches_with(outlier, at, num=200):
    rng = np.random.default_rng(0)
    for i in range(num):
        yield np.full((50, 1), outlier) if i == at else rng.normal(1.0, 1.0, (50, 1))


def test_a_batch_far_above_what_is_usual_is_left_out_and_counted(host):
    with pytest.warns(RuntimeWarning, match="1 steps were skipped: .* far above what was usual"):
        with_one = host.train(on_the_line(host), 151, batches_with(1e4, at=150))
    without = host.train(on_the_line(host), 150, batches_with(1e4, at=150))
    assert np.array_equal(*(host.parameters(r.gebm.energy)[0] for r in (with_one, without)))
    clipped = host.train(on_the_line(host), 151, batches_with(30.0, at=150))
    moved, usual = (host.parameters(r.gebm.energy)[0] for r in (clipped, without))
    assert 0 < abs(moved - usual) < 1e-3 * 6  # the rate times twice a quantile of norms that are about 1


@pytest.mark.parametrize("bound", [0.05, math.inf])
def test_the_norm_that_gradients_are_clipped_at(host, bound):
    energy = host.steps(on_the_line(host, max_grad_norm=bound))
    before = energy.energy[0].copy()
    norm = float(energy.step(np.full((50, 1), 3.0)).energy_grad_norm)
    assert norm > 1.0 and abs(energy.energy[0] - before) == pytest.approx(1e-3 * min(norm, bound), rel=1e-6)


@pytest.mark.parametrize(
    "value, error", [(0.0, ValueError), (-1, ValueError), ("1", TypeError), (math.nan, ValueError)]
)
def test_max_grad_norm_is_checked(host, value, error):
    with pytest.raises(error, match="max_grad_norm"):
        on_the_line(host, max_grad_norm=value)


def test_the_gradient_does_not_change_with_a_shift_of_the_energy(host):
    """And is bounded, however far A is from log Z."""
    moves = []
    for shift, A in ((0.0, 0.0), (0.0, 50.0), (0.0, -50.0), (20.0, -20.0)):
        network = host.network(lambda a, b, x: a * x[..., 0] + b, np.array(0.1), np.array(shift))
        guide = host.KALEGuide(network, log_partition=A, penalty=None)
        steps = host.steps(host.KALE(host.normal(1), guide, None, host.sgd(1e-3), max_grad_norm=math.inf))
        before = np.array(steps.energy[0])
        steps.step(DATA[:20, :1])
        assert abs(steps.energy[1] - shift) < 1e-12
        moves.append(float(steps.energy[0] - before))
    assert moves[0] == pytest.approx(moves[3], rel=1e-9)
    ratio = np.array(moves[1:3]) / moves[0]  # 0.1 and 10 times that of r = 1, which is within a few per cent of it
    np.testing.assert_allclose(ratio, [0.1, 10.0], rtol=0.2)


def test_plain_kale_is_the_gradient_of_a_batch(host):
    guide = host.KALEGuide(host.network(lambda a, x: a * x[..., 0], np.array(0.1)), log_partition=0.3, penalty=None)
    kale = host.KALE(host.normal(1), guide, None, host.sgd(1.0), objective="plain_kale", max_grad_norm=math.inf)
    energies = host.training.Energies(*(host.array(np.random.normal(size=n)) for n in (5, 7)), None, host.array(0.3))
    value = host.divergences.kale(*energies[:2], 0.3)
    np.testing.assert_allclose(kale.objective.energy_loss(energies), -host.numpy(value), rtol=1e-12)


# --- KALE with its error


def interval(host, energy, data, seed):
    kale = host.KALE(host.normal(1), host.KALEGuide(energy, log_partition=0.0), None, host.sgd(1.0))
    state = [host.steps(kale, seed=seed).state] if host.name == "numpyro" else []
    return kale.evaluate(*state, data)


def test_evaluate_has_an_error_and_stops_when_it_is_small(host):
    slope = host.network(lambda a, x: a * x[..., 0], np.array(-1.0))  # the exact critic of N(1, 1) and N(0, 1)
    data = 1.0 + np.random.default_rng(0).normal(size=(2000, 1))
    found = interval(host, slope, data, 0)
    assert float(found) == found.value and abs(found.value - 0.5) < 4 * found.std_error < 0.15
    assert abs(found.log_partition - 0.5) < 0.05 and 8000 < found.num_draws < 60_000
    assert 0.25 < found.ess / found.num_draws < 0.5  # 1 / e
    kale = host.KALE(host.normal(1), host.KALEGuide(slope, log_partition=0.0), None, host.sgd(1.0))
    state = [host.steps(kale).state] if host.name == "numpyro" else []
    assert kale.evaluate(*state, data, max_draws=3000).num_draws == 2000
    assert kale.evaluate(*state, data, tolerance=1e-3).num_draws == 200_000
    assert kale.evaluate(*state, data, tolerance=0.05).num_draws == 8000
    with pytest.raises(ValueError, match="Expected tolerance > 0; got 0"):
        kale.evaluate(*state, data, tolerance=0.0)


@pytest.mark.slow
@pytest.mark.parametrize("variance", [1.0, 3.0])
def test_the_interval_of_evaluate_covers_the_exact_value(host, variance):
    """N(m, 1) and N(0, 1): log-weights have variance m^2, and KALE at the exact critic is m^2 / 2."""
    slope, covered = host.network(lambda a, x: a * x[..., 0], np.array(-math.sqrt(variance))), 0
    for seed in range(200):
        data = math.sqrt(variance) + np.random.default_rng(seed).normal(size=(500, 1))
        found = interval(host, slope, data, seed)
        covered += abs(found.value - variance / 2) < 1.96 * found.std_error
    assert 180 <= covered <= 198, covered


def test_patience_stops_a_run_and_resuming_it_does_not_go_on(host, tmp_path):
    looks = {"validation": HELD_OUT, "validate_every": 5, "patience": 2}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        kale = kale_of(host, "overfitting")
        result = train(host, kale, 500, DATA[:30], batch_size=30, checkpoint_dir=tmp_path, **looks)
        steps = result.validation.step
        assert len(result.losses.kale) == steps[-1] < 500 and steps[-1] == result.validation.best_step + 10
        again = train(host, kale_of(host, "overfitting"), 500, DATA[:30], batch_size=30, resume_from=tmp_path, **looks)
    assert again.validation.step.tolist() == steps.tolist() and same(model(host, result), model(host, again))


def test_the_number_of_draws_that_settle_the_log_partition(host):
    kale = kale_of(host, "energy alone")
    kept = train(host, kale, 3, settle_draws=0)
    assert np.array_equal(host.numpy(kept.gebm.log_partition), host.numpy(kept.losses.log_partition[-1]))
    settled = train(host, kale_of(host, "energy alone"), 3, settle_draws=100_000)
    assert not np.array_equal(host.numpy(settled.gebm.log_partition), host.numpy(settled.losses.log_partition[-1]))
    with pytest.raises(ValueError, match="Expected settle_draws >= 0 or None; got -1"):
        train(host, kale, 3, settle_draws=-1)
