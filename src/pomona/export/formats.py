"""What a bundle can be exported as.

In: the name of a format. Out: what writes it, what runs it, and how far it may be off.
Why: one table; a further format is a row, a function that writes it and one that runs it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, NamedTuple

from pomona.export.onnx_model import ONNX_NAME, write_onnx
from pomona.export.parity import EXACT, ROUNDED
from pomona.export.runtimes import open_onnx_runners

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence
    from pathlib import Path

    from pomona.bundle import Bundle
    from pomona.export.golden import GoldenPhoto
    from pomona.export.parity import Bounds
    from pomona.export.trace import Runner

FormatName = Literal["onnx", "openvino", "int8", "web", "docker"]


class Format(NamedTuple):
    """A kind of export.

    Parameters
    ----------
    write : callable
        Writes the files for a bundle, with its golden photos at hand, into an empty folder.
    open_runners : callable
        Gives what runs these files, for the gate.
    choose_bounds : callable
        How far such a runner may be off for a bundle.
    holds_golden : bool
        Whether golden photos lie beside it, for other languages.
    """

    write: Callable[[Bundle, Path, Sequence[GoldenPhoto]], None]
    open_runners: Callable[[Bundle, Path], Iterable[Runner]]
    choose_bounds: Callable[[Bundle, Runner], Bounds]
    holds_golden: bool = False


def choose_bounds(bundle: Bundle, runner: Runner) -> Bounds:
    """How far the bundle's own network may be off: rounding in 8 bits is each runtime's own."""
    return EXACT if runner.is_native or bundle.manifest.embedding.precision == "f32" else ROUNDED


def _write_onnx(bundle: Bundle, folder: Path, _golden: Sequence[GoldenPhoto]) -> None:
    write_onnx(bundle, folder)


def _open_onnx(bundle: Bundle, folder: Path) -> Iterable[Runner]:
    return open_onnx_runners(bundle, folder / ONNX_NAME)


FORMATS: dict[FormatName, Format] = {
    "onnx": Format(_write_onnx, _open_onnx, choose_bounds, holds_golden=True),
}
"""By name, in the order of the help."""
