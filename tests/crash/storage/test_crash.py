"""P5: a process killed at any moment leaves no artifact that is not whole, and nothing that stays."""

from __future__ import annotations

import random
import time
from pathlib import Path

import pytest

from contentapp.core.digest import Digest
from contentapp.storage.filesystem import FilesystemStorage
from tests.conformance.storage.kit import read_all
from tests.unit.storage.peer import Peer, peer, storage_in

TEXT = "bytes that matter " * 1000
DIGEST = Digest.of(TEXT.encode())


async def intact(storage: FilesystemStorage) -> int:
    """The bytes of all artifacts, each of which must be what its name says."""
    total = 0
    async for found in storage.scan():
        reader = await storage.open(found.digest, size=found.size)
        assert Digest.of(reader.read(0, reader.size)) == found.digest
        reader.close()
        total += found.size
    return total


async def verify_suspended(storage: FilesystemStorage) -> None:
    """The first bytes of each suspended partial must be what its note says."""
    for found in await storage.suspended():
        resumed = await storage.resume(found.note.key)
        assert resumed is not None
        writer, note = resumed
        reader = writer.follow()
        assert Digest.of(read_all(reader)).encoded == note.mark
        reader.close()
        await writer.suspend(note)


async def recover(folder: Path) -> None:
    """Start after a crash: what is there is whole, what is not goes, and the storage works."""
    storage = storage_in(folder)
    total = await intact(storage)
    use = await storage.use()
    assert use.stored >= total, "a kill may cost room, but never the quota"
    await verify_suspended(storage)
    await storage.remove_stale_partials(0)
    assert list((folder / "data" / "partials").iterdir()) == []
    assert (await storage.use()).reserved == 0
    await storage.set_stored(total)
    writer = await storage.begin("again", size=len(TEXT), keep=True)
    writer.write([TEXT.encode()])
    await writer.commit(DIGEST)
    reader = await storage.open(DIGEST, size=len(TEXT))
    assert reader.read(0, reader.size) == TEXT.encode()
    reader.close()
    assert (await storage.use()).stored == await intact(storage)
    await storage.close()
    assert sorted(path.name for path in (folder / "run" / "space").iterdir()) == ["ledger", "names"]


def commit(process: Peer) -> bool:
    """Whether the commit was reported as done."""
    process.send("begin", "key", len(TEXT), True)
    process.send("write", "key", TEXT)
    process.send("commit", "key", str(DIGEST))
    return [process.answer() for _ in range(3)] == [{"ok": None}] * 3


@pytest.mark.parametrize(
    ("step", "is_there"),
    [
        ("opened", False),
        ("begun", False),
        ("verified", False),
        ("synced", False),
        ("sharded", False),
        ("counted", False),
        ("renamed", True),
        ("unnoted", True),
        ("durable", True),
    ],
)
async def test_p5_killed_in_a_commit(tmp_path: Path, step: str, is_there: bool) -> None:
    with peer(tmp_path, crash_at=step) as process:
        try:
            assert not commit(process)
        except BrokenPipeError:
            assert step in {"opened", "begun"}
        process.process.wait(30)
        assert process.process.returncode == -9
    storage = storage_in(tmp_path)
    assert (await storage.find(DIGEST) is not None) == is_there
    await storage.close()
    await recover(tmp_path)


async def test_p5_committed_is_committed(tmp_path: Path) -> None:
    with peer(tmp_path) as process:
        assert commit(process)
        process.kill()
    storage = storage_in(tmp_path)
    assert await storage.find(DIGEST) is not None
    await storage.close()
    await recover(tmp_path)


async def test_p5_killed_in_a_delete(tmp_path: Path) -> None:
    with peer(tmp_path, crash_at="unlinked") as process:
        assert commit(process)
        assert process.call("delete", str(DIGEST)) is None
        process.process.wait(30)
        assert process.process.returncode == -9
    await recover(tmp_path)


@pytest.mark.parametrize("seed", range(6))
async def test_p5_p6_killed_at_any_moment(tmp_path: Path, seed: int) -> None:
    """Two processes at work on the same few bodies, one killed, then the other."""
    moment = random.Random(seed)
    with peer(tmp_path) as one, peer(tmp_path) as other:
        for process in (one, other):
            assert process.call("use") == [0, 0]
        for process in (one, other):
            process.send("churn", seed)
        for process in (one, other):
            time.sleep(moment.uniform(0.02, 0.2))
            process.kill()
    await recover(tmp_path)
