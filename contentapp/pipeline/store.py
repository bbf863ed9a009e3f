"""Store: small bodies that were verified in memory, and what is recorded of every verified body."""

from __future__ import annotations

import asyncio
import os
from concurrent.futures import Executor
from dataclasses import dataclass
from datetime import datetime

import structlog
from cachetools import LRUCache

from contentapp.core.digest import Digest
from contentapp.core.errors import ArtifactDamaged, ArtifactNotFound, CatalogUnavailable, StorageError
from contentapp.core.records import ArtifactRecord, Source
from contentapp.metrics import metrics
from contentapp.pipeline.lookup import Lookup, now
from contentapp.storage.base import ArtifactReader, Storage

log = structlog.get_logger("contentapp.store")

READ_SIZE = 1024 * 1024
VERIFIED_REMEMBERED = 1_000_000
MEMORY_ITEM_SIZE = 256 * 1024
"""Larger bodies are not kept in memory."""


@dataclass(frozen=True, slots=True)
class Small:
    """A small verified body, whole."""

    body: bytes
    modified_at: datetime


class Store:
    """The storage, its records, and a memory of small bodies."""

    def __init__(self, storage: Storage, lookup: Lookup, executor: Executor, memory_size: int) -> None:
        self._storage = storage
        self._lookup = lookup
        self._executor = executor
        self._verified: LRUCache[Digest, None] = LRUCache(VERIFIED_REMEMBERED)
        self._memory: LRUCache[Digest, Small] = LRUCache(memory_size, getsizeof=lambda small: len(small.body))

    async def open(
        self, digest: Digest, *, verify_on_read: str = "never"
    ) -> tuple[ArtifactRecord, ArtifactReader] | None:
        """A stored artifact, open; None when it is not recorded, missing or damaged (then it is forgotten: P7).

        verify_on_read: as the setting: read it all again first, always or once in the life of this process.
        """
        record = await self._lookup.artifact(digest)
        if record is None:
            return None
        try:
            reader = await self._storage.open(digest, size=record.size)
        except ArtifactNotFound as error:
            if await self._is_recorded(digest):  # else it was evicted, and we had not heard
                await self._damaged_unless_there(record, str(error))
            return None
        except ArtifactDamaged as error:
            await self._damaged_unless_there(record, str(error))
            return None
        except StorageError as error:
            metrics.storage_write_error("read")
            log.warning("storage can't be read", error=str(error))
            return None
        if verify_on_read == "always" or (verify_on_read == "first_after_start" and digest not in self._verified):
            if not await self._is_right(digest, record.size, reader):
                reader.close()
                await self.damaged(record, "wrong bytes")
                return None
            self._verified[digest] = None
        self._lookup.used(digest)
        return record, reader

    async def _is_right(self, digest: Digest, size: int, reader: ArtifactReader) -> bool:
        """Whether the bytes on disk are those of the digest, in a thread."""

        def check() -> bool:
            hasher, position = digest.hasher(), 0
            while position < size and (data := reader.read(position, READ_SIZE)):
                hasher.update(data)
                position += len(data)
            return digest.matches(hasher)

        try:
            return await asyncio.to_thread(check)  # not among the writers: a long check must not hold up intake
        except ArtifactDamaged:
            return False

    async def has(self, digest: Digest) -> bool:
        """Whether it is recorded and there with its size; asks the catalog itself, not the cache."""
        record = await self._lookup.artifact(digest, is_fresh=True)
        if record is None:
            return False
        return await self._is_there(record)

    async def _is_there(self, record: ArtifactRecord) -> bool:
        found = await self._storage.find(record.digest)
        return found is not None and found.size == record.size

    async def damaged(self, record: ArtifactRecord, reason: str, reader: ArtifactReader | None = None) -> None:
        """Take a damaged or missing artifact out of the way, so that it is fetched again.

        reader: where that was seen; if its file has lost its name since, what is stored now is another one.
        """
        if reader is not None and not os.fstat(reader.fileno()).st_nlink:
            return
        digest = record.digest
        metrics.artifact_damaged()
        log.warning("artifact missing or damaged", digest=str(digest), reason=reason)
        self._memory.pop(digest, None)
        try:
            await self._storage.quarantine(digest)
            await self._lookup.forget_artifact(record)
        except (StorageError, CatalogUnavailable) as error:
            log.warning("damaged artifact not removed", digest=str(digest), error=str(error))

    async def _damaged_unless_there(self, record: ArtifactRecord, reason: str) -> None:
        """As `damaged`, unless another process has put it right since it was opened."""
        try:
            is_there = await self._is_there(record)
        except StorageError as error:
            log.warning("storage can't be read", error=str(error))
            return
        if not is_there:
            await self.damaged(record, reason)

    async def _is_recorded(self, digest: Digest) -> bool:
        try:
            return await self._lookup.artifact(digest, is_fresh=True) is not None
        except CatalogUnavailable:
            return True

    async def read(self, digest: Digest) -> Small | None:
        """A small artifact's bytes, verified again on their way from the disk; None when it is not there or damaged."""
        if (held := self._memory.get(digest)) is not None:
            self._lookup.used(digest)
            return held
        opened = await self.open(digest)
        if opened is None:
            return None
        record, reader = opened
        try:
            body = await asyncio.get_running_loop().run_in_executor(self._executor, reader.read, 0, record.size)
        except ArtifactDamaged:
            body = b""
        finally:
            reader.close()
        if Digest.of(body, digest.algorithm) != digest:
            await self.damaged(record, "wrong bytes")
            return None
        return self._remember(digest, Small(body, record.modified_at))

    def _remember(self, digest: Digest, small: Small) -> Small:
        if len(small.body) <= min(MEMORY_ITEM_SIZE, self._memory.maxsize):
            self._memory[digest] = small
        return small

    async def keep(self, digest: Digest, body: bytes, modified_at: datetime, source: Source) -> bool:
        """Store a small verified body and record it; whether that went well. It never fails the delivery (P7)."""
        self._remember(digest, Small(body, modified_at))
        try:
            await self._lookup.record_source(digest, source.remote, source.path)
            writer = await self._storage.begin(str(digest), size=len(body), keep=True)
            try:
                await asyncio.get_running_loop().run_in_executor(self._executor, writer.write, [body])
                await writer.commit(digest)
            except BaseException:
                await asyncio.shield(writer.abort())
                raise
            await self.record(digest, len(body), flight="", modified_at=modified_at)
        except (StorageError, CatalogUnavailable) as error:
            metrics.storage_write_error("commit")
            log.warning("not stored", digest=str(digest), error=str(error))
            return False
        return True

    async def record(self, digest: Digest, size: int, *, flight: str, modified_at: datetime | None) -> None:
        """Record that an artifact is stored now; the first `modified_at` recorded for its bytes stays."""
        at = now()
        await self._lookup.record_artifact(
            ArtifactRecord(
                digest=digest,
                size=size,
                flight=flight,
                stored_at=at,
                modified_at=modified_at or at,
                last_used_at=at,
            )
        )

    async def first_seen(self, digest: Digest, modified_at: datetime) -> datetime:
        """The Last-Modified that these bytes had when they were first seen, else the given one."""
        try:
            return await self._lookup.catalog.find_modified(digest) or modified_at
        except CatalogUnavailable:
            return modified_at
