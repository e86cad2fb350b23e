"""Gradient training of a head, of the layers above a cut, or of a whole network.

In: a dataset with parts, an embedding and `TuneOptions`. Out: a `TuneResult`: weights in a file, a head on the features
they give, and the curve of the run.
Why: every step follows from the seed and its number alone, and a checkpoint holds all the rest, so a run that was
killed goes on to the same result. What is trained starts from a head fitted in closed form: a head that is drawn at
random would first undo what the pretrained layers know.

References
----------
Kumar et al., "Fine-tuning can distort pretrained features and underperform out-of-distribution", ICLR 2022.
"""

from __future__ import annotations

import math
import time
from contextlib import contextmanager
from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from pomona.backbone import PIXELS, Tuned
from pomona.batches import MixName, draw_batch, make_generator, mix
from pomona.checkpoint import (
    BEST_NAME,
    TUNED_NAME,
    TUNING_SUFFIX,
    Progress,
    clear_run,
    describe_run,
    pack_range,
    read_checkpoint,
    unpack_range,
    write_checkpoint,
)
from pomona.class_tree import show_text
from pomona.dataset import drop_empty_classes
from pomona.errors import DivergedError, FitError, NotFiniteError, OptionError, TuneError
from pomona.examples import load_examples, load_features
from pomona.files import hash_bytes, write_atomic
from pomona.head import fit_temperature
from pomona.lr_range import find_lr
from pomona.network import Network, check_device, choose_layer_to_cut, load_network_above, measure_rates
from pomona.optimization import (
    DEFAULT_LRS,
    ParameterGroup,
    Schedule,
    check_finite,
    clip_gradients,
    group_parameters,
    make_class_weights,
    make_optimizer,
    measure_loss,
    pack_optimizer,
    restore_optimizer,
    set_lr,
)
from pomona.run_log import RESULTS_NAME, EarlyStopping, Meter, Row, RunLog, measure_memory, read_results
from pomona.trained_head import TrainedHead, fit_start
from pomona.weight_average import Average, LastAverage, choose_decay

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping
    from pathlib import Path

    from numpy.typing import NDArray

    from pomona.backbone import Backbone
    from pomona.checkpoint import Checkpoint
    from pomona.clock import Clock
    from pomona.dataset import Dataset, Photo
    from pomona.embedding import Embedding
    from pomona.head import Head
    from pomona.lr_range import RangeResult
    from pomona.tuning import TuneOptions

DEFAULT_EPOCHS, MAX_EPOCHS = 20, 60
"""Times to go over the photos where none are given, and at most where a time is."""
_MAX_NORM = 5.0
_SCALE = "head.scale"
_MIX_ALPHAS: dict[MixName, float] = {"mixup": 0.4, "cutmix": 1.0}
"""Shares of a mixed pair: two photos laid over each other are told apart less easily than two side by side."""

_SCORED_ROWS, _PROBED_ROWS = 64, 16
"""Photos a batch, at most, where nothing is trained, and where number formats are compared."""

_TIMED_STEPS = 4
_OUT_OF_MEMORY = ("out of memory", "can't allocate memory", "not enough memory")
_USED_SHARE, _SEARCH_SHARE, _START_SHARE = 0.93, 0.5, 0.15
"""Shares of the time left: for steps, for the search for a rate, and for each view that the first head sees."""


@dataclass(frozen=True)
class TuneResult:
    """What gradient training made.

    Parameters
    ----------
    embedding : Embedding
        Features of the trained network.
    head : Head
        On these features, calibrated.
    dataset : Dataset
        The usable photos.
    rows : tuple of Row
        The curve of the run.
    range_result : RangeResult, optional
        Where the learning rate was looked for.
    notes : tuple of str
        What a reader must know.
    interrupted : bool
        Whether it was stopped before its end.
    """

    embedding: Embedding
    head: Head
    dataset: Dataset
    rows: tuple[Row, ...]
    range_result: RangeResult | None
    notes: tuple[str, ...]
    interrupted: bool = False


