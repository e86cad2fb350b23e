"""Teaching while the service answers: the photos that wait, one proposal, and the versions.

In: photos with labels, and a person's decisions. Out: a bundle that takes the place of the one that answers.
Why: one thing is done at a time, in a thread and never in the event loop, so that answers go on meanwhile. What is
slow, the features of the photos kept apart, is computed in the background as soon as the service is warm.
"""

from __future__ import annotations

import contextlib
import threading
import time
from typing import TYPE_CHECKING, Any

from pomona.bundle import parse_manifest
from pomona.errors import BundleError, DataError, FitError, OptionError, PomonaError
from pomona.files import cache_folder, hash_bytes
from pomona.inbox import find_inbox_folder, open_inbox, parse_label
from pomona.learnt import load_learnt
from pomona.proposal import confirm_proposal, find_class, load_held_out, make_proposal, settle_inbox
from pomona.service.faults import RequestError
from pomona.service.guard import log
from pomona.versions import keep_version, list_versions, restore_version

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from pomona.bundle import Bundle
    from pomona.inbox import InboxPhoto
    from pomona.learnt import Learnt
    from pomona.proposal import HeldOut, Proposal
    from pomona.service.live import LiveBundle

_PREPARED_S = 120.0  # longest that a proposal waits for the photos kept apart: 300 of them take ten seconds
_POLL_S = 0.1


