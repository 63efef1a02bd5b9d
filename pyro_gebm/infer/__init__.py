"""How a GEBM is sampled."""

from gebm.ladder import SMCResult
from gebm.langevin import StepInfo
from gebm.short_runs import ShortRunResult
from pyro_gebm.dynamics.annealed_mala import AnnealedMALA
from pyro_gebm.infer.chain_kernel import ChainKernel
from pyro_gebm.infer.ex2mcmc import Ex2MCMC
from pyro_gebm.infer.ghmc import GHMC
from pyro_gebm.infer.initialization import init_to_prior
from pyro_gebm.infer.kernel import LangevinKernel
from pyro_gebm.infer.kinetic_langevin import KineticLangevin
from pyro_gebm.infer.ladder.replica_exchange import ReplicaExchange
from pyro_gebm.infer.ladder.smc import SMC
from pyro_gebm.infer.mala import MALA
from pyro_gebm.infer.malt import MALT
from pyro_gebm.infer.short_run import ShortRun
from pyro_gebm.infer.streaming import stream_draws
from pyro_gebm.infer.ula import ULA
from pyro_gebm.infer.vectorized import VectorizedMCMC

__all__ = [
    "GHMC",
    "MALA",
    "MALT",
    "SMC",
    "ULA",
    "AnnealedMALA",
    "ChainKernel",
    "Ex2MCMC",
    "KineticLangevin",
    "LangevinKernel",
    "ReplicaExchange",
    "SMCResult",
    "ShortRun",
    "ShortRunResult",
    "StepInfo",
    "VectorizedMCMC",
    "init_to_prior",
    "stream_draws",
]
