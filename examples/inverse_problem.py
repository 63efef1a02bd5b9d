"""A GEBM as the prior of an inverse problem: a block missing, noise, compressed sensing, each of unknown noise level.

    python examples/inverse_problem.py                     one digit a problem: pictures, ArviZ, the verdict in words
    python examples/inverse_problem.py --table             what the energy adds, over 200 held-out digits
    python examples/inverse_problem.py --dataset fashion_mnist --data FOLDER      with the shipped model
    python examples/inverse_problem.py --model FILE        with one of yours, of `save`

The digits are those of scikit-learn; their GEBM is trained first (three minutes) and kept under --out. The program is

    x ~ GEBM,   sigma ~ LogNormal(log s, 1),   y ~ N(A x, sigma²),

and its posterior may have several modes: the ladder (SMC) finds them, and 8 chains of GHMC from its particles say how
well one moves between them. `--table` compares the posteriors under beta = 0 (the generator alone), 1 and 2 with latent
MAP (CSGM, arXiv:1703.03208, ten restarts, told the noise), on the same images.
"""

import argparse
import importlib
import math
import pathlib
import time
import warnings

import arviz as az
import matplotlib.pyplot as plt
import numpy as np
from datasets import digits, fashion_mnist
from skimage.metrics import peak_signal_noise_ratio, structural_similarity

PROBLEMS = ("inpainting", "denoising", "sensing")
#: Noise of the three problems, and the middle of its prior, over the range of the pixels.
NOISE, PRIOR_NOISE = {"inpainting": 0.05, "denoising": 0.25, "sensing": 0.05}, 0.1


