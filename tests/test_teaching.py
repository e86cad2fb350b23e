"""Teaching: the same head as a full fit, the bundle whole at every moment, and only what is sound is learnt on."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

import pomona.learnt
import pomona.ridge_state
from pomona.bundle import HEAD_NAME, MODEL_NAME, TUNED_NAME, Bundle, load_bundle
from pomona.errors import BundleError, DataError, FitError, OptionError, PomonaError
from pomona.files import MANIFEST_NAME, cache_folder, hash_file
from pomona.head import Head, softmax
from pomona.learnt import N_KEPT, load_learnt
from pomona.learnt_bank import BANK_NAME
from pomona.ridge import solve_dual
from pomona.samples import KINDS, SampleOptions, write_samples
from pomona.teaching import add_class, remove_class, replace_head
from pomona.training import TrainOptions, train

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from pomona.training import TrainResult

POMONA = [sys.executable, "-m", "pomona"]
posix_only = pytest.mark.skipif(sys.platform == "win32", reason="needs POSIX signals or limits")


@pytest.fixture(scope="session")
def berries(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Rendered photos, 12 each of Strawberry and Grapes."""
    folder = tmp_path_factory.mktemp("berries") / "fruit"
    write_samples(folder, SampleOptions(n_per_kind=12, kinds=KINDS[7:9], size_px=72, n_workers=1))
    return folder / "Berry"


