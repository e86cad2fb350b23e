"""Photos changed at random while a network learns, by a list of steps one can read, write and see.

In: a preset or a list such as ``flip,rotate=0.3,color=0.5@0.8``; photos, and a seed for each. Out: steps as data, and
photos of the same shape.
Why: training, its report and `pomona.augmentation_preview` speak of the same list, and a photo depends on its pixels
and its seed alone: not on the photos beside it, the photos before it or any global state. So a run that was stopped
goes on to the same result.

Hue moves little, by 6° in the strongest preset: colour is what tells a Granny Smith from a Golden Delicious.
"""

from __future__ import annotations

import difflib
import hashlib
import importlib
import math
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, get_args

import numpy as np

from pomona.errors import MissingPackageError, OptionError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from numpy.typing import NDArray
    from torch import Generator, Tensor

    Matrix = NDArray[np.float64]
    Warp = Callable[["Step", "_Draw", tuple[int, int]], Matrix]
    Filter = Callable[["Step", Sequence["_Draw"], Tensor], Tensor]

StepName = Literal["rotate", "crop", "flip", "color", "blur", "noise", "erase", "perspective"]
"""Kinds of steps."""

Language = Literal["en", "zh"]

MAX_TURN_DEGREES = 45.0
MAX_CUT_SHARE, MAX_STRETCH = 0.8, 4 / 3
MAX_CHANGE_SHARE, MAX_HUE_DEGREES = 0.5, 10.0
MAX_SIGMA_SHARE = 0.02
MAX_NOISE_SHARE = 0.1
MAX_ERASED_SHARE, LEAST_OF_ERASED, MAX_ERASED_STRETCH = 1 / 3, 0.1, 2.0
MAX_SHIFT_SHARE = 0.2  # from 0.25 of the side on, four shifted corners may no longer be those of a convex shape

_DEFAULT_STRENGTH = 0.5
_DEFAULT_PROBABILITY: dict[StepName, float] = {"flip": 0.5, "blur": 0.5, "noise": 0.5, "erase": 0.5}
_ALIASES: dict[str, StepName] = {"colour": "color"}
_ENTRY = re.compile(r"([^=@]*)(?:=([^=@]*))?(?:@([^=@]*))?")
_LEAST_SIDE_PX = 8
_LUMA = np.array([0.299, 0.587, 0.114])
_YIQ = np.array([_LUMA, [0.595716, -0.274453, -0.321263], [0.211456, -0.522591, 0.311135]])
_RGB = np.linalg.inv(_YIQ)


@dataclass(frozen=True)
class Step:
    """One kind of change, how strong it may be, and how often it happens.

    Each photo draws its own amount, from none up to what the strength allows. What 1.0 means:

    ============= ====================================================================================================
    rotate        a turn by up to 45° to either side
    crop          a box of at least 20 % of the area, its sides stretched against each other by up to 4 : 3
    flip          mirrored left to right; on or off, so 0 and 1 are its only strengths
    color         brightness, contrast and saturation by up to ±50 %, hue (an angle in YIQ) by up to ±10°
    blur          a Gaussian of a standard deviation of up to 2 % of the short side
    noise         Gaussian noise of a standard deviation of up to 10 % of the range, in each channel on its own
    erase         a box of up to a third of the area, painted over with the mean colour of the photo
    perspective   each corner moved by up to 20 % of the side
    ============= ====================================================================================================

    Parameters
    ----------
    name : StepName
        Which.
    strength : float
        0-1; 0 changes nothing.
    probability : float
        Share of the photos that it happens to, 0-1.

    Raises
    ------
    OptionError
        If there is no such step, or a number is out of its range.
    """

    name: StepName
    strength: float = _DEFAULT_STRENGTH
    probability: float = 1.0

    def __post_init__(self) -> None:
        if self.name not in get_args(StepName):
            raise OptionError(_say_unknown(str(self.name), get_args(StepName), "a step"))
        for label, value in (("strength", self.strength), ("probability", self.probability)):
            if not 0 <= value <= 1:
                raise OptionError(f"augment: wanted a {label} of {self.name} between 0 and 1, got {value:g}")
        if self.name == "flip" and self.strength not in {0, 1}:
            raise OptionError(
                f"augment: flip is on or off: wanted a strength of 0 or 1, got {self.strength:g}; "
                f"how often goes after @, such as flip@{self.strength:g}"
            )


