"""Names: a table means the same however it is written, the list has no code twice, and all of it reaches the answer."""

from __future__ import annotations

import csv
import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pomona.bundle import BUNDLE_FORMAT, MODEL_NAME, load_bundle
from pomona.class_names import (
    ClassName,
    find_class_names,
    find_common_name,
    list_common_names,
    match_class_names,
    read_class_names,
    write_class_names,
)
from pomona.class_tree import ClassTree, show_text
from pomona.errors import BundleDamagedError, DataError, StorageError
from pomona.files import MANIFEST_NAME, cache_folder, hash_file
from pomona.learnt import load_learnt
from pomona.naming import set_names
from pomona.samples import KINDS, SampleOptions, write_samples
from pomona.teaching import add_class, remove_class
from pomona.training import TrainOptions, train

if TYPE_CHECKING:
    from pomona.training import TrainResult

POMONA = [sys.executable, "-m", "pomona"]
GOLDEN = Path(__file__).parent / "golden"
RED = GOLDEN / "photos" / "red.png"
TABLE = "class,name_en,name_zh,plu,shelf\nBanana,Our banana,本店香蕉,94011,12\nLemon,,-,-,\n"
TREE = ClassTree.from_paths(["Apple/Red", "Pepper/Red", "Banana", "Our best", "Juice/Orange"])


def _write(folder: Path, content: str | bytes) -> Path:
    path = folder / "classes.csv"
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


@pytest.fixture
def golden(tmp_path: Path) -> Path:
    """Copy of a bundle of format 3, whose classes are Apple/红苹果, Apple/Granny Smith and Tropical/Banana."""
    return Path(shutil.copytree(GOLDEN / "bundle-v3", tmp_path / "golden"))


