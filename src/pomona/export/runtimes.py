"""Exports run in the runtimes that they are for.

In: the files of an export, and the content of photos. Out: a `Trace` for each.
Why: what is written is what is checked, by the program that will run it.
"""

from __future__ import annotations

from functools import cached_property
from importlib import metadata
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from pomona.bundle import load_bundle
from pomona.engine import count_cpus, import_onnxruntime, open_core, stream_ordered
from pomona.errors import ExportError, PhotoError
from pomona.export.onnx_model import PIXELS, add_probes
from pomona.export.resizing import can_resize
from pomona.export.trace import Trace, follow_bundle
from pomona.files import storage_errors
from pomona.photo import decode_photo

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from pathlib import Path

    from numpy.typing import NDArray

    from pomona.backbone import Preprocessing
    from pomona.bundle import Bundle

    Values = Mapping[str, NDArray[Any]]

_N_THREADS, _N_AHEAD = 2, 8


_NEED = "to check that the export answers as the bundle does"


class Network(Protocol):
    """A graph in a runtime."""

    def compute(self, pixels: NDArray[np.uint8]) -> Values:
        """Outputs by name of pixels (1, H, W, 3) uint8."""
        ...


class OnnxNetwork:
    """A graph in ONNX Runtime.

    Parameters
    ----------
    content : bytes
        ONNX model.

    Raises
    ------
    MissingPackageError
        If onnxruntime is not installed.
    ExportError
        If it does not take the graph.
    """

    def __init__(self, content: bytes) -> None:
        onnxruntime = import_onnxruntime(_NEED)
        settings = onnxruntime.SessionOptions()
        settings.intra_op_num_threads = count_cpus()
        settings.log_severity_level = 3
        try:
            self._session = onnxruntime.InferenceSession(content, settings, providers=["CPUExecutionProvider"])
        except _list_faults() as error:
            raise ExportError(f"ONNX Runtime does not take the graph: {_shorten(error)}") from error
        self._names = [output.name for output in self._session.get_outputs()]

    def compute(self, pixels: NDArray[np.uint8]) -> Values:
        """Outputs by name."""
        try:
            return dict(zip(self._names, self._session.run(None, {PIXELS: pixels}), strict=True))
        except _list_faults() as error:
            raise ExportError(f"ONNX Runtime cannot run the graph on {pixels.shape}: {_shorten(error)}") from error


