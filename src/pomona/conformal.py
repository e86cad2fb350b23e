"""Answers that keep a promise: coarser where the class is uncertain, and shortlists that hold the right class.

In: probabilities and labels of photos that were not learnt. Out: thresholds, and what they make of later probabilities.
Why: "right in 95 of 100" is a promise that a threshold can keep, whatever the probabilities are, as long as later
photos are like those it was found on. Where the variety is uncertain, "Apple" is an answer, and a right one.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np

from pomona.errors import DataError

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from pomona.class_tree import ClassPath, ClassTree

NEVER = 2.0
"""Least probability where no answer keeps the promise."""


@dataclass(frozen=True)
class Nodes:
    """Everything that may be answered: the classes, and the nodes above them.

    Parameters
    ----------
    paths : tuple of tuple of str, (M,)
        The C classes first, in the order of the tree; then the nodes above them but those that hold every class: who is
        told that it is fruit among fruit learns nothing.
    member : ndarray of shape (C, M), bool
        Whether a class is, or is below, a node.
    """

    paths: tuple[ClassPath, ...]
    member: NDArray[np.bool_]

    @classmethod
    def of(cls, tree: ClassTree) -> Nodes:
        """List the nodes of a class tree.

        Examples
        --------
        >>> from pomona.class_tree import ClassTree
        >>> Nodes.of(ClassTree.from_paths(["Apple/Gala", "Apple/Fuji", "Kiwi"])).paths
        (('Apple', 'Fuji'), ('Apple', 'Gala'), ('Kiwi',), ('Apple',))
        """
        # The deepest first: of nodes that hold the same classes, that one says most.
        above = {path[:depth]: None for path in tree.paths for depth in range(len(path) - 1, 0, -1)}
        paths = (*tree.paths, *above)
        member = np.array([[leaf[: len(path)] == path for path in paths] for leaf in tree.paths])
        member[:, : len(tree)] = np.eye(len(tree), dtype=bool)  # a class that others stand below is itself alone
        kept = [i for i in range(len(paths)) if i < len(tree) or not member[:, i].all()]
        return cls(tuple(paths[i] for i in kept), member[:, kept])

    @cached_property
    def sizes(self) -> NDArray[np.intp]:
        """Classes at or below each node, (M,)."""
        return np.asarray(self.member.sum(axis=0), np.intp)

    @cached_property
    def top(self) -> NDArray[np.intp]:
        """Nodes that no other is above."""
        below = [any(path[:depth] in self.paths for depth in range(1, len(path))) for path in self.paths]
        return np.flatnonzero(~np.array(below))

    def weigh(self, probabilities: NDArray[np.floating]) -> NDArray[np.float32]:
        """Probabilities (N, M) of the nodes from those (N, C) of the classes."""
        return np.asarray(probabilities, np.float32) @ self.member.astype(np.float32)

    def choose(self, shares: NDArray[np.float32], least: float) -> tuple[NDArray[np.intp], NDArray[np.bool_]]:
        """Answer for each photo.

        Parameters
        ----------
        shares : ndarray of shape (N, M)
            Probabilities of the nodes, as `weigh` gives them.
        least : float
            Probability that an answer needs.

        Returns
        -------
        nodes : ndarray of shape (N,), intp
            The node with the fewest classes that has it, of equals the most probable; where none has it, the most
            probable of those at the top.
        sure : ndarray of shape (N,), bool
            Whether it has it.
        """
        enough = shares >= least
        rank = np.where(enough, self.sizes.astype(np.float32) - np.minimum(shares, 1) / 2, np.float32(np.inf))
        nodes, sure = rank.argmin(axis=1), np.asarray(enough.any(axis=1))
        nodes[~sure] = self.top[shares[~sure][:, self.top].argmax(axis=1)]
        return nodes, sure


@dataclass(frozen=True)
class Trade:
    """What answers are like at one least probability.

    Parameters
    ----------
    least : float
        The least probability.
    share_exact, share_coarse, share_open : float
        Shares of photos, 0-1, answered by a class, by a node above one, and not surely at all; they sum to 1.
    right : float
        Share of right ones among the sure answers; 1 where there is none.
    """

    least: float
    share_exact: float
    share_coarse: float
    share_open: float
    right: float


def trade_off(
    probabilities: NDArray[np.floating],
    labels: NDArray[np.intp],
    nodes: Nodes,
    *,
    weights: NDArray[np.floating] | None = None,
    leasts: NDArray[np.floating] | None = None,
) -> tuple[Trade, ...]:
    """How specific answers are against how right, from a least probability that asks nothing to one that asks all.

    Parameters
    ----------
    probabilities : ndarray of shape (N, C), 0-1
        Of photos that were not learnt.
    labels : ndarray of shape (N,), int
        Their classes.
    nodes : Nodes
        What may be answered.
    weights : ndarray of shape (N,), optional
        How much each photo counts.
    leasts : ndarray of float, optional
        Least probabilities to try; a grid where not given.
    """
    counts, shares = _weigh_photos(labels, weights), nodes.weigh(probabilities)
    found = []
    for least in _GRID if leasts is None else leasts:
        chosen, sure = nodes.choose(shares, float(least))
        exact = sure & (chosen < len(nodes.member))
        right = float(counts @ (sure & nodes.member[labels, chosen]))
        n_exact, n_sure = (min(1.0, float(counts @ some)) for some in (exact, sure))  # a sum may come out above 1
        found.append(
            Trade(
                float(least),
                n_exact,
                max(0.0, n_sure - n_exact),
                1 - n_sure,
                min(1.0, right / n_sure) if n_sure > 0 else 1.0,
            )
        )
    return tuple(found)


def fit_answer(
    probabilities: NDArray[np.floating],
    labels: NDArray[np.intp],
    nodes: Nodes,
    *,
    share: float,
    groups: NDArray[np.str_] | None = None,
    weights: NDArray[np.floating] | None = None,
) -> float:
    """Find the least probability at which the sure answers are right often enough, coming down from the surest.

    One group more is counted, wholly wrong: so few photos promise little. The share is kept on average over sets of
    photos, and well where there are some hundred groups: of 60 simulated photos the few sets that found a least
    probability at all were right in 92 of 100 where 95 was promised, of 300 in 95 to 96.

    Parameters
    ----------
    probabilities, labels, nodes, weights
        As for `trade_off`.
    share : float
        Share of sure answers that shall be right, 0-1.
    groups : ndarray of shape (N,), optional
        Photos of one mark are not independent.

    Returns
    -------
    float
        0-1; `NEVER` where no least probability keeps the promise.

    References
    ----------
    Angelopoulos, Bates, Fisch, Lei and Schuster, Conformal risk control, ICLR 2024.
    Geifman and El-Yaniv, Selective classification for deep neural networks, NeurIPS 2017.
    """
    _check_share(share)
    one_more = 1 / _count_groups(labels, groups)
    best = NEVER
    for trade in reversed(trade_off(probabilities, labels, nodes, weights=weights)):
        n_sure = 1 - trade.share_open
        wrong = n_sure * (1 - trade.right) + one_more
        if wrong > (1 - share) * (n_sure + one_more):
            if best < NEVER:
                break
            continue  # so few are sure that one more, wrong, would break the promise
        best = trade.least
    return best


def fit_shortlist(
    own: NDArray[np.floating],
    *,
    share: float,
    groups: NDArray[np.str_] | None = None,
    weights: NDArray[np.floating] | None = None,
) -> float:
    """Find the probability that classes on a shortlist have at least, for shortlists that hold the right one.

    Parameters
    ----------
    own : ndarray of shape (N,), 0-1
        Probability of the right class, of photos that were not learnt.
    share : float
        Share of shortlists that shall hold it, 0-1.
    groups, weights
        As for `fit_answer`.

    Returns
    -------
    float
        0-1; 0, and so every class, where there are too few groups to promise anything.

    References
    ----------
    Vovk, Gammerman and Shafer, Algorithmic learning in a random world, 2005.
    Sadinle, Lei and Wasserman, Least ambiguous set-valued classifiers with bounded error levels, JASA 114, 2019.

    Examples
    --------
    >>> fit_shortlist(np.linspace(0.01, 1, 100), share=0.9).__round__(2), fit_shortlist(np.ones(5), share=0.9)
    (0.1, 0.0)
    """
    _check_share(share)
    own = np.asarray(own, np.float64)
    n_groups = _count_groups(own, groups)
    missed = (1 - share) - share / n_groups  # of n + 1 groups, the one more being missed
    if missed < 0:
        return 0.0
    order = np.argsort(own, kind="stable")
    mass = np.cumsum(_weigh_photos(own, weights)[order])
    place = int(np.searchsorted(mass, missed + 1e-12, side="right"))
    return float(own[order][min(place, len(own) - 1)])


def list_shortlist(probabilities: NDArray[np.floating], least: float) -> NDArray[np.intp]:
    """Classes of at least that probability, the most probable first; that one always.

    Examples
    --------
    >>> list_shortlist(np.array([0.3, 0.6, 0.1]), 0.2).tolist(), list_shortlist(np.array([0.3, 0.7]), 0.9).tolist()
    ([1, 0], [1])
    """
    order = np.argsort(-probabilities, kind="stable")
    return order[: max(1, int((probabilities >= least).sum()))]


_GRID = np.concatenate([np.linspace(0, 0.96, 25), 1 - np.geomspace(0.03, 1e-3, 12)])


def _check_share(share: float) -> None:
    if not 0 < share < 1:
        raise DataError(f"share: wanted a share between 0 and 1, got {share}")


def _count_groups(photos: NDArray[np.generic], groups: NDArray[np.str_] | None) -> int:
    if not len(photos):
        raise DataError("wanted photos to find a promise on, got none")
    return len(photos) if groups is None else len(np.unique(groups))


def _weigh_photos(photos: NDArray[np.generic], weights: NDArray[np.floating] | None) -> NDArray[np.float64]:
    """Shares (N,) of the photos, which sum to 1."""
    if weights is None:
        return np.full(len(photos), 1 / max(1, len(photos)))
    return np.asarray(weights, np.float64) / float(np.sum(weights))
