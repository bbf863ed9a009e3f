"""What is stored: find, open, delete, quarantine, scan."""

from __future__ import annotations

import os
import socket
from datetime import UTC, datetime, timedelta

import pytest

from contentapp.core.digest import Digest
from contentapp.core.errors import ArtifactDamaged, ArtifactNotFound
from contentapp.storage.base import Storage
from tests.conformance.storage.kit import fetch, read_all, store

BODY = bytes(range(256)) * 40
ABSENT = Digest.of(b"never stored")


async def test_absent(storage: Storage) -> None:
    assert await storage.find(ABSENT) is None
    with pytest.raises(ArtifactNotFound):
        await storage.open(ABSENT)
    with pytest.raises(ArtifactNotFound):
        await storage.open(ABSENT, size=3)


@pytest.mark.parametrize("algorithm", ["sha256", "sha512"])
@pytest.mark.parametrize("body", [b"", b"x", BODY])
async def test_stored_is_found_and_read(storage: Storage, algorithm: str, body: bytes) -> None:
    digest = await store(storage, body, digest=Digest.of(body, algorithm))
    found = await storage.find(digest)
    assert found is not None
    assert (found.digest, found.size) == (digest, len(body))
    assert abs(found.stored_at - datetime.now(UTC)) < timedelta(minutes=1)
    assert await fetch(storage, digest) == body


async def test_reads_at_any_offset(storage: Storage) -> None:
    reader = await storage.open(await store(storage, BODY), size=len(BODY))
    assert reader.size == len(BODY)
    assert reader.read(100, 10) == BODY[100:110]
    assert reader.read(len(BODY) - 3, 10) == BODY[-3:]
    assert reader.read(len(BODY), 10) == b""
    assert reader.read(0, 4) == BODY[:4]
    reader.close()
    reader.close()


async def test_p1_another_size_is_damage(storage: Storage) -> None:
    digest = await store(storage, BODY)
    for size in (0, len(BODY) - 1, len(BODY) + 1):
        with pytest.raises(ArtifactDamaged):
            await storage.open(digest, size=size)


async def test_descriptor_can_be_sent(storage: Storage) -> None:
    reader = await storage.open(await store(storage, BODY))
    ours, theirs = socket.socketpair()
    with ours, theirs:
        assert os.sendfile(ours.fileno(), reader.fileno(), 200, 1000) == 1000
        assert theirs.recv(2000) == BODY[200:1200]
    reader.close()


async def test_delete(storage: Storage) -> None:
    digest = await store(storage, BODY)
    assert await storage.delete(digest)
    assert await storage.find(digest) is None
    with pytest.raises(ArtifactNotFound):
        await storage.open(digest)
    assert await storage.delete(digest)
    assert (await storage.use()).stored == 0


async def test_delete_spares_what_is_in_use(storage: Storage) -> None:
    digest = await store(storage, BODY)
    first, second = await storage.open(digest), await storage.open(digest)
    assert not await storage.delete(digest)
    first.close()
    assert not await storage.delete(digest)
    assert await storage.find(digest) is not None
    assert read_all(second) == BODY
    second.close()
    assert await storage.delete(digest)


async def test_a_passed_descriptor_is_use(storage: Storage) -> None:
    digest = await store(storage, BODY)
    reader = await storage.open(digest)
    ours, theirs = socket.socketpair(socket.AF_UNIX)
    with ours, theirs:
        socket.send_fds(ours, [b"."], [reader.fileno()])
        _, (passed,), _, _ = socket.recv_fds(theirs, 1, 1)
    reader.close()
    assert not await storage.delete(digest)
    assert os.pread(passed, 5, 10) == BODY[10:15]
    os.close(passed)
    assert await storage.delete(digest)


async def test_p7_quarantine_takes_away_what_is_in_use(storage: Storage) -> None:
    digest = await store(storage, BODY)
    reader = await storage.open(digest)
    await storage.quarantine(digest)
    assert await storage.find(digest) is None
    assert (await storage.use()).stored == 0
    assert read_all(reader) == BODY
    await store(storage, BODY)
    assert await fetch(storage, digest) == BODY
    reader.close()
    assert await fetch(storage, digest) == BODY
    await storage.quarantine(ABSENT)


async def test_scan(storage: Storage) -> None:
    assert [found async for found in storage.scan()] == []
    bodies = [b"%d" % number * number for number in range(1, 40)]
    stored = {await store(storage, body): len(body) for body in bodies}
    long = await store(storage, BODY, digest=Digest.of(BODY, "sha512"))
    partial = await storage.begin("unfinished", size=10, keep=True)
    assert {found.digest: found.size async for found in storage.scan()} == stored | {long: len(BODY)}
    await partial.abort()


async def test_scan_can_be_left(storage: Storage) -> None:
    for number in range(5):
        await store(storage, b"%d" % number)
    async for found in storage.scan():
        assert found.size == 1
        break