PRESETS: Mapping[str, tuple[Step, ...]] = {
    "none": (),
    "light": (Step("flip", 1.0, 0.5), Step("rotate", 0.15), Step("crop", 0.3), Step("color", 0.2)),
    "standard": (
        Step("flip", 1.0, 0.5),
        Step("rotate", 0.35),
        Step("crop", 0.6),
        Step("perspective", 0.3, 0.5),
        Step("color", 0.4),
        Step("erase", 0.5, 0.25),
    ),
    "strong": (
        Step("flip", 1.0, 0.5),
        Step("rotate", 0.65),
        Step("crop", 0.85),
        Step("perspective", 0.5, 0.5),
        Step("color", 0.6),
        Step("blur", 0.4, 0.2),
        Step("noise", 0.4, 0.2),
        Step("erase", 0.8, 0.5),
    ),
}
"""Lists that have a name. Geometry comes first, since neighbours among its steps cost one resampling together."""


# --- lists as text --------------------------------------------------------------------------------------------------


def parse_augmentation(text: str) -> tuple[Step, ...]:
    """Read a list of steps as a user writes it.

    Parameters
    ----------
    text : str
        Entries with commas between them, in the order they are taken. The first may be a preset: ``none``, ``light``,
        ``standard`` or ``strong``. A step is a name, if wanted its strength after ``=`` (0-1, else 0.5) and its
        probability after ``@`` (0-1, else 1; 0.5 for flip, blur, noise and erase). After a preset, a step that it holds
        takes the place of that one, and ``-color`` takes it out.

    Returns
    -------
    tuple of Step
        In order, each kind once.

    Raises
    ------
    OptionError
        If it cannot be understood; a name that is not there gets the nearest that are.

    Examples
    --------
    >>> parse_augmentation("flip, colour=0.5@0.8")
    (Step(name='flip', strength=1.0, probability=0.5), Step(name='color', strength=0.5, probability=0.8))
    >>> show_augmentation(parse_augmentation("light,-rotate,color=0.1"))
    'flip,crop=0.3,color=0.1'
    """
    first, *rest = entries = [entry.strip() for entry in text.lower().split(",")]
    steps: dict[StepName, Step] = {}
    if first in PRESETS:
        steps, entries = {step.name: step for step in PRESETS[first]}, rest
    seen: set[StepName] = set()
    for entry in entries:
        if entry in PRESETS:
            raise OptionError(f"augment: wanted the preset {entry} once and at the start, got {text!r}")
        step = None if entry.startswith("-") else _parse_step(entry)
        name = step.name if step else _find_name(entry.removeprefix("-").strip(), tuple(steps), "a step to take out")
        if name in seen:
            raise OptionError(f"augment: wanted {name} once, got it twice in {text!r}")
        seen.add(name)
        if step:
            steps[name] = step
        else:
            del steps[name]
    return tuple(steps.values())


def show_augmentation(steps: Sequence[Step]) -> str:
    """Write a list of steps so that `parse_augmentation` reads it back.

    Parameters
    ----------
    steps : sequence of Step
        Each kind once.

    Returns
    -------
    str
        The preset's name where it is one; else the steps, without what their defaults say.

    Raises
    ------
    OptionError
        If a kind is there twice.

    Examples
    --------
    >>> show_augmentation([Step("rotate", 0.3), Step("blur", 0.5, 0.25)])
    'rotate=0.3,blur@0.25'
    >>> show_augmentation(PRESETS["strong"]), show_augmentation([])
    ('strong', 'none')
    """
    _require_once(steps)
    named = next((name for name, preset in PRESETS.items() if preset == tuple(steps)), None)
    return named or ",".join(show_step(step) for step in steps)


def show_step(step: Step) -> str:
    """Write one step.

    Examples
    --------
    >>> show_step(Step("flip", 1.0, 0.5)), show_step(Step("color", 1.0, 0.1))
    ('flip', 'color=1@0.1')
    """
    strength, probability = _find_defaults(step.name)
    shown = "" if step.strength == strength else f"={_write_number(step.strength)}"
    return f"{step.name}{shown}" + ("" if step.probability == probability else f"@{_write_number(step.probability)}")


