"""Poor photos are found by the standard of their set, odd ones are told, and real files get the verdict of a person."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageFilter

from pomona.class_tree import ClassTree
from pomona.dataset import Dataset, Photo, Skipped, load_dataset
from pomona.findings import CHECKS, Finding
from pomona.photo_facts import FACTS, NOTES, Facts, measure_photos
from pomona.photo_quality import MIN_PHOTOS, find_poor, list_unusable, note_oddities

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

ANSWERS = Path(__file__).parent / "answers" / "dirty_images.csv"
TREE = ClassTree.from_paths([("Apple",)])
POOR = [name for name, check in CHECKS.items() if check.family == "poor"]


def make_facts(rows: NDArray[np.void], names: list[str] | None = None) -> Facts:
    names = names or [f"{i:04}.jpg" for i in range(len(rows))]
    photos = tuple(Photo(Path(name), f"{i:064x}", 0, name, None, name) for i, name in enumerate(names))
    return Facts(rows, Dataset(photos, TREE, (), 0, Path()), len(rows), 0)


def make_rows(n_photos: int = 40, seed: int = 0) -> NDArray[np.void]:
    """Good photos that differ a little, as those of one camera do."""
    rng = np.random.default_rng(seed)
    rows = np.zeros(n_photos, FACTS)
    rows["format"], rows["width_px"], rows["height_px"], rows["n_bytes"] = "jpeg", 400, 300, 30_000
    for name, middle in (("sharpness", 50), ("brightness_p99", 0.9), ("brightness_p5", 0.1), ("entropy_bits", 7.3)):
        rows[name] = middle * np.exp(rng.normal(0, 0.05, n_photos))
    rows["thumbnail"] = rng.integers(0, 256, (n_photos, 8, 1, 8, 1, 3)).repeat(4, 2).repeat(4, 4).reshape(-1, 32, 32, 3)
    return rows


SPOILED: dict[str, dict[str, object]] = {
    "odd_size": {"width_px": 24, "height_px": 30},
    "blurry": {"sharpness": 9},
    "dark": {"brightness_p99": 0.08, "brightness_p5": 0.0},
    "light": {"brightness_p99": 1.0, "brightness_p5": 0.97},
    "low_information": {"entropy_bits": 0.3},
    "odd_aspect_ratio": {"width_px": 800, "height_px": 150},
}


def spoil(rows: NDArray[np.void], check: str, numbers: slice) -> NDArray[np.void]:
    for name, value in SPOILED[check].items():
        rows[name][numbers] = value
    return rows


def list_struck(found: list[Finding]) -> list[tuple[str, str]]:
    return [(one.check, one.name) for one in found]


# --- limits ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("n_photos", [1, 2, MIN_PHOTOS - 1, MIN_PHOTOS, 200])
def test_nothing_is_wrong_with_good_photos(n_photos: int) -> None:
    assert find_poor(make_facts(make_rows(n_photos))) == []
    same = np.repeat(make_rows(1), n_photos)
    assert find_poor(make_facts(same)) == []


@pytest.mark.parametrize("check", POOR)
@pytest.mark.parametrize("n_photos", [5, 40])
def test_each_fault_is_found_and_no_other(check: str, n_photos: int) -> None:
    found = find_poor(make_facts(spoil(make_rows(n_photos), check, slice(3, 4))))
    assert list_struck(found) == [(check, "0003.jpg")]
    assert found[0].flagged
    assert found[0].score < 0.5


@pytest.mark.parametrize("check", POOR)
def test_a_set_that_is_bad_throughout_does_not_pass(check: str) -> None:
    found = find_poor(make_facts(spoil(make_rows(), check, slice(None))))
    assert list_struck(found) == [(check, f"{i:04}.jpg") for i in range(40)]


@pytest.mark.parametrize(
    ("column", "value", "check"),
    [
        ("sharpness", 22, "blurry"),
        ("brightness_p99", 0.4, "dark"),
        ("brightness_p5", 0.7, "light"),
        ("entropy_bits", 2.0, "low_information"),
        ("height_px", 170, "odd_aspect_ratio"),
    ],
)
def test_what_a_set_of_its_own_standard_flags_a_small_or_mixed_set_does_not(
    column: str, value: float, check: str
) -> None:
    def strike(rows: NDArray[np.void]) -> list[tuple[str, str]]:
        rows[column][0] = value
        return list_struck(find_poor(make_facts(rows)))

    assert strike(make_rows(40)) == [(check, "0000.jpg")]
    assert strike(make_rows(MIN_PHOTOS)) == [(check, "0000.jpg")]
    assert strike(make_rows(MIN_PHOTOS - 1)) == []
    mixed = make_rows(40)
    mixed[column] = np.linspace(value, mixed[column].max(), 40)
    assert strike(mixed) == []


def test_sizes_are_odd_on_both_sides_of_the_middle() -> None:
    rows = make_rows()
    rows["width_px"][:3], rows["height_px"][:3] = (4000, 110, 700), (3000, 90, 600)
    found = find_poor(make_facts(rows))
    assert list_struck(found) == [("odd_size", "0000.jpg"), ("odd_size", "0001.jpg")]
    assert found[0].reason == (
        "4,000 x 3,000 pixels, as many as a square of 3,464; the middle photo here has 346, and below 115 or above "
        "1,039 is flagged"
    )
    assert found[0].score == pytest.approx(1039.2 / (1039.2 + 3464.1), abs=1e-3)
    assert found[1].score == pytest.approx(99.5 / (99.5 + 115.5), abs=1e-3)


def test_a_noisy_wall_shows_nothing_in_a_set_of_any_size() -> None:
    rows = make_rows(5)
    noise = np.random.default_rng(0).normal(130, 1.2, (32, 32, 3))
    rows["thumbnail"][2] = noise.round().astype(np.uint8)
    assert list_struck(find_poor(make_facts(rows))) == [("low_information", "0002.jpg")]


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.sampled_from(POOR), st.integers(0, 39)), max_size=6), st.randoms(use_true_random=False))
def test_findings_go_with_their_photos(spoiled: list[tuple[str, int]], random: object) -> None:
    rows = make_rows()
    for check, i in spoiled:
        spoil(rows, check, slice(i, i + 1))
    order = list(range(40))
    random.shuffle(order)  # type: ignore[attr-defined]
    names = [f"{i:04}.jpg" for i in order]
    found = find_poor(make_facts(rows[order], names))
    assert sorted(found, key=lambda one: (one.check, one.name)) == sorted(
        find_poor(make_facts(rows)), key=lambda one: (one.check, one.name)
    )
    assert {name for _, name in list_struck(found)} == {f"{i:04}.jpg" for _, i in spoiled}


@settings(max_examples=60, deadline=None)
@given(st.floats(0, 100), st.floats(0, 100))
def test_the_poorer_photo_has_the_lower_score(one: float, other: float) -> None:
    rows = make_rows()
    rows["sharpness"][:2] = one, other
    scores = {finding.name: finding.score for finding in find_poor(make_facts(rows))}
    values = [scores.get(name, 1.0) for name in ("0000.jpg", "0001.jpg")]
    assert all(value < 0.5 or value == 1 for value in values)
    if rows["sharpness"][0] <= rows["sharpness"][1]:
        assert values[0] <= values[1]


def test_reasons_say_the_numbers() -> None:
    rows = np.repeat(make_rows(1), 40)
    rows["sharpness"], rows["brightness_p99"], rows["brightness_p5"], rows["entropy_bits"] = 50, 0.9, 0.1, 7.3
    for i, check in enumerate(("blurry", "dark", "light", "low_information", "odd_aspect_ratio")):
        spoil(rows, check, slice(i, i + 1))
    assert {one.check: one.reason for one in find_poor(make_facts(rows))} == {
        "blurry": "sharpness 9; the middle photo here has 50, and below 29 is flagged",
        "dark": "all but its brightest hundredth is below 8% of white; the middle photo here reaches 90%, "
        "and below 45% is flagged",
        "light": "all but its darkest twentieth is above 97% of white; in the middle photo here it is 10%, "
        "and above 60% is flagged",
        "low_information": "its tones tell 0.3 of 8 bits; the middle photo here 7.3, and below 2.5 is flagged",
        "odd_aspect_ratio": "its sides are as 1 to 5.3; those of the middle photo here as 1 to 1.3, "
        "and above 1 to 2.2 is flagged",
    }


def test_where_there_is_nothing_to_see_nothing_is_blurred() -> None:
    rows = spoil(spoil(make_rows(), "blurry", slice(0, 2)), "low_information", slice(1, 3))
    assert list_struck(find_poor(make_facts(rows))) == [
        ("low_information", "0001.jpg"),
        ("low_information", "0002.jpg"),
        ("blurry", "0000.jpg"),
    ]


def test_no_photos_have_no_faults() -> None:
    assert find_poor(make_facts(make_rows(0))) == []
    assert note_oddities(make_facts(make_rows(0))) == []


# --- photos ---------------------------------------------------------------------------------------------------------


def draw_photo(seed: int) -> Image.Image:
    """Blocks of many colours, softened as a lens does, on which a fault can be planted."""
    blocks = Image.fromarray(np.random.default_rng(seed).integers(20, 236, (9, 12, 3), dtype=np.uint8))
    return blocks.resize((240, 180), Image.Resampling.NEAREST).filter(ImageFilter.GaussianBlur(0.8))


def make_flat(image: Image.Image) -> Image.Image:
    noise = np.random.default_rng(1).normal(128, 6, (image.height, image.width, 3))
    return Image.fromarray(noise.clip(0, 255).astype(np.uint8))


def move_camera(image: Image.Image) -> Image.Image:
    pixels = np.asarray(image).astype(np.float64)
    return Image.fromarray(np.mean([pixels[:, i : i + 220] for i in range(20)], axis=0).astype(np.uint8))


PLANTED: list[tuple[str, Callable[[Image.Image], Image.Image]]] = [
    ("blurry", lambda image: image.filter(ImageFilter.GaussianBlur(5))),
    ("blurry", lambda image: image.filter(ImageFilter.GaussianBlur(14))),
    ("blurry", move_camera),
    ("dark", lambda image: image.point(lambda level: level * 0.1)),
    ("light", lambda image: image.point(lambda level: min(255, level + 160))),
    ("low_information", lambda image: Image.new("RGB", image.size, (115, 135, 110))),
    ("low_information", make_flat),
    ("odd_size", lambda image: image.crop((35, 35, 65, 65))),
    ("odd_aspect_ratio", lambda image: image.crop((0, 0, 240, 50))),
]


def test_faults_planted_into_photos_are_found(tmp_path: Path) -> None:
    (tmp_path / "Apple").mkdir()
    for i in range(30):
        draw_photo(i).save(tmp_path / "Apple" / f"good {i}.png")
    for i, (check, plant) in enumerate(PLANTED):
        plant(draw_photo(100 + i)).save(tmp_path / "Apple" / f"{check} {i}.png")
    found = find_poor(measure_photos(load_dataset(tmp_path, min_classes=1)))
    assert {(one.check, one.name) for one in found} == {
        (check, f"Apple/{check} {i}.png") for i, (check, _) in enumerate(PLANTED)
    }


def test_a_fruit_on_white_paper_is_not_poor(tmp_path: Path) -> None:
    (tmp_path / "Apple").mkdir()
    for i in range(25):
        paper = Image.new("RGB", (240, 180), "white")
        paper.paste(draw_photo(i).resize((60, 45)), (20 + 4 * i, 60))
        paper.save(tmp_path / "Apple" / f"{i}.png")
    assert find_poor(measure_photos(load_dataset(tmp_path, min_classes=1))) == []


# --- oddities -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "photo_format", "wrong"),
    [
        ("a.jpg", "jpeg", False),
        ("a.JPEG", "jpeg", False),
        ("a.jpe", "jpeg", False),
        ("a.jfif", "jpeg", False),
        ("a.jpg", "png", True),
        ("b/a.PNG", "jpeg", True),
        ("a.tif", "tiff", False),
        ("a.heif", "avif", False),
        ("a.heic", "avif", True),
        ("a.gif", "webp", True),
        ("a", "png", False),
        ("a.photo", "png", False),
        ("a.jpg/b", "png", False),
        (".jpg", "png", False),
    ],
)
def test_a_name_of_another_format_is_told(name: str, photo_format: str, wrong: bool) -> None:
    rows = make_rows(1)
    rows["format"] = photo_format
    found = note_oddities(make_facts(rows, [name]))
    assert list_struck(found) == ([("wrong_extension", name)] if wrong else [])


def test_every_note_that_is_a_check_is_told_and_none_is_flagged() -> None:
    rows = np.repeat(make_rows(1), len(NOTES) + 1)
    rows["notes"][:-1] = [1 << i for i in range(len(NOTES))]
    found = note_oddities(make_facts(rows))
    told = [note for note in NOTES if note in CHECKS]
    assert [one.check for one in found] == told == ["cmyk", "alpha", "16-bit", "rotated", "animated", "gps"]
    assert all(one.name == f"{NOTES.index(one.check):04}.jpg" and not one.flagged and one.reason for one in found)


def test_skipped_files_are_unusable_and_say_why() -> None:
    dataset = Dataset((), TREE, (Skipped("a.jpg", Path("a.jpg"), "truncated", "ends early"),), 0, Path())
    assert list_unusable(dataset) == [Finding("a.jpg", "unusable", 0.0, True, "truncated: ends early")]


# --- real files -----------------------------------------------------------------------------------------------------


def load_unlabelled(folder: Path, list_path: Path) -> Dataset:
    """Photos of a folder that says nothing of what they show."""
    names = sorted(path for path in folder.iterdir() if path.suffix == ".jpg")
    list_path.write_text("file_name,label\n" + "".join(f'"{path}",any\n' for path in names))
    return load_dataset(list_path, min_classes=1)


def test_photos_named_as_another_format_are_all_told(shared: Path, tmp_path: Path) -> None:
    dataset = load_unlabelled(shared / "data" / "fruit_boxes" / "train", tmp_path / "list.csv")
    facts = measure_photos(dataset)
    found = note_oddities(facts)
    by_name = {photo.name: photo.path for photo in dataset.photos}
    told = {by_name[one.name] for one in found if one.check == "wrong_extension"}
    assert told == {path for path in by_name.values() if path.read_bytes()[:4] == b"\x89PNG"}
    assert len(told) == 33
    see_through = {photo.path for photo in dataset.photos if has_alpha(photo.path)}
    assert {by_name[one.name] for one in found if one.check == "alpha"} == see_through
    assert len(see_through) == 25
    assert {one.check for one in found} == {"wrong_extension", "alpha"}
    assert find_poor(facts) == []


def has_alpha(path: Path) -> bool:
    """Whether a PNG has a channel or a chunk for it, by its bytes."""
    data = path.read_bytes()
    return data[:4] == b"\x89PNG" and (data[25] in {4, 6} or b"tRNS" in data[: data.index(b"IDAT")])


def test_dirty_files_get_the_verdict_of_a_person(shared: Path) -> None:
    with ANSWERS.open(encoding="utf-8", newline="") as stream:
        answers = {row["file_name"]: (row["verdict"], *sorted(row["notes"].split())) for row in csv.DictReader(stream)}
    facts = measure_photos(load_dataset(shared / "data" / "dirty_images"))
    got: dict[str, tuple[str, ...]] = {photo.name: ("usable",) for photo in facts.dataset.photos}
    for one in list_unusable(facts.dataset):
        got[one.name] = (one.reason.split(":")[0],)
    notes = note_oddities(facts)
    for name in list(got):
        got[name] += tuple(sorted(one.check for one in notes if one.name == name))
    assert got == answers
    assert len(answers) == 40


BLURRED = {
    "Fruit/Apple/Golden-Delicious/Golden-Delicious_005.jpg",
    "Fruit/Kiwi/Kiwi_001.jpg",
    "Fruit/Melon/Galia-Melon/Galia-Melon_002.jpg",
    "Fruit/Melon/Honeydew-Melon/Honeydew-Melon_003.jpg",
    "Vegetables/Ginger/Ginger_004.jpg",
    "Vegetables/Onion/Yellow-Onion/Yellow-Onion_003.jpg",
    "Vegetables/Onion/Yellow-Onion/Yellow-Onion_005.jpg",
    "Vegetables/Potato/Floury-Potato/Floury-Potato_002.jpg",
    "Vegetables/Potato/Sweet-Potato/Sweet-Potato_004.jpg",
}
"""Photos of the shop that anybody would call blurred: out of focus, or the camera moved."""


def test_photos_of_a_shop_that_are_blurred_are_found_and_few_others(shared: Path) -> None:
    facts = measure_photos(load_dataset(shared / "data" / "grocery" / "val", min_classes=1))
    struck = list_struck(find_poor(facts))
    assert {name for check, name in struck if check == "blurry"} >= BLURRED
    assert len(struck) <= len(BLURRED) + 0.02 * len(facts.rows)
