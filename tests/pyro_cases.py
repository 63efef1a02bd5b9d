"""The exact cases of `cases` as Pyro objects."""

import cases
import pyro.distributions as dist
import torch

from pyro_gebm import GEBM, Pushforward

CASE = cases.linear_gaussian()


def standard_normal(dim, dtype=None):
    return dist.Normal(torch.zeros(dim, dtype=dtype), torch.ones((), dtype=dtype)).to_event(1)


def linear_gaussian_gebm(beta, **kwargs):
    W, b, c, M = (torch.as_tensor(a) for a in (CASE.W, CASE.b, CASE.c, CASE.M))
    base = Pushforward(standard_normal(2), lambda z: z @ W.T + b)
    return GEBM(base, lambda x: 0.5 * ((x - c) @ M * (x - c)).sum(-1), inverse_temperature=beta, **kwargs)
