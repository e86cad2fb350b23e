"""The page as a folder: a recogniser that runs in a browser, from any static server and without one once visited.

In: a bundle. Out: `index.html`, the page's files, the graph, and all that is said of classes and promises as data.
Why: nobody should have to install anything to try a recogniser. What is said is described by the same objects that say it
in Python, so the page knows no second truth; a worker in the browser runs the graph of the bundle itself.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict
from importlib import resources
from typing import TYPE_CHECKING, Any

from pomona.class_names import find_node_name
from pomona.errors import OptionError
from pomona.export.web_runtime import WebRuntime, load_runtime
from pomona.files import make_folder, write_atomic
from pomona.heat_map import HEAT_MAP
from pomona.model_file import MODEL_NAME
from pomona.photo import DEFAULT_MAX_PIXELS, MAX_FILE_BYTES
from pomona.prediction import UNKNOWN_LABEL

if TYPE_CHECKING:
    from pathlib import Path

    from pomona.bundle import Bundle

_OTHERS = frozenset({"service_recogniser.js", "offline.js", "index.html"})
"""Files of the page that are not copied as they are."""


def list_page_files() -> dict[str, bytes]:
    """Files of the page by name, as they lie in the package.

    Examples
    --------
    >>> {"index.html", "page.js", "service_recogniser.js", "local_recogniser.js"} <= set(list_page_files())
    True
    """
    folder = resources.files("pomona") / "web" / "page"
    return {one.name: one.read_bytes() for one in sorted(folder.iterdir(), key=lambda one: one.name) if one.is_file()}


def describe_model(bundle: Bundle, *, name: str, version: int = 1) -> dict[str, Any]:
    """What a page has to know of a recogniser, as plain values for JSON.

    Parameters
    ----------
    bundle : Bundle
        The recogniser.
    name : str
        What it is called.
    version : int
        Number of its version.

    Returns
    -------
    dict
        What ``GET /model`` of the service gives, and beside it ``nodes`` above the classes, ``top`` (numbers of the nodes
        that no other is above), ``thresholds``, and ``preprocessing``.
    """
    speaker = bundle.speaker
    n_classes = len(bundle.tree)
    outputs = bundle.whole_engine.outputs
    nodes = []
    for node in range(n_classes, len(speaker.nodes.paths)):
        common = find_node_name(speaker.nodes.paths[node])
        nodes.append(
            {
                "label": speaker.node_names[node],
                "name_en": common.name_en if common else None,
                "name_zh": common.name_zh if common else None,
                "members": [int(c) for c in speaker.nodes.member[:, node].nonzero()[0]],
            }
        )
    promise = bundle.promise
    return {
        "name": name,
        "version": version,
        "created": bundle.manifest.created,
        "classes": [
            {"label": label, "path": list(path), "name_en": one.name_en, "name_zh": one.name_zh, "plu": one.plu}
            for label, path, one in zip(bundle.tree.names, bundle.tree.paths, bundle.names, strict=True)
        ],
        "promise": None if promise is None else promise.share,
        "can_tell_unknown": UNKNOWN_LABEL in outputs,
        "can_explain": HEAT_MAP in outputs,
        "can_teach": False,
        "max_photo_bytes": MAX_FILE_BYTES,
        "max_photos": None,
        "max_pixels": DEFAULT_MAX_PIXELS,
        "nodes": nodes,
        "top": [int(node) for node in speaker.nodes.top],
        "thresholds": None
        if promise is None
        else {"least_answer": promise.least_answer, "least_shortlist": promise.least_shortlist},
        "preprocessing": asdict(bundle.preprocessing),
    }


def list_web_files(
    bundle: Bundle, *, name: str, runtime: WebRuntime, model: bytes | None = None
) -> dict[str, bytes]:
    """Content of every file of the page by its path in the folder.

    Parameters
    ----------
    bundle : Bundle
        The recogniser.
    name : str
        What it is called on the page.
    runtime : WebRuntime
        What runs it.
    model : bytes, optional
        Graph to put in place of the bundle's own.

    Raises
    ------
    OptionError
        If the recogniser enhances photos, which is not done in a browser.
    """
    if bundle.preprocessing.enhance:
        raise OptionError(
            f"{bundle.folder}: wanted a recogniser that takes photos as they are, this one enhances them "
            f"({', '.join(bundle.preprocessing.enhance)}), which the page cannot do; train without --enhance"
        )
    page = list_page_files()
    graph = (bundle.folder / MODEL_NAME).read_bytes() if model is None else model
    n_bytes = len(graph) + len(runtime.files["ort-wasm.wasm"])
    described = describe_model(bundle, name=name) | {"bytes_to_load": n_bytes}
    files = {
        "index.html": page["index.html"],
        **{f"page/{one}": content for one, content in page.items() if one not in _OTHERS},
        "page/recogniser.js": page["local_recogniser.js"],
        "page/model.json": json.dumps(described, ensure_ascii=False, indent=1).encode("utf-8"),
        "page/model.onnx": graph,
        **{f"page/runtime/{one}": content for one, content in runtime.files.items()},
    }
    del files["page/local_recogniser.js"]
    return {**files, "offline.js": _list_for_offline(files) + page["offline.js"]}


def _list_for_offline(files: dict[str, bytes]) -> bytes:
    """The line that says which files belong together; its version changes with any of their bytes."""
    whole = hashlib.sha256()
    for path, content in sorted(files.items()):
        whole.update(f"{path}\0{hashlib.sha256(content).hexdigest()}\n".encode())
    listed = {"version": whole.hexdigest()[:16], "paths": ["./", *sorted(files)]}
    return f"const FILES = {json.dumps(listed)};\n".encode()


def write_web(bundle: Bundle, folder: Path, *, name: str, runtime: Path | None = None, model: bytes | None = None) -> WebRuntime:
    """Write the page and all that it needs into a folder.

    Parameters
    ----------
    bundle : Bundle
        The recogniser.
    folder : Path
        Where to; it exists, and is best empty.
    name : str
        What the recogniser is called on the page.
    runtime : Path, optional
        Folder or package file of ONNX Runtime Web; through npm where not given.
    model : bytes, optional
        Graph to put in place of the bundle's own.

    Returns
    -------
    WebRuntime
        What runs it there.

    Raises
    ------
    OptionError
        If the recogniser enhances photos, or the runtime is none.
    MissingPackageError
        If there is neither a runtime nor npm.
    StorageError
        If the runtime cannot be fetched, or a file cannot be written.
    """
    found = load_runtime(runtime)
    for path, content in list_web_files(bundle, name=name, runtime=found, model=model).items():
        target = folder / path
        make_folder(target.parent)
        write_atomic(target, content)
    return found
