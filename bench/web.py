"""The page's own recogniser against the bundle, in Chromium, on real photos.

    python bench/web.py RUN [--runtime FOLDER_OR_TGZ] [--photos N]

parity   each photo of the val part of grocery, bytes to answer, through the exported page and through the bundle:
         pixels, square, probabilities, strangeness, heat map, and what is said.
kinds    the same photo saved in every way that a camera or a program saves one: how far pixels are off, by kind.
time     a photo at a time in the browser, beside the bundle on one thread in the same minute; the size of the folder.

RUN is a run on grocery. A dated JSON is kept in bench/results. The machines are shared: times are medians, and a ratio
to the bundle's own is kept beside them.
"""

from __future__ import annotations

import argparse
import base64
import io
import json
import os
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from pomona.bundle import load_bundle
from pomona.comparison import compare_answers
from pomona.errors import PhotoError
from pomona.export.browser import write_web
from pomona.export.browser_runner import BrowserRunner, open_page
from pomona.export.trace import Trace, follow_bundle
from pomona.photo import decode_photo
from process import ROOT, tabulate, write_results

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pomona.bundle import Bundle

SHARED = Path(os.environ.get("POMONA_SHARED", ROOT.parent / "shared"))
DATA = SHARED / "data"
TIE_BAND = 0.2
"""A network in 8 bits: each runtime rounds at other places."""

TIME = """async (content) => {
  const bytes = Uint8Array.from(atob(content), (sign) => sign.charCodeAt(0));
  const begun = performance.now();
  const [found] = await globalThis.recogniser.predict([new Blob([bytes])], {});
  return [performance.now() - begun, found];
}"""


