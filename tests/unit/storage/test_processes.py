"""Several processes on one storage."""

from __future__ import annotations

import asyncio
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path

from contentapp.core.digest import Digest
from contentapp.core.settings import MIB
from tests.unit.storage.peer import Peer, peer, storage_in

TEXT = "the same bytes"
DIGEST = Digest.of(TEXT.encode())


def slots(folder: Path) -> int:
    return len(list((folder / "run" / "space").glob("*.slot")))


async def test_p9_the_quota_is_one_for_all_processes(tmp_path: Path) -> None:
    storage = storage_in(tmp_path, limit=10 * MIB)
    with peer(tmp_path, limit=10 * MIB) as one, peer(tmp_path, limit=10 * MIB) as other:
        assert one.call("begin", "a", 6 * MIB, True) is None
        assert other.call("begin", "a", 5 * MIB, True) == "NoSpace"
        assert other.call("begin", "b", 4 * MIB, False) is None
        assert (await storage.use()).reserved == 10 * MIB
        assert one.call("abort", "a") is None
        assert other.call("begin", "c", 5 * MIB, True) is None
    use = await storage.use()
    assert (use.stored, use.reserved) == (0, 0)
    await storage.close()
    assert slots(tmp_path) == 0


async def test_p9_reservations_at_once_never_exceed_the_quota(tmp_path: Path) -> None:
    with ExitStack() as stack:
        peers = [stack.enter_context(peer(tmp_path, limit=50 * MIB)) for _ in range(3)]
        with ThreadPoolExecutor(3) as pool:
            granted = sum(pool.map(reserve_what_there_is, peers))
        assert granted == 50
        storage = storage_in(tmp_path)
        assert (await storage.use()).reserved == 50 * MIB
        await storage.close()


def reserve_what_there_is(one: Peer) -> int:
    granted = 0
    while one.call("begin", f"{granted}", MIB, False) is None:
        granted += 1
    return granted


async def test_p9_a_dead_process_gives_its_reservations_back(tmp_path: Path) -> None:
    storage = storage_in(tmp_path, limit=10 * MIB)
    with peer(tmp_path, limit=10 * MIB) as one:
        assert one.call("begin", "kept", 5 * MIB, True) is None
        assert one.call("begin", "unkept", 5 * MIB, False) is None
        assert (await storage.use()).reserved == 10 * MIB
        one.kill()
    assert (await storage.use()).reserved == 0
    assert slots(tmp_path) == 1
    writer = await storage.begin("next", size=10 * MIB, keep=True)
    assert await storage.remove_stale_partials() == 1
    await writer.abort()
    await storage.close()
    assert list((tmp_path / "data" / "partials").iterdir()) == []


async def test_stored_and_suspended_bytes_outlive_their_process(tmp_path: Path) -> None:
    with peer(tmp_path) as one:
        one.call("begin", "a", 100, True)
        one.call("write", "a", TEXT)
        one.call("commit", "a", str(DIGEST))
        one.call("begin", "b", 100, True)
        one.call("write", "b", "suspended")
        one.call("suspend", "b")
        one.kill()
    storage = storage_in(tmp_path)
    use = await storage.use()
    assert (use.stored, use.reserved) == (len(TEXT), len("suspended"))
    assert await storage.remove_stale_partials() == 0
    assert await storage.discard("b") == 1
    use = await storage.use()
    assert (use.stored, use.reserved) == (len(TEXT), 0)
    await storage.close()


async def test_p6_what_a_killed_process_has_noted_goes_on(tmp_path: Path) -> None:
    """It was counted as reserved, and counts as suspended as soon as somebody looks."""
    with peer(tmp_path) as one:
        one.call("begin", "a", 100, True)
        one.call("write", "a", "noted")
        one.call("checkpoint", "a")
        one.call("write", "a", ", not noted")
        one.kill()
    storage = storage_in(tmp_path)
    assert (await storage.use()).reserved == len("noted, not noted")
    resumed = await storage.resume("a")
    assert resumed is not None
    writer, note = resumed
    assert (note.offset, writer.written, (await storage.use()).reserved) == (5, 5, 100)
    writer.write([b" and gone on"])
    body = b"noted and gone on"
    await writer.commit(Digest.of(body))
    use = await storage.use()
    assert (use.stored, use.reserved) == (len(body), 0)
    await storage.close()
    assert list((tmp_path / "data" / "partials").iterdir()) == []


async def test_p6_of_two_processes_one_resumes(tmp_path: Path) -> None:
    with peer(tmp_path) as one, peer(tmp_path) as other:
        one.call("begin", "a", None, True)
        one.call("write", "a", TEXT)
        one.call("suspend", "a")
        for _ in range(30):
            for process in (one, other):
                process.send("resume", "a")
            answers = [process.answer()["ok"] for process in (one, other)]
            assert sorted(answers, key=str) == [None, len(TEXT)] or sorted(answers, key=str) == [len(TEXT), None]
            winner = (one, other)[answers.index(len(TEXT))]
            assert winner.call("suspended") == []
            assert winner.call("suspend", "a") is None
        assert other.call("discard", "a") == 1
        assert one.call("use") == [0, 0]


