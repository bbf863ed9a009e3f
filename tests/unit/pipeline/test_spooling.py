"""A body on its way to its spool: written in a thread, noted now and then, in a window from where the disk is full."""

from __future__ import annotations

import asyncio
import hashlib
import threading
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any, cast

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from contentapp.coordination.base import FlightState
from contentapp.core.digest import Digest
from contentapp.core.errors import NoSpace, StorageUnavailable, TransferInterrupted
from contentapp.core.settings import MIB
from contentapp.pipeline.flight import Flight
from contentapp.pipeline.load import LEAST_KEPT_SIZE, MOST_MARKS, Load
from contentapp.pipeline.note import MarkedHasher, parse_facts
from contentapp.pipeline.progress import Attempt
from contentapp.pipeline.spooling import Means, Spooling
from contentapp.pipeline.windowed import Windows
from contentapp.storage.base import Note
from tests.unit.pipeline.scripted import A, B, plan

BODY = (bytes(range(251)) * (3 * MIB // 251 + 1))[: 3 * MIB]
NEVER = 3600.0


class Writer:
    """Takes bytes as a spool does, and fails or waits as it is told.

    full_at: how many bytes there is room for. at_write: called in the thread before each write; at_note before each
    note.
    """

    def __init__(
        self,
        full_at: int | None = None,
        at_write: Callable[[], None] = lambda: None,
        at_note: Callable[[], None] = lambda: None,
        error: Exception | None = None,
    ) -> None:
        self.body = bytearray()
        self.notes: list[Note] = []
        self.endings: list[str] = []
        self._full_at, self._at_write, self._at_note = full_at, at_write, at_note
        self._error = NoSpace("full") if error is None else error

    @property
    def written(self) -> int:
        return len(self.body)

    def write(self, buffers: Sequence[bytes]) -> None:
        self._at_write()
        data = b"".join(buffers)
        room = len(data) if self._full_at is None else self._full_at - len(self.body)
        self.body += data[:room]
        if room < len(data):
            raise self._error

    def checkpoint(self, note: Note) -> None:
        self.notes.append(note)
        self._at_note()

    async def suspend(self, note: Note) -> None:
        self.notes.append(note)
        self.endings.append("suspend")

    async def abort(self) -> None:
        self.endings.append("abort")


@dataclass
class Transferred:
    """What a load asks of its transfer."""

    source: Any = A
    exchanges: Any = None


class World:
    """One spooling and all that belongs to it."""

    def __init__(
        self,
        writer: Writer,
        executor: ThreadPoolExecutor,
        *,
        progress_seconds: float = NEVER,
        pending_size: int = 64 * MIB,
        window_size: int = 8 * MIB,
        keep: bool = True,
        step: int = MIB,
    ) -> None:
        self.writer = writer
        self.attempt = Attempt(state=FlightState.RUNNING, keep=keep)
        self.flight = Flight("key", plan(digest=Digest.of(BODY), size=None), self.attempt, followers=1)
        self.hasher = MarkedHasher(hashlib.sha256(), step)
        self.load = Load(
            flight=self.flight,
            attempt=self.attempt,
            writer=cast(Any, writer),
            transfer=cast(Any, Transferred(exchanges={A.url: None})),
            hasher=self.hasher,
            if_range="",
        )
        self.tasks: list[asyncio.Task[None]] = []
        means = Means(
            executor=executor,
            windows=Windows(window_size),
            pending_size=lambda: pending_size,
            spawn=self._spawn,
            progress_seconds=progress_seconds,
        )
        self.spooling = Spooling(means, self.load, cast(Any, writer))

    def _spawn(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        self.tasks.append(asyncio.create_task(work))
        return self.tasks[-1]

    async def run(self, chunks: AsyncIterator[bytes]) -> None:
        async with asyncio.timeout(20):
            await self.spooling.run(chunks)
            await asyncio.gather(*self.tasks)

    @property
    def delivered(self) -> bytes:
        """What a device gets: of the spool as much as counts, then the window."""
        if self.attempt.window is None:
            return bytes(self.writer.body[: self.attempt.arrived])
        assert self.attempt.spool_end is not None
        body, window = bytes(self.writer.body[: self.attempt.spool_end]), self.attempt.window
        while (piece := window.read(len(body))) is not None and piece.data:
            body += piece.data
        return body


@pytest.fixture(scope="module")
def executor() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(2) as threads:
        yield threads


async def pieces(*sizes: int, pause: bool = False) -> AsyncIterator[bytes]:
    start = 0
    for size in sizes:
        yield BODY[start : start + size]
        start += size
        if pause:
            await asyncio.sleep(0)


async def until(is_so: Callable[[], object]) -> None:
    async with asyncio.timeout(10):
        while not is_so():
            await asyncio.sleep(0.001)


async def arrived(world: World, size: int) -> None:
    await until(lambda: world.attempt.arrived >= size)


async def noted(world: World, count: int) -> None:
    await until(lambda: len(world.writer.notes) >= count)


async def test_all_of_it_is_written_and_hashed(executor: ThreadPoolExecutor) -> None:
    world = World(Writer(), executor)
    await world.run(pieces(100, 200, MIB))
    size = MIB + 300
    assert world.writer.body == BODY[:size]
    assert world.hasher.hexdigest() == hashlib.sha256(BODY[:size]).hexdigest()
    assert (world.attempt.arrived, world.attempt.is_unspooled, world.attempt.window) == (size, False, None)
    assert world.attempt.last_read == 64 * 1024


async def test_nothing_at_all_is_a_body_too(executor: ThreadPoolExecutor) -> None:
    world = World(Writer(), executor)
    await world.run(pieces())
    assert (world.attempt.arrived, world.hasher.offset) == (0, 0)


async def test_followers_see_each_write(executor: ThreadPoolExecutor) -> None:
    world, seen = World(Writer(), executor), []
    world.flight.on_changed = lambda: seen.append(world.attempt.arrived)

    async def one_by_one() -> AsyncIterator[bytes]:
        for start in (0, 100, 200):
            yield BODY[start : start + 100]
            await arrived(world, start + 100)

    await world.run(one_by_one())
    assert seen == [100, 200, 300]


async def test_reading_waits_for_the_thread_when_too_much_is_pending(executor: ThreadPoolExecutor) -> None:
    go_on, given_out = threading.Event(), 0

    async def counted() -> AsyncIterator[bytes]:
        nonlocal given_out
        for _ in range(20):
            given_out += 100
            yield bytes(100)

    world = World(Writer(at_write=lambda: _wait(go_on)), executor, pending_size=500)
    running = asyncio.create_task(world.run(counted()))
    try:
        await until(lambda: given_out > 500)
        await turns()
        assert given_out <= 1000, "one lot is being written, one waits"
    finally:
        go_on.set()
    await running
    assert world.writer.written == 2000


def _wait(event: threading.Event) -> None:
    if not event.wait(10):
        raise TimeoutError


async def turns() -> None:
    for _ in range(50):
        await asyncio.sleep(0)


# A disk that gets full


@given(
    sizes=st.lists(st.integers(1, 3000), min_size=1, max_size=15),
    full_at=st.integers(0, 30_000),
    pause=st.booleans(),
    is_full=st.booleans(),
)
@settings(max_examples=60, deadline=None)
async def test_no_byte_is_lost_wherever_the_disk_gets_full(
    sizes: list[int], full_at: int, pause: bool, is_full: bool
) -> None:
    error = NoSpace("full") if is_full else StorageUnavailable("gone")
    with ThreadPoolExecutor(1) as executor:
        world, body = World(Writer(full_at, error=error), executor), BODY[: sum(sizes)]
        await world.run(pieces(*sizes, pause=pause))
    assert world.delivered == body
    assert world.attempt.arrived == len(body)
    assert world.hasher.hexdigest() == hashlib.sha256(body).hexdigest()
    assert (world.attempt.window is not None) == (full_at < len(body))
    assert not world.load.is_resumable


async def test_an_error_of_the_writing_thread_ends_it(executor: ThreadPoolExecutor) -> None:
    """Also when nothing more is to come from upstream for long."""
    world, told = World(Writer(full_at=0, error=ValueError("a bug")), executor, pending_size=50), []
    world.flight.on_changed = lambda: told.append(world.attempt.is_unspooled)

    async def endless() -> AsyncIterator[bytes]:
        while True:
            yield bytes(100)
            await asyncio.sleep(0)

    with pytest.raises(ValueError, match="a bug"):
        await world.run(endless())
    assert told == [True]
    assert not world.load.is_resumable


# Stopped in any state


async def silent(world: World, count: int) -> AsyncIterator[bytes]:
    """Some bytes, which are written, and then none."""
    yield BODY[:count]
    await until(lambda: world.attempt.arrived == count)
    await asyncio.Event().wait()


async def test_stopped_while_nothing_comes(executor: ThreadPoolExecutor) -> None:
    world = World(Writer(), executor)
    running = asyncio.create_task(world.run(silent(world, 2 * MIB)))
    await until(lambda: world.attempt.arrived)
    await stopped(running)
    assert world.load.is_resumable
    assert world.hasher.offset == world.writer.written == 2 * MIB


@pytest.mark.parametrize("pending_size", [100, 64 * MIB], ids=["waits for room", "waits for bytes"])
async def test_stopped_while_the_thread_writes(executor: ThreadPoolExecutor, pending_size: int) -> None:
    """The write can't be stopped: it has ended when the spooling has, and what had come is written too."""
    writing, go_on = threading.Event(), threading.Event()

    def wait() -> None:
        writing.set()
        _wait(go_on)

    async def two() -> AsyncIterator[bytes]:
        yield BODY[:MIB]
        assert await asyncio.to_thread(writing.wait, 10)
        yield BODY[MIB : 2 * MIB]
        await asyncio.Event().wait()

    world = World(Writer(at_write=wait), executor, pending_size=pending_size)
    running = asyncio.create_task(world.run(two()))
    assert await asyncio.to_thread(writing.wait, 10)
    await turns()
    running.cancel()
    await turns()
    assert not running.done()
    go_on.set()
    await ended(running)
    assert world.writer.body == BODY[: world.writer.written]
    assert world.hasher.offset == world.writer.written >= MIB
    assert world.hasher.hexdigest() == hashlib.sha256(world.writer.body).hexdigest()


async def test_stopped_while_the_last_bytes_are_written(executor: ThreadPoolExecutor) -> None:
    """All has come: it would be a pity to fetch it again."""
    writing, go_on = threading.Event(), threading.Event()

    def wait() -> None:
        writing.set()
        _wait(go_on)

    world = World(Writer(at_write=wait), executor)
    running = asyncio.create_task(world.run(pieces(MIB, MIB)))
    assert await asyncio.to_thread(writing.wait, 10)
    running.cancel()
    await turns()
    go_on.set()
    await ended(running)
    assert world.load.is_resumable
    assert world.hasher.offset == world.writer.written == 2 * MIB


async def test_stopped_while_a_window_waits_for_its_devices(executor: ThreadPoolExecutor) -> None:
    world = World(Writer(full_at=0), executor, window_size=256 * 1024)
    running = asyncio.create_task(world.run(pieces(*[100_000] * 20, pause=True)))
    await until(lambda: world.attempt.is_stalled)
    await stopped(running)
    assert not world.load.is_resumable


async def test_a_transfer_that_breaks_off_has_written_what_came(executor: ThreadPoolExecutor) -> None:
    async def broken() -> AsyncIterator[bytes]:
        yield BODY[:MIB]
        yield BODY[MIB : MIB + 10]
        raise TransferInterrupted("cut")

    world = World(Writer(), executor)
    with pytest.raises(TransferInterrupted):
        await world.run(broken())
    assert world.writer.body == BODY[: MIB + 10]
    assert world.attempt.arrived == world.hasher.offset == MIB + 10
    assert world.load.is_resumable


async def test_a_disk_that_gets_full_after_the_stop_fills_no_window(executor: ThreadPoolExecutor) -> None:
    """Nobody would ever take it out."""
    writing, go_on = threading.Event(), threading.Event()

    def wait() -> None:
        writing.set()
        _wait(go_on)

    async def without_end() -> AsyncIterator[bytes]:
        async for piece in pieces(*[100_000] * 20):
            yield piece
        await asyncio.Event().wait()

    world = World(Writer(full_at=0, at_write=wait), executor, window_size=256 * 1024)
    running = asyncio.create_task(world.run(without_end()))
    assert await asyncio.to_thread(writing.wait, 10)
    running.cancel()
    await turns()
    go_on.set()
    await ended(running)
    assert world.attempt.window is not None
    assert world.attempt.window.end == 0


async def stopped(running: asyncio.Task[None]) -> None:
    running.cancel()
    await ended(running)


async def ended(running: asyncio.Task[None]) -> None:
    """Return when what was cancelled has ended."""
    done, _ = await asyncio.wait([running], timeout=10)
    assert done
    assert running.cancelled()


# Notes


async def test_notes_are_written_now_and_then(executor: ThreadPoolExecutor) -> None:
    world = World(Writer(), executor, progress_seconds=0.01)

    async def slow() -> AsyncIterator[bytes]:
        for count in range(1, 4):
            yield BODY[(count - 1) * MIB : count * MIB]
            await noted(world, count)

    await world.run(slow())
    assert [note.offset for note in world.writer.notes] == [MIB, 2 * MIB, 3 * MIB][: len(world.writer.notes)]
    for note in world.writer.notes:
        assert note.mark == hashlib.sha256(BODY[: note.offset]).hexdigest()
        facts = parse_facts(note.facts)
        assert facts is not None
        assert facts.attempt == "", "more may have gone to devices than the note tells of"


async def test_no_note_without_a_new_byte(executor: ThreadPoolExecutor) -> None:
    world = World(Writer(), executor, progress_seconds=0.005)
    running = asyncio.create_task(world.run(silent(world, 2 * MIB)))
    await until(lambda: world.writer.notes)
    await asyncio.sleep(0.1)
    await stopped(running)
    assert [note.offset for note in world.writer.notes] == [2 * MIB]


async def test_no_note_before_the_time_has_come(executor: ThreadPoolExecutor) -> None:
    world = World(Writer(), executor, progress_seconds=NEVER)
    await world.run(pieces(MIB, MIB, MIB, pause=True))
    assert world.writer.notes == []


async def test_a_note_makes_the_next_one_wait(executor: ThreadPoolExecutor) -> None:
    world = World(Writer(), executor, progress_seconds=1.0)

    async def body() -> AsyncIterator[bytes]:
        yield BODY[:MIB]
        await noted(world, 1)
        yield BODY[MIB : 2 * MIB]
        await arrived(world, 2 * MIB)

    await world.run(body())
    assert [note.offset for note in world.writer.notes] == [MIB]


async def test_one_note_at_a_time(executor: ThreadPoolExecutor) -> None:
    go_on = threading.Event()
    world = World(Writer(at_note=lambda: _wait(go_on)), executor, progress_seconds=0.005)

    async def body() -> AsyncIterator[bytes]:
        yield BODY[:MIB]
        await until(lambda: world.writer.notes)
        yield BODY[MIB : 2 * MIB]
        await until(lambda: world.attempt.arrived == 2 * MIB)
        await asyncio.sleep(0.05)
        assert len(world.writer.notes) == 1
        go_on.set()
        await until(lambda: len(world.writer.notes) == 2)

    await world.run(body())
    assert [note.offset for note in world.writer.notes] == [MIB, 2 * MIB]


async def test_no_note_while_the_hash_is_in_use(executor: ThreadPoolExecutor) -> None:
    writing, go_on = threading.Event(), threading.Event()
    writes: list[int] = []

    def wait() -> None:
        writes.append(1)
        if len(writes) == 2:
            writing.set()
            _wait(go_on)

    world = World(Writer(at_write=wait), executor, progress_seconds=0.05)

    async def body() -> AsyncIterator[bytes]:
        yield BODY[:MIB]
        await until(lambda: world.attempt.arrived == MIB)
        yield BODY[MIB : 2 * MIB]
        assert await asyncio.to_thread(writing.wait, 10)
        await asyncio.sleep(0.2)
        notes = [note.offset for note in world.writer.notes]
        go_on.set()
        assert notes == []
        await until(lambda: world.writer.notes)

    await world.run(body())
    assert [note.offset for note in world.writer.notes] == [2 * MIB]


async def test_a_note_that_fails_costs_nothing_else(executor: ThreadPoolExecutor) -> None:
    def fail() -> None:
        raise NoSpace("full")

    world = World(Writer(at_note=fail), executor, progress_seconds=0.01)

    async def body() -> AsyncIterator[bytes]:
        for count in range(1, 3):
            yield BODY[(count - 1) * MIB : count * MIB]
            await noted(world, count)

    await world.run(body())
    assert world.writer.written == 2 * MIB


async def test_what_is_not_worth_keeping_is_not_noted(executor: ThreadPoolExecutor) -> None:
    world = World(Writer(), executor, progress_seconds=0.005, keep=False)
    running = asyncio.create_task(world.run(silent(world, 2 * MIB)))
    await until(lambda: world.attempt.arrived)
    await asyncio.sleep(0.05)
    await stopped(running)
    assert world.writer.notes == []


# What is kept of a load


def loaded(executor: ThreadPoolExecutor, size: int = LEAST_KEPT_SIZE) -> World:
    world = World(Writer(), executor)
    world.hasher.update(BODY[:size])
    return world


def windowed(world: World) -> None:
    world.attempt.window = cast(Any, object())


def unspooled(world: World) -> None:
    world.attempt.is_unspooled = True


def streamed(world: World) -> None:
    world.attempt.keep = False


def unnotable(world: World) -> None:
    world.hasher.marks = [""] * (MOST_MARKS + 1)


def spoolless(world: World) -> None:
    world.load.writer = None


def undigested(world: World) -> None:
    world.flight.plan = replace(world.flight.plan, digest=None)


def validated(world: World) -> None:
    undigested(world)
    world.load.if_range = '"tag"'


@pytest.mark.parametrize(
    ("change", "is_resumable"),
    [
        (None, True),
        (validated, True),
        (undigested, False),
        (windowed, False),
        (unspooled, False),
        (streamed, False),
        (unnotable, False),
        (spoolless, False),
    ],
)
async def test_what_is_resumable(
    executor: ThreadPoolExecutor, change: Callable[[World], None] | None, is_resumable: bool
) -> None:
    world = loaded(executor)
    if change is not None:
        change(world)
    assert world.load.is_resumable == is_resumable
    await world.load.put_down()
    ending = [] if change is spoolless else ["suspend" if is_resumable else "abort"]
    assert world.writer.endings == ending


async def test_a_little_is_not_kept(executor: ThreadPoolExecutor) -> None:
    world = loaded(executor, LEAST_KEPT_SIZE - 1)
    await world.load.put_down()
    assert world.writer.endings == ["abort"]


async def test_what_is_cancelled_by_an_admin_is_not_kept(executor: ThreadPoolExecutor) -> None:
    world = loaded(executor)
    world.flight.is_cancelled = True
    await world.load.put_down()
    assert world.writer.endings == ["abort"]


@pytest.mark.parametrize("is_last", [True, False])
async def test_what_a_note_says(executor: ThreadPoolExecutor, is_last: bool) -> None:
    world = loaded(executor)
    world.attempt.size, world.load.if_range, world.load.earlier = len(BODY), '"tag"', (B.url, A.url)
    note = world.load.note(is_last=is_last)
    facts = parse_facts(note.facts)
    assert facts is not None
    assert (note.key, note.size, note.offset) == ("key", len(BODY), LEAST_KEPT_SIZE)
    assert (facts.attempt, facts.if_range) == (world.attempt.id if is_last else "", '"tag"')
    assert (facts.path, facts.url, facts.sources) == (world.flight.plan.path, A.url, (B.url, A.url))


async def test_the_last_note_names_the_attempt(executor: ThreadPoolExecutor) -> None:
    """Nothing comes behind it, so whatever a device has of it is the same."""
    world = loaded(executor)
    await world.load.put_down()
    (note,) = world.writer.notes
    facts = parse_facts(note.facts)
    assert facts is not None
    assert facts.attempt == world.attempt.id


@pytest.mark.parametrize("has_moved", [True, False])
async def test_a_note_says_when_the_last_byte_came(executor: ThreadPoolExecutor, has_moved: bool) -> None:
    """A try that brought nothing makes it no younger."""
    before, world = time.time(), loaded(executor)
    world.load.moved_at = 1000.0
    if not has_moved:
        cast(Any, world.load.transfer).exchanges = {}
    facts = parse_facts(world.load.note().facts)
    assert facts is not None
    assert before <= facts.moved_at <= time.time() if has_moved else facts.moved_at == 1000.0


@pytest.mark.parametrize("is_checked", [True, False])
async def test_a_load_is_checked_where_its_chunks_are_known(executor: ThreadPoolExecutor, is_checked: bool) -> None:
    @dataclass
    class Chunks:
        pieces: Sequence[bytes]
        convicted: frozenset[str] = frozenset({A.url})

        async def chunks(self) -> AsyncIterator[bytes]:
            for piece in self.pieces:
                yield piece

    world = loaded(executor)
    world.load.transfer = cast(Any, Chunks([b"as it comes"]))
    world.load.checked = cast(Any, Chunks([b"as it should"])) if is_checked else None
    assert [piece async for piece in world.load.chunks()] == [b"as it should" if is_checked else b"as it comes"]
    assert world.load.convicted == ({A.url} if is_checked else set())
