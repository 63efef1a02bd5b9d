"""Training: exact values of KALE, its steps and its gradients, and what a run promises."""

import copy
import math

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.distributions import transforms
from pyro.nn import AutoRegressiveNN
from pyro_cases import standard_normal

import gebm.training
from pyro_gebm import GEBM, KALE, KALEGuide, Pushforward, divergences, gradient_penalty, nn
from pyro_gebm.training.guide import CLIP, decayed_rate, gradient_step, newton_step

DATA = np.random.default_rng(0).normal([1.0, -0.5], 0.5, (50, 2))
LINE = torch.as_tensor(DATA[:, 0])


class Quadratic(torch.nn.Module):
    """Sufficient for the ratio of two Gaussians on the line."""

    def __init__(self, linear=0.0, square=0.0):
        super().__init__()
        self.linear, self.square = (torch.nn.Parameter(torch.tensor(value)) for value in (linear, square))

    def forward(self, x):
        return self.linear * x + self.square * x**2

    def log_partition(self, mean, times=1.0):
        """log E exp(-times * E(x)), x ~ N(mean, 1)."""
        b, a = times * float(self.linear), times * float(self.square)
        return -b * mean - a * mean**2 + (b + 2 * a * mean) ** 2 / (2 * (1 + 2 * a)) - 0.5 * math.log(1 + 2 * a)


class Linear(torch.nn.Module):
    def __init__(self, slope):
        super().__init__()
        self.slope = torch.nn.Parameter(torch.as_tensor(slope, dtype=torch.get_default_dtype()))

    def forward(self, x):
        return (self.slope * x).reshape(len(x), -1).sum(1)


class Shift(torch.nn.Module):
    def __init__(self, shift):
        super().__init__()
        self.shift = torch.nn.Parameter(torch.as_tensor(shift, dtype=torch.get_default_dtype()))

    def forward(self, z):
        return z + self.shift


class Constant(torch.nn.Module):
    def __init__(self, value):
        super().__init__()
        self.value = torch.nn.Parameter(torch.tensor(value))

    def forward(self, x):
        return self.value.expand(len(x))


class Affine(dist.TransformModule):
    domain = codomain = dist.constraints.real_vector
    bijective = True

    def __init__(self, size):
        super().__init__()
        self.loc, self.log_scale = (torch.nn.Parameter(torch.zeros(size)) for _ in range(2))

    def _call(self, z):
        return self.loc + z * self.log_scale.exp()

    def _inverse(self, x):
        return (x - self.loc) * (-self.log_scale).exp()

    def log_abs_det_jacobian(self, z, x):
        return self.log_scale.sum().expand(z.shape[:-1])


def sgd(rate):
    return lambda parameters: torch.optim.SGD(parameters, rate)


def decaying_adam(num_steps, rate=0.03):
    def factory(parameters):
        optim = torch.optim.Adam(parameters, rate, betas=(0.5, 0.999))
        return optim, torch.optim.lr_scheduler.CosineAnnealingLR(optim, num_steps)

    return factory


def adam(parameters):
    return torch.optim.Adam(parameters, 1e-2)


def networks(seed=0):
    """A generator and an energy on the plane; two energy steps per base step, three batches of 16 an epoch."""
    pyro.set_rng_seed(seed)
    base = Pushforward(standard_normal(2), nn.MLP((2,), (2,), (8,)))
    return KALE(base, KALEGuide(nn.MLP((2,), (), (8,))), adam, adam, energy_steps=2)


def line(prior=None, base_optim=sgd(0.1), energy_optim=sgd(0.1), penalty=None, **kwargs):  # noqa: B008
    """A shift and a quadratic energy on the line."""
    base = Pushforward(prior or dist.Normal(torch.tensor(0.0), 1.0), Shift(0.5))
    guide = KALEGuide(Quadratic(0.3, 0.2), log_partition=0.0, log_partition_rate=0.5, penalty=penalty)
    return KALE(base, guide, base_optim, energy_optim, **kwargs)


def train(training, num_steps, data=DATA, **kwargs):
    return training.run(num_steps, data, **{"batch_size": 16, "progress_bar": False, **kwargs})


def parameters(module):
    return [p.detach().clone() for p in module.parameters()]


def same(one, other):
    """Whether two nested states agree to the last bit."""
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(one[key], other[key]) for key in one)
    if isinstance(one, (list, tuple)):
        return len(one) == len(other) and all(same(a, b) for a, b in zip(one, other))
    return torch.equal(one, other) if isinstance(one, torch.Tensor) else one == other


