"""Where a run folder may stand: a place that can be written, and where nothing else is lost.

In: where the photos are, and where the run shall be. Out: the folder, or a reason why not.
Why: an older run is replaced when the new one is whole; photos, notes and whatever else a user keeps are never.
"""

from __future__ import annotations

import glob
import itertools
import os
from pathlib import Path

from pomona.checkpoint import TUNING_SUFFIX, list_foreign
from pomona.class_tree import show_text
from pomona.dataset import name_some
from pomona.errors import OptionError, StorageError
from pomona.files import MANIFEST_NAME, PARTIAL_FILE, SYSTEM_FILES, storage_errors
from pomona.run_folder import RUN_FILES, read_setting


def check_output(output: Path, data: Path, *, tunes: bool = False) -> None:
    """Refuse a place for a run that cannot be written or must not be replaced, before the work begins.

    Parameters
    ----------
    output : Path
        Run folder to write.
    data : Path
        Where the photos are.
    tunes : bool
        Whether the folder that `find_tuning_folder` names is needed too.

    Raises
    ------
    OptionError
        If it lies among the photos, or what training keeps would.
    StorageError
        If it cannot be written, or holds what is no part of a run.
    """
    if data.is_dir() and _follow(output).is_relative_to(_follow(data)):
        raise OptionError(
            f"output: wanted a folder outside the photos, got {output} in {data}: its pictures would be taken "
            "for photos the next time; choose another --output"
        )
    above = next((folder for folder in _follow(output).parents if os.path.lexists(folder)), output)
    if not above.is_dir():
        raise StorageError(f"{output}: wanted a place for a folder, got the file {above} above it; move it")
    if not os.access(above, os.W_OK | os.X_OK):
        raise StorageError(f"{output}: wanted a place that can be written, got no permission in {above}")
    check_place(output)
    if tunes:
        _check_tuning_folder(find_tuning_folder(output), data)


def find_tuning_folder(output: Path) -> Path:
    """Folder beside a run folder, behind all links, where training by gradients keeps what it goes on from."""
    place = _follow(output)
    return place.with_name(f"{place.name}{TUNING_SUFFIX}")


def _check_tuning_folder(folder: Path, data: Path) -> None:
    place, photos = _follow(folder), _follow(_split_pattern(data)[0])
    within = data.is_dir() and place.is_relative_to(photos)
    if photos.is_relative_to(place) or within:
        raise OptionError(
            f"output: wanted a run whose training, in {folder}, is kept apart from the photos, got {data}; "
            "choose another --output"
        )
    foreign = [name for name in list_foreign(folder) if name.casefold() not in SYSTEM_FILES]
    if foreign:
        raise StorageError(
            f"{folder}: wanted a free place for what training keeps, got {show_text(name_some(foreign))} there; "
            "move that away, or choose another --output"
        )


def choose_output(data: Path) -> Path:
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


def name_data(data: Path) -> str:
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


def check_place(output: Path) -> None:
    """Refuse a place where something else than an older run would be replaced and lost."""
    if _follow(output).is_symlink():
        raise StorageError(f"{output}: wanted a place for a folder, got a link that leads in a circle")
    with storage_errors(f"look into {output}"):
        if not output.exists():
            return
        names = {path.name for path in output.iterdir() if not PARTIAL_FILE.fullmatch(path.name)}
    if names and MANIFEST_NAME not in names:
        raise StorageError(
            f"{output}: wanted a free place or an older run to replace, got something else there; "
            "choose another --output"
        )
    if foreign := sorted(name for name in names - RUN_FILES if name.casefold() not in SYSTEM_FILES):
        raise StorageError(
            f"{output}: an older run stands there, and beside it what is no part of a run: "
            f"{show_text(name_some(foreign))}; move that away, or choose another --output"
        )
