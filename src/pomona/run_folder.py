"""All that a run leaves for people and tools, in one folder.

In: a `Run`, everything already computed. Out: the bundle, metrics.json, predictions.csv, confusion_matrix.png,
results.csv, args.yaml, audit.csv and report.html.
Why: the numbers a person reads, a spreadsheet opens and a script parses are written at one place from one source.
Before the folder is put in place, the saved graph must repeat the probabilities that were measured.
"""

from __future__ import annotations

import csv
import io
import json
import os
import platform
import shutil
import time
from collections import Counter
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from pomona.audit_page import write_audit_page
from pomona.bundle import HEAD_NAME, LEARNT_NAME, TUNED_NAME, write_bundle
from pomona.clock import Stage
from pomona.confusion_map import draw_confusion
from pomona.curves import CHINESE, ENGLISH, draw_learning_curves, draw_lr_curve
from pomona.errors import BundleError, PhotoError
from pomona.evaluation import mistakes
from pomona.files import MANIFEST_NAME, PARTIAL_FILE, storage_errors, write_atomic
from pomona.findings import COLUMNS, list_rows
from pomona.heat_map import HEAT_MAP, paint_map
from pomona.learnt_bank import BANK_NAME, name_photo
from pomona.model_file import MODEL_NAME, UNKNOWN
from pomona.photo import decode_photo, read_unchanged
from pomona.prediction import Speaker
from pomona.report import N_CARDS, N_CONFUSED, ClassCount, ConfusedPair, MistakeCard, ReportData, write_report
from pomona.run_log import RESULTS_NAME
from pomona.source import hide_folder
from pomona.trust import Trust

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Mapping, Sequence

    from numpy.typing import NDArray

    from pomona.bundle import Bundle
    from pomona.class_names import ClassName
    from pomona.dataset import Dataset, Photo
    from pomona.embedding import Embedding
    from pomona.evaluation import Evaluation
    from pomona.findings import Audit
    from pomona.head import Fit, Head
    from pomona.learnt_bank import LearntBank
    from pomona.lr_range import RangeResult
    from pomona.report import Language
    from pomona.run_log import Row
    from pomona.trust import Baseline, Evidence, Kept

SETTINGS_NAME = "args.yaml"
CHANGES_NAME = "changes.csv"
TUNING_FILES = ("best.safetensors", "mlflow_run.txt", "tensorboard")
"""What a tuning folder holds that the run keeps."""

RUN_FILES = frozenset(
    {
        MANIFEST_NAME,
        MODEL_NAME,
        HEAD_NAME,
        LEARNT_NAME,
        "metrics.json",
        "predictions.csv",
        "confusion_matrix.png",
        RESULTS_NAME,
        SETTINGS_NAME,
        "audit.csv",
        "audit.html",
        "report.html",
        CHANGES_NAME,
        TUNED_NAME,
        BANK_NAME,
        *TUNING_FILES,
    }
)
"""All that `write_run` and `pomona.teaching` write; what else lies in a run folder is not ours."""

_THUMBNAIL_PX = 240
_N_REPEATED = 4
_TOLERANCE = 1e-3


