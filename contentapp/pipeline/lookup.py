"""Catalog records behind a cache: a hit asks no database, and a database that is down costs no hit (P7)."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Hashable, Iterable
from contextlib import suppress
from dataclasses import replace
from datetime import UTC, datetime
from typing import TypeVar

from cachetools import LRUCache

from contentapp.catalog.base import ContentCatalog
from contentapp.coordination.base import RESYNC, Coordination
from contentapp.core.digest import Digest
from contentapp.core.errors import CatalogUnavailable
from contentapp.core.records import ArtifactRecord, FileEntry, ListedFile, Member, Remote, Tag

Record = TypeVar("Record")
Written = TypeVar("Written")

RECORDS_TOPIC = "record"
"""Its messages are cache keys that have changed, "" for all."""

PUBLISHED_AT_ONCE = 100
CACHED_RECORDS = 100_000

REFUSED_SECONDS = 5.0
"""How long a database that took no write is left alone: each try may wait for its lock, with a device behind it."""


def now() -> datetime:
    """The time, aware."""
    return datetime.now(UTC)


class Lookup:
    """Reads and writes through a cache whose entries are trusted for `ttl_seconds`, and longer while the database is
    down: what is recorded is remembered first, so that it holds here even if it can't be written.
    """

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
        self._changes = 0
        self._distrusted_at = float("-inf")
        self._writing = asyncio.Lock()
        self._refused_until = float("-inf")
        self._used: dict[Digest, datetime] = {}
        coordination.subscribe(RECORDS_TOPIC, self._distrust)
        coordination.subscribe(RESYNC, lambda _message: self._distrust(""))

    async def _get(self, key: str, find: Callable[[], Awaitable[Record]], *, is_fresh: bool = False) -> Record:
        """What is cached, or found; `is_fresh`: found in any case, CatalogUnavailable if it can't be."""
        cached = self._cache.get(key)
        if not is_fresh and cached is not None and self._is_trusted(cached[0]):
            return cached[1]  # type: ignore[return-value]
        changes = self._changes
        try:
            found = await find()
        except CatalogUnavailable:
            if is_fresh or cached is None:
                raise
            return cached[1]  # type: ignore[return-value]
        if changes == self._changes:  # else what was found may be from before the change
            self._cache[key] = (self._clock(), found)
        return found

    def _is_trusted(self, cached_at: float) -> bool:
        return cached_at > max(self._distrusted_at, self._clock() - self._ttl_seconds)

    def _distrust(self, key: str) -> None:
        """Ask the database again, if it can be asked."""
        self._changes += 1
        if not key:
            self._distrusted_at = self._clock()
        elif (cached := self._cache.get(key)) is not None:
            self._cache[key] = (float("-inf"), cached[1])

    def _remember(self, key: str, value: object) -> None:
        self._changes += 1
        self._cache[key] = (self._clock(), value)

    def _forget(self, key: str) -> None:
        self._changes += 1
        self._cache.pop(key, None)

    async def _write(self, write: Callable[[], Awaitable[Written]], *changed: str) -> Written:
        """Write, one at a time, and tell the other processes which keys have changed. CatalogUnavailable."""
        async with self._writing:
            if self._clock() < self._refused_until:
                raise CatalogUnavailable("the catalog took no write a moment ago")
            try:
                written = await write()
            except CatalogUnavailable:
                self._refused_until = self._clock() + REFUSED_SECONDS
                raise
        for count, key in enumerate(changed, 1):
            self._coordination.publish(RECORDS_TOPIC, key)
            if count % PUBLISHED_AT_ONCE == 0:
                await asyncio.sleep(0)  # an index may name thousands: others get their turn
        return written

    # Registry

    async def tag(self, distribution: int, name: str, tag: str) -> Tag | None:
        """The tag as last seen."""
        return await self._get(
            f"tag:{distribution}:{name}:{tag}", lambda: self.catalog.find_tag(distribution, name, tag)
        )

    async def record_tag(self, distribution: int, name: str, tag: Tag) -> None:
        """Remember what a tag is now."""
        key = f"tag:{distribution}:{name}:{tag.name}"
        self._remember(key, tag)
        await self._write(lambda: self.catalog.record_tag(distribution, name, tag), key)

    async def forget_tag(self, distribution: int, name: str, tag: str) -> None:
        """It is gone upstream."""
        key = f"tag:{distribution}:{name}:{tag}"
        self._forget(key)
        await self._write(lambda: self.catalog.forget_tag(distribution, name, tag), key)

    async def member(self, distribution: int, name: str, digest: Digest) -> Member | None:
        """The permission to read a digest under a name."""
        key = f"member:{distribution}:{name}:{digest}"
        return await self._get(key, lambda: self.catalog.find_member(distribution, name, digest))

    async def record_members(self, distribution: int, name: str, members: Iterable[Member]) -> None:
        """Permit these."""
        permitted = {f"member:{distribution}:{name}:{member.digest}": member for member in members}
        for key, member in permitted.items():
            if self._cache.get(key, (0.0, None))[1] is None:  # what is known may be more
                self._remember(key, member)
        await self._write(lambda: self.catalog.record_members(distribution, name, permitted.values()), *permitted)
        for key in permitted:
            self._distrust(key)

    # Files

    async def file(self, distribution: int, path: str, *, is_fresh: bool = False) -> FileEntry | None:
        """What was stored for a path."""
        key = f"file:{distribution}:{path}"
        return await self._get(key, lambda: self.catalog.find_file(distribution, path), is_fresh=is_fresh)

    async def record_file(self, distribution: int, entry: FileEntry, *, replaces: int) -> bool:
        """Compare-and-set."""
        key = f"file:{distribution}:{entry.path}"
        written = await self._write(lambda: self.catalog.record_file(distribution, entry, replaces=replaces), key)
        if written:
            self._remember(key, entry)
        self._distrust(key)
        return written

    async def touch_file(self, distribution: int, path: str) -> None:
        """It is still the same upstream."""
        key, at = f"file:{distribution}:{path}", now()
        known = self._cache.get(key, (0.0, None))[1]
        if isinstance(known, FileEntry):
            self._remember(key, replace(known, checked_at=at))
        await self._write(lambda: self.catalog.touch_file(distribution, path, at), key)

    async def forget_file(self, distribution: int, path: str) -> None:
        """It is gone upstream."""
        key = f"file:{distribution}:{path}"
        self._forget(key)
        await self._write(lambda: self.catalog.forget_file(distribution, path), key)

    async def listed(self, remote: int, path: str) -> ListedFile | None:
        """A remote's own word on a path."""
        return await self._get(f"listed:{remote}:{path}", lambda: self.catalog.find_listed(remote, path))

    def listing_changed(self, remote: int) -> None:
        """A remote's listing has been replaced."""
        self._distrust("")
        self._coordination.publish(RECORDS_TOPIC, "")

    # Artifacts

    async def artifact(self, digest: Digest, *, is_fresh: bool = False) -> ArtifactRecord | None:
        """What is recorded of stored bytes."""
        return await self._get(f"artifact:{digest}", lambda: self.catalog.find_artifact(digest), is_fresh=is_fresh)

    async def record_artifact(self, record: ArtifactRecord) -> None:
        """It is stored now."""
        key = f"artifact:{record.digest}"
        self._remember(key, record)
        await self._write(lambda: self.catalog.record_artifact(record), key)
        self._distrust(key)  # what was known before is kept: see catalog.base

    async def forget_artifact(self, record: ArtifactRecord) -> None:
        """What this record tells of is no longer stored."""
        key = f"artifact:{record.digest}"
        self._forget(key)
        await self._write(lambda: self.catalog.forget_artifact(record.digest, stored_at=record.stored_at), key)

    async def record_source(self, digest: Digest, remote: Remote, path: str) -> None:
        """A remote has it, there."""
        await self._write(lambda: self.catalog.record_source(digest, remote.id, path))

    async def forget_source(self, digest: Digest, remote: Remote) -> None:
        """A remote answered 404 for an artifact: what is stored of it may be all there is, and stays (P9)."""
        with suppress(CatalogUnavailable):
            await self._write(lambda: self.catalog.forget_source(digest, remote.id))

    def used(self, digest: Digest) -> None:
        """Note a use; written in batches by `flush`."""
        self._used[digest] = now()

    async def flush(self) -> None:
        """Write the noted uses; on failure they are kept for the next time."""
        used, self._used = self._used, {}
        if not used:
            return
        try:
            await self._write(lambda: self.catalog.touch_artifacts(used))
        except CatalogUnavailable:
            self._used = used | self._used