def finetune(
    dataset: Dataset,
    embedding: Embedding,
    options: TuneOptions,
    folder: Path,
    *,
    validate_on: str,
    seed: int = 0,
    deadline_s: float | None = None,
    n_workers: int | None = None,
    clock: Clock,
    on_row: Callable[[Row, int], None] | None = None,
) -> TuneResult:
    """Train by gradients.

    Parameters
    ----------
    dataset : Dataset
        Every photo with a split; classes are those with a photo in train.
    embedding : Embedding
        One backbone; what the features are, before and after.
    options : TuneOptions
        The knobs.
    folder : Path
        Where checkpoints, the log and the tuned weights are kept while it runs.
    validate_on : str
        Split that is looked at while it runs.
    seed : int
        Decides everything that is drawn.
    deadline_s : float, optional
        `time.monotonic` at which training must be over.
    n_workers : int, optional
        Threads; every core where not given.
    clock : Clock
        Steps and progress.
    on_row : callable, optional
        Called with each line of the log, and the number of epochs in all.

    Raises
    ------
    OptionError
        If a knob does not fit the network.
    TuneError
        If there is a checkpoint to go on from that belongs to another run, or none.
    DivergedError
        If the loss is no number any more and there is nothing good to keep.
    DataError, StorageError, BackboneError
        As the parts it calls.
    """
    if n_workers:
        torch.set_num_threads(n_workers)
    trainer = _Trainer(
        dataset,
        embedding,
        options,
        folder,
        validate_on=validate_on,
        seed=seed,
        deadline_s=deadline_s,
        n_workers=n_workers,
        clock=clock,
    )
    with _memory_errors(options):
        with clock.step("start"):
            trainer.start()
        trainer.plan_steps()
        interrupted = trainer.run(on_row)
        return trainer.finish(interrupted=interrupted)


@contextmanager
def _memory_errors(options: TuneOptions) -> Iterator[None]:
    """Turn memory that is used up inside the block into an error that says what would fit."""
    try:
        yield
    except (MemoryError, RuntimeError) as error:  # torch has no class of its own for memory of the CPU
        if isinstance(error, RuntimeError) and not any(words in str(error) for words in _OUT_OF_MEMORY):
            raise
        raise TuneError(_say_too_large(options)) from error


def _say_too_large(options: TuneOptions) -> str:
    if options.batch == 1:
        return "a batch of one photo does not fit into memory; take a smaller --imgsz or backbone, or a later --layer"
    return (
        f"a batch of {options.batch} photos does not fit into memory; take --batch {options.batch // 2} --accumulate "
        f"{2 * options.accumulate}, which learns the same"
    )


class _OutOfTimeError(Exception):
    """What is tried before training takes too much of the time."""


