"""Make a small golden bundle of each format, their photos, and what they must answer for them.

In: nothing. Out: bundle-v1/ to bundle-v4/, photos/ and bundle-v?-expected.json beside this file.
Why: every later version must load these folders and answer the same. So nothing here uses Pomona: the networks are
written node by node, the manifests and their checksums as docs/bundle-format.md has them, and the answers come from
numpy. The networks are toys with every kind of node that a real one of their format has.

A golden bundle is never made again: what is there already is left as it is.
"""

from __future__ import annotations

import hashlib
import io
import json
import math
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


def write_manifest(content: dict[str, object], files: dict[str, bytes]) -> bytes:
    """Content of pomona.json, with the hashes of the files and the checksum of all its other fields."""
    content = content | {"files": {name: hashlib.sha256(data).hexdigest() for name, data in files.items()}}
    sealed = json.dumps(content, sort_keys=True, ensure_ascii=False).encode("utf-8")
    whole = {**content, "checksum": hashlib.sha256(sealed).hexdigest()}
    return (json.dumps(whole, indent=2, ensure_ascii=False) + "\n").encode("utf-8")


BACKBONE = {
    "name": "half-means",
    "tag": "golden",
    "weights_sha256": "0" * 64,
    "licence": "Apache-2.0",
    "pooled": ["halves"],
}
MANIFEST_V1 = {
    "format": 1,
    "pomona_version": "0.1.0",
    "created": "2026-01-01T00:00:00+00:00",
    "classes": [{"name": name, "path": path} for name, path in CLASSES],
    "preprocessing": {"size_px": SIZE_PX, "fit": "squash", "resample": "bilinear", "offset": 0.0, "scale": 255.0},
    "backbone": BACKBONE,
    "provenance": {"n_train": 3, "accuracy": 1.0, "option_data": "水果", "option_workers": None, "l2": 0.01},
}
DECODE_PX = 64
MANIFEST_V2 = {
    "format": 2,
    "pomona_version": "0.1.0",
    "created": "2026-11-23T00:00:00+00:00",
    "classes": MANIFEST_V1["classes"],
    "preprocessing": {
        "size_px": SIZE_PX,
        "fit": "squash",
        "resample": "bilinear",
        "offset": 127.0,
        "scale": 128.0,
        "decode_px": DECODE_PX,
    },
    "embedding": {
        "pooling": "second-order",
        "mirrored": True,
        "precision": "int8",
        "backbones": [BACKBONE | {"name": "patches", "pooled": ["patches"]}],
    },
    "provenance": {"n_train": 3, "accuracy": 1.0, "option_data": "水果", "option_effort": "fast", "l2": 0.01},
}

# Levels 0-255 of each channel: less the first, by the second.
OFFSET_V3, SCALE_V3 = (123.675, 116.28, 103.53), (58.395, 57.12, 57.375)
CROP_SHARE, GAMMA = 0.875, 0.8
MANIFEST_V3 = {
    "format": 3,
    "pomona_version": "0.2.0",
    "created": "2026-11-24T00:00:00+00:00",
    "classes": MANIFEST_V1["classes"],
    "preprocessing": {
        "size_px": SIZE_PX,
        "fit": "crop",
        "resample": "bicubic",
        "offset": OFFSET_V3,
        "scale": SCALE_V3,
        "decode_px": DECODE_PX,
        "crop_share": CROP_SHARE,
        "enhance": ["white-balance", f"gamma={GAMMA}"],
    },
    "embedding": {"pooling": "average", "mirrored": False, "precision": "f32"},
    "provenance": {"n_train": 3, "accuracy": 1.0, "option_data": "水果", "option_tune": "tail", "option_resume": False},
}


# --- format 2: patches of 4 x 4 pixels in int8, their second moments about nothing, and their averages ----------------

