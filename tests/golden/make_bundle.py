"""Make the golden bundle of format 1, its four photos, and what it must answer for them.

In: nothing. Out: bundle-v1/, photos/ and bundle-v1-expected.json beside this file.
Why: every later version must load this folder and answer the same. So nothing here uses Pomona: the network is written
node by node, the manifest and its checksum as docs/bundle-format.md has them, and the answers come from numpy.

Run once for a format, when it is new: a golden bundle is never made again.
"""

from __future__ import annotations

import hashlib
import io
import json
from pathlib import Path

import numpy as np
from onnx import TensorProto, helper, numpy_helper
from PIL import Image, ImageOps
from safetensors.numpy import save

HERE = Path(__file__).parent
SIZE_PX = 32
CLASSES = [
    ("红苹果", ("Apple", "红苹果")),
    ("Granny Smith", ("Apple", "Granny Smith")),
    ("Banana", ("Tropical", "Banana")),
]
# Mean red, green, blue (0-1) of the upper half, then of the lower half.
WEIGHTS = np.array(
    [[3, -2, -1, 2.5, -2, -0.5], [-2, 2.5, -1, -2, 3, -0.5], [1, 1.5, -3, 1.5, 1, -2.5]], dtype=np.float32
)
BIAS = np.array([0.25, 0, -0.5], dtype=np.float32)


def make_network() -> bytes:
    """Pixels (N, 32, 32, 3) uint8 to probabilities (N, 3) and features (N, 6)."""
    constants = {"scale": np.float32(1 / 255), "flat": np.array([0, 6]), "weights": WEIGHTS, "bias": BIAS}
    nodes = [
        helper.make_node("Cast", ["pixels"], ["float"], to=TensorProto.FLOAT),
        helper.make_node("Transpose", ["float"], ["planes"], perm=[0, 3, 1, 2]),
        helper.make_node("Mul", ["planes", "scale"], ["scaled"]),
        helper.make_node(
            "AveragePool", ["scaled"], ["halves"], kernel_shape=[SIZE_PX // 2, SIZE_PX], strides=[SIZE_PX // 2, SIZE_PX]
        ),
        helper.make_node("Transpose", ["halves"], ["upper_first"], perm=[0, 2, 3, 1]),
        helper.make_node("Reshape", ["upper_first", "flat"], ["features"]),
        helper.make_node("Gemm", ["features", "weights", "bias"], ["logits"], transB=1),
        helper.make_node("Softmax", ["logits"], ["probabilities"], axis=1),
    ]
    graph = helper.make_graph(
        nodes,
        "pomona",
        [helper.make_tensor_value_info("pixels", TensorProto.UINT8, ("N", SIZE_PX, SIZE_PX, 3))],
        [
            helper.make_tensor_value_info("probabilities", TensorProto.FLOAT, ("N", len(CLASSES))),
            helper.make_tensor_value_info("features", TensorProto.FLOAT, ("N", WEIGHTS.shape[1])),
        ],
        initializer=[numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()],
    )
    return helper.make_model(
        graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9, producer_name="pomona"
    ).SerializeToString()


def make_manifest(files: dict[str, bytes]) -> str:
    """Content of pomona.json, with the checksum of all its other fields."""
    content = {
        "format": 1,
        "pomona_version": "0.1.0",
        "created": "2026-01-01T00:00:00+00:00",
        "classes": [{"name": name, "path": path} for name, path in CLASSES],
        "preprocessing": {"size_px": SIZE_PX, "fit": "squash", "resample": "bilinear", "offset": 0.0, "scale": 255.0},
        "backbone": {
            "name": "half-means",
            "tag": "golden",
            "weights_sha256": "0" * 64,
            "licence": "Apache-2.0",
            "pooled": ["halves"],
        },
        "provenance": {"n_train": 3, "accuracy": 1.0, "option_data": "水果", "option_workers": None, "l2": 0.01},
        "files": {name: hashlib.sha256(data).hexdigest() for name, data in files.items()},
    }
    sealed = json.dumps(content, sort_keys=True, ensure_ascii=False).encode("utf-8")
    return json.dumps({**content, "checksum": hashlib.sha256(sealed).hexdigest()}, indent=2, ensure_ascii=False) + "\n"


def make_photos() -> dict[str, bytes]:
    """Four small photos: plain and transparent PNG, JPEG, and a JPEG that stands on its head."""
    ramp = np.linspace(0, 1, 40)[:, None, None] * np.ones((1, 48, 1))
    red_over_green = (200, 30, 40) * (1 - ramp) + (60, 170, 50) * ramp
    upside_down = Image.Exif()
    upside_down[274] = 3
    pictures = {
        "red.png": (Image.new("RGB", (13, 9), (196, 30, 42)), {}),
        "green.png": (Image.new("RGBA", (20, 24), (96, 168, 48, 255)), {}),
        "yellow.jpg": (Image.new("RGB", (48, 32), (240, 210, 40)), {"quality": 92}),
        "turned.jpg": (Image.fromarray(red_over_green.round().astype(np.uint8)), {"quality": 90, "exif": upside_down}),
    }
    photos = {}
    for name, (picture, options) in pictures.items():
        stream = io.BytesIO()
        picture.save(stream, {"jpg": "JPEG", "png": "PNG"}[name[-3:]], **options)
        photos[name] = stream.getvalue()
    return photos


def answer(photo: bytes) -> dict[str, object]:
    """What the bundle must say, computed with Pillow and numpy alone."""
    picture = ImageOps.exif_transpose(Image.open(io.BytesIO(photo))).convert("RGB")
    pixels = np.asarray(picture.resize((SIZE_PX, SIZE_PX), Image.Resampling.BILINEAR), np.float64) / 255
    features = np.concatenate([half.mean(axis=(0, 1)) for half in np.split(pixels, 2)])
    logits = WEIGHTS.astype(np.float64) @ features + BIAS
    shares = np.exp(logits - logits.max())
    shares /= shares.sum()
    return {"label": CLASSES[int(shares.argmax())][0], "probabilities": [round(float(share), 9) for share in shares]}


def main() -> None:
    """Write everything."""
    files = {"model.onnx": make_network(), "head.safetensors": save({"weights": WEIGHTS, "bias": BIAS})}
    photos = make_photos()
    for folder, contents in (("bundle-v1", files), ("photos", photos)):
        (HERE / folder).mkdir(exist_ok=True)
        for name, data in contents.items():
            (HERE / folder / name).write_bytes(data)
    (HERE / "bundle-v1" / "pomona.json").write_text(make_manifest(files), encoding="utf-8", newline="\n")
    expected = json.dumps({name: answer(data) for name, data in photos.items()}, indent=2, ensure_ascii=False)
    (HERE / "bundle-v1-expected.json").write_text(expected + "\n", encoding="utf-8", newline="\n")


if __name__ == "__main__":
    main()
