"""P9: space is reserved before it is written."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import pytest

from contentapp.core.digest import Digest
from contentapp.core.errors import NoSpace
from contentapp.core.settings import MIB
from contentapp.storage.base import Storage
from tests.conformance.storage.kit import eventually, note_of, read_all, resume, store, suspend

MakeStorage = Callable[..., Storage]


class Evictor:
    """Answers a wish for room by deleting, as upkeep does, in the background."""

    def __init__(self) -> None:
        self.wishes: list[int] = []
        self.storage: Storage | None = None
        self.victim: Digest | None = None
        self.loop = asyncio.get_running_loop()

    def __call__(self, size: int) -> None:
        self.wishes.append(size)
        if self.storage is not None and self.victim is not None:
            asyncio.run_coroutine_threadsafe(self.storage.delete(self.victim), self.loop)


async def test_p9_known_size_is_reserved_at_once(storage: Storage) -> None:
    writer = await storage.begin("key", size=5 * MIB, keep=True)
    use = await storage.use()
    assert (use.stored, use.reserved, use.used) == (0, 5 * MIB, 5 * MIB)
    writer.write([bytes(MIB)])
    assert (await storage.use()).reserved == 5 * MIB
    await writer.commit(Digest.of(bytes(MIB)))
    use = await storage.use()
    assert (use.stored, use.reserved) == (MIB, 0)


async def test_p9_unknown_size_is_reserved_in_steps(make: MakeStorage) -> None:
    storage = make(limit=1024 * MIB)
    writer = await storage.begin("key", size=None, keep=False)
    assert (await storage.use()).reserved == 64 * MIB
    for _ in range(64):
        writer.write([bytes(MIB)])
    assert (await storage.use()).reserved == 64 * MIB
    writer.write([b"x"])
    assert (await storage.use()).reserved == 128 * MIB
    await writer.abort()


async def test_p9_a_body_longer_than_announced_is_reserved_too(storage: Storage) -> None:
    writer = await storage.begin("key", size=1, keep=True)
    writer.write([b"xy"])
    assert (await storage.use()).reserved == 1 + 64 * MIB
    await writer.abort()


async def test_p9_unkept_bytes_count_until_the_last_follower_left(storage: Storage) -> None:
    writer = await storage.begin("key", size=MIB, keep=False)
    one, other = writer.follow(), writer.follow()
    one.close()
    await writer.abort()
    assert (await storage.use()).reserved == MIB
    other.close()

    async def is_free() -> bool:
        return (await storage.use()).reserved == 0

    await eventually(is_free)


async def test_p9_suspended_partials_count(make: MakeStorage) -> None:
    storage = make(limit=2 * MIB)
    writer = await storage.begin("key", size=2 * MIB, keep=True)
    writer.write([bytes(MIB)])
    await writer.suspend(note_of("key", bytes(MIB), size=2 * MIB))
    assert (await storage.use()).reserved == MIB
    with pytest.raises(NoSpace):
        await storage.begin("other", size=MIB + 1, keep=True)
    assert await storage.remove_stale_partials() == 0
    assert (await storage.use()).reserved == MIB
    assert await storage.remove_stale_partials(0) == 1
    assert (await storage.use()).used == 0


async def test_p9_a_followed_suspended_partial_counts(make: MakeStorage) -> None:
    storage = make()
    writer = await storage.begin("key", size=2 * MIB, keep=True)
    writer.write([bytes(MIB)])
    follower = writer.follow()
    await writer.suspend(note_of("key", bytes(MIB), size=2 * MIB))
    assert await storage.remove_stale_partials() == 0
    assert (await storage.use()).reserved == MIB
    follower.close()
    assert await storage.discard("key") == 1
    assert (await storage.use()).reserved == 0


async def test_p9_resuming_moves_the_bytes_once(make: MakeStorage) -> None:
    storage = make(limit=3 * MIB)
    await suspend(storage, "key", bytes(MIB), size=2 * MIB)
    held = await storage.begin("held", size=MIB + 1, keep=True)
    with pytest.raises(NoSpace):
        await storage.resume("key")
    assert (await storage.use()).reserved == 2 * MIB + 1
    assert [each.note.offset for each in await storage.suspended()] == [MIB]
    await held.abort()
    writer, note = await resume(storage, "key")
    assert (await storage.use()).reserved == 2 * MIB
    assert await storage.remove_stale_partials() == 0
    assert (await storage.use()).reserved == 2 * MIB
    writer.write([bytes(MIB)])
    assert (await storage.use()).reserved == 2 * MIB
    await writer.suspend(note)
    assert (await storage.use()).reserved == MIB
    await (await resume(storage, "key"))[0].abort()
    assert (await storage.use()).used == 0


async def test_p9_a_resumed_body_is_stored_whole(make: MakeStorage) -> None:
    storage = make(limit=2 * MIB)
    await suspend(storage, "key", bytes(MIB), size=2 * MIB)
    writer, _ = await resume(storage, "key")
    writer.write([bytes(MIB)])
    await writer.commit(Digest.of(bytes(2 * MIB)))
    use = await storage.use()
    assert (use.stored, use.reserved) == (2 * MIB, 0)


async def test_p9_a_resume_asks_and_waits_for_room(make: MakeStorage) -> None:
    evictor = Evictor()
    storage = make(limit=2 * MIB, on_space_wanted=evictor, space_wait_seconds=60)
    note = await suspend(storage, "key", bytes(1000), size=MIB)
    evictor.storage, evictor.victim = storage, await store(storage, bytes(MIB + 1))
    writer, resumed = await resume(storage, "key")
    assert resumed == note
    assert evictor.wishes == [MIB - 1000]
    await writer.abort()


async def test_p9_a_cut_keeps_its_space(make: MakeStorage) -> None:
    storage = make(limit=MIB)
    writer = await storage.begin("key", size=MIB, keep=True)
    writer.write([bytes(MIB)])
    writer.cut(1000)
    assert (await storage.use()).reserved == MIB
    with pytest.raises(NoSpace):
        await storage.begin("other", size=1, keep=True)
    writer.write([bytes(MIB - 1000)])
    assert (await storage.use()).reserved == MIB
    await writer.commit(Digest.of(bytes(MIB)))
    assert (await storage.use()).used == MIB


@pytest.mark.parametrize("keep", [True, False])
async def test_p9_a_body_of_unknown_size_has_a_share(make: MakeStorage, keep: bool) -> None:
    """So one without an end is cut off before anybody is asked to evict for it."""
    evictor = Evictor()
    storage = make(limit=8 * MIB, on_space_wanted=evictor, space_wait_seconds=60)
    evictor.storage, evictor.victim = storage, await store(storage, bytes(5 * MIB))
    writer = await storage.begin("key", size=None, keep=keep)
    follower = writer.follow()
    assert (await storage.use()).reserved == 2 * MIB
    writer.write([bytes(2 * MIB)])
    with pytest.raises(NoSpace, match="unknown size"):
        writer.write([b"x"])
    assert (writer.written, evictor.wishes) == (2 * MIB, [])
    assert read_all(follower) == bytes(2 * MIB)
    follower.close()
    await writer.abort()


async def test_p9_the_last_step_of_an_unknown_size_is_what_is_left(make: MakeStorage) -> None:
    storage = make(limit=400 * MIB)
    writer = await storage.begin("key", size=None, keep=False)
    for _ in range(65):
        writer.write([bytes(MIB)])
    assert (await storage.use()).reserved == 100 * MIB
    await writer.abort()


async def test_p9_a_resumed_body_of_unknown_size_keeps_to_its_share(make: MakeStorage) -> None:
    storage = make(limit=8 * MIB)
    await suspend(storage, "key", bytes(MIB))
    writer, note = await resume(storage, "key")
    assert (note.size, (await storage.use()).reserved) == (None, 2 * MIB)
    writer.write([bytes(MIB)])
    with pytest.raises(NoSpace):
        writer.write([b"x"])
    await writer.abort()


async def test_stale_partials_are_not_those_being_written_or_followed(storage: Storage) -> None:
    writer = await storage.begin("key", size=MIB, keep=True)
    assert await storage.remove_stale_partials() == 0
    writer.write([b"abc"])
    await writer.commit(Digest.of(b"abc"))
    assert await storage.find(Digest.of(b"abc")) is not None


async def test_p9_what_can_never_fit_is_refused_at_once(make: MakeStorage) -> None:
    evictor = Evictor()
    storage = make(limit=MIB, on_space_wanted=evictor, space_wait_seconds=60)
    with pytest.raises(NoSpace):
        await storage.begin("key", size=MIB + 1, keep=True)
    assert evictor.wishes == []
    await (await storage.begin("key", size=MIB, keep=True)).abort()


async def test_p9_no_room_is_asked_for_and_waited_for(make: MakeStorage) -> None:
    evictor = Evictor()
    storage = make(limit=2 * MIB, on_space_wanted=evictor, space_wait_seconds=60)
    evictor.storage, evictor.victim = storage, await store(storage, bytes(MIB + 1))
    writer = await storage.begin("key", size=MIB, keep=True)
    assert evictor.wishes == [MIB]
    assert await storage.find(evictor.victim) is None
    await writer.abort()


async def test_p9_no_room_in_time(make: MakeStorage) -> None:
    evictor = Evictor()
    storage = make(limit=MIB, on_space_wanted=evictor, space_wait_seconds=0.05)
    held = await storage.begin("held", size=MIB - 9, keep=True)
    with pytest.raises(NoSpace):
        await storage.begin("key", size=10, keep=True)
    assert evictor.wishes == [10]
    await held.abort()
    await (await storage.begin("key", size=10, keep=True)).abort()


async def test_p9_growing_asks_and_waits_too(make: MakeStorage) -> None:
    evictor = Evictor()
    storage = make(limit=65 * MIB, on_space_wanted=evictor, space_wait_seconds=60)
    evictor.storage, evictor.victim = storage, await store(storage, bytes(MIB))
    writer = await storage.begin("key", size=MIB, keep=True)
    await asyncio.to_thread(writer.write, [bytes(MIB), b"x"])
    assert evictor.wishes == [64 * MIB]
    assert writer.written == MIB + 1
    await writer.abort()


async def test_p9_growing_without_room_keeps_what_there_is(make: MakeStorage) -> None:
    storage = make(limit=64 * MIB)
    writer = await storage.begin("key", size=MIB, keep=False)
    follower = writer.follow()
    writer.write([b"a" * MIB])
    with pytest.raises(NoSpace):
        writer.write([b"b"])
    assert writer.written == MIB
    assert read_all(follower) == b"a" * MIB
    follower.close()
    await writer.abort()


async def test_an_abort_ends_the_wait_of_a_write(make: MakeStorage) -> None:
    evictor = Evictor()
    storage = make(limit=64 * MIB, on_space_wanted=evictor, space_wait_seconds=3600)
    writer = await storage.begin("key", size=0, keep=False)
    held = await storage.begin("held", size=1, keep=False)
    writing = asyncio.create_task(asyncio.to_thread(writer.write, [b"b"]))
    while not evictor.wishes:
        await asyncio.sleep(0.001)
    await writer.abort()
    with pytest.raises(Exception, match="ended"):
        await writing
    await held.abort()


async def test_a_cancelled_wait_reserves_nothing(make: MakeStorage) -> None:
    storage = make(limit=MIB, space_wait_seconds=3600)
    held = await storage.begin("held", size=MIB, keep=True)
    waiting = asyncio.create_task(storage.begin("key", size=1, keep=True))
    await asyncio.sleep(0.05)
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    await held.abort()
    assert (await storage.use()).reserved == 0


async def test_the_clock_ends_the_wait(make: MakeStorage) -> None:
    now = [0.0]

    def clock() -> float:
        now[0] += 1000.0
        return now[0]

    storage = make(limit=MIB, clock=clock, space_wait_seconds=1999)
    held = await storage.begin("held", size=MIB, keep=True)
    with pytest.raises(NoSpace):
        await storage.begin("key", size=1, keep=True)
    assert now[0] == 3000.0
    await held.abort()


async def test_stored_can_be_corrected(storage: Storage) -> None:
    digest = await store(storage, b"abc")
    await storage.set_stored(1000)
    use = await storage.use()
    assert (use.stored, use.limit) == (1000, 256 * MIB)
    assert use.free > 0
    await storage.set_stored(0)
    await storage.delete(digest)
    assert (await storage.use()).stored == 0


async def test_check(make: MakeStorage) -> None:
    storage = make(limit=MIB)
    await storage.check()
    assert (await storage.use()).used == 0
    held = await storage.begin("held", size=MIB, keep=True)
    with pytest.raises(NoSpace):
        await storage.check()
    await held.abort()
    await storage.check()
