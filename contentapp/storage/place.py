"""How a partial on a filesystem becomes an artifact, is kept for later, or goes (P5)."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

from contentapp.core.digest import Digest
from contentapp.storage.claim import open_unused
from contentapp.storage.failure import storage_errors
from contentapp.storage.filelock import FileLock
from contentapp.storage.layout import Layout, find_file, kept_name, sync_folder
from contentapp.storage.quota import Ledger
from contentapp.storage.spool import Spool

CrashPoint = Callable[[str], None]


class FilePlace:
    """The Place of a file below partials/. `crash_point` is called after each step that a crash could follow."""

    def __init__(self, path: Path, layout: Layout, names: FileLock, ledger: Ledger, crash_point: CrashPoint) -> None:
        self._path = path
        self._layout = layout
        self._names = names
        self._ledger = ledger
        self._crash_point = crash_point

    def publish(self, spool: Spool, digest: Digest) -> None:
        self._crash_point("verified")
        spool.sync()
        self._crash_point("synced")
        with storage_errors("commit"):
            shard = self._layout.make_shard(digest)
            self._crash_point("sharded")
            with self._names:
                self._rename(spool, self._layout.artifact(digest))
            # Also when somebody else has put it there: that process may not have come this far.
            sync_folder(shard)
            sync_folder(self._path.parent)
        self._crash_point("durable")

    def keep(self, spool: Spool) -> None:
        spool.sync()
        with storage_errors("suspend"):
            with self._names:  # the count and the names agree whenever the lock is free
                self._path.rename(kept_name(self._path))
                self._crash_point("kept")
                spool.suspend()
            sync_folder(self._path.parent)

    def remove(self) -> None:
        with storage_errors("abort"):
            self._path.unlink(missing_ok=True)

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
