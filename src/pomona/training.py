"""The whole way from photos to a run folder, in named steps.

In: `TrainOptions`. Out: a `TrainResult`: the bundle, its evaluation, and how long each step took.
Why: one place shows the order of things. Each step is one call to the module that owns it.
"""

from __future__ import annotations

import contextlib
import os
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, NamedTuple, get_args

import numpy as np

from pomona.audit import audit_photos, note_audit, settle_audit
from pomona.backbone import choose_layer, is_embedded
from pomona.bundle import list_levels
from pomona.checkpoint import clear_run, read_precision
from pomona.class_names import Language, find_class_names, match_class_names, read_class_names
from pomona.class_tree import show_text
from pomona.clock import Clock
from pomona.conformal import Nodes
from pomona.dataset import (
    Dataset,
    Split,
    drop_empty_classes,
    load_dataset,
)
from pomona.effort import Effort, choose_effort, choose_precision, forecast, measure_machine, parse_time, plan_embedding
from pomona.embedding import Embedding
from pomona.enhancement import parse_enhancement
from pomona.errors import DataError, MissingPackageError, NotFiniteError, OptionError, StorageError
from pomona.evaluation import evaluate, measure_share
from pomona.features import Features, extract_features, list_missing, release_pages
from pomona.files import new_folder
from pomona.findings import Audit, CheckLevel
from pomona.head import softmax
from pomona.learnt import Learnt, save_learnt
from pomona.learnt_bank import LearntBank
from pomona.novelty import UNKNOWN_FROM, sketch_vectors
from pomona.parts import N_FOLDS, PartPlan, list_folds, note_choice, note_copies, note_data, plan_parts
from pomona.ridge import RIDGE_STRENGTHS, study_ridge
from pomona.run_folder import Run, write_run
from pomona.run_place import check_output, check_place, choose_output, find_tuning_folder, name_data
from pomona.trust import (
    N_REPEATS,
    PROMISE,
    TURNED_AWAY,
    Trust,
    TrustOptions,
    check_promise,
    check_trust,
    measure_baselines,
    note_trust,
    study_trust,
)
from pomona.tuning import TuneOptions, enlarge_side

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from numpy.typing import NDArray

    from pomona.backbone import Precision
    from pomona.bundle import Bundle
    from pomona.clock import Progress, Stage
    from pomona.dataset import Photo
    from pomona.effort import Forecast, Machine
    from pomona.evaluation import Evaluation
    from pomona.head import Fit, Head
    from pomona.lr_range import RangeResult
    from pomona.ridge import Ridge, Study
    from pomona.run_log import Row
    from pomona.trust import Baseline, Evidence, Kept

TUNED_BACKBONE, TUNED_SIZE_PX = "lite2", 288
"""What is trained by gradients where nothing is named; measured in docs/decisions/0015."""

_RESERVED_S = 6.0  # after training: the photos reported on, the graph, the report
_ROWS_PER_PART = 4096


