"""The inbox: no photo is lost, whichever database, however many write, and however often a process is killed."""

from __future__ import annotations

import json
import os
import re
import signal
import sqlite3
import subprocess
import sys
import threading
from datetime import UTC, datetime
from typing import TYPE_CHECKING

import pytest
import sqlalchemy as sa
from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory

from pomona.dataset import load_dataset
from pomona.errors import DataError, OptionError, PhotoError, StorageError
from pomona.files import MANIFEST_NAME, hash_bytes, hash_file
from pomona.inbox import Inbox, export_inbox, find_inbox_folder, open_inbox, parse_label
from pomona.inbox.migration import make_config, read_revisions
from pomona.inbox.photo_tree import name_folders
from pomona.inbox.schema import VERSION_TABLE, Base
from pomona.inbox.store import DATABASE_NAME, _begin_wal

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

POMONA = [sys.executable, "-m", "pomona"]
posix_only = pytest.mark.skipif(sys.platform == "win32", reason="needs POSIX signals")


@pytest.fixture(params=["sqlite", "postgresql"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """URL of an empty database."""
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path / 'x.inbox' / DATABASE_NAME}"
    make_database: Callable[[], str] = request.getfixturevalue("postgres")
    return make_database()


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    return tmp_path / "x.inbox" / ".photos"


@pytest.fixture
def inbox(place: str, photos: Path) -> Iterator[Inbox]:
    with open_inbox(place, photos=photos) as opened:
        yield opened


@pytest.fixture(scope="session")
def contents(rendered: Path) -> list[bytes]:
    return [path.read_bytes() for path in sorted(rendered.rglob("*.jpg"))]


# --- photos ---------------------------------------------------------------------------------------------------------


def test_a_photo_is_kept_under_its_hash(inbox: Inbox, contents: list[bytes]) -> None:
    begun = datetime.now(UTC)
    photo = inbox.add(contents[0], " Fruit / Apple/Elstar ")
    assert (photo.sha256, photo.label, photo.state, photo.version) == (
        hash_bytes(contents[0]),
        "Fruit/Apple/Elstar",
        "waiting",
        None,
    )
    assert (photo.format, photo.n_bytes, photo.path.name) == ("jpeg", len(contents[0]), f"{photo.sha256}.jpg")
    assert photo.path.read_bytes() == contents[0]
    assert begun <= photo.added <= datetime.now(UTC)
    assert inbox.list_photos() == [photo] == inbox.list_photos("waiting")
    assert inbox.find(photo.sha256) == photo
    assert inbox.find("0" * 64) is None
    assert photo.to_dict()["added"].endswith("+00:00")


def test_adding_twice_changes_nothing_and_another_label_replaces(inbox: Inbox, contents: list[bytes]) -> None:
    first = inbox.add(contents[0], "Apple")
    assert inbox.add(contents[0], "Apple") == first
    second = inbox.add(contents[0], "Pear")
    assert (second.label, second.state) == ("Pear", "waiting")
    assert inbox.list_photos() == [second]
    assert second.added >= first.added


def test_what_was_learnt_keeps_its_label(inbox: Inbox, contents: list[bytes]) -> None:
    photo = inbox.add(contents[0], "Apple")
    assert inbox.settle(lambda one: one.label == "Apple", 3) == 1
    taught = inbox.add(contents[0], "Apple")
    assert (taught.state, taught.version) == ("taught", 3)
    with pytest.raises(DataError, match="learnt as Apple in version 3"):
        inbox.add(contents[0], "Pear")
    with pytest.raises(DataError, match="learnt as Apple in version 3"):
        inbox.withdraw(photo.sha256)
    assert inbox.find(photo.sha256) == taught


def test_settling_goes_both_ways_and_leaves_what_was_withdrawn(inbox: Inbox, contents: list[bytes]) -> None:
    hashes = [inbox.add(data, "Apple").sha256 for data in contents[:3]]
    inbox.withdraw(hashes[2])
    assert inbox.settle(lambda _: True, 2) == 2
    assert inbox.settle(lambda _: True, 5) == 0
    assert [(one.state, one.version) for one in map(inbox.find, hashes)] == [
        ("taught", 2),
        ("taught", 2),
        ("withdrawn", None),
    ]
    assert inbox.settle(lambda one: one.sha256 == hashes[1], 1) == 1
    assert [one.sha256 for one in inbox.list_photos("waiting")] == [hashes[0]]
    assert inbox.find(hashes[0]).version is None


def test_what_was_withdrawn_stays_and_can_come_back(inbox: Inbox, contents: list[bytes]) -> None:
    photo = inbox.add(contents[0], "Apple")
    assert inbox.withdraw(photo.sha256).state == "withdrawn"
    assert photo.path.is_file()
    assert inbox.list_photos("waiting") == []
    assert inbox.add(contents[0], "Apple").state == "waiting"
    with pytest.raises(OptionError, match="wanted the sha256 of a photo"):
        inbox.withdraw("0" * 64)


@pytest.mark.parametrize(
    ("label", "said"),
    [
        ("", "wanted the name of a class"),
        (" / ", "wanted the name of a class"),
        ("Apple\n", "control characters"),
        ("App\x00le", "control characters"),
        ("\u202egnp.exe", "control characters"),
        ("\ud800", "control characters"),
        ("Fruit/../Apple", "the part '..'"),
        ("a" * 81, "80 characters at most"),
        ("/".join("abcdefghi"), "8 parts at most"),
    ],
)
def test_labels_that_spoil_something_are_refused(inbox: Inbox, contents: list[bytes], label: str, said: str) -> None:
    with pytest.raises(OptionError, match=said):
        inbox.add(contents[0], label)
    assert inbox.list_photos() == []


def test_labels_of_every_language_are_kept(inbox: Inbox, contents: list[bytes]) -> None:
    labels = ["浆果/葡萄", "Äpfel/Rötlich", "سیب\u200cزمینی", "🍎", "O'Brien'; DROP TABLE pomona_photo; --", "a" * 80]
    for data, label in zip(contents, labels, strict=False):
        inbox.add(data, label)
    assert [one.label for one in inbox.list_photos()] == labels
    assert parse_label("A\u0308pfel") == ("Äpfel",)


@pytest.mark.parametrize(("data", "fault"), [(b"", "empty"), (b"#!/bin/sh\n", "not_an_image")])
def test_what_is_no_photo_is_refused(inbox: Inbox, data: bytes, fault: str) -> None:
    with pytest.raises(PhotoError) as caught:
        inbox.add(data, "Apple")
    assert caught.value.fault == fault
    assert list(inbox.folder.iterdir()) == []


def test_a_file_without_a_row_is_taken_up_and_a_broken_one_replaced(inbox: Inbox, contents: list[bytes]) -> None:
    whole, broken = (inbox.folder / f"{hash_bytes(data)}.jpg" for data in contents[:2])
    whole.write_bytes(contents[0])
    broken.write_bytes(contents[1][:-1] + b"x")
    before = whole.stat().st_ino
    for data in contents[:2]:
        inbox.add(data, "Apple")
    assert whole.stat().st_ino == before
    assert broken.read_bytes() == contents[1]
    broken.unlink()
    assert [one.path for one in inbox.list_lost()] == [broken]
    inbox.add(contents[1], "Apple")
    assert inbox.list_lost() == []


# --- places ---------------------------------------------------------------------------------------------------------


def test_an_inbox_is_beside_its_run(tmp_path: Path, contents: list[bytes]) -> None:
    run = tmp_path / "scale"
    with pytest.raises(OptionError, match="wanted a run folder"):
        open_inbox(run)
    run.mkdir()
    (run / MANIFEST_NAME).write_text("{}")
    (tmp_path / "link").symlink_to(run)
    with pytest.raises(StorageError, match="wanted an inbox, got none"):
        open_inbox(run, create=False)
    with open_inbox(tmp_path / "link") as opened:
        opened.add(contents[0], "Apple")
    assert find_inbox_folder(run) == tmp_path / "scale.inbox"
    for place in (run, tmp_path / "scale.inbox", str(tmp_path / "scale.inbox")):
        with open_inbox(place, create=False) as opened:
            assert len(opened.list_photos()) == 1


def test_the_photos_of_an_inbox_are_no_data_set(inbox: Inbox, contents: list[bytes], tmp_path: Path) -> None:
    for number in (0, -1):
        inbox.add(contents[number], "Apple")
        (tmp_path / f"class {number}").mkdir()
        (tmp_path / f"class {number}" / "own.jpg").write_bytes(contents[number])
    assert {photo.name for photo in load_dataset(tmp_path).photos} == {"class 0/own.jpg", "class -1/own.jpg"}


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("mysql://host/x", "wanted sqlite:///FILE or postgresql://"),
        (
            "postgresql://shop:secret@host/x",
            r"wanted the folder of the photo files beside postgresql\+psycopg://shop:\*",
        ),
        ("sqlite://", "wanted sqlite:///FILE"),
        ("://", "wanted a URL such as"),
    ],
)
def test_places_that_are_none_are_refused(url: str, said: str) -> None:
    with pytest.raises(OptionError, match=said):
        open_inbox(url)


