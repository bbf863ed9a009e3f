"""What only a filesystem has: names, modes, foreign files, and all the ways in which it fails."""

from __future__ import annotations

import asyncio
import os
import stat
import subprocess
import sys
import threading
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from contentapp.core.digest import Digest
from contentapp.core.errors import ArtifactDamaged, ArtifactNotFound, StorageUnavailable
from contentapp.storage.claim import claim, open_artifact, open_unused
from contentapp.storage.filesystem import FilesystemStorage
from tests.unit.storage.peer import storage_in

BODY = b"some bytes" * 100
DIGEST = Digest.of(BODY)


@pytest.fixture
async def storage(tmp_path: Path) -> AsyncIterator[FilesystemStorage]:
    storage = storage_in(tmp_path)
    yield storage
    await storage.close()


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return tmp_path / "data"


@pytest.fixture
def artifact(data: Path) -> Path:
    """Where the artifact belongs."""
    return data / "artifacts" / "sha256" / DIGEST.encoded[:2] / DIGEST.encoded[2:]


async def put(storage: FilesystemStorage) -> None:
    writer = await storage.begin("key", size=len(BODY), keep=True)
    writer.write([BODY])
    await writer.commit(DIGEST)


def mode(path: Path) -> int:
    return stat.S_IMODE(path.lstat().st_mode)


async def test_names_and_modes(storage: FilesystemStorage, data: Path, artifact: Path) -> None:
    before = os.umask(0)
    try:
        writer = await storage.begin("a key/with ü", size=None, keep=True)
        (partial,) = (data / "partials").iterdir()
        key = Digest.of("a key/with ü".encode()).encoded
        assert partial.name.startswith(f"{key}-{os.getpid()}-")
        assert partial.suffix == ".part"
        assert mode(partial) == 0o600
        writer.write([BODY])
        await writer.commit(DIGEST)
    finally:
        os.umask(before)
    assert artifact.read_bytes() == BODY
    assert mode(artifact) == 0o600
    folders = [data, *(path for path in data.rglob("*") if path.is_dir()), data.parent / "run" / "space"]
    assert {mode(folder) for folder in folders} == {0o700}
    assert list((data / "partials").iterdir()) == []


async def test_what_is_not_kept_has_no_name(storage: FilesystemStorage, data: Path) -> None:
    writer = await storage.begin("key", size=10, keep=False)
    assert list((data / "partials").iterdir()) == []
    await writer.abort()


async def test_foreign_files_are_left_alone(storage: FilesystemStorage, data: Path, artifact: Path) -> None:
    await put(storage)
    shard = artifact.parent
    foreign = [
        data / "artifacts" / "README",
        data / "artifacts" / "md5" / "ab" / ("c" * 30),
        data / "artifacts" / "sha256" / "file",
        data / "artifacts" / "sha256" / "zz" / ("0" * 62),
        data / "artifacts" / "sha256" / "abc" / ("0" * 61),
        shard / "short",
        shard / ("G" * 62),
        shard / ("0" * 61 + "\n"),
        data / "partials" / "notes.part",
        data / "partials" / ("0" * 64 + "-1-" + "0" * 16 + ".part.bak"),
    ]
    for path in foreign:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"mine")
    (shard / ("1" * 62)).symlink_to(artifact)
    (shard / ("2" * 62)).mkdir()
    (data / "artifacts" / "sha256" / "00").symlink_to(shard)
    assert [found.digest async for found in storage.scan()] == [DIGEST]
    assert await storage.remove_stale_partials() == 0
    assert all(path.read_bytes() == b"mine" for path in foreign)


@pytest.mark.parametrize("kind", ["symlink", "dangling", "fifo", "folder", "socket"])
async def test_what_is_no_regular_file_is_damage(storage: FilesystemStorage, artifact: Path, kind: str) -> None:
    artifact.parent.mkdir(parents=True)
    make_odd(artifact, kind)
    assert await storage.find(DIGEST) is None
    with pytest.raises(ArtifactDamaged):
        await storage.open(DIGEST)
    assert await storage.delete(DIGEST)
    if kind == "folder":
        with pytest.raises(StorageUnavailable):
            await storage.quarantine(DIGEST)
        return
    await storage.quarantine(DIGEST)
    with pytest.raises(ArtifactNotFound):
        await storage.open(DIGEST)