@dataclass(frozen=True, kw_only=True)
class TrainOptions(TuneOptions):
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
    backbone : str, optional
        Pretrained network, instead of those of the effort; `pomona backbones` lists them.
    imgsz : int, optional
        Side of the square the network sees, in pixels, instead of that of the effort.
    val_share : float
        Share of the photos kept apart, 0-1, where the data has no val and no test part.
    seed : int
        Decides which photos are kept apart.
    check : {"none", "quick", "full"}
        How much is looked for in the photos before. With ``none``, only identical files stay together in the split.
    enhance : str
        What is done to photos before they are learnt or predicted, such as ``white-balance,clahe``.
    promise : float
        Share of sure answers to be right, and of shortlists to hold the right class, 0-1.
    turn_away : float
        Share of known photos that may be answered "unknown", 0-1.
    folds : int
        Parts that photos learnt from are held out in, 2 to 50.
    repeats : int
        How often these are drawn, 1 to 20.
    language : {"en", "zh"}
        Of the report.
    workers : int, optional
        Threads for decoding and the network; every core where not given.
    names : Path, optional
        Table of what people call the classes, with their codes at a till; `classes.csv` in the data's folder where not
        given, if it is one.

    See Also
    --------
    TuneOptions : The knobs of training by gradients.
    """

    data: Annotated[Path, "Folder, table (CSV, TSV), list, pattern or zip of labelled photos."]
    output: Annotated[Path | None, "Run folder to write; by default runs/ and the name of the data."] = None
    effort: Annotated[Effort | None, "How much work goes into the features; by default fast."] = None
    time: Annotated[str | None, "Time it may take, as 60s or 2m: picks the effort by a forecast; --tune ends then."] = (
        None
    )
    backbone: Annotated[str | None, "Pretrained network, instead of those of the effort; see pomona backbones."] = None
    imgsz: Annotated[int | None, "Side of the square the network sees, in pixels, instead of that of the effort."] = (
        None
    )
    val_share: Annotated[float, "Share of photos to keep apart where the data has no val or test part."] = 0.2
    seed: Annotated[int, "Decides which photos are kept apart, and all that training draws."] = 0
    check: Annotated[CheckLevel, "What to look for in the photos before; none parts copies and bursts, too."] = "quick"
    enhance: Annotated[str, "Done to every photo first, such as white-balance,clahe; see pomona enhance."] = ""
    promise: Annotated[float, "Share of sure answers to be right; others become coarser, such as Apple."] = PROMISE
    turn_away: Annotated[float, "Share of known photos that may be answered unknown."] = TURNED_AWAY
    folds: Annotated[int, "Parts that photos learnt from are held out in, to calibrate and to promise."] = N_FOLDS
    repeats: Annotated[int, "How often these are drawn."] = N_REPEATS
    language: Annotated[Language, "Of the report."] = "en"
    workers: Annotated[int | None, "Threads for decoding and the network; by default every core."] = None
    names: Annotated[
        Path | None, "Table of names and PLU codes; by default classes.csv among the photos, if it is."
    ] = None

    def __post_init__(self) -> None:
        super().__post_init__()
        parse_enhancement(self.enhance)
        if self.tune is not None and self.effort is not None:
            raise OptionError(f"wanted --effort or --tune, got both: {self.effort} and {self.tune}")
        if self.effort is not None and self.time is not None:
            raise OptionError(f"wanted an effort or a time, got both: {self.effort} and {self.time}")
        if self.time is not None:
            parse_time(self.time)
        if not 0 < self.val_share < 1:
            raise OptionError(f"val-share: wanted a share between 0 and 1, got {self.val_share}")
        for name in ("promise", "turn_away"):
            if not 0 < getattr(self, name) < 1:
                shown = name.replace("_", "-")
                raise OptionError(f"{shown}: wanted a share between 0 and 1, got {getattr(self, name)}")
        if not 2 <= self.folds <= 50 or not 1 <= self.repeats <= 20:
            raise OptionError(f"wanted 2 to 50 folds and 1 to 20 repeats, got {self.folds} and {self.repeats}")
        if self.workers is not None and self.workers < 1:
            raise OptionError(f"workers: wanted 1 or more, got {self.workers}")

    def to_dict(self) -> dict[str, str | int | float | None]:
        """Options by name, paths as text fit to be written."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        return {name: show_text(str(value)) if isinstance(value, Path) else value for name, value in values.items()}

    def list_trust(self) -> TrustOptions:
        """What is promised, and how it is found out."""
        return TrustOptions(
            promise=self.promise,
            turned_away=self.turn_away,
            n_folds=self.folds,
            n_repeats=self.repeats,
            seed=self.seed,
        )

    @property
    def refits(self) -> bool:
        """Whether the head is fitted in closed form once a network is tuned."""
        if self.tune in {None, "head"}:
            return False
        return is_embedded(self.backbone) if self.refit is None else self.refit

    def resolve(self) -> TrainOptions:
        """Copy with every default filled in that can be known before the photos are seen."""
        effort: Effort | None = "fast" if self.effort is None and self.time is None else self.effort
        if self.tune is not None:
            effort = None
        backbone = self.backbone or (TUNED_BACKBONE if self.tune else None)
        size_px = TUNED_SIZE_PX if self.tune and self.imgsz is None and is_embedded(backbone) else self.imgsz
        embedding = plan_embedding(effort or "fast", backbone=backbone, size_px=size_px)
        data = Path(os.path.expanduser(self.data))  # noqa: PTH111 - of an unknown user, `Path` makes an error
        output = choose_output(data) if self.output is None else Path(os.path.expanduser(self.output))  # noqa: PTH111
        names = find_class_names(data) if self.names is None else Path(os.path.expanduser(self.names))  # noqa: PTH111
        size_px = embedding.preprocessing.size_px if effort or self.tune else self.imgsz
        lr = f"{self.learning_rate:g}" if self.tune and self.lr is None else self.lr
        filled = replace(self, data=data, output=output, effort=effort, backbone=backbone, imgsz=size_px, lr=lr)
        return replace(filled, names=names)


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
    interrupted : bool
        Whether training was stopped by a key before its end.
    evidence : Evidence, optional
        What was found on photos held out; None where none could be.
    kept : Kept, optional
        How promises fare on the photos kept apart.
    baselines : tuple of Baseline
        What simple ways have right on these.
    """

    bundle: Bundle
    evaluation: Evaluation
    evaluated_on: str
    dataset: Dataset
    notes: tuple[str, ...]
    stages: tuple[Stage, ...]
    interrupted: bool = False
    evidence: Evidence | None = None
    kept: Kept | None = None
    baselines: tuple[Baseline, ...] = ()


def train(
    options: TrainOptions,
    *,
    on_progress: Progress | None = None,
    on_forecast: Callable[[Sequence[Forecast], Forecast], None] | None = None,
    on_row: Callable[[Row, int], None] | None = None,
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
    output = options.output
    assert output is not None  # `resolve` has filled it in
    check_output(output, options.data, tunes=options.tune is not None)
    clock = Clock(on_progress)

    table = read_class_names(options.names) if options.names else None
    with clock.step("read"):
        dataset = load_dataset(options.data, on_photo=clock.count)
        match_class_names(table, dataset.tree)  # what is wrong with it is said before the long steps, too
        parted, _ = part_photos(dataset, options)  # what cannot be parted at all is said before the long steps
    if options.tune:
        _require_tuning()
        audit = _look_before(dataset, options, clock)
        parted, plan = part_photos(audit.dataset, options, dataset)
        learnt = _tune(parted, plan, options, clock, on_row)
    else:
        with clock.step("plan"):
            options, embedding, forecasts, taken = _plan_effort(parted, options)
        if on_forecast:
            on_forecast(forecasts, taken)
        with clock.step("features", dataset.n_photos):
            features, embedding, fell_back = _extract_features(dataset, embedding, options.workers, clock)
        audit = audit_photos(features, options.check, seed=options.seed, n_workers=options.workers, clock=clock)
        parted, plan = part_photos(audit.dataset, options, dataset)
        learnt = _fit_features(features.keep(parted), embedding, plan, options, clock)
        learnt = replace(learnt, notes=(*fell_back, *learnt.notes))
    audit = settle_audit(audit, learnt.dataset)
    with clock.step("evaluate"):
        scored = _score_part(learnt, plan.report_on)

    called = match_class_names(table, learnt.dataset.tree)
    run = Run(
        title=show_text(name_data(options.data)),
        settings=options.to_dict(),
        embedding=learnt.embedding,
        dataset=learnt.dataset,
        head=learnt.head,
        fits=learnt.fits,
        reported=scored.reported,
        probabilities=scored.probabilities,
        evaluation=scored.evaluation,
        evaluated_on=plan.evaluated_on,
        notes=(
            *plan.notes,
            *learnt.notes,
            *(note_copies(learnt.dataset) if audit.level == "none" else note_audit(audit)),
            *note_trust(learnt.trust, learnt.evidence),
            *note_data(learnt.dataset, scored.evaluation.n),
            *called.notes,
        ),
        audit=audit,
        trust=learnt.trust,
        evidence=learnt.evidence,
        kept=scored.kept,
        strangeness=scored.strangeness,
        bank=learnt.bank,
        baselines=scored.baselines,
        alike=scored.alike,
        language=options.language,
        curve=learnt.curve,
        range_result=learnt.range_result,
        tuning_folder=learnt.tuning_folder,
        names=called.names,
    )
    with clock.step("save"):
        with new_folder(output) as folder:
            bundle = write_run(folder, run, clock.stages)
            check_place(output)  # once more: somebody may have put a file there in the meantime
        notes = (*run.notes, *_keep_learnt(bundle, learnt.ridge, learnt.dataset))
        if learnt.tuning_folder and not learnt.interrupted:  # or --resume would find nothing to go on from
            with contextlib.suppress(StorageError):  # the run is whole; the next one clears what is left
                clear_run(learnt.tuning_folder)
    return TrainResult(
        bundle=replace(bundle, folder=output),
        evaluation=scored.evaluation,
        evaluated_on=plan.evaluated_on,
        dataset=learnt.dataset,
        evidence=learnt.evidence,
        kept=scored.kept,
        baselines=scored.baselines,
        notes=notes,
        stages=tuple(clock.stages),
        interrupted=learnt.interrupted,
    )


@dataclass(frozen=True)
class _Learnt:
    """What either way of learning gives.

    Parameters
    ----------
    embedding, head
        The recogniser.
    features : Features
        Of the photos that are reported on, at least.
    dataset : Dataset
        All usable photos.
    notes : tuple of str
        What to know.
    trust, evidence, bank
        What makes its answers trustworthy, what that rests on, and what was learnt in few numbers a photo.
    fits, ridge
        Of the closed form.
    curve, range_result, tuning_folder, interrupted
        Of training by gradients.
    """

    embedding: Embedding
    head: Head
    features: Features
    dataset: Dataset
    notes: tuple[str, ...]
    trust: Trust = field(default_factory=Trust)
    evidence: Evidence | None = None
    bank: LearntBank | None = None
    fits: tuple[Fit, ...] = ()
    ridge: Ridge | None = None
    curve: tuple[Row, ...] = ()
    range_result: RangeResult | None = None
    tuning_folder: Path | None = None
    interrupted: bool = False


def part_photos(dataset: Dataset, options: TrainOptions, before: Dataset | None = None) -> tuple[Dataset, PartPlan]:
    """Say what each photo is for; where scenes leave none to measure on, by the groups of before they were found.

    Parameters
    ----------
    dataset : Dataset
        Photos in groups.
    options : TrainOptions
        Share kept apart, seed, and what is trained.
    before : Dataset, optional
        The same photos in the groups they had before an audit.

    Returns
    -------
    Dataset, PartPlan
        As of `plan_parts`.

    Raises
    ------
    DataError
        If there is nothing to learn from, or to measure on.
    """
    tunes = options.tune is not None
    try:
        return plan_parts(dataset, options.val_share, options.seed, tunes=tunes, refits=options.refits)
    except DataError:
        if before is None:
            raise
    left = {photo.path for photo in dataset.photos}
    before = replace(dataset, photos=tuple(photo for photo in before.photos if photo.path in left))
    parted, plan = plan_parts(before, options.val_share, options.seed, tunes=tunes, refits=options.refits)
    note = (
        "The photos of each class are of one scene, and were parted within it: they are measured on what was nearly "
        "learnt from, and the numbers are too good. Bring photos of other places and days."
    )
    return parted, replace(plan, notes=(note, *plan.notes))


def _look_before(dataset: Dataset, options: TrainOptions, clock: Clock) -> Audit:
    """Audit photos before training by gradients, by the quickest features there are."""
    if options.check == "none":
        return Audit(dataset)
    embedding = plan_embedding("instant", precision=choose_precision(measure_machine(options.workers)))
    with clock.step("features", dataset.n_photos):
        features, _, _ = _extract_features(dataset, embedding, options.workers, clock)
    return audit_photos(features, options.check, seed=options.seed, n_workers=options.workers, clock=clock)


def _fit_features(
    features: Features, embedding: Embedding, plan: PartPlan, options: TrainOptions, clock: Clock
) -> _Learnt:
    """Fit a head in closed form on the features of frozen networks."""
    smaller, dropped = drop_empty_classes(features.dataset)
    features = replace(features, dataset=smaller)
    with clock.step("fit"):
        head, fits, ridge, study, notes = _fit_parts(features, plan, options, clock)
    with clock.step("trust"):
        trust, evidence, bank = _find_trust(features, plan, (head, study), options, clock)
    notes = (*dropped, *notes)
    return _Learnt(embedding, head, features, features.dataset, notes, trust, evidence, bank, fits, ridge)


def _find_trust(
    features: Features, plan: PartPlan, fitted: tuple[Head, Study], options: TrainOptions, clock: Clock
) -> tuple[Trust, Evidence | None, LearntBank]:
    """On folds of what was learnt find out how far to trust; where a network was trained on it, on what was apart."""
    head, study = fitted
    names = [features.dataset.photos[row].name for row in study.rows]
    bank = LearntBank.make(features.vectors, study.labels, names, study.rows)
    if options.tune is not None:
        return *_check_apart(features, plan, head, options, bank), bank
    asked = options.list_trust()
    found = study_trust(
        study,
        bank.bank.vectors,
        features.dataset.groups[study.rows],
        features.dataset.tree,
        asked,
        on_step=clock.counter(asked.n_repeats + 2),
    )
    return *(found or (Trust(), None)), bank


def _check_apart(
    features: Features, plan: PartPlan, head: Head, options: TrainOptions, bank: LearntBank | None = None
) -> tuple[Trust, Evidence | None]:
    """Find out how far to trust on the photos that a network was looked at with while it learnt."""
    labels, groups = features.dataset.labels, features.dataset.groups
    splits = np.array([photo.split for photo in features.dataset.photos])
    rows = np.flatnonzero((splits == plan.choose_on) & (labels >= 0))
    if not len(rows):
        return Trust(), None
    vectors = features.vectors[rows]
    return check_trust(
        head.score(vectors),
        labels[rows],
        groups[rows],
        features.dataset.tree,
        options.list_trust(),
        sketches=None if bank is None else sketch_vectors(vectors),
        bank=None if bank is None else bank.bank,
        is_reported=plan.choose_on == plan.report_on,
    )


def _require_tuning() -> None:
    """Say what is missing before the photos are looked at."""
    try:
        import pomona.finetune  # noqa: F401
    except ModuleNotFoundError as error:
        if error.name not in {"torch", "safetensors"}:
            raise
        raise MissingPackageError(error.name, "tune", "to train by gradients") from error


def _tune(
    dataset: Dataset,
    plan: PartPlan,
    options: TrainOptions,
    clock: Clock,
    on_row: Callable[[Row, int], None] | None,
) -> _Learnt:
    """Train by gradients, then run the photos that are reported on through the network as it will be saved."""
    from pomona.finetune import finetune

    assert options.output is not None  # `resolve` has filled it in
    folder = find_tuning_folder(options.output)
    with clock.step("plan"):
        machine = measure_machine(options.workers)
        kept = read_precision(folder) if options.resume else None
        embedding = _plan_tuned(options, kept or choose_precision(machine))
        refitted = _plan_refit(options, embedding)
        used = {"train", plan.choose_on, plan.report_on} if refitted else {plan.report_on}
        photos = [photo for photo in dataset.photos if photo.split in used and photo.label >= 0]
        after_s = _RESERVED_S + _forecast_end(photos, refitted or embedding, machine, options.workers)
    deadline_s = None if options.time is None else clock.started_s + parse_time(options.time) - after_s
    result = finetune(
        dataset,
        embedding,
        options,
        folder,
        validate_on=plan.choose_on or "val",
        seed=options.seed,
        deadline_s=deadline_s,
        n_workers=options.workers,
        clock=clock,
        on_row=on_row,
    )
    if refitted:
        tuned = tuple(
            replace(one, tuned=trained.tuned)
            for one, trained in zip(refitted.backbones, result.embedding.backbones, strict=True)
        )
        refitted = replace(refitted, backbones=tuned)
        with clock.step("features", result.dataset.n_photos):
            features, refitted, fell_back = _extract_features(result.dataset, refitted, options.workers, clock)
        learnt = _fit_features(features, refitted, plan, options, clock)
        learnt = replace(learnt, notes=(*fell_back, *learnt.notes))
    else:
        used = {plan.report_on, plan.choose_on}
        apart = replace(result.dataset, photos=tuple(one for one in result.dataset.photos if one.split in used))
        with clock.step("features", apart.n_photos):
            features, embedding, fell_back = _extract_features(apart, result.embedding, options.workers, clock)
        left = _leave_out(result.dataset, apart, features)
        trust, evidence = _check_apart(features, plan, result.head, options)
        learnt = _Learnt(embedding, result.head, features, left, fell_back, trust, evidence)
    return replace(
        learnt,
        notes=(*result.notes, *learnt.notes),
        curve=result.rows,
        range_result=result.range_result,
        tuning_folder=folder,
        interrupted=result.interrupted,
    )


def _leave_out(dataset: Dataset, reported: Dataset, features: Features) -> Dataset:
    """A dataset without the photos among those reported on that could not be used."""
    lost = {photo.name for photo in reported.photos} - {photo.name for photo in features.dataset.photos}
    photos = tuple(photo for photo in dataset.photos if photo.name not in lost)
    return replace(dataset, photos=photos, skipped=features.dataset.skipped)


def _plan_tuned(options: TrainOptions, precision: Precision) -> Embedding:
    """What a network that is trained sees, and which of its activations its head does."""
    embedding = plan_embedding(
        "fast",
        backbone=options.backbone,
        size_px=options.imgsz,
        precision="f32" if options.tune == "full" else precision,
        enhance=parse_enhancement(options.enhance),
    )
    (backbone,) = embedding.backbones
    if options.tune == "head" and options.layer:
        return Embedding((choose_layer(backbone, options.layer),), "average")
    if options.pooling == "average":
        return Embedding((replace(backbone, pooled=(backbone.cuts[-1].name,)),), "average")
    return replace(embedding, pooling="second-order")  # of another package's network it says that there are none


def _plan_refit(options: TrainOptions, embedding: Embedding) -> Embedding | None:
    """Features that the head is fitted anew on once the network is tuned; None where the trained head is kept."""
    if not options.refits:
        return None
    (backbone,) = embedding.backbones
    size_px = backbone.preprocessing.size_px
    return plan_embedding(
        "fast",
        backbone=options.backbone,
        size_px=enlarge_side(size_px) if backbone.is_embedded else options.imgsz,
        precision=backbone.precision,
        enhance=parse_enhancement(options.enhance),
    )


def _forecast_end(photos: Sequence[Photo], embedding: Embedding, machine: Machine, n_workers: int | None) -> float:
    """Seconds from the last step of training to a head and its numbers; what was tuned computes in float32."""
    embedding = replace(embedding, backbones=tuple(replace(one, precision="f32") for one in embedding.backbones))
    n_learnt = sum(photo.split == "train" for photo in photos)
    paths = [photo.path for photo in photos]
    return forecast("fast", embedding, machine, paths, n_learnt=n_learnt, n_workers=n_workers).total_s


def _plan_effort(
    dataset: Dataset, options: TrainOptions
) -> tuple[TrainOptions, Embedding, tuple[Forecast, ...], Forecast]:
    """Forecast the effort that is wanted, or all of them where a time is given, and take the one that fits."""
    machine = measure_machine(options.workers)
    precision = choose_precision(machine)
    efforts: tuple[Effort, ...] = get_args(Effort) if options.effort is None else (options.effort,)
    n_learnt = sum(photo.split == "train" and photo.label >= 0 for photo in dataset.photos)
    embeddings = {
        effort: plan_embedding(
            effort,
            backbone=options.backbone,
            size_px=options.imgsz,
            precision=precision,
            layer=options.layer,
            enhance=parse_enhancement(options.enhance),
        )
        for effort in efforts
    }
    forecasts = tuple(
        forecast(
            effort,
            embedding,
            machine,
            [photo.path for photo in list_missing(dataset, embedding)],
            n_learnt=n_learnt,
            n_checked=0 if options.check == "none" else dataset.n_photos,
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


def _fit_parts(
    features: Features, plan: PartPlan, options: TrainOptions, clock: Clock
) -> tuple[Head, tuple[Fit, ...], Ridge | None, Study, tuple[str, ...]]:
    labels = features.dataset.labels
    splits = np.array([photo.split for photo in features.dataset.photos])
    train_rows = np.flatnonzero((splits == "train") & (labels >= 0))
    chosen_rows = np.flatnonzero((splits == plan.choose_on) & (labels >= 0))
    if plan.choose_on and len(chosen_rows):
        folds = [(train_rows, chosen_rows)]
    else:
        parts = list_folds(
            labels[train_rows], features.dataset.groups[train_rows], seed=options.seed, n_folds=options.folds
        )
        folds = [(train_rows[fitted], train_rows[held_out]) for fitted, held_out in parts]
    notes: tuple[str, ...] = ()
    val_rows = np.flatnonzero((splits == "val") & (labels >= 0))
    if not folds and len(val_rows) and "val" in features.dataset.declared_splits:  # each class is of one scene
        folds = [(train_rows, val_rows)]
        notes = note_choice() if plan.report_on == "val" else ()
    head, fits, ridge, study = study_ridge(
        features.vectors,
        np.maximum(labels, 0),  # those of no class that is learnt are in none of the rows
        len(features.dataset.tree),
        folds,
        rows=train_rows,
        on_step=clock.counter(len(RIDGE_STRENGTHS)),
    )
    return head, fits, ridge, study, notes


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


class _Scored(NamedTuple):
    """What was measured on the photos that are reported on."""

    reported: Dataset
    probabilities: NDArray[np.float32]
    evaluation: Evaluation
    kept: Kept
    strangeness: NDArray[np.float32] | None
    baselines: tuple[Baseline, ...]
    alike: NDArray[np.intp] | None


def _score_part(learnt: _Learnt, split: Split) -> _Scored:
    features, trust = learnt.features, learnt.trust
    rows = [i for i, photo in enumerate(features.dataset.photos) if photo.split == split and photo.label >= 0]
    if not rows:
        raise DataError(
            f"{features.dataset.shown}: no photo of the {split} part is usable and of a class that train has"
        )
    dataset = replace(features.dataset, photos=tuple(features.dataset.photos[row] for row in rows))
    logits, strange, sketches = [], [], []
    for start in range(0, len(rows), _ROWS_PER_PART):  # by parts: a table of many photos is in a file, and stays there
        vectors = features.vectors[rows[start : start + _ROWS_PER_PART]]
        logits.append(learnt.head.score(vectors))
        strange.append(trust.measure_strangeness(vectors, logits[-1]))
        sketches.append(sketch_vectors(vectors))
        release_pages(features.vectors)
    table, tree = np.concatenate(logits), dataset.tree
    strangeness = None if trust.detector is None else np.concatenate([one for one in strange if one is not None])
    probabilities = trust.to_probabilities(table)
    evaluation = evaluate(
        probabilities, dataset.labels, classes=tree.names, levels=list_levels(tree), groups=dataset.groups
    )
    away = None if strangeness is None else measure_share(strangeness >= UNKNOWN_FROM, dataset.groups)
    kept = check_promise(
        trust.promise,
        probabilities,
        dataset.labels,
        dataset.groups,
        Nodes.of(tree),
        before=softmax(table),
        turned_away=away,
    )
    bank = None if learnt.bank is None else learnt.bank.bank
    learnt_labels = learnt.dataset.part("train").labels
    asked = np.concatenate(sketches)
    baselines = measure_baselines(learnt_labels[learnt_labels >= 0], bank, asked, dataset.labels, dataset.groups)
    alike = None if learnt.bank is None else learnt.bank.find_alike(asked, probabilities.argmax(axis=1))
    return _Scored(dataset, probabilities, evaluation, kept, strangeness, baselines, alike)