_RANDOM = np.random.default_rng(2)
PATCH_WEIGHTS = _RANDOM.integers(-63, 64, (8, 3, 4, 4), dtype=np.int8)
PATCH_STEPS = np.linspace(0.0015, 0.0035, 8, dtype=np.float32)
PATCH_BIAS = np.linspace(0.5, 2.5, 8, dtype=np.float32)
AXES = _RANDOM.integers(-63, 64, (6, 8, 1, 1), dtype=np.int8)
AXES_STEP = np.float32(1 / 64)
PIXEL_STEP, PIXEL_ZERO = np.float32(1.0001 / 128), np.uint8(127)
PATCH_STEP, PATCH_ZERO = np.float32(6 / 255), np.uint8(0)
N_PLACES = SIZE_PX // 4
_PLACE = (np.arange(N_PLACES) + 0.5) / N_PLACES - 0.5
_SIDE = np.exp(-np.square(_PLACE / 0.25) / 2)
WINDOW = np.outer(_SIDE, _SIDE) / np.outer(_SIDE, _SIDE).sum()
ROWS, COLUMNS = np.triu_indices(len(AXES))
TWICE = np.where(ROWS == COLUMNS, 1, math.sqrt(2)).astype(np.float32)
DIM = len(ROWS) + len(PATCH_BIAS)


def make_network_v2(weights: np.ndarray, bias: np.ndarray) -> bytes:
    """Pixels (N, 32, 32, 3) uint8 to probabilities (N, 3) and features (N, 29)."""
    constants: dict[str, object] = {
        "backward": np.arange(SIZE_PX - 1, -1, -1),
        "offset": np.float32(127),
        "scale": np.float32(1 / 128),
        "pixel_step": PIXEL_STEP,
        "pixel_zero": PIXEL_ZERO,
        "patch_step": PATCH_STEP,
        "patch_zero": PATCH_ZERO,
        "weights1": PATCH_WEIGHTS,
        "steps1": PATCH_STEPS,
        "zeros1": np.zeros(8, np.int8),
        "bias1": PATCH_BIAS,
        "weights2": AXES,
        "steps2": np.full(6, AXES_STEP),
        "zeros2": np.zeros(6, np.int8),
        "least": np.float32(0),
        "most": np.float32(6),
        "flat": np.array([0, len(AXES), -1]),
        "row": np.array([0, -1]),
        "window": np.sqrt(WINDOW).ravel().astype(np.float32),
        "triangle": ROWS * len(AXES) + COLUMNS,
        "twice": TWICE,
        "places": np.array([2, 3]),
        "one": np.array([1]),
        "zero": np.array([0]),
        "tiny": np.float32(1e-12),
        "sides": np.array([2, -1, DIM]),
        "weights": weights,
        "bias": bias,
    }
    steps = [
        ("Gather", ["pixels", "backward"], "mirror", {"axis": 2}),
        ("Concat", ["pixels", "mirror"], "both", {"axis": 0}),
        ("Cast", ["both"], "float", {"to": TensorProto.FLOAT}),
        ("Transpose", ["float"], "planes", {"perm": [0, 3, 1, 2]}),
        ("Sub", ["planes", "offset"], "centred", {}),
        ("Mul", ["centred", "scale"], "scaled", {}),
        ("QuantizeLinear", ["scaled", "pixel_step", "pixel_zero"], "q1", {}),
        ("DequantizeLinear", ["q1", "pixel_step", "pixel_zero"], "x1", {}),
        ("DequantizeLinear", ["weights1", "steps1", "zeros1"], "w1", {"axis": 0}),
        ("Conv", ["x1", "w1", "bias1"], "c1", {"kernel_shape": [4, 4], "strides": [4, 4]}),
        ("Clip", ["c1", "least", "most"], "patches", {}),
        ("QuantizeLinear", ["patches", "patch_step", "patch_zero"], "q2", {}),
        ("DequantizeLinear", ["q2", "patch_step", "patch_zero"], "x2", {}),
        ("DequantizeLinear", ["weights2", "steps2", "zeros2"], "w2", {"axis": 0}),
        ("Conv", ["x2", "w2"], "c2", {"kernel_shape": [1, 1]}),
        ("Reshape", ["c2", "flat"], "rows", {}),
        ("Mul", ["rows", "window"], "windowed", {}),
        ("Transpose", ["windowed"], "columns", {"perm": [0, 2, 1]}),
        ("MatMul", ["windowed", "columns"], "moments", {}),
        ("Reshape", ["moments", "row"], "square", {}),
        ("Gather", ["square", "triangle"], "once", {"axis": 1}),
        ("Mul", ["once", "twice"], "part1", {}),
        ("ReduceMean", ["patches", "places"], "part2", {"keepdims": 0}),
    ]
    for part in ("part1", "part2"):
        steps += [
            ("ReduceL2", [part, "one"], f"{part}.norm", {"keepdims": 1}),
            ("Max", [f"{part}.norm", "tiny"], f"{part}.length", {}),
            ("Div", [part, f"{part}.length"], f"{part}.unit", {}),
        ]
    steps += [
        ("Concat", ["part1.unit", "part2.unit"], "sides.flat", {"axis": 1}),
        ("Reshape", ["sides.flat", "sides"], "sides.apart", {}),
        ("ReduceMean", ["sides.apart", "zero"], "features", {"keepdims": 0}),
        ("Gemm", ["features", "weights", "bias"], "logits", {"transB": 1}),
        ("Softmax", ["logits"], "probabilities", {"axis": 1}),
    ]
    graph = helper.make_graph(
        [helper.make_node(kind, inputs, [output], **options) for kind, inputs, output, options in steps],
        "pomona",
        [helper.make_tensor_value_info("pixels", TensorProto.UINT8, ("N", SIZE_PX, SIZE_PX, 3))],
        [
            helper.make_tensor_value_info("probabilities", TensorProto.FLOAT, ("N", len(CLASSES))),
            helper.make_tensor_value_info("features", TensorProto.FLOAT, ("N", DIM)),
        ],
        initializer=[numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()],
    )
    return helper.make_model(
        graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9, producer_name="pomona"
    ).SerializeToString()


