"""The classifier keeps scikit-learn's manners, and gives paths and arrays the same answers."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from pomona import classifier as classifier_module
from pomona import features as features_module
from pomona.classifier import PomonaClassifier
from pomona.dataset import load_dataset
from pomona.effort import Machine
from pomona.engine import Engine
from pomona.errors import DataError, NotFiniteError, OptionError, PhotoError
from pomona.features import extract_features
from pomona.ridge import RIDGE_STRENGTHS, fit_ridge
from pomona.samples import make_kinds, render_photo

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

    from pomona.embedding import Embedding

N_PER_CLASS = 8


def make_classifier(**options: Any) -> PomonaClassifier:
    return PomonaClassifier(**{"effort": "instant", "imgsz": 64, "l2": 0.01, **options})


@pytest.fixture(scope="module")
def photos() -> NDArray[np.uint8]:
    """Eight photos of each of three kinds, mixed."""
    kinds = make_kinds(3)
    return np.stack([render_photo(kinds[i % 3], seed=i, size_px=64) for i in range(3 * N_PER_CLASS)])


@pytest.fixture(scope="module")
def labels() -> NDArray[np.str_]:
    return np.array([("pear", "apple", "fig")[i % 3] for i in range(3 * N_PER_CLASS)])


@pytest.fixture(scope="module")
def paths(photos: NDArray[np.uint8], tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    from PIL import Image

    folder = tmp_path_factory.mktemp("png")
    found = [folder / f"{i}.png" for i in range(len(photos))]
    for path, photo in zip(found, photos, strict=True):
        Image.fromarray(photo).save(path)
    return found


class Column:
    """Photos as a table's column gives them after a selection: rows keep the numbers they had."""

    def __init__(self, rows: dict[int, Path]) -> None:
        self.rows = rows

    def __len__(self) -> int:
        return len(self.rows)

    def __iter__(self) -> Any:
        return iter(self.rows.values())

    def __getitem__(self, number: int) -> Path:
        return self.rows[number]


# --- answers --------------------------------------------------------------------------------------------------------


def test_it_learns_and_answers_with_the_labels_it_was_given(
    photos: NDArray[np.uint8], labels: NDArray[np.str_]
) -> None:
    classifier = make_classifier()
    assert classifier.fit(photos, labels) is classifier
    assert classifier.classes_.tolist() == ["apple", "fig", "pear"]
    assert classifier.predict(photos).tolist() == labels.tolist()
    assert classifier.score(photos, labels) == 1.0
    probabilities = classifier.predict_proba(photos)
    assert probabilities.shape == (24, 3)
    np.testing.assert_allclose(probabilities.sum(axis=1), 1, atol=1e-5)
    assert (classifier.l2_, classifier.n_features_in_) == (0.01, 10224)
    assert classifier.head_.weights.shape == (3, 10224)


@pytest.mark.parametrize("numbers", [[7, 3, 40], [2.5, -1.0, 0.0], [True, False, True]])
def test_labels_may_be_numbers(photos: NDArray[np.uint8], numbers: list[Any]) -> None:
    targets = np.array(numbers * N_PER_CLASS)
    classifier = make_classifier().fit(photos, targets.tolist())
    assert classifier.classes_.tolist() == sorted(set(numbers))
    assert classifier.predict(photos[:3]).dtype == targets.dtype
    if len(set(numbers)) == 3:
        assert classifier.predict(photos[:3]).tolist() == numbers


