"""Files that are old or new and never half, whatever happens in between."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from pomona.errors import OptionError, StorageError
from pomona.files import (
    cache_folder,
    check_page_place,
    hash_bytes,
    hash_file,
    make_folder,
    new_folder,
    storage_errors,
    write_atomic,
)

if TYPE_CHECKING:
    from collections.abc import Iterator


def list_names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@contextlib.contextmanager
def ordinary_user() -> Iterator[None]:
    """Root may write anywhere, so be somebody else for a while."""
    if not hasattr(os, "geteuid"):
        pytest.skip("permissions work otherwise here")
    if os.geteuid() != 0:
        yield
        return
    os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(0)


def run_on_full_disk(script: str, mount_point: Path, size: str) -> subprocess.CompletedProcess[str]:
    """Run a script with `mount_point` as a file system of a given size, in a mount namespace of its own."""
    mount_point.mkdir()
    mount = ["unshare", "--map-root-user", "--mount", "sh", "-ec"]
    begin = f'mount -t tmpfs -o size={size} none "$0"; '
    if (
        not shutil.which("unshare")
        or subprocess.run([*mount, begin, mount_point], capture_output=True, check=False).returncode
    ):
        pytest.skip("no small file system can be mounted here, so no disk can be filled")
    command = [*mount, begin + 'exec "$1" -c "$2" "$0"', mount_point, sys.executable, script]
    return subprocess.run(command, capture_output=True, text=True, check=True, timeout=60)


# --- write_atomic ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("content", "wanted"), [(b"\x00\r\n", b"\x00\r\n"), ("Birne – 梨\r\n", "Birne – 梨\r\n".encode())]
)
def test_bytes_and_text_arrive_unchanged(tmp_path: Path, content: bytes | str, wanted: bytes) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"old")
    write_atomic(path, content)
    assert path.read_bytes() == wanted
    assert list_names(tmp_path) == ["file"]


def test_a_killed_writer_never_leaves_half_a_file(tmp_path: Path) -> None:
    script = (
        "import sys; from pathlib import Path; from pomona.files import write_atomic\n"
        "i = 0\n"
        "while True:\n"
        "    i += 1\n"
        "    write_atomic(Path(sys.argv[1]), bytes([i % 251]) * 3_000_000)\n"
    )
    path = tmp_path / "file"
    for look_s in (0.05, 0.1, 0.15, 0.2):
        path.unlink(missing_ok=True)
        with subprocess.Popen([sys.executable, "-c", script, path]) as writer:
            try:
                while not path.exists():
                    time.sleep(0.005)
                end_s = time.monotonic() + look_s
                while time.monotonic() < end_s:
                    assert path.stat().st_size == 3_000_000
            finally:
                writer.kill()
        data = path.read_bytes()
        assert len(data) == 3_000_000
        assert len(set(data)) == 1


def test_a_failed_write_leaves_the_old_file_and_no_litter(tmp_path: Path) -> None:
    folder = tmp_path / "target"
    folder.mkdir()
    with pytest.raises(StorageError, match=r"could not write .*target"):
        write_atomic(folder, b"new")
    assert list_names(tmp_path) == ["target"]


def test_a_full_disk_says_so_and_keeps_the_old_file(tmp_path: Path) -> None:
    script = (
        "import sys; from pathlib import Path\n"
        "from pomona.errors import StorageError; from pomona.files import write_atomic\n"
        "path = Path(sys.argv[1], 'file')\n"
        "write_atomic(path, 'old')\n"
        "try:\n"
        "    write_atomic(path, bytes(1_000_000))\n"
        "except StorageError as error:\n"
        "    print(error)\n"
        "print(path.read_text(), len(list(path.parent.iterdir())))\n"
    )
    done = run_on_full_disk(script, tmp_path / "disk", "64k")
    message, left = done.stdout.splitlines()
    assert message.endswith("file: the disk is full: free some space, or name another place")
    assert left == "old 1"


def test_no_permission_says_so(tmp_path: Path) -> None:
    folder = tmp_path / "locked"
    folder.mkdir(mode=0o555)
    with ordinary_user(), pytest.raises(StorageError, match="no permission: choose a folder you may write to"):
        write_atomic(folder / "file", b"new")
    with ordinary_user(), pytest.raises(StorageError, match=r"could not make the folder .*no permission"):
        make_folder(folder / "deeper")
    assert list_names(folder) == []


# --- pages ----------------------------------------------------------------------------------------------------------


def test_without_a_mark_the_name_tells_a_page_from_a_photo(tmp_path: Path) -> None:
    for name in ("page.html", "page.HTM"):
        check_page_place(tmp_path / name)
        (tmp_path / name).write_text("an earlier page")
        check_page_place(tmp_path / name)
    for name in ("page", "photo.jpg", "page.html.png"):
        with pytest.raises(OptionError, match=r"preview: wanted a file that ends in \.html, got "):
            check_page_place(tmp_path / name)
    with pytest.raises(OptionError, match=r"preview: wanted a file in a folder that exists, got .*; make .* first"):
        check_page_place(tmp_path / "not there" / "page.html")
    (tmp_path / "folder.html").mkdir()
    with pytest.raises(StorageError, match="wanted a place for a page, got a folder; name a file in it"):
        check_page_place(tmp_path / "folder.html")


def test_a_mark_tells_an_earlier_page_from_all_else(tmp_path: Path) -> None:
    mark, place = b"<meta made by me>", tmp_path / "page"
    for path in (place, tmp_path / "not there" / "page"):
        check_page_place(path, mark=mark)
    place.write_bytes(b"x" * (1000 - len(mark)) + mark)
    check_page_place(place, mark=mark)
    for content in (b"", b"mine", b"x" * (1001 - len(mark)) + mark):
        place.write_bytes(content)
        with pytest.raises(StorageError, match="a file that is no preview stands there: move it"):
            check_page_place(place, mark=mark)
        assert place.read_bytes() == content
    with pytest.raises(StorageError, match="wanted a place for a page, got a folder"):
        check_page_place(tmp_path, mark=mark)
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    with pytest.raises(StorageError, match="could not read what stands at"):
        check_page_place(tmp_path / "link", mark=mark)


# --- folders --------------------------------------------------------------------------------------------------------


def test_a_file_in_the_way_of_a_folder_says_so(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    with pytest.raises(StorageError, match="a file of that name is in the way"):
        make_folder(tmp_path / "file")
    with pytest.raises(StorageError, match="a file stands where a folder was wanted"):
        make_folder(tmp_path / "file" / "deeper")


@pytest.mark.parametrize("has_exchange", [True, False])
def test_a_new_folder_replaces_the_old_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, has_exchange: bool) -> None:
    if not has_exchange:
        monkeypatch.setattr(sys, "platform", "other")
    target = tmp_path / "deep" / "run"
    for content in ("first", "second"):
        with new_folder(target) as folder:
            (folder / content).write_text(content)
            assert target.exists() == (content == "second")
        assert list_names(target) == [content]
        assert list_names(target.parent) == ["run"]


@pytest.mark.parametrize("fault", [RuntimeError, KeyboardInterrupt, StorageError])
def test_a_failed_block_leaves_the_old_folder(tmp_path: Path, fault: type[BaseException]) -> None:
    target = tmp_path / "run"
    target.mkdir()
    (target / "old").write_text("old")
    with pytest.raises(fault), new_folder(target) as folder:  # noqa: PT012 - the fault is inside the block
        (folder / "half").write_text("half")
        raise fault
    assert list_names(target) == ["old"]
    assert list_names(tmp_path) == ["run"]


def test_a_reader_always_finds_a_whole_folder(tmp_path: Path) -> None:
    script = (
        "import sys; from pathlib import Path; from pomona.files import new_folder\n"
        "for i in range(300):\n"
        "    with new_folder(Path(sys.argv[1])) as folder:\n"
        "        (folder / 'a').write_text(str(i)); (folder / 'b').write_text(str(i))\n"
    )
    target = tmp_path / "run"
    with new_folder(target) as folder:
        (folder / "a").write_text("old")
        (folder / "b").write_text("old")
    with subprocess.Popen([sys.executable, "-c", script, target]) as writer:
        n_looks = 0
        while writer.poll() is None:
            assert target.is_dir()
            n_looks += 1
    assert writer.returncode == 0
    assert n_looks > 100
    assert list_names(target) == ["a", "b"]
    assert list_names(tmp_path) == ["run"]


def test_a_folder_that_comes_in_between_is_replaced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    target = tmp_path / "run"
    rename = Path.rename

    def rename_late(source: Path, to: Path) -> Path:
        if not target.exists():  # the other process is quicker by this much
            target.mkdir()
            (target / "other").write_text("other")
        return rename(source, to)

    with new_folder(target) as folder:
        (folder / "mine").write_text("mine")
        monkeypatch.setattr(Path, "rename", rename_late)
    assert list_names(target) == ["mine"]
    assert list_names(tmp_path) == ["run"]


def test_a_file_in_the_place_of_the_new_folder_is_kept(tmp_path: Path) -> None:
    target = tmp_path / "run"
    target.write_text("mine")
    with pytest.raises(StorageError, match="a file of that name is in the way"), new_folder(target) as folder:
        (folder / "new").write_text("new")
    assert target.read_text() == "mine"
    assert list_names(tmp_path) == ["run"]


def test_a_link_to_a_folder_stays_a_link(tmp_path: Path) -> None:
    real, link = tmp_path / "real", tmp_path / "link"
    real.mkdir()
    (real / "old").write_text("old")
    link.symlink_to("real")
    with new_folder(link) as folder:
        (folder / "new").write_text("new")
    assert link.is_symlink()
    assert list_names(real) == ["new"]
    assert list_names(tmp_path) == ["link", "real"]


# --- the cache folder, errors and hashes ----------------------------------------------------------------------------


def test_the_cache_is_where_the_environment_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("POMONA_CACHE", str(tmp_path / "deep" / "cache"))
    assert cache_folder() == tmp_path / "deep" / "cache"
    assert cache_folder().is_dir()
    monkeypatch.delenv("POMONA_CACHE")
    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert cache_folder() == tmp_path / "xdg" / "pomona"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert cache_folder() == tmp_path / "home" / ".cache" / "pomona"


@pytest.mark.parametrize(
    ("code", "advice"),
    [
        (errno.ENOSPC, "the disk is full: free some space"),
        (errno.EDQUOT, "the disk quota is used up"),
        (errno.EROFS, "the file system is read-only"),
        (errno.EIO, os.strerror(errno.EIO)),
    ],
)
def test_an_os_error_becomes_advice(code: int, advice: str) -> None:
    with pytest.raises(StorageError, match=f"^could not save it: {advice}") as caught, storage_errors("save it"):
        raise OSError(code, os.strerror(code))
    assert isinstance(caught.value.__cause__, OSError)


def test_a_file_and_its_bytes_have_one_hash(tmp_path: Path) -> None:
    data = os.urandom(1_000_003)
    (tmp_path / "file").write_bytes(data)
    assert hash_file(tmp_path / "file") == hash_bytes(data) == hashlib.sha256(data).hexdigest()


def test_what_a_killed_process_left_is_removed_and_nothing_else(tmp_path: Path) -> None:
    left, other = (tmp_path / f".{name}.partial" for name in ("run.0123abcd", "other.0123abcd"))
    mine, elsewhere = tmp_path / ".run.notes.partial", tmp_path / "elsewhere"
    for folder in (left, other, mine, elsewhere):
        folder.mkdir()
        (folder / "file").touch()
    linked = tmp_path / ".run.4567cdef.partial"
    linked.symlink_to(elsewhere)
    with new_folder(tmp_path / "run") as folder:
        (folder / "file").touch()
    assert not left.exists()
    assert all((folder / "file").exists() for folder in (other, mine, linked, elsewhere))


@pytest.mark.skipif(sys.platform == "win32", reason="folders are not locked there")
def test_what_a_process_still_builds_is_left_alone_until_it_is_killed(tmp_path: Path) -> None:
    code = (
        "import sys, pathlib; from pomona.files import new_folder\n"
        "with new_folder(pathlib.Path(sys.argv[1])) as folder: print(folder, flush=True); sys.stdin.read()"
    )
    command = [sys.executable, "-c", code, str(tmp_path / "run")]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        building = Path(process.stdout.readline().strip())
        with new_folder(tmp_path / "run"):
            pass
        assert building.is_dir()
        process.kill()
        process.wait()
        assert building.is_dir()
    with new_folder(tmp_path / "run"):
        pass
    assert list_names(tmp_path) == ["run"]


def test_a_folder_that_was_moved_aside_comes_back(tmp_path: Path) -> None:
    """As a process leaves it that is killed between two renames, where the system has no exchange."""
    aside = tmp_path / ".run.0123abcd.partial.old"
    aside.mkdir()
    (aside / "file").write_text("old")

    def fail() -> None:
        with new_folder(tmp_path / "run"):
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail()
    assert (tmp_path / "run" / "file").read_text() == "old"
    aside.mkdir()
    with new_folder(tmp_path / "run"):
        pass
    assert list_names(tmp_path) == ["run"]
