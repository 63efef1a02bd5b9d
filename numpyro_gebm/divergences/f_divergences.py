"""f-divergences and their variational bounds, which need samples only."""

import dataclasses
import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from gebm.validation import one_of
from numpyro_gebm.divergences.samples import as_vector

__all__ = ["F_DIVERGENCES", "FDivergence", "f_divergence"]


@dataclasses.dataclass(frozen=True)
class FDivergence:
    r"""An f-divergence, $D_f(P\|Q) = E_Q f(dP/dQ)$ with f convex, in its variational form.

    .. math:: D_f(P\|Q) = \sup_T \{ E_P T - E_Q f^*(T) \}, \qquad f^*(t) = \sup_u \{ u t - f(u) \}

    The seven of `F_DIVERGENCES` are those of arXiv:1606.00709. All functions work element by element. The conjugates of
    "pearson_chi2" and "total_variation" are those of f on all real u.

    Args:
        name: what it is called.
        generator: f, of $u \ge 0$.
        conjugate: $f^*$; infinite outside of its domain.
        optimal_critic: the T that attains the supremum, as a function of the density ratio $r = dP/dQ$.
        activation: a map from all real numbers, the output of a network, into the domain of $f^*$.

    Example:
        >>> kl = f_divergence("kl")
        >>> x, y = jax.random.normal(jax.random.key(0), (2, 10_000))
        >>> critic = lambda x: 1.0 + (x - 0.5)  # 1 + log dP/dQ, for N(1, 1) and N(0, 1)
        >>> print(f"{kl.bound(critic(x + 1.0), critic(y)):.1f}")
        0.5
    """

    name: str
    generator: Callable[[jax.Array], jax.Array]
    conjugate: Callable[[jax.Array], jax.Array]
    optimal_critic: Callable[[jax.Array], jax.Array]
    activation: Callable[[jax.Array], jax.Array]

    def bound(self, critic_p: ArrayLike, critic_q: ArrayLike) -> jax.Array:
        r"""The variational lower bound $E_P T - E_Q f^*(T)$ of a critic T, to be maximised in it.

        Args:
            critic_p: T on a sample of P, shape `(M,)`; `activation` of a network's output.
            critic_q: T on a sample of Q, shape `(N,)`.

        Returns:
            Scalar; minus infinity if a value of `critic_q` is outside of the domain of $f^*$.

        Raises:
            TypeError: for what is not real numbers.
            ValueError: unless both are vectors with at least one entry.
        """
        critic_p, critic_q = as_vector("critic_p", critic_p), as_vector("critic_q", critic_q)
        return critic_p.mean() - self.conjugate(critic_q).mean()


def _inside(inside, t, conjugate):
    """The conjugate where t is in its domain, infinity elsewhere, and no NaN in the gradient of either."""
    return jnp.where(inside, conjugate(jnp.where(inside, t, -0.25)), jnp.inf)


def _u_log_u(u):
    positive = u > 0.0
    return jnp.where(positive, u * jnp.log(jnp.where(positive, u, 1.0)), 0.0)


_LOG2 = math.log(2.0)

#: The f-divergences of this module, by name.
F_DIVERGENCES = {
    divergence.name: divergence
    for divergence in (
        FDivergence(
            "kl",
            _u_log_u,
            lambda t: jnp.exp(t - 1.0),
            lambda r: 1.0 + jnp.log(r),
            lambda v: v,
        ),
        FDivergence(
            "reverse_kl",
            lambda u: -jnp.log(u),
            lambda t: _inside(t < 0.0, t, lambda t: -1.0 - jnp.log(-t)),
            lambda r: -1.0 / r,
            lambda v: -jnp.exp(-v),
        ),
        FDivergence(
            "pearson_chi2",
            lambda u: (u - 1.0) ** 2,
            lambda t: 0.25 * t**2 + t,
            lambda r: 2.0 * (r - 1.0),
            lambda v: v,
        ),
        FDivergence(
            "squared_hellinger",
            lambda u: (jnp.sqrt(u) - 1.0) ** 2,
            lambda t: _inside(t < 1.0, t, lambda t: t / (1.0 - t)),
            lambda r: 1.0 - r**-0.5,
            lambda v: -jnp.expm1(-v),
        ),
        FDivergence(  # twice the usual Jensen-Shannon divergence, as in arXiv:1606.00709
            "jensen_shannon",
            lambda u: _u_log_u(u) - (u + 1.0) * jnp.log(0.5 * (u + 1.0)),
            lambda t: _inside(t < _LOG2, t, lambda t: -jnp.log1p(-jnp.expm1(t))),
            lambda r: _LOG2 - jnp.log1p(1.0 / r),
            lambda v: _LOG2 - jax.nn.softplus(-v),
        ),
        FDivergence(  # the loss of the discriminator in a GAN; jensen_shannon - log 4
            "gan",
            lambda u: _u_log_u(u) - (u + 1.0) * jnp.log1p(u),
            lambda t: _inside(t < 0.0, t, lambda t: -jnp.log(-jnp.expm1(t))),
            lambda r: -jnp.log1p(1.0 / r),
            lambda v: -jax.nn.softplus(-v),
        ),
        FDivergence(
            "total_variation",
            lambda u: 0.5 * jnp.abs(u - 1.0),
            lambda t: _inside(jnp.abs(t) <= 0.5, t, lambda t: t),
            lambda r: 0.5 * jnp.sign(r - 1.0),
            lambda v: 0.5 * jnp.tanh(v),
        ),
    )
}


def f_divergence(name: str) -> FDivergence:
    """The f-divergence of a name.

    Args:
        name: "kl", "reverse_kl", "pearson_chi2", "squared_hellinger", "jensen_shannon", "gan" or "total_variation".

    Returns:
        `FDivergence`.

    Raises:
        ValueError: for another name.

    Example:
        >>> float(f_divergence("total_variation").generator(jnp.array(3.0)))
        1.0
    """
    return F_DIVERGENCES[one_of("name", name, F_DIVERGENCES)]
