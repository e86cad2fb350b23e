"""A folder that becomes an image: the bundle, Pomona itself, and a Dockerfile that serves them.

In: a bundle. Out: Dockerfile, pinned requirements, a wheel of the Pomona that is installed, the bundle.
Why: what runs in the image is what was exported with, whether or not an index has that Pomona.
"""

from __future__ import annotations

import base64
import hashlib
import io
import re
import shutil
import sys
import zipfile
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING

from pomona.errors import ExportError, MissingPackageError
from pomona.files import MANIFEST_NAME, make_folder, storage_errors

if TYPE_CHECKING:
    from collections.abc import Iterator

    from pomona.bundle import Bundle

BUNDLE_FOLDER = "bundle"
DOCKERFILE_NAME, REQUIREMENTS_NAME, IGNORE_NAME = "Dockerfile", "requirements.txt", ".dockerignore"
PORT = 8000

_ALSO = ("safetensors>=0.5",)
"""Beside the extra: what the nearest photos learnt from are read with."""

_LONG_AGO = (1980, 1, 1, 0, 0, 0)
_USER = 10001

_DOCKERFILE = """\
# Serves a recogniser; written by pomona {version}.
#   docker build --tag {name} .
#   docker run --rm --read-only --tmpfs /tmp --publish 127.0.0.1:{port}:{port} --env POMONA_TOKEN {name}
# POMONA_TOKEN is what a request that writes must carry; without one nothing can be written.
FROM python:{python}-slim
ENV PYTHONDONTWRITEBYTECODE=1 PYTHONUNBUFFERED=1 PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1 \
POMONA_CACHE=/tmp/pomona
WORKDIR /app
COPY requirements.txt {wheel} ./
RUN python -m pip install --requirement requirements.txt
RUN python -m pip install --no-deps {wheel}
RUN useradd --system --uid {user} --no-create-home pomona
# It belongs to root: the service can read it and not change it.
COPY bundle bundle
# Whatever rights the files had where they were written.
RUN chmod -R a+rX bundle
USER {user}
EXPOSE {port}
HEALTHCHECK --interval=30s --timeout=5s --start-period=30s \
CMD ["python", "-c", "import urllib.request as web; web.urlopen('http://127.0.0.1:{port}/health', timeout=4)"]
CMD ["pomona", "serve", "bundle", "--host", "0.0.0.0", "--port", "{port}"]
"""


def write_container(bundle: Bundle, folder: Path) -> None:
    """Write all that an image needs into a folder.

    Parameters
    ----------
    bundle : Bundle
        The recogniser.
    folder : Path
        Exists and is empty.

    Raises
    ------
    MissingPackageError
        If `packaging` is not installed.
    ExportError
        If the Pomona that runs cannot be packed.
    StorageError
        If it cannot be written.
    """
    from pomona import __version__

    wheel = f"pomona-{__version__}-py3-none-any.whl"
    text = _DOCKERFILE.format(
        version=__version__,
        name=_name_image(bundle.folder.resolve().name),
        python=f"{sys.version_info.major}.{sys.version_info.minor}",
        wheel=wheel,
        user=_USER,
        port=PORT,
    )
    contents = {
        DOCKERFILE_NAME: text.encode(),
        REQUIREMENTS_NAME: "".join(f"{line}\n" for line in list_requirements()).encode(),
        IGNORE_NAME: b"parity.*\n",
        wheel: pack_wheel(),
    }
    make_folder(folder / BUNDLE_FOLDER)
    for name, content in contents.items():
        with storage_errors(f"write {folder / name}"):
            (folder / name).write_bytes(content)
    for name in (*bundle.manifest.files, MANIFEST_NAME):
        with storage_errors(f"write {folder / BUNDLE_FOLDER / name}"):
            shutil.copyfile(bundle.folder / name, folder / BUNDLE_FOLDER / name)


