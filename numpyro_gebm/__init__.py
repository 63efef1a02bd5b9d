"""Generalized energy-based models as NumPyro distributions."""

from gebm import __version__
from gebm.draw_file import DrawFile
from gebm.errors import ResultFailed, TrainingDiverged
from gebm.kale_testing import KALETest
from gebm.plotting import plot_losses
from gebm.streaming import read_draws
from gebm.training import energy_bursts
from gebm.weights import LogPartition
from gebm.zarr import DrawStore
from numpyro_gebm import divergences, flows, infer, metrics, nn, particle_flows, training
from numpyro_gebm.base import Pushforward
from numpyro_gebm.compilation import enable_compilation_cache
from numpyro_gebm.decode import decode, decode_to_zarr
from numpyro_gebm.diagnose import Diagnosis, diagnose
from numpyro_gebm.gebm import GEBM, EnergyTiltedPrior
from numpyro_gebm.infer.ladder.partition import LogPartitionCurve, log_partition, log_partition_curve, normalized
from numpyro_gebm.io import load, save
from numpyro_gebm.pretrained import Features, load_features, load_pretrained
from numpyro_gebm.program import Program
from numpyro_gebm.reparam import LatentReparam
from numpyro_gebm.tilt import resample, tilt
from numpyro_gebm.to_arviz import to_arviz
from numpyro_gebm.training.guide import KALEGuide, gradient_penalty, l2_penalty, sum_of_penalties
from numpyro_gebm.training.kale import KALE
from numpyro_gebm.training.kale_test import kale_test

__all__ = [  # noqa: RUF022
    "__version__",
    "GEBM", "EnergyTiltedPrior", "LatentReparam", "Program", "Pushforward", "load", "resample", "save", "tilt",
    "Features", "load_features", "load_pretrained",
    "KALE", "KALEGuide", "ResultFailed", "TrainingDiverged", "gradient_penalty", "l2_penalty", "sum_of_penalties",
    "energy_bursts", "plot_losses",
    "LogPartition", "LogPartitionCurve", "log_partition", "log_partition_curve", "normalized",
    "Diagnosis", "DrawFile", "DrawStore", "KALETest", "decode", "decode_to_zarr", "diagnose", "kale_test",
    "read_draws", "to_arviz",
    "enable_compilation_cache",
    "divergences", "flows", "infer", "metrics", "nn", "particle_flows", "training",
]  # fmt: skip
