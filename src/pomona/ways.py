"""Ways to learn from photos that a benchmark compares, each in a process of its own.

In: a `Task`, which names a way and a table of photos with their parts. Out: a `Trial`: what it answers for the photos
of the test part, and what that cost.
Why: a process of its own makes memory and time those of one way, and a way that fails, or lacks a package, takes no
other with it. The photos reported on are the table's test part, so nothing can be chosen on them.
"""

from __future__ import annotations

import contextlib
import csv
import json
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import numpy as np

from pomona.clock import end_with_parent, read_peak_mb
from pomona.dataset import load_dataset
from pomona.effort import Effort, choose_precision, measure_machine, plan_embedding
from pomona.errors import MissingPackageError, PhotoError, PomonaError
from pomona.files import write_atomic
from pomona.parts import list_folds

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from numpy.typing import NDArray

    from pomona.classic_features import BlockName
    from pomona.dataset import Dataset, Photo
    from pomona.embedding import Embedding
    from pomona.features import Features

    _Answer = Callable[[NDArray[np.float32], NDArray[np.float32]], NDArray[np.intp]]

WayName = Literal["most-frequent", "classic", "scratch", "nearest", "frozen", "pomona", "tuned"]

TITLES: dict[WayName, str] = {
    "most-frequent": "Most frequent class",
    "classic": "Classic features",
    "scratch": "From scratch",
    "nearest": "Frozen, nearest photo",
    "frozen": "Frozen, new layer",
    "pomona": "Pomona",
    "tuned": "Pomona, tuned",
}
"""In the order of the table: from what knows nothing to what knows most."""

MAX_LEARNT = 6_000
"""Photos that classic classifiers learn from where there are more: they compare each with each."""

FROZEN_SIZE_PX = 224
_ROWS_PER_PART = 2048

_BLOCK_SETS: tuple[tuple[BlockName, ...], ...] = (
    ("colour",),
    ("texture",),
    ("shape",),
    ("colour", "texture"),
    ("colour", "texture", "shape"),
)
_GRIDS: dict[str, tuple[tuple[float, ...], ...]] = {
    "SVM": ((10.0, 1.0), (10.0, 2.0), (2.0, 1.0), (50.0, 1.0)),  # C, gamma times the mean squared distance
    "nearest photos": ((3.0,), (1.0,), (9.0,)),
    "random forest": ((50.0,), (300.0,)),  # the fewer trees tell it from others as well
    "logistic regression": ((30.0,), (5.0,), (200.0,)),
}
"""Settings of each classifier; features and classifier are chosen with the first, then the setting."""

_N_AXES = 256
"""Principal axes that logistic regression sees: with all dimensions it takes minutes and is no better."""


@dataclass(frozen=True, kw_only=True)
class Task:
    """What a process is to measure.

    Parameters
    ----------
    way : WayName
        Which way.
    table : str
        Table with the columns file_name, label, split and group; its test part is answered for.
    effort : {"instant", "fast", "best"}
        Of Pomona's own way.
    folds : int
        Folds inside the train part that classic features and their classifier are chosen by.
    scratch_time_s : float
        Seconds that the network from scratch may train.
    scratch_epochs : int
        Times it may go over the photos.
    tune_time : str
        Time of the tuned way, as `TrainOptions.time`.
    seed : int
        Of all that is drawn.
    workers : int, optional
        Threads.
    """

    way: WayName
    table: str
    effort: Effort = "fast"
    folds: int = 3
    scratch_time_s: float = 120.0
    scratch_epochs: int = 100
    tune_time: str = "10m"
    seed: int = 0
    workers: int | None = None


