"""How the service holds up: rate beside the bare engine, waiting times, overload, kills, start.

    python bench/serve.py RUN PHOTOS [--seconds 20] [--overload-minutes 10]

PHOTOS is a folder of photos. Client and service share the machine, so that the client's own time is measured too: what
a client on another machine would leave to the service is in the figures as "without the client".
"""

from __future__ import annotations

import argparse
import asyncio
import collections
import http.client
import json
import os
import random
import signal
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from process import POMONA, tabulate, write_results

_TICKS = os.sysconf("SC_CLK_TCK")
_BARE = """
import json, sys, time, resource
from pathlib import Path
from pomona.bundle import load_bundle
bundle, seconds = load_bundle(sys.argv[1]), float(sys.argv[3])
photos = [path.read_bytes() for path in sorted(Path(sys.argv[2]).rglob("*.jpg"))]
list(bundle.predict(photos[:16]))
n, began, cpu = 0, time.perf_counter(), time.process_time()
while time.perf_counter() - began < seconds:
    n += len(list(bundle.predict(photos)))
took = time.perf_counter() - began
print(json.dumps({"rate": n / took, "cpu_ms": 1000 * (time.process_time() - cpu) / n}))
"""
_IMPORTS = (
    "pomona.service.app",
    "pomona.bundle",
    "pomona.engine",
    "pomona.service.decode_child",
    "fastapi",
    "openvino",
)


@dataclass
class Tally:
    """What clients saw: seconds of each reply by status, answers by photo."""

    seconds: dict[int, list[float]] = field(default_factory=lambda: collections.defaultdict(list))
    n_wrong: int = 0
    n_lost: int = 0
    wall_s: float = 0.0
    client_cpu_s: float = 0.0

    def summarise(self) -> dict:
        """Figures of a run."""
        answered = np.array(self.seconds.get(200, [])) * 1000
        counts = {str(status): len(found) for status, found in sorted(self.seconds.items())}
        n = len(answered)
        return {
            "n_by_status": counts,
            "rate": n / self.wall_s,
            "p50_ms": float(np.percentile(answered, 50)) if n else None,
            "p99_ms": float(np.percentile(answered, 99)) if n else None,
            "client_cores": self.client_cpu_s / self.wall_s,
            "n_wrong": self.n_wrong,
            "n_lost": self.n_lost,
        }


class Client(asyncio.Protocol):
    """One connection: a request, its reply, the next request. No parser but the two numbers that are needed."""

    def __init__(self, load: Load) -> None:
        self.load, self.buffer, self.photo, self.began_s = load, bytearray(), 0, 0.0
        self.transport: asyncio.Transport | None = None
        self.wanted = -1

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Begin."""
        self.transport = transport
        self.ask()

    def ask(self) -> None:
        """Send the next request."""
        if self.load.is_over():
            self.transport.close()
            return
        self.photo = self.load.draw()
        self.buffer.clear()
        self.wanted, self.began_s = -1, time.perf_counter()
        self.transport.write(self.load.requests[self.photo])

    def data_received(self, data: bytes) -> None:
        """Take a part of the reply."""
        self.buffer += data
        if self.wanted < 0:
            end = self.buffer.find(b"\r\n\r\n")
            if end < 0:
                return
            at = self.buffer.find(b"content-length: ") + 16
            self.wanted = end + 4 + int(self.buffer[at : self.buffer.find(b"\r\n", at)])
        if len(self.buffer) < self.wanted:
            return
        status = int(self.buffer[9:12])
        tally = self.load.tally
        tally.seconds[status].append(time.perf_counter() - self.began_s)
        if status == 200 and self.load.answers and self.load.answers[self.photo] not in self.buffer:
            tally.n_wrong += 1
        if self.load.rest_s and status != 200:
            asyncio.get_running_loop().call_later(self.load.rest_s, self.ask)
        else:
            self.ask()

    def connection_lost(self, _: Exception | None) -> None:
        """Count what the service closed."""
        if not self.load.is_over():
            self.load.tally.n_lost += 1
        self.load.n_open -= 1


class Load:
    """Clients that ask as fast as they are answered, for some time."""

    def __init__(self, port: int, photos: list[bytes], *, seconds: float, rest_s: float = 0.0) -> None:
        head = f"POST /predict?topk=1 HTTP/1.1\r\nhost: 127.0.0.1:{port}\r\ncontent-type: image/jpeg\r\n"
        self.requests = [f"{head}content-length: {len(one)}\r\n\r\n".encode() + one for one in photos]
        self.port, self.tally, self.seconds, self.rest_s = port, Tally(), seconds, rest_s
        self.answers: list[bytes] | None = None
        self.ends_s, self.n_open, self.random = 0.0, 0, random.Random(0)  # noqa: S311

    def draw(self) -> int:
        """The next photo."""
        return self.random.randrange(len(self.requests))

    def is_over(self) -> bool:
        """Whether its time is up."""
        return time.perf_counter() > self.ends_s

    async def run(self, n_clients: int) -> Tally:
        """Ask until then."""
        loop, cpu_s, began_s = asyncio.get_running_loop(), time.process_time(), time.perf_counter()
        self.ends_s = began_s + self.seconds
        for _ in range(n_clients):
            self.n_open += 1
            try:
                await loop.create_connection(lambda: Client(self), "127.0.0.1", self.port)
            except OSError:
                self.n_open -= 1
                self.tally.n_lost += 1
        while self.n_open and time.perf_counter() < self.ends_s + 10:
            await asyncio.sleep(0.02)
        self.tally.wall_s = time.perf_counter() - began_s
        self.tally.client_cpu_s = time.process_time() - cpu_s
        return self.tally


class Service:
    """A service as a process of its own."""

    def __init__(self, run: Path, *flags: str) -> None:
        began_s = time.perf_counter()
        command = [*POMONA, "serve", str(run), "--port", "0", *flags]
        self.process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
        while "ready: " not in (line := self.process.stderr.readline()):
            if not line:
                sys.exit("the service did not start")
        self.ready_s = time.perf_counter() - began_s
        self.port = int(line.rsplit(":", 1)[1])
        self.drain = subprocess.Popen(["cat"], stdin=self.process.stderr, stdout=subprocess.DEVNULL)

    def get(self, path: str) -> tuple[int, bytes]:
        """Status and body of a page."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=10)
        connection.request("GET", path)
        reply = connection.getresponse()
        return reply.status, reply.read()

    def processes(self) -> list[int]:
        """Those that decode."""
        found = subprocess.run(["pgrep", "-P", str(self.process.pid)], capture_output=True, text=True, check=False)
        return [int(pid) for pid in found.stdout.split()]

    def measure(self) -> tuple[float, float]:
        """Seconds of processor time, and memory in MB, of all its processes."""
        cpu_s = memory_mb = 0.0
        for pid in (self.process.pid, *self.processes()):
            try:
                fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
                cpu_s += (int(fields[11]) + int(fields[12])) / _TICKS
                memory_mb += int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGESIZE") / 1e6
            except OSError:
                continue
        return cpu_s, memory_mb

    def stop(self) -> float:
        """Seconds that a good end takes."""
        began_s = time.perf_counter()
        self.process.send_signal(signal.SIGTERM)
        self.process.wait(30)
        self.drain.kill()
        return time.perf_counter() - began_s


