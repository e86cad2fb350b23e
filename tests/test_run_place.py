"""A run stands where nothing else is lost, and so does what its training keeps beside it."""

from __future__ import annotations

from pathlib import Path

import pytest

from pomona.checkpoint import clear_run, list_foreign
from pomona.errors import OptionError, StorageError
from pomona.run_place import check_output, find_tuning_folder

OWN = (
    "results.csv",
    "checkpoint.json",
    "12-checkpoint.safetensors",
    "best.safetensors",
    "tail.safetensors",
    "mlflow_run.txt",
    ".checkpoint.json.0123abcd.partial",
    "tensorboard/events.out.tfevents.17.host.1.0",
)


def _touch(folder: Path, *names: str) -> Path:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(b"x")
    return folder


def _list(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize(
    ("data", "output"),
    [
        ("fruit.tuning", "fruit"),  # the photos themselves
        ("fruit.tuning/part", "fruit"),
        ("fruit.tuning/list.csv", "fruit"),
        ("fruit.tuning/*/*.jpg", "fruit"),
        ("fruit.tuning", "link"),
    ],
)
def test_photos_where_training_would_be_kept_are_refused(data: str, output: str, tmp_path: Path) -> None:
    _touch(tmp_path, "fruit.tuning/part/1.jpg", "fruit.tuning/list.csv")
    (tmp_path / "link").symlink_to("fruit")
    check_output(tmp_path / output, tmp_path / data)
    with pytest.raises(OptionError, match=r"kept apart from the photos, .*; choose another --output"):
        check_output(tmp_path / output, tmp_path / data, tunes=True)


def test_other_things_where_training_would_be_kept_are_refused(tmp_path: Path) -> None:
    _touch(tmp_path, "data/1.jpg", "fruit.tuning/.DS_Store", *(f"fruit.tuning/{name}" for name in OWN))
    check_output(tmp_path / "fruit", tmp_path / "data", tunes=True)
    for name in ("notes.txt", "tensorboard/notes.txt", "x-checkpoint.safetensors"):
        path = _touch(tmp_path / "fruit.tuning", name) / name
        with pytest.raises(StorageError, match=rf"got {name} there; move that away"):
            check_output(tmp_path / "fruit", tmp_path / "data", tunes=True)
        path.unlink()
    _touch(tmp_path, "file.tuning")
    with pytest.raises(StorageError, match="a file stands where a folder was wanted"):
        check_output(tmp_path / "file", tmp_path / "data", tunes=True)


def test_only_what_training_wrote_is_cleared(tmp_path: Path) -> None:
    folder = _touch(tmp_path / "fruit.tuning", *OWN)
    clear_run(folder)
    assert not folder.exists()
    clear_run(folder)  # nothing is there
    foreign = ["best.safetensors.bak", "notes.txt", "tensorboard/notes.txt"]
    _touch(folder, *OWN, *foreign)
    assert list_foreign(folder) == foreign
    clear_run(folder)
    assert _list(folder) == set(foreign)


def test_training_is_kept_beside_the_run_whatever_it_is_called(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "run").mkdir()
    monkeypatch.chdir(tmp_path / "run")
    for output in (".", "../run", "x/.."):
        assert find_tuning_folder(Path(output)) == tmp_path / "run.tuning"


def test_a_file_that_a_killed_process_left_half_written_is_nothing_foreign(tmp_path: Path) -> None:
    run = tmp_path / "run"
    run.mkdir()
    for name in ("pomona.json", ".pomona.json.0123abcd.partial"):
        (run / name).touch()
    check_output(run, tmp_path / "photos")
    (run / ".notes.partial").touch()
    with pytest.raises(StorageError, match=r"\.notes\.partial"):
        check_output(run, tmp_path / "photos")
