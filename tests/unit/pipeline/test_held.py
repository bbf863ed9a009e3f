"""What an interrupted transfer has left is read again, and believed as far as it agrees with its note (P6)."""

from __future__ import annotations

import asyncio
import hashlib
import threading
from collections.abc import AsyncIterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import pytest
from hypothesis import given
from hypothesis import strategies as st

from contentapp.core.digest import Digest
from contentapp.core.errors import ArtifactDamaged, NoSpace, StorageError, StorageUnavailable
from contentapp.core.settings import GIB
from contentapp.pipeline.flight import Plan
from contentapp.pipeline.held import Held, take_up
from contentapp.pipeline.note import Facts, MarkedHasher, dump_facts, make_note, parse_facts
from contentapp.pipeline.progress import Head
from contentapp.storage.base import ArtifactReader, ArtifactWriter, Note, Storage
from contentapp.storage.filesystem import FilesystemStorage
from contentapp.storage.memory import MemoryStorage
from contentapp.storage.note import decode
from tests.unit.pipeline.scripted import BODY, A, B, C, plan

DIGEST = Digest.of(BODY)
STEP = 1000
LENGTH = 4321
FACTS = Facts(
    attempt="0a1b",
    path="/p",
    url=B.url,
    sources=(A.url, B.url),
    if_range='"tag"',
    head=Head(etag='"tag"'),
    moved_at=1e9,
)
DIGESTED, UNDIGESTED = plan(), plan(digest=None, size=None)


@pytest.fixture
async def storage() -> AsyncIterator[MemoryStorage]:
    storage = MemoryStorage()
    yield storage
    await storage.close()


def note_of(length: int, facts: Facts = FACTS, step: int = STEP, size: int | None = len(BODY)) -> Note:
    """What was written down of the right body's first bytes."""
    hasher = MarkedHasher(hashlib.sha256(), step)
    hasher.update(BODY[:length])
    return make_note("key", size, hasher, facts)


async def leave(storage: MemoryStorage, body: bytes, note: Note) -> None:
    """Have a partial of these bytes suspended with that note."""
    writer = await storage.begin(note.key, size=note.size, keep=True)
    writer.write([body])
    await writer.suspend(note)


async def bytes_of(held: Held) -> bytes:
    reader = held.writer.follow()
    try:
        return reader.read(0, len(BODY))
    finally:
        reader.close()


async def is_left(storage: MemoryStorage, note: Note) -> bool:
    """Whether the partial is there as it was; else there must be nothing at all."""
    found = [each.note for each in await storage.suspended()]
    assert found in ([], [note])
    if not found:
        await until_empty(storage)
    return bool(found)


async def until_empty(storage: MemoryStorage) -> None:
    """Return when all space has been given back, which a thread does with the last descriptor."""
    async with asyncio.timeout(10):
        while (await storage.use()).used:
            await asyncio.sleep(0.001)


def damaged(*places: int, length: int = LENGTH) -> bytes:
    body = bytearray(BODY[:length])
    for place in places:
        body[place] ^= 1
    return bytes(body)


async def test_what_is_right_is_held_whole(storage: MemoryStorage) -> None:
    note = note_of(LENGTH)
    await leave(storage, BODY[:LENGTH], note)
    held = await take_up(storage, DIGESTED)
    assert held is not None
    assert (held.size, held.facts, held.former) == (len(BODY), FACTS, FACTS.attempt)
    assert (held.hasher.offset, held.writer.written) == (LENGTH, LENGTH)
    assert held.hasher.hexdigest() == hashlib.sha256(BODY[:LENGTH]).hexdigest()
    assert await bytes_of(held) == BODY[:LENGTH]
    held.hasher.update(BODY[LENGTH:])
    assert DIGEST.matches(held.hasher)
    assert held.hasher.marks == list(note_of(len(BODY)).marks)
    await held.writer.abort()


async def test_without_a_partial_there_is_nothing(storage: MemoryStorage) -> None:
    await leave(storage, BODY[:LENGTH], replace(note_of(LENGTH), key="another"))
    assert await take_up(storage, DIGESTED) is None
    assert len(await storage.suspended()) == 1


