"""How long it takes to teach a finished recogniser a class, and to let it forget one, on real photos.

    python bench/teach.py [--effort fast] [--repeats 5] [--photos 20]

Trains on 80 of the 81 classes of the Grocery Store photos, then adds the last one and removes it again, over and over;
a whole process each time, as a user would. "fit" is the update of the head and nothing else; "features" is the network
pass over the new photos. Minima over the repeats: the machine may be shared. The state is checked by what the taught
recogniser and one trained on all 81 classes say of the val photos of the class.

Then what a service does with ten photos of several classes that wait, five of them of a class that is new: features,
the fit of all at once, and the comparison on the photos kept apart, in one process that is warm, as a service is; and
what confirming it takes. "network" is the bare network on the same ten photos, the floor under "features".
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from pathlib import Path

from process import POMONA, ROOT, measure, write_results

GROCERY = Path(os.environ.get("POMONA_SHARED", ROOT.parent / "shared")) / "data" / "grocery"
TAUGHT = "Fruit/Apple/Golden-Delicious"
PROPOSE = """
import json, sys, time
from pathlib import Path
from pomona.bundle import load_bundle
from pomona.inbox import open_inbox
from pomona.learnt import load_learnt
from pomona.photo import read_photo_bytes
from pomona.proposal import compute_features, confirm_proposal, load_held_out, make_proposal
from pomona.versions import keep_version

run, taught, photos = Path(sys.argv[1]), sys.argv[2], [Path(name) for name in sys.argv[3:]]
seconds = {}

def clock(name, step):
    started_s = time.perf_counter()
    result = step()
    seconds[name] = min(time.perf_counter() - started_s, seconds.get(name, 1e9))
    return result

bundle = load_bundle(run)
bundle.engine
learnt = load_learnt(bundle)
held_out = clock("held out", lambda: load_held_out(bundle))
shares = []
with open_inbox(run) as inbox:
    for start in range(0, len(photos), 10):
        some = photos[start : start + 10]
        for number, path in enumerate(some):
            inbox.add(path.read_bytes(), taught if number % 2 else path.parent.name)
        waiting = inbox.list_photos("waiting")
        pixels = [bundle.preprocessing.read(path.read_bytes()) for path in some]
        clock("network", lambda: list(bundle.engine.stream(len(pixels), lambda i: pixels[i])))
        proposal = clock("proposal", lambda: make_proposal(bundle, learnt, waiting, held_out))
        clock("without features", lambda: make_proposal(bundle, learnt, waiting, held_out))
        left_out = make_proposal(bundle, learnt, waiting, None)
        clock("left out", lambda: make_proposal(bundle, learnt, waiting, None))
        shares.append([[made.before.value, made.after.value] for made in (proposal, left_out)])
        if start + 10 < len(photos):
            for one in waiting:
                inbox.withdraw(one.sha256)
    keep_version(run)
    _, version = clock("confirm", lambda: confirm_proposal(bundle, proposal, inbox))
print(json.dumps({"least_s": seconds, "shares": shares, "n_held_out": len(held_out.hashes), "version": version.number}))
"""
STEPS = ("load", "read", "features", "fit", "save")


def link_classes(folder: Path, left_out: str) -> Path:
    """Tree of links to all class folders of train and val but one."""
    for part in ("train", "val"):
        for photo in (GROCERY / part).rglob("*.jpg"):
            name = photo.parent.relative_to(GROCERY / part)
            link = folder / part / name
            if name.as_posix() != left_out and not link.exists():
                link.parent.mkdir(parents=True, exist_ok=True)
                link.symlink_to(photo.parent, target_is_directory=True)
    return folder


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--effort", default="fast")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--photos", type=int, default=20)
    options = parser.parse_args()
    photos = [str(path) for path in sorted((GROCERY / "train" / TAUGHT).glob("*.jpg"))[: options.photos]]
    held_out = [str(path) for path in sorted((GROCERY / "val" / TAUGHT).glob("*.jpg"))]
    with tempfile.TemporaryDirectory() as scratch:
        work = Path(scratch)
        environment = {**os.environ, "POMONA_CACHE": str(work / "cache")}
        data, run = link_classes(work / "grocery-80", TAUGHT), work / "run"
        train = [*POMONA, "train", str(data), "--output", str(run), "--effort", options.effort, "--json"]
        trained = measure(train, environment)
        added, removed = [], []
        for _ in range(options.repeats):
            added.append(measure([*POMONA, "add-class", str(run), TAUGHT, *photos, "--json"], environment))
            removed.append(measure([*POMONA, "remove-class", str(run), TAUGHT, "--json"], environment))
        measure([*POMONA, "add-class", str(run), TAUGHT, *photos, "--json"], environment)
        n_right = count_right(run, held_out, environment)
        new = sorted((GROCERY / "val").rglob("*.jpg"))[:: max(1, 296 // (10 * options.repeats))][: 10 * options.repeats]
        measure([*POMONA, "remove-class", str(run), TAUGHT, "--json"], environment)
        propose = [sys.executable, "-c", PROPOSE, str(run), TAUGHT, *map(str, new)]
        proposed = measure(propose, environment)["result"]
        sizes = {path.name: path.stat().st_size for path in sorted((work / "cache" / "learnt").rglob("*.np?"))}
    print(f"trained on {added[0]['result']['n_learnt'] - len(photos)} photos, {trained['result']['n_classes']} classes")
    print(f"{'milliseconds':<16}{'add':>8}{'remove':>8}")
    rows = {step: [least(runs, step) for runs in (added, removed)] for step in STEPS}
    rows["whole command"] = [min(run["wall_s"] for run in runs) for runs in (added, removed)]
    for step, seconds in rows.items():
        print(f"{step:<16}" + "".join(f"{1000 * one:8.0f}" for one in seconds))
    print(f"val photos of {TAUGHT} that are right: {n_right} of {len(held_out)}")
    for step, seconds in proposed["least_s"].items():
        print(f"ten photos that wait: {step:<17}{1000 * seconds:8.0f}")
    print(f"train: save {trained['result']['seconds']['save']:.2f} s; kept: {sum(sizes.values()) / 1e6:.0f} MB")
    write_results(
        "teach",
        {
            "options": vars(options),
            "least_s": rows,
            "train": trained,
            "add": added,
            "remove": removed,
            "propose": proposed,
            "n_right": n_right,
            "n_held_out": len(held_out),
            "kept_bytes": sizes,
        },
    )


def least(runs: list[dict], step: str) -> float:
    """Shortest time of a step; 0 where there is none."""
    return min(run["result"]["seconds"].get(step, 0.0) for run in runs)


def count_right(run: Path, photos: list[str], environment: dict[str, str]) -> int:
    """Photos that are answered with the class that was taught."""
    import json
    import subprocess

    command = [*POMONA, "predict", str(run), *photos, "--json"]
    done = subprocess.run(command, env=environment, capture_output=True, check=True)
    return sum(answer["label"] == TAUGHT.rpartition("/")[2] for answer in json.loads(done.stdout))


if __name__ == "__main__":
    main()
