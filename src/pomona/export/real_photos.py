"""Real photos that an export is tried on, beside the golden ones.

In: a bundle, and where labelled photos are, if the user says so. Out: at most `MAX_REAL` photos with their labels.
Why: rendered photos find a wrong resize; only real ones say what an export has right.
"""

from __future__ import annotations

import csv
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from pomona.bundle_score import load_labelled
from pomona.errors import PhotoError
from pomona.export.parity import RealPhoto
from pomona.files import hash_bytes
from pomona.photo import read_photo_bytes
from pomona.run_folder import read_setting

if TYPE_CHECKING:
    from pomona.bundle import Bundle

MAX_REAL = 300
"""Photos at most, spread over what there is; some dozens of seconds."""

_EVALUATED_NAME = "predictions.csv"


def load_real(bundle: Bundle, data: Path | None) -> tuple[RealPhoto, ...]:
    """Load photos to try an export on.

    Parameters
    ----------
    bundle : Bundle
        The recogniser.
    data : Path, optional
        Labelled photos; where not given, those that the run was measured on, if they still are where they were.

    Returns
    -------
    tuple of RealPhoto
        None where none was named and none is there any more.

    Raises
    ------
    DataError
        If photos were named and cannot be used.
    """
    if data is None:
        return _load_evaluated(bundle)
    dataset = load_labelled(bundle, data)
    found = []
    for i in _spread(len(dataset.photos)):
        photo = dataset.photos[i]
        try:
            content = read_photo_bytes(photo.path)
        except PhotoError:  # it went away meanwhile
            continue
        learnt = photo.sha256 in bundle.learnt_from
        found.append(RealPhoto(photo.name, content, photo.label, photo.group, learnt))
    return tuple(found)


def _load_evaluated(bundle: Bundle) -> tuple[RealPhoto, ...]:
    """Photos that the run was measured on, by the table that it left of them."""
    recorded = read_setting(bundle.folder, "data")
    if not isinstance(recorded, str):
        return ()
    place = Path(recorded)
    folder = place if place.is_dir() else place.parent
    try:
        with (bundle.folder / _EVALUATED_NAME).open(encoding="utf-8", newline="") as stream:
            rows = [(row["file_name"], row["label"]) for row in csv.DictReader(stream)]
    except (OSError, ValueError, KeyError, csv.Error):
        return ()
    numbers = {name: number for number, name in enumerate(bundle.tree.names)}
    found = []
    for i in _spread(len(rows)):
        name, label = rows[i]
        try:
            content = read_photo_bytes(folder / name)
        except PhotoError:  # moved or gone: the others do
            continue
        learnt = hash_bytes(content) in bundle.learnt_from
        found.append(RealPhoto(name, content, numbers.get(label, -1), name, learnt))
    return tuple(found)


def _spread(n: int) -> list[int]:
    """Numbers of at most `MAX_REAL` of `n` photos, evenly."""
    return np.unique(np.linspace(0, n - 1, min(n, MAX_REAL)).astype(int)).tolist() if n else []
