"""Names given to the classes of a finished recogniser.

In: a run folder, and a table of names. Out: the same run folder, whose manifest holds the names of that table.
Why: a shop's own names and codes come after training, and change more often than the fruit. The graph and the head are
not touched, so that what is answered stays the same, and what was learnt is found again.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pomona.bundle import BUNDLE_FORMAT, Bundle, list_classes, load_bundle, parse_manifest
from pomona.class_names import match_class_names, read_class_names
from pomona.errors import BundleError
from pomona.files import MANIFEST_NAME, write_atomic

if TYPE_CHECKING:
    from pomona.class_names import ClassName
    from pomona.class_tree import ClassTree


@dataclass(frozen=True)
class NamingResult:
    """What `set_names` did.

    Parameters
    ----------
    bundle : Bundle
        The recogniser as it is now.
    notes : tuple of str
        Classes without a row, and rows without a class.
    """

    bundle: Bundle
    notes: tuple[str, ...]


def set_names(run: str | Path, table: str | Path) -> NamingResult:
    """Replace the names of a recogniser's classes by those of a table.

    Parameters
    ----------
    run : str or Path
        Run folder that `train` wrote.
    table : str or Path
        What `pomona.class_names.read_class_names` takes. Where it is silent, the list of common produce speaks.

    Returns
    -------
    NamingResult
        The recogniser, and what to know of the table.

    Raises
    ------
    DataError
        If the table cannot be used.
    BundleError
        If the recogniser cannot be used, or was changed by somebody else in the meantime.
    StorageError
        If it cannot be written; the recogniser is then as it was.
    """
    from pomona import __version__

    rows = read_class_names(Path(table))
    bundle = load_bundle(run)
    names, notes = match_class_names(rows, bundle.tree)
    changes = {"format": BUNDLE_FORMAT, "pomona_version": __version__, "classes": list_classes(bundle.tree, names)}
    manifest = bundle.manifest.model_copy(update=changes).seal()
    if parse_manifest(bundle.folder).checksum != bundle.manifest.checksum:
        raise BundleError(f"{bundle.folder} was changed by somebody else in the meantime; run this again")
    write_atomic(bundle.folder / MANIFEST_NAME, manifest.model_dump_json(indent=2) + "\n")
    return NamingResult(Bundle(bundle.folder, manifest), notes)


def list_names(tree: ClassTree, names: tuple[ClassName, ...]) -> list[dict[str, Any]]:
    """Classes with what people call them, as plain values for JSON."""
    return [
        {"class": label, "name_en": name.name_en, "name_zh": name.name_zh, "plu": name.plu, "extra": dict(name.extra)}
        for label, name in zip(tree.names, names, strict=True)
    ]
