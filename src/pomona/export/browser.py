"""The page as a folder: a recogniser that runs in a browser, from any static server and without one once visited.

In: a bundle. Out: `index.html`, the page's files, the graph, and all that is said of classes and promises as data.
Why: nobody should have to install anything to try a recogniser. What is said is described by the same objects that say
it in Python, so the page knows no second truth; a worker in the browser runs the graph of the bundle itself.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict
from importlib import resources
from typing import TYPE_CHECKING, Any

from pomona.class_names import find_node_name
from pomona.errors import OptionError
from pomona.export.resizing import starts_down
from pomona.export.web_runtime import WebRuntime, load_runtime
from pomona.files import make_folder, write_atomic
from pomona.heat_map import HEAT_MAP
from pomona.model_file import MODEL_NAME
from pomona.photo import DEFAULT_MAX_PIXELS, DEFAULT_MAX_SCANS, MAX_FILE_BYTES
from pomona.prediction import UNKNOWN_LABEL

if TYPE_CHECKING:
    from pathlib import Path

    from pomona.backbone import Preprocessing
    from pomona.bundle import Bundle
    from pomona.prediction import Speaker

MODEL_PATH = "page/model.onnx"
"""Where the graph is in the folder."""

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
        What ``GET /model`` of the service gives, and beside it the limits of decoding, ``preprocessing``, and what
        `describe_speaker` gives.
    """
    outputs = bundle.whole_engine.outputs
    return {
        "name": name,
        "version": version,
        "created": bundle.manifest.created,
        "can_tell_unknown": UNKNOWN_LABEL in outputs,
        "can_explain": HEAT_MAP in outputs,
        "can_teach": False,
        "max_photo_bytes": MAX_FILE_BYTES,
        "max_photos": None,
        "max_pixels": DEFAULT_MAX_PIXELS,
        "max_scans": DEFAULT_MAX_SCANS,
        "preprocessing": describe_preprocessing(bundle.preprocessing),
        **describe_speaker(bundle.speaker),
    }


def describe_preprocessing(preprocessing: Preprocessing) -> dict[str, Any]:
    """A contract as plain values, and ``may_start_down``: in which order the Pillow of this recogniser resizes."""
    return asdict(preprocessing) | {"may_start_down": starts_down()}


def describe_speaker(speaker: Speaker) -> dict[str, Any]:
    """What the page has to know to say what a speaker says.

    Parameters
    ----------
    speaker : Speaker
        Classes, their names, and what is promised.

    Returns
    -------
    dict
        ``classes``; ``nodes`` above them, each with the numbers of its classes; ``top``, numbers of the nodes that no
        other is above; ``promise`` and ``thresholds``.

    Examples
    --------
    >>> from pomona.class_names import ClassName
    >>> from pomona.class_tree import ClassTree
    >>> from pomona.prediction import Speaker
    >>> tree = ClassTree.from_paths(["Apple/Gala", "Apple/Fuji", "Kiwi"])
    >>> described = describe_speaker(Speaker(tree, (ClassName(),) * 3, None))
    >>> described["nodes"][0]["members"], described["top"], described["thresholds"]
    ([0, 1], [2, 3], None)
    """
    tree, nodes, promise = speaker.tree, speaker.nodes, speaker.promise
    thresholds = None
    if promise is not None:
        thresholds = {"least_answer": promise.least_answer, "least_shortlist": promise.least_shortlist}
    above = []
    for node in range(len(tree), len(nodes.paths)):
        common = find_node_name(nodes.paths[node])
        above.append(
            {
                "label": speaker.node_names[node],
                "name_en": common.name_en if common else None,
                "name_zh": common.name_zh if common else None,
                "members": [int(c) for c in nodes.member[:, node].nonzero()[0]],
            }
        )
    return {
        "classes": speaker.describe_classes(),
        "nodes": above,
        "top": [int(node) for node in nodes.top],
        "promise": None if promise is None else promise.share,
        "thresholds": thresholds,
    }


def list_web_files(bundle: Bundle, *, name: str, runtime: WebRuntime, model: bytes | None = None) -> dict[str, bytes]:
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
    described = describe_model(bundle, name=name) | {"bytes_to_load": n_bytes, "runtime": runtime.version}
    files = {
        "index.html": page["index.html"],
        **{f"page/{one}": content for one, content in page.items() if one not in _OTHERS},
        "page/recogniser.js": page["local_recogniser.js"],
        "page/model.json": json.dumps(described, ensure_ascii=False, indent=1).encode("utf-8"),
        MODEL_PATH: graph,
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


def write_web(
    bundle: Bundle, folder: Path, *, name: str, runtime: Path | None = None, model: bytes | None = None
) -> WebRuntime:
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
