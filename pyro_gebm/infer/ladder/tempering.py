r"""The ladder of a GEBM, from its base to the tilted law, for all samplers on it.

On the rung t in [0, 1] the latent, in unconstrained coordinates u, has the law

.. math:: \nu_t(u) \propto \eta(u) \exp(-t\, \beta E(B(u)))

which at t = 0 is exactly the prior, and at t = 1 the tilted prior. Positions are tensors of shape `(N, d)`.
"""

import math

import torch
from torch.distributions import biject_to

from gebm.annealing import MAX_REDRAWS
from gebm.ladder import (
    FIRST_RUNG,
    FRICTION,
    MAX_STEPS,
    NUM_HALVINGS,
    REAL_ENERGIES,
    TRAJECTORY_LENGTH,
    Points,
    batched,
    no_finite_energy,
    no_finite_start,
)
from gebm.langevin import NUM_PROBES, KineticState
from pyro_gebm.base import support_of, without_validation
from pyro_gebm.callables import over_batch
from pyro_gebm.dynamics.metropolis import accept_probability, choose
from pyro_gebm.dynamics.starts import finite_start
from pyro_gebm.dynamics.steps import PotentialAndGrad, trajectory, value_and_grad
from pyro_gebm.gebm import EnergyTiltedPrior, neg_beta_energy

__all__ = [
    "Ladder",
    "effective_fraction",
    "length_scale_of",
    "log_increment",
    "mean_of_groups",
    "move",
    "next_rung",
    "potential_at",
    "systematic_resample",
]


class Ladder:
    """Prior and -beta E of a GEBM over unconstrained latents of shape `(N, d)`.

    Args:
        latent: an `EnergyTiltedPrior`.

    Raises:
        ValueError: if it has a batch shape.
    """

    def __init__(self, latent: EnergyTiltedPrior) -> None:
        if latent.batch_shape:
            raise ValueError(batched(latent.batch_shape))
        self._gebm, self._prior = latent.gebm, without_validation(latent.gebm.latent_prior)
        self._transform = biject_to(support_of(self._prior))
        self._shape = self._transform.inverse_shape(latent.event_shape)

    def sample_prior(self, num: int) -> torch.Tensor:
        """Positions of exact draws of the prior, shape `(num, d)`."""
        return self.unconstrain(self._prior.sample((num,)))

    def shaped(self, u: torch.Tensor) -> torch.Tensor:
        """Positions in the unconstrained shape of a latent, with a leading axis of N."""
        return u.reshape(-1, *self._shape)

    def constrain(self, u: torch.Tensor) -> torch.Tensor:
        """Latents, shape `(N,) + event_shape`, at positions."""
        return self._transform(self.shaped(u))

    def unconstrain(self, z: torch.Tensor) -> torch.Tensor:
        """Positions at latents."""
        return self._transform.inv(z).reshape(len(z), -1)

    def log_prior(self, u: torch.Tensor) -> torch.Tensor:
        """Log density of the prior at positions, shape `(N,)`."""
        u = self.shaped(u)
        z = self._transform(u)
        jacobian = self._transform.log_abs_det_jacobian(u, z)
        return self._prior.log_prob(z) + jacobian.reshape(len(u), -1).sum(1)

    def decode(self, u: torch.Tensor) -> torch.Tensor:
        """Events at positions, with a leading axis of N."""
        return self._gebm.decode(self.constrain(u))

    def neg_beta_energy(self, u: torch.Tensor) -> torch.Tensor:
        """-beta E at positions, shape `(N,)`."""
        gebm = self._gebm
        energy = over_batch(gebm.energy, self.decode(u), len(gebm.event_shape))
        return neg_beta_energy(gebm.inverse_temperature, energy)

    def evaluate(self, u: torch.Tensor) -> Points:
        """`Points` at positions."""
        return Points(u, *value_and_grad(self.log_prior, u), *value_and_grad(self.neg_beta_energy, u))

    def start(self, num: int) -> Points:
        """`Points` at exact draws of the prior.

        Raises:
            RuntimeError: if the energy is NaN or -inf at one of them, or infinite at all of them.
        """
        points = self._real(self.evaluate(self.sample_prior(num)))
        if (points.neg_beta_energy == -math.inf).all():
            raise RuntimeError(no_finite_energy(num))
        return points

    def start_finite(self, num: int) -> Points:
        """`Points` at draws of the prior of finite energy, where a chain on a rung above 0 starts.

        Raises:
            RuntimeError: if the energy is NaN or -inf at one of them, or infinite at 1,000 of them in a row.
        """
        u, *_ = finite_start(lambda: (u := self.sample_prior(num), self.neg_beta_energy(u)))
        points = self._real(self.evaluate(u))
        if infinite := int((points.neg_beta_energy == -math.inf).sum()):
            raise RuntimeError(no_finite_start(infinite, MAX_REDRAWS))
        return points

    @staticmethod
    def _real(points: Points) -> Points:
        if (points.neg_beta_energy.isnan() | (points.neg_beta_energy == math.inf)).any():
            raise RuntimeError(REAL_ENERGIES)
        return points

    def potential_and_grad(self, t: float | torch.Tensor) -> PotentialAndGrad:
        """A callable from positions to the potential of the rung t (a scalar, or shape `(N,)`) and its gradient."""
        return lambda u: value_and_grad(lambda u: -self.log_prior(u) - log_increment(t, self.neg_beta_energy(u)), u)


