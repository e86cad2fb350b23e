"""Whether answers can be trusted as far as they say: calibration, promises, the unknown, and what it costs.

    python bench/trust.py [--only SECTIONS] [--readme]

held      grocery photos: everything is found on train alone, in folds that keep groups whole; then one look at val.
promises  the same held-out answers, thresholds found on half of the groups and checked on the other half, many times.
unknown   clothing against val; cartons against a recogniser of fruit and vegetables; and how all measures compare.
small     5 classes of 8 photos, drawn from grocery again and again: what is promised, and whether it holds on the rest.
intervals simulated photos in groups: how often an interval of 95 % holds the truth.
cost      what all of it adds to `pomona train --effort fast` and to a prediction, each against the same without.

Each section keeps a dated JSON in bench/results; `--readme` writes the table of the newest ones into both READMEs. The
machines are shared: times are the least of several runs, and what is added is measured in the same process.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from pomona.audit import audit_photos
from pomona.bundle import load_bundle
from pomona.class_tree import ClassTree
from pomona.clock import Clock
from pomona.conformal import Nodes, fit_answer, fit_shortlist
from pomona.dataset import load_dataset
from pomona.effort import choose_precision, measure_machine, plan_embedding
from pomona.embedding import load_network
from pomona.engine import Engine
from pomona.evaluation import measure_share
from pomona.features import extract_features
from pomona.head import Head, softmax
from pomona.model_file import build_model
from pomona.novelty import measure_all, measure_auroc, measure_false_known, sketch_vectors
from pomona.parts import list_folds
from pomona.photo import read_photo_bytes
from pomona.projection import scale_rows
from pomona.ridge import Study, study_ridge
from pomona.training import TrainOptions, train
from pomona.trust import (
    Evidence,
    Trust,
    TrustOptions,
    check_promise,
    study_trust,
    weigh_photos,
)
from process import ROOT, describe_machine, read_newest, tabulate, write_readme_table, write_results

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from numpy.typing import NDArray

SHARED = Path(os.environ.get("POMONA_SHARED", ROOT.parent / "shared"))
DATA = SHARED / "data"
SEEDS = (0, 1, 2)
N_HALVES, N_SMALL, N_TIMES, N_SIMULATED = 20, 40, 5, 1000

Row = tuple[str, str, str]


class Photos(NamedTuple):
    """Features with labels and groups."""

    vectors: NDArray[np.float32]
    labels: NDArray[np.intp]
    groups: NDArray[np.str_]

    def take(self, rows: NDArray[np.intp]) -> Photos:
        """Some of them."""
        return Photos(self.vectors[rows], self.labels[rows], self.groups[rows])


class Learnt(NamedTuple):
    """A head with what its answers can be trusted on."""

    head: Head
    study: Study
    sketches: NDArray[np.float32]
    trust: Trust
    evidence: Evidence


def main() -> None:
    sections: dict[str, tuple[Callable[[], dict], Callable[[dict], list[Row]]]] = {
        "held": (measure_held, show_held),
        "promises": (measure_promises, show_promises),
        "unknown": (measure_unknown, show_unknown),
        "small": (measure_small, show_small),
        "intervals": (measure_intervals, show_intervals),
        "cost": (measure_cost, show_cost),
    }
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default=",".join(sections))
    parser.add_argument("--readme", action="store_true")
    options = parser.parse_args()
    if not (DATA / "grocery").is_dir():
        sys.exit(f"wanted the photos in {DATA}; name that folder's parent in POMONA_SHARED")
    asked = [name for name in options.only.split(",") if name]
    if unknown := set(asked) - sections.keys():
        sys.exit(f"--only: wanted some of {', '.join(sections)}, got {', '.join(sorted(unknown))}")
    rows = []
    for name in asked:
        content = sections[name][0]()
        write_results(f"trust-{name}", content)
        rows += sections[name][1](content)
    print(tabulate(rows))
    print(f"\nMeasured on {describe_machine()}.")
    if options.readme:
        rows = [row for name in sections for row in sections[name][1](read_newest(f"trust-{name}"))]
        day = read_newest("trust-cost")["when"][:10]
        write_readme_table("trust", f"{tabulate(rows)}\n\nMeasured {day}: {describe_machine()}.")


# --- what all sections stand on ---------------------------------------------------------------------------------------


def load_grocery() -> tuple[ClassTree, Photos, Photos]:
    """The class tree, train and val, with groups as the audit finds them."""
    embedding = plan_embedding("fast", precision=choose_precision(measure_machine(None)))
    features = extract_features(load_dataset(DATA / "grocery"), embedding)
    dataset = audit_photos(features, "quick", seed=0, n_workers=None, clock=Clock(None)).dataset
    features = features.keep(dataset)
    splits = np.array([photo.split for photo in dataset.photos])
    both = Photos(np.array(features.vectors), dataset.labels, dataset.groups)
    return dataset.tree, both.take(np.flatnonzero(splits == "train")), both.take(np.flatnonzero(splits == "val"))


def load_clothing() -> NDArray[np.float32]:
    embedding = plan_embedding("fast", precision=choose_precision(measure_machine(None)))
    paths = sorted((DATA / "not_fruit").rglob("*.jpg"))
    engine = Engine(load_network(embedding))
    outcomes = engine.stream(len(paths), lambda i: embedding.preprocessing.read(read_photo_bytes(paths[i])))
    return np.stack([outcome["features"] for outcome in outcomes if not isinstance(outcome, Exception)])


def learn(photos: Photos, tree: ClassTree, *, seed: int = 0, options: TrustOptions | None = None) -> Learnt:
    folds = list_folds(photos.labels, photos.groups, seed=seed)
    head, _, _, study = study_ridge(photos.vectors, photos.labels, len(tree), folds)
    sketches = sketch_vectors(photos.vectors[study.rows]).astype(np.float16).astype(np.float32)
    found = study_trust(study, sketches, photos.groups[study.rows], tree, options or TrustOptions(seed=seed))
    assert found is not None
    return Learnt(head, study, sketches, *found)


def keep_classes(tree: ClassTree, photos: Sequence[Photos], kept: NDArray[np.intp]) -> tuple[ClassTree, list[Photos]]:
    """The same of some classes alone, numbered anew."""
    smaller = ClassTree.from_paths([tree.paths[c] for c in kept])
    numbers = np.full(len(tree), -1)
    numbers[kept] = [smaller.paths.index(tree.paths[c]) for c in kept]
    found = []
    for part in photos:
        rows = np.flatnonzero(numbers[part.labels] >= 0)
        found.append(part.take(rows)._replace(labels=numbers[part.labels[rows]]))
    return smaller, found


def write_share(value: float, low: float | None = None, high: float | None = None) -> str:
    spread = "" if low is None or high is None else f" ({100 * low:.1f} to {100 * high:.1f})"
    return f"{100 * value:.1f} %{spread}"


# --- held: calibration, and one look at val ---------------------------------------------------------------------------


def measure_held() -> dict:
    tree, train_photos, val = load_grocery()
    runs = []
    for seed in SEEDS:
        learnt = learn(train_photos, tree, seed=seed)
        logits = learnt.head.score(val.vectors)
        kept = check_promise(
            learnt.trust.promise,
            learnt.trust.to_probabilities(logits),
            val.labels,
            val.groups,
            Nodes.of(tree),
            before=softmax(logits),
        )
        runs.append({"seed": seed, "evidence": learnt.evidence.to_dict(), "val": kept.to_dict()})
    full = scale_rows(val.vectors) @ scale_rows(train_photos.vectors).T
    sketched = scale_rows(sketch_vectors(val.vectors)) @ scale_rows(sketch_vectors(train_photos.vectors)).T
    nearest = {
        name: float((train_photos.labels[table.argmax(axis=1)] == val.labels).mean())
        for name, table in (("full", full), ("sketched", sketched))
    }
    return {"runs": runs, "nearest": nearest}


def show_held(content: dict) -> list[Row]:
    folds = [run["evidence"]["held_out"] for run in content["runs"]]
    val = [run["val"] for run in content["runs"]]

    def mean(values: Sequence[float]) -> str:
        return f"{np.mean(values):.3f} ({min(values):.3f} to {max(values):.3f})"

    forecast, seen = folds[0]["accuracy"], val[0]["accuracy"]["value"]
    ahead = content["runs"][0]["evidence"]["learning_curve"]["twice"]
    is_inside = all(one["accuracy"]["interval"][0] <= seen <= one["accuracy"]["interval"][1] for one in folds)
    return [
        (
            "Calibration error (ECE), train in grouped folds, three seeds",
            "at most 0.03",
            f"{mean([one['after']['ece'] for one in folds])}; before {mean([one['before']['ece'] for one in folds])}",
        ),
        (
            "The same on `val`, one look",
            "-",
            (
                f"{mean([one['after']['ece'] for one in val])}, where chance alone gives "
                f"{np.mean([one['after']['by_chance'] for one in val]):.3f} on as many photos"
            ),
        ),
        (
            "`val` accuracy inside the interval forecast from train",
            "inside",
            (
                f"{'inside' if is_inside else 'outside'}: {write_share(seen)}, forecast "
                f"{write_share(forecast['value'], *forecast['interval'])}"
            ),
        ),
        (
            "Nearest photo on the same photos: all numbers of the features, or sketched",
            "-",
            f"{write_share(content['nearest']['full'])}, {write_share(content['nearest']['sketched'])}",
        ),
        (
            "Shortlists promised to hold the right class in 95 of 100, on `val`",
            "within a point",
            (
                f"{write_share(np.mean([one['covered']['value'] for one in val]))}, "
                f"{np.mean([one['shortlist_size'] for one in val]):.1f} classes long"
            ),
        ),
        (
            "Share of answers at variety level where 95 of 100 sure ones are promised right, on `val`",
            "printed",
            (
                f"{write_share(np.mean([one['share_exact'] for one in val]))}; coarser "
                f"{write_share(np.mean([one['share_coarse'] for one in val]))}, not sure "
                f"{write_share(np.mean([one['share_open'] for one in val]))}; right "
                f"{write_share(np.mean([one['sure_right']['value'] for one in val]))}"
            ),
        ),
        (
            "Twice the photos: forecast of the learning curve",
            "-",
            f"{write_share(ahead['accuracy'], ahead['low'], ahead['high'])}",
        ),
    ]


# --- promises: thresholds found on some groups, checked on others ----------------------------------------------------


def measure_promises() -> dict:
    tree, photos, _ = load_grocery()
    learnt, nodes = learn(photos, tree), Nodes.of(tree)
    labels, groups = photos.labels[learnt.study.rows], photos.groups[learnt.study.rows]
    weights = weigh_photos(labels, groups)
    found = []
    for number in range(N_HALVES):
        folds = list_folds(labels, groups, seed=number)
        rows = np.concatenate([held for _, held in folds])
        logits = np.concatenate([learnt.study.hold_out(held) for _, held in folds]).astype(np.float32)
        shares = learnt.trust.to_probabilities(logits)
        marks = np.unique(groups)
        first = set(np.random.default_rng(number).permutation(marks)[: len(marks) // 2].tolist())
        is_first = np.array([mark in first for mark in groups[rows]])
        one, other = np.flatnonzero(is_first), np.flatnonzero(~is_first)
        own = shares[np.arange(len(rows)), labels[rows]]
        kept = {"share": 0.95, "groups": groups[rows[one]], "weights": weights[rows[one]]}
        listed = own[other] >= fit_shortlist(own[one], **kept)
        least = fit_answer(shares[one], labels[rows[one]], nodes, **kept)
        chosen, sure = nodes.choose(nodes.weigh(shares[other]), least)
        right = nodes.member[labels[rows[other]], chosen][sure]
        mass = weights[rows[other]]
        found.append(
            {
                "covered": float(np.average(listed, weights=mass)),
                "sure": float(np.average(sure, weights=mass)),
                "right": float(np.average(right, weights=mass[sure])),
            }
        )
    return {"halves": found}


def show_promises(content: dict) -> list[Row]:
    def mean(name: str) -> str:
        values = [one[name] for one in content["halves"]]
        return f"{write_share(np.mean(values))} (spread {100 * np.std(values):.1f})"

    return [
        (
            f"Shortlists promised at 95 %, on groups they were not found on, {N_HALVES} halves",
            "within a point",
            mean("covered"),
        ),
        ("Sure answers promised at 95 %, the same", "at least 95 %", f"{mean('right')}; sure {mean('sure')}"),
    ]


# --- the unknown ------------------------------------------------------------------------------------------------------


def measure_unknown() -> dict:
    tree, photos, val = load_grocery()
    clothing = load_clothing()
    found = {"clothing": compare_known(learn(photos, tree), val, clothing)}
    is_carton = np.array([path[0] == "Packages" for path in tree.paths])
    smaller, (fresh, known) = keep_classes(tree, [photos, val], np.flatnonzero(~is_carton))
    cartons = np.concatenate([one.vectors[is_carton[one.labels]] for one in (photos, val)])
    learnt = learn(fresh, smaller)
    found["cartons"] = compare_known(learnt, known, cartons)
    found["candidates"] = learnt.evidence.to_dict()["unknown_candidates"]
    return found


def compare_known(learnt: Learnt, known: Photos, strange: NDArray[np.float32]) -> dict:
    """How well what was chosen tells the two apart, and how well each other measure would."""
    tables = [learnt.head.score(one) for one in (known.vectors, strange)]
    inside, outside = (
        learnt.trust.measure_strangeness(vectors, logits)
        for vectors, logits in zip((known.vectors, strange), tables, strict=True)
    )
    bank = learnt.trust.detector.bank
    parts = [
        measure_all(bank, sketch_vectors(vectors), learnt.trust.link.apply(logits))
        for vectors, logits in zip((known.vectors, strange), tables, strict=True)
    ]
    return {
        "kind": list(learnt.trust.detector.kind),
        "n_known": len(known.labels),
        "n_strange": len(strange),
        "auroc": measure_auroc(inside, outside),
        "false_at_95": measure_false_known(inside, outside),
        "turned_away": float((inside >= 0.5).mean()),
        "found": float((outside >= 0.5).mean()),
        "others": {kind: measure_auroc(parts[0][kind], parts[1][kind]) for kind in parts[0]},
    }


def show_unknown(content: dict) -> list[Row]:
    rows = []
    goals = {"clothing": ("at least 0.97", "at most 0.12"), "cartons": ("printed", "-")}
    for name, said in (
        ("clothing", "`not_fruit` against `val`"),
        ("cartons", "Cartons, by a recogniser of fruit and vegetables alone"),
    ):
        one = content[name]
        others = ", ".join(f"{kind} {auroc:.3f}" for kind, auroc in one["others"].items())
        rows += [
            (f"{said}: AUROC", goals[name][0], f"{one['auroc']:.3f} ({'+'.join(one['kind'])}; {others})"),
            (
                f"{said}: taken for known where 95 % of the known are kept",
                goals[name][1],
                (
                    f"{one['false_at_95']:.3f}; at the threshold that ships {1 - one['found']:.3f}, "
                    f"{write_share(one['turned_away'])} of the known turned away"
                ),
            ),
        ]
    return rows


# --- small sets -------------------------------------------------------------------------------------------------------


def measure_small() -> dict:
    """Each draw learns 5 classes of 8 photos, and is checked on photos of other groups of these classes."""
    tree, photos, val = load_grocery()
    everything = Photos(*(np.concatenate(pair) for pair in zip(photos, val, strict=True)))
    random, found = np.random.default_rng(0), []
    while len(found) < N_SMALL:
        kept = random.choice(len(tree), 5, replace=False)
        smaller, (own,) = keep_classes(tree, [everything], kept)
        marks = random.permutation(np.unique(own.groups))
        order = np.concatenate([np.flatnonzero(own.groups == mark) for mark in marks])
        learnt_rows = np.concatenate([order[own.labels[order] == c][:8] for c in range(5)])
        used = set(own.groups[learnt_rows].tolist())
        rest = np.array([i for i in range(len(own.labels)) if own.groups[i] not in used], np.intp)
        if len(learnt_rows) < 40 or len(rest) < 20:
            continue
        fresh = own.take(learnt_rows)
        folds = list_folds(fresh.labels, fresh.groups, seed=0)
        if not folds:
            continue
        learnt = learn(fresh, smaller)
        logits = learnt.head.score(own.vectors[rest])
        shares = learnt.trust.to_probabilities(logits)
        kept_now = check_promise(learnt.trust.promise, shares, own.labels[rest], own.groups[rest], Nodes.of(smaller))
        forecast = learnt.evidence.held_out.accuracy
        strange = learnt.trust.measure_strangeness(own.vectors[rest], logits)
        found.append(
            {
                "n_groups": learnt.trust.promise.n_groups,
                "forecast": [forecast.value, forecast.low, forecast.high],
                "accuracy": kept_now.accuracy.value,
                "covered": kept_now.covered.value,
                "shortlist": kept_now.shortlist_size,
                "sure": 1 - kept_now.share_open,
                "right": kept_now.sure_right.value if kept_now.sure_right else None,
                "turned_away": float((strange >= 0.5).mean()),
            }
        )
    return {"draws": found}


def show_small(content: dict) -> list[Row]:
    draws = content["draws"]
    widths = [one["forecast"][2] - one["forecast"][1] for one in draws]
    below = np.mean([one["accuracy"] < one["forecast"][1] for one in draws])
    above = np.mean([one["accuracy"] > one["forecast"][2] for one in draws])
    sure = np.array([one["sure"] for one in draws])
    right = np.array([0.0 if one["right"] is None else one["right"] for one in draws])
    return [
        (
            f"5 classes of 8 photos, {len(draws)} draws: width of the interval that is forecast",
            "wide, and said",
            (
                f"{100 * np.mean(widths):.0f} points; the accuracy on other scenes is below it in {write_share(below)} "
                f"of draws and above it in {write_share(above)}: without one of its two or three scenes a class is "
                "hardly known"
            ),
        ),
        (
            "The same: shortlists and sure answers promised at 95 %, on other scenes",
            "kept",
            (
                f"{write_share(np.mean([one['covered'] for one in draws]))} of shortlists "
                f"({np.mean([one['shortlist'] for one in draws]):.1f} classes); "
                f"{write_share(float(sure @ right / max(sure.sum(), 1e-9)))} right of {write_share(sure.mean())} that "
                "are sure"
            ),
        ),
        (
            "The same: known photos called unknown, 5 % allowed",
            "-",
            write_share(np.mean([one["turned_away"] for one in draws])),
        ),
    ]


# --- intervals --------------------------------------------------------------------------------------------------------


def measure_intervals() -> dict:
    random, found = np.random.default_rng(0), {}
    for name, n_groups, spread, mean in (
        ("60 groups", 60, 0.3, 0.85),
        ("15 groups", 15, 0.3, 0.7),
        ("100 photos alone", 0, 0, 0.9),
    ):
        held = {"closed form": 0, "bootstrap": 0}
        for _ in range(N_SIMULATED):
            sizes = random.geometric(0.2, n_groups) if n_groups else np.ones(100, int)
            concentration = (1 - spread) / spread if spread else 1e9
            rates = random.beta(mean * concentration, (1 - mean) * concentration, len(sizes))
            marks = np.repeat(np.arange(len(sizes)), sizes)
            hits = random.random(len(marks)) < np.repeat(rates, sizes)
            closed = measure_share(hits, marks.astype(str))
            drawn = random.multinomial(len(sizes), np.full(len(sizes), 1 / len(sizes)), size=400)
            shares = (drawn @ np.bincount(marks, hits)) / (drawn @ sizes)
            low, high = np.quantile(shares, [0.025, 0.975])
            held["closed form"] += closed.low <= mean <= closed.high
            held["bootstrap"] += low <= mean <= high
        found[name] = {kind: count / N_SIMULATED for kind, count in held.items()}
    return found


def show_intervals(content: dict) -> list[Row]:
    said = "; ".join(
        f"{name} {write_share(one['closed form'])}, {write_share(one['bootstrap'])}"
        for name, one in content.items()
        if isinstance(one, dict)
    )
    return [("Intervals of 95 % that hold the truth, simulated: those printed, a bootstrap over groups", "95 %", said)]


# --- cost -------------------------------------------------------------------------------------------------------------


def measure_cost() -> dict:
    found: dict = {"train": []}
    with tempfile.TemporaryDirectory() as scratch:
        for number in range(N_TIMES):
            started_s = time.perf_counter()
            result = train(TrainOptions(data=DATA / "grocery", output=Path(scratch) / f"run{number}"))
            stages = {stage.name: stage.seconds for stage in result.stages}
            found["train"].append({**stages, "total": time.perf_counter() - started_s})
        bundle = load_bundle(result.bundle.folder)
        head = Head(*read_head(result.bundle.folder), l2=0.0)
        embedding = plan_embedding("fast", precision=bundle.manifest.embedding.precision)
        engines = {}
        for name, trust in (("without", Trust()), ("with", bundle.trust)):
            path = Path(scratch) / f"{name}.onnx"
            path.write_bytes(build_model(load_network(embedding), head, trust))
            engines[name] = Engine(path, n_workers=1)
        found["predict_ms"] = time_pairs(engines)
    return found


def read_head(folder: Path) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    from safetensors.numpy import load

    tensors = load((folder / "head.safetensors").read_bytes())
    return tensors["weights"], tensors["bias"]


def time_pairs(engines: dict[str, Engine]) -> dict[str, float]:
    """Milliseconds a photo, one thread, the two in turn: the least of many."""
    noise = np.random.default_rng(0).integers(0, 256, (1, *engines["with"].shape), dtype=np.uint8)
    least = dict.fromkeys(engines, np.inf)
    for _ in range(60):
        for name, engine in engines.items():
            started_s = time.perf_counter()
            engine.run(noise)
            least[name] = min(least[name], 1000 * (time.perf_counter() - started_s))
    return least


def show_cost(content: dict) -> list[Row]:
    best = min(content["train"], key=lambda one: one["trust"])
    ms = content["predict_ms"]
    added = ms["with"] - ms["without"]
    return [
        (
            "Added to `--effort fast` on grocery: holding out, calibrating, promising, finding the unknown",
            "at most 3 s",
            f"{best['trust']:.1f} s (the fit beside it {best['fit']:.1f} s)",
        ),
        (
            "Added to a prediction, one thread",
            "at most 1 ms",
            f"{added:.2f} ms ({ms['with']:.1f} against {ms['without']:.1f} ms)",
        ),
    ]


if __name__ == "__main__":
    main()
