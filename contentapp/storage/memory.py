"""Artifacts in anonymous memory files of one process: a Storage that leaves nothing behind."""

from __future__ import annotations

import asyncio
import os
import threading
import time
from collections.abc import AsyncIterator, Callable
from contextlib import ExitStack
from dataclasses import dataclass
from datetime import UTC, datetime

from contentapp.core.digest import Digest
from contentapp.core.errors import ArtifactDamaged, ArtifactNotFound, NoSpace, StorageUnavailable
from contentapp.core.settings import DAY, GIB
from contentapp.storage.background import Background
from contentapp.storage.base import ArtifactReader, ArtifactWriter, Note, StorageUse, StoredArtifact, Suspended
from contentapp.storage.claim import open_shared, open_unused
from contentapp.storage.descriptor import FileReader
from contentapp.storage.failure import storage_errors
from contentapp.storage.intake import Intake, Missing, NewFile, Taken, rest_of
from contentapp.storage.quota import DiskSpace, Ledger, MemoryLedger
from contentapp.storage.reservation import Room
from contentapp.storage.spool import Spool


@dataclass(frozen=True, slots=True)
class Held:
    """A memory file, held by a descriptor that claims nothing."""

    descriptor: int
    size: int
    stored_at: datetime


@dataclass(frozen=True, slots=True)
class Kept:
    """The memory file of a suspended partial."""

    suspended: Suspended
    held: Held


