"""The service as a process of its own: its start, its end, and what clients and kills do to it."""

from __future__ import annotations

import contextlib
import http.client
import io
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from PIL import Image

pytest.importorskip("fastapi", reason="the service needs fastapi: pip install 'pomona[serve]'")

from pomona.bundle import load_bundle

if TYPE_CHECKING:
    from collections.abc import Iterator

    from pomona.training import TrainResult

pytestmark = pytest.mark.skipif(os.name != "posix", reason="signals and /proc")
GUARD_S = 60.0


@dataclass
class Service:
    """A service that runs, and the lines that it has written."""

    process: subprocess.Popen[str]
    lines: list[str] = field(default_factory=list)
    port: int = 0
    _news: threading.Condition = field(default_factory=threading.Condition)

    def read_lines(self) -> None:
        assert self.process.stderr
        for line in self.process.stderr:
            with self._news:
                self.lines.append(line)
                self._news.notify_all()

    def await_line(self, text: str, *, n_times: int = 1) -> str:
        with self._news:
            found = self._news.wait_for(lambda: sum(text in line for line in self.lines) >= n_times, GUARD_S)
            assert found, f"{text} in {self.lines}"
            return [line for line in self.lines if text in line][-1]

    def request(
        self, method: str, path: str, body: Any = None, headers: dict[str, str] | None = None
    ) -> tuple[int, Any]:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=GUARD_S)
        connection.request(method, path, body, headers or {})
        reply = connection.getresponse()
        content = reply.read()
        connection.close()
        return reply.status, json.loads(content)

    def predict(self, photo: bytes) -> tuple[int, Any]:
        return self.request("POST", "/predict", photo, {"content-type": "image/jpeg"})

    def connect(self) -> socket.socket:
        return socket.create_connection(("127.0.0.1", self.port), timeout=GUARD_S)

    def list_workers(self) -> list[int]:
        children = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children")
        found = [Path(path) for path in Path(f"/proc/{self.process.pid}/task").glob("*/children")]
        assert children.exists()
        return [int(pid) for path in found for pid in path.read_text().split()]


@contextlib.contextmanager
def start(run: Path, *flags: str) -> Iterator[Service]:
    command = [sys.executable, "-m", "pomona", "serve", str(run), "--port", "0", "--workers", "2", *flags]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    service = Service(process)
    reading = threading.Thread(target=service.read_lines)
    reading.start()
    try:
        service.port = int(service.await_line("ready: ").rpartition(":")[2])
        yield service
    finally:
        process.kill()
        process.wait()
        reading.join()
        assert process.stderr
        process.stderr.close()


@pytest.fixture(scope="module")
def service(promising: TrainResult) -> Iterator[Service]:
    flags = ("--max-photo-mb", "1", "--max-request-mb", "2", "--patience-s", "1")
    with start(promising.bundle.folder, *flags) as found:
        yield found


@pytest.fixture(scope="module")
def photos(promising: TrainResult) -> list[bytes]:
    folder = promising.bundle.folder.parent / "fruit"
    return [path.read_bytes() for path in sorted(folder.rglob("*.jpg"))[::9]]


def read_all(connection: socket.socket) -> bytes:
    parts = []
    with contextlib.suppress(ConnectionResetError):
        while part := connection.recv(65536):
            parts.append(part)
    return b"".join(parts)


# --- start and end ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("sign", [signal.SIGTERM, signal.SIGINT])
def test_it_ends_in_order(promising: TrainResult, photos: list[bytes], sign: signal.Signals) -> None:
    with start(promising.bundle.folder) as service:
        workers = service.list_workers()
        assert service.predict(photos[0])[0] == 200
        service.process.send_signal(sign)
        assert service.process.wait(GUARD_S) == 0
        service.await_line("ended")
        assert not any("Traceback" in line for line in service.lines)
        assert not [pid for pid in workers if Path(f"/proc/{pid}").exists()]


def test_it_needs_no_torch_and_no_outside(promising: TrainResult) -> None:
    script = (
        "import sys; from pomona.service import app, server, live, measures, patience; "
        "print([name for name in ('torch', 'sklearn', 'onnx', 'sqlalchemy', 'requests') if name in sys.modules])"
    )
    found = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"
    script = "import sys, pomona.service.decode_child; print('openvino' in sys.modules, 'fastapi' in sys.modules)"
    found = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "False False"


