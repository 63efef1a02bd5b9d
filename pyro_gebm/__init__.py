"""Generalized energy-based models as Pyro distributions."""

from pyro_gebm import divergences, infer, metrics, nn
from pyro_gebm.base import Pushforward
from pyro_gebm.diagnostics import to_arviz
from pyro_gebm.gebm import GEBM, EnergyTiltedPrior
from pyro_gebm.guide import KALEGuide, gradient_penalty
from pyro_gebm.io import load, save
from pyro_gebm.kale import KALE
from pyro_gebm.reparam import LatentReparam

__all__ = [
    "GEBM",
    "KALE",
    "EnergyTiltedPrior",
    "KALEGuide",
    "LatentReparam",
    "Pushforward",
    "divergences",
    "gradient_penalty",
    "infer",
    "load",
    "metrics",
    "nn",
    "save",
    "to_arviz",
]
