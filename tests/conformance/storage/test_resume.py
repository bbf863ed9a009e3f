"""P6: checkpoint, cut, suspend, resume, discard."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from contentapp.core.digest import Digest
from contentapp.core.errors import StorageUnavailable
from contentapp.core.settings import MIB
from contentapp.storage.base import Note, Storage
from contentapp.storage.memory import MemoryStorage
from tests.conformance.storage.kit import eventually, fetch, note_of, read_all, resume, store, suspend

BODY = b"0123456789" * 1000
DIGEST = Digest.of(BODY)
HALF = BODY[:5500]

MakeStorage = Callable[..., Storage]


async def test_a_suspended_partial_goes_on_where_it_stopped(storage: Storage) -> None:
    note = await suspend(storage, "key", HALF, size=len(BODY))
    writer, found = await resume(storage, "key")
    assert found == note
    assert writer.written == len(HALF)
    reader = writer.follow()
    assert read_all(reader) == HALF
    writer.write([BODY[len(HALF) :]])
    assert read_all(reader) == BODY
    reader.close()
    await writer.commit(DIGEST)
    assert await fetch(storage, DIGEST) == BODY
    assert await storage.resume("key") is None


async def test_facts_come_back_as_they_were(storage: Storage) -> None:
    facts = '{"url": "https://x/ü\\ud800", "etag": null}' + "\ud800é" + "x" * 60_000
    writer = await storage.begin("kéy\n", size=None, keep=True)
    writer.write([HALF])
    await writer.suspend(note_of("kéy\n", HALF, facts=facts))
    writer, found = await resume(storage, "kéy\n")
    assert (found.key, found.facts) == ("kéy\n", facts)
    await writer.abort()


async def test_suspend_cuts_to_what_the_note_tells_of(storage: Storage) -> None:
    writer = await storage.begin("key", size=len(BODY), keep=True)
    writer.write([BODY])
    await writer.suspend(note_of("key", HALF, size=len(BODY)))
    assert (await storage.use()).reserved == len(HALF)
    writer, note = await resume(storage, "key")
    assert (writer.written, note.offset) == (len(HALF), len(HALF))
    writer.write([b"other"])
    await writer.commit(Digest.of(HALF + b"other"))
    assert await fetch(storage, Digest.of(HALF + b"other")) == HALF + b"other"


async def test_nothing_to_resume(storage: Storage) -> None:
    await suspend(storage, "other", HALF)
    being_written = await storage.begin("key", size=None, keep=True)
    being_written.write([HALF])
    being_written.checkpoint(note_of("key", HALF))
    assert await storage.resume("key") is None
    assert await storage.discard("key") == 0
    await being_written.abort()
    assert await storage.resume("key") is None
    assert await storage.discard("other") == 1


async def test_what_is_not_kept_is_not_suspended(storage: Storage) -> None:
    writer = await storage.begin("key", size=len(BODY), keep=False)
    writer.write([HALF])
    writer.checkpoint(note_of("key", HALF))
    await writer.suspend(note_of("key", HALF))
    assert await storage.suspended() == []
    assert await storage.resume("key") is None


async def test_of_several_the_one_with_most_bytes(storage: Storage) -> None:
    writers = [await storage.begin("key", size=len(BODY), keep=True) for _ in range(3)]
    for writer, size in zip(writers, (1000, 7000, 3000), strict=True):
        writer.write([BODY[:size]])
        await writer.suspend(note_of("key", BODY[:size]))
    resumed = [await resume(storage, "key") for _ in range(3)]
    assert [note.offset for _, note in resumed] == [7000, 3000, 1000]
    assert await storage.resume("key") is None
    for resumed_writer, note in resumed:
        await resumed_writer.suspend(note)
    assert await storage.discard("key") == 3


async def test_the_suspended_are_listed(storage: Storage) -> None:
    notes = [await suspend(storage, key, HALF) for key in ("a", "b")]
    being_written = await storage.begin("c", size=None, keep=True)
    being_written.checkpoint(note_of("c", b""))
    found = await storage.suspended()
    assert sorted((each.note for each in found), key=lambda note: note.key) == notes
    assert all(abs(each.noted_at - datetime.now(UTC)) < timedelta(minutes=1) for each in found)
    writer, _ = await resume(storage, "a")
    assert [each.note for each in await storage.suspended()] == notes[1:]
    await writer.abort()
    await being_written.abort()
    await storage.discard("b")
    assert await storage.suspended() == []


async def test_only_the_old_are_removed(storage: Storage) -> None:
    await suspend(storage, "key", HALF)
    assert await storage.remove_stale_partials() == 0
    assert await storage.remove_stale_partials(3600) == 0
    assert (await storage.use()).reserved == len(HALF)
    assert await storage.remove_stale_partials(0) == 1
    assert (await storage.use()).reserved == 0
    assert await storage.resume("key") is None


@pytest.mark.parametrize("ending", ["commit", "suspend", "abort"])
async def test_a_checkpoint_after_the_end_does_nothing(storage: Storage, ending: str) -> None:
    note = note_of("key", BODY)
    writer = await storage.begin("key", size=len(BODY), keep=True)
    writer.write([BODY])
    if ending == "suspend":
        await writer.suspend(note_of("key", HALF))
    else:
        await (writer.commit(DIGEST) if ending == "commit" else writer.abort())
    writer.checkpoint(note)
    assert [each.note.offset for each in await storage.suspended()] == ([len(HALF)] if ending == "suspend" else [])
    await storage.discard("key")


async def test_a_checkpoint_that_a_cut_has_overtaken_does_nothing(storage: Storage) -> None:
    writer = await storage.begin("key", size=len(BODY), keep=True)
    writer.write([BODY])
    writer.cut(1000)
    writer.checkpoint(note_of("key", HALF))
    await writer.suspend(note_of("key", BODY[:1000]))
    (found,) = await storage.suspended()
    assert found.note.offset == 1000
    await storage.discard("key")


async def test_checkpoints_while_writing(storage: Storage) -> None:
    """In a thread of their own, over and over, into the ending."""
    writer = await storage.begin("key", size=10 * MIB, keep=True)
    piece = b"x" * 10_000
    notes = [note_of("key", piece * count, size=10 * MIB, step=MIB) for count in range(0, 200, 20)]
    ended = threading.Event()

    def checkpoints() -> None:
        while not ended.is_set():
            for note in notes:
                writer.checkpoint(note)

    checking = asyncio.create_task(asyncio.to_thread(checkpoints))
    for _ in range(200):
        await asyncio.to_thread(writer.write, [piece])
    await writer.commit(Digest.of(piece * 200))
    ended.set()
    await checking
    assert await fetch(storage, Digest.of(piece * 200)) == piece * 200
    assert await storage.suspended() == []


async def test_cut(storage: Storage) -> None:
    writer = await storage.begin("key", size=len(BODY), keep=True)
    reader = writer.follow()
    writer.write([BODY[:5000], b"wrong"])
    writer.cut(5000)
    assert (writer.written, reader.size, read_all(reader)) == (5000, 5000, BODY[:5000])
    writer.cut(5000)
    writer.write([BODY[5000:]])
    assert read_all(reader) == BODY
    reader.close()
    await writer.commit(DIGEST)
    assert await fetch(storage, DIGEST) == BODY


@pytest.mark.parametrize("keep", [True, False])
async def test_cut_to_nothing_or_too_much(storage: Storage, keep: bool) -> None:
    writer = await storage.begin("key", size=None, keep=keep)
    writer.write([HALF])
    for size in (-1, len(HALF) + 1):
        with pytest.raises(ValueError, match="can't be kept"):
            writer.cut(size)
    writer.cut(0)
    assert writer.written == 0
    await writer.abort()
    with pytest.raises(StorageUnavailable):
        writer.cut(0)


@pytest.mark.parametrize(
    "change",
    [
        {"key": "other"},
        {"step": 0},
        {"step": -1},
        {"offset": -1},
        {"size": len(HALF) - 1},
        {"marks": ()},
        {"marks": ("a",) * 6},
        {"facts": "x" * 65_537},
        {"facts": "é" * 40_000},
    ],
)
async def test_a_note_that_breaks_its_rules(storage: Storage, change: dict[str, Any]) -> None:
    writer = await storage.begin("key", size=None, keep=True)
    writer.write([HALF])
    note = replace(note_of("key", HALF), **change)
    with pytest.raises(ValueError):
        writer.checkpoint(note)
    with pytest.raises(ValueError):
        await writer.suspend(note)
    writer.write([BODY[len(HALF) :]])
    await writer.commit(DIGEST)
    assert await fetch(storage, DIGEST) == BODY


async def test_a_suspend_that_a_cut_has_overtaken_is_an_abort(storage: Storage) -> None:
    writer = await storage.begin("key", size=None, keep=True)
    writer.write([BODY])
    writer.cut(1000)
    await writer.suspend(note_of("key", HALF))
    assert await storage.suspended() == []
    assert (await storage.use()).reserved == 0
    with pytest.raises(StorageUnavailable):
        writer.write([b"late"])


async def test_of_many_who_resume_one_wins(storage: Storage) -> None:
    for _ in range(10):
        await suspend(storage, "key", HALF, size=len(BODY))
        found = await asyncio.gather(*(storage.resume("key") for _ in range(8)))
        ((writer, _),) = [each for each in found if each is not None]
        writer.write([BODY[len(HALF) :]])
        await writer.abort()
    use = await storage.use()
    assert (use.stored, use.reserved) == (0, 0)


async def test_followers_of_the_first_writer_read_on(storage: Storage) -> None:
    """What they were shown never changes, whatever is written behind it."""
    writer = await storage.begin("key", size=len(BODY), keep=True)
    writer.write([HALF])
    early = writer.follow()
    await writer.suspend(note_of("key", HALF, size=len(BODY)))
    resumed, _ = await resume(storage, "key")
    resumed.write([BODY[len(HALF) :]])
    late = resumed.follow()
    assert (early.size, read_all(early)) == (len(HALF), HALF)
    assert read_all(late) == BODY
    await resumed.commit(DIGEST)
    early.close()
    late.close()


async def test_discarded_under_its_followers(storage: Storage) -> None:
    writer = await storage.begin("key", size=len(BODY), keep=True)
    writer.write([HALF])
    follower = writer.follow()
    await writer.suspend(note_of("key", HALF))
    assert await storage.discard("key") == 1
    assert read_all(follower) == HALF
    follower.close()
    assert await storage.resume("key") is None


@pytest.mark.parametrize("turns", range(4))
async def test_a_cancelled_resume_leaves_it_suspended(storage: Storage, turns: int) -> None:
    note = await suspend(storage, "key", HALF, size=len(BODY))
    task = asyncio.create_task(storage.resume("key"))
    for _ in range(turns):
        await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    resumed: list[Note] = []

    async def is_resumed() -> bool:
        if (found := await storage.resume("key")) is not None:
            resumed.append(found[1])
            await found[0].abort()
        return bool(resumed)

    await eventually(is_resumed)
    assert resumed == [note]


async def test_a_cancelled_suspend_is_completed(storage: Storage) -> None:
    writer = await storage.begin("key", size=len(BODY), keep=True)
    writer.write([HALF])
    task = asyncio.create_task(writer.suspend(note_of("key", HALF)))
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task

    async def is_suspended() -> bool:
        return len(await storage.suspended()) == 1

    await eventually(is_suspended)
    assert await storage.discard("key") == 1


async def test_after_close(make: MakeStorage) -> None:
    storage = make()
    await storage.close()
    for call in (storage.resume("key"), storage.suspended(), storage.discard("key"), storage.remove_stale_partials()):
        with pytest.raises(StorageUnavailable):
            await call


async def test_suspending_what_another_has_stored(storage: Storage) -> None:
    """A partial and an artifact of the same bytes don't know of each other."""
    await suspend(storage, "key", BODY)
    await store(storage, BODY)
    writer, _ = await resume(storage, "key")
    await writer.commit(DIGEST)
    use = await storage.use()
    assert (use.stored, use.reserved) == (len(BODY), 0)


