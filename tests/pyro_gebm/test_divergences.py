"""f-divergences, MMD and KALE over an RKHS: against their definitions."""

import numpy as np
import pytest
import torch
from cases import (
    F_DIVERGENCE_DOMAINS,
    F_DIVERGENCE_VALUES,
    KERNELS,
    THREE_RINGS_KALE,
    maximum,
    naive_mmd2,
    normal_grid,
    three_rings,
    two_samples,
)
from scipy.special import lambertw

from pyro_gebm.divergences import (
    F_DIVERGENCES,
    f_divergence,
    kale_rkhs,
    kernels,
    mmd2,
    mmd_test,
    mmd_witness,
    rkhs,
    sums,
)

GAUSSIAN = kernels.Gaussian(1.0)


# --- f-divergences


def test_there_are_seven_f_divergences():
    assert F_DIVERGENCES.keys() == F_DIVERGENCE_VALUES.keys()
    assert all(f_divergence(name).name == name for name in F_DIVERGENCES)
    with pytest.raises(ValueError, match="Expected one of kl, reverse_kl.*got 'hellinger'"):
        f_divergence("hellinger")


@pytest.mark.parametrize("name", F_DIVERGENCE_VALUES)
def test_an_f_divergence_has_its_value_and_its_critic_attains_the_bound(name):
    divergence = f_divergence(name)
    _, weights, p, q = map(torch.tensor, normal_grid())
    value = (weights * q) @ divergence.generator(p / q)
    assert value == pytest.approx(F_DIVERGENCE_VALUES[name], abs=1e-7)

    def bound(critic):
        return (weights * p) @ critic - (weights * q) @ divergence.conjugate(critic)

    critic = divergence.optimal_critic(p / q)
    assert bound(critic) == pytest.approx(F_DIVERGENCE_VALUES[name], abs=1e-7)
    assert bound(0.9 * critic - 0.01) < value - 1e-4


@pytest.mark.parametrize("name", F_DIVERGENCE_VALUES)
def test_a_conjugate_is_the_supremum(name):
    divergence = f_divergence(name)
    for t in F_DIVERGENCE_DOMAINS[name]:
        highest = maximum(lambda u, t=t: u * t - divergence.generator(torch.tensor(u)).numpy(), (1e-12, 50.0))
        assert divergence.conjugate(torch.tensor(t)).item() == pytest.approx(highest, abs=1e-8)


@pytest.mark.parametrize("name", F_DIVERGENCE_VALUES)
def test_an_activation_stays_in_the_domain_of_the_conjugate(name):
    divergence = f_divergence(name)
    outputs = torch.linspace(-12.0, 12.0, 25, requires_grad=True)
    critic = divergence.activation(outputs)
    assert divergence.conjugate(critic).isfinite().all()
    assert (critic.diff() > 0.0).all()
    divergence.bound(critic, critic).backward()
    assert outputs.grad.isfinite().all()


def test_outside_of_the_domain_the_bound_is_minus_infinity():
    for name, t in {"reverse_kl": 0.1, "squared_hellinger": 1.0, "jensen_shannon": 0.7, "gan": 0.0}.items():
        assert f_divergence(name).bound(torch.zeros(3), torch.tensor([-1.0, t])) == -np.inf


def test_a_bound_is_that_of_the_sample_means():
    p, q = torch.tensor([0.3, -0.2]), torch.tensor([0.1, 0.5, -1.0])
    expected = np.mean([0.3, -0.2]) - np.mean(np.exp(np.array([0.1, 0.5, -1.0]) - 1.0))
    assert f_divergence("kl").bound(p, q).item() == pytest.approx(expected, rel=1e-14)
    for bad in (torch.zeros(3, 1), torch.zeros(0), torch.zeros(())):
        with pytest.raises(ValueError, match=r"Expected critic_p \(M,\) and critic_q \(N,\)"):
            f_divergence("kl").bound(bad, q)


