"""The tree of classes: what each class is called, and where it stands.

In: paths of classes, as text or as parts. Out: a `ClassTree`; text fit to be shown, and the order that names stand in.
Why: what a class is called has one owner. Folders, tables, bundles and reports all name and find a class through here,
so a label in another Unicode form, or one without the folders above it, still means the same class everywhere.
"""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np

from pomona.errors import DataError, OptionError

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from numpy.typing import NDArray

ClassPath = tuple[str, ...]
"""A class and the nodes above it, from the root down."""

_UNPRINTABLE = re.compile(r"[\x00-\x1f\x7f-\x9f\ud800-\udfff]")
_DIGITS = re.compile(r"0*([0-9]+)")


@dataclass(frozen=True)
class ClassTree:
    """The classes a recogniser can answer.

    Parameters
    ----------
    names : tuple of str, (C,)
        What is shown for each class, all different: the last part of its path, or as many parts as make it unique.
    paths : tuple of tuple of str, (C,)
        Where each class stands in the tree; a flat class has one part.

    Raises
    ------
    DataError
        If names or paths repeat, are empty, or differ in number.

    Examples
    --------
    >>> tree = ClassTree.from_paths([("Pepper", "Red"), ("Apple", "Red"), ("Apple", "Gala")])
    >>> tree.names
    ('Apple/Red', 'Gala', 'Pepper/Red')
    >>> tree.index_of("Pepper/Red"), tree.index_of("Apple/Gala"), tree.index_of("Red")
    (2, 1, None)
    """

    names: tuple[str, ...]
    paths: tuple[ClassPath, ...]

    def __post_init__(self) -> None:
        if len(self.names) != len(self.paths):
            raise DataError(
                f"classes: wanted a path for each name, got {len(self.names)} names, {len(self.paths)} paths"
            )
        if not all(self.names) or not all(path and all(path) for path in self.paths):
            raise DataError("classes: wanted names and paths that are not empty, got an empty one")
        for kind, values in (("name", self.names), ("path", self.paths)):
            if repeated := [value for value, n in Counter(values).items() if n > 1]:
                raise DataError(f"classes: wanted each {kind} once, got {repeated[0]!r} more than once")

    @classmethod
    def from_paths(cls, paths: Iterable[str | Sequence[str]]) -> ClassTree:
        """Name and sort classes by their paths.

        Parameters
        ----------
        paths : iterable of sequence of str
            Parts of each path from the root down, or one text with ``/`` between them. Repeats count once.

        Returns
        -------
        ClassTree
            In natural order of the names.
        """
        split = (split_label(path) if isinstance(path, str) else path for path in paths)
        unique = {tuple(_normalise(part) for part in path) for path in split}
        named = sorted(_name_paths(unique).items(), key=lambda item: natural_key(item[1]))
        return cls(names=tuple(name for _, name in named), paths=tuple(path for path, _ in named))

    def __len__(self) -> int:
        return len(self.names)

    def index_of(self, label: str) -> int | None:
        """Find a class by its full path, its name, or an end of its path that no other class shares.

        Parameters
        ----------
        label : str
            Such as ``"Fruit/Apple/Gala"``, ``"Apple/Gala"`` or ``"Gala"``, in any Unicode normal form.

        Returns
        -------
        int or None
            Index of the class; None if there is no such class or more than one.
        """
        return self._indices.get(_normalise(label))

    def find_end(self, path: ClassPath) -> int | None:
        """Find a class by the longest end of a path that names one, as data under other folders needs.

        Parameters
        ----------
        path : tuple of str
            From the root down, such as ``("Shop", "Apple", "Gala")``.

        Returns
        -------
        int or None
            Index of the class; None if there is none, or if the tree knows a folder above it as something else: a red
            pepper is no red apple, although both are red.

        Examples
        --------
        >>> tree = ClassTree.from_paths(["Apple/Red", "Apple/Green", "Pepper/Yellow"])
        >>> tree.find_end(("Shop", "Red")), tree.find_end(("Pepper", "Red"))
        (1, None)
        """
        for start in range(len(path)):
            index = self.index_of("/".join(path[start:]))
            if index is not None:
                strange = self._parts - {_normalise(part) for part in self.paths[index]}
                return None if any(_normalise(part) in strange for part in path[:start]) else index
        return None

    @cached_property
    def _parts(self) -> frozenset[str]:
        return frozenset(_normalise(part) for path in self.paths for part in path)

    @cached_property
    def _indices(self) -> dict[str, int]:
        n_ends = Counter(end for path in self.paths for end in _path_ends(path))
        ends = {
            "/".join(end): index
            for index, path in enumerate(self.paths)
            for end in _path_ends(path)
            if n_ends[end] == 1
        }
        names = {name: index for index, name in enumerate(self.names)}
        full = {"/".join(path): index for index, path in enumerate(self.paths)}
        return {_normalise(label): index for label, index in (ends | names | full).items()}

    @property
    def n_levels(self) -> int:
        """Parts of the longest path; 1 for flat classes."""
        return max((len(path) for path in self.paths), default=0)

    def level(self, depth: int) -> tuple[tuple[str, ...], NDArray[np.intp]]:
        """Nodes of the tree at one depth, and the node that each class lies in.

        Parameters
        ----------
        depth : int
            1 (root) to `n_levels` (the classes themselves). A class with a shorter path stands for itself.

        Returns
        -------
        names : tuple of str, (M,)
            Names of the nodes, all different.
        nodes : ndarray of intp, (C,)
            Index of the node of each class.

        Raises
        ------
        OptionError
            If there is no such depth.
        """
        if not 1 <= depth <= self.n_levels:
            raise OptionError(f"depth: wanted 1 to {self.n_levels}, the levels of the class tree, got {depth}")
        if depth == self.n_levels:
            return self.names, np.arange(len(self), dtype=np.intp)
        names = _name_paths({path[:depth] for path in self.paths})
        nodes = sorted(names, key=lambda node: natural_key(names[node]))
        index = {node: row for row, node in enumerate(nodes)}
        return tuple(names[node] for node in nodes), np.array(
            [index[path[:depth]] for path in self.paths], dtype=np.intp
        )


