"""How a GEBM is sampled."""

from numpyro_gebm.infer.annealed_mala import AnnealedMALA
from numpyro_gebm.infer.initialization import init_to_prior
from numpyro_gebm.infer.kinetic_langevin import KineticLangevin

__all__ = ["AnnealedMALA", "KineticLangevin", "init_to_prior"]
