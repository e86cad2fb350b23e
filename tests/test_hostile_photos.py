"""Whatever bytes come, the process that decodes them lives, is done within a second and stays small."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

import numpy as np
import pytest
from PIL import Image, ImageCms

from pomona import photo
from pomona.errors import PhotoError, PhotoFault
from pomona.photo import decode_photo

if TYPE_CHECKING:
    from collections.abc import Sequence

pytest.importorskip("pillow_heif")
pytestmark = pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="this system does not tell a peak")

DECODE = Path(__file__).parent / "mutated_photos.py"
N_MUTATED = 2_000
MAX_MB, MAX_S = 512, 1.0
REFUSED = {
    "png of 65,000 x 65,000": "too_many_pixels",
    "png of many tEXt": "corrupt",
    "png of many IDAT": "corrupt",
    "gif of many comments": "corrupt",
    "gif of many pieces": "corrupt",
    "gif with much between": "corrupt",
    "jpeg of many segments": "corrupt",
    "jpeg of 3,000 scans": "too_many_scans",
    "jpeg of 3,000 scans and empty segments": "corrupt",
    "webp of 16,384 x 16,384": "too_many_pixels",
}
"""Bombs that must be refused before a decoder sees them."""

FINE = {*get_args(PhotoFault), "decoded", "header"}


def decode(place: Path, *arguments: object) -> list[dict[str, Any]]:
    """How each photo fared in a process of its own; fails with the number of the one that the process died of."""
    command = [sys.executable, str(DECODE), arguments[0], str(place), *map(str, arguments[1:])]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "MALLOC_ARENA_MAX": "2"}
    done = subprocess.run(command, env=environment, check=False, timeout=300)
    lines = [json.loads(line) for line in place.read_text("utf-8").splitlines()]
    assert done.returncode == 0, f"ended with {done.returncode} at {lines[-1]}"
    return [line for line in lines if isinstance(line, dict)]


def require_harmless(rows: Sequence[dict[str, Any]]) -> None:
    assert [row for row in rows if row["outcome"] not in FINE] == []
    assert [row for row in rows if row["peak_mb"] > MAX_MB] == []
    assert [row for row in rows if row["cpu_s"] > MAX_S] == []


def test_mutated_photos_do_no_harm(tmp_path: Path) -> None:
    rows = decode(tmp_path / "rows.jsonl", "numbers", 0, N_MUTATED)
    assert len(rows) == N_MUTATED
    require_harmless(rows)
    assert sum(row["outcome"] == "decoded" for row in rows) > N_MUTATED / 10, (
        "mutations that break everything try little"
    )
    assert {row["outcome"] for row in rows} > {"corrupt", "truncated", "unsupported", "too_many_pixels", "not_an_image"}


def test_bombs_do_no_harm(tmp_path: Path) -> None:
    rows = decode(tmp_path / "rows.jsonl", "bombs", 4)
    assert len(rows) > 30
    require_harmless(rows)
    outcomes = {row["seed"]: row["outcome"] for row in rows}
    assert {name: outcomes[name] for name in REFUSED} == REFUSED


@pytest.mark.parametrize(
    "options", [{"quality": 50}, {"lossless": True}, {"quality": 50, "exif": b"Exif\0\0"}], ids=str
)
def test_a_large_webp_is_refused_before_room_is_taken_for_it(
    options: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    stream = io.BytesIO()
    Image.new("RGB", (300, 200), (9, 90, 30)).save(stream, "WEBP", **options)
    assert decode_photo(stream.getvalue(), max_pixels=60_000).shape == (200, 300, 3)
    monkeypatch.setattr(photo, "_open_image", lambda *_: pytest.fail("it was opened"))
    with pytest.raises(PhotoError, match="300 x 200 = 60,000") as caught:
        decode_photo(stream.getvalue(), max_pixels=59_999)
    assert caught.value.fault == "too_many_pixels"


def test_a_float_photo_takes_little_more_than_its_pixels(tmp_path: Path) -> None:
    values = np.zeros((3000, 3000), np.float32)
    values[0, 0] = 1
    path = tmp_path / "float.tiff"
    Image.fromarray(values).save(path, "TIFF", compression="tiff_adobe_deflate")
    (row,) = decode(tmp_path / "rows.jsonl", "files", 0, path)
    assert row["outcome"] == "decoded"
    assert row["peak_mb"] < 250  # 9 million pixels: 36 MB of floats and 27 MB of RGB; all at once it was 500 MB


def test_profiles_that_are_too_large_are_not_kept() -> None:
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    stream = io.BytesIO()
    Image.new("RGB", (8, 8)).save(stream, "JPEG", icc_profile=profile + bytes(photo.MAX_PROFILE_BYTES))
    photo._srgb_transform.cache_clear()
    assert decode_photo(stream.getvalue()).shape == (8, 8, 3)
    assert photo._srgb_transform.cache_info().currsize == 0


@pytest.mark.parametrize("kind", ["jpeg", "png"])
def test_a_photo_that_memory_is_too_small_for_is_no_damaged_one(kind: str, tmp_path: Path) -> None:
    path = tmp_path / "large.photo"
    options = {"progressive": True, "subsampling": 0} if kind == "jpeg" else {}
    Image.new("RGB", (5000, 4000), (90, 30, 20)).save(path, kind, **options)
    code = (
        "import resource, sys, pathlib; from pomona.errors import PhotoError; from pomona.photo import decode_photo\n"
        "data = pathlib.Path(sys.argv[1]).read_bytes()\n"
        "resource.setrlimit(resource.RLIMIT_DATA, (100_000_000,) * 2)\n"
        "try: decode_photo(data)\n"
        "except PhotoError as error: print(error.fault)"
    )
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "MALLOC_ARENA_MAX": "2"}
    command = [sys.executable, "-c", code, str(path)]
    done = subprocess.run(command, env=environment, check=True, capture_output=True, text=True)
    assert done.stdout.strip() == "too_many_pixels"


@pytest.mark.parametrize("words", ["Pixel allocation failed: Out of memory", "Memory allocation error: Security limit"])
def test_decoders_say_in_words_that_memory_is_too_small(words: str) -> None:
    assert photo._fault_of(RuntimeError(words), b"", "avif") == "too_many_pixels"
