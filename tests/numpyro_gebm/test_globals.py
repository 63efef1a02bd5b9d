"""What belongs to the whole process: threads share NumPyro's stack of handlers."""

import threading

import arviz as az
import hosts
import jax
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from numpyro import handlers
from numpyro.infer import MCMC
from numpyro.primitives import _PYRO_STACK

from numpyro_gebm import GEBM
from numpyro_gebm.infer import MALA

PRIOR = hosts.get("numpyro").normal(2)


def model(y):
    z = numpyro.sample("z", GEBM(PRIOR, lambda x: 0.5 * (x**2).sum()).latent)
    numpyro.sample("y", dist.Normal(z.sum(-1), 1.0), obs=y)


@pytest.mark.slow
def test_runs_in_several_threads():
    """z has variance 1/2, so given y = z1 + z2 + noise, E[z1 + z2] = y / 2 and its variance is 1/2."""
    data, errors = [-20.0, 20.0], []
    settings = {"num_warmup": 200, "num_samples": 100, "num_chains": 10, "chain_method": "vectorized"}
    runs = [MCMC(MALA(model), **settings, progress_bar=False) for _ in data]

    def go(run, y):
        try:
            run.run(jax.random.key(0), y)
        except Exception as error:
            errors.append(error)

    threads = [threading.Thread(target=go, args=pair) for pair in zip(runs, data, strict=True)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not errors and not _PYRO_STACK
    for run, y in zip(runs, data, strict=True):
        total = np.asarray(run.get_samples(group_by_chain=True)["z"].sum(-1))
        assert abs(total.mean() - y / 2) < 5 * total.std() / np.sqrt(az.ess(total))
        assert abs(total.var() - 0.5) < 0.2


def test_handlers_around_a_run_do_not_see_it():
    mcmc = MCMC(MALA(model), num_warmup=2, num_samples=2, progress_bar=False)
    with handlers.trace() as outside:
        mcmc.run(jax.random.key(0), 1.0)
    assert not outside
