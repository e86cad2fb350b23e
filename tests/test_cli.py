"""The command line: results on stdout, messages on stderr, an exit code that tells, and never a traceback."""

from __future__ import annotations

import csv
import dataclasses
import inspect
import io
import json
import os
import re
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
from contextlib import closing, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args, get_type_hints

import pytest
import typer
from PIL import Image

from pomona.benchmark import BenchmarkOptions
from pomona.bundle import MODEL_NAME
from pomona.cli import build_app
from pomona.demo import DemoOptions, run_demo
from pomona.effort import plan_embedding
from pomona.files import hash_file
from pomona.training import TrainOptions

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from pomona.training import TrainResult

POMONA = [sys.executable, "-m", "pomona"]
GOLDEN = Path(__file__).parent / "golden"
BUNDLE = str(GOLDEN / "bundle-v1")
RED, GREEN = GOLDEN / "photos" / "red.png", GOLDEN / "photos" / "green.png"
BUFFERED = {**os.environ, "PYTHONUNBUFFERED": ""}  # as users have it: what is written last may fail as late as the exit
SMALL = ("--effort", "instant", "--imgsz", 64)
posix_only = pytest.mark.skipif(sys.platform == "win32", reason="needs POSIX signals, limits or devices")


def _run(*arguments: object, code: int = 0, env: dict[str, str] | None = None, **options: Any) -> tuple[str, str]:
    """Run `pomona`; returns stdout and stderr after the exit code is checked."""
    done = subprocess.run(
        [*POMONA, *map(str, arguments)],
        capture_output=True,
        encoding="utf-8",
        errors="surrogateescape",
        env={**os.environ, **(env or {})},
        check=False,
        timeout=120,
        **options,
    )
    assert "Traceback" not in done.stderr, done.stderr
    assert "unexpected" not in done.stderr, done.stderr
    assert done.returncode == code, (done.returncode, done.stdout, done.stderr)
    return done.stdout, done.stderr


def _run_json(*arguments: object, **options: Any) -> Any:
    return json.loads(_run(*arguments, "--json", **options)[0])


def _read_csv(path: Path) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(path.read_text(encoding="utf-8"))))


def _error(stderr: str) -> str:
    """The one line that says what is wrong, which comes last."""
    *_, last = stderr.strip().splitlines()
    assert last.startswith("error: "), stderr
    assert stderr.count("error: ") == 1
    return last.removeprefix("error: ")


def _copy_classes(rendered: Path, target: Path, names: dict[str, str], n_photos: int = 4) -> Path:
    """Copy rendered photos into class folders of other names."""
    for source, name in names.items():
        (target / name).mkdir(parents=True)
        for photo in sorted((rendered / source).iterdir())[:n_photos]:
            shutil.copy(photo, target / name / photo.name)
    return target


# --- data that is not as it should be -------------------------------------------------------------------------------


