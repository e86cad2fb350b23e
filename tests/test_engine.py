"""A stream keeps its order, its photos apart, its promises on memory, and ends when it is told to."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from pomona.backbone import find_backbone
from pomona.embedding import Embedding, load_network
from pomona.engine import Engine, count_cpus, is_finite, measure_rate
from pomona.errors import BackboneError, OptionError, PhotoError

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

    from pomona.training import TrainResult

SIZE_PX = 64
N_PHOTOS = 50


@pytest.fixture(scope="module")
def network() -> Path:
    return load_network(Embedding((find_backbone("lite0", size_px=SIZE_PX),)))


@pytest.fixture(scope="module")
def small_network(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Averages the pixels: quick to compile, for tests that need many engines."""
    import onnx
    from onnx import TensorProto, helper

    nodes = [
        helper.make_node("Cast", ["pixels"], ["x"], to=TensorProto.FLOAT),
        helper.make_node("ReduceMean", ["x", "axes"], ["features"], keepdims=0),
    ]
    source = helper.make_tensor_value_info("pixels", TensorProto.UINT8, ("N", SIZE_PX, SIZE_PX, 3))
    target = helper.make_tensor_value_info("features", TensorProto.FLOAT, ("N", 3))
    axes = helper.make_tensor("axes", TensorProto.INT64, (2,), (1, 2))
    graph = helper.make_graph(nodes, "mean", [source], [target], initializer=[axes])
    path = tmp_path_factory.mktemp("network") / "mean.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9), path)
    return path


@pytest.fixture(scope="module")
def int8_network(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two quantised convolutions, one of them over channels alone, and the mean of what comes out."""
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    random = np.random.default_rng(3)
    weights = {
        f"w{i}": random.integers(-127, 128, shape, np.int8) for i, shape in enumerate([(32, 3, 3, 3), (64, 32, 1, 1)])
    }
    scalars = {"step": np.float32(1 / 16), "small": np.float32(1 / 512), "zero": np.uint8(0), "middle": np.int8(0)}
    constants = {**weights, **scalars, "axes": np.array([2, 3])}
    nodes = [
        helper.make_node("Cast", ["pixels"], ["x"], to=TensorProto.FLOAT),
        helper.make_node("Mul", ["x", "step"], ["x0"]),
        helper.make_node("Transpose", ["x0"], ["y0"], perm=[0, 3, 1, 2]),
    ]
    for i in range(2):
        nodes += [
            helper.make_node("QuantizeLinear", [f"y{i}", "step", "zero"], [f"q{i}"]),
            helper.make_node("DequantizeLinear", [f"q{i}", "step", "zero"], [f"d{i}"]),
            helper.make_node("DequantizeLinear", [f"w{i}", "small", "middle"], [f"v{i}"]),
            helper.make_node("Conv", [f"d{i}", f"v{i}"], [f"c{i}"]),
            helper.make_node("Relu", [f"c{i}"], [f"y{i + 1}"]),
        ]
    nodes.append(helper.make_node("ReduceMean", ["y2", "axes"], ["features"], keepdims=0))
    source = helper.make_tensor_value_info("pixels", TensorProto.UINT8, ("N", SIZE_PX, SIZE_PX, 3))
    target = helper.make_tensor_value_info("features", TensorProto.FLOAT, ("N", 64))
    tensors = [numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()]
    graph = helper.make_graph(nodes, "int8", [source], [target], initializer=tensors)
    path = tmp_path_factory.mktemp("network") / "int8.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9), path)
    return path


@pytest.fixture(scope="module")
def engine(network: Path) -> Engine:
    return Engine(network, n_workers=2)


@pytest.fixture(scope="module")
def pixels() -> NDArray[np.uint8]:
    return np.random.default_rng(0).integers(0, 256, (N_PHOTOS, SIZE_PX, SIZE_PX, 3), dtype=np.uint8)


@pytest.fixture(scope="module")
def alone(engine: Engine, pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Features of each photo, run one at a time."""
    return np.concatenate([engine.run(photo[None])["features"] for photo in pixels])


def list_threads() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name.startswith("pomona-engine")]