class OpenvinoNetwork:
    """A graph in OpenVINO.

    Parameters
    ----------
    source : Path or bytes
        An XML file with its weights beside it, or an ONNX model.
    outputs : sequence of str, optional
        Names of tensors to make outputs of, too.

    Raises
    ------
    ExportError
        If it does not take the graph.
    """

    def __init__(self, source: Path | bytes, outputs: Sequence[str] = ()) -> None:
        try:
            core = open_core()
            model = core.read_model(source)
            if outputs:
                model.add_outputs(list(outputs))
            # One photo a request, as `Engine` has it: with a batch of any size other kernels are chosen, and int8
            # rounds at other places.
            model.reshape(
                [1, -1, -1, 3] if model.input(0).partial_shape[1].is_dynamic else [1, *model.input(0).partial_shape[1:]]
            )
            settings = {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": count_cpus()}
            self._compiled = core.compile_model(model, "CPU", settings)
            self._request = self._compiled.create_infer_request()
        except RuntimeError as error:
            raise ExportError(f"OpenVINO does not take the graph: {_shorten(error)}") from error

    def compute(self, pixels: NDArray[np.uint8]) -> Values:
        """Outputs by name."""
        try:
            found = self._request.infer({PIXELS: pixels})
        except RuntimeError as error:
            raise ExportError(f"OpenVINO cannot run the graph on {pixels.shape}: {_shorten(error)}") from error
        return {name: values.copy() for port, values in found.items() for name in port.get_names()}


class GraphRunner:
    """An exported graph, with what comes before it done as its metadata says.

    Parameters
    ----------
    name : str
        Runtime and version.
    is_native : bool
        Whether it computes in 8 bits as the bundle itself does.
    preprocessing : Preprocessing
        The contract.
    network : Network
        The export as it was written.
    probed : callable
        Gives the same graph with its stages as outputs, and the names of those of square and scaled pixels.
    """

    def __init__(
        self, name: str, preprocessing: Preprocessing, network: Network, probed: Probed, *, is_native: bool
    ) -> None:
        self.name = name
        self.is_native = is_native
        self._preprocessing = preprocessing
        self._network = network
        self._probed = probed

    def follow(self, photos: Sequence[bytes], *, shows_stages: bool) -> Iterator[Trace | PhotoError]:
        """Answer for the content of photo files, in order; decoding overlaps computing."""

        def decode(i: int) -> NDArray[np.uint8] | PhotoError:
            try:
                return decode_photo(photos[i], at_least_px=self._preprocessing.decode_px)
            except PhotoError as error:
                return error

        decoded = stream_ordered(decode, len(photos), n_threads=_N_THREADS, n_ahead=_N_AHEAD)
        for pixels in decoded:
            yield pixels if isinstance(pixels, PhotoError) else self._trace(pixels, shows_stages=shows_stages)

    def _trace(self, pixels: NDArray[np.uint8], *, shows_stages: bool) -> Trace:
        taken = pixels if can_resize(self._preprocessing) else self._preprocessing.apply(pixels)
        outputs = {name: np.asarray(values[0]) for name, values in self._network.compute(taken[None]).items()}
        if not shows_stages:
            return Trace(outputs)
        network, square, scaled = self._probed.network, self._probed.square, self._probed.scaled
        stages = {PIXELS: taken[None], **network.compute(taken[None])}
        return Trace(outputs, pixels, stages[square][0], stages[scaled][0])


class Probed:
    """A graph with its stages as outputs, made on first use.

    Parameters
    ----------
    path : Path
        ONNX or XML file.
    onnx : bytes
        The same graph as ONNX; where the file is one, its content.
    in_openvino : bool
        Which runtime.
    """

    def __init__(self, path: Path, onnx: bytes, *, in_openvino: bool) -> None:
        self._path = path
        self._in_openvino = in_openvino
        self._probes = add_probes(onnx)
        self.square, self.scaled = self._probes.square, self._probes.scaled

    @cached_property
    def network(self) -> Network:
        """The graph."""
        if not self._in_openvino:
            return OnnxNetwork(self._probes.model)
        if self._path.suffix != ".xml":
            return OpenvinoNetwork(self._probes.model)
        return OpenvinoNetwork(self._path, [name for name in (self.square, self.scaled) if name != PIXELS])


class BundleRunner:
    """A copy of a bundle, run as bundles are.

    Parameters
    ----------
    folder : Path
        Where the copy is.
    """

    is_native = True

    def __init__(self, folder: Path) -> None:
        self.name = f"OpenVINO {metadata.version('openvino')}, by Pomona"
        self._bundle = load_bundle(folder)

    def follow(self, photos: Sequence[bytes], *, shows_stages: bool) -> Iterator[Trace | PhotoError]:  # noqa: ARG002
        """Answer for the content of photo files, in order."""
        yield from follow_bundle(self._bundle, photos)


def open_onnx_runners(bundle: Bundle, path: Path) -> tuple[GraphRunner, ...]:
    """An ONNX file in ONNX Runtime and in OpenVINO."""
    with storage_errors(f"read {path}"):
        content = path.read_bytes()
    version = import_onnxruntime(_NEED).__version__
    return (
        GraphRunner(
            f"ONNX Runtime {version}",
            bundle.preprocessing,
            OnnxNetwork(content),
            Probed(path, content, in_openvino=False),
            is_native=False,
        ),
        GraphRunner(
            f"OpenVINO {metadata.version('openvino')}",
            bundle.preprocessing,
            OpenvinoNetwork(content),
            Probed(path, content, in_openvino=True),
            is_native=True,
        ),
    )


def open_openvino_runner(bundle: Bundle, path: Path, onnx: bytes) -> GraphRunner:
    """An XML file in OpenVINO; `onnx` is the graph that it was made of, for the names of its stages."""
    name = f"OpenVINO {metadata.version('openvino')}"
    probed = Probed(path, onnx, in_openvino=True)
    return GraphRunner(name, bundle.preprocessing, OpenvinoNetwork(path), probed, is_native=True)


def _list_faults() -> tuple[type[Exception], ...]:
    """What ONNX Runtime raises: classes of its own, which have no parent of their own."""
    from onnxruntime.capi import onnxruntime_pybind11_state as state

    return (
        RuntimeError,
        state.Fail,
        state.InvalidArgument,
        state.InvalidGraph,
        state.InvalidProtobuf,
        state.NotImplemented,
        state.RuntimeException,
    )


def _shorten(error: Exception) -> str:
    return str(error).strip().splitlines()[-1]