@pytest.mark.parametrize(
    "data_mean, data_std, base_mean, kl",
    [(0.0, 1.0, 1.0, 0.5), (0.0, 0.5, 0.0, 0.31814718), (1.0, 0.5, 0.0, 0.81814718)],
)
def test_case_1_kale_reaches_the_kl(data_mean, data_std, base_mean, kl):
    data, fresh = torch.as_tensor(data_mean + data_std * np.random.normal(size=(2, 100_000)))
    base = dist.Normal(torch.tensor(base_mean), 1.0)
    training = KALE(base, KALEGuide(Quadratic(), penalty=None), None, decaying_adam(1000))
    result = train(training, 1000, data, batch_size=1000)
    energy, settled = result.gebm.energy, result.gebm.log_partition
    exact = energy.log_partition(base_mean)
    variance = math.exp(energy.log_partition(base_mean, 2.0) - 2 * exact) - 1  # of exp(-E)/Z over base draws
    assert abs(settled - exact) < 5 * math.sqrt(variance / 200_000)
    assert abs(training.log_partition - settled) < 0.05
    assert abs(training.evaluate(fresh) - kl) < 0.02
    assert abs(divergences.donsker_varadhan(energy(fresh), energy(base.sample((100_000,)))) - kl) < 0.02
    assert abs(result.losses.kale[-200:].mean() - kl) < 0.02
    x = torch.linspace(data_mean - data_std, data_mean + data_std, 5)
    ratio = dist.Normal(data_mean, data_std).log_prob(x) - base.log_prob(x)
    np.testing.assert_allclose(result.guide(x).detach(), ratio, atol=0.1)


def test_base_moves_to_the_data():
    data = np.random.normal([2.0, -1.0], 1.0, (5000, 2))
    base = Pushforward(standard_normal(2), Shift([0.0, 0.0]))
    guide = KALEGuide(Linear([0.0, 0.0]), penalty=None)
    training = KALE(base, guide, decaying_adam(400), decaying_adam(2000), energy_steps=5)
    result = train(training, 400, data, batch_size=256)
    np.testing.assert_allclose(result.gebm.base.generator.shift, data.mean(0), atol=0.02)
    assert abs(result.losses.kale[-50:].mean()) < 0.001 and result.losses.kale.max() > 1


def test_runs_are_reproducible():
    states, losses = [], []
    for seed in (0, 0, 1):
        training = networks(seed)
        losses.append(train(training, 8).losses)
        states.append(training.state_dict())
    assert same(states[0], states[1]) and same(losses[0], losses[1])
    assert not same(states[0]["energy"], states[2]["energy"]) and not same(states[0]["base"], states[2]["base"])
    assert {tuple(curve.shape) for curve in losses[0]} == {(8,)}


def test_results_do_not_depend_on_the_chunk(monkeypatch):
    training, other = networks(), networks()
    pyro.set_rng_seed(1)
    expected = train(training, 16)
    monkeypatch.setattr(gebm.training, "MAX_STEPS_PER_LOOK", 3)
    pyro.set_rng_seed(1)
    result = train(other, 16)
    assert same(training.state_dict(), other.state_dict()) and same(expected.losses, result.losses)


def test_training_goes_on_from_a_state():
    training = networks()
    train(training, 3)
    state = copy.deepcopy(training.state_dict())
    other = networks(seed=7)
    other.load_state_dict(state)
    for kale in (training, other):
        pyro.set_rng_seed(1)
        train(kale, 4)
    assert same(training.state_dict(), other.state_dict()) and not same(state, other.state_dict())


def test_step_follows_the_schedule_of_run():
    training, losses = line(energy_steps=3), []
    other = line(energy_steps=3)
    pyro.set_rng_seed(1)
    for step in range(1, 10):
        energy, base = parameters(training.guide.energy), parameters(training.base.generator)
        log_partition = training.log_partition
        losses.append(torch.stack(training.step(LINE)))
        assert training.num_steps_taken == step and training.base_steps_taken == step // 3
        assert not same(energy, parameters(training.guide.energy)) and log_partition != training.log_partition
        assert same(base, parameters(training.base.generator)) == (step % 3 != 0)
    loader = iter([LINE] * 9)  # a stream draws nothing, so `run` meets the same noise
    pyro.set_rng_seed(1)
    result = train(other, 3, loader, batch_size=None)
    assert same(training.state_dict(), other.state_dict())
    means = torch.stack(losses).reshape(3, 3, 5).mean(1).T
    means[-1] *= 3  # one base step, not a mean
    torch.testing.assert_close(torch.stack(list(result.losses)), means, rtol=1e-10, atol=0)


