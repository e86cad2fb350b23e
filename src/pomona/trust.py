"""How far answers can be trusted: calibrated probabilities, "unknown", coarse answers and promises that hold.

In: features, and a head that can say what it would answer for photos it had not learnt. Out: a `Trust`, which goes into
the bundle, and `Evidence`, which goes into the report.
Why: everything here is found on photos held out group by group, and said of photos of another group again. Who reports
on other photos afterwards can see whether it held.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from pomona.conformal import NEVER, Nodes, Trade, fit_answer, fit_shortlist, trade_off
from pomona.data_curve import CurvePoint, DataCurve, forecast_twice
from pomona.evaluation import Metric, measure_share
from pomona.head import Link, fit_link, softmax
from pomona.novelty import (
    CANDIDATES,
    Bank,
    Detector,
    Trial,
    fit_scales,
    fit_threshold,
    measure_all,
    measure_energy,
    part_classes,
    score_candidates,
    sketch_vectors,
)
from pomona.parts import N_FOLDS, list_folds
from pomona.projection import iter_blocks, scale_rows
from pomona.reliability import Reliability, measure_reliability

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from numpy.typing import NDArray

    from pomona.class_tree import ClassTree
    from pomona.ridge import Study

PROMISE = 0.95
"""Share of sure answers that shall be right, and of shortlists that shall hold the right class."""

TURNED_AWAY = 0.05
"""Share of known photos that may be answered "unknown"."""

N_REPEATS = 3

_LARGEST_SHARE = 0.2  # of its class that a group counts as: no more than a fold would leave out of it
_CURVE_SHARES = (0.125, 0.25, 0.5, 1.0)
_N_DRAWN = 400
_FEW_GROUPS = 100


@dataclass(frozen=True)
class Promise:
    """What thresholds keep.

    Parameters
    ----------
    share : float
        Share of sure answers that are right, and of shortlists that hold the right class, 0-1.
    least_answer : float
        Probability that a sure answer has at least; above 1 where no answer keeps the promise.
    least_shortlist : float
        Probability that a class on a shortlist has at least.
    turned_away : float
        Share of known photos that may be answered "unknown".
    n, n_groups : int
        Photos and groups of photos that it rests on.
    """

    share: float
    least_answer: float
    least_shortlist: float
    turned_away: float
    n: int
    n_groups: int


@dataclass(frozen=True, eq=False)
class Trust:
    """What makes answers trustworthy; it travels with the head.

    Parameters
    ----------
    link : Link
        From logits to those that probabilities come from.
    detector : Detector or None
        What finds the unknown; None where nothing could be held out.
    promise : Promise or None
        Thresholds; None where nothing could be held out.
    """

    link: Link = field(default_factory=Link)
    detector: Detector | None = None
    promise: Promise | None = None

    def to_probabilities(self, logits: NDArray[np.floating]) -> NDArray[np.float32]:
        """Probabilities (N, C) of logits (N, C)."""
        return softmax(self.link.apply(logits))

    def measure_strangeness(
        self, vectors: NDArray[np.float32], logits: NDArray[np.floating]
    ) -> NDArray[np.float32] | None:
        """How strange photos with features (N, D) are, (N,), 0-1; None where nothing finds the unknown."""
        if self.detector is None:
            return None
        asked = sketch_vectors(vectors) if self.detector.bank is not None else np.zeros((len(logits), 1), np.float32)
        return self.detector.measure(asked, self.link.apply(logits))


@dataclass(frozen=True)
class Kept:
    """How answers fare on photos that were not learnt.

    Parameters
    ----------
    accuracy : Metric
        Share right, of the most probable class.
    before, after : Reliability
        Without and with the link; the first is None where only the answers are at hand.
    covered : Metric or None
        Shortlists that hold the right class.
    shortlist_size : float
        Classes on a shortlist, on average.
    sure_right : Metric or None
        Right ones among the sure answers; None where there is none.
    share_exact, share_coarse, share_open : float
        Shares of photos answered by a class, by a node above one, and not surely.
    turned_away : Metric or None
        Photos answered "unknown", all of them known.
    n_groups : int
        Groups of photos.
    """

    accuracy: Metric
    before: Reliability | None
    after: Reliability
    covered: Metric | None
    shortlist_size: float
    sure_right: Metric | None
    share_exact: float
    share_coarse: float
    share_open: float
    turned_away: Metric | None
    n_groups: int

    def to_dict(self) -> dict[str, Any]:
        """The same as plain values for JSON."""
        return {name: _describe(value) for name, value in vars(self).items()}


@dataclass(frozen=True)
class Baseline:
    """What a simple way of answering has right on the same photos.

    Parameters
    ----------
    name : {"most frequent", "nearest"}
        The class learnt from most photos, for every photo; the class of the photo learnt from that is nearest by its
        features.
    accuracy : Metric
        Share right.
    """

    name: Literal["most frequent", "nearest"]
    accuracy: Metric

    def to_dict(self) -> dict[str, Any]:
        """The same as plain values for JSON."""
        return {"accuracy": self.accuracy.value, "accuracy_interval": [self.accuracy.low, self.accuracy.high]}


@dataclass(frozen=True)
class Evidence:
    """What trust rests on.

    Parameters
    ----------
    held_out : Kept
        Photos learnt from, each answered where its group was not. A group counts as no more than a fifth of its class.
    is_folds : bool
        Whether they were held out in folds; otherwise they are the photos that were kept apart.
    n_folds, n_repeats : int
        Folds, and how often they were drawn.
    candidates : tuple of (tuple of str, float)
        Measures of the unknown that were compared, and how often each holds a photo of a class that was left out to be
        stranger than a known one: the area under the ROC curve. Empty where there were too few classes.
    trades : tuple of Trade
        How specific answers are against how right.
    curve : DataCurve or None
        Accuracy against photos a class.
    is_reported : bool
        Whether they are the photos that the numbers are measured on.
    """

    held_out: Kept
    is_folds: bool
    n_folds: int
    n_repeats: int
    candidates: tuple[tuple[tuple[str, ...], float], ...]
    trades: tuple[Trade, ...]
    curve: DataCurve | None
    is_reported: bool = False

    def to_dict(self) -> dict[str, Any]:
        """The same as plain values for JSON."""
        return {
            "held_out": self.held_out.to_dict(),
            "in_folds": self.is_folds,
            "n_folds": self.n_folds,
            "n_repeats": self.n_repeats,
            "unknown_candidates": {"+".join(kind): auroc for kind, auroc in self.candidates},
            "trades": [dict(vars(trade)) for trade in self.trades],
            "learning_curve": self.curve.to_dict() if self.curve else None,
        }


def _describe(value: object) -> Any:
    if isinstance(value, Metric):
        return {"value": value.value, "interval": [value.low, value.high], "n": value.n}
    return value.to_dict() if isinstance(value, Reliability) else value


@dataclass(frozen=True, kw_only=True)
class TrustOptions:
    """What is promised, and how it is found out.

    Parameters
    ----------
    promise : float
        Share of sure answers that shall be right, and of shortlists that shall hold the right class.
    turned_away : float
        Share of known photos that may be answered "unknown".
    n_folds, n_repeats : int
        Folds, and how often they are drawn.
    seed : int
        Decides the folds.
    """

    promise: float = PROMISE
    turned_away: float = TURNED_AWAY
    n_folds: int = N_FOLDS
    n_repeats: int = N_REPEATS
    seed: int = 0


# --- from folds of what was learnt ------------------------------------------------------------------------------------


def study_trust(
    study: Study,
    sketches: NDArray[np.float32],
    groups: NDArray[np.str_],
    tree: ClassTree,
    options: TrustOptions,
    *,
    on_step: Callable[[], None] | None = None,
) -> tuple[Trust, Evidence] | None:
    """Find out on photos learnt from, each held out with its group, how far answers can be trusted.

    Parameters
    ----------
    study : Study
        The head and its N photos.
    sketches : ndarray of shape (N, K), float32
        `sketch_vectors` of their features.
    groups : ndarray of shape (N,), str
        Photos of one mark are held out together.
    tree : ClassTree
        C classes.
    options : TrustOptions
        What is promised.
    on_step : callable, optional
        Called after each time that the folds were drawn, after the unknown, and after the curve.

    Returns
    -------
    (Trust, Evidence) or None
        None where no photo can be held out: each class is of one group.
    """
    labels, step = study.labels, on_step or (lambda: None)
    draws = []
    for number in range(options.n_repeats):
        folds = list_folds(labels, groups, seed=options.seed + number, n_folds=options.n_folds)
        draws.append([(_complement(len(labels), held), held, study.hold_out(held)) for _, held in folds])
        step()
    if not draws[0]:
        return None
    asked = np.concatenate([held for draw in draws for _, held, _ in draw])
    logits = np.concatenate([found for draw in draws for _, _, found in draw]).astype(np.float32)
    weights = weigh_photos(labels, groups)[asked]
    first = sum(len(held) for _, held, _ in draws[0])
    link = fit_link(logits[:first], labels[asked[:first]], weights[:first])
    detector, candidates, strangeness = _choose_detector(study, sketches, draws[0], link)
    detector = replace(detector, threshold=_fit_threshold(strangeness, groups, labels, options))
    step()
    found = (logits, labels[asked], groups[asked], weights)
    trust, trades, nodes = _make_promise(link, detector, found, tree, options, n=first)
    away = strangeness[1] > detector.threshold
    kept = check_promise(
        trust.promise,
        trust.to_probabilities(logits),
        labels[asked],
        groups[asked],
        nodes,
        before=softmax(logits),
        weights=weights,
        n=first,
    )
    rows = strangeness[0]
    kept = replace(kept, turned_away=measure_share(away, groups[rows], weights=weigh_photos(labels, groups)[rows]))
    curve = _measure_curve(study, groups, options)
    step()
    return trust, Evidence(kept, True, options.n_folds, options.n_repeats, candidates, trades, curve)


def weigh_photos(labels: NDArray[np.intp], groups: NDArray[np.str_]) -> NDArray[np.float64]:
    """How much each photo counts (N,): photos of one class and group together as a fifth of the class at most.

    A head that has not seen a group that is most of its class hardly knows that class: what it says of it is no
    forecast of what one that learnt it all will say of the next scene.

    Examples
    --------
    >>> weigh_photos(np.zeros(10, int), np.array(list("aaaaabcdef"))).round(2).tolist()
    [0.4, 0.4, 0.4, 0.4, 0.4, 1.0, 1.0, 1.0, 1.0, 1.0]
    """
    marks = np.unique(groups, return_inverse=True)[1]
    _, cells, sizes = np.unique(np.stack([labels, marks]), axis=1, return_inverse=True, return_counts=True)
    totals = np.bincount(labels)[labels]
    return np.asarray(np.minimum(1.0, np.maximum(1.0, _LARGEST_SHARE * totals) / sizes[cells.ravel()]), np.float64)


def _choose_detector(
    study: Study,
    sketches: NDArray[np.float32],
    draw: Sequence[tuple[NDArray[np.intp], NDArray[np.intp], NDArray[np.float64]]],
    link: Link,
) -> tuple[Detector, tuple[tuple[tuple[str, ...], float], ...], tuple[NDArray[np.intp], NDArray[np.float32]]]:
    """Compare measures of the unknown on classes left out; of the best, how strange held-out photos are by it."""
    labels, bank = study.labels, Bank(sketches, study.labels)
    known = [
        measure_all(Bank(sketches[fitted], labels[fitted]), sketches[held], link.apply(found))
        for fitted, held, found in draw
    ]
    rows = np.concatenate([held for _, held, _ in draw])
    trials = [
        trial
        for number, part in enumerate(part_classes(bank))
        if (trial := _leave_out(study, sketches, draw[number % len(draw)][1], part, link)) is not None
    ]
    scores = score_candidates(trials) if trials else {}
    kind = max(scores, key=lambda one: scores[one]) if scores else CANDIDATES[0]
    parts = [np.concatenate([table[one] for table in known]) for one in kind]
    middles, spreads = fit_scales(parts)
    detector = Detector(kind, middles, spreads, 0.0, bank)
    return detector, tuple(scores.items()), (rows, detector.add_up(parts))


def _leave_out(
    study: Study, sketches: NDArray[np.float32], held: NDArray[np.intp], part: NDArray[np.intp], link: Link
) -> Trial | None:
    """Measure photos of classes that were left out, and photos held out of those that were not."""
    labels = study.labels
    is_strange = np.isin(labels, part)
    out = np.union1d(held, np.flatnonzero(is_strange))
    fitted = _complement(len(labels), out)
    left = np.unique(labels[fitted])
    asked = out[is_strange[out] | np.isin(labels[out], left)]
    if len(left) < 2 or not len(asked) or is_strange[asked].all() or not is_strange[asked].any():
        return None
    logits = link.apply(study.hold_out(out))[:, left][np.searchsorted(out, asked)]
    found = measure_all(Bank(sketches[fitted], labels[fitted]), sketches[asked], logits)
    strange = is_strange[asked]
    return Trial(
        {kind: values[~strange] for kind, values in found.items()},
        {kind: values[strange] for kind, values in found.items()},
    )


def _fit_threshold(
    strangeness: tuple[NDArray[np.intp], NDArray[np.float32]],
    groups: NDArray[np.str_],
    labels: NDArray[np.intp],
    options: TrustOptions,
) -> float:
    rows, sums = strangeness
    weights = weigh_photos(labels, groups)[rows]
    return fit_threshold(sums, options.turned_away, n_groups=len(np.unique(groups[rows])), weights=weights)


def _make_promise(
    link: Link,
    detector: Detector | None,
    asked: tuple[NDArray[np.float32], NDArray[np.intp], NDArray[np.str_], NDArray[np.float64] | None],
    tree: ClassTree,
    options: TrustOptions,
    *,
    n: int,
) -> tuple[Trust, tuple[Trade, ...], Nodes]:
    logits, labels, groups, weights = asked
    probabilities, nodes = softmax(link.apply(logits)), Nodes.of(tree)
    own = probabilities[np.arange(len(labels)), labels]
    promise = Promise(
        share=options.promise,
        least_answer=fit_answer(probabilities, labels, nodes, share=options.promise, groups=groups, weights=weights),
        least_shortlist=fit_shortlist(own, share=options.promise, groups=groups, weights=weights),
        turned_away=options.turned_away,
        n=n,
        n_groups=len(np.unique(groups)),
    )
    return Trust(link, detector, promise), trade_off(probabilities, labels, nodes, weights=weights), nodes


def _measure_curve(study: Study, groups: NDArray[np.str_], options: TrustOptions) -> DataCurve | None:
    """Learn parts of what each fold learns, whole groups at a time, and ask for what it holds out."""
    labels = study.labels
    folds = list_folds(labels, groups, seed=options.seed, n_folds=options.n_folds)
    random = np.random.default_rng(options.seed)
    weights = weigh_photos(labels, groups)
    n_classes = len(np.unique(labels))
    hits: list[NDArray[np.bool_]] = []
    counts: list[float] = []
    asked = np.concatenate([held for _, held in folds])
    for share in _CURVE_SHARES:
        right, n_learnt = [], 0
        for _, held in folds:
            fitted = _complement(len(labels), held)
            some = fitted if share == 1 else _draw_groups(fitted, labels, groups, share, random)
            found = study.hold_out(held) if share == 1 else study.learn_some(some, held)
            right.append(found.argmax(axis=1) == labels[held])
            n_learnt += len(some)
        n_per_class = n_learnt / len(folds) / n_classes
        if not counts or n_per_class > 1.2 * counts[-1]:
            hits.append(np.concatenate(right))
            counts.append(n_per_class)
    if len(counts) < 2:
        return None
    metrics = [measure_share(one, groups[asked], weights=weights[asked]) for one in hits]
    points = tuple(CurvePoint(n, m.value, m.low, m.high) for n, m in zip(counts, metrics, strict=True))
    ahead = forecast_twice(counts, _draw_shares(hits, groups[asked], weights[asked]))
    return DataCurve(points, None if ahead is None else CurvePoint(2 * counts[-1], *ahead))


def _draw_groups(
    rows: NDArray[np.intp],
    labels: NDArray[np.intp],
    groups: NDArray[np.str_],
    share: float,
    random: np.random.Generator,
) -> NDArray[np.intp]:
    """Rows of whole groups, drawn class by class to as near a share of its photos as they come; one group at least."""
    kept = np.zeros(len(labels), bool)
    for label in np.unique(labels[rows]):
        own = rows[labels[rows] == label]
        marks = random.permutation(np.unique(groups[own]))
        sizes = np.array([(groups[own] == mark).sum() for mark in marks])
        n_kept = 1 + int(np.abs(np.cumsum(sizes) - share * len(own)).argmin())
        kept[own[np.isin(groups[own], marks[:n_kept])]] = True
    return np.flatnonzero(kept)


def _draw_shares(
    hits: Sequence[NDArray[np.bool_]], groups: NDArray[np.str_], weights: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Weighted shares (1 + B, P) of each of P: as they are, and drawn again from the groups, the same ones for all."""
    marks = np.unique(groups, return_inverse=True)[1]
    masses = np.bincount(marks, weights)
    sums = np.stack([np.bincount(marks, weights * one) for one in hits], axis=1)
    drawn = np.random.default_rng(0).multinomial(len(masses), np.full(len(masses), 1 / len(masses)), size=_N_DRAWN)
    drawn = np.vstack([np.ones(len(masses), np.int64), drawn])
    return np.asarray((drawn @ sums) / np.maximum(drawn @ masses, 1e-12)[:, None])


