"""f-divergences, MMD and KALE over an RKHS: against their definitions."""

import functools

import numpy as np
import pytest
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


@pytest.fixture
def divergences(host):
    return host.divergences


@pytest.fixture
def gaussian(divergences):
    return divergences.kernels.Gaussian(1.0)


# --- f-divergences


def test_there_are_seven_f_divergences(divergences):
    names = divergences.F_DIVERGENCES.keys()
    assert names == F_DIVERGENCE_VALUES.keys()
    assert all(divergences.f_divergence(name).name == name for name in names)
    with pytest.raises(ValueError, match="Expected name in .*kl.*reverse_kl.*got 'hellinger'"):
        divergences.f_divergence("hellinger")


@functools.cache
def f_divergence_numbers(host):
    """Everything that the next three tests look at, compiled in one go."""
    every = host.divergences.F_DIVERGENCES
    _, weights, p, q = map(host.array, normal_grid())
    outputs = np.linspace(-12.0, 12.0, 25)

    def numbers(outputs):
        result = {}
        for name, d in every.items():
            best = d.optimal_critic(p / q)
            bounds = [(weights * p) @ t - (weights * q) @ d.conjugate(t) for t in (best, 0.9 * best - 0.01)]
            critic = d.activation(outputs)
            conjugates = d.conjugate(host.array(F_DIVERGENCE_DOMAINS[name]))
            value = (weights * q) @ d.generator(p / q)
            result[name] = [value, *bounds, conjugates, critic, d.conjugate(critic)]
        return result

    def bounds(outputs):
        return sum(d.bound(d.activation(row), d.activation(row)) for d, row in zip(every.values(), outputs))

    _, (gradients,) = host.grad(bounds, np.tile(outputs, (len(every), 1)))
    values = host.jit(numbers)(host.array(outputs))
    return {name: (*map(host.numpy, values[name]), gradient) for name, gradient in zip(every, gradients, strict=True)}


@pytest.mark.parametrize("name", F_DIVERGENCE_VALUES)
def test_an_f_divergence_has_its_value_and_its_critic_attains_the_bound(host, name):
    value, best, other, *_ = f_divergence_numbers(host)[name]
    assert value == pytest.approx(F_DIVERGENCE_VALUES[name], abs=1e-7)
    assert best == pytest.approx(F_DIVERGENCE_VALUES[name], abs=1e-7)
    assert other < min(value, best) - 1e-4


@functools.cache
def generators(host):
    every = host.divergences.F_DIVERGENCES
    return host.jit(lambda u: {name: d.generator(u) for name, d in every.items()})


@pytest.mark.parametrize("name", F_DIVERGENCE_VALUES)
def test_a_conjugate_is_the_supremum(host, name):
    def generator(u):
        return host.numpy(generators(host)(host.array(u))[name])

    for t, conjugate in zip(F_DIVERGENCE_DOMAINS[name], f_divergence_numbers(host)[name][3], strict=True):
        highest = maximum(lambda u, t=t: u * t - generator(u), (1e-12, 50.0))
        assert conjugate == pytest.approx(highest, abs=1e-8)


@pytest.mark.parametrize("name", F_DIVERGENCE_VALUES)
def test_an_activation_stays_in_the_domain_of_the_conjugate(host, name):
    *_, critic, conjugate, gradient = f_divergence_numbers(host)[name]
    assert np.isfinite(conjugate).all() and np.isfinite(gradient).all()
    assert (np.diff(critic) > 0.0).all()


def test_outside_of_the_domain_the_bound_is_minus_infinity(host, divergences):
    for name, t in {"reverse_kl": 0.1, "squared_hellinger": 1.0, "jensen_shannon": 0.7, "gan": 0.0}.items():
        bound = divergences.f_divergence(name).bound(host.array(np.zeros(3)), host.array([-1.0, t]))
        assert bound == -np.inf


def test_a_bound_is_that_of_the_sample_means(host, divergences):
    bound = divergences.f_divergence("kl").bound
    p, q = host.array([0.3, -0.2]), host.array([0.1, 0.5, -1.0])
    expected = np.mean([0.3, -0.2]) - np.mean(np.exp(np.array([0.1, 0.5, -1.0]) - 1.0))
    assert float(bound(p, q)) == pytest.approx(expected, rel=1e-14)
    for shape in ((3, 1), 0, ()):
        with pytest.raises(ValueError, match=r"Expected critic_. of shape \(N,\)"):
            bound(host.array(np.zeros(shape)), q)