def list_photos(n: int | None) -> list[tuple[Path, int]]:
    """Photos of the val part, with the number of their class by its path."""
    rows = (DATA / "grocery" / "val.txt").read_text("utf-8").splitlines()
    photos = [(DATA / "grocery" / row.split(",")[0].strip(), int(row.split(",")[1])) for row in rows if row.strip()]
    return photos[:: max(1, len(photos) // n)][:n] if n else photos


def differ(found: Any, wanted: Any) -> float:
    if np.shape(found) != np.shape(wanted):
        return float("inf")
    return float(np.abs(np.asarray(found, np.float64) - np.asarray(wanted, np.float64)).max())


def check_parity(bundle: Bundle, runner: BrowserRunner, photos: Sequence[tuple[Path, int]]) -> dict[str, Any]:
    """What the page and the bundle make of the same files."""
    contents = [path.read_bytes() for path, _ in photos]
    off: dict[str, list[float]] = {"decode": [], "square": [], "probabilities": [], "unknown": [], "heat_map": []}
    same = {"label": 0, "decided": 0, "decided_label": 0, "answer": 0, "sure": 0, "unknown": 0, "shortlist": 0}
    right: list[tuple[bool, bool]] = []
    pairs = zip(follow_bundle(bundle, contents), runner.follow(contents, shows_stages=True), strict=True)
    for (path, _), (wanted, found) in zip(photos, pairs, strict=True):
        assert isinstance(wanted, Trace)
        assert isinstance(found, Trace)
        off["decode"].append(differ(found.pixels, wanted.pixels))
        off["square"].append(differ(found.square, wanted.square))
        for name in ("probabilities", "unknown"):
            off[name].append(differ(found.outputs[name], wanted.outputs[name]))
        reach = float(np.abs(wanted.outputs["heat_map"]).max())
        off["heat_map"].append(differ(found.outputs["heat_map"], wanted.outputs["heat_map"]) / reach)
        said = [
            bundle.speaker.speak("", one.outputs["probabilities"], float(one.outputs["unknown"]), n_top=5)
            for one in (wanted, found)
        ]
        first, second = np.sort(wanted.outputs["probabilities"])[-1:-3:-1]
        is_decided, is_same = bool(first - second >= TIE_BAND), said[0].label == said[1].label
        same["label"] += is_same
        same["decided"] += is_decided
        same["decided_label"] += is_decided and is_same
        for name, read in {
            "answer": lambda one: one.answer.label,
            "sure": lambda one: one.sure,
            "unknown": lambda one: one.unknown,
            "shortlist": lambda one: {answer.label for answer in one.shortlist},
        }.items():
            same[name] += read(said[0]) == read(said[1])
        truth = path.parent.name
        right.append((said[0].label == truth, said[1].label == truth))
    before, after = (np.array(one) for one in zip(*right, strict=True))
    paired = compare_answers(before, after, np.array([str(i) for i in range(len(right))]))
    return {
        "n": len(photos),
        "off": {name: {"largest": max(values), "mean": float(np.mean(values))} for name, values in off.items()},
        "n_decode_exact": sum(value == 0 for value in off["decode"]),
        "n_square_exact": sum(value == 0 for value in off["square"]),
        "same": same,
        "right": {"bundle": float(before.mean()), "page": float(after.mean()), "gain": paired.gain},
    }


def encode_kinds(photo: Path) -> dict[str, bytes]:
    """One photo, large and small, in many ways."""
    small = Image.open(photo).convert("RGB")
    large = small.resize((1801, 1333), Image.Resampling.LANCZOS)
    turned = Image.Exif()
    turned[274] = 6
    alpha = small.copy()
    alpha.putalpha(Image.linear_gradient("L").resize(small.size))
    deep = Image.fromarray(np.asarray(small.convert("L")).astype(np.uint16) * 257)
    ways: dict[str, tuple[Image.Image, str, dict[str, Any]]] = {
        "JPEG, small": (small, "JPEG", {"quality": 90}),
        "JPEG, at 1/2": (large, "JPEG", {"quality": 90}),
        "JPEG, at 1/2, colours whole": (large, "JPEG", {"quality": 90, "subsampling": 0}),
        "JPEG, at 1/2, colours halved across": (large, "JPEG", {"quality": 90, "subsampling": 1}),
        "JPEG, at 1/2, progressive": (large, "JPEG", {"quality": 90, "progressive": True}),
        "JPEG, at 1/2, turned": (large, "JPEG", {"quality": 90, "exif": turned}),
        "JPEG, at 1/2, grey": (large.convert("L"), "JPEG", {"quality": 90}),
        "JPEG, CMYK": (large.convert("CMYK"), "JPEG", {"quality": 90}),
        "PNG": (small, "PNG", {}),
        "PNG, turned": (small, "PNG", {"exif": turned}),
        "PNG, transparent": (alpha, "PNG", {}),
        "PNG, palette": (small.quantize(64), "PNG", {}),
        "PNG, 16-bit grey": (deep, "PNG", {}),
        "WebP": (small, "WEBP", {"quality": 85}),
        "WebP, turned": (small, "WEBP", {"quality": 85, "exif": turned}),
        "GIF": (small, "GIF", {}),
        "BMP": (small, "BMP", {}),
        "AVIF": (small, "AVIF", {"quality": 80}),
    }
    found = {}
    for name, (picture, kind, settings) in ways.items():
        file = io.BytesIO()
        picture.save(file, kind, **settings)
        found[name] = file.getvalue()
    return found


def check_kinds(bundle: Bundle, runner: BrowserRunner, files: dict[str, bytes]) -> dict[str, Any]:
    """How far pixels are off, of 255, at most and on average."""
    found = {}
    for (name, content), trace in zip(
        files.items(), runner.follow(list(files.values()), shows_stages=True), strict=True
    ):
        if isinstance(trace, PhotoError):
            found[name] = {"fault": trace.fault}
            continue
        wanted = decode_photo(content, at_least_px=bundle.preprocessing.decode_px)
        square = bundle.preprocessing.apply(wanted)
        found[name] = {"decode": differ(trace.pixels, wanted), "square": differ(trace.square, square)}
    return found


def time_photos(bundle: Bundle, folder: Path, files: dict[str, bytes], n_times: int) -> dict[str, Any]:
    """Milliseconds from bytes to an answer, one at a time."""
    alone = load_bundle(bundle.folder, n_workers=1)
    times: dict[str, dict[str, float]] = {}
    with open_page(folder) as page:
        for name, content in files.items():
            text = base64.b64encode(content).decode()
            in_page = [page.evaluate(TIME, text)[0] for _ in range(n_times)]
            in_bundle = []
            for _ in range(n_times):
                begun_s = time.perf_counter()
                list(alone.predict([content]))
                in_bundle.append((time.perf_counter() - begun_s) * 1000)
            medians = float(np.median(in_page)), float(np.median(in_bundle))
            times[name] = {"page_ms": medians[0], "bundle_ms": medians[1], "ratio": medians[0] / medians[1]}
    return times


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("run", type=Path)
    parser.add_argument("--runtime", type=Path)
    parser.add_argument("--photos", type=int)
    options = parser.parse_args()
    bundle = load_bundle(options.run)
    photos = list_photos(options.photos)
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        write_web(bundle, folder, name=options.run.name, runtime=options.runtime)
        sizes = {str(one.relative_to(folder)): one.stat().st_size for one in folder.rglob("*") if one.is_file()}
        runner = BrowserRunner.of(bundle, folder)
        files = encode_kinds(photos[0][0])
        parity = check_parity(bundle, runner, photos)
        kinds = check_kinds(bundle, runner, files)
        timed = {name: files[name] for name in ("JPEG, small", "JPEG, at 1/2", "JPEG, at 1/2, progressive", "PNG")}
        times = time_photos(bundle, folder, timed, 9)
    content = {
        "run": options.run.name,
        "precision": bundle.manifest.embedding.precision,
        "parity": parity,
        "kinds": kinds,
        "times": times,
        "bytes": {"all": sum(sizes.values()), **dict(sorted(sizes.items(), key=lambda one: -one[1])[:4])},
    }
    write_results("web", content)
    same, n = parity["same"], parity["n"]
    decided = f"{same['decided_label']} of {same['decided']}"
    print(json.dumps(kinds, indent=1))
    print(
        tabulate(
            [
                ("Pixels decoded, photos exact", f"{n} of {n}", f"{parity['n_decode_exact']} of {n}"),
                ("Squares exact", f"{n} of {n}", f"{parity['n_square_exact']} of {n}"),
                ("Labels outside the tie band", "100 %", decided),
                ("Labels, all", "", f"{same['label']} of {n}"),
                ("Answer / shortlist the same", "", f"{same['answer']} / {same['shortlist']} of {n}"),
                ("Right, page less bundle", ">= -0.3 points", f"{100 * parity['right']['gain']:+.1f}"),
                ("Probability, largest difference", "", f"{parity['off']['probabilities']['largest']:.3f}"),
                ("Folder", "", f"{content['bytes']['all'] / 1e6:.1f} MB"),
                *((f"Time, {name}", "", f"{one['page_ms']:.0f} ms") for name, one in times.items()),
            ]
        )
    )


if __name__ == "__main__":
    main()
