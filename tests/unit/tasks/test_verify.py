"""Reading again what is stored (P1), and adoption of what a crash left unrecorded (P5)."""

from __future__ import annotations

import asyncio
import os
from datetime import UTC, datetime, timedelta

import pytest

from contentapp.core.errors import StorageUnavailable
from contentapp.storage.base import ArtifactReader
from contentapp.tasks.verify import Verdicts
from tests.unit.tasks.conftest import LONG_AGO, Installation

SOON = timedelta(seconds=5)


async def test_everything_is_read_and_told(installation: Installation) -> None:
    for number in range(5):
        await installation.add(bytes([number]) * 10)
    seen: list[tuple[int, int]] = []
    found = await installation.verifier().run(lambda done, total: seen.append((done, total)))
    assert found == Verdicts(verified=5, size=50)
    assert seen == [(done, 5) for done in range(6)]


async def test_an_empty_artifact_is_right(installation: Installation, found: Verdicts) -> None:
    digest = await installation.add(b"")
    assert await installation.verifier().run(lambda done, total: None) == Verdicts(verified=1)
    assert await installation.is_stored(digest)


@pytest.mark.parametrize("damage", ["flipped", "truncated", "longer", "missing", "folder"])
async def test_damage_is_found_and_taken_out_of_the_way(installation: Installation, damage: str) -> None:
    good = await installation.add(b"good")
    bad = await installation.add(b"soon damaged")
    path = installation.path(bad)
    match damage:
        case "flipped":
            path.write_bytes(b"soon damageD")
        case "truncated":
            os.truncate(path, 4)
        case "longer":
            path.write_bytes(b"soon damaged and more")
        case "missing":
            path.unlink()
        case "folder":
            path.unlink()
            path.symlink_to(installation.path(good))
    found = await installation.verifier().run(lambda done, total: None)
    is_missing = damage == "missing"
    assert found == Verdicts(verified=1, size=4, missing=int(is_missing), damaged=int(not is_missing))
    assert await installation.is_stored(good)
    assert not await installation.is_stored(bad)
    assert not os.path.lexists(path)
    assert await installation.heard() == [f"artifact:{bad}"]


async def test_what_is_evicted_meanwhile_is_not_called_missing(installation: Installation, found: Verdicts) -> None:
    digest = await installation.add(b"about to go")
    record = await installation.catalog.find_artifact(digest)
    assert record is not None
    removing = asyncio.Lock()
    async with removing:  # eviction has removed the file, and not yet the record
        await installation.storage.delete(digest)
        check = asyncio.create_task(installation.verifier(removing=removing).check(record, found, rate=None))
        while not removing._waiters:
            await asyncio.sleep(0)
        await installation.catalog.forget_artifact(digest)
    await check
    assert found == Verdicts()
    assert installation.changed == []


async def test_a_storage_that_fails_costs_no_artifact(installation: Installation, found: Verdicts) -> None:
    digest = await installation.add(b"behind an error")
    record = await installation.catalog.find_artifact(digest)
    assert record is not None
    shard = installation.path(digest).parent
    shard.rename(shard.with_name("hidden"))
    shard.write_bytes(b"a file where a folder should be: neither there nor not there")
    with pytest.raises(StorageUnavailable):
        await installation.verifier().check(record, found, rate=None)
    assert await installation.catalog.find_artifact(digest) is not None


async def test_the_rate_is_kept(installation: Installation) -> None:
    await installation.add(b"x" * 400)
    loop = asyncio.get_running_loop()
    started = loop.time()
    await installation.verifier().run(lambda done, total: None, rate=4000.0)
    assert loop.time() - started >= 0.09


async def test_cancelled_it_closes_what_it_read_only_when_the_thread_is_done(
    installation: Installation, monkeypatch: pytest.MonkeyPatch
) -> None:
    digest = await installation.add(b"read slowly")
    record = await installation.catalog.find_artifact(digest)
    assert record is not None
    reader = SlowReader(await installation.storage.open(digest))

    async def opened(*_: object, **__: object) -> ArtifactReader:
        return reader

    monkeypatch.setattr(installation.storage, "open", opened)
    check = asyncio.create_task(installation.verifier().check(record, Verdicts(), rate=None))
    await reader.reading.wait()
    check.cancel()
    await asyncio.sleep(0)
    reader.loop.call_later(0.05, reader.go_on.set)
    with pytest.raises(asyncio.CancelledError):
        await check
    assert [reader.is_closed, reader.was_open_while_reading] == [True, True]


class SlowReader:
    """A reader whose first read takes until it is told to go on."""

    def __init__(self, reader: ArtifactReader) -> None:
        import threading

        self.reader = reader
        self.loop = asyncio.get_running_loop()
        self.reading = asyncio.Event()
        self.go_on = threading.Event()
        self.is_closed = False
        self.was_open_while_reading = False

    @property
    def size(self) -> int:
        return self.reader.size

    def fileno(self) -> int:
        return self.reader.fileno()

    def read(self, offset: int, size: int) -> bytes:
        self.loop.call_soon_threadsafe(self.reading.set)
        assert self.go_on.wait(5)
        self.was_open_while_reading = not self.is_closed
        return self.reader.read(offset, size)

    def close(self) -> None:
        self.is_closed = True
        self.reader.close()


# -- adoption


async def test_what_a_crash_left_unrecorded_is_adopted(installation: Installation) -> None:
    known = await installation.add(b"known")
    digest = await installation.store(b"unrecorded")
    found = await installation.verifier(started_at=datetime.now(UTC) + SOON).adopt()
    assert found == Verdicts(adopted=1)
    assert await installation.is_stored(digest)
    record = await installation.catalog.find_artifact(digest)
    assert record is not None
    assert record.size == 10
    assert record.flight == ""
    assert await installation.heard() == [f"artifact:{digest}"]
    assert await installation.is_stored(known)


async def test_what_was_known_of_it_stays(installation: Installation) -> None:
    digest = await installation.add(b"forgotten")
    await installation.catalog.forget_artifact(digest)
    await installation.verifier(started_at=datetime.now(UTC) + SOON).adopt()
    record = await installation.catalog.find_artifact(digest)
    assert record is not None
    assert record.modified_at == LONG_AGO
    assert [evictable.digest for evictable in await installation.upkeep.evictable(1)] == [digest]


async def test_an_unrecorded_artifact_with_wrong_bytes_goes(installation: Installation) -> None:
    digest = await installation.store(b"unrecorded")
    installation.path(digest).write_bytes(b"something!")
    found = await installation.verifier(started_at=datetime.now(UTC) + SOON).adopt()
    assert found == Verdicts(damaged=1)
    assert not installation.path(digest).exists()
    assert await installation.catalog.find_artifact(digest) is None


async def test_what_a_living_worker_is_about_to_record_is_left_to_it(installation: Installation) -> None:
    digest = await installation.store(b"just renamed")
    verifier = installation.verifier(started_at=datetime.now(UTC) - timedelta(hours=1))
    assert await verifier.adopt() == Verdicts()
    os.utime(installation.path(digest), (0, (datetime.now(UTC) - timedelta(minutes=2)).timestamp()))
    assert await verifier.adopt() == Verdicts(adopted=1), "that worker has died"
