"""Rendered photos: seeded, independent of each other, told apart by colour; faults as on the answer sheet."""

from __future__ import annotations

import csv
import io
import os
import subprocess
import sys
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from pomona import samples
from pomona.errors import DataError, OptionError, StorageError
from pomona.samples import (
    KINDS,
    FaultPlan,
    Planted,
    SampleOptions,
    make_kinds,
    render_other,
    render_photo,
    write_samples,
)

if TYPE_CHECKING:
    from numpy.typing import NDArray

TWO = KINDS[:2]
EVERY_FAULT = FaultPlan(
    n_exact_duplicates=3,
    n_near_duplicates=5,
    n_truncated=3,
    n_wrong_labels=3,
    n_dark=2,
    n_blurred=2,
    n_not_fruit=2,
)


def _files(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in sorted(folder.rglob("*.jpg"))}


def _pixels(data: bytes, side: int | None = None) -> NDArray[np.float64]:
    photo = Image.open(io.BytesIO(data)).convert("RGB")
    return np.asarray(photo if side is None else photo.resize((side, side)), dtype=np.float64)


def _sharpness(photo: NDArray[np.float64]) -> float:
    grey = photo.mean(axis=2)
    return float(np.abs(np.diff(grey, axis=0)).mean() + np.abs(np.diff(grey, axis=1)).mean())


@pytest.fixture(scope="module")
def planted_samples(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, tuple[Planted, ...]]:
    folder = tmp_path_factory.mktemp("planted") / "fruit"
    options = SampleOptions(n_per_kind=3, kinds=KINDS[:3], size_px=128, seed=4, faults=EVERY_FAULT)
    return folder, write_samples(folder, options)


class TestRendering:
    @settings(max_examples=15, deadline=None)
    @given(seed=st.integers(0, 2**63), place=st.integers(0, len(KINDS) - 1), size_px=st.integers(32, 90))
    def test_a_seed_is_a_photo_of_any_size(self, seed: int, place: int, size_px: int) -> None:
        photo = render_photo(KINDS[place], seed=seed, size_px=size_px)
        assert photo.shape == (size_px, size_px, 3)
        assert photo.dtype == np.uint8
        np.testing.assert_array_equal(photo, render_photo(KINDS[place], seed=seed, size_px=size_px))

    @pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.name)
    def test_every_kind_has_light_contrast_and_variety(self, kind: object) -> None:
        photos = [render_photo(kind, seed=seed, size_px=112).astype(float) for seed in (1, 2)]  # type: ignore[arg-type]
        for photo in photos:
            assert 40 < photo.mean() < 235
            assert photo.std() > 15
        assert np.abs(photos[0] - photos[1]).mean() > 5

    def test_the_fruit_is_where_kinds_differ_and_not_the_ground(self) -> None:
        """Colour of the fruit alone must tell most of the demo's kinds apart; chance is one in twelve."""
        vectors, labels = [], []
        for label, kind in enumerate(KINDS[:12]):
            for seed in range(12):
                middle = render_photo(kind, seed=seed, size_px=64)[12:52, 12:52] // 43
                cells = middle[..., 0] * 36 + middle[..., 1] * 6 + middle[..., 2]
                vectors.append(np.sqrt(np.bincount(cells.ravel().astype(int), minlength=216)))
                labels.append(label)
        table, names = np.array(vectors), np.array(labels)
        far = ((table[:, None] - table[None]) ** 2).sum(axis=2)
        np.fill_diagonal(far, np.inf)
        nearest = names[far.argmin(axis=1)]
        assert (nearest == names).mean() > 0.4

    def test_large_photos_have_the_scene_of_small_ones(self) -> None:
        small = render_photo(KINDS[2], seed=5, size_px=128).astype(float)
        large = render_photo(KINDS[2], seed=5, size_px=512).astype(float).reshape(128, 4, 128, 4, 3).mean(axis=(1, 3))
        assert np.abs(small - large).mean() < 12

    def test_other_things_vary_and_are_seeded(self) -> None:
        photos = [render_other(seed=seed, size_px=64) for seed in range(4)]
        np.testing.assert_array_equal(photos[1], render_other(seed=1, size_px=64))
        assert len({photo.tobytes() for photo in photos}) == 4

    @pytest.mark.parametrize("size_px", [31, 1025, 0, -5])
    def test_a_size_out_of_range_is_refused(self, size_px: int) -> None:
        with pytest.raises(OptionError, match=f"wanted 32 to 1024, got {size_px}"):
            render_photo(KINDS[0], seed=0, size_px=size_px)

    def test_a_negative_seed_is_refused(self) -> None:
        with pytest.raises(OptionError, match="seed: wanted 0 or more, got -1"):
            render_other(seed=-1)


