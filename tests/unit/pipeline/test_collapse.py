"""Small work, asked for many times at once, is done once, in this process and over all of them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio

from contentapp.coordination.local import LocalCoordination
from contentapp.core.errors import ContentNotFound
from contentapp.pipeline.collapse import Collapse


class Work:
    """Counts how often it is done; `found` is what a look finds."""

    def __init__(self) -> None:
        self.done, self.looks = 0, 0
        self.found: str | None = None
        self.go_on = asyncio.Event()
        self.error: Exception | None = None

    async def find(self) -> str | None:
        self.looks += 1
        return self.found

    async def do(self) -> str:
        self.done += 1
        await self.go_on.wait()
        if self.error is not None:
            raise self.error
        self.found = f"result {self.done}"
        return self.found


@pytest_asyncio.fixture
async def coordinations(tmp_path: Path) -> AsyncIterator[list[LocalCoordination]]:
    """Two, as two processes have them."""
    started = [LocalCoordination(tmp_path) for _ in range(2)]
    for coordination in started:
        await coordination.start()
    yield started
    for coordination in started:
        await coordination.close()


@pytest_asyncio.fixture
async def collapses(coordinations: list[LocalCoordination]) -> AsyncIterator[list[Collapse[str]]]:
    made: list[Collapse[str]] = [Collapse(coordination) for coordination in coordinations]
    yield made
    for collapse in made:
        await collapse.close()


async def begun(work: Work) -> None:
    async with asyncio.timeout(10):
        while not work.done:
            await asyncio.sleep(0.001)


async def test_once_for_all_who_ask_at_the_same_time(collapses: list[Collapse[str]]) -> None:
    work = Work()
    tasks = [asyncio.create_task(collapses[0].do("key", work.find, work.do)) for _ in range(10)]
    await begun(work)
    work.go_on.set()
    results = await asyncio.gather(*tasks)
    assert {result for result, _ in results} == {"result 1"}
    assert sorted(is_joined for _, is_joined in results) == [False] + [True] * 9


async def test_another_process_looks_again_instead(collapses: list[Collapse[str]]) -> None:
    work = Work()
    first = asyncio.create_task(collapses[0].do("key", work.find, work.do))
    await begun(work)
    second = asyncio.create_task(collapses[1].do("key", work.find, work.do))
    await asyncio.sleep(0.05)
    assert not second.done()
    work.go_on.set()
    assert [(await task)[0] for task in (first, second)] == ["result 1", "result 1"]
    assert work.done == 1


async def test_another_process_does_it_when_the_first_has_failed(collapses: list[Collapse[str]]) -> None:
    work = Work()
    work.error = ContentNotFound("x")
    first = asyncio.create_task(collapses[0].do("key", work.find, work.do))
    await begun(work)
    second = asyncio.create_task(collapses[1].do("key", work.find, work.do))
    work.go_on.set()
    for task in (first, second):
        with pytest.raises(ContentNotFound):
            await task
    assert work.done == 2


async def test_a_look_comes_before_the_work(collapses: list[Collapse[str]]) -> None:
    work = Work()
    work.found = "there"
    assert await collapses[0].do("key", work.find, work.do) == ("there", False)
    assert work.done == 0


async def test_other_keys_do_not_wait(collapses: list[Collapse[str]]) -> None:
    work, other = Work(), Work()
    other.go_on.set()
    held = asyncio.create_task(collapses[0].do("key", work.find, work.do))
    assert (await collapses[0].do("other", other.find, other.do))[0] == "result 1"
    work.go_on.set()
    await held


async def test_work_goes_on_when_who_asked_for_it_leaves(collapses: list[Collapse[str]]) -> None:
    work = Work()
    first = asyncio.create_task(collapses[0].do("key", work.find, work.do))
    await begun(work)
    second = asyncio.create_task(collapses[0].do("key", work.find, work.do))
    await asyncio.sleep(0)
    first.cancel()
    work.go_on.set()
    assert await second == ("result 1", True)


async def test_error_reaches_all_and_is_forgotten(collapses: list[Collapse[str]]) -> None:
    work = Work()
    work.error = ContentNotFound("x")
    tasks = [asyncio.create_task(collapses[0].do("key", work.find, work.do)) for _ in range(3)]
    await begun(work)
    work.go_on.set()
    for task in tasks:
        with pytest.raises(ContentNotFound):
            await task
    work.error = None
    assert (await collapses[0].do("key", work.find, work.do))[0] == "result 2"


async def test_close_ends_what_is_under_way(collapses: list[Collapse[str]]) -> None:
    work = Work()
    task = asyncio.create_task(collapses[0].do("key", work.find, work.do))
    await begun(work)
    await collapses[0].close()
    with pytest.raises(asyncio.CancelledError):
        await task
