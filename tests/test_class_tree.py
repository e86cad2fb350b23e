"""Laws of the class tree: what a class is called, and by which names it is found."""

from __future__ import annotations

import unicodedata
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pomona.class_tree import ClassTree
from pomona.errors import DataError, OptionError

if TYPE_CHECKING:
    import random

PARTS = st.text("abcAB 12\u00e9", min_size=1, max_size=3).map(lambda text: text.strip() or "x")
PATHS = st.sets(st.lists(PARTS, min_size=1, max_size=4).map(tuple), min_size=1, max_size=12)


@given(PATHS)
def test_every_class_is_found_by_its_name_and_its_path(paths: set[tuple[str, ...]]) -> None:
    tree = ClassTree.from_paths(paths)
    assert set(tree.paths) == paths
    for index, (name, path) in enumerate(zip(tree.names, tree.paths, strict=True)):
        assert tree.index_of(name) == tree.index_of("/".join(path)) == index
        assert "/".join(path).endswith(name)


@given(PATHS, st.randoms())
def test_tree_does_not_depend_on_the_order_of_its_paths(paths: set[tuple[str, ...]], rng: random.Random) -> None:
    shuffled = list(paths)
    rng.shuffle(shuffled)
    assert ClassTree.from_paths(shuffled) == ClassTree.from_paths(sorted(paths))


@given(PATHS)
def test_levels_refine_each_other_and_end_with_the_classes(paths: set[tuple[str, ...]]) -> None:
    tree = ClassTree.from_paths(paths)
    for depth in range(1, tree.n_levels + 1):
        names, nodes = tree.level(depth)
        assert len(set(names)) == len(names) == len({path[:depth] for path in paths})
        assert all(
            (nodes[a] == nodes[b]) == (tree.paths[a][:depth] == tree.paths[b][:depth])
            for a in range(len(tree))
            for b in range(a)
        )
    assert tree.level(tree.n_levels)[0] == tree.names


def test_index_is_never_by_position() -> None:
    tree = ClassTree.from_paths(["Pear", "Apple", "2"])
    assert tree.names == ("2", "Apple", "Pear")
    assert tree.index_of("0") is None
    assert tree.index_of("2") == 0
    assert tree.index_of("apple") is None
    swapped = ClassTree(names=("Pear", "Apple"), paths=(("Apple",), ("Box", "Pear")))
    assert (swapped.index_of("Apple"), swapped.index_of("Box/Pear"), swapped.index_of("Pear")) == (0, 1, 0)


def test_ambiguous_end_of_a_path_is_no_class() -> None:
    tree = ClassTree.from_paths([("Pepper", "Red"), ("Apple", "Red"), ("Red",)])
    assert tree.names == ("Apple/Red", "Pepper/Red", "Red")
    assert tree.paths[tree.index_of("Red") or 0] == ("Red",)
    assert ClassTree.from_paths([("Pepper", "Red"), ("Apple", "Red")]).index_of("Red") is None


def test_end_of_a_path_never_contradicts_the_folders_above_it() -> None:
    tree = ClassTree.from_paths(["Apple/Red", "Apple/Green", "Pepper/Yellow"])
    found = {path: tree.find_end(tuple(path.split("/"))) for path in ("Shop/Apple/Red", "Red", "Shop/Red", "Red/Red")}
    assert set(found.values()) == {tree.index_of("Red")}
    assert tree.find_end(("Pepper", "Red")) is None
    assert tree.find_end(("Pepper", "Shop", "Red")) is None
    assert tree.find_end(("Yellow", "Red")) is None
    assert tree.find_end(("Shop",)) is None
    accents = ClassTree(("Red", "Noir"), ((unicodedata.normalize("NFD", "Açaí"), "Red"), ("Kiwi", "Noir")))
    assert accents.find_end((unicodedata.normalize("NFC", "Açaí"), "Noir")) is None


def test_unicode_forms_match() -> None:
    tree = ClassTree.from_paths([unicodedata.normalize("NFD", "Açaí"), "苹果"])
    assert (
        tree.index_of(unicodedata.normalize("NFC", "Açaí")) == tree.index_of(unicodedata.normalize("NFD", "Açaí")) == 0
    )
    assert tree.index_of("苹果") == 1


def test_names_sort_naturally() -> None:
    assert ClassTree.from_paths(["Apple 10", "Apple 9", "banana", "Apple 010"]).names == (
        "Apple 9",
        "Apple 010",
        "Apple 10",
        "banana",
    )


def test_tree_refuses_what_cannot_be_told_apart() -> None:
    with pytest.raises(DataError, match="'Red' more than once"):
        ClassTree(names=("Red", "Red"), paths=(("Apple", "Red"), ("Pepper", "Red")))
    with pytest.raises(DataError, match="empty"):
        ClassTree.from_paths([()])
    with pytest.raises(OptionError, match="wanted 1 to 1"):
        ClassTree.from_paths(["Apple"]).level(2)
