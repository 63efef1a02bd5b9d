"""Stored latents to draws of the model, lazily: the rows that are read, and what the hosts make of them."""

import cases
import numpy as np
import pytest

from gebm.decode import batches_of_rows


def storages(z, folder):
    """The same latents in everything that `decode` takes."""
    h5py, xarray = pytest.importorskip("h5py"), pytest.importorskip("xarray")
    h5netcdf = pytest.importorskip("h5netcdf")
    dims = [f"axis{i}" for i in range(z.ndim)]
    xarray.Dataset({"z": (dims, z)}).to_netcdf(folder / "z.nc", engine="h5netcdf")
    yield "numpy", z
    yield "strided", np.repeat(z, 2, axis=0)[::2]
    yield "lists", z.tolist()
    yield "xarray", xarray.DataArray(z, dims=dims)
    with h5py.File(folder / "z.nc", "r") as file:
        yield "h5py", file["z"]
    with h5netcdf.File(folder / "z.nc", "r") as file:
        yield "h5netcdf", file["z"]
    with xarray.open_dataset(folder / "z.nc", engine="h5netcdf") as dataset:
        yield "lazy xarray", dataset["z"]


@pytest.mark.parametrize("shape", [(3, 7), (21,), (2, 3, 4), (), (5, 1), (0,), (2, 0)])
@pytest.mark.parametrize("batch_size", [1, 4, 7, 1000])
def test_batches_put_together_are_all_rows(shape, batch_size):
    z = np.random.normal(size=(*shape, 2))
    batches, count = list(batches_of_rows(z, (2,), batch_size)), int(np.prod(shape))
    assert [len(rows) for rows in batches] == [min(batch_size, count - i) for i in range(0, count, batch_size)]
    np.testing.assert_array_equal(np.concatenate([np.empty((0, 2)), *batches]), z.reshape(-1, 2))


def test_latents_can_be_stored_in_anything(tmp_path):
    z = np.random.normal(size=(3, 7, 2))
    names = []
    for name, stored in storages(z, tmp_path):
        names.append(name)
        found = np.concatenate(list(batches_of_rows(stored, (2,), 4)))
        np.testing.assert_array_equal(found, z.reshape(-1, 2), err_msg=name)
    assert len(names) == 7


class Recorder:
    """Latents that note which of their rows are read."""

    def __init__(self, z):
        self.z, self.shape, self.dtype, self.rows = z, z.shape, z.dtype, 0

    def __getitem__(self, index):
        self.rows += self.z[index].size // 2
        return self.z[index]


def test_rows_are_read_when_they_are_needed(host):
    z = Recorder(np.random.normal(size=(4, 250, 2)))
    batches = host.decode(host.linear_gaussian(1.5), z, 100)
    assert z.rows == 0
    for read in (100, 200, 300):
        next(batches)
        assert z.rows == read


@pytest.mark.parametrize("shape", [(3, 7), (), (0,)])
@pytest.mark.parametrize("kind", ["numpy", "host"])
def test_draws_are_those_of_the_generator(host, shape, kind):
    case, z = cases.linear_gaussian(), np.random.normal(size=(*shape, 2))
    stored = z if kind == "numpy" else host.array(z)
    if host.name == "pyro" and kind == "host":
        stored.requires_grad_(True)
    batches = [host.numpy(x) for x in host.decode(host.linear_gaussian(1.5), stored, 4)]
    count = int(np.prod(shape))
    assert [len(x) for x in batches] == [min(4, count - i) for i in range(0, count, 4)]
    expected = z.reshape(-1, 2) @ case.W.T + case.b
    np.testing.assert_allclose(np.concatenate([np.empty((0, 3)), *batches]), expected, rtol=1e-12)


def test_latents_that_are_scalars_or_matrices(host):
    generator = lambda z: z[..., None] * host.xp.ones(3)  # noqa: E731
    scalar = host.GEBM(host.Pushforward(host.dist.Normal(host.array(0.0), 1.0), generator), lambda x: x.sum(-1))
    assert [tuple(x.shape) for x in host.decode(scalar, np.zeros((2, 4)), 5)] == [(5, 3), (3, 3)]
    assert [tuple(x.shape) for x in host.decode(scalar, np.zeros(()))] == [(1, 3)]
    base = host.dist.Normal(host.array(0.0), 1.0).expand([2, 3]).to_event(2)
    matrix, z = host.GEBM(base, lambda x: x.sum((-1, -2))), np.random.normal(size=(2, 4, 2, 3))
    draws = np.concatenate([host.numpy(x) for x in host.decode(matrix, z, 3)])
    np.testing.assert_array_equal(draws, z.reshape(8, 2, 3))


@pytest.mark.parametrize(
    "z, batch_size, error, message",
    [
        (np.zeros((5, 3)), 10, ValueError, r"Expected z, latents, of shape \(..., 2\); got \(5, 3\)"),
        (np.zeros(()), 10, ValueError, r"Expected z, latents, of shape \(..., 2\); got \(\)"),
        (np.zeros((5, 2)), 0, ValueError, "Expected batch_size >= 1; got 0"),
        (np.zeros((5, 2)), 2.0, TypeError, r"Expected batch_size to be an integer >= 1; got 2.0 \(float\)"),
        (np.zeros((5, 2)), True, TypeError, r"Expected batch_size to be an integer >= 1; got True \(bool\)"),
        ({"z": np.zeros((5, 2))}, 10, TypeError, r'such as `data\["posterior"\]\["z"\]`; got dict'),
    ],
)
def test_what_does_not_fit_is_refused_at_the_call(host, z, batch_size, error, message):
    with pytest.raises(error, match=message):
        host.decode(host.linear_gaussian(1.5), z, batch_size)


def test_a_store_of_decoded_latents(host, tmp_path, monkeypatch):
    """Chunk by chunk, of any leading axes; it has its name once it is whole."""
    zarr = pytest.importorskip("zarr")
    base = host.Pushforward(host.normal(2), lambda z: z * 2.0)
    gebm, decode_to_zarr = host.GEBM(base, lambda x: x.sum(-1)), host.package.decode_to_zarr
    z = np.random.default_rng(0).normal(size=(2, 3, 25, 2))
    for i, latents in enumerate((z, z[0], z[0, 0])):
        x = decode_to_zarr(gebm, latents, tmp_path / f"{i}.zarr", 10, progress_bar=False)
        np.testing.assert_allclose(x[:], 2.0 * latents)
        assert x.metadata.dimension_names[-2:] == ("draw", "x_dim_0")
    with pytest.raises(FileExistsError, match="Take another path"):
        decode_to_zarr(gebm, z, tmp_path / "0.zarr", progress_bar=False)
    for bad in (z[0, 0, 0], z[:0]):
        with pytest.raises(ValueError, match="Expected z, latents, with axes before"):
            decode_to_zarr(gebm, bad, tmp_path / "bad.zarr", progress_bar=False)

    def stop(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(zarr.Array, "__setitem__", stop)
    with pytest.raises(KeyboardInterrupt):
        decode_to_zarr(gebm, z, tmp_path / "cut.zarr", progress_bar=False)
    assert not (tmp_path / "cut.zarr").exists()
    monkeypatch.undo()
    assert decode_to_zarr(gebm, z, tmp_path / "cut.zarr", progress_bar=False).shape == z.shape
