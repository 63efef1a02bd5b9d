"""Persistent chains of contrastive divergence."""

import math

import torch
from torch.distributions import biject_to

from pyro_gebm.base import without_validation
from pyro_gebm.dynamics.metropolis import mala_step
from pyro_gebm.dynamics.steps import value_and_grad

__all__ = ["Chains"]

#: Number of chains, and MALA steps of each before every energy step.
NUM_CHAINS, NUM_STEPS = 128, 10
#: Acceptance that the step size is adapted to.
TARGET_ACCEPT_PROB = 0.65


class Chains:
    """Chains that start at exact draws of the latent prior and follow a GEBM whose energy changes.

    Args:
        gebm: the model; its energy may be trained in place.
    """

    def __init__(self, gebm):
        self.gebm = gebm
        self.transform = biject_to(gebm.latent_prior.support)
        with torch.no_grad():
            self.u = self.transform.inv(gebm.latent_prior.sample((NUM_CHAINS,)))
        self.log_step = torch.tensor(math.log(0.5), dtype=self.u.dtype, device=self.u.device)

    def _log_density(self, u):
        z = self.transform(u)
        jacobian = self.transform.log_abs_det_jacobian(u, z)
        return without_validation(self.gebm.latent).log_prob(z) + jacobian.reshape(len(u), -1).sum(1)

    @torch.no_grad()
    def move(self):
        """Move the chains towards the tilted prior by MALA; returns them as draws over x."""

        def evaluate(u):
            return u, *value_and_grad(self._log_density, u)

        point = evaluate(self.u)
        for _ in range(NUM_STEPS):
            steps = self.log_step.expand(point[1].shape)
            point, accept_prob = mala_step(point, steps, evaluate, lambda point: point[1:])
            self.log_step = self.log_step + 0.05 * (accept_prob.mean() - TARGET_ACCEPT_PROB)
        self.u = point[0]
        return self.gebm.decode(self.transform(self.u))

    def state_dict(self):
        """Positions and step size."""
        return {"u": self.u, "log_step": self.log_step}

    def load_state_dict(self, state):
        """Go back to a state from `state_dict`."""
        self.u, self.log_step = state["u"].to(self.u), state["log_step"].to(self.log_step)