def run_once(*arguments: str) -> tuple[int, str]:
    command = [sys.executable, "-m", "pomona", "serve", *arguments]
    found = subprocess.run(command, capture_output=True, text=True, timeout=GUARD_S, check=False)
    return found.returncode, found.stderr


def test_a_port_in_use_is_one_line(service: Service, promising: TrainResult) -> None:
    code, said = run_once(str(promising.bundle.folder), "--port", str(service.port))
    assert code == 1
    assert said == f"error: cannot listen at 127.0.0.1, port {service.port}: it is in use: name another with --port\n"


def test_a_bundle_without_a_file_does_not_start(promising: TrainResult, tmp_path: Path) -> None:
    run = shutil.copytree(promising.bundle.folder, tmp_path / "run")
    (run / "model.onnx").unlink()
    code, said = run_once(str(run), "--port", "0")
    assert code == 1
    assert "model.onnx: wanted a file of this bundle" in said
    assert len(said.splitlines()) == 1


def test_teaching_needs_a_token(promising: TrainResult) -> None:
    code, said = run_once(str(promising.bundle.folder), "--teach", "--port", "0")
    assert code == 2
    assert "--token" in said


def test_others_may_read_with_a_warning(promising: TrainResult, photos: list[bytes]) -> None:
    with start(promising.bundle.folder, "--host", "0.0.0.0") as service:
        service.await_line("warning: others can reach this service")
        assert service.predict(photos[0])[0] == 200
        assert service.request("GET", "/health", headers={"host": "rebound.example"})[0] == 400


# --- clients ----------------------------------------------------------------------------------------------------------


def test_a_hundred_megabytes_are_refused_before_they_are_read(service: Service) -> None:
    with service.connect() as connection:
        connection.sendall(
            b"POST /predict HTTP/1.1\r\nhost: localhost\r\ncontent-type: image/jpeg\r\n"
            b"content-length: 100000000\r\n\r\n"
        )
        connection.sendall(bytes(1_000_000))
        reply = b""
        while b'"too_large"' not in reply and (more := connection.recv(65536)):
            reply += more
    assert reply.startswith(b"HTTP/1.1 413 ")
    assert b'"too_large"' in reply
    assert b"connection: close" in reply.lower()
    assert service.request("GET", "/health")[0] == 200


def test_a_client_that_sends_on_still_reads_why(service: Service) -> None:
    """Chunks without a length, more than are allowed: the reply is whole, not torn by the end of the connection."""
    with service.connect() as connection:
        head = b"POST /predict HTTP/1.1\r\nhost: localhost\r\ncontent-type: image/jpeg\r\n"
        head += b"transfer-encoding: chunked\r\n\r\n"
        connection.sendall(head)
        for _ in range(100):
            connection.sendall(b"186a0\r\n" + bytes(100_000) + b"\r\n")
        connection.sendall(b"0\r\n\r\n")
        reply = read_all(connection)
    assert reply.startswith(b"HTTP/1.1 413 ")
    assert reply.endswith(b"}}")


def test_a_slow_body_is_given_up(service: Service) -> None:
    with service.connect() as connection:
        connection.sendall(
            b"POST /predict HTTP/1.1\r\nhost: localhost\r\ncontent-type: image/jpeg\r\ncontent-length: 99\r\n\r\nx"
        )
        reply = read_all(connection)
    assert reply.startswith(b"HTTP/1.1 408 ")
    assert b'"too_slow"' in reply


def test_a_slow_head_is_given_up(service: Service) -> None:
    with service.connect() as silent, service.connect() as slow:
        slow.sendall(b"GET /health HTTP/1.1\r\nhost: local")
        assert service.request("GET", "/health")[0] == 200
        assert read_all(slow).startswith(b"HTTP/1.1 408 ")
        assert read_all(silent).startswith(b"HTTP/1.1 408 ")


