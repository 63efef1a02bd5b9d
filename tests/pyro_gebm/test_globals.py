"""What belongs to the whole process: threads share it, and constructors, files and checks leave it as it is."""

import copy
import random
import threading

import arviz as az
import hosts
import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.poutine.runtime import _PYRO_STACK

from pyro_gebm import (
    GEBM,
    KALE,
    KALEGuide,
    LatentReparam,
    Pushforward,
    diagnose,
    flows,
    infer,
    load,
    nn,
    save,
    to_arviz,
)
from pyro_gebm.callables import draw_quietly
from pyro_gebm.infer import GHMC, MALA, VectorizedMCMC, stream_draws

PRIOR = hosts.get("pyro").normal(2)


def quadratic(x):
    return 0.5 * (x**2).sum(-1)


def model(y):
    z = pyro.sample("z", GEBM(PRIOR, quadratic).latent)
    pyro.sample("y", dist.Normal(z.sum(-1), 1.0), obs=y)


def globals_of_the_process():
    numbers = torch.get_rng_state().numpy().tobytes(), repr(np.random.get_state()), random.getstate()
    flags = torch.get_default_dtype(), torch.is_grad_enabled(), torch.get_default_device(), torch.get_num_threads()
    validation = (
        pyro.infer.util.is_validation_enabled(),
        pyro.distributions.is_validation_enabled(),
        poutine.util.is_validation_enabled(),
    )
    return numbers, flags, validation, list(_PYRO_STACK), dict(pyro.get_param_store())


def test_runs_in_several_threads():
    """z has variance 1/2, so given y = z1 + z2 + noise, E[z1 + z2] = y / 2 and its variance is 1/2."""
    data, before, errors = [-20.0, 0.0, 20.0], globals_of_the_process()[1:], []
    runs = [VectorizedMCMC(GHMC(model), 60, 60, 10, disable_progbar=True) for _ in data]

    def go(run, y):
        try:
            run.run(torch.tensor(y))
        except Exception as error:
            errors.append(error)

    pyro.set_rng_seed(0)
    threads = [threading.Thread(target=go, args=pair) for pair in zip(runs, data, strict=True)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not errors
    assert globals_of_the_process()[1:] == before
    for run, y in zip(runs, data, strict=True):
        total = run.get_samples(group_by_chain=True)["z"].sum(-1).numpy()
        error = total.std() / np.sqrt(az.ess(total))
        assert abs(total.mean() - y / 2) < 5 * error
        assert abs(total.var() - 0.5) < 0.2


@pytest.mark.parametrize("path", [None, "draws.nc"])
def test_handlers_around_a_run_do_not_see_it(path, tmp_path):
    mcmc = VectorizedMCMC(MALA(model), 3, 3, 2, disable_progbar=True)
    with poutine.trace() as outside:
        if path is None:
            mcmc.run(torch.tensor(1.0))
        else:
            stream_draws(mcmc, tmp_path / path, model_args=(torch.tensor(1.0),), progress_bar=False)
    assert not outside.trace.nodes


def networks():
    return GEBM(Pushforward(PRIOR, nn.MLP((2,), (3,), (4,))), nn.MLP((3,), (), (4,)), log_partition=0.0)


def train(model):
    def adam(parameters):
        return torch.optim.Adam(parameters, 1e-3)

    return KALE(model.base, KALEGuide(model.energy), adam, adam)


def with_gebm(model, path):
    return GEBM(model.base, model.energy), GEBM(model, quadratic), model.temper(0.5), model.expand([2])


def replica_exchange(model, path):
    return infer.ReplicaExchange(GEBM(PRIOR, quadratic).latent, num_rungs=3)


def saved_and_loaded(model, path):
    save(model, path / "gebm.npz")
    return load(path / "gebm.npz")


def copied(model, path):
    return copy.deepcopy(model), copy.deepcopy(flows.FlowRatioEnergy(flow()))


def trained(model, path):
    return copy.deepcopy(train(model).guide)


def reparametrised(model, path):
    return infer.init_to_prior, LatentReparam(), infer.SMC(), infer.AnnealedMALA(), infer.GHMC(lambda: None)


def of_draws(model, path):
    mcmc = a_run()
    return diagnose(mcmc), to_arviz(mcmc), mcmc.summary()


def densities(model, path):
    return model.latent.log_prob(torch.zeros(2)), GEBM(flow(), quadratic).log_prob(torch.zeros(2)), repr(model)


def flow():
    with torch.random.fork_rng():
        return flows.real_nvp(2, 2, (4,))


def a_run():
    mcmc = VectorizedMCMC(MALA(lambda: pyro.sample("z", PRIOR)), 10, 10, 4, disable_progbar=True)
    with torch.random.fork_rng():
        mcmc.run()
    return mcmc


DOORS = [with_gebm, replica_exchange, saved_and_loaded, copied, trained, reparametrised, of_draws, densities]


@pytest.mark.parametrize("door", DOORS, ids=lambda door: door.__name__)
def test_global_state_is_left_alone(door, tmp_path):
    model = networks()
    before = globals_of_the_process()
    door(model, tmp_path)
    assert globals_of_the_process() == before


def test_a_ladder_is_made_with_the_seed():
    def ladder(seed):
        pyro.set_rng_seed(seed)
        return infer.ReplicaExchange(GEBM(PRIOR, lambda x: 3.0 * quadratic(x)).latent, num_rungs=4).inverse_temperatures

    assert torch.equal(ladder(0), ladder(0)) and not torch.equal(ladder(0), ladder(1))


ONE = torch.tensor(1.0)
PRIORS = [
    dist.Normal(0.0, ONE),
    dist.MultivariateNormal(torch.zeros(2), torch.eye(2)),
    dist.Uniform(0.0, ONE),
    dist.Laplace(0.0, ONE),
    dist.Gamma(ONE, ONE),
    dist.Beta(ONE, ONE),
    dist.Dirichlet(torch.ones(2)),
    dist.Exponential(ONE),
    dist.Cauchy(0.0, ONE),
    dist.StudentT(ONE),
    dist.VonMises(0.0, ONE),
    dist.LogNormal(0.0, ONE),
    dist.MixtureSameFamily(dist.Categorical(torch.ones(2)), dist.Normal(torch.zeros(2), 1.0)),
    dist.Poisson(ONE),
    dist.Binomial(5, ONE / 2),
    dist.Stable(ONE, ONE),
    GEBM(PRIOR, quadratic, sampler=infer.AnnealedMALA(num_steps=3)),
]


@pytest.mark.parametrize("prior", PRIORS, ids=lambda prior: type(prior).__name__)
def test_checks_draw_numbers_of_their_own(prior):
    """Not even for a moment do they move the global generator, which other threads may draw from."""
    states = []
    sample, prior = prior.sample, copy.copy(prior)
    prior.sample = lambda shape: (sample(shape), states.append(torch.get_rng_state()))[0]
    before = torch.get_rng_state()
    first, second = draw_quietly(prior, 3), draw_quietly(prior, 3)
    assert torch.equal(first, second) and len(first) >= 3
    assert all(torch.equal(state, before) for state in [*states, torch.get_rng_state()])
