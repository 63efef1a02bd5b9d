"""Replica exchange over chains at once: starting points, steps into NaN; energies without a graph."""

import math
import pickle

import cases
import hosts
import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch

from pyro_gebm import GEBM
from pyro_gebm.infer import MALT, ReplicaExchange

HOST = hosts.get("pyro")


def test_start_of_replica_exchange():
    kernel = ReplicaExchange(HOST.linear_gaussian(1.0).latent, num_rungs=3, site="w")
    start = {"w": torch.full((2, 2), 7.0)}
    assert HOST.run(kernel, 10, 20, 2, start=start)["w"].shape == (2, 20, 2)
    kernel.setup_chains(0, 2, start)
    torch.testing.assert_close(kernel.positions()["w"], start["w"])
    with pytest.raises(ValueError, match="Expected a finite potential at `initial_params`"):
        kernel.setup_chains(0, 2, {"w": torch.tensor([[7.0, math.nan], [0.0, 0.0]])})
    with pytest.raises(TypeError, match="Expected no arguments"):
        kernel.setup_chains(0, 2, None, 1.0)


def norm(x):
    return (x**2).sum(-1)


@pytest.mark.parametrize("by", ["state", "state_dict"])
def test_replicas_that_are_handed_on_have_the_energies_of_their_new_model(by):
    old, new, walls = (
        ReplicaExchange(GEBM(HOST.normal(2), energy).latent, num_rungs=3)
        for energy in (norm, lambda x: 5.0 * norm(x), lambda x: torch.where(x[..., 0] > 0.0, 0.0, math.inf))
    )
    for kernel in (old, new, walls):
        kernel.setup_chains(0, 20, None)
    u, energy = old.state.points.u, old.state.points.neg_beta_energy
    for kernel, scale in ((old, 1.0), (new, 5.0)):
        if by == "state":
            kernel.state = old.state
        else:
            kernel.load_state_dict(old.state_dict())
        assert torch.equal(kernel.state.points.u, u)
        torch.testing.assert_close(kernel.state.points.neg_beta_energy, scale * energy)
    with pytest.raises(ValueError, match="Expected a state of finite energies under this GEBM"):
        walls.state = old.state


def test_replica_exchange_can_be_pickled():
    kernel = ReplicaExchange(GEBM(HOST.normal(2), norm).latent, num_rungs=3)
    assert len(pickle.loads(pickle.dumps(kernel)).inverse_temperatures) == 3


def test_replica_exchange_and_kernels_turn_down_steps_into_nan():
    """Also over a prior that checks its arguments, as an expanded one always does."""
    prior = dist.Normal(0.0, 1.0).expand([2]).to_event(1)
    latent = GEBM(prior, lambda x: 100.0 * ((x**2 - 1.0) ** 2).sum(-1)).latent
    assert np.isfinite(HOST.run(ReplicaExchange(latent, num_rungs=4), 20, 100, 8)["z"]).all()
    assert np.isfinite(HOST.run(MALT(lambda: pyro.sample("z", latent), step_size=50.0), 20, 20, 8)["z"]).all()


def test_the_default_sampler_of_an_energy_without_gradient():
    gebm = GEBM(HOST.normal(2), lambda x: torch.zeros(len(x)))
    cases.assert_moments(gebm.sample((2000,)).numpy()[None], np.zeros(2), np.eye(2), min_ess=1000, z_max=4.5)
