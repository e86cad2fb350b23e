"""A photo and what was made of it lie on each other; different photos, and those that show nothing, do not."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageEnhance

from pomona.alignment import MAX_CROPPED, align_pairs
from pomona.likeness import _CLOSE_PX, _CLOSE_SCORE, _THUMBNAIL_SCORE
from pomona.samples import KINDS, render_photo

PX = {_THUMBNAIL_SCORE: 32, _CLOSE_SCORE: _CLOSE_PX}
"""Size of the pictures that each limit is for."""
PHOTOS = [Image.fromarray(render_photo(KINDS[i % 6], seed=i, size_px=128)) for i in range(12)]


def shrink(*images: Image.Image, px: int) -> np.ndarray:
    small = (image.convert("L").resize((px, px), Image.Resampling.BOX) for image in images)
    return np.stack([np.asarray(image, np.float32) for image in small])


def align(first: Image.Image, second: Image.Image, px: int = 96):
    return align_pairs(shrink(first, second, px=px), np.array([[0, 1]]))


def mirror(image: Image.Image) -> Image.Image:
    return image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)


SHARES = st.floats(0, 0.1)


@settings(max_examples=40, deadline=None)
@given(
    number=st.integers(0, 11),
    cuts=st.tuples(SHARES, SHARES),
    places=st.tuples(st.floats(0, 1), st.floats(0, 1)),
    brightness=st.floats(0.75, 1.2),
    mirrored=st.booleans(),
    size_px=st.sampled_from([96, 128, 200]),
    swapped=st.booleans(),
)
def test_a_copy_agrees_whatever_was_done_to_it(
    number: int,
    cuts: tuple[float, float],
    places: tuple[float, float],
    brightness: float,
    mirrored: bool,
    size_px: int,
    swapped: bool,
) -> None:
    photo = PHOTOS[number]
    left, top = (round(128 * cut * place) for cut, place in zip(cuts, places, strict=True))
    box = (left, top, left + round(128 * (1 - cuts[0])), top + round(128 * (1 - cuts[1])))
    copy = ImageEnhance.Brightness(photo.crop(box)).enhance(brightness).resize((size_px, size_px))
    copy = mirror(copy) if mirrored else copy
    pair = (copy, photo) if swapped else (photo, copy)
    for limit, px in PX.items():
        found = align(*pair, px=px)
        assert limit < found.scores[0] <= 1 + 1e-5
        assert found.cropped[0] <= 1.5 * MAX_CROPPED + 1e-6
    assert found.mirrored[0] == mirrored


@pytest.mark.parametrize(("limit", "px"), PX.items())
def test_different_photos_do_not_agree(limit: float, px: int) -> None:
    pairs = np.array([(i, j) for i in range(12) for j in range(i)])
    found = align_pairs(shrink(*PHOTOS, px=px), pairs)
    assert found.scores.shape == found.mirrored.shape == found.cropped.shape == found.gains.shape == (66,)
    assert found.scores.max() < limit - 0.03


def test_a_crop_beyond_what_is_looked_for_does_not_agree() -> None:
    scores = [align(photo, photo.crop((0, 0, 80, 80))).scores[0] for photo in PHOTOS]
    assert max(scores) < _CLOSE_SCORE


@pytest.mark.parametrize(
    ("make", "text"),
    [
        (lambda image: image, "resized or saved anew"),
        (lambda image: image.resize((60, 60)), "resized or saved anew"),
        (mirror, "mirrored"),
        (lambda image: ImageEnhance.Contrast(image).enhance(0.6), "of another brightness"),
        (lambda image: mirror(ImageEnhance.Brightness(image).enhance(0.5)), "mirrored and of another brightness"),
    ],
)
def test_what_was_done_is_said(make, text: str) -> None:
    for photo in PHOTOS[:3]:
        assert align(photo, make(photo)).describe(0) == text


@pytest.mark.parametrize("swapped", [False, True])
@pytest.mark.parametrize("box", [(0, 0, 118, 118), (10, 10, 128, 128), (4, 6, 122, 124), (0, 10, 128, 128)])
def test_a_crop_is_said_with_its_share(box: tuple[int, int, int, int], swapped: bool) -> None:
    wanted = 1 - min(box[2] - box[0], box[3] - box[1]) / 128
    for photo in PHOTOS[:4]:
        pair = (photo.crop(box), photo) if swapped else (photo, photo.crop(box))
        found = align(*pair)
        assert found.cropped[0] == pytest.approx(wanted, abs=0.015)
        assert found.describe(0) == f"cropped by {found.cropped[0]:.0%}"


def test_gains_are_those_of_the_second_over_the_first() -> None:
    dim = ImageEnhance.Brightness(PHOTOS[0]).enhance(0.5)
    assert align(PHOTOS[0], dim).gains[0] == pytest.approx(0.5, abs=0.03)
    assert align(dim, PHOTOS[0]).gains[0] == pytest.approx(2, abs=0.1)


def test_pictures_of_one_tone_agree_with_nothing() -> None:
    tones = [np.full((96, 96), level, np.float32) for level in (0, 0, 128, 129.3, 255, 255)]
    pictures = np.stack([*tones, shrink(PHOTOS[0], px=96)[0]])
    pairs = np.array([(i, j) for i in range(7) for j in range(7) if i != j])
    found = align_pairs(pictures, pairs)
    for column in (found.scores, found.cropped, found.gains):
        assert np.isfinite(column).all()
    assert np.abs(found.scores).max() < 0.1


def test_a_picture_that_is_nearly_bare_gives_numbers() -> None:
    bare = np.full((96, 96), 255, np.float32)
    dot, line = bare.copy(), bare.copy()
    dot[40:44, 50:54], line[:, 90:] = 0, 0
    found = align_pairs(np.stack([bare, dot, line]), np.array([[0, 1], [1, 1], [2, 2], [1, 2]]))
    assert np.isfinite(found.scores).all()
    assert np.isfinite(found.gains).all()
    np.testing.assert_allclose(found.scores[1:3], 1, atol=1e-4)
    assert found.scores[3] < 0.6


@settings(max_examples=20, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 11), st.integers(0, 11)), max_size=80))
def test_a_pair_has_the_same_answer_alone_and_among_others(pairs: list[tuple[int, int]]) -> None:
    pictures = shrink(*PHOTOS, px=32)
    together = align_pairs(pictures, np.array(pairs, np.intp).reshape(-1, 2))
    for i, pair in enumerate(pairs[:6]):
        alone = align_pairs(pictures, np.array([pair]))
        assert alone.scores[0] == pytest.approx(together.scores[i], abs=1e-4)
        assert alone.mirrored[0] == together.mirrored[i]
    again = align_pairs(pictures, np.array(pairs, np.intp).reshape(-1, 2))
    np.testing.assert_array_equal(again.scores, together.scores)


def test_no_pairs_and_no_pictures() -> None:
    for pictures in (shrink(PHOTOS[0], px=32), np.zeros((0, 32, 32), np.float32)):
        found = align_pairs(pictures, np.zeros((0, 2), np.intp))
        assert found.scores.shape == found.mirrored.shape == found.cropped.shape == found.gains.shape == (0,)


@pytest.mark.parametrize("cut", [0.02, 0.03, 0.05])
@pytest.mark.parametrize("swapped", [False, True])
def test_a_little_cut_off_all_round_a_fine_pattern_is_no_hindrance(cut: float, swapped: bool) -> None:
    """From afar the whole may as well be a crop of its crop; only from near that does not hold."""
    noise = np.random.default_rng(3).integers(0, 256, (48, 48), dtype=np.uint8)
    photo = Image.fromarray(noise).resize((480, 480), Image.Resampling.BICUBIC)
    edge = round(480 * cut / 2)
    crop = photo.crop((edge, 1, 480 - edge, 479))
    found = align(crop, photo) if swapped else align(photo, crop)
    assert found.scores[0] > _CLOSE_SCORE
    assert abs(found.cropped[0] - cut) < 0.01