def test_interrupt_is_one_after_an_engine_was_dropped_in_another_thread(small_network: Path) -> None:
    script = """
import os, signal, sys, threading
from pathlib import Path
from pomona.engine import Engine
engines = [Engine(Path(sys.argv[1]), n_workers=1)]
dropper = threading.Thread(target=engines.clear)
dropper.start()
dropper.join()
try:
    os.kill(os.getpid(), signal.SIGINT)
    for _ in range(1000):
        pass
except KeyboardInterrupt:
    print("interrupted")
"""
    command = [sys.executable, "-c", script, str(small_network)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stdout) == (0, "interrupted\n"), done.stderr


@pytest.mark.parametrize("n_workers", [1, 2, 5])
def test_a_photo_alone_equals_the_same_photo_in_a_stream(
    network: Path, pixels: NDArray[np.uint8], alone: NDArray[np.float32], n_workers: int
) -> None:
    assert len(np.unique(alone, axis=0)) == N_PHOTOS
    engine = Engine(network, n_workers=n_workers)
    assert engine.n_workers == n_workers
    assert engine.outputs == ("features",)
    np.testing.assert_array_equal(engine.run(pixels)["features"], alone)


@pytest.mark.parametrize("n_workers", [1, 2, 5])
def test_int8_does_not_depend_on_what_else_is_under_way(
    int8_network: Path, pixels: NDArray[np.uint8], n_workers: int
) -> None:
    alone = Engine(int8_network, n_workers=1)
    wanted = np.concatenate([alone.run(photo[None])["features"] for photo in pixels])
    assert len(np.unique(wanted, axis=0)) == N_PHOTOS
    engine = Engine(int8_network, n_workers=n_workers)
    for _ in range(3):
        np.testing.assert_array_equal(engine.run(pixels)["features"], wanted)


def test_streams_of_one_engine_share_nothing(
    engine: Engine, pixels: NDArray[np.uint8], alone: NDArray[np.float32]
) -> None:
    streams = [engine.stream(N_PHOTOS, pixels.__getitem__), engine.stream(N_PHOTOS, pixels[::-1].__getitem__)]
    for i, (one, other) in enumerate(zip(*streams, strict=True)):
        assert not isinstance(one, PhotoError)
        assert not isinstance(other, PhotoError)
        np.testing.assert_array_equal(one["features"], alone[i])
        np.testing.assert_array_equal(other["features"], alone[-1 - i])


def test_one_photo_needs_no_thread(engine: Engine, pixels: NDArray[np.uint8], alone: NDArray[np.float32]) -> None:
    seen: list[threading.Thread] = []

    def load_pixels(i: int) -> NDArray[np.uint8]:
        seen.append(threading.current_thread())
        return pixels[i]

    (outputs,) = engine.stream(1, load_pixels)
    assert not isinstance(outputs, PhotoError)
    np.testing.assert_array_equal(outputs["features"], alone[0])
    assert seen == [threading.main_thread()]


@pytest.mark.parametrize(
    "odd",
    [np.zeros((SIZE_PX, SIZE_PX, 1), np.uint8), np.zeros((SIZE_PX, SIZE_PX, 3)), np.zeros((1, 8, 8, 3), np.uint8)],
    ids=["one channel", "float", "small"],
)
def test_pixels_of_another_shape_or_kind_are_refused(engine: Engine, odd: NDArray[Any]) -> None:
    assert engine.shape == (SIZE_PX, SIZE_PX, 3)
    with pytest.raises(ValueError, match=r"pixels: wanted \(64, 64, 3\) uint8, got \(.* (uint8|float64)"):
        list(engine.stream(1, lambda _i: odd))


def test_workers_are_free_to_move_to_another_core(small_network: Path) -> None:
    assert Engine(small_network)._compiled.get_property("ENABLE_CPU_PINNING") is False


def test_numbers_that_are_not_finite_are_seen(engine: Engine, pixels: NDArray[np.uint8]) -> None:
    outputs = dict(engine.run(pixels[:1]))
    assert is_finite(outputs)
    for odd in (np.nan, np.inf, -np.inf):
        outputs["features"][0, -1] = odd
        assert not is_finite(outputs)
        assert not is_finite({"other": np.zeros(1, np.float32), **outputs})
    assert is_finite({})


