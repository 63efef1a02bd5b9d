"""Mistakes of a user of Pyro, read by the type checker and never run: just the lines marked so are errors.

One kind is not found: a base class of Pyro's distributions (`typing.Callable`) is unknown to a checker, which
therefore takes them for anything, and lets `gebm.latent` pass for a GEBM.
"""

import torch
from torch.distributions import Distribution

from pyro_gebm import GEBM, KALE, KALEGuide, Pushforward, divergences, infer, log_partition, nn


def adam(parameters: list[torch.nn.Parameter]) -> torch.optim.Optimizer:
    return torch.optim.Adam(parameters, 1e-4)


def mistakes(base: Distribution, gebm: GEBM, guide: KALEGuide, data: torch.Tensor) -> None:
    GEBM(base, 3)  # error: the energy cannot be called
    GEBM(3.0, lambda x: x.sum())  # error: no base
    GEBM(base, lambda x: x.sum(), 2.0)  # error: beta by keyword only
    GEBM(base, lambda x: x.sum(), temperature=2.0)  # error: no such argument
    GEBM(base, lambda x: x.sum(), inverse_temperature="cold")  # error: no number
    GEBM(base, lambda x: x.sum(), sampler=lambda latent: latent)  # error: not the arguments of a sampler
    Pushforward(base)  # error: no generator
    nn.MLP((2,), (3,), hidden=64)  # error: widths are a sequence
    KALE(base, guide, adam, adam, objective="likelihood")  # error: no such objective
    KALE(base, gebm.energy, adam, adam)  # error: an energy is no guide
    KALE(base, guide, 1e-4, adam)  # error: a rate is no optimiser
    log_partition(gebm, method="mcmc")  # error: no such method
    gebm.log_weight("x")  # error: no tensor
    infer.GHMC(lambda: None, step_size="large")  # error: no number
    divergences.mmd2(data, data, kernel=2.0)  # error: a bandwidth is no kernel
    divergences.f_divergence("kl").bound(data)  # error: two samples
    torch.exp(divergences.mmd_witness(data, data))  # error: a function, not its values
