"""Divergences between distributions, from samples or from the values of a critic or an energy on them."""

from numpyro_gebm.divergences import kernels
from numpyro_gebm.divergences.f_divergences import F_DIVERGENCES, FDivergence, f_divergence
from numpyro_gebm.divergences.mmd import MMDTest, mmd2, mmd_test, mmd_witness
from numpyro_gebm.divergences.objectives import base_loss, batch_log_partition, donsker_varadhan, kale
from numpyro_gebm.divergences.rkhs import RKHSKALE, kale_rkhs

__all__ = [
    "F_DIVERGENCES",
    "RKHSKALE",
    "FDivergence",
    "MMDTest",
    "base_loss",
    "batch_log_partition",
    "donsker_varadhan",
    "f_divergence",
    "kale",
    "kale_rkhs",
    "kernels",
    "mmd2",
    "mmd_test",
    "mmd_witness",
]
