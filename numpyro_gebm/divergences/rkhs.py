r"""KALE over a reproducing kernel Hilbert space (RKHS), by Newton's method on its dual.

With weights $\alpha_j = e^{u_j} / N$ on the points $y_j$, the dual is to be minimised,

.. math:: D(u) = \frac1N \sum_j (u_j e^{u_j} - e^{u_j} + 1)
    + \frac1{2 \lambda} \|\sum_j \alpha_j k(y_j, \cdot) - \mu_P\|^2

and its stationary point has $F(u) = u + (K \alpha - m) / \lambda = 0$, where $m_j = \mu_P(y_j)$: then $u = h(y)$.
"""

from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from jax import lax
from jax.scipy.linalg import cho_factor, cho_solve
from jax.typing import ArrayLike
from numpyro.util import not_jax_tracer

from gebm.validation import positive
from numpyro_gebm.divergences.kernels import FiniteRank, Kernel, fit_kernel
from numpyro_gebm.divergences.samples import Samples, as_samples, finite_statistic
from numpyro_gebm.divergences.sums import Witness, kernel_matvec

__all__ = ["RKHSKALE", "DualPoint", "Gram", "dual_point", "kale_rkhs", "solve_dual"]

#: Newton steps after which the solver gives up; the duality gap then says how far it came.
MAX_STEPS = 200


class RKHSKALE(NamedTuple):
    r"""Result of `kale_rkhs`.

    `value` is the dual's, an upper bound; `value - duality_gap` is the primal's, a lower bound. `witness` is the best
    critic h, and `weights` are the $\alpha_j = e^{h(y_j)} / N$: the density ratio that it stands for, on the points y.
    """

    value: jax.Array
    witness: Witness
    duality_gap: jax.Array
    weights: jax.Array


def kale_rkhs(x: Samples, y: Samples, kernel: Kernel | None = None, regularization: ArrayLike = 1.0) -> RKHSKALE:
    r"""KALE of two samples over an RKHS, solved exactly.

    .. math:: (1 + \lambda) \max_h \left\{ 1 + E_P h - E_Q e^h - \frac\lambda2 \|h\|^2 \right\}

    Between the KL divergence of P from Q (lambda to 0, with ever more points) and half the squared MMD (lambda to
    infinity). Damped Newton steps on the dual take time $O(N^3)$ and memory $O(N^2)$; with a kernel of R random
    features (`divergences.kernels.random_features`), time $O((M + N) R^2)$.

    Value and witness can be differentiated in x, y, the bandwidth and lambda: by implicit differentiation of the
    optimum, so that second derivatives of the value are correct, too. Source: arXiv:2106.08929.

    Args:
        x: sample of P, shape `(M, D)`, M at least 2.
        y: sample of Q, shape `(N, D)`, N at least 2.
        kernel: see `divergences.kernels`; None is a Gaussian with the median distance as bandwidth.
        regularization: lambda, positive.

    Returns:
        `RKHSKALE(value, witness, duality_gap, weights)`. Look at the gap: it certifies the value.

    Raises:
        TypeError: if the kernel cannot be called, or x or y is complex.
        ValueError: if x or y is not a matrix of finite numbers with at least two rows, or their columns differ; if
            lambda is not positive, or KALE not finite.

    Example:
        >>> from numpyro_gebm.divergences.kernels import Gaussian
        >>> x, y = jnp.zeros((2, 1)), 100.0 * jnp.ones((2, 1))  # far apart: k(x, y) = 0
        >>> result = kale_rkhs(x, y, Gaussian(1.0), 1.0)
        >>> print(f"{result.value:.4f} {result.weights.sum():.4f}")
        1.5441 0.5671
    """
    x, y = as_samples(x, y)
    if not_jax_tracer(regularization):
        positive("regularization", regularization)
    result = _kale_rkhs(fit_kernel(kernel, x, y), x, y, jnp.asarray(regularization, x.dtype))
    finite_statistic("KALE", result.value)
    return result


@eqx.filter_jit
def _kale_rkhs(kernel, x, y, lam):
    ones = jnp.full(len(x), 1.0 / len(x), x.dtype)
    gram, mean = Gram.of(kernel, y), kernel_matvec(kernel, y, x, ones)
    norm = kernel_matvec(kernel, x, x, ones).mean()
    fixed = lax.stop_gradient((gram, mean, norm, lam))
    solved = solve_dual(*fixed, jnp.zeros_like(mean))
    # a Newton step that is not taken: it has the derivative of the optimum
    step = fixed[0].newton_direction(fixed[3], solved.u, dual_point(gram, mean, norm, lam, solved.u).force)
    u = solved.u + (step - lax.stop_gradient(step))
    weights = jnp.exp(u) / len(y)
    witness = Witness(kernel, jnp.concatenate([x, y]), jnp.concatenate([ones, -weights]) / lam)
    value = (1.0 + lam) * dual_point(gram, mean, norm, lam, u).value
    return RKHSKALE(value, witness, (1.0 + lam) * solved.gap, weights)


