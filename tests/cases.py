"""Exact cases and the statistical assertion that the tests of both packages share; NumPy only."""

import dataclasses

import numpy as np


@dataclasses.dataclass(frozen=True)
class LinearGaussian:
    """GEBM with generator `B(z) = W z + b`, energy `E(x) = (x - c)' M (x - c) / 2` and prior N(0, I).

    At inverse temperature beta the latent law is Gaussian with precision `I + beta W'MW`.
    """

    W: np.ndarray
    b: np.ndarray
    c: np.ndarray
    M: np.ndarray

    def covariance(self, beta):
        """Covariance of z."""
        return np.linalg.inv(np.eye(self.W.shape[1]) + beta * self.W.T @ self.M @ self.W)

    def mean(self, beta):
        """Mean of z."""
        return self.covariance(beta) @ (beta * self.W.T @ self.M @ (self.c - self.b))

    def log_partition(self, beta):
        """log E exp(-beta E(B(z))), z ~ N(0, I)."""
        gap = self.b - self.c
        precision = np.linalg.inv(self.covariance(beta))
        linear = beta * self.W.T @ self.M @ gap
        quadratic = linear @ np.linalg.solve(precision, linear) - beta * gap @ self.M @ gap
        return 0.5 * quadratic - 0.5 * np.linalg.slogdet(precision)[1]


def linear_gaussian():
    """A correlated case with two latents and three outputs; nothing in it is symmetric."""
    return LinearGaussian(
        W=np.array([[1.0, 0.5], [-0.3, 0.8], [0.2, -1.1]]),
        b=np.array([0.3, -0.2, 0.1]),
        c=np.array([1.0, 0.5, -0.4]),
        M=np.array([[1.0, 0.3, 0.0], [0.3, 0.7, -0.2], [0.0, -0.2, 1.5]]),
    )


@dataclasses.dataclass(frozen=True)
class Skewed:
    """A correlated, skewed law: `x = shift + L y`, the `y_i` independent logarithms of Gamma(a_i, 1) variables.

    Its potential is `sum_i exp(y_i) - a_i y_i`, up to a constant.
    """

    L: np.ndarray
    shift: np.ndarray
    a: np.ndarray

    def mean(self):
        """Mean of x."""
        from scipy.special import digamma

        return self.shift + self.L @ digamma(self.a)

    def covariance(self):
        """Covariance of x."""
        from scipy.special import polygamma

        return self.L @ np.diag(polygamma(1, self.a)) @ self.L.T


def skewed():
    """Five dimensions."""
    L = np.tril(np.random.default_rng(1).normal(size=(5, 5)), -1) * 0.6 + np.diag([1.0, 0.7, 1.5, 0.9, 1.2])
    return Skewed(L=L, shift=np.array([0.5, -1.0, 0.0, 2.0, 0.3]), a=np.array([1.0, 2.0, 0.7, 1.5, 3.0]))


def assert_mean(draws, expected, *, z_max=4.0, min_ess=2000.0):
    """Assert that the mean of draws of shape (chain, draw) is `expected` within Monte Carlo standard errors."""
    import arviz as az

    draws = np.asarray(draws, dtype=np.float64)
    ess = float(az.ess(draws, method="mean"))
    assert ess >= min_ess, f"effective sample size {ess:.0f} < {min_ess:.0f}"
    error = draws.std(ddof=1) / np.sqrt(ess)
    z = (draws.mean() - expected) / error
    assert abs(z) <= z_max, f"mean {draws.mean():.5f} is {z:.1f} standard errors from {expected:.5f}"


def assert_moments(draws, mean, covariance, **kwargs):
    """Assert first and second moments of draws of shape (chain, draw, d), each entry by `assert_mean`."""
    draws, mean, covariance = np.asarray(draws), np.asarray(mean), np.asarray(covariance)
    for i in range(draws.shape[-1]):
        assert_mean(draws[..., i], mean[i], **kwargs)
        for j in range(i + 1):
            product = (draws[..., i] - mean[i]) * (draws[..., j] - mean[j])
            assert_mean(product, covariance[i, j], **kwargs)


@dataclasses.dataclass(frozen=True)
class Hierarchy:
    """Observed components of linear-Gaussian draws that share an unknown offset.

    `mu ~ N(0, 1)`; for every row i, `x_i ~ GEBM` at `beta`, `y_i ~ N(x_i[0] + mu, noise)`.
    """

    case: LinearGaussian
    beta: float
    y: np.ndarray
    noise: float

    def posterior(self):
        """Mean and covariance of `(mu, z_1, ..., z_n)`."""
        n, d = len(self.y), self.case.W.shape[1]
        prior = np.linalg.inv(self.case.covariance(self.beta))
        precision = np.zeros((1 + n * d, 1 + n * d))
        precision[0, 0] = 1.0
        linear = np.zeros(1 + n * d)
        for i, y in enumerate(self.y):
            block = slice(1 + i * d, 1 + (i + 1) * d)
            precision[block, block] += prior
            linear[block] += prior @ self.case.mean(self.beta)
            row = np.zeros(1 + n * d)
            row[0], row[block] = 1.0, self.case.W[0]
            precision += np.outer(row, row) / self.noise**2
            linear += row * (y - self.case.b[0]) / self.noise**2
        covariance = np.linalg.inv(precision)
        return covariance @ linear, covariance


