"""Sequential Monte Carlo from the base of a GEBM to its tilted law."""

import dataclasses
import math
from functools import partial
from typing import Annotated

import numpy as np
import torch
from tqdm import tqdm

from gebm.ladder import DELAY, NUM_PILOT, SMCResult, check_groups, with_warning
from gebm.validation import check_fields, flag, integer, latent_law, probability
from gebm.weights import NUM_GROUPS, NUM_PARTICLES, from_log_weights
from pyro_gebm.gebm import EnergyTiltedPrior
from pyro_gebm.infer.ladder.pilot import pilot
from pyro_gebm.infer.ladder.tempering import Ladder, log_increment, mean_of_groups, move, systematic_resample

__all__ = ["SMC", "SMCResult", "draw"]


@dataclasses.dataclass(frozen=True)
class SMC:
    r"""Sequential Monte Carlo: particles go from the base, at beta = 0, to the tilted law.

    On each rung of a ladder $0 = t_0 < \dots < t_K = 1$ of $\nu_t \propto \eta\, e^{-t \beta E \circ B}$ particles are
    weighted by $e^{-(t_k - t_{k-1}) \beta E}$, resampled (systematically), and moved by Metropolis-adjusted Langevin
    trajectories. The product of the mean weights is an estimate of Z. Source: doi:10.1111/j.1467-9868.2006.00553.x;
    arXiv:2202.13230 (the moves).

    A pilot run of 1,024 particles at most finds the ladder (`effective_fraction`) and the step sizes; a fresh run on
    the fixed ladder then gives an unbiased estimate of Z. Its particles are divided into `num_groups` groups that never
    interact; the standard error comes from how much their estimates differ.

    As a `sampler` of a GEBM it finds the weights of modes that single chains cannot move between. Its draws come from
    one population: they are not quite independent, and their number should be large.

    Args:
        num_particles: particles of the fresh run.
        num_groups: groups that they are divided into; `num_particles` of them is annealed importance sampling.
        num_moves: trajectories on each rung.
        effective_fraction: effective sample size of the weights of a rung over the number of particles.

    Raises:
        ValueError: for numbers out of their range, or a GEBM with a batch shape.

    Example:
        >>> import math, pyro, pyro.distributions as dist
        >>> from pyro_gebm import GEBM
        >>> pyro.set_rng_seed(0)
        >>> gebm = GEBM(dist.Normal(0.0, 1.0), lambda x: 1.5 * x**2, sampler=SMC(num_particles=1024))
        >>> result = SMC().run(gebm.latent)
        >>> abs(result.log_partition.value + 0.5 * math.log(4.0)) < 5 * result.log_partition.std_error
        True
        >>> gebm.sample((100,)).shape
        torch.Size([100])
    """

    num_particles: Annotated[int, integer] = NUM_PARTICLES
    num_groups: Annotated[int, partial(integer, minimum=2)] = NUM_GROUPS
    num_moves: Annotated[int, integer] = 4
    effective_fraction: Annotated[float, probability] = 0.7

    def __post_init__(self):
        check_fields(self)
        check_groups(self.num_particles, self.num_groups)

    def run(self, latent: EnergyTiltedPrior, *, progress_bar: bool = True) -> SMCResult:
        """Particles of the tilted law, and log Z.

        Args:
            latent: an `EnergyTiltedPrior` with batch shape ().
            progress_bar: whether to show one if it takes longer than two seconds after the pilot run.

        Returns:
            An `SMCResult`.

        Raises:
            RuntimeError: if the energy is NaN or -inf at a draw of the prior, or infinite at all of them, or the ladder
                would need more than 1,000 rungs.
        """
        latent_law("latent", latent)
        z, rungs, num_gradients, log_weight, *records = _run(latent, self, progress_bar)
        beta = float(latent.gebm.inverse_temperature)
        log_partitions, mean_neg_beta_energies, accept_probs = (
            torch.stack(record).double().cpu().numpy() for record in records
        )
        inverse_temperatures = beta * np.array(rungs.t)
        log_partition = from_log_weights(log_weight.double().cpu().numpy(), self.num_particles // self.num_groups)
        return SMCResult(
            z=z,
            log_partition=with_warning(log_partition, inverse_temperatures, accept_probs),
            inverse_temperatures=inverse_temperatures,
            log_partitions=log_partitions,
            mean_energies=-mean_neg_beta_energies / beta if beta > 0 else np.full_like(accept_probs, np.nan),
            step_sizes=np.array(rungs.step_size) * np.array(rungs.length_scale),
            accept_probs=accept_probs,
            num_gradients=num_gradients,
        )

    def __call__(self, latent: EnergyTiltedPrior, num_samples: int) -> torch.Tensor:
        """Draw latents.

        Args:
            latent: an `EnergyTiltedPrior` with batch shape ().
            num_samples: number of draws; more than `num_particles` are as many particles.

        Returns:
            Tensor of shape `(num_samples,) + latent.event_shape`.
        """
        latent_law("latent", latent)
        num_each = -(-max(integer("num_samples", num_samples, minimum=0), self.num_particles) // self.num_groups)
        z, *_ = _run(latent, dataclasses.replace(self, num_particles=num_each * self.num_groups), False)
        return z[:num_samples]


def draw(latent: EnergyTiltedPrior, config: SMC) -> tuple[torch.Tensor, torch.Tensor]:
    """Latents and log Z, detached.

    Args:
        latent: an `EnergyTiltedPrior` with batch shape ().
        config: the `SMC`.

    Returns:
        `(z, log_partition)`.
    """
    z, _, _, _, log_partitions, *_ = _run(latent, config, False)
    return z.detach(), log_partitions[-1].detach()


def _run(latent, config, progress_bar):
    ladder = Ladder(latent)
    rungs = pilot(ladder, min(config.num_particles, NUM_PILOT), config.num_moves, config.effective_fraction)
    points = ladder.start(config.num_particles)
    shape = (config.num_groups, config.num_particles // config.num_groups)
    offsets = shape[1] * torch.arange(shape[0], device=points.neg_beta_energy.device)[:, None]
    num_gradients = sum(rungs.num_gradients) + config.num_particles
    log_weight, zero = points.neg_beta_energy.new_zeros(shape[0]), points.neg_beta_energy.new_zeros(())
    log_partitions, mean_neg_beta_energies, accept_probs = [zero], [points.neg_beta_energy.mean()], [zero]
    for k in tqdm(
        range(1, len(rungs.t)), "SMC", unit="rung", delay=DELAY, disable=not flag("progress_bar", progress_bar)
    ):
        increment = log_increment(rungs.t[k] - rungs.t[k - 1], points.neg_beta_energy).reshape(shape)
        log_weight = log_weight + torch.logsumexp(increment, 1) - math.log(shape[1])
        index = (systematic_resample(increment) + offsets).reshape(-1)
        points = points.map(lambda x, index=index: x[index])
        points, accept_prob, num = move(
            points, ladder, rungs.t[k], rungs.step_size[k], rungs.length_scale[k], config.num_moves
        )
        log_partitions.append(torch.logsumexp(log_weight, 0) - math.log(shape[0]))
        mean_neg_beta_energies.append(mean_of_groups(log_weight, points.neg_beta_energy.reshape(shape).mean(1)))
        alive = log_weight.new_zeros(shape[0]).masked_fill(log_weight == -math.inf, -math.inf)
        accept_probs.append(mean_of_groups(alive, accept_prob.reshape(shape).mean(1)))
        num_gradients += num * config.num_particles
    # particles of all groups are resampled together and moved once more
    index = systematic_resample(log_weight.repeat_interleave(shape[1]))
    points = points.map(lambda x: x[index])
    points, _, num = move(points, ladder, 1.0, rungs.step_size[-1], rungs.length_scale[-1], config.num_moves)
    shuffled = torch.randperm(config.num_particles, device=points.u.device)
    num_gradients += num * config.num_particles
    return (
        ladder.constrain(points.u[shuffled]),
        rungs,
        num_gradients,
        log_weight,
        log_partitions,
        mean_neg_beta_energies,
        accept_probs,
    )
