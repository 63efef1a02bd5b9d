"""The same weights give the same numbers in both hosts, and the same names take the same arguments."""

import importlib
import inspect

import numpy as np
import pytest

numpyro_gebm = pytest.importorskip("numpyro_gebm")
pyro_gebm = pytest.importorskip("pyro_gebm")
jax, jnp = pytest.importorskip("jax"), pytest.importorskip("jax.numpy")
torch = pytest.importorskip("torch")
numpyro_dist, pyro_dist = pytest.importorskip("numpyro.distributions"), pytest.importorskip("pyro.distributions")
numpyro_dynamics = pytest.importorskip("numpyro_gebm.dynamics.steps")
pyro_dynamics = pytest.importorskip("pyro_gebm.dynamics.steps")
numpyro_adaptation = pytest.importorskip("numpyro_gebm.infer.adaptation")
pyro_adaptation = pytest.importorskip("pyro_gebm.infer.adaptation")

NETWORKS = {
    "mlp": {
        "generator": ("MLP", ((2,), (2, 2), (5, 4), "tanh", "sigmoid")),
        "energy": ("MLP", ((2, 2), (), (6,), "leaky_relu")),
    },
    "conv": {
        "generator": ("ConvGenerator", (2, (2, 4, 4), (4, 3), "silu", "tanh")),
        "energy": ("ConvEnergy", ((2, 4, 4), (3, 2), "softplus")),
    },
    "residual": {
        "generator": ("ConvGenerator", (2, (2, 4, 4), (16, 3), "silu", "tanh", 1, "group")),
        "energy": ("ConvEnergy", ((2, 4, 4), (3, 2), "softplus", None, None, 2, "pixel")),
    },
}
ENCODER = ((2, 4, 4), 3, (5, 2), "silu", "tanh", 1, "group")
PRIOR = {"loc": np.array([0.3, -0.2]), "scale": np.array([1.0, 0.5])}
MODEL = {"inverse_temperature": 1.7, "log_partition": 0.4}
RANDOM = np.random.default_rng(0)
Z, V, E_DATA, E_BASE = (RANDOM.normal(size=shape) for shape in ((7, 2), 2, 30, 41))
FEATURES = RANDOM.normal(size=(20, 3)), 0.5 + RANDOM.normal(size=(13, 3)) @ RANDOM.normal(size=(3, 3))


def assert_same(ours, theirs):
    np.testing.assert_allclose(_array(ours), _array(theirs), rtol=1e-10, atol=1e-10)


def _array(value):
    return value.detach().numpy() if isinstance(value, torch.Tensor) else np.asarray(value)


def numpyro_gebm_of(kind):
    generator, energy = (
        getattr(numpyro_gebm.nn, name)(*arguments, rng_key=jax.random.key(i))
        for i, (name, arguments) in enumerate(NETWORKS[kind].values())
    )
    prior = numpyro_dist.Normal(**PRIOR).to_event(1)
    return numpyro_gebm.GEBM(numpyro_gebm.Pushforward(prior, generator), energy, **MODEL)


def pyro_gebm_of(kind):
    torch.manual_seed(0)
    generator, energy = (getattr(pyro_gebm.nn, name)(*args).double() for name, args in NETWORKS[kind].values())
    prior = pyro_dist.Normal(**{name: torch.tensor(value) for name, value in PRIOR.items()}).to_event(1)
    return pyro_gebm.GEBM(pyro_gebm.Pushforward(prior, generator), energy, **MODEL)


@pytest.fixture(scope="module", params=[(kind, source) for kind in NETWORKS for source in ("numpyro", "pyro")], ids=str)
def pair(request, tmp_path_factory):
    """One GEBM in both hosts: made in `source`, saved there, loaded in the other."""
    kind, source = request.param
    path = tmp_path_factory.mktemp("pair") / "gebm.npz"
    if source == "numpyro":
        gebm = numpyro_gebm_of(kind)
        numpyro_gebm.save(gebm, path)
        return gebm, pyro_gebm.load(path)
    gebm = pyro_gebm_of(kind)
    pyro_gebm.save(gebm, path)
    return numpyro_gebm.load(path), gebm


