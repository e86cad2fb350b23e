"""The page's JavaScript against the Python that it stands for, in Node: resizing, what is said, photo files, tables."""

from __future__ import annotations

import base64
import csv
import io
import json
import shutil
import subprocess
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from PIL import Image

from pomona.backbone import Preprocessing
from pomona.class_names import ClassName
from pomona.class_tree import ClassTree
from pomona.errors import PhotoError
from pomona.export.browser import describe_preprocessing, describe_speaker, list_page_files
from pomona.photo import read_header
from pomona.prediction import Speaker
from pomona.trust import Promise

if TYPE_CHECKING:
    from pathlib import Path

TIMEOUT_S = 120


class Node:
    """Runs a script beside the page's modules: one JSON value in, one out."""

    def __init__(self, program: str, folder: Path) -> None:
        self.program, self.folder = program, folder
        for name, content in list_page_files().items():
            (folder / name).write_bytes(content)
        (folder / "package.json").write_text('{"type": "module"}')

    def run(self, script: str, given: Any) -> Any:
        lead = 'import { readFileSync } from "node:fs"; const given = JSON.parse(readFileSync(0, "utf8"));'
        (self.folder / "run.js").write_text(f"{lead}\n{script}\n", "utf-8")
        done = subprocess.run(
            [self.program, "run.js"],
            cwd=self.folder,
            input=json.dumps(given),
            capture_output=True,
            text=True,
            encoding="utf-8",
            timeout=TIMEOUT_S,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)


@pytest.fixture(scope="module")
def node(tmp_path_factory: pytest.TempPathFactory) -> Node:
    program = shutil.which("node")
    if program is None:
        pytest.skip("Node is not installed: the page's JavaScript is tried in a browser alone")
    return Node(program, tmp_path_factory.mktemp("page"))


# --- resizing -------------------------------------------------------------------------------------------------------

RESIZE = """
import { fitPhoto } from "./resize.js";
const fitted = given.map(({ photo, width, height, preprocessing }) =>
  Buffer.from(fitPhoto({ pixels: Buffer.from(photo, "base64"), width, height }, preprocessing)).toString("base64"));
console.log(JSON.stringify(fitted));
"""


def draw_preprocessing(rng: np.random.Generator) -> Preprocessing:
    return Preprocessing(
        int(rng.integers(1, 60)),
        fit=str(rng.choice(["squash", "crop", "pad"])),  # type: ignore[arg-type]
        resample=str(rng.choice(["bilinear", "bicubic"])),  # type: ignore[arg-type]
        crop_share=float(rng.choice([1.0, 0.875, 0.5])),
    )


def draw_photo(rng: np.random.Generator) -> np.ndarray:
    """Noise, or black and white, at which a cubic filter overshoots, of any shape."""
    shape = (*rng.integers(1, 120, 2), 3)
    levels = rng.integers(0, 256, shape) if rng.random() < 0.5 else rng.integers(0, 2, shape) * 255
    return levels.astype(np.uint8)


def test_photos_are_fitted_as_pillow_fits_them_to_the_bit(node: Node) -> None:
    rng = np.random.default_rng(0)
    cases = [(draw_photo(rng), draw_preprocessing(rng)) for _ in range(300)]
    cases += [(draw_photo(rng), Preprocessing(16)), (np.zeros((16, 16, 3), np.uint8) + 9, Preprocessing(16))]
    given = [
        {
            "photo": base64.b64encode(photo.tobytes()).decode(),
            "width": photo.shape[1],
            "height": photo.shape[0],
            "preprocessing": describe_preprocessing(steps),
        }
        for photo, steps in cases
    ]
    for (photo, steps), found in zip(cases, node.run(RESIZE, given), strict=True):
        wanted = steps.apply(photo)
        got = np.frombuffer(base64.b64decode(found), np.uint8).reshape(wanted.shape)
        np.testing.assert_array_equal(got, wanted, err_msg=f"{photo.shape} {steps}")


TURN = """
import { turnUpright } from "./decode.js";
const turned = given.orientations.map((orientation) => {
  const photo = { pixels: Uint8Array.from(given.pixels), width: given.width, height: given.height };
  const { pixels, width, height } = turnUpright(photo, orientation);
  return [width, height, [...pixels]];
});
console.log(JSON.stringify(turned));
"""


