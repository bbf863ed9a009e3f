"""Lists that are made of what was stored, and only of what is right."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, cast

import pytest

from contentapp.catalog.content import SqlContentCatalog
from contentapp.catalog.engine import open_catalog
from contentapp.coordination.local import LocalCoordination
from contentapp.core.chunks import ChunkHasher, ChunkList
from contentapp.core.digest import Digest
from contentapp.core.errors import ArtifactDamaged, CatalogUnavailable
from contentapp.core.settings import MIB, UNLIMITED, DistributionSettings, RemoteSettings
from contentapp.pipeline.chunklists import LEAST_SIZE
from contentapp.pipeline.learn import MOST_WAITING, Learner
from contentapp.pipeline.lookup import Lookup
from contentapp.storage.base import ArtifactReader, Storage
from contentapp.storage.memory import MemoryStorage

BODIES = [bytes([number]) * LEAST_SIZE + b"tail" for number in range(2)]
DIGESTS = [Digest.of(body) for body in BODIES]
FAST = float(UNLIMITED)


class World:
    """A storage, and a catalog behind a lookup."""

    def __init__(self, storage: MemoryStorage, catalog: SqlContentCatalog, coordination: LocalCoordination) -> None:
        self.storage, self.catalog = storage, catalog
        self.lookup = Lookup(catalog, coordination, 60.0)

    async def store(self, body: bytes, digest: Digest) -> None:
        writer = await self.storage.begin(str(digest), size=len(body), keep=True)
        await asyncio.to_thread(writer.write, [body])
        await writer.commit(digest)

    async def known(self, digest: Digest) -> ChunkList:
        """Return the list once it is there; it must be proven."""
        async with asyncio.timeout(20):
            while (found := await self.catalog.find_chunks(digest)) is None:
                await asyncio.sleep(0.005)
        assert found[1]
        return found[0]


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    engine, coordination, storage = (
        await open_catalog(tmp_path / "catalog"),
        LocalCoordination(tmp_path),
        MemoryStorage(),
    )
    await coordination.start()
    yield World(storage, SqlContentCatalog(engine, RemoteSettings(), DistributionSettings()), coordination)
    await storage.close()
    await coordination.close()
    await engine.close()


@asynccontextmanager
async def running(learner: Learner) -> AsyncIterator[None]:
    task = asyncio.create_task(learner.run())
    try:
        yield
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        assert task.cancelled()


def list_of(body: bytes) -> ChunkList:
    hasher = ChunkHasher()
    hasher.update(body)
    return hasher.finish()


async def test_the_lists_of_what_is_stored_are_learned(world: World) -> None:
    """Before it runs, and while it does."""
    learner = Learner(world.storage, world.lookup, FAST)
    for body, digest in zip(BODIES, DIGESTS, strict=True):
        await world.store(body, digest)
    learner.stored(DIGESTS[0], len(BODIES[0]))
    async with running(learner):
        assert await world.known(DIGESTS[0]) == list_of(BODIES[0])
        learner.stored(DIGESTS[1], len(BODIES[1]))
        assert await world.known(DIGESTS[1]) == list_of(BODIES[1])
    assert all([await world.storage.delete(digest) for digest in DIGESTS]), "no reader is left open"


async def test_a_copy_that_is_wrong_teaches_nothing(world: World) -> None:
    learner = Learner(world.storage, world.lookup, FAST)
    await world.store(b"x" + BODIES[0][1:], DIGESTS[0])
    await world.store(BODIES[1], DIGESTS[1])
    async with running(learner):
        for body, digest in zip(BODIES, DIGESTS, strict=True):
            learner.stored(digest, len(body))
        await world.known(DIGESTS[1])
    assert await world.catalog.find_chunks(DIGESTS[0]) is None
    assert await world.catalog.find_chunks(Digest.of(b"x" + BODIES[0][1:])) is None


async def test_it_reads_no_faster_than_it_may(world: World) -> None:
    loop, learner = asyncio.get_running_loop(), Learner(world.storage, world.lookup, 32 * MIB)
    await world.store(BODIES[0], DIGESTS[0])
    learner.stored(DIGESTS[0], len(BODIES[0]))
    began = loop.time()
    async with running(learner):
        await world.known(DIGESTS[0])
    assert loop.time() - began >= len(BODIES[0]) / (32 * MIB)


async def test_what_it_reads_is_let_go_when_it_is_cancelled(world: World) -> None:
    reads = Reads(world.storage)
    learner = Learner(cast(Storage, reads), world.lookup, MIB)
    await world.store(BODIES[0], DIGESTS[0])
    learner.stored(DIGESTS[0], len(BODIES[0]))
    async with running(learner):
        await reads.opened.wait()
        assert not await world.storage.delete(DIGESTS[0])
    assert await world.storage.delete(DIGESTS[0])
    assert await world.catalog.find_chunks(DIGESTS[0]) is None


class Reads:
    """A storage that says what was opened."""

    def __init__(self, storage: MemoryStorage) -> None:
        self._storage = storage
        self.asked: list[Digest] = []
        self.opened = asyncio.Event()
        self.readers = 0

    async def open(self, digest: Digest) -> ArtifactReader:
        self.asked.append(digest)
        reader = await self._storage.open(digest)
        self.opened.set()
        return reader


async def test_what_is_known_is_not_read_again(world: World) -> None:
    reads = Reads(world.storage)
    learner = Learner(cast(Storage, reads), world.lookup, FAST)
    await world.store(BODIES[1], DIGESTS[1])
    await world.catalog.record_chunks(list_of(BODIES[0]), is_proven=True, origin="copy")
    for body, digest in zip(BODIES, DIGESTS, strict=True):
        learner.stored(digest, len(body))
    async with running(learner):
        await world.known(DIGESTS[1])
    assert reads.asked == [DIGESTS[1]]


class Catalog:
    """Remembers what it was asked for; can be down, and asks for no reading."""

    def __init__(self, *, is_down: bool = False, fails_to_record: bool = False) -> None:
        self.is_down, self.fails_to_record = is_down, fails_to_record
        self.asked: list[Digest] = []
        self.changed = asyncio.Condition()

    async def find_chunks(self, digest: Digest) -> None:
        async with self.changed:
            self.asked.append(digest)
            self.changed.notify_all()
        if self.is_down:
            raise CatalogUnavailable("down")

    async def record_chunks(self, *_: object, **__: object) -> None:
        raise CatalogUnavailable("down")

    async def until(self, count: int) -> None:
        async with asyncio.timeout(20), self.changed:
            await self.changed.wait_for(lambda: len(self.asked) >= count)


def over(catalog: Catalog, storage: Any, rate: float = FAST) -> Learner:
    class Silent:
        def subscribe(self, _topic: str, _callback: object) -> None:
            return None

    return Learner(storage, Lookup(cast(Any, catalog), cast(Any, Silent()), 60.0), rate)


@pytest.mark.parametrize("is_down", [True, False], ids=["catalog down", "not stored"])
async def test_one_that_fails_does_not_stop_the_others(world: World, is_down: bool) -> None:
    catalog = Catalog(is_down=is_down)
    learner = over(catalog, world.storage)
    async with running(learner):
        learner.stored(DIGESTS[0], LEAST_SIZE)
        await catalog.until(1)
        learner.stored(DIGESTS[1], LEAST_SIZE)
        await catalog.until(2)
    assert catalog.asked == DIGESTS


async def test_a_list_that_can_not_be_recorded_does_not_stop_the_others(world: World) -> None:
    catalog = Catalog()
    learner = over(catalog, world.storage)
    await world.store(BODIES[0], DIGESTS[0])
    async with running(learner):
        learner.stored(DIGESTS[0], LEAST_SIZE)
        learner.stored(DIGESTS[1], LEAST_SIZE)
        await catalog.until(2)


async def test_a_copy_that_can_not_be_read_is_let_go(world: World) -> None:
    closed: list[bool] = []

    class Damaged:
        def read(self, _offset: int, _size: int) -> bytes:
            raise ArtifactDamaged("read error")

        def close(self) -> None:
            closed.append(True)

    class Storing:
        async def open(self, _digest: Digest) -> Damaged:
            return Damaged()

    catalog = Catalog()
    learner = over(catalog, Storing())
    async with running(learner):
        learner.stored(DIGESTS[0], LEAST_SIZE)
        learner.stored(DIGESTS[1], LEAST_SIZE)
        await catalog.until(2)
    assert closed


@pytest.mark.parametrize(
    ("rate", "size", "is_learned"), [(FAST, LEAST_SIZE, True), (FAST, LEAST_SIZE - 1, False), (0.0, LEAST_SIZE, False)]
)
async def test_what_is_learned_at_all(world: World, rate: float, size: int, is_learned: bool) -> None:
    catalog = Catalog()
    learner = over(catalog, world.storage, rate)
    learner.stored(DIGESTS[0], size)
    learner._rate = FAST
    learner.stored(DIGESTS[1], LEAST_SIZE)
    async with running(learner):
        await catalog.until(1 + is_learned)
    assert catalog.asked == DIGESTS[0 if is_learned else 1 :]


async def test_of_too_many_the_oldest_are_forgotten(world: World) -> None:
    catalog = Catalog()
    learner, digests = over(catalog, world.storage), [Digest.of(str(n).encode()) for n in range(MOST_WAITING + 1)]
    for digest in digests:
        learner.stored(digest, LEAST_SIZE)
    async with running(learner):
        await catalog.until(MOST_WAITING)
    assert catalog.asked == digests[1:]
