"""Weights are read as torch reads them, and nothing but tensors is let out of a pickle."""

from __future__ import annotations

import builtins
import os
import pickle
import subprocess
import sys
from collections import OrderedDict
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from pomona.backbone import BACKBONES, Backbone, _find_weights, load_weights
from pomona.errors import BackboneError, StorageError
from pomona.files import hash_bytes
from pomona.weights import read_weights

if TYPE_CHECKING:
    from pathlib import Path


def test_weights_equal_those_that_torch_reads() -> None:
    torch = pytest.importorskip("torch", reason="torch is there to compare with")
    for backbone in BACKBONES:
        state = torch.load(_find_weights(backbone), map_location="cpu", weights_only=True)
        wanted = {name: tensor.numpy() for name, tensor in state.items() if tensor.dtype == torch.float32}
        got = load_weights(backbone)
        assert list(got) == list(wanted)
        assert len(got) > 200
        for name, tensor in got.items():
            assert tensor.flags.c_contiguous
            assert tensor.dtype == np.float32
            np.testing.assert_array_equal(tensor, wanted[name])


@pytest.mark.parametrize("backbone", BACKBONES, ids=lambda backbone: backbone.name)
def test_tensors_have_the_values_that_a_trained_network_has(backbone: Backbone) -> None:
    weights = load_weights(backbone)
    assert weights["_conv_stem.weight"].shape == (32, 3, 3, 3)
    for name, tensor in weights.items():
        assert np.isfinite(tensor).all()
        assert not name.endswith("running_var") or (tensor >= 0).all()


def test_a_tensor_that_is_not_row_by_row_is_put_in_order(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch", reason="torch is there to write the file")
    grid = torch.arange(24, dtype=torch.float32).reshape(2, 3, 4)
    tensors = {
        "turned": grid.permute(2, 0, 1),
        "part": grid[1:, ::2],
        "counts": torch.tensor([7]),
        "one": grid[0, 0, 3],
    }
    torch.save(tensors, tmp_path / "x.pth", _use_new_zipfile_serialization=False)
    got = read_file(tmp_path / "x.pth")
    assert list(got) == ["turned", "part", "one"]
    for name, tensor in got.items():
        np.testing.assert_array_equal(tensor, tensors[name].numpy())


def read_file(path: Path) -> dict[str, Any]:
    return dict(read_weights(path, hash_bytes(path.read_bytes())))


def write_file(path: Path, content: bytes) -> Path:
    path.write_bytes(content)
    return path


def make_head(system: dict[str, object] | None = None) -> bytes:
    parts = (0x1950A86A20F9469CFC6C, 1001, {"little_endian": True} if system is None else system)
    return b"".join(pickle.dumps(part, protocol=2) for part in parts)


class _Call:
    """Pickles to a call of any function."""

    def __init__(self, function: Any, *arguments: object) -> None:
        self.call = (function, arguments)

    def __reduce__(self) -> tuple[Any, tuple[object, ...]]:
        return self.call


@pytest.mark.parametrize(
    ("payload", "name"),
    [
        (_Call(builtins.exec, "raise SystemExit"), r"builtins\.exec"),
        (_Call(getattr, "x", "upper"), r"builtins\.getattr"),
        (_Call(subprocess.run, ["false"]), r"subprocess\.run"),
        (OrderedDict(x=np.dtype("f4")), r"numpy\.dtype"),
    ],
    ids=["exec", "getattr", "run", "dtype"],
)
def test_any_other_name_in_a_pickle_is_refused(payload: object, name: str, tmp_path: Path) -> None:
    content = make_head() + pickle.dumps(payload, protocol=2, fix_imports=False) + pickle.dumps([], protocol=2)
    with pytest.raises(BackboneError, match=rf"x\.pth are not a file .*: it names {name}, which weights"):
        read_file(write_file(tmp_path / "x.pth", content))


def test_nothing_is_parsed_before_the_hash_is_right(tmp_path: Path) -> None:
    path = write_file(tmp_path / "x.pth", b"garbage")
    with pytest.raises(BackboneError, match=r"wanted sha256 00, got .* in .*x\.pth; install the package again"):
        read_weights(path, "00")


def test_a_file_cut_anywhere_or_of_another_kind_is_a_backbone_error(tmp_path: Path) -> None:
    whole = _find_weights(BACKBONES[0]).read_bytes()
    cuts = [0, 1, 14, 17, 60, 137, 5_000, 42_485, 42_486, 47_175, 47_176, 47_180, 47_300, len(whole) - 1]
    contents = [
        *(whole[:n] for n in cuts),
        b"PK\x03\x04 a zip",
        make_head({"little_endian": False}) + pickle.dumps({}, protocol=2) + pickle.dumps([], protocol=2),
        make_head({}) + pickle.dumps({}, protocol=2) + pickle.dumps([], protocol=2),
        make_head() + pickle.dumps({}, protocol=2) + pickle.dumps(["7"], protocol=2),
    ]
    for content in contents:
        with pytest.raises(BackboneError, match=r"x\.pth are not a file of torch before 1\.6"):
            read_file(write_file(tmp_path / "x.pth", content))


def test_a_missing_file_is_a_storage_error(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match=r"could not read the weights .*x\.pth"):
        read_weights(tmp_path / "x.pth", "00")


def test_a_tensor_outside_its_storage_is_refused(tmp_path: Path) -> None:
    whole = _find_weights(BACKBONES[0]).read_bytes()
    shape = b"K\x20K\x03K\x03K\x03t"  # (32, 3, 3, 3) of the stem
    assert whole.count(shape) == 1
    for other in (b"K\x21K\x03K\x03K\x03t", b"K\x20K\x03K\x03K\xfft"):
        with pytest.raises(BackboneError, match=r"a tensor of shape .* does not lie inside its 864 numbers"):
            read_file(write_file(tmp_path / "x.pth", whole.replace(shape, other)))


def test_a_first_network_needs_no_torch(tmp_path: Path) -> None:
    script = (
        "import sys; sys.modules['torch'] = sys.modules['efficientnet_lite_pytorch'] = None\n"
        "from pomona.backbone import find_backbone\n"
        "from pomona.embedding import Embedding, load_network\n"
        "print(load_network(Embedding((find_backbone('lite2', size_px=64),))).stat().st_size > 10_000_000)\n"
        "print([name for name in sys.modules if 'efficientnet_lite2' in name])\n"
    )
    environment = {**os.environ, "POMONA_CACHE": str(tmp_path)}
    done = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout == "True\n[]\n"
