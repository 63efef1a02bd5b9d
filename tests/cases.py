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
