"""Facts of a photo: right on photos drawn for it, the same alone as among others, cached equal to fresh."""

from __future__ import annotations

import contextlib
import io
import sqlite3
import threading
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageFilter

from pomona import photo_facts, row_cache
from pomona.dataset import Skipped, load_dataset
from pomona.errors import DataError, OptionError, PhotoError
from pomona.files import cache_folder, hash_bytes
from pomona.photo_facts import FACTS, NOTES, Facts, list_notes, measure_photo, measure_photos, measure_sharpness
from pomona.samples import SampleOptions, make_kinds, write_samples

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from pomona.dataset import Dataset


@pytest.fixture
def fresh_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("POMONA_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Photos that a test may spoil."""
    folder = tmp_path / "fruit"
    write_samples(folder, SampleOptions(n_per_kind=5, kinds=make_kinds(3), size_px=48, n_workers=1))
    return folder


@pytest.fixture(scope="module")
def samples(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    folder = tmp_path_factory.mktemp("photos") / "fruit"
    write_samples(folder, SampleOptions(n_per_kind=4, kinds=make_kinds(3), size_px=48, n_workers=1))
    return load_dataset(folder)


def encode(image: Image.Image, photo_format: str = "PNG", **options: object) -> bytes:
    file = io.BytesIO()
    image.save(file, photo_format, **options)
    return file.getvalue()


def count_rows() -> int:
    (path,) = (cache_folder() / "facts").glob("*.sqlite")
    with contextlib.closing(sqlite3.connect(path)) as connection:
        return int(connection.execute("SELECT count(*) FROM vectors").fetchone()[0])


def draw_edges(size_px: tuple[int, int] = (320, 240)) -> Image.Image:
    """Rectangles of many grays, with sharp edges everywhere."""
    rng = np.random.default_rng(0)
    blocks = Image.fromarray(rng.integers(0, 256, (12, 16), dtype=np.uint8))
    return blocks.resize(size_px, Image.Resampling.NEAREST).convert("RGB")


# --- what a row says ------------------------------------------------------------------------------------------------


def test_a_row_says_what_the_file_holds() -> None:
    image = Image.new("RGB", (90, 60), (255, 0, 0))
    image.paste((0, 0, 255), (0, 0, 45, 60))
    exif = Image.Exif()
    exif[274] = 6
    data = encode(image, "JPEG", exif=exif, quality=100, subsampling=0)
    row = measure_photo(data)
    assert (row["format"], row["width_px"], row["height_px"], row["n_bytes"]) == ("jpeg", 60, 90, len(data))
    assert list_notes(row) == ("rotated",)
    assert np.abs(row["thumbnail"][0].astype(int) - (0, 0, 255)).max() <= 2
    assert np.abs(row["thumbnail"][-1].astype(int) - (255, 0, 0)).max() <= 2
    assert row["brightness_p5"] == pytest.approx(29 / 255, abs=0.01)
    assert row["brightness_p99"] == pytest.approx(76 / 255, abs=0.01)


def test_every_note_has_its_bit() -> None:
    for i, note in enumerate(NOTES):
        row = np.zeros((), FACTS)
        row["notes"] = 1 << i
        assert list_notes(row) == (note,)
    gray = measure_photo(encode(Image.new("L", (8, 8), 9), "PNG"))
    assert list_notes(gray) == ("grayscale",)
    clear = measure_photo(encode(Image.new("RGBA", (8, 8)), "PNG"))
    assert list_notes(clear) == ("alpha",)


@pytest.mark.parametrize(("n_levels", "bits"), [(1, 0), (2, 1), (4, 2), (256, 8)])
def test_entropy_counts_the_bits_of_the_grays(n_levels: int, bits: float) -> None:
    levels = np.tile(np.arange(256) // (256 // n_levels), (64, 1)).astype(np.uint8)
    assert measure_photo(encode(Image.fromarray(levels)))["entropy_bits"] == pytest.approx(bits, abs=1e-6)


@pytest.mark.parametrize(("level", "share"), [(0, 0.0), (51, 0.2), (255, 1.0)])
def test_brightness_of_one_tone(level: int, share: float) -> None:
    row = measure_photo(encode(Image.new("RGB", (40, 30), (level,) * 3)))
    assert row["brightness_p5"] == row["brightness_p99"] == pytest.approx(share)


def test_percentiles_leave_the_few_brightest_and_darkest_out() -> None:
    levels = np.full((100, 100), 128, np.uint8)
    levels[:4], levels[4, :90] = 0, 255  # 4 % black, 0.9 % white
    row = measure_photo(encode(Image.fromarray(levels)))
    assert row["brightness_p5"] == row["brightness_p99"] == pytest.approx(128 / 255)
    levels[:6], levels[7:9] = 0, 255  # 6 % black, 2 % white
    row = measure_photo(encode(Image.fromarray(levels)))
    assert (row["brightness_p5"], row["brightness_p99"]) == (0, 1)


def test_a_large_photo_is_measured_as_a_network_sees_it() -> None:
    small = draw_edges((160, 120))
    large = small.resize((1280, 960), Image.Resampling.BICUBIC)  # its edges are 8 pixels wide
    rows = [measure_photo(encode(image, "JPEG", quality=95)) for image in (small, large)]
    assert rows[1]["sharpness"] > 30
    assert measure_photo(encode(large))["sharpness"] > 30  # which no decoder shrinks
    assert (rows[1]["width_px"], rows[1]["height_px"]) == (1280, 960)
    assert np.abs(rows[0]["thumbnail"].astype(int) - rows[1]["thumbnail"]).mean() < 5


# --- sharpness ------------------------------------------------------------------------------------------------------


def test_blur_lowers_sharpness_step_by_step() -> None:
    gray = draw_edges().convert("L")
    values = [measure_sharpness(gray.filter(ImageFilter.GaussianBlur(radius))) for radius in (0, 1, 2, 4, 8)]
    assert values == sorted(values, reverse=True)
    assert values[0] > 80
    assert values[-1] < 12


def test_sharpness_does_not_depend_on_contrast() -> None:
    gray = draw_edges().convert("L").filter(ImageFilter.GaussianBlur(1))
    dark = gray.point(lambda level: level * 0.2)
    assert measure_sharpness(dark) == pytest.approx(measure_sharpness(gray), rel=0.1)


def test_bare_background_does_not_blur_a_photo() -> None:
    paper = Image.new("L", (320, 240), 255)
    paper.paste(draw_edges((100, 80)).convert("L"), (100, 80))
    assert measure_sharpness(paper) > 60
    assert measure_sharpness(paper.filter(ImageFilter.GaussianBlur(4))) < 20
    fruit = Image.new("L", (320, 240), 250)
    fruit.paste(90, (150, 100, 190, 140))
    assert measure_sharpness(fruit) > 50


def test_a_camera_that_moved_blurs_a_photo_in_every_direction() -> None:
    pixels = np.asarray(draw_edges().convert("L")).astype(np.float64)
    moved = np.mean([pixels[:, i : i + 300] for i in range(12)], axis=0).astype(np.uint8)
    for image in (Image.fromarray(moved), Image.fromarray(np.ascontiguousarray(moved.T))):
        assert measure_sharpness(image) < 15


def test_stripes_are_sharp_although_there_is_only_shade_along_them() -> None:
    shade = np.linspace(0, 50, 240)[:, None]
    levels = (np.tile(np.repeat([40, 200, 90, 160], 20), (240, 4)) + shade).astype(np.uint8)
    assert measure_sharpness(Image.fromarray(levels)) > 80
    assert measure_sharpness(Image.fromarray(np.ascontiguousarray(levels.T))) > 80


def test_rounding_does_not_make_a_faint_slope_sharp() -> None:
    slope = np.tile(np.linspace(100, 106, 320), (240, 1)).astype(np.uint8)
    assert measure_sharpness(Image.fromarray(slope)) == 0


@pytest.mark.parametrize("size_px", [(1, 1), (1, 50), (50, 1), (3, 3), (13, 2), (320, 5)])
def test_photos_of_any_shape_have_a_sharpness(size_px: tuple[int, int]) -> None:
    noise = np.random.default_rng(0).integers(0, 256, size_px[::-1], dtype=np.uint8)
    assert 0 <= measure_sharpness(Image.fromarray(noise)) <= 101
    assert measure_sharpness(Image.new("L", size_px, 77)) == 0
    assert measure_photo(encode(Image.fromarray(noise)))["width_px"] == size_px[0]


# --- laws -----------------------------------------------------------------------------------------------------------


@settings(max_examples=25, deadline=None)
@given(st.lists(st.integers(0, 11), min_size=1, max_size=14), st.integers(1, 3))
def test_facts_do_not_depend_on_neighbours_order_or_threads(samples: Dataset, chosen: list[int], n: int) -> None:
    some = replace(samples, photos=tuple(samples.photos[i] for i in chosen))
    rows = measure_photos(some, n_workers=n).rows
    for row, photo in zip(rows, some.photos, strict=True):
        assert row.tobytes() == measure_photo(photo.path.read_bytes()).tobytes()


def test_cached_equals_fresh(samples: Dataset, fresh_cache: Path) -> None:
    seen: list[tuple[int, int]] = []
    fresh = measure_photos(samples, n_workers=2, on_photo=lambda done, n: seen.append((done, n)))
    cached = measure_photos(samples)
    np.testing.assert_array_equal(cached.rows, fresh.rows)
    assert (fresh.n_computed, fresh.n_cached, cached.n_computed, cached.n_cached) == (12, 0, 0, 12)
    assert seen == [(i, 12) for i in range(13)]
    assert len({row.tobytes() for row in fresh.rows}) == 12


def test_photos_of_one_content_are_measured_once(samples: Dataset, fresh_cache: Path) -> None:
    twice = replace(samples, photos=samples.photos + samples.photos)
    facts = measure_photos(twice)
    assert (facts.n_computed, count_rows()) == (12, 12)
    np.testing.assert_array_equal(facts.rows[:12], facts.rows[12:])


def test_an_interrupt_keeps_what_was_done(samples: Dataset, fresh_cache: Path) -> None:
    def interrupt(n_done: int, _n_photos: int) -> None:
        if n_done == 7:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt) as caught:
        measure_photos(samples, n_workers=1, on_photo=interrupt)
    assert caught.tb  # the exception is still held, and yet nothing runs on
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("pomona-engine")]
    assert count_rows() == 7
    again = measure_photos(samples)
    assert (again.n_computed, again.n_cached) == (5, 7)


def test_what_is_measured_is_committed_as_it_goes(
    samples: Dataset, fresh_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(row_cache, "_ROWS_PER_COMMIT", 4)
    kept: list[int] = []
    measure_photos(samples, on_photo=lambda _done, _n: kept.append(count_rows()))
    assert kept == [0, 0, 0, 0, 4, 4, 4, 4, 8, 8, 8, 8, 12]


def test_another_format_number_measures_again(
    samples: Dataset, fresh_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    measure_photos(samples)
    monkeypatch.setattr(photo_facts, "FACTS_FORMAT", photo_facts.FACTS_FORMAT + 1)
    assert measure_photos(samples).n_computed == 12


# --- photos that fail -----------------------------------------------------------------------------------------------


def spoil(dataset: Dataset, numbers: Sequence[int]) -> None:
    for i in numbers:
        path = dataset.photos[i].path
        path.write_bytes(path.read_bytes()[:-300])


def test_photos_that_fail_are_skipped_and_the_others_keep_their_rows(
    photos: Path, fresh_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(photo_facts, "_ROWS_PER_MOVE", 4)
    whole = measure_photos(load_dataset(photos))
    spoil(whole.dataset, [0, 5, 6, 14])
    before = Skipped("notes.jpg", photos / "notes.jpg", "empty", "no bytes")
    facts = measure_photos(replace(load_dataset(photos), skipped=(before,)))
    kept = [i for i in range(15) if i not in (0, 5, 6, 14)]
    np.testing.assert_array_equal(facts.rows, whole.rows[kept])
    assert [photo.name for photo in facts.dataset.photos] == [whole.dataset.photos[i].name for i in kept]
    assert facts.dataset.skipped[0] == before
    assert [(one.name, one.fault) for one in facts.dataset.skipped[1:]] == [
        (whole.dataset.photos[i].name, "truncated") for i in (0, 5, 6, 14)
    ]
    assert (facts.n_computed, facts.n_cached) == (0, 11)


def test_a_photo_that_changed_since_is_not_kept(photos: Path, fresh_cache: Path) -> None:
    dataset = load_dataset(photos)
    path = dataset.photos[3].path
    sound = path.read_bytes()
    path.write_bytes(dataset.photos[4].path.read_bytes())
    assert [one.fault for one in measure_photos(dataset).dataset.skipped] == ["corrupt"]
    path.write_bytes(sound)
    again = measure_photos(dataset)
    assert (again.n_computed, again.n_cached) == (1, 14)
    assert again.rows[3].tobytes() == measure_photo(sound).tobytes()


def test_no_usable_photo_is_a_data_error(photos: Path) -> None:
    dataset = load_dataset(photos)
    spoil(dataset, range(15))
    with pytest.raises(DataError, match=r"no photo of .* can be used: 15 failed; the first: .*\.jpg: "):
        measure_photos(load_dataset(photos))


def test_what_cannot_be_decoded_says_why() -> None:
    with pytest.raises(PhotoError) as caught:
        measure_photo(encode(draw_edges())[:-500])
    assert caught.value.fault == "truncated"


def test_options_and_shapes_are_checked(samples: Dataset) -> None:
    with pytest.raises(OptionError, match="workers: wanted 1 or more, got 0"):
        measure_photos(samples, n_workers=0)
    with pytest.raises(ValueError, match=r"rows: wanted shape \(12,\) of FACTS, got \(3,\)"):
        Facts(np.zeros(3, FACTS), samples, 0, 0)


# --- the cache below ------------------------------------------------------------------------------------------------


def test_rows_of_another_length_are_neither_kept_nor_given(fresh_cache: Path) -> None:
    digest = hash_bytes(b"a photo")
    with contextlib.closing(row_cache.RowCache("facts", "some", 8, shown="cache")) as cache:
        with pytest.raises(ValueError, match="row: wanted 8 bytes, got 3"):
            cache.write(digest, b"abc")
        cache.write(digest, b"12345678")
    for n_bytes, wanted in ((8, [(digest, b"12345678")]), (9, [])):
        with contextlib.closing(row_cache.RowCache("facts", "some", n_bytes, shown="cache")) as cache:
            assert list(cache.read([digest])) == wanted
            assert cache.found == {name for name, _ in wanted}
