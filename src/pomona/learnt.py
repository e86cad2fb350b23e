"""What a recogniser has learnt from, kept in a form that learns on.

In: the state of a ridge head, and the hashes of its photos. Out: the same again later, mapped from files in the cache.
Why: to learn on takes all features learnt from and an inverse, 160 MB for 2,640 photos: too much for a bundle that is
passed on, and `train` can make it again. The two large tables are written once; what a later change adds is a small
file beside them. Nothing here is believed: what does not solve its own equations is refused.
"""

from __future__ import annotations

import io
import json
import os
import re
import secrets
import shutil
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from pomona.bundle import HEAD_NAME
from pomona.errors import BundleError, FitError
from pomona.files import (
    MANIFEST_NAME,
    cache_folder,
    hash_bytes,
    make_folder,
    new_folder,
    remove_abandoned,
    storage_errors,
    write_atomic,
)
from pomona.ridge import MAX_BYTES, N_CHOSEN_ON, BorderedInverse, FactoredTable, Ridge, fits_kernel

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from numpy.typing import NDArray

    from pomona.bundle import Bundle, Manifest

N_KEPT = 64
"""States of recognisers that the cache keeps, those used last; those of kept versions stay beyond it."""

MAX_KEPT_BYTES = 2_000_000_000
"""What these may take in all; the one used last stays however large it is."""

_TOLERANCE = 1e-3  # of scores that are 1 for the class of a photo and 0 for others; sound states are within 1e-5
_VECTORS, _INVERSE = "vectors.npy", "inverse.npy"
_BASE = re.compile(r"[0-9a-f]{16}")
_STATE = re.compile(r"[0-9a-f]{64}\.npz")
_PINS = "pins"
_PIN = re.compile(r"([0-9a-f]{64})\.[0-9a-f]{16}")


@dataclass(frozen=True, eq=False)
class Learnt:
    """What a recogniser has learnt from, in a form that learns on.

    Parameters
    ----------
    ridge : Ridge
        State of its head.
    photos : ndarray of shape (N,), str
        Hash of each photo, in the order of ``ridge.labels``.
    base : Path, optional
        Folder of the two large tables, where they are on disk already.
    """

    ridge: Ridge
    photos: NDArray[np.str_]
    base: Path | None = None

    def __post_init__(self) -> None:
        if self.photos.shape != self.ridge.labels.shape:
            raise ValueError(f"photos: wanted a hash for each of {len(self.ridge.labels)}, got {self.photos.shape}")

    def change(self, step: Callable[[Ridge], Ridge], photos: NDArray[np.str_]) -> Learnt:
        """The same after a step; on the same tables as long as its state stands on them.

        Raises
        ------
        FitError
            If the step raises it.
        BundleError
            If the tables turn out to be damaged.
        """
        try:
            ridge = step(self.ridge)
        except FitError:
            _check_inverse(self.ridge, self.base)  # is it these photos, or what they met?
            raise
        _check_solution(ridge, self.base)
        same = ridge.blocks[0] is self.ridge.blocks[0] and ridge.inverse.table is self.ridge.inverse.table
        return Learnt(ridge, photos, self.base if same else None)


def save_learnt(manifest: Manifest, learnt: Learnt) -> Path:
    """Keep what a bundle has learnt from in the cache, and let go of what was not used for long.

    The large tables are written once and without waiting for the disk: after a power cut they are damaged at worst,
    which is found, and can be made again.

    Parameters
    ----------
    manifest : Manifest
        Of the bundle.
    learnt : Learnt
        What it has learnt from.

    Returns
    -------
    Path
        The file; in its folder are the tables that it stands on.

    Raises
    ------
    StorageError
        If the cache cannot be written.
    """
    cache = make_folder(cache_folder() / "learnt")
    name = f"{_name_state(manifest)}.npz"
    stream = io.BytesIO()
    np.savez(stream, allow_pickle=False, **_to_arrays(learnt))
    if learnt.base is not None and learnt.base.is_dir():
        path = learnt.base / name
        write_atomic(path, stream.getvalue())
    else:
        base = cache / secrets.token_hex(8)
        with new_folder(base) as folder, storage_errors(f"write {base}"):
            np.save(folder / _VECTORS, learnt.ridge.blocks[0], allow_pickle=False)
            table = learnt.ridge.inverse.table
            np.save(
                folder / _INVERSE, table.triangle if isinstance(table, FactoredTable) else table, allow_pickle=False
            )
            write_atomic(folder / name, stream.getvalue())
        path = base / name
    _let_go(cache, path)
    return path


