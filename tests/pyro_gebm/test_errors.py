"""Bad input raises early, and says what was expected, what was given and what to do."""

import sys

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer import MCMC

from pyro_gebm import GEBM, KALE, KALEGuide, LatentReparam, Pushforward, gradient_penalty, load, nn, save, to_arviz
from pyro_gebm.infer import AnnealedMALA, KineticLangevin

PRIOR = dist.Normal(torch.zeros(2, dtype=torch.float64), 1.0).to_event(1)


def adam(parameters):
    return torch.optim.Adam(parameters, 1e-3)


def energy(x):
    return 0.5 * x.square().sum(-1)


def mlp(shape_in, shape_out):
    return nn.MLP(shape_in, shape_out, (4,)).double()


def test_energy_must_return_a_scalar():
    with pytest.raises(ValueError, match=r"must return shape \(N,\).*got \('N', 1\).*[Ss]queeze"):
        GEBM(PRIOR, lambda x: x[:, :1])


def test_generator_output_must_fit_the_energy():
    with pytest.raises(ValueError, match=r"energy cannot take an event of the base of shape \(3,\).*check the energy"):
        GEBM(Pushforward(PRIOR, mlp((2,), (3,))), mlp((4,), ()))


def test_latent_must_fit_the_generator():
    with pytest.raises(ValueError, match=r"generator cannot take a latent of shape \(\).*to_event"):
        Pushforward(dist.Normal(torch.zeros(2), 1.0), mlp((2,), (3,)))


@pytest.mark.parametrize("beta", [-1.0, np.nan, np.inf])
def test_inverse_temperature_must_be_finite_and_nonnegative(beta):
    expected = r"parameter inverse_temperature .*GEBM.* constraint finite and >= 0.*\n?.*found invalid values"
    with pytest.raises(ValueError, match=expected):
        GEBM(PRIOR, energy, inverse_temperature=beta)
    with pytest.raises(ValueError, match="inverse_temperature"):
        GEBM(PRIOR, energy).temper(beta)


def test_nan_energy():
    with pytest.raises(ValueError, match=r"Expected real energies; got NaN on \d+ of 8 draws.*Check the weights"):
        GEBM(PRIOR, lambda x: torch.log(-x.square().sum(-1)))


def test_nan_energy_when_sampling():
    network = mlp((2,), ())
    gebm = GEBM(PRIOR, network)
    with torch.no_grad():
        network.layers[0].bias.fill_(torch.nan)
    with pytest.raises(RuntimeError, match="got NaN at a draw of the base"):
        gebm.sample((3,))


@pytest.mark.parametrize("layer", [torch.nn.Dropout(0.5), torch.nn.BatchNorm1d(2, dtype=torch.float64)])
def test_module_in_training_mode(layer):
    network = torch.nn.Sequential(layer, mlp((2,), ()))
    name = type(layer).__name__
    with pytest.raises(ValueError, match=rf"energy must be in evaluation mode.*got {name} in training mode.*eval\(\)"):
        GEBM(PRIOR, network)
    generator = torch.nn.Sequential(layer, mlp((2,), (3,)))
    with pytest.raises(ValueError, match="generator must be in evaluation mode"):
        GEBM(Pushforward(PRIOR, generator), mlp((3,), ()))
    KALE(Pushforward(PRIOR, generator), KALEGuide(mlp((3,), ())), adam, adam)
    assert layer.training
    GEBM(PRIOR, network.eval())
    layer.train()


def test_no_density_in_x():
    gebm = GEBM(Pushforward(PRIOR, mlp((2,), (3,))), energy)
    with pytest.raises(NotImplementedError, match="LatentReparam"):
        gebm.log_prob(torch.zeros(3))


def test_discrete_distributions():
    with pytest.raises(ValueError, match="Expected a continuous base; got"):
        GEBM(dist.Poisson(1.0), energy)
    with pytest.raises(ValueError, match="Expected a continuous latent prior; got"):
        Pushforward(dist.Poisson(1.0), lambda z: z)


def test_sampler_with_a_wrong_shape():
    gebm = GEBM(PRIOR, energy, sampler=lambda latent, num_samples: torch.zeros(num_samples))
    with pytest.raises(ValueError, match=r"sampler must return a tensor of shape \(3, 2\); got \(3,\)"):
        gebm.sample((3,))


