"""Short runs of chains from the prior."""

import dataclasses
from collections.abc import Callable
from functools import partial
from typing import Annotated, Any, cast

import pyro
import torch
from tqdm import tqdm

from gebm.ladder import DELAY
from gebm.short_runs import PRESETS, ShortRunResult, check_kernel, recorded_steps
from gebm.validation import check_fields, flag, integer, latent_law
from pyro_gebm.gebm import EnergyTiltedPrior
from pyro_gebm.infer.kernel import LangevinKernel
from pyro_gebm.infer.kinetic_langevin import KineticLangevin

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
        >>> import pyro.distributions as dist
        >>> from pyro_gebm import GEBM
        >>> gebm = GEBM(dist.Normal(0.0, 1.0), lambda x: 0.5 * x**2, sampler=ShortRun(num_steps=50))
        >>> tuple(gebm.sample((20,)).shape)
        (20,)
        >>> z, steps = ShortRun().run(gebm.temper(10.0).latent, 20, record_every=25, progress_bar=False)
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
        progress_bar: bool = True,
    ) -> ShortRunResult[torch.Tensor]:
        """Run chains and record them on the way.

        Args:
            latent: an `EnergyTiltedPrior`; `gebm.temper(beta).latent` for another inverse temperature.
            num_chains: number of chains.
            record_every: steps between records; None records start and end.
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
        starts = range(0, num_chains, self.batch_size)
        total, off = len(starts) * self.num_steps, not flag("progress_bar", progress_bar)
        with tqdm(total=total, desc="ShortRun", unit="step", delay=DELAY, disable=off) as bar:
            parts = [self._run(latent, min(self.batch_size, num_chains - start), steps, bar) for start in starts]
        return ShortRunResult(torch.cat(parts, 1), steps)

    def _run(self, latent, num_chains, steps, bar):
        make = partial(KineticLangevin, **PRESETS[self.kernel]) if isinstance(self.kernel, str) else self.kernel
        kernel = make(lambda: pyro.sample("z", latent.to_event(len(latent.batch_shape))))
        if not isinstance(kernel, LangevinKernel):
            raise TypeError(f"Expected kernel to make a kernel of `pyro_gebm.infer`; got {type(kernel).__name__}.")
        kernel.setup_chains(0, num_chains, None)
        records, transform = [], cast(dict[str, Any], kernel.transforms)["z"]
        for last, step in zip([0, *steps], steps):
            for _ in range(step - last):
                kernel.advance()
            kernel.check()
            bar.update(int(step - last))
            records.append(transform.inv(kernel.positions()["z"]))
        return torch.stack(records)

    def __call__(self, latent: EnergyTiltedPrior, num_samples: int) -> torch.Tensor:
        """The ends of chains.

        Args:
            latent: an `EnergyTiltedPrior`.
            num_samples: number of chains, one draw each.

        Returns:
            Tensor of shape `(num_samples,) + latent.batch_shape + latent.event_shape`.

        Raises:
            ValueError: if no draw of the prior has a finite potential.
            RuntimeError: as `run`.
        """
        z, _ = self.run(latent, max(1, integer("num_samples", num_samples, minimum=0)), progress_bar=False)
        return z[-1, :num_samples]
