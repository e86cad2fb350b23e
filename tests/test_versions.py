"""Versions: each stays whole, and what is brought back says the very same as it did."""

from __future__ import annotations

import csv
import fcntl
import os
import shutil
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest

import pomona.learnt
from pomona.bundle import HEAD_NAME, MODEL_NAME, load_bundle
from pomona.errors import BundleDamagedError, BundleError, OptionError, StorageError
from pomona.files import MANIFEST_NAME, cache_folder, hash_file
from pomona.learnt import load_learnt
from pomona.run_folder import CHANGES_NAME
from pomona.teaching import add_class, remove_class
from pomona.versions import find_versions_folder, keep_version, list_versions, restore_version

if TYPE_CHECKING:
    from pomona.training import TrainResult


@pytest.fixture
def run(trained: TrainResult, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Copy of a run, with a cache of its own that holds what it learnt from."""
    shutil.copytree(cache_folder() / "learnt", tmp_path / "cache" / "learnt", ignore=shutil.ignore_patterns("pins"))
    monkeypatch.setenv("POMONA_CACHE", str(tmp_path / "cache"))
    return Path(shutil.copytree(trained.bundle.folder, tmp_path / "run"))


@pytest.fixture(scope="session")
def grapes(strangers: Path) -> list[Path]:
    return sorted(strangers.rglob("Grapes_*.jpg"))


def test_a_version_is_a_bundle_of_links(run: Path) -> None:
    assert list_versions(run) == ()
    first = keep_version(run)
    assert (first.number, first.action, first.n_classes, first.is_current) == (1, "trained", 3, True)
    assert first.n_photos == len(load_bundle(run).learnt_from)
    assert first.folder == find_versions_folder(run) / "0001"
    bundle = load_bundle(first.folder)
    assert bundle.manifest == load_bundle(run).manifest
    assert {path.name for path in first.folder.iterdir()} == {*bundle.manifest.files, MANIFEST_NAME}
    assert all(path.stat().st_nlink == 2 for path in first.folder.iterdir())
    assert keep_version(run) == first
    assert list_versions(run) == (first,)


def test_what_is_brought_back_says_the_very_same(run: Path, rendered: Path, grapes: list[Path]) -> None:
    photos = [*sorted(rendered.rglob("*.jpg")), *grapes]
    before, manifest = load_bundle(run).predict_proba(photos)[0], load_bundle(run).manifest
    keep_version(run)
    taught = add_class(run, "Berry/Grapes", grapes[:6]).bundle
    after = taught.predict_proba(photos)[0]
    assert keep_version(run).action == "taught 6 photos of Grapes"
    remove_class(run, "Lemon")
    (run / "own notes.txt").write_text("stay")
    bundle = restore_version(run, 1)
    assert bundle.manifest == manifest
    np.testing.assert_array_equal(load_bundle(run).predict_proba(photos)[0], before)
    assert (run / "own notes.txt").read_text() == "stay"
    assert (run / "report.html").is_file()
    versions = list_versions(run)
    assert [(one.number, one.action, one.n_classes, one.is_current) for one in versions] == [
        (1, "trained", 3, True),
        (2, "taught 6 photos of Grapes", 4, False),
        (3, "forgot Lemon", 3, False),
    ]
    np.testing.assert_array_equal(restore_version(run, 2).predict_proba(photos)[0], after)
    rows = list(csv.reader((run / CHANGES_NAME).read_text("utf-8").splitlines()))
    assert [row[1:3] for row in rows[1:]] == [
        ["add", "Grapes"],
        ["remove", "Lemon"],
        ["restore", "version 1"],
        ["restore", "version 2"],
    ]
    assert restore_version(run, 2).manifest == taught.manifest
    assert len(list((run / CHANGES_NAME).read_text("utf-8").splitlines())) == 5


def test_teaching_goes_on_from_what_was_brought_back(
    run: Path, grapes: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """What later versions pushed out of the cache is there as long as a version needs it."""
    monkeypatch.setattr(pomona.learnt, "N_KEPT", 1)
    keep_version(run)
    weights = np.array(load_learnt(load_bundle(run)).ridge.weights)
    for number in range(4):
        add_class(run, "Grapes", grapes[number : number + 1])
    assert keep_version(run).number == 2
    np.testing.assert_array_equal(load_learnt(restore_version(run, 1)).ridge.weights, weights)
    again = add_class(run, "Grapes", grapes[:4]).bundle
    assert keep_version(run).number == 3
    np.testing.assert_allclose(
        load_learnt(again).ridge.weights, load_learnt(load_bundle(run.parent / "run.versions" / "0002")).ridge.weights,
        atol=1e-5,
    )  # fmt: skip
    states = {path.stem for path in (cache_folder() / "learnt").glob("*/*.npz")}
    assert len(states) == 3
    shutil.rmtree(find_versions_folder(run))
    add_class(run, "Grapes", grapes[4:5])
    assert len(list((cache_folder() / "learnt").glob("*/*.npz"))) == 1
    assert list((cache_folder() / "learnt" / "pins").iterdir()) == []


def test_where_the_cache_was_emptied_a_version_still_comes_back_and_says_that_it_cannot_learn_on(
    run: Path, grapes: list[Path]
) -> None:
    keep_version(run)
    add_class(run, "Grapes", grapes[:2])
    shutil.rmtree(cache_folder() / "learnt")
    assert "Grapes" not in restore_version(run, 1).tree.names
    with pytest.raises(BundleError, match="wanted what it learnt from in the cache"):
        add_class(run, "Grapes", grapes[:2])


def test_what_changes_later_leaves_a_version_as_it_was(run: Path, grapes: list[Path]) -> None:
    first = keep_version(run)
    hashes = {path.name: hash_file(path) for path in first.folder.iterdir()}
    add_class(run, "Grapes", grapes[:2])
    remove_class(run, "Lemon")
    restore_version(run, 1)
    shutil.rmtree(run)
    assert {path.name: hash_file(path) for path in first.folder.iterdir()} == hashes


@pytest.mark.parametrize("number", [0, -1, 2, 99])
def test_a_version_that_is_not_there_is_refused(run: Path, number: int) -> None:
    keep_version(run)
    with pytest.raises(OptionError, match=r"wanted the number of a version of .* \(1\)"):
        restore_version(run, number)


def test_a_damaged_version_is_refused_by_name_and_the_run_stays(run: Path, grapes: list[Path]) -> None:
    first = keep_version(run)
    add_class(run, "Grapes", grapes[:2])
    before = load_bundle(run).manifest
    damaged = first.folder / HEAD_NAME
    content = bytearray(damaged.read_bytes())
    content[-1] ^= 1
    damaged.unlink()
    damaged.write_bytes(content)
    with pytest.raises(BundleDamagedError, match=r"0001/head.safetensors is damaged"):
        restore_version(run, 1)
    assert load_bundle(run).manifest == before
    (first.folder / MANIFEST_NAME).unlink()
    (first.folder / MANIFEST_NAME).write_text("{}")
    with pytest.raises(BundleDamagedError, match=r"0001/pomona.json is damaged"):
        restore_version(run, 1)
    assert list_versions(run) == ()
    assert keep_version(run).number == 2


def test_what_a_killed_process_left_is_no_version_and_goes(run: Path) -> None:
    folder = find_versions_folder(run)
    half = folder / ".version.0123abcd.partial"
    half.mkdir(parents=True)
    building = os.open(half, os.O_RDONLY)
    fcntl.flock(building, fcntl.LOCK_EX)  # as whoever builds it holds one
    (folder / "0007").mkdir()
    assert keep_version(run).number == 8
    assert half.is_dir()
    os.close(building)
    add_number = keep_version(run).number
    assert add_number == 8
    shutil.rmtree(folder / "0008")
    assert keep_version(run).number == 8
    assert not half.exists()


def test_a_damaged_run_is_not_kept(run: Path) -> None:
    (run / MODEL_NAME).unlink()
    with pytest.raises(StorageError, match="could not keep"):
        keep_version(run)
    shutil.copyfile(run / HEAD_NAME, run / MODEL_NAME)
    with pytest.raises(BundleDamagedError):
        keep_version(run)
    assert list(find_versions_folder(run).iterdir()) == []


def test_a_disk_without_links_gets_copies(run: Path, monkeypatch: pytest.MonkeyPatch, grapes: list[Path]) -> None:
    def refuse(*_: object) -> None:
        raise PermissionError(1, "no links here")

    monkeypatch.setattr(os, "link", refuse)
    keep_version(run)
    add_class(run, "Grapes", grapes[:2])
    assert len(restore_version(run, 1).tree) == 3
    assert all(path.stat().st_nlink == 1 for path in run.iterdir() if path.is_file())


def test_a_link_to_a_run_stays_one(run: Path, grapes: list[Path], tmp_path: Path) -> None:
    link = tmp_path / "elsewhere" / "scale"
    link.parent.mkdir()
    link.symlink_to(run)
    keep_version(link)
    add_class(link, "Grapes", grapes[:2])
    restore_version(link, 1)
    assert link.is_symlink()
    assert len(load_bundle(run).tree) == 3
    assert find_versions_folder(link) == find_versions_folder(run)
