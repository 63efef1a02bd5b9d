"""The code of README and docs runs as printed, a page as one program in each host, and every link leads somewhere.

A block belongs to the host whose names it uses, or that a line names at its end (`# NumPyro`). If lines of a block name
both, each is for its host only. A block with the comment `# or pyro_gebm` runs in both. Only sizes are changed.
"""

import functools
import pathlib
import re

import hosts
import numpy as np
import pytest

ROOT = pathlib.Path(__file__).parents[1]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
WORDS = {"numpyro": r"\b(numpyro|numpyro_gebm|jax|optax)\b", "pyro": r"\b(pyro|pyro_gebm|torch)\b"}
CONTINUE_README = {"docs/diagnostics.md", "docs/ladder.md", "docs/sampling.md", "docs/training.md"}

#: What is shorter in the test: patterns, each of which a page must have, and what stands there instead.
SIZES = {
    "README.md": {r"5000": "20", r"=500": "=20"},
    "docs/diagnostics.md": {r"num_chains=64": "num_chains=4", r"100_000": "2_000"},
    "docs/ladder.md": {
        r"num_samples=1000": "num_samples=20",
        r"num_warmup=200": "num_warmup=20",
        r"warmup_steps=200": "warmup_steps=20",
        r"num_chains=32": "num_chains=4",
        r"=500": "=20",
        r"SMC\(\)": "SMC(num_particles=256)",
    },
    "docs/particle_flows.md": {r"5000": "20", r"100": "10"},
    "docs/programs.md": {r"=1000": "=50"},
    "docs/real_nvp.md": {r"\b1000\b": "5", r"real_nvp\(11": "real_nvp(11, 2, (8,)"},
    "docs/sampling.md": {r"=2000": "=200", r"=500": "=20", r"num_chains=64": "num_chains=4"},
    "docs/training.md": {r"20_000": "20", r"every=1000": "every=10"},
}


def _name(page):
    return str(page.relative_to(ROOT))


def _blocks(name):
    return re.findall(r"```python\n(.*?)```", (ROOT / name).read_text(), flags=re.DOTALL)


def _program(name, host):
    """The blocks of a page that are for a host, and the lines in them."""
    program = []
    for block in _blocks(name):
        marks = {mark.lower() for mark in re.findall(r"# (NumPyro|Pyro)$", block, flags=re.MULTILINE)}
        both = "# or pyro_gebm" in block or marks == set(WORDS)
        named = marks or {word for word, pattern in WORDS.items() if re.search(pattern, block)}
        if not both and named and host not in named:
            continue
        other = {"numpyro": "Pyro", "pyro": "NumPyro"}[host]
        lines = [line for line in block.splitlines() if not (both and re.search(rf"# {other}$", line))]
        program.append("\n".join(lines).replace("numpyro_gebm", f"{host}_gebm") if both else block)
    return program


def _run(name, host, scope):
    program = "\n".join(_program(name, host))
    for pattern, shorter in SIZES.get(name, {}).items():
        assert any(re.search(pattern, block) for block in _blocks(name)), f"{name} has no {pattern} any more"
        program = re.sub(pattern, shorter, program)
    exec(compile(program, f"{name} ({host})", "exec"), scope)
    return scope


@functools.cache
def _readme(host):
    return _run("README.md", host, {"x": np.random.default_rng(0).normal(size=(256, 2))})


def _hidden(name):
    """What a page takes from its reader."""
    rng = np.random.default_rng(1)
    if name == "docs/real_nvp.md":
        return {"x": rng.normal(size=(256, 11))}
    points = rng.normal(size=(2, 20, 2))
    return {
        "held_out": rng.normal(size=(64, 2)),
        "next_draws": lambda: (rng.normal(size=(4, 1000, 100)), rng.normal(size=(4, 1000))),
        "particles": points[0],
        "target": points[1] + 1.0,
    }


FAST = {("docs/particle_flows.md", "pyro")}
CASES = [
    pytest.param(name, host, marks=() if (name, host) in FAST else pytest.mark.slow)
    for name in map(_name, PAGES[1:])
    for host in hosts.HOSTS
    if _program(name, host)
]


@pytest.mark.filterwarnings("ignore::UserWarning")  # of runs so short
@pytest.mark.parametrize("name, host", CASES)
def test_pages_run_as_printed(name, host, tmp_path, monkeypatch):
    _skip_without(host)
    monkeypatch.chdir(tmp_path)
    _run(name, host, (dict(_readme(host)) if name in CONTINUE_README else {}) | _hidden(name))


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("host", hosts.HOSTS)
def test_the_readme_runs_as_printed(host):
    _skip_without(host)
    scope = _readme(host)
    assert scope["draws"].shape == (20, 2) and "energy_x" in scope["idata"]["sample_stats"]


def _skip_without(host):
    for package in ("arviz", host):
        pytest.importorskip(package)


def test_examples_of_the_readme_are_short():
    for block in _blocks("README.md"):
        lines = [line for line in block.splitlines() if line.strip() and not line.startswith(("import", "from", "#"))]
        assert len(lines) <= 12


def _anchors(text):
    """Names of the headings of a page, as GitHub makes them."""
    titles = re.findall(r"^#+ (.*)$", text, flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


@pytest.mark.parametrize("page", PAGES, ids=_name)
def test_links_lead_somewhere(page):
    text = page.read_text()
    for link in re.findall(r"\]\(([^)\s]+)\)", text):
        if link.startswith(("http://", "https://", "mailto:")):
            continue
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        assert target.exists() and ROOT in target.parents, f"{_name(page)} links to {link}, which is not there"
        assert not anchor or anchor in _anchors(target.read_text()), f"{_name(page)} links to {link}: no such heading"


@pytest.mark.parametrize("page", PAGES, ids=_name)
def test_files_that_are_named_exist(page):
    """Files in back quotes or commands of a page, such as `examples/curve.py`."""
    for path in re.findall(r"\b(?:examples|benchmarks|tests|docs)/[\w/]+\.(?:py|md|png|gif)\b", page.read_text()):
        assert (ROOT / path).exists(), f"{_name(page)} names {path}, which is not there"
