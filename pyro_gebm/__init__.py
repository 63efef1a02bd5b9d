"""Generalized energy-based models as Pyro distributions."""

from gebm import __version__
from gebm.draw_file import DrawFile
from gebm.errors import ResultFailed, TrainingDiverged
from gebm.kale_testing import KALETest
from gebm.plotting import plot_losses
from gebm.streaming import read_draws
from gebm.training import energy_bursts
from gebm.weights import LogPartition
from gebm.zarr import DrawStore
from pyro_gebm import divergences, flows, infer, metrics, nn, particle_flows, training
from pyro_gebm.base import Pushforward
from pyro_gebm.decode import decode, decode_to_zarr
from pyro_gebm.diagnose import Diagnosis, diagnose
from pyro_gebm.gebm import GEBM, EnergyTiltedPrior
from pyro_gebm.infer.ladder.partition import LogPartitionCurve, log_partition, log_partition_curve, normalized
from pyro_gebm.io import load, save
from pyro_gebm.pretrained import Features, load_features, load_pretrained
from pyro_gebm.program import Program
from pyro_gebm.reparam import LatentReparam
from pyro_gebm.tilt import resample, tilt
from pyro_gebm.to_arviz import to_arviz
from pyro_gebm.training.guide import KALEGuide, gradient_penalty, l2_penalty, sum_of_penalties
from pyro_gebm.training.kale import KALE
from pyro_gebm.training.kale_test import kale_test

__all__ = [  # noqa: RUF022
    "__version__",
    "GEBM", "EnergyTiltedPrior", "LatentReparam", "Program", "Pushforward", "load", "resample", "save", "tilt",
    "Features", "load_features", "load_pretrained",
    "KALE", "KALEGuide", "ResultFailed", "TrainingDiverged", "gradient_penalty", "l2_penalty", "sum_of_penalties",
    "energy_bursts", "plot_losses",
    "LogPartition", "LogPartitionCurve", "log_partition", "log_partition_curve", "normalized",
    "Diagnosis", "DrawFile", "DrawStore", "KALETest", "decode", "decode_to_zarr", "diagnose", "kale_test",
    "read_draws", "to_arviz",
    "divergences", "flows", "infer", "metrics", "nn", "particle_flows", "training",
]  # fmt: skip