def load_learnt(bundle: Bundle) -> Learnt:
    """Open what a bundle has learnt from; the large tables are mapped, not read.

    Raises
    ------
    BundleError
        If it is not in the cache, or damaged.
    FitError
        If there were too many photos to keep it, or it was trained by gradients.
    """
    cache = cache_folder() / "learnt"
    paths = [path for path in cache.glob(f"*/{_name_state(bundle.manifest)}.npz") if _BASE.fullmatch(path.parent.name)]
    if not paths:
        raise _say_missing(bundle, cache)
    path = max(paths, key=_read_time)
    try:
        with path.open("rb") as stream, np.load(stream, allow_pickle=False) as arrays:
            small = {name: arrays[name] for name in arrays.files}
        vectors, table = (np.lib.format.open_memmap(path.parent / name, mode="r") for name in (_VECTORS, _INVERSE))
        learnt = _from_arrays(small, np.asarray(vectors), np.asarray(table), path.parent)
        if learnt.ridge.n_classes != len(bundle.tree):
            raise ValueError(f"wanted {len(bundle.tree)} classes, got {learnt.ridge.n_classes}")
        os.utime(path)
    except (OSError, ValueError, KeyError, EOFError, RuntimeError, zipfile.BadZipFile) as error:
        raise BundleError(
            f"{path.parent}: wanted what {bundle.folder} learnt from, it is damaged: {error}; train again with these "
            "photos too: features are in the cache, so it takes seconds"
        ) from error
    return learnt


def _say_missing(bundle: Bundle, cache: Path) -> BundleError | FitError:
    if bundle.manifest.provenance.get("head") == "gradient":
        return FitError(
            f"{bundle.folder}: wanted a recogniser whose head was fitted in closed form, this one was trained with "
            "--tune; train again with these photos too"
        )
    n_photos = len(bundle.learnt_from)
    dim = _read_dim(bundle.folder / HEAD_NAME)
    if is_too_many(n_photos, dim):
        return FitError(
            f"{bundle.folder}: wanted a recogniser that can learn on, this one learnt from {n_photos:,} photos of "
            f"{dim:,} numbers, more than fit in {MAX_BYTES / 1e9:g} GB; train again with these photos too"
        )
    return BundleError(
        f"{bundle.folder}: wanted what it learnt from in the cache {cache}, got nothing: it was made on another "
        "machine or with another cache, or removed since; train again with these photos too, which takes seconds "
        "where the features are in the cache"
    )


def pin_learnt(manifest: Manifest, holder: Path) -> bool:
    """Keep what a bundle has learnt from in the cache for as long as a folder with that bundle stands.

    Parameters
    ----------
    manifest : Manifest
        Of the bundle.
    holder : Path
        Folder that holds the bundle.

    Returns
    -------
    bool
        Whether it is in the cache: of what is not, nothing is pinned.

    Raises
    ------
    StorageError
        If the cache cannot be written.
    """
    cache, name = cache_folder() / "learnt", _name_state(manifest)
    if not any(cache.glob(f"*/{name}.npz")):
        return False
    place = str(holder.resolve())
    write_atomic(make_folder(cache / _PINS) / f"{name}.{hash_bytes(os.fsencode(place))[:16]}", os.fsencode(place))
    return True


