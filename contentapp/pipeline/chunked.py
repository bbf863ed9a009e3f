"""Chunked: a body's chunks are held against their digests before they are passed on, and wrong ones replaced (P2).

A chunk that contradicts its list is asked from the other sources too, and taken from one that agrees with the list.
With a proven list its source is then cooled for this artifact. If no source agrees, the list itself may be wrong: it
isn't looked at any more, and the digest of the whole has the last word. Only a list that was made here from a right
copy is beyond doubt.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import contextmanager
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

PARTIAL_CONTENT = 206
LARGEST_CHECKED = 16 * MIB
"""Lists of larger chunks are not used: a chunk is in memory until it is whole."""

MEMORY_OF_ALL = 128 * MIB
"""Bytes of all chunks of a process that may be in memory; more flights than that go on without their lists."""


@dataclass(frozen=True, slots=True)
class KnownChunks:
    """A list, and whether it is proven, or but a hint. is_learned: made here, of a copy whose digest was right."""

    chunks: ChunkList
    is_proven: bool
    is_learned: bool = False

    def fits(self, digest: Digest, size: int | None) -> bool:
        """Whether it speaks of these bytes, and can be used."""
        chunks = self.chunks
        return chunks.digest == digest and size == chunks.size and chunks.chunk_size <= LARGEST_CHECKED


class ChunkMemory:
    """What all flights of a process may hold of chunks that are not whole yet."""

    def __init__(self, size: int = MEMORY_OF_ALL) -> None:
        self._free = size

    @contextmanager
    def room(self, size: int) -> Iterator[bool]:
        """Hold room for so many bytes, if there is any; whether there is.

        Nobody waits: a slow transfer may hold its own for hours.
        """
        is_there = self._free >= size
        self._free -= size if is_there else 0
        try:
            yield is_there
        finally:
            self._free += size if is_there else 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Repair:
    """How a wrong chunk is got elsewhere: from `sources`, each of which has deadline_seconds for it."""

    fetcher: Fetcher
    sources: Sequence[Source]
    digest: Digest
    deadline_seconds: float

    async def fetch(self, span: ByteRange, current: Source) -> AsyncIterator[tuple[Fetched, bytes]]:
        """The chunk as one source after the other has it, `current` last; those that don't deliver it are left out."""
        left = [source for source in self.sources if source.url != current.url] + [current]
        while left:
            found, left = await self._next(left, span, asyncio.get_running_loop().time() + self.deadline_seconds)
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
                if fetched.response.status != PARTIAL_CONTENT or fetched.response.offset != span.start:
                    return None, rest  # it does not do ranges
                try:
                    async with asyncio.timeout_at(deadline):
                        data = await fetched.response.read(span.length)
                except TimeoutError:
                    return None, rest
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
    sources that had wrong chunks. distrust: called when the list proves to be worth nothing.
    """

    def __init__(
        self,
        transfer: Transfer,
        known: KnownChunks,
        repair: Repair,
        memory: ChunkMemory,
        buffered: list[bytes],
        distrust: Callable[[], None],
    ) -> None:
        self.buffered = buffered
        self.convicted: set[str] = set()
        self._distrust = distrust
        self._transfer = transfer
        self._known: KnownChunks | None = known
        self._chunks = known.chunks
        self._repair = repair
        self._memory = memory
        self._position = transfer.offset
        self._givers: set[str] = set()  # URLs of the sources of what is buffered

    async def chunks(self) -> AsyncIterator[bytes]:
        """As Transfer.chunks, and WrongChunk when no source has the right bytes of a chunk of a proven list."""
        with self._memory.room(self._chunks.chunk_size) as is_there:
            if not is_there:
                self._known = None
                self._distrust()
            async for piece in self._transfer.chunks():
                for part in self._cut(piece):
                    self.buffered.append(part)
                    self._givers.add(self._transfer.source.url)
                    self._position += len(part)
                    if self._known is None or self._is_border:
                        for out in await self._checked():
                            yield out
                        self.buffered.clear()
                        self._givers.clear()
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
        # Of a chunk that several have given, nothing tells who gave the wrong part.
        asked = [current] if len(self._givers) == 1 else []
        async for fetched, data in self._repair.fetch(span, current):
            if self._chunks.matches(index, await asyncio.to_thread(_digest, [data])):
                if known.is_proven:
                    await self._convict([source for source in asked if source.url != fetched.source.url], index)
                self._transfer.contributed(fetched)
                return [data]
            asked.append(fetched.source)
            if not known.is_proven and data == b"".join(self.buffered):
                break  # two answers agree against the hint
        if known.is_learned:
            await self._convict(asked, index)
            raise WrongChunk(f"chunk {index} of {self._chunks.digest} is wrong at every source that has it")
        self._known = None
        self._distrust()
        return self.buffered

    async def _convict(self, sources: Sequence[Source], index: int) -> None:
        """Cool those that had it wrong; one that had it right the second time is not among them."""
        for source in {source.url: source for source in sources}.values():
            self.convicted.add(source.url)
            reason = f"chunk {index} of {self._chunks.digest} is wrong"
            await self._repair.fetcher.wrong_bytes(source, self._repair.digest, reason)


def _digest(pieces: Sequence[bytes]) -> bytes:
    hasher = hashlib.sha256()
    for piece in pieces:
        hasher.update(piece)
    return hasher.digest()
