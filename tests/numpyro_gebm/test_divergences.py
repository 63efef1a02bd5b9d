"""f-divergences, MMD and KALE over an RKHS: against their definitions."""

import functools

import equinox as eqx
import jax
import jax.numpy as jnp
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

from numpyro_gebm.divergences import (
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


@functools.cache
def f_divergence_numbers():
    """Everything that the next three tests look at, compiled in one go."""
    _, weights, p, q = normal_grid()
    outputs = np.linspace(-12.0, 12.0, 25)

    @jax.jit
    def numbers():
        result = {}
        for name, d in F_DIVERGENCES.items():
            best = d.optimal_critic(p / q)
            bounds = [(weights * p) @ t - (weights * q) @ d.conjugate(t) for t in (best, 0.9 * best - 0.01)]
            gradient = jax.grad(lambda v, d=d: d.bound(d.activation(v), d.activation(v)))(outputs)
            critic = d.activation(outputs)
            conjugates = d.conjugate(jnp.array(F_DIVERGENCE_DOMAINS[name]))
            value = (weights * q) @ d.generator(p / q)
            result[name] = (value, *bounds, conjugates, critic, d.conjugate(critic), gradient)
        return result

    return jax.device_get(numbers())


@pytest.mark.parametrize("name", F_DIVERGENCE_VALUES)
def test_an_f_divergence_has_its_value_and_its_critic_attains_the_bound(name):
    value, best, other, *_ = f_divergence_numbers()[name]
    assert value == pytest.approx(F_DIVERGENCE_VALUES[name], abs=1e-7)
    assert best == pytest.approx(F_DIVERGENCE_VALUES[name], abs=1e-7)
    assert other < best - 1e-4


@functools.cache
def generators():
    return jax.jit(lambda u: {name: d.generator(u) for name, d in F_DIVERGENCES.items()})


@pytest.mark.parametrize("name", F_DIVERGENCE_VALUES)
def test_a_conjugate_is_the_supremum(name):
    for t, conjugate in zip(F_DIVERGENCE_DOMAINS[name], f_divergence_numbers()[name][3]):
        highest = maximum(lambda u, t=t: u * t - np.asarray(generators()(u)[name]), (1e-12, 50.0))
        assert conjugate == pytest.approx(highest, abs=1e-8)


@pytest.mark.parametrize("name", F_DIVERGENCE_VALUES)
def test_an_activation_stays_in_the_domain_of_the_conjugate(name):
    *_, critic, conjugate, gradient = f_divergence_numbers()[name]
    assert np.isfinite(conjugate).all() and np.isfinite(gradient).all()
    assert (np.diff(critic) > 0.0).all()


def test_outside_of_the_domain_the_bound_is_minus_infinity():
    for name, t in {"reverse_kl": 0.1, "squared_hellinger": 1.0, "jensen_shannon": 0.7, "gan": 0.0}.items():
        assert f_divergence(name).bound(jnp.zeros(3), jnp.array([-1.0, t])) == -jnp.inf


def test_a_bound_is_that_of_the_sample_means():
    p, q = jnp.array([0.3, -0.2]), jnp.array([0.1, 0.5, -1.0])
    expected = np.mean([0.3, -0.2]) - np.mean(np.exp(np.array([0.1, 0.5, -1.0]) - 1.0))
    assert f_divergence("kl").bound(p, q) == pytest.approx(expected, rel=1e-14)
    for bad in (jnp.zeros((3, 1)), jnp.zeros(0), jnp.zeros(())):
        with pytest.raises(ValueError, match=r"Expected critic_p \(M,\) and critic_q \(N,\)"):
            f_divergence("kl").bound(bad, q)


# --- MMD


@pytest.mark.parametrize(
    "name, estimator",
    [("Gaussian", "unbiased"), ("Gaussian", "biased"), ("Laplace", "linear"), ("InverseMultiquadric", "unbiased")],
)
def test_mmd2_is_that_of_its_definition(name, estimator):
    arguments, function = KERNELS[name]
    x, y = two_samples(11, 0.5)
    y = y[:11]
    value = mmd2(x, y, kernel=getattr(kernels, name)(*arguments), estimator=estimator)
    assert float(value) == pytest.approx(naive_mmd2(function, x, y, estimator), rel=1e-10)


def test_mmd2_takes_mixtures_and_own_kernels():
    x, y = two_samples(11, 0.5)
    parts = [kernels.Gaussian(0.5), kernels.Laplace(2.0)]
    values = [float(mmd2(x, y, kernel=kernel)) for kernel in parts]
    assert float(mmd2(x, y, kernel=kernels.Mixture(parts))) == pytest.approx(0.5 * sum(values), rel=1e-12)
    assert float(mmd2(x, y, kernel=kernels.Mixture(parts, (1.0, 3.0)))) == pytest.approx(
        values[0] + 3.0 * values[1], rel=1e-12
    )
    means = x.mean(0) - y.mean(0)
    assert float(mmd2(x, y, kernel=lambda x, y: x @ y.T, estimator="biased")) == pytest.approx(means @ means, rel=1e-12)


@pytest.mark.parametrize("exclude_diagonal", [False, True])
def test_blocks_change_nothing(exclude_diagonal, monkeypatch):
    x = jnp.asarray(two_samples(23, 0.5)[0])
    weights = jnp.asarray(np.random.default_rng(1).normal(size=(23, 2)))
    monkeypatch.setattr(sums, "BLOCK", 5 * len(x) * 8)

    def in_blocks(x):
        return sums.kernel_matvec(GAUSSIAN, x, x, weights, exclude_diagonal=exclude_diagonal)

    def at_once(x):
        return (GAUSSIAN(x, x) * (1.0 - exclude_diagonal * jnp.eye(len(x)))) @ weights

    (ours, our_gradient), (theirs, their_gradient) = (
        jax.jit(jax.value_and_grad(lambda x, fn=fn: (fn(x) ** 2).sum()))(x) for fn in (in_blocks, at_once)
    )
    assert float(ours) == pytest.approx(float(theirs), rel=1e-12)
    np.testing.assert_allclose(our_gradient, their_gradient, rtol=1e-9, atol=1e-12)
    assert "scan" in str(jax.make_jaxpr(in_blocks)(x)) and "scan" not in str(jax.make_jaxpr(at_once)(x))


def test_distances_do_not_lose_their_digits():
    rng = np.random.default_rng(0)
    for dim in (2, 20):
        x, y = 1e4 + rng.normal(size=(2, 6, dim))
        exact = ((x[:, None] - y[None]) ** 2).sum(-1)
        np.testing.assert_allclose(kernels.squared_distances(jnp.asarray(x), jnp.asarray(y)), exact, rtol=1e-9)


def test_the_median_of_many_points_is_that_of_some(monkeypatch):
    monkeypatch.setattr(kernels, "MEDIAN_POINTS", 200)
    x = np.random.default_rng(0).normal(size=(1000, 1))
    exact = np.median(np.abs(x - x.T)[np.triu_indices(len(x), 1)])
    assert float(kernels.median_distance(jnp.asarray(x))) == pytest.approx(exact, rel=0.1)


def test_the_witness_integrates_to_mmd2():
    x, y = two_samples(11, 1.0)
    witness = mmd_witness(x, y)
    difference = np.mean(witness(x)) - np.mean(witness(y))
    assert difference == pytest.approx(float(mmd2(x, y, estimator="biased")), rel=1e-12)
    assert witness(np.array([[1.0, 1.0]])) > 0.0 > witness(np.array([[-1.0, -1.0]]))


def test_the_p_value_is_that_of_all_permutations_of_the_points():
    """Of the 20 splits of 6 points into two halves, the observed one and its mirror image have the largest MMD²."""
    x, y = np.arange(3.0)[:, None], 10.0 + np.arange(3.0)[:, None]
    result = mmd_test(x, y, 2.0, num_permutations=4000, rng_key=jax.random.key(0))
    assert float(result.statistic) == pytest.approx(float(mmd2(x, y, 2.0)), rel=1e-12)
    assert float(result.p_value) == pytest.approx(0.1, abs=0.02) and result.null.shape == (4000,)
    distinct = np.unique(np.asarray(result.null).round(10))
    assert len(distinct) <= 10 and distinct.max() == pytest.approx(float(result.statistic))
    same = mmd_test(x, y, 2.0, num_permutations=4000, rng_key=jax.random.key(0))
    assert same.p_value == result.p_value


@pytest.mark.slow
def test_the_two_sample_test_keeps_its_level():
    rng = np.random.default_rng(0)
    test = jax.jit(lambda x, y, key: mmd_test(x, y, rng_key=key).p_value)

    def rejections(shift, num):
        draws = rng.normal(size=(num, 2, 40, 2)) + shift * np.array([1.0, 0.0])[:, None, None]
        return np.mean([test(*draw, jax.random.key(i)) <= 0.05 for i, draw in enumerate(draws)])

    level, power = rejections(0.0, 1000), rejections(0.5, 200)
    print(f"level {level:.3f}, power at a shift of (0.5, 0.5) {power:.3f}")
    assert 0.03 <= level <= 0.07
    assert power > 0.6


# --- KALE over an RKHS


def primal(result, x, y, regularization):
    """KALE of the witness, from its definition."""
    h, weights = result.witness, np.asarray(result.witness.weights)
    norm = weights @ np.asarray(eqx.filter_jit(h.kernel)(h.centers, h.centers)) @ weights
    return (1 + regularization) * (1 + np.mean(h(x)) - np.exp(h(y)).mean() - 0.5 * regularization * norm)


@pytest.mark.parametrize("overlap", [0.0, np.exp(-1.0), 0.9])
@pytest.mark.parametrize("regularization", [0.3, 1.0, 20.0])
def test_kale_of_two_points(overlap, regularization):
    x, y = np.zeros((2, 1)), np.full((2, 1), np.sqrt(-2.0 * np.log(overlap)) if overlap else 100.0)
    result = kale_rkhs(x, y, GAUSSIAN, regularization)
    alpha = regularization * lambertw(np.exp(overlap / regularization) / regularization).real
    distance = alpha**2 - 2.0 * alpha * overlap + 1.0
    value = (1 + regularization) * (alpha * np.log(alpha) - alpha + 1.0 + distance / (2 * regularization))
    assert np.sum(result.weights) == pytest.approx(alpha, abs=1e-8)
    assert float(result.value) == pytest.approx(value, abs=1e-8)
    if regularization == 1.0 and overlap < 0.9:
        assert float(result.value) == pytest.approx({0.0: 1.54406191}.get(overlap, 1.07537490), abs=1e-8)


def assert_solved(x, y, kernel, regularization):
    result = kale_rkhs(x, y, kernel, regularization)
    value, lower = float(result.value), primal(result, x, y, regularization)
    assert abs(value - lower) < 1e-8 * value
    assert 0.0 <= float(result.duality_gap) < 1e-8 * value
    np.testing.assert_allclose(np.exp(result.witness(y)) / len(y), result.weights, rtol=1e-5, atol=1e-12)
    return result


@pytest.mark.parametrize("shift", [0.5, 4.0])
def test_the_primal_is_the_dual(shift):
    x, y = two_samples(50, shift)
    values = [float(assert_solved(x, y, GAUSSIAN, 10.0**k).value) for k in range(-3, 5)]
    assert values == sorted(values, reverse=True)
    assert values[-1] == pytest.approx(0.5 * float(mmd2(x, y, 1.0, estimator="biased")), rel=1e-3)


@pytest.mark.slow
@pytest.mark.parametrize("num", [50, 500])
@pytest.mark.parametrize("kernel", [GAUSSIAN, kernels.Gaussian(0.05), kernels.Laplace(1.0)], ids=str)
def test_the_primal_is_the_dual_for_all_kernels(kernel, num):
    for shift in (0.1, 1.0, 5.0):
        x, y = two_samples(num, shift)
        for k in range(-3, 5):
            assert_solved(x, y, kernel, 10.0**k)


@pytest.mark.slow  # Pyro's twin is not: there is nothing to compile
def test_the_gap_says_that_the_solver_gave_up(monkeypatch):
    monkeypatch.setattr(rkhs, "MAX_STEPS", 1)
    x, y = two_samples(6, 4.0)
    result = kale_rkhs(x, y, GAUSSIAN, 1e-3)
    value, gap = float(result.value), float(result.duality_gap)
    assert gap > 0.01 * value
    assert value - gap == pytest.approx(float(primal(result, x, y, 1e-3)), rel=1e-9)


def test_random_features_solve_the_same_problem():
    x, y = two_samples(50, 0.5)
    features = kernels.random_features(GAUSSIAN, 2, 300, rng_key=jax.random.key(0))
    result = assert_solved(x, y, features, 0.1)
    assert float(result.value) == pytest.approx(float(kale_rkhs(x, y, GAUSSIAN, 0.1).value), rel=0.1)
    text = str(jax.make_jaxpr(lambda x, y: kale_rkhs(x, y, features, 0.1))(*[jnp.zeros((10**6, 2))] * 2))
    assert "1000000,1000000" not in text and "600,600" in text


@pytest.mark.slow
def test_random_features_are_those_of_the_kernel():
    x = jnp.asarray(two_samples(7, 0.0)[0])
    parts = [getattr(kernels, name)(*arguments) for name, (arguments, _) in KERNELS.items()]
    kernel = kernels.Mixture(parts, (0.5, 2.0, 1.0))
    features = kernels.random_features(kernel, 2, 20_000, rng_key=jax.random.key(1))
    np.testing.assert_allclose(features(x, x), kernel(x, x), atol=0.07)  # of 3.5 on the diagonal


def test_kale_and_its_witness_have_the_right_derivatives():
    x, y = two_samples(12, 0.7)

    def output(x, y, bandwidth, regularization):
        result = kale_rkhs(x, y, kernels.Gaussian(bandwidth), regularization)
        return result.value + 2.0 * result.witness(x[:1])[0] + 3.0 * result.weights[2]

    arguments = (x, y, np.asarray(0.8), np.asarray(0.2))
    directions = [np.random.default_rng(1).normal(size=z.shape) for z in arguments]
    value_and_grad = jax.jit(jax.value_and_grad(output, argnums=(0, 1, 2, 3)))
    _, gradients = value_and_grad(*arguments)
    high, low = (value_and_grad(*(z + h * d for z, d in zip(arguments, directions)))[0] for h in (1e-5, -1e-5))
    slope = sum((np.asarray(g) * d).sum() for g, d in zip(gradients, directions))
    assert float(slope) == pytest.approx(float(high - low) / 2e-5, rel=1e-7)


@pytest.mark.slow  # Pyro's twin is not: there is nothing to compile
def test_the_three_rings_have_their_starting_values():
    particles, target = three_rings()
    kernel = kernels.Gaussian(np.sqrt(0.05))
    for regularization, value in THREE_RINGS_KALE.items():
        assert kale_rkhs(particles, target, kernel, regularization).value.item() == pytest.approx(
            float(value), rel=1e-2
        )
    assert 0.5 * float(mmd2(particles, target, kernel=kernel, estimator="biased")) == pytest.approx(0.38707, rel=1e-2)


def test_single_precision_stays_single():
    x, y = (z.astype(np.float32) for z in two_samples(50, 0.5))
    result = kale_rkhs(x, y, GAUSSIAN, 0.01)
    assert {leaf.dtype for leaf in jax.tree.leaves((result.value, result.weights, result.duality_gap))} == {x.dtype}
    assert 0.0 <= float(result.duality_gap) < 1e-4 * float(result.value)
    assert float(result.value) == pytest.approx(
        float(kale_rkhs(x.astype(float), y.astype(float), GAUSSIAN, 0.01).value), rel=1e-3
    )
    assert mmd_witness(x, y)(x).dtype == jnp.float32


# --- errors


@pytest.mark.parametrize(
    "function", [mmd2, mmd_witness, kale_rkhs, lambda x, y: mmd_test(x, y, rng_key=jax.random.key(0))]
)
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
    assert mmd_witness(np.eye(2, dtype=int), np.zeros((3, 2), int)).weights.dtype == float


def test_bad_arguments_are_refused():
    x, y = two_samples(5, 0.0)
    with pytest.raises(ValueError, match="unbiased, biased, linear as estimator; got 'quadratic'"):
        mmd2(x, y, estimator="quadratic")
    with pytest.raises(ValueError, match="as many rows in x as in y for the linear estimator; got 5 and 8"):
        mmd2(x, y, estimator="linear")
    with pytest.raises(ValueError, match="Expected a bandwidth or a kernel; got both"):
        mmd2(x, y, 1.0, kernel=GAUSSIAN)
    with pytest.raises(ValueError, match="num_permutations >= 1; got 0"):
        mmd_test(x, y, num_permutations=0, rng_key=jax.random.key(0))
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
        kernels.random_features(lambda x, y: x @ y.T, 2, 10, rng_key=jax.random.key(0))