def embed_v2(pixels: np.ndarray) -> np.ndarray:
    """Features (29,) of pixels (32, 32, 3), in float64."""
    return np.mean([_embed_side(pixels), _embed_side(pixels[:, ::-1])], axis=0)


def _embed_side(pixels: np.ndarray) -> np.ndarray:
    scaled = (pixels.astype(np.float64) - 127) / 128
    x = (np.clip(np.rint(scaled / PIXEL_STEP) + PIXEL_ZERO, 0, 255) - PIXEL_ZERO) * PIXEL_STEP
    cut = x.reshape(N_PLACES, 4, N_PLACES, 4, 3)
    weights = PATCH_WEIGHTS * PATCH_STEPS[:, None, None, None].astype(np.float64)
    patches = np.clip(np.einsum("hawbc,kcab->khw", cut, weights) + PATCH_BIAS[:, None, None], 0, 6)
    rounded = np.clip(np.rint(patches / PATCH_STEP), 0, 255) * PATCH_STEP
    z = np.einsum("kc,chw->khw", AXES[:, :, 0, 0] * float(AXES_STEP), rounded)
    moments = np.einsum("khw,lhw,hw->kl", z, z, WINDOW)[ROWS, COLUMNS] * TWICE
    averages = patches.mean(axis=(1, 2))
    return np.concatenate([moments / np.linalg.norm(moments), averages / np.linalg.norm(averages)])


def read_v2(photo: bytes) -> np.ndarray:
    """Pixels (32, 32, 3): all of the photo."""
    return np.asarray(open_at_fraction(photo).resize((SIZE_PX, SIZE_PX), Image.Resampling.BILINEAR))


def open_at_fraction(photo: bytes) -> Image.Image:
    """Upright photo, JPEG at the smallest fraction that leaves both sides `DECODE_PX` long."""
    picture = Image.open(io.BytesIO(photo))
    fits = [n for n in (8, 4, 2) if min(math.ceil(side / n) for side in picture.size) >= DECODE_PX]
    if picture.format == "JPEG" and fits:
        picture.draft("RGB", tuple(math.ceil(side / fits[0]) for side in picture.size))
    return ImageOps.exif_transpose(picture).convert("RGB")


