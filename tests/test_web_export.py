"""The folder of a page without a browser: what is in it, where its runtime comes from, and what is refused."""

from __future__ import annotations

import io
import json
import shutil
import tarfile
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from PIL import Image

from pomona.errors import ExportError, MissingPackageError, OptionError, PhotoError, StorageError
from pomona.export import ExportOptions, export_bundle, formats
from pomona.export.browser import describe_model, list_web_files
from pomona.export.browser_runner import BrowserRunner, PlainRunner
from pomona.export.formats import FORMATS
from pomona.export.golden import make_golden
from pomona.export.parity import check_parity
from pomona.export.web_runtime import PACKAGE, VERSION, WebRuntime, load_runtime

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from pomona.bundle import Bundle
    from pomona.export.trace import Trace
    from pomona.training import TrainResult

RUNTIME = WebRuntime(VERSION, {"ort.js": b"1", "ort-wasm.js": b"2", "ort-wasm.wasm": b"345"})


def pack(folder: Path, files: dict[str, bytes]) -> Path:
    path = folder / "package.tgz"
    with tarfile.open(path, "w:gz") as archive:
        for name, content in files.items():
            member = tarfile.TarInfo(f"package/{name}")
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return path


def list_package(version: str = VERSION) -> dict[str, bytes]:
    return {
        "package.json": json.dumps({"name": PACKAGE, "version": version}).encode(),
        "dist/ort.wasm.min.mjs": b"the library",
        "dist/ort-wasm-simd-threaded.mjs": b"the loader",
        "dist/ort-wasm-simd-threaded.wasm": b"the code",
        "../../escaped.txt": b"nothing of this is unpacked",
    }


def test_the_runtime_is_taken_from_a_package_or_a_folder(tmp_path: Path) -> None:
    files = list_package()
    place = tmp_path / "project" / "node_modules" / PACKAGE
    for name, content in files.items():
        if not name.startswith(".."):
            (place / name).parent.mkdir(parents=True, exist_ok=True)
            (place / name).write_bytes(content)
    for source in (pack(tmp_path, files), place, tmp_path / "project"):
        found = load_runtime(source)
        assert found.version == VERSION
        assert found.files["ort-wasm.wasm"] == b"the code"
        assert b"MIT" in found.files["LICENSE.txt"]
    assert not (tmp_path.parent / "escaped.txt").exists()


def test_what_is_no_runtime_is_refused_by_name(tmp_path: Path) -> None:
    (tmp_path / "text.tgz").write_bytes(b"no archive")
    (tmp_path / "empty").mkdir()
    incomplete = {name: content for name, content in list_package().items() if "wasm.min" not in name}
    wrong = {
        tmp_path / "absent": "there is nothing",
        tmp_path / "text.tgz": "cannot be read",
        tmp_path / "empty": "dist/ort.wasm.min.mjs",
        pack(tmp_path, incomplete): "dist/ort.wasm.min.mjs",
    }
    for source, reason in wrong.items():
        with pytest.raises(OptionError, match=reason):
            load_runtime(source)
    with pytest.raises(OptionError, match=r"version 1\.2\.0"):
        load_runtime(pack(tmp_path, list_package("1.2.0")))


def test_without_npm_both_ways_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("POMONA_CACHE", str(tmp_path))
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(MissingPackageError, match=r"--runtime.*npm"):
        load_runtime()


def test_a_package_that_is_not_the_pinned_one_is_not_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("POMONA_CACHE", str(tmp_path / "cache"))
    package = pack(tmp_path, list_package())
    npm = tmp_path / "npm"
    npm.write_text(f'#!/bin/sh\nfor last; do :; done\ncp {package} "$last/{PACKAGE}-{VERSION}.tgz"\n')
    npm.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{Path(str(shutil.which('cp'))).parent}")
    with pytest.raises(StorageError, match="sha512"):
        load_runtime()
    assert not list((tmp_path / "cache").glob("*.tgz"))


