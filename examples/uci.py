"""Tables for density estimation: found in a folder, checked, split as in the papers.

The protocol is that of arXiv:1811.08357 and arXiv:2003.05033: shuffle; for RedWine add noise within the gaps of its
rounded values; permute the columns; whiten; the last tenth is the test set, a tenth of the rest (at most 1000 rows) the
validation set.
"""

import csv
import hashlib
import os
import pathlib
import urllib.error
import urllib.request
from typing import NamedTuple

import numpy as np

__all__ = ["SETS", "Split", "load", "read_csv", "split"]

_ARCHIVE = "https://archive.ics.uci.edu/ml/machine-learning-databases"


class _File(NamedTuple):
    """Where a file may lie below the data folder, its SHA-256, and its original (None: not in the archive)."""

    path: str
    sha256: str
    url: str | None = None


#: Files of every set. MiniBooNE: validation and test part of the 43-column version of arXiv:1705.07057.
SETS = {
    "RedWine": [
        _File(
            "uci_winequality/winequality-red.csv",
            "4a402cf041b025d4566d954c3b9ba8635a3a8a01e039005d97d6a710278cf05e",
            f"{_ARCHIVE}/wine-quality/winequality-red.csv",
        )
    ],
    "Parkinsons": [
        _File(
            "uci_parkinsons/parkinsons_updrs.data",
            "f2c7d5025dec4e92e7feae367a5f7ccf58789a10ac6b54bdf15976c599f9dd39",
            f"{_ARCHIVE}/parkinsons/telemonitoring/parkinsons_updrs.data",
        )
    ],
    "MiniBooNE": [
        _File(
            "uci_miniboone/miniboone_maf_val.npy", "104f35c387c982cd550e5d6142e8b4075d746001508e65c1a90efcb83301839d"
        ),
        _File(
            "uci_miniboone/miniboone_maf_test.npy", "01b3fc605f334e951fed477a09a7fcd69cdc440d9204111ca253ecdf0e7590de"
        ),
    ],
}


class Split(NamedTuple):
    """Whitened float32 tables, and which test rows were equal to a training row before noise and whitening."""

    train: np.ndarray
    validation: np.ndarray
    test: np.ndarray
    repeated: np.ndarray


def load(name, folder=None, download=False):
    """The table of a set, as published.

    Args:
        name: a key of `SETS`.
        folder: where the files are, or are to be downloaded to; None is the environment variable GEBM_DATA.
        download: whether files that are not there may be fetched from the UCI archive.

    Returns:
        float64 array of shape `(N, D)`.

    Raises:
        FileNotFoundError: if a file is not there and may not or cannot be downloaded.
        ValueError: if a file is not the published one.
    """
    if name not in SETS:
        raise ValueError(f"Expected a set in {sorted(SETS)}; got {name!r}. Use --csv for a file of your own.")
    paths = [_find(file, folder, download) for file in SETS[name]]
    if name == "RedWine":
        return np.loadtxt(paths[0], delimiter=";", skiprows=1)[:, :-1]
    if name == "Parkinsons":
        return _without_copies(np.loadtxt(paths[0], delimiter=",", skiprows=1)[:, 3:])
    return np.concatenate([np.load(path) for path in paths]).astype(np.float64)


def read_csv(path):
    """Any table of numbers separated by commas, semicolons or tabs, with or without a header line.

    Args:
        path: the file.

    Returns:
        float64 array of shape `(N, D)`, without constant columns and near copies of columns.

    Raises:
        ValueError: if a value is not a finite number, or fewer than two columns are left.
    """
    with open(path, newline="") as file:
        dialect = csv.Sniffer().sniff(file.readline(), delimiters=",;\t")
        file.seek(0)
        rows = [row for row in csv.reader(file, dialect) if row]
    header = not all(map(_is_number, rows[0]))
    try:
        x = np.array(rows[header:], dtype=np.float64)
    except ValueError as error:
        raise ValueError(f"Expected a table of numbers in {path}; got {error}. Leave out columns of text.") from None
    x = x[:, np.ptp(x, 0) != 0] if np.isfinite(x).all() else x[:, :0]
    if x.shape[1] < 2:
        raise ValueError(f"Expected finite numbers in at least two columns that vary in {path}; got otherwise.")
    return _without_copies(x)


def split(x, seed, rounded=False):
    """Noise, whitening and split of a table.

    Args:
        x: array of shape `(N, D)`.
        seed: of the shuffles and the noise.
        rounded: whether to add uniform noise between -1 and 1 times the median gap of the distinct values of each
            column, as for RedWine.

    Returns:
        A `Split`.
    """
    rng = np.random.RandomState(seed)  # the splits of arXiv:2003.05033
    raw = x[rng.permutation(len(x))]
    x = raw.copy()
    if rounded:
        gaps = np.array([np.median(np.diff(np.unique(column))) for column in x.T])
        x += rng.uniform(-1.0, 1.0, x.shape) * gaps
    x = x[:, rng.permutation(x.shape[1])]
    x = np.linalg.svd(x - x.mean(0), full_matrices=False)[0] * np.sqrt(len(x))
    num_test = len(x) // 10
    num_validation = min((len(x) - num_test) // 10, 1000)
    end = len(x) - num_test
    train = {row.tobytes() for row in raw[: end - num_validation]}
    repeated = np.array([row.tobytes() in train for row in raw[end:]])
    x = x.astype(np.float32)
    return Split(x[: end - num_validation], x[end - num_validation : end], x[end:], repeated)


def _is_number(text):
    try:
        float(text)
    except ValueError:
        return False
    return True


def _without_copies(x, limit=0.98):
    """Without the first column that is correlated with another by more than the limit, again and again."""
    while True:
        high = np.abs(np.corrcoef(x, rowvar=False)) > limit
        copies = np.flatnonzero(high.sum(1) > 1)
        if len(copies) == 0:
            return x
        x = np.delete(x, copies[0], axis=1)


def _find(file, folder, download):
    folder = os.environ.get("GEBM_DATA") if folder is None else folder
    if not folder:
        raise FileNotFoundError("Where are the data? Pass --data DIR, or set the environment variable GEBM_DATA.")
    folder, relative = pathlib.Path(folder), pathlib.Path(file.path)
    candidates = [path for path in (folder / relative, folder / relative.name) if path.exists()]
    path = candidates[0] if candidates else _download(file, folder / relative, download)
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    if digest != file.sha256:
        raise ValueError(f"{path} is not the published file: expected SHA-256 {file.sha256}; got {digest}. Delete it.")
    return path


def _download(file, path, allowed):
    if file.url is None:
        raise FileNotFoundError(f"{path} is not there, and the archive does not have it: copy it there by hand.")
    if not allowed:
        raise FileNotFoundError(f"{path} is not there. Copy it there, or pass --download to fetch {file.url}.")
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(".part")
    try:
        with urllib.request.urlopen(file.url, timeout=60) as response:
            temporary.write_bytes(response.read())
    except (urllib.error.URLError, OSError) as error:
        raise FileNotFoundError(
            f"{file.url} cannot be reached ({error}): offline? Copy it to {path} by hand."
        ) from None
    os.replace(temporary, path)
    return path