def test_missing_and_empty_data_are_told_apart(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    wanted = {
        "nowhere": "nowhere: wanted a folder, table, list, pattern or zip, there is nothing (seen from",
        "empty": "empty: no photo found: it is empty",
    }
    for data, message in wanted.items():
        stdout, stderr = _run("train", data, code=1, cwd=tmp_path)
        assert message in _error(stderr)
        assert stdout == ""
    assert [path.name for path in tmp_path.iterdir()] == ["empty"]  # not even runs/ is made


def test_one_class_is_not_enough(rendered: Path, tmp_path: Path) -> None:
    _copy_classes(rendered, tmp_path / "data", {"Tropical/Banana": "Banana"})
    _, stderr = _run("train", tmp_path / "data", "--output", tmp_path / "run", code=1)
    assert "wanted photos of at least 2 classes, got 1 (Banana): put the photos of each class into" in _error(stderr)
    assert not (tmp_path / "run").exists()


def test_photos_without_class_folders_are_refused(tmp_path: Path) -> None:
    shutil.copytree(GOLDEN / "photos", tmp_path / "data")
    _, stderr = _run("train", tmp_path / "data", code=1, cwd=tmp_path)
    assert "no class folders: 5 photos lie in one folder" in _error(stderr)


def test_bad_photos_lonely_classes_and_strangers_are_noted(rendered: Path, tmp_path: Path) -> None:
    classes = {"Tropical/Banana": "Banana", "Citrus/Lemon": "Lemon"}
    train = _copy_classes(rendered, tmp_path / "data" / "train", classes)
    _copy_classes(rendered, train, {"Citrus/Orange": "Orange"}, n_photos=1)
    _copy_classes(rendered, tmp_path / "data" / "val", classes | {"Citrus/Orange": "Mandarin"}, n_photos=8)
    (train / "Banana" / "empty.jpg").touch()
    (train / "Banana" / "cut.jpg").write_bytes((train / "Banana" / "Banana_0001.jpg").read_bytes()[:700])
    output = tmp_path / "run"
    stdout, stderr = _run("train", tmp_path / "data", "--output", output, *SMALL)
    assert "Learnt 3 classes from 9 photos, 2 skipped." in stdout
    assert re.search(r"Right on \d+\.\d% of 16 photos of the val part", stdout)
    assert f"Skipped      {output / 'audit.csv'}" in stdout
    assert "note: Learnt from one photo only: Orange." in stderr
    assert "note: Left out, of classes that train lacks: 8 photos (Mandarin)." in stderr
    assert "note: Photos that are measured on and have a twin in train: 9" in stderr
    unusable = [row for row in _read_csv(output / "audit.csv") if row["check"] == "unusable"]
    assert sorted(row["reason"].split(":")[0] for row in unusable) == ["empty", "truncated"]
    assert _run_json("train", tmp_path / "data", "--output", output, *SMALL)["n_skipped"] == 2


def test_photos_that_are_all_alike_are_refused_by_name(tmp_path: Path) -> None:
    whole = io.BytesIO()
    Image.new("RGB", (40, 40), (90, 120, 60)).save(whole, "JPEG")
    for i in range(8):  # one picture, and bytes after its end that make eight files of it
        folder = tmp_path / "data" / "ab"[i % 2]
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{i}.jpg").write_bytes(whole.getvalue() + bytes(i))
    _, stderr = _run("train", tmp_path / "data", "--output", tmp_path / "run", *SMALL, code=1)
    assert "wanted photos that differ, got 6 photos" in _error(stderr)
    assert not (tmp_path / "run").exists()


def test_one_photo_a_class_is_refused_and_two_are_learnt_on_one_core(rendered: Path, tmp_path: Path) -> None:
    classes = {"Tropical/Banana": "Banana", "Citrus/Lemon": "Lemon", "Citrus/Orange": "Orange"}
    _copy_classes(rendered, tmp_path / "one", classes, n_photos=1)
    _, stderr = _run("train", tmp_path / "one", "--output", tmp_path / "run", *SMALL, code=1)
    assert "no photo can be spared for the val part" in _error(stderr)
    assert "bring more different photos, or a val folder" in stderr
    _copy_classes(rendered, tmp_path / "two", classes, n_photos=2)
    confined = [
        sys.executable,
        "-c",
        _CONFINED,
        *POMONA,
        "train",
        tmp_path / "two",
        "--output",
        tmp_path / "run",
        *SMALL,
    ]
    done = subprocess.run([*map(str, confined)], capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0, done.stderr
    assert "Learnt 3 classes from 3 photos." in done.stdout
    assert "note: Learnt from one photo only: Banana, Lemon, Orange." in done.stderr


_CONFINED = """
import os, subprocess, sys
if hasattr(os, "sched_setaffinity"):
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
sys.exit(subprocess.run(sys.argv[1:]).returncode)
"""


def test_photo_without_permission_is_an_error_in_its_place(tmp_path: Path) -> None:
    shutil.copy(RED, tmp_path / "closed.png")
    (tmp_path / "closed.png").chmod(0)
    if os.access(tmp_path / "closed.png", os.R_OK):
        pytest.skip("this user may read everything")
    closed, green = _run_json("predict", BUNDLE, tmp_path / "closed.png", GREEN)
    assert "permission" in closed["error"].lower()
    assert green["label"] == "Granny Smith"


@posix_only
def test_names_of_all_kinds_and_links_in_circles(rendered: Path, tmp_path: Path) -> None:
    names = {"Tropical/Banana": "香蕉 🍌", "Citrus/Lemon": "a b\n[red]c", "Citrus/Orange": "-橙子"}
    data = _copy_classes(rendered, tmp_path / "水果 data", names)
    (data / "香蕉 🍌" / "Banana_0001.jpg").rename(data / "香蕉 🍌" / "图\n1 🍌\u2028.jpg")
    (data / "circle").symlink_to(data)
    (data / "-橙子" / "self").symlink_to("self")
    before = {path: path.lstat().st_mtime_ns for path in data.rglob("*")}
    output = tmp_path / "run 🍎"
    stdout, _ = _run("train", data, "--output", output, *SMALL)
    assert "Learnt 3 classes" in stdout
    assert {path: path.lstat().st_mtime_ns for path in data.rglob("*")} == before
    answers = _run_json("predict", output, data)
    assert len(answers) == 12
    assert str(data / "香蕉 🍌" / "图\n1 🍌\u2028.jpg") in {answer["file"] for answer in answers}
    assert {"香蕉 🍌", "-橙子"} & {answer["label"] for answer in answers}
    assert _run_json("evaluate", output, data)["n"] == 12


def _mounted(place: Path, size: str) -> bool:
    place.mkdir()
    return not subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(place)], capture_output=True, check=False
    ).returncode


