"""Files: what was saved comes back, networks of `nn` by themselves and everything else through templates."""

import json

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from numpyro.infer import MCMC, NUTS
from numpyro_cases import standard_normal

from numpyro_gebm import GEBM, Pushforward, load, nn, save

NETWORKS = {
    "mlp": lambda: (
        nn.MLP((2,), (3,), (5, 4), "silu", "tanh", rng_key=jax.random.key(0)),
        nn.MLP((3,), (), (4,), "softplus", rng_key=jax.random.key(1)),
    ),
    "conv": lambda: (
        nn.ConvGenerator(2, (2, 4, 4), (4, 3), "leaky_relu", "sigmoid", rng_key=jax.random.key(0)),
        nn.ConvEnergy((2, 4, 4), (3, 2), rng_key=jax.random.key(1)),
    ),
}
PRIORS = {
    "normal": lambda: dist.Normal(jnp.array([0.3, -1.0]), 2.0).to_event(1),
    "uniform": lambda: dist.Uniform(jnp.array([-1.0, 0.5]), 3.0).to_event(1),
    "laplace": lambda: dist.Laplace(0.4, jnp.array([0.5, 1.5])).to_event(1),
    "expanded": lambda: dist.Normal(0.3, 2.0).expand([2]).to_event(1),
}


class Affine(eqx.Module):
    parameters: dict
    order: jax.Array

    def __call__(self, z):
        return self.parameters["W"] @ z[self.order] + self.parameters["b"]


class Quadratic(eqx.Module):
    weight: jax.Array
    power: int = 2

    def __call__(self, x):
        return jnp.sum(self.weight * x**self.power)


class Dropped(eqx.Module):
    linear: eqx.nn.Linear
    dropout: eqx.nn.Dropout

    def __init__(self, size_in, size_out, seed):
        self.linear = eqx.nn.Linear(size_in, size_out, key=jax.random.key(seed))
        self.dropout = eqx.nn.Dropout(0.5, inference=True)

    def __call__(self, x):
        return self.dropout(self.linear(x))


def affine(scale):
    return Affine({"W": scale * jnp.arange(1.0, 7.0).reshape(3, 2), "b": scale * jnp.ones(3)}, jnp.array([1, 0]))


def flow(scale):
    transforms = [
        dist.transforms.AffineTransform(scale * jnp.array([1.0, -2.0]), 1.0 + scale * jnp.array([2.0, 0.5])),
        dist.transforms.LowerCholeskyAffine(scale * jnp.ones(2), jnp.eye(2) + scale * jnp.array([[0, 0], [0.3, 0.5]])),
    ]
    return dist.TransformedDistribution(standard_normal(2), transforms)


def energy(x):
    return 0.1 * jnp.sum(x**2)


def small_gebm(seed=0, **kwargs):
    generator = nn.MLP((2,), (3,), (4,), rng_key=jax.random.key(seed))
    return GEBM(
        Pushforward(standard_normal(2), generator), nn.MLP((3,), (), (4,), rng_key=jax.random.key(seed)), **kwargs
    )


def round_trip(gebm, tmp_path, **templates):
    save(gebm, tmp_path / "gebm.npz")
    return load(tmp_path / "gebm.npz", **templates)


@jax.jit
def values(gebm, z):
    return gebm.latent_prior.log_prob(z), gebm.decode(z), gebm.latent.log_prob(z)


