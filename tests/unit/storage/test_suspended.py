"""P6 on a filesystem: the note beside a partial, what becomes of damaged ones, and who holds what."""

from __future__ import annotations

import asyncio
import errno
import os
import threading
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from pathlib import Path

import pytest

from contentapp.core.digest import Digest
from contentapp.core.errors import NoSpace, StorageUnavailable
from contentapp.storage import progress
from contentapp.storage import spool as spool_module
from contentapp.storage.base import ArtifactWriter
from contentapp.storage.claim import claim_writing, is_written, open_shared, release_writing
from contentapp.storage.filesystem import FilesystemStorage
from contentapp.storage.note import encode
from tests.conformance.storage.kit import note_of, open_files, read_all, resume, suspend
from tests.unit.storage.peer import peer, storage_in
from tests.unit.storage.test_filesystem import make_odd, mode

BODY = b"some bytes" * 100
HALF = BODY[:500]
DIGEST = Digest.of(BODY)


@pytest.fixture
async def storage(tmp_path: Path) -> AsyncIterator[FilesystemStorage]:
    storage = storage_in(tmp_path)
    yield storage
    await storage.close()


@pytest.fixture
def partials(tmp_path: Path) -> Path:
    return tmp_path / "data" / "partials"


def only_partial(partials: Path) -> Path:
    (path,) = partials.glob("*.part")
    return path


def note_at(partials: Path) -> Path:
    path = only_partial(partials)
    return path.with_name(path.name + ".progress.json")


def temporary_at(partials: Path) -> Path:
    path = only_partial(partials)
    return path.with_name(path.name + ".progress.json.tmp")


async def test_names_modes_and_content(storage: FilesystemStorage, partials: Path) -> None:
    before = os.umask(0)
    try:
        note = await suspend(storage, "key", HALF, size=len(BODY))
    finally:
        os.umask(before)
    path = only_partial(partials)
    assert path.name.startswith(f"{Digest.of(b'key').encoded}-{os.getpid()}-")
    assert path.read_bytes() == HALF
    assert note_at(partials).read_bytes() == encode(note)
    assert mode(note_at(partials)) == 0o600
    assert len(list(partials.iterdir())) == 2
    await storage.discard("key")
    assert list(partials.iterdir()) == []


@pytest.mark.parametrize("ending", ["commit", "abort"])
async def test_the_note_goes_with_its_partial(storage: FilesystemStorage, partials: Path, ending: str) -> None:
    writer = await storage.begin("key", size=len(BODY), keep=True)
    writer.write([BODY])
    writer.checkpoint(note_of("key", HALF))
    temporary_at(partials).write_bytes(b"left over")
    await (writer.commit(DIGEST) if ending == "commit" else writer.abort())
    assert list(partials.iterdir()) == []


async def test_the_note_goes_when_another_has_stored_the_same(storage: FilesystemStorage, partials: Path) -> None:
    readers = []
    for _ in range(2):
        writer = await storage.begin("key", size=len(BODY), keep=True)
        writer.write([BODY])
        writer.checkpoint(note_of("key", HALF))
        await writer.commit(DIGEST)
        readers.append(await storage.open(DIGEST))
    for reader in readers:
        reader.close()
    assert list(partials.iterdir()) == []


