"""`check_data` and `pomona check`: what is asked for is written, decisions come back, and nothing is done twice."""

from __future__ import annotations

import csv
import json
import os
import shutil
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from PIL import Image, ImageFilter

from pomona import checking, photo_facts, shortcut
from pomona import features as features_module
from pomona.checking import CheckOptions, CheckResult, check_data
from pomona.dataset import load_dataset
from pomona.effort import Machine, plan_embedding
from pomona.embedding import load_network
from pomona.errors import DataError, OptionError, StorageError
from pomona.files import hash_file
from pomona.findings import CHECKS, COLUMNS
from pomona.photo import read_unchanged
from pomona.samples import KINDS, render_photo

if TYPE_CHECKING:
    from collections.abc import Iterator

    from pomona.training import TrainResult

ANSWERS = Path(__file__).parent / "answers" / "dirty_images.csv"
ODD_NAMES = ['comma, "quote".jpg', "semi;colon\tand tab.jpg", "two\nlines.jpg", " blank.jpg", "=1+1.jpg", "梨.jpg"]
posix_only = pytest.mark.skipif(sys.platform == "win32", reason="Windows knows no such names")


@pytest.fixture(scope="module", autouse=True)
def _quick() -> Iterator[None]:
    """A machine that need not be measured, and a small forest, which answers as a large one does."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(shortcut, "_N_TREES", 4)
        patch.setattr(checking, "measure_machine", lambda _n_workers: Machine(2.0, 1.0, 1.0))
        yield


def render(seed: int) -> Image.Image:
    return Image.fromarray(render_photo(KINDS[1 + seed % 2], seed=seed, size_px=64))


def write_set(folder: Path, n_photos: int, first: int = 0) -> Path:
    for seed in range(first, first + n_photos):
        path = folder / KINDS[1 + seed % 2].name / f"{seed}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        render(seed).save(path, quality=90)
    return folder


APPLE, BANANA = KINDS[1].name, KINDS[2].name


@pytest.fixture(scope="module")
def fruit(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Ten photos of two kinds, a copy, the same photo under two names, a file that is cut off; not to be changed."""
    folder = write_set(tmp_path_factory.mktemp("checking") / "fruit", 10)
    shutil.copy(folder / APPLE / "0.jpg", folder / APPLE / "copy.jpg")
    shutil.copy(folder / APPLE / "2.jpg", folder / BANANA / "mixed up.jpg")
    (folder / BANANA / "cut.jpg").write_bytes((folder / BANANA / "3.jpg").read_bytes()[:800])
    return folder


def check(data: Path, **options: Any) -> CheckResult:
    return check_data(CheckOptions(**{"data": data, "check": "quick", "effort": "instant", **options}))


