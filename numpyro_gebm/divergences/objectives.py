"""Variational bounds of the KL divergence, from the values of an energy on samples."""

import jax
import jax.numpy as jnp
from jax.scipy.special import logsumexp
from jax.typing import ArrayLike

from numpyro_gebm.divergences.samples import as_floats, as_vector

__all__ = ["base_loss", "batch_log_partition", "donsker_varadhan", "kale"]


def batch_log_partition(energy_base: ArrayLike) -> jax.Array:
    r"""Log-partition of a batch, $\log \frac1N \sum_i \exp(-E_i)$.

    Args:
        energy_base: energies of N base draws, shape `(N,)`.

    Returns:
        Scalar.

    Raises:
        TypeError: for what is not real numbers.
        ValueError: for another shape.
    """
    energy_base = as_vector("energy_base", energy_base)
    return logsumexp(-energy_base) - jnp.log(energy_base.shape[0])


def kale(energy_data: ArrayLike, energy_base: ArrayLike, log_partition: ArrayLike) -> jax.Array:
    r"""KALE objective of an energy and a log-partition, to be maximised in both.

    .. math:: F(E, A) = -\mathbb{E}_P[E + A] - \mathbb{E}_G[\exp(-(E + A))] + 1

    a lower bound of `donsker_varadhan`, tight at $A = \log \mathbb{E}_G[\exp(-E)]$. Source: arXiv:2003.05033.

    Args:
        energy_data: energies of data, shape `(M,)`.
        energy_base: energies of base draws, shape `(N,)`.
        log_partition: A, scalar.

    Returns:
        Scalar.

    Raises:
        TypeError: for what is not real numbers.
        ValueError: for another shape.

    Example:
        >>> zero = jnp.zeros(3)
        >>> float(kale(zero, zero, 0.0))
        0.0
    """
    energy_data, energy_base = as_vector("energy_data", energy_data), as_vector("energy_base", energy_base)
    log_partition = as_floats("log_partition", log_partition)
    if log_partition.ndim:
        raise ValueError(f"Expected log_partition to be a scalar; got shape {log_partition.shape}.")
    return 1.0 - jnp.mean(energy_data) - log_partition - jnp.mean(jnp.exp(-energy_base - log_partition))


def donsker_varadhan(energy_data: ArrayLike, energy_base: ArrayLike) -> jax.Array:
    r"""Donsker-Varadhan lower bound of $KL(P\|G)$: the generalized log-likelihood of an energy.

    .. math:: L(E) = -\mathbb{E}_P[E] - \log \mathbb{E}_G[\exp(-E)]

    Args:
        energy_data: energies of data, shape `(M,)`.
        energy_base: energies of base draws, shape `(N,)`.

    Returns:
        Scalar.

    Raises:
        TypeError: for what is not real numbers.
        ValueError: for another shape.
    """
    return -jnp.mean(as_vector("energy_data", energy_data)) - batch_log_partition(energy_base)


def base_loss(energy_base: ArrayLike) -> jax.Array:
    r"""The part of KALE that depends on the base, $-\log \frac1N \sum_i \exp(-E(B(z_i)))$, to be minimised.

    Its gradient in the base is $\sum_i w_i \nabla E(B(z_i))$ with self-normalised weights
    $w_i \propto \exp(-E(B(z_i)))$. Source: arXiv:2003.05033.

    Args:
        energy_base: energies of base draws, shape `(N,)`.

    Returns:
        Scalar.

    Raises:
        TypeError: for what is not real numbers.
        ValueError: for another shape.
    """
    return -batch_log_partition(energy_base)