def make_odd(path: Path, kind: str) -> None:
    if kind == "symlink":
        target = path.with_name("target")
        target.write_bytes(BODY)
        path.symlink_to(target)
    elif kind == "dangling":
        path.symlink_to("nowhere")
    elif kind == "folder":
        path.mkdir()
    else:
        os.mknod(path, 0o600 | (stat.S_IFIFO if kind == "fifo" else stat.S_IFSOCK))


async def test_p7_a_cut_or_vanished_artifact(storage: FilesystemStorage, artifact: Path) -> None:
    await put(storage)
    os.truncate(artifact, 10)
    with pytest.raises(ArtifactDamaged):
        await storage.open(DIGEST, size=len(BODY))
    await storage.quarantine(DIGEST)
    await put(storage)
    artifact.unlink()
    with pytest.raises(ArtifactNotFound):
        await storage.open(DIGEST, size=len(BODY))


async def test_p7_a_read_error_is_damage(storage: FilesystemStorage, artifact: Path) -> None:
    """/proc/self/mem at 0 is a file whose reads fail with EIO."""
    await put(storage)
    reader = await storage.open(DIGEST)
    memory = os.open("/proc/self/mem", os.O_RDONLY)
    os.dup2(memory, reader.fileno(), inheritable=False)
    os.close(memory)
    with pytest.raises(ArtifactDamaged):
        reader.read(0, 10)
    reader.close()


async def test_open_during_and_after_a_delete(tmp_path: Path) -> None:
    """The two interleavings of open and delete, held still where they meet."""
    path = tmp_path / "artifact"
    path.write_bytes(BODY)
    deleting = open_unused(path)
    assert deleting is not None
    with pytest.raises(ArtifactNotFound, match="being deleted"):
        open_artifact(str(path), DIGEST)
    os.close(deleting)
    opened = os.open(path, os.O_RDONLY)
    path.unlink()
    with pytest.raises(ArtifactNotFound, match="has been deleted"):
        claim(opened, DIGEST)
    os.close(opened)


async def test_p7_a_missing_root(tmp_path: Path, storage: FilesystemStorage, data: Path) -> None:
    await put(storage)
    data.rename(tmp_path / "unmounted")
    for call in (storage.begin("key", size=1, keep=True), storage.check(), storage.remove_stale_partials()):
        with pytest.raises(StorageUnavailable):
            await call
    with pytest.raises(StorageUnavailable):
        assert [found async for found in storage.scan()]
    assert await storage.find(DIGEST) is None
    with pytest.raises(ArtifactNotFound):
        await storage.open(DIGEST)
    data.mkdir()
    with pytest.raises(StorageUnavailable):
        await storage.begin("key", size=1, keep=True)
    data.rmdir()
    (tmp_path / "unmounted").rename(data)
    await storage.check()
    assert (await storage.use()).reserved == 0


async def test_p7_a_root_that_comes_later(tmp_path: Path) -> None:
    (tmp_path / "data").touch()
    storage = storage_in(tmp_path)
    with pytest.raises(StorageUnavailable):
        await storage.begin("key", size=1, keep=True)
    with pytest.raises(StorageUnavailable):
        await storage.open(DIGEST)
    (tmp_path / "data").unlink()
    await put(storage)
    await storage.close()


async def test_p7_an_unwritable_run_folder(tmp_path: Path) -> None:
    storage = storage_in(tmp_path)
    await put(storage)
    await storage.close()
    (tmp_path / "file").touch()
    broken = FilesystemStorage(tmp_path / "data", run_dir=tmp_path / "file", limit=1000)
    for call in (broken.begin("key", size=1, keep=True), broken.use(), broken.check(), broken.delete(DIGEST)):
        with pytest.raises(StorageUnavailable):
            await call
    (await broken.open(DIGEST)).close()
    await broken.close()


async def test_a_commit_that_fails_leaves_nothing(storage: FilesystemStorage, data: Path, artifact: Path) -> None:
    artifact.mkdir(parents=True)
    (artifact / "in the way").touch()
    for _ in range(2):
        with pytest.raises(StorageUnavailable):
            await put(storage)
    use = await storage.use()
    assert (use.stored, use.reserved) == (0, 0)
    assert list((data / "partials").iterdir()) == []
    (artifact / "in the way").unlink()
    artifact.rmdir()
    await put(storage)


