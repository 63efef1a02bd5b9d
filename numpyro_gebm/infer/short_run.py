"""Short runs of chains from the prior."""

import dataclasses
from collections.abc import Callable
from functools import partial
from typing import Annotated, Any

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
from jax import lax, random
from numpyro.distributions import biject_to
from numpyro.util import not_jax_tracer
from tqdm import tqdm

from gebm.ladder import DELAY
from gebm.langevin import PATIENCE, no_finite_potential, still_nan
from gebm.short_runs import PRESETS, ShortRunResult, check_kernel, recorded_steps
from gebm.validation import check_fields, flag, integer, latent_law
from numpyro_gebm.dynamics.buckets import bucket
from numpyro_gebm.dynamics.keys import typed
from numpyro_gebm.gebm import EnergyTiltedPrior
from numpyro_gebm.infer.kernel import LangevinKernel
from numpyro_gebm.infer.kinetic_langevin import KineticLangevin

__all__ = ["ShortRun"]


@dataclasses.dataclass(frozen=True)
class ShortRun:
    r"""Chains from draws of the prior, moved for a fixed number of steps without a warm-up.

    That is how the paper draws images: a chain a draw, on $\nu_\beta(z) \propto \eta(z) \exp(-\beta E(B(z)))$, from a
    prior draw, often at an inverse temperature far above 1 (arXiv:2003.05033). What comes out depends on the number
    of steps: it lies between the base and the law at $\beta$, and is a draw of neither. The model is the law at
    $\beta = 1$, for which `AnnealedMALA`, the kernels with a warm-up, and `SMC` are there.

    Kernels by name are `KineticLangevin` with one gradient a step, for a standard normal prior: "kinetic" (step size
    0.1, friction 1), "at_modes" (0.1, 10: nearly overdamped, stays at the mode it finds) and "between_modes" (0.1,
    0.1: keeps its velocity, and crosses from one mode to another). The paper has 0.02 and 100 for images, at beta 100.

    Args:
        kernel: one of these names, or a callable that makes a kernel of a model, such as
            `partial(infer.MALT, step_size=0.1, friction=1.0, trajectory_length=1.0)`. A step is then one draw of that
            kernel, with the settings that it would have after a warm-up.
        num_steps: steps of every chain.
        batch_size: chains run at once; bounds the memory.

    Raises:
        TypeError: for an argument of a wrong type.
        ValueError: for a kernel that has no such name, or numbers out of range.

    Example:
        >>> import numpyro.distributions as dist
        >>> from numpyro_gebm import GEBM
        >>> gebm = GEBM(dist.Normal(0.0, 1.0), lambda x: 0.5 * x**2, sampler=ShortRun(num_steps=50))
        >>> tuple(gebm.sample(jax.random.key(0), (20,)).shape)
        (20,)
        >>> z, steps = ShortRun().run(gebm.temper(10.0).latent, 20, record_every=25, rng_key=jax.random.key(0))
        >>> tuple(z.shape), steps
        ((5, 20), array([  0,  25,  50,  75, 100]))
    """

    kernel: Annotated[str | Callable[..., Any], check_kernel] = "kinetic"
    num_steps: Annotated[int, integer] = 100
    batch_size: Annotated[int, integer] = 1000

    def __post_init__(self):
        check_fields(self)

    def run(
        self,
        latent: EnergyTiltedPrior,
        num_chains: int = 1000,
        *,
        record_every: int | None = None,
        rng_key: jax.Array,
        progress_bar: bool = True,
    ) -> ShortRunResult[jax.Array]:
        """Run chains and record them on the way.

        Args:
            latent: an `EnergyTiltedPrior`; `gebm.temper(beta).latent` for another inverse temperature.
            num_chains: number of chains.
            record_every: steps between records; None records start and end.
            rng_key: a JAX random key.
            progress_bar: whether to show one if it takes longer than two seconds.

        Returns:
            A `ShortRunResult`.

        Raises:
            TypeError: if something else is passed.
            ValueError: for numbers out of range, or if no draw of the prior has a finite potential.
            RuntimeError: if the potential was NaN 100 steps in a row in some chain.
        """
        latent_law("latent", latent)
        num_chains, steps = integer("num_chains", num_chains), recorded_steps(self.num_steps, record_every)
        size = min(bucket(num_chains), self.batch_size)
        num_batches, off = -(-num_chains // size), not flag("progress_bar", progress_bar)
        parts = []
        for i in tqdm(range(num_batches), "ShortRun", unit="batch", delay=DELAY, disable=off):
            z, failed = _run(latent, random.fold_in(typed(rng_key), i), size, self.kernel, tuple(steps.tolist()))
            if not_jax_tracer(z):
                _raise(*jax.device_get(failed))
            parts.append(z)
        return ShortRunResult(jnp.concatenate(parts, 1)[:, :num_chains], steps)

    def __call__(self, latent: EnergyTiltedPrior, num_samples: int, *, rng_key: jax.Array) -> jax.Array:
        """The ends of chains.

        Args:
            latent: an `EnergyTiltedPrior`.
            num_samples: number of chains, one draw each.
            rng_key: a JAX random key.

        Returns:
            Array of shape `(num_samples,) + latent.batch_shape + latent.event_shape`.

        Raises:
            ValueError: if no draw of the prior has a finite potential; under `jit`, where nothing can be raised, draws
                are NaN instead.
            RuntimeError: as `run`.
        """
        num_chains = max(1, integer("num_samples", num_samples, minimum=0))
        z, _ = self.run(latent, num_chains, rng_key=rng_key, progress_bar=False)
        return z[-1, :num_samples]


@partial(jax.jit, static_argnums=(2, 3, 4))
def _run(latent, rng_key, num_chains, kernel, steps):
    """Latents after so many steps, and the potential of the starts and the most NaN in a row."""
    make = partial(KineticLangevin, **PRESETS[kernel]) if isinstance(kernel, str) else kernel
    kernel = make(lambda: numpyro.sample("z", latent))
    if not isinstance(kernel, LangevinKernel):
        raise TypeError(f"Expected kernel to make a kernel of `numpyro_gebm.infer`; got {type(kernel).__name__}.")
    start = kernel.init(random.split(rng_key, num_chains), 0)
    transform, finite = biject_to(latent.support), jnp.isfinite(start.potential_energy)

    def body(t, carry):
        state, records, num_nan = carry
        state = kernel.sample(state, (), {})
        row = jnp.searchsorted(jnp.array(steps), t + 1)  # overwritten until its step has come
        return state, records.at[row].set(transform(state.z["z"])), jnp.maximum(num_nan, state.num_nan.max())

    first = transform(start.z["z"])
    records = jnp.zeros((len(steps), *first.shape), first.dtype).at[0].set(first)
    _, records, num_nan = lax.fori_loop(0, steps[-1], body, (start, records, jnp.zeros((), start.num_nan.dtype)))
    records = jnp.where(finite.reshape(finite.shape + (1,) * (first.ndim - 1)), records, jnp.nan)
    return records, (start.potential_energy, num_nan)


def _raise(potential_energy, num_nan):
    if not np.isfinite(potential_energy).all():
        raise ValueError(no_finite_potential(potential_energy, "the energy of draws of the base"))
    if num_nan >= PATIENCE:
        raise RuntimeError(still_nan("the energy of draws of the base"))