def test_the_folder_holds_what_the_page_asks_for_and_no_service(promising: TrainResult) -> None:
    files = list_web_files(promising.bundle, name="fruit", runtime=RUNTIME)
    listed = json.loads(files["offline.js"].split(b"\n")[0].removeprefix(b"const FILES = ").rstrip(b";"))
    assert set(listed["paths"]) == {"./", *files} - {"offline.js"}
    assert b"Worker" in files["page/recogniser.js"]
    assert not any("service" in name for name in files)
    assert b"fetch" not in files["page/page.js"]
    another = list_web_files(promising.bundle, name="another", runtime=RUNTIME)
    assert another["offline.js"] != files["offline.js"], "a browser would keep the older page"


def test_nothing_of_the_photos_learnt_from_is_in_it(promising: TrainResult) -> None:
    assert promising.bundle.bank is not None
    model = json.dumps(describe_model(promising.bundle, name="fruit"))
    assert not any(name in model for name in promising.bundle.bank.names)


def test_a_recogniser_that_enhances_is_refused(promising: TrainResult, monkeypatch: pytest.MonkeyPatch) -> None:
    from dataclasses import replace

    changed = replace(promising.bundle.preprocessing, enhance=("white-balance",))
    monkeypatch.setitem(promising.bundle.__dict__, "preprocessing", changed)
    with pytest.raises(OptionError, match="white-balance"):
        list_web_files(promising.bundle, name="fruit", runtime=RUNTIME)


def test_a_runtime_is_for_the_page_alone(promising: TrainResult, tmp_path: Path) -> None:
    with pytest.raises(OptionError, match="web"):
        ExportOptions(run=promising.bundle.folder, format="onnx", runtime=tmp_path)


def test_without_a_browser_the_graph_is_checked_and_the_report_says_so(
    promising: TrainResult, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("onnxruntime")
    monkeypatch.setenv("POMONA_CHROMIUM", str(tmp_path / "no browser"))
    web = FORMATS["web"]
    assert web.say_unchecked is not None
    assert "JavaScript was not run" in str(web.say_unchecked())
    (tmp_path / "page").mkdir()
    (tmp_path / "page" / "model.onnx").write_bytes((promising.bundle.folder / "model.onnx").read_bytes())
    (runner,) = web.open_runners(promising.bundle, tmp_path)
    assert isinstance(runner, PlainRunner)
    golden = make_golden(promising.bundle)[:6]
    found = check_parity(promising.bundle, runner, golden, bounds=web.choose_bounds(promising.bundle, runner))
    assert "without the page's JavaScript" in found.runtime


def test_a_browser_that_does_not_start_is_named(
    promising: TrainResult, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("playwright")
    program = shutil.which("false")
    if program is None:
        pytest.skip("this system has no program that only fails")
    monkeypatch.setenv("POMONA_CHROMIUM", program)
    runner = BrowserRunner.of(promising.bundle, tmp_path)
    with pytest.raises(ExportError, match=rf"{program} does not start.+POMONA_CHROMIUM"):
        list(runner.follow([b"photo"], shows_stages=False))


def test_photos_that_browsers_cannot_open_are_left_out_and_counted(
    promising: TrainResult, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("onnxruntime")

    class OfABrowser(PlainRunner):
        def follow(self, photos: Sequence[bytes], *, shows_stages: bool) -> Iterator[Trace | PhotoError]:
            for photo, trace in zip(photos, super().follow(photos, shows_stages=shows_stages), strict=True):
                yield PhotoError("unsupported", "TIFF") if photo[:2] in {b"II", b"MM"} else trace

    def write_graph(bundle: Bundle, folder: Path, _golden: object, **_: object) -> None:
        (folder / "model.onnx").write_bytes((bundle.folder / "model.onnx").read_bytes())

    web = FORMATS["web"]._replace(
        write=write_graph, open_runners=lambda bundle, folder: (OfABrowser(bundle, folder / "model.onnx"),)
    )
    monkeypatch.setitem(formats.FORMATS, "web", web)
    folder = tmp_path / "photos" / promising.bundle.tree.names[0]
    folder.mkdir(parents=True)
    golden = make_golden(promising.bundle)[0]
    (folder / "a.jpg").write_bytes(golden.content)
    Image.fromarray(golden.pixels).save(folder / "b.tif")
    options = ExportOptions(
        run=promising.bundle.folder, format="web", output=tmp_path / "out", data=tmp_path / "photos"
    )
    result = export_bundle(options)
    assert result.parities[0].n_real == 1
    assert any("1 of 2 photos were not tried" in note and "HEIC and TIFF" in note for note in result.notes)