class Teacher:
    """Teaches the bundle that answers.

    Parameters
    ----------
    live : LiveBundle
        What answers.
    inbox : str, optional
        URL of the database of the photos; a file beside the run where not given.

    Raises
    ------
    PomonaError
        If the inbox cannot be opened, or the run folder cannot be kept as a version.
    """

    def __init__(self, live: LiveBundle, inbox: str | None = None) -> None:
        self.live = live
        self.run: Path = live.bundle.folder
        is_server = inbox is not None and inbox.startswith("postgres")
        self.inbox = open_inbox(
            inbox or self.run, photos=find_inbox_folder(self.run) / ".photos" if is_server else None
        )
        self.proposal: Proposal | None = None
        self._learnt: Learnt | None = None
        self._why_unlearnt = ""
        self._held_out: HeldOut | None = None
        self._why_none = ""
        self._checksum = self._network = ""
        self._busy = threading.Lock()
        self._proposing = threading.Lock()
        self._prepared = threading.Event()
        live.renumber(keep_version(self.run).number)

    def start(self) -> None:
        """Begin with what is slow, in the background, once the service is warm."""
        threading.Thread(target=self._prepare, args=(self._prepared,), name="pomona-teacher", daemon=True).start()

    # --- photos -----------------------------------------------------------------------------------------------------

    def find_label(self, text: str) -> str:
        """Path of the class that a label means, known or new.

        Raises
        ------
        OptionError
            If it cannot be used.
        """
        bundle = self.live.bundle
        return "/".join(find_class(bundle.tree, bundle.names, parse_label(text)))

    def add(self, content: bytes, label: str) -> tuple[InboxPhoto, int]:
        """Keep a photo to be learnt; what is kept, and how many wait."""
        with self._work(wait=True):
            known = self._find_learnt_as(hash_bytes(content))
            if known not in (None, label):
                raise DataError(
                    f"this photo was learnt as {known} before: bring the version before that back first, or leave it"
                )
            photo = self.inbox.add(content, label)
            if known is not None:
                self._settle()
            elif self.proposal is not None and any(
                sha256 == photo.sha256 and wanted != photo.label for sha256, wanted in self.proposal.photos
            ):
                self.proposal = None
            return self.inbox.find(photo.sha256) or photo, len(self.inbox.list_photos("waiting"))

    def withdraw(self, sha256: str) -> int:
        """Take a photo back; how many still wait."""
        with self._work(wait=True):
            photo = self.inbox.withdraw(sha256)
            if self.proposal is not None and any(photo.sha256 == known for known, _ in self.proposal.photos):
                self.proposal = None
            return len(self.inbox.list_photos("waiting"))

    def describe(self) -> dict[str, Any]:
        """Photos that wait, the proposal, and the versions, as plain values for JSON."""
        waiting = [
            {"photo": one.sha256, "label": one.label, "added": one.added.isoformat(timespec="seconds")}
            for one in self.inbox.list_photos("waiting")
        ]
        found = self.proposal
        return {
            "waiting": waiting,
            "proposal": found.to_dict() if found is not None and self._is_current(found) else None,
            "versions": self.list_versions(),
        }

    def list_versions(self) -> list[dict[str, Any]]:
        """All versions, as plain values for JSON."""
        return [one.to_dict() for one in list_versions(self.run)]

    # --- proposals and versions -------------------------------------------------------------------------------------

    def propose(self) -> Proposal:
        """Make a proposal of all photos that wait; it takes the place of an earlier one."""
        if not self._proposing.acquire(blocking=False):
            raise _say_busy()
        try:
            return self._propose()
        finally:
            self._proposing.release()

    def _propose(self) -> Proposal:
        with self._work():
            prepared = self._prepared
        # Nothing is held meanwhile: what is waited for needs its own turn, and so do photos that are sent.
        prepared.wait(_PREPARED_S)
        with self._work(wait=True):
            if self._learnt is None:
                raise BundleError(self._why_unlearnt)
            is_prepared = self._prepared.is_set()
            why = self._why_none if is_prepared else "they are still being computed"
            photos = self.inbox.list_photos("waiting")
            if not photos:
                raise DataError("wanted photos that wait to be learnt, got none: send one with its label first")
            self.proposal = make_proposal(
                self.live.bundle, self._learnt, photos, self._held_out if is_prepared else None, why_none=why
            )
            return self.proposal

    def drop(self, number: str) -> None:
        """Forget the proposal; its photos wait on.

        Raises
        ------
        RequestError
            If there is no such proposal.
        """
        with self._work(wait=True):
            self._find_proposal(number)
            self.proposal = None

    def confirm(self, number: str) -> int:
        """Let the bundle become what was proposed, and answer with it; number of the version.

        Raises
        ------
        RequestError
            If there is no such proposal.
        """
        with self._work(), self.live.swapping:
            proposal = self._find_proposal(number)
            bundle, version = confirm_proposal(self.live.bundle, proposal, self.inbox)
            self.proposal = None
            self._take_over(bundle, version.number)
            log(f"taught: version {version.number}, {proposal.n_photos} photos, {len(bundle.tree)} classes")
            return version.number

    def restore(self, number: int) -> int:
        """Bring a version back, and answer with it; its number.

        Raises
        ------
        RequestError
            If there is no such version.
        """
        with self._work(), self.live.swapping:
            if number not in {one.number for one in list_versions(self.run)}:
                raise RequestError("not_found", "there is no such version: GET /versions lists them")
            bundle = restore_version(self.run, number)
            self.proposal = None
            self._take_over(bundle, number)
            self._settle()
            log(f"brought back: version {number}, {len(bundle.tree)} classes")
            return number

    def _take_over(self, bundle: Bundle, version: int) -> None:
        fresh = type(bundle)(bundle.folder, bundle.manifest, self.live.bundle.n_workers)
        self.live.swap(fresh, version)
        self._checksum = bundle.manifest.checksum
        self._load_learnt()

    def _find_proposal(self, number: str) -> Proposal:
        found = self.proposal
        if found is None or found.number != number or not self._is_current(found):
            raise RequestError("not_found", "there is no such proposal any more: ask for another")
        return found

    def _is_current(self, proposal: Proposal) -> bool:
        return proposal.checksum == self.live.bundle.manifest.checksum

    # --- what it stands on ------------------------------------------------------------------------------------------

    @contextlib.contextmanager
    def _work(self, *, wait: bool = False) -> Iterator[None]:
        """One thing at a time, on what stands in the run folder now."""
        if not self._busy.acquire(blocking=wait):
            raise _say_busy()
        try:
            self._catch_up()
            yield
        finally:
            self._busy.release()

    def _catch_up(self) -> None:
        """Take note of a bundle that somebody else put into the run folder."""
        if self.live.bundle.manifest.checksum == self._checksum == parse_manifest(self.run).checksum:
            return
        with self.live.swapping:
            self.live.follow()
            version = keep_version(self.run)
            self.live.renumber(version.number)
            self.proposal = None
            self._checksum = self.live.bundle.manifest.checksum
            self._load_learnt()
            self._settle()
            network = _name_network(self.live.bundle)
            if self._network not in {"", network}:  # trained anew: what was computed by the old one says nothing
                self._prepared = threading.Event()  # what the thread before still computes is of the old network
                self._held_out, self._why_none = None, ""
                self.start()
            self._network = network

    def _load_learnt(self) -> None:
        try:
            self._learnt, self._why_unlearnt = load_learnt(self.live.bundle), ""
        except PomonaError as error:  # of the bundle before, it would unteach what was taught since
            self._learnt, self._why_unlearnt = None, str(error)

    def _settle(self) -> None:
        settle_inbox(self.inbox, self.live.bundle, self._learnt, self.live.version)

    def _find_learnt_as(self, sha256: str) -> str | None:
        """Path of the class that a photo was learnt as; None where it was not."""
        if self._learnt is None or sha256 not in self.live.bundle.learnt_from:
            return None
        row = self._learnt.photos.tolist().index(sha256)
        return "/".join(self.live.bundle.tree.paths[self._learnt.ridge.labels[row]])

    def _prepare(self, prepared: threading.Event) -> None:
        """Compute the features of the photos kept apart; where that fails, a proposal says why it has none."""
        while not self.live.is_ready:
            time.sleep(_POLL_S)
        found: HeldOut | None = None
        why = "the log of the service says why"  # places of this machine are in it
        try:
            with self._work(wait=True):
                bundle = self.live.bundle
            if self._prepared is not prepared:  # trained anew meanwhile: another thread is at it
                return
            found, why = load_held_out(bundle), ""
        except PomonaError as error:
            log(f"teaching: no photos kept apart, so each one learnt is left out in turn instead: {error}")
        finally:
            if self._prepared is prepared:
                self._held_out, self._why_none = found, why
            prepared.set()


def _say_busy() -> RequestError:
    return RequestError("busy", "a proposal is being made or confirmed: try again in a moment", wait_s=1)


def _name_network(bundle: Bundle) -> str:
    """What the features of a bundle depend on, and which photos were kept apart."""
    manifest = bundle.manifest
    fingerprint = manifest.provenance.get("dataset_fingerprint")
    return f"{manifest.embedding.model_dump_json()} {manifest.preprocessing.model_dump_json()} {fingerprint}"


def say_fault(error: PomonaError, run: Path) -> RequestError:
    """What went wrong, for the client, without the places of this machine.

    Parameters
    ----------
    error : PomonaError
        What was raised.
    run : Path
        The run folder, whose place is left out.
    """
    text = str(error).replace(str(cache_folder()), "CACHE")
    for place in (str(run.resolve().parent), str(run.parent)):
        if len(place) > 1:
            text = text.replace(f"{place}/", "")
    is_ours = isinstance(error, (OptionError, DataError, FitError, BundleError))
    return RequestError("option" if is_ours else "fault", text)
