"""The digits example in Pyro: networks, training, sampling."""

import pyro
import pyro.distributions as dist
import torch
from pyro.infer import MCMC, NUTS

from pyro_gebm import KALE, KALEGuide, Pushforward, divergences, gradient_penalty, metrics, nn, to_arviz
from pyro_gebm import plot_losses as plot_losses  # the example's driver calls these
from pyro_gebm import save as save
from pyro_gebm.infer import KineticLangevin, init_to_prior

#: Base steps, and energy steps on the finished base; from measurement, for about three minutes on two cores.
STEPS, FINAL_STEPS = 2_000, 8_000

torch.set_num_threads(1)  # networks this small gain nothing from a second thread, and lose much on a busy machine


def train(images, seed, settings, steps, final_steps, progress_bar=True, held_out=None):
    """Train base and energy together by KALE, then the energy alone on the finished base.

    Held-out images are watched, and nothing is chosen by them: the result is compared with them afterwards.
    """
    how = {"batch_size": 128, "progress_bar": progress_bar, "validation": held_out, "keep_best": False}
    pyro.set_rng_seed(seed)
    generator = nn.MLP((settings["latent"],), (8, 8), settings["hidden"], output_activation="sigmoid")
    energy = nn.MLP((8, 8), (), settings["hidden"], activation="leaky_relu")
    base = Pushforward(dist.Normal(0.0, 1.0).expand([settings["latent"]]).to_event(1), generator)

    def adam(parameters):
        return torch.optim.Adam(parameters, settings["rate"], betas=(0.5, 0.999), fused=True)

    def adam_with_decay(parameters):
        optim = adam(parameters)
        return optim, torch.optim.lr_scheduler.CosineAnnealingLR(optim, max(final_steps, 1))

    kale = KALE(
        base,
        KALEGuide(energy, penalty=gradient_penalty(settings["penalty"])),
        base_optim=adam,
        energy_optim=adam,
        energy_steps=settings["energy_steps"],
    )
    joint = kale.run(steps, images, **how)
    kale = KALE(
        joint.gebm.base,
        KALEGuide(energy, log_partition=joint.gebm.log_partition, penalty=gradient_penalty(settings["final_penalty"])),
        base_optim=None,
        energy_optim=adam_with_decay,
    )
    final = kale.run(final_steps, images, **how)
    return final.gebm, [joint, final]


def sample_nuts(gebm, seed, num_warmup, num_samples, num_chains, progress_bar=True):
    """Sample the latent law with Pyro's NUTS, one chain after the other."""
    kernel = NUTS(lambda: pyro.sample("z", gebm.latent), init_strategy=init_to_prior, max_plate_nesting=0)
    return _run(kernel, gebm, seed + 1, num_warmup, num_samples, num_chains, progress_bar)


def sample_kinetic(gebm, seed, num_warmup, num_samples, num_chains, settings, progress_bar=True):
    """Sample the latent law with kinetic Langevin dynamics."""
    kernel = KineticLangevin(lambda: pyro.sample("z", gebm.latent), **settings)
    return _run(kernel, gebm, seed + 2, num_warmup, num_samples, num_chains, progress_bar)


def _run(kernel, gebm, seed, num_warmup, num_samples, num_chains, progress_bar):
    pyro.set_rng_seed(seed)
    mcmc = MCMC(
        kernel,
        num_samples=num_samples,
        warmup_steps=num_warmup,
        num_chains=num_chains,
        disable_progbar=not progress_bar,
    )
    mcmc.run()
    return to_arviz(mcmc, gebm)


def draw(gebm, num, seed):
    """Independent draws of the base and of the GEBM, as NumPy arrays."""
    pyro.set_rng_seed(seed + 3)
    return gebm.base.sample((num,)).numpy(), gebm.sample((num,)).numpy()


def distances(x, y):
    """Unbiased MMD^2 and Fréchet distance between two arrays of features."""
    x, y = torch.as_tensor(x), torch.as_tensor(y)
    return float(divergences.mmd2(x, y)), float(metrics.frechet_distance(x, y))