def _parse_step(entry: str) -> Step:
    match = _ENTRY.fullmatch(entry)
    if match is None:
        raise OptionError(f"augment: wanted NAME, NAME=STRENGTH or NAME=STRENGTH@PROBABILITY, got {entry!r}")
    name = _find_name(match[1].strip(), get_args(StepName), "a preset or a step", tuple(PRESETS))
    strength, probability = _find_defaults(name)
    return Step(name, _parse_number(entry, match[2], strength), _parse_number(entry, match[3], probability))


def _find_defaults(name: StepName) -> tuple[float, float]:
    return 1.0 if name == "flip" else _DEFAULT_STRENGTH, _DEFAULT_PROBABILITY.get(name, 1.0)


def _parse_number(entry: str, text: str | None, default: float) -> float:
    if text is None:
        return default
    try:
        return float(text)
    except ValueError as error:
        raise OptionError(f"augment: wanted a number between 0 and 1 in {entry!r}, got {text.strip()!r}") from error


def _write_number(value: float) -> str:
    return repr(float(value)).removesuffix(".0")


def _find_name(text: str, names: Sequence[StepName], wanted: str, presets: Sequence[str] = ()) -> StepName:
    found = _ALIASES.get(text, text)
    for name in names:
        if name == found:
            return name
    raise OptionError(_say_unknown(text, (*presets, *names), wanted))


def _say_unknown(text: str, choices: Sequence[str], wanted: str) -> str:
    near = difflib.get_close_matches(text, choices, n=2, cutoff=0.5)
    meant = f"; did you mean {' or '.join(near)}?" if near else ""
    among = f"among {', '.join(choices)}" if choices else "of a preset at the start"
    return f"augment: wanted {wanted} {among}, got {text!r}{meant}"


def _require_once(steps: Sequence[Step]) -> None:
    names = [step.name for step in steps]
    if twice := next((name for name in names if names.count(name) > 1), None):
        raise OptionError(f"augment: wanted each kind of step once, got {twice} {names.count(twice)} times")


# --- lists in words -------------------------------------------------------------------------------------------------


def describe_step(step: Step, language: Language = "en") -> str:
    """Say in field units what a step may do to a photo.

    Parameters
    ----------
    step : Step
        The step.
    language : {"en", "zh"}
        English or Chinese.

    Examples
    --------
    >>> describe_step(Step("rotate", 0.5)), describe_step(Step("crop", 0.5), "zh")
    ('turned by up to 22.5°', '裁剪，至少保留面积的 60%')
    """
    s = step.strength
    change, hue = f"{100 * MAX_CHANGE_SHARE * s:.3g}%", f"{MAX_HUE_DEGREES * s:.3g}°"
    turn, kept = f"{MAX_TURN_DEGREES * s:.3g}°", f"{100 * (1 - MAX_CUT_SHARE * s):.3g}%"
    sigma, levels = f"{100 * MAX_SIGMA_SHARE * s:.3g}%", f"{255 * MAX_NOISE_SHARE * s:.3g}"
    erased, shift = f"{100 * MAX_ERASED_SHARE * s:.3g}%", f"{100 * MAX_SHIFT_SHARE * s:.3g}%"
    texts: dict[StepName, tuple[str, str]] = {
        "rotate": (f"turned by up to {turn}", f"旋转，最多 {turn}"),
        "crop": (f"cut to a box of {kept} of its area or more", f"裁剪，至少保留面积的 {kept}"),
        "flip": ("mirrored left to right", "左右镜像"),
        "color": (
            f"brightness, contrast and saturation changed by up to {change}, hue by up to {hue}",
            f"亮度、对比度、饱和度最多改变 {change}，色相最多 {hue}",
        ),
        "blur": (f"blurred, by a σ of up to {sigma} of the side", f"模糊，σ 最多为边长的 {sigma}"),
        "noise": (f"made grainy, by up to {levels} of 255 levels", f"加噪点，标准差最多 {levels}（满级 255）"),
        "erase": (f"painted over in a box of up to {erased} of its area", f"遮挡一块，最多占面积的 {erased}"),
        "perspective": (f"skewed, each corner by up to {shift} of the side", f"透视，每个角最多移动边长的 {shift}"),
    }
    return texts[step.name][language == "zh"]


# --- photos ---------------------------------------------------------------------------------------------------------


