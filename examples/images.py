"""Fashion-MNIST: a GEBM on the decoder of a VAE, and how much better its samples are than the generator's alone.

    python examples/images.py evaluate                               the shipped model: table, pictures; no data needed
    python examples/images.py train --data FOLDER --out out/images   train one (7 minutes of one core)
    python examples/images.py evaluate --model out/images/gebm.npz   and look at it
    python examples/images.py along-a-chain                          chains at modes and between them: films, picture

`--backend pyro` or `numpyro`. Training goes on where it stopped if it is called again with the same folder. FOLDER has
fashion_mnist/*.gz in it; the environment variable GEBM_DATA stands for it.
"""

import argparse
import importlib
import pathlib
import time

import matplotlib.pyplot as plt
import numpy as np
from datasets import fashion_mnist
from matplotlib.animation import FuncAnimation, PillowWriter

#: The recipe; rates fall to zero by half a cosine.
SETTINGS = {
    "latent": 32,
    "hidden": (256, 512),
    "vae": {"num_steps": 4000, "batch_size": 128, "rate": 2e-3},
    "energy": {"num_steps": 5000, "batch_size": 64, "rate": 2e-4, "penalty": 0.1},
    "refinement": {"num_steps": 2500, "batch_size": 96, "rate": 3e-4, "penalty": 0.1},
}
#: Training images that nothing is trained on: held-out KALE is of these.
NUM_HELD_OUT = 5000
SIDE = 28


def train(host, args):
    """VAE, energy on its draws, and the energy on the model's own draws; every stage is kept in the folder."""
    images, *_ = fashion_mnist(args.data)
    split = images[:-NUM_HELD_OUT], images[-NUM_HELD_OUT:]
    args.out.mkdir(parents=True, exist_ok=True)
    start = time.perf_counter()
    settings = {
        name: {**s, "num_steps": max(2, int(args.fraction * s["num_steps"]))} if isinstance(s, dict) else s
        for name, s in SETTINGS.items()
    }
    gebm, numbers = host.train(*split, settings, args.seed, args.out, not args.no_progress)
    host.save(gebm, args.out / "gebm.npz")
    print(f"Held-out KALE {numbers['before']} on draws of the base; the refinement closed {numbers['gap_closed']} of")
    print(f"what was left of the gap. {time.perf_counter() - start:.0f} s. Written to {args.out / 'gebm.npz'}.")


def evaluate(host, args):
    """The table, with standard errors where there are any, and the grid."""
    gebm, features = host.load(args.model), host.load_features("fashion_mnist")
    start, rows = time.perf_counter(), {"base": host.draw(gebm.base, args.draws, args.seed)}
    rows |= {f"GEBM, beta {beta:g}": host.draw(gebm.temper(beta), args.draws, args.seed) for beta in args.betas}
    for beta in args.short:
        rows[f"{args.short_steps} steps, beta {beta:g}"] = host.short_run(gebm, args.draws, beta, args.short_steps)
    base, reference = host.features(features, rows["base"]), features.reference[: args.draws]
    print(f"{args.draws} draws against {len(reference)} test images, in 64 features ({args.backend}):\n")
    print(" " * 21 + "Frechet        relative      kernel distance  precision   recall  density  coverage")
    for name, x in rows.items():
        of = host.scores(host.features(features, x), base, reference)
        ratio = "      -      " if name == "base" else "{:.3f} ± {:.3f}".format(*of["ratio"])
        kernel = "{:.4f} ± {:.4f}".format(*of["kernel"])
        near = "  ".join(f"{value:7.2f}" for value in of["near"])
        print(f"{name:20s} {of['distance']:7.2f} {ratio:>15s} {kernel:>20s}  {near}", flush=True)
    args.out.mkdir(parents=True, exist_ok=True)
    grid(rows, args.out / "images.png")
    print(f"\n{time.perf_counter() - start:.0f} s. Written to {args.out / 'images.png'}.")


