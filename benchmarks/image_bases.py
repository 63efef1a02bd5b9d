"""Fashion-MNIST for benchmarks: data, features to compare samples by, and bases that are trained once and kept.

    GEBM_DATA=... .venv/bin/python benchmarks/image_bases.py --cache out/images --seeds 5

trains the feature network, a VAE and a GAN per seed, and prints the Fréchet distance of their draws.
"""

import argparse
import functools
import math
import pathlib
import sys
import time

import numpy as np
import pyro.distributions as dist
import torch

from pyro_gebm import Pushforward, metrics, nn

sys.path.append(str(pathlib.Path(__file__).parents[1] / "examples"))
from datasets import fashion_mnist as load

LATENT, HIDDEN = 32, (256, 512)


def kept(cache, name, train, module):
    """A module with the weights of a file, or trained and its weights written there."""
    path = pathlib.Path(cache) / f"{name}.pt"
    if path.exists():
        module.load_state_dict(torch.load(path, weights_only=True))
    else:
        train(module)
        path.parent.mkdir(parents=True, exist_ok=True)
        torch.save(module.state_dict(), path.with_suffix(".part"))
        path.with_suffix(".part").rename(path)
    return module.eval().requires_grad_(False)


def _batches(images, size, steps, seed):
    rng = np.random.default_rng(seed)
    for _ in range(steps):
        yield torch.as_tensor(images[rng.integers(0, len(images), size)])


class Classifier(torch.nn.Module):
    """A small convolutional classifier; its features are the last hidden layer."""

    def __init__(self):
        super().__init__()
        self.body = torch.nn.Sequential(
            torch.nn.Conv2d(1, 16, 4, 2, 1),
            torch.nn.ReLU(),
            torch.nn.Conv2d(16, 32, 4, 2, 1),
            torch.nn.ReLU(),
            torch.nn.Flatten(),
            torch.nn.Linear(32 * 49, 64),
            torch.nn.ReLU(),
        )
        self.head = torch.nn.Linear(64, 10)

    def forward(self, x):
        return self.head(self.body(x.reshape(-1, 1, 28, 28)))


def features(cache, data):
    """A function from images, shape `(N, 784)`, to features `(N, 64)`, NumPy; trained on the labels of `load`."""
    images, labels, test, test_labels = data

    def train(module):
        torch.manual_seed(0)
        optim = torch.optim.Adam(module.parameters(), 1e-3, fused=True)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optim, 3e-3, 3000)
        rng = np.random.default_rng(0)
        for _ in range(3000):
            rows = rng.integers(0, len(images), 128)
            loss = torch.nn.functional.cross_entropy(
                module(torch.as_tensor(images[rows])), torch.as_tensor(labels[rows])
            )
            optim.zero_grad()
            loss.backward()
            optim.step()
            schedule.step()

    torch.manual_seed(0)
    module = kept(cache, "features", train, Classifier())
    accuracy = np.mean([np.argmax(module(torch.as_tensor(test)).numpy(), 1) == test_labels])
    print(f"Features: a classifier with {100 * accuracy:.1f} % test accuracy.", flush=True)
    return lambda x: module.body(torch.as_tensor(np.asarray(x), dtype=torch.float32).reshape(-1, 1, 28, 28)).numpy()


def generator():
    """The generator of all bases, 32-256-512-784."""
    return nn.MLP((LATENT,), (784,), HIDDEN, output_activation="tanh")


def energy():
    """The energy of all models, 784-512-256-1."""
    return nn.MLP((784,), (), HIDDEN[::-1], activation="leaky_relu")


def base_of(decoder):
    """A base with a standard normal latent."""
    return Pushforward(dist.Normal(0.0, 1.0).expand([LATENT]).to_event(1), decoder)


