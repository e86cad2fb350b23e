"""The service in this process: every endpoint, what it refuses, and that it says what the bundle says."""

from __future__ import annotations

import base64
import io
import json
import struct
import sys
import threading
import zlib
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from PIL import Image

pytest.importorskip("fastapi", reason="the service needs fastapi: pip install 'pomona[serve]'")

from starlette.testclient import TestClient

from pomona.bundle import load_bundle
from pomona.errors import OptionError, PhotoError
from pomona.prediction import Prediction
from pomona.service.app import build_app
from pomona.service.decode_worker import DecodeLimits, DecodeWorker
from pomona.service.faults import RequestError
from pomona.service.guard import POLICY, require_host, require_token
from pomona.service.kserve import read_inference
from pomona.service.lanes import BusyError, Lanes, Said
from pomona.service.live import LiveBundle
from pomona.service.measures import Measures
from pomona.service.options import ServeOptions

if TYPE_CHECKING:
    from collections.abc import Iterator

    from pomona.training import TrainResult


_JSON_TYPE = {"content-type": "application/json"}


def encode(image: Image.Image, photo_format: str = "PNG", **options: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, photo_format, **options)
    return file.getvalue()


def make_png(width_px: int, height_px: int) -> bytes:
    """A PNG that claims a size and holds next to nothing."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width_px, height_px, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0" * 100)) + chunk(b"IEND", b"")
    )


def make_scans(n_scans: int) -> bytes:
    """A progressive JPEG whose last scan comes again and again."""
    plain = encode(Image.new("RGB", (64, 64), "olive"), "JPEG", progressive=True)
    at = plain.rindex(b"\xff\xda")
    return plain[:-2] + plain[at:-2] * n_scans + plain[-2:]


@pytest.fixture(scope="module")
def photos(promising: TrainResult) -> list[bytes]:
    folder = promising.bundle.folder.parent / "fruit"
    return [path.read_bytes() for path in sorted(folder.rglob("*.jpg"))[::9]]


@pytest.fixture(scope="module")
def options(promising: TrainResult) -> ServeOptions:
    return ServeOptions(run=promising.bundle.folder, max_photo_mb=2, max_request_mb=3, max_photos=60)


@pytest.fixture(scope="module")
def live(options: ServeOptions) -> Iterator[LiveBundle]:
    lanes = Lanes(2, DecodeLimits(photo_s=20))
    lanes.start()
    found = LiveBundle(load_bundle(options.run, n_workers=1), lanes)
    found.open()
    yield found
    lanes.close()


@pytest.fixture(scope="module")
def client(options: ServeOptions, live: LiveBundle) -> Iterator[TestClient]:
    measures = Measures()
    measures.watch(live.lanes, live)
    live.lanes.on_photo = measures.count_photo
    with TestClient(build_app(options, live, measures), base_url="http://localhost") as found:
        yield found


def strip(answer: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in answer.items() if name not in {"file", "fault"}}


# --- answers ----------------------------------------------------------------------------------------------------------


def test_answers_are_those_of_the_bundle_however_photos_come(
    client: TestClient, live: LiveBundle, photos: list[bytes]
) -> None:
    wanted = json.loads(json.dumps([strip(one.to_dict()) for one in live.bundle.predict(photos)]))
    form = client.post("/predict", files=[("photo", (f"p{i}.jpg", one)) for i, one in enumerate(photos)])
    coded = client.post("/predict", json={"photos": [base64.b64encode(one).decode() for one in photos]})
    raw = [client.post("/predict", content=one, headers={"content-type": "image/jpeg"}) for one in photos]
    assert form.status_code == 200
    assert [one["file"] for one in form.json()["predictions"]] == [f"p{i}.jpg" for i in range(len(photos))]
    for reply in (
        form.json()["predictions"],
        coded.json()["predictions"],
        [one.json()["predictions"][0] for one in raw],
    ):
        assert [strip(one) for one in reply] == wanted
    assert form.json()["model"] == "run"
    assert form.json()["version"] == 1
    assert (
        len(
            client.post("/predict?topk=2", content=photos[0], headers={"content-type": "image/x"}).json()[
                "predictions"
            ][0]["top"]
        )
        == 2
    )


def test_one_broken_photo_of_fifty_fails_alone(client: TestClient, live: LiveBundle, photos: list[bytes]) -> None:
    fifty = [photos[i % len(photos)] for i in range(50)]
    fifty[17] = b"no photo at all"
    reply = client.post("/predict", files=[("photo", ("a.jpg", one)) for one in fifty])
    found = reply.json()["predictions"]
    assert reply.status_code == 200
    assert [i for i, one in enumerate(found) if one["error"]] == [17]
    assert found[17]["fault"] == "not_an_image"
    assert [one["label"] for one in found] == [one.label for one in live.bundle.predict(fifty)]


def test_an_explanation_is_that_of_the_bundle(client: TestClient, live: LiveBundle, photos: list[bytes]) -> None:
    from pomona.explaining import explain_photos, load_neighbours

    (wanted,) = explain_photos(live.bundle, photos[:1], find_nearest=load_neighbours(live.bundle))
    (found,) = client.post("/predict?explain=true", files={"photo": photos[0]}).json()["predictions"]
    side = found["heat_map"]["side"]
    assert wanted.heat_map is not None
    assert np.abs(np.reshape(found["heat_map"]["values"], (side, side)) - wanted.heat_map).max() < 1e-5
    seen = np.asarray(Image.open(io.BytesIO(base64.b64decode(found["seen"].partition(",")[2]))))
    assert wanted.pixels is not None
    assert seen.shape == wanted.pixels.shape
    assert np.abs(seen.astype(int) - wanted.pixels).mean() < 8
    assert [(one["name"], one["label"]) for one in found["nearest"]] == [
        (one.name, one.label) for one in wanted.nearest
    ]
    thumbnail = Image.open(io.BytesIO(base64.b64decode(found["nearest"][0]["photo"].partition(",")[2])))
    assert max(thumbnail.size) <= 160
    assert str(live.bundle.folder.parent) not in json.dumps(found)


def test_dirty_images_fare_as_with_the_bundle(client: TestClient, live: LiveBundle, shared: Path) -> None:
    paths = [path for path in sorted((shared / "data" / "dirty_images").rglob("*")) if path.is_file()]
    assert len(paths) >= 40
    for path in paths:
        content = path.read_bytes()
        reply = client.post("/predict", files={"photo": (path.name, content)})
        (wanted,) = live.bundle.predict([content])
        (found,) = reply.json()["predictions"]
        assert strip(found) == json.loads(json.dumps(strip(wanted.to_dict()))), path
        assert reply.status_code == (200 if wanted.error is None else 422), path


def test_the_model_says_what_it_is(client: TestClient, live: LiveBundle) -> None:
    found = client.get("/model").json()
    assert [one["label"] for one in found["classes"]] == list(live.bundle.tree.names)
    assert found["can_explain"] is True
    assert found["can_teach"] is False
    assert found["promise"] == 0.8
    assert (found["max_photo_bytes"], found["max_photos"]) == (2_000_000, 60)
    assert client.get("/health").json() == {"status": "ready", "model": "run", "version": 1}


# --- refusals ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("content", "kind", "status", "code"),
    [
        (b"", "image/jpeg", 400, "empty"),
        (b"x", "text/plain", 415, "content_type"),
        (b"x", "", 415, "content_type"),
        (b"{", "application/json", 400, "cannot_be_read"),
        (b"[" * 9_000, "application/json", 400, "cannot_be_read"),
        (b"[" * 100_000, "application/json", 413, "too_large"),
        (b'{"photos": []}', "application/json", 400, "empty"),
        (b'{"photos": [3]}', "application/json", 400, "cannot_be_read"),
        (b'{"photos": ["?"]}', "application/json", 400, "cannot_be_read"),
        (json.dumps({"photos": ["AA=="] * 61}).encode(), "application/json", 413, "too_many_photos"),
        (b"x", "multipart/form-data", 400, "cannot_be_read"),
        (b"--a\r\nno form", "multipart/form-data; boundary=a", 400, "cannot_be_read"),
        (b"--a\r\n\r\ncut", "multipart/form-data; boundary=a", 400, "cannot_be_read"),
        (bytes(2_000_001), "image/jpeg", 413, "too_large"),
        (bytes(3_000_001), "image/jpeg", 413, "too_large"),
    ],
)
def test_what_is_no_request_for_an_answer(
    client: TestClient, content: bytes, kind: str, status: int, code: str
) -> None:
    reply = client.post("/predict", content=content, headers={"content-type": kind})
    assert (reply.status_code, reply.json()["error"]["code"]) == (status, code)
    assert reply.headers["content-security-policy"] == POLICY


@pytest.mark.parametrize(
    ("photo", "fault"),
    [
        (b"a text file\n" * 50, "not_an_image"),
        (make_png(65_000, 65_000), "too_many_pixels"),
        (make_png(60_000_001, 1), "too_many_pixels"),
        (make_scans(101), "too_many_scans"),
        (b"GIF89a\xff\xff\xff\xff\0\0\0,\0\0\0\0\xff\xff\xff\xff\0\x02\x02D\x01\0;", "too_many_pixels"),
        (encode(Image.new("RGB", (30, 30)))[:60], "truncated"),
    ],
)
def test_a_photo_that_cannot_be_used_is_an_answer_that_says_why(client: TestClient, photo: bytes, fault: str) -> None:
    reply = client.post("/predict", content=photo, headers={"content-type": "application/octet-stream"})
    (found,) = reply.json()["predictions"]
    assert reply.status_code == 422
    assert found["fault"] == fault
    assert found["label"] is None
    assert len(found["error"]) > 20


def test_frames_and_scans_within_reason_are_read(client: TestClient) -> None:
    frames = [Image.new("P", (20, 20), i % 256) for i in range(300)]
    for photo in (encode(frames[0], "GIF", save_all=True, append_images=frames[1:], duration=20), make_scans(20)):
        assert client.post("/predict", files={"photo": photo}).status_code == 200


@pytest.mark.parametrize(
    ("method", "path", "status", "code"),
    [
        ("GET", "/nothing", 404, "not_found"),
        ("GET", "/page/..%2Fdocs.css", 404, "not_found"),
        ("GET", "/page/nothing.js", 404, "not_found"),
        ("GET", "/predict", 405, "method"),
        ("POST", "/predict?topk=0", 422, "option"),
        ("POST", "/predict?explain=perhaps", 422, "option"),
        ("GET", "/teach", 404, "not_found"),
        ("POST", "/teach", 404, "not_found"),
    ],
)
def test_what_is_not_there(client: TestClient, method: str, path: str, status: int, code: str) -> None:
    reply = client.request(method, path)
    assert (reply.status_code, reply.json()["error"]["code"]) == (status, code)


@pytest.mark.parametrize(
    ("host", "is_let_in"),
    [
        ("localhost:8000", True),
        ("127.0.0.1:8000", True),
        ("[::1]:8000", True),
        ("192.168.1.7", True),
        ("fruit.example", True),
        ("FRUIT.example.:80", True),
        ("evil.example", False),
        ("localhost.evil.example", False),
        ("", False),
    ],
)
def test_only_names_of_its_own_are_answered_to(host: str, is_let_in: bool) -> None:
    scope = {"headers": [(b"host", host.encode())]}
    names = ServeOptions(run=Path(), allow_host="a.example, Fruit.example").allowed_names
    if is_let_in:
        require_host(scope, names)
    else:
        with pytest.raises(RequestError):
            require_host(scope, names)


def test_a_page_of_another_site_is_refused(client: TestClient) -> None:
    reply = client.get("/model", headers={"host": "evil.example"})
    assert (reply.status_code, reply.json()["error"]["code"]) == (400, "host")
    assert "access-control-allow-origin" not in client.get("/model", headers={"origin": "http://evil.example"}).headers


def test_the_token_is_asked_for() -> None:
    require_token("Bearer secret-token", "secret-token")
    require_token("bearer  secret-token ", "secret-token")
    for header in ("", "Bearer", "Bearer secret-toke", "Basic secret-token", "secret-token", "Bearer sécret-token"):
        with pytest.raises(RequestError) as caught:
            require_token(header, "secret-token")
        assert caught.value.status == 401
        assert "secret" not in caught.value.message


def test_every_reply_keeps_a_browser_safe(client: TestClient) -> None:
    for path in ("/", "/docs", "/docs.css", "/health", "/metrics", "/model", "/openapi.json", "/nothing", "/v2"):
        headers = client.get(path).headers
        assert headers["content-security-policy"] == POLICY
        assert headers["x-content-type-options"] == "nosniff"
        assert headers["referrer-policy"] == "no-referrer"
        assert "camera=(self)" in headers["permissions-policy"]
        assert "server" not in headers
    page = client.get("/docs").text
    assert "<script" not in page
    assert "http" not in page.replace("http-equiv", "")
    assert "style=" not in page


@pytest.mark.parametrize(
    "values",
    [
        {"port": 70_000},
        {"workers": 0},
        {"max_photos": 0},
        {"max_wait_s": float("nan")},
        {"worker_mb": 50},
        {"token": "short"},
        {"token": "with a space"},
        {"token": "with\nbreak"},
    ],
)
def test_options_that_cannot_be_used(values: dict[str, Any]) -> None:
    with pytest.raises(OptionError):
        ServeOptions(run=Path(), **values)


def test_a_fault_of_its_own_is_one_sentence(
    client: TestClient, live: LiveBundle, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(*_: object) -> None:
        raise ZeroDivisionError("secret detail")

    monkeypatch.setattr(type(live.bundle), "to_prediction", fail)
    safe = TestClient(client.app, base_url="http://localhost", raise_server_exceptions=False)
    reply = safe.post("/predict", files={"photo": encode(Image.new("RGB", (30, 30)))})
    assert (reply.status_code, reply.json()["error"]["code"]) == (500, "fault")
    assert "secret" not in reply.text
    assert "Traceback" not in reply.text
    assert "unexpected ZeroDivisionError" in capsys.readouterr().err


def test_the_log_names_no_photo(client: TestClient, capsys: pytest.CaptureFixture[str]) -> None:
    client.post(
        "/predict?topk=3", files={"photo": ("private.jpg", b"secret bytes")}, headers={"authorization": "Bearer s3cret"}
    )
    client.get("/secret-path")
    lines = capsys.readouterr().err
    assert "422 POST /predict" in lines
    assert "404 GET - " in lines
    assert not {word for word in ("private", "secret", "s3cret") if word in lines}


def test_metrics_count(client: TestClient, photos: list[bytes]) -> None:
    def read(name: str) -> float:
        lines = client.get("/metrics").text.splitlines()
        return sum(float(line.rpartition(" ")[2]) for line in lines if line.startswith(name))

    before = (
        read('pomona_photos_total{outcome="not_an_image"}'),
        read('pomona_requests_total{route="/predict",status="200"}'),
    )
    client.post("/predict", files=[("photo", photos[0]), ("photo", b"no photo")])
    after = (
        read('pomona_photos_total{outcome="not_an_image"}'),
        read('pomona_requests_total{route="/predict",status="200"}'),
    )
    assert (after[0] - before[0], after[1] - before[1]) == (1, 1)
    assert read('pomona_stage_seconds_count{stage="network"}') > 0
    assert read("pomona_model_version") == 1
    assert read("pomona_waiting_photos") == 0


# --- KServe -----------------------------------------------------------------------------------------------------------


def test_kserve_describes_itself(client: TestClient, live: LiveBundle) -> None:
    assert client.get("/v2").json()["extensions"] == ["binary_tensor_data"]
    assert client.get("/v2/health/live").json() == {"live": True}
    assert client.get("/v2/health/ready").json() == {"ready": True}
    assert client.get("/v2/models/run/ready").json()["ready"] is True
    found = client.get("/v2/models/run").json()
    assert found["inputs"][1]["shape"] == [-1, 64, 64, 3]
    assert found["outputs"][0]["shape"] == [-1, len(live.bundle.tree)]
    assert isinstance(client.get("/v2/models/other").json()["error"], str)
    assert client.get("/v2/models/other").status_code == 404


def read_outputs(content: dict[str, Any]) -> dict[str, Any]:
    return {one["name"]: one.get("data") for one in content["outputs"]}


def test_kserve_answers_as_the_bundle(client: TestClient, live: LiveBundle, photos: list[bytes]) -> None:
    wanted = live.bundle.measure(photos)
    given = [base64.b64encode(one).decode() for one in photos]
    entry: dict[str, Any] = {"name": "photos", "datatype": "BYTES", "shape": [len(photos)], "data": given}
    found = client.post("/v2/models/run/infer", json={"id": "7", "inputs": [entry]}).json()
    outputs = read_outputs(found)
    assert found["id"] == "7"
    assert found["model_version"] == "1"
    assert np.array_equal(
        np.reshape(outputs["probabilities"], (len(photos), -1)).astype(np.float32), wanted.probabilities
    )
    assert np.array_equal(np.array(outputs["unknown"], np.float32), wanted.strangeness)
    assert outputs["label"] == [live.bundle.tree.names[i] for i in wanted.probabilities.argmax(axis=1)]
    squares = np.stack([live.bundle.preprocessing.read(one) for one in photos[:2]])
    entry = {"name": "pixels", "datatype": "UINT8", "shape": [2, 64, 64, 3], "data": squares.ravel().tolist()}
    flat = read_outputs(client.post("/v2/models/run/infer", json={"inputs": [entry]}).json())
    assert flat["probabilities"] == outputs["probabilities"][: 2 * len(live.bundle.tree)]


def test_kserve_takes_and_gives_binary(client: TestClient, live: LiveBundle, photos: list[bytes]) -> None:
    pair = [photos[0], b"no photo"]
    raw = b"".join(struct.pack("<I", len(one)) + one for one in pair)
    asked = {
        "inputs": [{"name": "photos", "datatype": "BYTES", "shape": [2], "parameters": {"binary_data_size": len(raw)}}],
        "parameters": {"binary_data_output": True},
    }
    head = json.dumps(asked).encode()
    headers = {"inference-header-content-length": str(len(head)), "content-type": "application/octet-stream"}
    reply = client.post("/v2/models/run/infer", content=head + raw, headers=headers)
    n_json = int(reply.headers["inference-header-content-length"])
    content, at, found = json.loads(reply.content[:n_json]), n_json, {}
    for one in content["outputs"]:
        size = one["parameters"]["binary_data_size"]
        found[one["name"]] = reply.content[at : at + size]
        at += size
    assert at == len(reply.content)
    rows = np.frombuffer(found["probabilities"], "<f4").reshape(2, -1)
    assert np.array_equal(rows[:1], live.bundle.measure(pair[:1]).probabilities)
    assert not rows[1].any()
    assert found["label"].endswith(struct.pack("<I", 0))
    assert b"wanted JPEG" in found["error"]


@pytest.mark.parametrize(
    "inputs",
    [
        [],
        [{"datatype": "FP32", "shape": [1], "data": [1]}],
        [{"datatype": "BYTES", "shape": [2], "data": ["AA=="]}],
        [{"datatype": "BYTES", "shape": [-1], "data": []}],
        [{"datatype": "BYTES", "shape": [1], "data": ["?"]}],
        [{"datatype": "BYTES", "shape": [0], "data": []}],
        [{"datatype": "UINT8", "shape": [1, 3, 3, 3], "data": []}],
        [{"datatype": "UINT8", "shape": [1, 64, 64, 3], "data": [256] * 12288}],
        [{"datatype": "UINT8", "shape": [1, 64, 64, 3], "data": [[1], [1, 2]]}],
        [{"datatype": "BYTES", "shape": [1], "parameters": {"binary_data_size": 5}}],
    ],
)
def test_kserve_refuses_other_tensors(client: TestClient, inputs: list[Any]) -> None:
    reply = client.post("/v2/models/run/infer", json={"inputs": inputs})
    assert reply.status_code == 400
    assert isinstance(reply.json()["error"], str)


# --- lanes ------------------------------------------------------------------------------------------------------------


def test_requests_take_turns() -> None:
    """With one lane, a request of one photo waits for one photo of a large request, not for all."""
    lanes = Lanes(1, DecodeLimits())
    order: list[str] = []
    may_begin, all_done = threading.Event(), threading.Semaphore(0)

    def work(name: str) -> Any:
        def do(number: int, _: object) -> Said:
            may_begin.wait(20)
            order.append(f"{name}{number}")
            return Said(Prediction(name))

        return do

    lanes.start()
    try:
        for name, n_photos in (("a", 4), ("b", 1), ("c", 2)):
            lanes.put(n_photos, work(name), lambda _: all_done.release())
        may_begin.set()
        assert all(all_done.acquire(timeout=20) for _ in range(3))
    finally:
        lanes.close()
    assert order.index("b0") <= 2
    assert order.index("c1") < order.index("a3")
    assert sorted(order) == ["a0", "a1", "a2", "a3", "b0", "c0", "c1"]


def test_who_would_wait_too_long_is_told_at_once() -> None:
    lanes = Lanes(1, DecodeLimits(), max_wait_s=0.05, max_waiting=8)
    may_go, done = threading.Event(), threading.Semaphore(0)

    def work(_: int, __: object) -> Said:
        may_go.wait(20)
        return Said(Prediction("a"))

    lanes.start()
    try:
        lanes.put(2, work, lambda _: done.release())
        lanes._photo_s = 0.1  # as if one had been measured
        lanes.put(1, work, lambda _: done.release()) if lanes.n_waiting == 0 else None
        with pytest.raises(BusyError) as caught:
            lanes.put(1, work, lambda _: done.release())
        assert caught.value.wait_s >= 0.1
        with pytest.raises(BusyError), lanes.expect():
            pass
        lanes.max_wait_s = 100
        with pytest.raises(BusyError):
            lanes.put(9, work, lambda _: done.release())
        may_go.set()
    finally:
        lanes.close()


def test_a_full_queue_is_a_429_with_a_time(
    client: TestClient, live: LiveBundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(type(live.lanes), "wait_s", property(lambda _: 3.2))
    reply = client.post("/predict", files={"photo": b"any"})
    assert (reply.status_code, reply.json()["error"]["code"]) == (429, "busy")
    assert reply.headers["retry-after"] == "4"


def test_nothing_is_answered_before_it_is_warm(
    client: TestClient, live: LiveBundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(live, "is_ready", False)
    assert client.get("/health").status_code == 503
    assert client.get("/health").json() == {"status": "starting"}
    assert client.post("/predict", files={"photo": b"any"}).json()["error"]["code"] == "starting"
    assert client.get("/v2/health/ready").status_code == 503
    assert client.get("/v2/health/live").status_code == 200


# --- decode workers ---------------------------------------------------------------------------------------------------


@pytest.fixture
def worker() -> Iterator[DecodeWorker]:
    found = DecodeWorker(DecodeLimits(photo_s=20, memory_mb=256))
    yield found
    found.clear()


def test_a_worker_reads_as_this_process_does(worker: DecodeWorker, live: LiveBundle, photos: list[bytes]) -> None:
    preprocessing = replace(live.bundle.preprocessing, size_px=48, fit="pad")
    for one in photos[:3]:
        assert np.array_equal(worker.read(preprocessing, one), preprocessing.read(one))
    with pytest.raises(PhotoError, match="begins with"):
        worker.read(preprocessing, b"no photo")
    assert worker.n_restarts == 0


def test_a_worker_that_dies_is_replaced_and_its_photo_answered(worker: DecodeWorker, live: LiveBundle) -> None:
    import os
    import signal

    preprocessing, photo = live.bundle.preprocessing, encode(Image.new("RGB", (50, 40), "teal"))
    wanted = worker.read(preprocessing, photo)
    assert worker.pid
    os.kill(worker.pid, signal.SIGKILL)
    assert np.array_equal(worker.read(preprocessing, photo), wanted)
    assert worker.n_restarts == 1


def test_a_photo_of_too_much_memory_is_refused(worker: DecodeWorker, live: LiveBundle) -> None:
    photo = encode(Image.new("RGB", (9000, 6000), "teal"), compress_level=1)
    with pytest.raises(PhotoError) as caught:
        worker.read(live.bundle.preprocessing, photo)
    assert caught.value.fault == "too_much_memory"
    assert worker.read(live.bundle.preprocessing, encode(Image.new("RGB", (9, 9)))).shape == (64, 64, 3)


def test_a_photo_that_takes_too_long_is_ended(live: LiveBundle) -> None:
    slow = DecodeWorker(DecodeLimits(photo_s=0.3))
    quick = encode(Image.new("RGB", (9, 9)))
    stop = threading.Event()

    def watch() -> None:
        while not stop.wait(0.02):
            slow.end_overdue()

    watching = threading.Thread(target=watch)
    watching.start()
    try:
        slow.read(live.bundle.preprocessing, quick)
        plain = encode(Image.new("RGB", (7000, 7000)), "JPEG", progressive=True)
        at = plain.rindex(b"\xff\xda")
        with pytest.raises(PhotoError) as caught:
            slow.read(live.bundle.preprocessing, plain[:-2] + plain[at:-2] * 80 + plain[-2:])
        assert caught.value.fault == "took_too_long"
        assert slow.n_restarts == 1
        assert slow.read(live.bundle.preprocessing, quick).shape == (64, 64, 3)
    finally:
        stop.set()
        watching.join()
        slow.clear()


# --- another bundle ---------------------------------------------------------------------------------------------------


def test_a_swap_under_load_fails_no_request_and_mixes_no_answers(
    client: TestClient, live: LiveBundle, trained: TrainResult, photos: list[bytes]
) -> None:
    first, second = live.bundle, load_bundle(trained.bundle.folder, n_workers=1)
    wanted = {1: [one.label for one in first.predict(photos)], 2: [one.label for one in second.predict(photos)]}
    assert wanted[1] != wanted[2]
    stop = threading.Event()

    def ask() -> set[int]:
        seen = set()
        while not stop.is_set():
            reply = client.post("/predict", files=[("photo", one) for one in photos])
            assert reply.status_code == 200
            version = reply.json()["version"]
            assert [one["label"] for one in reply.json()["predictions"]] == wanted[version]
            seen.add(version)
        return seen

    with ThreadPoolExecutor(2) as pool:
        asking = [pool.submit(ask) for _ in range(2)]
        try:
            for bundle, version in ((second, 2), (first, 1), (second, 2), (first, 1)):
                live.swap(bundle, version)
                assert client.get("/health").json()["version"] == version
                reply = client.post("/predict", files=[("photo", one) for one in photos])
                assert [one["label"] for one in reply.json()["predictions"]] == wanted[version]
        finally:
            stop.set()
        assert set.union(*(one.result() for one in asking)) >= {1}


def test_a_swap_is_not_refused_by_a_full_queue(live: LiveBundle) -> None:
    may_go, done = threading.Event(), threading.Event()
    lanes = Lanes(1, DecodeLimits(), max_wait_s=0.05)
    lanes.start()

    def hold(_: int, __: object) -> Said:
        may_go.wait(20)
        return Said(Prediction("a"))

    try:
        lanes.put(20, hold, lambda _: done.set())
        lanes._photo_s = 1.0  # as if one had been measured
        with pytest.raises(BusyError):
            lanes.put(1, hold, lambda _: None)
        crowded = LiveBundle(live.bundle, lanes)
        with ThreadPoolExecutor(1) as pool:
            swapped = pool.submit(crowded.swap, load_bundle(live.bundle.folder, n_workers=1), 2)
            threading.Timer(0.5, may_go.set).start()
            swapped.result(timeout=60)
        assert crowded.version == 2
        assert done.wait(20)
    finally:
        may_go.set()
        lanes.close()


def test_a_lane_outlives_a_process_that_did_not_start(monkeypatch: pytest.MonkeyPatch) -> None:
    right = sys.executable
    monkeypatch.setattr(sys, "executable", "/nowhere/python")
    lanes = Lanes(1, DecodeLimits())
    started = threading.Event()
    start = lanes.lanes[0].worker.start

    def note() -> None:
        try:
            start()
        finally:
            started.set()

    monkeypatch.setattr(lanes.lanes[0].worker, "start", note)
    lanes.start()
    done = threading.Event()
    try:
        assert started.wait(20)
        monkeypatch.setattr(sys, "executable", right)
        lanes.put(1, lambda _, lane: Said(Prediction(str(lane.number))), lambda _: done.set())
        assert done.wait(20)
    finally:
        lanes.close()


# --- bodies that grow -------------------------------------------------------------------------------------------------


def test_json_of_many_values_is_refused_before_it_is_made(client: TestClient) -> None:
    reply = client.post("/predict", content=b'{"photos":[' + b"[]," * 20_000 + b"[]]}", headers=_JSON_TYPE)
    assert (reply.status_code, reply.json()["error"]["code"]) == (413, "too_large")


def test_kserve_makes_no_table_of_texts() -> None:
    """As an array, these 3 MB of JSON would take 40 GB: every text as long as the longest."""
    data = ["x" * 10_000, *["a"] * 1_000_000]
    entry = {"name": "pixels", "datatype": "UINT8", "shape": [1, 64, 64, 3], "data": data}
    with pytest.raises(RequestError) as caught:
        read_inference(json.dumps({"inputs": [entry]}).encode(), "", size_px=64, max_photos=8)
    assert "whole numbers" in caught.value.message


def test_kserve_takes_numbers_flat_and_nested() -> None:
    square = np.random.default_rng(0).integers(0, 256, (1, 4, 4, 3))
    for data in (square.tolist(), square.ravel().tolist()):
        entry = {"name": "pixels", "datatype": "UINT8", "shape": [1, 4, 4, 3], "data": data}
        _, found = read_inference(json.dumps({"inputs": [entry]}).encode(), "", size_px=4, max_photos=8)
        np.testing.assert_array_equal(found[0], square[0])


def test_kserve_keeps_the_limit_of_a_photo(client: TestClient, live: LiveBundle) -> None:
    entry = {"name": "photos", "datatype": "BYTES", "shape": [1], "data": [base64.b64encode(b"a" * 2_100_000).decode()]}
    assert client.post(f"/v2/models/{live.name}/infer", json={"inputs": [entry]}).status_code == 413


def test_a_form_of_many_parts_is_given_up(client: TestClient) -> None:
    body = b"--x\r\n\r\n\r\n" * 1000 + b"--x--\r\n"
    reply = client.post("/predict", content=body, headers={"content-type": "multipart/form-data; boundary=x"})
    assert (reply.status_code, reply.json()["error"]["code"]) == (413, "too_many_photos")


@pytest.mark.skipif(not Path("/proc/self/environ").exists(), reason="needs /proc")
def test_a_process_that_decodes_knows_no_secret(live: LiveBundle, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("POMONA_TOKEN", "PGPASSWORD"):
        monkeypatch.setenv(name, "this-is-secret")
    reader = DecodeWorker(DecodeLimits())
    try:
        assert reader.read(live.bundle.preprocessing, encode(Image.new("RGB", (64, 64), "olive"))).shape == (64, 64, 3)
        known = Path(f"/proc/{reader.pid}/environ").read_bytes()
        assert b"PATH=" in known
        assert b"this-is-secret" not in known
    finally:
        reader.clear()
