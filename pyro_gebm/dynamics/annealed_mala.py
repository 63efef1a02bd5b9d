"""Draws from a tilted prior by independent annealed MALA chains: the default sampler of a GEBM."""

import dataclasses
import math
from functools import partial
from typing import Annotated, Any

import torch
from pyro.distributions.util import sum_rightmost
from torch.distributions import biject_to

from gebm.validation import check_fields, integer, positive, probability
from pyro_gebm.base import without_validation
from pyro_gebm.dynamics.metropolis import mala_step
from pyro_gebm.dynamics.steps import value_and_grad

__all__ = ["AnnealedMALA"]


@dataclasses.dataclass(frozen=True)
class AnnealedMALA:
    r"""Independent MALA chains that start at exact prior draws and are annealed to the tilted prior.

    Chain `n` runs `num_steps` Metropolis-adjusted Langevin steps on $\log \eta(z) - \beta_t E(B(z))$, with
    $\beta_t = \beta\,\min(1, t/T_a)^4$ and $T_a$ a fraction `annealing` of the steps. The proposal with step size h is

    .. math:: z' = z + \tfrac{h^2}{2} \nabla \log \nu_t(z) + h\, \xi, \qquad \xi \sim N(0, I)

    and h is adapted in every chain on its own towards `target_accept_prob`, with a gain that falls as $t^{-1/2}$
    once the annealing is over. One gradient of the energy a step; no resampling, so that draws are independent and
    their law does not depend on how many are asked for. Constrained latents are moved in unconstrained space.

    The law is that of a finite chain: on a linear-Gaussian model the variance is within 3 % at beta 1000. Modes that
    the annealing separates keep the weights they had when they separated; use a longer chain (`num_steps`) or a
    sampler on the ladder where that matters.

    Args:
        num_steps: MALA steps, each one gradient of the energy.
        step_size: initial h, in units of the latent.
        target_accept_prob: acceptance the step size is adapted to.
        annealing: fraction of the steps during which beta rises.
        batch_size: chains run at once; bounds the memory.

    Example:
        >>> import pyro.distributions as dist
        >>> from pyro_gebm import GEBM
        >>> gebm = GEBM(dist.Normal(0.0, 1.0), lambda x: 0.5 * x**2, sampler=AnnealedMALA(num_steps=400))
        >>> tuple(gebm.sample((10,)).shape)
        (10,)
    """

    num_steps: Annotated[int, integer] = 200
    step_size: Annotated[float, positive] = 0.5
    target_accept_prob: Annotated[float, probability] = 0.65
    annealing: Annotated[float, partial(probability, one=True)] = 0.75
    batch_size: Annotated[int, integer] = 4096

    def __post_init__(self):
        check_fields(self)

    def __call__(self, latent: Any, num_samples: int) -> torch.Tensor:
        """Draw latents.

        Args:
            latent: an `EnergyTiltedPrior`.
            num_samples: number of independent chains, one draw each.

        Returns:
            Tensor of shape `(num_samples,) + latent.batch_shape + latent.event_shape`.

        Raises:
            RuntimeError: if the energy is NaN at a prior draw.
        """
        starts = range(0, max(num_samples, 1), self.batch_size)
        return torch.cat([_anneal(latent, min(self.batch_size, num_samples - s), self) for s in starts])


def _anneal(latent, num_chains, config):
    gebm, ndim = latent.gebm, 1 + len(latent.batch_shape)
    prior = without_validation(gebm.latent_prior.expand(latent.batch_shape))
    transform = biject_to(prior.support)

    def log_prior(u):
        z = transform(u)
        jacobian = transform.log_abs_det_jacobian(u, z)
        return prior.log_prob(z) + sum_rightmost(jacobian, jacobian.ndim - ndim)

    def log_weight(u):
        return gebm.log_weight(gebm.decode(transform(u)))

    def evaluate(u):
        """Log-prior and log-weight, and their gradients, at each chain's position."""
        return u, *value_and_grad(log_prior, u), *value_and_grad(log_weight, u)

    def tempered(point, ladder):
        _, log_prior, log_prior_grad, log_weight, log_weight_grad = point
        return log_prior + ladder * log_weight, log_prior_grad + ladder * log_weight_grad

    with torch.no_grad():
        point = evaluate(transform.inv(prior.sample((num_chains,))))
        if torch.isnan(point[3]).any():
            raise RuntimeError("Expected an energy without NaN; got NaN at a base draw.")
        log_step = torch.full_like(point[1], math.log(config.step_size))
        for t in range(1, config.num_steps + 1):
            ladder = min(1.0, t / (config.annealing * config.num_steps)) ** 4
            point, accept_prob = mala_step(point, log_step, evaluate, lambda p, ladder=ladder: tempered(p, ladder))
            gain = 0.1 / math.sqrt(max(1.0, t - config.annealing * config.num_steps))
            log_step = log_step + gain * (accept_prob - config.target_accept_prob)
        return transform(point[0])
