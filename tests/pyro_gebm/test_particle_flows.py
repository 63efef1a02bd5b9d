"""Flows of MMD and KALE: a dual that is not solved."""

import pytest
import torch
from cases import two_samples

from pyro_gebm import particle_flows
from pyro_gebm.divergences.rkhs import dual_point
from pyro_gebm.particle_flows import FlowDiverged, kale_flow


def test_a_dual_that_is_not_solved_says_so(monkeypatch):
    def unsolved(gram, mean, norm, lam, u):
        return dual_point(gram, mean, norm, lam, u)._replace(gap=torch.tensor(1.0))

    monkeypatch.setattr(particle_flows, "solve_dual", unsolved)
    with pytest.raises(FlowDiverged, match="dual of KALE could not be solved at step 0.*larger regularization"):
        kale_flow(*two_samples(5, 1.0), num_steps=1, step_size=0.1, progress_bar=False)
