"""Code of a user of Pyro, read by the type checker and never run: no error may be found in it."""

from typing import assert_type

import numpy as np
import pyro
import pyro.distributions as dist
import torch
from pyro import poutine
from pyro.infer import MCMC, NUTS

from gebm import errors
from pyro_gebm import (
    GEBM,
    KALE,
    Diagnosis,
    EnergyTiltedPrior,
    KALEGuide,
    LatentReparam,
    LogPartition,
    Program,
    Pushforward,
    decode,
    decode_to_zarr,
    diagnose,
    divergences,
    flows,
    gradient_penalty,
    infer,
    load,
    log_partition,
    log_partition_curve,
    metrics,
    nn,
    particle_flows,
    read_draws,
    save,
    to_arviz,
)
from pyro_gebm.training import kale_between
from pyro_gebm.training.objectives import Energies

# Pyro's `expand` has the type of PyTorch's, which has no `to_event`: a prior without it reads as one.
PRIOR = dist.Normal(torch.zeros(2), torch.ones(2)).to_event(1)


class Quadratic(torch.nn.Module):
    def __init__(self, scale: float) -> None:
        super().__init__()
        self.scale = torch.nn.Parameter(torch.tensor(scale))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return 0.5 * self.scale * x.flatten(1).square().sum(1)


def models() -> GEBM:
    base = Pushforward(PRIOR, nn.MLP((2,), (3,), hidden=(4,)))
    gebm = GEBM(base, Quadratic(1.0), inverse_temperature=torch.tensor(2.0))
    GEBM(base, lambda x: 0.5 * (x**2).sum(-1), inverse_temperature=2, log_partition=0.0, validate_args=False)
    GEBM(base, nn.ConvEnergy((1, 8, 8)), inverse_temperature=torch.ones(3))
    GEBM(flows.real_nvp(2), torch.nn.Sequential(torch.nn.Linear(2, 1), torch.nn.Flatten(0)))
    GEBM(base, gebm.energy, log_partition=lambda beta: -beta, sampler=infer.AnnealedMALA(num_steps=100))
    assert_type(gebm.latent, EnergyTiltedPrior)
    assert_type(gebm.sample((5,)), torch.Tensor)
    assert_type(gebm.latent.sample((5,)), torch.Tensor)
    assert_type(gebm.decode(gebm.latent.sample()), torch.Tensor)
    assert_type(gebm.latent.log_prob(torch.zeros(2)), torch.Tensor)
    assert_type(gebm.log_weight(torch.zeros(3)) + gebm.log_prob(torch.zeros(3)), torch.Tensor)
    return gebm.temper(0.5)


def sampler(latent: EnergyTiltedPrior, num_samples: int) -> torch.Tensor:
    return torch.zeros(num_samples, *latent.event_shape)


def log_partitions(gebm: GEBM) -> None:
    estimate = log_partition(gebm, method="smc")
    assert_type(estimate, LogPartition)
    assert_type(estimate.value + estimate.std_error, float)
    GEBM(gebm.base, gebm.energy, log_partition=estimate, sampler=sampler)
    curve = log_partition_curve(gebm)
    GEBM(gebm.base, gebm.energy, log_partition=curve)
    float(curve(0.5))


def adam(parameters: list[torch.nn.Parameter]) -> torch.optim.Optimizer:
    return torch.optim.Adam(parameters, 1e-4, betas=(0.5, 0.999))


def programs(data: torch.Tensor) -> torch.Tensor:
    base = Program(lambda num: pyro.sample("x", dist.Normal(num, 1.0)), "x", (3.0,))
    assert_type(base.sample((5,)), torch.Tensor)
    assert_type(base.constrain(torch.zeros(1))["x"], torch.Tensor)
    result = KALE(base, KALEGuide(lambda x: x), None, adam).run(5, data)
    result.program()
    return GEBM(base, lambda x: x**2).sample()


