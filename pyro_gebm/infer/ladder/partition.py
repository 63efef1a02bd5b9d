"""Estimates of the log-partition of a GEBM."""

import copy
from functools import partial

import numpy as np
import torch
from pyro.ops.stats import effective_sample_size
from tqdm import tqdm

from gebm.ladder import BATCH_SIZE, DELAY, slopes
from gebm.validation import flag, instance, latent_law, optional
from gebm.weights import LogPartition, Method, estimate
from pyro_gebm.callables import draw_quietly
from pyro_gebm.gebm import GEBM
from pyro_gebm.infer.ladder.smc import SMC, draw
from pyro_gebm.infer.ladder.tempering import Ladder

__all__ = ["LogPartitionCurve", "log_partition", "log_partition_curve", "normalized"]


def log_partition(
    gebm: GEBM,
    method: Method = "smc",
    *,
    num_samples: int | None = None,
    draws: torch.Tensor | np.ndarray | None = None,
    progress_bar: bool = True,
) -> LogPartition:
    r"""Estimate the log-partition $A = \log \int \exp(-\beta E)\, dG$ of a GEBM, with a standard error.

    - `"importance"`: the mean of $e^{-\beta E}$ over base draws. Unbiased, but useless if base and
      model differ much: the warnings say so.
    - `"ais"`: annealed importance sampling (arXiv:physics/9803008): `SMC` without resampling.
    - `"smc"`: sequential Monte Carlo (`SMC`), the default.
    - `"bridge"`: bridge sampling between base draws and given draws of the model (`draws`), such as those of an MCMC
      run (doi:10.2307/24306045).

    The estimate does not depend on `gebm.log_partition`.

    Args:
        gebm: a `GEBM` with batch shape ().
        method: one of "importance", "ais", "smc", "bridge".
        num_samples: base draws, or particles ("smc" takes the next multiple of its 64 groups); None is 100,000 for
            "importance", 4,096 for "ais" and "smc", and as many as there are draws for "bridge".
        draws: latents drawn from the tilted law, of shape `(chains, draws) + event_shape`, for "bridge".
        progress_bar: whether to show one if it takes longer than two seconds.

    Returns:
        A `LogPartition`; its `warnings` say when it cannot be trusted.

    Raises:
        ValueError: for an unknown method, a GEBM with a batch shape, draws of a wrong shape, or fewer than two samples.
        RuntimeError: if the energy is NaN at a draw of the base.

    Example:
        >>> import math, pyro, pyro.distributions as dist
        >>> from pyro_gebm import GEBM
        >>> pyro.set_rng_seed(0)
        >>> gebm = GEBM(dist.Normal(0.0, 1.0), lambda x: 1.5 * x**2)
        >>> estimate = log_partition(gebm, "importance")
        >>> abs(estimate.value + 0.5 * math.log(4.0)) < 4 * estimate.std_error
        True
    """
    latent = instance("gebm", gebm, GEBM).latent

    def of_particles(num: int, num_groups: int) -> LogPartition:
        return SMC(num, num_groups).run(latent, progress_bar=progress_bar).log_partition

    return estimate(
        method,
        num_samples,
        None if draws is None else torch.as_tensor(draws).to(draw_quietly(gebm.latent_prior, 1)),
        latent.event_shape,
        of_base=lambda num: _log_weights_of_base(latent, num, progress_bar),
        of_draws=lambda draws: _log_weights(latent, draws.reshape(-1, *latent.event_shape)).reshape(draws.shape[:2]),
        of_particles=of_particles,
        effective_sample_size=lambda values: effective_sample_size(torch.as_tensor(values)),
    )


def normalized(gebm: GEBM, smc: SMC | None = None) -> GEBM:
    r"""The same model with a log-partition whose gradient is right, for programs in which energy or base are learned.

    A fresh run of SMC estimates A, and its particles the gradient by the parameters, in base and energy:

    .. math:: \nabla A = \mathbb{E}_{\nu}[\nabla (\log \eta - \beta E \circ B)(z)]

    `SVI` with `x ~ normalized(GEBM(...))` in the model then follows the gradient of the ELBO, without bias from the
    log-partition as the number of particles grows. Source: arXiv:2003.05033.

    Args:
        gebm: a `GEBM` with batch shape ().
        smc: an `SMC`; None is one of 1,024 particles in 16 groups.

    Returns:
        A `GEBM`.

    Raises:
        ValueError: for a GEBM with a batch shape.

    Example:
        >>> import math, pyro, pyro.distributions as dist
        >>> pyro.set_rng_seed(0)
        >>> precision = torch.tensor(3.0, requires_grad=True)
        >>> gebm = GEBM(dist.Normal(0.0, 1.0), lambda x: 0.5 * precision * x**2)
        >>> value = normalized(gebm).log_partition  # -log(1 + precision) / 2
        >>> (slope,) = torch.autograd.grad(value, precision)
        >>> abs(value.item() + math.log(4.0) / 2) < 0.1, abs(float(slope) + 1 / 8) < 0.05
        (True, True)
    """
    instance("gebm", gebm, GEBM)
    latent_law("latent", gebm.latent)
    new = copy.copy(gebm)
    new.log_partition = gebm.inverse_temperature.new_zeros(())
    z, value = draw(new.latent, SMC(1024, 16) if smc is None else instance("smc", smc, SMC))
    score = new.latent.log_prob(z).mean()
    new.log_partition = value + score - score.detach()
    return new


