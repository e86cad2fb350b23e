"""How fast a recogniser answers is measured where it answers, and what cannot be measured says why."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from pomona.bundle import load_bundle
from pomona.engine import count_cpus
from pomona.errors import BundleDamagedError, DataError, OptionError
from pomona.export.onnx_model import write_onnx
from pomona.export.openvino_model import write_openvino
from pomona.speed import Latency, Speed, SpeedOptions, is_recogniser, measure_speed

GOLDEN = Path(__file__).parent / "golden"
POMONA = [sys.executable, "-m", "pomona"]


def require_sound(speed: Speed, n_answers: int) -> None:
    assert speed.n_answers == n_answers
    for one in (speed.latency, *speed.stages.values()):
        assert 0 < one.p50_ms <= one.p95_ms <= one.p99_ms
    assert max(one.p50_ms for one in speed.stages.values()) <= speed.latency.p99_ms
    assert speed.photos_per_s > 0
    assert 0 < speed.load_s < speed.start_s
    assert speed.memory_mb is None or 30 < speed.memory_mb < 4000


def test_a_run_is_measured_on_given_photos() -> None:
    steps = []
    options = SpeedOptions(path=GOLDEN / "bundle-v4", photos=GOLDEN / "photos", n_answers=20)
    speed = measure_speed(options, on_progress=lambda step, n_done, n_total: steps.append((step, n_done, n_total)))
    require_sound(speed, 20)
    assert speed.n_photos == len(list((GOLDEN / "photos").iterdir()))
    assert speed.file_mb == pytest.approx(sum(one.stat().st_size for one in (GOLDEN / "bundle-v4").iterdir()) / 1e6)
    assert {step for step, *_ in steps} == {"speed"}
    assert (40, 40) in [step[1:] for step in steps]
    assert json.loads(json.dumps(speed.to_dict()))["stages"].keys() == {"decode", "network", "answer"}


def test_each_photo_is_timed_once_at_least() -> None:
    speed = measure_speed(SpeedOptions(path=GOLDEN / "bundle-v1", photos=GOLDEN / "photos", n_answers=1, max_s=0.001))
    assert speed.n_answers == speed.n_photos == 5


def test_photos_that_cannot_be_used_are_counted(tmp_path: Path) -> None:
    shutil.copytree(GOLDEN / "photos", tmp_path / "photos")
    (tmp_path / "photos" / "broken.jpg").write_bytes(b"no photo")
    speed = measure_speed(SpeedOptions(path=GOLDEN / "bundle-v1", photos=tmp_path / "photos", n_answers=5))
    assert (speed.n_photos, speed.n_skipped) == (5, 1)
    (tmp_path / "none").mkdir()
    (tmp_path / "none" / "broken.jpg").write_bytes(b"no photo")
    with pytest.raises(DataError, match="got none of 1"):
        measure_speed(SpeedOptions(path=GOLDEN / "bundle-v1", photos=tmp_path / "none"))


@pytest.mark.skipif(not hasattr(os, "sched_getaffinity"), reason="this system does not keep a process to a core")
def test_no_more_cores_are_used_than_were_given(tmp_path: Path) -> None:
    code = (
        "import os, sys; from pathlib import Path; from pomona import speed\n"
        "count = lambda: len(os.sched_getaffinity(0))\n"
        "speed._measure = lambda task, started_s: {'n': count(), 'omp': os.environ['OMP_NUM_THREADS']}\n"
        "speed.main(Path(sys.argv[1]), Path(sys.argv[2]), 0.0)"
    )
    (tmp_path / "task.json").write_text('{"threads": 1}')
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", code, str(tmp_path / "task.json"), str(tmp_path / "found.json")]
    with subprocess.Popen(command, env=environment, stdin=subprocess.PIPE) as process:
        assert process.wait(timeout=120) == 0  # its end of the pipe stays open, or it would end itself
    assert json.loads((tmp_path / "found.json").read_text()) == {"n": 1, "omp": "1"}


def test_what_is_no_recogniser(tmp_path: Path) -> None:
    with pytest.raises(OptionError, match="there is nothing"):
        measure_speed(SpeedOptions(path=tmp_path / "missing.onnx"))
    copy = Path(shutil.copytree(GOLDEN / "bundle-v4", tmp_path / "run"))
    (copy / "pomona.json").write_text("{}")
    with pytest.raises(BundleDamagedError, match=r"pomona\.json"):
        measure_speed(SpeedOptions(path=copy))
    for wrong in ({"threads": 0}, {"n_answers": 0}, {"max_s": 0.0}):
        with pytest.raises(OptionError, match="wanted"):
            SpeedOptions(path=tmp_path, **wrong)  # type: ignore[arg-type]
    assert not is_recogniser(GOLDEN / "photos")


def test_a_run_whose_graph_was_changed_says_so(tmp_path: Path) -> None:
    copy = Path(shutil.copytree(GOLDEN / "bundle-v4", tmp_path / "run"))
    (copy / "model.onnx").write_bytes((copy / "model.onnx").read_bytes() + b"x")
    with pytest.raises(BundleDamagedError, match=r"^\S+model\.onnx is damaged"):
        measure_speed(SpeedOptions(path=copy, photos=GOLDEN / "photos"))


def test_no_more_cores_are_named_than_there_are() -> None:
    options = SpeedOptions(path=GOLDEN / "bundle-v4", photos=GOLDEN / "photos", threads=10_000, n_answers=5)
    assert measure_speed(options).threads == count_cpus()


def test_photos_that_wait_are_no_memory_of_the_recogniser(tmp_path: Path) -> None:
    (tmp_path / "photos").mkdir()
    for i, photo in enumerate(sorted((GOLDEN / "photos").iterdir())):
        (tmp_path / "photos" / f"{i}{photo.suffix}").write_bytes(photo.read_bytes())
    options = SpeedOptions(path=GOLDEN / "bundle-v4", photos=tmp_path / "photos", n_answers=5)
    plain = measure_speed(options).memory_mb
    if plain is None:
        pytest.skip("this system does not tell how much memory a process held")
    jpeg = next(path for path in (tmp_path / "photos").iterdir() if path.suffix == ".jpg")
    jpeg.write_bytes(jpeg.read_bytes() + bytes(400_000_000))  # what stands behind a photo is not decoded
    heavy = measure_speed(options).memory_mb
    assert heavy is not None
    assert heavy < plain + 250


def test_an_image_is_measured_and_a_page_is_not(tmp_path: Path) -> None:
    shutil.copytree(GOLDEN / "bundle-v4", tmp_path / "image" / "bundle")
    speed = measure_speed(SpeedOptions(path=tmp_path / "image", photos=GOLDEN / "photos", n_answers=5))
    assert speed.runtime.startswith("OpenVINO")
    (tmp_path / "site" / "page").mkdir(parents=True)
    (tmp_path / "site" / "page" / "model.onnx").write_bytes(b"graph")
    assert is_recogniser(tmp_path / "site")
    with pytest.raises(OptionError, match="a page answers in a browser"):
        measure_speed(SpeedOptions(path=tmp_path / "site"))


@pytest.mark.parametrize("ending", ["onnx", "xml"])
def test_a_file_of_another_kind_says_so(tmp_path: Path, ending: str) -> None:
    pytest.importorskip("onnxruntime")
    path = tmp_path / f"model.{ending}"
    path.write_bytes(b"no model")
    with pytest.raises(OptionError, match=r"model.*does not take it"):
        measure_speed(SpeedOptions(path=path, photos=GOLDEN / "photos"))


def test_a_graph_without_metadata_says_so() -> None:
    pytest.importorskip("onnxruntime")
    with pytest.raises(OptionError, match="wanted a file that pomona export wrote"):
        measure_speed(SpeedOptions(path=GOLDEN / "bundle-v4" / "model.onnx", photos=GOLDEN / "photos"))


@pytest.mark.parametrize(("kind", "runtime"), [("onnx", "ONNX Runtime"), ("openvino", "OpenVINO")])
def test_an_export_is_measured(tmp_path: Path, kind: str, runtime: str) -> None:
    pytest.importorskip("onnxruntime")
    write = {"onnx": write_onnx, "openvino": write_openvino}[kind]
    write(load_bundle(GOLDEN / "bundle-v4"), tmp_path)
    speed = measure_speed(SpeedOptions(path=tmp_path, photos=GOLDEN / "photos", n_answers=20))
    assert speed.runtime.startswith(runtime)
    assert speed.file_mb == pytest.approx(sum(one.stat().st_size for one in tmp_path.iterdir()) / 1e6)
    require_sound(speed, 20)


def test_the_command_shows_a_table_and_refuses_what_means_nothing() -> None:
    command = [*POMONA, "benchmark", str(GOLDEN / "bundle-v4"), "--threads", "1"]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    assert "from photo to answer on one core" in done.stdout
    assert "99 % within" in done.stdout
    for more, message in (("--effort", "effort: it has no meaning"), ("--ways", "ways: it has no meaning")):
        value = {"--effort": "best", "--ways": "pomona"}[more]
        refused = subprocess.run([*command, more, value], check=False, capture_output=True, text=True)
        assert refused.returncode == 2
        assert message in refused.stderr
    wrong = [*POMONA, "benchmark", str(GOLDEN / "photos"), "--threads", "1"]
    refused = subprocess.run(wrong, check=False, capture_output=True, text=True)
    assert refused.returncode == 2
    assert "threads: wanted it with a run folder" in refused.stderr


def test_quantiles_are_answers_that_were_measured() -> None:
    assert Latency.of(np.array([0.004, 0.001, 0.003])) == Latency(3.0, 4.0, 4.0)