# --- MMD


@pytest.mark.parametrize("estimator", ["unbiased", "biased", "linear"])
@pytest.mark.parametrize("name", KERNELS)
def test_mmd2_is_that_of_its_definition(divergences, name, estimator):
    arguments, function = KERNELS[name]
    x, y = two_samples(11, 0.5)
    y = y[:11]
    value = divergences.mmd2(x, y, kernel=getattr(divergences.kernels, name)(*arguments), estimator=estimator)
    assert float(value) == pytest.approx(naive_mmd2(function, x, y, estimator), rel=1e-10)


def test_mmd2_takes_mixtures_and_own_kernels(divergences):
    kernels = divergences.kernels
    x, y = two_samples(11, 0.5)

    def mmd2(kernel, **kwargs):
        return float(divergences.mmd2(x, y, kernel=kernel, **kwargs))

    parts = [kernels.Gaussian(0.5), kernels.Laplace(2.0)]
    values = [mmd2(kernel) for kernel in parts]
    assert mmd2(kernels.Mixture(parts)) == pytest.approx(0.5 * sum(values), rel=1e-12)
    assert mmd2(kernels.Mixture(parts, (1.0, 3.0))) == pytest.approx(values[0] + 3.0 * values[1], rel=1e-12)
    means = x.mean(0) - y.mean(0)
    assert mmd2(lambda x, y: x @ y.T, estimator="biased") == pytest.approx(means @ means, rel=1e-12)


@pytest.mark.parametrize("exclude_diagonal", [False, True])
def test_blocks_change_nothing(host, divergences, gaussian, exclude_diagonal, monkeypatch):
    x = two_samples(23, 0.5)[0]
    weights = host.array(np.random.default_rng(1).normal(size=(23, 2)))
    eye = host.array(np.eye(23))
    monkeypatch.setattr(divergences.sums, "BLOCK", 5 * len(x) * 8)

    def in_blocks(x):
        return (divergences.sums.kernel_matvec(gaussian, x, x, weights, exclude_diagonal=exclude_diagonal) ** 2).sum()

    def at_once(x):
        return (((gaussian(x, x) * (1.0 - exclude_diagonal * eye)) @ weights) ** 2).sum()

    (ours, our_gradient), (theirs, their_gradient) = (host.grad(fn, x) for fn in (in_blocks, at_once))
    assert float(ours) == pytest.approx(float(theirs), rel=1e-12)
    np.testing.assert_allclose(our_gradient[0], their_gradient[0], rtol=1e-9, atol=1e-12)


def test_distances_do_not_lose_their_digits(host, divergences):
    rng = np.random.default_rng(0)
    for dim in (2, 20):
        x, y = 1e4 + rng.normal(size=(2, 6, dim))
        exact = ((x[:, None] - y[None]) ** 2).sum(-1)
        distances = divergences.kernels.squared_distances(host.array(x), host.array(y))
        np.testing.assert_allclose(distances, exact, rtol=1e-9)


def test_the_median_of_many_points_is_that_of_some(host, divergences, monkeypatch):
    monkeypatch.setattr(divergences.kernels, "MEDIAN_POINTS", 200)
    x = np.random.default_rng(0).normal(size=(1000, 1))
    exact = np.median(np.abs(x - x.T)[np.triu_indices(len(x), 1)])
    assert float(divergences.kernels.median_distance(host.array(x))) == pytest.approx(exact, rel=0.1)


def test_the_witness_integrates_to_mmd2(host, divergences):
    x, y = two_samples(11, 1.0)
    witness = divergences.mmd_witness(x, y)
    difference = host.numpy(witness(x)).mean() - host.numpy(witness(y)).mean()
    assert difference == pytest.approx(float(divergences.mmd2(x, y, estimator="biased")), rel=1e-12)
    assert witness(np.array([[1.0, 1.0]])) > 0.0 > witness(np.array([[-1.0, -1.0]]))


