"""A table of features says the same in every kind of file, and stands in nobody's way."""

from __future__ import annotations

import csv
import sys
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import pytest

from pomona.class_tree import ClassTree
from pomona.dataset import Dataset, Photo
from pomona.errors import MissingPackageError, OptionError, StorageError
from pomona.feature_table import COLUMNS, check_table_path, write_features
from pomona.features import Features

if TYPE_CHECKING:
    from pathlib import Path

TREE = ClassTree(("Apple", "Pear, green"), (("Apple",), ("Pear, green",)))


def make_features(root: Path, n_photos: int = 3, seed: int = 0) -> Features:
    photos = tuple(
        Photo(root / f"{i}.jpg", f"{i:064x}", i % 2, str(i), "train" if i else None, f"über/{i}.jpg")
        for i in range(n_photos)
    )
    vectors = np.random.default_rng(seed).standard_normal((n_photos, 5)).astype(np.float32)
    return Features(vectors, Dataset(photos, TREE, (), 0, root), n_photos, 0)


def read_csv(path: Path) -> tuple[list[list[str]], np.ndarray]:
    with path.open(encoding="utf-8", newline="") as stream:
        rows = list(csv.reader(stream))
    assert rows[0] == [*COLUMNS, "f0", "f1", "f2", "f3", "f4"]
    return [row[:4] for row in rows[1:]], np.array([row[4:] for row in rows[1:]], np.float32)


def read_npz(path: Path) -> tuple[list[list[str]], np.ndarray]:
    with np.load(path, allow_pickle=False) as content:
        return np.stack([content[name] for name in COLUMNS], axis=1).tolist(), content["features"]


def read_parquet(path: Path) -> tuple[list[list[str]], np.ndarray]:
    parquet = pytest.importorskip("pyarrow.parquet", reason="parquet files are read by pyarrow")
    table = parquet.read_table(path)
    assert table.column_names == [*COLUMNS, "features"]
    texts = [list(row) for row in zip(*(table[name].to_pylist() for name in COLUMNS), strict=True)]
    return texts, np.array(table["features"].to_pylist(), np.float32)


@pytest.mark.parametrize(("suffix", "read"), [(".csv", read_csv), (".npz", read_npz), (".parquet", read_parquet)])
def test_every_kind_of_file_holds_the_same(tmp_path: Path, suffix: str, read: object) -> None:
    features = make_features(tmp_path / "photos", n_photos=2050)  # more than are written at a time
    path = tmp_path / "new" / f"table{suffix}"
    write_features(path, features)
    texts, vectors = read(path)  # type: ignore[operator]
    np.testing.assert_array_equal(vectors, features.vectors)
    assert texts[:2] == [["über/0.jpg", "Apple", "", f"{0:064x}"], ["über/1.jpg", "Pear, green", "train", f"{1:064x}"]]
    assert len(texts) == 2050
    other = make_features(tmp_path / "photos", seed=1)
    write_features(path, other)  # one's own table is replaced
    np.testing.assert_array_equal(read(path)[1], other.vectors)  # type: ignore[operator]
    assert [one.name for one in path.parent.iterdir()] == [path.name]


@pytest.mark.parametrize(("suffix", "read"), [(".csv", read_csv), (".npz", read_npz), (".parquet", read_parquet)])
def test_a_photo_of_a_class_that_train_lacks_has_no_label(tmp_path: Path, suffix: str, read: object) -> None:
    features = make_features(tmp_path / "photos")
    photos = (replace(features.dataset.photos[0], label=-1), *features.dataset.photos[1:])
    path = tmp_path / f"table{suffix}"
    write_features(path, replace(features, dataset=replace(features.dataset, photos=photos)))
    assert [row[1] for row in read(path)[0]] == ["", "Pear, green", "Apple"]  # type: ignore[operator]


@pytest.mark.parametrize("suffix", [".csv", ".npz", ".parquet"])
def test_another_file_is_left_alone(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"mine{suffix}"
    for content in (b"", b"file,label\n", b"PAR1 mine PAR1"):
        path.write_bytes(content)
        with pytest.raises(StorageError, match="something else is there"):
            write_features(path, make_features(tmp_path / "photos"))
        assert path.read_bytes() == content
    path.unlink()
    path.mkdir()
    with pytest.raises(StorageError, match="something else is there"):
        check_table_path(path)


def test_no_file_is_written_among_the_photos(tmp_path: Path) -> None:
    photos = tmp_path / "photos"
    photos.mkdir()
    (tmp_path / "link").symlink_to(photos)
    for place in (photos, tmp_path / "link", photos / "deep"):
        with pytest.raises(OptionError, match="wanted a file outside the photos"):
            write_features(place / "table.csv", make_features(photos))
    assert list(photos.iterdir()) == []


def test_the_name_says_which_kind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(OptionError, match=r"ends in \.parquet, \.npz, \.csv, got .*table\.txt"):
        check_table_path(tmp_path / "table.txt")
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(MissingPackageError, match=r"'pomona\[parquet\]'"):
        check_table_path(tmp_path / "table.parquet")