def test_a_database_out_of_reach_is_named_without_its_password(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match="could not open the inbox") as caught:
        open_inbox(f"postgresql://shop:secret@/x?host={tmp_path}", photos=tmp_path / "photos")
    assert "secret" not in str(caught.value)


def test_a_file_that_is_no_database_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "x.inbox" / DATABASE_NAME
    path.parent.mkdir()
    path.write_bytes(b"not a database" * 100)
    with pytest.raises(StorageError, match=r"could not open the inbox .*not a database"):
        open_inbox(path.parent)
    assert path.read_bytes() == b"not a database" * 100


@pytest.mark.parametrize(
    ("module", "said"), [("sqlalchemy", r"pomona\[teach\]"), ("alembic", r"pomona\[teach\]"), ("psycopg", "postgres")]
)
def test_a_package_that_is_missing_is_named(tmp_path: Path, module: str, said: str) -> None:
    script = f"import sys; sys.modules[{module!r}] = None\nfrom pomona.inbox import open_inbox\n"
    script += f"open_inbox('postgresql://host/x', photos={str(tmp_path)!r})"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert re.search(rf"MissingPackageError: {module}[.a-z]* is needed .*{said}", done.stderr), done.stderr


# --- migrations -----------------------------------------------------------------------------------------------------


