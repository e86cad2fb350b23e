"""Teaching over HTTP: only with the token, one thing at a time, and nobody is left without an answer meanwhile."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

import httpx
import pytest

from pomona.bundle import load_bundle
from pomona.files import cache_folder, hash_bytes, hash_file
from pomona.inbox import find_inbox_folder, open_inbox
from pomona.service import teacher as teacher_module
from pomona.service.decode_worker import DecodeLimits
from pomona.service.faults import RequestError
from pomona.service.lanes import Lanes
from pomona.service.live import LiveBundle
from pomona.teaching import add_class
from pomona.versions import list_versions

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from pomona.training import TrainResult

TOKEN = "-".join(["token", "of", "the", "shop"])  # no secret: of a service that ends with its test
POMONA = [sys.executable, "-m", "pomona"]


class Service:
    """A service of its own process."""

    def __init__(self, run: Path, cache: Path, *flags: str) -> None:
        self.run = run
        environment = {**os.environ, "POMONA_CACHE": str(cache)}
        command = [*POMONA, "serve", str(run), "--port", "0", "--teach", "--token", TOKEN, *flags]
        self.process = subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True)
        self.lines: list[str] = []
        for line in self.process.stderr:
            self.lines.append(line)
            if found := re.search(r"ready: .* at (http://\S+)", line):
                break
        else:
            raise AssertionError("".join(self.lines))
        self.reader = threading.Thread(target=lambda: self.lines.extend(self.process.stderr), daemon=True)
        self.reader.start()
        self.open = httpx.Client(base_url=found[1], timeout=60)
        self.client = httpx.Client(base_url=found[1], timeout=60, headers={"Authorization": f"Bearer {TOKEN}"})

    def teach(self, photo: Path | bytes, label: str) -> httpx.Response:
        content = photo if isinstance(photo, bytes) else photo.read_bytes()
        headers = {"Content-Type": "application/octet-stream"}
        return self.client.post("/teach", params={"label": label}, content=content, headers=headers)

    def ask(self, method: str, path: str, status: int = 200) -> Any:
        reply = self.client.request(method, path)
        assert reply.status_code == status, (reply.status_code, reply.text, self.lines[-5:])
        return reply.json()

    def answer(self, photo: Path) -> dict[str, Any]:
        reply = self.open.post("/predict", content=photo.read_bytes(), headers={"Content-Type": "image/jpeg"})
        assert reply.status_code == 200, reply.text
        return reply.json()

    def close(self) -> None:
        self.open.close()
        self.client.close()
        self.process.terminate()
        try:
            self.process.wait(timeout=30)
        finally:
            self.process.kill()
            self.reader.join(timeout=30)
            self.process.stderr.close()


@pytest.fixture
def start(promising: TrainResult, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Service]]:
    """What starts a service on a copy of a run, with a cache of its own."""
    shutil.copytree(cache_folder() / "learnt", tmp_path / "cache" / "learnt")
    monkeypatch.setenv("POMONA_CACHE", str(tmp_path / "cache"))
    run = Path(shutil.copytree(promising.bundle.folder, tmp_path / "run"))
    started: list[Service] = []

    def begin(*flags: str) -> Service:
        started.append(Service(run, tmp_path / "cache", *flags))
        return started[-1]

    yield begin
    for service in started:
        service.close()


@pytest.fixture(scope="module")
def service(promising: TrainResult, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """One service for tests that teach it nothing."""
    folder = tmp_path_factory.mktemp("service")
    shutil.copytree(cache_folder() / "learnt", folder / "cache" / "learnt")
    run = Path(shutil.copytree(promising.bundle.folder, folder / "run"))
    started = Service(run, folder / "cache", "--max-photo-mb", "1")
    yield started
    started.close()


@pytest.fixture(scope="session")
def grapes(strangers: Path) -> list[Path]:
    return sorted(strangers.rglob("Grapes_*.jpg"))


def test_a_shop_teaches_a_class_and_goes_back(start: Callable[..., Service], grapes: list[Path]) -> None:
    service = start()
    before = service.answer(grapes[10])
    assert before["version"] == 1
    assert before["predictions"][0]["label"] != "Grapes"
    for number, photo in enumerate(grapes[:8], start=1):
        reply = service.teach(photo, "Berry/Grapes")
        assert reply.status_code == 201, reply.text
        assert reply.json() == {
            "photo": hash_file(photo),
            "label": "Berry/Grapes",
            "state": "waiting",
            "n_waiting": number,
        }
    state = service.ask("GET", "/teach")
    assert [one["photo"] for one in state["waiting"]] == [hash_file(photo) for photo in grapes[:8]]
    assert state["proposal"] is None
    assert [one["action"] for one in state["versions"]] == ["trained"]
    proposal = service.ask("POST", "/teach/proposal")
    assert proposal["n_photos"] == 8
    assert proposal["labels"] == {"Grapes": 8}
    assert proposal["new_classes"] == ["Grapes"]
    assert proposal["before"]["n"] == proposal["after"]["n"] > 10
    assert "kept apart when it was trained" in proposal["basis"]
    assert proposal["seconds"] > 0
    assert service.ask("GET", "/teach")["proposal"] == proposal
    assert service.answer(grapes[10])["version"] == 1
    assert service.ask("POST", f"/teach/proposal/{proposal['id']}/confirm") == {"version": 2}
    after = service.answer(grapes[10])
    assert after["version"] == 2
    assert after["predictions"][0]["label"] == "Grapes"
    state = service.ask("GET", "/teach")
    assert (state["waiting"], state["proposal"]) == ([], None)
    versions = service.ask("GET", "/versions")
    assert [(one["number"], one["is_current"]) for one in versions] == [(1, False), (2, True)]
    assert set(versions[1]) == {"number", "created", "action", "n_classes", "n_photos", "is_current"}
    assert service.ask("POST", "/versions/1/restore") == {"version": 1}
    assert service.answer(grapes[10]) == before
    assert len(service.ask("GET", "/teach")["waiting"]) == 8
    assert service.ask("POST", "/versions/2/restore") == {"version": 2}
    assert service.answer(grapes[10]) == after
    assert service.ask("GET", "/teach")["waiting"] == []
    log = "".join(service.lines)
    assert TOKEN not in log
    assert "Grapes" not in log
    assert str(service.run.parent) not in service.client.get("/teach").text


def test_nobody_is_left_without_an_answer_while_it_is_taught(start: Callable[..., Service], grapes: list[Path]) -> None:
    service = start()
    for photo in grapes[:4]:
        service.teach(photo, "Berry/Grapes")
    ended = threading.Event()
    replies: list[tuple[int, int]] = []

    def ask_on() -> None:
        with httpx.Client(base_url=service.open.base_url, timeout=60) as client:
            while not ended.is_set():
                reply = client.post("/predict", content=grapes[9].read_bytes(), headers={"Content-Type": "image/jpeg"})
                replies.append((reply.status_code, reply.json().get("version", 0)))

    threads = [threading.Thread(target=ask_on) for _ in range(2)]
    for thread in threads:
        thread.start()
    try:
        proposal = service.ask("POST", "/teach/proposal")
        service.ask("POST", f"/teach/proposal/{proposal['id']}/confirm")
        service.ask("POST", "/versions/1/restore")
    finally:
        ended.set()
        for thread in threads:
            thread.join(timeout=60)
    assert {status for status, _ in replies} == {200}
    assert {version for _, version in replies} == {1, 2}


def test_without_the_token_nothing_is_told_and_nothing_changes(service: Service, grapes: list[Path]) -> None:
    waiting = service.ask("GET", "/teach")["waiting"]
    asked = [
        ("GET", "/teach"),
        ("POST", "/teach"),
        ("POST", "/teach?label=Grapes"),
        ("DELETE", f"/teach/{hash_file(grapes[0])}"),
        ("POST", "/teach/proposal"),
        ("POST", "/teach/proposal/0123456789abcdef/confirm"),
        ("DELETE", "/teach/proposal/0123456789abcdef"),
        ("GET", "/versions"),
        ("POST", "/versions/1/restore"),
    ]
    for wrong in ({}, {"Authorization": f"Bearer {TOKEN}x"}, {"Authorization": TOKEN}, {"Authorization": "Bearer é"}):
        headers = {name: value.encode() for name, value in wrong.items()}
        for method, path in asked:
            content = grapes[0].read_bytes() if method == "POST" else None
            reply = service.open.request(method, path, headers=headers, content=content)
            assert (reply.status_code, reply.json()["error"]["code"]) == (401, "token"), (method, path, reply.text)
    assert service.ask("GET", "/teach")["waiting"] == waiting


def test_without_a_token_there_is_no_teaching(promising: TrainResult) -> None:
    environment = {name: value for name, value in os.environ.items() if name != "POMONA_TOKEN"}
    command = [*POMONA, "serve", str(promising.bundle.folder), "--port", "0", "--teach"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=60)
    assert (done.returncode, "wanted a token too" in done.stderr) == (2, True), done.stderr


def test_bad_input_is_named_and_the_service_goes_on(
    service: Service, grapes: list[Path], promising: TrainResult
) -> None:
    learnt = next(photo for photo in promising.dataset.photos if photo.split == "train")
    own = promising.dataset.tree.names[learnt.label]
    photo = grapes[0].read_bytes()
    for content, label, status, said in (
        (b"", "Grapes", 400, "no body"),
        (b"plain text", "Grapes", 422, "cannot be used"),
        (photo[:300], "Grapes", 422, "cannot be used"),
        (b"\xff\xd8\xff" + bytes(1_100_000), "Grapes", 413, "bytes"),
        (photo, "", 422, "label"),
        (photo, "a" * 1001, 422, "label"),
        (photo, "a\x00b", 422, "control characters"),
        (photo, "../../etc", 422, "the part '..'"),
        (photo, "Citrus", 422, "which is a group of classes"),
        (learnt.path.read_bytes(), "Berry/Grapes", 422, "this photo was learnt as"),
    ):
        reply = service.teach(content, label)
        assert reply.status_code == status, (label, reply.text)
        assert said in reply.json()["error"]["message"], reply.text
    reply = service.teach(learnt.path, own)
    assert (reply.status_code, reply.json()["state"], reply.json()["n_waiting"]) == (201, "taught", 0)
    for method, path, status, said in (
        ("POST", "/teach/proposal", 422, "got none"),
        ("POST", "/teach/proposal/0123456789abcdef/confirm", 404, "no such proposal"),
        ("DELETE", "/teach/proposal/x", 404, "no such proposal"),
        ("DELETE", f"/teach/{'0' * 64}", 404, "no such photo"),
        ("DELETE", "/teach/../../etc/passwd", 404, ""),
        ("DELETE", "/teach/xyz", 422, "sha256"),
        ("DELETE", f"/teach/{learnt.sha256}", 422, "was learnt as"),
        ("POST", "/versions/7/restore", 404, "no such version"),
        ("POST", "/versions/-1/restore", 422, "number"),
        ("POST", "/versions/one/restore", 422, "number"),
    ):
        assert said in service.ask(method, path, status)["error"]["message"]
    assert service.answer(grapes[0])["version"] == 1
    assert not list(find_inbox_folder(service.run).rglob("*passwd*"))


def test_taking_back_ends_a_proposal_that_it_is_in(start: Callable[..., Service], grapes: list[Path]) -> None:
    service = start()
    for photo in grapes[:3]:
        service.teach(photo, "Grapes")
    first = service.ask("POST", "/teach/proposal")
    assert service.ask("DELETE", f"/teach/{hash_file(grapes[0])}") == {"photo": hash_file(grapes[0]), "n_waiting": 2}
    service.ask("POST", f"/teach/proposal/{first['id']}/confirm", 404)
    second = service.ask("POST", "/teach/proposal")
    assert second["n_photos"] == 2
    assert service.teach(grapes[1], "Plum").json()["label"] == "Plum"
    service.ask("POST", f"/teach/proposal/{second['id']}/confirm", 404)
    third = service.ask("POST", "/teach/proposal")
    assert third["labels"] == {"Grapes": 1, "Plum": 1}
    assert service.teach(grapes[4], "Plum").status_code == 201
    assert service.ask("GET", "/teach")["proposal"]["id"] == third["id"]
    assert service.ask("DELETE", f"/teach/proposal/{third['id']}") == {"dropped": True}
    service.ask("POST", f"/teach/proposal/{third['id']}/confirm", 404)
    assert len(service.ask("GET", "/teach")["waiting"]) == 3


def test_labels_are_those_that_people_use(service: Service, grapes: list[Path]) -> None:
    classes = service.open.get("/model").json()["classes"]
    one = next(entry for entry in classes if entry["name_zh"])
    for label in (one["name_zh"], one["name_en"].upper(), one["label"].lower(), "/".join(one["path"])):
        assert service.teach(grapes[0], label).json()["label"] == "/".join(one["path"])
    assert len(service.ask("GET", "/teach")["waiting"]) == 1


def test_what_another_process_taught_is_taken_note_of(start: Callable[..., Service], grapes: list[Path]) -> None:
    service = start()
    service.teach(grapes[0], "Berry/Grapes")
    service.teach(grapes[1], "Berry/Grapes")
    proposal = service.ask("POST", "/teach/proposal")
    add_class(service.run, "Berry/Grapes", grapes[:1])
    service.ask("POST", f"/teach/proposal/{proposal['id']}/confirm", 404)
    assert [one.number for one in list_versions(service.run)] == [1, 2]
    assert [one["photo"] for one in service.ask("GET", "/teach")["waiting"]] == [hash_file(grapes[1])]
    assert service.answer(grapes[5])["version"] == 2
    proposal = service.ask("POST", "/teach/proposal")
    assert (proposal["n_photos"], proposal["new_classes"]) == (1, [])
    assert service.ask("POST", f"/teach/proposal/{proposal['id']}/confirm") == {"version": 3}


def test_a_killed_service_comes_back_with_all_that_it_had(start: Callable[..., Service], grapes: list[Path]) -> None:
    service = start()
    for photo in grapes[:2]:
        service.teach(photo, "Grapes")
    proposal = service.ask("POST", "/teach/proposal")
    service.ask("POST", f"/teach/proposal/{proposal['id']}/confirm")
    service.teach(grapes[2], "Grapes")
    service.process.kill()
    service.process.wait(timeout=30)
    again = start()
    assert again.open.get("/health").json()["version"] == 2
    state = again.ask("GET", "/teach")
    assert [one["photo"] for one in state["waiting"]] == [hash_file(grapes[2])]
    assert [one["is_current"] for one in state["versions"]] == [False, True]
    with open_inbox(service.run, create=False) as inbox:
        assert inbox.list_lost() == []
        assert len(inbox.list_photos("taught")) == 2


def test_the_inbox_may_be_in_postgresql(
    start: Callable[..., Service], grapes: list[Path], postgres: Callable[[], str]
) -> None:
    url = postgres()
    service = start("--inbox", url)
    assert service.teach(grapes[0], "Grapes").status_code == 201
    proposal = service.ask("POST", "/teach/proposal")
    assert service.ask("POST", f"/teach/proposal/{proposal['id']}/confirm") == {"version": 2}
    photos = find_inbox_folder(service.run) / ".photos"
    with open_inbox(url, photos=photos) as inbox:
        assert [(one.sha256, one.version) for one in inbox.list_photos("taught")] == [(hash_file(grapes[0]), 2)]
    assert (photos / f"{hash_bytes(grapes[0].read_bytes())}.jpg").is_file()
    assert load_bundle(service.run).tree.index_of("Grapes") is not None


def test_a_proposal_after_training_anew_waits_for_what_it_needs_and_holds_nobody_up(
    promising: TrainResult, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, grapes: list[Path]
) -> None:
    """The photos kept apart are computed anew in a thread that needs its turn while the proposal waits for it."""
    shutil.copytree(cache_folder() / "learnt", tmp_path / "cache" / "learnt")
    monkeypatch.setenv("POMONA_CACHE", str(tmp_path / "cache"))
    run = Path(shutil.copytree(promising.bundle.folder, tmp_path / "run"))
    lanes = Lanes(1, DecodeLimits())
    lanes.start()
    entered, may_go = threading.Event(), threading.Event()
    real = teacher_module.load_held_out

    def hold(bundle: Any) -> Any:
        entered.set()
        assert may_go.wait(60)
        return real(bundle)

    monkeypatch.setattr(teacher_module, "load_held_out", hold)
    try:
        live = LiveBundle(load_bundle(run, n_workers=1), lanes)
        live.open()
        teacher = teacher_module.Teacher(live)
        teacher.start()
        teacher.add(grapes[0].read_bytes(), "Berry/Grapes")
        assert entered.wait(60)
        with ThreadPoolExecutor(2) as pool:
            proposing = pool.submit(teacher.propose)
            # While it waits for the photos kept apart, others send theirs, and a second proposal is refused.
            added = pool.submit(teacher.add, grapes[1].read_bytes(), "Berry/Grapes")
            try:
                assert added.result(timeout=20)[1] == 2
                assert not proposing.done()
                with pytest.raises(RequestError, match="try again"):
                    teacher.propose()
            finally:
                may_go.set()
            assert "kept apart when it was trained" in proposing.result(timeout=60).basis
        # Another network, as after training anew: what the first one computed is forgotten, the new one is waited for.
        entered.clear()
        monkeypatch.setattr(teacher_module, "_name_network", lambda _: "another")
        teacher._checksum = ""
        with ThreadPoolExecutor(1) as pool:
            proposing = pool.submit(teacher.propose)
            assert "kept apart when it was trained" in proposing.result(timeout=60).basis
        assert entered.is_set()
        teacher.inbox.close()
    finally:
        may_go.set()
        lanes.close()