def _path_ends(path: ClassPath) -> list[ClassPath]:
    return [path[start:] for start in range(len(path) - 1, -1, -1)]


def _name_paths(paths: Iterable[ClassPath]) -> dict[ClassPath, str]:
    paths = list(paths)
    n_ends = Counter(end for path in paths for end in _path_ends(path))
    return {path: "/".join(next((end for end in _path_ends(path) if n_ends[end] == 1), path)) for path in paths}


def split_label(label: str) -> ClassPath:
    """Divide a label such as ``"Fruit/Apple"`` into the parts of its path, from the root down; empty parts are dropped.

    Examples
    --------
    >>> split_label("Fruit / Apple/")
    ('Fruit', 'Apple')
    """
    return tuple(show_text(part.strip()) for part in label.split("/") if part.strip())


def _normalise(text: str) -> str:
    return unicodedata.normalize("NFC", text)


def show_text(text: str) -> str:
    """Make text of a path fit to be printed and encoded: bytes that are no text and control signs become U+FFFD."""
    return _normalise(text if text.isprintable() else _UNPRINTABLE.sub("\ufffd", text))


def natural_key(text: str) -> str:
    """Key that sorts "photo 2" before "photo 10" and a folder before what only begins like it.

    Examples
    --------
    >>> sorted(["a b/1", "a/10", "a/9"], key=natural_key)
    ['a/9', 'a/10', 'a b/1']
    """
    numbered = _DIGITS.sub(lambda match: chr(0x30 + len(match[1])) + match[1], text.casefold())
    return f"{numbered}\0\0{text}".replace("/", "\0")
