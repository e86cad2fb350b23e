"""Everything a prediction needs in one folder.

In: an embedding's network, a head and the classes; later, photos. Out: a run folder, and predictions from it.
Why: what is saved is the whole way from pixels to probabilities as one ONNX graph, with the preprocessing beside it as
data. Predicting and evaluating run that graph and nothing else, so they cannot disagree with what was trained.

`pomona.json` is the manifest (docs/bundle-format.md). Loading is: parse, check the format number, check every hash,
construct. A bundle needs no torch and holds no pickle.
"""

from __future__ import annotations

import json
import math
import mmap
import os
import re
import stat
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, NamedTuple

import numpy as np
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from pomona.backbone import Preprocessing
from pomona.class_names import ClassName
from pomona.class_tree import show_text
from pomona.dataset import ClassTree
from pomona.embedding import load_network
from pomona.engine import Engine, is_finite
from pomona.enhancement import complete_steps
from pomona.errors import (
    BundleDamagedError,
    BundleError,
    BundleFormatError,
    DataError,
    MissingPackageError,
    NotFiniteError,
    OptionError,
    PhotoError,
)
from pomona.files import MANIFEST_NAME, hash_bytes, hash_file, write_atomic
from pomona.head import Link
from pomona.learnt_bank import BANK_NAME, LearntBank, load_bank, save_bank
from pomona.model_file import MODEL_NAME, UNKNOWN, build_model
from pomona.novelty import CANDIDATES, Detector, needs_bank, sketch_vectors
from pomona.photo import read_photo_bytes
from pomona.prediction import Prediction, Speaker
from pomona.source import hide_folder
from pomona.trust import Promise, Trust

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence

    from numpy.typing import NDArray

    from pomona.embedding import Embedding
    from pomona.head import Head

BUNDLE_FORMAT = 4
"""Format number that this version writes; it reads this one and all before it."""

HEAD_NAME = "head.safetensors"
LEARNT_NAME = "train_photos.txt"
TUNED_NAME = "tail.safetensors"

MAX_FILE_BYTES = 2**31
"""Largest file of a bundle; ONNX cannot hold more, and a file that never ends must not be read for ever."""

_MAX_MANIFEST_BYTES = 2**25
_MAX_LEVELS = 64
_MAX_SIZE_PX = 4096
_EXTERNAL = b"\n\x08location\x12"
"""How ONNX begins to say that weights are in another file, which no hash would cover."""

_LARGE_ESCAPE = re.compile(rb"(?<!\\)(?:\\\\)*\\u[0-9a-fA-F]{0,3}[A-F]")
_DIGITS = re.compile(r"-?([0-9]+)(?:\.([0-9]+))?(?:e.*)?")


def _require_shown(text: str) -> str:
    """Refuse what would steer a terminal, and bytes that are no text."""
    if show_text(text) != text:
        raise ValueError(f"wanted text without control signs, got {text[:80]!r}")
    return text


Shown = Annotated[str, Field(max_length=10_000), AfterValidator(_require_shown)]
"""Text that people read."""


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class ClassEntryV3(_Strict):
    """One class: what is answered, and where it stands in the class tree; before classes had names for people."""

    name: Shown
    path: tuple[Shown, ...] = Field(max_length=_MAX_LEVELS)


class ClassEntry(ClassEntryV3):
    """One class: what is answered, where it stands in the class tree, what people call it, and its code at a till."""

    name_en: Shown | None = Field(default=None, min_length=1)
    name_zh: Shown | None = Field(default=None, min_length=1)
    plu: str | None = Field(default=None, pattern="^[0-9]{4,5}$")
    extra: dict[Shown, Shown] = {}


class PreprocessingEntryV1(_Strict):
    """`Preprocessing` as data, before photos were decoded at a fraction."""

    size_px: int = Field(ge=1, le=_MAX_SIZE_PX)
    fit: Literal["squash", "crop", "pad"]
    resample: Literal["bilinear"]
    offset: float
    scale: float


