"""The gate: whether an export answers as the bundle does, and if not, at which stage it goes another way.

In: a bundle, what runs the export, golden and real photos. Out: a `Parity` for each runtime; an `ExportError` that
names the first stage that differs, by how much and on which photo.
Why: the commonest complaint of this field is an exported model that disagrees with the trained one. Each stage is
judged on what the export itself handed to it, so that one is not blamed for another.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from pomona.bundle import HEAD_NAME
from pomona.comparison import compare_answers, write_points
from pomona.errors import ExportError, PhotoError
from pomona.export.trace import STAGES, Trace, follow_bundle, scale_square

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from numpy.typing import NDArray

    from pomona.bundle import Bundle
    from pomona.comparison import Difference
    from pomona.export.golden import GoldenPhoto
    from pomona.export.trace import Runner, StageName

MAX_LOSS = 0.003
"""Share of photos that an export may have right less often than the bundle; but one photo always, net."""


@dataclass(frozen=True)
class Bounds:
    """How far an export may be off.

    Parameters
    ----------
    decode, resize : float
        Levels of 255 at any pixel.
    scale : float
        Scaled pixels, absolute.
    network : float
        Length of the difference of the features, over their length.
    head : float
        Probabilities, or strangeness, of features that are given.
    probabilities : float
        And strangeness, from bytes to an answer.
    heat_map : float
        Difference of a heat map, over its largest value, where the label is the same.
    least_agreement : float
        Share of photos outside the tie band whose label is the same.
    """

    decode: float = 0
    resize: float = 1
    scale: float = 1e-5
    network: float = 1e-4
    head: float = 1e-4
    probabilities: float = 1e-3
    heat_map: float = 1e-2
    least_agreement: float = 1.0

    @property
    def tie_band(self) -> float:
        """Least lead of the best class over the second for the label to count: both may move by the bound."""
        return 2 * self.probabilities


EXACT = Bounds()
"""The same arithmetic, or float32 in another order."""

ROUNDED = Bounds(network=0.25, probabilities=0.1, heat_map=math.inf)
"""A network in 8 bits run by another runtime: it rounds at other places, so that some values fall to the other side."""

REQUANTISED = Bounds(network=math.inf, probabilities=math.inf, heat_map=math.inf, least_agreement=0.97)
"""A network in 8 bits in place of one in float32: judged by what it has right, or how often it says the same."""

_REQUANTISED_BAND = 0.2

LEAST_LABELLED = 100
"""Labelled photos from which on what is right may stand alone; one lost of fewer says too little."""


class RealPhoto(NamedTuple):
    """A photo of a user.

    Parameters
    ----------
    name : str
        What it is called.
    content : bytes
        The file.
    label : int
        Number of its class; -1 where it is not known.
    group : str
        Photos of one group are not independent.
    is_learnt : bool
        Whether the bundle was fitted on it.
    """

    name: str
    content: bytes
    label: int = -1
    group: str = ""
    is_learnt: bool = False


class Excess(NamedTuple):
    """How far a stage is off at most, and on which photo."""

    stage: StageName
    amount: float
    photo: str


@dataclass(frozen=True)
class Parity:
    """How an export fares in one runtime.

    Parameters
    ----------
    runtime : str
        Name and version.
    bounds : Bounds
        What it is held to.
    stages : dict of str to dict
        Of each stage that can be seen: ``largest`` and ``mean`` difference over photos, and the ``photo`` of the
        largest.
    largest, mean : float
        Difference of a probability: the largest, and the mean over photos of each photo's largest.
    strangeness : float or None
        Largest difference of strangeness; None where the bundle cannot tell.
    heat_map : float or None
        Largest difference of a heat map, over its largest value.
    tie_band : float
        Leads below it are ties.
    n_golden, n_real, n_failed : int
        Photos; and those among the real ones that neither can use.
    n_decided, n_agreed : int
        Photos outside the tie band, and those of them with the same label.
    n_ties_turned : int
        Photos inside it with another label.
    paired : Difference or None
        How much more often the export is right than the bundle; None where no photo has a label.
    n_learnt : int
        Photos among these that the bundle was fitted on.
    """

    runtime: str
    bounds: Bounds
    stages: dict[StageName, dict[str, Any]]
    largest: float
    mean: float
    strangeness: float | None
    heat_map: float | None
    tie_band: float
    n_golden: int
    n_real: int
    n_failed: int
    n_decided: int
    n_agreed: int
    n_ties_turned: int
    paired: Difference | None
    n_learnt: int

    def to_dict(self) -> dict[str, Any]:
        """The result as plain values for JSON."""
        bounds = {name: value if math.isfinite(value) else None for name, value in asdict(self.bounds).items()}
        paired = None if self.paired is None else {"n": self.paired.n, **self.paired.to_dict()}
        values = {name: getattr(self, name) for name in self.__dataclass_fields__}
        return {**values, "bounds": bounds, "paired": paired}


def check_parity(
    bundle: Bundle,
    runner: Runner,
    golden: Sequence[GoldenPhoto],
    real: Sequence[RealPhoto] = (),
    *,
    bounds: Bounds = EXACT,
    on_photo: Callable[[int, int], None] | None = None,
) -> Parity:
    """Hold an export against its bundle, bytes to answer.

    Parameters
    ----------
    bundle : Bundle
        What is right.
    runner : Runner
        What runs the export.
    golden : sequence of GoldenPhoto
        Every stage is looked at.
    real : sequence of RealPhoto
        Answers alone are.
    bounds : Bounds
        How far it may be off.
    on_photo : callable, optional
        Called with (photos done, photos in all).

    Raises
    ------
    ExportError
        If it answers otherwise; the message names the first stage that differs, by how much and on which photo.
    """
    tally = _Tally(bundle, runner.name, bounds, n_golden=len(golden), n_real=len(real))
    n_photos = len(golden) + len(real)
    traces = runner.follow([photo.content for photo in golden], shows_stages=True)
    for done, (photo, trace) in enumerate(zip(golden, traces, strict=True), start=1):
        if isinstance(trace, PhotoError):
            raise ExportError(
                f"{runner.name} goes another way than the bundle at the stage decode: {photo.name} cannot be used: "
                f"{trace}; nothing was written"
            )
        reference = Trace(photo.outputs, photo.pixels, photo.square)
        tally.add_stages(photo.name, reference, trace)
        tally.add_answer(photo.name, reference, trace)
        if on_photo:
            on_photo(done, n_photos)
    tally.raise_stage()
    contents = [photo.content for photo in real]
    pairs = zip(follow_bundle(bundle, contents), runner.follow(contents, shows_stages=False), strict=True)
    for done, (item, (wanted, found)) in enumerate(zip(real, pairs, strict=True), start=len(golden) + 1):
        tally.add_real(item, wanted, found)
        if on_photo:
            on_photo(done, n_photos)
    return tally.judge()


@dataclass
class _Tally:
    """What was seen so far."""

    bundle: Bundle
    runtime: str
    bounds: Bounds
    n_golden: int
    n_real: int
    seen: dict[StageName, list[tuple[float, str]]] = field(default_factory=dict)
    moved: list[tuple[float, str]] = field(default_factory=list)
    strangeness: list[tuple[float, str]] = field(default_factory=list)
    heat_maps: list[tuple[float, str]] = field(default_factory=list)
    leads: list[float] = field(default_factory=list)
    agrees: list[bool] = field(default_factory=list)
    hits: list[tuple[bool, bool, str]] = field(default_factory=list)
    n_failed: int = 0
    n_learnt: int = 0

    def __post_init__(self) -> None:
        from safetensors.numpy import load

        head = load((self.bundle.folder / HEAD_NAME).read_bytes())
        self._weights, self._bias = head["weights"], head["bias"]

    def add_stages(self, name: str, wanted: Trace, found: Trace) -> None:
        """Compare each stage that is shown, each on what the export itself handed to it."""
        if found.pixels is not None and wanted.pixels is not None:
            self._see("decode", name, _differ(found.pixels, wanted.pixels))
        square = wanted.square
        if found.square is not None:
            if found.pixels is not None and _differ(found.pixels, wanted.pixels):
                square = self.bundle.preprocessing.apply(np.ascontiguousarray(found.pixels))
            self._see("resize", name, _differ(found.square, square))
            square = found.square
        assert square is not None
        if square.shape != (self.bundle.preprocessing.size_px,) * 2 + (3,):
            return  # there is nothing beyond to be held against it
        if found.scaled is not None:
            self._see("scale", name, _differ(found.scaled, scale_square(self.bundle, square)))
        features = wanted.outputs["features"]
        if _differ(square, wanted.square):
            features = self.bundle.whole_engine.run(np.ascontiguousarray(square[None]))["features"][0]
        length = max(float(np.linalg.norm(features)), 1e-12)
        if found.outputs["features"].shape != features.shape:
            self._see("network", name, math.inf)
            return
        amount = float(np.linalg.norm(found.outputs["features"] - features)) / length
        self._see("network", name, amount if math.isfinite(amount) else math.inf)
        self._see("head", name, self._differ_head(found))

    def _differ_head(self, found: Trace) -> float:
        """How far answers are off for the features that they were made of."""
        vectors = found.outputs["features"][None].astype(np.float32)
        logits = vectors @ self._weights.T + self._bias
        amount = _differ(found.outputs["probabilities"], self.bundle.trust.to_probabilities(logits)[0])
        strangeness = self.bundle.trust.measure_strangeness(vectors, logits)
        if strangeness is None:
            return amount
        return max(amount, _differ(found.outputs.get("unknown"), strangeness[0]))

    def _see(self, stage: StageName, name: str, amount: float) -> None:
        self.seen.setdefault(stage, []).append((amount, name))

    def add_answer(self, name: str, wanted: Trace, found: Trace) -> None:
        """Compare answers."""
        probabilities = wanted.outputs["probabilities"]
        self.moved.append((_differ(found.outputs["probabilities"], probabilities), name))
        second, best = np.partition(probabilities, -2)[-2:] if len(probabilities) > 1 else (0.0, probabilities[0])
        self.leads.append(float(best - second))
        self.agrees.append(bool(found.outputs["probabilities"].argmax() == probabilities.argmax()))
        if "unknown" in wanted.outputs:
            self.strangeness.append((_differ(found.outputs.get("unknown"), wanted.outputs["unknown"]), name))
        if "heat_map" in wanted.outputs and self.agrees[-1]:  # of another class it is another map
            reach = max(float(np.abs(wanted.outputs["heat_map"]).max()), 1e-12)
            self.heat_maps.append((_differ(found.outputs.get("heat_map"), wanted.outputs["heat_map"]) / reach, name))

    def add_real(self, photo: RealPhoto, wanted: Trace | PhotoError, found: Trace | PhotoError) -> None:
        """Compare answers for a photo of a user, and with its label where that is known."""
        if isinstance(wanted, PhotoError) or isinstance(found, PhotoError):
            if isinstance(wanted, PhotoError) != isinstance(found, PhotoError):
                raise ExportError(
                    f"{self.runtime} goes another way than the bundle at the stage decode: one of the two cannot use "
                    f"{photo.name}: {wanted if isinstance(wanted, PhotoError) else found}"
                )
            self.n_failed += 1
            return
        self.add_answer(photo.name, wanted, found)
        if photo.label >= 0:
            right = [int(one.outputs["probabilities"].argmax()) == photo.label for one in (wanted, found)]
            self.hits.append((right[0], right[1], photo.group or photo.name))
            self.n_learnt += photo.is_learnt

    def raise_stage(self) -> None:
        """Refuse an export at the first stage beyond its bound."""
        for stage in STAGES:
            found = self.seen.get(stage)
            if not found:
                continue
            amount, photo = max(found)
            bound = getattr(self.bounds, stage)
            if not _is_within(amount, bound):
                allowed = _say(stage, bound) if math.isfinite(bound) else "any number"
                raise ExportError(
                    f"{self.runtime} goes another way than the bundle at the stage {stage}: {_say(stage, amount)} on "
                    f"{photo}, {allowed} allowed; nothing was written"
                )

    def judge(self) -> Parity:
        """Refuse an export that answers otherwise, or say how it fares."""
        band = self.bounds.tie_band if math.isfinite(self.bounds.tie_band) else _REQUANTISED_BAND
        decided = np.array(self.leads) >= band
        agrees = np.array(self.agrees)
        paired = None
        if self.hits:
            before, after, groups = zip(*self.hits, strict=True)
            paired = compare_answers(np.array(before), np.array(after), np.array(groups))
        n_decided, n_agreed = int(decided.sum()), int((decided & agrees).sum())
        checked = (
            ("a probability", self.moved, self.bounds.probabilities),
            ("strangeness", self.strangeness, self.bounds.probabilities),
            ("a heat map", self.heat_maps, self.bounds.heat_map),
        )
        for what, found, bound in checked:
            amount, photo = max(found, default=(0.0, ""))
            if not math.isfinite(amount):
                self._refuse(f"{what} is missing or no number on {photo}")
            if not _is_within(amount, bound):
                self._refuse(f"{what} is {amount:.2g} off on {photo}, {bound:g} allowed")
        self._require_right(paired)
        is_loose = self.bounds.least_agreement < 1
        is_judged = is_loose and paired is not None and paired.n >= LEAST_LABELLED
        if is_loose and not is_judged and not n_decided:
            self._refuse(
                f"in none of {len(self.leads)} photos the best class leads by {band:g}, so that nothing was compared; "
                f"name {LEAST_LABELLED} labelled ones with --data"
            )
        if not is_judged and n_agreed < self.bounds.least_agreement * n_decided:
            turned = self.moved[int(np.flatnonzero(decided & ~agrees)[0])][1]
            self._refuse(
                f"{n_decided - n_agreed} of {n_decided} labels outside the tie band of {band:g} differ, the first on "
                f"{turned}"
            )
        return Parity(
            runtime=self.runtime,
            bounds=self.bounds,
            stages={
                stage: {
                    "largest": max(found)[0],
                    "mean": float(np.mean([amount for amount, _ in found])),
                    "photo": max(found)[1],
                }
                for stage, found in self.seen.items()
            },
            largest=max(self.moved)[0],
            mean=float(np.mean([amount for amount, _ in self.moved])),
            strangeness=max(self.strangeness)[0] if self.strangeness else None,
            heat_map=max(self.heat_maps)[0] if self.heat_maps else None,
            tie_band=band,
            n_golden=self.n_golden,
            n_real=self.n_real,
            n_failed=self.n_failed,
            n_decided=n_decided,
            n_agreed=n_agreed,
            n_ties_turned=int((~decided & ~agrees).sum()),
            paired=paired,
            n_learnt=self.n_learnt,
        )

    def _require_right(self, paired: Difference | None) -> None:
        """Refuse an export that has less right."""
        if paired is None:
            return
        n_lost = paired.n_worse - paired.n_better
        if n_lost > max(1, MAX_LOSS * paired.n):
            self._refuse(
                f"of {paired.n} labelled photos it has {n_lost} fewer right, {write_points(paired.gain)} points; "
                f"{write_points(-MAX_LOSS)} or one photo allowed"
            )

    def _refuse(self, reason: str) -> None:
        """Name the stage that comes nearest to its bound: small differences may add up."""
        shares = {
            stage: max(found)[0] / bound
            for stage, found in self.seen.items()
            if 0 < (bound := getattr(self.bounds, stage)) < math.inf
        }
        unbounded: list[StageName] = [stage for stage in self.seen if getattr(self.bounds, stage) == math.inf]
        stage: StageName = unbounded[0] if unbounded else max(shares, key=lambda one: shares[one], default="network")
        raise ExportError(
            f"{self.runtime} answers otherwise than the bundle: {reason}; the stage {stage} differs most; "
            "nothing was written"
        )


def _differ(found: NDArray[Any] | None, wanted: NDArray[Any] | None) -> float:
    """Largest difference; infinite where shapes differ or it is no number."""
    if found is None or wanted is None or np.shape(found) != np.shape(wanted):
        return math.inf
    difference = np.abs(np.asarray(found, np.float64) - np.asarray(wanted, np.float64))
    largest = float(difference.max(initial=0))
    return largest if math.isfinite(largest) else math.inf


def _is_within(amount: float, bound: float) -> bool:
    """Whether a difference is allowed; what is no number never is, however wide the bound."""
    return amount <= bound and math.isfinite(amount)


def _say(stage: StageName, amount: float) -> str:
    unit = {"decode": "levels of 255", "resize": "levels of 255", "network": "of the features' length"}.get(stage, "")
    if not math.isfinite(amount):
        return "another size, or no number," if amount else "nothing"
    return f"{amount:.3g} {unit}".rstrip()
