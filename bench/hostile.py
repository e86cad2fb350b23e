"""Whether hostile photos do harm, and what the largest legal ones cost.

    python bench/hostile.py [--numbers 100000] [--parts 20] [--folder FOLDER]   mutated photos, and bombs
    python bench/hostile.py --limits                                           seconds and memory by format and size

Photos are those of tests/mutated_photos.py: a number is always the same one. Each part is a process of its own; a part
whose results are whole is not run again, so that a stopped bench goes on where it was. Where a process dies, the number
that killed it is noted and the part goes on behind it. Seconds are of the processor, so that other work on the machine
is not counted; memory is the most that was resident while the photo was read.

The limits: photos of one colour and photos of noise in every format, at several sizes, each read in a fresh process,
whole and, as a recogniser of 320 pixels does it, with `at_least_px` 640. What is left is what the interpreter takes.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections import Counter
from pathlib import Path

import numpy as np
from PIL import Image

from process import ROOT, write_results

CHILD = ROOT / "tests" / "mutated_photos.py"
MAX_MB, MAX_S = 512, 1.0
MEGAPIXELS = (12, 24, 50, 60)
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "MALLOC_ARENA_MAX": "2"}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--numbers", type=int, default=100_000)
    parser.add_argument("--parts", type=int, default=20)
    parser.add_argument("--folder", type=Path, default=Path(tempfile.gettempdir()) / "pomona-hostile")
    parser.add_argument("--limits", action="store_true")
    options = parser.parse_args()
    options.folder.mkdir(parents=True, exist_ok=True)
    if options.limits:
        rows = measure_limits(options.folder)
        write_results("hostile-limits", {"rows": rows})
        return
    size = -(-options.numbers // options.parts)
    rows, deaths = [], []
    for part in range(options.parts):
        first, count = part * size, min(size, options.numbers - part * size)
        found, died = run_part(options.folder / f"{first}-{count}.jsonl", first, count)
        rows += found
        deaths += died
        print(f"{first + count:,} of {options.numbers:,}: {sum_up(rows, deaths)}", flush=True)
    bombs, died = run_child(options.folder / "bombs.jsonl", "bombs", "16")
    for row in bombs:
        print(f"{row['seed']:<45} {row['outcome']:<16} {row['cpu_s']:6.2f} s {row['peak_mb']:6.0f} MB", flush=True)
    found = sum_up(rows, deaths) | {"bombs": sum_up(bombs, died), "each_bomb": bombs}
    write_results("hostile", {"options": {**vars(options), "folder": None}, **found})


def run_part(place: Path, first: int, count: int) -> tuple[list[dict], list[dict]]:
    """Rows of a range of numbers, and what killed a process."""
    done = place.with_suffix(".json")
    if not done.exists():
        rows, deaths, at = [], [], first
        while at < first + count:
            found, died = run_child(place, "numbers", str(at), str(first + count - at))
            rows += found
            deaths += died
            at = died[0]["number"] + 1 if died else first + count
        done.write_text(json.dumps([rows, deaths]))
    rows, deaths = json.loads(done.read_text())
    return rows, deaths


def run_child(place: Path, kind: str, *arguments: str) -> tuple[list[dict], list[dict]]:
    """Rows of one process, and where it died the number it died of."""
    place.unlink(missing_ok=True)
    done = subprocess.run([sys.executable, str(CHILD), kind, str(place), *arguments], env=ENVIRONMENT, check=False)
    lines = [json.loads(line) for line in place.read_text().splitlines()]
    place.unlink()
    died = [{"number": lines[-1], "status": done.returncode}] if done.returncode else []
    return [line for line in lines if isinstance(line, dict)], died


def sum_up(rows: list[dict], deaths: list[dict]) -> dict:
    """Counts, and the worst."""
    wrong = [row for row in rows if row["outcome"].startswith(("raised", "wrong"))]
    slow = [row for row in rows if row["cpu_s"] > MAX_S]
    large = [row for row in rows if row["peak_mb"] > MAX_MB]
    seconds = np.array([row["cpu_s"] for row in rows])
    return {
        "n": len(rows),
        "outcomes": dict(Counter(row["outcome"] for row in rows if row not in wrong).most_common()),
        "deaths": deaths,
        "wrong": wrong,
        "slow": slow,
        "large": large,
        "seconds": {
            "median": float(np.median(seconds)),
            "p999": float(np.quantile(seconds, 0.999)),
            "max": float(seconds.max()),
        },
        "max_mb": max(row["peak_mb"] for row in rows),
    }


# --- limits ---------------------------------------------------------------------------------------------------------


def measure_limits(folder: Path) -> list[dict]:
    """What legal photos cost, by format and size."""
    rows = []
    for megapixels in MEGAPIXELS:
        width = round((megapixels * 4e6 / 3) ** 0.5)
        height = int(megapixels * 1e6 // width)
        for name, path in write_photos(folder, width, height):
            for at_least_px in (0, 640):
                if at_least_px and "jpeg" not in name:
                    continue
                found, died = run_child(folder / "limit.jsonl", "files", str(at_least_px), str(path))
                row = {"name": name, "megapixels": megapixels, "at_least_px": at_least_px}
                row |= {key: found[0][key] for key in ("outcome", "bytes", "cpu_s", "peak_mb")} if found else died[0]
                rows.append(row)
                print(json.dumps(row), flush=True)
            path.unlink()
    return rows


def write_photos(folder: Path, width_px: int, height_px: int) -> list[tuple[str, Path]]:
    """Photos of one size in every format; each is written when it is its turn."""
    noise = np.random.default_rng(0).integers(0, 256, (height_px // 8, width_px // 8, 3), dtype=np.uint8)
    kinds: dict[str, tuple[str, str, dict]] = {
        "jpeg": ("RGB", "JPEG", {}),
        "jpeg 4:4:4": ("RGB", "JPEG", {"subsampling": 0}),
        "jpeg progressive": ("RGB", "JPEG", {"progressive": True}),
        "jpeg progressive 4:4:4": ("RGB", "JPEG", {"progressive": True, "subsampling": 0}),
        "jpeg cmyk progressive": ("CMYK", "JPEG", {"progressive": True}),
        "jpeg rotated": ("RGB", "JPEG", {"exif": note_orientation(6)}),
        "jpeg wide gamut": ("RGB", "JPEG", {"icc_profile": make_profile()}),
        "png": ("RGB", "PNG", {"compress_level": 1}),
        "png alpha": ("RGBA", "PNG", {"compress_level": 1}),
        "png palette": ("P", "PNG", {"compress_level": 1}),
        "png 16 bit": ("I;16", "PNG", {"compress_level": 1}),
        "webp": ("RGB", "WEBP", {"method": 0}),
        "webp lossless": ("RGBA", "WEBP", {"lossless": True, "method": 0, "quality": 0}),
        "gif": ("P", "GIF", {}),
        "tiff": ("RGB", "TIFF", {}),
        "tiff lzw": ("RGB", "TIFF", {"compression": "tiff_lzw"}),
        "tiff float": ("F", "TIFF", {"compression": "tiff_adobe_deflate"}),
        "bmp": ("RGB", "BMP", {}),
        "avif": ("RGB", "AVIF", {"speed": 10}),
        "heic": ("RGB", "HEIF", {}),
    }

    def write(name: str) -> Path:
        mode, kind, more = kinds[name]
        image = Image.fromarray(noise).resize((width_px, height_px), Image.Resampling.BICUBIC)
        image = convert(image, mode)
        path = folder / "limit.photo"
        if kind == "HEIF":
            from pillow_heif import from_pillow

            from_pillow(image).save(path, **more)
        else:
            image.save(path, kind, **more)
        return path

    return ((name, write(name)) for name in kinds)  # type: ignore[return-value]


def convert(image: Image.Image, mode: str) -> Image.Image:
    """The picture in a mode."""
    if mode == "P":
        return image.quantize(64, method=Image.Quantize.FASTOCTREE)
    if mode in {"I;16", "F"}:
        gray = np.asarray(image.convert("L"))
        return Image.fromarray(gray.astype(np.uint16) * 257 if mode == "I;16" else gray.astype(np.float32))
    return image.convert(mode)


def note_orientation(orientation: int) -> bytes:
    exif = Image.Exif()
    exif[274] = orientation
    return exif.tobytes()


def make_profile() -> bytes:
    """A profile that is not sRGB: that of the tests, with its gamma and primaries moved."""
    sys.path.insert(0, str(ROOT / "tests"))
    from test_photo import P3, build_profile, gamma_curve

    return build_profile(b"RGB ", gamma_curve(1.8), P3)


if __name__ == "__main__":
    main()
