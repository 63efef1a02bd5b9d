"""Tables of the real-NVP check: found, checked, split by the protocol of the papers."""

import hashlib
import os
import urllib.error

import numpy as np
import pytest
import uci

needs_data = pytest.mark.skipif("GEBM_DATA" not in os.environ, reason="needs the tables: set GEBM_DATA to their folder")


@pytest.fixture
def tiny_wine(tmp_path, monkeypatch):
    """A wine table of three rows that passes for the published one."""
    text = "a;b;quality\n1;2;5\n3;4;6\n5;7;5\n"
    digest = hashlib.sha256(text.encode()).hexdigest()
    file = uci.SETS["RedWine"][0]._replace(sha256=digest)
    monkeypatch.setitem(uci.SETS, "RedWine", [file])
    monkeypatch.delenv("GEBM_DATA", raising=False)
    return tmp_path, text


@pytest.mark.parametrize("place", ["uci_winequality/winequality-red.csv", "winequality-red.csv"])
def test_a_file_is_found_in_the_folder_or_below(tiny_wine, place, monkeypatch):
    folder, text = tiny_wine
    (folder / place).parent.mkdir(exist_ok=True)
    (folder / place).write_text(text)
    expected = [[1, 2], [3, 4], [5, 7]]
    np.testing.assert_array_equal(uci.load("RedWine", folder), expected)
    monkeypatch.setenv("GEBM_DATA", str(folder))
    np.testing.assert_array_equal(uci.load("RedWine"), expected)


def test_a_changed_file_is_refused(tiny_wine):
    folder, text = tiny_wine
    (folder / "winequality-red.csv").write_text(text.replace("7", "8"))
    with pytest.raises(ValueError, match=r"not the published file: expected SHA-256 .* Delete it"):
        uci.load("RedWine", folder)


def test_what_is_missing_is_said(tiny_wine):
    folder, _ = tiny_wine
    with pytest.raises(FileNotFoundError, match="Pass --data DIR, or set the environment variable GEBM_DATA"):
        uci.load("RedWine")
    with pytest.raises(FileNotFoundError, match=r"pass --download to fetch https://archive.ics.uci.edu/.*red.csv"):
        uci.load("RedWine", folder)
    with pytest.raises(FileNotFoundError, match="the archive does not have it"):
        uci.load("MiniBooNE", folder, download=True)
    with pytest.raises(ValueError, match=r"Expected a set in \['MiniBooNE'.*got 'WhiteWine'"):
        uci.load("WhiteWine", folder)


def test_download(tiny_wine, monkeypatch):
    folder, text = tiny_wine
    source = folder / "source.csv"
    source.write_text(text)
    file = uci.SETS["RedWine"][0]._replace(url=source.as_uri())
    monkeypatch.setitem(uci.SETS, "RedWine", [file])
    assert uci.load("RedWine", folder / "new", download=True).shape == (3, 2)
    assert [path.name for path in (folder / "new" / "uci_winequality").iterdir()] == ["winequality-red.csv"]

    def offline(*args, **kwargs):
        raise urllib.error.URLError("no route")

    monkeypatch.setattr(uci.urllib.request, "urlopen", offline)
    with pytest.raises(FileNotFoundError, match=r"cannot be reached .*offline\? Copy it to .* by hand"):
        uci.load("RedWine", folder / "other", download=True)


@pytest.mark.parametrize("separator", [",", ";", "\t"])
@pytest.mark.parametrize("header", [True, False])
def test_any_table(tmp_path, separator, header):
    x = np.random.normal(size=(20, 2))
    columns = np.column_stack([x, 2 * x[:, 0], np.ones(20)])  # a copy and a constant go
    lines = [separator.join(map(repr, row)) for row in columns.tolist()]
    (tmp_path / "table.csv").write_text("\n".join([separator.join("abcd")] * header + lines))
    kept = uci.read_csv(tmp_path / "table.csv")
    np.testing.assert_allclose(kept, columns[:, [1, 2]])


def test_a_table_of_text_is_refused(tmp_path):
    (tmp_path / "table.csv").write_text("a,b\n1,2\n3,red\n")
    with pytest.raises(ValueError, match=r"Expected a table of numbers in .*red.* Leave out columns of text"):
        uci.read_csv(tmp_path / "table.csv")
    (tmp_path / "table.csv").write_text("a,b\n1,2\n3,inf\n")
    with pytest.raises(ValueError, match="Expected finite numbers"):
        uci.read_csv(tmp_path / "table.csv")


def test_split_whitens_and_finds_repeated_rows():
    x = np.random.normal(size=(200, 3)) @ np.random.normal(size=(3, 3))
    x[100:] = x[:100]  # every row twice
    split = uci.split(x, seed=1)
    assert [len(part) for part in split[:3]] == [162, 18, 20] and split.train.dtype == np.float32
    whole = np.concatenate(split[:3])
    np.testing.assert_allclose(whole.mean(0), 0.0, atol=1e-5)
    np.testing.assert_allclose(whole.T @ whole / 200, np.eye(3), atol=1e-4)
    for row, repeated in zip(split.test, split.repeated):
        assert repeated == bool((np.abs(split.train - row).max(1) < 1e-5).any())
    assert 0 < split.repeated.sum() < 20 or split.repeated.all()
    other = uci.split(x, seed=2)
    np.testing.assert_array_equal(uci.split(x, seed=1).train, split.train)
    assert not np.array_equal(other.test, split.test)


def test_noise_fills_the_gaps_of_rounded_values():
    x = np.random.permutation(np.arange(400.0)).reshape(-1, 2) // 4
    assert len(np.unique(uci.split(x, seed=1, rounded=True).train[:, 0])) > 150
    assert len(np.unique(uci.split(x, seed=1).train @ np.ones(2))) < 162


@needs_data
@pytest.mark.parametrize(
    "name, shape", [("RedWine", (1599, 11)), ("Parkinsons", (5875, 15)), ("MiniBooNE", (6932, 43))]
)
def test_published_tables(name, shape):
    table = uci.load(name)
    assert table.shape == shape
    if name == "RedWine":
        split = uci.split(table, seed=1, rounded=True)
        assert [len(part) for part in split[:3]] == [1296, 144, 159] and split.repeated.sum() == 47
