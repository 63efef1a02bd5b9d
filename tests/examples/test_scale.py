"""The script for clusters, as two processes and as one."""

import pathlib
import shutil

import numpy as np
import processes
import pytest

pytestmark = pytest.mark.slow  # processes that compile
SCRIPT = pathlib.Path(__file__).parents[2] / "examples" / "scale" / "run.py"


@pytest.mark.parametrize("backend", ["numpyro", "pyro"])
def test_two_processes_train_draw_and_decode_and_one_goes_on(backend, tmp_path):
    for package in (backend, "sklearn", "zarr", "arviz"):
        pytest.importorskip(package)
    import zarr

    args = ["--backend", backend, "--out", tmp_path, "--steps", 60, "--draws", 400, "--chains", 16]
    codes, texts = processes.run(SCRIPT, 2, *args)
    assert codes == [0, 0], texts
    assert ["16 chains of 400 draws" in text for text in texts] == [True, False]
    z, x = zarr.open_group(tmp_path / "draws.zarr")["posterior/z"][:], zarr.open_group(tmp_path / "x.zarr")["x"]
    assert z.shape == (16, 400, 16) and x.shape == (16, 400, 64) and np.isfinite(x[:]).all()
    assert np.unique(z[:, 0, 0]).size == 16
    shutil.rmtree(tmp_path / "x.zarr")
    codes, texts = processes.run(SCRIPT, 1, *args)
    assert codes == [0], texts
    np.testing.assert_array_equal(zarr.open_group(tmp_path / "draws.zarr")["posterior/z"][:], z)
