"""Chunk lists: what is found is what was recorded, and a proven list is never lost to a hint."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

import pytest
from sqlalchemy import Row, select

from contentapp.catalog.tables import chunk_lists
from contentapp.core.chunks import MAX_CHUNK_SIZE, MAX_CHUNKS, MIN_CHUNK_SIZE, ChunkList
from contentapp.core.digest import Digest
from tests.conformance.catalog.conftest import Catalog, Place
from tests.conformance.catalog.samples import artifact, digest


def chunks(number: int, *, seed: int = 1, count: int = 3) -> ChunkList:
    """A list of the file with that digest; another seed, another list."""
    return ChunkList(count * MIN_CHUNK_SIZE - 5, MIN_CHUNK_SIZE, digest(number), bytes([seed]) * 32 * count)


async def the_row(catalog: Catalog) -> Row[Any]:
    return await catalog.engine.read(lambda connection: connection.execute(select(chunk_lists)).one())


@pytest.mark.parametrize("is_proven", [False, True])
@pytest.mark.parametrize(
    "recorded",
    [
        chunks(1),
        chunks(1, count=40_000),
        ChunkList(0, MAX_CHUNK_SIZE, digest(1), b""),
        ChunkList(MAX_CHUNKS * MAX_CHUNK_SIZE, MAX_CHUNK_SIZE, digest(1), bytes(range(32)) * MAX_CHUNKS),
        replace(chunks(1), digest=Digest("sha512", "0" * 128)),
    ],
    ids=["small", "megabyte", "empty", "largest", "sha512"],
)
async def test_a_list_comes_back_as_it_was(catalog: Catalog, recorded: ChunkList, *, is_proven: bool) -> None:
    assert await catalog.content.find_chunks(recorded.digest) is None
    await catalog.content.record_chunks(recorded, is_proven=is_proven, origin="listing")
    assert await catalog.content.find_chunks(recorded.digest) == (recorded, is_proven)
    assert await catalog.content.find_chunks(digest(2)) is None


@pytest.mark.parametrize(
    ("was_proven", "is_proven", "kept"),
    [(False, False, "first"), (False, True, "second"), (True, False, "first"), (True, True, "first")],
)
async def test_which_of_two_lists_stays(catalog: Catalog, *, was_proven: bool, is_proven: bool, kept: str) -> None:
    lists = {"first": chunks(1), "second": chunks(1, seed=2, count=2)}
    other = chunks(2, seed=3)
    await catalog.content.record_chunks(other, is_proven=False, origin="listing")
    await catalog.content.record_chunks(lists["first"], is_proven=was_proven, origin="listing")
    for _ in range(2):
        await catalog.content.record_chunks(lists["second"], is_proven=is_proven, origin="copy")
    assert await catalog.content.find_chunks(digest(1)) == (lists[kept], was_proven or is_proven)
    assert await catalog.content.find_chunks(digest(2)) == (other, False)


async def test_it_is_known_where_and_when_a_list_was_learned(catalog: Catalog) -> None:
    began = datetime.now(UTC)
    await catalog.content.record_chunks(chunks(1), is_proven=False, origin="listing")
    hint = await the_row(catalog)
    await catalog.content.record_chunks(chunks(1), is_proven=True, origin="copy")
    proven = await the_row(catalog)
    await catalog.content.record_chunks(chunks(1), is_proven=True, origin="referrer")
    assert (hint.learned_from, proven.learned_from) == ("listing", "copy")
    assert began <= hint.created_at < proven.created_at <= datetime.now(UTC)
    assert await the_row(catalog) == proven


async def test_a_list_outlives_its_artifact(catalog: Catalog) -> None:
    await catalog.content.record_artifact(artifact(1))
    await catalog.content.record_chunks(chunks(1), is_proven=True, origin="copy")
    await catalog.content.forget_artifact(digest(1))
    await catalog.upkeep.sweep()
    assert await catalog.content.find_chunks(digest(1)) == (chunks(1), True)


async def test_of_many_processes_a_proven_list_wins(place: Place) -> None:
    catalogs = [await place.open() for _ in range(4)]
    for number in range(5):
        records = [
            catalog.content.record_chunks(chunks(number, seed=seed), is_proven=seed == 2, origin="copy")
            for seed, catalog in enumerate(catalogs)
        ]
        await asyncio.gather(*records)
        for catalog in catalogs:
            assert await catalog.content.find_chunks(digest(number)) == (chunks(number, seed=2), True)