@jax.jit
def numpyro_values(gebm, z):
    x = gebm.decode(z)
    energies = jax.vmap(gebm.energy)(x)
    penalty = numpyro_gebm.gradient_penalty(2.5)
    return {
        "decode": x,
        "energy": energies,
        "log_weight": gebm.log_weight(x),
        "latent log_prob": gebm.latent.log_prob(z),
        "latent gradient": jax.vmap(jax.grad(gebm.latent.log_prob))(z),
        "prior log_prob": gebm.latent_prior.log_prob(z),
        "kale": numpyro_gebm.divergences.kale(energies[:3], energies[3:], 0.3),
        "donsker_varadhan": numpyro_gebm.divergences.donsker_varadhan(energies[:3], energies[3:]),
        "base_loss": numpyro_gebm.divergences.base_loss(energies),
        "gradient penalty": penalty(gebm.energy, x, x, jax.random.key(0)),  # data are the draws: no interpolation
        "witness": jax.vmap(numpyro_gebm.KALEGuide(gebm.energy, log_partition=0.3))(x),
        "tempered": gebm.temper(0.6).latent.log_prob(z),
    }


def pyro_values(gebm, z):
    z = z.clone().requires_grad_(True)
    x = gebm.decode(z)
    energies = gebm.energy(x)
    penalty = pyro_gebm.gradient_penalty(2.5)
    return {
        "decode": x,
        "energy": energies,
        "log_weight": gebm.log_weight(x),
        "latent log_prob": gebm.latent.log_prob(z),
        "latent gradient": torch.autograd.grad(gebm.latent.log_prob(z).sum(), z)[0],
        "prior log_prob": gebm.latent_prior.log_prob(z),
        "kale": pyro_gebm.divergences.kale(energies[:3], energies[3:], 0.3),
        "donsker_varadhan": pyro_gebm.divergences.donsker_varadhan(energies[:3], energies[3:]),
        "base_loss": pyro_gebm.divergences.base_loss(energies),
        "gradient penalty": penalty(gebm.energy, x.detach(), x.detach()),
        "witness": pyro_gebm.KALEGuide(gebm.energy, log_partition=0.3)(x),
        "tempered": gebm.temper(0.6).latent.log_prob(z),
    }


def test_a_saved_model_has_the_same_values_in_the_other_host(pair):
    ours, theirs = numpyro_values(pair[0], jnp.asarray(Z)), pyro_values(pair[1], torch.tensor(Z))
    assert ours.keys() == theirs.keys()
    for name in ours:
        np.testing.assert_allclose(ours[name], theirs[name].detach(), rtol=1e-10, atol=1e-10, err_msg=name)
    for name in ("inverse_temperature", "log_partition"):
        assert getattr(pair[0], name).item() == getattr(pair[1], name).item() == MODEL[name]
    assert pair[0].generator.config == pair[1].generator.config and pair[0].energy.config == pair[1].energy.config


