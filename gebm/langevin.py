r"""Langevin samplers: the equations, and what the steps and kernels of both packages share.

Positions and velocities are arrays of shape `chains + (d,)`, potentials of shape `chains`. The mass is diagonal: with
`scale` $\sigma$ (a scalar or shape `(d,)`; 1 for unit mass) the steps are those of unit mass in $z / \sigma$, and the
velocity v is that of $z / \sigma$, standard normal at stationarity.

Overdamped Langevin, with step size h in units of $z / \sigma$ (the authors' step is $\gamma = h^2$):

.. math:: z' = z - \tfrac{h^2}{2} \sigma^2 \nabla U(z) + h\, \sigma\, \xi, \qquad \xi \sim N(0, I)

Kinetic Langevin, with friction $\gamma$ and time t:

.. math:: dz = \sigma v\, dt, \qquad dv = -\sigma \nabla U(z)\, dt - \gamma v\, dt + \sqrt{2\gamma}\, dW

A step of size h (in units of time) is a palindrome of exact sub-steps (arXiv:1203.5428, arXiv:2104.09029):

- A, drift: $z \leftarrow z + \tau \sigma v$
- B, kick: $v \leftarrow v - \tau \sigma \nabla U(z)$
- O, Ornstein-Uhlenbeck: $v \leftarrow e^{-\gamma\tau} v + \sqrt{1 - e^{-2\gamma\tau}}\, \xi$
- U, A and O at once, exactly.
"""

from typing import Any, Final, Generic, NamedTuple, TypeVar

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
    "AdaptState",
    "Chains",
    "KineticState",
    "OfChains",
    "StepInfo",
    "Window",
    "no_finite_potential",
    "still_nan",
    "update_window",
]

Array = TypeVar("Array")

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


class KineticState(NamedTuple, Generic[Array]):
    """Position and velocity, and where the gradient was last taken, with the potential and its gradient there.

    `grad_point` is `z` itself, but for ABOBA and UBU the mid-point of the last step.
    """

    z: Array
    v: Array
    grad_point: Array
    potential_energy: Array
    z_grad: Array


class Chains(NamedTuple, Generic[Array]):
    """N chains: `kinetic` of shape `(N, d)`, and `slice` of shape `(N,)`.

    That is a slice variable (GHMC), or the probability with which the last global move left its position (Ex2MCMC).
    """

    kinetic: KineticState[Array]
    slice: Array


class StepInfo(NamedTuple, Generic[Array]):
    """What a step reports, in shape `(N,)`; `num_steps` counts gradients.

    In Pyro, `energy_error` may be None for a step that is not the last of its draw.
    """

    energy_error: Array | None
    diverging: Array
    num_steps: int | Array = 1


class Window(NamedTuple, Generic[Array]):
    """Sums over the positions y = (z - center) / scale of a window and over its potentials, less `potential_center`.

    `probes`, of shape `(d, NUM_PROBES)`, is fixed; `total_projected` sums y y'probes.
    """

    center: Array
    potential_center: Array
    probes: Array
    num: Any
    total: Array
    total_square: Array
    total_projected: Array
    potential: Array
    potential_square: Array
    accept_prob: Array


class AdaptState(NamedTuple, Generic[Array]):
    """State of the warm-up, the same for all chains.

    `scale` is the square root of the diagonal of the inverse mass, of shape `(d,)`; `window_end` the step at which the
    window ends; `before` the log step size, log length scale and mean potential of the window before;
    `num_warmup_steps` the steps that the warm-up took. In NumPyro the first three have the axis of the chains, as they
    are reported of each; in Pyro they are a number or a scalar.
    """

    step_size: Any
    length_scale: Any
    warmup_converged: Any
    scale: Any
    dual_averaging: Any
    window: Window[Array]
    window_length: Any
    window_end: Any
    before: tuple[Any, ...]
    num_warmup_steps: Any


def no_finite_potential(potential_energy: Any, start: str, num_finite: int = 0, num_tried: int = 0) -> str:
    """The message for chains that start where the potential is not finite.

    Args:
        potential_energy: of the starts.
        start: argument for them.
        num_finite: how many draws of the prior had a finite one.
        num_tried: how many were drawn; 0 if the starts were given.
    """
    remedy = f"Pass `{start}`, or check the energy for NaN."
    if num_tried:
        remedy = f"Of {num_tried} draws of the prior {num_finite} ({num_finite / num_tried:.2g}) have one. {remedy}"
    return f"Expected a finite potential at the initial point; got {potential_energy}. {remedy}"


def still_nan(start: str) -> str:
    """The message for a chain whose potential is NaN in draw after draw; `start` is the argument for its start."""
    return f"The potential was NaN for {PATIENCE} draws in a row. Check the energy, or the start (`{start}`)."


class OfChains:
    """What can be asked of a state whose `chains` is a `Chains`."""

    __slots__ = ()
    chains: Any

    @property
    def v(self) -> Any:
        """Velocity in units of the mass, flat; standard normal at stationarity."""
        return self.chains.kinetic.v

    @property
    def slice(self) -> Any:
        """Slice variable (GHMC)."""
        return self.chains.slice

    @property
    def global_accept_prob(self) -> Any:
        """Probability with which the last global move (Ex2MCMC) left its position."""
        return self.chains.slice

    @property
    def grad_point(self) -> Any:
        """Where the gradient was last taken, flat: the position, but for the splittings ABOBA and UBU."""
        return self.chains.kinetic.grad_point

    @property
    def potential_energy(self) -> Any:
        """The potential there."""
        return self.chains.kinetic.potential_energy

    @property
    def z_grad(self) -> Any:
        """Its gradient there, flat."""
        return self.chains.kinetic.z_grad

    @property
    def kinetic_temperature(self) -> Any:
        """`|v|^2 / d`; its expectation is 1 without discretisation bias."""
        return (self.v * self.v).mean(-1)


def update_window(window: Window, z: Any, potential_energy: Any, accept_prob: Any, scale: Any) -> Window:
    """Add positions of shape `(N, d)`, potentials and acceptance probabilities of shape `(N,)` to a `Window`."""
    y, potential = (z - window.center) / scale, potential_energy - window.potential_center
    return window._replace(
        num=window.num + len(z),
        total=window.total + y.sum(0),
        total_square=window.total_square + (y**2).sum(0),
        total_projected=window.total_projected + y.T @ (y @ window.probes),
        potential=window.potential + potential.sum(),
        potential_square=window.potential_square + (potential**2).sum(),
        accept_prob=window.accept_prob + accept_prob.sum(),
    )
