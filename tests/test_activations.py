"""Activations are computed once, kept whole, and belong to the photo that they came from."""

from __future__ import annotations

import errno
import os
import shutil
import threading
import time
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from pomona import activations
from pomona.activations import Activations, View, extract_activations, extract_views
from pomona.augmentation import parse_augmentation
from pomona.backbone import PIXELS, Backbone, find_backbone
from pomona.dataset import Dataset, load_dataset
from pomona.embedding import build_trunk
from pomona.engine import Engine
from pomona.errors import DataError, NotFiniteError, OptionError, StorageError

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

VIEW = View(64)


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache; its folder of activations."""
    monkeypatch.setenv("POMONA_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "activations"


@pytest.fixture(scope="module")
def backbone() -> Backbone:
    return find_backbone("lite0", size_px=64)


@pytest.fixture
def dataset(rendered: Path, tmp_path: Path) -> Dataset:
    """Six photos of three classes, ours to break."""
    for i, path in enumerate(sorted(rendered.rglob("*_000[12].jpg"))):
        target = tmp_path / "data" / path.parent.name / f"{i}.jpg"
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, target)
    return load_dataset(tmp_path / "data")


def _extract(
    dataset: Dataset, backbone: Backbone, layer: str = "stage5", view: View = VIEW, **more: Any
) -> Activations:
    return extract_activations(dataset, backbone, layer, view, n_workers=1, **more)


def _list(found: Activations) -> NDArray[Any]:
    return np.array(found.values[found.rows])


def _read(dataset: Dataset, backbone: Backbone) -> NDArray[np.uint8]:
    return np.stack([backbone.preprocessing.read(photo.path.read_bytes()) for photo in dataset.photos])


# --- what they are --------------------------------------------------------------------------------------------------


def test_each_row_is_what_the_trunk_gives_for_its_photo(dataset: Dataset, backbone: Backbone, tmp_path: Path) -> None:
    found = _extract(dataset, backbone)
    (tmp_path / "trunk.onnx").write_bytes(build_trunk(backbone, "stage5"))
    wanted = Engine(tmp_path / "trunk.onnx", n_workers=1).run(_read(dataset, backbone))["activations"]
    got = _list(found)
    assert (got.dtype, got.shape, found.n_computed) == (np.float16, (6, 4, 4, 112), 6)  # channels last
    assert np.abs(got - np.moveaxis(wanted, 1, -1)).max() <= 2e-3 * np.abs(wanted).max()
    assert found.dataset == dataset


def test_pixels_are_kept_as_they_are(dataset: Dataset, backbone: Backbone) -> None:
    found = _extract(dataset, backbone, PIXELS)
    assert found.values.dtype == np.uint8
    assert np.array_equal(_list(found), _read(dataset, backbone))


def test_size_of_a_view_is_that_of_its_activations(dataset: Dataset, backbone: Backbone) -> None:
    assert _extract(dataset, backbone, view=View(80)).values.shape == (6, 5, 5, 112)
    larger = _extract(dataset, backbone, PIXELS, View(80))
    assert np.array_equal(_list(larger), _read(dataset, find_backbone("lite0", size_px=80)))


def test_unknown_layer_is_refused(dataset: Dataset, backbone: Backbone) -> None:
    with pytest.raises(OptionError, match="stage5"):
        _extract(dataset, backbone, "stage55")


# --- kept, and gone on with -----------------------------------------------------------------------------------------


def test_what_is_kept_is_not_computed_again(dataset: Dataset, backbone: Backbone) -> None:
    calls: list[tuple[int, int]] = []
    first = _extract(dataset, backbone, on_photo=lambda *done: calls.append(done))
    assert calls == [(i, 6) for i in range(7)]
    calls.clear()
    second = _extract(dataset, backbone, on_photo=lambda *done: calls.append(done))
    assert (first.n_computed, second.n_computed) == (6, 0)
    assert calls == [(6, 6)]
    assert np.array_equal(_list(first), _list(second))


def test_stopped_run_goes_on_to_the_same(dataset: Dataset, backbone: Backbone, cache: Path) -> None:
    fresh = np.array(_list(_extract(dataset, backbone)))
    shutil.rmtree(cache)

    def stop(n_done: int, _n_total: int) -> None:
        if n_done == 4:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        _extract(dataset, backbone, on_photo=stop)
    resumed = _extract(dataset, backbone)
    assert resumed.n_computed == 2
    assert np.array_equal(_list(resumed), fresh)


@pytest.mark.parametrize("broken", ["values.npy", "states.npy"])
@pytest.mark.parametrize("how", ["cut", "gone", "other"])
def test_damaged_file_is_computed_again(
    broken: str, how: str, dataset: Dataset, backbone: Backbone, cache: Path
) -> None:
    fresh = np.array(_list(_extract(dataset, backbone)))
    (folder,) = cache.iterdir()
    path = folder / broken
    if how == "cut":
        path.write_bytes(path.read_bytes()[:-5])
    elif how == "gone":
        path.unlink()
    else:
        np.save(path, np.zeros((2, 3)))
    again = _extract(dataset, backbone)
    assert again.n_computed == 6
    assert np.array_equal(_list(again), fresh)


def test_other_order_or_content_is_not_mixed_up(dataset: Dataset, backbone: Backbone) -> None:
    forward = _list(_extract(dataset, backbone, PIXELS))
    turned = replace(dataset, photos=dataset.photos[::-1])
    assert np.array_equal(_list(_extract(turned, backbone, PIXELS)), forward[::-1])
    part = replace(dataset, photos=dataset.photos[2:4])
    assert np.array_equal(_list(_extract(part, backbone, PIXELS)), forward[2:4])


def test_other_layer_size_precision_or_preparation_is_kept_apart(
    dataset: Dataset, backbone: Backbone, cache: Path
) -> None:
    few = replace(dataset, photos=dataset.photos[:1])
    padded = replace(backbone, preprocessing=replace(backbone.preprocessing, fit="pad"))
    _extract(few, backbone)
    _extract(few, backbone, "stage6")
    _extract(few, backbone, view=View(80))
    _extract(few, padded)
    _extract(few, replace(backbone, precision="int8"))
    assert len(list(cache.iterdir())) == 5
    _extract(few, backbone, view=View(64, seed=3))  # nothing is drawn, so the seed is nothing
    assert len(list(cache.iterdir())) == 5


# --- views ----------------------------------------------------------------------------------------------------------


def test_augmented_view_follows_from_its_seed_and_the_photo(dataset: Dataset, backbone: Backbone, cache: Path) -> None:
    pytest.importorskip("kornia", reason="augmentation is kornia's")
    steps = parse_augmentation("standard")
    plain = _list(_extract(dataset, backbone, PIXELS))
    first = _list(_extract(dataset, backbone, PIXELS, View(64, steps, seed=1)))
    other = _list(_extract(dataset, backbone, PIXELS, View(64, steps, seed=2)))
    assert all(not np.array_equal(a, b) for a, b in zip(first, plain, strict=True))
    assert not np.array_equal(first, other)
    shutil.rmtree(cache)
    turned = replace(dataset, photos=dataset.photos[::-1])
    again = _list(_extract(turned, backbone, PIXELS, View(64, steps, seed=1)))
    assert np.array_equal(again[::-1], first)


# --- photos that cannot be used -------------------------------------------------------------------------------------


@pytest.mark.parametrize("layer", ["stage5", PIXELS])
def test_photo_that_broke_is_skipped_and_noted(layer: str, dataset: Dataset, backbone: Backbone) -> None:
    broken = dataset.photos[2]
    broken.path.write_bytes(broken.path.read_bytes()[:300])
    for _ in range(2):  # the second time too, where the others are kept
        found = _extract(dataset, backbone, layer)
        assert [photo.name for photo in found.dataset.photos] == [p.name for p in dataset.photos if p is not broken]
        (skipped,) = found.dataset.skipped
        assert skipped.name == broken.name
        assert skipped.detail
        assert found.rows.tolist() == [0, 1, 3, 4, 5]


def test_no_usable_photo_at_all_is_an_error(dataset: Dataset, backbone: Backbone) -> None:
    for photo in dataset.photos:
        photo.path.unlink()
    with pytest.raises(DataError, match=r"no photo of .* can be used: 6 failed; the first: "):
        _extract(dataset, backbone)


def test_numbers_that_are_none_are_refused(
    dataset: Dataset, backbone: Backbone, monkeypatch: pytest.MonkeyPatch
) -> None:
    from pomona import backbone as networks

    load = networks.load_weights

    def load_broken(one: Backbone) -> dict[str, NDArray[np.float32]]:
        weights = dict(load(one))
        weights["_blocks.2._project_conv.weight"] = weights["_blocks.2._project_conv.weight"] * np.float32(1e30)
        return weights

    monkeypatch.setattr("pomona.embedding.load_weights", load_broken)
    with pytest.raises(NotFiniteError, match="lite0 gave numbers beyond float16 at stage2 for"):
        _extract(dataset, backbone, "stage2")


# --- room -----------------------------------------------------------------------------------------------------------


class _Usage:
    def __init__(self, free: int) -> None:
        self.free = free


def test_full_disk_is_refused_before_the_work(
    dataset: Dataset, backbone: Backbone, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _path: _Usage(400_000_000))
    with pytest.raises(StorageError, match=r"wanted 0\.5 GB for activations, got 0\.4 GB free; make room"):
        _extract(dataset, backbone)
    assert not list(cache.iterdir())


def test_more_than_is_ever_kept_is_refused_and_nothing_makes_way(
    dataset: Dataset, backbone: Backbone, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _extract(dataset, backbone, PIXELS)
    before = set(cache.iterdir())
    monkeypatch.setattr(activations, "MAX_CACHE_BYTES", 6 * 64 * 64 * 3)
    with pytest.raises(StorageError, match=r"wanted 0\.0 GB for activations, got 0\.0 GB at most that are kept; take"):
        _extract(dataset, backbone, PIXELS, View(65))
    assert set(cache.iterdir()) == before
    monkeypatch.setattr(shutil, "disk_usage", lambda _path: _Usage(400_000_000))
    with pytest.raises(StorageError, match="make room"):
        _extract(dataset, backbone, PIXELS, View(63))
    assert set(cache.iterdir()) == before


def test_views_of_one_run_never_make_way_for_each_other(
    dataset: Dataset, backbone: Backbone, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    views = [View(64), View(65)]
    _extract(dataset, backbone, PIXELS)
    monkeypatch.setattr(activations, "MAX_CACHE_BYTES", 6 * 65 * 65 * 3 + 1)  # one of them
    with pytest.raises(StorageError, match="at most that are kept"):
        extract_views(dataset, backbone, PIXELS, views, n_workers=1)
    monkeypatch.setattr(activations, "MAX_CACHE_BYTES", 6 * (65 * 65 + 64 * 64) * 3)
    monkeypatch.setattr(time, "time", lambda: 0.0)  # which was used last is not known
    found = extract_views(dataset, backbone, PIXELS, views, n_workers=1)
    assert [one.n_computed for one in found] == [0, 6]
    assert len(list(cache.iterdir())) == 2


def test_disk_that_fills_up_is_said_and_leaves_no_file_that_looks_whole(
    dataset: Dataset, backbone: Backbone, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not hasattr(os, "posix_fallocate"):
        pytest.skip("this system takes room as it is written")

    def fail(_file: int, _start: int, _n_bytes: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", fail)
    with pytest.raises(StorageError, match="the disk is full"):
        _extract(dataset, backbone)
    assert not list(cache.rglob("*.npy"))


def test_room_is_taken_before_the_first_photo(dataset: Dataset, backbone: Backbone, cache: Path) -> None:
    if not hasattr(os, "posix_fallocate"):
        pytest.skip("this system takes room as it is written")

    def look(_n_done: int, _n_total: int) -> None:
        (path,) = cache.rglob("values.npy")
        assert path.stat().st_blocks * 512 >= path.stat().st_size
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        _extract(dataset, backbone, PIXELS, on_photo=look)


def test_row_counts_as_there_once_it_is_on_disk(
    dataset: Dataset, backbone: Backbone, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(activations, "_SETTLED_EVERY_S", 0.0)
    flushed: list[tuple[int, int]] = []
    flush = np.memmap.flush

    def note(mapped: Any) -> None:
        flush(mapped)
        (path,) = cache.rglob("states.npy")
        flushed.append((mapped.ndim, int(np.load(path).sum())))

    monkeypatch.setattr(np.memmap, "flush", note)
    _extract(dataset, backbone, PIXELS)
    assert flushed == [(n_axes, n + (n_axes == 1)) for n in range(6) for n_axes in (4, 1)]


def test_pixels_are_decoded_on_several_threads(
    dataset: Dataset, backbone: Backbone, monkeypatch: pytest.MonkeyPatch
) -> None:
    together = threading.Barrier(2, timeout=20)
    read = activations.read_unchanged
    monkeypatch.setattr(activations, "read_unchanged", lambda *photo: (together.wait(), read(*photo))[1])
    found = extract_activations(dataset, backbone, PIXELS, VIEW, n_workers=2)
    assert np.array_equal(_list(found), _read(dataset, backbone))


def test_folder_that_cannot_be_made_is_a_storage_error(dataset: Dataset, backbone: Backbone, cache: Path) -> None:
    cache.parent.mkdir()
    cache.write_text("in the way")
    with pytest.raises(StorageError):
        _extract(dataset, backbone)


def test_files_not_used_for_longest_go_first(
    dataset: Dataset, backbone: Backbone, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [1000.0]
    monkeypatch.setattr(time, "time", lambda: now[0])
    one_file = 6 * 64 * 64 * 3 + 6 + 300  # pixels, states, headers and the like

    def use(size_px: int) -> str:
        now[0] += 1
        before = set(cache.iterdir()) if cache.is_dir() else set()
        _extract(dataset, backbone, PIXELS, View(size_px))
        return "".join(path.name for path in set(cache.iterdir()) - before)

    first, second = use(64), use(65)
    assert use(64) == ""  # used again, so it is the newer one
    monkeypatch.setattr(activations, "MAX_CACHE_BYTES", round(2.5 * one_file))
    third = use(66)
    assert {path.name for path in cache.iterdir()} == {first, third}
    assert second not in {first, third}