def test_the_rate_is_that_of_the_network(engine: Engine, small_network: Path) -> None:
    rates = [measure_rate(engine, n_photos=30), measure_rate(Engine(small_network, n_workers=2), n_photos=300)]
    assert 10 < rates[0] < 20_000
    assert rates[1] > rates[0]
    with pytest.raises(OptionError, match="n_photos: wanted 1 or more, got 0"):
        measure_rate(engine, n_photos=0)


def test_outputs_come_in_order_when_photos_are_ready_in_another(
    engine: Engine, pixels: NDArray[np.uint8], alone: NDArray[np.float32]
) -> None:
    delays_s = np.random.default_rng(1).permutation(N_PHOTOS) * 4e-4

    def load_slowly(i: int) -> NDArray[np.uint8]:
        time.sleep(delays_s[i])
        return pixels[i]

    for i, outputs in enumerate(engine.stream(N_PHOTOS, load_slowly)):
        assert not isinstance(outputs, PhotoError)
        np.testing.assert_array_equal(outputs["features"], alone[i])
    assert i == N_PHOTOS - 1


def test_a_photo_error_stays_in_its_place(
    engine: Engine, pixels: NDArray[np.uint8], alone: NDArray[np.float32]
) -> None:
    bad = {0, 7, 8, N_PHOTOS - 1}

    def load_pixels(i: int) -> NDArray[np.uint8]:
        if i in bad:
            raise PhotoError("corrupt", f"photo {i}")
        return pixels[i]

    for i, outputs in enumerate(engine.stream(N_PHOTOS, load_pixels)):
        if i in bad:
            assert isinstance(outputs, PhotoError)
            assert str(outputs) == f"photo {i}"
        else:
            assert not isinstance(outputs, PhotoError)
            np.testing.assert_array_equal(outputs["features"], alone[i])


def test_outputs_are_not_views_that_the_next_photo_writes_over(engine: Engine, pixels: NDArray[np.uint8]) -> None:
    kept = [outputs for outputs in engine.stream(20, pixels.__getitem__) if not isinstance(outputs, PhotoError)]
    assert len(np.unique([outputs["features"] for outputs in kept], axis=0)) == 20


def test_memory_order_and_read_only_pixels_do_not_matter(
    engine: Engine, pixels: NDArray[np.uint8], alone: NDArray[np.float32]
) -> None:
    frozen = pixels[0].copy()
    frozen.flags.writeable = False
    odd = [frozen, np.asfortranarray(pixels[0]), pixels[0][::-1].copy()[::-1]]
    for outputs in engine.stream(len(odd), odd.__getitem__):
        assert not isinstance(outputs, PhotoError)
        np.testing.assert_array_equal(outputs["features"], alone[0])


def test_no_photos_give_no_rows(engine: Engine) -> None:
    assert list(engine.stream(0, lambda _i: pytest.fail("nothing to load"))) == []
    assert engine.run(np.empty((0, SIZE_PX, SIZE_PX, 3), np.uint8))["features"].shape == (0, 1904)


def test_another_error_comes_through_and_ends_the_stream(engine: Engine, pixels: NDArray[np.uint8]) -> None:
    def load_pixels(i: int) -> NDArray[np.uint8]:
        if i == 9:
            raise MemoryError("no more")
        return pixels[i]

    stream = engine.stream(N_PHOTOS, load_pixels)
    for _ in range(9):
        next(stream)
    with pytest.raises(MemoryError, match="no more"):
        next(stream)
    assert list_threads() == []


def test_few_photos_are_loaded_ahead_and_a_close_ends_it(engine: Engine, pixels: NDArray[np.uint8]) -> None:
    loaded: list[int] = []

    def load_slowly(i: int) -> NDArray[np.uint8]:
        loaded.append(i)
        time.sleep(0.01)
        return pixels[i % N_PHOTOS]

    stream = engine.stream(1_000_000, load_slowly)
    next(stream)
    time.sleep(0.3)  # time enough to load everything that it wants ahead
    assert len(loaded) <= 2 + engine.n_workers * 8
    assert list_threads()
    started_s = time.monotonic()
    stream.close()
    assert time.monotonic() - started_s < 0.5
    n_loaded = len(loaded)
    time.sleep(0.05)
    assert len(loaded) == n_loaded
    assert list_threads() == []
    loaded.clear()
    stream = engine.stream(1_000_000, load_slowly)
    next(stream)
    stream.close()
    assert len(loaded) <= 3 * (engine.n_workers + 1)  # what waited in line was not begun


