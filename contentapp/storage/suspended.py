"""Partials that nobody writes: found, taken over, discarded, removed when nobody will resume them (P6).

Each is looked at under the lock of names, without which nobody begins or ends to write one that others can see.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from contentapp.storage.base import Note, Suspended
from contentapp.storage.claim import READ_FLAGS, claim_writing, is_written, open_shared, open_unused
from contentapp.storage.failure import storage_errors
from contentapp.storage.filelock import FileLock
from contentapp.storage.intake import Missing, NewFile, Taken, rest_of
from contentapp.storage.layout import Layout, partial_of
from contentapp.storage.place import FilePlace
from contentapp.storage.progress import CrashPoint, find_note, remove_notes, remove_temporary_note
from contentapp.storage.quota import Ledger

WRITE_FLAGS = os.O_WRONLY | os.O_NOFOLLOW | os.O_NONBLOCK


class SuspendedPartials:
    """Those of one root. All methods block; StorageUnavailable. `crash_point`: as FilePlace's."""

    def __init__(self, layout: Layout, names: FileLock, ledger: Ledger, crash_point: CrashPoint) -> None:
        self._layout = layout
        self._names = names
        self._ledger = ledger
        self._crash_point = crash_point

    def find_all(self) -> list[Suspended]:
        """All of them."""
        with storage_errors("find suspended"):
            return [found for _, found in self._of(self._layout.found_partials())]

    def take(self, key: str) -> Taken | Missing | None:
        """Take over the one of a key with most bytes; Missing when there is no room for its rest."""
        with storage_errors("resume"):
            found = sorted(self._of(self._layout.partials_of(key)), key=lambda each: -each[1].note.offset)
            for path, _ in found:
                if (outcome := self._take(path)) is not None:
                    return outcome
        return None

    def discard(self, key: str) -> int:
        """Remove those of a key; how many."""
        with storage_errors("discard"):
            return sum(self._discard(path) for path in self._layout.partials_of(key))

    def remove_stale(self, max_age_seconds: float) -> int:
        """As Storage.remove_stale_partials."""
        with storage_errors("remove stale partials"):
            removed = sum(self._remove_if_stale(path, max_age_seconds) for path in self._layout.found_partials())
            for note in self._layout.found_notes():
                self._remove_if_orphan(note)
            with self._names:
                self._ledger.set_suspended(sum(self._size(path) for path in self._layout.found_partials()))
        return removed

    def _of(self, paths: list[Path]) -> list[tuple[Path, Suspended]]:
        found = []
        for path in paths:
            with self._names, _opened(path) as descriptor:
                if descriptor is not None and (note := _find(path, descriptor)) is not None:
                    found.append((path, note))
        return found

    def _take(self, path: Path) -> Taken | Missing | None:
        # In this order: what is not taken is given up before somebody else can count it.
        with self._names, ExitStack() as undo, suppress(FileNotFoundError):
            target = os.open(path, WRITE_FLAGS)
            undo.callback(os.close, target)
            # Again, as somebody may have been faster since it was found; from here on nobody is.
            if not claim_writing(target) or (found := find_note(path)) is None:
                return None
            self._crash_point("claimed")
            source = open_shared(path)
            undo.callback(os.close, source)
            self._cut(target, found.note.offset)
            outcome = self._reserve(path, NewFile(target, source, self._place(path, found.note)), found.note)
            if isinstance(outcome, Taken):
                undo.pop_all()
            return outcome
        return None  # aborted or committed meanwhile

    def _reserve(self, path: Path, file: NewFile, note: Note) -> Taken | Missing:
        rest = rest_of(note, self._ledger.limit)
        if not self._ledger.try_resume(size=note.offset, rest=rest):
            return Missing(rest)
        self._crash_point("resumed")
        return Taken(file, note, held=note.offset + rest)

    def _cut(self, target: int, size: int) -> None:
        """Only a killed process leaves more than its note tells of; who still follows that has an attempt that failed,
        and does better to find an end than bytes of another."""
        if excess := os.fstat(target).st_size - size:
            os.ftruncate(target, size)
            self._crash_point("cut")
            self._ledger.discard(excess)
        os.lseek(target, size, os.SEEK_SET)

    def _place(self, path: Path, note: Note) -> FilePlace:
        return FilePlace(path, self._layout, self._names, self._ledger, self._crash_point, noted=note.offset)

    def _discard(self, path: Path) -> bool:
        # In this order: the file is closed, which frees its blocks and takes long, when the lock is no longer held.
        with _opened(path) as descriptor, self._names:
            if descriptor is None or _find(path, descriptor) is None:
                return False
            self._remove(path)
            self._crash_point("discarded")
            self._ledger.discard(os.fstat(descriptor).st_size)
            return True

    def _remove_if_stale(self, path: Path, max_age_seconds: float) -> bool:
        with ExitStack() as opened, suppress(FileNotFoundError), self._names:
            if (descriptor := open_unused(path)) is None:
                return False
            opened.callback(os.close, descriptor)
            found = find_note(path)
            if found is not None and time.time() - found.noted_at.timestamp() < max_age_seconds:
                remove_temporary_note(path)
                return False
            self._remove(path)
            return True
        return False  # its writer has just ended

    def _remove_if_orphan(self, note: Path) -> None:
        with self._names:
            if not os.path.lexists(partial_of(note)):
                note.unlink(missing_ok=True)

    def _remove(self, path: Path) -> None:
        # The note first: what is killed in between is a stale partial, which the next sweep removes.
        remove_notes(path)
        self._crash_point("unnoted")
        path.unlink()

    def _size(self, path: Path) -> int:
        """The bytes of a partial if it is suspended, else 0."""
        with _opened(path) as descriptor:
            if descriptor is None or _find(path, descriptor) is None:
                return 0
            return os.fstat(descriptor).st_size


@contextmanager
def _opened(path: Path) -> Iterator[int | None]:
    """A descriptor that claims nothing; None when the file is gone."""
    try:
        descriptor = os.open(path, READ_FLAGS)
    except FileNotFoundError:
        yield None
        return
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def _find(path: Path, descriptor: int) -> Suspended | None:
    """What is suspended under a path, of which `descriptor` is open; under the lock of names."""
    return None if is_written(descriptor) else find_note(path)
