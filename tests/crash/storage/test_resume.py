"""P6: a process killed, or the power lost, at any step of keeping a partial for later.

What is left can be resumed with exactly the bytes that were written, or can't be resumed at all; and a note that was
durable is only lost to what was meant to remove it.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from contentapp.core.digest import Digest
from contentapp.core.settings import KIB
from tests.conformance.storage.kit import read_all
from tests.crash.storage.test_crash import recover
from tests.unit.storage.peer import Peer, journal_in, peer, storage_in

Steps = list[list[Any]]
"""Commands to a peer, each with its arguments."""

TEXT = "".join(f"line {number}\n" for number in range(3000))
FIRST, SECOND, ALL = 10_000, 20_000, len(TEXT)
DIGEST = Digest.of(TEXT.encode())

LOSSES = ["kill", "truncated", "zeroed"]
NOTE_STEPS = ["note-opened", "note-written", "note-synced", "note-renamed", "note-durable"]
UNSYNCED_NOTE = {"note-opened", "note-written"}


def lose_power(folder: Path, loss: str) -> None:
    """Of what was not made durable, nothing is left: files end there, or hold zeros."""
    if loss == "kill":
        return
    durable = journal_in(folder)
    for path in (folder / "data" / "partials").iterdir():
        found = path.stat()
        kept = min(found.st_size, durable.get(found.st_ino, 0))
        os.truncate(path, kept)
        if loss == "zeroed":
            os.truncate(path, found.st_size)


def do_all(process: Peer, steps: Steps) -> None:
    for do, *args in steps:
        assert process.call(do, *args) is None


def kill_at(folder: Path, step: str, before: Steps, last: list[Any]) -> None:
    """Do all this in one process, which dies at the step of the last."""
    with peer(folder) as process:
        assert process.call("journal") is None
        do_all(process, before)
        assert process.call("arm", step) is None
        assert process.call(*last) is None
        process.process.wait(30)
        assert process.process.returncode == -9, "the step was never reached"


async def assert_left(folder: Path, offset: int | None) -> None:
    """A partial with exactly so many bytes can be resumed and completed, or there is none."""
    storage = storage_in(folder)
    on_disk = sum(path.stat().st_size for path in (folder / "data" / "partials").glob("*.part"))
    assert (await storage.use()).used >= on_disk, "a kill may cost room, but never the quota"
    assert [found.note.offset for found in await storage.suspended()] == ([] if offset is None else [offset])
    resumed = await storage.resume("key")
    assert (None if resumed is None else resumed[1].offset) == offset
    if resumed is not None:
        writer, _ = resumed
        reader = writer.follow()
        assert read_all(reader) == TEXT[:offset].encode()
        reader.close()
        writer.write([TEXT[offset:].encode()])
        await writer.commit(DIGEST)
        opened = await storage.open(DIGEST, size=ALL)
        assert read_all(opened) == TEXT.encode()
        opened.close()
    assert await storage.remove_stale_partials() <= 1
    assert list((folder / "data" / "partials").iterdir()) == []
    assert (await storage.use()).reserved == 0
    await storage.close()
    await recover_with(folder, is_stored=resumed is not None)


async def recover_with(folder: Path, *, is_stored: bool) -> None:
    storage = storage_in(folder)
    if is_stored:
        assert await storage.delete(DIGEST)
    await storage.set_stored(0)
    await storage.close()
    await recover(folder)


BEGIN: Steps = [["begin", "key", ALL, True], ["write", "key", TEXT[:FIRST]]]
NOTED: Steps = [*BEGIN, ["checkpoint", "key"], ["write", "key", TEXT[FIRST:SECOND]]]
NOTED_TWICE: Steps = [*NOTED, ["checkpoint", "key"], ["write", "key", TEXT[SECOND:]]]


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("step", ["flushed", *NOTE_STEPS])
async def test_p6_in_the_first_checkpoint(tmp_path: Path, step: str, loss: str) -> None:
    kill_at(tmp_path, step, BEGIN, ["checkpoint", "key"])
    lose_power(tmp_path, loss)
    is_noted = step in NOTE_STEPS and step not in ({"note-opened"} if loss == "kill" else UNSYNCED_NOTE)
    await assert_left(tmp_path, FIRST if is_noted else None)


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("step", ["flushed", *NOTE_STEPS])
async def test_p6_in_a_later_checkpoint(tmp_path: Path, step: str, loss: str) -> None:
    kill_at(tmp_path, step, NOTED, ["checkpoint", "key"])
    lose_power(tmp_path, loss)
    is_noted = step in NOTE_STEPS and step not in ({"note-opened"} if loss == "kill" else UNSYNCED_NOTE)
    await assert_left(tmp_path, SECOND if is_noted else FIRST)


@pytest.mark.parametrize("loss", LOSSES)
async def test_p6_while_writing(tmp_path: Path, loss: str) -> None:
    with peer(tmp_path) as process:
        assert process.call("journal") is None
        do_all(process, NOTED_TWICE)
        process.kill()
    lose_power(tmp_path, loss)
    await assert_left(tmp_path, SECOND)


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("step", ["cut", "synced", *NOTE_STEPS, "counted", "suspended"])
async def test_p6_in_a_suspend(tmp_path: Path, step: str, loss: str) -> None:
    kill_at(tmp_path, step, NOTED, ["suspend", "key", SECOND - 1])
    lose_power(tmp_path, loss)
    unnoted = {"cut", "synced", "note-opened"} | (set() if loss == "kill" else UNSYNCED_NOTE)
    await assert_left(tmp_path, FIRST if step in unnoted else SECOND - 1)


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("step", ["unnoted", "cut", "synced", *NOTE_STEPS, "counted", "suspended"])
async def test_p6_in_a_suspend_of_less_than_was_noted(tmp_path: Path, step: str, loss: str) -> None:
    kill_at(tmp_path, step, NOTED, ["suspend", "key", FIRST - 1])
    lose_power(tmp_path, loss)
    unnoted = {"unnoted", "cut", "synced", "note-opened"} | (set() if loss == "kill" else UNSYNCED_NOTE)
    await assert_left(tmp_path, None if step in unnoted else FIRST - 1)


@pytest.mark.parametrize("loss", LOSSES)
async def test_p6_in_a_cut(tmp_path: Path, loss: str) -> None:
    """The note that tells of more is gone before any byte is."""
    kill_at(tmp_path, "unnoted", NOTED, ["cut", "key", FIRST - 1])
    lose_power(tmp_path, loss)
    await assert_left(tmp_path, None)


async def test_p6_other_bytes_after_a_cut(tmp_path: Path) -> None:
    with peer(tmp_path) as process:
        do_all(process, [*BEGIN, ["write", "key", "wrong"], ["checkpoint", "key"]])
        do_all(process, [["cut", "key", FIRST], ["write", "key", TEXT[FIRST:]]])
        process.kill()
    await assert_left(tmp_path, None)


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("step", ["claimed", "cut", "resumed"])
async def test_p6_in_a_resume(tmp_path: Path, step: str, loss: str) -> None:
    with peer(tmp_path) as process:
        assert process.call("journal") is None
        do_all(process, NOTED_TWICE)
        process.kill()
    kill_at(tmp_path, step, [], ["resume", "key"])
    lose_power(tmp_path, loss)
    await assert_left(tmp_path, SECOND)


@pytest.mark.parametrize("loss", LOSSES)
async def test_p6_after_a_resume(tmp_path: Path, loss: str) -> None:
    with peer(tmp_path) as process:
        do_all(process, [["journal"], *NOTED, ["suspend", "key"]])
    with peer(tmp_path) as process:
        assert process.call("journal") is None
        assert process.call("resume", "key") == SECOND
        assert process.call("write", "key", TEXT[SECOND:-1]) is None
        process.kill()
    lose_power(tmp_path, loss)
    await assert_left(tmp_path, SECOND)


@pytest.mark.parametrize("step", ["unnoted", "discarded"])
async def test_p6_in_a_discard(tmp_path: Path, step: str) -> None:
    kill_at(tmp_path, step, [*NOTED, ["suspend", "key"]], ["discard", "key"])
    await assert_left(tmp_path, None)


async def test_p6_in_an_abort(tmp_path: Path) -> None:
    kill_at(tmp_path, "unnoted", NOTED, ["abort", "key"])
    await assert_left(tmp_path, None)


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("step", ["verified", "synced", "sharded", "counted"])
async def test_p6_in_a_commit_before_its_rename(tmp_path: Path, step: str, loss: str) -> None:
    kill_at(tmp_path, step, NOTED_TWICE, ["commit", "key", str(DIGEST)])
    lose_power(tmp_path, loss)
    await assert_left(tmp_path, SECOND)


@pytest.mark.parametrize("step", ["renamed", "unnoted", "durable"])
async def test_p6_in_a_commit_after_its_rename(tmp_path: Path, step: str) -> None:
    kill_at(tmp_path, step, NOTED_TWICE, ["commit", "key", str(DIGEST)])
    storage = storage_in(tmp_path)
    assert await storage.find(DIGEST) is not None
    assert await storage.suspended() == []
    assert await storage.resume("key") is None
    await storage.close()
    await recover(tmp_path)


async def test_p6_a_kill_never_exceeds_the_quota(tmp_path: Path) -> None:
    """What a killed process has written counts until it is counted anew, and so leaves no room for others."""
    limit = 64 * KIB
    with peer(tmp_path, limit=limit) as process:
        do_all(process, NOTED_TWICE)
        process.kill()
    with peer(tmp_path, limit=limit) as process:
        assert process.call("begin", "other", limit - ALL + 1, True) == "NoSpace"
        assert process.call("resume", "key") == SECOND
        assert process.call("begin", "other", limit - ALL + 1, True) == "NoSpace"
        assert process.call("begin", "other", limit - ALL, True) is None
        finish(process)
        assert process.call("use") == [ALL, limit - ALL]


def finish(process: Peer) -> None:
    assert process.call("write", "key", TEXT[SECOND:]) is None
    assert process.call("commit", "key", str(DIGEST)) is None
