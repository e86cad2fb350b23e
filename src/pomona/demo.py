"""The embedded default: rendered photos, the whole way, five answers.

In: `DemoOptions`. Out: a `DemoResult`: a recogniser, how good it is, and what it says of photos it has never seen.
Why: a new user sees everything work in a minute with no photos, no labels and no network.
"""

from __future__ import annotations

import io
import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from pomona.errors import OptionError
from pomona.files import make_folder, write_atomic
from pomona.samples import KINDS, SampleOptions, render_other, render_photo, write_samples
from pomona.training import TrainOptions, train

if TYPE_CHECKING:
    from pomona.clock import Progress
    from pomona.prediction import Prediction
    from pomona.training import TrainResult

N_KINDS = 12
_SHOWN = ("Banana", "Strawberry", "Kiwi", "Lemon")  # one photo of each, and last one that is not a fruit
_NEW_SEED = 1_000_000  # far from the seeds of the photos that are learnt from


@dataclass(frozen=True, kw_only=True)
class DemoOptions:
    """What `run_demo` takes.

    Parameters
    ----------
    output : Path
        Folder for the photos and the run.
    per_kind : int
        Photos rendered of each of the 12 kinds.
    seed : int
        Decides what the photos look like.
    workers : int, optional
        Threads and processes; every core where not given.
    """

    output: Annotated[Path, "Folder for the photos and the run."] = Path("runs/demo")
    per_kind: Annotated[int, "Photos rendered of each of the 12 kinds."] = 40
    seed: Annotated[int, "Decides what the photos look like."] = 0
    workers: Annotated[int | None, "Threads and processes; by default every core."] = None

    def __post_init__(self) -> None:
        if self.per_kind < 2:
            raise OptionError(
                f"per-kind: wanted 2 photos or more, one to learn from and one kept apart, got {self.per_kind}"
            )
        if self.seed < 0:
            raise OptionError(f"seed: wanted 0 or more, got {self.seed}")
        if self.workers is not None and self.workers < 1:
            raise OptionError(f"workers: wanted 1 or more, got {self.workers}")


@dataclass(frozen=True)
class DemoResult:
    """What the demo made.

    Parameters
    ----------
    trained : TrainResult
        The recogniser and how good it is.
    photos, new_photos : Path
        Folders of the photos learnt from, and of the five new ones.
    predictions : tuple of (str, Prediction)
        What each new photo shows, and what the recogniser says.
    """

    trained: TrainResult
    photos: Path
    new_photos: Path
    predictions: tuple[tuple[str, Prediction], ...]


def run_demo(options: DemoOptions, *, on_progress: Progress | None = None) -> DemoResult:
    """Render photos, train on them, and answer for five new ones.

    Parameters
    ----------
    options : DemoOptions
        What to do.
    on_progress : callable, optional
        Called with (step, done, in all).

    Returns
    -------
    DemoResult
        What was made and where it is.
    """
    kinds = KINDS[:N_KINDS]
    output = Path(os.path.expanduser(options.output))  # noqa: PTH111 - of an unknown user, `Path` makes an error
    photos = output / f"seed-{options.seed}-{options.per_kind}-per-kind" / "rendered-fruit"
    if not photos.is_dir():  # it is put in place whole, so one that is there is complete
        n_photos = len(kinds) * options.per_kind
        settings = SampleOptions(n_per_kind=options.per_kind, kinds=kinds, seed=options.seed, n_workers=options.workers)
        write_samples(photos, settings, on_photo=lambda n: on_progress("render", n, n_photos) if on_progress else None)
    run = output / "run"
    trained = train(
        TrainOptions(data=photos, output=run, seed=options.seed, workers=options.workers), on_progress=on_progress
    )
    new_photos = output / "new"
    shown = _render_new(new_photos, options.seed)
    answers = trained.bundle.predict([path for _, path in shown])
    predictions = tuple((label, answer) for (label, _), answer in zip(shown, answers, strict=True))
    return DemoResult(trained, photos, new_photos, predictions)


def _render_new(folder: Path, seed: int) -> list[tuple[str, Path]]:
    """Write five new photos; returns what each shows and where it is."""
    from PIL import Image

    by_name = {kind.name: kind for kind in KINDS}
    pictures = [(name, render_photo(by_name[name], seed=_NEW_SEED + seed + i)) for i, name in enumerate(_SHOWN)]
    pictures.append(("not a fruit", render_other(seed=_NEW_SEED + seed)))
    make_folder(folder)  # not replaced as a whole: people try the demo with photos that they put here
    shown = [(label, folder / f"new-{i}.jpg") for i, (label, _) in enumerate(pictures, start=1)]
    for (_, path), (_, picture) in zip(shown, pictures, strict=True):
        content = io.BytesIO()
        Image.fromarray(picture).save(content, "JPEG", quality=90)
        write_atomic(path, content.getvalue())
    return shown
