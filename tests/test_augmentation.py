"""Augmentation is a list one can read and write, and changes a photo by its pixels and its seed alone."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any, get_args

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pomona.augmentation import (
    MAX_HUE_DEGREES,
    MAX_TURN_DEGREES,
    PRESETS,
    Step,
    StepName,
    augment,
    augment_pixels,
    describe_step,
    parse_augmentation,
    show_augmentation,
)
from pomona.errors import MissingPackageError, OptionError

if TYPE_CHECKING:
    from collections.abc import Iterator

torch = pytest.importorskip("torch", reason="augmentation needs torch")
pytest.importorskip("kornia", reason="augmentation needs kornia")

NAMES: tuple[StepName, ...] = get_args(StepName)
FULL = [Step(name, 1.0, 1.0) for name in NAMES]

shares = st.floats(0, 1) | st.sampled_from([0.0, 0.1, 0.25, 0.3, 0.5, 1.0, 5e-324])
steps_of = {name: st.builds(Step, st.just(name), shares, shares) for name in NAMES} | {
    "flip": st.builds(Step, st.just("flip"), st.sampled_from([0.0, 1.0, 0, 1]), shares)
}
lists = st.permutations(NAMES).flatmap(
    lambda names: st.integers(0, len(names)).flatmap(lambda n: st.tuples(*(steps_of[name] for name in names[:n])))
)


def _photos(n_photos: int, height_px: int = 24, width_px: int = 24, seed: int = 0) -> Any:
    """Photos with soft shapes: noise drawn small, enlarged."""
    small = torch.rand(n_photos, 3, 6, 6, generator=torch.Generator().manual_seed(seed))
    return torch.nn.functional.interpolate(small, (height_px, width_px), mode="bilinear")


@pytest.fixture(autouse=True, scope="module")
def _one_thread() -> Iterator[None]:
    """Small photos on several threads spend their time waiting for each other."""
    n_threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(n_threads)


@pytest.fixture(scope="module")
def apple(shared: Any) -> np.ndarray:
    """A real photo as the network sees it."""
    from pomona.backbone import Preprocessing
    from pomona.photo import read_photo_bytes

    path = min((shared / "data" / "grocery").rglob("Granny-Smith*.jpg"))
    return Preprocessing(96).read(read_photo_bytes(path))


# --- lists as text --------------------------------------------------------------------------------------------------


@given(lists)
def test_a_list_that_is_shown_is_read_back(steps: tuple[Step, ...]) -> None:
    text = show_augmentation(steps)
    assert parse_augmentation(text) == steps
    assert show_augmentation(parse_augmentation(text)) == text


@pytest.mark.parametrize("name", PRESETS)
def test_a_preset_is_shown_by_its_name(name: str) -> None:
    assert show_augmentation(PRESETS[name]) == name
    assert parse_augmentation(f" {name.upper()} ") == PRESETS[name]


def test_presets_grow_and_spare_the_hue() -> None:
    light, standard, strong = (PRESETS[name] for name in ("light", "standard", "strong"))
    for weaker, stronger in ((light, standard), (standard, strong)):
        amounts = {step.name: step.strength * step.probability for step in stronger}
        assert all(step.strength * step.probability <= amounts[step.name] for step in weaker)
        assert len(weaker) < len(stronger)
    (color,) = (step for step in strong if step.name == "color")
    assert color.strength * MAX_HUE_DEGREES <= 6


def test_steps_of_a_preset_are_replaced_taken_out_and_added() -> None:
    assert parse_augmentation("standard,-colour") == tuple(s for s in PRESETS["standard"] if s.name != "color")
    changed = parse_augmentation("standard, rotate=0.9@0.5, noise=0.2")
    assert [step.name for step in changed] == [*(step.name for step in PRESETS["standard"]), "noise"]
    assert changed[1] == Step("rotate", 0.9, 0.5)
    assert changed[-1] == Step("noise", 0.2, 0.5)
    assert parse_augmentation("none,flip") == (Step("flip", 1.0, 0.5),)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("rotat", "got 'rotat'; did you mean rotate?"),
        ("standrd", "got 'standrd'; did you mean standard?"),
        ("flip,colur=0.3", "got 'colur'; did you mean color"),
        ("standard,-colr", "wanted a step to take out among flip, rotate, crop, perspective, color, erase, got 'colr'"),
        ("-color", "wanted a step to take out of a preset at the start, got 'color'"),
        ("", "wanted a preset or a step among none, light, standard, strong, rotate"),
        ("flip,standard", "wanted the preset standard once and at the start"),
        ("flip,flip", "wanted flip once, got it twice in 'flip,flip'"),
        ("standard,-flip,flip", "wanted flip once"),
        ("rotate=1.01", "wanted a strength of rotate between 0 and 1, got 1.01"),
        ("rotate=0.2@-1", "wanted a probability of rotate between 0 and 1, got -1"),
        ("rotate@nan", "wanted a probability of rotate between 0 and 1, got nan"),
        ("rotate=", "wanted a number between 0 and 1 in 'rotate=', got ''"),
        ("rotate=ten", "got 'ten'"),
        ("rotate@0.2=0.3", "wanted NAME, NAME=STRENGTH or NAME=STRENGTH@PROBABILITY, got 'rotate@0.2=0.3'"),
        ("flip=0.3", "flip is on or off"),
    ],
)
def test_what_cannot_be_read_is_said(text: str, message: str) -> None:
    with pytest.raises(OptionError) as caught:
        parse_augmentation(text)
    assert str(caught.value).startswith("augment: ")
    assert message in str(caught.value)


def test_steps_check_themselves() -> None:
    with pytest.raises(OptionError, match="did you mean erase"):
        Step("erse")  # type: ignore[arg-type]
    for use in (show_augmentation, lambda steps: augment(_photos(1), steps, seeds=[0])):
        with pytest.raises(OptionError, match="wanted each kind of step once, got blur 2 times"):
            use([Step("blur"), Step("blur", 0.1)])


@pytest.mark.parametrize("step", FULL, ids=lambda step: step.name)
def test_every_step_is_described_in_both_languages(step: Step) -> None:
    assert describe_step(step).isascii() or step.name in {"rotate", "color", "blur"}  # °, σ
    assert any("\u4e00" <= letter <= "\u9fff" for letter in describe_step(step, "zh"))


# --- laws -----------------------------------------------------------------------------------------------------------


@settings(max_examples=25, deadline=None)
@given(lists, st.lists(st.integers(-(2**70), 2**70), min_size=1, max_size=5), st.integers(8, 30), st.integers(8, 30))
def test_a_photo_depends_on_its_pixels_and_its_seed_alone(
    steps: tuple[Step, ...], seeds: list[int], height_px: int, width_px: int
) -> None:
    photos = _photos(len(seeds), height_px, width_px)
    kept = photos.clone()
    together = augment(photos, steps, seeds=seeds)
    assert together.shape == photos.shape
    assert together.dtype == torch.float32
    assert torch.equal(photos, kept)
    assert 0 <= together.min() <= together.max() <= 1
    for row, seed in enumerate(seeds):
        assert torch.equal(augment(photos[row : row + 1], steps, seeds=[seed])[0], together[row])
    backwards = augment(photos.flip(0), steps, seeds=seeds[::-1])
    assert torch.equal(backwards.flip(0), together)


def test_a_batch_taken_at_once_gives_the_same_as_photos_one_by_one() -> None:
    """As on a GPU, where no loop goes over the photos."""
    from pomona.augmentation import _change_photos

    steps = [*(Step(step.name, 1.0, 0.6 if step.name != "flip" else 0.5) for step in FULL)]
    steps = [steps[NAMES.index(name)] for name in ("crop", "blur", "rotate", "erase", "flip", "noise", "color")]
    photos, seeds = _photos(12, 30, 20), list(range(12))
    together = photos.clone()
    _change_photos(together, steps, seeds)
    assert torch.allclose(together, augment(photos, steps, seeds=seeds), atol=2e-6)
    large = _photos(4, 120, 100)
    blurred = large.clone()
    _change_photos(blurred, FULL[NAMES.index("blur") :][:1], seeds[:4])
    assert torch.allclose(blurred, augment(large, [Step("blur", 1.0, 1.0)], seeds=seeds[:4]), atol=2e-6)


@pytest.mark.parametrize("name", NAMES)
def test_a_step_of_no_strength_or_no_probability_changes_nothing(name: StepName) -> None:
    photos = _photos(3)
    for step in (Step(name, 0.0, 1.0), Step(name, 1.0, 0.0)):
        same = augment(photos, [step], seeds=[1, 2, 3])
        assert torch.equal(same, photos)
        assert same.data_ptr() != photos.data_ptr()


@given(st.binary(min_size=8 * 9 * 3, max_size=8 * 9 * 3), st.integers())
@settings(max_examples=10, deadline=None)
def test_no_step_keeps_every_pixel(content: bytes, seed: int) -> None:
    pixels = np.frombuffer(content, np.uint8).reshape(8, 9, 3)
    same = augment_pixels(pixels, PRESETS["none"], seed)
    assert np.array_equal(same, pixels)
    assert same.flags.writeable


def test_global_random_state_is_neither_read_nor_changed() -> None:
    torch.manual_seed(1)
    state = torch.get_rng_state()
    first = augment(_photos(2), FULL, seeds=[5, 6])
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(2)
    assert torch.equal(augment(_photos(2), FULL, seeds=[5, 6]), first)


@given(st.integers(0, 10**6))
@settings(max_examples=10, deadline=None)
def test_another_seed_is_another_photo_and_steps_draw_on_their_own(seed: int) -> None:
    photo = _photos(1, seed=3)
    one, other = (augment(photo, FULL, seeds=[number]) for number in (seed, seed + 1))
    assert not torch.equal(one, other)
    # Without the step before it, a step draws the same.
    blank = torch.zeros(1, 3, 16, 16)
    noise, rotate = Step("noise", 1.0, 1.0), Step("rotate", 1.0, 1.0)
    assert torch.equal(augment(blank, [noise], seeds=[seed]), augment(blank, [rotate, noise], seeds=[seed]))


def test_a_step_happens_as_often_as_its_probability_says() -> None:
    photos = _photos(1, 8, 8).expand(400, 3, 8, 8)
    changed = augment(photos, [Step("flip", 1.0, 0.25)], seeds=range(400))
    share = sum(not torch.equal(a, b) for a, b in zip(changed, photos, strict=True)) / 400
    assert 0.19 < share < 0.31


def test_one_step_happens_whether_or_not_another_does() -> None:
    photos = torch.rand(1, 3, 8, 8).expand(400, 3, 8, 8)
    flipped, noisy = (augment(photos, [Step(name, 1.0, 0.5)], seeds=range(400)) != photos for name in ("flip", "noise"))
    both = (flipped.flatten(1).any(1) & noisy.flatten(1).any(1)).float().mean()
    assert 0.18 < both < 0.32


def test_photos_in_another_memory_order_come_out_alike() -> None:
    photos = _photos(2)
    other = photos.to(memory_format=torch.channels_last)
    steps = PRESETS["strong"]
    assert torch.equal(augment(other, steps, seeds=[1, 2]), augment(photos, steps, seeds=[1, 2]))


# --- what each step does --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
def test_each_step_changes_a_real_photo_and_more_where_it_is_stronger(apple: np.ndarray, name: StepName) -> None:
    def change(strength: float) -> float:
        steps = [Step(name, strength, 1.0)]
        changed = [augment_pixels(apple, steps, seed).astype(int) for seed in range(6)]
        return float(np.mean([np.abs(one - apple).mean() for one in changed]))

    assert change(1.0) > 1.5
    if name != "flip":
        assert 0 < change(0.3) < change(1.0)


def _chart(height_px: int = 40, width_px: int = 60) -> Any:
    """A photo whose red says how far right a pixel is, and whose green how far down."""
    y, x = torch.meshgrid(
        (torch.arange(height_px) + 0.5) / height_px, (torch.arange(width_px) + 0.5) / width_px, indexing="ij"
    )
    return torch.stack([x, y, torch.full_like(x, 0.5)])[None]


def test_flip_mirrors_exactly() -> None:
    photos = _photos(1, 9, 11)
    assert torch.equal(augment(photos, [Step("flip", 1.0, 1.0)], seeds=[0]), photos.flip(-1))


def test_rotate_turns_without_stretching_and_within_its_degrees() -> None:
    angles = []
    for seed in range(40):
        turned = augment(_chart(), [Step("rotate", 0.4, 1.0)], seeds=[seed])[0]
        x, y = turned[0].numpy() * 60, turned[1].numpy() * 40  # where the pixels come from
        across = (x[20, 32] - x[20, 28], y[20, 32] - y[20, 28])
        assert np.hypot(*across) == pytest.approx(4, abs=0.05)
        angles.append(np.degrees(np.arctan2(across[1], across[0])))
    assert np.abs(angles).max() <= 0.4 * MAX_TURN_DEGREES + 0.1
    assert min(angles) < -12
    assert max(angles) > 12


def test_crop_keeps_the_share_it_names() -> None:
    areas = []
    for seed in range(60):
        x, y, _ = augment(_chart(60, 60), [Step("crop", 0.5, 1.0)], seeds=[seed])[0]
        width, height = float(x[30, 59] - x[30, 0]) * 60 / 59, float(y[59, 30] - y[0, 30]) * 60 / 59
        areas.append(width * height)
    assert 0.58 < min(areas) < 0.68
    assert 0.9 < max(areas) <= 1.001


def test_no_black_corners_come_in() -> None:
    white = torch.ones(20, 3, 33, 21)
    steps = [Step("rotate", 1.0), Step("perspective", 1.0), Step("crop", 1.0), Step("flip", 1.0, 0.5)]
    assert augment(white, steps, seeds=range(20)).min() > 0.9999


def test_geometry_in_a_row_is_resampled_once(monkeypatch: pytest.MonkeyPatch) -> None:
    from kornia.geometry import transform

    calls = []
    warp = transform.homography_warp

    def count(*arguments: Any, **options: Any) -> Any:
        calls.append(1)
        return warp(*arguments, **options)

    monkeypatch.setattr(transform, "homography_warp", count)
    augment(_photos(1), [Step("rotate"), Step("crop"), Step("perspective"), Step("flip", 1.0, 1.0)], seeds=[0])
    assert len(calls) == 1
    augment(_photos(1), [Step("rotate"), Step("noise", 0.1, 1.0), Step("crop")], seeds=[0])
    assert len(calls) == 3


def test_steps_are_taken_in_the_order_they_stand() -> None:
    flip, cut = Step("flip", 1.0, 1.0), Step("crop", 0.5, 1.0)
    photos, seeds = _chart(), [4]
    cut_last = augment(augment(photos, [flip], seeds=seeds), [cut], seeds=seeds)
    assert torch.allclose(augment(photos, [flip, cut], seeds=seeds), cut_last, atol=1e-5)
    assert not torch.allclose(augment(photos, [cut, flip], seeds=seeds), cut_last, atol=1e-2)


def test_colour_keeps_greys_and_lightness_and_moves_hue_a_little() -> None:
    grey = torch.rand(6, 1, 8, 8).expand(6, 3, 8, 8)
    changed = augment(grey, [Step("color", 1.0)], seeds=range(6))
    assert (changed.amax(1) - changed.amin(1)).max() < 1e-5
    assert not torch.allclose(changed, grey, atol=0.02)
    colours = 0.4 + 0.2 * _photos(6)
    weights = torch.tensor([0.299, 0.587, 0.114]).view(1, 3, 1, 1)
    lightness = (colours * weights).sum(1, keepdim=True)
    after = [augment(one, [Step("color", 1.0)], seeds=range(6)) for one in (colours, lightness.expand(6, 3, 24, 24))]
    assert torch.allclose((after[0] * weights).sum(1, keepdim=True), after[1][:, :1], atol=1e-5)
    red = torch.tensor([0.7, 0.3, 0.3]).view(1, 3, 1, 1).expand(60, 3, 8, 8)
    strong = augment(red, [Step("color", 0.6)], seeds=range(60))[:, :, 0, 0]
    assert (strong[:, 0] > strong[:, 1:].amax(1) + 0.05).all()  # it is still red


def test_erase_paints_one_box_of_the_share_it_names() -> None:
    chart = _chart(40, 40)
    for seed in range(20):
        erased = augment(chart, [Step("erase", 1.0, 1.0)], seeds=[seed])[0]
        box = (erased != chart[0]).any(0)
        rows, columns = box.any(1), box.any(0)
        assert 0.02 < box.float().mean() < 0.36
        assert torch.allclose(erased[:, rows][:, :, columns], chart.mean((2, 3))[0][:, None, None], atol=1e-6)


# --- what is refused ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("photos", "seeds", "message"),
    [
        (torch.zeros(3, 9, 9), [0], "wanted \\(N, 3, H, W\\) float32"),
        (torch.zeros(1, 9, 9, 3), [0], "got \\(1, 9, 9, 3\\)"),
        (torch.zeros(1, 3, 9, 9, dtype=torch.uint8), [0], "torch.uint8"),
        (torch.zeros(1, 3, 7, 9), [0], "sides of 8 pixels or more"),
        (torch.zeros(2, 3, 9, 9), [0], "wanted one for each of 2 photos, got 1"),
    ],
)
def test_photos_of_another_shape_are_refused(photos: Any, seeds: list[int], message: str) -> None:
    with pytest.raises(OptionError, match=message):
        augment(photos, PRESETS["light"], seeds=seeds)


def test_no_photos_are_no_photos() -> None:
    assert augment(torch.zeros(0, 3, 9, 9), PRESETS["strong"], seeds=[]).shape == (0, 3, 9, 9)


def test_pixels_of_another_kind_are_refused() -> None:
    with pytest.raises(OptionError, match=r"wanted \(H, W, 3\) uint8, got \(9, 9, 4\) uint8"):
        augment_pixels(np.zeros((9, 9, 4), np.uint8), PRESETS["light"], 0)


def test_a_missing_package_is_named_with_its_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in sys.modules if name.partition(".")[0] == "kornia"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "kornia", None)
    with pytest.raises(MissingPackageError, match=r"pip install 'pomona\[augment\]'"):
        augment(_photos(1), PRESETS["light"], seeds=[0])
