"""How a GEBM is trained."""

from gebm.errors import ResultFailed, TrainingDiverged
from gebm.evaluation import Evaluation
from gebm.held_out import ValidationCurve
from gebm.kale_testing import Importance, KALETest
from gebm.objectives import BaseObjective, Energies, EnergyObjective, Objective
from gebm.refinement import Control
from gebm.training import energy_bursts
from pyro_gebm.training.checkpoints import delete_checkpoints
from pyro_gebm.training.guide import KALEGuide, gradient_penalty, l2_penalty, sum_of_penalties
from pyro_gebm.training.kale import KALE
from pyro_gebm.training.kale_test import kale_test
from pyro_gebm.training.objectives import (
    ContrastiveDivergence,
    DonskerVaradhan,
    KALEObjective,
    MaximumLikelihood,
    PlainKALE,
)
from pyro_gebm.training.refinement import RefinementLosses, RefinementResult
from pyro_gebm.training.results import KALELosses, KALEResult
from pyro_gebm.training.two_samples import kale_between

__all__ = [
    "KALE",
    "BaseObjective",
    "ContrastiveDivergence",
    "Control",
    "DonskerVaradhan",
    "Energies",
    "EnergyObjective",
    "Evaluation",
    "Importance",
    "KALEGuide",
    "KALELosses",
    "KALEObjective",
    "KALEResult",
    "KALETest",
    "MaximumLikelihood",
    "Objective",
    "PlainKALE",
    "RefinementLosses",
    "RefinementResult",
    "ResultFailed",
    "TrainingDiverged",
    "ValidationCurve",
    "delete_checkpoints",
    "energy_bursts",
    "gradient_penalty",
    "kale_between",
    "kale_test",
    "l2_penalty",
    "sum_of_penalties",
]