@contextmanager
def _small_disk(place: Path, size: str) -> Iterator[Path]:
    if sys.platform != "linux" or os.geteuid() or not _mounted(place, size):
        pytest.skip("a small disk can only be mounted by root on Linux")
    try:
        yield place
    finally:
        subprocess.run(["umount", str(place)], check=True)


def test_full_disk_for_the_run(rendered: Path, tmp_path: Path, trained: TrainResult) -> None:
    # The network fits and the files after it do not.
    size_kib = (trained.bundle.folder / MODEL_NAME).stat().st_size // 1024 + 40
    with _small_disk(tmp_path / "disk", f"{size_kib}k") as disk:
        _, stderr = _run("train", rendered, "--output", disk / "run", *SMALL, code=1)
        assert f"could not write {disk}" in _error(stderr)
        assert "the disk is full: free some space, or name another place" in stderr
        assert list(disk.iterdir()) == []


def test_full_disk_for_the_cache(rendered: Path, tmp_path: Path) -> None:
    with _small_disk(tmp_path / "disk", "2m") as disk:
        arguments = ("train", rendered, "--output", tmp_path / "run", *SMALL)
        _, stderr = _run(*arguments, code=1, env={"POMONA_CACHE": str(disk)})
        assert "the disk is full" in _error(stderr)
        assert str(disk / "networks") in stderr
    assert not (tmp_path / "run").exists()


@posix_only
def test_limited_file_size_for_the_run(rendered: Path, tmp_path: Path, trained: TrainResult) -> None:
    command = ["train", str(rendered), "--output", str(tmp_path / "run"), "--effort", "instant", "--imgsz", "64"]
    limited = ["/bin/sh", "-c", 'ulimit -f 6000; exec "$@"', "sh", *POMONA, *command]
    done = subprocess.run(limited, capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 1
    assert re.search(r"could not write .*model\.onnx: the file is larger than this system allows", _error(done.stderr))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="there is no /dev/full")
@pytest.mark.parametrize("form", [["--json"], ["--csv"], []])
def test_full_disk_for_the_answer(form: list[str]) -> None:
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(
            [*POMONA, "predict", BUNDLE, str(RED), *form],
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            check=False,
            env=BUFFERED,
        )
    assert done.returncode == 1
    assert _error(done.stderr) == "could not read or write the result: No space left on device"


@posix_only
@pytest.mark.parametrize(("form", "n_photos"), [("--json", 1), ("--csv", 1), ("--csv", 3000)])
def test_reader_that_has_seen_enough_is_no_error(form: str, n_photos: int) -> None:
    command = [*POMONA, "predict", BUNDLE, *[str(RED)] * n_photos, form]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with subprocess.Popen(command, **pipes, text=True, env=BUFFERED) as process:
        assert process.stdout
        assert process.stderr
        if n_photos > 1:
            process.stdout.readline()
        process.stdout.close()
        stderr = process.stderr.read()
    assert process.returncode == 0
    assert "error" not in stderr.lower()


# --- cache and bundle that are not as they should be ----------------------------------------------------------------


@pytest.mark.parametrize("damage", ["vector", "database", "network"])
def test_damaged_cache_is_computed_again(rendered: Path, trained: TrainResult, tmp_path: Path, damage: str) -> None:
    cache = Path(shutil.copytree(os.environ["POMONA_CACHE"], tmp_path / "cache"))
    embedding = plan_embedding("instant", size_px=64, precision=trained.bundle.manifest.embedding.precision)
    name = f"{embedding.slug}-{embedding.key[:16]}"
    (database,) = cache.glob(f"features/{name}-*.sqlite")
    (network,) = cache.glob(f"networks/{name}-*.onnx")
    if damage == "vector":
        with closing(sqlite3.connect(database)) as connection, connection:
            ((key, vector),) = connection.execute("SELECT sha256, vector FROM vectors LIMIT 1").fetchall()
            spoilt = bytes(4) + vector[4:]
            assert spoilt != vector
            connection.execute("UPDATE vectors SET vector = ? WHERE sha256 = ?", (spoilt, key))
    elif damage == "database":
        database.write_bytes(b"garbage" * 1000)
    else:
        with network.open("r+b") as stream:
            stream.seek(1_000_000)
            stream.write(bytes(1000))
    _run(
        "train",
        rendered,
        "--output",
        tmp_path / "run",
        "--effort",
        "instant",
        "--imgsz",
        64,
        env={"POMONA_CACHE": str(cache)},
    )
    for name in ("model.onnx", "metrics.json"):
        assert hash_file(tmp_path / "run" / name) == hash_file(trained.bundle.folder / name)


