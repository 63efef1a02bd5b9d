"""What the Langevin kernels share: the shell that makes a step a Pyro kernel, of one chain or of many."""

import math
from abc import abstractmethod
from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from operator import attrgetter
from typing import Annotated, Any, cast

import torch
from pyro.infer.mcmc.mcmc_kernel import MCMCKernel

from gebm.arviz_data import named_statistics
from gebm.langevin import (
    PATIENCE,
    STATISTICS,
    AdaptState,
    Chains,
    KineticState,
    StepInfo,
    no_finite_potential,
    still_nan,
)
from gebm.validation import callable_or_none, check_fields, flag, function, mapping, optional, positive, probability
from pyro_gebm.dynamics.metropolis import accept_probability
from pyro_gebm.dynamics.steps import PotentialAndGrad
from pyro_gebm.infer.adaptation import adapt, finish, init_adaptation
from pyro_gebm.infer.chain_kernel import started
from pyro_gebm.infer.initialization import init_to_prior
from pyro_gebm.infer.potential import initialize_chains
from pyro_gebm.infer.state import LangevinState
from pyro_gebm.processes import ALONE
from pyro_gebm.training.checkpoints import get_rng_state, set_rng_state

__all__ = ["LangevinKernel"]

#: Of statistics that are no floating point numbers.
_DTYPES = {bool: torch.bool, int: torch.long}
#: What of the adaptation counts after the warm-up.
_KEPT = ("step_size", "length_scale", "warmup_converged", "scale", "num_warmup_steps")


