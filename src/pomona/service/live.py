"""The bundle that answers now, and how another takes its place.

In: photos. Out: what it says of them. Later: another bundle.
Why: a bundle is replaced while it answers. The new one is compiled and warm before it takes over, requests under way
end with the one they began with, and one that cannot be used never takes over.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import io
import struct
import threading
from collections import OrderedDict
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from pomona.bundle import load_bundle, say_fault
from pomona.errors import BundleDamagedError, BundleError, PhotoError, PomonaError, ServiceError
from pomona.explaining import load_neighbours
from pomona.files import hash_file
from pomona.heat_map import HEAT_MAP
from pomona.model_file import MODEL_NAME
from pomona.photo import read_photo_bytes
from pomona.prediction import Prediction
from pomona.service.lanes import Lane, Lanes, Said, require_all

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from numpy.typing import NDArray

    from pomona.bundle import Bundle
    from pomona.engine import Engine
    from pomona.engine import Lane as Compute
    from pomona.explaining import FindNearest, Nearest
    from pomona.service.lanes import Ticket

_N_THUMBNAILS = 256
_SEEN_QUALITY = 85
_TINY_PHOTO = (
    b"BM" + struct.pack("<IHHIIiiHHIIiiII", 54 + 192, 0, 0, 54, 40, 8, 8, 1, 24, 0, 192, 0, 0, 0, 0) + b"\x7f" * 192
)
"""A grey square of 8 x 8, as BMP: what warms a bundle."""


@dataclass(frozen=True, eq=False)
class Wish:
    """What a request wants to know of each photo.

    Parameters
    ----------
    n_top : int
        How many of the most probable classes to name.
    explain : bool
        Whether it asks why, too.
    """

    n_top: int = 5
    explain: bool = False


class OpenBundle:
    """A bundle that is compiled, with what each lane computes by.

    Parameters
    ----------
    bundle : Bundle
        The bundle.
    version : int
        Its number.
    """

    def __init__(self, bundle: Bundle, version: int) -> None:
        self.bundle = bundle
        self.version = version
        self._computes: dict[tuple[int, bool], Compute] = {}
        self._nearest: FindNearest | None = None
        self._whole: Engine | None = None
        self._opening = threading.Lock()
        self._thumbnails: OrderedDict[tuple[Path, int], str] = OrderedDict()

    def open(self) -> None:
        """Compile what answers, and hold all that answers are made of in memory: the folder may be replaced later.

        Raises
        ------
        PomonaError
            If it cannot be used, or changed meanwhile.
        """
        bundle = self.bundle
        _ = bundle.engine, bundle.speaker.nodes, bundle.learnt_from
        self._require_unchanged()
        if bundle.bank is not None:
            self._nearest = load_neighbours(bundle)

    def open_whole(self) -> Engine | None:
        """Compile what says why; None where it cannot, or the folder holds another bundle by now."""
        with self._opening:
            if self._whole is None:
                try:
                    whole = self.bundle.whole_engine
                    self._require_unchanged()
                except BundleError:
                    return None
                self._whole = whole
            return self._whole if HEAT_MAP in self._whole.outputs else None

    def _require_unchanged(self) -> None:
        path = self.bundle.folder / MODEL_NAME
        try:
            found = hash_file(path)
        except OSError as error:
            raise BundleDamagedError(f"{path}: wanted a file of this bundle, got: {error.strerror}") from error
        if found != self.bundle.manifest.files[MODEL_NAME]:
            raise BundleDamagedError(f"{path} was replaced while it was read")

    def look(self, photo: bytes | NDArray[np.uint8], name: str, wish: Wish, lane: Lane) -> Said:
        """Decode a photo in a lane's process, compute it, and say what it shows."""
        preprocessing = self.bundle.preprocessing
        try:
            if isinstance(photo, bytes):
                with lane.clock("decode"):
                    photo = lane.worker.read(preprocessing, photo)
                    if wish.explain:  # the process draws thumbnails before the square was looked at for the last time
                        photo = photo.copy()
        except PhotoError as error:
            return Said(Prediction(name, error=say_fault(name, error)), error.fault)
        whole = self.open_whole() if wish.explain else None
        with lane.clock("network"):
            outputs = self._find_compute(lane, whole)(photo)
        with lane.clock("answer"):
            prediction = self.bundle.to_prediction(name, outputs, wish.n_top)
            why = self._explain(photo, outputs, lane) if whole is not None else None
        return Said(prediction, None, outputs["probabilities"], why)

    def _find_compute(self, lane: Lane, whole: Engine | None) -> Compute:
        key = (lane.number, whole is not None)
        if key not in self._computes:
            self._computes[key] = (whole or self.bundle.engine).open_lane()
        return self._computes[key]

    def _explain(
        self, pixels: NDArray[np.uint8], outputs: Mapping[str, NDArray[np.float32]], lane: Lane
    ) -> dict[str, object] | None:
        heat_map = outputs[HEAT_MAP]
        if not np.isfinite(heat_map).all():
            return None
        nearest = self._nearest(outputs["features"]) if self._nearest else []
        return {
            "heat_map": {"side": len(heat_map), "values": [round(float(one), 5) for one in heat_map.ravel()]},
            "seen": _to_data_url(_draw_seen(pixels)),
            "nearest": [self._describe_nearest(one, lane) for one in nearest],
        }

    def _describe_nearest(self, one: Nearest, lane: Lane) -> dict[str, object]:
        called = self.bundle.names[self.bundle.tree.names.index(one.label)]
        return {
            "name": one.name,
            "label": one.label,
            "name_en": called.name_en,
            "name_zh": called.name_zh,
            "similarity": one.similarity,
            "photo": None if one.path is None else self._find_thumbnail(one.path, lane),
        }

    def _find_thumbnail(self, path: Path, lane: Lane) -> str | None:
        try:
            key = (path, path.stat().st_mtime_ns)
            if key not in self._thumbnails:
                drawn = _to_data_url(lane.worker.draw_thumbnail(self.bundle.preprocessing, read_photo_bytes(path)))
                self._thumbnails[key] = drawn
                if len(self._thumbnails) > _N_THUMBNAILS:
                    self._thumbnails.popitem(last=False)
            return self._thumbnails[key]
        except (PhotoError, OSError, KeyError):  # it was there a moment ago; another lane may have dropped it
            return None