def test_every_row_comes_once_an_epoch():
    # Base and energy leave only the data in KALE: minus the mean of the batch, whose rows are the bits of its sum.
    guide = KALEGuide(Linear(1.0), log_partition=0.0, log_partition_rate=1e-300, penalty=None)
    training = KALE(dist.Normal(torch.tensor(0.0), 1e-200), guide, None, sgd(0.0))
    losses = train(training, 9, 2.0 ** np.arange(12), batch_size=4).losses.kale
    rows = np.array([[int(total) >> row & 1 for row in range(12)] for total in np.round(-4 * losses.numpy())])
    assert (rows.sum(1) == 4).all() and (rows.reshape(3, 3, 12).sum(1) == 1).all()
    assert len(np.unique(rows, axis=0)) > 3


def test_result_is_a_snapshot():
    training = networks()
    result = train(training, 3)
    kept = parameters(result.gebm.base.generator) + parameters(result.gebm.energy)
    train(training, 3)
    assert same(kept, parameters(result.gebm.base.generator) + parameters(result.gebm.energy))
    assert not same(kept[-1], parameters(training.guide.energy)[-1])
    for module in (result.gebm.base.generator, result.gebm.energy):
        assert not module.training and not any(p.requires_grad for p in module.parameters())
    assert all(p.requires_grad for p in training.guide.energy.parameters())
    assert training.guide.log_partition is None and result.guide.log_partition == result.gebm.log_partition
    assert isinstance(result.gebm, GEBM) and result.gebm.log_partition != training.log_partition
    x = torch.as_tensor(DATA[:3])
    torch.testing.assert_close(result.guide(x), -result.gebm.energy(x) - result.gebm.log_partition)


def test_frozen_base():
    training = line(base_optim=None, energy_steps=3)
    base, energy = parameters(training.base.generator), parameters(training.guide.energy)
    result = train(training, 5, LINE)
    assert same(base, parameters(result.gebm.base.generator)) and not same(energy, parameters(result.gebm.energy))
    assert training.num_steps_taken == 5 and len(result.losses.kale) == 5


def test_frozen_energy():
    # The gradient in the shift of -log E exp(s (z + shift)) is -s for any draws.
    slope, rate = np.array([0.7, -0.2]), 0.1
    base, energy = Pushforward(standard_normal(2), Shift([0.3, 0.4])), Linear(-slope)
    training = KALE(base, KALEGuide(energy, penalty=None), sgd(rate), None, energy_steps=3)
    result = train(training, 7)
    np.testing.assert_array_equal(result.gebm.energy.slope, -slope)
    assert training.num_steps_taken == training.base_steps_taken == 7
    np.testing.assert_allclose(result.gebm.base.generator.shift, [0.3, 0.4] + 7 * rate * slope, rtol=1e-10)


@pytest.mark.parametrize(
    "weight, shape, noise_factor", [(2.5, (), 1), (0.7, (1, 2, 2), 2), (1.5, (3,), 3), (0.0, (3,), 1)]
)
def test_gradient_penalty_of_a_linear_energy(weight, shape, noise_factor):
    energy = Linear(np.random.normal(size=shape))
    data, draws = torch.randn(5, *shape), torch.randn(5 * noise_factor, *shape)
    value = gradient_penalty(weight)(energy, data, draws)
    torch.testing.assert_close(value, weight * energy.slope.square().sum(), rtol=1e-10, atol=0)
    (gradient,) = torch.autograd.grad(value, energy.slope)
    torch.testing.assert_close(gradient, 2 * weight * energy.slope, rtol=1e-10, atol=0)


def test_gradient_penalty_interpolates_row_by_row():
    def energy(x):
        return 0.5 * x.square().sum(1)

    data = torch.randn(4, 2)
    value = gradient_penalty()(energy, data, torch.cat([data, data]))
    torch.testing.assert_close(value, data.square().sum(1).mean())
    num = 100_000  # between (0, 0) and (1, 1): twice the mean square of a uniform
    value = gradient_penalty()(energy, torch.zeros(num, 2), torch.ones(num, 2))
    assert abs(value - 2 / 3) < 5 * 2 * math.sqrt(4 / 45 / num)


@pytest.mark.parametrize("step", [newton_step, gradient_step])
def test_steps_of_the_log_partition_stop_at_the_estimate(step):
    estimate = torch.tensor([-7.0, 0.0, 3.5])
    assert torch.equal(step(estimate, estimate, 0.1), estimate)
    for value in (estimate - 5, estimate + 5):
        for _ in range(300):
            value = step(value, estimate, 0.1)
        torch.testing.assert_close(value, estimate, rtol=0, atol=1e-6)