def read_table(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8", newline="") as stream:
        reader = csv.DictReader(stream, strict=True)
        rows = list(reader)
    assert tuple(reader.fieldnames or ()) == COLUMNS
    assert all(None not in row and None not in row.values() for row in rows)
    return rows


def write_decisions(path: Path, rows: list[tuple[str, str, str, str]]) -> Path:
    """As the page does: quoted where it must be, a mark at the beginning, lines as on Windows."""

    def quote(text: str) -> str:
        needs = any(sign in text for sign in '",;\t\r\n') or text != text.strip()
        return '"' + text.replace('"', '""') + '"' if needs else text

    lines = [",".join(map(quote, row)) for row in [("file_name", "sha256", "decision", "label"), *rows]]
    path.write_bytes(("\ufeff" + "\r\n".join(lines) + "\r\n").encode())
    return path


def decide(data: Path, decisions: dict[str, tuple[str, str]]) -> list[tuple[str, str, str, str]]:
    return [(name, hash_file(data / name), action, label) for name, (action, label) in decisions.items()]


def look_at_files(folder: Path) -> dict[str, tuple[str, int]]:
    return {
        str(path): (hash_file(path) if path.is_file() else "", path.stat().st_mtime_ns)
        for path in [folder, *folder.rglob("*")]
    }


# --- what is written ------------------------------------------------------------------------------------------------


def test_all_that_is_asked_for_is_written_and_no_photo_is_touched(fruit: Path, tmp_path: Path) -> None:
    before = look_at_files(fruit)
    report, table, clean = tmp_path / "audit.html", tmp_path / "audit.csv", tmp_path / "clean.csv"
    result = check(fruit, check="full", report=report, csv=table, write_clean=clean)
    assert look_at_files(fruit) == before
    assert result.places == {"Page": report, "Table": table, "Clean list": clean}
    assert sorted(path.name for path in tmp_path.iterdir()) == ["audit.csv", "audit.html", "clean.csv"]
    rows = read_table(table)
    assert len(rows) == len(result.audit.findings)
    assert Counter(row["check"] for row in rows) >= Counter(unusable=1, exact_duplicate=1, conflicting_label=1)
    copy = next(row for row in rows if row["check"] == "exact_duplicate")
    assert copy == {
        "file_name": f"{APPLE}/copy.jpg",
        "check": "exact_duplicate",
        "score": "0.0000",
        "flagged": "1",
        "reason": "the same bytes",
        "other_file": f"{APPLE}/0.jpg",
        "label": APPLE,
        "suggested_label": "",
        "group": next(photo.group for photo in result.audit.dataset.photos if photo.name == f"{APPLE}/0.jpg"),
    }
    assert [stage.name for stage in result.stages] == [
        "read", "features", "look", "compare", "split", "labels", "shortcuts", "write"
    ]  # fmt: skip
    again = check(fruit, check="full", report=report, csv=table, write_clean=clean)  # each may be replaced
    assert read_table(table) == rows
    assert again.audit == result.audit


def test_nothing_is_written_unless_asked_for(fruit: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    result = check(fruit)
    assert (result.places, result.plan, list(tmp_path.iterdir())) == ({}, None, [])


def test_plain_values_hold_everything(fruit: Path) -> None:
    result = check(fruit)
    told = json.loads(json.dumps(result.to_dict(), allow_nan=False))
    assert (told["n_photos"], told["n_skipped"], told["n_ignored"]) == (12, 1, 0)
    assert told["checks"] == result.audit.count()
    assert told["n_groups"] == result.audit.n_groups >= 2
    assert [row["file_name"] for row in told["findings"]] == [one.name for one in result.audit.findings]
    assert all(set(row) == set(COLUMNS) for row in told["findings"])
    assert all(isinstance(row["score"], float) and isinstance(row["flagged"], bool) for row in told["findings"])
    assert told["clean"] is None
    assert set(told["seconds"]) == {"read", "features", "look", "compare", "split", "write"}


def test_a_clean_list_and_a_clean_folder_hold_the_same(fruit: Path, tmp_path: Path) -> None:
    listed = check(fruit, write_clean=tmp_path / "clean.csv")
    linked = check(fruit, write_clean=tmp_path / "clean")
    assert linked.places == {"Clean folder": tmp_path / "clean"}
    assert listed.plan
    assert listed.plan.count_dropped() == {"conflicting_label": 2, "exact_duplicate": 1}
    contents = [
        Counter((photo.sha256, dataset.tree.names[photo.label]) for photo in dataset.photos)
        for dataset in map(load_dataset, (tmp_path / "clean.csv", tmp_path / "clean"))
    ]
    assert contents[0] == contents[1]
    assert contents[0].total() == 9
    groups = {photo.sha256: photo.group for photo in load_dataset(tmp_path / "clean.csv").photos}
    assert groups == {one.photo.sha256: one.photo.group for one in listed.plan.photos}


def test_a_clean_list_is_clean_when_it_is_looked_at(fruit: Path, tmp_path: Path) -> None:
    first = check(fruit, write_clean=tmp_path / "clean.csv")
    assert first.plan
    again = check(tmp_path / "clean.csv", write_clean=tmp_path / "again.csv")
    same = {"unusable", "conflicting_label", "exact_duplicate", "same_pixels", "leak"}
    assert not [one for one in again.audit.findings if one.check in same]
    rows = [path.read_text("utf-8").splitlines() for path in (tmp_path / "clean.csv", tmp_path / "again.csv")]
    assert rows[0] == rows[1]


@posix_only
def test_odd_names_come_through_table_list_and_decisions(tmp_path: Path) -> None:
    data = write_set(tmp_path / "fruit", 4)
    for i, name in enumerate(ODD_NAMES):
        render(40 + 2 * i).save(data / APPLE / name, "JPEG")
        shutil.copy(data / APPLE / name, data / BANANA / f"of {i}.jpg")
    first = check(data, csv=tmp_path / "audit.csv")
    rows = [row for row in read_table(tmp_path / "audit.csv") if row["check"] == "conflicting_label"]
    shown = {f"{APPLE}/{name}".replace("\n", "\ufffd").replace("\t", "\ufffd") for name in ODD_NAMES}
    assert {row["other_file"] for row in rows} | {row["file_name"] for row in rows} >= shown
    names = {photo.path: photo.name for photo in first.audit.dataset.photos}
    decisions = []
    for i, name in enumerate(ODD_NAMES):
        path = data / APPLE / name
        decisions.append((names[path], hash_file(path), "keep", ""))
        decisions.append((f"{BANANA}/of {i}.jpg", hash_file(path), "drop", ""))
    applied = write_decisions(tmp_path / "decisions.csv", decisions)
    check(data, apply=applied, write_clean=tmp_path / "clean.csv")
    clean = load_dataset(tmp_path / "clean.csv")
    assert {photo.path for photo in clean.photos} == {
        *(data / APPLE / name for name in ODD_NAMES),
        *(data / KINDS[1 + i % 2].name / f"{i}.jpg" for i in range(4)),
    }


# --- decisions ------------------------------------------------------------------------------------------------------


def test_decisions_are_applied(fruit: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    rows = decide(
        fruit,
        {
            f"{APPLE}/4.jpg": ("relabel", BANANA),
            f"{APPLE}/6.jpg": ("relabel", "Quince"),
            f"{BANANA}/5.jpg": ("drop", ""),
            f"{BANANA}/mixed up.jpg": ("drop", ""),
            f"{APPLE}/copy.jpg": ("keep", ""),
        },
    )
    result = check(fruit, apply=write_decisions(tmp_path / "decisions.csv", rows))
    assert result.places == {"Clean list": tmp_path / "clean.csv"}
    assert result.plan
    assert result.to_dict()["clean"] == result.plan.describe()
    assert (result.plan.n_relabelled, result.plan.new_classes) == (2, ("Quince",))
    clean = load_dataset(tmp_path / "clean.csv")
    labels = {str(photo.path.relative_to(fruit)): clean.tree.names[photo.label] for photo in clean.photos}
    assert labels == {
        **{f"{APPLE}/{name}.jpg": APPLE for name in ("2", "8", "copy")},
        **{f"{BANANA}/{name}.jpg": BANANA for name in ("1", "3", "7", "9")},
        f"{APPLE}/4.jpg": BANANA,
        f"{APPLE}/6.jpg": "Quince",
    }


def test_checks_may_drop_more(tmp_path: Path) -> None:
    data = write_set(tmp_path / "fruit", 6, first=200)
    render(206).filter(ImageFilter.GaussianBlur(6)).save(data / APPLE / "blurred.jpg")
    for drop, wanted in (("", {}), ("dark", {}), (" blurry, dark", {"blurry": 1})):
        result = check(data, write_clean=tmp_path / "clean.csv", drop=drop)
        assert result.plan
        assert result.plan.count_dropped() == wanted
    assert "blurred" not in (tmp_path / "clean.csv").read_text("utf-8")


def test_decisions_on_other_data_are_refused_before_the_work(fruit: Path, tmp_path: Path) -> None:
    other = write_set(tmp_path / "other", 4, first=60)
    foreign = write_decisions(tmp_path / "foreign.csv", decide(other, {f"{APPLE}/60.jpg": ("drop", "")}))
    told: list[str] = []
    options = CheckOptions(data=fruit, apply=foreign, write_clean=tmp_path / "clean.csv", effort="instant")
    with pytest.raises(DataError, match=r"decisions of another data set: none of its 1 photos is in .*fruit"):
        check_data(options, on_progress=lambda step, _done, _n: told.append(step))
    assert set(told) == {"read"}
    rows = [*decide(other, {f"{APPLE}/60.jpg": ("drop", "")}), *decide(fruit, {f"{APPLE}/4.jpg": ("drop", "")})]
    with pytest.raises(DataError, match=f"1 of 2 rows cannot be used: row 2: {APPLE}/60.jpg is not in the data"):
        check(fruit, apply=write_decisions(tmp_path / "mixed.csv", rows), write_clean=tmp_path / "clean.csv")
    assert not (tmp_path / "clean.csv").exists()


# --- what is refused ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"workers": 0}, "workers: wanted 1 or more, got 0"),
        ({"drop": "blurry,gps", "write_clean": Path("c.csv")}, "drop: wanted some of .*, got gps"),
        ({"drop": "blurry"}, "drop: wanted --write-clean or --apply with it"),
        ({"csv": Path("audit.txt")}, "csv: wanted a file that ends in .csv, got audit.txt"),
    ],
)
def test_options_that_make_no_sense_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(OptionError, match=message):
        CheckOptions(data=Path("x"), **options)


def test_a_place_is_refused_before_the_work(fruit: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "prices.csv").write_text("file_name,price\na,1\n")
    (tmp_path / "page.html").write_text("<p>mine")
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "mine.jpg").touch()
    decisions = write_decisions(tmp_path / "d.csv", decide(fruit, {f"{APPLE}/4.jpg": ("drop", "")}))
    before = look_at_files(tmp_path)
    refused: list[tuple[dict[str, Any], type[Exception], str]] = [
        ({"csv": Path("prices.csv")}, OptionError, "csv: prices.csv is a file of another kind"),
        ({"csv": Path("d.csv")}, OptionError, "csv: d.csv is a file of another kind"),
        ({"csv": Path("nowhere/a.csv")}, OptionError, "csv: wanted a file in a folder that exists, .* make nowhere"),
        ({"report": Path("nowhere/a.html")}, OptionError, "report: wanted a file in a folder that exists"),
        ({"report": Path("page.html")}, StorageError, "page.html: a file that is no preview stands there"),
        ({"report": Path("photos")}, StorageError, "photos: wanted a place for a page, got a folder"),
        ({"write_clean": Path("prices.csv")}, StorageError, "a file that is no clean list stands there"),
        ({"write_clean": Path("photos")}, StorageError, "a folder that is no clean tree stands there"),
        ({"write_clean": fruit / "clean"}, OptionError, "wanted a folder outside of the data"),
        (
            {"csv": Path("a.csv"), "write_clean": tmp_path / "a.csv"},
            OptionError,
            "wanted places that differ for csv, w",
        ),
        ({"csv": Path("a.csv"), "report": Path("a.csv")}, OptionError, "wanted places that differ for report, csv"),
        ({"csv": Path("clean.csv"), "apply": decisions}, OptionError, "wanted places that differ for csv, write_clean"),
    ]
    for options, error, message in refused:
        told: list[str] = []
        with pytest.raises(error, match=message):
            check_data(
                CheckOptions(data=fruit, effort="instant", **options),
                on_progress=lambda step, _done, _n, told=told: told.append(step),  # type: ignore[misc]
            )
        assert set(told) <= {"read"}
    assert look_at_files(tmp_path) == before