def test_photos_are_turned_as_in_python(node: Node) -> None:
    from pomona.photo import decode_photo

    photo = np.random.default_rng(1).integers(0, 256, (5, 7, 3)).astype(np.uint8)
    given = {"pixels": photo.ravel().tolist(), "width": 7, "height": 5, "orientations": list(range(1, 9))}
    for orientation, (width, height, pixels) in enumerate(node.run(TURN, given), 1):
        exif = Image.Exif()
        exif[274] = orientation
        file = io.BytesIO()
        Image.fromarray(photo).save(file, "PNG", exif=exif)
        wanted = decode_photo(file.getvalue())
        np.testing.assert_array_equal(np.array(pixels, np.uint8).reshape(height, width, 3), wanted)


# --- what is said ---------------------------------------------------------------------------------------------------

SPEAK = """
import { speak } from "./speak.js";
console.log(JSON.stringify(given.map(({ model, probabilities, strangeness, nTop }) =>
  speak(model, "a photo", Float32Array.from(probabilities), strangeness, nTop))));
"""

TREES = (
    ("Apple/Gala", "Apple/Fuji", "Kiwi"),
    ("Fruit/Apple/Gala", "Fruit/Apple/Fuji", "Fruit/Pear/Anjou", "Fruit/Pear/Kaiser", "Vegetables/Leek"),
    ("A/X", "A/Y", "B/X/1", "B/X/2", "B/Y", "A"),
    ("Banana", "Lemon"),
    ("Fruit/Apple/Gala", "Fruit/Apple/Fuji"),
)


def draw_outcome(rng: np.random.Generator, n: int) -> np.ndarray:
    """Probabilities that are clear, or even, or the same, so that all ways to answer come up.

    Some are 0.7 in 32 bits, which is less than 0.7 in 64: NumPy compares with a threshold in 32.
    """
    if rng.random() < 0.1:
        return np.asarray([0.7, 0.3, *np.zeros(n - 2)], np.float32)
    logits = rng.normal(0, rng.choice([0.0, 0.5, 2.0, 6.0]), n)
    shares = np.exp(logits) / np.exp(logits).sum()
    return np.asarray(shares, np.float32)


def test_the_same_is_said_as_in_python(node: Node) -> None:
    rng = np.random.default_rng(2)
    given, wanted = [], []
    for _ in range(600):
        tree = ClassTree.from_paths(TREES[rng.integers(len(TREES))])
        names = tuple(
            ClassName(f"The {one}", None if i % 2 else f"名{one}", "4011") for i, one in enumerate(tree.names)
        )
        probabilities = draw_outcome(rng, len(tree))
        # Thresholds that some probability is on to the last bit, too.
        least = float(rng.choice([0.0, 0.3, 0.7, 0.76, 2.0, *probabilities]))
        promise = Promise(0.95, least, float(rng.choice([0.0, 0.1, 0.7, *probabilities])), 0.05, 100, 50)
        speaker = Speaker(tree, names, None if rng.random() < 0.2 else promise)
        strangeness = None if rng.random() < 0.3 else float(np.float32(rng.choice([0.1, 0.49999, 0.5, 0.9])))
        n_top = int(rng.integers(1, 7))
        given.append(
            {
                "model": describe_speaker(speaker),
                "probabilities": probabilities.tolist(),
                "strangeness": strangeness,
                "nTop": n_top,
            }
        )
        wanted.append(speaker.speak("a photo", probabilities, strangeness, n_top=n_top).to_dict())
    ways = set()
    for found, want in zip(node.run(SPEAK, given), wanted, strict=True):
        assert found.pop("fault") is None
        assert flatten(found) == flatten(want)
        ways.add((want["sure"], want["unknown"], want["answer"]["label"] == want["label"]))
    assert len(ways) == 7, "too few ways to answer were tried"


def flatten(value: Any) -> Any:
    """Nested values with numbers to six digits, which sums in 32 bits agree to."""
    if isinstance(value, dict):
        return {key: flatten(one) for key, one in value.items()}
    if isinstance(value, (list, tuple)):
        return [flatten(one) for one in value]
    return float(f"{value:.6g}") if isinstance(value, float) else value


# --- photo files ----------------------------------------------------------------------------------------------------

READ = """
import { readPhotoFile, PhotoFault } from "./photo_file.js";
const found = given.map((photo) => {
  try {
    const bytes = Uint8Array.from(Buffer.from(photo, "base64"));
    const { format, width, height, orientation } = readPhotoFile(bytes, { max_pixels: 60e6, max_scans: 100 });
    return { format, width: width ?? null, height: height ?? null, orientation };
  } catch (error) {
    if (!(error instanceof PhotoFault)) throw error;
    return { fault: error.fault };
  }
});
console.log(JSON.stringify(found));
"""