def test_damaged_or_newer_bundle_is_refused(tmp_path: Path) -> None:
    bundle = Path(shutil.copytree(BUNDLE, tmp_path / "bundle"))
    manifest = bundle / "pomona.json"
    whole = manifest.read_bytes()
    for content, message in {
        whole.replace(b"Banana", b"Papaya"): "its checksum does not match",
        whole.replace(b'"format": 1', b'"format": 5'): "written by a newer Pomona; this one reads up to 4: upgrade",
        b"": "pomona.json is damaged: wanted JSON",
    }.items():
        manifest.write_bytes(content)
        stdout, stderr = _run("predict", bundle, RED, "--json", code=1)
        assert message in _error(stderr)
        assert stdout == ""
    assert message in _error(_run("evaluate", bundle, GOLDEN, code=1)[1])
    manifest.write_bytes(whole)
    (bundle / "model.onnx").write_bytes(b"onnx")
    assert "model.onnx is damaged: wanted sha256" in _error(_run("predict", bundle, RED, code=1)[1])
    assert "got no folder" in _error(_run("predict", tmp_path / "none", RED, code=1)[1])
    assert "got no pomona.json in it" in _error(_run("predict", tmp_path, RED, code=1)[1])


# --- predict --------------------------------------------------------------------------------------------------------


