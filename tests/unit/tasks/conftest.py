"""A storage, a catalog and a coordination as the admin process has them, in a folder of the test's own."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from sqlalchemy import update

from contentapp.catalog.admin import SqlAdminCatalog
from contentapp.catalog.base import Resources
from contentapp.catalog.content import SqlContentCatalog
from contentapp.catalog.engine import CatalogEngine, open_catalog
from contentapp.catalog.tables import artifacts
from contentapp.catalog.upkeep import SqlUpkeepCatalog
from contentapp.coordination.local import LocalCoordination
from contentapp.core.digest import Digest
from contentapp.core.records import ArtifactRecord
from contentapp.core.settings import DistributionSettings, RemoteSettings
from contentapp.pipeline.lookup import RECORDS_TOPIC
from contentapp.storage.filesystem import FilesystemStorage
from contentapp.tasks.evict import Eviction
from contentapp.tasks.verify import Verdicts, Verifier

LONG_AGO = datetime(2024, 1, 1, tzinfo=UTC)
LIMIT = 1000


@dataclass
class Installation:
    """What the tasks work on. `changed`: the cache keys that were announced as changed."""

    folder: Path
    storage: FilesystemStorage
    engine: CatalogEngine
    catalog: SqlContentCatalog
    upkeep: SqlUpkeepCatalog
    coordination: LocalCoordination
    executor: ThreadPoolExecutor
    remote: int
    changed: list[str] = field(default_factory=list)

    def eviction(self, *, high: float = 0.9, low: float = 0.5) -> Eviction:
        stores = (self.storage, self.catalog, self.upkeep, self.coordination)
        return Eviction(*stores, high_watermark=high, low_watermark=low)

    def verifier(self, *, removing: asyncio.Lock | None = None, started_at: datetime | None = None) -> Verifier:
        """started_at: when the program was started, for it the time is an hour later now."""
        times = iter([] if started_at is None else [started_at])
        return Verifier(
            self.storage,
            self.catalog,
            self.upkeep,
            self.coordination,
            self.executor,
            removing=removing or asyncio.Lock(),
            clock=lambda: next(times, datetime.now(UTC)),
        )

    async def store(self, body: bytes) -> Digest:
        """Store bytes without a record, as a crash leaves them."""
        digest = Digest.of(body)
        writer = await self.storage.begin(str(digest), size=len(body), keep=True)
        await asyncio.to_thread(writer.write, [body])
        await writer.commit(digest)
        return digest

    async def add(self, body: bytes, *, used: float = 0.0, is_live: bool = True) -> Digest:
        """Store and record; `used` seconds after long ago for the last time."""
        digest = await self.store(body)
        used_at = LONG_AGO + timedelta(seconds=used)
        await self.catalog.record_artifact(
            ArtifactRecord(digest=digest, size=len(body), stored_at=used_at, modified_at=LONG_AGO, last_used_at=used_at)
        )
        if is_live:
            await self.catalog.record_source(digest, self.remote, "some/path")
        return digest

    async def pin(self, digest: Digest) -> None:
        statement = update(artifacts).where(artifacts.c.digest == str(digest)).values(pinned=True)
        await self.engine.write(lambda connection: connection.execute(statement).rowcount)

    def path(self, digest: Digest) -> Path:
        """The artifact's file."""
        encoded = digest.encoded
        return self.folder / "data" / "artifacts" / digest.algorithm / encoded[:2] / encoded[2:]

    async def heard(self) -> list[str]:
        """What was announced as changed, once there is something."""
        async with asyncio.timeout(5):
            while not self.changed:
                await asyncio.sleep(0.001)
        return self.changed

    async def is_stored(self, digest: Digest) -> bool:
        """Whether storage and catalog agree that it is there; an error when they don't agree."""
        is_there = await self.storage.find(digest) is not None
        assert is_there == (await self.catalog.find_artifact(digest) is not None)
        return is_there


@pytest.fixture
async def installation(tmp_path: Path) -> AsyncIterator[Installation]:
    async with AsyncExitStack() as stack:
        coordination = LocalCoordination(tmp_path / "run")
        await coordination.start()
        stack.push_async_callback(coordination.close)
        storage = FilesystemStorage(tmp_path / "data", run_dir=tmp_path / "run", limit=LIMIT)
        stack.push_async_callback(storage.close)
        engine = await open_catalog(tmp_path / "catalog.sqlite3")
        stack.push_async_callback(engine.close)
        executor = stack.enter_context(ThreadPoolExecutor(1))
        catalog = SqlContentCatalog(engine, RemoteSettings(), DistributionSettings())
        remote = {"name": "r", "type": "file", "url": "http://r.example/"}
        await SqlAdminCatalog(engine).apply(Resources(remotes=[remote]))
        found = await catalog.remotes()
        upkeep = SqlUpkeepCatalog(engine)
        made = Installation(tmp_path, storage, engine, catalog, upkeep, coordination, executor, found[0].id)
        coordination.subscribe(RECORDS_TOPIC, made.changed.append)
        yield made


@pytest.fixture
def found() -> Verdicts:
    return Verdicts()