def test_steps_of_the_log_partition_are_exact_and_clipped():
    def at(step, start, estimate):
        return float(step(torch.tensor(start), torch.tensor(estimate), 0.1))

    assert at(newton_step, 1.0, 0.5) == pytest.approx(1.0 + 0.1 * (1 - math.exp(0.5)), rel=1e-12)
    assert at(gradient_step, 1.0, 0.5) == pytest.approx(1.0 + 0.1 * (math.exp(-0.5) - 1), rel=1e-12)
    assert at(newton_step, 1000.0, 0.0) == pytest.approx(1000.0 - 0.1 * CLIP, rel=1e-12)
    assert at(newton_step, -1000.0, 0.0) == pytest.approx(-1000.0 + 0.1, rel=1e-12)
    assert at(gradient_step, -1000.0, 0.0) == pytest.approx(-1000.0 + 0.1 * CLIP, rel=1e-12)
    assert at(gradient_step, 1000.0, 0.0) == pytest.approx(1000.0 - 0.1, rel=1e-12)


def test_gradient_step_is_unbiased_and_newton_step_is_not():
    partitions = torch.tensor([0.5, 1.0, 3.0])  # of three equally likely batches
    exact, batches = partitions.mean().log(), partitions.log()
    torch.testing.assert_close(gradient_step(exact, batches, 0.1).mean(), exact, rtol=1e-12, atol=0)
    expected = exact + 0.1 * (1 - partitions.mean() * (1 / partitions).mean())
    torch.testing.assert_close(newton_step(exact, batches, 0.1).mean(), expected, rtol=1e-12, atol=0)


def test_decayed_rate():
    assert [decayed_rate(0.1, t) for t in (0, 1000, 9000, 10**6)] == pytest.approx([0.1, 0.05, 0.01, 0.01])


def test_log_partition_changes_its_rule_after_the_warm_up():
    # A constant energy: every batch has the estimate -2.
    guide = KALEGuide(Constant(2.0), log_partition=-3.0, penalty=None)
    for step, rule in ((0, newton_step), (99, newton_step), (100, gradient_step)):
        training = KALE(dist.Normal(torch.tensor(0.0), 1.0), guide, None, sgd(0.0))
        training.num_steps_taken = step
        training.step(torch.zeros(4))
        torch.testing.assert_close(
            training.log_partition, rule(torch.tensor(-3.0), torch.tensor(-2.0), 0.1), rtol=1e-12, atol=0
        )


def test_donsker_varadhan_is_kale_at_the_log_partition_of_the_batch():
    data, base, energy = torch.randn(30, 2), torch.randn(40, 2), nn.MLP((2,), (), (8,))
    best = divergences.batch_log_partition(energy(base)).detach()
    values = (
        divergences.kale(energy(data), energy(base), best),
        divergences.donsker_varadhan(energy(data), energy(base)),
    )
    one, other = (torch.autograd.grad(value, list(energy.parameters())) for value in values)
    for a, b in zip(one, other):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-10)


def test_objective_donsker_varadhan():
    def step(objective, start):
        training = line(objective=objective)
        training.log_partition = torch.as_tensor(start)
        pyro.set_rng_seed(0)
        return training.step(LINE), parameters(training.guide.energy), training.log_partition

    losses, energy, after = step("donsker_varadhan", 0.0)
    assert same(step("donsker_varadhan", 1.0)[1], energy) and not same(step("kale", 0.0)[1], energy)
    best = -torch.log1p(-after / 0.5)  # where the Newton step from 0 was going
    at_best, other, settled = step("kale", best)
    torch.testing.assert_close(other, energy, rtol=0, atol=1e-10)
    torch.testing.assert_close(settled, best, rtol=1e-10, atol=0)
    torch.testing.assert_close(at_best.kale - losses.kale, best.exp() - 1 - best, rtol=0, atol=1e-10)


def test_base_gradient_has_self_normalised_weights():
    base, energy, z = nn.MLP((2,), (2,), (8,)), nn.MLP((2,), (), (8,)), torch.randn(20, 2)
    gradient = torch.autograd.grad(divergences.base_loss(energy(base(z))), list(base.parameters()))
    energies = energy(base(z))
    weighted = (torch.softmax(-energies.detach(), 0) * energies).sum()
    for a, b in zip(gradient, torch.autograd.grad(weighted, list(base.parameters()))):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-10)


