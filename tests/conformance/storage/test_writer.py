"""Writing: order, endings, followers, cancellation."""

from __future__ import annotations

import array
import asyncio
import os
import socket
from collections.abc import Callable

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from contentapp.core.digest import Digest
from contentapp.core.errors import StorageUnavailable
from contentapp.storage.base import ArtifactWriter, Storage
from tests.conformance.storage.kit import eventually, fetch, note_of, read_all, store

BODY = b"0123456789" * 1000
DIGEST = Digest.of(BODY)
ENDINGS = ["commit", "suspend", "abort"]


async def end(writer: ArtifactWriter, ending: str) -> None:
    if ending == "suspend":
        await writer.suspend(note_of("key", BODY[: writer.written]))
    else:
        await {"commit": lambda: writer.commit(DIGEST), "abort": writer.abort}[ending]()


@pytest.mark.parametrize("size", [len(BODY), None, 0])
async def test_commit(storage: Storage, size: int | None) -> None:
    writer = await storage.begin("key", size=size, keep=True)
    assert writer.written == 0
    for start in range(0, len(BODY), 1000):
        writer.write([BODY[start : start + 1000]])
    assert writer.written == len(BODY)
    assert await storage.find(DIGEST) is None
    await writer.commit(DIGEST)
    assert await fetch(storage, DIGEST) == BODY
    use = await storage.use()
    assert (use.stored, use.reserved) == (len(BODY), 0)


async def test_more_buffers_than_one_call_takes(storage: Storage) -> None:
    buffers: list[bytes | bytearray | memoryview] = [b"%d," % number for number in range(5000)]
    body = b"".join(buffers)
    writer = await storage.begin("key", size=None, keep=True)
    writer.write(buffers)
    assert writer.written == len(body)
    await writer.commit(Digest.of(body))
    assert await fetch(storage, Digest.of(body)) == body


async def test_all_kinds_of_buffers(storage: Storage) -> None:
    numbers = array.array("I", [1, 2, 3])
    writer = await storage.begin("key", size=None, keep=True)
    writer.write([b"", bytearray(b"ab"), memoryview(b"xcdx")[1:3], memoryview(numbers), b""])
    writer.write([])
    writer.write([b""])
    body = b"abcd" + numbers.tobytes()
    assert writer.written == len(body)
    await writer.commit(Digest.of(body))
    assert await fetch(storage, Digest.of(body)) == body


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(writes=st.lists(st.lists(st.binary(max_size=50), max_size=5), max_size=5))
async def test_what_is_read_is_what_was_written(storage: Storage, writes: list[list[bytes]]) -> None:
    body = b"".join(b"".join(buffers) for buffers in writes)
    writer = await storage.begin("key", size=None, keep=True)
    follower = writer.follow()
    for buffers in writes:
        writer.write(buffers)
        assert read_all(follower) == body[: writer.written]
    await writer.commit(Digest.of(body))
    follower.close()
    assert await fetch(storage, Digest.of(body)) == body


async def test_commit_is_idempotent(storage: Storage) -> None:
    first = await storage.begin("same", size=len(BODY), keep=True)
    second = await storage.begin("same", size=None, keep=True)
    for writer in (first, second):
        writer.write([BODY])
    reader = second.follow()
    await asyncio.gather(first.commit(DIGEST), second.commit(DIGEST))
    assert (await storage.use()).stored == len(BODY)
    assert read_all(reader) == BODY
    reader.close()
    assert await fetch(storage, DIGEST) == BODY


async def test_a_second_commit_leaves_the_first_in_use(storage: Storage) -> None:
    await store(storage, BODY)
    reader = await storage.open(DIGEST)
    await store(storage, BODY)
    assert not await storage.delete(DIGEST)
    reader.close()
    assert await storage.delete(DIGEST)


async def test_commit_replaces_what_has_another_size(storage: Storage) -> None:
    await store(storage, b"rotten", digest=DIGEST)
    await store(storage, BODY)
    assert await fetch(storage, DIGEST) == BODY
    assert (await storage.use()).stored == len(BODY)


@pytest.mark.parametrize("first", ENDINGS)
@pytest.mark.parametrize("second", ENDINGS)
async def test_a_second_ending_changes_nothing(storage: Storage, first: str, second: str) -> None:
    writer = await storage.begin("key", size=len(BODY), keep=True)
    writer.write([BODY])
    await end(writer, first)
    await end(writer, second)
    assert (await storage.find(DIGEST) is not None) == (first == "commit")
    assert await storage.remove_stale_partials() == 0
    assert await storage.discard("key") == (1 if first == "suspend" else 0)


