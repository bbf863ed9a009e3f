"""Chunk lists: where the list of a content's chunk digests comes from (P2).

Proven is one that the proxy has made itself from a copy whose whole digest had verified, and one that the metadata of
the remote lists with a digest of its own. One that merely lies beside the file is a hint, and is not kept.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import structlog

from contentapp.core.chunks import ChunkList, InvalidChunkList, max_list_size, parse_chunk_list
from contentapp.core.digest import Digest
from contentapp.core.errors import CatalogUnavailable, ContentAppError, UpstreamError
from contentapp.core.records import Distribution, ListedFile, Remote
from contentapp.core.settings import MIB
from contentapp.pipeline.chunked import KnownChunks
from contentapp.pipeline.fetch import Fetcher, Refusals
from contentapp.pipeline.lookup import Lookup
from contentapp.plugins import file
from contentapp.upstream.base import UpstreamRequest

log = structlog.get_logger("contentapp.chunklists")

SUFFIX = ".chunks.json"
LEAST_SIZE = 8 * MIB
"""Of smaller bodies no list is looked for, or made."""


class ChunkLists:
    """Finds lists."""

    def __init__(self, fetcher: Fetcher, lookup: Lookup) -> None:
        self._fetcher = fetcher
        self._lookup = lookup

    async def known(self, digest: Digest) -> ChunkList | None:
        """The proven list that is kept for a digest; CatalogUnavailable."""
        found = await self._lookup.catalog.find_chunks(digest)
        return found[0] if found is not None and found[1] else None

    async def of_digest(self, digest: Digest, size: int | None) -> KnownChunks | None:
        """What is kept of a body; None without a list, and when the catalog does not answer."""
        if size is not None and size < LEAST_SIZE:
            return None
        try:
            found = await self.known(digest)
        except CatalogUnavailable:
            return None
        return None if found is None else KnownChunks(found, is_proven=True)

    async def of_file(
        self,
        distribution: Distribution,
        path: str,
        expected: ListedFile,
        listed: ListedFile | None,
        remotes: Sequence[Remote],
    ) -> KnownChunks | None:
        """The list of a file, from what is kept, else from beside it. `listed`: what the metadata says of the list."""
        if expected.size < LEAST_SIZE or not remotes:
            return None
        if (kept := await self.of_digest(expected.digest, expected.size)) is not None:
            return kept
        most = max_list_size(expected.size)
        if listed is not None and listed.size > most:
            return None
        wait = distribution.settings.first_byte_deadline_seconds / 2
        try:
            async with asyncio.timeout(wait):
                body = await self._fetch(path, listed, remotes, most)
                chunks = await asyncio.to_thread(_read, body, listed)
        except (ContentAppError, TimeoutError) as error:
            log.info("no chunk list", path=path, reason=str(error) or "too slow")
            return None
        if (chunks.digest, chunks.size) != (expected.digest, expected.size):
            log.info("a chunk list of something else", path=path)
            return None
        if listed is not None:
            await self._record(chunks)
        return KnownChunks(chunks, is_proven=listed is not None)

    async def _fetch(self, path: str, listed: ListedFile | None, remotes: Sequence[Remote], most: int) -> bytes:
        """The document from the first remote that has it. ContentAppError."""
        opened = self._fetcher.open(
            [file.locate(remote, path + SUFFIX) for remote in remotes],
            lambda source: UpstreamRequest(source=source, max_body_size=most),
            digest=None if listed is None else listed.digest,
            refusals=Refusals(),
        )
        async with opened as fetched:
            try:
                body = await fetched.response.read(most)
            except UpstreamError as error:
                await self._fetcher.failed(fetched.source, error)
                raise
            await self._fetcher.ended(fetched)
            return body

    async def _record(self, chunks: ChunkList) -> None:
        try:
            await self._lookup.catalog.record_chunks(chunks, is_proven=True, origin="listing")
        except CatalogUnavailable as error:
            log.warning("chunk list not recorded", error=str(error))


def _read(body: bytes, listed: ListedFile | None) -> ChunkList:
    """The list, if it is what the metadata says. InvalidChunkList."""
    if listed is not None and Digest.of(body, listed.digest.algorithm) != listed.digest:
        raise InvalidChunkList("it is not what the metadata says")
    return parse_chunk_list(body)
