r"""KALE over a reproducing kernel Hilbert space (RKHS), by Newton's method on its dual.

With weights $\alpha_j = e^{u_j} / N$ on the points $y_j$, the dual is to be minimised,

.. math:: D(u) = \frac1N \sum_j (u_j e^{u_j} - e^{u_j} + 1)
    + \frac1{2 \lambda} \|\sum_j \alpha_j k(y_j, \cdot) - \mu_P\|^2

and its stationary point has $F(u) = u + (K \alpha - m) / \lambda = 0$, where $m_j = \mu_P(y_j)$: then $u = h(y)$.
"""

import math
from typing import NamedTuple

import torch

from gebm.validation import positive, real_numbers
from pyro_gebm.divergences.kernels import FiniteRank, Kernel, fit_kernel
from pyro_gebm.divergences.samples import Samples, as_samples, finite_statistic
from pyro_gebm.divergences.sums import Witness, kernel_matvec

__all__ = ["RKHSKALE", "DualPoint", "Gram", "dual_point", "exp", "kale_rkhs", "solve_dual"]

#: Newton steps after which the solver gives up; the duality gap then says how far it came.
MAX_STEPS = 200


class RKHSKALE(NamedTuple):
    r"""Result of `kale_rkhs`.

    `value` is the dual's, an upper bound; `value - duality_gap` is the primal's, a lower bound. `witness` is the best
    critic h, and `weights` are the $\alpha_j = e^{h(y_j)} / N$: the density ratio that it stands for, on the points y.
    """

    value: torch.Tensor
    witness: Witness
    duality_gap: torch.Tensor
    weights: torch.Tensor