def measure_bare(run: Path, photos: Path, seconds: float) -> dict:
    command = [sys.executable, "-c", _BARE, str(run), str(photos), str(seconds)]
    return json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def load(service: Service, photos: list[bytes], n_clients: int, seconds: float, **options: float) -> dict:
    before_s, _ = service.measure()
    found = asyncio.run(Load(service.port, photos, seconds=seconds, **options).run(n_clients))
    after_s, memory_mb = service.measure()
    n = max(1, len(found.seconds.get(200, [])))
    return {**found.summarise(), "service_cpu_ms": 1000 * (after_s - before_s) / n, "memory_mb": memory_mb}


def learn_answers(service: Service, photos: list[bytes]) -> list[bytes]:
    """What the service says of each photo alone, cut to label and score."""
    answers = []
    for photo in photos:
        connection = http.client.HTTPConnection("127.0.0.1", service.port, timeout=10)
        connection.request("POST", "/predict?topk=1", photo, {"content-type": "image/jpeg"})
        said = json.loads(connection.getresponse().read())["predictions"][0]
        answers.append(
            json.dumps({"label": said["label"], "score": said["score"]}, separators=(",", ":"))[1:-1].encode()
        )
    return answers


async def kill_decoders(service: Service, photos: list[bytes], seconds: float, answers: list[bytes]) -> dict:
    """Kill a process that decodes every half second under load."""
    run = Load(service.port, photos, seconds=seconds)
    run.answers = answers
    loading = asyncio.ensure_future(run.run(8))
    n_killed = 0
    while not loading.done():
        await asyncio.sleep(0.5)
        alive = service.processes()
        if alive and not run.is_over():
            os.kill(random.choice(alive), signal.SIGKILL)  # noqa: S311
            n_killed += 1
    return {**loading.result().summarise(), "n_killed": n_killed}


def measure_restart(run: Path, photos: list[bytes]) -> dict:
    """Kill the service under load, start it again, and see that nothing it started is left."""
    service = Service(run)
    children = service.processes()

    async def kill() -> None:
        loading = asyncio.ensure_future(Load(service.port, photos, seconds=2).run(8))
        await asyncio.sleep(1)
        service.process.kill()
        await loading

    asyncio.run(kill())
    service.process.wait()
    service.drain.kill()
    again = Service(run)
    status, _ = again.get("/health")
    left = [pid for pid in children if Path(f"/proc/{pid}").exists()]
    again.stop()
    return {"ready_s": again.ready_s, "health": status, "n_left_over": len(left)}