class TestKinds:
    @given(first=st.integers(1, 400), second=st.integers(1, 400))
    def test_fewer_kinds_are_the_first_of_more(self, first: int, second: int) -> None:
        low, high = sorted((first, second))
        kinds = make_kinds(high)
        assert kinds[:low] == make_kinds(low)
        assert len({kind.name for kind in kinds}) == high

    def test_variants_are_named_after_their_base_and_look_different(self) -> None:
        kinds = make_kinds(len(KINDS) + 1)
        assert kinds[: len(KINDS)] == KINDS
        assert (kinds[-1].family, kinds[-1].name) == ("Apple", "Apple-Red-02")
        assert kinds[-1].colours != KINDS[0].colours

    def test_the_demo_shows_a_class_tree(self) -> None:
        families = [kind.family for kind in KINDS[:12]]
        assert families.count("Citrus") == 3
        assert families.count("Apple") == 2

    def test_no_kinds_are_refused(self) -> None:
        with pytest.raises(OptionError, match="n_kinds: wanted at least 1, got 0"):
            make_kinds(0)


class TestWriting:
    def test_the_tree_has_families_classes_and_numbers(self, tmp_path: Path) -> None:
        counts: list[int] = []
        write_samples(tmp_path / "fruit", SampleOptions(n_per_kind=2, kinds=TWO, size_px=32), on_photo=counts.append)
        assert list(_files(tmp_path / "fruit")) == [
            "Apple/Apple-Green/Apple-Green_0001.jpg",
            "Apple/Apple-Green/Apple-Green_0002.jpg",
            "Apple/Apple-Red/Apple-Red_0001.jpg",
            "Apple/Apple-Red/Apple-Red_0002.jpg",
        ]
        assert counts == [1, 2, 3, 4]
        assert [path.name for path in tmp_path.iterdir()] == ["fruit"]

    def test_a_photo_depends_on_seed_kind_and_number_alone(self, tmp_path: Path) -> None:
        write_samples(tmp_path / "few", SampleOptions(n_per_kind=2, kinds=TWO, size_px=48, seed=9))
        write_samples(tmp_path / "more", SampleOptions(n_per_kind=3, kinds=KINDS[:4], size_px=48, seed=9))
        write_samples(tmp_path / "other", SampleOptions(n_per_kind=2, kinds=TWO, size_px=48, seed=10))
        few, more, other = (_files(tmp_path / name) for name in ("few", "more", "other"))
        assert few.items() <= more.items()
        assert not set(few.values()) & set(other.values())

    def test_workers_write_the_same_bytes(self, tmp_path: Path) -> None:
        for n_workers in (1, 2):
            options = SampleOptions(
                n_per_kind=9, kinds=TWO, size_px=112, n_workers=n_workers, faults=FaultPlan(n_dark=2)
            )
            write_samples(tmp_path / str(n_workers), options)
        assert _files(tmp_path / "1") == _files(tmp_path / "2")

    def test_a_script_without_a_guard_is_told_so(self, tmp_path: Path) -> None:
        script = tmp_path / "script.py"
        script.write_text(
            "from pathlib import Path\n"
            "from pomona.samples import SampleOptions, write_samples\n"
            "write_samples(Path('fruit'), SampleOptions(n_per_kind=1, size_px=32, n_workers=2))\n"
        )
        env = os.environ | {"PYTHONPATH": str(Path(samples.__file__).parents[2])}
        done = subprocess.run(
            [sys.executable, script], cwd=tmp_path, env=env, capture_output=True, text=True, check=False
        )
        assert done.returncode == 1
        assert "OptionError: n_workers: wanted 2 processes, one ended early" in done.stderr
        assert [path.name for path in tmp_path.iterdir()] == ["script.py"]

    def test_a_folder_with_files_is_refused_and_kept(self, tmp_path: Path) -> None:
        (tmp_path / "mine.txt").write_text("keep")
        with pytest.raises(DataError, match="wanted a new or empty folder"):
            write_samples(tmp_path, SampleOptions(n_per_kind=1, kinds=TWO, size_px=32))
        assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]

    def test_a_file_in_the_way_is_a_storage_error(self, tmp_path: Path) -> None:
        (tmp_path / "fruit").write_text("not a folder")
        with pytest.raises(StorageError, match="a file stands where a folder was wanted"):
            write_samples(tmp_path / "fruit", SampleOptions(n_per_kind=1, kinds=TWO, size_px=32))

    def test_an_interruption_leaves_nothing(self, tmp_path: Path) -> None:
        def stop(n_done: int) -> None:
            if n_done == 2:
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            write_samples(tmp_path / "fruit", SampleOptions(n_per_kind=2, kinds=TWO, size_px=32), on_photo=stop)
        assert list(tmp_path.iterdir()) == []

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            (SampleOptions(n_per_kind=0), "n_per_kind: wanted at least 1, got 0"),
            (SampleOptions(kinds=()), "kinds: wanted at least one kind"),
            (SampleOptions(kinds=(KINDS[0], KINDS[0])), "no name twice"),
            (SampleOptions(size_px=2000), "size_px: wanted 32 to 1024, got 2000"),
            (SampleOptions(seed=-2), "seed: wanted 0 or more, got -2"),
            (SampleOptions(n_workers=0), "n_workers: wanted at least 1, got 0"),
            (SampleOptions(faults=FaultPlan(n_dark=-1)), "n_dark: wanted 0 or more, got -1"),
            (SampleOptions(kinds=KINDS[:1], faults=FaultPlan(n_wrong_labels=1)), "needs a second kind"),
        ],
    )
    def test_options_that_cannot_be_used_are_refused(
        self, tmp_path: Path, options: SampleOptions, message: str
    ) -> None:
        with pytest.raises(OptionError, match=message):
            write_samples(tmp_path / "fruit", options)
        assert list(tmp_path.iterdir()) == []