@pytest.mark.parametrize("splitting", numpyro_dynamics.SPLITTINGS)
def test_a_step_without_friction_is_the_same(splitting, tmp_path):
    ours = numpyro_gebm_of("mlp")
    numpyro_gebm.save(ours, tmp_path / "gebm.npz")
    theirs = pyro_gebm.load(tmp_path / "gebm.npz")

    @jax.jit
    def our_steps(gebm, z, v):
        potential_and_grad = jax.vmap(jax.value_and_grad(lambda z: -gebm.latent.log_prob(z)))
        state = numpyro_dynamics.KineticState(z, v, z, *potential_and_grad(z))
        for i in range(3):
            before = state
            state = numpyro_dynamics.kinetic_step(jax.random.key(i), state, potential_and_grad, 0.2, 0.0, splitting)
        return state, numpyro_dynamics.energy_error(before, state, 0.2)

    def their_potential_and_grad(z):
        z = z.clone().requires_grad_(True)
        potential_energy = -theirs.latent.log_prob(z)
        return potential_energy.detach(), torch.autograd.grad(potential_energy.sum(), z)[0]

    z, v = torch.tensor(Z), torch.tensor(V).expand(len(Z), -1)
    state = pyro_dynamics.KineticState(z, v, z, *their_potential_and_grad(z))
    for _ in range(3):
        before = state
        state = pyro_dynamics.kinetic_step(state, their_potential_and_grad, 0.2, 0.0, splitting)
    expected, error = our_steps(ours, jnp.asarray(Z), jnp.asarray(np.broadcast_to(V, Z.shape)))
    assert not np.allclose(state.z, Z, atol=1e-2)
    for name in expected._fields:
        assert_same(getattr(expected, name), getattr(state, name))
    assert_same(error, pyro_dynamics.energy_error(before, state, 0.2))
    assert_same(numpyro_dynamics.kinetic_energy(expected.v), pyro_dynamics.kinetic_energy(state.v))


@pytest.mark.parametrize("mass", [False, True])
def test_the_warm_up_is_the_same(mass):
    """Both adapt to the same step size, length scale and mass on the same positions and acceptance probabilities."""
    rng = np.random.default_rng(0)
    draws = rng.normal(size=(130, 16, 3)) * np.array([1.0, 0.2, 3.0])
    potentials, accept_probs = rng.normal(size=(130, 16)), rng.uniform(0.5, 1.0, (130, 16))
    ours = numpyro_adaptation.init_adaptation(jnp.asarray(draws[0]), jnp.asarray(potentials[0]), 0.3, 50)
    theirs = pyro_adaptation.init_adaptation(torch.tensor(draws[0]), torch.tensor(potentials[0]), 0.3, 50)
    probes = rng.normal(size=(3, numpyro_adaptation.NUM_PROBES))
    ours = ours._replace(window=ours.window._replace(probes=jnp.asarray(probes)))
    theirs = theirs._replace(window=theirs.window._replace(probes=torch.tensor(probes)))
    update = jax.jit(numpyro_adaptation.adapt, static_argnames=("step_size", "mass"))
    for row in zip(draws, potentials, accept_probs):
        ours = update(ours, *map(jnp.asarray, row), 0.8, mass=mass)
        theirs = pyro_adaptation.adapt(theirs, *map(torch.tensor, row), 0.8, mass=mass)
    assert int(ours.window_end) == theirs.window_end == 238
    for name in ("step_size", "length_scale", "warmup_converged"):
        np.testing.assert_allclose(getattr(ours, name)[0], float(getattr(theirs, name)), rtol=1e-10)
    np.testing.assert_allclose(ours.scale, np.broadcast_to(theirs.scale, 3), rtol=1e-10)
    assert_same(ours.window.total_projected, theirs.window.total_projected)


def test_divergences_of_energies():
    ours, theirs = numpyro_gebm.divergences, pyro_gebm.divergences
    for name, arguments in {
        "kale": (E_DATA, E_BASE, 0.7),
        "donsker_varadhan": (E_DATA, E_BASE),
        "base_loss": (E_BASE,),
        "batch_log_partition": (1000.0 * E_BASE,),
    }.items():
        tensors = (torch.tensor(a) if isinstance(a, np.ndarray) else a for a in arguments)
        assert_same(getattr(ours, name)(*arguments), getattr(theirs, name)(*tensors))


@pytest.mark.parametrize("rows, bandwidth", [(10, None), (12, None), (12, 0.7)])  # the median of 435 or 496, given
def test_mmd2(rows, bandwidth):
    x, y = FEATURES[0], FEATURES[1][:rows]
    ours = jax.jit(lambda x, y: numpyro_gebm.divergences.mmd2(x, y, bandwidth))(x, y)
    assert_same(ours, pyro_gebm.divergences.mmd2(torch.tensor(x), torch.tensor(y), bandwidth))


