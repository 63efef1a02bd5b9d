"""The schedule of the default sampler, and what is said of its draws afterwards; both packages share it."""

import warnings

__all__ = [
    "ADAPTING",
    "GAIN",
    "MAX_REDRAWS",
    "MEMORY",
    "MIN_ACCEPT_PROB",
    "POWER",
    "SHRINK",
    "STUCK",
    "check_draws",
    "global_moves",
]

#: Gain of the step-size adaptation while annealing; afterwards it falls as the root of the steps since.
GAIN = 0.2
#: The inverse temperature rises as this power of the step.
POWER = 4
#: A chain gives up global moves after one whose acceptance probability was smaller, ...
MIN_ACCEPT_PROB = 0.01
#: ... and a warning is given where fewer of the chains made them to the end.
MIN_SHARE = 0.8
#: Fresh prior draws tried for the start of a chain, until one has a finite energy.
MAX_REDRAWS = 1000
#: While the temperature falls, a chain whose acceptance probability averages (over about 1 / (1 - MEMORY) steps) less
#: than STUCK divides its step size by SHRINK.
STUCK, MEMORY, SHRINK = 0.05, 0.8, 4.0
#: Fraction of the steps in which the step size is adapted; it is fixed in the rest, so that it biases nothing.
ADAPTING = 0.8
#: Where global moves are made: fractions of the steps after the annealing.
_GLOBAL_MOVES = (0.0, 0.15, 0.3, 0.45, 0.6)


def global_moves(num_steps: int, annealing: float) -> tuple[int, ...]:
    """Steps before which a global move is made.

    Args:
        num_steps: steps of the sampler.
        annealing: fraction of them during which the inverse temperature rises.

    Example:
        >>> global_moves(130, 0.65)
        (84, 91, 98, 104, 111)
    """
    end = annealing * num_steps
    steps = [end + fraction * (num_steps - end) for fraction in _GLOBAL_MOVES]
    return tuple(sorted({int(step) for step in steps if int(step) < num_steps}))


def check_draws(num_nan: int, num_infinite: int, finite_share: float, global_share: float, num_candidates: int) -> None:
    """Raise an error if chains could not start; warn if they gave up global moves.

    Args:
        num_nan: chains whose energy is NaN or -inf.
        num_infinite: chains without a start of finite energy.
        finite_share: share of the base's draws whose energy is finite.
        global_share: share of the chains that made global moves to the end.
        num_candidates: candidates of a global move; 0 for none.

    Raises:
        RuntimeError: if there are such chains.
    """
    if num_nan:
        raise RuntimeError(
            f"Expected an energy without NaN and -inf; got them at base draws in {num_nan} chains. Check the weights "
            "of the generator and of the energy, and that the energy is bounded below."
        )
    if num_infinite:
        raise RuntimeError(
            f"Expected a finite energy somewhere on the base; {num_infinite} chains found none in {MAX_REDRAWS} draws "
            f"each. The energy is finite on {finite_share:.2g} of the base: widen the base, or soften the constraint."
        )
    if num_candidates and global_share < MIN_SHARE:
        warnings.warn(
            f"{1 - global_share:.0%} of the chains gave up global moves: {num_candidates} draws of the base have too "
            "little weight under the tilted law. If that law has separate modes, their weights may be wrong, and modes "
            "may be missed. Check with `infer.SMC()` as sampler or with `infer.ReplicaExchange` (docs/ladder.md). "
            "`AnnealedMALA(num_candidates=0)` samples without global moves and without this warning.",
            UserWarning,
            stacklevel=5,
        )