def test_the_p_value_is_that_of_all_permutations_of_the_points(host, divergences):
    """Of the 20 splits of 6 points into two halves, the observed one and its mirror image have the largest MMD²."""
    x, y = np.arange(3.0)[:, None], 10.0 + np.arange(3.0)[:, None]
    result, same = (host.call(divergences.mmd_test, x, y, 2.0, num_permutations=4000, seed=1) for _ in range(2))
    assert float(result.statistic) == pytest.approx(float(divergences.mmd2(x, y, 2.0)), rel=1e-12)
    assert float(result.p_value) == pytest.approx(0.1, abs=0.02) and result.null.shape == (4000,)
    distinct = np.unique(host.numpy(result.null).round(10))
    assert len(distinct) <= 10 and distinct.max() == pytest.approx(float(result.statistic))
    assert same.p_value == result.p_value


@pytest.mark.slow
def test_the_two_sample_test_keeps_its_level(host, divergences):
    rng = np.random.default_rng(0)

    def rejections(shift, num):
        draws = rng.normal(size=(num, 2, 40, 2)) + shift * np.array([1.0, 0.0])[:, None, None]
        p_values = [float(host.call(divergences.mmd_test, *draw, seed=i).p_value) for i, draw in enumerate(draws)]
        return np.mean(np.array(p_values) <= 0.05)

    level, power = rejections(0.0, 1000), rejections(0.5, 200)
    print(f"level {level:.3f}, power at a shift of (0.5, 0.5) {power:.3f}")
    assert 0.03 <= level <= 0.07
    assert power > 0.6


# --- KALE over an RKHS


def primal(host, result, x, y, regularization):
    """KALE of the witness, from its definition."""
    h, weights = result.witness, host.numpy(result.witness.weights)
    norm = weights @ host.numpy(h.kernel(h.centers, h.centers)) @ weights
    of_x, of_y = (host.numpy(h(z)) for z in (x, y))
    return (1 + regularization) * (1 + of_x.mean() - np.exp(of_y).mean() - 0.5 * regularization * norm)


@pytest.mark.parametrize("overlap", [0.0, np.exp(-1.0), 0.9])
@pytest.mark.parametrize("regularization", [0.3, 1.0, 20.0])
def test_kale_of_two_points(divergences, gaussian, overlap, regularization):
    x, y = np.zeros((2, 1)), np.full((2, 1), np.sqrt(-2.0 * np.log(overlap)) if overlap else 100.0)
    result = divergences.kale_rkhs(x, y, gaussian, regularization)
    alpha = regularization * lambertw(np.exp(overlap / regularization) / regularization).real
    distance = alpha**2 - 2.0 * alpha * overlap + 1.0
    value = (1 + regularization) * (alpha * np.log(alpha) - alpha + 1.0 + distance / (2 * regularization))
    assert float(result.weights.sum()) == pytest.approx(alpha, abs=1e-8)
    assert float(result.value) == pytest.approx(value, abs=1e-8)
    if regularization == 1.0 and overlap < 0.9:
        assert float(result.value) == pytest.approx({0.0: 1.54406191}.get(overlap, 1.07537490), abs=1e-8)


def assert_solved(host, x, y, kernel, regularization):
    result = host.divergences.kale_rkhs(x, y, kernel, regularization)
    value, lower = float(result.value), primal(host, result, x, y, regularization)
    assert abs(value - lower) < 1e-8 * value
    assert 0.0 <= float(result.duality_gap) < 1e-8 * value
    of_y = np.exp(host.numpy(result.witness(y)))
    np.testing.assert_allclose(of_y / len(y), result.weights, rtol=1e-5, atol=1e-12)
    return result


@pytest.mark.parametrize("shift", [0.5, 4.0])
def test_the_primal_is_the_dual(host, divergences, gaussian, shift):
    x, y = two_samples(50, shift)
    values = [float(assert_solved(host, x, y, gaussian, 10.0**k).value) for k in range(-3, 5)]
    assert values == sorted(values, reverse=True)
    assert values[-1] == pytest.approx(0.5 * float(divergences.mmd2(x, y, 1.0, estimator="biased")), rel=1e-3)


