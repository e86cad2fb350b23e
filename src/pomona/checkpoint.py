"""All that the next step of a training run depends on, in two files.

In: weights, optimizer and average as tensors, where the run stands, and what run it is. Out: the same, checked.
Why: a run that is killed at any moment goes on from here to the same result. The small file is written last and vouches
for the large one by its hash; what belongs to another run is refused, and it is said what differs. The folder of the
two is cleared of what training writes there, and of nothing else: a user may have put something beside it.
"""

from __future__ import annotations

import contextlib
import json
import math
import re
from dataclasses import asdict, dataclass, field, fields
from typing import TYPE_CHECKING, Any, NamedTuple, get_args

import numpy as np

from pomona.backbone import Precision
from pomona.errors import TuneError
from pomona.files import hash_bytes, storage_errors, write_atomic
from pomona.lr_range import RangeResult
from pomona.run_log import MLFLOW_NAME, RESULTS_NAME, TENSORBOARD_NAME
from pomona.tuning import TuneOptions

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from torch import Tensor

    from pomona.dataset import Dataset
    from pomona.embedding import Embedding

    Parts = Mapping[str, Mapping[str, Tensor]]

CHECKPOINT_FORMAT = 2
"""Counts up when older checkpoints would lead to another result."""

TENSORS_NAME, STATE_NAME = "checkpoint.safetensors", "checkpoint.json"
TUNING_SUFFIX = ".tuning"
"""What the name of the folder of these ends in; before it stands the name of the run."""

BEST_NAME, TUNED_NAME = "best.safetensors", "tail.safetensors"
"""Weights of the best validation, and those that are kept at the end, in the same folder."""

_NAMES = "|".join(map(re.escape, (STATE_NAME, BEST_NAME, TUNED_NAME, RESULTS_NAME, MLFLOW_NAME)))
_FILE = rf"(?:{_NAMES}|\d+-{re.escape(TENSORS_NAME)})"
_OWN = re.compile(rf"{_FILE}|\.{_FILE}\.[0-9a-f]{{8}}\.partial")
_EVENTS = "events.out.tfevents.*"
_WORDS = {"photos": "photos or their labels", "backbone": "backbone, size or pooling", "seed": "seed"}


@dataclass
class Progress:
    """Where a run stands, in numbers.

    Parameters
    ----------
    step, n_steps : int
        Steps done, and in all.
    seconds : float
        Trained so far.
    lr : float
        Learning rate that the schedule takes shares of.
    dtype : str
        Number format of the convolutions.
    best : float
        Best accuracy 0-1 so far.
    stopping : dict
        State of `EarlyStopping`.
    notes : list of str
        What a reader must know.
    range_test : dict
        What `pack_range` gave of the test that found the learning rate; nothing where there was none.
    """

    step: int = 0
    seconds: float = 0.0
    n_steps: int = 0
    lr: float = 0.0
    dtype: str = "f32"
    best: float = -math.inf
    stopping: dict[str, float | None] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    range_test: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Progress:
        """From what `to_dict` gave."""
        best = values["best"]
        return cls(**{**values, "best": -math.inf if best is None else best})

    def to_dict(self) -> dict[str, Any]:
        """As JSON knows it, which has no infinity."""
        return {**asdict(self), "best": self.best if math.isfinite(self.best) else None}


def describe_run(dataset: Dataset, embedding: Embedding, options: TuneOptions, seed: int) -> dict[str, object]:
    """What a checkpoint must have in common with the run that goes on from it."""
    ignored = {"resume", "log", "device", "refit"}
    names = {one.name for one in fields(TuneOptions)} - ignored
    photos = sorted(f"{photo.sha256} {photo.split} {photo.label}" for photo in dataset.photos)
    return {
        "format": CHECKPOINT_FORMAT,
        "photos": hash_bytes("\n".join(photos).encode()),
        "backbone": embedding.key,
        "precision": embedding.precision,
        "seed": seed,
        "options": {one.name: getattr(options, one.name) for one in fields(options) if one.name in names},
    }


def pack_range(result: RangeResult) -> dict[str, Any]:
    """A range test as JSON knows it."""
    return {name: one.tolist() if isinstance(one, np.ndarray) else one for name, one in result._asdict().items()}


def unpack_range(values: Mapping[str, Any]) -> RangeResult | None:
    """The range test that `pack_range` took; None of nothing."""
    given: dict[str, Any] = {name: np.array(one) if isinstance(one, list) else one for name, one in values.items()}
    return RangeResult(**given) if given else None


class Checkpoint(NamedTuple):
    """Where a run stood.

    Parameters
    ----------
    progress : dict
        Numbers, as they were given.
    parts : dict of str to dict of str to Tensor
        Tensors by part and name.
    """

    progress: dict[str, Any]
    parts: dict[str, dict[str, Tensor]]


