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