class PreprocessingEntryV2(PreprocessingEntryV1):
    """`Preprocessing` as data, before photos were enhanced."""

    decode_px: int | None = Field(default=None, ge=1)


class PreprocessingEntry(_Strict):
    """`Preprocessing` as data."""

    size_px: int = Field(ge=1, le=_MAX_SIZE_PX)
    fit: Literal["squash", "crop", "pad"]
    resample: Literal["bilinear", "bicubic"]
    offset: float | tuple[float, float, float]
    scale: float | tuple[float, float, float]
    decode_px: int | None = Field(default=None, ge=1)
    crop_share: float = Field(default=1.0, gt=0, le=1)
    enhance: tuple[str, ...] = ()

    @field_validator("enhance")
    @classmethod
    def _require_steps(cls, steps: tuple[str, ...]) -> tuple[str, ...]:
        try:
            full = complete_steps(steps)
        except OptionError as error:  # pydantic knows what is wrong with a manifest by a `ValueError`
            raise ValueError(str(error)) from error
        if full != steps:
            raise ValueError(f"wanted steps in full, {list(full)}, got {list(steps)}")
        return steps


class BackboneEntryV2(_Strict):
    """Which pretrained network the features come from, before weights were tuned."""

    name: str
    tag: str
    weights_sha256: str
    licence: str
    pooled: tuple[str, ...]


class TunedEntry(_Strict):
    """Which weights are not the published ones; they are in `TUNED_NAME`."""

    layer: str
    sha256: str


class BackboneEntry(BackboneEntryV2):
    """Which pretrained network the features come from."""

    tuned: TunedEntry | None = None


class EmbeddingEntryV2(_Strict):
    """`Embedding` as data, before weights were tuned."""

    pooling: Literal["average", "second-order"]
    mirrored: bool
    precision: Literal["f32", "int8"]
    backbones: tuple[BackboneEntryV2, ...]

    def upgrade(self) -> EmbeddingEntry:
        """The same in the newest format."""
        backbones = tuple(BackboneEntry(**one.model_dump()) for one in self.backbones)
        return EmbeddingEntry(
            pooling=self.pooling, mirrored=self.mirrored, precision=self.precision, backbones=backbones
        )


class EmbeddingEntry(_Strict):
    """`Embedding` as data."""

    pooling: Literal["average", "second-order"]
    mirrored: bool
    precision: Literal["f32", "int8"]
    backbones: tuple[BackboneEntry, ...]


class _Finite(_Strict):
    model_config = ConfigDict(allow_inf_nan=False)


class LinkEntry(_Finite):
    """`Link` as data."""

    width: float | None = Field(gt=0)
    sharpness: float = Field(gt=0)


class UnknownEntry(_Finite):
    """`Detector` as data; what it has learnt is in `BANK_NAME`."""

    kind: tuple[str, ...] = Field(min_length=1)
    middles: tuple[float, ...]
    spreads: tuple[float, ...]
    threshold: float

    @field_validator("kind")
    @classmethod
    def _require_kind(cls, kind: tuple[str, ...]) -> tuple[str, ...]:
        if kind not in CANDIDATES:
            raise ValueError(f"wanted one of {[list(one) for one in CANDIDATES]}, got {list(kind)}")
        return kind

    @model_validator(mode="after")
    def _require_scales(self) -> UnknownEntry:
        if not len(self.kind) == len(self.middles) == len(self.spreads):
            raise ValueError(f"wanted as many middles and spreads as measures, {len(self.kind)}")
        if min(self.spreads) <= 0:
            raise ValueError(f"wanted spreads above 0, got {min(self.spreads)}")
        return self


class PromiseEntry(_Finite):
    """`Promise` as data."""

    share: float = Field(gt=0, lt=1)
    least_answer: float = Field(ge=0)
    least_shortlist: float = Field(ge=0)
    turned_away: float = Field(gt=0, lt=1)
    n: int
    n_groups: int