def save_photo(kind: str, *, orientation: int = 1, **options: Any) -> bytes:
    exif, file = Image.Exif(), io.BytesIO()
    exif[274] = orientation
    levels = np.random.default_rng(3).integers(0, 256, (21, 33, 3)).astype(np.uint8)
    Image.fromarray(levels).save(file, kind, **({"exif": exif} if orientation > 1 else {}), **options)
    return file.getvalue()


def read_in_node(node: Node, photos: list[bytes]) -> list[dict[str, Any]]:
    found = node.run(READ, [base64.b64encode(photo).decode() for photo in photos])
    assert isinstance(found, list)
    return found


def test_photo_files_are_known_for_what_they_are(node: Node) -> None:
    kinds = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "AVIF")
    for kind, found in zip(kinds, read_in_node(node, [save_photo(kind) for kind in kinds]), strict=True):
        assert found["format"] == kind.lower()
    turned = read_in_node(node, [save_photo("JPEG", orientation=n, progressive=n % 2 == 0) for n in range(1, 9)])
    assert [(one["width"], one["height"], one["orientation"]) for one in turned] == [(33, 21, n) for n in range(1, 9)]
    assert read_in_node(node, [save_photo("WEBP", orientation=6)])[0]["orientation"] == 6


def test_photos_that_cannot_be_used_are_refused_for_the_same_reason(node: Node) -> None:
    jpeg, png = save_photo("JPEG"), save_photo("PNG")
    scans = jpeg[: jpeg.index(b"\xff\xda")] + jpeg[jpeg.index(b"\xff\xda") : -2] * 120 + b"\xff\xd9"
    giant = png[:16] + (20_000).to_bytes(4, "big") * 2 + png[24:]
    photos = {
        "empty": b"",
        "not_an_image": b"a list of fruit, written down",
        "unsupported": b"%PDF-1.7" + bytes(64),
        "truncated": jpeg[: len(jpeg) // 2],
        "too_many_pixels": giant,
        "too_many_scans": scans,
        "no_pixels": png[:16] + bytes(8) + png[24:],
    }
    found = read_in_node(node, [*photos.values(), png[: len(png) // 2]])
    assert [one.get("fault") for one in found] == [*photos, "truncated"]


def test_no_bytes_upset_it(node: Node) -> None:
    rng = np.random.default_rng(4)
    seeds = [save_photo(kind, orientation=6) for kind in ("JPEG", "PNG", "WEBP")]
    seeds += [save_photo(kind) for kind in ("GIF", "BMP", "TIFF")]
    mutants = []
    for i in range(1500):
        photo = bytearray(seeds[i % len(seeds)])
        for at in rng.integers(0, min(len(photo), 200), rng.integers(1, 9)):
            photo[at] = rng.integers(0, 256)
        mutants.append(bytes(photo[: rng.integers(1, len(photo) + 1)]) if rng.random() < 0.4 else bytes(photo))
    found = read_in_node(node, mutants)
    for photo, one in zip(mutants, found, strict=True):
        if one.get("format") in {"jpeg", "png"}:  # where both can say how large it is, they say the same
            try:
                header = read_header(photo)
            except PhotoError:
                continue
            sides = {header.width_px, header.height_px}
            assert {one["width"], one["height"]} == sides


# --- tables ---------------------------------------------------------------------------------------------------------

WRITE = 'import { writeCsv } from "./csv.js"; console.log(JSON.stringify(writeCsv(given)));'


def test_a_table_holds_what_it_was_given_and_no_formula(node: Node) -> None:
    files = [
        'a, "b".jpg',
        "=HYPERLINK(1).jpg",
        "+1.jpg",
        "-1.jpg",
        "@x.jpg",
        " =x.jpg",
        "\tx.jpg",
        "苹果\n2.jpg",
        "plain.jpg",
    ]
    one = {"label": "Kiwi", "score": 0.5, "name_en": None, "name_zh": "猕猴桃", "plu": "4030"}
    answers = [
        {
            **one,
            "file": file,
            "answer": one,
            "sure": True,
            "unknown": False,
            "top": [one],
            "shortlist": [one, one],
            "error": None,
        }
        for file in files
    ]
    text = node.run(WRITE, answers)
    assert text.startswith("\ufeff")
    rows = list(csv.DictReader(io.StringIO(text[1:], newline="")))
    assert [row["file"] for row in rows] == [file if file[0] in "a苹p" else f"'{file}" for file in files]
    assert {(row["answer"], row["answer_score"], row["shortlist"]) for row in rows} == {("Kiwi", "0.5", "Kiwi; Kiwi")}


def test_both_languages_say_the_same_things() -> None:
    english, chinese = (json.loads(list_page_files()[f"words.{language}.json"]) for language in ("en", "zh"))
    assert english.keys() == chinese.keys()
    for key, text in english.items():
        places = [{part.split("}")[0] for part in one.split("{")[1:]} for one in (text, chinese[key])]
        assert places[0] == places[1] or key.endswith("_one"), key


# --- small JPEG -----------------------------------------------------------------------------------------------------

REDUCE = """
import { decodeReduced } from "./jpeg.js";
console.log(JSON.stringify(given.map(({ photo, divisor }) => {
  const found = decodeReduced(Uint8Array.from(Buffer.from(photo, "base64")), divisor);
  return found && { ...found, pixels: Buffer.from(found.pixels).toString("base64") };
})));
"""


def draw_scene(rng: np.random.Generator, width: int, height: int) -> Image.Image:
    """Slopes, edges and grain, as far as black and white, where clipping shows."""
    y, x = np.mgrid[:height, :width]
    waves = [np.sin(x / rng.uniform(2, 30) + y / rng.uniform(2, 30) + c) for c in range(3)]
    levels = 128 + 150 * np.stack(waves, -1) + rng.normal(0, 20, (height, width, 3))
    return Image.fromarray(levels.clip(0, 255).astype(np.uint8))


def test_a_small_jpeg_is_libjpegs_to_the_bit(node: Node) -> None:
    from pomona.photo import decode_photo

    rng = np.random.default_rng(5)
    cases: list[tuple[bytes, int, str]] = []
    for sampling in ("4:4:4", "4:2:2", "4:2:0"):
        for divisor in (2, 4, 8):
            for progressive in (False, True):
                width, height = (int(side) for side in rng.integers(64, 140, 2))
                file, quality = io.BytesIO(), int(rng.integers(30, 98))
                restart = {"restart_marker_blocks": 3} if rng.random() < 0.3 else {}
                scene = draw_scene(rng, width, height)
                scene.save(file, "JPEG", quality=quality, subsampling=sampling, progressive=progressive, **restart)
                cases.append((file.getvalue(), divisor, f"{sampling} 1/{divisor} {width}x{height} {progressive}"))
    for divisor in (2, 4, 8):
        file = io.BytesIO()
        draw_scene(rng, 97, 71).convert("L").save(file, "JPEG", quality=80)
        cases.append((file.getvalue(), divisor, f"grey 1/{divisor}"))
    given = [{"photo": base64.b64encode(photo).decode(), "divisor": divisor} for photo, divisor, _ in cases]
    for (photo, divisor, name), found in zip(cases, node.run(REDUCE, given), strict=True):
        shortest = min(Image.open(io.BytesIO(photo)).size)
        wanted = decode_photo(photo, at_least_px=shortest // divisor)
        got = np.frombuffer(base64.b64decode(found["pixels"]), np.uint8).reshape(found["height"], found["width"], 3)
        np.testing.assert_array_equal(got, wanted, err_msg=name)


def test_a_small_jpeg_with_bytes_missing_inside_is_refused(node: Node) -> None:
    file = io.BytesIO()
    draw_scene(np.random.default_rng(7), 120, 120).save(file, "JPEG", quality=90)
    photo = file.getvalue()
    start = photo.index(b"\xff\xda") + 20
    holed = photo[: start + 300] + photo[start + 900 :]
    script = REDUCE.replace("const found =", "let found; try { found =").replace(
        "return found", "} catch (e) { return e.fault; } return found"
    )
    assert node.run(script, [{"photo": base64.b64encode(holed).decode(), "divisor": 2}]) == ["corrupt"]


def test_a_jpeg_of_another_kind_is_left_to_the_browser(node: Node) -> None:
    file = io.BytesIO()
    draw_scene(np.random.default_rng(6), 64, 64).convert("CMYK").save(file, "JPEG")
    cut = save_photo("JPEG")[:200]
    given = [
        {"photo": base64.b64encode(photo).decode(), "divisor": 2} for photo in (file.getvalue(), cut, b"\xff\xd8\xff")
    ]
    assert node.run(REDUCE, given) == [None, None, None]