def test_photos_without_labels_make_no_clean_list_but_decisions_may_label_them(tmp_path: Path) -> None:
    data = tmp_path / "photos"
    data.mkdir()
    for i in range(4):
        render(80 + i).save(data / f"{i}.jpg")
    with pytest.raises(DataError, match="photos: wanted labels for a clean list, got photos with nothing to say what"):
        check(data, write_clean=tmp_path / "clean.csv")
    rows = decide(data, {f"{i}.jpg": ("relabel", "AB"[i % 2]) for i in range(3)})
    result = check(data, apply=write_decisions(tmp_path / "d.csv", rows), write_clean=tmp_path / "clean.csv")
    assert result.plan
    assert len(load_dataset(tmp_path / "clean.csv").photos) == 3
    assert {row["label"] for row in result.to_dict()["findings"]} <= {""}


def test_the_folder_of_a_run_holds_no_photos(trained: TrainResult) -> None:
    with pytest.raises(DataError, match=r"no photo found: .*it holds pomona.json, so it is a run"):
        check(trained.bundle.folder)


# --- interrupted ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("step", ["features", "look"])
def test_what_was_computed_before_an_interrupt_is_not_computed_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    networks = load_network(plan_embedding("instant", precision="int8")).parent
    (tmp_path / "cache").mkdir()
    (tmp_path / "cache" / "networks").symlink_to(networks)
    monkeypatch.setenv("POMONA_CACHE", str(tmp_path / "cache"))
    data = write_set(tmp_path / "fruit", 24, first=100)
    read: list[Path] = []

    def read_and_note(path: Path, sha256: str) -> bytes:
        read.append(path)
        return read_unchanged(path, sha256)

    module = features_module if step == "features" else photo_facts
    monkeypatch.setattr(module, "read_unchanged", read_and_note)
    last = 0

    def stop(name: str, done: int, _n: int) -> None:
        nonlocal last
        if name == step:
            last = done
            if done >= 8:
                raise KeyboardInterrupt

    options = CheckOptions(data=data, check="quick", effort="instant", workers=2)
    with pytest.raises(KeyboardInterrupt):
        check_data(options, on_progress=stop)
    assert 8 <= last < 24
    read.clear()
    result = check_data(options)
    assert len(read) == len(set(read)) <= 24 - last
    read.clear()
    assert check_data(options).audit == result.audit
    assert read == []


