"""Decisions are matched by name and content, and what is wrong with a file is said row by row."""

from __future__ import annotations

from pathlib import Path

import pytest

from pomona.class_tree import ClassTree
from pomona.dataset import Dataset, Photo
from pomona.decisions import Decision, read_decisions
from pomona.errors import DataError, StorageError

A, B, C, D = (letter * 64 for letter in "abcd")
NAME = 'Apple/"1", 柠檬.jpg'


@pytest.fixture
def data() -> Dataset:
    tree = ClassTree.from_paths(["Fruit/Apple/Red", "Fruit/Apple/Gala", "Veg/Pepper/Red"])
    gala, red = tree.names.index("Gala"), tree.names.index("Apple/Red")
    photos = ((NAME, A, gala), ("b.jpg", B, red), ("c.jpg", C, gala), ("c twin.jpg", C, gala))
    made = tuple(Photo(Path("/x") / name, sha, label, sha, None, name) for name, sha, label in photos)
    return Dataset(made, tree, (), 0, Path("/x"), shown="fruit")


def _write(tmp_path: Path, *rows: str, header: str = "file_name,sha256,decision,label", end: str = "\n") -> Path:
    path = tmp_path / "decisions.csv"
    path.write_bytes("".join(row + end for row in (header, *rows)).encode())
    return path


def test_a_file_from_excel_reads_as_the_one_of_the_page(data: Dataset, tmp_path: Path) -> None:
    rows = [
        f'"{NAME.replace(chr(34), chr(34) * 2)}",{A},relabel,Fruit/Apple/Red',
        f"b.jpg,{B},keep,",
        f"c.jpg,{C},drop,",
    ]
    plain = read_decisions(_write(tmp_path, *rows), data)
    assert plain == (
        Decision(NAME, A, "relabel", "Fruit/Apple/Red"),
        Decision("b.jpg", B, "keep"),
        Decision("c.jpg", C, "drop"),
    )
    path = _write(tmp_path, *rows, end="\r\n")
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())
    assert read_decisions(path, data) == plain
    for delimiter, encoding in ((";", "utf-8"), ("\t", "utf-16")):
        swapped = [row.replace(",", delimiter).replace(f'1""{delimiter}', '1"",') for row in rows]
        path = _write(tmp_path, *swapped, header="File_Name,SHA256,Decision,Label".replace(",", delimiter))
        path.write_bytes(path.read_bytes().decode().encode(encoding))
        assert read_decisions(path, data) == plain


def test_a_moved_photo_is_found_by_its_content(data: Dataset, tmp_path: Path) -> None:
    assert read_decisions(_write(tmp_path, f"old/place.jpg,{B.upper()},Drop,"), data) == (Decision("b.jpg", B, "drop"),)


def test_a_row_without_a_decision_and_a_repeated_one_say_nothing_new(data: Dataset, tmp_path: Path) -> None:
    rows = (f"b.jpg,{B},,", "", f"b.jpg,{B},drop,", f"b.jpg,{B},drop,")
    assert read_decisions(_write(tmp_path, *rows), data) == (Decision("b.jpg", B, "drop"),)
    assert read_decisions(_write(tmp_path), data) == ()


@pytest.mark.parametrize(
    ("label", "path"),
    [("Gala", "Fruit/Apple/Gala"), ("Apple / Red", "Fruit/Apple/Red"), ("Citrus/Kiwi", "Citrus/Kiwi"), ("梨", "梨")],
)
def test_a_label_is_matched_with_the_classes(data: Dataset, tmp_path: Path, label: str, path: str) -> None:
    assert read_decisions(_write(tmp_path, f"b.jpg,{B},relabel,{label}"), data)[0].label == path


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (f"b.jpg,{B},delete,", "row 3: wanted keep, drop or relabel as decision, got 'delete'"),
        (f"b.jpg,{B},relabel, / ", "row 3: b.jpg shall be relabelled: wanted a class in label, got an empty cell"),
        (f"b.jpg,{B},relabel,Red", "'Red' names more than one class: write Fruit/Apple/Red or Veg/Pepper/Red"),
        (f"b.jpg,{B},keep,Gala", "row 3: b.jpg: keep with another label, Fruit/Apple/Gala: write relabel"),
        (f"gone.jpg,{D},drop,", "row 3: gone.jpg is not in the data"),
        (f"b.jpg,{D},drop,", "row 3: b.jpg has another content now"),
        (f"third.jpg,{C},drop,", "row 3: third.jpg is not in the data, and its content is there more than once: c"),
        ("b.jpg,1.2E+60,drop,", "row 3: wanted 64 hexadecimal digits in sha256, got '1.2E\\+60'"),
        (f"c.jpg,{C},drop,", "row 3: c.jpg is there twice, with different decisions"),
    ],
)
def test_a_bad_row_is_named(data: Dataset, tmp_path: Path, row: str, message: str) -> None:
    with pytest.raises(DataError, match=f"decisions.csv: 1 of 2 rows cannot be used: .*{message}"):
        read_decisions(_write(tmp_path, f"c.jpg,{C},keep,", row), data)


def test_a_keep_may_repeat_the_label_it_has(data: Dataset, tmp_path: Path) -> None:
    assert read_decisions(_write(tmp_path, f"c.jpg,{C},keep,Gala"), data) == (Decision("c.jpg", C, "keep"),)


def test_many_bad_rows_are_counted(data: Dataset, tmp_path: Path) -> None:
    rows = [f"gone {i}.jpg,{D},drop," for i in range(30)]
    with pytest.raises(
        DataError, match=r"30 of 31 rows .*row 2: gone 0.*row 6: gone 4.jpg is not in the data; and 25 more$"
    ):
        read_decisions(_write(tmp_path, *rows, f"b.jpg,{B},keep,"), data)
    with pytest.raises(
        DataError, match="decisions of another data set: none of its 30 photos is in fruit with the same"
    ):
        read_decisions(_write(tmp_path, *rows), data)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "row 1: wanted the columns file_name,sha256,decision,label, got ''"),
        (b"file_name,label\nx,y\n", "row 1: wanted the columns"),
        (b"file_name,sha256,decision,label\nb\xff,x,drop,\n", "save it as CSV UTF-8"),
        (b'file_name,sha256,decision,label\n"b,x,drop,\n', "line 2: wanted cells divided by ','"),
    ],
)
def test_another_file_is_refused(data: Dataset, tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "decisions.csv"
    path.write_bytes(content)
    with pytest.raises(DataError, match=message):
        read_decisions(path, data)


def test_a_file_that_cannot_be_read_is_a_storage_error(data: Dataset, tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "none.csv"):
        with pytest.raises(StorageError, match="could not read the decisions in"):
            read_decisions(path, data)
