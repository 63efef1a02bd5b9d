"""How a GEBM is trained."""

from gebm.errors import TrainingDiverged
from gebm.held_out import ValidationCurve
from gebm.training import energy_bursts
from pyro_gebm.training.guide import KALEGuide, gradient_penalty, l2_penalty, sum_of_penalties
from pyro_gebm.training.kale import KALE
from pyro_gebm.training.objectives import (
    ContrastiveDivergence,
    DonskerVaradhan,
    Energies,
    KALEObjective,
    MaximumLikelihood,
    Objective,
)
from pyro_gebm.training.results import KALELosses, KALEResult

__all__ = [
    "KALE",
    "ContrastiveDivergence",
    "DonskerVaradhan",
    "Energies",
    "KALEGuide",
    "KALELosses",
    "KALEObjective",
    "KALEResult",
    "MaximumLikelihood",
    "Objective",
    "TrainingDiverged",
    "ValidationCurve",
    "energy_bursts",
    "gradient_penalty",
    "l2_penalty",
    "sum_of_penalties",
]
