"""Eviction: least recently used artifacts go, from the high watermark down to the low one (P9), beside the requests."""

from __future__ import annotations

import asyncio

import structlog

from contentapp.catalog.base import ContentCatalog, UpkeepCatalog
from contentapp.coordination.base import Coordination
from contentapp.core.records import ArtifactRecord
from contentapp.core.settings import MIB
from contentapp.metrics import metrics
from contentapp.pipeline.lookup import RECORDS_TOPIC
from contentapp.storage.base import Storage, StorageUse

log = structlog.get_logger("contentapp.evict")

BATCH_SIZE = 200
LARGEST_MARGIN = 64 * MIB
"""What the storage leaves free on the disk for everybody else, or 1 % of it."""


class Eviction:
    """Makes room. What is pinned, in use or without a live source stays.

    removing: held while an artifact is gone from the storage and its record is not gone yet, so that nobody takes that
    for damage.
    """

    def __init__(
        self,
        storage: Storage,
        catalog: ContentCatalog,
        upkeep: UpkeepCatalog,
        coordination: Coordination,
        *,
        high_watermark: float,
        low_watermark: float,
    ) -> None:
        self._storage = storage
        self._catalog = catalog
        self._upkeep = upkeep
        self._coordination = coordination
        self._high = high_watermark
        self._low = low_watermark
        self._running = asyncio.Lock()
        self._is_stuck = False
        self.removing = asyncio.Lock()

    async def run(self, wanted: int = 0, *, is_forced: bool = False) -> int:
        """Make room down to the low watermark, if the high one is passed; the bytes that were freed.

        wanted: bytes that a write has found no room for: it is made, even below the high watermark, if it can be.
        is_forced: down to the low watermark in any case.
        """
        async with self._running:  # two at a time would each free the whole
            use = await self._storage.use()
            room = _room(use)
            if wanted > room:
                wanted = 0  # everything would go for nothing
            if not (wanted or is_forced or use.used > room * self._high):
                self._is_stuck = False
                return 0
            excess = use.used - int(min(room * self._low, room - wanted))
            return await self._free(excess) if excess > 0 else 0

    async def _free(self, excess: int) -> int:
        freed = 0
        in_use: set[str] = set()
        while freed < excess:
            page = await self._upkeep.evictable(BATCH_SIZE + len(in_use))
            candidates = [record for record in page if str(record.digest) not in in_use]
            if not candidates:
                break
            for record in candidates:
                if freed >= excess:
                    break
                if await self._evict(record):
                    freed += record.size
                else:
                    in_use.add(str(record.digest))
        self._tell(freed, max(0, excess - freed))
        return freed

    async def _evict(self, record: ArtifactRecord) -> bool:
        """The file goes first: a record without a file is found out at the next hit, a file without one is not."""
        async with self.removing:
            if not await self._storage.delete(record.digest):
                return False
            await self._catalog.forget_artifact(record.digest)
        self._coordination.publish(RECORDS_TOPIC, f"artifact:{record.digest}")
        metrics.eviction(record.size)
        return True

    def _tell(self, freed: int, missing: int) -> None:
        """Once, not every few seconds, that what is left can't go."""
        if freed:
            log.info("evicted", size=freed)
        if missing and not self._is_stuck:
            log.warning("nothing more can be evicted: the rest is pinned, in use or without a source", missing=missing)
        self._is_stuck = missing > 0


def _room(use: StorageUse) -> int:
    """The most that may be used: by the quota, and by what the disk has for us."""
    on_disk = use.used + use.free
    return min(use.limit, on_disk - min(LARGEST_MARGIN, on_disk // 100))
