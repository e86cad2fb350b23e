"""Photos that people sent with a label, until a recogniser has learnt them and after.

In: bytes of photos, and labels. Out: a data set of them, and what is still to be learnt.
Why: a photo that somebody took the trouble to name is worth more than any other, so the inbox never loses one. Photos
are files named by their content; what is said of them is in a database, SQLite beside the run or PostgreSQL by URL.
"""

from __future__ import annotations

from pomona.inbox.label import parse_label
from pomona.inbox.photo_tree import ExportedTree, export_inbox
from pomona.inbox.store import STATES, Inbox, InboxPhoto, PhotoState, find_inbox_folder, open_inbox

__all__ = [
    "STATES",
    "ExportedTree",
    "Inbox",
    "InboxPhoto",
    "PhotoState",
    "export_inbox",
    "find_inbox_folder",
    "open_inbox",
    "parse_label",
]
