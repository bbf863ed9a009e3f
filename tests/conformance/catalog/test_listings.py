"""Remotes' PULP_MANIFESTs: replaced as a whole, or not at all."""

from __future__ import annotations

import asyncio

import pytest

from contentapp.catalog.base import ListingSuperseded
from contentapp.catalog.tables import listed as listed_table
from contentapp.catalog.tables import listings
from contentapp.core.digest import Digest
from contentapp.core.errors import MetadataInvalid
from contentapp.core.records import ListedFile
from tests.conformance.catalog.conftest import Catalog, Place
from tests.conformance.catalog.samples import digest, listed, state


async def replace_listing(catalog: Catalog, remote: int, paths: list[str], *, of: int = 1, seconds: float = 0) -> None:
    listing = await catalog.content.begin_listing(remote)
    await catalog.content.add_listed(remote, listing, [listed(path, of) for path in paths])
    await catalog.content.finish_listing(listing, state(remote, entries=len(paths), seconds=seconds))


async def paths_of(catalog: Catalog, remote: int, prefix: str = "") -> list[str]:
    return [file.path for file in await catalog.content.listed_below(remote, prefix, 1000)]


async def rows_of(catalog: Catalog) -> int:
    return await catalog.engine.read(lambda connection: len(connection.execute(listed_table.select()).all()))


async def test_nothing_is_known_of_a_new_remote(catalog: Catalog) -> None:
    assert await catalog.content.find_listing(1) is None
    assert await catalog.content.find_listed(1, "a") is None
    assert await paths_of(catalog, 1) == []


async def test_entries_come_back_as_they_were(catalog: Catalog) -> None:
    file = ListedFile(path="a/b", digest=Digest("sha512", "ab" * 64), size=(1 << 63) - 1)
    listing = await catalog.content.begin_listing(1)
    await catalog.content.add_listed(1, listing, [file])
    await catalog.content.add_listed(1, listing, [])
    await catalog.content.finish_listing(listing, state(1, entries=1))
    assert await catalog.content.find_listed(1, "a/b") == file
    assert await catalog.content.listed_below(1, "a/", 5) == [file]
    assert await catalog.content.find_listing(1) == state(1, entries=1)


async def test_entries_are_scoped_by_the_remote(catalog: Catalog) -> None:
    await replace_listing(catalog, 1, ["a"], of=1)
    await replace_listing(catalog, 2, ["a", "b"], of=2)
    assert await catalog.content.find_listed(1, "a") == listed("a", 1)
    assert await catalog.content.find_listed(2, "a") == listed("a", 2)
    assert await catalog.content.find_listed(1, "b") is None


async def test_nothing_is_seen_before_it_is_finished(catalog: Catalog) -> None:
    await replace_listing(catalog, 1, ["a", "b"], of=1)
    listing = await catalog.content.begin_listing(1)
    await catalog.content.add_listed(1, listing, [listed("b", 2), listed("c", 2)])
    assert await paths_of(catalog, 1) == ["a", "b"]
    assert await catalog.content.find_listed(1, "b") == listed("b", 1)
    assert await catalog.content.find_listed(1, "c") is None
    await catalog.content.finish_listing(listing, state(1, entries=2, seconds=9))
    assert await paths_of(catalog, 1) == ["b", "c"]
    assert await catalog.content.find_listed(1, "b") == listed("b", 2)
    assert await catalog.content.find_listing(1) == state(1, entries=2, seconds=9)
    assert await rows_of(catalog) == 2


@pytest.mark.parametrize(
    ("before", "batch", "culprit"),
    [
        ([], ["x", "a", "b", "a"], "a"),
        (["a"], ["x", "b", "a"], "a"),
        (["a", "b"], ["b"], "b"),
        (["z"], ["x", "b", "z"], "z"),
    ],
)
async def test_a_path_listed_twice(catalog: Catalog, before: list[str], batch: list[str], culprit: str) -> None:
    listing = await catalog.content.begin_listing(1)
    await catalog.content.add_listed(1, listing, [listed(path) for path in before])
    with pytest.raises(MetadataInvalid, match=f"listed twice: '{culprit}'"):
        await catalog.content.add_listed(1, listing, [listed(path) for path in batch])
    await catalog.content.finish_listing(listing, state(1))
    assert await paths_of(catalog, 1) == before, "a batch is added whole or not at all"


async def test_a_long_path_is_not_repeated_whole_in_the_error(catalog: Catalog) -> None:
    listing = await catalog.content.begin_listing(1)
    with pytest.raises(MetadataInvalid) as caught:
        await catalog.content.add_listed(1, listing, [listed("x" * 100_000)] * 2)
    assert len(str(caught.value)) < 300


@pytest.mark.parametrize("file", [ListedFile(path="a", digest=digest(1), size=1 << 63), listed("a\udcff")])
async def test_what_no_database_takes_is_invalid(catalog: Catalog, file: ListedFile) -> None:
    listing = await catalog.content.begin_listing(1)
    with pytest.raises(MetadataInvalid):
        await catalog.content.add_listed(1, listing, [listed("b"), file])


