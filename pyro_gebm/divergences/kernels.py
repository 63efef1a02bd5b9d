"""Kernels between points.

A kernel is any callable from points x `(M, D)` and y `(N, D)` to their kernel matrix `(M, N)`: one of these, or your
own.
"""

import dataclasses
import functools
import operator
from collections.abc import Iterable
from typing import Protocol, Self, runtime_checkable

import torch

from gebm.validation import function, integer, nonnegative, positive, real_numbers, sequence
from pyro_gebm.divergences.samples import Samples, as_floats, as_points

__all__ = [
    "FiniteRank",
    "Gaussian",
    "InverseMultiquadric",
    "Kernel",
    "Laplace",
    "Mixture",
    "RandomFeatures",
    "Spectral",
    "fit_kernel",
    "median_distance",
    "random_features",
    "squared_distances",
]

#: Most coordinates of points whose distances are computed one coordinate at a time, without loss of digits.
MAX_COORDINATES = 8
#: Most points that the median heuristic looks at.
MEDIAN_POINTS = 2000


class Kernel(Protocol):
    """A callable from points x `(M, D)` and y `(N, D)` to their kernel matrix `(M, N)`."""

    def __call__(self, x: torch.Tensor, y: torch.Tensor, /) -> torch.Tensor: ...


@runtime_checkable
class FiniteRank(Kernel, Protocol):
    """A kernel that is a product of features: sums over it take time linear in the number of points."""

    def features(self, x: torch.Tensor, /) -> torch.Tensor: ...


@runtime_checkable
class Spectral(Kernel, Protocol):
    """A kernel whose spectral measure can be drawn from."""

    def frequencies(self, num: int, dim: int) -> torch.Tensor: ...


@runtime_checkable
class _Unfitted(Kernel, Protocol):
    def fit(self, *samples: Samples) -> Kernel: ...


def squared_distances(x: Samples, y: Samples) -> torch.Tensor:
    r"""Squared Euclidean distances, $\|x_i - y_j\|^2$; by coordinates, or by a matrix product if they are many.

    Args:
        x: points, shape `(M, D)`.
        y: points, shape `(N, D)`.

    Returns:
        Array of shape `(M, N)`.

    Example:
        >>> squared_distances(torch.zeros((1, 2)), torch.tensor([[3.0, 4.0]])).tolist()
        [[25.0]]
    """
    x = as_points("x", x)
    y = as_points("y", y, x.shape[1])
    if x.shape[1] <= MAX_COORDINATES:
        return functools.reduce(operator.add, ((x[:, None, d] - y[None, :, d]) ** 2 for d in range(x.shape[1])))
    centre = y.detach().mean(0)  # far from the origin, the product alone would lose the distances
    x, y = x - centre, y - centre
    return torch.clamp((x**2).sum(1)[:, None] + (y**2).sum(1) - 2.0 * x @ y.T, min=0.0)