def augment(photos: Tensor, steps: Sequence[Step], *, seeds: Sequence[int]) -> Tensor:
    """Change photos at random.

    Photo i depends on its pixels and ``seeds[i]`` alone, bit for bit on a CPU and to rounding on a GPU. What a step
    draws depends on its kind as well, so that a list without one of its steps draws the same for the others. Global
    random state is neither read nor changed. Borders that a turn lays bare show the mirrored photo, never black.

    Parameters
    ----------
    photos : Tensor of shape (N, 3, H, W), float32
        RGB, 0-1, sides of 8 pixels or more; on any device; not changed.
    steps : sequence of Step
        Taken in this order.
    seeds : sequence of int, (N,)
        Any numbers, such as ``epoch * n_photos + row``.

    Returns
    -------
    Tensor of shape (N, 3, H, W), float32
        New photos, 0-1, on the same device.

    Raises
    ------
    OptionError
        If the shapes, the type or the number of seeds are wrong, or a kind of step is there twice.
    MissingPackageError
        If kornia is not installed.

    Notes
    -----
    Turns, crops, mirrors and perspective that stand side by side are joined to one homography and one resampling. On a
    CPU photos go one by one, because a photo fits the cache and a batch does not; elsewhere all at once.

    References
    ----------
    .. [1] Riba et al., "Kornia: an open source differentiable computer vision library for PyTorch", WACV 2020.
    .. [2] Zhong et al., "Random erasing data augmentation", AAAI 2020: `erase`.
    .. [3] Haeberli, "Matrix operations for image processing", 1993: hue and saturation as one matrix.
    """
    _require_photos(photos, seeds)
    _require_once(steps)
    taken = [step for step in steps if step.strength and step.probability]
    n_at_once = 1 if photos.device.type == "cpu" else max(1, len(photos))
    changed = photos.detach().clone(memory_format=_import("torch").contiguous_format)
    with _import("torch").no_grad():
        for start in range(0, len(photos) if taken else 0, n_at_once):
            _change_photos(changed[start : start + n_at_once], taken, seeds[start : start + n_at_once])
    return changed


def augment_pixels(pixels: NDArray[np.uint8], steps: Sequence[Step], seed: int) -> NDArray[np.uint8]:
    """Change one photo at random; see `augment`.

    Parameters
    ----------
    pixels : ndarray of shape (H, W, 3), uint8
        RGB; not changed.
    steps : sequence of Step
        Taken in this order.
    seed : int
        Any number.

    Returns
    -------
    ndarray of shape (H, W, 3), uint8
        A new photo.

    Raises
    ------
    OptionError
        If it is no such array, or a kind of step is there twice.
    MissingPackageError
        If kornia is not installed.
    """
    if pixels.ndim != 3 or pixels.shape[2] != 3 or pixels.dtype != np.uint8:
        raise OptionError(f"pixels: wanted (H, W, 3) uint8, got {pixels.shape} {pixels.dtype}")
    torch = _import("torch")
    photo = torch.tensor(pixels).permute(2, 0, 1)[None].float().div_(255).contiguous()
    changed = augment(photo, steps, seeds=[seed])[0].permute(1, 2, 0)
    return np.ascontiguousarray(changed.mul(255).round_().to(torch.uint8).numpy())


def _import(name: str) -> Any:
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise MissingPackageError(name.partition(".")[0], "augment", "to augment photos") from error


def _require_photos(photos: Tensor, seeds: Sequence[int]) -> None:
    shape, kind = tuple(photos.shape), str(photos.dtype)
    if len(shape) != 4 or shape[1] != 3 or min(shape[2:]) < _LEAST_SIDE_PX or kind != "torch.float32":
        raise OptionError(
            f"photos: wanted (N, 3, H, W) float32 with sides of {_LEAST_SIDE_PX} pixels or more, got {shape} {kind}"
        )
    if len(seeds) != shape[0]:
        raise OptionError(f"seeds: wanted one for each of {shape[0]} photos, got {len(seeds)}")


@dataclass(frozen=True)
class _Draw:
    """What chance says of one step and one photo: eight numbers between 0 and 1, and a source of more."""

    taken: bool
    numbers: list[float]
    generator: Generator


