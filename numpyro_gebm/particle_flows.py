r"""Particle flows: particles follow the gradient of a divergence until they are a sample of the target.

One step moves every particle y against the gradient of the witness f between particles and target, taken at a point
nearby if there is noise (arXiv:1906.04370):

.. math:: y \leftarrow y - \text{step}\, \nabla f(y + s u), \qquad u \sim N(0, I)
"""

import time
from collections.abc import Callable
from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax, random
from jax.typing import ArrayLike
from tqdm import tqdm

from gebm.validation import flag, integer, nonnegative, positive
from numpyro_gebm.divergences.kernels import Kernel, fit_kernel
from numpyro_gebm.divergences.rkhs import Gram, solve_dual
from numpyro_gebm.divergences.samples import Samples, as_samples
from numpyro_gebm.divergences.sums import Witness, kernel_matvec
from numpyro_gebm.keys import typed

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

    particles: jax.Array
    losses: jax.Array
    trajectory: jax.Array | None


_Point = tuple[jax.Array, jax.Array | bool, Witness, jax.Array]


def mmd_flow(
    particles: Samples,
    target: Samples,
    kernel: Kernel | None = None,
    *,
    num_steps: int,
    step_size: float,
    noise: float | Callable[[jax.Array], ArrayLike] = 0.0,
    keep_every: int | None = None,
    progress_bar: bool = True,
    rng_key: jax.Array | None = None,
) -> FlowResult:
    r"""Flow of particles down $\frac12 MMD^2$, whose witness is $\mu_{\text{particles}} - \mu_{\text{target}}$.

    Particles far from the target hardly move, and may stay behind: noise helps. Source: arXiv:1906.04370.

    Args:
        particles: their start, shape `(N, D)`, N at least 2.
        target: sample of the target, shape `(M, D)`, M at least 2.
        kernel: see `divergences.kernels`; None is a Gaussian with the median distance at the start as bandwidth.
        num_steps: number of steps.
        step_size: size of a step.
        noise: s, a number, or a function of the number of the step (0, 1, ...) that JAX can trace.
        keep_every: steps between particles that are kept; None keeps none but the last.
        progress_bar: show the divergence while the flow runs.
        rng_key: a JAX random key, for the noise.

    Returns:
        `FlowResult(particles, losses, trajectory)`.

    Raises:
        TypeError: if the kernel cannot be called.
        ValueError: if particles or target is not a matrix of finite numbers with at least two rows, or their columns
            differ; for settings out of range; for noise without a key.
        FlowDiverged: if particles are not finite any more.

    Example:
        >>> target = random.normal(random.key(0), (50, 2))
        >>> result = mmd_flow(target + 1.0, target, num_steps=100, step_size=1.0, progress_bar=False)
        >>> bool(result.losses[-1] < 0.02 * result.losses[0])
        True
    """
    particles, target = as_samples(particles, target, ("particles", "target"))
    kernel = fit_kernel(kernel, particles, target)
    norm = kernel_matvec(kernel, target, target, _mean_weights(target)).mean()
    functional = _MMD(kernel, target, norm)
    return _run(functional, particles, num_steps, step_size, noise, keep_every, progress_bar, rng_key)


