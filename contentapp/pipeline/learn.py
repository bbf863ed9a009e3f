"""Learn: make the chunk list of what was stored, so that a wrong chunk is known when it is fetched again (P2)."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Coroutine
from typing import Any

import structlog

from contentapp.core.chunks import ChunkHasher, InvalidChunkList
from contentapp.core.digest import Digest
from contentapp.core.errors import CatalogUnavailable, StorageError
from contentapp.core.settings import MIB
from contentapp.pipeline.chunklists import LEAST_SIZE
from contentapp.pipeline.lookup import Lookup
from contentapp.storage.base import ArtifactReader, Storage

log = structlog.get_logger("contentapp.learn")

READ_SIZE = MIB
MOST_WAITING = 1000


class Learner:
    """Reads new artifacts again, one at a time, at most `rate` bytes a second (0: none at all). The digest of the whole
    is held against its name once more, so that what is learned is of a right copy.
    """

    def __init__(self, storage: Storage, lookup: Lookup, rate: float) -> None:
        self._storage = storage
        self._lookup = lookup
        self._rate = rate
        self._waiting: deque[Digest] = deque(maxlen=MOST_WAITING)
        self._stored = asyncio.Event()

    def stored(self, digest: Digest, size: int) -> None:
        """An artifact was stored. Lists name their whole by sha256."""
        if self._rate and digest.algorithm == "sha256" and size >= LEAST_SIZE:
            self._waiting.append(digest)
            self._stored.set()

    async def run(self) -> None:
        """Until cancelled."""
        while True:
            while self._waiting:
                await self._learn(self._waiting.popleft())
            self._stored.clear()
            await self._stored.wait()

    async def _learn(self, digest: Digest) -> None:
        try:
            if await self._lookup.catalog.find_chunks(digest) is not None:
                return
            reader = await self._storage.open(digest)
            try:
                hasher = await self._read(reader)
            finally:
                reader.close()
            chunks = hasher.finish()
            if chunks.digest == digest:
                await self._lookup.catalog.record_chunks(chunks, is_proven=True, origin="copy")
        except (StorageError, CatalogUnavailable, InvalidChunkList) as error:
            log.info("chunk list not learned", digest=str(digest), reason=str(error))

    async def _read(self, reader: ArtifactReader) -> ChunkHasher:
        loop, hasher, position = asyncio.get_running_loop(), ChunkHasher(), 0
        began = loop.time()
        while count := await _to_its_end(asyncio.to_thread(_feed, reader, position, hasher)):
            position += count
            await asyncio.sleep(max(0.0, began + position / self._rate - loop.time()))
        return hasher


async def _to_its_end(work: Coroutine[Any, Any, int]) -> int:
    """What is done in a thread can't be stopped; who is cancelled waits for it, as it uses what is closed then."""
    task = asyncio.create_task(work)
    try:
        return await asyncio.shield(task)
    except asyncio.CancelledError:
        await asyncio.wait([task])
        raise


def _feed(reader: ArtifactReader, position: int, hasher: ChunkHasher) -> int:
    data = reader.read(position, READ_SIZE)
    hasher.update(data)
    return len(data)