class LogPartitionCurve(torch.nn.Module):
    r"""$\beta \mapsto \log Z(\beta)$ between the rungs of a ladder: a cubic Hermite spline, from values and slopes.

    log Z is convex. Where a slope is so steep that the spline would not be (an energy of infinite mean at $\beta = 0$,
    or noise), it is made less so. Beyond the last rung the value is infinite, so that densities are 0 there: nothing is
    known about it.

    Args:
        inverse_temperatures: the rungs, increasing from 0, shape `(K,)`.
        values: log Z there, shape `(K,)`.
        slopes: its derivatives, minus the mean energies, shape `(K,)`.

    Example:
        >>> import torch
        >>> curve = LogPartitionCurve(torch.tensor([0.0, 1.0]), torch.tensor([0.0, -0.5]), torch.tensor([-0.6, -0.4]))
        >>> float(curve(0.0)), float(curve(1.0))
        (0.0, -0.5)
    """

    inverse_temperatures: torch.Tensor
    values: torch.Tensor
    slopes: torch.Tensor

    def __init__(self, inverse_temperatures: torch.Tensor, values: torch.Tensor, slopes: torch.Tensor) -> None:
        super().__init__()
        self.register_buffer("inverse_temperatures", inverse_temperatures)
        self.register_buffer("values", values)
        self.register_buffer("slopes", slopes)

    def forward(self, inverse_temperature: float | torch.Tensor) -> torch.Tensor:
        x, y, slope = self.inverse_temperatures, self.values, self.slopes
        beta = torch.as_tensor(inverse_temperature, dtype=y.dtype, device=y.device)
        i = (torch.searchsorted(x, beta.detach().contiguous(), right=True) - 1).clamp(0, len(x) - 2)
        width, rise = x[i + 1] - x[i], y[i + 1] - y[i]
        left, right = (rise - width * slope[i]).clamp(min=0.0), (width * slope[i + 1] - rise).clamp(min=0.0)
        left, right = torch.minimum(left, 2 * right), torch.minimum(right, 2 * left)  # convex between the rungs
        u = (beta - x[i]) / width
        inside = y[i] + u * rise - u * (1 - u) * ((1 - u) * left + u * right)
        return torch.where(beta > x[-1], torch.inf, inside)


def log_partition_curve(gebm: GEBM, smc: SMC | None = None, *, progress_bar: bool = True) -> LogPartitionCurve:
    r"""$\log Z(\beta)$ from 0 to the inverse temperature of a GEBM, as a function, for use as its `log_partition`.

    The inverse temperature can then be a random variable of a model: `gebm.temper(beta)` stays normalised. Where the
    energy is infinite on a part of the base, log Z jumps at 0 from 0 to the logarithm of the share of the rest.

    Args:
        gebm: a `GEBM` with batch shape (), at the largest inverse temperature that will be needed.
        smc: an `SMC`; None is one of 16,384 particles with `effective_fraction=0.9`, whose rungs lie close together.
        progress_bar: whether to show one if it takes longer than two seconds.

    Returns:
        A `LogPartitionCurve`.

    Raises:
        ValueError: for a GEBM with a batch shape or inverse temperature 0, or an energy of infinite mean above it.

    Example:
        >>> import math, pyro, pyro.distributions as dist
        >>> from pyro_gebm import GEBM
        >>> pyro.set_rng_seed(0)
        >>> energy = lambda x: 0.5 * x**2
        >>> coldest = GEBM(dist.Normal(0.0, 1.0), energy, inverse_temperature=10.0)
        >>> curve = log_partition_curve(coldest)
        >>> gebm = GEBM(dist.Normal(0.0, 1.0), energy, log_partition=curve)
        >>> bool(abs(curve(3.0) + 0.5 * math.log(4.0)) < 0.02)
        True
    """
    instance("gebm", gebm, GEBM)
    optional(partial(instance, types=SMC))("smc", smc)
    if not gebm.inverse_temperature.max() > 0:
        raise ValueError(f"Expected inverse_temperature > 0, where the curve ends; got {gebm.inverse_temperature}.")
    result = (smc or SMC(16_384, effective_fraction=0.9)).run(gebm.latent, progress_bar=progress_bar)
    values = (result.inverse_temperatures, result.log_partitions, slopes(*result[2:5]))
    return LogPartitionCurve(*(torch.as_tensor(x).to(gebm.inverse_temperature) for x in values))


@torch.no_grad()
def _log_weights(latent, z):
    ladder = Ladder(latent)
    u = ladder.unconstrain(z)
    return np.concatenate([ladder.neg_beta_energy(part).double().cpu().numpy() for part in u.split(BATCH_SIZE)])


def _log_weights_of_base(latent, num, progress_bar):
    prior = latent.gebm.latent_prior
    sizes = [BATCH_SIZE] * (num // BATCH_SIZE) + [num % BATCH_SIZE] * (num % BATCH_SIZE > 0)
    sizes = tqdm(sizes, "Draws of the base", unit="batch", delay=DELAY, disable=not flag("progress_bar", progress_bar))
    return np.concatenate([_log_weights(latent, prior.sample((size,))) for size in sizes])
