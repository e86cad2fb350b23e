"""The whole way from photos to a run folder, in named steps.

In: `TrainOptions`. Out: a `TrainResult`: the bundle, its evaluation, and how long each step took.
Why: one place shows the order of things. Each step is one call to the module that owns it.
"""

from __future__ import annotations

import glob
import itertools
import os
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, get_args

import numpy as np

from pomona.backbone import BackboneName  # noqa: TC001 - the command line reads the hints
from pomona.bundle import list_levels
from pomona.class_tree import show_text
from pomona.clock import Clock
from pomona.dataset import ClassTree, Dataset, Split, iter_folds, load_dataset, split_dataset
from pomona.effort import Effort, choose_effort, forecast, measure_machine, parse_time, plan_embedding
from pomona.errors import DataError, NotFiniteError, OptionError, StorageError
from pomona.evaluation import evaluate
from pomona.features import Features, extract_features, list_missing, release_pages
from pomona.files import MANIFEST_NAME, SYSTEM_FILES, new_folder, storage_errors
from pomona.learnt import Learnt, save_learnt
from pomona.ridge import RIDGE_STRENGTHS, fit_ridge
from pomona.run_folder import RUN_FILES, Run, read_setting, write_run

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from numpy.typing import NDArray

    from pomona.bundle import Bundle
    from pomona.clock import Progress, Stage
    from pomona.effort import Forecast
    from pomona.embedding import Embedding
    from pomona.evaluation import Evaluation
    from pomona.head import Fit, Head
    from pomona.ridge import Ridge

N_FOLDS = 5
_ROWS_PER_PART = 4096
_FEW_PHOTOS = 100  # below this the interval of an accuracy is wider than about 15 points


