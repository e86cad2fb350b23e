"""A sheet shows photos of many classes before and after each step, in one file that replaces no photo."""

from __future__ import annotations

import re
import shutil
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

from pomona.backbone import Preprocessing
from pomona.comparison import Difference
from pomona.dataset import load_dataset
from pomona.enhancement_effect import Effect, Effects
from pomona.enhancement_sheet import MAX_SHOWN, choose_photos, write_sheet
from pomona.errors import DataError, OptionError, StorageError

if TYPE_CHECKING:
    from pathlib import Path

STEPS = ("white-balance", "clahe=2", "denoise=3", "gamma=0.8")


def test_photos_are_drawn_from_as_many_classes_as_there_are(rendered: Path) -> None:
    dataset = load_dataset(rendered)
    names = set()
    for seed in range(4):
        shown = choose_photos(dataset, Preprocessing(64), n_photos=3, seed=seed)
        assert {photo.label for photo in shown} == {"Banana", "Orange", "Lemon"}
        names.add(tuple(photo.name for photo in shown))
    assert len(names) > 1
    again = choose_photos(dataset, Preprocessing(64), n_photos=3, seed=3)
    assert [photo.name for photo in again] == [photo.name for photo in shown]
    assert len(choose_photos(dataset, Preprocessing(64))) == MAX_SHOWN


def test_photos_of_the_test_part_are_not_shown(rendered: Path) -> None:
    dataset = load_dataset(rendered)
    photos = [replace(photo, split="val" if row % 8 == 0 else "test") for row, photo in enumerate(dataset.photos)]
    shown = choose_photos(replace(dataset, photos=tuple(photos)), Preprocessing(64))
    assert sorted(photo.name for photo in shown) == sorted(photo.path.name for photo in photos if photo.split == "val")


def test_photos_that_cannot_be_decoded_are_passed_over(rendered: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(rendered, tmp_path / "photos")
    dataset = load_dataset(folder)
    paths = sorted(folder.rglob("*.jpg"))
    for path in paths[1:]:
        path.write_bytes(path.read_bytes()[:100])
    assert [photo.name for photo in choose_photos(dataset, Preprocessing(64))] == [paths[0].name]
    paths[0].unlink()
    with pytest.raises(DataError, match="wanted a photo to show, got none that can be decoded"):
        choose_photos(dataset, Preprocessing(64))
    for n_photos in (0, MAX_SHOWN + 1):
        with pytest.raises(OptionError, match=f"photos: wanted 1 to 8, got {n_photos}"):
            choose_photos(dataset, Preprocessing(64), n_photos=n_photos)


def test_a_sheet_is_one_file_with_every_photo_before_and_after(rendered: Path, tmp_path: Path) -> None:
    pytest.importorskip("cv2", reason="these steps need OpenCV")
    shown = choose_photos(load_dataset(rendered), Preprocessing(64), n_photos=2)
    shown = (replace(shown[0], label="<b>Äpfel & Birnen</b>", name="\udcff.jpg"), shown[1])
    path = tmp_path / "sheet.html"
    write_sheet(path, shown, STEPS, Preprocessing(64), title="my <fruit>")
    page = path.read_text("utf-8")
    assert page.count('<img src="data:image/jpeg;base64,') == 2 * (1 + len(STEPS) + 1)
    assert "&lt;b&gt;Äpfel &amp; Birnen&lt;/b&gt;" in page
    assert "my &lt;fruit&gt;" in page
    assert "was not measured" in page
    assert not re.search(r"https?:|<script|<link|@import|url\(", page)
    assert "default-src 'none'" in page


def test_effects_that_were_measured_are_on_the_sheet(rendered: Path, tmp_path: Path) -> None:
    shown = choose_photos(load_dataset(rendered), Preprocessing(64), n_photos=2)
    effect = Effect(("gamma=2",), 0.5, Difference(0.02, -0.01, 0.05, 30, 4, 400))
    effects = Effects(0.75, 400, "photos of the val part", "lite0", (effect,))
    path = tmp_path / "one.HTML"
    for _ in range(2):  # its own page it does replace
        write_sheet(path, shown, ["gamma=2"], Preprocessing(64), effects=effects)
    page = path.read_text("utf-8")
    assert page.count("<img") == 2 * 2  # what one step does is what all do
    assert "was not measured" not in page
    assert "No step makes a difference that can be told from chance." in page
    assert "−1.0 to +5.0" in page


def test_a_sheet_never_takes_the_place_of_a_photo(rendered: Path, tmp_path: Path) -> None:
    photo = next(rendered.rglob("*.jpg"))
    with pytest.raises(OptionError, match=r"preview: wanted a file that ends in \.html, got .*\.jpg"):
        write_sheet(photo, (), STEPS, Preprocessing(64))
    with pytest.raises(OptionError, match=r"preview: wanted a file in a folder that exists"):
        write_sheet(tmp_path / "not there" / "sheet.html", (), STEPS, Preprocessing(64))
    (tmp_path / "sheet.html").mkdir()
    with pytest.raises(StorageError, match="wanted a place for a page, got a folder"):
        write_sheet(tmp_path / "sheet.html", (), STEPS, Preprocessing(64))
