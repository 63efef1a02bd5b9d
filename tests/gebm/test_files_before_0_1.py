"""Files that the code before 0.1 wrote are read, and what they hold is gone on with."""

import contextlib
import pathlib
import shutil

import numpy as np
import pytest

FIXTURES = pathlib.Path(__file__).parents[1] / "fixtures" / "before_0_1"
X = np.linspace(-1, 1, 10, dtype=np.float32).reshape(5, 2)
DATA = np.random.default_rng(0).normal(size=(32, 2)).astype(np.float32)


class NumPyro:
    folder = FIXTURES / "numpyro"

    def __init__(self):
        self.jax = pytest.importorskip("jax")
        pytest.importorskip("numpyro")

    def model(self):
        import numpyro.distributions as dist

        from numpyro_gebm import Pushforward, nn

        keys = self.jax.random.split(self.jax.random.key(0))
        generator = nn.MLP((2,), (2,), hidden=(4,), rng_key=keys[0])
        base = Pushforward(dist.Normal(0.0, 1.0).expand([2]).to_event(1), generator)
        return base, nn.MLP((2,), (), hidden=(4,), rng_key=keys[1])

    def apply(self, network, x):
        return np.asarray(self.jax.vmap(network)(x))

    def load(self, path):
        from numpyro_gebm import load

        return load(path)

    def resumed_training(self, folder):
        import optax

        from numpyro_gebm import KALE, KALEGuide

        base, energy = self.model()
        optims = [optax.adam(1e-3), optax.adam(1e-3)]
        kale = KALE(base, KALEGuide(energy), *optims, energy_steps=2, ema_decay=0.9)
        key = self.jax.random.key(99)
        return kale.run(key, 4, DATA, batch_size=8, progress_bar=False, resume_from=folder)

    def resumed_draws(self, path):
        import numpyro
        from numpyro.infer import MCMC

        from numpyro_gebm import GEBM
        from numpyro_gebm.infer import GHMC, stream_draws

        gebm = GEBM(*self.model())
        kernel = GHMC(lambda: numpyro.sample("z", gebm.latent), num_steps=2)
        mcmc = MCMC(kernel, num_warmup=20, num_samples=8, num_chains=2, chain_method="vectorized")
        key = self.jax.random.key(99)
        return stream_draws(mcmc, path, rng_key=key, chunk_size=4, progress_bar=False, resume=True)


class Pyro:
    folder = FIXTURES / "pyro"

    def __init__(self):
        self.torch = pytest.importorskip("torch")
        self.pyro = pytest.importorskip("pyro")
        self.torch.set_default_dtype(self.torch.float32)

    def model(self):
        import pyro.distributions as dist

        from pyro_gebm import Pushforward, nn

        self.pyro.set_rng_seed(0)
        generator = nn.MLP((2,), (2,), hidden=(4,))
        base = Pushforward(dist.Normal(0.0, 1.0).expand([2]).to_event(1), generator)
        return base, nn.MLP((2,), (), hidden=(4,))

    def apply(self, network, x):
        return network(self.torch.tensor(x)).detach().numpy()

    def load(self, path):
        from pyro_gebm import load

        return load(path)

    def resumed_training(self, folder):
        from pyro_gebm import KALE, KALEGuide

        base, energy = self.model()
        optims = [lambda parameters: self.torch.optim.Adam(parameters, 1e-3)] * 2
        kale = KALE(base, KALEGuide(energy), *optims, energy_steps=2, ema_decay=0.9)
        return kale.run(4, DATA, batch_size=8, progress_bar=False, resume_from=folder)

    def resumed_draws(self, path):
        from pyro_gebm import GEBM
        from pyro_gebm.infer import GHMC, VectorizedMCMC, stream_draws

        gebm = GEBM(*self.model())
        kernel = GHMC(lambda: self.pyro.sample("z", gebm.latent), num_steps=2)
        mcmc = VectorizedMCMC(kernel, num_samples=8, warmup_steps=20, num_chains=2, disable_progbar=True)
        return stream_draws(mcmc, path, chunk_size=4, progress_bar=False, resume=True)


def assert_same(found, expected):
    """Equal to the bit where processor and compiler options are those of the old run; else to their rounding."""
    np.testing.assert_allclose(np.asarray(found), expected, rtol=1e-5, atol=1e-6)


@pytest.fixture(params=[NumPyro, Pyro])
def host(request):
    host = request.param()
    host.expected = np.load(host.folder / "expected.npz")
    with host.jax.enable_x64(False) if request.param is NumPyro else contextlib.nullcontext():
        yield host


@pytest.mark.parametrize("written_by", ["numpyro", "pyro"])
def test_a_model_is_read_by_both_packages(host, written_by):
    gebm, expected = host.load(FIXTURES / written_by / "model.npz"), np.load(FIXTURES / written_by / "expected.npz")
    assert float(gebm.inverse_temperature) == 2.0 and float(gebm.log_partition) == 0.25
    assert_same(host.apply(gebm.energy, X), expected["energy"])
    assert_same(host.apply(gebm.generator, X), expected["decoded"])


def test_training_is_resumed_to_the_same_end(host):
    result = host.resumed_training(host.folder / "checkpoint")
    assert_same(result.losses.kale, host.expected["kale"])
    assert_same(result.gebm.log_partition, host.expected["log_partition"])
    assert_same(host.apply(result.gebm.energy, X), host.expected["trained_energy"])


def test_draws_are_read_and_gone_on_with_to_the_same_end(host, tmp_path):
    pytest.importorskip("arviz")
    pytest.importorskip("h5netcdf")
    from gebm.draw_file import read_draws

    shutil.copy(host.folder / "draws.nc", tmp_path)
    shutil.copytree(host.folder / "draws.nc.state", tmp_path / "draws.nc.state")
    assert read_draws(tmp_path / "draws.nc")["posterior"]["z"].shape == (2, 4, 2)
    draws = host.resumed_draws(tmp_path / "draws.nc")
    assert_same(draws["posterior"]["z"], host.expected["draws"])
    assert_same(draws["sample_stats"]["lp"], host.expected["lp"])
