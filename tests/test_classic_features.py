"""Features made by hand: what they tell apart, and that each photo has its own."""

from __future__ import annotations

import shutil
import subprocess
import sys
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pomona.classic_features import (
    SIZE_PX,
    ClassicFeatures,
    extract_classic_features,
    measure_colours,
    measure_shape,
    measure_texture,
)
from pomona.dataset import Dataset, load_dataset
from pomona.errors import DataError

if TYPE_CHECKING:
    from pathlib import Path

MEASURES = (measure_colours, measure_texture, measure_shape)


@pytest.fixture(scope="module")
def dataset(rendered: Path) -> Dataset:
    whole = load_dataset(rendered)
    return replace(whole, photos=whole.photos[::4])


@pytest.fixture(scope="module")
def features(dataset: Dataset) -> ClassicFeatures:
    return extract_classic_features(dataset, n_workers=1)


def test_each_row_has_norm_one(features: ClassicFeatures) -> None:
    assert {name: block.shape[1] for name, block in features.blocks.items()} == {
        "colour": 384,
        "texture": 472,
        "shape": 1764,
    }
    for block in features.blocks.values():
        assert block.dtype == np.float32
        np.testing.assert_allclose(np.linalg.norm(block, axis=1), 1, rtol=1e-5)
    joined = features.join(("shape", "colour"))
    np.testing.assert_array_equal(joined[:, 1764:], features.blocks["colour"])


@settings(max_examples=5, deadline=None)
@given(st.permutations(range(6)))
def test_permuting_photos_permutes_features(dataset: Dataset, features: ClassicFeatures, order: list[int]) -> None:
    mixed = replace(dataset, photos=tuple(dataset.photos[i] for i in order))
    again = extract_classic_features(mixed, n_workers=2)
    assert again.dataset.photos == mixed.photos
    for name, block in again.blocks.items():
        np.testing.assert_array_equal(block, features.blocks[name][order])


def test_colours_know_no_place_within_the_middle_and_shapes_know_no_colour() -> None:
    generator = np.random.default_rng(0)
    photo = generator.integers(0, 256, (SIZE_PX, SIZE_PX, 3)).astype(np.uint8)
    np.testing.assert_array_equal(measure_colours(photo), measure_colours(photo[:, ::-1]))
    gray = np.repeat(photo[..., :1], 3, axis=2)
    tinted = gray * np.array([1, 0, 0], np.uint8)
    np.testing.assert_allclose(measure_shape(gray), measure_shape(tinted), atol=1e-6)
    assert np.abs(measure_colours(gray) - measure_colours(tinted)).max() > 0.1


def test_texture_tells_a_slope_from_noise() -> None:
    noise = np.random.default_rng(0).integers(0, 256, (SIZE_PX, SIZE_PX)).astype(np.uint8)
    slope = np.tile(np.arange(SIZE_PX, dtype=np.uint8), (SIZE_PX, 1))
    a, b, c = (measure_texture(np.repeat(one[..., None], 3, axis=2)) for one in (noise, slope, slope + 100))
    assert float(a @ b) < 0.5
    assert float(b @ c) > 0.95  # light changes nothing


@pytest.mark.parametrize("measure", MEASURES)
@pytest.mark.parametrize("level", [0, 255])
def test_a_photo_of_one_colour_gives_numbers(measure: object, level: int) -> None:
    found = measure(np.full((SIZE_PX, SIZE_PX, 3), level, np.uint8))  # type: ignore[operator]
    assert np.isfinite(found).all()


def test_a_photo_that_breaks_later_is_skipped_and_counted(rendered: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(rendered, tmp_path / "fruit")
    dataset = load_dataset(folder)
    dataset = replace(dataset, photos=dataset.photos[:3])
    dataset.photos[1].path.write_bytes(b"\xff\xd8\xff no photo")
    found = extract_classic_features(dataset)
    assert found.dataset.photos == (dataset.photos[0], dataset.photos[2])
    assert [one.name for one in found.dataset.skipped] == [dataset.photos[1].name]
    assert len(found.blocks["colour"]) == 2
    for photo in dataset.photos:
        photo.path.unlink()
    with pytest.raises(DataError, match=r"no photo of .* can be used: 3 failed"):
        extract_classic_features(dataset)


def test_without_scikit_image_the_extra_is_named() -> None:
    program = (
        "import sys; sys.modules['skimage'] = None\n"
        "import numpy as np\n"
        "from pomona.classic_features import measure_colours\n"
        "from pomona.errors import MissingPackageError\n"
        "try: measure_colours(np.zeros((8, 8, 3), np.uint8))\n"
        "except MissingPackageError as error: print(error)\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert "scikit-image is needed" in done.stdout
    assert "pip install 'pomona[benchmark]'" in done.stdout