@pytest.mark.parametrize(
    "fn, kwargs, error, match",
    [
        (GEBM(PRIOR, energy), {"obs": torch.zeros(2, dtype=torch.float64)}, ValueError, "Site 'x' is observed"),
        (PRIOR, {}, TypeError, "expects a GEBM at site 'x'; got Normal"),
    ],
    ids=["observed", "not a GEBM"],
)
def test_latent_reparam(fn, kwargs, error, match):
    model = poutine.reparam(lambda: pyro.sample("x", fn, **kwargs), config={"x": LatentReparam()})
    with pytest.raises(error, match=match):
        model()


@pytest.mark.parametrize(
    "kwargs, error, match",
    [
        ({"base_optim": None, "energy_optim": None}, ValueError, "Nothing to train"),
        ({"base_optim": 1e-4}, TypeError, "Expected a factory or None for base_optim; got .*float"),
        (
            {"energy_optim": pyro.optim.Adam({"lr": 1e-3})},
            TypeError,
            r"energy_optim; got pyro\.optim.*PyroOptim.*lambda",
        ),
        ({"base_optim": adam(mlp((2,), ()).parameters())}, TypeError, r"got torch\.optim.*Adam"),
        (
            {"base": PRIOR, "guide": KALEGuide(mlp((2,), ()))},
            ValueError,
            "no parameters to train: pass base_optim=None",
        ),
        ({"guide": KALEGuide(energy)}, ValueError, "energy has no parameters"),
        ({"objective": "gan"}, ValueError, "Expected objective"),
        ({"objective": "maximum_likelihood"}, ValueError, "energy_optim=None for MaximumLikelihood"),
        ({"objective": "maximum_likelihood", "energy_optim": None}, ValueError, "a base with a density"),
        ({"objective": "contrastive_divergence"}, ValueError, "base_optim=None for ContrastiveDivergence"),
        ({"ema_decay": 1.0}, ValueError, r"ema_decay in \[0, 1\)"),
        ({"energy_steps": 0}, ValueError, "energy_steps >= 1"),
        ({"noise_factor": 0}, ValueError, "noise_factor >= 1"),
        ({"guide": KALEGuide(mlp((4,), ()))}, ValueError, "energy cannot take"),
    ],
)
def test_kale_arguments(kwargs, error, match):
    arguments = {
        "base": Pushforward(PRIOR, mlp((2,), (3,))),
        "guide": KALEGuide(mlp((3,), ())),
        "base_optim": adam,
        "energy_optim": adam,
    }
    with pytest.raises(error, match=match):
        KALE(**{**arguments, **kwargs})


@pytest.mark.parametrize(
    "data, kwargs, error, match",
    [
        (np.zeros((10, 3)), {}, ValueError, r"Expected data of shape \(N,\) \+ \(2,\).*got \(10, 3\)"),
        (np.zeros((0, 2)), {}, ValueError, "N >= 1"),
        (np.zeros((10, 2)), {"batch_size": 11}, ValueError, "batch_size <= 10.*got 11"),
        (np.where(np.arange(20).reshape(10, 2) == 9, np.nan, 1.0), {}, ValueError, "1 rows, the first is 4"),
    ],
)
def test_kale_data(data, kwargs, error, match):
    kale = KALE(PRIOR, KALEGuide(mlp((2,), ())), None, adam)
    with pytest.raises(error, match=match):
        kale.run(2, data, **{"batch_size": 4, "progress_bar": False, **kwargs})


def test_training_that_blows_up_stops():
    guide = KALEGuide(mlp((2,), ()), penalty=None)
    kale = KALE(PRIOR, guide, None, lambda p: torch.optim.SGD(p, 1e12))
    with pytest.raises(FloatingPointError, match="not finite 10 steps in a row.*Lower the learning rates"):
        kale.run(200, np.ones((10, 2)), batch_size=4, progress_bar=False)


def test_guide_and_penalty_arguments():
    with pytest.raises(TypeError, match="Expected a callable energy; got int"):
        KALEGuide(3)
    with pytest.raises(ValueError, match="Expected log_partition_rate > 0; got 0"):
        KALEGuide(energy, log_partition_rate=0)
    with pytest.raises(ValueError, match="Expected weight >= 0; got -1"):
        gradient_penalty(-1)
    with pytest.raises(ValueError, match="unknown before training"):
        KALEGuide(energy)(torch.zeros(1, 2))


