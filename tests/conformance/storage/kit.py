"""What each implementation brings to the suite, and the search for what it has left behind."""

from __future__ import annotations

import asyncio
import hashlib
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Protocol

from contentapp.core.digest import Digest
from contentapp.core.settings import MIB
from contentapp.storage.base import ArtifactReader, ArtifactWriter, Note, Storage
from contentapp.storage.filesystem import FilesystemStorage
from contentapp.storage.memory import MemoryStorage

LIMIT = 256 * MIB


class Kit(Protocol):
    """Makes storages of one implementation, which all hold the same artifacts if it has any that outlive a storage."""

    def make(
        self,
        *,
        limit: int = LIMIT,
        clock: Callable[[], float] = time.monotonic,
        space_wait_seconds: float = 0.0,
        on_space_wanted: Callable[[int], None] = lambda size: None,
    ) -> Storage: ...

    def leftovers(self) -> list[str]:
        """Files, reservations and descriptors that should not be there once all storages are closed."""
        ...


class FilesystemKit:
    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def make(
        self,
        *,
        limit: int = LIMIT,
        clock: Callable[[], float] = time.monotonic,
        space_wait_seconds: float = 0.0,
        on_space_wanted: Callable[[int], None] = lambda size: None,
    ) -> Storage:
        return FilesystemStorage(
            self.folder / "data",
            run_dir=self.folder / "run",
            limit=limit,
            clock=clock,
            space_wait_seconds=space_wait_seconds,
            on_space_wanted=on_space_wanted,
        )

    def leftovers(self) -> list[str]:
        partials = [path.name for path in (self.folder / "data" / "partials").iterdir()]
        slots = [path.name for path in (self.folder / "run" / "space").glob("*.slot")]
        return partials + slots + open_files(str(self.folder))


class MemoryKit:
    def make(
        self,
        *,
        limit: int = LIMIT,
        clock: Callable[[], float] = time.monotonic,
        space_wait_seconds: float = 0.0,
        on_space_wanted: Callable[[int], None] = lambda size: None,
    ) -> Storage:
        return MemoryStorage(
            limit=limit, clock=clock, space_wait_seconds=space_wait_seconds, on_space_wanted=on_space_wanted
        )

    def leftovers(self) -> list[str]:
        return open_files("/memfd:partial")


def open_files(prefix: str) -> list[str]:
    """What this process has open below a prefix."""
    found = []
    for descriptor in Path("/proc/self/fd").iterdir():
        try:
            target = str(descriptor.readlink())
        except FileNotFoundError:
            continue
        if target.startswith(prefix):
            found.append(target)
    return found


async def store(storage: Storage, body: bytes, *, digest: Digest | None = None) -> Digest:
    """Put a body in, as a flight does."""
    digest = digest or Digest.of(body)
    writer = await storage.begin(str(digest), size=len(body), keep=True)
    writer.write([body])
    await writer.commit(digest)
    return digest


def note_of(key: str, body: bytes, *, size: int | None = None, step: int = 1000, facts: str = "{}") -> Note:
    """The note of a partial that begins with this body."""
    marks = [hashlib.sha256(body[:end]).hexdigest() for end in range(step, len(body) + 1, step)]
    mark = hashlib.sha256(body).hexdigest()
    return Note(key=key, size=size, offset=len(body), step=step, marks=tuple(marks), mark=mark, facts=facts)


async def suspend(storage: Storage, key: str, body: bytes, *, size: int | None = None) -> Note:
    """Leave a suspended partial behind."""
    note = note_of(key, body, size=size)
    writer = await storage.begin(key, size=size, keep=True)
    writer.write([body])
    await writer.suspend(note)
    return note


async def resume(storage: Storage, key: str) -> tuple[ArtifactWriter, Note]:
    """Take over a partial that must be there."""
    resumed = await storage.resume(key)
    assert resumed is not None
    return resumed


def read_all(reader: ArtifactReader) -> bytes:
    return reader.read(0, reader.size)


async def fetch(storage: Storage, digest: Digest) -> bytes:
    """Take a body out."""
    reader = await storage.open(digest)
    try:
        return read_all(reader)
    finally:
        reader.close()


async def eventually(holds: Callable[[], Awaitable[bool]]) -> None:
    """Wait for what the background does."""
    deadline = time.monotonic() + 10
    while not await holds():
        assert time.monotonic() < deadline
        await asyncio.sleep(0.002)