# --- MMD


@pytest.mark.parametrize("estimator", ["unbiased", "biased", "linear"])
@pytest.mark.parametrize("name", KERNELS)
def test_mmd2_is_that_of_its_definition(name, estimator):
    arguments, function = KERNELS[name]
    x, y = two_samples(11, 0.5)
    y = y[:11]
    value = mmd2(x, y, kernel=getattr(kernels, name)(*arguments), estimator=estimator)
    assert value == pytest.approx(naive_mmd2(function, x, y, estimator), rel=1e-10)


def test_mmd2_takes_mixtures_and_own_kernels():
    x, y = two_samples(11, 0.5)
    parts = [kernels.Gaussian(0.5), kernels.Laplace(2.0)]
    values = [mmd2(x, y, kernel=kernel) for kernel in parts]
    assert mmd2(x, y, kernel=kernels.Mixture(parts)) == pytest.approx(float(0.5 * sum(values)), rel=1e-12)
    assert mmd2(x, y, kernel=kernels.Mixture(parts, (1.0, 3.0))) == pytest.approx(
        float(values[0] + 3.0 * values[1]), rel=1e-12
    )
    means = x.mean(0) - y.mean(0)
    assert mmd2(x, y, kernel=lambda x, y: x @ y.T, estimator="biased") == pytest.approx(means @ means, rel=1e-12)


@pytest.mark.parametrize("exclude_diagonal", [False, True])
def test_blocks_change_nothing(exclude_diagonal, monkeypatch):
    x = torch.tensor(two_samples(23, 0.5)[0])
    weights = torch.tensor(np.random.default_rng(1).normal(size=(23, 2)))
    monkeypatch.setattr(sums, "BLOCK", 5 * len(x) * 8)

    def in_blocks(x):
        return sums.kernel_matvec(GAUSSIAN, x, x, weights, exclude_diagonal=exclude_diagonal)

    def at_once(x):
        return (GAUSSIAN(x, x) * (1.0 - exclude_diagonal * torch.eye(len(x)))) @ weights

    rows = []
    monkeypatch.setattr(kernels.Gaussian, "profile", lambda self, r2: (rows.append(len(r2)), torch.exp(-0.5 * r2))[1])
    values, gradients = [], []
    for fn in (in_blocks, at_once):
        tracked = x.clone().requires_grad_(True)
        values.append((fn(tracked) ** 2).sum())
        gradients.extend(torch.autograd.grad(values[-1], tracked))
    assert rows == [5, 5, 5, 5, 3, *rows[5:-1], 23] and set(rows[5:-1]) == {5, 3}  # forward, and again for the gradient
    assert values[0].item() == pytest.approx(values[1].item(), rel=1e-12)
    np.testing.assert_allclose(*gradients, rtol=1e-9, atol=1e-12)


def test_distances_do_not_lose_their_digits():
    rng = np.random.default_rng(0)
    for dim in (2, 20):
        x, y = 1e4 + rng.normal(size=(2, 6, dim))
        exact = ((x[:, None] - y[None]) ** 2).sum(-1)
        np.testing.assert_allclose(kernels.squared_distances(torch.tensor(x), torch.tensor(y)), exact, rtol=1e-9)


def test_the_median_of_many_points_is_that_of_some(monkeypatch):
    monkeypatch.setattr(kernels, "MEDIAN_POINTS", 200)
    x = np.random.default_rng(0).normal(size=(1000, 1))
    exact = np.median(np.abs(x - x.T)[np.triu_indices(len(x), 1)])
    assert float(kernels.median_distance(torch.tensor(x))) == pytest.approx(exact, rel=0.1)


def test_the_witness_integrates_to_mmd2():
    x, y = two_samples(11, 1.0)
    witness = mmd_witness(x, y)
    difference = float(witness(x).mean() - witness(y).mean())
    assert difference == pytest.approx(float(mmd2(x, y, estimator="biased")), rel=1e-12)
    assert witness(np.array([[1.0, 1.0]])) > 0.0 > witness(np.array([[-1.0, -1.0]]))


