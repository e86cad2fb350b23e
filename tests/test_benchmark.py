"""Ways to learn side by side: one split for all, nothing chosen on what is reported, and a row for whatever fails."""

from __future__ import annotations

import csv
import io
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import xml.etree.ElementTree as ET
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pomona.benchmark import (
    FILES,
    BenchmarkOptions,
    BenchmarkResult,
    BenchmarkRow,
    judge_ways,
    run_benchmark,
    write_table,
)
from pomona.clock import Clock
from pomona.dataset import load_dataset
from pomona.errors import DataError, OptionError, StorageError
from pomona.evaluation import measure_share
from pomona.parts import PartPlan
from pomona.samples import KINDS, SampleOptions, write_samples
from pomona.training import TrainOptions, train
from pomona.ways import TITLES, Task, _draw_evenly, try_way

QUICK = {"effort": "instant", "workers": 1, "scratch_epochs": 1}


@pytest.fixture(scope="module")
def measured(rendered: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[BenchmarkResult, Path, list[str]]:
    output = tmp_path_factory.mktemp("benchmark") / "out"
    seen: list[str] = []
    options = BenchmarkOptions(data=rendered, output=output, **QUICK)
    result = run_benchmark(options, on_row=lambda row: seen.append(row.way))
    return result, output, seen


# --- the result -----------------------------------------------------------------------------------------------------


def test_every_way_is_measured_with_its_cost(measured: tuple[BenchmarkResult, Path, list[str]]) -> None:
    result, _, seen = measured
    assert seen == [row.way for row in result.rows] == [name for name in TITLES if name != "tuned"]
    for row in result.rows:
        assert row.status == "done", row
        assert row.accuracy is not None
        assert row.accuracy.n == result.n_measured
        assert row.accuracy.low <= row.accuracy.value <= row.accuracy.high
        assert row.cpu_seconds > 0
        assert row.seconds > 0
        assert row.memory_mb is None or 20 < row.memory_mb < 4000
        assert row.n_cached == 0
    by_way = {row.way: row for row in result.rows}
    assert by_way["most-frequent"].accuracy.value <= 0.5  # type: ignore[union-attr]
    assert by_way["pomona"].accuracy.value >= 0.8  # type: ignore[union-attr]
    floor, network = by_way["most-frequent"].memory_mb, by_way["scratch"].memory_mb
    assert floor is None or floor < network / 2  # type: ignore[operator]  # each has a process of its own
    assert by_way["classic"].tried
    assert "SVM" in "".join(name for name, _ in by_way["classic"].tried)
    assert not result.interrupted


def test_files_say_the_same(measured: tuple[BenchmarkResult, Path, list[str]]) -> None:
    result, output, _ = measured
    assert {path.name for path in output.iterdir()} == set(FILES)
    rows = list(csv.DictReader(io.StringIO((output / FILES[0]).read_text("utf-8"))))
    content = json.loads((output / FILES[1]).read_text("utf-8"))
    assert [row["way"] for row in rows] == [row["way"] for row in content["rows"]] == [row.way for row in result.rows]
    for row, kept, one in zip(rows, content["rows"], result.rows, strict=True):
        assert one.accuracy is not None
        assert float(row["accuracy"]) == pytest.approx(one.accuracy.value, abs=1e-6) == kept["accuracy"]
        assert float(row["cpu_seconds"]) == pytest.approx(one.cpu_seconds, abs=1e-3)
    assert content["verdict"] == result.verdict
    picture = ET.fromstring((output / FILES[2]).read_text("utf-8"))
    texts = " ".join(filter(None, (one.text for one in picture.iter())))
    page = (output / FILES[3]).read_text("utf-8")
    for row in result.rows:
        assert row.title in texts
        assert row.title in page
    assert result.verdict in page
    assert "://" not in page.replace("http://www.w3.org/2000/svg", "")


def test_verdict_and_notes_say_that_photos_are_few(measured: tuple[BenchmarkResult, Path, list[str]]) -> None:
    result, _, _ = measured
    assert "Transfer learning is right on" in result.verdict
    assert "cannot be told from chance" in result.verdict
    assert any("intervals are wide" in note for note in result.notes)
    assert not any("chosen on the same" in note for note in result.notes)


def make_row(way: Any, right: list[int], seconds: float = 5.0) -> BenchmarkRow:
    hits = np.array(right, bool)
    return BenchmarkRow(way, "done", seconds, accuracy=measure_share(hits), right=hits)


def test_verdict_follows_the_numbers() -> None:
    groups = np.array([str(i) for i in range(100)])
    good = make_row("pomona", [1] * 83 + [0] * 17, 24)
    poor = make_row("classic", [1] * 41 + [0] * 59, 95)
    scratch = make_row("scratch", [1] * 38 + [0] * 62, 600)
    assert judge_ways([poor, scratch, good], groups) == (
        "Transfer learning is right on 83 of 100 where the best classic way is right on 41 and a network from scratch "
        "on 38: the same photos, 24 s against 95 s and 10 min."
    )
    swapped = [replace(good, way="classic"), replace(poor, way="pomona")]
    assert judge_ways(swapped, groups).endswith("On these photos it does not pay.")
    assert "told from chance" in judge_ways([replace(good, way="classic"), good], groups)
    assert judge_ways([replace(poor, status="failed", accuracy=None), good], groups).endswith("to compare it with.")
    assert judge_ways([poor], groups) == "Transfer learning was not measured."


# --- the split ------------------------------------------------------------------------------------------------------


def test_the_split_is_that_of_training_and_is_what_the_ways_are_given(
    rendered: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from pomona import benchmark

    trained = train(TrainOptions(data=rendered, output=tmp_path / "run", effort="instant", seed=3, workers=1))
    options = BenchmarkOptions(data=rendered, output=tmp_path / "out", seed=3, **QUICK)
    dataset, plan, _ = benchmark._part(options, Clock(None))
    assert {photo.path: photo.split for photo in dataset.photos} == {
        photo.path: photo.split for photo in trained.dataset.photos
    }
    write_table(tmp_path / "photos.csv", dataset, plan)
    handed = load_dataset(tmp_path / "photos.csv")
    parts = {"train": "train", "val": "test"}
    given = {(photo.path, photo.sha256, photo.label, photo.group, photo.split) for photo in handed.photos}
    # A group of the table may be written with what identical photos share; which photos are together is what counts.
    assert {one[:3] + one[4:] for one in given} == {
        (photo.path, photo.sha256, photo.label, parts[str(photo.split)]) for photo in dataset.photos
    }
    assert _pair_groups(handed.photos) == _pair_groups(dataset.photos)


def _pair_groups(photos: Any) -> set[frozenset[Path]]:
    together: dict[str, set[Path]] = {}
    for photo in photos:
        together.setdefault(photo.group, set()).add(photo.path)
    return {frozenset(paths) for paths in together.values()}


def test_val_stays_for_choosing_where_there_is_a_test_part(rendered: Path, tmp_path: Path) -> None:
    dataset = load_dataset(rendered)
    splits = ["train", "train", "val", "test"]
    photos = tuple(replace(photo, split=splits[i % 4]) for i, photo in enumerate(dataset.photos))
    write_table(tmp_path / "t.csv", replace(dataset, photos=photos), PartPlan("val", "test", ""))
    assert [photo.split for photo in load_dataset(tmp_path / "t.csv").photos] == [photo.split for photo in photos]
    write_table(tmp_path / "v.csv", replace(dataset, photos=photos[:3]), PartPlan("val", "val", ""))
    handed = load_dataset(tmp_path / "v.csv", min_classes=1)
    assert [photo.split for photo in handed.photos] == ["train", "train", "test"]


@pytest.mark.parametrize("way", ["most-frequent", "classic", "nearest", "frozen", "pomona"])
def test_nothing_is_chosen_on_the_photos_reported_on(way: Any, rendered: Path, tmp_path: Path) -> None:
    """Other labels in the test part change no answer, and none of what was tried."""
    dataset = load_dataset(rendered)
    trials = []
    for number, shift in enumerate((0, 1)):
        photos = tuple(
            replace(photo, split="val", label=(photo.label + shift) % 3)
            if i % 4 == 0
            else replace(photo, split="train")
            for i, photo in enumerate(dataset.photos)
        )
        table = tmp_path / f"{number}.csv"
        write_table(table, replace(dataset, photos=photos), PartPlan("val", "val", ""))
        trials.append(try_way(Task(way=way, table=str(table), effort="instant", workers=1)))
    assert trials[0].answers == trials[1].answers
    assert trials[0].tried == trials[1].tried
    assert set(trials[0].answers) == {str(photo.path) for photo in dataset.photos[::4]}


def test_classic_classifiers_learn_from_a_fair_draw_where_photos_are_many() -> None:
    labels = np.repeat([0, 1, 2], [50, 5, 30])
    rows = _draw_evenly(labels, np.arange(85), 35, seed=0)
    assert np.bincount(labels[rows]).tolist() == [15, 5, 15]
    np.testing.assert_array_equal(rows, np.unique(rows))
    np.testing.assert_array_equal(_draw_evenly(labels, np.arange(85), 85, seed=0), np.arange(85))


# --- what goes wrong ------------------------------------------------------------------------------------------------


def stub(folder: Path, package: str, content: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Put a package before the real one, in the processes that are started."""
    (folder / package).mkdir(parents=True)
    (folder / package / "__init__.py").write_text(content, encoding="utf-8")
    monkeypatch.setenv(
        "PYTHONPATH", os.pathsep.join([str(folder), os.environ.get("PYTHONPATH", "")]).rstrip(os.pathsep)
    )


@pytest.mark.parametrize(
    ("content", "status", "reason"),
    [
        ("raise ModuleNotFoundError('no', name='skimage')", "skipped", r"needs pip install 'pomona\[benchmark\]'"),
        ("raise RuntimeError('boom')", "failed", "RuntimeError: boom"),
        ("import os; os.kill(os.getpid(), 9)", "failed", "ended by signal 9"),
    ],
)
def test_a_way_that_fails_becomes_a_row_and_the_others_go_on(
    content: str, status: str, reason: str, rendered: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stub(tmp_path / "stubs", "skimage", content, monkeypatch)
    options = BenchmarkOptions(
        data=rendered, output=tmp_path / "out", ways="classic,most-frequent,nearest", check="none", **QUICK
    )
    result = run_benchmark(options)
    first, failed, last = result.rows
    assert (first.status, failed.status, last.status) == ("done", status, "done")
    assert re.search(reason, failed.reason), failed.reason
    assert failed.accuracy is None
    page = (tmp_path / "out" / FILES[3]).read_text("utf-8")
    assert "not measured" in page
    assert failed.reason.split("'")[0] in page
    assert "Transfer learning" in result.verdict


def test_few_photos_odd_classes_and_bad_files_are_borne(tmp_path: Path) -> None:
    """A class of one photo, classes of fewer photos than folds, a broken file, a name that no table can hold."""
    data = tmp_path / "few"
    write_samples(data, SampleOptions(n_per_kind=4, kinds=KINDS[2:5], size_px=72, n_workers=1))
    single, small, _ = sorted(path for path in data.rglob("*") if path.is_dir() and list(path.glob("*.jpg")))
    for path in sorted(single.glob("*.jpg"))[1:]:
        path.unlink()
    for path in sorted(small.glob("*.jpg"))[2:]:
        path.unlink()
    shutil.copy(next(small.glob("*.jpg")), small / ' leading, quoted ".jpg')
    (small / "broken.jpg").write_bytes(b"\xff\xd8\xff\xe0 nothing")
    (small / "line\nbreak.jpg").write_bytes(next(small.glob("*.jpg")).read_bytes() + b"\0")
    options = BenchmarkOptions(data=data, output=tmp_path / "out", ways="classic,scratch,pomona", folds=9, **QUICK)
    result = run_benchmark(options)
    assert [row.status for row in result.rows] == ["done"] * 3, [row.reason for row in result.rows]
    assert result.n_skipped == 1
    assert any("line break" in note for note in result.notes)
    assert any("Learnt from one photo only" in note for note in result.notes)


def test_cached_features_are_used_and_counted_only_when_asked(rendered: Path, tmp_path: Path) -> None:
    options = BenchmarkOptions(data=rendered, output=tmp_path / "out", ways="pomona", cached=True, **QUICK)
    row, fresh = (
        run_benchmark(one).rows[0] for one in (options, replace(options, cached=False, output=tmp_path / "fresh"))
    )
    assert row.n_cached == 24
    assert fresh.n_cached == 0
    assert row.accuracy == fresh.accuracy


def test_photos_without_labels_are_refused(rendered: Path, tmp_path: Path) -> None:
    flat = tmp_path / "flat"
    flat.mkdir()
    for path in rendered.rglob("*.jpg"):
        shutil.copy(path, flat / path.name)
    with pytest.raises(DataError, match="no class folders"):
        run_benchmark(BenchmarkOptions(data=flat, output=tmp_path / "out", **QUICK))


def test_places_are_refused_before_the_work(trained: Any, rendered: Path, tmp_path: Path) -> None:
    run = trained.bundle.folder
    with pytest.raises(OptionError, match=r"wanted labelled photos .* folder of a run"):
        run_benchmark(BenchmarkOptions(data=run, output=tmp_path / "out"))
    with pytest.raises(OptionError, match="got the run"):
        run_benchmark(BenchmarkOptions(data=rendered, output=run))
    with pytest.raises(OptionError, match="outside the photos"):
        run_benchmark(BenchmarkOptions(data=rendered, output=rendered / "out"))
    (tmp_path / "file").write_text("x")
    with pytest.raises(StorageError, match="got a file"):
        run_benchmark(BenchmarkOptions(data=rendered, output=tmp_path / "file"))
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / FILES[3]).write_text("my own page")
    with pytest.raises(StorageError, match="move it or name another place"):
        run_benchmark(BenchmarkOptions(data=rendered, output=tmp_path / "mine"))


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"ways": "classic,magic"}, "ways: wanted some of .*, got magic"),
        ({"folds": 1}, "folds: wanted 2 or more, got 1"),
        ({"workers": 0}, "workers: wanted 1 or more, got 0"),
        ({"workers": -2}, "workers: wanted 1 or more, got -2"),
        ({"scratch_epochs": 0}, "scratch-epochs: wanted 1 or more"),
        ({"scratch_time": "soon"}, "scratch-time: wanted a time such as 60s"),
        ({"tune_time": "0s"}, "tune-time: wanted a time"),
        ({"val_share": 1.0}, "val-share: wanted a share"),
        ({"seed": -1}, "seed: wanted 0 or more"),
    ],
)
def test_options_that_cannot_be_used_are_refused(values: dict[str, Any], words: str) -> None:
    with pytest.raises(OptionError, match=words):
        BenchmarkOptions(data=Path("x"), **values)


def test_ways_come_in_the_order_of_the_table() -> None:
    assert BenchmarkOptions(data=Path("x"), ways="pomona, classic").list_ways() == ("classic", "pomona")
    assert BenchmarkOptions(data=Path("x"), ways="pomona", tune=True).list_ways() == ("pomona", "tuned")
    assert "tuned" not in BenchmarkOptions(data=Path("x")).list_ways()


@pytest.mark.skipif(os.name == "nt", reason="signals are sent otherwise there")
def test_an_interrupt_leaves_the_rows_so_far(rendered: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "pomona", "benchmark", str(rendered), "--output", str(tmp_path / "out")]
    command += ["--effort", "instant", "--check", "none", "--ways", "most-frequent,scratch", "--workers", "1"]
    command += ["--scratch-epochs", "1000000", "--scratch-time", "1h"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr
        assert process.stdout
        for line in process.stderr:
            if "Most frequent class" in line:
                break
        process.send_signal(signal.SIGINT)
        said = process.stderr.read()
        shown = process.stdout.read()
    assert process.returncode == 130
    assert "interrupted" in said
    assert "Most frequent class" in shown
    rows = (tmp_path / "out" / FILES[0]).read_text("utf-8").splitlines()
    assert len(rows) == 2
    assert json.loads((tmp_path / "out" / FILES[1]).read_text("utf-8"))["interrupted"]


@pytest.mark.slow
def test_the_tuned_way_is_measured_by_the_same_photos(rendered: Path, tmp_path: Path) -> None:
    options = BenchmarkOptions(
        data=rendered, output=tmp_path / "out", ways="most-frequent,tuned", tune_time="25s", **QUICK
    )
    floor, tuned = run_benchmark(options).rows
    assert tuned.status == "done", tuned.reason
    assert floor.accuracy is not None
    assert tuned.accuracy is not None
    assert tuned.accuracy.n == floor.accuracy.n
    assert tuned.accuracy.value > floor.accuracy.value
