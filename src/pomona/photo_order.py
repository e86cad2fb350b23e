"""Photos of a dataset in an order that shows all of its classes early.

In: a dataset and a seed. Out: its photos, drawn at random, class after class in turn.
Why: a page shows a few photos of many. The first of such an order are spread over the classes as evenly as can be.
"""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from pomona.dataset import Dataset, Photo


def draw_photos(dataset: Dataset, *, seed: int = 0) -> list[Photo]:
    """Draw all photos of a dataset, no class more than one photo ahead of another that has some left.

    Parameters
    ----------
    dataset : Dataset
        Photos to draw from.
    seed : int
        Another seed draws them in another order.

    Returns
    -------
    list of Photo, (N,)
        Each once; the first n are a draw of n.
    """
    of_class: dict[int, list[Photo]] = {}
    for row in np.random.default_rng(seed).permutation(dataset.n_photos):
        photo = dataset.photos[row]
        of_class.setdefault(photo.label, []).append(photo)
    rounds = itertools.zip_longest(*of_class.values())
    return [photo for photo in itertools.chain.from_iterable(rounds) if photo is not None]
