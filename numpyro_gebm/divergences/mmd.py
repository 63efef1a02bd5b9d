"""Maximum mean discrepancy: estimates, witness, two-sample test."""

from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from jax import random
from jax.typing import ArrayLike

from gebm.validation import integer, one_of
from numpyro_gebm.divergences.kernels import Gaussian, Kernel, fit_kernel
from numpyro_gebm.divergences.samples import Samples, as_samples, finite_statistic
from numpyro_gebm.divergences.sums import Witness, kernel_matvec
from numpyro_gebm.keys import typed

__all__ = ["MMDTest", "mmd2", "mmd_test", "mmd_witness"]

#: Names of the estimators of `mmd2`.
ESTIMATORS = ("unbiased", "biased", "linear")


def mmd2(
    x: Samples,
    y: Samples,
    bandwidth: ArrayLike | None = None,
    *,
    kernel: Kernel | None = None,
    estimator: str = "unbiased",
) -> jax.Array:
    r"""Estimate of the squared maximum mean discrepancy, $\|\mu_P - \mu_Q\|^2$ with $\mu_P = E_P k(x, \cdot)$.

    .. math:: E k(x, x') + E k(y, y') - 2 E k(x, y)

    "unbiased" leaves out the pairs of a point with itself, and can be slightly negative when the laws agree; "biased"
    is the exact value for the two empirical laws, never negative; "linear" is unbiased and averages over M/2 pairs, in
    time linear in M, with a larger variance. The kernel matrix is never in memory as a whole. Source: Gretton et al.,
    JMLR 13 (2012).

    Args:
        x: array of shape `(M, D)`, M at least 2.
        y: array of shape `(N, D)`, N at least 2; M = N for "linear", where an odd last row is left out.
        bandwidth: of the Gaussian kernel $\exp(-\|x - y\|^2 / (2 \sigma^2))$; None is the median distance within x
            and y together.
        kernel: any other kernel, instead of a bandwidth: see `divergences.kernels`.
        estimator: "unbiased", "biased" or "linear".

    Returns:
        Scalar.

    Raises:
        TypeError: if the kernel cannot be called, or x or y is complex.
        ValueError: if x or y is not a matrix of finite numbers with at least two rows, or their columns differ; for
            another estimator; for a bandwidth and a kernel together; if the estimate is not finite.

    Example:
        >>> x = jnp.array([[0.0], [1.0]])
        >>> float(mmd2(x, x, 1.0, estimator="biased"))
        0.0
    """
    one_of("estimator", estimator, ESTIMATORS)
    x, y = as_samples(x, y)
    if estimator == "linear" and len(x) != len(y):
        raise ValueError(f"Expected as many rows in x as in y for the linear estimator; got {len(x)} and {len(y)}.")
    return finite_statistic("MMD²", _mmd2(_kernel_of(x, y, bandwidth, kernel), x, y, estimator))


@eqx.filter_jit
def _mmd2(kernel, x, y, estimator):
    if estimator == "linear":
        return _linear(kernel, x, y)
    m, n, unbiased = len(x), len(y), estimator == "unbiased"
    within = (kernel_matvec(kernel, z, z, jnp.ones(len(z), z.dtype), exclude_diagonal=unbiased).sum() for z in (x, y))
    within_x, within_y = (total / (k * (k - unbiased)) for total, k in zip(within, (m, n)))
    return within_x + within_y - 2.0 * kernel_matvec(kernel, x, y, jnp.ones(n, x.dtype)).sum() / (m * n)


def _linear(kernel, x, y):
    half = len(x) // 2
    (x, x_other), (y, y_other) = ((z[0 : 2 * half : 2], z[1 : 2 * half : 2]) for z in (x, y))
    pairs = jax.vmap(lambda a, b: kernel(a[None], b[None])[0, 0])
    return jnp.mean(pairs(x, x_other) + pairs(y, y_other) - pairs(x, y_other) - pairs(x_other, y))