@pytest.mark.slow
@pytest.mark.parametrize("num", [50, 500])
@pytest.mark.parametrize("kernel, bandwidth", [("Gaussian", 1.0), ("Gaussian", 0.05), ("Laplace", 1.0)])
def test_the_primal_is_the_dual_for_all_kernels(host, divergences, kernel, bandwidth, num):
    for shift in (0.1, 1.0, 5.0):
        x, y = two_samples(num, shift)
        for k in range(-3, 5):
            assert_solved(host, x, y, getattr(divergences.kernels, kernel)(bandwidth), 10.0**k)


@pytest.mark.slow_in("numpyro")
def test_the_gap_says_that_the_solver_gave_up(host, divergences, gaussian, monkeypatch):
    monkeypatch.setattr(divergences.rkhs, "MAX_STEPS", 1)
    x, y = two_samples(6, 4.0)
    result = divergences.kale_rkhs(x, y, gaussian, 1e-3)
    value, gap = float(result.value), float(result.duality_gap)
    assert gap > 0.01 * value
    assert value - gap == pytest.approx(float(primal(host, result, x, y, 1e-3)), rel=1e-9)


def test_random_features_solve_the_same_problem(host, divergences, gaussian):
    x, y = two_samples(50, 0.5)
    features = host.call(divergences.kernels.random_features, gaussian, 2, 300)
    result = assert_solved(host, x, y, features, 0.1)
    assert float(result.value) == pytest.approx(float(divergences.kale_rkhs(x, y, gaussian, 0.1).value), rel=0.1)


@pytest.mark.slow_in("numpyro")
def test_random_features_are_those_of_the_kernel(host, divergences):
    x = host.array(two_samples(7, 0.0)[0])
    parts = [getattr(divergences.kernels, name)(*arguments) for name, (arguments, _) in KERNELS.items()]
    kernel = divergences.kernels.Mixture(parts, (0.5, 2.0, 1.0))
    features = host.call(divergences.kernels.random_features, kernel, 2, 20_000, seed=1)
    np.testing.assert_allclose(features(x, x), kernel(x, x), atol=0.07)  # of 3.5 on the diagonal


def test_kale_and_its_witness_have_the_right_derivatives(host, divergences):
    x, y = two_samples(12, 0.7)

    def output(x, y, bandwidth, regularization):
        result = divergences.kale_rkhs(x, y, divergences.kernels.Gaussian(bandwidth), regularization)
        return result.value + 2.0 * result.witness(x[:1])[0] + 3.0 * result.weights[2]

    arguments = (x, y, np.asarray(0.8), np.asarray(0.2))
    directions = [np.random.default_rng(1).normal(size=z.shape) for z in arguments]
    _, gradients = host.grad(output, *arguments)
    high, low = (host.grad(output, *(z + h * d for z, d in zip(arguments, directions)))[0] for h in (1e-5, -1e-5))
    slope = sum((g * d).sum() for g, d in zip(gradients, directions))
    assert float(slope) == pytest.approx(float(high - low) / 2e-5, rel=1e-7)


@pytest.mark.slow_in("numpyro")
def test_the_three_rings_have_their_starting_values(divergences):
    particles, target = three_rings()
    kernel = divergences.kernels.Gaussian(np.sqrt(0.05))
    for regularization, value in THREE_RINGS_KALE.items():
        result = divergences.kale_rkhs(particles, target, kernel, regularization)
        assert float(result.value) == pytest.approx(float(value), rel=1e-2)
    mmd2 = divergences.mmd2(particles, target, kernel=kernel, estimator="biased")
    assert 0.5 * float(mmd2) == pytest.approx(0.38707, rel=1e-2)


def test_single_precision_stays_single(host, divergences, gaussian):
    double = two_samples(50, 0.5)
    x, y = (host.array(z, "float32") for z in double)
    result = divergences.kale_rkhs(x, y, gaussian, 0.01)
    witness = divergences.mmd_witness(x, y)
    laplace = divergences.mmd2(x, y, kernel=divergences.kernels.Laplace(1.0))
    values = (result.value, result.weights, result.duality_gap, laplace, witness(x))
    assert {host.numpy(value).dtype for value in values} == {np.dtype("float32")}
    assert 0.0 <= float(result.duality_gap) < 1e-4 * float(result.value)
    assert float(result.value) == pytest.approx(float(divergences.kale_rkhs(*double, gaussian, 0.01).value), rel=1e-3)


# --- errors


