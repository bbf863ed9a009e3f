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
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from contentapp.core.digest import Digest
from contentapp.core.errors import StorageError
from contentapp.storage.base import ArtifactReader, ArtifactWriter
from contentapp.storage.filesystem import FilesystemStorage

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


def storage_in(folder: Path, *, limit: int = 1 << 30, crash_at: str = "") -> FilesystemStorage:
    """What parent and peers share."""

    def crash_point(step: str) -> None:
        if step == crash_at:
            os.kill(os.getpid(), signal.SIGKILL)

    return FilesystemStorage(
        folder / "data", run_dir=folder / "run", limit=limit, space_wait_seconds=0.0, crash_point=crash_point
    )


class Served:
    """The peer's side."""

    def __init__(self, storage: FilesystemStorage) -> None:
        self.storage = storage
        self.writers: dict[str, ArtifactWriter] = {}
        self.readers: list[ArtifactReader] = []

    async def begin(self, key: str, size: int | None, keep: bool) -> None:
        self.writers[key] = await self.storage.begin(key, size=size, keep=keep)

    async def write(self, key: str, text: str) -> None:
        self.writers[key].write([text.encode()])

    async def commit(self, key: str, digest: str) -> None:
        await self.writers[key].commit(Digest.parse(digest))

    async def suspend(self, key: str) -> None:
        await self.writers[key].suspend()

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
        """Commit, suspend, abort and delete without end, as fast as it goes."""
        for number in range(1 << 40):
            text = f"{seed} {number % 20} " + "x" * (number % 7) * 5000
            await self.begin("churn", len(text) if number % 2 else None, number % 5 != 4)
            await self.write("churn", text)
            if number % 5 < 3:
                await self.commit("churn", str(Digest.of(text.encode())))
            else:
                await (self.suspend if number % 2 else self.abort)("churn")
            if number % 3 == 0:
                await self.delete(str(Digest.of(text.encode())))
        return 0


async def serve(folder: Path, limit: int, crash_at: str) -> None:
    served = Served(storage_in(folder, limit=limit, crash_at=crash_at))
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
