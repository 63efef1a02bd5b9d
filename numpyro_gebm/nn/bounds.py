"""Bounds on networks: on the Lipschitz constant by spectral normalisation, and on an energy from below."""

from typing import TypeVar

import equinox as eqx
import jax
import jax.numpy as jnp

from gebm.validation import integer, real_numbers
from numpyro_gebm.nn.layers import Conv, Linear

__all__ = ["bounded_below", "scaled_down", "spectral_norm_bound"]

Layer = TypeVar("Layer", bound=Linear | Conv)


def spectral_norm_bound(weight: jax.Array, num_iterations: int = 6) -> jax.Array:
    r"""Upper bound of the largest singular value of a matrix, by Gram iteration.

    .. math:: \sigma_{\max}(W) \le \|(W W^\top)^{2^n}\|_F^{1 / 2^{n+1}}

    Without state, differentiable, and never below the truth; with 6 iterations at most 2.5 % above it for rank 512.
    Source: arXiv:2305.16173.

    Args:
        weight: array of at least two axes; the first against all others.
        num_iterations: n.

    Returns:
        Scalar.

    Raises:
        TypeError: for a weight that is not real numbers, or a number that is not an integer.
        ValueError: for fewer than two axes, an empty one, or a negative number.

    Example:
        >>> round(float(spectral_norm_bound(jnp.array([[3.0, 0.0], [0.0, 1.0]]))), 4)
        3.0
    """
    weight = real_numbers("weight", weight, jnp.asarray)
    if weight.ndim < 2 or 0 in weight.shape:
        raise ValueError(f"Expected weight with at least two axes, none empty; got shape {weight.shape}.")
    matrix = weight.reshape(weight.shape[0], -1)
    gram = matrix @ matrix.T if matrix.shape[0] <= matrix.shape[1] else matrix.T @ matrix
    log_norm = jnp.zeros((), gram.dtype)
    for i in range(integer("num_iterations", num_iterations, minimum=0) + 1):
        norm = jnp.sqrt(jnp.sum(gram**2) + jnp.finfo(gram.dtype).tiny)
        log_norm = log_norm + jnp.log(norm) / 2**i
        gram = gram / norm
        gram = gram @ gram
    return jnp.exp(0.5 * log_norm)


def scaled_down(layer: Layer, bound: float) -> Layer:
    """The layer with its weight scaled so that the bound on its spectral norm is at most `bound`."""
    scale = jnp.minimum(1.0, bound / spectral_norm_bound(layer.weight))
    return eqx.tree_at(lambda layer: layer.weight, layer, scale * layer.weight)


def bounded_below(energy: jax.Array, lower_bound: float | None) -> jax.Array:
    """`b + softplus(e - b)`, or the energy itself where there is no bound b."""
    return energy if lower_bound is None else lower_bound + jax.nn.softplus(energy - lower_bound)