def assert_same(loaded, gebm):
    z = np.random.uniform(0.5, 0.9, (4, *gebm.latent.event_shape))
    for new, old in zip(values(loaded, z), values(gebm, z), strict=True):
        np.testing.assert_allclose(new, old, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("name", NETWORKS)
def test_networks_of_nn_need_no_template(name, tmp_path):
    generator, critic = NETWORKS[name]()
    gebm = GEBM(Pushforward(standard_normal(2), generator), critic, inverse_temperature=2.5, log_partition=0.7)
    loaded = round_trip(gebm, tmp_path)
    assert_same(loaded, gebm)
    for new, old in ((loaded.generator, generator), (loaded.energy, critic)):
        assert type(new) is type(old) and new.config == old.config
        assert jax.tree.structure(new) == jax.tree.structure(old)


@pytest.mark.parametrize("beta, log_partition", [(1.0, None), (0.0, 0.0), (1000.0, -3.3), ([0.5, 2.0], [0.1, 0.2])])
def test_beta_and_log_partition_are_kept(beta, log_partition, tmp_path):
    beta = jnp.array(beta)
    log_partition = None if log_partition is None else jnp.array(log_partition)
    loaded = round_trip(small_gebm(inverse_temperature=beta, log_partition=log_partition), tmp_path)
    np.testing.assert_array_equal(loaded.inverse_temperature, beta)
    assert loaded.batch_shape == beta.shape
    if log_partition is None:
        assert loaded.log_partition is None
    else:
        np.testing.assert_array_equal(loaded.log_partition, log_partition)


@pytest.mark.parametrize("name", PRIORS)
def test_latent_priors(name, tmp_path):
    generator, critic = NETWORKS["mlp"]()
    gebm = GEBM(Pushforward(PRIORS[name](), generator), critic)
    loaded = round_trip(gebm, tmp_path)
    assert_same(loaded, gebm)
    assert loaded.latent.event_shape == (2,) and loaded.latent.batch_shape == ()
    z = np.array([[0.6, 0.6], [0.6, 0.4], [4.0, 0.6], [-2.0, 0.6]])
    np.testing.assert_array_equal(loaded.latent.support(z), gebm.latent.support(z))


def test_scalar_latents(tmp_path):
    generator = nn.MLP((), (3,), (4,), rng_key=jax.random.key(0))
    gebm = GEBM(Pushforward(dist.Laplace(0.4, 1.5), generator), NETWORKS["mlp"]()[1])
    loaded = round_trip(gebm, tmp_path)
    assert_same(loaded, gebm)
    assert loaded.latent.event_shape == ()


def test_another_prior_needs_a_template(tmp_path):
    generator, critic = NETWORKS["mlp"]()
    prior = dist.Exponential(jnp.array([1.0, 2.0])).to_event(1)
    gebm = GEBM(Pushforward(prior, generator), critic)
    with pytest.raises(ValueError, match="pass `base=`"):
        round_trip(gebm, tmp_path)
    template = Pushforward(prior, nn.MLP((2,), (3,), (5, 4), "silu", "tanh", rng_key=jax.random.key(7)))
    assert_same(load(tmp_path / "gebm.npz", base=template), gebm)


def test_modules_of_the_user(tmp_path):
    gebm = GEBM(Pushforward(standard_normal(2), affine(1.0)), Quadratic(jnp.arange(3.0)), log_partition=0.2)
    template = Pushforward(standard_normal(2), affine(0.0))
    loaded = round_trip(gebm, tmp_path, base=template, energy=Quadratic(jnp.zeros(3)))
    assert_same(loaded, gebm)
    assert loaded.generator.order.dtype == jnp.array([1, 0]).dtype
    np.testing.assert_array_equal(template.generator.parameters["b"], 0.0)


def test_a_template_for_one_part_only(tmp_path):
    generator, critic = NETWORKS["mlp"]()
    gebm = GEBM(Pushforward(standard_normal(2), affine(1.0)), critic)
    assert_same(round_trip(gebm, tmp_path, base=Pushforward(standard_normal(2), affine(0.0))), gebm)
    gebm = GEBM(Pushforward(standard_normal(2), generator), Quadratic(jnp.arange(3.0)))
    assert_same(round_trip(gebm, tmp_path, energy=Quadratic(jnp.zeros(3))), gebm)


def test_numpy_arrays_are_arrays(tmp_path):
    gebm = GEBM(standard_normal(2), Quadratic(np.array([1.0, 2.0])))
    assert_same(round_trip(gebm, tmp_path, base=standard_normal(2), energy=Quadratic(np.zeros(2))), gebm)


def test_a_flow_as_base(tmp_path):
    gebm = GEBM(flow(1.0), energy, log_partition=0.4)
    loaded = round_trip(gebm, tmp_path, base=flow(0.0), energy=energy)
    assert_same(loaded, gebm)
    x = np.random.normal(size=(4, 2))
    np.testing.assert_allclose(loaded.log_prob(x), gebm.log_prob(x), rtol=1e-12)
    wide = load(tmp_path / "gebm.npz", base=flow(0.0).expand([4]), energy=energy)
    np.testing.assert_allclose(wide.log_prob(x), gebm.log_prob(x), rtol=1e-12)


def test_a_plain_distribution_as_base(tmp_path):
    gebm = GEBM(dist.Exponential(1.5), nn.MLP((), (), (4,), rng_key=jax.random.key(0)))
    assert_same(round_trip(gebm, tmp_path, base=dist.Exponential(1.5)), gebm)


def test_float32_stays_float32(tmp_path):
    path = tmp_path / "gebm.npz"
    with jax.enable_x64(False):
        gebm = small_gebm(inverse_temperature=2.0, log_partition=0.5)
        loaded = round_trip(gebm, tmp_path)
        z = jnp.array([[0.3, -0.2], [1.0, 2.0]])
        for new, old in zip(values(loaded, z), values(gebm, z), strict=True):
            assert new.dtype == loaded.log_partition.dtype == jnp.float32
            np.testing.assert_array_equal(new, old)
    loaded = load(path)
    assert {leaf.dtype for leaf in jax.tree.leaves((loaded.generator, loaded.energy))} == {jnp.dtype("float32")}


def test_a_latent_prior_of_python_floats_is_written_in_the_dtype_of_its_draws(tmp_path):
    with jax.enable_x64(False):
        prior = dist.Normal(0.0, 1.0).expand([2]).to_event(1)
        networks = [nn.MLP(*shapes, (4,), rng_key=jax.random.key(0)) for shapes in (((2,), (3,)), ((3,), ()))]
        save(GEBM(Pushforward(prior, networks[0]), networks[1]), tmp_path / "gebm.npz")
    with np.load(tmp_path / "gebm.npz") as file:
        assert {file[key].dtype for key in file.files if key != "header"} == {np.dtype("float32")}


def test_float64_is_read_where_only_float32_is_enabled(tmp_path):
    gebm, z = small_gebm(), np.array([0.3, -0.2])
    save(gebm, tmp_path / "gebm.npz")
    with jax.enable_x64(False):
        value = values(load(tmp_path / "gebm.npz"), jnp.asarray(z))[-1]
        assert value.dtype == jnp.float32
    np.testing.assert_allclose(value, values(gebm, z)[-1], rtol=1e-5)


@pytest.mark.parametrize("part", ["base", "energy"])
def test_modules_come_back_in_evaluation_mode(part, tmp_path):
    if part == "base":
        generator = Dropped(2, 3, seed=0)
        gebm = GEBM(Pushforward(standard_normal(2), generator), NETWORKS["mlp"]()[1])
        template = Pushforward(standard_normal(2), Dropped(2, 3, seed=1))
        loaded = round_trip(gebm, tmp_path, base=template)
        module = loaded.generator
    else:
        gebm = GEBM(standard_normal(2), Dropped(2, "scalar", seed=0))
        template = eqx.nn.inference_mode(Dropped(2, "scalar", seed=1), value=False)
        loaded = round_trip(gebm, tmp_path, base=standard_normal(2), energy=template)
        module = loaded.energy
    assert module.dropout.inference is True
    assert_same(loaded, gebm)


@pytest.mark.parametrize("name", ["gebm.npz", "gebm", "gebm.model"])
@pytest.mark.parametrize("kind", [str, lambda path: path], ids=["str", "path"])
def test_any_path(name, kind, tmp_path):
    path = kind(tmp_path / name)
    gebm = small_gebm()
    save(gebm, path)
    assert [file.name for file in tmp_path.iterdir()] == [name]
    assert_same(load(path), gebm)


def test_a_failed_save_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "gebm.npz"
    save(small_gebm(0), path)
    before = path.read_bytes()

    def full_disk(file, **arrays):
        file.write(b"half a file")
        raise OSError("No space left on device")

    with monkeypatch.context() as patch, pytest.raises(OSError, match="No space left"):
        patch.setattr(np, "savez", full_disk)
        save(small_gebm(1), path)
    assert path.read_bytes() == before
    save(small_gebm(1), path)
    assert [file.name for file in tmp_path.iterdir()] == ["gebm.npz"]
    assert_same(load(path), small_gebm(1))


def test_the_file_is_plain_arrays_and_json(tmp_path):
    save(small_gebm(log_partition=0.5), tmp_path / "gebm.npz")
    with np.load(tmp_path / "gebm.npz", allow_pickle=False) as file:
        arrays = {key: file[key] for key in file.files}
    header = json.loads(str(arrays.pop("header")))
    layers = [f"{part}.layers.{i}.{name}" for part in ("base", "energy") for i in (0, 1) for name in ("bias", "weight")]
    assert sorted(arrays) == header["keys"] == sorted([*layers, "latent_prior.loc", "latent_prior.scale"])
    assert header["format_version"] == 1 and header["log_partition"] == 0.5 and len(header["sha256"]) == 64


def test_a_loaded_model_can_be_sampled(tmp_path):
    gebm = round_trip(small_gebm(inverse_temperature=2.0), tmp_path)
    mcmc = MCMC(NUTS(lambda: numpyro.sample("z", gebm.latent)), num_warmup=10, num_samples=20, progress_bar=False)
    mcmc.run(jax.random.key(0))
    draws = mcmc.get_samples()["z"]
    assert draws.shape == (20, 2) and bool(jnp.isfinite(draws).all())