def make_bundle_v2(photos: dict[str, bytes]) -> tuple[dict[str, bytes], dict[str, object]]:
    """Files of the bundle of format 2, and what it must answer; its head is made from three of the photos."""
    features = {name: embed_v2(read_v2(data)) for name, data in photos.items()}
    learnt = np.stack([features[name] for name in ("red.png", "green.png", "yellow.jpg")])
    weights = (40 * (learnt - learnt.mean(axis=0))).astype(np.float32)
    bias = -(weights.astype(np.float64) @ learnt.mean(axis=0)).astype(np.float32)
    hashes = sorted(hashlib.sha256(photos[name]).hexdigest() for name in ("red.png", "green.png", "yellow.jpg"))
    files = {
        "model.onnx": make_network_v2(weights, bias),
        "head.safetensors": save({"weights": weights, "bias": bias}),
        "train_photos.txt": "".join(f"{one}\n" for one in hashes).encode("ascii"),
    }
    files["pomona.json"] = write_manifest(MANIFEST_V2, files)
    return files, {name: answer(weights.astype(float) @ vector + bias) for name, vector in features.items()}


# --- format 3: patches scaled channel by channel; the layer above them has its weights in a file of their own too -----

_RANDOM_V3 = np.random.default_rng(3)
PATCHES_V3 = (_RANDOM_V3.standard_normal((8, 3, 4, 4)) / 8).astype(np.float32)
TUNED_LAYER = "patches"
TUNED = {
    "mix.weight": (_RANDOM_V3.standard_normal((12, 8, 1, 1)) / 2).astype(np.float32),
    "mix.bias": np.linspace(-0.5, 1.5, 12, dtype=np.float32),
}


def make_network_v3(weights: np.ndarray, bias: np.ndarray) -> bytes:
    """Pixels (N, 32, 32, 3) uint8 to probabilities (N, 3) and features (N, 12)."""
    constants: dict[str, object] = {
        "offset": np.array(OFFSET_V3, np.float32)[:, None, None],
        "scale": (1 / np.array(SCALE_V3)).astype(np.float32)[:, None, None],
        "filters": PATCHES_V3,
        "places": np.array([2, 3]),
        "one": np.array([1]),
        "tiny": np.float32(1e-12),
        "weights": weights,
        "bias": bias,
        **TUNED,
    }
    steps = [
        ("Cast", ["pixels"], "float", {"to": TensorProto.FLOAT}),
        ("Transpose", ["float"], "planes", {"perm": [0, 3, 1, 2]}),
        ("Sub", ["planes", "offset"], "centred", {}),
        ("Mul", ["centred", "scale"], "scaled", {}),
        ("Conv", ["scaled", "filters"], "cut", {"kernel_shape": [4, 4], "strides": [4, 4]}),
        ("Relu", ["cut"], "patches", {}),
        ("Conv", ["patches", "mix.weight", "mix.bias"], "mixed", {"kernel_shape": [1, 1]}),
        ("Relu", ["mixed"], "mix", {}),
        ("ReduceMean", ["mix", "places"], "averages", {"keepdims": 0}),
        ("ReduceL2", ["averages", "one"], "norm", {"keepdims": 1}),
        ("Max", ["norm", "tiny"], "length", {}),
        ("Div", ["averages", "length"], "features", {}),
        ("Gemm", ["features", "weights", "bias"], "logits", {"transB": 1}),
        ("Softmax", ["logits"], "probabilities", {"axis": 1}),
    ]
    graph = helper.make_graph(
        [helper.make_node(kind, inputs, [output], **options) for kind, inputs, output, options in steps],
        "pomona",
        [helper.make_tensor_value_info("pixels", TensorProto.UINT8, ("N", SIZE_PX, SIZE_PX, 3))],
        [
            helper.make_tensor_value_info("probabilities", TensorProto.FLOAT, ("N", len(CLASSES))),
            helper.make_tensor_value_info("features", TensorProto.FLOAT, ("N", len(TUNED["mix.bias"]))),
        ],
        initializer=[numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()],
    )
    return helper.make_model(
        graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9, producer_name="pomona"
    ).SerializeToString()


