"""Every public function that takes a random key takes typed keys and raw ones, and does the same with both."""

import importlib
import inspect
import pkgutil

import hosts
import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import optax
import pytest
from numpyro.infer import MCMC

import numpyro_gebm
from numpyro_gebm import (
    GEBM,
    KALE,
    KALEGuide,
    Pushforward,
    divergences,
    flows,
    infer,
    metrics,
    nn,
    particle_flows,
    training,
)
from numpyro_gebm.divergences import kernels
from numpyro_gebm.infer.ladder import partition
from numpyro_gebm.program import ProgramLatents
from numpyro_gebm.training.guide import settle_log_partition, weight_sums

#: Modules that users do not import from: what the package is made of.
PARTS = {"callables", "distribution", "dynamics", "keys"}
#: Public modules inside packages.
NESTED = ["divergences.kernels", "training.guide"]
#: Not called by users: protocols, what NumPyro or our own loops call with keys of theirs, values that hold a key.
INTERNAL = {
    "ChainKernel.init",
    "ContrastiveDivergence.move_chains",
    "ContrastiveDivergence.start_chains",
    "KALEState",
    "LangevinKernel.init",
    "Sampler.__call__",
    "Spectral.frequencies",
}

PRIOR = hosts.get("numpyro").normal(2)
POINTS = np.random.default_rng(0).normal(size=(2, 12, 2))
X = jnp.asarray(POINTS[0])


def quadratic(x):
    return 0.5 * (x**2).sum()


def halved(z):
    return 0.5 * z


MODEL = GEBM(Pushforward(PRIOR, halved), quadratic)
PARTICLES = infer.SMC(num_particles=16, num_groups=4, num_moves=1)
COARSE = infer.AnnealedMALA(num_steps=20)


def train(key):
    kale = KALE(PRIOR, KALEGuide(nn.MLP((2,), (), (2,), rng_key=jax.random.key(0))), None, optax.adam(1e-3))
    return kale, kale.run(key, 2, X, batch_size=4, progress_bar=False).gebm.energy


def mcmc(kernel, key, **settings):
    run = MCMC(kernel, num_warmup=4, num_samples=4, progress_bar=False, **settings)
    run.run(key)
    return run.get_samples()


def started(kernel):
    return lambda key: mcmc(kernel(lambda: numpyro.sample("z", MODEL.latent)), key)


def streamed(key, path):
    kernel = infer.MALA(lambda: numpyro.sample("z", MODEL.latent))
    run = MCMC(kernel, num_warmup=4, num_samples=4, progress_bar=False)
    draws = infer.stream_draws(run, path / f"{np.ndim(key)}.nc", rng_key=key, progress_bar=False)
    return draws["posterior"]["z"].values


def keyed():
    numpyro.sample("x", dist.Normal(numpyro.param("loc", lambda key: jax.random.normal(key)), 1.0))


PROGRAM = numpyro_gebm.Program(keyed, "x")

