"""What importing a package does and does not do, and how the two packages are laid out."""

import ast
import difflib
import functools
import importlib
import importlib.util
import itertools
import json
import pathlib
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parents[1]
HOSTS = {"numpyro_gebm": "numpyro", "pyro_gebm": "pyro"}
FOREIGN = {
    "numpyro_gebm": {"torch", "pyro", "pyro_gebm"},
    "pyro_gebm": {"jax", "jaxlib", "numpyro", "equinox", "optax", "flowjax", "numpyro_gebm"},
}
EXTRAS = {"arviz", "matplotlib", "sklearn", "flowjax", "xarray", "pandas", "scipy.stats"}
#: Files of one package that have no twin in the other.
WITHOUT_TWIN = {
    "numpyro_gebm": {
        "compilation.py",
        "devices.py",
        "distribution.py",
        "dynamics/buckets.py",
        "dynamics/keys.py",
        "infer/sharded.py",
        "keys.py",
        "nn/applied.py",
        "nn/convolution.py",
    },
    "pyro_gebm": {"infer/potential.py", "infer/vectorized.py", "processes.py"},
}

STATES = {
    "numpyro_gebm": """
import jax, numpyro
def state():
    return {
        "jax": {name: str(value) for name, value in jax.config.values.items()},
        "validation": numpyro.distributions.Distribution._validate_args,
        "numpy": [np.random.get_state()[1].tolist(), np.random.get_state()[2]],
    }
""",
    "pyro_gebm": """
import pyro, torch
def state():
    return {
        "default dtype": str(torch.get_default_dtype()),
        "default device": str(torch.get_default_device()),
        "gradients": torch.is_grad_enabled(),
        "threads": torch.get_num_threads(),
        "validation": torch.distributions.Distribution._validate_args,
        "settings": {name: str(value) for name, value in pyro.settings.get().items()},
        "random": torch.get_rng_state().tolist(),
        "numpy": [np.random.get_state()[1].tolist(), np.random.get_state()[2]],
    }
""",
}


def python(code):
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


@functools.cache
def imported(package):
    """Modules that the host alone loads, what the package adds to them, and the global state before and after."""
    if importlib.util.find_spec(HOSTS[package]) is None:
        pytest.skip(f"needs {HOSTS[package]}")
    return python(
        f"""
import json, sys, warnings
import numpy as np
{STATES[package]}
host, before, filters = sorted(sys.modules), state(), list(warnings.filters)
import {package}
report = {{"host": host, "modules": sorted(sys.modules), "before": before, "after": state()}}
report["filters"] = warnings.filters == filters
print(json.dumps(report))
"""
    )


@pytest.mark.parametrize("package", HOSTS)
def test_a_package_does_not_import_the_other_framework(package):
    modules = {name.split(".")[0] for name in imported(package)["modules"]}
    assert {package, HOSTS[package]} <= modules
    assert not modules & FOREIGN[package]


@pytest.mark.parametrize("package", HOSTS)
def test_a_package_does_not_import_its_extras(package):
    report = imported(package)
    added = set(report["modules"]) - set(report["host"])
    assert not added & EXTRAS
    assert not set(report["modules"]) & {"arviz", "matplotlib", "sklearn"}


@pytest.mark.parametrize("package", HOSTS)
def test_importing_changes_no_global_state(package):
    report = imported(package)
    assert report["filters"]
    changed = {name for name, value in report["before"].items() if report["after"][name] != value}
    assert not changed, {name: (report["before"][name], report["after"][name]) for name in changed}


def files(package):
    return {str(path.relative_to(ROOT / package)): path for path in sorted((ROOT / package).rglob("*.py"))}


#: Modules from the lowest layer to the highest; those of one line may import each other. `gebm` is below all of them.
LAYERS = [
    ("callables", "distribution", "keys", "effects", "compilation", "devices", "processes"),
    ("base", "program", "divergences", "nn", "flows", "metrics"),
    ("particle_flows", "dynamics"),
    ("gebm",),
    ("reparam", "tilt", "decode", "observations", "to_arviz", "diagnose", "io", "pretrained"),
    ("infer", "training"),
    ("__init__",),
]


