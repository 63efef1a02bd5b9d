"""Replica exchange (parallel tempering) on the ladder of a GEBM, as a kernel of `VectorizedMCMC`."""

from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Annotated, Any, NamedTuple

import numpy as np
import torch
from torch.distributions import biject_to

from gebm.ladder import NUM_PILOT, NUM_PILOT_MOVES, PILOT_FRACTION, Points, spaced_evenly
from gebm.validation import check_fields, integer, latent_law, optional, text
from pyro_gebm.callables import PrivateRandomness
from pyro_gebm.gebm import EnergyTiltedPrior
from pyro_gebm.infer.chain_kernel import ChainKernel, started
from pyro_gebm.infer.ladder.pilot import pilot
from pyro_gebm.infer.ladder.tempering import Ladder, move, potential_at
from pyro_gebm.processes import ALONE
from pyro_gebm.training.checkpoints import get_rng_state, set_rng_state

__all__ = ["ReplicaExchange", "ReplicaExchangeState"]


class ReplicaExchangeState(NamedTuple):
    """State of `ReplicaExchange`, of N chains of R replicas.

    Args:
        i: iterations so far, warm-up included.
        points: `Points` of all replicas, leading axes `(R, N)`.
        rising: whether a replica was last on the first rung, and not on the last one; shape `(R, N)`.
        accept_prob: acceptance probability of the trajectories on the last rung, shape `(N,)`.
        swap_accept_prob: probability of a swap between neighbours, tried or not, shape `(R - 1, N)`.
        round_trips: how many replicas have come up from the first rung to the last so far, shape `(N,)`.
        num_steps: gradients spent on the draw.
        diverging: whether the trajectory on the last rung was certain to be rejected, as one that meets NaN is.
    """

    i: int
    points: Points
    rising: torch.Tensor
    accept_prob: torch.Tensor
    swap_accept_prob: torch.Tensor
    round_trips: torch.Tensor
    num_steps: int
    diverging: torch.Tensor


