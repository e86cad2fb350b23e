"""Copies are found whatever was done to them, other photos are not, and no set is too small or too much alike."""

from __future__ import annotations

import re
import shutil
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageEnhance, ImageFilter

from pomona.alignment import align_pairs
from pomona.dataset import load_dataset
from pomona.effort import plan_embedding
from pomona.features import extract_features
from pomona.grouping import group_photos
from pomona.likeness import Likeness, find_likeness, find_neighbours
from pomona.photo_facts import measure_photos
from pomona.projection import project_vectors, scale_rows
from pomona.samples import KINDS, render_photo

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from numpy.typing import NDArray

    from pomona.dataset import Dataset


def render(seed: int) -> Image.Image:
    return Image.fromarray(render_photo(KINDS[seed % 6], seed=seed, size_px=96))


def mirror(image: Image.Image) -> Image.Image:
    return image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)


MADE: dict[str, Callable[[Image.Image], Image.Image]] = {
    "recompressed": lambda image: image,
    "cropped": lambda image: image.crop((6, 0, 96, 92)),
    "cropped at the end": lambda image: image.crop((0, 0, 88, 88)),
    "mirrored": mirror,
    "brightened": lambda image: image.point(lambda level: 255 * (level / 255) ** 0.7),
    "duller": lambda image: ImageEnhance.Contrast(image).enhance(0.7),
    "enlarged": lambda image: image.resize((140, 140)),
    "both": lambda image: mirror(image.crop((0, 5, 92, 96))),
}


def look(folder: Path) -> tuple[Dataset, NDArray[np.uint8], NDArray[np.float32]]:
    """Photos of a folder, their thumbnails and coordinates."""
    dataset = load_dataset(folder, min_classes=1, needs_labels=False)
    features = extract_features(dataset, plan_embedding("instant", size_px=96, precision="f32"))
    thumbnails = measure_photos(dataset).rows["thumbnail"]
    return dataset, thumbnails, project_vectors(features.vectors, 512)


def find(folder: Path) -> tuple[Dataset, Likeness]:
    dataset, thumbnails, coordinates = look(folder)
    return dataset, find_likeness(dataset.photos, thumbnails, coordinates)


def name_copies(dataset: Dataset, likeness: Likeness) -> dict[tuple[str, str], tuple[str, str]]:
    names = [photo.name for photo in dataset.photos]
    return {(names[one.first], names[one.second]): (one.kind, one.reason) for one in likeness.copies}


