"""The adapter of the tests itself: the same calls mean the same in both hosts."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hosts import HOSTS, missing

ROOT = Path(__file__).parents[1]


def test_values_and_gradients(host):
    network = host.network(lambda w, b, x: (w * x).sum(-1) + b, [1.0, 2.0], 0.5)
    x = np.array([[1.0, 1.0], [0.0, -2.0]])
    assert host.numpy(host.apply(network, x)).tolist() == [3.5, -3.5]
    assert host.slope(network, x).tolist() == [[1.0, 2.0]] * 2
    assert [parameter.tolist() for parameter in host.parameters(network)] == [[1.0, 2.0], 0.5]
    other = host.with_parameters(network, [np.zeros(2), np.array(7.0)])
    assert host.numpy(host.apply(other, x)).tolist() == [7.0, 7.0]
    value, gradients = host.grad(lambda a, b: (a * b).sum(), np.array([1.0, 2.0]), np.array(3.0))
    assert value == 9.0 and [gradient.tolist() for gradient in gradients] == [[3.0, 3.0], 3.0]
    assert host.numpy(host.array([1.0], "float32")).dtype == np.float32
    assert host.numpy(host.array(1.0)).dtype == np.float64


def test_draws_are_those_of_their_seed(host):
    gebm = host.linear_gaussian(1.0)
    first, same, other = (host.numpy(host.sample(gebm.latent_prior, (3,), seed)) for seed in (0, 0, 1))
    assert first.shape == (3, 2) and (first == same).all() and (first != other).all()
    weights = [host.parameters(host.call(host.nn.MLP, (2,), (), (4,), seed=seed))[0] for seed in (0, 0, 1)]
    assert (weights[0] == weights[1]).all() and (weights[0] != weights[2]).all()


@pytest.mark.slow_in("numpyro")
@pytest.mark.parametrize("name", ["NUTS", "MALA"])
def test_runs(host, name):
    latent = host.linear_gaussian(1.0).latent
    kernel = getattr(host.ppl.infer if name == "NUTS" else host.infer, name)
    start = {"z": np.zeros((2, 2))}
    model = lambda: host.ppl.sample("z", latent)  # noqa: E731
    first, same = (host.run(kernel(model), 2, 5, 2, start=start)["z"] for _ in range(2))
    assert first.shape == (2, 5, 2) and (first == same).all() and (first[0] != first[1]).any()


@pytest.mark.slow_in("numpyro")
def test_training(host):
    energy = host.network(lambda slope, x: slope * x, 0.1)
    guide = host.KALEGuide(energy, penalty=None)
    kale = host.KALE(host.dist.Normal(host.array(0.0), 1.0), guide, None, host.adam(0.1, decay_steps=40))
    data = np.random.default_rng(0).normal(1.0, 1.0, 500)
    result = host.train(kale, 40, data, batch_size=100)
    assert 0.2 < host.evaluate(kale, result, data) < 0.6  # 1/2 at best


@pytest.mark.parametrize("name", HOSTS)
def test_the_other_host_may_be_missing(name):
    """Importing the adapter imports no host, and using one host does not import the other."""
    (other,) = HOSTS.keys() - {name}
    code = f"""
import sys
sys.modules.update(dict.fromkeys({HOSTS[other].needs!r}))
import hosts
assert not {{"jax", "torch"}} & {{name for name, module in sys.modules.items() if module}}
assert hosts.missing({other!r}) == {list(HOSTS[other].needs)!r}
host = hosts.get({name!r})
print(host.numpy(host.linear_gaussian(1.0).energy(host.array([[0.0, 0.0, 0.0]]))))
"""
    if missing(name):
        pytest.skip(f"{name} is not installed")
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.slow
@pytest.mark.parametrize("name", HOSTS)
def test_everything_is_collected_with_one_host(name):
    if missing(name):
        pytest.skip(f"{name} is not installed")
    command = [sys.executable, "tests/one_host.py", name, "--collect-only", "-q", "-n", "0"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-3000:]
    assert f"[{name}" in done.stdout
