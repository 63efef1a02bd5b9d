"""Files: what was saved comes back, networks of `nn` by themselves and everything else through templates."""

import json

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import MCMC, NUTS
from pyro_cases import standard_normal

from pyro_gebm import GEBM, Pushforward, load, nn, save

NETWORKS = {
    "mlp": lambda: (nn.MLP((2,), (3,), (5, 4), "silu", "tanh"), nn.MLP((3,), (), (4,), "softplus")),
    "conv": lambda: (
        nn.ConvGenerator(2, (2, 4, 4), (4, 3), "leaky_relu", "sigmoid"),
        nn.ConvEnergy((2, 4, 4), (3, 2)),
    ),
}
PRIORS = {
    "normal": lambda: dist.Normal(torch.tensor([0.3, -1.0]), 2.0).to_event(1),
    "uniform": lambda: dist.Uniform(torch.tensor([-1.0, 0.5]), 3.0).to_event(1),
    "laplace": lambda: dist.Laplace(0.4, torch.tensor([0.5, 1.5])).to_event(1),
    "expanded": lambda: dist.Normal(torch.tensor(0.3), 2.0).expand([2]).to_event(1),
}


class Affine(torch.nn.Module):
    def __init__(self, scale):
        super().__init__()
        self.W = torch.nn.Parameter(scale * torch.arange(1.0, 7.0).reshape(3, 2))
        self.register_buffer("b", scale * torch.ones(3))
        self.register_buffer("order", torch.tensor([1, 0]))

    def forward(self, z):
        return z[:, self.order] @ self.W.T + self.b


class Quadratic(torch.nn.Module):
    def __init__(self, weight):
        super().__init__()
        self.weight = torch.nn.Parameter(weight)

    def forward(self, x):
        return (self.weight * x**2).sum(-1)


def dropped(size_in, size_out):
    return torch.nn.Sequential(
        torch.nn.Linear(size_in, 4), torch.nn.BatchNorm1d(4), torch.nn.Dropout(0.5), torch.nn.Linear(4, size_out)
    )


def flow():
    transforms = [dist.transforms.affine_coupling(2, [4]), dist.transforms.permute(2, torch.tensor([1, 0]))]
    return dist.TransformedDistribution(standard_normal(2), [*transforms, dist.transforms.affine_coupling(2, [4])])


def energy(x):
    return 0.1 * x.square().sum(-1)


def small_gebm(**kwargs):
    generator = nn.MLP((2,), (3,), (4,))
    return GEBM(Pushforward(standard_normal(2), generator), nn.MLP((3,), (), (4,)), **kwargs)


def round_trip(gebm, tmp_path, **templates):
    save(gebm, tmp_path / "gebm.npz")
    return load(tmp_path / "gebm.npz", **templates)