def test_the_first_photos_of_a_process_may_come_all_at_once(small_network: Path) -> None:
    # Without the photo that is computed first, alone, about a quarter of such processes stand still for ever.
    script = (
        "import sys; from pathlib import Path; import numpy as np; from pomona.engine import Engine\n"
        "sys.setswitchinterval(1e-6)\n"
        "pixels, arrived = np.zeros((64, 64, 3), np.uint8), []\n"
        "def load_pixels(i):\n"
        "    arrived.append(i)\n"
        "    while len(arrived) < 6:\n"
        "        pass\n"
        "    return pixels\n"
        "print(len(list(Engine(Path(sys.argv[1]), n_workers=5).stream(6, load_pixels))))\n"
    )
    command = [sys.executable, "-c", script, str(small_network)]
    for _ in range(4):
        processes = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(2)]
        try:
            assert [process.communicate(timeout=60)[0] for process in processes] == ["6\n"] * 2
        finally:
            for process in processes:
                process.kill()
                process.communicate()


def test_the_first_photo_is_computed_before_there_are_threads(
    small_network: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    infer, threads = Engine._infer, []

    def watch(engine: Engine, request: Any, pixels: NDArray[np.uint8]) -> Any:
        threads.append(threading.current_thread())
        return infer(engine, request, pixels)

    monkeypatch.setattr(Engine, "_infer", watch)
    Engine(small_network)
    assert threads == [threading.main_thread()]


def test_engines_come_and_go_without_a_deadlock(small_network: Path) -> None:
    script = (
        "import sys; from pathlib import Path; import numpy as np; from pomona.engine import Engine\n"
        "pixels = np.zeros((64, 64, 3), np.uint8)\n"
        "for i in range(60):\n"
        "    stream = Engine(Path(sys.argv[1]), n_workers=2).stream(1000, lambda _i: pixels)\n"
        "    for _ in range(i % 4):\n"
        "        next(stream)\n"
        "    stream.close() if i % 2 else None\n"
        "    del stream\n"
        "print('done')\n"
    )
    command = [sys.executable, "-c", script, str(small_network)]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout == "done\n"


@pytest.mark.parametrize("content", [b"", b"garbage", None, "half"], ids=["empty", "garbage", "missing", "half"])
def test_a_broken_network_is_a_backbone_error(network: Path, tmp_path: Path, content: bytes | str | None) -> None:
    broken = tmp_path / "broken.onnx"
    if content is not None:
        broken.write_bytes(network.read_bytes()[:5_000_000] if isinstance(content, str) else content)
    with pytest.raises(BackboneError, match=r"cannot compile .*broken\.onnx: (Unable|Model can't|onnx: Could not)"):
        Engine(broken)


@pytest.mark.parametrize("n_workers", [0, -1])
def test_no_workers_are_an_option_error(network: Path, n_workers: int) -> None:
    with pytest.raises(OptionError, match=f"workers: wanted 1 or more, got {n_workers}"):
        Engine(network, n_workers=n_workers)


def test_every_core_is_used_where_nothing_is_said(network: Path) -> None:
    assert 1 <= Engine(network).n_workers == count_cpus()


def test_only_the_outputs_that_are_wanted_are_computed(trained: TrainResult) -> None:
    model = trained.bundle.folder / "model.onnx"
    whole, few = Engine(model, n_workers=1), Engine(model, n_workers=1, outputs=("features", "probabilities"))
    assert (whole.outputs, few.outputs) == (
        ("probabilities", "features", "unknown", "heat_map"),
        ("features", "probabilities"),
    )
    pixels = np.random.default_rng(0).integers(0, 256, (2, *whole.shape), dtype=np.uint8)
    found, wanted = few.run(pixels), whole.run(pixels)
    assert found.keys() == {"features", "probabilities"}
    for name, values in found.items():
        np.testing.assert_allclose(values, wanted[name], atol=1e-5)
    n_nodes = [len(engine._compiled.get_runtime_model().get_ops()) for engine in (whole, few)]
    assert n_nodes[1] < n_nodes[0] - 10
    with pytest.raises(
        BackboneError, match=r"model\.onnx: wanted an output colours, got probabilities, features, unknown, heat"
    ):
        Engine(model, outputs=("features", "colours"))
