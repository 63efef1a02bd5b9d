"""The exact cases of `cases` as NumPyro objects."""

import cases
import jax.numpy as jnp
import numpyro.distributions as dist

from numpyro_gebm import GEBM, Pushforward

CASE = cases.linear_gaussian()


def standard_normal(dim):
    return dist.Normal(jnp.zeros(dim), 1.0).to_event(1)


def linear_gaussian_gebm(beta, **kwargs):
    W, b, c, M = (jnp.asarray(a) for a in (CASE.W, CASE.b, CASE.c, CASE.M))
    base = Pushforward(standard_normal(2), lambda z: W @ z + b)
    return GEBM(base, lambda x: 0.5 * (x - c) @ M @ (x - c), inverse_temperature=beta, **kwargs)