def kale_rkhs(
    x: Samples, y: Samples, kernel: Kernel | None = None, regularization: torch.Tensor | float = 1.0
) -> RKHSKALE:
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
        >>> from pyro_gebm.divergences.kernels import Gaussian
        >>> x, y = torch.zeros(2, 1), 100.0 * torch.ones(2, 1)  # far apart: k(x, y) = 0
        >>> result = kale_rkhs(x, y, Gaussian(1.0), 1.0)
        >>> print(f"{result.value:.4f} {result.weights.sum():.4f}")
        1.5441 0.5671
    """
    x, y = as_samples(x, y)
    lam = real_numbers("regularization", regularization, torch.as_tensor).to(x)
    positive("regularization", lam.detach())
    return _kale_rkhs(fit_kernel(kernel, x, y), x, y, lam)


def _kale_rkhs(kernel, x, y, lam):
    ones = x.new_full((len(x),), 1.0 / len(x))
    gram, mean = Gram.of(kernel, y), kernel_matvec(kernel, y, x, ones)
    norm = kernel_matvec(kernel, x, x, ones).mean()
    fixed = gram.detach(), mean.detach(), norm.detach(), lam.detach()
    solved = solve_dual(*fixed, torch.zeros_like(fixed[1]))
    # a Newton step that is not taken: it has the derivative of the optimum
    finite_statistic("KALE", solved.value)
    step = fixed[0].newton_direction(fixed[3], solved.u, dual_point(gram, mean, norm, lam, solved.u).force)
    u = solved.u + (step - step.detach())
    weights = exp(u) / len(y)
    witness = Witness(kernel, torch.cat([x, y]), torch.cat([ones, -weights]) / lam)
    value = (1.0 + lam) * dual_point(gram, mean, norm, lam, u).value
    return RKHSKALE(value, witness, (1.0 + lam) * solved.gap, weights)


class Gram(NamedTuple):
    """The kernel matrix K of a sample; for a kernel of finite rank its features, K = features features^T."""

    matrix: torch.Tensor | None
    features: torch.Tensor | None

    @classmethod
    def of(cls, kernel: Kernel, y: torch.Tensor) -> "Gram":
        """The Gram matrix of points y, shape `(N, D)`."""
        return cls(None, kernel.features(y)) if isinstance(kernel, FiniteRank) else cls(kernel(y, y), None)

    def detach(self) -> "Gram":
        """The same, without gradients."""
        return Gram(*(part if part is None else part.detach() for part in self))

    def matvec(self, weights: torch.Tensor) -> torch.Tensor:
        """K times weights of shape `(N,)`."""
        if self.matrix is not None:
            return self.matrix @ weights
        assert self.features is not None
        return self.features @ (weights @ self.features)

    def newton_direction(self, lam: torch.Tensor, u: torch.Tensor, residual: torch.Tensor) -> torch.Tensor:
        r"""The Newton step of u, $-(I + K A / \lambda)^{-1} F$ with A the diagonal matrix of the weights."""
        if self.matrix is None:
            assert self.features is not None
            weighted = self.features * (exp(u) / len(u))[:, None]
            hessian = weighted.T @ self.features
            hessian.diagonal().add_(lam)
            return self.features @ _cholesky_solve(hessian, residual @ weighted) - residual
        root = exp(0.5 * u) / len(u) ** 0.5  # A^(1/2): the matrix below has no eigenvalue under 1
        hessian = root[:, None] * self.matrix * (root / lam)
        hessian.diagonal().add_(1.0)
        return self.matrix @ (root * _cholesky_solve(hessian, root * residual)) / lam - residual


@torch.no_grad()
def solve_dual(
    gram: Gram,
    mean: torch.Tensor,
    norm: torch.Tensor,
    lam: torch.Tensor,
    u: torch.Tensor,
    tolerance: float | None = None,
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
    tolerance = torch.finfo(u.dtype).eps if tolerance is None else tolerance

    point = dual_point(gram, mean, norm, lam, u)
    for _ in range(MAX_STEPS):
        if not point.gap > torch.maximum(tolerance * point.value, point.gap_rounding):
            break
        direction = gram.newton_direction(lam, point.u, point.force)
        slope = exp(point.u) / len(u) @ (point.force * direction)
        t = 1.0
        while True:
            step = torch.where(direction > 0.0, torch.log1p(t * direction.clamp(min=0.0)), t * direction)
            new = dual_point(gram, mean, norm, lam, point.u + step)
            if new.value <= point.value + 1e-4 * t * slope + point.value_rounding or t <= 1e-9:
                break
            t /= 2
        point = new
    return point


def _cholesky_solve(matrix, vector):
    return torch.cholesky_solve(vector[:, None], torch.linalg.cholesky(matrix))[:, 0]


class DualPoint(NamedTuple):
    """The dual at u: F, D and the duality gap, without the factor 1 + lambda, and the rounding errors of these two."""

    u: torch.Tensor
    force: torch.Tensor
    value: torch.Tensor
    gap: torch.Tensor
    value_rounding: torch.Tensor
    gap_rounding: torch.Tensor


def exp(u: torch.Tensor) -> torch.Tensor:
    """The exponential of u, or 0 where it is too small to matter: PyTorch is slow on subnormal numbers."""
    return torch.where(u > 2.0 * math.log(torch.finfo(u.dtype).eps), u.exp(), 0.0)


def dual_point(gram: Gram, mean: torch.Tensor, norm: torch.Tensor, lam: torch.Tensor, u: torch.Tensor) -> DualPoint:
    """`DualPoint` at u, shape `(N,)`."""
    weights = exp(u) / len(u)
    product = gram.matvec(weights)
    force = u + (product - mean) / lam
    entropy = (u * exp(u) - torch.expm1(u)).mean()
    value = entropy + (weights @ product - 2.0 * weights @ mean + norm) / (2.0 * lam)
    # the primal at the critic of these weights, h(y) = u - F, falls short of D by the mean of e^h - e^u + F e^u
    near = force.abs() < 1.0
    small = exp(u) * (torch.expm1(-torch.where(near, force, 0.0)) + force)
    gap = torch.where(near, small, exp(u - force) - exp(u) * (1.0 - force)).mean()
    error = 8.0 * torch.finfo(u.dtype).eps * (u.abs() + (product.abs() + mean.abs()) / lam)
    value_rounding = weights @ error + torch.finfo(u.dtype).eps * norm / lam
    return DualPoint(u, force, value, gap, value_rounding, weights @ error**2)
