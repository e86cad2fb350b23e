"""Speed and looks of the rendered photos.

In: nothing, or `--sheet PATH`. Out: photos a second on one core, a line a kind, and a dated JSON; or a contact sheet.
Why: the demo must not keep anybody waiting, and a person must name each kind at a glance.
"""

from __future__ import annotations

import io
import resource
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING

from PIL import Image, ImageDraw, ImageFont

from pomona.samples import KINDS, SampleOptions, render_photo, write_samples
from process import write_results

if TYPE_CHECKING:
    import numpy as np

N_PHOTOS, SIZE_PX = 20, 224
SHEET_LIMIT_BYTES = 250_000


def encode_photo(photo: np.ndarray[tuple[int, ...], np.dtype[np.uint8]]) -> int:
    stream = io.BytesIO()
    Image.fromarray(photo).save(stream, "JPEG", quality=85)
    return stream.tell()


def time_kinds() -> dict[str, dict[str, float]]:
    """Photos a second with JPEG encoding, by the clock and by processor time, which a busy machine blurs less."""
    for seed in range(12):
        render_photo(KINDS[0], seed=seed, size_px=SIZE_PX)
    table = {}
    for kind in KINDS:
        wall, busy = time.perf_counter(), time.process_time()
        for seed in range(N_PHOTOS):
            encode_photo(render_photo(kind, seed=seed, size_px=SIZE_PX))
        wall, busy = time.perf_counter() - wall, time.process_time() - busy
        table[kind.name] = {"photos_per_s": N_PHOTOS / wall, "photos_per_cpu_s": N_PHOTOS / busy}
        print(f"{kind.name:12} {N_PHOTOS / wall:6.1f} photos/s  {N_PHOTOS / busy:6.1f} photos per CPU second")
    return table


def time_folders() -> dict[str, float]:
    """Seconds for the demo's 480 photos with one and two workers, start-up included."""
    seconds = {}
    for n_workers in (1, 2):
        with tempfile.TemporaryDirectory() as folder:
            start = time.perf_counter()
            write_samples(Path(folder) / "fruit", SampleOptions(n_workers=n_workers))
            seconds[f"{n_workers}_workers"] = time.perf_counter() - start
        print(f"480 photos with {n_workers} workers: {seconds[f'{n_workers}_workers']:.1f} s")
    return seconds


def run_bench() -> None:
    table, folders = time_kinds(), time_folders()
    overall = {
        key: len(table) / sum(1 / line[key] for line in table.values()) for key in ("photos_per_s", "photos_per_cpu_s")
    }
    peak_mib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(f"overall {overall['photos_per_s']:.1f} photos/s, {overall['photos_per_cpu_s']:.1f} per CPU second")
    print(f"peak memory {peak_mib:.0f} MiB")
    rates = {"size_px": SIZE_PX, "kinds": table, "overall": overall}
    write_results("samples", {**rates, "seconds_for_480": folders, "peak_memory_mib": peak_mib})


def draw_sheet(path: Path) -> None:
    """Six photos of each of the demo's kinds, two kinds a row, named."""
    side, n_photos, head = 112, 6, 20
    sheet = Image.new("RGB", (2 * n_photos * side + 8, 6 * (side + head)), "white")
    pen, font = ImageDraw.Draw(sheet), ImageFont.load_default(14)
    for place, kind in enumerate(KINDS[:12]):
        left, top = (place % 2) * (n_photos * side + 8), (place // 2) * (side + head)
        pen.text((left + 4, top + 2), kind.name, fill="black", font=font)
        for number in range(n_photos):
            photo = render_photo(kind, seed=number + 1, size_px=2 * side)
            small = Image.fromarray(photo).resize((side, side), Image.Resampling.LANCZOS)
            sheet.paste(small, (left + number * side, top + head))
    path.parent.mkdir(parents=True, exist_ok=True)
    for quality in range(92, 30, -4):
        sheet.save(path, "JPEG", quality=quality, optimize=True)
        if path.stat().st_size <= SHEET_LIMIT_BYTES:
            break
    print(f"{path}: {path.stat().st_size} bytes")


if __name__ == "__main__":
    if sys.argv[1:2] == ["--sheet"] and len(sys.argv) == 3:
        draw_sheet(Path(sys.argv[2]))
    elif len(sys.argv) == 1:
        run_bench()
    else:
        sys.exit("usage: python bench/samples.py [--sheet PATH]")
