"""Artifacts as files below one folder; layout.py says where."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import AsyncIterator, Callable
from contextlib import ExitStack, suppress
from pathlib import Path

from contentapp.core.digest import Digest
from contentapp.core.errors import ArtifactDamaged, NoSpace
from contentapp.core.settings import DAY
from contentapp.storage.background import Background
from contentapp.storage.base import ArtifactReader, ArtifactWriter, Note, StorageUse, StoredArtifact, Suspended
from contentapp.storage.claim import claim_writing, open_artifact, open_shared, open_unused
from contentapp.storage.descriptor import FileReader, closer
from contentapp.storage.failure import storage_errors
from contentapp.storage.filelock import FileLock
from contentapp.storage.intake import Intake, NewFile
from contentapp.storage.layout import Layout, artifacts_in, find_file, stored_at, sync_folder
from contentapp.storage.place import FilePlace
from contentapp.storage.progress import CrashPoint
from contentapp.storage.quota import DiskSpace, HostLedger, Ledger, disk_space
from contentapp.storage.reservation import Room
from contentapp.storage.suspended import SuspendedPartials

CREATE_FLAGS = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW
PROBE = bytes(4096)


class FilesystemStorage:
    """A Storage on a local filesystem, shared by all processes of a host that name the same `root` and `run_dir`.

    limit: the quota in bytes. clock: seconds that only grow. space_wait_seconds: how long a write waits for room after
    it has called `on_space_wanted(size)`, which may be called in any thread and must return at once. crash_point:
    called with the name of each step that a crash could follow. threads: for what blocks.

    Names change (rename into artifacts/, unlink) under one lock of the host, `<run_dir>/space/names`. Whoever reads an
    artifact or writes a partial holds a shared flock on its file; whoever removes one first takes the exclusive one.
    Construct it after a fork, not before. A root that can't be made or written raises only where that matters; one
    that has vanished is not made again, since it may be a disk that is not mounted.
    """

    def __init__(
        self,
        root: Path,
        *,
        run_dir: Path,
        limit: int,
        clock: Callable[[], float] = time.monotonic,
        space_wait_seconds: float = 1.0,
        on_space_wanted: Callable[[int], None] = lambda size: None,
        crash_point: CrashPoint = lambda step: None,
        threads: int = 8,
    ) -> None:
        self._layout = Layout(root)
        with suppress(OSError):
            self._layout.prepare()
        self._crash_point = crash_point
        self._names = FileLock(run_dir / "space" / "names")
        self._ledger: Ledger = HostLedger(run_dir / "space", limit, self._disk, self._stored_size)
        self._background = Background(threads)
        self._close_descriptor = closer(self._background)
        room = Room(limit, clock=clock, wait_seconds=space_wait_seconds, on_space_wanted=on_space_wanted)
        self._suspended = SuspendedPartials(self._layout, self._names, self._ledger, crash_point)
        self._intake = Intake(
            self._ledger, room, self._background, self._create, self._suspended.take, self._close_descriptor
        )

    async def find(self, digest: Digest) -> StoredArtifact | None:
        with storage_errors("find"):
            found = find_file(self._layout.artifact(digest))
        return None if found is None else StoredArtifact(digest, found.st_size, stored_at(found))

    async def open(self, digest: Digest, *, size: int | None = None) -> ArtifactReader:
        # Inline: some ten microseconds, where a trip to a thread is a hundred.
        descriptor, found = open_artifact(self._layout.artifact(digest), digest)
        if size is not None and found != size:
            os.close(descriptor)
            raise ArtifactDamaged(f"{digest} has {found} bytes instead of {size}")
        return FileReader(descriptor, found, self._close_descriptor)

    async def begin(self, key: str, *, size: int | None, keep: bool) -> ArtifactWriter:
        return await self._intake.begin(key, size=size, keep=keep)

    async def delete(self, digest: Digest) -> bool:
        return await self._background.run(self._delete, digest)

    async def quarantine(self, digest: Digest) -> None:
        await self._background.run(self._quarantine, digest)

    async def scan(self) -> AsyncIterator[StoredArtifact]:
        for shard in await self._background.run(self._shards):
            for found in await self._background.run(self._artifacts_in, shard):
                yield found

    async def resume(self, key: str) -> tuple[ArtifactWriter, Note] | None:
        return await self._intake.resume(key)

    async def suspended(self) -> list[Suspended]:
        return await self._background.run(self._suspended.find_all)

    async def discard(self, key: str) -> int:
        return await self._background.run(self._suspended.discard, key)

    async def remove_stale_partials(self, max_age_seconds: float = DAY) -> int:
        return await self._background.run(self._suspended.remove_stale, max_age_seconds)

    async def use(self) -> StorageUse:
        return await self._background.run(self._ledger.use)

    async def set_stored(self, size: int) -> None:
        """What was committed or deleted while `size` was being counted is counted wrongly until the next time."""
        await self._background.run(self._ledger.set_stored, size)

    async def check(self) -> None:
        await self._background.run(self._check)

    async def close(self) -> None:
        """Abort what is still being written and let go of everything; readers stay readable."""
        await self._background.close()
        await asyncio.to_thread(self._close)

    def _close(self) -> None:
        self._intake.abort_all()
        self._ledger.close()
        self._names.close()

    def _disk(self) -> DiskSpace:
        # Every begin asks for it first: so a root that could not be made at the start is made as soon as it can be.
        self._layout.prepare()
        return disk_space(self._layout.root)

    def _stored_size(self) -> int:
        with suppress(FileNotFoundError):
            return sum(artifact.size for shard in self._layout.shards() for artifact in artifacts_in(shard))
        return 0

    def _create(self, key: str, *, keep: bool) -> NewFile:
        path = self._layout.new_partial(key)
        place = FilePlace(path, self._layout, self._names, self._ledger, self._crash_point)
        with storage_errors("begin"):
            target, source = self._open_new(path, keep=keep)
        self._crash_point("begun")
        return NewFile(target, source, place)

    def _open_new(self, path: Path, *, keep: bool) -> tuple[int, int]:
        """Descriptors to write and to read a new file; the second holds the lock that says it is in use."""
        with self._names, ExitStack() as undo:  # nobody can take it for stale before it is locked
            target = os.open(path, CREATE_FLAGS, 0o600)
            undo.callback(os.close, target)
            undo.callback(path.unlink, missing_ok=True)
            claim_writing(target)  # of a new file there is no other
            self._crash_point("opened")
            source = open_shared(path)
            undo.callback(os.close, source)
            if not keep:
                path.unlink()
            undo.pop_all()
        return target, source

    def _delete(self, digest: Digest) -> bool:
        path = self._layout.artifact(digest)
        # In this order: the file is closed, which frees its blocks and takes long, when the lock is no longer held.
        with storage_errors("delete"), ExitStack() as opened, self._names:
            if (found := find_file(path)) is None:
                return True
            if (descriptor := open_unused(path)) is None:
                return False
            opened.callback(os.close, descriptor)
            self._unlink(path, found.st_size)
        return True

    def _quarantine(self, digest: Digest) -> None:
        path = self._layout.artifact(digest)
        with storage_errors("quarantine"):
            with self._names:
                if not os.path.lexists(path):
                    return
                found = find_file(path)
                self._unlink(path, found.st_size if found is not None else 0)
            sync_folder(Path(path).parent)

    def _unlink(self, path: str, size: int) -> None:
        os.unlink(path)  # noqa: PTH108 - a string already
        self._crash_point("unlinked")
        # Afterwards: a kill in between costs some room until the next count, never the quota.
        self._ledger.move(stored=-size)

    def _shards(self) -> list[Path]:
        with storage_errors("scan"):
            return self._layout.shards()

    def _artifacts_in(self, shard: Path) -> list[StoredArtifact]:
        with storage_errors("scan"):
            return list(artifacts_in(shard))

    def _check(self) -> None:
        if not self._ledger.try_reserve(len(PROBE)):
            raise NoSpace("the cache is full")
        path = self._layout.new_partial("check")
        try:
            with storage_errors("check"):
                _write_probe(path)
        finally:
            self._ledger.move(reserved=-len(PROBE), unwritten=-len(PROBE))


def _write_probe(path: Path) -> None:
    descriptor = os.open(path, CREATE_FLAGS, 0o600)
    try:
        os.write(descriptor, PROBE)
    finally:
        os.close(descriptor)
        path.unlink(missing_ok=True)
