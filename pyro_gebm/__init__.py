"""Generalized energy-based models as Pyro distributions."""

from gebm.draw_file import DrawFile, read_draws
from gebm.errors import TrainingDiverged
from gebm.plotting import plot_losses
from gebm.training import energy_bursts
from gebm.weights import LogPartition
from pyro_gebm import divergences, flows, infer, metrics, nn, particle_flows, training
from pyro_gebm.base import Pushforward
from pyro_gebm.decode import decode
from pyro_gebm.diagnose import Diagnosis, diagnose
from pyro_gebm.gebm import GEBM, EnergyTiltedPrior
from pyro_gebm.infer.ladder.partition import LogPartitionCurve, log_partition, log_partition_curve
from pyro_gebm.io import load, save
from pyro_gebm.reparam import LatentReparam
from pyro_gebm.to_arviz import to_arviz
from pyro_gebm.training.guide import KALEGuide, gradient_penalty, l2_penalty, sum_of_penalties
from pyro_gebm.training.kale import KALE

__all__ = [
    "GEBM",
    "KALE",
    "Diagnosis",
    "DrawFile",
    "EnergyTiltedPrior",
    "KALEGuide",
    "LatentReparam",
    "LogPartition",
    "LogPartitionCurve",
    "Pushforward",
    "TrainingDiverged",
    "decode",
    "diagnose",
    "divergences",
    "energy_bursts",
    "flows",
    "gradient_penalty",
    "infer",
    "l2_penalty",
    "load",
    "log_partition",
    "log_partition_curve",
    "metrics",
    "nn",
    "particle_flows",
    "plot_losses",
    "read_draws",
    "save",
    "sum_of_penalties",
    "to_arviz",
    "training",
]
