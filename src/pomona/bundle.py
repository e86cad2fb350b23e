"""Everything a prediction needs in one folder.

In: an embedding's network, a head and the classes; later, photos. Out: a run folder, and predictions from it.
Why: what is saved is the whole way from pixels to probabilities as one ONNX graph, with the preprocessing beside it as
data. Predicting and evaluating run that graph and nothing else, so they cannot disagree with what was trained.

`pomona.json` is the manifest (docs/bundle-format.md). Loading is: parse, check the format number, check every hash,
construct. A bundle needs no torch and holds no pickle.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, ValidationError, field_validator

from pomona.backbone import Preprocessing
from pomona.dataset import ClassTree, Skipped, load_dataset
from pomona.embedding import load_network
from pomona.engine import Engine
from pomona.enhancement import complete_steps
from pomona.errors import (
    BundleDamagedError,
    BundleError,
    BundleFormatError,
    DataError,
    MissingPackageError,
    OptionError,
    PhotoError,
)
from pomona.evaluation import Evaluation, evaluate
from pomona.files import MANIFEST_NAME, hash_bytes, hash_file, write_atomic
from pomona.heat_map import append_heat_map
from pomona.photo import read_photo_bytes
from pomona.source import hide_folder

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence

    from numpy.typing import NDArray

    from pomona.dataset import Dataset, Split
    from pomona.embedding import Embedding
    from pomona.head import Head

BUNDLE_FORMAT = 3
"""Format number that this version writes; it reads this one and all before it."""

MODEL_NAME = "model.onnx"
HEAD_NAME = "head.safetensors"
LEARNT_NAME = "train_photos.txt"
TUNED_NAME = "tail.safetensors"


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class ClassEntry(_Strict):
    """One class: what is answered, and where it stands in the class tree."""

    name: str
    path: tuple[str, ...]


class PreprocessingEntryV1(_Strict):
    """`Preprocessing` as data, before photos were decoded at a fraction."""

    size_px: int
    fit: Literal["squash", "crop", "pad"]
    resample: Literal["bilinear"]
    offset: float
    scale: float


class PreprocessingEntryV2(PreprocessingEntryV1):
    """`Preprocessing` as data, before photos were enhanced."""

    decode_px: int | None = None


class PreprocessingEntry(_Strict):
    """`Preprocessing` as data."""

    size_px: int
    fit: Literal["squash", "crop", "pad"]
    resample: Literal["bilinear", "bicubic"]
    offset: float | tuple[float, float, float]
    scale: float | tuple[float, float, float]
    decode_px: int | None = None
    crop_share: float = 1.0
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


class _Sealed(_Strict):
    """What manifests of every format hold."""

    format: int
    pomona_version: str
    created: str
    classes: tuple[ClassEntry, ...]
    provenance: dict[str, str | int | float | bool | None]
    files: dict[str, str]
    checksum: str = ""

    def compute_checksum(self) -> str:
        """sha256 of the other fields as JSON with sorted keys."""
        content = self.model_dump(mode="json", exclude={"checksum"})
        return hash_bytes(json.dumps(content, sort_keys=True, ensure_ascii=False).encode("utf-8"))


class ManifestV1(_Sealed):
    """Content of `pomona.json` in format 1: one backbone, averages, float32."""

    preprocessing: PreprocessingEntryV1
    backbone: BackboneEntryV2

    def upgrade(self) -> Manifest:
        """The same in the newest format."""
        embedding = EmbeddingEntryV2(pooling="average", mirrored=False, precision="f32", backbones=(self.backbone,))
        fields = {name: getattr(self, name) for name in _Sealed.model_fields}
        return Manifest(
            **fields, preprocessing=PreprocessingEntry(**self.preprocessing.model_dump()), embedding=embedding.upgrade()
        )


class ManifestV2(_Sealed):
    """Content of `pomona.json` in format 2: nothing was enhanced."""

    preprocessing: PreprocessingEntryV2
    embedding: EmbeddingEntryV2

    def upgrade(self) -> Manifest:
        """The same in the newest format."""
        fields = {name: getattr(self, name) for name in _Sealed.model_fields}
        preprocessing = PreprocessingEntry(**self.preprocessing.model_dump())
        return Manifest(**fields, preprocessing=preprocessing, embedding=self.embedding.upgrade())


class Manifest(_Sealed):
    """Content of `pomona.json`."""

    preprocessing: PreprocessingEntry
    embedding: EmbeddingEntry

    def seal(self) -> Manifest:
        """Copy with the checksum of all the other fields."""
        return self.model_copy(update={"checksum": self.compute_checksum()})


_MANIFESTS: dict[int, type[ManifestV1 | ManifestV2]] = {1: ManifestV1, 2: ManifestV2}


@dataclass(frozen=True)
class Answer:
    """A class and how sure the recogniser is of it.

    Parameters
    ----------
    label : str
        Class name.
    score : float
        Probability, 0-1.
    """

    label: str
    score: float


@dataclass(frozen=True)
class Prediction:
    """What the recogniser says of one photo.

    Parameters
    ----------
    file : str
        The photo as it was named.
    label : str or None
        Most probable class; None where the photo could not be used.
    score : float or None
        Its probability, 0-1.
    top : tuple of Answer
        Most probable classes, best first.
    error : str or None
        Why the photo could not be used.
    """

    file: str
    label: str | None = None
    score: float | None = None
    top: tuple[Answer, ...] = ()
    error: str | None = None

    def to_dict(self) -> dict[str, Any]:
        """The prediction as plain values for JSON."""
        return asdict(self)


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
    def preprocessing(self) -> Preprocessing:
        """What every photo goes through."""
        return Preprocessing(**self.manifest.preprocessing.model_dump())

    @cached_property
    def engine(self) -> Engine:
        """What predicts, compiled on first use."""
        return Engine(self.folder / MODEL_NAME, n_workers=self.n_workers, outputs=("probabilities",))

    @cached_property
    def whole_engine(self) -> Engine:
        """The graph with all that it gives, features and a heat map among it, compiled on first use."""
        return Engine(self.folder / MODEL_NAME, n_workers=self.n_workers)

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
        probabilities = np.full((len(photos), len(self.tree)), np.nan, np.float32)
        errors: dict[int, PhotoError] = {}
        for i, outcome in enumerate(self._stream(photos)):
            if isinstance(outcome, PhotoError):
                errors[i] = outcome
            else:
                probabilities[i] = outcome["probabilities"]
            if on_photo:
                on_photo(i + 1, len(photos))
        return probabilities, errors

    def _stream(self, photos: Sequence[str | Path | bytes]) -> Iterator[Mapping[str, NDArray[np.float32]] | PhotoError]:
        def load_pixels(i: int) -> NDArray[np.uint8]:
            photo = photos[i]
            data = photo if isinstance(photo, bytes) else read_photo_bytes(Path(photo))
            return self.preprocessing.read(data)

        return self.engine.stream(len(photos), load_pixels)

    def to_prediction(
        self, file: str, outcome: Mapping[str, NDArray[np.float32]] | PhotoError, n_top: int
    ) -> Prediction:
        """What outputs of the graph say of a photo, or why it could not be used."""
        if isinstance(outcome, PhotoError):
            return Prediction(file, error=_say_fault(file, outcome))
        probabilities = outcome["probabilities"]
        best = np.argsort(-probabilities, kind="stable")[: max(1, n_top)]
        top = tuple(Answer(self.tree.names[c], float(probabilities[c])) for c in best)
        return Prediction(file, top[0].label, top[0].score, top[:n_top])


def _say_fault(file: str, error: PhotoError) -> str:
    """What is wrong with a photo, without its name: that stands beside it."""
    return str(error).removeprefix(f"{Path(file)}: ")


@dataclass(frozen=True)
class BundleScore:
    """How a bundle does on a dataset.

    Parameters
    ----------
    evaluation : Evaluation
        Metrics of the photos that could be used and whose class the bundle knows.
    skipped : tuple of Skipped
        Photos that could not be used.
    n_unknown_class : int
        Photos left out because the bundle does not know their class.
    unknown_labels : tuple of str
        Those classes.
    n_learnt : int
        Photos among those measured that the bundle was fitted on; they make the metrics too good.
    """

    evaluation: Evaluation
    skipped: tuple[Skipped, ...]
    n_unknown_class: int
    unknown_labels: tuple[str, ...]
    n_learnt: int = 0

    def to_dict(self) -> dict[str, Any]:
        """The score as plain values for JSON."""
        return {
            **self.evaluation.to_dict(),
            "n_skipped": len(self.skipped),
            "n_unknown_class": self.n_unknown_class,
            "unknown_classes": list(self.unknown_labels),
            "n_learnt": self.n_learnt,
        }


def load_labelled(bundle: Bundle, data: str | Path, *, split: Split | None = None) -> Dataset:
    """Load photos to evaluate a bundle on, with labels matched to its classes by name.

    Parameters
    ----------
    bundle : Bundle
        The recogniser.
    data : str or Path
        Whatever `load_dataset` takes.
    split : {"train", "val", "test"}, optional
        Part to take. Where not given and the data has parts: test if there is one, else val.

    Raises
    ------
    DataError
        If there are no labelled photos, or not in the part that is wanted.
    """
    dataset = load_dataset(data, tree=bundle.tree, min_classes=1)
    present = {photo.split for photo in dataset.photos}
    wanted = split or next((part for part in ("test", "val") if part in present), None)
    if wanted is None and present == {None}:
        return dataset
    if wanted is None or wanted not in present:
        found = ", ".join(sorted(str(part) for part in present if part)) or "no parts"
        raise DataError(
            f"{dataset.shown}: wanted the {wanted or 'test or val'} part, got {found}; name another with --split"
        )
    return dataset.part(wanted)


def evaluate_bundle(
    bundle: Bundle, dataset: Dataset, *, on_photo: Callable[[int, int], None] | None = None
) -> BundleScore:
    """Run a bundle over labelled photos.

    Parameters
    ----------
    bundle : Bundle
        The recogniser.
    dataset : Dataset
        Loaded with the bundle's class tree.
    on_photo : callable, optional
        Called with (photos done, photos in all).

    Raises
    ------
    DataError
        If no photo is left: none could be used, or the bundle knows none of their classes.
    """
    known = [photo for photo in dataset.photos if photo.label >= 0]
    probabilities, errors = bundle.predict_proba([photo.path for photo in known], on_photo=on_photo)
    usable = [i for i in range(len(known)) if i not in errors]
    if not usable:
        raise DataError(
            f"no photo of {dataset.shown} can be evaluated: {len(dataset.photos) - len(known)} have a class that "
            f"the bundle does not know, {len(errors) + len(dataset.skipped)} cannot be used"
        )
    failed = tuple(
        Skipped(known[i].name, known[i].path, error.fault, _say_fault(str(known[i].path), error))
        for i, error in sorted(errors.items())
    )
    labels = np.array([known[i].label for i in usable])
    groups = np.array([known[i].group for i in usable])
    evaluation = evaluate(
        probabilities[usable], labels, classes=bundle.tree.names, levels=list_levels(bundle.tree), groups=groups
    )
    n_unknown = len(dataset.photos) - len(known)
    n_learnt = sum(known[i].sha256 in bundle.learnt_from for i in usable)
    return BundleScore(evaluation, dataset.skipped + failed, n_unknown, dataset.unknown_labels, n_learnt)


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

    Returns
    -------
    Bundle
        The bundle just written.
    """
    from pomona import __version__

    model = build_model(load_network(embedding), head)
    tensors = save_tensors({"weights": head.weights, "bias": head.bias})
    contents = {MODEL_NAME: model, HEAD_NAME: tensors}
    if tuned := [one.tuned for one in embedding.backbones if one.tuned]:
        contents[TUNED_NAME] = tuned[0].path.read_bytes()
    if learnt_from is not None:
        contents[LEARNT_NAME] = list_learnt(learnt_from)
    for name, content in contents.items():
        write_atomic(folder / name, content)
    manifest = Manifest(
        format=BUNDLE_FORMAT,
        pomona_version=__version__,
        created=created,
        classes=list_classes(tree),
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
        provenance=dict(provenance),
        files={name: hash_bytes(content) for name, content in contents.items()},
    ).seal()
    write_atomic(folder / MANIFEST_NAME, manifest.model_dump_json(indent=2) + "\n")
    return Bundle(folder, manifest)