def _read_revision(inbox: Inbox) -> tuple[str, ...]:
    with inbox._engine.connect() as connection:
        return read_revisions(connection)


def test_the_tables_are_those_that_the_program_knows(inbox: Inbox) -> None:
    with inbox._engine.connect() as connection:
        context = MigrationContext.configure(connection, opts={"version_table": VERSION_TABLE, "compare_type": True})
        assert compare_metadata(context, Base.metadata) == []
        context = MigrationContext.configure(connection, opts={"version_table": "other", "compare_type": True})
        assert compare_metadata(context, sa.MetaData()) != []
    assert _read_revision(inbox) == ("0002",)
    assert len(ScriptDirectory.from_config(make_config()).get_heads()) == 1


@pytest.mark.parametrize("revision", ["0001", "0002"])
def test_an_older_inbox_is_brought_up_with_its_photos(
    place: str, photos: Path, contents: list[bytes], revision: str
) -> None:
    with open_inbox(place, photos=photos) as opened:
        added = [opened.add(data, "Apple/Gala") for data in contents[:3]]
        config = make_config()
        with opened._writer.begin() as connection:
            config.attributes["connection"] = connection
            command.downgrade(config, revision)
        assert _read_revision(opened) == (revision,)
        indices = sa.inspect(opened._engine).get_indexes("pomona_photo")
        assert len(indices) == (revision != "0001")
    with open_inbox(place, photos=photos) as opened:
        assert _read_revision(opened) == ("0002",)
        assert opened.list_photos() == added


