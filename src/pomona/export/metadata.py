"""What travels inside an exported graph: classes, contract, promises, where it comes from.

In: a bundle. Out: text by key, for the metadata of ONNX or OpenVINO.
Why: one file is enough to answer in words, and to prepare a photo as it was meant.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pomona.bundle import Bundle

METADATA_FORMAT = 1
"""Counts up when a reader of the last one could not read it."""

PREFIX = "pomona."


def describe_bundle(bundle: Bundle, *, takes_any_size: bool) -> dict[str, str]:
    """Metadata of a bundle's graph.

    Parameters
    ----------
    bundle : Bundle
        The recogniser.
    takes_any_size : bool
        Whether the graph resizes; else its pixels are the square already.

    Returns
    -------
    dict of str to str
        `pomona.format` and `pomona.version`; as JSON `pomona.classes` (name, path, name_en, name_zh, plu, extra, in the
        order of the probabilities), `pomona.preprocessing` (the contract, with what is done `inside` the graph and
        `before` it), `pomona.promise` (thresholds, or null) and `pomona.unknown_from`; `pomona.created`,
        `pomona.checksum` (of the bundle), `pomona.precision`, `pomona.backbones`, `pomona.licence`.
    """
    from pomona import __version__
    from pomona.novelty import UNKNOWN_FROM

    manifest = bundle.manifest
    embedding = manifest.embedding
    contract = manifest.preprocessing.model_dump(mode="json")
    decode = "decode, turn upright by EXIF, convert to 8-bit sRGB"
    if manifest.preprocessing.decode_px is not None:
        decode += (
            f"; a JPEG at the smallest of 1/2, 1/4 and 1/8 that leaves both sides {manifest.preprocessing.decode_px} px"
        )
    resize = ["resize by fit, resample and crop_share", *(["enhance"] if contract["enhance"] else [])]
    scale = ["(x - offset) / scale"]
    contract["before"] = [decode, *([] if takes_any_size else resize)]
    contract["inside"] = [*(resize if takes_any_size else []), *scale]
    values = {
        "format": str(METADATA_FORMAT),
        "version": __version__,
        "created": manifest.created,
        "checksum": manifest.checksum,
        "precision": embedding.precision,
        "backbones": ", ".join(f"{one.name}.{one.tag}" for one in embedding.backbones),
        "licence": ", ".join(sorted({one.licence for one in embedding.backbones})),
        "classes": _to_json([entry.model_dump(mode="json") for entry in manifest.classes]),
        "preprocessing": _to_json(contract),
        "promise": _to_json(manifest.trust.promise.model_dump() if manifest.trust and manifest.trust.promise else None),
        "unknown_from": _to_json(UNKNOWN_FROM if manifest.trust and manifest.trust.unknown else None),
    }
    return {f"{PREFIX}{key}": value for key, value in values.items()}


def _to_json(value: object) -> str:
    return json.dumps(value, ensure_ascii=False)