@pytest.mark.parametrize("columns", [1, 3])
def test_frechet_distance(columns):
    x, y = (features[:, :columns] for features in FEATURES)
    ours = numpyro_gebm.metrics.frechet_distance(x, y)
    assert_same(ours, pyro_gebm.metrics.frechet_distance(torch.tensor(x), torch.tensor(y)))


@pytest.mark.parametrize("name", ["newton_step", "gradient_step"])
@pytest.mark.parametrize("estimate", [-40.0, -0.3, 0.2, 40.0])  # the far ones are clipped
def test_steps_of_the_log_partition(name, estimate):
    ours, theirs = getattr(numpyro_gebm.training.guide, name), getattr(pyro_gebm.training.guide, name)
    assert_same(ours(jnp.array(0.5), jnp.array(estimate), 0.1), theirs(torch.tensor(0.5), torch.tensor(estimate), 0.1))


@pytest.mark.parametrize("source", ["numpyro", "pyro"])
def test_a_float32_model_with_a_prior_of_python_floats_loads_in_the_other_host(source, tmp_path):
    torch.set_default_dtype(torch.float32)
    path, z = tmp_path / "gebm.npz", np.array([0.3, -0.2], dtype=np.float32)
    with jax.enable_x64(False):
        if source == "numpyro":
            prior = numpyro_dist.Normal(0.0, 1.0).expand([2]).to_event(1)
            generator = numpyro_gebm.nn.MLP((2,), (3,), (4,), rng_key=jax.random.key(0))
            energy = numpyro_gebm.nn.MLP((3,), (), (4,), rng_key=jax.random.key(1))
            ours = numpyro_gebm.GEBM(numpyro_gebm.Pushforward(prior, generator), energy)
            numpyro_gebm.save(ours, path)
            theirs = pyro_gebm.load(path)
        else:
            prior = pyro_dist.Normal(0.0, 1.0).expand([2]).to_event(1)
            base = pyro_gebm.Pushforward(prior, pyro_gebm.nn.MLP((2,), (3,), (4,)))
            theirs = pyro_gebm.GEBM(base, pyro_gebm.nn.MLP((3,), (), (4,)))
            pyro_gebm.save(theirs, path)
            ours = numpyro_gebm.load(path)
        values = ours.latent.log_prob(z), theirs.latent.log_prob(torch.tensor(z)).detach().numpy()
        assert [value.dtype for value in values] == [np.float32, np.float32]
        np.testing.assert_allclose(*values, rtol=1e-5)


def test_an_encoder_with_the_same_weights_has_the_same_values():
    theirs = pyro_gebm.nn.ConvEncoder(*ENCODER).double()
    ours = numpyro_gebm.nn.ConvEncoder(*ENCODER, rng_key=jax.random.key(0))
    assert ours.config == theirs.config
    arrays = {f"x.{name}": value.numpy() for name, value in theirs.state_dict().items()}
    description = {"class": "ConvEncoder", "config": theirs.config}
    ours = importlib.import_module("numpyro_gebm.io").network_of("file", description, "x", arrays)
    x = RANDOM.normal(size=(6, 2, 4, 4))
    assert_same(jax.vmap(ours)(jnp.asarray(x)), theirs(torch.tensor(x)))
    flat = x.reshape(6, -1)
    assert_same(jax.vmap(ours)(jnp.asarray(flat)), theirs(torch.tensor(flat)))


def test_a_shipped_model_is_the_same_in_both_hosts():
    ours, theirs = (package.load_pretrained("fashion_mnist") for package in (numpyro_gebm, pyro_gebm))
    z = np.random.default_rng(0).normal(size=(50, 32)).astype(np.float32)
    x, y = ours.decode(jnp.asarray(z)), theirs.decode(torch.tensor(z))
    np.testing.assert_allclose(x, y, atol=1e-5)
    np.testing.assert_allclose(ours.log_weight(x), theirs.log_weight(y).detach(), atol=1e-3)
    ours, theirs = (package.load_features("fashion_mnist") for package in (numpyro_gebm, pyro_gebm))
    np.testing.assert_array_equal(ours.reference, theirs.reference)
    np.testing.assert_allclose(jax.vmap(ours.network)(x), theirs.network(y), atol=1e-3)