@pytest.mark.parametrize("name", ["mmd2", "mmd_witness", "kale_rkhs", "mmd_test"])
def test_bad_samples_are_refused(host, divergences, name):
    x, function = np.zeros((4, 2)), getattr(divergences, name)
    if name == "mmd_test":
        function = functools.partial(host.call, function)
    for bad in (np.zeros(4), np.zeros((1, 2)), np.zeros((0, 2)), np.zeros((4, 3)), np.zeros((2, 4, 2))):
        with pytest.raises(ValueError, match=r"Expected x \(M, D\) and y \(N, D\) with M, N >= 2"):
            function(bad, x)
    with pytest.raises(ValueError, match="finite entries in y; got NaN or infinity in 1 rows"):
        function(x, np.array([[0.0, np.nan], [1.0, 1.0]]))
    with pytest.raises(ValueError, match="Expected samples whose median distance is positive; got 0"):
        function(x, x)


@pytest.mark.parametrize("name", ["mmd2", "mmd_test", "kale_rkhs", "frechet_distance"])
def test_statistics_are_finite_and_of_real_numbers(host, divergences, name):
    """A kernel, or squares, that overflow on samples of the same law; complex numbers."""
    module = host.package.metrics if name == "frechet_distance" else divergences
    statistic = functools.partial(host.call, getattr(module, name)) if name == "mmd_test" else getattr(module, name)
    kernel = {} if name == "frechet_distance" else {"kernel": lambda x, y: x @ y.T}
    x, y = (1e200 * np.random.default_rng(i).normal(size=(8, 2)) for i in range(2))
    with pytest.raises(ValueError, match=r"Expected a finite (MMD²|KALE|Fréchet distance|mean square of the features)"):
        statistic(x, y, **kernel)
    with pytest.raises(TypeError, match="Expected y to be real numbers; got an array of complex128"):
        statistic(np.eye(2), np.eye(2) * 1j, **kernel)


def test_whole_numbers_are_taken(host, divergences):
    witness = divergences.mmd_witness(np.eye(2, dtype=int), np.zeros((3, 2), int))
    assert host.numpy(witness.weights).dtype == np.float64


def test_bad_arguments_are_refused(host, divergences, gaussian):
    kernels, mmd2 = divergences.kernels, divergences.mmd2
    x, y = two_samples(5, 0.0)
    with pytest.raises(ValueError, match="Expected estimator in .*unbiased.*biased.*linear.*got 'quadratic'"):
        mmd2(x, y, estimator="quadratic")
    with pytest.raises(ValueError, match="as many rows in x as in y for the linear estimator; got 5 and 8"):
        mmd2(x, y, estimator="linear")
    with pytest.raises(ValueError, match="Expected a bandwidth or a kernel; got both"):
        mmd2(x, y, 1.0, kernel=gaussian)
    with pytest.raises(ValueError, match="num_permutations >= 1; got 0"):
        host.call(divergences.mmd_test, x, y, num_permutations=0)
    for regularization in (0.0, -1.0, np.nan):
        with pytest.raises(ValueError, match="Expected regularization > 0"):
            divergences.kale_rkhs(x, y, gaussian, regularization)
    with pytest.raises(TypeError, match="Expected a kernel, a callable"):
        mmd2(x, y, kernel="gaussian")
    for bandwidth in (0.0, -1.0, np.nan, np.ones(2)):
        with pytest.raises(ValueError, match="Expected a positive scalar as bandwidth"):
            kernels.Laplace(bandwidth)
    with pytest.raises(ValueError, match="Expected power > 0; got 0"):
        kernels.InverseMultiquadric(1.0, 0.0)
    for weights in ((1.0,), (1.0, -1.0), (1.0, np.nan)):
        with pytest.raises(ValueError, match="Expected weights (>= 0|for each of 2 kernels)"):
            kernels.Mixture([gaussian, gaussian], weights)
    with pytest.raises(ValueError, match="Expected weights for each of 0 kernels"):
        kernels.Mixture([])
    with pytest.raises(ValueError, match="Expected a kernel with a bandwidth"):
        kernels.Gaussian()(x, y)
    with pytest.raises(TypeError, match="Expected a kernel of `divergences.kernels`"):
        host.call(kernels.random_features, lambda x, y: x @ y.T, 2, 10)
