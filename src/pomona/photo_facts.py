"""What photos look like and say, measured once per content: size, oddities, brightness, sharpness, a thumbnail.

In: a dataset. Out: a row per usable photo, all in one array, and the photos that could not be used.
Why: everything that an audit asks of the photos alone, without a network, comes from one decoding of each. A row has a
fixed size, so that it is cached as it is and 100,000 photos take 310 MB. All is measured on the photo as a network sees
it, shrunk: what is lost in shrinking is not missed, and a large photo costs little more than a small one.

References
----------
Cleanvision (Cleanlab, 2022), for what brightness and entropy are asked for: the 99th percentile tells a dark photo, the
5th a light one, the entropy of the grays one that shows little.
"""

from __future__ import annotations

from contextlib import closing
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from pomona.engine import count_cpus, stream_ordered
from pomona.errors import OptionError, PhotoError
from pomona.photo import decode_photo, read_header, read_unchanged
from pomona.row_cache import RowCache, stream_rows

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Sequence

    from numpy.typing import NDArray
    from PIL import Image

    from pomona.dataset import Dataset

FACTS_FORMAT = 1
"""Counts up when the same photo would get another row."""

VIEW_PX = 320
"""Longer side that a photo is shrunk to before it is measured; smaller ones are measured as they are."""

THUMBNAIL_PX = 32

NOTES = ("cmyk", "palette", "grayscale", "alpha", "16-bit", "rotated", "animated", "icc", "gps")
"""What `PhotoHeader.notes` may say; note i is bit i of a row's ``notes``."""

FACTS = np.dtype(
    [
        ("format", "<U4"),
        ("width_px", "<u4"),
        ("height_px", "<u4"),
        ("n_bytes", "<u4"),
        ("notes", "<u2"),
        ("brightness_p5", "<f4"),
        ("brightness_p99", "<f4"),
        ("entropy_bits", "<f4"),
        ("sharpness", "<f4"),
        ("thumbnail", "u1", (THUMBNAIL_PX, THUMBNAIL_PX, 3)),
    ]
)
"""A row: format by content; upright size; bytes of the file; notes as bits; percentiles of gray, 0-1; entropy of gray,
0-8 bits; sharpness as in `measure_sharpness`; the photo squeezed into a square, sRGB."""

_DECODE_PX = 168  # of the shorter side, at least: most JPEGs are decoded at a fraction, which costs less than shrinking
_EDGE_PX = 12
_EDGE_SHARE = 0.002  # the outline of one small fruit on bare paper
_ENOUGH_SHARE = 0.5
_PHOTOS_AHEAD = 8
_ROWS_PER_MOVE = 4096
_DOWNWARD = np.arange(255.0, -1, -1)


@dataclass(frozen=True)
class Facts:
    """What is known of the usable photos of a dataset.

    Parameters
    ----------
    rows : ndarray of shape (N,), `FACTS`
        Row i belongs to ``dataset.photos[i]``.
    dataset : Dataset
        The usable photos; those that could not be decoded have joined its ``skipped``.
    n_computed, n_cached : int
        Contents that were measured, and photos that came from the cache.
    """

    rows: NDArray[np.void]
    dataset: Dataset
    n_computed: int
    n_cached: int

    def __post_init__(self) -> None:
        wanted = (len(self.dataset.photos),)
        if self.rows.shape != wanted or self.rows.dtype != FACTS:
            raise ValueError(f"rows: wanted shape {wanted} of FACTS, got {self.rows.shape} of {self.rows.dtype}")


def list_notes(row: NDArray[np.void] | np.void) -> tuple[str, ...]:
    """Notes of a photo, as `PhotoHeader.notes` has them.

    Examples
    --------
    >>> row = np.zeros((), FACTS)
    >>> row["notes"] = 0b1000001
    >>> list_notes(row)
    ('cmyk', 'animated')
    """
    return tuple(note for i, note in enumerate(NOTES) if row["notes"] >> i & 1)


def measure_photos(
    dataset: Dataset, *, n_workers: int | None = None, on_photo: Callable[[int, int], None] | None = None
) -> Facts:
    """Measure every photo that the cache does not hold.

    Parameters
    ----------
    dataset : Dataset
        N photos.
    n_workers : int, optional
        Threads; every core where not given.
    on_photo : callable, optional
        Called with (photos done, photos in all).

    Returns
    -------
    Facts
        Rows of the usable photos.

    Raises
    ------
    OptionError
        If `n_workers` is below 1.
    DataError
        If no photo is usable.
    StorageError
        If the cache cannot be read or written.
    """
    if n_workers is not None and n_workers < 1:
        raise OptionError(f"workers: wanted 1 or more, got {n_workers}")
    photos = dataset.photos
    rows = np.zeros(len(photos), FACTS)
    errors: dict[int, PhotoError] = {}
    n_computed = n_cached = 0

    def compute(numbers: Sequence[int]) -> Generator[bytes | PhotoError]:
        def measure(i: int) -> bytes | PhotoError:
            photo = photos[numbers[i]]
            try:
                return measure_photo(read_unchanged(photo.path, photo.sha256)).tobytes()
            except PhotoError as error:
                return error

        n_threads = n_workers or count_cpus()
        return stream_ordered(measure, len(numbers), n_threads=n_threads, n_ahead=n_threads * _PHOTOS_AHEAD)

    # Closed here, not when an exception lets go of it: no thread goes on decoding after an interrupt.
    with (
        closing(RowCache("facts", f"facts-{FACTS_FORMAT}", FACTS.itemsize, shown="cache of photo facts")) as cache,
        closing(stream_rows([photo.sha256 for photo in photos], cache, compute, on_photo=on_photo)) as outcomes,
    ):
        for numbers, outcome, is_cached in outcomes:
            if isinstance(outcome, PhotoError):
                errors.update(dict.fromkeys(numbers, outcome))
                continue
            rows[numbers] = np.frombuffer(outcome, FACTS)[0]
            n_computed += not is_cached
            n_cached += len(numbers) * is_cached
    return Facts(_close_gaps(rows, errors), dataset.leave_out(errors), n_computed, n_cached)