#: Public names that one package has and the other lacks.
ONLY_NUMPYRO = {"": {"enable_compilation_cache"}, "infer": {"sharded"}, "nn": {"Applied"}, "training": {"KALEState"}}
ONLY_PYRO = {"infer": {"VectorizedMCMC"}}
#: Arguments that one host needs and the other does not: random keys, explicit states, Pyro's transforms.
NUMPYRO_ARGUMENTS = {
    "nn.MLP": {"rng_key"},
    "nn.ConvGenerator": {"rng_key"},
    "nn.ConvEnergy": {"rng_key"},
    "nn.ConvEncoder": {"rng_key"},
    "flows.AffineCoupling": {"rng_key"},
    "flows.real_nvp": {"rng_key"},
    "divergences.mmd_test": {"rng_key"},
    "divergences.kernels.random_features": {"rng_key"},
    "particle_flows.kale_flow": {"rng_key"},
    "particle_flows.mmd_flow": {"rng_key"},
    "GEBM.sample": {"key"},
    "GEBM.log_prob": {"intermediates"},
    "EnergyTiltedPrior.sample": {"key"},
    "EnergyTiltedPrior.log_prob": {"intermediates"},
    "Program": {"rng_key"},
    "Program.sample": {"key"},
    "Program.log_prob": {"intermediates"},
    "Pushforward.sample": {"key"},
    "Pushforward.log_prob": {"intermediates"},
    "KALE": {"mesh", "axis"},
    "training.KALE": {"mesh", "axis"},
    "KALE.run": {"rng_key", "init_state"},
    "KALE.evaluate": {"state"},
    "infer.AnnealedMALA": {"mesh", "axis"},
    "infer.SMC": {"mesh", "axis"},
    "infer.AnnealedMALA.__call__": {"rng_key"},
    "infer.stream_draws": {"rng_key", "init_params"},
    "dynamics.steps.kinetic_step": {"rng_key"},
    "dynamics.steps.overdamped_step": {"rng_key"},
    "dynamics.steps.refreshed": {"rng_key"},
    "dynamics.steps.trajectory": {"rng_key"},
    "infer.ladder.pilot.pilot": {"rng_key"},
    "infer.ladder.tempering.move": {"rng_key"},
    "infer.SMC.__call__": {"rng_key"},
    "infer.SMC.run": {"rng_key"},
    "log_partition": {"rng_key"},
    "log_partition_curve": {"rng_key"},
    "normalized": {"rng_key"},
    "training.guide.settle_log_partition": {"rng_key"},
    "training.guide.weight_sums": {"rng_key"},
    "training.kale_between": {"rng_key"},
    "metrics.frechet_ratio": {"rng_key"},
    "infer.ShortRun.run": {"rng_key"},
    "infer.ShortRun.__call__": {"rng_key"},
    "KALE.refine": {"rng_key"},
    "resample": {"rng_key"},
    "tilt": {"self"},  # a class there, a function in Pyro, as the handlers of the hosts are
    "kale_test": {"rng_key"},
    "training.kale_test": {"rng_key"},
    "training.two_samples.shuffled_parts": {"rng_key"},
    "training.two_samples.trained_energy": {"rng_key"},
}
PYRO_ARGUMENTS = {
    "KALE": {"process_group"},
    "training.KALE": {"process_group"},
    "decode_to_zarr": {"process_group"},
    "infer.adaptation.adapt": {"processes"},
    "infer.adaptation.init_adaptation": {"processes"},
    "infer.adaptation.start_window": {"processes"},
} | {
    f"infer.{name}": {"transforms"}
    for name in ("Ex2MCMC", "GHMC", "KineticLangevin", "LangevinKernel", "MALA", "MALT", "ULA")
}
#: Methods that twins have in common, beyond their constructors.
METHODS = [
    *(f"GEBM.{name}" for name in ("decode", "log_prob", "sample", "temper", "log_weight")),
    *(
        f"{name}.{method}"
        for name in ("EnergyTiltedPrior", "Program", "Pushforward")
        for method in ("log_prob", "sample")
    ),
    *("DrawFile.append", "DrawFile.create", "DrawFile.open"),
    *("DrawStore.append", "DrawStore.create", "DrawStore.open"),
    *(
        f"divergences.{name}"
        for name in ("FDivergence.bound", "kernels.Gaussian.fit", "kernels.RandomFeatures.features")
    ),
    *("KALE.evaluate", "KALE.refine", "KALE.run", "KALEGuide.__call__", "infer.AnnealedMALA.__call__"),
    *("LogPartitionCurve.__init__", "Program.constrain", "infer.SMC.__call__", "infer.SMC.run"),
    *("infer.ShortRun.__call__", "infer.ShortRun.run"),
]
#: Functions that are not in an `__all__` of a package but that its files share.
SHARED = [
    *(f"training.guide.{name}" for name in ("newton_step", "gradient_step", "settle_log_partition", "weight_sums")),
    *(f"dynamics.steps.{name}" for name in pyro_dynamics.__all__ if name.islower()),
    *(f"infer.adaptation.{name}" for name in pyro_adaptation.__all__ if name.islower()),
    *(
        "infer.ladder.pilot.pilot",
        "infer.ladder.tempering.Ladder",
        *(f"infer.ladder.tempering.{name}" for name in ("length_scale_of", "move", "next_rung")),
    ),
]
LEVELS = ["", "divergences", "divergences.kernels", "flows", "infer", "metrics", "nn", "particle_flows", "training"]


