"""Quick tests with the newest and the oldest dependencies, each in an environment of its own: `make test-versions`.

Newest: Python 3.13, or 3.12 where there is no 3.13 (on the path, or pyenv's). Oldest: Python 3.11 and `oldest.txt`. A
Python that is not there is skipped, and said. PyTorch is what pip offers: for Linux on PyPI gigabytes of CUDA, which
PIP_EXTRA_INDEX_URL=https://download.pytorch.org/whl/cpu saves.
"""

import json
import os
import pathlib
import shutil
import subprocess
import sys

ROOT = pathlib.Path(__file__).parents[1]
#: Every kind of thing that a dependency can break: imports, distributions, training, kernels, files, ArviZ.
TESTS = [
    "tests/test_imports.py",
    "tests/gebm",
    "tests/test_model.py",
    "tests/test_io.py",
    "tests/test_to_arviz.py",
    "tests/test_docs.py",
    "tests/numpyro_gebm/test_scan.py",
    "tests/numpyro_gebm/test_to_arviz.py",
    "tests/pyro_gebm/test_to_arviz.py",
    "tests/pyro_gebm/test_transforms.py",
]
TOOLS = ["pytest", "pytest-xdist", "scipy"]
SHOWN = ("jax", "numpyro", "equinox", "optax", "torch", "pyro-ppl", "arviz", "numpy")


def find_python(*versions):
    """The first of these versions that runs, of the path or of pyenv; None if there is none."""
    pyenv = pathlib.Path(os.environ.get("PYENV_ROOT", "~/.pyenv")).expanduser() / "versions"
    for version in versions:
        found = [sys.executable, shutil.which(f"python{version}"), *sorted(pyenv.glob(f"{version}.*/bin/python"))]
        for python in map(str, filter(None, found)):
            script = "import sys; print('{}.{}'.format(*sys.version_info[:2]))"
            run = subprocess.run([python, "-c", script], capture_output=True, text=True)
            if run.returncode == 0 and run.stdout.strip() == version:
                return python
    return None


def check(label, python, constraints):
    """Install and test; returns pytest's exit status."""
    folder = ROOT / f".venv-{label}"
    subprocess.run([python, "-m", "venv", "--clear", str(folder)], check=True)
    run = str(folder / "bin" / "python")
    pip = [run, "-m", "pip", "--disable-pip-version-check"]
    pins = ["--constraint", str(ROOT / constraints)] if constraints else []
    subprocess.run(
        [*pip, "install", "--quiet", *pins, *TOOLS, "--editable", f"{ROOT}[numpyro,pyro,arviz,zarr]"], check=True
    )
    installed = json.loads(subprocess.run([*pip, "list", "--format=json"], check=True, capture_output=True).stdout)
    version = {item["name"].lower(): item["version"] for item in installed}
    print(f"\n{label}: {python};", ", ".join(f"{name} {version[name]}" for name in SHOWN), flush=True)
    tests = [run, "-m", "pytest", "-q", "-n", "auto", "--maxprocesses", "4", "-m", "not slow", *TESTS]
    failed = subprocess.run(tests, cwd=ROOT).returncode
    if not failed:
        shutil.rmtree(folder)
    return failed


def main():
    """Both environments in turn; fails if a test failed in one."""
    failed = []
    for label, versions, constraints in (("newest", ("3.13", "3.12"), None), ("oldest", ("3.11",), "oldest.txt")):
        python = find_python(*versions)
        if python is None:
            print(
                f"{label}: skipped, as there is no Python {' or '.join(versions)} on the path or in pyenv", flush=True
            )
        elif check(label, python, constraints):
            failed.append(label)
    sys.exit(f"Failed with the {' and the '.join(failed)} dependencies." if failed else 0)


if __name__ == "__main__":
    main()