def _list_pinned(cache: Path) -> set[str]:
    """States that a folder needs which still stands; pins of folders that are gone are removed."""
    pinned = set()
    for pin in (cache / _PINS).glob("*"):
        if (found := _PIN.fullmatch(pin.name)) is None:
            continue
        try:
            stands = (Path(os.fsdecode(pin.read_bytes())) / MANIFEST_NAME).is_file()
        except (OSError, ValueError):  # one that cannot be read keeps nothing
            stands = False
        if stands:
            pinned.add(found[1])
        else:
            pin.unlink(missing_ok=True)
    return pinned


def is_too_many(n_photos: int, dim: int) -> bool:
    """Whether `pomona.ridge.fit_ridge` would give no state."""
    return n_photos > N_CHOSEN_ON and not fits_kernel(n_photos, dim)


def _read_dim(path: Path) -> int:
    """Length of the features, from the header of the head's file."""
    with storage_errors(f"read {path}"), path.open("rb") as stream:
        size = int.from_bytes(stream.read(8), "little")
        return int(json.loads(stream.read(size))["weights"]["shape"][1])


def _name_state(manifest: Manifest) -> str:
    """Hash of the bundle's files: a copy of a bundle finds the state of its original, another bundle never does."""
    return hash_bytes(repr(sorted(manifest.files.items())).encode("utf-8"))


def _to_arrays(learnt: Learnt) -> dict[str, NDArray[np.generic]]:
    """All but the two large tables."""
    ridge = learnt.ridge
    return {
        "photos": learnt.photos.astype("S64"),
        "labels": ridge.labels.astype(np.int64),
        "rows": ridge.rows.astype(np.int64),
        "origin": ridge.origin,
        "taught": np.concatenate([ridge.blocks[0][:0], *ridge.blocks[1:]]),
        "factors": ridge.inverse.factors,
        "signs": ridge.inverse.signs,
        **_factor_arrays(ridge.inverse.table),
        "duals": ridge.duals,
        "weights": ridge.weights,
        "numbers": np.array([ridge.penalty, ridge.temperature, ridge.l2]),
    }


def _factor_arrays(table: NDArray[np.float64] | FactoredTable) -> dict[str, NDArray[np.generic]]:
    """What a factor needs beside its triangle; nothing of it for a table."""
    ones = table.ones if isinstance(table, FactoredTable) else np.zeros(0)
    return {"ones": ones, "is_inverse": np.array([isinstance(table, FactoredTable) and table.is_inverse])}


def _from_arrays(
    arrays: Mapping[str, NDArray[np.generic]], vectors: NDArray[np.float32], table: NDArray[np.float64], base: Path
) -> Learnt:
    """Make again what `_to_arrays` was given; a `ValueError` or `KeyError` where the parts are not of one whole."""
    (n_base, dim), n_taught = vectors.shape, len(arrays["taught"])
    n_rows, n_photos = n_base + n_taught, len(arrays["labels"])
    n_classes, rank = len(arrays["weights"]), len(arrays["signs"])
    wanted: dict[str, tuple[int, ...]] = {
        "photos": (n_photos,),
        "labels": (n_photos,),
        "rows": (n_photos,),
        "origin": (dim,),
        "numbers": (3,),
    }
    wanted |= {"taught": (n_taught, dim), "factors": (n_rows + 1, rank), "signs": (rank,)}
    n_ones = n_base if len(arrays["ones"]) else 0  # none beside a table, which has the border in it
    wanted |= {"ones": (n_ones,), "is_inverse": (1,)}
    wanted |= {"duals": (n_rows + 1, n_classes), "weights": (n_classes, dim)}
    got = {name: arrays[name].shape for name in wanted}
    side = n_base if n_ones else n_base + 1
    if got != wanted or table.shape != (side, side):
        raise ValueError(f"wanted arrays of shapes {wanted} and a table of {side}, got {got} and {table.shape}")
    labels, rows = arrays["labels"].astype(np.intp), arrays["rows"].astype(np.intp)
    if not (0 <= labels.min() <= labels.max() < n_classes and 0 <= rows.min() <= rows.max() < n_rows):
        raise ValueError("wanted labels and rows in range, got others")
    penalty, temperature, l2 = (float(number) for number in arrays["numbers"])
    blocks = (vectors, np.asarray(arrays["taught"], np.float32)) if n_taught else (vectors,)
    base_table = FactoredTable(table, bool(arrays["is_inverse"][0]), np.asarray(arrays["ones"], np.float64))
    inverse = BorderedInverse(
        base_table if n_ones else table,
        np.asarray(arrays["factors"], np.float64),
        np.asarray(arrays["signs"], np.float64),
    )
    ridge = Ridge(
        origin=np.asarray(arrays["origin"], np.float32),
        blocks=blocks,
        rows=rows,
        labels=labels,
        inverse=inverse,
        duals=np.asarray(arrays["duals"], np.float64),
        weights=np.asarray(arrays["weights"], np.float32),
        penalty=penalty,
        temperature=temperature,
        l2=l2,
    )
    return Learnt(ridge, arrays["photos"].astype("U64"), base)