def attribute(package, path):
    value = package
    for name in filter(None, path.split(".")):
        has = hasattr(value, name) or not inspect.ismodule(value)
        value = getattr(value, name) if has else importlib.import_module(f"{value.__name__}.{name}")
    return value


def public_callables():
    for level in LEVELS:
        for name in sorted(set(attribute(numpyro_gebm, level).__all__) & set(attribute(pyro_gebm, level).__all__)):
            path = f"{level}.{name}".lstrip(".")
            if callable(attribute(numpyro_gebm, path)):
                yield path


def arguments(package, path, left_out):
    """Name, kind and default of every parameter; functions as defaults by their name and what they close over."""
    value = attribute(package, path)
    parameters = inspect.signature(value.__init__ if inspect.isclass(value) else value).parameters
    assert left_out <= parameters.keys()
    return [
        (name, p.kind, (p.default.__qualname__, inspect.getclosurevars(p.default).nonlocals))
        if inspect.isfunction(p.default)
        else (name, p.kind, p.default)
        for name, p in parameters.items()
        if name not in left_out
    ]


@pytest.mark.parametrize("level", LEVELS)
def test_public_names_are_the_same(level):
    ours, theirs = set(attribute(numpyro_gebm, level).__all__), set(attribute(pyro_gebm, level).__all__)
    assert ours - theirs == ONLY_NUMPYRO.get(level, set()) and theirs - ours == ONLY_PYRO.get(level, set())
    for package in (numpyro_gebm, pyro_gebm):
        names = attribute(package, level).__all__
        assert len(names) == len(set(names)) and all(hasattr(attribute(package, level), name) for name in names)


@pytest.mark.parametrize("path", [*public_callables(), *METHODS, *SHARED])
def test_twins_take_the_same_arguments(path):
    ours = arguments(numpyro_gebm, path, NUMPYRO_ARGUMENTS.get(path, set()))
    assert ours == arguments(pyro_gebm, path, PYRO_ARGUMENTS.get(path, set()))


def test_architectures_of_files_are_the_same():
    assert numpyro_gebm.nn.ARCHITECTURES.keys() == pyro_gebm.nn.ARCHITECTURES.keys()