@dataclass(frozen=True)
class Run:
    """Everything that a training run found out.

    Parameters
    ----------
    title : str
        Heading of the report: the name of the data.
    settings : mapping
        Options by name, with every default filled in.
    embedding : Embedding
        What the features are.
    dataset : Dataset
        All usable photos with their splits, and what was skipped.
    head : Head
        The head that is kept.
    fits : tuple of Fit
        Strengths that were tried.
    reported : Dataset
        The N photos that the numbers are measured on.
    probabilities : ndarray of shape (N, C), float32
        Of these photos.
    evaluation : Evaluation
        Metrics of these photos.
    evaluated_on : str
        What these photos are, in words.
    notes : tuple of str
        What to know before trusting the numbers.
    audit : Audit
        What is wrong with the photos.
    curve : tuple of Row
        Of training by gradients, a line an epoch; none where the head was fitted in closed form.
    range_result : RangeResult, optional
        Where its learning rate was looked for.
    tuning_folder : Path, optional
        Where it was logged and its checkpoints are.
    trust : Trust
        What makes answers trustworthy; it goes into the bundle.
    evidence : Evidence, optional
        What it rests on; none where no photo could be held out.
    kept : Kept, optional
        How its promises fare on the photos that the numbers are measured on.
    strangeness : ndarray of shape (N,), float32, optional
        How strange these photos are.
    bank : LearntBank, optional
        What was learnt, in few numbers a photo.
    baselines : tuple of Baseline
        What simple ways have right on these photos.
    language : {"en", "zh"}
        Of the report.
    names : tuple of ClassName
        What people call the classes.
    alike : ndarray of shape (N,), intp, optional
        For each photo of `reported` a place in `bank`: the one that `find_alike` gives.
    """

    title: str
    settings: Mapping[str, str | int | float | None]
    embedding: Embedding
    dataset: Dataset
    head: Head
    fits: tuple[Fit, ...]
    reported: Dataset
    probabilities: NDArray[np.float32]
    evaluation: Evaluation
    evaluated_on: str
    notes: tuple[str, ...]
    audit: Audit
    curve: tuple[Row, ...] = ()
    range_result: RangeResult | None = None
    tuning_folder: Path | None = None
    trust: Trust = field(default_factory=Trust)
    evidence: Evidence | None = None
    kept: Kept | None = None
    strangeness: NDArray[np.float32] | None = None
    bank: LearntBank | None = None
    baselines: tuple[Baseline, ...] = ()
    language: Language = "en"
    names: tuple[ClassName, ...] = ()
    alike: NDArray[np.intp] | None = None


def write_run(folder: Path, run: Run, stages: Sequence[Stage]) -> Bundle:
    """Write the whole run folder.

    Parameters
    ----------
    folder : Path
        Empty folder.
    run : Run
        What to write.
    stages : sequence of Stage
        Times of the steps so far.

    Returns
    -------
    Bundle
        The bundle in it.

    Raises
    ------
    BundleError
        If the saved graph does not repeat the probabilities that were measured.
    StorageError
        If a file cannot be written.
    """
    started_s = time.perf_counter()
    now = datetime.now(UTC).isoformat(timespec="seconds")
    bundle = write_bundle(
        folder,
        embedding=run.embedding,
        head=run.head,
        tree=run.dataset.tree,
        created=now,
        provenance=_list_provenance(run),
        learnt_from={photo.sha256 for photo in run.dataset.part("train").photos if photo.label >= 0},
        names=run.names,
        trust=run.trust,
        bank=run.bank,
    )
    maps = _repeat_predictions(bundle, run)
    write_atomic(folder / "metrics.json", _to_json(_list_metrics(run)))
    write_atomic(folder / "predictions.csv", _list_predictions(run))
    _keep_curve(folder, run)
    write_atomic(folder / "audit.csv", write_csv([COLUMNS, *list_rows(run.audit)]))
    if any(one.flagged for one in run.audit.findings) and run.audit.level != "none":
        write_audit_page(folder / "audit.html", run.audit, title=run.title)
    write_atomic(folder / SETTINGS_NAME, _list_settings(run))
    write_atomic(folder / "confusion_matrix.png", draw_confusion(run.evaluation))
    save = Stage("save", time.perf_counter() - started_s)
    write_report(folder / "report.html", _gather_report(run, maps, (*stages, save), now))
    return bundle


def _keep_curve(folder: Path, run: Run) -> None:
    """Write results.csv: the strengths tried, or the log of training, with what else that left."""
    if run.tuning_folder is None:
        write_atomic(folder / RESULTS_NAME, _list_fits(run))
        return
    with storage_errors(f"copy {run.tuning_folder} to {folder}"):
        for name in (RESULTS_NAME, *TUNING_FILES):
            source = run.tuning_folder / name
            if source.is_dir():
                shutil.copytree(source, folder / name)
            elif source.is_file():
                shutil.copyfile(source, folder / name)


def _draw_curves(run: Run) -> list[tuple[str, str, str]]:
    drawn = []
    labels = CHINESE if run.language == "zh" else ENGLISH
    if run.curve:
        text = "Training photos are cropped, mixed and their labels smoothed, so their numbers look worse."
        if run.fits:
            text += " The curve is of the head that was trained along; the one above was fitted anew on what it left."
        drawn.append(("Learning curves", text, draw_learning_curves(run.curve, labels)))
    if run.range_result:
        drawn.append(("Learning rate", run.range_result.reason, draw_lr_curve(run.range_result, labels)))
    return drawn


