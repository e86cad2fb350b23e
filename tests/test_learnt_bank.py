"""What was learnt comes back as it was kept, follows its classes, and is never read half."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import load, save

from pomona.class_tree import ClassTree
from pomona.errors import BundleDamagedError
from pomona.learnt_bank import BANK_NAME, LearntBank, load_bank, save_bank
from pomona.novelty import SKETCH_DIM, sketch_vectors

if TYPE_CHECKING:
    from pathlib import Path

NAMES = ("Apple/1.jpg", "Apple/2.jpg", "Kiwi/三.jpg", "Plum/\udce9.jpg")
LABELS = np.array([0, 0, 1, 2])


def _make_bank(scale: float = 1.0, dim: int = 300) -> LearntBank:
    vectors = (scale * np.random.default_rng(0).normal(size=(4, dim))).astype(np.float32)
    return LearntBank.make(vectors, LABELS, NAMES)


def _check_equal(found: LearntBank, wanted: LearntBank) -> None:
    np.testing.assert_array_equal(found.bank.vectors, wanted.bank.vectors)
    np.testing.assert_array_equal(found.bank.labels, wanted.bank.labels)
    assert found.names == wanted.names


@pytest.mark.parametrize("scale", [1e-7, 1.0, 1e6])
def test_a_bank_comes_back_as_it_was_kept(tmp_path: Path, scale: float) -> None:
    """Also of features that half precision has no numbers for."""
    kept = _make_bank(scale)
    assert kept.bank.vectors.shape == (4, SKETCH_DIM)
    vectors = (scale * np.random.default_rng(0).normal(size=(4, 300))).astype(np.float32)
    np.testing.assert_allclose(kept.bank.vectors, sketch_vectors(vectors), rtol=2e-3, atol=1e-3 * scale)
    (tmp_path / BANK_NAME).write_bytes(save_bank(kept))
    _check_equal(load_bank(tmp_path), kept)
    tensors = load(save_bank(kept))
    assert tensors.keys() == {"vectors", "labels", "names"}
    assert tensors["vectors"].dtype == (np.float16 if scale == 1 else np.float32)


@settings(max_examples=30)
@given(st.integers(0, 60), st.integers(1, 9))
def test_a_bank_that_was_cut_or_holds_garbage_is_damaged(
    tmp_path_factory: pytest.TempPathFactory, cut: int, garbage: int
) -> None:
    folder = tmp_path_factory.mktemp("bank")
    whole = save_bank(_make_bank(dim=5))
    for content in (whole[: len(whole) - 1 - cut], whole[:cut], bytes([garbage]) + whole[1:], b"{}" * cut):
        (folder / BANK_NAME).write_bytes(content)
        with pytest.raises(BundleDamagedError, match=r"bank\.safetensors: wanted "):
            load_bank(folder)


def test_parts_of_different_banks_are_no_bank(tmp_path: Path) -> None:
    good = load(save_bank(_make_bank(dim=5)))
    text = np.frombuffer(json.dumps(["a"]).encode(), np.uint8)
    for change in (
        {"labels": np.arange(3)},
        {"vectors": good["vectors"][0]},
        {"names": text},
        {"names": np.frombuffer(b"5", np.uint8)},
        {"names": np.frombuffer(b"\xff", np.uint8)},
        {"labels": good["labels"].astype(np.float64)},
    ):
        (tmp_path / BANK_NAME).write_bytes(save({**good, **change}))
        with pytest.raises(BundleDamagedError, match=r"bank\.safetensors: wanted"):
            load_bank(tmp_path)
    del good["names"]
    (tmp_path / BANK_NAME).write_bytes(save(good))
    with pytest.raises(BundleDamagedError, match=r"wanted what was learnt, got: 'names'"):
        load_bank(tmp_path)
    (tmp_path / BANK_NAME).unlink()
    with pytest.raises(BundleDamagedError, match=r"wanted what was learnt, got:"):
        load_bank(tmp_path)


def test_classes_come_and_go() -> None:
    bank = _make_bank()
    old = ClassTree.from_paths(["Apple", "Kiwi", "Plum"])
    new = ClassTree.from_paths(["Apple", "Banana", "Kiwi", "Plum"])
    vectors = np.random.default_rng(1).normal(size=(2, 300)).astype(np.float32)
    grown = bank.renumber(old, new).add(vectors, np.array([1, 1]), ("Banana/1.jpg", "Banana/2.jpg"))
    assert grown.bank.labels.tolist() == [0, 0, 2, 3, 1, 1]
    assert grown.names == (*NAMES, "Banana/1.jpg", "Banana/2.jpg")
    assert grown.find_nearest(vectors[1], 1) == [(5, pytest.approx(1, abs=1e-3))]
    _check_equal(grown.remove(1).renumber(new, old), bank)
    fewer = bank.remove(0).renumber(old, ClassTree.from_paths(["Kiwi", "Plum"]))
    assert (fewer.bank.labels.tolist(), fewer.names) == ([0, 1], NAMES[2:])


def test_the_nearest_photos_come_first() -> None:
    bank = LearntBank.make(np.array([[1, 0], [1, 1], [0, -3]], np.float32), np.arange(3), ("a", "b", "c"))
    found = bank.find_nearest(np.array([5, 1], np.float32), 9)
    assert [place for place, _ in found] == [0, 1, 2]
    assert [likeness for _, likeness in found] == sorted((likeness for _, likeness in found), reverse=True)
    assert found[2][1] == pytest.approx(-1 / np.sqrt(26), abs=1e-3)
