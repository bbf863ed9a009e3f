"""Catalog records behind a cache: a hit asks no database, and a database that is down costs no hit (P7)."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable, Hashable, Iterable
from datetime import UTC, datetime
from typing import TypeVar

from cachetools import LRUCache

from contentapp.catalog.base import ContentCatalog
from contentapp.coordination.base import RESYNC, Coordination
from contentapp.core.digest import Digest
from contentapp.core.errors import CatalogUnavailable
from contentapp.core.records import ArtifactRecord, FileEntry, ListedFile, Member, Tag

Record = TypeVar("Record")

RECORDS_TOPIC = "record"
"""Its messages are cache keys that have changed, "" for all."""

CACHED_RECORDS = 100_000


def now() -> datetime:
    """The time, aware."""
    return datetime.now(UTC)


class Lookup:
    """Reads through a cache whose entries are trusted for `ttl_seconds`, and longer while the database is down."""

    def __init__(
        self,
        catalog: ContentCatalog,
        coordination: Coordination,
        ttl_seconds: float,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.catalog = catalog
        self._coordination = coordination
        self._ttl_seconds = ttl_seconds
        self._clock = clock
        self._cache: LRUCache[Hashable, tuple[float, object]] = LRUCache(CACHED_RECORDS)
        self._used: dict[Digest, datetime] = {}
        coordination.subscribe(RECORDS_TOPIC, self._forget)
        coordination.subscribe(RESYNC, self._forget_all)

    async def _get(self, key: str, find: Callable[[], Awaitable[Record]]) -> Record:
        cached = self._cache.get(key)
        if cached is not None and cached[0] > self._clock():
            return cached[1]  # type: ignore[return-value]
        try:
            found = await find()
        except CatalogUnavailable:
            if cached is None:
                raise
            return cached[1]  # type: ignore[return-value]
        self._cache[key] = (self._clock() + self._ttl_seconds, found)
        return found

    def _forget(self, key: str) -> None:
        if key:
            self._cache.pop(key, None)
        else:
            self._cache.clear()

    def _changed(self, key: str) -> None:
        self._cache.pop(key, None)
        self._coordination.publish(RECORDS_TOPIC, key)

    def _forget_all(self, _message: str) -> None:
        """Messages were lost: trust nothing."""
        self._cache.clear()

    # Registry

    async def tag(self, distribution: int, name: str, tag: str) -> Tag | None:
        """The tag as last seen."""
        return await self._get(
            f"tag:{distribution}:{name}:{tag}", lambda: self.catalog.find_tag(distribution, name, tag)
        )

    async def record_tag(self, distribution: int, name: str, tag: Tag) -> None:
        """Remember what a tag is now."""
        await self.catalog.record_tag(distribution, name, tag)
        self._changed(f"tag:{distribution}:{name}:{tag.name}")

    async def forget_tag(self, distribution: int, name: str, tag: str) -> None:
        """It is gone upstream."""
        await self.catalog.forget_tag(distribution, name, tag)
        self._changed(f"tag:{distribution}:{name}:{tag}")

    async def member(self, distribution: int, name: str, digest: Digest) -> Member | None:
        """The permission to read a digest under a name."""
        key = f"member:{distribution}:{name}:{digest}"
        return await self._get(key, lambda: self.catalog.find_member(distribution, name, digest))

    async def record_members(self, distribution: int, name: str, members: Iterable[Member]) -> None:
        """Permit these."""
        members = list(members)
        await self.catalog.record_members(distribution, name, members)
        for member in members:
            self._changed(f"member:{distribution}:{name}:{member.digest}")

    # Files

    async def file(self, distribution: int, path: str) -> FileEntry | None:
        """What was stored for a path."""
        return await self._get(f"file:{distribution}:{path}", lambda: self.catalog.find_file(distribution, path))

    async def record_file(self, distribution: int, entry: FileEntry, *, replaces: int) -> bool:
        """Compare-and-set."""
        written = await self.catalog.record_file(distribution, entry, replaces=replaces)
        self._changed(f"file:{distribution}:{entry.path}")
        return written

    async def touch_file(self, distribution: int, path: str) -> None:
        """It is still the same upstream."""
        await self.catalog.touch_file(distribution, path, now())
        self._changed(f"file:{distribution}:{path}")

    async def forget_file(self, distribution: int, path: str) -> None:
        """It is gone upstream."""
        await self.catalog.forget_file(distribution, path)
        self._changed(f"file:{distribution}:{path}")

    async def listed(self, remote: int, path: str) -> ListedFile | None:
        """A remote's own word on a path."""
        return await self._get(f"listed:{remote}:{path}", lambda: self.catalog.find_listed(remote, path))

    def listing_changed(self, remote: int) -> None:
        """A remote's listing has been replaced."""
        for key in [key for key in self._cache if str(key).startswith(f"listed:{remote}:")]:
            self._cache.pop(key, None)
        self._coordination.publish(RECORDS_TOPIC, "")

    # Artifacts

    async def artifact(self, digest: Digest) -> ArtifactRecord | None:
        """What is recorded of stored bytes."""
        return await self._get(f"artifact:{digest}", lambda: self.catalog.find_artifact(digest))

    async def record_artifact(self, record: ArtifactRecord) -> None:
        """It is stored now."""
        await self.catalog.record_artifact(record)
        self._changed(f"artifact:{record.digest}")

    async def forget_artifact(self, digest: Digest) -> None:
        """It is no longer stored."""
        self._cache.pop(f"artifact:{digest}", None)
        await self.catalog.forget_artifact(digest)
        self._changed(f"artifact:{digest}")

    def used(self, digest: Digest) -> None:
        """Note a use; written in batches by `flush`."""
        self._used[digest] = now()

    async def flush(self) -> None:
        """Write the noted uses; on failure they are kept for the next time."""
        used, self._used = self._used, {}
        if not used:
            return
        try:
            await self.catalog.touch_artifacts(used)
        except CatalogUnavailable:
            self._used = used | self._used
