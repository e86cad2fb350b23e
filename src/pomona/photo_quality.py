"""Poor photos, what was done to odd ones, and files that cannot be used.

In: facts of photos, or the files that a dataset skipped. Out: findings, each with the numbers it rests on.
Why: "blurred" and "dark" mean something only beside the other photos of a set, and yet a set that is bad throughout
must not pass. So each limit is where the set itself ends, but never beyond what is poor, or good, in any set.

References
----------
Cleanvision (Cleanlab, 2022): the six checks, and 0.32, 0.95 and 0.35 as limits of brightness and aspect ratio.
Leys et al., "Detecting outliers: do not use standard deviation around the mean, use absolute deviation around the
median", Journal of Experimental Social Psychology 49 (2013): why median and MAD, and the factor 1.4826.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import TYPE_CHECKING

import numpy as np

from pomona.findings import CHECKS, Finding
from pomona.photo_facts import list_notes

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

    from pomona.dataset import Dataset
    from pomona.photo_facts import Facts

MIN_PHOTOS = 20
"""Photos from which on a set has limits of its own; a smaller one has those of any set."""

MIN_SIDE_PX = 32
"""Photos that are smaller on average of their sides show little, whatever set they are in."""

_SUFFIXES: dict[str, tuple[str, ...]] = {
    "jpeg": ("jpg", "jpeg", "jpe", "jfif", "jif"),
    "png": ("png", "apng"),
    "webp": ("webp",),
    "bmp": ("bmp", "dib"),
    "gif": ("gif",),
    "tiff": ("tif", "tiff"),
    "heic": ("heic", "heif", "hif"),
    "avif": ("avif", "heif", "hif"),  # the container of both is called HEIF
}
_NOISE_LEVELS = 2
_ROWS_PER_PART = 4096
_KNOWN = {suffix for suffixes in _SUFFIXES.values() for suffix in suffixes}
_DONE = {
    "animated": "it holds more than one picture; only the main one is taken",
    "cmyk": "its colours are those of print; converted to sRGB",
    "16-bit": "it has 16 bits a colour; 8 of them are kept",
    "alpha": "it is transparent in parts; laid on white",
    "rotated": "the camera was held another way up; turned upright",
    "gps": "its EXIF holds the latitude or longitude where it was taken",
}


@dataclass(frozen=True)
class _Limits:
    """Where a check strikes, of values of which low ones are poor.

    Parameters
    ----------
    poor : float
        Below it a photo is poor in any set.
    good : float
        From it on a photo is good enough in any set.
    n_deviations : float
        How far from the middle of a set its own limit lies, in robust standard deviations of the logarithm.
    """

    poor: float
    good: float
    n_deviations: float


@dataclass(frozen=True)
class _Measured:
    """A check with the values of all photos.

    Parameters
    ----------
    check : str
        One of `CHECKS`.
    values : ndarray of shape (N,)
        The lower the poorer, not negative.
    limits : _Limits
        Where it strikes.
    explain : callable
        Value of the photo, of the middle one and the limit, to a reason.
    """

    check: str
    values: NDArray[np.float64]
    limits: _Limits
    explain: Callable[[float, float, float], str]


def find_poor(facts: Facts) -> list[Finding]:
    """Photos that show their subject badly, by the standard of their set.

    Parameters
    ----------
    facts : Facts
        Of N photos.

    Returns
    -------
    list of Finding
        Flagged ones alone, check by check in the order of the photos. A score is 0.5 at the limit and 0 for the worst.
    """
    if not len(facts.rows):
        return []
    found = _find_odd_sizes(facts)
    bare: NDArray[np.intp] = np.empty(0, np.intp)
    for measured in _measure(facts.rows):
        limit = _find_limit(measured.values, measured.limits)
        middle = float(np.median(measured.values))
        struck = np.flatnonzero(measured.values < limit)
        if measured.check == "low_information":
            bare = struck
        elif measured.check == "blurry":
            struck = np.setdiff1d(struck, bare)  # where there is nothing to see, nothing can be sharp
        for i in struck:
            value = float(measured.values[i])
            reason = measured.explain(value, middle, limit)
            found.append(Finding(facts.dataset.photos[i].name, measured.check, _score(value, limit), True, reason))
    return found


def _measure(rows: NDArray[np.void]) -> tuple[_Measured, ...]:
    sides = np.stack([rows["width_px"], rows["height_px"]]).astype(np.float64)
    return (
        _Measured("low_information", _count_bits(rows), _Limits(0.5, 2.5, 5), _explain_low_information),
        _Measured("blurry", _column(rows, "sharpness"), _Limits(17, 29, 4), _explain_blurry),
        _Measured("dark", _column(rows, "brightness_p99"), _Limits(0.32, 0.45, 4), _explain_dark),
        _Measured("light", 1 - _column(rows, "brightness_p5"), _Limits(0.05, 0.4, 4), _explain_light),
        _Measured("odd_aspect_ratio", sides.min(axis=0) / sides.max(axis=0), _Limits(0.35, 0.45, 5), _explain_aspect),
    )


def _column(rows: NDArray[np.void], name: str) -> NDArray[np.float64]:
    values: NDArray[np.float64] = rows[name].astype(np.float64)
    return values


def _count_bits(rows: NDArray[np.void]) -> NDArray[np.float64]:
    """Bits that a photo tells: the entropy of its grays, and no more than there are tones once it is shrunk.

    Noise has entropy and goes in shrinking; a fruit on white paper has little of it, and yet many tones.
    """
    n_tones = np.empty(len(rows))
    for start in range(0, len(rows), _ROWS_PER_PART):
        thumbnails = rows["thumbnail"][start : start + _ROWS_PER_PART]
        # Means of 4 x 4 pixels: noise that is seen in the photo leaves a level or two there.
        sums = np.zeros((len(thumbnails), 8, 8, 3), np.uint16)
        for row, column in np.ndindex(4, 4):
            sums += thumbnails[:, row::4, column::4]
        means = sums.reshape(-1, 64, 3) / 16
        n_tones[start : start + len(means)] = 1 + np.maximum(np.ptp(means, axis=1).max(axis=1) - _NOISE_LEVELS, 0)
    return np.minimum(_column(rows, "entropy_bits"), np.log2(n_tones))


def _find_limit(values: NDArray[np.float64], limits: _Limits) -> float:
    """Below which a photo is flagged: where the set ends, but within what holds in any set."""
    if len(values) < MIN_PHOTOS:
        return limits.poor
    middle, deviation = _spread(values)
    return float(np.clip(np.exp(middle - limits.n_deviations * deviation), limits.poor, limits.good))


def _spread(values: NDArray[np.float64]) -> tuple[float, float]:
    """Median and robust standard deviation of the logarithms."""
    logs = np.log(np.maximum(values, 1e-6))
    middle = np.median(logs)
    return float(middle), float(1.4826 * np.median(np.abs(logs - middle)))


def _score(value: float, limit: float) -> float:
    return value / (value + limit)


def _explain_blurry(value: float, middle: float, limit: float) -> str:
    return f"sharpness {value:.3g}; the middle photo here has {middle:.3g}, and below {limit:.3g} is flagged"


def _explain_dark(value: float, middle: float, limit: float) -> str:
    return (
        f"all but its brightest hundredth is below {value:.0%} of white; the middle photo here reaches {middle:.0%}, "
        f"and below {limit:.0%} is flagged"
    )


def _explain_light(value: float, middle: float, limit: float) -> str:
    return (
        f"all but its darkest twentieth is above {1 - value:.0%} of white; in the middle photo here it is "
        f"{1 - middle:.0%}, and above {1 - limit:.0%} is flagged"
    )


def _explain_low_information(value: float, middle: float, limit: float) -> str:
    return f"its tones tell {value:.2g} of 8 bits; the middle photo here {middle:.2g}, and below {limit:.2g} is flagged"


def _explain_aspect(value: float, middle: float, limit: float) -> str:
    return (
        f"its sides are as 1 to {1 / value:.1f}; those of the middle photo here as 1 to {1 / middle:.1f}, and above "
        f"1 to {1 / limit:.1f} is flagged"
    )


def _find_odd_sizes(facts: Facts) -> list[Finding]:
    """Photos several times smaller or larger than the middle one; the side is that of a square of as many pixels."""
    width_px, height_px = _column(facts.rows, "width_px"), _column(facts.rows, "height_px")
    sides_px = np.sqrt(width_px * height_px)
    middle_px = float(np.median(sides_px))
    smallest_px, largest_px = float(MIN_SIDE_PX), np.inf
    if len(sides_px) >= MIN_PHOTOS:
        n_times = float(np.clip(np.exp(5 * _spread(sides_px)[1]), 3, 10))
        smallest_px, largest_px = max(smallest_px, middle_px / n_times), middle_px * n_times
    found = []
    for i in np.flatnonzero((sides_px < smallest_px) | (sides_px > largest_px)):
        side_px = float(sides_px[i])
        score = _score(side_px, smallest_px) if side_px < smallest_px else _score(1 / side_px, 1 / largest_px)
        above = f" or above {largest_px:,.0f}" if np.isfinite(largest_px) else ""
        reason = (
            f"{width_px[i]:,.0f} x {height_px[i]:,.0f} pixels, as many as a square of {side_px:,.0f}; the middle photo "
            f"here has {middle_px:,.0f}, and below {smallest_px:,.0f}{above} is flagged"
        )
        found.append(Finding(facts.dataset.photos[i].name, "odd_size", score, True, reason))
    return found


def note_oddities(facts: Facts) -> list[Finding]:
    """What was done to photos that are stored in an unusual way, and what they say beside their pixels.

    Parameters
    ----------
    facts : Facts
        Of N photos.

    Returns
    -------
    list of Finding
        None of them flagged, in the order of the photos.
    """
    found = []
    for photo, row in zip(facts.dataset.photos, facts.rows, strict=True):
        if reason := _explain_suffix(photo.name, str(row["format"])):
            found.append(Finding(photo.name, "wrong_extension", 1.0, False, reason))
        if row["notes"]:
            told = (note for note in list_notes(row) if note in CHECKS)
            found.extend(Finding(photo.name, note, 1.0, False, _DONE[note]) for note in told)
    return found


def _explain_suffix(name: str, photo_format: str) -> str:
    """What is wrong with the ending of a name; nothing where it names no format of a photo."""
    suffix = PurePosixPath(name).suffix[1:].lower()
    if suffix not in _KNOWN or suffix in _SUFFIXES[photo_format]:
        return ""
    return f"it is named .{suffix}, and its content is {photo_format.upper()}"


def list_unusable(dataset: Dataset) -> list[Finding]:
    """Files that look like photos and cannot be used.

    Parameters
    ----------
    dataset : Dataset
        After its photos were decoded, so that those that failed are among its ``skipped``.

    Returns
    -------
    list of Finding
        One a file; the reason begins with the fault.
    """
    reasons = ((one, one.detail.removeprefix(f"{one.path}: ")) for one in dataset.skipped)  # it names the photo already
    return [Finding(one.name, "unusable", 0.0, True, f"{one.fault}: {detail}") for one, detail in reasons]
