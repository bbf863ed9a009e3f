"""How a partial on a filesystem becomes an artifact, is kept for later, or goes (P5, P6)."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path

from contentapp.core.digest import Digest
from contentapp.storage.base import Note
from contentapp.storage.claim import open_unused, release_writing
from contentapp.storage.failure import storage_errors
from contentapp.storage.filelock import FileLock
from contentapp.storage.layout import Layout, find_file, sync_folder
from contentapp.storage.progress import CrashPoint, remove_notes, write_note
from contentapp.storage.quota import Ledger
from contentapp.storage.spool import Spool


class FilePlace:
    """The Place of a file below partials/. `crash_point` is called after each step that a crash could follow.

    noted: the offset of the note beside it, 0 if there is none.
    """

    def __init__(
        self,
        path: Path,
        layout: Layout,
        names: FileLock,
        ledger: Ledger,
        crash_point: CrashPoint,
        *,
        noted: int = 0,
    ) -> None:
        self._path = path
        self._layout = layout
        self._names = names
        self._ledger = ledger
        self._crash_point = crash_point
        self._noted = noted

    def publish(self, spool: Spool, digest: Digest) -> None:
        self._crash_point("verified")
        spool.sync()
        self._crash_point("synced")
        with storage_errors("commit"):
            shard = self._layout.make_shard(digest)
            self._crash_point("sharded")
            with self._names:
                self._rename(spool, self._layout.artifact(digest))
            # After the rename: killed before it, the partial can still be resumed. A note that stays behind alone
            # vouches for nothing, and goes with the stale partials.
            with suppress(OSError):
                remove_notes(self._path)
            self._crash_point("unnoted")
            # Also when somebody else has put it there: that process may not have come this far.
            sync_folder(shard)
            sync_folder(self._path.parent)
        self._crash_point("durable")

    def note(self, spool: Spool, note: Note) -> None:
        spool.sync_bytes()
        self._crash_point("flushed")
        self._write(note)

    def forget(self, size: int) -> None:
        if self._noted <= size:
            return
        with storage_errors("cut"):
            remove_notes(self._path)
            # Durably, before other bytes are where those were that the note tells of.
            sync_folder(self._path.parent)
        self._noted = 0
        self._crash_point("unnoted")

    def keep(self, spool: Spool, note: Note) -> None:
        self.forget(note.offset)
        spool.cut(note.offset)
        self._crash_point("cut")
        spool.sync()
        self._crash_point("synced")
        self._write(note)
        # Under the lock: whoever counts sees it either as being written or as suspended.
        with storage_errors("suspend"), self._names:
            spool.suspend()
            self._crash_point("counted")
            release_writing(spool.target)
        self._crash_point("suspended")

    def remove(self) -> None:
        with storage_errors("abort"):
            remove_notes(self._path)
            self._crash_point("unnoted")
            self._path.unlink(missing_ok=True)

    def _write(self, note: Note) -> None:
        self._noted = max(self._noted, note.offset)  # before: what fails may have got as far as its name
        with storage_errors("checkpoint"):
            write_note(self._path, note, self._crash_point)

    def _rename(self, spool: Spool, target: str) -> None:
        found = find_file(target)
        if found is not None and found.st_size == spool.written and _is_in_use(target):
            # Committed by another process meanwhile. Theirs stays: it has readers, and is counted.
            self._path.unlink()
            return
        # What nobody reads is replaced, also if it has the right size: of ours we know that it has been verified.
        replaced = found.st_size if found is not None else 0
        # Counted before it is there: a kill in between costs some room until the next count, never the quota.
        spool.store(replaced=replaced)
        self._crash_point("counted")
        try:
            self._path.rename(target)
        except BaseException:
            self._ledger.move(stored=replaced - spool.written)
            raise
        self._crash_point("renamed")


def _is_in_use(path: str) -> bool:
    """Whether somebody reads a file that is there; under the lock of names."""
    if (descriptor := open_unused(path)) is None:
        return True
    os.close(descriptor)
    return False
