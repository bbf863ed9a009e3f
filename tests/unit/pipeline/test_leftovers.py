"""Interrupted transfers that nobody asks for are gone on with, a few at a time (P6)."""

from __future__ import annotations

import asyncio
import hashlib
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any, cast

import pytest

from contentapp.coordination.base import FlightState
from contentapp.core.errors import (
    ContentAppError,
    ContentDenied,
    ContentNotFound,
    ContentUnavailable,
    InvalidPath,
    StorageUnavailable,
)
from contentapp.core.settings import EngineSettings
from contentapp.pipeline import leftovers
from contentapp.pipeline.flight import Flight, Plan
from contentapp.pipeline.leftovers import Leftovers
from contentapp.pipeline.note import Facts, MarkedHasher, make_note
from contentapp.pipeline.progress import Attempt, Head
from contentapp.storage.base import Note, Suspended
from contentapp.storage.memory import MemoryStorage
from tests.unit.pipeline.scripted import plan

SETTINGS = EngineSettings(resume_concurrency=2, resume_interval_seconds=0.01, partial_max_age_seconds=100.0)


def note_of(key: str, age: float = 0.0) -> Note:
    """Of one byte of a transfer that stands still for so long."""
    hasher = MarkedHasher(hashlib.sha256())
    hasher.update(b"x")
    moved_at = time.time() - age
    facts = Facts(attempt="", path=f"/{key}", url="http://a/", sources=(), if_range="", head=Head(), moved_at=moved_at)
    return make_note(key, 10, hasher, facts)


class World:
    """All around leftovers: each path `/key` means the key, unless `meanings` says otherwise; flights end as told."""

    def __init__(self, settings: EngineSettings = SETTINGS) -> None:
        self.storage = MemoryStorage()
        self.meanings: dict[str, str | ContentAppError] = {}
        self.asked: list[str] = []
        self.flights: dict[str, Flight] = {}
        self.joined: list[str] = []
        self.left: list[str] = []
        self.leftovers = Leftovers(self.storage, *(cast(Any, self),) * 3, settings)

    async def leave_behind(self, *notes: Note) -> None:
        for note in notes:
            writer = await self.storage.begin(note.key, size=note.size, keep=True)
            writer.write([b"x"])
            await writer.suspend(note)

    # what leftovers ask of router, resolver and flights

    def route(self, request: Any) -> str:
        assert (request.method, request.query, request.headers) == ("GET", "", {})
        self.asked.append(request.raw_path)
        if isinstance(meaning := self.meanings.get(request.raw_path), InvalidPath):
            raise meaning
        return str(request.raw_path)

    async def resolve(self, path: str) -> Any:
        meaning = self.meanings.get(path, path[1:])
        if isinstance(meaning, ContentAppError):
            raise meaning

        class Content:
            key = meaning

        return Content()

    def plan(self, content: Any) -> Plan:
        return plan(key=content.key)

    def join(self, wanted: Plan) -> tuple[Flight, bool]:
        flight = self.flights[wanted.key] = Flight(wanted.key, wanted, Attempt(), followers=1)
        self.joined.append(wanted.key)
        return flight, False

    def leave(self, flight: Flight) -> None:
        self.left.append(flight.key)

    # what the tests do

    async def until_joined(self, *keys: str) -> None:
        async with asyncio.timeout(10):
            while self.joined != list(keys):
                await asyncio.sleep(0.001)

    def end(self, key: str) -> None:
        flight = self.flights[key]
        flight.attempt.state = FlightState.VERIFIED
        flight.changed()

    @asynccontextmanager
    async def resuming(self) -> AsyncIterator[asyncio.Task[None]]:
        task = asyncio.create_task(self.leftovers.resume_all())
        try:
            yield task
            await asyncio.wait_for(task, 10)
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)


@pytest.fixture
async def world() -> AsyncIterator[World]:
    world = World()
    yield world
    await world.storage.close()


async def settle() -> None:
    for _ in range(30):
        await asyncio.sleep(0)


async def test_the_oldest_come_first_and_few_at_a_time(world: World) -> None:
    await world.leave_behind(*map(note_of, "abcd"))
    await world.storage.resume("a")  # as by a device that has left again
    await world.leave_behind(note_of("a"))
    async with world.resuming():
        await world.until_joined("b", "c")
        await settle()
        assert world.joined == ["b", "c"]
        world.end("c")
        await world.until_joined("b", "c", "d")
        assert world.left == ["c"]
        world.end("b")
        await world.until_joined("b", "c", "d", "a")
        world.end("a")
        world.end("d")
    assert world.left == ["c", "b", "a", "d"]
    assert world.asked == ["/b", "/c", "/d", "/a"]


async def test_none_at_a_time_is_none_at_all() -> None:
    world = World(replace(SETTINGS, resume_concurrency=0))
    await world.leave_behind(note_of("a", age=1000))
    await asyncio.wait_for(world.leftovers.resume_all(), 10)
    assert (world.asked, len(await world.storage.suspended())) == ([], 1)
    await world.storage.close()


async def test_a_path_that_means_something_else_now_is_left_alone(world: World) -> None:
    await world.leave_behind(note_of("a"), note_of("b"))
    world.meanings["/a"] = "b"
    async with world.resuming():
        await world.until_joined("b")
        world.end("b")
    assert world.joined == ["b"]
    assert len(await world.storage.suspended()) == 2


