"""Every example runs with tiny arguments, and the README's code runs as printed (with fewer steps)."""

import importlib.util
import pathlib
import re

import numpy as np
import pytest

ROOT = pathlib.Path(__file__).parents[2]


def _example(name):
    spec = importlib.util.spec_from_file_location(name, ROOT / "examples" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("backend", ["numpyro", "pyro"])
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


@pytest.mark.parametrize("backend", ["numpyro", "pyro"])
def test_curve(backend, tmp_path, capsys):
    for package in ("matplotlib", backend):
        pytest.importorskip(package)
    sizes = "--steps 20 --final-steps 10 --draws 100 --seeds 1 --no-progress"
    _example("curve").main(["--backend", backend, "--out", str(tmp_path), *sizes.split()])
    printed = capsys.readouterr().out
    assert "| floor | base | GEBM |" in printed and "| floor | initial base | base | GEBM |" in printed
    assert "settled A within 0.05" in printed
    assert {path.name for path in tmp_path.iterdir()} == {"curve_a.png", "curve_b.png"}


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


def _readme_blocks():
    text = (ROOT / "README.md").read_text()
    return re.findall(r"```python\n(.*?)```", text, flags=re.DOTALL)


@pytest.mark.parametrize("backend", ["numpyro", "pyro"])
def test_readme_example_runs(backend):
    pytest.importorskip(backend)
    (block,) = [b for b in _readme_blocks() if f"from {backend}_gebm" in b]
    shorter = block.replace("5000", "20").replace("500", "20")
    scope = {"x": np.random.default_rng(0).normal(size=(256, 2)).astype(np.float64)}
    exec(compile(shorter, "README.md", "exec"), scope)
    assert scope["draws"].shape[-1] == 2


def test_readme_examples_are_as_short_as_it_says():
    for block in _readme_blocks():
        lines = [line for line in block.splitlines() if line.strip() and not line.startswith(("import", "from", "#"))]
        assert len(lines) <= 12