def imports(path):
    """Names of the modules that a file imports, wherever in it."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module:
            yield from (f"{node.module}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)


@pytest.mark.parametrize("package", HOSTS)
def test_imports_go_down(package):
    layer = {name: level for level, names in enumerate(LAYERS) for name in names}
    upward = []
    for name, path in files(package).items():
        own = layer[pathlib.PurePath(name).parts[0].removesuffix(".py")]
        for module in imports(path):
            top, *rest = module.split(".")
            if top == package and layer.get(rest[0], len(LAYERS)) > own:
                upward.append((name, module))
    assert not upward


@pytest.mark.parametrize("path", ["numpyro_gebm/training/loop.py", "pyro_gebm/training/loop.py", "gebm/training.py"])
def test_the_training_loop_knows_nothing_of_kale(path):
    names = {part for module in imports(ROOT / path) for part in module.split(".")}
    assert not names & {"kale", "KALE", "guide", "objectives", "divergences", "results"}, names


def test_the_shared_core_imports_neither_framework_nor_an_extra():
    modules = [f"gebm.{name.removesuffix('.py').replace('/', '.')}" for name in files("gebm")]
    code = f"import gebm, json, sys, {', '.join(modules)}; gebm.hosts(); print(json.dumps(sorted(sys.modules)))"
    foreign = set().union(*FOREIGN.values())
    loaded = set(python(code.replace(".__init__", "")))
    assert not {name.split(".")[0] for name in loaded} & foreign
    assert not loaded & (EXTRAS | {"scipy", "h5py", "h5netcdf"})
    named = {name: {module.split(".")[0] for module in imports(path)} for name, path in files("gebm").items()}
    assert not {name: modules & foreign for name, modules in named.items() if modules & foreign}


def test_hosts_are_found_without_importing_them():
    """Also where one is missing; the version is that of the distribution, and known without one."""
    code = """
import importlib.metadata, importlib.util, json
find, version = importlib.util.find_spec, importlib.metadata.version
importlib.util.find_spec = lambda name: None if name == "jax" else object()
importlib.metadata.version = lambda name: version("no such distribution")
import gebm
print(json.dumps([gebm.hosts(), gebm.__version__]))
"""
    assert python(code) == [{"numpyro": False, "pyro": True}, "0+unknown"]


@pytest.mark.parametrize("package", HOSTS)
def test_a_package_has_the_version_of_the_distribution(package):
    pytest.importorskip(HOSTS[package])
    assert importlib.import_module(package).__version__ == importlib.import_module("gebm").__version__ != ""


@pytest.mark.parametrize("package, other", [("numpyro_gebm", "pyro_gebm"), ("pyro_gebm", "numpyro_gebm")])
def test_every_module_has_a_twin(package, other):
    assert files(package).keys() - files(other).keys() == WITHOUT_TWIN[package]
    assert (ROOT / package / "py.typed").exists()


@pytest.mark.parametrize("package", HOSTS)
def test_every_module_says_what_it_is_for(package):
    assert not [name for name, path in files(package).items() if not path.read_text().startswith(('"""', 'r"""'))]


#: Most lines in a row that files of two packages may share; more of them belong into `gebm`.
MAX_SHARED_LINES = 30


@pytest.mark.parametrize("one, other", list(itertools.combinations(["gebm", *HOSTS], 2)))
def test_files_of_two_packages_share_no_long_run_of_lines(one, other):
    lines = [{name: path.read_text().splitlines() for name, path in files(package).items()} for package in (one, other)]
    shared = []
    for (name, a), (twin, b) in itertools.product(*(texts.items() for texts in lines)):
        if min(len(a), len(b)) > MAX_SHARED_LINES:
            run = difflib.SequenceMatcher(None, a, b, autojunk=False).find_longest_match()
            if run.size > MAX_SHARED_LINES:
                shared.append(f"{one}/{name}:{run.a + 1} and {other}/{twin}:{run.b + 1}: {run.size} lines")
    assert not shared, shared


def public_functions(node, owner=""):
    """Public functions and methods of a module, with the names they have in it."""
    for child in node.body:
        if isinstance(child, ast.ClassDef) and not child.name.startswith("_"):
            yield from public_functions(child, f"{child.name}.")
        elif isinstance(child, ast.FunctionDef) and (child.name[0] != "_" or child.name in ("__init__", "__call__")):
            yield f"{owner}{child.name}", child


@pytest.mark.parametrize("package", ["gebm", *HOSTS])
def test_public_functions_are_annotated(package):
    """But for the step of a kernel, whose types are those of `LangevinKernel.step`."""
    bare = []
    for name, path in files(package).items():
        for function, node in public_functions(ast.parse(path.read_text())):
            if name.startswith("infer/") and function.endswith(".step"):
                continue
            arguments = [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs]
            untyped = [a.arg for a in arguments if a.annotation is None and a.arg not in ("self", "cls")]
            if node.returns is None and not function.endswith("__init__"):
                untyped.append("return")
            bare += [(name, function, untyped)] if untyped else []
    assert not bare, bare