async def test_p6_what_another_process_writes_is_not_suspended(tmp_path: Path) -> None:
    storage = storage_in(tmp_path)
    with peer(tmp_path) as one:
        one.call("begin", "a", None, True)
        one.call("write", "a", TEXT)
        one.call("checkpoint", "a")
        assert await storage.suspended() == []
        assert await storage.resume("a") is None
        assert await storage.discard("a") == 0
        assert await storage.remove_stale_partials(0) == 0
        assert one.call("commit", "a", str(DIGEST)) is None
    assert (await storage.use()).used == len(TEXT)
    await storage.close()


async def test_p9_a_count_while_another_suspends_and_resumes(tmp_path: Path) -> None:
    """It finds each partial either as being written or as suspended, never as neither."""
    storage = storage_in(tmp_path)
    with peer(tmp_path) as one:
        one.call("begin", "a", len(TEXT), True)
        one.call("write", "a", TEXT)
        for _ in range(50):
            one.send("suspend", "a")
            one.send("resume", "a")
            assert await storage.remove_stale_partials() == 0
            assert [one.answer()["ok"] for _ in range(2)] == [None, len(TEXT)]
        assert one.call("suspend", "a") is None
        assert (await storage.use()).reserved == len(TEXT)
    assert await storage.discard("a") == 1
    await storage.close()


async def test_delete_sees_readers_of_other_processes(tmp_path: Path) -> None:
    storage = storage_in(tmp_path)
    writer = await storage.begin("a", size=None, keep=True)
    writer.write([TEXT.encode()])
    await writer.commit(DIGEST)
    with peer(tmp_path) as one:
        assert one.call("open", str(DIGEST)) is None
        assert not await storage.delete(DIGEST)
        one.call("close_readers")
        assert await storage.delete(DIGEST)
        assert one.call("open", str(DIGEST)) == "ArtifactNotFound"
        assert one.call("delete", str(DIGEST)) is True
    await storage.close()


async def test_a_dead_reader_uses_nothing(tmp_path: Path) -> None:
    storage = storage_in(tmp_path)
    writer = await storage.begin("a", size=None, keep=True)
    writer.write([TEXT.encode()])
    await writer.commit(DIGEST)
    with peer(tmp_path) as one:
        one.call("open", str(DIGEST))
        one.kill()
    assert await storage.delete(DIGEST)
    await storage.close()


async def test_both_commit_the_same(tmp_path: Path) -> None:
    storage = storage_in(tmp_path)
    with peer(tmp_path) as one, peer(tmp_path) as other:
        for _ in range(20):
            for process in (one, other):
                process.call("begin", "same", len(TEXT), True)
                process.call("write", "same", TEXT)
            for process in (one, other):
                process.send("commit", "same", str(DIGEST))
            assert [process.answer() for process in (one, other)] == [{"ok": None}] * 2
            use = await storage.use()
            assert (use.stored, use.reserved) == (len(TEXT), 0)
            assert await storage.delete(DIGEST)
    await storage.close()
    assert list((tmp_path / "data" / "partials").iterdir()) == []


async def test_a_sweep_spares_what_other_processes_write(tmp_path: Path) -> None:
    storage = storage_in(tmp_path)
    with peer(tmp_path) as one:
        one.call("begin", "a", None, True)
        assert await storage.remove_stale_partials() == 0
        one.call("write", "a", TEXT)
        assert one.call("commit", "a", str(DIGEST)) is None
    assert await storage.find(DIGEST) is not None
    await storage.close()


async def test_a_sweep_waits_for_a_begin(tmp_path: Path) -> None:
    """A partial that exists but is not locked yet looks stale; the lock on names keeps sweeps out meanwhile."""
    loop = asyncio.get_running_loop()
    sweeping: list[asyncio.Future[int]] = []
    other = storage_in(tmp_path)

    def sweep_meanwhile(step: str) -> None:
        if step == "opened":
            future = asyncio.run_coroutine_threadsafe(other.remove_stale_partials(), loop)
            sweeping.append(asyncio.wrap_future(future, loop=loop))
            try:
                future.result(timeout=0.3)
            except TimeoutError:
                return
            raise AssertionError("the sweep did not wait")

    storage = storage_in(tmp_path)
    storage._crash_point = sweep_meanwhile
    writer = await storage.begin("a", size=None, keep=True)
    assert await sweeping[0] == 0
    writer.write([TEXT.encode()])
    await writer.commit(DIGEST)
    assert await storage.find(DIGEST) is not None
    await storage.close()
    await other.close()
