"""What is said of one photo: an answer as specific as it may be, or "unknown", and a shortlist.

In: what the graph gives for a photo. Out: a `Prediction`, which is also what machines read.
Why: probabilities are numbers of classes; what is said of them has one owner, whoever ran the graph.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

from pomona.class_names import find_node_name
from pomona.conformal import Nodes, list_shortlist
from pomona.novelty import UNKNOWN_FROM

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from pomona.class_names import ClassName
    from pomona.class_tree import ClassTree
    from pomona.trust import Promise

UNKNOWN_LABEL = "unknown"


@dataclass(frozen=True)
class Answer:
    """A class and how sure the recogniser is of it.

    Parameters
    ----------
    label : str
        Class name.
    score : float
        Probability, 0-1.
    name_en, name_zh, plu : str, optional
        What people call the class, and its code at a till.
    """

    label: str
    score: float
    name_en: str | None = None
    name_zh: str | None = None
    plu: str | None = None


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
    answer : Answer or None
        What is said: the class, where that is not sure enough a node above it, or "unknown". None where the photo could
        not be used.
    sure : bool or None
        Whether the answer keeps the promise of the recogniser; None where it promises nothing.
    unknown : bool
        Whether the photo shows something that was not learnt; the class is then the one that comes nearest.
    strangeness : float or None
        How strange the photo is, 0-1, unknown from 0.5 on; None where the recogniser cannot tell.
    shortlist : tuple of Answer
        Classes among which the right one is, as promised; none where nothing is.
    name_en, name_zh, plu : str, optional
        What people call the most probable class, and its code at a till.
    """

    file: str
    label: str | None = None
    score: float | None = None
    top: tuple[Answer, ...] = ()
    error: str | None = None
    answer: Answer | None = None
    sure: bool | None = None
    unknown: bool = False
    strangeness: float | None = None
    shortlist: tuple[Answer, ...] = ()
    name_en: str | None = None
    name_zh: str | None = None
    plu: str | None = None

    @property
    def others(self) -> tuple[Answer, ...]:
        """The two most probable classes beside what is said; of something unknown, those that come nearest."""
        said = None if self.unknown or self.answer is None else self.answer.label
        return tuple(one for one in self.top[:3] if one.label != said)[:2]

    def to_dict(self) -> dict[str, Any]:
        """The prediction as plain values for JSON."""
        # As `asdict` gives it, in a tenth of the time: a service says thousands of answers a minute.
        return vars(self) | {
            "top": tuple(dict(vars(one)) for one in self.top),
            "answer": None if self.answer is None else dict(vars(self.answer)),
            "shortlist": tuple(dict(vars(one)) for one in self.shortlist),
        }


@dataclass(frozen=True)
class Speaker:
    """Turns what the graph gives into what is said.

    Parameters
    ----------
    tree : ClassTree
        C classes.
    names : sequence of ClassName, length C
        What people call them.
    promise : Promise or None
        Thresholds; without them the most probable class is said.
    """

    tree: ClassTree
    names: Sequence[ClassName]
    promise: Promise | None

    @cached_property
    def nodes(self) -> Nodes:
        """Everything that may be answered."""
        return Nodes.of(self.tree)

    @cached_property
    def _node_names(self) -> tuple[str, ...]:
        """What is said for each node: its last part, or its whole path where another is called the same."""
        above = [path[-1] for path in self.nodes.paths[len(self.tree) :]]
        taken = Counter([*self.tree.names, *above])
        paths = self.nodes.paths[len(self.tree) :]
        return (*self.tree.names, *(path[-1] if taken[path[-1]] == 1 else "/".join(path) for path in paths))

    def speak(
        self, file: str, probabilities: NDArray[np.float32], strangeness: float | None, *, n_top: int
    ) -> Prediction:
        """Say what a photo shows.

        Parameters
        ----------
        file : str
            The photo as it was named.
        probabilities : ndarray of shape (C,), float32
            Of the classes.
        strangeness : float or None
            How strange the photo is, 0-1.
        n_top : int
            How many of the most probable classes to name.
        """
        best = np.argsort(-probabilities, kind="stable")[: max(1, n_top)]
        top = tuple(self._name_class(int(c), float(probabilities[c])) for c in best)
        unknown = strangeness is not None and strangeness >= UNKNOWN_FROM
        answer, sure = top[0], None
        if self.promise is not None:
            shares = self.nodes.weigh(probabilities[None])
            (node,), (enough,) = self.nodes.choose(shares, self.promise.least_answer)
            answer, sure = self._name_node(int(node), float(shares[0, node])), bool(enough) and not unknown
        if unknown:
            answer = Answer(UNKNOWN_LABEL, float(strangeness or 0), "Unknown", "未知")
        listed = () if self.promise is None else list_shortlist(probabilities, self.promise.least_shortlist)
        return Prediction(
            file,
            label=top[0].label,
            score=top[0].score,
            top=top[:n_top],
            answer=answer,
            sure=sure,
            unknown=unknown,
            strangeness=strangeness,
            shortlist=tuple(self._name_class(int(c), float(probabilities[c])) for c in listed),
            name_en=top[0].name_en,
            name_zh=top[0].name_zh,
            plu=top[0].plu,
        )

    def _name_class(self, number: int, score: float) -> Answer:
        name = self.names[number]
        return Answer(self.tree.names[number], score, name.name_en, name.name_zh, name.plu)

    def _name_node(self, node: int, score: float) -> Answer:
        if node < len(self.tree):
            return self._name_class(node, score)
        common = find_node_name(self.nodes.paths[node])
        names = (common.name_en, common.name_zh) if common else (None, None)
        return Answer(self._node_names[node], min(1.0, score), *names)
