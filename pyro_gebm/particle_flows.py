r"""Particle flows: particles follow the gradient of a divergence until they are a sample of the target.

One step moves every particle y against the gradient of the witness f between particles and target, taken at a point
nearby if there is noise (arXiv:1906.04370):

.. math:: y \leftarrow y - \text{step}\, \nabla f(y + s u), \qquad u \sim N(0, I)
"""

import dataclasses
import time
from collections.abc import Callable
from typing import NamedTuple

import torch
from tqdm import tqdm

from gebm.validation import flag, integer, nonnegative, positive
from pyro_gebm.divergences.kernels import Kernel, fit_kernel
from pyro_gebm.divergences.rkhs import Gram, exp, solve_dual
from pyro_gebm.divergences.samples import Samples, as_samples
from pyro_gebm.divergences.sums import Witness, kernel_matvec

__all__ = ["FlowDiverged", "FlowResult", "kale_flow", "mmd_flow"]

#: Most steps between two looks at a flow.
CHUNK = 1000


class FlowDiverged(RuntimeError):
    """The particles of a flow are not finite, or the dual of KALE could not be solved."""


class FlowResult(NamedTuple):
    """What a flow returns.

    `particles` has the shape of those at the start; `losses` `(num_steps,)` is the divergence before every step;
    `trajectory` is None, or the particles at the start and after every `keep_every` steps, shape `(K, N, D)`.
    """

    particles: torch.Tensor
    losses: torch.Tensor
    trajectory: torch.Tensor | None


_Point = tuple[torch.Tensor, torch.Tensor | bool, Witness, torch.Tensor]


def mmd_flow(
    particles: Samples,
    target: Samples,
    kernel: Kernel | None = None,
    *,
    num_steps: int,
    step_size: float,
    noise: float | Callable[[int], float] = 0.0,
    keep_every: int | None = None,
    progress_bar: bool = True,
) -> FlowResult:
    r"""Flow of particles down $\frac12 MMD^2$, whose witness is $\mu_{\text{particles}} - \mu_{\text{target}}$.

    Particles far from the target hardly move, and may stay behind: noise helps. Source: arXiv:1906.04370.

    Args:
        particles: their start, shape `(N, D)`, N at least 2.
        target: sample of the target, shape `(M, D)`, M at least 2.
        kernel: see `divergences.kernels`; None is a Gaussian with the median distance at the start as bandwidth.
        num_steps: number of steps.
        step_size: size of a step.
        noise: s, a number, or a function of the number of the step (0, 1, ...).
        keep_every: steps between particles that are kept; None keeps none but the last.
        progress_bar: show the divergence while the flow runs.

    Returns:
        `FlowResult(particles, losses, trajectory)`.

    Raises:
        TypeError: if the kernel cannot be called.
        ValueError: if particles or target is not a matrix of finite numbers with at least two rows, or their columns
            differ; for settings out of range.
        FlowDiverged: if particles are not finite any more.

    Example:
        >>> target = torch.randn(50, 2, generator=torch.Generator().manual_seed(0))
        >>> result = mmd_flow(target + 1.0, target, num_steps=100, step_size=1.0, progress_bar=False)
        >>> bool(result.losses[-1] < 0.02 * result.losses[0])
        True
    """
    particles, target = as_samples(particles, target, ("particles", "target"))
    kernel = fit_kernel(kernel, particles, target)
    norm = kernel_matvec(kernel, target, target, _mean_weights(target)).mean()
    functional = _MMD(kernel, target, norm)
    return _run(functional, particles, num_steps, step_size, noise, keep_every, progress_bar)


def kale_flow(
    particles: Samples,
    target: Samples,
    kernel: Kernel | None = None,
    *,
    regularization: float = 1.0,
    num_steps: int,
    step_size: float,
    noise: float | Callable[[int], float] = 0.0,
    keep_every: int | None = None,
    progress_bar: bool = True,
) -> FlowResult:
    r"""Flow of particles down KALE over an RKHS, whose witness is $(1 + \lambda) h$.

    Between the flows of the KL divergence (lambda to 0) and of the MMD (lambda to infinity). Every step solves the dual
    problem, from the weights of the step before. Use double precision for lambda under .01. Source: arXiv:2106.08929.

    Args:
        particles: their start, shape `(N, D)`, N at least 2.
        target: sample of the target, shape `(M, D)`, M at least 2.
        kernel: see `divergences.kernels`; None is a Gaussian with the median distance at the start as bandwidth.
        regularization: lambda, positive.
        num_steps: number of steps.
        step_size: size of a step; about proportional to lambda.
        noise: s, a number, or a function of the number of the step (0, 1, ...).
        keep_every: steps between particles that are kept; None keeps none but the last.
        progress_bar: show the divergence while the flow runs.

    Returns:
        `FlowResult(particles, losses, trajectory)`.

    Raises:
        TypeError: if the kernel cannot be called.
        ValueError: if particles or target is not a matrix of finite numbers with at least two rows, or their columns
            differ; for settings out of range.
        FlowDiverged: if the particles are not finite, or the duality gap is more than 1 % of the value.

    Example:
        >>> target = torch.randn(50, 2, generator=torch.Generator().manual_seed(0))
        >>> result = kale_flow(target + 1.0, target, num_steps=100, step_size=1.0, progress_bar=False)
        >>> bool(result.losses[-1] < 0.02 * result.losses[0])
        True
    """
    particles, target = as_samples(particles, target, ("particles", "target"))
    regularization = positive("regularization", regularization)
    kernel = fit_kernel(kernel, particles, target)
    functional = _KALE(kernel, target, Gram.of(kernel, target), torch.as_tensor(regularization).to(target))
    return _run(functional, particles, num_steps, step_size, noise, keep_every, progress_bar)


