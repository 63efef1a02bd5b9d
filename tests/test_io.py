"""Files: what was saved comes back, networks of `nn` by themselves and everything else through templates."""

import functools
import json

import numpy as np
import pytest

from gebm import model_file


def networks(host, name):
    if name == "mlp":
        generator = host.call(host.nn.MLP, (2,), (3,), (5, 4), "silu", "tanh")
        return generator, host.call(host.nn.MLP, (3,), (), (4,), "softplus", seed=1)
    generator = host.call(host.nn.ConvGenerator, 2, (2, 4, 4), (4, 3), "leaky_relu", "sigmoid")
    return generator, host.call(host.nn.ConvEnergy, (2, 4, 4), (3, 2), seed=1)


def affine(host, scale):
    W, b = scale * np.arange(1.0, 7.0).reshape(3, 2), scale * np.ones(3)
    return host.network(lambda W, b, z: z @ W.T + b, W, b)


def quadratic(host, weight):
    return host.network(lambda weight, x: (weight * x**2).sum(-1), weight)


def small_gebm(host, seed=0, **kwargs):
    generator = host.call(host.nn.MLP, (2,), (3,), (4,), seed=seed)
    energy = host.call(host.nn.MLP, (3,), (), (4,), seed=seed + 1)
    prior = host.dist.Normal(0.0, 1.0).expand([2]).to_event(1)  # in the host's default precision
    return host.GEBM(host.Pushforward(prior, generator), energy, **kwargs)


def round_trip(host, gebm, folder, **templates):
    host.save(gebm, folder / "gebm.npz")
    return host.load(folder / "gebm.npz", **templates)


@functools.cache
def values(host):
    return host.jit(lambda gebm, z: (gebm.latent_prior.log_prob(z), gebm.decode(z), gebm.latent.log_prob(z)))


