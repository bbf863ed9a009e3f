"""A second process with the same storage, driven line by line over pipes: what several workers of a host are.

Run as a module it reads JSON commands and answers each with one JSON line: {"ok": …} or {"error": class name}.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from contentapp.core.digest import Digest
from contentapp.core.errors import StorageError
from contentapp.storage.base import ArtifactReader, ArtifactWriter, Note
from contentapp.storage.filesystem import FilesystemStorage
from tests.conformance.storage.kit import note_of

TREE = Path(__file__).parents[3]


class Peer:
    """The parent's side."""

    def __init__(self, folder: Path, *, limit: int, crash_at: str = "") -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-m", "tests.unit.storage.peer", str(folder), str(limit), crash_at],
            cwd=TREE,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            bufsize=1,
        )

    def send(self, do: str, *args: Any) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps([do, *args]) + "\n")

    def answer(self) -> dict[str, Any]:
        """Empty when the process is gone."""
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        return json.loads(line) if line else {}

    def call(self, do: str, *args: Any) -> Any:
        self.send(do, *args)
        answer = self.answer()
        return answer.get("error", answer.get("ok"))

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()
        assert self.process.stdin is not None and self.process.stdout is not None
        with suppress(BrokenPipeError):
            self.process.stdin.close()
        self.process.stdout.close()

    def end(self) -> None:
        """Close its input, at which it closes its storage."""
        assert self.process.stdin is not None
        with suppress(BrokenPipeError):
            self.process.stdin.close()
        self.process.wait(30)


@contextmanager
def peer(folder: Path, *, limit: int = 1 << 30, crash_at: str = "") -> Iterator[Peer]:
    """A running peer."""
    running = Peer(folder, limit=limit, crash_at=crash_at)
    try:
        yield running
        running.end()
    finally:
        running.kill()


@dataclass
class Crash:
    """A crash point: kills this process at a step."""

    at: str = ""

    def __call__(self, step: str) -> None:
        if step == self.at:
            os.kill(os.getpid(), signal.SIGKILL)


def storage_in(
    folder: Path, *, limit: int = 1 << 30, crash: Callable[[str], None] = lambda step: None
) -> FilesystemStorage:
    """What parent and peers share."""
    return FilesystemStorage(
        folder / "data", run_dir=folder / "run", limit=limit, space_wait_seconds=0.0, crash_point=crash
    )


def journal_in(folder: Path) -> dict[int, int]:
    """What the peers have made durable, if they were told to say so: the size of each file by its inode."""
    lines = [line.split() for line in (folder / "journal").read_text().splitlines()]
    return {int(inode): int(size) for inode, size in lines}


class Served:
    """The peer's side."""

    def __init__(self, folder: Path, limit: int, crash_at: str) -> None:
        self.folder = folder
        self.crash = Crash(crash_at)
        self.storage = storage_in(folder, limit=limit, crash=self.crash)
        self.writers: dict[str, ArtifactWriter] = {}
        self.sizes: dict[str, int | None] = {}
        self.readers: list[ArtifactReader] = []

    async def arm(self, step: str) -> None:
        """Crash at this step from now on."""
        self.crash.at = step

    async def journal(self) -> None:
        """Write down what is made durable from now on."""
        file = os.open(self.folder / "journal", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)

        def syncing(sync: Callable[[int], None]) -> Callable[[int], None]:
            def synced(descriptor: int) -> None:
                before = os.fstat(descriptor)
                sync(descriptor)
                os.write(file, b"%d %d\n" % (before.st_ino, before.st_size))

            return synced

        def removing(change: Callable[..., None]) -> Callable[..., None]:
            def removed(*paths: str | os.PathLike[str]) -> None:
                with suppress(FileNotFoundError):  # the next file may get its inode
                    os.write(file, b"%d 0\n" % os.lstat(paths[-1]).st_ino)
                change(*paths)

            return removed

        for name, wrap in (("fsync", syncing), ("fdatasync", syncing), ("unlink", removing), ("rename", removing)):
            setattr(os, name, wrap(getattr(os, name)))

    async def begin(self, key: str, size: int | None, keep: bool) -> None:
        self.writers[key] = await self.storage.begin(key, size=size, keep=keep)
        self.sizes[key] = size

    async def write(self, key: str, text: str) -> None:
        self.writers[key].write([text.encode()])

    async def cut(self, key: str, size: int) -> None:
        self.writers[key].cut(size)

    async def checkpoint(self, key: str) -> None:
        await asyncio.to_thread(self.writers[key].checkpoint, self._note(key, self.writers[key].written))

    async def resume(self, key: str) -> int | None:
        """The offset at which it goes on."""
        if (found := await self.storage.resume(key)) is None:
            return None
        self.writers[key], note = found
        self.sizes[key] = note.size
        return note.offset

    async def suspended(self) -> list[int]:
        return sorted(each.note.offset for each in await self.storage.suspended())

    async def discard(self, key: str) -> int:
        return await self.storage.discard(key)

    def _note(self, key: str, offset: int) -> Note:
        reader = self.writers[key].follow()
        try:
            return note_of(key, reader.read(0, offset), size=self.sizes[key])
        finally:
            reader.close()

    async def commit(self, key: str, digest: str) -> None:
        await self.writers[key].commit(Digest.parse(digest))

    async def suspend(self, key: str, offset: int | None = None) -> None:
        writer = self.writers[key]
        await writer.suspend(self._note(key, writer.written if offset is None else offset))

    async def abort(self, key: str) -> None:
        await self.writers[key].abort()

    async def open(self, digest: str) -> None:
        self.readers.append(await self.storage.open(Digest.parse(digest)))

    async def close_readers(self) -> None:
        while self.readers:
            self.readers.pop().close()

    async def delete(self, digest: str) -> bool:
        return await self.storage.delete(Digest.parse(digest))

    async def sweep(self) -> int:
        return await self.storage.remove_stale_partials()

    async def use(self) -> list[int]:
        use = await self.storage.use()
        return [use.stored, use.reserved]

    async def churn(self, seed: int) -> int:
        """Commit, suspend, resume, abort, delete and discard without end, as fast as it goes."""
        for number in range(1 << 40):
            text = f"{seed} {number % 20} " + "x" * (number % 7) * 5000
            await self.begin("churn", len(text) if number % 2 else None, number % 5 != 4)
            await self.write("churn", text[: len(text) // 2])
            if number % 4 == 1:
                await self.checkpoint("churn")
            await self.write("churn", text[len(text) // 2 :])
            if number % 5 < 3:
                await self.commit("churn", str(Digest.of(text.encode())))
            else:
                await (self.suspend if number % 2 else self.abort)("churn")
            if number % 3 == 0:
                await self.delete(str(Digest.of(text.encode())))
            if number % 7 == 0 and await self.resume("churn") is not None:
                await self.suspend("churn")
            if number % 11 == 0:
                await self.discard("churn")
                await self.sweep()
        return 0


async def serve(folder: Path, limit: int, crash_at: str) -> None:
    served = Served(folder, limit, crash_at)
    while line := await asyncio.to_thread(sys.stdin.readline):
        do, *args = json.loads(line)
        try:
            answer = {"ok": await getattr(served, do)(*args)}
        except StorageError as error:
            answer = {"error": type(error).__name__}
        print(json.dumps(answer), flush=True)
    await served.close_readers()
    await served.storage.close()


if __name__ == "__main__":
    asyncio.run(serve(Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3]))