@pytest.fixture
def run(trained: TrainResult, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Copy of a run, with a cache of its own that holds what it learnt from."""
    shutil.copytree(cache_folder() / "learnt", tmp_path / "cache" / "learnt")
    monkeypatch.setenv("POMONA_CACHE", str(tmp_path / "cache"))
    return Path(shutil.copytree(trained.bundle.folder, tmp_path / "run"))


# --- the list -------------------------------------------------------------------------------------------------------


def test_every_row_of_the_list_can_be_told_apart() -> None:
    rows = list_common_names()
    assert len(rows) >= 150
    codes = [row.name.plu for row in rows if row.name.plu]
    assert all(len(code) == 4 and code.isascii() and code.isdigit() and code[0] in "34" for code in codes)
    assert len(set(codes)) == len(codes) >= 100
    assert len({row.label for row in rows}) == len(rows)
    assert all(row.name.name_en and row.name.name_zh and not row.name.name_zh.isascii() for row in rows)
    for row in rows:  # a spelling of another row would find that one
        for label in (row.label, row.name.name_en, row.name.name_zh, *row.aliases):
            assert find_common_name((str(label),)) == row.name, label


def test_some_codes_are_those_on_the_stickers() -> None:
    wanted = {
        "Banana": "4011",
        "Granny-Smith": "4017",
        "Fuji": "4131",
        "Royal-Gala": "4174",
        "Lemon": "4053",
        "Hass-Avocado": "4225",
        "Pear": None,
        "Orange": None,
    }
    assert {label: getattr(find_common_name((label,)), "plu", "") for label in wanted} == wanted


def test_real_produce_is_known(shared: Path) -> None:
    with (shared / "data" / "grocery" / "classes.csv").open(encoding="utf-8") as stream:
        rows = [
            (row["Class Name (str)"], row["Iconic Image Path (str)"].split("/")[2:-1]) for row in csv.DictReader(stream)
        ]
    assert len(rows) == 81
    for label, folders in rows:
        name = find_common_name(tuple(folders) if folders[-1] == label else (*folders, label))
        assert (name is not None) == (folders[0] in {"Fruit", "Vegetables"}), (label, folders)


@pytest.mark.parametrize(
    ("path", "wanted"),
    [
        (("royal_gala",), "Royal Gala apple"),
        (("Fruit", "Apple", "ROYAL  GALA 2"), "Royal Gala apple"),
        (("Apple", "Apple Braeburn 1"), "Braeburn apple"),
        (("嘎啦苹果",), "Gala apple"),
        (("Ｂａｎａｎａ",), "Banana"),
        (("Jalapen\u0303o",), "Jalapeño pepper"),
        (("Tomato", "Cherry"), "Cherry tomato"),
        (("Tomato", "Cherry Red"), "Red cherry tomato"),
        (("Pepper", "Red"), "Red bell pepper"),
        (("Citrus", "Lemon"), "Lemon"),
        (("Tomato", "Banana"), None),
        (("Juice", "Orange"), None),
        (("Apple", "Apple Rotten 1"), None),
        (("Bravo-Apple-Juice",), None),
        (("7",), None),
        (("-",), None),
    ],
)
def test_common_names_are_found_whatever_the_spelling(path: tuple[str, ...], wanted: str | None) -> None:
    found = find_common_name(path)
    assert (found and found.name_en) == wanted


# --- tables ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("delimiter", [",", ";", "\t"])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "gbk", "utf-16"])
def test_a_table_means_the_same_however_it_is_written(tmp_path: Path, delimiter: str, encoding: str) -> None:
    text = (
        TABLE.replace(",", delimiter).replace("class", " CLASS ", 1).replace("name_zh", "Name_ZH").replace("\n", "\r\n")
    )
    assert read_class_names(_write(tmp_path, text.encode(encoding))) == {
        "Banana": ClassName("Our banana", "本店香蕉", "94011", {"shelf": "12"}),
        "Lemon": ClassName(None, "", "", {}),
    }


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("name,plu\nBanana,4011\n", "row 1: wanted a column class.*'name,plu'"),
        ("", "wanted a table of names as text"),
        ("\n\n", "row 1: wanted a column class"),
        (b"class,plu\n\xff\xfe\x00\x01", "wanted a table of names as text"),
        ("class,name_en\nJalape\u00f1o,Jalape\u00f1o pepper\n".encode("cp1252"), "in UTF-8 or GBK"),
        ("class,plu\nBanana,4011\n\nBanana,4011\n", "row 4: wanted each class once, got 'Banana' again: row 2"),
        ("class,plu\n,4011\n", "row 2: wanted the name of a class.*empty"),
        ("class,plu\n/ /,4011\n", "row 2: wanted the name of a class.*empty"),
        ("class,plu\nBanana,401\n", "row 2: wanted a price look-up code of 4 or 5 digits.*'401'"),
        ("class,plu\nBanana,940111\n", "row 2: .*'940111'"),
        ("class,plu\nBanana,4011.0\n", "row 2: .*'4011.0'"),
        ("class,plu\nBanana,４０１１\n", "row 2: .*4 or 5 digits"),
        ("class,plu,PLU\nBanana,4011,\n", "row 1: wanted each column once, got 'plu' twice"),
        ("class,plu\nBanana,4011,ripe\n", "row 2: wanted cells under the heading alone"),
        ("class,plu,\nBanana,4011,ripe\n", "row 2: wanted cells under the heading alone"),
        ('class,plu\n"Banana,4011\n', "wanted cells divided by ','"),
    ],
)
def test_what_is_no_table_of_names_is_refused(tmp_path: Path, content: str | bytes, message: str) -> None:
    path = _write(tmp_path, content)
    with pytest.raises(DataError, match=message) as caught:
        read_class_names(path)
    assert str(caught.value).startswith(str(path))


def test_a_table_that_is_not_there_is_refused(tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "none.csv"):
        with pytest.raises(DataError, match="wanted a table of names, it cannot be read"):
            read_class_names(path)


def test_a_table_among_the_photos_is_found_by_its_heading(tmp_path: Path, shared: Path) -> None:
    assert find_class_names(tmp_path) is None
    for content, is_one in ((TABLE, True), ("class;PLU\n", True), ("class,id\n", False), (b"\xff\xd8\xff", False)):
        assert (find_class_names(_write(tmp_path, content).parent) is not None) == is_one
    assert find_class_names(shared / "data" / "grocery") is None


_CELLS = st.text(st.characters(codec="utf-8"), max_size=12).map(lambda text: show_text(text.strip()).strip())
_NAMES = st.builds(
    ClassName,
    _CELLS.map(lambda text: text if text not in {"", "-"} else None),
    _CELLS.map(lambda text: text if text not in {"", "-"} else None),
    st.none() | st.from_regex(r"[0-9]{4,5}", fullmatch=True),
    st.dictionaries(st.sampled_from(["shelf", "货架", "a, b"]), _CELLS.filter(bool)),
)


@given(st.lists(_NAMES, min_size=len(TREE), max_size=len(TREE)))
def test_what_is_written_is_read_as_the_same_names(
    tmp_path_factory: pytest.TempPathFactory, names: list[ClassName]
) -> None:
    """Also what the list of common produce knows and the names do not say."""
    path = tmp_path_factory.getbasetemp() / "names.csv"
    write_class_names(path, TREE, names)
    assert match_class_names(read_class_names(path), TREE) == (tuple(names), ())


@given(st.permutations(["Banana", "Apple/Red", "Our best", "Kiwi"]))
def test_the_order_of_the_rows_does_not_matter(labels: list[str]) -> None:
    names, notes = match_class_names({label: ClassName(f"My {label}") for label in labels}, TREE)
    assert {label: name.name_en for label, name in zip(TREE.names, names, strict=True)} == {
        "Apple/Red": "My Apple/Red",
        "Banana": "My Banana",
        "Orange": None,
        "Our best": "My Our best",
        "Pepper/Red": "Red bell pepper",
    }
    assert notes == (
        "2 classes have no row in the table of names: Orange, Pepper/Red.",
        "1 row of the table of names is of no class here: Kiwi.",
    )


def test_rows_are_matched_as_labels_are() -> None:
    tree = ClassTree.from_paths(["Fruit/Cafe\u0301", "Fruit/Apple/Gala"])
    names, notes = match_class_names({"Caf\u00e9": ClassName("x"), "Apple/Gala": ClassName("y")}, tree)
    assert ([name.name_en for name in names], notes) == (["x", "y"], ())
    assert match_class_names({"gala": ClassName("y")}, tree).notes[1].endswith("of no class here: gala.")
    with pytest.raises(DataError, match=r"one row for the class Gala, got two: 'Gala', 'Apple/Gala'"):
        match_class_names({"Gala": ClassName("x"), "Apple/Gala": ClassName("y")}, tree)


def test_the_list_fills_what_a_table_does_not_say_unless_it_says_none() -> None:
    tree = ClassTree.from_paths(["Banana", "Lemon", "Our best"])
    names, _ = match_class_names({"Banana": ClassName(plu="4186"), "Lemon": ClassName("", None, "")}, tree)
    assert names == (ClassName("Banana", "香蕉", "4186"), ClassName(None, "柠檬", None), ClassName())
    assert match_class_names(None, tree).notes == ()


# --- the bundle -----------------------------------------------------------------------------------------------------


def test_names_travel_from_the_photos_to_the_answers(rendered: Path, tmp_path: Path) -> None:
    data = Path(shutil.copytree(rendered, tmp_path / "photos"))
    _write(data, TABLE + "Kiwi,,,4030,\n")
    result = train(TrainOptions(data=data, output=tmp_path / "run", effort="instant", imgsz=64, check="none"))
    bundle = load_bundle(tmp_path / "run")
    assert bundle.tree.names == ("Banana", "Lemon", "Orange")
    assert bundle.names == (
        ClassName("Our banana", "本店香蕉", "94011", {"shelf": "12"}),
        ClassName("Lemon", None, None),
        ClassName("Orange", "橙子", None),
    )
    assert {note for note in result.notes if "table of names" in note} == {
        "1 class has no row in the table of names: Orange.",
        "1 row of the table of names is of no class here: Kiwi.",
    }
    assert bundle.manifest.provenance["option_names"] == "classes.csv"  # and no folder of this machine
    named = {one.name: (one.name_en, one.name_zh, one.plu) for one in bundle.manifest.classes}
    for answer in bundle.predict(sorted(data.glob("*/*.jpg"))[::8]):
        content = answer.to_dict()
        for one in (content, *content["top"]):
            assert (one["name_en"], one["name_zh"], one["plu"]) == named[one["label"]]


def test_a_bad_table_ends_training_before_it_begins(rendered: Path, tmp_path: Path) -> None:
    table = _write(tmp_path, "class,plu\nBanana,4011\nTropical/Banana,4011\n")
    options = TrainOptions(data=rendered, output=tmp_path / "run", names=table)
    with pytest.raises(DataError, match="one row for the class Banana, got two"):
        train(options, on_forecast=lambda *_: pytest.fail("the long steps began"))


def test_without_a_table_the_list_speaks(trained: TrainResult) -> None:
    assert [(name.name_en, name.plu) for name in trained.bundle.names] == [
        ("Banana", "4011"),
        ("Lemon", "4053"),
        ("Orange", None),
    ]
    assert not [note for note in trained.notes if "table" in note]


def test_bundles_of_before_have_no_names(golden: Path) -> None:
    bundle = load_bundle(golden)
    assert (bundle.manifest.format, set(map(str, bundle.names))) == (3, {str(ClassName())})
    (answer,) = bundle.predict([RED])
    assert (answer.label, answer.name_en, answer.top[0].plu) == ("红苹果", None, None)


def test_set_names_changes_the_names_alone(run: Path) -> None:
    before, state = load_bundle(run), load_learnt(load_bundle(run))
    files = {path.name: hash_file(path) for path in run.iterdir() if path.is_file() and path.name != MANIFEST_NAME}
    result = set_names(run, _write(run.parent, TABLE))
    assert result.notes == ("1 class has no row in the table of names: Orange.",)
    after = load_bundle(run)
    assert after.names == result.bundle.names
    assert (after.names[0].plu, after.names[0].extra, after.names[1].plu) == ("94011", {"shelf": "12"}, None)
    assert after.tree == before.tree
    assert after.manifest.created == before.manifest.created
    assert files == {
        path.name: hash_file(path) for path in run.iterdir() if path.is_file() and path.name != MANIFEST_NAME
    }
    assert load_learnt(after).photos.tolist() == state.photos.tolist()  # what it learnt from is found again


def test_set_names_brings_an_old_bundle_to_the_newest_format(golden: Path, tmp_path: Path) -> None:
    before = [answer.top for answer in load_bundle(golden).predict([RED])]
    set_names(golden, _write(tmp_path, "class,name_en\nBanana,Chiquita\n"))
    bundle = load_bundle(golden)
    assert bundle.manifest.format == BUNDLE_FORMAT
    assert [name.name_en for name in bundle.names] == ["Red apple", "Granny Smith apple", "Chiquita"]
    after = [answer.top for answer in bundle.predict([RED])]
    assert [(one.label, one.score) for one in after[0]] == [(one.label, one.score) for one in before[0]]


def test_a_run_stays_as_it_was_where_names_cannot_be_set(golden: Path, tmp_path: Path) -> None:
    before = (golden / MANIFEST_NAME).read_bytes()
    with pytest.raises(DataError):
        set_names(golden, _write(tmp_path, "class,plu\nBanana,1\n"))
    (golden / MODEL_NAME).write_bytes(b"")
    with pytest.raises(BundleDamagedError):
        set_names(golden, _write(tmp_path, TABLE))
    assert (golden / MANIFEST_NAME).read_bytes() == before
    with pytest.raises(StorageError):
        write_class_names(tmp_path / "no folder" / "a.csv", ClassTree.from_paths(["a"]), [ClassName()])


def test_taught_classes_get_names_and_the_others_keep_theirs(run: Path, tmp_path: Path) -> None:
    write_samples(tmp_path / "new", SampleOptions(n_per_kind=4, kinds=KINDS[7:8], size_px=72, n_workers=1))
    set_names(run, _write(tmp_path, TABLE))
    mine = dict(zip(load_bundle(run).tree.names, load_bundle(run).names, strict=True))
    add_class(run, "Berry/strawberry", tmp_path / "new")
    bundle = load_bundle(run)
    found = dict(zip(bundle.tree.names, bundle.names, strict=True))
    assert found == {**mine, "strawberry": ClassName("Strawberry", "草莓", None)}
    remove_class(run, "Lemon")
    bundle = load_bundle(run)
    del found["Lemon"]
    assert dict(zip(bundle.tree.names, bundle.names, strict=True)) == found


# --- the command line -----------------------------------------------------------------------------------------------


def _run(*arguments: object, code: int = 0) -> tuple[str, str]:
    done = subprocess.run([*POMONA, *map(str, arguments)], capture_output=True, encoding="utf-8", check=False)
    assert done.returncode == code, (done.stdout, done.stderr)
    assert "Traceback" not in done.stderr
    return done.stdout, done.stderr


def test_names_are_shown_written_and_set(golden: Path, tmp_path: Path) -> None:
    shown, _ = _run("names", golden)
    assert shown.split()[:4] == ["Class", "English", "Chinese", "PLU"]
    stdout, stderr = _run("names", golden, "--set", _write(tmp_path, "class,name_zh,plu,shelf\nBanana,大香蕉,4011,3\n"))
    assert "大香蕉" in stdout
    assert "note: 2 classes have no row in the table of names: 红苹果, Granny Smith." in stderr
    table = json.loads(_run("names", golden, "--json")[0])
    assert table[2] == {
        "class": "Banana",
        "name_en": "Banana",
        "name_zh": "大香蕉",
        "plu": "4011",
        "extra": {"shelf": "3"},
    }
    _run("names", golden, "--write", tmp_path / "out.csv")
    assert (tmp_path / "out.csv").read_bytes().startswith("\ufeffclass,name_en,name_zh,plu,shelf\r\n".encode())
    again, _ = _run("names", golden, "--set", tmp_path / "out.csv", "--json")
    assert json.loads(again) == table
    stdout, _ = _run("names", golden, "--language", "en")
    assert "大香蕉" not in stdout
    assert "Granny Smith apple" in stdout


def test_the_list_is_printed() -> None:
    stdout, _ = _run("names", "--list", "--language", "zh")
    assert "嘎啦苹果" in stdout
    content = json.loads(_run("names", "--list", "--json")[0])
    assert len(content) == len(list_common_names())
    assert list(content[0]) == ["class", "name_en", "name_zh", "plu", "aliases"]


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["--list", "{golden}"], 2, "wanted --list alone"),
        ([], 2, "wanted a run folder, or --list, got neither"),
        (["{golden}", "--write", "{golden}"], 2, "wanted a place for a new table, something stands at"),
        (["{golden}", "--set", "{golden}/none.csv"], 1, "wanted a table of names, it cannot be read"),
    ],
)
def test_wrong_usage_of_names(golden: Path, arguments: list[str], code: int, message: str) -> None:
    _, stderr = _run("names", *(one.format(golden=golden) for one in arguments), code=code)
    assert message in stderr


def test_predictions_are_shown_in_a_language(golden: Path, tmp_path: Path) -> None:
    set_names(golden, _write(tmp_path, "class,name_en,name_zh,plu\n红苹果,Red apple,-,4016\n"))
    assert "Red apple" in _run("predict", golden, RED, "--language", "en")[0]
    chinese, _ = _run("predict", golden, RED, "--language", "zh", "--topk", 3)
    assert "红苹果" in chinese  # the class's own name, as the table says that there is no other
    assert "香蕉" in chinese
    plain, _ = _run("predict", golden, RED)
    assert "Red apple" not in plain
    (row,) = csv.DictReader(_run("predict", golden, RED, "none.jpg", "--csv")[0].splitlines()[:2])
    said = ["answer", "sure", "unknown"]
    assert list(row) == ["file", "label", "score", "error", "name_en", "name_zh", "plu", *said]
    assert (row["label"], row["name_en"], row["name_zh"], row["plu"]) == ("红苹果", "Red apple", "", "4016")
    (answer,) = json.loads(_run("predict", golden, RED, "--json", "--language", "en")[0])
    assert (answer["label"], answer["plu"]) == ("红苹果", "4016")
