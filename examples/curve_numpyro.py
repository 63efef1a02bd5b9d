"""The curve example in NumPyro: networks, training, sampling."""

from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import optax

from numpyro_gebm import GEBM, KALE, KALEGuide, Pushforward, divergences, enable_compilation_cache, gradient_penalty, nn

enable_compilation_cache()


#: Steps of each demonstration: for (b) base steps of both, then energy steps on the finished base.
STEPS = {"a": (4_000, 0), "b": (1_500, 2_000)}


class Trained(NamedTuple):
    """A trained model, the base it started from, and A as training left it."""

    initial_base: Pushforward
    gebm: GEBM
    last_log_partition: float


class Deformed(eqx.Module):
    """A curve after a trainable affine map: its rotation, stretching, shear and shift."""

    curve: object = eqx.field(static=True)
    matrix: jax.Array
    shift: jax.Array

    def __call__(self, z):
        return self.matrix @ self.curve(z[0], jnp) + self.shift


def train_energy(curve, data, seed, settings, steps, progress_bar=True):
    """(a): train the energy alone on a base that has the support of the target, but t uniform."""
    key_energy, key_run = jax.random.split(jax.random.key(seed))
    base = Pushforward(_uniform(), lambda z: curve(z[0], jnp))
    guide = KALEGuide(_energy(settings, key_energy), penalty=gradient_penalty(settings["final_penalty"]))
    return Trained(base, *_train_energy(base, guide, key_run, data, settings, steps[0], progress_bar))


def train_both(curve, data, seed, settings, steps, progress_bar=True):
    """(b): train base and energy together, then the energy alone on the finished base."""
    key_energy, key_joint, key_final = jax.random.split(jax.random.key(seed), 3)
    base = Pushforward(_uniform(), Deformed(curve, *map(jnp.array, settings["start"])))
    kale = KALE(
        base,
        KALEGuide(_energy(settings, key_energy), penalty=gradient_penalty(settings["penalty"])),
        base_optim=_adam(settings["base_rate"], steps[0]),
        energy_optim=optax.adam(settings["rate"], b1=0.5),
        energy_steps=settings["energy_steps"],
        noise_factor=settings["noise_factor"],
    )
    joint = kale.run(key_joint, steps[0], data, batch_size=settings["batch_size"], progress_bar=progress_bar).gebm
    penalty = gradient_penalty(settings["final_penalty"])
    guide = KALEGuide(joint.energy, log_partition=joint.log_partition, penalty=penalty)
    return Trained(base, *_train_energy(joint.base, guide, key_final, data, settings, steps[1], progress_bar))


def _uniform():
    return dist.Uniform(0.0, 1.0).expand([1]).to_event(1)


def _energy(settings, key):
    return nn.MLP((2,), (), settings["hidden"], activation="silu", rng_key=key)


def _adam(rate, steps):
    return optax.adam(optax.cosine_decay_schedule(rate, max(steps, 1)), b1=0.5)


def _train_energy(base, guide, key, data, settings, steps, progress_bar):
    kale = KALE(
        base,
        guide,
        base_optim=None,
        energy_optim=_adam(settings["final_rate"], steps),
        noise_factor=settings["noise_factor"],
    )
    result = kale.run(key, steps, data, batch_size=settings["batch_size"], progress_bar=progress_bar)
    return result.gebm, float(result.losses.log_partition[-1])


def draw(trained, num, seed):
    """Independent draws of the initial base, the base and the GEBM, as NumPy arrays."""
    laws = {"initial base": trained.initial_base, "base": trained.gebm.base, "GEBM": trained.gebm}
    keys = jax.random.split(jax.random.key(seed + 1000), len(laws))
    return {name: np.asarray(law.sample(key, (num,))) for (name, law), key in zip(laws.items(), keys)}


def energies(gebm, x):
    """E + A at points x, as a NumPy array."""
    return -np.asarray(jax.jit(gebm.log_weight)(jnp.asarray(x, jnp.float32)))


def energy_of_base_draws(gebm, num, seed):
    """E of `num` fresh draws of the base, as a NumPy array."""
    keys = jax.random.split(jax.random.key(seed + 2000), num // 10_000)
    draws = jax.jit(lambda keys: jax.lax.map(lambda key: jax.vmap(gebm.energy)(gebm.base.sample(key, (10_000,))), keys))
    return np.asarray(draws(keys)).reshape(-1)


def mmd2(x, y, bandwidth):
    """Unbiased MMD² of two samples."""
    return float(divergences.mmd2(jnp.asarray(x), jnp.asarray(y), bandwidth))