def embed_v3(pixels: np.ndarray) -> np.ndarray:
    """Features (12,) of pixels (32, 32, 3), in float64."""
    cut = ((pixels - np.array(OFFSET_V3)) / SCALE_V3).reshape(N_PLACES, 4, N_PLACES, 4, 3)
    patches = np.maximum(np.einsum("hawbc,kcab->khw", cut, PATCHES_V3.astype(np.float64)), 0)
    mixed = np.einsum("kc,chw->khw", TUNED["mix.weight"][:, :, 0, 0].astype(np.float64), patches)
    averages = np.maximum(mixed + TUNED["mix.bias"][:, None, None], 0).mean(axis=(1, 2))
    return averages / np.linalg.norm(averages)


def read_v3(photo: bytes) -> np.ndarray:
    """Pixels (32, 32, 3): the middle of the photo, in balanced and lighter colours."""
    picture = open_at_fraction(photo)
    middle = np.array(picture.size) / 2
    half = CROP_SHARE * min(picture.size) / 2
    box = (*(middle - half), *(middle + half))
    levels = np.asarray(picture.resize((SIZE_PX, SIZE_PX), Image.Resampling.BICUBIC, box=box))
    light = 255 * np.mean((levels / 255) ** 6, axis=(0, 1)) ** (1 / 6)
    balanced = np.clip(np.rint(levels * np.clip(light.mean() / light, 0.5, 2)), 0, 255)
    return np.rint(255 * (balanced / 255) ** GAMMA)


def make_bundle_v3(photos: dict[str, bytes]) -> tuple[dict[str, bytes], dict[str, object]]:
    """Files of the bundle of format 3, and what it must answer; its head is made from three of the photos."""
    features = {name: embed_v3(read_v3(data)) for name, data in photos.items()}
    learnt = np.stack([features[name] for name in ("red.png", "green.png", "yellow.jpg")])
    weights = (40 * (learnt - learnt.mean(axis=0))).astype(np.float32)
    bias = -(weights.astype(np.float64) @ learnt.mean(axis=0)).astype(np.float32)
    hashes = sorted(hashlib.sha256(photos[name]).hexdigest() for name in ("red.png", "green.png", "yellow.jpg"))
    files = {
        "model.onnx": make_network_v3(weights, bias),
        "head.safetensors": save({"weights": weights, "bias": bias}),
        "tail.safetensors": save(TUNED),
        "train_photos.txt": "".join(f"{one}\n" for one in hashes).encode("ascii"),
    }
    tuned = {"layer": TUNED_LAYER, "sha256": hashlib.sha256(files["tail.safetensors"]).hexdigest()}
    backbone = BACKBONE | {"name": "hf:mixed", "pooled": ["mix"], "tuned": tuned}
    manifest = MANIFEST_V3 | {"embedding": MANIFEST_V3["embedding"] | {"backbones": [backbone]}}
    files["pomona.json"] = write_manifest(manifest, files)
    return files, {name: answer(weights.astype(float) @ vector + bias) for name, vector in features.items()}


# --- format 4: averages of two halves; what was learnt finds the unknown, and answers keep a promise ------------------

DIM_V4, BENT_WIDTH, SHARPNESS = 6, 0.5, 1.25
NAMES_V4 = [
    {"name_en": "Red apple", "name_zh": "红苹果", "plu": "4016", "extra": {"shelf": "3"}},
    {"name_en": "Granny Smith", "name_zh": None, "plu": "4017", "extra": {}},
    {"name_en": None, "name_zh": None, "plu": None, "extra": {}},
]
LEARNT_V4 = ("red.png", "green.png", "yellow.jpg")
KIND_V4, MIDDLES_V4, SPREADS_V4, THRESHOLD_V4 = ("nearest", "energy"), (0.05, -2.5), (0.1, 0.5), 3.0
LEAST_ANSWER, LEAST_SHORTLIST = 0.98, 0.2
MANIFEST_V4 = {
    "format": 4,
    "pomona_version": "0.3.0",
    "created": "2026-11-27T00:00:00+00:00",
    "classes": [one | names for one, names in zip(MANIFEST_V1["classes"], NAMES_V4, strict=True)],
    "preprocessing": MANIFEST_V3["preprocessing"] | {"enhance": [], "crop_share": 1.0, "fit": "squash"},
    "embedding": {
        "pooling": "average",
        "mirrored": False,
        "precision": "f32",
        "backbones": [BACKBONE | {"tuned": None}],
    },
    "trust": {
        "link": {"width": BENT_WIDTH, "sharpness": SHARPNESS},
        "unknown": {
            "kind": KIND_V4,
            "middles": MIDDLES_V4,
            "spreads": SPREADS_V4,
            "threshold": THRESHOLD_V4,
        },
        "promise": {
            "share": 0.95,
            "least_answer": LEAST_ANSWER,
            "least_shortlist": LEAST_SHORTLIST,
            "turned_away": 0.05,
            "n": 60,
            "n_groups": 40,
        },
    },
    "provenance": {"n_train": 3, "accuracy": 1.0, "option_data": "水果", "option_promise": 0.95},
}


