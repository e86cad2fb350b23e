"""The files that run a network in a browser: ONNX Runtime Web, from npm or from where the user has it.

In: nothing, or a folder or a package file. Out: the bytes of the few files that a page needs.
Why: of the package's 145 MB one build is needed, 14 MB: WebAssembly with SIMD, without WebGPU. The version is pinned by
the hash of the package, so that a page is made of the same bytes everywhere; it is kept in the cache.
"""

from __future__ import annotations

import base64
import hashlib
import json
import shutil
import subprocess
import tarfile
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from pomona.errors import MissingPackageError, OptionError, StorageError
from pomona.files import cache_folder, make_folder, storage_errors, write_atomic

if TYPE_CHECKING:
    from collections.abc import Mapping

PACKAGE, VERSION = "onnxruntime-web", "1.30.0"
INTEGRITY = "q0y+JrrtukXSzsBWEMccVfqX25LRmosXHF+CaRJmg8pZClzcV7svNc4rKY3jL02Vb7QmRMDs1SigqR4CXAfKYQ=="
"""sha512 of the package file, as npm writes it."""

_FILES = {
    "ort.js": "dist/ort.wasm.min.mjs",
    "ort-wasm.js": "dist/ort-wasm-simd-threaded.mjs",
    "ort-wasm.wasm": "dist/ort-wasm-simd-threaded.wasm",
}
"""Names in a page and in the package. Servers that do not know ``.mjs`` send it as a download; a page has ``.js``."""

_TIMEOUT_S = 600
_HOW = f"name a folder or a .tgz of {PACKAGE} {VERSION} with --runtime, or install npm, which fetches it"

_LICENCE = """ONNX Runtime Web
Copyright (c) Microsoft Corporation. All rights reserved.

MIT License

Permission is hereby granted, free of charge, to any person obtaining a copy of this software and associated
documentation files (the "Software"), to deal in the Software without restriction, including without limitation the
rights to use, copy, modify, merge, publish, distribute, sublicense, and/or sell copies of the Software, and to permit
persons to whom the Software is furnished to do so, subject to the following conditions:

The above copyright notice and this permission notice shall be included in all copies or substantial portions of the
Software.

THE SOFTWARE IS PROVIDED "AS IS", WITHOUT WARRANTY OF ANY KIND, EXPRESS OR IMPLIED, INCLUDING BUT NOT LIMITED TO THE
WARRANTIES OF MERCHANTABILITY, FITNESS FOR A PARTICULAR PURPOSE AND NONINFRINGEMENT. IN NO EVENT SHALL THE AUTHORS OR
COPYRIGHT HOLDERS BE LIABLE FOR ANY CLAIM, DAMAGES OR OTHER LIABILITY, WHETHER IN AN ACTION OF CONTRACT, TORT OR
OTHERWISE, ARISING FROM, OUT OF OR IN CONNECTION WITH THE SOFTWARE OR THE USE OR OTHER DEALINGS IN THE SOFTWARE.
"""


@dataclass(frozen=True)
class WebRuntime:
    """What runs a network in a browser.

    Parameters
    ----------
    version : str
        Of ONNX Runtime Web.
    files : mapping of str to bytes
        Content by the name that it has in a page.
    """

    version: str
    files: Mapping[str, bytes]


def load_runtime(source: Path | None = None) -> WebRuntime:
    """Find the files, in the cache where they are, else through npm.

    Parameters
    ----------
    source : Path, optional
        Folder that the package was unpacked or installed in, or the package file; nothing is fetched then.

    Raises
    ------
    OptionError
        If the source is no such package.
    MissingPackageError
        If there is no source and no npm.
    StorageError
        If npm could not fetch it, or what came is not the pinned package.
    """
    if source is not None:
        return _read_archive(source.read_bytes(), str(source)) if source.is_file() else _read_folder(source)
    kept = cache_folder() / f"{PACKAGE}-{VERSION}.tgz"
    if kept.is_file():
        data = kept.read_bytes()
        if _hash(data) == INTEGRITY:
            return _read_archive(data, str(kept))
    data = _fetch_package()
    write_atomic(make_folder(kept.parent) / kept.name, data)
    return _read_archive(data, str(kept))


