"""Storage: immutable bytes by digest (P5), within a quota (P9)."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Protocol

from contentapp.core.digest import Digest


@dataclass(frozen=True, slots=True)
class StoredArtifact:
    """What a scan finds: a complete artifact and its size in bytes."""

    digest: Digest
    size: int
    stored_at: datetime


@dataclass(frozen=True, slots=True)
class StorageUse:
    """Bytes: `stored` artifacts, `reserved` for what is being written, `limit` the quota, `free` on the disk."""

    stored: int
    reserved: int
    limit: int
    free: int

    @property
    def used(self) -> int:
        """What counts against the limit."""
        return self.stored + self.reserved


class ArtifactReader(Protocol):
    """Open bytes that stay readable until close, whatever happens to the name. While one is open, `delete` refuses."""

    @property
    def size(self) -> int: ...

    def fileno(self) -> int:
        """A descriptor for sendfile; positions are the caller's (pread), never shared."""
        ...

    def read(self, offset: int, size: int) -> bytes:
        """At most `size` bytes from `offset`; blocking. ArtifactDamaged on a read error."""
        ...

    def close(self) -> None: ...


class ArtifactWriter(Protocol):
    """One growing body. It ends in exactly one of commit, suspend, abort; a second ending is a no-op."""

    @property
    def written(self) -> int: ...

    def write(self, buffers: Sequence[bytes | bytearray | memoryview]) -> None:
        """Append all buffers. Blocking: call it in a thread, one at a time.

        NoSpace when quota or disk is full, StorageUnavailable for other errors; what was written before stays readable.
        """
        ...

    def follow(self) -> ArtifactReader:
        """A reader of what has been and will be written, readable after any ending; its `size` is `written`.

        StorageUnavailable once the writer has ended.
        """
        ...

    async def commit(self, digest: Digest) -> None:
        """Make it the artifact `digest`, which the caller has verified: fsync, rename, fsync of the folder. Idempotent.

        A writer begun with keep=False can't be committed.
        """
        ...

    async def suspend(self) -> None:
        """Keep the partial on disk for a later resume."""
        ...

    async def abort(self) -> None:
        """Remove the partial and give its space back."""
        ...


class Storage(Protocol):
    """All methods raise StorageUnavailable when the storage as a whole can't be used."""

    async def find(self, digest: Digest) -> StoredArtifact | None:
        """What is stored under a digest, by its name and size alone."""
        ...

    async def open(self, digest: Digest, *, size: int | None = None) -> ArtifactReader:
        """Open for reading. ArtifactNotFound; ArtifactDamaged when its size is not `size` (P1)."""
        ...

    async def begin(self, key: str, *, size: int | None, keep: bool) -> ArtifactWriter:
        """Start a partial named after `key`; space for `size` bytes (unknown: 64 MiB steps) is reserved first: NoSpace.

        keep=False: an unlinked file, gone with its last descriptor, but counted while it is there.
        """
        ...

    async def delete(self, digest: Digest) -> bool:
        """Remove an artifact; False if it is in use by an open reader of any process. True if it was not there."""
        ...

    async def quarantine(self, digest: Digest) -> None:
        """Take a damaged artifact out of the way at once, in use or not."""
        ...

    def scan(self) -> AsyncIterator[StoredArtifact]:
        """All artifacts, in no order."""
        ...

    async def remove_stale_partials(self) -> int:
        """Delete partials that no living process writes; the number removed."""
        ...

    async def use(self) -> StorageUse:
        """What is used, over all processes of this host."""
        ...

    async def set_stored(self, size: int) -> None:
        """Correct the count of stored bytes to what a scan or the catalog found."""
        ...

    async def check(self) -> None:
        """Try to write; StorageUnavailable or NoSpace says why not (readiness, warnings)."""
        ...

    async def close(self) -> None: ...
