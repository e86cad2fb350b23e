"""The wheel works on its own: a bare install predicts, and says what training needs."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import venv
import zipfile
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[1]
GOLDEN = Path(__file__).parent / "golden"
NAMES = ("红苹果", "Granny Smith", "Banana")
UNREACHABLE = (
    "Could not find a version",
    "No matching distribution",
    "ConnectionError",
    "Temporary failure",
    "timed out",
)


def _call(*command: object, cwd: Path | None = None, **env: str) -> subprocess.CompletedProcess[str]:
    # Not the checkout: what runs must come from the wheel.
    clean = {name: value for name, value in os.environ.items() if name not in {"PYTHONPATH", "POMONA_TRACEBACK"}}
    return subprocess.run(
        [*map(str, command)],
        cwd=cwd,
        env={**clean, **env},
        capture_output=True,
        encoding="utf-8",
        check=False,
        timeout=600,
    )


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    if absent := [name for name in ("build", "hatchling") if find_spec(name) is None]:
        pytest.skip(f"{' and '.join(absent)} not installed: pip install 'pomona[dev]'")
    folder = tmp_path_factory.mktemp("wheel")
    done = _call(sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", folder, ROOT)
    assert done.returncode == 0, done.stdout + done.stderr
    (path,) = folder.glob("pomona-*-py3-none-any.whl")
    return path


@pytest.fixture(scope="module")
def bare(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Python of a fresh environment with the wheel and its required packages alone."""
    folder = tmp_path_factory.mktemp("bare") / "venv"
    venv.create(folder, with_pip=True)
    python = folder / ("Scripts/python.exe" if sys.platform == "win32" else "bin/python")
    options = ["--quiet", "--disable-pip-version-check", "--constraint", ROOT / "requirements.lock"]
    done = _call(python, "-m", "pip", "install", *options, wheel)
    if done.returncode and any(sign in done.stderr for sign in UNREACHABLE):
        pytest.skip(f"the package index cannot be reached: {done.stderr.strip().splitlines()[-1]}")
    assert done.returncode == 0, done.stderr
    return python


def test_wheel_holds_what_is_needed_and_no_more(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
        metadata = archive.read(next(name for name in names if name.endswith(".dist-info/METADATA"))).decode()
        entry_points = archive.read(next(name for name in names if name.endswith("entry_points.txt"))).decode()
    package = ROOT / "src" / "pomona"
    wanted = {
        f"pomona/{path.relative_to(package).as_posix()}"
        for path in package.rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    assert {name for name in names if ".dist-info/" not in name} == wanted
    assert {"pomona/py.typed", "pomona/__main__.py", "pomona/ranges.json", "pomona/statistics.safetensors"} <= names
    assert any(name.startswith("pomona/web/") for name in names)
    assert any(name.endswith(".dist-info/licenses/LICENSE") for name in names)
    assert "License-Expression: Apache-2.0" in metadata
    assert "pomona = pomona.cli:run" in entry_points


def test_bare_install_brings_no_training_packages(bare: Path) -> None:
    done = _call(bare, "-m", "pip", "list", "--format=freeze", "--disable-pip-version-check")
    assert done.returncode == 0, done.stderr
    installed = {line.split("==")[0].lower().replace("_", "-") for line in done.stdout.splitlines()}
    assert {"pomona", "numpy", "openvino", "pillow", "pydantic", "rich", "typer"} <= installed
    training = {
        "torch",
        "kornia",
        "transformers",
        "onnxscript",
        "opencv-python-headless",
        "pyarrow",
        "tensorboard",
        "mlflow-skinny",
        "scikit-learn",
        "scipy",
        "onnx",
        "safetensors",
        "jinja2",
        "simplejpeg",
        "pillow-heif",
        "matplotlib",
    }
    assert not training & installed


@pytest.mark.parametrize(
    ("bundle", "tolerance"), [("bundle-v1", 1e-5), ("bundle-v2", 3e-3), ("bundle-v3", 3e-3), ("bundle-v4", 3e-3)]
)
def test_bare_install_answers_as_the_full_one(bare: Path, tmp_path: Path, bundle: str, tolerance: float) -> None:
    # Here JPEG goes through Pillow, in the other tests through simplejpeg.
    command = bare.parent / ("pomona.exe" if sys.platform == "win32" else "pomona")
    wanted: dict[str, Any] = json.loads((GOLDEN / f"{bundle}-expected.json").read_text(encoding="utf-8"))
    photos = [GOLDEN / "photos" / name for name in wanted]
    done = _call(command, "predict", GOLDEN / bundle, *photos, "--json", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    answers = json.loads(done.stdout)
    assert [answer["file"] for answer in answers] == [str(photo) for photo in photos]
    for answer, expected in zip(answers, wanted.values(), strict=True):
        scores = {one["label"]: one["score"] for one in answer["top"]}
        assert [scores[name] for name in NAMES] == pytest.approx(expected["probabilities"], abs=tolerance)
        assert answer["label"] == expected["label"]
        if "answer" in expected:
            said = answer["answer"]["label"], answer["sure"], answer["unknown"]
            assert said == (expected["answer"], expected["sure"], expected["unknown"])
    done = _call(bare, "-m", "pomona", "--version", cwd=tmp_path)
    assert done.stdout.startswith("pomona ")


def test_bare_install_says_what_training_needs(bare: Path, tmp_path: Path) -> None:
    for name, photo in (("Apple", "red.png"), ("Banana", "yellow.jpg")):
        (tmp_path / "x" / name).mkdir(parents=True)
        for i in range(2):
            content = (GOLDEN / "photos" / photo).read_bytes()
            (tmp_path / "x" / name / f"{i}-{photo}").write_bytes(content + bytes(i))
    for options, extra in (((), "train"), (("--tune", "head"), "tune")):
        command = (bare, "-m", "pomona", "train", "x", *options)
        done = _call(*command, cwd=tmp_path, POMONA_CACHE=str(tmp_path / "cache"))
        assert done.returncode == 1
        assert "Traceback" not in done.stderr
        assert f"it is not installed: pip install 'pomona[{extra}]'" in done.stderr
    assert not (tmp_path / "runs").exists()
