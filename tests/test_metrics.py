"""Metrics of samples, against definitions written out in NumPy and against other implementations."""

import numpy as np
import pytest

RNG = np.random.default_rng(0)
X, Y = RNG.normal(size=(60, 3)), 0.5 + RNG.normal(size=(80, 3))


def distances(a, b):
    return np.sqrt(((a[:, None] - b[None]) ** 2).sum(-1))


def prdc(real, fake, k):
    """The definitions of the authors of arXiv:2002.09797."""
    of_real, of_fake = (np.sort(distances(a, a), 1)[:, k] for a in (real, fake))
    between = distances(real, fake)
    return {
        "precision": (between < of_real[:, None]).any(0).mean(),
        "recall": (between < of_fake[None]).any(1).mean(),
        "density": (between < of_real[:, None]).sum(0).mean() / k,
        "coverage": (between.min(1) < of_real).mean(),
    }


@pytest.mark.parametrize("k", [1, 5])
def test_neighbours_are_those_of_the_definitions(host, k):
    metrics, expected = host.package.metrics, prdc(Y, X, k)
    for fn in (metrics.precision_recall, metrics.density_coverage):
        found = fn(host.array(X), host.array(Y), num_neighbors=k)._asdict()
        assert {name: pytest.approx(expected[name], rel=1e-12) for name in found} == {
            name: float(value) for name, value in found.items()
        }


def test_the_same_sample_and_one_far_away(host):
    metrics = host.package.metrics
    x = host.array(X)
    assert [float(v) for v in metrics.precision_recall(x, x)] == [1.0, 1.0]
    assert [float(v) for v in metrics.precision_recall(x + 100.0, x)] == [0.0, 0.0]
    assert [float(v) for v in metrics.density_coverage(x + 100.0, x)] == [0.0, 0.0]
    assert float(metrics.density_coverage(x, x).coverage) == 1.0


def cubic(a, b):
    return (a @ b.T / a.shape[1] + 1) ** 3


def test_kernel_distance_is_the_mean_over_blocks(host):
    values = []
    for a, b in ((X[:30], Y[:40]), (X[30:], Y[40:])):
        of_a, of_b = (cubic(c, c)[~np.eye(len(c), dtype=bool)].mean() for c in (a, b))
        values.append(of_a + of_b - 2 * cubic(a, b).mean())
    found = host.package.metrics.kernel_distance(host.array(X), host.array(Y))
    assert float(found.value) == pytest.approx(np.mean(values), rel=1e-10)
    assert float(found.std_error) == pytest.approx(np.std(values, ddof=1) / np.sqrt(2), rel=1e-10)


def test_kernel_distance_is_unbiased_and_its_error_is_right(host):
    rng, found = np.random.default_rng(1), []
    for _ in range(60):
        x, y = rng.normal(size=(2, 4000, 2))
        found.append([float(v) for v in host.package.metrics.kernel_distance(host.array(x), host.array(y))])
    values, errors = np.array(found).T
    assert abs(values.mean()) < 4 * values.std() / np.sqrt(60)
    assert 0.7 < np.sqrt(np.mean(errors**2)) / values.std() < 1.4


def test_frechet_distance_is_that_of_scipy(host):
    linalg = pytest.importorskip("scipy.linalg")
    covs = [np.cov(a.T) for a in (X, Y)]
    root = linalg.sqrtm(covs[0] @ covs[1]).real
    expected = ((X.mean(0) - Y.mean(0)) ** 2).sum() + np.trace(covs[0] + covs[1] - 2 * root)
    found = host.package.metrics.frechet_distance(host.array(X), host.array(Y))
    assert float(found) == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("name", ["precision_recall", "density_coverage"])
@pytest.mark.parametrize(
    "kwargs, error, match",
    [
        ({"num_neighbors": 0}, ValueError, "num_neighbors"),
        ({"num_neighbors": 80}, ValueError, "num_neighbors"),
        ({"num_neighbors": 1.5}, TypeError, "Expected num_neighbors to be an integer"),
    ],
)
def test_the_number_of_neighbours_is_checked(host, name, kwargs, error, match):
    with pytest.raises(error, match=match):
        getattr(host.package.metrics, name)(host.array(X), host.array(Y), **kwargs)


@pytest.mark.parametrize("name", ["precision_recall", "density_coverage", "kernel_distance"])
def test_features_are_checked(host, name):
    fn = getattr(host.package.metrics, name)
    with pytest.raises(ValueError, match=r"Expected x \(M, D\) and y \(N, D\)"):
        fn(host.array(X), host.array(Y[:, :2]))
    with pytest.raises(ValueError, match="Expected finite entries in y"):
        fn(host.array(X), host.array(np.where(Y > 1, np.nan, Y)))
    if name == "kernel_distance":
        with pytest.raises(ValueError, match="Expected at least 4 rows of x and of y, for two blocks; got 3"):
            fn(host.array(X[:3]), host.array(Y))