def test_who_reads_nothing_is_cut_off(service: Service) -> None:
    """Closing in order would wait until the reply is read, and 800 such clients would be all there may be."""
    files = Path(f"/proc/{service.process.pid}/fd")

    def count_sockets() -> int:
        return sum(str(path.readlink()).startswith("socket:") for path in files.iterdir() if path.is_symlink())

    before = count_sockets()
    with socket.socket() as connection:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        connection.connect(("127.0.0.1", service.port))
        connection.sendall(b"GET /page/jpeg.js HTTP/1.1\r\nhost: localhost\r\n\r\n" * 500)
        service.await_line("GET /page/{name}", n_times=100)
        assert count_sockets() > before
        until_s = time.monotonic() + 20
        while count_sockets() > before and time.monotonic() < until_s:
            time.sleep(0.1)  # nothing tells the client: what the system still holds for it would come first
        assert count_sockets() <= before
    assert service.request("GET", "/health")[0] == 200


def test_a_health_check_may_ask_for_the_head_alone(service: Service) -> None:
    connection = http.client.HTTPConnection("127.0.0.1", service.port, timeout=GUARD_S)
    for _ in range(2):  # on one connection: nothing of a body may be left on it
        connection.request("HEAD", "/health")
        reply = connection.getresponse()
        assert (reply.status, reply.read()) == (200, b"")
    connection.close()
    assert " 200 HEAD /health " in service.await_line("HEAD /health")


def test_a_head_without_end_is_refused(service: Service) -> None:
    with service.connect() as connection:
        connection.sendall(b"GET /health HTTP/1.1\r\nhost: localhost\r\nx: " + b"y" * 60_000)
        assert read_all(connection).startswith(b"HTTP/1.1 400 ")


