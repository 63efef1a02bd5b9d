"""Chains as ArviZ data: what Pyro adds."""

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch

from pyro_gebm import GEBM, to_arviz
from pyro_gebm.infer import GHMC, VectorizedMCMC
from pyro_gebm.observations import observations

az = pytest.importorskip("arviz")
LATENT = GEBM(dist.Normal(0.0, 1.0), lambda x: 0.5 * x**2).latent


def model(y):
    z = pyro.sample("z", LATENT)
    pyro.sample("y", dist.Normal(z, 1.0), obs=y)


@pytest.mark.skipif(not hasattr(az, "from_pyro"), reason="ArviZ 1 has no from_pyro")
def test_arviz_reads_many_chains_itself():
    mcmc = VectorizedMCMC(GHMC(model), 10, 10, 3, disable_progbar=True)
    mcmc.run(torch.tensor(1.0))
    data, ours = az.from_pyro(mcmc), to_arviz(mcmc)
    np.testing.assert_array_equal(data["posterior"]["z"], ours["posterior"]["z"])
    np.testing.assert_array_equal(data["sample_stats"]["diverging"], ours["sample_stats"]["diverging"])
    np.testing.assert_array_equal(data["observed_data"]["y"], 1.0)


def test_a_model_that_cannot_be_batched_is_run_draw_by_draw():
    def branches(y):
        z = pyro.sample("z", LATENT)
        pyro.sample("y", dist.Normal(z if z.item() > 0 else -2.0 * z, 1.0), obs=y)

    draws = torch.randn(2, 5)
    found = observations(branches, (torch.tensor(1.0),), {}, {"z": draws})["log_likelihood"]["y"]
    expected = dist.Normal(torch.where(draws > 0, draws, -2.0 * draws), 1.0).log_prob(torch.tensor(1.0))
    np.testing.assert_allclose(found, expected, rtol=1e-12)