@dataclass(frozen=True, kw_only=True)
class Trial:
    """What a way answered, or why it did not.

    Parameters
    ----------
    answers : dict of str to str
        Path of each photo to the label it is given.
    detail : str
        What was chosen or done, in a few words.
    n_cached : int
        Photos whose features were in the cache.
    cpu_seconds : float
        Processor time of all its threads.
    memory_mb : float, optional
        Most memory it held at once; None where the system does not tell.
    tried : list of (str, float)
        Choices tried by cross-validation inside train, and the share of photos right.
    missing : tuple of str, optional
        Package and extra that it lacks.
    error : str
        What went wrong; empty if nothing did.
    """

    answers: dict[str, str] = field(default_factory=dict)
    detail: str = ""
    n_cached: int = 0
    cpu_seconds: float = 0.0
    memory_mb: float | None = None
    tried: list[tuple[str, float]] = field(default_factory=list)
    missing: tuple[str, str] | None = None
    error: str = ""


class Found(NamedTuple):
    """Answers of a way: a class number for each of the photos asked for, in their order."""

    photos: Sequence[Photo]
    answers: NDArray[np.intp]
    detail: str
    n_cached: int = 0
    tried: Sequence[tuple[str, float]] = ()


def try_way(task: Task) -> Trial:
    """Learn in one way and answer for the test part; what goes wrong becomes a part of the result.

    Parameters
    ----------
    task : Task
        What to do.

    Returns
    -------
    Trial
        Its cost is that of this process since it began.
    """
    try:
        dataset = load_dataset(task.table, min_classes=1)
        found = _WAYS[task.way](dataset, task)
    except MissingPackageError as error:
        return Trial(missing=(error.package, error.extra), error=str(error), **_measure_process())
    except PomonaError as error:
        return Trial(error=str(error), **_measure_process())
    names = dataset.tree.names
    answers = {str(one.path): names[label] for one, label in zip(found.photos, found.answers, strict=True)}
    cost = _measure_process()
    return Trial(answers=answers, detail=found.detail, n_cached=found.n_cached, tried=list(found.tried), **cost)


# --- ways -----------------------------------------------------------------------------------------------------------


def _say_most_frequent(dataset: Dataset, _task: Task) -> Found:
    learnt, asked = _part_rows(dataset)
    label = int(np.bincount(dataset.labels[learnt]).argmax())
    return Found([dataset.photos[i] for i in asked], np.full(len(asked), label), "looks at no photo")