def _let_go(cache: Path, kept: Path) -> None:
    """Remove states that were not used for long, and tables that no state stands on any more."""
    pinned = _list_pinned(cache)
    bases = [base for base in cache.iterdir() if _BASE.fullmatch(base.name) and not base.is_symlink()]
    states = [path for base in bases for path in base.glob("*.npz") if _STATE.fullmatch(path.name)]
    states.sort(key=lambda path: (path == kept, _read_time(path)), reverse=True)
    n_bytes, used = 0, set()
    for place, path in enumerate(states):
        sizes = [path] if path.parent in used else [path, path.parent / _VECTORS, path.parent / _INVERSE]
        n_bytes += sum(_read_size(one) for one in sizes)
        is_older = path.name == kept.name and path != kept
        is_surplus = (place >= N_KEPT or n_bytes > MAX_KEPT_BYTES) and path.stem not in pinned
        if path != kept and (is_older or is_surplus):
            with storage_errors(f"remove {path}"):
                path.unlink(missing_ok=True)
        else:
            used.add(path.parent)
    for base in bases:
        if base not in used and not any(base.glob("*.npz")):
            shutil.rmtree(base, ignore_errors=True)
    remove_abandoned(cache, _BASE.pattern)


def _read_time(path: Path) -> int:
    try:
        return path.stat().st_mtime_ns
    except OSError:  # another process has removed it
        return 0


def _read_size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return 0


def _check_solution(ridge: Ridge, base: Path | None) -> None:
    """Refuse a state that is no solution: it must leave of each label what the penalty makes of the photo's dual.

    One look at the features, through one random mixture of the classes. After a change it finds all damage that matters
    in either table, at a tenth of what a checksum would cost.
    """
    mixture = _mix_classes(ridge)
    weights = mixture.astype(np.float32) @ ridge.weights
    duals = ridge.duals @ mixture
    scores = np.concatenate([block @ weights for block in ridge.blocks])[ridge.rows] + duals[0]
    _check_distance(mixture[ridge.labels] - ridge.penalty * duals[1:][ridge.rows] - scores, base)


def _check_inverse(ridge: Ridge, base: Path | None) -> None:
    """Refuse a state whose inverse does not make the duals of the labels."""
    mixture = _mix_classes(ridge)
    labels = np.zeros((len(ridge.duals), 1))
    labels[ridge.rows + 1, 0] = mixture[ridge.labels]
    duals = ridge.duals @ mixture
    _check_distance((ridge.inverse.apply(labels)[:, 0] - duals) / np.abs(duals).max(), base)


def _mix_classes(ridge: Ridge) -> NDArray[np.float64]:
    # Not signs: where all are the same, the intercept alone solves it.
    return np.random.default_rng(0).standard_normal(ridge.n_classes)


def _check_distance(distance: NDArray[np.float64], base: Path | None) -> None:
    off = float(np.abs(distance).max())
    if not off <= _TOLERANCE:
        raise BundleError(
            f"{base}: wanted what was learnt to solve its own equations within {_TOLERANCE:g}, got {off:.2g} apart: it "
            "is damaged; train again with these photos too"
        )
