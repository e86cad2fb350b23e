"""The page of an export run in a real browser, so that its JavaScript is held to the same as every other runtime.

In: the folder of a page, and the content of photos. Out: a `Trace` for each, from the worker that answers on the page.
Why: what a user sees is made by a browser's decoder, by a resize in JavaScript and by WebAssembly. None of the three
can be checked anywhere else.

Chromium is found by ``POMONA_CHROMIUM`` or by its usual names. Nothing but the page's own server is asked for anything.
"""

from __future__ import annotations

import base64
import contextlib
import functools
import http.server
import json
import os
import shutil
import threading
from dataclasses import dataclass
from importlib import metadata, util
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast, get_args

import numpy as np

from pomona.engine import import_onnxruntime
from pomona.errors import ExportError, PhotoError, PhotoFault
from pomona.export.runtimes import OnnxNetwork
from pomona.export.trace import Trace
from pomona.export.web_runtime import PACKAGE
from pomona.files import storage_errors
from pomona.heat_map import HEAT_MAP

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from numpy.typing import NDArray

    from pomona.bundle import Bundle

CHROMIUM_ARGUMENTS = (
    "--no-sandbox",
    "--disable-gpu",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)
"""It runs as whoever exports, in containers too, on a page that was just written here; and it reports home nothing."""

_NAMES = ("chromium", "chromium-browser", "google-chrome-stable", "google-chrome", "chrome", "msedge")
_START_MS = 120_000

_OPEN = """async () => {
  const { openRecogniser } = await import(new URL("page/recogniser.js", document.baseURI).href);
  globalThis.recogniser = await openRecogniser();
}"""

_FOLLOW = """async ([content, showsStages]) => {
  const bytes = Uint8Array.from(atob(content), (sign) => sign.charCodeAt(0));
  const [{ trace, fault, error }] = await globalThis.recogniser.predict([new Blob([bytes])], { trace: true });
  if (!trace) return { fault, error };
  const pack = ({ buffer, byteOffset, byteLength }) => {
    const parts = [];
    for (let at = 0; at < byteLength; at += 32768) {
      parts.push(String.fromCharCode(...new Uint8Array(buffer, byteOffset + at, Math.min(32768, byteLength - at))));
    }
    return btoa(parts.join(""));
  };
  const outputs = Object.fromEntries(Object.entries(trace.outputs).map(([name, values]) => [name, pack(values)]));
  if (!showsStages) return { outputs };
  const { pixels, width, height } = trace.photo;
  return { outputs, photo: { pixels: pack(pixels), width, height }, square: pack(trace.square) };
}"""


def find_chromium() -> Path | None:
    """Where a Chromium is on this machine; None where there is none."""
    named = os.environ.get("POMONA_CHROMIUM")
    found = shutil.which(named) if named else next(filter(None, map(shutil.which, _NAMES)), None)
    return Path(found) if found else None


def say_missing() -> str | None:
    """What is missing to run a page here, as a sentence; None where nothing is."""
    if util.find_spec("playwright") is None:
        return "the package playwright is not installed"
    if find_chromium() is None:
        return "there is no Chromium on this machine; name it in POMONA_CHROMIUM"
    return None


class _QuietHandler(http.server.SimpleHTTPRequestHandler):
    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - the name that it is called by
        """Say nothing: requests of a check are nobody's news."""


@contextlib.contextmanager
def serve_folder(folder: Path) -> Iterator[str]:
    """Serve a folder on this machine alone, as any static server would, and yield its address."""
    handler = functools.partial(_QuietHandler, directory=str(folder))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}/"
        finally:
            server.shutdown()
            thread.join()


