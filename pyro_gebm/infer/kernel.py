"""What the Langevin kernels share: the shell that makes a step a Pyro kernel, of one chain or of many."""

from collections import OrderedDict
from typing import NamedTuple

import torch
from pyro.infer.mcmc.mcmc_kernel import MCMCKernel

from gebm.langevin import PATIENCE
from pyro_gebm.dynamics.metropolis import accept_probability
from pyro_gebm.dynamics.steps import kinetic_energy
from pyro_gebm.infer.adaptation import AdaptState, adapt, finish, init_adaptation
from pyro_gebm.infer.initialization import init_to_prior
from pyro_gebm.infer.potential import initialize_chains
from pyro_gebm.training.checkpoints import get_rng_state, set_rng_state

__all__ = ["Chains", "LangevinKernel", "LangevinState", "StepInfo"]

#: What of the adaptation counts after the warm-up.
_KEPT = ("step_size", "length_scale", "warmup_converged", "scale", "num_warmup_steps")


class Chains(NamedTuple):
    """Positions of N chains and what a kernel keeps beside them.

    `z`, `v`, `grad_point` and `z_grad` have shape `(N, d)`, `potential_energy` and `slice` `(N,)`. `grad_point` is
    where potential and gradient were taken: `z` itself, but for the mid-point splittings.
    """

    z: torch.Tensor
    v: torch.Tensor
    slice: torch.Tensor
    grad_point: torch.Tensor
    potential_energy: torch.Tensor
    z_grad: torch.Tensor


class StepInfo(NamedTuple):
    """What a step reports, in shape `(N,)`; `num_steps` counts gradients.

    `energy_error` is None for a step of an unadjusted kernel that is not the last of its draw.
    """

    energy_error: torch.Tensor | None
    diverging: torch.Tensor
    num_steps: int


class LangevinState(NamedTuple):
    """State of a kernel of `infer`, of N chains; fields are named as in NumPyro's HMC.

    Args:
        i: iterations so far, warm-up included.
        chains: `Chains`, on flat positions.
        accept_prob: acceptance probability of the last step of the draw; of an unadjusted kernel that which a
            Metropolis test would have had.
        energy_error: energy error of its deterministic part.
        kinetic_temperature: `|v|^2 / d`; its expectation is 1 without discretisation bias.
        diverging: whether a step led to a potential that is not finite, or to an energy error above 1000.
        num_steps: gradients spent on the draw.
        step_size: step size of the draw.
        num_nan: draws in a row whose last step led into NaN.
        adapt_state: `AdaptState` of the warm-up, with `step_size`, `length_scale` and `warmup_converged`.
    """

    i: int
    chains: Chains
    accept_prob: torch.Tensor
    energy_error: torch.Tensor
    kinetic_temperature: torch.Tensor
    diverging: torch.Tensor
    num_steps: int
    step_size: object
    num_nan: torch.Tensor
    adapt_state: AdaptState


