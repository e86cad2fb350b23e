"""How fast a recogniser answers, and what it takes: from the bytes of a photo to what is said of it.

In: `SpeedOptions`: a run folder, or a file that `pomona export` wrote. Out: a `Speed`.
Why: a till or a phone has a budget of milliseconds and megabytes. A process of its own, on as many cores as it is given
and no more, makes time and memory those of the recogniser; the slowest answers count, not the mean.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from pomona.backbone import Preprocessing
from pomona.bundle import load_bundle, parse_manifest
from pomona.class_names import ClassName
from pomona.class_tree import ClassTree, show_text
from pomona.clock import Clock, end_with_parent, read_peak_mb
from pomona.engine import count_cpus, import_onnxruntime, import_openvino, open_core
from pomona.errors import (
    BackboneError,
    BundleDamagedError,
    BundleError,
    BundleFormatError,
    DataError,
    MissingPackageError,
    OptionError,
    PhotoError,
    StorageError,
)
from pomona.files import MANIFEST_NAME, storage_errors, write_atomic
from pomona.listing import find_photos
from pomona.model_file import UNKNOWN
from pomona.photo import decode_photo, read_photo_bytes
from pomona.prediction import Speaker
from pomona.trust import Promise

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from numpy.typing import NDArray

    from pomona.clock import Progress
    from pomona.prediction import Prediction

    Outputs = Mapping[str, NDArray[np.float32]]

MODEL_FILES = ("model.onnx", "model.xml")
"""What stands for a folder that is no run, the first that is there."""

_RUN_OF_IMAGE, _GRAPH_OF_PAGE = "bundle", "page/model.onnx"
"""What is measured of a folder that becomes an image; and what tells that a folder is a page."""

STAGES = ("decode", "network", "answer")

_MAX_PHOTOS = 200
_N_DRAWN, _DRAWN_PX = 8, 960
_N_WARM = 3
_LAST_WORDS = 300
_THREAD_VARIABLES = (
    "OMP_NUM_THREADS",
    "OPENBLAS_NUM_THREADS",
    "MKL_NUM_THREADS",
    "VECLIB_MAXIMUM_THREADS",
    "NUMEXPR_NUM_THREADS",
)


@dataclass(frozen=True, kw_only=True)
class SpeedOptions:
    """What `measure_speed` takes.

    Parameters
    ----------
    path : Path
        Run folder, an `.onnx` or `.xml` file of `pomona export`, or a folder with one.
    photos : Path, optional
        Photos to answer for: a folder, pattern or file; a few are drawn where not given.
    threads : int
        Cores that may be used, and threads of the network; where the machine has fewer, those.
    n_answers : int
        Answers that are timed one by one, and as many again for the rate; photos take turns.
    max_s : float
        Seconds after which no more are timed in either; each photo is, once.
    """

    path: Path
    photos: Path | None = None
    threads: int = 1
    n_answers: int = 500
    max_s: float = 20.0

    def __post_init__(self) -> None:
        for name in ("threads", "n_answers"):
            if getattr(self, name) < 1:
                raise OptionError(f"{name.replace('_', '-')}: wanted 1 or more, got {getattr(self, name)}")
        if not self.max_s > 0:
            raise OptionError(f"max-s: wanted more than 0 seconds, got {self.max_s}")


@dataclass(frozen=True)
class Latency:
    """How long something takes, photo by photo.

    Parameters
    ----------
    p50_ms, p95_ms, p99_ms : float
        Milliseconds that half, 95 and 99 of 100 answers take at most.
    """

    p50_ms: float
    p95_ms: float
    p99_ms: float

    @classmethod
    def of(cls, seconds: NDArray[np.float64]) -> Latency:
        """That of some measured times.

        Examples
        --------
        >>> Latency.of(np.arange(1, 101) / 1000)
        Latency(p50_ms=50.0, p95_ms=95.0, p99_ms=99.0)
        """
        return cls(*(float(one) for one in 1000 * np.quantile(seconds, (0.5, 0.95, 0.99), method="inverted_cdf")))


@dataclass(frozen=True)
class Speed:
    """How fast a recogniser answers, and what it takes.

    Parameters
    ----------
    path : str
        What was measured.
    runtime : str
        What computed it.
    threads : int
        Cores that it might use.
    n_answers, n_photos : int
        Answers that were timed one by one, and different photos among them.
    n_skipped : int
        Photos that cannot be used.
    latency : Latency
        From the bytes of a photo to what is said of it, one photo after another.
    stages : dict of str to Latency
        The same of ``"decode"`` (bytes to the square that the network takes), ``"network"`` and ``"answer"``.
    photos_per_s : float
        Photos a second where many wait and every thread is busy.
    memory_mb : float or None
        Most memory of the process, interpreter and libraries in it, without the files that wait to be answered for;
        None where the system does not tell.
    file_mb : float
        What has to be copied to answer elsewhere.
    load_s : float
        Seconds from the files to the first answer.
    start_s : float
        Seconds from the start of the process to the first answer.
    """

    path: str
    runtime: str
    threads: int
    n_answers: int
    n_photos: int
    n_skipped: int
    latency: Latency
    stages: dict[str, Latency]
    photos_per_s: float
    memory_mb: float | None
    file_mb: float
    load_s: float
    start_s: float

    def to_dict(self) -> dict[str, Any]:
        """Everything as plain values, for JSON."""
        return asdict(self)


def is_recogniser(path: Path) -> bool:
    """Whether a path is a run folder or what `pomona export` wrote, not photos.

    Examples
    --------
    >>> is_recogniser(Path("photos")), is_recogniser(Path("runs/fruit-onnx/model.onnx"))
    (False, True)
    """
    return path.suffix.lower() in {".onnx", ".xml"} or any(
        (path / name).is_file()
        for name in (MANIFEST_NAME, *MODEL_FILES, f"{_RUN_OF_IMAGE}/{MANIFEST_NAME}", _GRAPH_OF_PAGE)
    )


def measure_speed(options: SpeedOptions, *, on_progress: Progress | None = None) -> Speed:
    """Measure how fast a recogniser answers, in a process of its own.

    Parameters
    ----------
    options : SpeedOptions
        What to measure, and on what.
    on_progress : callable, optional
        Called with (step, done, in all).

    Returns
    -------
    Speed
        What was measured.

    Raises
    ------
    OptionError
        If the path is none that can be measured.
    BundleError
        If the run is damaged.
    DataError
        If there is no photo that can be used.
    MissingPackageError
        If what runs the file is not installed.
    """
    clock = Clock(on_progress)
    path, threads = _find_file(options.path), min(options.threads, count_cpus())
    if path.is_dir():
        parse_manifest(path)  # what is no bundle is said here, and not by a process
    with tempfile.TemporaryDirectory() as scratch, clock.step("speed"):
        folder = Path(scratch)
        photos = _choose_photos(options, folder)
        task = {"path": str(path), "photos": [str(photo) for photo in photos], "threads": threads}
        task |= {"n_answers": options.n_answers, "max_s": options.max_s}
        write_atomic(folder / "task.json", json.dumps(task))
        found = _run_process(folder, threads, clock.count)
    if "error" in found:
        raise _ERRORS[found["kind"]](found["error"])
    if "missing" in found:
        raise MissingPackageError(*found["missing"])
    latency, stages = Latency(**found.pop("latency")), found.pop("stages")
    return Speed(
        path=show_text(str(options.path)),
        threads=threads,
        latency=latency,
        stages={name: Latency(**stages[name]) for name in STAGES},
        file_mb=sum(one.stat().st_size for one in _list_files(path)) / 1e6,
        **found,
    )


_FORESEEN = (
    BundleDamagedError,
    BundleFormatError,
    BundleError,
    BackboneError,
    OptionError,
    DataError,
    StorageError,
)
_ERRORS = {one.__name__: one for one in _FORESEEN}
"""What the process says by name, and is raised here."""


def _find_file(path: Path) -> Path:
    """The run folder, or the file of an export."""
    if not path.exists():
        raise OptionError(f"{path}: wanted a run folder, or what pomona export wrote, there is nothing")
    if path.is_file():
        return path
    if (path / MANIFEST_NAME).is_file():
        return path
    if name := next((one for one in MODEL_FILES if (path / one).is_file()), None):
        return path / name
    if (path / _GRAPH_OF_PAGE).is_file():
        raise OptionError(f"{path}: a page answers in a browser, which is not timed here; name the run, or its onnx")
    return path / _RUN_OF_IMAGE


def _list_files(path: Path) -> list[Path]:
    """What an answer needs of a run, or the files of an export."""
    if path.is_dir():
        return [path / name for name in (MANIFEST_NAME, *parse_manifest(path).files)]
    return [path, *(one for one in [path.with_suffix(".bin")] if path.suffix == ".xml" and one.is_file())]


def _choose_photos(options: SpeedOptions, folder: Path) -> list[Path]:
    if options.photos is None:
        from pomona.samples import KINDS, SampleOptions, write_samples

        kinds = KINDS[:_N_DRAWN]
        write_samples(folder / "photos", SampleOptions(n_per_kind=1, kinds=kinds, size_px=_DRAWN_PX, n_workers=1))
        return sorted((folder / "photos").rglob("*.jpg"))
    found = find_photos(options.photos)
    if not found:
        raise DataError(f"photos: wanted photos to answer for, got none in {options.photos}")
    return found[:: -(-len(found) // _MAX_PHOTOS)]


def _run_process(folder: Path, threads: int, count: Callable[[int, int], None]) -> dict[str, Any]:
    """Measure in a process that uses so many cores and no more."""
    environment = {**os.environ, **dict.fromkeys(_THREAD_VARIABLES, str(threads))}
    command = [sys.executable, "-P", "-m", "pomona.speed", str(folder / "task.json"), str(folder / "speed.json")]
    words = folder / "words.txt"
    with words.open("wb") as stream, storage_errors("start a process"):
        process = subprocess.Popen(  # noqa: S603 - this interpreter and this module
            [*command, repr(time.time())], env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=stream
        )
    try:
        assert process.stdout is not None  # for mypy: it was asked for
        for line in process.stdout:
            n_done, n_total = line.split()[:2]
            count(int(n_done), int(n_total))
        status = process.wait()
    finally:
        process.kill()
        process.wait()
        for pipe in filter(None, (process.stdin, process.stdout)):
            pipe.close()
    try:
        content: dict[str, Any] = json.loads((folder / "speed.json").read_text("utf-8"))
    except OSError:
        lines = words.read_text("utf-8", "replace").strip().splitlines() or [f"status {status}"]
        said = show_text(lines[-1])[:_LAST_WORDS]
        return {"error": f"the process that measures ended without a result: {said}", "kind": DataError.__name__}
    return content


# --- what answers ---------------------------------------------------------------------------------------------------


class Recogniser(Protocol):
    """Something that answers, in the stages that are timed."""

    runtime: str

    def decode(self, data: bytes) -> NDArray[np.uint8]:
        """The content of a photo to what the network takes."""
        ...

    def compute(self, pixels: NDArray[np.uint8]) -> Outputs:
        """That to outputs by name."""
        ...

    def say(self, outputs: Outputs) -> Prediction:
        """These to what is said."""
        ...

    def answer_many(self, photos: Sequence[bytes], n: int, on_answer: Callable[[], bool]) -> int:
        """Answer for photos in turn as fast as it can, until `on_answer` says that it is enough; how many."""
        ...


class RunRecogniser:
    """A run folder, as `pomona predict` runs it."""

    def __init__(self, folder: Path, threads: int) -> None:
        self.runtime = f"OpenVINO {import_openvino().__version__.split('-')[0]}, by Pomona"
        self._bundle = load_bundle(folder, n_workers=threads)
        self._lane = self._bundle.engine.open_lane()
        self.decode = self._bundle.preprocessing.read

    def compute(self, pixels: NDArray[np.uint8]) -> Outputs:
        """The graph without its heat map."""
        return self._lane(pixels)

    def say(self, outputs: Outputs) -> Prediction:
        """An answer as specific as it may be."""
        return self._bundle.to_prediction("-", outputs, 5)

    def answer_many(self, photos: Sequence[bytes], n: int, on_answer: Callable[[], bool]) -> int:
        """Decoding overlaps computing."""
        turns = [photos[i % len(photos)] for i in range(n)]
        return next((i for i, _ in enumerate(self._bundle.predict(turns), start=1) if on_answer()), n)


class FileRecogniser:
    """A file of `pomona export`, in the runtime that it is for, with what its metadata says done before and after."""

    def __init__(self, path: Path, threads: int) -> None:
        opened = _open_onnx(path, threads) if path.suffix == ".onnx" else _open_xml(path, threads)
        self.runtime, facts, takes_any_size, self.compute = opened
        try:
            contract = json.loads(facts["preprocessing"])
            fields = {name: contract[name] for name in Preprocessing.__dataclass_fields__ if name in contract}
            fields = {name: tuple(value) if isinstance(value, list) else value for name, value in fields.items()}
            self._preprocessing = Preprocessing(**fields)
            classes, promise = json.loads(facts["classes"]), json.loads(facts["promise"])
            tree = ClassTree(tuple(one["name"] for one in classes), tuple(tuple(one["path"]) for one in classes))
            names = [ClassName(one["name_en"], one["name_zh"], one["plu"], one["extra"]) for one in classes]
            self._speaker = Speaker(tree, names, None if promise is None else Promise(**promise))
        except (KeyError, TypeError, ValueError) as error:
            raise OptionError(
                f"{path}: wanted a file that pomona export wrote, got one without its metadata ({error!r})"
            ) from error
        self._takes_any_size = takes_any_size

    def decode(self, data: bytes) -> NDArray[np.uint8]:
        """The photo, or where the graph does not resize, the square."""
        if self._takes_any_size:
            return decode_photo(data, at_least_px=self._preprocessing.decode_px)
        return self._preprocessing.read(data)

    def say(self, outputs: Outputs) -> Prediction:
        """An answer as specific as it may be."""
        strangeness = float(outputs[UNKNOWN]) if UNKNOWN in outputs else None
        return self._speaker.speak("-", outputs["probabilities"], strangeness, n_top=5)

    def answer_many(self, photos: Sequence[bytes], n: int, on_answer: Callable[[], bool]) -> int:
        """One photo after another."""
        for i in range(n):
            self.say(self.compute(self.decode(photos[i % len(photos)])))
            if on_answer():
                return i + 1
        return n


_Opened = tuple[str, "dict[str, str]", bool, "Callable[[NDArray[np.uint8]], Outputs]"]
"""Runtime, metadata, whether any size of photo is taken, and pixels to outputs."""


def _open_onnx(path: Path, threads: int) -> _Opened:
    onnxruntime = import_onnxruntime("to run an ONNX file")
    settings = onnxruntime.SessionOptions()
    settings.intra_op_num_threads, settings.inter_op_num_threads, settings.log_severity_level = threads, 1, 3
    try:
        session = onnxruntime.InferenceSession(str(path), settings, providers=["CPUExecutionProvider"])
    except Exception as error:
        reason = str(error).strip().splitlines()[-1][:_LAST_WORDS]
        raise OptionError(f"{path}: ONNX Runtime does not take it: {reason}") from error
    names = [one.name for one in session.get_outputs() if one.name in {"probabilities", UNKNOWN}]
    (pixels,) = session.get_inputs()
    facts = {name.removeprefix("pomona."): value for name, value in session.get_modelmeta().custom_metadata_map.items()}

    def compute(photo: NDArray[np.uint8]) -> Outputs:
        values = session.run(names, {pixels.name: photo[None]})
        return {name: value[0] for name, value in zip(names, values, strict=True)}

    return f"ONNX Runtime {onnxruntime.__version__}", facts, not isinstance(pixels.shape[1], int), compute


def _open_xml(path: Path, threads: int) -> _Opened:
    openvino, core = import_openvino(), open_core()
    try:
        model = core.read_model(path)
        shape = model.input(0).partial_shape
        takes_any_size = bool(shape[1].is_dynamic)
        model.reshape([1, -1, -1, 3] if takes_any_size else [1, *list(shape)[1:]])
        keys = ("preprocessing", "classes", "promise")
        facts = {
            key: str(model.get_rt_info(["pomona", key]).value) for key in keys if model.has_rt_info(["pomona", key])
        }
        outputs = [one for one in model.get_results() if one.output(0).get_any_name() in {"probabilities", UNKNOWN}]
        pruned = openvino.Model(outputs, model.get_parameters(), model.get_name())
        settings = {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": threads, "NUM_STREAMS": 1}
        request = core.compile_model(pruned, "CPU", settings).create_infer_request()
    except RuntimeError as error:
        reason = str(error).strip().splitlines()[-1][:_LAST_WORDS]
        raise OptionError(f"{path}: OpenVINO does not take it: {reason}") from error

    def compute(photo: NDArray[np.uint8]) -> Outputs:
        found = request.infer([photo[None]])
        return {port.get_any_name(): values[0].copy() for port, values in found.items()}

    return f"OpenVINO {openvino.__version__.split('-')[0]}", facts, takes_any_size, compute


# --- the process ----------------------------------------------------------------------------------------------------


def _measure(task: dict[str, Any], started_s: float) -> dict[str, Any]:
    """Everything but the size of the files."""
    contents, n_skipped = _read_photos([Path(photo) for photo in task["photos"]])
    load_began_s = time.perf_counter()
    path, threads = Path(task["path"]), task["threads"]
    recogniser: Recogniser = RunRecogniser(path, threads) if path.is_dir() else FileRecogniser(path, threads)
    usable: list[bytes] = []
    load_s = start_s = 0.0
    for content in contents:  # what cannot be decoded is left out before anything is timed
        try:
            recogniser.say(recogniser.compute(recogniser.decode(content)))
        except PhotoError:
            n_skipped += 1
            continue
        if not usable:
            load_s, start_s = time.perf_counter() - load_began_s, time.time() - started_s
        usable.append(content)
    if not usable:
        raise DataError(f"photos: wanted photos that can be used, got none of {n_skipped}")
    n = max(task["n_answers"], len(usable))
    seconds = _time_answers(recogniser, usable, n, task["max_s"])
    began_s = time.perf_counter()
    last_s = began_s + task["max_s"]
    n_many = recogniser.answer_many(usable, n, lambda: time.perf_counter() > last_s)
    rate = n_many / (time.perf_counter() - began_s)
    _tell(2 * n, 2 * n)
    peak_mb = read_peak_mb()
    return {
        "runtime": recogniser.runtime,
        "n_answers": len(seconds),
        "n_photos": len(usable),
        "n_skipped": n_skipped,
        "latency": asdict(Latency.of(seconds.sum(axis=1))),
        "stages": {name: asdict(Latency.of(seconds[:, i])) for i, name in enumerate(STAGES)},
        "photos_per_s": rate,
        "memory_mb": None if peak_mb is None else peak_mb - sum(map(len, contents)) / 1e6,
        "load_s": load_s,
        "start_s": start_s,
    }


def _read_photos(paths: Sequence[Path]) -> tuple[list[bytes], int]:
    contents = []
    for path in paths:
        try:
            contents.append(read_photo_bytes(path))
        except PhotoError:
            continue
    return contents, len(paths) - len(contents)


def _time_answers(recogniser: Recogniser, photos: Sequence[bytes], n: int, max_s: float) -> NDArray[np.float64]:
    """Seconds (N, 3) of the stages of each answer."""
    rows: list[tuple[float, float, float]] = []
    for content in photos[:_N_WARM]:
        recogniser.say(recogniser.compute(recogniser.decode(content)))
    began_s = time.perf_counter()
    for i in range(n):
        content = photos[i % len(photos)]
        started_s = time.perf_counter()
        pixels = recogniser.decode(content)
        decoded_s = time.perf_counter()
        outputs = recogniser.compute(pixels)
        computed_s = time.perf_counter()
        recogniser.say(outputs)
        said_s = time.perf_counter()
        rows.append((decoded_s - started_s, computed_s - decoded_s, said_s - computed_s))
        if i % 10 == 0:
            _tell(i, 2 * n)
        if i >= len(photos) and said_s - began_s > max_s:
            break
    return np.array(rows)


def _tell(n_done: int, n_total: int) -> None:
    """Say to the process that started this one how far it is."""
    sys.stdout.write(f"{n_done} {n_total}\n")
    sys.stdout.flush()


def _keep_to_cores(n_cores: int) -> None:
    """Let no library use more cores, whatever it counts; the last ones, since the first serve the machine."""
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[-n_cores:])


def main(task_path: Path, speed_path: Path, started_s: float) -> None:
    """What the process runs: read a task, write what was measured."""
    end_with_parent()
    task = json.loads(task_path.read_text("utf-8"))
    _keep_to_cores(task["threads"])
    found: dict[str, Any]
    try:
        found = _measure(task, started_s)
    except MissingPackageError as error:
        found = {"missing": [error.package, error.extra, error.purpose]}
    except _FORESEEN as error:
        found = {"error": str(error), "kind": next(one.__name__ for one in _FORESEEN if isinstance(error, one))}
    write_atomic(speed_path, json.dumps(found))


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), float(sys.argv[3]))
