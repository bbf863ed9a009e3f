"""Artifacts, their sources, and what upkeep asks of them."""

from __future__ import annotations

import asyncio
from dataclasses import replace

import pytest
from sqlalchemy import update

from contentapp.catalog.tables import artifacts
from contentapp.core.records import ArtifactRecord
from tests.conformance.catalog.conftest import Catalog, Place
from tests.conformance.catalog.samples import artifact, at, digest, remote, resources


def numbers(found: object) -> list[int]:
    assert isinstance(found, list)
    return [int(record.digest.encoded, 16) for record in found]


async def add_remote(catalog: Catalog, name: str = "quay") -> int:
    await catalog.admin.apply(resources([remote(name)]))
    return next(found.id for found in await catalog.content.remotes() if found.name == name)


async def store(catalog: Catalog, number: int, *sources: int, stored: float = 0) -> None:
    await catalog.content.record_artifact(artifact(number, stored=stored))
    for source in sources:
        await catalog.content.record_source(digest(number), source, f"p/{number}")


async def test_an_artifact_comes_back_as_it_was(catalog: Catalog) -> None:
    record = replace(artifact(1, size=(1 << 62)), last_used_at=at(5))
    assert await catalog.content.find_artifact(digest(1)) is None
    await catalog.content.record_artifact(record)
    assert await catalog.content.find_artifact(digest(1)) == record


async def test_a_record_is_idempotent(catalog: Catalog) -> None:
    first = artifact(1, flight="first")
    await catalog.content.record_artifact(first)
    await catalog.content.record_artifact(
        replace(first, flight="second", modified_at=at(99), stored_at=at(50), last_used_at=at(60))
    )
    assert await catalog.content.find_artifact(digest(1)) == first


async def test_the_flight_of_an_adopted_artifact_is_filled_in(catalog: Catalog) -> None:
    await catalog.content.record_artifact(artifact(1, flight=""))
    await catalog.content.touch_artifacts({digest(1): at(7)})
    await catalog.content.record_artifact(artifact(1, flight="f"))
    assert await catalog.content.find_artifact(digest(1)) == replace(artifact(1), last_used_at=at(7))


async def test_a_forgotten_artifact_is_not_found_and_can_come_back(catalog: Catalog) -> None:
    await catalog.content.record_artifact(artifact(1))
    for _ in range(2):
        await catalog.content.forget_artifact(digest(1))
    assert await catalog.content.find_artifact(digest(1)) is None
    assert await catalog.upkeep.artifacts("", 10) == []
    again = artifact(1, stored=500, flight="second")
    await catalog.content.record_artifact(again)
    expected = replace(again, modified_at=artifact(1).modified_at)
    assert await catalog.content.find_artifact(digest(1)) == expected


async def test_a_record_that_is_newer_than_the_damage_stays(catalog: Catalog) -> None:
    await catalog.content.record_artifact(artifact(1))
    await catalog.content.forget_artifact(digest(1), stored_at=artifact(1).stored_at)
    await catalog.content.record_artifact(again := artifact(1, stored=500))
    await catalog.content.forget_artifact(digest(1), stored_at=artifact(1).stored_at)
    assert await catalog.content.find_artifact(digest(1)) is not None
    await catalog.content.forget_artifact(digest(1), stored_at=again.stored_at)
    assert await catalog.content.find_artifact(digest(1)) is None


async def test_last_use_moves_forward_only(catalog: Catalog) -> None:
    await catalog.content.record_artifact(artifact(1))
    for seconds in (5, 9, 7):
        await catalog.content.touch_artifacts({digest(1): at(seconds), digest(2): at(seconds)})
    await catalog.content.touch_artifacts({})
    assert await catalog.content.find_artifact(digest(1)) == replace(artifact(1), last_used_at=at(9))
    assert await catalog.content.find_artifact(digest(2)) is None


async def test_last_modified_is_the_first_seen(catalog: Catalog) -> None:
    assert await catalog.content.last_modified(digest(1), at(5)) == at(5)
    assert await catalog.content.last_modified(digest(1), at(3)) == at(5)
    assert await catalog.content.find_artifact(digest(1)) is None, "it is known, but not stored"
    await catalog.content.record_artifact(replace(artifact(1), modified_at=at(9)))
    assert await catalog.content.find_artifact(digest(1)) == replace(artifact(1), modified_at=at(5))


async def test_last_modified_of_a_stored_artifact(catalog: Catalog) -> None:
    await catalog.content.record_artifact(artifact(1))
    assert await catalog.content.last_modified(digest(1), at(5)) == artifact(1).modified_at
    await catalog.content.forget_artifact(digest(1))
    assert await catalog.content.last_modified(digest(1), at(5)) == artifact(1).modified_at