class _Trainer:
    """One run of gradient training."""

    def __init__(
        self,
        dataset: Dataset,
        embedding: Embedding,
        options: TuneOptions,
        folder: Path,
        *,
        validate_on: str,
        seed: int,
        deadline_s: float | None,
        n_workers: int | None,
        clock: Clock,
    ) -> None:
        self.saved: Checkpoint | None = None
        self.dataset, self.embedding, self.options = dataset, embedding, options
        self.folder, self.validate_on, self.seed = folder, validate_on, seed
        self.deadline_s, self.n_workers, self.clock = deadline_s, n_workers, clock
        self.progress = Progress()
        self.network: Network | None = None
        self.average: Average | LastAverage | None = None
        self.range_result: RangeResult | None = None
        self.rows: list[Row] = []

    # --- before the first step --------------------------------------------------------------------------------------

    def start(self) -> None:
        """Load activations and network, fit the head that training starts from, and go back to a checkpoint."""
        check_device(self.options.device)
        self.identity = describe_run(self.dataset, self.embedding, self.options, self.seed)
        self.saved = read_checkpoint(self.folder, self.identity) if self.options.resume else None
        self.layer = self._choose_layer()
        more: dict[str, Any] = {"n_workers": self.n_workers, "on_photo": self.clock.count}
        if self.options.tune == "head":
            self.examples = load_features(self._list_seen(), self.embedding, self.options, **more)
        else:
            self.network = self._load_network()
            self.examples = load_examples(self._list_seen(), self.embedding, self.network, self.options, **more)
        photos = self._take_usable(self.examples.dataset)
        self.labels = np.array([photo.label for photo in photos])
        self.train_rows = np.flatnonzero([photo.split == "train" and photo.label >= 0 for photo in photos])
        self.val_rows = np.flatnonzero([photo.split == self.validate_on and photo.label >= 0 for photo in photos])
        self.n_classes = len(self.dataset.tree)
        if not len(self.train_rows):
            raise FitError(f"{self.dataset.shown}: wanted a photo to learn from, got none that can be used")
        if self.saved:
            self.progress = Progress.from_dict(self.saved.progress)
            self.range_result = unpack_range(self.progress.range_test)
        elif self.network:
            self.progress.dtype = self._choose_dtype()
        if self.network and self.progress.dtype == "bf16" and self.options.device == "cpu":
            self.examples.dtype = torch.float32 if self.layer == PIXELS else torch.bfloat16
            self.network = self._load_network(torch.bfloat16)
        self.targets = torch.nn.functional.one_hot(torch.from_numpy(self.labels.clip(0)), self.n_classes).float()
        self.class_weights = None
        if self.options.balance == "class-weights":
            weights = make_class_weights(self.labels[self.train_rows], self.n_classes)
            self.class_weights = torch.from_numpy(weights).to(self.options.device)
        if self.options.mix == "cutmix" and self.options.mix_share and len(self.examples.shape) != 3:
            raise OptionError("mix: cutmix needs maps with a height and a width; take mixup")
        self.head = self._rebuild_head(self.saved) if self.saved else self._fit_start()
        self._prepare()

    def _list_seen(self) -> Dataset:
        """Photos that training learns from or looks at."""
        seen = [one for one in self.dataset.photos if one.split in {"train", self.validate_on} and one.label >= 0]
        return replace(self.dataset, photos=tuple(seen))

    def _take_usable(self, usable: Dataset) -> list[Photo]:
        """Leave out of the whole what could not be used of what was seen, and number the classes that are left."""
        lost = {photo.name for photo in self._list_seen().photos} - {photo.name for photo in usable.photos}
        photos = tuple(photo for photo in self.dataset.photos if photo.name not in lost)
        whole = replace(self.dataset, photos=photos, skipped=usable.skipped)
        self.dataset, self.dropped = drop_empty_classes(whole)
        numbered = {photo.name: photo for photo in self.dataset.photos}
        return [numbered[photo.name] for photo in usable.photos]

    def _choose_layer(self) -> str:
        backbone = self._require_one()
        if self.options.tune == "full":
            if self.options.layer:
                raise OptionError(f"layer: wanted none with --tune full, got {self.options.layer}")
            return PIXELS
        if self.options.tune == "head":
            return self.options.layer or ""
        return self.options.layer or choose_layer_to_cut(backbone)

    def _require_one(self) -> Backbone:
        if len(self.embedding.backbones) != 1:
            names = ", ".join(one.name for one in self.embedding.backbones)
            raise OptionError(f"tune: wanted one backbone, got {names}; name one with --backbone")
        return self.embedding.backbones[0]

    def _choose_dtype(self) -> str:
        backbone = self._require_one()
        if self.options.compute != "auto":
            if self.options.compute == "bf16" and not backbone.is_embedded and self.options.device == "cpu":
                raise OptionError(f"compute: wanted f32 for {backbone.name} on a cpu, got bf16")
            return self.options.compute
        if self.options.device != "cpu":
            return "bf16"
        if not backbone.is_embedded:
            return "f32"
        rates = measure_rates(
            self.embedding, self.layer, self.examples.shape, n_photos=min(self.options.batch, _PROBED_ROWS)
        )
        return max(rates, key=lambda name: rates[name])

    def _load_network(self, dtype: torch.dtype = torch.float32) -> Network:
        return load_network_above(self.embedding, self.layer, device=self.options.device, dtype=dtype, seed=self.seed)

    def _fit_start(self) -> TrainedHead:
        """Fit a head on what the network gives now.

        It sees whole photos and the middle of their larger view, mirrored: a head that knows the former alone is
        certain and wrong on windows, and the first steps then ruin the layers below it.
        """
        seen = [self._see_start(mirrored=False)]
        if self.examples.is_elastic:
            seen.append(self._see_start(mirrored=True))
        features, rows = (torch.cat(parts) for parts in zip(*seen, strict=True))
        return fit_start(features, self.targets[rows], self.options).to(self.options.device)

    def _see_start(self, *, mirrored: bool) -> tuple[torch.Tensor, torch.Tensor]:
        """Features of the photos learnt from, and their rows; of as many, in random order, as the time allows."""
        if self.deadline_s is None or self.network is None:  # features alone are there already
            return self._measure_features(self.train_rows, mirrored=mirrored), torch.from_numpy(self.train_rows)
        rows = make_generator(self.seed, 2, int(mirrored)).permutation(self.train_rows)
        until_s = time.monotonic() + _START_SHARE * (self.deadline_s - time.monotonic())
        features = self._measure_features(rows, mirrored=mirrored, until_s=until_s)
        if len(features) < len(rows):
            view = "mirrored " if mirrored else ""
            self.progress.notes.append(
                f"The head that training started from saw {len(features)} of {len(rows)} {view}photos: there was no "
                "time for more."
            )
        return features, torch.from_numpy(rows[: len(features)])

    def _rebuild_head(self, saved: Checkpoint) -> TrainedHead:
        """A head of the scale of the one that a checkpoint holds; `_restore` fills it."""
        return TrainedHead(saved.parts["weights"][_SCALE], self.n_classes).to(self.options.device)

    def _prepare(self) -> None:
        """Optimizer and average; those of the checkpoint where there is one."""
        depths = [*(self.network.list_depths() if self.network else []), list(self.head.parameters())]
        groups: list[ParameterGroup] = group_parameters(depths, layer_decay=self.options.layer_decay)
        self.optimizer = make_optimizer(
            self.options.optimizer,
            groups,
            lr=1.0 if self.options.lr == "auto" else self.options.learning_rate,
            momentum=self.options.momentum,
            weight_decay=self.options.weight_decay,
        )

    def plan_steps(self) -> None:
        """Decide learning rate, steps and what is averaged."""
        options = self.options
        per_step = min(options.batch, len(self.train_rows)) * options.accumulate
        self.steps_per_epoch = math.ceil(len(self.train_rows) / per_step)
        self.val_s = 0.0 if self.deadline_s is None else self._time_validation()
        if self.saved:
            self._begin_average()
            self._restore(self.saved)
            return
        self.progress.lr = self._choose_rate()
        self.progress.n_steps = (options.epochs or DEFAULT_EPOCHS) * self.steps_per_epoch
        if self.deadline_s is not None and options.epochs is None:
            self.progress.n_steps = self._count_fitting()
            planned = self.progress.n_steps / self.steps_per_epoch
            if planned >= 1:
                self.progress.notes.append(f"{planned:.1f} epochs were planned, which the time allows.")
            elif planned:
                self.progress.notes.append(
                    f"{planned:.2g} epochs were planned, which the time allows: too little to learn from. "
                    "Without --tune, --effort best asks for less time."
                )
        self._begin_average()

    def _choose_rate(self) -> float:
        """Learning rate that was asked for, or that a range test finds in the time it may take."""
        if self.options.lr != "auto":
            return self.options.learning_rate
        with self.clock.step("range"):
            self.range_result = self._find_lr(time.monotonic() + _SEARCH_SHARE * self._left_s())
        if self.range_result is None:
            lr = DEFAULT_LRS[self.options.optimizer]
            self.progress.notes.append(f"Learning rate {lr:g}, the default: there was no time for a range test.")
            return lr
        self.progress.range_test = pack_range(self.range_result)
        lr = self.range_result.suggested
        self.progress.notes.append(f"Learning rate {lr:.2g}, found by a range test: {self.range_result.reason}")
        return lr

    def _left_s(self) -> float:
        """Seconds that steps may take: after the last one the photos held out are looked at twice."""
        return math.inf if self.deadline_s is None else self.deadline_s - time.monotonic() - 2 * self.val_s

    def _count_fitting(self) -> int:
        """Steps, with the validations between them, that fit into the time left."""
        if self._left_s() <= 0:
            return 0
        every = self.options.validate_every or self.steps_per_epoch
        step_s = self._time_step() + self.val_s / every
        fitting = int(_USED_SHARE * self._left_s() / step_s)
        return max(0, min(fitting, MAX_EPOCHS * self.steps_per_epoch))

    def _begin_average(self) -> None:
        if self.options.average == "ema":
            self.average = Average(choose_decay(self.progress.n_steps))
        elif self.options.average == "last":
            self.average = LastAverage()

    def _time_step(self) -> float:
        """Seconds that a step takes, at the rate it comes to after the first ones; weights are put back."""
        times_s: list[float] = []
        with self._tried():
            while not times_s or (len(times_s) < _TIMED_STEPS and sum(times_s) <= _SEARCH_SHARE * self._left_s()):
                started_s = time.perf_counter()
                self._train_step(len(times_s), 1e-12)
                times_s.append(time.perf_counter() - started_s)
        return float(np.median(times_s[1:] or times_s))

    def _time_validation(self) -> float:
        """Seconds that a look at all photos held out takes, from one batch of them."""
        rows = self.val_rows[: min(_SCORED_ROWS, self.options.batch)]
        if not len(rows):
            return 0.0
        started_s = time.perf_counter()
        self._measure_logits(rows)
        return (time.perf_counter() - started_s) * len(self.val_rows) / len(rows)

    def _find_lr(self, until_s: float) -> RangeResult | None:
        """Range test; None where it was not over by then."""
        number = iter(range(1 << 30))

        def measure(lr: float) -> float:
            if time.monotonic() > until_s:
                raise _OutOfTimeError
            try:
                return self._train_step(next(number), lr, mixes=False)[0]  # mixed photos have twice the loss
            except NotFiniteError:  # where learning breaks is what is looked for
                return math.nan

        with self._tried():
            try:
                return find_lr(measure)
            except _OutOfTimeError:
                return None

    # --- steps ------------------------------------------------------------------------------------------------------

    def run(self, on_row: Callable[[Row, int], None] | None) -> bool:
        """Train to the end, or as far as time, patience or the user let it; whether it was cut short by a key."""
        options, progress = self.options, self.progress
        self.cut_short = self.failure = ""
        self.n_trained = 0
        sinks = (options.log,) if options.log else ()
        settings = {one.name: getattr(options, one.name) for one in fields(options)}
        settings = {name: show_text(str(settings[name])) for name in sorted(settings)}
        name, interrupted = self.folder.name.removesuffix(TUNING_SUFFIX), False
        if not self.saved:
            clear_run(self.folder)  # of an earlier run; nothing before this has written there
        with (
            RunLog(self.folder, sinks=sinks, name=name, settings=settings, resume_step=progress.step or None) as log,
            self.clock.step("train"),
        ):
            try:
                self._train(log, on_row)
            except KeyboardInterrupt:
                interrupted, self.cut_short, log.ending = True, "it was interrupted", "KILLED"
                if not progress.step:
                    raise
                if not self.rows:
                    self._validate(log, on_row)
            except NotFiniteError as error:
                self.failure, log.ending = str(error), "FAILED"
                if not self.rows:
                    raise DivergedError(str(error)) from error
                self._restore(read_checkpoint(self.folder, self.identity))
            self.log_notes = list(log.notes)
            self.clock.set_photos(self.n_trained)
        return interrupted

    def _train(self, log: RunLog, on_row: Callable[[Row, int], None] | None) -> None:
        progress = self.progress
        every = self.options.validate_every or self.steps_per_epoch
        self.meter = Meter(progress.seconds, progress.step)
        self.stopping = EarlyStopping(self.options.patience) if self.options.patience else None
        if self.stopping and progress.stopping:
            self.stopping = EarlyStopping.from_dict(progress.stopping)
        self.cut_short = self._find_end()
        while progress.step < progress.n_steps and not self.cut_short:
            loss, n_right, n = self._train_step(progress.step, self._find_rate(progress.step))
            self.meter.add(loss, n_right, n)
            self.n_trained += n
            progress.step += 1
            if self.average and (self.options.average == "ema" or progress.step % self.steps_per_epoch == 0):
                self.average.update(self._list_tensors())
            self.clock.count(progress.step, progress.n_steps)
            if progress.step % every and progress.step < progress.n_steps and not self._is_late():
                continue
            self._validate(log, on_row)
            self.cut_short = self._find_end()
        if not self.rows:
            self._validate(log, on_row)

    def _find_end(self) -> str:
        """Why training ends before the last step; empty where it does not."""
        if self.progress.step >= self.progress.n_steps:
            return ""
        if self.stopping and self.stopping.is_over:
            return f"no better validation in {self.options.patience} tries"
        return "the time was over" if self._is_late() else ""

    def _is_late(self) -> bool:
        return self._left_s() < 0

    def _find_rate(self, step: int) -> float:
        """Learning rate of a step."""
        schedule = Schedule(self.options.schedule, max(1, self.progress.n_steps), self.options.warmup)
        return self.progress.lr * schedule.factor(step)

    def _validate(self, log: RunLog, on_row: Callable[[Row, int], None] | None) -> None:
        """Write a line of the log and a checkpoint, and keep the weights if they are the best so far."""
        lr = self._find_rate(self.progress.step - 1) if self.progress.step else 0.0
        self._check_weights(lr)
        row = self._make_row(self.meter, lr)
        self.rows.append(row)
        log.write(row)
        self._take_score(row)
        self._write_checkpoint()
        if on_row:
            on_row(row, math.ceil(self.progress.n_steps / self.steps_per_epoch))
        self.meter = Meter(self.progress.seconds, self.progress.step)

    def _check_weights(self, lr: float) -> None:
        """Refuse to keep weights that a step has broken; the next loss would be the first to tell."""
        for one in self._list_tensors().values():
            check_finite(float(one.abs().max()), step=self.progress.step, lr=lr)

    def _take_score(self, row: Row) -> None:
        if row.val_accuracy is not None and row.val_accuracy > self.progress.best:
            self.progress.best = row.val_accuracy
            self._save_best()
        if self.stopping:
            if row.val_accuracy is not None:
                self.stopping.update(row.val_accuracy)
            self.progress.stopping = self.stopping.to_dict()

    def _train_step(self, step: int, lr: float, *, mixes: bool = True) -> tuple[float, float, int]:
        """One change of the weights; the mean loss, how many were right, and of how many photos."""
        options = self.options
        set_lr(self.optimizer, lr)
        self.optimizer.zero_grad(set_to_none=True)
        meter = Meter(0.0, step)
        for part in range(options.accumulate):
            x, targets = self._draw_batch(step * options.accumulate + part, mixes=mixes)
            logits = self.head(self._forward(x))
            loss = measure_loss(
                logits,
                targets,
                loss=options.loss,
                label_smoothing=options.label_smoothing,
                class_weights=self.class_weights,
            )
            check_finite(float(loss.detach()), step=step, lr=lr)
            (loss / options.accumulate).backward()  # type: ignore[no-untyped-call]
            right = (logits.detach().argmax(1) == targets.argmax(1)).sum()
            meter.add(float(loss.detach()), float(right), len(x))
        norm = clip_gradients((p for group in self.optimizer.param_groups for p in group["params"]), _MAX_NORM)
        check_finite(norm, step=step, lr=lr)
        self.optimizer.step()
        return meter.loss_sum / meter.n, meter.n_right, meter.n

    def _forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.network is None:
            return x
        if self.layer == PIXELS:
            x = self.network.scale_pixels(x).contiguous(memory_format=torch.channels_last)
        on_gpu = self.options.device != "cpu" and self.progress.dtype == "bf16"
        with torch.autocast(self.options.device, torch.bfloat16, enabled=on_gpu):
            return self.network.module(x).float()  # type: ignore[no-any-return]

    def _draw_batch(self, number: int, *, mixes: bool) -> tuple[torch.Tensor, torch.Tensor]:
        """Batch of a number: it follows from the seed and the number alone."""
        options = self.options
        size = min(options.batch, len(self.train_rows))
        labels = self.labels[self.train_rows]
        drawn = draw_batch(labels, seed=self.seed, number=number, size=size, balance=options.balance)
        chosen = self.train_rows[drawn]
        generator = make_generator(self.seed, 1, number)
        x = self.examples.draw(chosen, generator)
        targets = self.targets[torch.from_numpy(chosen)]
        if mixes and options.mix != "none" and generator.random() < options.mix_share:
            kind = self._choose_mix(x, generator)
            x, targets = mix(x, targets, kind=kind, alpha=_MIX_ALPHAS[kind], generator=generator)
        return x.to(options.device), targets.to(options.device)

    def _choose_mix(self, x: torch.Tensor, generator: np.random.Generator) -> MixName:
        if self.options.mix != "both":
            return self.options.mix
        return "cutmix" if x.ndim == 4 and generator.random() < 0.5 else "mixup"

    # --- what it gives ----------------------------------------------------------------------------------------------

    @torch.no_grad()
    def _measure_features(
        self, rows: NDArray[np.intp], *, mirrored: bool = False, until_s: float = math.inf
    ) -> torch.Tensor:
        """Features of photos as they are predicted with, or of their larger view, mirrored; as many as time allows."""
        parts = []
        n_read = min(_SCORED_ROWS, self.options.batch)  # what fits into memory where it is trained on
        for start in range(0, len(rows), n_read):
            x = self.examples.read(rows[start : start + n_read], mirrored=mirrored)
            parts.append(self._forward(x.to(self.options.device)).float().cpu())
            if time.monotonic() > until_s:
                break
        return torch.cat(parts)

    @torch.no_grad()
    def _measure_logits(self, rows: NDArray[np.intp]) -> torch.Tensor:
        return self.head(self._measure_features(rows).to(self.options.device)).cpu()  # type: ignore[no-any-return]

    def _make_row(self, meter: Meter, lr: float) -> Row:
        rate = meter.n / max(1e-9, meter.elapsed_s)
        loss, accuracy = meter.means
        val_loss = val_accuracy = None
        if len(self.val_rows):
            started_s = time.perf_counter()
            with self._averaged():
                logits = self._measure_logits(self.val_rows)
            self.val_s = time.perf_counter() - started_s
            labels = torch.from_numpy(self.labels[self.val_rows])
            val_loss = float(torch.nn.functional.cross_entropy(logits, labels))
            check_finite(val_loss, step=self.progress.step, lr=lr)  # or NaN might be kept as the best so far
            val_accuracy = float((logits.argmax(1) == labels).float().mean())
        self.progress.seconds = round(meter.seconds + meter.elapsed_s, 2)
        return Row(
            epoch=round(self.progress.step / self.steps_per_epoch, 4),
            step=self.progress.step,
            seconds=self.progress.seconds,
            lr=lr,
            train_loss=loss,
            train_accuracy=accuracy,
            val_loss=val_loss,
            val_accuracy=val_accuracy,
            photos_per_s=round(rate, 1),
            memory_mb=measure_memory(),
        )

    def _list_tensors(self) -> dict[str, torch.Tensor]:
        """Everything that is trained, by name."""
        tensors = {f"head.{name}": one.data for name, one in self.head.named_parameters()}
        if self.network:
            tensors |= {f"tail.{n}": p.data for n, p in self.network.module.named_parameters() if p.requires_grad}
        return tensors

    def _list_kept(self) -> dict[str, torch.Tensor]:
        """What is trained, and the scale without which the weights of the head say nothing."""
        return self._list_tensors() | {_SCALE: self.head.get_buffer("scale")}

    def _put_tensors(self, tensors: Mapping[str, torch.Tensor]) -> None:
        for name, one in self._list_tensors().items():
            one.copy_(tensors[name])

    @contextmanager
    def _kept(self) -> Iterator[None]:
        """Whatever happens to the weights inside, after it they are as they were."""
        kept = {name: one.clone() for name, one in self._list_tensors().items()}
        try:
            yield
        finally:
            self._put_tensors(kept)

    @contextmanager
    def _averaged(self) -> Iterator[None]:
        """With the averaged weights in place of those that are trained."""
        with self._kept():
            if self.average and (averaged := self.average.tensors()):
                self._put_tensors(averaged)
            yield

    @contextmanager
    def _tried(self) -> Iterator[None]:
        """Steps that are not part of the training."""
        with self._kept():
            yield
        self._prepare()  # an optimizer that has seen nothing

    # --- checkpoints ------------------------------------------------------------------------------------------------

    def _write_checkpoint(self) -> None:
        parts = {
            "weights": self._list_kept(),
            "optimizer": pack_optimizer(self.optimizer),
            "average": self.average.state() if self.average else {},
        }
        write_checkpoint(self.folder, self.identity, self.progress.to_dict(), parts)

    def _restore(self, saved: Checkpoint) -> None:
        """Go back to where a checkpoint was written."""
        self._put_tensors(saved.parts["weights"])
        restore_optimizer(self.optimizer, saved.parts.get("optimizer", {}))
        if self.average:
            self.average.restore(saved.parts.get("average", {}), device=self.options.device)
        self.rows = [row for row in read_results(self.folder / RESULTS_NAME) if row.step <= self.progress.step]

    def _save_best(self) -> None:
        from safetensors.torch import save

        with self._averaged():
            content = save({name: one.cpu().contiguous() for name, one in self._list_kept().items()})
        write_atomic(self.folder / BEST_NAME, content)

    # --- the end ----------------------------------------------------------------------------------------------------

    def finish(self, *, interrupted: bool) -> TuneResult:
        """Choose the weights to keep, and write them as the network knows them."""
        notes = [*self.progress.notes, *self.dropped, *self.log_notes]
        if not self.progress.step:
            notes.append(self._say_untrained())
        elif self.failure:
            notes.append(f"Training stopped: {self.failure}. The best weights before that are kept.")
        elif self.cut_short:
            done = self.progress.step / self.steps_per_epoch
            notes.append(f"Training stopped after {done:.1f} epochs: {self.cut_short}.")
        ended_early = bool(self.progress.step and (self.failure or self.cut_short))
        if ended_early and math.isfinite(self.progress.best) and (self.folder / BEST_NAME).is_file():
            from safetensors.torch import load

            notes.append("The weights were chosen on the photos that training was validated on.")
            self._put_tensors(load((self.folder / BEST_NAME).read_bytes()))
            temperature = self._find_temperature()
            return self._write(temperature, notes, interrupted=interrupted)
        with self._averaged():
            return self._write(self._find_temperature(), notes, interrupted=interrupted)

    def _say_untrained(self) -> str:
        before_s = sum(stage.seconds for stage in self.clock.stages if stage.name != "train")
        (start_s,) = (stage.seconds for stage in self.clock.stages if stage.name == "start")
        return (
            f"No step of training fits into the time: what comes before took {before_s:.1f} s, {start_s:.1f} s of it "
            "to see the photos and to fit the head that training starts from, which is kept."
        )

    def _find_temperature(self) -> float:
        if not len(self.val_rows):
            return 1.0
        return fit_temperature(self._measure_logits(self.val_rows).numpy(), self.labels[self.val_rows])

    def _write(self, temperature: float, notes: list[str], *, interrupted: bool) -> TuneResult:
        embedding = self.embedding
        if self.network:
            from safetensors.numpy import save

            content = save(self.network.state())
            path = self.folder / TUNED_NAME
            write_atomic(path, content)
            (backbone,) = embedding.backbones
            tuned = replace(backbone, tuned=Tuned(self.layer, path, hash_bytes(content)))
            embedding = replace(embedding, backbones=(tuned,))
        head = self.head.to_head(temperature)
        return TuneResult(
            embedding, head, self.dataset, tuple(self.rows), self.range_result, tuple(notes), interrupted=interrupted
        )