class TrustEntry(_Strict):
    """`Trust` as data."""

    link: LinkEntry
    unknown: UnknownEntry | None
    promise: PromiseEntry | None


class _Sealed(_Strict):
    """What manifests of every format hold."""

    format: int
    pomona_version: str
    created: str
    classes: tuple[ClassEntryV3, ...]
    provenance: dict[str, str | int | float | bool | None]
    files: dict[str, str]
    checksum: str = ""

    @field_validator("files")
    @classmethod
    def _require_names(cls, files: dict[str, str]) -> dict[str, str]:
        """A bundle names files in its own folder: whoever opens a stranger's must not be made to read others."""
        for name in files:
            if name in {"", ".", ".."} or {"/", "\\", "\0", ":"} & set(name):
                raise ValueError(f"wanted names of files in this folder, got {name[:80]!r}")
        return files

    def compute_checksum(self) -> str:
        """sha256 of the other fields as JSON with sorted keys."""
        content = self.model_dump(mode="json", exclude={"checksum"})
        return hash_bytes(json.dumps(content, sort_keys=True, ensure_ascii=False).encode("utf-8"))

    def upgrade_shared(self) -> dict[str, Any]:
        """What manifests of every format hold, in the newest format."""
        fields = {name: getattr(self, name) for name in _Sealed.model_fields}
        return fields | {"classes": tuple(ClassEntry(**one.model_dump()) for one in self.classes)}


class ManifestV1(_Sealed):
    """Content of `pomona.json` in format 1: one backbone, averages, float32."""

    preprocessing: PreprocessingEntryV1
    backbone: BackboneEntryV2

    def upgrade(self) -> Manifest:
        """The same in the newest format."""
        embedding = EmbeddingEntryV2(pooling="average", mirrored=False, precision="f32", backbones=(self.backbone,))
        preprocessing = PreprocessingEntry(**self.preprocessing.model_dump())
        return Manifest(**self.upgrade_shared(), preprocessing=preprocessing, embedding=embedding.upgrade())


class ManifestV2(_Sealed):
    """Content of `pomona.json` in format 2: nothing was enhanced."""

    preprocessing: PreprocessingEntryV2
    embedding: EmbeddingEntryV2

    def upgrade(self) -> Manifest:
        """The same in the newest format."""
        preprocessing = PreprocessingEntry(**self.preprocessing.model_dump())
        return Manifest(**self.upgrade_shared(), preprocessing=preprocessing, embedding=self.embedding.upgrade())


class ManifestV3(_Sealed):
    """Content of `pomona.json` in format 3: nothing was promised, and classes had no names for people."""

    preprocessing: PreprocessingEntry
    embedding: EmbeddingEntry

    def upgrade(self) -> Manifest:
        """The same in the newest format."""
        return Manifest(**self.upgrade_shared(), preprocessing=self.preprocessing, embedding=self.embedding)


class Manifest(_Sealed):
    """Content of `pomona.json`."""

    classes: tuple[ClassEntry, ...]
    preprocessing: PreprocessingEntry
    embedding: EmbeddingEntry
    trust: TrustEntry | None = None

    def seal(self) -> Manifest:
        """Copy with the checksum of all the other fields."""
        return self.model_copy(update={"checksum": self.compute_checksum()})


_MANIFESTS: dict[int, type[ManifestV1 | ManifestV2 | ManifestV3]] = {1: ManifestV1, 2: ManifestV2, 3: ManifestV3}


class Measured(NamedTuple):
    """What a bundle's graph says of N photos.

    Parameters
    ----------
    probabilities : ndarray of shape (N, C), float32
        Of the classes.
    strangeness : ndarray of shape (N,), float32, or None
        0-1, unknown from 0.5 on; None where the bundle cannot tell.
    sketches : ndarray of shape (N, K), float32, or None
        Features in few numbers; None where no photo could be used.
    errors : dict of int to PhotoError
        Photos that failed, by number.
    """

    probabilities: NDArray[np.float32]
    strangeness: NDArray[np.float32] | None
    sketches: NDArray[np.float32] | None
    errors: dict[int, PhotoError]