def test_no_request_at_all_is_refused(service: Service) -> None:
    with service.connect() as connection:
        connection.sendall(b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03 no http\r\n\r\n")
        assert read_all(connection).startswith(b"HTTP/1.1 400 ")


def test_who_hangs_up_leaves_nothing_behind(service: Service, photos: list[bytes]) -> None:
    body = b"".join(
        b'--z\r\ncontent-disposition: form-data; name="photo"; filename="a"\r\n\r\n' + photos[0] + b"\r\n"
        for _ in range(60)
    )
    body += b"--z--\r\n"
    head = (
        "POST /predict HTTP/1.1\r\nhost: localhost\r\ncontent-type: multipart/form-data; boundary=z\r\n"
        f"content-length: {len(body)}\r\n\r\n"
    ).encode()
    for cut in (0, 10, len(head) + 500, len(head + body)):
        with service.connect() as connection:
            connection.sendall((head + body)[:cut])
    service.await_line("499 POST /predict", n_times=2)
    status, found = service.predict(photos[0])
    assert (status, len(found["predictions"])) == (200, 1)


def test_one_connection_serves_many_requests(service: Service, photos: list[bytes]) -> None:
    connection = http.client.HTTPConnection("127.0.0.1", service.port, timeout=GUARD_S)
    for content, status in ((photos[0], 200), (b"no photo", 422), (b"", 400), (photos[1], 200)):
        connection.request("POST", "/predict", content, {"content-type": "image/jpeg"})
        reply = connection.getresponse()
        reply.read()
        assert reply.status == status
    connection.close()


# --- kills ------------------------------------------------------------------------------------------------------------


def test_killed_workers_make_no_answer_wrong(service: Service, promising: TrainResult, photos: list[bytes]) -> None:
    wanted = [one.label for one in promising.bundle.predict(photos)]
    assert len(set(wanted)) > 1
    stop = threading.Event()

    def ask(number: int) -> int:
        n_asked = 0
        while not stop.is_set():
            i = (number + n_asked) % len(photos)
            status, found = service.predict(photos[i])
            assert (status, found["predictions"][0]["label"]) == (200, wanted[i])
            n_asked += 1
        return n_asked

    with ThreadPoolExecutor(4) as pool:
        asking = [pool.submit(ask, number) for number in range(4)]
        try:
            killed: set[int] = set()
            ends_s = time.monotonic() + GUARD_S
            while len(killed) < 8 and time.monotonic() < ends_s:
                for pid in set(service.list_workers()) - killed:
                    with contextlib.suppress(ProcessLookupError):
                        os.kill(pid, signal.SIGKILL)
                    killed.add(pid)
                    break
                for photo in photos[:3]:
                    service.predict(photo)
        finally:
            stop.set()
        assert all(one.result() > 0 for one in asking)
    assert len(killed) >= 8


def test_a_killed_service_leaves_no_process_and_starts_again(promising: TrainResult, photos: list[bytes]) -> None:
    with start(promising.bundle.folder) as service:
        assert service.predict(photos[0])[0] == 200
        workers = service.list_workers()
        assert workers
        service.process.kill()
        service.process.wait()
        ends_s = time.monotonic() + GUARD_S
        while any(is_alive(pid) for pid in workers):
            assert time.monotonic() < ends_s
    with start(promising.bundle.folder) as service:
        assert service.predict(photos[0])[0] == 200


def is_alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


# --- another bundle ---------------------------------------------------------------------------------------------------


def test_it_follows_its_folder_and_keeps_what_works(
    promising: TrainResult, trained: TrainResult, tmp_path: Path
) -> None:
    run = shutil.copytree(promising.bundle.folder, tmp_path / "run")
    photo = io.BytesIO()
    Image.new("RGB", (40, 40), "orange").save(photo, "PNG")
    with start(run) as service:

        def put(source: Path, *, spoil: bool = False) -> None:
            for path in source.iterdir():
                if path.is_file() and path.name != "pomona.json":
                    shutil.copy(path, run / f".{path.name}")
                    (run / f".{path.name}").replace(run / path.name)
            if spoil:
                (run / "model.onnx").write_bytes((run / "model.onnx").read_bytes()[:-1])
            shutil.copy(source / "pomona.json", run / ".pomona.json")
            (run / ".pomona.json").replace(run / "pomona.json")

        put(trained.bundle.folder, spoil=True)
        assert "model.onnx is damaged" in service.await_line("refused, the old one goes on")
        _, found = service.predict(photo.getvalue())
        assert found["version"] == 1
        assert len(service.request("GET", "/model")[1]["classes"]) == len(promising.bundle.tree)
        put(trained.bundle.folder)
        service.await_line("swapped: version 2")
        _, found = service.predict(photo.getvalue())
        (wanted,) = load_bundle(trained.bundle.folder).predict([photo.getvalue()])
        assert (found["version"], found["predictions"][0]["score"]) == (2, pytest.approx(wanted.score, abs=1e-6))
        put(promising.bundle.folder)
        service.await_line("swapped: version 3")
        assert len(service.request("GET", "/model")[1]["classes"]) == len(promising.bundle.tree)


# --- by its own description -------------------------------------------------------------------------------------------


def test_it_does_as_its_description_says(service: Service) -> None:
    """Requests made up from the description, sound and broken ones: each reply is one that the description names."""
    schemathesis = pytest.importorskip("schemathesis", reason="schemathesis is not installed")
    from hypothesis import HealthCheck, given, settings
    from hypothesis.errors import Unsatisfiable
    from schemathesis.checks import not_a_server_error
    from schemathesis.specs.openapi.checks import response_schema_conformance, status_code_conformance

    schema = schemathesis.openapi.from_dict(service.request("GET", "/openapi.json")[1])
    n_calls: dict[str, int] = {}
    for found in schema.get_all_operations():
        operation = found.ok()
        for mode in schemathesis.GenerationMode:

            @given(operation.as_strategy(generation_mode=mode))
            @settings(
                max_examples=8, deadline=None, derandomize=True, database=None, suppress_health_check=list(HealthCheck)
            )
            def check(case: Any) -> None:
                n_calls[operation.label] = n_calls.get(operation.label, 0) + 1  # noqa: B023
                case.call_and_validate(
                    base_url=f"http://127.0.0.1:{service.port}",
                    checks=[not_a_server_error, status_code_conformance, response_schema_conformance],
                )

            try:
                check()
            except Unsatisfiable:  # there is nothing to get wrong
                assert operation.method == "get"
                continue
    assert n_calls["POST /predict"] >= 8
    assert n_calls["POST /v2/models/{name}/infer"] >= 8
