"""Where chunk lists come from: what is kept, what the metadata lists, what merely lies beside the file."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

import pytest

from contentapp.catalog.content import SqlContentCatalog
from contentapp.catalog.engine import open_catalog
from contentapp.coordination.local import LocalCoordination
from contentapp.core.chunks import ChunkList, dump_chunk_list, max_list_size
from contentapp.core.digest import Digest
from contentapp.core.errors import CatalogUnavailable
from contentapp.core.records import ListedFile, Source
from contentapp.core.settings import MIB, DistributionSettings, RemoteSettings
from contentapp.pipeline.chunked import KnownChunks
from contentapp.pipeline.chunklists import LEAST_SIZE, SUFFIX, ChunkLists
from contentapp.pipeline.fetch import Fetched, Refusal
from contentapp.pipeline.lookup import Lookup
from contentapp.upstream.base import UpstreamRequest
from tests.unit.pipeline.scripted import A, Answer, Reply, ScriptedFetcher

PATH = "images/file"
DIGEST = Digest.of(b"the whole")
EXPECTED = ListedFile(path=PATH, digest=DIGEST, size=LEAST_SIZE)
CHUNKS = ChunkList(LEAST_SIZE, MIB, DIGEST, bytes(32 * 8))
DOCUMENT = dump_chunk_list(CHUNKS)
MOST = max_list_size(LEAST_SIZE)
HASTY = RemoteSettings(chunk_list_wait_seconds=0.3)


class Catalog:
    """The true one's chunk lists, until it is down."""

    def __init__(self, true: SqlContentCatalog) -> None:
        self.true, self.is_down, self.asked = true, False, 0

    async def find_chunks(self, digest: Digest) -> tuple[ChunkList, bool] | None:
        self.asked += 1
        if self.is_down:
            raise CatalogUnavailable("down")
        return await self.true.find_chunks(digest)

    async def record_chunks(self, chunks: ChunkList, *, is_proven: bool, origin: str) -> None:
        if self.is_down:
            raise CatalogUnavailable("down")
        await self.true.record_chunks(chunks, is_proven=is_proven, origin=origin)


class Fetching(ScriptedFetcher):
    """One reply to each request; what was asked for."""

    def __init__(self, reply: Reply) -> None:
        super().__init__({})
        self._reply = reply
        self.requests: list[UpstreamRequest] = []
        self.digests: list[Digest | None] = []

    def reply(self, _name: str, wanted: UpstreamRequest) -> Reply:
        self.requests.append(wanted)
        return self._reply

    @asynccontextmanager
    async def open(
        self, sources: Sequence[Source], request: Callable[[Source], UpstreamRequest], **options: Any
    ) -> AsyncIterator[Fetched]:
        self.digests.append(options["digest"])
        assert options["is_aside"]
        async with super().open(sources, request, **options) as fetched:
            yield fetched


@dataclass
class Endless(Answer):
    """One whose body does not come."""

    async def read(self, max_size: int) -> bytes:
        await asyncio.Event().wait()
        raise AssertionError(max_size)


class World:
    def __init__(self, catalog: SqlContentCatalog, coordination: LocalCoordination) -> None:
        self.catalog = Catalog(catalog)
        self.lookup = Lookup(cast(Any, self.catalog), coordination, 60.0)
        self.fetcher = Fetching(Answer(body=DOCUMENT))

    @property
    def lists(self) -> ChunkLists:
        return ChunkLists(cast(Any, self.fetcher), self.lookup)

    async def of_file(self, expected: ListedFile = EXPECTED, listed: ListedFile | None = None) -> KnownChunks | None:
        async with asyncio.timeout(20):
            found = await self.lists.of_file(PATH, expected, listed, replace(A.remote, settings=HASTY))
        assert (self.fetcher.opened, self.fetcher.failures) == (0, []), "the file itself may be had there"
        return found


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    engine, coordination = await open_catalog(tmp_path / "catalog"), LocalCoordination(tmp_path)
    await coordination.start()
    yield World(SqlContentCatalog(engine, RemoteSettings(), DistributionSettings()), coordination)
    await coordination.close()
    await engine.close()


def listed(document: bytes = DOCUMENT, algorithm: str = "sha256", size: int | None = None) -> ListedFile:
    """What the metadata says of such a document."""
    actual = len(document) if size is None else size
    return ListedFile(path=PATH + SUFFIX, digest=Digest.of(document, algorithm), size=actual)


@pytest.mark.parametrize("algorithm", ["sha256", "sha512"])
async def test_one_that_the_metadata_lists_is_proven(world: World, algorithm: str) -> None:
    known = await world.of_file(listed=listed(algorithm=algorithm))
    assert known == KnownChunks(CHUNKS, is_proven=True, is_learned=False)
    (asked,) = world.fetcher.requests
    assert (asked.source.url, asked.max_body_size) == (f"http://a/{PATH}{SUFFIX}", MOST)
    assert not asked.is_last, "it is not worth a retry"
    assert world.fetcher.digests == [Digest.of(DOCUMENT, algorithm)]
    assert world.fetcher.failures_aside == []


