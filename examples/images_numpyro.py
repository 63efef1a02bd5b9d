"""The images example in NumPyro: the VAE by SVI, training, draws, metrics."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import optax
from numpyro.infer import SVI, Trace_ELBO
from tqdm import trange

import numpyro_gebm
from numpyro_gebm import GEBM, KALE, KALEGuide, Pushforward, gradient_penalty, load_pretrained, metrics, nn
from numpyro_gebm import load_features as load_features  # the example's driver calls these
from numpyro_gebm import save as save
from numpyro_gebm.infer import ShortRun

#: Training steps of a base that are one compiled loop.
CHUNK = 50


def train(images, held_out, settings, kind, seed, out, progress_bar=True):
    """A GEBM, and held-out KALE before the refinement and the gap that this closed, as text."""
    event, latent = images.shape[1:], settings["latent"]
    keys = dict(zip((kind, "new", "energy", "refinement"), jax.random.split(jax.random.key(seed), 4)))
    generator = generator_of(keys[kind], kind, images, settings, out / f"{kind}.npz", progress_bar)
    base = Pushforward(dist.Normal(0.0, 1.0).expand([latent]).to_event(1), generator)
    energy, results = new_energy(keys["new"], event, settings), []
    for stage in ("energy", "refinement"):
        s, folder = settings[stage], out / f"numpyro_{stage}"
        adam = optax.adam(optax.cosine_decay_schedule(s["rate"], s["num_steps"]), b1=0.5)
        kale = KALE(base, KALEGuide(energy, penalty=gradient_penalty(s["penalty"])), None, adam)
        method = kale.run if stage == "energy" else partial(kale.refine, num_chains=s["num_chains"])
        result = method(
            keys[stage],
            s["num_steps"],
            images,
            batch_size=s["batch_size"],
            validation=held_out,
            checkpoint_dir=folder,
            checkpoint_every=500,
            resume_from=folder if folder.exists() and any(folder.iterdir()) else None,
            progress_bar=progress_bar,
        )
        energy = result.guide.energy
        results.append(result)
    before, gap = results[0].validation, results[1].gap_closed
    numbers = {"before": f"{np.nanmax(before.kale):.2f}", "gap_closed": f"{gap.value:.2f} ± {gap.std_error:.2f}"}
    return results[1].gebm, numbers


def new_energy(rng_key, event, settings):
    """An energy as the recipe wants it."""
    if settings["channels"] is None:
        return nn.MLP(event, (), settings["hidden"][::-1], activation="leaky_relu", rng_key=rng_key)
    return nn.ConvEnergy(event, settings["channels"], rng_key=rng_key)


def generator_of(rng_key, kind, images, settings, path, progress_bar):
    """The generator, trained once and kept in a file."""
    latent, (new, key) = settings["latent"], jax.random.split(rng_key)
    generator = nn.MLP((latent,), images.shape[1:], settings["hidden"], output_activation="tanh", rng_key=new)
    if path.exists():
        with np.load(path) as file:
            return jax.tree.unflatten(jax.tree.structure(generator), [jnp.asarray(file[name]) for name in file.files])
    generator = {"vae": vae, "gan": gan}[kind](key, generator, jnp.asarray(images), settings, progress_bar)
    with open(path.with_suffix(".part"), "wb") as file:
        np.savez(file, *map(np.asarray, jax.tree.leaves(generator)))
    path.with_suffix(".part").rename(path)
    return generator


def vae(rng_key, decoder, images, settings, progress_bar):
    """The decoder of a VAE with a learned observation scale, by SVI."""
    event, latent, s = images.shape[1:], settings["latent"], settings["vae"]
    key_encoder, key_svi, key_rows = jax.random.split(rng_key, 3)
    encoder = nn.MLP(event, (2 * latent,), settings["hidden"][::-1], rng_key=key_encoder)

    def model(x):
        generator = numpyro.param("decoder", lambda _: decoder)
        scale = numpyro.param("scale", 0.4, constraint=dist.constraints.positive)
        with numpyro.plate("images", len(x)):
            z = numpyro.sample("z", dist.Normal(jnp.zeros(latent), 1.0).to_event(1))
            numpyro.sample("x", dist.Normal(jax.vmap(generator)(z), scale).to_event(len(event)), obs=x)

    def guide(x):
        loc, log_scale = jnp.split(jax.vmap(numpyro.param("encoder", lambda _: encoder))(x), 2, -1)
        with numpyro.plate("images", len(x)):
            numpyro.sample("z", dist.Normal(loc, jnp.exp(log_scale)).to_event(1))

    schedule = optax.cosine_onecycle_schedule(s["num_steps"], s["rate"])
    svi = SVI(model, guide, optax.adam(schedule), Trace_ELBO())

    def step(state, key):
        rows = jax.random.randint(key, (s["batch_size"],), 0, len(images))
        state, loss = svi.update(state, images[rows])
        return state, loss / len(rows)

    state = in_chunks("VAE", step, svi.init(key_svi, images[: s["batch_size"]]), key_rows, s["num_steps"], progress_bar)
    return svi.get_params(state)["decoder"]


def gan(rng_key, generator, images, settings, progress_bar):
    """A generator by the non-saturating game with the R1 penalty (arXiv:1801.04406); it is averaged."""
    s, (key_critic, key_steps) = settings["gan"], jax.random.split(rng_key)
    critic, adam = new_energy(key_critic, images.shape[1:], settings), optax.adam(s["rate"], b1=0.5)
    decay = 1 - min(1.0, 8 / s["num_steps"])

    def critic_loss(critic, draws, x):
        value, slope = jax.vmap(jax.value_and_grad(critic))(x)
        penalty = 0.5 * jnp.sum(slope**2) / len(x)
        return jnp.mean(jax.nn.softplus(value)) + jnp.mean(jax.nn.softplus(-jax.vmap(critic)(draws))) + penalty

    def step(state, key):
        generator, critic, average, optims = state
        key_rows, key_z = jax.random.split(key)
        x = images[jax.random.randint(key_rows, (s["batch_size"],), 0, len(images))]
        z = jax.random.normal(key_z, (2, s["batch_size"], settings["latent"]))
        grad = jax.grad(critic_loss)(critic, jax.vmap(generator)(z[0]), x)
        updates, of_critic = adam.update(grad, optims[1])
        critic = optax.apply_updates(critic, updates)
        loss, grad = jax.value_and_grad(
            lambda generator: jnp.mean(jax.nn.softplus(jax.vmap(lambda z: critic(generator(z)))(z[1])))
        )(generator)
        updates, of_generator = adam.update(grad, optims[0])
        generator = optax.apply_updates(generator, updates)
        average = jax.tree.map(lambda a, b: decay * a + (1 - decay) * b, average, generator)
        return (generator, critic, average, (of_generator, of_critic)), loss

    state = generator, critic, generator, (adam.init(generator), adam.init(critic))
    return in_chunks("GAN", step, state, key_steps, s["num_steps"], progress_bar)[2]


def in_chunks(name, step, state, rng_key, num_steps, progress_bar):
    """The state after many steps, a compiled loop of `CHUNK` at a time."""
    steps = jax.jit(lambda state, keys: jax.lax.scan(step, state, keys))
    with trange(num_steps, desc=name, disable=not progress_bar) as bar:
        for start in range(0, num_steps, CHUNK):
            num = min(CHUNK, num_steps - start)
            state, losses = steps(state, jax.random.split(jax.random.fold_in(rng_key, start), num))
            bar.set_postfix(loss=f"{float(losses[-1]):.1f}")
            bar.update(num)
    return state


def load(path, dataset):
    """The GEBM of a file, or the shipped one."""
    return load_pretrained(dataset) if path is None else numpyro_gebm.load(path)


def draw(law, num, seed):
    """Draws of a base or of a GEBM."""
    return np.asarray(law.sample(jax.random.key(seed), (num,)))


def short_run(gebm: GEBM, num, inverse_temperature, num_steps, kernel, seed):
    """Ends of short runs from the prior."""
    latent = gebm.temper(inverse_temperature).latent
    z, _ = ShortRun(kernel, num_steps=num_steps).run(latent, num, rng_key=jax.random.key(seed))
    return np.asarray(gebm.decode(z[-1]))


def film(gebm: GEBM, kernel, inverse_temperature, num_chains, num_steps, record_every, seed):
    """Images along chains, shape `(records, num_chains, ...)`."""
    run, latent = ShortRun(kernel, num_steps=num_steps), gebm.temper(inverse_temperature).latent
    z, _ = run.run(latent, num_chains, record_every=record_every, rng_key=jax.random.key(seed))
    return np.asarray(gebm.decode(z))


def features(of, images):
    """Features of images, a thousand at a time."""
    network = jax.jit(lambda x: jax.lax.map(of.network, x, batch_size=500))
    return network(jnp.asarray(images, of.reference.dtype))


def scores(x, base, reference):
    """What the table shows."""
    near = *metrics.precision_recall(x, reference), *metrics.density_coverage(x, reference)
    return {
        "distance": float(metrics.frechet_distance(x, reference)),
        "ratio": [float(value) for value in metrics.frechet_ratio(x, base, reference, rng_key=jax.random.key(0))],
        "kernel": [float(value) for value in metrics.kernel_distance(x, reference)],
        "near": [float(value) for value in near],
    }