# --- real photos ----------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_boxes_of_fruit_without_labels(shared: Path, tmp_path: Path) -> None:
    result = check(shared / "data" / "fruit_boxes" / "train", check="full", csv=tmp_path / "audit.csv")
    assert result.audit.count()["wrong_extension"] == 33
    assert sum(row["check"] == "wrong_extension" for row in read_table(tmp_path / "audit.csv")) == 33
    assert len(result.audit.dataset.tree) == 0
    assert not {"wrong_label", "outlier", "shortcut", "balance"} & set(result.audit.count())


def test_dirty_files_get_the_verdict_of_a_person(shared: Path, tmp_path: Path) -> None:
    with ANSWERS.open(encoding="utf-8", newline="") as stream:
        answers = {row["file_name"]: (row["verdict"], *sorted(row["notes"].split())) for row in csv.DictReader(stream)}
    result = check(shared / "data" / "dirty_images", csv=tmp_path / "audit.csv")
    got: dict[str, list[str]] = {photo.name: ["usable"] for photo in result.audit.dataset.photos}
    rows = read_table(tmp_path / "audit.csv")
    for row in rows:
        if row["check"] == "unusable":
            got[row["file_name"]] = [row["reason"].split(":")[0]]
    for row in rows:
        if CHECKS[row["check"]].family == "note":
            got[row["file_name"]].append(row["check"])
    assert {name: (verdict, *sorted(notes)) for name, (verdict, *notes) in got.items()} == answers