def make_network_v4(weights: np.ndarray, bias: np.ndarray, bank: np.ndarray) -> bytes:
    """Pixels (N, 32, 32, 3) uint8 to probabilities (N, 3), features (N, 6) and unknown (N,)."""
    unit = bank / np.linalg.norm(bank, axis=1, keepdims=True)
    constants: dict[str, object] = {
        "offset": np.array(OFFSET_V3, np.float32)[:, None, None],
        "scale": (1 / np.array(SCALE_V3)).astype(np.float32)[:, None, None],
        "flat": np.array([0, DIM_V4]),
        "head_weights": weights,
        "head_bias": bias,
        "trust/width": np.float32(BENT_WIDTH),
        "trust/sharpness": np.float32(SHARPNESS),
        "trust/bank": unit.T.astype(np.float32),
        "trust/last": np.array([1]),
        "trust/tiny": np.float32(1e-12),
        "trust/one": np.float32(1),
        "trust/less": np.float32(-THRESHOLD_V4),
        **{f"trust/middle{i}": np.float32(value) for i, value in enumerate(MIDDLES_V4)},
        **{f"trust/spread{i}": np.float32(value) for i, value in enumerate(SPREADS_V4)},
    }
    steps = [
        ("Cast", ["pixels"], "float", {"to": TensorProto.FLOAT}),
        ("Transpose", ["float"], "planes", {"perm": [0, 3, 1, 2]}),
        ("Sub", ["planes", "offset"], "centred", {}),
        ("Mul", ["centred", "scale"], "scaled", {}),
        ("AveragePool", ["scaled"], "halves", {"kernel_shape": [16, 32], "strides": [16, 32]}),
        ("Transpose", ["halves"], "upper_first", {"perm": [0, 2, 3, 1]}),
        ("Reshape", ["upper_first", "flat"], "features", {}),
        ("Gemm", ["features", "head_weights", "head_bias"], "logits", {"transB": 1}),
        ("Div", ["logits", "trust/width"], "narrow", {}),
        ("Asinh", ["narrow"], "bent", {}),
        ("Mul", ["bent", "trust/sharpness"], "linked", {}),
        ("Softmax", ["linked"], "probabilities", {"axis": 1}),
        ("ReduceL2", ["features", "trust/last"], "norm", {"keepdims": 1}),
        ("Max", ["norm", "trust/tiny"], "length", {}),
        ("Div", ["features", "length"], "unit", {}),
        ("MatMul", ["unit", "trust/bank"], "likeness", {}),
        ("ReduceMax", ["likeness", "trust/last"], "most", {"keepdims": 0}),
        ("Sub", ["trust/one", "most"], "part0", {}),
        ("ReduceLogSumExp", ["linked", "trust/last"], "sum", {"keepdims": 0}),
        ("Neg", ["sum"], "part1", {}),
    ]
    total = "trust/less"
    for i in range(2):
        steps += [
            ("Sub", [f"part{i}", f"trust/middle{i}"], f"moved{i}", {}),
            ("Div", [f"moved{i}", f"trust/spread{i}"], f"measure{i}", {}),
            ("Add", [total, f"measure{i}"], f"total{i}", {}),
        ]
        total = f"total{i}"
    steps.append(("Sigmoid", [total], "unknown", {}))
    graph = helper.make_graph(
        [helper.make_node(kind, inputs, [output], **options) for kind, inputs, output, options in steps],
        "pomona",
        [helper.make_tensor_value_info("pixels", TensorProto.UINT8, ("N", SIZE_PX, SIZE_PX, 3))],
        [
            helper.make_tensor_value_info("probabilities", TensorProto.FLOAT, ("N", len(CLASSES))),
            helper.make_tensor_value_info("features", TensorProto.FLOAT, ("N", DIM_V4)),
            helper.make_tensor_value_info("unknown", TensorProto.FLOAT, ("N",)),
        ],
        initializer=[numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()],
    )
    return helper.make_model(
        graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9, producer_name="pomona"
    ).SerializeToString()


