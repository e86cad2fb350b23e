"""Features as a table in a file, for other tools.

In: `Features`. Out: a .parquet, .npz or .csv file with a row a photo.
Why: pandas, polars, duckdb and scikit-learn are where features are looked at. Parquet holds one column of vectors of
fixed length, as thousands of columns would make it slow; CSV knows no vectors, and has a column a number.
"""

from __future__ import annotations

import csv
import importlib
import importlib.util
import os
import secrets
import zipfile
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

import numpy as np

from pomona.errors import MissingPackageError, OptionError, StorageError
from pomona.files import storage_errors

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from pomona.dataset import Dataset
    from pomona.features import Features

SUFFIXES = (".parquet", ".npz", ".csv")
"""Kinds of files, by the end of their names."""

COLUMNS = ("file", "label", "split", "sha256")
"""Columns before those of the features; empty are a split that the data does not name, a class that train lacks."""

_MARK = b"pomona.features"
_ROWS_AT_A_TIME = 2048


def check_table_path(path: Path, dataset: Dataset | None = None) -> None:
    """Refuse a place that features must not be written to, before they are computed.

    Parameters
    ----------
    path : Path
        File to write.
    dataset : Dataset, optional
        Photos; no file is written among them.

    Raises
    ------
    OptionError
        If the suffix is none of `SUFFIXES`, or the place is among the photos.
    MissingPackageError
        If pyarrow is needed and not installed.
    StorageError
        If something else than such a table stands there.
    """
    if path.suffix.lower() not in SUFFIXES:
        raise OptionError(f"output: wanted a file that ends in {', '.join(SUFFIXES)}, got {path}")
    if path.suffix.lower() == ".parquet" and importlib.util.find_spec("pyarrow") is None:
        raise MissingPackageError("pyarrow", "parquet", "to write a parquet file")
    if dataset is not None and dataset.root.is_dir():
        place, root = Path(os.path.realpath(path)), Path(os.path.realpath(dataset.root))
        if place.is_relative_to(root):
            raise OptionError(f"output: wanted a file outside the photos, got {path} in {dataset.root}")
    if os.path.lexists(path) and not (path.is_file() and _is_own(path)):
        raise StorageError(f"{path}: something else is there: wanted a new file, or features to replace; name another")


def _is_own(path: Path) -> bool:
    """Whether a file is a table that was written here."""
    try:
        with path.open("rb") as stream:
            head = stream.read(len(",".join(COLUMNS)))
        if path.suffix.lower() == ".csv":
            return head == ",".join(COLUMNS).encode()
        if path.suffix.lower() == ".npz":
            with zipfile.ZipFile(path) as archive:
                return {f"{name}.npy" for name in (*COLUMNS, "features")} <= set(archive.namelist())
        parquet: Any = importlib.import_module("pyarrow.parquet")
        return _MARK in (parquet.read_schema(path).metadata or {})
    except (OSError, ValueError, zipfile.BadZipFile):  # Arrow's own is a ValueError
        return False


def write_features(path: Path, features: Features) -> None:
    """Write features as a table.

    Parameters
    ----------
    path : Path
        Ends in .parquet (columns `COLUMNS` and ``features``, a list of D float32), .npz (arrays of these names,
        ``features`` of shape (N, D)) or .csv (`COLUMNS`, then f0 to f(D-1)). A table that stands there is replaced.
    features : Features
        N photos.

    Raises
    ------
    OptionError, MissingPackageError, StorageError
        As `check_table_path`, or if the file cannot be written; then nothing is left behind.
    """
    check_table_path(path, features.dataset)
    write: dict[str, Callable[[Path, Features], None]] = {
        ".parquet": _write_parquet,
        ".npz": _write_npz,
        ".csv": _write_csv,
    }
    partial = path.with_name(f".{path.name}.{secrets.token_hex(4)}.partial")
    with storage_errors(f"write {path}"):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            write[path.suffix.lower()](partial, features)
            partial.replace(path)
        finally:
            partial.unlink(missing_ok=True)


def _list_texts(features: Features) -> dict[str, list[str]]:
    """Columns of text, by name."""
    dataset = features.dataset
    names = (*dataset.tree.names, "")  # the last is that of the label -1
    rows = [(one.name, names[one.label], one.split or "", one.sha256) for one in dataset.photos]
    return {name: [row[i] for row in rows] for i, name in enumerate(COLUMNS)}


def _list_parts(features: Features) -> Iterator[slice]:
    for start in range(0, len(features.vectors), _ROWS_AT_A_TIME):
        yield slice(start, start + _ROWS_AT_A_TIME)


def _write_parquet(path: Path, features: Features) -> None:
    pa: Any = importlib.import_module("pyarrow")
    parquet: Any = importlib.import_module("pyarrow.parquet")
    texts = _list_texts(features)
    dim = features.vectors.shape[1]
    columns = [*((name, pa.string()) for name in COLUMNS), ("features", pa.list_(pa.float32(), dim))]
    schema = pa.schema(columns, metadata={_MARK: b"1"})
    with parquet.ParquetWriter(path, schema, compression="zstd") as writer:
        for part in _list_parts(features):
            values = pa.array(np.ascontiguousarray(features.vectors[part]).ravel())
            vectors = pa.FixedSizeListArray.from_arrays(values, dim)
            arrays: list[Any] = [pa.array(texts[name][part], pa.string()) for name in COLUMNS]
            writer.write_table(pa.table([*arrays, vectors], schema=schema))


def _write_npz(path: Path, features: Features) -> None:
    arrays: dict[str, Any] = {name: np.array(values, np.str_) for name, values in _list_texts(features).items()}
    # Not by `savez`: it has an argument `file` of its own.
    with zipfile.ZipFile(path, "w") as archive:
        for name, array in {**arrays, "features": features.vectors}.items():
            with archive.open(f"{name}.npy", "w", force_zip64=True) as stream:
                np.lib.format.write_array(stream, array, allow_pickle=False)


def _write_csv(path: Path, features: Features) -> None:
    with path.open("w", encoding="utf-8", newline="") as stream:
        _write_rows(stream, features)


def _write_rows(stream: TextIO, features: Features) -> None:
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow([*COLUMNS, *(f"f{i}" for i in range(features.vectors.shape[1]))])
    texts = _list_texts(features)
    for i, vector in enumerate(features.vectors):
        writer.writerow([*(texts[name][i] for name in COLUMNS), *(format(v, ".9g") for v in vector.tolist())])