def _learn_classic(dataset: Dataset, task: Task) -> Found:
    from pomona.classic_features import extract_classic_features

    _require_sklearn()
    features = extract_classic_features(dataset, n_workers=task.workers)
    dataset = features.dataset
    learnt, asked = _part_rows(dataset)
    learnt = _draw_evenly(dataset.labels, learnt, MAX_LEARNT, task.seed)
    labels = dataset.labels[learnt]
    folds = list_folds(labels, dataset.groups[learnt], seed=task.seed, n_folds=task.folds)
    tables = {names: _Table.make(features.join(names, learnt), labels, task) for names in _BLOCK_SETS}
    tried: list[tuple[str, float]] = []

    def score(names: tuple[BlockName, ...], kind: str, setting: tuple[float, ...]) -> float:
        right = [tables[names].hold_out(kind, setting, fitted, held_out) for fitted, held_out in folds]
        tried.append((f"{' + '.join(names)}, {_describe(kind, setting)}", float(np.concatenate(right).mean())))
        return tried[-1][1]

    names, kind, setting = _BLOCK_SETS[-1], "SVM", _GRIDS["SVM"][0]
    if folds:
        pairs = [(names, kind) for names in _BLOCK_SETS for kind in _GRIDS]
        shares = [score(names, kind, _GRIDS[kind][0]) for names, kind in pairs]
        names, kind = pairs[int(np.argmax(shares))]
        settings = _GRIDS[kind]
        setting = settings[int(np.argmax([max(shares), *(score(names, kind, one) for one in settings[1:])]))]
    table = tables[names]
    answer = table.fit(kind, setting, np.arange(len(learnt)))
    parts = [features.join(names, rows) for rows in np.array_split(asked, -(-len(asked) // _ROWS_PER_PART))]
    answers = np.concatenate([answer(x, _measure_distances(x, table.x)) for x in parts])
    chosen = f"{' + '.join(names)}, {_describe(kind, setting)}" + ("" if folds else "; not chosen, too few groups")
    return Found([dataset.photos[i] for i in asked], answers, chosen, tried=tried)


def _learn_from_scratch(dataset: Dataset, task: Task) -> Found:
    from pomona.backbone import Preprocessing
    from pomona.photo import read_unchanged
    from pomona.scratch_network import SIZE_PX, train_network

    _limit_torch(task.workers)
    preprocessing = Preprocessing(SIZE_PX, decode_px=SIZE_PX)

    def read(photo: Photo) -> NDArray[np.uint8] | PhotoError:
        try:
            return preprocessing.read(read_unchanged(photo.path, photo.sha256))
        except PhotoError as error:
            return error

    with ThreadPoolExecutor(task.workers) as pool:
        pixels = list(pool.map(read, dataset.photos))
    dataset = dataset.leave_out({i: one for i, one in enumerate(pixels) if isinstance(one, PhotoError)})
    table = np.stack([one for one in pixels if not isinstance(one, PhotoError)])
    del pixels
    learnt, asked = _part_rows(dataset)
    network = train_network(
        table[learnt],
        dataset.labels[learnt],
        len(dataset.tree),
        time_s=task.scratch_time_s,
        n_epochs=task.scratch_epochs,
        seed=task.seed,
    )
    answers = network.predict_proba(table[asked]).argmax(axis=1)
    ended = "its time was up" if network.stopped_by == "time" else "all that were allowed"
    return Found([dataset.photos[i] for i in asked], answers, f"{network.n_epochs:.0f} epochs, {ended}")


def _learn_layer(dataset: Dataset, task: Task) -> Found:
    return _fit_head(dataset, task, _average(task))


def _learn_pomona(dataset: Dataset, task: Task) -> Found:
    precision = choose_precision(measure_machine(task.workers))
    return _fit_head(dataset, task, plan_embedding(task.effort, precision=precision))


def _find_nearest(dataset: Dataset, task: Task) -> Found:
    embedding = _average(task)
    features = _extract(dataset, task, embedding)
    dataset, vectors = features.dataset, features.vectors
    learnt, asked = _part_rows(dataset)
    units = vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)
    known = units[learnt]
    nearest = [
        (units[rows] @ known.T).argmax(axis=1) for rows in np.array_split(asked, -(-len(asked) // _ROWS_PER_PART))
    ]
    answers = dataset.labels[learnt[np.concatenate(nearest)]]
    return Found([dataset.photos[i] for i in asked], answers, _describe_embedding(embedding), features.n_cached)


def _tune(dataset: Dataset, task: Task) -> Found:
    from pomona.training import TrainOptions, train

    _limit_torch(task.workers)
    with tempfile.TemporaryDirectory() as folder:
        options = TrainOptions(
            data=Path(task.table),
            output=Path(folder) / "run",
            tune="tail",
            time=task.tune_time,
            check="none",
            seed=task.seed,
            workers=task.workers,
        )
        epochs: list[float] = []
        result = train(options, on_row=lambda row, _n_epochs: epochs.append(row.epoch))
        with (result.bundle.folder / "predictions.csv").open(encoding="utf-8", newline="") as stream:
            rows = list(csv.DictReader(stream))
    photos = {photo.name: photo for photo in dataset.photos}
    number = {name: label for label, name in enumerate(dataset.tree.names)}
    answers = np.array([number[row["predicted"]] for row in rows], np.intp)
    return Found(
        [photos[row["file_name"]] for row in rows],
        answers,
        f"{max(epochs, default=0):.3g} epochs of its upper layers, lite2",
    )


_WAYS: dict[WayName, Callable[[Dataset, Task], Found]] = {
    "most-frequent": _say_most_frequent,
    "classic": _learn_classic,
    "scratch": _learn_from_scratch,
    "nearest": _find_nearest,
    "frozen": _learn_layer,
    "pomona": _learn_pomona,
    "tuned": _tune,
}


def _part_rows(dataset: Dataset) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """Rows learnt from, and rows asked for."""
    splits = np.array([photo.split for photo in dataset.photos])
    is_known = dataset.labels >= 0
    return np.flatnonzero((splits == "train") & is_known), np.flatnonzero(splits == "test")


# --- frozen networks ------------------------------------------------------------------------------------------------


def _average(task: Task) -> Embedding:
    """Averages of the last activations: what a new last layer is usually put on."""
    from pomona.backbone import find_backbone
    from pomona.embedding import Embedding

    backbone = find_backbone("lite0", size_px=FROZEN_SIZE_PX)
    precision = choose_precision(measure_machine(task.workers))
    return Embedding((replace(backbone, precision=precision, pooled=("head",)),), "average")


def _extract(dataset: Dataset, task: Task, embedding: Embedding) -> Features:
    from pomona.features import extract_features

    return extract_features(dataset, embedding, n_workers=task.workers)


def _fit_head(dataset: Dataset, task: Task, embedding: Embedding) -> Found:
    from pomona.ridge import fit_ridge

    features = _extract(dataset, task, embedding)
    dataset = features.dataset
    learnt, asked = _part_rows(dataset)
    labels = np.maximum(dataset.labels, 0)
    chosen = np.flatnonzero(np.array([photo.split == "val" for photo in dataset.photos]) & (dataset.labels >= 0))
    if len(chosen):
        folds = [(learnt, chosen)]
    else:
        parts = list_folds(labels[learnt], dataset.groups[learnt], seed=task.seed)
        folds = [(learnt[fitted], learnt[held_out]) for fitted, held_out in parts]
    head, _, _ = fit_ridge(features.vectors, labels, len(dataset.tree), folds, rows=learnt)
    answers = head.predict_proba(features.vectors[asked]).argmax(axis=1)
    return Found([dataset.photos[i] for i in asked], answers, _describe_embedding(embedding), features.n_cached)


def _describe_embedding(embedding: Embedding) -> str:
    names = " + ".join(one.name for one in embedding.backbones)
    pooled = "second moments" if embedding.pooling == "second-order" else "averages"
    return f"{names} at {embedding.preprocessing.size_px} px, {pooled}"


def _limit_torch(n_workers: int | None) -> None:
    """Let torch use as many threads as were asked for; where it is not installed, the way says so itself."""
    with contextlib.suppress(ModuleNotFoundError):
        import torch

        if n_workers:
            torch.set_num_threads(n_workers)


# --- classic classifiers --------------------------------------------------------------------------------------------


class _Table(NamedTuple):
    """What classic classifiers learn from.

    Features (N, D), their squared distances (N, N) and the mean of those, and labels (N,).
    """

    x: NDArray[np.float32]
    distances: NDArray[np.float32]
    spread: float
    labels: NDArray[np.intp]
    seed: int
    n_jobs: int

    @classmethod
    def make(cls, x: NDArray[np.float32], labels: NDArray[np.intp], task: Task) -> _Table:
        distances = _measure_distances(x, x)
        spread = float(distances.mean(dtype=np.float64)) or 1.0
        return cls(x, distances, spread, labels, task.seed, task.workers or -1)

    def hold_out(
        self, kind: str, setting: tuple[float, ...], fitted: NDArray[np.intp], held_out: NDArray[np.intp]
    ) -> NDArray[np.bool_]:
        """Whether a classifier that is fitted on some rows is right on others."""
        answers = self.fit(kind, setting, fitted)(self.x[held_out], self.distances[np.ix_(held_out, fitted)])
        return np.equal(answers, self.labels[held_out])

    def fit(self, kind: str, setting: tuple[float, ...], rows: NDArray[np.intp]) -> _Answer:
        """Fit a classifier on some rows; it takes features and their squared distances from those rows."""
        known, distances = self.labels[rows], self.distances[np.ix_(rows, rows)]
        if len(np.unique(known)) < 2:
            return lambda x, _distances: np.full(len(x), known[0])
        if kind == "SVM":
            from sklearn.svm import SVC

            strength, scale = setting[0], setting[1] / self.spread
            model = SVC(C=strength, kernel="precomputed").fit(np.exp(-scale * distances), known)
            return lambda _x, distances: model.predict(np.exp(-scale * distances))
        if kind == "nearest photos":
            from sklearn.neighbors import KNeighborsClassifier

            n_nearest = min(int(setting[0]), len(rows))
            nearest = KNeighborsClassifier(n_nearest, weights="distance", metric="precomputed", n_jobs=1)
            nearest.fit(np.sqrt(distances), known)
            return lambda _x, distances: nearest.predict(np.sqrt(distances))
        if kind == "random forest":
            from sklearn.ensemble import RandomForestClassifier

            forest = RandomForestClassifier(int(setting[0]), n_jobs=self.n_jobs, random_state=self.seed)
            forest.fit(self.x[rows], known)
            return lambda x, _distances: forest.predict(x)
        from sklearn.decomposition import PCA
        from sklearn.linear_model import LogisticRegression

        axes = PCA(min(_N_AXES, len(rows) - 1, self.x.shape[1]), random_state=self.seed).fit(self.x[rows])
        regression = LogisticRegression(C=setting[0], max_iter=300).fit(axes.transform(self.x[rows]), known)
        return lambda x, _distances: regression.predict(axes.transform(x))


def _measure_distances(a: NDArray[np.float32], b: NDArray[np.float32]) -> NDArray[np.float32]:
    """Squared distances (N, M)."""
    norms = [np.einsum("ij,ij->i", x, x) for x in (a, b)]
    return np.asarray(np.maximum(norms[0][:, None] + norms[1] - 2 * (a @ b.T), 0), np.float32)


def _require_sklearn() -> None:
    try:
        import sklearn  # noqa: F401
    except ModuleNotFoundError as error:
        if error.name != "sklearn":
            raise
        raise MissingPackageError("scikit-learn", "benchmark", "for classic classifiers") from error


def _draw_evenly(labels: NDArray[np.intp], rows: NDArray[np.intp], limit: int, seed: int) -> NDArray[np.intp]:
    """At most `limit` rows, of every class; in their order."""
    if len(rows) <= limit:
        return rows
    order = np.random.default_rng(seed).permutation(rows)
    ranks = np.empty(len(order), np.intp)  # the first of each class, then the second of each
    for label in np.unique(labels[order]):
        own = np.flatnonzero(labels[order] == label)
        ranks[own] = np.arange(len(own))
    return np.sort(order[np.argsort(ranks, kind="stable")[:limit]])


def _describe(kind: str, setting: tuple[float, ...]) -> str:
    """Say a classifier and its setting.

    Examples
    --------
    >>> _describe("SVM", (10.0, 1.0)), _describe("nearest photos", (3.0,))
    ('SVM (C 10, gamma 1)', 'nearest photos (3)')
    """
    if kind == "SVM":
        return f"SVM (C {setting[0]:g}, gamma {setting[1]:g})"
    if kind == "logistic regression":
        return f"logistic regression (C {setting[0]:g})"
    return f"{kind} ({setting[0]:g})"


# --- the process ----------------------------------------------------------------------------------------------------


def _measure_process() -> dict[str, Any]:
    """Processor time and most memory of this process, since it began."""
    cpu_s = time.process_time()
    with contextlib.suppress(ImportError):  # not on Windows
        import resource

        children = resource.getrusage(resource.RUSAGE_CHILDREN)
        cpu_s += children.ru_utime + children.ru_stime
    return {"cpu_seconds": cpu_s, "memory_mb": read_peak_mb()}


def main(task_path: Path, trial_path: Path) -> None:
    """What the process runs: read a task, write a trial."""
    end_with_parent()
    task = Task(**json.loads(task_path.read_text("utf-8")))
    write_atomic(trial_path, json.dumps(asdict(try_way(task))))


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))