def assert_same(loaded, gebm):
    with torch.no_grad():
        z = gebm.latent_prior.sample((4,))
        for value in (lambda g: g.latent_prior.log_prob(z), lambda g: g.decode(z), lambda g: g.latent.log_prob(z)):
            torch.testing.assert_close(value(loaded), value(gebm), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("name", NETWORKS)
def test_networks_of_nn_need_no_template(name, tmp_path):
    generator, critic = NETWORKS[name]()
    gebm = GEBM(Pushforward(standard_normal(2), generator), critic, inverse_temperature=2.5, log_partition=0.7)
    loaded = round_trip(gebm, tmp_path)
    assert_same(loaded, gebm)
    for new, old in ((loaded.generator, generator), (loaded.energy, critic)):
        assert type(new) is type(old) and new.config == old.config and new is not old


@pytest.mark.parametrize("beta, log_partition", [(1.0, None), (0.0, 0.0), (1000.0, -3.3), ([0.5, 2.0], [0.1, 0.2])])
def test_beta_and_log_partition_are_kept(beta, log_partition, tmp_path):
    beta = torch.tensor(beta)
    log_partition = None if log_partition is None else torch.tensor(log_partition)
    loaded = round_trip(small_gebm(inverse_temperature=beta, log_partition=log_partition), tmp_path)
    torch.testing.assert_close(loaded.inverse_temperature, beta, rtol=0, atol=0)
    assert loaded.batch_shape == beta.shape
    if log_partition is None:
        assert loaded.log_partition is None
    else:
        torch.testing.assert_close(loaded.log_partition, log_partition, rtol=0, atol=0)


@pytest.mark.parametrize("name", PRIORS)
def test_latent_priors(name, tmp_path):
    generator, critic = NETWORKS["mlp"]()
    gebm = GEBM(Pushforward(PRIORS[name](), generator), critic)
    loaded = round_trip(gebm, tmp_path)
    assert_same(loaded, gebm)
    assert loaded.latent.event_shape == (2,) and loaded.latent.batch_shape == ()
    z = torch.tensor([[0.6, 0.6], [0.6, 0.4], [4.0, 0.6], [-2.0, 0.6]])
    assert torch.equal(loaded.latent.support.check(z), gebm.latent.support.check(z))


def test_scalar_latents(tmp_path):
    gebm = GEBM(Pushforward(dist.Laplace(0.4, 1.5), nn.MLP((), (3,), (4,))), NETWORKS["mlp"]()[1])
    loaded = round_trip(gebm, tmp_path)
    assert_same(loaded, gebm)
    assert loaded.latent.event_shape == ()


def test_another_prior_needs_a_template(tmp_path):
    generator, critic = NETWORKS["mlp"]()
    prior = dist.Exponential(torch.tensor([1.0, 2.0])).to_event(1)
    gebm = GEBM(Pushforward(prior, generator), critic)
    with pytest.raises(ValueError, match="pass `base=`"):
        round_trip(gebm, tmp_path)
    template = Pushforward(prior, nn.MLP((2,), (3,), (5, 4), "silu", "tanh"))
    assert_same(load(tmp_path / "gebm.npz", base=template), gebm)


def test_modules_of_the_user(tmp_path):
    gebm = GEBM(Pushforward(standard_normal(2), Affine(1.0)), Quadratic(torch.arange(3.0)), log_partition=0.2)
    template = Pushforward(standard_normal(2), Affine(0.0))
    loaded = round_trip(gebm, tmp_path, base=template, energy=Quadratic(torch.zeros(3)))
    assert_same(loaded, gebm)
    assert loaded.generator.order.dtype == torch.int64


def test_a_template_for_one_part_only(tmp_path):
    generator, critic = NETWORKS["mlp"]()
    gebm = GEBM(Pushforward(standard_normal(2), Affine(1.0)), critic)
    assert_same(round_trip(gebm, tmp_path, base=Pushforward(standard_normal(2), Affine(0.0))), gebm)
    gebm = GEBM(Pushforward(standard_normal(2), generator), Quadratic(torch.arange(3.0)))
    assert_same(round_trip(gebm, tmp_path, energy=Quadratic(torch.zeros(3))), gebm)


def test_a_flow_as_base(tmp_path):
    gebm = GEBM(flow(), energy, log_partition=0.4)
    gebm.base.rsample((3,))  # fills the transforms' caches
    loaded = round_trip(gebm, tmp_path, base=flow(), energy=energy)
    assert_same(loaded, gebm)
    wide = load(tmp_path / "gebm.npz", base=flow().expand([4]), energy=energy)
    with torch.no_grad():
        x = torch.randn(4, 2)
        torch.testing.assert_close(loaded.log_prob(x), gebm.log_prob(x), rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(wide.log_prob(x), gebm.log_prob(x), rtol=1e-12, atol=1e-12)


def test_a_plain_distribution_as_base(tmp_path):
    gebm = GEBM(dist.Exponential(torch.tensor(1.5)), nn.MLP((), (), (4,)))
    assert_same(round_trip(gebm, tmp_path, base=dist.Exponential(torch.tensor(1.5))), gebm)


def test_float32_stays_float32(tmp_path):
    generator, critic = (network.float() for network in NETWORKS["mlp"]())
    gebm = GEBM(Pushforward(standard_normal(2, torch.float32), generator), critic, log_partition=0.5)
    loaded = round_trip(gebm, tmp_path)
    z = loaded.latent.sample((2,))
    assert z.dtype == loaded.latent.log_prob(z).dtype == loaded.log_partition.dtype == torch.float32
    torch.testing.assert_close(loaded.latent.log_prob(z), gebm.latent.log_prob(z).detach(), rtol=0, atol=0)


def test_a_latent_prior_of_python_floats_is_written_in_the_dtype_of_its_draws(tmp_path):
    torch.set_default_dtype(torch.float32)
    prior = dist.Normal(0.0, 1.0).expand([2]).to_event(1)
    save(GEBM(Pushforward(prior, nn.MLP((2,), (3,), (4,))), nn.MLP((3,), (), (4,))), tmp_path / "gebm.npz")
    with np.load(tmp_path / "gebm.npz") as file:
        assert {file[key].dtype for key in file.files if key != "header"} == {np.dtype("float32")}


def test_float64_is_read_where_float32_is_the_default(tmp_path):
    gebm = small_gebm(log_partition=0.5)
    save(gebm, tmp_path / "gebm.npz")
    torch.set_default_dtype(torch.float32)
    loaded = load(tmp_path / "gebm.npz")
    assert loaded.latent.sample((2,)).dtype == loaded.log_partition.dtype == torch.float64
    assert_same(loaded, gebm)


@pytest.mark.parametrize("part", ["base", "energy"])
def test_modules_come_back_in_evaluation_mode(part, tmp_path):
    if part == "base":
        generator, template = dropped(2, 3), dropped(2, 3)
        generator(torch.randn(50, 2))  # moves the running statistics
        gebm = GEBM(Pushforward(standard_normal(2), generator.eval()), NETWORKS["mlp"]()[1])
        loaded = round_trip(gebm, tmp_path, base=Pushforward(standard_normal(2), template))
        module = loaded.generator
    else:
        critic, template = (torch.nn.Sequential(dropped(2, 1), torch.nn.Flatten(0)) for _ in range(2))
        critic(torch.randn(50, 2))
        gebm = GEBM(standard_normal(2), critic.eval())
        loaded = round_trip(gebm, tmp_path, base=standard_normal(2), energy=template)
        module = loaded.energy
    assert not any(m.training for m in module.modules())
    assert not any(p.requires_grad for p in module.parameters())
    assert_same(loaded, gebm)


def test_networks_of_nn_come_back_in_evaluation_mode(tmp_path):
    loaded = round_trip(small_gebm(), tmp_path)
    for network in (loaded.generator, loaded.energy):
        assert not any(m.training for m in network.modules())
        assert not any(p.requires_grad for p in network.parameters())


@pytest.mark.parametrize("name", ["gebm.npz", "gebm", "gebm.model"])
@pytest.mark.parametrize("kind", [str, lambda path: path], ids=["str", "path"])
def test_any_path(name, kind, tmp_path):
    path = kind(tmp_path / name)
    gebm = small_gebm()
    save(gebm, path)
    assert [file.name for file in tmp_path.iterdir()] == [name]
    assert_same(load(path), gebm)


def test_a_failed_save_leaves_the_old_file(tmp_path, monkeypatch):
    path, new = tmp_path / "gebm.npz", small_gebm()
    save(small_gebm(), path)
    before = path.read_bytes()

    def full_disk(file, **arrays):
        file.write(b"half a file")
        raise OSError("No space left on device")

    with monkeypatch.context() as patch, pytest.raises(OSError, match="No space left"):
        patch.setattr(np, "savez", full_disk)
        save(new, path)
    assert path.read_bytes() == before
    save(new, path)
    assert [file.name for file in tmp_path.iterdir()] == ["gebm.npz"]
    assert_same(load(path), new)


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
    mcmc = MCMC(NUTS(lambda: pyro.sample("z", gebm.latent)), 20, 10, disable_progbar=True)
    mcmc.run()
    draws = mcmc.get_samples()["z"]
    assert draws.shape == (20, 2) and torch.isfinite(draws).all()
    assert gebm.sample((5,)).shape == (5, 3)
