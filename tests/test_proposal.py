"""Proposals: the head of a full fit, measured on photos that neither head learnt, and a crash leaves one of two."""

from __future__ import annotations

import csv
import io
import json
import os
import random
import shutil
import sqlite3
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
from PIL import Image

from pomona.bundle import Bundle, load_bundle
from pomona.class_names import ClassName
from pomona.class_tree import ClassTree
from pomona.errors import BundleError, DataError, OptionError
from pomona.files import cache_folder, hash_file
from pomona.inbox import Inbox, find_inbox_folder, open_inbox
from pomona.learnt import load_learnt
from pomona.proposal import (
    Proposal,
    confirm_proposal,
    find_class,
    load_held_out,
    make_proposal,
    settle_inbox,
)
from pomona.ridge import solve_dual
from pomona.run_folder import CHANGES_NAME
from pomona.teaching import add_class, remove_class, write_change
from pomona.versions import find_versions_folder, keep_version, list_versions, restore_version

if TYPE_CHECKING:
    from collections.abc import Iterator

    from pomona.training import TrainResult

posix_only = pytest.mark.skipif(sys.platform == "win32", reason="needs POSIX signals")


@pytest.fixture
def run(promising: TrainResult, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Copy of a run, with a cache of its own that holds what it learnt from."""
    shutil.copytree(cache_folder() / "learnt", tmp_path / "cache" / "learnt")
    monkeypatch.setenv("POMONA_CACHE", str(tmp_path / "cache"))
    return Path(shutil.copytree(promising.bundle.folder, tmp_path / "run"))


@pytest.fixture
def inbox(run: Path) -> Iterator[Inbox]:
    with open_inbox(find_inbox_folder(run)) as opened:
        yield opened


@pytest.fixture(scope="session")
def berries(strangers: Path) -> dict[str, list[Path]]:
    """Photos of two classes that the run does not know, by label."""
    return {f"Berry/{name}": sorted(strangers.rglob(f"{name}_*.jpg")) for name in ("Grapes", "Strawberry")}


def _send(inbox: Inbox, photos: list[Path], label: str) -> None:
    for photo in photos:
        inbox.add(photo.read_bytes(), label)


def _propose(run: Path, inbox: Inbox, *, keeps_apart: bool = True) -> tuple[Bundle, Proposal]:
    bundle = load_bundle(run)
    held_out = load_held_out(bundle) if keeps_apart else None
    return bundle, make_proposal(bundle, load_learnt(bundle), inbox.list_photos("waiting"), held_out)


def _hash_files(folder: Path) -> dict[str, str]:
    return {str(path.relative_to(folder)): hash_file(path) for path in sorted(folder.rglob("*")) if path.is_file()}


def _read_rows(path: Path) -> list[dict[str, str]]:
    return list(csv.DictReader(path.read_text("utf-8").splitlines()))


def _save_anew(photo: Path, name: str = "PNG") -> bytes:
    stream = io.BytesIO()
    Image.open(photo).save(stream, name)
    return stream.getvalue()


# --- what is proposed -----------------------------------------------------------------------------------------------


def test_one_refit_of_several_classes_is_the_fit_of_all(
    run: Path, inbox: Inbox, berries: dict[str, list[Path]], tmp_path: Path
) -> None:
    _send(inbox, berries["Berry/Grapes"][:6], "Berry/Grapes")
    _send(inbox, berries["Berry/Strawberry"][:4], "Berry/Strawberry")
    before = _hash_files(run)
    bundle, proposal = _propose(run, inbox)
    assert _hash_files(run) == before
    assert not find_versions_folder(run).exists()
    assert (proposal.n_photos, proposal.labels) == (10, {"Grapes": 6, "Strawberry": 4})
    assert proposal.new_classes == ("Grapes", "Strawberry")
    other = Path(shutil.copytree(run, tmp_path / "other"))
    after, version = confirm_proposal(bundle, proposal, inbox)
    assert (version.number, version.action) == (2, "taught 10 photos of Grapes, Strawberry")
    add_class(other, "Berry/Strawberry", berries["Berry/Strawberry"][:4])
    wanted = add_class(other, "Berry/Grapes", berries["Berry/Grapes"][:6]).bundle
    assert after.tree == wanted.tree
    photos = [photo for label in berries for photo in berries[label]]
    np.testing.assert_allclose(load_bundle(run).predict_proba(photos)[0], wanted.predict_proba(photos)[0], atol=1e-4)
    assert after.bank is not None
    assert sorted(np.bincount(after.bank.bank.labels)) == sorted(np.bincount(wanted.bank.bank.labels))
    rows = list(csv.reader((run / CHANGES_NAME).read_text("utf-8").splitlines()))
    assert [row[1:] for row in rows[1:]] == [["add", "Grapes", "6"], ["add", "Strawberry", "4"]]
    assert {photo.state for photo in inbox.list_photos()} == {"taught"}
    assert {photo.version for photo in inbox.list_photos()} == {2}


def test_shares_are_those_of_the_graphs_on_the_photos_kept_apart(
    run: Path, inbox: Inbox, berries: dict[str, list[Path]], promising: TrainResult
) -> None:
    """Before is what the report says; after is what the bundle that is confirmed has right, photo by photo."""
    _send(inbox, berries["Berry/Grapes"][:8], "Berry/Grapes")
    bundle, proposal = _propose(run, inbox)
    report = json.loads((run / "metrics.json").read_text("utf-8"))
    assert proposal.before is not None
    assert proposal.after is not None
    assert proposal.before.n == report["n"]
    assert proposal.before.value == pytest.approx(report["accuracy"])
    assert proposal.before.low < proposal.before.value <= proposal.before.high
    after, _ = confirm_proposal(bundle, proposal, inbox)
    names = {row["file_name"]: row["label"] for row in _read_rows(run / "predictions.csv")}
    photos = [promising.dataset.root / name for name in names]
    hits = [answer.label == label for answer, label in zip(after.predict(photos), names.values(), strict=True)]
    assert proposal.after.value == pytest.approx(np.mean(hits))
    assert proposal.difference is not None
    assert proposal.difference.gain == pytest.approx(proposal.after.value - proposal.before.value)
    content = proposal.to_dict()
    assert list(content)[:4] == ["id", "before", "after", "difference"]
    assert content["before"]["n"] == proposal.before.n
    assert "kept apart when it was trained" in content["basis"]
    json.dumps(content)


def test_a_photo_that_measures_is_taken_out_once_it_is_taught(run: Path, inbox: Inbox) -> None:
    """Under its own hash, and saved anew: it must not measure what has learnt it."""
    held_out = load_held_out(load_bundle(run))
    data = Path(_read_data(run))
    paths = {hash_file(path): path for path in data.rglob("*.jpg")}
    first, second = (paths[sha256] for sha256 in held_out.hashes[:2])
    inbox.add(first.read_bytes(), "/".join(held_out.paths[0]))
    inbox.add(_save_anew(second), "/".join(held_out.paths[1]))
    bundle, proposal = _propose(run, inbox)
    assert proposal.before is not None
    assert proposal.before.n == len(held_out.hashes) - 2
    assert any(note.startswith("2 of the photos kept apart are to be learnt now") for note in proposal.notes)
    after, _ = confirm_proposal(bundle, proposal, inbox)
    assert len(load_held_out(after).hashes) == len(held_out.hashes) - 1


def _read_data(run: Path) -> str:
    line = next(one for one in (run / "args.yaml").read_text("utf-8").splitlines() if one.startswith("data: "))
    return str(json.loads(line.removeprefix("data: ")))


def test_wrong_labels_show_before_they_answer(run: Path, inbox: Inbox, berries: dict[str, list[Path]]) -> None:
    """Photos of one class sent as another: what gets worse is named, and the old bundle answers on."""
    bundle = load_bundle(run)
    held_out = load_held_out(bundle)
    rows = [i for i, path in enumerate(held_out.paths) if path == held_out.paths[0]]
    wrong = next(path for path in bundle.tree.paths if path != held_out.paths[0])
    paths = {hash_file(path): path for path in Path(_read_data(run)).rglob("*.jpg")}
    for row in rows[1:]:
        for flip in (Image.Transpose.FLIP_LEFT_RIGHT, Image.Transpose.ROTATE_180, Image.Transpose.ROTATE_90):
            stream = io.BytesIO()
            Image.open(paths[held_out.hashes[row]]).transpose(flip).save(stream, "PNG")
            inbox.add(stream.getvalue(), "/".join(wrong))
    _, proposal = _propose(run, inbox)
    assert proposal.difference is not None
    assert proposal.difference.gain < 0
    name = bundle.tree.names[bundle.tree.paths.index(held_out.paths[0])]
    assert any(note.startswith("worse than before: ") and name in note for note in proposal.notes), proposal.notes


def test_a_photo_that_stays_wrong_is_named(
    run: Path, inbox: Inbox, promising: TrainResult, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One with another label is outvoted by its copies, were they let in."""
    monkeypatch.setattr("pomona.proposal.TWIN_FROM", 2.0)
    learnt = next(photo for photo in promising.dataset.photos if photo.split == "train" and photo.label == 0)
    tree = promising.dataset.tree
    for name in ("PNG", "TIFF", "GIF"):
        inbox.add(_save_anew(learnt.path, name), "/".join(tree.paths[0]))
    photo = inbox.add(_save_anew(learnt.path, "BMP"), "/".join(tree.paths[2]))
    _, proposal = _propose(run, inbox)
    said = f"1 of the 4 photos would still be wrong: {photo.sha256[:12]} ({tree.names[2]}, answered {tree.names[0]})"
    assert said in proposal.notes


@pytest.mark.parametrize("name", ["same bytes", "same pixels"])
def test_a_photo_that_was_learnt_as_another_class_is_named(
    run: Path, inbox: Inbox, promising: TrainResult, name: str
) -> None:
    learnt = next(photo for photo in promising.dataset.photos if photo.split == "train")
    content = learnt.path.read_bytes() if name == "same bytes" else _save_anew(learnt.path)
    photo = inbox.add(content, "Fruit/Durian")
    with pytest.raises(DataError, match=rf"{photo.sha256[:12]} .*learnt as {'/'.join(_path(promising, learnt))}"):
        _propose(run, inbox)
    inbox.add(content, "/".join(_path(promising, learnt)))
    if name == "same bytes":
        with pytest.raises(DataError, match="none that is new: 1 of the photos were learnt before"):
            _propose(run, inbox)
    else:
        assert _propose(run, inbox)[1].n_photos == 1


def _path(result: TrainResult, photo: object) -> tuple[str, ...]:
    return result.dataset.tree.paths[photo.label]


def test_photos_that_wait_as_two_classes_are_named(run: Path, inbox: Inbox, berries: dict[str, list[Path]]) -> None:
    photo = berries["Berry/Grapes"][0]
    first = inbox.add(photo.read_bytes(), "Grapes")
    second = inbox.add(_save_anew(photo), "Plum")
    with pytest.raises(DataError, match="are the same: take one of them back") as caught:
        _propose(run, inbox)
    assert first.sha256[:12] in str(caught.value)
    assert second.sha256[:12] in str(caught.value)


def test_a_photo_that_cannot_be_used_is_left_out_and_said(
    run: Path, inbox: Inbox, berries: dict[str, list[Path]]
) -> None:
    broken = inbox.add(berries["Berry/Grapes"][0].read_bytes()[:400], "Grapes")
    with pytest.raises(DataError, match="wanted photos to learn from, got none that is new"):
        _propose(run, inbox)
    lost = inbox.add(berries["Berry/Grapes"][1].read_bytes(), "Grapes")
    lost.path.unlink()
    _send(inbox, berries["Berry/Grapes"][2:4], "Grapes")
    bundle, proposal = _propose(run, inbox)
    assert proposal.n_photos == 2
    assert [broken.sha256[:12] in note or lost.sha256[:12] in note for note in proposal.notes[:2]] == [True, True]
    confirm_proposal(bundle, proposal, inbox)
    assert {photo.sha256 for photo in inbox.list_photos("waiting")} == {broken.sha256, lost.sha256}


def test_nothing_that_waits_is_no_proposal(run: Path, inbox: Inbox) -> None:
    with pytest.raises(DataError, match="nothing waits"):
        _propose(run, inbox)


# --- what it is measured on -----------------------------------------------------------------------------------------


def test_leaving_each_out_is_what_a_fit_without_it_says(run: Path, berries: dict[str, list[Path]]) -> None:
    """Of a state as it was trained, and of one that carries corrections."""
    for _ in range(2):
        bundle = load_bundle(run)
        ridge = load_learnt(bundle).ridge
        x = np.concatenate([np.asarray(block) for block in ridge.blocks])[ridge.rows] + ridge.origin
        found = ridge.leave_each_out()
        assert found.shape == (len(ridge.labels), len(bundle.tree))
        for row in (0, len(x) // 2, len(x) - 1):
            left = np.delete(np.arange(len(x)), row)
            head = solve_dual(x[left], ridge.labels[left], len(bundle.tree), ridge.penalty).to_head()
            np.testing.assert_allclose(found[row], head.score(x[row : row + 1])[0], atol=2e-3)
        add_class(run, "Berry/Grapes", berries["Berry/Grapes"][:3])


@pytest.mark.parametrize("way", ["data", "table", "settings"])
def test_where_the_photos_kept_apart_are_gone_each_one_learnt_is_left_out(
    run: Path, inbox: Inbox, berries: dict[str, list[Path]], way: str, tmp_path: Path
) -> None:
    settings = run / "args.yaml"
    if way == "data":
        settings.write_text(settings.read_text("utf-8").replace(_read_data(run), str(tmp_path / "gone")))
    elif way == "table":
        (run / "predictions.csv").write_text("file_name\nnone.jpg\n")
    else:
        settings.unlink()
    with pytest.raises(DataError):
        load_held_out(load_bundle(run))
    _send(inbox, berries["Berry/Grapes"][:4], "Grapes")
    bundle, proposal = _propose(run, inbox, keeps_apart=False)
    assert proposal.before is not None
    assert proposal.before.n == len(bundle.learnt_from)
    assert "each left out in turn" in proposal.basis
    assert proposal.before.value > 0.5


def test_where_nothing_is_left_to_ask_for_it_says_so(run: Path, inbox: Inbox, berries: dict[str, list[Path]]) -> None:
    bundle = load_bundle(run)
    held_out = load_held_out(bundle)
    _send(inbox, berries["Berry/Grapes"][:2], "Grapes")
    none = held_out.keep(np.zeros(len(held_out.hashes), bool))
    proposal = make_proposal(bundle, load_learnt(bundle), inbox.list_photos("waiting"), none)
    assert (proposal.before, proposal.after, proposal.difference) == (None, None, None)
    assert "nothing was measured" in proposal.basis
    assert proposal.to_dict()["before"] is None


def test_photos_kept_apart_of_a_class_that_is_gone_are_not_asked_for(
    run: Path, inbox: Inbox, berries: dict[str, list[Path]]
) -> None:
    held_out = load_held_out(load_bundle(run))
    name = held_out.paths[0][-1]
    bundle = remove_class(run, name).bundle
    _send(inbox, berries["Berry/Grapes"][:2], "Grapes")
    proposal = make_proposal(bundle, load_learnt(bundle), inbox.list_photos("waiting"), held_out)
    assert proposal.before is not None
    assert proposal.before.n == sum(path[-1] != name for path in held_out.paths)


def test_features_are_computed_once(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bundle = load_bundle(run)
    first = load_held_out(bundle)
    monkeypatch.setattr("pomona.proposal.read_unchanged", lambda *_: pytest.fail("computed again"))
    second = load_held_out(load_bundle(run))
    np.testing.assert_array_equal(second.vectors, first.vectors)
    assert second.hashes == first.hashes


# --- confirming -----------------------------------------------------------------------------------------------------


def test_what_changed_since_is_not_confirmed(run: Path, inbox: Inbox, berries: dict[str, list[Path]]) -> None:
    _send(inbox, berries["Berry/Grapes"][:3], "Grapes")
    bundle, proposal = _propose(run, inbox)
    first = inbox.list_photos()[0]
    inbox.withdraw(first.sha256)
    with pytest.raises(DataError, match=rf"{first.sha256[:12]} .*taken back or got another label"):
        confirm_proposal(bundle, proposal, inbox)
    inbox.add(first.path.read_bytes(), "Plum")
    with pytest.raises(DataError, match="taken back or got another label"):
        confirm_proposal(bundle, proposal, inbox)
    inbox.add(first.path.read_bytes(), "Grapes")
    add_class(run, "Kiwi", berries["Berry/Strawberry"][:2])
    with pytest.raises(BundleError, match="was changed since"):
        confirm_proposal(load_bundle(run), proposal, inbox)
    with pytest.raises(BundleError, match="was changed by somebody else"):
        confirm_proposal(bundle, proposal, inbox)
    assert load_bundle(run).tree.index_of("Kiwi") is not None
    assert len(inbox.list_photos("waiting")) == 3


def test_teaching_and_going_back_is_as_if_nothing_was(run: Path, inbox: Inbox, berries: dict[str, list[Path]]) -> None:
    """Whatever was taught in between, in whatever order, the very same answers come back."""
    generator = random.Random(7)
    photos = [photo for label in berries for photo in berries[label]]
    answers = {keep_version(run).number: load_bundle(run).predict_proba(photos)[0]}
    for _ in range(2):
        label = generator.choice(list(berries))
        _send(inbox, generator.sample(berries[label], 3), label)
        bundle, proposal = _propose(run, inbox, keeps_apart=False)
        after, version = confirm_proposal(bundle, proposal, inbox)
        answers[version.number] = load_bundle(after.folder).predict_proba(photos)[0]
        number = generator.choice(list(answers))
        bundle = restore_version(run, number)
        settle_inbox(inbox, bundle, load_learnt(bundle), number)
        np.testing.assert_array_equal(load_bundle(run).predict_proba(photos)[0], answers[number])
        taught = {photo.sha256 for photo in inbox.list_photos("taught")}
        assert taught == {photo.sha256 for photo in inbox.list_photos()} & bundle.learnt_from
    assert len(list_versions(run)) == len(answers)


def test_a_crash_before_the_inbox_is_told_heals(run: Path, inbox: Inbox, berries: dict[str, list[Path]]) -> None:
    _send(inbox, berries["Berry/Grapes"][:3], "Grapes")
    bundle, proposal = _propose(run, inbox)
    write_change(bundle, proposal.change)
    assert len(inbox.list_photos("waiting")) == 3
    after = load_bundle(run)
    assert settle_inbox(inbox, after, load_learnt(after), keep_version(run).number) == 3
    assert settle_inbox(inbox, after, None, 1) == 0
    assert {(photo.state, photo.version) for photo in inbox.list_photos()} == {("taught", 1)}


# --- labels ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("label", "wanted"),
    [
        ("Gala", "Fruit/Apple/Gala"),
        ("Apple/Gala", "Fruit/Apple/Gala"),
        ("fruit/apple/GALA", "Fruit/Apple/Gala"),
        ("嘎啦苹果", "Fruit/Apple/Gala"),
        ("gala apple", "Fruit/Apple/Gala"),
        ("pink lady", "Fruit/Apple/Pink-Lady"),
        ("Pepper/Red", "Pepper/Red"),
        ("Fruit/Plum", "Fruit/Plum"),
        ("Plum", "Plum"),
    ],
)
def test_labels_mean_known_classes_or_new_ones(label: str, wanted: str) -> None:
    tree = ClassTree.from_paths(["Fruit/Apple/Gala", "Fruit/Apple/Pink-Lady", "Pepper/Red", "Fruit/Berry/Red"])
    called = {"Gala": ClassName("Gala apple", "嘎啦苹果")}
    names = [called.get(name, ClassName()) for name in tree.names]
    assert "/".join(find_class(tree, names, tuple(label.split("/")))) == wanted


@pytest.mark.parametrize(
    ("label", "said"),
    [
        ("Apple", "Apple, which is a group of classes: Fuji, Gala"),
        ("Fruit/Apple", "is a group of classes"),
        ("Fruit/Apple/Gala/Royal", "wanted a class beside Gala"),
        ("red", "which may be any of .*Pepper/Red"),
    ],
)
def test_labels_that_would_tangle_the_tree_are_refused(label: str, said: str) -> None:
    tree = ClassTree.from_paths(["Fruit/Apple/Gala", "Fruit/Apple/Fuji", "Pepper/Red", "Chilli/Red"])
    with pytest.raises(OptionError, match=said):
        find_class(tree, [ClassName()] * 4, tuple(label.split("/")))


# --- kill -9 --------------------------------------------------------------------------------------------------------

TEACH = """
import os, signal, sys
from pathlib import Path
from pomona.bundle import load_bundle
from pomona.inbox import open_inbox
from pomona.learnt import load_learnt
from pomona.proposal import confirm_proposal, make_proposal, settle_inbox
from pomona.versions import keep_version, restore_version

run, photos, deadly = Path(sys.argv[1]), sys.argv[4:], int(sys.argv[3])
load_bundle(run).engine  # imports and compiling are no part of it
n_events = 0

def watch(event, arguments):
    global n_events
    if event == "open" or event.startswith("os.") or event in {"ctypes.dlopen", "sqlite3.connect"}:
        n_events += 1
        if n_events == deadly:
            os.kill(os.getpid(), signal.SIGKILL)

sys.addaudithook(watch)
with open_inbox(run) as inbox:
    for photo in photos:
        print(inbox.add(Path(photo).read_bytes(), sys.argv[2]).sha256, flush=True)
    keep_version(run)
    bundle = load_bundle(run)
    proposal = make_proposal(bundle, load_learnt(bundle), inbox.list_photos("waiting"), None)
    confirm_proposal(bundle, proposal, inbox)
    bundle = restore_version(run, 1)
    settle_inbox(inbox, bundle, load_learnt(bundle), 1)
print("events", n_events, flush=True)
"""


def _teach(run: Path, photos: list[Path], deadly: int) -> list[str]:
    command = [sys.executable, "-c", TEACH, str(run), "Berry/Grapes", str(deadly), *map(str, photos)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == (0 if not deadly or "events" in done.stdout else -9), done.stderr
    return done.stdout.split()


@posix_only
@pytest.mark.parametrize("part", range(12))
def test_a_kill_at_any_step_leaves_one_bundle_whole_and_every_photo(
    run: Path, berries: dict[str, list[Path]], part: int, kill_points: list[int]
) -> None:
    """From the first photo over the proposal and its confirmation to going back, before any file that is touched."""
    photos = berries["Berry/Grapes"][:3]
    first = load_bundle(run)
    said = _teach(run, photos, kill_points[part])
    bundle = load_bundle(run)  # every hash is checked
    assert bundle.learnt_from - first.learnt_from in (set(), {hash_file(photo) for photo in photos})
    for version in list_versions(run):
        load_bundle(version.folder)
    database = find_inbox_folder(run) / "inbox.sqlite"
    if database.exists():
        with sqlite3.connect(database) as connection:
            assert connection.execute("PRAGMA integrity_check").fetchone() == ("ok",)
        connection.close()
    with open_inbox(find_inbox_folder(run)) as inbox:
        assert set(said) - {"events"} <= {one.sha256 for one in inbox.list_photos()} | {said[-1] if said else ""}
        assert inbox.list_lost() == []
        settle_inbox(inbox, bundle, load_learnt(bundle), keep_version(run).number)
        for one in inbox.list_photos():
            assert (one.state == "taught") == (one.sha256 in bundle.learnt_from)
        _send(inbox, photos, "Berry/Grapes")
        if inbox.list_photos("waiting") and part % 4 == 1:
            confirm_proposal(*_propose(run, inbox, keeps_apart=False), inbox)
            assert {hash_file(photo) for photo in photos} <= load_bundle(run).learnt_from


@pytest.fixture(scope="module")
def kill_points(
    promising: TrainResult, berries: dict[str, list[Path]], tmp_path_factory: pytest.TempPathFactory
) -> list[int]:
    """Steps to be killed at: of all that a whole run takes, spread evenly, each somewhere in its part."""
    folder = tmp_path_factory.mktemp("kill")
    run = Path(shutil.copytree(promising.bundle.folder, folder / "run"))
    kept = os.environ["POMONA_CACHE"]
    shutil.copytree(cache_folder() / "learnt", folder / "cache" / "learnt")
    os.environ["POMONA_CACHE"] = str(folder / "cache")
    try:
        n_events = int(_teach(run, berries["Berry/Grapes"][:3], 0)[-1])
    finally:
        os.environ["POMONA_CACHE"] = kept
    assert n_events > 60
    generator = random.Random(0)
    return [1 + int((part + generator.random()) * n_events / 12) for part in range(12)]
