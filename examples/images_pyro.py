"""The images example in Pyro: the VAE by SVI, training, draws, metrics."""

import numpy as np
import pyro
import pyro.distributions as dist
import torch
from pyro.infer import SVI, Trace_ELBO
from tqdm import trange

import pyro_gebm
from pyro_gebm import GEBM, KALE, KALEGuide, Pushforward, gradient_penalty, load_pretrained, metrics, nn
from pyro_gebm import load_features as load_features  # the example's driver calls these
from pyro_gebm import save as save
from pyro_gebm.infer import ShortRun


def train(images, held_out, settings, seed, out, progress_bar=True):
    """A GEBM, and held-out KALE before the refinement and the gap that this closed, as text."""
    pyro.set_rng_seed(seed)
    latent, hidden = settings["latent"], settings["hidden"]
    decoder = vae(torch.as_tensor(images), latent, hidden, settings["vae"], out / "decoder.pt", progress_bar)
    base = Pushforward(dist.Normal(0.0, 1.0).expand([latent]).to_event(1), decoder)
    energy = nn.MLP((images.shape[1],), (), hidden[::-1], activation="leaky_relu")
    results = []
    for stage in ("energy", "refinement"):
        s = settings[stage]

        def adam(parameters, s=s):
            optim = torch.optim.Adam(parameters, s["rate"], betas=(0.5, 0.999), fused=True)
            return optim, torch.optim.lr_scheduler.CosineAnnealingLR(optim, s["num_steps"])

        kale = KALE(base, KALEGuide(energy, penalty=gradient_penalty(s["penalty"])), None, adam)
        method, folder = (kale.run if stage == "energy" else kale.refine), out / f"pyro_{stage}"
        result = method(
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


def vae(images, latent, hidden, settings, path, progress_bar):
    """The decoder of a VAE with a learned observation scale, by SVI; kept in a file."""
    dim = images.shape[1]
    decoder = nn.MLP((latent,), (dim,), hidden, output_activation="tanh")
    if path.exists():
        decoder.load_state_dict(torch.load(path, weights_only=True))
        return decoder.eval()
    encoder = nn.MLP((dim,), (2 * latent,), hidden[::-1])
    pyro.clear_param_store()

    def model(x):
        pyro.module("decoder", decoder)
        scale = pyro.param("scale", torch.tensor(0.4), constraint=dist.constraints.positive)
        with pyro.plate("images", len(x)):
            z = pyro.sample("z", dist.Normal(x.new_zeros(latent), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(decoder(z), scale).to_event(1), obs=x)

    def guide(x):
        pyro.module("encoder", encoder)
        loc, log_scale = encoder(x).chunk(2, -1)
        with pyro.plate("images", len(x)):
            pyro.sample("z", dist.Normal(loc, log_scale.exp()).to_event(1))

    optim = pyro.optim.OneCycleLR(
        {
            "optimizer": torch.optim.Adam,
            "optim_args": {"lr": settings["rate"]},
            "max_lr": settings["rate"],
            "total_steps": settings["num_steps"] + 1,
        }
    )
    svi = SVI(model, guide, optim, Trace_ELBO())
    with trange(settings["num_steps"], desc="VAE", disable=not progress_bar) as bar:
        for i in bar:
            rows = torch.randint(len(images), (settings["batch_size"],))
            loss = svi.step(images[rows])
            optim.step()
            if i % 50 == 0:
                bar.set_postfix(loss=f"{loss / len(rows):.1f}")
    torch.save(decoder.state_dict(), path.with_suffix(".part"))
    path.with_suffix(".part").rename(path)
    return decoder.eval()


def load(path):
    """The GEBM of a file, or the shipped one."""
    return load_pretrained("fashion_mnist") if path is None else pyro_gebm.load(path)


def draw(law, num, seed):
    """Draws of a base or of a GEBM."""
    pyro.set_rng_seed(seed)
    with torch.no_grad():
        return law.sample((num,)).numpy()


def short_run(gebm: GEBM, num, inverse_temperature, num_steps, seed=0):
    """Ends of short runs from the prior."""
    pyro.set_rng_seed(seed)
    z, _ = ShortRun(num_steps=num_steps).run(gebm.temper(inverse_temperature).latent, num)
    return gebm.decode(z[-1]).detach().numpy()


def film(gebm: GEBM, kernel, inverse_temperature, num_chains, num_steps, record_every, seed):
    """Images along chains, shape `(records, num_chains, 784)`."""
    pyro.set_rng_seed(seed)
    latent = gebm.temper(inverse_temperature).latent
    z, _ = ShortRun(kernel, num_steps=num_steps).run(latent, num_chains, record_every=record_every)
    return gebm.decode(z).detach().numpy()


def features(of, images):
    """Features of images, a thousand at a time."""
    with torch.no_grad():
        return torch.cat(
            [of.network(part) for part in torch.as_tensor(images, dtype=of.reference.dtype).split(1000)]
        ).double()


def scores(x, base, reference):
    """What the table shows."""
    pyro.set_rng_seed(0)
    reference = reference.double()
    near = *metrics.precision_recall(x, reference), *metrics.density_coverage(x, reference)
    return {
        "distance": float(metrics.frechet_distance(x, reference)),
        "ratio": [float(value) for value in metrics.frechet_ratio(x, base, reference)],
        "kernel": [float(value) for value in metrics.kernel_distance(x, reference)],
        "near": [float(value) for value in near],
    }
