"""What a bundle can be exported as.

In: the name of a format. Out: what writes it, what runs it, and how far it may be off.
Why: one table; a further format is a row, a function that writes it and one that runs it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, NamedTuple

from pomona.export.browser import MODEL_PATH, write_web
from pomona.export.browser_runner import BrowserRunner, PlainRunner, say_missing
from pomona.export.container import BUNDLE_FOLDER, write_container
from pomona.export.onnx_model import ONNX_NAME, build_onnx, write_onnx
from pomona.export.openvino_model import XML_NAME, build_int8, write_int8, write_openvino
from pomona.export.parity import EXACT, REQUANTISED, ROUNDED
from pomona.export.runtimes import BundleRunner, open_onnx_runners, open_openvino_runner

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence
    from pathlib import Path

    from pomona.bundle import Bundle
    from pomona.export.golden import GoldenPhoto
    from pomona.export.parity import Bounds
    from pomona.export.trace import Runner
    from pomona.photo import PhotoFormat

FormatName = Literal["onnx", "openvino", "int8", "web", "docker"]


class Format(NamedTuple):
    """A kind of export.

    Parameters
    ----------
    write : callable
        Writes the files for a bundle, with its golden photos at hand, into an empty folder: `Bundle`, `Path` and a list
        of `GoldenPhoto` to None.
    open_runners : callable
        Gives what runs these files, for the gate.
    choose_bounds : callable
        How far such a runner may be off for a bundle.
    holds_golden : bool
        Whether golden photos lie beside it, for other languages.
    takes_runtime : bool
        Whether `write` takes the place of ONNX Runtime Web as ``runtime``.
    cannot_decode : frozenset of str
        Formats of photos that it says by name it does not take: real ones of these are no reason to refuse it.
    say_unchecked : callable, optional
        Says what of it cannot be run on this machine, as a sentence; None where all of it can.
    """

    write: Callable[..., None]
    open_runners: Callable[[Bundle, Path], Iterable[Runner]]
    choose_bounds: Callable[[Bundle, Runner], Bounds]
    holds_golden: bool = False
    takes_runtime: bool = False
    cannot_decode: frozenset[PhotoFormat] = frozenset()
    say_unchecked: Callable[[], str | None] | None = None


def choose_bounds(bundle: Bundle, runner: Runner) -> Bounds:
    """How far the bundle's own network may be off: rounding in 8 bits is each runtime's own."""
    return EXACT if runner.is_native or bundle.manifest.embedding.precision == "f32" else ROUNDED


def _choose_narrow(bundle: Bundle, _runner: Runner) -> Bounds:
    return EXACT if bundle.manifest.embedding.precision == "int8" else REQUANTISED


def _write_onnx(bundle: Bundle, folder: Path, _golden: Sequence[GoldenPhoto]) -> None:
    write_onnx(bundle, folder)


def _open_onnx(bundle: Bundle, folder: Path) -> Iterable[Runner]:
    return open_onnx_runners(bundle, folder / ONNX_NAME)


def _write_openvino(bundle: Bundle, folder: Path, _golden: Sequence[GoldenPhoto]) -> None:
    write_openvino(bundle, folder)


def _open_openvino(bundle: Bundle, folder: Path) -> Iterable[Runner]:
    return (open_openvino_runner(bundle, folder / XML_NAME, build_onnx(bundle)),)


def _write_int8(bundle: Bundle, folder: Path, _golden: Sequence[GoldenPhoto]) -> None:
    write_int8(bundle, folder)


def _open_int8(bundle: Bundle, folder: Path) -> Iterable[Runner]:
    return (open_openvino_runner(bundle, folder / XML_NAME, build_int8(bundle)),)


def _write_docker(bundle: Bundle, folder: Path, _golden: Sequence[GoldenPhoto]) -> None:
    write_container(bundle, folder)


def _open_docker(_bundle: Bundle, folder: Path) -> Iterable[Runner]:
    return (BundleRunner(folder / BUNDLE_FOLDER),)


def _write_web(bundle: Bundle, folder: Path, _golden: Sequence[GoldenPhoto], *, runtime: Path | None = None) -> None:
    write_web(bundle, folder, name=bundle.folder.resolve().name, runtime=runtime)


def _open_web(bundle: Bundle, folder: Path) -> Iterable[Runner]:
    """The page in a browser; where there is none, the graph that it runs."""
    if say_missing() is None:
        return (BrowserRunner.of(bundle, folder),)
    return (PlainRunner(bundle, folder / MODEL_PATH),)


def _say_page_unrun() -> str | None:
    missing = say_missing()
    return missing and f"the page's JavaScript was not run, its graph alone was: {missing}"


FORMATS: dict[FormatName, Format] = {
    "onnx": Format(_write_onnx, _open_onnx, choose_bounds, holds_golden=True),
    "openvino": Format(_write_openvino, _open_openvino, choose_bounds),
    "int8": Format(_write_int8, _open_int8, _choose_narrow),
    "web": Format(
        _write_web,
        _open_web,
        choose_bounds,
        takes_runtime=True,
        cannot_decode=frozenset({"heic", "tiff"}),
        say_unchecked=_say_page_unrun,
    ),
    "docker": Format(_write_docker, _open_docker, choose_bounds),
}
"""By name, in the order of the help."""