async def test_a_note_is_durable_after_its_bytes(
    tmp_path: Path, partials: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """fdatasync of the bytes, then the note: fsync, rename, fsync of the folder."""
    steps: list[str] = []
    storage = FilesystemStorage(tmp_path / "data", run_dir=tmp_path / "run", limit=1 << 30, crash_point=steps.append)
    writer = await storage.begin("key", size=None, keep=True)
    writer.write([BODY])
    for name in ("fsync", "fdatasync"):
        monkeypatch.setattr(os, name, following(getattr(os, name), steps))
    steps.clear()
    writer.checkpoint(note_of("key", BODY))
    note = ["note-opened", "note-written", ".tmp", "note-synced", "note-renamed", "partials", "note-durable"]
    assert steps == [".part", "flushed", *note]
    steps.clear()
    await writer.suspend(note_of("key", HALF))
    assert steps == ["partials", "unnoted", "cut", ".part", "synced", *note, "counted", "suspended"]
    await storage.close()


def following(real: Callable[[int], None], steps: list[str]) -> Callable[[int], None]:
    def sync(descriptor: int) -> None:
        path = Path(f"/proc/self/fd/{descriptor}").readlink()
        steps.append(path.suffix or path.name)
        real(descriptor)

    return sync


@pytest.mark.parametrize("end", ["commit", "cut"])
async def test_a_checkpoint_holds_up_no_write(
    storage: FilesystemStorage, partials: Path, monkeypatch: pytest.MonkeyPatch, end: str
) -> None:
    """Only an ending and a cut wait for it, and then take its note away."""
    reached, go_on = threading.Event(), threading.Event()

    def slow(descriptor: int) -> None:
        reached.set()
        assert go_on.wait(10)
        assert os.fstat(descriptor).st_nlink

    monkeypatch.setattr(os, "fdatasync", slow)
    writer = await storage.begin("key", size=len(BODY), keep=True)
    writer.write([HALF])
    checking = asyncio.create_task(asyncio.to_thread(writer.checkpoint, note_of("key", HALF)))
    assert await asyncio.to_thread(reached.wait, 10)
    writer.write([BODY[len(HALF) :]])
    ending = asyncio.ensure_future(writer.commit(DIGEST) if end == "commit" else asyncio.to_thread(writer.cut, 100))
    assert await asyncio.wait([ending], timeout=0.2) == (set(), {ending})
    go_on.set()
    await asyncio.gather(checking, ending)
    assert (await storage.find(DIGEST) is not None) == (end == "commit")
    assert list(partials.glob("*.json")) == []
    await writer.abort()


async def test_a_checkpoint_that_a_cut_has_overtaken_leaves_no_note(storage: FilesystemStorage, partials: Path) -> None:
    """What is written next is not what it tells of."""
    writer = await storage.begin("key", size=len(BODY), keep=True)
    writer.write([BODY])
    writer.cut(len(HALF) - 1)
    writer.checkpoint(note_of("key", HALF))
    assert not note_at(partials).exists()
    await writer.abort()


async def test_what_has_no_name_gets_no_note(storage: FilesystemStorage, partials: Path) -> None:
    writer = await storage.begin("key", size=len(BODY), keep=False)
    writer.write([BODY])
    writer.checkpoint(note_of("key", HALF))
    assert list(partials.iterdir()) == []
    await writer.abort()


async def test_a_lost_write_is_never_forgotten(storage: FilesystemStorage, monkeypatch: pytest.MonkeyPatch) -> None:
    """The kernel tells of it once; the fsync of the commit would succeed."""

    def broken(descriptor: int) -> None:
        raise OSError(errno.EIO, "lost")

    writer = await storage.begin("key", size=len(BODY), keep=True)
    writer.write([BODY])
    with monkeypatch.context() as patch:
        patch.setattr(os, "fdatasync", broken)
        with pytest.raises(StorageUnavailable):
            writer.checkpoint(note_of("key", BODY))
    with pytest.raises(StorageUnavailable):
        await writer.commit(DIGEST)
    assert await storage.find(DIGEST) is None
    assert await storage.suspended() == []


async def test_a_checkpoint_that_fails_leaves_the_one_before(storage: FilesystemStorage, partials: Path) -> None:
    writer = await storage.begin("key", size=len(BODY), keep=True)
    writer.write([BODY])
    writer.checkpoint(note_of("key", HALF))
    temporary_at(partials).mkdir()
    with pytest.raises(StorageUnavailable):
        writer.checkpoint(note_of("key", BODY))
    assert note_at(partials).read_bytes() == encode(note_of("key", HALF))
    writer.write([b"more"])
    temporary_at(partials).rmdir()
    await writer.commit(Digest.of(BODY + b"more"))
    assert list(partials.iterdir()) == []


async def test_a_checkpoint_without_room(storage: FilesystemStorage, partials: Path) -> None:
    """No part of it stays behind."""

    def full(path: Path, raw: bytes, crash_point: object) -> None:
        path.write_bytes(raw[:10])
        raise OSError(errno.ENOSPC, "full")

    writer = await storage.begin("key", size=len(BODY), keep=True)
    writer.write([BODY])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(progress, "_write", full)
        with pytest.raises(NoSpace):
            writer.checkpoint(note_of("key", HALF))
    assert list(partials.iterdir()) == [only_partial(partials)]
    writer.checkpoint(note_of("key", HALF))
    await writer.abort()


@pytest.mark.parametrize("size", [len(HALF), len(HALF) - 1])
async def test_a_cut_takes_away_a_note_of_more(storage: FilesystemStorage, partials: Path, size: int) -> None:
    writer = await storage.begin("key", size=len(BODY), keep=True)
    writer.write([BODY])
    writer.checkpoint(note_of("key", HALF))
    writer.cut(size)
    assert note_at(partials).exists() == (size == len(HALF))
    await writer.abort()


async def test_a_note_that_failed_at_the_end_is_taken_away_too(storage: FilesystemStorage, partials: Path) -> None:
    """It has its name, but its folder could not be synced."""
    writer = await storage.begin("key", size=len(BODY), keep=True)
    writer.write([BODY])

    def broken(folder: Path) -> None:
        raise OSError(errno.EIO, "broken")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(progress, "sync_folder", broken)
        with pytest.raises(StorageUnavailable):
            writer.checkpoint(note_of("key", BODY))
    assert note_at(partials).exists()
    writer.cut(len(HALF))
    assert not note_at(partials).exists()
    await writer.abort()


async def killed(tmp_path: Path, noted: int = len(HALF), written: int = len(BODY)) -> Path:
    """The partial that a killed process has left, with a note."""
    with peer(tmp_path) as process:
        process.call("begin", "key", len(BODY), True)
        process.call("write", "key", BODY[:noted].decode())
        process.call("checkpoint", "key")
        process.call("write", "key", BODY[noted:written].decode())
        process.kill()
    return only_partial(tmp_path / "data" / "partials")


NOTE = note_of("key", HALF, size=len(BODY))
LESS, MORE = note_of("key", HALF[:100], size=len(BODY)), note_of("key", HALF + b"some", size=len(BODY))
VALID = {"valid": encode(NOTE), "less": encode(LESS), "more": encode(MORE)}
DAMAGED = {
    "empty": b"",
    "other": b"{}",
    "cut": encode(NOTE)[:-10],
    "changed": encode(NOTE).replace(b"500", b"400"),
    "of another key": encode(replace(NOTE, key="other")),
    "of more bytes than there are": encode(note_of("key", BODY + b"x")),
    "zeros": bytes(len(encode(NOTE))),
    "too large": encode(NOTE) + b" " * (8 << 20),
}


@pytest.mark.parametrize("name", DAMAGED)
@pytest.mark.parametrize("is_temporary", [False, True])
async def test_a_damaged_note_counts_as_none(
    storage: FilesystemStorage, tmp_path: Path, partials: Path, name: str, is_temporary: bool
) -> None:
    await killed(tmp_path)
    note_at(partials).unlink()
    (temporary_at(partials) if is_temporary else note_at(partials)).write_bytes(DAMAGED[name])
    assert await storage.suspended() == []
    assert await storage.resume("key") is None
    assert await storage.discard("key") == 0
    assert await storage.remove_stale_partials() == 1
    assert list(partials.iterdir()) == []
    assert (await storage.use()).reserved == 0


@pytest.mark.parametrize("kind", ["symlink", "dangling", "fifo", "folder", "socket"])
@pytest.mark.parametrize("is_temporary", [False, True])
async def test_what_is_no_regular_file_is_no_note(
    storage: FilesystemStorage, tmp_path: Path, partials: Path, kind: str, is_temporary: bool
) -> None:
    await killed(tmp_path)
    note_at(partials).unlink()
    odd = temporary_at(partials) if is_temporary else note_at(partials)
    make_odd(odd, kind)
    if kind == "symlink":
        odd.with_name("target").write_bytes(encode(NOTE))
    assert await storage.suspended() == []
    assert await storage.resume("key") is None
    assert await storage.remove_stale_partials() == 1
    assert not any(path.name.endswith(".part") for path in partials.iterdir())
    assert odd.is_dir() == (kind == "folder")


@pytest.mark.parametrize(
    ("present", "temporary", "offset"),
    [
        ("valid", None, 500),
        ("valid", "less", 500),
        ("valid", "valid", 500),
        ("valid", "more", 504),
        ("valid", "cut", 500),
        ("valid", "of more bytes than there are", 500),
        (None, "valid", 500),
        (None, "less", 100),
        ("cut", "less", 100),
        ("cut", "cut", None),
    ],
)
@pytest.mark.parametrize("call", ["resume", "suspended", "remove_stale_partials"])
async def test_a_newer_temporary_note_is_promoted(
    storage: FilesystemStorage,
    tmp_path: Path,
    partials: Path,
    present: str | None,
    temporary: str | None,
    offset: int | None,
    call: str,
) -> None:
    await killed(tmp_path)
    for path, name in ((note_at(partials), present), (temporary_at(partials), temporary)):
        path.unlink(missing_ok=True)
        if name is not None:
            path.write_bytes((VALID | DAMAGED)[name])
    if call == "suspended":
        assert [each.note.offset for each in await storage.suspended()] == ([] if offset is None else [offset])
    elif call == "remove_stale_partials":
        assert await storage.remove_stale_partials() == (1 if offset is None else 0)
        assert list(partials.glob("*.tmp")) == []
    found = await storage.resume("key")
    assert (None if found is None else found[1].offset) == offset
    if found is not None:
        assert found[1] in {NOTE, LESS, MORE}
        reader = found[0].follow()
        assert read_all(reader) == BODY[:offset]
        reader.close()
        await found[0].abort()


async def test_a_promotion_is_durable(
    storage: FilesystemStorage, tmp_path: Path, partials: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A killed process may have written it whole without having synced it."""
    await killed(tmp_path)
    temporary_at(partials).write_bytes(VALID["more"])
    steps: list[str] = []
    monkeypatch.setattr(os, "fsync", following(os.fsync, steps))
    assert [each.note for each in await storage.suspended()] == [MORE]
    assert steps == [".tmp", "partials"]
    assert note_at(partials).read_bytes() == VALID["more"]
    assert not temporary_at(partials).exists()


async def test_a_promotion_that_fails_leaves_the_present_note(
    storage: FilesystemStorage, tmp_path: Path, partials: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(descriptor: int) -> None:
        raise OSError(errno.EROFS, "read-only")

    await killed(tmp_path)
    temporary_at(partials).write_bytes(VALID["more"])
    monkeypatch.setattr(os, "fsync", broken)
    assert [each.note for each in await storage.suspended()] == [NOTE]


async def test_the_next_note_of_a_living_writer_is_left_alone(storage: FilesystemStorage, partials: Path) -> None:
    writer = await storage.begin("key", size=len(BODY), keep=True)
    writer.write([BODY])
    temporary_at(partials).write_bytes(VALID["valid"])
    assert await storage.suspended() == []
    assert await storage.remove_stale_partials(0) == 0
    assert temporary_at(partials).read_bytes() == VALID["valid"]
    await writer.abort()


async def test_leftovers_go(storage: FilesystemStorage, partials: Path) -> None:
    await suspend(storage, "key", HALF)
    temporary_at(partials).write_bytes(DAMAGED["cut"])
    name = f"{'0' * 64}-1-{'0' * 16}.part"
    orphans = [partials / f"{name}.progress.json", partials / f"{name}.progress.json.tmp"]
    orphans[0].write_bytes(VALID["valid"])
    orphans[1].symlink_to("nowhere")
    foreign = [partials / f"{name}.progress.json.bak", partials / f"{name}.progress.json.tmp.tmp"]
    for path in foreign:
        path.touch()
    old = partials / name.replace(".part", ".kept.part")
    old.write_bytes(BODY)
    assert await storage.remove_stale_partials() == 1
    assert {*partials.iterdir()} == {only_partial(partials), note_at(partials), *foreign}
    assert (await storage.use()).reserved == len(HALF)


async def test_a_folder_in_the_place_of_a_temporary_note(storage: FilesystemStorage, partials: Path) -> None:
    note = await suspend(storage, "key", HALF)
    temporary_at(partials).mkdir()
    assert await storage.remove_stale_partials() == 0
    writer, found = await resume(storage, "key")
    assert found == note
    await writer.abort()
    assert [path.is_dir() for path in partials.iterdir()] == [True]


async def test_age_is_the_notes(storage: FilesystemStorage, partials: Path) -> None:
    await suspend(storage, "key", HALF)
    at = note_at(partials).stat().st_mtime
    os.utime(only_partial(partials), (0, 0))
    assert await storage.remove_stale_partials() == 0
    os.utime(note_at(partials), (at - 86_300, at - 86_300))
    assert await storage.remove_stale_partials() == 0
    os.utime(note_at(partials), (at - 86_401, at - 86_401))
    (found,) = await storage.suspended()
    assert found.noted_at.timestamp() == pytest.approx(at - 86_401)
    assert await storage.remove_stale_partials() == 1
    assert list(partials.iterdir()) == []
    assert (await storage.use()).reserved == 0


@pytest.mark.parametrize("at", [1 << 50, 1 << 100])
async def test_an_absurd_time_is_no_note(storage: FilesystemStorage, monkeypatch: pytest.MonkeyPatch, at: int) -> None:
    """Some filesystems can tell of it."""
    real = os.fstat

    def absurd(descriptor: int) -> os.stat_result:
        found = real(descriptor)
        is_note = str(Path(f"/proc/self/fd/{descriptor}").readlink()).endswith(".json")
        return os.stat_result((*found[:8], at, found[9])) if is_note else found

    await suspend(storage, "key", HALF)
    with monkeypatch.context() as patch:
        patch.setattr(os, "fstat", absurd)
        assert await storage.suspended() == []
    assert await storage.discard("key") == 1


@pytest.mark.parametrize("written", [len(HALF), len(BODY)])
async def test_followers_of_the_killed_are_no_hindrance(
    storage: FilesystemStorage, tmp_path: Path, written: int
) -> None:
    """Devices of another process still have it open. What the note tells of stays as they were shown it."""
    path = await killed(tmp_path, written=written)
    follower = open_shared(path)
    assert [each.note for each in await storage.suspended()] == [NOTE]
    assert await storage.remove_stale_partials(0) == 0
    assert (await storage.use()).reserved == written
    writer, _ = await resume(storage, "key")
    assert os.pread(follower, 2000, 0) == HALF
    writer.write([BODY[len(HALF) :]])
    await writer.commit(DIGEST)
    assert os.pread(follower, 2000, 0) == BODY
    os.close(follower)


async def test_a_resumed_writer_is_the_one_who_writes(storage: FilesystemStorage, partials: Path) -> None:
    await suspend(storage, "key", HALF)
    writer, note = await resume(storage, "key")
    for call in (storage.remove_stale_partials(0), storage.discard("key")):
        assert await call == 0
    assert await storage.suspended() == []
    writer.write([BODY[len(HALF) :]])
    writer.checkpoint(note_of("key", BODY))
    assert note_at(partials).read_bytes() == encode(note_of("key", BODY))
    writer.cut(note.offset)
    assert not note_at(partials).exists()
    await writer.abort()


async def test_a_resumed_note_goes_with_a_cut_below_it(storage: FilesystemStorage, partials: Path) -> None:
    await suspend(storage, "key", HALF)
    writer, _ = await resume(storage, "key")
    assert note_at(partials).exists()
    writer.cut(len(HALF) - 1)
    assert not note_at(partials).exists()
    await writer.abort()


async def test_the_excess_of_a_killed_process_is_given_back(storage: FilesystemStorage, tmp_path: Path) -> None:
    await killed(tmp_path)
    await storage.remove_stale_partials()
    assert (await storage.use()).reserved == len(BODY)
    writer, note = await resume(storage, "key")
    assert (await storage.use()).reserved == len(BODY)
    await writer.suspend(note)
    assert (await storage.use()).reserved == len(HALF)
    await storage.discard("key")


async def test_without_room_the_excess_is_given_back_too(tmp_path: Path) -> None:
    await killed(tmp_path)
    storage = storage_in(tmp_path, limit=len(BODY))
    await storage.remove_stale_partials()
    held = await storage.begin("held", size=0, keep=True)
    await storage.set_stored(1)
    with pytest.raises(NoSpace):
        await storage.resume("key")
    assert (await storage.use()).reserved == len(HALF)
    assert [each.note for each in await storage.suspended()] == [NOTE]
    assert await storage.remove_stale_partials() == 0
    assert (await storage.use()).reserved == len(HALF)
    await storage.set_stored(0)
    await (await resume(storage, "key"))[0].abort()
    await held.abort()
    await storage.close()


async def test_p7_no_descriptors_remove_nothing(storage: FilesystemStorage, tmp_path: Path, partials: Path) -> None:
    """That a note can't be opened now does not mean that there is none."""
    await killed(tmp_path)
    real = os.open

    def none_for_notes(path: str | Path, *args: int) -> int:
        if str(path).endswith(".json"):
            raise OSError(errno.EMFILE, "none left")
        return real(path, *args)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "open", none_for_notes)
        for call in (storage.remove_stale_partials(), storage.suspended(), storage.resume("key")):
            with pytest.raises(StorageUnavailable):
                await call
    assert [each.note for each in await storage.suspended()] == [NOTE]
    await storage.discard("key")


async def test_p7_a_missing_folder(storage: FilesystemStorage, tmp_path: Path, partials: Path) -> None:
    await suspend(storage, "key", HALF)
    partials.rename(tmp_path / "unmounted")
    for call in (storage.resume("key"), storage.suspended(), storage.discard("key"), storage.remove_stale_partials()):
        with pytest.raises(StorageUnavailable):
            await call
    (tmp_path / "unmounted").rename(partials)
    assert await storage.discard("key") == 1


async def test_it_leaks_no_descriptors(storage: FilesystemStorage, tmp_path: Path, partials: Path) -> None:
    async def all_of_it() -> None:
        await killed(tmp_path)
        writer, note = await resume(storage, "key")
        await writer.suspend(note)
        note_at(partials).write_bytes(b"x")
        assert await storage.resume("key") is None
        assert await storage.remove_stale_partials() == 1
        await suspend(storage, "key", HALF)
        assert await storage.discard("key") == 1

    await all_of_it()
    before = len(open_files(""))
    await all_of_it()
    assert len(open_files("")) == before


async def test_what_goes_between_the_look_and_the_grasp(storage: FilesystemStorage, partials: Path) -> None:
    note = await suspend(storage, "key", HALF)
    (found,) = await storage.suspended()
    path = only_partial(partials)
    await storage.discard("key")
    assert found.note == note
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(storage._suspended, "_of", lambda paths: [(path, found)])
        assert await storage.resume("key") is None


@pytest.mark.parametrize("ending", ["commit", "abort"])
async def test_a_writer_that_ends_while_others_look(storage: FilesystemStorage, tmp_path: Path, ending: str) -> None:
    """Whoever asks meanwhile finds nothing, and takes nothing away."""
    other = storage_in(tmp_path)
    for _ in range(20):
        writer: ArtifactWriter = await storage.begin("key", size=len(BODY), keep=True)
        writer.write([BODY])
        writer.checkpoint(note_of("key", HALF))
        looking = [other.suspended(), other.resume("key"), other.discard("key"), other.remove_stale_partials(0)]
        ended = writer.commit(DIGEST) if ending == "commit" else writer.abort()
        _, suspended, resumed, discarded, removed = await asyncio.gather(ended, *looking)
        assert (suspended, resumed, discarded, removed) == ([], None, 0, 0)
        assert (await storage.find(DIGEST) is not None) == (ending == "commit")
        assert await storage.delete(DIGEST)
    assert (await other.use()).used == 0
    await other.close()


@pytest.mark.parametrize("step", ["counted", "resumed"])
async def test_p9_a_count_waits_for_who_changes_hands(tmp_path: Path, step: str) -> None:
    """Between the count and the lock of the writer, it would find a partial twice, or as neither."""
    loop = asyncio.get_running_loop()
    counting: list[asyncio.Future[int]] = []
    other = storage_in(tmp_path)

    def count_meanwhile(at: str) -> None:
        if at == step:
            future = asyncio.run_coroutine_threadsafe(other.remove_stale_partials(), loop)
            counting.append(asyncio.wrap_future(future, loop=loop))
            with pytest.raises(TimeoutError):
                future.result(timeout=0.2)

    storage = storage_in(tmp_path, crash=count_meanwhile)
    await suspend(storage, "key", HALF, size=len(BODY))
    writer, note = await resume(storage, "key")
    assert [await each for each in counting] == [0]
    assert (await storage.use()).reserved == len(BODY)
    await writer.suspend(note)
    assert (await storage.use()).reserved == len(HALF)
    await other.discard("key")
    await storage.close()
    await other.close()


async def test_a_duplicate_that_is_still_flushed_holds_nothing(
    storage: FilesystemStorage, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A slow disk may take longer over the early writeback than the writer lives."""
    go_on = threading.Event()

    def slow(descriptor: int, offset: int, size: int) -> None:
        assert go_on.wait(10)

    monkeypatch.setattr(spool_module, "STEP", 10)
    monkeypatch.setattr(spool_module, "start_writeback", slow)
    note = await suspend(storage, "key", HALF)
    assert await storage.remove_stale_partials() == 0
    assert (await storage.use()).reserved == len(HALF)
    writer, found = await resume(storage, "key")
    assert found == note
    await writer.abort()
    go_on.set()


def test_who_writes(tmp_path: Path) -> None:
    """Followers don't count, and duplicates neither once it is released."""
    path = tmp_path / "partial"
    path.touch()
    writer, late, reader = os.open(path, os.O_WRONLY), os.open(path, os.O_WRONLY), open_shared(path)
    assert not is_written(reader)
    assert claim_writing(writer)
    assert is_written(reader)
    assert not is_written(writer)
    assert not claim_writing(late)
    duplicate = os.dup(writer)
    release_writing(writer)
    assert not is_written(reader)
    assert claim_writing(late)
    os.close(late)
    assert not is_written(reader)
    for descriptor in (writer, duplicate, reader):
        os.close(descriptor)