def list_classes(tree: ClassTree) -> tuple[ClassEntry, ...]:
    """Classes as the manifest holds them."""
    return tuple(ClassEntry(name=name, path=path) for name, path in zip(tree.names, tree.paths, strict=True))


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


def build_model(network: Path, head: Head) -> bytes:
    """Append a head to an embedding's network.

    Parameters
    ----------
    network : Path
        ONNX file with an output ``features`` (N, D).
    head : Head
        C classes on D features.

    Returns
    -------
    bytes
        ONNX model with the outputs ``probabilities`` (N, C), ``features`` (N, D) and, where features come from
        positions of the photo, ``heat_map`` (N, P, P): see `append_heat_map`.
    """
    try:
        import onnx
        from onnx import TensorProto, helper, numpy_helper
    except ImportError as error:
        raise MissingPackageError("onnx", "train", "to write a bundle") from error

    model = onnx.load(network)
    n_classes = len(head.bias)
    model.graph.initializer.extend(
        [numpy_helper.from_array(head.weights, "head_weights"), numpy_helper.from_array(head.bias, "head_bias")]
    )
    model.graph.node.extend(
        [
            helper.make_node("Gemm", ["features", "head_weights", "head_bias"], ["logits"], name="logits", transB=1),
            helper.make_node("Softmax", ["logits"], ["probabilities"], name="probabilities", axis=1),
        ]
    )
    features = model.graph.output.pop()
    probabilities = helper.make_tensor_value_info("probabilities", TensorProto.FLOAT, ("N", n_classes))
    model.graph.output.extend([probabilities, features])
    append_heat_map(model, logits="logits", weights="head_weights")
    model.graph.name = "pomona"
    return bytes(model.SerializeToString())


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
    if missing := {MODEL_NAME, HEAD_NAME} - manifest.files.keys():
        raise BundleDamagedError(f"{folder / MANIFEST_NAME} is damaged: files: it does not name {min(missing)}")
    for tuned in filter(None, (one.tuned for one in manifest.embedding.backbones)):
        if manifest.files.get(TUNED_NAME) != tuned.sha256:
            raise BundleDamagedError(f"{folder / MANIFEST_NAME} is damaged: files: wanted {TUNED_NAME} as it was tuned")
    for name, wanted in manifest.files.items():
        path = folder / name
        try:
            found = hash_file(path)
        except OSError as error:
            raise BundleDamagedError(f"{path}: wanted a file of this bundle, got: {error.strerror}") from error
        if found != wanted:
            raise BundleDamagedError(
                f"{path} is damaged: wanted sha256 {wanted}, got {found}; copy the bundle again or train it again"
            )
    return Bundle(folder, manifest, n_workers)


def parse_manifest(folder: Path) -> Manifest:
    """Read and check `pomona.json` alone."""
    path = folder / MANIFEST_NAME
    if not folder.is_dir():
        raise BundleError(f"{folder}: wanted a run folder that `pomona train` wrote, got no folder")
    try:
        content = json.loads(path.read_bytes())
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
        manifest: ManifestV1 | ManifestV2 | Manifest = _MANIFESTS.get(number, Manifest).model_validate(content)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise BundleDamagedError(f"{path} is damaged: {where}: {first['msg']}") from error
    if manifest.checksum != manifest.compute_checksum():
        raise BundleDamagedError(f"{path} is damaged: its checksum does not match its content")
    return manifest if isinstance(manifest, Manifest) else manifest.upgrade()
