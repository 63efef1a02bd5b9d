"""What training returns."""

from typing import Any, NamedTuple

import torch

from gebm.held_out import ValidationCurve
from gebm.validation import instance
from pyro_gebm.gebm import GEBM
from pyro_gebm.program import Program
from pyro_gebm.tilt import tilt
from pyro_gebm.training.guide import KALEGuide

__all__ = ["KALELosses", "KALEResult"]


class KALELosses(NamedTuple):
    """KALE (higher is a better energy), penalty, log-partition, and norms of the gradients of energy and base.

    Scalars of a step (`base_grad_norm` is 0 where no base step was due), curves of a run: there one value per base
    step, the mean over its energy steps.
    """

    kale: torch.Tensor
    penalty: torch.Tensor
    log_partition: torch.Tensor
    energy_grad_norm: torch.Tensor
    base_grad_norm: torch.Tensor


class KALEResult(NamedTuple):
    """What `KALE.run` returns.

    `gebm` is a snapshot in evaluation mode with the settled log-partition (`KALE.log_partition` is the raw last
    value); `guide` is the trained critic. Both are of the best state where `validation` says so; the modules that were
    trained hold the last one.
    """

    gebm: GEBM
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
        base: Program = instance("the base", self.gebm.base, Program)
        return tilt(base.program, self.gebm.energy, base.event_site, log_partition=self.gebm.log_partition)