@pytest.mark.parametrize(
    "error",
    [InvalidPath("no"), ContentNotFound("gone"), ContentDenied("no"), ContentUnavailable("down")],
    ids=lambda error: type(error).__name__,
)
async def test_one_that_fails_does_not_stop_the_others(world: World, error: ContentAppError) -> None:
    await world.leave_behind(*map(note_of, "abc"))
    world.meanings["/a"] = error
    async with world.resuming():
        await world.until_joined("b", "c")
        world.end("b")
        world.end("c")
    assert len(await world.storage.suspended()) == 3


async def test_a_flight_that_fails_is_left(world: World) -> None:
    await world.leave_behind(note_of("a"))
    async with world.resuming():
        await world.until_joined("a")
        world.flights["a"].fail(ContentUnavailable("down"))
    assert world.left == ["a"]


async def test_a_flight_that_is_already_over_is_left_at_once(world: World) -> None:
    class Over(World):
        def join(self, wanted: Plan) -> tuple[Flight, bool]:
            joined = super().join(wanted)
            self.end(wanted.key)
            return joined

    world = Over()
    await world.leave_behind(note_of("a"))
    async with world.resuming():
        await world.until_joined("a")
    assert world.left == ["a"]
    await world.storage.close()


@pytest.mark.parametrize("kind", ["window", "spool_end"])
async def test_one_that_goes_on_in_memory_is_left(world: World, kind: str) -> None:
    """Here or in another process: it would wait for us, and nothing of it would be kept."""
    await world.leave_behind(note_of("a"))
    async with world.resuming():
        await world.until_joined("a")
        setattr(world.flights["a"].attempt, kind, 0 if kind == "spool_end" else object())
        world.flights["a"].changed()
    assert world.left == ["a"]


async def test_facts_that_nobody_can_read_are_passed_over(world: World) -> None:
    await world.leave_behind(replace(note_of("a"), facts="{}"), note_of("b"))
    async with world.resuming():
        await world.until_joined("b")
        world.end("b")
    assert world.asked == ["/b"]


@pytest.mark.parametrize(("age", "is_kept"), [(99.0, True), (101.0, False)])
async def test_one_that_stands_still_for_too_long_goes(world: World, age: float, is_kept: bool) -> None:
    """However lately its note was written: every try writes one."""
    await world.leave_behind(note_of("a", age))
    world.meanings["/a"] = ContentNotFound("gone")
    async with world.resuming():
        await settle()
    assert bool(await world.storage.suspended()) == bool(world.asked) == is_kept


async def test_one_that_fails_again_and_again_is_tried_less_and_less_often(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    await world.leave_behind(note_of("a"))
    world.meanings["/a"] = ContentUnavailable("down")
    now = clocked(monkeypatch)
    tries = []
    for _ in range(20):
        before = len(world.asked)
        await world.leftovers.resume_all()
        tries.append(len(world.asked) - before)
        now[0] += SETTINGS.resume_interval_seconds * 1.001
    assert [number for number, count in enumerate(tries) if count] == [0, 1, 3, 7, 15]


async def test_the_pause_has_an_end(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    await world.leave_behind(note_of("a"))
    world.meanings["/a"] = ContentUnavailable("down")
    now = clocked(monkeypatch)
    for count in range(1, 40):
        await world.leftovers.resume_all()
        assert len(world.asked) == count
        now[0] += leftovers.LONGEST_PAUSE_SECONDS + 1


async def test_what_is_left_anew_is_tried_at_once(world: World) -> None:
    await world.leave_behind(note_of("a"))
    world.meanings["/a"] = ContentUnavailable("down")
    await world.leftovers.resume_all()
    found = await world.storage.resume("a")
    assert found is not None
    await found[0].abort()
    await world.leftovers.resume_all()
    await world.leave_behind(note_of("a"))
    await world.leftovers.resume_all()
    assert world.asked == ["/a", "/a"]


def clocked(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The loop's time, as leftovers see it, in a list's one item."""
    now = [1000.0]
    true = asyncio.get_running_loop()

    class Loop:
        def time(self) -> float:
            return now[0]

        def __getattr__(self, name: str) -> Any:
            return getattr(true, name)

    class Asyncio:
        def __getattr__(self, name: str) -> Any:
            return Loop if name == "get_running_loop" else getattr(asyncio, name)

    monkeypatch.setattr(leftovers, "asyncio", Asyncio())
    return now


# Running


class Failing(MemoryStorage):
    """One that can't be read at first."""

    ages: list[float]
    failures = 0

    async def suspended(self) -> list[Suspended]:
        if self.failures:
            self.failures -= 1
            raise StorageUnavailable("gone")
        return await super().suspended()

    async def remove_stale_partials(self, max_age_seconds: float = 0.0) -> int:
        self.ages.append(max_age_seconds)
        return await super().remove_stale_partials(max_age_seconds)


async def ran(world: World, keys: Sequence[str]) -> None:
    task = asyncio.create_task(world.leftovers.run())
    try:
        await world.until_joined(*keys)
        assert not task.done()
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        assert task.cancelled()


async def test_it_looks_again_and_leaves_when_it_is_cancelled(world: World) -> None:
    storage = Failing()
    storage.ages, storage.failures = [], 2
    world.leftovers = Leftovers(storage, *(cast(Any, world),) * 3, SETTINGS)
    writer = await storage.begin("a", size=10, keep=True)
    writer.write([b"x"])
    await writer.suspend(note_of("a"))
    await ran(world, ["a"])
    assert storage.ages == [100.0] * 3
    assert world.left == ["a"]
    assert len(await storage.suspended()) == 1
    await storage.close()