def embed_v4(photo: bytes) -> np.ndarray:
    """Features (6,) of a photo, in float64."""
    pixels = np.asarray(open_at_fraction(photo).resize((SIZE_PX, SIZE_PX), Image.Resampling.BICUBIC), np.float64)
    scaled = (pixels - np.array(OFFSET_V3)) / SCALE_V3
    return np.concatenate([half.mean(axis=(0, 1)) for half in np.split(scaled, 2)])


def answer_v4(features: np.ndarray, logits: np.ndarray, bank: np.ndarray) -> dict[str, object]:
    """What a bundle of format 4 must say: also how strange the photo is, what is answered, and the shortlist."""
    linked = np.arcsinh(logits / BENT_WIDTH) * SHARPNESS
    shares = np.exp(linked) / np.exp(linked).sum()
    unit = bank.astype(np.float64) / np.linalg.norm(bank.astype(np.float64), axis=1, keepdims=True)
    nearest = 1 - (unit @ features / np.linalg.norm(features)).max()
    parts = (nearest, -math.log(np.exp(linked).sum()))
    total = sum((part - m) / s for part, m, s in zip(parts, MIDDLES_V4, SPREADS_V4, strict=True)) - THRESHOLD_V4
    strangeness = 1 / (1 + math.exp(-total))
    best = int(shares.argmax())
    nodes = {"Apple": float(shares[0] + shares[1]), "Tropical": float(shares[2])}
    if strangeness >= 0.5:
        said, sure = "unknown", False
    elif shares[best] >= LEAST_ANSWER:
        said, sure = CLASSES[best][0], True
    else:
        said = max(nodes, key=lambda node: nodes[node])
        sure = nodes[said] >= LEAST_ANSWER
    order = np.argsort(-shares)
    listed = [int(c) for c in order if shares[c] >= LEAST_SHORTLIST] or [best]
    return answer(linked) | {
        "strangeness": round(strangeness, 9),
        "unknown": strangeness >= 0.5,
        "answer": said,
        "sure": sure,
        "shortlist": [CLASSES[c][0] for c in listed],
    }


def make_bundle_v4(photos: dict[str, bytes]) -> tuple[dict[str, bytes], dict[str, object]]:
    """Files of the bundle of format 4, and what it must answer; its head is made from three of the photos."""
    features = {name: embed_v4(data) for name, data in photos.items()}
    learnt = np.stack([features[name] for name in LEARNT_V4])
    weights = (0.6 * (learnt - learnt.mean(axis=0))).astype(np.float32)
    bias = -(weights.astype(np.float64) @ learnt.mean(axis=0)).astype(np.float32)
    bank = learnt.astype(np.float16).astype(np.float32)
    hashes = sorted(hashlib.sha256(photos[name]).hexdigest() for name in LEARNT_V4)
    listed = json.dumps([f"水果/{name}" for name in LEARNT_V4]).encode("ascii")
    files = {
        "model.onnx": make_network_v4(weights, bias, bank),
        "head.safetensors": save({"weights": weights, "bias": bias}),
        "train_photos.txt": "".join(f"{one}\n" for one in hashes).encode("ascii"),
        "bank.safetensors": save(
            {
                "vectors": bank.astype(np.float16),
                "labels": np.arange(3, dtype=np.int64),
                "names": np.frombuffer(listed, np.uint8),
            }
        ),
    }
    files["pomona.json"] = write_manifest(MANIFEST_V4, files)
    return files, {
        name: answer_v4(vector, weights.astype(float) @ vector + bias, bank) for name, vector in features.items()
    }


