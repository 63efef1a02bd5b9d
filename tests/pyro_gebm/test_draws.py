"""Stored latents to draws of the model, lazily."""

import numpy as np
import pyro.distributions as dist
import pytest
import torch
from pyro_cases import CASE, linear_gaussian_gebm, standard_normal

from pyro_gebm import GEBM, Pushforward, decode, nn


@pytest.fixture
def model():
    return linear_gaussian_gebm(1.5)


def storages(z, folder):
    """The same latents in everything that `decode` takes."""
    h5py, xarray = pytest.importorskip("h5py"), pytest.importorskip("xarray")
    h5netcdf = pytest.importorskip("h5netcdf")
    dims = [f"axis{i}" for i in range(z.ndim)]
    xarray.Dataset({"z": (dims, z)}).to_netcdf(folder / "z.nc", engine="h5netcdf")
    yield "numpy", z
    yield "strided", np.repeat(z, 2, axis=0)[::2]
    yield "host", torch.tensor(z, requires_grad=True)
    yield "xarray", xarray.DataArray(z, dims=dims)
    with h5py.File(folder / "z.nc", "r") as file:
        yield "h5py", file["z"]
    with h5netcdf.File(folder / "z.nc", "r") as file:
        yield "h5netcdf", file["z"]
    with xarray.open_dataset(folder / "z.nc", engine="h5netcdf") as dataset:
        yield "lazy xarray", dataset["z"]


@pytest.mark.parametrize("shape", [(3, 7), (21,), (2, 3, 4), (), (5, 1), (0,), (2, 0)])
@pytest.mark.parametrize("batch_size", [1, 4, 7, 1000])
def test_batches_put_together_are_all_draws(model, shape, batch_size):
    z = np.random.normal(size=(*shape, 2))
    batches = [np.asarray(x) for x in decode(model, z, batch_size)]
    count = int(np.prod(shape))
    assert [len(x) for x in batches] == [min(batch_size, count - i) for i in range(0, count, batch_size)]
    expected = z.reshape(-1, 2) @ CASE.W.T + CASE.b
    np.testing.assert_allclose(np.concatenate([np.empty((0, 3)), *batches]), expected, rtol=1e-12)


def test_latents_can_be_stored_in_anything(model, tmp_path):
    z = np.random.normal(size=(3, 7, 2))
    expected = z.reshape(-1, 2) @ CASE.W.T + CASE.b
    names = []
    for name, stored in storages(z, tmp_path):
        names.append(name)
        found = np.concatenate([np.asarray(x) for x in decode(model, stored, 4)])
        np.testing.assert_allclose(found, expected, rtol=1e-12, err_msg=name)
    assert len(names) == 7


class Recorder:
    """Latents that note which of their rows are read."""

    def __init__(self, z):
        self.z, self.shape, self.dtype, self.rows = z, z.shape, z.dtype, 0

    def __getitem__(self, index):
        self.rows += self.z[index].size // 2
        return self.z[index]


def test_rows_are_read_when_they_are_needed(model):
    z = Recorder(np.random.normal(size=(4, 250, 2)))
    batches = decode(model, z, 100)
    assert z.rows == 0
    for read in (100, 200, 300):
        next(batches)
        assert z.rows == read


def test_latents_that_are_scalars_or_matrices():
    scalar = GEBM(Pushforward(dist.Normal(0.0, 1.0), lambda z: z[:, None] * torch.ones(3)), lambda x: x.sum(-1))
    assert [tuple(x.shape) for x in decode(scalar, np.zeros((2, 4)), 5)] == [(5, 3), (3, 3)]
    assert [tuple(x.shape) for x in decode(scalar, np.zeros(()))] == [(1, 3)]
    matrix = GEBM(dist.Normal(0.0, 1.0).expand([2, 3]).to_event(2), lambda x: x.sum((-1, -2)))
    z = np.random.normal(size=(2, 4, 2, 3))
    np.testing.assert_array_equal(torch.cat(list(decode(matrix, z, 3))), z.reshape(8, 2, 3))


@pytest.mark.parametrize(
    "z, batch_size, error, message",
    [
        (np.zeros((5, 3)), 10, ValueError, r"Expected latents of shape \(..., 2\); got \(5, 3\)"),
        (np.zeros(()), 10, ValueError, r"Expected latents of shape \(..., 2\); got \(\)"),
        (np.zeros((5, 2)), 0, ValueError, "Expected batch_size >= 1; got 0"),
        (np.zeros((5, 2)), 2.0, TypeError, r"Expected batch_size to be an integer >= 1; got 2.0 \(float\)"),
        (np.zeros((5, 2)), True, TypeError, r"Expected batch_size to be an integer >= 1; got True \(bool\)"),
        ({"z": np.zeros((5, 2))}, 10, TypeError, r'such as `data\["posterior"\]\["z"\]`; got dict'),
    ],
)
def test_what_does_not_fit_is_refused_at_the_call(model, z, batch_size, error, message):
    with pytest.raises(error, match=message):
        decode(model, z, batch_size)


def test_without_gradient_in_the_dtype_of_the_model():
    network = nn.MLP((2,), (3,)).to(torch.float32)
    gebm = GEBM(Pushforward(standard_normal(2, torch.float32), network), lambda x: x.sum(-1))
    for x in decode(gebm, np.zeros((5, 2)), 2):
        assert x.dtype == torch.float32 and not x.requires_grad and x.device == network.layers[0].weight.device
        assert torch.is_grad_enabled()  # between batches the caller's code runs as it did


def test_random_numbers_are_left_alone(model):
    state = torch.get_rng_state()
    list(decode(model, np.zeros((5, 2))))
    assert torch.equal(torch.get_rng_state(), state)
