"""Whether any damage to a bundle goes unseen.

    python bench/damage.py [--bundle FOLDER ...] [--flips 1000] [--cuts 200]

Single bits are flipped, drawn evenly over the bits of each file, and files are cut, at lengths drawn evenly and at
those beside their ends; of manifests every bit is flipped, and every length tried. Each time the bundle has to be
refused with an error that names the file. The golden bundles of all formats are taken, and those that are named. Of a
file other than the manifest, what was damaged is compared by its hash: that is all that loading does with it.
"""

from __future__ import annotations

import argparse
import os
import random
import shutil
import tempfile
from pathlib import Path

from pomona.bundle import load_bundle, parse_manifest
from pomona.errors import BundleError
from pomona.files import MANIFEST_NAME
from process import ROOT, write_results

GOLDEN = ROOT / "tests" / "golden"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bundle", type=Path, nargs="*", default=[])
    parser.add_argument("--flips", type=int, default=1000)
    parser.add_argument("--cuts", type=int, default=200)
    options = parser.parse_args()
    rows = []
    for source in [*sorted(path for path in GOLDEN.glob("bundle-v?") if path.is_dir()), *options.bundle]:
        with tempfile.TemporaryDirectory() as scratch:
            folder = Path(scratch) / "bundle"
            folder.mkdir()
            for name in (MANIFEST_NAME, *parse_manifest(source).files):
                shutil.copyfile(source / name, folder / name)
            for path in sorted(folder.iterdir()):
                rows.append(damage(folder, path, options) | {"bundle": source.name, "file": path.name})
                print(rows[-1], flush=True)
    total = {kind: sum(row[kind] for row in rows) for kind in ("n_flips", "n_cuts")}
    unseen = [one for row in rows for one in row["unseen"]]
    print(f"{total}, unseen: {unseen}")
    write_results("damage", {**total, "n_unseen": len(unseen), "rows": rows})


def damage(folder: Path, path: Path, options: argparse.Namespace) -> dict:
    """Flip and cut one file, and say what went unseen."""
    draw, whole = random.Random(path.name), path.read_bytes()  # noqa: S311 - damage is no secret
    n_bits, is_manifest = 8 * len(whole), path.name == MANIFEST_NAME
    flips = range(n_bits) if is_manifest and n_bits < 50_000 else draw.sample(range(n_bits), min(options.flips, n_bits))
    ends = {0, 1, len(whole) - 1, len(whole) - 2}
    cuts = set(range(len(whole))) if is_manifest else ends | {draw.randrange(len(whole)) for _ in range(options.cuts)}
    unseen = []
    with path.open("r+b") as stream:
        for bit in flips:
            at, value = bit // 8, whole[bit // 8] ^ 1 << bit % 8
            os.pwrite(stream.fileno(), bytes([value]), at)
            if not is_refused(folder, path.name):
                unseen.append({"bit": bit})
            os.pwrite(stream.fileno(), whole[at : at + 1], at)
    for size in cuts:
        path.write_bytes(whole[:size])
        if not is_refused(folder, path.name):
            unseen.append({"cut": size})
    path.write_bytes(whole)
    load_bundle(folder)
    return {"n_flips": len(flips), "n_cuts": len(cuts), "unseen": unseen}


def is_refused(folder: Path, name: str) -> bool:
    """Whether loading says that this file is damaged."""
    try:
        load_bundle(folder)
    except BundleError as error:
        return name in str(error)
    return False


if __name__ == "__main__":
    main()
