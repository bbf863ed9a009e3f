"""Chunked: a body's chunks are held against their digests before they are passed on, and wrong ones replaced (P2).

With a proven list a chunk that doesn't match is wrong: its source is cooled for this artifact, and the chunk fetched
again, alone, from another one. A hint may itself be wrong: a chunk that contradicts it is asked from another source
too, and taken from there only if that one agrees with the hint. The whole digest has the last word in any case.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass

import structlog

from contentapp.core.byterange import ByteRange
from contentapp.core.chunks import ChunkList
from contentapp.core.digest import Digest
from contentapp.core.errors import ContentDenied, ContentNotFound, ContentUnavailable, UpstreamError
from contentapp.core.records import Source
from contentapp.core.settings import MIB
from contentapp.metrics import metrics
from contentapp.pipeline.fetch import Fetched, Fetcher, Refusals
from contentapp.pipeline.resume import Transfer
from contentapp.pipeline.wrong import WrongChunk
from contentapp.upstream.base import UpstreamRequest

log = structlog.get_logger("contentapp.chunked")

LARGEST_CHECKED = 16 * MIB
"""Lists of larger chunks are not used: a chunk is in memory until it is whole."""

MEMORY_OF_ALL = 128 * MIB
"""Bytes of all chunks of a process that may be in memory; more flights than that wait for each other."""


@dataclass(frozen=True, slots=True)
class KnownChunks:
    """A list, and whether it is proven, or but a hint."""

    chunks: ChunkList
    is_proven: bool

    def fits(self, digest: Digest, size: int | None) -> bool:
        """Whether it speaks of these bytes, and can be used."""
        chunks = self.chunks
        return chunks.digest == digest and size == chunks.size and chunks.chunk_size <= LARGEST_CHECKED


class ChunkMemory:
    """What all flights of a process may hold of chunks that are not whole yet."""

    def __init__(self, size: int = MEMORY_OF_ALL) -> None:
        self._free = size
        self._changed = asyncio.Condition()

    @asynccontextmanager
    async def room(self, size: int) -> AsyncIterator[None]:
        """Wait for room for so many bytes, at most `LARGEST_CHECKED`, and hold it."""
        async with self._changed:
            await self._changed.wait_for(lambda: self._free >= size)
            self._free -= size
        try:
            yield
        finally:
            self._free += size
            async with self._changed:
                self._changed.notify_all()


@dataclass(frozen=True, slots=True, kw_only=True)
class Repair:
    """How a wrong chunk is got elsewhere: from `sources`, all of which are asked within deadline_seconds."""

    fetcher: Fetcher
    sources: Sequence[Source]
    digest: Digest
    deadline_seconds: float

    async def fetch(self, span: ByteRange, current: Source) -> AsyncIterator[tuple[Fetched, bytes]]:
        """The chunk as one source after the other has it, `current` last; those that don't deliver it are left out."""
        left = [source for source in self.sources if source.url != current.url] + [current]
        deadline = asyncio.get_running_loop().time() + self.deadline_seconds
        while left:
            found, left = await self._next(left, span, deadline)
            if found is not None:
                yield found

    async def _next(
        self, sources: list[Source], span: ByteRange, deadline: float
    ) -> tuple[tuple[Fetched, bytes] | None, list[Source]]:
        """What the first source that answers has, and those that come after it."""
        opened = self.fetcher.open(
            sources,
            lambda source: UpstreamRequest(source=source, offset=span.start, end=span.end),
            digest=self.digest,
            deadline=deadline,
            must_exist=True,
            refusals=Refusals(),
        )
        try:
            async with opened as fetched:
                rest = sources[sources.index(fetched.source) + 1 :]
                if fetched.response.offset != span.start:
                    return None, rest  # it does not do ranges
                try:
                    data = await fetched.response.read(span.length)
                except UpstreamError as error:
                    await self.fetcher.failed(fetched.source, error)
                    return None, rest
                metrics.upstream_bytes(fetched.source.remote.name, len(data))
                return ((fetched, data) if len(data) == span.length else None), rest
        except (ContentUnavailable, ContentNotFound, ContentDenied):
            return None, []


