"""Generalized energy-based models as NumPyro distributions."""

from numpyro_gebm import divergences, infer, metrics, nn
from numpyro_gebm.base import Pushforward
from numpyro_gebm.diagnostics import to_arviz
from numpyro_gebm.gebm import GEBM, EnergyTiltedPrior
from numpyro_gebm.guide import KALEGuide, gradient_penalty
from numpyro_gebm.io import load, save
from numpyro_gebm.kale import KALE
from numpyro_gebm.reparam import LatentReparam

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