def _complement(n: int, places: NDArray[np.intp]) -> NDArray[np.intp]:
    left = np.ones(n, bool)
    left[places] = False
    return np.flatnonzero(left)


# --- from photos kept apart -------------------------------------------------------------------------------------------


def check_trust(
    logits: NDArray[np.float32],
    labels: NDArray[np.intp],
    groups: NDArray[np.str_],
    tree: ClassTree,
    options: TrustOptions,
    *,
    sketches: NDArray[np.float32] | None = None,
    bank: Bank | None = None,
    is_reported: bool = True,
) -> tuple[Trust, Evidence]:
    """Find out the same on photos kept apart, where what was learnt cannot be held out: a network was trained on it.

    Parameters
    ----------
    logits : ndarray of shape (N, C), float32
        Of the photos kept apart.
    labels : ndarray of shape (N,), intp
        Their classes.
    groups : ndarray of shape (N,), str
        Photos of one mark are not independent.
    tree, options
        As for `study_trust`.
    sketches : ndarray of shape (N, K), float32, optional
        Of their features. Without them and a bank, the energy alone finds the unknown.
    bank : Bank, optional
        What was learnt.
    is_reported : bool
        Whether these are the photos that the numbers are measured on.
    """
    link = fit_link(logits, labels)
    if sketches is None or bank is None:
        kind: tuple[str, ...] = ("energy",)
        parts = [measure_energy(link.apply(logits))]
        bank = None
    else:
        kind = CANDIDATES[0]
        found = measure_all(bank, sketches, link.apply(logits))
        parts = [found[one] for one in kind]
    detector = Detector(kind, *fit_scales(parts), 0.0, bank)
    sums = detector.add_up(parts)
    threshold = fit_threshold(sums, options.turned_away, n_groups=len(np.unique(groups)))
    detector = replace(detector, threshold=threshold)
    trust, trades, nodes = _make_promise(link, detector, (logits, labels, groups, None), tree, options, n=len(labels))
    away = measure_share(sums > threshold, groups)
    kept = check_promise(
        trust.promise,
        trust.to_probabilities(logits),
        labels,
        groups,
        nodes,
        before=softmax(logits),
        turned_away=away,
    )
    return trust, Evidence(kept, False, 0, 0, (), trades, None, is_reported)


