"""Constants of the Langevin samplers: splittings, recorded statistics, limits, and the rule that ends the warm-up."""

from typing import Final

__all__ = [
    "ACCEPT_TOLERANCE",
    "GAMMA",
    "GROWTH",
    "LOG_TOLERANCE",
    "MAX_ENERGY_ERROR",
    "NUM_PROBES",
    "PATIENCE",
    "POTENTIAL_TOLERANCE",
    "SPLITTINGS",
    "STATISTICS",
]

#: Sub-steps of every splitting and their share of the step. One gradient a step: of BAOAB and OBABO the gradient at
#: the end serves the next step; ABOBA (arXiv:2003.05033) and UBU take theirs at the mid-point.
SPLITTINGS: Final[dict[str, tuple[tuple[str, float], ...]]] = {
    "ABOBA": (("A", 0.5), ("B", 0.5), ("O", 1.0), ("B", 0.5), ("A", 0.5)),
    "BAOAB": (("B", 0.5), ("A", 0.5), ("O", 1.0), ("A", 0.5), ("B", 0.5)),
    "OBABO": (("O", 0.5), ("B", 0.5), ("A", 1.0), ("B", 0.5), ("O", 0.5)),
    "UBU": (("U", 0.5), ("B", 1.0), ("U", 0.5)),
}

#: Fields of a kernel's state that are recorded with every draw.
STATISTICS: Final = (
    "potential_energy",
    "energy",
    "accept_prob",
    "energy_error",
    "num_steps",
    "diverging",
    "step_size",
    "adapt_state.warmup_converged",
)
#: Energy error above which a step is reported as divergent, as in NumPyro's HMC.
MAX_ENERGY_ERROR: Final = 1000.0
#: A run stops after this many draws in a row whose last step led to a NaN potential.
PATIENCE: Final = 100

#: Each window of the warm-up is this many times as long as the one before.
GROWTH: Final = 1.5
#: Gain of the dual averaging, 1 / (GAMMA sqrt(t)); a fifth of Stan's, as the mean over chains is less noisy.
GAMMA: Final = 0.25
#: Random directions along which the covariance is applied, to estimate the trace of its square.
NUM_PROBES: Final = 16
#: The warm-up ends once, from one window to the next, the logs of step size and length scale changed by less, ...
LOG_TOLERANCE: Final = 0.2
#: ... the mean potential changed by less than this many standard deviations of the potential, ...
POTENTIAL_TOLERANCE: Final = 0.2
#: ... and the mean acceptance probability of the window was this close to its target.
ACCEPT_TOLERANCE: Final = 0.1