@dataclass(frozen=True)
class Bundle:
    """A recogniser on disk, checked and ready.

    Parameters
    ----------
    folder : Path
        Where it is.
    manifest : Manifest
        What it is.
    n_workers : int, optional
        Threads; every core where not given.
    """

    folder: Path
    manifest: Manifest
    n_workers: int | None = None

    @cached_property
    def tree(self) -> ClassTree:
        """The classes it can answer."""
        entries = self.manifest.classes
        return ClassTree(tuple(entry.name for entry in entries), tuple(entry.path for entry in entries))

    @cached_property
    def names(self) -> tuple[ClassName, ...]:
        """What people call each class, in the order of the tree."""
        return tuple(ClassName(one.name_en, one.name_zh, one.plu, one.extra) for one in self.manifest.classes)

    @cached_property
    def preprocessing(self) -> Preprocessing:
        """What every photo goes through."""
        return Preprocessing(**self.manifest.preprocessing.model_dump())

    @cached_property
    def engine(self) -> Engine:
        """What predicts, compiled on first use: all of the graph but its heat map, which costs time."""
        entry = self.manifest.trust
        unknown = (UNKNOWN,) if entry is not None and entry.unknown is not None else ()
        outputs = ("probabilities", "features", *unknown)
        engine = Engine(self.folder / MODEL_NAME, n_workers=self.n_workers, outputs=outputs)
        size_px, n_classes = self.manifest.preprocessing.size_px, len(self.manifest.classes)
        found = engine.run(np.zeros((0, *engine.shape), np.uint8))["probabilities"].shape[1:]
        if (engine.shape, found) != ((size_px, size_px, 3), (n_classes,)):
            raise BundleDamagedError(
                f"{self.folder / MODEL_NAME}: wanted a graph from {size_px} x {size_px} pixels to {n_classes} classes, "
                f"as {MANIFEST_NAME} has it, got one from {engine.shape} to {found}"
            )
        return engine

    @cached_property
    def whole_engine(self) -> Engine:
        """The graph with all that it gives, features and a heat map among it, compiled on first use."""
        return Engine(self.folder / MODEL_NAME, n_workers=self.n_workers)

    @cached_property
    def speaker(self) -> Speaker:
        """What turns its outputs into answers."""
        return Speaker(self.tree, self.names, self.promise)

    @cached_property
    def trust(self) -> Trust:
        """What makes its answers trustworthy; little is promised by a bundle of an older format."""
        entry = self.manifest.trust
        if entry is None:
            return Trust()
        detector = None
        if entry.unknown is not None:
            bank = self.bank.bank if self.bank is not None and needs_bank(entry.unknown.kind) else None
            detector = Detector(**entry.unknown.model_dump(), bank=bank)
        return Trust(Link(**entry.link.model_dump()), detector, self.promise)

    @cached_property
    def promise(self) -> Promise | None:
        """Thresholds that its answers go by."""
        entry = self.manifest.trust
        return None if entry is None or entry.promise is None else Promise(**entry.promise.model_dump())

    @cached_property
    def bank(self) -> LearntBank | None:
        """What it has learnt, in few numbers a photo; None where the bundle does not hold it."""
        if BANK_NAME not in self.manifest.files:
            return None
        bank = load_bank(self.folder)
        labels = bank.bank.labels
        if labels.size and not 0 <= labels.min() <= labels.max() < len(self.tree):
            raise BundleDamagedError(
                f"{self.folder / BANK_NAME}: wanted labels of {len(self.tree)} classes, got {labels.min()} to "
                f"{labels.max()}"
            )
        return bank

    @cached_property
    def learnt_from(self) -> frozenset[str]:
        """Hashes of the photos that it was fitted on; none where the bundle does not say."""
        if LEARNT_NAME not in self.manifest.files:
            return frozenset()
        path = self.folder / LEARNT_NAME
        try:
            return frozenset(path.read_text(encoding="ascii").split())
        except (OSError, ValueError) as error:
            raise BundleDamagedError(f"{path}: wanted a line for each photo learnt from, got: {error}") from error

    def predict(self, photos: Sequence[str | Path | bytes], *, n_top: int = 5) -> Generator[Prediction]:
        """Answer for each photo, in the order given; a photo that cannot be used is an answer with an error.

        Parameters
        ----------
        photos : sequence of str, Path or bytes, length N
            Files, or the content of files.
        n_top : int
            How many of the most probable classes to name.

        Yields
        ------
        Prediction
            One per photo.
        """
        for photo, outcome in zip(photos, self._stream(photos), strict=True):
            yield self.to_prediction("-" if isinstance(photo, bytes) else str(photo), outcome, n_top)

    def predict_proba(
        self, photos: Sequence[str | Path | bytes], *, on_photo: Callable[[int, int], None] | None = None
    ) -> tuple[NDArray[np.float32], dict[int, PhotoError]]:
        """Probabilities (N, C) of photos; a row whose photo failed is NaN and its number is in the errors."""
        found = self.measure(photos, on_photo=on_photo)
        return found.probabilities, found.errors

    def measure(
        self, photos: Sequence[str | Path | bytes], *, on_photo: Callable[[int, int], None] | None = None
    ) -> Measured:
        """All that the graph says of photos; rows of photos that failed are NaN."""
        n, is_telling = len(photos), UNKNOWN in self.engine.outputs
        probabilities = np.full((n, len(self.tree)), np.nan, np.float32)
        strangeness = np.full(n, np.nan, np.float32) if is_telling else None
        sketches: NDArray[np.float32] | None = None
        errors: dict[int, PhotoError] = {}
        for i, outcome in enumerate(self._stream(photos)):
            if isinstance(outcome, PhotoError):
                errors[i] = outcome
            else:
                probabilities[i] = outcome["probabilities"]
                if strangeness is not None:
                    strangeness[i] = outcome[UNKNOWN]
                sketch = sketch_vectors(outcome["features"][None])[0]
                if sketches is None:
                    sketches = np.full((n, len(sketch)), np.nan, np.float32)
                sketches[i] = sketch
            if on_photo:
                on_photo(i + 1, n)
        return Measured(probabilities, strangeness, sketches, errors)

    def _stream(self, photos: Sequence[str | Path | bytes]) -> Iterator[Mapping[str, NDArray[np.float32]] | PhotoError]:
        def load_pixels(i: int) -> NDArray[np.uint8]:
            photo = photos[i]
            data = photo if isinstance(photo, bytes) else read_photo_bytes(Path(photo))
            return self.preprocessing.read(data)

        for i, outcome in enumerate(self.engine.stream(len(photos), load_pixels)):
            if not isinstance(outcome, PhotoError) and not is_finite({"": outcome["probabilities"]}):
                what = "a photo" if isinstance(photos[i], bytes) else show_text(str(photos[i]))
                raise NotFiniteError(
                    f"{self.folder / MODEL_NAME} gave numbers that are not finite for {what}: train it again"
                )
            yield outcome

    def to_prediction(
        self, file: str, outcome: Mapping[str, NDArray[np.float32]] | PhotoError, n_top: int
    ) -> Prediction:
        """What outputs of the graph say of a photo, or why it could not be used."""
        if isinstance(outcome, PhotoError):
            return Prediction(file, error=say_fault(file, outcome))
        strangeness = float(outcome[UNKNOWN]) if UNKNOWN in outcome else None
        return self.speaker.speak(file, outcome["probabilities"], strangeness, n_top=n_top)