CASES = {
    "AffineCoupling": lambda key: flows.AffineCoupling(2, (2,), rng_key=key),
    "AnnealedMALA.__call__": lambda key: COARSE(MODEL.latent, 3, rng_key=key),
    "ConvEncoder": lambda key: nn.ConvEncoder((1, 4, 4), 2, (2,), rng_key=key),
    "ConvEnergy": lambda key: nn.ConvEnergy((1, 4, 4), (2,), rng_key=key),
    "ConvGenerator": lambda key: nn.ConvGenerator(2, (1, 4, 4), (2,), rng_key=key),
    "EnergyTiltedPrior.sample": lambda key: GEBM(PRIOR, quadratic, sampler=COARSE).latent.sample(key, (3,)),
    "Ex2MCMC.init": started(infer.Ex2MCMC),
    "GEBM.sample": lambda key: GEBM(PRIOR, quadratic, sampler=COARSE).sample(key, (3,)),
    "GHMC.init": started(infer.GHMC),
    "Gaussian.frequencies": lambda key: kernels.Gaussian(1.0).frequencies(3, 2, rng_key=key),
    "InverseMultiquadric.frequencies": lambda key: kernels.InverseMultiquadric(1.0).frequencies(3, 2, rng_key=key),
    "KALE.init": lambda key: train(jax.random.key(1))[0].init(key, X).log_partition,
    "KALE.refine": lambda key: (
        train(jax.random.key(1))[0]
        .refine(key, 2, X, batch_size=2, num_chains=64, progress_bar=False)
        .log_partition.value
    ),
    "KALE.run": lambda key: train(key)[1],
    "KineticLangevin.init": started(infer.KineticLangevin),
    "Laplace.frequencies": lambda key: kernels.Laplace(1.0).frequencies(3, 2, rng_key=key),
    "MALA.init": started(infer.MALA),
    "MALT.init": started(infer.MALT),
    "MLP": lambda key: nn.MLP((2,), (), (2,), rng_key=key),
    "Mixture.frequencies": lambda key: kernels.Mixture([kernels.Gaussian(1.0)]).frequencies(3, 2, rng_key=key),
    "Program": lambda key: numpyro_gebm.Program(keyed, "x", rng_key=key).params,
    "Program.sample": lambda key: PROGRAM.sample(key, (3,)),
    "ProgramLatents.sample": lambda key: ProgramLatents(PROGRAM).sample(key, (3,)),
    "Pushforward.sample": lambda key: MODEL.base.sample(key, (3,)),
    "ReplicaExchange.init": lambda key: mcmc(
        infer.ReplicaExchange(MODEL.latent), key, num_chains=2, chain_method="vectorized"
    ),
    "resample": lambda key: numpyro_gebm.resample({"x": X}, X[:, 0], rng_key=key)["x"],
    "SMC.__call__": lambda key: GEBM(PRIOR, quadratic, sampler=PARTICLES).sample(key, (3,)),
    "SMC.run": lambda key: PARTICLES.run(MODEL.latent, rng_key=key).z,
    "ShortRun.__call__": lambda key: infer.ShortRun(num_steps=2)(MODEL.latent, 3, rng_key=key),
    "ShortRun.run": lambda key: infer.ShortRun(num_steps=2).run(MODEL.latent, 3, rng_key=key).z,
    "ULA.init": started(infer.ULA),
    "frechet_ratio": lambda key: metrics.frechet_ratio(*POINTS, X + 1.0, num_resamples=2, rng_key=key).std_error,
    "kale_test": lambda key: (
        numpyro_gebm.kale_test(
            *[np.random.default_rng(i).normal(size=(40, 2)) for i in range(2)],
            KALEGuide(nn.MLP((2,), (), (2,), rng_key=jax.random.key(0))),
            num_steps=2,
            num_permutations=19,
            progress_bar=False,
            rng_key=key,
        ).energy_of_data
    ),
    "kale_between": lambda key: (
        training.kale_between(
            *[np.random.default_rng(i).normal(size=(40, 2)) for i in range(2)],
            KALEGuide(nn.MLP((2,), (), (2,), rng_key=jax.random.key(0))),
            optax.sgd(0.0),
            num_steps=1,
            progress_bar=False,
            rng_key=key,
        ).value
    ),
    "kale_flow": lambda key: (
        particle_flows.kale_flow(
            *POINTS, kernels.Gaussian(1.0), num_steps=2, step_size=0.1, noise=0.1, rng_key=key
        ).particles
    ),
    "log_partition": lambda key: [
        partition.log_partition(MODEL, method, rng_key=key, num_samples=64, draws=draws).value
        for method, draws in (("smc", None), ("ais", None), ("importance", None), ("bridge", POINTS))
    ],
    "log_partition_curve": lambda key: partition.log_partition_curve(MODEL, PARTICLES, rng_key=key).values,
    "normalized": lambda key: numpyro_gebm.normalized(MODEL, PARTICLES, rng_key=key).log_partition,
    "mmd_flow": lambda key: (
        particle_flows.mmd_flow(
            *POINTS, kernels.Gaussian(1.0), num_steps=2, step_size=0.1, noise=0.1, rng_key=key
        ).particles
    ),
    "mmd_test": lambda key: divergences.mmd_test(*POINTS, num_permutations=20, rng_key=key).p_value,
    "random_features": lambda key: kernels.random_features(kernels.Gaussian(1.0), 2, 4, rng_key=key)(X, X),
    "real_nvp": lambda key: flows.real_nvp(2, 2, (2,), rng_key=key),
    "weight_sums": lambda key: weight_sums(PRIOR, quadratic, None, 8, rng_key=key).log_sum,
    "settle_log_partition": lambda key: settle_log_partition(PRIOR, quadratic, max_draws=8, rng_key=key),
    "stream_draws": streamed,
}


#: Those that compile for long; `make test` leaves them out.
COMPILE = (
    {"normalized"}
    | {name for name in CASES if name.endswith((".init", ".__call__"))}
    | {
        "EnergyTiltedPrior.sample",
        "GEBM.sample",
        "KALE.refine",
        "KALE.run",
        "ShortRun.run",
        "log_partition",
        "log_partition_curve",
        "stream_draws",
    }
)
SLOW = pytest.mark.slow


def _takes_key(function):
    try:
        parameters = inspect.signature(function).parameters
    except (TypeError, ValueError):
        return False
    return "rng_key" in parameters or ("key" in parameters and "str" not in str(parameters["key"].annotation))


def test_every_public_function_that_takes_a_key_has_a_case():
    found = set()
    names = {module.name for module in pkgutil.iter_modules(numpyro_gebm.__path__)} - PARTS
    for module in [numpyro_gebm, *(importlib.import_module(f"numpyro_gebm.{name}") for name in [*names, *NESTED])]:
        for public in module.__all__:
            value = getattr(module, public)
            if _takes_key(value):
                found.add(public)
            for method, function in inspect.getmembers(value, inspect.isfunction) if inspect.isclass(value) else ():
                ours = function.__module__.startswith("numpyro_gebm")
                if ours and (method == "__call__" or not method.startswith("_")) and _takes_key(function):
                    found.add(f"{public}.{method}")
    found = {name for name in found if not name.endswith((".step", "_with_intermediates"))}
    assert found - INTERNAL == set(CASES)


@pytest.mark.parametrize("case", [pytest.param(c, id=n, marks=SLOW if n in COMPILE else ()) for n, c in CASES.items()])
def test_raw_keys_do_what_typed_keys_do(case, tmp_path):
    rest = (tmp_path,) if case is streamed else ()
    results = [case(key, *rest) for key in (jax.random.key(3), jax.random.PRNGKey(3))]
    one, other = (list(map(np.asarray, jax.tree.leaves(_arrays(result)))) for result in results)
    assert one and all(map(np.array_equal, one, other)) and len(one) == len(other)


def _arrays(result):
    return jax.tree.map(lambda leaf: leaf if hasattr(leaf, "dtype") or isinstance(leaf, float) else 0.0, result)


@pytest.mark.parametrize("bad, got", [(0, "got 0"), (np.zeros(3), "got an array of float64")], ids=["seed", "array"])
def test_what_is_no_key_is_refused(bad, got, tmp_path):
    expected = rf"Expected rng_key to be a random key, such as jax.random.key\(0\); {got}"
    for case in CASES.values():
        with pytest.raises(TypeError, match=expected):
            case(bad, *((tmp_path,) if case is streamed else ()))
