"""The wheel holds all three packages, and README's examples run from it alone."""

import pathlib
import re
import shutil
import subprocess
import sys
import zipfile

import pytest

ROOT = pathlib.Path(__file__).parents[1]
PACKAGES = ("gebm", "numpyro_gebm", "pyro_gebm")

pytestmark = pytest.mark.slow


def run(*command, cwd):
    done = subprocess.run([sys.executable, *command], cwd=cwd, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """Built from a copy: setuptools leaves a folder in the tree that it builds."""
    folder = tmp_path_factory.mktemp("wheel")
    source = folder / "source"
    source.mkdir()
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    for package in PACKAGES:
        shutil.copytree(ROOT / package, source / package, ignore=shutil.ignore_patterns("__pycache__"))
    quiet = ("--quiet", "--no-deps", "--disable-pip-version-check")
    run("-m", "pip", "wheel", *quiet, "--no-build-isolation", "--wheel-dir", str(folder), str(source), cwd=folder)
    (path,) = folder.glob("*.whl")
    run("-m", "pip", "install", *quiet, "--target", str(folder / "site"), str(path), cwd=folder)
    shutil.rmtree(source)
    return path


def test_the_wheel_holds_every_module_and_says_that_it_is_typed(wheel):
    names = set(zipfile.ZipFile(wheel).namelist())
    expected = {str(path.relative_to(ROOT)) for package in PACKAGES for path in (ROOT / package).rglob("*.py")}
    expected |= {str(path.relative_to(ROOT)) for path in (ROOT / "gebm/pretrained_files").iterdir()}
    assert {name for name in names if not name.split("/")[0].endswith(".dist-info")} == expected | {
        f"{package}/py.typed" for package in PACKAGES
    }


@pytest.mark.parametrize("host", ["numpyro", "pyro"])
def test_readme_examples_run_from_the_wheel(host, wheel):
    pytest.importorskip(host)
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), flags=re.DOTALL)
    (block,) = [block for block in blocks if f"from {host}_gebm" in block]
    site = wheel.parent / "site"
    code = f"""
import sys
sys.path.insert(0, {str(site)!r})
import gebm, numpy as np, {host}_gebm
assert all(module.__file__.startswith({str(site)!r}) for module in (gebm, {host}_gebm)), (gebm, {host}_gebm)
x = np.random.default_rng(0).normal(size=(256, 2)).astype(np.float32)
{block.replace("5000", "20").replace("500", "20")}
assert draws.shape == (20, 2)
"""
    run("-c", code, cwd=wheel.parent)
