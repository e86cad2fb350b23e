"""What a ridge head has learnt: the state that takes further photos or forgets some in milliseconds.

In: features less their mean, labels, and an inverse. Out: a `Ridge`, and another for each change.
Why: a photo more is a correction of rank one to the inverse, and gives exactly what a fit of all photos would.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from pomona.errors import FitError
from pomona.head import Head, check_fit, sum_rows
from pomona.inverse import BorderedInverse, FactoredTable

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import NDArray

# Rank of the corrections that an inverse carries before they are worked into its table.
_MAX_RANK = 256


@dataclass(frozen=True, eq=False)
class Ridge:
    """A ridge head with all that it takes to learn on: a new state each time, and the old one stays as it was.

    Every change gives what a fit of all photos with the same penalty would, to rounding. Temperature and penalty stay.

    Parameters
    ----------
    origin : ndarray of shape (D,), float32
        Taken off all features: their mean at the first fit. Any place would give the same head; this one rounds least.
    blocks : tuple of ndarray of shape (N_b, D), float32
        Features less the origin, in blocks as they came.
    rows : ndarray of shape (N,), intp
        Of the blocks put together, those of the photos that are still learnt from.
    labels : ndarray of shape (N,), intp
        Class numbers of these photos.
    inverse : BorderedInverse
        Of their kernel.
    duals : ndarray of shape (M + 1, C), float64
        What the intercept and each row of the blocks add to the scores.
    weights : ndarray of shape (C, D), float32
        Scores are ``(features - origin) @ weights.T + duals[0]``.
    penalty : float
        Weight of the squared norm beside the sum of squared errors.
    temperature : float
        Scores are divided by it.
    l2 : float
        Strength that was chosen; the penalty as a share of the mean squared distance.
    """

    origin: NDArray[np.float32]
    blocks: tuple[NDArray[np.float32], ...]
    rows: NDArray[np.intp]
    labels: NDArray[np.intp]
    inverse: BorderedInverse
    duals: NDArray[np.float64]
    weights: NDArray[np.float32]
    penalty: float
    temperature: float
    l2: float

    @property
    def n_classes(self) -> int:
        """C."""
        return len(self.weights)

    def to_head(self) -> Head:
        """Fold origin and temperature into weights and bias."""
        return make_head(self.weights, self.duals[0], self.origin, self.temperature, self.l2)

    def leave_each_out(self) -> NDArray[np.float64]:
        """Scores (N, C) of each photo by a head that learnt all others, without fitting anew.

        References
        ----------
        Rifkin and Lippert, Notes on regularized least squares, MIT-CSAIL-TR-2007-025.
        """
        diagonal = self.inverse.find_diagonal()[self.rows + 1]
        return np.asarray(one_hot(self.labels, self.n_classes) - self.duals[self.rows + 1] / diagonal[:, None])

    def add(self, vectors: NDArray[np.float32], labels: NDArray[np.intp], n_classes: int) -> Ridge:
        """Learn further photos, of known classes or new ones.

        Parameters
        ----------
        vectors : ndarray of shape (K, D), float32
            Their features.
        labels : ndarray of shape (K,), int
            Their class numbers; new classes follow the known ones.
        n_classes : int
            With the new ones; each must have a photo.

        Raises
        ------
        FitError
            If features are not finite or of another length, a label is out of range, or a class has no photo.
        """
        if vectors.ndim != 2 or vectors.shape[1] != len(self.origin) or labels.shape != vectors.shape[:1]:
            raise FitError(
                f"wanted features (K, {len(self.origin)}) and labels (K,), got {vectors.shape} and {labels.shape}"
            )
        known = np.concatenate([self.labels, labels.astype(np.intp)])
        sums = np.concatenate([np.zeros(len(self.labels)), sum_rows(vectors)])
        check_fit(sums[:, None], known, n_classes, np.arange(len(known)))
        return self._grow((vectors - self.origin).astype(np.float32), known, n_classes) if len(labels) else self

    def remove(self, rows: NDArray[np.intp]) -> Ridge:
        """Forget photos.

        Parameters
        ----------
        rows : ndarray of shape (K,), intp
            Their places in `labels`; the others keep their order.

        Raises
        ------
        FitError
            If there is no such photo, or a class would be left without one.
        """
        gone = np.unique(rows)
        if len(gone) and not 0 <= gone[0] <= gone[-1] < len(self.labels):
            raise FitError(f"wanted photos from 0 to {len(self.labels) - 1}, got {gone[0]} to {gone[-1]}")
        left = np.delete(np.arange(len(self.labels)), gone)
        empty = np.setdiff1d(np.arange(self.n_classes), self.labels[left])
        if len(empty):
            raise FitError(f"wanted a photo left of each class, got none of number {empty[0]}; remove the class")
        return self._shrink(gone, left) if len(gone) else self

    def remove_class(self, number: int) -> Ridge:
        """Forget a class and its photos; the classes after it move up by one.

        Raises
        ------
        FitError
            If there is no such class, or only one would be left.
        """
        if not 0 <= number < self.n_classes or self.n_classes < 3:
            raise FitError(f"wanted one of three classes or more to remove, got number {number} of {self.n_classes}")
        gone = self.labels == number
        ridge = self._shrink(np.flatnonzero(gone), np.flatnonzero(~gone))
        return replace(
            ridge,
            labels=ridge.labels - (ridge.labels > number),
            duals=np.delete(ridge.duals, number, axis=1),
            weights=np.delete(ridge.weights, number, axis=0),
        )

    def renumber(self, numbers: NDArray[np.intp]) -> Ridge:
        """Put the classes in another order: class c becomes ``numbers[c]``.

        Raises
        ------
        FitError
            If these are not the numbers 0 to C - 1.
        """
        if not np.array_equal(np.sort(numbers), np.arange(self.n_classes)):
            raise FitError(f"wanted the numbers 0 to {self.n_classes - 1}, each once, got {list(numbers)}")
        order = np.argsort(numbers)
        return replace(
            self,
            labels=numbers[self.labels],
            duals=self.duals[:, order],
            weights=np.ascontiguousarray(self.weights[order]),
        )

    def to_tensors(self) -> dict[str, NDArray[np.generic]]:
        """All that `from_tensors` needs, by name: arrays in one piece, without the photos that were forgotten."""
        ridge = self.settle()
        table = ridge.inverse.table
        return {
            "origin": ridge.origin,
            "vectors": ridge.blocks[0],
            "labels": ridge.labels.astype(np.int64),
            "inverse": table.to_table() if isinstance(table, FactoredTable) else table,
            "penalty": np.array([ridge.penalty]),
            "temperature": np.array([ridge.temperature]),
            "l2": np.array([ridge.l2]),
        }

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, NDArray[np.generic]]) -> Ridge:
        """Make the state of `to_tensors` again.

        Raises
        ------
        ValueError
            If an array is missing or its shape is not that of the others.
        """
        _check_tensors(tensors)
        x = np.ascontiguousarray(tensors["vectors"], np.float32)
        labels = tensors["labels"].astype(np.intp)
        table = np.asarray(tensors["inverse"], np.float64)
        duals = table[:, 1:] @ one_hot(labels, int(labels.max()) + 1)
        return cls(
            origin=np.asarray(tensors["origin"], np.float32),
            blocks=(x,),
            rows=np.arange(len(x)),
            labels=labels,
            inverse=BorderedInverse.wrap(table, len(table)),
            duals=duals,
            weights=duals[1:].T.astype(np.float32) @ x,
            penalty=float(tensors["penalty"][0]),
            temperature=float(tensors["temperature"][0]),
            l2=float(tensors["l2"][0]),
        )

    def _grow(self, x: NDArray[np.float32], labels: NDArray[np.intp], n_classes: int) -> Ridge:
        """Border the inverse; what the old scores lack on the new photos is what these add."""
        n_new = n_classes - self.n_classes
        duals = np.pad(self.duals, ((0, 0), (0, n_new)))
        kernel = np.vstack([np.ones((1, len(x))), *(block @ x.T for block in self.blocks)])
        cross = self.inverse.apply(kernel)
        wide = x.astype(np.float64)
        middle = wide @ wide.T + self.penalty * np.eye(len(x)) - kernel.T @ cross
        columns = np.vstack([-cross, np.eye(len(x))])
        inverse = self.inverse.correct(columns, middle, 1.0)
        added = np.linalg.solve(middle, one_hot(labels[-len(x) :], n_classes) - kernel.T @ duals)
        weights = np.pad(self.weights, ((0, n_new), (0, 0)))
        weights -= self._weigh(cross[1:], added)
        weights += added.T.astype(np.float32) @ x
        ridge = replace(
            self,
            blocks=(*self.blocks, x),
            rows=np.append(self.rows, len(cross) - 1 + np.arange(len(x))),
            labels=labels,
            inverse=inverse,
            duals=np.vstack([duals - cross @ added, added]),
            weights=weights,
        )
        return ridge.settle() if len(inverse.signs) > _MAX_RANK else ridge

    def _shrink(self, gone: NDArray[np.intp], left: NDArray[np.intp]) -> Ridge:
        """Take photos out of the inverse; their rows stay in the blocks, with nothing to add."""
        places = self.rows[gone] + 1
        columns = self.inverse.take(places)
        middle = columns[places]
        inverse = self.inverse.correct(columns, middle, -1.0)
        taken = np.linalg.solve(middle, self.duals[places])
        duals = self.duals - columns @ taken
        duals[places] = 0
        ridge = replace(
            self,
            rows=self.rows[left],
            labels=self.labels[left],
            inverse=inverse,
            duals=duals,
            weights=np.subtract(self.weights, self._weigh(columns[1:], taken)),
        )
        return ridge.settle() if len(inverse.signs) > _MAX_RANK else ridge

    def _weigh(self, columns: NDArray[np.float64], shares: NDArray[np.floating]) -> NDArray[np.float32]:
        """Weights (C, D) of duals ``columns @ shares``, in the order that reads the features with fewer columns."""
        if columns.shape[1] > shares.shape[1]:
            columns, shares = columns @ shares, np.eye(shares.shape[1])
        ends = np.cumsum([len(block) for block in self.blocks])[:-1]
        parts = np.split(columns.T.astype(np.float32), ends, axis=1)
        mixed = sum(part @ block for part, block in zip(parts, self.blocks, strict=True))
        return np.asarray(shares.T.astype(np.float32) @ mixed, np.float32)

    def settle(self) -> Ridge:
        """Work the corrections into one table, and leave forgotten photos behind."""
        if len(self.blocks) == 1 and not len(self.inverse.signs):
            return self
        places = np.append(0, self.rows + 1)
        x = self.blocks[0] if len(self.blocks) == 1 else np.concatenate(self.blocks)
        return replace(
            self,
            blocks=(x if len(self.rows) == len(x) else x[self.rows],),
            rows=np.arange(len(self.rows)),
            inverse=BorderedInverse.wrap(self.inverse.to_table(places), len(places)),
            duals=self.duals[places],
        )


def make_head(
    weights: NDArray[np.float32],
    intercept: NDArray[np.float64],
    origin: NDArray[np.float32],
    temperature: float,
    l2: float,
) -> Head:
    """Fold origin and temperature into weights and bias."""
    scaled = np.ascontiguousarray(weights / np.float32(temperature), np.float32)
    bias = intercept / temperature - scaled.astype(np.float64) @ origin.astype(np.float64)
    return Head(scaled, bias.astype(np.float32), l2)


def one_hot(labels: NDArray[np.intp], n_classes: int) -> NDArray[np.float64]:
    """1 at the class of each photo, (N, C), 0 elsewhere."""
    known = np.zeros((len(labels), n_classes))
    known[np.arange(len(labels)), labels] = 1
    return known


def _check_tensors(tensors: Mapping[str, NDArray[np.generic]]) -> None:
    shape = np.shape(tensors["vectors"]) if "vectors" in tensors else ()
    n, dim = shape if len(shape) == 2 else (0, 0)
    single = (1,)
    wanted = {"origin": (dim,), "vectors": (n, dim), "labels": (n,), "inverse": (n + 1, n + 1)}
    wanted |= {"penalty": single, "temperature": single, "l2": single}
    got = {name: np.shape(tensors[name]) if name in tensors else None for name in wanted}
    if got != wanted or not n:
        raise ValueError(f"wanted the tensors of a ridge, of shapes {wanted}, got {got}")
