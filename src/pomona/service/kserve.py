"""KServe's protocol, version 2: the same answers for clients that speak it.

In: tensors as JSON or binary: photos as BYTES, or squares as UINT8. Out: probabilities, strangeness, labels, errors.
Why: gateways and clients of other servers speak this one, and need nothing of Pomona's own.

References
----------
KServe, "Open Inference Protocol (V2)" and its "Binary Tensor Data Extension".
"""

from __future__ import annotations

import base64
import binascii
import json
import math
import struct
from typing import TYPE_CHECKING, Any

import numpy as np

from pomona.service.body import load_json, say_too_many
from pomona.service.faults import RequestError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from pomona.bundle import Bundle
    from pomona.service.lanes import Said

PHOTOS, SQUARES = "photos", "pixels"
_MAX_ITEMS = 4_000_000  # of JSON: each takes many times its length in memory; more pixels come in binary
_MAX_DEPTH = 4  # dimensions of a tensor
_DATATYPES = {"probabilities": "FP32", "unknown": "FP32", "label": "BYTES", "error": "BYTES"}


def describe_server(version: str) -> dict[str, Any]:
    """Metadata of the server."""
    return {"name": "pomona", "version": version, "extensions": ["binary_tensor_data"]}


def describe_model(bundle: Bundle, name: str, version: int) -> dict[str, Any]:
    """Metadata of the model: one of its two inputs is given."""
    side, n_classes = bundle.preprocessing.size_px, len(bundle.tree)
    shapes = {"probabilities": [-1, n_classes], "unknown": [-1], "label": [-1], "error": [-1]}
    return {
        "name": name,
        "versions": [str(version)],
        "platform": "pomona",
        "inputs": [
            {"name": PHOTOS, "datatype": "BYTES", "shape": [-1]},
            {"name": SQUARES, "datatype": "UINT8", "shape": [-1, side, side, 3]},
        ],
        "outputs": [{"name": one, "datatype": _DATATYPES[one], "shape": shape} for one, shape in shapes.items()],
    }


def read_inference(
    body: bytes, json_length: str, *, size_px: int, max_photos: int
) -> tuple[dict[str, Any], list[bytes] | list[NDArray[np.uint8]]]:
    """Photos or squares of a request, and the request itself.

    Parameters
    ----------
    body : bytes
        JSON, with binary tensors after it where the header says so.
    json_length : str
        ``Inference-Header-Content-Length``; empty where there is none.
    size_px : int
        Side of a square.
    max_photos : int
        Most of them.

    Raises
    ------
    RequestError
        If it is no such request.
    """
    n_json = int(json_length) if json_length.isdigit() else len(body)
    if n_json > len(body) or (json_length and not json_length.isdigit()):
        raise _say("Inference-Header-Content-Length: wanted the length of the JSON at the beginning of the body")
    content = load_json(body[:n_json], max_items=_MAX_ITEMS)
    inputs = content.get("inputs") if isinstance(content, dict) else None
    if not isinstance(inputs, list) or len(inputs) != 1 or not isinstance(inputs[0], dict):
        raise _say("inputs: wanted one, photos as BYTES or pixels as UINT8")
    entry = inputs[0]
    shape = entry.get("shape")
    if not isinstance(shape, list) or not shape or not all(type(n) is int and 0 <= n < 2**31 for n in shape):
        raise _say("shape: wanted a list of whole numbers")
    if entry.get("datatype") == "BYTES":
        n_photos = math.prod(shape)
    elif entry.get("datatype") == "UINT8":
        n_photos = shape[0]
        if shape[1:] != [size_px, size_px, 3]:
            raise _say(f"shape: wanted [N, {size_px}, {size_px}, 3], got {shape[:8]}")
    else:
        raise _say("datatype: wanted BYTES, the content of photos, or UINT8, squares of pixels")
    if n_photos > max_photos:
        raise say_too_many(max_photos)
    raw = _find_binary(entry, body[n_json:])
    if entry["datatype"] == "BYTES":
        return content, _read_texts(entry, raw, n_photos)
    return content, _read_squares(entry, raw, shape)


def _say(text: str) -> RequestError:
    return RequestError("cannot_be_read", text)


def _find_binary(entry: dict[str, Any], tail: bytes) -> bytes | None:
    parameters = entry.get("parameters")
    size = parameters.get("binary_data_size") if isinstance(parameters, dict) else None
    if size is None:
        return None
    if type(size) is not int or size != len(tail):
        raise _say(f"binary_data_size: wanted the {len(tail)} bytes that come after the JSON")
    return tail