def test_the_p_value_is_that_of_all_permutations_of_the_points():
    """Of the 20 splits of 6 points into two halves, the observed one and its mirror image have the largest MMD²."""
    x, y = torch.arange(3.0)[:, None], 10.0 + torch.arange(3.0)[:, None]
    torch.manual_seed(1)
    result = mmd_test(x, y, 2.0, num_permutations=4000)
    assert result.statistic == pytest.approx(float(mmd2(x, y, 2.0)), rel=1e-12)
    assert result.p_value == pytest.approx(0.1, abs=0.02) and result.null.shape == (4000,)
    distinct = np.unique(np.asarray(result.null).round(10))
    assert len(distinct) <= 10 and distinct.max() == pytest.approx(float(result.statistic))
    torch.manual_seed(1)
    same = mmd_test(x, y, 2.0, num_permutations=4000)
    assert same.p_value == result.p_value


@pytest.mark.slow
def test_the_two_sample_test_keeps_its_level():
    rng = np.random.default_rng(0)

    def rejections(shift, num):
        draws = rng.normal(size=(num, 2, 40, 2)) + shift * np.array([1.0, 0.0])[:, None, None]
        return np.mean([mmd_test(*draw).p_value.item() <= 0.05 for draw in draws])

    level, power = rejections(0.0, 1000), rejections(0.5, 200)
    print(f"level {level:.3f}, power at a shift of (0.5, 0.5) {power:.3f}")
    assert 0.03 <= level <= 0.07
    assert power > 0.6


# --- KALE over an RKHS


def primal(result, x, y, regularization):
    """KALE of the witness, from its definition."""
    h = result.witness
    norm = h.weights @ h.kernel(h.centers, h.centers) @ h.weights
    return (1 + regularization) * (1 + h(x).mean() - h(y).exp().mean() - 0.5 * regularization * norm)


@pytest.mark.parametrize("overlap", [0.0, np.exp(-1.0), 0.9])
@pytest.mark.parametrize("regularization", [0.3, 1.0, 20.0])
def test_kale_of_two_points(overlap, regularization):
    x, y = np.zeros((2, 1)), np.full((2, 1), np.sqrt(-2.0 * np.log(overlap)) if overlap else 100.0)
    result = kale_rkhs(x, y, GAUSSIAN, regularization)
    alpha = regularization * lambertw(np.exp(overlap / regularization) / regularization).real
    distance = alpha**2 - 2.0 * alpha * overlap + 1.0
    value = (1 + regularization) * (alpha * np.log(alpha) - alpha + 1.0 + distance / (2 * regularization))
    assert result.weights.sum() == pytest.approx(alpha, abs=1e-8)
    assert result.value == pytest.approx(value, abs=1e-8)
    if regularization == 1.0 and overlap < 0.9:
        assert result.value == pytest.approx({0.0: 1.54406191}.get(overlap, 1.07537490), abs=1e-8)


def assert_solved(x, y, kernel, regularization):
    x, y = torch.as_tensor(x), torch.as_tensor(y)
    result = kale_rkhs(x, y, kernel, regularization)
    lower = primal(result, x, y, regularization)
    assert abs(result.value - lower) < 1e-8 * result.value
    assert 0.0 <= result.duality_gap < 1e-8 * result.value
    np.testing.assert_allclose(result.witness(y).exp() / len(y), result.weights, rtol=1e-5, atol=1e-12)
    return result


@pytest.mark.parametrize("shift", [0.5, 4.0])
def test_the_primal_is_the_dual(shift):
    x, y = two_samples(50, shift)
    values = [assert_solved(x, y, GAUSSIAN, 10.0**k).value for k in range(-3, 5)]
    assert values == sorted(values, reverse=True)
    assert values[-1] == pytest.approx(float(0.5 * mmd2(x, y, 1.0, estimator="biased")), rel=1e-3)