def say_fault(file: str, error: PhotoError) -> str:
    """What is wrong with a photo, without its name: that stands beside it."""
    return str(error).removeprefix(f"{Path(file)}: ")


def list_levels(tree: ClassTree) -> list[tuple[str, tuple[str, ...], NDArray[np.intp]]]:
    """Levels of a class tree above the classes themselves, coarsest first, as `evaluate` takes them."""
    return [(f"level {depth}", *tree.level(depth)) for depth in range(1, tree.n_levels)]


def write_bundle(
    folder: Path,
    *,
    embedding: Embedding,
    head: Head,
    tree: ClassTree,
    created: str,
    provenance: Mapping[str, str | int | float | bool | None],
    learnt_from: Iterable[str] | None = None,
    names: Sequence[ClassName] | None = None,
    trust: Trust | None = None,
    bank: LearntBank | None = None,
) -> Bundle:
    """Write what a prediction needs into a folder: the graph, the head on its own, and last the manifest.

    Parameters
    ----------
    folder : Path
        Exists; other files of the run may lie in it.
    embedding, head, tree
        What was trained.
    created : str
        UTC time, ISO 8601.
    provenance : mapping
        Where it comes from: dataset fingerprint, counts, seed, settings.
    learnt_from : iterable of str, optional
        Hashes of the photos that the head was fitted on.
    names : sequence of ClassName, length C, optional
        What people call the classes, in the order of the tree.
    trust : Trust
        What makes its answers trustworthy.
    bank : LearntBank, optional
        What was learnt, in few numbers a photo.

    Returns
    -------
    Bundle
        The bundle just written.
    """
    from pomona import __version__

    trust = trust or Trust()
    model = build_model(load_network(embedding), head, trust)
    tensors = save_tensors({"weights": head.weights, "bias": head.bias})
    contents = {MODEL_NAME: model, HEAD_NAME: tensors}
    if tuned := [one.tuned for one in embedding.backbones if one.tuned]:
        contents[TUNED_NAME] = tuned[0].path.read_bytes()
    if learnt_from is not None:
        contents[LEARNT_NAME] = list_learnt(learnt_from)
    if bank is not None:
        contents[BANK_NAME] = save_bank(bank)
    for name, content in contents.items():
        write_atomic(folder / name, content)
    manifest = Manifest(
        format=BUNDLE_FORMAT,
        pomona_version=__version__,
        created=created,
        classes=list_classes(tree, names),
        preprocessing=PreprocessingEntry(**asdict(embedding.preprocessing)),
        embedding=EmbeddingEntry(
            pooling=embedding.pooling,
            mirrored=embedding.mirrored,
            precision=embedding.precision,
            backbones=tuple(
                BackboneEntry(
                    name=hide_folder(one.name),
                    tag=one.tag,
                    weights_sha256=one.weights_sha256,
                    licence=one.licence,
                    pooled=one.pooled,
                    tuned=TunedEntry(layer=one.tuned.layer, sha256=one.tuned.sha256) if one.tuned else None,
                )
                for one in embedding.backbones
            ),
        ),
        trust=list_trust(trust),
        provenance=dict(provenance),
        files={name: hash_bytes(content) for name, content in contents.items()},
    ).seal()
    write_atomic(folder / MANIFEST_NAME, manifest.model_dump_json(indent=2) + "\n")
    return Bundle(folder, manifest)


