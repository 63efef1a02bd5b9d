"""How a GEBM is sampled."""

from gebm.ladder import SMCResult
from gebm.langevin import StepInfo
from gebm.short_runs import ShortRunResult
from numpyro_gebm.dynamics.annealed_mala import AnnealedMALA
from numpyro_gebm.infer.chain_kernel import ChainKernel
from numpyro_gebm.infer.ex2mcmc import Ex2MCMC
from numpyro_gebm.infer.ghmc import GHMC
from numpyro_gebm.infer.initialization import init_to_prior
from numpyro_gebm.infer.kernel import LangevinKernel
from numpyro_gebm.infer.kinetic_langevin import KineticLangevin
from numpyro_gebm.infer.ladder.replica_exchange import ReplicaExchange
from numpyro_gebm.infer.ladder.smc import SMC
from numpyro_gebm.infer.mala import MALA
from numpyro_gebm.infer.malt import MALT
from numpyro_gebm.infer.sharded import sharded
from numpyro_gebm.infer.short_run import ShortRun
from numpyro_gebm.infer.streaming import stream_draws
from numpyro_gebm.infer.ula import ULA

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
    "init_to_prior",
    "sharded",
    "stream_draws",
]
