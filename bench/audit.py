"""What `pomona check` finds, held against answer sheets, and what it costs.

    python bench/audit.py [--only SECTIONS] [--photos FOLDER] [--sizes N,...] [--readme]

copies  copies of seven kinds planted among the grocery photos: how many are found, and which pairs are false. What was
        not planted is drawn on a contact sheet, and must be judged by eye in bench/answers/grocery_pairs.csv.
labels  swapped labels among the grocery photos: how they rank, what is flagged, and what training without it gains.
groups  turntable frames that only the photos tell apart: how well the groups found are the varieties.
notes   odd and broken files, held against their bytes and against tests/answers/dirty_images.csv.
cost    the quick check beside the pass that computes the features, both from an empty cache, in one process.
growth  the full check of rendered photos whose features are cached, as a whole process: four shots of each scene, the
        first of all of it, the others of a part and in other light. They are rendered into `--photos`, where they
        stay, or into a temporary folder.

Everything planted is written down as CSV beside the photos before the audit sees them. Each section keeps a dated JSON
in bench/results; `--readme` writes the table of the newest ones into both READMEs.
"""

from __future__ import annotations

import argparse
import csv
import json
import math
import os
import shutil
import statistics
import sys
import tempfile
import time
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from planted import (
    COPY_KINDS,
    PlantedSwap,
    draw_pairs,
    hide_varieties,
    link_some,
    plant_copies,
    shoot_scenes,
    swap_labels,
    write_sheet,
)
from pomona.audit import audit_photos
from pomona.clock import Clock
from pomona.dataset import load_dataset
from pomona.effort import choose_precision, measure_machine, plan_embedding
from pomona.features import extract_features
from pomona.grouping import measure_gap
from pomona.label_doubts import DOUBT_DIM, SURE_SHARE, find_label_doubts, leave_one_out, to_probabilities
from pomona.parts import list_folds
from pomona.projection import project_vectors
from pomona.ridge import fit_ridge
from pomona.samples import SampleOptions, make_kinds, write_samples
from process import POMONA, ROOT, describe_machine, measure, read_newest, tabulate, write_readme_table, write_results

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from numpy.typing import NDArray

    from pomona.dataset import Dataset
    from pomona.features import Features
    from pomona.findings import Audit, SplitGap

SHARED = Path(os.environ.get("POMONA_SHARED", ROOT.parent / "shared"))
DATA = SHARED / "data"
JUDGED = ROOT / "bench" / "answers" / "grocery_pairs.csv"
TWINS = ROOT / "bench" / "answers" / "fruits360_varieties.csv"
DIRTY = ROOT / "tests" / "answers" / "dirty_images.csv"
RESULTS = ROOT / "bench" / "results"
N_SEEDS, N_PER_KIND = 3, 100
SWAP_SHARES, N_SWAP_SEEDS, N_FOLDS, N_FOLDS_USED = (0.05, 0.20), 5, 5, 3
RETRAINED = {
    "clean": "clean labels",
    "swapped": "swapped ones",
    "cleaned": "less what is flagged",
    "without_swapped": "less what was swapped",
    "relabelled": "as suggested",
}
N_COSTS = 3
GROWTH_SIZES, N_KINDS, N_SHOTS, GROWTH_PX = (2_000, 10_000, 100_000), 50, 4, 112
NOTES = ("animated", "cmyk", "16-bit", "alpha", "rotated")

Row = tuple[str, str, str]