@pytest.mark.parametrize("ending", ENDINGS)
async def test_nothing_is_written_or_followed_after_an_ending(storage: Storage, ending: str) -> None:
    writer = await storage.begin("key", size=len(BODY), keep=True)
    await end(writer, ending)
    with pytest.raises(StorageUnavailable):
        writer.write([b"late"])
    with pytest.raises(StorageUnavailable):
        writer.follow()
    await storage.discard("key")


@pytest.mark.parametrize("ending", ENDINGS)
@pytest.mark.parametrize("keep", [True, False])
async def test_followers_read_on_after_any_ending(storage: Storage, ending: str, keep: bool) -> None:
    writer = await storage.begin("key", size=None, keep=keep)
    follower = writer.follow()
    assert (follower.size, follower.read(0, 10)) == (0, b"")
    writer.write([BODY[:5000]])
    assert (follower.size, read_all(follower)) == (5000, BODY[:5000])
    late = writer.follow()
    writer.write([BODY[5000:]])
    if keep or ending != "commit":
        await end(writer, ending)
    else:
        with pytest.raises(ValueError, match="not to be kept"):
            await writer.commit(DIGEST)
        await writer.abort()
    await storage.discard("key")
    for reader in (follower, late):
        assert (reader.size, read_all(reader)) == (len(BODY), BODY)
        reader.close()
        reader.close()
    assert (await storage.find(DIGEST) is not None) == (keep and ending == "commit")
    await eventually(lambda: nothing_reserved(storage))


async def nothing_reserved(storage: Storage) -> bool:
    return (await storage.use()).reserved == 0


async def test_followers_of_a_committed_body_use_the_artifact(storage: Storage) -> None:
    writer = await storage.begin("key", size=len(BODY), keep=True)
    writer.write([BODY])
    follower = writer.follow()
    await writer.commit(DIGEST)
    assert not await storage.delete(DIGEST)
    follower.close()
    assert await storage.delete(DIGEST)


async def test_positions_are_nobody_elses(storage: Storage) -> None:
    """asyncio's sendfile leaves the position where it ended: neither writing nor another reader may care."""
    writer = await storage.begin("key", size=len(BODY), keep=True)
    writer.write([BODY[:100]])
    one, other = writer.follow(), writer.follow()
    os.lseek(one.fileno(), 7, os.SEEK_SET)
    assert other.read(0, 3) == BODY[:3]
    writer.write([BODY[100:]])
    ours, theirs = socket.socketpair()
    with ours, theirs:
        os.sendfile(ours.fileno(), other.fileno(), 50, 100)
        assert theirs.recv(200) == BODY[50:150]
    one.close()
    other.close()
    await writer.commit(DIGEST)
    assert await fetch(storage, DIGEST) == BODY


async def test_a_follower_cannot_write(storage: Storage) -> None:
    writer = await storage.begin("key", size=10, keep=True)
    follower = writer.follow()
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.write(follower.fileno(), b"x")
    follower.close()
    await writer.abort()


async def test_write_and_abort_at_once(storage: Storage) -> None:
    """The thread of a cancelled write goes on: it must end by itself, and never hit a descriptor that was closed."""
    for _ in range(20):
        writer = await storage.begin("key", size=None, keep=False)
        writing = asyncio.create_task(asyncio.to_thread(write_on, writer))
        while writer.written < 1000:
            await asyncio.sleep(0)
        await writer.abort()
        await writing


def write_on(writer: ArtifactWriter) -> None:
    try:
        while True:
            writer.write([b"x" * 500])
    except StorageUnavailable as error:
        assert "ended" in str(error)


@pytest.mark.parametrize("turns", range(4))
async def test_a_cancelled_begin_leaves_nothing(make: Callable[..., Storage], turns: int) -> None:
    storage = make()
    task = asyncio.create_task(storage.begin("key", size=1000, keep=True))
    for _ in range(turns):
        await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    await eventually(lambda: nothing_reserved(storage))


async def test_a_cancelled_commit_is_completed(make: Callable[..., Storage]) -> None:
    storage = make()
    writer = await storage.begin("key", size=len(BODY), keep=True)
    writer.write([BODY])
    task = asyncio.create_task(writer.commit(DIGEST))
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task

    async def is_committed() -> bool:
        return await storage.find(DIGEST) is not None

    await eventually(is_committed)
    await writer.abort()
    assert await fetch(storage, DIGEST) == BODY


async def test_close_aborts_what_has_not_ended(make: Callable[..., Storage]) -> None:
    storage = make()
    kept = await storage.begin("a", size=None, keep=True)
    unkept = await storage.begin("b", size=10, keep=False)
    kept.write([BODY])
    follower = kept.follow()
    await storage.close()
    assert read_all(follower) == BODY
    follower.close()
    await kept.commit(DIGEST)
    await unkept.abort()
    for call in (storage.begin("c", size=1, keep=True), storage.use(), storage.check()):
        with pytest.raises(StorageUnavailable):
            await call