class Hinge:
    def energy_loss(self, energies: Energies) -> torch.Tensor:
        return (1.0 + energies.data).clamp(min=0.0).mean() + (1.0 - energies.base).clamp(min=0.0).mean()


def training(data: torch.Tensor) -> GEBM:
    guide = KALEGuide(nn.MLP((3,), ()), penalty=gradient_penalty(1.0))
    kale = KALE(Pushforward(PRIOR, nn.MLP((2,), (3,))), guide, adam, lambda p: torch.optim.Adam(p, 1e-4))
    try:
        result = kale.run(1000, data, batch_size=128)
    except errors.TrainingDiverged as error:
        raise RuntimeError(str(error.state)) from error
    KALE(PRIOR, guide, None, adam, objective="contrastive_divergence", energy_steps=lambda step: 5)
    kale.step(data)
    float(kale.evaluate(data))
    std_error: float = kale.evaluate(data, tolerance=0.01, max_draws=1000).std_error
    refined = KALE(PRIOR, guide, None, adam, max_grad_norm=1.0).refine(
        10, data, num_chains=64, patience=3, validation=data
    )
    draws = refined.gebm.decode(refined.latents)
    assert_type(std_error + kale_between(data, draws, guide, adam).value, float)
    KALE(PRIOR, guide, None, adam, objective=Hinge())
    kale.run(1000, data, validation=data, validate_every=100, keep_best=False, checkpoint_dir="checkpoints")
    gebm: GEBM = result.gebm
    return gebm


def model(gebm: GEBM) -> None:
    x = pyro.sample("x", gebm)
    pyro.sample("y", dist.Normal(x.sum(), 0.1), obs=torch.zeros(()))


def sampling(gebm: GEBM) -> Diagnosis:
    stock = MCMC(NUTS(poutine.reparam(model, config={"x": LatentReparam()}), init_strategy=infer.init_to_prior), 100)
    stock.run(gebm)
    mcmc = infer.VectorizedMCMC(infer.GHMC(model), 100, 100, num_chains=4)
    for kernel in (
        infer.ULA(model, step_size=0.1),
        infer.MALA(potential_fn=lambda z: 0.5 * (z["z"] ** 2).sum()),
        infer.MALT(model, step_size=0.1),
        infer.KineticLangevin(model),
    ):
        mcmc = infer.VectorizedMCMC(kernel, num_samples=100, warmup_steps=100, num_chains=4)
        mcmc.run(gebm)
    infer.stream_draws(mcmc, "draws.nc", (gebm,))
    data = to_arviz(mcmc, gebm)
    report = diagnose(data, gebm=gebm)
    print(report)
    infer.SMC(1000).run(gebm.latent)
    return report


def files(gebm: GEBM) -> GEBM:
    save(gebm, "model.npz")
    for x in decode(gebm, read_draws("draws.nc"), batch_size=100):
        assert_type(x, torch.Tensor)
    decode_to_zarr(gebm, read_draws("draws.zarr"), "x.zarr", batch_size=100)
    return load("model.npz")


def distances(x: torch.Tensor, y: torch.Tensor) -> None:
    own = divergences.mmd2(x, y, kernel=lambda x, y: x @ y.T)
    assert_type(own + divergences.mmd2(x, np.asarray(y), 1.0, estimator="biased"), torch.Tensor)
    assert_type(divergences.mmd_witness(x, y, kernel=divergences.kernels.Laplace(2.0))(x), torch.Tensor)
    assert_type(divergences.mmd_test(x, y).p_value, torch.Tensor)
    assert_type(divergences.kale_rkhs(x, y).value, torch.Tensor)
    assert_type(divergences.f_divergence("kl").bound(x[:, 0], y[:, 0]), torch.Tensor)
    assert_type(metrics.frechet_distance(x, y), torch.Tensor)
    flow = particle_flows.mmd_flow(x, y, num_steps=10, step_size=0.1, noise=lambda step: 1.0 / (1.0 + step))
    assert_type(flow.particles, torch.Tensor)