@contextlib.contextmanager
def open_page(folder: Path) -> Iterator[Any]:
    """Open the page in a browser of its own, its recogniser loaded.

    Raises
    ------
    ExportError
        If there is no browser, or the page does not start in it.
    """
    if missing := say_missing():
        raise ExportError(f"the page cannot be run here: {missing}")
    from playwright.sync_api import Error, sync_playwright

    with serve_folder(folder) as address, sync_playwright() as playwright:
        path = find_chromium()
        try:
            browser = playwright.chromium.launch(executable_path=path, args=list(CHROMIUM_ARGUMENTS))
        except Error as error:
            reason = error.message.strip().splitlines()[0]
            raise ExportError(
                f"{path} does not start, so that the page cannot be checked: {reason}; name a Chromium that does in "
                "POMONA_CHROMIUM"
            ) from error
        try:
            page = browser.new_page(service_workers="block")
            page.set_default_timeout(_START_MS)
            page.goto(address)
            page.evaluate(_OPEN)
            yield page
        except Error as error:
            raise ExportError(f"the page does not run in Chromium {browser.version}: {error.message}") from error
        finally:
            browser.close()


@dataclass(frozen=True)
class BrowserRunner:
    """A page's own recogniser.

    Parameters
    ----------
    folder : Path
        The page.
    size_px : int
        Side of the square that the network takes.
    side : int or None
        Positions along a side of its heat map; None where it has none.
    """

    folder: Path
    size_px: int
    side: int | None
    is_native: bool = False

    @classmethod
    def of(cls, bundle: Bundle, folder: Path) -> BrowserRunner:
        """What runs the page of a bundle."""
        engine = bundle.whole_engine
        side = (
            engine.run(np.zeros((1, *engine.shape), np.uint8))[HEAT_MAP].shape[1]
            if HEAT_MAP in engine.outputs
            else None
        )
        return cls(folder, bundle.preprocessing.size_px, side)

    @property
    def name(self) -> str:
        """Browser and runtime."""
        version = json.loads((self.folder / "page" / "model.json").read_bytes())["runtime"]
        return f"{PACKAGE} {version} in Chromium, by playwright {metadata.version('playwright')}"

    def follow(self, photos: Sequence[bytes], *, shows_stages: bool) -> Iterator[Trace | PhotoError]:
        """Answer for photos on the page."""
        if not photos:
            return
        with open_page(self.folder) as page:
            for photo in photos:
                found = page.evaluate(_FOLLOW, [base64.b64encode(photo).decode("ascii"), shows_stages])
                yield self._read(found, shows_stages)

    def _read(self, found: dict[str, Any], shows_stages: bool) -> Trace | PhotoError:
        if "outputs" not in found:
            fault = found["fault"] if found["fault"] in get_args(PhotoFault) else "corrupt"
            return PhotoError(cast("PhotoFault", fault), str(found["error"]))
        outputs = {name: _unpack(text, np.float32) for name, text in found["outputs"].items()}
        if "unknown" in outputs:
            outputs["unknown"] = outputs["unknown"].reshape(())
        if "heat_map" in outputs and self.side is not None:
            outputs["heat_map"] = outputs["heat_map"].reshape(self.side, self.side)
        if not shows_stages:
            return Trace(outputs)
        photo = found["photo"]
        pixels = _unpack(photo["pixels"], np.uint8).reshape(photo["height"], photo["width"], 3)
        square = _unpack(found["square"], np.uint8).reshape(self.size_px, self.size_px, 3)
        return Trace(outputs, pixels, square)


class PlainRunner:
    """The graph of a page in ONNX Runtime, where there is no browser; what the page does before it is done in Python.

    Parameters
    ----------
    bundle : Bundle
        What was exported.
    path : Path
        The graph.
    """

    is_native = False

    def __init__(self, bundle: Bundle, path: Path) -> None:
        onnxruntime = import_onnxruntime("to check the graph of the page")
        self.name = f"ONNX Runtime {onnxruntime.__version__}, without the page's JavaScript"
        self._preprocessing = bundle.preprocessing
        with storage_errors(f"read {path}"):
            self._network = OnnxNetwork(path.read_bytes())

    def follow(self, photos: Sequence[bytes], *, shows_stages: bool) -> Iterator[Trace | PhotoError]:
        """Answer for the content of photo files, in order."""
        for photo in photos:
            try:
                square = self._preprocessing.read(photo)
            except PhotoError as error:
                yield error
                continue
            outputs = {name: np.asarray(values[0]) for name, values in self._network.compute(square[None]).items()}
            yield Trace(outputs, None, square if shows_stages else None)


def _unpack(text: str, kind: type) -> NDArray[Any]:
    return np.frombuffer(base64.b64decode(text), kind)
