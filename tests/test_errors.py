"""Bad input raises early, and says what was expected, what was given and what to do."""

import re
import sys

import numpy as np
import pytest


def energy(x):
    return 0.5 * (x**2).sum(-1)


def mlp(host, shape_in, shape_out, hidden=(4,)):
    return host.call(host.nn.MLP, shape_in, shape_out, hidden)


@pytest.fixture
def prior(host):
    return host.normal(2)


@pytest.fixture
def wide(host, prior):
    """A base over three dimensions."""
    return host.Pushforward(prior, mlp(host, (2,), (3,)))


def test_energy_must_return_a_scalar(host, prior):
    expected = {
        "numpyro": r"must return a scalar, shape \(\).*got shape\s+\(1,\).*[Ss]queeze",
        "pyro": r"must return shape \(N,\).*got \('N', 1\).*[Ss]queeze",
    }
    with pytest.raises(ValueError, match=expected[host.name]):
        host.GEBM(prior, lambda x: x[..., :1])


def test_generator_output_must_fit_the_energy(host, wide):
    with pytest.raises(ValueError, match=r"energy cannot take an event of the base of shape \(3,\).*check the energy"):
        host.GEBM(wide, mlp(host, (4,), ()))


def test_latent_must_fit_the_generator(host):
    with pytest.raises(ValueError, match=r"generator cannot take a latent of shape \(\).*to_event"):
        host.Pushforward(host.dist.Normal(host.array(np.zeros(2)), 1.0), mlp(host, (2,), (3,)))


@pytest.mark.parametrize("beta", [-1.0, np.nan, np.inf])
def test_inverse_temperature_must_be_finite_and_nonnegative(host, prior, beta):
    expected = {
        "numpyro": r"inverse_temperature.*Expected a finite inverse_temperature >= 0.*got",
        "pyro": r"parameter inverse_temperature .*GEBM.* constraint finite and >= 0.*\n?.*found invalid values",
    }
    with pytest.raises(ValueError, match=expected[host.name]):
        host.GEBM(prior, energy, inverse_temperature=beta)
    with pytest.raises(ValueError, match="inverse_temperature"):
        host.GEBM(prior, energy).temper(beta)


def test_nan_energy(host, prior):
    with pytest.raises(
        ValueError, match=r"Expected an energy without NaN; got NaN at \d+ of 8 draws.*Check the weights"
    ):
        host.GEBM(prior, lambda x: host.xp.log(-(x**2).sum(-1)))


def test_no_density_in_x(host, wide):
    with pytest.raises(NotImplementedError, match="LatentReparam"):
        host.GEBM(wide, energy).log_prob(host.array(np.zeros(3)))


def test_discrete_distributions(host):
    with pytest.raises(ValueError, match="Expected a continuous base; got"):
        host.GEBM(host.dist.Poisson(1.0), energy)
    with pytest.raises(ValueError, match="Expected a continuous latent prior; got"):
        host.Pushforward(host.dist.Poisson(1.0), lambda z: z)


def test_sampler_with_a_wrong_shape(host, prior):
    gebm = host.GEBM(prior, energy, sampler=lambda latent, num_samples, rng_key=None: host.xp.zeros(num_samples))
    with pytest.raises(ValueError, match=r"sampler must return an? (array|tensor) of shape \(3, 2\); got \(3,\)"):
        host.sample(gebm, (3,))


@pytest.mark.parametrize("observed", [True, False])
def test_latent_reparam(host, prior, observed):
    fn, obs = (host.GEBM(prior, energy), host.array(np.zeros(2))) if observed else (prior, None)
    config = {"x": host.LatentReparam()}
    model = host.seeded(host.handlers.reparam(lambda: host.ppl.sample("x", fn, obs=obs), config=config))
    error = ValueError if observed else TypeError
    match = "Site 'x' is observed" if observed else "Expected a GEBM at site 'x' for LatentReparam; got a Normal"
    with pytest.raises(error, match=match):
        model()


