"""Photo sets are fetched from real git repositories that these tests make; nothing leaves the machine."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
import zlib
from dataclasses import FrozenInstanceError, replace
from io import BytesIO
from pathlib import Path

import pytest

from pomona import fetch
from pomona.dataset import load_dataset
from pomona.errors import DataError, OptionError, StorageError
from pomona.fetch import MARKER_NAME, PHOTO_SETS, PhotoSet, fetch_photo_set, find_photo_set

needs_git = pytest.mark.skipif(shutil.which("git") is None, reason="git is not installed")
posix_only = pytest.mark.skipif(os.name == "nt", reason="links and signals of POSIX are needed")


def run_git(repository: Path, *arguments: str, stdin: bytes = b"") -> str:
    author = ("-c", "user.name=A", "-c", "user.email=a@example.org", "-c", "commit.gpgSign=false")
    safe = ("-c", "core.autocrlf=false", "-c", f"core.hooksPath={os.devnull}")
    done = subprocess.run(
        ["git", *author, *safe, *arguments], cwd=repository, input=stdin, capture_output=True, check=True
    )
    return done.stdout.decode().strip()


def jpeg(red: int) -> bytes:
    from PIL import Image

    stream = BytesIO()
    Image.new("RGB", (8, 8), (red, 80, 20)).save(stream, "JPEG")
    return stream.getvalue()


FILES = {
    "LICENSE": b"MIT License\r\n\r\nCopyright (c) 2019 A\r\n",
    "README.md": b"not wanted",
    "dataset/classes.csv": b"Class Name\r\nApple\n",
    "dataset/train.txt": b"not wanted",
    "dataset/iconic/Apple.jpg": jpeg(1),
    "dataset/train/Apple/1.jpg": jpeg(10),
    "dataset/train/Apple/2.jpg": jpeg(20),
    "dataset/train/Plum/1.jpg": jpeg(30),
    "dataset/train/Plum/2.jpg": jpeg(40),
    "dataset/training-notes/1.jpg": jpeg(50),
    "dataset/val/Apple/1.jpg": jpeg(60),
    "dataset/val/Plum/1.jpg": jpeg(70),
}
TAKEN = {
    "LICENSE": "LICENSE",
    "classes.csv": "dataset/classes.csv",
    **{f"{path}": f"dataset/{path}" for path in ("train/Apple/1.jpg", "train/Apple/2.jpg", "train/Plum/1.jpg")},
    **{f"{path}": f"dataset/{path}" for path in ("train/Plum/2.jpg", "val/Apple/1.jpg", "val/Plum/1.jpg")},
}


class Served:
    """A git repository on this machine, and the row that describes it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir(parents=True)
        run_git(folder, "init", "--quiet", "--template=", "--object-format=sha1")
        run_git(folder, "config", "uploadpack.allowAnySHA1InWant", "true")

    def write(self, files: dict[str, bytes]) -> None:
        for name, content in files.items():
            path = self.folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)

    def commit(self) -> PhotoSet:
        run_git(self.folder, "add", "--all", "--force")
        run_git(self.folder, "commit", "--quiet", "--no-verify", "--message=photos")
        return self.row(run_git(self.folder, "rev-parse", "HEAD"))

    def row(self, commit: str) -> PhotoSet:
        return PhotoSet(
            name="tiny",
            title="Tiny Set",
            url=self.folder.as_uri(),
            commit=commit,
            licence="MIT",
            licence_files=("LICENSE*",),
            takes=(("dataset/train", "train"), ("dataset/val", "val"), ("dataset/classes.csv", "classes.csv")),
            size_mb=1,
            n_photos=6,
            citation="A: Tiny Set. 2019.",
        )

    def object_path(self, name: str) -> Path:
        oid = run_git(self.folder, "rev-parse", f"HEAD:{name}")
        return self.folder / ".git" / "objects" / oid[:2] / oid[2:]


@pytest.fixture
def served(tmp_path: Path) -> Served:
    served = Served(tmp_path / "served")
    served.write(FILES)
    return served


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """Parent of the fetched folder, to see what a fetch leaves behind."""
    (tmp_path / "home").mkdir()
    return tmp_path / "home"