def _repeat_predictions(bundle: Bundle, run: Run) -> dict[int, NDArray[np.uint8]]:
    """Run photos through the saved graph, from their bytes on, and compare; of mistakes, where they come from."""
    shown = _list_shown(run)
    spread = np.linspace(0, len(run.reported.photos) - 1, _N_REPEATED).astype(int).tolist()
    wanted = sorted({*spread, *shown})
    contents = {row: data for row in wanted if (data := _read_unchanged(run.reported.photos[row])) is not None}
    rows, seen = list(contents), {}

    def load_pixels(i: int) -> NDArray[np.uint8]:
        seen[i] = bundle.preprocessing.read(contents[rows[i]])
        return seen[i]

    differences, maps = [0.0], {}
    for i, outcome in enumerate(bundle.whole_engine.stream(len(rows), load_pixels)):
        if isinstance(outcome, PhotoError):
            continue
        row = rows[i]
        differences.append(float(np.abs(outcome["probabilities"] - run.probabilities[row]).max()))
        if run.strangeness is not None:
            differences.append(abs(float(outcome[UNKNOWN]) - float(run.strangeness[row])))
        if row in shown and HEAT_MAP in outcome:
            maps[row] = paint_map(seen[i], outcome[HEAT_MAP])
        del seen[i]
    difference = float(np.max(differences))  # of which none may be no number
    if not difference <= _TOLERANCE:
        raise BundleError(
            f"the saved graph does not repeat what was measured: wanted the same shares within {_TOLERANCE}, "
            f"got {difference:.2g} apart; clear the cache folder and train again"
        )
    return maps


def _list_shown(run: Run) -> list[int]:
    """Photos reported on whose mistakes are shown, the surest first."""
    return [int(row) for row in mistakes(run.probabilities, run.reported.labels)[:N_CARDS]]


def _read_unchanged(photo: Photo) -> bytes | None:
    """Content of a photo; None where it is gone or is another by now."""
    try:
        return read_unchanged(photo.path, photo.sha256)
    except PhotoError:
        return None


def _list_provenance(run: Run) -> dict[str, str | int | float | bool | None]:
    # A bundle is passed on: it names the data and no folder of this machine. The paths stay in args.yaml.
    options = {f"option_{name}": value for name, value in run.settings.items() if name not in {"data", "output"}}
    if isinstance(backbone := run.settings.get("backbone"), str):
        options["option_backbone"] = hide_folder(backbone)
    if isinstance(names := run.settings.get("names"), str):
        options["option_names"] = Path(names).name
    return {
        "dataset_fingerprint": run.dataset.fingerprint,
        "n_train": len(run.dataset.part("train").photos),
        "n_evaluated": run.evaluation.n,
        "accuracy": run.evaluation.accuracy.value,
        "option_data": run.title,
        **options,
        "head": "gradient" if run.tuning_folder and not run.fits else "ridge",
        "l2": run.head.l2,
    }


def _list_metrics(run: Run) -> dict[str, Any]:
    return {
        **run.evaluation.to_dict(confusion=True),
        "kept": run.kept.to_dict() if run.kept else None,
        "baselines": {one.name: one.to_dict() for one in run.baselines},
        "evidence": run.evidence.to_dict() if run.evidence else None,
    }


def _to_json(content: dict[str, Any]) -> str:
    return json.dumps(content, indent=2, ensure_ascii=False) + "\n"


def write_csv(rows: Iterable[Sequence[object]]) -> str:
    """Rows as CSV text with plain newlines."""
    lines: list[str] = []
    line = io.StringIO()
    # Only with both signs as the end of a line does the writer quote cells that hold one of them.
    writer = csv.writer(line, lineterminator="\r\n")
    for row in rows:
        writer.writerow(row)
        lines.append(line.getvalue().removesuffix("\r\n"))
        line.seek(0)
        line.truncate()
    return "".join(f"{one}\n" for one in lines)