@pytest.mark.parametrize(
    "kwargs, error, match",
    [
        ({"base_optim": None, "energy_optim": None}, ValueError, "Nothing to train"),
        ({"base_optim": 1e-4}, TypeError, "Expected an? (Optax optimiser|factory) or None for base_optim; got .*float"),
        ({"base": 2, "guide": 2}, ValueError, "no parameters to train: pass base_optim=None"),
        ({"guide": energy}, ValueError, "energy has no parameters"),
        ({"objective": "gan"}, ValueError, "Expected objective"),
        ({"objective": "maximum_likelihood"}, ValueError, "energy_optim=None for MaximumLikelihood"),
        ({"objective": "maximum_likelihood", "energy_optim": None}, ValueError, "a base with a density"),
        ({"objective": "contrastive_divergence"}, ValueError, "base_optim=None for ContrastiveDivergence"),
        ({"ema_decay": 1.0}, ValueError, r"ema_decay in \[0, 1\)"),
        ({"energy_steps": 0}, ValueError, "energy_steps >= 1"),
        ({"energy_steps": -3}, ValueError, "energy_steps >= 1; got -3"),
        ({"energy_steps": 1_000_001}, ValueError, "energy_steps <= 1000000; got 1000001"),
        ({"energy_steps": np.nan}, TypeError, "energy_steps to be an integer >= 1; got nan"),
        ({"energy_steps": np.inf}, TypeError, "energy_steps to be an integer >= 1; got inf"),
        ({"energy_steps": 2.5}, TypeError, "energy_steps to be an integer >= 1; got 2.5"),
        ({"noise_factor": 0}, ValueError, "noise_factor >= 1"),
        ({"guide": 4}, ValueError, "energy cannot take"),
    ],
)
def test_kale_arguments(host, wide, kwargs, error, match):
    """A number is the dimension of a standard normal or of a network's input."""
    optim = host.adam(1e-3)
    arguments = {"base": wide, "guide": 3, "base_optim": optim, "energy_optim": optim} | kwargs
    if arguments["base"] == 2:
        arguments["base"] = host.normal(2)
    if isinstance(arguments["guide"], int):
        arguments["guide"] = mlp(host, (arguments["guide"],), ())
    with pytest.raises(error, match=match):
        host.KALE(**arguments | {"guide": host.KALEGuide(arguments["guide"])})


@pytest.mark.parametrize(
    "data, kwargs, error, match",
    [
        (np.zeros((10, 3)), {}, ValueError, r"Expected data of shape \(N,\) \+ \(2,\).*got \(10, 3\)"),
        (np.zeros((0, 2)), {}, ValueError, "N >= 1"),
        (np.zeros((10, 2)), {"batch_size": 11}, ValueError, "batch_size <= 10.*got 11"),
        (np.where(np.arange(20).reshape(10, 2) == 9, np.nan, 1.0), {}, ValueError, "1 rows, first in row 4"),
    ],
)
def test_kale_data(host, prior, data, kwargs, error, match):
    kale = host.KALE(prior, host.KALEGuide(mlp(host, (2,), ())), None, host.adam(1e-3))
    with pytest.raises(error, match=match):
        host.train(kale, 2, data, **{"batch_size": 4, **kwargs})


def test_training_that_blows_up_stops(host, prior):
    kale = host.KALE(prior, host.KALEGuide(mlp(host, (2,), ()), penalty=None), None, host.sgd(1e12))
    with pytest.raises(FloatingPointError, match="not finite for 10 steps in a row.*Lower the learning rates"):
        host.train(kale, 200, np.ones((10, 2)), batch_size=4)


def test_guide_and_penalty_arguments(host):
    with pytest.raises(TypeError, match="Expected energy to be callable; got int"):
        host.KALEGuide(3)
    with pytest.raises(ValueError, match="Expected log_partition_rate > 0; got 0"):
        host.KALEGuide(energy, log_partition_rate=0)
    with pytest.raises(ValueError, match="Expected weight >= 0; got -1"):
        host.gradient_penalty(-1)
    with pytest.raises(ValueError, match="unknown before training"):
        host.KALEGuide(energy)(host.array(np.zeros((1, 2))))


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
def test_kernel_arguments(host, kwargs, match):
    with pytest.raises(ValueError, match=match):
        host.infer.KineticLangevin(**{"model": lambda: None, **kwargs})


def test_kernel_start(host):
    def run(start):
        kernel = host.infer.KineticLangevin(potential_fn=lambda z: host.xp.where(z["z"] > 0, z["z"], np.inf))
        host.mcmc(kernel, 1, 1, start=start, stock=True)

    with pytest.raises(ValueError, match="Expected `init(ial)?_params`"):
        run(None)
    with pytest.raises(ValueError, match="Expected a finite potential at the initial point; got .*inf"):
        run({"z": np.array([-1.0])})


@pytest.mark.parametrize("kwargs", [{"num_steps": 0}, {"step_size": 0}, {"annealing": 0}, {"target_accept_prob": 1}])
def test_annealed_mala_arguments(host, kwargs):
    with pytest.raises(ValueError, match=f"Expected .*{next(iter(kwargs))}"):
        host.infer.AnnealedMALA(**kwargs)


