"""Several processes on one database, and processes that die."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import IO

import pytest

from contentapp.core.errors import MetadataInvalid
from tests.conformance.catalog.conftest import Catalog, Place
from tests.conformance.catalog.samples import artifact, at, digest, listed, remote, resources, tag

WRITER = """
import asyncio, itertools, sys
from tests.conformance.catalog.conftest import Catalog
from tests.conformance.catalog.samples import artifact, digest, listed, remote, resources, tag
from contentapp.catalog.engine import open_catalog

async def artifacts(catalog):
    for number in itertools.count():
        await catalog.content.record_artifact(artifact(number))
        yield number

async def listing(catalog):
    listing = await catalog.content.begin_listing(1)
    for number in itertools.count():
        await catalog.content.add_listed(1, listing, [listed(f"{number}/{n}") for n in range(500)])
        yield number

async def apply(catalog):
    for number in itertools.count():
        names = [f"{number}-{n}" for n in range(50)]
        await catalog.admin.apply(resources([remote(name) for name in names]), prune=True)
        yield number

async def main():
    catalog = Catalog(await open_catalog(sys.argv[2]))
    async for number in globals()[sys.argv[1]](catalog):
        print(number, flush=True)

asyncio.run(main())
"""


@contextmanager
def writer(place: Place, what: str) -> Iterator[IO[str]]:
    """The output of another process that writes without end, and is killed at the end of the block."""
    command = [sys.executable, "-c", WRITER, what, place.url]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            yield process.stdout
        finally:
            process.kill()


def kill_while_it_writes(place: Place, what: str, *, after: int) -> int:
    """The last number whose write the other process was told to be done."""
    with writer(place, what) as output:
        for _ in range(after):
            assert output.readline()
    return after - 1


@pytest.mark.parametrize("after", [1, 20, 57])
async def test_a_kill_loses_no_artifact(place: Place, after: int) -> None:
    last = await asyncio.to_thread(kill_while_it_writes, place, "artifacts", after=after)
    catalog = await place.open()
    for number in range(last + 1):
        assert await catalog.content.find_artifact(digest(number)) == artifact(number)
    assert await integrity(catalog) == "ok"


async def test_a_killed_listing_was_never_there(place: Place) -> None:
    await asyncio.to_thread(kill_while_it_writes, place, "listing", after=5)
    catalog = await place.open()
    assert await catalog.content.find_listing(1) is None
    assert await catalog.content.listed_below(1, "", 10) == []
    listing = await catalog.content.begin_listing(1)
    await catalog.content.add_listed(1, listing, [listed("0/0")])
    assert await integrity(catalog) == "ok"


async def test_a_killed_apply_was_whole_or_not_at_all(place: Place) -> None:
    last = await asyncio.to_thread(kill_while_it_writes, place, "apply", after=7)
    catalog = await place.open()
    names = [found.name for found in await catalog.content.remotes()]
    number = int(names[0].partition("-")[0])
    assert number >= last
    assert names == [f"{number}-{n}" for n in range(50)]


async def integrity(catalog: Catalog) -> str:
    return str(
        await catalog.engine.read(lambda connection: connection.exec_driver_sql("PRAGMA integrity_check").scalar())
    )


async def test_reads_go_on_beside_a_writing_process(place: Place) -> None:
    catalog = await place.open()
    with writer(place, "artifacts") as output:
        for _ in range(30):
            number = int(await asyncio.to_thread(output.readline))
            assert await catalog.content.find_artifact(digest(number)) == artifact(number)
            await catalog.content.record_tag(1, "n", tag(seconds=number))
    assert await catalog.content.find_tag(1, "n", "latest") == tag(seconds=29)


async def test_a_small_write_is_not_starved_by_a_long_listing(place: Place) -> None:
    catalog = await place.open()
    with writer(place, "listing") as output:
        await asyncio.to_thread(output.readline)
        async with asyncio.timeout(20):
            for number in range(10):
                await catalog.content.touch_artifacts({digest(number): at(0)})


async def test_many_writers_of_many_processes(place: Place) -> None:
    catalogs = [await place.open() for _ in range(3)]
    writes = [
        catalog.content.record_tag(1, "n", tag(f"{number}-{n}"))
        for n, catalog in enumerate(catalogs)
        for number in range(40)
    ]
    await asyncio.gather(*writes)
    for catalog in catalogs:
        assert len(await catalog.content.tag_names(1, "n")) == 120


async def test_of_two_that_claim_a_base_path_one_wins(place: Place) -> None:
    first, second = await place.open(), await place.open()
    await first.admin.apply(resources([remote()]))
    claims = [
        catalog.admin.apply(resources([], [{"name": name, "base_path": "x", "type": "container", "remotes": ["quay"]}]))
        for catalog, name in ((first, "one"), (second, "two"))
    ]
    outcomes = await asyncio.gather(*claims, return_exceptions=True)
    assert sorted(isinstance(outcome, MetadataInvalid) for outcome in outcomes) == [False, True]
    assert len(await first.content.distributions()) == 1
