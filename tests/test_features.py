"""Cached features equal fresh ones, whatever happened to the process, the photos or the cache file before."""

from __future__ import annotations

import contextlib
import random
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pomona import row_cache
from pomona.backbone import find_backbone
from pomona.dataset import load_dataset
from pomona.embedding import Embedding, load_network
from pomona.errors import DataError, PhotoError, StorageError
from pomona.features import VectorCache, Vectors, extract_features, extract_vectors
from pomona.files import cache_folder, hash_bytes
from pomona.samples import SampleOptions, make_kinds, write_samples

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from numpy.typing import NDArray

    from pomona.dataset import Dataset

EMBEDDING = Embedding((find_backbone("lite0", size_px=64),))


@pytest.fixture
def fresh_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Cache folder with the converted network and nothing else."""
    networks = load_network(EMBEDDING).parent
    folder = tmp_path / "cache"
    folder.mkdir()
    (folder / "networks").symlink_to(networks)
    monkeypatch.setenv("POMONA_CACHE", str(folder))
    return folder


@pytest.fixture(scope="module")
def samples(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("photos") / "fruit"
    write_samples(folder, SampleOptions(n_per_kind=12, kinds=make_kinds(3), size_px=64, n_workers=1))
    return folder


@dataclass
class Pool:
    """Photos in memory; counts how often each is loaded."""

    photos: NDArray[np.uint8]
    loaded: list[int]

    @classmethod
    def draw(cls, n_photos: int, seed: int = 0) -> Pool:
        return cls(np.random.default_rng(seed).integers(0, 256, (n_photos, 64, 64, 3), dtype=np.uint8), [])

    @property
    def hashes(self) -> list[str]:
        return [hash_bytes(photo.tobytes()) for photo in self.photos]

    def extract(self, rows: Sequence[int] | None = None, **options: Any) -> Vectors:
        rows = range(len(self.photos)) if rows is None else rows
        hashes = self.hashes

        def load_photo(i: int) -> NDArray[np.uint8]:
            self.loaded.append(rows[i])
            return self.photos[rows[i]]

        return extract_vectors([hashes[row] for row in rows], load_photo, EMBEDDING, **options)


def find_cache() -> Path:
    return next((cache_folder() / "features").glob("*.sqlite"))


def find_aside() -> list[Path]:
    return list((cache_folder() / "features").glob("*.damaged-*"))


def count_rows() -> int:
    with contextlib.closing(sqlite3.connect(find_cache())) as connection:
        return int(connection.execute("SELECT count(*) FROM vectors").fetchone()[0])


# --- laws -----------------------------------------------------------------------------------------------------------


def test_cached_equals_fresh(fresh_cache: Path) -> None:
    pool = Pool.draw(10)
    fresh, cached = pool.extract(), pool.extract()
    np.testing.assert_array_equal(cached.values, fresh.values)
    assert fresh.values.shape == (10, EMBEDDING.dim)
    assert fresh.values.dtype == np.float32
    assert len(np.unique(fresh.values, axis=0)) == 10
    assert (fresh.n_computed, fresh.n_cached, cached.n_computed, cached.n_cached) == (10, 0, 0, 10)
    assert sorted(pool.loaded) == list(range(10))


POOL = Pool.draw(6, seed=1)


@settings(max_examples=30, deadline=None)
@given(st.lists(st.integers(0, 5), max_size=12), st.randoms(use_true_random=False))
def test_permuting_photos_permutes_features(rows: list[int], rng: random.Random) -> None:
    order = list(range(len(rows)))
    rng.shuffle(order)
    vectors = POOL.extract(rows).values
    np.testing.assert_array_equal(POOL.extract([rows[i] for i in order]).values, vectors[order])
    for i, row in enumerate(rows):
        np.testing.assert_array_equal(vectors[i], POOL.extract([row]).values[0])


def test_adding_ten_photos_computes_ten(fresh_cache: Path) -> None:
    pool = Pool.draw(30)
    pool.extract(range(20))
    order = random.Random(0).sample(range(30), 30)
    more = pool.extract(order)
    assert (more.n_computed, more.n_cached) == (10, 20)
    assert sorted(pool.loaded[20:]) == list(range(20, 30))


def test_photos_of_one_content_are_computed_once(fresh_cache: Path) -> None:
    pool = Pool.draw(3)
    vectors = pool.extract([0, 1, 0, 2, 0, 1])
    assert sorted(pool.loaded) == [0, 1, 2]
    assert (vectors.n_computed, vectors.n_cached) == (3, 0)
    np.testing.assert_array_equal(vectors.values, vectors.values[[0, 1, 0, 3, 0, 1]])


def test_another_embedding_never_reads_it(fresh_cache: Path) -> None:
    fill_cache(3)
    with contextlib.closing(VectorCache(Embedding((find_backbone("lite0", size_px=96),)))) as cache:
        assert list(cache.read([f"{0:064x}"])) == []
        assert cache.path.name.startswith("lite0-imagenet-96-")
        assert cache.path.name.endswith("-2.sqlite")


def test_progress_counts_every_photo(fresh_cache: Path) -> None:
    pool = Pool.draw(5)
    pool.extract([0, 1])
    seen: list[tuple[int, int]] = []
    pool.extract([0, 0, 2, 1, 2, 3], on_photo=lambda done, n: seen.append((done, n)))
    assert seen == [(3, 6), (5, 6), (6, 6)]


# --- a damaged cache ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("damage", ["a byte", "too short", "a number", "nothing"])
def test_a_damaged_vector_is_computed_again(fresh_cache: Path, damage: str) -> None:
    pool = Pool.draw(6)
    wanted = pool.extract().values
    with contextlib.closing(sqlite3.connect(find_cache())) as connection:
        key = bytes.fromhex(pool.hashes[4])
        (blob,) = connection.execute("SELECT vector FROM vectors WHERE sha256 = ?", [key]).fetchone()
        flipped = blob[:1000] + bytes([blob[1000] ^ 1]) + blob[1001:]
        wrong = {"a byte": flipped, "too short": blob[:-4], "a number": 7, "nothing": None}[damage]
        connection.execute("UPDATE vectors SET vector = ? WHERE sha256 = ?", [wrong, key])
        connection.commit()
    again = pool.extract()
    assert (again.n_computed, pool.loaded[6:]) == (1, [4])
    np.testing.assert_array_equal(again.values, wanted)
    assert pool.extract().n_computed == 0


def fill_cache(n_rows: int) -> list[str]:
    hashes = [f"{i:064x}" for i in range(n_rows)]
    with contextlib.closing(VectorCache(EMBEDDING)) as cache:
        for i, digest in enumerate(hashes):
            cache.write(digest, np.full(EMBEDDING.dim, i, np.float32))
    return hashes


@pytest.mark.parametrize("length", [0, 5, 1000, 4096, 50_000, 200_000])
def test_a_truncated_or_garbage_cache_is_moved_aside_and_rebuilt(fresh_cache: Path, length: int) -> None:
    pool = Pool.draw(4)
    wanted = pool.extract().values
    fill_cache(100)
    sound = find_cache().read_bytes()
    assert len(sound) > 500_000
    for content in (sound[:length], b"garbage" * 1000):
        find_cache().write_bytes(content)
        again = pool.extract()
        np.testing.assert_array_equal(again.values, wanted)
        assert pool.extract().n_computed == 0
    assert b"garbage" * 1000 in [path.read_bytes() for path in find_aside()]


def test_damage_that_only_writing_meets_is_moved_aside_too(fresh_cache: Path) -> None:
    fill_cache(30)
    with contextlib.closing(VectorCache(EMBEDDING)) as cache:
        sound = cache.path.read_bytes()
    n_aside = 0
    for start in range(4096, len(sound), 4096):
        for path in cache.path.parent.iterdir():
            path.unlink()
        cache.path.write_bytes(sound[:start] + bytes([255]) * 4096 + sound[start + 4096 :])
        with contextlib.closing(VectorCache(EMBEDDING)) as cache:
            assert list(cache.read(["f" * 64])) == []
            cache.write("f" * 64, np.ones(EMBEDDING.dim, np.float32))
        n_aside += bool(find_aside())
        with contextlib.closing(VectorCache(EMBEDDING)) as cache:
            assert [digest for digest, _ in cache.read(["f" * 64])] == ["f" * 64]
    assert n_aside > 0


@pytest.mark.parametrize("stranger", ["folder", "columns", "key", "view"])
def test_something_else_in_the_place_of_the_cache_is_moved_aside(fresh_cache: Path, stranger: str) -> None:
    pool = Pool.draw(2)
    fresh = pool.extract()
    path = find_cache()
    for part in path.parent.iterdir():
        part.unlink()
    if stranger == "folder":
        path.mkdir()
    else:
        table = {
            "columns": "CREATE TABLE vectors (sha256 BLOB PRIMARY KEY, vector BLOB)",
            "key": "CREATE TABLE vectors (sha256 BLOB, vector BLOB, crc INTEGER)",
            "view": "CREATE VIEW vectors AS SELECT 1 AS sha256, 2 AS vector, 3 AS crc",
        }
        with contextlib.closing(sqlite3.connect(path)) as connection:
            connection.execute(table[stranger])
    for n_computed in (2, 0):
        again = pool.extract()
        np.testing.assert_array_equal(again.values, fresh.values)
        assert again.n_computed == n_computed
    (aside,) = find_aside()
    assert aside.is_dir() == (stranger == "folder")


def test_a_cache_without_permission_says_so(fresh_cache: Path) -> None:
    with contextlib.closing(VectorCache(EMBEDDING)) as cache:
        path = cache.path
    path.unlink()
    path.symlink_to(path.parent / "nowhere" / "cache.sqlite")  # what root cannot open either
    with pytest.raises(
        StorageError, match=r"could not open .*; make sure that you may read and write it and its folder, or name"
    ):
        Pool.draw(1).extract()
    assert path.is_symlink()
    assert find_aside() == []


# --- a process that ends, and another beside it ---------------------------------------------------------------------

SCRIPT = """
import sys, time
import numpy as np
from pomona.backbone import find_backbone
from pomona.embedding import Embedding
from pomona.errors import PomonaError
from pomona.features import extract_vectors
from pomona.files import hash_bytes
n_photos, pause_s = int(sys.argv[1]), float(sys.argv[2])
photos = np.random.default_rng(0).integers(0, 256, (n_photos, 64, 64, 3), dtype=np.uint8)
def load_photo(i):
    time.sleep(pause_s)
    return photos[i]
