"""The images example in Pyro: the VAE by SVI, training, draws, metrics."""

from functools import partial

import numpy as np
import pyro
import pyro.distributions as dist
import torch
from pyro.infer import SVI, Trace_ELBO
from torch.nn.functional import softplus
from tqdm import trange

import pyro_gebm
from pyro_gebm import GEBM, KALE, KALEGuide, Pushforward, gradient_penalty, load_pretrained, metrics, nn
from pyro_gebm import load_features as load_features  # the example's driver calls these
from pyro_gebm import save as save
from pyro_gebm.infer import ShortRun


def train(images, held_out, settings, kind, seed, out, progress_bar=True):
    """A GEBM, and held-out KALE before the refinement and the gap that this closed, as text."""
    pyro.set_rng_seed(seed)
    event, latent = images.shape[1:], settings["latent"]
    generator = nn.MLP((latent,), event, settings["hidden"], output_activation="tanh")
    path = out / f"{kind}.pt"
    if path.exists():
        generator.load_state_dict(torch.load(path, weights_only=True))
    else:
        {"vae": vae, "gan": gan}[kind](generator, torch.as_tensor(images), settings, progress_bar)
        torch.save(generator.state_dict(), path.with_suffix(".part"))
        path.with_suffix(".part").rename(path)
    base = Pushforward(dist.Normal(0.0, 1.0).expand([latent]).to_event(1), generator.eval())
    energy, results = new_energy(event, settings), []
    for stage in ("energy", "refinement"):
        s = settings[stage]

        def adam(parameters, s=s):
            optim = torch.optim.Adam(parameters, s["rate"], betas=(0.5, 0.999), fused=True)
            return optim, torch.optim.lr_scheduler.CosineAnnealingLR(optim, s["num_steps"])

        kale = KALE(base, KALEGuide(energy, penalty=gradient_penalty(s["penalty"])), None, adam)
        folder = out / f"pyro_{stage}"
        method = kale.run if stage == "energy" else partial(kale.refine, num_chains=s["num_chains"])
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


def new_energy(event, settings):
    """An energy as the recipe wants it."""
    if settings["channels"] is None:
        return nn.MLP(event, (), settings["hidden"][::-1], activation="leaky_relu")
    return nn.ConvEnergy(event, settings["channels"])


def vae(decoder, images, settings, progress_bar):
    """Train the decoder of a VAE with a learned observation scale, by SVI."""
    event, latent, s = images.shape[1:], settings["latent"], settings["vae"]
    encoder = nn.MLP(event, (2 * latent,), settings["hidden"][::-1])
    pyro.clear_param_store()

    def model(x):
        pyro.module("decoder", decoder)
        scale = pyro.param("scale", torch.tensor(0.4), constraint=dist.constraints.positive)
        with pyro.plate("images", len(x)):
            z = pyro.sample("z", dist.Normal(x.new_zeros(latent), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(decoder(z), scale).to_event(len(event)), obs=x)

    def guide(x):
        pyro.module("encoder", encoder)
        loc, log_scale = encoder(x).chunk(2, -1)
        with pyro.plate("images", len(x)):
            pyro.sample("z", dist.Normal(loc, log_scale.exp()).to_event(1))

    rate = {"optim_args": {"lr": s["rate"]}, "max_lr": s["rate"], "total_steps": s["num_steps"] + 1}
    optim = pyro.optim.OneCycleLR({"optimizer": torch.optim.Adam, **rate})
    svi = SVI(model, guide, optim, Trace_ELBO())
    with trange(s["num_steps"], desc="VAE", disable=not progress_bar) as bar:
        for i in bar:
            rows = torch.randint(len(images), (s["batch_size"],))
            loss = svi.step(images[rows])
            optim.step()
            if i % 50 == 0:
                bar.set_postfix(loss=f"{loss / len(rows):.1f}")


def gan(generator, images, settings, progress_bar):
    """Train a generator by the non-saturating game with the R1 penalty (arXiv:1801.04406); it is averaged."""
    s, critic = settings["gan"], new_energy(images.shape[1:], settings)
    optims = [torch.optim.Adam(m.parameters(), s["rate"], betas=(0.5, 0.999), fused=True) for m in (generator, critic)]
    average = torch.optim.swa_utils.AveragedModel(
        generator, multi_avg_fn=torch.optim.swa_utils.get_ema_multi_avg_fn(1 - min(1.0, 8 / s["num_steps"]))
    )
    for _ in trange(s["num_steps"], desc="GAN", disable=not progress_bar):
        x = images[torch.randint(len(images), (s["batch_size"],))].requires_grad_(True)
        z = torch.randn(2, s["batch_size"], settings["latent"])
        on_data, on_draws = critic(x), critic(generator(z[0]).detach())
        (slope,) = torch.autograd.grad(on_data.sum(), x, create_graph=True)
        loss = softplus(on_data).mean() + softplus(-on_draws).mean() + 0.5 * slope.flatten(1).square().sum(-1).mean()
        optims[1].zero_grad()
        loss.backward()
        optims[1].step()
        optims[0].zero_grad()
        softplus(critic(generator(z[1]))).mean().backward()
        optims[0].step()
        average.update_parameters(generator)
    generator.load_state_dict(average.module.state_dict())


def load(path, dataset):
    """The GEBM of a file, or the shipped one."""
    return load_pretrained(dataset) if path is None else pyro_gebm.load(path)


def draw(law, num, seed):
    """Draws of a base or of a GEBM."""
    pyro.set_rng_seed(seed)
    with torch.no_grad():
        return law.sample((num,)).numpy()


def short_run(gebm: GEBM, num, inverse_temperature, num_steps, kernel, seed):
    """Ends of short runs from the prior."""
    pyro.set_rng_seed(seed)
    z, _ = ShortRun(kernel, num_steps=num_steps).run(gebm.temper(inverse_temperature).latent, num)
    return gebm.decode(z[-1]).detach().numpy()


def film(gebm: GEBM, kernel, inverse_temperature, num_chains, num_steps, record_every, seed):
    """Images along chains, shape `(records, num_chains, ...)`."""
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
