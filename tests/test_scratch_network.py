"""A small network from random weights: it learns, it ends in time, and a seed decides it."""

from __future__ import annotations

import time

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from pomona.scratch_network import _draw_crops, train_network  # noqa: E402


def make_photos(n: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Two classes that differ by colour, with noise."""
    generator = np.random.default_rng(seed)
    labels = np.arange(n) % 2
    means = np.array([[180, 80, 60], [60, 160, 90]])[labels]
    pixels = np.clip(means[:, None, None] + generator.normal(0, 40, (n, 32, 32, 3)), 0, 255)
    return pixels.astype(np.uint8), labels


@pytest.fixture(autouse=True)
def _one_thread() -> object:
    n_threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(n_threads)


def test_it_learns_and_a_seed_decides_it() -> None:
    pixels, labels = make_photos(48)
    losses: list[float] = []
    first, again, other = (
        train_network(
            pixels, labels, 2, time_s=600, n_epochs=6, seed=seed, on_epoch=lambda _epoch, loss: losses.append(loss)
        )
        for seed in (3, 3, 4)
    )
    unseen, truth = make_photos(20, seed=1)
    found = first.predict_proba(unseen)
    np.testing.assert_allclose(found.sum(axis=1), 1, rtol=1e-5)
    assert np.mean(found.argmax(axis=1) == truth) >= 0.9
    assert len(losses) == 18
    assert losses[5] < losses[0]
    np.testing.assert_array_equal(found, again.predict_proba(unseen))
    assert not np.array_equal(found, other.predict_proba(unseen))
    assert (first.n_epochs, first.stopped_by) == (6, "epochs")


def test_answers_do_not_depend_on_the_photos_beside() -> None:
    pixels, labels = make_photos(16)
    network = train_network(pixels, labels, 2, time_s=600, n_epochs=1)
    whole = network.predict_proba(pixels)
    np.testing.assert_allclose(whole[5:6], network.predict_proba(pixels[5:6]), atol=1e-5)
    np.testing.assert_allclose(whole, network.predict_proba(pixels[:, :, ::-1].copy()), atol=1e-5)


def test_it_ends_when_the_time_is_up() -> None:
    pixels, labels = make_photos(64)
    started_s = time.perf_counter()
    network = train_network(pixels, labels, 2, time_s=1.0, n_epochs=100_000)
    assert time.perf_counter() - started_s < 20
    assert network.stopped_by == "time"
    assert np.isfinite(network.predict_proba(pixels[:4])).all()


def test_a_class_of_one_photo_and_a_single_photo_are_learnt_from() -> None:
    pixels, _ = make_photos(5)
    labels = np.array([0, 0, 0, 0, 1])
    assert train_network(pixels, labels, 3, time_s=60, n_epochs=2).predict_proba(pixels).shape == (5, 3)


def test_the_random_state_of_the_program_is_left_alone() -> None:
    pixels, labels = make_photos(8)
    torch.manual_seed(7)
    before = torch.random.get_rng_state()
    train_network(pixels, labels, 2, time_s=60, n_epochs=1)
    assert torch.equal(before, torch.random.get_rng_state())


def test_crops_stay_pixels_and_are_mirrored_half_of_the_time() -> None:
    ramp = np.tile(np.arange(0, 256, 8, dtype=np.uint8)[None, :, None], (32, 1, 3))
    found = _draw_crops(np.stack([ramp] * 200), 24, np.random.default_rng(0)).numpy()
    assert found.shape == (200, 24, 24, 3)
    assert found.min() >= 0
    assert found.max() <= 255
    rising = np.mean(found[:, :, -1].mean(axis=(1, 2)) > found[:, :, 0].mean(axis=(1, 2)))
    assert 0.35 < rising < 0.65