@pytest.fixture
def run(trained: TrainResult, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Copy of a run, with a cache of its own that holds what it learnt from."""
    shutil.copytree(cache_folder() / "learnt", tmp_path / "cache" / "learnt", ignore=shutil.ignore_patterns("pins"))
    monkeypatch.setenv("POMONA_CACHE", str(tmp_path / "cache"))
    return Path(shutil.copytree(trained.bundle.folder, tmp_path / "run"))


def _list_photos(folder: Path) -> list[Path]:
    return sorted(folder.glob("*.jpg"))


def _compute_features(bundle: Bundle, photos: list[Path]) -> NDArray[np.float32]:
    pixels = np.array([bundle.preprocessing.read(photo.read_bytes()) for photo in photos])
    return np.asarray(bundle.whole_engine.run(pixels)["features"])


def _check_against_full_fit(run: Path, photos_of: dict[str, list[Path]]) -> float:
    """Largest difference in probability, on all photos, from a fit of the photos of each class from nothing."""
    bundle = load_bundle(run)
    ridge = load_learnt(bundle).ridge
    assert sorted(photos_of) == sorted(bundle.tree.names)
    photos = [photo for name in bundle.tree.names for photo in photos_of[name]]
    labels = np.repeat(np.arange(len(bundle.tree)), [len(photos_of[name]) for name in bundle.tree.names])
    vectors = _compute_features(bundle, photos)
    head = solve_dual(vectors, labels, len(bundle.tree), ridge.penalty).to_head()
    wanted = softmax((vectors @ head.weights.T + head.bias) / ridge.temperature)
    got, errors = bundle.predict_proba(photos)
    assert not errors
    assert bundle.learnt_from == {hash_file(photo) for photo in photos}
    return float(np.abs(got - wanted).max())


def _learnt_photos(run: Path, rendered: Path) -> dict[str, list[Path]]:
    learnt = load_bundle(run).learnt_from
    return {
        folder.name: [photo for photo in _list_photos(folder) if hash_file(photo) in learnt]
        for folder in rendered.glob("*/*")
    }


# --- what is learnt -------------------------------------------------------------------------------------------------


def test_every_change_of_a_chain_is_a_full_fit(run: Path, rendered: Path, berries: Path) -> None:
    strawberries, grapes = _list_photos(berries / "Strawberry"), _list_photos(berries / "Grapes")
    photos_of = _learnt_photos(run, rendered)
    assert _check_against_full_fit(run, photos_of) < 1e-4
    add_class(run, "Berry/Grapes", grapes[:5])
    photos_of["Grapes"] = grapes[:5]
    assert _check_against_full_fit(run, photos_of) < 1e-4
    add_class(run, "Berry/Strawberry", strawberries)
    add_class(run, "Grapes", grapes[5:9])
    photos_of |= {"Strawberry": strawberries, "Grapes": grapes[:9]}
    assert _check_against_full_fit(run, photos_of) < 1e-4
    remove_class(run, "Orange")
    del photos_of["Orange"]
    assert _check_against_full_fit(run, photos_of) < 1e-4
    remove_class(run, "Grapes")
    add_class(run, "Grapes", grapes)
    photos_of["Grapes"] = grapes
    assert _check_against_full_fit(run, photos_of) < 1e-4
    assert load_bundle(run).manifest.provenance["n_taught"] == 6
    assert load_bundle(run).manifest.provenance["n_learnt"] == sum(map(len, photos_of.values()))


def test_taught_class_is_recognised(run: Path, rendered: Path, berries: Path) -> None:
    photos = _list_photos(berries / "Grapes")
    result = add_class(run, "Berry/Grapes", photos[:8])
    assert (result.label, result.is_new, result.n_photos, result.n_known) == ("Grapes", True, 8, 0)
    assert result.bundle.tree.paths == (
        ("Tropical", "Banana"),
        ("Berry", "Grapes"),
        ("Citrus", "Lemon"),
        ("Citrus", "Orange"),
    )
    answers = list(load_bundle(run).predict([*photos[8:], *_list_photos(rendered / "Citrus" / "Lemon")]))
    assert [answer.label for answer in answers[:4]].count("Grapes") >= 3
    assert [answer.label for answer in answers[4:]].count("Lemon") >= 7
    remove_class(run, "Grapes")
    assert all(answer.label != "Grapes" for answer in load_bundle(run).predict(photos))


def test_what_is_undone_leaves_nothing(run: Path, berries: Path) -> None:
    before = load_bundle(run)
    first = add_class(run, "浆果/葡萄", berries / "Grapes")
    assert first.label == "葡萄"
    taught = np.array(load_learnt(first.bundle).ridge.weights)
    remove_class(run, "葡萄")
    after = load_bundle(run)
    assert (after.tree, after.learnt_from) == (before.tree, before.learnt_from)
    ridge = load_learnt(after).ridge
    np.testing.assert_allclose(ridge.weights, load_learnt(before).ridge.weights, atol=2e-6)
    add_class(run, "浆果/葡萄", berries / "Grapes")
    np.testing.assert_allclose(load_learnt(load_bundle(run)).ridge.weights, taught, atol=2e-6)


def test_changes_beyond_the_rank_begin_new_tables(
    run: Path, rendered: Path, berries: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pomona.ridge_state, "_MAX_RANK", 6)
    photos_of = _learnt_photos(run, rendered) | {"Grapes": _list_photos(berries / "Grapes")}
    add_class(run, "Berry/Grapes", photos_of["Grapes"][:4])
    bases = {path.parent for path in cache_folder().glob("learnt/*/*.npz")}
    add_class(run, "Berry/Grapes", photos_of["Grapes"][4:])
    assert load_learnt(load_bundle(run)).base not in bases
    assert _check_against_full_fit(run, photos_of) < 1e-4


def test_classes_are_named_as_in_training(run: Path, berries: Path) -> None:
    result = add_class(run, " Sweet / Lemon/", berries / "Strawberry")
    assert (result.label, result.is_new) == ("Sweet/Lemon", True)
    assert result.notes == ("Lemon is called Citrus/Lemon now, to tell it apart",)
    assert result.bundle.tree.names == ("Banana", "Citrus/Lemon", "Orange", "Sweet/Lemon")
    more = add_class(run, "Citrus/Lemon", berries / "Grapes")
    assert (more.label, more.is_new, more.n_photos) == ("Citrus/Lemon", False, 12)
    assert remove_class(run, "Sweet/Lemon").bundle.tree.names == ("Banana", "Lemon", "Orange")
    for name in ("", " / ", "/"):
        with pytest.raises(OptionError, match="wanted the name of a class"):
            add_class(run, name, berries / "Grapes")


# --- photos ---------------------------------------------------------------------------------------------------------


def test_known_photos_change_nothing(run: Path, berries: Path) -> None:
    add_class(run, "Grapes", berries / "Grapes")
    before = {path.name: hash_file(path) for path in run.iterdir()}
    result = add_class(run, "Grapes", [*_list_photos(berries / "Grapes"), berries / "Grapes"])
    assert (result.n_photos, result.n_known, result.is_new) == (0, 24, False)
    assert "nothing was changed" in result.notes[0]
    assert result.describe().startswith("Learnt nothing, 24 learnt before. It knows 4 classes")
    assert {path.name: hash_file(path) for path in run.iterdir()} == before


def test_bad_photos_are_counted_and_twins_learnt_once(run: Path, berries: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(berries / "Grapes", tmp_path / "photos"))
    shutil.copy(folder / "Grapes_0001.jpg", folder / "twin.jpg")
    (folder / "empty.jpg").touch()
    (folder / "cut.jpg").write_bytes((folder / "Grapes_0002.jpg").read_bytes()[:700])
    (folder / "notes.txt").write_text("no photo")
    result = add_class(run, "Grapes", [folder, tmp_path / "none.jpg"])
    assert (result.n_photos, result.n_known, result.n_learnt) == (12, 1, len(load_learnt(result.bundle).photos))
    assert sorted(one.fault for one in result.skipped) == ["empty", "not_found", "truncated"]
    assert {one.path.name for one in result.skipped} == {"empty.jpg", "none.jpg", "cut.jpg"}
    for photos in (folder / "empty.jpg", folder / "cut.jpg"):
        with pytest.raises(DataError, match=rf"got none of 1 that can be used; the first: .*{photos.name}"):
            add_class(run, "Plum", photos)
    (tmp_path / "nothing").mkdir()
    with pytest.raises(DataError, match="got none of 0"):
        add_class(run, "Plum", tmp_path / "nothing")


def test_photo_of_another_class_stops_everything(run: Path, rendered: Path, berries: Path) -> None:
    before = hash_file(run / MODEL_NAME)
    lemons = _learnt_photos(run, rendered)["Lemon"]
    wanted = rf"{lemons[0].name}: wanted a photo of Grapes, got one that was learnt as Lemon \(and 1 more like it\)"
    with pytest.raises(DataError, match=wanted):
        add_class(run, "Grapes", [berries / "Grapes", *lemons[:2]])
    assert hash_file(run / MODEL_NAME) == before


def test_only_known_classes_and_not_the_last_two_are_removed(run: Path) -> None:
    with pytest.raises(OptionError, match=r"wanted one of the 3 classes, such as Banana; got 'Bananas'"):
        remove_class(run, "Bananas")
    remove_class(run, "Citrus/Orange")
    with pytest.raises(DataError, match="wanted two classes to be left without Banana, got 1; add another class first"):
        remove_class(run, "Banana")
    assert load_bundle(run).tree.names == ("Banana", "Lemon")


# --- files ----------------------------------------------------------------------------------------------------------


def test_measured_files_stay_and_changes_are_listed(run: Path, rendered: Path, berries: Path) -> None:
    (run / "mine").mkdir()
    (run / "mine" / "pomona.json").write_text("my notes")
    (run / "link").symlink_to("mine")
    before = {path.name: path.read_bytes() for path in run.iterdir() if path.is_file()}
    add_class(run, "Grapes", berries / "Grapes")
    remove_class(run, "Orange")
    changed = {name for name, content in before.items() if (run / name).read_bytes() != content}
    assert changed == {MODEL_NAME, HEAD_NAME, BANK_NAME, "pomona.json", "train_photos.txt"}
    assert {path.name for path in run.iterdir()} - before.keys() == {"mine", "link", "changes.csv"}
    assert (run / "link" / "pomona.json").read_text() == "my notes"
    header, *rows = [line.split(",") for line in (run / "changes.csv").read_text().splitlines()]
    assert header == ["time", "action", "class", "n_photos"]
    assert [row[1:3] for row in rows] == [["add", "Grapes"], ["remove", "Orange"]]
    assert [path.name for path in run.parent.iterdir() if path.name.endswith(".partial")] == []
    (run / "link").unlink()
    shutil.rmtree(run / "mine")
    train(TrainOptions(data=rendered, output=run, effort="instant", imgsz=64))  # its own files are no obstacle
    assert not (run / "changes.csv").exists()


def test_saved_head_is_the_one_in_the_graph(run: Path, berries: Path) -> None:
    from safetensors.numpy import load_file

    photos = _list_photos(berries / "Grapes")
    bundle = add_class(run, "Grapes", photos).bundle
    head = load_file(run / HEAD_NAME)
    wanted = softmax(_compute_features(bundle, photos) @ head["weights"].T + head["bias"])
    np.testing.assert_allclose(bundle.predict_proba(photos)[0], wanted, atol=1e-5)


@posix_only
def test_killed_while_writing_leaves_a_whole_bundle(run: Path, berries: Path) -> None:
    n_killed = 0
    for _ in range(8):
        command = [*POMONA, "add-class", str(run), "Grapes", str(berries / "Grapes")]
        with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
            while process.poll() is None:
                if any(run.parent.glob(".run.*.partial/head.safetensors")):
                    process.send_signal(signal.SIGKILL)
                    break
                time.sleep(0.0002)
        n_killed += process.returncode == -signal.SIGKILL
        assert len(load_bundle(run).tree) in {3, 4}  # every hash is checked
        if process.returncode == -signal.SIGKILL and len(load_bundle(run).tree) == 3:
            break
        remove_class(run, "Grapes")
    assert n_killed
    assert list(run.parent.glob(".run.*.partial"))  # what was left behind, in no one's way
    assert add_class(run, "Grapes", berries / "Grapes").is_new


@posix_only
def test_disk_that_takes_no_more_leaves_the_old_bundle(run: Path, berries: Path) -> None:
    before = {path.name: hash_file(path) for path in run.iterdir()}
    command = [*POMONA, "add-class", str(run), "Grapes", str(berries / "Grapes")]
    limited = ["/bin/sh", "-c", 'ulimit -f 4000; exec "$@"', "sh", *command]
    done = subprocess.run(limited, capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 1, done.stderr
    assert "the file is larger than this system allows" in done.stderr
    assert {path.name: hash_file(path) for path in run.iterdir()} == before
    assert list(run.parent.glob(".run.*")) == []
    assert add_class(run, "Grapes", berries / "Grapes").is_new


def test_cache_that_cannot_be_written_leaves_the_old_bundle(run: Path, berries: Path, rendered: Path) -> None:
    learnt = cache_folder() / "learnt"
    shutil.move(learnt, learnt.with_name("moved"))
    learnt.write_text("a file in the way")
    before = hash_file(run / MODEL_NAME)
    with pytest.raises(PomonaError):
        add_class(run, "Grapes", berries / "Grapes")
    assert hash_file(run / MODEL_NAME) == before
    result = train(TrainOptions(data=rendered, output=run, effort="instant", imgsz=64))
    assert result.notes[-1].startswith(
        "Classes cannot be added later without training again: could not make the folder"
    )


# --- what was learnt ------------------------------------------------------------------------------------------------


def _state_folder(run: Path) -> Path:
    base = load_learnt(load_bundle(run)).base
    assert base is not None
    return base


@pytest.mark.parametrize("name", ["vectors.npy", "inverse.npy", "*.npz"])
@pytest.mark.parametrize("damage", ["zeroed", "cut", "gone", "other"])
def test_damaged_state_is_refused(run: Path, berries: Path, name: str, damage: str) -> None:
    base = _state_folder(run)
    for path in base.glob(name):
        content = path.read_bytes()
        half = len(content) // 2
        if damage == "gone":
            path.unlink()
        else:
            changed = {
                "zeroed": content[:half] + bytes(len(content) - half),
                "cut": content[:half],
                "other": b"PK\3\4 no",
            }
            path.write_bytes(changed[damage])
    before = hash_file(run / MODEL_NAME)
    with pytest.raises(BundleError, match="train again with these photos too"):
        remove_class(run, "Orange")
    if damage == "zeroed":
        with pytest.raises(BundleError, match="train again with these photos too"):
            add_class(run, "Grapes", berries / "Grapes")
    assert hash_file(run / MODEL_NAME) == before


def test_missing_state_says_where_it_was_wanted(run: Path, berries: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.rmtree(cache_folder() / "learnt")
    with pytest.raises(BundleError, match=r"run: wanted what it learnt from in the cache .*learnt, got nothing"):
        add_class(run, "Grapes", berries / "Grapes")
    monkeypatch.setattr(pomona.learnt, "N_CHOSEN_ON", 3)
    monkeypatch.setattr("pomona.ridge.MAX_BYTES", 1000)
    with pytest.raises(FitError, match=r"learnt from \d\d photos of .* numbers, more than fit"):
        add_class(run, "Grapes", berries / "Grapes")


def test_a_tuned_network_with_a_head_in_closed_form_learns_on(rendered: Path, berries: Path, tmp_path: Path) -> None:
    pytest.importorskip("torch")
    options = {"tune": "tail", "layer": "stage6", "backbone": "lite0", "imgsz": 64, "epochs": 1, "batch": 8}
    run = train(TrainOptions(data=rendered, output=tmp_path / "tuned", **options)).bundle.folder
    before = load_bundle(run)
    assert before.manifest.provenance["head"] == "ridge"
    assert before.manifest.preprocessing.size_px == 80  # the larger of the two views that were trained on
    add_class(run, "Grapes", berries / "Grapes")
    bundle = load_bundle(run)
    assert bundle.manifest.embedding == before.manifest.embedding
    assert bundle.manifest.files[TUNED_NAME] == before.manifest.files[TUNED_NAME]
    answers = [answer.label for answer in bundle.predict(_list_photos(berries / "Grapes"))]
    assert answers.count("Grapes") > 9
    remove_class(run, "Grapes")
    assert load_bundle(run).tree == before.tree


def test_what_gradients_trained_says_why_it_cannot_learn_on(run: Path, berries: Path) -> None:
    shutil.rmtree(cache_folder() / "learnt")  # none is kept of such a run
    manifest = load_bundle(run).manifest
    tuned = manifest.model_copy(update={"provenance": {**manifest.provenance, "head": "gradient"}}).seal()
    (run / MANIFEST_NAME).write_text(tuned.model_dump_json() + "\n", encoding="utf-8")
    for teach in (lambda: add_class(run, "Grapes", berries / "Grapes"), lambda: remove_class(run, "Orange")):
        with pytest.raises(FitError, match=r"run: .* this one was trained with --tune; train again with these photos"):
            teach()


def test_too_many_photos_in_all_are_refused(run: Path, berries: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pomona.learnt, "N_CHOSEN_ON", 24)
    monkeypatch.setattr("pomona.ridge.MAX_BYTES", 1000)
    with pytest.raises(FitError, match="train again with these photos too"):
        add_class(run, "Grapes", berries / "Grapes")


def test_cache_keeps_few_states_and_nothing_of_others_is_removed(run: Path, berries: Path) -> None:
    learnt = cache_folder() / "learnt"
    (learnt / "mine").mkdir()
    (learnt / "mine" / "notes.npz").write_text("not ours")
    (learnt / "mine.npz").write_text("not ours")
    base = _state_folder(run)
    for i in range(N_KEPT):
        shutil.copy(next(base.glob("*.npz")), base / f"{i:064x}.npz")
    add_class(run, "Grapes", berries / "Grapes")
    assert len(list(base.glob("*.npz"))) == N_KEPT
    assert _state_folder(run) == base
    assert (learnt / "mine" / "notes.npz").exists()
    assert (learnt / "mine.npz").exists()


def test_tables_that_no_state_stands_on_are_removed(run: Path, berries: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pomona.learnt, "N_KEPT", 1)
    old = set((cache_folder() / "learnt").iterdir())
    monkeypatch.setattr(pomona.ridge_state, "_MAX_RANK", 1)
    add_class(run, "Grapes", berries / "Grapes")
    assert set((cache_folder() / "learnt").iterdir()) == {_state_folder(run)}
    assert _state_folder(run) not in old


def test_copy_of_a_run_can_be_taught_on_its_own(run: Path, berries: Path) -> None:
    other = Path(shutil.copytree(run, run.with_name("other")))
    add_class(run, "Grapes", berries / "Grapes")
    add_class(other, "Strawberry", berries / "Strawberry")
    assert "Strawberry" not in load_bundle(run).tree.names
    assert load_bundle(other).tree.names == ("Banana", "Lemon", "Orange", "Strawberry")


def test_graph_without_a_head_is_refused(trained: TrainResult) -> None:
    import onnx

    model = onnx.load(trained.bundle.folder / MODEL_NAME)
    head = load_learnt(trained.bundle).ridge.to_head()
    trust = trained.bundle.trust
    assert onnx.load_model_from_string(replace_head(model.SerializeToString(), head, trust)) == model
    names = [one.name for one in model.graph.initializer]
    del model.graph.initializer[names.index("head_bias")]
    with pytest.raises(BundleError, match="wanted a graph with the head of a bundle"):
        replace_head(model.SerializeToString(), head, trust)


# --- command line ---------------------------------------------------------------------------------------------------


def _run_command(*arguments: object, code: int = 0, **options: Any) -> tuple[str, str]:
    command = [*POMONA, *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, encoding="utf-8", check=False, timeout=60, **options)
    assert "Traceback" not in done.stderr
    assert done.returncode == code, (done.stdout, done.stderr)
    return done.stdout, done.stderr


def test_commands_print_what_was_done(run: Path, berries: Path) -> None:
    stdout, _ = _run_command("add-class", run, "Berry/葡萄", berries / "Grapes" / "*0[1-4].jpg", "--json")
    answer = json.loads(stdout)
    assert list(answer)[:6] == ["output", "action", "class", "is_new", "n_photos", "n_known"]
    assert (answer["class"], answer["is_new"], answer["n_photos"], answer["n_classes"]) == ("葡萄", True, 4, 4)
    assert set(answer["seconds"]) == {"load", "read", "features", "fit", "save"}
    listed = "\n".join(map(str, _list_photos(berries / "Grapes")))
    stdout, stderr = _run_command("add-class", run, "葡萄", "-", berries / "none.jpg", input=listed)
    assert "Learnt more of the class 葡萄 from 8 photos, 4 learnt before, 1 skipped. It knows 4 classes" in stdout
    assert f"pomona evaluate {run} DATA" in stdout
    assert "none.jpg: wanted a photo file" in stderr
    stdout, _ = _run_command("remove-class", run, "葡萄")
    assert "Forgot 葡萄 and 12 photos. It knows 3 classes from" in stdout
    assert "are of before" in stdout


def test_commands_tell_by_their_exit_code(run: Path, berries: Path, tmp_path: Path) -> None:
    assert "name: wanted one of the 3 classes" in _run_command("remove-class", run, "Plum", code=2)[1]
    assert "got no folder" in _run_command("remove-class", tmp_path / "none", "Plum", code=1)[1]
    assert "got none of 1" in _run_command("add-class", run, "Plum", tmp_path / "none.jpg", code=1)[1]
    assert "Missing argument" in _run_command("add-class", run, "Plum", code=2)[1]
    shutil.rmtree(cache_folder() / "learnt")
    assert "train again" in _run_command("add-class", run, "Plum", berries, code=1)[1]


# --- trust ----------------------------------------------------------------------------------------------------------


def _check_against_own_trust(run: Path, photos: list[Path]) -> None:
    """The graph says of photos what numpy does with the head, the bank and the manifest."""
    from safetensors.numpy import load_file

    bundle = load_bundle(run)
    pixels = np.array([bundle.preprocessing.read(photo.read_bytes()) for photo in photos])
    outputs = bundle.engine.run(pixels)
    logits = Head(**load_file(run / HEAD_NAME), l2=0).score(outputs["features"])
    np.testing.assert_allclose(outputs["probabilities"], bundle.trust.to_probabilities(logits), atol=1e-5)
    strangeness = bundle.trust.measure_strangeness(outputs["features"], logits)
    assert strangeness is not None
    np.testing.assert_allclose(outputs["unknown"], strangeness, atol=2e-4)
    assert np.ptp(strangeness) > 0.1


@pytest.fixture
def promised(promising: TrainResult, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Copy of a run that makes promises, with a cache of its own."""
    shutil.copytree(cache_folder() / "learnt", tmp_path / "cache" / "learnt", ignore=shutil.ignore_patterns("pins"))
    monkeypatch.setenv("POMONA_CACHE", str(tmp_path / "cache"))
    return Path(shutil.copytree(promising.bundle.folder, tmp_path / "run"))


@pytest.mark.parametrize("name", ["Strawberry", "Grapes"])
def test_what_was_unknown_is_known_once_it_is_taught(
    promised: Path, promising: TrainResult, strangers: Path, name: str
) -> None:
    photos = sorted(strangers.rglob(f"{name}_*.jpg"))
    own = [photo.path for photo in promising.dataset.photos]
    before = load_bundle(promised)
    assert before.bank is not None
    unknown = [answer.unknown for answer in before.predict(photos)]
    assert np.mean(unknown) > 0.8
    bundle = add_class(promised, f"Berry/{name}", photos[:12]).bundle
    assert bundle.bank is not None
    assert (bundle.promise, bundle.trust.link) == (before.promise, before.trust.link)
    assert bundle.bank.names[-12:] == tuple(photo.name for photo in photos[:12])
    assert len(bundle.bank.names) == len(before.bank.names) + 12
    paths = [bundle.tree.paths[label] for label in bundle.bank.bank.labels]
    assert paths[-12:] == [("Berry", name)] * 12
    assert paths[:-12] == [before.tree.paths[label] for label in before.bank.bank.labels]
    answers = list(bundle.predict(photos[12:]))
    assert np.mean([answer.unknown for answer in answers]) < 0.3
    assert np.mean([answer.label == name for answer in answers]) > 0.8
    assert np.mean([answer.unknown for answer in bundle.predict(own)]) < 0.1
    _check_against_own_trust(promised, photos + own[:12])
    after = remove_class(promised, name).bundle
    assert after.bank is not None
    assert after.bank.names == before.bank.names
    np.testing.assert_array_equal(after.bank.bank.vectors, before.bank.bank.vectors)
    np.testing.assert_array_equal(after.bank.bank.labels, before.bank.bank.labels)
    assert [answer.unknown for answer in after.predict(photos)] == unknown


def test_a_class_that_was_forgotten_leaves_the_bank(promised: Path, promising: TrainResult) -> None:
    label = promising.dataset.tree.names[2]
    bundle = remove_class(promised, label).bundle
    assert bundle.bank is not None
    n_left = sum(photo.split == "train" and photo.label != 2 for photo in promising.dataset.photos)
    assert len(bundle.bank.names) == n_left == len(bundle.learnt_from)
    assert sorted(set(bundle.bank.bank.labels.tolist())) == [0, 1, 2, 3]
    forgotten = [photo.path for photo in promising.dataset.photos if photo.label == 2]
    kept = [photo.path for photo in promising.dataset.photos if photo.label != 2]
    _check_against_own_trust(promised, [*forgotten[:10], *kept[:20]])
    assert all(answer.label != label for answer in bundle.predict(forgotten))


def test_a_bundle_of_an_older_format_has_nothing_to_renew(promised: Path) -> None:
    """Nothing that it would have to learn on is in the cache, and so it is refused, not half changed."""
    golden = Path(__file__).parent / "golden" / "bundle-v3"
    run = Path(shutil.copytree(golden, promised.parent / "golden"))
    with pytest.raises(BundleError):
        add_class(run, "Kiwi", run)
    assert hash_file(run / MODEL_NAME) == hash_file(golden / MODEL_NAME)
