"""Particle flows of KALE and of the MMD, as figures and short animations.

    python examples/particle_flows.py --backend numpyro --out out/flows

Three rings: particles start as a blob at the edge of the first of three rings. Shape transfer: they start as a heart
and become a spiral. Prints the divergences along the way.
"""

import argparse
import pathlib
import time

import matplotlib.pyplot as plt
import numpy as np
from PIL import Image
from witnesses import load

#: Each flow: name, regularization (None: MMD), step, and the number of steps.
FLOWS = {
    "three_rings": [("KALE, λ = 0.001", 1e-3, 1e-4, 10_000), ("MMD", None, 1e-3, 10_000)],
    "shape_transfer": [("KALE, λ = 0.001", 1e-3, 5e-4, 1000), ("MMD", None, 2e-2, 1000)],
}
SQUARED_BANDWIDTH = {"three_rings": 0.05, "shape_transfer": 0.02}


def main(argv=None):
    """Run all flows."""
    args = _parse(argv)
    package = load(args.backend)
    out = pathlib.Path(args.out)
    out.mkdir(parents=True, exist_ok=True)
    for name, make in {"three_rings": three_rings, "shape_transfer": shapes}.items():
        particles, target = make(args.points)
        kernel = package.divergences.kernels.Gaussian(SQUARED_BANDWIDTH[name] ** 0.5)
        trajectories, losses = {}, {}
        for title, regularization, step_size, num_steps in FLOWS[name]:
            num_steps = max(1, round(num_steps * args.scale))
            settings = {"num_steps": num_steps, "step_size": step_size, "progress_bar": not args.no_progress}
            settings["keep_every"] = max(1, num_steps // args.frames)
            start = time.perf_counter()
            if regularization is None:
                result = package.particle_flows.mmd_flow(particles, target, kernel, **settings)
            else:
                settings["regularization"] = regularization
                result = package.particle_flows.kale_flow(particles, target, kernel, **settings)
            seconds = time.perf_counter() - start
            trajectories[title], losses[title] = np.asarray(result.trajectory), np.asarray(result.losses)
            print(
                f"{name}, {title}: {losses[title][0]:.4g} to {losses[title][-1]:.4g} "
                f"in {num_steps} steps of {step_size:g}, {seconds:.0f} s",
                flush=True,
            )
        plot(trajectories, losses, target).savefig(out / f"{name}.png", dpi=90)
        plt.close("all")
        animate(trajectories, target, out / f"{name}.gif")
    print(f"Figures and animations in {out}/.")


def _parse(argv):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--backend", choices=("numpyro", "pyro"), default="numpyro")
    parser.add_argument("--points", type=int, default=400, help="particles of the shape transfer, at least 6")
    parser.add_argument("--scale", type=float, default=1.0, help="factor for all numbers of steps")
    parser.add_argument("--frames", type=int, default=40, help="frames of each animation")
    parser.add_argument("--out", default="out/flows", help="output folder")
    parser.add_argument("--no-progress", action="store_true")
    return parser.parse_args(argv)


def three_rings(num):
    """Particles near (0, -.3), and a target of 80 points on each of three circles of radius .3 (num / 3 if fewer)."""
    on_circle = min(80, num // 3)
    angle = np.linspace(0.0, 2.0 * np.pi, on_circle, endpoint=False)
    circle = 0.3 * np.stack([np.cos(angle), np.sin(angle)], 1)
    target = np.concatenate([circle + centre for centre in ([0.0, 0.0], [0.0, -0.75], [0.0, -1.5])])
    return np.array([0.0, -0.3]) + 0.01 * np.random.default_rng(0).normal(size=target.shape), target


def shapes(num):
    """Points inside of a heart, and as many in a thick spiral; both within [-1, 1]²."""
    rng = np.random.default_rng(0)
    square = rng.uniform(-1.0, 1.0, (60 * num, 2))
    x, y = 1.4 * square[:, 0], 1.4 * square[:, 1] + 0.1
    heart = square[(x**2 + y**2 - 1.0) ** 3 < x**2 * y**3][:num]
    turns = 2.25 * np.sqrt(rng.uniform(0.02, 1.0, num))
    radius = 0.4 * turns + rng.uniform(-0.07, 0.07, num)
    return heart, radius[:, None] * np.stack([np.cos(2 * np.pi * turns), np.sin(2 * np.pi * turns)], 1)


def plot(trajectories, losses, target):
    """Four moments of each flow, and its divergence along the way."""
    figure, axes = plt.subplots(len(trajectories), 5, figsize=(12, 2.3 * len(trajectories)), layout="constrained")
    for row, (title, frames), values in zip(axes, trajectories.items(), losses.values()):
        every = len(values) / (len(frames) - 1)
        for axis, part in zip(row, (0.0, 0.05, 0.25, 1.0)):
            index = round(part * (len(frames) - 1))
            draw(axis, frames[index], target)
            axis.set_title(f"{title}\nstep {round(index * every)}" if part == 0.0 else f"step {round(index * every)}")
        row[-1].semilogy(values)
        row[-1].set(xlabel="step", title="KALE" if "KALE" in title else "½ MMD²")
    return figure


def draw(axis, particles, target):
    """Target and particles in the plane; a target that stands lies down."""
    order = [1, 0] if np.ptp(target[:, 1]) > 2.0 * np.ptp(target[:, 0]) else [0, 1]
    axis.scatter(*target[:, order].T, s=4, color="0.75", linewidths=0)
    axis.scatter(*particles[:, order].T, s=4, color="tab:red", linewidths=0)
    low, high = target[:, order].min(0) - 0.25, target[:, order].max(0) + 0.25
    axis.set(xlim=(low[0], high[0]), ylim=(low[1], high[1]), aspect="equal")
    axis.axis("off")


def animate(trajectories, target, path):
    """All flows side by side, as a GIF of few colours."""
    images = []
    figure, axes = plt.subplots(1, len(trajectories), figsize=(3.2 * len(trajectories), 2.2), layout="constrained")
    for frames in zip(*trajectories.values()):
        for axis, title, particles in zip(axes, trajectories, frames):
            axis.clear()
            draw(axis, particles, target)
            axis.set_title(title, fontsize=9)
        figure.canvas.draw()
        images.append(Image.fromarray(np.asarray(figure.canvas.buffer_rgba())).convert("RGB").quantize(16))
    plt.close(figure)
    images[0].save(path, save_all=True, append_images=images[1:], duration=100, loop=0, optimize=True)


if __name__ == "__main__":
    main()