def test_paths_and_arrays_give_the_same_answers(
    photos: NDArray[np.uint8],
    labels: NDArray[np.str_],
    paths: list[Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # Noise may make the other precision the faster one between the two.
    machines = iter([Machine(1.0, 1.0, 1.0), Machine(1.0, 1.3, 1.0)])
    monkeypatch.setenv("POMONA_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(classifier_module, "measure_machine", lambda _n_workers: next(machines))
    by_array, by_path = make_classifier().fit(photos, labels), make_classifier().fit(paths, labels)
    np.testing.assert_array_equal(by_path.head_.weights, by_array.head_.weights)
    wanted = by_array.predict_proba(photos)
    for X in (list(photos), paths, [str(path) for path in paths], np.array([str(path) for path in paths])):
        np.testing.assert_array_equal(by_path.predict_proba(X), wanted)
    mixed = [photo if i % 2 else path for i, (photo, path) in enumerate(zip(photos, paths, strict=True))]
    np.testing.assert_array_equal(by_path.predict_proba(mixed), wanted)
    np.testing.assert_array_equal(by_path.predict_proba(photos[::-1])[::-1], wanted)


def test_large_photos_are_seen_as_training_sees_them(
    photos: NDArray[np.uint8], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from PIL import Image

    files = [tmp_path / "data" / "ab"[i % 2] / f"{i}.jpg" for i in range(4)]
    for path, photo in zip(files, photos, strict=False):
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(photo).resize((2000, 1500), Image.Resampling.NEAREST).save(path, quality=85)
    classifier = make_classifier().fit(files, ["a", "b", "a", "b"])
    assert classifier.embedding_.preprocessing.decode_px == 64
    found, _ = classifier._embed(files)
    # In another cache, or one would be the copy of the other.
    monkeypatch.setenv("POMONA_CACHE", str(tmp_path / "cache"))
    features = extract_features(load_dataset(tmp_path / "data"), classifier.embedding_)
    rows = [[photo.path for photo in features.dataset.photos].index(path) for path in files]
    assert features.n_computed == 4
    np.testing.assert_array_equal(features.vectors[rows], found)


def test_the_precision_of_the_fit_is_that_of_the_answers(
    photos: NDArray[np.uint8], labels: NDArray[np.str_], monkeypatch: pytest.MonkeyPatch
) -> None:
    """On another machine, or after a noisy measurement, the other precision may be the faster one."""
    monkeypatch.setattr(classifier_module, "measure_machine", lambda _n_workers: Machine(1.0, 2.0, 1.0))
    classifier = make_classifier().fit(photos, labels)
    assert classifier.embedding_.precision == "f32"
    wanted = classifier.predict_proba(photos)
    monkeypatch.setattr(classifier_module, "measure_machine", lambda _n_workers: Machine(2.0, 1.0, 1.0))
    np.testing.assert_array_equal(classifier.predict_proba(photos), wanted)
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(classifier)).predict_proba(photos), wanted)
    assert classifier.fit(photos, labels).embedding_.precision == "int8"


def test_a_network_that_gives_no_numbers_is_run_in_float32(
    photos: NDArray[np.uint8], labels: NDArray[np.str_], broken_int8: Callable[[Embedding], None]
) -> None:
    classifier = make_classifier().fit(photos, labels)
    assert classifier.embedding_.precision == "f32"
    assert classifier.score(photos, labels) == 1.0
    broken_int8(classifier.embedding_)
    with pytest.raises(NotFiniteError, match="gave numbers that are not finite"):
        make_classifier().fit(255 - photos, labels)


def test_rows_of_a_column_are_taken_by_position(
    photos: NDArray[np.uint8], labels: NDArray[np.str_], tmp_path: Path
) -> None:
    from PIL import Image

    # New content, so that the answer cannot come from the cache.
    changed = 255 - photos
    files = [tmp_path / f"{i}.png" for i in range(len(changed))]
    for path, photo in zip(files, changed, strict=True):
        Image.fromarray(photo).save(path)
    classifier = make_classifier().fit(photos, labels)
    got = classifier.predict_proba(Column({23 - i: path for i, path in enumerate(files)}))
    np.testing.assert_array_equal(got, classifier.predict_proba(changed))


def test_photos_of_any_size_and_memory_order_are_taken(photos: NDArray[np.uint8], labels: NDArray[np.str_]) -> None:
    classifier = make_classifier().fit(photos, labels)
    odd = [photos[0][:30], np.asfortranarray(photos[1]), photos[2][::-1], np.zeros((1, 1, 3), np.uint8)]
    probabilities = classifier.predict_proba(odd)
    assert probabilities.shape == (4, 3)
    np.testing.assert_allclose(probabilities[1], classifier.predict_proba(photos[1:2])[0], rtol=1e-4)
    reshaped = classifier.predict_proba([photos[0][:30].reshape(64, 30, 3)])  # the same bytes, another photo
    assert np.abs(reshaped - probabilities[0]).max() > 1e-3
    assert classifier.predict([]).shape == (0,)
    assert classifier.predict_proba([]).shape == (0, 3)


def test_the_strength_is_chosen_where_none_is_given(photos: NDArray[np.uint8], labels: NDArray[np.str_]) -> None:
    classifier = make_classifier(l2=None).fit(photos, labels)
    again = make_classifier(l2=classifier.l2_).fit(photos, labels)
    np.testing.assert_allclose(classifier.predict_proba(photos), again.predict_proba(photos), atol=1e-5)
    assert classifier.l2_ in RIDGE_STRENGTHS


@pytest.mark.parametrize(
    ("rows", "targets"),
    [([0, 1], "ab"), ([0, 3, 1], "aab"), ([0, 0, 1], "aab"), ([0, 0, 1], "aba")],
    ids=["no fold", "two folds", "no fold, a copy", "one fold, a copy with two labels"],
)
def test_few_photos_are_all_fitted_on(photos: NDArray[np.uint8], rows: list[int], targets: str) -> None:
    """Folds whose rows lack a class are of no use; what is left of them must not decide what is fitted on."""
    classifier = make_classifier(l2=None).fit(photos[rows], list(targets))
    alone = make_classifier(l2=classifier.l2_).fit(photos[rows], list(targets))
    np.testing.assert_allclose(classifier.predict_proba(photos), alone.predict_proba(photos), atol=1e-5)
    vectors, _ = classifier._embed(list(photos[rows]))
    labels = np.unique(list(targets), return_inverse=True)[1]
    head, _, _ = fit_ridge(vectors, labels, 2, strengths=(classifier.l2_,))
    cosine = np.sum(head.weights * classifier.head_.weights) / (
        np.linalg.norm(head.weights) * np.linalg.norm(classifier.head_.weights)
    )
    assert cosine == pytest.approx(1, abs=1e-5)  # all but the temperature is that of a fit without folds


# --- scikit-learn's manners -----------------------------------------------------------------------------------------


def test_parameters_are_got_set_and_cloned(photos: NDArray[np.uint8], labels: NDArray[np.str_]) -> None:
    from sklearn.base import clone, is_classifier

    options = {"effort": "instant", "backbone": "lite1", "imgsz": 96, "l2": 0.5, "seed": 3, "workers": 1}
    classifier = PomonaClassifier(**options)  # type: ignore[arg-type]
    assert classifier.get_params() == options
    assert clone(classifier).get_params() == options
    assert classifier.set_params(imgsz=64, backbone="lite0") is classifier
    fitted = classifier.fit(photos, labels)
    assert not hasattr(clone(fitted), "head_")
    assert is_classifier(classifier)
    assert "fast" not in repr(PomonaClassifier())  # defaults are left out
    with pytest.raises(ValueError, match="Invalid parameter 'epochs'"):
        classifier.set_params(epochs=3)


def test_cross_validation_runs_the_network_once(
    photos: NDArray[np.uint8], labels: NDArray[np.str_], monkeypatch: pytest.MonkeyPatch
) -> None:
    from sklearn.model_selection import GridSearchCV, cross_val_score

    make_classifier().fit(photos, labels)
    monkeypatch.setattr(features_module, "Engine", _NoEngine)
    scores = cross_val_score(make_classifier(), photos, labels, cv=4)
    assert scores.shape == (4,)
    assert scores.mean() > 0.7
    search = GridSearchCV(make_classifier(), {"l2": [10.0, 0.01]}, cv=2).fit(photos, labels)
    assert search.best_params_["l2"] in {10.0, 0.01}
    assert search.best_estimator_.score(photos, labels) > 0.7


class _NoEngine:
    """Stands where a second run of the network would begin."""

    precision = Engine.precision

    def __init__(self, *_: Any, **__: Any) -> None:
        raise AssertionError("the network was run again")


def test_it_ends_a_pipeline(paths: list[Path], labels: NDArray[np.str_]) -> None:
    from sklearn.model_selection import cross_val_predict
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import FunctionTransformer

    pipeline = make_pipeline(FunctionTransformer(list), make_classifier())
    assert pipeline.fit(paths, labels).score(paths, labels) == 1.0
    assert pipeline.set_params(pomonaclassifier__l2=0.1).get_params()["pomonaclassifier__l2"] == 0.1
    assert cross_val_predict(pipeline, np.array(paths), labels, cv=2).shape == (24,)


def test_an_unfitted_classifier_says_so(photos: NDArray[np.uint8]) -> None:
    from sklearn.exceptions import NotFittedError

    for verb in ("predict", "predict_proba"):
        with pytest.raises(NotFittedError, match="not fitted yet"):
            getattr(make_classifier(), verb)(photos)


# --- faults ---------------------------------------------------------------------------------------------------------


def test_labels_that_do_not_fit_the_photos_are_a_data_error(photos: NDArray[np.uint8]) -> None:
    with pytest.raises(DataError, match=r"wanted a label for each photo, got 4 photos and labels of shape \(3,\)"):
        make_classifier().fit(photos[:4], ["a", "b", "a"])
    with pytest.raises(DataError, match=r"got 4 photos and labels of shape \(4, 1\)"):
        make_classifier().fit(photos[:4], np.zeros((4, 1)))
    with pytest.raises(DataError, match="wanted two classes or more, got 1"):
        make_classifier().fit(photos[:4], ["a"] * 4)
    with pytest.raises(DataError, match="wanted two classes or more, got 0"):
        make_classifier().fit([], [])


def test_one_path_is_not_a_sequence(photos: NDArray[np.uint8], labels: NDArray[np.str_]) -> None:
    classifier = make_classifier().fit(photos, labels)
    for path in ("apple.jpg", Path("apple.jpg")):
        with pytest.raises(DataError, match=r"got one path: put it in a list: \['apple.jpg'\]"):
            classifier.predict(path)  # type: ignore[arg-type]


def test_a_bad_photo_is_named_by_its_row(
    photos: NDArray[np.uint8], labels: NDArray[np.str_], paths: list[Path], tmp_path: Path
) -> None:
    classifier = make_classifier().fit(photos, labels)
    cut = tmp_path / "cut.png"
    cut.write_bytes(paths[0].read_bytes()[:1000])
    with pytest.raises(PhotoError, match="photo 2: ") as caught:
        classifier.predict([paths[0], paths[1], cut])
    assert caught.value.fault == "truncated"
    with pytest.raises(PhotoError) as caught:
        classifier.predict([tmp_path / "gone.jpg"])
    assert caught.value.fault == "not_found"
    for bad in (photos[0].astype(float), photos[0][..., :1], photos[0][..., 0], photos[0][:0], None, 3):
        with pytest.raises(PhotoError, match=r"photo 1: wanted a path or an array \(H, W, 3\) of uint8, got shape"):
            classifier.predict([photos[0], bad])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"effort": "most"}, "effort: wanted one of instant, fast, best, got 'most'"),
        ({"backbone": "vit"}, "backbone: wanted one of lite0"),
        ({"imgsz": 32}, "imgsz: wanted 64 to 1024 pixels, got 32"),
        ({"l2": -1.0}, "l2: wanted one strength or more"),
        ({"workers": 0, "imgsz": 65}, "workers: wanted 1 or more, got 0"),
    ],
)
def test_an_option_that_cannot_be_is_an_option_error(
    photos: NDArray[np.uint8], labels: NDArray[np.str_], options: dict[str, Any], message: str
) -> None:
    with pytest.raises(OptionError, match=message):
        make_classifier(**options).fit(photos, labels)