class Gram(NamedTuple):
    """The kernel matrix K of a sample; for a kernel of finite rank its features, K = features features^T."""

    matrix: jax.Array | None
    features: jax.Array | None

    @classmethod
    def of(cls, kernel: Kernel, y: jax.Array) -> "Gram":
        """The Gram matrix of points y, shape `(N, D)`."""
        return cls(None, kernel.features(y)) if isinstance(kernel, FiniteRank) else cls(kernel(y, y), None)

    def matvec(self, weights: jax.Array) -> jax.Array:
        """K times weights of shape `(N,)`."""
        if self.matrix is not None:
            return self.matrix @ weights
        assert self.features is not None
        return self.features @ (weights @ self.features)

    def newton_direction(self, lam: jax.Array, u: jax.Array, residual: jax.Array) -> jax.Array:
        r"""The Newton step of u, $-(I + K A / \lambda)^{-1} F$ with A the diagonal matrix of the weights."""
        if self.matrix is None:
            assert self.features is not None
            weighted = self.features * (jnp.exp(u) / len(u))[:, None]
            hessian = weighted.T @ self.features + lam * jnp.eye(weighted.shape[1], dtype=u.dtype)
            return self.features @ cho_solve(cho_factor(hessian), residual @ weighted) - residual
        root = jnp.exp(0.5 * u) / jnp.sqrt(len(u))  # A^(1/2): the matrix below has no eigenvalue under 1
        factor = cho_factor(jnp.eye(len(u), dtype=u.dtype) + root[:, None] * self.matrix * (root / lam), lower=True)
        return self.matrix @ (root * cho_solve(factor, root * residual)) / lam - residual


def solve_dual(
    gram: Gram, mean: jax.Array, norm: jax.Array, lam: jax.Array, u: jax.Array, tolerance: float | None = None
) -> "DualPoint":
    r"""Minimise D by damped Newton steps from u.

    The direction is Newton's in the weights. Weights that are to grow, grow by it; weights that are to shrink, shrink
    by a factor, so that none becomes negative. The step is halved until D has fallen enough. It ends when the duality
    gap is small, or as small as rounding leaves it.

    Args:
        gram: `Gram` of the points y.
        mean: mu_P at the points y, shape `(N,)`.
        norm: squared norm of mu_P, scalar.
        lam: lambda, scalar.
        u: where to start, shape `(N,)`.
        tolerance: of the duality gap, relative to D; None is the precision of u.

    Returns:
        `DualPoint` at the optimum.
    """
    relative = jnp.finfo(u.dtype).eps if tolerance is None else tolerance

    def unfinished(state):
        point, count = state
        return (point.gap > jnp.maximum(relative * point.value, point.gap_rounding)) & (count < MAX_STEPS)

    def newton_step(state):
        point, count = state
        direction = gram.newton_direction(lam, point.u, point.force)
        slope = jnp.exp(point.u) / len(u) @ (point.force * direction)

        def moved(t):
            step = jnp.where(direction > 0.0, jnp.log1p(t * jnp.maximum(direction, 0.0)), t * direction)
            return dual_point(gram, mean, norm, lam, point.u + step)

        def too_high(search):
            t, new = search
            return ~(new.value <= point.value + 1e-4 * t * slope + point.value_rounding) & (t > 1e-9)

        def shorter(search):
            return search[0] / 2, moved(search[0] / 2)

        _, new = lax.while_loop(
            too_high, shorter, (jnp.full_like(lam, 2.0), point._replace(value=jnp.inf + point.value))
        )
        return new, count + 1

    return lax.while_loop(unfinished, newton_step, (dual_point(gram, mean, norm, lam, u), 0))[0]


class DualPoint(NamedTuple):
    """The dual at u: F, D and the duality gap, without the factor 1 + lambda, and the rounding errors of these two."""

    u: jax.Array
    force: jax.Array
    value: jax.Array
    gap: jax.Array
    value_rounding: jax.Array
    gap_rounding: jax.Array


def dual_point(gram: Gram, mean: jax.Array, norm: jax.Array, lam: jax.Array, u: jax.Array) -> DualPoint:
    """`DualPoint` at u, shape `(N,)`."""
    weights = jnp.exp(u) / len(u)
    product = gram.matvec(weights)
    force = u + (product - mean) / lam
    entropy = jnp.mean(u * jnp.exp(u) - jnp.expm1(u))
    value = entropy + (weights @ product - 2.0 * weights @ mean + norm) / (2.0 * lam)
    # the primal at the critic of these weights, h(y) = u - F, falls short of D by the mean of e^h - e^u + F e^u
    near = jnp.abs(force) < 1.0
    small = jnp.exp(u) * (jnp.expm1(-jnp.where(near, force, 0.0)) + force)
    gap = jnp.mean(jnp.where(near, small, jnp.exp(u - force) - jnp.exp(u) * (1.0 - force)))
    error = 8.0 * jnp.finfo(u.dtype).eps * (jnp.abs(u) + (jnp.abs(product) + jnp.abs(mean)) / lam)
    value_rounding = weights @ error + jnp.finfo(u.dtype).eps * norm / lam
    return DualPoint(u, force, value, gap, value_rounding, weights @ error**2)