def check_promise(
    promise: Promise | None,
    probabilities: NDArray[np.float32],
    labels: NDArray[np.intp],
    groups: NDArray[np.str_],
    nodes: Nodes,
    *,
    before: NDArray[np.float32] | None = None,
    weights: NDArray[np.float64] | None = None,
    turned_away: Metric | None = None,
    n: int | None = None,
) -> Kept:
    """Measure what answers are like on photos that were not learnt.

    Parameters
    ----------
    promise : Promise or None
        What is promised.
    probabilities : ndarray of shape (N, C), float32
        Of the photos.
    labels, groups
        Of the photos.
    nodes : Nodes
        What may be answered.
    before : ndarray of shape (N, C), float32, optional
        Probabilities without the link.
    weights : ndarray of shape (N,), optional
        How much each counts.
    turned_away : Metric, optional
        Photos answered "unknown".
    n : int, optional
        How many photos they are, where some are there several times.
    """

    def measure(hits: NDArray[np.bool_], rows: NDArray[np.intp] | slice = slice(None)) -> Metric:
        some = None if weights is None else weights[rows]
        found = measure_share(hits[rows], groups[rows], weights=some)
        return found if n is None else replace(found, n=round(n * len(hits[rows]) / len(hits)))

    def rely(shares: NDArray[np.float32]) -> Reliability:
        hits = shares.argmax(axis=1) == labels
        found = measure_reliability(shares.max(axis=1), hits, groups=groups, weights=weights)
        return found if n is None else replace(found, n=n)

    covered, sure_right, size = None, None, float(len(nodes.member))
    trade = Trade(0.0, 1.0, 0.0, 0.0, 1.0)
    if promise is not None:
        listed = probabilities >= promise.least_shortlist
        listed[np.arange(len(labels)), probabilities.argmax(axis=1)] = True
        covered = measure(listed[np.arange(len(labels)), labels])
        size = float(np.average(listed.sum(axis=1), weights=weights))
        chosen, sure = nodes.choose(nodes.weigh(probabilities), promise.least_answer)
        (trade,) = trade_off(probabilities, labels, nodes, weights=weights, leasts=np.array([promise.least_answer]))
        if sure.any():
            sure_right = measure(nodes.member[labels, chosen], np.flatnonzero(sure))
    return Kept(
        accuracy=measure(probabilities.argmax(axis=1) == labels),
        before=None if before is None else rely(before),
        after=rely(probabilities),
        covered=covered,
        shortlist_size=size,
        sure_right=sure_right,
        share_exact=trade.share_exact,
        share_coarse=trade.share_coarse,
        share_open=trade.share_open,
        turned_away=turned_away,
        n_groups=len(np.unique(groups)),
    )


