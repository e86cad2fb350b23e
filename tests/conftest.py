"""Fixtures that every test file may use."""

from __future__ import annotations

import itertools
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from hypothesis import settings

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from pomona.embedding import Embedding
    from pomona.training import TrainResult


# The same examples each time, so that the gate fails for what was changed; POMONA_EXAMPLES=random tries others.
settings.register_profile("same", derandomize=True)
settings.register_profile("random", derandomize=False)
os.environ["ORT_DISABLE_TELEMETRY"] = "1"  # some tests load ONNX Runtime on their own
settings.load_profile(os.environ.get("POMONA_EXAMPLES", "same"))


@pytest.fixture(scope="session")
def shared() -> Path:
    """Folder of real photos beside the checkout; tests that need it skip where it is absent."""
    folder = Path(os.environ.get("POMONA_SHARED", Path(__file__).parents[1] / ".." / "shared")).resolve()
    if not (folder / "data").is_dir():
        pytest.skip(f"real photos are not here: {folder}; name their folder in POMONA_SHARED")
    return folder


@pytest.fixture(scope="session", autouse=True)
def _private_cache(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Keep the tests out of the user's cache, and let them share one."""
    os.environ["POMONA_CACHE"] = str(tmp_path_factory.mktemp("cache"))


@pytest.fixture(scope="session")
def rendered(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Tree of rendered photos, 8 each of Banana, Orange and Lemon, the last two under Citrus; not to be changed."""
    from pomona.samples import KINDS, SampleOptions, write_samples

    folder = tmp_path_factory.mktemp("rendered") / "fruit"
    write_samples(folder, SampleOptions(n_per_kind=8, kinds=KINDS[2:5], size_px=72, n_workers=1))
    return folder


@pytest.fixture(scope="session")
def trained(rendered: Path, tmp_path_factory: pytest.TempPathFactory) -> TrainResult:
    """A run on these photos; not to be changed."""
    from pomona.training import TrainOptions, train

    output = tmp_path_factory.mktemp("trained") / "run"
    return train(TrainOptions(data=rendered, output=output, effort="instant", imgsz=64))


@pytest.fixture(scope="session")
def strangers(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Tree of rendered photos, 24 each of two kinds that `promising` does not know; not to be changed."""
    from pomona.samples import KINDS, SampleOptions, write_samples

    folder = tmp_path_factory.mktemp("strangers") / "fruit"
    write_samples(folder, SampleOptions(n_per_kind=24, kinds=KINDS[7:9], size_px=72, n_workers=1, seed=1))
    return folder


@pytest.fixture(scope="session")
def promising(tmp_path_factory: pytest.TempPathFactory) -> TrainResult:
    """A run on enough rendered photos for promises, 24 each of five kinds; not to be changed."""
    from pomona.samples import KINDS, SampleOptions, write_samples
    from pomona.training import TrainOptions, train

    folder = tmp_path_factory.mktemp("promising")
    write_samples(folder / "fruit", SampleOptions(n_per_kind=24, kinds=KINDS[2:7], size_px=72, n_workers=1))
    options = TrainOptions(data=folder / "fruit", output=folder / "run", effort="instant", imgsz=64, promise=0.8)
    return train(options)


@pytest.fixture
def broken_int8(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[Embedding], None]:
    """A cache whose int8 network of `instant` at 64 pixels gives NaN, on a machine that prefers it.

    What is given breaks another one in the same way.
    """
    from pomona import classifier, training
    from pomona.effort import Machine, plan_embedding

    monkeypatch.setenv("POMONA_CACHE", str(tmp_path / "broken cache"))
    for module in (training, classifier):
        monkeypatch.setattr(module, "measure_machine", lambda _n_workers: Machine(2.0, 1.0, 1.0))
    _break_network(plan_embedding("instant", size_px=64, precision="int8"))
    return _break_network


def _break_network(embedding: Embedding) -> None:
    """Put NaN among the weights of a network in the cache, and seal it as if it were sound."""
    import numpy as np
    import onnx
    from onnx import numpy_helper

    from pomona.embedding import load_network
    from pomona.files import hash_file

    path = load_network(embedding)
    model = onnx.load(path)
    last = [node for node in model.graph.node if node.op_type == "Conv"][-1]
    bias = next(one for one in model.graph.initializer if one.name == last.input[2])
    values = numpy_helper.to_array(bias).copy()
    values[3] = np.nan
    bias.CopyFrom(numpy_helper.from_array(values, bias.name))
    path.write_bytes(model.SerializeToString())
    path.with_suffix(".sha256").write_text(hash_file(path))


@pytest.fixture(scope="session", autouse=True)
def _interruptible() -> None:
    """Let Ctrl-C through, here and in the commands that tests start: a job in the background begins with it ignored."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session")
def postgres(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[], str]]:
    """A PostgreSQL of our own that ends with the tests; what is given makes an empty database and names its URL."""
    psycopg = pytest.importorskip("psycopg", reason="PostgreSQL's driver is not installed")
    found = [*Path("/usr/lib/postgresql").glob("*/bin/pg_ctl"), shutil.which("pg_ctl")]
    if (control := next(filter(None, found), None)) is None or sys.platform == "win32":
        pytest.skip("PostgreSQL is not here: bash tests/install_services.sh brings it")
    own = "postgres" if os.geteuid() == 0 else None  # it refuses to run as root
    folder = Path(tempfile.mkdtemp(prefix="pomona-pg-", dir="/tmp"))  # the path of a socket must be short
    if own is not None:
        shutil.chown(folder, own)

    def run(program: str, *arguments: str) -> None:
        command = [str(Path(control).with_name(program)), "-D", str(folder / "data"), *arguments]
        # Not captured: the server would hold the pipe open.
        subprocess.run(command, user=own, check=True, cwd=folder, stdout=subprocess.DEVNULL, timeout=60)

    run("initdb", "--auth=trust", "--username=postgres", "--encoding=UTF8", "--locale=C", "--no-sync")
    settings = f"-k {folder} -c listen_addresses='' -c fsync=off"
    run("pg_ctl", "--wait", "--log", str(folder / "log"), "--options", settings, "start")
    names = itertools.count()
    try:

        def make_database() -> str:
            name = f"pomona{next(names)}"
            with psycopg.connect(host=str(folder), user="postgres", autocommit=True) as connection:
                connection.execute(f"CREATE DATABASE {name}")
            return f"postgresql://postgres@/{name}?host={folder}"

        yield make_database
    finally:
        run("pg_ctl", "--wait", "--mode", "immediate", "stop")
        shutil.rmtree(folder)
