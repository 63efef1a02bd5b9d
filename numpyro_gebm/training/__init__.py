"""How a GEBM is trained."""

from gebm.errors import TrainingDiverged
from numpyro_gebm.training.guide import KALEGuide, gradient_penalty, l2_penalty, sum_of_penalties
from numpyro_gebm.training.kale import KALE
from numpyro_gebm.training.loop import KALELosses, KALEResult, energy_bursts

__all__ = [
    "KALE",
    "KALEGuide",
    "KALELosses",
    "KALEResult",
    "TrainingDiverged",
    "energy_bursts",
    "gradient_penalty",
    "l2_penalty",
    "sum_of_penalties",
]
