"""The images example in NumPyro: the VAE by SVI, training, draws, metrics."""

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

#: Steps of SVI that are one compiled loop.
CHUNK = 50


def train(images, held_out, settings, seed, out, progress_bar=True):
    """A GEBM, and held-out KALE before the refinement and the gap that this closed, as text."""
    latent, hidden = settings["latent"], settings["hidden"]
    keys = dict(zip(("vae", "new", "energy", "refinement"), jax.random.split(jax.random.key(seed), 4)))
    decoder = vae(keys["vae"], images, latent, hidden, settings["vae"], out / "decoder.npz", progress_bar)
    base = Pushforward(dist.Normal(0.0, 1.0).expand([latent]).to_event(1), decoder)
    energy = nn.MLP((images.shape[1],), (), hidden[::-1], activation="leaky_relu", rng_key=keys["new"])
    results = []
    for stage in ("energy", "refinement"):
        s, folder = settings[stage], out / f"numpyro_{stage}"
        adam = optax.adam(optax.cosine_decay_schedule(s["rate"], s["num_steps"]), b1=0.5)
        kale = KALE(base, KALEGuide(energy, penalty=gradient_penalty(s["penalty"])), None, adam)
        method = kale.run if stage == "energy" else kale.refine
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


def vae(rng_key, images, latent, hidden, settings, path, progress_bar):
    """The decoder of a VAE with a learned observation scale, by SVI; kept in a file."""
    dim, (key_decoder, key_encoder, key_svi, key_rows) = images.shape[1], jax.random.split(rng_key, 4)
    decoder = nn.MLP((latent,), (dim,), hidden, output_activation="tanh", rng_key=key_decoder)
    if path.exists():
        with np.load(path) as file:
            return jax.tree.unflatten(jax.tree.structure(decoder), [jnp.asarray(file[name]) for name in file.files])
    encoder = nn.MLP((dim,), (2 * latent,), hidden[::-1], rng_key=key_encoder)

    def model(x):
        generator = numpyro.param("decoder", lambda _: decoder)
        scale = numpyro.param("scale", 0.4, constraint=dist.constraints.positive)
        with numpyro.plate("images", len(x)):
            z = numpyro.sample("z", dist.Normal(jnp.zeros(latent), 1.0).to_event(1))
            numpyro.sample("x", dist.Normal(jax.vmap(generator)(z), scale).to_event(1), obs=x)

    def guide(x):
        loc, log_scale = jnp.split(jax.vmap(numpyro.param("encoder", lambda _: encoder))(x), 2, -1)
        with numpyro.plate("images", len(x)):
            numpyro.sample("z", dist.Normal(loc, jnp.exp(log_scale)).to_event(1))

    schedule = optax.cosine_onecycle_schedule(settings["num_steps"], settings["rate"])
    svi, size = SVI(model, guide, optax.adam(schedule), Trace_ELBO()), settings["batch_size"]

    @jax.jit
    def steps(state, keys, images):
        rows = jax.vmap(lambda key: jax.random.randint(key, (size,), 0, len(images)))(keys)
        return jax.lax.scan(lambda state, rows: svi.update(state, images[rows]), state, rows)

    images = jnp.asarray(images)
    state = svi.init(key_svi, images[:size])
    with trange(settings["num_steps"], desc="VAE", disable=not progress_bar) as bar:
        for start in range(0, settings["num_steps"], CHUNK):
            num = min(CHUNK, settings["num_steps"] - start)
            state, losses = steps(state, jax.random.split(jax.random.fold_in(key_rows, start), num), images)
            bar.set_postfix(loss=f"{float(losses[-1]) / size:.1f}")
            bar.update(num)
    decoder = svi.get_params(state)["decoder"]
    with open(path.with_suffix(".part"), "wb") as file:
        np.savez(file, *map(np.asarray, jax.tree.leaves(decoder)))
    path.with_suffix(".part").rename(path)
    return decoder


def load(path):
    """The GEBM of a file, or the shipped one."""
    return load_pretrained("fashion_mnist") if path is None else numpyro_gebm.load(path)


def draw(law, num, seed):
    """Draws of a base or of a GEBM."""
    return np.asarray(law.sample(jax.random.key(seed), (num,)))


def short_run(gebm: GEBM, num, inverse_temperature, num_steps, seed=0):
    """Ends of short runs from the prior."""
    latent = gebm.temper(inverse_temperature).latent
    z, _ = ShortRun(num_steps=num_steps).run(latent, num, rng_key=jax.random.key(seed))
    return np.asarray(gebm.decode(z[-1]))


def film(gebm: GEBM, kernel, inverse_temperature, num_chains, num_steps, record_every, seed):
    """Images along chains, shape `(records, num_chains, 784)`."""
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