def test_the_first_tables_are_not_taken_back(inbox: Inbox, contents: list[bytes]) -> None:
    photo = inbox.add(contents[0], "Apple")
    config = make_config()
    with inbox._writer.begin() as begun:
        config.attributes["connection"] = begun
        with pytest.raises(StorageError, match="0001 of the inbox cannot be taken back"):
            command.downgrade(config, "base")
        begun.rollback()
    assert inbox.list_photos() == [photo]
    assert _read_revision(inbox) == ("0002",)


def test_a_newer_inbox_is_refused_by_name(place: str, photos: Path) -> None:
    with open_inbox(place, photos=photos) as opened, opened._writer.begin() as connection:
        connection.exec_driver_sql(f"UPDATE {VERSION_TABLE} SET version_num = '0099'")
    with pytest.raises(StorageError, match=r"written by a newer Pomona .*0099.*upgrade Pomona"):
        open_inbox(place, photos=photos)


def test_sqlite_is_set_to_lose_nothing(tmp_path: Path) -> None:
    with open_inbox(tmp_path / "x.inbox") as opened, opened._engine.connect() as connection:
        found = [connection.exec_driver_sql(f"PRAGMA {name}").scalar() for name in ("journal_mode", "synchronous")]
        assert found == ["wal", 2]
        assert connection.exec_driver_sql("PRAGMA foreign_keys").scalar() == 1
        assert connection.exec_driver_sql("PRAGMA busy_timeout").scalar() == 30_000


# --- several at once ------------------------------------------------------------------------------------------------

ADD_ALL = """
import sys
from pathlib import Path
from pomona.inbox import open_inbox
url, photos, folder, label = sys.argv[1:]
print("ready", flush=True)
sys.stdin.readline()
with open_inbox(url, photos=photos) as inbox:
    for path in sorted(Path(folder).rglob("*.jpg")):
        inbox.add(path.read_bytes(), label)
        print(path.name, flush=True)
"""