class MemoryStorage:
    """A Storage within one process, behaving as FilesystemStorage does; its arguments mean the same.

    disk: how much memory there is, in the place of a disk's space.
    """

    def __init__(
        self,
        *,
        limit: int = GIB,
        clock: Callable[[], float] = time.monotonic,
        space_wait_seconds: float = 1.0,
        on_space_wanted: Callable[[int], None] = lambda size: None,
        disk: Callable[[], DiskSpace] = lambda: DiskSpace(1 << 60, 1 << 60),
        threads: int = 4,
    ) -> None:
        self._artifacts: dict[Digest, Held] = {}
        self._suspended: dict[str, list[Kept]] = {}
        self._names = threading.Lock()
        self._ledger: Ledger = MemoryLedger(limit, disk)
        self._background = Background(threads)
        room = Room(limit, clock=clock, wait_seconds=space_wait_seconds, on_space_wanted=on_space_wanted)
        self._intake = Intake(self._ledger, room, self._background, self._create, self._take, os.close)
        self._is_closed = False

    async def find(self, digest: Digest) -> StoredArtifact | None:
        held = self._artifacts.get(digest)
        return None if held is None else StoredArtifact(digest, held.size, held.stored_at)

    async def open(self, digest: Digest, *, size: int | None = None) -> ArtifactReader:
        with self._names:
            if (held := self._artifacts.get(digest)) is None:
                raise ArtifactNotFound(f"{digest} is not stored")
            if size is not None and held.size != size:
                raise ArtifactDamaged(f"{digest} has {held.size} bytes instead of {size}")
            with storage_errors("open"):
                descriptor = open_shared(_path(held.descriptor), os.O_RDONLY)
        return FileReader(descriptor, held.size, os.close)

    async def begin(self, key: str, *, size: int | None, keep: bool) -> ArtifactWriter:
        return await self._intake.begin(key, size=size, keep=keep)

    async def delete(self, digest: Digest) -> bool:
        return await self._background.run(self._delete, digest)

    async def quarantine(self, digest: Digest) -> None:
        await self._background.run(self._forget, digest)

    async def scan(self) -> AsyncIterator[StoredArtifact]:
        self._check_open()
        for digest in tuple(self._artifacts):
            if (found := await self.find(digest)) is not None:
                yield found

    async def resume(self, key: str) -> tuple[ArtifactWriter, Note] | None:
        return await self._intake.resume(key)

    async def suspended(self) -> list[Suspended]:
        self._check_open()
        with self._names:
            return [each.suspended for kept in self._suspended.values() for each in kept]

    async def discard(self, key: str) -> int:
        return await self._background.run(self._remove_suspended, lambda each: each.note.key == key)

    async def remove_stale_partials(self, max_age_seconds: float = DAY) -> int:
        oldest = datetime.now(UTC).timestamp() - max_age_seconds
        return await self._background.run(self._remove_suspended, lambda each: each.noted_at.timestamp() <= oldest)

    async def use(self) -> StorageUse:
        self._check_open()
        return self._ledger.use()

    async def set_stored(self, size: int) -> None:
        self._check_open()
        self._ledger.set_stored(size)

    async def check(self) -> None:
        self._check_open()
        if not self._ledger.try_reserve(1):
            raise NoSpace("the cache is full")
        self._ledger.move(reserved=-1, unwritten=-1)

    async def close(self) -> None:
        self._is_closed = True
        await self._background.close()
        await asyncio.to_thread(self._close)

    def _close(self) -> None:
        self._intake.abort_all()
        for digest in tuple(self._artifacts):
            self._forget(digest)
        self._remove_suspended(lambda each: True)

    def _check_open(self) -> None:
        if self._is_closed:
            raise StorageUnavailable("the storage is closed")

    def _create(self, key: str, *, keep: bool) -> NewFile:
        with storage_errors("begin"):
            target = os.memfd_create("partial")
            try:
                source = open_shared(_path(target), os.O_RDONLY)
            except BaseException:
                os.close(target)
                raise
        return NewFile(target, source, MemoryPlace(self))

    def _take(self, key: str) -> Taken | Missing | None:
        with self._names:
            if not (kept := self._suspended.get(key)):
                return None
            best = max(kept, key=lambda each: each.held.size)
            note = best.suspended.note
            with storage_errors("resume"), ExitStack() as undo:
                target = os.open(_path(best.held.descriptor), os.O_WRONLY)
                undo.callback(os.close, target)
                os.lseek(target, note.offset, os.SEEK_SET)
                source = open_shared(_path(target), os.O_RDONLY)
                undo.callback(os.close, source)
                rest = rest_of(note, self._ledger.limit)
                if not self._ledger.try_resume(size=note.offset, rest=rest):
                    return Missing(rest)
                undo.pop_all()
            kept.remove(best)
            os.close(best.held.descriptor)
        return Taken(NewFile(target, source, MemoryPlace(self)), note, held=note.offset + rest)

    def publish(self, spool: Spool, digest: Digest) -> None:
        """Make the bytes of a spool an artifact, unless there is one of that size."""
        with self._names:
            found = self._artifacts.get(digest)
            if found is not None and found.size == spool.written:
                return
            self._artifacts[digest] = _hold(spool)
            if found is not None:
                os.close(found.descriptor)
            spool.store(replaced=found.size if found is not None else 0)

    def keep(self, spool: Spool, note: Note) -> None:
        """Keep the bytes of a spool as a suspended partial."""
        with self._names:
            held = _hold(spool)
            self._suspended.setdefault(note.key, []).append(Kept(Suspended(note=note, noted_at=held.stored_at), held))
            spool.suspend()

    def _delete(self, digest: Digest) -> bool:
        with self._names:
            if (held := self._artifacts.get(digest)) is None:
                return True
            with storage_errors("delete"):
                descriptor = open_unused(_path(held.descriptor), os.O_RDONLY)
            if descriptor is None:
                return False
            os.close(descriptor)
            self._drop(digest)
            return True

    def _forget(self, digest: Digest) -> None:
        with self._names:
            if digest in self._artifacts:
                self._drop(digest)

    def _drop(self, digest: Digest) -> None:
        held = self._artifacts.pop(digest)
        os.close(held.descriptor)
        self._ledger.move(stored=-held.size)

    def _remove_suspended(self, is_stale: Callable[[Suspended], bool]) -> int:
        with self._names:
            stale = [each for kept in self._suspended.values() for each in kept if is_stale(each.suspended)]
            for each in stale:
                self._suspended[each.suspended.note.key].remove(each)
                os.close(each.held.descriptor)
                self._ledger.discard(each.held.size)
            self._suspended = {key: kept for key, kept in self._suspended.items() if kept}
        return len(stale)


class MemoryPlace:
    """The Place of a memory file, which has no name before it is an artifact."""

    def __init__(self, storage: MemoryStorage) -> None:
        self._storage = storage

    def publish(self, spool: Spool, digest: Digest) -> None:
        self._storage.publish(spool, digest)

    def note(self, spool: Spool, note: Note) -> None:
        """Nothing outlives the process: of what is being written nobody will need a note."""

    def forget(self, size: int) -> None:
        """There is no note before it is suspended."""

    def keep(self, spool: Spool, note: Note) -> None:
        spool.cut(note.offset)
        self._storage.keep(spool, note)

    def remove(self) -> None:
        """There is no name to remove."""


def _path(descriptor: int) -> str:
    # Opened anew, not duplicated: a lock belongs to an open file.
    return f"/proc/self/fd/{descriptor}"


def _hold(spool: Spool) -> Held:
    with storage_errors("commit"):
        return Held(os.open(_path(spool.source), os.O_RDONLY), spool.written, datetime.now(UTC))
