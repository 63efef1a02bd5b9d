"""What is compiled again, and what is not."""

import contextlib

import hosts
import jax
import numpy as np
import numpyro
import numpyro.distributions as dist
import optax
import pytest
from numpyro.infer import MCMC

from numpyro_gebm import GEBM, KALE, KALEGuide, Pushforward, enable_compilation_cache, nn
from numpyro_gebm.dynamics import buckets
from numpyro_gebm.infer import GHMC, SMC

HOST = hosts.get("numpyro")


@contextlib.contextmanager
def compiled():
    """Names of the events of the compiler within a block; one for each program."""
    events = []

    def listen(event, *_, **__):
        if event == "/jax/core/compile/backend_compile_duration":
            events.append(event)

    jax.monitoring.register_event_duration_secs_listener(listen)
    try:
        yield events
    finally:
        jax.monitoring.unregister_event_duration_listener(listen)


def model(seed):
    keys = jax.random.split(jax.random.key(seed))
    base = Pushforward(HOST.normal(2), nn.MLP((2,), (3,), (4,), rng_key=keys[0]))
    return GEBM(base, nn.MLP((3,), (), (4,), rng_key=keys[1]))


@pytest.mark.parametrize("sampler", [None, pytest.param(SMC(64, 4, 1), marks=pytest.mark.slow)], ids=["default", "smc"])
def test_draws_of_another_number_and_of_another_model(sampler):
    def draw(seed, num):
        gebm = model(seed)
        gebm = GEBM(gebm.base, gebm.energy, sampler=sampler)
        return gebm.sample(jax.random.key(0), (num,))

    draw(0, 90)
    with compiled() as programs:
        draws = draw(0, 100), draw(0, 90), draw(1, 128)
    assert programs == []
    assert [x.shape for x in draws] == [(100, 3), (90, 3), (128, 3)]
    if sampler is None:
        np.testing.assert_array_equal(draws[0][:90], draws[1])


def test_a_second_run_on_other_data():
    def normal(y):
        z = numpyro.sample("z", dist.Normal(0.0, 1.0))
        numpyro.sample("y", dist.Normal(z, 1.0), obs=y)

    mcmc = MCMC(GHMC(normal), num_warmup=5, num_samples=5, num_chains=2, chain_method="vectorized", progress_bar=False,
                jit_model_args=True)  # fmt: skip
    keys = [jax.random.key(1), jax.random.key(2)]
    mcmc.run(jax.random.key(0), np.array(1.0))
    with compiled() as programs:
        mcmc.run(keys[0], np.array(2.0))
    assert len(programs) <= 1  # NumPyro compiles its own loop anew in every run without a progress bar
    mcmc.progress_bar = True
    mcmc.run(keys[0], np.array(2.0))
    with compiled() as programs:
        mcmc.run(keys[1], np.array(3.0))
    assert programs == []


def test_the_cache_on_disk(tmp_path):
    names = ("compilation_cache_dir", "persistent_cache_min_compile_time_secs", "persistent_cache_min_entry_size_bytes")
    before = {f"jax_{name}": jax.config.values[f"jax_{name}"] for name in names}
    try:
        assert enable_compilation_cache(tmp_path / "cache") == str(tmp_path / "cache")
        assert enable_compilation_cache() == str(tmp_path / "cache")  # one that is configured stays
        with pytest.raises(TypeError, match="Expected directory to be a path; got 3"):
            enable_compilation_cache(3)
    finally:
        for name, value in before.items():
            jax.config.update(name, value)


@pytest.mark.parametrize("num", [0, 1, 5, 8])
def test_a_bucket_changes_nothing(num):
    x = jax.numpy.arange(2.0 * num).reshape(num, 2)
    np.testing.assert_array_equal(buckets.in_bucket(jax.jit(lambda x: x.sum(1)), x), x.sum(1))


def test_a_model_that_now_closes_over_another_gebm():
    """Its start is compiled once; the potential is that of today's model."""
    offset = 0.0
    kernel = GHMC(lambda: numpyro.sample("z", GEBM(HOST.normal(2), lambda x: 0.5 * (x**2).sum() + offset).latent))
    keys = jax.random.split(jax.random.key(0), 2)
    before = kernel.sample(kernel.init(keys, 0), (), {})
    offset = 100.0
    after = kernel.sample(kernel.init(keys, 0), (), {})
    np.testing.assert_allclose(after.potential_energy, before.potential_energy + 100.0)
    np.testing.assert_allclose(after.z["z"], before.z["z"])


def test_arguments_that_cannot_be_hashed():
    class Data:
        __hash__ = None
        y = np.zeros(3)

    def normal(data):
        z = numpyro.sample("z", dist.Normal(0.0, 1.0))
        numpyro.sample("y", dist.Normal(z, 1.0), obs=data.y)

    mcmc = MCMC(GHMC(normal), num_warmup=5, num_samples=5, progress_bar=False)
    mcmc.run(jax.random.key(0), Data())
    assert np.isfinite(mcmc.get_samples()["z"]).all()


@pytest.mark.slow
def test_training_again_compiles_nothing():
    guide = KALEGuide(nn.MLP((2,), (), (4,), rng_key=jax.random.key(0)))
    kale = KALE(HOST.normal(2), guide, None, optax.adam(1e-3))

    def train(seed):
        data = np.random.default_rng(seed).normal(size=(64, 2))
        settings = {"batch_size": 16, "validation": data[:20], "validate_every": 5, "progress_bar": False}
        key = jax.random.key(seed)
        kale.run(key, 10, data, **settings)
        kale.refine(key, 10, data, num_chains=64, **settings)

    train(0)
    with compiled() as programs:
        train(1)
    assert programs == []