@pytest.fixture(scope="module")
def planted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twelve photos, and of each that has a number in `MADE` what was made of it."""
    folder = tmp_path_factory.mktemp("planted")
    for i in range(12):
        render(i).save(folder / f"{i:02}.jpg", quality=92)
    for i, (what, make) in enumerate(MADE.items()):
        make(render(i)).save(folder / f"{i:02} {what}.jpg", quality=75)
    shutil.copy(folder / "08.jpg", folder / "08 exact.jpg")
    Image.open(folder / "09.jpg").save(folder / "09 pixels.png")
    return folder


@pytest.fixture(scope="module")
def looked(planted: Path) -> tuple[Dataset, NDArray[np.uint8], NDArray[np.float32]]:
    return look(planted)


# --- copies ---------------------------------------------------------------------------------------------------------


def test_every_planted_copy_is_found_and_nothing_else(
    looked: tuple[Dataset, NDArray[np.uint8], NDArray[np.float32]],
) -> None:
    dataset, thumbnails, coordinates = looked
    found = name_copies(dataset, find_likeness(dataset.photos, thumbnails, coordinates))
    assert {pair: (kind, re.sub(r"\d+%", "N%", reason)) for pair, (kind, reason) in found.items()} == {
        ("00 recompressed.jpg", "00.jpg"): ("near_duplicate", "resized or saved anew"),
        ("01 cropped.jpg", "01.jpg"): ("near_duplicate", "cropped by N%"),
        ("02 cropped at the end.jpg", "02.jpg"): ("near_duplicate", "cropped by N%"),
        ("03 mirrored.jpg", "03.jpg"): ("near_duplicate", "mirrored"),
        ("04 brightened.jpg", "04.jpg"): ("near_duplicate", "of another brightness"),
        ("05 duller.jpg", "05.jpg"): ("near_duplicate", "of another brightness"),
        ("06 enlarged.jpg", "06.jpg"): ("near_duplicate", "resized or saved anew"),
        ("07 both.jpg", "07.jpg"): ("near_duplicate", "mirrored and cropped by N%"),
        ("08 exact.jpg", "08.jpg"): ("exact_duplicate", "the same bytes"),
        ("09 pixels.png", "09.jpg"): ("same_pixels", "the same pixels in another file"),
    }


def test_scores_say_how_much_a_copy_agrees(looked: tuple[Dataset, NDArray[np.uint8], NDArray[np.float32]]) -> None:
    dataset, thumbnails, coordinates = looked
    for copy in find_likeness(dataset.photos, thumbnails, coordinates).copies:
        assert copy.first < copy.second
        assert (0.96 < copy.score < 1) if copy.kind == "near_duplicate" else copy.score == 1


def test_renders_of_one_kind_are_no_copies(tmp_path: Path) -> None:
    for i in range(24):
        Image.fromarray(render_photo(KINDS[i % 2], seed=i, size_px=96)).save(tmp_path / f"{i}.jpg")
    assert find(tmp_path)[1].copies == ()


def test_another_order_of_files_finds_the_same(
    looked: tuple[Dataset, NDArray[np.uint8], NDArray[np.float32]],
) -> None:
    dataset, thumbnails, coordinates = looked
    wanted = name_copies(dataset, find_likeness(dataset.photos, thumbnails, coordinates))
    for seed in range(3):
        order = np.random.default_rng(seed).permutation(dataset.n_photos)
        mixed = replace(dataset, photos=tuple(dataset.photos[i] for i in order))
        found = name_copies(mixed, find_likeness(mixed.photos, thumbnails[order], coordinates[order]))
        assert {tuple(sorted(pair)): kind for pair, (kind, _) in found.items()} == {
            tuple(sorted(pair)): kind for pair, (kind, _) in wanted.items()
        }


def test_two_calls_find_the_same_with_any_number_of_threads(
    looked: tuple[Dataset, NDArray[np.uint8], NDArray[np.float32]],
) -> None:
    dataset, thumbnails, coordinates = looked
    one, other = (find_likeness(dataset.photos, thumbnails, coordinates, n_workers=n) for n in (1, 3))
    assert one.copies == other.copies
    np.testing.assert_array_equal(one.communities, other.communities)


def test_progress_ends_at_all_pairs(looked: tuple[Dataset, NDArray[np.uint8], NDArray[np.float32]]) -> None:
    dataset, thumbnails, coordinates = looked
    seen: list[tuple[int, int]] = []
    find_likeness(dataset.photos, thumbnails, coordinates, on_pair=lambda done, n: seen.append((done, n)))
    assert seen
    assert all(done == n for done, n in seen)  # fewer than a round


def test_a_photo_that_went_away_is_no_copy_of_any(planted: Path, tmp_path: Path) -> None:
    folder = tmp_path / "photos"
    folder.mkdir()
    for name in ("00.jpg", "00 recompressed.jpg", "01.jpg", "01 cropped.jpg", "02.jpg", "03.jpg"):
        shutil.copy(planted / name, folder / name)
    dataset, thumbnails, coordinates = look(folder)
    (folder / "00.jpg").unlink()
    (folder / "01 cropped.jpg").write_bytes((folder / "03.jpg").read_bytes())
    assert find_likeness(dataset.photos, thumbnails, coordinates).copies == ()


# --- sets that are small, or all alike ------------------------------------------------------------------------------


def test_no_photo_and_one_photo(planted: Path, tmp_path: Path) -> None:
    none = find_likeness((), np.zeros((0, 32, 32, 3), np.uint8), np.zeros((0, 5), np.float32))
    assert none.copies == ()
    assert none.communities.shape == (0,)
    shutil.copy(planted / "00.jpg", tmp_path)
    _, likeness = find(tmp_path)
    assert likeness.copies == ()
    assert likeness.communities.shape == (1,)


@pytest.mark.parametrize("what", [*MADE, "exact", "pixels"])
def test_two_photos_may_be_copies(planted: Path, tmp_path: Path, what: str) -> None:
    copy = next(planted.glob(f"?? {what}.*"))
    for name in (copy.name, f"{copy.name[:2]}.jpg"):
        shutil.copy(planted / name, tmp_path)
    dataset, likeness = find(tmp_path)
    assert len(likeness.copies) == 1
    assert len(set(group_photos(dataset, likeness).groups)) == 1


@pytest.mark.parametrize("size_px", [48, 60, 100])
def test_copies_of_small_photos_are_found_at_another_size(tmp_path: Path, size_px: int) -> None:
    for i in range(4):
        photo = render(i).resize((72, 72))
        photo.save(tmp_path / f"{i}.jpg", quality=92)
        photo.resize((size_px, size_px)).save(tmp_path / f"{i} again.jpg", quality=85)
    dataset, likeness = find(tmp_path)
    assert set(name_copies(dataset, likeness)) == {(f"{i} again.jpg", f"{i}.jpg") for i in range(4)}


def test_two_photos_may_be_different(planted: Path, tmp_path: Path) -> None:
    for name in ("00.jpg", "01.jpg"):
        shutil.copy(planted / name, tmp_path)
    assert find(tmp_path)[1].copies == ()


@pytest.mark.parametrize("how", ["bytes", "pixels", "quality", "size"])
def test_a_set_of_copies_of_one_photo_is_one_group(tmp_path: Path, how: str) -> None:
    photo = render(3)
    for i in range(30):
        path = tmp_path / f"{i}.jpg"
        if how == "bytes":
            photo.save(path, quality=90)
        elif how == "pixels":
            photo.save(path, quality=90, comment=f"copy {i}")
        elif how == "quality":
            photo.save(path, quality=65 + i)
        else:
            photo.resize((80 + i, 80 + i)).save(path, quality=90)
    dataset, likeness = find(tmp_path)
    kinds = {"bytes": {"exact_duplicate"}, "pixels": {"same_pixels"}}.get(how, {"near_duplicate"})
    assert {one.kind for one in likeness.copies} == kinds
    assert 29 <= len(likeness.copies) <= 60  # not all pairs
    assert len(set(group_photos(dataset, likeness).groups)) == 1


def test_bare_photos_are_no_copies_of_each_other(tmp_path: Path) -> None:
    for level in (0, 90, 255):
        Image.new("RGB", (80, 80), (level,) * 3).save(tmp_path / f"{level}.png")
    for i in range(5):
        render(i).save(tmp_path / f"{i}.jpg")
    shutil.copy(tmp_path / "0.png", tmp_path / "0 again.png")
    dataset, likeness = find(tmp_path)
    assert list(name_copies(dataset, likeness)) == [("0 again.png", "0.png")]


# --- scenes ---------------------------------------------------------------------------------------------------------


def test_shots_of_one_scene_are_one_community(tmp_path: Path) -> None:
    shots = [render(i).resize((110, 110)) for i in range(8)]
    for i, shot in enumerate(shots):
        for j in range(4):  # the camera moves on, and is not quite still
            moved = shot.crop((3 * j, 2 * j, 3 * j + 96, 2 * j + 96)).filter(ImageFilter.GaussianBlur(0.2 * j))
            moved.save(tmp_path / f"{i}-{j}.jpg", quality=80)
    dataset, likeness = find(tmp_path)
    grouped = group_photos(dataset, likeness)
    scenes = {photo.group: photo.name[0] for photo in grouped.photos}
    assert all(scenes[photo.group] == photo.name[0] for photo in grouped.photos)  # none holds two scenes
    assert len(scenes) == 8


def test_copies_of_the_same_bytes_are_of_one_scene(
    looked: tuple[Dataset, NDArray[np.uint8], NDArray[np.float32]],
) -> None:
    dataset, thumbnails, coordinates = looked
    communities = find_likeness(dataset.photos, thumbnails, coordinates).communities
    by_name = {photo.name: number for photo, number in zip(dataset.photos, communities, strict=True)}
    assert by_name["08.jpg"] == by_name["08 exact.jpg"]
    assert communities.min() >= 0
    assert communities.max() < dataset.n_photos


# --- neighbours -----------------------------------------------------------------------------------------------------


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 40), st.integers(0, 12), st.integers(1, 12), st.integers(0, 99), st.integers(1, 3))
def test_neighbours_are_those_that_looking_at_all_finds(
    n_rows: int, dim: int, n_neighbours: int, seed: int, n_workers: int
) -> None:
    table = scale_rows(np.random.default_rng(seed).normal(size=(n_rows, dim)).astype(np.float32))
    near, products = find_neighbours(table, n_neighbours, n_workers)
    assert near.shape == products.shape == (n_rows, n_neighbours)
    n_found = min(n_neighbours, max(0, n_rows - 1)) if dim else 0
    assert ((near >= 0).sum(axis=1) == n_found).all()
    exact = table @ table.T
    np.fill_diagonal(exact, -np.inf)
    wanted = -np.sort(-exact, axis=1)[:, :n_found]
    np.testing.assert_allclose(products[:, :n_found], wanted, atol=5e-3)  # the index keeps 16 bits
    assert (products[:, n_found:] == -1).all()
    for row in range(n_rows):
        others = near[row, :n_found].tolist()
        assert row not in others
        assert len(set(others)) == n_found
        np.testing.assert_allclose(products[row, :n_found], table[others] @ table[row], atol=1e-5)


@pytest.mark.parametrize("n_rows", [2047, 2048, 2049, 4097])
def test_blocks_do_not_show(n_rows: int) -> None:
    table = scale_rows(np.random.default_rng(0).normal(size=(n_rows, 6)).astype(np.float32))
    near, products = find_neighbours(table, 3, 2)
    rows = np.r_[:40, n_rows - 40 : n_rows]
    exact = table[rows] @ table.T
    exact[np.arange(80), rows] = -np.inf
    best = -np.sort(-exact, axis=1)[:, :3]
    assert np.isclose(products[rows], best, atol=5e-3).mean() > 0.98  # the search is approximate
    np.testing.assert_array_equal(near, find_neighbours(table, 3, 1)[0])


def test_rows_that_are_all_equal_have_neighbours() -> None:
    near, products = find_neighbours(np.ones((50, 1), np.float32), 10, 1)
    assert ((near >= 0).sum(axis=1) == 10).all()
    assert (near != np.arange(50)[:, None]).all()
    np.testing.assert_array_equal(products, 1)


def test_the_number_of_pictures_compared_does_not_grow_with_its_square(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    counted: list[int] = []

    def count(pictures: NDArray[np.float32], pairs: NDArray[np.intp], *, n_workers: int) -> object:
        counted.append(len(pairs))
        return align_pairs(pictures, pairs, n_workers=n_workers)

    monkeypatch.setattr("pomona.likeness.align_pairs", count)
    photo = render(0)
    for i in range(60):
        photo.save(tmp_path / f"{i}.jpg", quality=60 + i // 4, comment=str(i))
    find(tmp_path)
    assert 60 < sum(counted) <= 60 * 14