def hierarchy():
    """Three rows, of which one is far out."""
    return Hierarchy(linear_gaussian(), beta=1.5, y=np.array([0.4, 1.9, -0.3]), noise=0.5)


#: D_f(N(1, 1), N(0, 1)) of every f-divergence.
F_DIVERGENCE_VALUES = {
    "kl": 0.5,
    "reverse_kl": 0.5,
    "pearson_chi2": 1.71828183,
    "squared_hellinger": 0.23500619,
    "jensen_shannon": 0.22284296,
    "gan": -1.16345140,
    "total_variation": 0.38292492,
}
#: Points of the domains of their conjugates.
F_DIVERGENCE_DOMAINS = {
    "kl": (-2.0, 0.0, 1.5),
    "reverse_kl": (-3.0, -1.0, -0.2),
    "pearson_chi2": (-1.5, 0.0, 2.0),
    "squared_hellinger": (-2.0, 0.0, 0.6),
    "jensen_shannon": (-2.0, -0.3, 0.5),
    "gan": (-2.0, -0.5, -0.1),
    "total_variation": (-0.4, 0.0, 0.5),
}


def normal_grid():
    """A fine grid, the weights of a quadrature on it, and the densities of N(1, 1) and N(0, 1).

    The densities are equal at a point between two cells, where the critic of the total variation jumps.
    """
    step = 1e-3
    x = 0.5 + step * (np.arange(-12_000, 12_000) + 0.5)
    p, q = (np.exp(-0.5 * (x - mean) ** 2) / np.sqrt(2.0 * np.pi) for mean in (1.0, 0.0))
    return x, np.full(x.shape, step), p, q


def maximum(function, bounds):
    """Largest value of a function of u between bounds, by refining a grid."""
    low, high = bounds
    for _ in range(40):
        u = np.linspace(low, high, 41)
        best = np.argmax(function(u))
        low, high = u[max(best - 1, 0)], u[min(best + 1, 40)]
    return function(u)[best]


def three_rings():
    """The particles and the target of FACTS.md's flow: 240 points near (0, -.3), and 80 on each of three circles."""
    angle = np.linspace(0.0, 2.0 * np.pi, 80, endpoint=False)
    circle = 0.3 * np.stack([np.cos(angle), np.sin(angle)], 1)
    target = np.concatenate([circle + centre for centre in ([0.0, 0.0], [0.0, -0.75], [0.0, -1.5])])
    return np.array([0.0, -0.3]) + 0.01 * np.random.default_rng(0).normal(size=(240, 2)), target


#: KALE at the start of that flow, by regularization; half MMD² is .38707.
THREE_RINGS_KALE = {1e4: 0.38710, 10.0: 0.42170, 1.0: 0.69764, 0.1: 1.71192, 0.01: 2.83240, 0.001: 3.65842}


def two_samples(num, shift, seed=0):
    """Samples of N(shift, I) and N(0, I) in the plane; the second has three points more."""
    rng = np.random.default_rng(seed)
    return rng.normal(size=(num, 2)) + shift, rng.normal(size=(num + 3, 2))


def naive_mmd2(kernel, x, y, estimator):
    """The estimators of MMD² as they are defined, from a kernel function of two points."""
    k = lambda a, b: np.array([[kernel(s, t) for t in b] for s in a])  # noqa: E731
    if estimator == "linear":
        half = len(x) // 2
        terms = [
            kernel(x[2 * i], x[2 * i + 1]) + kernel(y[2 * i], y[2 * i + 1])
            - kernel(x[2 * i], y[2 * i + 1]) - kernel(x[2 * i + 1], y[2 * i])
            for i in range(half)
        ]  # fmt: skip
        return np.mean(terms)
    if estimator == "biased":
        return k(x, x).mean() + k(y, y).mean() - 2.0 * k(x, y).mean()
    off = [m[~np.eye(len(m), dtype=bool)].mean() for m in (k(x, x), k(y, y))]
    return sum(off) - 2.0 * k(x, y).mean()


#: The kernels of both packages as functions of two points: name, arguments, function.
KERNELS = {
    "Gaussian": ((0.7,), lambda x, y: np.exp(-((x - y) ** 2).sum() / (2 * 0.49))),
    "Laplace": ((0.7,), lambda x, y: np.exp(-np.sqrt(((x - y) ** 2).sum()) / 0.7)),
    "InverseMultiquadric": ((0.7, 1.5), lambda x, y: (1 + ((x - y) ** 2).sum() / 0.49) ** -1.5),
}
