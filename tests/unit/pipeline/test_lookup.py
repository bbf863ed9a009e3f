"""Records behind a cache, over a catalog that can be down, slow and changed by others."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any, cast

import pytest

from contentapp.coordination.base import RESYNC
from contentapp.core.digest import Digest
from contentapp.core.errors import CatalogUnavailable
from contentapp.core.records import ArtifactRecord, Tag
from contentapp.pipeline.lookup import RECORDS_TOPIC, REFUSED_SECONDS, Lookup

DIGEST = Digest.of(b"x")
AT = datetime(2024, 1, 1, tzinfo=UTC)
TAG = Tag(name="v1", digest=DIGEST, media_type="t", checked_at=AT, remote_id=1)
OTHER = replace(TAG, digest=Digest.of(b"y"))
TTL = 60.0


class Catalog:
    """One tag and one artifact; `is_down` makes every query fail. `found`: how often it was asked."""

    def __init__(self) -> None:
        self.tag: Tag | None = None
        self.artifact: ArtifactRecord | None = None
        self.is_down = False
        self.found = self.tried = 0
        self.gate: asyncio.Event | None = None

    async def find_tag(self, _distribution: int, _name: str, _tag: str) -> Tag | None:
        self.found += 1
        tag = self.tag
        if self.gate is not None:
            await self.gate.wait()
        self._check()
        return tag

    async def record_tag(self, _distribution: int, _name: str, tag: Tag) -> None:
        self.tried += 1
        self._check()
        self.tag = tag

    async def find_artifact(self, _digest: Digest) -> ArtifactRecord | None:
        self._check()
        return self.artifact

    async def record_artifact(self, record: ArtifactRecord) -> None:
        self._check()
        self.artifact = record

    def _check(self) -> None:
        if self.is_down:
            raise CatalogUnavailable("down")


class Topics:
    """The part of a coordination that a lookup uses; what it publishes comes back to it, as from another process."""

    def __init__(self) -> None:
        self.callbacks: dict[str, Callable[[str], None]] = {}

    def subscribe(self, topic: str, callback: Callable[[str], None]) -> None:
        self.callbacks[topic] = callback

    def publish(self, topic: str, message: str = "") -> None:
        self.callbacks[topic](message)


class World:
    """A lookup, what is behind it, and its clock."""

    def __init__(self) -> None:
        self.catalog, self.topics, self.now = Catalog(), Topics(), 1000.0
        self.lookup = Lookup(cast(Any, self.catalog), cast(Any, self.topics), TTL, lambda: self.now)

    async def tag(self) -> Tag | None:
        return await self.lookup.tag(1, "app", "v1")


@pytest.fixture
def world() -> World:
    return World()


async def test_is_asked_once_a_ttl(world: World) -> None:
    world.catalog.tag = TAG
    assert await world.tag() == await world.tag() == TAG
    assert world.catalog.found == 1
    world.now += TTL
    assert await world.tag() == TAG
    assert world.catalog.found == 2


@pytest.mark.parametrize("topic", [RECORDS_TOPIC, RESYNC])
async def test_another_processs_change_is_seen(world: World, topic: str) -> None:
    world.catalog.tag = TAG
    await world.tag()
    world.catalog.tag = OTHER
    world.now += 0.001
    world.topics.publish(topic, "tag:1:app:v1" if topic == RECORDS_TOPIC else "")
    assert await world.tag() == OTHER


@pytest.mark.parametrize("message", ["tag:1:app:v1", ""])
async def test_what_is_known_outlives_the_database(world: World, message: str) -> None:
    """Also what is out of date, or said to have changed: it is the best there is."""
    world.catalog.tag = TAG
    await world.tag()
    world.catalog.is_down = True
    world.topics.publish(RECORDS_TOPIC, message)
    world.now += 2 * TTL
    assert await world.tag() == TAG
    with pytest.raises(CatalogUnavailable):
        await world.lookup.tag(1, "app", "unknown")


async def test_what_can_not_be_recorded_is_remembered(world: World) -> None:
    world.catalog.is_down = True
    with pytest.raises(CatalogUnavailable):
        await world.lookup.record_tag(1, "app", TAG)
    assert await world.tag() == TAG
    assert world.catalog.found == 0


async def test_a_stored_artifact_is_known_when_the_database_fails_next(world: World) -> None:
    """Although it was looked up, in vain, before it was stored."""
    record = ArtifactRecord(digest=DIGEST, size=1, stored_at=AT, modified_at=AT)
    assert await world.lookup.artifact(DIGEST) is None
    await world.lookup.record_artifact(record)
    world.catalog.is_down = True
    assert await world.lookup.artifact(DIGEST) == record
    with pytest.raises(CatalogUnavailable):
        await world.lookup.artifact(DIGEST, is_fresh=True)


async def test_what_was_found_before_a_change_is_not_kept(world: World) -> None:
    """The query began, the tag was recorded, the query's old answer came."""
    world.catalog.gate = asyncio.Event()
    asked = asyncio.create_task(world.tag())
    await asyncio.sleep(0)
    await world.lookup.record_tag(1, "app", TAG)
    world.catalog.gate.set()
    assert await asked is None
    assert await world.tag() == TAG


async def test_a_database_that_refuses_is_left_alone_for_a_while(world: World) -> None:
    world.catalog.is_down = True
    refused = await asyncio.gather(*(world.lookup.record_tag(1, "app", TAG) for _ in range(5)), return_exceptions=True)
    assert all(isinstance(error, CatalogUnavailable) for error in refused)
    assert world.catalog.tried == 1
    world.catalog.is_down = False
    world.now += REFUSED_SECONDS
    await world.lookup.record_tag(1, "app", TAG)
    assert world.catalog.tag == TAG