def _mean_weights(points: torch.Tensor) -> torch.Tensor:
    return points.new_full((len(points),), 1.0 / len(points))


@dataclasses.dataclass(frozen=True)
class _MMD:
    """Half the squared MMD of particles to a fixed target; `norm` is that of the target's mean embedding."""

    kernel: Kernel
    target: torch.Tensor
    norm: torch.Tensor

    def __call__(self, particles: torch.Tensor, warm: torch.Tensor) -> _Point:
        """Value, whether it is solved, the witness, and where to start the next time."""
        centers = torch.cat([particles, self.target])
        ones, minus = _mean_weights(particles), -_mean_weights(self.target)
        both = kernel_matvec(self.kernel, particles, centers, torch.cat([ones, 2.0 * minus]))
        value = 0.5 * (both.mean() + self.norm)
        return value, True, Witness(self.kernel, centers, torch.cat([ones, minus])), warm


@dataclasses.dataclass(frozen=True)
class _KALE:
    """KALE over an RKHS of particles to a fixed target."""

    kernel: Kernel
    target: torch.Tensor
    gram: Gram
    regularization: torch.Tensor

    def __call__(self, particles: torch.Tensor, warm: torch.Tensor) -> _Point:
        """Value, whether it is solved, the witness, and where to start the next time."""
        ones, lam = _mean_weights(particles), self.regularization
        mean = kernel_matvec(self.kernel, self.target, particles, ones)
        norm = kernel_matvec(self.kernel, particles, particles, ones).mean()
        point = solve_dual(self.gram, mean, norm, lam, warm)
        solved = point.gap <= torch.maximum(0.01 * point.value, point.gap_rounding)
        weights = (1.0 + lam) / lam * torch.cat([ones, -exp(point.u) / len(warm)])
        witness = Witness(self.kernel, torch.cat([particles, self.target]), weights)
        return (1.0 + lam) * point.value, solved, witness, point.u


@torch.no_grad()
def _run(
    functional: _MMD | _KALE,
    particles: torch.Tensor,
    num_steps: int,
    step_size: float,
    noise: float | Callable[[int], float],
    keep_every: int | None,
    progress_bar: bool,
) -> FlowResult:
    _check(num_steps, step_size, noise, keep_every)
    step_size = float(step_size)
    noisy, warm = callable(noise) or noise > 0.0, particles.new_zeros(len(functional.target))
    done, count, losses, kept = 0, 1, [], []
    with tqdm(total=num_steps, disable=not flag("progress_bar", progress_bar), desc="flow", unit="step") as bar:
        while done < num_steps:
            start, count = time.perf_counter(), min(count, num_steps - done)
            for step in range(done, done + count):
                if keep_every and step % keep_every == 0:
                    kept.append(particles)
                value, solved, witness, warm = functional(particles, warm)
                scale = noise(step) if callable(noise) else noise
                points = particles + scale * torch.randn_like(particles) if noisy else particles
                particles = particles - step_size * _gradient(witness, points)
                losses.append(value)
                _stop_if_diverged(value, solved, particles, step)
            done += count
            bar.update(count)
            bar.set_postfix(loss=f"{losses[-1]:.3g}")
            # look about once a second
            count = max(1, min(CHUNK, 2 * count, int(count / (time.perf_counter() - start))))
    if keep_every and num_steps % keep_every == 0:
        kept.append(particles)
    return FlowResult(particles, torch.stack(losses), torch.stack(kept) if keep_every else None)


@torch.enable_grad()
def _gradient(witness, points):
    points = points.detach().requires_grad_(True)
    return torch.autograd.grad(witness(points).sum(), points)[0]


def _check(num_steps, step_size, noise, keep_every):
    integer("num_steps", num_steps)
    positive("step_size", step_size)
    if not callable(noise):
        nonnegative("noise", noise)
    elif isinstance(noise, type) or hasattr(noise, "log_prob"):
        raise TypeError(f"Expected noise to be a number, or a function of the step; got {noise!r}.")
    if keep_every is not None:
        integer("keep_every", keep_every)


def _stop_if_diverged(value, solved, particles, step):
    if not (value.isfinite() and particles.isfinite().all()):
        raise FlowDiverged(f"The particles are not finite after step {step}. Use a smaller step_size.")
    if not solved:
        raise FlowDiverged(
            f"The dual of KALE could not be solved at step {step}: the duality gap exceeds 1 % of the value. Use "
            "a larger regularization, a smaller step_size, or double precision."
        )