async def test_one_that_lies_beside_the_file_is_a_hint(world: World) -> None:
    assert await world.of_file() == KnownChunks(CHUNKS, is_proven=False, is_learned=False)
    assert world.fetcher.digests == [None]


@pytest.mark.parametrize("is_listed", [True, False])
async def test_a_remotes_word_is_not_kept(world: World, is_listed: bool) -> None:
    """Another remote may list the same digest."""
    assert await world.of_file(listed=listed() if is_listed else None) is not None
    assert await world.catalog.true.find_chunks(DIGEST) is None


async def test_one_that_was_learned_needs_no_remote(world: World) -> None:
    await world.catalog.true.record_chunks(CHUNKS, is_proven=True, origin="copy")
    learned = KnownChunks(CHUNKS, is_proven=True, is_learned=True)
    assert await world.of_file() == learned
    assert await world.lists.of_digest(DIGEST, None) == learned
    assert await world.lists.known(DIGEST) == CHUNKS
    assert world.fetcher.requests == []


async def test_what_is_kept_as_a_hint_is_not_known(world: World) -> None:
    await world.catalog.true.record_chunks(CHUNKS, is_proven=False, origin="x")
    assert await world.lists.known(DIGEST) is None
    assert await world.lists.of_digest(DIGEST, LEAST_SIZE) is None


@pytest.mark.parametrize(("size", "is_looked_for"), [(None, True), (LEAST_SIZE, True), (LEAST_SIZE - 1, False)])
async def test_small_bodies_have_none(world: World, size: int | None, is_looked_for: bool) -> None:
    assert await world.lists.of_digest(DIGEST, size) is None
    assert bool(world.catalog.asked) == is_looked_for
    if size is not None:
        found = await world.of_file(replace(EXPECTED, size=size))
        assert (found is not None) == bool(world.fetcher.requests) == is_looked_for


async def test_without_the_catalog_the_remote_is_asked(world: World) -> None:
    world.catalog.is_down = True
    assert await world.lists.of_digest(DIGEST, LEAST_SIZE) is None
    assert await world.of_file(listed=listed()) == KnownChunks(CHUNKS, is_proven=True)
    with pytest.raises(CatalogUnavailable):
        await world.lists.known(DIGEST)


@pytest.mark.parametrize(("size", "is_asked_for"), [(MOST, True), (MOST + 1, False)])
async def test_one_that_is_listed_as_too_large_is_not_asked_for(world: World, size: int, is_asked_for: bool) -> None:
    found = await world.of_file(listed=listed(size=size))
    assert (found is not None) == bool(world.fetcher.requests) == is_asked_for


@pytest.mark.parametrize(
    ("reply", "failures"),
    [
        (Refusal("a", "absent", "answered 404", status=404), []),
        (Refusal("a", "failed", "refused"), []),
        (Refusal("a", "denied", "no"), []),
        (Answer(body=DOCUMENT, count=100), [("a", "cut")]),
        (Answer(body=b" " * (MOST + 1)), [("a", "too long")]),
    ],
    ids=["absent", "refused", "denied", "cut", "too long"],
)
@pytest.mark.parametrize("is_listed", [True, False])
async def test_one_that_does_not_come_is_none(
    world: World, reply: Reply, failures: list[tuple[str, str]], is_listed: bool
) -> None:
    world.fetcher = Fetching(reply)
    assert await world.of_file(listed=listed() if is_listed else None) is None
    assert world.fetcher.failures_aside == failures


async def test_one_that_comes_too_slowly_is_none(world: World) -> None:
    world.fetcher = Fetching(Endless())
    loop = asyncio.get_running_loop()
    began = loop.time()
    assert await world.of_file(listed=listed()) is None
    assert loop.time() - began >= HASTY.chunk_list_wait_seconds
    assert world.fetcher.failures_aside == [("a", f"{PATH}{SUFFIX}: too slow")]


OTHERS = [
    b"",
    b"{}",
    b"not JSON",
    dump_chunk_list(replace(CHUNKS, digest=Digest.of(b"another"))),
    dump_chunk_list(ChunkList(LEAST_SIZE - 1, MIB, DIGEST, bytes(32 * 8))),
]


@pytest.mark.parametrize("document", OTHERS, ids=["empty", "nothing", "text", "another digest", "another size"])
@pytest.mark.parametrize("is_listed", [True, False])
async def test_one_of_something_else_is_none(world: World, document: bytes, is_listed: bool) -> None:
    world.fetcher = Fetching(Answer(body=document))
    assert await world.of_file(listed=listed(document) if is_listed else None) is None


@pytest.mark.parametrize("algorithm", ["sha256", "sha512"])
async def test_one_that_is_not_what_the_metadata_says_is_none(world: World, algorithm: str) -> None:
    """Though it is a list of this file."""
    world.fetcher = Fetching(Answer(body=dump_chunk_list(replace(CHUNKS, digests=b"x" * 32 * 8))))
    assert await world.of_file(listed=listed(algorithm=algorithm)) is None