async def test_a_shard_that_cannot_be_made(storage: FilesystemStorage, data: Path, artifact: Path) -> None:
    artifact.parent.parent.mkdir()
    artifact.parent.touch()
    with pytest.raises(StorageUnavailable):
        await put(storage)
    assert (await storage.use()).used == 0


async def test_p5_durable_before_it_has_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, data: Path, artifact: Path
) -> None:
    """fsync of the bytes, rename, fsync of both folders: in this order."""
    steps: list[str] = []
    real = os.fsync

    def fsync(descriptor: int) -> None:
        name = Path(f"/proc/self/fd/{descriptor}").readlink()
        steps.append("partial" if name.suffix == ".part" else str(name.relative_to(data)))
        real(descriptor)

    storage = FilesystemStorage(data, run_dir=tmp_path / "run", limit=1 << 30, crash_point=steps.append)
    writer = await storage.begin("key", size=None, keep=True)
    writer.write([BODY])
    artifact.parent.mkdir(parents=True)
    steps.clear()
    monkeypatch.setattr(os, "fsync", fsync)
    await writer.commit(DIGEST)
    shard = str(artifact.parent.relative_to(data))
    assert steps == [
        "verified",
        "partial",
        "synced",
        "sharded",
        "counted",
        "renamed",
        "unnoted",
        shard,
        "partials",
        "durable",
    ]
    await storage.close()


async def test_a_commit_cancelled_in_the_queue_is_completed(tmp_path: Path, data: Path) -> None:
    arrived, go_on = threading.Event(), threading.Event()

    def hold_the_first(step: str) -> None:
        if step == "verified":
            arrived.set()
            go_on.wait(10)

    storage = FilesystemStorage(data, run_dir=tmp_path / "run", limit=1 << 30, crash_point=hold_the_first, threads=1)
    first, second = [await storage.begin(name, size=3, keep=True) for name in ("first", "second")]
    second.write([b"abc"])
    committing = asyncio.create_task(first.commit(Digest.of(b"")))
    assert await asyncio.to_thread(arrived.wait, 10)
    queued = asyncio.create_task(second.commit(Digest.of(b"abc")))
    await asyncio.sleep(0)
    queued.cancel()
    with pytest.raises(asyncio.CancelledError):
        await queued
    go_on.set()
    await committing
    await storage.close()
    assert len([path for path in (data / "artifacts").rglob("*") if path.is_file()]) == 2


async def test_new_folders_are_durable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, data: Path) -> None:
    synced: list[Path] = []
    real = os.fsync

    def fsync(descriptor: int) -> None:
        synced.append(Path(f"/proc/self/fd/{descriptor}").readlink())
        real(descriptor)

    monkeypatch.setattr(os, "fsync", fsync)
    storage = storage_in(tmp_path)
    await put(storage)
    await storage.close()
    assert {data, data / "artifacts", data / "artifacts" / "sha256"} <= set(synced)