async def test_a_later_beginning_supersedes_and_cleans_up(place: Place) -> None:
    slow, fast = await place.open(), await place.open()
    first = await slow.content.begin_listing(1)
    await slow.content.add_listed(1, first, [listed("a"), listed("b")])
    second = await fast.content.begin_listing(1)
    assert await rows_of(fast) == 0
    with pytest.raises(ListingSuperseded):
        await slow.content.add_listed(1, first, [listed("c")])
    with pytest.raises(ListingSuperseded):
        await slow.content.finish_listing(first, state(1))
    await fast.content.add_listed(1, second, [listed("d")])
    await fast.content.finish_listing(second, state(1, entries=1))
    assert await paths_of(slow, 1) == ["d"]


async def test_a_crashed_listing_of_one_remote_leaves_the_others_alone(catalog: Catalog) -> None:
    other = await catalog.content.begin_listing(2)
    await catalog.content.add_listed(2, other, [listed("o")])
    crashed = await catalog.content.begin_listing(1)
    await catalog.content.add_listed(1, crashed, [listed("a")])
    await replace_listing(catalog, 1, ["b"])
    await catalog.content.finish_listing(other, state(2, entries=1))
    assert await paths_of(catalog, 1) == ["b"]
    assert await paths_of(catalog, 2) == ["o"]


async def test_a_finished_listing_takes_no_more(catalog: Catalog) -> None:
    listing = await catalog.content.begin_listing(1)
    await catalog.content.finish_listing(listing, state(1))
    with pytest.raises(ListingSuperseded):
        await catalog.content.add_listed(1, listing, [listed("late")])
    with pytest.raises(ListingSuperseded):
        await catalog.content.finish_listing(listing, state(1))


async def test_a_listing_belongs_to_its_remote(catalog: Catalog) -> None:
    listing = await catalog.content.begin_listing(1)
    with pytest.raises(ListingSuperseded):
        await catalog.content.add_listed(2, listing, [listed("a")])
    with pytest.raises(ListingSuperseded):
        await catalog.content.finish_listing(listing, state(2))


async def test_a_revalidation_keeps_the_entries(catalog: Catalog) -> None:
    await replace_listing(catalog, 1, ["a"])
    await catalog.content.touch_listing(state(1, entries=0, seconds=60, etag='"n"'))
    assert await catalog.content.find_listing(1) == state(1, entries=1, seconds=60, etag='"n"')
    assert await paths_of(catalog, 1) == ["a"]


async def test_a_remote_without_one_any_more(catalog: Catalog) -> None:
    await replace_listing(catalog, 1, ["a"])
    gone = state(1, present=False, seconds=60, etag="")
    await catalog.content.touch_listing(gone)
    assert await catalog.content.find_listing(1) == gone
    assert await paths_of(catalog, 1) == []
    assert await rows_of(catalog) == 0
    await replace_listing(catalog, 1, ["b"], seconds=90)
    assert await paths_of(catalog, 1) == ["b"]


async def test_that_there_is_none_is_recorded(catalog: Catalog) -> None:
    await catalog.content.touch_listing(state(1, present=False))
    assert await catalog.content.find_listing(1) == state(1, present=False)


async def test_an_older_answer_changes_nothing(catalog: Catalog) -> None:
    await replace_listing(catalog, 1, ["a"], seconds=60)
    await catalog.content.touch_listing(state(1, present=False, seconds=59))
    await catalog.content.touch_listing(state(1, seconds=59, etag='"old"'))
    assert await catalog.content.find_listing(1) == state(1, entries=1, seconds=60)
    assert await paths_of(catalog, 1) == ["a"]


@pytest.mark.parametrize("prefix", ["", "a/", "a/b/", "none/"])
async def test_listed_below(catalog: Catalog, prefix: str) -> None:
    paths = ["a", "a-", "a/1", "a/b/1", "a/b/2", "a0", "b"]
    await replace_listing(catalog, 1, paths)
    expected = [path for path in paths if path.startswith(prefix)]
    assert await paths_of(catalog, 1, prefix) == expected
    assert [file.path for file in await catalog.content.listed_below(1, prefix, 1)] == expected[:1]


async def test_readers_see_the_old_or_the_new_listing_never_a_mixture(place: Place) -> None:
    writer, reader = await place.open(), await place.open()
    await replace_listing(writer, 1, [f"{number:03}" for number in range(100)], of=0)
    mixtures = []

    async def read(done: asyncio.Event) -> None:
        while not done.is_set():
            found = await reader.content.listed_below(1, "", 1000)
            if len(found) != 100 or len({file.size for file in found}) != 1:
                mixtures.append(found)

    done = asyncio.Event()
    task = asyncio.create_task(read(done))
    for of in range(1, 20):
        await replace_listing(writer, 1, [f"{number:03}" for number in range(100)], of=of, seconds=of)
    done.set()
    await task
    assert mixtures == []


async def test_leftovers_larger_than_one_transaction_go(catalog: Catalog) -> None:
    listing = await catalog.content.begin_listing(1)
    for start in range(0, 12_000, 4000):
        await catalog.content.add_listed(1, listing, [listed(str(start + number)) for number in range(4000)])
    await replace_listing(catalog, 1, ["a"])
    assert await rows_of(catalog) == 1
    assert await catalog.engine.read(lambda connection: len(connection.execute(listings.select()).all())) == 1