def _name_image(name: str) -> str:
    """A name that Docker takes.

    Examples
    --------
    >>> _name_image("Äpfel & Birnen"), _name_image("--")
    ('pfel-birnen', 'recogniser')
    """
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-") or "recogniser"


def list_requirements() -> list[str]:
    """What Pomona's service needs, and what that needs, each in the version that is installed here.

    Returns
    -------
    list of str
        Lines of a requirements file, sorted. A package that is not installed here has the range it is asked for in.

    Raises
    ------
    MissingPackageError
        If `packaging` is not installed.
    ExportError
        If Pomona was not installed, or its code is newer than that.
    """
    try:
        from packaging.requirements import Requirement
    except ImportError as error:
        raise MissingPackageError("packaging", "export", "to list what an image needs") from error

    if "serve" not in _find_package().metadata.get_all("Provides-Extra", []):
        raise ExportError(
            "docker: wanted a Pomona whose metadata knows its service, got an older one; install it again"
        )
    found: dict[str, str] = {}
    asked: set[tuple[str, frozenset[str]]] = set()
    waiting = [Requirement("pomona[serve]"), *map(Requirement, _ALSO)]
    while waiting:
        wanted = waiting.pop()
        name = re.sub(r"[-_.]+", "-", wanted.name).lower()
        if (name, frozenset(wanted.extras)) in asked:
            continue
        asked.add((name, frozenset(wanted.extras)))
        try:
            package = metadata.distribution(name)
        except metadata.PackageNotFoundError:
            found.setdefault(name, str(wanted).partition(";")[0].strip())
            continue
        if name != "pomona":
            found[name] = f"{name}=={package.version}"
        for line in package.requires or ():
            one = Requirement(line)
            environments = [{"extra": extra} for extra in ("", *wanted.extras)]
            if one.marker is None or any(one.marker.evaluate(environment) for environment in environments):
                waiting.append(one)
    return sorted(line for name, line in found.items() if name != "pomona")


def pack_wheel() -> bytes:
    """The Pomona that runs, as a wheel; the same bytes each time.

    Raises
    ------
    ExportError
        If it does not lie in a folder, or was not installed.
    """
    import pomona

    place = Path(pomona.__file__).parent
    if not place.is_dir():
        raise ExportError(f"docker: wanted Pomona in a folder, got it in {place}; install it from its wheel")
    package = _find_package()
    info = f"pomona-{pomona.__version__}.dist-info"
    wheel_text = "Wheel-Version: 1.0\nGenerator: pomona\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
    contents = dict(_read_package(place))
    contents[f"{info}/METADATA"] = (package.read_text("METADATA") or "").encode()
    contents[f"{info}/WHEEL"] = wheel_text.encode()
    contents[f"{info}/entry_points.txt"] = (package.read_text("entry_points.txt") or "").encode()
    record = "".join(f"{name},sha256={_sign(content)},{len(content)}\n" for name, content in contents.items())
    contents[f"{info}/RECORD"] = f"{record}{info}/RECORD,,\n".encode()
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in contents.items():
            entry = zipfile.ZipInfo(name, _LONG_AGO)
            entry.compress_type = zipfile.ZIP_DEFLATED
            entry.external_attr = 0o644 << 16
            archive.writestr(entry, content)
    return stream.getvalue()


def _find_package() -> metadata.Distribution:
    """Metadata of the Pomona that is installed."""
    try:
        return metadata.distribution("pomona")
    except metadata.PackageNotFoundError as error:
        raise ExportError("docker: wanted an installed Pomona, got one without metadata; pip install it") from error


def _read_package(place: Path) -> Iterator[tuple[str, bytes]]:
    for path in sorted(place.rglob("*")):
        if path.is_file() and "__pycache__" not in path.parts:
            with storage_errors(f"read {path}"):
                yield f"pomona/{path.relative_to(place).as_posix()}", path.read_bytes()


def _sign(content: bytes) -> str:
    return base64.urlsafe_b64encode(hashlib.sha256(content).digest()).rstrip(b"=").decode()