def test_noise_factor():
    pairs = []

    def penalty(energy, data, base_draws):
        pairs.append((len(data), len(base_draws)))
        return gradient_penalty()(energy, data, base_draws)

    training, sizes = line(noise_factor=3, penalty=penalty), []
    training.base.generator.register_forward_hook(lambda module, args, out: sizes.append(len(args[0])))
    training.energy_steps = 1
    training.step(LINE)
    assert pairs == [(50, 150)] and sizes == [150, 150]  # an energy step and a base step


def test_evaluate_on_held_out_data():
    A, c = 0.4, 0.7
    for energy, num in ((Constant(c), 1500), (Linear(1.0), 200_000)):
        guide = KALEGuide(energy, log_partition=A)
        training = KALE(dist.Normal(torch.tensor(0.0), 1.0), guide, None, sgd(1.0))
        data = np.random.normal(size=num)
        value = float(training.evaluate(data))
        if isinstance(energy, Constant):
            assert value == pytest.approx(1 - c - A - math.exp(-c - A), rel=1e-10)
        else:
            error = math.exp(-A) * math.sqrt((math.exp(2) - math.e) / num)
            assert 0 < abs(value - (1 - data.mean() - A - math.exp(0.5 - A))) < 5 * error


def test_evaluate_leaves_training_alone():
    training, other = networks(), networks()
    for kale in (training, other):
        pyro.set_rng_seed(1)
        train(kale, 3)
    state = copy.deepcopy(training.state_dict())
    values = []
    for _ in range(2):
        pyro.set_rng_seed(2)
        values.append(training.evaluate(DATA))
    assert values[0] == values[1] and not values[0].requires_grad and training.guide.energy.training
    assert same(state, training.state_dict())
    for kale in (training, other):
        pyro.set_rng_seed(3)
        train(kale, 3)
    assert same(training.state_dict(), other.state_dict())


def affine():
    return [Affine(2)]


def two_affines():
    return [Affine(2), transforms.Permute(torch.tensor([1, 0])), Affine(2)]


def autoregressive():
    return [transforms.AffineAutoregressive(AutoRegressiveNN(2, [8]), stable=True)]


@pytest.mark.parametrize("flow, rate", [(affine, 0.03), (two_affines, 0.03), (autoregressive, 0.01)])
def test_flow_base(flow, rate):
    base = dist.TransformedDistribution(standard_normal(2), flow())
    start = base.log_prob(torch.as_tensor(DATA)).mean().item()
    guide = KALEGuide(nn.MLP((2,), (), (8,)), penalty=gradient_penalty(0.1))
    training = KALE(base, guide, decaying_adam(200, rate), decaying_adam(600, rate), energy_steps=3)
    before = [p.detach().clone() for t in base.transforms if isinstance(t, torch.nn.Module) for p in t.parameters()]
    result = train(training, 200, batch_size=50)
    trained = [p for t in result.gebm.base.transforms if isinstance(t, torch.nn.Module) for p in t.parameters()]
    assert len(before) == len(trained) > 0 and not any(map(torch.equal, before, trained))
    axis = torch.linspace(-7.0, 8.0, 200)
    x = torch.cartesian_prod(axis, axis)
    mass = result.gebm.log_prob(x).exp().sum() * (axis[1] - axis[0]) ** 2
    np.testing.assert_allclose(mass, 1.0, atol=0.01)
    assert result.gebm.log_prob(torch.as_tensor(DATA)).mean() > start + 0.7


def test_training_that_blows_up_gives_back_the_state_before():
    # Step 1 moves the slope from 0 to about 1e200, so that step 2 meets exp(1e200).
    training = KALE(dist.Normal(torch.tensor(0.0), 1.0), KALEGuide(Linear(0.0), penalty=None), None, sgd(1e200))
    expected = r"Training stopped at base step 11: .* of base step 1, is restored .*Lower"
    with pytest.raises(FloatingPointError, match=expected) as caught:
        train(training, 50, np.ones(16))
    assert training.base_steps_taken == caught.value.state["base_steps_taken"] == 1


@pytest.mark.parametrize("shown", [True, False])
def test_progress_bar(capsys, shown):
    train(networks(), 2, progress_bar=shown)
    out, err = capsys.readouterr()
    assert out == ""
    assert ("KALE" in err and "KALE=" in err and "2/2" in err) if shown else err == ""


def test_single_precision():
    torch.set_default_dtype(torch.float32)
    training = line(penalty=gradient_penalty())
    result = train(training, 4, LINE)
    values = [result.gebm.log_partition, training.log_partition, *result.losses]
    values += parameters(training.guide.energy) + parameters(training.base.generator)
    assert all(value.dtype == torch.float32 and torch.isfinite(value).all() for value in values)
