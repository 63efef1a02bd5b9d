"""Real NVP as a host distribution: a base with a density, and an energy with a known log-partition."""

from collections.abc import Callable, Sequence
from typing import Any, cast

import pyro.distributions as dist
import torch
from pyro.distributions import constraints
from pyro.distributions.torch_transform import TransformModule
from torch import nn

from gebm.networks import shape_of
from gebm.validation import flag, integer
from pyro_gebm.base import snapshot, trained_part
from pyro_gebm.callables import over_batch
from pyro_gebm.nn import MLP

__all__ = ["AffineCoupling", "FlowRatioEnergy", "real_nvp"]


class AffineCoupling(TransformModule):
    r"""Affine coupling: one part of x stays, the other is scaled and shifted by functions of it.

    .. math:: y_a = x_a, \qquad y_b = (x_b - t(x_a)) \exp(-s(x_a)), \qquad \log|\det J| = -\textstyle\sum s(x_a)

    with $a$ the first `dim // 2` coordinates and $b$ the others, or the two exchanged; $s$ a tanh network, $t$ a ReLU
    network, both zero at the start, so that the transform is the identity. The inverse, from data to latent, is the map
    $x \exp(s) + t$ of the source: this fits better than the two directions exchanged. Unlike
    Pyro's own `AffineCoupling` it has a network each for s and t, no clipping, and no cache: `log_prob` is never stale
    after an update of the parameters, and copying and pickling work. Source: arXiv:1605.08803.

    Args:
        dim: length of x, at least 2.
        hidden: widths of the hidden layers of both networks.
        swap: whether the first part is the one that changes.

    Raises:
        ValueError: if `dim` is less than 2.

    Example:
        >>> coupling = AffineCoupling(3, hidden=(8,))
        >>> bool((coupling.inv(coupling(torch.ones(5, 3))) == 1).all())
        True
    """

    domain = constraints.real_vector
    codomain = constraints.real_vector
    bijective = True

    def __init__(self, dim: int, hidden: Sequence[int] = (100, 100), swap: bool = False):
        super().__init__()
        self.dim, self.hidden, self.swap = _check_dim(dim), shape_of("hidden", hidden), flag("swap", swap)
        kept, changed = self._sizes()[:: -1 if swap else 1]
        # numbered as NumPyro numbers them, so that a saved flow has the same names in both packages
        self.add_module("0", _zero_at_start(MLP((kept,), (changed,), hidden, activation="relu")))
        self.add_module("1", _zero_at_start(MLP((kept,), (changed,), hidden, activation="tanh")))
        self._last = None

    __hash__ = TransformModule.__hash__

    @property
    def shift(self) -> MLP:
        """The network t."""
        return cast(MLP, self._modules["0"])

    @property
    def log_scale(self) -> MLP:
        """The network s."""
        return cast(MLP, self._modules["1"])

    def __repr__(self) -> str:
        return f"AffineCoupling(dim={self.dim}, hidden={self.hidden}, swap={self.swap})"

    def _sizes(self):
        return self.dim // 2, self.dim - self.dim // 2

    def _split(self, x: torch.Tensor) -> Sequence[torch.Tensor]:
        """`(kept, changed)`."""
        if x.shape[-1] != self.dim:
            raise ValueError(f"Expected a last axis of length {self.dim}; got shape {tuple(x.shape)}.")
        return x.split(self._sizes(), -1)[:: -1 if self.swap else 1]

    def _join(self, kept: torch.Tensor, changed: torch.Tensor) -> torch.Tensor:
        return torch.cat([changed, kept] if self.swap else [kept, changed], -1)

    def _call(self, x: torch.Tensor) -> torch.Tensor:
        kept, changed = self._split(x)
        log_scale = over_batch(self.log_scale, kept, 1)
        return self._join(kept, (changed - over_batch(self.shift, kept, 1)) * (-log_scale).exp())

    def _inverse(self, y: torch.Tensor) -> torch.Tensor:
        kept, changed = self._split(y)
        log_scale = over_batch(self.log_scale, kept, 1)
        x = self._join(kept, changed * log_scale.exp() + over_batch(self.shift, kept, 1))
        self._last = x, log_scale  # for the call of `log_abs_det_jacobian` that follows in every `log_prob`
        return x

    def log_abs_det_jacobian(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        """Minus the sum of s: tensor of shape `x.shape[:-1]`."""
        last, self._last = self._last, None
        log_scale = last[1] if last is not None and last[0] is x else over_batch(self.log_scale, self._split(x)[0], 1)
        return -log_scale.sum(-1)

    def with_cache(self, cache_size: int = 1) -> "AffineCoupling":
        """The transform itself: it keeps no cache."""
        return self

    def __getstate__(self) -> dict[str, Any]:
        return {**super().__getstate__(), "_last": None}


def real_nvp(
    dim: int, num_couplings: int = 5, hidden: Sequence[int] = (100, 100)
) -> torch.distributions.TransformedDistribution:
    r"""Real NVP: a standard normal through affine couplings that change the two halves of the vector in turn.

    .. math:: \log g(x) = \log N(z; 0, I) - \sum_k \log|\det J_k|, \qquad x = T_K \circ \dots \circ T_1(z)

    The flow starts as the standard normal, on PyTorch's default device (for another: `with torch.device("cuda"):`). It
    is a base with a density: train it by `KALE(..., objective="maximum_likelihood")`, give it to `GEBM`. Source:
    arXiv:1605.08803.

    Args:
        dim: length of an event, at least 2.
        num_couplings: number of affine couplings.
        hidden: widths of the hidden layers of their networks.

    Returns:
        A `TransformedDistribution` over vectors of length `dim`.

    Raises:
        ValueError: if `dim` is less than 2, or there is no coupling.

    Example:
        >>> flow = real_nvp(3)
        >>> round(flow.log_prob(torch.zeros(3)).item(), 4)  # N(0, I) at its mean
        -2.7568
    """
    integer("num_couplings", num_couplings)
    latent_prior = dist.Normal(torch.zeros(_check_dim(dim)), torch.ones(dim)).to_event(1)
    couplings = [AffineCoupling(dim, hidden, swap=k % 2 == 1) for k in range(num_couplings)]
    return dist.TransformedDistribution(latent_prior, couplings)


class FlowRatioEnergy(nn.Module):
    r"""Energy that turns a base with density g into a flow q, with a known log-partition.

    .. math:: E(x) = \log g(x) - \log q(x) - C, \qquad A = \log \mathbb{E}_G[\exp(-E)] = C, \qquad
        C = \log\|\psi\|^2

    with $\psi$ the parameters of q. The GEBM of that base and this energy is q itself, so that its log-likelihood is
    exact and a learned A can be checked. Only q is trained: g is the base as it is now. Source: arXiv:2003.05033, the
    check that a GEBM whose base has a density is a standard EBM.

    Args:
        base: the base of the GEBM: a `TransformedDistribution` whose transforms are modules; copied.
        flow: another over the same events, copied; None starts at the base.

    Shapes: `(N,) + base.event_shape` to `(N,)`.

    Raises:
        ValueError: if one of them has no such transforms, or their event shapes differ.

    Example:
        >>> energy = FlowRatioEnergy(real_nvp(2))
        >>> bool((energy(torch.zeros(3, 2)) == -energy.log_partition).all())
        True
    """

    def __init__(
        self,
        base: torch.distributions.TransformedDistribution,
        flow: torch.distributions.TransformedDistribution | None = None,
    ):
        super().__init__()
        flow = base if flow is None else flow
        for name, law in (("base", base), ("flow", flow)):
            if not isinstance(law, torch.distributions.TransformedDistribution) or trained_part(law) is None:
                raise ValueError(
                    f"Expected {name} to be a TransformedDistribution whose transforms are modules; got "
                    f"{type(law).__name__}. Use `real_nvp`."
                )
        if flow.event_shape != base.event_shape:
            raise ValueError(
                f"Expected a flow over events of shape {tuple(base.event_shape)}; got {tuple(flow.event_shape)}."
            )
        self._laws = snapshot(flow), snapshot(base)
        self.flow, self.base = (cast(nn.Module, trained_part(law)) for law in self._laws)
        self.flow.requires_grad_(True)

    @property
    def q(self) -> torch.distributions.TransformedDistribution:
        """The flow that the GEBM is."""
        return self._laws[0]

    @property
    def log_partition(self) -> torch.Tensor:
        """C, the true A: a scalar, differentiable in the parameters of q."""
        return torch.stack([(parameter**2).sum() for parameter in self.flow.parameters()]).sum().log()

    def _apply(self, fn: Callable[[torch.Tensor], torch.Tensor], recurse: bool = True) -> "FlowRatioEnergy":
        """Their priors go where the networks go."""
        for law in self._laws:
            _apply_to_tensors(law.base_dist, fn)
        return super()._apply(fn, recurse)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        q, g = self._laws
        # fresh tensors: flows made of Pyro's own transforms cache by identity
        return g.log_prob(x.clone()) - q.log_prob(x.clone()) - self.log_partition


def _apply_to_tensors(law: torch.distributions.Distribution, fn: Callable[[torch.Tensor], torch.Tensor]) -> None:
    for name, value in vars(law).items():
        if isinstance(value, torch.Tensor):
            setattr(law, name, fn(value))
        elif isinstance(value, torch.distributions.Distribution):
            _apply_to_tensors(value, fn)


def _check_dim(dim: int) -> int:
    return integer("dim", dim, minimum=2)  # so that one part can act on the other


def _zero_at_start(network: MLP) -> MLP:
    for parameter in network.layers[-1].parameters():
        nn.init.zeros_(parameter)
    return network
