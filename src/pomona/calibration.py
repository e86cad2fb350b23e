"""Ranges of activations, found by running a network on photos.

In: a backbone and the pixels of photos. Out: a `Range` for the output of each block, which an int8 backbone needs.
Why: ranges made from many kinds of photo are shipped, so nobody has to calibrate; who has unusual photos can.
"""

from __future__ import annotations

import itertools
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from pomona.backbone import list_blocks
from pomona.embedding import Embedding, load_network
from pomona.engine import Engine
from pomona.errors import DataError
from pomona.files import storage_errors
from pomona.int8 import Range

if TYPE_CHECKING:
    from collections.abc import Iterable

    from numpy.typing import NDArray

    from pomona.backbone import Backbone

_PHOTOS_PER_BATCH = 32


def calibrate(
    backbone: Backbone, pixels: Iterable[NDArray[np.uint8]], *, n_workers: int | None = None
) -> tuple[Range, ...]:
    """Find what the output of each block ranges over: the means of the photos' least and greatest values.

    Parameters
    ----------
    backbone : Backbone
        Its float32 network is run, whatever its own precision.
    pixels : iterable of ndarray of shape (size_px, size_px, 3), uint8
        Preprocessed photos, some dozens or more; read once, a few at a time.
    n_workers : int, optional
        Threads; every core where not given.

    Returns
    -------
    tuple of Range
        For ``replace(backbone, precision="int8", ranges=...)``.

    Raises
    ------
    DataError
        If there is no photo.

    Notes
    -----
    Percentiles, the extremes of all photos, and the range of least squared error gave features within 1 dB of these.
    """
    names = [block.name for block in list_blocks(backbone.name)]
    lows, highs = [], []
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "extremes.onnx"
        with storage_errors(f"write {path}"):
            path.write_bytes(
                _add_extremes(load_network(Embedding((replace(backbone, precision="f32", ranges=None),))), names)
            )
        engine = Engine(path, n_workers=n_workers)
    left = iter(pixels)
    while batch := list(itertools.islice(left, _PHOTOS_PER_BATCH)):
        found = engine.run(np.stack(batch))
        lows.append(np.stack([found[f"{name}.low"].ravel() for name in names], axis=1))
        highs.append(np.stack([found[f"{name}.high"].ravel() for name in names], axis=1))
    if not lows:
        raise DataError("calibrate: wanted photos, got none")
    low, high = (np.concatenate(rows).mean(axis=0, dtype=np.float64) for rows in (lows, highs))
    return tuple(
        Range(name, min(float(a), 0.0), max(float(b), 0.0)) for name, a, b in zip(names, low, high, strict=True)
    )


def _add_extremes(network: Path, names: list[str]) -> bytes:
    """Give a network the least and the greatest value of each tensor, photo by photo, as outputs."""
    import onnx
    from onnx import helper

    model = onnx.load(network)
    axes = helper.make_tensor("positions", onnx.TensorProto.INT64, (3,), (1, 2, 3))
    model.graph.initializer.append(axes)
    for name in names:
        for kind, suffix in (("ReduceMin", "low"), ("ReduceMax", "high")):
            model.graph.node.append(helper.make_node(kind, [name, axes.name], [f"{name}.{suffix}"]))
            model.graph.output.append(helper.make_empty_tensor_value_info(f"{name}.{suffix}"))
    return bytes(model.SerializeToString())
