"""Chunk lists: where the list of a content's chunk digests comes from (P2).

Proven is one that the proxy has made itself from a copy whose whole digest had verified, and one that the metadata of
the remote lists with a digest of its own; a remote's word counts for what that remote lists, and nowhere else, so it
isn't kept. One that merely lies beside the file is a hint.
"""

from __future__ import annotations

import asyncio

import structlog

from contentapp.core.chunks import ChunkList, InvalidChunkList, max_list_size, parse_chunk_list
from contentapp.core.digest import Digest
from contentapp.core.errors import CatalogUnavailable, ContentAppError, UpstreamError, UpstreamTimeout
from contentapp.core.records import ListedFile, Remote, Source
from contentapp.core.settings import MIB
from contentapp.pipeline.chunked import KnownChunks
from contentapp.pipeline.fetch import Fetcher
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
        return None if found is None else KnownChunks(found, is_proven=True, is_learned=True)

    async def of_file(
        self,
        path: str,
        expected: ListedFile,
        listed: ListedFile | None,
        remote: Remote,
    ) -> KnownChunks | None:
        """The list of a file, from what is kept, else from beside it.

        remote: whose metadata gives the digest of the file. listed: what that says of the list.
        """
        if expected.size < LEAST_SIZE:
            return None
        if (kept := await self.of_digest(expected.digest, expected.size)) is not None:
            return kept
        most = max_list_size(expected.size)
        if listed is not None and listed.size > most:
            return None
        source = file.locate(remote, path + SUFFIX)
        try:
            async with asyncio.timeout(remote.settings.chunk_list_wait_seconds):
                body = await self._fetch(source, listed, most)
                chunks = await asyncio.to_thread(_read, body, listed)
        except TimeoutError:
            await self._fetcher.failed_aside(source, UpstreamTimeout(f"{path}{SUFFIX}: too slow"))
            return None
        except ContentAppError as error:
            log.info("no chunk list", path=path, reason=str(error))
            return None
        if (chunks.digest, chunks.size) != (expected.digest, expected.size):
            log.info("a chunk list of something else", path=path)
            return None
        return KnownChunks(chunks, is_proven=listed is not None)

    async def _fetch(self, source: Source, listed: ListedFile | None, most: int) -> bytes:
        """The document. ContentAppError."""
        opened = self._fetcher.open(
            [source],
            lambda source: UpstreamRequest(source=source, max_body_size=most, is_last=False),
            digest=None if listed is None else listed.digest,
            is_aside=True,
        )
        async with opened as fetched:
            try:
                return await fetched.response.read(most)
            except UpstreamError as error:
                await self._fetcher.failed_aside(source, error)
                raise


def _read(body: bytes, listed: ListedFile | None) -> ChunkList:
    """The list, if it is what the metadata says. InvalidChunkList."""
    if listed is not None and Digest.of(body, listed.digest.algorithm) != listed.digest:
        raise InvalidChunkList("it is not what the metadata says")
    return parse_chunk_list(body)
