"""Files that the code before 0.1 wrote are read, and runs resume from them."""

import pathlib
import shutil

import numpy as np
import pytest

FIXTURES = pathlib.Path(__file__).parent / "fixtures" / "before_0_1"
X = np.linspace(-1, 1, 10, dtype=np.float32).reshape(5, 2)
DATA = np.random.default_rng(0).normal(size=(32, 2)).astype(np.float32)


@pytest.fixture(autouse=True)
def float32(host):
    """The files are in the hosts' own precision."""
    with host.float32():
        yield


def expected(name):
    return np.load(FIXTURES / name / "expected.npz")


def model(host):
    """Networks of the right structure; their weights come from the files."""
    base = host.dist.Normal(0.0, 1.0).expand([2]).to_event(1)
    generator = host.call(host.nn.MLP, (2,), (2,), hidden=(4,))
    return host.Pushforward(base, generator), host.call(host.nn.MLP, (2,), (), hidden=(4,), seed=1)


def assert_same(found, expected):
    """Equal to the bit where processor and compiler options are those of the old run; else to their rounding."""
    np.testing.assert_allclose(np.asarray(found), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("written_by", ["numpyro", "pyro"])
def test_a_model_is_read_by_both_packages(host, written_by):
    gebm, old = host.load(FIXTURES / written_by / "model.npz"), expected(written_by)
    assert float(gebm.inverse_temperature) == 2.0 and float(gebm.log_partition) == 0.25
    assert_same(host.numpy(host.apply(gebm.energy, X)), old["energy"])
    assert_same(host.numpy(host.apply(gebm.generator, X)), old["decoded"])


@pytest.mark.parametrize("looks", [{}, {"validation": DATA, "validate_every": 2}], ids=["", "held-out"])
def test_training_resumes_to_the_expected_curve(host, looks):
    base, energy = model(host)
    optims = [host.adam(1e-3), host.adam(1e-3)]
    as_then = {"objective": "plain_kale", "max_grad_norm": np.inf}
    kale = host.KALE(base, host.KALEGuide(energy), *optims, energy_steps=2, ema_decay=0.9, **as_then)
    folder, old = FIXTURES / host.name / "checkpoint", expected(host.name)
    result = host.train(kale, 4, DATA, seed=99, batch_size=8, resume_from=folder, **looks)
    assert_same(result.losses.kale, old["kale"])
    assert not looks or result.validation.step.tolist() == [2, 4]
    np.testing.assert_allclose(result.gebm.log_partition, old["log_partition"], atol=0.02)  # of fewer draws than then
    assert_same(host.numpy(host.apply(result.gebm.energy, X)), old["trained_energy"])


def test_draws_are_read_and_resume_to_the_expected_ones(host, tmp_path):
    pytest.importorskip("arviz")
    pytest.importorskip("h5netcdf")
    folder, old = FIXTURES / host.name, expected(host.name)
    shutil.copy(folder / "draws.nc", tmp_path)
    shutil.copytree(folder / "draws.nc.state", tmp_path / "draws.nc.state")
    assert_same(host.read_draws(tmp_path / "draws.nc")["posterior"]["z"], old["draws"][:, :4])
    # The energy's weights are not in the state of a chain: they come from the model's file.
    gebm = host.load(FIXTURES / host.name / "model.npz")
    latent = host.GEBM(gebm.base, gebm.energy).latent
    kernel = host.infer.GHMC(lambda: host.ppl.sample("z", latent), num_steps=2)
    settings = {"chunk_size": 4, "progress_bar": False, "resume": True}
    if host.name == "pyro":
        mcmc = host.infer.VectorizedMCMC(kernel, num_samples=8, warmup_steps=20, num_chains=2)
        draws = host.infer.stream_draws(mcmc, tmp_path / "draws.nc", **settings)
    else:
        chains = {"num_chains": 2, "chain_method": "vectorized"}
        mcmc = host.ppl.infer.MCMC(kernel, num_warmup=20, num_samples=8, **chains)
        draws = host.call(host.infer.stream_draws, mcmc, tmp_path / "draws.nc", seed=99, **settings)
    assert_same(draws["posterior"]["z"], old["draws"])
    assert_same(draws["sample_stats"]["lp"], old["lp"])
