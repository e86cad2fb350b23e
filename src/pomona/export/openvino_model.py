"""The engine's own files of a recogniser, as it is or with its network in 8 bits.

In: a bundle. Out: `model.xml` and `model.bin`, pixels of any size to an answer.
Why: OpenVINO loads its own files faster than ONNX, in every language it has; 8 bits are more than twice as fast on CPUs
that multiply bytes. The rounding is Pomona's own, which needs no photos.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from pomona.backbone import Tuned, find_backbone, is_embedded
from pomona.bundle import HEAD_NAME, TUNED_NAME
from pomona.embedding import Embedding, load_network
from pomona.engine import import_openvino, open_core
from pomona.errors import ExportError, MissingPackageError, OptionError
from pomona.export.metadata import PREFIX, describe_bundle
from pomona.export.onnx_model import build_onnx
from pomona.export.resizing import can_resize
from pomona.files import storage_errors
from pomona.head import Head
from pomona.model_file import build_model

if TYPE_CHECKING:
    from pathlib import Path

    from pomona.backbone import Backbone
    from pomona.bundle import Bundle

XML_NAME, WEIGHTS_NAME = "model.xml", "model.bin"
_SECTION = "pomona"


def write_openvino(bundle: Bundle, folder: Path) -> None:
    """Write a bundle's graph, in its own precision, as OpenVINO's files.

    Raises
    ------
    ExportError
        If OpenVINO cannot write it.
    StorageError
        If it cannot be written.
    """
    _save(bundle, build_onnx(bundle), folder)


def write_int8(bundle: Bundle, folder: Path) -> None:
    """Write a bundle's graph with its network in 8 bits as OpenVINO's files.

    Raises
    ------
    ExportError
        If its network has no form in 8 bits, or OpenVINO cannot write it.
    StorageError
        If it cannot be written.
    """
    _save(bundle, build_int8(bundle), folder)


def build_int8(bundle: Bundle) -> bytes:
    """The graph of a bundle as ONNX, with its network in 8 bits and its own head.

    Raises
    ------
    ExportError
        If its network has no form in 8 bits.
    MissingPackageError
        If onnx or the weights' package is not installed.
    """
    if bundle.manifest.embedding.precision == "int8":
        return build_onnx(bundle)
    try:
        from safetensors.numpy import load
    except ImportError as error:
        raise MissingPackageError("safetensors", "export", "to read the head of a bundle") from error

    network = load_network(_narrow_embedding(bundle))
    with storage_errors(f"read {bundle.folder / HEAD_NAME}"):
        tensors = load((bundle.folder / HEAD_NAME).read_bytes())
    head = Head(tensors["weights"], tensors["bias"], 0.0)
    return build_onnx(bundle, model=build_model(network, head, bundle.trust))


def _narrow_embedding(bundle: Bundle) -> Embedding:
    """The embedding of a bundle in 8 bits."""
    entry = bundle.manifest.embedding
    if other := [one.name for one in entry.backbones if not is_embedded(one.name)]:
        raise ExportError(
            f"int8: wanted a network that Pomona knows how to round, lite0, lite1 or lite2, got {other[0]}; export "
            "onnx or openvino"
        )
    preprocessing = bundle.preprocessing
    backbones: list[Backbone] = []
    for one in entry.backbones:
        if one.tuned is not None and one.tuned.layer == "pixels":
            raise ExportError(
                "int8: wanted layers that were not trained, got a network trained from its pixels on, which stays in "
                "float32; export onnx or openvino"
            )
        found = find_backbone(one.name, size_px=preprocessing.size_px)
        if found.weights_sha256 != one.weights_sha256:
            raise ExportError(
                f"int8: wanted the weights of {one.name} that the run has, {one.weights_sha256}, got "
                f"{found.weights_sha256} from this Pomona; train the run again"
            )
        tuned = None
        if one.tuned is not None:
            tuned = Tuned(one.tuned.layer, bundle.folder / TUNED_NAME, one.tuned.sha256)
        backbones.append(replace(found, preprocessing=preprocessing, pooled=one.pooled, precision="int8", tuned=tuned))
    try:
        return Embedding(tuple(backbones), entry.pooling, entry.mirrored)
    except OptionError as error:
        raise ExportError(f"int8: {error}") from error


def _save(bundle: Bundle, content: bytes, folder: Path) -> None:
    """Convert a graph, with its metadata, and write it as it is, not in half precision."""
    openvino = import_openvino()
    try:
        model = open_core().read_model(content)
        for key, value in describe_bundle(bundle, takes_any_size=can_resize(bundle.preprocessing)).items():
            model.set_rt_info(value, [_SECTION, key.removeprefix(PREFIX)])
    except RuntimeError as error:
        raise ExportError(f"OpenVINO does not take the graph: {str(error).strip().splitlines()[-1]}") from error
    path = folder / XML_NAME
    with storage_errors(f"write {path}"):
        try:
            openvino.save_model(model, path, compress_to_fp16=False)
        except RuntimeError as error:  # a full disk, most often; OpenVINO has no number for it
            raise OSError(0, f"OpenVINO cannot write it: {str(error).strip().splitlines()[-1]}") from error