def measure_imports() -> dict[str, float]:
    """Seconds that importing takes in a new process, the least of three."""

    def once(module: str) -> float:
        began_s = time.perf_counter()
        subprocess.run([sys.executable, "-c", f"import {module}"], check=True)
        return time.perf_counter() - began_s

    return {module: min(once(module) for _ in range(3)) for module in _IMPORTS}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("photos", type=Path)
    parser.add_argument("--seconds", type=float, default=20.0, help="of each load")
    parser.add_argument("--overload-minutes", type=float, default=10.0)
    options = parser.parse_args()
    photos = [path.read_bytes() for path in sorted(options.photos.rglob("*.jpg"))]

    starts = []
    for _ in range(3):
        service = Service(options.run)
        starts.append(service.ready_s)
        service.stop()
    service = Service(options.run)
    time.sleep(2)  # until it is ready to say why, too
    result: dict = {"start_s": starts, "imports_s": measure_imports(), "load": {}}
    bare = [measure_bare(options.run, options.photos, options.seconds / 2)]
    for n_clients in (1, 8, 64):
        result["load"][n_clients] = load(service, photos, n_clients, options.seconds)
        bare.append(measure_bare(options.run, options.photos, options.seconds / 2))
    result["bare"] = bare
    rate = float(np.median([one["rate"] for one in bare]))
    result["ratio"] = {n: found["rate"] / rate for n, found in result["load"].items()}
    n_cores = len(os.sched_getaffinity(0))
    result["ratio_without_client"] = {
        n: found["rate"] / rate * n_cores / (n_cores - found["client_cores"]) for n, found in result["load"].items()
    }
    answers = learn_answers(service, photos)
    result["kill_decoder"] = asyncio.run(kill_decoders(service, photos, options.seconds, answers))
    result["memory_mb"] = []
    slices = max(2, int(options.overload_minutes * 60 / 15))
    overload = []
    for _ in range(slices):
        overload.append(load(service, photos, 320, options.overload_minutes * 60 / slices, rest_s=0.3))
        result["memory_mb"].append(overload[-1]["memory_mb"])
    result["overload"] = overload
    result["stop_s"] = service.stop()
    result["restart"] = measure_restart(options.run, photos)
    write_results("serve", result)
    report(result)


def write_load(result: dict, n_clients: int) -> str:
    """Figures of one load in a line."""
    found, alone = result["load"][n_clients], result["ratio_without_client"][n_clients]
    ratio = f"{found['rate']:.0f}/s, {result['ratio'][n_clients]:.2f}; without the client {alone:.2f}"
    return f"{ratio}; p50 {found['p50_ms']:.0f} ms, p99 {found['p99_ms']:.0f} ms"


def report(result: dict) -> None:
    at_64, over = result["load"][64], result["overload"]
    refused = sum(one["n_by_status"].get("429", 0) for one in over)
    taken = sum(one["n_by_status"].get("200", 0) for one in over)
    other = sum(n for one in over for status, n in one["n_by_status"].items() if status not in {"200", "429"})
    p99_ms = float(np.median([one["p99_ms"] for one in over]))
    memory_mb = result["memory_mb"]
    killed = result["kill_decoder"]
    engine_ms = float(np.median([one["cpu_ms"] for one in result["bare"]]))
    service_ms = at_64["service_cpu_ms"]
    rows = [
        ("Start to a warm /health, s", "<= 2", f"{min(result['start_s']):.2f} (of {len(result['start_s'])})"),
        ("Restart after kill -9 of the service, s", "<= 3", f"{result['restart']['ready_s']:.2f}"),
        *((f"{n} clients", ">= 0.8 of the engine", write_load(result, n)) for n in result["load"]),
        ("Bare engine", "", ", ".join(f"{one['rate']:.0f}/s" for one in result["bare"])),
        (
            "Processor ms a photo: engine, service",
            ">= 0.8",
            f"{engine_ms:.1f}, {service_ms:.1f}: {engine_ms / service_ms:.2f}",
        ),
        ("Overload: answered, 429, other", "the rest 429", f"{taken:,}, {refused:,}, {other}"),
        ("Overload: p99", "<= 3 x that of 64 clients", f"{p99_ms:.0f} ms, {p99_ms / at_64['p99_ms']:.2f} x"),
        ("Overload: memory, MB", "flat", f"{memory_mb[0]:.0f} at first, {memory_mb[-1]:.0f} at last"),
        (
            "kill -9 of processes that decode",
            "no wrong answer",
            f"{killed['n_killed']} killed: {killed['n_by_status']}, {killed['n_wrong']} wrong, {killed['n_lost']} lost",
        ),
        ("Left over after kill -9 of the service", "0", str(result["restart"]["n_left_over"])),
    ]
    print(tabulate(rows))


if __name__ == "__main__":
    main()
