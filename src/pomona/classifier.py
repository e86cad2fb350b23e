"""The recogniser with scikit-learn's verbs.

In: photos as paths or arrays, and labels. Out: `PomonaClassifier`, which `clone`, `cross_val_score` and `GridSearchCV`
take.
Why: the people who know scikit-learn can use Pomona inside what they have. Features are cached by content, so a
cross-validation over the same photos runs the network once.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from pomona.effort import Effort, choose_precision, measure_machine, plan_embedding
from pomona.errors import DataError, MissingPackageError, NotFiniteError, PhotoError
from pomona.features import extract_vectors
from pomona.files import hash_bytes
from pomona.parts import list_folds
from pomona.photo import read_photo_bytes, read_unchanged
from pomona.ridge import RIDGE_STRENGTHS, fit_ridge

try:
    from sklearn.base import BaseEstimator, ClassifierMixin
except ImportError as error:
    raise MissingPackageError("scikit-learn", "train", "for PomonaClassifier") from error

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import ArrayLike, NDArray

    from pomona.backbone import Preprocessing


class PomonaClassifier(ClassifierMixin, BaseEstimator):  # type: ignore[misc]
    """Classify photos: frozen pretrained networks and a ridge head.

    Parameters
    ----------
    effort : {"instant", "fast", "best"}
        How much work goes into the features.
    backbone : str, optional
        Pretrained network, instead of those of the effort; `pomona backbones` lists them.
    imgsz : int, optional
        Side of the square the network sees, in pixels, instead of that of the effort.
    l2 : float, optional
        Strength of the penalty; chosen by 5-fold cross-validation where not given.
    seed : int
        Decides the folds.
    workers : int, optional
        Threads; every core where not given.

    Attributes
    ----------
    classes_ : ndarray of shape (C,)
        Labels, sorted.
    embedding_ : Embedding
        What the features are; in the precision that was faster where it was fitted.
    head_ : Head
        The fitted head.
    l2_ : float
        Strength that was used.
    n_features_in_ : int
        Length of the features, D.

    Notes
    -----
    X is a sequence of N paths, or an array (N, H, W, 3) uint8, or a sequence of arrays (H, W, 3) uint8 of any size. A
    photo that cannot be used raises `PhotoError`: scikit-learn needs an answer for every row.
    """

    def __init__(
        self,
        effort: Effort = "fast",
        *,
        backbone: str | None = None,
        imgsz: int | None = None,
        l2: float | None = None,
        seed: int = 0,
        workers: int | None = None,
    ) -> None:
        self.effort = effort
        self.backbone = backbone
        self.imgsz = imgsz
        self.l2 = l2
        self.seed = seed
        self.workers = workers

    def fit(self, X: Sequence[Any] | NDArray[Any], y: ArrayLike) -> PomonaClassifier:
        """Fit the head.

        Parameters
        ----------
        X : sequence of N photos
            Paths or arrays, see the notes of the class.
        y : array-like of shape (N,)
            Labels.

        Returns
        -------
        PomonaClassifier
            Itself.

        Raises
        ------
        DataError
            If the lengths differ, or there are fewer than two classes.
        PhotoError
            If a photo cannot be used.
        NotFiniteError
            If the network gives NaN or infinity, in float32 too.
        """
        photos = _list_photos(X)
        targets = np.asarray(y)
        if targets.ndim != 1 or len(photos) != len(targets):
            raise DataError(
                f"wanted a label for each photo, got {len(photos)} photos and labels of shape {targets.shape}"
            )
        self.classes_, labels = np.unique(targets, return_inverse=True)
        if len(self.classes_) < 2:
            raise DataError(f"wanted two classes or more, got {len(self.classes_)}")
        precision = choose_precision(measure_machine(self.workers))
        self.embedding_ = plan_embedding(self.effort, backbone=self.backbone, size_px=self.imgsz, precision=precision)
        try:
            vectors, hashes = self._embed(photos)
        except NotFiniteError:
            if precision == "f32":
                raise
            self.embedding_ = plan_embedding(self.effort, backbone=self.backbone, size_px=self.imgsz, precision="f32")
            vectors, hashes = self._embed(photos)
        strengths = RIDGE_STRENGTHS if self.l2 is None else (self.l2,)
        # Of a given strength too: the temperature is chosen on them.
        folds = list_folds(labels, _group_copies(hashes), seed=self.seed)
        self.head_, _, _ = fit_ridge(vectors, labels, len(self.classes_), folds, strengths=strengths)
        self.l2_ = self.head_.l2
        self.n_features_in_ = vectors.shape[1]
        return self

    def predict_proba(self, X: Sequence[Any] | NDArray[Any]) -> NDArray[np.float32]:
        """Probabilities (N, C) in the order of `classes_`."""
        from sklearn.utils.validation import check_is_fitted

        check_is_fitted(self)
        return self.head_.predict_proba(self._embed(_list_photos(X))[0])

    def predict(self, X: Sequence[Any] | NDArray[Any]) -> NDArray[Any]:
        """Most probable label of each photo, (N,)."""
        probabilities = self.predict_proba(X)
        answers: NDArray[Any] = self.classes_[probabilities.argmax(axis=1)]
        return answers

    def _embed(self, photos: Sequence[Any]) -> tuple[NDArray[np.float32], NDArray[np.str_]]:
        """Features (N, D) and content hashes (N,) of photos."""
        preprocessing = self.embedding_.preprocessing
        hashes = [_hash_photo(photo, i) for i, photo in enumerate(photos)]
        vectors = extract_vectors(
            hashes,
            lambda i: _load_pixels(photos[i], hashes[i], preprocessing),
            self.embedding_,
            n_workers=self.workers,
        )
        for i, error in sorted(vectors.errors.items()):
            raise PhotoError(error.fault, f"photo {i}: {error}")
        return vectors.values, np.array(hashes)

    def __sklearn_tags__(self) -> Any:
        """Tell scikit-learn that rows are photos, not numbers."""
        tags = super().__sklearn_tags__()
        tags.input_tags.string = True
        tags.input_tags.two_d_array = False
        tags.input_tags.three_d_array = True
        return tags


def _list_photos(X: Sequence[Any] | NDArray[Any]) -> list[Any]:
    """List photos by position: a column of a table may number its rows otherwise."""
    if isinstance(X, (str, Path)):
        raise DataError(f"wanted a sequence of photos, got one path: put it in a list: [{str(X)!r}]")
    return list(X)


def _hash_photo(photo: Any, row: int) -> str:
    if isinstance(photo, (str, Path)):
        return hash_bytes(read_photo_bytes(Path(photo)))
    array = np.asarray(photo)
    if array.ndim != 3 or array.shape[2] != 3 or array.dtype != np.uint8 or 0 in array.shape:
        raise PhotoError(
            "not_an_image",
            f"photo {row}: wanted a path or an array (H, W, 3) of uint8, got shape {array.shape} of {array.dtype}",
        )
    return hash_bytes(repr(array.shape).encode() + np.ascontiguousarray(array).tobytes())


def _group_copies(hashes: NDArray[np.str_]) -> NDArray[np.str_]:
    """Name each photo after the first row of its content, so that folds are the same for paths and for arrays."""
    _, first_rows, contents = np.unique(hashes, return_index=True, return_inverse=True)
    return np.array([f"{row:012}" for row in first_rows[contents]])


def _load_pixels(photo: Any, sha256: str, preprocessing: Preprocessing) -> NDArray[np.uint8]:
    if isinstance(photo, (str, Path)):
        return preprocessing.read(read_unchanged(Path(photo), sha256))
    return preprocessing.apply(np.ascontiguousarray(photo))