def carry_over(source: Path, target: Path, left_out: Collection[str]) -> None:
    """Take everything in a run folder along to another but some files: as links where the disk has them.

    Parameters
    ----------
    source, target : Path
        Folders on one disk; links in the first stay links.
    left_out : collection of str
        Names that stay behind, right in `source`.

    Raises
    ------
    OSError
        If a file can neither be linked nor copied.
    """
    shutil.copytree(
        source,
        target,
        symlinks=True,
        dirs_exist_ok=True,
        copy_function=link_file,
        ignore=lambda folder, names: _list_behind(names, left_out) if Path(folder) == source else set(),
    )


def _list_behind(names: Iterable[str], left_out: Collection[str]) -> set[str]:
    """What stays behind: also files that a killed process left half written."""
    return {name for name in names if name in left_out or PARTIAL_FILE.fullmatch(name)}


def link_file(old: str | Path, new: str | Path) -> None:
    """A second name of a file, or a copy where the disk has no such thing; files of a run are replaced, never changed.

    Raises
    ------
    OSError
        If neither can be had.
    """
    try:
        os.link(old, new)
    except OSError:
        shutil.copy2(old, new)


def list_changes(folder: Path, rows: Iterable[Sequence[object]]) -> str:
    """Content of changes.csv with rows more: time, what was done, to which class, with how many photos."""
    path = folder / CHANGES_NAME
    known: list[Sequence[object]] = (
        list(csv.reader(io.StringIO(path.read_text(encoding="utf-8")))) if path.exists() else []
    )
    return write_csv([*(known or [("time", "action", "class", "n_photos")]), *rows])


def _list_predictions(run: Run) -> str:
    names = run.dataset.tree.names
    speaker = Speaker(run.dataset.tree, run.names, run.trust.promise)
    header = ("file_name", "label", "predicted", "score", "second", "second_score", "correct")
    rows: list[Sequence[object]] = [(*header, "answer", "sure", "unknown", "strangeness")]
    strange = [None] * len(run.reported.photos) if run.strangeness is None else run.strangeness.tolist()
    for photo, shares, strangeness in zip(run.reported.photos, run.probabilities, strange, strict=True):
        said = speaker.speak(photo.name, shares, strangeness, n_top=2)
        first, second = said.top
        correct = int(names[photo.label] == first.label)
        found = (photo.name, names[photo.label], first.label, f"{first.score:.6f}", second.label, f"{second.score:.6f}")
        sure = "" if said.sure is None else int(said.sure)
        strangeness_text = "" if strangeness is None else f"{strangeness:.6f}"
        answer = said.answer.label if said.answer else ""
        rows.append((*found, correct, answer, sure, int(said.unknown), strangeness_text))
    return write_csv(rows)


def _list_fits(run: Run) -> str:
    header = ("l2", "accuracy", "log_loss", "n_steps", "seconds", "chosen")
    rows = [
        (f.l2, f"{f.accuracy:.6f}", f"{f.log_loss:.6f}", f.n_steps, f"{f.seconds:.3f}", int(f.l2 == run.head.l2))
        for f in run.fits
    ]
    return write_csv([header, *rows])


def _list_settings(run: Run) -> str:
    """Settings as YAML; JSON strings are valid YAML scalars."""
    return "".join(f"{name}: {json.dumps(value, ensure_ascii=False)}\n" for name, value in run.settings.items())


def read_setting(folder: Path, name: str) -> str | int | float | None:
    """Read one setting of a run; None where it has none, or none that can be read.

    Parameters
    ----------
    folder : Path
        Run folder.
    name : str
        Such as ``data``.

    Returns
    -------
    str, int, float or None
        Value in args.yaml.
    """
    try:
        lines = (folder / SETTINGS_NAME).read_text(encoding="utf-8").split("\n")
        values = (json.loads(line.removeprefix(f"{name}: ")) for line in lines if line.startswith(f"{name}: "))
        found = next(values, None)
    except (OSError, ValueError):
        return None
    return found if isinstance(found, (str, int, float)) else None


