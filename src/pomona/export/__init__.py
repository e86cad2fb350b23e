"""A recogniser in another form: one ONNX file, an engine's own files, a page, an image; and proof that it is the same.

In: a run folder and a format. Out: a folder with the export and a report on its parity, or nothing and the reason why.
Why: an export that answers otherwise than what was measured is worse than none.
"""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from pomona.bundle import load_bundle
from pomona.class_tree import show_text
from pomona.clock import Clock
from pomona.dataset import name_some
from pomona.errors import DataError, OptionError, StorageError
from pomona.export.formats import FORMATS, FormatName
from pomona.export.golden import make_golden, write_golden
from pomona.export.parity import check_parity
from pomona.export.parity_report import PAGE_NAME, PARITY_NAME, describe_parity, write_json, write_markdown
from pomona.export.real_photos import load_real
from pomona.files import MANIFEST_NAME, SYSTEM_FILES, new_folder, storage_errors
from pomona.photo import sniff_format

if TYPE_CHECKING:
    from pomona.clock import Progress, Stage
    from pomona.export.parity import Parity

GOLDEN_FOLDER = "golden"

_NO_PHOTOS = (
    "tried on rendered photos alone: those that the run was measured on are not where they were, or cannot be used; "
    "name labelled ones with --data"
)


@dataclass(frozen=True, kw_only=True)
class ExportOptions:
    """What `export_bundle` takes; the command line offers the same names, defaults and help.

    Parameters
    ----------
    run : Path
        Run folder that `train` wrote.
    format : {"onnx", "openvino", "int8", "web", "docker"}
        What it becomes.
    output : Path, optional
        Folder to write; beside the run, with the format after its name, where not given. An export that stands there is
        replaced when the new one is whole; anything else is an error.
    data : Path, optional
        Labelled photos to try it on; where not given, those that the run was measured on, if they are still there.
    runtime : Path, optional
        Of web: folder or package file of ONNX Runtime Web; where not given, npm fetches it, once.

    Raises
    ------
    OptionError
        If there is no such format.
    """

    run: Annotated[Path, "Run folder that `pomona train` wrote."]
    format: Annotated[FormatName, "What it becomes."]
    output: Annotated[Path | None, "Folder to write; by default beside the run, with the format after its name."] = None
    data: Annotated[
        Path | None, "Labelled photos to try it on; by default those that the run was measured on, if still there."
    ] = None

    runtime: Annotated[
        Path | None, "Of web: folder or .tgz of the npm package onnxruntime-web; by default npm fetches it."
    ] = None

    def __post_init__(self) -> None:
        if self.format not in FORMATS:
            wanted = ", ".join(FORMATS)
            raise OptionError(f"format: wanted one of {wanted}, got {self.format!r}")
        if self.runtime is not None and not FORMATS[self.format].takes_runtime:
            raise OptionError(f"runtime: wanted it with --format web alone, got it with {self.format}")

    def find_output(self) -> Path:
        """Folder to write."""
        if self.output is not None:
            return Path(os.path.expanduser(self.output))  # noqa: PTH111 - of an unknown user, `Path` makes an error
        place = Path(os.path.realpath(self.run))
        return place.with_name(f"{place.name}-{self.format}")


@dataclass(frozen=True)
class ExportResult:
    """What `export_bundle` made.

    Parameters
    ----------
    folder : Path
        Where it is.
    format : str
        What it is.
    files : dict of str to int
        Bytes of each file, by its path in the folder.
    parities : tuple of Parity
        How it fared, one a runtime.
    notes : tuple of str
        What to know.
    stages : tuple of Stage
        Time of each step.
    """

    folder: Path
    format: FormatName
    files: dict[str, int]
    parities: tuple[Parity, ...]
    notes: tuple[str, ...]
    stages: tuple[Stage, ...]

    def to_dict(self) -> dict[str, Any]:
        """The result as plain values for JSON."""
        return {
            "output": str(self.folder),
            "format": self.format,
            "files": self.files,
            "runtimes": [parity.to_dict() for parity in self.parities],
            "notes": list(self.notes),
            "seconds": {stage.name: round(stage.seconds, 3) for stage in self.stages},
        }