# --- the command ----------------------------------------------------------------------------------------------------


def run(*arguments: object, code: int = 0, cwd: Path | None = None) -> tuple[str, str]:
    """Run `pomona check`; returns stdout and stderr after the exit code is checked."""
    done = subprocess.run(
        [sys.executable, "-m", "pomona", "check", *map(str, arguments)],
        capture_output=True,
        encoding="utf-8",
        env=dict(os.environ),
        cwd=cwd,
        check=False,
        timeout=120,
    )
    assert "Traceback" not in done.stderr, done.stderr
    assert done.returncode == code, (done.returncode, done.stdout, done.stderr)
    return done.stdout, done.stderr


def test_the_command_prints_what_the_function_returns(fruit: Path, tmp_path: Path) -> None:
    places = ("--report", tmp_path / "a.html", "--csv", tmp_path / "a.csv", "--write-clean", tmp_path / "clean.csv")
    stdout, _ = run(fruit, "--check", "quick", "--effort", "instant", *places, "--json")
    told = json.loads(stdout)
    assert (told["n_photos"], told["n_skipped"]) == (12, 1)
    assert told["clean"] == "9 of 12 photos stay. Dropped: 2 Same photo, different labels; 1 Same file twice."
    assert told["places"] == {
        "Page": str(tmp_path / "a.html"),
        "Table": str(tmp_path / "a.csv"),
        "Clean list": str(tmp_path / "clean.csv"),
    }
    assert [row["file_name"] for row in told["findings"]] == [
        row["file_name"] for row in read_table(tmp_path / "a.csv")
    ]
    assert "Content-Security-Policy" in (tmp_path / "a.html").read_text("utf-8")


def test_the_command_prints_a_table_for_people(fruit: Path, tmp_path: Path) -> None:
    rows = decide(fruit, {f"{APPLE}/2.jpg": ("drop", "")})
    write_decisions(tmp_path / "decisions.csv", rows)
    stdout, _ = run(fruit, "--effort", "instant", "--apply", "decisions.csv", "--drop", "blurry", cwd=tmp_path)
    assert stdout.startswith("12 photos of 2 classes; 1 cannot be used.\n")
    for text in (
        "Same file twice",
        "Same photo, different labels",
        "Cannot be used",
        "photos stay. Dropped: 1 by decision",
    ):
        assert text in stdout
    assert (tmp_path / "clean.csv").is_file()


def test_the_command_tells_usage_from_data_by_its_exit_code(fruit: Path, tmp_path: Path) -> None:
    _, stderr = run(fruit, "--drop", "unheard", "--write-clean", "clean.csv", code=2, cwd=tmp_path)
    assert "drop: wanted some of conflicting_label, " in stderr
    rows = [("gone.jpg", "0" * 64, "drop", "")]
    write_decisions(tmp_path / "decisions.csv", rows)
    _, stderr = run(fruit, "--apply", "decisions.csv", code=1, cwd=tmp_path)
    assert "decisions of another data set: none of its 1 photos is in" in stderr
    assert [path.name for path in tmp_path.iterdir()] == ["decisions.csv"]
