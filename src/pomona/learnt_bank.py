"""What a recogniser has learnt, in few numbers a photo, in one file of its bundle.

In: sketches of features, labels and names of photos. Out: the file; a `LearntBank`, and the photos most like a new one.
Why: what finds the unknown is fitted on it, anew when a class is taught, and it says which photos an answer is like,
without the photos and without the cache.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from pomona.errors import BundleDamagedError, MissingPackageError
from pomona.features import release_pages
from pomona.novelty import Bank, sketch_vectors
from pomona.projection import iter_blocks, scale_rows

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from numpy.typing import NDArray

    from pomona.class_tree import ClassTree

BANK_NAME = "bank.safetensors"

_HALF = (1e-3, 65504.0)  # largest number of sketches that half precision is good for, from and to
_KINDS = {"F16": "<f2", "F32": "<f4", "I64": "<i8", "U8": "u1"}


@dataclass(frozen=True, eq=False)
class LearntBank:
    """What was learnt, with the names of the photos.

    Parameters
    ----------
    bank : Bank
        Sketches and labels of N photos, as numbers that half precision holds.
    names : tuple of str, (N,)
        Names of the photos in their data set.
    """

    bank: Bank
    names: tuple[str, ...]

    @classmethod
    def make(
        cls,
        vectors: NDArray[np.float32],
        labels: NDArray[np.intp],
        names: Sequence[str],
        rows: NDArray[np.intp] | None = None,
    ) -> LearntBank:
        """Sketch features (M, D), or rows of them; rounded at once, as a later reader would have them.

        Labels and names are of the rows. Of features in a file no more than a block is in memory.
        """
        rows = np.arange(len(vectors)) if rows is None else rows
        parts = [sketch_vectors(vectors[rows[start:stop]]) for start, stop in iter_blocks(len(rows))]
        release_pages(vectors)
        return cls(Bank(round_sketches(np.concatenate(parts)), labels), tuple(map(name_photo, names)))

    def add(self, vectors: NDArray[np.float32], labels: NDArray[np.intp], names: tuple[str, ...]) -> LearntBank:
        """The same with photos more, of features (K, D) and classes (K,)."""
        more = round_sketches(sketch_vectors(vectors))
        labels = np.append(self.bank.labels, labels)
        return LearntBank(Bank(np.vstack([self.bank.vectors, more]), labels), (*self.names, *names))

    def remove(self, label: int) -> LearntBank:
        """The same without the photos of a class."""
        left = np.flatnonzero(self.bank.labels != label)
        names = tuple(self.names[i] for i in left)
        return LearntBank(Bank(self.bank.vectors[left], self.bank.labels[left]), names)

    def renumber(self, old: ClassTree, new: ClassTree) -> LearntBank:
        """The same with its labels those of another tree, which has all classes that are left."""
        places = {path: number for number, path in enumerate(new.paths)}
        numbers = np.array([places.get(path, -1) for path in old.paths])
        return LearntBank(Bank(self.bank.vectors, numbers[self.bank.labels]), self.names)

    def find_alike(self, sketches: NDArray[np.float32], answers: NDArray[np.intp]) -> NDArray[np.intp]:
        """For each photo the place of the most alike of the class that was answered; -1 where there is none.

        Parameters
        ----------
        sketches : ndarray of shape (N, K), float32
            Of the features of the photos.
        answers : ndarray of shape (N,), intp
            Class that was answered for each.
        """
        found = np.full(len(sketches), -1)
        for label in np.unique(answers):
            rows, places = np.flatnonzero(answers == label), np.flatnonzero(self.bank.labels == label)
            if len(places):
                likeness = scale_rows(sketches[rows]) @ scale_rows(self.bank.vectors[places]).T
                found[rows] = places[likeness.argmax(axis=1)]
        return found

    def find_nearest(self, vector: NDArray[np.float32], n: int = 3) -> list[tuple[int, float]]:
        """Places and likeness, -1 to 1, of the photos whose features are most like some features (D,).

        Examples
        --------
        >>> bank = LearntBank.make(np.eye(3, dtype=np.float32), np.arange(3), ("a", "b", "c"))
        >>> bank.find_nearest(np.array([0.0, 2.0, 0.0], np.float32), 1)
        [(1, 1.0)]
        """
        likeness = scale_rows(self.bank.vectors) @ scale_rows(sketch_vectors(vector[None]))[0]
        best = np.argsort(-likeness, kind="stable")[:n]
        return [(int(i), float(likeness[i])) for i in best]


def name_photo(name: str) -> str:
    """Name of a photo as a bundle may hold it: of one outside its data set the last two parts, and no folder more.

    Examples
    --------
    >>> name_photo("Apple/1.jpg"), name_photo("../home/me/shop/Apple/1.jpg")
    ('Apple/1.jpg', 'Apple/1.jpg')
    """
    parts = name.replace("\\", "/").split("/")
    return "/".join(parts[-2:]) if parts[0] in {"", ".."} or ":" in parts[0] else name


def round_sketches(sketches: NDArray[np.float32]) -> NDArray[np.float32]:
    """Numbers that half precision holds; as they are where they are too large or too small for it."""
    largest = float(np.abs(sketches).max(initial=0))
    return sketches.astype(np.float16).astype(np.float32) if _HALF[0] < largest < _HALF[1] else sketches


def save_bank(learnt: LearntBank) -> bytes:
    """Content of the file.

    It holds ``vectors`` (N, K), float16 or where that would change them float32, ``labels`` (N,) int64, and ``names``
    as UTF-8 JSON in uint8.
    """
    try:
        from safetensors.numpy import save
    except ImportError as error:
        raise MissingPackageError("safetensors", "train", "to write a bundle") from error
    names = json.dumps(list(learnt.names), ensure_ascii=True).encode("ascii")
    vectors = learnt.bank.vectors
    with np.errstate(over="ignore"):
        half = vectors.astype(np.float16)
    tensors: dict[str, NDArray[Any]] = {
        "vectors": half if np.array_equal(half.astype(np.float32), vectors) else vectors,
        "labels": learnt.bank.labels.astype(np.int64),
        "names": np.frombuffer(names, np.uint8),
    }
    return bytes(save(tensors))


def load_bank(folder: Path) -> LearntBank:
    """Read the file of a bundle.

    Raises
    ------
    BundleDamagedError
        If the file is missing or its parts are not of one whole.
    """
    path = folder / BANK_NAME
    try:
        tensors = _read_tensors(path.read_bytes())
        vectors, labels = tensors["vectors"].astype(np.float32), tensors["labels"].astype(np.intp)
        names = tuple(str(name) for name in json.loads(tensors["names"].tobytes()))
    except (OSError, KeyError, TypeError, ValueError, RecursionError) as error:
        raise BundleDamagedError(f"{path}: wanted what was learnt, got: {error}") from error
    if vectors.ndim != 2 or labels.shape != vectors.shape[:1] or len(names) != len(labels):
        raise BundleDamagedError(
            f"{path}: wanted a sketch, a label and a name for each photo, got {vectors.shape}, {labels.shape} and "
            f"{len(names)}"
        )
    return LearntBank(Bank(vectors, labels), names)


def _read_tensors(content: bytes) -> dict[str, NDArray[Any]]:
    """Arrays of a safetensors file by name, without its package: who only evaluates need not have it."""
    start = 8 + int.from_bytes(content[:8], "little")
    header = json.loads(content[8:start])
    return {
        name: np.frombuffer(
            content[start:][slice(*header[name]["data_offsets"])], _KINDS[header[name]["dtype"]]
        ).reshape(header[name]["shape"])
        for name in ("vectors", "labels", "names")
    }
