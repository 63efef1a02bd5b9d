"""Every example runs with tiny arguments."""

import gzip
import importlib
import importlib.util
import pathlib
import re

import numpy as np
import pytest
from marks import slow_unless

ROOT = pathlib.Path(__file__).parents[2]


def _example(name):
    spec = importlib.util.spec_from_file_location(name, ROOT / "examples" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("backend", slow_unless(["numpyro", "pyro"], "pyro"))
@pytest.mark.filterwarnings("ignore:num_chains=2 is more than available_cpu:UserWarning")  # Pyro's, on two cores
@pytest.mark.filterwarnings("ignore:Stochastic Optimizer:sklearn.exceptions.ConvergenceWarning")
def test_digits(backend, tmp_path, capsys):
    for package in ("sklearn", "matplotlib", "arviz", backend):
        pytest.importorskip(package)
    digits = _example("digits")
    sizes = "--steps 20 --final-steps 10 --warmup 100 --samples 30 --chains 2 --draws 100 --no-progress"
    digits.main(["--backend", backend, "--out", str(tmp_path), *sizes.split()])
    printed = capsys.readouterr().out
    assert "E(x)" in printed and "r_hat" in printed and "Frechet" in printed
    expected = {"samples.png", "trace.png", "training.png", "draws_nuts.nc", "draws_kinetic_langevin.nc", "gebm.npz"}
    assert {path.name for path in tmp_path.iterdir()} == expected


@pytest.mark.parametrize("backend", slow_unless(["numpyro", "pyro"], "pyro"))
def test_curve(backend, tmp_path, capsys):
    for package in ("matplotlib", backend):
        pytest.importorskip(package)
    sizes = "--steps 20 --final-steps 10 --draws 100 --seeds 1 --no-progress"
    _example("curve").main(["--backend", backend, "--out", str(tmp_path), *sizes.split()])
    printed = capsys.readouterr().out
    assert "| floor | base | GEBM |" in printed and "| floor | initial base | base | GEBM |" in printed
    assert "settled A within 0.05" in printed
    assert {path.name for path in tmp_path.iterdir()} == {"curve_a.png", "curve_b.png"}


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["numpyro", "pyro"])
def test_ladder(backend, tmp_path, capsys):
    for package in ("matplotlib", "arviz", backend):
        pytest.importorskip(package)
    sizes = "--seeds 1 --draws 40 --warmup 20 --particles 512 --chains 2"
    _example("ladder").main(["--backend", backend, "--out", str(tmp_path), *sizes.split()])
    printed = capsys.readouterr().out
    assert "| ReplicaExchange |" in printed and "| with log Z(beta) |" in printed
    assert {path.name for path in tmp_path.iterdir()} == {f"modes_{backend}.png", f"beta_{backend}.png"}


@pytest.mark.parametrize("backend", [pytest.param("numpyro", marks=pytest.mark.slow), "pyro"])  # JAX compiles long
def test_real_nvp_check(backend, tmp_path, capsys, monkeypatch):
    pytest.importorskip(backend)
    if backend == "pyro":
        torch = pytest.importorskip("torch")
        torch.set_default_dtype(torch.float32)
    check = _example("real_nvp_check")
    monkeypatch.setattr(check, "PERMUTATIONS", 99)
    small = {"couplings": 2, "hidden": (8,), "energy_hidden": (8,)}
    monkeypatch.setattr(check, "CHANGES", {"curved": small, "table": small})
    np.savetxt(tmp_path / "table.csv", check.curved_table(300, 0), delimiter=",")
    sizes = "--seeds 1 2 --scale-steps 0.005 --chains 3 --warmup 20 --samples 20 --no-progress"
    out = tmp_path / "out"
    check.main(["--backend", backend, "--csv", str(tmp_path / "table.csv"), "--out", str(out), *sizes.split()])
    printed = capsys.readouterr().out
    assert "Law is the same:" in printed and "| maximum likelihood |" in printed
    assert {path.name for path in out.iterdir()} == {f"law_{backend}.md", f"density_table_{backend}.md"}


def test_the_two_sample_test_tells_laws_apart():
    check = _example("real_nvp_check")
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(2, 10, 100, 2))
    statistic, p_value = check.mmd_test(x, y, rng)
    assert p_value > 0.05 and np.abs(check.moment_z_scores(x, y)).max() < 4
    both = np.concatenate([x, y]).reshape(-1, 2)
    distances = np.linalg.norm(both[::2, None] - both[None, ::2], axis=-1)
    bandwidth = np.median(distances[np.triu_indices(1000, 1)])
    kernel = np.exp(-(((both[:, None] - both[None]) / bandwidth) ** 2).sum(-1) / 2)
    sign = np.repeat([1.0, -1.0], 1000)
    np.testing.assert_allclose(statistic, sign @ kernel @ sign / 1000**2, rtol=1e-6)
    assert check.mmd_test(x, y + 0.2, rng)[1] < 0.01 and np.abs(check.moment_z_scores(x, y + 0.2)).max() > 4