@pytest.mark.slow
@pytest.mark.parametrize("num", [50, 500])
@pytest.mark.parametrize("kernel", [GAUSSIAN, kernels.Gaussian(0.05), kernels.Laplace(1.0)], ids=str)
def test_the_primal_is_the_dual_for_all_kernels(kernel, num):
    for shift in (0.1, 1.0, 5.0):
        x, y = two_samples(num, shift)
        for k in range(-3, 5):
            assert_solved(x, y, kernel, 10.0**k)


def test_the_gap_says_that_the_solver_gave_up(monkeypatch):
    monkeypatch.setattr(rkhs, "MAX_STEPS", 1)
    x, y = two_samples(6, 4.0)
    x, y = map(torch.tensor, (x, y))
    result = kale_rkhs(x, y, GAUSSIAN, 1e-3)
    value, gap = float(result.value), float(result.duality_gap)
    assert gap > 0.01 * value
    assert value - gap == pytest.approx(float(primal(result, x, y, 1e-3)), rel=1e-9)


def test_random_features_solve_the_same_problem():
    x, y = map(torch.tensor, two_samples(50, 0.5))
    features = kernels.random_features(GAUSSIAN, 2, 300)
    result = assert_solved(x, y, features, 0.1)
    assert result.value == pytest.approx(float(kale_rkhs(x, y, GAUSSIAN, 0.1).value), rel=0.1)
    many = torch.randn(20_000, 2)  # the kernel matrix would take 3.2 GB
    narrow = kernels.random_features(GAUSSIAN, 2, 10)
    assert_solved_without_matrix(many, 0.1 + torch.randn(20_000, 2), narrow)


def assert_solved_without_matrix(x, y, features):
    result = kale_rkhs(x, y, features, 0.1)
    assert 0.0 <= result.duality_gap < 1e-8 * result.value < 0.1
    gram = rkhs.Gram.of(features, y)
    assert gram.matrix is None and gram.features.shape == (20_000, 20)


def test_random_features_are_those_of_the_kernel():
    x = torch.tensor(two_samples(7, 0.0)[0])
    parts = [getattr(kernels, name)(*arguments) for name, (arguments, _) in KERNELS.items()]
    kernel = kernels.Mixture(parts, (0.5, 2.0, 1.0))
    features = kernels.random_features(kernel, 2, 20_000)
    np.testing.assert_allclose(features(x, x), kernel(x, x), atol=0.07)  # of 3.5 on the diagonal


def test_kale_and_its_witness_have_the_right_derivatives():
    x, y = map(torch.tensor, two_samples(12, 0.7))

    def output(x, y, bandwidth, regularization):
        result = kale_rkhs(x, y, kernels.Gaussian(bandwidth), regularization)
        return result.value + 2.0 * result.witness(x[:1])[0] + 3.0 * result.weights[2]

    arguments = (x, y, torch.tensor(0.8), torch.tensor(0.2))
    directions = [torch.tensor(np.random.default_rng(1).normal(size=z.shape)) for z in arguments]
    tracked = [z.clone().requires_grad_(True) for z in arguments]
    gradients = torch.autograd.grad(output(*tracked), tracked)
    high, low = (output(*(z + step * d for z, d in zip(arguments, directions))) for step in (1e-5, -1e-5))
    slope = sum((g * d).sum() for g, d in zip(gradients, directions))
    assert float(slope) == pytest.approx(float(high - low) / 2e-5, rel=1e-7)


def test_the_three_rings_have_their_starting_values():
    particles, target = three_rings()
    kernel = kernels.Gaussian(np.sqrt(0.05))
    for regularization, value in THREE_RINGS_KALE.items():
        assert kale_rkhs(particles, target, kernel, regularization).value == pytest.approx(float(value), rel=1e-2)
    assert 0.5 * mmd2(particles, target, kernel=kernel, estimator="biased") == pytest.approx(0.38707, rel=1e-2)