def kale_flow(
    particles: Samples,
    target: Samples,
    kernel: Kernel | None = None,
    *,
    regularization: float = 1.0,
    num_steps: int,
    step_size: float,
    noise: float | Callable[[jax.Array], ArrayLike] = 0.0,
    keep_every: int | None = None,
    progress_bar: bool = True,
    rng_key: jax.Array | None = None,
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
        noise: s, a number, or a function of the number of the step (0, 1, ...) that JAX can trace.
        keep_every: steps between particles that are kept; None keeps none but the last.
        progress_bar: show the divergence while the flow runs.
        rng_key: a JAX random key, for the noise.

    Returns:
        `FlowResult(particles, losses, trajectory)`.

    Raises:
        TypeError: if the kernel cannot be called.
        ValueError: if particles or target is not a matrix of finite numbers with at least two rows, or their columns
            differ; for settings out of range; for noise without a key.
        FlowDiverged: if the particles are not finite, or the duality gap is more than 1 % of the value.

    Example:
        >>> target = random.normal(random.key(0), (50, 2))
        >>> result = kale_flow(target + 1.0, target, num_steps=100, step_size=1.0, progress_bar=False)
        >>> bool(result.losses[-1] < 0.02 * result.losses[0])
        True
    """
    particles, target = as_samples(particles, target, ("particles", "target"))
    regularization = positive("regularization", regularization)
    kernel = fit_kernel(kernel, particles, target)
    functional = _KALE(kernel, target, Gram.of(kernel, target), jnp.asarray(regularization, target.dtype))
    return _run(functional, particles, num_steps, step_size, noise, keep_every, progress_bar, rng_key)


def _mean_weights(points: jax.Array) -> jax.Array:
    return jnp.full(len(points), 1.0 / len(points), points.dtype)


class _MMD(eqx.Module):
    """Half the squared MMD of particles to a fixed target; `norm` is that of the target's mean embedding."""

    kernel: Kernel
    target: jax.Array
    norm: jax.Array

    def __call__(self, particles: jax.Array, warm: jax.Array) -> _Point:
        """Value, whether it is solved, the witness, and where to start the next time."""
        centers = jnp.concatenate([particles, self.target])
        ones, minus = _mean_weights(particles), -_mean_weights(self.target)
        both = kernel_matvec(self.kernel, particles, centers, jnp.concatenate([ones, 2.0 * minus]))
        value = 0.5 * (both.mean() + self.norm)
        return value, True, Witness(self.kernel, centers, jnp.concatenate([ones, minus])), warm


class _KALE(eqx.Module):
    """KALE over an RKHS of particles to a fixed target."""

    kernel: Kernel
    target: jax.Array
    gram: Gram
    regularization: jax.Array

    def __call__(self, particles: jax.Array, warm: jax.Array) -> _Point:
        """Value, whether it is solved, the witness, and where to start the next time."""
        ones, lam = _mean_weights(particles), self.regularization
        mean = kernel_matvec(self.kernel, self.target, particles, ones)
        norm = kernel_matvec(self.kernel, particles, particles, ones).mean()
        point = solve_dual(self.gram, mean, norm, lam, warm)
        solved = point.gap <= jnp.maximum(0.01 * point.value, point.gap_rounding)
        weights = (1.0 + lam) / lam * jnp.concatenate([ones, -jnp.exp(point.u) / len(warm)])
        witness = Witness(self.kernel, jnp.concatenate([particles, self.target]), weights)
        return (1.0 + lam) * point.value, solved, witness, point.u


def _run(functional, particles, num_steps, step_size, noise, keep_every, progress_bar, rng_key):
    _check(num_steps, step_size, noise, keep_every)
    step_size = float(step_size)
    if rng_key is None:
        if callable(noise) or noise != 0.0:
            raise ValueError("Expected a random key for the noise; got rng_key=None.")
        rng_key = random.key(0)
    noise, step_size = noise if callable(noise) else jnp.asarray(noise), jnp.asarray(step_size, particles.dtype)
    settings = functional, typed(rng_key), step_size, noise
    state, done, count, losses, kept = (particles, jnp.zeros(len(functional.target), particles.dtype)), 0, 1, [], []
    with tqdm(total=num_steps, disable=not flag("progress_bar", progress_bar), desc="flow", unit="step") as bar:
        while done < num_steps:
            if keep_every and done % keep_every == 0:
                kept.append(state[0])
            start, until_next = time.perf_counter(), keep_every - done % keep_every if keep_every else num_steps
            count = min(count, num_steps - done, until_next)
            state, chunk, solved = _advance(*settings, state, jnp.asarray(done), jnp.asarray(count))
            losses.append(np.asarray(chunk)[:count])
            _stop_if_diverged(losses[-1], np.asarray(solved)[:count], state[0], done)
            done += count
            bar.update(count)
            bar.set_postfix(loss=f"{losses[-1][-1]:.3g}")
            # look about once a second
            count = max(1, min(CHUNK, 2 * count, int(count / (time.perf_counter() - start))))
    if keep_every and num_steps % keep_every == 0:
        kept.append(state[0])
    return FlowResult(state[0], jnp.asarray(np.concatenate(losses)), jnp.stack(kept) if keep_every else None)


@eqx.filter_jit
def _advance(functional, rng_key, step_size, noise, state, first, count):
    """Particles after `count` steps, and for each step its loss and whether the dual was solved; at most `CHUNK`."""

    def step(i, carry):
        (particles, warm), losses, solved = carry
        value, ok, witness, warm = functional(particles, warm)
        scale = jnp.asarray(noise(first + i) if callable(noise) else noise, particles.dtype)
        shift = scale * random.normal(random.fold_in(rng_key, first + i), particles.shape, particles.dtype)
        velocity = jax.grad(lambda points: witness(points).sum())(particles + shift)
        return (particles - step_size * velocity, warm), losses.at[i].set(value), solved.at[i].set(ok)

    losses, solved = jnp.zeros(CHUNK, step_size.dtype), jnp.zeros(CHUNK, bool)
    return lax.fori_loop(0, count, step, (state, losses, solved))


def _check(num_steps, step_size, noise, keep_every):
    integer("num_steps", num_steps)
    positive("step_size", step_size)
    if not callable(noise):
        nonnegative("noise", noise)
    elif isinstance(noise, type) or hasattr(noise, "log_prob"):
        raise TypeError(f"Expected noise to be a number, or a function of the step; got {noise!r}.")
    if keep_every is not None:
        integer("keep_every", keep_every)


def _stop_if_diverged(losses, solved, particles, done):
    finite = np.isfinite(losses) & (np.isfinite(particles).all() | (np.arange(len(losses)) < len(losses) - 1))
    if not finite.all():
        step = done + int(np.argmin(finite))
        raise FlowDiverged(f"The particles are not finite after step {step}. Use a smaller step_size.")
    if not solved.all():
        step = done + int(np.argmin(solved))
        raise FlowDiverged(
            f"The dual of KALE could not be solved at step {step}: the duality gap exceeds 1 % of the value. Use "
            "a larger regularization, a smaller step_size, or double precision."
        )
