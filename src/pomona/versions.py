"""Every version that a run ever had, each a whole bundle, and the way back to it.

In: a run folder. Out: `<RUN>.versions/0001` and so on beside it, and the run folder as it was once.
Why: a recogniser that is taught in a shop will be taught something wrong one day. Going back must be one step and give
the very answers of then. Files of a bundle are replaced and never changed, so a version is hard links to them, and
what a version is, its own manifest says.
"""

from __future__ import annotations

import errno
import re
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from pomona.bundle import Bundle, load_bundle, parse_manifest
from pomona.errors import BundleError, OptionError, StorageError
from pomona.files import MANIFEST_NAME, build_folder, make_folder, new_folder, storage_errors, write_atomic
from pomona.learnt import pin_learnt
from pomona.run_folder import CHANGES_NAME, carry_over, link_file, list_changes

if TYPE_CHECKING:
    from pathlib import Path

    from pomona.bundle import Manifest

_NUMBER = re.compile(r"[0-9]{4,}")
_N_TRIES = 100


@dataclass(frozen=True)
class Version:
    """A recogniser as it was once.

    Parameters
    ----------
    number : int
        From 1, in the order in which they were kept.
    folder : Path
        Its bundle.
    created : str
        When it was trained or taught: UTC, ISO 8601.
    action : str
        What made it: "trained", or what was taught or forgotten.
    n_classes : int
        Classes that it knows.
    n_photos : int
        Photos that it learnt from.
    is_current : bool
        Whether it is what stands in the run folder.
    """

    number: int
    folder: Path
    created: str
    action: str
    n_classes: int
    n_photos: int
    is_current: bool

    def to_dict(self) -> dict[str, Any]:
        """The version as plain values for JSON, without the place of its folder."""
        return {
            "number": self.number,
            "created": self.created,
            "action": self.action,
            "n_classes": self.n_classes,
            "n_photos": self.n_photos,
            "is_current": self.is_current,
        }


def find_versions_folder(run: Path) -> Path:
    """Folder of the versions of a run: beside it, under its name.

    Examples
    --------
    >>> from pathlib import Path
    >>> find_versions_folder(Path("/shop/scale")).name
    'scale.versions'
    """
    real = run.resolve()
    return real.with_name(f"{real.name}.versions")


def list_versions(run: Path) -> tuple[Version, ...]:
    """Versions of a run that were kept, the first one first; one whose manifest cannot be read is left out.

    Raises
    ------
    BundleError
        If the run folder is none.
    """
    checksum = parse_manifest(run).checksum
    found = _read_manifests(run)
    current = next((number for number, manifest in found if manifest.checksum == checksum), None)
    folder = find_versions_folder(run)
    return tuple(
        Version(
            number=number,
            folder=folder / f"{number:04}",
            created=manifest.created,
            action=str(manifest.provenance.get("change") or "trained"),
            n_classes=len(manifest.classes),
            n_photos=_count_photos(manifest),
            is_current=number == current,
        )
        for number, manifest in found
    )


def keep_version(run: Path) -> Version:
    """Keep what stands in a run folder as a version; nothing is done where it is one already.

    Parameters
    ----------
    run : Path
        Run folder.

    Returns
    -------
    Version
        The version that the run folder is now.

    Raises
    ------
    BundleError
        If the run folder is none, damaged, or changed meanwhile.
    StorageError
        If it cannot be written; a folder without its manifest is no version.
    """
    manifest = parse_manifest(run)
    folder = make_folder(find_versions_folder(run))
    number = next((number for number, one in _read_manifests(run) if one.checksum == manifest.checksum), None)
    if number is None:
        number = _link_version(run.resolve(), manifest, folder)
    pin_learnt(manifest, folder / f"{number:04}")
    found = next((one for one in list_versions(run) if one.is_current), None)
    if found is None:
        raise BundleError(f"{run} was changed by somebody else in the meantime; run this again")
    return found


def _link_version(run: Path, manifest: Manifest, folder: Path) -> int:
    """Build a version under a name of its own, look whether it is whole, and give it the next number that is free."""
    with build_folder(folder, "version") as staging:
        with storage_errors(f"keep {run} as a version in {folder}"):
            for name in (*manifest.files, MANIFEST_NAME):
                link_file(run / name, staging / name)
        if load_bundle(staging).manifest.checksum != manifest.checksum:
            raise BundleError(f"{run} was changed by somebody else in the meantime; run this again")
        for _ in range(_N_TRIES):
            number = 1 + max((int(name.name) for name in _list_folders(folder)), default=0)
            try:
                staging.rename(folder / f"{number:04}")
            except OSError as error:  # another process was quicker
                if error.errno not in {errno.ENOTEMPTY, errno.EEXIST, errno.EACCES}:
                    raise StorageError(f"could not keep {run} in {folder}: {error.strerror or error}") from error
            else:
                return number
    raise StorageError(f"could not keep {run} in {folder}: others keep versions there all the time; try again")


def restore_version(run: Path, number: int) -> Bundle:
    """Put a version into the run folder, whole; what stands there is kept as a version first.

    Files of the run folder that are no part of a bundle stay: reports, tables, and whatever people put there.

    Parameters
    ----------
    run : Path
        Run folder.
    number : int
        Of the version.

    Returns
    -------
    Bundle
        What stands in the run folder now.

    Raises
    ------
    OptionError
        If there is no such version.
    BundleError
        If the version is damaged, or the run folder was changed meanwhile.
    StorageError
        If it cannot be written; the run folder is then as it was.
    """
    versions = {one.number: one for one in list_versions(run)}
    source = find_versions_folder(run) / f"{number:04}"
    if number not in versions and not (number > 0 and source.is_dir()):
        known = ", ".join(map(str, versions)) or "none"
        raise OptionError(f"version: wanted the number of a version of {run} ({known}), got {number}")
    wanted = load_bundle(source).manifest
    keep_version(run)
    before = parse_manifest(run)
    if before.checksum == wanted.checksum:
        return load_bundle(run)
    now = datetime.now(UTC).isoformat(timespec="seconds")
    bundle_files = {*before.files, *wanted.files, MANIFEST_NAME}
    with new_folder(run) as folder:
        with storage_errors(f"bring version {number} of {run} back"):
            carry_over(run.resolve(), folder, {*bundle_files, CHANGES_NAME})
            for name in (*wanted.files, MANIFEST_NAME):
                link_file(source / name, folder / name)
            changes = list_changes(run, [(now, "restore", f"version {number}", _count_photos(wanted))])
        write_atomic(folder / CHANGES_NAME, changes)
        if parse_manifest(run).checksum != before.checksum:
            raise BundleError(f"{run} was changed by somebody else in the meantime; run this again")
    return load_bundle(run)


def _list_folders(folder: Path) -> list[Path]:
    with storage_errors(f"read {folder}"):
        return [path for path in folder.iterdir() if _NUMBER.fullmatch(path.name)] if folder.is_dir() else []


def _read_manifests(run: Path) -> list[tuple[int, Manifest]]:
    """Manifests of the versions that can be read, by number."""
    found = []
    for path in _list_folders(find_versions_folder(run)):
        with suppress(BundleError):  # one that is damaged is refused by name when somebody wants it back
            found.append((int(path.name), parse_manifest(path)))
    return sorted(found, key=lambda one: one[0])


def _count_photos(manifest: Manifest) -> int:
    count = manifest.provenance.get("n_learnt", manifest.provenance.get("n_train"))
    return count if isinstance(count, int) else 0
