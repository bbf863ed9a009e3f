"""Files, their compare-and-set, and folders."""

from __future__ import annotations

import asyncio
from dataclasses import replace

import pytest

from tests.conformance.catalog.conftest import Catalog, Place
from tests.conformance.catalog.samples import at, entry

PATH = "os/disk.qcow2"


async def test_an_unknown_file_is_none(catalog: Catalog) -> None:
    assert await catalog.content.find_file(1, PATH) is None


async def test_a_file_comes_back_as_it_was(catalog: Catalog) -> None:
    assert await catalog.content.record_file(1, entry(), replaces=0)
    assert await catalog.content.find_file(1, PATH) == replace(entry(), revision=1)


async def test_files_are_scoped_by_the_distribution(catalog: Catalog) -> None:
    await catalog.content.record_file(1, entry(), replaces=0)
    assert await catalog.content.find_file(2, PATH) is None
    assert await catalog.content.files_below(2, "", 10) == []


@pytest.mark.parametrize(
    ("recorded", "replaces", "is_written"), [(0, 0, 1), (0, 1, 0), (1, 0, 0), (1, 1, 1), (2, 1, 0)]
)
async def test_compare_and_set(catalog: Catalog, recorded: int, replaces: int, is_written: int) -> None:
    for revision in range(recorded):
        assert await catalog.content.record_file(1, entry(of=revision), replaces=revision)
    before = await catalog.content.find_file(1, PATH)
    new = replace(entry(of=99), revision=55)
    assert await catalog.content.record_file(1, new, replaces=replaces) is bool(is_written)
    after = await catalog.content.find_file(1, PATH)
    assert after == (replace(new, revision=replaces + 1) if is_written else before)


async def test_one_of_many_processes_wins(place: Place) -> None:
    catalogs = [await place.open() for _ in range(3)]
    for revision in range(5):
        won = await asyncio.gather(
            *(
                catalog.content.record_file(1, entry(of=number), replaces=revision)
                for number, catalog in enumerate(catalogs)
            )
        )
        found = await catalogs[0].content.find_file(1, PATH)
        assert sorted(won) == [False, False, True]
        assert found == replace(entry(of=won.index(True)), revision=revision + 1)


async def test_touch_moves_the_time_forward_only(catalog: Catalog) -> None:
    await catalog.content.record_file(1, entry(), replaces=0)
    for seconds in (5, 3):
        await catalog.content.touch_file(1, PATH, at(seconds))
    assert await catalog.content.find_file(1, PATH) == replace(entry(), checked_at=at(5), revision=1)


async def test_touching_what_is_not_there_makes_nothing(catalog: Catalog) -> None:
    await catalog.content.touch_file(1, PATH, at(5))
    assert await catalog.content.find_file(1, PATH) is None


async def test_a_forgotten_file_is_gone(catalog: Catalog) -> None:
    await catalog.content.record_file(1, entry(), replaces=0)
    for _ in range(2):
        await catalog.content.forget_file(1, PATH)
    assert await catalog.content.find_file(1, PATH) is None
    assert await catalog.content.record_file(1, entry(), replaces=0)


PATHS = [
    "a",
    "a-b/1",
    "a.b",
    "a/",
    "a/1",
    "a/b/2",
    "a/ü",
    "a0",
    "ab/1",
    "A/1",
    "%/x",
    "_/x",
    "a/b/\U0001f600",
    "a/\U0010ffff/z",
]


@pytest.mark.parametrize("prefix", ["", "a/", "a/b/", "%/", "_/", "none/", "A/"])
@pytest.mark.parametrize("limit", [0, 2, 100])
async def test_files_below(catalog: Catalog, prefix: str, limit: int) -> None:
    for path in PATHS:
        await catalog.content.record_file(1, entry(path), replaces=0)
    found = await catalog.content.files_below(1, prefix, limit)
    assert [file.path for file in found] == sorted(path for path in PATHS if path.startswith(prefix))[:limit]
