"""How a GEBM is sampled."""

from pyro_gebm.infer.annealed_mala import AnnealedMALA
from pyro_gebm.infer.initialization import init_to_prior
from pyro_gebm.infer.kinetic_langevin import KineticLangevin

__all__ = ["AnnealedMALA", "KineticLangevin", "init_to_prior"]