def read_tree(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


# --- the table ------------------------------------------------------------------------------------------------------


def test_rows_have_the_right_shape() -> None:
    assert len({row.name for row in PHOTO_SETS}) == len(PHOTO_SETS)
    for row in PHOTO_SETS:
        assert re.fullmatch(r"[0-9a-f]{40}", row.commit)
        assert re.fullmatch(r"https://[\w.-]+/[\w./-]+\.git", row.url)
        assert re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9.+-]*", row.licence)
        assert {"train", "test"} <= {place for _, place in row.takes}
        assert row.size_mb > 0
        assert row.n_photos > 0
        assert row.citation


def test_docs_list_every_row() -> None:
    page = Path(__file__).parents[1] / "docs" / "data.md"
    if not page.is_file():
        pytest.skip("docs/data.md is not part of this copy")
    text = page.read_text(encoding="utf-8")
    for row in PHOTO_SETS:
        line = next(line for line in text.splitlines() if line.startswith(f"| `{row.name}` |"))
        for wanted in (row.title, row.commit, row.url, row.licence, f"{row.n_photos:,}", f"{row.size_mb} MB"):
            assert wanted in line


def test_find_photo_set() -> None:
    assert find_photo_set("grocery").title == "Grocery Store Dataset"
    with pytest.raises(OptionError, match=r"wanted one of: .*grocery.*; got 'groceries'"):
        find_photo_set("groceries")


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("name", "../up"),
        ("commit", "main"),
        ("commit", "FC80BA90F803D79D0383DF52C5A4AC5DE99FF6FC"),
        ("takes", ()),
        ("licence_files", ()),
        ("takes", (("dataset", "../up"),)),
        ("takes", (("/dataset", "train"),)),
        ("takes", (("dataset/", "train"),)),
    ],
)
def test_wrong_rows_are_refused(field: str, value: object) -> None:
    with pytest.raises(OptionError):
        replace(PHOTO_SETS[0], **{field: value})
    with pytest.raises(FrozenInstanceError):
        PHOTO_SETS[0].name = "other"  # type: ignore[misc]


# --- fetching -------------------------------------------------------------------------------------------------------


@needs_git
def test_fetches_what_the_row_takes_byte_for_byte(served: Served, home: Path) -> None:
    row = served.commit()
    lines: list[str] = []
    folder = fetch_photo_set(row, home / "tiny", on_line=lines.append)
    assert folder == home / "tiny"
    tree = read_tree(folder)
    marker = json.loads(tree.pop(MARKER_NAME))
    assert tree == {place: FILES[source] for place, source in TAKEN.items()}
    assert (marker["name"], marker["commit"], marker["n_files"]) == ("tiny", row.commit, 8)
    assert [path.name for path in home.iterdir()] == ["tiny"]
    shown = "\n".join(lines)
    for wanted in ("Tiny Set: 6 photos, about 1 MB, licence MIT", row.url, row.commit, row.citation, "text in LICENSE"):
        assert wanted in shown
    assert any("100%" in line for line in lines), "git's own progress is shown"
    assert not any("\r" in line or "\n" in line or not line.strip() for line in lines), "one line at a time"


@needs_git
def test_the_folder_is_one_that_train_takes(served: Served, home: Path) -> None:
    dataset = load_dataset(fetch_photo_set(served.commit(), home / "tiny"))
    assert dataset.tree.names == ("Apple", "Plum")
    assert [dataset.part(split).n_photos for split in ("train", "val", "test")] == [4, 2, 0]
    assert not dataset.skipped