def along_a_chain(host, args):
    """Chains that refine what they start at, and chains that wander: two films, and a picture of both."""
    gebm, strips = host.load(args.model), {}
    args.out.mkdir(parents=True, exist_ok=True)
    for kernel, beta in (("at_modes", 3.0), ("between_modes", 1.0)):
        frames = host.film(gebm, kernel, beta, 16, 240, 6, args.seed)
        film(frames, args.out / f"chain_{kernel}.gif")
        strips[f"{kernel}, beta {beta:g}"] = frames[::5, :10]
    figure, axes = plt.subplots(1, 2, figsize=(9, 4.2))
    for axis, (name, frames) in zip(axes, strips.items()):
        axis.imshow(-tiled(frames.reshape(-1, SIDE**2), frames.shape[1]), cmap="gray", vmin=-1, vmax=1)
        middle = (SIDE + 1) * (np.arange(len(frames)) + 0.5)
        axis.set_yticks(middle, [str(30 * i) for i in range(len(frames))])
        axis.set(xticks=[], ylabel="steps", title=name)
        axis.spines[:].set_visible(False)
    figure.tight_layout()
    figure.savefig(args.out / "chains.png", dpi=100)
    plt.close(figure)
    print(f"Written to {args.out}: chains.png, chain_at_modes.gif, chain_between_modes.gif.")


def tiled(images, columns):
    """Images of shape `(N, 784)` in [-1, 1] as one picture, with lines of a pixel between them."""
    tiles = np.pad(np.asarray(images).reshape(-1, SIDE, SIDE), ((0, 0), (1, 0), (1, 0)), constant_values=1.0)
    return np.block([list(tiles[i : i + columns]) for i in range(0, len(tiles) - columns + 1, columns)])


def grid(rows, path, columns=20, lines=3):
    """A few lines of images of each kind."""
    figure, axes = plt.subplots(len(rows), 1, figsize=(columns * 0.4, len(rows) * lines * 0.45), squeeze=False)
    for axis, (name, images) in zip(axes[:, 0], rows.items()):
        axis.imshow(-tiled(images[: columns * lines], columns), cmap="gray", vmin=-1, vmax=1)
        axis.set(xticks=[], yticks=[])
        axis.set_title(name, loc="left", fontsize=9)
        axis.spines[:].set_visible(False)
    figure.tight_layout(pad=0.3)
    figure.savefig(path, dpi=130)
    plt.close(figure)


def film(frames, path, columns=8):
    """An animation of images of shape `(frames, N, 784)`."""
    figure, axis = plt.subplots(figsize=(4, 1))
    picture = axis.imshow(-tiled(frames[0], columns), cmap="gray", vmin=-1, vmax=1)
    axis.axis("off")
    figure.subplots_adjust(0, 0, 1, 1)
    animation = FuncAnimation(figure, lambda i: picture.set_data(-tiled(frames[i], columns)), len(frames))
    animation.save(path, PillowWriter(fps=12), dpi=80)
    plt.close(figure)


def main(argv=None):
    """Run what is asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["train", "evaluate", "along-a-chain"])
    parser.add_argument("--backend", choices=("numpyro", "pyro"), default="numpyro")
    parser.add_argument("--data", help="folder of the data; GEBM_DATA where it is not given")
    parser.add_argument("--out", type=pathlib.Path, default=pathlib.Path("out/images"), help="output folder")
    parser.add_argument("--model", help="file of a GEBM; the shipped one where it is not given")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--draws", type=int, default=10_000)
    parser.add_argument("--betas", type=float, nargs="*", default=[1.0], help="draws of the law at these")
    parser.add_argument("--short", type=float, nargs="*", default=[1.0, 3.0], help="ends of short runs at these")
    parser.add_argument("--short-steps", type=int, default=20)
    parser.add_argument("--fraction", type=float, default=1.0, help="of all numbers of training steps, for a trial")
    parser.add_argument("--no-progress", action="store_true")
    args = parser.parse_args(argv)
    host = importlib.import_module(f"images_{args.backend}")
    {"train": train, "evaluate": evaluate, "along-a-chain": along_a_chain}[args.what](host, args)


if __name__ == "__main__":
    main()