class Checked:
    """A transfer's bytes from a chunk's border on, each chunk passed on when it is right.

    buffered: takes the bytes that have come and are not passed on yet; the caller's to look at. convicted: URLs of the
    sources that had wrong chunks.
    """

    def __init__(
        self, transfer: Transfer, known: KnownChunks, repair: Repair, memory: ChunkMemory, buffered: list[bytes]
    ) -> None:
        self.buffered = buffered
        self.convicted: set[str] = set()
        self._transfer = transfer
        self._known: KnownChunks | None = known
        self._chunks = known.chunks
        self._repair = repair
        self._memory = memory
        self._position = transfer.offset

    async def chunks(self) -> AsyncIterator[bytes]:
        """As Transfer.chunks, and WrongChunk when no source has the right bytes of a chunk of a proven list."""
        async with self._memory.room(self._chunks.chunk_size):
            async for piece in self._transfer.chunks():
                for part in self._cut(piece):
                    self.buffered.append(part)
                    self._position += len(part)
                    if self._is_border:
                        for out in await self._checked():
                            yield out
                        self.buffered.clear()
            for out in self.buffered:  # shorter than the list says: the caller sees that
                yield out

    def _cut(self, piece: bytes) -> Iterator[bytes]:
        """The piece, cut at the borders of chunks; all behind the list's end in one."""
        start = 0
        while start < len(piece):
            if self._position >= self._chunks.size:
                stop = len(piece)
            else:
                stop = start + self._chunks.span(self._chunks.index_of(self._position)).end - self._position
            yield piece[start:stop]
            start = stop

    @property
    def _is_border(self) -> bool:
        chunks = self._chunks
        return self._position >= chunks.size or self._position % chunks.chunk_size == 0

    async def _checked(self) -> list[bytes]:
        """The chunk that has just become whole, or another source's in its place."""
        known, size = self._known, sum(map(len, self.buffered))
        if known is None or self._position > self._chunks.size:
            return self.buffered
        index = self._chunks.index_of(self._position - 1)
        if size != self._chunks.span(index).length:
            return self.buffered  # it began in the middle: only the whole digest can tell
        digest = await asyncio.to_thread(_digest, self.buffered)
        if self._chunks.matches(index, digest):
            return self.buffered
        return await self._replaced(index, known)

    async def _replaced(self, index: int, known: KnownChunks) -> list[bytes]:
        current, span = self._transfer.source, self._chunks.span(index)
        log.warning("wrong chunk", remote=current.remote.name, digest=str(self._chunks.digest), chunk=index)
        metrics.wrong_chunk(current.remote.name)
        async for fetched, data in self._repair.fetch(span, current):
            if self._chunks.matches(index, await asyncio.to_thread(_digest, [data])):
                await self._convict(current, fetched.source, index, known)
                self._transfer.contributed(fetched)
                return [data]
            if known.is_proven:
                await self._convict(fetched.source, None, index, known)
            elif data == b"".join(self.buffered):
                break  # two answers agree against the hint
        if known.is_proven:
            raise WrongChunk(f"chunk {index} of {self._chunks.digest} is wrong at every source that has it")
        self._known = None  # unconfirmed: it is not looked at any more
        return self.buffered

    async def _convict(self, source: Source, right: Source | None, index: int, known: KnownChunks) -> None:
        """Cool a source for what a proven list says of it; not if it had the right bytes the second time."""
        if known.is_proven and (right is None or right.url != source.url):
            reason = f"chunk {index} of {self._chunks.digest} is wrong"
            self.convicted.add(source.url)
            await self._repair.fetcher.wrong_bytes(source, self._repair.digest, reason)


def _digest(pieces: Sequence[bytes]) -> bytes:
    hasher = hashlib.sha256()
    for piece in pieces:
        hasher.update(piece)
    return hasher.digest()