async def test_the_last_close_of_an_unlinked_file_is_not_the_loops(
    storage: FilesystemStorage, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Freeing 1 GiB takes 170 ms on ext4."""
    await put(storage)
    named, unlinked = await storage.open(DIGEST), await storage.open(DIGEST)
    threads: dict[int, threading.Thread] = {}
    real, done = os.close, threading.Event()

    def close(descriptor: int) -> None:
        threads[descriptor] = threading.current_thread()
        real(descriptor)
        if len(threads) == 2:
            done.set()

    first, second = named.fileno(), unlinked.fileno()
    monkeypatch.setattr(os, "close", close)
    named.close()
    assert threads[first] is threading.main_thread()
    monkeypatch.undo()
    await storage.quarantine(DIGEST)
    monkeypatch.setattr(os, "close", close)
    unlinked.close()
    assert await asyncio.to_thread(done.wait, 10)
    monkeypatch.undo()
    assert threads[second] is not threading.main_thread()


async def test_a_forgotten_reader_is_reported(storage: FilesystemStorage) -> None:
    await put(storage)
    with pytest.warns(ResourceWarning, match="unclosed"):
        await storage.open(DIGEST)
    assert await storage.delete(DIGEST)


PROLOGUE = """
import asyncio, os, resource, sys
from pathlib import Path
from contentapp.core.digest import Digest
from contentapp.core.errors import *
from contentapp.storage.filesystem import FilesystemStorage
folder = Path(sys.argv[1])
storage = FilesystemStorage(folder / "data", run_dir=folder / "run", limit=1 << 30)
def expect(error, call):
    try:
        call()
    except error:
        return
    raise AssertionError(f"no {error}")
async def all_given_back():
    while (await storage.use()).reserved:
        await asyncio.sleep(0.005)
async def refuses(error, call):
    try:
        await call
    except error:
        return
    raise AssertionError(f"no {error}")
"""


def run_script(folder: Path, body: str) -> None:
    """Run the body of an async function in a process of its own, which can be limited without limiting us."""
    indented = "".join(f"    {line}\n" for line in body.strip().splitlines())
    script = f"{PROLOGUE}\nasync def main():\n{indented}    await storage.close()\nasyncio.run(main())\n"
    subprocess.run([sys.executable, "-c", script, str(folder)], check=True, timeout=60, cwd=Path(__file__).parents[3])


def test_p7_a_full_disk(tmp_path: Path) -> None:
    """The kernel takes part of a write and refuses the rest, as on a full disk; the limit stands in for one."""
    run_script(
        tmp_path,
        """
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
writer = await storage.begin("key", size=None, keep=True)
follower = writer.follow()
writer.write([b"a" * 60_000])
expect(NoSpace, lambda: writer.write([b"b" * 30_000, b"c" * 30_000, b"d"]))
assert writer.written == 100_000, writer.written
assert follower.read(0, 1 << 20) == b"a" * 60_000 + b"b" * 30_000 + b"c" * 10_000
expect(NoSpace, lambda: writer.write([b"e"]))
follower.close()
await writer.abort()
await all_given_back()
""",
    )
    assert list((tmp_path / "data" / "partials").iterdir()) == []


def test_p7_an_unwritable_folder(tmp_path: Path) -> None:
    """As nobody, when we are root: to root every folder is writable."""
    run_script(
        tmp_path,
        """
writer = await storage.begin("key", size=3, keep=True)
writer.write([b"abc"])
await writer.commit(Digest.of(b"abc"))
growing = await storage.begin("growing", size=3, keep=True)
for path in (folder, *folder.rglob("*")):
    os.chmod(path, 0o777 if "run" in path.parts else 0o555)
for parent in folder.parents:
    assert os.getuid() != 0 or not os.chmod(parent, parent.stat().st_mode | 0o111)
if os.getuid() == 0:
    os.setresuid(65534, 65534, 65534)
await refuses(StorageUnavailable, storage.begin("key", size=1, keep=True))
await refuses(StorageUnavailable, storage.begin("key", size=1, keep=False))
await refuses(StorageUnavailable, storage.check())
await refuses(StorageUnavailable, storage.delete(Digest.of(b"abc")))
await refuses(StorageUnavailable, growing.commit(Digest.of(b"")))
await growing.abort()
reader = await storage.open(Digest.of(b"abc"), size=3)
assert reader.read(0, 3) == b"abc"
reader.close()
assert (await storage.find(Digest.of(b"abc"))).size == 3
assert [found.size async for found in storage.scan()] == [3]
assert (await storage.use()).reserved == 0
""",
    )


def test_p7_no_descriptors_left(tmp_path: Path) -> None:
    run_script(
        tmp_path,
        """
writer = await storage.begin("key", size=3, keep=True)
writer.write([b"abc"])
await writer.commit(Digest.of(b"abc"))
limit = len(os.listdir("/proc/self/fd")) + 20
resource.setrlimit(resource.RLIMIT_NOFILE, (limit, limit))
taken = []
try:
    while True:
        taken.append(os.dup(0))
except OSError:
    pass
await refuses(StorageUnavailable, storage.open(Digest.of(b"abc")))
await refuses(StorageUnavailable, storage.begin("key", size=3, keep=True))
os.close(taken.pop())
os.close(taken.pop())
(await storage.open(Digest.of(b"abc"))).close()
await refuses(StorageUnavailable, storage.begin("key", size=3, keep=True)) if not taken else None
for descriptor in taken:
    os.close(descriptor)
writer = await storage.begin("key", size=3, keep=True)
await writer.abort()
assert (await storage.use()).reserved == 0
""",
    )
    assert list((tmp_path / "data" / "partials").iterdir()) == []
