"""Chunk lists, by the digest of the whole. They are kept when the artifact is evicted: it may be fetched again."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

from sqlalchemy import Row, and_, bindparam, select
from sqlalchemy.dialects.sqlite import Insert

from contentapp.catalog.engine import Queries, upsert
from contentapp.catalog.tables import chunk_lists
from contentapp.core.chunks import ChunkList
from contentapp.core.digest import Digest

SELECT_CHUNKS = select(chunk_lists).where(chunk_lists.c.digest == bindparam("this_digest"))


class ChunkQueries(Queries):
    """What the data path knows of chunks."""

    async def find_chunks(self, digest: Digest) -> tuple[ChunkList, bool] | None:
        row = await self._find(SELECT_CHUNKS, {"this_digest": str(digest)})
        return None if row is None else (chunk_list(row), row.is_proven)

    async def record_chunks(self, chunks: ChunkList, *, is_proven: bool, origin: str) -> None:
        """See `chunks_upsert` for what of an existing list is kept."""
        await self._change(chunks_upsert(), chunks_row(chunks, is_proven=is_proven, origin=origin))


def chunks_upsert() -> Insert:
    """The first list stays, but a proven one replaces a hint."""
    insert = upsert(chunk_lists)
    return insert.on_conflict_do_update(
        index_elements=[chunk_lists.c.digest],
        set_={column.name: insert.excluded[column.name] for column in chunk_lists.c if column.name != "digest"},
        where=and_(insert.excluded.is_proven, ~chunk_lists.c.is_proven),
    )


def chunks_row(chunks: ChunkList, *, is_proven: bool, origin: str) -> dict[str, Any]:
    return {
        "digest": str(chunks.digest),
        "size": chunks.size,
        "chunk_size": chunks.chunk_size,
        "digests": chunks.digests,
        "is_proven": is_proven,
        "learned_from": origin,
        "created_at": datetime.now(UTC),
    }


def chunk_list(row: Row[Any]) -> ChunkList:
    return ChunkList(
        size=row.size, chunk_size=row.chunk_size, digest=Digest.parse(row.digest), digests=bytes(row.digests)
    )
