"""Images: a GEBM on the decoder of a VAE or on a GAN, and how much better its samples are than the generator's alone.

    python examples/images.py evaluate                               the shipped model: table, pictures; no data needed
    python examples/images.py train --data FOLDER --out out/images   train one (5 minutes of one core)
    python examples/images.py evaluate --model out/images/gebm.npz   and look at it
    python examples/images.py sample --draws 1000                    draws in a file, samples.npz
    python examples/images.py along-a-chain                          chains at modes and between them: films, picture

`--backend pyro` or `numpyro`, `--base vae` or `gan`, `--dataset fashion_mnist` or `cifar10`, or `--images` for all
images in a folder. Training goes on where it stopped if it is called again with the same `--out`. FOLDER has
fashion_mnist/*.gz or cifar10/*.npz in it; the environment variable GEBM_DATA stands for it.
"""

import argparse
import importlib
import os
import pathlib
import time

import datasets
import matplotlib.pyplot as plt
import numpy as np
from matplotlib.animation import FuncAnimation, PillowWriter

#: The recipes; rates fall to zero by half a cosine. `channels` are those of a convolutional energy, None for an MLP.
RECIPES = {
    "fashion_mnist": {
        "latent": 32,
        "hidden": (256, 512),
        "channels": None,
        "vae": {"num_steps": 4000, "batch_size": 128, "rate": 2e-3},
        "gan": {"num_steps": 8000, "batch_size": 64, "rate": 2e-4},
        "energy": {"num_steps": 5000, "batch_size": 64, "rate": 2e-4, "penalty": 0.1},
        "refinement": {"num_steps": 2500, "batch_size": 96, "rate": 3e-4, "penalty": 0.1, "num_chains": 2048},
    },
    "cifar10": {
        "latent": 64,
        "hidden": (256, 512),
        "channels": (32, 64, 128),
        "vae": {"num_steps": 6000, "batch_size": 128, "rate": 1e-3},
        "gan": {"num_steps": 8000, "batch_size": 64, "rate": 2e-4},
        "energy": {"num_steps": 2000, "batch_size": 64, "rate": 2e-4, "penalty": 1.0},
        "refinement": {"num_steps": 600, "batch_size": 64, "rate": 2e-4, "penalty": 1.0, "num_chains": 512},
    },
}
#: Training images, at most a tenth, that nothing is trained on: held-out KALE is of these, and what is chosen.
NUM_HELD_OUT = 5000