def median_distance(*samples: Samples) -> torch.Tensor:
    """Median distance between the points of all samples together, a usual bandwidth. No gradient flows through it.

    Of more than 2,000 points it takes 2,000 at equal intervals. Source: Gretton et al., JMLR 13 (2012).

    Args:
        samples: arrays of shape `(N, D)`.

    Returns:
        Scalar.

    Example:
        >>> float(median_distance(torch.tensor([[0.0], [1.0]]), torch.tensor([[3.0]])))
        2.0
    """
    points = torch.cat([as_points("samples", x) for x in samples]).detach()
    if len(points) < 2:
        raise ValueError(f"Expected samples of at least 2 points together; got {len(points)}.")
    if len(points) > MEDIAN_POINTS:
        points = points[torch.arange(MEDIAN_POINTS, device=points.device) * (len(points) - 1) // (MEDIAN_POINTS - 1)]
    rows, columns = torch.triu_indices(len(points), len(points), 1, device=points.device)
    ordered = squared_distances(points, points)[rows, columns].sort().values
    return (0.5 * (ordered[(len(ordered) - 1) // 2] + ordered[len(ordered) // 2])).sqrt()


@dataclasses.dataclass(frozen=True, eq=False)
class _Radial:
    """A kernel of the distance over a bandwidth; subclasses define `profile` of $r^2 = \\|x - y\\|^2 / \\sigma^2$."""

    bandwidth: float | torch.Tensor | None = None

    def __post_init__(self):
        if self.bandwidth is None:
            return
        if real_numbers("bandwidth", self.bandwidth, torch.as_tensor).shape != () or not self.bandwidth > 0:
            raise ValueError(
                f"Expected a positive scalar as bandwidth; got {self.bandwidth}. None takes the median distance."
            )

    def _fitted_bandwidth(self) -> torch.Tensor:
        if self.bandwidth is None:
            raise ValueError("Expected a kernel with a bandwidth; got None. Call `kernel.fit(x, y)` for the median.")
        return torch.as_tensor(self.bandwidth)

    def profile(self, r2: torch.Tensor) -> torch.Tensor:
        """k as a function of r squared."""
        raise NotImplementedError

    def fit(self, *samples: Samples) -> Self:
        """This kernel with the median distance of the samples as bandwidth, if it has none."""
        if self.bandwidth is not None:
            return self
        median = median_distance(*samples)
        if not median > 0.0:
            raise ValueError(
                f"Expected samples whose median distance is positive; got {median}: most points are equal. "
                "Give the kernel a bandwidth."
            )
        return dataclasses.replace(self, bandwidth=median)

    def __call__(self, x: Samples, y: Samples) -> torch.Tensor:
        distances = squared_distances(x, y)
        return self.profile(distances / self._fitted_bandwidth().to(distances) ** 2)


def _size(num: int, dim: int) -> tuple[int, int]:
    return integer("num", num), integer("dim", dim)


@dataclasses.dataclass(frozen=True, eq=False)
class Gaussian(_Radial):
    r"""Gaussian kernel, $k(x, y) = \exp(-\|x - y\|^2 / (2 \sigma^2))$.

    Args:
        bandwidth: sigma, positive; None is the median distance, taken where the kernel is used.

    Raises:
        ValueError: for a bandwidth that is no positive scalar.

    Example:
        >>> Gaussian(2.0)(torch.zeros((1, 3)), torch.zeros((2, 3))).tolist()
        [[1.0, 1.0]]
    """

    def profile(self, r2: torch.Tensor) -> torch.Tensor:
        """k as a function of r squared."""
        return torch.exp(-0.5 * r2)

    def frequencies(self, num: int, dim: int) -> torch.Tensor:
        """Draws of the spectral measure, shape `(num, dim)`."""
        return torch.randn(_size(num, dim)) / self._fitted_bandwidth().cpu()


@dataclasses.dataclass(frozen=True, eq=False)
class Laplace(_Radial):
    r"""Laplace kernel, $k(x, y) = \exp(-\|x - y\| / \sigma)$, with the Euclidean norm.

    Its gradient at x = y, where it has a kink, is taken as 0.

    Args:
        bandwidth: sigma, positive; None is the median distance, taken where the kernel is used.

    Raises:
        ValueError: for a bandwidth that is no positive scalar.

    Example:
        >>> Laplace(2.0)(torch.zeros((1, 3)), torch.zeros((2, 3))).tolist()
        [[1.0, 1.0]]
    """

    def profile(self, r2: torch.Tensor) -> torch.Tensor:
        """k as a function of r squared."""
        return torch.exp(-torch.where(r2 > 0.0, r2, 1.0).sqrt() * (r2 > 0.0))

    def frequencies(self, num: int, dim: int) -> torch.Tensor:
        """Draws of the spectral measure, a multivariate Cauchy law, shape `(num, dim)`."""
        return torch.randn(_size(num, dim)) / torch.randn(num, 1).abs() / self._fitted_bandwidth().cpu()


@dataclasses.dataclass(frozen=True, eq=False)
class InverseMultiquadric(_Radial):
    r"""Inverse multiquadric kernel, $k(x, y) = (1 + \|x - y\|^2 / \sigma^2)^{-p}$: heavy tails.

    Args:
        bandwidth: sigma, positive; None is the median distance, taken where the kernel is used.
        power: p, positive.

    Raises:
        ValueError: for a bandwidth that is no positive scalar, or a power that is not positive.

    Example:
        >>> InverseMultiquadric(1.0)(torch.zeros((1, 1)), torch.tensor([[3.0]]).sqrt()).round(decimals=3).tolist()
        [[0.5]]
    """

    power: float = 0.5

    def __post_init__(self):
        super().__post_init__()
        positive("power", self.power)

    def profile(self, r2: torch.Tensor) -> torch.Tensor:
        """k as a function of r squared."""
        return (1.0 + r2) ** -self.power

    def frequencies(self, num: int, dim: int) -> torch.Tensor:
        """Draws of the spectral measure, a Gamma mixture of normal laws, shape `(num, dim)`."""
        gamma = torch.distributions.Gamma(torch.tensor(float(self.power)), torch.tensor(1.0))
        return torch.randn(_size(num, dim)) * (2.0 * gamma.sample((num, 1))).sqrt() / self._fitted_bandwidth().cpu()


class Mixture:
    """Weighted sum of kernels, of several bandwidths for instance.

    Args:
        kernels: kernels.
        weights: their weights, not negative; None is equal weights of sum 1.

    Raises:
        ValueError: without kernels, or for weights that do not fit them.

    Example:
        >>> kernel = Mixture([Gaussian(0.5), Gaussian(1.0), Laplace(2.0)])
        >>> kernel(torch.zeros((1, 3)), torch.zeros((2, 3))).round(decimals=6).tolist()
        [[1.0, 1.0]]
    """

    def __init__(self, kernels: Iterable[Kernel], weights: Iterable[float] | None = None):
        self.kernels = tuple(function("kernels", kernel, "callables") for kernel in sequence("kernels", kernels))
        equal = [1.0 / max(len(self.kernels), 1)] * len(self.kernels)
        weights = sequence("weights", equal if weights is None else weights)
        self.weights = tuple(nonnegative("weights", weight) for weight in weights)
        if not self.kernels or len(self.weights) != len(self.kernels):
            raise ValueError(f"Expected weights for each of {len(self.kernels)} kernels; got {self.weights}.")

    def fit(self, *samples: Samples) -> "Mixture":
        """This mixture with the median distance of the samples as bandwidth of the kernels that have none."""
        return Mixture([fit_kernel(kernel, *samples) for kernel in self.kernels], self.weights)

    def __call__(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return functools.reduce(operator.add, (w * kernel(x, y) for kernel, w in zip(self.kernels, self.weights)))

    def frequencies(self, num: int, dim: int) -> torch.Tensor:
        """Draws of the spectral measure, shape `(num, dim)`."""
        draws = torch.stack([_spectral(kernel).frequencies(num, dim) for kernel in self.kernels])
        which = torch.multinomial(torch.tensor(self.weights, dtype=torch.float64), num, replacement=True)
        return draws[which, torch.arange(num)]


@dataclasses.dataclass(frozen=True, eq=False)
class RandomFeatures:
    r"""A kernel of finite rank, $k(x, y) = \phi(x)^\top \phi(y)$, made by `random_features`.

    .. math:: \phi(x) = \sqrt{k_0 / R}\, (\cos(W x), \sin(W x))

    Sums over it, `kernel_matvec` and all that is built on it, take time linear in the number of points. An own kernel
    with a method `features` has the same.

    Args:
        directions: the rows of W, shape `(R, D)`.
        scale: $k_0$, the kernel of a point with itself.
    """

    directions: torch.Tensor
    scale: float | torch.Tensor = 1.0

    def __post_init__(self):
        object.__setattr__(self, "directions", as_points("directions", self.directions))
        object.__setattr__(self, "scale", as_floats("scale", self.scale))

    def features(self, x: Samples) -> torch.Tensor:
        """phi of points x `(M, D)`, shape `(M, 2 R)`."""
        x = as_points("x", x, self.directions.shape[1])
        angles = x @ self.directions.T.to(x)
        amplitude = (torch.as_tensor(self.scale).to(x) / len(self.directions)).sqrt()
        return amplitude * torch.cat([angles.cos(), angles.sin()], 1)

    def __call__(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return self.features(x) @ self.features(y).T


def random_features(kernel: Spectral, dim: int, num_features: int) -> RandomFeatures:
    r"""Random Fourier features of a kernel of this module: the same kernel up to $O(1 / \sqrt{R})$, of finite rank.

    Source: Rahimi, Recht, NIPS 2007.

    Args:
        kernel: `Gaussian`, `Laplace`, `InverseMultiquadric`, with a bandwidth, or a `Mixture` of such.
        dim: D, the dimension of the points.
        num_features: R, the number of random directions.

    Returns:
        `RandomFeatures`.

    Raises:
        TypeError: for a kernel whose spectral measure is not known, or a number that is not an integer.
        ValueError: for a kernel without bandwidth, or a number below 1.

    Example:
        >>> kernel = random_features(Gaussian(1.0), 2, 100)
        >>> kernel(torch.zeros((1, 2)), torch.zeros((1, 2))).round(decimals=5).tolist()
        [[1.0]]
    """
    dim, num_features, kernel = integer("dim", dim), integer("num_features", num_features), _spectral(kernel)
    origin = torch.zeros((1, dim))
    return RandomFeatures(scale=kernel(origin, origin)[0, 0], directions=kernel.frequencies(num_features, dim))


def _spectral(kernel: Kernel) -> Spectral:
    if isinstance(kernel, Spectral):
        return kernel
    raise TypeError(
        f"Expected a kernel of `divergences.kernels`; got {kernel!r}. Define `features` on one of your own."
    )


def fit_kernel(kernel: Kernel | None, *samples: Samples) -> Kernel:
    """A kernel ready for use: None becomes a Gaussian, and a missing bandwidth the median distance.

    Args:
        kernel: a callable from points `(M, D)` and `(N, D)` to `(M, N)`, or None.
        samples: arrays of shape `(N, D)`, for the median.

    Returns:
        The kernel.

    Raises:
        TypeError: for anything else.

    Example:
        >>> float(fit_kernel(None, torch.tensor([[0.0], [1.0], [3.0]])).bandwidth)
        2.0
    """
    kernel = Gaussian() if kernel is None else kernel
    if not callable(kernel):
        raise TypeError(f"Expected a kernel, a callable from (M, D) and (N, D) to (M, N), or None; got {kernel!r}.")
    return kernel.fit(*samples) if isinstance(kernel, _Unfitted) else kernel
