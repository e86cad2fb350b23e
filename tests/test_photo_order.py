"""The first of any drawn photos are spread over the classes as evenly as they can be."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from pomona.class_tree import ClassTree
from pomona.dataset import Dataset, Photo
from pomona.photo_order import draw_photos

SEEDS = st.integers(0, 2**31)


def make_dataset(n_of_class: list[int]) -> Dataset:
    labels = [label for label, n_photos in enumerate(n_of_class) for _ in range(n_photos)]
    photos = (
        Photo(Path(f"{row}.jpg"), f"{row:064x}", label, str(row), None, f"{row}.jpg")
        for row, label in enumerate(labels)
    )
    tree = ClassTree.from_paths([(str(label),) for label in range(len(n_of_class))])
    return Dataset(tuple(photos), tree, (), 0, Path())


@given(st.lists(st.integers(0, 9), min_size=1, max_size=6), SEEDS)
def test_every_photo_is_drawn_once_and_no_class_is_far_ahead(n_of_class: list[int], seed: int) -> None:
    dataset = make_dataset(n_of_class)
    drawn = draw_photos(dataset, seed=seed)
    assert sorted(drawn, key=lambda photo: int(photo.path.stem)) == list(dataset.photos)
    for n_shown in range(len(drawn) + 1):
        counts = Counter(photo.label for photo in drawn[:n_shown])
        most = max(counts.values(), default=0)
        assert all(counts[label] >= min(n_photos, most - 1) for label, n_photos in enumerate(n_of_class))


def test_the_seed_decides_which_photos_and_which_classes_come_first() -> None:
    dataset = make_dataset([20, 20, 20])
    assert draw_photos(dataset, seed=3) == draw_photos(dataset, seed=3) != draw_photos(dataset, seed=4)
    firsts = [draw_photos(dataset, seed=seed)[0] for seed in range(20)]
    assert {photo.label for photo in firsts} == {0, 1, 2}
    assert len(set(firsts)) > 10


def test_photos_of_no_class_take_turns_as_one_class() -> None:
    dataset = make_dataset([2, 1])
    stranger = Photo(Path("9.jpg"), "9" * 64, -1, "9", None, "9.jpg")
    drawn = draw_photos(Dataset((*dataset.photos, stranger), dataset.tree, (), 0, Path()))
    assert {photo.label for photo in drawn[:3]} == {0, 1, -1}