class LangevinKernel(MCMCKernel):
    """Base of the kernels: start, warm-up, statistics and many chains around the step of a subclass.

    Runs under `pyro.infer.MCMC`, a chain at a time, and under `infer.VectorizedMCMC`, where all chains are stepped,
    and adapted, together. During the warm-up an iteration is one step, so that the chains adapt often; afterwards a
    draw is `num_steps` of them. Once the warm-up has converged, what is left of it costs nothing.

    A subclass defines `_step`, one step of all chains, in which a step that fails is already turned down, and
    `_max_step`, the largest step size in units of the length scale.
    """

    _first_window = 50
    _max_step = float("inf")
    _has_velocity = True

    def __init__(
        self,
        model=None,
        potential_fn=None,
        *,
        step_size,
        adapt_step_size,
        target_accept_prob,
        adapt_mass_matrix,
        num_steps,
        step_size_schedule=None,
        init_strategy=init_to_prior,
        transforms=None,
    ):
        if (model is None) == (potential_fn is None):
            raise ValueError("Only one of `model` or `potential_fn` must be specified.")
        if not step_size > 0:
            raise ValueError(f"Expected step_size > 0; got {step_size}.")
        if not 0 < target_accept_prob < 1:
            raise ValueError(f"Expected target_accept_prob in (0, 1); got {target_accept_prob}.")
        if not num_steps >= 1:
            raise ValueError(f"Expected num_steps >= 1; got {num_steps}.")
        self.model, self.potential_fn = model, potential_fn
        self.transforms = self._transforms = transforms
        self._step_size, self._adapt_step_size = step_size, adapt_step_size
        self._target_accept_prob, self._adapt_mass_matrix = target_accept_prob, adapt_mass_matrix
        self._num_steps, self._step_size_schedule = num_steps, step_size_schedule
        self._init_strategy = init_strategy
        self._reset()

    def _reset(self):
        self._initial_params = self._potential = self._shapes = None
        self.state = None
        self._statistics = []

    def _step(self, chains, potential_and_grad, step_size, adapt_state, last):
        """`Chains`, a potential, a step size, and whether it is the last of the draw, to `(Chains, StepInfo)`."""
        raise NotImplementedError

    @property
    def initial_params(self):
        """Unconstrained start of the chain."""
        return self._initial_params

    @initial_params.setter
    def initial_params(self, params):
        self._initial_params = params

    def setup(self, warmup_steps, *args, **kwargs):
        """Start one chain, as Pyro's `MCMC` asks for."""
        start = self._initial_params
        start = None if start is None else {name: value.detach()[None] for name, value in start.items()}
        self.setup_chains(warmup_steps, 1, start, *args, **kwargs)

    def setup_chains(self, warmup_steps, num_chains, initial_params, *args, **kwargs):
        """Start many chains.

        Args:
            warmup_steps: iterations of the warm-up, at most.
            num_chains: N.
            initial_params: dict of unconstrained tensors with a leading axis of N; None draws them.
            args: arguments of the model.
            kwargs: keyword arguments of the model.
        """
        self._warmup_steps, self._statistics = warmup_steps, []
        if self.model is not None:
            initial_params, self._potential, self.transforms = initialize_chains(
                self.model, args, kwargs, num_chains, self._init_strategy, self._transforms, initial_params
            )
        else:
            if initial_params is None:
                raise ValueError("Expected `initial_params` with `potential_fn`; got None. Pass them to `MCMC`.")
            self._potential = torch.func.vmap(self.potential_fn) if num_chains > 1 else _of_one(self.potential_fn)
            self.transforms = {} if self._transforms is None else self._transforms
        self._shapes = {name: value.shape[1:] for name, value in initial_params.items()}
        self._initial_params = {name: value[0] for name, value in initial_params.items()}
        self.state = self._start(self._flat(initial_params))

    def _flat(self, params):
        return torch.cat([params[name].detach().reshape(len(params[name]), -1) for name in self._shapes], 1)

    def positions(self):
        """Positions of all chains: dict of unconstrained tensors with a leading axis of N."""
        return self._unflattened(self.state.chains.z)

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

    def _start(self, flat):
        potential_energy, z_grad = self._potential_and_grad(flat)
        if not torch.isfinite(potential_energy).all():
            raise ValueError(
                "Expected a finite potential at the initial point; got "
                f"{potential_energy.tolist()}. Pass `initial_params`, or check the energy for NaN."
            )
        zero = torch.zeros_like(potential_energy)
        uniform = 2 * torch.rand_like(potential_energy) - 1
        v = torch.randn_like(flat)
        return LangevinState(
            i=0,
            chains=Chains(flat, v, uniform, flat, potential_energy, z_grad),
            accept_prob=zero,
            energy_error=zero,
            kinetic_temperature=zero,
            diverging=torch.zeros_like(zero, dtype=torch.bool),
            num_steps=0,
            step_size=float(self._step_size),
            num_nan=torch.zeros_like(zero, dtype=torch.long),
            adapt_state=init_adaptation(flat, potential_energy, self._step_size, self._first_window),
        )

    @property
    def warming(self):
        """Whether the next iteration is one of the warm-up."""
        return self.state.i < self._warmup_steps

    @property
    def warmup_converged(self):
        """Whether the warm-up has met its rule, and the rest of it can be skipped."""
        return self.state.adapt_state.warmup_converged

    @torch.no_grad()
    def advance(self):
        """The next draw of all chains, or one step of their warm-up."""
        state, warming = self.state, self.warming
        if warming and self.warmup_converged:
            self.state = state._replace(i=state.i + 1)
            return
        step_size = state.adapt_state.step_size
        if self._step_size_schedule is not None and not warming:
            step_size = step_size * self._step_size_schedule(state.i - self._warmup_steps)
        chains, diverging, num_steps = state.chains, False, 0
        num = 1 if warming else self._num_steps
        for i in range(num):
            chains, info = self._step(chains, self._potential_and_grad, step_size, state.adapt_state, i == num - 1)
            diverging, num_steps = info.diverging | diverging, num_steps + info.num_steps
        error = info.energy_error
        accept_prob = accept_probability(error)
        self.state = LangevinState(
            i=state.i + 1,
            chains=chains,
            accept_prob=accept_prob,
            energy_error=error.nan_to_num(0.0, 0.0, 0.0),
            kinetic_temperature=chains.v.square().mean(1) if self._has_velocity else None,
            diverging=diverging,
            num_steps=num_steps,
            step_size=step_size,
            num_nan=torch.where(error.isnan(), state.num_nan + 1, 0),
            adapt_state=self._adapted(state, chains, accept_prob) if warming else state.adapt_state,
        )

    def _adapted(self, state, chains, accept_prob):
        new = adapt(
            state.adapt_state,
            chains.z,
            chains.potential_energy,
            accept_prob,
            self._target_accept_prob,
            step_size=self._adapt_step_size,
            mass=self._adapt_mass_matrix,
        )
        if not self._adapt_step_size:
            return new
        if state.i + 1 == self._warmup_steps:
            new = finish(new)
        return new._replace(step_size=_at_most(new.step_size, self._max_step * new.length_scale))

    def check(self):
        """Stop a run whose potential has turned NaN; reads a number off the device.

        Raises:
            RuntimeError: if the potential was NaN 100 draws in a row in some chain.
        """
        if self.state.num_nan.max() >= PATIENCE:
            raise RuntimeError(
                f"The potential was NaN {PATIENCE} draws in a row: check the energy, or start elsewhere "
                "(`initial_params`)."
            )

    def statistics(self):
        """Statistics of the last draw: dict of tensors of shape `(N,)`, named as in ArviZ."""
        state = self.state
        like = state.accept_prob
        statistics = {
            "lp": -state.chains.potential_energy,
            "energy": state.chains.potential_energy + kinetic_energy(state.chains.v),
            "acceptance_rate": state.accept_prob,
            "energy_error": state.energy_error,
            "diverging": state.diverging,
            "step_size": torch.full_like(like, state.step_size),
            "n_steps": torch.full_like(like, state.num_steps, dtype=torch.long),
            "warmup_converged": torch.full_like(like, state.adapt_state.warmup_converged, dtype=torch.bool),
        }
        if self._has_velocity:
            statistics["kinetic_temperature"] = state.kinetic_temperature
        return statistics

    def state_dict(self):
        """State after the warm-up, the random state included: nested dictionaries of tensors and numbers."""
        state, adapt_state = self.state, self.state.adapt_state
        return {
            "i": state.i,
            "chains": state.chains._asdict(),
            "num_nan": state.num_nan,
            "adapt_state": {name: getattr(adapt_state, name) for name in _KEPT},
            "rng": get_rng_state(state.num_nan.device),
        }

    def load_state_dict(self, saved):
        """Go back to a state from `state_dict`, after `setup_chains`.

        Args:
            saved: what `state_dict` returned.

        Raises:
            ValueError: if it is of chains of another shape.
        """
        chains = Chains(**saved["chains"])
        if chains.z.shape != self.state.chains.z.shape:
            raise ValueError(
                f"Expected a state of chains of shape {tuple(self.state.chains.z.shape)}; got "
                f"{tuple(chains.z.shape)}. Resume with the same model and number of chains."
            )
        adapt_state = self.state.adapt_state._replace(**saved["adapt_state"])
        self.state = self.state._replace(i=saved["i"], chains=chains, num_nan=saved["num_nan"], adapt_state=adapt_state)
        set_rng_state(saved["rng"], chains.z.device)

    def sample(self, params):
        """One iteration of a single chain, as Pyro's `MCMC` asks for."""
        warming = self.warming
        self.advance()
        if not warming:
            self._statistics.append({name: value[0] for name, value in self.statistics().items()})
        if self.state.i % PATIENCE == 0:
            self.check()
        return {name: value[0] for name, value in self.positions().items()}

    def logging(self):
        """What Pyro's progress bar shows."""
        state = self.state
        return OrderedDict(
            [
                ("step size", f"{float(state.step_size):.2e}"),
                ("acc. prob", f"{float(state.accept_prob.mean()):.3f}"),
                ("potential", f"{float(state.chains.potential_energy.mean()):.2f}"),
            ]
        )

    def diagnostics(self):
        """Divergences as Pyro's kernels report them, and under "sample_stats" one value a draw of each statistic."""
        names = self._statistics[0] if self._statistics else ()
        stats = {name: torch.stack([row[name] for row in self._statistics]).cpu() for name in names}
        divergences = stats["diverging"].nonzero().flatten().tolist() if stats else []
        return {"divergences": divergences, "sample_stats": stats}

    def cleanup(self):
        """Forget the chain that ended."""
        self._reset()

    def __getstate__(self):
        return {**self.__dict__, "_potential": None}


def _of_one(potential_fn):
    """A potential of one chain, as one of a batch of one."""
    return lambda params: potential_fn({name: value[0] for name, value in params.items()}).reshape(1)


def _at_most(x, bound):
    return x.clamp(max=bound) if isinstance(x, torch.Tensor) else min(x, bound)