def vae(cache, images, seed, steps=4000, scale=None):
    """A generator trained as the decoder of a VAE; its observation scale is learned where it is not given."""

    def train(decoder):
        torch.manual_seed(seed)
        encoder = nn.MLP((784,), (2 * LATENT,), HIDDEN[::-1])
        log_scale = torch.nn.Parameter(torch.tensor(-1.0 if scale is None else math.log(scale)), scale is None)
        parameters = [*decoder.parameters(), *encoder.parameters(), *([log_scale] if scale is None else [])]
        optim = torch.optim.Adam(parameters, 2e-3, fused=True)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optim, 2e-3, steps)
        for x in _batches(images, 128, steps, seed):
            mean, log_std = encoder(x).chunk(2, -1)
            z = mean + log_std.exp() * torch.randn_like(mean)
            kl = (0.5 * (mean**2 + (2 * log_std).exp() - 1) - log_std).sum(-1)
            misfit = 0.5 * ((x - decoder(z)) / log_scale.exp()).square().sum(-1) + 784 * log_scale
            optim.zero_grad()
            (misfit + kl).mean().backward()
            optim.step()
            schedule.step()

    torch.manual_seed(seed)
    return kept(cache, f"vae{'' if scale is None else f'-{scale:g}-'}{seed}", train, generator())


def gan(cache, images, seed, steps=8000):
    """A generator trained by the non-saturating GAN game with the R1 penalty (arXiv:1801.04406)."""

    def train(decoder):
        torch.manual_seed(seed)
        critic, average = energy(), {k: v.clone() for k, v in decoder.state_dict().items()}
        optims = [torch.optim.Adam(m.parameters(), 2e-4, betas=(0.5, 0.999), fused=True) for m in (decoder, critic)]
        for x in _batches(images, 64, steps, seed):
            x = x.requires_grad_(True)
            on_data, on_draws = critic(x), critic(decoder(torch.randn(64, LATENT)).detach())
            (slope,) = torch.autograd.grad(on_data.sum(), x, create_graph=True)
            loss = torch.nn.functional.softplus(on_data).mean() + torch.nn.functional.softplus(-on_draws).mean()
            optims[1].zero_grad()
            (loss + 0.5 * slope.square().sum(-1).mean()).backward()
            optims[1].step()
            loss = torch.nn.functional.softplus(critic(decoder(torch.randn(64, LATENT)))).mean()
            optims[0].zero_grad()
            loss.backward()
            optims[0].step()
            for name, value in decoder.state_dict().items():
                average[name].lerp_(value, 0.001 if steps > 2000 else 0.05)
        decoder.load_state_dict(average)

    torch.manual_seed(seed)
    return kept(cache, f"gan{seed}", train, generator())


def scores(x, y, most=5000):
    """How features x of draws compare with features y of images.

    Returns:
        A dict with the Fréchet distance, precision, recall (arXiv:1904.06991) and coverage (arXiv:2002.09797).
    """
    x, y = (torch.as_tensor(np.asarray(a), dtype=torch.float64) for a in (x, y))
    near = [metrics.precision_recall(x[:most], y[:most]), metrics.density_coverage(x[:most], y[:most])]
    return {
        "distance": float(metrics.frechet_distance(x, y)),
        "precision": float(near[0].precision),
        "recall": float(near[0].recall),
        "coverage": float(near[1].coverage),
    }


def show(name, found, base=None):
    """One line of a table."""
    relative = "" if base is None else f"{found['distance'] / base['distance']:.3f}"
    of = functools.partial("{:.2f}".format)
    rest = " / ".join(of(found[key]) for key in ("precision", "recall", "coverage"))
    print(f"| {name} | {found['distance']:.1f} | {relative} | {rest} |", flush=True)


def main(argv=None):
    """Train what is not there yet, and print how good it is."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", help="folder of the data; GEBM_DATA where it is not given")
    parser.add_argument("--cache", default="out/images", help="folder for trained networks")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--kinds", nargs="+", default=["vae", "gan"])
    args = parser.parse_args(argv)
    torch.set_num_threads(1)
    data = load(args.data)
    of = features(args.cache, data)
    reference = of(data[2])
    print("| base | Fréchet distance | relative | precision / recall / coverage |\n|---|---|---|---|")
    show("training images", scores(of(data[0][:10_000]), reference))
    for kind in args.kinds:
        for seed in range(args.seeds):
            start = time.perf_counter()
            decoder = {"vae": vae, "gan": gan}[kind](args.cache, data[0], seed)
            torch.manual_seed(0)
            found = scores(of(base_of(decoder).sample((10_000,)).numpy()), reference)
            show(f"{kind}, seed {seed} ({time.perf_counter() - start:.0f} s)", found)
    assert math.isfinite(found["distance"])


if __name__ == "__main__":
    main()