def potential_at(points: Points, t: float | torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Potential of the rung t (a scalar, or shape `(N,)`) at `Points`, and its gradient."""
    over_rows = t[:, None] if isinstance(t, torch.Tensor) and t.dim() else t
    grad = -points.log_prior_grad - log_increment(over_rows, points.neg_beta_energy_grad)
    return -points.log_prior - log_increment(t, points.neg_beta_energy), grad


def move(
    points: Points,
    ladder: Ladder,
    t: float | torch.Tensor,
    step_size: float,
    length_scale: float | torch.Tensor,
    num_moves: int,
) -> tuple[Points, torch.Tensor, int]:
    """Metropolis-adjusted Langevin trajectories (arXiv:2202.13230) on one rung.

    They are 1.57 length scales long, or 64 steps where that is less.

    Args:
        points: `Points`.
        ladder: `Ladder`.
        t: the rung, a number or a tensor of shape `(N,)`.
        step_size: step size of the trajectories in units of the length scale.
        length_scale: length scale of the law; a number or a tensor of shape `(N,)`.
        num_moves: trajectories, one test each.

    Returns:
        `(Points, acceptance probabilities, gradients)`: the probabilities are means over the moves, of shape `(N,)`,
        the gradients those spent on each point.
    """
    num_steps = min(max(1, math.ceil(TRAJECTORY_LENGTH / step_size)), MAX_STEPS)
    h = min(TRAJECTORY_LENGTH / num_steps, step_size)
    scale = length_scale[:, None] if isinstance(length_scale, torch.Tensor) else length_scale
    potential_and_grad = ladder.potential_and_grad(t)
    state = KineticState(points.u, points.u, points.u, *potential_at(points, t))
    total = torch.zeros_like(points.neg_beta_energy)
    for _ in range(num_moves):
        start = state._replace(v=torch.randn_like(state.z))
        end, error = trajectory(start, potential_and_grad, h, FRICTION, num_steps, scale)
        accept_prob = accept_probability(error)
        state = choose(torch.rand_like(accept_prob) < accept_prob, end, start)
        total = total + accept_prob
    return ladder.evaluate(state.z), total / num_moves, num_moves * num_steps + 1


def length_scale_of(u: torch.Tensor) -> float:
    r"""Length scale $\sqrt{\operatorname{tr} \Sigma^2 / \operatorname{tr} \Sigma}$ of positions, shape `(N, d)`.

    Positions that are not finite do not count; it is 1 for positions that are all the same.
    """
    u = u[u.isfinite().all(1)]
    y = u - u.mean(0)
    generator = torch.Generator().manual_seed(0)
    probes = torch.randn(u.shape[1], NUM_PROBES, generator=generator, dtype=torch.float64).to(u)
    projected = y.T @ (y @ probes) / len(u)
    scale = float((projected.square().sum() / NUM_PROBES / y.square().sum() * len(u)).sqrt())
    return scale if 0 < scale < math.inf else 1.0


def effective_fraction(log_weights: torch.Tensor) -> torch.Tensor:
    r"""$(\sum w)^2 / (N \sum w^2)$, the effective sample size of weights over their number; shape `(N,)` to `()`."""
    w = torch.exp(log_weights - log_weights.max())
    return w.sum() ** 2 / w.square().sum() / len(w)


def mean_of_groups(log_weights: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    """Weighted mean over groups, of which those of weight 0 do not count; shapes `(N,)` and `(N,)` to `()`."""
    return (log_weights.softmax(0) * x.masked_fill(log_weights == -math.inf, 0.0)).sum()


def log_increment(step: float | torch.Tensor, neg_beta_energy: torch.Tensor) -> torch.Tensor:
    """Log-weights of a step up the ladder, -step beta E; 0 if there is no step, even where the energy is infinite."""
    return step * neg_beta_energy if isinstance(step, torch.Tensor) or step else torch.zeros_like(neg_beta_energy)


def next_rung(t: float, neg_beta_energy: torch.Tensor, fraction: float) -> float:
    """The rung above t at which the weights of the step have the given effective fraction; at most 1.

    Particles of infinite energy have weight 0 on every rung above t, and do not count; where there are any at t = 0, a
    rung next to it separates them from the rest.

    Args:
        t: rung, a number in [0, 1).
        neg_beta_energy: -beta E of the particles on it, shape `(N,)`.
        fraction: effective sample size of the weights over their number.

    Returns:
        A number.
    """
    finite = neg_beta_energy.isfinite()
    if t == 0 and not finite.all():
        return FIRST_RUNG
    neg_beta_energy = neg_beta_energy[finite]
    # of the logarithm of the step, as it can be of any scale; nothing is read off the device
    low = torch.tensor(math.log(FIRST_RUNG), dtype=torch.float64, device=neg_beta_energy.device)
    high = torch.full_like(low, math.log(1.0 - t))
    for _ in range(NUM_HALVINGS):
        middle = 0.5 * (low + high)
        good = effective_fraction(middle.exp() * neg_beta_energy) >= fraction
        low, high = torch.where(good, middle, low), torch.where(good, high, middle)
    reached = effective_fraction((1.0 - t) * neg_beta_energy) >= fraction
    return float(torch.where(reached, 1.0, t + low.exp()))


def systematic_resample(log_weights: torch.Tensor) -> torch.Tensor:
    """Indices of as many draws as there are weights, by systematic resampling along the last axis; same shape.

    Weights that are all 0 count as equal.
    """
    num = log_weights.shape[-1]
    log_weights = log_weights.masked_fill((log_weights == -math.inf).all(-1, keepdim=True), 0.0)
    cumulative = torch.softmax(log_weights, -1).cumsum(-1)
    uniform = torch.rand(*log_weights.shape[:-1], 1, dtype=log_weights.dtype, device=log_weights.device)
    positions = (torch.arange(num, device=uniform.device) + uniform) / num
    return torch.searchsorted(cumulative / cumulative[..., -1:], positions, right=True).clamp(max=num - 1)
