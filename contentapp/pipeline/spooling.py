"""Spooling: reading a body from upstream while a thread writes and hashes what came before (P4, P6)."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine
from concurrent.futures import Executor
from dataclasses import dataclass
from typing import Any

import structlog

from contentapp.core.errors import StorageError
from contentapp.metrics import metrics
from contentapp.pipeline.load import Load
from contentapp.pipeline.note import MarkedHasher
from contentapp.pipeline.verify import HOLD_BACK_SIZE
from contentapp.pipeline.windowed import Windows
from contentapp.storage.base import ArtifactWriter, Note

log = structlog.get_logger("contentapp.spooling")


@dataclass(frozen=True, slots=True, kw_only=True)
class Means:
    """What a spooling works with.

    executor: of the writing threads. windows: for what finds no room on disk. pending_size: bytes that may wait for
    them now. spawn: has a task owned that may outlive the spooling. progress_seconds: between notes.
    """

    executor: Executor
    windows: Windows
    pending_size: Callable[[], int]
    spawn: Callable[[Coroutine[Any, Any, None]], asyncio.Task[None]]
    progress_seconds: float


class Spooling:
    """Takes one body to its spool."""

    def __init__(self, means: Means, load: Load, writer: ArtifactWriter) -> None:
        self._means = means
        self._load = load
        self._writer = writer
        self._pending: list[bytes] = []
        self._pending_size = 0
        self._is_done = False
        self._is_stopped = False
        self._work = asyncio.Event()
        self._room = asyncio.Event()
        self._room.set()
        self._is_writing = False
        self._is_due = False
        self._noted = load.hasher.offset
        self._noting: asyncio.Task[None] | None = None

    async def run(self, chunks: AsyncIterator[bytes]) -> None:
        """Take in all of it: to the disk, or, from where that is full, to a window."""
        writing = asyncio.create_task(self._write_all(), name=f"write {self._load.flight.key}")
        noting = asyncio.create_task(self._note_again_and_again(), name=f"progress {self._load.flight.key}")
        try:
            await self._read_all(chunks, writing)
            self._is_done = True
            self._work.set()
            await asyncio.shield(writing)
        except BaseException:
            # What has come is written all the same, as it may be kept for later: a write under way in the thread
            # can't be stopped anyway, and the writer is closed after us. A window has nobody to wait for any more.
            self._is_done = self._is_stopped = True
            self._work.set()
            if self._load.attempt.window is not None:
                writing.cancel()
            await asyncio.shield(asyncio.wait([writing]))
            raise
        finally:
            noting.cancel()

    async def _read_all(self, chunks: AsyncIterator[bytes], writing: asyncio.Task[None]) -> None:
        async for chunk in chunks:
            self._pending.append(chunk)
            self._pending_size += len(chunk)
            self._work.set()
            if self._pending_size >= self._means.pending_size():
                self._room.clear()
                await self._room.wait()
            if writing.done():
                return

    async def _write_all(self) -> None:
        while True:
            if not self._pending:
                if self._is_done:
                    return
                self._work.clear()
                await self._work.wait()
                continue
            buffers, self._pending, self._pending_size = self._pending, [], 0
            self._room.set()
            try:
                if self._load.attempt.window is None:
                    await self._write(buffers)
                else:
                    await self._pass_on(buffers)
            except BaseException:
                self._load.attempt.is_unspooled = True
                self._load.flight.changed()
                raise
            finally:
                self._room.set()

    async def _write(self, buffers: list[bytes]) -> None:
        load, writer = self._load, self._writer
        self._is_writing = True
        try:
            await asyncio.get_running_loop().run_in_executor(self._means.executor, write, writer, load.hasher, buffers)
        except StorageError as error:
            # Some of the buffers may be on disk, none of them is hashed: all of them go to the window. Here and now,
            # since the next ones may be long in coming.
            metrics.storage_write_error("write")
            self._means.windows.degrade(load.attempt, load.hasher, error)
            await self._pass_on(buffers)
            return
        finally:
            self._is_writing = False
        load.attempt.last_read = min(len(buffers[-1]), HOLD_BACK_SIZE)
        load.attempt.arrived = writer.written
        load.flight.changed()
        self._note_if_due()

    async def _pass_on(self, buffers: list[bytes]) -> None:
        for buffer in buffers:
            if self._is_stopped:
                return
            await self._means.windows.pass_on(self._load, buffer)

    async def _note_again_and_again(self) -> None:
        while True:
            await asyncio.sleep(self._means.progress_seconds)
            self._is_due = True
            if not self._is_writing:  # else the hash is in use, and it is done after the write
                self._note_if_due()

    def _note_if_due(self) -> None:
        """Aside, since making bytes durable takes long; one at a time."""
        load = self._load
        is_free = self._noting is None or self._noting.done()
        if self._is_due and is_free and load.hasher.offset > self._noted and load.is_resumable:
            self._is_due, self._noted = False, load.hasher.offset
            self._noting = self._means.spawn(_write_down(self._writer, load.note()))


def write(writer: ArtifactWriter, hasher: MarkedHasher, buffers: list[bytes]) -> None:
    """Write, then hash, in one trip to a thread."""
    writer.write(buffers)
    for buffer in buffers:
        hasher.update(buffer)


async def _write_down(writer: ArtifactWriter, note: Note) -> None:
    try:
        await asyncio.to_thread(writer.checkpoint, note)
    except StorageError as error:
        log.warning("progress not written down", key=note.key, error=str(error))