@given(
    length=st.integers(0, len(BODY)),
    step=st.integers(1, 3000).map(lambda step: max(step, 50)),
    places=st.sets(st.integers(0, len(BODY) - 1), max_size=3),
)
async def test_it_is_cut_back_to_the_last_mark_before_the_damage(length: int, step: int, places: set[int]) -> None:
    storage = MemoryStorage()
    note = note_of(length, step=step)
    hit = [place for place in places if place < length]
    good = min(hit) // step * step if hit else length
    await leave(storage, damaged(*hit, length=length), note)
    held = await take_up(storage, DIGESTED)
    if good == 0:
        assert held is None
        assert not await is_left(storage, note)
    else:
        assert held is not None
        assert (held.hasher.offset, held.writer.written) == (good, good)
        assert held.hasher.hexdigest() == hashlib.sha256(BODY[:good]).hexdigest()
        assert len(held.hasher.marks) == good // step
        assert await bytes_of(held) == BODY[:good]
        assert held.former == (FACTS.attempt if good == length else "")
        await held.writer.abort()
    await storage.close()


MARKS = note_of(LENGTH).marks


@pytest.mark.parametrize(
    ("change", "good"),
    [
        ({"mark": "00" * 32}, 4000),
        ({"mark": ""}, 4000),
        ({"marks": ("00", *MARKS[1:])}, 0),
        ({"marks": (MARKS[0], MARKS[0], *MARKS[2:])}, 1000),
        ({"marks": (*MARKS[:3], "x")}, 3000),
    ],
)
async def test_marks_that_are_others(storage: MemoryStorage, change: dict[str, Any], good: int) -> None:
    note = replace(note_of(LENGTH), **change)
    await leave(storage, BODY[:LENGTH], note)
    held = await take_up(storage, DIGESTED)
    assert (0 if held is None else held.hasher.offset) == good
    if held is not None:
        assert (held.writer.written, held.former) == (good, "")
        await held.writer.abort()


async def test_the_hash_is_that_of_the_plan(storage: MemoryStorage) -> None:
    """A note of another algorithm says nothing of these bytes."""
    note = note_of(LENGTH)
    await leave(storage, BODY[:LENGTH], note)
    assert await take_up(storage, plan(digest=Digest.of(BODY, "sha512"))) is None
    assert not await is_left(storage, note)


@pytest.mark.parametrize(
    ("wanted", "facts", "size", "fits"),
    [
        (DIGESTED, FACTS, len(BODY), True),
        (DIGESTED, FACTS, None, True),
        (DIGESTED, FACTS, len(BODY) + 1, False),
        (plan(size=None), FACTS, len(BODY) + 1, True),
        (DIGESTED, replace(FACTS, url="http://gone/file", if_range=""), len(BODY), True),
        (UNDIGESTED, FACTS, len(BODY), True),
        (UNDIGESTED, FACTS, None, True),
        (UNDIGESTED, replace(FACTS, if_range=""), len(BODY), False),
        (UNDIGESTED, replace(FACTS, url="http://gone/file"), len(BODY), False),
        (plan(digest=None, size=None, sources=(A, C)), FACTS, len(BODY), False),
        (plan(digest=None, size=None, sources=()), FACTS, len(BODY), False),
    ],
    ids=[
        "digest",
        "digest, size unknown",
        "digest, another size",
        "digest, any size",
        "digest, another URL",
        "undigested",
        "undigested, size unknown",
        "no validator",
        "another URL",
        "not of its source",
        "no source",
    ],
)
async def test_bytes_that_are_not_the_wanted_ones_go(
    storage: MemoryStorage, wanted: Plan, facts: Facts, size: int | None, fits: bool
) -> None:
    note = note_of(LENGTH, facts, size=size)
    await leave(storage, BODY[:LENGTH], note)
    held = await take_up(storage, wanted)
    assert (held is not None) == fits
    if held is not None:
        assert held.size == size
        await held.writer.abort()
    assert not await is_left(storage, note)


@pytest.mark.parametrize("text", ["", "{}", "[]", '{"color": "red"}', "\x00"])
async def test_facts_that_nobody_can_read_mean_from_the_beginning(storage: MemoryStorage, text: str) -> None:
    note = replace(note_of(LENGTH), facts=text)
    await leave(storage, BODY[:LENGTH], note)
    assert await take_up(storage, DIGESTED) is None
    assert not await is_left(storage, note)