def _draw(step: Step, seed: int) -> _Draw:
    torch = _import("torch")
    # Hashed, so that neighbouring seeds have nothing in common, nor the steps of a photo.
    digest = hashlib.blake2b(f"{seed} {step.name}".encode(), digest_size=8).digest()
    generator = torch.Generator().manual_seed(int.from_bytes(digest, "big") >> 1)
    first, *numbers = torch.rand(9, generator=generator, dtype=torch.float64).tolist()
    return _Draw(first < step.probability, numbers, generator)


def _spread(number: float, limit: float) -> float:
    """A number between 0 and 1 spread over -limit to limit."""
    return (2 * number - 1) * limit


def _change_photos(photos: Tensor, steps: Sequence[Step], seeds: Sequence[int]) -> None:
    """Take the steps on photos, in place; homographies are joined until a step needs the pixels they lead to."""
    size_px = (photos.shape[2], photos.shape[3])
    warps = np.tile(np.eye(3), (len(photos), 1, 1))
    for step in steps:
        draws = [_draw(step, seed) for seed in seeds]
        rows = [row for row, draw in enumerate(draws) if draw.taken]
        if step.name in _WARPS:
            for row in rows:
                warps[row] = warps[row] @ _WARPS[step.name](step, draws[row], size_px)
        elif rows:
            _warp_photos(photos, warps, rows)  # only these: what a photo undergoes must not hang on its neighbours
            changed = _FILTERS[step.name](step, [draws[row] for row in rows], photos[rows])
            photos[rows] = changed.clamp_(0, 1)
    _warp_photos(photos, warps, range(len(photos)))


# --- steps that move pixels -----------------------------------------------------------------------------------------
# A homography leads from where a pixel goes to where it comes from, both from -1 to 1 over the width and the height.


def _turn(step: Step, draw: _Draw, size_px: tuple[int, int]) -> Matrix:
    angle = math.radians(_spread(draw.numbers[0], MAX_TURN_DEGREES * step.strength))
    turn = np.array([[math.cos(angle), -math.sin(angle), 0], [math.sin(angle), math.cos(angle), 0], [0, 0, 1]])
    scale = np.array([size_px[1], size_px[0], 1.0])
    return np.array(turn * scale / scale[:, None])


def _cut(step: Step, draw: _Draw, _: tuple[int, int]) -> Matrix:
    area = 1 - MAX_CUT_SHARE * step.strength * draw.numbers[0]
    stretch = math.exp(_spread(draw.numbers[1], step.strength * math.log(MAX_STRETCH)))
    width, height = min(1.0, math.sqrt(area * stretch)), min(1.0, math.sqrt(area / stretch))
    x, y = _spread(draw.numbers[2], 1 - width), _spread(draw.numbers[3], 1 - height)
    return np.array([[width, 0, x], [0, height, y], [0, 0, 1]])


def _mirror(_: Step, __: _Draw, ___: tuple[int, int]) -> Matrix:
    return np.diag([-1.0, 1.0, 1.0])


def _skew(step: Step, draw: _Draw, _: tuple[int, int]) -> Matrix:
    """Homography of the four corners to four that lie beside them: eight equations for eight unknowns."""
    corners = np.array([(-1.0, -1.0), (1.0, -1.0), (1.0, 1.0), (-1.0, 1.0)])
    limit = 2 * MAX_SHIFT_SHARE * step.strength
    moved = corners + np.array([_spread(number, limit) for number in draw.numbers]).reshape(4, 2)
    rows = []
    for (x, y), (u, v) in zip(corners, moved, strict=True):
        rows += [[x, y, 1, 0, 0, 0, -u * x, -u * y], [0, 0, 0, x, y, 1, -v * x, -v * y]]
    return np.append(np.linalg.solve(np.array(rows), moved.ravel()), 1.0).reshape(3, 3)


_WARPS: dict[StepName, Warp] = {"rotate": _turn, "crop": _cut, "flip": _mirror, "perspective": _skew}


def _warp_photos(photos: Tensor, warps: Matrix, rows: Sequence[int]) -> None:
    """Resample the photos of these rows, in place, and set their homographies back."""
    mirrored = [row for row in rows if np.array_equal(warps[row], np.diag([-1.0, 1.0, 1.0]))]
    moved = [row for row in rows if row not in mirrored and not np.array_equal(warps[row], np.eye(3))]
    if mirrored:
        photos[mirrored] = photos[mirrored].flip(-1)
    if moved:
        matrices = _import("torch").tensor(warps[moved], dtype=photos.dtype, device=photos.device)
        warp = _import("kornia.geometry.transform").homography_warp
        changed = warp(photos[moved], matrices, photos.shape[2:], padding_mode="reflection", align_corners=False)
        photos[moved] = changed.clamp_(0, 1)  # weights of neighbours may sum to a rounding above 1
    warps[list(rows)] = np.eye(3)