class LiveBundle:
    """The bundle that answers now.

    Parameters
    ----------
    bundle : Bundle
        The first; it answers after `open`.
    lanes : Lanes
        What computes.
    version : int
        Its number.
    """

    def __init__(self, bundle: Bundle, lanes: Lanes, *, version: int = 1) -> None:
        self.lanes = lanes
        self._now = OpenBundle(bundle, version)
        self._name = bundle.folder.resolve().name or "pomona"
        self._swapping = threading.RLock()
        self.is_ready = False

    @property
    def bundle(self) -> Bundle:
        """The bundle itself."""
        return self._now.bundle

    @property
    def version(self) -> int:
        """Its number; greater after each swap, unless the swap named another."""
        return self._now.version

    @property
    def name(self) -> str:
        """What the model is called: the name of its run folder."""
        return self._name

    @property
    def can_explain(self) -> bool:
        """Whether it can say why."""
        return HEAT_MAP in (self._now.open_whole() or _NOTHING).outputs

    def open(self) -> None:
        """Compile the first bundle and compute a photo with it; then it is ready.

        Raises
        ------
        PomonaError
            If it cannot be used.
        """
        self._now.open()
        self._warm(self._now)
        self.is_ready = True

    def open_why(self) -> None:
        """Compile what says why, before the first who asks would wait for it."""
        self._now.open_whole()

    def swap(self, bundle: Bundle, version: int) -> None:
        """Let another bundle answer from now on.

        It is compiled and warm before it takes over; requests under way end with the one they began with.

        Parameters
        ----------
        bundle : Bundle
            The new one, checked.
        version : int
            Its number.

        Raises
        ------
        PomonaError
            If it cannot be used; the old one then goes on.
        """
        with self._swapping:
            opened = OpenBundle(bundle, version)
            opened.open()
            opened.open_whole()
            self._warm(opened)
            self._now = opened

    @property
    def swapping(self) -> threading.RLock:
        """What is held while another bundle takes over; who holds it longer has the run folder to itself."""
        return self._swapping

    def renumber(self, version: int) -> None:
        """Call the bundle that answers another version."""
        self._now.version = version

    def follow(self) -> bool:
        """Take over what stands in the run folder by now; False where that is what answers already.

        Raises
        ------
        PomonaError
            If it cannot be used; the old one then goes on.
        """
        with self._swapping:
            bundle = load_bundle(self.bundle.folder, n_workers=self.bundle.n_workers)
            if bundle.manifest.checksum == self.bundle.manifest.checksum:
                return False
            self.swap(bundle, self.version + 1)
            return True

    def _warm(self, opened: OpenBundle) -> None:
        done = threading.Event()
        ticket = self.lanes.put(
            1, lambda _, lane: opened.look(_TINY_PHOTO, "-", Wish(), lane), lambda _: done.set(), is_urgent=True
        )
        if not done.wait(60):
            raise ServiceError("the first photo was not computed in a minute")
        if ticket.error is not None:
            if isinstance(ticket.error, PomonaError):
                raise ticket.error
            raise ServiceError(f"the first photo could not be computed: {ticket.error}") from ticket.error
        (said,) = require_all(ticket.said)
        if said.fault is not None:
            raise ServiceError(f"the first photo could not be computed: {said.prediction.error}")

    async def predict(
        self,
        photos: Sequence[bytes | NDArray[np.uint8]],
        *,
        names: Sequence[str] | None = None,
        wish: Wish | None = None,
    ) -> tuple[OpenBundle, list[Said]]:
        """Answer for each photo of a request, in the order given; a photo that cannot be used fails alone.

        Parameters
        ----------
        photos : sequence of bytes or ndarray of shape (S, S, 3)
            Content of files, or squares as the network takes them.
        names : sequence of str, optional
            What the photos are called; ``-`` where not given.
        wish : Wish, optional
            What to say of each.

        Returns
        -------
        opened, said
            The bundle that answered, and what it says.

        Raises
        ------
        BusyError
            If there is no room in the queue.
        PomonaError
            If something other than a photo is at fault.
        """
        opened, wanted, loop = self._now, wish or Wish(), asyncio.get_running_loop()
        called = names or ["-"] * len(photos)
        done: asyncio.Future[None] = loop.create_future()

        def settle() -> None:
            if not done.done():
                done.set_result(None)

        def finish(_: Ticket) -> None:
            with contextlib.suppress(RuntimeError):  # the loop has ended, and with it whoever waits
                loop.call_soon_threadsafe(settle)

        ticket = self.lanes.put(len(photos), lambda i, lane: opened.look(photos[i], called[i], wanted, lane), finish)
        try:
            await done
        except asyncio.CancelledError:
            self.lanes.cancel(ticket)
            raise
        if ticket.error is not None:
            raise ticket.error
        return opened, require_all(ticket.said)


class _Nothing:
    outputs: tuple[str, ...] = ()


_NOTHING = _Nothing()


def _draw_seen(pixels: NDArray[np.uint8]) -> bytes:
    from PIL import Image

    content = io.BytesIO()
    Image.fromarray(pixels).save(content, "JPEG", quality=_SEEN_QUALITY)
    return content.getvalue()


def _to_data_url(jpeg: bytes) -> str:
    return f"data:image/jpeg;base64,{base64.b64encode(jpeg).decode('ascii')}"