def list_classes(tree: ClassTree, names: Sequence[ClassName] | None = None) -> tuple[ClassEntry, ...]:
    """Classes as the manifest holds them, with what people call them where that is known."""
    called = names or [ClassName()] * len(tree)
    return tuple(
        ClassEntry(name=label, path=path, **asdict(name))
        for label, path, name in zip(tree.names, tree.paths, called, strict=True)
    )


def list_trust(trust: Trust) -> TrustEntry:
    """Trust as the manifest holds it."""
    found = trust.detector
    return TrustEntry(
        link=LinkEntry(width=trust.link.width, sharpness=trust.link.sharpness),
        unknown=None
        if found is None
        else UnknownEntry(
            kind=found.kind, middles=found.middles, spreads=found.spreads, threshold=float(found.threshold)
        ),
        promise=None if trust.promise is None else PromiseEntry(**asdict(trust.promise)),
    )


def list_learnt(hashes: Iterable[str]) -> bytes:
    """Content of the file that names the photos learnt from, one hash a line, sorted."""
    return "".join(f"{sha256}\n" for sha256 in sorted(hashes)).encode("ascii")


def save_tensors(tensors: dict[str, NDArray[np.float32]]) -> bytes:
    """Content of a safetensors file."""
    try:
        from safetensors.numpy import save
    except ImportError as error:
        raise MissingPackageError("safetensors", "train", "to write a bundle") from error
    return bytes(save(tensors))