class TestFaults:
    def test_the_answer_sheet_is_what_was_returned(self, planted_samples: tuple[Path, tuple[Planted, ...]]) -> None:
        folder, planted = planted_samples
        with (folder.parent / "fruit-answers.csv").open(newline="", encoding="utf-8") as stream:
            rows = list(csv.DictReader(stream))
        assert list(rows[0]) == ["file_name", "fault", "label", "other"]
        assert [Planted(**row) for row in rows] == list(planted)  # type: ignore[arg-type]
        wanted = sum(getattr(EVERY_FAULT, item.name) for item in fields(FaultPlan))
        assert len(planted) == wanted
        files = _files(folder)
        assert len(files) == 3 * 3 + wanted
        assert all(line.file_name in files and line.file_name.split("/")[-2] == line.label for line in planted)

    def test_sound_photos_are_those_of_a_folder_without_faults(
        self, planted_samples: tuple[Path, tuple[Planted, ...]], tmp_path: Path
    ) -> None:
        folder, planted = planted_samples
        assert (
            write_samples(tmp_path / "sound", SampleOptions(n_per_kind=3, kinds=KINDS[:3], size_px=128, seed=4)) == ()
        )
        faulty = {line.file_name for line in planted}
        assert {name: data for name, data in _files(folder).items() if name not in faulty} == _files(tmp_path / "sound")

    def test_exact_duplicates_have_the_bytes_of_their_source(
        self, planted_samples: tuple[Path, tuple[Planted, ...]]
    ) -> None:
        folder, planted = planted_samples
        lines = [line for line in planted if line.fault == "exact_duplicate"]
        assert len(lines) == 3
        for line in lines:
            assert line.file_name != line.other
            assert (folder / line.file_name).read_bytes() == (folder / line.other).read_bytes()

    def test_near_duplicates_show_their_source_in_other_bytes(
        self, planted_samples: tuple[Path, tuple[Planted, ...]]
    ) -> None:
        folder, planted = planted_samples
        lines = [line for line in planted if line.fault.startswith("near_duplicate")]
        assert len({line.fault for line in lines}) == 5
        for line in lines:
            copy, source = ((folder / name).read_bytes() for name in (line.file_name, line.other))
            assert copy != source
            first, second = _pixels(copy, 32), _pixels(source, 32)
            if line.fault == "near_duplicate_mirrored":
                assert np.abs(first - second).mean() > 10
                first = first[:, ::-1]
            assert np.corrcoef(first.ravel(), second.ravel())[0, 1] > 0.85, line

    def test_truncated_files_do_not_decode_and_the_others_do(
        self, planted_samples: tuple[Path, tuple[Planted, ...]]
    ) -> None:
        folder, planted = planted_samples
        truncated = {line.file_name for line in planted if line.fault == "truncated"}
        assert len(truncated) == 3
        for name, data in _files(folder).items():
            if name in truncated:
                with pytest.raises(OSError, match=r"truncated|broken"):
                    _pixels(data)
            else:
                assert _pixels(data).shape[2] == 3

    def test_dark_and_blurred_photos_stand_out(self, planted_samples: tuple[Path, tuple[Planted, ...]]) -> None:
        folder, planted = planted_samples
        faulty = {line.file_name for line in planted}
        sound = [_pixels(data) for name, data in _files(folder).items() if name not in faulty]
        for line in planted:
            if line.fault == "dark":
                assert _pixels((folder / line.file_name).read_bytes()).mean() < 0.5 * min(p.mean() for p in sound)
            if line.fault == "blurred":
                photo = _pixels((folder / line.file_name).read_bytes())
                assert _sharpness(photo) < 0.7 * float(np.median([_sharpness(p) for p in sound]))

    def test_wrong_labels_name_the_class_that_is_shown(self, planted_samples: tuple[Path, tuple[Planted, ...]]) -> None:
        _, planted = planted_samples
        lines = [line for line in planted if line.fault == "wrong_label"]
        names = {kind.name for kind in KINDS[:3]}
        assert len(lines) == 3
        assert all(line.other in names and line.other != line.label for line in lines)
        options = SampleOptions(n_per_kind=3, kinds=KINDS[:3], size_px=128, seed=4, faults=EVERY_FAULT)
        shown = {job.file_name: job.kind for job in samples._plan_jobs(options)[0]}
        for line in planted:
            kind = shown[line.file_name]
            if line.fault == "not_fruit":
                assert kind is None
            else:
                assert kind is not None
                assert kind.name == (line.other if line.fault == "wrong_label" else line.label)

    def test_no_plan_means_no_sheet_and_an_empty_plan_an_empty_one(self, tmp_path: Path) -> None:
        for name, faults in (("without", None), ("empty", FaultPlan())):
            write_samples(tmp_path / name, SampleOptions(n_per_kind=1, kinds=TWO, size_px=32, faults=faults))
        assert not (tmp_path / "without-answers.csv").exists()
        assert (tmp_path / "empty-answers.csv").read_text() == "file_name,fault,label,other\n"