def mmd_witness(x: Samples, y: Samples, bandwidth: ArrayLike | None = None, *, kernel: Kernel | None = None) -> Witness:
    r"""Witness of the MMD, $f = \mu_P - \mu_Q$: positive where P has more mass, negative where Q has.

    Args:
        x: sample of P, shape `(M, D)`, M at least 2.
        y: sample of Q, shape `(N, D)`, N at least 2.
        bandwidth: of the Gaussian kernel; None is the median distance.
        kernel: any other kernel, instead of a bandwidth: see `divergences.kernels`.

    Returns:
        A `Witness`: a callable from points of shape `(K, D)` to values of shape `(K,)`.

    Raises:
        TypeError: if the kernel cannot be called, or x or y is complex.
        ValueError: if x or y is not a matrix of finite numbers with at least two rows, or their columns differ; for
            a bandwidth and a kernel together.

    Example:
        >>> witness = mmd_witness(jnp.zeros((2, 1)), jnp.ones((2, 1)), 1.0)
        >>> [round(float(value), 4) for value in witness(jnp.array([[0.0], [0.5], [1.0]]))]
        [0.3935, 0.0, -0.3935]
    """
    x, y = as_samples(x, y)
    kernel = _kernel_of(x, y, bandwidth, kernel)
    weights = jnp.concatenate([jnp.full(len(x), 1.0 / len(x), x.dtype), jnp.full(len(y), -1.0 / len(y), y.dtype)])
    return Witness(kernel, jnp.concatenate([x, y]), weights)


class MMDTest(NamedTuple):
    """Result of `mmd_test`: the statistic, its p-value, and the statistics of the permutations."""

    statistic: jax.Array
    p_value: jax.Array
    null: jax.Array


def mmd_test(
    x: Samples,
    y: Samples,
    bandwidth: ArrayLike | None = None,
    *,
    kernel: Kernel | None = None,
    num_permutations: int = 199,
    rng_key: jax.Array,
) -> MMDTest:
    r"""Two-sample permutation test of P = Q by the unbiased MMD².

    The p-value, $(1 + \#\{\text{null} \ge \text{statistic}\}) / (B + 1)$, is exact: under P = Q it is at most $a$ with
    probability at most $a$, and just that if $a (B + 1)$ is a whole number. Memory is linear in B (M + N).
    Source: Gretton et al., JMLR 13 (2012).

    Args:
        x: sample of P, shape `(M, D)`, M at least 2.
        y: sample of Q, shape `(N, D)`, N at least 2.
        bandwidth: of the Gaussian kernel; None is the median distance of all points.
        kernel: any other kernel, instead of a bandwidth: see `divergences.kernels`.
        num_permutations: B.
        rng_key: a JAX random key.

    Returns:
        `MMDTest(statistic, p_value, null)`; `null` has shape `(B,)`.

    Raises:
        TypeError: if the kernel cannot be called, or x or y is complex.
        ValueError: if x or y is not a matrix of finite numbers with at least two rows, or their columns differ; for
            a bandwidth and a kernel together; for less than one permutation.

    Example:
        >>> x = jax.random.normal(jax.random.key(0), (50, 2))
        >>> print(f"{mmd_test(x, x + 2.0, rng_key=jax.random.key(1)).p_value:.3f}")
        0.005
    """
    x, y = as_samples(x, y)
    kernel, num_permutations = _kernel_of(x, y, bandwidth, kernel), integer("num_permutations", num_permutations)
    result = _permutation_test(kernel, x, y, num_permutations, typed(rng_key))
    for statistic in (result.statistic, result.null):
        finite_statistic("MMD²", statistic)
    return result


@eqx.filter_jit
def _permutation_test(kernel, x, y, num_permutations, rng_key):
    m, n = len(x), len(y)
    joint = jnp.concatenate([x, y])
    in_x = (jnp.arange(m + n) < m).astype(joint.dtype)
    splits = jax.vmap(random.permutation, (0, None), 1)(random.split(rng_key, num_permutations), in_x)
    splits = jnp.concatenate([in_x[:, None], splits], axis=1)  # the first is the split that was observed
    weights = jnp.concatenate([jnp.ones_like(splits[:, :1]), splits], axis=1)
    sums = kernel_matvec(kernel, joint, joint, weights, exclude_diagonal=True)
    from_all, from_x = sums[:, :1], sums[:, 1:]
    within_x = (splits * from_x).sum(axis=0)
    across = (splits * (from_all - from_x)).sum(axis=0)
    within_y = from_all.sum() - within_x - 2.0 * across
    statistics = within_x / (m * (m - 1)) + within_y / (n * (n - 1)) - 2.0 * across / (m * n)
    # a permutation may be the observed split again, up to the order of its sums
    slack = 64.0 * jnp.finfo(joint.dtype).eps * jnp.abs(from_all).max() / min(m, n)
    p_value = (1 + (statistics[1:] >= statistics[0] - slack).sum()) / (num_permutations + 1)
    return MMDTest(statistics[0], p_value, statistics[1:])


def _kernel_of(x, y, bandwidth, kernel):
    if bandwidth is None:
        return fit_kernel(kernel, x, y)
    if kernel is not None:
        raise ValueError(f"Expected a bandwidth or a kernel; got both, {bandwidth} and {kernel!r}. Leave one out.")
    return Gaussian(bandwidth)