async def test_bytes_of_an_attempt_that_was_no_whole_vouch_for_no_device(storage: MemoryStorage) -> None:
    await leave(storage, BODY[:LENGTH], note_of(LENGTH, replace(FACTS, attempt="")))
    held = await take_up(storage, DIGESTED)
    assert held is not None
    assert held.former == ""
    await held.writer.abort()


# Whoever goes on takes the attempt's name out of the note


async def claimed(storage: MemoryStorage, note: Note, error: StorageError | None = None) -> tuple[str, list[Note]]:
    """What take_up makes of a partial's former attempt, and the notes that it writes."""
    notes: list[Note] = []

    def write(written: Note) -> None:
        notes.append(written)
        if error is not None:
            raise error

    await leave(storage, BODY[:LENGTH], note)
    held = await taken(storage, on_checkpoint=write)
    assert held is not None
    assert held.hasher.offset == LENGTH
    await held.writer.abort()
    return held.former, notes


async def test_a_former_attempt_is_named_once(storage: MemoryStorage) -> None:
    """Bytes that come from now on may be lost, and come otherwise the next time, behind the same note."""
    note = note_of(LENGTH)
    former, written = await claimed(storage, note)
    assert former == FACTS.attempt
    assert written == [replace(note, facts=dump_facts(replace(FACTS, attempt="")))]


async def test_a_former_attempt_that_can_not_be_taken_out_is_not_named(storage: MemoryStorage) -> None:
    former, written = await claimed(storage, note_of(LENGTH), NoSpace("full"))
    assert (former, len(written)) == ("", 1)


async def test_without_a_former_attempt_no_note_is_written(storage: MemoryStorage) -> None:
    assert await claimed(storage, note_of(LENGTH, replace(FACTS, attempt=""))) == ("", [])


async def test_the_name_is_gone_from_the_disk(tmp_path: Path) -> None:
    """A kill from now on leaves a partial that vouches for no device."""
    storage = FilesystemStorage(tmp_path / "data", run_dir=tmp_path / "run", limit=GIB)
    writer = await storage.begin("key", size=len(BODY), keep=True)
    writer.write([BODY[:LENGTH]])
    await writer.suspend(note_of(LENGTH))
    held = await take_up(storage, DIGESTED)
    assert held is not None
    (path,) = (tmp_path / "data" / "partials").glob("*.json")
    facts = parse_facts(decode(path.read_bytes()).facts)
    assert (held.former, facts) == (FACTS.attempt, replace(FACTS, attempt=""))
    await held.writer.abort()
    await storage.close()


# Storages that fail


class Broken:
    """A writer whose reads, or cuts, go wrong as told; all else is the true one's."""

    def __init__(
        self,
        true: ArtifactWriter,
        *,
        on_read: Any = None,
        on_follow: Any = None,
        on_cut: Any = None,
        on_checkpoint: Any = None,
    ) -> None:
        self._true, self._on_read, self._on_follow, self._on_cut = true, on_read, on_follow, on_cut
        self._on_checkpoint = on_checkpoint

    def checkpoint(self, note: Note) -> None:
        if self._on_checkpoint is not None:
            self._on_checkpoint(note)
        self._true.checkpoint(note)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._true, name)

    def follow(self) -> ArtifactReader:
        if self._on_follow is not None:
            raise self._on_follow
        return cast(ArtifactReader, BrokenReader(self._true.follow(), self._on_read))

    def cut(self, size: int) -> None:
        if self._on_cut is not None:
            raise self._on_cut
        self._true.cut(size)


class BrokenReader:
    def __init__(self, true: ArtifactReader, on_read: Any) -> None:
        self._true, self._on_read = true, on_read

    def __getattr__(self, name: str) -> Any:
        return getattr(self._true, name)

    def read(self, offset: int, size: int) -> bytes:
        if self._on_read is not None:
            self._on_read(offset)
        return self._true.read(offset, size)


class Failing:
    """A storage that gives such writers, or fails itself."""

    def __init__(self, true: MemoryStorage, error: StorageError | None = None, **broken: Any) -> None:
        self._true, self._error, self._broken = true, error, broken

    async def resume(self, key: str) -> tuple[ArtifactWriter, Note] | None:
        if self._error is not None:
            raise self._error
        found = await self._true.resume(key)
        return None if found is None else (cast(ArtifactWriter, Broken(found[0], **self._broken)), found[1])


