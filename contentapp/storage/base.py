"""Storage: immutable bytes by digest (P5), within a quota (P9)."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Protocol

from contentapp.core.digest import Digest
from contentapp.core.settings import DAY


@dataclass(frozen=True, slots=True)
class StoredArtifact:
    """What a scan finds: a complete artifact and its size in bytes."""

    digest: Digest
    size: int
    stored_at: datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class Note:
    """What is known of a partial's first `offset` bytes (P6).

    facts: the pipeline's own, JSON text, at most 64 KiB in UTF-8. step: bytes between marks, > 0. marks: the running
    digest (hex, opaque to the storage) of all bytes before (i + 1) * step, for each whole step within offset. mark: the
    running digest of all `offset` bytes. size: of the whole in bytes, at least `offset`; None if unknown.
    """

    key: str
    size: int | None
    offset: int
    step: int
    marks: tuple[str, ...]
    mark: str
    facts: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Suspended:
    """A partial that nobody writes: its note, and when that was written."""

    note: Note
    noted_at: datetime


@dataclass(frozen=True, slots=True)
class StorageUse:
    """Bytes: `stored` artifacts, `reserved` for what is being written or suspended, `limit` the quota, `free` on the
    disk."""

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

        NoSpace when quota or disk is full, or a body of unknown size takes more than its share of the quota
        (reservation.UNSIZED_SHARE); StorageUnavailable for other errors; what was written before stays readable.
        """
        ...

    def checkpoint(self, note: Note) -> None:
        """Make the first note.offset bytes durable, then the note: a kill or power loss from now on costs what is
        behind them.

        Blocking: call it in a thread other than the one that writes, which it doesn't hold up. It replaces the note
        before it. Nothing is done once the writer has ended, or for bytes that a `cut` has taken away meanwhile; no
        note made before a cut may come after it for bytes that the cut has replaced. StorageError when there is no new
        note; the write goes on regardless. ValueError for a note that breaks its own rules, or of another key.
        """
        ...

    def cut(self, size: int) -> None:
        """Forget all bytes from `size` on, and a note that tells of them; nobody may have been shown them.

        Blocking, as `write` is. What follows is written from there; the space stays reserved. StorageError.
        ValueError when there are fewer bytes.
        """
        ...

    def follow(self) -> ArtifactReader:
        """A reader of what has been and will be written, readable after any ending (but see Storage.resume); its `size`
        is `written`.

        StorageUnavailable once the writer has ended.
        """
        ...

    async def commit(self, digest: Digest) -> None:
        """Make it the artifact `digest`, which the caller has verified: fsync, rename, fsync of the folder. Idempotent.

        A writer begun with keep=False can't be committed.
        """
        ...

    async def suspend(self, note: Note) -> None:
        """Cut to note.offset, make it durable with its note, keep it for a later resume. keep=False: as abort.

        A note of more bytes than there are, which a cut has overtaken: as abort. ValueError, and no ending, for a note
        as in `checkpoint`.
        """
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

    async def resume(self, key: str) -> tuple[ArtifactWriter, Note] | None:
        """Take over the suspended partial of a key, of several the one with most bytes; None when there is none.

        It is cut to note.offset, which is what `written` says; that the bytes are what the marks say, the caller has
        to see. Room for the rest is reserved first: NoSpace, and it stays suspended. Of all who ask, in all processes,
        one gets it. Who still follows a killed writer finds its bytes behind note.offset gone, or replaced.
        """
        ...

    async def suspended(self) -> list[Suspended]:
        """All partials with a valid note that no living writer has, in no order."""
        ...

    async def discard(self, key: str) -> int:
        """Remove the suspended partials of a key, followed or not; the number removed. Those being written stay."""
        ...

    async def remove_stale_partials(self, max_age_seconds: float = DAY) -> int:
        """Delete partials that nobody writes or follows and that can't be resumed, or whose note is that old; the
        number of partials removed.

        Notes without a partial and left-over temporary ones go too; what is left is counted as suspended.
        """
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
