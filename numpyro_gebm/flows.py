"""Real NVP as a host distribution: a base with a density, and an energy with a known log-partition."""

from collections.abc import Sequence
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpyro.distributions as dist
from jax import lax, random
from jax.typing import ArrayLike
from numpyro.distributions import constraints
from numpyro.distributions.transforms import Transform

from gebm.networks import shape_of
from gebm.validation import flag, integer
from numpyro_gebm.callables import over_batch
from numpyro_gebm.distribution import Distribution, over_stack, sample_stack
from numpyro_gebm.keys import typed
from numpyro_gebm.nn import MLP

__all__ = ["AffineCoupling", "FlowRatioEnergy", "real_nvp"]


class AffineCoupling(Transform):
    r"""Affine coupling: one part of x stays, the other is scaled and shifted by functions of it.

    .. math:: y_a = x_a, \qquad y_b = (x_b - t(x_a)) \exp(-s(x_a)), \qquad \log|\det J| = -\textstyle\sum s(x_a)

    with $a$ the first `dim // 2` coordinates and $b$ the others, or the two exchanged; $s$ a tanh network, $t$ a ReLU
    network, both zero at the start, so that the transform is the identity. The inverse, from data to latent, is the map
    $x \exp(s) + t$ of the source: this fits better than the two directions exchanged. Source:
    arXiv:1605.08803.

    Args:
        dim: length of x, at least 2.
        hidden: widths of the hidden layers of both networks.
        swap: whether the first part is the one that changes.
        rng_key: a JAX random key.

    Raises:
        ValueError: if `dim` is less than 2.

    Example:
        >>> coupling = AffineCoupling(3, hidden=(8,), rng_key=jax.random.key(0))
        >>> bool((coupling.inv(coupling(jnp.ones((5, 3)))) == 1).all())
        True
    """

    domain = constraints.real_vector  # pyright: ignore[reportIncompatibleMethodOverride, reportAssignmentType]  # as in NumPyro
    codomain = constraints.real_vector  # pyright: ignore[reportIncompatibleMethodOverride, reportAssignmentType]  # as in NumPyro

    dim: int
    hidden: tuple[int, ...]
    swap: bool
    shift: MLP
    log_scale: MLP

    def __init__(self, dim: int, hidden: Sequence[int] = (100, 100), swap: bool = False, *, rng_key: jax.Array):
        self.dim, self.hidden, self.swap = _check_dim(dim), shape_of("hidden", hidden), flag("swap", swap)
        kept, changed = self._sizes()[:: -1 if swap else 1]
        key_shift, key_log_scale = random.split(typed(rng_key))
        self.shift = _zero_at_start(MLP((kept,), (changed,), hidden, activation="relu", rng_key=key_shift))
        self.log_scale = _zero_at_start(MLP((kept,), (changed,), hidden, activation="tanh", rng_key=key_log_scale))

    def __repr__(self) -> str:
        return f"AffineCoupling(dim={self.dim}, hidden={self.hidden}, swap={self.swap})"

    def _sizes(self):
        return self.dim // 2, self.dim - self.dim // 2

    def _split(self, x: jax.Array) -> list[jax.Array]:
        """`(kept, changed)`."""
        if jnp.shape(x)[-1] != self.dim:
            raise ValueError(f"Expected a last axis of length {self.dim}; got shape {jnp.shape(x)}.")
        return jnp.split(x, [self.dim // 2], axis=-1)[:: -1 if self.swap else 1]

    def _join(self, kept: jax.Array, changed: jax.Array) -> jax.Array:
        return jnp.concatenate([changed, kept] if self.swap else [kept, changed], axis=-1)

    def __call__(self, x: jax.Array) -> jax.Array:
        return self.call_with_intermediates(x)[0]

    def call_with_intermediates(self, x: jax.Array) -> tuple[jax.Array, jax.Array]:
        """The image of x, and s."""
        kept, changed = self._split(x)
        log_scale = over_batch(self.log_scale, kept, 1)
        changed = (changed - over_batch(self.shift, kept, 1)) * jnp.exp(-log_scale)
        return self._join(kept, changed), log_scale

    def _inverse(self, y: jax.Array) -> jax.Array:
        kept, changed = self._split(y)
        scale = jnp.exp(over_batch(self.log_scale, kept, 1))
        return self._join(kept, changed * scale + over_batch(self.shift, kept, 1))

    def log_abs_det_jacobian(self, x: jax.Array, y: jax.Array, intermediates: jax.Array | None = None) -> jax.Array:
        """Minus the sum of s: array of shape `x.shape[:-1]`."""
        if intermediates is None:  # of y: what stays is the same in both, and the inverse has evaluated it there
            intermediates = over_batch(self.log_scale, self._split(y)[0], 1)
        return -intermediates.sum(-1)

    def tree_flatten(self) -> tuple[Any, Any]:
        """Both networks are data, the rest is static."""
        static = {"dim": self.dim, "hidden": self.hidden, "swap": self.swap}
        return (self.shift, self.log_scale), (("shift", "log_scale"), static)

    def eq(self, other: object, static: bool = False) -> ArrayLike:
        """Whether the other is a coupling with the same arrays."""
        return isinstance(other, AffineCoupling) and eqx.tree_equal(self, other)


class Flow(dist.TransformedDistribution, Distribution):
    """A `TransformedDistribution` whose transforms hold networks."""

    sample = sample_stack(dist.TransformedDistribution.sample)
    log_prob = over_stack("event_shape")(dist.TransformedDistribution.log_prob)

    def sample_with_intermediates(
        self, key: jax.Array | None, sample_shape: tuple[int, ...] = ()
    ) -> tuple[ArrayLike, list[Any]]:
        """Draws, and what `log_prob` can use again; a stack has nothing of the kind."""
        if self.stack_shape:
            return self.sample(key, sample_shape), []
        return super().sample_with_intermediates(key, sample_shape)


def real_nvp(
    dim: int, num_couplings: int = 5, hidden: Sequence[int] = (100, 100), *, rng_key: jax.Array
) -> dist.TransformedDistribution:
    r"""Real NVP: a standard normal through affine couplings that change the two halves of the vector in turn.

    .. math:: \log g(x) = \log N(z; 0, I) - \sum_k \log|\det J_k|, \qquad x = T_K \circ \dots \circ T_1(z)

    The flow starts as the standard normal. It is a base with a density: train it by
    `KALE(..., objective="maximum_likelihood")`, give it to `GEBM`. Source: arXiv:1605.08803.

    Args:
        dim: length of an event, at least 2.
        num_couplings: number of affine couplings.
        hidden: widths of the hidden layers of their networks.
        rng_key: a JAX random key.

    Returns:
        A `TransformedDistribution` over vectors of length `dim`.

    Raises:
        ValueError: if `dim` is less than 2, or there is no coupling.

    Example:
        >>> flow = real_nvp(3, rng_key=jax.random.key(0))
        >>> round(float(flow.log_prob(jnp.zeros(3))), 4)  # N(0, I) at its mean
        -2.7568
    """
    integer("num_couplings", num_couplings)
    latent_prior = dist.Normal(0.0, 1.0).expand([_check_dim(dim)]).to_event(1)
    keys = random.split(typed(rng_key), num_couplings)
    couplings: list[Transform] = [
        AffineCoupling(dim, hidden, swap=k % 2 == 1, rng_key=keys[k]) for k in range(num_couplings)
    ]
    return Flow(latent_prior, couplings)


class FlowRatioEnergy(eqx.Module):
    r"""Energy that turns a base with density g into a flow q, with a known log-partition.

    .. math:: E(x) = \log g(x) - \log q(x) - C, \qquad A = \log \mathbb{E}_G[\exp(-E)] = C, \qquad
        C = \log\|\psi\|^2

    with $\psi$ the parameters of q. The GEBM of that base and this energy is q itself, so that its log-likelihood is
    exact and a learned A can be checked. Only q is trained: g is the base as it is now. Source: arXiv:2003.05033, the
    check that a GEBM whose base has a density is a standard EBM.

    Args:
        base: the base of the GEBM: a `TransformedDistribution` whose transforms have parameters.
        flow: another over the same events; None starts at the base.

    Shapes: `base.event_shape` to `()`.

    Raises:
        ValueError: if one of them has no such transforms, or their event shapes differ.

    Example:
        >>> energy = FlowRatioEnergy(real_nvp(2, rng_key=jax.random.key(0)))
        >>> bool(energy(jnp.zeros(2)) == -energy.log_partition)
        True
    """

    flow: list[Any]
    base: list[Any]
    _priors: tuple[dist.Distribution, dist.Distribution]

    def __init__(self, base: dist.TransformedDistribution, flow: dist.TransformedDistribution | None = None):
        flow = base if flow is None else flow
        for name, law in (("base", base), ("flow", flow)):
            if not isinstance(law, dist.TransformedDistribution) or not jax.tree.leaves(law.transforms):
                raise ValueError(
                    f"Expected {name} to be a TransformedDistribution whose transforms have parameters; got "
                    f"{type(law).__name__}. Use `real_nvp`."
                )
        if flow.event_shape != base.event_shape:
            raise ValueError(f"Expected a flow over events of shape {base.event_shape}; got {flow.event_shape}.")
        self.flow, self.base = list(flow.transforms), list(base.transforms)
        self._priors = flow.base_dist, base.base_dist

    @property
    def q(self) -> dist.TransformedDistribution:
        """The flow that the GEBM is."""
        return dist.TransformedDistribution(lax.stop_gradient(self._priors[0]), self.flow)

    @property
    def log_partition(self) -> jax.Array:
        """C, the true A: a scalar, differentiable in the parameters of q."""
        arrays = jax.tree.leaves(eqx.filter(self.flow, eqx.is_inexact_array))
        return jnp.log(jnp.stack([jnp.sum(array**2) for array in arrays]).sum())

    def __call__(self, x: jax.Array) -> jax.Array:
        g = dist.TransformedDistribution(*lax.stop_gradient((self._priors[1], self.base)))
        return g.log_prob(x) - self.q.log_prob(x) - self.log_partition


def _check_dim(dim: int) -> int:
    return integer("dim", dim, minimum=2)  # so that one part can act on the other


def _zero_at_start(network: MLP) -> MLP:
    last = jax.tree.map(jnp.zeros_like, network.layers[-1])
    return eqx.tree_at(lambda network: network.layers[-1], network, last)
