"""Real photo sets by name, from public git repositories at a pinned commit.

In: a row of `PHOTO_SETS`, and a folder. Out: the folder, filled whole or not at all, that `pomona train` takes.
Why: a pinned commit is a hash over every byte below it, so git itself checks that everybody trains on the same photos.

Nothing is checked out. The files are read from git's object store as they were committed, so no hook, line-end setting,
attribute or filter of the user or of the repository can change them, and no symbolic link is ever made.

`fetch.fsckObjects` is left as the user has it (off by default). It checks the form of objects, not their bytes: git
hashes those on arrival anyway. What it would add are guards for a checkout, and it refuses sound old repositories, such
as those with zero-padded file modes.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
from collections import deque
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path, PurePosixPath
from typing import IO, TYPE_CHECKING, NamedTuple, cast

from pomona.errors import DataError, OptionError, StorageError
from pomona.files import WINDOWS_FORBIDDEN, new_folder, storage_errors, write_atomic

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Iterator, Sequence

MARKER_NAME = ".pomona-fetch.json"
"""File in a fetched folder that says which set and commit it holds."""

_STALL_S = 120
_STALL_BYTES_PER_S = 100
_END_S = 5
_N_LAST_LINES = 3
_REGULAR_MODES = {b"100644", b"100755", b"100664"}

_ENVIRONMENT = {
    "GIT_TERMINAL_PROMPT": "0",
    # Empty switches off every program that would ask for a password in a window; a public set needs none.
    "GIT_ASKPASS": "",
    "GCM_INTERACTIVE": "never",
    # Git 3 makes sha256 repositories by default, which cannot hold a commit of sha1.
    "GIT_DEFAULT_HASH": "sha1",
}
_FOREIGN_REPOSITORY = {
    "GIT_ALTERNATE_OBJECT_DIRECTORIES",
    "GIT_COMMON_DIR",
    "GIT_DIR",
    "GIT_GRAFT_FILE",
    "GIT_INDEX_FILE",
    "GIT_NAMESPACE",
    "GIT_OBJECT_DIRECTORY",
    "GIT_PREFIX",
    "GIT_REPLACE_REF_BASE",
    "GIT_SHALLOW_FILE",
    "GIT_WORK_TREE",
}
"""Variables that are set inside a git hook, and would lead our git into that repository."""


def _is_plain_path(path: str) -> bool:
    """Tell whether a path stays below the folder it is joined to, on this platform."""
    parts = path.split("/")
    if any(part in {"", ".", ".."} or "\0" in part for part in parts):
        return False
    return os.name != "nt" or not any(WINDOWS_FORBIDDEN.search(part) for part in parts)


@dataclass(frozen=True)
class PhotoSet:
    """One photo set that can be fetched by name.

    Parameters
    ----------
    name : str
        What a user types: lower-case letters, digits and dashes.
    title : str
        What its authors call it.
    url : str
        Repository that git can fetch from; it keeps the photos themselves, not pointers to a large file store.
    commit : str
        Pinned commit, 40 hexadecimal digits.
    licence : str
        SPDX identifier of the photos' licence.
    licence_files : tuple of str
        Paths or patterns of the licence texts in the repository; one without ``/`` matches at the top only. At least
        one file must match. They go to the top of the folder.
    takes : tuple of (str, str)
        Path of each folder or file to take, and where in the folder it goes, both with ``/``.
    size_mb : int
        Approximate size of the photos, in 10^6 bytes.
    n_photos : int
        Approximate number of photos.
    citation : str
        How the authors wish to be cited.

    Raises
    ------
    OptionError
        If name, commit or a path has the wrong form, or nothing is taken.
    """

    name: str
    title: str
    url: str
    commit: str
    licence: str
    licence_files: tuple[str, ...]
    takes: tuple[tuple[str, str], ...]
    size_mb: int
    n_photos: int
    citation: str

    def __post_init__(self) -> None:
        if not re.fullmatch(r"[a-z0-9][a-z0-9-]*", self.name):
            raise OptionError(f"name: wanted lower-case letters, digits and dashes, got {self.name!r}")
        if not re.fullmatch(r"[0-9a-f]{40}", self.commit):
            raise OptionError(f"{self.name}: commit: wanted 40 lower-case hexadecimal digits, got {self.commit!r}")
        if not self.takes or not self.licence_files:
            raise OptionError(f"{self.name}: wanted at least one path to take and one licence file, got none")
        for path in (path for take in self.takes for path in take):
            if not _is_plain_path(path):
                raise OptionError(f"{self.name}: takes: wanted a relative path with / between its parts, got {path!r}")


PHOTO_SETS: tuple[PhotoSet, ...] = (
    PhotoSet(
        name="grocery",
        title="Grocery Store Dataset",
        url="https://github.com/marcusklasson/GroceryStoreDataset.git",
        commit="fc80ba90f803d79d0383df52c5a4ac5de99ff6fc",
        licence="MIT",
        licence_files=("LICENSE*",),
        takes=(
            ("dataset/train", "train"),
            ("dataset/val", "val"),
            ("dataset/test", "test"),
            ("dataset/classes.csv", "classes.csv"),
        ),
        size_mb=120,
        n_photos=5421,
        citation="Klasson, Zhang, Kjellström: A Hierarchical Grocery Store Image Dataset with Visual and Semantic "
        "Labels. WACV 2019. https://arxiv.org/abs/1901.00711",
    ),
)
"""Every set that can be fetched by name."""


def find_photo_set(name: str) -> PhotoSet:
    """Find a photo set by its name.

    Parameters
    ----------
    name : str
        Such as ``"grocery"``.

    Returns
    -------
    PhotoSet
        The row of `PHOTO_SETS`.

    Raises
    ------
    OptionError
        If there is none of that name.

    Examples
    --------
    >>> find_photo_set("grocery").licence
    'MIT'
    """
    for photo_set in PHOTO_SETS:
        if photo_set.name == name:
            return photo_set
    known = ", ".join(sorted(photo_set.name for photo_set in PHOTO_SETS))
    raise OptionError(f"photo set: wanted one of: {known}; got {name!r}")


def fetch_photo_set(
    photo_set: PhotoSet, folder: Path | None = None, *, on_line: Callable[[str], None] | None = None
) -> Path:
    """Bring a photo set into a folder, whole or not at all.

    A folder that already holds the set at this commit is returned at once, without network.

    Parameters
    ----------
    photo_set : PhotoSet
        What to fetch.
    folder : Path, optional
        Where it goes: a new or empty folder; ``data/<name>`` by default.
    on_line : callable, optional
        Called with each line to show: what is fetched, its licence, git's own progress.

    Returns
    -------
    Path
        The folder, fit for `pomona train`.

    Raises
    ------
    DataError
        If something else stands in the folder, git is not installed, the commit cannot be fetched, or it lacks a path
        that should be taken.
    StorageError
        If the disk is too small or a file cannot be written.
    """
    folder = Path("data") / photo_set.name if folder is None else folder
    show = on_line if on_line is not None else _show_nothing
    # A link to a folder on another disk is filled where it leads to, not replaced.
    target = folder.resolve()
    if _is_present(photo_set, target):
        show(f"{photo_set.title} is already here: {folder}")
        return folder
    program = _find_git(photo_set)
    for line in _describe(photo_set):
        show(line)
    with new_folder(target) as staging:
        _check_space(photo_set, staging)
        n_files, odd = _fill_folder(photo_set, program, staging, show)
        write_atomic(staging / MARKER_NAME, _mark(photo_set, n_files))
        # Minutes may have passed: what someone put there meanwhile is not replaced.
        _is_present(photo_set, target)
    show(f"{n_files} files in {folder}, licence text in {' and '.join(_licence_names(photo_set, folder))}")
    if odd:
        show(f"{len(odd)} left out because they are no plain files (links, submodules, odd names): {_shorten(odd)}")
    return folder


def _show_nothing(line: str) -> None:
    del line


def _describe(photo_set: PhotoSet) -> tuple[str, ...]:
    return (
        f"{photo_set.title}: {photo_set.n_photos} photos, about {photo_set.size_mb} MB, licence {photo_set.licence}",
        f"from {photo_set.url} at {photo_set.commit}",
        f"please cite: {photo_set.citation}",
    )


def _licence_names(photo_set: PhotoSet, folder: Path) -> list[str]:
    patterns = [PurePosixPath(pattern).name for pattern in photo_set.licence_files]
    names = sorted(path.name for path in folder.iterdir())
    return [name for name in names if any(fnmatchcase(name, pattern) for pattern in patterns)]


def _fill_folder(
    photo_set: PhotoSet, program: str, staging: Path, show: Callable[[str], None]
) -> tuple[int, list[str]]:
    """Fetch, and write what is taken; return the number of files, and the paths left out because they are odd."""
    with _scratch_folder(staging) as scratch:
        git = _Git(program, scratch)
        _fetch_commit(photo_set, git, show)
        files, odd = _choose_files(photo_set, git.list_files(photo_set.commit))
        with storage_errors(f"write the files of {photo_set.name}"):
            _write_files(git, files, staging)
    return len(files), odd


def _shorten(paths: Sequence[str]) -> str:
    shown = ", ".join(path.encode("utf-8", "backslashreplace").decode("utf-8") for path in paths[:3])
    return f"{shown}, ..." if len(paths) > 3 else shown


# --- the folder -----------------------------------------------------------------------------------------------------


def _mark(photo_set: PhotoSet, n_files: int) -> str:
    content = {
        "format": 1,
        "name": photo_set.name,
        "commit": photo_set.commit,
        "url": photo_set.url,
        "licence": photo_set.licence,
        "n_files": n_files,
    }
    return json.dumps(content, indent=2) + "\n"


def _is_present(photo_set: PhotoSet, target: Path) -> bool:
    """Tell whether the folder holds the set; raise if it holds anything else."""
    with storage_errors(f"look into {target}"):
        if not target.exists():
            return False
        if not target.is_dir():
            raise DataError(f"{target}: wanted a new or empty folder, got a file: name another folder")
        if not any(target.iterdir()):
            return False
    found = _read_marker(target)
    wanted = (photo_set.name, photo_set.commit)
    if found == wanted:
        return True
    held = f"the set {found[0]} at {found[1]}" if found else "a folder with files of another origin"
    raise DataError(
        f"{target}: wanted a new or empty folder, or {wanted[0]} at {wanted[1]}, got {held}: move it away, or name "
        "another folder; nothing was changed"
    )


def _read_marker(target: Path) -> tuple[str, str] | None:
    try:
        content = json.loads((target / MARKER_NAME).read_bytes())
        return str(content["name"]), str(content["commit"])
    except (OSError, ValueError, TypeError, LookupError):
        return None


@contextlib.contextmanager
def _scratch_folder(staging: Path) -> Iterator[Path]:
    with storage_errors(f"make a folder in {staging.parent}"):
        # Its cleanup also removes the read-only files that git makes, which a plain rmtree on Windows does not.
        scratch = tempfile.TemporaryDirectory(dir=staging, prefix=".git-")
    try:
        yield Path(scratch.name)
    finally:
        with storage_errors(f"remove {scratch.name}"):
            scratch.cleanup()


def _check_space(photo_set: PhotoSet, staging: Path) -> None:
    # Git's packed copy and the files stand side by side for a moment, and photos do not get smaller in a pack.
    wanted = 2 * photo_set.size_mb * 10**6
    with storage_errors(f"look at the disk of {staging.parent}"):
        free = shutil.disk_usage(staging).free
    if free < wanted:
        raise StorageError(
            f"{staging.parent}: wanted {wanted // 10**6} MB of free disk space for {photo_set.name}, got "
            f"{free // 10**6} MB: free some space, or name another folder"
        )


# --- git ------------------------------------------------------------------------------------------------------------


class _Blob(NamedTuple):
    """A file of a commit: its mode and hash in ASCII, its path with ``/``."""

    mode: bytes
    oid: bytes
    path: str


@dataclass(frozen=True)
class _Git:
    """The git program at work in one bare repository of ours."""

    program: str
    repository: Path

    @contextlib.contextmanager
    def start(
        self, *arguments: str, stdin: int | None = None, stdout: int | None = None, stderr: int | None = None
    ) -> Iterator[subprocess.Popen[bytes]]:
        """Run git, its streams closed unless named, and end it with all that it started when the block is left."""
        settings = {
            "core.hooksPath": os.devnull,
            "gc.auto": "0",
            "http.lowSpeedLimit": str(_STALL_BYTES_PER_S),
            "http.lowSpeedTime": str(_STALL_S),
            "maintenance.auto": "false",
            "protocol.version": "2",
        }
        options = [text for key, value in settings.items() for text in ("-c", f"{key}={value}")]
        kept = {key: value for key, value in os.environ.items() if key not in _FOREIGN_REPOSITORY}
        with subprocess.Popen(  # noqa: S603 - no shell; the arguments are ours and rows of the table
            [self.program, *options, f"--git-dir={self.repository}", *arguments],
            stdin=stdin or subprocess.DEVNULL,
            stdout=stdout or subprocess.DEVNULL,
            stderr=stderr or subprocess.DEVNULL,
            env=kept | _ENVIRONMENT,
            # A group of its own, so that git's helpers can be ended with it.
            start_new_session=True,
        ) as process:
            try:
                yield process
            finally:
                _end_process(process)

    def run(self, *arguments: str) -> bytes:
        """Run git to its end and return what it printed."""
        with self.start(*arguments, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
            printed, said = process.communicate()
        if process.returncode:
            raise DataError(f"git {arguments[0]} failed: {_last_words(said.decode('utf-8', 'replace').splitlines())}")
        return printed

    def list_files(self, commit: str) -> list[_Blob]:
        """List every file, link and submodule of a commit."""
        blobs = []
        for entry in self.run("ls-tree", "-r", "-z", "--full-tree", commit).split(b"\0")[:-1]:
            about, path = entry.split(b"\t", 1)
            mode, _, oid = about.split(b" ")
            blobs.append(_Blob(mode, oid, path.decode("utf-8", "surrogateescape")))
        return blobs

    def read_blobs(self, blobs: Sequence[_Blob]) -> Generator[bytes, None, None]:
        """Yield the bytes of each file as they were committed."""
        with self.start("cat-file", "--batch", stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
            asked, answered = cast("IO[bytes]", process.stdin), cast("IO[bytes]", process.stdout)
            for blob in blobs:
                asked.write(blob.oid + b"\n")
                asked.flush()
                about = answered.readline().split()
                if len(about) != 3 or about[1] != b"blob":
                    raise DataError(f"{blob.path}: wanted the file {blob.oid.decode()} from git, got {about}")
                yield answered.read(int(about[2]))
                answered.read(1)
            asked.close()
            process.wait()


def _end_process(process: subprocess.Popen[bytes]) -> None:
    if process.poll() is not None:
        return
    _signal_group(process, signal.SIGTERM)
    try:
        process.wait(_END_S)
    except subprocess.TimeoutExpired:
        if sys.platform != "win32":
            _signal_group(process, signal.SIGKILL)
        process.wait()


def _signal_group(process: subprocess.Popen[bytes], number: signal.Signals) -> None:
    if sys.platform == "win32":
        process.terminate()
    else:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, number)


def _find_git(photo_set: PhotoSet) -> str:
    program = shutil.which("git")
    if program is None:
        raise DataError(
            f"git is needed to fetch {photo_set.name}, and it is not on the PATH: install it (https://git-scm.com), or "
            f"on another machine: {_by_hand(photo_set)}"
        )
    return program


def _by_hand(photo_set: PhotoSet) -> str:
    paths = ", ".join(path for path, _ in photo_set.takes)
    return (
        f"git clone {photo_set.url} {photo_set.name}-repository; git -C {photo_set.name}-repository checkout "
        f"{photo_set.commit}; then copy {paths} from it into one folder and train on that"
    )


def _fetch_commit(photo_set: PhotoSet, git: _Git, show: Callable[[str], None]) -> None:
    """Fetch the pinned commit alone, without its history, into our bare repository."""
    git.run("init", "--quiet", "--bare", "--template=")
    last: deque[str] = deque(maxlen=_N_LAST_LINES)
    what = ("--depth=1", "--no-tags", "--recurse-submodules=no", "--", photo_set.url, photo_set.commit)
    with git.start("fetch", "--progress", *what, stderr=subprocess.PIPE) as process:
        for line in _iter_lines(cast("IO[bytes]", process.stderr)):
            show(line)
            if "%" not in line:
                last.append(line)
        process.wait()
    if process.returncode:
        raise DataError(
            f"{photo_set.name}: could not fetch commit {photo_set.commit} from {photo_set.url}: git says: "
            f"{_last_words(last)}. Check the network and git's proxy (git config http.proxy), or fetch it by hand: "
            f"{_by_hand(photo_set)}"
        )
    got = git.run("rev-parse", "--verify", "FETCH_HEAD^{commit}").decode("ascii").strip()
    if got != photo_set.commit:
        raise DataError(f"{photo_set.name}: wanted the commit {photo_set.commit} of {photo_set.url}, got {got}")


def _iter_lines(stream: IO[bytes]) -> Iterator[str]:
    """Yield each line as it comes; git ends a line of progress with a carriage return alone."""
    rest = b""
    while chunk := os.read(stream.fileno(), 4096):
        *lines, rest = re.split(rb"[\r\n]", rest + chunk)
        yield from (line.decode("utf-8", "replace").rstrip() for line in lines if line.strip())
    if rest.strip():
        yield rest.decode("utf-8", "replace").rstrip()


def _last_words(lines: Sequence[str]) -> str:
    return "; ".join(list(lines)[-_N_LAST_LINES:]) or "nothing"


# --- files ----------------------------------------------------------------------------------------------------------


def _choose_files(photo_set: PhotoSet, blobs: Sequence[_Blob]) -> tuple[list[tuple[_Blob, str]], list[str]]:
    """Choose what to take: each file with its place in the folder, and the paths that are no plain files."""
    files: list[tuple[_Blob, str]] = []
    odd: list[str] = []
    found: set[str] = set()
    for blob in blobs:
        for source, place in _find_places(photo_set, blob.path):
            if blob.mode in _REGULAR_MODES and _is_plain_path(blob.path):
                found.add(source)
                files.append((blob, place))
            else:
                odd.append(blob.path)
    missing = [source for source, _ in photo_set.takes if source not in found]
    if found.isdisjoint(photo_set.licence_files):
        missing += photo_set.licence_files
    if missing:
        raise DataError(
            f"{photo_set.name}: wanted {', '.join(missing)} in commit {photo_set.commit} of {photo_set.url}, got none: "
            "the row of the set is wrong, please report it"
        )
    return files, odd


def _find_places(photo_set: PhotoSet, path: str) -> list[tuple[str, str]]:
    """Where a path of the repository goes: the part of the row that asks for it, and the place in the folder."""
    for pattern in photo_set.licence_files:
        if path.count("/") == pattern.count("/") and fnmatchcase(path, pattern):
            return [(pattern, PurePosixPath(path).name)]
    return [
        (source, place + path[len(source) :])
        for source, place in photo_set.takes
        if path == source or path.startswith(f"{source}/")
    ]


def _write_files(git: _Git, files: Sequence[tuple[_Blob, str]], staging: Path) -> None:
    contents = git.read_blobs([blob for blob, _ in files])
    with contextlib.closing(contents):
        for (_, place), content in zip(files, contents, strict=True):
            path = staging / place
            path.parent.mkdir(parents=True, exist_ok=True)
            # "x": two names that this file system takes for one must not overwrite each other.
            with path.open("xb") as stream:
                stream.write(content)
