"""Verify: read stored artifacts again, take damaged ones out of the way, adopt unrecorded ones (P1, P5)."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import Executor
from dataclasses import dataclass
from datetime import datetime, timedelta

import structlog

from contentapp.catalog.base import ContentCatalog, UpkeepCatalog
from contentapp.coordination.base import Coordination
from contentapp.core.digest import Digest
from contentapp.core.errors import ArtifactDamaged, ArtifactNotFound
from contentapp.core.records import ArtifactRecord
from contentapp.core.settings import MIB
from contentapp.metrics import metrics
from contentapp.pipeline.lookup import RECORDS_TOPIC, now
from contentapp.storage.base import ArtifactReader, Storage, StoredArtifact

log = structlog.get_logger("contentapp.verify")

PAGE_SIZE = 500
READ_SIZE = MIB
UNRECORDED_SECONDS = 60.0
"""How long a living worker may take between storing an artifact and recording it."""

Progress = Callable[[int, int], None]
"""Called with what is done and what there is to do."""


@dataclass(slots=True)
class Verdicts:
    """What a run found. size: bytes of the verified ones."""

    verified: int = 0
    damaged: int = 0
    missing: int = 0
    adopted: int = 0
    size: int = 0


class Verifier:
    """Reads artifacts, at most `rate` bytes a second (None: as fast as it goes).

    removing: see tasks.evict.Eviction. clock: the time of now, aware.
    """

    def __init__(
        self,
        storage: Storage,
        catalog: ContentCatalog,
        upkeep: UpkeepCatalog,
        coordination: Coordination,
        executor: Executor,
        *,
        removing: asyncio.Lock,
        clock: Callable[[], datetime] = now,
    ) -> None:
        self._storage = storage
        self._catalog = catalog
        self._upkeep = upkeep
        self._coordination = coordination
        self._executor = executor
        self._removing = removing
        self._clock = clock
        self._started_at = clock()

    async def run(self, progress: Progress, *, rate: float | None = None) -> Verdicts:
        """Read every recorded artifact again."""
        found, after = Verdicts(), ""
        total = await self._upkeep.artifact_count()
        done = 0
        progress(0, total)
        while page := await self._upkeep.artifacts(after, PAGE_SIZE):
            for record in page:
                await self.check(record, found, rate=rate)
                done += 1
                progress(done, max(total, done))
            after = str(page[-1].digest)
        return found

    async def check(self, record: ArtifactRecord, found: Verdicts, *, rate: float | None) -> None:
        """Read one, and take it out of the way when it is not what it should be: the next request fetches it again."""
        try:
            reader = await self._storage.open(record.digest, size=record.size)
        except ArtifactNotFound:
            if await self._is_recorded(record.digest):
                found.missing += 1
                await self._forget(record.digest, "missing")
            return
        except ArtifactDamaged as error:
            found.damaged += 1
            await self._forget(record.digest, str(error))
            return
        if await self._is_right(reader, record.digest, record.size, rate):
            found.verified += 1
            found.size += record.size
        else:
            found.damaged += 1
            await self._forget(record.digest, "wrong bytes")

    async def _is_recorded(self, digest: Digest) -> bool:
        """Still: the record came from a page read some time ago, and eviction removes the file before the record."""
        async with self._removing:
            return await self._catalog.find_artifact(digest) is not None

    async def _is_right(self, reader: ArtifactReader, digest: Digest, size: int, rate: float | None) -> bool:
        """Whether the bytes match; closes the reader."""
        loop = asyncio.get_running_loop()
        hasher, position = digest.hasher(), 0

        def step(offset: int) -> int:
            data = reader.read(offset, READ_SIZE)
            hasher.update(data)
            return len(data)

        try:
            while position < size:
                started = loop.time()
                count = await self._in_thread(step, position)
                if count == 0:
                    return False
                position += count
                if rate:
                    await asyncio.sleep(max(0.0, count / rate - (loop.time() - started)))
        except ArtifactDamaged:
            return False
        finally:
            reader.close()
        return digest.matches(hasher)

    async def _in_thread(self, step: Callable[[int], int], offset: int) -> int:
        """As run_in_executor, but ends with the thread: nobody may close what it reads from before."""
        future = asyncio.get_running_loop().run_in_executor(self._executor, step, offset)
        try:
            return await asyncio.shield(future)
        except asyncio.CancelledError:
            await asyncio.wait([future])
            raise

    async def _forget(self, digest: Digest, reason: str) -> None:
        metrics.artifact_damaged()
        log.warning("artifact damaged", digest=str(digest), reason=reason)
        async with self._removing:
            await self._storage.quarantine(digest)
            await self._catalog.forget_artifact(digest)
        self._coordination.publish(RECORDS_TOPIC, f"artifact:{digest}")

    async def adopt(self) -> Verdicts:
        """Verify and record what is stored but unrecorded, after a crash between the rename and the record (P5)."""
        found = Verdicts()
        async for artifact in self._storage.scan():
            if not self._may_be_in_work(artifact) and not await self._is_recorded(artifact.digest):
                await self._adopt(artifact, found)
        return found

    def _may_be_in_work(self, artifact: StoredArtifact) -> bool:
        """Whether whoever stored it may be alive, and about to record it."""
        newest = self._clock() - timedelta(seconds=UNRECORDED_SECONDS)
        return artifact.stored_at > max(newest, self._started_at)

    async def _adopt(self, artifact: StoredArtifact, found: Verdicts) -> None:
        try:
            reader = await self._storage.open(artifact.digest, size=artifact.size)
        except (ArtifactNotFound, ArtifactDamaged):
            return  # not what the scan has seen any more: somebody is at it
        if not await self._is_right(reader, artifact.digest, artifact.size, None):
            found.damaged += 1
            await self._forget(artifact.digest, "unrecorded, and wrong")
            return
        modified_at = await self._catalog.last_modified(artifact.digest, artifact.stored_at)
        await self._catalog.record_artifact(
            ArtifactRecord(
                digest=artifact.digest,
                size=artifact.size,
                stored_at=artifact.stored_at,
                modified_at=modified_at,
                last_used_at=artifact.stored_at,
            )
        )
        self._coordination.publish(RECORDS_TOPIC, f"artifact:{artifact.digest}")
        found.adopted += 1
        log.info("adopted", digest=str(artifact.digest), size=artifact.size)