def load_bundle(folder: str | Path, *, n_workers: int | None = None) -> Bundle:
    """Open a run folder: parse, check the format number, check every hash.

    Parameters
    ----------
    folder : str or Path
        What `train` wrote.
    n_workers : int, optional
        Threads for predictions; every core where not given.

    Raises
    ------
    BundleError
        If the folder or its manifest is missing or is not one.
    BundleFormatError
        If a newer Pomona wrote it.
    BundleDamagedError
        If a file is missing or differs from its hash.
    """
    folder = Path(folder)
    manifest = parse_manifest(folder)
    unknown = manifest.trust and manifest.trust.unknown
    needed = {MODEL_NAME, HEAD_NAME, *([BANK_NAME] if unknown and needs_bank(unknown.kind) else ())}
    if missing := needed - manifest.files.keys():
        raise BundleDamagedError(f"{folder / MANIFEST_NAME} is damaged: files: it does not name {min(missing)}")
    for tuned in filter(None, (one.tuned for one in manifest.embedding.backbones)):
        if manifest.files.get(TUNED_NAME) != tuned.sha256:
            raise BundleDamagedError(f"{folder / MANIFEST_NAME} is damaged: files: wanted {TUNED_NAME} as it was tuned")
    for name, wanted in manifest.files.items():
        path = folder / name
        found = _hash_regular_file(path)
        if found != wanted:
            raise BundleDamagedError(
                f"{path} is damaged: wanted sha256 {wanted}, got {found}; copy the bundle again or train it again"
            )
    _require_own_weights(folder / MODEL_NAME)
    try:
        ClassTree(tuple(one.name for one in manifest.classes), tuple(one.path for one in manifest.classes))
    except DataError as error:
        raise BundleDamagedError(f"{folder / MANIFEST_NAME} is damaged: {error}") from error
    return Bundle(folder, manifest, n_workers)


def _hash_regular_file(path: Path) -> str:
    """Hash of a file of a bundle; what is no file, or has no end, is not waited for."""
    try:
        status = path.stat()
        if not stat.S_ISREG(status.st_mode):
            kind = "a folder" if stat.S_ISDIR(status.st_mode) else "a pipe, socket or device"
            raise BundleDamagedError(f"{path}: wanted a file of this bundle, got {kind}")
        if status.st_size > MAX_FILE_BYTES:
            raise BundleDamagedError(
                f"{path} is damaged: wanted at most {MAX_FILE_BYTES:,} bytes, got {status.st_size:,}"
            )
        return hash_file(path)
    except OSError as error:
        raise BundleDamagedError(f"{path}: wanted a file of this bundle, got: {error.strerror}") from error


def _require_own_weights(path: Path) -> None:
    """Refuse a graph whose weights are in other files: the hash of the graph says nothing of those."""
    if not path.stat().st_size:
        raise BundleDamagedError(f"{path} is damaged: it has no bytes")
    with path.open("rb") as stream, mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as content:
        if content.find(_EXTERNAL) >= 0:
            raise BundleDamagedError(f"{path}: wanted a graph with its weights in it, got one with some in other files")