def assert_same(host, loaded, gebm):
    z = host.array(np.random.uniform(0.5, 0.9, (4, *gebm.latent.event_shape)))
    for new, old in zip(values(host)(loaded, z), values(host)(gebm, z), strict=True):
        np.testing.assert_allclose(host.numpy(new), host.numpy(old), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("name", ["mlp", "conv"])
def test_networks_of_nn_need_no_template(host, name, tmp_path):
    generator, energy = networks(host, name)
    gebm = host.GEBM(host.Pushforward(host.normal(2), generator), energy, inverse_temperature=2.5, log_partition=0.7)
    loaded = round_trip(host, gebm, tmp_path)
    assert_same(host, loaded, gebm)
    for new, old in ((loaded.generator, generator), (loaded.energy, energy)):
        assert type(new) is type(old) and new.config == old.config and new is not old
        assert host.name == "pyro" or host.jax.tree.structure(new) == host.jax.tree.structure(old)
        for weight, before in zip(host.parameters(new), host.parameters(old), strict=True):
            np.testing.assert_array_equal(weight, before)


@pytest.mark.parametrize("beta, log_partition", [(1.0, None), (0.0, 0.0), (1000.0, -3.3), ([0.5, 2.0], [0.1, 0.2])])
def test_beta_and_log_partition_are_kept(host, beta, log_partition, tmp_path):
    beta, log_partition = host.array(beta), None if log_partition is None else host.array(log_partition)
    gebm = small_gebm(host, inverse_temperature=beta, log_partition=log_partition)
    loaded = round_trip(host, gebm, tmp_path)
    np.testing.assert_array_equal(loaded.inverse_temperature, beta)
    assert loaded.batch_shape == beta.shape
    if log_partition is None:
        assert loaded.log_partition is None
    else:
        np.testing.assert_array_equal(loaded.log_partition, log_partition)


@pytest.mark.parametrize("name", ["normal", "uniform", "laplace", "expanded"])
def test_latent_priors(host, name, tmp_path):
    dist, array = host.dist, host.array
    prior = {
        "normal": lambda: dist.Normal(array([0.3, -1.0]), 2.0).to_event(1),
        "uniform": lambda: dist.Uniform(array([-1.0, 0.5]), 3.0).to_event(1),
        "laplace": lambda: dist.Laplace(0.4, array([0.5, 1.5])).to_event(1),
        "expanded": lambda: dist.Normal(array(0.3), 2.0).expand([2]).to_event(1),
    }[name]()
    generator, energy = networks(host, "mlp")
    gebm = host.GEBM(host.Pushforward(prior, generator), energy)
    loaded = round_trip(host, gebm, tmp_path)
    assert_same(host, loaded, gebm)
    assert loaded.latent.event_shape == (2,) and loaded.latent.batch_shape == ()
    z = array([[0.6, 0.6], [0.6, 0.4], [4.0, 0.6], [-2.0, 0.6]])
    inside = (lambda d: d.support(z)) if host.name == "numpyro" else (lambda d: d.support.check(z))
    np.testing.assert_array_equal(inside(loaded.latent), inside(gebm.latent))


def test_scalar_latents(host, tmp_path):
    generator = host.call(host.nn.MLP, (), (3,), (4,))
    gebm = host.GEBM(host.Pushforward(host.dist.Laplace(0.4, 1.5), generator), networks(host, "mlp")[1])
    loaded = round_trip(host, gebm, tmp_path)
    assert_same(host, loaded, gebm)
    assert loaded.latent.event_shape == ()


def test_another_prior_needs_a_template(host, tmp_path):
    generator, energy = networks(host, "mlp")
    prior = host.dist.Exponential(host.array([1.0, 2.0])).to_event(1)
    gebm = host.GEBM(host.Pushforward(prior, generator), energy)
    with pytest.raises(ValueError, match="pass `base=`"):
        round_trip(host, gebm, tmp_path)
    blank = host.call(host.nn.MLP, (2,), (3,), (5, 4), "silu", "tanh", seed=7)
    assert_same(host, host.load(tmp_path / "gebm.npz", base=host.Pushforward(prior, blank)), gebm)


def test_a_template_for_one_part_or_both(host, tmp_path):
    (generator, energy), weight = networks(host, "mlp"), np.arange(3.0)
    user, blank = (host.Pushforward(host.normal(2), affine(host, scale)) for scale in (1.0, 0.0))
    gebm = host.GEBM(user, energy)
    assert_same(host, round_trip(host, gebm, tmp_path, base=blank), gebm)
    gebm = host.GEBM(host.Pushforward(host.normal(2), generator), quadratic(host, weight))
    assert_same(host, round_trip(host, gebm, tmp_path, energy=quadratic(host, np.zeros(3))), gebm)
    blank = host.Pushforward(host.normal(2), affine(host, 0.0))
    gebm = host.GEBM(user, quadratic(host, weight), log_partition=0.2)
    assert_same(host, round_trip(host, gebm, tmp_path, base=blank, energy=quadratic(host, np.zeros(3))), gebm)


def flow(host, kind, scale):
    if kind == "real_nvp":
        return host.random_flow(2, scale=scale)
    transforms = host.dist.transforms
    if host.name == "numpyro":
        L = host.array(np.eye(2) + scale * np.array([[0.0, 0.0], [0.3, 0.5]]))
        affine = transforms.AffineTransform(host.array([scale, -scale]), host.array([1 + scale, 1.5]))
        parts = [affine, transforms.LowerCholeskyAffine(host.array([scale, scale]), L)]
    else:
        coupling = [host.call(transforms.affine_coupling, 2, [4], seed=int(10 * scale) + i) for i in (0, 1)]
        parts = [coupling[0], transforms.permute(2, host.array([1, 0])), coupling[1]]
    return host.dist.TransformedDistribution(host.normal(2), parts)


@pytest.mark.parametrize("kind", ["real_nvp", "of the host"])
def test_a_flow_as_base(host, kind, tmp_path):
    energy = lambda x: 0.1 * (x**2).sum(-1)  # noqa: E731
    gebm = host.GEBM(flow(host, kind, 0.3), energy, log_partition=0.4)
    host.sample(gebm.base, (3,))  # fills the caches of Pyro's transforms
    loaded = round_trip(host, gebm, tmp_path, base=flow(host, kind, 0.0), energy=energy)
    assert_same(host, loaded, gebm)
    x = host.array(np.random.normal(size=(4, 2)))
    wide = host.load(tmp_path / "gebm.npz", base=flow(host, kind, 0.0).expand([4]), energy=energy)
    for model in (loaded, wide):
        np.testing.assert_allclose(*(host.numpy(g.log_prob(x)) for g in (model, gebm)), rtol=1e-12, atol=1e-12)


def test_a_plain_distribution_as_base(host, tmp_path):
    base = host.dist.Exponential(host.array(1.5))
    gebm = host.GEBM(base, host.call(host.nn.MLP, (), (), (4,)))
    assert_same(host, round_trip(host, gebm, tmp_path, base=base), gebm)


def dtypes(host, gebm):
    return {weight.dtype for network in (gebm.generator, gebm.energy) for weight in host.parameters(network)}


def test_float32_stays_float32(host, tmp_path):
    with host.float32():
        gebm = small_gebm(host, inverse_temperature=2.0, log_partition=0.5)
        loaded = round_trip(host, gebm, tmp_path)
        z = host.array(np.array([[0.3, -0.2], [1.0, 2.0]], np.float32))
        for new, old in zip(values(host)(loaded, z), values(host)(gebm, z), strict=True):
            assert host.numpy(new).dtype == host.numpy(loaded.log_partition).dtype == np.float32
            np.testing.assert_array_equal(host.numpy(new), host.numpy(old))
    assert dtypes(host, host.load(tmp_path / "gebm.npz")) == {np.dtype("float32")}
    with np.load(tmp_path / "gebm.npz") as file:  # the parameters of the prior among them, Python's floats
        assert {file[key].dtype for key in file.files if key != "header"} == {np.dtype("float32")}


def test_float64_is_read_where_float32_is_the_default(host, tmp_path):
    """PyTorch keeps it; JAX has float32 only."""
    gebm, z = small_gebm(host, log_partition=0.5), np.array([0.3, -0.2])
    expected, kept = host.numpy(gebm.latent.log_prob(host.array(z))), host.name == "pyro"
    host.save(gebm, tmp_path / "gebm.npz")
    with host.float32():
        loaded = host.load(tmp_path / "gebm.npz")
        value = host.numpy(loaded.latent.log_prob(host.array(z)))
        draw = host.numpy(host.sample(loaded.latent, (2,)))
        assert draw.dtype == value.dtype == host.numpy(loaded.log_partition).dtype == (float if kept else np.float32)
    np.testing.assert_allclose(value, expected, rtol=1e-12 if kept else 1e-5)


def test_the_file_is_plain_arrays_and_json(host, tmp_path):
    host.save(small_gebm(host, log_partition=0.5), tmp_path / "gebm.npz")
    with np.load(tmp_path / "gebm.npz", allow_pickle=False) as file:
        arrays = {key: file[key] for key in file.files}
    header = json.loads(str(arrays.pop("header")))
    layers = [f"{part}.layers.{i}.{name}" for part in ("base", "energy") for i in (0, 1) for name in ("bias", "weight")]
    assert sorted(arrays) == header["keys"] == sorted([*layers, "latent_prior.loc", "latent_prior.scale"])
    assert header["format_version"] == 1 and header["log_partition"] == 0.5 and len(header["sha256"]) == 64


def test_a_failed_save_leaves_the_old_file(host, tmp_path, monkeypatch):
    path, new = tmp_path / "gebm.npz", small_gebm(host, 1)
    host.save(small_gebm(host, 0), path)
    before = path.read_bytes()

    def full_disk(file, **arrays):
        file.write(b"half a file")
        raise OSError("No space left on device")

    with monkeypatch.context() as patch, pytest.raises(OSError, match="No space left"):
        patch.setattr(np, "savez", full_disk)
        host.save(new, path)
    assert path.read_bytes() == before
    host.save(new, str(path))
    assert [file.name for file in tmp_path.iterdir()] == ["gebm.npz"]
    assert_same(host, host.load(str(path)), new)


def test_a_loaded_model_can_be_sampled(host, tmp_path):
    gebm = round_trip(host, small_gebm(host, inverse_temperature=2.0), tmp_path)
    draws = host.run(host.ppl.infer.NUTS(lambda: host.ppl.sample("z", gebm.latent)), 10, 20)["z"]
    assert draws.shape == (1, 20, 2) and np.isfinite(draws).all()
    assert host.sample(gebm, (5,)).shape == (5, 3)


HOSTILE = {
    "wide": lambda header: header["energy"]["config"].update(hidden=[10**9]),
    "too wide": lambda header: header["energy"]["config"].update(hidden=[2**62]),
    "deep": lambda header: header["energy"]["config"].update(hidden=[2] * 10**5),
    "text": lambda header: header["energy"]["config"].update(hidden="many"),
    "unknown setting": lambda header: header["generator"]["config"].update(colour=1),
    "no settings": lambda header: header["generator"].update(config=None),
    "no class": lambda header: header["energy"].pop("class"),
    "other class": lambda header: header["energy"].update({"class": ["MLP"]}),
    "no prior": lambda header: header["latent_prior"].pop("class"),
    "list": lambda header: header.update(energy=[1, 2]),
    "beta": lambda header: header.update(inverse_temperature={"a": 1}),
    "A": lambda header: header.update(log_partition=["x"]),
    "missing": lambda header: header.pop("energy"),
}


def test_hostile_headers_are_value_errors(host, tmp_path):
    """Of a right checksum; whatever they ask for, nothing of that size is made."""
    resource, path = pytest.importorskip("resource"), tmp_path / "gebm.npz"
    host.save(small_gebm(host), path)
    with np.load(path) as file:
        arrays = {name: file[name] for name in file.files}
    original = str(arrays.pop("header"))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for name, change in HOSTILE.items():
        header = json.loads(original)
        change(header)
        header["sha256"] = model_file._digest(header, arrays)
        with open(path, "wb") as file:
            np.savez(file, header=np.array(json.dumps(header)), **arrays)
        with pytest.raises(ValueError, match="gebm.npz (has a malformed header|does not fit)|Expected") as caught:
            host.load(path)
        assert "gebm.npz" in str(caught.value) or name in ("text", "wide"), name
    assert (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024 < 200  # MB
