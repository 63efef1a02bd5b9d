"""The inverse problems in Pyro: the program, its posterior by chains, NUTS and the ladder, and its mode."""

import math
from functools import partial

import digits_pyro
import pyro
import pyro.distributions as dist
import torch
from datasets import digits
from digits import SETTINGS
from pyro import poutine
from pyro.infer import MCMC, NUTS
from tqdm import tqdm

from pyro_gebm import GEBM, LatentReparam, Pushforward, load, load_pretrained, save
from pyro_gebm import diagnose as diagnose  # the example's driver calls it
from pyro_gebm.infer import GHMC, SMC, VectorizedMCMC, init_to_prior


def model(dataset, path, out, seed, progress_bar):
    """The GEBM: from a file, shipped, or trained on the digits and kept."""
    if path is not None:
        return load(path)
    if dataset == "fashion_mnist":
        return load_pretrained("fashion_mnist")
    path = out / "digits.npz"
    if not path.exists():
        images, *_ = digits()
        steps = digits_pyro.STEPS, digits_pyro.FINAL_STEPS
        save(digits_pyro.train(images, seed, SETTINGS, *steps, progress_bar)[0], path)
    return load(path)


def program(gebm, A, y, prior_noise):
    """Images in a plate, each with a noise level of its own."""
    with pyro.plate("images", len(y)):
        x = pyro.sample("x", gebm)
        sigma = pyro.sample("sigma", dist.LogNormal(math.log(prior_noise), 1.0))
        mean = x.reshape(*x.shape[: x.dim() - len(gebm.event_shape)], -1) @ A.T
        pyro.sample("y", dist.Normal(mean, sigma[..., None]).to_event(1), obs=y)


def posterior(
    gebm, A, y, prior_noise, *, num_particles, num_chains, num_warmup, num_draws, thinning, seed, progress_bar
):
    """Draws of x by the ladder, image by image, and chains from some of them.

    Returns:
        `(x, mcmc, found)`: draws of x, shape (draws, images, ...); the run, and what is known of its draws, shape
        (chains, draws, images, ...).
    """
    parts = [
        ladder(gebm, A, one, prior_noise, num_particles, seed + i)
        for i, one in enumerate(tqdm(y, "SMC", unit="image", disable=not progress_bar or len(y) == 1))
    ]
    z, log_sigma = (torch.stack(part, 1) for part in zip(*parts))
    rows = torch.linspace(0, num_particles - 1, num_chains).long()
    kernel = GHMC(_program(gebm, A, y, prior_noise))
    mcmc = VectorizedMCMC(
        kernel, num_draws, num_warmup, num_chains, thinning=thinning, disable_progbar=not progress_bar,
        initial_params={"x_latent": z[rows], "sigma": log_sigma[rows]},
    )  # fmt: skip
    mcmc.run()
    draws = mcmc.get_samples(group_by_chain=True)
    with torch.no_grad():
        x = gebm.decode(z).numpy()
    return x, mcmc, _found(gebm, A, y, draws["x_latent"], draws["sigma"])


def nuts(gebm, A, y, prior_noise, *, num_warmup, num_draws, seed, progress_bar, **_):
    """Pyro's NUTS from a draw of the prior, one chain."""
    pyro.set_rng_seed(seed)
    kernel = NUTS(_program(gebm, A, y, prior_noise), init_strategy=init_to_prior, max_plate_nesting=1)
    mcmc = MCMC(kernel, num_draws, num_warmup, disable_progbar=not progress_bar)
    mcmc.run()
    draws = mcmc.get_samples(group_by_chain=True)
    return _found(gebm, A, y, draws["x_latent"], draws["sigma"])


def _program(gebm, A, y, prior_noise):
    model = poutine.reparam(program, config={"x": LatentReparam()})
    return partial(model, gebm, _tensor(A), _tensor(y), prior_noise)


def _tensor(x):
    return torch.as_tensor(x, dtype=torch.get_default_dtype())


@torch.no_grad()
def _found(gebm, A, y, z, sigma):
    x = gebm.decode(z)
    noise = dist.Normal(x.reshape(*sigma.shape, -1) @ _tensor(A).T, sigma[..., None])
    log_likelihood = noise.log_prob(_tensor(y)).sum(-1)
    energy = -GEBM(gebm.base, gebm.energy, validate_args=False).log_weight(x)
    found = {"sigma": sigma, "energy": energy, "log_likelihood": log_likelihood}
    return {name: value.numpy() for name, value in found.items()}


def ladder(gebm, A, y, prior_noise, num_particles, seed):
    """The posterior of one image by SMC: it is a GEBM, of latents and log sigma, with the misfit in its energy.

    Returns:
        `(z, log_sigma)`.
    """
    pyro.set_rng_seed(seed)
    A, y, size = _tensor(A), _tensor(y), gebm.latent_prior.event_shape[0]
    prior = dist.Normal(torch.zeros(size + 1), 1.0).to_event(1)

    def pair(u):
        """Images, and the logarithm of their noise over the middle of the prior."""
        return torch.cat([gebm.generator(u[:, :size]).flatten(1), u[:, size:]], 1)

    def energy(x):
        misfit = -dist.Normal(x[:, :-1] @ A.T, prior_noise * torch.exp(x[:, -1:])).log_prob(y).sum(1)
        return gebm.inverse_temperature * gebm.energy(x[:, :-1].reshape(-1, *gebm.event_shape)) + misfit

    latent = GEBM(Pushforward(prior, pair), energy, validate_args=False).latent
    u = SMC(num_particles, 16)(latent, num_particles).detach()
    return u[:, :size], math.log(prior_noise) + u[:, size]


def maximum(gebm, A, y, noise, restarts, seed, num_steps=500):
    """Latent MAP at the known noise: of every image the best of `restarts` runs of Adam."""
    pyro.set_rng_seed(seed)
    A, y = _tensor(A), _tensor(y)
    z = gebm.latent_prior.sample((restarts, len(y))).requires_grad_(True)
    optim = torch.optim.Adam([z], 0.1)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optim, num_steps)
    for _ in range(num_steps + 1):
        x = gebm.decode(z)
        loss = 0.5 * ((x.reshape(*z.shape[:2], -1) @ A.T - y) / noise).square().sum(-1) - gebm.latent_prior.log_prob(z)
        optim.zero_grad()
        loss.sum().backward()
        optim.step()
        schedule.step()
    best = loss.detach().argmin(0)
    return x.detach()[best, torch.arange(len(y))].reshape(len(y), -1).numpy()


def draws(gebm, num, seed):
    """Images that the model makes."""
    pyro.set_rng_seed(seed + 7)
    return gebm.sample((num,)).numpy()