def test_single_precision_stays_single():
    x, y = (torch.tensor(z, dtype=torch.float32) for z in two_samples(50, 0.5))
    result = kale_rkhs(x, y, GAUSSIAN, 0.01)
    assert {z.dtype for z in (result.value, result.weights, result.duality_gap)} == {torch.float32}
    assert 0.0 <= result.duality_gap < 1e-4 * result.value
    assert result.value == pytest.approx(float(kale_rkhs(x.double(), y.double(), GAUSSIAN, 0.01).value), rel=1e-3)
    assert mmd2(x, y, kernel=kernels.Laplace(1.0)).dtype == mmd_witness(x, y)(x).dtype == torch.float32
    assert mmd_witness(x, y)(x.double().numpy()).dtype == torch.float32


# --- errors


@pytest.mark.parametrize("function", [mmd2, mmd_witness, kale_rkhs, lambda x, y: mmd_test(x, y)])
def test_bad_samples_are_refused(function):
    x = np.zeros((4, 2))
    for bad in (np.zeros(4), np.zeros((1, 2)), np.zeros((0, 2)), np.zeros((4, 3)), np.zeros((2, 4, 2))):
        with pytest.raises(ValueError, match=r"Expected x \(M, D\) and y \(N, D\) with M, N >= 2"):
            function(bad, x)
    with pytest.raises(ValueError, match="finite entries in y; got NaN or infinity in 1 rows"):
        function(x, np.array([[0.0, np.nan], [1.0, 1.0]]))
    with pytest.raises(ValueError, match="The median distance of the samples is 0"):
        function(x, x)


def test_whole_numbers_are_taken():
    assert mmd_witness(np.eye(2, dtype=int), np.zeros((3, 2), int)).weights.dtype == torch.float64


def test_bad_arguments_are_refused():
    x, y = two_samples(5, 0.0)
    with pytest.raises(ValueError, match="unbiased, biased, linear as estimator; got 'quadratic'"):
        mmd2(x, y, estimator="quadratic")
    with pytest.raises(ValueError, match="as many rows in x as in y for the linear estimator; got 5 and 8"):
        mmd2(x, y, estimator="linear")
    with pytest.raises(ValueError, match="Expected a bandwidth or a kernel; got both"):
        mmd2(x, y, 1.0, kernel=GAUSSIAN)
    with pytest.raises(ValueError, match="num_permutations >= 1; got 0"):
        mmd_test(x, y, num_permutations=0)
    for regularization in (0.0, -1.0, np.nan):
        with pytest.raises(ValueError, match="Expected regularization > 0"):
            kale_rkhs(x, y, GAUSSIAN, regularization)
    with pytest.raises(TypeError, match="Expected a kernel, a callable"):
        mmd2(x, y, kernel="gaussian")
    for bandwidth in (0.0, -1.0, np.nan, np.ones(2)):
        with pytest.raises(ValueError, match="Expected a positive scalar as bandwidth"):
            kernels.Laplace(bandwidth)
    with pytest.raises(ValueError, match="Expected power > 0; got 0"):
        kernels.InverseMultiquadric(1.0, 0.0)
    for weights in ((1.0,), (1.0, -1.0), (1.0, np.nan)):
        with pytest.raises(ValueError, match="Expected a weight >= 0 for each of 2 kernels"):
            kernels.Mixture([GAUSSIAN, GAUSSIAN], weights)
    with pytest.raises(ValueError, match="Expected a weight >= 0 for each of 0 kernels"):
        kernels.Mixture([])
    with pytest.raises(ValueError, match="Expected a kernel with a bandwidth"):
        kernels.Gaussian()(x, y)
    with pytest.raises(TypeError, match="Expected a kernel of `divergences.kernels`"):
        kernels.random_features(lambda x, y: x @ y.T, 2, 10)