def parse_manifest(folder: Path) -> Manifest:
    """Read and check `pomona.json` alone."""
    path = folder / MANIFEST_NAME
    if not folder.is_dir():
        raise BundleError(f"{folder}: wanted a run folder that `pomona train` wrote, got no folder")
    try:
        data = _read_manifest(path)
        content = _parse_json(data)
    except FileNotFoundError as error:
        raise BundleError(
            f"{folder}: wanted a run folder that `pomona train` wrote, got no {MANIFEST_NAME} in it"
        ) from error
    except OSError as error:
        raise BundleError(f"{path} cannot be read: {error.strerror}") from error
    except (ValueError, RecursionError) as error:  # broken JSON, broken UTF-8, brackets without end
        raise BundleDamagedError(f"{path} is damaged: wanted JSON, got: {error}") from error
    number = content.get("format") if isinstance(content, dict) else None
    if not isinstance(number, int) or isinstance(number, bool) or number < 1:
        raise BundleDamagedError(f"{path} is damaged: wanted a format number from 1, got {number!r}")
    if number > BUNDLE_FORMAT:
        raise BundleFormatError(
            f"{path}: bundle format {number} was written by a newer Pomona; "
            f"this one reads up to {BUNDLE_FORMAT}: upgrade Pomona"
        )
    try:
        kind = _MANIFESTS.get(number, Manifest)
        manifest: ManifestV1 | ManifestV2 | ManifestV3 | Manifest = kind.model_validate(content)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise BundleDamagedError(f"{path} is damaged: {where}: {first['msg']}") from error
    if manifest.checksum != manifest.compute_checksum():
        raise BundleDamagedError(f"{path} is damaged: its checksum does not match its content")
    if not data.endswith(b"\n"):
        raise BundleDamagedError(f"{path} is damaged: its last line has no end")
    return manifest if isinstance(manifest, Manifest) else manifest.upgrade()


def _read_manifest(path: Path) -> bytes:
    # The path may be a pipe, or become one: not blocking on open makes that harmless.
    descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
    with os.fdopen(descriptor, "rb") as stream:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise ValueError("a pipe, socket or device")
        data = stream.read(_MAX_MANIFEST_BYTES + 1)
    if len(data) > _MAX_MANIFEST_BYTES:
        raise ValueError(f"more than {_MAX_MANIFEST_BYTES:,} bytes")
    return data


def _parse_json(data: bytes) -> Any:
    """Parse a manifest so that no changed bit goes unseen.

    The checksum is one of values, and a parser forgives what does not change them: a capital in an exponent or escape,
    a last digit too small to count, a key that comes twice.

    Examples
    --------
    >>> _parse_json(b'{"a": 0.1}')
    {'a': 0.1}
    >>> _parse_json(b'{"a": 0.10000000000000001}')
    Traceback (most recent call last):
    ValueError: the number 0.10000000000000001, whose digits are not those of 0.1
    """
    if found := _LARGE_ESCAPE.search(data):
        raise ValueError(f"an escape with a capital, {found[0][-6:]!r}")
    return json.loads(data, parse_float=_parse_float, parse_constant=_refuse_constant, object_pairs_hook=_join_pairs)


def _parse_float(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(f"the number {text[:40]}, which is too large")
    written, shortest = (_DIGITS.fullmatch(one) for one in (text, repr(value)))
    if written is None or shortest is None or _list_digits(written) != _list_digits(shortest):
        raise ValueError(f"the number {text[:40]}, whose digits are not those of {value!r}")
    return value


def _list_digits(number: re.Match[str]) -> str:
    return (number[1] + (number[2] or "")).strip("0")


def _refuse_constant(name: str) -> float:
    raise ValueError(f"{name}, which is no number")


def _join_pairs(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    content = dict(pairs)
    if len(content) < len(pairs):
        raise ValueError("a key that comes twice")
    return content