def export_bundle(options: ExportOptions, *, on_progress: Progress | None = None) -> ExportResult:
    """Write a recogniser in another form, and let it stand only if it answers as the bundle does.

    Parameters
    ----------
    options : ExportOptions
        What to do.
    on_progress : callable, optional
        Called with (step, done, in all).

    Returns
    -------
    ExportResult
        What was written, and how close it is.

    Raises
    ------
    ExportError
        If it answers otherwise, which names the first stage that differs; or cannot be made. Nothing is written.
    BundleError
        If the run cannot be used.
    StorageError
        If the place is taken or cannot be written.
    DataError
        If photos were named and none can be used.
    MissingPackageError
        If what writes or runs the format is not installed.
    """
    chosen = FORMATS[options.format]
    output = options.find_output()
    check_export_place(output, options)
    clock = Clock(on_progress)
    with clock.step("load"):
        bundle = load_bundle(options.run)
        real = load_real(bundle, options.data)
    if options.data is not None and not real:
        raise DataError(f"{options.data}: wanted photos to try the export on, got none that can be read")
    tried = [photo for photo in real if sniff_format(photo.content) not in chosen.cannot_decode]
    with clock.step("render"):
        golden = make_golden(bundle)
    with new_folder(output) as folder:
        with clock.step("save"):
            settings = {"runtime": options.runtime} if chosen.takes_runtime else {}
            chosen.write(bundle, folder, golden, **settings)
        parities = []
        for runner in chosen.open_runners(bundle, folder):
            with clock.step("parity", len(golden) + len(tried)):
                bounds = chosen.choose_bounds(bundle, runner)
                parities.append(check_parity(bundle, runner, golden, tried, bounds=bounds, on_photo=clock.count))
        is_on_real = all(parity.n_failed < parity.n_real for parity in parities)
        if options.data is not None and not is_on_real:
            raise DataError(f"{options.data}: wanted photos to try the export on, got none that can be used")
        if chosen.holds_golden:
            write_golden(golden, folder / GOLDEN_FOLDER)
        files = {
            path.relative_to(folder).as_posix(): path.stat().st_size for path in folder.rglob("*") if path.is_file()
        }
        report = describe_parity(bundle, options.format, parities, files, datetime.now(UTC).isoformat("T", "seconds"))
        with storage_errors(f"write {folder / PARITY_NAME}"):
            (folder / PARITY_NAME).write_text(write_json(report), encoding="utf-8")
            (folder / PAGE_NAME).write_text(write_markdown(report, parities), encoding="utf-8")
    unchecked = chosen.say_unchecked() if chosen.say_unchecked else None
    left_out = None
    if n_left := len(real) - len(tried):
        kinds = " and ".join(sorted(kind.upper() for kind in chosen.cannot_decode))
        left_out = f"{n_left:,} of {len(real):,} photos were not tried: browsers that cannot open {kinds} say so"
    notes = tuple(note for note in (None if is_on_real else _NO_PHOTOS, left_out, unchecked) if note)
    return ExportResult(output, options.format, files, tuple(parities), notes, tuple(clock.stages))


def check_export_place(output: Path, options: ExportOptions) -> None:
    """Refuse a place where something else than an older export would be replaced and lost, before the work begins.

    Raises
    ------
    OptionError
        If it lies in the run or among the photos, or one of these in it.
    StorageError
        If it holds what is no part of an export, or cannot be read.
    """
    place = Path(os.path.realpath(output))
    for name, other in (("run", options.run), ("data", options.data)):
        if other is None:
            continue
        taken = Path(os.path.realpath(other))
        if place.is_relative_to(taken) or taken.is_relative_to(place):
            raise OptionError(f"output: wanted a folder apart from the {name}, got {output} and {other}")
    with storage_errors(f"look into {output}"):
        if not os.path.lexists(place):
            return
        if not place.is_dir():
            raise StorageError(f"{output}: wanted a place for a folder, got a file there; move it or name another")
        found = {
            path.relative_to(place).as_posix() for path in place.rglob("*") if not path.is_dir() or path.is_symlink()
        }
    if not found:
        return
    foreign = sorted(
        name for name in found - _list_own(place) if name.rpartition("/")[2].casefold() not in SYSTEM_FILES
    )
    if foreign:
        raise StorageError(
            f"{output}: wanted a free place or an older export to replace, got what is no part of one: "
            f"{show_text(name_some(foreign))}; move that away, or choose another --output"
        )


def _list_own(place: Path) -> set[str]:
    """Files that an export says are its own; none where there is none."""
    if (place / MANIFEST_NAME).exists():  # a run, whatever else lies there
        return set()
    try:
        report = json.loads((place / PARITY_NAME).read_bytes())
        if report["pomona_export"] < 1:
            return set()
        return {PARITY_NAME, PAGE_NAME, *map(str, report["files"])}
    except (OSError, ValueError, KeyError, TypeError):
        return set()