@pytest.fixture
def few_images(tmp_path):
    """A folder in the format of Fashion-MNIST: 240 images of noise to train on and 10 to test."""
    rng, folder = np.random.default_rng(0), tmp_path / "data" / "fashion_mnist"
    folder.mkdir(parents=True)
    for name, num in (("train", 240), ("t10k", 10)):
        for kind, shape in (("images-idx3", (num, 28, 28)), ("labels-idx1", (num,))):
            header = bytes([0, 0, 8, len(shape)]) + b"".join(side.to_bytes(4, "big") for side in shape)
            content = header + rng.integers(0, 256 if len(shape) > 1 else 10, shape, np.uint8).tobytes()
            (folder / f"{name}-{kind}-ubyte.gz").write_bytes(gzip.compress(content))
    return folder.parent


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["numpyro", "pyro"])
def test_images(backend, few_images, tmp_path, capsys, monkeypatch):
    for package in ("matplotlib", backend):
        pytest.importorskip(package)
    if backend == "pyro":
        importlib.import_module("torch").set_default_dtype(importlib.import_module("torch").float32)
    example, out = _example("images"), tmp_path / "out"
    monkeypatch.setattr(example, "NUM_HELD_OUT", 40)
    how = ["--backend", backend, "--out", str(out), "--no-progress"]
    train = ["train", "--data", str(few_images), "--fraction", "0.002", *how]
    example.main(train)
    model = (out / "gebm.npz").read_bytes()
    example.main(train)  # goes on from its end
    assert (out / "gebm.npz").read_bytes() == model
    sizes = ["--draws", "60", "--betas", "1", "--short", "3", "--short-steps", "2"]
    model = ["--model", str(out / "gebm.npz")]
    example.main(["evaluate", *model, *sizes, "--data", str(few_images), *how])
    printed = capsys.readouterr().out
    assert "GEBM, beta 1" in printed and "2 steps, beta 3" in printed
    monkeypatch.setattr(example, "film", lambda frames, path: path.touch())
    example.main(["along-a-chain", *how])
    example.main(["sample", *model, *sizes, *how])
    with np.load(out / "samples.npz") as drawn:
        assert {name: x.shape for name, x in drawn.items()} == dict.fromkeys(
            ["base", "beta_1", "2_steps_beta_3"], (60, 784)
        )
    expected = {"images.png", "chains.png", "chain_at_modes.gif", "chain_between_modes.gif"}
    assert expected <= {path.name for path in out.iterdir()}


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["numpyro", "pyro"])
def test_a_gan_on_a_folder_of_images(backend, tmp_path, monkeypatch, capsys):
    for package in ("matplotlib", backend):
        pytest.importorskip(package)
    if backend == "pyro":
        importlib.import_module("torch").set_default_dtype(importlib.import_module("torch").float32)
    example, image, rng = _example("images"), importlib.import_module("PIL.Image"), np.random.default_rng(0)
    (tmp_path / "in" / "below").mkdir(parents=True)
    for i in range(120):  # of any size, gray or in colours
        pixels = rng.integers(0, 256, (20 + i % 3, 40, 3) if i % 2 else (50, 33), np.uint8)
        image.fromarray(pixels).save(tmp_path / "in" / ("below" if i % 5 else "") / f"{i}.{('png', 'jpg')[i % 2]}")
    small = {"latent": 4, "hidden": (8,), "channels": (4, 4)}
    monkeypatch.setitem(example.RECIPES, "cifar10", example.RECIPES["cifar10"] | small)
    out = tmp_path / "out"
    how = ["--images", str(tmp_path / "in"), "--backend", backend, "--out", str(out), "--no-progress"]
    example.main(["train", "--base", "gan", "--fraction", "0.001", *how])
    sizes = ["--draws", "11", "--betas", "1", "--short", "1", "--short-steps", "2"]
    example.main(["evaluate", "--model", str(out / "gebm.npz"), *sizes, *how])
    assert "against 11 test images" in capsys.readouterr().out and (out / "images.png").exists()
    with pytest.raises(SystemExit, match="Expected a folder with at least 20 images"):
        example.main(["train", "--images", str(out), "--no-progress"])


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["numpyro", "pyro"])
def test_repair_a_model(backend, tmp_path, capsys):
    for package in ("matplotlib", backend):
        pytest.importorskip(package)
    _example("repair_a_model").main(["--backend", backend, "--no-progress", "--out", str(tmp_path)])
    printed = capsys.readouterr().out
    gain, error = map(float, re.findall(r"gains (\S+) ± (\S+) nats", printed)[0])
    assert gain > 2 * error and "(permutation test: p = 0.001)" in printed
    assert {path.name for path in tmp_path.iterdir()} == {"repair.png", "criticism.png"}


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["numpyro", "pyro"])
def test_inverse_problem(backend, tmp_path, capsys, monkeypatch):
    for package in ("matplotlib", "arviz", "skimage", backend):
        pytest.importorskip(package)
    digits = importlib.import_module(f"digits_{backend}")
    monkeypatch.setattr(digits, "STEPS", 300)
    monkeypatch.setattr(digits, "FINAL_STEPS", 300)
    example = _example("inverse_problem")
    sizes = f"--backend {backend} --out {tmp_path} --no-progress --particles 128 --chains 4 --warmup 200 --samples 20"
    example.main([*sizes.split(), "--problems", "denoising", "--no-nuts", "--brief"])
    printed = capsys.readouterr().out
    assert "ess_bulk" in printed and "what the generator cannot say it takes for noise" in printed
    assert {path.name for path in tmp_path.iterdir()} == {"digits.npz", "denoising.png", "outside.png"}
    example.main([*sizes.split(), "--problems", "sensing", "--table", "--images", "3", "--betas", "0", "1"])
    printed = capsys.readouterr().out
    assert "MAP (CSGM)" in printed and "PSNR of beta 1 minus that of the generator" in printed
    assert all(0.0 <= float(x) <= 1.0 for x in re.findall(r"intervals cover? ?([\d.]+)", printed))