class Partials(RuleBasedStateMachine):
    """One key, any order of steps: what is resumed is what was written, and the quota adds up."""

    def __init__(self) -> None:
        super().__init__()
        self.loop = asyncio.new_event_loop()
        self.storage = MemoryStorage(limit=10_000, space_wait_seconds=0.0)
        self.writer: Any = None
        self.body = b""
        self.suspended: list[Note] = []
        self.bodies: dict[str, bytes] = {}

    @precondition(lambda self: self.writer is None)
    @rule()
    def begin(self) -> None:
        self.writer = self.loop.run_until_complete(self.storage.begin("key", size=300, keep=True))
        self.body = b""

    @precondition(lambda self: self.writer is not None)
    @rule(data=st.binary(max_size=100))
    def write(self, data: bytes) -> None:
        if len(self.body) + len(data) <= 300:
            self.writer.write([data])
            self.body += data

    @precondition(lambda self: self.writer is not None)
    @rule(share=st.integers(0, 100))
    def cut(self, share: int) -> None:
        self.body = self.body[: len(self.body) * share // 100]
        self.writer.cut(len(self.body))

    @precondition(lambda self: self.writer is not None and len(self.suspended) < 5)
    @rule(share=st.integers(0, 100))
    def suspend(self, share: int) -> None:
        body = self.body[: len(self.body) * share // 100]
        note = note_of("key", body, size=300, step=7, facts=f"{len(self.bodies)}")
        self.loop.run_until_complete(self.writer.suspend(note))
        self.suspended.append(note)
        self.bodies[note.facts] = body
        self.writer = None

    @precondition(lambda self: self.writer is None)
    @rule()
    def resume(self) -> None:
        found = self.loop.run_until_complete(self.storage.resume("key"))
        if found is None:
            assert self.suspended == []
            return
        self.writer, note = found
        assert note.offset == max(each.offset for each in self.suspended)
        self.suspended.remove(note)
        self.body = self.bodies[note.facts]

    @precondition(lambda self: self.writer is not None)
    @rule()
    def abort(self) -> None:
        self.loop.run_until_complete(self.writer.abort())
        self.writer = None

    @rule()
    def discard(self) -> None:
        assert self.loop.run_until_complete(self.storage.discard("key")) == len(self.suspended)
        self.suspended = []

    @invariant()
    def adds_up(self) -> None:
        reserved = sum(note.offset for note in self.suspended) + (300 if self.writer is not None else 0)

        async def is_counted() -> bool:  # what a reader held, the background gives back
            return (await self.storage.use()).reserved == reserved

        self.loop.run_until_complete(eventually(is_counted))

    @invariant()
    def what_is_written_is_read(self) -> None:
        if self.writer is not None:
            reader = self.writer.follow()
            assert read_all(reader) == self.body
            reader.close()

    def teardown(self) -> None:
        self.loop.run_until_complete(self.storage.close())
        self.loop.close()


TestPartials = Partials.TestCase
TestPartials.settings = settings(max_examples=40, stateful_step_count=30, deadline=None)