@dataclass(kw_only=True, eq=False)
class ReplicaExchange(ChainKernel):
    r"""Replica exchange: R replicas on a ladder from the base to the tilted law swap places.

    Every iteration draws the replica on the first rung afresh from the prior, moves the others by a Metropolis-adjusted
    Langevin trajectory (arXiv:2202.13230), and tries swaps between neighbours with probability

    .. math:: \min(1, e^{(t_{r+1} - t_r) \beta (E(z_{r+1}) - E(z_r))})

    in even and odd iterations with neighbours above and below, so that replicas travel instead of diffusing. Draws are
    those of the last rung, and exact. Modes of any distance are visited if the ladder connects them, which
    `round_trips` shows: each brought an independent draw of the prior up to the last rung. Source: arXiv:1905.02939.

    The ladder, its length scales and its step size come from a pilot run of sequential Monte Carlo when the kernel is
    made. The warm-up adapts nothing; it lets the replicas settle: 100 iterations are usually enough. Runs under
    `VectorizedMCMC`.

    Args:
        latent: an `EnergyTiltedPrior` with batch shape (), `gebm.latent`.
        num_rungs: R; None takes as many as swaps need: twice the communication barrier, plus 1.
        num_moves: trajectories on each rung and iteration.
        site: name of the draws.

    Attributes:
        inverse_temperatures: the ladder, shape `(R,)`.
        num_pilot_gradients: gradients of the energy that the pilot run took.

    Raises:
        TypeError: if `latent` is not an `EnergyTiltedPrior`.
        ValueError: for numbers out of their range, or a GEBM with a batch shape.
        RuntimeError: if the energy is NaN or -inf at a draw of the prior, or infinite at all of them.

    Example:
        >>> import pyro.distributions as dist
        >>> from pyro_gebm import GEBM
        >>> from pyro_gebm.infer import VectorizedMCMC
        >>> gebm = GEBM(dist.Normal(0.0, 1.0), lambda x: 3.0 * (x**2 - 1.0) ** 2)
        >>> mcmc = VectorizedMCMC(ReplicaExchange(gebm.latent), num_samples=100, warmup_steps=50, disable_progbar=True)
        >>> mcmc.run()
        >>> mcmc.get_samples()["z"].shape
        torch.Size([100])
    """

    latent: Annotated[EnergyTiltedPrior, latent_law] = field(kw_only=False)
    num_rungs: Annotated[int | None, optional(partial(integer, minimum=2))] = None
    num_moves: Annotated[int, integer] = 1
    site: Annotated[str, text] = "z"

    processes = ALONE
    of_chains = {"points": 1, "rising": 1, "round_trips": 0}

    def __post_init__(self):
        check_fields(self)
        self._ladder = Ladder(self.latent)
        with PrivateRandomness():
            rungs = pilot(self._ladder, NUM_PILOT, NUM_PILOT_MOVES, PILOT_FRACTION)
        columns = (rungs.t, rungs.step_size, rungs.length_scale, rungs.barrier)
        t, step_size, length_scale, barrier = (np.array(column) for column in columns)
        t, self._step_size, length_scale = spaced_evenly(t, step_size, length_scale, barrier, self.num_rungs)
        self.num_pilot_gradients = sum(rungs.num_gradients)
        self._beta = self.latent.gebm.inverse_temperature
        self._t, self._length_scale = (torch.as_tensor(x).to(self._beta) for x in (t, length_scale))
        self.transforms = {self.site: biject_to(self.latent.support).inv}
        self._state: ReplicaExchangeState | None = None

    @property
    def state(self) -> ReplicaExchangeState:
        """State of the run.

        Raises:
            RuntimeError: before there is one.
        """
        return started(self._state)

    @state.setter
    def state(self, state: ReplicaExchangeState | None) -> None:
        """Hand a state on, perhaps of another GEBM: it gets the energies of this one."""
        self._state = state if state is None else self._with_own_energies(state)

    def _with_own_energies(self, state):
        points = state.points
        own = _reshaped(self._ladder.evaluate(points.u.flatten(0, 1)), points.u.shape[:2])
        if all(map(torch.allclose, own, points)):
            return state
        if not own.neg_beta_energy[1:].isfinite().all():
            raise ValueError("Expected a state of finite energies under this GEBM; got others. Start anew.")
        return state._replace(points=own)

    @property
    def inverse_temperatures(self) -> torch.Tensor:
        """The ladder, shape `(R,)`."""
        return self._beta * self._t

    def setup_chains(
        self,
        warmup_steps: int,
        num_chains: int,
        initial_params: dict[str, torch.Tensor] | None,
        *args: Any,
        **kwargs: Any,
    ) -> None:
        """Start many chains, at draws of the prior where `initial_params` is None: see `ChainKernel`.

        Raises:
            TypeError: for arguments.
            ValueError: if the potential is not finite at a start.
            RuntimeError: if the energy is NaN at a draw of the prior, or infinite at 1,000 of them in a row.
        """
        if args or kwargs:
            raise TypeError("Expected no arguments: ReplicaExchange works on a GEBM, not on a model.")
        ladder = self.processes.of_first([self._t.cpu(), self._length_scale.cpu(), self._step_size])
        self._t, self._length_scale, self._step_size = *(x.to(self._t) for x in ladder[:2]), ladder[2]
        points, shape = self._ladder.start_finite(len(self._t) * num_chains), (len(self._t), num_chains)
        if initial_params is not None:
            given = self._ladder.evaluate(initial_params[self.site].detach().reshape(num_chains, -1))
            potential = potential_at(given, 1.0)[0]
            if not potential.isfinite().all():
                raise ValueError(
                    "Expected a finite potential at `initial_params`, which are unconstrained; got "
                    f"{potential.tolist()}."
                )
            rest = given.map(lambda x: x.repeat(shape[0] - 1, *[1] * (x.dim() - 1)))
            points = points.map(lambda x, y: torch.cat([x[:num_chains], y]), rest)
        zero = torch.zeros_like(points.neg_beta_energy[:num_chains])
        self._state = ReplicaExchangeState(
            i=0,
            points=_reshaped(points, shape),
            rising=torch.zeros(shape, dtype=torch.bool, device=zero.device),
            accept_prob=zero,
            swap_accept_prob=zero.repeat(shape[0] - 1, 1),
            round_trips=torch.zeros_like(zero, dtype=torch.long),
            num_steps=0,
            diverging=torch.zeros_like(zero, dtype=torch.bool),
        )

    @torch.no_grad()
    def advance(self) -> None:
        """The next draw of all chains."""
        state, t = self.state, self._t
        num_rungs, num_chains = state.rising.shape
        others = state.points.map(lambda x: x[1:].flatten(0, 1))
        t_of, scale_of = (x[1:].repeat_interleave(num_chains) for x in (t, self._length_scale))
        others, accept_prob, num_steps = move(others, self._ladder, t_of, self._step_size, scale_of, self.num_moves)
        fresh = self._ladder.evaluate(self._ladder.sample_prior(num_chains))
        points = _reshaped(fresh.map(lambda x, y: torch.cat([x, y]), others), (num_rungs, num_chains))
        log_ratio = (t[1:] - t[:-1])[:, None] * (points.neg_beta_energy[:-1] - points.neg_beta_energy[1:])
        swap_accept_prob = log_ratio.clamp(max=0.0).exp().nan_to_num(0.0)
        tried = torch.arange(num_rungs - 1, device=t.device) % 2 == state.i % 2
        swapped = tried[:, None] & (torch.rand_like(swap_accept_prob) < swap_accept_prob)
        none = torch.zeros_like(swapped[:1], dtype=torch.long)
        index = torch.arange(num_rungs, device=t.device)[:, None]
        index = index + torch.cat([swapped.long(), none]) - torch.cat([none, swapped.long()])
        points = points.map(lambda x: _gathered(x, index))
        rising = state.rising.clone()
        rising[0] = True
        rising = rising.gather(0, index)
        arrived, rising[-1] = rising[-1].clone(), False
        self._state = ReplicaExchangeState(
            i=state.i + 1,
            points=points,
            rising=rising,
            accept_prob=accept_prob[-num_chains:],
            swap_accept_prob=swap_accept_prob,
            round_trips=state.round_trips + arrived,
            num_steps=(num_rungs - 1) * num_steps + 1,
            diverging=accept_prob[-num_chains:] == 0.0,
        )

    def positions(self) -> dict[str, torch.Tensor]:
        """Draws of all chains: dict of an unconstrained tensor with a leading axis of N."""
        u = self.state.points.u[-1]
        return {self.site: self._ladder.shaped(u)}

    def statistics(self) -> dict[str, torch.Tensor]:
        """Statistics of the last draw: dict of tensors with a leading axis of N, named as in ArviZ."""
        state = self.state
        last = state.points.map(lambda x: x[-1])
        return {
            "lp": -potential_at(last, 1.0)[0],
            "acceptance_rate": state.accept_prob,
            "swap_accept_prob": state.swap_accept_prob.T,
            "round_trips": state.round_trips,
            "n_steps": torch.full_like(state.round_trips, state.num_steps),
            "diverging": state.diverging,
        }

    def state_dict(self) -> dict[str, Any]:
        """State after the warm-up, the ladder and the random state included: dictionaries of tensors and numbers."""
        state = self.state
        return {
            "i": state.i,
            "points": state.points._asdict(),
            "rising": state.rising,
            "round_trips": state.round_trips,
            "ladder": {"t": self._t, "length_scale": self._length_scale, "step_size": self._step_size},
            "rng": get_rng_state(self._t.device),
        }

    def load_state_dict(self, saved: dict[str, Any]) -> None:
        """Go back to a state from `state_dict`, its ladder included, after `setup_chains`.

        Args:
            saved: what `state_dict` returned.

        Raises:
            ValueError: if it is of replicas of another shape.
        """
        points, expected = Points(**saved["points"]), tuple(self.state.points.u.shape[1:])
        if tuple(points.u.shape[1:]) != expected:
            raise ValueError(
                f"Expected a state of chains of shape {expected}; got {tuple(points.u.shape[1:])}. Resume with the "
                "same GEBM and number of chains."
            )
        ladder = saved["ladder"]
        self._t, self._length_scale, self._step_size = ladder["t"], ladder["length_scale"], ladder["step_size"]
        kept = {name: saved[name] for name in ("i", "rising", "round_trips")}
        self.state = self.state._replace(points=points, **kept)
        set_rng_state(saved["rng"], self._t.device)

    def logging(self) -> Mapping[str, Any]:
        """What the progress bar shows."""
        return OrderedDict([("rungs", len(self._t)), ("round trips", int(self.state.round_trips.sum()))])


def _reshaped(points, shape):
    return points.map(lambda x: x.reshape(*shape, *x.shape[1:]))


def _gathered(x, index):
    if x.dim() > 2:
        index = index[..., None].expand(-1, -1, x.shape[-1])
    return x.gather(0, index)