def _gather_report(
    run: Run, maps: Mapping[int, NDArray[np.uint8]], stages: Sequence[Stage], created: str
) -> ReportData:
    from pomona import __version__

    return ReportData(
        title=run.title,
        evaluation=run.evaluation,
        evaluated_on=run.evaluated_on,
        class_counts=_count_classes(run),
        mistakes=list(_show_mistakes(run, maps)),
        skipped=[(one.name, one.fault, one.detail) for one in run.dataset.skipped],
        notes=run.notes,
        audit=run.audit,
        stages=stages,
        settings=run.settings,
        provenance={
            "Pomona": __version__,
            "Created": created,
            "Features": f"{run.embedding.slug} ({run.embedding.licence})",
            "Weights": ", ".join(one.weights_sha256[:16] for one in run.embedding.backbones),
            "Data": run.dataset.fingerprint[:16],
            "Machine": f"{platform.machine()}, {platform.system()}, Python {platform.python_version()}",
        },
        fits=run.fits,
        chosen_l2=run.head.l2,
        curves=_draw_curves(run),
        language=run.language,
        display_names=_list_display_names(run),
        confused=list(_show_confused(run)),
        trust=run.trust,
        evidence=run.evidence,
        kept=run.kept,
        baselines=run.baselines,
        features=run.embedding.slug,
        licence=run.embedding.licence,
    )


def _list_display_names(run: Run) -> dict[str, str]:
    """What classes are called in the language of the report; where two would be called the same, by their names."""
    called = {}
    for name, one in zip(run.dataset.tree.names, run.names, strict=False):
        if shown := one.name_zh if run.language == "zh" else one.name_en:
            called[name] = shown
    taken = Counter([*called.values(), *(name for name in run.dataset.tree.names if name not in called)])
    return {name: shown for name, shown in called.items() if taken[shown] == 1}


def _count_classes(run: Run) -> list[ClassCount]:
    names = run.dataset.tree.names
    train = np.bincount(run.dataset.part("train").labels.clip(0), minlength=len(names))
    reported = np.bincount(run.reported.labels, minlength=len(names))
    return [ClassCount(name, int(a), int(b)) for name, a, b in zip(names, train, reported, strict=True)]


def _show_mistakes(run: Run, maps: Mapping[int, NDArray[np.uint8]]) -> Iterable[MistakeCard]:
    names = run.dataset.tree.names
    for row in _list_shown(run):
        photo = run.reported.photos[row]
        said = int(run.probabilities[row].argmax())
        score = float(run.probabilities[row, said])
        heat = _shrink(maps[row]) if row in maps else None
        yield MistakeCard(photo.name, names[said], names[photo.label], score, _make_thumbnail(photo), heat)


def _show_confused(run: Run) -> Iterable[ConfusedPair]:
    """Pairs of classes that were confused most often, each with its surest mistake and a photo of what it was said."""
    names, answers, labels = run.dataset.tree.names, run.probabilities.argmax(axis=1), run.reported.labels
    rows: dict[tuple[int, int], list[int]] = {}
    for row in mistakes(run.probabilities, labels).tolist():  # the surest first
        rows.setdefault((int(labels[row]), int(answers[row])), []).append(row)
    for (was, said), found in sorted(rows.items(), key=lambda one: -len(one[1]))[:N_CONFUSED]:
        learnt = _find_alike(run, found[0], said)
        yield ConfusedPair(
            names[was],
            names[said],
            len(found),
            int(np.count_nonzero(labels == was)),
            _make_thumbnail(run.reported.photos[found[0]]),
            _make_thumbnail(learnt) if learnt else None,
        )


def _find_alike(run: Run, row: int, said: int) -> Photo | None:
    """What a mistake is most like among the photos learnt as what was said; the first of them where that is unknown."""
    place = -1 if run.alike is None else int(run.alike[row])
    name = run.bank.names[place] if run.bank is not None and place >= 0 else None
    photos = [photo for photo in run.dataset.part("train").photos if photo.label == said]
    return next((photo for photo in photos if name_photo(photo.name) == name), photos[0] if photos else None)


def _make_thumbnail(photo: Photo) -> bytes | None:
    data = _read_unchanged(photo)
    if data is None:  # it was there a moment ago: the card stands without its picture
        return None
    return _shrink(decode_photo(data, at_least_px=2 * _THUMBNAIL_PX))


def _shrink(pixels: NDArray[np.uint8]) -> bytes:
    """A small JPEG."""
    from PIL import Image

    picture = Image.fromarray(pixels)
    picture.thumbnail((_THUMBNAIL_PX, _THUMBNAIL_PX))
    stream = io.BytesIO()
    picture.save(stream, "JPEG", quality=80)
    return stream.getvalue()