def on_photo(done, n):
    print(done, flush=True)
hashes = [hash_bytes(photo.tobytes()) for photo in photos]
embedding = Embedding((find_backbone("lite0", size_px=64),))
try:
    found = extract_vectors(hashes, load_photo, embedding, n_workers=1, on_photo=on_photo)
except PomonaError as error:
    print(type(error).__name__, error)
else:
    print("computed", found.n_computed, hash_bytes(found.values.tobytes()))
"""
"""Extracts the photos of `Pool.draw(n_photos)`."""


def start_extraction(n_photos: int, pause_s: float = 0.0, *, before: str = "") -> subprocess.Popen[str]:
    command = [sys.executable, "-c", before + SCRIPT, str(n_photos), str(pause_s)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)


def test_a_kill_loses_at_most_the_batch_in_flight(fresh_cache: Path) -> None:
    with start_extraction(400, 0.002) as process:
        assert process.stdout
        n_done = next(done for done in map(int, process.stdout) if done >= 150)
        process.send_signal(signal.SIGKILL)
    n_kept = count_rows()
    assert n_done - 64 <= n_kept < 400
    pool = Pool.draw(400)
    again = pool.extract()
    assert (again.n_computed, again.n_cached) == (400 - n_kept, n_kept)
    np.testing.assert_array_equal(again.values[:5], Pool.draw(400).extract(range(5)).values)


def test_slow_photos_are_kept_after_two_seconds(fresh_cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(row_cache, "_SECONDS_PER_COMMIT", 0.0)
    kept: list[int] = []
    Pool.draw(4).extract(on_photo=lambda _done, _n: kept.append(count_rows()))
    assert kept == [0, 1, 2, 3, 4]


def test_an_interrupt_keeps_what_was_done(fresh_cache: Path) -> None:
    pool = Pool.draw(60)

    def interrupt(n_done: int, _n_photos: int) -> None:
        if n_done == 20:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt) as caught:
        pool.extract(on_photo=interrupt, n_workers=1)
    assert caught.tb  # the exception is still held, and yet nothing runs on
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("pomona-engine")]
    again = pool.extract()
    assert (again.n_computed, again.n_cached) == (40, 20)


def test_one_process_does_not_hold_up_another(fresh_cache: Path) -> None:
    with contextlib.closing(VectorCache(EMBEDDING)) as slow:
        slow.write("a" * 64, np.ones(EMBEDDING.dim, np.float32))
        started_s = time.monotonic()
        with contextlib.closing(VectorCache(EMBEDDING)) as other:
            other.write("b" * 64, np.ones(EMBEDDING.dim, np.float32))
        assert time.monotonic() - started_s < 5
    assert count_rows() == 2


def test_two_processes_share_a_cache(fresh_cache: Path) -> None:
    with start_extraction(200) as first, start_extraction(200) as second:
        ends = [process.communicate(timeout=60)[0].splitlines()[-1].split() for process in (first, second)]
    assert [end[0] for end in ends] == ["computed", "computed"]
    assert ends[0][2] == ends[1][2]
    third = Pool.draw(200).extract()
    assert third.n_computed == 0
    assert hash_bytes(third.values.tobytes()) == ends[0][2]
    assert find_aside() == []


def test_a_full_disk_is_a_storage_error_and_the_cache_stays_whole(fresh_cache: Path) -> None:
    pytest.importorskip("resource", reason="file sizes cannot be limited here")
    before = "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (700_000, 700_000))\n"
    with start_extraction(200, before=before) as process:
        last = process.communicate(timeout=60)[0].splitlines()[-1]
    assert last.startswith("StorageError could not write the feature cache")
    assert last.endswith("free some space, or name another folder in POMONA_CACHE")
    again = Pool.draw(200).extract()
    assert again.n_computed + again.n_cached == 200
    assert again.n_cached > 0
    assert find_aside() == []


# --- photos of a dataset --------------------------------------------------------------------------------------------


def spoil(dataset: Dataset, rows: Sequence[int]) -> None:
    for row in rows:
        path = dataset.photos[row].path
        path.write_bytes(path.read_bytes()[:-400])


@pytest.fixture
def photos(samples: Path, tmp_path: Path) -> Path:
    """A copy of the samples to spoil."""
    folder = tmp_path / "photos"
    for path in samples.rglob("*.jpg"):
        copy = folder / path.relative_to(samples)
        copy.parent.mkdir(parents=True, exist_ok=True)
        copy.write_bytes(path.read_bytes())
    return folder


def test_an_unreadable_photo_is_skipped_and_the_others_are_kept(photos: Path) -> None:
    sound = extract_features(load_dataset(photos), EMBEDDING)
    assert sound.vectors.shape == (36, EMBEDDING.dim)
    assert sound.dataset.skipped == ()
    spoil(sound.dataset, [3, 35])
    features = extract_features(load_dataset(photos), EMBEDDING)
    kept = [i for i in range(36) if i not in (3, 35)]
    assert [photo.name for photo in features.dataset.photos] == [sound.dataset.photos[i].name for i in kept]
    np.testing.assert_array_equal(features.vectors, sound.vectors[kept])
    assert [skipped.fault for skipped in features.dataset.skipped] == ["truncated", "truncated"]
    assert [skipped.name for skipped in features.dataset.skipped] == [sound.dataset.photos[i].name for i in (3, 35)]
    assert (features.n_computed, features.n_cached) == (0, 34)


def test_features_do_not_depend_on_who_computed_them(samples: Path, fresh_cache: Path) -> None:
    dataset = load_dataset(samples)
    one = extract_features(dataset, EMBEDDING, n_workers=1).vectors
    find_cache().unlink()
    np.testing.assert_array_equal(extract_features(dataset, EMBEDDING, n_workers=3).vectors, one)


def test_no_usable_photo_is_a_data_error(photos: Path) -> None:
    dataset = load_dataset(photos)
    spoil(dataset, range(36))
    with pytest.raises(DataError, match=r"no photo of .* can be used: 36 failed; the first: .*\.jpg: "):
        extract_features(load_dataset(photos), EMBEDDING)


@pytest.mark.parametrize("change", ["gone", "another photo"])
def test_a_photo_that_changed_after_it_was_listed_is_not_kept(photos: Path, fresh_cache: Path, change: str) -> None:
    dataset = load_dataset(photos)
    path = dataset.photos[5].path
    sound = path.read_bytes()
    path.unlink()
    if change == "another photo":
        path.write_bytes(dataset.photos[6].path.read_bytes())
    features = extract_features(dataset, EMBEDDING)
    (skipped,) = features.dataset.skipped
    assert (skipped.path, len(features.dataset.photos)) == (path, 35)
    assert skipped.fault == ("not_found" if change == "gone" else "corrupt")
    path.write_bytes(sound)
    again = extract_features(dataset, EMBEDDING)
    assert (again.n_computed, again.n_cached) == (1, 35)
    assert len(np.unique(again.vectors, axis=0)) == 36


def test_an_error_in_memory_stays_with_its_rows(fresh_cache: Path) -> None:
    pool = Pool.draw(3)
    error = PhotoError("corrupt", "no")

    def load_photo_or_error(i: int) -> NDArray[np.uint8]:
        if i == 1:
            raise error
        return pool.photos[i]

    hashes = pool.hashes
    vectors = extract_vectors([*hashes, hashes[1]], load_photo_or_error, EMBEDDING)
    assert vectors.errors == {1: error, 3: error}
    assert vectors.n_computed == 2
    assert not vectors.values[[1, 3]].any()
    assert vectors.values[[0, 2]].any(axis=1).all()
    assert count_rows() == 2


def test_a_part_keeps_rows_and_photos_together(samples: Path) -> None:
    features = extract_features(load_dataset(samples), EMBEDDING)
    splits = ["train", "val", "train", "test"] * 9
    placed = tuple(replace(photo, split=split) for photo, split in zip(features.dataset.photos, splits, strict=True))
    features = replace(features, dataset=replace(features.dataset, photos=placed))
    train = features.part("train")
    assert train.dataset.photos == placed[::2]
    np.testing.assert_array_equal(train.vectors, features.vectors[::2])
    with pytest.raises(ValueError, match=r"vectors: wanted shape \(36, D\), got \(18, "):
        replace(features, vectors=train.vectors)