# --- steps that change pixels in place ------------------------------------------------------------------------------


def _recolour(step: Step, draws: Sequence[_Draw], photos: Tensor) -> Tensor:
    """Brightness, contrast, saturation and hue, as one matrix and an offset for each photo."""
    torch = _import("torch")
    limit, hue = MAX_CHANGE_SHARE * step.strength, math.radians(MAX_HUE_DEGREES * step.strength)
    matrices, brightness, contrast = [], [], []
    for draw in draws:
        brightness.append(1 + _spread(draw.numbers[0], limit))
        contrast.append(1 + _spread(draw.numbers[1], limit))
        turn, saturation = _spread(draw.numbers[3], hue), 1 + _spread(draw.numbers[2], limit)
        x, y = saturation * math.cos(turn), saturation * math.sin(turn)
        mixed = _RGB @ np.array([[1, 0, 0], [0, x, -y], [0, y, x]]) @ _YIQ
        matrices.append(mixed * brightness[-1] * contrast[-1])
    flat = photos.flatten(2)
    # Contrast is around the mean lightness, which hue and saturation leave as it is.
    lightness = flat.mean(2).double().cpu() @ torch.tensor(_LUMA)
    offsets = torch.tensor(brightness, dtype=torch.float64) * lightness * (1 - torch.tensor(contrast))
    matrix, offset = (torch.as_tensor(value).to(photos) for value in (np.array(matrices), offsets[:, None, None]))
    mixed = torch.baddbmm(offset, matrix, flat)
    return mixed.view(photos.shape)  # type: ignore[no-any-return]


def _blur(step: Step, draws: Sequence[_Draw], photos: Tensor) -> Tensor:
    limit_px = MAX_SIGMA_SHARE * step.strength * min(photos.shape[2:])
    # The size of the kernel follows from the strength and not from what is drawn: photos of a batch share it.
    n_taps = 2 * math.ceil(3 * limit_px) + 1
    sigmas_px = [[max(1e-3, limit_px * draw.numbers[0])] * 2 for draw in draws]
    sigmas = _import("torch").tensor(sigmas_px, dtype=photos.dtype, device=photos.device)
    return _import("kornia.filters").gaussian_blur2d(photos, (n_taps, n_taps), sigmas)  # type: ignore[no-any-return]


def _add_noise(step: Step, draws: Sequence[_Draw], photos: Tensor) -> Tensor:
    torch = _import("torch")
    for photo, draw in zip(photos, draws, strict=True):
        grain = torch.randn(photo.shape, generator=draw.generator).to(photo.device)
        photo.add_(grain, alpha=MAX_NOISE_SHARE * step.strength * draw.numbers[0])
    return photos


def _erase(step: Step, draws: Sequence[_Draw], photos: Tensor) -> Tensor:
    for photo, draw in zip(photos, draws, strict=True):
        left, right, top, bottom = _find_box(step, draw, (photo.shape[1], photo.shape[2]))
        photo[:, top:bottom, left:right] = photo.mean((1, 2), keepdim=True)
    return photos


def _find_box(step: Step, draw: _Draw, size_px: tuple[int, int]) -> tuple[int, int, int, int]:
    height_px, width_px = size_px
    area = MAX_ERASED_SHARE * step.strength * (LEAST_OF_ERASED + (1 - LEAST_OF_ERASED) * draw.numbers[0])
    stretch = math.exp(_spread(draw.numbers[1], math.log(MAX_ERASED_STRETCH)))
    width, height = math.sqrt(area * stretch), math.sqrt(area / stretch)
    left, top = draw.numbers[2] * (1 - width), draw.numbers[3] * (1 - height)
    right, bottom = (left + width) * width_px, (top + height) * height_px
    return round(left * width_px), round(right), round(top * height_px), round(bottom)


_FILTERS: dict[StepName, Filter] = {"color": _recolour, "blur": _blur, "noise": _add_noise, "erase": _erase}