def measure_baselines(
    learnt: NDArray[np.intp],
    bank: Bank | None,
    asked: NDArray[np.float32],
    labels: NDArray[np.intp],
    groups: NDArray[np.str_],
) -> tuple[Baseline, ...]:
    """Measure what simple ways of answering have right.

    Parameters
    ----------
    learnt : ndarray of shape (L,), intp
        Classes of the photos learnt from.
    bank : Bank or None
        What was learnt; without it there is no nearest photo.
    asked : ndarray of shape (N, K), float32
        Sketches of the features of the photos asked for.
    labels, groups : ndarray of shape (N,)
        Of these photos.
    """
    frequent = np.bincount(learnt).argmax() if len(learnt) else 0
    found = [Baseline("most frequent", measure_share(labels == frequent, groups))]
    if bank is not None:
        table = scale_rows(bank.vectors).T
        parts = [(asked[start:stop] @ table).argmax(axis=1) for start, stop in iter_blocks(len(asked))]
        nearest = bank.labels[np.concatenate(parts)]
        found.append(Baseline("nearest", measure_share(nearest == labels, groups)))
    return tuple(found)


def note_trust(trust: Trust, evidence: Evidence | None) -> tuple[str, ...]:
    """What a reader must know of the promises."""
    if evidence is None or trust.promise is None:
        note = (
            "No photos could be held out to see how far answers can be trusted, as those of each class are of one "
            "scene or a network was trained on them: nothing is answered 'unknown', and nothing is promised."
        )
        return (note,)
    notes = []
    if trust.promise.n_groups < _FEW_GROUPS:
        notes.append(
            f"What is promised rests on {trust.promise.n_groups} groups of photos only: photos of another day may show "
            "it to be wrong."
        )
    if trust.promise.least_answer >= NEVER:
        notes.append(
            f"No answer can be promised to be right in {100 * trust.promise.share:g} of 100; none is called sure."
        )
    if not evidence.is_folds:
        notes.append(
            "A network was trained on the photos learnt from, so promises rest on the photos that the numbers are "
            "measured on."
            if evidence.is_reported
            else "A network was trained on the photos learnt from, so promises rest on the photos that training was "
            "looked at on."
        )
    return tuple(notes)