def operator(problem, shape, rng):
    """The matrix A: pixels around a missing block, all pixels, or a quarter as many random sums as there are pixels."""
    size = int(np.prod(shape))
    if problem == "sensing":
        return rng.normal(size=(size // 4, size)) / np.sqrt(size // 4)
    keep = np.ones(shape, bool)
    if problem == "inpainting":
        height, width = shape[-2:]
        keep[..., height // 4 : 3 * height // 4, width // 4 : 3 * width // 4] = False
    return np.eye(size)[keep.ravel()]


def measured(problem, images, span, seed, noise=None):
    """`(A, y, noise)` of images."""
    rng = np.random.default_rng(seed)
    A, noise = operator(problem, images.shape[1:], rng), NOISE[problem] * span if noise is None else noise
    clean = images.reshape(len(images), -1) @ A.T
    return A, clean + noise * rng.normal(size=clean.shape), noise


def main(argv=None):
    """Run the example."""
    args = _parse(argv)
    host = importlib.import_module(f"inverse_problem_{args.backend}")
    args.out.mkdir(parents=True, exist_ok=True)
    images, span = held_out(args)
    gebm = host.model(args.dataset, args.model, args.out, args.seed, not args.no_progress)
    side = math.isqrt(images[0].size)
    images = images.reshape(-1, side, side)
    if args.table:
        for problem in args.problems:
            print(table(host, gebm, problem, images[: args.images], span, args), flush=True)
        return
    for problem in args.problems:
        one_image(host, gebm, problem, images[args.image][None], span, args)
    outside(host, gebm, images[args.image], span, args)
    print(f"Written to {args.out}/.")


def held_out(args):
    """Images that the model has not seen, and the range of their pixels."""
    if args.dataset == "digits":
        return digits()[1], 1.0
    images = fashion_mnist(args.data)[2]
    return images[np.random.default_rng(0).permutation(len(images))[:2000]], 2.0


def table(host, gebm, problem, images, span, args):
    """Every prior on the same measurements; and how well 90 % intervals cover images that the model made itself."""
    lines = [f"{problem}, {len(images)} held-out images ({args.backend}):", ""]
    lines.append(
        f"{'':16}{'PSNR':>8}{'SSIM':>8}{'50 %':>7}{'90 %':>7}{'CRPS':>9}{'s':>7}{'R-hat':>8}{'ESS E':>8}{'ESS lik':>9}"
    )
    A, y, noise = measured(problem, images, span, args.seed)
    start = time.perf_counter()
    best = host.maximum(gebm, A, y, noise, args.restarts, args.seed).reshape(images.shape)
    psnr, ssim = likeness(images, best, span)
    lines.append(f"{'MAP (CSGM)':16}{psnr.mean():8.2f}{ssim.mean():8.3f}{'':23}{time.perf_counter() - start:7.0f}")
    scores = {}
    for beta in args.betas:
        start = time.perf_counter()
        draws, _, found = host.posterior(gebm.temper(beta), A, y, PRIOR_NOISE * span, **_sizes(args))
        seconds = time.perf_counter() - start
        draws = draws.reshape(-1, *images.shape)
        psnr, ssim = likeness(images, draws.mean(0), span)
        scores[beta] = {"PSNR": psnr, "CRPS": crps(draws, images)}
        inside, rhat, ess = intervals(draws, images, span), *agreement(found)
        lines.append(
            f"{f'GEBM, beta {beta:g}' if beta else 'generator':16}{psnr.mean():8.2f}{ssim.mean():8.3f}"
            f"{inside[0.5]:7.2f}{inside[0.9]:7.2f}{scores[beta]['CRPS'].mean():9.4f}{seconds:7.0f}"
            f"{rhat:8.2f}{ess[0]:8.0f}{ess[1]:9.0f}"
        )
    lines.append("")
    for beta in (b for b in scores if b and 0.0 in scores):
        for name in ("PSNR", "CRPS"):
            gap = scores[beta][name] - scores[0.0][name]
            low, high = gap.mean() + 1.96 * gap.std(ddof=1) / np.sqrt(len(gap)) * np.array([-1.0, 1.0])
            what = f"{name} of beta {beta:g} minus that of the generator, paired"
            lines.append(f"{what}: {gap.mean():.4f} [{low:.4f}, {high:.4f}]")
    own = host.draws(gebm, len(images), args.seed).reshape(images.shape)
    rng = np.random.default_rng(args.seed + 1)
    noise = PRIOR_NOISE * span * np.exp(rng.normal(size=(len(own), 1)))  # as the program says
    A, y, _ = measured(problem, own, span, args.seed + 1, noise)
    draws = host.posterior(gebm, A, y, PRIOR_NOISE * span, **_sizes(args))[0].reshape(-1, *images.shape)
    inside = intervals(draws, own, span)
    what = "Images and noise that the program made"
    lines.append(f"{what}: 50 % intervals cover {inside[0.5]:.3f}, 90 % intervals {inside[0.9]:.3f}.")
    return "\n".join([*lines, ""])


def likeness(images, found, span):
    """PSNR and SSIM of each image."""
    window = min(7, images.shape[-1] - 1 + images.shape[-1] % 2)
    pairs = [(a.reshape(images.shape[-2:]), b.reshape(images.shape[-2:])) for a, b in zip(images, found)]
    psnr = [peak_signal_noise_ratio(a, b, data_range=span) for a, b in pairs]
    ssim = [structural_similarity(a, b, data_range=span, win_size=window) for a, b in pairs]
    return np.array(psnr), np.array(ssim)


def intervals(draws, images, span):
    """How many of the pixels that vary, by more than a hundredth of their range, central intervals cover."""
    varies = draws.std(0) > 0.01 * span
    found = {}
    for level in (0.5, 0.9):
        low, high = np.quantile(draws, [0.5 - level / 2, 0.5 + level / 2], axis=0)
        found[level] = ((low <= images) & (images <= high))[varies].mean()
    return found


def crps(draws, images):
    """Continuous ranked probability score, E|X - x| - E|X - X'| / 2, a mean over the pixels of each image."""
    num = len(draws)
    ordered = np.sort(draws, 0)
    rank = (2 * np.arange(1, num + 1) - num - 1).reshape(-1, *[1] * images.ndim)
    spread = (rank * ordered).sum(0) / (num * (num - 1))  # of distinct pairs: unbiased
    return (np.abs(draws - images).mean(0) - spread).reshape(len(images), -1).mean(1)


def agreement(found):
    """The 90 % quantile of R-hat over images, and median bulk ESS, of E(x) and the log-likelihood."""
    data = az.from_dict({"energy": found["energy"], "misfit": found["log_likelihood"]})
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of few draws
        rhat, ess = az.rhat(data), az.ess(data)
    return max(np.quantile(rhat[n], 0.9) for n in rhat), [np.median(ess[n]) for n in ("energy", "misfit")]


def one_image(host, gebm, problem, image, span, args):
    """One image: chains of GHMC, NUTS and the ladder, what they agree on, and a picture."""
    A, y, noise = measured(problem, image, span, args.seed)
    print(f"\n{problem}, noise {noise:g}:", flush=True)
    prior = PRIOR_NOISE * span
    draws, mcmc, found = host.posterior(gebm, A, y, prior, **_sizes(args))
    print(az.summary(az.from_dict(summarised(found)), kind="diagnostics" if args.brief else "all"))
    print(host.diagnose(mcmc))
    runs = {"GHMC": found}
    if not args.no_nuts:
        sizes = _sizes(args)
        sizes.pop("num_particles")
        runs["NUTS"] = host.nuts(gebm, A, y, prior, **sizes)
    print("Means of E(x), the log-likelihood and sigma:")
    for name, run in runs.items():
        means = (run[part].mean() for part in ("energy", "log_likelihood", "sigma"))
        print(f"  {name:5}" + "".join(f"{mean:10.3f}" for mean in means))
    draws = draws.reshape(-1, *image.shape[1:])
    best = host.maximum(gebm, A, y, noise, args.restarts, args.seed).reshape(image.shape[1:])
    shown = {"truth": image[0], "measurement": np.linalg.pinv(A) @ y[0], "MAP": best, "mean": draws.mean(0)}
    shown["std. dev."] = draws.std(0)
    shown |= {f"draw {i + 1}": draws[i * len(draws) // 4] for i in range(4)}
    picture(shown, image.shape[-2:], span, args.out / f"{problem}.png")


def summarised(found):
    """What the table of ArviZ is about."""
    names = {"energy": "energy", "log lik": "log_likelihood", "sigma": "sigma"}
    return {shown: found[name][..., 0] for shown, name in names.items()}


def outside(host, gebm, image, span, args):
    """An image that no generator of the class can make: it fails without a word, but sigma and the misfit tell."""
    strange = 1.0 - image if span == 1.0 else -image
    A, y, noise = measured("denoising", strange[None], span, args.seed)
    draws, _, found = host.posterior(gebm, A, y, PRIOR_NOISE * span, **_sizes(args))
    draws = draws.reshape(-1, *image.shape)
    best = host.maximum(gebm, np.eye(image.size), strange.reshape(1, -1), noise, args.restarts, args.seed)
    gap = np.sqrt(np.mean((best - strange.ravel()) ** 2))
    print(
        f"\nThe negative of the image, which the generator cannot make: the nearest image that it can make is "
        f"{gap:.2f} away (root mean square, a pixel). The posterior says a noise of {found['sigma'].mean():.2f}, where "
        f"it is {noise:.2f}: what the generator cannot say it takes for noise."
    )
    shown = {"truth": strange, "measurement": y[0], "nearest": best, "mean": draws.mean(0), "std. dev.": draws.std(0)}
    picture(shown, image.shape[-2:], span, args.out / "outside.png")


def picture(shown, shape, span, path):
    """Images beside each other; the standard deviation on a scale of its own."""
    figure, axes = plt.subplots(1, len(shown), figsize=(1.2 * len(shown), 1.5), layout="constrained")
    low = 0.0 if span == 1.0 else -1.0
    for axis, (name, image) in zip(axes, shown.items()):
        limits = {} if name == "std. dev." else {"vmin": low, "vmax": low + span}
        axis.imshow(np.reshape(image, shape), cmap="magma" if name == "std. dev." else "gray", **limits)
        axis.set_title(name, fontsize=8)
        axis.axis("off")
    figure.savefig(path, dpi=100)
    plt.close(figure)


def _sizes(args):
    names = {"particles": "num_particles", "chains": "num_chains", "warmup": "num_warmup", "thinning": "thinning"}
    sizes = {name: getattr(args, of) for of, name in names.items()}
    num_draws = args.samples or (50 if args.table else 200)
    return sizes | {"num_draws": num_draws, "seed": args.seed, "progress_bar": not args.no_progress}


def _parse(argv):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--backend", choices=("numpyro", "pyro"), default="numpyro")
    parser.add_argument("--dataset", choices=("digits", "fashion_mnist"), default="digits")
    parser.add_argument("--data", help="folder of Fashion-MNIST; GEBM_DATA where it is not given")
    parser.add_argument("--model", help="file of a GEBM")
    parser.add_argument("--problems", nargs="+", choices=PROBLEMS, default=PROBLEMS)
    parser.add_argument("--table", action="store_true", help="what the energy adds, over many images")
    parser.add_argument("--images", type=int, default=200, help="of the table")
    parser.add_argument("--image", type=int, default=3, help="number of the one that is shown")
    parser.add_argument("--betas", nargs="+", type=float, default=(0.0, 1.0, 2.0))
    parser.add_argument("--particles", type=int, default=512, help="of SMC, an image")
    parser.add_argument("--chains", type=int, default=8)
    parser.add_argument("--warmup", type=int, default=400)
    parser.add_argument("--samples", type=int, help="draws a chain that are kept; 200, of a table 50")
    parser.add_argument("--thinning", type=int, default=10, help="iterations a draw")
    parser.add_argument("--restarts", type=int, default=10)
    parser.add_argument("--no-nuts", action="store_true", help="leave out NUTS, which takes longest")
    parser.add_argument("--brief", action="store_true", help="R-hat and ESS only")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=pathlib.Path, default=pathlib.Path("out/inverse"))
    parser.add_argument("--no-progress", action="store_true")
    return parser.parse_args(argv)


if __name__ == "__main__":
    main()
