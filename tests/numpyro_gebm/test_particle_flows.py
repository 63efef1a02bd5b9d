"""Flows of MMD and KALE: random keys, and what a compiled loop reports."""

import pytest
from cases import two_samples

from numpyro_gebm import particle_flows
from numpyro_gebm.particle_flows import FlowDiverged, kale_flow, mmd_flow

PARTICLES, TARGET = two_samples(20, 1.0)


@pytest.mark.parametrize("flow", [mmd_flow, kale_flow])
def test_noise_needs_a_key(flow):
    with pytest.raises(ValueError, match="Expected a random key for the noise"):
        flow(PARTICLES, TARGET, noise=0.1, num_steps=2, step_size=0.1, progress_bar=False)


def test_a_dual_that_is_not_solved_says_so(monkeypatch):
    def unsolved(*arguments):
        state, losses, solved = advance(*arguments)
        return state, losses, solved.at[0].set(False)

    advance = particle_flows._advance
    monkeypatch.setattr(particle_flows, "_advance", unsolved)
    with pytest.raises(FlowDiverged, match="dual of KALE could not be solved at step 0:.*larger regularization"):
        kale_flow(PARTICLES, TARGET, regularization=0.05, num_steps=9, step_size=1e-3, progress_bar=False)
