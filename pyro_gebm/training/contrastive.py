"""Persistent chains of contrastive divergence."""

import math

import torch
from torch.distributions import biject_to

from pyro_gebm.base import support_of, without_validation
from pyro_gebm.dynamics.metropolis import mala_step
from pyro_gebm.dynamics.steps import value_and_grad
from pyro_gebm.gebm import GEBM

__all__ = ["PersistentChains"]


class PersistentChains:
    """Chains that start at exact draws of the latent prior and follow a GEBM whose energy changes.

    Args:
        gebm: the model; its energy may be trained in place.
        num_chains: number of chains.
        num_steps: MALA steps of each in a move.
        target_accept_prob: acceptance probability that the step size is adapted to.
    """

    def __init__(self, gebm: GEBM, num_chains: int, num_steps: int, target_accept_prob: float) -> None:
        self.gebm, self.num_steps, self.target_accept_prob = gebm, num_steps, target_accept_prob
        self.transform = biject_to(support_of(gebm.latent_prior))
        with torch.no_grad():
            self.u = self.transform.inv(gebm.latent_prior.sample((num_chains,)))
        self.log_step = torch.tensor(math.log(0.5), dtype=self.u.dtype, device=self.u.device)

    def _log_density(self, u):
        z = self.transform(u)
        jacobian = self.transform.log_abs_det_jacobian(u, z)
        return without_validation(self.gebm.latent).log_prob(z) + jacobian.reshape(len(u), -1).sum(1)

    @torch.no_grad()
    def move(self) -> torch.Tensor:
        """Move the chains towards the tilted prior by MALA; returns them as draws over x."""

        def evaluate(u):
            return u, *value_and_grad(self._log_density, u)

        point = evaluate(self.u)
        for _ in range(self.num_steps):
            steps = self.log_step.expand(point[1].shape)
            point, accept_prob = mala_step(point, steps, evaluate, lambda point: point[1:])
            self.log_step = self.log_step + 0.05 * (accept_prob.mean() - self.target_accept_prob)
        self.u = point[0]
        return self.gebm.decode(self.transform(self.u))

    def state_dict(self) -> dict[str, torch.Tensor]:
        """Positions and step size."""
        return {"u": self.u, "log_step": self.log_step}

    def load_state_dict(self, state: dict[str, torch.Tensor]) -> None:
        """Go back to a state from `state_dict`."""
        self.u, self.log_step = state["u"].to(self.u), state["log_step"].to(self.log_step)