def write_checkpoint(
    folder: Path, identity: Mapping[str, object], progress: Mapping[str, object], parts: Parts
) -> None:
    """Write a checkpoint, then let the one before it go.

    Parameters
    ----------
    folder : Path
        Exists.
    identity : mapping
        What a run that goes on must have in common; fit for JSON.
    progress : mapping
        Where the run stands, with a ``step``; fit for JSON.
    parts : mapping of str to mapping of str to Tensor
        Tensors by part, whose name has no slash, and name.

    Raises
    ------
    StorageError
        If it cannot be written.
    """
    from safetensors.torch import save

    content = save({f"{part}/{key}": one.cpu().contiguous() for part, of in parts.items() for key, one in of.items()})
    name = f"{progress['step']}-{TENSORS_NAME}"
    write_atomic(folder / name, content)
    state = {"identity": identity, "progress": progress, "file": name, "sha256": hash_bytes(content)}
    write_atomic(folder / STATE_NAME, json.dumps(state, indent=2) + "\n")
    with storage_errors(f"clear {folder}"):
        for path in folder.glob(f"*-{TENSORS_NAME}"):
            if path.name != name:
                path.unlink(missing_ok=True)


def read_checkpoint(folder: Path, identity: Mapping[str, object]) -> Checkpoint:
    """Read the checkpoint of a run that was stopped.

    Raises
    ------
    TuneError
        If there is none, it is damaged, or it belongs to another run.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load

    path = folder / STATE_NAME
    try:
        state = json.loads(path.read_bytes())
        content = (folder / state["file"]).read_bytes()
        if hash_bytes(content) != state["sha256"]:
            raise ValueError(f"wanted {state['file']} of sha256 {state['sha256']}, got another")
        saved, progress, tensors = state["identity"], dict(state["progress"]), load(content)
    except FileNotFoundError as error:
        raise TuneError(f"{path}: wanted a run that was stopped to --resume, got none there") from error
    except (OSError, ValueError, KeyError, TypeError, SafetensorError) as error:
        raise TuneError(f"{path} is damaged: {error}; train again without --resume") from error
    own = json.loads(json.dumps(identity))
    if saved != own:
        raise TuneError(f"{path}: {_say_difference(saved, own)}; train again without --resume")
    parts: dict[str, dict[str, Tensor]] = {}
    for key, tensor in tensors.items():
        part, _, name = key.partition("/")
        parts.setdefault(part, {})[name] = tensor
    return Checkpoint(progress, parts)


def read_precision(folder: Path) -> Precision | None:
    """Precision of the frozen layers of the run that was stopped; None where there is no checkpoint that can be read.

    Which one is faster is measured anew in each run, and a busy machine may measure another: what goes on takes this.
    """
    try:
        found = json.loads((folder / STATE_NAME).read_bytes())["identity"]["precision"]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return found if found in get_args(Precision) else None


def _say_difference(saved: Mapping[str, Any], own: Mapping[str, Any]) -> str:
    for name, words in _WORDS.items():
        if saved.get(name) != own[name]:
            return f"the checkpoint is of other {words}"
    before = saved.get("options") or {}
    changed = [
        f"{key} {before.get(key)!r}, not {value!r}" for key, value in own["options"].items() if before.get(key) != value
    ]
    return f"the checkpoint is of a run with {', '.join(changed) or 'another format'}"


# --- the folder -----------------------------------------------------------------------------------------------------


def list_foreign(folder: Path) -> list[str]:
    """Names in the folder of a run that is trained which are not of it.

    Raises
    ------
    StorageError
        If it cannot be looked into.
    """
    with storage_errors(f"look into {folder}"):
        if not folder.exists():
            return []
        own = {folder / TENSORBOARD_NAME, *_list_own(folder)}
        found = [*folder.iterdir(), *(folder / TENSORBOARD_NAME).glob("*")]
        return sorted(str(path.relative_to(folder)) for path in found if path not in own)


def clear_run(folder: Path) -> None:
    """Remove what training wrote, and the folder where nothing else is in it.

    Raises
    ------
    StorageError
        If a file cannot be removed.
    """
    with storage_errors(f"clear {folder}"):
        for path in _list_own(folder):
            path.unlink(missing_ok=True)
        for place in (folder / TENSORBOARD_NAME, folder):
            with contextlib.suppress(OSError):  # it holds what is not ours, or was never there
                place.rmdir()


def _list_own(folder: Path) -> list[Path]:
    files = [path for path in folder.glob("*") if _OWN.fullmatch(path.name)]
    return [*files, *(folder / TENSORBOARD_NAME).glob(_EVENTS)]