async def test_all_processes_agree_on_last_modified(place: Place) -> None:
    catalogs = [await place.open() for _ in range(3)]
    for number in range(5):
        seen = [catalog.content.last_modified(digest(number), at(n)) for n, catalog in enumerate(catalogs)]
        assert len(set(await asyncio.gather(*seen))) == 1


async def test_artifacts_in_pages(catalog: Catalog) -> None:
    for number in (5, 3, 9, 1, 7):
        await store(catalog, number)
    pages: list[list[ArtifactRecord]] = []
    after = ""
    while page := await catalog.upkeep.artifacts(after, 2):
        pages.append(list(page))
        after = str(page[-1].digest)
    assert [numbers(page) for page in pages] == [[1, 3], [5, 7], [9]]
    assert pages[0][0] == artifact(1)


async def test_totals(catalog: Catalog) -> None:
    assert (await catalog.upkeep.stored_size(), await catalog.upkeep.artifact_count()) == (0, 0)
    for number, size in ((1, 1 << 40), (2, 5), (3, 0)):
        await catalog.content.record_artifact(artifact(number, size=size))
    await catalog.content.forget_artifact(digest(2))
    await catalog.content.last_modified(digest(4), at(0))
    assert (await catalog.upkeep.stored_size(), await catalog.upkeep.artifact_count()) == (1 << 40, 2)


async def test_least_recently_used_first(catalog: Catalog) -> None:
    quay = await add_remote(catalog)
    for number, stored in ((1, 10), (2, 20), (3, 30), (4, 40)):
        await store(catalog, number, quay, stored=stored)
    await catalog.content.touch_artifacts({digest(1): at(35), digest(3): at(31)})
    assert numbers(await catalog.upkeep.evictable(10)) == [2, 3, 1, 4]
    assert numbers(await catalog.upkeep.evictable(2)) == [2, 3]


async def test_an_artifact_stored_again_is_the_youngest(catalog: Catalog) -> None:
    quay = await add_remote(catalog)
    for number, stored in ((1, 10), (2, 20)):
        await store(catalog, number, quay, stored=stored)
    await catalog.content.forget_artifact(digest(1))
    assert numbers(await catalog.upkeep.evictable(10)) == [2]
    await store(catalog, 1, stored=30)
    assert numbers(await catalog.upkeep.evictable(10)) == [2, 1]


async def test_only_what_has_a_live_source_is_evictable(catalog: Catalog) -> None:
    quay, ghcr = await add_remote(catalog, "quay"), await add_remote(catalog, "ghcr")
    await store(catalog, 1)
    await store(catalog, 2, quay)
    await store(catalog, 3, ghcr)
    await store(catalog, 4, quay, ghcr)
    await store(catalog, 5, 999)  # a remote removed while it delivered
    assert numbers(await catalog.upkeep.evictable(10)) == [2, 3, 4]
    for _ in range(2):
        await catalog.content.forget_source(digest(2), quay)
        await catalog.content.forget_source(digest(4), quay)
    assert numbers(await catalog.upkeep.evictable(10)) == [3, 4]
    await catalog.content.record_source(digest(2), quay, "other/path")
    assert numbers(await catalog.upkeep.evictable(10)) == [2, 3, 4]


async def test_what_a_removed_remote_gave_is_kept(catalog: Catalog) -> None:
    quay, ghcr = await add_remote(catalog, "quay"), await add_remote(catalog, "ghcr")
    await store(catalog, 1, quay)
    await store(catalog, 2, quay, ghcr)
    await catalog.admin.apply(resources([remote("ghcr")]), prune=True)
    assert numbers(await catalog.upkeep.evictable(10)) == [2]
    assert await add_remote(catalog, "quay") != quay
    assert numbers(await catalog.upkeep.evictable(10)) == [2], "a new remote of the same name gave nothing yet"


async def test_a_pinned_artifact_is_never_evictable(catalog: Catalog) -> None:
    quay = await add_remote(catalog)
    for number in (1, 2):
        await store(catalog, number, quay)
    pin = update(artifacts).where(artifacts.c.digest == str(digest(1))).values(pinned=True)
    await catalog.engine.write(lambda connection: connection.execute(pin))
    assert numbers(await catalog.upkeep.evictable(10)) == [2]
    await catalog.content.forget_artifact(digest(1))
    await store(catalog, 1, quay)
    assert numbers(await catalog.upkeep.evictable(10)) == [2], "a pin outlives the bytes"


@pytest.mark.parametrize("path", ["a", "b"])
async def test_a_source_may_be_recorded_again(catalog: Catalog, path: str) -> None:
    quay = await add_remote(catalog)
    await store(catalog, 1, quay)
    await catalog.content.record_source(digest(1), quay, path)
    assert numbers(await catalog.upkeep.evictable(10)) == [1]
