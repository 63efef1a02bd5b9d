"""Divergences, their witnesses and particle flows have the same numbers in both hosts."""

import numpy as np
import pytest
from cases import F_DIVERGENCE_DOMAINS, KERNELS, two_samples

jax = pytest.importorskip("jax")
numpyro_gebm = pytest.importorskip("numpyro_gebm")
pyro_gebm = pytest.importorskip("pyro_gebm")
torch = pytest.importorskip("torch")
SAMPLES = two_samples(15, 0.7)
SETTINGS = {"num_steps": 5, "step_size": 0.05, "progress_bar": False, "keep_every": 2}


def values(package, convert):
    """Numbers of a package, by name; `convert` makes its arrays."""
    divergences = package.divergences
    x, y = map(convert, SAMPLES)
    points = convert(np.random.default_rng(1).normal(size=(4, 2)))
    ratio, outputs = convert(np.array([0.2, 1.0, 3.0])), convert(np.array([-2.0, 0.1, 1.0]))
    result = {}
    for name, divergence in divergences.F_DIVERGENCES.items():
        domain = convert(np.array(F_DIVERGENCE_DOMAINS[name]))
        result[name] = (divergence.generator(ratio), divergence.conjugate(domain), divergence.optimal_critic(ratio))
        result[name] += (divergence.activation(outputs), divergence.bound(outputs, domain))
    parts = [getattr(divergences.kernels, name)(*arguments) for name, (arguments, _) in KERNELS.items()]
    mixture = divergences.kernels.Mixture([*parts, divergences.kernels.Gaussian()], (1.0, 0.5, 0.2, 0.1))
    for estimator in ("biased", "unbiased"):
        result[estimator] = (divergences.mmd2(x, y, kernel=mixture, estimator=estimator),)
    result["witness"] = (divergences.mmd_witness(x, y, kernel=mixture)(points),)
    for name, kernel in {"full rank": None, "finite rank": finite_rank(package, convert)}.items():
        kale = divergences.kale_rkhs(x, y, kernel, 0.1)
        result[f"kale, {name}"] = (kale.value, kale.witness(points), kale.weights)
    return result


def finite_rank(package, convert):
    """A kernel of random features, the same in both packages."""
    directions = np.random.default_rng(2).normal(size=(30, 2))
    return package.divergences.kernels.RandomFeatures(convert(directions), convert(np.array(2.0)))


def assert_same(ours, theirs):
    assert ours.keys() == theirs.keys()
    for name in ours:
        for number, (our, their) in enumerate(zip(ours[name], theirs[name], strict=True)):
            np.testing.assert_allclose(our, their, rtol=1e-8, atol=1e-10, err_msg=f"{name}, {number}")


def test_divergences_are_the_same():
    ours = jax.jit(lambda: values(numpyro_gebm, jax.numpy.asarray))()
    assert_same(ours, values(pyro_gebm, torch.tensor))


def flows(package, convert):
    """Results of both flows in a package."""
    x, y = map(convert, SAMPLES)
    kernel = finite_rank(package, convert)
    return {
        "mmd": package.particle_flows.mmd_flow(x, y, kernel, **SETTINGS),
        "kale": package.particle_flows.kale_flow(x, y, kernel, regularization=0.2, **SETTINGS),
    }


def test_flows_are_the_same():
    assert_same(flows(numpyro_gebm, jax.numpy.asarray), flows(pyro_gebm, torch.tensor))