def main() -> None:
    sections: dict[str, tuple[Callable[[Path, argparse.Namespace], dict], Callable[[dict], list[Row]]]] = {
        "copies": (measure_copies, show_copies),
        "labels": (measure_labels, show_labels),
        "groups": (measure_groups, show_groups),
        "notes": (measure_notes, show_notes),
        "cost": (measure_cost, show_cost),
        "growth": (measure_growth, show_growth),
    }
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default=",".join(sections))
    parser.add_argument("--photos", type=Path, help="where the rendered photos of growth are, or will stay")
    parser.add_argument("--sizes", default=",".join(map(str, GROWTH_SIZES)), help="numbers of photos of growth")
    parser.add_argument("--readme", action="store_true")
    parser.add_argument("--in-process", nargs="+", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.in_process:
        name, *arguments = options.in_process
        print(json.dumps({"cost": run_cost, "embed": run_embed}[name](*arguments)))
        return
    if not (DATA / "grocery").is_dir():
        sys.exit(f"wanted the photos in {DATA}; name that folder's parent in POMONA_SHARED")
    asked = [name for name in options.only.split(",") if name]
    if unknown := set(asked) - sections.keys():
        sys.exit(f"--only: wanted some of {', '.join(sections)}, got {', '.join(sorted(unknown))}")
    rows = []
    for name in asked:
        with tempfile.TemporaryDirectory() as scratch:
            content = sections[name][0](Path(scratch), options)
        write_results(f"audit-{name}", content)
        rows += sections[name][1](content)
    print(tabulate(rows))
    print(f"\nMeasured on {describe_machine()}.")
    if options.readme:
        rows = [row for name in sections for row in sections[name][1](read_newest(f"audit-{name}"))]
        day = max(read_newest(f"audit-{name}")["when"][:10] for name in ("copies", "growth"))
        write_readme_table("audit", f"{tabulate(rows)}\n\nMeasured {day}: {describe_machine()}.")


def extract(dataset: Dataset, effort: str = "fast") -> Features:
    return extract_features(dataset, plan_embedding(effort, precision=choose_precision(measure_machine())))


def judge(value: float, goal: float, *, at_most: bool = False) -> str:
    return "" if (value <= goal if at_most else value >= goal) else " **short of it**"


# --- copies -----------------------------------------------------------------------------------------------------------


def measure_copies(scratch: Path, _options: argparse.Namespace) -> dict:
    photos = DATA / "grocery" / "train"
    verdicts = read_verdicts()
    found: dict[str, list[int]] = {kind: [] for kind in COPY_KINDS}
    missed, others, n_pairs = [], [], []
    for seed in range(N_SEEDS):
        folder = scratch / f"copies-{seed}"
        planted = plant_copies(photos, folder, n_per_kind=N_PER_KIND, seed=seed)
        audit = audit_photos(extract(load_dataset(folder)), "quick")
        pairs = list_pairs(audit)
        for kind in COPY_KINDS:
            of_kind = [one for one in planted if one.kind == kind]
            lost = [one for one in of_kind if not is_found(pairs.get(frozenset((one.file_name, one.source))), kind)]
            found[kind].append(len(of_kind) - len(lost))
            missed += [(seed, kind, one.source, one.done) for one in lost]
        wanted = {frozenset((one.file_name, one.source)) for one in planted}
        source_of = {one.file_name: one.source for one in planted}
        others += [tuple(sorted(source_of.get(name, name) for name in pair)) for pair in pairs if pair not in wanted]
        n_pairs.append(len(pairs))
        shutil.rmtree(folder)
    judged = sorted(set(others))
    sheet = RESULTS / "audit-pairs.png"
    times = Counter(others)
    draw_pairs(sheet, ((photos / a, photos / b, f"{Path(a).name} {Path(b).name} x{times[a, b]}") for a, b in judged))
    if unknown := [pair for pair in judged if pair not in verdicts]:
        listed = "\n".join(f"{a},{b}" for a, b in unknown)
        sys.exit(
            f"{len(unknown)} pairs that were not planted are not judged: look at {sheet}, and say in {JUDGED}\n{listed}"
        )
    return {
        "n_seeds": N_SEEDS,
        "n_per_kind": N_PER_KIND,
        "found": found,
        "missed": missed,
        "n_pairs": n_pairs,
        "n_same_shot": sum(verdicts[pair] == "same" for pair in others),
        "n_false": sum(verdicts[pair] == "other" for pair in others),
        "n_distinct_same_shot": sum(verdicts[pair] == "same" for pair in judged),
        "false": [pair for pair in judged if verdicts[pair] == "other"],
    }


def read_verdicts() -> dict[tuple[str, str], str]:
    with JUDGED.open(newline="", encoding="utf-8") as stream:
        verdicts = {(row["first"], row["second"]): row["verdict"] for row in csv.DictReader(stream)}
    if bad := set(verdicts.values()) - {"same", "other"}:
        sys.exit(f"{JUDGED}: wanted same or other as verdict, got {', '.join(sorted(bad))}")
    return verdicts


def list_pairs(audit: Audit) -> dict[frozenset[str], str]:
    """Check by pair of names, of all that is reported as the same."""
    same = {"exact_duplicate", "same_pixels", "near_duplicate", "conflicting_label"}
    return {frozenset((one.name, one.other)): one.check for one in audit.findings if one.check in same}


def is_found(check: str | None, kind: str) -> bool:
    return check == "exact_duplicate" if kind == "exact" else check is not None


def show_copies(content: dict) -> list[Row]:
    n = content["n_seeds"] * content["n_per_kind"]
    rows = []
    for kind, counts in content["found"].items():
        goal = 1.0 if kind == "exact" else 0.97
        shown = "-" if kind == "combined" else f">= {goal:.0%}" if goal < 1 else "100 %"
        text = f"{sum(counts) / n:.1%} ({sum(counts)} of {n}; {min(counts)} to {max(counts)} a seed)"
        short = "" if kind == "combined" else judge(sum(counts) / n, goal)
        rows.append((f"Planted copies found, {kind}", shown, text + short))
    share = content["n_false"] / sum(content["n_pairs"])
    text = f"{share:.2%} ({content['n_false']} of {sum(content['n_pairs']):,}){judge(share, 0.005, at_most=True)}"
    rows.append(("False pairs among all that are reported", "<= 0.5 %", text))
    rows.append(("Photos of the set itself that are one shot, pairs", "-", str(content["n_distinct_same_shot"])))
    return rows


# --- labels -----------------------------------------------------------------------------------------------------------


def measure_labels(scratch: Path, _options: argparse.Namespace) -> dict:
    dataset = load_dataset(DATA / "grocery" / "train")
    ranked = [rank_swaps(dataset, scratch, share, seed) for share in SWAP_SHARES[:1] for seed in range(N_SEEDS)]
    features = extract(dataset)
    groups = audit_photos(features, "quick").dataset.groups
    return {"ranked": ranked, "retrained": retrain(features, groups)}


def rank_swaps(dataset: Dataset, scratch: Path, share: float, seed: int) -> dict:
    """Swap labels in a table, check it, and hold the ranking and the flags against what was swapped."""
    from sklearn.metrics import average_precision_score

    paths = ["/".join(path) for path in dataset.tree.paths]
    given = swap_labels(dataset.labels, len(paths), share, seed)
    lines = [
        PlantedSwap(str(photo.path), paths[photo.label], paths[label])
        for photo, label in zip(dataset.photos, given, strict=True)
    ]
    table = scratch / f"labels-{share:g}-{seed}.csv"
    write_sheet(table.with_name(f"{table.stem}-answers.csv"), [one for one in lines if one.label != one.planted_label])
    with table.open("w", newline="", encoding="utf-8") as stream:
        csv.writer(stream).writerows([("file_name", "label"), *((one.file_name, one.planted_label) for one in lines)])
    features = extract(load_dataset(table))
    audit = audit_photos(features, "full")
    planted = {one.file_name for one in lines if one.label != one.planted_label}
    photos, labels = features.dataset.photos, features.dataset.labels
    is_planted = np.array([str(photo.path) in planted for photo in photos])
    names = {one.name for one in audit.findings if one.check == "wrong_label" and one.flagged}
    is_flagged = np.array([photo.name in names for photo in photos])
    coordinates = project_vectors(features.vectors, DOUBT_DIM)
    shares = to_probabilities(leave_one_out(coordinates, labels, len(features.dataset.tree)), labels)
    doubt = 1 - shares[np.arange(len(labels)), labels]
    n_right = int((is_planted & is_flagged).sum())
    return {
        "share": share,
        "seed": seed,
        "n_swapped": len(planted),
        "average_precision": float(average_precision_score(is_planted, doubt)),
        "n_flagged": int(is_flagged.sum()),
        "precision": n_right / max(1, int(is_flagged.sum())),
        "recall": n_right / len(planted),
    }


def retrain(features: Features, groups: NDArray[np.str_]) -> list[dict]:
    """Accuracy on clean held-out groups after training on clean labels, swapped ones, and what is made of those.

    Beside leaving out what is flagged: leaving out just what was swapped, which nothing can know, and taking the labels
    that are suggested.
    """
    labels, n_classes = features.dataset.labels, len(features.dataset.tree)
    rows = []
    for fold, (fitted, held_out) in enumerate(list_folds(labels, groups, seed=0, n_folds=N_FOLDS)[:N_FOLDS_USED]):
        vectors = features.vectors[fitted]
        coordinates = project_vectors(vectors, DOUBT_DIM)

        def train(given: NDArray[np.intp], kept: NDArray[np.bool_], fitted=fitted, held_out=held_out) -> float:
            present, numbers = np.unique(given[kept], return_inverse=True)
            inner = list_folds(numbers, groups[fitted][kept], seed=0)
            head, _, _ = fit_ridge(features.vectors[fitted[kept]], numbers, len(present), inner)
            guesses = present[head.predict_proba(features.vectors[held_out]).argmax(axis=1)]
            return float((guesses == labels[held_out]).mean())

        every = np.ones(len(fitted), bool)
        clean = train(labels[fitted], every)
        for share in SWAP_SHARES:
            for seed in range(N_SWAP_SEEDS):
                given = swap_labels(labels[fitted], n_classes, share, 100 * fold + seed)
                kept = every.copy()
                doubts = find_label_doubts(coordinates, given, n_classes)
                sure = [doubt for doubt in doubts if doubt.share < SURE_SHARE]
                kept[[doubt.row for doubt in sure]] = False
                suggested = given.copy()
                suggested[[doubt.row for doubt in sure]] = [doubt.suggested for doubt in sure]
                is_right = given == labels[fitted]
                rows.append(
                    {
                        "share": share,
                        "seed": seed,
                        "fold": fold,
                        "n_held_out": len(held_out),
                        "n_left_out": int((~kept).sum()),
                        "n_right_left_out": int((~kept & is_right).sum()),
                        "clean": clean,
                        "swapped": train(given, every),
                        "cleaned": train(given, kept),
                        "without_swapped": train(given, is_right),
                        "relabelled": train(suggested, every),
                    }
                )
                print(rows[-1], file=sys.stderr)
    return rows


def show_labels(content: dict) -> list[Row]:
    rows = []
    for share in SWAP_SHARES[:1]:
        some = [one for one in content["ranked"] if one["share"] == share]
        least = min(one["average_precision"] for one in some)
        rows.append(
            (
                f"{share:.0%} of labels swapped: average precision of the ranking",
                ">= 0.75",
                show_range(some, "average_precision") + judge(least, 0.75),
            )
        )
        text = f"{show_range(some, 'precision')}; {show_range(some, 'recall')}"
        rows.append((f"{share:.0%} swapped: precision and recall of what is flagged", "-", text))
    for share in SWAP_SHARES:
        some = [one for one in content["retrained"] if one["share"] == share]
        means = {name: statistics.mean(one[name] for one in some) for name in RETRAINED}
        listed = ", ".join(f"{what} {means[name]:.3f}" for name, what in RETRAINED.items())
        for name, what in (("cleaned", "leaving out returns"), ("relabelled", "taking what is suggested returns")):
            by_seed = sorted(
                recovered([one for one in some if one["seed"] == seed], name) for seed in range(N_SWAP_SEEDS)
            )
            back = recovered(some, name)
            text = f"{back:.0%} ({by_seed[0]:.0%} to {by_seed[-1]:.0%} a seed)"
            is_goal = name == "cleaned"
            text += judge(back, 0.8) if is_goal else ""
            rows.append(
                (f"{share:.0%} swapped: share of the lost accuracy that {what}", ">= 80 %" if is_goal else "-", text)
            )
        rows.append((f"{share:.0%} swapped: accuracy on clean groups held out", "-", listed))
    return rows


def show_range(rows: Sequence[dict], name: str) -> str:
    values = sorted(row[name] for row in rows)
    return f"{statistics.mean(values):.3f} ({values[0]:.3f} to {values[-1]:.3f})"


def recovered(rows: Sequence[dict], name: str) -> float:
    clean, swapped, after = (statistics.mean(row[key] for row in rows) for key in ("clean", "swapped", name))
    return (after - swapped) / (clean - swapped) if clean != swapped else math.nan


# --- groups -----------------------------------------------------------------------------------------------------------


def measure_groups(scratch: Path, _options: argparse.Namespace) -> dict:
    from scipy.optimize import linear_sum_assignment

    folder = scratch / "frames"
    variety_of = {one.file_name: one.variety for one in hide_varieties(DATA / "fruits360_3body" / "Training", folder)}
    features = extract(load_dataset(folder))
    audit = audit_photos(features, "quick")
    dataset = audit.dataset
    truth = np.array([variety_of[photo.name] for photo in dataset.photos])
    names, groups = np.unique(dataset.groups, return_inverse=True)
    with TWINS.open(newline="", encoding="utf-8") as stream:  # one fruit under two names is one
        for row in csv.DictReader(stream):
            truth = np.where(truth == row["second"], row["first"], truth)
    varieties, numbers = np.unique(truth, return_inverse=True)
    table = np.zeros((len(names), len(varieties)), int)
    np.add.at(table, (groups, numbers), 1)
    matched = table[linear_sum_assignment(-table)].sum()
    told = replace(dataset, photos=tuple(replace(p, group=g) for p, g in zip(dataset.photos, truth, strict=True)))
    coordinates = project_vectors(features.vectors, DOUBT_DIM)
    return {
        "n_frames": dataset.n_photos,
        "n_varieties": len(varieties),
        "n_groups": len(names),
        "n_single": int((table.sum(axis=1) == 1).sum()),
        "purity": float(table.max(axis=1).sum() / table.sum()),
        "matched": float(matched / table.sum()),
        "gap": show_gap(audit.gap),
        "gap_of_truth": show_gap(measure_gap(told, coordinates, seed=0)),
    }


def show_gap(gap: SplitGap | None) -> dict | None:
    if gap is None:
        return None
    return {
        name: {"value": one.value, "low": one.low, "high": one.high, "n": one.n}
        for name, one in (("random", gap.random), ("grouped", gap.grouped))
    }


def show_groups(content: dict) -> list[Row]:
    rows = [
        (
            f"{content['n_frames']:,} frames of {content['n_varieties']} varieties: in a group that is mostly theirs",
            "-",
            f"{content['purity']:.1%}",
        ),
        (
            "The same, groups matched one to one with varieties",
            "-",
            f"{content['matched']:.1%}; {content['n_groups']} groups, {content['n_single']} of a single frame",
        ),
    ]
    for key, whose in (("gap", "groups found"), ("gap_of_truth", "true varieties as groups")):
        if gap := content[key]:
            cells = "; ".join(
                f"{name} {gap[name]['value']:.3f} ({gap[name]['low']:.3f} to {gap[name]['high']:.3f})" for name in gap
            )
            rows.append((f"Accuracy of a random and of a grouped split, {whose}", "-", cells))
    return rows


# --- notes ------------------------------------------------------------------------------------------------------------


def measure_notes(_scratch: Path, _options: argparse.Namespace) -> dict:
    folder = DATA / "fruit_boxes" / "train"
    audit = check_unlabelled(folder)
    is_png, is_turned = set(), set()
    for path in folder.glob("*.jpg"):
        if path.read_bytes().startswith(b"\x89PNG\r\n\x1a\n"):
            is_png.add(path.name)
        if Image.open(path).getexif().get(0x0112, 1) not in {0, 1}:
            is_turned.add(path.name)
    told = {
        check: {one.name for one in audit.findings if one.check == check} for check in ("wrong_extension", "rotated")
    }
    return {
        "png": {
            "n": len(is_png),
            "n_noted": len(is_png & told["wrong_extension"]),
            "n_false": len(told["wrong_extension"] - is_png),
        },
        "rotated": {
            "n": len(is_turned),
            "n_noted": len(is_turned & told["rotated"]),
            "n_false": len(told["rotated"] - is_turned),
        },
        "dirty": compare_dirty(),
    }


def check_unlabelled(folder: Path) -> Audit:
    return audit_photos(extract(load_dataset(folder, min_classes=1, needs_labels=False)), "quick")


def compare_dirty() -> dict:
    """Verdict and notes of each broken or odd file, beside those that were written down by hand."""
    audit = check_unlabelled(DATA / "dirty_images")
    faults = {one.name: one.fault for one in audit.dataset.skipped}
    usable = {photo.name for photo in audit.dataset.photos}
    with DIRTY.open(newline="", encoding="utf-8") as stream:
        sheet = list(csv.DictReader(stream))
    wrong = []
    for line in sheet:
        name = line["file_name"]
        verdict = "usable" if name in usable else faults.get(name, "not seen")
        notes = sorted({one.check for one in audit.findings if one.name == name and one.check in NOTES})
        if verdict != line["verdict"] or (verdict == "usable" and notes != sorted(line["notes"].split())):
            wrong.append([name, f"{verdict} {' '.join(notes)}", f"{line['verdict']} {line['notes']}"])
    return {"n": len(sheet), "n_right": len(sheet) - len(wrong), "wrong": wrong}


def show_notes(content: dict) -> list[Row]:
    png, turned, dirty = content["png"], content["rotated"], content["dirty"]
    return [
        ("PNG files named .jpg that are noted (by their bytes the set holds as many)", "all", show_noted(png)),
        ("Photos there that EXIF turns, and that are noted", "all", show_noted(turned)),
        ("Broken and odd files told as the answer sheet has them", "all", f"{dirty['n_right']} of {dirty['n']}"),
    ]


def show_noted(counts: dict) -> str:
    return f"{counts['n_noted']} of {counts['n']}, {counts['n_false']} others"


# --- cost -------------------------------------------------------------------------------------------------------------


def measure_cost(scratch: Path, _options: argparse.Namespace) -> dict:
    runs = []
    for i in range(N_COSTS):
        environment = {**os.environ, "POMONA_CACHE": str(scratch / f"cache-{i}")}
        found = measure([sys.executable, __file__, "--in-process", "cost", str(DATA / "grocery")], environment)
        runs.append({**found["result"], "peak_mb": found["peak_mb"]})
        print(runs[-1], file=sys.stderr)
    return {"runs": runs}


def run_cost(folder: str) -> dict:
    """Time of the features and of the quick check of photos, in this process, from the cache that is named."""
    small = load_dataset(DATA / "not_fruit", min_classes=1, needs_labels=False)
    audit_photos(extract(replace(small, photos=small.photos[:64])), "quick")  # writes the network, loads the packages
    dataset = load_dataset(folder)
    clock = Clock(None)
    before = time.perf_counter(), time.process_time()
    features = extract(dataset)
    between = time.perf_counter(), time.process_time()
    audit_photos(features, "quick", clock=clock)
    after = time.perf_counter(), time.process_time()
    return {
        "n_photos": dataset.n_photos,
        "features_s": between[0] - before[0],
        "check_s": after[0] - between[0],
        "features_cpu_s": between[1] - before[1],
        "check_cpu_s": after[1] - between[1],
        "stages": {stage.name: stage.seconds for stage in clock.stages},
    }


def show_cost(content: dict) -> list[Row]:
    runs = content["runs"]
    ratios = sorted(run["check_s"] / run["features_s"] for run in runs)
    ratio = statistics.median(ratios)
    seconds = statistics.median(run["check_s"] for run in runs)
    features_s = statistics.median(run["features_s"] for run in runs)
    text = (
        f"{ratio:.1%} ({ratios[0]:.1%} to {ratios[-1]:.1%}); {seconds:.1f} s beside {features_s:.1f} s"
        f"{judge(ratio, 0.2, at_most=True)}"
    )
    cpu = statistics.median(run["check_cpu_s"] / run["features_cpu_s"] for run in runs)
    parts = [f"{name} {statistics.median(run['stages'][name] for run in runs):.2f} s" for name in runs[0]["stages"]]
    return [
        (
            f"Quick check of {runs[0]['n_photos']:,} photos beside their features, cold, median of {len(runs)}",
            "<= 20 %",
            text,
        ),
        ("The same in processor time, which other work beside it blurs less", "-", f"{cpu:.1%}"),
        ("Its parts", "-", ", ".join(parts)),
    ]


# --- growth -----------------------------------------------------------------------------------------------------------


def measure_growth(scratch: Path, options: argparse.Namespace) -> dict:
    sizes = sorted(int(size) for size in options.sizes.split(","))
    keep = options.photos or scratch
    n_scenes = sizes[-1] // N_KINDS // N_SHOTS
    scenes, rendered = keep / f"scenes-{n_scenes * N_KINDS}", keep / f"shots-{sizes[-1]}"
    if not scenes.is_dir():
        write_samples(scenes, SampleOptions(n_per_kind=n_scenes, kinds=make_kinds(N_KINDS), size_px=GROWTH_PX))
    if not rendered.is_dir():
        shoot_scenes(scenes, rendered, N_SHOTS)
    environment = {**os.environ, "POMONA_CACHE": str(keep / "cache")}
    rows = []
    for n_photos in sizes:
        photos = scratch / f"photos-{n_photos}"
        link_some(rendered, photos, n_photos // N_KINDS)
        embedded = measure([sys.executable, __file__, "--in-process", "embed", str(photos)], environment)
        shutil.rmtree(keep / "cache" / "facts", ignore_errors=True)
        found = measure([*POMONA, "check", str(photos), "--json", "--effort", "instant"], environment)
        rows.append(
            {
                "n_photos": found["result"]["n_photos"],
                "wall_s": found["wall_s"],
                "peak_gb": found["peak_mb"] / 1000,
                "seconds": found["result"]["seconds"],
                "checks": found["result"]["checks"],
                "n_groups": found["result"]["n_groups"],
                "embed_s": embedded["wall_s"],
            }
        )
        print(rows[-1], file=sys.stderr)
    return {"n_kinds": N_KINDS, "n_shots": N_SHOTS, "size_px": GROWTH_PX, "rows": rows}


def run_embed(folder: str) -> dict:
    features = extract(load_dataset(folder), "instant")
    return {"n_computed": features.n_computed}


def show_growth(content: dict) -> list[Row]:
    rows: list[Row] = []
    measured: list[dict[str, Any]] = content["rows"]
    for before, one in zip([None, *measured], measured, strict=False):
        parts = ", ".join(f"{name} {seconds:.1f}" for name, seconds in one["seconds"].items())
        text = f"{one['wall_s']:.0f} s, {one['peak_gb']:.2f} GB ({parts})"
        if before:
            power = math.log(one["wall_s"] / before["wall_s"]) / math.log(one["n_photos"] / before["n_photos"])
            text += f"; grows by the power of {power:.2f}"
        is_goal = one["n_photos"] >= 100_000
        if is_goal:
            text += judge(one["wall_s"], 300, at_most=True) or judge(one["peak_gb"], 4, at_most=True)
        goal = "<= 300 s, <= 4 GB" if is_goal else "-"
        rows.append((f"Full check of {one['n_photos']:,} photos whose features are there", goal, text))
    return rows


if __name__ == "__main__":
    main()