def _start_adding(place: str, photos: Path, folder: Path, label: str) -> subprocess.Popen[str]:
    command_line = [sys.executable, "-c", ADD_ALL, place, str(photos), str(folder), label]
    return subprocess.Popen(command_line, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


def test_processes_that_begin_and_add_at_once_lose_nothing(place: str, photos: Path, rendered: Path) -> None:
    """All open an empty database, so they race for its tables too."""
    processes = [_start_adding(place, photos, rendered, f"Label {number}") for number in range(3)]
    for process in processes:
        assert process.stdout.readline() == "ready\n"
    for process in processes:
        process.stdin.write("go\n")
        process.stdin.flush()
    for process in processes:
        output, _ = process.communicate(timeout=60)
        assert process.returncode == 0, output
    with open_inbox(place, photos=photos) as opened:
        assert {one.sha256 for one in opened.list_photos()} == {hash_file(path) for path in rendered.rglob("*.jpg")}
        assert {one.label for one in opened.list_photos()} <= {"Label 0", "Label 1", "Label 2"}
        assert opened.list_lost() == []


@posix_only
@pytest.mark.parametrize("n_lines", [1, 4, 9])
def test_a_killed_process_leaves_every_photo_that_it_said_it_had(
    place: str, photos: Path, rendered: Path, n_lines: int
) -> None:
    process = _start_adding(place, photos, rendered, "Apple")
    process.stdin.write("go\n")
    process.stdin.flush()
    said = [process.stdout.readline() for _ in range(1 + n_lines)][1:]
    os.kill(process.pid, signal.SIGKILL)
    process.communicate(timeout=60)
    with open_inbox(place, photos=photos) as opened:
        held = {one.sha256 for one in opened.list_photos()}
        assert {hash_file(next(rendered.rglob(name.strip()))) for name in said} <= held
        assert opened.list_lost() == []
        for path in rendered.rglob("*.jpg"):
            opened.add(path.read_bytes(), "Apple")
        assert len(opened.list_photos()) == 24
    if place.startswith("sqlite"):
        with sqlite3.connect(place.removeprefix("sqlite:///")) as connection:
            assert connection.execute("PRAGMA integrity_check").fetchone() == ("ok",)
        connection.close()


# --- a data set -----------------------------------------------------------------------------------------------------


def test_an_export_is_a_data_set_of_links(inbox: Inbox, contents: list[bytes], tmp_path: Path) -> None:
    for number, data in enumerate(contents[:9]):
        inbox.add(data, ["Fruit/Apple", "Fruit/Pear", "葡萄"][number % 3])
    inbox.settle(lambda one: one.label == "Fruit/Pear", 2)
    inbox.withdraw(hash_bytes(contents[0]))
    tree = export_inbox(inbox, tmp_path / "out")
    assert (tree.n_photos, tree.counts, tree.renamed) == (8, {"Fruit/Apple": 2, "Fruit/Pear": 3, "葡萄": 3}, {})
    dataset = load_dataset(tmp_path / "out")
    assert set(dataset.tree.paths) == {("Fruit", "Apple"), ("Fruit", "Pear"), ("葡萄",)}
    labels = {photo.sha256: dataset.tree.paths[photo.label] for photo in dataset.photos}
    assert labels == {one.sha256: one.class_path for one in inbox.list_photos() if one.state != "withdrawn"}
    assert all(photo.path.stat().st_nlink == 2 for photo in dataset.photos)
    assert export_inbox(inbox, tmp_path / "out", state="taught").n_photos == 3
    assert len(list((tmp_path / "out").rglob("*.jpg"))) == 3
    assert inbox.list_lost() == []


def test_an_export_replaces_nothing_that_is_not_its_own(inbox: Inbox, contents: list[bytes], tmp_path: Path) -> None:
    with pytest.raises(DataError, match="wanted photos to export, got none"):
        export_inbox(inbox, tmp_path / "out")
    inbox.add(contents[0], "Apple")
    foreign = tmp_path / "own"
    foreign.mkdir()
    (foreign / "thesis.txt").write_text("all of it")
    with pytest.raises(StorageError, match="a folder that is no export stands there"):
        export_inbox(inbox, foreign)
    export_inbox(inbox, tmp_path / "out")
    (tmp_path / "out" / "Apple" / "mine.jpg").write_bytes(contents[1])
    with pytest.raises(StorageError, match=r"Apple/mine\.jpg is not as it was exported"):
        export_inbox(inbox, tmp_path / "out")
    assert (tmp_path / "out" / "Apple" / "mine.jpg").read_bytes() == contents[1]
    (tmp_path / "out" / "Apple" / "mine.jpg").unlink()
    exported = next((tmp_path / "out" / "Apple").iterdir())
    exported.unlink()
    exported.write_bytes(b"cropped by hand")
    with pytest.raises(StorageError, match="is not as it was exported"):
        export_inbox(inbox, tmp_path / "out")
    assert exported.read_bytes() == b"cropped by hand"
    (tmp_path / "file").write_text("x")
    with pytest.raises(StorageError, match="got a file"):
        export_inbox(inbox, tmp_path / "file")


def test_a_lost_file_stops_the_export_by_name(inbox: Inbox, contents: list[bytes], tmp_path: Path) -> None:
    photo = inbox.add(contents[0], "Apple")
    photo.path.unlink()
    with pytest.raises(StorageError, match=photo.sha256):
        export_inbox(inbox, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_labels_are_folders_on_every_system(inbox: Inbox, contents: list[bytes], tmp_path: Path) -> None:
    labels = ["Apple", "apple", "A:B", "A?B", "NUL.x", "test/Gala", ".hidden", "dots...", "__MACOSX", "a\\b", "Val"]
    paths = [parse_label(label) for label in labels]
    names = list(name_folders(paths).values())
    assert len({name.casefold() for name in names}) == len(labels)
    assert not any(set(name) & set('<>:"|?*\\') for name in names)
    for data, label in zip(contents, labels, strict=False):
        inbox.add(data, label)
    tree = export_inbox(inbox, tmp_path / "out")
    assert len(load_dataset(tmp_path / "out").photos) == len(labels)
    assert len(load_dataset(tmp_path / "out").tree) == len(labels)
    assert set(tree.renamed) == set(labels) - {"Apple"}


# --- command line ---------------------------------------------------------------------------------------------------


def _run_command(*arguments: object, code: int = 0) -> tuple[str, str]:
    done = subprocess.run(
        [*POMONA, *map(str, arguments)], capture_output=True, encoding="utf-8", check=False, timeout=60
    )
    assert "Traceback" not in done.stderr
    assert done.returncode == code, (done.stdout, done.stderr)
    return done.stdout, done.stderr


def test_commands_list_and_export(tmp_path: Path, contents: list[bytes]) -> None:
    folder = tmp_path / "scale.inbox"
    with open_inbox(folder) as opened:
        first = opened.add(contents[0], "Fruit/Apple")
        opened.add(contents[-1], "aux")
    rows = json.loads(_run_command("inbox", "list", folder, "--json")[0])
    assert len(rows) == 2
    assert (rows[0]["photo"], rows[0]["label"], rows[0]["state"]) == (first.sha256, "Fruit/Apple", "waiting")
    stdout, _ = _run_command("inbox", "list", folder)
    assert first.sha256[:12] in stdout
    assert "2 photos, 2 waiting" in stdout
    stdout, stderr = _run_command("inbox", "export", folder, "--output", tmp_path / "out")
    assert "2 photos of 2 classes" in stdout
    assert "aux is in the folder aux_" in stderr
    answer = json.loads(_run_command("inbox", "export", folder, "--output", tmp_path / "out", "--json")[0])
    assert answer["n_photos"] == 2
    assert (
        "wanted photos that are taught"
        in _run_command("inbox", "export", folder, "-o", tmp_path / "no", "--state", "taught", code=1)[1]
    )
    assert "got none of them" in _run_command("inbox", "list", tmp_path / "none", code=2)[1]
    assert "list" in _run_command("inbox", "--help")[0]


@pytest.mark.parametrize(
    "url",
    [
        "postgresql://127.0.0.1:1/db?user=x&password=this-is-secret",
        "postgresql://user:p@this-is-secret@127.0.0.1:1/db",
    ],
)
def test_a_password_in_a_strange_place_is_not_shown(url: str, tmp_path: Path) -> None:
    with pytest.raises(OptionError, match="inbox: wanted") as caught:
        open_inbox(url, photos=tmp_path)
    assert "this-is-secret" not in str(caught.value)


@pytest.mark.parametrize("url", ["sqlite:///:memory:", "sqlite://", "sqlite+aiosqlite:////tmp/a.sqlite"])
def test_an_inbox_that_would_be_gone_at_the_end_is_refused(url: str, tmp_path: Path) -> None:
    with pytest.raises(OptionError, match="inbox: wanted sqlite:///FILE"):
        open_inbox(url, photos=tmp_path)


def test_a_disk_without_shared_memory_still_holds_an_inbox(tmp_path: Path) -> None:
    """There SQLite answers with the mode that it has, and raises nothing."""
    connection = sqlite3.connect(":memory:", check_same_thread=False)  # as such a disk does
    trying = threading.Thread(target=_begin_wal, args=(connection,), daemon=True)
    trying.start()
    trying.join(20)
    assert not trying.is_alive()
    assert connection.execute("PRAGMA journal_mode").fetchone() == ("memory",)
    connection.close()
