"""The inverse problems in NumPyro: the program, its posterior by chains, NUTS and the ladder, and its mode."""

from functools import partial

import digits_numpyro
import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import optax
from datasets import digits
from digits import SETTINGS
from numpyro import handlers
from numpyro.infer import MCMC, NUTS
from tqdm import tqdm

from numpyro_gebm import GEBM, LatentReparam, Pushforward, enable_compilation_cache, load, load_pretrained, nn, save
from numpyro_gebm import diagnose as diagnose  # the example's driver calls it
from numpyro_gebm.infer import GHMC, SMC, init_to_prior

enable_compilation_cache()


def model(dataset, path, out, seed, progress_bar):
    """The GEBM: from a file, shipped, or trained on the digits and kept."""
    if path is not None:
        return load(path)
    if dataset == "fashion_mnist":
        return load_pretrained("fashion_mnist")
    path = out / "digits.npz"
    if not path.exists():
        images, *_ = digits()
        steps = digits_numpyro.STEPS, digits_numpyro.FINAL_STEPS
        save(digits_numpyro.train(images, seed, SETTINGS, *steps, progress_bar)[0], path)
    return load(path)


def program(gebm, A, y, prior_noise):
    """Images in a plate, each with a noise level of its own."""
    with numpyro.plate("images", len(y)):
        x = numpyro.sample("x", gebm)
        sigma = numpyro.sample("sigma", dist.LogNormal(jnp.log(prior_noise), 1.0))
        numpyro.sample("y", dist.Normal(x.reshape(len(y), -1) @ A.T, sigma[:, None]).to_event(1), obs=y)


def posterior(gebm, A, y, prior_noise, num_particles, seed, progress_bar, **sizes):
    """Draws of x by the ladder, image by image, and chains from some of them.

    Returns:
        `(x, mcmc, found)`: draws of x, shape (draws, images, ...); the run, and what is known of its draws, shape
        (chains, draws, images, ...).
    """
    parts = [
        ladder(gebm, A, one, prior_noise, num_particles, seed + i)
        for i, one in enumerate(tqdm(y, "SMC", unit="image", disable=not progress_bar or len(y) == 1))
    ]
    z, log_sigma = (np.stack(part, 1) for part in zip(*parts))
    rows = np.linspace(0, num_particles - 1, sizes["num_chains"]).astype(int)
    start = {"x_latent": jnp.asarray(z[rows]), "sigma": jnp.asarray(log_sigma[rows])}
    kernel = GHMC(_program(gebm, A, y, prior_noise))
    mcmc, found = _run(kernel, gebm, A, y, start, seed=seed, progress_bar=progress_bar, **sizes)
    return np.asarray(_decoded(gebm, jnp.asarray(z))), mcmc, found


def nuts(gebm, A, y, prior_noise, **sizes):
    """NumPyro's NUTS, from draws of the prior."""
    kernel = NUTS(_program(gebm, A, y, prior_noise), init_strategy=init_to_prior)
    return _run(kernel, gebm, A, y, None, **sizes | {"thinning": 1})[1]


def _program(gebm, A, y, prior_noise):
    model = handlers.reparam(program, config={"x": LatentReparam()})
    return partial(model, gebm, jnp.asarray(A, jnp.float32), jnp.asarray(y, jnp.float32), prior_noise)


def _run(kernel, gebm, A, y, start, num_chains, num_warmup, num_draws, thinning, seed, progress_bar):
    mcmc = MCMC(
        kernel, num_warmup=num_warmup, num_samples=num_draws * thinning, thinning=thinning, num_chains=num_chains,
        chain_method="vectorized", progress_bar=progress_bar,
    )  # fmt: skip
    mcmc.run(jax.random.key(seed), init_params=start)
    draws = mcmc.get_samples(group_by_chain=True)
    return mcmc, _found(gebm, A, y, draws["x_latent"], draws["sigma"])


@jax.jit
def _decoded(gebm, z):
    return gebm.decode(z)


@jax.jit
def _of_draws(gebm, A, y, z, sigma):
    x = gebm.decode(z)
    log_likelihood = dist.Normal(x.reshape(*sigma.shape, -1) @ A.T, sigma[..., None]).log_prob(y).sum(-1)
    return -GEBM(gebm.base, gebm.energy, validate_args=False).log_weight(x), log_likelihood


def _found(gebm, A, y, z, sigma):
    energy, log_likelihood = _of_draws(gebm, jnp.asarray(A, jnp.float32), jnp.asarray(y, jnp.float32), z, sigma)
    found = {"sigma": sigma, "energy": energy, "log_likelihood": log_likelihood}
    return {name: np.asarray(value) for name, value in found.items()}


def ladder(gebm, A, y, prior_noise, num_particles, seed):
    """The posterior of one image by SMC: it is a GEBM, of latents and log sigma, with the misfit in its energy.

    Returns:
        `(z, log_sigma)`.
    """
    prior = dist.Normal(0.0, 1.0).expand([gebm.latent_prior.event_shape[0] + 1]).to_event(1)
    base = Pushforward(prior, nn.Applied(_pair, gebm))
    energy = nn.Applied(_energy, (gebm, jnp.asarray(A, jnp.float32), jnp.asarray(y, jnp.float32), prior_noise))
    latent = GEBM(base, energy, validate_args=False).latent
    u = np.asarray(SMC(num_particles, 16)(latent, num_particles, rng_key=jax.random.key(seed)))
    return u[:, :-1], np.log(prior_noise) + u[:, -1]


def _pair(gebm, u):
    """An image, and the logarithm of its noise over the middle of the prior."""
    return jnp.append(gebm.generator(u[:-1]).ravel(), u[-1])


def _energy(parts, x):
    gebm, A, y, prior_noise = parts
    misfit = -dist.Normal(A @ x[:-1], prior_noise * jnp.exp(x[-1])).log_prob(y).sum()
    return gebm.inverse_temperature * gebm.energy(x[:-1].reshape(gebm.event_shape)) + misfit


def maximum(gebm, A, y, noise, restarts, seed, num_steps=500):
    """Latent MAP at the known noise: of every image the best of `restarts` runs of Adam."""
    A, y = jnp.asarray(A, jnp.float32), jnp.asarray(y, jnp.float32)

    def losses(z):  # restart, image
        x = gebm.decode(z)
        misfit = jnp.square((x.reshape(*z.shape[:2], -1) @ A.T - y) / noise).sum(-1)
        return 0.5 * misfit - gebm.latent_prior.log_prob(z)

    @jax.jit
    def descend(z):
        optim = optax.adam(optax.cosine_decay_schedule(0.1, num_steps))

        def step(carry, _):
            z, state = carry
            updates, state = optim.update(jax.grad(lambda z: losses(z).sum())(z), state)
            return (optax.apply_updates(z, updates), state), None

        z = jax.lax.scan(step, (z, optim.init(z)), length=num_steps)[0][0]
        return gebm.decode(z), losses(z)

    x, loss = descend(gebm.latent_prior.sample(jax.random.key(seed), (restarts, len(y))))
    best = np.asarray(loss).argmin(0)
    return np.asarray(x)[best, np.arange(len(y))].reshape(len(y), -1)


def draws(gebm, num, seed):
    """Images that the model makes."""
    return np.asarray(gebm.sample(jax.random.key(seed + 7), (num,)))
