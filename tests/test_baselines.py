"""Contrastive divergence of the energy, a baseline of KALE, in both hosts."""

import numpy as np


def quadratic(host):
    """a x + b x²."""
    return host.network(lambda a, b, x: a * x + b * x**2, np.array(0.0), np.array(0.0))


def train(host, kale, num_steps, data, **kwargs):
    return host.train(kale, num_steps, data, batch_size=200, **kwargs)


def test_contrastive_divergence_finds_the_density_ratio(host):
    data = np.random.normal(0.5, 0.5, 20_000)
    num_steps = {"numpyro": 1500, "pyro": 1000}[host.name]
    base, guide = host.dist.Normal(host.array(0.0), 1.0), host.KALEGuide(quadratic(host), penalty=None)
    optim = host.adam(0.05, b1=0.5, decay_steps=num_steps)
    kale = host.KALE(base, guide, None, optim, objective="contrastive_divergence")
    result = train(host, kale, num_steps, data)  # exactly: E = -2 x + 1.5 x^2
    np.testing.assert_allclose(host.parameters(result.gebm.energy), [-2.0, 1.5], atol=0.15)
    draws = host.sample(base, (200_000,), seed=1)
    exact = np.log(np.exp(-host.numpy(host.apply(result.gebm.energy, draws, 0))).mean())
    assert abs(host.numpy(result.gebm.log_partition) - exact) < 0.02
    positions, _ = host.steps(kale, after=result).chains
    assert abs(positions.mean() - 0.5) < 4 * 0.5 / np.sqrt(128)


def test_chains_move_to_constrained_latents_and_resume(host, tmp_path):
    def build():
        base = host.Pushforward(host.dist.Exponential(host.array(1.0)), lambda z: z)
        guide = host.KALEGuide(quadratic(host))
        settings = {"objective": "contrastive_divergence"}
        return host.call(lambda rng_key=None: host.KALE(base, guide, None, host.adam(1e-2), **settings))  # from a seed

    data, whole, resumed = np.random.exponential(0.5, 500), build(), build()
    one = host.steps(whole, after=train(host, whole, 12, data))
    train(host, build(), 7, data, checkpoint_dir=tmp_path)
    other = host.steps(resumed, after=train(host, resumed, 12, data, seed=99, resume_from=tmp_path, allow=("seed",)))
    for found, expected in zip(one.chains + one.energy, other.chains + other.energy, strict=True):
        np.testing.assert_array_equal(found, expected)
    assert np.isfinite(one.chains[0]).all() and one.energy[0] > 0
