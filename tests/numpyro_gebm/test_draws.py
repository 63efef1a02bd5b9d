"""Stored latents to draws of the model, lazily."""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import pytest
from numpyro_cases import CASE, linear_gaussian_gebm, standard_normal

from numpyro_gebm import GEBM, Pushforward, decode


@pytest.fixture(scope="module")
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
    yield "host", jnp.asarray(z)
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
    scalar = GEBM(Pushforward(dist.Normal(0.0, 1.0), lambda z: z * jnp.ones(3)), lambda x: x.sum())
    assert [x.shape for x in decode(scalar, np.zeros((2, 4)), 5)] == [(5, 3), (3, 3)]
    assert [x.shape for x in decode(scalar, np.zeros(()))] == [(1, 3)]
    matrix = GEBM(dist.Normal(0.0, 1.0).expand([2, 3]).to_event(2), lambda x: x.sum())
    z = np.random.normal(size=(2, 4, 2, 3))
    np.testing.assert_array_equal(np.concatenate(list(decode(matrix, z, 3))), z.reshape(8, 2, 3))


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


def test_compiled_once_whatever_the_number_of_latents():
    traces = []

    def generator(z):
        traces.append(z.shape)
        return 2.0 * z

    gebm = GEBM(Pushforward(standard_normal(2), generator), lambda x: x.sum())
    traces.clear()
    assert sum(len(x) for x in decode(gebm, np.zeros((3, 7, 2)), 4)) == 21
    assert sum(len(x) for x in decode(gebm, np.zeros((50, 2)), 4)) == 50
    assert traces == [(2,)]


def test_the_dtype_is_that_of_the_latents():
    sine = GEBM(Pushforward(standard_normal(2), jnp.sin), lambda x: x.sum())
    for stored, expected in (("f4", jnp.float32), ("f8", jnp.float64), (">f8", jnp.float64), ("i4", jnp.float64)):
        (x,) = decode(sine, np.ones((5, 2), stored))
        assert isinstance(x, jax.Array) and x.dtype == expected
        np.testing.assert_allclose(x, np.sin(1.0), rtol=1e-6)