@needs_git
def test_default_folder(served: Served, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(home)
    assert fetch_photo_set(served.commit()) == Path("data/tiny")
    assert (home / "data" / "tiny" / "LICENSE").is_file()


@needs_git
def test_pinned_commit_is_taken_not_the_newest(served: Served, home: Path) -> None:
    row = served.commit()
    served.write({"dataset/train/Apple/1.jpg": jpeg(99), "dataset/train/Apple/3.jpg": jpeg(98)})
    assert served.commit().commit != row.commit
    tree = read_tree(fetch_photo_set(row, home / "tiny"))
    assert tree["train/Apple/1.jpg"] == FILES["dataset/train/Apple/1.jpg"]
    assert "train/Apple/3.jpg" not in tree


@needs_git
def test_many_files_come_as_a_pack(served: Served, home: Path) -> None:
    many = {f"dataset/train/Apple/n{number}.jpg": b"\xff\xd8\xff" + bytes(range(number)) for number in range(150)}
    served.write(many)
    tree = read_tree(fetch_photo_set(served.commit(), home / "tiny"))
    assert {f"dataset/{name}" for name in tree if "/n" in name} == set(many)
    assert all(tree[name.removeprefix("dataset/")] == content for name, content in many.items())


@needs_git
def test_chinese_names(served: Served, home: Path) -> None:
    served.write({"dataset/train/苹果/红 富士“1”.jpg": jpeg(90)})
    tree = read_tree(fetch_photo_set(served.commit(), home / "水果 照片"))
    assert tree["train/苹果/红 富士“1”.jpg"] == jpeg(90)


@needs_git
def test_attributes_and_settings_change_no_byte(
    served: Served, home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = tmp_path / "gitconfig"
    settings.write_text(
        '[core]\n autocrlf = true\n eol = crlf\n[filter "upper"]\n smudge = tr a-z A-Z\n required = true\n'
    )
    served.write({".gitattributes": b"*.csv filter=upper\n*.jpg export-ignore\nLICENSE export-subst ident\n"})
    row = served.commit()
    monkeypatch.setenv("GIT_CONFIG_GLOBAL", str(settings))
    tree = read_tree(fetch_photo_set(row, home / "tiny"))
    del tree[MARKER_NAME]
    assert tree == {place: FILES[source] for place, source in TAKEN.items()}


@needs_git
@posix_only
def test_hooks_and_template_of_the_user_do_not_count(
    served: Served, home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    row = served.commit()
    hooks = tmp_path / "template" / "hooks"
    hooks.mkdir(parents=True)
    for name in ("reference-transaction", "post-checkout", "post-index-change", "pre-auto-gc"):
        (hooks / name).write_text(f"#!/bin/sh\ntouch '{tmp_path}/ran'\n")
        (hooks / name).chmod(0o755)
    (tmp_path / "template" / "config").write_text('[url "file:///nowhere"]\n insteadOf = file://\n')
    settings = tmp_path / "gitconfig"
    settings.write_text(f'[core]\n hooksPath = "{hooks}"\n[init]\n templateDir = "{tmp_path}/template"\n')
    monkeypatch.setenv("GIT_CONFIG_GLOBAL", str(settings))
    fetch_photo_set(row, home / "tiny")
    assert not (tmp_path / "ran").exists()


@needs_git
def test_works_inside_a_git_hook(served: Served, home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    row = served.commit()
    other = Served(tmp_path / "other")
    before = read_tree(other.folder)
    monkeypatch.setenv("GIT_DIR", str(other.folder / ".git"))
    monkeypatch.setenv("GIT_OBJECT_DIRECTORY", str(other.folder / ".git" / "objects"))
    monkeypatch.setenv("GIT_INDEX_FILE", str(other.folder / ".git" / "index"))
    monkeypatch.setenv("GIT_DEFAULT_HASH", "sha256")
    fetch_photo_set(row, home / "tiny")
    assert read_tree(other.folder) == before


@needs_git
def test_old_repository_with_zero_padded_modes(served: Served, home: Path) -> None:
    served.commit()
    listed = [line.split(None, 3) for line in run_git(served.folder, "ls-tree", "HEAD").splitlines()]
    raw = b"".join(
        mode.rjust(7, "0").encode() + b" " + name.encode() + b"\0" + bytes.fromhex(oid)
        for mode, _, oid, name in listed
        if mode == "100644" or name == "dataset"
    )
    assert b"0040000 dataset" in raw
    tree = run_git(served.folder, "hash-object", "-t", "tree", "-w", "--literally", "--stdin", stdin=raw)
    old = run_git(served.folder, "commit-tree", "-m", "old", tree)
    assert "train/Apple/1.jpg" in read_tree(fetch_photo_set(served.row(old), home / "tiny"))


# --- what is left out -----------------------------------------------------------------------------------------------


@needs_git
@posix_only
def test_links_and_submodules_are_left_out_and_counted(served: Served, home: Path, tmp_path: Path) -> None:
    (tmp_path / "secret.jpg").write_bytes(b"secret")
    train = served.folder / "dataset" / "train"
    (train / "Apple" / "out.jpg").symlink_to(tmp_path / "secret.jpg")
    (train / "Up").symlink_to("../../..")
    (served.folder / "elsewhere.jpg").symlink_to(tmp_path / "secret.jpg")
    head = served.commit().commit
    run_git(served.folder, "update-index", "--add", "--cacheinfo", f"160000,{head},dataset/train/module")
    run_git(served.folder, "commit", "--quiet", "--no-verify", "--message=module")
    lines: list[str] = []
    row = served.row(run_git(served.folder, "rev-parse", "HEAD"))
    folder = fetch_photo_set(row, home / "tiny", on_line=lines.append)
    assert not any(path.is_symlink() for path in folder.rglob("*"))
    assert set(read_tree(folder)) == {MARKER_NAME, *TAKEN}
    assert lines[-1].startswith("3 left out")
    assert "dataset/train/Apple/out.jpg" in lines[-1]


@needs_git
def test_names_that_lead_out_of_the_folder_are_left_out(served: Served, home: Path) -> None:
    served.commit()

    def oid(name: str) -> str:
        return run_git(served.folder, "rev-parse", f"HEAD:{name}")

    def make_tree(*entries: tuple[str, str, str]) -> str:
        raw = b"".join(f"{mode} {name}".encode() + b"\0" + bytes.fromhex(hash_) for mode, name, hash_ in entries)
        return run_git(served.folder, "hash-object", "-t", "tree", "-w", "--literally", "--stdin", stdin=raw)

    up = make_tree(("100644", "evil.jpg", oid("dataset/train/Apple/1.jpg")))
    train = make_tree(("40000", "..", up), ("40000", "Apple", oid("dataset/train/Apple")))
    data = make_tree(
        ("100644", "classes.csv", oid("dataset/classes.csv")),
        ("40000", "train", train),
        ("40000", "val", oid("dataset/val")),
    )
    root = make_tree(("100644", "LICENSE", oid("LICENSE")), ("40000", "dataset", data))
    row = served.row(run_git(served.folder, "commit-tree", "-m", "evil", root))
    lines: list[str] = []
    folder = fetch_photo_set(row, home / "tiny", on_line=lines.append)
    assert not list(home.rglob("evil.jpg"))
    assert "train/Apple/1.jpg" in read_tree(folder)
    assert lines[-1].startswith("1 left out")


# --- what stands in the way -----------------------------------------------------------------------------------------


@needs_git
def test_already_here_needs_no_repository(served: Served, home: Path) -> None:
    row = served.commit()
    folder = fetch_photo_set(row, home / "tiny")
    (folder / "train" / "Apple" / "mine.jpg").write_bytes(b"mine")
    before = read_tree(folder)
    shutil.rmtree(served.folder)
    lines: list[str] = []
    assert fetch_photo_set(row, folder, on_line=lines.append) == folder
    assert len(lines) == 1
    assert "already here" in lines[0]
    assert read_tree(folder) == before


@needs_git
def test_another_commit_is_in_the_way(served: Served, home: Path) -> None:
    row = served.commit()
    folder = fetch_photo_set(row, home / "tiny")
    before = read_tree(folder)
    served.write({"dataset/train/Apple/3.jpg": jpeg(98)})
    with pytest.raises(DataError, match=rf"got the set tiny at {row.commit}"):
        fetch_photo_set(served.commit(), folder)
    assert read_tree(folder) == before


@needs_git
@pytest.mark.parametrize("marker", [None, b"{", b"[]", b'{"name": "tiny"}', b"\xff"])
def test_a_folder_of_the_user_is_not_touched(served: Served, home: Path, marker: bytes | None) -> None:
    folder = home / "tiny"
    folder.mkdir()
    (folder / "mine.jpg").write_bytes(b"mine")
    if marker is not None:
        (folder / MARKER_NAME).write_bytes(marker)
    before = read_tree(home)
    with pytest.raises(DataError, match="name another folder"):
        fetch_photo_set(served.commit(), folder)
    assert read_tree(home) == before


@needs_git
def test_a_file_is_in_the_way_and_an_empty_folder_is_not(served: Served, home: Path) -> None:
    row = served.commit()
    (home / "file").write_bytes(b"mine")
    with pytest.raises(DataError, match="got a file"):
        fetch_photo_set(row, home / "file")
    assert (home / "file").read_bytes() == b"mine"
    (home / "empty").mkdir()
    assert "LICENSE" in read_tree(fetch_photo_set(row, home / "empty"))


@needs_git
def test_what_comes_into_the_folder_meanwhile_stays(served: Served, home: Path) -> None:
    folder = home / "tiny"

    def put(line: str) -> None:
        folder.mkdir(exist_ok=True)
        (folder / "mine.jpg").write_bytes(b"mine")

    with pytest.raises(DataError, match="another origin"):
        fetch_photo_set(served.commit(), folder, on_line=put)
    assert read_tree(home) == {"tiny/mine.jpg": b"mine"}


@needs_git
@posix_only
def test_a_link_to_a_folder_is_filled_where_it_leads(served: Served, home: Path, tmp_path: Path) -> None:
    (tmp_path / "big disk").mkdir()
    (home / "tiny").symlink_to(tmp_path / "big disk")
    fetch_photo_set(served.commit(), home / "tiny")
    assert (home / "tiny").is_symlink()
    assert (tmp_path / "big disk" / "LICENSE").is_file()


# --- what fails -----------------------------------------------------------------------------------------------------


@needs_git
def test_wrong_commit_leaves_nothing(served: Served, home: Path) -> None:
    served.commit()
    wrong = served.row("0123456789abcdef0123456789abcdef01234567")
    with pytest.raises(DataError) as caught:
        fetch_photo_set(wrong, home / "tiny")
    for wanted in (wrong.url, wrong.commit, "by hand: git clone", "not our ref"):
        assert wanted in str(caught.value)
    assert not list(home.iterdir())


@needs_git
def test_a_tag_object_is_not_the_commit(served: Served, home: Path) -> None:
    row = served.commit()
    run_git(served.folder, "tag", "-a", "-m", "tag", "v1")
    tag = served.row(run_git(served.folder, "rev-parse", "v1"))
    assert tag.commit != row.commit
    with pytest.raises(DataError, match=f"wanted the commit {tag.commit} .* got {row.commit}"):
        fetch_photo_set(tag, home / "tiny")
    assert not list(home.iterdir())


@needs_git
@pytest.mark.parametrize("n_more", [0, 150], ids=["loose objects", "a pack"])
def test_another_photo_under_the_same_hash_is_refused(served: Served, home: Path, n_more: int) -> None:
    """A server that lies about one photo: well-formed, another content."""
    served.write({f"dataset/train/Apple/n{number}.jpg": jpeg(5) + bytes([number]) for number in range(n_more)})
    row = served.commit()
    path = served.object_path("dataset/train/Apple/1.jpg")
    path.chmod(0o644)
    forged = FILES["dataset/train/Apple/1.jpg"][:-1] + b"!"
    path.write_bytes(zlib.compress(b"blob %d\0" % len(forged) + forged))
    with pytest.raises(DataError, match="could not fetch commit"):
        fetch_photo_set(row, home / "tiny")
    assert not list(home.iterdir())


@needs_git
@pytest.mark.parametrize("damage", ["cut", "flipped", "gone"])
def test_a_damaged_object_is_refused(served: Served, home: Path, damage: str) -> None:
    row = served.commit()
    path = served.object_path("dataset/train/Apple/1.jpg")
    path.chmod(0o644)
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 0xFF
    path.write_bytes(bytes(content) if damage == "flipped" else path.read_bytes()[:40])
    if damage == "gone":
        path.unlink()
    with pytest.raises(DataError, match="could not fetch commit"):
        fetch_photo_set(row, home / "tiny")
    assert not list(home.iterdir())


@needs_git
@pytest.mark.parametrize("kind", ["missing", "no repository", "no url", "an option"])
def test_no_repository(tmp_path: Path, home: Path, kind: str) -> None:
    (tmp_path / "plain").mkdir()
    url = {
        "missing": (tmp_path / "nowhere").as_uri(),
        "no repository": (tmp_path / "plain").as_uri(),
        "no url": "nonsense://here",
        "an option": f"--upload-pack=touch {home / 'ran'}",
    }[kind]
    row = replace(PHOTO_SETS[0], url=url, size_mb=1)
    with pytest.raises(DataError, match=r"git says: \w.*Check the network"):
        fetch_photo_set(row, home / "tiny")
    assert not list(home.iterdir())


@needs_git
@pytest.mark.parametrize(
    ("change", "wanted"),
    [
        ({"takes": (("dataset/train", "train"), ("dataset/test", "test"))}, "wanted dataset/test in commit"),
        ({"takes": (("dataset/trai", "train"),)}, "wanted dataset/trai in commit"),
        ({"licence_files": ("COPYING",)}, "wanted COPYING in commit"),
        ({"licence_files": ("dataset/LICENSE",)}, "wanted dataset/LICENSE in commit"),
    ],
)
def test_a_row_that_asks_for_what_is_not_there(
    served: Served, home: Path, change: dict[str, object], wanted: str
) -> None:
    with pytest.raises(DataError, match=wanted):
        fetch_photo_set(replace(served.commit(), **change), home / "tiny")
    assert not list(home.iterdir())


def test_git_missing(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    with pytest.raises(DataError, match=r"git is needed to fetch grocery.*git-scm\.com.*git clone https://") as caught:
        fetch_photo_set(PHOTO_SETS[0], home / "tiny")
    assert PHOTO_SETS[0].commit in str(caught.value)
    assert not list(home.iterdir())


@needs_git
def test_a_disk_that_is_too_small(served: Served, home: Path) -> None:
    with pytest.raises(StorageError, match="free disk space"):
        fetch_photo_set(replace(served.commit(), size_mb=10**12), home / "tiny")
    assert not list(home.iterdir())


# --- a server that never answers --------------------------------------------------------------------------------------


class SilentServer:
    """Takes one HTTP request on this machine and never answers it."""

    def __init__(self) -> None:
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.listener.settimeout(20)
        self.url = f"http://127.0.0.1:{self.listener.getsockname()[1]}/set.git"
        self.asked = threading.Event()
        self.left = threading.Event()
        self.thread = threading.Thread(target=self._serve, daemon=True)
        self.thread.start()

    def _serve(self) -> None:
        connection, _ = self.listener.accept()
        with connection:
            connection.settimeout(20)
            while connection.recv(4096):
                self.asked.set()
            self.left.set()

    def close(self) -> None:
        self.listener.close()
        self.thread.join(25)


@pytest.fixture
def silent(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    server = SilentServer()
    yield server
    server.close()


@needs_git
def test_a_silent_server_is_given_up(silent: SilentServer, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fetch, "_STALL_S", 1)
    with pytest.raises(DataError, match="could not fetch commit"):
        fetch_photo_set(replace(PHOTO_SETS[0], url=silent.url, size_mb=1), home / "tiny")
    assert silent.left.wait(5)
    assert not list(home.iterdir())


@needs_git
@posix_only
def test_an_interrupt_ends_git_and_leaves_nothing(silent: SilentServer, home: Path) -> None:
    # In a process of its own: the signal stack of pytest's fault handler can be too small, which ends the process.
    program = (
        "import sys\nfrom dataclasses import replace\nfrom pathlib import Path\n"
        "from pomona.fetch import PHOTO_SETS, fetch_photo_set\n"
        "fetch_photo_set(replace(PHOTO_SETS[0], url=sys.argv[1], size_mb=1), Path(sys.argv[2]))\n"
    )
    command = [sys.executable, "-c", program, silent.url, str(home / "tiny")]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        assert silent.asked.wait(15)
        process.send_signal(signal.SIGINT)
        _, stderr = process.communicate(timeout=15)
    assert process.returncode == -signal.SIGINT
    assert "KeyboardInterrupt" in stderr
    assert silent.left.wait(5), "git's own helper process ended too"
    assert not list(home.iterdir())


@needs_git
def test_an_error_of_the_caller_passes_through(served: Served, home: Path) -> None:
    def fail(line: str) -> None:
        if "%" in line:
            raise BrokenPipeError("the caller's own stream")

    with pytest.raises(BrokenPipeError):
        fetch_photo_set(served.commit(), home / "tiny", on_line=fail)
    assert not list(home.iterdir())