def test_every_dirty_image_gets_an_answer_and_little_memory(shared: Path) -> None:
    folder = shared / "data" / "dirty_images"
    photos = sorted(path for path in folder.rglob("*") if path.is_file())
    measure = (
        "import resource, subprocess, sys\n"
        "done = subprocess.run(sys.argv[1:])\n"
        "print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss, file=sys.stderr)\n"
        "sys.exit(done.returncode)\n"
    )
    command = [sys.executable, "-c", measure, *POMONA, "predict", BUNDLE, *map(str, photos), "--json"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr
    answers = json.loads(done.stdout)
    assert [answer["file"] for answer in answers] == [str(photo) for photo in photos]
    assert all((answer["label"] is None) == (answer["error"] is not None) for answer in answers)
    assert 10 <= sum(answer["label"] is not None for answer in answers) < len(answers)
    assert int(done.stderr.split()[-1]) < 1024 * 1024  # KiB


def test_photos_may_be_named_in_every_way(tmp_path: Path) -> None:
    for i in (10, 9, 1):
        Image.new("RGB", (9, 9), (196, 30, 42)).save(tmp_path / f"red {i}.png")
    (tmp_path / "deep").mkdir()
    shutil.copy(GREEN, tmp_path / "deep" / "green.png")
    (tmp_path / "notes.txt").write_text("no photo")
    shutil.copy(GOLDEN / "photos" / "yellow.jpg", tmp_path / "no suffix")

    def files(*arguments: object, **options: Any) -> list[str]:
        answers = _run_json("predict", BUNDLE, *arguments, cwd=tmp_path, **options)
        assert all(answer["error"] is None for answer in answers)
        return [answer["file"] for answer in answers]

    assert files("red 1.png", "deep/green.png") == ["red 1.png", "deep/green.png"]
    assert files("red*.png") == ["red 1.png", "red 9.png", "red 10.png"]
    assert sorted(map(Path, files("."))) == sorted(
        map(Path, ["red 1.png", "red 9.png", "red 10.png", "no suffix", "deep/green.png"])
    )
    listed = "red 9.png\r\n\ndeep/green.png\nred 1.png"
    assert files("red 10.png", "-", input=listed) == ["red 10.png", "red 9.png", "deep/green.png", "red 1.png"]


@posix_only
def test_paths_from_stdin_may_hold_anything_but_a_newline(tmp_path: Path) -> None:
    for name in (b"a\xe2\x80\xa8b\x0b.png", b"\xe9.png"):
        shutil.copy(RED, os.fsdecode(os.fsencode(tmp_path) + b"/" + name))
    listed = "a\u2028b\x0b.png\n\udce9.png\n"
    first, second = _run_json("predict", BUNDLE, "-", cwd=tmp_path, input=listed)
    assert (first["file"], second["file"]) == ("a\u2028b\x0b.png", "\udce9.png")
    assert first["label"] == second["label"] == "红苹果"


def test_json_has_these_keys_and_errors_in_place(tmp_path: Path) -> None:
    stdout, stderr = _run("predict", BUNDLE, RED, tmp_path / "no 🍎.jpg", GREEN, "--json")
    red, missing, green = json.loads(stdout)
    said = ["answer", "sure", "unknown", "strangeness", "shortlist"]
    assert list(red) == ["file", "label", "score", "top", "error", *said, "name_en", "name_zh", "plu"]
    assert [list(one) for one in red["top"]] == [["label", "score", "name_en", "name_zh", "plu"]] * 3
    assert (red["label"], green["label"], green["error"]) == ("红苹果", "Granny Smith", None)
    assert {name: missing[name] for name in ("label", "score", "top")} == {"label": None, "score": None, "top": []}
    assert missing["error"].startswith("wanted a photo file, it cannot be opened")
    assert "红苹果" in stdout  # written as it is, not as escapes
    assert "Predicting: 3" in stderr
    narrow, _ = _run("predict", BUNDLE, RED, tmp_path / "no 🍎.jpg", "--json", env={"PYTHONIOENCODING": "cp1252"})
    assert json.loads(narrow) == [red, missing]


def test_csv_has_a_row_for_each_photo(tmp_path: Path) -> None:
    shutil.copy(RED, tmp_path / 'a, "b".png')
    stdout, _ = _run("predict", BUNDLE, 'a, "b".png', "none.jpg", GREEN, "--csv", cwd=tmp_path)
    rows = list(csv.DictReader(io.StringIO(stdout)))
    assert [row["file"] for row in rows] == ['a, "b".png', "none.jpg", str(GREEN)]
    assert [row["label"] for row in rows] == ["红苹果", "", "Granny Smith"]
    assert float(rows[0]["score"]) == pytest.approx(0.948816, abs=1e-5)
    assert [bool(row["error"]) for row in rows] == [False, True, False]


def test_table_names_answers_and_errors(tmp_path: Path) -> None:
    shutil.copy(RED, tmp_path / "[bold]red[-].png")
    stdout, _ = _run("predict", BUNDLE, "[bold]red[-].png", "none.jpg", cwd=tmp_path)
    assert re.search(r"\[bold\]red\[-\]\.png +红苹果 +94\.9% +Banana 5\.0%, Granny Smith 0\.2%", stdout)
    assert re.search(r"none\.jpg +error: wanted a photo file", stdout)


def _interrupt_prediction(arguments: Sequence[str], cwd: Path, *, n_lines: int, wait_s: float) -> str:
    """Stdout of a prediction that is stopped after some lines or seconds."""
    with subprocess.Popen(
        [*POMONA, "predict", *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=cwd,
        env=BUFFERED,
    ) as process:
        assert process.stdout
        first = "".join(process.stdout.readline() for _ in range(n_lines))
        time.sleep(wait_s)
        process.send_signal(signal.SIGINT)
        stdout, stderr = process.communicate(timeout=60)
    assert process.returncode == 130, stderr
    assert _error(stderr) == "interrupted"
    return first + stdout


@posix_only
@pytest.mark.parametrize("form", ["--json", "--csv", ""])
def test_interrupted_prediction_prints_what_it_has(trained: TrainResult, tmp_path: Path, form: str) -> None:
    n_photos = 400
    Image.effect_noise((2500, 2500), 80).convert("RGB").save(tmp_path / "large.png", compress_level=1)
    arguments = [str(trained.bundle.folder), *["large.png"] * n_photos, "--workers", "1", *filter(None, [form])]
    found: list[str] = []
    for wait_s in (0,) if form == "--csv" else (4, 12, 40):  # rows come one by one; a busy machine begins late
        stdout = _interrupt_prediction(arguments, tmp_path, n_lines=2 if form == "--csv" else 0, wait_s=wait_s)
        found = {
            "--json": lambda out: [answer["file"] for answer in json.loads(out)],
            "--csv": lambda out: [row["file"] for row in csv.DictReader(io.StringIO(out))],
            "": lambda out: re.findall(r"large\.png", out),
        }[form](stdout)
        if found:
            break
    assert 0 < len(found) < n_photos
    assert set(found) == {"large.png"}


def test_no_photo_that_can_be_used_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "bad.jpg").write_bytes(b"bad")
    stdout, stderr = _run("predict", BUNDLE, tmp_path / "bad.jpg", tmp_path / "none.jpg", "--json", code=1)
    assert [answer["label"] for answer in json.loads(stdout)] == [None, None]
    assert _error(stderr) == "none of the 2 photos could be used"
    (tmp_path / "empty").mkdir()
    stdout, stderr = _run("predict", BUNDLE, tmp_path / "empty", "--json", code=1)
    assert (json.loads(stdout), _error(stderr)) == ([], "no photo found there")
    _, stderr = _run("predict", BUNDLE, "-", code=1, input="")
    assert _error(stderr) == "no photo found there"


def test_topk_names_as_many_as_there_are() -> None:
    for topk, n_named in ((1, 1), (2, 2), (99, 3)):
        (answer,) = _run_json("predict", BUNDLE, RED, "--topk", topk)
        assert len(answer["top"]) == n_named


# --- train, evaluate, demo ------------------------------------------------------------------------------------------


def test_train_and_evaluate_report_the_same_numbers_as_json(rendered: Path, tmp_path: Path) -> None:
    output = tmp_path / "run"
    result = _run_json("train", rendered, "--output", output, *SMALL, "--seed", 3)
    assert {"accuracy", "accuracy_interval", "macro_f1", "n", "levels", "notes", "output"} <= set(result)
    looked = ["look", "compare", "split"]
    assert list(result["seconds"]) == ["read", "plan", "features", *looked, "fit", "trust", "evaluate", "save"]
    assert result["output"] == str(output)
    low, high = result["accuracy_interval"]
    assert 0 <= low <= result["accuracy"] <= high <= 1

    kept_apart = [row["file_name"] for row in _read_csv(output / "predictions.csv")]
    table = tmp_path / "val.csv"
    rows = "".join(f"{rendered / name},{Path(name).parent.as_posix()},val\n" for name in kept_apart)
    table.write_text("file_name,label,split\n" + rows, encoding="utf-8")
    score = _run_json("evaluate", output, table)
    same = ("n", "accuracy", "accuracy_interval", "macro_f1", "levels", "per_class")
    assert {name: score[name] for name in same} == {name: result[name] for name in same}
    assert (score["n_skipped"], score["n_unknown_class"], score["unknown_classes"]) == (0, 0, [])
    stdout, stderr = _run("evaluate", output, table, "--workers", 1)
    assert f"Right on {score['accuracy']:.1%} of 6 " in stdout
    assert (score["n_learnt"], "learnt from" in stderr) == (0, False)
    flattering, stderr = _run("evaluate", output, rendered, "--json")
    assert json.loads(flattering)["n_learnt"] == 18
    assert "note: 18 of these 24 photos were learnt from: the numbers are too good" in stderr
    assert "wanted the test part, got val" in _error(_run("evaluate", output, table, "--split", "test", code=1)[1])


def test_evaluate_says_what_it_left_out(tmp_path: Path) -> None:
    for name in ("红苹果", "Kiwi"):
        (tmp_path / name).mkdir()
        shutil.copy(RED, tmp_path / name / "1.png")
    (tmp_path / "红苹果" / "bad.jpg").write_bytes(b"bad")
    stdout, stderr = _run("evaluate", BUNDLE, tmp_path)
    assert "Right on 100.0% of 1 " in stdout
    assert "note: left out, of classes that the recogniser does not know: 1 photo (Kiwi)" in stderr
    assert "note: 红苹果/bad.jpg: " in stderr


def test_evaluate_tells_which_of_two_is_right_more_often(
    promising: TrainResult, trained: TrainResult, strangers: Path
) -> None:
    run, other = promising.bundle.folder, trained.bundle.folder
    data = run.parent / "fruit"
    found = _run_json("evaluate", run, data, "--against", other)
    assert {"kept", "baselines", "found_unknown", "against", "difference"} <= found.keys()
    difference = found["difference"]
    assert difference.keys() == {
        *("difference", "difference_interval", "n_better", "n_worse", "p_value", "verdict"),
    }
    assert found["against"]["n_unknown_class"] == 48  # two of the five kinds
    stdout, stderr = _run("evaluate", run, data, "--against", other)
    assert difference["verdict"].capitalize() in stdout
    assert f"{difference['n_better']} right in {run} alone, {difference['n_worse']} in {other} alone" in stdout
    assert "Sure answers, promised right on 80%" in stdout
    assert "always the most frequent class" in stdout
    assert "of these 120 photos were learnt from: the numbers are too good" in stderr
    assert "-0%" not in stdout
    _, stderr = _run("evaluate", run, strangers, code=1)
    assert "48 have a class that the bundle does not know" in _error(stderr)


def test_predict_says_unknown_and_what_comes_nearest(promising: TrainResult, strangers: Path) -> None:
    run = promising.bundle.folder
    photos = sorted(strangers.rglob("*.jpg"))[:6]
    rows = list(csv.DictReader(io.StringIO(_run("predict", run, *photos, "none.jpg", "--csv")[0])))
    assert list(rows[0])[-3:] == ["answer", "sure", "unknown"]
    assert [rows[-1][name] for name in ("answer", "sure", "unknown")] == ["", "", ""]
    answers = _run_json("predict", run, *photos)
    assert sum(answer["unknown"] for answer in answers) >= 4
    for row, answer in zip(rows, answers, strict=False):
        assert (row["answer"], row["unknown"]) == (answer["answer"]["label"], str(int(answer["unknown"])))
        assert row["sure"] == str(int(answer["sure"]))
    table, _ = _run("predict", run, *photos, env={"COLUMNS": "200"})
    assert table.count("unknown") == table.count("nearest: ") == sum(answer["unknown"] for answer in answers)
    chinese, _ = _run("predict", run, *photos, "--language", "zh", env={"COLUMNS": "200"})
    assert "未知" in chinese


def test_output_is_refused_before_any_work(rendered: Path, tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("mine")
    started_s = time.perf_counter()
    _, stderr = _run("train", rendered, "--output", tmp_path, code=1)
    assert "got something else there; choose another --output" in _error(stderr)
    assert "Reading" not in stderr
    assert time.perf_counter() - started_s < 10
    assert "wanted a folder outside the photos" in _error(_run("train", ".", code=2, cwd=rendered)[1])
    assert not (rendered / "runs").exists()


@pytest.mark.parametrize("form", [["--json"], []])
def test_interrupted_training_says_where_the_recogniser_stands(
    form: list[str], trained: TrainResult, monkeypatch: pytest.MonkeyPatch
) -> None:
    from typer.testing import CliRunner

    monkeypatch.setattr("pomona.training.train", lambda *_args, **_more: dataclasses.replace(trained, interrupted=True))
    done = CliRunner().invoke(build_app("train"), ["train", "data", *form])
    assert done.exit_code == 130
    assert _error(done.stderr) == (
        f"interrupted; a recogniser of what was learnt stands in {trained.bundle.folder}, and the same with --resume "
        "goes on"
    )
    if form:
        assert json.loads(done.stdout)["interrupted"] is True


@posix_only
def test_interrupted_training_goes_on_where_it_was(trained: TrainResult, tmp_path: Path) -> None:
    n_photos = 600
    for i in range(n_photos):
        folder = tmp_path / "data" / ("red" if i % 2 else "green")
        folder.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (8, 8), (i % 256, i // 256, 90)).save(folder / f"{i}.png")
    env = {**os.environ, "POMONA_CACHE": str(tmp_path / "cache")}
    shutil.copytree(Path(os.environ["POMONA_CACHE"]) / "networks", tmp_path / "cache" / "networks")

    def read_rows() -> dict[bytes, int]:
        databases = list((tmp_path / "cache").glob("features/*.sqlite"))
        if not databases:
            return {}
        with closing(sqlite3.connect(databases[0])) as connection:
            try:
                return dict(connection.execute("SELECT sha256, rowid FROM vectors").fetchall())
            except sqlite3.OperationalError:  # the table is not there yet
                return {}

    command = [
        "train",
        str(tmp_path / "data"),
        "--output",
        str(tmp_path / "run"),
        "--effort",
        "instant",
        "--imgsz",
        "64",
        "--workers",
        "1",
    ]
    with subprocess.Popen([*POMONA, *command], stderr=subprocess.PIPE, text=True, env=env) as process:
        until_s = time.monotonic() + 60
        while not read_rows() and time.monotonic() < until_s and process.poll() is None:
            time.sleep(0.02)
        process.send_signal(signal.SIGINT)
        assert process.stderr
        stderr = process.stderr.read()
    assert process.returncode == 130, stderr
    assert _error(stderr) == "interrupted; features computed so far are kept"
    assert "Traceback" not in stderr
    kept = read_rows()
    assert 0 < len(kept) < n_photos
    assert not (tmp_path / "run").exists()
    _run(*command, env=env)
    whole = read_rows()
    assert len(whole) == n_photos
    # A vector that was computed again would have been inserted anew, as another row.
    assert {digest: whole[digest] for digest in kept} == kept


def test_demo_renders_trains_and_answers(tmp_path: Path) -> None:
    (tmp_path / "new").mkdir()
    (tmp_path / "new" / "mine.jpg").write_bytes(b"mine")
    stdout, stderr = _run("demo", "--output", tmp_path, "--per-kind", 6)
    assert "Rendering photos: 72" in stderr
    assert "Learnt 12 classes from 60 photos." in stdout
    answers = [line for line in stdout.splitlines() if "new-" in line]
    assert [line.split()[1] for line in answers] == ["Banana", "Strawberry", "Kiwi", "Lemon", "not"]
    assert "The last photo shows no fruit" in stdout
    assert (tmp_path / "run" / "report.html").is_file()
    assert f"pomona predict {tmp_path / 'run'} PHOTO" in stdout
    assert sorted(path.name for path in (tmp_path / "new").glob("new-*.jpg")) == [f"new-{i}.jpg" for i in range(1, 6)]
    assert (tmp_path / "new" / "mine.jpg").read_bytes() == b"mine"
    rendered = {path: path.stat().st_mtime_ns for path in tmp_path.glob("seed-*/rendered-fruit/**/*")}
    run_demo(DemoOptions(output=tmp_path, per_kind=6))
    assert {path: path.stat().st_mtime_ns for path in tmp_path.glob("seed-*/rendered-fruit/**/*")} == rendered


# --- usage ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["train"], "Missing argument"),
        (["train", ""], "data: wanted a path, got an empty text"),
        (["train", "x", "--output", ""], "output: wanted a path, got an empty text"),
        (["evaluate", BUNDLE, "x", "--workers", "0"], "--workers"),
        (["train", "x", "--thrust", "3"], "No such option"),
        (["train", "x", "--epochs", "3"], "wanted --tune head, tail or full with --epochs, got none"),
        (["train", "x", "--tune", "tail", "--effort", "best"], "wanted --effort or --tune, got both: best and tail"),
        (["train", "x", "--tune", "tail", "--optimizer", "lion"], "--optimizer"),
        (["train", "x", "--tune", "tail", "--lr", "fast"], "lr: wanted a number or auto, got 'fast'"),
        (["train", "x", "--tune", "tail", "--mix-share", "2"], "mix-share: wanted a share 0 to 1, got 2"),
        (["train", "x", "--enhance", "sharpen"], "sharpen"),
        (["train", "x", "--imgsz", "big"], "--imgsz"),
        (["train", "x", "--imgsz", "8"], "imgsz: wanted 64 to 1024 pixels, got 8"),
        (["train", "x", "--backbone", "resnet"], "backbone: wanted one of lite0, lite1, lite2, torchvision:NAME"),
        (["train", "x", "--val-share", "1.5"], "val-share: wanted a share between 0 and 1, got 1.5"),
        (["train", "x", "--workers", "0"], "workers: wanted 1 or more, got 0"),
        (["demo", "--per-kind", "1"], "per-kind: wanted 2 photos or more"),
        (["demo", "--seed", "-1"], "seed: wanted 0 or more, got -1"),
        (["demo", "--workers", "0"], "workers: wanted 1 or more, got 0"),
        (["predict", BUNDLE], "Missing argument"),
        (["predict", BUNDLE, "x", "--topk", "0"], "--topk"),
        (["predict", BUNDLE, "x", "--json", "--csv"], "wanted --json or --csv, got both"),
        (["evaluate", BUNDLE, "x", "--split", "all"], "--split"),
        (["bake"], "No such command"),
    ],
)
def test_wrong_usage_exits_with_2(arguments: list[str], message: str, tmp_path: Path) -> None:
    stdout, stderr = _run(*arguments, code=2, cwd=tmp_path)
    assert message in " ".join(re.sub(r"[│╭╮╰╯─]", " ", stderr).split())
    assert stdout == ""
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("arguments", [["--help"], ["--version"], ["predict", "--help"]])
def test_help_is_quick_because_nothing_heavy_is_imported(arguments: list[str]) -> None:
    code = (
        "import sys\nfrom pomona.cli import run\n"
        "try:\n    run()\nexcept SystemExit:\n    pass\n"
        "heavy = 'numpy openvino sklearn scipy torch onnx PIL jinja2 matplotlib simplejpeg safetensors'\n"
        "print('loaded:', *(name for name in heavy.split() if name in sys.modules))\n"
    )
    done = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "loaded:"


def test_help_and_version() -> None:
    from pomona import __version__

    assert _run("--version")[0] == f"pomona {__version__}\n"
    stdout, _ = _run("--help")
    assert all(re.search(rf"│ {name} +\S", stdout) for name in ("demo", "train", "evaluate", "predict", "fetch"))


@pytest.mark.parametrize(
    ("command", "options_class"), [("train", TrainOptions), ("demo", DemoOptions), ("benchmark", BenchmarkOptions)]
)
def test_flags_are_the_fields_of_the_options_class(command: str, options_class: type[Any]) -> None:
    app = build_app()
    parameters = {one.name: one for one in typer.main.get_command(app).commands[command].params}
    (callback,) = (one.callback for one in app.registered_commands if one.name == command)
    signature = inspect.signature(callback)
    fields = {field.name: field for field in dataclasses.fields(options_class)}
    hints = get_type_hints(options_class, include_extras=True)
    own = {"benchmark": {"threads", "photos"}}.get(command, set())  # of a recogniser, which has no such options
    assert set(parameters) - {"as_json"} - own == set(fields)
    for name, field in fields.items():
        kind, text = get_args(hints[name])[:2]
        parameter = parameters[name]
        required = field.default is dataclasses.MISSING
        assert parameter.help == text
        assert parameter.required == required
        assert parameter.param_type_name == ("argument" if required else "option")
        if not required:
            assert parameter.default == field.default or str(parameter.default) == str(field.default)
            assert parameter.opts == [f"--{name.replace('_', '-')}"]
        assert get_args(signature.parameters[name].annotation)[0] == kind
    for one in [part for part in options_class.__mro__ if dataclasses.is_dataclass(part)]:
        parameters_of_one = (one.__doc__ or "").split("See Also")[0]
        documented = re.findall(r"^    (\w+) : ", parameters_of_one, re.MULTILINE)
        assert documented == list(one.__annotations__)
