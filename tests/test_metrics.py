"""Metrics of samples, against definitions written out in NumPy and against other implementations."""

import sys
import types

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


def ratio_of(host, x, base, y, **kwargs):
    found = host.call(host.package.metrics.frechet_ratio, *map(host.array, (x, base, y)), **kwargs)
    return [float(value) for value in found]


def test_the_ratio_of_distances_is_their_ratio(host):
    rng, distance = np.random.default_rng(2), host.package.metrics.frechet_distance
    x, base, y = (shift + rng.normal(size=(200, 3)) for shift in (0.5, 1.0, 0.0))
    value, _ = ratio_of(host, x, base, y, num_resamples=2)
    expected = float(distance(host.array(x), host.array(y))) / float(distance(host.array(base), host.array(y)))
    assert value == pytest.approx(expected, rel=1e-12)
    assert ratio_of(host, base, base, y, num_resamples=2)[0] == 1.0


def test_the_error_of_the_ratio_is_its_spread_over_repeats(host):
    rng, found = np.random.default_rng(3), []
    for _ in range(30):
        x, base, y = (shift + rng.normal(size=(400, 2)) for shift in (1.0, 2.0, 0.0))
        found.append(ratio_of(host, x, base, y))
    values, errors = np.array(found).T
    assert abs(np.log(errors.mean() / values.std(ddof=1))) < np.log(1.6)  # 30 repeats know their spread to 13 %
    assert abs(values.mean() - 0.25) < 4 * values.std(ddof=1) / np.sqrt(30) + 0.01  # 1 / 4, but for the bias


def test_a_ratio_of_what_does_not_fit_is_refused(host):
    with pytest.raises(ValueError, match=r"as many draws of x as of base; got shapes"):
        ratio_of(host, X[:50], X, Y)
    with pytest.raises(ValueError, match="distance is above 0"):
        ratio_of(host, np.zeros((5, 2)), np.zeros((5, 2)), np.zeros((6, 2)))
    with pytest.raises(ValueError, match=r"num_resamples.*got 1"):
        ratio_of(host, X, X, Y, num_resamples=1)


@pytest.fixture
def inception(monkeypatch):
    """torch-fidelity's network, replaced by one whose features are the mean of each channel, in bytes."""
    torch = pytest.importorskip("torch")

    class Network:
        def __init__(self, name, features, feature_extractor_weights_path):
            self.features = features

        def __call__(self, images):
            assert images.dtype == torch.uint8 and images.shape[1] == 3 and self.features == ["2048"]
            return (images.float().mean((2, 3)),)

    module = types.SimpleNamespace(FeatureExtractorInceptionV3=Network)
    monkeypatch.setitem(sys.modules, "torch_fidelity", types.ModuleType("torch_fidelity"))
    monkeypatch.setitem(sys.modules, "torch_fidelity.feature_extractor_inceptionv3", module)


def test_inception_gets_bytes_in_three_channels(host, inception, tmp_path):
    weights, metrics = tmp_path / "weights.pth", host.package.metrics
    weights.touch()
    images = np.random.default_rng(0).uniform(-1, 1, (7, 1, 5, 5)).astype(np.float32)
    found = metrics.inception_features(images, weights, batch_size=3, progress_bar=False)
    assert found.shape == (7, 3)
    np.testing.assert_allclose(found, np.repeat(127.5 * images.mean((2, 3)) + 127.5, 3, 1), atol=0.5)
    np.testing.assert_array_equal(metrics.inception_features(np.full((2, 3, 4, 4), 9, np.uint8), weights), 9.0)


@pytest.mark.parametrize(
    "images, kwargs, error, match",
    [
        (np.zeros((2, 784), np.float32), {}, ValueError, r"Expected images of shape .*; got \(2, 784\)"),
        (np.full((2, 3, 4, 4), 7.0), {}, ValueError, r"Expected images in \[-1, 1\] or uint8"),
        (np.full((2, 3, 4, 4), np.nan), {}, ValueError, r"Expected images in \[-1, 1\] or uint8"),
        (np.zeros((2, 3, 4, 4)), {"layer": "512"}, ValueError, "Expected layer in .*; got '512'"),
        (np.zeros((2, 3, 4, 4)), {}, FileNotFoundError, "Fetch weights-inception-2015-12-05-6726825d.pth"),
    ],
)
def test_what_inception_cannot_take_is_refused(host, tmp_path, images, kwargs, error, match):
    with pytest.raises(error, match=match):
        host.package.metrics.inception_features(images, tmp_path / "none.pth", **kwargs)


def test_kernel_distance_is_that_of_torch_fidelity(host):
    """Its estimator, written out: the mean of unbiased MMD² over random subsets, here of the whole of both samples."""
    rng = np.random.default_rng(3)
    x, y = rng.normal(size=(900, 6)), 0.3 + rng.normal(size=(900, 6))
    subsets = []
    for _ in range(100):
        a, b = (z[rng.choice(len(z), 300, replace=False)] for z in (x, y))
        of_a, of_b, of_both = cubic(a, a), cubic(b, b), cubic(a, b)
        within = sum((k.sum() - np.trace(k)) / (300 * 299) for k in (of_a, of_b))
        subsets.append(within - 2 * of_both.mean())
    value, error = (float(v) for v in host.package.metrics.kernel_distance(host.array(x), host.array(y)))
    assert abs(value - np.mean(subsets)) < 3 * error