def test_scores_of_the_inverse_problem():
    pytest.importorskip("skimage")
    example, rng = _example("inverse_problem"), np.random.default_rng(0)
    truth, draws = rng.normal(size=(4, 100)), rng.normal(size=(4000, 4, 100))
    exact = 2 / np.sqrt(np.pi) - 1 / np.sqrt(np.pi)  # of a standard normal forecast, E|X - X'| - E|X - X'| / 2
    assert abs(example.crps(draws, truth).mean() - exact) < 4 * 0.55 / np.sqrt(truth.size)
    inside = example.intervals(draws, truth, 1.0)
    assert abs(inside[0.9] - 0.9) < 4 * 0.3 / np.sqrt(truth.size)
    assert abs(inside[0.5] - 0.5) < 4 * 0.5 / np.sqrt(truth.size)
    psnr, ssim = example.likeness(np.zeros((1, 8, 8)), np.full((1, 8, 8), 0.1), 1.0)
    assert psnr[0] == pytest.approx(20.0) and 0.0 < ssim[0] < 1.0
    A = example.operator("inpainting", (8, 8), rng)
    assert A.shape == (48, 64) and (A.sum(1) == 1).all()


@pytest.mark.parametrize("backend", ["numpyro", "pyro"])
def test_witnesses(backend, tmp_path, capsys):
    for package in ("matplotlib", backend):
        pytest.importorskip(package)
    example = _example("witnesses")
    sizes = "--samples 64 --limit-samples 64"
    example.main(["--backend", backend, "--out", str(tmp_path), *sizes.split()])
    table = [line.split("|") for line in capsys.readouterr().out.splitlines() if line.startswith("|")]
    half, largest = float(table[2][2]), float(table[3][2])
    assert table[2][1].strip() == "½ MMD²" and largest == pytest.approx(half, rel=1e-3)
    assert {path.name for path in tmp_path.iterdir()} == {f"{name}.png" for name in example.FIGURES}


@pytest.mark.parametrize("backend", ["numpyro", "pyro"])
def test_particle_flows(backend, tmp_path, capsys):
    for package in ("matplotlib", backend):
        pytest.importorskip(package)
    sizes = "--points 21 --scale 0.01 --frames 2 --no-progress"
    _example("particle_flows").main(["--backend", backend, "--out", str(tmp_path), *sizes.split()])
    printed = re.findall(r"(?:MMD|λ = 0.001): (\S+) to (\S+) in", capsys.readouterr().out)
    assert len(printed) == 4 and all(float(last) < float(first) for first, last in printed)
    names = {f"{name}.{kind}" for name in ("three_rings", "shape_transfer") for kind in ("png", "gif")}
    assert {path.name for path in tmp_path.iterdir()} == names
