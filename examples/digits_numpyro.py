"""The digits example in NumPyro: networks, training, sampling."""

import jax
import numpy as np
import numpyro
import numpyro.distributions as dist
import optax
from numpyro.infer import MCMC, NUTS

from numpyro_gebm import (
    KALE,
    KALEGuide,
    Pushforward,
    divergences,
    enable_compilation_cache,
    gradient_penalty,
    metrics,
    nn,
    to_arviz,
)
from numpyro_gebm import plot_losses as plot_losses  # the example's driver calls these
from numpyro_gebm import save as save
from numpyro_gebm.infer import KineticLangevin, init_to_prior

enable_compilation_cache()


#: Base steps, and energy steps on the finished base; from measurement, for about three minutes on two cores.
STEPS, FINAL_STEPS = 2_000, 8_000


def train(images, seed, settings, steps, final_steps, progress_bar=True, held_out=None):
    """Train base and energy together by KALE, then the energy alone on the finished base.

    Held-out images are watched, and nothing is chosen by them: the result is compared with them afterwards.
    """
    how = {"batch_size": 128, "progress_bar": progress_bar, "validation": held_out, "keep_best": False}
    key_generator, key_energy, key_joint, key_final = jax.random.split(jax.random.key(seed), 4)
    generator = nn.MLP(
        (settings["latent"],), (8, 8), settings["hidden"], output_activation="sigmoid", rng_key=key_generator
    )
    energy = nn.MLP((8, 8), (), settings["hidden"], activation="leaky_relu", rng_key=key_energy)
    base = Pushforward(dist.Normal(0.0, 1.0).expand([settings["latent"]]).to_event(1), generator)
    kale = KALE(
        base,
        KALEGuide(energy, penalty=gradient_penalty(settings["penalty"])),
        base_optim=optax.adam(settings["rate"], b1=0.5),
        energy_optim=optax.adam(settings["rate"], b1=0.5),
        energy_steps=settings["energy_steps"],
    )
    joint = kale.run(key_joint, steps, images, **how)
    schedule = optax.cosine_decay_schedule(settings["rate"], max(final_steps, 1))
    kale = KALE(
        joint.gebm.base,
        KALEGuide(
            joint.gebm.energy,
            log_partition=joint.gebm.log_partition,
            penalty=gradient_penalty(settings["final_penalty"]),
        ),
        base_optim=None,
        energy_optim=optax.adam(schedule, b1=0.5),
    )
    final = kale.run(key_final, final_steps, images, **how)
    return final.gebm, [joint, final]


def sample_nuts(gebm, seed, num_warmup, num_samples, num_chains, progress_bar=True):
    """Sample the latent law with NumPyro's NUTS, all chains at once."""
    kernel = NUTS(lambda: numpyro.sample("z", gebm.latent), init_strategy=init_to_prior)
    statistics = ("potential_energy", "energy", "num_steps", "accept_prob")
    return _run(kernel, gebm, seed + 1, num_warmup, num_samples, num_chains, progress_bar, statistics)


def sample_kinetic(gebm, seed, num_warmup, num_samples, num_chains, settings, progress_bar=True):
    """Sample the latent law with kinetic Langevin dynamics."""
    kernel = KineticLangevin(lambda: numpyro.sample("z", gebm.latent), **settings)
    return _run(kernel, gebm, seed + 2, num_warmup, num_samples, num_chains, progress_bar, ())


def _run(kernel, gebm, seed, num_warmup, num_samples, num_chains, progress_bar, statistics):
    mcmc = MCMC(
        kernel,
        num_warmup=num_warmup,
        num_samples=num_samples,
        num_chains=num_chains,
        chain_method="vectorized",
        progress_bar=progress_bar,
    )
    mcmc.run(jax.random.key(seed), extra_fields=statistics)
    return to_arviz(mcmc, gebm)


def draw(gebm, num, seed):
    """Independent draws of the base and of the GEBM, as NumPy arrays."""
    key_base, key_gebm = jax.random.split(jax.random.key(seed + 3))
    return np.asarray(gebm.base.sample(key_base, (num,))), np.asarray(gebm.sample(key_gebm, (num,)))


def distances(x, y):
    """Unbiased MMD^2 and Fréchet distance between two arrays of features."""
    x, y = jax.numpy.asarray(x), jax.numpy.asarray(y)
    return float(divergences.mmd2(x, y)), float(metrics.frechet_distance(x, y))