@dataclass(frozen=True, kw_only=True)
class TrainOptions:
    """What `train` takes; the command line offers the same names, defaults and help.

    Parameters
    ----------
    data : Path
        Folder, table, list, pattern or zip of labelled photos.
    output : Path, optional
        Run folder; `runs/` and the name of the data where not given, and a number after it where a run of other data
        stands there. A run that stands at the place is replaced when the new one is whole; anything else there is an
        error.
    effort : {"instant", "fast", "best"}, optional
        How much work goes into the features; ``fast`` where neither it nor a time is given.
    time : str, optional
        Time it may take, such as ``60s`` or ``2m``: the greatest effort that is forecast to be done by then.
    backbone : {"lite0", "lite1", "lite2"}, optional
        Pretrained network, instead of those of the effort.
    imgsz : int, optional
        Side of the square the network sees, in pixels, instead of that of the effort.
    val_share : float
        Share of the photos kept apart, 0-1, where the data has no val and no test part.
    seed : int
        Decides which photos are kept apart.
    workers : int, optional
        Threads for decoding and the network; every core where not given.
    """

    data: Annotated[Path, "Folder, table (CSV, TSV), list, pattern or zip of labelled photos."]
    output: Annotated[Path | None, "Run folder to write; by default runs/ and the name of the data."] = None
    effort: Annotated[Effort | None, "How much work goes into the features; by default fast."] = None
    time: Annotated[str | None, "Time it may take, such as 60s or 2m; picks the effort by a forecast."] = None
    backbone: Annotated[BackboneName | None, "Pretrained network, instead of those of the effort."] = None
    imgsz: Annotated[int | None, "Side of the square the network sees, in pixels, instead of that of the effort."] = (
        None
    )
    val_share: Annotated[float, "Share of photos to keep apart where the data has no val or test part."] = 0.2
    seed: Annotated[int, "Decides which photos are kept apart."] = 0
    workers: Annotated[int | None, "Threads for decoding and the network; by default every core."] = None

    def __post_init__(self) -> None:
        if self.effort is not None and self.time is not None:
            raise OptionError(f"wanted an effort or a time, got both: {self.effort} and {self.time}")
        if self.time is not None:
            parse_time(self.time)
        if not 0 < self.val_share < 1:
            raise OptionError(f"val-share: wanted a share between 0 and 1, got {self.val_share}")
        if self.workers is not None and self.workers < 1:
            raise OptionError(f"workers: wanted 1 or more, got {self.workers}")

    def to_dict(self) -> dict[str, str | int | float | None]:
        """Options by name, paths as text fit to be written."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        return {name: show_text(str(value)) if isinstance(value, Path) else value for name, value in values.items()}

    def resolve(self) -> TrainOptions:
        """Copy with every default filled in that can be known before the photos are seen."""
        effort: Effort | None = "fast" if self.effort is None and self.time is None else self.effort
        embedding = plan_embedding(effort or "fast", backbone=self.backbone, size_px=self.imgsz)
        data = Path(os.path.expanduser(self.data))  # noqa: PTH111 - of an unknown user, `Path` makes an error
        output = _choose_output(data) if self.output is None else Path(os.path.expanduser(self.output))  # noqa: PTH111
        size_px = embedding.preprocessing.size_px if effort else self.imgsz
        return replace(self, data=data, output=output, effort=effort, imgsz=size_px)


@dataclass(frozen=True)
class TrainResult:
    """What `train` made.

    Parameters
    ----------
    bundle : Bundle
        The recogniser.
    evaluation : Evaluation
        Metrics of the photos kept apart.
    evaluated_on : str
        Which photos these are.
    dataset : Dataset
        The photos as they were used, with what was skipped.
    notes : tuple of str
        What to know before trusting the numbers.
    stages : tuple of Stage
        Time of each step, in order.
    """

    bundle: Bundle
    evaluation: Evaluation
    evaluated_on: str
    dataset: Dataset
    notes: tuple[str, ...]
    stages: tuple[Stage, ...]


def train(
    options: TrainOptions,
    *,
    on_progress: Progress | None = None,
    on_forecast: Callable[[Sequence[Forecast], Forecast], None] | None = None,
) -> TrainResult:
    """Make a recogniser from labelled photos.

    Parameters
    ----------
    options : TrainOptions
        What to do.
    on_progress : callable, optional
        Called with (step, done, in all).
    on_forecast : callable, optional
        Called once, before the features are computed, with the forecasts of the efforts and the one that is taken.

    Returns
    -------
    TrainResult
        The bundle and how good it is.

    Raises
    ------
    PomonaError
        One of its children, which says what is wrong and where.
    """
    options = options.resolve()
    output = _check_output(options)
    clock = Clock(on_progress)

    with clock.step("read"):
        dataset, plan = plan_parts(load_dataset(options.data, on_photo=clock.count), options.val_share, options.seed)
    with clock.step("plan"):
        options, embedding, forecasts, taken = _plan_effort(dataset, options)
    if on_forecast:
        on_forecast(forecasts, taken)
    with clock.step("features", dataset.n_photos):
        features, embedding, fell_back = _extract_features(dataset, embedding, options.workers, clock)
    features, dropped = drop_empty_classes(features)
    with clock.step("fit"):
        head, fits, ridge = _fit_parts(features, plan, options.seed, clock)
    with clock.step("evaluate"):
        reported, probabilities, evaluation = _score_part(features, plan.report_on, head)

    run = Run(
        title=show_text(_name_data(options.data)),
        settings=options.to_dict(),
        embedding=embedding,
        dataset=features.dataset,
        head=head,
        fits=fits,
        reported=reported,
        probabilities=probabilities,
        evaluation=evaluation,
        evaluated_on=plan.evaluated_on,
        notes=(*plan.notes, *fell_back, *dropped, *note_data(features.dataset, evaluation.n)),
    )
    with clock.step("save"):
        with new_folder(output) as folder:
            bundle = write_run(folder, run, clock.stages)
            _check_place(output)  # once more: somebody may have put a file there in the meantime
        notes = (*run.notes, *_keep_learnt(bundle, ridge, features.dataset))
    return TrainResult(
        replace(bundle, folder=output), evaluation, plan.evaluated_on, features.dataset, notes, tuple(clock.stages)
    )


def _plan_effort(
    dataset: Dataset, options: TrainOptions
) -> tuple[TrainOptions, Embedding, tuple[Forecast, ...], Forecast]:
    """Forecast the effort that is wanted, or all of them where a time is given, and take the one that fits."""
    machine = measure_machine(options.workers)
    efforts: tuple[Effort, ...] = get_args(Effort) if options.effort is None else (options.effort,)
    n_learnt = sum(photo.split == "train" and photo.label >= 0 for photo in dataset.photos)
    embeddings = {
        effort: plan_embedding(effort, backbone=options.backbone, size_px=options.imgsz, precision=machine.precision)
        for effort in efforts
    }
    forecasts = tuple(
        forecast(
            effort,
            embedding,
            machine,
            [photo.path for photo in list_missing(dataset, embedding)],
            n_learnt=n_learnt,
            n_workers=options.workers,
        )
        for effort, embedding in embeddings.items()
    )
    taken = forecasts[0] if options.time is None else choose_effort(forecasts, parse_time(options.time))
    embedding = embeddings[taken.effort]
    planned = replace(options, effort=taken.effort, time=None, imgsz=embedding.preprocessing.size_px)
    return planned, embedding, forecasts, taken


def _extract_features(
    dataset: Dataset, embedding: Embedding, n_workers: int | None, clock: Clock
) -> tuple[Features, Embedding, tuple[str, ...]]:
    """Features of all photos; in float32 where a quantised network gives no numbers."""
    try:
        return extract_features(dataset, embedding, n_workers=n_workers, on_photo=clock.count), embedding, ()
    except NotFiniteError as error:
        if embedding.precision == "f32":
            raise
        note = f"Computed in float32, more slowly: {error}."
    embedding = replace(embedding, backbones=tuple(replace(one, precision="f32") for one in embedding.backbones))
    return extract_features(dataset, embedding, n_workers=n_workers, on_photo=clock.count), embedding, (note,)


@dataclass(frozen=True)
class PartPlan:
    """Which photos a head is fitted on, chosen by and reported on.

    Parameters
    ----------
    choose_on : {"val", None}
        Part that the L2 strength is chosen on; None: by cross-validation inside train.
    report_on : {"val", "test"}
        Part that the headline is measured on.
    evaluated_on : str
        The same in words.
    notes : tuple of str
        What a reader must know of it.
    """

    choose_on: Split | None
    report_on: Split
    evaluated_on: str
    notes: tuple[str, ...] = ()


def plan_parts(dataset: Dataset, val_share: float, seed: int) -> tuple[Dataset, PartPlan]:
    """Decide what each photo is used for; photos that the data does not place are split.

    Parameters
    ----------
    dataset : Dataset
        With or without splits.
    val_share : float
        Share of photos to keep apart where there is no val and no test part.
    seed : int
        Decides which.

    Returns
    -------
    Dataset, PartPlan
        Every photo with a split, and the plan.

    Raises
    ------
    DataError
        If there is a val or test part and nothing to learn from.
    """
    present = {photo.split for photo in dataset.photos if photo.label >= 0}
    if present & {"val", "test"} and not present & {"train", None}:
        raise DataError(
            f"{dataset.shown}: wanted a train part to learn from, got only {', '.join(sorted(map(str, present)))}"
        )
    if not present & {"val", "test"}:
        kept_apart = split_dataset(dataset, val_share=val_share, seed=seed)
        n_kept = sum(photo.split == "val" and photo.label >= 0 for photo in kept_apart.photos)
        were = "was" if n_kept == 1 else "were"
        lost = _note_lost_parts(dataset, f"{_count_photos(n_kept)} {were} kept apart from train instead")
        return kept_apart, PartPlan(None, "val", "photos kept apart", lost)
    photos = tuple(photo if photo.split else replace(photo, split="train") for photo in dataset.photos)
    placed = replace(dataset, photos=photos)
    if "test" in present:
        lost = _note_lost_parts(dataset, "the L2 strength was chosen by cross-validation inside train instead")
        return placed, PartPlan("val" if "val" in present else None, "test", "photos of the test part", lost)
    note = (
        f"The L2 strength, one of {len(RIDGE_STRENGTHS)}, and the temperature were chosen on the same val photos that "
        "the numbers are measured on."
    )
    lost = _note_lost_parts(dataset, "the numbers are measured on the val part instead")
    return placed, PartPlan("val", "val", "photos of the val part", (note, *lost))


def _note_lost_parts(dataset: Dataset, instead: str) -> tuple[str, ...]:
    """Say what was done instead of using the val and test parts that the data names and that have no usable photo."""
    present = {photo.split for photo in dataset.photos if photo.label >= 0}
    lost = [split for split in ("val", "test") if split in dataset.declared_splits and split not in present]
    if not lost:
        return ()
    parts = f"The {lost[0]} part has" if len(lost) == 1 else "The val and test parts have"
    return (f"{parts} no usable photo; {instead}.",)


def drop_empty_classes(features: Features) -> tuple[Features, tuple[str, ...]]:
    """Leave out classes with no usable photo to learn from, and say so.

    Raises
    ------
    DataError
        If fewer than two classes are left.
    """
    dataset = features.dataset
    tree = dataset.tree
    counts = np.bincount(dataset.part("train").labels, minlength=len(tree))
    kept = [c for c in range(len(tree)) if counts[c]]
    if len(kept) == len(tree):
        return features, ()
    empty = [tree.names[c] for c in range(len(tree)) if not counts[c]]
    if len(kept) < 2:
        raise DataError(
            f"{dataset.shown}: wanted two classes with a usable photo to learn from, got {len(kept)}; "
            f"without: {_name_some(empty)}"
        )
    number = {c: i for i, c in enumerate(kept)}
    smaller = ClassTree(tuple(tree.names[c] for c in kept), tuple(tree.paths[c] for c in kept))
    photos = tuple(replace(photo, label=number.get(photo.label, -1)) for photo in dataset.photos)
    measured = {photo.label for photo in dataset.photos}
    unknown = tuple("/".join(tree.paths[c]) for c in range(len(tree)) if not counts[c] and c in measured)
    smaller_dataset = replace(dataset, tree=smaller, photos=photos, unknown_labels=(*dataset.unknown_labels, *unknown))
    note = f"Left out, with no usable photo to learn from: {_name_some(empty)}."
    return replace(features, dataset=smaller_dataset), (note,)


def _fit_parts(
    features: Features, plan: PartPlan, seed: int, clock: Clock
) -> tuple[Head, tuple[Fit, ...], Ridge | None]:
    labels = features.dataset.labels
    splits = np.array([photo.split for photo in features.dataset.photos])
    train_rows = np.flatnonzero((splits == "train") & (labels >= 0))
    chosen_rows = np.flatnonzero((splits == plan.choose_on) & (labels >= 0))
    if plan.choose_on and len(chosen_rows):
        folds = [(train_rows, chosen_rows)]
    else:
        parts = list_folds(labels[train_rows], features.dataset.groups[train_rows], seed=seed)
        folds = [(train_rows[fitted], train_rows[held_out]) for fitted, held_out in parts]
    return fit_ridge(
        features.vectors,
        np.maximum(labels, 0),  # those of no class that is learnt are in none of the rows
        len(features.dataset.tree),
        folds,
        rows=train_rows,
        on_step=clock.counter(len(RIDGE_STRENGTHS)),
    )


def _keep_learnt(bundle: Bundle, ridge: Ridge | None, dataset: Dataset) -> tuple[str, ...]:
    """Let the recogniser be taught later; a run is whole without, so where that fails it is a note."""
    if ridge is None:
        return ()
    learnt = [photo.sha256 for photo in dataset.photos if photo.split == "train" and photo.label >= 0]
    try:
        save_learnt(bundle.manifest, Learnt(ridge, np.array(learnt)))
    except StorageError as error:
        return (f"Classes cannot be added later without training again: {error}.",)
    return ()


def list_folds(
    labels: NDArray[np.intp], groups: NDArray[np.str_], *, seed: int, n_folds: int = N_FOLDS
) -> list[tuple[NDArray[np.intp], NDArray[np.intp]]]:
    """Grouped folds to choose a strength on, in which every class that is held out is also learnt.

    Parameters
    ----------
    labels : ndarray of intp, (N,)
        Class of each photo.
    groups : ndarray of str, (N,)
        Group of each photo.
    seed : int
        Another seed draws other folds.
    n_folds : int
        How many; fewer where there are fewer groups.

    Returns
    -------
    list of (train, held_out)
        Rows of each fold; held-out photos of a class that its train rows lack are left out. None at all where fewer
        than two folds are of use.
    """
    n_folds = min(n_folds, len(np.unique(groups)))
    folds = []
    for fitted, held_out in iter_folds(labels, groups, n_folds=n_folds, seed=seed) if n_folds > 1 else ():
        learnt = held_out[np.isin(labels[held_out], labels[fitted])]
        if len(learnt):
            folds.append((fitted, learnt))
    return folds if len(folds) > 1 else []  # of a single pair, only the first part would be fitted on


def _score_part(features: Features, split: Split, head: Head) -> tuple[Dataset, NDArray[np.float32], Evaluation]:
    rows = [i for i, photo in enumerate(features.dataset.photos) if photo.split == split and photo.label >= 0]
    if not rows:
        raise DataError(
            f"{features.dataset.shown}: no photo of the {split} part is usable and of a class that train has"
        )
    dataset = replace(features.dataset, photos=tuple(features.dataset.photos[row] for row in rows))
    parts = []
    for start in range(0, len(rows), _ROWS_PER_PART):  # by parts: a table of many photos is in a file, and stays there
        parts.append(head.predict_proba(features.vectors[rows[start : start + _ROWS_PER_PART]]))
        release_pages(features.vectors)
    probabilities = np.concatenate(parts)
    tree = dataset.tree
    evaluation = evaluate(
        probabilities, dataset.labels, classes=tree.names, levels=list_levels(tree), groups=dataset.groups
    )
    return dataset, probabilities, evaluation


def note_data(dataset: Dataset, n_evaluated: int) -> tuple[str, ...]:
    """What a reader must know of the data before trusting the numbers.

    Parameters
    ----------
    dataset : Dataset
        With splits.
    n_evaluated : int
        Photos that the headline is measured on.

    Returns
    -------
    tuple of str
        Sentences.
    """
    notes = []
    if leaks := dataset.leaks:
        notes.append(f"Identical photos on both sides of a split: {len(leaks)}, the first {' and '.join(leaks[0])}.")
    if divided := dataset.divided_groups:
        notes.append(f"Groups with photos on both sides of a split: {len(divided)} ({_name_some(divided)}).")
    if conflicts := dataset.conflicts:
        notes.append(
            f"Identical photos with different labels: {len(conflicts)}, the first {' and '.join(conflicts[0])}."
        )
    if dataset.unknown_labels:
        n_photos = sum(photo.label < 0 for photo in dataset.photos)
        notes.append(
            f"Left out, of classes that train lacks: {_count_photos(n_photos)} ({_name_some(dataset.unknown_labels)})."
        )
    counts = np.bincount(dataset.part("train").labels.clip(0), minlength=len(dataset.tree))
    if single := [name for name, count in zip(dataset.tree.names, counts, strict=True) if count == 1]:
        notes.append(f"Learnt from one photo only: {_name_some(single)}.")
    if n_evaluated < _FEW_PHOTOS:
        notes.append(f"Measured on {_count_photos(n_evaluated)} only, so the intervals are wide.")
    return tuple(notes)


def _count_photos(n_photos: int) -> str:
    return "1 photo" if n_photos == 1 else f"{n_photos:,} photos"


def _name_some(names: tuple[str, ...] | list[str], limit: int = 6) -> str:
    shown = ", ".join(names[:limit])
    return shown if len(names) <= limit else f"{shown} and {len(names) - limit} more"


def _check_output(options: TrainOptions) -> Path:
    """Refuse a place that cannot be written or must not be replaced, before the work begins."""
    output = options.output
    assert output is not None  # `resolve` has filled it in
    if options.data.is_dir() and _follow(output).is_relative_to(_follow(options.data)):
        raise OptionError(
            f"output: wanted a folder outside the photos, got {output} in {options.data}: its pictures would be taken "
            "for photos the next time; choose another --output"
        )
    above = next((folder for folder in _follow(output).parents if os.path.lexists(folder)), output)
    if not above.is_dir():
        raise StorageError(f"{output}: wanted a place for a folder, got the file {above} above it; move it")
    if not os.access(above, os.W_OK | os.X_OK):
        raise StorageError(f"{output}: wanted a place that can be written, got no permission in {above}")
    _check_place(output)
    return output


def _choose_output(data: Path) -> Path:
    """Run folder named after the data, and a number after it where a run of other data would be replaced and lost."""
    folder, pattern = _split_pattern(data)
    place = _follow(folder)
    name = place.name if pattern or place.is_dir() else place.stem
    first = Path("runs") / (name.strip(".*?[]") or "run")
    places = itertools.chain([first], (first.with_name(f"{first.name}-{n}") for n in itertools.count(2)))
    return next(output for output in places if not _holds_other_run(output, data))


def _holds_other_run(output: Path, data: Path) -> bool:
    if not (output / MANIFEST_NAME).is_file():
        return False
    recorded = read_setting(output, "data")
    return not isinstance(recorded, str) or _follow(Path(recorded)) != _follow(Path(show_text(str(data))))


def _name_data(data: Path) -> str:
    """What the data is called, with no folder of this machine above it."""
    folder, pattern = _split_pattern(data)
    return str(Path(_follow(folder).name or str(folder), *pattern))


def _split_pattern(data: Path) -> tuple[Path, tuple[str, ...]]:
    """Folder that a pattern begins in, and the parts after it; a path that is no pattern has none."""
    if os.path.lexists(data):
        return data, ()
    n_literal = next((n for n, part in enumerate(data.parts) if glob.has_magic(part)), len(data.parts))
    return Path(*data.parts[:n_literal]), data.parts[n_literal:]


def _follow(path: Path) -> Path:
    """Absolute path behind all links; unlike `Path.resolve` it takes links that lead in a circle as they are."""
    return Path(os.path.realpath(path))


def _check_place(output: Path) -> None:
    """Refuse a place where something else than an older run would be replaced and lost."""
    if _follow(output).is_symlink():
        raise StorageError(f"{output}: wanted a place for a folder, got a link that leads in a circle")
    with storage_errors(f"look into {output}"):
        if not output.exists():
            return
        names = {path.name for path in output.iterdir()}
    if names and MANIFEST_NAME not in names:
        raise StorageError(
            f"{output}: wanted a free place or an older run to replace, got something else there; "
            "choose another --output"
        )
    if foreign := sorted(name for name in names - RUN_FILES if name.casefold() not in SYSTEM_FILES):
        raise StorageError(
            f"{output}: an older run stands there, and beside it what is no part of a run: "
            f"{show_text(_name_some(foreign))}; move that away, or choose another --output"
        )