def _hash(data: bytes) -> str:
    return base64.b64encode(hashlib.sha512(data).digest()).decode("ascii")


def _fetch_package() -> bytes:
    """The package file, by npm itself: it knows the user's registry, proxy and certificates."""
    npm = shutil.which("npm")
    if npm is None:
        raise MissingNpmError
    with tempfile.TemporaryDirectory() as folder:
        command = [npm, "pack", f"{PACKAGE}@{VERSION}", "--ignore-scripts", "--silent", "--pack-destination", folder]
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=_TIMEOUT_S, check=False, cwd=folder)  # noqa: S603 - no shell; the arguments are ours
        except subprocess.TimeoutExpired as error:
            raise StorageError(f"npm could not fetch {PACKAGE} {VERSION} in {_TIMEOUT_S} s: {_HOW}") from error
        found = sorted(Path(folder).glob("*.tgz"))
        if done.returncode or not found:
            said = (done.stderr or done.stdout).strip().splitlines()
            raise StorageError(
                f"npm could not fetch {PACKAGE} {VERSION}: {said[-1] if said else 'it said nothing'}; {_HOW}"
            )
        data = found[0].read_bytes()
    if (got := _hash(data)) != INTEGRITY:
        raise StorageError(f"{PACKAGE} {VERSION}: wanted the package with sha512 {INTEGRITY}, npm gave {got}; {_HOW}")
    return data


class MissingNpmError(MissingPackageError):
    """There is no npm to fetch the runtime with."""

    def __init__(self) -> None:
        super().__init__("npm", "export", f"to fetch {PACKAGE} {VERSION}, which runs the recogniser in a browser")
        self.args = (f"npm is needed to fetch {PACKAGE} {VERSION}, which runs the recogniser in a browser: {_HOW}",)


def _read_archive(data: bytes, name: str) -> WebRuntime:
    wanted = {f"package/{path}": path for path in ("package.json", *_FILES.values())}
    found: dict[str, bytes] = {}
    try:
        with tempfile.SpooledTemporaryFile() as stream:
            stream.write(data)
            stream.seek(0)
            with tarfile.open(fileobj=stream, mode="r:gz") as archive:
                for member in archive:
                    if member.name in wanted and (content := archive.extractfile(member)) is not None:
                        found[wanted[member.name]] = content.read()
    except (tarfile.TarError, EOFError, OSError) as error:
        raise OptionError(f"runtime: wanted a package file of {PACKAGE}, {name} cannot be read: {error}") from error
    return _make_runtime(found, name)


def _read_folder(folder: Path) -> WebRuntime:
    if not folder.is_dir():
        raise OptionError(f"runtime: wanted a folder or a .tgz of {PACKAGE}, there is nothing at {folder}")
    installed = folder / "node_modules" / PACKAGE
    root = next((one for one in (folder, folder / "package", installed) if (one / "dist").is_dir()), folder)
    found = {}
    with storage_errors(f"read {folder}"):
        for path in ("package.json", *_FILES.values()):
            if (root / path).is_file():
                found[path] = (root / path).read_bytes()
    return _make_runtime(found, str(folder))


def _make_runtime(found: Mapping[str, bytes], name: str) -> WebRuntime:
    if missing := [path for path in _FILES.values() if path not in found]:
        raise OptionError(f"runtime: wanted {missing[0]} in {name}, it is not there; wanted {PACKAGE} {VERSION}")
    try:
        version = str(json.loads(found["package.json"])["version"])
    except (KeyError, TypeError, ValueError):
        version = "unknown"
    if version.split(".")[:2] != VERSION.split(".")[:2]:
        raise OptionError(f"runtime: wanted {PACKAGE} {VERSION}, {name} is version {version}")
    files = {target: found[path] for target, path in _FILES.items()}
    return WebRuntime(version, {**files, "LICENSE.txt": _LICENCE.encode("ascii")})
