"""A network compiled for this CPU, fed so that decoding and computing overlap.

In: an ONNX file and a way to get the pixels of each photo. Out: the network's outputs, photo by photo.
Why: features and predictions run through the same few lines, so they agree to the last bit. Each request carries one
photo and runs on one stream of one thread: the answer for a photo does not depend on what else is under way. Measured
on two cores, one stream a core takes as much processor time per photo as the network alone; requests of four photos
would take 5 % less, two threads on one photo a quarter more.
"""

from __future__ import annotations

import collections
import functools
import importlib.util
import os
import sys
import threading
import time
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, Literal, TypeVar

import numpy as np

from pomona.errors import BackboneError, MissingPackageError, OptionError, PhotoError

if TYPE_CHECKING:
    from collections.abc import Generator
    from pathlib import Path

    import openvino as ov
    from numpy.typing import NDArray

Precision = Literal["f32"]

Lane = Callable[["NDArray[np.uint8]"], Mapping[str, "NDArray[np.float32]"]]
"""Pixels of one photo to its outputs by name."""

_FIRST_USE = threading.Lock()
_Outcome = TypeVar("_Outcome")

_PHOTOS_AHEAD = 8  # photos under way or done per worker: enough to ride out a slow one, little memory


def count_cpus() -> int:
    """Cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def import_openvino() -> Any:
    """Import OpenVINO without its telemetry, which reports every import to a server and keeps an id in the home."""
    name = "openvino_telemetry"
    loaded = sys.modules.get(name)
    sys.modules[name] = None  # type: ignore[assignment]  # "not there": OpenVINO then takes its own silent stand-in
    try:
        import openvino
    finally:
        if loaded is None:
            del sys.modules[name]
        else:
            sys.modules[name] = loaded
    return openvino


def import_onnxruntime(purpose: str) -> Any:
    """Import ONNX Runtime without its telemetry, which reports each process to a server and keeps an id in the home.

    Raises
    ------
    MissingPackageError
        If it is not installed, under whatever name its package has; `purpose` says what it is needed for.
    """
    if importlib.util.find_spec("onnxruntime") is None:
        raise MissingPackageError("onnxruntime", "export", purpose)
    os.environ["ORT_DISABLE_TELEMETRY"] = "1"  # read once, as it loads: later is too late
    import onnxruntime

    onnxruntime.disable_telemetry_events()  # of Windows, which does not know the variable
    return onnxruntime


@functools.cache
def open_core() -> Any:
    """OpenVINO's one entry, kept as long as the process.

    On a CPU with AVX-512 its plugin gives the thread that loads it another stack for signals, and takes it away where
    the plugin goes. OpenVINO 2026.4 unmaps that stack even if the thread it belongs to is another one, whose next
    signal is then the end of the process: Ctrl-C was a segmentation fault.
    """
    return import_openvino().Core()


def _prune(model: ov.Model, outputs: tuple[str, ...], network: Path) -> ov.Model:
    """The part of a model that some of its outputs need."""
    results = {result.output(0).get_any_name(): result for result in model.get_results()}
    if missing := [name for name in outputs if name not in results]:
        raise BackboneError(f"{network}: wanted an output {missing[0]}, got {', '.join(results)}")
    return import_openvino().Model([results[name] for name in outputs], model.get_parameters(), model.get_name())


class Engine:
    """A compiled network.

    Parameters
    ----------
    network : Path
        ONNX file with one uint8 input (N, S, S, 3).
    n_workers : int, optional
        Threads for the network and for decoding; every core where not given.
    outputs : tuple of str, optional
        Only these outputs are computed; all where not given.

    Raises
    ------
    OptionError
        If `n_workers` is below 1.
    BackboneError
        If OpenVINO cannot read or compile it, or it has no such output.
    """

    precision: Precision = "f32"  # bf16, the default where the CPU has it, measured slower without AMX and less exact

    def __init__(self, network: Path, *, n_workers: int | None = None, outputs: tuple[str, ...] | None = None) -> None:
        if n_workers is not None and n_workers < 1:
            raise OptionError(f"workers: wanted 1 or more, got {n_workers}")
        self.n_workers = n_workers or count_cpus()
        # Pinned, two processes of one worker each would both sit on the first core.
        settings: dict[str, Any] = {
            "INFERENCE_PRECISION_HINT": self.precision,
            "PERFORMANCE_HINT": "THROUGHPUT",
            "INFERENCE_NUM_THREADS": self.n_workers,
            "NUM_STREAMS": self.n_workers,
            "ENABLE_CPU_PINNING": False,
        }
        try:
            core = open_core()
            model = core.read_model(network)
            if outputs is not None:
                model = _prune(model, outputs, network)
            # One photo a request, said in advance: up to 5 % less time per photo, and one choice of int8 kernels.
            model.reshape([1, *list(model.input(0).partial_shape)[1:]])
            self._compiled = core.compile_model(model, "CPU", settings)
        except RuntimeError as error:
            reason = str(error).strip().splitlines()[-1]  # the lines before it name places in OpenVINO's own source
            raise BackboneError(f"OpenVINO cannot compile {network}: {reason}") from error
        self.outputs = tuple(port.get_any_name() for port in self._compiled.outputs)
        self.shape: tuple[int, ...] = tuple(self._compiled.input(0).shape)[1:]
        self._compute_once()

    def _compute_once(self) -> None:
        """Compute one black photo in this thread alone, before there are others.

        The first array that OpenVINO 2026.4 takes or gives in a process makes its binding look NumPy up, once, under a
        C++ guard. A thread that comes to the guard meanwhile waits there and holds the interpreter's lock, which the
        first one needs to go on: about one process in six stood still for ever.
        """
        with _FIRST_USE:
            self._infer(self._compiled.create_infer_request(), np.zeros(self.shape, np.uint8))

    def _infer(self, request: ov.InferRequest, pixels: NDArray[np.uint8]) -> Mapping[str, NDArray[np.float32]]:
        if pixels.shape != self.shape or pixels.dtype != np.uint8:
            raise ValueError(f"pixels: wanted {self.shape} uint8, got {pixels.shape} {pixels.dtype}")
        # Copied into the request's own tensor. A tensor or array of ours, set as its input, stays in the hands of
        # OpenVINO's streams after the request is gone: other requests of the same network then wrote over freed memory.
        request.get_input_tensor().data[0] = pixels
        request.infer()
        return {name: request.get_tensor(name).data[0].copy() for name in self.outputs}

    def run(self, pixels: NDArray[np.uint8]) -> Mapping[str, NDArray[np.float32]]:
        """Compute one batch and wait for it.

        Parameters
        ----------
        pixels : ndarray of shape (N, S, S, 3), uint8
            Preprocessed photos.

        Returns
        -------
        mapping of str to ndarray of shape (N, ...), float32
            Each output by name.
        """
        if len(pixels) == 0:
            shapes = {name: tuple(self._compiled.output(name).shape)[1:] for name in self.outputs}
            return {name: np.zeros((0, *shape), np.float32) for name, shape in shapes.items()}
        outcomes = self.stream(len(pixels), pixels.__getitem__)
        rows = [outputs for outputs in outcomes if not isinstance(outputs, PhotoError)]
        return {name: np.stack([row[name] for row in rows]) for name in self.outputs}

    def open_lane(self) -> Lane:
        """A way to compute one photo after another in one thread, for as long as that lives.

        Returns
        -------
        callable
            Pixels (S, S, 3) uint8 to outputs by name, without the batch axis. It belongs to one thread at a time.
        """
        # One request a thread and no callbacks: OpenVINO 2026.4 can deadlock when it drops a Python callback.
        request = self._compiled.create_infer_request()
        return lambda pixels: self._infer(request, pixels)

    def stream(
        self, n_photos: int, load_pixels: Callable[[int], NDArray[np.uint8]]
    ) -> Generator[Mapping[str, NDArray[np.float32]] | PhotoError]:
        """Compute many photos; memory does not grow with their number.

        Each thread decodes a photo and then runs it, so that one photo's decoding overlaps another's network; there is
        one thread more than cores, so that a slow disk does not leave a core idle.

        Parameters
        ----------
        n_photos : int
            How many.
        load_pixels : callable
            Photo number to pixels (S, S, 3) uint8; called from several threads. A `PhotoError` it raises is yielded in
            place of outputs.

        Yields
        ------
        mapping or PhotoError
            Outputs of each photo by name, without the batch axis, in the order of their numbers.
        """
        own = threading.local()

        def compute(i: int) -> Mapping[str, NDArray[np.float32]] | PhotoError:
            try:
                pixels = load_pixels(i)
            except PhotoError as error:
                return error
            if not hasattr(own, "run"):
                own.run = self.open_lane()
            outputs: Mapping[str, NDArray[np.float32]] = own.run(pixels)
            return outputs

        if n_photos == 1:
            yield compute(0)  # starting threads would take longer than they save
            return
        n_ahead = self.n_workers * _PHOTOS_AHEAD
        yield from stream_ordered(compute, n_photos, n_threads=self.n_workers + 1, n_ahead=n_ahead)


def stream_ordered(
    compute: Callable[[int], _Outcome], n_photos: int, *, n_threads: int, n_ahead: int
) -> Generator[_Outcome]:
    """Compute photos in several threads, and give the outcomes in order.

    Parameters
    ----------
    compute : callable
        Photo number to outcome; called from several threads.
    n_photos : int
        How many.
    n_threads : int
        Threads.
    n_ahead : int
        Photos, at most, that are under way or wait for those before them.

    Yields
    ------
    object
        What `compute` gave, in the order of the numbers.

    Examples
    --------
    >>> list(stream_ordered(str, 4, n_threads=2, n_ahead=2))
    ['0', '1', '2', '3']
    """
    waiting: collections.deque[Future[_Outcome]] = collections.deque()
    with ThreadPoolExecutor(n_threads, thread_name_prefix="pomona-engine") as pool:
        try:
            for i in range(n_photos):
                waiting.append(pool.submit(compute, i))
                if len(waiting) > n_ahead:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            for future in waiting:
                future.cancel()


def is_finite(outputs: Mapping[str, NDArray[np.float32]]) -> bool:
    """Whether every number of every output is finite; 3 microseconds for 12,000 numbers.

    Parameters
    ----------
    outputs : mapping of str to ndarray
        What `Engine.run` or `Engine.stream` gives.

    Examples
    --------
    >>> is_finite({"features": np.array([0.5, np.nan], np.float32)})
    False
    """
    return all(bool(np.isfinite(values).all()) for values in outputs.values())


def measure_rate(engine: Engine, *, n_photos: int = 64) -> float:
    """Measure how fast the network alone is, on noise in memory.

    Parameters
    ----------
    engine : Engine
        Every worker of it is used.
    n_photos : int
        How many photos are timed; as many as there are workers are computed before.

    Returns
    -------
    float
        Photos per second.
    """
    if n_photos < 1:
        raise OptionError(f"n_photos: wanted 1 or more, got {n_photos}")
    noise = np.random.default_rng(0).integers(0, 256, (8, *engine.shape), dtype=np.uint8)
    collections.deque(engine.stream(engine.n_workers, lambda i: noise[i % 8]), maxlen=0)
    started_s = time.perf_counter()
    collections.deque(engine.stream(n_photos, lambda i: noise[i % 8]), maxlen=0)
    return n_photos / (time.perf_counter() - started_s)