def _close_gaps(rows: NDArray[np.void], errors: dict[int, PhotoError]) -> NDArray[np.void]:
    """Rows without those of photos that failed, moved in place: a copy would take as much memory again."""
    kept = np.setdiff1d(np.arange(len(rows)), list(errors))
    for start in range(0, len(kept), _ROWS_PER_MOVE) if errors else ():
        part = kept[start : start + _ROWS_PER_MOVE]
        rows[start : start + len(part)] = rows[part]
    return rows[: len(kept)]


def measure_photo(data: bytes) -> NDArray[np.void]:
    """Measure one photo.

    Parameters
    ----------
    data : bytes
        The whole file.

    Returns
    -------
    ndarray of shape (), `FACTS`
        Its row.

    Raises
    ------
    PhotoError
        If it cannot be decoded.
    """
    from PIL import Image

    header = read_header(data)
    photo = Image.fromarray(decode_photo(data, at_least_px=_DECODE_PX))
    view = _shrink(photo)
    gray = view.convert("L")
    levels = np.array(gray.histogram())
    row = np.zeros((), FACTS)
    row["format"], row["n_bytes"] = header.format, len(data)
    row["width_px"], row["height_px"] = header.width_px, header.height_px
    row["notes"] = sum(1 << NOTES.index(note) for note in header.notes)
    row["brightness_p5"], row["brightness_p99"] = _find_percentiles(levels, (0.05, 0.99))
    row["entropy_bits"] = _entropy(levels)
    row["sharpness"] = measure_sharpness(gray)
    row["thumbnail"] = np.asarray(view.resize((THUMBNAIL_PX, THUMBNAIL_PX), Image.Resampling.BOX))
    return row


def _shrink(photo: Image.Image) -> Image.Image:
    from PIL import Image

    share = VIEW_PX / max(photo.size)
    if share >= 1:
        return photo
    size_px = (max(1, round(photo.width * share)), max(1, round(photo.height * share)))
    return photo.resize(size_px, Image.Resampling.BOX)


def _find_percentiles(levels: NDArray[Any], shares: Sequence[float]) -> NDArray[np.float64]:
    """Grays, 0-1, that these shares of the pixels do not exceed, from how many pixels have each level."""
    counts = levels.cumsum()
    return np.asarray(counts.searchsorted(np.array(shares) * counts[-1]) / 255, np.float64)


def _entropy(levels: NDArray[Any]) -> float:
    """Shannon entropy of the levels in bits."""
    shares = levels[levels > 0] / levels.sum()
    return max(0.0, float(-(shares * np.log2(shares)).sum()))


def measure_sharpness(gray: Image.Image) -> float:
    """How much of the height of its strongest edges a photo rises within one pixel, in percent.

    Parameters
    ----------
    gray : Image
        Mode L, of about the size that a network sees.

    Returns
    -------
    float
        About 50 for a sharp photo, 100 for drawn lines; an edge that is spread over 12 pixels or more has 8. 0 where
        the photo is nearly one tone.

    Notes
    -----
    The steepest two thousandths of the differences of neighbours, over that of pixels 12 apart. Being a ratio, it does
    not depend on contrast, so that a dark photo is not called blurred; being taken where the edges are, it hardly
    depends on how much of the photo is bare background. Of the two axes the lower one counts, since a camera that moved
    blurs one of them alone, unless there is little to see along it. One level is taken off: rounding alone makes as
    much of a difference.

    Examples
    --------
    >>> from PIL import Image, ImageFilter
    >>> paper = Image.new("L", (200, 150), 255)
    >>> paper.paste(40, (60, 50, 130, 110))
    >>> soft = paper.filter(ImageFilter.GaussianBlur(6))
    >>> round(measure_sharpness(paper)), round(measure_sharpness(soft))
    (100, 9)
    """
    from PIL import ImageChops

    width_px, height_px = gray.size

    def count_rises(x: int, y: int) -> list[int]:
        """How many pixels rise by 0-255 over a step of that many pixels."""
        if x >= width_px or y >= height_px:
            return [1, *[0] * 255]
        ahead = gray.crop((x, y, width_px, height_px))
        behind = gray.crop((0, 0, width_px - x, height_px - y))
        return ImageChops.difference(ahead, behind).histogram()

    far_px = min(_EDGE_PX, max(1, min(gray.size) // 4))
    rises = _mean_top(np.array([count_rises(*step) for step in ((far_px, 0), (0, far_px), (1, 0), (0, 1))]))
    heights, steps = rises[:2].tolist(), rises[2:].tolist()
    enough = max(1.0, max(heights) * _ENOUGH_SHARE)
    shares = [max(step - 1, 0.0) / height for step, height in zip(steps, heights, strict=True) if height >= enough]
    return 100 * min(shares, default=0.0)


def _mean_top(counts: NDArray[np.intp]) -> NDArray[np.float64]:
    """Mean of the largest two thousandths of values 0-255, of each row (R, 256) of how many there are of each."""
    downward = counts[:, ::-1]
    before = downward.cumsum(axis=1) - downward
    n_top = np.maximum(1.0, _EDGE_SHARE * downward.sum(axis=1, keepdims=True))
    taken = np.minimum(np.maximum(n_top - before, 0), downward)
    return np.asarray((taken @ _DOWNWARD) / n_top[:, 0], np.float64)