def test_network_arguments(host):
    with pytest.raises(ValueError, match="Expected activation in .*; got 'swish'"):
        host.call(host.nn.MLP, (2,), (), activation="swish")
    with pytest.raises(ValueError, match=r"H and W divisible by 4; got \(1, 6, 8\)"):
        host.call(host.nn.ConvEnergy, (1, 6, 8), (2, 2))


def test_files(host, prior, wide, tmp_path):
    gebm = host.GEBM(wide, mlp(host, (3,), ()))
    path = tmp_path / "gebm.npz"
    host.save(gebm, path)
    with pytest.raises(FileNotFoundError):
        host.load(tmp_path / "other.npz")
    with pytest.raises(ValueError, match="missing keys .*unexpected keys"):
        host.load(path, energy=mlp(host, (3,), (), (4, 4)))
    with pytest.raises(ValueError, match=r"expected energy.layers.0.weight of shape \(5, 3\); got \(4, 3\)"):
        host.load(path, energy=mlp(host, (3,), (), (5,)))
    with np.load(path) as file:
        arrays = {key: file[key] for key in file.files}
    np.savez(tmp_path / "changed.npz", **{**arrays, "energy.layers.0.bias": arrays["energy.layers.0.bias"] + 1})
    with pytest.raises(ValueError, match="checksum"):
        host.load(tmp_path / "changed.npz")
    np.savez(tmp_path / "foreign.npz", a=np.zeros(3))
    with pytest.raises(ValueError, match="not a readable GEBM file"):
        host.load(tmp_path / "foreign.npz")
    (tmp_path / "short.npz").write_bytes(path.read_bytes()[:500])
    with pytest.raises(ValueError, match="truncated"):
        host.load(tmp_path / "short.npz")
    with pytest.raises(TypeError, match="callable log_partition cannot be saved"):
        host.save(host.GEBM(prior, energy, log_partition=lambda beta: beta), path)
    host.save(host.GEBM(host.Pushforward(prior, lambda z: z), energy), path)
    with pytest.raises(ValueError, match="pass `base=`"):
        host.load(path)


@pytest.fixture(scope="module")
def mcmc(host):
    latent = host.GEBM(host.normal(2), energy).latent
    return host.mcmc(host.infer.KineticLangevin(lambda: host.ppl.sample("z", latent)), 1, 2, stock=True)


def test_missing_arviz(host, mcmc, monkeypatch):
    monkeypatch.setitem(sys.modules, "arviz", None)
    with pytest.raises(ImportError, match=r'pip install "\.\[arviz\]"'):
        host.to_arviz(mcmc)


def test_to_arviz_arguments(host, prior, mcmc):
    with pytest.raises(TypeError, match=rf"Expected mcmc to be a {host}.infer.MCMC; got .*dict"):
        host.to_arviz({})
    with pytest.raises(ValueError, match="at site='y'"):
        host.to_arviz(mcmc, host.GEBM(prior, energy), site="y")
    with pytest.raises(ValueError, match=r"Expected one site with latents of shape \(3,\); got \['z'\]"):
        host.to_arviz(mcmc, host.GEBM(host.normal(3), energy))


def refused(*calls):
    """Each call of a list raises an error that begins with a text."""
    for call, message in calls:
        with pytest.raises((TypeError, ValueError), match=re.escape(message)):
            call()


def test_samplers_refuse_what_is_no_setting(host, prior):
    infer, gebm = host.infer, host.GEBM(prior, energy)
    key = {} if host.name == "pyro" else {"rng_key": host.key(0)[0]}
    law = "Expected latent to be the latent law of a GEBM; got GEBM. Pass `gebm.latent`."
    refused(
        (lambda: infer.GHMC(energy, adapt_step_size=1), "Expected adapt_step_size to be True or False; got 1 (int)"),
        (lambda: infer.ULA(energy, adapt_mass_matrix="no"), "Expected adapt_mass_matrix to be True or False; got 'no'"),
        (lambda: infer.MALA(energy, init_strategy=0.5), "Expected init_strategy to be callable; got 0.5 (float)"),
        (lambda: infer.MALA(gebm), "Expected model to be callable or None; got GEBM"),
        (lambda: infer.AnnealedMALA()(gebm, 3, **key), law),
        (lambda: infer.SMC().run(gebm, **key), law),
        (lambda: infer.SMC()(gebm.latent, 0.5, **key), "Expected num_samples to be an integer >= 0; got 0.5"),
        (lambda: infer.ReplicaExchange(gebm), law),
        (lambda: infer.init_to_prior("z"), "Expected site to be a dict or None; got 'z' (str)"),
        (
            lambda: host.log_partition_curve(gebm, gebm.latent, **key),
            "Expected smc to be a SMC or None; got EnergyTiltedPrior",
        ),
    )