def data_of(args):
    """Training, held-out and test images."""
    if args.images:
        train, _, test, _ = datasets.folder_of_images(args.images)
    else:
        train, _, test, _ = getattr(datasets, args.dataset)(args.data)
    cut = min(NUM_HELD_OUT, len(train) // 10)
    return train[:-cut], train[-cut:], test


def train(host, args):
    """The base, an energy on its draws, and the energy on the model's own draws; every stage is kept in the folder."""
    images, held_out, _ = data_of(args)
    args.out.mkdir(parents=True, exist_ok=True)
    start = time.perf_counter()
    settings = {
        name: {**s, "num_steps": max(2, int(args.fraction * s["num_steps"]))} if isinstance(s, dict) else s
        for name, s in RECIPES[args.dataset].items()
    }
    if args.base == "gan":  # its own draws are nearer to the data, so that a smaller step is needed
        settings["refinement"]["rate"] = 1e-4
    gebm, numbers = host.train(images, held_out, settings, args.base, args.seed, args.out, not args.no_progress)
    host.save(gebm, args.out / "gebm.npz")
    print(f"Held-out KALE {numbers['before']} on draws of the base; the refinement closed {numbers['gap_closed']} of")
    print(f"what was left of the gap. {time.perf_counter() - start:.0f} s. Written to {args.out / 'gebm.npz'}.")


def evaluate(host, args):
    """The table, with standard errors where there are any, and the grid."""
    gebm, of = host.load(args.model, args.dataset), host.load_features(args.dataset)
    start, rows = time.perf_counter(), {"base": host.draw(gebm.base, args.draws, args.seed)}
    rows |= {f"GEBM, beta {beta:g}": host.draw(gebm.temper(beta), args.draws, args.seed) for beta in args.betas}
    for beta in args.short:
        rows[f"{args.short_steps} steps, beta {beta:g}"] = host.short_run(
            gebm, args.draws, beta, args.short_steps, args.kernel, args.seed
        )
    if args.against == "test" and not args.images:
        reference = of.reference[: args.draws]
    else:
        reference = host.features(of, data_of(args)[{"validation": 1, "test": 2}[args.against]][: args.draws])
    base = host.features(of, rows["base"])
    print(f"{args.draws} draws against {len(reference)} {args.against} images, in 64 features ({args.backend}):\n")
    print(" " * 21 + "Frechet        relative      kernel distance  precision   recall  density  coverage")
    for name, x in rows.items():
        scores = host.scores(host.features(of, x), base, reference)
        ratio = "      -      " if name == "base" else "{:.3f} ± {:.3f}".format(*scores["ratio"])
        kernel = "{:.4f} ± {:.4f}".format(*scores["kernel"])
        near = "  ".join(f"{value:7.2f}" for value in scores["near"])
        print(f"{name:20s} {scores['distance']:7.2f} {ratio:>15s} {kernel:>20s}  {near}", flush=True)
    if args.images or args.data or "GEBM_DATA" in os.environ:
        name = list(rows)[1 if len(rows) > 1 else 0]
        rows[f"nearest training images to {name}"] = nearest(rows[name][:60], data_of(args)[0])
    args.out.mkdir(parents=True, exist_ok=True)
    grid(rows, args.out / "images.png")
    print(f"\n{time.perf_counter() - start:.0f} s. Written to {args.out / 'images.png'}.")


def sample(host, args):
    """Draws of the base, of the law at every beta, and ends of short runs, in one file."""
    gebm = host.load(args.model, args.dataset)
    found = {"base": host.draw(gebm.base, args.draws, args.seed)}
    found |= {f"beta_{beta:g}": host.draw(gebm.temper(beta), args.draws, args.seed) for beta in args.betas}
    for beta in args.short:
        x = host.short_run(gebm, args.draws, beta, args.short_steps, args.kernel, args.seed)
        found[f"{args.short_steps}_steps_beta_{beta:g}"] = x
    args.out.mkdir(parents=True, exist_ok=True)
    np.savez(args.out / "samples.npz", **found)
    print(f"Written to {args.out / 'samples.npz'}: {', '.join(found)}, each {args.draws} images in [-1, 1].")


def along_a_chain(host, args):
    """Chains that refine what they start at, and chains that wander: two films, and a picture of both."""
    gebm, strips = host.load(args.model, args.dataset), {}
    args.out.mkdir(parents=True, exist_ok=True)
    for kernel, beta in (("at_modes", 3.0), ("between_modes", 1.0)):
        frames = host.film(gebm, kernel, beta, 16, 240, 6, args.seed)
        film(frames, args.out / f"chain_{kernel}.gif")
        strips[f"{kernel}, beta {beta:g}"] = frames[::5, :10]
    figure, axes = plt.subplots(1, 2, figsize=(9, 4.2))
    for axis, (name, frames) in zip(axes, strips.items()):
        picture = tiled(frames.reshape(-1, *frames.shape[2:]), frames.shape[1])
        axis.imshow(picture)
        middle = picture.shape[0] * (np.arange(len(frames)) + 0.5) / len(frames)
        axis.set_yticks(middle, [str(30 * i) for i in range(len(frames))])
        axis.set(xticks=[], ylabel="steps", title=name)
        axis.spines[:].set_visible(False)
    figure.tight_layout()
    figure.savefig(args.out / "chains.png", dpi=100)
    plt.close(figure)
    print(f"Written to {args.out}: chains.png, chain_at_modes.gif, chain_between_modes.gif.")


def nearest(images, data, size=10_000):
    """The images of a data set that are nearest to given ones, pixel by pixel."""
    x, best = images.reshape(len(images), -1), np.full(len(images), np.inf)
    found = np.empty_like(images)
    for start in range(0, len(data), size):
        part = data[start : start + size].reshape(-1, x.shape[1])
        distance = (part**2).sum(1) - 2.0 * x @ part.T
        closest, least = distance.argmin(1), distance.min(1)
        nearer = least < best
        found[nearer] = part[closest[nearer]].reshape(-1, *images.shape[1:])
        best = np.minimum(best, least)
    return found


def tiled(images, columns):
    """Images in [-1, 1], `(N, 784)` or `(N, 3, H, W)`, as one RGB picture with lines of a pixel between them."""
    images = np.asarray(images)
    if images.ndim == 2:  # garments, black on white
        images = np.broadcast_to(-images.reshape(-1, 1, 28, 28), (len(images), 3, 28, 28))
    tiles = np.pad(images, ((0, 0), (0, 0), (1, 0), (1, 0)), constant_values=-1.0).transpose(0, 2, 3, 1)
    lines = [np.concatenate(tiles[i : i + columns], 1) for i in range(0, len(tiles) - columns + 1, columns)]
    return np.clip((np.concatenate(lines) + 1) / 2, 0, 1)


def grid(rows, path, columns=20, lines=3):
    """A few lines of images of each kind."""
    columns = min(columns, *map(len, rows.values()))
    figure, axes = plt.subplots(len(rows), 1, figsize=(columns * 0.4, len(rows) * lines * 0.45), squeeze=False)
    for axis, (name, images) in zip(axes[:, 0], rows.items()):
        axis.imshow(tiled(images[: columns * lines], columns))
        axis.set(xticks=[], yticks=[])
        axis.set_title(name, loc="left", fontsize=9)
        axis.spines[:].set_visible(False)
    figure.tight_layout(pad=0.3)
    figure.savefig(path, dpi=130)
    plt.close(figure)


def film(frames, path, columns=8):
    """An animation of images of shape `(frames, N, ...)`."""
    figure, axis = plt.subplots(figsize=(4, 1))
    picture = axis.imshow(tiled(frames[0], columns))
    axis.axis("off")
    figure.subplots_adjust(0, 0, 1, 1)
    animation = FuncAnimation(figure, lambda i: picture.set_data(tiled(frames[i], columns)), len(frames))
    animation.save(path, PillowWriter(fps=12), dpi=80)
    plt.close(figure)


def main(argv=None):
    """Run what is asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["train", "evaluate", "sample", "along-a-chain"])
    parser.add_argument("--backend", choices=("numpyro", "pyro"), default="numpyro")
    parser.add_argument("--dataset", choices=tuple(RECIPES), help="fashion_mnist, or cifar10 where --images is given")
    parser.add_argument("--images", type=pathlib.Path, help="folder of images to train on, or to compare with")
    parser.add_argument("--base", choices=("vae", "gan"), default="vae", help="what makes the generator")
    parser.add_argument("--data", help="folder of the data; GEBM_DATA where it is not given")
    parser.add_argument("--out", type=pathlib.Path, default=pathlib.Path("out/images"), help="output folder")
    parser.add_argument("--model", help="file of a GEBM; the shipped one where it is not given")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--draws", type=int, default=10_000)
    parser.add_argument("--betas", type=float, nargs="*", default=[1.0], help="draws of the law at these")
    parser.add_argument("--short", type=float, nargs="*", default=[1.0, 3.0], help="ends of short runs at these")
    parser.add_argument("--short-steps", type=int, default=20)
    parser.add_argument(
        "--kernel", choices=("kinetic", "at_modes", "between_modes"), default="kinetic", help="of these"
    )
    parser.add_argument("--against", choices=("test", "validation"), default="test", help="images to compare with")
    parser.add_argument("--fraction", type=float, default=1.0, help="of all numbers of training steps, for a trial")
    parser.add_argument("--no-progress", action="store_true")
    args = parser.parse_args(argv)
    args.dataset = args.dataset or ("cifar10" if args.images else "fashion_mnist")
    host = importlib.import_module(f"images_{args.backend}")
    {"train": train, "evaluate": evaluate, "sample": sample, "along-a-chain": along_a_chain}[args.what](host, args)


if __name__ == "__main__":
    main()
