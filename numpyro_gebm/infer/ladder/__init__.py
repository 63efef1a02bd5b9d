"""Samplers and estimates on the ladder of inverse temperatures from the base to the tilted law."""

from numpyro_gebm.infer.ladder.partition import LogPartitionCurve, log_partition, log_partition_curve
from numpyro_gebm.infer.ladder.replica_exchange import ReplicaExchange, ReplicaExchangeState
from numpyro_gebm.infer.ladder.smc import SMC, SMCResult

__all__ = [
    "SMC",
    "LogPartitionCurve",
    "ReplicaExchange",
    "ReplicaExchangeState",
    "SMCResult",
    "log_partition",
    "log_partition_curve",
]
