"""How well what is not the fruit tells the class: border, brightness, size of the picture, size of the file.

In: facts of photos, labels, groups. Out: a `Shortcut` for each cue: how often a small model is right by it alone.
Why: a network takes the easiest way. Where all lemons lie on the blue tray it learns the tray, the numbers look well,
and the first lemon on another tray is an apple.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from pomona.dataset import iter_folds
from pomona.errors import MissingPackageError
from pomona.evaluation import measure_share

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import NDArray

    from pomona.evaluation import Metric

_N_FOLDS, _N_TREES = 3, 60
_MAX_PHOTOS = 4000
_BORDER_PX = 3
_LEAST_MARGIN, _SHARE_OF_KNOWN = 0.15, 0.5


@dataclass(frozen=True)
class Shortcut:
    """How often a small model is right by one cue.

    Parameters
    ----------
    cue : str
        What it sees, in words.
    accuracy : Metric
        By cross-validation, groups held out whole.
    chance : float
        Share of the largest class.
    """

    cue: str
    accuracy: Metric
    chance: float

    def is_likely(self, known: float) -> bool:
        """Whether the cue is worth half of what the features know, and clearly more than chance.

        Parameters
        ----------
        known : float
            Accuracy of a head on the features, measured in the same way.
        """
        surplus = self.accuracy.low - self.chance
        return surplus > _LEAST_MARGIN and surplus > _SHARE_OF_KNOWN * max(0.0, known - self.chance)


def measure_shortcuts(
    rows: NDArray[np.void], labels: NDArray[np.intp], groups: NDArray[np.str_], *, seed: int = 0
) -> tuple[Shortcut, ...]:
    """Measure each cue by itself.

    Parameters
    ----------
    rows : ndarray of shape (N,), `pomona.photo_facts.FACTS`
        Facts of the photos.
    labels : ndarray of shape (N,), intp
        Classes from 0.
    groups : ndarray of shape (N,), str
        Photos that are held out together.
    seed : int
        Of the folds and the trees.

    Returns
    -------
    tuple of Shortcut
        The best first; none where there are too few groups or classes. Of more than 4,000 photos a sample is looked at.

    Raises
    ------
    MissingPackageError
        If scikit-learn is not installed.
    """
    try:
        from sklearn.ensemble import RandomForestClassifier
    except ImportError as error:
        raise MissingPackageError("scikit-learn", "train", "to look for shortcuts") from error
    if len(rows) > _MAX_PHOTOS:
        kept = np.sort(np.random.default_rng(seed).choice(len(rows), _MAX_PHOTOS, replace=False))
        rows, labels, groups = rows[kept], labels[kept], groups[kept]
    if len(np.unique(groups)) < 2 * _N_FOLDS or len(np.unique(labels)) < 2:
        return ()
    folds = list(iter_folds(labels, groups, n_folds=_N_FOLDS, seed=seed))
    chance = float(np.bincount(labels).max() / len(labels))
    found = []
    for cue, table in list_cues(rows).items():
        right = np.zeros(len(labels), bool)
        for fitted, held_out in folds:
            forest = RandomForestClassifier(_N_TREES, min_samples_leaf=2, max_features="sqrt", random_state=seed)
            forest.fit(table[fitted], labels[fitted])
            right[held_out] = forest.predict(table[held_out]) == labels[held_out]
        found.append(Shortcut(cue, measure_share(right, groups), chance))
    return tuple(sorted(found, key=lambda one: -one.accuracy.value))


def list_cues(rows: NDArray[np.void]) -> Mapping[str, NDArray[np.float32]]:
    """What each cue sees of N photos, (N, K) by name."""
    width, height, size = (rows[name].astype(np.float64) for name in ("width_px", "height_px", "n_bytes"))
    pixels = np.maximum(width * height, 1)
    border = _describe_border(rows["thumbnail"].astype(np.float32))
    brightness = np.stack([rows["brightness_p5"], rows["brightness_p99"]], axis=1)
    shape = np.stack([np.log(np.maximum(width, 1)), np.log(np.maximum(height, 1))], axis=1)
    weight = np.stack([np.log(np.maximum(size, 1)), np.log(np.maximum(size, 1) / pixels)], axis=1)
    cues = {
        "the colours of the border": border,
        "brightness": brightness,
        "the size and shape of the picture": shape,
        "the size of the file": weight,
    }
    return {name: np.asarray(table, np.float32) for name, table in cues.items()}


def _describe_border(thumbnails: NDArray[np.float32]) -> NDArray[np.float32]:
    """Mean and deviation of the colours of each side (N, 24)."""
    sides = (
        thumbnails[:, :_BORDER_PX],
        thumbnails[:, -_BORDER_PX:],
        thumbnails[:, :, :_BORDER_PX],
        thumbnails[:, :, -_BORDER_PX:],
    )
    parts = [measure(axis=(1, 2)) for side in sides for measure in (side.mean, side.std)]
    return np.concatenate(parts, axis=1)