async def taken(storage: MemoryStorage, **broken: Any) -> Held | None:
    return await take_up(cast(Storage, Failing(storage, **broken)), DIGESTED)


@pytest.mark.parametrize("error", [NoSpace("full"), StorageUnavailable("gone")])
async def test_what_can_not_be_taken_over_stays(storage: MemoryStorage, error: StorageError) -> None:
    note = note_of(LENGTH)
    await leave(storage, BODY[:LENGTH], note)
    assert await taken(storage, error=error) is None
    assert await is_left(storage, note)


@pytest.mark.parametrize(
    "broken",
    [{"on_follow": StorageUnavailable("no descriptor")}, {"on_cut": StorageUnavailable("read-only")}],
    ids=["follow", "cut"],
)
async def test_what_can_not_be_read_or_cut_goes(storage: MemoryStorage, broken: dict[str, Any]) -> None:
    note = note_of(LENGTH)
    await leave(storage, damaged(2500), note)
    assert await taken(storage, **broken) is None
    assert not await is_left(storage, note)


@pytest.mark.parametrize(("at", "good"), [(0, 0), (1000, 1000), (4000, 4000)])
async def test_what_can_not_be_read_is_missing(storage: MemoryStorage, at: int, good: int) -> None:
    def fail(offset: int) -> None:
        if offset >= at:
            raise ArtifactDamaged("read error")

    note = note_of(LENGTH)
    await leave(storage, BODY[:LENGTH], note)
    held = await taken(storage, on_read=fail)
    assert (0 if held is None else held.hasher.offset) == good
    if held is not None:
        assert held.writer.written == good
        await held.writer.abort()
    assert not await is_left(storage, note)


async def test_bytes_that_have_gone_meanwhile_are_missing(storage: MemoryStorage) -> None:
    """A read of nothing is an end, not a reason to go on for ever."""

    class Short(BrokenReader):
        def read(self, offset: int, size: int) -> bytes:
            return self._true.read(offset, min(size, max(0, 2500 - offset)))

    class Shortened(Broken):
        def follow(self) -> ArtifactReader:
            return cast(ArtifactReader, Short(self._true.follow(), None))

    class Shortening(Failing):
        async def resume(self, key: str) -> tuple[ArtifactWriter, Note] | None:
            found = await self._true.resume(key)
            return None if found is None else (cast(ArtifactWriter, Shortened(found[0])), found[1])

    await leave(storage, BODY[:LENGTH], note_of(LENGTH))
    held = await take_up(cast(Storage, Shortening(storage)), DIGESTED)
    assert held is not None
    assert (held.hasher.offset, held.writer.written) == (2000, 2000)
    await held.writer.abort()


@pytest.mark.parametrize("at", [0, 1000, 4000])
async def test_nothing_is_lost_when_it_is_cancelled_while_it_reads(storage: MemoryStorage, at: int) -> None:
    reading, go_on = threading.Event(), threading.Event()

    def wait(offset: int) -> None:
        if offset >= at:
            reading.set()
            assert go_on.wait(10)

    note = note_of(LENGTH)
    await leave(storage, BODY[:LENGTH], note)
    task = asyncio.create_task(taken(storage, on_read=wait))
    assert await asyncio.to_thread(reading.wait, 10)
    task.cancel()
    try:
        with pytest.raises(asyncio.CancelledError):
            await asyncio.wait_for(asyncio.shield(asyncio.wait([task])), 10)
            await task
    finally:
        go_on.set()
    assert await is_left(storage, note)
    held = await take_up(storage, DIGESTED)
    assert held is not None
    assert held.hasher.offset == LENGTH
    await held.writer.abort()


async def test_a_bug_loses_nothing_either(storage: MemoryStorage) -> None:
    def fail(_offset: int) -> None:
        raise ValueError("a bug")

    note = note_of(LENGTH)
    await leave(storage, BODY[:LENGTH], note)
    with pytest.raises(ValueError, match="a bug"):
        await taken(storage, on_read=fail)
    assert await is_left(storage, note)


@pytest.mark.parametrize("places", [(), (2500,)])
async def test_the_reader_is_closed(storage: MemoryStorage, places: Sequence[int]) -> None:
    """Else the space would never be given back."""
    await leave(storage, damaged(*places), note_of(LENGTH))
    held = await take_up(storage, DIGESTED)
    assert held is not None
    await held.writer.abort()
    await until_empty(storage)