@pytest.mark.parametrize(
    "kwargs, match",
    [
        ({"model": None}, "Only one of `model` or `potential_fn`"),
        ({"potential_fn": energy}, "Only one of `model` or `potential_fn`"),
        ({"step_size": 0}, "Expected step_size > 0; got 0"),
        ({"friction": -1}, "Expected friction >= 0 or None; got -1"),
        ({"num_steps": 0}, "Expected num_steps >= 1; got 0"),
        ({"integrator": "leapfrog"}, "Expected integrator in .*; got 'leapfrog'"),
    ],
)
def test_kernel_arguments(kwargs, match):
    with pytest.raises(ValueError, match=match):
        KineticLangevin(**{"model": lambda: None, **kwargs})


def test_kernel_start():
    def run(init_params):
        kernel = KineticLangevin(potential_fn=lambda z: torch.where(z["z"] > 0, z["z"], torch.inf))
        MCMC(kernel, 1, 1, initial_params=init_params, disable_progbar=True).run()

    with pytest.raises(ValueError, match="Expected `initial_params`"):
        run(None)
    with pytest.raises(ValueError, match="Expected a finite potential at the initial point; got .*inf"):
        run({"z": torch.tensor(-1.0)})


@pytest.mark.parametrize("kwargs", [{"num_steps": 0}, {"step_size": 0}, {"annealing": 0}, {"target_accept_prob": 1}])
def test_annealed_mala_arguments(kwargs):
    with pytest.raises(ValueError, match=f"Expected .*{next(iter(kwargs))}"):
        AnnealedMALA(**kwargs)


def test_network_arguments():
    with pytest.raises(ValueError, match="Expected activation in .*; got 'swish'"):
        nn.MLP((2,), (), activation="swish")
    with pytest.raises(ValueError, match=r"H and W divisible by 4; got \(1, 6, 8\)"):
        nn.ConvEnergy((1, 6, 8), (2, 2))


def test_files(tmp_path):
    gebm = GEBM(Pushforward(PRIOR, mlp((2,), (3,))), mlp((3,), ()))
    path = tmp_path / "gebm.npz"
    save(gebm, path)
    with pytest.raises(FileNotFoundError):
        load(tmp_path / "other.npz")
    with pytest.raises(ValueError, match="missing keys .*unexpected keys"):
        load(path, energy=nn.MLP((3,), (), (4, 4)))
    with pytest.raises(ValueError, match=r"expected energy.layers.0.weight of shape \(5, 3\); got \(4, 3\)"):
        load(path, energy=nn.MLP((3,), (), (5,)))
    with np.load(path) as file:
        arrays = {key: file[key] for key in file.files}
    np.savez(tmp_path / "changed.npz", **{**arrays, "energy.layers.0.bias": arrays["energy.layers.0.bias"] + 1})
    with pytest.raises(ValueError, match="checksum"):
        load(tmp_path / "changed.npz")
    np.savez(tmp_path / "foreign.npz", a=np.zeros(3))
    with pytest.raises(ValueError, match="not a readable GEBM file"):
        load(tmp_path / "foreign.npz")
    (tmp_path / "short.npz").write_bytes(path.read_bytes()[:500])
    with pytest.raises(ValueError, match="truncated"):
        load(tmp_path / "short.npz")
    with pytest.raises(TypeError, match="callable log_partition cannot be saved"):
        save(GEBM(PRIOR, energy, log_partition=lambda beta: beta), path)
    save(GEBM(Pushforward(PRIOR, lambda z: z), energy), path)
    with pytest.raises(ValueError, match="pass `base=`"):
        load(path)


def test_missing_arviz(monkeypatch):
    gebm = GEBM(PRIOR, energy)
    mcmc = MCMC(KineticLangevin(lambda: pyro.sample("z", gebm.latent)), 2, 1, disable_progbar=True)
    mcmc.run()
    monkeypatch.setitem(sys.modules, "arviz", None)
    with pytest.raises(ImportError, match=r'pip install "gebm\[arviz\]"'):
        to_arviz(mcmc)


def test_to_arviz_arguments():
    gebm = GEBM(PRIOR, energy)
    mcmc = MCMC(KineticLangevin(lambda: pyro.sample("z", gebm.latent)), 2, 1, disable_progbar=True)
    mcmc.run()
    with pytest.raises(TypeError, match=r"Expected mcmc to be a pyro.infer.MCMC; got .*dict"):
        to_arviz({})
    with pytest.raises(ValueError, match="at site='y'"):
        to_arviz(mcmc, gebm, site="y")
    with pytest.raises(ValueError, match=r"Expected one site with latents of shape \(3,\); got \['z'\]"):
        to_arviz(mcmc, GEBM(dist.Normal(torch.zeros(3), 1.0).to_event(1), energy))