def make_photos() -> dict[str, bytes]:
    """Plain and transparent PNG, JPEG, a JPEG that stands on its head, and one large enough for half of it to do."""
    ramp = np.linspace(0, 1, 40)[:, None, None] * np.ones((1, 48, 1))
    red_over_green = (200, 30, 40) * (1 - ramp) + (60, 170, 50) * ramp
    down, across = np.mgrid[0:160, 0:200] / 8
    leaves = np.stack(
        [120 + 90 * np.sin(across + down / 3), 150 + 80 * np.cos(down * across / 9), 40 + 3 * down], axis=2
    )
    upside_down = Image.Exif()
    upside_down[274] = 3
    pictures = {
        "red.png": (Image.new("RGB", (13, 9), (196, 30, 42)), {}),
        "green.png": (Image.new("RGBA", (20, 24), (96, 168, 48, 255)), {}),
        "yellow.jpg": (Image.new("RGB", (48, 32), (240, 210, 40)), {"quality": 92}),
        "turned.jpg": (Image.fromarray(red_over_green.round().astype(np.uint8)), {"quality": 90, "exif": upside_down}),
        "large.jpg": (Image.fromarray(leaves.round().astype(np.uint8)), {"quality": 80}),
    }
    photos = {}
    for name, (picture, options) in pictures.items():
        stream = io.BytesIO()
        picture.save(stream, {"jpg": "JPEG", "png": "PNG"}[name[-3:]], **options)
        photos[name] = stream.getvalue()
    return photos


def answer(logits: np.ndarray) -> dict[str, object]:
    """What a bundle must say, from its logits (3,)."""
    shares = np.exp(logits - logits.max())
    shares /= shares.sum()
    return {"label": CLASSES[int(shares.argmax())][0], "probabilities": [round(float(share), 9) for share in shares]}


def find_logits_v1(photo: bytes) -> np.ndarray:
    """Logits (3,) of the bundle of format 1, computed with Pillow and numpy alone."""
    picture = ImageOps.exif_transpose(Image.open(io.BytesIO(photo))).convert("RGB")
    pixels = np.asarray(picture.resize((SIZE_PX, SIZE_PX), Image.Resampling.BILINEAR), np.float64) / 255
    features = np.concatenate([half.mean(axis=(0, 1)) for half in np.split(pixels, 2)])
    return WEIGHTS.astype(np.float64) @ features + BIAS


def make_bundle_v1(photos: dict[str, bytes]) -> tuple[dict[str, bytes], dict[str, object]]:
    """Files of the bundle of format 1, and what it must answer."""
    files = {"model.onnx": make_network(), "head.safetensors": save({"weights": WEIGHTS, "bias": BIAS})}
    files["pomona.json"] = write_manifest(MANIFEST_V1, files)
    return files, {name: answer(find_logits_v1(data)) for name, data in photos.items() if name != "large.jpg"}


def main() -> None:
    """Write what is not there yet."""
    (HERE / "photos").mkdir(exist_ok=True)
    for name, data in make_photos().items():
        if not (HERE / "photos" / name).exists():
            (HERE / "photos" / name).write_bytes(data)
    photos = {name: (HERE / "photos" / name).read_bytes() for name in make_photos()}
    makers = {
        "bundle-v1": make_bundle_v1,
        "bundle-v2": make_bundle_v2,
        "bundle-v3": make_bundle_v3,
        "bundle-v4": make_bundle_v4,
    }
    for name, make in makers.items():
        if (HERE / name).exists():
            continue
        (HERE / name).mkdir()
        files, answers = make(photos)
        for file, data in files.items():
            (HERE / name / file).write_bytes(data)
        expected = json.dumps(answers, indent=2, ensure_ascii=False)
        (HERE / f"{name}-expected.json").write_text(expected + "\n", encoding="utf-8", newline="\n")


if __name__ == "__main__":
    main()
