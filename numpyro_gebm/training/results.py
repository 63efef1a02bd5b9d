"""What training keeps and returns."""

from typing import Any, NamedTuple

import jax
import numpy as np

from gebm.held_out import ValidationCurve
from gebm.validation import instance
from numpyro_gebm.gebm import GEBM
from numpyro_gebm.program import Program
from numpyro_gebm.tilt import tilt
from numpyro_gebm.training.guide import KALEGuide

__all__ = ["KALELosses", "KALEResult", "KALEState"]


class KALEState(NamedTuple):
    """Everything that training changes.

    `step` counts energy steps (and so the batches used) and `base_step` base steps; where one part is frozen they are
    the same. `in_cycle` counts energy steps since the last base step. `skipped` counts steps that were not applied
    because a loss or gradient was not finite or far above what is usual, `skipped_in_row` the latest bad steps in a
    row, for energy and base. `grad_norms` is what is usual: a row each, see `gebm.clipping`.
    `base_average` is the moving average of the base, `chains` what the objective keeps, or None.
    """

    step: jax.Array
    base_step: jax.Array
    in_cycle: jax.Array
    skipped: jax.Array
    skipped_in_row: jax.Array
    rng_key: jax.Array
    base: Any
    energy: Any
    base_optim: Any
    energy_optim: Any
    base_average: Any
    log_partition: jax.Array
    chains: Any
    grad_norms: Any


class KALELosses(NamedTuple):
    """KALE (higher is a better energy), penalty, log-partition, and norms of the gradients of energy and base.

    Scalars of a step (`base_grad_norm` is 0 where no base step was due), curves of a run: there one value per base
    step, the mean over its energy steps.
    """

    kale: jax.Array | np.ndarray
    penalty: jax.Array | np.ndarray
    log_partition: jax.Array | np.ndarray
    energy_grad_norm: jax.Array | np.ndarray
    base_grad_norm: jax.Array | np.ndarray


class KALEResult(NamedTuple):
    """What `KALE.run` returns.

    `gebm` carries the settled log-partition, `state.log_partition` the raw last value; `guide` is the trained critic.
    `state` is the last one, to go on from; `gebm` and `guide` are of the best where `validation` says so.
    """

    gebm: GEBM
    state: KALEState
    losses: KALELosses
    guide: KALEGuide
    validation: ValidationCurve | None = None

    @property
    def program(self) -> Any:
        """The tilted program, where the base is a `Program`: all of it, at its trained parameters, without arguments.

        It is tilted at `base.event_site`.

        Raises:
            TypeError: for another base.
        """
        base: Program = instance("the base", self.gebm.base, Program)  # pyright: ignore[reportAssignmentType]
        return tilt(base.program, self.gebm.energy, base.event_site, log_partition=self.gebm.log_partition)
