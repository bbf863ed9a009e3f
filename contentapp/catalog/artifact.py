"""Artifacts, and the remotes that have them."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import Any

from sqlalchemy import Connection, Row, and_, bindparam, delete, func, or_, select, true, update
from sqlalchemy.dialects.sqlite import Insert

from contentapp.catalog.engine import Queries, batches, upsert
from contentapp.catalog.tables import artifact_sources, artifacts
from contentapp.core.digest import Digest
from contentapp.core.records import ArtifactRecord

IS_STORED = artifacts.c.is_stored == true()
SELECT_ARTIFACT = select(artifacts).where(artifacts.c.digest == bindparam("this_digest"), IS_STORED)
SELECT_MODIFIED = select(artifacts.c.modified_at).where(artifacts.c.digest == bindparam("this_digest"))
FORGET_ARTIFACT = update(artifacts).where(artifacts.c.digest == bindparam("this_digest")).values(is_stored=False)
FORGET_ARTIFACT_OF = FORGET_ARTIFACT.where(artifacts.c.stored_at == bindparam("this_stored_at"))
TOUCH_ARTIFACT = (
    update(artifacts)
    .where(
        artifacts.c.digest == bindparam("this_digest"),
        or_(artifacts.c.last_used_at.is_(None), artifacts.c.last_used_at < bindparam("used_at")),
    )
    .values(last_used_at=bindparam("used_at"), eviction_at=bindparam("used_at"))
)
FORGET_SOURCE = delete(artifact_sources).where(
    artifact_sources.c.digest == bindparam("this_digest"), artifact_sources.c.remote_id == bindparam("remote")
)


class ArtifactQueries(Queries):
    """What the data path knows of artifacts."""

    async def find_artifact(self, digest: Digest) -> ArtifactRecord | None:
        row = await self._find(SELECT_ARTIFACT, {"this_digest": str(digest)})
        return None if row is None else artifact_record(row)

    async def record_artifact(self, record: ArtifactRecord) -> None:
        """See `artifact_upsert` for what of an existing record is kept."""
        await self._change(artifact_upsert(), artifact_row(record))

    async def forget_artifact(self, digest: Digest, *, stored_at: datetime | None = None) -> None:
        if stored_at is None:
            await self._change(FORGET_ARTIFACT, {"this_digest": str(digest)})
        else:
            await self._change(FORGET_ARTIFACT_OF, {"this_digest": str(digest), "this_stored_at": stored_at})

    async def touch_artifacts(self, used: Mapping[Digest, datetime]) -> None:
        """Last-use times; they only move forward."""
        for batch in batches(used.items()):
            rows = [{"this_digest": str(digest), "used_at": used_at} for digest, used_at in batch]
            await self._change(TOUCH_ARTIFACT, rows)

    async def record_source(self, digest: Digest, remote: int, path: str) -> None:
        await self._change(source_upsert(), {"digest": str(digest), "remote_id": remote, "path": path})

    async def forget_source(self, digest: Digest, remote: int) -> None:
        await self._change(FORGET_SOURCE, {"this_digest": str(digest), "remote": remote})

    async def find_modified(self, digest: Digest) -> datetime | None:
        row = await self._find(SELECT_MODIFIED, {"this_digest": str(digest)})
        return None if row is None else row.modified_at

    async def last_modified(self, digest: Digest, first_seen: datetime) -> datetime:
        row = await self._find(SELECT_MODIFIED, {"this_digest": str(digest)})
        if row is None:
            return await self._engine.write(lambda connection: first_modified(connection, digest, first_seen))
        modified_at: datetime = row.modified_at
        return modified_at


def artifact_upsert() -> Insert:
    """A new record replaces one that is no longer stored, but for the time its bytes were first seen.

    Of a stored one only a missing `flight` is filled in: bytes adopted at start have none.
    """
    insert = upsert(artifacts)
    known, new = artifacts.c, insert.excluded
    kept = ("digest", "pinned", "modified_at", "last_used_at")
    return insert.on_conflict_do_update(
        index_elements=[artifacts.c.digest],
        set_={column.name: new[column.name] for column in artifacts.c if column.name not in kept}
        | {"last_used_at": func.coalesce(new.last_used_at, known.last_used_at)},
        where=or_(~known.is_stored, and_(known.flight == "", new.flight != "")),
    )


def source_upsert() -> Insert:
    insert = upsert(artifact_sources)
    return insert.on_conflict_do_update(
        index_elements=list(artifact_sources.primary_key),
        set_={"path": insert.excluded.path},
        where=artifact_sources.c.path != insert.excluded.path,
    )


def first_modified(connection: Connection, digest: Digest, first_seen: datetime) -> datetime:
    """What is recorded, by now perhaps by another process."""
    connection.execute(upsert(artifacts).on_conflict_do_nothing(), unstored_row(digest, first_seen))
    modified_at: datetime = connection.execute(SELECT_MODIFIED, {"this_digest": str(digest)}).scalar_one()
    return modified_at


def unstored_row(digest: Digest, modified_at: datetime) -> dict[str, Any]:
    return {
        "digest": str(digest),
        "is_stored": False,
        "pinned": False,
        "size": None,
        "flight": "",
        "stored_at": None,
        "modified_at": modified_at,
        "last_used_at": None,
        "eviction_at": None,
    }


def artifact_row(record: ArtifactRecord) -> dict[str, Any]:
    return unstored_row(record.digest, record.modified_at) | {
        "is_stored": True,
        "size": record.size,
        "flight": record.flight,
        "stored_at": record.stored_at,
        "last_used_at": record.last_used_at,
        "eviction_at": record.last_used_at or record.stored_at,
    }


def artifact_record(row: Row[Any]) -> ArtifactRecord:
    return ArtifactRecord(
        digest=Digest.parse(row.digest),
        size=row.size,
        flight=row.flight,
        stored_at=row.stored_at,
        modified_at=row.modified_at,
        last_used_at=row.last_used_at,
    )