def _read_texts(entry: dict[str, Any], raw: bytes | None, n_photos: int) -> list[bytes]:
    if raw is None:
        data = entry.get("data")
        if not isinstance(data, list) or len(data) != n_photos or not all(isinstance(one, str) for one in data):
            raise _say("data: wanted as many texts of base64 as the shape says")
        try:
            return [base64.b64decode(one, validate=True) for one in data]
        except (binascii.Error, ValueError) as error:
            raise _say("data: wanted photos as base64, one is none") from error
    found, at = [], 0
    while at + 4 <= len(raw):
        (size,) = struct.unpack_from("<I", raw, at)
        found.append(raw[at + 4 : at + 4 + size])
        at += 4 + size
        if len(found) > n_photos:
            break
    if at != len(raw) or len(found) != n_photos:
        raise _say("wanted as many elements as the shape says, each after its length in four bytes")
    return found


def _read_squares(entry: dict[str, Any], raw: bytes | None, shape: list[int]) -> list[NDArray[np.uint8]]:
    try:
        if raw is not None:
            values = np.frombuffer(raw, np.uint8)
        else:
            values = np.frombuffer(_pack_bytes(entry.get("data"), _MAX_DEPTH), np.uint8)
        return list(values.reshape(shape))
    except (ValueError, TypeError, OverflowError) as error:
        raise _say("data: wanted whole numbers 0 to 255, as many as the shape says") from error


def _pack_bytes(data: Any, max_depth: int) -> bytes:
    """Numbers as bytes. NumPy would make an array of anything: of texts, each as long as the longest."""
    if not isinstance(data, list) or not max_depth:
        raise ValueError("no numbers")
    if data and isinstance(data[0], list):
        return b"".join(_pack_bytes(one, max_depth - 1) for one in data)
    return bytes(data)


def write_inference(
    request: dict[str, Any], said: Sequence[Said], *, name: str, version: int, n_classes: int
) -> tuple[bytes, int | None]:
    """Body of the reply, and the length of its JSON where tensors come after it.

    A photo that could not be used has zeros, no label, and its reason under ``error``.
    """
    blank = np.zeros(n_classes, np.float32)
    rows = np.stack([blank if one.probabilities is None else one.probabilities for one in said])
    tensors: dict[str, NDArray[np.float32] | list[str]] = {
        "probabilities": rows,
        "unknown": np.array([one.prediction.strangeness or 0.0 for one in said], np.float32),
        "label": [one.prediction.label or "" for one in said],
        "error": [one.prediction.error or "" for one in said],
    }
    wanted, is_binary = _read_wanted(request)
    tail, outputs = b"", []
    for one in wanted or tensors:
        values = tensors[one]
        shape = [len(said)] if isinstance(values, list) else list(values.shape)
        output: dict[str, Any] = {"name": one, "datatype": _DATATYPES[one], "shape": shape}
        if is_binary.get(one, is_binary[""]):
            raw = _pack_texts(values) if isinstance(values, list) else values.astype("<f4").tobytes()
            output["parameters"] = {"binary_data_size": len(raw)}
            tail += raw
        else:
            output["data"] = values if isinstance(values, list) else [float(value) for value in values.ravel()]
        outputs.append(output)
    content: dict[str, Any] = {"model_name": name, "model_version": str(version), "outputs": outputs}
    if isinstance(request.get("id"), str):
        content["id"] = request["id"]
    head = json.dumps(content, ensure_ascii=False).encode("utf-8", "replace")
    return head + tail, len(head) if tail else None


def _pack_texts(texts: Sequence[str]) -> bytes:
    return b"".join(struct.pack("<I", len(one.encode())) + one.encode() for one in texts)


def _read_wanted(request: dict[str, Any]) -> tuple[list[str], dict[str, bool]]:
    parameters = request.get("parameters")
    is_binary = {"": bool(isinstance(parameters, dict) and parameters.get("binary_data_output"))}
    outputs = request.get("outputs") or []
    if not isinstance(outputs, list) or not all(isinstance(one, dict) for one in outputs):
        raise _say("outputs: wanted a list of outputs")
    names = []
    for one in outputs:
        name, own = one.get("name"), one.get("parameters")
        if not isinstance(name, str) or name not in _DATATYPES:
            raise _say(f"outputs: wanted some of {', '.join(_DATATYPES)}")
        names.append(name)
        if isinstance(own, dict) and "binary_data" in own:
            is_binary[name] = bool(own["binary_data"])
    return names, is_binary
