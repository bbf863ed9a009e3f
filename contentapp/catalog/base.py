"""The catalog's two faces: what a request needs, and what an operator edits.

Every write is one idempotent transaction. All methods raise CatalogUnavailable when the database does not answer.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Protocol

from contentapp.core.chunks import ChunkList
from contentapp.core.digest import Digest
from contentapp.core.errors import CatalogUnavailable, ContentAppError
from contentapp.core.records import (
    ArtifactRecord,
    Distribution,
    FileEntry,
    ListedFile,
    ListingState,
    Member,
    Remote,
    Tag,
)


class CatalogTooNew(CatalogUnavailable):
    """A newer version of this program made the database; this one would damage it."""


class ListingSuperseded(ContentAppError):
    """Another replacement of the same listing has begun since, or the remote was removed; the remote did no wrong."""


class ContentCatalog(Protocol):
    """What the data path asks, always from behind a cache."""

    async def distributions(self) -> Sequence[Distribution]:
        """All distributions with their remotes, in order."""
        ...

    async def remotes(self) -> Sequence[Remote]: ...

    # Registry: names are scoped by the distribution.

    async def find_tag(self, distribution: int, name: str, tag: str) -> Tag | None: ...

    async def record_tag(self, distribution: int, name: str, tag: Tag) -> None:
        """Insert or replace; a newer `checked_at` is never overwritten by an older one."""
        ...

    async def forget_tag(self, distribution: int, name: str, tag: str) -> None: ...

    async def tag_names(self, distribution: int, name: str) -> Sequence[str]:
        """The tags known under a name, in lexical order."""
        ...

    async def find_member(self, distribution: int, name: str, digest: Digest) -> Member | None: ...

    async def record_members(self, distribution: int, name: str, members: Iterable[Member]) -> None:
        """Idempotent; a known media type or size is not replaced by an empty one."""
        ...

    # Files: paths are scoped by the distribution.

    async def find_file(self, distribution: int, path: str) -> FileEntry | None: ...

    async def record_file(self, distribution: int, entry: FileEntry, *, replaces: int) -> bool:
        """Compare-and-set: writes with revision `replaces` + 1 if the entry there has revision `replaces` (0: none)."""
        ...

    async def touch_file(self, distribution: int, path: str, checked_at: datetime) -> None:
        """It was revalidated."""
        ...

    async def forget_file(self, distribution: int, path: str) -> None: ...

    async def files_below(self, distribution: int, prefix: str, limit: int) -> Sequence[FileEntry]:
        """Stored files whose path starts with `prefix` ("" or ending in "/"), in order."""
        ...

    # A remote's PULP_MANIFEST.

    async def find_listing(self, remote: int) -> ListingState | None: ...

    async def find_listed(self, remote: int, path: str) -> ListedFile | None: ...

    async def listed_below(self, remote: int, prefix: str, limit: int) -> Sequence[ListedFile]: ...

    async def begin_listing(self, remote: int) -> int:
        """Start to replace a listing: the id under which entries are added, invisible until `finish_listing`.

        One that was begun before for this remote and has not finished is superseded.
        """
        ...

    async def add_listed(self, remote: int, listing: int, entries: Sequence[ListedFile]) -> None:
        """One batch, one short transaction, all or nothing.

        MetadataInvalid on a path that is already in this listing, ListingSuperseded when a later one has begun.
        """
        ...

    async def finish_listing(self, listing: int, state: ListingState) -> None:
        """Make it the remote's listing, atomically; the old one's entries are removed in short transactions.

        ListingSuperseded when a later one has begun.
        """
        ...

    async def touch_listing(self, state: ListingState) -> None:
        """Record a revalidation, or that there is none."""
        ...

    # Artifacts.

    async def find_artifact(self, digest: Digest) -> ArtifactRecord | None: ...

    async def record_artifact(self, record: ArtifactRecord) -> None:
        """Idempotent; `modified_at` and `flight` of an existing record are kept."""
        ...

    async def forget_artifact(self, digest: Digest, *, stored_at: datetime | None = None) -> None:
        """It is no longer stored; what is known about it stays.

        stored_at: only if that is still what the record says, and nobody has stored and recorded it anew meanwhile.
        """
        ...

    async def touch_artifacts(self, used: Mapping[Digest, datetime]) -> None: ...

    async def record_source(self, digest: Digest, remote: int, path: str) -> None:
        """This remote has delivered this artifact from this path (a RemoteArtifact), and is alive for it."""
        ...

    async def forget_source(self, digest: Digest, remote: int) -> None:
        """This remote answered 404 for it."""
        ...

    async def find_modified(self, digest: Digest) -> datetime | None:
        """The first Last-Modified ever recorded for these bytes."""
        ...

    async def last_modified(self, digest: Digest, first_seen: datetime) -> datetime:
        """The first Last-Modified ever recorded for these bytes; records `first_seen` if there is none."""
        ...

    # Chunk lists, by the digest of the whole, whether it is stored or not.

    async def find_chunks(self, digest: Digest) -> tuple[ChunkList, bool] | None:
        """The list, and whether it is proven (P2); if not, it is a hint."""
        ...

    async def record_chunks(self, chunks: ChunkList, *, is_proven: bool, origin: str) -> None:
        """Idempotent: the first list for a digest stays, but a proven one replaces a hint.

        origin: what it was learned from, ``copy`` (verified bytes), ``listing`` (beside the file) or ``referrer``.
        """
        ...


class UpkeepCatalog(Protocol):
    """What eviction, verify and adoption ask."""

    async def evictable(self, limit: int) -> Sequence[ArtifactRecord]:
        """The least recently used artifacts first; never one that is pinned or without a live source."""
        ...

    async def artifacts(self, after: str, limit: int) -> Sequence[ArtifactRecord]:
        """Page through all artifacts in the order of their digest; `after` is the last one's, "" to begin."""
        ...

    async def stored_size(self) -> int:
        """Bytes of all recorded artifacts."""
        ...

    async def artifact_count(self) -> int: ...

    async def sweep(self) -> int:
        """Remove, in short transactions, what removed resources and dead listings left behind; the number of rows.

        Nothing reads such rows, so it may be put off, and be cut short at any time.
        """
        ...


@dataclass(frozen=True, slots=True)
class Change:
    """What apply did or would do with one resource. `fields` names what differs; secrets are never shown."""

    action: str  # created | updated | unchanged | removed
    kind: str  # remote | distribution
    name: str
    fields: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Resources:
    """Declared resources, validated by config.py: each a plain mapping in the YAML's own names, secrets as mappings."""

    remotes: Sequence[Mapping[str, Any]] = field(default_factory=tuple)
    distributions: Sequence[Mapping[str, Any]] = field(default_factory=tuple)


class AdminCatalog(Protocol):
    """What an operator edits."""

    async def apply(self, resources: Resources, *, prune: bool = False, dry_run: bool = False) -> Sequence[Change]:
        """Reconcile in one transaction: create, update, with `prune` remove what is not declared.

        A distribution that names an unknown remote, or a clash of base_path, is a MetadataInvalid that names it.
        """
        ...