@dataclass(kw_only=True, eq=False)
class LangevinKernel(MCMCKernel):
    r"""Base of the kernels: start, warm-up, statistics and many chains around the step of a subclass.

    Runs under `pyro.infer.MCMC`, a chain at a time, and under `infer.VectorizedMCMC`, where all chains are stepped,
    and adapted, together. During the warm-up an iteration is one step, so that the chains adapt often; afterwards a
    draw is `num_steps` of them. Once the warm-up has converged, what is left of it costs nothing.

    A subclass defines `step`. It may declare fields, as a dataclass does (`name: Annotated[type, check]` with a check
    of `gebm.validation`), `num_steps` and `step_size_schedule` among them, and set the attributes below.

    Args:
        model: a Pyro model; exactly one of `model` and `potential_fn` is given.
        potential_fn: callable from a dict of unconstrained tensors (one chain) to a scalar; needs `initial_params`.
        step_size: initial step size.
        adapt_step_size: whether the warm-up adapts it.
        target_accept_prob: mean acceptance probability it is adapted to.
        adapt_mass_matrix: whether the warm-up adapts a diagonal mass, $1 / \sigma^2$; else $\sigma = 1$.
        init_strategy: where chains start; a draw of every site's base prior by default.
        transforms: transforms of constrained sites, as for Pyro's HMC; found automatically if None.

    Attributes:
        default_fields: paths in `LangevinState` to what is recorded of every draw.
        first_window: steps in the first window of the warm-up.
        max_step: the largest step size, in units of the length scale of the law.
        state: `LangevinState` of the run; None before it.
        processes: `Processes` that each have a part of the chains, and adapt alike.

    Raises:
        TypeError: for an argument of a wrong type.
        ValueError: for both or neither of model and potential_fn, an argument out of its range, or an initial point
            where the potential is not finite.
        RuntimeError: at run time, if the potential is NaN for 100 draws in a row.
    """

    model: Annotated[Callable[..., Any] | None, callable_or_none] = field(default=None, kw_only=False)
    potential_fn: Annotated[Callable[[dict[str, torch.Tensor]], torch.Tensor] | None, callable_or_none] = field(
        default=None, kw_only=False
    )
    step_size: Annotated[float, positive] = 0.1
    adapt_step_size: Annotated[bool, flag] = True
    target_accept_prob: Annotated[float, probability] = 0.8
    adapt_mass_matrix: Annotated[bool, flag] = False
    init_strategy: Annotated[Callable[..., Any], function] = init_to_prior
    transforms: Annotated[dict[str, Any] | None, optional(mapping)] = None

    default_fields = STATISTICS
    first_window = 50
    max_step = math.inf
    num_steps = 1
    step_size_schedule = None
    processes = ALONE
    of_chains = {"chains": 0, "num_nan": 0}

    def __post_init__(self):
        if (self.model is None) == (self.potential_fn is None):
            raise ValueError("Only one of `model` or `potential_fn` must be specified.")
        check_fields(self)
        self._transforms = self.transforms  # `setup` puts those that it finds in their place
        self._reset()

    def _reset(self):
        self._given_params: dict[str, torch.Tensor] | None = None
        self._initial_params: dict[str, torch.Tensor] | None = None
        self._last_params: dict[str, torch.Tensor] = {}
        self._potential: Any = None
        self._shapes: dict[str, torch.Size] = {}
        self._state: LangevinState | None = None
        self._statistics: list[dict[str, torch.Tensor]] = []

    @property
    def state(self) -> LangevinState:
        """State of the run.

        Raises:
            RuntimeError: before there is one.
        """
        return started(self._state)

    @state.setter
    def state(self, state: LangevinState | None) -> None:
        """Hand a state on, perhaps of other data or another model: it gets the potential of this run."""
        self._state = state if state is None or self._potential is None else self._with_own_potential(state)

    def _with_own_potential(self, state):
        """A state as it is if its potential is that of this run; else with another, and its warm-up over."""
        kinetic = state.chains.kinetic
        own = self._potential_and_grad(kinetic.grad_point)
        if all(map(torch.allclose, own, (kinetic.potential_energy, kinetic.z_grad))):
            return state
        new = state._replace(num_nan=torch.zeros_like(state.num_nan), i=state.i and max(state.i, self._warmup_steps))
        return self._moved(new, kinetic.z)

    def _moved(self, state, flat):
        """A state with its chains at other positions."""
        kinetic = state.chains.kinetic
        kinetic = kinetic._replace(**self._at(flat))
        return state._replace(chains=state.chains._replace(kinetic=kinetic))

    @abstractmethod
    def step(
        self,
        chains: Chains,
        potential_and_grad: PotentialAndGrad,
        step_size: float | torch.Tensor,
        adapt_state: AdaptState,
        last: bool,
    ) -> tuple[Chains, StepInfo]:
        """One step of all chains, in which failed steps are already rejected.

        Args:
            chains: `Chains`.
            potential_and_grad: callable from positions, shape `(N, d)`, to potentials and their gradients.
            step_size: step size, a number or a scalar.
            adapt_state: `AdaptState`, with `scale`, the square root of the inverse mass, and `length_scale`.
            last: whether it is the last step of the draw; of others no energy error is needed.

        Returns:
            `(Chains, StepInfo)`.
        """

    @property
    def initial_params(self) -> dict[str, torch.Tensor] | None:
        """Unconstrained start of the chain."""
        return self._given_params if self._initial_params is None else self._initial_params

    @initial_params.setter
    def initial_params(self, params: dict[str, torch.Tensor] | None) -> None:
        self._given_params, self._initial_params = params, None

    def setup(self, warmup_steps: int, *args: Any, **kwargs: Any) -> None:
        """Start one chain, as Pyro's `MCMC` asks for."""
        start = self._given_params
        start = None if start is None else {name: value.detach()[None] for name, value in start.items()}
        self.setup_chains(warmup_steps, 1, start, *args, **kwargs)

    def setup_chains(
        self,
        warmup_steps: int,
        num_chains: int,
        initial_params: dict[str, torch.Tensor] | None,
        *args: Any,
        **kwargs: Any,
    ) -> None:
        """Start many chains: see `ChainKernel`."""
        self._warmup_steps, self._statistics = warmup_steps, []
        if self.model is not None:
            initial_params, self._potential, self.transforms = initialize_chains(
                self.model, args, kwargs, num_chains, self.init_strategy, self._transforms, initial_params
            )
        else:
            if initial_params is None:
                raise ValueError("Expected `initial_params` with `potential_fn`; got None. Pass them to `MCMC`.")
            potential = cast(Callable[[dict[str, torch.Tensor]], torch.Tensor], self.potential_fn)
            self._potential = torch.func.vmap(potential) if num_chains > 1 else _of_one(potential)
            self.transforms = {} if self._transforms is None else self._transforms
        self._shapes = {name: value.shape[1:] for name, value in initial_params.items()}
        self._initial_params = self._last_params = {name: value[0] for name, value in initial_params.items()}
        self._state = self._start(self._flat(initial_params))

    def _flat(self, params):
        return torch.cat([params[name].detach().reshape(len(params[name]), -1) for name in self._shapes], 1)

    def positions(self) -> dict[str, torch.Tensor]:
        """Positions of all chains: dict of unconstrained tensors with a leading axis of N."""
        return self._unflattened(self.state.chains.kinetic.z)

    def _unflattened(self, flat):
        if len(self._shapes) == 1:
            ((name, shape),) = self._shapes.items()
            return {name: flat.reshape(len(flat), *shape)}
        parts = flat.split([shape.numel() for shape in self._shapes.values()], 1)
        return {name: part.reshape(len(flat), *shape) for part, (name, shape) in zip(parts, self._shapes.items())}

    def _potential_and_grad(self, flat):
        with torch.enable_grad():
            flat = flat.detach().requires_grad_(True)
            value = self._potential(self._unflattened(flat))
            (grad,) = torch.autograd.grad(value.sum(), flat)
        return value.detach(), grad

    def _at(self, flat):
        """The fields of a `KineticState` that a position determines."""
        potential_energy, z_grad = self._potential_and_grad(flat)
        if not torch.isfinite(potential_energy).all():
            raise ValueError(no_finite_potential(potential_energy.tolist(), "initial_params"))
        return {"z": flat, "grad_point": flat, "potential_energy": potential_energy, "z_grad": z_grad}

    def _start(self, flat):
        at = self._at(flat)
        potential_energy, zero = at["potential_energy"], torch.zeros_like(at["potential_energy"])
        uniform = 2 * torch.rand_like(zero) - 1
        kinetic = KineticState(v=torch.randn_like(flat), **at)
        return LangevinState(
            i=0,
            chains=Chains(kinetic, uniform),
            accept_prob=zero,
            energy_error=zero,
            diverging=torch.zeros_like(zero, dtype=torch.bool),
            num_steps=0,
            step_size=float(self.step_size),
            num_nan=torch.zeros_like(zero, dtype=torch.long),
            adapt_state=init_adaptation(flat, potential_energy, self.step_size, self.first_window, self.processes),
        )

    def warmup_converged(self) -> bool:
        """Whether the warm-up has met its rule, and the rest of it can be skipped."""
        return bool(self.state.adapt_state.warmup_converged)

    def end_warmup(self) -> None:
        """The next step gives the first draw."""
        self._state = self.state._replace(i=max(self.state.i, self._warmup_steps))

    @torch.no_grad()
    def advance(self) -> None:
        """The next draw of all chains, or one step of their warm-up."""
        state, warming = self.state, self.state.i < self._warmup_steps
        if warming and self.warmup_converged():
            self._state = state._replace(i=state.i + 1)
            return
        step_size = state.adapt_state.step_size
        if self.step_size_schedule is not None and not warming:
            step_size = step_size * self.step_size_schedule(state.i - self._warmup_steps)
        chains, diverging, num_steps, error = state.chains, torch.zeros_like(state.diverging), 0, None
        num = 1 if warming else self.num_steps
        for i in range(num):
            chains, info = self.step(chains, self._potential_and_grad, step_size, state.adapt_state, i == num - 1)
            diverging, num_steps, error = info.diverging | diverging, num_steps + info.num_steps, info.energy_error
        error = cast(torch.Tensor, error)  # of the last step
        accept_prob = accept_probability(error)
        self._state = LangevinState(
            i=state.i + 1,
            chains=chains,
            accept_prob=accept_prob,
            energy_error=error.nan_to_num(0.0, 0.0, 0.0),
            diverging=diverging,
            num_steps=num_steps,
            step_size=step_size,
            num_nan=torch.where(error.isnan(), state.num_nan + 1, 0),
            adapt_state=self._adapted(state, chains, accept_prob) if warming else state.adapt_state,
        )

    def _adapted(self, state, chains, accept_prob):
        new = adapt(
            state.adapt_state,
            chains.kinetic.z,
            chains.kinetic.potential_energy,
            accept_prob,
            self.target_accept_prob,
            step_size=self.adapt_step_size,
            mass=self.adapt_mass_matrix,
            processes=self.processes,
        )
        if not self.adapt_step_size:
            return new
        if state.i + 1 == self._warmup_steps:
            new = finish(new)
        return new._replace(step_size=_at_most(new.step_size, self.max_step * new.length_scale))

    def check(self) -> None:
        """Raise an error if the potential has been NaN for too long; reads a number from the device.

        Raises:
            RuntimeError: if the potential was NaN 100 draws in a row in some chain.
        """
        if self.state.num_nan.max() >= PATIENCE:
            raise RuntimeError(still_nan("initial_params"))

    def statistics(self) -> dict[str, torch.Tensor]:
        """Statistics of the last draw: dict of tensors of shape `(N,)`, named as in ArviZ."""
        state, like = self.state, self.state.accept_prob
        values = zip(self.default_fields, attrgetter(*self.default_fields)(state))
        return named_statistics({name: _of_each(value, like) for name, value in values})

    def state_dict(self) -> dict[str, Any]:
        """State after the warm-up, the random state included: nested dictionaries of tensors and numbers."""
        state, adapt_state = self.state, self.state.adapt_state
        return {
            "i": state.i,
            "chains": {**state.chains.kinetic._asdict(), "slice": state.chains.slice},
            "num_nan": state.num_nan,
            "adapt_state": {name: getattr(adapt_state, name) for name in _KEPT},
            "rng": get_rng_state(state.num_nan.device),
        }

    def load_state_dict(self, saved: dict[str, Any]) -> None:
        """Go back to a state from `state_dict`, after `setup_chains`.

        Args:
            saved: what `state_dict` returned.

        Raises:
            ValueError: if it is of chains of another shape.
        """
        kinetic = dict(saved["chains"])
        chains = Chains(slice=kinetic.pop("slice"), kinetic=KineticState(**kinetic))
        shape, expected = tuple(chains.kinetic.z.shape), tuple(self.state.chains.kinetic.z.shape)
        if shape != expected:
            raise ValueError(
                f"Expected a state of chains of shape {expected}; got {shape}. Resume with the same model and number "
                "of chains."
            )
        adapt_state = self.state.adapt_state._replace(**saved["adapt_state"])
        self.state = self.state._replace(i=saved["i"], chains=chains, num_nan=saved["num_nan"], adapt_state=adapt_state)
        set_rng_state(saved["rng"], chains.slice.device)

    def sample(self, params: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """One iteration of a single chain, as Pyro's `MCMC` asks for; from elsewhere, if the parameters are others."""
        if any(params[name] is not value for name, value in self._last_params.items()):
            flat = self._flat({name: value[None] for name, value in params.items()})
            if not torch.equal(flat, self.state.chains.kinetic.z):
                self._state = self._moved(self.state, flat)
        warming = self.state.i < self._warmup_steps
        self.advance()
        if not warming:
            self._statistics.append({name: value[0] for name, value in self.statistics().items()})
        if self.state.i % PATIENCE == 0:
            self.check()
        self._last_params = {name: value[0] for name, value in self.positions().items()}
        return dict(self._last_params)

    def logging(self) -> Mapping[str, Any]:  # pyright: ignore[reportIncompatibleMethodOverride]
        """What Pyro's progress bar shows."""
        state = self.state
        return OrderedDict(
            [
                ("step size", f"{float(state.step_size):.2e}"),
                ("acc. prob", f"{float(state.accept_prob.mean()):.3f}"),
                ("potential", f"{float(state.potential_energy.mean()):.2f}"),
            ]
        )

    def diagnostics(self) -> dict[str, Any]:
        """Divergences as Pyro's kernels report them, and under "sample_stats" one value a draw of each statistic."""
        names = self._statistics[0] if self._statistics else ()
        stats = {name: torch.stack([row[name] for row in self._statistics]).cpu() for name in names}
        divergences = stats["diverging"].nonzero().flatten().tolist() if stats else []
        return {"divergences": divergences, "sample_stats": stats}

    def cleanup(self) -> None:
        """Forget the chain that ended."""
        self._reset()

    def __getstate__(self):
        return {**self.__dict__, "_potential": None, "processes": ALONE}


def _of_one(potential_fn):
    """A potential of one chain, as one of a batch of one."""
    return lambda params: potential_fn({name: value[0] for name, value in params.items()}).reshape(1)


def _at_most(x, bound):
    return x.clamp(max=bound) if isinstance(x, torch.Tensor) else min(x, bound)


def _of_each(value, like):
    """A statistic as a tensor of shape `(N,)`, also where all chains have the same."""
    if isinstance(value, torch.Tensor):
        return value if value.dim() else value.expand_as(like)
    return torch.full_like(like, value, dtype=_DTYPES.get(type(value)))
