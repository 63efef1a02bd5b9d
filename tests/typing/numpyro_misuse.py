"""Mistakes of a user of NumPyro, read by the type checker and never run: just the lines marked so are errors."""

import jax
import jax.numpy as jnp
import optax
from numpyro.distributions import Distribution

from numpyro_gebm import GEBM, KALE, KALEGuide, Pushforward, decode, divergences, infer, log_partition, nn, save

KEY = jax.random.key(0)


def mistakes(base: Distribution, gebm: GEBM, guide: KALEGuide, data: jax.Array) -> None:
    GEBM(base, 3)  # error: the energy cannot be called
    GEBM(3.0, lambda x: x.sum())  # error: no base
    GEBM(base, lambda x: x.sum(), 2.0)  # error: beta by keyword only
    GEBM(base, lambda x: x.sum(), temperature=2.0)  # error: no such argument
    GEBM(base, lambda x: x.sum(), inverse_temperature="cold")  # error: no number
    GEBM(base, lambda x: x.sum(), sampler=lambda latent: latent)  # error: not the arguments of a sampler
    Pushforward(base)  # error: no generator
    nn.MLP((2,), (3,))  # error: no key
    nn.MLP((2,), (3,), hidden=64, rng_key=KEY)  # error: widths are a sequence
    KALE(base, guide, optax.adam(1e-4), optax.adam(1e-4), objective="likelihood")  # error: no such objective
    KALE(base, gebm.energy, optax.adam(1e-4), optax.adam(1e-4))  # error: an energy is no guide
    KALE(base, guide, 1e-4, optax.adam(1e-4))  # error: a rate is no optimiser
    log_partition(gebm.latent, rng_key=KEY)  # error: the latent law is no GEBM
    log_partition(gebm, method="mcmc", rng_key=KEY)  # error: no such method
    save(gebm.latent, "model.npz")  # error: the latent law is no GEBM
    decode(gebm.latent, data)  # error: the latent law is no GEBM
    gebm.log_weight("x")  # error: no array
    gebm.tilt(data)  # error: no such method
    infer.GHMC(lambda: None, step_size="large")  # error: no number
    divergences.mmd2(data, data, kernel=2.0)  # error: a bandwidth is no kernel
    divergences.f_divergence("kl").bound(data)  # error: two samples
    jnp.exp(divergences.mmd_witness(data, data))  # error: a function, not its values
